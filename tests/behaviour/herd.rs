//! Herds: however many clients ask for one thing, upstream is asked once, and no client suffers from another.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::common::content::{blob, image};
use crate::common::invariants::{check, is_stored};
use crate::common::upstream::{Auth, Cut};
use crate::common::{Ask, Cistern, Client, Direct, Gate, Got, Live, Upstream, acts, clock};
use ocistern::store::TagRecord;
use ocistern::upstream::Right;
use tokio::task::JoinSet;

const HERD: usize = 64;
/// Length of a blob whose last bytes matter.
const LENGTH: u64 = 200_000;

/// Sends the same GET from that many clients at once, every other one over HTTP/2; waits for all heads.
async fn open_all(client: Client, target: &str, count: usize) -> Vec<Live> {
    let mut asks = JoinSet::new();
    for number in 0..count {
        let ask = if number % 2 == 0 { Ask::get(target) } else { Ask::get(target).http2() };
        asks.spawn(async move { client.open(ask).await.unwrap() });
    }
    asks.join_all().await
}

async fn finish_all(open: Vec<Live>) -> Vec<Got> {
    let mut all = JoinSet::new();
    for live in open {
        all.spawn(live.finish());
    }
    all.join_all().await
}

#[tokio::test(flavor = "multi_thread")]
async fn sixty_four_clients_on_one_cold_blob_download_it_once() {
    let upstream = Upstream::start().await;
    let bytes = blob(1, 1_500_000);
    let target = format!("/v2/app/blobs/{}", upstream.blob("app", &bytes));
    let gate = Gate::new();
    upstream.script("GET", &target, .., acts::hold_at(700_000, &gate));
    let cistern = Cistern::start(&upstream, "").await;
    let herd = open_all(cistern.client(), &target, HERD).await;
    gate.reached(1).await;
    // Every head is there although upstream stands still in the middle of the body.
    gate.open();
    let statuses = |got: &[Got], status: &str| got.iter().filter(|g| g.header("cache-status") == status).count();
    let got = finish_all(herd).await;
    for got in &got {
        got.assert_is(&bytes);
    }
    assert_eq!(upstream.count("GET", "*/blobs/*"), 1);
    assert_eq!(upstream.sent("GET", "*/blobs/*"), bytes.len() as u64, "upstream bytes are 1.00 of the blob");
    assert_eq!(statuses(&got, "ocistern; fwd=miss; stored"), 1, "one client started it");
    assert_eq!(statuses(&got, "ocistern; fwd=miss; collapsed"), HERD - 1, "the others joined");
    let collapsed = cistern.metric("ocistern_requests_total", &["result=\"collapsed\""]).await;
    assert_eq!(collapsed, HERD as u64 - 1);
    check(&cistern).await;
    cistern.get(&target).await.assert_is(&bytes);
    assert_eq!(upstream.count("GET", "*/blobs/*"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_flow_to_everybody_before_the_download_ends() {
    let upstream = Upstream::start().await;
    let bytes = blob(2, 2_000_000);
    let target = format!("/v2/app/blobs/{}", upstream.blob("app", &bytes));
    let gate = Gate::new();
    upstream.script("GET", &target, .., acts::hold_at(1_900_000, &gate));
    let cistern = Cistern::start(&upstream, "").await;
    let mut herd = open_all(cistern.client(), &target, 8).await;
    for live in &mut herd {
        assert!(live.read_to(500_000).await >= 500_000, "bytes flow while upstream stands still");
        assert_eq!(live.so_far(), &bytes[..live.so_far().len()]);
    }
    gate.open();
    for got in finish_all(herd).await {
        got.assert_is(&bytes);
    }
    check(&cistern).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_client_may_leave() {
    let upstream = Upstream::start().await;
    let bytes = blob(3, 1_000_000);
    let target = format!("/v2/app/blobs/{}", upstream.blob("app", &bytes));
    let gate = Gate::new();
    upstream.script("GET", &target, .., acts::hold_at(300_000, &gate));
    let cistern = Cistern::start(&upstream, "").await;
    let mut first = cistern.open(&target).await;
    first.read_to(1).await;
    let herd = open_all(cistern.client(), &target, 6).await;
    drop(first);
    gate.open();
    for got in finish_all(herd).await {
        got.assert_is(&bytes);
    }
    assert_eq!(upstream.count("GET", "*/blobs/*"), 1);
    check(&cistern).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_leave_or_stand_still_delay_nobody() {
    let upstream = Upstream::start().await;
    let bytes = blob(4, 8_000_000);
    let target = format!("/v2/app/blobs/{}", upstream.blob("app", &bytes));
    let cistern = Cistern::start(&upstream, "").await;
    // These read nothing: what the sockets' buffers do not take must not hold up the fill.
    let mut still = open_all(cistern.client(), &target, 4).await;
    for _ in 0..8 {
        let mut leaving = cistern.open(&target).await;
        leaving.read_to(10_000).await;
    }
    cistern.get(&target).await.assert_is(&bytes);
    still.pop();
    for got in finish_all(still).await {
        got.assert_is(&bytes);
    }
    assert_eq!(upstream.count("GET", "*/blobs/*"), 1);
    check(&cistern).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_abandoned_small_download_is_finished_and_kept() {
    let upstream = Upstream::start().await;
    let bytes = blob(5, 400_000);
    let digest = upstream.blob("app", &bytes);
    let target = format!("/v2/app/blobs/{digest}");
    let gate = Gate::new();
    upstream.script("GET", &target, .., acts::hold_at(200_000, &gate));
    let cistern = Cistern::start(&upstream, "").await;
    let mut only = cistern.open(&target).await;
    only.read_to(1).await;
    drop(only);
    gate.open();
    cistern.settle().await;
    assert!(is_stored(&cistern, &digest), "the download is owned by no client");
    upstream.down();
    cistern.get(&target).await.assert_is(&bytes);
    check(&cistern).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mismatch_breaks_every_transfer_and_keeps_nothing() {
    let upstream = Upstream::start().await;
    let cistern = Cistern::start(&upstream, "").await;
    let cases = [
        // Every reader stands at the mark when the last byte comes.
        (1, LENGTH - 1, acts::honest()),
        // Every byte is there, and only the end of the body is missing: without a length, nobody knows that.
        (2, LENGTH, acts::chunked()),
    ];
    for (seed, hold, framing) in cases {
        let bytes = blob(600 + seed, 200_000);
        let digest = upstream.blob("app", &bytes);
        let target = format!("/v2/app/blobs/{digest}");
        let gate = Gate::new();
        upstream.script(
            "GET",
            &target,
            ..,
            acts::both(framing, acts::both(acts::corrupt(), acts::hold_at(hold, &gate))),
        );
        let mut herd = open_all(cistern.client(), &target, 16).await;
        gate.reached(1).await;
        for live in &mut herd {
            live.read_to(150_000).await;
        }
        gate.open();
        for got in finish_all(herd).await {
            assert!(got.cut.is_some(), "a wrong body ended cleanly: {}", got.summary());
            assert!(got.length < LENGTH - 1, "the tail was not held back: {}", got.summary());
        }
        cistern.settle().await;
        assert!(!is_stored(&cistern, &digest));
        upstream.unscript();
        crate::common::eventually("the next healthy request succeeds", || async {
            cistern.get(&target).await.complete()
        })
        .await;
    }
    check(&cistern).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_download_goes_on_where_it_stopped() {
    for cut in [Cut::Fin, Cut::Reset] {
        let upstream = Upstream::start().await;
        let bytes = blob(7, 1_000_000);
        let target = format!("/v2/app/blobs/{}", upstream.blob("app", &bytes));
        let gate = Gate::new();
        upstream.script("GET", &target, 0..1, acts::both(acts::hold_at(600_000, &gate), acts::cut_at(600_000, cut)));
        let cistern = Cistern::start(&upstream, "").await;
        let herd = open_all(cistern.client(), &target, 12).await;
        gate.reached(1).await;
        gate.open();
        for got in finish_all(herd).await {
            got.assert_is(&bytes);
        }
        let asked = upstream.requests("GET", &target);
        assert_eq!(asked.len(), 2, "{cut:?}: one continuation");
        let range = asked[1].request.header("range").unwrap_or_default();
        let from: u64 = range.strip_prefix("bytes=").and_then(|r| r.strip_suffix('-')).unwrap().parse().unwrap();
        assert!(from > 0 && from <= 600_000, "{range}");
        assert!(upstream.sent("GET", &target) <= 1_000_000 + 600_000 - from);
        assert!(cistern.metric("ocistern_fill_resumes_total", &["upstream=\"up\""]).await >= 1);
        check(&cistern).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_download_survives_an_upstream_that_ignores_ranges() {
    let upstream = Upstream::start().await;
    let bytes = blob(8, 500_000);
    let target = format!("/v2/app/blobs/{}", upstream.blob("app", &bytes));
    let whole = bytes.clone();
    upstream.script("GET", &target, 0..1, acts::cut_at(200_000, Cut::Reset));
    upstream.script("GET", &target, .., acts::answer(200, "application/octet-stream", whole));
    let cistern = Cistern::start(&upstream, "").await;
    let herd = open_all(cistern.client(), &target, 4).await;
    for got in finish_all(herd).await {
        got.assert_is(&bytes);
    }
    check(&cistern).await;
}

#[tokio::test]
async fn a_thousand_clients_that_ask_for_one_expired_tag_make_one_head() {
    let upstream = Upstream::start().await;
    let image = image(9);
    upstream.image("app", "latest", &image);
    let direct = Arc::new(Direct::start(&upstream, "tags = \"10s\"").await);
    direct.get(&Right::Anonymous, "app", &image.digest.to_string()).await.found(&image.digest);
    // Upstream was asked about it longer ago than that.
    let (media_type, size) = (image.media_type.to_owned(), image.manifest.len() as u64);
    let record = TagRecord { digest: image.digest, media_type, size, etag: None };
    let (up, repo, tag) = ("up".parse().unwrap(), "app".parse().unwrap(), "latest".parse().unwrap());
    let ago = clock::wall() - Duration::from_secs(11);
    assert!(direct.store.set_tag(&up, &repo, &tag, &record, ago).await.unwrap());
    upstream.forget();
    let gate = Gate::new();
    upstream.script("HEAD", "/v2/app/manifests/latest", .., acts::hold_head(&gate));
    // None of them loses patience.
    let _frozen = clock::freeze();
    let mut herd = JoinSet::new();
    let started = Arc::new(AtomicUsize::new(0));
    for _ in 0..1000 {
        let (started, direct) = (Arc::clone(&started), Arc::clone(&direct));
        herd.spawn(async move {
            started.fetch_add(1, Ordering::Relaxed);
            direct.get(&Right::Anonymous, "app", "latest").await
        });
    }
    gate.reached(1).await;
    while started.load(Ordering::Relaxed) < 1000 {
        tokio::task::yield_now().await;
    }
    gate.open();
    for came in herd.join_all().await {
        came.assert_hit(&image.digest);
    }
    // Those that come in after the answer find the tag fresh.
    assert_eq!((upstream.count("HEAD", "*"), upstream.count("GET", "*")), (1, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_herd_on_a_cold_manifest_makes_one_get() {
    let upstream = Upstream::start().await;
    let image = image(10);
    upstream.image("app", "1.0", &image);
    upstream.registry(|registry| registry.auth = Auth::Bearer(None));
    let cistern = Cistern::start(&upstream, "").await;
    for target in ["/v2/app/manifests/1.0".to_owned(), format!("/v2/app/manifests/{}", image.digest)] {
        let herd = open_all(cistern.client(), &target, HERD).await;
        for got in finish_all(herd).await {
            got.assert_is(&image.manifest);
        }
    }
    let with_token = upstream.requests("GET", "*/manifests/*").iter().filter(|entry| entry.status == 200).count();
    assert_eq!(with_token, 1, "one download");
    assert_eq!(upstream.count("GET", "/token"), 1, "one token");
    check(&cistern).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_herd_on_many_cold_blobs_fetches_one_token() {
    let upstream = Upstream::start().await;
    upstream.registry(|registry| registry.auth = Auth::Bearer(None));
    let blobs: Vec<_> = (0..24).map(|seed| blob(100 + seed, 5_000)).collect();
    let targets: Vec<_> = blobs.iter().map(|bytes| format!("/v2/app/blobs/{}", upstream.blob("app", bytes))).collect();
    let cistern = Cistern::start(&upstream, "").await;
    let client = cistern.client();
    let mut herd = JoinSet::new();
    for (bytes, target) in blobs.into_iter().zip(targets) {
        herd.spawn(async move { client.get(target).await.assert_is(&bytes) });
    }
    herd.join_all().await;
    assert_eq!(upstream.count("GET", "/token"), 1);
    check(&cistern).await;
}

#[tokio::test]
async fn a_herd_on_something_missing_is_answered_by_one_404() {
    let upstream = Upstream::start().await;
    upstream.image("app", "latest", &image(11));
    let cistern = Cistern::start(&upstream, "").await;
    let missing = crate::common::content::sha256(b"missing");
    for target in ["blobs/DIGEST", "manifests/DIGEST", "manifests/missing"] {
        let target = format!("/v2/app/{}", target.replace("DIGEST", &missing.to_string()));
        let gate = Gate::new();
        upstream.script("*", &target, .., acts::hold_head(&gate));
        // What is remembered for a second is remembered for all of this.
        let frozen = clock::freeze();
        let client = cistern.client();
        let started = Arc::new(AtomicUsize::new(0));
        let mut herd = JoinSet::new();
        for number in 0..HERD {
            let (started, target) = (Arc::clone(&started), target.clone());
            let ask = if number % 2 == 0 { Ask::get(target) } else { Ask::get(target).http2() };
            herd.spawn(async move {
                started.fetch_add(1, Ordering::Relaxed);
                client.send(ask).await
            });
        }
        gate.reached(1).await;
        while started.load(Ordering::Relaxed) < HERD {
            tokio::task::yield_now().await;
        }
        gate.open();
        for got in herd.join_all().await {
            got.assert_fails(404);
        }
        cistern.get(&target).await.assert_fails(404);
        assert_eq!(upstream.count("*", &target), 1, "{target}: shared by those who wait, and remembered");
        drop(frozen);
        clock::pass(Duration::from_secs(1)).await;
        cistern.get(&target).await.assert_fails(404);
        assert_eq!(upstream.count("*", &target), 2, "{target}: for a second");
    }
}
