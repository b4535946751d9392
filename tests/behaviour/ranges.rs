//! Ranges: every form on what is stored, and on what has yet to be downloaded.

use crate::common::content::{blob, image};
use crate::common::invariants::check;
use crate::common::{Ask, Cistern, Gate, Got, Upstream, acts};
use bytes::Bytes;

const LENGTH: usize = 100_000;

async fn warm() -> (Cistern, Upstream, Bytes, String) {
    let upstream = Upstream::start().await;
    let bytes = blob(1, LENGTH);
    let target = format!("/v2/app/blobs/{}", upstream.blob("app", &bytes));
    let cistern = Cistern::start(&upstream, "").await;
    cistern.get(&target).await.assert_is(&bytes);
    cistern.settle().await;
    upstream.down();
    (cistern, upstream, bytes, target)
}

#[track_caller]
fn assert_part(got: &Got, bytes: &Bytes, from: usize, to: usize) {
    let seen = got.summary();
    assert_eq!((got.status, &got.cut), (206, &None), "{seen}");
    assert_eq!(got.header("content-range"), format!("bytes {from}-{}/{}", to - 1, bytes.len()), "{seen}");
    assert_eq!(got.header("content-length"), (to - from).to_string(), "{seen}");
    assert_eq!(got.body, bytes.slice(from..to), "{seen}");
}

#[tokio::test]
async fn one_range_of_every_form_is_served_from_the_store() {
    let (cistern, _upstream, bytes, target) = warm().await;
    for (range, from, to) in [
        ("bytes=0-0", 0, 1),
        ("bytes=500-1499", 500, 1500),
        ("bytes=500-", 500, LENGTH),
        ("bytes=-500", LENGTH - 500, LENGTH),
        ("bytes=-999999", 0, LENGTH),
        ("bytes=99999-", LENGTH - 1, LENGTH),
        ("bytes=90000-200000", 90_000, LENGTH),
        ("bytes=0-", 0, LENGTH),
        ("bytes=65535-65536", 65_535, 65_537),
        ("Bytes=1-2", 1, 3),
    ] {
        for ask in [Ask::get(&target), Ask::get(&target).http2()] {
            assert_part(&cistern.send(ask.with("range", range)).await, &bytes, from, to);
        }
    }
}

#[tokio::test]
async fn what_cannot_be_satisfied_is_416_and_what_is_no_range_is_ignored() {
    let (cistern, _upstream, bytes, target) = warm().await;
    // One that ends before it starts may be ignored or rejected (RFC 9110, 14.2); the OCI conformance suite wants 416.
    for range in [
        "bytes=100000-",
        "bytes=100000-100001",
        "bytes=-0",
        "bytes=200000-300000,400000-",
        "bytes=99999999999999999999-",
        "bytes=5-1",
        "bytes=500-0",
    ] {
        let got = cistern.send(Ask::get(&target).with("range", range)).await;
        got.assert_fails(416);
        assert_eq!(got.header("content-range"), "bytes */100000", "{range}");
    }
    for range in [
        "bytes",
        "bytes=",
        "bytes=a-b",
        "lines=1-2",
        "bytes=1",
        "bytes=1--2",
        "bytes=1-2x",
        "bytes=--1",
        "bytes=1-2;3-4",
        "",
    ] {
        cistern.send(Ask::get(&target).with("range", range)).await.assert_is(&bytes);
    }
}

#[tokio::test]
async fn several_ranges_are_multipart() {
    let (cistern, _upstream, bytes, target) = warm().await;
    let got = cistern.send(Ask::get(&target).with("range", "bytes=0-9, 1000-1999,-5")).await;
    assert_eq!((got.status, &got.cut), (206, &None), "{}", got.summary());
    assert_eq!(got.header("content-length"), got.length.to_string());
    assert!(!got.headers.contains_key("content-range"), "only the parts have one");
    let boundary =
        got.header("content-type").strip_prefix("multipart/byteranges; boundary=").unwrap().trim_matches('"');
    let parts = multipart(&got.body, boundary);
    let expected = [(0, 10), (1000, 2000), (LENGTH - 5, LENGTH)];
    assert_eq!(parts.len(), 3);
    for ((head, body), (from, to)) in parts.into_iter().zip(expected) {
        assert!(head.to_lowercase().contains(&format!("content-range: bytes {from}-{}/{LENGTH}", to - 1)), "{head}");
        assert!(head.to_lowercase().contains("content-type: application/octet-stream"), "{head}");
        assert_eq!(body, bytes.slice(from..to));
    }
    // One satisfiable range among several is answered as that one: RFC 9110, 15.3.7.2 forbids a multipart of one.
    let one = cistern.send(Ask::get(&target).with("range", "bytes=10-19,200000-")).await;
    assert_part(&one, &bytes, 10, 20);
    // A flood of ranges must not cost a flood of bytes: as RFC 9110, 14.2 allows, it is no range at all.
    let flood = vec!["0-"; 2000].join(",");
    cistern.send(Ask::get(&target).with("range", &format!("bytes={flood}"))).await.assert_is(&bytes);
}

#[tokio::test]
async fn if_range_decides_between_the_part_and_the_whole() {
    let (cistern, _upstream, bytes, target) = warm().await;
    let etag = cistern.head(&target).await.header("etag").to_owned();
    let ask = || Ask::get(&target).with("range", "bytes=10-19");
    assert_part(&cistern.send(ask().with("if-range", &etag)).await, &bytes, 10, 20);
    for other in ["\"sha256:other\"", &format!("W/{etag}"), "Wed, 21 Oct 2015 07:28:00 GMT"] {
        cistern.send(ask().with("if-range", other)).await.assert_is(&bytes);
    }
}

#[tokio::test]
async fn head_and_manifests_take_no_harm_from_a_range() {
    let upstream = Upstream::start().await;
    let image = image(2);
    upstream.image("app", "1.0", &image);
    let cistern = Cistern::start(&upstream, "").await;
    for _ in 0..2 {
        let got = cistern.send(Ask::get("/v2/app/manifests/1.0").with("range", "bytes=0-9")).await;
        assert_part(&got, &image.manifest, 0, 10);
        let head = cistern.send(Ask::head("/v2/app/manifests/1.0").with("range", "bytes=0-9")).await;
        assert_eq!((head.status, head.length), (200, 0), "RFC 9110: Range is for GET only");
    }
}

#[tokio::test]
async fn an_empty_blob_is_whole_whatever_the_range() {
    let upstream = Upstream::start().await;
    let target = format!("/v2/app/blobs/{}", upstream.blob("app", &Bytes::new()));
    let cistern = Cistern::start(&upstream, "").await;
    for _ in 0..2 {
        // RFC 9110, 14.2 lets a Range be ignored, and some clients send this one with every request.
        cistern.send(Ask::get(&target).with("range", "bytes=0-")).await.assert_is(&Bytes::new());
        for range in ["bytes=-1", "bytes=0-0"] {
            let got = cistern.send(Ask::get(&target).with("range", range)).await;
            got.assert_is(&Bytes::new());
        }
        cistern.get(&target).await.assert_is(&Bytes::new());
        cistern.settle().await;
    }
}

#[tokio::test]
async fn a_range_of_a_cold_blob_starts_the_whole_download() {
    let upstream = Upstream::start().await;
    let bytes = blob(3, 1_000_000);
    let target = format!("/v2/app/blobs/{}", upstream.blob("app", &bytes));
    let gate = Gate::new();
    upstream.script("GET", &target, .., acts::hold_at(600_000, &gate));
    let cistern = Cistern::start(&upstream, "").await;
    let ask = Ask::get(&target).with("range", "bytes=100000-199999");
    assert_part(&cistern.send(ask).await, &bytes, 100_000, 200_000);
    // What lies beyond the mark waits for it: its head is there at once.
    let later = cistern.client().open(Ask::get(&target).with("range", "bytes=800000-")).await.unwrap();
    assert_eq!(later.status, 206);
    let whole = cistern.open(&target).await;
    gate.open();
    assert_part(&later.finish().await, &bytes, 800_000, 1_000_000);
    whole.finish().await.assert_is(&bytes);
    cistern.settle().await;
    upstream.down();
    cistern.get(&target).await.assert_is(&bytes);
    check(&cistern).await;
}

#[tokio::test]
async fn parallel_chunk_readers_that_close_early_share_one_download() {
    // containerd: `bytes=0-` first, then open-ended ranges that are each closed after a chunk.
    let upstream = Upstream::start().await;
    let bytes = blob(4, 4_000_000);
    let target = format!("/v2/app/blobs/{}", upstream.blob("app", &bytes));
    let cistern = Cistern::start(&upstream, "").await;
    for from in [0_usize, 1_000_000, 2_000_000, 3_000_000] {
        let ask = Ask::get(&target).with("range", &format!("bytes={from}-"));
        let mut live = cistern.client().open(ask).await.unwrap();
        assert_eq!(live.status, 206);
        assert!(live.read_to(1_000_000).await >= 1_000_000);
        assert_eq!(live.so_far()[..1_000_000], bytes[from..from + 1_000_000]);
    }
    cistern.settle().await;
    let sent = upstream.sent("GET", &target);
    assert!(sent <= bytes.len() as u64 + 1_000_000, "{sent} bytes for a blob of {}", bytes.len());
    cistern.get(&target).await.assert_is(&bytes);
    check(&cistern).await;
}

#[tokio::test]
async fn a_range_beyond_the_end_of_a_cold_blob_is_416() {
    let upstream = Upstream::start().await;
    let bytes = blob(5, 1000);
    let target = format!("/v2/app/blobs/{}", upstream.blob("app", &bytes));
    let cistern = Cistern::start(&upstream, "").await;
    let got = cistern.send(Ask::get(&target).with("range", "bytes=1000-")).await;
    got.assert_fails(416);
    assert_eq!(got.header("content-range"), "bytes */1000");
    cistern.get(&target).await.assert_is(&bytes);
}

#[tokio::test]
async fn a_part_of_a_download_that_turns_out_wrong_is_broken_or_marked() {
    let upstream = Upstream::start().await;
    let bytes = blob(6, 500_000);
    let target = format!("/v2/app/blobs/{}", upstream.blob("app", &bytes));
    let gate = Gate::new();
    upstream.script("GET", &target, .., acts::both(acts::corrupt(), acts::hold_at(400_000, &gate)));
    let cistern = Cistern::start(&upstream, "").await;
    let early = cistern.send(Ask::get(&target).with("range", "bytes=0-999")).await;
    assert_eq!((early.status, &early.cut), (206, &None), "{}", early.summary());
    assert!(early.header("cache-status").contains("detail=unverified"), "{}", early.summary());
    let running = cistern.client().open(Ask::get(&target).with("range", "bytes=100000-")).await.unwrap();
    let covering = cistern.client().open(Ask::get(&target).with("range", "bytes=0-")).await.unwrap();
    gate.open();
    assert!(running.finish().await.cut.is_some(), "still running at the mismatch");
    assert!(covering.finish().await.cut.is_some(), "a range that covers the whole is held back like the whole");
    check(&cistern).await;
}

/// The parts of a multipart body: head and content.
fn multipart(body: &Bytes, boundary: &str) -> Vec<(String, Bytes)> {
    let mark = format!("--{boundary}");
    let find = |from: usize, what: &str| {
        body[from..].windows(what.len()).position(|window| window == what.as_bytes()).map(|at| from + at)
    };
    let mut parts = Vec::new();
    let mut at = find(0, &mark).expect("a first boundary");
    while !body[at + mark.len()..].starts_with(b"--") {
        let start = find(at, "\r\n\r\n").expect("the end of a part's head") + 4;
        let end = find(start, &format!("\r\n{mark}")).expect("a next boundary");
        let head = String::from_utf8_lossy(&body[at + mark.len()..start]).into_owned();
        parts.push((head, body.slice(start..end)));
        at = end + 2;
    }
    parts
}
