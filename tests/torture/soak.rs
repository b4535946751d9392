//! A soak: twenty clients, a store of a tenth of the content, and an upstream that fails one request in twenty. In the
//! first quarter (or as many minutes as --killing says) SIGKILL comes every 20 to 60 seconds; then one daemon lives on for
//! the rest of the time, and its memory is watched.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use fastrand::Rng;

use crate::checks;
use crate::common::Daemon;
use crate::common::acts;
use crate::common::upstream::{Act, Cut};
use crate::options::Options;
use crate::power::{self, SIZES};
use crate::report::Report;
use crate::site::{Durability, Site, World};
use crate::slow;

/// The part of the last life before memory is looked at: buffers and pools fill up.
const WARM_UP: f64 = 0.3;
/// The shortest last life whose memory is judged, and the most, in KiB, that it may grow by in ten minutes.
const JUDGED: Duration = Duration::from_mins(30);
const MOST_GROWTH: f64 = 1024.0;
const SAMPLE: Duration = Duration::from_secs(1);
/// At most the reciprocal of this of all requests may fail where upstream fails one in twenty: ocistern goes on with what is
/// broken off, and asks again where it gets no answer.
const MOST_FAILED: u64 = 20;

pub async fn run(options: &Options) -> Result<bool, String> {
    let mut report = Report::new("soak", options.seed, &options.text);
    let mut rng = Rng::with_seed(options.seed);
    let minutes = options.count("minutes");
    let all_of_it = Duration::from_mins(minutes);
    let kills_for = options.given("killing").map_or(all_of_it / 4, Duration::from_mins).min(all_of_it);
    let life = all_of_it.saturating_sub(kills_for);
    let site = Site::new(&mut rng, 60, &SIZES, None).await;
    let all: usize = site.world.library.all().flat_map(|(_, image)| &image.layers).map(bytes::Bytes::len).sum();
    site.configure(Durability::Strict, &format!("{}KiB", all / 10 / 1024));
    let (mut daemon, _) = site.start().await?;
    report.count("minutes", minutes);
    let (mut round, killing) = (0, Instant::now());
    loop {
        let last = killing.elapsed() >= kills_for;
        let case = format!("round {round}");
        round += 1;
        faults(&site.world, &mut rng);
        let load = site.world.at(daemon.client);
        let running = load.run(&mut rng, 16).and_downloads(&load, &mut rng, power::DOWNLOADS);
        let lives = if last { life } else { Duration::from_secs(rng.u64(20..=60)).min(all_of_it / 2) };
        let began = Instant::now();
        let mut samples = Vec::new();
        while began.elapsed() < lives {
            tokio::time::sleep(SAMPLE).await;
            site.world.upstream.forget();
            let memory = Memory::of(&daemon);
            if last && samples.len() % 60 == 0 {
                println!("{case}, minute {}: {memory}", samples.len() / 60);
            }
            samples.push((began.elapsed().as_secs_f64(), memory.resident as f64));
        }
        report.most("resident_kib", samples.iter().map(|(_, kib)| *kib as u64).max().unwrap_or(0));
        if last {
            samples.retain(|(at, _)| *at > WARM_UP * life.as_secs_f64());
            if let Some(slope) = slope(&samples) {
                let grown = slope * 600.0;
                println!("resident memory after warm-up: {grown:+.0} KiB in 10 minutes");
                // A debug build's memory is not what anybody runs, and what a few minutes show is noise.
                if life >= JUDGED && !cfg!(debug_assertions) {
                    report.most("resident_kib_more_in_10_minutes", grown.max(0.0) as u64);
                    if grown > MOST_GROWTH {
                        report.violation(&case, &format!("resident memory grows by {grown:.0} KiB in 10 minutes"));
                    }
                }
            }
        }
        checks::fits(&daemon, &mut report, &case).await;
        report.count("maps_taken_up", slow::taken_up(&daemon.log()));
        if last {
            // It is looked at as it is after all that, before it is ended.
            running.end().await;
            failed(&site, &mut report, &case);
            undo_faults(&site.world);
            checks::go_on(&site, &daemon, Durability::Strict, &mut report, &case, &mut rng).await;
            site.world.set_faulty(true);
            daemon.kill();
        } else {
            site.world.set_faulty(true);
            daemon.kill();
            running.end().await;
            failed(&site, &mut report, &case);
            undo_faults(&site.world);
        }
        let kept = checks::before_kill();
        tokio::time::sleep(Duration::from_millis(50)).await;
        report.count("kills", 1);
        let Some(next) = checks::restart(&site, &mut report, &case, Durability::Strict, kept, &mut rng).await else {
            return Ok(report.end());
        };
        daemon = next;
        if last {
            break;
        }
    }
    report.count("answers", site.world.model.answers());
    daemon.stop().await;
    let (failed, answers) = (report.figure("failed"), report.figure("answers"));
    if failed * MOST_FAILED > answers {
        report.violation(
            "all of it",
            &format!("{failed} of {answers} requests failed, one upstream answer in twenty did"),
        );
    }
    report.must_have("maps_taken_up", minutes >= 10);
    Ok(report.end())
}

/// What was wrong in the answers so far, but for those that failed while upstream did: these are counted.
fn failed(site: &Site, report: &mut Report, case: &str) {
    let (failed, wrong): (Vec<_>, Vec<_>) =
        site.world.model.take_wrong().into_iter().partition(|what| what.contains("not served although"));
    report.count("failed", failed.len() as u64);
    report.violations(case, wrong);
}

/// One answer in twenty is cut, an error, or nothing at all.
fn faults(world: &Arc<World>, rng: &mut Rng) {
    let lying = Arc::clone(world);
    let seed = parking_lot::Mutex::new(rng.fork());
    let all: Vec<Act> = vec![
        acts::cut_at(3000, Cut::Reset),
        acts::cut_at(100_000, Cut::Fin),
        acts::fail(503, "UNAVAILABLE"),
        acts::no_head(Cut::Reset),
        acts::too_many(Some("1")),
        Arc::new(move |request, honest| {
            lying.has_lied(request.path.rsplit('/').next().unwrap_or_default());
            acts::corrupt()(request, honest)
        }),
    ];
    let act: Act = Arc::new(move |request, honest| {
        let mut rng = seed.lock();
        if request.method != "GET" || rng.u8(..20) != 0 {
            return honest;
        }
        all[rng.usize(..all.len())](request, honest)
    });
    world.upstream.script("*", "*", .., act);
}

/// Upstream is as it was.
fn undo_faults(world: &World) {
    world.upstream.unscript();
    world.slow.script(&world.upstream);
}

/// What a process has, of /proc/<pid>/status; in KiB.
struct Memory {
    resident: u64,
    /// What of it is not of files: heap and stacks.
    anonymous: u64,
    threads: u64,
}

impl Memory {
    fn of(daemon: &Daemon) -> Self {
        let path = format!("/proc/{}/status", daemon.pid().as_raw_nonzero());
        let status = std::fs::read_to_string(path).unwrap_or_default();
        let number = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
        };
        Self { resident: number("VmRSS:"), anonymous: number("RssAnon:"), threads: number("Threads:") }
    }
}

impl std::fmt::Display for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { resident, anonymous, threads } = self;
        write!(f, "{resident} KiB resident, {anonymous} KiB of them anonymous, {threads} threads")
    }
}

/// KiB a second, by least squares.
fn slope(samples: &[(f64, f64)]) -> Option<f64> {
    let n = samples.len() as f64;
    if samples.len() < 5 {
        return None;
    }
    let (mean_t, mean_m) =
        (samples.iter().map(|(t, _)| t).sum::<f64>() / n, samples.iter().map(|(_, m)| m).sum::<f64>() / n);
    let over: f64 = samples.iter().map(|(t, m)| (t - mean_t) * (m - mean_m)).sum();
    let under: f64 = samples.iter().map(|(t, _)| (t - mean_t).powi(2)).sum();
    Some(over / under)
}
