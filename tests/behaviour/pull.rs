//! Pulling: what a client gets on a cold and on a warm cache, byte for byte and header for header.

use crate::common::content::{blob, image, image_of, index, sha256};
use crate::common::invariants::{check, is_stored};
use crate::common::{Ask, Cistern, Gate, Got, Upstream, acts};
use bytes::Bytes;
use ocistern::oci::media;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

#[tokio::test]
async fn an_image_is_pulled_cold_then_warm_then_without_upstream() {
    let upstream = Upstream::start().await;
    let image = image(1);
    upstream.image("org/app", "1.0", &image);
    let list = index(&[&image]);
    let list_digest = upstream.manifest("org/app", media::OCI_INDEX, &list);
    upstream.tag("org/app", "multi", list_digest);
    let cistern = Cistern::start(&upstream, "").await;

    let by_tag = "/v2/org/app/manifests/1.0".to_owned();
    let by_digest = format!("/v2/org/app/manifests/{}", image.digest);
    let multi = "/v2/org/app/manifests/multi".to_owned();
    let mut targets = vec![(by_tag, &image.manifest), (by_digest, &image.manifest), (multi, &list)];
    for part in image.layers.iter().chain([&image.config]) {
        targets.push((format!("/v2/org/app/blobs/{}", sha256(part)), part));
    }
    for (target, bytes) in &targets {
        cistern.get(target).await.assert_is(bytes);
    }
    cistern.settle().await;
    for (target, bytes) in &targets {
        cistern.get(target).await.assert_is(bytes);
    }
    assert_eq!(upstream.count("GET", "*/blobs/*"), 3, "each blob is fetched once");
    assert!(upstream.count("GET", "*/manifests/*") <= 3, "each manifest is fetched once at most a name");
    upstream.down();
    for (target, bytes) in &targets {
        let got = cistern.get(target).await;
        got.assert_is(bytes);
        assert_eq!(got.header("cache-status"), "ocistern; hit");
        let h2 = cistern.send(Ask::get(target).http2()).await;
        h2.assert_is(bytes);
        let head = cistern.head(target).await;
        assert_eq!((head.status, head.length), (200, 0));
        assert_eq!(head.header("content-length"), bytes.len().to_string(), "HEAD {target}");
    }
    check(&cistern).await;
}

#[tokio::test]
async fn the_largest_manifest_is_as_large_as_it_was_configured() {
    for (limit, bytes) in [("1KiB", 1 << 10), ("8MiB", 8 << 20)] {
        for chunked in [false, true] {
            let (upstream, image) = (Upstream::start().await, image(1));
            upstream.image("app", "1.0", &image);
            let manifest = |name: &str, length| {
                let mut text = image.manifest.to_vec();
                assert!(text.len() < length);
                text.resize(length, b' ');
                let digest = upstream.manifest("app", image.media_type, &text.clone().into());
                upstream.tag("app", name, digest);
                (Bytes::from(text), digest)
            };
            let (fits, _) = manifest("fits", bytes);
            let (_, large) = manifest("large", bytes + 1);
            if chunked {
                // Its length is not known beforehand.
                upstream.script("GET", "*/manifests/*", .., acts::chunked());
            }
            let store = format!("max_manifest = {limit:?}");
            let cistern =
                Cistern::setup().upstream("up", &upstream, "tags = \"immutable\"").store(&store).start().await;
            for status in ["ocistern; fwd=miss; stored", "ocistern; hit"] {
                let got = cistern.get("/v2/app/manifests/fits").await;
                got.assert_is(&fits);
                assert_eq!(got.header("cache-status"), status, "{limit}, chunked {chunked}");
                cistern.settle().await;
            }
            for reference in ["large".to_owned(), large.to_string()] {
                let got = cistern.get(format!("/v2/app/manifests/{reference}")).await;
                got.assert_fails(502);
                let said = String::from_utf8_lossy(&got.body).into_owned();
                assert_eq!(got.error_code(), "MANIFEST_INVALID", "{said}");
                assert!(said.contains(&format!("{bytes} bytes")) && said.contains("store.max_manifest"), "{said}");
            }
            assert!(!is_stored(&cistern, &large), "{limit}, chunked {chunked}");
            check(&cistern).await;
        }
    }
}

#[tokio::test]
async fn answers_carry_the_headers_that_clients_need() {
    let upstream = Upstream::start().await;
    let image = image(2);
    upstream.image("app", "1.0", &image);
    let cistern = Cistern::start(&upstream, "").await;
    let layer = sha256(&image.layers[0]);
    for round in ["cold", "warm"] {
        let digest = image.digest.to_string();
        let targets = [
            ("/v2/app/manifests/1.0".to_owned(), digest.clone(), image.media_type, image.manifest.len()),
            (format!("/v2/app/manifests/{digest}"), digest, image.media_type, image.manifest.len()),
            (format!("/v2/app/blobs/{layer}"), layer.to_string(), "application/octet-stream", image.layers[0].len()),
        ];
        for (target, digest, media_type, length) in targets {
            for ask in [Ask::get(&target), Ask::head(&target), Ask::get(&target).http2(), Ask::head(&target).http2()] {
                let got = cistern.send(ask).await;
                let seen = format!("{round} {target}: {}", got.summary());
                assert_eq!((got.status, &got.cut), (200, &None), "{seen}");
                assert_eq!(got.header("docker-content-digest"), digest, "{seen}");
                assert_eq!(got.header("content-type"), media_type, "{seen}");
                assert_eq!(got.header("content-length"), length.to_string(), "{seen}");
                assert_eq!(got.header("etag"), format!("\"{digest}\""), "{seen}");
                assert_eq!(got.header("accept-ranges"), "bytes", "{seen}");
                assert_eq!(got.header("docker-distribution-api-version"), "registry/2.0", "{seen}");
                assert!(got.header("cache-status").starts_with("ocistern; "), "{seen}");
                assert!(!got.headers.contains_key("content-encoding"), "{seen}");
                assert!(!got.headers.contains_key("set-cookie"), "{seen}");
            }
        }
        cistern.settle().await;
    }
}

#[tokio::test]
async fn cache_status_tells_miss_and_hit() {
    let upstream = Upstream::start().await;
    let image = image(3);
    upstream.image("app", "1.0", &image);
    let cistern = Cistern::start(&upstream, "").await;
    let targets = ["/v2/app/manifests/1.0".to_owned(), format!("/v2/app/blobs/{}", sha256(&image.layers[0]))];
    for target in &targets {
        assert_eq!(cistern.get(target).await.header("cache-status"), "ocistern; fwd=miss; stored", "{target}");
        cistern.settle().await;
        assert_eq!(cistern.get(target).await.header("cache-status"), "ocistern; hit", "{target}");
    }
    assert_eq!(cistern.metric("ocistern_requests_total", &["result=\"miss\"", "upstream=\"up\""]).await, 2);
    assert_eq!(cistern.metric("ocistern_requests_total", &["result=\"hit\"", "upstream=\"up\""]).await, 2);
    let served = cistern.metric("ocistern_served_bytes_total", &["source=\"cache\""]).await;
    let bytes = image.manifest.len() + image.layers[0].len();
    assert!(served >= bytes as u64, "{served} bytes served from the cache, of {bytes}");
}

#[tokio::test]
async fn head_of_a_cold_blob_does_not_download_it() {
    let upstream = Upstream::start().await;
    let bytes = blob(4, 50_000);
    let digest = upstream.blob("app", &bytes);
    let cistern = Cistern::start(&upstream, "").await;
    let head = cistern.head(format!("/v2/app/blobs/{digest}")).await;
    assert_eq!((head.status, head.header("content-length")), (200, "50000"), "{}", head.summary());
    assert_eq!(head.header("docker-content-digest"), digest.to_string());
    cistern.settle().await;
    assert_eq!(upstream.count("GET", "*/blobs/*"), 0);
    assert_eq!(upstream.count("HEAD", "*/blobs/*"), 1);
    assert!(!is_stored(&cistern, &digest));
    let missing = cistern.head(format!("/v2/app/blobs/{}", sha256(b"nowhere"))).await;
    assert_eq!((missing.status, missing.length), (404, 0));
}

#[tokio::test]
async fn blobs_of_every_size_and_algorithm_are_served() {
    let upstream = Upstream::start().await;
    let cistern = Cistern::start(&upstream, "").await;
    for size in [0, 1, 4095, 65_535, 65_536, 65_537, 1_048_577, 3_000_000] {
        let bytes = blob(size as u64, size);
        for digest in [upstream.blob("app", &bytes), upstream.blob_sha512("app", &bytes)] {
            let target = format!("/v2/app/blobs/{digest}");
            for round in ["cold", "warm"] {
                let got = cistern.get(&target).await;
                assert_eq!(got.header("content-length"), size.to_string(), "{round} {target} {}", got.summary());
                got.assert_is(&bytes);
                cistern.settle().await;
                cistern.send(Ask::get(&target).http2()).await.assert_is(&bytes);
            }
            assert_eq!(upstream.count("GET", &target), 1, "{size} bytes by {digest}");
            assert!(is_stored(&cistern, &digest));
        }
    }
    check(&cistern).await;
}

#[tokio::test]
async fn content_types_are_upstreams_own() {
    let upstream = Upstream::start().await;
    let cistern = Cistern::start(&upstream, "").await;
    for (seed, media_type) in [
        (1, media::DOCKER_MANIFEST),
        (2, media::DOCKER_LIST),
        (3, "application/json"),
        (4, "application/vnd.example.odd.v1+json; charset=utf-8"),
    ] {
        let essence = media::essence(media_type);
        let named = if essence == "application/json" { String::new() } else { format!(r#""mediaType":"{essence}","#) };
        let bytes: Bytes = format!(r#"{{"schemaVersion":2,{named}"annotations":{{"n":"{seed}"}}}}"#).into();
        let digest = upstream.manifest("app", media_type, &bytes);
        upstream.tag("app", &format!("t{seed}"), digest);
        for target in [format!("/v2/app/manifests/t{seed}"), format!("/v2/app/manifests/{digest}")] {
            for _ in 0..2 {
                let got = cistern.get(&target).await;
                got.assert_is(&bytes);
                assert_eq!(got.header("content-type"), media_type);
                cistern.settle().await;
            }
        }
    }
}

#[tokio::test]
async fn a_matching_if_none_match_is_304() {
    let upstream = Upstream::start().await;
    let image = image(5);
    upstream.image("app", "1.0", &image);
    let cistern = Cistern::start(&upstream, "").await;
    let layer = sha256(&image.layers[0]);
    for (target, digest) in
        [("/v2/app/manifests/1.0".to_owned(), image.digest), (format!("/v2/app/blobs/{layer}"), layer)]
    {
        assert_eq!(cistern.get(&target).await.status, 200);
        cistern.settle().await;
        for value in [format!("\"{digest}\""), format!("\"x\", \"{digest}\""), format!("W/\"{digest}\""), "*".into()] {
            let got = cistern.send(Ask::get(&target).with("if-none-match", &value)).await;
            assert_eq!((got.status, got.length), (304, 0), "{value}: {}", got.summary());
            assert_eq!(got.header("etag"), format!("\"{digest}\""));
        }
        let other = cistern.send(Ask::get(&target).with("if-none-match", "\"sha256:other\"")).await;
        assert_eq!(other.status, 200);
    }
}

#[tokio::test]
async fn a_stored_blob_waits_for_upstreams_word_under_another_repository() {
    let upstream = Upstream::start().await;
    let bytes = blob(6, 20_000);
    let digest = upstream.blob("one", &bytes);
    upstream.blob("two", &bytes);
    let cistern = Cistern::start(&upstream, "").await;
    cistern.get(format!("/v2/one/blobs/{digest}")).await.assert_is(&bytes);
    cistern.settle().await;

    // "three" exists upstream and does not have it.
    upstream.blob("three", &blob(7, 10));
    cistern.get(format!("/v2/three/blobs/{digest}")).await.assert_fails(404);
    cistern.get(format!("/v2/nowhere/blobs/{digest}")).await.assert_fails(404);
    let part = cistern.send(Ask::get(format!("/v2/three/blobs/{digest}")).with("range", "bytes=0-9")).await;
    assert_eq!(part.status, 404, "a range is no way around");
    assert_eq!(cistern.head(format!("/v2/three/blobs/{digest}")).await.status, 404);

    for _ in 0..3 {
        cistern.get(format!("/v2/two/blobs/{digest}")).await.assert_is(&bytes);
    }
    assert_eq!(upstream.count("HEAD", "/v2/two/blobs/*"), 1, "asked once");
    assert_eq!(upstream.count("GET", "*/blobs/*"), 1, "downloaded once, for all names");

    upstream.down();
    cistern.get(format!("/v2/two/blobs/{digest}")).await.assert_is(&bytes);
    let unproven = cistern.get(format!("/v2/four/blobs/{digest}")).await;
    assert!((500..=504).contains(&unproven.status), "unproven, upstream down: {}", unproven.summary());
    check(&cistern).await;
}

#[tokio::test]
async fn a_stored_manifest_waits_for_upstreams_word_under_another_repository() {
    let upstream = Upstream::start().await;
    let image = image(8);
    upstream.image("one", "1.0", &image);
    upstream.blob("two", &blob(9, 10));
    let cistern = Cistern::start(&upstream, "").await;
    cistern.get("/v2/one/manifests/1.0").await.assert_is(&image.manifest);
    cistern.get(format!("/v2/two/manifests/{}", image.digest)).await.assert_fails(404);
    upstream.image("two", "1.0", &image);
    crate::common::eventually("the 404 is forgotten", || async {
        cistern.get(format!("/v2/two/manifests/{}", image.digest)).await.status == 200
    })
    .await;
}

#[tokio::test]
async fn two_upstreams_with_the_same_repository_and_tag_never_mix() {
    let (first, second) = (Upstream::start().await, Upstream::start().await);
    let (one, two) = (image(10), image(11));
    first.image("app", "1.0", &one);
    second.image("app", "1.0", &two);
    let cistern = Cistern::setup().upstream("one", &first, "").upstream("two", &second, "").start().await;
    for _ in 0..2 {
        cistern.get("/v2/app/manifests/1.0?ns=one").await.assert_is(&one.manifest);
        cistern.get("/v2/app/manifests/1.0?ns=two").await.assert_is(&two.manifest);
        cistern.settle().await;
    }
    let layer = sha256(&one.layers[0]);
    cistern.get(format!("/v2/app/blobs/{layer}?ns=one")).await.assert_is(&one.layers[0]);
    cistern.settle().await;
    cistern.get(format!("/v2/app/blobs/{layer}?ns=two")).await.assert_fails(404);
    cistern.get(format!("/v2/app/manifests/{}?ns=two", one.digest)).await.assert_fails(404);
    check(&cistern).await;
}

#[tokio::test]
async fn bad_manifests_are_refused_and_not_kept() {
    let upstream = Upstream::start().await;
    let good = image(12);
    let layers = good.layers.iter().map(|layer| format!("\"{}\"", sha256(layer))).collect::<Vec<_>>().join(",");
    let ambiguous = format!(r#"{{"schemaVersion":2,"manifests":[],"layers":[],"annotations":{{"l":[{layers}]}}}}"#);
    let doubled = r#"{"schemaVersion":2,"config":{},"config":{}}"#.to_owned();
    let html = "<!doctype html><title>Sign in</title>".to_owned();
    let mistyped = format!(r#"{{"schemaVersion":2,"mediaType":"{}"}}"#, media::OCI_INDEX);
    let deep = format!(r#"{{"a":{}1{}}}"#, "[".repeat(100), "]".repeat(100));
    let huge = format!(r#"{{"schemaVersion":2,"annotations":{{"x":"{}"}}}}"#, "x".repeat(4 * 1024 * 1024));
    let cistern = Cistern::start(&upstream, "").await;
    let bad = [
        ("ambiguous", ambiguous),
        ("doubled", doubled),
        ("html", html),
        ("mistyped", mistyped),
        ("deep", deep),
        ("huge", huge),
    ];
    for (name, text) in bad {
        let bytes: Bytes = text.into();
        let digest = upstream.manifest("app", media::OCI_MANIFEST, &bytes);
        upstream.tag("app", name, digest);
        for target in [format!("/v2/app/manifests/{name}"), format!("/v2/app/manifests/{digest}")] {
            let got = cistern.get(&target).await;
            assert_eq!((got.status, got.cut.as_deref()), (502, None), "{name}: {}", got.summary());
            assert!(!got.error_code().is_empty());
        }
        cistern.settle().await;
        assert!(!is_stored(&cistern, &digest), "{name} was kept");
    }
    let bytes: Bytes = format!(r#"{{"schemaVersion":2,"annotations":{{"x":"{}"}}}}"#, "x".repeat(4_000_000)).into();
    let digest = upstream.manifest("app", media::OCI_MANIFEST, &bytes);
    cistern.get(format!("/v2/app/manifests/{digest}")).await.assert_is(&bytes);
    check(&cistern).await;
}

#[tokio::test]
async fn only_what_upstream_answered_with_success_is_kept() {
    let upstream = Upstream::start().await;
    let cistern = Cistern::start(&upstream, "").await;
    let acts = [
        acts::partial_unasked(),
        acts::login_page(),
        acts::announce(-10),
        acts::announce(10),
        acts::corrupt(),
        acts::gzip(),
        acts::fail(500, "UNKNOWN"),
        acts::not_modified_unasked(),
        acts::redirect(307, "/v2/nowhere"),
        acts::redirect(307, "file:///etc/passwd"),
        acts::answer(204, "text/plain", ""),
    ];
    for (seed, act) in acts.into_iter().enumerate() {
        let bytes = blob(seed as u64 + 100, 30_000);
        let digest = upstream.blob("app", &bytes);
        let target = format!("/v2/app/blobs/{digest}");
        upstream.script("GET", &target, .., act);
        let got = cistern.get(&target).await;
        assert!(!got.complete(), "act {seed}: {}", got.summary());
        cistern.settle().await;
        assert!(!is_stored(&cistern, &digest), "act {seed}: something was kept");
        upstream.unscript();
        crate::common::eventually("the next healthy request succeeds", || async {
            cistern.get(&target).await.complete()
        })
        .await;
        cistern.get(&target).await.assert_is(&bytes);
    }
    check(&cistern).await;
}

#[tokio::test]
async fn foreign_urls_in_a_manifest_are_never_visited() {
    let (upstream, trap) = (Upstream::start().await, Upstream::start().await);
    let layer = blob(13, 100);
    let text = format!(
        r#"{{"schemaVersion":2,"mediaType":"{}","config":{{"mediaType":"a","digest":"{d}","size":1}},
           "layers":[{{"mediaType":"application/vnd.oci.image.layer.nondistributable.v1.tar","digest":"{d}","size":100,"urls":["{}/layer"]}}]}}"#,
        media::OCI_MANIFEST,
        trap.url(),
        d = sha256(&layer),
    );
    let digest = upstream.manifest("app", media::OCI_MANIFEST, &text.clone().into());
    let cistern = Cistern::start(&upstream, "").await;
    cistern.get(format!("/v2/app/manifests/{digest}")).await.assert_is(&text.into());
    cistern.get(format!("/v2/app/blobs/{}", sha256(&layer))).await.assert_fails(404);
    assert_eq!(trap.connections(), 0);
}

#[tokio::test]
async fn upstream_is_asked_for_every_kind_of_manifest_and_for_no_compression() {
    let upstream = Upstream::start().await;
    let image = image(25);
    upstream.image("app", "1.0", &image);
    let cistern = Cistern::start(&upstream, "").await;
    let ask = Ask::get("/v2/app/manifests/1.0").with("accept", media::DOCKER_MANIFEST).with("accept-encoding", "gzip");
    cistern.send(ask.with("cookie", "CANARY=1").with("x-forwarded-for", "10.0.0.1")).await.assert_is(&image.manifest);
    let target = format!("/v2/app/blobs/{}", sha256(&image.config));
    cistern.send(Ask::get(target).with("accept-encoding", "zstd;q=1.0, gzip;q=0.8")).await.assert_is(&image.config);
    for entry in upstream.log() {
        let request = entry.request;
        assert!(request.header("accept-encoding").is_none_or(|value| value == "identity"), "{request:?}");
        assert!(request.header("cookie").is_none(), "{request:?}");
        if request.path.contains("/manifests/") {
            let accept: Vec<_> =
                request.headers.iter().filter(|(n, _)| n == "accept").map(|(_, v)| v.as_str()).collect();
            for kind in [media::OCI_INDEX, media::OCI_MANIFEST, media::DOCKER_LIST, media::DOCKER_MANIFEST] {
                assert!(accept.join(", ").contains(kind), "{kind} is not asked for: {accept:?}");
            }
        }
    }
}

#[tokio::test]
async fn an_image_with_a_shared_layer_downloads_it_once() {
    let upstream = Upstream::start().await;
    let base = blob(26, 40_000);
    let (one, two) = (image_of(27, vec![base.clone()], None), image_of(28, vec![base.clone()], None));
    upstream.image("app", "1", &one);
    upstream.image("app", "2", &two);
    let cistern = Cistern::start(&upstream, "").await;
    for tag in ["1", "2"] {
        assert!(cistern.get(format!("/v2/app/manifests/{tag}")).await.complete());
        cistern.get(format!("/v2/app/blobs/{}", sha256(&base))).await.assert_is(&base);
    }
    assert_eq!(upstream.count("GET", &format!("/v2/app/blobs/{}", sha256(&base))), 1);
    check(&cistern).await;
}

/// containerd and dockerd: HEAD of the tag, then GET of the digest that it named.
async fn resolve_then_fetch(cistern: &Cistern, repo: &str, tag: &str) -> (u16, Bytes) {
    let head = cistern.head(format!("/v2/{repo}/manifests/{tag}")).await;
    if head.status != 200 {
        return (head.status, Bytes::new());
    }
    let digest = head.header("docker-content-digest").to_owned();
    let got = cistern.get(format!("/v2/{repo}/manifests/{digest}")).await;
    assert!(!got.complete() || got.digest.to_string() == digest, "{}", got.summary());
    (got.status, got.body)
}

#[tokio::test]
async fn a_tag_that_was_resolved_by_head_is_known_when_upstream_is_down() {
    let upstream = Upstream::start().await;
    let image = image(30);
    for (repo, tag) in [("app", "1.2"), ("app", "latest"), ("copy", "1.2")] {
        upstream.image(repo, tag, &image);
    }
    let cistern = Cistern::start(&upstream, "").await;
    // The first brings the manifest; the others find it in the store, under another tag and under another name.
    for (repo, tag) in [("app", "1.2"), ("app", "latest"), ("copy", "1.2")] {
        assert_eq!(resolve_then_fetch(&cistern, repo, tag).await, (200, image.manifest.clone()), "{repo}:{tag}");
    }
    assert_eq!(upstream.count("GET", "*/manifests/*"), 1, "one download for all names");
    cistern.settle().await;
    upstream.down();
    for (repo, tag) in [("app", "1.2"), ("app", "latest"), ("copy", "1.2")] {
        assert_eq!(resolve_then_fetch(&cistern, repo, tag).await, (200, image.manifest.clone()), "{repo}:{tag}");
        cistern.get(format!("/v2/{repo}/manifests/{tag}")).await.assert_is(&image.manifest);
    }
    check(&cistern).await;
}

#[tokio::test]
async fn an_upstream_over_http2_and_tls_serves_a_whole_image() {
    let (upstream, ca) = Upstream::start_h2().await;
    let image = image(34);
    upstream.image("app", "1.0", &image);
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("ca.pem");
    std::fs::write(&path, ca).unwrap();
    let cistern = Cistern::start(&upstream, &format!("ca = '{}'", path.display())).await;
    cistern.get("/v2/app/manifests/1.0").await.assert_is(&image.manifest);
    for part in image.layers.iter().chain([&image.config]) {
        cistern.get(format!("/v2/app/blobs/{}", sha256(part))).await.assert_is(part);
    }
    assert_eq!(upstream.connections(), 1, "one connection carries everything");
    // A certificate that nobody vouches for is refused, and no request is sent.
    let (stranger, _) = Upstream::start_tls().await;
    stranger.image("app", "1.0", &image);
    let cistern = Cistern::start(&stranger, "").await;
    cistern.get("/v2/app/manifests/1.0").await.assert_fails(502);
    assert_eq!(stranger.log().len(), 0);
}
/// HTTP/1.0 has no other sign of an end than that of the connection.
#[tokio::test]
async fn an_http_1_0_client_never_takes_a_part_for_the_whole() {
    let upstream = Upstream::start().await;
    let bytes = blob(90, 300_000);
    let digest = upstream.blob("app", &bytes);
    let gate = Gate::new();
    upstream.script("GET", "*/blobs/*", .., acts::both(acts::chunked(), acts::hold_at(200_000, &gate)));
    let cistern = Cistern::start(&upstream, "").await;
    let ask = async || {
        let mut stream = TcpStream::connect(cistern.client().0).await.unwrap();
        let request = format!("GET /v2/app/blobs/{digest} HTTP/1.0\r\nHost: localhost\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        answer
    };
    let answer = String::from_utf8(ask().await).unwrap();
    assert!(answer.starts_with("HTTP/1.0 505 ") && answer.contains("UNSUPPORTED"), "{answer}");
    gate.open();
    cistern.settle().await;
    let answer = ask().await;
    assert!(answer.starts_with(b"HTTP/1.0 200 ") && answer.ends_with(&bytes), "its length is known now");
}

#[tokio::test]
async fn that_a_digest_is_no_manifest_does_not_make_its_blob_missing() {
    let upstream = Upstream::start().await;
    let bytes = blob(70, 5000);
    let digest = upstream.blob("app", &bytes);
    let cistern = Cistern::start(&upstream, "").await;
    let manifest = format!("/v2/app/manifests/{digest}");
    assert_eq!(cistern.head(&manifest).await.status, 404);
    cistern.get(&manifest).await.assert_fails(404);
    cistern.get(format!("/v2/app/blobs/{digest}")).await.assert_is(&bytes);
    check(&cistern).await;
}

/// HTTP/1.1 leaves it out by itself.
#[tokio::test]
async fn a_refused_head_has_no_body_over_http2() {
    let upstream = Upstream::start().await;
    let cistern = Cistern::start(&upstream, "").await;
    for target in ["/v2/app/manifests/none", "/v2/app/manifests/sha256:bad", "/v2/"] {
        let got = cistern.send(Ask::new(http::Method::HEAD, target).http2()).await;
        assert!(got.status >= 400, "{}", got.summary());
        assert_eq!(got.body.len(), 0, "{}", got.summary());
        assert_ne!(got.header("content-length"), "0", "its length is that of a GET's: {}", got.summary());
    }
}

#[tokio::test]
async fn every_answer_has_an_id_of_its_own_and_each_field_once() {
    let upstream = Upstream::start().await;
    let image = image(7);
    upstream.image("app", "1", &image);
    let cistern = Cistern::start(&upstream, "").await;
    let manifests = ["/v2/app/manifests/1".to_owned(), format!("/v2/app/manifests/{}", image.digest)];
    let blobs = image.layers.iter().map(|layer| format!("/v2/app/blobs/{}", sha256(layer)));
    let targets: Vec<String> = manifests.into_iter().chain(blobs).collect();
    for target in &targets {
        assert!(cistern.get(target).await.complete());
    }
    cistern.settle().await;
    let mut ids = std::collections::HashSet::new();
    let mut judge = |got: &Got, status: u16| {
        let seen = got.summary();
        assert_eq!(got.status, status, "{seen}");
        for name in ["x-request-id", "docker-distribution-api-version", "docker-content-digest", "cache-status", "etag"]
        {
            let count = got.headers.get_all(name).iter().count();
            assert_eq!(
                count,
                usize::from(status < 400 || name.starts_with('x') || name.ends_with("version")),
                "{name}: {seen}"
            );
        }
        assert!(got.headers.get_all("content-length").iter().count() <= 1, "{seen}");
        let id = got.header("x-request-id").to_owned();
        assert!(id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit()), "{id:?}: {seen}");
        assert!(ids.insert(id), "each has another: {seen}");
    };
    for target in &targets {
        for form in [|ask: Ask| ask, Ask::http2] {
            judge(&cistern.send(form(Ask::get(target))).await, 200);
            judge(&cistern.send(form(Ask::head(target))).await, 200);
            judge(&cistern.send(form(Ask::get(target).with("range", "bytes=1-2"))).await, 206);
            judge(&cistern.send(form(Ask::get(target).with("if-none-match", "*"))).await, 304);
            judge(&cistern.send(form(Ask::get(target).with("x-request-id", ""))).await, 200);
            judge(&cistern.send(form(Ask::get(target).with("x-request-id", "a b"))).await, 200);
            judge(
                &cistern.send(form(Ask::get(format!("{target}x")))).await,
                if target.ends_with("/1") { 404 } else { 400 },
            );
            let own = cistern.send(form(Ask::get(target).with("x-request-id", "my-id.1"))).await;
            assert_eq!(own.header("x-request-id"), "my-id.1");
        }
    }
}
