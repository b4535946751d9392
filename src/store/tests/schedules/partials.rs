//! What a fill has left, gone on with by one, removed for room by another, while others begin, give up and tidy up.

use std::ops::Range;
use std::os::unix::fs::MetadataExt as _;

use super::*;

/// Blobs of so many bytes can be gone on with: the third layer.
pub(super) const LEAST: u64 = 10_000;
/// What is written at a time.
const PART: usize = 9_000;

fn long(stage: &Stage) -> &[u8] {
    &stage.layers[2]
}

fn part(content: &[u8], range: &Range<u64>) -> Bytes {
    let [start, end] = [range.start, range.end].map(|at| usize::try_from(at).unwrap());
    Bytes::copy_from_slice(&content[start..end])
}

/// What of it is not there, in parts.
fn missing(writer: &BlobWriter, content: &[u8]) -> Vec<Range<u64>> {
    let gaps = writer.present().gaps(0..content.len() as u64);
    let in_parts = |gap: Range<u64>| gap.clone().step_by(PART).map(move |at| at..gap.end.min(at + PART as u64));
    gaps.into_iter().flat_map(in_parts).collect()
}

/// What is said to be in the file is.
fn check_present(present: &ByteRanges, file: &std::fs::File, content: &[u8]) {
    for range in present.iter() {
        let mut there = vec![0; usize::try_from(range.end - range.start).unwrap()];
        file.read_exact_at(&mut there, range.start).unwrap();
        assert!(there == part(content, &range), "{range:?} is in the file");
    }
}

/// Blobs are small, and no actor waits for another for long.
pub(super) fn set_up(store: &Store) {
    store.0.partials.set_least(LEAST);
    store.0.partials.set_patience(Duration::from_millis(20));
}

/// As a fill says where it comes from.
fn mark() -> PartialMark {
    let repository = Some("library/app".into());
    PartialMark { upstream: Some("docker.io".into()), repository, ..PartialMark::default() }
}

/// Begins a fill of the layer, is given up, and has left something.
pub(super) async fn leave_some(store: &Store, stage: &Stage) -> Result<(), StoreError> {
    let content = long(stage);
    let writer = store.create(&sha256(content), Some(content.len() as u64)).await?;
    writer.remember(mark());
    for range in [2_000..11_000, 20_000..24_000] {
        writer.write_at(range.start, part(content, &range)).await?;
    }
    writer.park().await;
    Ok(())
}

/// Books, maps and files say the same, and what is left goes for room before any blob, or is gone on with to the end. Then
/// nothing of it is there.
pub(super) async fn end(store: &Store, stage: &Stage, root: &Path, seed: u64) {
    let (content, fills) = (long(stage), root.join("fills"));
    let digest = sha256(content);
    let names = || {
        let mut names: Vec<_> = std::fs::read_dir(&fills).unwrap().map(|entry| entry.unwrap().path()).collect();
        names.sort();
        names
    };
    let Some(partial) = store.take_up(&digest).await else {
        assert!(names().is_empty(), "what is not known of is not there: {:?}", names());
        return;
    };
    let map = root.join(layout::map(&digest));
    let record: serde_json::Value = record::decode(&std::fs::read(&map).unwrap()).unwrap();
    let file = fills.join(record["file"].as_str().unwrap());
    assert_eq!(names().into_iter().collect::<HashSet<_>>(), HashSet::from([map, file.clone()]), "a map and its file");
    let present: Vec<(u64, u64)> = serde_json::from_value(record["present"].clone()).unwrap();
    assert_eq!(Vec::from(partial.present()), present, "what is known is what the map says");
    check_present(partial.present(), &std::fs::File::open(file).unwrap(), content);
    if seed % 4 < 2 {
        drop(partial);
        let count = || std::fs::read_dir(root.join("blobs/sha256")).unwrap().count();
        let before = count();
        assert!(store.blocking(|inner| Ok(inner.evict(1))).await.unwrap(), "it makes room");
        assert!(store.take_up(&digest).await.is_none() && count() == before, "before any blob");
    } else {
        let writer = partial.resume().await.unwrap();
        for range in missing(&writer, content) {
            writer.write_at(range.start, part(content, &range)).await.unwrap();
        }
        let blob = writer.finish().await.unwrap();
        check_present(&ByteRanges::from(0..content.len() as u64), &blob.file, content);
    }
}

// === what actors do ===

impl Actor {
    /// The same as [`Actor::block`] of who takes locks before and after it waits, and not meanwhile.
    fn alone<T>(&self, work: impl Future<Output = T>) -> T {
        self.gate.enter(self.number);
        let done = self.block(work);
        gate::leave();
        done
    }
}

fn within(store: &Store) {
    let (used, capacity) = (store.0.books.used_bytes(), store.0.books.capacity());
    assert!(used <= capacity, "{used} of {capacity}: no more is promised than may be");
}

/// Puts down what is there. Whether the map is this writer's, and not that of another of the same.
fn put_down(stage: &Stage, store: &Store, actor: &Actor, writer: &BlobWriter) -> bool {
    actor.block(writer.checkpoint());
    is_mapped(stage, store, writer)
}

/// The file that the map names.
fn mapped(stage: &Stage, store: &Store) -> Option<PathBuf> {
    let map = std::fs::read(store.root().join(layout::map(&sha256(long(stage))))).ok()?;
    let record: serde_json::Value = record::decode(&map).unwrap();
    Some(store.root().join("fills").join(record["file"].as_str().unwrap()))
}

fn is_mapped(stage: &Stage, store: &Store, writer: &BlobWriter) -> bool {
    let named = mapped(stage, store).and_then(|path| std::fs::metadata(path).ok());
    named.is_some_and(|named| named.ino() == writer.file().metadata().unwrap().ino())
}

/// Nobody but a command removes the map that a writer has put down.
fn check_map(stage: &Stage, store: &Store, writer: &BlobWriter) {
    let by_command = !stage.removed.lock().is_empty();
    assert!(by_command || is_mapped(stage, store, writer), "nobody else removes its map");
}

/// Goes on with what is left, or begins; none if there is no room.
fn begin(stage: &Stage, store: &Store, actor: &Actor) -> Option<BlobWriter> {
    let content = long(stage);
    let digest = sha256(content);
    let begun = if let Some(partial) = actor.alone(store.take_up(&digest)) {
        actor.step();
        actor.alone(partial.resume())
    } else {
        stage.meet();
        actor.alone(store.create(&digest, Some(content.len() as u64)))
    };
    match begun {
        Ok(writer) => {
            actor.alone(async { writer.remember(mark()) });
            check_present(&writer.present(), &writer.file(), content);
            Some(writer)
        }
        // Anything else would be that somebody has removed what this one has.
        Err(error) => {
            assert!(error.is_full(), "{error}");
            None
        }
    }
}

/// Goes on, or begins, to the end.
fn go_on(stage: &Stage, store: &Store, actor: &Actor) {
    let content = long(stage);
    let Some(writer) = begin(stage, store, actor) else { return };
    let mut mapped = false;
    for range in missing(&writer, content) {
        actor.step();
        if mapped {
            check_map(stage, store, &writer);
        }
        actor.block(writer.write_at(range.start, part(content, &range))).unwrap();
        mapped = put_down(stage, store, actor, &writer);
    }
    let blob = actor.block(writer.finish()).unwrap();
    check_present(&ByteRanges::from(0..content.len() as u64), &blob.file, content);
    within(store);
    actor.step();
    actor.alone(async { drop(blob) });
}

/// Goes on, or begins, and gives it up; twice.
fn give_up(stage: &Stage, store: &Store, actor: &Actor) {
    let content = long(stage);
    for _ in 0..2 {
        let Some(writer) = begin(stage, store, actor) else { continue };
        let mut mapped = false;
        for range in missing(&writer, content).into_iter().rev().take(2) {
            actor.step();
            if mapped {
                check_map(stage, store, &writer);
            }
            actor.block(writer.write_at(range.start, part(content, &range))).unwrap();
            mapped = put_down(stage, store, actor, &writer);
        }
        check_present(&writer.present(), &writer.file(), content);
        within(store);
        actor.step();
        actor.alone(async { drop(writer) });
    }
}

/// Goes on, or begins, and gives it up for good.
fn discard(stage: &Stage, store: &Store, actor: &Actor) {
    let content = long(stage);
    for _ in 0..2 {
        let Some(writer) = begin(stage, store, actor) else { continue };
        if let Some(range) = missing(&writer, content).first() {
            actor.block(writer.write_at(range.start, part(content, range))).unwrap();
        }
        put_down(stage, store, actor, &writer);
        actor.step();
        actor.alone(async { writer.discard() });
    }
}

/// Removes what is left, once: a second time would hide what the first has done to others. Of what makes room nobody gets any
/// before that is done, so there nobody comes in between.
fn discard_left(stage: &Stage, store: &Store, actor: &Actor) {
    match actor.alone(store.take_up(&sha256(long(stage)))) {
        Some(partial) => actor.alone(partial.discard()),
        None => stage.meet(),
    }
}

/// Fills what needs the room of what is left, and the same once more.
fn need_room(stage: &Stage, store: &Store, actor: &Actor) {
    for content in [&stage.layers[3][..], long(stage), &stage.images[1]] {
        let writer = match actor.alone(store.create(&sha256(content), Some(content.len() as u64))) {
            Ok(writer) => writer,
            Err(error) => {
                assert!(error.is_full(), "{error}");
                stage.meet();
                continue;
            }
        };
        actor.step();
        actor.block(writer.write_at(0, Bytes::copy_from_slice(content))).unwrap();
        let blob = actor.block(writer.finish()).unwrap();
        within(store);
        actor.step();
        actor.alone(async { drop(blob) });
    }
}

/// Does as the upkeep does.
fn tidy(_: &Stage, store: &Store, actor: &Actor) {
    for _ in 0..2 {
        let work = |inner: &Arc<Inner>| {
            inner.group.run(&inner.disk);
            inner.remove_left();
            inner.forget_lost_partials();
            inner.expire_partials();
            Ok(())
        };
        actor.block(store.blocking(work)).unwrap();
    }
}

/// Removes all that is of the repository, what others have of it too.
fn remove_all(stage: &Stage, store: &Store, actor: &Actor) {
    // What has a map was asked for there.
    stage.removed.lock().extend(mapped(stage, store));
    let pattern: ImagePattern = "docker.io/library/app".parse().unwrap();
    actor.block(store.remove_images(vec![pattern], false)).unwrap();
}

/// The same of what nobody has gone on with for long.
fn collect_all(_: &Stage, store: &Store, actor: &Actor) {
    actor.block(store.collect_at(wall() + Duration::from_hours(2), false, None)).unwrap();
}

/// Takes up what is left, and gives it back as it is.
fn look(stage: &Stage, store: &Store, actor: &Actor) {
    for _ in 0..2 {
        match actor.alone(store.take_up(&sha256(long(stage)))) {
            Some(partial) => {
                actor.step();
                actor.alone(async { drop(partial) });
            }
            None => stage.meet(),
        }
    }
}

/// Finds out what is left.
fn find(_: &Stage, store: &Store, actor: &Actor) {
    for _ in 0..2 {
        let work = |inner: &Arc<Inner>| {
            inner.find_partials(false);
            Ok(())
        };
        actor.block(store.blocking(work)).unwrap();
    }
}

// === plays ===

fn explore_left(acts: &[Act], capacity: u64) {
    play(Play { acts, capacity, pinned: false, left: true, late: false, times: 1 });
}

#[test]
fn what_is_left_and_evictions() {
    explore_left(&[evict, go_on, give_up], AMPLE);
}

#[test]
fn what_is_left_and_fills_that_need_its_room() {
    explore_left(&[need_room, go_on, give_up], TIGHT);
}

#[test]
fn two_that_come_for_what_is_left() {
    explore_left(&[go_on, go_on, evict], TIGHT);
}

#[test]
fn fills_that_are_given_up_one_after_the_other() {
    explore_left(&[give_up, give_up, go_on, evict], AMPLE);
}

#[test]
fn what_is_left_and_upkeep() {
    explore_left(&[tidy, go_on, give_up, evict], AMPLE);
}

#[test]
fn what_comes_in_the_place_of_what_is_removed() {
    // All that the others do must come between two steps of the one.
    let acts: &[Act] = &[discard_left, give_up, give_up];
    play(Play { acts, capacity: AMPLE, pinned: false, left: true, late: false, times: 3 });
}

#[test]
fn what_comes_in_the_place_of_what_goes_for_good() {
    explore_left(&[discard, give_up], AMPLE);
}

#[test]
fn what_is_left_and_rm() {
    explore_left(&[remove_all, give_up, look], AMPLE);
}

#[test]
fn what_is_left_and_gc() {
    explore_left(&[collect_all, give_up, look], AMPLE);
}

#[test]
fn what_is_found_late() {
    let acts: &[Act] = &[find, go_on, give_up, evict];
    play(Play { acts, capacity: AMPLE, pinned: false, left: true, late: true, times: 1 });
}
