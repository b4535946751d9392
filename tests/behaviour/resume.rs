//! Resume: a download that breaks, stalls or crawls is gone on with from where it stopped; clients see a pause.

use std::sync::Arc;
use std::time::Duration;

use crate::common::content::blob;
use crate::common::invariants::{check, is_stored};
use crate::common::upstream::{Act, Auth, Cut, Reply, Request, registry};
use crate::common::{Ask, Cistern, Client, Gate, Upstream, acts, clock, eventually};
use bytes::Bytes;
use ocistern::oci::Digest;

/// An upstream with one blob of so many bytes, and the blob's path.
async fn stage(seed: u64, length: usize) -> (Upstream, Bytes, Digest, String) {
    let upstream = Upstream::start().await;
    let bytes = blob(seed, length);
    let digest = upstream.blob("app", &bytes);
    (upstream, bytes, digest, format!("/v2/app/blobs/{digest}"))
}

#[tokio::test]
async fn a_link_that_is_cut_over_and_over_costs_hardly_a_byte_twice() {
    let (upstream, bytes, digest, target) = stage(1, 2_000_000).await;
    upstream.script("GET", &target, .., acts::cut_at(100_000, Cut::Reset));
    let cistern = Cistern::start(&upstream, "").await;
    let _warp = clock::warp();
    cistern.get(&target).await.assert_is(&bytes);
    cistern.settle().await;
    assert!(is_stored(&cistern, &digest));
    let sent = upstream.sent("GET", &target);
    assert!(sent <= 2_020_000, "{sent} bytes for a blob of {}", bytes.len());
    assert!(cistern.metric("ocistern_fill_resumes_total", &["upstream=\"up\""]).await >= 19);
    check(&cistern).await;
}

#[tokio::test]
async fn an_upstream_that_is_away_for_ten_minutes_is_a_pause() {
    let (upstream, bytes, _, target) = stage(2, 600_000).await;
    let gate = Gate::new();
    upstream.script("GET", &target, 0..1, acts::hold_at(300_000, &gate));
    let cistern = Cistern::start(&upstream, "").await;
    let mut reader = cistern.open(&target).await;
    gate.reached(1).await;
    reader.read_to(200_000).await;
    upstream.down();
    for _ in 0..30 {
        clock::pass(Duration::from_secs(20)).await;
        // What is due is tried, and fails.
        eventually("it is tried", || async { true }).await;
    }
    upstream.up();
    let _warp = clock::warp();
    reader.finish().await.assert_is(&bytes);
    let sent = upstream.sent("GET", &target);
    assert!(sent <= bytes.len() as u64 + 10_000, "{sent} bytes");
    check(&cistern).await;
}

#[tokio::test]
async fn patience_has_an_end() {
    let (upstream, _, digest, target) = stage(3, 600_000).await;
    let gate = Gate::new();
    upstream.script("GET", &target, 0..1, acts::hold_at(300_000, &gate));
    let cistern = Cistern::start(&upstream, "resume_for = \"1m\"").await;
    let reader = cistern.open(&target).await;
    gate.reached(1).await;
    upstream.down();
    let _warp = clock::warp();
    let begun = tokio::time::Instant::now();
    let got = reader.finish().await;
    assert!(got.cut.is_some(), "{}", got.summary());
    assert!(begun.elapsed() >= Duration::from_secs(55), "it was tried for a minute: {:?}", begun.elapsed());
    assert!(!is_stored(&cistern, &digest));
    check(&cistern).await;
}

#[tokio::test]
async fn a_body_that_stalls_or_crawls_is_asked_for_anew() {
    let _warp = clock::warp();
    let silent = Gate::new();
    let crawls = acts::drip(100, Duration::from_secs(2));
    for (keys, act) in [("stall = \"2s\"", acts::hold_at(100_000, &silent)), ("min_rate = \"10KiB\"", crawls)] {
        let (upstream, bytes, _, target) = stage(4, 600_000).await;
        upstream.script("GET", &target, 0..1, act);
        let cistern = Cistern::start(&upstream, keys).await;
        cistern.get(&target).await.assert_is(&bytes);
        assert!(upstream.count("GET", &target) >= 2, "{keys}");
        check(&cistern).await;
    }
}

#[tokio::test]
async fn what_upstream_changes_in_the_middle_changes_nothing_for_clients() {
    let (upstream, bytes, _, target) = stage(5, 600_000).await;
    let cistern = Cistern::start(&upstream, "").await;
    let _warp = clock::warp();
    // Another entity tag when it goes on: the digest is what counts, and the part is asked for without the tag.
    upstream.script("GET", &target, 0..1, acts::both(acts::header("ETag", "\"old\""), acts::cut_at(300_000, Cut::Fin)));
    cistern.get(&target).await.assert_is(&bytes);
    let last = upstream.requests("GET", &target).pop().unwrap();
    assert_eq!((last.status, last.request.header("if-range")), (206, None));
    check(&cistern).await;
    // Ranges are ignored.
    let (upstream, bytes, _, target) = stage(6, 600_000).await;
    upstream.script("GET", &target, 0..1, acts::cut_at(300_000, Cut::Fin));
    upstream.script("GET", &target, .., acts::answer(200, "application/octet-stream", bytes.clone()));
    let cistern = Cistern::start(&upstream, "").await;
    cistern.get(&target).await.assert_is(&bytes);
    assert_eq!(upstream.count("GET", &target), 2);
    check(&cistern).await;
}

#[tokio::test]
async fn a_range_that_was_not_asked_for_is_not_believed() {
    let _warp = clock::warp();
    for wrong in [
        "bytes 0-599999/600000",
        "bytes 300001-599999/600000",
        "bytes 300000-599999/700000",
        "bytes 300000-599999/*",
        "bytes x",
    ] {
        let (upstream, bytes, digest, target) = stage(7, 600_000).await;
        let get = |from| acts::where_status(206, acts::header("Content-Range", from));
        upstream.script("GET", &target, 0..1, acts::cut_at(300_000, Cut::Fin));
        upstream.script("GET", &target, 0..2, get(wrong));
        let cistern = Cistern::start(&upstream, "").await;
        let got = cistern.get(&target).await;
        got.assert_is(&bytes);
        cistern.settle().await;
        assert!(is_stored(&cistern, &digest), "{wrong}");
        check(&cistern).await;
    }
}

#[tokio::test]
async fn nonsense_instead_of_ranges_ends_in_the_whole() {
    let (upstream, bytes, _, target) = stage(8, 600_000).await;
    upstream.script("GET", &target, 0..1, acts::cut_at(300_000, Cut::Fin));
    let nonsense = acts::where_status(206, acts::header("Content-Range", "bytes 5-6/7"));
    upstream.script("GET", &target, .., nonsense);
    let cistern = Cistern::start(&upstream, "").await;
    let _warp = clock::warp();
    cistern.get(&target).await.assert_is(&bytes);
    check(&cistern).await;
}

#[tokio::test]
async fn who_reads_far_ahead_of_an_upstream_with_nonsense_for_ranges_costs_no_more() {
    let (upstream, bytes, digest, target) = stage(18, 8 << 20).await;
    let gate = Gate::new();
    upstream.script("GET", &target, 0..1, acts::hold_at(1 << 20, &gate));
    let nonsense = acts::where_status(206, acts::header("Content-Range", "bytes 5-6/*"));
    upstream.script("GET", &target, 1.., nonsense);
    let cistern = Cistern::start(&upstream, "").await;
    let mut whole = cistern.open(&target).await;
    gate.reached(1).await;
    whole.read_to(1000).await;
    let far: Vec<_> =
        (2..8).map(|n| Ask::get(&target).with("range", &format!("bytes={}-{}", n << 20, (n << 20) + 9))).collect();
    let _warp = clock::warp();
    let far = futures_util::future::join_all(far.into_iter().map(|ask| cistern.client().open(ask))).await;
    eventually("the whole is asked for", || async { upstream.count("GET", &target) > 3 }).await;
    gate.open();
    for (n, reader) in (2..8).zip(far) {
        let got = reader.unwrap().finish().await;
        assert!(got.body == bytes.slice(n << 20..(n << 20) + 10) && got.cut.is_none(), "{}", got.summary());
    }
    whole.finish().await.assert_is(&bytes);
    cistern.settle().await;
    assert!(is_stored(&cistern, &digest));
    let received = cistern.metric("ocistern_upstream_received_bytes_total", &[]).await;
    assert!(received <= 2 * bytes.len() as u64, "{received} bytes for a blob of {}", bytes.len());
    check(&cistern).await;
}

/// Refuses what is asked for with a Range, by this status.
fn refuses_ranges(status: u16) -> Act {
    Arc::new(move |request: &Request, honest: Reply| match request.header("range") {
        Some(_) => registry::error(status, "UNSUPPORTED"),
        None => honest,
    })
}

#[tokio::test]
async fn an_upstream_that_refuses_ranges_gives_the_whole_again() {
    let _warp = clock::warp();
    for status in [400, 405, 416, 500, 501] {
        let (upstream, bytes, digest, target) = stage(19, 600_000).await;
        upstream.script("GET", &target, 0..1, acts::cut_at(300_000, Cut::Reset));
        upstream.script("GET", &target, .., refuses_ranges(status));
        let cistern = Cistern::start(&upstream, "").await;
        cistern.get(&target).await.assert_is(&bytes);
        cistern.settle().await;
        assert!(is_stored(&cistern, &digest), "{status}");
        check(&cistern).await;
    }
}

#[tokio::test]
async fn failures_of_an_upstream_that_knows_ranges_cost_no_byte_twice() {
    let (upstream, bytes, _, target) = stage(23, 2_000_000).await;
    upstream.script("GET", &target, 0..1, acts::cut_at(600_000, Cut::Fin));
    upstream.script("GET", &target, 0..1, acts::cut_at(600_000, Cut::Fin));
    for status in [500, 507, 520] {
        upstream.script("GET", &target, 0..5, acts::fail(status, "UNKNOWN"));
    }
    let cistern = Cistern::start(&upstream, "").await;
    let _warp = clock::warp();
    cistern.get(&target).await.assert_is(&bytes);
    assert!(upstream.sent("GET", &target) < 2_010_000, "{} bytes", upstream.sent("GET", &target));
    check(&cistern).await;
}

#[tokio::test]
async fn a_break_before_the_mark_where_ranges_are_refused_is_one_like_any_other() {
    let (upstream, bytes, _, target) = stage(20, 600_000).await;
    let ends = parking_lot::Mutex::new(vec![500_000, 100_000, 200_000]);
    let act = move |request: &Request, honest: Reply| match request.header("range") {
        Some(_) => registry::error(400, "UNSUPPORTED"),
        None => match ends.lock().pop() {
            Some(at) => acts::cut_at(at, Cut::Reset)(request, honest),
            None => honest,
        },
    };
    upstream.script("GET", &target, .., Arc::new(act));
    let cistern = Cistern::start(&upstream, "").await;
    let _warp = clock::warp();
    cistern.get(&target).await.assert_is(&bytes);
    check(&cistern).await;
}

#[tokio::test]
async fn a_page_that_stands_there_for_a_minute_is_a_pause() {
    let (upstream, bytes, digest, target) = stage(21, 600_000).await;
    upstream.script("GET", &target, 0..1, acts::cut_at(300_000, Cut::Fin));
    let page = acts::answer(200, "text/html", "<h1>We are back soon</h1>");
    upstream.script("GET", &target, 0..5, page.clone());
    upstream.script("GET", &target, 0..5, acts::both(page, acts::chunked()));
    let cistern = Cistern::start(&upstream, "").await;
    let _warp = clock::warp();
    cistern.get(&target).await.assert_is(&bytes);
    cistern.settle().await;
    assert!(is_stored(&cistern, &digest));
    assert!(upstream.sent("GET", &target) < 610_000, "{} bytes", upstream.sent("GET", &target));
    check(&cistern).await;
}

#[tokio::test]
async fn that_nothing_was_asked_for_is_no_loss_of_patience() {
    let upstream = Upstream::start().await;
    let bytes = blob(22, 4 << 20);
    let target = format!("/v2/app/blobs/{}", upstream.blob("app", &bytes));
    let store = "range_fill = \"never\"";
    let cistern = Cistern::setup().upstream("up", &upstream, "resume_for = \"18s\"").store(store).start().await;
    let part = |from: usize, to: usize| Ask::get(&target).with("range", &format!("bytes={from}-{}", to - 1));
    assert_eq!(cistern.send(part(0, 1 << 20)).await.length, 1 << 20);
    // The fill is still there, and has asked for nothing meanwhile.
    clock::pass(Duration::from_secs(19)).await;
    assert_eq!(cistern.fills().await[0]["present"], 1 << 20);
    // Of which one question makes several, before the breaker lets none through for a while.
    upstream.script("GET", &target, 0..6, acts::no_head(Cut::Reset));
    let _warp = clock::warp();
    let got = cistern.send(part(3 << 20, (3 << 20) + 10)).await;
    assert!(got.body == bytes.slice(3 << 20..(3 << 20) + 10), "{}", got.summary());
}

#[tokio::test]
async fn another_blob_in_the_middle_is_no_blob() {
    let (upstream, bytes, digest, target) = stage(9, 600_000).await;
    let other = blob(10, 600_000);
    upstream.script("GET", &target, 0..1, acts::cut_at(300_000, Cut::Fin));
    let from = other.slice(300_000..);
    upstream.script("GET", &target, 0..1, acts::change(move |reply| Reply { body: from.clone(), ..reply }));
    let cistern = Cistern::start(&upstream, "").await;
    let _warp = clock::warp();
    let got = cistern.get(&target).await;
    assert!(got.cut.is_some() && got.length < bytes.len() as u64, "{}", got.summary());
    cistern.settle().await;
    assert!(!is_stored(&cistern, &digest));
    cistern.get(&target).await.assert_is(&bytes);
    check(&cistern).await;
}

#[tokio::test]
async fn a_token_that_expires_in_the_middle_is_got_anew() {
    let (upstream, bytes, _, target) = stage(11, 600_000).await;
    upstream.registry(|registry| registry.auth = Auth::Bearer(None));
    let gate = Gate::new();
    upstream.script(
        "GET",
        &target,
        ..,
        acts::where_status(200, acts::both(acts::hold_at(300_000, &gate), acts::cut_at(300_000, Cut::Reset))),
    );
    let cistern = Cistern::start(&upstream, "").await;
    let reader = cistern.open(&target).await;
    gate.reached(1).await;
    upstream.registry(crate::common::upstream::Registry::revoke_tokens);
    gate.open();
    let _warp = clock::warp();
    reader.finish().await.assert_is(&bytes);
    assert!(upstream.sent("GET", &target) <= 610_000);
    check(&cistern).await;
}

#[tokio::test]
async fn a_signed_url_that_expires_in_the_middle_is_got_anew() {
    let (upstream, bytes, _, target) = stage(12, 600_000).await;
    let storage = Upstream::start().await;
    let file = storage.file(&bytes);
    upstream.script("GET", &target, .., acts::redirect(307, file));
    storage.script("GET", "/data/*", 0..1, acts::cut_at(300_000, Cut::Fin));
    storage.script(
        "GET",
        "/data/*",
        0..2,
        acts::answer(403, "text/xml", "<Error>Signature not valid in the specified time frame</Error>"),
    );
    let cistern = Cistern::start(&upstream, "").await;
    let _warp = clock::warp();
    cistern.get(&target).await.assert_is(&bytes);
    assert!(upstream.count("GET", &target) >= 3, "the registry is asked for another URL");
    assert!(storage.sent("GET", "*") <= 610_000);
    check(&cistern).await;
}

#[tokio::test]
async fn clients_that_come_stall_and_leave_while_it_breaks_all_get_what_is_right() {
    let (upstream, bytes, _, target) = stage(13, 1_500_000).await;
    upstream.script("GET", &target, .., acts::cut_at(70_000, Cut::Reset));
    let cistern = Cistern::start(&upstream, "").await;
    let _warp = clock::warp();
    let client = cistern.client();
    let mut all = tokio::task::JoinSet::new();
    let mut random = fastrand::Rng::with_seed(13);
    for _ in 0..24 {
        let (target, wait, leaves) = (target.clone(), random.u64(0..4000), random.bool());
        let at = random.u64(1..1_400_000);
        all.spawn(visit(client, target, Duration::from_millis(wait), leaves.then_some(at)));
    }
    for got in all.join_all().await.into_iter().flatten() {
        got.assert_is(&bytes);
    }
    let sent = upstream.sent("GET", &target);
    assert!(sent <= 1_600_000, "{sent}");
    check(&cistern).await;
}

/// Comes after a while, and leaves after so many bytes, or stays.
async fn visit(client: Client, target: String, wait: Duration, leaves: Option<u64>) -> Option<crate::common::Got> {
    tokio::time::sleep(wait).await;
    let mut live = client.open(Ask::get(target)).await.unwrap();
    match leaves {
        Some(at) => {
            live.read_to(at).await;
            None
        }
        None => Some(live.finish().await),
    }
}

#[tokio::test]
async fn an_upstream_that_breaks_every_body_off_is_not_asked_without_a_pause() {
    let (upstream, mirror) = (Upstream::start().await, Upstream::start().await);
    let bytes = blob(14, 600_000);
    let target = format!("/v2/app/blobs/{}", upstream.blob("app", &bytes));
    mirror.blob("app", &bytes);
    for one in [&upstream, &mirror] {
        one.script("GET", &target, .., acts::cut_at(0, Cut::Fin));
    }
    let keys = format!("mirrors = [{:?}]\nresume_for = \"1m\"", mirror.url());
    let cistern = Cistern::start(&upstream, &keys).await;
    let _warp = clock::warp();
    let got = cistern.get(&target).await;
    assert!(!got.complete());
    let asked = upstream.count("GET", &target) + mirror.count("GET", &target);
    assert!(asked < 60, "{asked} requests within a minute");
}
