//! The store as a whole: writing, reading, crashing, evicting, and refs against a model.

use std::collections::HashMap;
use std::os::unix::fs::FileExt;
use std::time::SystemTime;

use bytes::Bytes;
use proptest::prelude::*;

use super::check::Check;
use super::index::{Index, IndexError, MemoryIndex};
use super::*;
use crate::clock::twin::{system, wall};
use crate::oci::{Algorithm, Digest, RepoName, Tag, Via};

mod clocks;
mod doomed;
mod every_k;
mod evict;
mod forget;
pub(super) mod gate;
mod heal;
mod images;
mod keys;
mod leftovers;
mod marks;
mod model;
mod one_cpu;
mod open_files;
mod partial;
mod pins;
mod removal;
mod room;
mod schedules;
mod scrub;
mod sim;
mod single;
mod spool;
mod truth;
mod upkeep;
mod world;

/// An index in memory, so that tests of everything else are fast and show nothing of sled.
struct InMemory;

impl Source for InMemory {
    fn open(&self) -> Result<Box<dyn Index>, IndexError> {
        Ok(Box::new(MemoryIndex::default()))
    }

    fn set_aside(&self) -> std::io::Result<()> {
        Ok(())
    }
}

/// A disk on which nothing can be removed until this is dropped: another thread holds the lock for it.
struct HeldNames {
    unlock: Option<std::sync::mpsc::Sender<()>>,
    holder: Option<std::thread::JoinHandle<()>>,
}

impl HeldNames {
    fn of(store: &Store) -> Self {
        let (tell, locked) = std::sync::mpsc::channel();
        let (unlock, wait) = std::sync::mpsc::channel();
        let inner = store.0.clone();
        let holder = std::thread::spawn(move || {
            let _names = inner.names.lock();
            tell.send(()).unwrap();
            let _ = wait.recv();
        });
        locked.recv().unwrap();
        Self { unlock: Some(unlock), holder: Some(holder) }
    }
}

impl Drop for HeldNames {
    fn drop(&mut self) {
        drop(self.unlock.take());
        let ended = self.holder.take().map(std::thread::JoinHandle::join);
        assert!(std::thread::panicking() || matches!(ended, Some(Ok(()))), "the holder panicked");
    }
}

struct Fixture {
    root: tempfile::TempDir,
    metrics: Metrics,
    store: Store,
}

fn options(root: &Path, capacity: u64) -> StoreOptions {
    StoreOptions {
        root: root.to_owned(),
        capacity: Capacity::Bytes(capacity),
        durability: Durability::Strict,
        keep: Keep::default(),
        origins: vec![("docker.io".parse().unwrap(), "https://registry-1.docker.io".into())],
        clock: system(),
    }
}

fn fixture(capacity: u64) -> Fixture {
    fixture_by(system(), capacity)
}

fn fixture_by(clock: Arc<dyn Clock>, capacity: u64) -> Fixture {
    let root = tempfile::tempdir().unwrap();
    let metrics = Metrics::new().unwrap();
    let options = StoreOptions { clock, ..options(root.path(), capacity) };
    let store = Store::open_with(options, metrics.clone(), |_| Box::new(InMemory)).unwrap();
    Fixture { root, metrics, store }
}

fn sha256(content: &[u8]) -> Digest {
    Digest::of(Algorithm::Sha256, content)
}

async fn put(store: &Store, content: &[u8]) -> Digest {
    let digest = sha256(content);
    let mut writer = store.create(&digest, Some(content.len() as u64)).await.unwrap();
    for chunk in content.chunks(7_000) {
        writer.write(Bytes::copy_from_slice(chunk)).await.unwrap();
    }
    writer.finish().await.unwrap();
    digest
}

async fn read(store: &Store, digest: &Digest) -> Option<(Vec<u8>, Trust)> {
    let blob = store.blob(digest).await.unwrap()?;
    let mut content = vec![0; usize::try_from(blob.len).unwrap()];
    blob.file.read_exact_at(&mut content, 0).unwrap();
    Some((content, blob.trust))
}

impl Fixture {
    fn path(&self, digest: &Digest) -> PathBuf {
        self.root.path().join(layout::blob(digest))
    }

    /// Names in `fills/`, after all jobs have ended.
    async fn strays(&self) -> usize {
        self.store.0.jobs.close();
        self.store.0.jobs.wait().await;
        self.store.0.jobs.reopen();
        std::fs::read_dir(self.root.path().join("fills")).unwrap().count()
    }

    /// A store on what is on the disk at this moment, as it would be after kill -9, whatever this one still holds.
    async fn crashed(&self, index: impl Source + 'static) -> Self {
        self.strays().await;
        let root = tempfile::tempdir().unwrap();
        copy(self.root.path(), root.path());
        let metrics = Metrics::new().unwrap();
        let store = Store::open_with(options(root.path(), 1 << 30), metrics.clone(), |_| Box::new(index)).unwrap();
        Self { root, metrics, store }
    }

    /// Ends as a crash would (nothing is closed) or cleanly, and opens again with sled.
    async fn restart(self, clean: bool, sled: bool) -> Self {
        let Self { root, store, .. } = self;
        if clean {
            store.close().await;
        }
        drop(store);
        let metrics = Metrics::new().unwrap();
        let options = options(root.path(), 1 << 30);
        let store = if sled {
            Store::open(options, metrics.clone()).unwrap()
        } else {
            Store::open_with(options, metrics.clone(), |_| Box::new(InMemory)).unwrap()
        };
        Self { root, metrics, store }
    }
}

fn copy(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            std::fs::create_dir_all(&to).unwrap();
            copy(&entry.path(), &to);
        } else {
            std::fs::copy(entry.path(), to).unwrap();
        }
    }
}

// === writing ===

#[tokio::test]
async fn what_is_written_is_read_back_verified() {
    let fixture = fixture(1 << 30);
    for content in [&b""[..], b"x", &vec![7; 3_000_000]] {
        for algorithm in Algorithm::ALL {
            let digest = Digest::of(algorithm, content);
            assert!(fixture.store.blob(&digest).await.unwrap().is_none());
            let mut writer = fixture.store.create(&digest, None).await.unwrap();
            for chunk in content.chunks(100_000) {
                writer.write(Bytes::copy_from_slice(chunk)).await.unwrap();
            }
            let blob = writer.finish().await.unwrap();
            assert_eq!((blob.len, blob.trust), (content.len() as u64, Trust::Verified));
            let (found, trust) = read(&fixture.store, &digest).await.unwrap();
            assert!(found == content && std::fs::read(fixture.path(&digest)).unwrap() == content);
            assert_eq!(trust, Trust::Verified);
        }
    }
    assert_eq!(fixture.strays().await, 0);
    assert_eq!((fixture.metrics.store_bytes.get(), fixture.metrics.store_blobs.get()), (2 * 3_000_001, 6));
}

/// By the job that writes, as where processors are few, or by another one; from memory, or read back where it comes out of
/// order.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_hashes_it_what_is_written_is_verified() {
    let content: Vec<u8> = (0..=250).cycle().take(5 << 20).collect();
    let digest = sha256(&content);
    for (writer_hashes, wrong) in [(true, false), (false, false), (true, true), (false, true)] {
        for size in [4 << 10, 100_000, 3 << 20] {
            let fixture = fixture(1 << 30);
            fixture.store.0.writer_hashes.store(writer_hashes, Ordering::Relaxed);
            let mut writer = fixture.store.create(&digest, Some(content.len() as u64)).await.unwrap();
            let mut chunks: Vec<_> = content.chunks(size).enumerate().collect();
            let third = chunks.len() / 3;
            chunks.rotate_left(third);
            for (number, chunk) in chunks {
                let mut chunk = chunk.to_vec();
                if wrong && number == third {
                    chunk[17] ^= 1;
                }
                writer.write_at((number * size) as u64, chunk.into()).await.unwrap();
            }
            let verified = writer.verify().await;
            assert_eq!(verified.is_err(), wrong, "{writer_hashes} {size}: {verified:?}");
            if !wrong {
                writer.finish().await.unwrap();
                assert!(read(&fixture.store, &digest).await.unwrap().0 == content, "{writer_hashes} {size}");
            }
        }
    }
}

#[tokio::test]
async fn readers_see_the_file_grow() {
    let fixture = fixture(1 << 30);
    let content = vec![1_u8; 5 << 20];
    let mut writer = fixture.store.create(&sha256(&content), Some(content.len() as u64)).await.unwrap();
    let file = writer.file();
    let (sender, mut progress) = tokio::sync::watch::channel(0);
    writer.follow(move |pieces| {
        sender.send_modify(|upto| {
            for range in pieces.iter().map(Placed::range) {
                assert_eq!(*upto, range.start, "each byte is told once, in order");
                *upto = range.end;
            }
        });
    });
    let reader = async {
        let mut at = 0;
        while at < content.len() as u64 {
            progress.changed().await.unwrap();
            let upto = *progress.borrow_and_update();
            let mut part = vec![0; usize::try_from(upto - at).unwrap()];
            file.read_exact_at(&mut part, at).unwrap();
            assert!(part.iter().all(|b| *b == 1), "what is announced is in the file");
            at = upto;
        }
    };
    let write = async {
        for chunk in content.chunks(16 << 10) {
            writer.write(Bytes::copy_from_slice(chunk)).await.unwrap();
        }
        assert_eq!(writer.verify().await.unwrap(), content.len() as u64);
    };
    tokio::join!(reader, write);
    assert!(fixture.store.blob(&sha256(&content)).await.unwrap().is_none(), "not published before finish");
    assert!(progress.has_changed().is_ok(), "who writes is there while the writer lives");
    writer.finish().await.unwrap();
    fixture.strays().await;
    assert!(progress.has_changed().is_err(), "and gone after");
}

#[tokio::test]
async fn wrong_content_leaves_nothing() {
    let fixture = fixture(1 << 30);
    let digest = sha256(b"right");
    let mut writer = fixture.store.create(&digest, Some(5)).await.unwrap();
    writer.write(Bytes::from_static(b"wrong")).await.unwrap();
    match writer.finish().await.unwrap_err() {
        StoreError::DigestMismatch { expected, actual } => assert_eq!((*expected, *actual), (digest, sha256(b"wrong"))),
        other => panic!("{other}"),
    }
    let mut short = fixture.store.create(&digest, Some(5)).await.unwrap();
    short.write(Bytes::from_static(b"righ")).await.unwrap();
    let error = short.finish().await.unwrap_err();
    assert!(matches!(error, StoreError::LengthMismatch { expected: 5, actual: 4 }), "{error}");
    let mut long = fixture.store.create(&digest, Some(5)).await.unwrap();
    long.write(Bytes::from_static(b"righ")).await.unwrap();
    let error = long.write(Bytes::from_static(b"t!")).await.unwrap_err();
    assert!(matches!(error, StoreError::LengthMismatch { expected: 5, actual: 6 }), "{error}");
    drop(long);
    assert_eq!(fixture.strays().await, 0);
    assert!(fixture.store.blob(&digest).await.unwrap().is_none());
    assert_eq!(fixture.metrics.store_bytes.get(), 0, "nothing stays promised");
}

#[tokio::test]
async fn an_abandoned_fill_takes_only_its_own_file_with_it() {
    let fixture = fixture(1 << 30);
    let content = vec![3_u8; 1 << 20];
    let digest = sha256(&content);
    let mut first = fixture.store.create(&digest, Some(1 << 20)).await.unwrap();
    let mut second = fixture.store.create(&digest, None).await.unwrap();
    first.write(content[..9].to_vec().into()).await.unwrap();
    second.write(content.clone().into()).await.unwrap();
    drop(first);
    let blob = second.finish().await.unwrap();
    assert_eq!(fixture.strays().await, 0);
    assert_eq!(blob.len, 1 << 20);
    let empty = fixture.store.create(&sha256(b"never"), Some(77)).await.unwrap();
    drop(empty);
    assert_eq!(fixture.strays().await, 0);
    assert_eq!(fixture.metrics.store_bytes.get(), 1 << 20);
    assert!(read(&fixture.store, &digest).await.is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_writers_of_one_digest_all_succeed() {
    let fixture = fixture(1 << 30);
    let content = vec![9_u8; 300_000];
    let writers = (0..8).map(|_| put(&fixture.store, &content));
    for digest in futures_util::future::join_all(writers).await {
        let (found, trust) = read(&fixture.store, &digest).await.unwrap();
        assert!(found == content, "each publishes the same content");
        assert_eq!(trust, Trust::Verified, "and the stamp is that of the file which has the name");
    }
    assert_eq!(fixture.strays().await, 0);
    assert_eq!((fixture.metrics.store_bytes.get(), fixture.metrics.store_blobs.get()), (300_000, 1));
}

#[tokio::test]
async fn a_removed_directory_is_made_again() {
    let fixture = fixture(1 << 30);
    for name in ["blobs/sha256", "fills"] {
        std::fs::remove_dir(fixture.root.path().join(name)).unwrap();
    }
    let digest = put(&fixture.store, b"again").await;
    assert!(read(&fixture.store, &digest).await.is_some());
}

// === trust ===

#[tokio::test]
async fn a_changed_file_is_not_trusted() {
    let fixture = fixture(1 << 30);
    let digest = put(&fixture.store, b"content").await;
    std::fs::write(fixture.path(&digest), b"tnetnoc").unwrap();
    let blob = fixture.store.blob(&digest).await.unwrap().unwrap();
    assert_eq!(blob.trust, Trust::Unverified);
    std::fs::write(fixture.path(&digest), b"").unwrap();
    let empty = fixture.store.blob(&digest).await.unwrap().unwrap();
    assert_eq!((empty.len, empty.trust), (0, Trust::Unverified));
    fixture.store.mark_verified(&digest, &blob).await.unwrap();
    let still = fixture.store.blob(&digest).await.unwrap().unwrap();
    assert_eq!(still.trust, Trust::Unverified, "what was verified is not what is there now");
    std::fs::write(fixture.path(&digest), b"content").unwrap();
    let blob = fixture.store.blob(&digest).await.unwrap().unwrap();
    fixture.store.mark_verified(&digest, &blob).await.unwrap();
    assert_eq!(read(&fixture.store, &digest).await, Some((b"content".to_vec(), Trust::Verified)));
}

#[tokio::test]
async fn stamps_last_over_a_clean_stop_and_no_crash() {
    let mut fixture = fixture(1 << 30).restart(true, true).await;
    let digest = put(&fixture.store, b"content").await;
    for (clean, trust) in [(true, Trust::Verified), (true, Trust::Verified), (false, Trust::Unverified)] {
        fixture = fixture.restart(clean, true).await;
        assert_eq!(read(&fixture.store, &digest).await, Some((b"content".to_vec(), trust)), "clean stop: {clean}");
    }
}

#[tokio::test]
async fn a_crash_in_mid_fill_leaves_no_file() {
    let fixture = fixture(1 << 30);
    let mut writer = fixture.store.create(&sha256(b"whole"), Some(5)).await.unwrap();
    writer.write(Bytes::from_static(b"who")).await.unwrap();
    std::fs::write(fixture.root.path().join("fills/dead-1-1.tmp"), "left by a dead process").unwrap();
    std::fs::write(fixture.root.path().join("fills/map"), "of a later version").unwrap();
    drop(writer);
    fixture.strays().await;
    let fixture = fixture.restart(false, false).await;
    let left: Vec<_> = std::fs::read_dir(fixture.root.path().join("fills")).unwrap().collect();
    assert_eq!(left.len(), 1, "only what is known to be garbage goes");
}

#[tokio::test]
async fn quarantine_takes_the_bad_file_and_never_a_new_one() {
    let fixture = fixture(1 << 30);
    let digest = put(&fixture.store, b"content").await;
    let bad = fixture.store.blob(&digest).await.unwrap().unwrap();
    fixture.store.quarantine(&digest, &bad).await.unwrap();
    assert!(fixture.store.blob(&digest).await.unwrap().is_none());
    assert_eq!(fixture.metrics.corrupt_blobs.get(), 1);
    assert_eq!(std::fs::read_dir(fixture.root.path().join("quarantine")).unwrap().count(), 1);
    assert_eq!(fixture.metrics.store_bytes.get(), 7, "the reader still holds it");
    put(&fixture.store, b"content").await;
    fixture.store.quarantine(&digest, &bad).await.unwrap();
    assert!(read(&fixture.store, &digest).await.is_some(), "the new file stays");
    assert_eq!(fixture.metrics.corrupt_blobs.get(), 1);
    drop(bad);
    assert_eq!(fixture.metrics.store_bytes.get(), 7);
    std::fs::remove_dir_all(fixture.root.path().join("quarantine")).unwrap();
    for n in 0..40_u8 {
        let digest = put(&fixture.store, &[n; 10]).await;
        let blob = fixture.store.blob(&digest).await.unwrap().unwrap();
        fixture.store.quarantine(&digest, &blob).await.unwrap();
    }
    assert!(std::fs::read_dir(fixture.root.path().join("quarantine")).unwrap().count() <= 16);
}

#[tokio::test]
async fn links_under_a_blobs_name_are_not_followed() {
    let fixture = fixture(1 << 30);
    let secret = fixture.root.path().join("secret");
    std::fs::write(&secret, "secret").unwrap();
    let digest = sha256(b"x");
    std::os::unix::fs::symlink(&secret, fixture.path(&digest)).unwrap();
    assert!(fixture.store.blob(&digest).await.is_err());
    put(&fixture.store, b"x").await;
    assert_eq!(read(&fixture.store, &digest).await, Some((b"x".to_vec(), Trust::Verified)), "a fill replaces it");
    assert_eq!(std::fs::read(&secret).unwrap(), b"secret");
}

// === capacity ===

#[tokio::test]
async fn the_least_recently_used_goes_first() {
    let fixture = fixture(1_000);
    let contents: Vec<Vec<u8>> = (0..10).map(|n| vec![n; 100]).collect();
    for content in &contents {
        put(&fixture.store, content).await;
    }
    assert!(fixture.store.blob(&sha256(&contents[0])).await.unwrap().is_some(), "used again");
    put(&fixture.store, &[77; 150]).await;
    let there = |n: usize| fixture.path(&sha256(&contents[n])).exists();
    assert!(there(0) && !there(1) && !there(2) && there(3));
    assert_eq!(fixture.metrics.evicted_bytes.get(), 200);
    assert_eq!(fixture.metrics.store_bytes.get(), 950);
}

#[tokio::test]
async fn what_does_not_fit_is_refused_and_evicts_nothing_in_vain() {
    let fixture = fixture(1_000);
    let held = put(&fixture.store, &[1; 600]).await;
    let other = put(&fixture.store, &[2; 300]).await;
    let error = fixture.store.create(&sha256(b"big"), Some(1_001)).await.unwrap_err();
    assert!(matches!(error, StoreError::TooLarge { length: 1_001, capacity: 1_000 }) && error.is_full());
    let reader = fixture.store.blob(&held).await.unwrap().unwrap();
    let error = fixture.store.create(&sha256(b"big"), Some(500)).await.unwrap_err();
    assert!(matches!(error, StoreError::NoSpace), "{error}");
    assert!(fixture.path(&other).exists(), "removing it would not have been enough");
    drop(reader);
    let writer = fixture.store.create(&sha256(b"big"), Some(500)).await.unwrap();
    assert!(fixture.path(&held).exists() ^ fixture.path(&other).exists() || !fixture.path(&held).exists());
    drop(writer);
}

#[tokio::test]
async fn a_fill_of_unknown_length_stops_at_the_capacity() {
    let fixture = fixture(100_000);
    put(&fixture.store, &vec![5; 50_000]).await;
    let content = vec![6_u8; 200_000];
    let mut writer = fixture.store.create(&sha256(&content), None).await.unwrap();
    let mut outcome = Ok(());
    for chunk in content.chunks(20_000) {
        outcome = writer.write(Bytes::copy_from_slice(chunk)).await;
        if outcome.is_ok() {
            outcome = writer.verify().await.map(drop).or_else(|e| match e {
                StoreError::DigestMismatch { .. } => Ok(()),
                other => Err(other),
            });
        }
        if outcome.is_err() {
            break;
        }
    }
    assert!(matches!(outcome, Err(StoreError::NoSpace)), "{outcome:?}");
    let again = writer.write(Bytes::from_static(b"more")).await;
    assert!(matches!(again, Err(StoreError::NoSpace)), "it is said again");
    let file = writer.file();
    let remnant = writer.into_remnant().await.unwrap();
    assert_eq!(fixture.strays().await, 0);
    let mut there = vec![0; usize::try_from(remnant.written).unwrap()];
    file.read_exact_at(&mut there, 0).unwrap();
    assert!(!there.is_empty() && content.starts_with(&there), "what was written can be read on");
    assert_eq!(remnant.hasher.clone().finish(), sha256(&there), "and hashed on");
    let counted = u64::try_from(fixture.metrics.store_bytes.get()).unwrap();
    assert_eq!(counted, remnant.written, "it counts while it is read");
    drop(remnant);
    assert_eq!(fixture.metrics.store_bytes.get(), 0, "the older blob made room, and the promise is given back");
}

#[tokio::test]
async fn eviction_takes_refs_and_links_along_and_keeps_live_tags_longest() {
    let fixture = fixture(1_000);
    let (up, repo) = ("docker.io".parse().unwrap(), "library/alpine".parse().unwrap());
    let tag: Tag = "Latest".parse().unwrap();
    let manifest = put(&fixture.store, &[1; 300]).await;
    let layer = put(&fixture.store, &[2; 300]).await;
    let record = TagRecord { digest: manifest, media_type: "m".into(), size: 300, etag: None };
    for digest in [manifest, layer] {
        fixture.store.set_link(&up, &repo, &digest, &link(Via::Anonymous), wall()).await.unwrap();
    }
    fixture.store.set_tag(&up, &repo, &tag, &record, wall()).await.unwrap();
    put(&fixture.store, &[3; 500]).await;
    assert!(!fixture.path(&layer).exists() && fixture.path(&manifest).exists(), "the manifest is older, but tagged");
    assert_eq!(fixture.store.link(&up, &repo, &layer).await.unwrap(), None);
    assert!(fixture.store.link(&up, &repo, &manifest).await.unwrap().is_some());
    put(&fixture.store, &[4; 900]).await;
    assert_eq!(fixture.store.tag(&up, &repo, &tag).await.unwrap(), None);
    assert_eq!(fixture.store.checked_at(&up, &repo, &tag).await, None);
    let left = fixture.root.path().join("refs/docker.io");
    let names: Vec<_> = std::fs::read_dir(left).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names, ["_origin"], "no empty directory stays");
}

#[tokio::test]
async fn a_moved_tag_survives_the_eviction_of_what_it_named() {
    let fixture = fixture(1_000);
    let (up, repo, tag) = ("docker.io".parse().unwrap(), "a".parse().unwrap(), "t".parse().unwrap());
    let old = put(&fixture.store, &[1; 400]).await;
    let new = put(&fixture.store, &[2; 400]).await;
    for digest in [old, new] {
        let record = TagRecord { digest, media_type: "m".into(), size: 400, etag: Some("\"e\"".into()) };
        fixture.store.set_tag(&up, &repo, &tag, &record, wall()).await.unwrap();
    }
    put(&fixture.store, &[3; 300]).await;
    assert!(!fixture.path(&old).exists());
    assert_eq!(fixture.store.tag(&up, &repo, &tag).await.unwrap().map(|r| r.digest), Some(new));
}

#[tokio::test]
async fn a_known_tag_moves_only_to_what_is_on_the_disk() {
    let fixture = fixture(1 << 30);
    let (up, repo, tag) = ("docker.io".parse().unwrap(), "a".parse().unwrap(), "t".parse().unwrap());
    for (n, waits) in [(1, true), (2, false)] {
        let digest = put(&fixture.store, &[n; 100]).await;
        let path = layout::link(&up, &repo, &digest);
        fixture.store.set_link(&up, &repo, &digest, &link(Via::Anonymous), wall()).await.unwrap();
        let record = TagRecord { digest, media_type: "m".into(), size: 100, etag: None };
        fixture.store.set_tag(&up, &repo, &tag, &record, wall()).await.unwrap();
        assert_eq!(fixture.store.0.group.waits_for(&path), waits, "a new tag may vanish, a known one must not");
    }
}

#[tokio::test]
async fn eviction_works_without_an_index() {
    let fixture = fixture(1 << 30);
    let digests = [put(&fixture.store, &[1; 400]).await, put(&fixture.store, &[2; 400]).await];
    for digest in digests {
        fixture.store.0.hints.remove_blob(&digest);
    }
    let inner = fixture.store.0.clone();
    assert!(tokio::task::spawn_blocking(move || inner.evict(500)).await.unwrap());
    assert!(digests.iter().all(|digest| !fixture.path(digest).exists()));
    assert_eq!(fixture.metrics.store_bytes.get(), 0);
}

#[tokio::test]
async fn a_scan_does_not_bring_back_what_goes_meanwhile() {
    let fixture = fixture(1 << 30);
    let mut digests = Vec::new();
    for n in 0..300_u16 {
        digests.push(put(&fixture.store, &n.to_le_bytes()).await);
    }
    let both = std::sync::Barrier::new(2);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for digest in &digests {
                both.wait();
                fixture.store.0.remove(digest).unwrap();
            }
        });
        for digest in &digests {
            let entry = fs::Entry { name: digest.hex(), is_dir: false };
            both.wait();
            // Until the file is gone, which the last look must not miss.
            while fixture.path(digest).exists() {
                fixture.store.0.scan_blob(Algorithm::Sha256, &entry).unwrap();
            }
        }
    });
    assert_eq!((fixture.metrics.store_bytes.get(), fixture.metrics.store_blobs.get()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_looked_for_stays_in_the_books() {
    let fixture = fixture(1 << 30);
    let digest = put(&fixture.store, &[1; 400]).await;
    let (directory, aside) = (fixture.root.path().join("blobs/sha256"), fixture.root.path().join("aside"));
    // Behind a link nothing can be listed and nothing removed.
    std::fs::rename(&directory, &aside).unwrap();
    std::os::unix::fs::symlink(&aside, &directory).unwrap();
    for _ in 0..2 {
        let inner = fixture.store.0.clone();
        assert!(!tokio::task::spawn_blocking(move || inner.evict(300)).await.unwrap(), "nothing could go");
        assert_eq!(fixture.metrics.store_bytes.get(), 400, "the file is there and takes its room");
    }
    std::fs::remove_file(&directory).unwrap();
    std::fs::rename(&aside, &directory).unwrap();
    // It is not tried each time.
    tokio::time::advance(Duration::from_secs(10)).await;
    let inner = fixture.store.0.clone();
    assert!(tokio::task::spawn_blocking(move || inner.evict(300)).await.unwrap());
    assert!(!fixture.path(&digest).exists(), "it goes as soon as it can");
    assert_eq!(fixture.metrics.store_bytes.get(), 0);
}

// === after a start ===

#[tokio::test(start_paused = true)]
async fn a_scan_brings_back_what_the_index_lost() {
    let fixture = fixture(1 << 30);
    let (up, repo, tag) = ("docker.io".parse().unwrap(), "a/b".parse().unwrap(), "t".parse().unwrap());
    let manifest = put(&fixture.store, &[1; 100]).await;
    let layers: Vec<Digest> =
        futures_util::future::join_all([[2; 200], [3; 200]].iter().map(|c| put(&fixture.store, c))).await;
    let record = TagRecord { digest: manifest, media_type: "m".into(), size: 100, etag: None };
    fixture.store.set_tag(&up, &repo, &tag, &record, wall()).await.unwrap();
    for digest in layers.iter().chain([&manifest]) {
        fixture.store.set_link(&up, &repo, digest, &link(Via::Shared), wall()).await.unwrap();
    }
    let gone = sha256(b"was evicted while there was no index");
    fixture.store.set_link(&up, &repo, &gone, &link(Via::Shared), wall()).await.unwrap();
    let old = fixture.root.path().join(layout::link(&up, &repo, &gone));
    std::fs::File::options().write(true).open(&old).unwrap().set_modified(SystemTime::UNIX_EPOCH).unwrap();
    std::fs::write(fixture.root.path().join("blobs/sha256/not-a-digest"), "x").unwrap();

    let fixture = fixture.restart(false, false).await;
    assert_eq!(fixture.metrics.store_blobs.get(), 0, "nothing is read at the start");
    assert!(read(&fixture.store, &manifest).await.is_some(), "and everything is served");
    fixture.store.recover_once().await.unwrap();
    assert_eq!((fixture.metrics.store_bytes.get(), fixture.metrics.store_blobs.get()), (500, 3));
    assert!(!old.exists(), "an orphaned link is removed");
    let inner = fixture.store.0.clone();
    assert!(inner.hints.has_ref(&manifest, &layout::tag(&up, &repo, &tag)));
    assert_eq!(inner.hints.refs(&layers[0], None, 9).found, [layout::link(&up, &repo, &layers[0])]);
    assert!(inner.books.victims(350).iter().all(|s| *s != order::Short::from(&manifest)), "its tag is known again");

    std::fs::remove_file(fixture.path(&layers[0])).unwrap();
    fixture.store.recover_once().await.unwrap();
    assert_eq!((fixture.metrics.store_bytes.get(), fixture.metrics.store_blobs.get()), (300, 2));
}

#[tokio::test]
async fn the_order_of_use_outlives_a_restart() {
    let fixture = fixture(1 << 30).restart(true, true).await;
    let first = put(&fixture.store, &[1; 100]).await;
    let second = put(&fixture.store, &[2; 100]).await;
    let inner = fixture.store.0.clone();
    inner.write_order();
    inner.hints.set_used([(order::Short::from(&first), 2_000), (order::Short::from(&second), 1_000)]);
    drop(inner);
    for digest in [&first, &second] {
        let file = std::fs::File::options().write(true).open(fixture.path(digest)).unwrap();
        file.set_modified(SystemTime::UNIX_EPOCH).unwrap();
    }
    let fixture = fixture.restart(true, true).await;
    fixture.store.recover_once().await.unwrap();
    assert_eq!(fixture.store.0.books.victims(100), [order::Short::from(&second)]);
}

#[tokio::test]
async fn a_destroyed_index_costs_no_content() {
    type Damage = fn(&Path);
    let damages: [(&str, Damage); 7] = [
        ("removed", |path| std::fs::remove_dir_all(path).unwrap()),
        ("a file", |path| {
            std::fs::remove_dir_all(path).unwrap();
            std::fs::write(path, "not a directory").unwrap();
        }),
        ("garbage", |path| std::fs::write(path.join("db"), vec![0xa5; 70_000]).unwrap()),
        ("truncated", |path| {
            let file = std::fs::File::options().write(true).open(path.join("db")).unwrap();
            file.set_len(file.metadata().unwrap().len() / 3).unwrap();
        }),
        ("zeroed", |path| {
            let len = path.join("db").metadata().unwrap().len();
            std::fs::write(path.join("db"), vec![0; usize::try_from(len).unwrap()]).unwrap();
        }),
        ("half snapshot", |path| std::fs::write(path.join("snap.1.generating"), "").unwrap()),
        ("bad configuration", |path| std::fs::write(path.join("conf"), "garbage").unwrap()),
    ];
    for (name, damage) in damages {
        let fixture = fixture(1 << 30).restart(true, true).await;
        let digest = put(&fixture.store, b"content").await;
        let fixture = fixture.restart(true, true).await;
        fixture.store.close().await;
        let Fixture { root, store, .. } = fixture;
        drop(store);
        damage(&root.path().join("index"));
        let metrics = Metrics::new().unwrap();
        let store = Store::open(options(root.path(), 1 << 30), metrics.clone()).unwrap();
        let (content, _) = read(&store, &digest).await.unwrap_or_else(|| panic!("{name}: the blob is gone"));
        assert_eq!(content, b"content", "{name}");
        store.0.hints.wait_open();
        assert!(metrics.index_rebuilds.get() <= 1, "{name}: one rebuild at most");
        let second = put(&store, b"more").await;
        assert_eq!(read(&store, &second).await.map(|(_, trust)| trust), Some(Trust::Verified), "{name}");
        store.recover_once().await.unwrap();
        assert_eq!(metrics.store_blobs.get(), 2, "{name}");
    }
}

#[tokio::test]
async fn a_second_opening_is_refused_and_says_who_has_it() {
    let fixture = fixture(1 << 30);
    fixture.store.announce_socket("/run/user/1/ocistern.sock".into()).await.unwrap();
    let error = Store::open(options(fixture.root.path(), 1), Metrics::new().unwrap()).unwrap_err().to_string();
    for part in [&format!("process {}", std::process::id()), "/run/user/1/ocistern.sock", "--root"] {
        assert!(error.contains(part), "{error}");
    }
}

#[tokio::test]
async fn a_closed_store_takes_nothing() {
    let fixture = fixture(1 << 30);
    let mut writer = fixture.store.create(&sha256(b"x"), Some(1)).await.unwrap();
    fixture.store.close().await;
    fixture.store.close().await;
    assert!(matches!(fixture.store.create(&sha256(b"y"), None).await, Err(StoreError::Stopped)));
    let outcome = match writer.write(Bytes::from_static(b"x")).await {
        Ok(()) => writer.finish().await.map(drop),
        Err(error) => Err(error),
    };
    assert!(matches!(outcome, Err(StoreError::Stopped)), "nothing is published behind the mark of the clean stop");
}

#[tokio::test(start_paused = true)]
async fn upkeep_syncs_and_stops_when_told() {
    let fixture = fixture(1 << 30);
    let (up, repo) = ("docker.io".parse().unwrap(), "a".parse().unwrap());
    fixture.store.set_access(&up, &repo, Access::Public).await.unwrap();
    let stop = CancellationToken::new();
    let (store, token) = (fixture.store.clone(), stop.clone());
    let tracker = TaskTracker::new();
    tracker.spawn(async move { store.run(token).await });
    tokio::time::sleep(SYNC_EVERY * 3).await;
    stop.cancel();
    tracker.close();
    tracker.wait().await;
}

// === refs ===

fn link(via: Via) -> Link {
    Link { kind: LinkKind::Blob, via, media_type: None, size: 1, subject: None, artifact_type: None }
}

#[tokio::test]
async fn refs_of_another_url_are_set_aside() {
    let fixture = fixture(1 << 30);
    let (up, repo) = ("docker.io".parse().unwrap(), "a".parse().unwrap());
    fixture.store.set_access(&up, &repo, Access::Private).await.unwrap();
    let Fixture { root, store, .. } = fixture;
    drop(store);
    for (url, known) in
        [("https://registry-1.docker.io", true), ("https://other.example", false), ("https://third", false)]
    {
        let mut options = options(root.path(), 1 << 30);
        options.origins[0].1 = url.into();
        let store = Store::open_with(options, Metrics::new().unwrap(), |_| Box::new(InMemory)).unwrap();
        assert_eq!(store.access(&up, &repo).await.unwrap().is_some(), known, "{url}");
    }
    assert!(root.path().join("refs/docker.io~aside-1/a/_access").exists(), "nothing is thrown away");
    assert!(root.path().join("refs/docker.io~aside-2").exists());
}

#[tokio::test]
async fn refs_come_back_with_their_url() {
    let fixture = fixture(1 << 30);
    let (up, repo, tag) = ("docker.io".parse().unwrap(), "a".parse().unwrap(), "1".parse().unwrap());
    let record = |content| TagRecord { digest: sha256(content), media_type: "m".into(), size: 1, etag: None };
    let Fixture { root, store, .. } = fixture;
    drop(store);
    let (a, b) = ("https://registry-1.docker.io", "https://other.example");
    let (mut of_a, of_b) = (None, record(b"b"));
    for (start, url) in [a, b, a, b].into_iter().enumerate() {
        let mut options = options(root.path(), 1 << 30);
        options.origins[0].1 = url.into();
        let store = Store::open_with(options, Metrics::new().unwrap(), |_| Box::new(InMemory)).unwrap();
        let known = store.tag(&up, &repo, &tag).await.unwrap();
        match start {
            0 => {
                let record = record(b"a");
                assert!(store.set_tag(&up, &repo, &tag, &record, wall()).await.unwrap());
                of_a = Some(record);
            }
            1 => {
                assert_eq!(known, None);
                assert!(store.set_tag(&up, &repo, &tag, &of_b, wall()).await.unwrap());
            }
            2 => assert_eq!(known, of_a),
            _ => assert_eq!(known.as_ref(), Some(&of_b)),
        }
        // As the index would still have it from the time under the other URL.
        let before = wall() - Duration::from_mins(1);
        let left = Check { at: before, moment: before, mark: None, since: None };
        store.0.hints.set_check(&up, &repo, &tag, Some(&left));
        let counts = store.checked_at(&up, &repo, &tag).await.is_some();
        assert_eq!(counts, start < 2, "nobody asked {url} since it is the URL again");
        let known = store.tag(&up, &repo, &tag).await.unwrap().unwrap();
        assert!(store.set_tag(&up, &repo, &tag, &known, wall()).await.unwrap());
        assert!(store.checked_at(&up, &repo, &tag).await.is_some());
        store.close().await;
    }
    assert!(!root.path().join("refs/docker.io~aside-3").exists(), "one tree for each URL");
}

#[tokio::test]
async fn errors_name_the_whole_path() {
    let root = tempfile::tempdir().unwrap();
    std::fs::create_dir(root.path().join("lock")).unwrap();
    std::fs::create_dir(root.path().join("VERSION")).unwrap();
    let opened = Store::open(options(root.path(), 1 << 30), Metrics::new().unwrap());
    let path = root.path().canonicalize().unwrap().join("lock");
    assert_eq!(opened.unwrap_err().to_string(), format!("cannot open {}", path.display()));
    let denied = std::io::Error::from(std::io::ErrorKind::PermissionDenied);
    let denied = StoreError::io("open", Path::new("lock"), denied).within(Path::new("/x")).to_string();
    assert!(denied.starts_with("cannot open /x/lock: permission denied; the root must belong to"), "{denied}");
}

#[tokio::test]
async fn access_keeps_its_date() {
    let fixture = fixture(1 << 30);
    let (up, repo) = ("docker.io".parse().unwrap(), "a".parse().unwrap());
    assert_eq!(fixture.store.access(&up, &repo).await.unwrap(), None);
    fixture.store.set_access(&up, &repo, Access::Public).await.unwrap();
    let first = fixture.store.access(&up, &repo).await.unwrap().unwrap();
    fixture.store.set_access(&up, &repo, Access::Public).await.unwrap();
    assert_eq!(fixture.store.access(&up, &repo).await.unwrap(), Some(first));
    fixture.store.set_access(&up, &repo, Access::Private).await.unwrap();
    assert_eq!(fixture.store.access(&up, &repo).await.unwrap().unwrap().access, Access::Private);
}

#[tokio::test]
async fn lists_are_kept_byte_for_byte_and_bounded() {
    let fixture = fixture(1 << 30);
    let (up, repo): (UpstreamName, RepoName) = ("docker.io".parse().unwrap(), "a".parse().unwrap());
    let list = |body: &[u8]| StoredList {
        body: Bytes::copy_from_slice(body),
        content_type: "application/json".into(),
        link: Some("</v2/a/tags/list?n=1&last=x>; rel=\"next\"".into()),
        filters_applied: None,
        via: Via::Anonymous,
    };
    let referrers = ListKind::Referrers(sha256(b"subject"));
    for (kind, query) in [(&ListKind::Tags, ""), (&ListKind::Tags, "n=5"), (&referrers, ""), (&referrers, "A/%2f")] {
        let stored = list(format!("\u{0}{kind:?} {query}\r\n").as_bytes());
        fixture.store.set_list(&up, &repo, kind, query, &stored, wall()).await.unwrap();
        assert_eq!(fixture.store.list(&up, &repo, kind, query).await.unwrap(), Some(stored));
    }
    for n in 0..300 {
        fixture.store.set_list(&up, &repo, &ListKind::Tags, &format!("last={n}"), &list(b"[]"), wall()).await.unwrap();
    }
    let directory = fixture.root.path().join("refs/docker.io/a/_lists");
    assert_eq!(std::fs::read_dir(directory).unwrap().count(), 256);
    assert!(fixture.store.list(&up, &repo, &ListKind::Tags, "").await.unwrap().is_some(), "the plain list stays");
    assert!(fixture.store.list(&up, &repo, &ListKind::Tags, "last=299").await.unwrap().is_some());
    let huge = list(&vec![b' '; (4 << 20) + 1]);
    fixture.store.set_list(&up, &repo, &ListKind::Tags, "", &huge, wall()).await.unwrap();
    assert_ne!(fixture.store.list(&up, &repo, &ListKind::Tags, "").await.unwrap(), Some(huge));
}

#[derive(Debug, Clone)]
enum Step {
    SetTag(usize, usize, usize, u8, u64),
    RemoveTag(usize, usize, usize, u64),
    SetLink(usize, usize, u8, bool),
    RemoveLink(usize, usize, u8),
    Restart,
}

const UPSTREAMS: [&str; 2] = ["docker.io", "ghcr.io"];
const REPOS: [&str; 3] = ["a", "a/b", "library/a"];
const TAGS: [&str; 4] = ["v1", "V1", "latest", "LATEST"];

fn step() -> impl Strategy<Value = Step> {
    let (u, r, t, at) = (0..UPSTREAMS.len(), 0..REPOS.len(), 0..TAGS.len(), 0..1_000_000u64);
    prop_oneof![
        6 => (u.clone(), r.clone(), t.clone(), 0..4u8, at.clone())
            .prop_map(|(u, r, t, n, at)| Step::SetTag(u, r, t, n, at)),
        3 => (u.clone(), r.clone(), t, at).prop_map(|(u, r, t, at)| Step::RemoveTag(u, r, t, at)),
        6 => (u.clone(), r.clone(), 0..4u8, any::<bool>()).prop_map(|(u, r, n, m)| Step::SetLink(u, r, n, m)),
        2 => (u, r, 0..4u8).prop_map(|(u, r, n)| Step::RemoveLink(u, r, n)),
        1 => Just(Step::Restart),
    ]
}

type Names = (UpstreamName, RepoName);

fn names(u: usize, r: usize) -> Names {
    (UPSTREAMS[u].parse().unwrap(), REPOS[r].parse().unwrap())
}

/// What the store must say, in hash maps. Freshness may be forgotten at a restart, but never be wrong.
#[derive(Default)]
struct Model {
    tags: HashMap<(Names, Tag), TagRecord>,
    links: HashMap<(Names, u8), Link>,
    checked: HashMap<(Names, Tag), SystemTime>,
}

impl Model {
    /// Whether an answer to a question of that time counts; then it is the last one.
    fn answer(&mut self, key: &(Names, Tag), at: SystemTime) -> bool {
        let counts = self.checked.get(key).is_none_or(|checked| *checked <= at);
        if counts {
            self.checked.insert(key.clone(), at);
        }
        counts
    }
}

async fn walk(steps: Vec<Step>) {
    let mut fixture = fixture(1 << 30);
    let mut model = Model::default();
    for step in steps {
        match step {
            Step::SetTag(u, r, t, n, at) => {
                let ((up, repo), tag) = (names(u, r), TAGS[t].parse::<Tag>().unwrap());
                let at = SystemTime::UNIX_EPOCH + Duration::from_secs(at);
                let record = TagRecord { digest: sha256(&[n]), media_type: format!("m{n}"), size: 1, etag: None };
                let done = fixture.store.set_tag(&up, &repo, &tag, &record, at).await.unwrap();
                let key = ((up, repo), tag);
                assert_eq!(done, model.answer(&key, at));
                if done {
                    model.tags.insert(key, record);
                }
            }
            Step::RemoveTag(u, r, t, at) => {
                let ((up, repo), tag) = (names(u, r), TAGS[t].parse::<Tag>().unwrap());
                let at = SystemTime::UNIX_EPOCH + Duration::from_secs(at);
                let done = fixture.store.remove_tag(&up, &repo, &tag, at).await.unwrap();
                let key = ((up, repo), tag);
                assert_eq!(done, model.answer(&key, at));
                if done {
                    model.tags.remove(&key);
                }
            }
            Step::SetLink(u, r, n, manifest) => {
                let (up, repo) = names(u, r);
                let mut link = link(if manifest { Via::Anonymous } else { Via::Client });
                link.kind = if manifest { LinkKind::Manifest } else { LinkKind::Blob };
                fixture.store.set_link(&up, &repo, &sha256(&[n]), &link, wall()).await.unwrap();
                model.links.insert(((up, repo), n), link);
            }
            Step::RemoveLink(u, r, n) => {
                let (up, repo) = names(u, r);
                fixture.store.remove_link(&up, &repo, &sha256(&[n])).await.unwrap();
                model.links.remove(&((up, repo), n));
            }
            Step::Restart => {
                fixture = fixture.restart(false, false).await;
                model.checked.clear();
            }
        }
        for u in 0..UPSTREAMS.len() {
            for r in 0..REPOS.len() {
                let (up, repo) = names(u, r);
                for tag in TAGS {
                    let tag: Tag = tag.parse().unwrap();
                    let key = ((up.clone(), repo.clone()), tag.clone());
                    let found = fixture.store.tag(&up, &repo, &tag).await.unwrap();
                    assert_eq!(found.as_ref(), model.tags.get(&key), "{key:?}");
                    assert_eq!(fixture.store.checked_at(&up, &repo, &tag).await.as_ref(), model.checked.get(&key));
                }
                for n in 0..4 {
                    let found = fixture.store.link(&up, &repo, &sha256(&[n])).await.unwrap();
                    assert_eq!(found.as_deref(), model.links.get(&((up.clone(), repo.clone()), n)));
                }
            }
        }
    }
    assert_eq!(fixture.strays().await, 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn refs_behave_like_hash_maps(steps in proptest::collection::vec(step(), 1..16)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(walk(steps));
    }
}

/// Waits until files made now are newer than those before.
async fn tick(root: &Path) {
    use std::os::unix::fs::MetadataExt;
    let now = || {
        std::fs::write(root.join("tick"), "").unwrap();
        let metadata = std::fs::metadata(root.join("tick")).unwrap();
        (metadata.ctime(), metadata.ctime_nsec())
    };
    let before = now();
    while now() == before {
        tokio::task::yield_now().await;
    }
}

/// What was wrong is there to be looked at, however large it is; only what is older makes way.
#[tokio::test]
async fn the_newest_evidence_stays_and_small_evidence_beside_it() {
    let fixture = fixture(4 << 20);
    let names = || {
        let listing = std::fs::read_dir(fixture.root.path().join("quarantine")).unwrap();
        listing.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect::<Vec<_>>()
    };
    // A twentieth of the capacity is 205 KiB.
    let contents = [vec![1; 20_000], vec![2; 150_000], vec![3; 1 << 20]];
    let mut digests = Vec::new();
    for content in &contents {
        let digest = put(&fixture.store, content).await;
        let blob = fixture.store.blob(&digest).await.unwrap().unwrap();
        // Their order is that of their times.
        tick(fixture.root.path()).await;
        fixture.store.quarantine(&digest, &blob).await.unwrap();
        digests.push(digest.hex());
    }
    let has = |digests: &[String], n: usize| names().iter().any(|name| name.contains(&digests[n]));
    assert!(has(&digests, 2), "the newest is larger than the share: {:?}", names());
    assert!(!has(&digests, 1) && !has(&digests, 0), "older evidence makes way for it: {:?}", names());
    for content in [vec![4; 150_000], vec![5; 100_000], vec![6; 30_000]] {
        let digest = put(&fixture.store, &content).await;
        let blob = fixture.store.blob(&digest).await.unwrap().unwrap();
        tick(fixture.root.path()).await;
        fixture.store.quarantine(&digest, &blob).await.unwrap();
        digests.push(digest.hex());
    }
    let has = |n| has(&digests, n);
    assert!(has(5) && has(4) && !has(3) && !has(2), "what does not fit counts for nothing: {:?}", names());
}

/// What is no file under a blob's name is in the way of nobody who brings the right one.
#[tokio::test]
async fn a_blob_is_published_where_a_directory_or_a_link_stands() {
    let makes: [fn(&Path); 2] = [
        |path| std::fs::create_dir_all(path.join("full")).unwrap(),
        |path| std::os::unix::fs::symlink("/dev/null", path).unwrap(),
    ];
    for make in makes {
        let fixture = fixture(1 << 30);
        make(&fixture.path(&sha256(b"content")));
        let digest = put(&fixture.store, b"content").await;
        assert_eq!(read(&fixture.store, &digest).await.unwrap().0, b"content");
        assert_eq!((fixture.metrics.corrupt_blobs.get(), fixture.metrics.store_bytes.get()), (1, 7));
        assert_eq!(std::fs::read_dir(fixture.root.path().join("quarantine")).unwrap().count(), 1);
    }
}
