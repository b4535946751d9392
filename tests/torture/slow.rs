//! Downloads that take their time, so that cuts and kills find them half done: what their maps say must be there, and is
//! not asked for again.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use fastrand::Rng;
use ocistern::oci::Digest;
use parking_lot::Mutex;

use crate::common::Ask;
use crate::common::content::{blob, sha256};
use crate::common::invariants::{Partial, partials};
use crate::common::upstream::{Act, Upstream, acts};
use crate::counted::part;
use crate::load::Load;
use crate::report::Report;
use crate::site::Site;

/// The repository of what comes slowly.
pub const REPO: &str = "slow";
/// A checkpoint is made a second after the begin, where a megabyte has come: so it is due in the first half.
const SIZES: Range<usize> = 3 << 20..5 << 20;
const PIECE: usize = 64 << 10;
const PAUSE: Duration = Duration::from_millis(25);
/// How many are begun and not whole yet.
const AT_ONCE: usize = 3;
/// How many that are whole upstream keeps.
const KEPT: usize = 24;
/// What the daemon logs when it goes on with one.
const TAKEN_UP: &str = "an unfinished download is gone on with";

/// What is being downloaded.
#[derive(Debug, Default)]
pub struct Slow {
    downloads: Mutex<Downloads>,
    quick: AtomicBool,
}

#[derive(Debug, Default)]
struct Downloads {
    /// Those that nobody has got whole yet.
    begun: Vec<Digest>,
    /// The others that upstream still has, the oldest first.
    done: VecDeque<Digest>,
}

// === impl Slow ===

impl Slow {
    /// Answers for these come as slowly as is wanted.
    pub fn script(self: &Arc<Self>, upstream: &Upstream) {
        let (slow, drip) = (Arc::clone(self), acts::drip(PIECE, PAUSE));
        let act: Act = Arc::new(
            move |request, honest| {
                if slow.quick.load(Ordering::SeqCst) { honest } else { drip(request, honest) }
            },
        );
        upstream.script("GET", &format!("/v2/{REPO}/blobs/*"), .., act);
    }

    /// Says whether what is asked for from here on comes at once.
    pub fn set_quick(&self, quick: bool) {
        self.quick.store(quick, Ordering::SeqCst);
    }

    /// One that is not whole yet, or a new one.
    fn some(&self, upstream: &Upstream, rng: &mut Rng) -> Digest {
        let mut downloads = self.downloads.lock();
        while downloads.begun.len() < AT_ONCE {
            downloads.begun.push(new(upstream, rng));
        }
        downloads.begun[rng.usize(..AT_ONCE)]
    }

    /// A client has got it whole.
    fn done(&self, digest: &Digest, upstream: &Upstream) {
        let mut downloads = self.downloads.lock();
        let Some(at) = downloads.begun.iter().position(|begun| begun == digest) else { return };
        let done = downloads.begun.swap_remove(at);
        downloads.done.push_back(done);
        if downloads.done.len() > KEPT
            && let Some(oldest) = downloads.done.pop_front()
        {
            upstream.registry(|registry| registry.repos.get_mut(REPO).map(|repo| repo.blobs.remove(&oldest)));
        }
    }
}

/// A new blob upstream that comes slowly.
pub fn new(upstream: &Upstream, rng: &mut Rng) -> Digest {
    upstream.blob(REPO, &blob(rng.u64(..), rng.usize(SIZES)))
}

// === impl Load ===

impl Load {
    /// Downloads one that takes its time: whole, or a part of it, or as long as the client likes.
    pub async fn download(&self, rng: &mut Rng) {
        let digest = self.world.slow.some(&self.world.upstream, rng);
        let target = format!("/v2/{REPO}/blobs/{digest}");
        match rng.u8(..6) {
            0 => {
                if let Ok(mut live) = self.client.open(Ask::get(&target)).await {
                    self.world.answered(1);
                    live.read_to(rng.u64(..SIZES.start as u64)).await;
                }
            }
            1 => {
                let from = rng.u64(..SIZES.start as u64);
                self.part(&target, &digest, from).await;
            }
            _ => {
                if self.blob(REPO, &digest, rng).await {
                    self.world.slow.done(&digest, &self.world.upstream);
                }
            }
        }
    }

    async fn part(&self, target: &str, digest: &Digest, from: u64) {
        let got = self.client.send(Ask::get(target).with("range", &format!("bytes={from}-"))).await;
        self.world.answered(u64::from(got.status != 0));
        let whole = truth(&self.world.upstream, digest).unwrap_or_default();
        let right = whole.get(from as usize..).map(sha256);
        // Upstream never lies about these.
        if got.status == 206 && got.cut.is_none() && Some(got.digest) != right {
            self.world.model.wrong(format!("{target} from {from}: other bytes: {}", got.summary()));
        }
    }
}

/// The bytes of a blob that upstream has, in whatever repository.
pub fn truth(upstream: &Upstream, digest: &Digest) -> Option<bytes::Bytes> {
    upstream.registry(|registry| registry.repos.values().find_map(|repo| repo.blobs.get(digest).cloned()))
}

/// What unfinished downloads have left where no daemon runs: each map says what is true.
pub fn check_maps(site: &Site, report: &mut Report, case: &str) -> Vec<Partial> {
    let world = &site.world;
    let left = partials(&site.root);
    report.count("maps_left", left.len() as u64);
    for partial in &left {
        let Partial { digest, present, .. } = partial;
        if world.may_be_a_lie(&digest.to_string()) {
            continue;
        }
        let bytes: u64 = present.iter().map(|(from, to)| to - from).sum();
        report.count("bytes_in_maps", bytes);
        match truth(&world.upstream, digest) {
            Some(blob) if partial.is_true(&blob) => {}
            Some(_) => report.violation(case, &format!("a map says what is not there: {partial:?}")),
            // Long since got whole, past a store that had no room for it.
            None => report.count("maps_of_what_upstream_forgot", 1),
        }
    }
    left
}

/// Some downloads that were left are got whole, and right. Returns of which something was asked for again that was there, which
/// is as it should be only where it had to make room.
pub async fn go_on(load: &Load, left: &[Partial], rng: &mut Rng, report: &mut Report) -> Vec<String> {
    let (world, mut again) = (&load.world, Vec::new());
    for partial in left {
        let (target, digest) = (format!("/v2/{REPO}/blobs/{}", partial.digest), &partial.digest);
        let blob = world.upstream.registry(|registry| registry.repos.get(REPO)?.blobs.get(digest).cloned());
        let Some(blob) = blob.filter(|_| rng.bool()) else { continue };
        let known = world.upstream.requests("GET", &target).len();
        if load.blob(REPO, digest, rng).await {
            world.slow.done(digest, &world.upstream);
            report.count("downloads_gone_on_with", 1);
        }
        // Of one that has all bytes the last block is asked for, to see whether upstream still gives it.
        if partial.has(&[(0, blob.len() as u64)]) {
            continue;
        }
        let asked = world.upstream.requests("GET", &target);
        let is_there =
            |part: &Range<u64>| partial.present.iter().any(|(from, to)| part.start < *to && *from < part.end);
        let parts = asked.iter().skip(known).map(|entry| part(&entry.request));
        again.extend(
            parts
                .filter(is_there)
                .map(|part| format!("asked for again although it was there: {part:?} of {partial:?}")),
        );
    }
    again
}

/// How many downloads a daemon has gone on with, as its log says.
pub fn taken_up(log: &[serde_json::Value]) -> u64 {
    log.iter().filter(|event| event["message"] == TAKEN_UP).count() as u64
}
