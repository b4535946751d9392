//! What a download that did not end has left: it is gone on with, after a stop, a kill, a loss of upstream, or when nobody
//! read it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::common::content::blob;
use crate::common::invariants::{check, files, is_stored};
use crate::common::upstream::{Cut, Reply, Request, registry};
use crate::common::{Ask, Cistern, Gate, Upstream, acts, clock, eventually};
use bytes::Bytes;
use ocistern::oci::Digest;
use tokio::runtime::Runtime;

const MIB: u64 = 1 << 20;
const LENGTH: u64 = 8 * MIB;

struct Stage {
    upstream: Upstream,
    bytes: Bytes,
    digest: Digest,
    target: String,
    gate: Gate,
}

/// A blob whose first GET stands still after 5 MiB.
async fn stage(seed: u64) -> Stage {
    let upstream = Upstream::start().await;
    let bytes = blob(seed, usize::try_from(LENGTH).unwrap());
    let digest = upstream.blob("app", &bytes);
    let (target, gate) = (format!("/v2/app/blobs/{digest}"), Gate::new());
    upstream.script("GET", &target, 0..1, acts::hold_at(5 * MIB, &gate));
    Stage { upstream, bytes, digest, target, gate }
}

/// Files in `fills/` that end so.
fn left(cistern: &Cistern, end: &str) -> Vec<PathBuf> {
    let all = files(&cistern.root().join("fills")).into_iter();
    all.filter(|path| path.extension().is_some_and(|extension| extension == end)).collect()
}

/// Waits until at least so much of what has come is put down on the disk.
async fn put_down(cistern: &Cistern, bytes: u64) {
    eventually("what has come is put down", || async {
        let text = left(cistern, "map").first().and_then(|map| std::fs::read_to_string(map).ok()).unwrap_or_default();
        let record: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
        record["data"]["present"][0][1].as_u64().is_some_and(|end| end >= bytes)
    })
    .await;
}

/// Stops it when most of what comes before the gate has been read.
async fn stop_in_the_middle(cistern: &mut Cistern, target: &str, gate: &Gate) {
    let mut reader = cistern.open(target).await;
    gate.reached(1).await;
    reader.read_to(4 * MIB).await;
    // What upstream has sent may still be on its way.
    eventually("all that was sent has come", || async {
        cistern.metric("ocistern_upstream_received_bytes_total", &[]).await >= 5 * MIB
    })
    .await;
    let stopped = cistern.stop();
    drop(reader);
    stopped.await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_in_the_middle_costs_no_byte() {
    let Stage { upstream, bytes, digest, target, gate } = stage(1).await;
    let mut cistern = Cistern::start(&upstream, "").await;
    stop_in_the_middle(&mut cistern, &target, &gate).await;
    assert_eq!((left(&cistern, "map").len(), left(&cistern, "part").len()), (1, 1));
    cistern.start_again().await;
    assert!(cistern.metric("ocistern_store_bytes", &[]).await >= 4 * MIB, "what is left counts");
    cistern.get(&target).await.assert_is(&bytes);
    cistern.settle().await;
    assert!(is_stored(&cistern, &digest));
    let asked = upstream.requests("GET", &target);
    let range = asked[1].request.header("range").unwrap_or_default().to_owned();
    assert!(range.starts_with("bytes=5242880-") || range.starts_with("bytes=52"), "{range}");
    assert!(upstream.sent("GET", &target) <= LENGTH + 100_000, "{} bytes", upstream.sent("GET", &target));
    check(&cistern).await;
}

#[test]
fn a_kill_in_the_middle_costs_what_was_not_put_down() {
    let world = Runtime::new().unwrap();
    let victim = Runtime::new().unwrap();
    let Stage { upstream, bytes, target, gate, .. } = world.block_on(stage(2));
    let mut cistern = victim.block_on(Cistern::start(&upstream, ""));
    world.block_on(async {
        let mut reader = cistern.open(&target).await;
        gate.reached(1).await;
        reader.read_to(4 * MIB).await;
        // The last MiB waits for more.
        put_down(&cistern, 4 * MIB).await;
    });
    // Every task of it is dropped where it stands: nothing is flushed, nothing closed in order.
    drop(victim);
    cistern.abandon();
    world.block_on(async {
        cistern.start_again().await;
        cistern.get(&target).await.assert_is(&bytes);
        let sent = upstream.sent("GET", &target);
        assert!(sent <= LENGTH + MIB + 100_000, "{sent} bytes for a blob of {LENGTH}");
        check(&cistern).await;
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn what_upstream_gave_before_it_was_lost_is_gone_on_with() {
    let Stage { upstream, bytes, target, gate, .. } = stage(3).await;
    let cistern = Cistern::start(&upstream, "resume_for = \"0s\"").await;
    let reader = cistern.open(&target).await;
    gate.reached(1).await;
    upstream.down();
    let broken = reader.finish().await;
    assert!(broken.cut.is_some(), "{}", broken.summary());
    cistern.settle().await;
    upstream.up();
    eventually("upstream is found again", || async { cistern.get(&target).await.complete() }).await;
    cistern.get(&target).await.assert_is(&bytes);
    let sent = upstream.sent("GET", &target);
    assert!(sent <= LENGTH + MIB, "{sent} bytes for a blob of {LENGTH}");
    check(&cistern).await;
}

#[tokio::test]
async fn what_nobody_reads_is_put_aside_where_that_is_wanted() {
    let Stage { upstream, bytes, digest, target, gate } = stage(4).await;
    let cistern = Cistern::setup().upstream("up", &upstream, "").store("abandon = \"park\"").start().await;
    let mut reader = cistern.open(&target).await;
    gate.reached(1).await;
    reader.read_to(4 * MIB).await;
    assert_eq!(cistern.fills().await[0]["readers"], 1);
    drop(reader);
    eventually("nobody reads", || async { cistern.fills().await[0]["readers"] == 0 }).await;
    for _ in 0..3 {
        clock::pass(Duration::from_secs(15)).await;
        eventually("the fill looks", || async { true }).await;
    }
    cistern.settle().await;
    assert!(!is_stored(&cistern, &digest));
    assert_eq!(left(&cistern, "map").len(), 1);
    cistern.get(&target).await.assert_is(&bytes);
    assert!(upstream.sent("GET", &target) <= LENGTH + 100_000);
    check(&cistern).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_damaged_meanwhile_is_never_whole_and_begun_anew() {
    let Stage { upstream, bytes, digest, target, gate } = stage(5).await;
    let mut cistern = Cistern::start(&upstream, "").await;
    stop_in_the_middle(&mut cistern, &target, &gate).await;
    let part = left(&cistern, "part").pop().unwrap();
    let mut damaged = std::fs::read(&part).unwrap();
    damaged[1_000_000] ^= 1;
    std::fs::write(&part, &damaged).unwrap();
    cistern.start_again().await;
    let wrong = cistern.get(&target).await;
    assert!(!wrong.complete() && wrong.length < LENGTH, "{}", wrong.summary());
    cistern.settle().await;
    assert!(!is_stored(&cistern, &digest));
    cistern.get(&target).await.assert_is(&bytes);
    check(&cistern).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn parts_are_there_after_a_restart_and_upstream_is_asked_before_anybody_gets_them() {
    let upstream = Upstream::start().await;
    let bytes = blob(6, usize::try_from(LENGTH).unwrap());
    let target = format!("/v2/app/blobs/{}", upstream.blob("app", &bytes));
    let mut cistern = Cistern::setup().upstream("up", &upstream, "").store("range_fill = \"never\"").start().await;
    let ask = |from: u64, to: u64| Ask::get(&target).with("range", &format!("bytes={from}-{}", to - 1));
    let part = |from: u64, to: u64| bytes.slice(usize::try_from(from).unwrap()..usize::try_from(to).unwrap());
    let got = cistern.send(ask(2 * MIB, 4 * MIB)).await;
    assert!(got.status == 206 && got.body == part(2 * MIB, 4 * MIB), "{}", got.summary());
    cistern.restart().await;
    upstream.down();
    let refused = cistern.send(ask(2 * MIB, 3 * MIB)).await;
    assert_eq!(refused.status, 502, "nobody knows whether this caller may have it: {}", refused.summary());
    upstream.up();
    eventually("upstream is found again", || async { cistern.send(ask(2 * MIB, 3 * MIB)).await.status == 206 }).await;
    let got = cistern.send(ask(3 * MIB, 4 * MIB)).await;
    assert!(got.body == part(3 * MIB, 4 * MIB), "{}", got.summary());
    let sent = upstream.sent("GET", &target);
    let asked: Vec<_> = upstream
        .requests("GET", &target)
        .iter()
        .map(|e| (e.request.header("range").map(str::to_owned), e.status))
        .collect();
    assert!(sent <= 3 * MIB, "{sent} bytes for 2 MiB that were asked for: {asked:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn room_is_made_of_what_is_left_before_anything_that_is_whole_goes() {
    let Stage { upstream, target, gate, .. } = stage(7).await;
    let kept = blob(8, 2_000_000);
    let kept_digest = upstream.blob("app", &kept);
    let cistern =
        Cistern::setup().upstream("up", &upstream, "resume_for = \"0s\"").store("capacity = \"12MiB\"").start().await;
    cistern.get(format!("/v2/app/blobs/{kept_digest}")).await.assert_is(&kept);
    let reader = cistern.open(&target).await;
    gate.reached(1).await;
    upstream.script("GET", &target, .., acts::no_head(Cut::Reset));
    upstream.down();
    upstream.up();
    assert!(reader.finish().await.cut.is_some());
    cistern.settle().await;
    assert_eq!(left(&cistern, "map").len(), 1);
    let other = blob(9, 9_000_000);
    let other_digest = upstream.blob("app", &other);
    eventually("upstream is found again", || async {
        cistern.get(format!("/v2/app/blobs/{other_digest}")).await.complete()
    })
    .await;
    cistern.settle().await;
    assert!(is_stored(&cistern, &other_digest) && is_stored(&cistern, &kept_digest));
    assert_eq!(left(&cistern, "map").len(), 0, "what was left has made room");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_left_of_an_upstream_that_refuses_ranges_is_no_obstacle() {
    for status in [400, 500, 501] {
        let Stage { upstream, bytes, target, gate, .. } = stage(8).await;
        let mut cistern = Cistern::start(&upstream, "").await;
        stop_in_the_middle(&mut cistern, &target, &gate).await;
        cistern.start_again().await;
        let act = move |request: &Request, honest: Reply| match request.header("range") {
            Some(_) => registry::error(status, "UNSUPPORTED"),
            None => honest,
        };
        upstream.script("GET", &target, .., Arc::new(act));
        cistern.get(&target).await.assert_is(&bytes);
        check(&cistern).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_upstream_says_twice_to_be_of_another_length_is_begun_anew() {
    let Stage { upstream, bytes, target, gate, .. } = stage(10).await;
    let mut cistern = Cistern::start(&upstream, "").await;
    stop_in_the_middle(&mut cistern, &target, &gate).await;
    cistern.start_again().await;
    upstream.script("GET", &target, 0..2, acts::answer(200, "application/octet-stream", blob(11, 9 << 20)));
    for maps in [1, 0] {
        assert!(!cistern.get(&target).await.complete());
        cistern.settle().await;
        assert_eq!(left(&cistern, "map").len(), maps);
    }
    cistern.get(&target).await.assert_is(&bytes);
    check(&cistern).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_in_its_place_does_not_cost_what_is_left() {
    let Stage { upstream, bytes, target, gate, .. } = stage(9).await;
    let mut cistern = Cistern::start(&upstream, "").await;
    stop_in_the_middle(&mut cistern, &target, &gate).await;
    cistern.start_again().await;
    let before = upstream.sent("GET", &target);
    let page = acts::answer(200, "text/html", "<h1>We are back soon</h1>");
    upstream.script("GET", &target, 0..2, page.clone());
    upstream.script("GET", &target, 0..2, acts::both(page, acts::chunked()));
    for _ in 0..4 {
        assert!(!cistern.get(&target).await.complete());
        cistern.settle().await;
    }
    cistern.get(&target).await.assert_is(&bytes);
    let sent = upstream.sent("GET", &target) - before;
    assert!(sent <= LENGTH - 4 * MIB + 100_000, "{sent} bytes of what was left came again");
    cistern.settle().await;
    assert_eq!((left(&cistern, "map").len(), left(&cistern, "part").len()), (0, 0));
    check(&cistern).await;
}
