//! The long form: every subject in batches, each a process with a seed of its own. What a batch found is written down when
//! it ends; the next call goes on after the last one.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::options::{Options, need};
use crate::parts;
use crate::short::TOOLS;
use crate::table;

/// A subject in the long form.
struct Part {
    /// What is run, with how much of it in one batch.
    subject: &'static str,
    option: &'static str,
    batch: u64,
    further: &'static str,
    /// The figure that counts it, and how much of it there is to be.
    figure: &'static str,
    total: u64,
    /// The option of the long form that says another total.
    called: &'static str,
}

/// What one batch found.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Batch {
    pub subject: String,
    pub arguments: String,
    pub seed: u64,
    pub date: String,
    pub profile: String,
    pub figure: String,
    pub figures: serde_json::Map<String, serde_json::Value>,
}

const fn part(
    (subject, option, batch): (&'static str, &'static str, u64),
    further: &'static str,
    figure: &'static str,
    (called, total): (&'static str, u64),
) -> Part {
    Part { subject, option, batch, further, figure, total, called }
}

/// In this order. A batch of power cuts has every durability with every capacity.
const PARTS: [Part; 20] = [
    part(("power", "cuts", 90), "", "cuts", ("cuts", 3000)),
    part(("kill", "kills", 50), "", "kills", ("kills", 600)),
    part(("kill", "points", 50), "", "points", ("points", 600)),
    part(("enospc", "sizes", 40), "", "sizes", ("sizes", 200)),
    part(("errors", "points", 60), "--error ENOSPC", "points", ("errors", 240)),
    part(("errors", "points", 60), "--error EDQUOT", "points", ("errors", 240)),
    part(("errors", "points", 60), "--error EROFS", "points", ("errors", 240)),
    part(("errors", "points", 60), "--error EIO", "points", ("errors", 240)),
    part(("errors", "points", 60), "--error short", "points", ("errors", 240)),
    part(("errors", "points", 60), "--error EMFILE", "points", ("errors", 240)),
    part(("errors", "points", 60), "--error ENFILE", "points", ("errors", 240)),
    part(("errors", "points", 60), "--error EACCES", "points", ("errors", 240)),
    part(("index", "damages", 512), "", "damages", ("damages", 2048)),
    part(("rot", "damages", 500), "", "damages", ("damages", 2000)),
    part(("blocks", "cases", 24), "", "cases", ("cases", 48)),
    part(("readonly", "cases", 24), "", "cases", ("cases", 48)),
    part(("removed", "cases", 24), "", "cases", ("cases", 48)),
    part(("limits", "cases", 24), "", "cases", ("cases", 48)),
    part(("clock", "cases", 24), "", "cases", ("cases", 48)),
    part(("soak", "minutes", 60), "", "minutes", ("minutes", 60)),
];

pub async fn run(options: &Options) -> Result<bool, String> {
    need(true, &TOOLS)?;
    let profile = if cfg!(debug_assertions) { "debug" } else { "release" };
    let file = options.path("file").unwrap_or_else(|| default_file(profile));
    let docs = options.path("docs");
    let mut known = read(&file)?;
    println!("torture --long: {} batches are in {}", known.len(), file.display());
    // Those of a file go on from the seed that its first batch had.
    let base = known.first().map_or(options.seed, |first| first.seed);
    let (stop, _listening) = parts::told_to_end();
    let most = options.count_or("batches", u64::MAX);
    let mut run = 0;
    for (number, part) in (0..).zip(&PARTS) {
        let total = options.count_or(part.called, part.total);
        let name = format!("{} {} {}", part.subject, part.option, part.further).trim_end().to_owned();
        loop {
            let of_part: Vec<&Batch> = known.iter().filter(|batch| batch.subject == name).collect();
            let done: u64 = of_part.iter().map(|batch| batch.count(part.figure)).sum();
            if done >= total || run >= most {
                break;
            }
            let count = part.batch.min(total - done);
            let arguments = format!("{} --{} {count} {}", part.subject, part.option, part.further);
            let seed = base + number * 1_000 + of_part.len() as u64;
            println!("\n==> {name}: {done} of {total} done");
            let said = parts::run(arguments.trim_end(), seed, &stop, true).await?;
            if stop.is_cancelled() {
                return Err(format!("told to end; {} batches are in {}", known.len(), file.display()));
            }
            let Some(serde_json::Value::Object(figures)) = said.figures else {
                return Err(format!("{arguments} --seed {seed}: no figures came ({})", said.status));
            };
            let batch = Batch {
                subject: name.clone(),
                arguments: arguments.trim_end().to_owned(),
                seed,
                date: today(),
                profile: profile.to_owned(),
                figure: part.figure.to_owned(),
                figures,
            };
            append(&file, &batch)?;
            known.push(batch);
            run += 1;
            if let Some(docs) = &docs {
                table::write(docs, &known)?;
            }
        }
    }
    if let Some(docs) = &docs {
        table::write(docs, &known)?;
    }
    let violated: Vec<&Batch> = known.iter().filter(|batch| batch.count("violations") > 0).collect();
    for batch in &violated {
        println!("violated {} times: {} --seed {}", batch.count("violations"), batch.arguments, batch.seed);
    }
    Ok(violated.is_empty())
}

fn default_file(profile: &str) -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("target"), PathBuf::from);
    target.join("torture").join(format!("long-{profile}.jsonl"))
}

/// The batches that have been run. A last line that was not written to its end is a batch that was not run.
fn read(file: &Path) -> Result<Vec<Batch>, String> {
    let Ok(text) = fs::read_to_string(file) else { return Ok(Vec::new()) };
    let whole = &text[..text.rfind('\n').map_or(0, |end| end + 1)];
    if whole.len() < text.len() {
        fs::write(file, whole).map_err(|e| e.to_string())?;
    }
    let batches = whole.lines().map(|line| serde_json::from_str(line).map_err(|e| format!("{}: {e}", file.display())));
    batches.collect()
}

fn append(file: &Path, batch: &Batch) -> Result<(), String> {
    let fail = |e: std::io::Error| format!("{}: {e}", file.display());
    if let Some(above) = file.parent() {
        fs::create_dir_all(above).map_err(fail)?;
    }
    let line = serde_json::to_string(batch).map_err(|e| e.to_string())? + "\n";
    let mut file = fs::OpenOptions::new().create(true).append(true).open(file).map_err(fail)?;
    file.write_all(line.as_bytes()).map_err(|e| e.to_string())
}

/// The day, as in 2026-11-28.
fn today() -> String {
    jiff::Timestamp::try_from(crate::common::clock::wall())
        .map_or_else(|_| String::new(), |now| now.strftime("%F").to_string())
}

impl Batch {
    /// A figure of it.
    pub fn count(&self, figure: &str) -> u64 {
        self.figures.get(figure).and_then(serde_json::Value::as_u64).unwrap_or(0)
    }
}
