//! The rows of the long form in docs/reliability.md: one a subject, made anew from all batches, between two marks.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use crate::long::Batch;

const BEGIN: &str = "<!-- long form: begin; these rows are written by torture --long --docs -->";
const END: &str = "<!-- long form: end -->";

/// Figures that say what was looked at, with words for them.
const CHECKED: [(&str, &str); 7] = [
    ("answers", "answers"),
    ("files_at_cuts", "published files at the cuts"),
    ("acknowledged_pushes_at_cuts", "acknowledged pushes at the cuts"),
    ("upstream_counts_checked", "counts of upstream's requests"),
    ("calls_that_failed", "calls that failed"),
    ("quarantined", "blobs set aside by a last process"),
    ("index_rebuilds", "indexes begun anew"),
];

/// Writes the table of these batches into the file, between its marks.
pub fn write(file: &Path, batches: &[Batch]) -> Result<(), String> {
    let text = fs::read_to_string(file).map_err(|e| format!("{}: {e}", file.display()))?;
    let (Some(begin), Some(end)) = (text.find(BEGIN), text.find(END)) else {
        return Err(format!("{} does not have the marks {BEGIN} and {END}", file.display()));
    };
    let text = format!("{}{}\n{}{}", &text[..begin], BEGIN, rows(batches), &text[end..]);
    fs::write(file, text).map_err(|e| format!("{}: {e}", file.display()))
}

/// The table: the same batches give the same text.
fn rows(batches: &[Batch]) -> String {
    let mut text = String::from(
        "| subject | build | dates | seeds | cases | what was checked | violated | minutes |\n|---|---|---|---|---|---|---|---|\n",
    );
    let mut seen = BTreeSet::new();
    for first in batches {
        if !seen.insert((&first.subject, &first.profile)) {
            continue;
        }
        let all: Vec<&Batch> =
            batches.iter().filter(|b| (&b.subject, &b.profile) == (&first.subject, &first.profile)).collect();
        let sum = |figure: &str| all.iter().map(|batch| batch.count(figure)).sum::<u64>();
        let dates: BTreeSet<&str> = all.iter().map(|batch| batch.date.as_str()).collect();
        let dates: Vec<&str> = dates.into_iter().collect();
        let (oldest, newest) = (dates.first().unwrap_or(&""), dates.last().unwrap_or(&""));
        let dates = if oldest == newest { (*oldest).to_owned() } else { format!("{oldest} to {newest}") };
        // Of several lanes the batches end in any order.
        let (low, high) =
            all.iter().fold((first.seed, first.seed), |(low, high), batch| (low.min(batch.seed), high.max(batch.seed)));
        let seeds = if low == high { low.to_string() } else { format!("{low} to {high}") };
        let checked = CHECKED.iter().filter(|(figure, _)| sum(figure) > 0);
        let checked: Vec<String> = checked.map(|(figure, words)| format!("{} {words}", sum(figure))).collect();
        text += &format!(
            "| `{}` | {} | {dates} | {seeds} | {} {} | {} | {} | {} |\n",
            first.subject.replacen(' ', " --", 1),
            first.profile,
            sum(&first.figure),
            first.figure,
            checked.join(", "),
            sum("violations"),
            sum("seconds").div_ceil(60),
        );
    }
    text
}
