//! Mirrors: further endpoints of an upstream take over from it and from each other in the middle of a blob.

use std::sync::Arc;

use crate::common::content::blob;
use crate::common::invariants::{check, check_no_secret, files, is_stored};
use crate::common::upstream::{Auth, Cut, Reply, Request};
use crate::common::{Ask, Cistern, Gate, Upstream, acts, clock, eventually};
use bytes::Bytes;
use ocistern::oci::Digest;

const LENGTH: usize = 900_000;

/// An upstream, its mirror, and what both have.
async fn pair(seed: u64) -> (Upstream, Upstream, Bytes, Digest, String) {
    let (upstream, mirror) = (Upstream::start().await, Upstream::start().await);
    let bytes = blob(seed, LENGTH);
    let digest = upstream.blob("app", &bytes);
    mirror.blob("app", &bytes);
    (upstream, mirror, bytes, digest, format!("/v2/app/blobs/{digest}"))
}

fn keys(mirror: &Upstream) -> String {
    format!("mirrors = [{:?}]", mirror.url())
}

#[tokio::test]
async fn a_mirror_takes_over_in_the_middle() {
    let (upstream, mirror, bytes, digest, target) = pair(1).await;
    let gate = Gate::new();
    upstream.script("GET", &target, 0..1, acts::hold_at(300_000, &gate));
    let cistern = Cistern::start(&upstream, &keys(&mirror)).await;
    let reader = cistern.open(&target).await;
    gate.reached(1).await;
    assert_eq!(mirror.count("*", "*"), 0, "it is not asked without need");
    upstream.down();
    reader.finish().await.assert_is(&bytes);
    let both = upstream.sent("GET", &target) + mirror.sent("GET", &target);
    assert!(both <= LENGTH as u64 + 10_000, "{both} bytes");
    cistern.settle().await;
    assert!(is_stored(&cistern, &digest));
    check(&cistern).await;
}

#[tokio::test]
async fn they_take_over_from_each_other_as_often_as_one_breaks() {
    let (upstream, mirror, bytes, _, target) = pair(2).await;
    for one in [&upstream, &mirror] {
        one.script("GET", &target, .., acts::cut_at(100_000, Cut::Reset));
    }
    let cistern = Cistern::start(&upstream, &keys(&mirror)).await;
    let _warp = clock::warp();
    cistern.get(&target).await.assert_is(&bytes);
    assert!(upstream.count("GET", &target) >= 3 && mirror.count("GET", &target) >= 3);
    check(&cistern).await;
}

#[tokio::test]
async fn public_content_comes_from_a_mirror_where_upstream_is_down_from_the_start() {
    let (upstream, mirror, bytes, digest, target) = pair(3).await;
    let other = upstream.blob("app", &blob(31, 1000));
    let cistern = Cistern::start(&upstream, &keys(&mirror)).await;
    // Upstream's word that everybody may read here.
    assert!(cistern.get(format!("/v2/app/blobs/{other}")).await.complete());
    cistern.settle().await;
    upstream.down();
    let _warp = clock::warp();
    cistern.get(&target).await.assert_is(&bytes);
    cistern.settle().await;
    assert!(is_stored(&cistern, &digest));
    mirror.down();
    cistern.get(&target).await.assert_is(&bytes);
}

#[tokio::test]
async fn a_mirrors_word_makes_nothing_public() {
    let (upstream, mirror, _, _, target) = pair(6).await;
    let image = crate::common::content::image(6);
    upstream.image("app", "1.0", &image);
    let mut cistern = Cistern::start(&upstream, &keys(&mirror)).await;
    let manifest = format!("/v2/app/manifests/{}", image.digest);
    cistern.get(&manifest).await.assert_is(&image.manifest);
    upstream.registry(|registry| registry.auth = Auth::Basic("user".into(), "CANARY-PASSWORD".into()));
    assert_eq!(
        cistern
            .get("/v2/app/blobs/sha256:0000000000000000000000000000000000000000000000000000000000000000")
            .await
            .status,
        401
    );
    cistern.restart().await;
    upstream.down();
    let _warp = clock::warp();
    assert!(!cistern.get(&target).await.complete(), "who may read it nobody knows");
    assert!(!cistern.get(&manifest).await.complete());
    assert_eq!(mirror.connections(), 0, "it is not told private names");
}

#[tokio::test]
async fn one_that_has_other_bytes_is_found_out_and_set_aside() {
    let (upstream, mirror, bytes, digest, target) = pair(4).await;
    let gate = Gate::new();
    upstream.script("GET", &target, 0..1, acts::both(acts::hold_at(300_000, &gate), acts::cut_at(300_000, Cut::Fin)));
    let wrong = blob(99, LENGTH - 300_000);
    mirror.script("GET", &target, .., acts::change(move |reply| Reply { body: wrong.clone(), ..reply }));
    let cistern = Cistern::start(&upstream, &keys(&mirror)).await;
    let reader = cistern.open(&target).await;
    gate.reached(1).await;
    upstream.down();
    gate.open();
    let _warp = clock::warp();
    let got = reader.finish().await;
    assert!(got.cut.is_some() && got.length < LENGTH as u64, "a wrong end: {}", got.summary());
    cistern.settle().await;
    assert!(!is_stored(&cistern, &digest));
    let asked = mirror.count("*", "*");
    upstream.up();
    upstream.unscript();
    upstream.script("GET", &target, 0..1, acts::cut_at(300_000, Cut::Fin));
    eventually("upstream is found again", || async { cistern.get(&target).await.complete() }).await;
    cistern.get(&target).await.assert_is(&bytes);
    assert_eq!(mirror.count("*", "*"), asked, "it is not asked again");
    check(&cistern).await;
}

#[tokio::test]
async fn no_mirror_is_told_of_what_is_not_everybodys() {
    let (upstream, mirror, _, _, target) = pair(5).await;
    upstream.registry(|registry| registry.auth = Auth::Bearer(Some(("user".into(), "CANARY-PASSWORD".into()))));
    upstream.script("GET", &target, .., acts::where_status(200, acts::cut_at(300_000, Cut::Reset)));
    let directory = tempfile::tempdir().unwrap();
    let password = directory.path().join("password");
    std::fs::write(&password, "CANARY-PASSWORD").unwrap();
    let account = format!(
        "{}\nresume_for = \"0s\"\ncredentials = {{ from = \"static\", username = \"user\", password_file = '{}' }}",
        keys(&mirror),
        password.display()
    );
    let cistern = Cistern::start(&upstream, &account).await;
    let _warp = clock::warp();
    let got = cistern.get(&target).await;
    assert_eq!(got.status, 200, "{}", got.summary());
    upstream.down();
    assert_eq!(cistern.get(format!("/v2/app/blobs/{}", crate::common::content::sha256(b"other"))).await.status, 502);
    assert_eq!(mirror.connections(), 0);
    check_no_secret(&mirror);
}

#[tokio::test]
async fn a_mirrors_word_does_not_open_what_is_left_of_a_private_blob() {
    const MIB: usize = 1 << 20;
    let (upstream, mirror) = (Upstream::start().await, Upstream::start().await);
    let public = upstream.blob("public", &blob(71, 1000));
    let bytes = blob(7, 4 * MIB);
    let digest = upstream.blob("private", &bytes);
    let target = |repo: &str| format!("/v2/{repo}/blobs/{digest}");
    upstream.registry(|registry| {
        registry.auth = Auth::Accounts;
        registry.accounts.user("alice", "CANARY-ALICE");
        registry.accounts.allow("alice", "private", "pull");
        registry.accounts.public.insert("public".into());
    });
    // Bytes of its own, of the right length.
    let lie = blob(73, 4 * MIB);
    let act = move |request: &Request, _: Reply| {
        let range = request.header("range").and_then(|range| range.strip_prefix("bytes=")?.split_once('-'));
        let Some((from, to)) = range else { return Reply::new(200, "application/octet-stream", lie.clone()) };
        let from: usize = from.parse().unwrap();
        let to = to.parse().map_or(lie.len(), |last: usize| last + 1);
        Reply::new(206, "application/octet-stream", lie.slice(from..to))
            .with("Content-Range", format!("bytes {from}-{}/{}", to - 1, lie.len()))
    };
    mirror.script("GET", &target("public"), .., Arc::new(act));
    let cistern = Cistern::setup()
        .upstream("up", &upstream, &format!("{}\nresume_for = \"0s\"", keys(&mirror)))
        .store("range_fill = \"never\"\nabandon = \"park\"")
        .start()
        .await;
    assert!(cistern.get(format!("/v2/public/blobs/{public}")).await.complete());
    let alice = |ask: Ask| ask.basic("alice", "CANARY-ALICE");
    let got = cistern.send(alice(Ask::get(target("private")).with("range", "bytes=0-2097151"))).await;
    assert!(got.body == bytes.slice(..2 * MIB), "{}", got.summary());
    let _warp = clock::warp();
    cistern.settle().await;
    assert_eq!(files(&cistern.root().join("fills")).len(), 2, "what came of it is put aside");
    upstream.down();
    for from in [0, 1_000_000, 3_000_000] {
        let got = cistern.send(Ask::get(target("public")).with("range", &format!("bytes={from}-"))).await;
        let own = got.body.chunks_exact(64).zip(bytes[from..].chunks_exact(64)).any(|(seen, own)| seen == own);
        assert!(!own, "bytes of the private blob from {from} on: {}", got.summary());
    }
    assert!(!is_stored(&cistern, &digest));
    // It is still there for who may have it.
    upstream.up();
    let sent = upstream.sent("GET", &target("private"));
    eventually("upstream is found again", || async {
        cistern.send(alice(Ask::get(target("private")))).await.body == bytes
    })
    .await;
    assert!(upstream.sent("GET", &target("private")) - sent <= 2 * MIB as u64 + 10_000, "only the rest came");
}
