//! Eviction, `gc` and `rm` against pulls, pushes and fills, and a tag that moves against its readers, under schedules drawn from seeds: at each call to the file
//! system, each lock that is held over one and each entry in the books, any of the actors may go on.
//!
//! `OCISTERN_SCHEDULES` is the number of schedules for each play (120 by default).

use std::collections::HashSet;
use std::sync::atomic::AtomicUsize;

mod partials;

use super::every_k::say;
use super::evict::manifest;
use super::gate::{self, Gate, Policy};
use super::sim::{Sim, SimFs, fast_directory};
use super::*;
use crate::clock::twin::wall;
use crate::config::{ImagePattern, Pin};

/// What an actor does: its gate, its number, and the store.
type Act = fn(&Stage, &Store, &Actor);

/// What is played: who acts, in a store of which capacity.
#[derive(Clone, Copy)]
struct Play<'p> {
    acts: &'p [Act],
    capacity: u64,
    pinned: bool,
    /// What a fill has left is there, and may be at the end.
    left: bool,
    /// It cannot be found out before that what is left.
    late: bool,
    /// So many times as many schedules: of what is met in few of them.
    times: u64,
}

/// One of those that act at the same time.
struct Actor {
    gate: Arc<Gate>,
    number: usize,
    runtime: tokio::runtime::Runtime,
}

/// What all actors know.
struct Stage {
    layers: [Vec<u8>; 4],
    images: [Vec<u8>; 2],
    /// How often something went the less likely way, to know that it was met.
    met: AtomicUsize,
    /// Which of the images the tag `one` means, as far as whoever wrote it was told.
    acknowledged: AtomicUsize,
    /// Files of fills that were there when a command began that removes them.
    removed: Mutex<HashSet<PathBuf>>,
}

impl Stage {
    fn new() -> Self {
        // None like its neighbours: nothing passes in another's place.
        let layer = |(seed, len)| {
            let mut random = fastrand::Rng::with_seed(seed);
            std::iter::repeat_with(|| random.u8(1..)).take(len).collect()
        };
        let layers: [Vec<u8>; 4] = [(1, 9_000), (2, 7_000), (3, 40_000), (4, 5_000)].map(layer);
        let digests: Vec<Digest> = layers.iter().map(|layer| sha256(layer)).collect();
        let images = [&digests[..2], &digests[2..]].map(|of| manifest(&of[0], &of[1..]).into_bytes());
        let [met, acknowledged] = [0, 0].map(AtomicUsize::new);
        Self { layers, images, met, acknowledged, removed: Mutex::default() }
    }

    fn meet(&self) {
        self.met.fetch_add(1, Ordering::Relaxed);
    }
}

impl Actor {
    /// Runs on this actor's threads. Its own thread does nothing at the same time as its blocking one that others see.
    fn block<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.block_on(async {
            let done = work.await;
            tokio::task::spawn_blocking(|| ()).await.unwrap();
            done
        })
    }

    fn step(&self) {
        self.gate.step(self.number);
    }
}

fn up() -> UpstreamName {
    "docker.io".parse().unwrap()
}

fn repo() -> RepoName {
    "library/app".parse().unwrap()
}

fn link(content: &[u8], kind: LinkKind) -> Link {
    Link { kind, ..Link::blob(Via::Anonymous, content.len() as u64) }
}

async fn publish(store: &Store, content: &[u8]) -> Result<StoredBlob, StoreError> {
    let mut writer = store.create(&sha256(content), Some(content.len() as u64)).await?;
    for chunk in content.chunks(20_000) {
        writer.write(Bytes::copy_from_slice(chunk)).await?;
    }
    writer.finish().await
}

async fn set_tag(store: &Store, tag: &str, image: &[u8]) -> Result<bool, StoreError> {
    let record = TagRecord { digest: sha256(image), media_type: "m".into(), size: image.len() as u64, etag: None };
    store.set_tag(&up(), &repo(), &tag.parse().unwrap(), &record, wall()).await
}

/// Puts an image into the store under a tag, as a pull does.
async fn pull(store: &Store, stage: &Stage, image: usize, tag: &str) -> Result<(), StoreError> {
    let image_bytes = &stage.images[image];
    // Held until the tag is there.
    let held = publish(store, image_bytes).await?;
    let as_manifest = link(image_bytes, LinkKind::Manifest);
    store.set_link(&up(), &repo(), &sha256(image_bytes), &as_manifest, wall()).await?;
    set_tag(store, tag, image_bytes).await?;
    drop(held);
    for layer in &stage.layers[2 * image..][..2] {
        publish(store, layer).await?;
        store.set_link(&up(), &repo(), &sha256(layer), &link(layer, LinkKind::Blob), wall()).await?;
    }
    Ok(())
}

// === what actors do ===

/// Reads everything of the first image that is there, to the end.
fn read_all(stage: &Stage, store: &Store, actor: &Actor) {
    for content in stage.layers[..2].iter().chain(&stage.images[..1]) {
        let Some(blob) = actor.block(store.blob(&sha256(content))).unwrap() else {
            stage.meet();
            continue;
        };
        let mut found = vec![0; content.len()];
        for (n, part) in found.chunks_mut(4_000).enumerate() {
            actor.step();
            blob.file.read_exact_at(part, n as u64 * 4_000).unwrap();
        }
        assert!(found == *content, "a reader that has opened a blob reads it to the end");
        actor.step();
        drop(blob);
    }
}

fn evict(_: &Stage, store: &Store, actor: &Actor) {
    for bytes in [8_000, 1, 30_000] {
        actor.block(store.blocking(move |inner| Ok(inner.evict(bytes)))).unwrap();
    }
}

/// Fills the second image, which is too much for what is there.
fn fill(stage: &Stage, store: &Store, actor: &Actor) {
    for content in stage.layers[2..].iter().chain(&stage.images[1..]) {
        match actor.block(publish(store, content)) {
            Ok(blob) => drop(blob),
            Err(error) if error.is_full() => stage.meet(),
            Err(error) => panic!("{error}"),
        }
    }
}

/// Fills the first image again while it is evicted.
fn refill(stage: &Stage, store: &Store, actor: &Actor) {
    match actor.block(pull(store, stage, 0, "one")) {
        Ok(()) => {}
        Err(error) if error.is_full() => stage.meet(),
        Err(error) => panic!("{error}"),
    }
}

/// Pushes an image: what is acknowledged is there, as nobody removes what is new.
fn push(stage: &Stage, store: &Store, actor: &Actor) {
    let (image, layer) = (&stage.images[1], &stage.layers[3]);
    let tag: Tag = "pushed".parse().unwrap();
    for content in [layer, image] {
        let mut spool = actor.block(store.spool(None)).unwrap();
        actor.block(spool.write(Bytes::copy_from_slice(content))).unwrap();
        let blob = actor.block(spool.finish(&sha256(content))).unwrap();
        let kind = if content == image { LinkKind::Manifest } else { LinkKind::Blob };
        let link = link(content, kind);
        assert!(actor.block(store.set_link(&up(), &repo(), &sha256(content), &link, wall())).unwrap());
        actor.step();
        drop(blob);
    }
    let write = actor.block(store.suspect_tags(&up(), &repo(), std::slice::from_ref(&tag))).unwrap();
    let at = actor.block(async { write.end() }).unwrap();
    let record = TagRecord { digest: sha256(image), media_type: "m".into(), size: image.len() as u64, etag: None };
    assert!(actor.block(store.set_tag(&up(), &repo(), &tag, &record, at)).unwrap(), "the write says what is there");
    for content in [layer, image] {
        let blob = actor.block(store.blob(&sha256(content))).unwrap().expect("what was just acknowledged is there");
        assert_eq!(blob.len, content.len() as u64);
        actor.step();
        drop(blob);
        let link = actor.block(store.link(&up(), &repo(), &sha256(content))).unwrap();
        assert!(link.is_some(), "and so is its proof");
    }
    let found = actor.block(store.tag(&up(), &repo(), &tag)).unwrap();
    assert_eq!(found, Some(record), "and its tag");
}

fn collect(_: &Stage, store: &Store, actor: &Actor) {
    actor.block(store.collect_at(wall(), false, None)).unwrap();
}

fn remove(_: &Stage, store: &Store, actor: &Actor) {
    let pattern: ImagePattern = "docker.io/library/app:one".parse().unwrap();
    actor.block(store.remove_images(vec![pattern], false)).unwrap();
}

fn scan(_: &Stage, store: &Store, actor: &Actor) {
    actor.block(store.recover_once()).unwrap();
}

fn tick(_: &Stage, store: &Store, actor: &Actor) {
    for _ in 0..2 {
        let work = |inner: &Arc<Inner>| {
            inner.group.run(&inner.disk);
            inner.remove_left();
            inner.remove_stuck_partials();
            inner.expire();
            Ok(())
        };
        actor.block(store.blocking(work)).unwrap();
    }
}

fn quarantine(stage: &Stage, store: &Store, actor: &Actor) {
    let digest = sha256(&stage.layers[0]);
    if let Some(blob) = actor.block(store.blob(&digest)).unwrap() {
        actor.block(store.quarantine(&digest, &blob)).unwrap();
        actor.step();
        drop(blob);
    }
}

/// Moves a tag while another write of its repository is on its way, so that it stays suspect, and once more without.
fn move_tag(stage: &Stage, store: &Store, actor: &Actor) {
    let tag: Tag = "one".parse().unwrap();
    let held = actor.block(publish(store, &stage.images[1])).unwrap();
    let other = actor.block(store.suspect_repository(&up(), &repo())).unwrap();
    let write = actor.block(store.suspect_tags(&up(), &repo(), std::slice::from_ref(&tag))).unwrap();
    let at = actor.block(async { write.end() });
    assert!(at.is_none(), "nobody knows which of them upstream took last");
    stage.acknowledged.store(1, Ordering::SeqCst);
    actor.step();
    actor.block(async { other.end() });
    let write = actor.block(store.suspect_tags(&up(), &repo(), std::slice::from_ref(&tag))).unwrap();
    let at = actor.block(async { write.end() }).unwrap();
    let image = &stage.images[1];
    let record = TagRecord { digest: sha256(image), media_type: "m".into(), size: image.len() as u64, etag: None };
    assert!(actor.block(store.set_tag(&up(), &repo(), &tag, &record, at)).unwrap());
    drop(held);
}

/// Asks what is known of it: what was overwritten before is suspect.
fn read_tag(stage: &Stage, store: &Store, actor: &Actor) {
    for _ in 0..4 {
        let least = stage.acknowledged.load(Ordering::SeqCst);
        let found = actor.block(store.tag_state(&up(), &repo(), &"one".parse().unwrap())).unwrap();
        let known = found.record.unwrap().digest;
        let known = stage.images.iter().position(|image| sha256(image) == known).unwrap();
        assert!(known >= least || found.suspect.unwrap(), "{known} is believed after {least} was acknowledged");
        if known < least {
            stage.meet();
        }
        actor.step();
    }
}

/// Reads what a pin keeps.
fn read_pinned(stage: &Stage, store: &Store, actor: &Actor) {
    for content in stage.layers[..2].iter().chain(&stage.images[..1]) {
        let blob = actor.block(store.blob(&sha256(content))).unwrap();
        assert!(blob.is_some(), "what is pinned is no victim");
        actor.step();
        drop(blob);
    }
}

// === plays ===

fn schedules() -> u64 {
    std::env::var("OCISTERN_SCHEDULES").ok().and_then(|text| text.parse().ok()).unwrap_or(120)
}

fn open(sim: &Arc<Sim>, root: &Path, capacity: u64) -> (Store, Metrics) {
    let metrics = Metrics::new().unwrap();
    let disk = Disk::over(Box::new(SimFs(sim.clone())), root.canonicalize().unwrap());
    let store = Store::open_on(Arc::new(disk), options(root, capacity), metrics.clone(), |_| Box::new(InMemory));
    (store.unwrap(), metrics)
}

/// One schedule. Returns a number for it.
fn perform(stage: &Arc<Stage>, play: Play<'_>, seed: u64) -> u64 {
    let Play { acts, capacity, pinned, left, late, .. } = play;
    let root = fast_directory();
    let sim = Sim::new(root.path());
    let (mut store, mut metrics) = open(&sim, root.path(), capacity);
    let own = tokio::runtime::Builder::new_current_thread().enable_time().max_blocking_threads(1).build().unwrap();
    own.block_on(pull(&store, stage, 0, "one")).unwrap();
    if pinned {
        let pin = Pin::parse("docker.io/library/app:one", |_| false).unwrap();
        own.block_on(store.pin(pin)).unwrap();
    }
    if left {
        partials::set_up(&store);
        own.block_on(partials::leave_some(&store, stage)).unwrap();
    }
    if late {
        own.block_on(store.close());
        drop(store);
        sim.spoil([PathBuf::from(layout::FILLS)]);
        (store, metrics) = open(&sim, root.path(), capacity);
        sim.spoil([]);
        partials::set_up(&store);
        own.block_on(store.recover_once()).unwrap();
    }
    stage.acknowledged.store(0, Ordering::SeqCst);
    stage.removed.lock().clear();
    let policy = if seed.is_multiple_of(2) { Policy::Random } else { Policy::Priorities };
    let gate = Gate::new(acts.len(), policy, seed);
    std::thread::scope(|scope| {
        for (number, act) in acts.iter().enumerate() {
            let (gate, store, stage) = (gate.clone(), store.clone(), stage.clone());
            scope.spawn(move || {
                let entered = gate.clone();
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_time()
                    .max_blocking_threads(1)
                    .on_thread_start(move || entered.enter(number))
                    .build()
                    .unwrap();
                let actor = Actor { gate: gate.clone(), number, runtime };
                let end = End(&gate, number);
                actor.step();
                act(&stage, &store, &actor);
                // Before the next may go on: nothing of this one is under way.
                drop(actor);
                drop(end);
            });
        }
    });
    own.block_on(store.recover_once()).unwrap();
    let stays = stage.removed.lock().iter().find(|path| path.exists()).cloned();
    assert_eq!(stays, None, "what was removed is not kept by who had it");
    if left {
        own.block_on(partials::end(&store, stage, root.path(), seed));
    }
    let (mut bytes, mut count) = (0, 0);
    for entry in std::fs::read_dir(root.path().join("blobs/sha256")).unwrap() {
        bytes += entry.unwrap().metadata().unwrap().len();
        count += 1;
    }
    let books = (metrics.store_bytes.get().cast_unsigned(), metrics.store_blobs.get().cast_unsigned());
    assert_eq!(books, (bytes, count), "the books equal the files");
    assert_eq!(store.0.books.used_bytes(), bytes, "no promise is left");
    assert!(bytes <= capacity, "no more is kept than may be");
    assert_eq!(std::fs::read_dir(root.path().join("fills")).unwrap().count(), 0, "no stray file");
    // What is removed by hand or set aside goes under whoever is about to tag it; the next pull fetches it.
    let by_hand = [quarantine as Act, remove as Act];
    check_tags(root.path(), acts.iter().any(|act| by_hand.iter().any(|by_hand| std::ptr::fn_addr_eq(*act, *by_hand))));
    gate.trace().1
}

/// Ends an actor, also when it fails: the others must not wait for it.
struct End<'g>(&'g Gate, usize);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.done(self.1);
    }
}

/// No tag names what is not there.
fn check_tags(root: &Path, may_be_broken: bool) {
    let Ok(tags) = std::fs::read_dir(root.join("refs/docker.io/library/app/_tags")) else { return };
    for tag in tags {
        let bytes = std::fs::read(tag.unwrap().path()).unwrap();
        let record: TagRecord = record::decode(&bytes).unwrap();
        let there = root.join(layout::blob(&record.digest)).exists();
        assert!(there || may_be_broken, "a tag leads to a manifest that is there");
    }
}

/// Performs it under many schedules. Returns how many were different ones.
fn explore(acts: &[Act], capacity: u64, pinned: bool) {
    play(Play { acts, capacity, pinned, left: false, late: false, times: 1 });
}

fn play(play: Play<'_>) {
    let stage = Arc::new(Stage::new());
    let mut different = HashSet::new();
    let schedules = schedules() * play.times;
    for seed in 0..schedules {
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| perform(&stage, play, seed)));
        assert!(outcome.is_ok(), "what is said above is of schedule {seed}");
        different.extend(outcome.ok());
    }
    let met = stage.met.load(Ordering::Relaxed);
    say(&format!("{schedules} schedules, {} different, {met} times without", different.len()));
    assert!(different.len() as u64 * 2 > schedules, "the schedules differ: {}", different.len());
}

/// Room for the first image and a little.
const TIGHT: u64 = 45_000;
/// Room for everything.
const AMPLE: u64 = 1 << 20;

#[test]
fn a_tag_that_moves_and_readers() {
    explore(&[read_tag, move_tag, read_tag], AMPLE, false);
}

#[test]
fn a_reader_and_evictions() {
    explore(&[read_all, evict, read_all], AMPLE, false);
}

#[test]
fn fills_that_evict_and_readers() {
    explore(&[fill, read_all, tick], TIGHT, false);
}

#[test]
fn a_fill_of_what_is_being_evicted() {
    explore(&[refill, evict, read_all], AMPLE, false);
}

#[test]
fn two_fills_of_the_same() {
    explore(&[refill, refill, fill], TIGHT, false);
}

#[test]
fn a_push_and_evictions() {
    explore(&[push, evict, tick], AMPLE, false);
}

#[test]
fn a_push_and_gc_and_rm() {
    explore(&[push, collect, remove], AMPLE, false);
}

#[test]
fn rm_and_a_fill_and_a_reader() {
    explore(&[remove, refill, read_all], AMPLE, false);
}

#[test]
fn a_scan_and_everything_else() {
    explore(&[scan, refill, evict, quarantine], AMPLE, false);
}

#[test]
fn what_is_pinned_stays() {
    explore(&[read_pinned, evict, fill, collect], AMPLE, true);
    explore(&[read_pinned, fill], TIGHT, true);
}
