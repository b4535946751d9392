//! The scripted upstream and the client, tested against each other: what is scripted is what happens on the wire.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use crate::common::clock::wall;
use crate::common::content::{blob, image, sha256};
use crate::common::model::Moves;
use crate::common::upstream::{Auth, Cut};
use crate::common::{Ask, Cistern, Client, Gate, Model, Upstream, acts};

fn client(upstream: &Upstream) -> Client {
    Client(SocketAddr::from(([127, 0, 0, 1], upstream.port())))
}

#[tokio::test]
async fn an_honest_registry_serves_images_ranges_and_lists() {
    let upstream = Upstream::start().await;
    let image = image(1);
    upstream.image("app", "1.0", &image);
    upstream.tag("app", "1.1", image.digest);
    let client = client(&upstream);

    let manifest = client.get("/v2/app/manifests/1.0").await;
    manifest.assert_is(&image.manifest);
    assert_eq!(manifest.header("docker-content-digest"), image.digest.to_string());
    let head = client.head("/v2/app/manifests/1.0").await;
    assert_eq!((head.status, head.length), (200, 0));
    assert_eq!(head.header("content-length"), image.manifest.len().to_string());
    client.get(format!("/v2/app/blobs/{}", sha256(&image.config))).await.assert_is(&image.config);

    let layer = format!("/v2/app/blobs/{}", sha256(&image.layers[0]));
    let part = client.send(Ask::get(&layer).with("range", "bytes=10-19")).await;
    assert_eq!((part.status, &part.body[..]), (206, &image.layers[0][10..20]));
    assert_eq!(part.header("content-range"), "bytes 10-19/8192");
    let tail = client.send(Ask::get(&layer).with("range", "bytes=8000-")).await;
    assert_eq!((tail.status, tail.length), (206, 192));

    upstream.registry(|registry| registry.page = Some(1));
    let tags = client.get("/v2/app/tags/list").await;
    assert_eq!(&tags.body[..], br#"{"name":"app","tags":["1.0"]}"#);
    assert_eq!(tags.header("link"), "</v2/app/tags/list?last=1.0&n=1>; rel=\"next\"");
    let rest = client.get("/v2/app/tags/list?last=1.0&n=1").await;
    assert_eq!((&rest.body[..], rest.header("link")), (&br#"{"name":"app","tags":["1.1"]}"#[..], ""));
    assert_eq!(client.get("/v2/app/manifests/2.0").await.error_code(), "MANIFEST_UNKNOWN");
    assert_eq!(upstream.count("GET", "/v2/app/blobs/*"), 3);
    assert_eq!(upstream.sent("GET", "/v2/app/blobs/*"), image.config.len() as u64 + 10 + 192);
}

#[tokio::test]
async fn cuts_and_lies_are_seen_as_such() {
    let upstream = Upstream::start().await;
    let bytes = blob(1, 300_000);
    let target = format!("/v2/app/blobs/{}", upstream.blob("app", &bytes));
    let client = client(&upstream);

    for cut in [Cut::Fin, Cut::Reset] {
        upstream.script("GET", "*", .., acts::cut_at(100_000, cut));
        let got = client.get(&target).await;
        assert_eq!(got.status, 200);
        assert!(got.cut.is_some() && got.length <= 100_000, "{cut:?} at byte 100000: {}", got.summary());
        upstream.unscript();
        upstream.script("GET", "*", .., acts::no_head(cut));
        assert_eq!(client.get(&target).await.status, 0, "{cut:?} before the head");
        upstream.unscript();
    }
    for act in [acts::announce(10), acts::garbage(), acts::challenge_again("Bearer realm=\"x\"")] {
        upstream.script("GET", "*", .., act);
        assert!(!client.get(&target).await.complete());
        upstream.unscript();
    }
    upstream.script("GET", "*", .., acts::announce(-10));
    let short = client.get(&target).await;
    assert!(short.complete() && short.length == 299_990, "the client believes the length: {}", short.summary());
    upstream.unscript();
    upstream.script("GET", "*", .., acts::corrupt());
    let corrupt = client.get(&target).await;
    assert!(corrupt.complete() && corrupt.length == 300_000 && corrupt.digest != sha256(&bytes));
    upstream.unscript();
    for act in [acts::chunked(), acts::until_close(), acts::informational(3), acts::drip(50_000, Duration::ZERO)] {
        upstream.script("GET", "*", .., act);
        client.get(&target).await.assert_is(&bytes);
        upstream.unscript();
    }
}

#[tokio::test]
async fn rules_act_on_the_requests_that_they_name() {
    let upstream = Upstream::start().await;
    let bytes = blob(2, 100);
    let target = format!("/v2/app/blobs/{}", upstream.blob("app", &bytes));
    upstream.script("GET", "/v2/*/blobs/*", 1..2, acts::fail(503, "UNAVAILABLE"));
    let client = client(&upstream);
    client.get(&target).await.assert_is(&bytes);
    client.get(&target).await.assert_fails(503);
    client.get(&target).await.assert_is(&bytes);
    assert_eq!(client.get("/v2/").await.status, 200);
}

#[tokio::test]
async fn gates_hold_the_head_and_the_body() {
    let upstream = Upstream::start().await;
    let bytes = blob(3, 200_000);
    let target = format!("/v2/app/blobs/{}", upstream.blob("app", &bytes));
    let (head, body) = (Gate::new(), Gate::new());
    upstream.script("GET", "*", .., acts::both(acts::hold_head(&head), acts::hold_at(1000, &body)));
    let client = client(&upstream);
    let ask = client.open(Ask::get(&target));
    let release = async {
        upstream.until("GET", "*", 1).await;
        head.reached(1).await;
        head.open();
    };
    let (live, ()) = tokio::join!(ask, release);
    let mut live = live.unwrap();
    assert_eq!(live.read_to(1000).await, 1000);
    body.reached(1).await;
    assert_eq!(upstream.sent("GET", "*"), 1000);
    body.open();
    live.finish().await.assert_is(&bytes);
}

#[tokio::test]
async fn a_down_upstream_refuses_and_comes_back_on_its_port() {
    let upstream = Upstream::start().await;
    let bytes = blob(4, 200_000);
    let target = format!("/v2/app/blobs/{}", upstream.blob("app", &bytes));
    let client = client(&upstream);
    let gate = Gate::new();
    upstream.script("GET", "*", 0..1, acts::hold_at(1000, &gate));
    let live = client.open(Ask::get(&target)).await.unwrap();
    gate.reached(1).await;
    upstream.down();
    assert!(live.finish().await.cut.is_some(), "a running transfer is cut");
    let refused = client.open(Ask::get(&target)).await.unwrap_err();
    assert!(refused.contains("refused"), "{refused}");
    upstream.up();
    client.get(&target).await.assert_is(&bytes);
}

#[tokio::test]
async fn credentials_are_asked_for_and_issued() {
    let upstream = Upstream::start().await;
    let image = image(5);
    upstream.image("app", "1.0", &image);
    upstream.registry(|registry| registry.auth = Auth::Bearer(Some(("user".into(), "CANARY".into()))));
    let client = client(&upstream);
    let refused = client.get("/v2/app/manifests/1.0").await;
    refused.assert_fails(401);
    let realm = format!("Bearer realm=\"{}/token\",service=\"scripted\"", upstream.url());
    assert_eq!(refused.header("www-authenticate"), format!("{realm},scope=\"repository:app:pull\""));
    client.get("/token?scope=repository:app:pull").await.assert_fails(401);
    let issued = client.send(Ask::get("/token").with("authorization", "Basic dXNlcjpDQU5BUlk=")).await;
    let token = format!("CANARY-TOKEN-{}-1", upstream.port());
    assert_eq!(issued.body, format!(r#"{{"token":"{token}","expires_in":300}}"#));
    let ask = Ask::get("/v2/app/manifests/1.0").with("authorization", &format!("Bearer {token}"));
    client.send(ask).await.assert_is(&image.manifest);
}

#[tokio::test]
async fn the_client_speaks_http2_and_redirects_name_a_storage_with_a_double_slash() {
    // The scripted upstream speaks HTTP/1.1 only, so an HTTP/2 preface ends without an answer.
    let upstream = Upstream::start().await;
    assert_eq!(client(&upstream).send(Ask::get("/v2/").http2()).await.status, 0);
    let bytes = blob(6, 10);
    let storage = Upstream::start().await;
    let location = storage.file(&bytes);
    assert!(location.contains("/data//blobs/"), "{location}");
    let path = location.strip_prefix(&storage.url()).unwrap();
    client(&storage).get(path).await.assert_is(&bytes);
    let refused = client(&storage).send(Ask::get(path).with("authorization", "Bearer x")).await;
    assert_eq!(refused.status, 400, "storage refuses credentials");
}

#[tokio::test]
async fn the_warped_clock_runs_while_sockets_work() {
    let upstream = Upstream::start().await;
    let bytes = blob(7, 100_000);
    let target = format!("/v2/app/blobs/{}", upstream.blob("app", &bytes));
    let _warp = crate::common::clock::warp();
    let before = tokio::time::Instant::now();
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert!(before.elapsed() >= Duration::from_secs(20), "the sleep was one on the warped clock");
    client(&upstream).get(&target).await.assert_is(&bytes);
}

#[tokio::test]
async fn what_lies_outside_of_the_root_is_seen() {
    let upstream = Upstream::start().await;
    let cistern = Cistern::start(&upstream, "").await;
    assert!(cistern.strays().is_empty(), "{:?}", cistern.strays());
    let climbed = cistern.root().join("../../x");
    std::fs::write(&climbed, "").unwrap();
    assert_eq!(cistern.strays(), [climbed.canonicalize().unwrap()]);
}

#[test]
fn a_file_may_be_gone_by_what_was_asked_for_and_by_nothing_else() {
    let (model, digest, other) = (Model::default(), sha256(b"a manifest"), sha256(b"another"));
    let tag = ("some/app".to_owned(), "v1".to_owned());
    let link = format!("refs/up/some/app/_links/sha256/{}", digest.hex());
    let (link, record) = (Path::new(&link), Path::new("refs/up/some/app/_tags/v1"));
    let content = format!("{{\"digest\":\"{digest}\"}}");
    let published = wall();
    let gone = |model: &Model, file: &Path, at| model.may_be_gone(file, content.as_bytes(), at, wall());
    let later = published + Duration::from_hours(1);

    model.begin(&tag, Moves::Through, Some(digest));
    assert!(gone(&model, record, later), "it is under way");
    model.end(&tag);
    assert!(gone(&model, record, published) && !gone(&model, record, later), "it had ended");
    assert!(!gone(&model, link, published) && !gone(&model, Path::new("blobs/sha256/00"), published));
    model.deleting("some/app", other);
    model.deleting("some", digest);
    assert!(!gone(&model, link, published) && !gone(&model, record, later), "of something else");
    model.deleting("some/app", digest);
    assert!(gone(&model, link, later) && gone(&model, record, later), "the manifest goes, and the tag with it");
    assert!(!model.may_be_gone(link, content.as_bytes(), published, published), "it had not been asked for by then");
    model.deleted("some/app", digest);
    assert!(gone(&model, link, published) && !gone(&model, link, later) && !gone(&model, record, later));
    model.deleting("some/app", digest);
    model.deleting("some/app", digest);
    model.deleted("some/app", digest);
    assert!(gone(&model, link, later), "one of two is still under way");
    model.deleted("some/app", digest);
    assert!(!gone(&model, link, later), "both have ended");
}
