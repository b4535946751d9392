//! Directories of the root that vanish under a running daemon: what was in them is fetched anew, and kept again, without a
//! restart. Without the root itself pulls go through, and a start makes a new one.

use std::fs;
use std::time::Duration;

use fastrand::Rng;

use crate::checks;
use crate::enospc::SIZES;
use crate::options::Options;
use crate::report::Report;
use crate::site::{Durability, Site};
use crate::work::Work;

const PLACES: [&str; 12] = [
    "blobs",
    "blobs/sha256",
    "refs",
    "refs/up",
    "refs/up/lib",
    "refs/up/pushed/_tags",
    "fills",
    "index",
    "state",
    "private",
    "quarantine",
    "",
];

pub async fn run(options: &Options) -> Result<bool, String> {
    let mut report = Report::new("removed", options.seed, &options.text);
    let mut rng = Rng::with_seed(options.seed);
    let cases = options.count("cases");
    for case in 0..cases {
        let place = PLACES[case as usize % PLACES.len()];
        let name = if place.is_empty() { "the root".to_owned() } else { place.to_owned() };
        removed(&mut report, &mut rng.fork(), &format!("case {case}: {name} removed"), place).await?;
        report.count("cases", 1);
        report.progress(case + 1, cases);
    }
    Ok(report.end())
}

async fn removed(report: &mut Report, rng: &mut Rng, case: &str, place: &str) -> Result<(), String> {
    let site = Site::new(rng, 6, &SIZES, None).await;
    site.configure(Durability::Strict, "60MiB");
    let (mut daemon, _) = site.start().await?;
    let load = site.world.at(daemon.client);
    let running = load.run(rng, 4);
    tokio::time::sleep(Duration::from_millis(rng.u64(100..400))).await;
    site.world.set_faulty(true);
    running.end().await;
    let running = load.run_faulty(rng, 4);
    // What is published meanwhile may keep a directory from being empty.
    while fs::remove_dir_all(site.root.join(place)).is_err_and(|e| e.kind() != std::io::ErrorKind::NotFound) {}
    tokio::time::sleep(Duration::from_millis(rng.u64(50..250))).await;
    running.end().await;
    report.violations(case, site.world.model.take_wrong());
    if daemon.ended() {
        report.violation(case, "the daemon ended");
    }
    if place.is_empty() {
        for _ in 0..2 {
            if !Work::Fill.ask(&load, rng).await {
                report.violation(case, "without a root a pull failed");
            }
        }
    } else {
        // What the books still have is looked for, and found missing.
        site.world.model.settle(&site.world.upstream);
        checks::everything(&load, rng).await;
        checks::go_on(&site, &daemon, Durability::Strict, report, case, rng).await;
    }
    if place.is_empty() || rng.u8(..3) == 0 {
        site.world.set_faulty(true);
        daemon.kill();
        let kept = checks::before_kill();
        let Some(next) = checks::restart(&site, report, case, Durability::Strict, kept, rng).await else {
            return Ok(());
        };
        report.count("restarts", 1);
        daemon = next;
    }
    report.count("answers", site.world.model.answers());
    daemon.stop().await;
    Ok(())
}
