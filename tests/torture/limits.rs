//! No descriptor left: the limit of a running daemon is lowered to what it has open, or a few more, under load. It does not
//! spin, and when there are descriptors again all is well without a restart.

use std::time::Duration;

use fastrand::Rng;
use rustix::process::{Pid, Resource, Rlimit, prlimit};
use tokio::net::TcpStream;

use crate::checks;
use crate::enospc::SIZES;
use crate::options::Options;
use crate::report::Report;
use crate::site::{Durability, Site};

/// Cases with the same daemon.
const BATCH: u64 = 10;
/// How long it is watched with connections that it cannot accept.
const WATCHED: Duration = Duration::from_millis(600);

pub async fn run(options: &Options) -> Result<bool, String> {
    let mut report = Report::new("limits", options.seed, &options.text);
    let mut rng = Rng::with_seed(options.seed);
    let cases = options.count("cases");
    let mut done = 0;
    while done < cases {
        let count = BATCH.min(cases - done);
        starved(&mut report, &mut rng.fork(), done, count).await?;
        done += count;
        report.progress(done, cases);
    }
    Ok(report.end())
}

async fn starved(report: &mut Report, rng: &mut Rng, from: u64, count: u64) -> Result<(), String> {
    let site = Site::new(rng, 8, &SIZES, None).await;
    site.configure(Durability::Strict, "6MiB");
    let (mut daemon, _) = site.start().await?;
    for case in from..from + count {
        let load = site.world.at(daemon.client);
        let running = load.run(rng, 4);
        tokio::time::sleep(Duration::from_millis(rng.u64(50..200))).await;
        site.world.set_faulty(true);
        let open = descriptors(daemon.pid());
        let left = if rng.bool() { 0 } else { rng.u64(1..20) };
        let name = format!("case {case}: {left} descriptors left of {open}");
        let before = limit(daemon.pid(), open + left)?;
        running.end_within(Duration::from_secs(3)).await;
        // Whoever waits to be accepted keeps the listener readable.
        let waiting = [TcpStream::connect(load.client.0).await, TcpStream::connect(load.client.0).await];
        let full = limit(daemon.pid(), 3)?;
        let used = cpu(daemon.pid());
        tokio::time::sleep(WATCHED).await;
        let spent = cpu(daemon.pid()).saturating_sub(used);
        drop(waiting);
        prlimit(Some(daemon.pid()), Resource::Nofile, full).map_err(|e| e.to_string())?;
        prlimit(Some(daemon.pid()), Resource::Nofile, before).map_err(|e| e.to_string())?;
        report.most("most_processor_ms_without_descriptors", spent.as_millis() as u64);
        if spent > WATCHED / 2 {
            report.violation(&name, &format!("without descriptors it took {spent:?} of the processor in {WATCHED:?}"));
        }
        report.count("cases", 1);
        if daemon.ended() {
            report.violation(&name, "the daemon ended");
            daemon = site.start().await?.0;
            continue;
        }
        checks::go_on(&site, &daemon, Durability::Strict, report, &name, rng).await;
    }
    report.count("answers", site.world.model.answers());
    daemon.stop().await;
    Ok(())
}

/// Sets how many descriptors a process may have; how many it might have before. The hard limit stays.
fn limit(pid: Pid, descriptors: u64) -> Result<Rlimit, String> {
    let limits =
        std::fs::read_to_string(format!("/proc/{}/limits", pid.as_raw_nonzero())).map_err(|e| e.to_string())?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files")).unwrap_or_default();
    let maximum = line.split_whitespace().nth(1).and_then(|hard| hard.parse().ok());
    let new = Rlimit { current: Some(descriptors), maximum };
    prlimit(Some(pid), Resource::Nofile, new).map_err(|e| format!("prlimit: {e}"))
}

fn descriptors(pid: Pid) -> u64 {
    std::fs::read_dir(format!("/proc/{}/fd", pid.as_raw_nonzero())).map_or(0, |all| all.count() as u64)
}

/// Processor time of a process so far.
fn cpu(pid: Pid) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).unwrap_or_default();
    let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks: u64 = fields.split_whitespace().skip(11).take(2).filter_map(|ticks| ticks.parse::<u64>().ok()).sum();
    Duration::from_millis(ticks * 1000 / rustix::param::clock_ticks_per_second())
}
