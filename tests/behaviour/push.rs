//! Pushing and deleting through ocistern: upstream has it first, what was written is seen at once, and what is not
//! known is asked.

use crate::common::content::{artifact, blob, image, index, sha256};
use crate::common::invariants::{check, is_stored};
use crate::common::upstream::{Auth, Cut};
use crate::common::{Ask, Cistern, Gate, Got, Image, Upstream, acts};
use bytes::Bytes;
use ocistern::oci::{Digest, media};
use tokio::runtime::Runtime;

const BY_TAG: &str = "/v2/app/manifests/1.0";

/// An upstream that has the parts of `image`, and an ocistern that keeps tags as `tags` says.
async fn world(image: &Image, keys: &str) -> (Cistern, Upstream) {
    let upstream = Upstream::start().await;
    parts(&upstream, image);
    let cistern = Cistern::start(&upstream, keys).await;
    (cistern, upstream)
}

fn parts(upstream: &Upstream, image: &Image) {
    for part in image.layers.iter().chain([&image.config]) {
        upstream.blob("app", part);
    }
}

fn put(target: impl Into<String>, image: &Image) -> Ask {
    Ask::put(target).with("content-type", image.media_type).body(image.manifest.clone())
}

fn by_digest(digest: &Digest) -> String {
    format!("/v2/app/manifests/{digest}")
}

#[track_caller]
fn assert_put(got: &Got, digest: &Digest) {
    assert_eq!(got.status, 201, "{}: {:?}", got.summary(), got.body);
    assert_eq!(got.header("docker-content-digest"), digest.to_string());
    assert_eq!(got.header("location"), by_digest(digest));
}

#[track_caller]
fn assert_code(got: &Got, status: u16, code: &str) {
    assert_eq!((got.status, got.error_code()), (status, code.to_owned()), "{:?}", got.body);
}

/// A hit, without a question upstream for the content.
async fn assert_hit(cistern: &Cistern, target: &str, bytes: &Bytes) {
    let got = cistern.get(target).await;
    got.assert_is(bytes);
    assert_eq!(got.header("cache-status"), "ocistern; hit", "{target}");
}

// === manifests ===

#[tokio::test]
async fn what_was_pushed_is_a_hit_at_once() {
    let image = image(1);
    let (cistern, upstream) = world(&image, "").await;
    // Nobody has it, and that is remembered for a moment.
    for target in [BY_TAG.to_owned(), by_digest(&image.digest)] {
        assert_eq!(cistern.get(&target).await.status, 404);
    }
    let got = cistern.send(put(BY_TAG, &image)).await;
    assert_put(&got, &image.digest);
    let sent = upstream.requests("PUT", BY_TAG).pop().unwrap().request;
    assert_eq!(sent.body, image.manifest, "byte for byte");
    assert_eq!(sent.header("content-type"), Some(image.media_type));
    upstream.forget();
    assert_hit(&cistern, BY_TAG, &image.manifest).await;
    assert_hit(&cistern, &by_digest(&image.digest), &image.manifest).await;
    let got = cistern.get(BY_TAG).await;
    assert_eq!(got.header("content-type"), image.media_type);
    assert_eq!(upstream.count("GET", "*"), 0);
    check(&cistern).await;
}

#[tokio::test]
async fn indexes_subjects_and_further_tags() {
    let image = image(1);
    let (cistern, upstream) = world(&image, "").await;
    assert_put(&cistern.send(put(by_digest(&image.digest), &image)).await, &image.digest);
    let list = index(&[&image]);
    let list = Image { digest: sha256(&list), manifest: list, media_type: media::OCI_INDEX, ..image.clone() };
    let target = format!("{}?tag=multi&tag=latest", by_digest(&list.digest));
    let got = cistern.send(put(&target, &list)).await;
    assert_put(&got, &list.digest);
    assert_eq!(got.header("oci-tag"), "multi,latest");
    // That everybody may read it is asked once.
    assert_hit(&cistern, &by_digest(&list.digest), &list.manifest).await;
    upstream.forget();
    assert_hit(&cistern, "/v2/app/manifests/multi", &list.manifest).await;
    assert_hit(&cistern, "/v2/app/manifests/latest", &list.manifest).await;
    assert_eq!(upstream.log().len(), 0);
    // What refers to it is seen at once, also where an empty list was known.
    let referrers = format!("/v2/app/referrers/{}", image.digest);
    assert!(!String::from_utf8_lossy(&cistern.get(&referrers).await.body).contains("application/vnd.sbom"));
    let sbom = artifact("application/vnd.sbom", &image.digest, 7);
    parts(&upstream, &sbom);
    let got = cistern.send(put(by_digest(&sbom.digest), &sbom)).await;
    assert_put(&got, &sbom.digest);
    assert_eq!(got.header("oci-subject"), image.digest.to_string());
    assert!(String::from_utf8_lossy(&cistern.get(&referrers).await.body).contains("application/vnd.sbom"));
    let bad = cistern.send(put(format!("{}?tag=-x", by_digest(&image.digest)), &image)).await;
    assert_code(&bad, 400, "MANIFEST_INVALID");
    check(&cistern).await;
}

#[tokio::test]
async fn a_tag_that_moves_through_here_is_seen_at_once() {
    for keys in ["", "tags = \"immutable\"", "tags = \"1h\""] {
        let (first, second) = (image(1), image(2));
        let (cistern, upstream) = world(&first, keys).await;
        parts(&upstream, &second);
        assert_put(&cistern.send(put(BY_TAG, &first)).await, &first.digest);
        assert_hit(&cistern, BY_TAG, &first.manifest).await;
        assert_put(&cistern.send(put(BY_TAG, &second)).await, &second.digest);
        assert_hit(&cistern, BY_TAG, &second.manifest).await;
        assert_eq!(cistern.head(BY_TAG).await.header("docker-content-digest"), second.digest.to_string());
        let tags = String::from_utf8_lossy(&cistern.get("/v2/app/tags/list").await.body).into_owned();
        assert!(tags.contains("1.0"), "{tags}");
        assert_put(&cistern.send(put("/v2/app/manifests/2.0", &second)).await, &second.digest);
        let tags = String::from_utf8_lossy(&cistern.get("/v2/app/tags/list").await.body).into_owned();
        assert!(tags.contains("2.0"), "{tags}");
        check(&cistern).await;
    }
}

#[tokio::test]
async fn manifests_that_are_refused() {
    let image = image(1);
    let (cistern, upstream) = world(&image, "").await;
    let wrong = cistern.send(put(by_digest(&sha256(b"other")), &image)).await;
    assert_code(&wrong, 400, "DIGEST_INVALID");
    assert_eq!(upstream.log().len(), 0, "upstream is not bothered with it");
    let bad = cistern.send(put("/v2/app/manifests/sha256:baddigeststring", &image)).await;
    assert_code(&bad, 400, "DIGEST_INVALID");
    let incomplete = crate::common::content::image(2);
    let got = cistern.send(put(BY_TAG, &incomplete)).await;
    assert_code(&got, 404, "MANIFEST_BLOB_UNKNOWN");
    assert_code(
        &cistern.send(put(BY_TAG, &Image { manifest: "no".into(), ..image.clone() })).await,
        400,
        "MANIFEST_INVALID",
    );
    assert_eq!(cistern.get(BY_TAG).await.status, 404);
    assert_code(&cistern.send(Ask::post(BY_TAG)).await, 405, "UNSUPPORTED");
    check(&cistern).await;
}

#[tokio::test]
async fn a_large_manifest_goes_through_and_is_not_kept() {
    let image = image(1);
    let upstream = Upstream::start().await;
    parts(&upstream, &image);
    let cistern = Cistern::setup().upstream("up", &upstream, "").store("max_manifest = \"1KiB\"").start().await;
    let padded = format!("{}{}", String::from_utf8_lossy(&image.manifest), " ".repeat(100_000));
    let padded = Image { digest: sha256(padded.as_bytes()), manifest: padded.into(), ..image.clone() };
    for ask in [put(BY_TAG, &padded), put(BY_TAG, &padded).chunked(), put(by_digest(&padded.digest), &padded)] {
        assert_put(&cistern.send(ask).await, &padded.digest);
    }
    assert!(!is_stored(&cistern, &padded.digest));
    assert_eq!(upstream.requests("PUT", "*").pop().unwrap().request.body, padded.manifest);
    upstream.script("PUT", "*", .., acts::fail(413, "SIZE_INVALID"));
    assert_code(&cistern.send(put(BY_TAG, &padded)).await, 413, "SIZE_INVALID");
    let announced = Ask::put(BY_TAG).with("content-length", "99999999999");
    let huge = cistern.client().stream(announced);
    assert_code(&huge.answer().await, 413, "MANIFEST_INVALID");
    check(&cistern).await;
}

#[tokio::test]
async fn nothing_but_a_201_publishes_a_manifest() {
    for status in [200, 202, 204] {
        let (first, second) = (image(1), image(2));
        let (cistern, upstream) = world(&first, "tags = \"immutable\"").await;
        parts(&upstream, &second);
        assert_put(&cistern.send(put(BY_TAG, &first)).await, &first.digest);
        assert_hit(&cistern, BY_TAG, &first.manifest).await;
        upstream.script(
            "PUT",
            "*",
            ..,
            acts::answer(status, "text/html", if status == 204 { "" } else { "<p>Welcome" }),
        );
        cistern.send(put(BY_TAG, &second)).await.assert_fails(502);
        cistern.send(put(format!("{}?tag=1.0", by_digest(&second.digest)), &second)).await.assert_fails(502);
        // Whatever came of it upstream: it is asked.
        for now in [&second, &first] {
            upstream.tag("app", "1.0", now.digest);
            if now.digest == first.digest {
                cistern.send(put(BY_TAG, &second)).await.assert_fails(502);
                upstream.tag("app", "1.0", now.digest);
            }
            cistern.get(BY_TAG).await.assert_is(&now.manifest);
        }
        check(&cistern).await;
    }
}

#[tokio::test]
async fn tags_that_upstream_does_not_name_were_not_set() {
    // A registry that does not know the parameter, and one that takes some of the tags.
    let some = acts::both(acts::header("OCI-Tag", "2.0"), acts::duplicate("OCI-Tag", "x , 3.0"));
    for (said, set) in [(acts::without("OCI-Tag"), &[][..]), (some, &["2.0", "3.0"][..])] {
        let (first, second) = (image(1), image(2));
        let (cistern, upstream) = world(&first, "tags = \"immutable\"").await;
        parts(&upstream, &second);
        for tag in ["1.0", "2.0", "3.0"] {
            assert_put(&cistern.send(put(format!("/v2/app/manifests/{tag}"), &first)).await, &first.digest);
        }
        assert_hit(&cistern, BY_TAG, &first.manifest).await;
        upstream.script("PUT", "*", .., said);
        let target = format!("{}?tag=1.0&tag=2.0&tag=3.0", by_digest(&second.digest));
        assert_put(&cistern.send(put(target, &second)).await, &second.digest);
        for tag in ["1.0", "2.0", "3.0"] {
            let meant = if set.contains(&tag) { &second } else { &first };
            upstream.tag("app", tag, meant.digest);
        }
        upstream.forget();
        assert_hit(&cistern, &by_digest(&second.digest), &second.manifest).await;
        for tag in ["1.0", "2.0", "3.0"] {
            let meant = if set.contains(&tag) { &second } else { &first };
            let target = format!("/v2/app/manifests/{tag}");
            cistern.get(&target).await.assert_is(&meant.manifest);
            assert_eq!(upstream.count("HEAD", &target), usize::from(!set.contains(&tag)), "{tag}");
        }
        // The one in the address needs no mention.
        assert_put(&cistern.send(put(BY_TAG, &second)).await, &second.digest);
        upstream.forget();
        assert_hit(&cistern, BY_TAG, &second.manifest).await;
        assert_eq!(upstream.log().len(), 0);
        check(&cistern).await;
    }
}

// === what nobody knows is asked ===

#[tokio::test]
async fn a_lost_answer_leaves_no_wrong_tag() {
    for keys in ["tags = \"immutable\"", "tags = \"1h\""] {
        let (first, second) = (image(1), image(2));
        let (cistern, upstream) = world(&first, keys).await;
        parts(&upstream, &second);
        assert_put(&cistern.send(put(BY_TAG, &first)).await, &first.digest);
        // Upstream does it, and nobody hears of it.
        upstream.script("PUT", BY_TAG, .., acts::no_head(Cut::Reset));
        let lost = cistern.send(put(BY_TAG, &second)).await;
        assert!(lost.status >= 500, "{}", lost.summary());
        cistern.get(BY_TAG).await.assert_is(&second.manifest);
        // And while upstream is away, the old one does not come back.
        upstream.script("PUT", "*", .., acts::no_head(Cut::Reset));
        cistern.send(put(BY_TAG, &first)).await;
        upstream.down();
        let got = cistern.get(BY_TAG).await;
        assert!(!got.complete(), "a tag that may have moved was served: {}", got.summary());
    }
}

#[tokio::test]
async fn a_refusal_after_a_lost_answer_is_no_word_on_what_was_done() {
    for (status, code) in [(429, "TOOMANYREQUESTS"), (409, "DENIED"), (403, "DENIED")] {
        let (first, second) = (image(1), image(2));
        let (cistern, upstream) = world(&first, "tags = \"immutable\"").await;
        parts(&upstream, &second);
        assert_put(&cistern.send(put(BY_TAG, &first)).await, &first.digest);
        // Upstream does it, and its answer is lost; it is asked once more, and refuses.
        upstream.script("PUT", BY_TAG, ..1, acts::no_head(Cut::Reset));
        upstream.script("PUT", BY_TAG, .., acts::fail(status, code));
        let refused = cistern.send(put(BY_TAG, &second)).await;
        assert!(refused.status >= 400, "{}", refused.summary());
        assert_eq!(upstream.count("PUT", BY_TAG), 3);
        upstream.script("PUT", BY_TAG, .., acts::honest());
        cistern.get(BY_TAG).await.assert_is(&second.manifest);
    }
}

#[tokio::test]
async fn a_refused_write_changes_nothing() {
    let (first, second) = (image(1), image(2));
    let (cistern, upstream) = world(&first, "tags = \"immutable\"").await;
    parts(&upstream, &second);
    assert_put(&cistern.send(put(BY_TAG, &first)).await, &first.digest);
    // That everybody may read it is asked once.
    assert_hit(&cistern, BY_TAG, &first.manifest).await;
    for (status, code) in [(400, "MANIFEST_INVALID"), (403, "DENIED"), (405, "UNSUPPORTED"), (429, "TOOMANYREQUESTS")] {
        upstream.unscript();
        upstream.script("PUT", "*", .., acts::fail(status, code));
        assert_code(&cistern.send(put(BY_TAG, &second)).await, status, code);
        upstream.forget();
        assert_hit(&cistern, BY_TAG, &first.manifest).await;
        assert_eq!(upstream.log().len(), 0, "{status}: the tag is as sure as before");
    }
    // Nor does one that never left.
    upstream.down();
    assert!(cistern.send(put(BY_TAG, &second)).await.status >= 500);
    assert!(cistern.send(Ask::delete(by_digest(&first.digest))).await.status >= 500);
    assert_hit(&cistern, BY_TAG, &first.manifest).await;
    check(&cistern).await;
}

#[test]
fn a_kill_after_upstreams_commit_leaves_no_wrong_tag() {
    for deletes in [false, true] {
        let world_ = Runtime::new().unwrap();
        let victim = Runtime::new().unwrap();
        let (first, second) = (image(1), image(2));
        let upstream = world_.block_on(Upstream::start());
        for image in [&first, &second] {
            parts(&upstream, image);
        }
        let mut cistern = victim.block_on(Cistern::start(&upstream, "tags = \"immutable\""));
        let gate = Gate::new();
        world_.block_on(async {
            assert_put(&cistern.send(put(BY_TAG, &first)).await, &first.digest);
            // Upstream has done it; its answer never comes.
            upstream.script("*", "*", .., acts::honest());
            upstream.unscript();
            let method = if deletes { "DELETE" } else { "PUT" };
            upstream.script(method, "/v2/app/manifests/*", .., acts::hold_head(&gate));
            let client = cistern.client();
            let ask = if deletes { Ask::delete(by_digest(&first.digest)) } else { put(BY_TAG, &second) };
            let mut writing = tokio::task::JoinSet::new();
            writing.spawn(async move { client.send(ask).await });
            gate.reached(1).await;
        });
        drop(victim);
        cistern.abandon();
        upstream.unscript();
        gate.open();
        world_.block_on(async {
            cistern.start_again().await;
            let got = cistern.get(BY_TAG).await;
            if deletes {
                assert_eq!(got.status, 404, "{}", got.summary());
                assert_eq!(cistern.get(by_digest(&first.digest)).await.status, 404, "nor by digest");
            } else {
                got.assert_is(&second.manifest);
            }
            check(&cistern).await;
        });
    }
}

#[tokio::test]
async fn an_answer_from_before_a_push_is_not_kept() {
    let (first, second) = (image(1), image(2));
    let (cistern, upstream) = world(&first, "tags = \"1ms\"").await;
    parts(&upstream, &second);
    assert_put(&cistern.send(put(BY_TAG, &first)).await, &first.digest);
    let gate = Gate::new();
    upstream.script("HEAD", BY_TAG, 0..1, acts::hold_head(&gate));
    let client = cistern.client();
    let mut asking = tokio::task::JoinSet::new();
    asking.spawn(async move { client.get(BY_TAG).await });
    gate.reached(1).await;
    assert_put(&cistern.send(put(BY_TAG, &second)).await, &second.digest);
    gate.open();
    let _ = asking.join_next().await;
    upstream.down();
    let got = cistern.get(BY_TAG).await;
    assert_eq!(got.digest, second.digest, "the old answer has overwritten the push: {}", got.summary());
}

#[tokio::test]
async fn a_push_goes_on_when_its_client_leaves() {
    let image = image(1);
    let (cistern, upstream) = world(&image, "").await;
    let gate = Gate::new();
    upstream.script("PUT", "*", 0..1, acts::hold_head(&gate));
    let client = cistern.client();
    let ask = put(BY_TAG, &image);
    let mut pushing = tokio::task::JoinSet::new();
    pushing.spawn(async move { client.send(ask).await });
    gate.reached(1).await;
    pushing.shutdown().await;
    gate.open();
    crate::common::eventually("it is kept", || async {
        cistern.get(BY_TAG).await.header("cache-status") == "ocistern; hit" && is_stored(&cistern, &image.digest)
    })
    .await;
}

// === deletes ===

#[tokio::test]
async fn what_was_deleted_is_gone_at_once() {
    let image = image(1);
    let (cistern, upstream) = world(&image, "tags = \"immutable\"").await;
    let sbom = artifact("application/vnd.sbom", &image.digest, 7);
    parts(&upstream, &sbom);
    assert_put(&cistern.send(put(BY_TAG, &image)).await, &image.digest);
    assert_put(&cistern.send(put("/v2/app/manifests/sbom", &sbom)).await, &sbom.digest);
    let referrers = format!("/v2/app/referrers/{}", image.digest);
    assert!(cistern.get(&referrers).await.complete());
    let got = cistern.send(Ask::delete(BY_TAG)).await;
    assert_code(&got, 405, "UNSUPPORTED");
    assert_hit(&cistern, BY_TAG, &image.manifest).await;
    let got = cistern.send(Ask::delete(by_digest(&image.digest))).await;
    assert_eq!((got.status, got.length), (202, 0), "{}", got.summary());
    for target in [BY_TAG, &by_digest(&image.digest), "/v2/app/manifests/sbom", &by_digest(&sbom.digest)] {
        assert_eq!(cistern.head(target).await.status, 404, "{target}");
        assert_eq!(cistern.get(target).await.status, 404, "{target}");
    }
    assert!(!String::from_utf8_lossy(&cistern.get("/v2/app/tags/list").await.body).contains("1.0"));
    // Also while upstream is away.
    upstream.down();
    for target in [BY_TAG, &by_digest(&image.digest), "/v2/app/manifests/sbom", &referrers] {
        let got = cistern.get(target).await;
        assert!(!got.complete(), "{target}: {}", got.summary());
    }
    upstream.up();
    crate::common::eventually("upstream is back", || async { cistern.send(put(BY_TAG, &image)).await.status == 201 })
        .await;
    assert_hit(&cistern, BY_TAG, &image.manifest).await;
    check(&cistern).await;
}

#[tokio::test]
async fn a_delete_is_done_when_upstream_says_so() {
    let image = image(1);
    for (status, expected) in [(200, 502), (201, 502), (202, 202), (204, 204)] {
        let (cistern, upstream) = world(&image, "tags = \"immutable\"").await;
        assert_put(&cistern.send(put(BY_TAG, &image)).await, &image.digest);
        upstream.script(
            "DELETE",
            "*",
            ..,
            acts::answer(status, "text/html", if status == 200 { "<p>Welcome" } else { "" }),
        );
        for target in [by_digest(&image.digest), format!("/v2/app/blobs/{}", sha256(&image.config))] {
            assert_eq!(cistern.send(Ask::delete(&target)).await.status, expected, "{status}: {target}");
        }
        // Whatever came of it upstream: it is asked.
        assert_eq!(cistern.get(BY_TAG).await.status, 404);
        upstream.image("app", "1.0", &image);
        check(&cistern).await;
    }
}

#[tokio::test]
async fn tags_and_blobs_are_deleted_alone() {
    let image = image(1);
    let (cistern, upstream) = world(&image, "tags = \"immutable\"").await;
    upstream.registry(|registry| registry.deletes_tags = true);
    assert_put(&cistern.send(put(BY_TAG, &image)).await, &image.digest);
    assert_eq!(cistern.send(Ask::delete(BY_TAG)).await.status, 202);
    assert_eq!(cistern.get(BY_TAG).await.status, 404);
    assert_hit(&cistern, &by_digest(&image.digest), &image.manifest).await;

    let target = format!("/v2/app/blobs/{}", sha256(&image.layers[0]));
    cistern.get(&target).await.assert_is(&image.layers[0]);
    cistern.settle().await;
    assert_eq!(cistern.send(Ask::delete(&target)).await.status, 202);
    assert_eq!((cistern.head(&target).await.status, cistern.get(&target).await.status), (404, 404));
    assert_code(&cistern.send(Ask::delete(&target)).await, 404, "BLOB_UNKNOWN");
    assert_code(&cistern.send(Ask::delete(by_digest(&sha256(b"x")))).await, 404, "MANIFEST_UNKNOWN");
    check(&cistern).await;
}

// === who may ===

const PASSWORD: &str = "CANARY-PASSWORD";

/// A registry where alice and bob push to `app`, and eve only pulls.
async fn guarded(keys: &str) -> (Cistern, Upstream) {
    let upstream = Upstream::start().await;
    upstream.registry(|registry| {
        registry.auth = Auth::Accounts;
        for (user, actions) in [("alice", "pull,push,delete"), ("bob", "pull,push"), ("eve", "pull")] {
            registry.accounts.user(user, PASSWORD);
            registry.accounts.allow(user, "app", actions);
        }
    });
    let cistern = Cistern::start(&upstream, keys).await;
    (cistern, upstream)
}

#[tokio::test]
async fn a_stolen_address_is_worth_nothing() {
    let (cistern, upstream) = guarded("").await;
    let uploads = "/v2/app/blobs/uploads/";
    let nobody = cistern.send(Ask::post(uploads)).await;
    assert_code(&nobody, 401, "UNAUTHORIZED");
    assert!(nobody.header("www-authenticate").contains("scope=\"repository:app:pull,push\""), "{nobody:?}");
    let begun = cistern.send(Ask::post(uploads).basic("alice", PASSWORD)).await;
    assert_eq!(begun.status, 202, "{}", begun.summary());
    let location = begun.header("location").to_owned();
    for user in ["bob", "eve"] {
        for ask in [Ask::get(&location), Ask::patch(&location).body("x"), Ask::delete(&location)] {
            let got = cistern.send(ask.basic(user, PASSWORD)).await;
            assert_code(&got, 404, "BLOB_UPLOAD_UNKNOWN");
        }
    }
    // Azure's SDKs show their credential only when they are asked for it.
    let got = cistern.send(Ask::patch(&location).body("x")).await;
    assert_code(&got, 401, "UNAUTHORIZED");
    let got = cistern.send(Ask::patch(&location).basic("alice", PASSWORD).body("abc")).await;
    assert_eq!((got.status, got.header("range")), (202, "0-2"));
    let digest = sha256(b"abc");
    let close = format!("{}?digest={digest}", got.header("location"));
    let got = cistern.send(Ask::put(close).basic("alice", PASSWORD)).await;
    assert_eq!(got.status, 201, "{}", got.summary());
    assert!(upstream.registry(|registry| registry.repos["app"].blobs.contains_key(&digest)));
    // By alice's right, it is not everybody's.
    let target = format!("/v2/app/blobs/{digest}");
    assert_eq!(cistern.get(&target).await.status, 401);
    let got = cistern.send(Ask::get(&target).basic("eve", PASSWORD)).await;
    got.assert_is(&Bytes::from_static(b"abc"));
}

#[tokio::test]
async fn who_may_not_see_it_empties_nothing() {
    let image = image(1);
    let (cistern, upstream) = guarded("").await;
    parts(&upstream, &image);
    // As some registries say it to strangers: there is nothing.
    upstream.registry(|registry| {
        registry.accounts.user("mallory", PASSWORD);
        registry.accounts.refused_with = Some(404);
    });
    assert_put(&cistern.send(put(BY_TAG, &image).basic("alice", PASSWORD)).await, &image.digest);
    let target = by_digest(&image.digest);
    let pull = || cistern.send(Ask::get(&target).basic("alice", PASSWORD));
    pull().await.assert_is(&image.manifest);
    for ask in [Ask::delete(&target), Ask::delete(&target).basic("mallory", PASSWORD)] {
        let got = cistern.send(ask).await;
        assert!((400..500).contains(&got.status), "{}", got.summary());
    }
    upstream.forget();
    pull().await.assert_is(&image.manifest);
    assert_eq!(upstream.count("*", "/v2/app/*"), 0, "it is still known");
}

#[tokio::test]
async fn tokens_that_are_renewed_and_tokens_that_are_not_enough() {
    let (cistern, upstream) = guarded("").await;
    let bytes = blob(1, 200_000);
    let digest = sha256(&bytes);
    let begun = cistern.send(Ask::post("/v2/app/blobs/uploads/").basic("alice", PASSWORD)).await;
    // In the middle of the upload every token of upstream expires.
    upstream.registry(|registry| registry.accounts.revoke());
    let patch = Ask::patch(begun.header("location")).basic("alice", PASSWORD).body(bytes.clone());
    let got = cistern.send(patch).await;
    assert_eq!((got.status, got.header("range")), (202, "0-199999"), "{:?}", got.body);
    let begun = upstream.requests("POST", "*/uploads/").iter().filter(|entry| entry.status == 202).count();
    assert_eq!(begun, 2, "it was replayed with a fresh one");
    upstream.registry(|registry| registry.accounts.revoke());
    let close = format!("{}?digest={digest}", got.header("location"));
    assert_eq!(cistern.send(Ask::put(close).basic("alice", PASSWORD)).await.status, 201);
    let refused = cistern.send(Ask::post("/v2/app/blobs/uploads/").basic("eve", PASSWORD)).await;
    assert!(matches!(refused.status, 401 | 403), "{}", refused.summary());
    let wrong = cistern.send(Ask::post("/v2/app/blobs/uploads/").basic("alice", "wrong")).await;
    assert_eq!(wrong.status, 401, "{}", wrong.summary());
    let refused = cistern.send(Ask::delete(format!("/v2/app/blobs/{digest}")).basic("bob", PASSWORD)).await;
    assert!(matches!(refused.status, 401 | 403), "{}", refused.summary());
    assert!(upstream.registry(|registry| registry.repos["app"].blobs.contains_key(&digest)));
}

/// Who is refused by upstream leaves no trace: no tag is doubtful for it, nothing is forgotten, not even for a moment.
#[tokio::test]
async fn who_may_only_read_changes_nothing() {
    let (cistern, upstream) = guarded("tags = \"1h\"").await;
    let image = image(9);
    upstream.image("app", "1.0", &image);
    let get = || Ask::get(BY_TAG).basic("eve", PASSWORD);
    cistern.send(get()).await.assert_is(&image.manifest);
    cistern.settle().await;
    let writes = [put(BY_TAG, &image), Ask::delete(BY_TAG), Ask::delete(by_digest(&image.digest))];
    for ask in writes {
        for ask in [ask.clone(), ask.clone().basic("eve", PASSWORD)] {
            let refused = cistern.send(ask).await;
            assert!(matches!(refused.status, 401 | 403), "{}", refused.summary());
            assert_eq!(cistern.send(get()).await.header("cache-status"), "ocistern; hit");
        }
    }
    assert_eq!(upstream.requests("PUT", "/v2/app/manifests/*").len(), 0, "nobody came that far");
    assert_eq!(upstream.requests("GET", "/v2/app/manifests/*").len(), 2, "the challenge, and the only download");
    // Who writes for the first time shows that it may, once.
    for part in image.layers.iter().chain([&image.config]) {
        upstream.blob("app", part);
    }
    for _ in 0..2 {
        let got = cistern.send(put(BY_TAG, &image).basic("bob", PASSWORD)).await;
        assert_put(&got, &image.digest);
    }
    cistern.settle().await;
    let begun = upstream.requests("POST", "/v2/app/blobs/uploads/");
    assert_eq!(begun.iter().filter(|seen| seen.status == 202).count(), 1, "{begun:?}");
    crate::common::clock::eventually("the upload is given up", || async {
        upstream.requests("DELETE", "/v2/app/blobs/uploads/*").len() == 1
    })
    .await;
    check(&cistern).await;
}

#[tokio::test]
async fn of_a_manifests_query_only_tags_go_upstream() {
    let image = image(10);
    let (cistern, upstream) = world(&image, "").await;
    let target = format!("{}?tag=one&other=x;tag=two&tag=three", by_digest(&image.digest));
    assert_put(&cistern.send(put(target, &image)).await, &image.digest);
    assert_eq!(upstream.requests("PUT", "*").pop().unwrap().request.query, "tag=one&tag=three");
}

#[tokio::test]
async fn where_nobody_pushes() {
    let image = image(1);
    let (cistern, upstream) = world(&image, "push = \"off\"").await;
    for ask in [put(BY_TAG, &image), Ask::post("/v2/app/blobs/uploads/"), Ask::delete(by_digest(&image.digest))] {
        let got = cistern.send(ask).await;
        assert_eq!(got.status, 405, "{}", got.summary());
        assert!(String::from_utf8_lossy(&got.body).contains("push = \\\"off\\\""), "{:?}", got.body);
    }
    assert_eq!(upstream.log().len(), 0);
}

// === Azure's own interface ===

#[tokio::test]
async fn azures_own_interface_passes_through() {
    let image = image(1);
    let (cistern, upstream) = world(&image, "tags = \"immutable\"").await;
    assert_put(&cistern.send(put(BY_TAG, &image)).await, &image.digest);
    let list = acts::both(
        acts::answer(200, "application/json; charset=utf-8", r#"{"tags":[]}"#),
        acts::header("Link", "</acr/v1/app/_tags?last=1.0&n=1&orderby=>; rel=\"next\""),
    );
    upstream.script("GET", "/acr/v1/app/_tags", .., list);
    let got = cistern.get("/v2/up/app/tags/list").await;
    assert!(got.complete());
    for (target, link) in [
        ("/acr/v1/app/_tags?n=1", "</acr/v1/app/_tags?last=1.0&n=1&orderby=>; rel=\"next\""),
        ("/acr/v1/up/app/_tags?n=1", "</acr/v1/up/app/_tags?last=1.0&n=1&orderby=>; rel=\"next\""),
        ("/up/acr/v1/app/_tags?n=1", "</up/acr/v1/app/_tags?last=1.0&n=1&orderby=>; rel=\"next\""),
    ] {
        let got = cistern.get(target).await;
        assert_eq!((got.status, &*got.body, got.header("link")), (200, &br#"{"tags":[]}"#[..], link), "{target}");
        assert_eq!(upstream.log().last().unwrap().request.query, "n=1");
    }
    upstream.script("PATCH", "/acr/v1/*", .., acts::answer(200, "application/json", "{}"));
    let attributes = r#"{"writeEnabled":false}"#;
    let got =
        cistern.send(Ask::patch("/acr/v1/app/_tags/1.0").with("content-type", "application/json").body(attributes));
    assert_eq!(got.await.status, 200);
    let sent = upstream.log().pop().unwrap().request;
    assert_eq!((sent.body.as_slice(), sent.header("content-type")), (attributes.as_bytes(), Some("application/json")));
    let unknown = cistern.get("/acr/v1/app/_manifests").await;
    assert_eq!(unknown.status, 404, "upstream's own word");

    // Untagged and deleted here, it is gone here.
    assert_hit(&cistern, BY_TAG, &image.manifest).await;
    upstream.script("DELETE", "/acr/v1/app/_tags/1.0", .., acts::answer(202, "text/plain", ""));
    upstream.registry(|registry| registry.repos.get_mut("app").unwrap().tags.clear());
    assert_eq!(cistern.send(Ask::delete("/acr/v1/app/_tags/1.0")).await.status, 202);
    assert_eq!(cistern.get(BY_TAG).await.status, 404);
    assert_hit(&cistern, &by_digest(&image.digest), &image.manifest).await;
    upstream.script("DELETE", "/acr/v1/app", .., acts::answer(202, "application/json", r#"{"tagsDeleted":[]}"#));
    upstream.registry(|registry| registry.repos.clear());
    let got = cistern.send(Ask::delete("/acr/v1/app")).await;
    assert_eq!((got.status, &*got.body), (202, &br#"{"tagsDeleted":[]}"#[..]));
    assert_eq!(cistern.get(by_digest(&image.digest)).await.status, 404);
    check(&cistern).await;
}

#[tokio::test]
async fn what_is_restored_is_seen_at_once() {
    let image = image(1);
    let (cistern, upstream) = world(&image, "tags = \"immutable\"").await;
    assert_put(&cistern.send(put(BY_TAG, &image)).await, &image.digest);
    assert_hit(&cistern, BY_TAG, &image.manifest).await;
    assert_eq!(cistern.send(Ask::delete(by_digest(&image.digest))).await.status, 202);
    let tags = async || String::from_utf8_lossy(&cistern.get("/v2/app/tags/list").await.body).into_owned();
    assert!(!tags().await.contains("1.0"));
    let restore = format!("/acr/v1/_deleted/app/_manifests/{}", image.digest);
    let answer = format!(r#"{{"registry":"r","imageName":"app","manifest":{{"digest":"{}"}}}}"#, image.digest);
    upstream.script("POST", "/acr/v1/_deleted/*", .., acts::answer(200, "application/json", answer.clone()));
    // That it is gone is known, when it comes back.
    for target in [BY_TAG, &by_digest(&image.digest)] {
        assert_eq!(cistern.get(target).await.status, 404);
    }
    upstream.image("app", "1.0", &image);
    let ask = Ask::post(format!("{restore}?force=true")).with("content-type", "application/json");
    let got = cistern.send(ask.body(r#"{"tag":"1.0"}"#)).await;
    assert_eq!((got.status, &*got.body), (200, answer.as_bytes()));
    let sent = upstream.requests("POST", &restore).pop().unwrap().request;
    assert_eq!((sent.query.as_str(), sent.body.as_slice()), ("force=true", &br#"{"tag":"1.0"}"#[..]));
    cistern.get(BY_TAG).await.assert_is(&image.manifest);
    cistern.get(by_digest(&image.digest)).await.assert_is(&image.manifest);
    assert!(tags().await.contains("1.0"));
    check(&cistern).await;
}
