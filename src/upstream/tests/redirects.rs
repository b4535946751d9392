//! Redirects: where they may lead, and what goes along.

use super::*;
use crate::metrics::Kind;
use crate::oci::Via;

/// Wants the token `t`, then redirects content to `location`.
async fn redirecting(location: String) -> Server {
    Server::start(move |seen, _| {
        if seen.target.starts_with("/token") {
            return reply(200, &[], r#"{"token":"t"}"#);
        }
        match authorization(seen) {
            Some("Bearer t") => {
                let headers = [("location", location.as_str()), ("docker-content-digest", "sha256:upstream-says")];
                reply(307, &headers, "<html>moved</html>")
            }
            _ => reply(401, &[("www-authenticate", r#"Bearer realm="/token""#)], ""),
        }
    })
    .await
}

#[tokio::test]
async fn storage_gets_the_exact_target_and_no_credential() {
    let storage = Server::on("127.0.0.2:0", None, |_, _| {
        let headers = [("content-range", "bytes 2-4/5"), ("etag", "\"tag\"")];
        reply(206, &headers, "llo")
    })
    .await;
    let target = "/1d6b-x//docker/registry/v2/../data?se=2026%2D01&sig=canary%2Fb%3D&x=//";
    let server = redirecting(storage.url(target)).await;
    let (upstream, _file) = with_account(settings(server.address));
    let ask = blob(Method::GET)
        .with_part(2, None, Some("\"tag\""))
        .with_header(http::header::COOKIE, HeaderValue::from_static("canary=1"))
        .with_header(http::header::AUTHORIZATION, HeaderValue::from_static("Bearer canary"));
    let answer = registry(upstream).fetch(ask).await.unwrap();
    assert_eq!((answer.status, answer.via), (StatusCode::PARTIAL_CONTENT, Via::Shared));
    assert_eq!(answer.headers["docker-content-digest"], "sha256:upstream-says", "as the registry said");
    assert_eq!(text(answer).await, "llo");
    let seen = &storage.requests("/")[0];
    assert_eq!(seen.target, target, "byte for byte");
    assert_eq!(seen.headers["range"], "bytes=2-");
    assert_eq!(seen.headers["if-range"], "\"tag\"");
    assert_eq!(seen.headers["accept-encoding"], "identity");
    assert_eq!(seen.headers["host"], storage.address.to_string());
    for secret in ["authorization", "cookie", "proxy-authorization"] {
        assert!(!seen.headers.contains_key(secret), "{secret} must not leave the registry's origin");
    }
    assert!(!format!("{:?}", server.requests("/")).contains("canary"), "nor does a caller's header decide");
}

#[tokio::test]
async fn a_way_back_from_abroad_is_taken_as_a_stranger() {
    let abroad: Arc<Mutex<String>> = Arc::default();
    let back = Arc::clone(&abroad);
    let elsewhere = Server::on("127.0.0.2:0", None, move |_, _| redirect_to(&back.lock())).await;
    let server = redirecting(elsewhere.url("/x")).await;
    *abroad.lock() = server.url("/secret");
    let (upstream, _file) = with_account(settings(server.address));
    // Abroad only what everybody gets is asked for: here a token without the account.
    let result = registry(upstream).fetch(manifest()).await;
    assert!(result.is_err());
    let secrets = server.requests("/secret");
    assert!(authorization(&secrets[0]).is_none(), "a stranger cannot make us use our credential");
    let anonymous = server.requests("/token").into_iter().filter(|seen| authorization(seen).is_none()).count();
    assert_eq!(anonymous, 1);
}

#[tokio::test]
async fn hops_are_bounded() {
    for (hops, followed) in [(5, true), (6, false), (100, false)] {
        let server = Server::start(move |seen, _| {
            let number: usize = seen.target.strip_prefix("/hop/").map_or(0, |number| number.parse().unwrap());
            if number == hops { reply(200, &[], "end") } else { redirect_to(&format!("/hop/{}", number + 1)) }
        })
        .await;
        let result = registry(settings(server.address)).fetch(manifest()).await;
        assert_eq!(result.is_ok(), followed, "{hops} hops");
        assert!(server.count("/") <= 6);
        if let Err(error) = result {
            assert!(matches!(error.fault, Fault::Redirect(RedirectFault::TooMany { .. })), "{error}");
            assert_eq!(error.class(), Class::Bad);
        }
    }
}

#[tokio::test]
async fn the_zoo_is_not_followed() {
    for location in [
        "file:///etc/passwd",
        "ftp://127.0.0.1/x",
        "http://user:pw@127.0.0.1/x",
        "http://127.0.0.1:0/x",
        "http:///x",
        "http://169.254.169.254/latest/meta-data/",
        "http://[fe80::1]/x",
        "http://0.0.0.0/x",
        "http://[::]/x",
        "http://[::ffff:169.254.169.254]/",
        "http://2852039166/",
        "http://100.100.100.200/",
        "http://224.0.0.1/",
        "http://[fd00:ec2::254]/",
        "javascript:x",
        "",
    ] {
        let server = Server::start(move |_, _| redirect_to(location)).await;
        let error = registry(settings(server.address)).fetch(blob(Method::GET)).await.unwrap_err();
        assert!(matches!(error.fault, Fault::Redirect(_)), "{location:?}: {error}");
        assert_eq!(server.count("/"), 1, "{location:?} is not tried again");
    }
}

#[tokio::test]
async fn own_listeners_are_never_reached() {
    let ourselves = Server::on("127.0.0.2:0", None, |_, _| reply(200, &[], "")).await;
    let server = redirecting(ourselves.url("/v2/")).await;
    let own: OwnAddresses = Arc::new(parking_lot::RwLock::new(vec![ourselves.address]));
    let metrics = Metrics::new().unwrap();
    let fetch = async |upstream| {
        let registry = registry_with(upstream, &metrics, Matcher::builder().build(), &own);
        registry.fetch(blob(Method::GET)).await.unwrap_err()
    };
    assert!(matches!(fetch(settings(server.address)).await.fault, Fault::OwnListener));
    let error = fetch(settings(ourselves.address)).await;
    assert!(error.to_string().contains("set `connect`"), "{error}");
    assert_eq!(ourselves.count("/"), 0);
}

#[tokio::test]
async fn a_target_with_its_own_token_service_is_asked_as_anybody() {
    // As registry.k8s.io, which redirects manifests to *.pkg.dev.
    let regional = Server::on("127.0.0.2:0", None, |seen, _| {
        if seen.target.starts_with("/v2/token") {
            return reply(200, &[], r#"{"token":"regional"}"#);
        }
        match authorization(seen) {
            Some("Bearer regional") => reply(200, &[], "manifest"),
            _ => reply(401, &[("www-authenticate", r#"Bearer realm="/v2/token",service="r""#)], ""),
        }
    })
    .await;
    let location = regional.url("/v2/k8s/pause/manifests/latest");
    let server = Server::start(move |_, _| redirect_to(&location)).await;
    let (upstream, _file) = with_account(settings(server.address));
    let registry = registry(upstream);
    for _ in 0..2 {
        let answer = registry.fetch(manifest()).await.unwrap();
        assert_eq!(answer.via, Via::Anonymous);
        assert_eq!(text(answer).await, "manifest");
    }
    assert_eq!(regional.count("/v2/token"), 1);
    assert!(regional.seen.lock().iter().all(|seen| authorization(seen).is_none_or(|shown| shown == "Bearer regional")));
}

#[tokio::test]
async fn a_target_cannot_name_a_token_service_elsewhere() {
    let trap = Server::on("127.0.0.3:0", None, |_, _| reply(200, &[], r#"{"token":"t"}"#)).await;
    let challenge = format!(r#"Bearer realm="{}""#, trap.url("/t"));
    let regional =
        Server::on("127.0.0.2:0", None, move |_, _| reply(401, &[("www-authenticate", &challenge)], "")).await;
    let server = redirecting(regional.url("/x")).await;
    let error = registry(settings(server.address)).fetch(manifest()).await.unwrap_err();
    assert!(matches!(error.fault, Fault::Token(TokenFault::Realm(_))), "{error}");
    assert_eq!(trap.count("/"), 0);
}

#[tokio::test]
async fn head_on_signed_storage_is_asked_by_a_byte() {
    let storage = Server::on("127.0.0.2:0", None, |seen, _| match seen.method {
        Method::GET => reply(206, &[("content-range", "bytes 0-0/12345")], "h"),
        _ => reply(403, &[], "<Error>SignatureDoesNotMatch canary</Error>"),
    })
    .await;
    let server = redirecting(storage.url("/x?sig=canary")).await;
    let answer = registry(settings(server.address)).fetch(blob(Method::HEAD)).await.unwrap();
    assert_eq!(answer.status, StatusCode::OK);
    assert_eq!(answer.headers["content-length"], "12345");
    assert!(!answer.headers.contains_key("content-range"));
    assert_eq!(text(answer).await, "");
    assert_eq!(storage.requests("/").pop().unwrap().headers["range"], "bytes=0-0");
}

#[tokio::test]
async fn storages_refusal_is_not_the_registrys() {
    let storage = Server::on("127.0.0.2:0", None, |_, _| reply(403, &[("content-type", "text/plain")], "canary")).await;
    let server = redirecting(storage.url("/x?sig=canary")).await;
    let error = registry(settings(server.address)).fetch(blob(Method::GET)).await.unwrap_err();
    assert!(matches!(error.fault, Fault::Redirect(RedirectFault::Refused { .. })), "{error}");
    assert_eq!(error.class(), Class::Bad, "it says nothing about rights");
    assert!(!format!("{error} {error:?}").contains("canary"), "{error:?}");
    assert_eq!(storage.count("/"), 2, "tried once more with a fresh signature, not oftener");
}

#[tokio::test]
async fn a_web_page_is_no_referrers_api() {
    let server = Server::start(|_, _| reply(303, &[("location", "https://github.example/page")], "")).await;
    let digest = Digest::of(Algorithm::Sha256, b"");
    let ask = Ask::referrers(&repo(), &digest, "artifactType=x", soon());
    assert_eq!(ask.kind, Kind::Referrers);
    let error = registry(settings(server.address)).fetch(ask).await.unwrap_err();
    assert_eq!(error.class(), Class::Missing);
    assert_eq!(server.requests("/")[0].target, format!("/v2/library/alpine/referrers/{digest}?artifactType=x"));
}
