//! A disk that cannot be read, for now or for good, destroys nothing: what is there stays until a right copy takes its
//! place.

use std::sync::atomic::AtomicBool;

use parking_lot::Mutex;
use rustix::io::Errno;
use tokio::time::sleep;

use super::images::{Images, content};
use super::sim::{Fault, Harm, Sim, SimFs};
use super::*;
use crate::config::{Config, Pin, Scrub};
use crate::store::order::Short;
use crate::store::record::{Found, Records};
use crate::store::rehash::IN_A_ROW;

const HOUR: Duration = Duration::from_hours(1);

/// A store over a file system whose reads can be made to fail.
fn over_sim(capacity: u64) -> (Fixture, Arc<Sim>) {
    let root = tempfile::tempdir().unwrap();
    let sim = Sim::new(root.path());
    let options = options(root.path(), capacity);
    (opened(root, &sim, options), sim)
}

fn opened(root: tempfile::TempDir, sim: &Arc<Sim>, options: StoreOptions) -> Fixture {
    let metrics = Metrics::new().unwrap();
    let disk = Arc::new(Disk::over(Box::new(SimFs(sim.clone())), root.path().canonicalize().unwrap()));
    let store = Store::open_on(disk, options, metrics.clone(), |_| Box::new(InMemory)).unwrap();
    Fixture { root, metrics, store }
}

fn blobs() -> PathBuf {
    PathBuf::from("blobs")
}

impl Fixture {
    async fn put_many(&self, count: u8) -> Vec<Digest> {
        let mut digests = Vec::new();
        for n in 0..count {
            digests.push(put(&self.store, &content(n, 1000)).await);
        }
        digests
    }

    /// Every blob is in its place, and nothing is in quarantine.
    fn assert_all_there(&self, digests: &[Digest]) {
        for digest in digests {
            assert!(self.path(digest).exists(), "{digest} was moved or removed");
        }
        let quarantine = std::fs::read_dir(self.root.path().join("quarantine")).unwrap().count();
        assert_eq!((quarantine, self.metrics.corrupt_blobs.get()), (0, 0), "nobody knows that anything is wrong");
    }
}

/// Waits for what comes in time. Time that is paused goes on while the index's thread, which is none of the runtime's, is at work,
/// so how much of it passes depends on the machine.
async fn until(what: impl Fn() -> bool) {
    for _ in 0..100_000 {
        if what() {
            return;
        }
        sleep(Duration::from_secs(1)).await;
    }
    panic!("it never comes");
}

async fn trust(store: &Store, digest: &Digest) -> Trust {
    store.blob(digest).await.unwrap().unwrap().trust
}

#[tokio::test]
async fn a_disk_that_cannot_be_read_for_a_while_destroys_nothing() {
    let (fixture, sim) = over_sim(1 << 30);
    let digests = fixture.put_many(20).await;
    sim.spoil([blobs().join("sha256").join(digests[0].hex())].into_iter().chain(digests[1..].iter().map(layout::blob)));
    let found = fixture.store.verify(None, None, true).await.unwrap();
    assert!(found.wrong.is_empty() && !found.is_clean() && !found.repaired, "{found:?}");
    assert_eq!(found.blobs, u64::from(IN_A_ROW), "it is given up before it has gone through all: {found:?}");
    assert_eq!(found.unreadable.len(), IN_A_ROW as usize + 1, "each, and that it was given up: {found:?}");
    assert!(found.unreadable[0].error.contains("Input/output error"), "{found:?}");
    fixture.assert_all_there(&digests);
    sim.spoil([]);
    assert!(fixture.store.verify(None, None, false).await.unwrap().is_clean());
    for digest in &digests {
        assert_eq!(trust(&fixture.store, digest).await, Trust::Verified);
    }
}

#[tokio::test]
async fn a_bad_sector_is_told_and_a_right_copy_takes_its_place() {
    let (fixture, sim) = over_sim(1 << 30);
    let digests = fixture.put_many(5).await;
    let bad = digests[2];
    sim.spoil([layout::blob(&bad)]);
    let store = &fixture.store;
    let found = store.verify(None, None, false).await.unwrap();
    let [unreadable] = &found.unreadable[..] else { panic!("{found:?}") };
    assert_eq!((&unreadable.path, found.blobs), (&layout::blob(&bad), 5));
    fixture.assert_all_there(&digests);
    assert_eq!(trust(store, &bad).await, Trust::Unreadable, "who asks for it has it fetched anew");
    let before = store.blob(&bad).await.unwrap().unwrap();
    assert!(matches!(store.check(&bad, &before, &mut AtOnce).await.unwrap(), Checked::Unreadable(_)));
    drop(before);
    sim.spoil([]);
    put(store, &content(2, 1000)).await;
    assert_eq!(trust(store, &bad).await, Trust::Verified);
    assert_eq!(read(store, &bad).await.unwrap().0, content(2, 1000));
    fixture.assert_all_there(&digests);
    let bytes = std::fs::read_dir(fixture.root.path().join("blobs/sha256")).unwrap().count() * 1000;
    assert_eq!(usize::try_from(fixture.metrics.store_bytes.get()).unwrap(), bytes, "the bad file is off the books");
}

#[tokio::test]
async fn a_file_that_can_be_read_again_is_trusted_again() {
    let (fixture, sim) = over_sim(1 << 30);
    let digests = fixture.put_many(1).await;
    let blob = fixture.store.blob(&digests[0]).await.unwrap().unwrap();
    sim.spoil([blobs()]);
    assert!(matches!(fixture.store.check(&digests[0], &blob, &mut AtOnce).await.unwrap(), Checked::Unreadable(_)));
    sim.spoil([]);
    let blob = fixture.store.blob(&digests[0]).await.unwrap().unwrap();
    assert_eq!(blob.trust, Trust::Unreadable);
    assert_eq!(fixture.store.check(&digests[0], &blob, &mut AtOnce).await.unwrap(), Checked::Right);
    assert_eq!(trust(&fixture.store, &digests[0]).await, Trust::Verified);
}

fn plan(text: &str) -> Scrub {
    Config::from_toml(&format!("[store]\nscrub = {text}")).unwrap().store.scrub.unwrap()
}

async fn scrubs(store: &Store, plan: Scrub, during: impl Future<Output = ()>) {
    let stop = CancellationToken::new();
    let end = async {
        during.await;
        stop.cancel();
    };
    tokio::join!(store.scrub(plan, &stop), end);
}

#[tokio::test(start_paused = true)]
async fn the_scrub_waits_for_a_disk_that_cannot_be_read() {
    let (fixture, sim) = over_sim(1 << 30);
    let digests = fixture.put_many(40).await;
    sim.spoil(digests.iter().map(layout::blob));
    let during = async {
        sleep(Duration::from_mins(9)).await;
        let tried = fixture.metrics.scrubbed_bytes.get();
        assert!((8_000..16_000).contains(&tried), "{IN_A_ROW} at once, and the next ones later: {tried}");
        fixture.assert_all_there(&digests);
        sim.spoil([]);
        sleep(HOUR).await;
        assert!(fixture.metrics.scrub_last_pass.get() > 0, "it has gone on");
    };
    scrubs(&fixture.store, plan("{}"), during).await;
    fixture.assert_all_there(&digests);
}

/// An index that cannot be read while it is told so.
struct Vanishing(Arc<AtomicBool>, Mutex<Arc<MemoryIndex>>);

struct Failing(Arc<AtomicBool>, Arc<MemoryIndex>);

impl Source for Vanishing {
    fn open(&self) -> Result<Box<dyn Index>, IndexError> {
        Ok(Box::new(Failing(self.0.clone(), self.1.lock().clone())))
    }

    fn set_aside(&self) -> std::io::Result<()> {
        *self.1.lock() = Arc::default();
        Ok(())
    }
}

impl Failing {
    fn check(&self) -> Result<(), IndexError> {
        let error = IndexError { action: "be read", source: "told to fail".into() };
        if self.0.load(Ordering::SeqCst) { Err(error) } else { Ok(()) }
    }
}

impl Index for Failing {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, IndexError> {
        self.check()?;
        self.1.get(key)
    }

    fn apply(&self, changes: &index::Changes) -> Result<(), IndexError> {
        self.1.apply(changes)
    }

    fn scan(&self, prefix: &[u8], after: Option<&[u8]>, limit: usize) -> Result<index::Pairs, IndexError> {
        self.check()?;
        self.1.scan(prefix, after, limit)
    }

    fn size_on_disk(&self) -> Result<u64, IndexError> {
        Ok(0)
    }

    fn flush(&self) -> Result<(), IndexError> {
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn a_pass_whose_index_has_vanished_is_not_complete() {
    let failing = Arc::new(AtomicBool::new(false));
    let fixture = fixture(1 << 30).crashed(Vanishing(failing.clone(), Mutex::default())).await;
    let digests = fixture.put_many(100).await;
    fixture.store.0.hints.settle();
    let during = async {
        // Ten seconds each, and the next 64 are asked for when the first ones are done.
        until(|| fixture.metrics.scrubbed_bytes.get() >= 62_000).await;
        failing.store(true, Ordering::SeqCst);
        sleep(HOUR / 2).await;
        assert_eq!(fixture.metrics.scrub_last_pass.get(), 0, "nobody knows what there is");
        let hints = &fixture.store.0.hints;
        while hints.renewals() == 0 {
            assert_eq!(hints.digests_after(None, 1), None);
            hints.settle();
        }
        failing.store(false, Ordering::SeqCst);
        sleep(HOUR).await;
        assert_eq!(fixture.metrics.scrub_last_pass.get(), 0, "not all of it is in the new index");
        fixture.store.recover_once().await.unwrap();
        until(|| fixture.metrics.scrub_last_pass.get() > 0).await;
        let passed = fixture.metrics.scrubbed_bytes.get();
        assert!(passed >= 62_000 + 100_000, "it has begun anew: {passed}");
    };
    scrubs(&fixture.store, plan("{ rate = \"100B/s\" }"), during).await;
    fixture.assert_all_there(&digests);
}

#[tokio::test(start_paused = true)]
async fn what_an_index_did_not_have_yet_is_not_left_out() {
    let failing = Arc::new(AtomicBool::new(false));
    let fixture = fixture(1 << 30).crashed(Vanishing(failing.clone(), Mutex::default())).await;
    fixture.put_many(20).await;
    fixture.store.0.hints.settle();
    failing.store(true, Ordering::SeqCst);
    let hints = &fixture.store.0.hints;
    while hints.renewals() == 0 {
        assert_eq!(hints.digests_after(None, 1), None);
        hints.settle();
    }
    failing.store(false, Ordering::SeqCst);
    // The one blob that the new index has comes after all others.
    let last =
        (0..100_000_u32).map(|seed| seed.to_be_bytes().repeat(250)).find(|bytes| sha256(bytes).hex().starts_with("ff"));
    put(&fixture.store, &last.unwrap()).await;
    let during = async {
        until(|| fixture.metrics.scrubbed_bytes.get() == 1_000).await;
        sleep(HOUR).await;
        assert_eq!(fixture.metrics.scrub_last_pass.get(), 0, "not all of it is in the index");
        fixture.store.recover_once().await.unwrap();
        until(|| fixture.metrics.scrub_last_pass.get() > 0).await;
        assert_eq!(fixture.metrics.scrubbed_bytes.get(), 1_000 + 21_000);
    };
    scrubs(&fixture.store, plan("{}"), during).await;
}

/// Also of a daemon that has just started, and of a command without one.
#[tokio::test]
async fn what_is_pinned_is_no_garbage_whatever_became_of_its_link() {
    let images = Images::new().await;
    assert!(images.store().pin(Pin::parse("docker.io/team/tool:1", |_| false).unwrap()).await.unwrap());
    let layer = sha256(&content(8, 40));
    let link = layout::link(&"docker.io".parse().unwrap(), &"team/tool".parse().unwrap(), &layer);
    for (restarts, torn) in [(false, true), (false, false), (true, true), (true, false)] {
        let fixture = images.fixture.crashed(InMemory).await;
        if !restarts {
            fixture.settle_pins().await;
        }
        let path = fixture.root.path().join(&link);
        if torn {
            std::fs::write(&path, "").unwrap();
        } else {
            std::fs::remove_file(&path).unwrap();
        }
        let did = fixture.store.collect_at(wall() + 2 * HOUR, false, None).await.unwrap();
        assert!(fixture.path(&layer).exists(), "restarts {restarts}, torn {torn}: {did:?}");
        assert!(fixture.store.unpin(&Pin::parse("docker.io/team/tool:1", |_| false).unwrap()).await.unwrap());
        fixture.store.collect_at(wall() + 2 * HOUR, false, None).await.unwrap();
        assert!(!fixture.path(&layer).exists(), "and without the pin it is");
    }
}

#[tokio::test]
async fn while_pins_cannot_be_read_nothing_is_collected() {
    let (fixture, sim) = over_sim(1 << 30);
    let stray = put(&fixture.store, &content(1, 100)).await;
    fixture.store.pin(Pin::parse("docker.io/a:1", |_| false).unwrap()).await.unwrap();
    sim.spoil(["refs".into()]);
    fixture.store.unpin(&Pin::parse("docker.io/a:1", |_| false).unwrap()).await.unwrap();
    assert!(fixture.store.collect_at(wall() + 2 * HOUR, false, None).await.is_err());
    assert!(fixture.path(&stray).exists());
}

/// A tag that cannot be read at this moment is not forgotten with another one.
#[tokio::test]
async fn what_cannot_be_read_is_not_forgotten() {
    let (fixture, sim) = over_sim(1 << 30);
    let store = &fixture.store;
    let (up, repo): Names = ("docker.io".parse().unwrap(), "app".parse().unwrap());
    let mut digests = Vec::new();
    for name in ["a", "b"] {
        let digest = put(store, name.as_bytes()).await;
        let record = TagRecord { digest, media_type: "m".into(), size: 1, etag: None };
        store.set_tag(&up, &repo, &name.parse().unwrap(), &record, wall()).await.unwrap();
        store.set_link(&up, &repo, &digest, &link(Via::Anonymous), wall()).await.unwrap();
        digests.push(digest);
    }
    let there = layout::tag(&up, &repo, &"b".parse().unwrap());
    for spoiled in [there.clone(), layout::link(&up, &repo, &digests[1])] {
        sim.spoil([spoiled]);
        store.forget_manifest(&up, &repo, &digests[0]).await.unwrap_err();
        sim.spoil([]);
        let found: Found<TagRecord> = Records::look(&store.0.disk, &there).unwrap();
        assert!(matches!(found, Found::Record(_)), "the other tag is there");
    }
    assert_eq!(store.forget_manifest(&up, &repo, &digests[0]).await.unwrap(), ["a".parse().unwrap()]);
}

/// A pull has published the blob, found its link and relies on it, after the scan looked for the blob.
#[tokio::test]
async fn a_ref_whose_blob_has_come_is_not_broken() {
    let fixture = fixture(1 << 30);
    let (store, inner) = (&fixture.store, &fixture.store.0);
    let (up, repo): Names = ("docker.io".parse().unwrap(), "app".parse().unwrap());
    let digest = put(store, b"content").await;
    let path = layout::link(&up, &repo, &digest);
    store.set_link(&up, &repo, &digest, &link(Via::Anonymous), wall()).await.unwrap();
    let remove = {
        let path = path.clone();
        move |inner: &Arc<Inner>| inner.remove_broken_ref(&digest, &path)
    };
    assert!(!store.blocking(remove.clone()).await.unwrap());
    assert!(inner.disk.metadata(&path).is_ok());
    std::fs::remove_file(fixture.path(&digest)).unwrap();
    assert!(store.blocking(remove).await.unwrap());
    assert!(inner.disk.metadata(&path).is_err());
}

/// There are many more links than tags, and a pin of tags does not need them.
#[tokio::test]
async fn what_is_pinned_is_found_without_the_links() {
    let (fixture, sim) = over_sim(1 << 30);
    let store = &fixture.store;
    let (up, repo): Names = ("docker.io".parse().unwrap(), "app".parse().unwrap());
    let digest = put(store, b"content").await;
    let record = TagRecord { digest, media_type: "m".into(), size: 1, etag: None };
    store.set_tag(&up, &repo, &"a".parse().unwrap(), &record, wall()).await.unwrap();
    store.set_link(&up, &repo, &digest, &link(Via::Anonymous), wall()).await.unwrap();
    sim.spoil(["refs/docker.io/app/_links".into()]);
    store.pin(Pin::parse("docker.io/app:a", |_| false).unwrap()).await.unwrap();
    assert!(store.0.pins.are_settled() && store.0.books.is_pinned(&Short::from(&digest)));
}

/// What must stay is found out at once, and what may go again not more often than each minute.
#[tokio::test(start_paused = true)]
async fn a_pinned_tag_that_moves_again_and_again_costs_a_look_a_minute() {
    let (fixture, sim) = over_sim(1 << 30);
    let store = &fixture.store;
    let (up, repo): Names = ("docker.io".parse().unwrap(), "app".parse().unwrap());
    store.pin(Pin::parse("docker.io/app:a", |_| false).unwrap()).await.unwrap();
    let mut tags = Vec::new();
    for n in 0..10_u8 {
        tags.push(TagRecord { digest: put(store, &[n]).await, media_type: "m".into(), size: 1, etag: None });
    }
    let is_pinned = |n: usize| store.0.books.is_pinned(&Short::from(&tags[n].digest));
    let stop = CancellationToken::new();
    let moves = async {
        sleep(Duration::from_secs(1)).await;
        for record in &tags {
            assert!(store.set_tag(&up, &repo, &"a".parse().unwrap(), record, wall()).await.unwrap());
            sleep(Duration::from_secs(1)).await;
        }
        assert!(is_pinned(9), "at once");
        assert!(is_pinned(5), "not looked at again yet");
        sleep(Duration::from_mins(2)).await;
        assert!(is_pinned(9) && !is_pinned(5) && !is_pinned(8), "what the tag meant before can go");
        // One that cannot be read is not known to be all that is pinned.
        sim.spoil([layout::blob(&tags[3].digest)]);
        assert!(store.set_tag(&up, &repo, &"a".parse().unwrap(), &tags[3], wall()).await.unwrap());
        assert!(!store.0.pins.are_settled() && is_pinned(3));
        sim.spoil([]);
        sleep(Duration::from_secs(30)).await;
        assert!(store.0.pins.are_settled() && is_pinned(3) && !is_pinned(9), "that is looked at soon");
        stop.cancel();
    };
    tokio::join!(store.keep_pins(&stop), moves);
}

/// While old content goes, or waits to go, what was published is synced as ever.
#[tokio::test(start_paused = true)]
async fn the_group_is_synced_while_content_expires() {
    let root = tempfile::tempdir().unwrap();
    let keep = Keep { max_age: Some(HOUR), ..Keep::default() };
    let options = StoreOptions { keep, ..options(root.path(), 1 << 30) };
    let metrics = Metrics::new().unwrap();
    let store = Store::open_with(options, metrics.clone(), |_| Box::new(InMemory)).unwrap();
    let fixture = Fixture { root, metrics, store };
    let store = &fixture.store;
    let old = put(store, &content(1, 3000)).await;
    let stop = CancellationToken::new();
    let during = async {
        sleep(Duration::from_secs(59)).await;
        store.0.books.with_order(|order| order.age_all(7200));
        // Nothing can be removed for now.
        let held = HeldNames::of(store);
        tokio::time::advance(Duration::from_secs(2)).await;
        // Until the removal has begun, and waits.
        let mut turns = 0..10_000_000_u32;
        while store.0.hints.blob(&old, store.0.epoch).is_some() {
            assert!(turns.next().is_some(), "it never expires");
            tokio::task::yield_now().await;
        }
        // A sync that is just due may take it at once: then it is another one that is seen to wait.
        let mut names = 0..1000_u32;
        let path = loop {
            let number = names.next().expect("none was seen to wait");
            let (up, repo): Names = ("docker.io".parse().unwrap(), format!("app{number}").parse().unwrap());
            store.set_access(&up, &repo, Access::Public).await.unwrap();
            let path = layout::access(&up, &repo);
            if store.0.group.waits_for(&path) {
                break path;
            }
        };
        let mut turns = 0..1_000_000_u32;
        while store.0.group.waits_for(&path) {
            assert!(turns.next().is_some(), "the sync waits for the removal");
            tokio::time::advance(Duration::from_secs(1)).await;
            tokio::task::yield_now().await;
        }
        drop(held);
        stop.cancel();
    };
    tokio::join!(store.run(stop.clone()), during);
    assert!(!fixture.path(&old).exists());
}

/// What the kernel could not write it calls written from then on, so a later sync that succeeds says nothing of it.
#[tokio::test]
async fn a_stop_is_not_clean_where_a_sync_of_all_has_failed() {
    for fails in [false, true] {
        let root = tempfile::tempdir().unwrap();
        let sim = Sim::new(root.path());
        let options = StoreOptions { durability: Durability::Fast, ..options(root.path(), 1 << 30) };
        // The first run of a root syncs all there is.
        let Fixture { root, store, .. } = opened(root, &sim, options);
        put(&store, b"content").await;
        let inner = store.0.clone();
        if fails {
            sim.arm(Fault { harm: Harm::Fail(Errno::IO), at: 1, times: 1 }, 0);
        }
        let is_synced = inner.group.run(&inner.disk);
        sim.heal();
        assert_eq!(is_synced, !fails);
        assert!(inner.group.run(&inner.disk), "the next one succeeds");
        store.close().await;
        drop((inner, store));
        let epoch = std::fs::read_to_string(root.path().join("state/epoch")).unwrap();
        assert_eq!(epoch.contains("\"clean\":true"), !fails, "{epoch}");
    }
}

#[tokio::test]
async fn it_is_told_since_when_all_is_on_the_disk() {
    let root = tempfile::tempdir().unwrap();
    let sim = Sim::new(root.path());
    let options = options(root.path(), 1 << 30);
    let Fixture { root: _root, store, metrics, .. } = opened(root, &sim, options);
    let (inner, before) = (&store.0, wall());
    let told = || metrics.store_synced.get();
    inner.sync_published();
    let first = told();
    let at = UNIX_EPOCH + Duration::from_secs_f64(first);
    assert!(at + Duration::from_millis(1) >= before && at <= wall(), "{at:?}");
    let (up, repo): Names = ("docker.io".parse().unwrap(), "app".parse().unwrap());
    store.set_access(&up, &repo, Access::Public).await.unwrap();
    sim.arm(Fault { harm: Harm::Fail(Errno::IO), at: 1, times: 1 }, 0);
    inner.sync_published();
    assert!((told() - first).abs() < f64::EPSILON, "that one has failed");
    sim.heal();
    inner.sync_published();
    assert!(told() > first);
}

#[tokio::test]
async fn what_is_wrong_and_cannot_be_moved_is_not_taken_from_an_open_file() {
    let (fixture, sim) = over_sim(1 << 20);
    let digest = put(&fixture.store, b"content").await;
    let blob = fixture.store.blob(&digest).await.unwrap().unwrap();
    assert_eq!(blob.trust, Trust::Verified);
    assert!(fixture.store.0.open.get(&digest).is_some());
    // It has rotted without a trace, and the file system is read-only by now.
    sim.arm(Fault { harm: Harm::Fail(Errno::ROFS), at: 1, times: u64::MAX }, 0);
    assert!(fixture.store.quarantine(&digest, &blob).await.is_err());
    assert!(fixture.store.0.open.get(&digest).is_none(), "known to be wrong");
    let again = fixture.store.blob(&digest).await.unwrap().unwrap();
    assert_eq!(again.trust, Trust::Unverified, "it is hashed by whoever asks");
}

/// Somebody removes a blob between the look at its open file and the books, and then its name cannot be looked at.
#[tokio::test]
async fn what_was_just_removed_and_cannot_be_opened_does_not_come_back_into_the_books() {
    for errno in [None, Some(Errno::MFILE), Some(Errno::DQUOT)] {
        let (fixture, sim) = over_sim(1 << 20);
        let digest = put(&fixture.store, b"content").await;
        assert!(fixture.store.blob(&digest).await.unwrap().is_some(), "its file stays open");
        std::fs::remove_file(fixture.path(&digest)).unwrap();
        fixture.store.0.books.forget(&Short::from(&digest));
        if let Some(errno) = errno {
            sim.arm(Fault { harm: Harm::Fail(errno), at: 1, times: u64::MAX }, 0);
        }
        let found = fixture.store.blob(&digest).await;
        assert!(found.as_ref().map_or(errno.is_some(), Option::is_none), "{errno:?}: {found:?}");
        assert_eq!((sim.heal() > 0, fixture.store.0.books.used_bytes()), (errno.is_some(), 0), "{errno:?}");
    }
}
