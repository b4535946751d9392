//! Uploading blobs through ocistern: every style, upstreams that break, and clients that do.

use std::time::Duration;

use crate::common::content::{blob, sha256, sha512};
use crate::common::invariants::{check, files, is_stored};
use crate::common::uploading::{ANY, UPLOADS, assert_created, assert_pushed, begin, closing, next};
use crate::common::upstream::{Cut, Reply, Then};
use crate::common::{Ask, Cistern, Gate, Got, Upstream, acts, eventually};
use bytes::Bytes;
use tokio::runtime::Runtime;

async fn world() -> (Cistern, Upstream) {
    let upstream = Upstream::start().await;
    let cistern = Cistern::start(&upstream, "").await;
    (cistern, upstream)
}

// === every style ===

#[tokio::test]
async fn post_and_put() {
    let (cistern, upstream) = world().await;
    for (seed, ask) in [
        (1, Ask::put as fn(String) -> Ask),
        (2, |target| Ask::put(target).chunked()),
        (3, |target| Ask::put(target).http2()),
    ] {
        let bytes = blob(seed, 300_000);
        let digest = sha256(&bytes);
        let got = cistern.send(Ask::post(UPLOADS)).await;
        assert_eq!((got.status, got.header("range"), got.header("content-length")), (202, "0-0", "0"));
        assert_eq!(got.header("oci-chunk-min-length"), "10");
        assert!(got.header("docker-upload-uuid").starts_with("upload-"));
        let location = got.header("location");
        assert!(location.starts_with("/v2/app/blobs/uploads/"), "relative, and here: {location}");
        assert!(!location.contains("upload-") && !location.contains("_state"), "nothing of upstream's: {location}");
        let got = cistern.send(ask(closing(location, &digest)).body(bytes.clone())).await;
        assert_created(&got, &digest);
        assert_pushed(&cistern, &upstream, &bytes, &digest).await;
        let again = cistern.send(Ask::put(closing(location, &digest)).body(bytes)).await;
        assert_eq!((again.status, again.error_code()), (404, "BLOB_UPLOAD_UNKNOWN".to_owned()), "it is over");
    }
    check(&cistern).await;
}

#[tokio::test]
async fn a_single_post() {
    let (cistern, upstream) = world().await;
    let bytes = blob(1, 100_000);
    let digest = sha256(&bytes);
    let got = cistern.send(Ask::post(closing(UPLOADS, &digest)).body(bytes.clone())).await;
    assert_created(&got, &digest);
    assert_pushed(&cistern, &upstream, &bytes, &digest).await;
    let wrong = cistern.send(Ask::post(closing(UPLOADS, &sha256(b"other"))).body(bytes.clone())).await;
    assert_eq!((wrong.status, wrong.error_code()), (400, "DIGEST_INVALID".to_owned()));
    let bad = cistern.send(Ask::post(format!("{UPLOADS}?digest=sha256:x")).body(bytes)).await;
    assert_eq!((bad.status, bad.error_code()), (400, "DIGEST_INVALID".to_owned()));
    upstream.until("DELETE", ANY, 1).await;
    check(&cistern).await;
}

#[tokio::test]
async fn streamed_and_chunked() {
    let (cistern, upstream) = world().await;
    let bytes = blob(1, 250_000);
    let digest = sha256(&bytes);
    // docker: one PATCH of unknown length.
    let location = begin(&cistern, UPLOADS).await;
    let got = cistern.send(Ask::patch(location).body(bytes.clone()).chunked()).await;
    let location = next(&got, 202, "0-249999");
    assert!(!got.header("docker-upload-uuid").is_empty());
    let got = cistern.send(Ask::put(closing(&location, &digest))).await;
    assert_created(&got, &digest);
    assert_pushed(&cistern, &upstream, &bytes, &digest).await;
    // Azure's SDKs: parts without Content-Range.
    let bytes = blob(2, 250_000);
    let digest = sha256(&bytes);
    let mut location = begin(&cistern, UPLOADS).await;
    for (at, end) in [(0, 100_000), (100_000, 200_000), (200_000, 250_000)] {
        let got = cistern.send(Ask::patch(location).body(bytes.slice(at..end))).await;
        location = next(&got, 202, &format!("0-{}", end - 1));
    }
    assert_created(&cistern.send(Ask::put(closing(&location, &digest))).await, &digest);
    assert_pushed(&cistern, &upstream, &bytes, &digest).await;
    check(&cistern).await;
}

#[tokio::test]
async fn parts_come_in_order() {
    let (cistern, upstream) = world().await;
    let bytes = blob(1, 3000);
    let digest = sha256(&bytes);
    let part = |at: usize, end: usize| (format!("{at}-{}", end - 1), bytes.slice(at..end));
    let location = begin(&cistern, UPLOADS).await;
    let (range, second) = part(1000, 2000);
    let early = cistern.send(Ask::patch(&location).with("content-range", &range).body(second.clone())).await;
    let location = next(&early, 416, "0-0");
    assert_eq!(early.error_code(), "BLOB_UPLOAD_INVALID");
    let (first_range, first) = part(0, 1000);
    let got = cistern.send(Ask::patch(location).with("content-range", &first_range).body(first.clone())).await;
    let location = next(&got, 202, "0-999");
    let twice = cistern.send(Ask::patch(location).with("content-range", &first_range).body(first)).await;
    let location = next(&twice, 416, "0-999");
    let (last_range, last) = part(2000, 3000);
    let early =
        cistern.send(Ask::put(closing(&location, &digest)).with("content-range", &last_range).body(last.clone()));
    let location = next(&early.await, 416, "0-999");
    let status = cistern.get(&location).await;
    let location = next(&status, 204, "0-999");
    let got = cistern.send(Ask::patch(location).with("content-range", &range).body(second)).await;
    let location = next(&got, 202, "0-1999");
    let got = cistern.send(Ask::put(closing(&location, &digest)).with("content-range", &last_range).body(last)).await;
    assert_created(&got, &digest);
    assert_pushed(&cistern, &upstream, &bytes, &digest).await;
    let ranges: Vec<_> =
        upstream.log().into_iter().filter_map(|e| e.request.header("content-range").map(str::to_owned)).collect();
    assert_eq!(ranges, ["0-999", "1000-1999", "2000-2999"], "upstream saw the parts as the client cut them");
    check(&cistern).await;
}

#[tokio::test]
async fn parts_that_are_not_what_they_say() {
    let (cistern, upstream) = world().await;
    let location = begin(&cistern, UPLOADS).await;
    for range in ["x", "5-1", "0-", "-5"] {
        let got = cistern.send(Ask::patch(&location).with("content-range", range).body("abc")).await;
        assert_eq!((got.status, got.error_code()), (400, "BLOB_UPLOAD_INVALID".to_owned()), "{range}");
    }
    let short = cistern.send(Ask::patch(&location).with("content-range", "0-99").body("abc")).await;
    assert_eq!((short.status, short.error_code()), (400, "SIZE_INVALID".to_owned()));
    let chunked = cistern.send(Ask::patch(&location).with("content-range", "0-99").body("abc").chunked()).await;
    assert_eq!((chunked.status, chunked.error_code()), (400, "SIZE_INVALID".to_owned()));
    let none = cistern.send(Ask::put(&location).body("abc")).await;
    assert_eq!((none.status, none.error_code()), (400, "DIGEST_INVALID".to_owned()));
    // None of it counts.
    next(&cistern.get(&location).await, 204, "0-0");
    let digest = sha256(b"abc");
    assert_created(&cistern.send(Ask::put(closing(&location, &digest)).body("abc")).await, &digest);
    assert_pushed(&cistern, &upstream, &Bytes::from_static(b"abc"), &digest).await;
}

#[tokio::test]
async fn empty_blobs_and_other_algorithms() {
    let (cistern, upstream) = world().await;
    let empty = sha256(b"");
    let location = begin(&cistern, UPLOADS).await;
    assert_created(&cistern.send(Ask::put(closing(&location, &empty))).await, &empty);
    assert_pushed(&cistern, &upstream, &Bytes::new(), &empty).await;
    assert_created(&cistern.send(Ask::post(closing(UPLOADS, &empty))).await, &empty);

    let bytes = blob(1, 70_000);
    let wide = sha512(&bytes);
    let location = begin(&cistern, &format!("{UPLOADS}?digest-algorithm=sha512")).await;
    assert_eq!(upstream.log().last().unwrap().request.query, "digest-algorithm=sha512");
    let got = cistern.send(Ask::patch(location).body(bytes.slice(..50_000))).await;
    let location = next(&got, 202, "0-49999");
    let got = cistern.send(Ask::put(closing(&location, &wide)).body(bytes.slice(50_000..))).await;
    assert_created(&got, &wide);
    assert_pushed(&cistern, &upstream, &bytes, &wide).await;
    check(&cistern).await;
}

#[tokio::test]
async fn what_is_given_up_is_gone_here_and_upstream() {
    let (cistern, upstream) = world().await;
    let location = begin(&cistern, UPLOADS).await;
    let got = cistern.send(Ask::patch(location).body("abc")).await;
    let location = next(&got, 202, "0-2");
    assert_eq!(files(&cistern.root().join("fills")).len(), 1);
    let got = cistern.send(Ask::delete(&location)).await;
    assert_eq!((got.status, got.length), (204, 0));
    assert!(upstream.registry(|registry| registry.uploads.is_empty()));
    for ask in [Ask::get(&location), Ask::delete(&location), Ask::patch(&location).body("x")] {
        let got = cistern.send(ask.clone()).await;
        assert_eq!((got.status, got.error_code()), (404, "BLOB_UPLOAD_UNKNOWN".to_owned()), "{ask:?}");
    }
    check(&cistern).await;
    // Where upstream does not know how to, the client is told, and the upload goes on.
    let location = begin(&cistern, UPLOADS).await;
    upstream.script("DELETE", ANY, .., acts::fail(405, "UNSUPPORTED"));
    let got = cistern.send(Ask::delete(&location)).await;
    assert_eq!((got.status, got.error_code()), (405, "UNSUPPORTED".to_owned()));
    let digest = sha256(b"abc");
    assert_created(&cistern.send(Ask::put(closing(&location, &digest)).body("abc")).await, &digest);
}

#[tokio::test]
async fn mounts() {
    let upstream = Upstream::start().await;
    let other = Upstream::start().await;
    let cistern = Cistern::setup().upstream("up", &upstream, "").upstream("other", &other, "").start().await;
    let bytes = blob(1, 40_000);
    let digest = upstream.blob("base", &bytes);
    cistern.get(format!("/v2/base/blobs/{digest}")).await.assert_is(&bytes);
    cistern.settle().await;
    let got = cistern.send(Ask::post(format!("{UPLOADS}?mount={digest}&from=base"))).await;
    assert_created(&got, &digest);
    assert_pushed(&cistern, &upstream, &bytes, &digest).await;
    // By its whole name, as a client writes it that has all upstreams behind one address.
    let got = cistern.send(Ask::post(format!("/v2/up/app2/blobs/uploads/?mount={digest}&from=up/base"))).await;
    assert_eq!((got.status, got.header("location")), (201, format!("/v2/up/app2/blobs/{digest}").as_str()));
    // What is not there, or with another upstream, has to be sent.
    let missing = sha256(b"missing");
    upstream.forget();
    for target in [
        format!("{UPLOADS}?mount={missing}&from=base"),
        format!("{UPLOADS}?mount={digest}&from=other/base"),
        format!("{UPLOADS}?mount={digest}"),
        format!("{UPLOADS}?mount={digest}&from=..%2Fx"),
    ] {
        let location = begin(&cistern, &target).await;
        let small = Bytes::from(target);
        let digest = sha256(&small);
        assert_created(&cistern.send(Ask::put(closing(&location, &digest)).body(small)).await, &digest);
    }
    let asked: Vec<_> = upstream.requests("POST", "*").into_iter().map(|entry| entry.request.query).collect();
    let (digest, missing) = (digest.to_string().replace(':', "%3A"), missing.to_string().replace(':', "%3A"));
    assert_eq!(asked, [format!("mount={missing}&from=base"), String::new(), format!("mount={digest}"), String::new()]);
    assert_eq!(other.log().len(), 0);
    upstream.registry(|registry| registry.mounts_from_anywhere = true);
    let got = cistern.send(Ask::post(format!("/v2/fresh/blobs/uploads/?mount={digest}"))).await;
    assert_eq!(got.status, 201, "upstream may have it somewhere");
    let bad = cistern.send(Ask::post(format!("{UPLOADS}?mount=nonsense"))).await;
    assert_eq!((bad.status, bad.error_code()), (400, "DIGEST_INVALID".to_owned()));
}

#[tokio::test]
async fn every_form_of_address() {
    let upstream = Upstream::start().await;
    let cistern = Cistern::setup()
        .upstream("up", &upstream, "")
        .listener("public_url = \"https://cache.example/sub\"\nhostnames = { \"reg.test\" = \"up\" }")
        .start()
        .await;
    for (seed, target, host, start, end) in [
        (1, "/v2/app/blobs/uploads/", "localhost", "/sub/v2/app/blobs/", ""),
        (2, "/v2/up/app/blobs/uploads/", "localhost", "/sub/v2/up/app/blobs/", ""),
        (3, "/up/v2/app/blobs/uploads/", "localhost", "/sub/up/v2/app/blobs/", ""),
        (4, "/v2/app/blobs/uploads/?ns=up", "localhost", "/sub/v2/app/blobs/", "?ns=up"),
        (5, "/v2/app/blobs/uploads/", "reg.test", "/sub/v2/app/blobs/", ""),
    ] {
        let bytes = blob(seed, 5000);
        let digest = sha256(&bytes);
        // The proxy in front takes the path of the public URL off.
        let here = |location: &str| location.strip_prefix("/sub").unwrap().to_owned();
        let ask = |ask: Ask| cistern.send(ask.with("host", host));
        let got = ask(Ask::post(target)).await;
        let location = got.header("location").to_owned();
        assert!(location.starts_with(start) && location.ends_with(end), "{target}: {location}");
        let got = ask(Ask::patch(here(&location)).body(bytes.clone())).await;
        let location = next(&got, 202, "0-4999");
        let got = ask(Ask::put(closing(&here(&location), &digest))).await;
        assert_eq!((got.status, got.header("location")), (201, format!("{start}{digest}{end}").as_str()), "{target}");
        ask(Ask::get(here(got.header("location")))).await.assert_is(&bytes);
    }
}

#[tokio::test]
async fn bytes_go_upstream_as_they_come() {
    let (cistern, upstream) = world().await;
    let bytes = blob(1, 100_000);
    let digest = sha256(&bytes);
    let arrived = Gate::new();
    arrived.open();
    upstream.take_in("PATCH", ANY, .., 60_000, Then::Hold(arrived.clone()));
    let location = begin(&cistern, UPLOADS).await;
    let sending = cistern.client().stream(Ask::patch(&location));
    assert!(sending.send(bytes.slice(..60_000)).await);
    arrived.reached(1).await;
    assert!(sending.send(bytes.slice(60_000..)).await);
    let location = next(&sending.finish().await, 202, "0-99999");
    assert_created(&cistern.send(Ask::put(closing(&location, &digest))).await, &digest);
    // Of what closes the upload, upstream has not all before it is known to be right.
    let arrived = Gate::new();
    arrived.open();
    upstream.take_in("PUT", ANY, .., 60_000, Then::Hold(arrived.clone()));
    let location = begin(&cistern, UPLOADS).await;
    let sending = cistern.client().stream(Ask::put(closing(&location, &digest)));
    assert!(sending.send(bytes.slice(..60_000)).await);
    assert!(sending.send(bytes.slice(60_000..80_000)).await);
    arrived.reached(1).await;
    assert!(sending.send(bytes.slice(80_000..)).await);
    assert_created(&sending.finish().await, &digest);
}

#[tokio::test]
async fn one_request_at_a_time() {
    let (cistern, upstream) = world().await;
    let location = begin(&cistern, UPLOADS).await;
    let gate = Gate::new();
    upstream.take_in("PATCH", ANY, 0..1, 1, Then::Hold(gate.clone()));
    let first = cistern.client().stream(Ask::patch(&location));
    assert!(first.send(Bytes::from_static(b"abc")).await);
    gate.reached(1).await;
    let second = cistern.send(Ask::patch(&location).body("xyz")).await;
    assert_eq!((second.status, second.error_code()), (409, "BLOB_UPLOAD_INVALID".to_owned()));
    next(&cistern.get(&location).await, 204, "0-0");
    gate.open();
    let location = next(&first.finish().await, 202, "0-2");
    let digest = sha256(b"abc");
    assert_created(&cistern.send(Ask::put(closing(&location, &digest))).await, &digest);
}

// === upstreams that break ===

#[tokio::test]
async fn an_upload_that_upstream_breaks_is_replayed() {
    for (seed, at, cut) in
        [(1, 0, Cut::Reset), (2, 150_000, Cut::Reset), (3, 150_000, Cut::Fin), (4, 299_000, Cut::Fin)]
    {
        let (cistern, upstream) = world().await;
        upstream.registry(|registry| registry.forgets_broken_uploads = true);
        let bytes = blob(seed, 300_000);
        let digest = sha256(&bytes);
        upstream.take_in("*", ANY, 1..2, at, Then::Cut(cut));
        let location = begin(&cistern, UPLOADS).await;
        let got = cistern.send(Ask::patch(location).body(bytes.clone()).chunked()).await;
        let location = next(&got, 202, "0-299999");
        assert_created(&cistern.send(Ask::put(closing(&location, &digest))).await, &digest);
        assert_pushed(&cistern, &upstream, &bytes, &digest).await;
        assert_eq!(upstream.count("POST", ANY), 2, "it was begun anew once");
        check(&cistern).await;

        let (cistern, upstream) = world().await;
        upstream.registry(|registry| registry.forgets_broken_uploads = true);
        upstream.take_in("PUT", ANY, 0..3, at, Then::Cut(cut));
        let location = begin(&cistern, UPLOADS).await;
        let got = cistern.send(Ask::put(closing(&location, &digest)).body(bytes.clone())).await;
        assert_created(&got, &digest);
        assert_pushed(&cistern, &upstream, &bytes, &digest).await;
        assert_eq!(upstream.count("POST", ANY), 4, "three times is not too often");
        check(&cistern).await;
    }
}

#[tokio::test]
async fn parts_before_are_replayed_too() {
    let (cistern, upstream) = world().await;
    upstream.registry(|registry| registry.forgets_broken_uploads = true);
    let bytes = blob(1, 300_000);
    let digest = sha256(&bytes);
    let mut location = begin(&cistern, UPLOADS).await;
    for (at, end) in [(0, 100_000), (100_000, 200_000)] {
        let range = format!("{at}-{}", end - 1);
        let got = cistern.send(Ask::patch(location).with("content-range", &range).body(bytes.slice(at..end))).await;
        location = next(&got, 202, &format!("0-{}", end - 1));
    }
    // Upstream forgets it between two requests.
    upstream.registry(|registry| registry.uploads.clear());
    let part = bytes.slice(200_000..250_000);
    let got = cistern.send(Ask::patch(location).with("content-range", "200000-249999").body(part)).await;
    let location = next(&got, 202, "0-249999");
    let replay = upstream.requests("PATCH", ANY).pop().unwrap().request;
    assert_eq!((replay.length, replay.header("content-range")), (250_000, None), "all in one, from the beginning");
    // And once more before it is closed, with the last part.
    upstream.registry(|registry| registry.uploads.clear());
    let got = cistern.send(Ask::put(closing(&location, &digest)).body(bytes.slice(250_000..))).await;
    assert_created(&got, &digest);
    assert_pushed(&cistern, &upstream, &bytes, &digest).await;
    check(&cistern).await;
}

#[tokio::test]
async fn answers_that_mean_a_broken_upload() {
    for (status, code) in
        [(404, "BLOB_UPLOAD_INVALID"), (400, "BLOB_UPLOAD_INVALID"), (416, "X"), (500, "X"), (503, "X")]
    {
        let (cistern, upstream) = world().await;
        let bytes = blob(1, 200_000);
        let digest = sha256(&bytes);
        upstream.take_in("PATCH", ANY, 0..1, 90_000, Then::Answer(status, code));
        let location = begin(&cistern, UPLOADS).await;
        let got = cistern.send(Ask::patch(location).body(bytes.clone())).await;
        let location = next(&got, 202, "0-199999");
        upstream.script("PUT", ANY, 0..1, acts::fail(status, code));
        assert_created(&cistern.send(Ask::put(closing(&location, &digest))).await, &digest);
        assert_pushed(&cistern, &upstream, &bytes, &digest).await;
    }
}

#[tokio::test]
async fn refusals_are_relayed() {
    let (cistern, upstream) = world().await;
    let bytes = blob(1, 200_000);
    let digest = sha256(&bytes);
    for (status, code) in [(403, "DENIED"), (413, "SIZE_INVALID"), (400, "NAME_INVALID")] {
        upstream.unscript();
        upstream.forget();
        upstream.script("POST", ANY, .., acts::both(acts::fail(status, code), acts::header("Set-Cookie", "CANARY")));
        let got = cistern.send(Ask::post(UPLOADS)).await;
        assert_eq!((got.status, got.error_code()), (status, code.to_owned()));
        assert!(!got.headers.contains_key("set-cookie"));
        upstream.unscript();
        let location = begin(&cistern, UPLOADS).await;
        upstream.take_in("PUT", ANY, .., 50_000, Then::Answer(status, code));
        let got = cistern.send(Ask::put(closing(&location, &digest)).body(bytes.clone())).await;
        assert_eq!((got.status, got.error_code()), (status, code.to_owned()));
        assert_eq!(upstream.count("PUT", ANY), 1, "it is not tried again");
    }
    upstream.unscript();
    upstream.script("POST", ANY, .., acts::fail(503, "UNAVAILABLE"));
    let got = cistern.send(Ask::post(UPLOADS)).await;
    assert_eq!((got.status, got.error_code()), (503, "UNAVAILABLE".to_owned()));
    upstream.down();
    let got = cistern.send(Ask::post(UPLOADS)).await;
    assert!(matches!(got.status, 502 | 503), "{}", got.summary());
    assert!(!is_stored(&cistern, &digest));
    check(&cistern).await;
}

#[tokio::test]
async fn an_upload_survives_that_upstream_is_away_for_a_moment() {
    let (cistern, upstream) = world().await;
    upstream.registry(|registry| registry.forgets_broken_uploads = true);
    let bytes = blob(1, 200_000);
    let digest = sha256(&bytes);
    let location = begin(&cistern, UPLOADS).await;
    let sending = cistern.client().stream(Ask::patch(&location));
    assert!(sending.send(bytes.slice(..100_000)).await);
    upstream.down();
    upstream.up();
    assert!(sending.send(bytes.slice(100_000..)).await);
    let location = next(&sending.finish().await, 202, "0-199999");
    assert_created(&cistern.send(Ask::put(closing(&location, &digest))).await, &digest);
    assert_pushed(&cistern, &upstream, &bytes, &digest).await;
}

#[tokio::test]
async fn an_answer_that_was_lost_after_the_commit_costs_nothing() {
    let (cistern, upstream) = world().await;
    let bytes = blob(1, 200_000);
    let digest = sha256(&bytes);
    let location = begin(&cistern, UPLOADS).await;
    upstream.script("PUT", ANY, 0..1, acts::no_head(Cut::Reset));
    let got = cistern.send(Ask::put(closing(&location, &digest)).body(bytes.clone())).await;
    assert_created(&got, &digest);
    assert_eq!(upstream.count("POST", ANY), 1, "nothing was sent again");
    assert_pushed(&cistern, &upstream, &bytes, &digest).await;
}

// === answers that say less than that it is there ===

#[tokio::test]
async fn nothing_but_a_201_closes_an_upload() {
    for (status, seed) in [(200, 1), (202, 2), (204, 3)] {
        let (cistern, upstream) = world().await;
        let bytes = blob(seed, 200_000);
        let digest = sha256(&bytes);
        let elsewhere = || acts::answer(status, "text/html", if status == 204 { "" } else { "<p>Welcome" });
        // In the body of the request that closes it, and before it.
        for parts in [false, true] {
            upstream.registry(|registry| registry.repos.clear());
            upstream.forget();
            upstream.script("HEAD", "*", .., acts::fail(404, "BLOB_UNKNOWN"));
            upstream.script("PUT", ANY, 0..1, elsewhere());
            let mut location = begin(&cistern, UPLOADS).await;
            let mut body = bytes.clone();
            if parts {
                let got = cistern.send(Ask::patch(location).body(std::mem::take(&mut body))).await;
                location = next(&got, 202, "0-199999");
            }
            let got = cistern.send(Ask::put(closing(&location, &digest)).body(body)).await;
            assert_created(&got, &digest);
            assert_eq!(
                (upstream.count("POST", ANY), upstream.count("PUT", ANY)),
                (2, 2),
                "{status}: it was sent again"
            );
            upstream.unscript();
            assert_pushed(&cistern, &upstream, &bytes, &digest).await;
        }
        // What is there all the same is found there.
        let bytes = blob(seed + 10, 1000);
        let digest = sha256(&bytes);
        upstream.forget();
        upstream.script("PUT", ANY, .., elsewhere());
        let location = begin(&cistern, UPLOADS).await;
        assert_created(&cistern.send(Ask::put(closing(&location, &digest)).body(bytes.clone())).await, &digest);
        assert_eq!(upstream.count("POST", ANY), 1);
        assert_pushed(&cistern, &upstream, &bytes, &digest).await;
        check(&cistern).await;
    }
}

#[tokio::test]
async fn a_page_that_answers_everything_acknowledges_nothing() {
    for page in [acts::login_page(), acts::both(acts::login_page(), acts::chunked())] {
        let (cistern, upstream) = world().await;
        let bytes = blob(1, 200_000);
        let digest = sha256(&bytes);
        let location = begin(&cistern, UPLOADS).await;
        upstream.script("*", "*", .., page.clone());
        let got = cistern.send(Ask::put(closing(&location, &digest)).body(bytes.clone())).await;
        got.assert_fails(502);
        let got = cistern.send(Ask::post(format!("{UPLOADS}?mount={digest}&from=base"))).await;
        got.assert_fails(502);
        upstream.unscript();
        upstream.registry(|registry| registry.repos.clear());
        assert_eq!(cistern.get(format!("/v2/app/blobs/{digest}")).await.status, 404, "it is not there");
        let location = begin(&cistern, UPLOADS).await;
        upstream.script("*", "*", .., page);
        let got = cistern.send(Ask::patch(location).body(bytes)).await;
        got.assert_fails(502);
        check(&cistern).await;
    }
}

#[tokio::test]
async fn parts_are_taken_by_what_registries_say_to_them() {
    let bytes = blob(1, 200_000);
    let digest = sha256(&bytes);
    for (status, posts) in [(200, 2), (201, 1), (202, 1), (204, 1)] {
        let (cistern, upstream) = world().await;
        upstream.script("PATCH", ANY, 0..1, acts::change(move |reply| Reply { status, ..reply }));
        let location = begin(&cistern, UPLOADS).await;
        let got = cistern.send(Ask::patch(location).body(bytes.clone())).await;
        let location = next(&got, 202, "0-199999");
        assert_created(&cistern.send(Ask::put(closing(&location, &digest))).await, &digest);
        assert_pushed(&cistern, &upstream, &bytes, &digest).await;
        assert_eq!(upstream.count("POST", ANY), posts, "{status}");
    }
}

#[tokio::test]
async fn a_body_is_whole_when_what_it_announced_is_there() {
    let bytes = blob(1, 100_000);
    let digest = sha256(&bytes);
    let dress: [fn(Ask) -> Ask; 2] =
        [|ask| ask.with("content-range", "0-99999"), |ask| ask.with("content-length", "100000").http2()];
    for dress in dress {
        let (cistern, upstream) = world().await;
        // All of it is there; that it ends is said later, or never.
        let location = begin(&cistern, UPLOADS).await;
        let sending = cistern.client().stream(dress(Ask::patch(location)));
        assert!(sending.send(bytes.clone()).await);
        let location = next(&sending.answer().await, 202, "0-99999");
        assert_created(&cistern.send(Ask::put(closing(&location, &digest))).await, &digest);
        assert_pushed(&cistern, &upstream, &bytes, &digest).await;
        let location = begin(&cistern, UPLOADS).await;
        let sending = cistern.client().stream(dress(Ask::put(closing(&location, &digest))));
        assert!(sending.send(bytes.clone()).await);
        assert_created(&sending.answer().await, &digest);
        assert_eq!(upstream.count("POST", ANY), 2, "nothing was sent again");
        check(&cistern).await;
    }
}

// === digests ===

#[tokio::test]
async fn a_wrong_digest_is_never_committed_upstream() {
    let (cistern, upstream) = world().await;
    let bytes = blob(1, 200_000);
    let wrong = sha256(b"something else");
    let refused = |got: Got| assert_eq!((got.status, got.error_code()), (400, "DIGEST_INVALID".to_owned()));
    // In one piece: the last bytes do not leave.
    let location = begin(&cistern, UPLOADS).await;
    refused(cistern.send(Ask::put(closing(&location, &wrong)).body(bytes.clone())).await);
    refused(cistern.send(Ask::post(closing(UPLOADS, &wrong)).body(bytes.clone()).chunked()).await);
    let tiny = begin(&cistern, UPLOADS).await;
    refused(cistern.send(Ask::put(closing(&tiny, &wrong)).body("x")).await);
    upstream.until("DELETE", ANY, 3).await;
    upstream.until("PUT", ANY, 3).await;
    for put in upstream.requests("PUT", ANY) {
        assert_eq!(put.status, 0, "it was broken off: {:?}", put.request.headers);
    }
    // In parts: it is not even asked.
    let location = begin(&cistern, UPLOADS).await;
    let got = cistern.send(Ask::patch(location).body(bytes.clone())).await;
    refused(cistern.send(Ask::put(closing(&next(&got, 202, "0-199999"), &wrong))).await);
    let location = begin(&cistern, UPLOADS).await;
    refused(cistern.send(Ask::put(closing(&location, &wrong))).await);
    assert_eq!(upstream.count("PUT", ANY), 3);
    assert!(upstream.registry(|registry| registry.repos.is_empty()));
    upstream.until("DELETE", ANY, 5).await;
    assert!(!is_stored(&cistern, &sha256(&bytes)));
    check(&cistern).await;
}

// === addresses ===

#[tokio::test]
async fn addresses_cannot_be_altered_or_moved() {
    let upstream = Upstream::start().await;
    let other = Upstream::start().await;
    let cistern = Cistern::setup().upstream("up", &upstream, "").upstream("other", &other, "").start().await;
    let location = begin(&cistern, UPLOADS).await;
    let state = location.rsplit('/').next().unwrap();
    let mut altered: Vec<String> = (0..state.len())
        .map(|at| {
            let with = if state.as_bytes()[at] == b'A' { "B" } else { "A" };
            format!("{UPLOADS}{}{with}{}", &state[..at], &state[at + 1..])
        })
        .collect();
    // The last letter holds bits that mean nothing; decoders refuse them.
    altered.push(format!("{UPLOADS}{state}A"));
    altered.push(format!("/v2/app2/blobs/uploads/{state}"));
    altered.push(format!("/v2/other/app/blobs/uploads/{state}"));
    altered.push(format!("{UPLOADS}upload-1?_state=0"));
    altered.push(format!("{UPLOADS}{}", "A".repeat(5000)));
    for target in altered {
        for ask in [Ask::get(&target), Ask::patch(&target).body("x"), Ask::put(&target).body("x"), Ask::delete(&target)]
        {
            let got = cistern.send(ask).await;
            assert!(matches!(got.status, 400 | 404), "{target}: {}", got.summary());
        }
    }
    next(&cistern.get(&location).await, 204, "0-0");
    assert_eq!((upstream.log().len(), other.log().len()), (1, 0), "upstream has not heard of any of this");
}

// === clients that break, room, restarts ===

#[tokio::test]
async fn what_came_of_a_request_that_broke_off_does_not_count() {
    let (cistern, upstream) = world().await;
    upstream.registry(|registry| registry.forgets_broken_uploads = true);
    let bytes = blob(1, 300_000);
    let digest = sha256(&bytes);
    let location = begin(&cistern, UPLOADS).await;
    let got = cistern.send(Ask::patch(location).body(bytes.slice(..100_000))).await;
    let location = next(&got, 202, "0-99999");
    for _ in 0..2 {
        let sending = cistern.client().stream(Ask::patch(&location));
        assert!(sending.send(bytes.slice(100_000..150_000)).await);
        sending.abort().await;
    }
    upstream.until("PATCH", ANY, 2).await;
    next(&cistern.get(&location).await, 204, "0-99999");
    let got = cistern.send(Ask::patch(location).body(bytes.slice(100_000..200_000))).await;
    let location = next(&got, 202, "0-199999");
    let got = cistern.send(Ask::put(closing(&location, &digest)).body(bytes.slice(200_000..))).await;
    assert_created(&got, &digest);
    assert_pushed(&cistern, &upstream, &bytes, &digest).await;
    check(&cistern).await;
}

#[tokio::test]
async fn without_room_it_goes_through_and_is_not_kept() {
    for (seed, capacity) in [(1, "1MiB"), (2, "3MiB")] {
        let upstream = Upstream::start().await;
        let store = format!("capacity = {capacity:?}");
        let cistern = Cistern::setup().upstream("up", &upstream, "").store(&store).start().await;
        let bytes = blob(seed, 4 << 20);
        let digest = sha256(&bytes);
        for ask in [Ask::put as fn(String) -> Ask, |target| Ask::put(target).chunked()] {
            let location = begin(&cistern, UPLOADS).await;
            assert_created(&cistern.send(ask(closing(&location, &digest)).body(bytes.clone())).await, &digest);
        }
        let location = begin(&cistern, UPLOADS).await;
        let got = cistern.send(Ask::patch(location).body(bytes.clone()).chunked()).await;
        assert_created(&cistern.send(Ask::put(closing(&next(&got, 202, "0-4194303"), &digest))).await, &digest);
        assert!(!is_stored(&cistern, &digest), "there was no room for it");
        let there = upstream.registry(|registry| registry.repos["app"].blobs[&digest].clone());
        assert_eq!(there, bytes);
        check(&cistern).await;
        eventually("what was taken is given back", || async { cistern.metric("ocistern_store_bytes", &[]).await == 0 })
            .await;
    }
}

#[tokio::test]
async fn an_upload_is_gone_after_a_stop_and_nothing_is_left_of_it() {
    let (mut cistern, upstream) = world().await;
    let location = begin(&cistern, UPLOADS).await;
    let got = cistern.send(Ask::patch(location).body(blob(1, 100_000))).await;
    let location = next(&got, 202, "0-99999");
    cistern.restart().await;
    assert!(files(&cistern.root().join("fills")).is_empty());
    let got = cistern.send(Ask::put(closing(&location, &sha256(&blob(1, 100_000))))).await;
    assert_eq!((got.status, got.error_code()), (404, "BLOB_UPLOAD_UNKNOWN".to_owned()));
    assert!(upstream.registry(|registry| registry.repos.is_empty()));
}

#[test]
fn an_upload_leaves_nothing_after_a_kill() {
    let world = Runtime::new().unwrap();
    let victim = Runtime::new().unwrap();
    let upstream = world.block_on(Upstream::start());
    let mut cistern = victim.block_on(Cistern::start(&upstream, ""));
    let bytes = blob(1, 3 << 20);
    world.block_on(async {
        let location = begin(&cistern, UPLOADS).await;
        let got = cistern.send(Ask::patch(location).body(bytes.clone())).await;
        next(&got, 202, "0-3145727");
        let location = begin(&cistern, UPLOADS).await;
        let sending = cistern.client().stream(Ask::patch(&location));
        assert!(sending.send(bytes.slice(..100_000)).await);
        assert!(!files(&cistern.root().join("fills")).is_empty());
    });
    drop(victim);
    cistern.abandon();
    world.block_on(async {
        cistern.start_again().await;
        check(&cistern).await;
        eventually("nothing is taken", || async { cistern.metric("ocistern_store_bytes", &[]).await == 0 }).await;
    });
}

#[tokio::test]
async fn uploads_count_as_such() {
    let (cistern, _upstream) = world().await;
    let digest = sha256(b"abc");
    let location = begin(&cistern, UPLOADS).await;
    assert_created(&cistern.send(Ask::put(closing(&location, &digest)).body("abc")).await, &digest);
    assert_eq!(cistern.metric("ocistern_requests_total", &["kind=\"upload\"", "result=\"bypass\""]).await, 2);
    let asked = cistern.metric("ocistern_upstream_requests_total", &["kind=\"upload\"", "status=\"201\""]).await;
    assert_eq!(asked, 1);
    tokio::time::timeout(Duration::from_secs(5), cistern.settle()).await.unwrap();
}
