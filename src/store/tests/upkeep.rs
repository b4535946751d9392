//! What nothing leads to goes, and what is wrong is found.

use super::images::{Images, content};
use super::*;

const HOURS: Duration = Duration::from_hours(2);

/// Flips a bit of a stored file.
fn damage(fixture: &Fixture, digest: &Digest) {
    let path = fixture.path(digest);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[0] ^= 1;
    std::fs::write(&path, bytes).unwrap();
}

#[tokio::test]
async fn what_nothing_leads_to_goes_when_it_is_old() {
    let images = Images::new().await;
    let (store, root) = (images.store(), images.fixture.root.path());
    let stray = put(store, &content(99, 77)).await;
    let tool = std::fs::metadata(images.fixture.path(&images.tool)).unwrap().len();
    std::fs::remove_file(images.fixture.path(&images.tool)).unwrap();
    std::fs::write(root.join("refs/docker.io/library/app/_tags/2"), "{").unwrap();
    std::fs::write(root.join("refs/docker.io/library/app/_suspect"), "{").unwrap();
    std::fs::create_dir_all(root.join("refs/docker.io/x/y")).unwrap();
    std::fs::write(root.join("quarantine/sha256-x"), "wrong").unwrap();
    std::fs::create_dir_all(root.join("index.bad-1/blobs")).unwrap();
    std::fs::write(root.join("index.bad-1/blobs/1"), "x").unwrap();
    let known = sha256(&content(8, 40));
    store.0.hints.remove_blob(&known);

    let young = store.collect(true, None).await.unwrap();
    assert_eq!((young.blobs, young.broken_refs, young.quarantined), (0, 0, 0), "it may be about to be linked");
    let at = |after| wall() + after;
    let would = store.collect_at(at(HOURS), true, Some(1)).await.unwrap();
    assert!(images.fixture.path(&stray).exists() && root.join("refs/docker.io/x/y").exists(), "nothing has changed");
    let did = store.collect_at(at(HOURS), false, None).await.unwrap();
    assert_eq!(
        Collected { dry_run: true, evict_next: did.evict_next.clone(), ..did.clone() },
        Collected { evict_next: None, evictable_bytes: None, ..would.clone() }
    );
    assert_eq!((did.blobs, did.freed_bytes, did.broken_refs, did.damaged_records), (1, 77, 2, 1));
    assert_eq!((did.bad_indexes, did.index_added, did.index_removed, did.quarantined), (1, 1, 1, 0));
    assert_eq!(did.empty_directories, 2);
    assert!(!images.fixture.path(&stray).exists() && !root.join("index.bad-1").exists());
    assert!(!root.join("refs/docker.io/x").exists());
    assert!(root.join("refs/docker.io/library/app/_suspect").exists(), "a mark that cannot be read says the worst");
    assert!(store.0.hints.blob(&known, store.0.epoch).is_some());
    let on_disk = store.usage().await.unwrap().bytes;
    assert_eq!(images.fixture.metrics.store_bytes.get().cast_unsigned(), on_disk, "the books follow");
    let [victim] = would.evict_next.as_deref().unwrap() else { panic!("{would:?}") };
    assert!(victim.digest.is_some() && victim.last_used.is_some() && !victim.names.is_empty(), "{victim:?}");
    let late = store.collect_at(at(Duration::from_hours(8 * 24)), false, None).await.unwrap();
    assert_eq!((late.quarantined, late.quarantined_bytes, late.blobs), (1, 5, 0));
    assert!(tool > 0 && images.files() == 13);
    let again = store.collect_at(at(HOURS), false, None).await.unwrap();
    assert_eq!(again, Collected::default(), "there is nothing left to do");
}

#[tokio::test]
async fn a_directory_that_cannot_be_listed_makes_no_garbage() {
    let images = Images::new().await;
    let links = images.fixture.root.path().join("refs/docker.io/team/tool/_links");
    std::fs::rename(&links, links.with_file_name("aside")).unwrap();
    std::os::unix::fs::symlink("aside", &links).unwrap();
    // A link is no directory, and is not followed; what is behind it in the same tree still leads to its blobs.
    let collected = images.store().collect_at(wall() + HOURS, false, None).await.unwrap();
    assert_eq!((collected.blobs, images.files()), (1, 13), "only what its own tag does not name: {collected:?}");
}

#[tokio::test]
async fn what_is_wrong_is_found_named_and_set_aside() {
    let images = Images::new().await;
    let (store, layer) = (images.store(), sha256(&content(8, 40)));
    let clean = store.verify(None, None, false).await.unwrap();
    assert!(clean.is_clean(), "{clean:?}");
    assert_eq!((clean.blobs, clean.bytes), (14, store.usage().await.unwrap().bytes));
    damage(&images.fixture, &layer);
    let elsewhere = store.verify(Some("docker.io/library/**".parse().unwrap()), None, false).await.unwrap();
    assert!(elsewhere.is_clean() && elsewhere.blobs == 12, "{elsewhere:?}");
    let found = store.verify(Some("docker.io/team/tool:1".parse().unwrap()), None, false).await.unwrap();
    let [wrong] = &found.wrong[..] else { panic!("{found:?}") };
    assert_eq!((wrong.digest, wrong.bytes), (layer, 40));
    assert_eq!(wrong.names, [format!("docker.io/team/tool@{layer}")]);
    assert_eq!(images.fixture.metrics.corrupt_blobs.get(), 1);
    assert!(store.blob(&layer).await.unwrap().is_none(), "it is fetched when it is asked for next");
    assert_eq!(std::fs::read_dir(images.fixture.root.path().join("quarantine")).unwrap().count(), 1);
    assert!(store.verify(None, None, false).await.unwrap().is_clean(), "what is gone is no damage");
}

#[tokio::test]
async fn a_link_under_a_blobs_name_is_set_aside() {
    let images = Images::new().await;
    let (path, other) = (images.fixture.path(&images.tool), images.fixture.path(&images.index));
    std::fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink(other, &path).unwrap();
    let found = images.store().verify(None, None, false).await.unwrap();
    assert_eq!(found.wrong.iter().map(|wrong| wrong.digest).collect::<Vec<_>>(), [images.tool]);
    assert!(images.store().blob(&images.tool).await.unwrap().is_none());
}

#[tokio::test]
async fn damaged_records_are_told_and_repaired() {
    let images = Images::new().await;
    let tag = images.fixture.root.path().join("refs/docker.io/team/tool/_tags/1");
    std::fs::write(&tag, "{").unwrap();
    let found = images.store().verify(None, None, false).await.unwrap();
    assert_eq!((found.damaged_records, found.is_clean(), tag.exists()), (1, false, true));
    let repaired = images.store().verify(None, None, true).await.unwrap();
    assert_eq!((repaired.damaged_records, repaired.repaired, tag.exists()), (1, true, false));
    assert!(images.store().verify(None, None, false).await.unwrap().is_clean());
}

#[tokio::test(start_paused = true)]
async fn a_rate_is_kept() {
    let fixture = fixture(1 << 30);
    put(&fixture.store, &content(1, 10 << 20)).await;
    let begun = Instant::now();
    fixture.store.verify(None, None, false).await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(1), "nothing is waited for without one");
    fixture.store.verify(None, Some(1 << 20), false).await.unwrap();
    let took = begun.elapsed();
    assert!((Duration::from_secs(9)..Duration::from_secs(11)).contains(&took), "{took:?}");
}

/// A tag that cannot be read at this moment (no file descriptor is left) is neither damaged nor gone.
#[tokio::test]
async fn what_cannot_be_read_now_is_no_garbage() {
    let images = Images::new().await;
    let inner = &images.store().0;
    let tag = Path::new("refs/docker.io/team/tool/_tags/1");
    let found: record::Found<TagRecord> = Records::look(&inner.disk, tag).unwrap();
    assert!(matches!(found, record::Found::Record(_)));
    let absent: record::Found<TagRecord> = Records::look(&inner.disk, Path::new("refs/docker.io/no/_tags/1")).unwrap();
    assert_eq!(absent, record::Found::Nothing);
    // A name that no file system takes stands for any other failure.
    let failing = PathBuf::from("refs/docker.io").join("x".repeat(300)).join("_tags/1");
    assert!(Records::look::<TagRecord>(&inner.disk, &failing).is_err() && inner.named_by(&failing).is_err());
}

/// A disk fails at one blob: the others are verified all the same, and the report is not lost.
#[tokio::test]
async fn what_cannot_be_verified_is_reported_and_does_not_end_it() {
    let images = Images::new().await;
    let (fixture, store) = (&images.fixture, images.store());
    // A directory that can be moved nowhere.
    let path = fixture.path(&images.tool);
    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir_all(path.join("something")).unwrap();
    std::fs::remove_dir(fixture.root.path().join("quarantine")).unwrap();
    std::fs::write(fixture.root.path().join("quarantine"), "").unwrap();
    let found = store.verify(None, None, false).await.unwrap();
    assert!(!found.is_clean(), "{found:?}");
    assert_eq!(found.blobs, 13, "all others: {found:?}");
}
