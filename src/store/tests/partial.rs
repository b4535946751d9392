//! Fills that do not end, and are gone on with: what is put down when, what stays, and what goes first.

#![expect(clippy::single_range_in_vec_init, reason = "what is written is a list of ranges")]

use std::ops::Range;
use std::os::unix::fs::MetadataExt as _;

use super::sim::{Fault, Harm, Sim, SimFs, fast_directory};
use super::*;
use crate::clock::twin::Twin;
use crate::store::capacity::seconds;

pub(super) const MIB: u64 = 1 << 20;

/// Bytes of which none is like its neighbours.
pub(super) fn content(seed: u64, length: u64) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    std::iter::repeat_with(|| random.u8(..)).take(usize::try_from(length).unwrap()).collect()
}

fn part(content: &[u8], range: Range<u64>) -> Bytes {
    let [start, end] = [range.start, range.end].map(|at| usize::try_from(at).unwrap());
    Bytes::copy_from_slice(&content[start..end])
}

pub(super) async fn begin(store: &Store, content: &[u8]) -> BlobWriter {
    store.create(&sha256(content), Some(content.len() as u64)).await.unwrap()
}

/// Writes these parts, in chunks.
pub(super) async fn write(writer: &BlobWriter, content: &[u8], ranges: &[Range<u64>]) {
    for range in ranges {
        let mut at = range.start;
        while at < range.end {
            let end = range.end.min(at + 100_000);
            writer.write_at(at, part(content, at..end)).await.unwrap();
            at = end;
        }
    }
}

/// Waits until all that was accepted is in the file.
pub(super) async fn written(writer: &BlobWriter, bytes: u64) {
    for _ in 0..10_000 {
        if writer.present().total() == bytes {
            return;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    panic!("{:?}", writer.present());
}

pub(super) fn mark() -> PartialMark {
    PartialMark {
        upstream: Some("docker.io".into()),
        etag: Some("\"1\"".into()),
        repository: Some("library/app".into()),
        ..PartialMark::default()
    }
}

impl Fixture {
    pub(super) async fn idle(&self) {
        self.store.0.jobs.close();
        self.store.0.jobs.wait().await;
        self.store.0.jobs.reopen();
    }

    /// What is in `fills/`, after all jobs have ended: names without what makes them distinct.
    pub(super) async fn fills(&self) -> Vec<String> {
        self.idle().await;
        let names = std::fs::read_dir(self.root.path().join("fills")).unwrap();
        let mut names: Vec<String> =
            names.map(|entry| entry.unwrap().path().extension().unwrap().to_str().unwrap().to_owned()).collect();
        names.sort();
        names
    }

    /// Leaves these parts of a blob.
    pub(super) async fn leave(&self, content: &[u8], ranges: &[Range<u64>]) -> Digest {
        let writer = begin(&self.store, content).await;
        writer.remember(mark());
        write(&writer, content, ranges).await;
        written(&writer, ranges.iter().map(|range| range.end - range.start).sum()).await;
        drop(writer);
        self.idle().await;
        sha256(content)
    }

    pub(super) fn part_file(&self) -> PathBuf {
        let names = std::fs::read_dir(self.root.path().join("fills")).unwrap();
        let mut parts = names.map(|e| e.unwrap().path()).filter(|path| path.extension().is_some_and(|e| e == "part"));
        parts.next().unwrap()
    }

    pub(super) fn bytes(&self) -> u64 {
        self.metrics.store_bytes.get().cast_unsigned()
    }
}

async fn forget_lost(store: &Store) {
    let forget = |inner: &Arc<Inner>| {
        inner.forget_lost_partials();
        Ok(())
    };
    store.blocking(forget).await.unwrap();
}

/// Goes on with what is left, and ends it.
pub(super) async fn end(store: &Store, content: &[u8]) {
    let partial = store.take_up(&sha256(content)).await.unwrap();
    let missing = partial.present().gaps(0..content.len() as u64);
    let mut writer = partial.resume().await.unwrap();
    write(&writer, content, &missing).await;
    assert_eq!(writer.verify().await.unwrap(), content.len() as u64);
    writer.finish().await.unwrap();
}

// === positional writing ===

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_write_at_once_in_any_order_and_all_is_told() {
    let fixture = fixture(1 << 30);
    let content = content(1, 5 * MIB + 17);
    let mut writer = begin(&fixture.store, &content).await;
    let told = Arc::new(Mutex::new(ByteRanges::default()));
    writer.follow({
        let (told, file, content) = (told.clone(), writer.file(), content.clone());
        move |pieces| {
            for Placed { at, bytes } in pieces {
                let range = *at..at + bytes.len() as u64;
                let mut there = vec![0; bytes.len()];
                file.read_exact_at(&mut there, range.start).unwrap();
                assert!(there == *bytes && there == part(&content, range.clone()), "what is told is in the file");
                let mut told = told.lock();
                assert_eq!(told.gaps(range.clone()), std::slice::from_ref(&range), "once");
                told.insert(range);
            }
        }
    });
    // The last quarter first, and all at once.
    let length = content.len() as u64;
    let quarters = (0..4).rev().map(|n| {
        let (writer, content) = (&writer, &content);
        async move { write(writer, content, &[n * length / 4..(n + 1) * length / 4]).await }
    });
    futures_util::future::join_all(quarters).await;
    assert_eq!(writer.verify().await.unwrap(), length);
    assert_eq!(*told.lock(), ByteRanges::from(0..length));
    writer.finish().await.unwrap();
    assert_eq!(read(&fixture.store, &sha256(&content)).await, Some((content, Trust::Verified)));
    assert!(fixture.fills().await.is_empty());
}

#[tokio::test]
async fn what_was_accepted_before_is_not_written_over() {
    let fixture = fixture(1 << 30);
    let content = content(2, 300_000);
    let mut writer = begin(&fixture.store, &content).await;
    write(&writer, &content, &[50_000..60_000, 200_000..300_000]).await;
    let other = Bytes::from(vec![0; 100_000]);
    writer.write_at(200_000, other.clone()).await.unwrap();
    writer.write_at(50_000, other.slice(..10_000)).await.unwrap();
    // Around, with other bytes where they are already there.
    let mut around = content[..70_000].to_vec();
    around[50_000..60_000].fill(0);
    writer.write_at(0, around.into()).await.unwrap();
    let mut rest = content[60_000..210_000].to_vec();
    rest[140_000..].fill(0);
    rest[..10_000].fill(0);
    writer.write_at(60_000, rest.into()).await.unwrap();
    writer.verify().await.unwrap();
    writer.finish().await.unwrap();
    assert!(read(&fixture.store, &sha256(&content)).await.unwrap().0 == content);
}

#[tokio::test]
async fn what_is_missing_is_said_and_what_is_too_much() {
    let fixture = fixture(1 << 30);
    let content = content(3, 100_000);
    let mut writer = begin(&fixture.store, &content).await;
    write(&writer, &content, &[0..40_000, 60_000..100_000]).await;
    let missing = writer.verify().await.unwrap_err();
    assert!(matches!(missing, StoreError::LengthMismatch { expected: 100_000, actual: 80_000 }), "{missing}");
    for at in [100_000, 99_999, u64::MAX] {
        let over = writer.write_at(at, Bytes::from_static(b"ab")).await.unwrap_err();
        assert!(matches!(over, StoreError::LengthMismatch { .. }), "{over}");
    }
    drop(writer);
    let mut unknown = fixture.store.create(&sha256(&content), None).await.unwrap();
    write(&unknown, &content, &[0..40_000, 60_000..100_000]).await;
    assert!(matches!(unknown.verify().await, Err(StoreError::LengthMismatch { .. })), "a gap is no end");
    write(&unknown, &content, &[40_000..60_000]).await;
    unknown.finish().await.unwrap();
    assert_eq!((fixture.fills().await.len(), fixture.bytes()), (0, 100_000));
}

#[tokio::test]
async fn a_file_that_cannot_be_read_back_fails_its_writer() {
    let (fixture, sim) = simulated();
    let content = content(4, 3 * MIB);
    let mut writer = begin(&fixture.store, &content).await;
    write(&writer, &content, &[MIB..3 * MIB]).await;
    written(&writer, 2 * MIB).await;
    sim.spoil([PathBuf::from("fills")]);
    write(&writer, &content, &[0..MIB]).await;
    let error = writer.verify().await.unwrap_err();
    assert!(matches!(error, StoreError::Io { .. }), "{error}");
    assert!(matches!(writer.write_at(0, Bytes::from_static(b"x")).await, Err(StoreError::Stopped)));
    drop(writer);
    assert!(fixture.fills().await.is_empty(), "nobody goes on with that");
}

pub(super) fn simulated() -> (Fixture, Arc<Sim>) {
    let root = fast_directory();
    let sim = Sim::new(root.path());
    (on(&sim, root), sim)
}

pub(super) fn on(sim: &Arc<Sim>, root: tempfile::TempDir) -> Fixture {
    let disk = Disk::over(Box::new(SimFs(sim.clone())), root.path().canonicalize().unwrap());
    let metrics = Metrics::new().unwrap();
    let options = options(root.path(), 1 << 30);
    let store = Store::open_on(Arc::new(disk), options, metrics.clone(), |_| Box::new(InMemory)).unwrap();
    Fixture { root, metrics, store }
}

// === what stays ===

#[tokio::test]
async fn a_fill_that_is_given_up_is_gone_on_with_after_a_restart() {
    let fixture = fixture(1 << 30);
    let content = content(5, 6 * MIB);
    let digest = fixture.leave(&content, &[0..2 * MIB, 3 * MIB..4 * MIB]).await;
    assert_eq!(fixture.fills().await, ["map", "part"]);
    for clean in [true, false] {
        let fixture = fixture.crashed(InMemory).await;
        let fixture = if clean { fixture.restart(true, false).await } else { fixture };
        assert_eq!(fixture.bytes(), 4 * MIB, "the hole was taken in advance");
        let partial = fixture.store.take_up(&digest).await.unwrap();
        assert_eq!((partial.length(), partial.mark()), (6 * MIB, &mark()));
        let present: Vec<Range<u64>> = partial.present().iter().collect();
        assert_eq!(present, [0..2 * MIB, 3 * MIB..4 * MIB]);
        assert!(fixture.store.take_up(&digest).await.is_none(), "who has it has it alone");
        drop(partial);
        let partial = fixture.store.take_up(&digest).await.unwrap();
        let mut writer = partial.resume().await.unwrap();
        assert_eq!(fixture.bytes(), 6 * MIB, "what is missing is promised");
        assert_eq!(writer.present().total(), 3 * MIB);
        assert!(fixture.store.take_up(&digest).await.is_none());
        let told = Arc::new(Mutex::new(ByteRanges::default()));
        writer.follow({
            let told = told.clone();
            move |pieces| pieces.iter().for_each(|piece| told.lock().insert(piece.range()))
        });
        // Appending begins where the first bytes are missing.
        writer.write(part(&content, 2 * MIB..3 * MIB)).await.unwrap();
        write(&writer, &content, &[4 * MIB..6 * MIB]).await;
        assert_eq!(writer.verify().await.unwrap(), 6 * MIB);
        let told: Vec<Range<u64>> = told.lock().iter().collect();
        assert_eq!(told, [2 * MIB..3 * MIB, 4 * MIB..6 * MIB], "of what was there nothing is told");
        writer.finish().await.unwrap();
        assert!(read(&fixture.store, &digest).await.unwrap().0 == content);
        assert!(fixture.fills().await.is_empty());
        assert_eq!(fixture.bytes(), 6 * MIB);
        assert!(fixture.store.take_up(&digest).await.is_none());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_comes_for_it_at_once_waits_for_what_is_left() {
    let fixture = fixture(1 << 30);
    let content = content(14, 4 * MIB);
    let digest = sha256(&content);
    let mut writer = begin(&fixture.store, &content).await;
    let mut at = 0;
    while at < 4 * MIB {
        let end = at + MIB;
        writer.write_at(at, part(&content, at..end)).await.unwrap();
        written(&writer, end).await;
        drop(writer);
        let partial = fixture.store.take_up(&digest).await.unwrap();
        at = end;
        assert_eq!(partial.present(), &ByteRanges::from(0..at));
        writer = partial.resume().await.unwrap();
        if end == 4 * MIB {
            break;
        }
    }
    // One that goes for good leaves its place to the next.
    writer.discard();
    assert!(fixture.store.take_up(&digest).await.is_none());
    let next = begin(&fixture.store, &content).await;
    assert_eq!(fixture.fills().await, ["part"]);
    next.discard();
}

#[tokio::test]
async fn a_kill_leaves_what_was_put_down_last() {
    let fixture = fixture(1 << 30);
    let content = content(6, 4 * MIB);
    let digest = sha256(&content);
    let writer = begin(&fixture.store, &content).await;
    write(&writer, &content, &[0..MIB]).await;
    written(&writer, MIB).await;
    let killed = fixture.crashed(InMemory).await;
    assert!(killed.store.take_up(&digest).await.is_none(), "nothing was put down");
    assert!(killed.fills().await.is_empty());
    writer.checkpoint().await;
    write(&writer, &content, &[3 * MIB..4 * MIB]).await;
    written(&writer, 2 * MIB).await;
    let killed = fixture.crashed(InMemory).await;
    assert_eq!(killed.store.take_up(&digest).await.unwrap().present(), &ByteRanges::from(0..MIB));
    writer.checkpoint().await;
    let killed = fixture.crashed(InMemory).await;
    let taken = killed.store.take_up(&digest).await.unwrap();
    assert_eq!(taken.present().iter().collect::<Vec<_>>(), [0..MIB, 3 * MIB..4 * MIB]);
    drop(taken);
    end(&killed.store, &content).await;
    assert!(read(&killed.store, &digest).await.unwrap().0 == content);
    drop(writer);
}

#[tokio::test(start_paused = true)]
async fn what_is_there_is_put_down_from_time_to_time() {
    let fixture = fixture(1 << 30);
    let content = content(7, 8 * MIB);
    let digest = sha256(&content);
    let writer = begin(&fixture.store, &content).await;
    let put_down = || async {
        let killed = fixture.crashed(InMemory).await;
        killed.store.take_up(&digest).await.map_or(0, |partial| partial.present().total())
    };
    let on = |until: u64| {
        let (writer, content) = (&writer, &content);
        async move {
            write(writer, content, &[0..until]).await;
            written(writer, until).await;
        }
    };
    on(2 * MIB).await;
    assert_eq!(put_down().await, 0, "not in the first second");
    tokio::time::advance(Duration::from_secs(2)).await;
    on(2 * MIB + 5).await;
    assert_eq!(put_down().await, 2 * MIB + 5);
    on(3 * MIB + 5).await;
    assert_eq!(put_down().await, 2 * MIB + 5, "not again in the same second");
    tokio::time::advance(Duration::from_secs(2)).await;
    on(3 * MIB + 6).await;
    assert_eq!(put_down().await, 3 * MIB + 6);
    tokio::time::advance(Duration::from_secs(2)).await;
    on(4 * MIB).await;
    assert_eq!(put_down().await, 3 * MIB + 6, "it is little");
    writer.discard();
    assert!(fixture.fills().await.is_empty());
    assert_eq!(fixture.bytes(), 0);
}

#[tokio::test]
async fn one_that_has_all_bytes_is_published_by_who_goes_on_with_it() {
    let fixture = fixture(1 << 30);
    let content = content(8, 2 * MIB);
    let digest = fixture.leave(&content, &[0..2 * MIB]).await;
    let partial = fixture.store.take_up(&digest).await.unwrap();
    assert_eq!(partial.present(), &ByteRanges::from(0..2 * MIB));
    let writer = partial.resume().await.unwrap();
    // Upstream is asked whether it may be given out, and what comes with that is here already.
    writer.write_at(2 * MIB - 4096, part(&content, 2 * MIB - 4096..2 * MIB)).await.unwrap();
    writer.finish().await.unwrap();
    assert!(read(&fixture.store, &digest).await.unwrap().0 == content);
}

#[tokio::test]
async fn what_is_little_or_wrong_or_of_unknown_length_does_not_stay() {
    let fixture = fixture(1 << 30);
    let content = content(9, 2 * MIB);
    let digest = fixture.leave(&content, &[0..(64 << 10) - 1]).await;
    assert!(fixture.fills().await.is_empty() && fixture.store.take_up(&digest).await.is_none());
    let small = &content[..usize::try_from(MIB).unwrap() - 1];
    fixture.leave(small, &[0..MIB - 1]).await;
    assert!(fixture.fills().await.is_empty());
    let unknown = fixture.store.create(&digest, None).await.unwrap();
    write(&unknown, &content, &[0..2 * MIB]).await;
    drop(unknown);
    assert!(fixture.fills().await.is_empty());

    let mut wrong = begin(&fixture.store, &content).await;
    wrong.write(vec![0; 2 << 20].into()).await.unwrap();
    written(&wrong, 2 * MIB).await;
    wrong.checkpoint().await;
    assert_eq!(fixture.fills().await, ["map", "part"]);
    assert!(matches!(wrong.finish().await, Err(StoreError::DigestMismatch { .. })));
    assert!(fixture.fills().await.is_empty());
    let long = begin(&fixture.store, &content).await;
    write(&long, &content, &[0..2 * MIB]).await;
    assert!(long.write_at(2 * MIB, Bytes::from_static(b"!")).await.is_err());
    drop(long);
    let refused = begin(&fixture.store, &content).await;
    write(&refused, &content, &[0..2 * MIB]).await;
    refused.discard();
    assert!(fixture.fills().await.is_empty());
    // Wrong bytes that were left are found when the rest has come.
    fixture.leave(&[&vec![1; 1 << 20][..], &content[1 << 20..]].concat(), &[0..MIB]).await;
    assert_eq!(fixture.bytes(), MIB);
    let digest = sha256(&[&vec![1; 1 << 20][..], &content[1 << 20..]].concat());
    let path = fixture.part_file();
    std::fs::OpenOptions::new().write(true).open(path).unwrap().write_at(b"rot", 77).unwrap();
    let mut writer = fixture.store.take_up(&digest).await.unwrap().resume().await.unwrap();
    writer.write(part(&content, MIB..2 * MIB)).await.unwrap();
    assert!(matches!(writer.finish().await, Err(StoreError::DigestMismatch { .. })));
    assert!(fixture.fills().await.is_empty());
    assert_eq!(fixture.bytes(), 0);
}

#[tokio::test]
async fn what_is_discarded_is_gone_and_what_has_no_file_too() {
    let fixture = fixture(1 << 30);
    let content = content(10, 3 * MIB);
    let digest = fixture.leave(&content, &[0..2 * MIB]).await;
    fixture.store.take_up(&digest).await.unwrap().discard().await;
    assert!(fixture.fills().await.is_empty() && fixture.store.take_up(&digest).await.is_none());
    assert_eq!(fixture.bytes(), 0);
    fixture.leave(&content, &[0..2 * MIB]).await;
    std::fs::remove_file(fixture.part_file()).unwrap();
    assert!(fixture.store.take_up(&digest).await.unwrap().resume().await.is_err());
    assert!(fixture.fills().await.is_empty() && fixture.store.take_up(&digest).await.is_none());
    for path in [None, Some(fixture.root.path().join(layout::map(&digest)))] {
        fixture.leave(&content, &[0..2 * MIB]).await;
        // The name of the file is another one each time.
        std::fs::remove_file(path.unwrap_or_else(|| fixture.part_file())).unwrap();
        forget_lost(&fixture.store).await;
        assert!(fixture.fills().await.is_empty());
    }
    fixture.leave(&content, &[0..2 * MIB]).await;
    forget_lost(&fixture.store).await;
    assert_eq!(fixture.fills().await, ["map", "part"]);
    fixture.store.take_up(&digest).await.unwrap().discard().await;
    fixture.leave(&content, &[0..2 * MIB]).await;
    std::fs::OpenOptions::new().write(true).open(fixture.part_file()).unwrap().set_len(MIB).unwrap();
    assert!(fixture.store.take_up(&digest).await.unwrap().resume().await.is_err());
    assert!(fixture.fills().await.is_empty());
    assert_eq!(fixture.bytes(), 0);
}

#[tokio::test]
async fn a_start_keeps_only_what_a_map_names() {
    let fixture = fixture(1 << 30);
    let contents: Vec<Vec<u8>> = (0..6).map(|seed| content(seed, 2 * MIB)).collect();
    for content in &contents {
        fixture.leave(content, &[0..MIB]).await;
    }
    fixture.store.close().await;
    let map = |n: usize| fixture.root.path().join(layout::map(&sha256(&contents[n])));
    let record = |n: usize| record::decode::<serde_json::Value>(&std::fs::read(map(n)).unwrap()).unwrap();
    let change = |n: usize, field: &str, value: serde_json::Value| {
        let mut record = record(n);
        record[field] = value;
        std::fs::write(map(n), record::encode(&record).unwrap()).unwrap();
    };
    std::fs::write(map(0), b"{").unwrap();
    change(1, "present", serde_json::json!([[0, 9], [9, 20]]));
    change(2, "present", serde_json::json!([[0, MIB + 1]]));
    change(3, "file", serde_json::json!("../lock.part"));
    std::fs::remove_file(map(4)).unwrap();
    std::fs::write(fixture.root.path().join("fills/dead-1-1.tmp"), "x").unwrap();
    let fixture = fixture.restart(false, false).await;
    assert_eq!(fixture.fills().await, ["map", "part"]);
    assert_eq!(fixture.bytes(), MIB);
    end(&fixture.store, &contents[5]).await;
    for content in &contents[..5] {
        assert!(fixture.store.take_up(&sha256(content)).await.is_none());
    }
}

#[tokio::test]
async fn two_fills_at_once_do_not_write_one_map() {
    let fixture = fixture(1 << 30);
    let content = content(11, 3 * MIB);
    let digest = sha256(&content);
    let first = begin(&fixture.store, &content).await;
    let second = begin(&fixture.store, &content).await;
    for (writer, until) in [(&first, 2 * MIB), (&second, 3 * MIB)] {
        write(writer, &content, &[0..until]).await;
        written(writer, until).await;
        writer.checkpoint().await;
    }
    assert_eq!(fixture.fills().await, ["map", "part", "tmp"]);
    drop(first);
    assert_eq!(fixture.fills().await, ["map", "part", "tmp"]);
    second.finish().await.unwrap();
    assert!(fixture.fills().await.is_empty(), "what is left of a blob that is there is of no use");
    assert!(fixture.store.take_up(&digest).await.is_none());
    assert_eq!(fixture.bytes(), 3 * MIB);
}

#[tokio::test]
async fn a_file_whose_sync_failed_is_neither_kept_nor_published() {
    for publish in [true, false] {
        let (fixture, sim) = simulated();
        let content = content(12, 2 * MIB);
        let writer = begin(&fixture.store, &content).await;
        write(&writer, &content, &[0..2 * MIB]).await;
        written(&writer, 2 * MIB).await;
        fixture.idle().await;
        sim.arm(Fault { harm: Harm::Fail(rustix::io::Errno::IO), at: 1, times: 1 }, 0);
        writer.checkpoint().await;
        assert_eq!(sim.fired(), 1);
        sim.heal();
        if publish {
            assert!(matches!(writer.finish().await, Err(StoreError::Io { .. })));
        } else {
            drop(writer);
        }
        assert!(fixture.fills().await.is_empty());
        assert_eq!(fixture.bytes(), 0);
    }
}

#[tokio::test]
async fn who_adds_nothing_more_hears_that_what_was_accepted_could_not_be_written() {
    let (fixture, sim) = simulated();
    let content = content(15, 2 * MIB);
    let writer = begin(&fixture.store, &content).await;
    fixture.idle().await;
    sim.arm(Fault { harm: Harm::Fail(rustix::io::Errno::IO), at: 1, times: u64::MAX }, 0);
    writer.write_at(MIB, part(&content, MIB..MIB + 4096)).await.unwrap();
    let error = tokio::time::timeout(Duration::from_secs(10), writer.failed()).await.unwrap();
    assert!(matches!(error, StoreError::Io { .. }), "{error}");
    sim.heal();
}

#[tokio::test]
async fn what_cannot_be_gone_on_with_for_want_of_room_stays() {
    let fixture = fixture(8 * MIB);
    let content = content(13, 6 * MIB);
    let digest = fixture.leave(&content, &[0..2 * MIB]).await;
    let other = put(&fixture.store, &vec![1; 5 << 20]).await;
    let reader = fixture.store.blob(&other).await.unwrap().unwrap();
    let error = fixture.store.take_up(&digest).await.unwrap().resume().await.unwrap_err();
    assert!(error.is_full(), "{error}");
    assert_eq!(fixture.bytes(), 7 * MIB);
    drop(reader);
    end(&fixture.store, &content).await;
    assert!(fixture.store.blob(&other).await.unwrap().is_none(), "it made room");
    assert_eq!(fixture.bytes(), 6 * MIB);
}

// === what goes ===

#[tokio::test]
async fn what_is_left_goes_before_any_blob_the_oldest_first() {
    let clock = Twin::new();
    let fixture = fixture_by(clock.clone(), 10 * MIB);
    let blob = put(&fixture.store, &vec![7; 3 << 20]).await;
    let contents: Vec<Vec<u8>> = (20..23).map(|seed| content(seed, 3 * MIB)).collect();
    for content in &contents {
        clock.forward(Duration::from_secs(10));
        fixture.leave(content, &[0..2 * MIB]).await;
    }
    assert_eq!(fixture.bytes(), 9 * MIB);
    put(&fixture.store, &vec![8; 2 << 20]).await;
    assert!(fixture.store.take_up(&sha256(&contents[0])).await.is_none(), "one was enough");
    assert_eq!(fixture.fills().await, ["map", "map", "part", "part"]);
    // A file system that is full although the books see room.
    assert!(fixture.store.blocking(|inner| Ok(inner.evict(1))).await.unwrap());
    assert!(fixture.store.take_up(&sha256(&contents[1])).await.is_none());
    let last = fixture.store.take_up(&sha256(&contents[2])).await.unwrap();
    put(&fixture.store, &vec![9; 4 << 20]).await;
    assert!(fixture.store.blob(&blob).await.unwrap().is_none(), "what somebody goes on with stays");
    drop(last);
    put(&fixture.store, &vec![10; 1 << 20]).await;
    assert!(fixture.store.take_up(&sha256(&contents[2])).await.is_some(), "there is room");
    assert!(fixture.bytes() <= 10 * MIB);
    assert_eq!(fixture.metrics.evicted_bytes.get(), 3 * MIB, "no more than one blob went");
}

#[tokio::test]
async fn at_the_start_the_oldest_have_no_room() {
    let clock = Twin::new();
    let fixture = fixture_by(clock.clone(), 1 << 30);
    let contents: Vec<Vec<u8>> = (30..34).map(|seed| content(seed, 2 * MIB)).collect();
    for content in &contents {
        clock.forward(Duration::from_secs(10));
        fixture.leave(content, &[0..MIB]).await;
    }
    fixture.store.close().await;
    let Fixture { root, store, .. } = fixture;
    drop(store);
    let metrics = Metrics::new().unwrap();
    let options = StoreOptions { clock: clock.clone(), ..options(root.path(), 5 * MIB / 2) };
    let store = Store::open_with(options, metrics.clone(), |_| Box::new(InMemory)).unwrap();
    let fixture = Fixture { root, metrics, store };
    assert_eq!(fixture.bytes(), 2 * MIB);
    assert_eq!(fixture.fills().await, ["map", "map", "part", "part"]);
    for (n, content) in contents.iter().enumerate() {
        assert_eq!(fixture.store.take_up(&sha256(content)).await.is_some(), n >= 2, "{n}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_nobody_goes_on_with_for_a_week_goes() {
    let clock = Twin::new();
    let fixture = fixture_by(clock.clone(), 1 << 30);
    let hour = Duration::from_hours(1);
    clock.forward(10_000 * hour);
    let ahead = fixture.leave(&content(41, 2 * MIB), &[0..MIB]).await;
    clock.back(10_000 * hour);
    let content = content(40, 2 * MIB);
    let digest = fixture.leave(&content, &[0..MIB]).await;
    let expire = || async {
        fixture
            .store
            .blocking(|inner| {
                inner.expire_partials();
                Ok(())
            })
            .await
            .unwrap();
        fixture.fills().await.len()
    };
    assert_eq!(expire().await, 4, "the date in the future counts as now");
    let now = seconds(fixture.store.timeline().now());
    assert!(fixture.store.0.partials.touched(&ahead).unwrap() <= now);
    for _ in 0..6 * 24 {
        tokio::time::advance(hour).await;
        let _ = fixture.store.timeline().settled();
    }
    assert_eq!(expire().await, 4);
    // Going on with it is a use.
    let writer = fixture.store.take_up(&digest).await.unwrap().resume().await.unwrap();
    write(&writer, &content, &[MIB..MIB + 5]).await;
    written(&writer, MIB + 5).await;
    drop(writer);
    fixture.idle().await;
    for _ in 0..2 * 24 {
        tokio::time::advance(hour).await;
        let _ = fixture.store.timeline().settled();
    }
    assert_eq!(expire().await, 2);
    assert!(fixture.store.take_up(&digest).await.is_some());
}

#[tokio::test]
async fn it_counts_as_a_download_in_what_is_used() {
    let fixture = fixture(1 << 30);
    let content = content(50, 4 * MIB);
    fixture.leave(&content, &[0..MIB, 2 * MIB..3 * MIB]).await;
    let usage = fixture.store.usage().await.unwrap();
    assert!((2 * MIB..3 * MIB + 10_000).contains(&usage.fills_bytes), "{}", usage.fills_bytes);
    let collected = fixture.store.collect_at(wall() + Duration::from_hours(9), true, None).await.unwrap();
    assert!((collected.blobs, collected.broken_refs, collected.damaged_records) == (0, 0, 0), "{collected:?}");
}

/// What a process leaves that ends at once: it has put `down` down, and written `more` since.
fn killed(content: &[u8], down: &[Range<u64>], more: &[Range<u64>]) -> Fixture {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (fixture, writer) = runtime.block_on(async {
        let fixture = fixture(1 << 30);
        let writer = begin(&fixture.store, content).await;
        let mut bytes = 0;
        for ranges in [down, more] {
            if bytes > 0 {
                writer.checkpoint().await;
            }
            write(&writer, content, ranges).await;
            bytes += ranges.iter().map(|range| range.end - range.start).sum::<u64>();
            written(&writer, bytes).await;
        }
        (fixture, writer)
    });
    drop(runtime);
    drop(writer);
    fixture
}

#[test]
fn a_process_that_ends_at_once_leaves_what_was_put_down() {
    let content = content(60, 3 * MIB);
    let fixture = killed(&content, &[0..2 * MIB], &[]);
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let fixture = fixture.restart(false, false).await;
        let partial = fixture.store.take_up(&sha256(&content)).await.unwrap();
        assert_eq!(partial.present(), &ByteRanges::from(0..2 * MIB));
        drop(partial);
        end(&fixture.store, &content).await;
    });
}

#[test]
fn what_a_killed_process_had_taken_for_the_rest_is_given_back_at_the_start() {
    let content = content(61, 16 * MIB);
    let fixture = killed(&content, &[0..2 * MIB], &[5 * MIB..6 * MIB]);
    let part = fixture.part_file();
    let takes = || std::fs::metadata(&part).unwrap().blocks() * 512;
    assert!(takes() >= 3 * MIB, "on most file systems all of it: {}", takes());
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let fixture = fixture.restart(false, false).await;
        let now = takes();
        assert!((2 * MIB..2 * MIB + 200_000).contains(&now), "{now} bytes for the first two MiB");
        assert_eq!(fixture.bytes(), 2 * MIB);
        let partial = fixture.store.take_up(&sha256(&content)).await.unwrap();
        assert_eq!(partial.present(), &ByteRanges::from(0..2 * MIB));
        drop(partial);
        end(&fixture.store, &content).await;
        assert_eq!(fixture.bytes(), 16 * MIB);
    });
}
