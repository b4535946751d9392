//! Freshness: when a tag is asked again, what stands in when upstream cannot say, and what may not.

use crate::common::content::{blob, image, sha256};
use crate::common::invariants::check;
use crate::common::upstream::{Act, Auth, Cut};
use crate::common::{Ask, Cistern, Client, Daemon, Gate, Image, Upstream, acts, clock, eventually};

const TARGET: &str = "/v2/app/manifests/latest";

/// An upstream with `app:latest`, and an ocistern that knows it and asks it by `keys`.
async fn known(keys: &str) -> (Cistern, Upstream, Image) {
    let upstream = Upstream::start().await;
    let image = image(1);
    upstream.image("app", "latest", &image);
    let cistern = Cistern::start(&upstream, keys).await;
    cistern.get(TARGET).await.assert_is(&image.manifest);
    cistern.settle().await;
    upstream.forget();
    (cistern, upstream, image)
}

#[tokio::test]
async fn always_asks_by_head_each_time() {
    let (cistern, upstream, image) = known("tags = \"always\"").await;
    for round in 1..=3 {
        let got = cistern.get(TARGET).await;
        got.assert_is(&image.manifest);
        assert_eq!(got.header("cache-status"), "ocistern; hit");
        assert_eq!(upstream.count("HEAD", TARGET), round);
    }
    assert_eq!(cistern.head(TARGET).await.status, 200);
    assert_eq!(upstream.count("HEAD", TARGET), 4);
    assert_eq!(upstream.count("GET", "*"), 0, "freshness costs no pull");
    let accept = upstream.requests("HEAD", TARGET)[0].request.header("accept").unwrap_or_default().to_owned();
    assert!(accept.contains("vnd.oci.image.index.v1+json") && accept.contains("vnd.docker"), "{accept}");
    check(&cistern).await;
}

#[tokio::test]
async fn a_tag_that_moved_is_found_and_the_old_digest_stays() {
    let (cistern, upstream, old) = known("tags = \"always\"").await;
    let new = image(2);
    upstream.image("app", "latest", &new);
    let got = cistern.get(TARGET).await;
    got.assert_is(&new.manifest);
    assert_eq!(got.header("docker-content-digest"), new.digest.to_string());
    cistern.settle().await;
    let again = cistern.get(TARGET).await;
    again.assert_is(&new.manifest);
    assert_eq!(again.header("cache-status"), "ocistern; hit");
    cistern.get(format!("/v2/app/manifests/{}", old.digest)).await.assert_is(&old.manifest);
    // And back: the old content is in the store, so a HEAD is enough.
    upstream.tag("app", "latest", old.digest);
    upstream.forget();
    cistern.get(TARGET).await.assert_is(&old.manifest);
    assert_eq!(upstream.count("GET", "*"), 0);
    check(&cistern).await;
}

#[tokio::test]
async fn a_push_behind_the_back_is_found_after_expiry() {
    let (cistern, upstream, _) = known("tags = \"1s\"").await;
    let new = image(3);
    upstream.image("app", "latest", &new);
    eventually("the new manifest is served", || async { cistern.get(TARGET).await.digest == new.digest }).await;
}

#[tokio::test]
async fn digests_are_never_asked_again() {
    let (cistern, upstream, image) = known("tags = \"always\"").await;
    let target = format!("/v2/app/manifests/{}", image.digest);
    for _ in 0..3 {
        cistern.get(&target).await.assert_is(&image.manifest);
    }
    assert_eq!(upstream.log().len(), 0);
}

#[tokio::test]
async fn within_its_time_a_tag_is_not_asked() {
    for keys in ["tags = \"5m\"", "tags = \"immutable\"", ""] {
        let (cistern, upstream, old) = known(keys).await;
        upstream.image("app", "latest", &image(4));
        for _ in 0..5 {
            cistern.get(TARGET).await.assert_is(&old.manifest);
        }
        assert_eq!(upstream.log().len(), 0, "{keys}");
    }
}

#[tokio::test]
async fn the_first_rule_that_matches_decides() {
    let upstream = Upstream::start().await;
    let old = image(5);
    for repo in ["library/app", "library/deep/app", "other"] {
        for tag in ["v1", "latest"] {
            upstream.image(repo, tag, &old);
        }
    }
    let rules = r#"
        [[upstream."up".rule]]
        repository = "library/*"
        tag = "v*"
        tags = "immutable"
        [[upstream."up".rule]]
        repository = "library/**"
        tags = "always"
        [[upstream."up".rule]]
        tag = "v*"
        tags = "always"
    "#;
    let cistern = Cistern::setup().upstream("up", &upstream, "tags = \"immutable\"").extra(rules).start().await;
    let cases = [
        ("library/app", "v1", false),
        ("library/app", "latest", true),
        ("library/deep/app", "v1", true),
        ("library/deep/app", "latest", true),
        ("other", "v1", true),
        ("other", "latest", false),
    ];
    for (repo, tag, _) in cases {
        cistern.get(format!("/v2/{repo}/manifests/{tag}")).await.assert_is(&old.manifest);
    }
    cistern.settle().await;
    let new = image(6);
    for (repo, tag, found) in cases {
        upstream.image(repo, tag, &new);
        let expected = if found { &new } else { &old };
        cistern.get(format!("/v2/{repo}/manifests/{tag}")).await.assert_is(&expected.manifest);
    }
}

/// An upstream with `open` for everybody and `secret` for ann, and what of them is asked for.
async fn kept_for_readers() -> (Upstream, [(&'static str, Image); 2]) {
    let upstream = Upstream::start().await;
    let images = [("open", image(7)), ("secret", image(8))];
    for (repo, image) in &images {
        upstream.image(repo, "v1", image);
    }
    upstream.registry(|registry| {
        registry.auth = Auth::Accounts;
        registry.accounts.user("ann", "CANARY-ann");
        registry.accounts.allow("ann", "secret", "pull");
        registry.accounts.public.insert("open".to_owned());
    });
    (upstream, images)
}

/// Everything of an image that is kept.
async fn pull_all(client: Client, repo: &str, image: &Image, credential: bool) {
    let ask = |path: String| {
        let ask = Ask::get(format!("/v2/{repo}/{path}"));
        if credential { ask.basic("ann", "CANARY-ann") } else { ask }
    };
    let layer = &image.layers[0];
    client.send(ask("manifests/v1".to_owned())).await.assert_is(&image.manifest);
    client.send(ask(format!("manifests/{}", image.digest))).await.assert_is(&image.manifest);
    client.send(ask(format!("blobs/{}", sha256(layer)))).await.assert_is(layer);
    let part = client.send(ask(format!("blobs/{}", sha256(layer))).with("range", "bytes=5-99")).await;
    assert_eq!((part.status, &part.body[..]), (206, &layer[5..100]), "{}", part.summary());
    if !credential {
        // What a caller got is not kept.
        let list = client.send(ask("tags/list".to_owned())).await;
        assert_eq!((list.status, &list.body[..]), (200, &br#"{"name":"open","tags":["v1"]}"#[..]));
    }
}

/// What is sealed answers from the store what is everybody's there, and nothing else to nobody.
async fn assert_sealed(client: Client, upstream: &Upstream, [(open, public), (secret, private)]: &[(&str, Image); 2]) {
    upstream.forget();
    pull_all(client, open, public, false).await;
    let (layer, digest) = (sha256(&private.layers[0]), private.digest);
    for path in ["manifests/v1", &format!("manifests/{digest}"), &format!("blobs/{layer}"), "tags/list"] {
        for ask in [Ask::get(format!("/v2/{secret}/{path}")), Ask::head(format!("/v2/{secret}/{path}"))] {
            // Nobody can be asked who may: after a start that is not known of anybody.
            for ask in [ask.clone(), ask.clone().basic("eve", "CANARY-eve"), ask.basic("ann", "CANARY-ann")] {
                let got = client.send(ask).await;
                assert!(got.status >= 400 && got.cut.is_none(), "{path}: {}", got.summary());
            }
        }
    }
    let unknown = client.get(format!("/v2/{open}/manifests/unknown")).await;
    assert!(unknown.status >= 400 && !unknown.error_code().is_empty(), "{}", unknown.summary());
    assert_eq!(upstream.log().len(), 0, "not asked, though it is there");
}

#[tokio::test]
async fn what_is_sealed_is_served_and_never_asked() {
    let (upstream, images) = kept_for_readers().await;
    let [(open, public), (secret, private)] = &images;
    let mut cistern = Cistern::start(&upstream, "").await;
    pull_all(cistern.client(), open, public, false).await;
    pull_all(cistern.client(), secret, private, true).await;
    cistern.settle().await;
    cistern.stop().await;
    cistern.configure("up", "tags = \"sealed\"");
    cistern.start_again().await;
    assert_sealed(cistern.client(), &upstream, &images).await;
    check(&cistern).await;
}

#[tokio::test]
async fn serve_sealed_seals_every_upstream() {
    let (upstream, images) = kept_for_readers().await;
    let [(open, public), (secret, private)] = &images;
    let directory = tempfile::tempdir().unwrap();
    let config = Daemon::configure(directory.path(), &upstream, "");
    let daemon = Daemon::start(&config).await;
    pull_all(daemon.client, open, public, false).await;
    pull_all(daemon.client, secret, private, true).await;
    daemon.stop().await;
    let daemon = Daemon::start_with(&config, &["--sealed"]).await;
    assert_sealed(daemon.client, &upstream, &images).await;
    daemon.stop().await;
}

#[tokio::test]
async fn what_a_rule_seals_is_served_by_tag_and_never_asked() {
    let upstream = Upstream::start().await;
    let image = image(7);
    upstream.image("app", "latest", &image);
    upstream.image("sealed", "latest", &image);
    let rules = "[[upstream.\"up\".rule]]\nrepository = \"sealed\"\ntags = \"sealed\"\n";
    let cistern = Cistern::setup().upstream("up", &upstream, "").extra(rules).start().await;
    let target = "/v2/sealed/manifests/latest";
    let got = cistern.get(target).await;
    assert!(got.status >= 400 && got.cut.is_none(), "{}", got.summary());
    assert!(!got.error_code().is_empty());
    assert_eq!(upstream.count("*", "/v2/sealed/*"), 0);
    cistern.get(TARGET).await.assert_is(&image.manifest);
}

#[tokio::test]
async fn where_upstream_cannot_say_the_known_tag_is_served_as_stale() {
    let _warp = clock::warp();
    let acts: Vec<(&str, Act)> = vec![
        ("500", acts::fail(500, "UNKNOWN")),
        ("502", acts::answer(502, "text/html", "<h1>Bad Gateway</h1>")),
        ("503", acts::fail(503, "UNAVAILABLE")),
        ("504", acts::answer(504, "text/plain", "")),
        ("429", acts::too_many(Some("3600"))),
        ("429 without Retry-After", acts::too_many(None)),
        ("reset", acts::no_head(Cut::Reset)),
        ("end of the stream", acts::no_head(Cut::Fin)),
        ("no HTTP", acts::garbage()),
    ];
    for (name, act) in acts {
        let (cistern, upstream, image) = known("tags = \"always\"").await;
        upstream.script("*", "*", .., act);
        for ask in [Ask::get(TARGET), Ask::get(TARGET).http2()] {
            let got = cistern.send(ask).await;
            got.assert_is(&image.manifest);
            assert_eq!(got.header("cache-status"), "ocistern; hit; detail=stale", "{name}");
        }
        let head = cistern.head(TARGET).await;
        assert_eq!((head.status, head.header("cache-status")), (200, "ocistern; hit; detail=stale"), "{name}");
        assert!(cistern.metric("ocistern_requests_total", &["result=\"stale\""]).await >= 3, "{name}");
        upstream.unscript();
        eventually("fresh again", || async { cistern.get(TARGET).await.header("cache-status") == "ocistern; hit" })
            .await;
        check(&cistern).await;
    }
}

#[tokio::test]
async fn a_refused_connection_is_stale_and_soon_costs_nothing() {
    let _warp = clock::warp();
    let (cistern, upstream, image) = known("tags = \"always\"").await;
    upstream.down();
    for _ in 0..20 {
        let got = cistern.get(TARGET).await;
        got.assert_is(&image.manifest);
        assert_eq!(got.header("cache-status"), "ocistern; hit; detail=stale");
    }
    let unknown = cistern.get("/v2/app/manifests/other").await;
    assert!(matches!(unknown.status, 502..=504), "{}", unknown.summary());
    assert!(!unknown.error_code().is_empty());
}

#[tokio::test]
async fn where_upstream_says_no_nothing_stale_is_served() {
    let _warp = clock::warp();
    let challenge = "Bearer realm=\"https://elsewhere.example/token\"";
    let acts: Vec<(&str, Act, [u16; 3])> = vec![
        ("404", acts::fail(404, "MANIFEST_UNKNOWN"), [404; 3]),
        ("404 without a body", acts::answer(404, "text/plain", ""), [404; 3]),
        ("403", acts::fail(403, "DENIED"), [401; 3]),
        ("401", acts::fail(401, "UNAUTHORIZED"), [401, 403, 502]),
        ("401 with a challenge to elsewhere", acts::challenge_again(challenge), [401, 403, 502]),
    ];
    for (name, act, statuses) in acts {
        let (cistern, upstream, image) = known("tags = \"always\"").await;
        upstream.script("*", TARGET, .., act);
        let got = cistern.get(TARGET).await;
        assert!(statuses.contains(&got.status) && got.cut.is_none(), "{name}: {}", got.summary());
        assert!(!got.error_code().is_empty());
        upstream.unscript();
        eventually("it is served again", || async { cistern.get(TARGET).await.complete() }).await;
        cistern.get(TARGET).await.assert_is(&image.manifest);
    }
}

#[tokio::test]
async fn a_slow_check_holds_a_client_two_seconds_and_goes_on_behind() {
    let (cistern, upstream, old) = known("tags = \"always\"").await;
    let new = image(8);
    upstream.image("app", "latest", &new);
    let gate = Gate::new();
    upstream.script("HEAD", TARGET, 0..1, acts::hold_head(&gate));
    {
        let _warp = clock::warp();
        let got = cistern.get(TARGET).await;
        got.assert_is(&old.manifest);
        assert_eq!(got.header("cache-status"), "ocistern; hit; detail=stale");
    }
    tokio::time::resume();
    gate.open();
    eventually("the check that went on is heeded", || async { cistern.get(TARGET).await.digest == new.digest }).await;
}

#[tokio::test]
async fn an_upstream_that_never_answers_is_a_timeout() {
    let (cistern, upstream, image) = known("tags = \"always\"").await;
    let gate = Gate::new();
    upstream.script("*", "*", .., acts::hold_head(&gate));
    let _warp = clock::warp();
    let got = cistern.get("/v2/app/manifests/other").await;
    got.assert_fails(504);
    let known = cistern.get(TARGET).await;
    known.assert_is(&image.manifest);
    assert_eq!(known.header("cache-status"), "ocistern; hit; detail=stale");
}

#[tokio::test]
async fn upstreams_whose_head_is_useless_are_asked_by_one_conditional_get() {
    let acts: Vec<(&str, Act)> = vec![
        ("405", acts::fail(405, "UNSUPPORTED")),
        ("403", acts::fail(403, "DENIED")),
        ("no digest", acts::without("Docker-Content-Digest")),
    ];
    for (name, act) in acts {
        let (cistern, upstream, old) = known("tags = \"always\"").await;
        upstream.script("HEAD", "*/manifests/*", .., act);
        for _ in 0..3 {
            cistern.get(TARGET).await.assert_is(&old.manifest);
        }
        let gets = upstream.requests("GET", TARGET);
        assert!(gets.iter().all(|entry| entry.request.header("if-none-match").is_some()), "{name}: conditional");
        assert!(gets.iter().all(|entry| entry.status == 304), "{name}: {:?}", gets.last());
        assert!(upstream.count("HEAD", TARGET) <= 1, "{name}: it is remembered that HEAD is of no use");
        let new = image(9);
        upstream.image("app", "latest", &new);
        cistern.get(TARGET).await.assert_is(&new.manifest);
        check(&cistern).await;
    }
}

#[tokio::test]
async fn a_404_is_remembered_for_about_a_second() {
    let upstream = Upstream::start().await;
    upstream.image("app", "latest", &image(10));
    let cistern = Cistern::start(&upstream, "").await;
    let late = image(11);
    for _ in 0..5 {
        let got = cistern.get("/v2/app/manifests/late").await;
        got.assert_fails(404);
        assert_eq!(got.error_code(), "MANIFEST_UNKNOWN");
    }
    let asked = upstream.count("*", "/v2/app/manifests/late");
    assert!(asked < 5, "{asked} requests upstream for five within a second");
    upstream.image("app", "late", &late);
    eventually("the push is found", || async { cistern.get("/v2/app/manifests/late").await.complete() }).await;
    cistern.get("/v2/app/manifests/late").await.assert_is(&late.manifest);
}

#[tokio::test]
async fn errors_other_than_404_are_not_remembered() {
    let upstream = Upstream::start().await;
    let bytes = blob(12, 1000);
    let target = format!("/v2/app/blobs/{}", upstream.blob("app", &bytes));
    upstream.script("*", "*", 0..1, acts::fail(403, "DENIED"));
    let cistern = Cistern::start(&upstream, "").await;
    cistern.get(&target).await.assert_fails(401);
    cistern.get(&target).await.assert_is(&bytes);
    cistern.get(format!("/v2/app/blobs/{}", sha256(b"x"))).await.assert_fails(404);
}

#[tokio::test]
async fn the_limit_that_upstream_tells_is_shown_and_429_is_relayed() {
    let upstream = Upstream::start().await;
    let image = image(13);
    upstream.image("app", "latest", &image);
    upstream.script("*", "*/manifests/latest", .., acts::header("ratelimit-remaining", "76;w=21600"));
    let cistern = Cistern::start(&upstream, "").await;
    cistern.get(TARGET).await.assert_is(&image.manifest);
    let left = cistern.metric("ocistern_upstream_ratelimit_remaining", &["upstream=\"up\""]).await;
    assert_eq!(left, 76);
    upstream.script("*", "*/manifests/limited", .., acts::too_many(Some("3600")));
    let got = cistern.get("/v2/app/manifests/limited").await;
    got.assert_fails(429);
    assert_eq!(got.error_code(), "TOOMANYREQUESTS");
    assert!(!got.header("retry-after").is_empty());
}

#[tokio::test]
async fn a_dead_token_endpoint_is_upstream_being_away() {
    let upstream = Upstream::start().await;
    let image = image(14);
    upstream.image("app", "latest", &image);
    upstream.registry(|registry| {
        registry.auth = Auth::Bearer(None);
        // Used once: every check needs another.
        registry.token.expires_in = None;
        registry.token.jwt_lifetime = Some(1);
    });
    let cistern = Cistern::start(&upstream, "tags = \"always\"").await;
    cistern.get(TARGET).await.assert_is(&image.manifest);
    upstream.registry(crate::common::upstream::Registry::revoke_tokens);
    upstream.script("*", "/token", .., acts::fail(503, "UNAVAILABLE"));
    let got = cistern.get(TARGET).await;
    got.assert_is(&image.manifest);
    assert_eq!(got.header("cache-status"), "ocistern; hit; detail=stale");
}

#[tokio::test]
async fn what_was_seen_earlier_does_not_overwrite_what_was_found_later() {
    let upstream = Upstream::start().await;
    let (old, new) = (image(20), image(21));
    upstream.image("app", "latest", &old);
    let cistern = Cistern::start(&upstream, "tags = \"5m\"").await;
    // Seen by HEAD, not fetched.
    assert_eq!(cistern.head(TARGET).await.header("docker-content-digest"), old.digest.to_string());
    upstream.image("app", "latest", &new);
    cistern.get(TARGET).await.assert_is(&new.manifest);
    // The manifest that was seen comes into the store now; the tag has moved on since.
    cistern.get(format!("/v2/app/manifests/{}", old.digest)).await.assert_is(&old.manifest);
    cistern.settle().await;
    cistern.get(TARGET).await.assert_is(&new.manifest);
    check(&cistern).await;
}

#[tokio::test]
async fn an_answer_begun_earlier_does_not_overwrite_a_newer_one() {
    let upstream = Upstream::start().await;
    let (old, new) = (image(22), image(23));
    upstream.image("app", "latest", &new);
    upstream.image("app", "latest", &old);
    let cistern = Cistern::start(&upstream, "tags = \"5m\"").await;
    cistern.get(format!("/v2/app/manifests/{}", new.digest)).await.assert_is(&new.manifest);
    let gate = Gate::new();
    upstream.script("GET", TARGET, 0..1, acts::hold_head(&gate));
    let client = cistern.client();
    let mut slow = tokio::task::JoinSet::new();
    slow.spawn(async move { client.get(TARGET).await });
    gate.reached(1).await;
    upstream.tag("app", "latest", new.digest);
    assert_eq!(cistern.head(TARGET).await.header("docker-content-digest"), new.digest.to_string());
    gate.open();
    slow.join_next().await.unwrap().unwrap().assert_is(&old.manifest);
    cistern.settle().await;
    upstream.forget();
    cistern.get(TARGET).await.assert_is(&new.manifest);
    assert_eq!(upstream.log().len(), 0, "and the newer one is fresh");
    check(&cistern).await;
}
