//! What is read all the time: files that stay open, and tags and links in memory.

use super::*;

/// Files of blobs that this process has open below the root, removed ones included.
fn open_blobs(fixture: &Fixture) -> usize {
    let blobs = fixture.root.path().canonicalize().unwrap().join("blobs");
    let links = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
    links.filter_map(|entry| std::fs::read_link(entry.path()).ok()).filter(|path| path.starts_with(&blobs)).count()
}

fn names() -> (UpstreamName, RepoName, Tag) {
    ("docker.io".parse().unwrap(), "library/app".parse().unwrap(), "1".parse().unwrap())
}

#[tokio::test]
async fn a_file_that_is_read_again_stays_open_until_nobody_asks_for_it() {
    let fixture = fixture(1 << 20);
    let digest = put(&fixture.store, b"content").await;
    for _ in 0..2 {
        assert_eq!(fixture.store.blob(&digest).await.unwrap().unwrap().trust, Trust::Verified);
        assert_eq!(open_blobs(&fixture), 1, "open, although no answer has it");
    }
    fixture.store.0.open.sweep();
    assert_eq!(open_blobs(&fixture), 1, "it was asked for a moment ago");
    fixture.store.0.open.sweep();
    assert_eq!(open_blobs(&fixture), 0);
    assert!(fixture.store.blob(&digest).await.unwrap().is_some());
    fixture.store.close().await;
    assert_eq!(open_blobs(&fixture), 0, "nothing outlives the store");
}

#[tokio::test]
async fn what_becomes_of_an_open_file_is_noticed() {
    let fixture = fixture(1 << 20);
    let trust = async |digest: &Digest| fixture.store.blob(digest).await.unwrap().map(|blob| blob.trust);
    let [written, removed, replaced, doubted] = [b"written", b"removed", b"replace", b"doubted"];
    let mut digests = Vec::new();
    for content in [written, removed, replaced, doubted] {
        digests.push(put(&fixture.store, content).await);
        assert_eq!(trust(digests.last().unwrap()).await, Some(Trust::Verified));
    }
    assert_eq!(open_blobs(&fixture), 4);
    let path = |n: usize| fixture.path(&digests[n]);
    std::fs::write(path(0), b"writteN").unwrap();
    assert_eq!(trust(&digests[0]).await, Some(Trust::Unverified), "the same length, another time");
    std::fs::remove_file(path(1)).unwrap();
    assert_eq!(trust(&digests[1]).await, None);
    std::fs::write(fixture.root.path().join("other"), b"other").unwrap();
    std::fs::rename(fixture.root.path().join("other"), path(2)).unwrap();
    let other = fixture.store.blob(&digests[2]).await.unwrap().unwrap();
    assert_eq!((other.trust, other.len), (Trust::Unverified, 5));
    fixture.store.blob(&digests[3]).await.unwrap().unwrap().distrust();
    assert_eq!(trust(&digests[3]).await, Some(Trust::Unverified), "a read of it has failed");
    drop(other);
    assert_eq!(open_blobs(&fixture), 0, "what is not verified is opened for each");
}

#[tokio::test]
async fn an_open_file_is_in_nobodys_way() {
    let fixture = fixture(1 << 20);
    let digest = put(&fixture.store, b"content").await;
    let blob = fixture.store.blob(&digest).await.unwrap().unwrap();
    assert!(fixture.store.0.books.is_busy(&digest));
    drop(blob);
    assert!(!fixture.store.0.books.is_busy(&digest), "it may be evicted");
    let (inner, gone) = (fixture.store.0.clone(), digest);
    let removed = tokio::task::spawn_blocking(move || inner.remove_unless(&gone, || false)).await.unwrap();
    assert_eq!(removed.unwrap(), Some(7));
    assert_eq!((open_blobs(&fixture), fixture.store.0.books.used_bytes()), (0, 0), "its bytes are free at once");
    assert!(fixture.store.blob(&digest).await.unwrap().is_none());
}

#[tokio::test]
async fn tags_and_links_are_read_once_and_never_late() {
    let fixture = fixture(1 << 20);
    let store = &fixture.store;
    let (up, repo, tag) = names();
    let digests = [put(store, b"one").await, put(store, b"two").await];
    let record = |n: usize| TagRecord { digest: digests[n], media_type: "x".into(), size: 3, etag: None };
    let now = || store.timeline().moment();
    for n in [0, 1, 0] {
        assert!(store.set_tag(&up, &repo, &tag, &record(n), now()).await.unwrap());
        for _ in 0..2 {
            let state = store.tag_state(&up, &repo, &tag).await.unwrap();
            assert_eq!(state.record.as_deref(), Some(&record(n)), "as it was written last");
            assert!(state.checked_at.is_some() && !state.suspect.unwrap());
        }
    }
    let link = Link::blob(Via::Anonymous, 3);
    assert!(store.set_link(&up, &repo, &digests[0], &link, now()).await.unwrap());
    assert_eq!(store.link(&up, &repo, &digests[0]).await.unwrap().as_deref(), Some(&link));
    let client = Link { via: Via::Client, ..link.clone() };
    assert!(store.set_link(&up, &repo, &digests[0], &client, now()).await.unwrap());
    assert_eq!(store.link(&up, &repo, &digests[0]).await.unwrap().as_deref(), Some(&client), "as it was written last");

    // Behind its back: nothing but memory can know them now.
    for path in [layout::tag(&up, &repo, &tag), layout::link(&up, &repo, &digests[0])] {
        std::fs::remove_file(fixture.root.path().join(path)).unwrap();
    }
    assert!(store.tag_state(&up, &repo, &tag).await.unwrap().record.is_some());
    assert!(store.link(&up, &repo, &digests[0]).await.unwrap().is_some());

    let write = store.suspect_tags(&up, &repo, std::slice::from_ref(&tag)).await.unwrap();
    assert!(store.tag_state(&up, &repo, &tag).await.unwrap().suspect.unwrap(), "a write has begun");
    write.withdraw().await.unwrap();
    assert!(!store.tag_state(&up, &repo, &tag).await.unwrap().suspect.unwrap());
    assert!(store.remove_tag(&up, &repo, &tag, now()).await.unwrap());
    assert!(store.tag_state(&up, &repo, &tag).await.unwrap().record.is_none());
    store.remove_link(&up, &repo, &digests[0]).await.unwrap();
    assert!(store.link(&up, &repo, &digests[0]).await.unwrap().is_none());
}

#[tokio::test]
async fn what_is_deleted_is_not_remembered_though_its_file_was_gone_before() {
    let fixture = fixture(1 << 20);
    let store = &fixture.store;
    let (up, repo, tag) = names();
    let digest = put(store, b"one").await;
    let record = TagRecord { digest, media_type: "x".into(), size: 3, etag: None };
    assert!(store.set_tag(&up, &repo, &tag, &record, store.timeline().moment()).await.unwrap());
    let long = Link { artifact_type: Some("x".repeat(4096)), ..Link::blob(Via::Anonymous, 3) };
    assert!(store.set_link(&up, &repo, &digest, &long, store.timeline().moment()).await.unwrap());
    let link = layout::link(&up, &repo, &digest);
    assert_eq!(store.link(&up, &repo, &digest).await.unwrap().as_deref(), Some(&long));
    std::fs::remove_file(fixture.root.path().join(link)).unwrap();
    assert_eq!(store.link(&up, &repo, &digest).await.unwrap(), None, "what is long is not kept in memory");
    let forgotten = async || store.tag_state(&up, &repo, &tag).await.unwrap().record.is_none();
    for whole in [true, false] {
        assert!(store.set_tag(&up, &repo, &tag, &record, store.timeline().moment()).await.unwrap());
        assert!(!forgotten().await);
        std::fs::remove_file(fixture.root.path().join(layout::tag(&up, &repo, &tag))).unwrap();
        assert!(!forgotten().await, "nothing but memory knows it");
        if whole {
            store.forget_repository(&up, &repo).await.unwrap();
        } else {
            store.forget_manifest(&up, &repo, &digest).await.unwrap();
        }
        assert!(forgotten().await, "{whole}");
    }
}
