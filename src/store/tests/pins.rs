//! Pins whose refs or records cannot be read: what may be pinned stays until it is known.

use super::images::{Images, content};
use super::*;
use crate::clock::twin::wall;
use crate::config::Pin;
use crate::store::order::Short;

/// A pin of `docker.io/team/tool:1`, which is a manifest over a configuration and a layer.
async fn pinned() -> Images {
    let images = Images::new().await;
    assert!(images.store().pin(pin()).await.unwrap());
    images
}

fn pin() -> Pin {
    Pin::parse("docker.io/team/tool:1", |_| false).unwrap()
}

fn is_pinned(fixture: &Fixture, digest: &Digest) -> bool {
    fixture.store.0.books.with_order(|order| order.is_pinned(&Short::from(digest)))
}

/// All that the pin keeps is kept.
fn assert_kept(fixture: &Fixture, tool: &Digest, what: &str) {
    assert!(fixture.store.0.pins.are_settled(), "{what}");
    for digest in [*tool, sha256(&content(8, 40)), sha256(&content(1, 1000))] {
        assert!(is_pinned(fixture, &digest), "{what}: {digest}");
    }
}

/// Settles in the background, whatever that says.
async fn settle(fixture: &Fixture) {
    let inner = fixture.store.0.clone();
    let _ = tokio::task::spawn_blocking(move || inner.settle_pins()).await.unwrap();
}

/// A directory whose path is longer than the system takes cannot be listed, whoever runs the tests.
fn too_deep(directory: &Path) -> PathBuf {
    use rustix::fs::{Mode, OFlags, mkdirat, openat};
    let name = "d".repeat(250);
    let mut at = rustix::fs::open(directory, OFlags::DIRECTORY, Mode::empty()).unwrap();
    for _ in 0..17 {
        mkdirat(&at, name.as_str(), Mode::RWXU).unwrap();
        at = openat(&at, name.as_str(), OFlags::DIRECTORY, Mode::empty()).unwrap();
    }
    directory.join(name)
}

#[tokio::test(start_paused = true)]
async fn while_refs_cannot_be_listed_nothing_goes() {
    let images = pinned().await;
    for deep in [false, true] {
        let crashed = images.fixture.crashed(InMemory).await;
        let up = crashed.root.path().join("refs/docker.io");
        let aside = up.with_file_name("elsewhere");
        if deep {
            too_deep(&up.join("team"));
        } else {
            std::fs::rename(&up, &aside).unwrap();
            std::os::unix::fs::symlink("elsewhere", &up).unwrap();
        }
        crashed.store.load().await.unwrap();
        settle(&crashed).await;
        assert!(!crashed.store.0.pins.are_settled(), "nobody knows what is pinned");
        // It is looked at again, until that works.
        let stop = CancellationToken::new();
        let mut keeping = tokio::task::JoinSet::new();
        keeping.spawn({
            let (store, stop) = (crashed.store.clone(), stop.clone());
            async move { store.keep_pins(&stop).await }
        });
        tokio::time::sleep(Duration::from_mins(5)).await;
        assert!(!crashed.store.0.pins.are_settled());
        if deep {
            std::fs::remove_dir_all(up.join("team").join("d".repeat(250))).unwrap();
        } else {
            std::fs::remove_file(&up).unwrap();
            std::fs::rename(&aside, &up).unwrap();
        }
        tokio::time::sleep(Duration::from_mins(5)).await;
        assert_kept(&crashed, &images.tool, "it can be listed again");
        stop.cancel();
        keeping.join_all().await;
    }
}

#[tokio::test]
async fn a_damaged_tag_under_a_pin_keeps_what_it_may_mean() {
    let images = pinned().await;
    let crashed = images.fixture.crashed(InMemory).await;
    std::fs::write(crashed.root.path().join("refs/docker.io/team/tool/_tags/1"), "{").unwrap();
    settle(&crashed).await;
    assert_kept(&crashed, &images.tool, "the tag is damaged");
    assert!(!is_pinned(&crashed, &images.index), "another repository is not meant");
    let collected = crashed.store.collect(false, None).await.unwrap();
    assert_eq!(collected.damaged_records, 1);
    settle(&crashed).await;
    assert_kept(&crashed, &images.tool, "cleaning up takes no pin away");
}

#[tokio::test]
async fn a_damaged_manifest_under_a_pin_keeps_what_it_may_name() {
    let images = pinned().await;
    for damage in [&b"{"[..], b"{\"schemaVersion\":2,\"layers\":[]}"] {
        let crashed = images.fixture.crashed(InMemory).await;
        std::fs::write(crashed.path(&images.tool), damage).unwrap();
        settle(&crashed).await;
        assert_kept(&crashed, &images.tool, "the manifest is damaged");
    }
}

fn pin_files(root: &Path) -> Vec<PathBuf> {
    let mut files: Vec<_> = std::fs::read_dir(root.join("state/pins")).unwrap().map(|e| e.unwrap().path()).collect();
    files.sort();
    files
}

#[tokio::test]
async fn a_pin_outlives_a_damaged_record() {
    let Images { mut fixture, .. } = pinned().await;
    let files = pin_files(fixture.root.path());
    for file in &files {
        let before: Vec<_> = files.iter().map(|file| std::fs::read(file).unwrap()).collect();
        for damage in [Some("{"), None] {
            match damage {
                Some(text) => std::fs::write(file, text).unwrap(),
                None => std::fs::remove_file(file).unwrap(),
            }
            fixture = fixture.restart(false, false).await;
            assert_eq!(fixture.store.pins().into_iter().map(|of| of.pin).collect::<Vec<_>>(), [pin()], "{damage:?}");
            let after: Vec<_> = files.iter().map(|file| std::fs::read(file).unwrap()).collect();
            assert_eq!(after, before, "both are whole again");
        }
    }
    assert!(fixture.store.unpin(&pin()).await.unwrap());
    assert!(pin_files(fixture.root.path()).is_empty());
}

/// Nobody knows what it kept; it must not go without a word.
#[tokio::test]
async fn a_pin_that_is_lost_is_told_until_it_is_made_again() {
    let Images { mut fixture, .. } = pinned().await;
    let files = pin_files(fixture.root.path());
    let told: Vec<_> = files.iter().map(|file| file.strip_prefix(fixture.root.path()).unwrap().to_owned()).collect();
    std::fs::write(&files[0], "{").unwrap();
    let collected = fixture.store.collect(true, None).await.unwrap();
    assert_eq!(collected.damaged_pins, told[..1], "the daemon still knows it");
    fixture.store.collect(false, None).await.unwrap();
    assert!(fixture.store.verify(None, None, false).await.unwrap().is_clean(), "it is written anew");
    for file in &files {
        std::fs::write(file, "{").unwrap();
    }
    fixture = fixture.restart(false, false).await;
    assert!(fixture.store.pins().is_empty());
    for repair in [false, true] {
        let found = fixture.store.verify(None, None, repair).await.unwrap();
        assert_eq!((&found.damaged_pins, found.is_clean()), (&told, false));
    }
    assert!(fixture.store.pin(pin()).await.unwrap());
    assert!(fixture.store.verify(None, None, false).await.unwrap().is_clean());
}

#[tokio::test]
async fn a_manifest_that_comes_after_its_tag_keeps_what_it_names() {
    let fixture = fixture(1 << 30);
    fixture.store.pin(pin()).await.unwrap();
    let layer = put(&fixture.store, &content(1, 1000)).await;
    let text = evict::manifest(&sha256(b"config"), &[layer]);
    let (up, repo) = ("docker.io".parse().unwrap(), "team/tool".parse().unwrap());
    let record =
        TagRecord { digest: sha256(text.as_bytes()), media_type: "m".into(), size: text.len() as u64, etag: None };
    fixture.store.set_tag(&up, &repo, &"1".parse().unwrap(), &record, wall()).await.unwrap();
    assert!(!is_pinned(&fixture, &layer), "nobody can know");
    put(&fixture.store, text.as_bytes()).await;
    assert!(is_pinned(&fixture, &layer) && is_pinned(&fixture, &sha256(b"config")));
}
