//! Errors of the operating system, injected by strace while the daemon fills, takes pushes and evicts: the answers are
//! right or errors, the daemon stays up, and when the errors are over all is well without a restart.

use std::time::Duration;

use fastrand::Rng;

use crate::checks;
use crate::enospc::SIZES;
use crate::options::{Options, need};
use crate::report::Report;
use crate::site::{Durability, Site};
use crate::strace::{self, Tracer};
use crate::work::Work;

/// What goes wrong.
struct Fault {
    name: &'static str,
    /// What strace is told.
    action: &'static str,
    calls: &'static [&'static str],
    /// Whether no pull may fail for it.
    unnoticed: bool,
}

/// What makes, changes or removes something on the disk.
const CHANGES: &[&str] = &["pwrite64", "fdatasync", "fsync", "renameat", "mkdirat", "fallocate", "openat", "unlinkat"];
const FAULTS: [Fault; 8] = [
    Fault {
        name: "ENOSPC",
        action: "error=ENOSPC",
        calls: &["pwrite64", "fdatasync", "fsync", "renameat", "mkdirat", "fallocate", "openat"],
        unnoticed: true,
    },
    Fault {
        name: "EDQUOT",
        action: "error=EDQUOT",
        calls: &["pwrite64", "fdatasync", "fsync", "renameat", "mkdirat", "fallocate", "openat"],
        unnoticed: true,
    },
    // The same call is made for reading, too, where the kernel never says this.
    Fault { name: "EROFS", action: "error=EROFS", calls: CHANGES, unnoticed: false },
    Fault {
        name: "EIO",
        action: "error=EIO",
        calls: &[
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
        unnoticed: false,
    },
    // Not more than 0: then strace would claim what nobody has written.
    Fault { name: "short", action: "retval=0", calls: &["pwrite64", "pread64"], unnoticed: false },
    Fault { name: "EMFILE", action: "error=EMFILE", calls: &["openat", "openat2", "accept4"], unnoticed: false },
    Fault { name: "ENFILE", action: "error=ENFILE", calls: &["openat", "openat2", "accept4"], unnoticed: false },
    Fault {
        name: "EACCES",
        action: "error=EACCES",
        calls: &["openat", "openat2", "renameat", "mkdirat", "unlinkat"],
        unnoticed: false,
    },
];
/// Points on the same store.
const BATCH: u64 = 30;
/// Longer than all answers of one piece of work may take, errors included.
const ANSWER: Duration = Duration::from_mins(1);
/// While this fails, nobody is heard.
const UNHEARD: &str = "accept4";
/// After so long the errors end where nobody is heard.
const UNHEARD_FOR: Duration = Duration::from_secs(3);

pub async fn run(options: &Options) -> Result<bool, String> {
    need(false, &[("strace", "strace")])?;
    let mut report = Report::new("errors", options.seed, &options.text);
    let points = options.count("points");
    let wanted = options.word("error");
    let faults: Vec<&Fault> = FAULTS.iter().filter(|fault| wanted.is_none_or(|name| name == fault.name)).collect();
    if faults.is_empty() {
        let names: Vec<&str> = FAULTS.iter().map(|fault| fault.name).collect();
        return Err(format!("--error is one of {}", names.join(", ")));
    }
    for (n, fault) in faults.iter().enumerate() {
        // By the name, so that one of them alone repeats what it did among the others.
        let name = fault.name.bytes().fold(0_u64, |sum, byte| sum * 31 + u64::from(byte));
        let mut rng = Rng::with_seed(options.seed.wrapping_add(name));
        let mut done = 0;
        while done < points {
            let count = BATCH.min(points - done);
            inject(&mut report, &mut rng.fork(), fault, count).await?;
            done += count;
        }
        report.progress(n as u64 + 1, faults.len() as u64);
    }
    Ok(report.end())
}

async fn inject(report: &mut Report, rng: &mut Rng, fault: &Fault, count: u64) -> Result<(), String> {
    let Fault { name, action, calls, unnoticed } = *fault;
    let site = Site::new(rng, 8, &SIZES, None).await;
    site.configure(Durability::Strict, "5MiB");
    let logs = tempfile::tempdir().map_err(|e| e.to_string())?;
    let (mut daemon, _) = site.start().await?;
    // How many calls of each there are in each work.
    let log = logs.path().join("calls");
    let mut reached = Vec::new();
    for work in Work::ASKED {
        let trace = [format!("-o{}", log.display()), format!("-etrace={}", calls.join(","))];
        let tracer = Tracer::attach(daemon.pid(), &trace).await?;
        work.ask(&site.world.at(daemon.client), rng).await;
        tracer.detach().await;
        reached.extend(strace::counts(&log).into_iter().map(|(call, most)| (work, call, most)));
    }
    let mut hits = 0;
    while hits < count {
        // Every call as often as any other, however many works make it.
        let call = calls[rng.usize(..calls.len())];
        let of_call: Vec<_> = reached.iter().filter(|(_, made, _)| made == call).collect();
        let Some((work, _, most)) = of_call.get(rng.usize(..of_call.len().max(1))) else { continue };
        // The first ones are reached whatever thread does the work.
        let first = 1 + (rng.f64().powi(3) * *most as f64) as u64;
        // Once, a few times, and from there on.
        let when = match rng.u8(..4) {
            0 | 1 => format!("{first}"),
            2 => format!("{first}..{}", first + rng.u64(1..6)),
            _ => format!("{first}+"),
        };
        let case = format!("{work:?}, {name} at {call} number {when} of each thread");
        site.world.set_faulty(true);
        let point = vec![
            format!("-o{}", log.display()),
            format!("-etrace={call}"),
            format!("-einject={call}:{action}:when={when}"),
        ];
        let tracer = Tracer::attach(daemon.pid(), &point).await?;
        let load = site.world.at(daemon.client);
        let patience = if call == UNHEARD { UNHEARD_FOR } else { ANSWER };
        let whole = tokio::time::timeout(patience, work.ask(&load, rng)).await;
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
        if unnoticed && *work != Work::Push && !whole {
            report.violation(&case, "a full disk failed a pull");
        }
        if daemon.ended() {
            report.violation(&case, "the daemon ended");
            daemon = site.start().await?.0;
            continue;
        }
        checks::go_on(&site, &daemon, Durability::Strict, report, &case, rng).await;
    }
    report.count("answers", site.world.model.answers());
    daemon.stop().await;
    Ok(())
}
