//! Errors of the operating system, injected by strace while the daemon fills, takes pushes and evicts: the answers are
//! right or errors, the daemon stays up, and when the errors are over all is well without a restart.

use std::time::Duration;

use tokio::time::Instant;

use fastrand::Rng;

use crate::checks;
use crate::common::Daemon;
use crate::options::{Options, need};
use crate::power::SIZES;
use crate::report::Report;
use crate::site::{Durability, Site};
use crate::strace::{self, Tracer};
use crate::work::Work;

/// What goes wrong, how strace is told, at which calls, and whether clients must not notice.
const ERRORS: [(&str, &str, &[&str], bool); 5] = [
    ("ENOSPC", "error=ENOSPC", &["pwrite64", "fdatasync", "fsync", "renameat", "mkdirat", "fallocate", "openat"], true),
    (
        "EIO",
        "error=EIO",
        &[
            "pwrite64",
            "pread64",
            "fdatasync",
            "fsync",
            "renameat",
            "openat2",
            "unlinkat",
            "fallocate",
            "mkdirat",
            "statx",
        ],
        false,
    ),
    // Not more than 0: then strace would claim what nobody has written.
    ("short", "retval=0", &["pwrite64", "pread64"], false),
    ("EMFILE", "error=EMFILE", &["openat", "openat2", "accept4"], false),
    ("EACCES", "error=EACCES", &["openat", "openat2", "renameat", "mkdirat", "unlinkat"], false),
];
/// Points on the same store.
const BATCH: u64 = 30;
/// Longer than all answers of one piece of work may take, errors included.
const ANSWER: Duration = Duration::from_mins(1);
/// Where this fails for good, nobody is heard.
const UNHEARD: &str = "accept4";

pub async fn run(options: &Options) -> Result<bool, String> {
    need(false, &[("strace", "strace")])?;
    let mut report = Report::new("errors", options.seed, &options.text);
    let mut rng = Rng::with_seed(options.seed);
    let points = options.count("points");
    let mut report_at = 0;
    for (name, action, calls, unnoticed) in ERRORS {
        let mut done = 0;
        while done < points {
            let count = BATCH.min(points - done);
            inject(&mut report, &mut rng.fork(), (name, action, calls, unnoticed), count).await?;
            done += count;
        }
        report.progress(report_at + points, points * ERRORS.len() as u64);
        report_at += points;
    }
    Ok(report.end())
}

async fn inject(
    report: &mut Report,
    rng: &mut Rng,
    (name, action, calls, unnoticed): (&'static str, &str, &[&str], bool),
    count: u64,
) -> Result<(), String> {
    let site = Site::new(rng, 8, &SIZES, None).await;
    site.configure(Durability::Strict, "5MiB");
    let logs = tempfile::tempdir().map_err(|e| e.to_string())?;
    let (mut daemon, _) = site.start().await?;
    // How many calls of each there are in all the work.
    let log = logs.path().join("calls");
    let tracer =
        Tracer::attach(daemon.pid(), &[format!("-o{}", log.display()), format!("-etrace={}", calls.join(","))]).await?;
    for work in Work::ASKED {
        work.ask(&site.world.at(daemon.client), rng).await;
    }
    tracer.detach().await;
    let counts = strace::counts(&log);
    let mut hits = 0;
    while hits < count {
        let call = calls[rng.usize(..calls.len())];
        // The first ones are reached whatever thread does the work.
        let first = 1 + (rng.f64().powi(3) * counts.get(call).copied().unwrap_or(1) as f64) as u64;
        // Once, a few times, and from there on.
        let when = match rng.u8(..4) {
            0 | 1 => format!("{first}"),
            2 => format!("{first}..{}", first + rng.u64(1..6)),
            _ => format!("{first}+"),
        };
        let work = Work::ASKED[rng.usize(..Work::ASKED.len())];
        let case = format!("{work:?}, {name} at {call} number {when} of each thread");
        site.world.set_faulty(true);
        let point = vec![
            format!("-o{}", log.display()),
            format!("-etrace={call}"),
            format!("-einject={call}:{action}:when={when}"),
        ];
        let tracer = Tracer::attach(daemon.pid(), &point).await?;
        let load = site.world.at(daemon.client);
        let whole = tokio::time::timeout(ANSWER, work.ask(&load, rng)).await;
        tracer.detach().await;
        if whole.is_err() && call != UNHEARD {
            report.violation(&case, "neither an answer nor an error came");
        }
        let whole = whole.unwrap_or(false);
        let injected = strace::injected(&log);
        report.count("calls_that_failed", injected);
        if injected == 0 {
            report.count("points_not_reached", 1);
        } else {
            hits += 1;
            report.count("points", 1);
            report.count(if whole { "done_all_the_same" } else { "answered_with_errors" }, 1);
        }
        if unnoticed && work != Work::Push && !whole {
            report.violation(&case, "a full disk failed a pull");
        }
        if daemon.ended() {
            report.violation(&case, "the daemon ended");
            daemon = site.start().await?.0;
            continue;
        }
        go_on(&site, &daemon, report, &case, rng).await;
    }
    report.count("answers", site.world.model.answers());
    daemon.stop().await;
    Ok(())
}

/// The errors are over.
async fn go_on(site: &Site, daemon: &Daemon, report: &mut Report, case: &str, rng: &mut Rng) {
    let world = &site.world;
    world.model.settle(&world.upstream);
    let load = world.at(daemon.client);
    // A breaker that opened for upstream is none of the disk's business, but takes its time.
    let began = Instant::now();
    while !load.client.get("/v2/moved/manifests/m0").await.complete() {
        if began.elapsed() > Duration::from_secs(20) {
            report.violation(case, "the errors are over, and a pull fails all the same");
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    checks::healthy(site, &load, 6, rng).await;
    checks::quiet(site, daemon, Durability::Strict, report, case).await;
    report.violations(case, world.model.take_wrong());
    let lost = world.model.missing_upstream(&world.upstream);
    report.violations(case, lost.into_iter().map(|push| format!("an acknowledged push is not upstream: {push}")));
    world.upstream.forget();
}
