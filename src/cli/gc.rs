//! `ocistern gc`: removal of what nothing leads to.

use std::fmt::Write as _;

use http::Method;

use super::progress::Work;
use super::store::{Ask, StoreFlags, Trouble};
use super::table::{ago, bytes, count, table};
use crate::clock::{Clock as _, SystemClock, timestamp};
use crate::config;
use crate::http::admin::Status;
use crate::store::{Collected, Victim};

/// How much is to be evicted at most where nobody says; of a small store, a part.
const EVICT: u64 = 1 << 30;
/// Which part.
const PART: u64 = 10;

/// What `gc` is told.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Change nothing.
    #[arg(long, help = "Say what would be removed, and what would be evicted next; change nothing")]
    dry_run: bool,
    /// How much eviction.
    #[arg(
        long,
        value_name = "SIZE",
        requires = "dry_run",
        value_parser = config::size,
        help = "With --dry-run: how much would have to be evicted, such as 10GiB [default: 1GiB, or a tenth of what is stored]"
    )]
    bytes: Option<u64>,
    #[command(flatten)]
    store: StoreFlags,
}

/// The text to print.
pub(super) fn run(arguments: &Arguments) -> Result<String, Trouble> {
    let ask = Ask::new("gc", Method::POST, "/api/v1/gc").with_flag("dry_run", arguments.dry_run).working(Work::Collect);
    let mut evict = match arguments.bytes {
        Some(bytes) => bytes,
        None if arguments.dry_run => usual(&arguments.store)?,
        None => EVICT,
    };
    let about = |evict: u64| {
        let ask = ask.clone();
        if arguments.dry_run { ask.with("evict_bytes", &evict.to_string()) } else { ask }
    };
    let mut answer = about(evict).send(&arguments.store)?;
    let mut collected: Collected = answer.read()?;
    if let Some(less) = collected.evictable_bytes.filter(|_| arguments.bytes.is_none() && is_too_much(&collected))
        && less > 0
    {
        // Nobody asked for more than there is that may go.
        evict = less;
        answer = about(evict).send(&arguments.store)?;
        collected = answer.read()?;
    }
    if arguments.store.json {
        return Ok(answer.json());
    }
    // What cannot be freed is not listed; why is to be said.
    let held = if is_too_much(&collected) { Some(held(&arguments.store)?) } else { None };
    Ok(text(&collected, evict, held))
}

/// What would have to be evicted where nobody says how much.
fn usual(store: &StoreFlags) -> Result<u64, Trouble> {
    Ok((held(store)? / PART).clamp(1, EVICT))
}

/// What is stored, in bytes.
fn held(store: &StoreFlags) -> Result<u64, Trouble> {
    let status: Status = Ask::new("gc", Method::GET, "/api/v1/status").send(store)?.read()?;
    Ok(u64::try_from(status.store.bytes).unwrap_or_default())
}

/// Whether more was to be evicted than there is that may go.
fn is_too_much(collected: &Collected) -> bool {
    collected.evict_next.as_ref().is_some_and(Vec::is_empty) && collected.evict_unfinished_bytes == 0
}

fn text(collected: &Collected, evict: u64, held: Option<u64>) -> String {
    let mut text = String::new();
    let Collected { blobs, freed_bytes, broken_refs, damaged_records, empty_directories, .. } = *collected;
    let Collected { quarantined, quarantined_bytes, bad_indexes, index_added, index_removed, .. } = *collected;
    for (number, one, many, size) in [
        (blobs, "blob to which nothing leads", "blobs to which nothing leads", Some(freed_bytes)),
        (
            collected.unfinished,
            "download that nobody has gone on with",
            "downloads that nobody has gone on with",
            Some(collected.unfinished_bytes),
        ),
        (broken_refs, "tag or link whose blob is gone", "tags and links whose blobs are gone", None),
        (damaged_records, "damaged record", "damaged records", None),
        (collected.damaged_pins.len() as u64, "damaged file of a pin", "damaged files of pins", None),
        (empty_directories, "empty directory", "empty directories", None),
        (quarantined, "old file in quarantine", "old files in quarantine", Some(quarantined_bytes)),
        (bad_indexes, "index that was set aside", "indexes that were set aside", None),
        (index_added, "blob that the index did not know", "blobs that the index did not know", None),
        (index_removed, "blob that only the index knew", "blobs that only the index knew", None),
    ] {
        if number > 0 {
            let size = size.map(|size| format!(", {}", bytes(size))).unwrap_or_default();
            let _ = writeln!(text, "{}{size}", count(number, one, many));
        }
    }
    if text.is_empty() {
        text.push_str("nothing to clean up\n");
    } else {
        text.insert_str(0, if collected.dry_run { "would be cleaned up:\n" } else { "cleaned up:\n" });
    }
    let unfinished = collected.evict_unfinished_bytes;
    match collected.evict_next.as_deref() {
        None => {}
        Some(victims) if unfinished > 0 => {
            let _ = writeln!(
                text,
                "\nto free {}, unfinished downloads would go first, {}",
                bytes(evict),
                bytes(unfinished)
            );
            if !victims.is_empty() {
                let _ = write!(text, "then would be evicted:\n{}", victim_table(victims));
            }
        }
        Some([]) => {
            let _ = writeln!(text, "\n{}", nothing_goes(evict, held, collected.evictable_bytes));
        }
        Some(victims) => {
            let _ = write!(text, "\nto free {}, would be evicted:\n{}", bytes(evict), victim_table(victims));
        }
    }
    text
}

/// Why no blob is listed that would go.
fn nothing_goes(evict: u64, held: Option<u64>, evictable: Option<u64>) -> String {
    match (held, evictable) {
        (Some(0), _) => "nothing is stored, so nothing would be evicted".to_owned(),
        (_, Some(0)) => {
            let all = held.map_or_else(String::new, |held| format!(", {}", bytes(held)));
            format!(
                "nothing may be evicted: all that is stored{all}, is pinned (`ocistern pin` lists the pins), or read or written now"
            )
        }
        _ => {
            let held = held.map_or_else(String::new, |held| format!("the store holds {} in all, ", bytes(held)));
            let may = evictable.map_or_else(String::new, |may| format!("of which {} may go, ", bytes(may)));
            format!(
                "{} cannot be freed, so nothing is listed: {held}{may}and what is pinned, read or written stays; ask for less \
                 with --bytes",
                bytes(evict)
            )
        }
    }
}

fn victim_table(victims: &[Victim]) -> String {
    let now = timestamp(SystemClock.now());
    let row = |victim: &Victim| {
        let digest = victim.digest.map_or_else(|| "-".to_owned(), |digest| digest.to_string());
        let names = if victim.images.is_empty() { &victim.names } else { &victim.images };
        let (name, more) = (names.first(), names.len().saturating_sub(1));
        let name = name.map_or_else(|| "-".to_owned(), |name| name.split('@').next().unwrap_or_default().to_owned());
        let name = if more > 0 { format!("{name} (+{more})") } else { name };
        vec![digest, bytes(victim.bytes), ago(victim.last_used, now), name]
    };
    table(&["BLOB", "SIZE", "LAST USE", "OF"], &[1], &victims.iter().map(row).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_than_there_is_is_said() {
        let collected = Collected { dry_run: true, evict_next: Some(Vec::new()), ..Collected::default() };
        assert!(is_too_much(&collected));
        let said = text(&collected, 500 << 30, Some(3 << 30));
        assert!(
            said.contains("\n500 GiB cannot be freed, so nothing is listed: the store holds 3.0 GiB in all"),
            "{said}"
        );
        let some = Collected { evictable_bytes: Some(1 << 30), ..collected.clone() };
        assert!(text(&some, 500 << 30, Some(3 << 30)).contains("in all, of which 1.0 GiB may go, and what is pinned"));
        let pinned = text(&Collected { evictable_bytes: Some(0), ..collected.clone() }, 1 << 30, Some(3 << 30));
        assert!(pinned.contains("all that is stored, 3.0 GiB, is pinned (`ocistern pin`"), "{pinned}");
        assert!(!pinned.contains("--bytes"), "nobody asked for an amount: {pinned}");
        let empty = text(&Collected { evictable_bytes: Some(0), ..collected.clone() }, 1, Some(0));
        assert!(empty.ends_with("\nnothing is stored, so nothing would be evicted\n"), "{empty}");
        let unfinished = Collected { evict_unfinished_bytes: 1, ..collected.clone() };
        let unasked = Collected { evict_next: None, ..collected };
        assert!(!is_too_much(&unfinished) && !is_too_much(&unasked));
        assert_eq!(text(&unasked, 1, None), "nothing to clean up\n");
    }
}
