//! Suspect before write: what counts while a write is under way, after it, and after a crash.

use super::truth::Kept;
use super::*;

fn up() -> UpstreamName {
    "docker.io".parse().unwrap()
}

fn repo() -> RepoName {
    "team/app".parse().unwrap()
}

fn tag(name: &str) -> Tag {
    name.parse().unwrap()
}

fn record(n: u8) -> TagRecord {
    TagRecord { digest: sha256(&[n]), media_type: "m".into(), size: 1, etag: None }
}

/// Keeps what upstream said when it was asked just now.
async fn keep(store: &Store, name: &str, n: u8) -> bool {
    keep_of(store, name, n, wall()).await
}

async fn keep_of(store: &Store, name: &str, n: u8, asked_at: SystemTime) -> bool {
    store.set_tag(&up(), &repo(), &tag(name), &record(n), asked_at).await.unwrap()
}

async fn named(store: &Store, name: &str) -> Option<Digest> {
    store.tag(&up(), &repo(), &tag(name)).await.unwrap().map(|record| record.digest)
}

async fn since(store: &Store, name: &str) -> Option<SystemTime> {
    store.suspected_since(&up(), &repo(), &tag(name)).await.unwrap()
}

async fn suspect(store: &Store, names: &[&str]) -> Suspicion {
    let tags: Vec<Tag> = names.iter().map(|name| tag(name)).collect();
    store.suspect_tags(&up(), &repo(), &tags).await.unwrap()
}

/// Lets the time pass within which upstream may take a write that a dead process has left.
async fn pass_settling() {
    tokio::time::pause();
    tokio::time::advance(SETTLES_WITHIN).await;
    tokio::time::resume();
}

impl Fixture {
    fn mark(&self, name: &str) -> PathBuf {
        self.root.path().join(layout::suspect(&up(), &repo(), &tag(name)))
    }

    fn mark_of_all(&self) -> PathBuf {
        self.root.path().join(layout::suspect_repository(&up(), &repo()))
    }
}

#[tokio::test]
async fn a_tag_is_suspect_from_before_the_write_until_a_later_answer() {
    let fixture = fixture(1 << 30);
    let store = &fixture.store;
    assert!(keep(store, "V1", 1).await && keep(store, "other", 1).await);
    assert_eq!(since(store, "V1").await, None);
    let before = wall();
    let write = suspect(store, &["V1", "V1"]).await;
    assert!(fixture.mark("V1").exists(), "put down before anything is forwarded");
    assert!(since(store, "V1").await.unwrap() >= before);
    assert_eq!(since(store, "other").await, None, "the others are as they were");
    assert!(!keep_of(store, "V1", 2, before).await, "an answer from before");
    assert!(!keep(store, "V1", 2).await, "nobody knows whether upstream said this before it took the write");
    assert!(!store.remove_tag(&up(), &repo(), &tag("V1"), wall()).await.unwrap());
    let during = wall();
    let known = write.end().unwrap();
    let at = since(store, "V1").await.unwrap();
    assert!(at >= during && known > at);
    assert!(!keep_of(store, "V1", 2, during).await, "asked while it was written");
    assert!(!keep_of(store, "V1", 2, at).await, "asked at that very time");
    assert_eq!(named(store, "V1").await, Some(sha256(&[1])));
    assert!(keep_of(store, "V1", 3, known).await, "what the writer knows");
    assert_eq!((since(store, "V1").await, named(store, "V1").await), (None, Some(sha256(&[3]))));
    assert!(!fixture.mark("V1").exists() && !fixture.mark("V1").parent().unwrap().exists());
    assert!(keep(store, "V1", 4).await);
}

#[tokio::test]
async fn a_tag_that_upstream_no_longer_has_is_not_suspect() {
    let fixture = fixture(1 << 30);
    let store = &fixture.store;
    assert!(keep(store, "t", 1).await);
    let known = suspect(store, &["t"]).await.end().unwrap();
    assert!(store.remove_tag(&up(), &repo(), &tag("t"), known).await.unwrap());
    assert_eq!((since(store, "t").await, named(store, "t").await), (None, None));
    assert!(!fixture.mark("t").exists());
}

#[tokio::test]
async fn a_tag_that_moved_to_what_cannot_be_kept_is_forgotten_unless_it_is_pinned() {
    let fixture = fixture(1 << 30);
    let store = &fixture.store;
    let outdate = async |name: &str, n: u8, asked_at| {
        store.outdate_tag(&up(), &repo(), &tag(name), &record(n).digest, asked_at).await.unwrap()
    };
    let before = wall();
    assert!(keep(store, "t", 1).await && keep(store, "pinned", 1).await);
    assert!(!outdate("t", 1, wall()).await, "it means that");
    assert!(!outdate("t", 2, before).await, "the answer to an earlier question");
    assert!(!outdate("unknown", 2, wall()).await);
    assert!(outdate("t", 2, wall()).await);
    assert_eq!(named(store, "t").await, None);
    assert!(!keep_of(store, "t", 1, before).await, "an earlier answer does not bring it back");
    assert!(keep(store, "t", 2).await);
    store.pin(Pin::parse(&format!("{}/{}:pinned", up(), repo()), |_| true).unwrap()).await.unwrap();
    assert!(!outdate("pinned", 2, wall()).await, "an operator relies on it");
    assert_eq!(named(store, "pinned").await, Some(sha256(&[1])));
}

#[tokio::test]
async fn a_crash_in_mid_write_leaves_the_tag_suspect() {
    let fixture = fixture(1 << 30);
    assert!(keep(&fixture.store, "t", 1).await);
    let _write = suspect(&fixture.store, &["t"]).await;
    let before = wall();
    let crashed = fixture.crashed(InMemory).await;
    let store = &crashed.store;
    assert!(since(store, "t").await.unwrap() >= before, "it may have been done until the start");
    assert_eq!(named(store, "t").await, Some(sha256(&[1])), "known, but suspect");
    assert!(!keep(store, "t", 1).await, "upstream may take it yet");
    assert!(!store.remove_tag(&up(), &repo(), &tag("t"), wall()).await.unwrap());
    assert!(keep(store, "other", 1).await, "the others are as they were");
    let again = crashed.crashed(InMemory).await;
    assert!(since(&again.store, "t").await.is_some(), "until it was asked");
    let asked_at = wall();
    pass_settling().await;
    assert!(since(store, "t").await.unwrap() > asked_at);
    assert!(!keep_of(store, "t", 1, asked_at).await, "asked while upstream might take it");
    assert!(keep(store, "t", 2).await);
    assert_eq!(since(store, "t").await, None);
    let again = crashed.crashed(InMemory).await;
    assert_eq!((since(&again.store, "t").await, named(&again.store, "t").await), (None, Some(sha256(&[2]))));
}

/// What became of a write is in the files of its marks alone, whichever way the process that waited for it ended.
#[tokio::test]
async fn a_stop_in_mid_write_leaves_it_under_way() {
    for whole in [false, true] {
        for clean in [false, true] {
            let fixture = fixture(1 << 30).restart(true, true).await;
            assert!(keep(&fixture.store, "t", 1).await);
            for name in ["t", "new"] {
                let write = if whole {
                    fixture.store.suspect_repository(&up(), &repo()).await.unwrap()
                } else {
                    suspect(&fixture.store, &[name]).await
                };
                drop(write);
            }
            let mut fixture = fixture;
            // Each start counts anew, however soon it comes after the one before.
            for start in 0..3 {
                fixture = fixture.restart(clean, true).await;
                for name in ["t", "new"] {
                    assert!(since(&fixture.store, name).await.is_some(), "{whole} {clean} {start} {name}");
                    assert!(!keep(&fixture.store, name, 2).await, "{whole} {clean} {start} {name}");
                }
            }
            assert_eq!(named(&fixture.store, "new").await, None, "of what was not known nothing is kept either");
            pass_settling().await;
            for name in ["t", "new"] {
                assert!(since(&fixture.store, name).await.is_some(), "{whole} {clean} {name}");
                assert!(keep(&fixture.store, name, 3).await, "{whole} {clean} {name}");
                assert_eq!(since(&fixture.store, name).await, None);
            }
            assert!(whole || !fixture.mark("t").parent().unwrap().exists());
        }
    }
}

#[tokio::test]
async fn a_write_after_a_crash_does_not_end_the_one_before() {
    for whole in [false, true] {
        let fixture = fixture(1 << 30);
        assert!(keep(&fixture.store, "t", 1).await);
        let _write = if whole {
            fixture.store.suspect_repository(&up(), &repo()).await.unwrap()
        } else {
            suspect(&fixture.store, &["t"]).await
        };
        let crashed = fixture.crashed(InMemory).await;
        let store = &crashed.store;
        assert_eq!(suspect(store, &["t"]).await.end(), None, "nobody knows which of the two upstream takes last");
        suspect(store, &["t"]).await.withdraw().await.unwrap();
        assert!(since(store, "t").await.is_some() && !keep(store, "t", 2).await, "{whole}");
        let list = StoredList {
            body: Bytes::from_static(b"{}"),
            content_type: "application/json".into(),
            link: None,
            filters_applied: None,
            via: Via::Anonymous,
        };
        let keep_list = async || store.set_list(&up(), &repo(), &ListKind::Tags, "", &list, wall()).await.unwrap();
        assert!(!keep_list().await, "a list may not have it yet");
        pass_settling().await;
        assert!(since(store, "t").await.is_some());
        assert!(keep_list().await && keep(store, "t", 2).await);
        let known = suspect(store, &["t"]).await.end();
        assert!(known.is_some(), "{whole}: it is over");
    }
}

/// A clock on the wall that jumps ahead does not end what upstream may take yet.
#[tokio::test]
async fn settling_goes_by_the_clock_that_does_not_jump() {
    let fixture = fixture(1 << 30);
    assert!(keep(&fixture.store, "t", 1).await);
    let _write = suspect(&fixture.store, &["t"]).await;
    let crashed = fixture.crashed(InMemory).await;
    assert!(!keep_of(&crashed.store, "t", 1, wall() + Duration::from_hours(1)).await);
}

#[tokio::test]
async fn a_mark_is_gone_only_after_what_ended_it_is_on_the_disk() {
    let fixture = fixture(1 << 30);
    assert!(keep(&fixture.store, "t", 1).await);
    fixture.store.0.group.run(&fixture.store.0.disk);
    let known = suspect(&fixture.store, &["t"]).await.end().unwrap();
    assert!(keep_of(&fixture.store, "t", 2, known).await);
    assert!(!fixture.store.0.group.waits_for(&layout::tag(&up(), &repo(), &tag("t"))), "synced before the mark went");
}

#[tokio::test]
async fn a_damaged_mark_counts() {
    let fixture = fixture(1 << 30);
    assert!(keep(&fixture.store, "t", 1).await);
    let _write = suspect(&fixture.store, &["t"]).await;
    let whole = std::fs::read(fixture.mark("t")).unwrap();
    let flipped = |at: usize| {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        bytes
    };
    let version = String::from_utf8(whole.clone()).unwrap().replace("\"version\":1", "\"version\":2").into_bytes();
    let damaged = [Vec::new(), whole[..20].to_vec(), flipped(30), flipped(whole.len() - 4), version, b"null".to_vec()];
    for bytes in damaged {
        for path in [fixture.mark("t"), fixture.mark_of_all()] {
            std::fs::write(&path, &bytes).unwrap();
            let crashed = fixture.crashed(InMemory).await;
            let store = &crashed.store;
            assert!(since(store, "t").await.is_some());
            assert!(!keep(store, "t", 2).await, "upstream may take it yet");
            let before = wall();
            pass_settling().await;
            let at = since(store, "t").await.unwrap();
            assert!(at >= before && at <= wall(), "{}", String::from_utf8_lossy(&bytes));
            assert!(!keep_of(store, "t", 2, at).await);
            assert!(keep(store, "t", 2).await, "and ends like any other");
            assert_eq!(since(store, "t").await, None);
            std::fs::remove_file(path).unwrap();
        }
    }
    std::fs::create_dir_all(fixture.mark("t").parent().unwrap()).unwrap();
    std::fs::write(fixture.mark("t").with_file_name("No Tag"), "").unwrap();
    let crashed = fixture.crashed(InMemory).await;
    assert_eq!(since(&crashed.store, "t").await, None, "what is no tag marks none");
}

#[tokio::test]
async fn a_mark_from_the_future_counts_from_now_on() {
    let fixture = fixture(1 << 30);
    assert!(keep(&fixture.store, "t", 1).await);
    let future = wall() + Duration::from_hours(1000);
    for path in [fixture.mark("t"), fixture.mark_of_all()] {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        let text = serde_json::json!({"since": future, "open": false});
        std::fs::write(&path, record::encode(&text).unwrap()).unwrap();
        let crashed = fixture.crashed(InMemory).await;
        assert!(since(&crashed.store, "t").await.unwrap() <= wall(), "{}", path.display());
        assert!(keep(&crashed.store, "t", 2).await);
        assert_eq!(since(&crashed.store, "t").await, None);
        std::fs::remove_file(path).unwrap();
    }
}

#[tokio::test]
async fn a_tag_that_is_not_known_is_guarded_too() {
    let fixture = fixture(1 << 30);
    let store = &fixture.store;
    let asked_at = wall();
    let write = suspect(store, &["new"]).await;
    assert!(fixture.mark("new").exists(), "after a crash it is asked for, but the answer must not be kept yet");
    assert!(since(store, "new").await.is_some());
    assert!(!keep(store, "new", 1).await);
    let known = write.end().unwrap();
    assert!(!keep_of(store, "new", 1, asked_at).await);
    assert!(keep_of(store, "new", 2, known).await);
    assert_eq!(since(store, "new").await, None);
    fixture.strays().await;
    assert!(!fixture.mark("new").parent().unwrap().exists());
    suspect(store, &["newer"]).await.end();
    fixture.strays().await;
    assert!(!fixture.mark("newer").parent().unwrap().exists(), "nothing known can be wrong when it has ended");
    assert!(since(store, "newer").await.is_some(), "but answers from before are too old");
}

#[tokio::test]
async fn what_was_refused_changes_nothing() {
    let fixture = fixture(1 << 30);
    let store = &fixture.store;
    assert!(keep(store, "t", 1).await);
    suspect(store, &["t", "new"]).await.withdraw().await.unwrap();
    assert_eq!((since(store, "t").await, since(store, "new").await), (None, None));
    assert!(!fixture.mark("t").exists());
    drop(suspect(store, &["t"]).await);
    let at = since(store, "t").await.unwrap();
    suspect(store, &["t", "new"]).await.withdraw().await.unwrap();
    assert_eq!(since(store, "t").await, Some(at), "an earlier suspicion is not taken away");
    assert!(fixture.mark("t").exists());
    assert_eq!(since(store, "new").await, None);
}

#[tokio::test]
async fn of_writes_that_overlap_nobody_knows_which_was_last() {
    let fixture = fixture(1 << 30);
    let store = &fixture.store;
    for (first, second) in [(&["t"][..], &["t", "u"][..]), (&["u", "t"], &["t"])] {
        assert!(keep(store, "t", 1).await);
        let (first, second) = (suspect(store, first).await, suspect(store, second).await);
        assert_eq!(first.end(), None);
        assert!(!keep(store, "t", 2).await, "the other is under way");
        assert_eq!(second.end(), None, "also if it has ended since");
        assert!(since(store, "t").await.is_some());
        assert!(keep(store, "t", 2).await, "upstream knows");
        let (first, second) = (suspect(store, &["t"]).await, suspect(store, &["t"]).await);
        first.withdraw().await.unwrap();
        assert!(since(store, "t").await.is_some());
        drop(second);
        assert!(since(store, "t").await.is_some() && fixture.mark("t").exists());
        assert!(keep(store, "t", 2).await);
        let all = store.suspect_repository(&up(), &repo()).await.unwrap();
        let one = suspect(store, &["t"]).await;
        assert_eq!(one.end(), None);
        all.withdraw().await.unwrap();
        assert!(since(store, "u").await.is_some(), "not withdrawn either");
        assert!(keep(store, "t", 3).await && keep(store, "u", 3).await);
    }
    let apart = [suspect(store, &["a"]).await, suspect(store, &["b"]).await];
    assert!(apart.into_iter().all(|write| write.end().is_some()));
}

#[tokio::test]
async fn a_whole_repository_is_confirmed_tag_by_tag_over_restarts() {
    let fixture = fixture(1 << 30).restart(true, true).await;
    for name in ["a", "b"] {
        assert!(keep(&fixture.store, name, 1).await);
    }
    let write = fixture.store.suspect_repository(&up(), &repo()).await.unwrap();
    assert!(fixture.mark_of_all().exists());
    assert!(!keep(&fixture.store, "a", 2).await && !keep(&fixture.store, "new", 2).await);
    let known = write.end().unwrap();
    assert!(since(&fixture.store, "a").await.is_some() && since(&fixture.store, "b").await.is_some());
    assert!(keep_of(&fixture.store, "a", 2, known).await);
    assert_eq!(since(&fixture.store, "a").await, None);
    assert!(since(&fixture.store, "b").await.is_some());
    let fixture = fixture.restart(true, true).await;
    assert_eq!(since(&fixture.store, "a").await, None, "still confirmed");
    assert!(since(&fixture.store, "b").await.is_some());
    let other: RepoName = "team/app/other".parse().unwrap();
    assert_eq!(fixture.store.suspected_since(&up(), &other, &tag("b")).await.unwrap(), None);
    let lost = fixture.crashed(InMemory).await;
    assert!(since(&lost.store, "a").await.is_some(), "without an index nobody knows");
    assert!(keep(&lost.store, "a", 2).await);
    assert_eq!(since(&lost.store, "a").await, None);

    let write = fixture.store.suspect_repository(&up(), &repo()).await.unwrap();
    assert!(since(&fixture.store, "a").await.is_some());
    write.withdraw().await.unwrap();
    assert_eq!(since(&fixture.store, "a").await, None, "refused: as it was");
    assert!(since(&fixture.store, "b").await.is_some(), "as it was");
}

#[tokio::test]
async fn a_crash_in_mid_delete_leaves_all_tags_suspect_once() {
    let fixture = fixture(1 << 30);
    assert!(keep(&fixture.store, "a", 1).await && keep(&fixture.store, "b", 1).await);
    let index = Arc::new(MemoryIndex::default());
    let _write = fixture.store.suspect_repository(&up(), &repo()).await.unwrap();
    let crashed = fixture.crashed(Kept(index.clone())).await;
    assert!(since(&crashed.store, "a").await.is_some() && !keep(&crashed.store, "a", 1).await);
    pass_settling().await;
    assert!(since(&crashed.store, "a").await.is_some() && keep(&crashed.store, "a", 1).await);
    crashed.store.0.hints.settle();
    let again = crashed.crashed(Kept(index)).await;
    assert_eq!(since(&again.store, "a").await, None, "a start does not make it suspect again");
    assert!(since(&again.store, "b").await.is_some());
}

#[tokio::test]
async fn an_empty_repository_is_marked_as_long_as_the_write_is_under_way() {
    let fixture = fixture(1 << 30);
    let store = &fixture.store;
    for withdrawn in [true, false] {
        let write = store.suspect_repository(&up(), &repo()).await.unwrap();
        assert!(since(store, "t").await.is_some() && fixture.mark_of_all().exists());
        if withdrawn {
            write.withdraw().await.unwrap();
            assert_eq!(since(store, "t").await, None);
        } else {
            assert!(write.end().is_some());
            assert!(since(store, "t").await.is_some());
        }
        fixture.strays().await;
        assert!(!fixture.mark_of_all().exists());
    }
}

#[tokio::test]
async fn proofs_and_lists_from_before_a_delete_are_not_kept() {
    let fixture = fixture(1 << 30);
    let store = &fixture.store;
    let (digest, proof) = (sha256(b"layer"), link(Via::Client));
    let list = StoredList {
        body: Bytes::from_static(b"{}"),
        content_type: "application/json".into(),
        link: None,
        filters_applied: None,
        via: Via::Anonymous,
    };
    let keep_list = async |at| store.set_list(&up(), &repo(), &ListKind::Tags, "", &list, at).await.unwrap();
    let keep_link = async |at| store.set_link(&up(), &repo(), &digest, &proof, at).await.unwrap();
    let before = wall();
    let write = suspect(store, &["t"]).await;
    assert!(keep_link(before).await, "a push of a tag deletes no content");
    assert!(!keep_list(wall()).await, "but it changes lists");
    drop(write);
    assert!(!keep_list(before).await && keep_list(wall()).await);
    store.remove_link(&up(), &repo(), &digest).await.unwrap();
    let before = wall();
    let write = store.suspect_repository(&up(), &repo()).await.unwrap();
    assert!(!keep_link(before).await && !keep_list(wall()).await);
    let during = wall();
    drop(write);
    assert!(!keep_link(during).await && !keep_list(during).await);
    assert_eq!(store.link(&up(), &repo(), &digest).await.unwrap(), None);
    assert!(keep_link(wall()).await && keep_list(wall()).await);
}

#[tokio::test]
async fn marks_stay_with_the_url_they_are_of() {
    let fixture = fixture(1 << 30);
    assert!(keep(&fixture.store, "t", 1).await);
    drop(suspect(&fixture.store, &["t"]).await);
    fixture.strays().await;
    let Fixture { root, store, .. } = fixture;
    drop(store);
    for (url, is) in [("https://other.example", false), ("https://registry-1.docker.io", true)] {
        let mut options = options(root.path(), 1 << 30);
        options.origins[0].1 = url.into();
        let store = Store::open_with(options, Metrics::new().unwrap(), |_| Box::new(InMemory)).unwrap();
        assert_eq!(since(&store, "t").await.is_some(), is, "{url}");
    }
}

#[tokio::test]
async fn a_tag_without_marks_costs_no_look_at_the_disk() {
    let fixture = fixture(1 << 30);
    let store = &fixture.store;
    assert!(keep(store, "t", 1).await);
    assert_eq!(since(store, "t").await, None);
    // Whoever looked there would fail.
    std::fs::write(fixture.root.path().join(layout::suspects(&up(), &repo())), "in the way").unwrap();
    for name in ["t", "never-seen"] {
        let state = store.tag_state(&up(), &repo(), &tag(name)).await.unwrap();
        assert!(matches!(state.suspect, Ok(false)), "{name}: {state:?}");
    }
}

#[tokio::test]
async fn marks_that_cannot_be_put_down_stop_the_write() {
    let fixture = fixture(1 << 30);
    let store = &fixture.store;
    assert!(keep(store, "t", 1).await);
    std::fs::write(fixture.root.path().join(layout::suspects(&up(), &repo())), "in the way").unwrap();
    let outcome = store.suspect_tags(&up(), &repo(), &[tag("t")]).await;
    assert!(outcome.is_err());
    assert!(since(store, "t").await.is_some(), "to be on the safe side");
    assert!(keep(store, "t", 1).await && since(store, "t").await.is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_answer_slips_in_between() {
    let fixture = fixture(1 << 30);
    let store = &fixture.store;
    let tasks = TaskTracker::new();
    for round in 0..60 {
        assert!(keep(store, "t", 0).await);
        let asked_at = wall();
        let readers: Vec<_> = (1..5)
            .map(|n| {
                let store = store.clone();
                tasks.spawn(async move { keep_of(&store, "t", n, asked_at).await })
            })
            .collect();
        let write = suspect(store, &["t"]).await;
        let seen = named(store, "t").await;
        let kept = futures_util::future::join_all(readers).await;
        assert_eq!(named(store, "t").await, seen, "round {round}: {kept:?} nothing changes once it is suspect");
        assert!(fixture.mark("t").exists() && since(store, "t").await.is_some());
        let known = write.end().unwrap();
        let late: Vec<_> = (1..5).map(|n| keep_of(store, "t", n, asked_at)).collect();
        assert!(futures_util::future::join_all(late).await.iter().all(|kept| !kept));
        assert!(keep_of(store, "t", 9, known).await);
        assert_eq!(since(store, "t").await, None);
    }
}
