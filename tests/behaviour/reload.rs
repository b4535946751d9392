//! A configuration that is read again: what holds from then on, for whom, and what changes nothing.

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

use crate::common::content::{blob, image};
use crate::common::invariants::{check, is_stored, stored_bytes};
use crate::common::{Cistern, Gate, Upstream, acts, eventually, patiently};

const MIB: usize = 1 << 20;

#[tokio::test]
async fn upstreams_come_and_go_and_who_reads_reads_on() {
    let (first, second) = (Upstream::start().await, Upstream::start().await);
    let (bytes, more) = (blob(1, 900_000), blob(2, 900_000));
    let (old, new) = (first.blob("app", &bytes), second.blob("app", &more));
    let (old, new) = (format!("/v2/up/app/blobs/{old}"), format!("/v2/other/app/blobs/{new}"));
    let mut cistern = Cistern::start(&first, "").await;
    cistern.get(&new).await.assert_fails(404);
    let gate = Gate::new();
    let asked = old.replace("/v2/up/", "/v2/");
    first.script("GET", &asked, .., acts::hold_at(300_000, &gate));
    let reader = cistern.open(&old).await;
    gate.reached(1).await;

    let done = cistern.reload(|setup| setup.without("up").upstream("other", &second, "")).await.unwrap();
    assert_eq!(done.applied, ["listener", "upstream.other", "upstream.up left out"], "{:?}", done.pending);
    cistern.get(&new).await.assert_is(&more);
    cistern.get(new.replace("/v2/other/", "/v2/")).await.assert_is(&more);
    cistern.get(&old).await.assert_fails(404);
    gate.open();
    reader.finish().await.assert_is(&bytes);

    let done = cistern.reload(|setup| setup.upstream("up", &first, "")).await.unwrap();
    assert_eq!(done.applied, ["upstream.up"]);
    first.forget();
    cistern.get(&old).await.assert_is(&bytes);
    assert_eq!(first.count("GET", &asked), 0, "what it had is there still");
    check(&cistern).await;
}

#[tokio::test]
async fn how_long_tags_are_served_changes_at_once() {
    let upstream = Upstream::start().await;
    upstream.image("app", "1.0", &image(1));
    let mut cistern = Cistern::start(&upstream, "tags = \"1h\"").await;
    let target = "/v2/app/manifests/1.0";
    cistern.get(target).await.assert_is(&image(1).manifest);
    upstream.image("app", "1.0", &image(2));
    cistern.get(target).await.assert_is(&image(1).manifest);
    let done =
        cistern.reload(|setup| setup.without("up").upstream("up", &upstream, "tags = \"always\"")).await.unwrap();
    assert_eq!(done.applied, ["upstream.up.tags = \"always\""]);
    cistern.get(target).await.assert_is(&image(2).manifest);
    check(&cistern).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_may_hold_less_gives_up_what_no_pin_keeps() {
    let upstream = Upstream::start().await;
    let kept = image(1);
    upstream.image("kept", "1.0", &kept);
    let mut cistern = Cistern::setup().upstream("up", &upstream, "").store("capacity = \"64MiB\"").start().await;
    cistern.get("/v2/kept/manifests/1.0").await.assert_is(&kept.manifest);
    let mut newer = Vec::new();
    for seed in 0..8 {
        let bytes = blob(100 + seed, MIB);
        newer.push(upstream.blob("app", &bytes));
        cistern.get(format!("/v2/app/blobs/{}", newer.last().unwrap())).await.assert_is(&bytes);
    }
    let pin = "[[pin]]\nupstream = \"up\"\nrepository = \"kept\"";
    let done = cistern.reload(|setup| setup.store("capacity = \"4MiB\"").extra(pin)).await.unwrap();
    assert_eq!(done.applied, ["pin", "store.capacity = \"4MiB\""]);
    assert_eq!(cistern.metric("ocistern_store_capacity_bytes", &[]).await, 4 << 20);
    eventually("what is too much has gone", || async { stored_bytes(cistern.root()) <= 4 << 20 }).await;
    assert!(is_stored(&cistern, &crate::common::content::sha256(&kept.manifest)), "it is pinned, and the oldest");
    assert!(newer.iter().any(|digest| is_stored(&cistern, digest)), "no more than was needed");
    check(&cistern).await;
}

#[tokio::test]
async fn what_cannot_be_used_changes_nothing() {
    let upstream = Upstream::start().await;
    let bytes = blob(1, 1000);
    let target = format!("/v2/app/blobs/{}", upstream.blob("app", &bytes));
    let mut cistern = Cistern::start(&upstream, "").await;
    let broken = "ca = \"/nonexistent/ca.pem\"\ntags = \"always\"";
    let error = cistern.reload(|setup| setup.upstream_at("broken", "https://broken.test", broken)).await.unwrap_err();
    assert!(error.contains("upstream broken") && error.contains("/nonexistent/ca.pem"), "{error}");
    cistern.get("/v2/broken/app/tags/list").await.assert_fails(404);
    cistern.get(&target).await.assert_is(&bytes);
    let tls = "tls = { certificate = \"/nonexistent/a.pem\", key = \"/nonexistent/a.key\" }";
    let error = cistern.reload(|setup| setup.without("broken").listener(tls)).await.unwrap_err();
    assert!(error.contains("TLS of the listener") && error.contains("/nonexistent/a.pem"), "{error}");
    cistern.get(&target).await.assert_is(&bytes);
    check(&cistern).await;
}

#[tokio::test]
async fn an_upstream_stays_where_it_is_until_the_next_start() {
    let (first, second) = (Upstream::start().await, Upstream::start().await);
    first.image("app", "1.0", &image(1));
    second.image("app", "1.0", &image(2));
    let mut cistern = Cistern::start(&first, "tags = \"always\"").await;
    let moved = |setup: crate::common::cistern::Setup| setup.without("up").upstream("up", &second, "tags = \"always\"");
    let done = cistern.reload(moved).await.unwrap();
    assert_eq!((done.applied.len(), done.pending), (0, vec!["upstream.up.url".to_owned()]));
    cistern.get("/v2/app/manifests/1.0").await.assert_is(&image(1).manifest);
    cistern.restart().await;
    cistern.get("/v2/app/manifests/1.0").await.assert_is(&image(2).manifest);
    check(&cistern).await;
}

#[tokio::test]
async fn limits_of_connections_hold_for_those_that_come() {
    let upstream = Upstream::start().await;
    let bytes = blob(1, 1000);
    let target = format!("/v2/app/blobs/{}", upstream.blob("app", &bytes));
    // Longer than the tests wait for anything.
    let before = "[limits]\nidle = \"10m\"\ndrain = \"10m\"";
    let mut cistern = Cistern::setup().upstream("up", &upstream, "").extra(before).start().await;
    let done = cistern.reload(|setup| setup.extra("[limits]\nidle = \"1s\"\ndrain = \"1s\"")).await.unwrap();
    assert_eq!(done.applied, ["limits.drain = \"1s\"", "limits.idle = \"1s\""]);
    cistern.get(&target).await.assert_is(&bytes);
    let mut idle = TcpStream::connect(cistern.client().0).await.unwrap();
    let request = format!("GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n");
    idle.write_all(request.as_bytes()).await.unwrap();
    let mut said = Vec::new();
    patiently("the idle connection is closed", idle.read_to_end(&mut said)).await.unwrap();
    assert!(said.starts_with(b"HTTP/1.1 200 ") && said.ends_with(&bytes));
    // On the admin interface too, by either way to it.
    let healthz = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let mut on_address = TcpStream::connect(cistern.admin_address()).await.unwrap();
    let mut on_socket = UnixStream::connect(cistern.root().join("ocistern.sock")).await.unwrap();
    on_address.write_all(healthz).await.unwrap();
    on_socket.write_all(healthz).await.unwrap();
    for idle in [&mut on_address as &mut (dyn AsyncRead + Unpin), &mut on_socket] {
        let mut said = Vec::new();
        patiently("the idle connection of the admin interface is closed", idle.read_to_end(&mut said)).await.unwrap();
        assert!(said.starts_with(b"HTTP/1.1 200 "));
    }
    let gate = Gate::new();
    let held = blob(2, 900_000);
    let other = format!("/v2/app/blobs/{}", upstream.blob("app", &held));
    upstream.script("GET", &other, .., acts::hold_at(300_000, &gate));
    let reader = cistern.open(&other).await;
    // Within the new time for running answers, of which one never ends.
    cistern.stop().await;
    assert!(!reader.finish().await.complete());
}
