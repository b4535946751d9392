//! What must hold after a case: of the files before the start, of the answers while upstream is away and after it is
//! back, and of the files again when all is quiet.

use std::path::Path;
use std::time::Duration;

use tokio::time::Instant;

use fastrand::Rng;
use ocistern::oci::Digest;
use tokio::task::JoinSet;

use crate::common::content::sha256;
use crate::common::invariants::{stored, stored_bytes, strays, wrong_blobs};
use crate::common::{Ask, Daemon};
use crate::load::Load;
use crate::report::Report;
use crate::site::{Durability, Site};

/// From the start of the program to its first byte.
const FIRST_BYTE: Duration = Duration::from_secs(2);
/// How many stored blobs are asked for after a case.
const SAMPLE: usize = 12;
/// How long what goes on by itself may take.
const QUIET: Duration = Duration::from_secs(20);

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
    world.model.settle(&world.upstream);
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
        let answered = without_upstream(site, &load, died, durability, rng).await;
        report.violations(case, answered);
        world.upstream.up();
        recovers(&load, report, case).await;
    }
    // Without syncs any file may be wrong; else the scan has looked at them all.
    healthy(site, &load, if durability == Durability::Fast { usize::MAX } else { SAMPLE }, rng).await;
    quiet(site, &daemon, durability, report, case).await;
    report.violations(case, world.model.take_wrong());
    world.upstream.forget();
    Some(daemon)
}

/// Whether so many others want the processors that a time says nothing about the daemon.
fn is_overloaded() -> bool {
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load: f64 = load.split(' ').next().and_then(|load| load.parse().ok()).unwrap_or(0.0);
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    load > 3.0 * processors as f64
}

/// With upstream away: each answer is right or an error, and what is there is served.
async fn without_upstream(
    site: &Site,
    load: &Load,
    died: Instant,
    durability: Durability,
    rng: &mut Rng,
) -> Vec<String> {
    let world = &site.world;
    let mut asked = JoinSet::new();
    for name in world.model.tags() {
        let (world, client) = (world.clone(), load.client);
        let must = durability == Durability::Strict && name.0 == "lib" && is_whole(&site.root, &world, &name.1);
        asked.spawn(async move {
            let got = client.get(format!("/v2/{}/manifests/{}", name.0, name.1)).await;
            world.model.judge_alone(&name, &got, died);
            (must && !got.complete()).then(|| format!("{name:?} is there and not served: {}", got.summary()))
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

/// Every tag, so many of the blobs that are there, and an image whole.
pub async fn healthy(site: &Site, load: &Load, blobs: usize, rng: &mut Rng) {
    let world = &site.world;
    world.set_faulty(false);
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
}

/// Nothing is under way: no stray file, the books agree with the disk, and every file hashes to its name; without syncs
/// a wrong one that nobody has asked for may be there.
pub async fn quiet(site: &Site, daemon: &Daemon, durability: Durability, report: &mut Report, case: &str) {
    let began = Instant::now();
    loop {
        let (filling, booked) =
            (daemon.metric("ocistern_fills_in_progress", &[]).await, daemon.metric("ocistern_store_bytes", &[]).await);
        let (stray, there) = (strays(&site.root), stored_bytes(&site.root));
        if filling == 0 && stray.is_empty() && booked == there {
            break;
        }
        if began.elapsed() > QUIET {
            report
                .violation(case, &format!("not quiet: {filling} fills, stray {stray:?}, books {booked}, disk {there}"));
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    if durability == Durability::Strict {
        report.violations(case, wrong_blobs(&site.root).into_iter().map(|file| format!("wrong bytes: {file}")));
    }
}
