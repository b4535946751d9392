//! The short form: every subject, as much of it as a quarter of an hour allows, several at a time since all of them wait.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::options::{Options, need};
use crate::parts;

/// What is run, the longest first, so that none runs alone at the end.
const PARTS: [&str; 21] = [
    "kill --points 60",
    "kill --points 60",
    "power --cuts 60",
    "rot --damages 500",
    "kill --kills 30",
    "errors --points 60 --error EIO",
    "errors --points 60 --error ENOSPC",
    "errors --points 60 --error EROFS",
    "errors --points 60 --error EACCES",
    "errors --points 60 --error EDQUOT",
    "errors --points 60 --error EMFILE",
    "errors --points 60 --error ENFILE",
    "errors --points 60 --error short",
    "index --damages 512",
    "clock --cases 20",
    "enospc --sizes 40",
    "removed --cases 30",
    "limits --cases 20",
    "blocks --cases 12",
    "readonly --cases 8",
    "soak --minutes 1",
];
/// How many run at a time.
const LANES: u64 = 5;

/// Programs of which some subject makes use, with their packages.
pub const TOOLS: [(&str, &str); 7] = [
    ("mkfs.ext4", "e2fsprogs"),
    ("mount", "mount"),
    ("strace", "strace"),
    ("unshare", "util-linux"),
    ("faketime", "faketime"),
    ("nbdkit", "nbdkit"),
    ("nbdfuse", "libnbd-bin"),
];

pub async fn run(options: &Options) -> Result<bool, String> {
    // All that is missing at once, and nothing is left out in silence.
    need(true, &TOOLS)?;
    println!("torture --short: seed {}", options.seed);
    let began = Instant::now();
    let (stop, _listening) = parts::told_to_end();
    let waiting: VecDeque<(u64, &str)> = (0..).zip(PARTS).collect();
    let waiting = Arc::new(Mutex::new(waiting));
    let ended = Arc::new(Mutex::new(Vec::new()));
    let mut lanes = JoinSet::new();
    for _ in 0..options.count_or("lanes", LANES) {
        let (waiting, ended, stop, seed) = (waiting.clone(), ended.clone(), stop.clone(), options.seed);
        lanes.spawn(async move {
            while !stop.is_cancelled() {
                let Some((n, part)) = waiting.lock().pop_front() else { return };
                let began = Instant::now();
                let outcome = parts::run(part, seed + n, &stop).await;
                let (passed, output) = match outcome {
                    Ok(said) => (said.status.success(), said.output),
                    Err(error) => (false, error),
                };
                println!("\n{}", output.trim_end());
                ended.lock().push((part, passed, began.elapsed()));
            }
        });
    }
    lanes.join_all().await;
    println!();
    let ended = ended.lock();
    for (part, passed, took) in ended.iter() {
        println!("{:>5} s  {part}{}", took.as_secs(), if *passed { "" } else { ": FAILED" });
    }
    println!("{:>5} s  altogether, seed {}", began.elapsed().as_secs(), options.seed);
    if stop.is_cancelled() {
        return Err("told to end".into());
    }
    Ok(ended.len() == PARTS.len() && ended.iter().all(|(_, passed, _)| *passed))
}
