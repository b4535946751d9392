//! Forgetting what was deleted upstream.

use super::*;

fn up() -> UpstreamName {
    "docker.io".parse().unwrap()
}

fn repo(name: &str) -> RepoName {
    name.parse().unwrap()
}

fn tag(name: &str) -> Tag {
    name.parse().unwrap()
}

fn manifest_of(subject: Option<&Digest>, n: usize) -> Vec<u8> {
    let subject = subject.map(|digest| serde_json::json!({"digest": digest.to_string()}));
    let manifest = serde_json::json!({"schemaVersion": 2, "n": n, "layers": [], "subject": subject});
    serde_json::to_vec(&manifest).unwrap()
}

/// Stores a manifest with a link in `name` that says what it refers to, or like one from a HEAD does not.
async fn pull(store: &Store, name: &str, subject: Option<&Digest>, says: bool, n: usize) -> Digest {
    let digest = put(store, &manifest_of(subject, n)).await;
    let link = Link {
        kind: LinkKind::Manifest,
        via: Via::Anonymous,
        media_type: Some("m".into()),
        size: 1,
        subject: subject.copied().filter(|_| says),
        artifact_type: None,
    };
    assert!(store.set_link(&up(), &repo(name), &digest, &link, wall()).await.unwrap());
    digest
}

async fn set_tag(store: &Store, name: &str, of: &str, digest: Digest, asked_at: SystemTime) -> bool {
    let record = TagRecord { digest, media_type: "m".into(), size: 1, etag: None };
    store.set_tag(&up(), &repo(name), &tag(of), &record, asked_at).await.unwrap()
}

async fn has(store: &Store, name: &str, digest: &Digest) -> bool {
    store.link(&up(), &repo(name), digest).await.unwrap().is_some()
}

async fn list(store: &Store, name: &str, asked_at: SystemTime) -> bool {
    let list = StoredList {
        body: Bytes::from_static(b"{}"),
        content_type: "application/json".into(),
        link: None,
        filters_applied: None,
        via: Via::Anonymous,
    };
    store.set_list(&up(), &repo(name), &ListKind::Tags, "n=1", &list, asked_at).await.unwrap()
}

async fn listed(store: &Store, name: &str) -> bool {
    store.list(&up(), &repo(name), &ListKind::Tags, "n=1").await.unwrap().is_some()
}

#[tokio::test]
async fn a_manifest_takes_along_what_refers_to_it() {
    let fixture = fixture(1 << 30);
    let store = &fixture.store;
    let image = pull(store, "a", None, true, 0).await;
    let signature = pull(store, "a", Some(&image), true, 1).await;
    let from_head = pull(store, "a", Some(&signature), false, 2).await;
    let deep = pull(store, "a", Some(&from_head), true, 3).await;
    let other = pull(store, "a", None, true, 4).await;
    let of_other = pull(store, "a", Some(&other), true, 5).await;
    let untold = put(store, &manifest_of(Some(&deep), 6)).await;
    let layer = put(store, b"layer").await;
    let now = wall;
    store.set_link(&up(), &repo("a"), &layer, &link(Via::Anonymous), now()).await.unwrap();
    pull(store, "b", None, true, 0).await;
    let tags = [("v1", image), ("Latest", image), ("sig", deep), ("untold", untold), ("other", other)];
    for (name, digest) in tags {
        assert!(set_tag(store, "a", name, digest, now()).await);
    }
    assert!(
        set_tag(store, "b", "v1", image, now()).await && list(store, "a", now()).await && list(store, "b", now()).await
    );
    let asked_at = now();

    let gone = store.forget_manifest(&up(), &repo("a"), &image).await.unwrap();
    assert_eq!(gone, ["Latest", "sig", "untold", "v1"].map(tag));
    for digest in [image, signature, from_head, deep] {
        assert!(!has(store, "a", &digest).await);
        assert!(store.blob(&digest).await.unwrap().is_some(), "others may have it: it is only forgotten here");
    }
    for digest in [other, of_other, layer] {
        assert!(has(store, "a", &digest).await);
    }
    assert!(store.tag(&up(), &repo("a"), &tag("v1")).await.unwrap().is_none());
    assert!(store.tag(&up(), &repo("a"), &tag("other")).await.unwrap().is_some());
    assert!(has(store, "b", &image).await && listed(store, "b").await && !listed(store, "a").await);
    assert!(store.tag(&up(), &repo("b"), &tag("v1")).await.unwrap().is_some());

    assert_eq!(store.forget_manifest(&up(), &repo("a"), &image).await.unwrap(), [], "once is enough");
    assert!(!set_tag(store, "a", "v1", image, asked_at).await, "an answer from before does not bring it back");
    assert!(!store.set_link(&up(), &repo("a"), &image, &link(Via::Client), asked_at).await.unwrap());
    assert!(!list(store, "a", asked_at).await);
    assert!(store.set_link(&up(), &repo("b"), &layer, &link(Via::Client), asked_at).await.unwrap(), "elsewhere it may");
    let crashed = fixture.crashed(InMemory).await;
    assert!(!has(&crashed.store, "a", &image).await && has(&crashed.store, "a", &other).await);
    assert!(set_tag(store, "a", "v1", image, now()).await, "pushed again");
}

#[tokio::test]
async fn circles_and_damage_end_too() {
    let fixture = fixture(1 << 30);
    let store = &fixture.store;
    let (a, b) = (sha256(b"a"), sha256(b"b"));
    for (digest, subject) in [(a, b), (b, a)] {
        let mut link = link(Via::Anonymous);
        (link.kind, link.subject) = (LinkKind::Manifest, Some(subject));
        store.set_link(&up(), &repo("r"), &digest, &link, wall()).await.unwrap();
        assert!(set_tag(store, "r", "t", digest, wall()).await);
    }
    let damaged = pull(store, "r", Some(&a), true, 1).await;
    let path = |path: PathBuf| fixture.root.path().join(path);
    std::fs::write(path(layout::link(&up(), &repo("r"), &damaged)), "no record").unwrap();
    std::fs::write(path(layout::tags(&up(), &repo("r"))).join("bad"), "no record").unwrap();
    std::fs::write(path(layout::tags(&up(), &repo("r"))).join("NOT A TAG"), "").unwrap();
    assert_eq!(store.forget_manifest(&up(), &repo("r"), &a).await.unwrap(), ["bad", "t"].map(tag));
    assert!(!has(store, "r", &a).await && !has(store, "r", &b).await);
    assert!(!path(layout::link(&up(), &repo("r"), &damaged)).exists(), "its content says what it refers to");
    assert_eq!(store.forget_manifest(&up(), &repo("nowhere"), &a).await.unwrap(), []);
}

#[tokio::test]
async fn a_blob_is_forgotten_in_one_repository() {
    let fixture = fixture(1 << 30);
    let store = &fixture.store;
    let layer = put(store, b"layer").await;
    let asked_at = wall();
    for name in ["a", "b"] {
        store.set_link(&up(), &repo(name), &layer, &link(Via::Shared), wall()).await.unwrap();
    }
    for _ in 0..2 {
        store.forget_blob(&up(), &repo("a"), &layer).await.unwrap();
        assert!(!has(store, "a", &layer).await && has(store, "b", &layer).await);
    }
    assert!(!store.set_link(&up(), &repo("a"), &layer, &link(Via::Shared), asked_at).await.unwrap());
    assert!(store.set_link(&up(), &repo("a"), &layer, &link(Via::Shared), wall()).await.unwrap());
}

#[tokio::test]
async fn a_repository_goes_and_those_below_it_stay() {
    let fixture = fixture(1 << 30);
    let store = &fixture.store;
    let now = wall;
    for name in ["a", "a/b", "c"] {
        let image = pull(store, name, None, true, 0).await;
        assert!(set_tag(store, name, "t", image, now()).await && list(store, name, now()).await);
        store.set_access(&up(), &repo(name), Access::Public).await.unwrap();
        drop(store.suspect_tags(&up(), &repo(name), &[tag("t")]).await.unwrap());
    }
    let asked_at = now();
    let write = store.suspect_repository(&up(), &repo("a")).await.unwrap();
    fixture.strays().await;
    for _ in 0..2 {
        store.forget_repository(&up(), &repo("a")).await.unwrap();
    }
    let left = |name: &str| {
        let directory = fixture.root.path().join("refs/docker.io").join(name);
        let mut names: Vec<_> =
            std::fs::read_dir(directory).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort_unstable();
        names
    };
    assert_eq!(left("a"), ["_suspect", "b"], "upstream may take that yet");
    assert_eq!(left("a/b"), ["_access", "_links", "_lists", "_suspects", "_tags"]);
    write.withdraw().await.unwrap();
    assert_eq!(left("a"), ["b"]);
    assert_eq!(store.suspected_since(&up(), &repo("a"), &tag("t")).await.unwrap(), None);
    assert!(store.suspected_since(&up(), &repo("a/b"), &tag("t")).await.unwrap().is_some());
    assert_eq!(store.access(&up(), &repo("a")).await.unwrap(), None);
    assert!(!set_tag(store, "a", "t", sha256(b"old"), asked_at).await && !list(store, "a", asked_at).await);
    store.forget_repository(&up(), &repo("c")).await.unwrap();
    assert!(!fixture.root.path().join("refs/docker.io/c").exists(), "no empty directory stays");
    assert!(set_tag(store, "a", "t", sha256(b"new"), now()).await);
}

#[tokio::test]
async fn a_write_that_is_under_way_outlives_its_repository() {
    let fixture = fixture(1 << 30);
    let store = &fixture.store;
    assert!(set_tag(store, "a", "t", sha256(b"1"), wall()).await);
    let push = store.suspect_tags(&up(), &repo("a"), &[tag("t")]).await.unwrap();
    store.forget_repository(&up(), &repo("a")).await.unwrap();
    assert!(!set_tag(store, "a", "t", sha256(b"1"), wall()).await, "it may be pushed at this moment");
    let crashed = fixture.crashed(InMemory).await;
    assert!(!set_tag(&crashed.store, "a", "t", sha256(b"1"), wall()).await, "and after a crash");
    let known = push.end().unwrap();
    assert!(set_tag(store, "a", "t", sha256(b"2"), known).await);
    assert_eq!(store.suspected_since(&up(), &repo("a"), &tag("t")).await.unwrap(), None);
}

#[tokio::test]
async fn lists_go_alone() {
    let fixture = fixture(1 << 30);
    let store = &fixture.store;
    let image = pull(store, "a", None, true, 0).await;
    let asked_at = wall();
    assert!(list(store, "a", asked_at).await);
    for _ in 0..2 {
        store.forget_lists(&up(), &repo("a")).await.unwrap();
        assert!(!listed(store, "a").await && has(store, "a", &image).await);
    }
    assert!(!list(store, "a", asked_at).await);
    assert!(
        store.set_link(&up(), &repo("a"), &image, &link(Via::Client), asked_at).await.unwrap(),
        "no content was deleted"
    );
    assert!(list(store, "a", wall()).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn pulls_that_go_on_bring_nothing_back() {
    let fixture = fixture(1 << 30);
    let store = &fixture.store;
    let tasks = TaskTracker::new();
    for round in 0..40 {
        let image = pull(store, "a", None, true, 0).await;
        let asked_at = wall();
        let pulls: Vec<_> = (0..8)
            .map(|n| {
                let store = store.clone();
                tasks.spawn(async move {
                    if n % 2 == 0 {
                        set_tag(&store, "a", &format!("t{n}"), image, asked_at).await
                    } else {
                        store.set_link(&up(), &repo("a"), &image, &link(Via::Client), asked_at).await.unwrap()
                    }
                })
            })
            .collect();
        store.forget_manifest(&up(), &repo("a"), &image).await.unwrap();
        assert!(!has(store, "a", &image).await, "round {round}");
        for pull in futures_util::future::join_all(pulls).await {
            pull.unwrap();
        }
        assert!(!has(store, "a", &image).await, "round {round}: nor by an answer that was on its way");
        for n in 0..8 {
            assert_eq!(store.tag(&up(), &repo("a"), &tag(&format!("t{n}"))).await.unwrap(), None, "round {round}");
        }
    }
}

#[tokio::test]
async fn without_space_for_marks_tags_are_forgotten() {
    let fixture = fixture(1 << 30);
    let store = &fixture.store;
    for name in ["t", "u"] {
        assert!(set_tag(store, "a", name, sha256(b"1"), wall()).await);
    }
    let write = store.suspect_tags(&up(), &repo("a"), &[tag("t")]).await.unwrap();
    let write = tokio::task::spawn_blocking(move || write.forget_instead().map(|()| write)).await.unwrap().unwrap();
    let crashed = fixture.crashed(InMemory).await;
    assert_eq!(crashed.store.tag(&up(), &repo("a"), &tag("t")).await.unwrap(), None);
    assert!(crashed.store.tag(&up(), &repo("a"), &tag("u")).await.unwrap().is_some());
    let known = write.end().unwrap();
    assert!(set_tag(store, "a", "t", sha256(b"2"), known).await);
}
