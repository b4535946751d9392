//! Full disks: a tmpfs of which so many bytes or inodes are left, while clients pull and push. No request fails for it,
//! and when there is room again content is kept again without a restart.

use std::fs;
use std::path::Path;
use std::time::Duration;

use tokio::time::Instant;

use fastrand::Rng;

use crate::checks;
use crate::common::Daemon;
use crate::common::content::blob;
use crate::options::{Options, need};
use crate::report::Report;
use crate::site::{Durability, Site};
use crate::volume::{Volume, enter_namespace};
use crate::work::Work;

const MIB: u64 = 1 << 20;
const BYTES: u64 = 24 * MIB;
const INODES: u64 = 1200;
/// Sizes of layers, of which the large ones are no larger than needed for several writes.
pub const SIZES: [usize; 6] = [4096, 16_384, 65_536, 300_000, 700_000, 1_500_000];

pub async fn run(options: &Options) -> Result<bool, String> {
    need(true, &[("mount", "mount"), ("unshare", "util-linux")])?;
    enter_namespace()?;
    let mut report = Report::new("enospc", options.seed, &options.text);
    let mut rng = Rng::with_seed(options.seed);
    let sizes = options.count("sizes");
    for size in 0..sizes {
        // Every fourth by inodes. Most of what is left is little: there the errors are.
        let share = (size as f64 / sizes as f64).powi(2);
        let mut rng = rng.fork();
        if size % 4 == 3 {
            let left = (share * 60.0) as u64;
            full(&mut report, &mut rng, &format!("{left} inodes left"), None, Some(left)).await?;
        } else {
            let left = (share * 6.0 * MIB as f64) as u64;
            full(&mut report, &mut rng, &format!("{left} bytes left"), Some(left), None).await?;
        }
        report.count("sizes", 1);
        report.progress(size + 1, sizes);
    }
    Ok(report.end())
}

async fn full(
    report: &mut Report,
    rng: &mut Rng,
    case: &str,
    bytes: Option<u64>,
    inodes: Option<u64>,
) -> Result<(), String> {
    let directory = tempfile::tempdir().map_err(|e| e.to_string())?;
    let volume = Volume::tmpfs(directory.path(), BYTES, INODES)?;
    let site = Site::new(rng, 6, &SIZES, Some(&volume.path().join("root"))).await;
    // Neither capacity nor order of eviction is in the way: it is the disk that is full.
    site.configure(Durability::Strict, if rng.bool() { "20MiB" } else { "3MiB" });
    let (mut daemon, _) = site.start().await?;
    let ballast = volume.path().join("ballast");
    fs::create_dir(&ballast).map_err(|e| e.to_string())?;
    let load = site.world.at(daemon.client);
    let running = load.run(rng, 3);
    tokio::time::sleep(Duration::from_millis(rng.u64(0..150))).await;
    fill_up(&ballast, bytes, inodes);
    tokio::time::sleep(Duration::from_millis(250)).await;
    fill_up(&ballast, bytes, inodes);
    tokio::time::sleep(Duration::from_millis(100)).await;
    running.end().await;
    for work in Work::ASKED {
        if !work.ask(&load, rng).await {
            report.violation(case, &format!("a full disk failed a request of {work:?}"));
        }
    }
    report.violations(case, site.world.model.take_wrong());
    if rng.bool() {
        // A full disk is no reason not to start.
        site.world.set_faulty(true);
        if rng.bool() {
            daemon.kill();
        } else {
            daemon.stop().await;
        }
        let kept = checks::before_kill();
        let Some(next) = checks::restart(&site, report, case, Durability::Strict, kept, rng).await else {
            return Ok(());
        };
        daemon = next;
        report.count("starts_on_a_full_disk", 1);
    } else {
        checks::quiet(&site, &daemon, Durability::Strict, report, case).await;
    }
    fs::remove_dir_all(&ballast).map_err(|e| e.to_string())?;
    recovers(&site, &daemon, report, case, rng).await;
    checks::healthy(&site, &daemon, usize::MAX, rng, report, case).await;
    checks::quiet(&site, &daemon, Durability::Strict, report, case).await;
    report.violations(case, site.world.model.take_wrong());
    let lost = site.world.model.missing_upstream(&site.world.upstream);
    report.violations(case, lost.into_iter().map(|push| format!("an acknowledged push is not upstream: {push}")));
    report.count("answers", site.world.model.answers());
    daemon.stop().await;
    Ok(())
}

/// Takes all of the file system but so much.
fn fill_up(ballast: &Path, bytes: Option<u64>, inodes: Option<u64>) {
    let stat = || rustix::fs::statvfs(ballast).unwrap();
    let number = fs::read_dir(ballast).unwrap().count();
    if let Some(left) = bytes {
        let free = stat().f_bavail * stat().f_frsize;
        // Until it is full, where others take room meanwhile.
        let _ = fs::write(ballast.join(format!("bytes{number}")), vec![7; free.saturating_sub(left) as usize]);
    }
    if let Some(left) = inodes {
        for more in 0..stat().f_favail.saturating_sub(left) {
            let _ = fs::write(ballast.join(format!("{number}-{more}")), "");
        }
    }
}

/// There is room again: what is pulled is kept, which the second pull tells.
async fn recovers(site: &Site, daemon: &Daemon, report: &mut Report, case: &str, rng: &mut Rng) {
    let bytes = blob(rng.u64(..), 200_000);
    let target = format!("/v2/extra/blobs/{}", site.world.upstream.blob("extra", &bytes));
    let began = Instant::now();
    loop {
        let got = daemon.client.get(&target).await;
        if !got.complete() {
            return report.violation(case, &format!("there is room again, and a pull fails: {}", got.summary()));
        }
        if got.header("cache-status") == "ocistern; hit" {
            return;
        }
        if began.elapsed() > Duration::from_secs(10) {
            return report.violation(case, &format!("there is room again, and nothing is kept: {}", got.summary()));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
