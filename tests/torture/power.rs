//! Power cuts: ext4 on a loop file loses what is not in its journal while pulls, pushes, deletes and evictions run.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use fastrand::Rng;
use ocistern::oci::Digest;

use crate::checks;
use crate::common::Daemon;
use crate::common::clock::wall;
use crate::common::invariants::{Partial, Seen, partials};
use crate::options::{Options, need};
use crate::report::Report;
use crate::site::{Durability, Site};
use crate::slow;
use crate::volume::{Volume, enter_namespace};

/// A push: repository, digest, time.
type Acknowledged = (String, Digest, SystemTime);

const MIB: u64 = 1 << 20;
const VOLUME: u64 = 400 * MIB;
/// With room for everything nothing may go but by loss; in the small one evictions run.
const CAPACITIES: [&str; 2] = ["250MiB", "12MiB"];
/// Cuts on the same store. Six batches have every durability with every capacity.
const BATCH: u64 = 10;
/// How often is looked at what is put down.
const LOOK: Duration = Duration::from_millis(150);
/// Clients that download what takes its time.
pub const DOWNLOADS: usize = 2;
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
    // Of maps that are old enough to be judged there are some in a hundred cuts, and on a busy machine perhaps none in sixty.
    report.must_have("maps_left", cuts >= 3 * BATCH);
    report.must_have("files_judged", cuts >= 3 * BATCH);
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
    let mut powered_on = Seen::now(&site.root);
    let (mut daemon, _) = site.start().await?;
    for cut in 0..count {
        let case = format!("{batch}, cut {cut}");
        // What there is after it was mounted is on the disk.
        let mut watched = Watched { seen: vec![powered_on, Seen::now(&site.root)], maps: Vec::new() };
        let load = site.world.at(daemon.client);
        let running = load.run(rng, 5).and_downloads(&load, rng, DOWNLOADS);
        // Now and then long enough for groups to be synced and downloads to be put down while the load runs.
        let delay = if rng.u8(..3) == 0 { rng.u64(1500..5000) } else { rng.u64(20..600) };
        watched.watch(&site.root, Duration::from_millis(delay)).await;
        let evicts = capacity == CAPACITIES[1];
        let log = daemon.log();
        report.count("evicted_bytes", checks::evictions(&log).filter_map(|event| event["bytes"].as_u64()).sum());
        report.count("maps_taken_up", slow::taken_up(&log));
        checks::fits(&daemon, report, &case).await;
        let synced = checks::synced(&daemon, report, &case).await;
        // Where evictions run, what is there at the cut is known only if they stand still; else it happens in full run.
        let frozen = evicts || rng.bool();
        let Cut { acknowledged, seen, maps, at: cut_at } = cut_power(&site, &volume, daemon, frozen).await?;
        running.end().await;
        volume.power_on()?;
        powered_on = Seen::now(&site.root);
        report.count("cuts", 1);
        report.count(if durability == Durability::Strict { "cuts_strict" } else { "cuts_fast" }, 1);
        report.count("maps_at_cuts", maps.len() as u64);
        if frozen {
            // In full run a download may end between the look and the cut.
            let there = partials(&site.root);
            let judged: Vec<&Partial> = maps.iter().filter_map(|map| watched.map(map, synced)).collect();
            report.count("maps_judged", judged.len() as u64);
            let is_there = |map: &Partial| there.iter().any(|now| now.digest == map.digest && now.has(&map.present));
            let lost = judged.iter().filter(|map| !is_there(map)).map(|map| format!("put down and lost: {map:?}"));
            report.violations(&case, lost);
        }
        if durability == Durability::Strict {
            report.count("files_at_cuts", seen.len() as u64);
            let published: BTreeMap<Digest, SystemTime> =
                acknowledged.iter().filter_map(|(_, digest, _)| Some((*digest, seen.published(digest)?))).collect();
            let seen = seen.since(watched.before(synced));
            // Those that had survived the cut before say little.
            report.count("files_judged", seen.new_since(&watched.seen[0]) as u64);
            // In full run a tag or manifest may be deleted or moved between the look and the cut.
            let deleted = |file: &Path, content: &[u8], published| {
                !frozen && site.world.model.may_be_gone(file, content, published, cut_at)
            };
            let lost = seen.lost(&site.root, deleted);
            let moment = if frozen { "standing still" } else { "in full run" };
            report.violations(&case, lost.iter().map(|file| format!("published and lost, {moment}: {file}")));
            for (_, digest, at) in acknowledged {
                // In the small store a push may find no room, and what is there be of a fill that has just published it, or
                // be evicted and fetched again: other publications, which the acknowledgement says nothing about.
                if evicts || published.get(&digest).is_none_or(|published| at < *published) {
                    continue;
                }
                report.count("acknowledged_pushes_at_cuts", 1);
                let path = site.root.join("blobs").join(digest.algorithm().as_str()).join(digest.hex());
                if !path.is_file() {
                    report.violation(&case, &format!("pushed, acknowledged, stored and lost: {digest}"));
                }
            }
        }
        let next = checks::restart(&site, report, &case, durability, checks::kept(synced), rng).await;
        let Some(next) = next else { return Ok(()) };
        daemon = next;
    }
    report.count("answers", site.world.model.answers());
    daemon.stop().await;
    Ok(())
}

/// What was published and put down while a load ran, as often as it was looked at. When a file got its name is not enough to
/// know: that time is of the begin of a rename, which may wait for the disk.
struct Watched {
    /// The first is on the disk.
    seen: Vec<Seen>,
    maps: Vec<(SystemTime, Partial)>,
}

impl Watched {
    /// Looks for so long.
    async fn watch(&mut self, root: &Path, time: Duration) {
        let began = Instant::now();
        while began.elapsed() < time {
            tokio::time::sleep(LOOK.min(time.saturating_sub(began.elapsed()))).await;
            let maps = partials(root);
            self.seen.push(Seen::now(root));
            let at = wall();
            self.maps.extend(maps.into_iter().map(|map| (at, map)));
        }
    }

    /// What there was when it was looked at last before what is on the disk.
    fn before(&self, synced: Option<SystemTime>) -> &Seen {
        self.seen.iter().rfind(|seen| seen.at() < synced).unwrap_or(&self.seen[0])
    }

    /// The last map of the same file that was seen before then.
    fn map(&self, map: &Partial, synced: Option<SystemTime>) -> Option<&Partial> {
        self.maps.iter().rfind(|(at, seen)| seen.file == map.file && Some(*at) < synced).map(|(_, seen)| seen)
    }
}

/// What there was at a cut.
struct Cut {
    acknowledged: Vec<Acknowledged>,
    seen: Seen,
    maps: Vec<Partial>,
    at: SystemTime,
}

/// Cuts the power and kills the daemon; which pushes were acknowledged before that moment, what was published, and which
/// downloads were put down.
async fn cut_power(site: &Site, volume: &Volume, daemon: Daemon, frozen: bool) -> Result<Cut, String> {
    if frozen {
        site.world.set_faulty(true);
        daemon.freeze();
    }
    // In this order: what a daemon acknowledges whose disk is gone counts for nothing.
    let acknowledged = site.world.model.acknowledged();
    let (seen, maps) = (Seen::now(&site.root), partials(&site.root));
    site.world.set_faulty(true);
    volume.cut()?;
    let at = wall();
    if !frozen {
        // What it says while its disk is gone must be right, too.
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
    daemon.kill();
    // What was under way to upstream arrives.
    tokio::time::sleep(Duration::from_millis(30)).await;
    Ok(Cut { acknowledged, seen, maps, at })
}
