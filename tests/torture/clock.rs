//! Clocks that jump, for the real program (faketime; its monotonic clock stays right): starts, pulls and pushes go on,
//! whatever the day, nothing is served that must not be, and nothing goes for its age by a jump that is shorter than
//! `max_age`. A jump that is longer cannot be told from time that has passed: at most a thousand blobs a minute go then.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::checks;
use crate::common::Daemon;
use crate::enospc::SIZES;
use crate::options::{Options, need};
use crate::report::Report;
use crate::site::{Durability, Site};
use fastrand::Rng;

/// What the clock says, as faketime is told.
const CLOCKS: [&str; 7] = ["+0", "+1h", "-1h", "+1d", "-1d", "@1970-01-01 12:00:00", "@2106-02-08 00:00:00"];
/// Longer than the jumps of a day, shorter than the others.
const MAX_AGE: &str = "max_age = \"2d\"";
/// Ages are looked at each minute.
const AGES_SEEN: Duration = Duration::from_secs(64);
/// Cases on the same store.
const BATCH: u64 = 7;

pub async fn run(options: &Options) -> Result<bool, String> {
    need(false, &[("faketime", "faketime")])?;
    let library = library().ok_or("needs libfaketimeMT.so.1 (package libfaketime)")?;
    let mut report = Report::new("clock", options.seed, &options.text);
    let mut rng = Rng::with_seed(options.seed);
    let cases = options.count("cases");
    let mut done = 0;
    while done < cases {
        let count = BATCH.min(cases - done);
        jumps(&mut report, &mut rng.fork(), &library, done, count).await?;
        done += count;
        report.progress(done, cases);
    }
    Ok(report.end())
}

/// The library for programs with threads.
fn library() -> Option<PathBuf> {
    let places = fs::read_dir("/usr/lib").ok()?.flatten().map(|entry| entry.path());
    places
        .chain([PathBuf::from("/usr/lib")])
        .map(|at| at.join("faketime/libfaketimeMT.so.1"))
        .find(|path| path.exists())
}

async fn jumps(report: &mut Report, rng: &mut Rng, library: &Path, from: u64, count: u64) -> Result<(), String> {
    let mut site = Site::new(rng, 8, &SIZES, None).await;
    MAX_AGE.clone_into(&mut site.keys);
    site.configure(Durability::Strict, "60MiB");
    let directory = tempfile::tempdir().map_err(|e| e.to_string())?;
    let clock = directory.path().join("clock");
    for (name, value) in [
        ("LD_PRELOAD", library.to_str().unwrap_or_default()),
        ("FAKETIME_TIMESTAMP_FILE", clock.to_str().unwrap_or_default()),
        ("FAKETIME_NO_CACHE", "1"),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
        ("NO_FAKE_STAT", "1"),
        ("TZ", "UTC"),
    ] {
        site.environment.push((name.to_owned(), value.to_owned()));
    }
    set(&clock, "+0");
    let (mut daemon, _) = site.start().await?;
    // One lives long enough for ages to be looked at.
    let lasting = (from == 0).then_some(0);
    for case in 0..count {
        let to = if lasting == Some(case) { "+1d" } else { CLOCKS[rng.usize(1..CLOCKS.len())] };
        let back = if lasting == Some(case) { "+0" } else { CLOCKS[rng.usize(..5)] };
        let case = format!("case {}: to {to}, then to {back}", from + case);
        let load = site.world.at(daemon.client);
        checks::healthy(&site, &daemon, 6, rng, report, &case).await;
        // An upload's location may expire by the jump itself.
        site.world.set_faulty(true);
        let running = load.run_faulty(rng, 4);
        tokio::time::sleep(Duration::from_millis(rng.u64(20..150))).await;
        set(&clock, to);
        tokio::time::sleep(Duration::from_millis(rng.u64(20..150))).await;
        running.end().await;
        on(&site, &daemon, report, &case, rng).await;
        if lasting.is_some() && case.starts_with("case 0:") {
            tokio::time::sleep(AGES_SEEN).await;
            let evicted = daemon.metric("ocistern_evicted_bytes_total", &[]).await;
            if evicted > 0 {
                report.violation(&case, &format!("{evicted} bytes went for an age that they do not have"));
            }
        }
        if rng.bool() {
            // The next one starts with that clock.
            site.world.set_faulty(true);
            daemon.kill();
            let kept = checks::before_kill();
            let Some(next) = checks::restart(&site, report, &case, Durability::Strict, kept, rng).await else {
                return Ok(());
            };
            daemon = next;
            report.count("starts", 1);
            in_effect(&daemon, to, report, &case);
        }
        site.world.set_faulty(true);
        set(&clock, back);
        site.world.set_faulty(false);
        on(&site, &daemon, report, &case, rng).await;
        if daemon.ended() {
            report.violation(&case, "the daemon ended");
            daemon = site.start().await?.0;
        }
        report.count("cases", 1);
    }
    report.count("answers", site.world.model.answers());
    daemon.stop().await;
    Ok(())
}

/// With that clock every request succeeds: pulls and pushes for a while, and then what is checked after every case.
async fn on(site: &Site, daemon: &Daemon, report: &mut Report, case: &str, rng: &mut Rng) {
    site.world.model.settle(&site.world.upstream);
    site.world.set_faulty(false);
    let running = site.world.at(daemon.client).run(rng, 4);
    tokio::time::sleep(Duration::from_millis(rng.u64(50..200))).await;
    running.end().await;
    checks::go_on(site, daemon, Durability::Strict, report, case, rng).await;
}

/// Whole or not at all: it is read at each look at the clock.
fn set(clock: &Path, to: &str) {
    let aside = clock.with_extension("new");
    fs::write(&aside, format!("{to}\n")).unwrap();
    fs::rename(&aside, clock).unwrap();
}

/// Whether the daemon has that clock: else the case shows nothing.
fn in_effect(daemon: &Daemon, clock: &str, report: &mut Report, case: &str) {
    let said = daemon.log().iter().find_map(|event| event["timestamp"].as_str().map(str::to_owned));
    let today = httpdate::fmt_http_date(crate::common::clock::wall());
    let year = today.split(' ').nth(3).unwrap_or_default().to_owned();
    let expected = clock.strip_prefix('@').map_or(year.as_str(), |date| &date[..4]);
    if !said.as_ref().is_some_and(|said| said.starts_with(expected)) {
        report.violation(case, &format!("the clock is not in effect: {said:?} where {expected} is expected"));
    }
}
