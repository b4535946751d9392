//! What is counted of requests: once each, as what they were, in every histogram; and errors by whose they are.

use std::time::Duration;

use crate::common::content::{blob, image, sha256};
use crate::common::upstream::Auth;
use crate::common::{Ask, Cistern, Client, Daemon, Upstream, acts, eventually};

/// Requests of that kind and result, as the counter has it; both histograms must have the same.
async fn counted(cistern: &Cistern, kind: &str, result: &str) -> u64 {
    let labels = [&*format!("kind=\"{kind}\""), &*format!("result=\"{result}\"")];
    let text = cistern.metrics().await;
    let sum = |name: &str| crate::common::cistern::sum(&text, name, &labels);
    let count = sum("ocistern_requests_total");
    assert_eq!(sum("ocistern_request_duration_seconds_count"), count, "{kind} {result} has a duration each");
    count
}

async fn errors(cistern: &Cistern, cause: &str) -> u64 {
    cistern.metric("ocistern_request_errors_total", &[&format!("cause=\"{cause}\"")]).await
}

/// Codes of recent errors, the last one first.
async fn noted(cistern: &Cistern) -> Vec<String> {
    let stream = tokio::net::UnixStream::connect(cistern.root().join("ocistern.sock")).await.unwrap();
    let got = Client::send_over(stream, "localhost", Ask::get("/api/v1/errors")).await.json();
    let errors = got["errors"].as_array().unwrap();
    errors.iter().map(|error| error["code"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn each_request_is_counted_once_and_timed_twice() {
    let (upstream, image) = (Upstream::start().await, image(1));
    upstream.image("app", "1", &image);
    let cistern = Cistern::start(&upstream, "tags = \"immutable\"").await;
    let layer = format!("/v2/app/blobs/{}", sha256(&image.layers[0]));
    for _ in 0..3 {
        cistern.get("/v2/app/manifests/1").await.assert_is(&image.manifest);
        cistern.get(&layer).await.assert_is(&image.layers[0]);
        // What is asked for before it is published is no hit yet.
        cistern.settle().await;
    }
    // Without a token a HEAD may come before a push: upstream is asked.
    cistern.head(&layer).await;
    for (kind, result, count) in
        [("manifest", "miss", 1), ("manifest", "hit", 2), ("blob", "miss", 2), ("blob", "hit", 2), ("blob", "error", 0)]
    {
        assert_eq!(counted(&cistern, kind, result).await, count, "{kind} {result}");
    }
    let text = cistern.metrics().await;
    let sum = |name: &str, labels: &[&str]| crate::common::cistern::sum(&text, name, labels);
    assert_eq!(sum("ocistern_first_byte_seconds_count", &[]), sum("ocistern_requests_total", &[]));
    let bytes = 3 * (image.manifest.len() + image.layers[0].len()) as u64;
    assert_eq!(sum("ocistern_served_bytes_total", &[]), bytes, "the HEAD has none");
    let cached = sum("ocistern_served_bytes_total", &["source=\"cache\""]);
    assert!(cached >= 2 * image.layers[0].len() as u64, "both hits: {cached}");
    let all = sum("ocistern_upstream_requests_total", &[]);
    let answered = all - sum("ocistern_upstream_requests_total", &["status=\"error\""]);
    assert_eq!(sum("ocistern_upstream_request_duration_seconds_count", &[]), answered, "all of them were timed");
    assert!(text.contains("\nocistern_ready 1\n"), "{text}");
    let listener = format!("listener=\"{}\"", cistern.client().0);
    assert!(sum("ocistern_connections_total", &[&listener]) > 0);
    eventually("they are closed", || async { cistern.metric("ocistern_connections", &[&listener]).await == 0 }).await;
}

#[tokio::test]
async fn a_challenge_is_no_error_and_a_wrong_password_is() {
    let (upstream, image) = (Upstream::start().await, image(1));
    upstream.image("app", "1", &image);
    upstream.registry(|registry| registry.auth = Auth::Basic("user".into(), "right".into()));
    let cistern = Cistern::start(&upstream, "").await;
    cistern.get("/v2/").await.assert_fails(401);
    cistern.get("/v2/app/manifests/1").await.assert_fails(401);
    assert_eq!(cistern.metric("ocistern_challenges_total", &["upstream=\"up\""]).await, 2);
    assert_eq!((counted(&cistern, "other", "bypass").await, counted(&cistern, "manifest", "error").await), (2, 0));
    cistern.send(Ask::get("/v2/app/manifests/1").basic("user", "wrong")).await.assert_fails(401);
    assert_eq!((errors(&cistern, "denied").await, counted(&cistern, "manifest", "error").await), (1, 1));
    assert_eq!(cistern.metric("ocistern_challenges_total", &[]).await, 2, "who shows a credential is told no");
    let got = cistern.send(Ask::get("/v2/app/manifests/1").basic("user", "right")).await;
    got.assert_is(&image.manifest);
    assert_eq!(cistern.metric("ocistern_request_errors_total", &[]).await, 1);
}

/// The line of a step that went as it should has no `error`, by which people look for what went wrong.
#[tokio::test]
async fn a_challenge_has_no_error_in_the_log() {
    let (upstream, image) = (Upstream::start().await, image(1));
    upstream.image("app", "1", &image);
    upstream.registry(|registry| registry.auth = Auth::Basic("user".into(), "right".into()));
    let directory = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(&Daemon::configure(directory.path(), &upstream, "")).await;
    let asked = Ask::get("/v2/app/manifests/1");
    daemon.client.send(asked.clone()).await.assert_fails(401);
    daemon.client.send(asked.basic("user", "wrong")).await.assert_fails(401);
    let lines = || daemon.log().into_iter().filter(|event| event["message"] == "request").collect::<Vec<_>>();
    eventually("both are logged", || async { lines().len() >= 2 }).await;
    let said: Vec<_> = lines().iter().map(|line| (line["status"].as_u64(), line["error"].is_string())).collect();
    assert_eq!(said, [(Some(401), false), (Some(401), true)]);
}

/// A push asks of each layer whether it is there, and then brings it.
#[tokio::test]
async fn what_a_push_asks_first_is_no_error() {
    let (upstream, image) = (Upstream::start().await, image(1));
    upstream.image("app", "1", &image);
    let cistern = Cistern::start(&upstream, "").await;
    let absent = sha256(b"to be pushed");
    for target in
        [format!("/v2/app/blobs/{absent}"), format!("/v2/app/manifests/{absent}"), "/v2/app/manifests/2".into()]
    {
        assert_eq!(cistern.head(&target).await.status, 404, "{target}");
    }
    assert_eq!((counted(&cistern, "blob", "error").await, counted(&cistern, "manifest", "error").await), (0, 0));
    assert_eq!(counted(&cistern, "other", "bypass").await, 3, "they are counted all the same");
    assert_eq!(errors(&cistern, "not_found").await, 0);
    assert_eq!(noted(&cistern).await, Vec::<String>::new());
    // Who asks for the content itself wanted it; and a registry that is not configured is for somebody to mend.
    cistern.get("/v2/app/manifests/2").await.assert_fails(404);
    assert_eq!(cistern.head("/v2/registry.example/app/manifests/2").await.status, 404);
    assert_eq!(noted(&cistern).await, ["NAME_UNKNOWN", "MANIFEST_UNKNOWN"]);
    assert_eq!(errors(&cistern, "not_found").await, 2);
}

#[tokio::test]
async fn errors_tell_whose_they_are() {
    let upstream = Upstream::start().await;
    let bytes = blob(1, 300_000);
    let target = format!("/v2/app/blobs/{}", upstream.blob("app", &bytes));
    let cistern = Cistern::start(&upstream, "").await;
    cistern.get("/v2/app/manifests/none").await.assert_fails(404);
    assert_eq!(errors(&cistern, "not_found").await, 1);
    cistern.get("/v2/app/manifests/sha256:bad").await.assert_fails(400);
    assert_eq!(errors(&cistern, "client").await, 1);
    upstream.script("GET", &target, .., acts::corrupt());
    let got = cistern.get(&target).await;
    assert!(got.status != 200 || got.cut.is_some(), "wrong bytes are never whole: {}", got.summary());
    eventually("it is counted", || async {
        errors(&cistern, "broken").await + errors(&cistern, "upstream").await == 1
    })
    .await;
    let before = errors(&cistern, "upstream").await;
    assert_eq!(cistern.metric("ocistern_upstream_up", &["upstream=\"up\""]).await, 1);
    upstream.down();
    cistern.settle().await;
    let mut refused = 0;
    while cistern.metric("ocistern_upstream_up", &["upstream=\"up\""]).await == 1 {
        let got = cistern.get(format!("/v2/app/manifests/{refused}")).await;
        assert!(matches!(got.status, 502..=504), "{}", got.summary());
        refused += 1;
        assert!(refused < 20, "it is left alone in the end");
    }
    assert_eq!(errors(&cistern, "upstream").await, before + refused);
    assert_eq!(errors(&cistern, "internal").await, 0);
    // It comes back by itself, with the request that finds out.
    upstream.up();
    eventually("it is asked again", || async {
        cistern.get("/v2/app/manifests/back").await;
        cistern.metric("ocistern_upstream_up", &["upstream=\"up\""]).await == 1
    })
    .await;
}

#[tokio::test]
async fn a_client_that_leaves_before_the_head_is_counted() {
    let upstream = Upstream::start().await;
    let target = format!("/v2/app/blobs/{}", upstream.blob("app", &blob(1, 300_000)));
    let gate = crate::common::Gate::new();
    upstream.script("*", &target, .., acts::hold_head(&gate));
    let cistern = Cistern::start(&upstream, "").await;
    let client: Client = cistern.client();
    let asked = tokio::time::timeout(Duration::from_millis(300), client.get(&target)).await;
    assert!(asked.is_err(), "nothing came");
    eventually("it is counted", || async { errors(&cistern, "left").await == 1 }).await;
    assert_eq!(counted(&cistern, "blob", "error").await, 1);
    assert_eq!(cistern.metric("ocistern_first_byte_seconds_count", &["kind=\"blob\""]).await, 0, "it had no head");
    gate.open();
}
