//! Lists: tags, referrers and the catalog, as upstream gives them, and from the store when it is away.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::common::content::{artifact, image, sha256};
use crate::common::invariants::check;
use crate::common::upstream::Cut;
use crate::common::{Ask, Cistern, Direct, Gate, Got, Upstream, acts, clock};
use ocistern::cache::Found;
use ocistern::oci::{Tag, media};
use ocistern::upstream::Right;
use serde_json::Value;

#[track_caller]
fn json(got: &Got) -> Value {
    assert!(got.complete(), "{}", got.summary());
    serde_json::from_slice(&got.body).unwrap()
}

fn digests(list: &Value) -> Vec<String> {
    list["manifests"].as_array().unwrap().iter().map(|entry| entry["digest"].as_str().unwrap().to_owned()).collect()
}

/// What a `Link: <…>; rel="next"` leads to, as a path on the same server; none: the last page.
fn next(got: &Got, target: &str) -> Option<String> {
    let link = got.header("link");
    if link.is_empty() {
        return None;
    }
    assert!(link.contains("rel=\"next\"") || link.contains("rel=next"), "{link}");
    let url = link.split(['<', '>']).nth(1).unwrap();
    let path = url.find("://").map_or(url, |scheme| &url[scheme + 3..][url[scheme + 3..].find('/').unwrap()..]);
    // oras and az take the query alone and put it behind the path they asked; the path must be the same.
    let (asked, _) = target.split_once('?').unwrap_or((target, ""));
    assert_eq!(path.split('?').next().unwrap(), asked, "the Link leads elsewhere: {link}");
    Some(path.to_owned())
}

#[tokio::test]
async fn pages_are_followed_in_every_form_of_address() {
    let upstream = Upstream::start().await;
    let other = Upstream::start().await;
    let tags: Vec<String> = (10..17).map(|n| format!("v{n}")).collect();
    for tag in &tags {
        upstream.image("org/app", tag, &image(1));
    }
    upstream.registry(|registry| registry.page = Some(3));
    let cistern = Cistern::setup().upstream("default", &other, "").upstream("reg.example", &upstream, "").start().await;
    for start in [
        "/v2/org/app/tags/list?ns=reg.example",
        "/v2/org/app/tags/list?n=2&ns=reg.example",
        "/reg.example/v2/org/app/tags/list",
        "/reg.example/v2/org/app/tags/list?n=3",
        "/v2/reg.example/org/app/tags/list",
        "/v2/reg.example/org/app/tags/list?n=1",
    ] {
        let (mut target, mut seen, mut pages) = (start.to_owned(), Vec::new(), 0);
        loop {
            let got = cistern.get(&target).await;
            let page = json(&got);
            seen.extend(page["tags"].as_array().unwrap().iter().map(|tag| tag.as_str().unwrap().to_owned()));
            pages += 1;
            match next(&got, &target) {
                Some(following) => target = following,
                None => break,
            }
        }
        assert_eq!(seen, tags, "{start}");
        assert!(pages >= 3, "{start}: {pages} pages");
    }
    assert_eq!(other.log().len(), 0);
    assert!(upstream.log().iter().all(|entry| entry.request.path == "/v2/org/app/tags/list"));
    assert!(upstream.log().iter().all(|entry| !entry.request.query.contains("ns=")), "ns is ours, not upstream's");
}

#[tokio::test]
async fn an_absolute_link_of_upstream_is_made_ours() {
    let upstream = Upstream::start().await;
    upstream.image("app", "a", &image(1));
    let link = format!("<{}/v2/app/tags/list?last=a&n=1&orderby=>; rel=\"next\"", upstream.url());
    upstream.script("GET", "*/tags/list", .., acts::header("Link", link));
    let cistern = Cistern::start(&upstream, "").await;
    let got = cistern.get("/v2/app/tags/list?n=1").await;
    let following = next(&got, "/v2/app/tags/list").unwrap();
    assert!(following.contains("last=a") && following.contains("n=1"), "{following}");
    assert!(!got.header("link").contains(&upstream.port().to_string()), "{}", got.header("link"));
}

#[tokio::test]
async fn a_new_tag_is_listed_at_once_and_the_last_list_stands_in_when_upstream_is_away() {
    let upstream = Upstream::start().await;
    upstream.image("app", "a", &image(1));
    let cistern = Cistern::start(&upstream, "").await;
    let target = "/v2/app/tags/list";
    assert_eq!(json(&cistern.get(target).await)["tags"], serde_json::json!(["a"]));
    upstream.image("app", "b", &image(2));
    let got = cistern.get(target).await;
    assert_eq!(json(&got)["tags"], serde_json::json!(["a", "b"]));
    assert!(got.header("content-type").starts_with("application/json"));
    cistern.settle().await;

    upstream.script("*", "*", .., acts::fail(503, "UNAVAILABLE"));
    assert_eq!(json(&cistern.get(target).await)["tags"], serde_json::json!(["a", "b"]));
    upstream.unscript();
    upstream.down();
    for ask in [Ask::get(target), Ask::get(target).http2()] {
        let stale = cistern.send(ask).await;
        assert_eq!(stale.header("cache-status"), "ocistern; hit; detail=stale");
        assert_eq!(json(&stale), json(&got));
    }
    let unknown = cistern.get("/v2/other/tags/list").await;
    assert!(matches!(unknown.status, 502..=504), "{}", unknown.summary());
    assert!(!unknown.error_code().is_empty());
}

#[tokio::test]
async fn a_stale_list_survives_a_restart_and_not_a_refusal() {
    let upstream = Upstream::start().await;
    upstream.image("app", "a", &image(1));
    let mut cistern = Cistern::start(&upstream, "").await;
    let target = "/v2/app/tags/list";
    let fresh = json(&cistern.get(target).await);
    cistern.settle().await;
    upstream.down();
    cistern.restart().await;
    assert_eq!(json(&cistern.get(target).await), fresh);
    upstream.up();
    // Who showed nothing is asked to, where upstream refuses.
    for (said, code, status) in [(404, "NAME_UNKNOWN", 404), (403, "DENIED", 401)] {
        upstream.script("*", target, .., acts::fail(said, code));
        crate::common::eventually("upstream's refusal is relayed", || async {
            cistern.get(target).await.status == status
        })
        .await;
        upstream.unscript();
    }
}

#[tokio::test]
async fn referrers_are_passed_through_filtered_and_kept() {
    let upstream = Upstream::start().await;
    let subject = image(1);
    upstream.image("app", "1.0", &subject);
    let signature = artifact("application/vnd.example.signature", &subject.digest, 1);
    let sbom = artifact("application/vnd.example.sbom", &subject.digest, 2);
    for referrer in [&signature, &sbom] {
        upstream.manifest("app", referrer.media_type, &referrer.manifest);
    }
    let cistern = Cistern::start(&upstream, "").await;
    let target = format!("/v2/app/referrers/{}", subject.digest);
    let all = cistern.get(&target).await;
    assert_eq!(all.header("content-type"), media::OCI_INDEX);
    let mut listed = digests(&json(&all));
    listed.sort();
    let mut expected = vec![signature.digest.to_string(), sbom.digest.to_string()];
    expected.sort();
    assert_eq!(listed, expected);
    let filter = "?artifactType=application%2Fvnd.example.sbom";
    let filtered = cistern.get(format!("{target}{filter}")).await;
    assert_eq!(filtered.header("oci-filters-applied"), "artifactType");
    assert_eq!(digests(&json(&filtered)), [sbom.digest.to_string()]);
    let nobody = format!("/v2/app/referrers/{}", sha256(b"nobody"));
    let none = cistern.get(&nobody).await;
    assert_eq!(json(&none)["manifests"], serde_json::json!([]));
    cistern.get(format!("/v2/app/manifests/{}", sbom.digest)).await.assert_is(&sbom.manifest);
    cistern.settle().await;

    upstream.down();
    let stale = cistern.get(&target).await;
    assert_eq!(stale.header("cache-status"), "ocistern; hit; detail=stale");
    assert_eq!(json(&stale), json(&all));
    let stale = cistern.get(format!("{target}{filter}")).await;
    assert_eq!(digests(&json(&stale)), [sbom.digest.to_string()], "the filtered list is its own");
    check(&cistern).await;
}

#[tokio::test]
async fn upstreams_without_the_api_are_served_by_the_fallback_tag() {
    let web = Upstream::start().await;
    let page = web.file(&"<!doctype html><title>Package</title>".into());
    for act in [
        acts::fail(404, "UNSUPPORTED"),
        acts::answer(404, "text/plain", "404 page not found"),
        acts::redirect(303, page),
        acts::login_page(),
        acts::answer(200, "application/json", "{}"),
    ] {
        let upstream = Upstream::start().await;
        let subject = image(2);
        upstream.image("app", "1.0", &subject);
        let signature = artifact("application/vnd.example.signature", &subject.digest, 3);
        let digest = upstream.manifest("app", signature.media_type, &signature.manifest);
        let list = crate::common::content::index(&[&signature]);
        let index = upstream.manifest("app", media::OCI_INDEX, &list);
        upstream.tag("app", Tag::referrers_fallback(&subject.digest).as_str(), index);
        upstream.script("*", "/v2/*/referrers/*", .., act);
        let cistern = Cistern::start(&upstream, "").await;
        let got = cistern.get(format!("/v2/app/referrers/{}", subject.digest)).await;
        assert_eq!(got.header("content-type"), media::OCI_INDEX, "{}", got.summary());
        assert_eq!(digests(&json(&got)), [digest.to_string()]);
        // Nobody refers to it, and there is no such tag: an empty list, or "no API" for the client to see.
        let nobody = cistern.get(format!("/v2/app/referrers/{}", sha256(b"nobody"))).await;
        match nobody.status {
            200 => assert_eq!(json(&nobody)["manifests"], serde_json::json!([])),
            _ => nobody.assert_fails(404),
        }
        check(&cistern).await;
    }
}

#[tokio::test]
async fn the_catalog_is_passed_through() {
    let upstream = Upstream::start().await;
    upstream.image("one", "a", &image(1));
    upstream.image("two/deep", "a", &image(1));
    let cistern = Cistern::start(&upstream, "").await;
    let got = cistern.get("/v2/_catalog?n=100").await;
    assert_eq!(json(&got)["repositories"], serde_json::json!(["one", "two/deep"]));
    assert_eq!(upstream.requests("GET", "/v2/_catalog")[0].request.query, "n=100");
    upstream.down();
    let away = cistern.get("/v2/_catalog").await;
    assert!(matches!(away.status, 502..=504), "{}", away.summary());
}

#[tokio::test]
async fn a_list_that_is_none_is_refused_and_not_kept() {
    let upstream = Upstream::start().await;
    upstream.image("app", "a", &image(1));
    let cistern = Cistern::start(&upstream, "").await;
    let target = "/v2/app/tags/list";
    assert!(cistern.get(target).await.complete());
    for act in [acts::login_page(), acts::cut_at(5, Cut::Reset), acts::announce(100), acts::gzip()] {
        upstream.script("*", "*", .., act);
        let got = cistern.get(target).await;
        if got.complete() {
            assert_eq!(json(&got)["tags"], serde_json::json!(["a"]), "the last good one stands in");
        } else {
            assert!(got.status >= 500 || got.cut.is_some(), "{}", got.summary());
        }
        upstream.unscript();
    }
    upstream.down();
    assert_eq!(json(&cistern.get(target).await)["tags"], serde_json::json!(["a"]), "the last good one is kept");
}

#[tokio::test]
async fn huge_numbers_and_lists_do_no_harm() {
    let upstream = Upstream::start().await;
    upstream.image("app", "a", &image(1));
    let cistern = Cistern::start(&upstream, "").await;
    for query in ["n=18446744073709551616", "n=9223372036854775807", "n=-1", "n=x", "n=0", "last=%00", "last=%2e%2e%2f"]
    {
        for target in [format!("/v2/app/tags/list?{query}"), format!("/v2/_catalog?{query}")] {
            let got = cistern.get(&target).await;
            assert!(matches!(got.status, 200 | 400), "{target}: {}", got.summary());
        }
    }
    let huge = format!(r#"{{"name":"app","tags":["{}"]}}"#, "x".repeat(64 * 1024 * 1024));
    upstream.script("GET", "/v2/app/tags/list", .., acts::answer(200, "application/json", huge));
    let got = cistern.get("/v2/app/tags/list").await;
    assert!(!got.complete() || got.length < 64 * 1024 * 1024, "a list of 64 MiB was taken: {}", got.summary());
    check(&cistern).await;
}

#[tokio::test]
async fn a_list_or_an_error_is_there_within_twenty_seconds() {
    let _warp = clock::warp();
    let upstream = Upstream::start().await;
    let image = image(80);
    upstream.image("app", "v1", &image);
    let cistern = Cistern::start(&upstream, "").await;
    let referrers = format!("/v2/app/referrers/{}", image.digest);
    for target in ["/v2/app/tags/list", "/v2/_catalog", referrers.as_str()] {
        let (head, body) = (Gate::new(), Gate::new());
        upstream.script("GET", target, .., acts::both(acts::hold_head(&head), acts::hold_at(1, &body)));
        let started = tokio::time::Instant::now();
        let late = async {
            tokio::time::sleep(Duration::from_secs(12)).await;
            head.open();
        };
        let (got, ()) = tokio::join!(cistern.get(target), late);
        let took = started.elapsed();
        assert!(took < Duration::from_secs(22), "{target}: {took:?}");
        got.assert_fails(504);
    }
}

#[tokio::test]
async fn a_herd_on_one_list_asks_once() {
    let upstream = Upstream::start().await;
    upstream.image("app", "1.0", &image(60));
    let gate = Gate::new();
    upstream.script("GET", "/v2/app/tags/list", .., acts::hold_head(&gate));
    let direct = Arc::new(Direct::start(&upstream, "").await);
    let started = Arc::new(AtomicUsize::new(0));
    let mut herd = tokio::task::JoinSet::new();
    for _ in 0..30 {
        let (direct, started) = (Arc::clone(&direct), Arc::clone(&started));
        herd.spawn(async move {
            // Nothing is waited for between this and the question that they share.
            started.fetch_add(1, Ordering::Relaxed);
            direct.tags(&Right::Anonymous, "app").await
        });
    }
    gate.reached(1).await;
    while started.load(Ordering::Relaxed) < 30 {
        tokio::task::yield_now().await;
    }
    gate.open();
    let list = sha256(br#"{"name":"app","tags":["1.0"]}"#);
    let found: Vec<_> = herd.join_all().await.iter().map(|came| came.found(&list)).collect();
    assert_eq!(upstream.count("GET", "*/tags/list"), 1, "one asks");
    assert_eq!(found.iter().filter(|found| **found == Found::Passed).count(), 1);
    assert_eq!(found.iter().filter(|found| **found == Found::Collapsed).count(), 29, "and the others share its answer");
    assert_eq!(direct.tags(&Right::Anonymous, "app").await.found(&list), Found::Passed);
    assert_eq!(upstream.count("GET", "*/tags/list"), 2, "an answer is not used twice");
}

#[tokio::test]
async fn made_up_queries_leave_no_file() {
    let upstream = Upstream::start().await;
    upstream.image("app", "1.0", &image(61));
    let cistern = Cistern::start(&upstream, "").await;
    assert!(cistern.get("/v2/app/tags/list").await.complete());
    for n in 0..5 {
        assert!(cistern.get(format!("/v2/app/tags/list?x={n}")).await.complete());
    }
    cistern.settle().await;
    let kept = crate::common::invariants::files(&cistern.root().join("refs")).into_iter();
    let lists = kept.filter(|path| path.components().any(|part| part.as_os_str() == "_lists")).count();
    assert_eq!(lists, 1, "the plain list alone is kept");
}
