//! Power cuts: ext4 on a loop file loses what is not in its journal while pulls, pushes, deletes and evictions run.

use std::path::Path;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use fastrand::Rng;
use ocistern::oci::Digest;

use crate::checks;
use crate::common::Daemon;
use crate::common::clock::wall;
use crate::common::invariants::Seen;
use crate::options::{Options, need};
use crate::report::Report;
use crate::site::{Durability, Site};
use crate::volume::{Volume, enter_namespace};

/// A push: repository, digest, time.
type Acknowledged = (String, Digest, SystemTime);

const MIB: u64 = 1 << 20;
const VOLUME: u64 = 400 * MIB;
/// With room for everything nothing may go but by loss; in the small one evictions run.
const CAPACITIES: [&str; 2] = ["250MiB", "12MiB"];
/// Cuts on the same store.
const BATCH: u64 = 15;
/// Sizes of layers; large ones are rare.
pub const SIZES: [usize; 12] =
    [4096, 4096, 16_384, 16_384, 65_536, 65_536, 65_536, 300_000, 300_000, 1_500_000, 1_500_000, 8_000_000];

pub async fn run(options: &Options) -> Result<bool, String> {
    need(true, &[("mkfs.ext4", "e2fsprogs"), ("mount", "mount"), ("unshare", "util-linux")])?;
    enter_namespace()?;
    let mut report = Report::new("power", options.seed, &options.text);
    let mut rng = Rng::with_seed(options.seed);
    let cuts = options.count("cuts");
    let (mut done, mut batch) = (0, 0);
    while done < cuts {
        let durability = if batch % 3 == 2 { Durability::Fast } else { Durability::Strict };
        let count = BATCH.min(cuts - done);
        let case = format!("batch {batch} ({durability:?}, {})", CAPACITIES[batch % 2]);
        run_batch(&mut report, &mut rng.fork(), &case, durability, CAPACITIES[batch % 2], count).await?;
        done += count;
        batch += 1;
        report.progress(done, cuts);
    }
    Ok(report.end())
}

async fn run_batch(
    report: &mut Report,
    rng: &mut Rng,
    batch: &str,
    durability: Durability,
    capacity: &str,
    count: u64,
) -> Result<(), String> {
    let directory = tempfile::tempdir().map_err(|e| e.to_string())?;
    let volume = Volume::ext4(directory.path(), VOLUME)?;
    let site = Site::new(rng, 14, &SIZES, Some(&volume.path().join("root"))).await;
    site.configure(durability, capacity);
    let (mut daemon, _) = site.start().await?;
    for cut in 0..count {
        let case = format!("{batch}, cut {cut}");
        let running = site.world.at(daemon.client).run(rng, 5);
        // Now and then long enough for groups to be synced while the load runs.
        let delay = if rng.u8(..8) == 0 { rng.u64(1500..4500) } else { rng.u64(20..600) };
        tokio::time::sleep(Duration::from_millis(delay)).await;
        let evicts = capacity == CAPACITIES[1];
        // Where evictions run, what is there at the cut is known only if they stand still; else it happens in full run.
        let log = daemon.log();
        report.count("evicted_bytes", checks::evictions(&log).filter_map(|event| event["bytes"].as_u64()).sum());
        let frozen = evicts || rng.bool();
        let (acknowledged, seen, cut_at, died) = cut_power(&site, &volume, daemon, frozen).await?;
        running.end().await;
        volume.power_on()?;
        report.count("cuts", 1);
        report.count(if durability == Durability::Strict { "cuts_strict" } else { "cuts_fast" }, 1);
        if durability == Durability::Strict {
            report.count("files_at_cuts", seen.len() as u64);
            // In full run a tag or manifest may be deleted or moved between the look and the cut.
            let deleted = |file: &Path, content: &[u8], published| {
                !frozen && site.world.model.may_be_gone(file, content, published, cut_at)
            };
            let lost = seen.lost(&site.root, checks::synced_within(), deleted);
            let moment = if frozen { "standing still" } else { "in full run" };
            report.violations(&case, lost.iter().map(|file| format!("published and lost, {moment}: {file}")));
            for (_, digest, at) in acknowledged {
                // In the small store a push may find no room, and what is there be of a fill that has just published it, or
                // be evicted and fetched again: other publications, which the acknowledgement says nothing about.
                if evicts || seen.published(&digest).is_none_or(|published| at < published) {
                    continue;
                }
                report.count("acknowledged_pushes_at_cuts", 1);
                let path = site.root.join("blobs").join(digest.algorithm().as_str()).join(digest.hex());
                if !path.is_file() {
                    report.violation(&case, &format!("pushed, acknowledged, stored and lost: {digest}"));
                }
            }
        }
        let next = checks::restart(&site, report, &case, durability, died, rng).await;
        let Some(next) = next else { return Ok(()) };
        daemon = next;
    }
    report.count("answers", site.world.model.answers());
    daemon.stop().await;
    Ok(())
}

/// Cuts the power and kills the daemon; which pushes were acknowledged before that moment, and what was published.
async fn cut_power(
    site: &Site,
    volume: &Volume,
    daemon: Daemon,
    frozen: bool,
) -> Result<(Vec<Acknowledged>, Seen, SystemTime, Instant), String> {
    if frozen {
        site.world.set_faulty(true);
        daemon.freeze();
    }
    // In this order: what a daemon acknowledges whose disk is gone counts for nothing.
    let acknowledged = site.world.model.acknowledged();
    let seen = Seen::now(&site.root);
    site.world.set_faulty(true);
    volume.cut()?;
    let (cut_at, died) = (wall(), Instant::now());
    if !frozen {
        // What it says while its disk is gone must be right, too.
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
    daemon.kill();
    // What was under way to upstream arrives.
    tokio::time::sleep(Duration::from_millis(30)).await;
    Ok((acknowledged, seen, cut_at, died))
}
