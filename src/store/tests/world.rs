//! A store on a file system that fails, and what may be found in it: what was promised, and what else is possible.
//!
//! An operation first widens what may be found by all that it could do, and when it has ended narrows it to what is
//! there. What is there after the process died is compared with that; after a power cut with what may be on the disk,
//! which is narrowed only by what says that it waits for the disk, and by the sync that runs each second.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::OnceLock;

use tokio::runtime::Runtime;

mod partials;

pub(in crate::store) use partials::PARTS;

use partials::{LEAST, LONG};

use super::evict::manifest;
use super::one_cpu::OneCpu;
use super::sim::{Order, Sim, SimFs, fast_directory};
use super::*;
use crate::clock::twin::wall;
use crate::config::{ImagePattern, Pin};
use crate::store::stamp::{Epoch, Stamp};

/// Contents: layers, and from [`IMAGES`] on manifests of two of them.
pub(in crate::store) const CONTENTS: usize = 7;
/// The first that is a manifest.
pub(in crate::store) const IMAGES: usize = 4;
/// Fills write so many bytes at a time.
const CHUNK: usize = 30_000;
/// Tags.
pub(in crate::store) const TAGS: usize = 3;
/// One that nothing but [`World::works`] sets.
const WORKS: usize = TAGS - 1;

/// What is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::store) enum Op {
    /// A fill of content, with or without its length announced.
    Publish(usize, bool),
    /// A fill that brings other content than was asked for.
    Wrong(usize),
    /// A fill that is given up half way.
    Abandon(usize),
    /// One that goes on with what is left of another, writes one of the sets of [`PARTS`], and is given up.
    Leave(usize, usize),
    /// The same, to the end.
    GoOn(usize),
    /// A push: the content comes without a digest.
    Spool(usize),
    /// What upstream has served in the repository.
    Link(usize),
    Unlink(usize),
    Tag(usize, usize),
    Untag(usize),
    /// A write upstream begins, ends with an unknown outcome, ends without having changed anything.
    Suspect(usize),
    End(usize),
    Withdraw(usize),
    /// A manifest was deleted upstream.
    ForgetManifest(usize),
    ForgetRepository,
    Access(bool),
    Key,
    Pin(usize),
    Unpin(usize),
    /// So many kilobytes must go.
    Evict(u64),
    Remove(usize),
    Collect,
    Verify,
    Read(usize),
    /// A bit of the file flips.
    Damage(usize),
    /// What runs each second.
    Tick,
    /// The scan after a start.
    Scan,
    /// The process is stopped, and started again.
    Restart,
    Crash(Crash),
    LoseIndex,
}

/// How the process ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::store) enum Crash {
    /// It is killed.
    Kill,
    /// The power is cut, with this seed for what is left.
    Cut(Order, u64),
}

/// What may be found of one thing.
#[derive(Debug, Clone)]
struct Claim<T> {
    /// In the files.
    now: BTreeSet<T>,
    /// On the disk.
    disk: BTreeSet<T>,
}

/// What is there, read from the files.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Value {
    Nothing,
    There,
    /// A record's content, as a number.
    Is(usize),
    /// These bytes of an unfinished download, as its map says.
    Left(Vec<(u64, u64)>),
    /// What is no record.
    Torn,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Thing {
    Blob(usize),
    Link(usize),
    Tag(usize),
    Mark(usize),
    Access,
    Key,
    Pin(usize),
    /// What can be gone on with of the one content that is long enough.
    Partial,
}

/// The store, the file system under it, and the model of both.
pub(in crate::store) struct World {
    root: tempfile::TempDir,
    pub(in crate::store) sim: Arc<Sim>,
    index: Arc<MemoryIndex>,
    runtime: Option<Runtime>,
    store: Option<Store>,
    metrics: Metrics,
    durability: Durability,
    claims: BTreeMap<Thing, Claim<Value>>,
    /// What a tag meant before a write that may have changed it.
    stale: BTreeMap<usize, BTreeSet<usize>>,
    writes: BTreeMap<usize, Suspicion>,
    /// The tag of the write that the last operation has begun.
    began: Option<usize>,
    /// Contents of which a damaged file is, or may come back; until a right one is there.
    damaged: BTreeSet<usize>,
    /// Records as they were read last.
    seen: BTreeMap<Thing, (Vec<u8>, Value)>,
    keys: Vec<[u8; 32]>,
    /// A sync of a file may have failed since: the file goes, with that sync or the next.
    sync_failed: bool,
    /// What was not on the disk when a sync of all failed: no later sync says that it is.
    doubtful: BTreeSet<Thing>,
    /// Something went wrong since what is left of downloads was last known to be known.
    is_doubtful: bool,
    log: Vec<Op>,
    /// Last: what is dropped before still has threads.
    _cpu: Option<OneCpu>,
}

/// The index of all processes.
struct Shared(Arc<MemoryIndex>);

impl Index for Shared {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, IndexError> {
        self.0.get(key)
    }

    fn apply(&self, changes: &index::Changes) -> Result<(), IndexError> {
        self.0.apply(changes)
    }

    fn scan(&self, prefix: &[u8], after: Option<&[u8]>, limit: usize) -> Result<index::Pairs, IndexError> {
        self.0.scan(prefix, after, limit)
    }

    fn size_on_disk(&self) -> Result<u64, IndexError> {
        Ok(0)
    }

    fn flush(&self) -> Result<(), IndexError> {
        Ok(())
    }
}

impl Source for Shared {
    fn open(&self) -> Result<Box<dyn Index>, IndexError> {
        Ok(Box::new(Self(self.0.clone())))
    }

    fn set_aside(&self) -> std::io::Result<()> {
        Ok(())
    }
}

fn up() -> UpstreamName {
    "docker.io".parse().unwrap()
}

fn repo() -> RepoName {
    "library/app".parse().unwrap()
}

fn tag_name(tag: usize) -> Tag {
    format!("T{tag}").parse().unwrap()
}

fn pin_of(tag: usize) -> Pin {
    Pin::parse(&format!("docker.io/library/app:T{tag}"), |_| false).unwrap()
}

/// The contents with their digests, and where things lie: made once.
struct Known {
    contents: Vec<(Vec<u8>, Digest)>,
    paths: BTreeMap<Thing, PathBuf>,
}

fn known() -> &'static Known {
    static KNOWN: OnceLock<Known> = OnceLock::new();
    KNOWN.get_or_init(|| {
        let contents: Vec<_> = contents().into_iter().map(|content| (content.clone(), sha256(&content))).collect();
        let digest = |n: usize| &contents[n].1;
        let paths = things().map(|thing| {
            let path = match thing {
                Thing::Blob(n) => layout::blob(digest(n)),
                Thing::Link(n) => layout::link(&up(), &repo(), digest(n)),
                Thing::Tag(n) => layout::tag(&up(), &repo(), &tag_name(n)),
                Thing::Mark(n) => layout::suspect(&up(), &repo(), &tag_name(n)),
                Thing::Access => layout::access(&up(), &repo()),
                Thing::Key => Path::new(layout::PRIVATE).join("token"),
                Thing::Pin(n) => {
                    let name = Digest::of(Algorithm::Sha256, pin_of(n).to_string().as_bytes()).hex();
                    Path::new(layout::STATE).join("pins").join(name)
                }
                Thing::Partial => layout::map(digest(LONG)),
            };
            (thing, path)
        });
        let paths = paths.collect();
        Known { contents, paths }
    })
}

fn contents() -> Vec<Vec<u8>> {
    // None like its neighbours, so that nothing passes in another's place, and none like what was never written.
    let content = |(seed, len)| {
        let mut random = fastrand::Rng::with_seed(seed);
        std::iter::repeat_with(|| random.u8(1..)).take(len).collect()
    };
    let mut all: Vec<Vec<u8>> = [(1, 200), (2, 3_000), (3, 70_000), (4, 0)].map(content).into();
    for n in IMAGES..CONTENTS {
        let text = manifest(&sha256(&all[n - IMAGES]), &[sha256(&all[1])]);
        all.push(text.into_bytes());
    }
    all
}

// === impl Claim ===

impl Claim<Value> {
    fn only(value: &Value) -> Self {
        Self { now: BTreeSet::from([value.clone()]), disk: BTreeSet::from([value.clone()]) }
    }

    /// It may become this.
    fn widen(&mut self, value: Value) {
        self.now.insert(value.clone());
        self.disk.insert(value);
    }
}

// === impl World ===

impl World {
    pub(in crate::store) fn new(durability: Durability) -> Self {
        let root = fast_directory();
        let sim = Sim::new(root.path());
        let mut world = Self {
            _cpu: OneCpu::take(),
            root,
            sim,
            index: Arc::default(),
            runtime: None,
            store: None,
            metrics: Metrics::new().unwrap(),
            durability,
            claims: BTreeMap::new(),
            stale: BTreeMap::new(),
            writes: BTreeMap::new(),
            began: None,
            damaged: BTreeSet::new(),
            seen: BTreeMap::new(),
            keys: Vec::new(),
            sync_failed: false,
            doubtful: BTreeSet::new(),
            is_doubtful: false,
            log: Vec::new(),
        };
        world.open().unwrap();
        for thing in things() {
            world.claims.insert(thing, Claim::only(&Value::Nothing));
        }
        world
    }

    fn open(&mut self) -> Result<(), StoreError> {
        let mut options = options(self.root.path(), 1 << 30);
        options.durability = self.durability;
        self.metrics = Metrics::new().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().max_blocking_threads(1).build();
        self.runtime = Some(runtime.unwrap());
        let path = self.root.path().canonicalize().unwrap();
        let disk = Arc::new(Disk::over(Box::new(SimFs(self.sim.clone())), path));
        let source = Shared(self.index.clone());
        let store = Store::open_on(disk, options, self.metrics.clone(), |_| Box::new(source))?;
        store.0.partials.set_least(LEAST);
        self.store = Some(store);
        let settle = |inner: &Arc<Inner>| {
            // As the upkeep does, which tries again.
            drop(inner.settle_pins().or_else(|_| inner.settle_pins()));
            Ok(())
        };
        self.block(async |store| store.blocking(settle).await)
    }

    fn block<T>(&self, work: impl AsyncFnOnce(&Store) -> T) -> T {
        let store = self.store.as_ref().expect("the store is open");
        self.runtime.as_ref().unwrap().block_on(async {
            let done = work(store).await;
            // What is dropped is removed on the blocking pool, which has one thread.
            tokio::task::spawn_blocking(|| ()).await.unwrap();
            done
        })
    }

    /// Ends the process, as far as there is one.
    fn drop_store(&mut self) {
        self.writes.clear();
        if self.store.is_some() && self.runtime.is_some() {
            self.block(async |_| ());
        }
        self.store = None;
        self.runtime = None;
    }

    fn digest(content: usize) -> Digest {
        known().contents[content].1
    }

    fn path(thing: Thing) -> &'static Path {
        &known().paths[&thing]
    }

    /// What is there, by the files alone.
    fn look(&mut self, thing: Thing) -> Value {
        if thing == Thing::Partial {
            return self.left();
        }
        let Ok(bytes) = std::fs::read(self.root.path().join(Self::path(thing))) else { return Value::Nothing };
        if let Thing::Blob(n) = thing {
            let is_right = known().contents[n].0 == bytes;
            if is_right {
                // Whatever was damaged, another has taken its place.
                self.damaged.remove(&n);
            }
            return if is_right || self.damaged.contains(&n) { Value::There } else { Value::Torn };
        }
        if let Some((_, value)) = self.seen.get(&thing).filter(|(seen, _)| *seen == bytes) {
            return value.clone();
        }
        let value = Self::value(thing, &bytes);
        self.seen.insert(thing, (bytes, value.clone()));
        value
    }

    /// What the file of a record says.
    fn value(thing: Thing, bytes: &[u8]) -> Value {
        match thing {
            Thing::Link(n) => record::decode::<Link>(bytes).map_or(Value::Torn, |link| {
                assert_eq!(link, Self::link(n), "a link says what upstream said of this content");
                Value::There
            }),
            Thing::Tag(_) => record::decode::<TagRecord>(bytes).map_or(Value::Torn, |record| {
                let at = (0..CONTENTS).find(|n| Self::digest(*n) == record.digest).expect("a content");
                assert_eq!(record, Self::tag_record(at));
                Value::Is(at)
            }),
            Thing::Access => record::decode::<AccessRecord>(bytes)
                .map_or(Value::Torn, |record| Value::Is(usize::from(record.access == Access::Public))),
            Thing::Key | Thing::Pin(_) if bytes.is_empty() => Value::Torn,
            _ => Value::There,
        }
    }

    fn link(content: usize) -> Link {
        let size = known().contents[content].0.len() as u64;
        let link = Link::blob(Via::Anonymous, size);
        if content < IMAGES { link } else { Link { kind: LinkKind::Manifest, media_type: Some("m".into()), ..link } }
    }

    fn tag_record(content: usize) -> TagRecord {
        let size = known().contents[content].0.len() as u64;
        TagRecord { digest: Self::digest(content), media_type: "m".into(), size, etag: None }
    }

    fn widen(&mut self, thing: Thing, value: Value) {
        self.claims.get_mut(&thing).unwrap().widen(value);
    }

    /// Anything may be removed.
    fn widen_by_removal(&mut self) {
        for thing in things() {
            if matches!(thing, Thing::Blob(_) | Thing::Link(_) | Thing::Tag(_)) {
                self.widen(thing, Value::Nothing);
            }
        }
    }

    /// It waits for the disk: if it says that it has succeeded, that is on the disk.
    fn durable(&mut self, thing: Thing) {
        if self.doubtful.contains(&thing) {
            return;
        }
        let now = self.look(thing);
        if (thing, &now) == (Thing::Partial, &Value::Nothing) {
            // Its removal is not waited for: what comes back is right, and can be gone on with.
            return;
        }
        self.claims.get_mut(&thing).unwrap().disk = BTreeSet::from([now]);
    }

    /// What is there must be possible; then it is what is known.
    fn narrow(&mut self, when: &str) {
        for thing in things() {
            let found = self.look(thing);
            let claim = self.claims.get_mut(&thing).unwrap();
            assert!(
                claim.now.contains(&found),
                "{when}: {thing:?} is {found:?}, possible is {:?}\n{:?}",
                claim.now,
                self.log
            );
            claim.disk.insert(found.clone());
            claim.now = BTreeSet::from([found]);
        }
    }

    /// Does it. An error is one only if something was to go wrong.
    pub(in crate::store) fn apply(&mut self, op: Op) {
        // A start that failed is tried again by [`World::audit`].
        if self.sim.is_dead() || self.store.is_none() && op != Op::Restart {
            return;
        }
        self.log.push(op);
        let armed_before = self.sim.fired();
        self.began = None;
        self.before(op);
        let outcome = self.act(op);
        let harmed = self.sim.fired() > armed_before;
        if self.sim.take_lost() {
            let claims = self.claims.iter().filter(|(_, claim)| claim.disk.len() > 1);
            self.doubtful.extend(claims.map(|(thing, _)| *thing));
        }
        if self.sim.is_dead() {
            return;
        }
        if let Err(error) = &outcome {
            let is_wrong = matches!((op, error), (Op::Wrong(_), StoreError::DigestMismatch { .. }));
            assert!(harmed || is_wrong, "{op:?}: {error}\n{:?}", self.log);
        }
        self.widen_by_blob(op);
        if harmed {
            self.harm_left(op);
        }
        if matches!(op, Op::Restart | Op::Crash(_)) && outcome.is_err() {
            return;
        }
        self.narrow(&format!("after {op:?}"));
        if outcome.is_ok() && !harmed {
            self.after(op);
        }
    }

    /// What it could do.
    fn before(&mut self, op: Op) {
        match op {
            Op::Publish(n, _) | Op::Spool(n) | Op::GoOn(n) => {
                self.widen(Thing::Blob(n), Value::There);
            }
            Op::Link(n) => self.widen(Thing::Link(n), Value::There),
            Op::Unlink(n) => self.widen(Thing::Link(n), Value::Nothing),
            Op::Tag(t, n) => {
                self.widen(Thing::Tag(t), Value::Is(n));
                self.widen(Thing::Mark(t), Value::Nothing);
                self.stale.entry(t).or_default().remove(&n);
            }
            Op::Untag(t) => {
                self.widen(Thing::Tag(t), Value::Nothing);
                self.widen(Thing::Mark(t), Value::Nothing);
            }
            Op::Suspect(t) => self.widen(Thing::Mark(t), Value::There),
            Op::End(t) => self.widen(Thing::Mark(t), Value::Nothing),
            Op::Withdraw(t) => {
                self.widen(Thing::Mark(t), Value::Nothing);
                self.stale.remove(&t);
            }
            Op::ForgetManifest(_) => {
                for t in 0..TAGS {
                    self.widen(Thing::Tag(t), Value::Nothing);
                }
                for n in IMAGES..CONTENTS {
                    self.widen(Thing::Link(n), Value::Nothing);
                }
            }
            Op::ForgetRepository => {
                for thing in things() {
                    if matches!(thing, Thing::Tag(_) | Thing::Mark(_) | Thing::Link(_) | Thing::Access) {
                        self.widen(thing, Value::Nothing);
                    }
                }
            }
            Op::Access(public) => self.widen(Thing::Access, Value::Is(usize::from(public))),
            Op::Key => self.widen(Thing::Key, Value::There),
            Op::Pin(t) => self.widen(Thing::Pin(t), Value::There),
            Op::Unpin(t) => self.widen(Thing::Pin(t), Value::Nothing),
            Op::Evict(_) | Op::Remove(_) | Op::Collect | Op::Verify => self.widen_by_removal(),
            Op::Read(n) => self.widen(Thing::Blob(n), Value::Nothing),
            _ => {}
        }
        self.widen_left(op);
        // A full disk makes room, and gives up tags that it cannot mark.
        self.widen_by_shortage();
        // What is torn may be found so by anybody and removed.
        for thing in things() {
            if self.claims[&thing].now.contains(&Value::Torn) {
                self.widen(thing, Value::Nothing);
            }
        }
    }

    fn widen_by_shortage(&mut self) {
        if self.sim.is_short_of_space() {
            self.widen_by_removal();
            self.widen(Thing::Partial, Value::Nothing);
        }
        // Whose sync has failed, goes.
        self.sync_failed |= self.sim.may_fail_to_sync();
        if self.sync_failed {
            for thing in things().filter(|thing| matches!(thing, Thing::Link(_) | Thing::Tag(_) | Thing::Access)) {
                if self.claims[&thing].disk.len() > 1 {
                    self.widen(thing, Value::Nothing);
                }
            }
        }
    }

    /// What it has done for good.
    fn after(&mut self, op: Op) {
        self.after_left(op);
        match op {
            Op::Publish(n, _) | Op::Spool(n) | Op::GoOn(n) if self.durability == Durability::Strict => {
                assert_eq!(self.look(Thing::Blob(n)), Value::There, "what was published is there");
                self.durable(Thing::Blob(n));
            }
            Op::Suspect(t) if self.began == Some(t) => {
                assert_eq!(self.look(Thing::Mark(t)), Value::There, "a write is marked before it is forwarded");
                self.durable(Thing::Mark(t));
                let means = self.claims[&Thing::Tag(t)].disk.iter().chain(&self.claims[&Thing::Tag(t)].now);
                let means: BTreeSet<usize> =
                    means.filter_map(|value| if let Value::Is(n) = value { Some(*n) } else { None }).collect();
                self.stale.insert(t, means);
            }
            Op::Key => self.durable(Thing::Key),
            Op::Pin(t) => self.durable(Thing::Pin(t)),
            Op::Unlink(n) => self.durable(Thing::Link(n)),
            Op::ForgetManifest(_) => {
                (0..TAGS).for_each(|t| self.durable(Thing::Tag(t)));
                (IMAGES..CONTENTS).for_each(|n| self.durable(Thing::Link(n)));
            }
            Op::ForgetRepository => {
                for thing in things() {
                    if matches!(thing, Thing::Tag(_) | Thing::Mark(_) | Thing::Link(_) | Thing::Access) {
                        self.durable(thing);
                    }
                }
            }
            Op::Tick => {
                self.sync_failed = false;
                for thing in things() {
                    if self.durability == Durability::Strict || !matches!(thing, Thing::Blob(_)) {
                        self.durable(thing);
                    }
                }
            }
            Op::Restart => {
                things().for_each(|thing| self.durable(thing));
            }
            _ => {}
        }
    }

    #[expect(clippy::too_many_lines, reason = "one arm an operation")]
    fn act(&mut self, op: Op) -> Result<(), StoreError> {
        let now = wall();
        match op {
            Op::Publish(n, announced) => self.write(n, announced, &known().contents[n].0, true),
            Op::Wrong(n) => {
                let wrong = [&known().contents[n].0[..], b"!"].concat();
                self.write(n, false, &wrong, true)
            }
            Op::Abandon(n) => self.write(n, true, &known().contents[n].0, false),
            Op::Leave(n, set) => {
                assert_eq!(n, LONG);
                self.leave(set)
            }
            Op::GoOn(n) => self.go_on(n),
            Op::Spool(n) => {
                let (digest, content) = (Self::digest(n), known().contents[n].0.clone());
                self.block(async |store| {
                    let mut spool = store.spool(None).await?;
                    for chunk in content.chunks(CHUNK) {
                        spool.write(Bytes::copy_from_slice(chunk)).await?;
                    }
                    spool.finish(&digest).await.map(drop)
                })
            }
            Op::Link(n) => {
                let (digest, link) = (Self::digest(n), Self::link(n));
                self.block(async |store| store.set_link(&up(), &repo(), &digest, &link, now).await).map(drop)
            }
            Op::Unlink(n) => {
                let digest = Self::digest(n);
                self.block(async |store| store.forget_blob(&up(), &repo(), &digest).await)
            }
            Op::Tag(t, n) => {
                let record = Self::tag_record(n);
                let set = self.block(async |store| store.set_tag(&up(), &repo(), &tag_name(t), &record, now).await)?;
                // Where a write was under way when the process died, upstream may still take it.
                let is_marked = self.look(Thing::Mark(t)) == Value::There;
                assert!(set || self.writes.contains_key(&t) || is_marked, "nothing is later than this answer");
                Ok(())
            }
            Op::Untag(t) => {
                self.block(async |store| store.remove_tag(&up(), &repo(), &tag_name(t), now).await).map(drop)
            }
            Op::Suspect(t) => {
                if !self.writes.contains_key(&t) {
                    let write = self.block(async |store| store.suspect_tags(&up(), &repo(), &[tag_name(t)]).await)?;
                    self.writes.insert(t, write);
                    self.began = Some(t);
                }
                Ok(())
            }
            Op::End(t) => {
                if let Some(write) = self.writes.remove(&t) {
                    self.block(async |_| write.end());
                }
                Ok(())
            }
            Op::Withdraw(t) => match self.writes.remove(&t) {
                Some(write) => self.block(async |_| write.withdraw().await),
                None => Ok(()),
            },
            Op::ForgetManifest(n) => {
                let digest = Self::digest(n);
                self.block(async |store| store.forget_manifest(&up(), &repo(), &digest).await).map(drop)
            }
            Op::ForgetRepository => self.block(async |store| store.forget_repository(&up(), &repo()).await),
            Op::Access(public) => {
                let access = if public { Access::Public } else { Access::Private };
                self.block(async |store| store.set_access(&up(), &repo(), access).await)
            }
            Op::Key => {
                let key = self.block(async |store| store.private_key("token"))?;
                self.keys.push(key);
                Ok(())
            }
            Op::Pin(t) => self.block(async |store| store.pin(pin_of(t)).await).map(drop),
            Op::Unpin(t) => self.block(async |store| store.unpin(&pin_of(t)).await).map(drop),
            Op::Evict(kilobytes) => {
                let kept = self.pinned();
                self.block(async |store| store.blocking(move |inner| Ok(inner.evict(kilobytes << 10))).await)?;
                for n in kept {
                    assert_eq!(self.look(Thing::Blob(n)), Value::There, "{n} is pinned\n{:?}", self.log);
                }
                Ok(())
            }
            Op::Remove(t) => {
                let pattern: ImagePattern = format!("docker.io/library/app:T{t}").parse().unwrap();
                self.block(async |store| store.remove_images(vec![pattern], false).await).map(drop)
            }
            Op::Collect => {
                let at = now + Duration::from_hours(2);
                self.block(async |store| store.collect_at(at, false, None).await).map(drop)
            }
            Op::Verify => self.block(async |store| store.verify(None, None, true).await).map(drop),
            Op::Read(n) => self.read(n),
            Op::Damage(n) => {
                if self.look(Thing::Blob(n)) == Value::There {
                    self.sim.damage(Self::path(Thing::Blob(n)));
                    self.damaged.insert(n);
                }
                Ok(())
            }
            Op::Tick => self.block(async |store| {
                let work = |inner: &Arc<Inner>| {
                    inner.put_down_start();
                    inner.group.run(&inner.disk);
                    inner.remove_left();
                    inner.remove_stuck_partials();
                    inner.find_partials(false);
                    inner.write_order();
                    Ok(())
                };
                store.blocking(work).await
            }),
            Op::Scan => self.block(async |store| store.recover_once().await),
            Op::Restart => {
                self.writes.clear();
                if self.store.is_some() {
                    self.block(async |store| store.close().await);
                }
                self.drop_store();
                self.open()
            }
            Op::Crash(crash) => {
                self.crash(crash);
                Ok(())
            }
            Op::LoseIndex => {
                self.index = Arc::default();
                self.crash(Crash::Kill);
                Ok(())
            }
        }
    }

    fn write(&mut self, n: usize, announced: bool, content: &[u8], finish: bool) -> Result<(), StoreError> {
        let digest = Self::digest(n);
        let length = announced.then_some(content.len() as u64);
        self.block(async |store| {
            let mut writer = store.create(&digest, length).await?;
            for chunk in content.chunks(CHUNK) {
                writer.write(Bytes::copy_from_slice(chunk)).await?;
            }
            if finish {
                let blob = writer.finish().await?;
                assert_eq!(blob.len, content.len() as u64);
            }
            Ok(())
        })
    }

    /// Reads a blob as a server would: what is not verified is hashed on the way.
    fn read(&mut self, n: usize) -> Result<(), StoreError> {
        let (digest, right) = (Self::digest(n), known().contents[n].0.clone());
        let found = self.block(async |store| {
            let Some(blob) = store.blob(&digest).await? else { return Ok(None) };
            let mut content = vec![0; usize::try_from(blob.len).unwrap()];
            blob.file.read_exact_at(&mut content, 0).unwrap();
            let checked = match blob.trust {
                Trust::Verified => {
                    assert!(content == right, "what is called verified is right: {n}");
                    Checked::Right
                }
                Trust::Unverified | Trust::Unreadable => store.check(&digest, &blob, &mut AtOnce).await?,
            };
            Ok(Some((content == right, checked)))
        })?;
        match found {
            Some((right, checked)) => {
                if self.sim.fired() == 0 {
                    assert_eq!(right, checked == Checked::Right, "{n}");
                }
            }
            None => assert_eq!(self.look(Thing::Blob(n)), Value::Nothing, "{n}"),
        }
        Ok(())
    }

    /// What is stored of the images that pins keep.
    fn pinned(&mut self) -> Vec<usize> {
        let mut kept = BTreeSet::new();
        for t in 0..TAGS {
            if self.look(Thing::Pin(t)) == Value::There
                && let Value::Is(n) = self.look(Thing::Tag(t))
                && n >= IMAGES
                && self.look(Thing::Blob(n)) == Value::There
                && !self.damaged.contains(&n)
            {
                kept.extend([n, n - IMAGES, 1]);
            }
        }
        kept.into_iter().filter(|n| self.look(Thing::Blob(*n)) == Value::There).collect()
    }

    /// The process ends, the next one starts, and all that was promised is looked for.
    pub(in crate::store) fn crash(&mut self, crash: Crash) {
        self.sim.kill();
        self.drop_store();
        if let Crash::Cut(order, seed) = crash {
            let remains = self.sim.cut(order, seed);
            self.index = after_cut(&self.index, &remains.stamps, seed);
            self.root = remains.root;
            self.sim = Sim::new(self.root.path());
            self.doubtful.clear();
            for claim in self.claims.values_mut() {
                claim.now.clone_from(&claim.disk);
            }
        }
        self.sim.heal();
        self.tear();
        self.check_maps(&format!("after {crash:?}"));
        self.narrow_left(crash);
        self.open().unwrap_or_else(|error| panic!("the start is refused: {error}\n{:?}", self.log));
        self.audit(&format!("after {crash:?}"));
        if matches!(crash, Crash::Cut(..)) {
            for claim in self.claims.values_mut() {
                claim.disk.clone_from(&claim.now);
            }
        }
    }

    /// Records that were not synced may be torn, as may blobs in `fast`.
    fn tear(&mut self) {
        for (thing, claim) in &mut self.claims {
            let may_be_torn = match thing {
                Thing::Blob(_) => self.durability == Durability::Fast,
                Thing::Key | Thing::Pin(_) | Thing::Mark(_) | Thing::Partial => false,
                _ => true,
            };
            // One that replaces another is never torn.
            if may_be_torn && claim.now.contains(&Value::Nothing) && claim.now.len() > 1
                || may_be_torn && matches!(thing, Thing::Blob(_)) && claim.now.contains(&Value::There)
            {
                claim.now.insert(Value::Torn);
            }
        }
    }

    /// What must hold whatever happened, once nothing goes wrong any more. Leaves all on the disk.
    pub(in crate::store) fn audit(&mut self, when: &str) {
        self.sim.heal();
        if self.store.is_none() {
            self.open().unwrap_or_else(|error| panic!("{when}: the start is refused: {error}\n{:?}", self.log));
        }
        self.narrow(when);
        self.check_suspicions(when);
        self.check_refs(when);
        self.block(async |store| store.recover_once().await).unwrap();
        self.check_books(when);
        for n in 0..CONTENTS {
            self.widen(Thing::Blob(n), if self.damaged.contains(&n) { Value::Nothing } else { Value::There });
            if self.durability == Durability::Fast {
                self.widen(Thing::Blob(n), Value::Nothing);
            }
            let right = self.look(Thing::Blob(n)) == Value::There && !self.damaged.contains(&n);
            self.read(n).unwrap();
            assert!(!right || self.look(Thing::Blob(n)) == Value::There, "{when}: a right blob stays");
        }
        if let Some(key) = self.keys.last().copied() {
            let found = self.block(async |store| store.private_key("token")).unwrap();
            assert_eq!(found, key, "{when}: a key that was given out is the key\n{:?}", self.log);
        }
        self.narrow(when);
        self.apply(Op::Tick);
        self.check_books(when);
        self.check_strays(when);
    }

    /// What a write may have changed and was not asked again is suspect.
    fn check_suspicions(&mut self, when: &str) {
        for t in 0..TAGS {
            let stale = self.stale.get(&t).cloned().unwrap_or_default();
            let Value::Is(n) = self.look(Thing::Tag(t)) else { continue };
            if stale.contains(&n) {
                let since = self.block(async |store| store.suspected_since(&up(), &repo(), &tag_name(t)).await);
                assert!(
                    since.unwrap().is_some(),
                    "{when}: T{t} means what it meant before a write, and is trusted\n{:?}",
                    self.log
                );
            }
        }
    }

    /// In `strict`, a tag never names what is not there, unless that was removed.
    fn check_refs(&mut self, when: &str) {
        for t in 0..TAGS {
            if let Value::Is(n) = self.look(Thing::Tag(t))
                && self.durability == Durability::Strict
            {
                let blob = self.look(Thing::Blob(n));
                let claim = &self.claims[&Thing::Blob(n)];
                assert!(
                    blob != Value::Nothing || claim.disk.contains(&Value::Nothing),
                    "{when}: T{t} names {n}, which is not there\n{:?}",
                    self.log
                );
            }
        }
    }

    fn check_books(&mut self, when: &str) {
        let mut bytes = 0;
        let mut count = 0;
        for algorithm in Algorithm::ALL {
            for entry in std::fs::read_dir(self.root.path().join(layout::blob_dir(algorithm))).unwrap() {
                bytes += entry.unwrap().metadata().unwrap().len();
                count += 1;
            }
        }
        bytes += self.store.as_ref().unwrap().0.partials.bytes_left();
        let left = self.store.as_ref().unwrap().0.disk.left_bytes().load(Ordering::Relaxed);
        bytes += left;
        if left > 0 {
            // It is shown with the next tick.
            self.store.as_ref().unwrap().0.books.refresh();
        }
        let books = (self.metrics.store_bytes.get().cast_unsigned(), self.metrics.store_blobs.get().cast_unsigned());
        assert_eq!(books, (bytes, count), "{when}: the books equal the files\n{:?}", self.log);
        let used = self.store.as_ref().unwrap().0.books.used_bytes();
        assert_eq!(used, bytes, "{when}: nothing is promised to nobody\n{:?}", self.log);
    }

    fn check_strays(&mut self, when: &str) {
        let known = self.check_maps(when);
        let names = std::fs::read_dir(self.root.path().join("fills")).unwrap();
        let strays: Vec<_> =
            names.map(|entry| entry.unwrap().file_name()).filter(|name| !known.contains(name)).collect();
        assert!(strays.is_empty(), "{when}: {strays:?}\n{:?}", self.log);
        let left = self.store.as_ref().unwrap().0.disk.left_bytes().load(Ordering::Relaxed);
        assert_eq!(left, 0, "{when}: what is gone counts no more\n{:?}", self.log);
        for (name, content) in [("oci-layout", "{\"imageLayoutVersion\":\"1.0.0\"}"), ("VERSION", "1\n")] {
            let found = std::fs::read_to_string(self.root.path().join(name)).unwrap();
            assert_eq!(found, content, "{when}: {name} is whole");
        }
    }

    /// Everything works, without another start.
    pub(in crate::store) fn works(&mut self) {
        self.sim.heal();
        if self.left() != Value::Nothing {
            self.apply(Op::GoOn(LONG));
        }
        for n in [0, 2, IMAGES] {
            self.apply(Op::Publish(n, true));
            self.apply(Op::Link(n));
        }
        self.apply(Op::Tag(WORKS, IMAGES));
        self.apply(Op::Tick);
        assert_eq!(self.look(Thing::Tag(WORKS)), Value::Is(IMAGES), "{:?}", self.log);
        for n in [0, 2, IMAGES] {
            assert_eq!(self.look(Thing::Blob(n)), Value::There);
            self.read(n).unwrap();
        }
        self.check_books("at the end");
    }
}

fn things() -> impl Iterator<Item = Thing> {
    let contents = (0..CONTENTS).flat_map(|n| [Thing::Blob(n), Thing::Link(n)]);
    let tags = (0..TAGS).flat_map(|t| [Thing::Tag(t), Thing::Mark(t), Thing::Pin(t)]);
    contents.chain(tags).chain([Thing::Access, Thing::Key, Thing::Partial])
}

/// An index after a power cut: as it was, with the stamps of the files as they are now, so that nothing but the epoch
/// keeps them from being believed; or gone.
fn after_cut(index: &MemoryIndex, stamps: &[(Stamp, Stamp)], seed: u64) -> Arc<MemoryIndex> {
    let after = MemoryIndex::default();
    if seed.is_multiple_of(4) {
        return Arc::new(after);
    }
    let epoch = Epoch::of_test(0);
    let pairs = index.scan(b"", None, usize::MAX).unwrap();
    let changes = pairs.into_iter().map(|(key, mut value)| {
        if key.first() == Some(&b'b') && value.len() > 16 {
            let translated = stamps.iter().find(|(before, _)| before.encode(epoch)[8..] == value[16..]);
            if let Some((before, now)) = translated {
                let now = Stamp { len: before.len, ..*now };
                value.truncate(16);
                value.extend(&now.encode(epoch)[8..]);
            }
        }
        (key, Some(value))
    });
    after.apply(&changes.collect()).unwrap();
    Arc::new(after)
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // What is still running must not wait for what will never come.
            self.sim.kill();
        }
        self.writes.clear();
    }
}
