//! Room: what happens when the store has none, before a download and in the middle of one, and what counts as taken.

use crate::common::content::{blob, image};
use crate::common::invariants::{check, is_stored};
use crate::common::upstream::Cut;
use crate::common::{Ask, Cistern, Gate, Live, Upstream, acts, eventually};
use bytes::Bytes;
use tokio::task::JoinSet;

const MIB: usize = 1 << 20;

/// An ocistern with room for so much, and its upstream.
async fn small(capacity: &str) -> (Cistern, Upstream) {
    let upstream = Upstream::start().await;
    let store = format!("capacity = {capacity:?}");
    let cistern = Cistern::setup().upstream("up", &upstream, "").store(&store).start().await;
    (cistern, upstream)
}

/// Opens the same GET from so many clients, every other one over HTTP/2.
async fn open_all(cistern: &Cistern, target: &str, count: usize) -> Vec<Live> {
    let mut open = Vec::new();
    for number in 0..count {
        let ask = if number % 2 == 0 { Ask::get(target) } else { Ask::get(target).http2() };
        open.push(cistern.client().open(ask).await.unwrap());
    }
    open
}

async fn all_are(open: Vec<Live>, bytes: &Bytes) {
    let mut all = JoinSet::new();
    for live in open {
        all.spawn(live.finish());
    }
    for got in all.join_all().await {
        got.assert_is(bytes);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_larger_than_the_store_is_streamed_and_a_broken_stream_goes_on() {
    let (cistern, upstream) = small("1MiB").await;
    let bytes = blob(1, 3 * MIB);
    let target = format!("/v2/app/blobs/{}", upstream.blob("app", &bytes));
    let got = cistern.get(&target).await;
    got.assert_is(&bytes);
    assert_eq!(got.header("cache-status"), "ocistern; fwd=bypass");
    // The first GET is the fill's, which finds no room; the second one streams.
    upstream.forget();
    upstream.script("GET", &target, 1..2, acts::cut_at(2 * MIB as u64, Cut::Reset));
    cistern.get(&target).await.assert_is(&bytes);
    upstream.unscript();
    upstream.script("GET", &target, 1.., acts::corrupt());
    let wrong = cistern.get(&target).await;
    assert!(!wrong.complete() && wrong.length < bytes.len() as u64, "{}", wrong.summary());
    check(&cistern).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_reads_slowly_what_is_not_kept_holds_no_place_also_after_a_break() {
    let upstream = Upstream::start().await;
    let cistern =
        Cistern::setup().upstream("up", &upstream, "max_connections = 1").store("capacity = \"1MiB\"").start().await;
    // More than sockets hold.
    let bytes = blob(11, 48 * MIB);
    let target = format!("/v2/app/blobs/{}", upstream.blob("app", &bytes));
    let small = blob(12, 1000);
    let other = format!("/v2/app/blobs/{}", upstream.blob("app", &small));
    upstream.script("GET", &target, 1..2, acts::cut_at(MIB as u64, Cut::Reset));
    let mut slow = cistern.open(&target).await;
    slow.read_to(2 * MIB as u64).await;
    cistern.get(&other).await.assert_is(&small);
    slow.finish().await.assert_is(&bytes);
    check(&cistern).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_fills_up_in_the_middle_of_a_download_breaks_no_transfer() {
    for ranges in [true, false] {
        let (cistern, upstream) = small("10MiB").await;
        let bytes = blob(2, 14 * MIB);
        let digest = upstream.blob("app", &bytes);
        let target = format!("/v2/app/blobs/{digest}");
        let gate = Gate::new();
        // Without a length nothing can be promised in advance, so the store fills up under the download.
        upstream.script("GET", &target, 0..1, acts::both(acts::chunked(), acts::hold_at(9 * MIB as u64, &gate)));
        if !ranges {
            upstream.script("GET", &target, .., acts::answer(200, "application/octet-stream", bytes.clone()));
        }
        let mut herd = open_all(&cistern, &target, 8).await;
        for live in &mut herd {
            assert!(live.read_to(4 * MIB as u64).await >= 4 * MIB as u64);
        }
        gate.open();
        all_are(herd, &bytes).await;
        check(&cistern).await;
        assert!(!is_stored(&cistern, &digest), "there was no room for it");
        eventually("what was taken is given back", || async { cistern.metric("ocistern_store_bytes", &[]).await == 0 })
            .await;
        cistern.get(&target).await.assert_is(&bytes);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_streamed_on_in_the_middle_of_a_download_is_verified_too() {
    let (cistern, upstream) = small("10MiB").await;
    let bytes = blob(3, 14 * MIB);
    let target = format!("/v2/app/blobs/{}", upstream.blob("app", &bytes));
    let gate = Gate::new();
    upstream.script("GET", &target, 0..1, acts::both(acts::chunked(), acts::hold_at(9 * MIB as u64, &gate)));
    upstream.script("GET", &target, .., acts::corrupt());
    let herd = open_all(&cistern, &target, 4).await;
    gate.open();
    for live in herd {
        let got = live.finish().await;
        assert!(!got.complete() && got.length < bytes.len() as u64, "a wrong end: {}", got.summary());
        assert!(got.length > 9 * MIB as u64, "what was right came through: {}", got.length);
    }
    check(&cistern).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_a_reader_holds_is_not_counted_as_room() {
    let (cistern, upstream) = small("40MiB").await;
    let (held, other) = (blob(4, 32 * MIB), blob(5, 12 * MIB));
    let held_target = format!("/v2/app/blobs/{}", upstream.blob("app", &held));
    let target = format!("/v2/app/blobs/{}", upstream.blob("app", &other));
    // It reads no further than its socket's buffers do.
    let reader = cistern.open(&held_target).await;
    cistern.settle().await;
    let got = cistern.get(&target).await;
    got.assert_is(&other);
    assert_eq!(got.header("cache-status"), "ocistern; fwd=bypass", "removing an open file frees nothing");
    reader.finish().await.assert_is(&held);
    eventually("the room can be had when the file is closed", || async {
        cistern.get(&target).await.header("cache-status") == "ocistern; fwd=miss; stored"
    })
    .await;
    check(&cistern).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_misses_at_once_into_a_full_store_are_all_kept() {
    let (cistern, upstream) = small("8MiB").await;
    for round in 0..3_u64 {
        let mut pulls = JoinSet::new();
        for n in 0..40 {
            let bytes = blob(100 + round * 100 + n, 100_000);
            let target = format!("/v2/app/blobs/{}", upstream.blob("app", &bytes));
            let client = cistern.client();
            pulls.spawn(async move { (client.get(&target).await, bytes) });
        }
        for (got, bytes) in pulls.join_all().await {
            got.assert_is(&bytes);
            assert_eq!(got.header("cache-status"), "ocistern; fwd=miss; stored", "round {round}");
        }
    }
    // Twelve megabytes came, and eight may stay.
    assert!(cistern.metric("ocistern_evicted_bytes_total", &[]).await >= 3_000_000);
    assert!(cistern.metric("ocistern_store_bytes", &[]).await <= 8 << 20);
    check(&cistern).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_does_not_go_back_to_what_it_was_before_what_could_not_be_kept() {
    let upstream = Upstream::start().await;
    let setup = Cistern::setup().upstream("up", &upstream, "tags = \"always\"");
    let cistern = setup.store("capacity = \"64KiB\"").start().await;
    let image = image(1);
    upstream.image("app", "1", &image);
    upstream.image("app", "2", &image);
    let target = "/v2/app/manifests/1";
    cistern.get(target).await.assert_is(&image.manifest);
    cistern.get("/v2/app/manifests/2").await.assert_is(&image.manifest);
    cistern.settle().await;
    // Another one, for which the store has no room.
    let mut text = image.manifest.to_vec();
    text.resize(100 << 10, b' ');
    let large = Bytes::from(text);
    upstream.tag("app", "1", upstream.manifest("app", image.media_type, &large));
    let got = cistern.get(target).await;
    got.assert_is(&large);
    assert_eq!(got.header("cache-status"), "ocistern; fwd=bypass");
    cistern.settle().await;
    upstream.down();
    let got = cistern.get(target).await;
    assert!(got.status >= 500, "what it was before is not served: {}", got.summary());
    cistern.get("/v2/app/manifests/2").await.assert_is(&image.manifest);
    check(&cistern).await;
}
