//! What must hold after a case: of the files before the start, of the answers while upstream is away and after it is
//! back, and of the files again when all is quiet.

use std::path::Path;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use fastrand::Rng;
use ocistern::oci::Digest;
use tokio::task::JoinSet;

use crate::common::clock::wall;
use crate::common::content::sha256;
use crate::common::invariants::{stored, unrest, wrong_blobs};
use crate::common::upstream::registry::Registry;
use crate::common::{Ask, Daemon, Got, left};
use crate::counted::Counted;
use crate::load::Load;
use crate::report::Report;
use crate::site::{Durability, Site, World};
use crate::slow;

/// From the start of the program to its first byte.
const FIRST_BYTE: Duration = Duration::from_secs(2);
/// How many stored blobs are asked for after a case.
const SAMPLE: usize = 12;
/// How long what goes on by itself may take; opening a damaged index alone may take ten seconds, and the scan comes after it.
pub const QUIET: Duration = Duration::from_mins(1);
/// Connections to upstream that may be kept for later, more than at first: as many as the client keeps per host.
const KEPT_ALIVE: usize = 32;
/// Between two looks.
pub const POLL: Duration = Duration::from_millis(10);
/// What was published is synced within a second, as is promised, and that takes a while.
const SYNCED: Duration = Duration::from_secs(3);
/// So much before a sync began a file must have been seen to be in it: the daemon puts down for the sync what it has renamed,
/// and may be kept from a processor in between.
const BETWEEN: Duration = Duration::from_secs(1);

/// After a daemon died: checks the files, starts another one, and checks what it serves. What clients had got before `kept` they
/// get again; none: that may be anything. Returns none if it did not start.
pub async fn restart(
    site: &Site,
    report: &mut Report,
    case: &str,
    durability: Durability,
    kept: Option<Instant>,
    rng: &mut Rng,
) -> Option<Daemon> {
    let world = &site.world;
    settle(site, None).await;
    world.model.forget_seen_since(kept);
    if durability == Durability::Strict {
        report.violations(
            case,
            wrong_blobs(&site.root).into_iter().map(|file| format!("published with wrong bytes: {file}")),
        );
    } else {
        report.count("unsynced_files_found_wrong", wrong_blobs(&site.root).len() as u64);
    }
    let lost = world.model.missing_upstream(&world.upstream);
    report.violations(case, lost.into_iter().map(|push| format!("an acknowledged push is not upstream: {push}")));
    let unfinished = slow::check_maps(site, report, case);

    // A log of upstream's requests is compared with what this daemon asks.
    world.upstream.forget();
    let alone = rng.bool();
    if alone {
        world.upstream.down();
    }
    let started = site.start().await;
    let (daemon, took) = match started {
        Ok(started) => started,
        Err(error) => {
            report.violation(case, &format!("the start was refused: {error}"));
            return None;
        }
    };
    report.most("slowest_start_ms", took.as_millis() as u64);
    if took > FIRST_BYTE && is_overloaded() {
        report.count("slow_starts_not_judged", 1);
    } else if took > FIRST_BYTE {
        report.violation(case, &format!("the first byte came after {took:?}"));
    }
    let load = world.at(daemon.client);
    if alone {
        report.count("checked_with_upstream_away", 1);
        let unserved = without_upstream(site, &load, kept, durability, report, rng).await;
        // Where there is little room, a file that was there may go while it is asked for; the log says so.
        let evicts = evictions(&daemon.log()).count() > 0;
        let (excused, wrong): (Vec<_>, Vec<_>) = unserved.into_iter().partition(|lost| lost.is_gone && evicts);
        report.count("evicted_while_asked_for", excused.len() as u64);
        report.violations(case, wrong.into_iter().map(|lost| lost.what));
        world.upstream.up();
        recovers(&load, report, case).await;
    }
    // Without syncs any file may be wrong; else the scan has looked at them all.
    let blobs = if durability == Durability::Fast { usize::MAX } else { SAMPLE };
    healthy(site, &daemon, blobs, rng, report, case).await;
    let again = slow::go_on(&load, &unfinished, rng, report).await;
    let log = daemon.log();
    if made_room(&log) {
        report.count("asked_for_again_after_making_room", again.len() as u64);
    } else {
        // A seed does not repeat every interleaving: what the daemon said tells more.
        report.violations(case, again.into_iter().map(|what| format!("{what}; it said: {}", said(&log))));
    }
    quiet(site, &daemon, durability, report, case).await;
    report.violations(case, world.model.take_wrong());
    world.slow.set_quick(false);
    Some(daemon)
}

/// Upstream's word on every tag holds from here on, once nothing is under way that a client asked for and then left.
async fn settle(site: &Site, daemon: Option<&Daemon>) {
    let world = &site.world;
    let mut idle = true;
    if let Some(daemon) = daemon {
        idle &= left::are_dealt_with(daemon.client.0.port()).await;
        Counted::at_rest(site, daemon).await;
    }
    idle &= left::are_dealt_with(world.upstream.port()).await;
    if !idle {
        world.model.wrong("connections whose clients have left are not closed".into());
    }
    world.model.settle(&world.upstream);
}

/// What a kill may not take: what clients had got so long before it. What is in the page cache survives it, but an answer
/// may be out before the record of it is written.
pub fn before_kill() -> Option<Instant> {
    Instant::now().checked_sub(BETWEEN)
}

/// Before which moment all that was to be seen in the store is on the disk: the last sync that left nothing unsynced, which the
/// daemon tells, began a while after it; none if it has not synced yet. Where nobody else keeps the machine busy that is not
/// long ago.
pub async fn synced(daemon: &Daemon, report: &mut Report, case: &str) -> Option<SystemTime> {
    let told = daemon.synced().await?;
    let ago = wall().duration_since(told).unwrap_or_default();
    if load() <= 1.0 {
        report.count("ages_of_syncs_judged", 1);
        if ago > SYNCED {
            report.violation(case, &format!("nothing was synced for {ago:?}"));
        }
    }
    Some(told - BETWEEN)
}

/// That moment by the other clock, as far as it counts for what clients have got: an answer may be out before its record is
/// written, and where the disk is busy that takes a while.
pub fn kept(synced: Option<SystemTime>) -> Option<Instant> {
    let ago = wall().duration_since(synced?).unwrap_or_default();
    Instant::now().checked_sub(ago + BETWEEN)
}

/// Whether so many others want the processors that a time says nothing about the daemon.
fn is_overloaded() -> bool {
    load() > 3.0
}

/// The machine's load, for each of its processors.
fn load() -> f64 {
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load: f64 = load.split(' ').next().and_then(|load| load.parse().ok()).unwrap_or(0.0);
    load / std::thread::available_parallelism().map_or(1, usize::from) as f64
}

/// What the log says of evictions.
pub fn evictions(log: &[serde_json::Value]) -> impl Iterator<Item = &serde_json::Value> {
    log.iter().filter(|event| event["message"] == "evicted the least recently used blobs")
}

/// Whether the log says that something, finished or not, had to go to make room, or that there was none, by its own figures: what
/// others read and write just then cannot go, and what is asked for meanwhile is passed on from its start.
fn made_room(log: &[serde_json::Value]) -> bool {
    let says = |event: &serde_json::Value, what| event["message"].as_str().is_some_and(|text| text.starts_with(what));
    let unfinished =
        |event| says(event, "unfinished downloads were removed") || says(event, "an unfinished download has no room");
    let none = |event: &serde_json::Value| {
        let bytes = |name: &str| event[name].as_u64().unwrap_or_default();
        let held = (bytes("stored") + bytes("promised") + bytes("lingering")).saturating_sub(bytes("removable"));
        says(event, "the store has no room") && held + bytes("bytes") > bytes("capacity")
    };
    evictions(log).count() > 0 || log.iter().any(|event| unfinished(event) || none(event))
}

/// What the log says, without its lines of requests.
fn said(log: &[serde_json::Value]) -> String {
    let told = log.iter().filter(|event| event["message"] != "request");
    told.map(serde_json::Value::to_string).collect::<Vec<_>>().join("\n  ")
}

/// What was there before it was asked for, and was not served.
struct Unserved {
    what: String,
    /// It was not there any more after that.
    is_gone: bool,
}

/// With upstream away: each answer is right or an error, and what is there is served.
async fn without_upstream(
    site: &Site,
    load: &Load,
    kept: Option<Instant>,
    durability: Durability,
    report: &mut Report,
    rng: &mut Rng,
) -> Vec<Unserved> {
    let world = &site.world;
    let strict = durability == Durability::Strict;
    let mut asked = JoinSet::new();
    for name in world.model.tags() {
        let (world, client) = (world.clone(), load.client);
        let root = site.root.clone();
        let must = strict && name.0 == "lib" && is_whole(&root, &world, &name.1);
        report.count("tags_required_alone", u64::from(must));
        asked.spawn(async move {
            let got = client.get(format!("/v2/{}/manifests/{}", name.0, name.1)).await;
            world.model.judge_alone(&name, &got, kept);
            (must && !got.complete()).then(|| {
                let is_gone = !is_whole(&root, &world, &name.1);
                Unserved::new(&format!("{name:?}"), is_gone, &got)
            })
        });
    }
    for digest in some(stored(&site.root), SAMPLE, rng) {
        let Some(repo) = repository(load, &digest) else { continue };
        let (world, client) = (world.clone(), load.client);
        let root = site.root.clone();
        let must = strict && is_proven(&root, repo, &digest);
        report.count("blobs_required_alone", u64::from(must));
        asked.spawn(async move {
            let target = format!("/v2/{repo}/blobs/{digest}");
            let got = client.send(Ask::get(&target)).await;
            world.model.judge(&target, &digest, &got);
            let unserved = || Unserved::new(&target, !is_proven(&root, repo, &digest), &got);
            (must && !got.complete()).then(unserved)
        });
    }
    asked.join_all().await.into_iter().flatten().collect()
}

impl Unserved {
    fn new(what: &str, is_gone: bool, got: &Got) -> Self {
        let now = if is_gone { "was" } else { "is" };
        Self { what: format!("{what} {now} there and not served: {}", got.summary()), is_gone }
    }
}

/// So many of them, drawn.
fn some(mut all: Vec<Digest>, count: usize, rng: &mut Rng) -> Vec<Digest> {
    rng.shuffle(&mut all);
    all.truncate(count);
    all
}

/// Whether tag, proof, access and manifest are on the disk.
fn is_whole(root: &Path, world: &World, tag: &str) -> bool {
    let number: usize = tag[1..].parse().unwrap();
    let digest = world.library.images[number].digest;
    is_full(&root.join("refs/up/lib/_tags").join(tag)) && is_proven(root, "lib", &digest)
}

/// Whether content, the proof that upstream has it in this repository, and that everybody may have it are on the disk.
fn is_proven(root: &Path, repo: &str, digest: &Digest) -> bool {
    let refs = root.join("refs/up").join(repo);
    let link = refs.join("_links").join(digest.algorithm().as_str()).join(digest.hex());
    let blob = root.join("blobs").join(digest.algorithm().as_str()).join(digest.hex());
    [refs.join("_access"), link, blob].iter().all(|path| is_full(path))
}

fn is_full(path: &Path) -> bool {
    path.metadata().is_ok_and(|file| file.len() > 0)
}

/// A repository in which upstream has the blob.
fn repository(load: &Load, digest: &Digest) -> Option<&'static str> {
    let library = &load.world.library;
    let known = library.all().map(|(repo, image)| (repo, image.layers.iter().chain([&image.config])));
    let of_library = known.filter(|(_, parts)| parts.clone().any(|part| sha256(part) == *digest)).map(|(repo, _)| repo);
    let has = |repo: &&str| {
        let has =
            |registry: &mut Registry| registry.repos.get(*repo).is_some_and(|repo| repo.blobs.contains_key(digest));
        load.world.upstream.registry(has)
    };
    of_library.chain([slow::REPO]).find(has)
}

/// Upstream is back: it is found again without a restart.
async fn recovers(load: &Load, report: &mut Report, case: &str) {
    let began = Instant::now();
    let whole = || async {
        let got = load.client.get("/v2/moved/manifests/m0").await;
        got.complete() && !got.header("cache-status").contains("stale")
    };
    while !whole().await {
        if began.elapsed() > QUIET {
            return report.violation(case, "upstream is back and not asked again");
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// What was wrong around a daemon that lives on is over: all is well without a restart.
pub async fn go_on(
    site: &Site,
    daemon: &Daemon,
    durability: Durability,
    report: &mut Report,
    case: &str,
    rng: &mut Rng,
) {
    let world = &site.world;
    let load = world.at(daemon.client);
    // A breaker that opened for upstream is none of the disk's business, but takes its time.
    recovers(&load, report, case).await;
    settle(site, Some(daemon)).await;
    world.upstream.forget();
    load.give_up_uploads().await;
    healthy(site, daemon, 6, rng, report, case).await;
    quiet(site, daemon, durability, report, case).await;
    report.violations(case, world.model.take_wrong());
    let lost = world.model.missing_upstream(&world.upstream);
    report.violations(case, lost.into_iter().map(|push| format!("an acknowledged push is not upstream: {push}")));
}

/// Every tag, so many of the blobs that are there, and an image whole: served, no blob asked of upstream twice (unless
/// there was no room to keep it), and the metrics count what the clients and upstream have counted.
pub async fn healthy(site: &Site, daemon: &Daemon, blobs: usize, rng: &mut Rng, report: &mut Report, case: &str) {
    let world = &site.world;
    let load = &world.at(daemon.client);
    world.set_faulty(false);
    world.slow.set_quick(true);
    let before = Counted::at_rest(site, daemon).await;
    let mut asked = JoinSet::new();
    for name in world.model.tags() {
        let (load, mut rng) = (load.clone(), rng.fork());
        asked.spawn(async move {
            load.tag(&name, &mut rng).await;
        });
    }
    for digest in some(stored(&site.root), blobs, rng) {
        let Some(repo) = repository(load, &digest) else { continue };
        let (load, mut rng) = (load.clone(), rng.fork());
        asked.spawn(async move {
            load.blob(repo, &digest, &mut rng).await;
        });
    }
    let (one, mut fork) = (load.clone(), rng.fork());
    asked.spawn(async move { one.pull(fork.usize(..one.world.library.images.len()), &mut fork).await });
    asked.join_all().await;
    let began = Instant::now();
    let after = loop {
        // An answer is counted when its last byte is out, which the client may see before.
        let after = Counted::now(site, daemon).await;
        if after.agrees_since(&before) || began.elapsed() > QUIET {
            break after;
        }
        tokio::time::sleep(POLL).await;
    };
    if !after.agrees_since(&before) {
        report.violation(case, &format!("the metrics count otherwise: {before:?}, then {after:?}"));
    }
    if after.gone == before.gone && after.bypassed == before.bypassed {
        report.count("upstream_counts_checked", 1);
        report.violations(case, after.twice_since(&before, &world.upstream));
    }
}

/// All that there is, so that what is missing is noticed.
pub async fn everything(load: &Load, rng: &mut Rng) {
    let mut asked = JoinSet::new();
    for (repo, image) in load.world.library.all() {
        for part in image.layers.iter().chain([&image.config, &image.manifest]) {
            let (load, digest, mut rng) = (load.clone(), sha256(part), rng.fork());
            asked.spawn(async move { load.blob_if_there(repo, &digest, &mut rng).await });
        }
    }
    asked.join_all().await;
}

/// While a daemon works, whose store had never more than its capacity: it has not now.
pub async fn fits(daemon: &Daemon, report: &mut Report, case: &str) {
    let bytes = daemon.metric("ocistern_store_bytes", &[]).await;
    let capacity = daemon.metric("ocistern_store_capacity_bytes", &[]).await;
    if bytes > capacity {
        report.violation(case, &format!("the store has {bytes} bytes, and may have {capacity}"));
    }
}

/// Nothing is under way: no stray file, no file of the store held open, no more descriptors than at first, no more bytes than the
/// capacity, the books agree with the disk, and every file hashes to its name; without syncs a wrong one that nobody has asked for may be there.
pub async fn quiet(site: &Site, daemon: &Daemon, durability: Durability, report: &mut Report, case: &str) {
    let began = Instant::now();
    loop {
        let metric = |name| daemon.metric(name, &[]);
        let (filling, bytes, blobs, capacity) = (
            metric("ocistern_fills_in_progress").await,
            metric("ocistern_store_bytes").await,
            metric("ocistern_store_blobs").await,
            metric("ocistern_store_capacity_bytes").await,
        );
        let process = daemon.pid().as_raw_nonzero().get();
        let mut wrong = unrest(&site.root, process, filling, (bytes, blobs));
        let descriptors = std::fs::read_dir(format!("/proc/{process}/fd")).map_or(0, Iterator::count);
        let first = *site.descriptors.get_or_init(|| descriptors);
        if descriptors > first + KEPT_ALIVE {
            wrong.push(format!("{descriptors} descriptors are open, at first it was {first}"));
        }
        if bytes > capacity {
            wrong.push(format!("the store has {bytes} bytes, and may have {capacity}"));
        }
        if wrong.is_empty() {
            break;
        }
        if began.elapsed() > QUIET {
            report.violation(case, &format!("not quiet: {}", wrong.join("; ")));
            let log = daemon.log();
            log[log.len().saturating_sub(20)..].iter().for_each(|event| println!("  it said {event}"));
            break;
        }
        tokio::time::sleep(POLL).await;
    }
    if durability == Durability::Strict {
        report.violations(case, wrong_blobs(&site.root).into_iter().map(|file| format!("wrong bytes: {file}")));
    }
}
