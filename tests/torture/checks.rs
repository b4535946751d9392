//! What must hold after a case: of the files before the start, of the answers while upstream is away and after it is
//! back, and of the files again when all is quiet.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::time::Duration;

use tokio::time::Instant;

use fastrand::Rng;
use ocistern::oci::Digest;
use tokio::task::JoinSet;

use crate::common::content::sha256;
use crate::common::invariants::{stored, unrest, wrong_blobs};
use crate::common::upstream::Request;
use crate::common::{Ask, Daemon, left};
use crate::load::Load;
use crate::report::Report;
use crate::site::{Durability, Site};

/// From the start of the program to its first byte.
const FIRST_BYTE: Duration = Duration::from_secs(2);
/// How many stored blobs are asked for after a case.
const SAMPLE: usize = 12;
/// How long what goes on by itself may take; opening a damaged index alone may take ten seconds, and the scan comes after it.
const QUIET: Duration = Duration::from_mins(1);
/// Connections to upstream that may be kept for later, more than at first: as many as the client keeps per host.
const KEPT_ALIVE: usize = 32;
/// Between two looks.
const POLL: Duration = Duration::from_millis(10);

/// After a daemon died: checks the files, starts another one, and checks what it serves. None if it did not start.
pub async fn restart(
    site: &Site,
    report: &mut Report,
    case: &str,
    durability: Durability,
    died: Instant,
    rng: &mut Rng,
) -> Option<Daemon> {
    let world = &site.world;
    settle(site, None).await;
    world.model.forget_seen_since(died.checked_sub(synced_within()).unwrap_or(died));
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
        let unserved = without_upstream(site, &load, died, durability, rng).await;
        // Where there is little room, a file that was there may go while it is asked for; the log says so.
        let evicts = evictions(&daemon.log()).count() > 0;
        let (excused, wrong): (Vec<_>, Vec<_>) = unserved.into_iter().partition(|tag| tag.is_gone && evicts);
        report.count("evicted_while_asked_for", excused.len() as u64);
        report.violations(case, wrong.into_iter().map(|tag| tag.what));
        world.upstream.up();
        recovers(&load, report, case).await;
    }
    // Without syncs any file may be wrong; else the scan has looked at them all.
    let blobs = if durability == Durability::Fast { usize::MAX } else { SAMPLE };
    healthy(site, &daemon, blobs, rng, report, case).await;
    quiet(site, &daemon, durability, report, case).await;
    report.violations(case, world.model.take_wrong());
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

/// What was published longer ago is on the disk: it is synced in groups within a second, and that takes a while; longer
/// where other subjects keep the same disk busy, since a group waits for the disk once for each of its files.
pub fn synced_within() -> Duration {
    Duration::from_secs(if load() > 1.0 { 20 } else { 3 })
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

/// A tag that was there before it was asked for, and was not served.
struct Unserved {
    what: String,
    /// It was not there any more after that.
    is_gone: bool,
}

/// With upstream away: each answer is right or an error, and what is there is served.
async fn without_upstream(
    site: &Site,
    load: &Load,
    died: Instant,
    durability: Durability,
    rng: &mut Rng,
) -> Vec<Unserved> {
    let world = &site.world;
    let kept = died.checked_sub(synced_within()).unwrap_or(died);
    let mut asked = JoinSet::new();
    for name in world.model.tags() {
        let (world, client) = (world.clone(), load.client);
        let root = site.root.clone();
        let must = durability == Durability::Strict && name.0 == "lib" && is_whole(&root, &world, &name.1);
        asked.spawn(async move {
            let got = client.get(format!("/v2/{}/manifests/{}", name.0, name.1)).await;
            world.model.judge_alone(&name, &got, kept);
            (must && !got.complete()).then(|| {
                let is_gone = !is_whole(&root, &world, &name.1);
                let now = if is_gone { "was" } else { "is" };
                Unserved { what: format!("{name:?} {now} there and not served: {}", got.summary()), is_gone }
            })
        });
    }
    for digest in some(stored(&site.root), SAMPLE, rng) {
        let Some(repo) = repository(load, &digest) else { continue };
        let (world, client) = (world.clone(), load.client);
        asked.spawn(async move {
            let target = format!("/v2/{repo}/blobs/{digest}");
            let got = client.send(Ask::get(&target)).await;
            world.model.judge(&target, &digest, &got);
            None
        });
    }
    asked.join_all().await.into_iter().flatten().collect()
}

/// So many of them, drawn.
fn some(mut all: Vec<Digest>, count: usize, rng: &mut Rng) -> Vec<Digest> {
    rng.shuffle(&mut all);
    all.truncate(count);
    all
}

/// Whether tag, proof, access and manifest are on the disk.
fn is_whole(root: &Path, world: &crate::site::World, tag: &str) -> bool {
    let number: usize = tag[1..].parse().unwrap();
    let digest = world.library.images[number].digest;
    let repo = root.join("refs/up/lib");
    let link = repo.join("_links").join(digest.algorithm().as_str()).join(digest.hex());
    let blob = root.join("blobs").join(digest.algorithm().as_str()).join(digest.hex());
    let full = |path: &Path| path.metadata().is_ok_and(|file| file.len() > 0);
    [repo.join("_tags").join(tag), repo.join("_access"), link, blob].iter().all(|path| full(path))
}

/// A repository in which upstream has the blob.
fn repository(load: &Load, digest: &Digest) -> Option<&'static str> {
    let all = load.world.library.all();
    let found = all.filter(|(_, image)| image.layers.iter().chain([&image.config]).any(|part| sha256(part) == *digest));
    found.map(|(repo, _)| repo).find(|repo| {
        load.world
            .upstream
            .registry(|registry| registry.repos.get(*repo).is_some_and(|repo| repo.blobs.contains_key(digest)))
    })
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
        asked.spawn(async move { load.blob(repo, &digest, &mut rng).await });
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
        let twice = after.fetched.iter().filter(|(blob, parts)| {
            let known = before.fetched.get(*blob).map_or(0, Vec::len);
            overlap(parts.get(known..).unwrap_or_default())
        });
        report
            .violations(case, twice.map(|(blob, parts)| format!("asked of upstream more than once: {blob} {parts:?}")));
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

/// What the clients, the daemon and upstream have counted.
#[derive(Debug, PartialEq, Eq, Clone)]
struct Counted {
    /// Requests for content, by the clients, and by the daemon.
    answers: u64,
    served: u64,
    /// Requests to upstream, by upstream, and by the daemon.
    received: u64,
    asked: u64,
    /// The parts of each blob that were asked for by GET, in their order: a download may be several, which never overlap.
    fetched: BTreeMap<String, Vec<Range<u64>>>,
    gone: u64,
    bypassed: u64,
}

/// The part of a blob that a request wants.
fn part(request: &Request) -> Range<u64> {
    let range = request.header("range").and_then(|range| range.strip_prefix("bytes=")?.split_once('-'));
    match range {
        Some((from, last)) => from.parse().unwrap_or(0)..last.parse().map_or(u64::MAX, |last: u64| last + 1),
        None => 0..u64::MAX,
    }
}

/// Whether some byte was asked for twice, of parts in the order of their requests. One that begins within an earlier one has
/// cut that short, for who reads far ahead.
fn overlap(parts: &[Range<u64>]) -> bool {
    let again = |later: &Range<u64>, earlier: &Range<u64>| later.start <= earlier.start && earlier.start < later.end;
    parts.iter().enumerate().any(|(index, later)| parts.iter().take(index).any(|earlier| again(later, earlier)))
}

impl Counted {
    async fn now(site: &Site, daemon: &Daemon) -> Self {
        let log = site.world.upstream.log();
        let mut fetched: BTreeMap<String, Vec<Range<u64>>> = BTreeMap::new();
        for entry in log.iter().filter(|entry| entry.request.method == "GET" && entry.request.path.contains("/blobs/"))
        {
            fetched.entry(entry.request.path.clone()).or_default().push(part(&entry.request));
        }
        let served = |kind| daemon.metric("ocistern_requests_total", kind);
        Self {
            answers: site.world.answers(),
            served: served(&["kind=\"blob\""]).await + served(&["kind=\"manifest\""]).await,
            received: log.len() as u64,
            asked: daemon.metric("ocistern_upstream_requests_total", &[]).await,
            fetched,
            gone: daemon.metric("ocistern_evicted_bytes_total", &[]).await
                + daemon.metric("ocistern_corrupt_blobs_total", &[]).await,
            bypassed: served(&["result=\"bypass\""]).await,
        }
    }

    /// When nothing is being counted any more of what was before.
    async fn at_rest(site: &Site, daemon: &Daemon) -> Self {
        let began = Instant::now();
        loop {
            let before = Self::now(site, daemon).await;
            tokio::time::sleep(POLL).await;
            let filling = daemon.metric("ocistern_fills_in_progress", &[]).await;
            if began.elapsed() > QUIET || filling == 0 && Self::now(site, daemon).await == before {
                return before;
            }
        }
    }

    fn agrees_since(&self, before: &Self) -> bool {
        self.answers - before.answers == self.served - before.served
            && self.received - before.received == self.asked - before.asked
    }
}

/// Nothing is under way: no stray file, no file of the store held open, no more descriptors than at first, the books agree with the disk, and every file
/// hashes to its name; without syncs a wrong one that nobody has asked for may be there.
pub async fn quiet(site: &Site, daemon: &Daemon, durability: Durability, report: &mut Report, case: &str) {
    let began = Instant::now();
    loop {
        let metric = |name| daemon.metric(name, &[]);
        let (filling, bytes, blobs) = (
            metric("ocistern_fills_in_progress").await,
            metric("ocistern_store_bytes").await,
            metric("ocistern_store_blobs").await,
        );
        let process = daemon.pid().as_raw_nonzero().get();
        let mut wrong = unrest(&site.root, process, filling, (bytes, blobs));
        let descriptors = std::fs::read_dir(format!("/proc/{process}/fd")).map_or(0, Iterator::count);
        let first = *site.descriptors.get_or_init(|| descriptors);
        if descriptors > first + KEPT_ALIVE {
            wrong.push(format!("{descriptors} descriptors are open, at first it was {first}"));
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
