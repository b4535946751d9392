//! The long form: every subject in batches, each a process with a seed of its own, several at a time. What a batch found is
//! written down when it ends; the next call goes on after the last one.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;

use crate::options::{Options, need};
use crate::parts::{self, Said};
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
    /// What the seeds of its file are counted from.
    pub base: u64,
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

/// In this order, the longest first. A batch of power cuts has every durability with every capacity.
const PARTS: [Part; 20] = [
    part(("soak", "minutes", 60), "", "minutes", ("minutes", 60)),
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
];
const PROFILE: &str = if cfg!(debug_assertions) { "debug" } else { "release" };
/// How many batches run at a time.
const LANES: u64 = 3;
/// Seeds of each part.
const SEEDS: u64 = 1_000;

/// The batches of a run: those that are known, and how many of each part are at work.
struct Ledger {
    known: Vec<Batch>,
    /// For each part: what was begun, in its figure, and in batches.
    begun: [(u64, u64); PARTS.len()],
    base: u64,
    file: PathBuf,
    docs: Option<PathBuf>,
    /// Batches that this run may still begin.
    left: u64,
    failed: Option<String>,
}

/// A batch that is to be run.
struct Order {
    name: String,
    arguments: String,
    seed: u64,
    figure: &'static str,
}

pub async fn run(options: &Options) -> Result<bool, String> {
    need(true, &TOOLS)?;
    let file = options.path("file").unwrap_or_else(|| default_file(PROFILE));
    let known = read(&file)?;
    println!("torture --long: {} batches are in {}", known.len(), file.display());
    // Those of a file go on from the seed that its first batch had.
    let base = known.first().map_or(options.seed, |first| first.base);
    let totals = PARTS.each_ref().map(|part| options.count_or(part.called, part.total));
    let begun = PARTS.each_ref().map(|part| part.done(&known));
    let (stop, _listening) = parts::told_to_end();
    let left = options.count_or("batches", u64::MAX);
    let ledger = Ledger { known, begun, base, file, docs: options.path("docs"), left, failed: None };
    let ledger = Arc::new(Mutex::new(ledger));
    let mut lanes = JoinSet::new();
    for _ in 0..options.count_or("lanes", LANES) {
        let (ledger, stop) = (ledger.clone(), stop.clone());
        lanes.spawn(async move {
            while !stop.is_cancelled() {
                let Some(order) = ledger.lock().next(&totals) else { return };
                let said = parts::run(&order.arguments, order.seed, &stop).await;
                if stop.is_cancelled() {
                    return;
                }
                let mut ledger = ledger.lock();
                if let Err(error) = said.and_then(|said| ledger.enter(&order, said)) {
                    ledger.failed = Some(format!("{} --seed {}: {error}", order.arguments, order.seed));
                    return stop.cancel();
                }
            }
        });
    }
    lanes.join_all().await;
    let ledger = ledger.lock();
    if let Some(failed) = &ledger.failed {
        return Err(failed.clone());
    }
    if stop.is_cancelled() {
        return Err(format!("told to end; {} batches are in {}", ledger.known.len(), ledger.file.display()));
    }
    ledger.publish()?;
    let violated: Vec<&Batch> = ledger.known.iter().filter(|batch| batch.count("violations") > 0).collect();
    for batch in &violated {
        println!("violated {} times: {} --seed {}", batch.count("violations"), batch.arguments, batch.seed);
    }
    Ok(violated.is_empty())
}

// === impl Part ===

impl Part {
    fn name(&self) -> String {
        format!("{} {} {}", self.subject, self.option, self.further).trim_end().to_owned()
    }

    /// How much of it these batches have, in its figure, and how many of them are its own.
    fn done(&self, known: &[Batch]) -> (u64, u64) {
        let name = self.name();
        let own = known.iter().filter(|batch| batch.subject == name);
        own.fold((0, 0), |(sum, count), batch| (sum + batch.count(self.figure), count + 1))
    }
}

// === impl Ledger ===

impl Ledger {
    /// What a lane runs next; none if all was begun.
    fn next(&mut self, totals: &[u64; PARTS.len()]) -> Option<Order> {
        let number = (0..PARTS.len()).find(|number| self.begun[*number].0 < totals[*number])?;
        self.left = self.left.checked_sub(1)?;
        let (part, (done, batches)) = (&PARTS[number], &mut self.begun[number]);
        let count = part.batch.min(totals[number] - *done);
        let arguments = format!("{} --{} {count} {}", part.subject, part.option, part.further).trim_end().to_owned();
        let seed = self.base + number as u64 * SEEDS + *batches;
        println!("{arguments} --seed {seed}: {done} of {} were begun before", totals[number]);
        *done += count;
        *batches += 1;
        Some(Order { name: part.name(), arguments, seed, figure: part.figure })
    }

    /// Writes down what a batch found.
    fn enter(&mut self, order: &Order, said: Said) -> Result<(), String> {
        let violated = said.output.lines().filter(|line| line.starts_with("VIOLATED"));
        violated.for_each(|line| println!("{line}"));
        let Some(serde_json::Value::Object(figures)) = said.figures else {
            return Err(format!("no figures came ({}): {}", said.status, said.output));
        };
        let batch = Batch {
            subject: order.name.clone(),
            arguments: order.arguments.clone(),
            seed: order.seed,
            base: self.base,
            date: today(),
            profile: PROFILE.to_owned(),
            figure: order.figure.to_owned(),
            figures,
        };
        let [seconds, violations] = ["seconds", "violations"].map(|figure| batch.count(figure));
        println!("{} --seed {}: {seconds} s, {violations} violations", order.arguments, order.seed);
        append(&self.file, &batch)?;
        self.known.push(batch);
        self.publish()
    }

    fn publish(&self) -> Result<(), String> {
        self.docs.as_ref().map_or(Ok(()), |docs| table::write(docs, &self.known))
    }
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
