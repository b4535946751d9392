//! What strangers can do to others: nothing. A caller's pull never depends on who else asks for the same, and what was
//! heard of a caller's right counts at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::common::clock::{pass, warp};
use crate::common::content::{blob, image, sha256};
use crate::common::direct::{Came, account, apart, party, read, target};
use crate::common::upstream::{Auth, Cut};
use crate::common::{Direct, Gate, Upstream, acts, eventually};
use ocistern::cache::{BlobPart, Found, Want};
use ocistern::oci::Digest;
use ocistern::upstream::Right;
use tokio::task::JoinSet;

const STRANGER: Right = Right::Anonymous;

/// A registry with `secret` for ann and bob (not for eve), `open` for everybody, and `own` for eve.
async fn registry(refusal: u16) -> Upstream {
    let upstream = Upstream::start().await;
    upstream.image("open", "v1", &image(1));
    upstream.registry(|registry| {
        registry.auth = Auth::Accounts;
        let accounts = &mut registry.accounts;
        for user in ["ann", "bob", "eve"] {
            accounts.user(user, &format!("CANARY-{user}"));
        }
        accounts.public.insert("open".to_owned());
        accounts.allow("ann", "secret", "pull");
        accounts.allow("bob", "secret", "pull");
        accounts.allow("eve", "own", "pull");
        accounts.refused_with = (refusal != 401).then_some(refusal);
    });
    upstream
}

/// Downloads of a blob that upstream began.
fn downloads(upstream: &Upstream, digest: &Digest) -> usize {
    let path = format!("/v2/*/blobs/{digest}");
    upstream.requests("GET", &path).into_iter().filter(|entry| entry.status == 200).count()
}

/// Asks for a blob beside the test.
fn ask(direct: &Arc<Direct>, right: Right, repo: &'static str, digest: Digest) -> crate::common::direct::Apart<Came> {
    let direct = Arc::clone(direct);
    apart(async move { direct.blob(&right, repo, &digest).await })
}

#[tokio::test]
async fn strangers_who_ask_without_end_for_a_private_blob_take_it_from_nobody() {
    for refusal in [401, 403, 404] {
        let upstream = registry(refusal).await;
        let direct = Arc::new(Direct::start(&upstream, "").await);
        let blobs: Vec<_> = (0..12).map(|seed| blob(seed, 20_000)).collect();
        let digests: Vec<_> = blobs.iter().map(|bytes| upstream.blob("secret", bytes)).collect();
        let wanted = Arc::new(parking_lot::Mutex::new(digests[0]));
        let over = Arc::new(AtomicBool::new(false));
        let mut strangers = JoinSet::new();
        // Here and in names that there are not.
        for number in 0..12 {
            let (direct, wanted, over) = (Arc::clone(&direct), Arc::clone(&wanted), Arc::clone(&over));
            let right = if number % 2 == 0 { STRANGER } else { account("eve") };
            let repo = if number % 3 == 0 { "nothing" } else { "secret" };
            strangers.spawn(async move {
                while !over.load(Ordering::Relaxed) {
                    let digest = *wanted.lock();
                    let came = direct.blob(&right, repo, &digest).await;
                    assert!(matches!(came, Came::Refused(_) | Came::Missing(_)), "{right:?}: {came:?}");
                    // What is remembered answers without any waiting.
                    tokio::task::yield_now().await;
                }
            });
        }
        for digest in &digests {
            *wanted.lock() = *digest;
            tokio::task::yield_now().await;
            let (ann, bob) =
                (ask(&direct, account("ann"), "secret", *digest), ask(&direct, account("bob"), "secret", *digest));
            ann.done().await.found(digest);
            bob.done().await.found(digest);
            assert_eq!(downloads(&upstream, digest), 1, "{refusal}: one download");
        }
        over.store(true, Ordering::Relaxed);
        while let Some(ended) = strangers.join_next().await {
            ended.unwrap();
        }
    }
}

#[tokio::test]
async fn a_refused_fill_goes_to_those_who_may_one_after_the_other() {
    let upstream = registry(403).await;
    let direct = Arc::new(Direct::start(&upstream, "").await);
    let bytes = blob(50, 100_000);
    let digest = upstream.blob("secret", &bytes);
    // Of the token that eve has already, so that her first question for the blob is the refused one.
    direct.tags(&account("eve"), "secret").await;
    let gate = Gate::new();
    upstream.script("GET", "/v2/secret/blobs/*", 0..1, acts::hold_head(&gate));
    let eve = ask(&direct, account("eve"), "secret", digest);
    gate.reached(1).await;
    let path = "/v2/secret/blobs/*";
    let yes = |count| {
        let upstream = &upstream;
        async move {
            eventually("they may", || async {
                upstream.requests("HEAD", path).iter().filter(|entry| entry.status == 200).count() >= count
            })
            .await;
        }
    };
    let ann = ask(&direct, account("ann"), "secret", digest);
    yes(1).await;
    let bob = ask(&direct, account("bob"), "secret", digest);
    yes(2).await;
    // Their answers are heeded.
    direct.tags(&account("ann"), "secret").await;
    direct.tags(&account("bob"), "secret").await;
    upstream.registry(|registry| {
        registry.accounts.rights.get_mut("secret").unwrap().remove("ann");
    });
    gate.open();
    let (eve, ann) = (eve.done().await, ann.done().await);
    assert!(matches!(eve, Came::Refused(_)), "{eve:?}");
    // She is told upstream's word about herself, or reads what bob may have: upstream had said that she may.
    assert!(matches!(ann, Came::Refused(_) | Came::Content(..)), "{ann:?}");
    bob.done().await.found(&digest);
    assert_eq!(downloads(&upstream, &digest), 1);
    direct.settle().await;
    direct.blob(&account("bob"), "secret", &digest).await.assert_hit(&digest);
    direct.blob(&account("eve"), "secret", &digest).await.assert_refused();
}

#[tokio::test]
async fn a_failure_in_another_name_is_no_answer() {
    let upstream = registry(401).await;
    let direct = Arc::new(Direct::start(&upstream, "").await);
    let failures = [
        acts::fail(500, "UNKNOWN"),
        acts::fail(418, "UNKNOWN"),
        acts::too_many(Some("3600")),
        acts::no_head(Cut::Reset),
        acts::answer(204, "text/plain", ""),
        acts::redirect(307, "http://169.254.169.254/"),
    ];
    for (seed, failure) in (60..).zip(failures) {
        let digest = upstream.blob("secret", &blob(seed, 20_000));
        let gate = Gate::new();
        upstream.script("GET", "/v2/own/blobs/*", .., acts::both(failure, acts::hold_head(&gate)));
        let eve = ask(&direct, account("eve"), "own", digest);
        gate.reached(1).await;
        let ann = ask(&direct, account("ann"), "secret", digest);
        upstream.until("HEAD", &format!("/v2/secret/blobs/{digest}"), 1).await;
        gate.open();
        ann.done().await.found(&digest);
        assert!(!matches!(eve.done().await, Came::Content(..)), "not in her name");
        upstream.unscript();
    }
}

#[tokio::test]
async fn a_fill_is_not_joined_any_more_when_upstream_has_said_no_since() {
    for refusal in [401, 403, 404] {
        for reader in [STRANGER, account("bob")] {
            let upstream = registry(refusal).await;
            let direct = Arc::new(Direct::start(&upstream, "").await);
            let bytes = blob(70, 300_000);
            let digest = upstream.blob("open", &bytes);
            let gate = Gate::new();
            let path = "/v2/open/blobs/*";
            upstream.script("GET", path, .., acts::where_status(200, acts::hold_at(100_000, &gate)));
            let first = ask(&direct, reader.clone(), "open", digest);
            gate.reached(1).await;
            let joined = direct.cache.blob(&target(&reader, "open"), &digest, BlobPart::Whole, party()).await.unwrap();
            upstream.registry(|registry| {
                registry.accounts.public.clear();
                registry.accounts.allow("ann", "open", "pull");
            });
            // Somebody asks upstream, which must be asked in any case.
            let heard = direct.head_blob(&reader, "open", &digest, Want::Required).await;
            assert!(matches!(heard, Came::Refused(_) | Came::Missing(_)), "{refusal} {reader:?}: {heard:?}");
            {
                let _warp = warp();
                // What is remembered as an answer is forgotten by then.
                tokio::time::sleep(Duration::from_secs(6)).await;
            }
            tokio::time::resume();
            let late = direct.blob(&reader, "open", &digest).await;
            assert!(matches!(late, Came::Refused(_) | Came::Missing(_)), "{refusal} {reader:?}: {late:?}");
            gate.open();
            first.done().await.found(&digest);
            assert_eq!(read(joined).await, Came::Content(digest, Found::Collapsed));
            direct.settle().await;
            pass(Duration::from_secs(6)).await;
            let after = direct.blob(&reader, "open", &digest).await;
            assert!(matches!(after, Came::Refused(_) | Came::Missing(_)), "{refusal} {reader:?}: {after:?}");
            direct.blob(&account("ann"), "open", &digest).await.assert_hit(&digest);
        }
    }
}

#[tokio::test]
async fn a_manifest_on_its_way_is_not_joined_any_more_when_upstream_has_said_no_since() {
    for refusal in [401, 403] {
        for reader in [STRANGER, account("bob")] {
            let upstream = registry(refusal).await;
            let direct = Arc::new(Direct::start(&upstream, "").await);
            let image = image(1);
            direct.manifest(&reader, "open", "v1", Want::Required).await.found(&image.digest);
            let (gate, list) = (Gate::new(), Gate::new());
            upstream.script("GET", "/v2/open/manifests/*", .., acts::where_status(200, acts::hold_at(10, &gate)));
            upstream.script("GET", "/v2/open/tags/list", .., acts::where_status(200, acts::hold_at(5, &list)));
            let (one, other) = (Arc::clone(&direct), reader.clone());
            let first = apart(async move { one.get(&other, "open", "v1").await });
            gate.reached(1).await;
            let (one, other) = (Arc::clone(&direct), reader.clone());
            let tags = apart(async move { one.tags(&other, "open").await });
            list.reached(1).await;
            upstream.registry(|registry| registry.accounts.public.clear());
            let heard = direct.head_blob(&reader, "open", &sha256(b"anything"), Want::Required).await;
            assert!(matches!(heard, Came::Refused(_)), "{refusal} {reader:?}: {heard:?}");
            let heard = direct.referrers(&reader, "open", &image.digest).await;
            assert!(matches!(heard, Came::Refused(_)), "{refusal} {reader:?}: {heard:?}");
            pass(Duration::from_secs(6)).await;
            direct.get(&reader, "open", "v1").await.assert_refused();
            direct.tags(&reader, "open").await.assert_refused();
            gate.open();
            list.open();
            first.done().await.found(&image.digest);
            assert!(matches!(tags.done().await, Came::Content(..)));
        }
    }
}

#[tokio::test]
async fn one_odd_answer_to_a_head_changes_nothing_for_others() {
    let upstream = registry(401).await;
    let image = image(1);
    for known in [false, true] {
        let direct = Direct::start(&upstream, "tags = \"always\"").await;
        if known {
            direct.manifest(&STRANGER, "open", "v1", Want::Required).await.found(&image.digest);
        }
        let odd: [crate::common::upstream::Act; 3] =
            [acts::fail(400, "NAME_INVALID"), acts::fail(405, "UNSUPPORTED"), acts::without("Docker-Content-Digest")];
        for act in odd {
            upstream.script("HEAD", "/v2/open/manifests/odd", .., act);
            assert!(!matches!(direct.manifest(&STRANGER, "open", "odd", Want::Required).await, Came::Content(..)));
            upstream.unscript();
            direct.get(&STRANGER, "open", "v1").await.found(&image.digest);
            upstream.forget();
            direct.get(&STRANGER, "open", "v1").await.found(&image.digest);
            assert_eq!(
                (upstream.count("HEAD", "*/v1"), upstream.count("GET", "*/v1")),
                (1, 0),
                "{known}: still by HEAD"
            );
        }
    }
}

#[tokio::test]
async fn where_heads_work_one_that_does_not_is_an_exception() {
    let upstream = registry(401).await;
    let (good, odd) = (image(1), image(2));
    upstream.image("open", "odd", &odd);
    let direct = Direct::start(&upstream, "tags = \"always\"").await;
    direct.manifest(&STRANGER, "open", "v1", Want::Required).await.found(&good.digest);
    direct.get(&STRANGER, "open", "v1").await.found(&good.digest);
    upstream.script("HEAD", "/v2/open/manifests/odd", .., acts::fail(400, "NAME_INVALID"));
    for _ in 0..2 {
        direct.manifest(&STRANGER, "open", "odd", Want::Required).await.found(&odd.digest);
    }
    upstream.forget();
    direct.get(&STRANGER, "open", "v1").await.found(&good.digest);
    assert_eq!((upstream.count("HEAD", "*/v1"), upstream.count("GET", "*/v1")), (1, 0), "still by HEAD");
}

#[tokio::test]
async fn that_heads_are_of_no_use_is_tried_again_after_an_hour() {
    let upstream = registry(401).await;
    let image = image(1);
    let direct = Direct::start(&upstream, "tags = \"always\"").await;
    direct.get(&STRANGER, "open", "v1").await.found(&image.digest);
    upstream.script("HEAD", "/v2/open/manifests/*", .., acts::fail(405, "UNSUPPORTED"));
    for _ in 0..3 {
        direct.get(&STRANGER, "open", "v1").await.found(&image.digest);
    }
    let heads = || upstream.requests("HEAD", "*/v1").iter().filter(|entry| matches!(entry.status, 200 | 405)).count();
    assert_eq!(heads(), 1, "it is remembered");
    upstream.unscript();
    pass(Duration::from_mins(59)).await;
    direct.get(&STRANGER, "open", "v1").await.found(&image.digest);
    assert_eq!(heads(), 1, "for an hour");
    pass(Duration::from_mins(2)).await;
    for _ in 0..3 {
        direct.get(&STRANGER, "open", "v1").await.found(&image.digest);
    }
    assert_eq!(heads(), 4, "and they work again");
}
