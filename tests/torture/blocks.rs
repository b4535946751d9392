//! A disk with bad blocks: reads, writes or both fail with EIO below ext4 (nbdkit's error filter → nbdfuse → loop) while
//! the daemon works, and then no more. Answers are right or errors, and all is well without a restart, unless ext4 itself
//! has made the file system read-only: then after it is mounted anew, and repaired if need be.
//!
//! A disk whose writes fail here loses some without saying so: where a write of several pages fails after the first, the
//! loop driver calls it done (`lo_complete_rq` of Linux 6.18 looks at errors of writes, not at their length). So what was
//! synced may be wrong on the disk, and the daemon cannot know; but it serves none of it.

use std::fs::File;
use std::time::Duration;

use fastrand::Rng;

use crate::checks;
use crate::common::invariants::files;
use crate::enospc::SIZES;
use crate::options::{Options, need};
use crate::report::Report;
use crate::site::{Durability, Site};
use crate::volume::{BadBlocks, Volume, enter_namespace};

const VOLUME: u64 = 96 << 20;
/// Which part of the reads or writes fails, in per cent.
const RATES: [u8; 3] = [5, 30, 100];

pub async fn run(options: &Options) -> Result<bool, String> {
    let tools = [
        ("mkfs.ext4", "e2fsprogs"),
        ("e2fsck", "e2fsprogs"),
        ("mount", "mount"),
        ("unshare", "util-linux"),
        ("nbdkit", "nbdkit"),
    ];
    need(true, &tools)?;
    need(true, &[("nbdfuse", "libnbd-bin"), ("fusermount3", "fuse3")])?;
    enter_namespace()?;
    let mut report = Report::new("blocks", options.seed, &options.text);
    let mut rng = Rng::with_seed(options.seed);
    let cases = options.count("cases");
    for case in 0..cases {
        let rate = RATES[rng.usize(..RATES.len())];
        let (reads, writes) = [(true, false), (false, true), (true, true)][case as usize % 3];
        let name = format!("case {case}: {rate} % EIO, reads {reads}, writes {writes}");
        bad_blocks(&mut report, &mut rng.fork(), &name, rate, (reads, writes)).await?;
        report.count("cases", 1);
        report.progress(case + 1, cases);
    }
    Ok(report.end())
}

async fn bad_blocks(
    report: &mut Report,
    rng: &mut Rng,
    case: &str,
    rate: u8,
    (reads, writes): (bool, bool),
) -> Result<(), String> {
    let directory = tempfile::tempdir().map_err(|e| e.to_string())?;
    let disk = BadBlocks::new(directory.path(), VOLUME, rate).await?;
    let volume = Volume::ext4_on(directory.path(), disk.path()).map_err(|error| format!("{case}: {error}"))?;
    let site = Site::new(rng, 8, &SIZES, Some(&volume.path().join("root"))).await;
    site.configure(Durability::Strict, "40MiB");
    let (mut daemon, _) = site.start().await?;
    let load = site.world.at(daemon.client);
    let running = load.run(rng, 4);
    tokio::time::sleep(Duration::from_millis(rng.u64(200..500))).await;
    site.world.set_faulty(true);
    running.end().await;
    let synced = checks::synced(&daemon, report, case).await;
    let running = load.run_faulty(rng, 4);
    if reads {
        forget_pages(&site);
        disk.fail_reads(true);
    }
    disk.fail_writes(writes);
    tokio::time::sleep(Duration::from_millis(rng.u64(500..1500))).await;
    running.end().await;
    disk.fail_reads(false);
    disk.fail_writes(false);
    if daemon.ended() {
        report.violation(case, "the daemon ended");
    }
    // As without syncs: files are wrong, and each that is asked for is served right.
    let durability = if writes { Durability::Fast } else { Durability::Strict };
    let writable = std::fs::write(volume.path().join("probe"), "x").is_ok();
    if writable && !daemon.ended() {
        report.count("mended_without_a_restart", 1);
        checks::go_on(&site, &daemon, durability, report, case, rng).await;
    } else {
        // ext4 could not write its journal.
        report.count("made_read_only_by_ext4", 1);
        daemon.kill();
        let repaired = volume.power_on_or_repair().map_err(|error| format!("{case}: {error}"))?;
        report.count("repaired_by_e2fsck", u64::from(repaired));
        let Some(next) = checks::restart(&site, report, case, durability, checks::kept(synced), rng).await else {
            return Ok(());
        };
        daemon = next;
    }
    report.count("answers", site.world.model.answers());
    daemon.stop().await;
    Ok(())
}

/// What is stored is to be read from the disk, not from memory.
fn forget_pages(site: &Site) {
    for path in files(&site.root.join("blobs")).into_iter().chain(files(&site.root.join("refs"))) {
        if let Ok(file) = File::open(&path) {
            let _ = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed);
        }
    }
}
