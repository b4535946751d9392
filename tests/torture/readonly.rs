//! A file system that becomes read-only under the daemon, as ext4 does after an error: pulls go through, nothing that is
//! there is lost, and after it is mounted anew all is well.
//!
//! Back to read-write without mounting anew the kernel does not go, and a plain `remount,ro` it refuses while the daemon has
//! files open for writing: recovery without a restart is what `errors --error EROFS` shows.

use std::time::Duration;

use fastrand::Rng;

use crate::checks;
use crate::enospc::SIZES;
use crate::options::{Options, need};
use crate::report::Report;
use crate::site::{Durability, Site};
use crate::volume::{Volume, enter_namespace};
use crate::work::Work;

const VOLUME: u64 = 96 << 20;

pub async fn run(options: &Options) -> Result<bool, String> {
    need(true, &[("mkfs.ext4", "e2fsprogs"), ("mount", "mount"), ("unshare", "util-linux")])?;
    enter_namespace()?;
    let mut report = Report::new("readonly", options.seed, &options.text);
    let mut rng = Rng::with_seed(options.seed);
    let cases = options.count("cases");
    for case in 0..cases {
        read_only(&mut report, &mut rng.fork(), &format!("case {case}")).await?;
        report.count("cases", 1);
        report.progress(case + 1, cases);
    }
    Ok(report.end())
}

async fn read_only(report: &mut Report, rng: &mut Rng, case: &str) -> Result<(), String> {
    let directory = tempfile::tempdir().map_err(|e| e.to_string())?;
    let volume = Volume::ext4(directory.path(), VOLUME)?;
    let site = Site::new(rng, 8, &SIZES, Some(&volume.path().join("root"))).await;
    site.configure(Durability::Strict, "40MiB");
    let (mut daemon, _) = site.start().await?;
    let load = site.world.at(daemon.client);
    let running = load.run(rng, 4);
    tokio::time::sleep(Duration::from_millis(rng.u64(100..500))).await;
    let synced = checks::synced(&daemon, report, case).await;
    site.world.set_faulty(true);
    volume.abort()?;
    running.end().await;
    let running = load.run_faulty(rng, 4);
    tokio::time::sleep(Duration::from_millis(rng.u64(100..400))).await;
    running.end().await;
    for _ in 0..2 {
        if !Work::Fill.ask(&load, rng).await {
            report.violation(case, "a read-only file system failed a pull");
        }
    }
    if daemon.ended() {
        report.violation(case, "the daemon ended");
    }
    report.violations(case, site.world.model.take_wrong());
    daemon.kill();
    volume.power_on()?;
    let Some(next) = checks::restart(&site, report, case, Durability::Strict, checks::kept(synced), rng).await else {
        return Ok(());
    };
    report.count("answers", site.world.model.answers());
    next.stop().await;
    Ok(())
}
