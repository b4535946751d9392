//! Kills: at random under load, and at system calls of a start, a fill, a push, evictions and a stop.

use std::time::Duration;

use tokio::time::Instant;

use fastrand::Rng;
use rustix::process::{Signal, kill_process};
use tempfile::TempDir;

use crate::checks;
use crate::common::Daemon;
use crate::common::invariants::{Partial, partials};
use crate::options::{Options, need};
use crate::report::Report;
use crate::site::{Durability, Site};
use crate::strace::{self, Tracer};
use crate::work::Work;
use crate::{enospc, power, slow};

/// The calls at which it is killed.
const CALLS: &str = "openat,openat2,pwrite64,pread64,write,fdatasync,fsync,renameat,renameat2,unlinkat,mkdirat,\
                     fallocate,ftruncate,statx,fstat,newfstatat,fstatfs,flock,getdents64,sendto,writev,close,lseek,\
                     sync_file_range,fchmod,fchmodat,linkat,mmap,futex,epoll_wait,accept4,connect";
/// Kills on the same store.
const BATCH: u64 = 25;

pub async fn run(options: &Options) -> Result<bool, String> {
    let mut report = Report::new("kill", options.seed, &options.text);
    let mut rng = Rng::with_seed(options.seed);
    let (kills, points) = (options.count("kills"), options.count("points"));
    if points > 0 {
        need(false, &[("strace", "strace")])?;
    }
    let mut done = 0;
    while done < kills {
        let count = BATCH.min(kills - done);
        at_random(&mut report, &mut rng.fork(), count).await?;
        done += count;
        report.progress(done, kills + points);
    }
    let mut done = 0;
    while done < points {
        let count = BATCH.min(points - done);
        at_calls(&mut report, &mut rng.fork(), count).await?;
        done += count;
        report.progress(kills + done, kills + points);
    }
    report.must_have("maps_left", kills >= BATCH);
    report.must_have("maps_taken_up", kills >= BATCH);
    Ok(report.end())
}

/// With room for everything, so that nothing may go.
pub async fn at_random(report: &mut Report, rng: &mut Rng, count: u64) -> Result<(), String> {
    let site = Site::new(rng, 8, &power::SIZES, None).await;
    site.configure(Durability::Strict, "1GiB");
    let (mut daemon, _) = site.start().await?;
    for kill in 0..count {
        let case = format!("kill {kill} of a batch");
        let load = site.world.at(daemon.client);
        let running = load.run(rng, 5).and_downloads(&load, rng, power::DOWNLOADS);
        // Now and then long enough for downloads to be put down.
        let delay = if rng.u8(..4) == 0 { rng.u64(1200..2500) } else { rng.u64(20..600) };
        tokio::time::sleep(Duration::from_millis(delay)).await;
        checks::fits(&daemon, report, &case).await;
        report.count("maps_taken_up", slow::taken_up(&daemon.log()));
        site.world.set_faulty(true);
        let acknowledged = site.world.model.acknowledged();
        // What stands still has put down what it will.
        daemon.freeze();
        let maps = partials(&site.root);
        daemon.kill();
        let kept = checks::before_kill();
        running.end().await;
        tokio::time::sleep(Duration::from_millis(30)).await;
        report.count("kills", 1);
        report.count("maps_at_kills", maps.len() as u64);
        let there = partials(&site.root);
        let is_there = |map: &Partial| there.iter().any(|now| now.file == map.file && now.has(&map.present));
        let lost = maps.iter().filter(|map| !is_there(map)).map(|map| format!("put down and lost by a kill: {map:?}"));
        report.violations(&case, lost);
        for (repo, digest, _) in acknowledged {
            let layer = site.world.upstream.registry(|registry| registry.repos[&repo].blobs.contains_key(&digest));
            let path = site.root.join("blobs").join(digest.algorithm().as_str()).join(digest.hex());
            if layer && !path.is_file() {
                report.violation(&case, &format!("pushed, acknowledged and not in the store: {digest}"));
            }
        }
        let Some(next) = checks::restart(&site, report, &case, Durability::Strict, kept, rng).await else {
            return Ok(());
        };
        daemon = next;
    }
    report.count("answers", site.world.model.answers());
    daemon.stop().await;
    Ok(())
}

/// With so little room that evictions run.
async fn at_calls(report: &mut Report, rng: &mut Rng, count: u64) -> Result<(), String> {
    let site = Site::new(rng, 8, &enospc::SIZES, None).await;
    site.configure(Durability::Strict, "5MiB");
    let logs = tempfile::tempdir().map_err(|e| e.to_string())?;
    let mut ranges = Vec::new();
    for work in Work::ALL {
        let log = dry_run(&site, work, &logs, rng).await?;
        ranges.push((work, strace::counts(&log)));
    }
    let (mut daemon, _) = site.start().await?;
    let mut hits = 0;
    while hits < count {
        let (work, counts) = &ranges[rng.usize(..ranges.len())];
        let calls: Vec<_> = counts.iter().collect();
        let Some((call, most)) = calls.get(rng.usize(..calls.len().max(1))) else {
            return Err(format!("strace saw nothing of {work:?}"));
        };
        // The first ones are reached whatever thread does the work.
        let number = 1 + (rng.f64().powi(3) * **most as f64) as u64;
        let case = format!("{work:?}, killed at {call} number {number} of a thread");
        let point = vec!["-o/dev/null".to_owned(), format!("-einject={call}:signal=SIGKILL:when={number}")];
        site.world.set_faulty(true);
        let hit = if *work == Work::Start {
            daemon.kill();
            match site.start_by(strace::command(&site.config, &point)).await {
                Ok((traced, _)) => {
                    strace::child_of(traced.pid()).map(|pid| kill_process(pid, Signal::KILL));
                    false
                }
                Err(_) => true,
            }
        } else {
            let tracer = Tracer::attach(daemon.pid(), &point).await?;
            if *work == Work::Stop {
                let _ = kill_process(daemon.pid(), Signal::TERM);
                let began = Instant::now();
                while !daemon.ended() && began.elapsed() < Duration::from_secs(20) {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            } else {
                work.ask(&site.world.at(daemon.client), rng).await;
            }
            let hit = daemon.ended();
            daemon.kill();
            tracer.detach().await;
            hit
        };
        tokio::time::sleep(Duration::from_millis(30)).await;
        hits += u64::from(hit);
        report.count(if hit { "points" } else { "points_not_reached" }, 1);
        let kept = checks::before_kill();
        let Some(next) = checks::restart(&site, report, &case, Durability::Strict, kept, rng).await else {
            return Ok(());
        };
        daemon = next;
    }
    report.count("answers", site.world.model.answers());
    daemon.stop().await;
    Ok(())
}

/// Lets it do that under strace, undisturbed: the log of its calls.
async fn dry_run(site: &Site, work: Work, logs: &TempDir, rng: &mut Rng) -> Result<std::path::PathBuf, String> {
    let log = logs.path().join(format!("{work:?}"));
    let trace = vec![format!("-o{}", log.display()), format!("-etrace={CALLS}")];
    if work == Work::Start {
        let (traced, _) = site.start_by(strace::command(&site.config, &trace)).await?;
        let pid = strace::child_of(traced.pid()).ok_or("strace has no child")?;
        let _ = kill_process(pid, Signal::KILL);
        return Ok(log);
    }
    let (daemon, _): (Daemon, _) = site.start().await?;
    let tracer = Tracer::attach(daemon.pid(), &trace).await?;
    let load = site.world.at(daemon.client);
    if work == Work::Stop {
        daemon.stop().await;
    } else {
        work.ask(&load, rng).await;
        daemon.kill();
    }
    tracer.detach().await;
    Ok(log)
}
