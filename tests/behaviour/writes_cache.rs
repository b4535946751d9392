//! What a write through ocistern means for what is known: never a wrong tag after it, whatever was in flight and
//! wherever it broke off, and the next pull of what was pushed is a hit.

use std::sync::Arc;
use std::time::Duration;

use crate::common::content::{artifact, blob, image, sha256};
use crate::common::direct::{Came, apart, party, target};
use crate::common::upstream::{Cut, Then};
use crate::common::{Direct, Gate, Image, Upstream, acts, clock};
use bytes::Bytes;
use http_body_util::{BodyExt as _, StreamBody};
use ocistern::cache::{Begun, Found, Opening, PublishedManifest, Want, WriteError};
use ocistern::oci::{Digest, Tag};
use ocistern::store::SETTLES_WITHIN;
use ocistern::upstream::Right;

const CALLER: Right = Right::Anonymous;

fn tag(name: &str) -> Tag {
    name.parse().unwrap()
}

fn published(image: &Image) -> PublishedManifest {
    PublishedManifest { digest: image.digest, media_type: image.media_type.to_owned(), bytes: image.manifest.clone() }
}

/// An upstream where `app:v1` is the old image, which is in the store.
async fn known(keys: &str) -> (Direct, Upstream, Image, Image) {
    let upstream = Upstream::start().await;
    let (old, new) = (image(1), image(2));
    upstream.image("app", "v1", &old);
    let direct = Direct::start(&upstream, keys).await;
    direct.get(&CALLER, "app", "v1").await.found(&old.digest);
    direct.settle().await;
    (direct, upstream, old, new)
}

/// Puts a blob into the store, as an upload does.
async fn store(direct: &Direct, bytes: &Bytes) -> Digest {
    let digest = sha256(bytes);
    let mut writer = direct.store.create(&digest, Some(bytes.len() as u64)).await.unwrap();
    writer.write(bytes.clone()).await.unwrap();
    writer.finish().await.unwrap();
    digest
}

#[tokio::test]
async fn what_was_pushed_is_a_hit_at_once() {
    for tags in ["immutable", "5m", "always"] {
        let (direct, upstream, _, new) = known(&format!("tags = \"{tags}\"")).await;
        let at = target(&CALLER, "app");
        // Not there, and remembered.
        let came = direct.get(&CALLER, "app", &new.digest.to_string()).await;
        assert!(matches!(came, Came::Missing(_)), "{came:?}");
        let layer = sha256(&new.layers[0]);
        assert!(matches!(direct.blob(&CALLER, "app", &layer).await, Came::Missing(_)));
        assert!(matches!(direct.get(&CALLER, "app", "v2").await, Came::Missing(_)));
        let list = direct.tags(&CALLER, "app").await;

        upstream.image("app", "v1", &new);
        upstream.tag("app", "v2", new.digest);
        store(&direct, &new.layers[0]).await;
        let begun = direct.cache.asking();
        direct.cache.published_blob(&at, &layer, new.layers[0].len() as u64, &begun).await;
        let guard = direct.cache.writing(&at, &[tag("v1"), tag("v2")]).await.unwrap();
        direct.cache.published_manifest(guard, &at, &[tag("v1"), tag("v2")], published(&new)).await;

        upstream.forget();
        direct.blob(&CALLER, "app", &layer).await.assert_hit(&layer);
        direct.get(&CALLER, "app", &new.digest.to_string()).await.assert_hit(&new.digest);
        for name in ["v1", "v2"] {
            direct.get(&CALLER, "app", name).await.assert_hit(&new.digest);
        }
        assert_eq!(upstream.count("GET", "/v2/*"), 0, "{tags}");
        let asked = if tags == "always" { 2 } else { 0 };
        assert_eq!(upstream.count("HEAD", "/v2/app/manifests/*"), asked, "{tags}");
        upstream.down();
        assert_ne!(direct.tags(&CALLER, "app").await, list, "the list from before the push is forgotten");
    }
}

#[tokio::test]
async fn a_write_whose_answer_is_lost_leaves_no_wrong_tag_behind() {
    for tags in ["immutable", "5m"] {
        for happened in [true, false] {
            let (direct, upstream, old, new) = known(&format!("tags = \"{tags}\"")).await;
            upstream.forget();
            direct.get(&CALLER, "app", "v1").await.assert_hit(&old.digest);
            assert_eq!(upstream.log().len(), 0, "{tags}: it is fresh");
            let guard = direct.cache.writing(&target(&CALLER, "app"), &[tag("v1")]).await.unwrap();
            if happened {
                upstream.image("app", "v1", &new);
            }
            // Killed, between upstream's answer and ours.
            let direct = direct.after_a_kill().await;
            drop(guard);
            let due = if happened { &new } else { &old };
            upstream.down();
            assert_eq!(direct.get(&CALLER, "app", "v1").await, Came::Away, "{tags}: not served as stale");
            upstream.up();
            crate::common::eventually("upstream is asked again", || async {
                matches!(direct.get(&CALLER, "app", "v1").await, Came::Content(..))
            })
            .await;
            direct.get(&CALLER, "app", "v1").await.assert_hit(&due.digest);
            assert!(upstream.count("HEAD", "/v2/app/manifests/v1") > 1, "{tags}: asked each time, it may happen yet");
            direct.settle().await;
            clock::pass(SETTLES_WITHIN).await;
            direct.get(&CALLER, "app", "v1").await.assert_hit(&due.digest);
            upstream.forget();
            direct.get(&CALLER, "app", "v1").await.assert_hit(&due.digest);
            assert_eq!(upstream.log().len(), 0, "{tags}: upstream's answer has ended the suspicion");
        }
    }
}

/// However the process ended that waited for upstream's answer, the next one waits for upstream to settle.
#[tokio::test]
async fn a_write_that_happens_after_the_next_start_is_noticed() {
    for deletes in [false, true] {
        for clean in [false, true] {
            for was_known in [false, true] {
                let case = format!("deletes {deletes}, clean {clean}, known {was_known}");
                let (direct, upstream, old, new) = known("tags = \"immutable\"").await;
                let name = if was_known { "v1" } else { "v2" };
                upstream.tag("app", name, old.digest);
                let at = target(&CALLER, "app");
                let guard = if deletes {
                    direct.cache.deleting(&at).await.unwrap()
                } else {
                    direct.cache.writing(&at, &[tag(name)]).await.unwrap()
                };
                let direct = if clean {
                    // Dropped by the stop itself, as a push that does not end within the drain is.
                    direct.restart_with(guard).await
                } else {
                    let killed = direct.after_a_kill().await;
                    drop(guard);
                    killed
                };
                for _ in 0..2 {
                    direct.get(&CALLER, "app", name).await.found(&old.digest);
                }
                upstream.image("app", name, &new);
                direct.get(&CALLER, "app", name).await.found(&new.digest);
                direct.settle().await;
                clock::pass(SETTLES_WITHIN).await;
                // The first look ends it, and what was asked before the look is too old: of a tag that is not known the
                // look comes with the answer.
                for _ in 0..2 {
                    direct.get(&CALLER, "app", name).await.found(&new.digest);
                }
                upstream.forget();
                direct.get(&CALLER, "app", name).await.assert_hit(&new.digest);
                assert_eq!(upstream.log().len(), 0, "{case}: known again");
            }
        }
    }
}

#[tokio::test]
async fn a_write_that_may_still_happen_is_waited_for() {
    let (direct, upstream, old, new) = known("tags = \"immutable\"").await;
    let _warp = clock::warp();
    let guard = direct.cache.writing(&target(&CALLER, "app"), &[tag("v1")]).await.unwrap();
    // Upstream has not answered in time, and nobody knows what it does.
    drop(guard);
    direct.get(&CALLER, "app", "v1").await.assert_hit(&old.digest);
    upstream.image("app", "v1", &new);
    direct.get(&CALLER, "app", "v1").await.found(&new.digest);
    tokio::time::sleep(Duration::from_secs(31)).await;
    upstream.forget();
    direct.get(&CALLER, "app", "v1").await.found(&new.digest);
    assert!(upstream.count("HEAD", "/v2/app/manifests/v1") > 0, "asked once more, when it is over");
    upstream.forget();
    direct.get(&CALLER, "app", "v1").await.assert_hit(&new.digest);
    assert_eq!(upstream.log().len(), 0);
}

#[tokio::test]
async fn an_answer_that_was_in_flight_is_dropped() {
    let (direct, upstream, old, new) = known("tags = \"immutable\"").await;
    upstream.image("app", "v2", &old);
    let direct = Arc::new(direct);
    let ask = |name: &'static str, want: Want| {
        let direct = direct.clone();
        apart(async move { direct.manifest(&CALLER, "app", name, want).await })
    };
    for want in [Want::Bytes, Want::Description] {
        let gate = Gate::new();
        // Upstream has said what the tag means, and the answer is on its way.
        upstream.script("*", "/v2/app/manifests/v2", 0..1, acts::hold_head(&gate));
        let early = ask("v2", want);
        gate.reached(1).await;
        let guard = direct.cache.writing(&target(&CALLER, "app"), &[tag("v2")]).await.unwrap();
        upstream.image("app", "v2", &new);
        direct.cache.published_manifest(guard, &target(&CALLER, "app"), &[tag("v2")], published(&new)).await;
        // Nobody joins what was asked before.
        direct.get(&CALLER, "app", "v2").await.assert_hit(&new.digest);
        gate.open();
        early.done().await.found(&old.digest);
        direct.settle().await;
        direct.get(&CALLER, "app", "v2").await.assert_hit(&new.digest);
        direct.get(&CALLER, "app", &old.digest.to_string()).await.found(&old.digest);
        direct.get(&CALLER, "app", "v2").await.assert_hit(&new.digest);
        upstream.unscript();
        let guard = direct.cache.writing(&target(&CALLER, "app"), &[tag("v2")]).await.unwrap();
        upstream.tag("app", "v2", old.digest);
        direct.cache.deleted_tag(guard, &target(&CALLER, "app"), &tag("v2")).await;
    }
}

#[tokio::test]
async fn a_404_that_was_in_flight_is_not_remembered() {
    let (direct, upstream, _, new) = known("").await;
    let direct = Arc::new(direct);
    let (at, layer) = (target(&CALLER, "app"), sha256(&new.layers[0]));
    let gate = Gate::new();
    upstream.script("*", "*", 0..2, acts::hold_head(&gate));
    let early = {
        let direct = direct.clone();
        apart(async move {
            tokio::join!(direct.get(&CALLER, "app", "v2"), direct.head_blob(&CALLER, "app", &layer, Want::Description))
        })
    };
    gate.reached(2).await;
    upstream.image("app", "v2", &new);
    // Upstream has taken both, and there was no room for them here.
    direct.cache.forget_missing_blob(&at, &layer);
    let guard = direct.cache.writing(&at, &[tag("v2")]).await.unwrap();
    let other = PublishedManifest { bytes: Bytes::new(), ..published(&new) };
    direct.cache.published_manifest(guard, &at, &[tag("v2")], other).await;
    gate.open();
    let (tagged, blob) = early.done().await;
    assert!(matches!((&tagged, &blob), (Came::Missing(_), Came::Missing(_))), "{tagged:?} {blob:?}");
    direct.get(&CALLER, "app", "v2").await.found(&new.digest);
    direct.head_blob(&CALLER, "app", &layer, Want::Description).await.found(&layer);
}

#[tokio::test]
async fn nobody_who_comes_after_a_write_joins_what_was_asked_before_it() {
    let (direct, upstream, old, new) = known("tags = \"always\"").await;
    let (direct, at) = (Arc::new(direct), target(&CALLER, "app"));
    let gate = Gate::new();
    upstream.script("HEAD", "/v2/app/manifests/v1", 0..1, acts::hold_head(&gate));
    upstream.script("GET", "/v2/app/tags/list", 0..1, acts::hold_head(&gate));
    let early = {
        let direct = direct.clone();
        apart(async move { tokio::join!(direct.get(&CALLER, "app", "v1"), direct.tags(&CALLER, "app")) })
    };
    gate.reached(2).await;
    let guard = direct.cache.writing(&at, &[tag("v1")]).await.unwrap();
    upstream.image("app", "v1", &new);
    upstream.tag("app", "v2", new.digest);
    direct.cache.published_manifest(guard, &at, &[tag("v1")], published(&new)).await;
    direct.get(&CALLER, "app", "v1").await.assert_hit(&new.digest);
    let listed = sha256(br#"{"name":"app","tags":["v1","v2"]}"#);
    assert_eq!(direct.tags(&CALLER, "app").await, Came::Content(listed, Found::Passed));
    gate.open();
    let (tagged, list) = early.done().await;
    assert_eq!(tagged.found(&old.digest), Found::Hit);
    assert_ne!(list, Came::Content(listed, Found::Passed), "it was asked before");
    upstream.down();
    assert_eq!(direct.tags(&CALLER, "app").await, Came::Content(listed, Found::Stale), "the later one was kept");
}

#[tokio::test]
async fn a_write_that_upstream_refused_leaves_everything_as_it_was() {
    let (direct, upstream, old, _) = known("tags = \"immutable\"").await;
    for deletes in [false, true] {
        let at = target(&CALLER, "app");
        let guard = if deletes {
            direct.cache.deleting(&at).await.unwrap()
        } else {
            direct.cache.writing(&at, &[tag("v1")]).await.unwrap()
        };
        upstream.forget();
        direct.get(&CALLER, "app", "v1").await.assert_hit(&old.digest);
        assert_eq!(upstream.count("HEAD", "/v2/app/manifests/v1"), 1, "suspect meanwhile");
        guard.refused().await;
        upstream.down();
        direct.get(&CALLER, "app", "v1").await.assert_hit(&old.digest);
        upstream.up();
    }
}

#[tokio::test]
async fn a_refusal_does_not_lift_the_suspicion_of_another_write() {
    let (direct, upstream, old, new) = known("tags = \"immutable\"").await;
    let at = target(&CALLER, "app");
    let lost = direct.cache.writing(&at, &[tag("v1")]).await.unwrap();
    let refused = direct.cache.writing(&at, &[tag("v1")]).await.unwrap();
    refused.refused().await;
    upstream.image("app", "v1", &new);
    drop(lost);
    direct.get(&CALLER, "app", "v1").await.found(&new.digest);
    assert_ne!(old.digest, new.digest);
}

#[tokio::test]
async fn what_was_deleted_is_gone_with_its_tags_and_referrers() {
    let upstream = Upstream::start().await;
    let (base, other) = (image(1), image(2));
    let signature = artifact("application/x-signature", &base.digest, 3);
    for (image, name) in [(&base, "v1"), (&signature, "signature"), (&other, "v2")] {
        upstream.image("app", name, image);
    }
    let direct = Direct::start(&upstream, "tags = \"immutable\"").await;
    let at = target(&CALLER, "app");
    for name in ["v1", "signature", "v2"] {
        direct.get(&CALLER, "app", name).await;
    }
    direct.referrers(&CALLER, "app", &base.digest).await;
    let layer = sha256(&base.layers[0]);
    direct.blob(&CALLER, "app", &layer).await.found(&layer);
    direct.settle().await;

    let guard = direct.cache.deleting(&at).await.unwrap();
    upstream.registry(|registry| {
        let app = registry.repos.get_mut("app").unwrap();
        app.manifests.retain(|digest, _| *digest == other.digest);
        app.tags.retain(|_, digest| *digest == other.digest);
        app.blobs.remove(&layer);
    });
    direct.cache.deleted_manifest(guard, &at, &base.digest).await;
    let gone = |came: &Came| matches!(came, Came::Missing(_));
    for reference in ["v1", "signature", &base.digest.to_string(), &signature.digest.to_string()] {
        let came = direct.get(&CALLER, "app", reference).await;
        assert!(gone(&came), "{reference}: {came:?}");
    }
    direct.get(&CALLER, "app", "v2").await.assert_hit(&other.digest);

    direct.blob(&CALLER, "app", &layer).await.assert_hit(&layer);
    let guard = direct.cache.writing(&at, &[]).await.unwrap();
    direct.cache.deleted_blob(guard, &at, &layer).await;
    let came = direct.blob(&CALLER, "app", &layer).await;
    assert!(gone(&came), "{came:?}");

    let guard = direct.cache.writing(&at, &[tag("v2")]).await.unwrap();
    upstream.registry(|registry| registry.repos.get_mut("app").unwrap().tags.clear());
    direct.cache.deleted_tag(guard, &at, &tag("v2")).await;
    assert!(gone(&direct.get(&CALLER, "app", "v2").await));
    direct.get(&CALLER, "app", &other.digest.to_string()).await.assert_hit(&other.digest);

    let guard = direct.cache.deleting(&at).await.unwrap();
    upstream.registry(|registry| registry.repos.clear());
    direct.cache.deleted_repository(guard, &at).await;
    assert!(gone(&direct.get(&CALLER, "app", &other.digest.to_string()).await));
    upstream.down();
    assert!(!matches!(direct.referrers(&CALLER, "app", &base.digest).await, Came::Content(..)));
}

#[tokio::test]
async fn content_on_its_way_while_it_is_deleted_does_not_come_back() {
    let upstream = Upstream::start().await;
    let (old, bytes) = (image(1), blob(5, 300_000));
    upstream.image("app", "v1", &old);
    let digest = upstream.blob("app", &bytes);
    let direct = Arc::new(Direct::start(&upstream, "").await);
    let at = target(&CALLER, "app");
    let (of_blob, of_manifest) = (Gate::new(), Gate::new());
    upstream.script("GET", "/v2/app/blobs/*", 0..1, acts::hold_at(100_000, &of_blob));
    upstream.script("GET", "/v2/app/manifests/*", 0..1, acts::hold_head(&of_manifest));
    let filling = {
        let direct = direct.clone();
        apart(async move { direct.blob(&CALLER, "app", &digest).await })
    };
    let fetching = {
        let direct = direct.clone();
        apart(async move { direct.get(&CALLER, "app", &old.digest.to_string()).await })
    };
    of_blob.reached(1).await;
    of_manifest.reached(1).await;
    let guard = direct.cache.deleting(&at).await.unwrap();
    upstream.registry(|registry| registry.repos.clear());
    direct.cache.deleted_repository(guard, &at).await;
    of_blob.open();
    of_manifest.open();
    filling.done().await.found(&digest);
    fetching.done().await.found(&old.digest);
    direct.settle().await;
    assert!(matches!(direct.blob(&CALLER, "app", &digest).await, Came::Missing(_)));
    let came = direct.get(&CALLER, "app", &old.digest.to_string()).await;
    assert!(matches!(came, Came::Missing(_)), "{came:?}");
}

/// Upstream took the push first; here its answer is the last one that is dealt with.
#[tokio::test]
async fn what_was_pushed_and_deleted_at_once_does_not_come_back() {
    let (direct, upstream, _, new) = known("tags = \"immutable\"").await;
    let at = target(&CALLER, "app");
    let pushing = direct.cache.writing(&at, &[tag("v2")]).await.unwrap();
    let deleting = direct.cache.deleting(&at).await.unwrap();
    direct.cache.deleted_manifest(deleting, &at, &new.digest).await;
    direct.cache.published_manifest(pushing, &at, &[tag("v2")], published(&new)).await;
    let (layer, begun) = (store(&direct, &new.layers[0]).await, direct.cache.asking());
    let deleting = direct.cache.deleting(&at).await.unwrap();
    direct.cache.deleted_blob(deleting, &at, &layer).await;
    direct.cache.published_blob(&at, &layer, new.layers[0].len() as u64, &begun).await;
    let came = direct.blob(&CALLER, "app", &layer).await;
    assert!(matches!(came, Came::Missing(_)), "{came:?}");
    upstream.forget();
    for reference in [new.digest.to_string(), "v2".to_owned()] {
        let came = direct.get(&CALLER, "app", &reference).await;
        assert!(matches!(came, Came::Missing(_)), "{reference}: {came:?}");
    }
}

#[tokio::test]
async fn a_manifest_that_is_not_what_it_says_is_not_kept() {
    let (direct, upstream, old, new) = known("tags = \"immutable\"").await;
    let at = target(&CALLER, "app");
    let ambiguous = Bytes::from_static(br#"{"schemaVersion":2,"manifests":[],"layers":[],"config":{}}"#);
    let wrong = [
        PublishedManifest { bytes: old.manifest.clone(), ..published(&new) },
        PublishedManifest { digest: sha256(&ambiguous), bytes: ambiguous, ..published(&new) },
    ];
    for manifest in wrong {
        let digest = manifest.digest;
        let guard = direct.cache.writing(&at, &[tag("v1")]).await.unwrap();
        direct.cache.published_manifest(guard, &at, &[tag("v1")], manifest).await;
        upstream.forget();
        direct.get(&CALLER, "app", "v1").await.found(&old.digest);
        assert!(upstream.count("HEAD", "/v2/app/manifests/v1") > 0, "upstream has taken something: it is asked");
        assert!(!matches!(direct.get(&CALLER, "app", &digest.to_string()).await, Came::Content(..)));
    }
}

#[tokio::test]
async fn what_was_not_compared_with_its_digest_is_not_acknowledged_because_upstream_has_that() {
    // How many pieces wait for upstream when it breaks depends on what its client has taken.
    for count in 5..10 {
        let upstream = Upstream::start().await;
        let direct = Direct::start(&upstream, "").await;
        let big = blob(1, 16 << 20);
        let right = [big.clone(), blob(2, count)].concat().into();
        let digest = upstream.blob("app", &right);
        let at = target(&CALLER, "app");
        let opening = Opening { query: "", scope: None, owner: None, party: party() };
        let Begun::Session(upload, _) = direct.cache.begin_upload(&at, opening).await.unwrap() else {
            panic!("mounted")
        };
        let gate = Gate::new();
        upstream.take_in("PUT", "*", 0..1, 0, Then::Hold(gate.clone()));
        upstream.take_in("PUT", "*", 0..1, 0, Then::Cut(Cut::Reset));
        // As many bytes, others, and the last of them in so many pieces.
        let (last, mut all) = tokio::sync::oneshot::channel::<()>();
        let mut last = Some(last);
        let pieces = std::iter::once(big).chain((0..count).map(|_| Bytes::from_static(b"x"))).enumerate();
        let pieces = pieces.map(move |(n, piece)| {
            if n == count {
                let _ = last.take().map(|last| last.send(()));
            }
            Ok(http_body::Frame::data(piece))
        });
        let body = StreamBody::new(futures_util::stream::iter(pieces)).boxed_unsync();
        let closing = tokio::time::timeout(Duration::from_mins(1), async {
            tokio::join!(upload.close(&at, body, Some(right.len() as u64), None, &digest), async {
                gate.reached(1).await;
                // Where upstream's client takes less of them, the last one never comes before upstream breaks.
                let _ = tokio::time::timeout(Duration::from_millis(200), &mut all).await;
                gate.open();
            })
            .0
        });
        let closed = closing.await.unwrap();
        assert!(matches!(closed, Err(WriteError::WrongDigest { .. })), "{count}: {closed:?}");
    }
}
