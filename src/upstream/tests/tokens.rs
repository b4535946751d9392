//! Challenges and tokens.

use std::sync::atomic::{AtomicUsize, Ordering};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};

use super::*;
use crate::oci::Via;

/// A registry with its token service: content needs `Bearer TOKEN`, `/token` is answered by `token`.
async fn guarded(
    token: impl Fn(&Seen) -> Response<Full<Bytes>> + Send + Sync + 'static,
    accepts: impl Fn(&str) -> bool + Send + Sync + 'static,
) -> Server {
    Server::start(move |seen, _| {
        if seen.target.starts_with("/token") {
            return token(seen);
        }
        if authorization(seen).is_some_and(&accepts) {
            return reply(200, &[], "content");
        }
        let challenge = r#"Bearer realm="/token",service="the service",scope="repository:library/alpine:pull""#;
        reply(
            401,
            &[("www-authenticate", challenge)],
            r#"{"errors":[{"code":"UNAUTHORIZED","message":"who are you"}]}"#,
        )
    })
    .await
}

fn token_reply(json: &str) -> Response<Full<Bytes>> {
    reply(200, &[("content-type", "application/json")], json)
}

#[tokio::test]
async fn a_token_is_got_and_kept() {
    let jwt = format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(r#"{"exp":99999999999}"#));
    for (json, expected) in [
        (r#"{"token":"t"}"#.to_owned(), "Bearer t".to_owned()),
        (r#"{"access_token":"a","expires_in":300}"#.to_owned(), "Bearer a".to_owned()),
        (r#"{"token":"","access_token":"a","expires_in":"300"}"#.to_owned(), "Bearer a".to_owned()),
        (format!(r#"{{"access_token":"{jwt}","refresh_token":"x"}}"#), format!("Bearer {jwt}")),
    ] {
        let accepted = expected.clone();
        let server = guarded(move |_| token_reply(&json), move |shown| shown == accepted).await;
        let registry = registry(settings(server.address));
        for _ in 0..3 {
            let answer = registry.fetch(manifest()).await.unwrap();
            assert_eq!((answer.status, answer.via), (StatusCode::OK, Via::Anonymous));
            assert_eq!(text(answer).await, "content");
        }
        registry.fetch(blob(Method::GET)).await.unwrap();
        assert_eq!(server.count("/token"), 1, "{expected}: one token for manifests and blobs of a repository");
        assert_eq!(server.count("/v2/"), 5, "only the first request is refused");
        let asked = &server.requests("/token")[0];
        assert_eq!(asked.target, "/token?service=the%20service&scope=repository%3Alibrary%2Falpine%3Apull");
        assert_eq!(authorization(asked), None);
        let content = &server.requests("/v2/")[0];
        assert_eq!(content.target, "/v2/library/alpine/manifests/latest");
        assert_eq!(content.headers["accept-encoding"], "identity");
        assert!(content.headers["user-agent"].to_str().unwrap().starts_with("ocistern/"));
        assert!(content.headers["accept"].to_str().unwrap().contains("oci.image.index"));
    }
}

#[tokio::test]
async fn an_account_is_shown_to_the_token_endpoint_alone() {
    let server = guarded(|_| token_reply(r#"{"token":"t"}"#), |shown| shown == "Bearer t").await;
    let (upstream, _file) = with_account(settings(server.address));
    let registry = registry(upstream);
    assert_eq!(registry.fetch(manifest()).await.unwrap().via, Via::Shared);
    let asked = &server.requests("/token")[0];
    let basic = format!("Basic {}", STANDARD.encode("me:canary-password"));
    assert_eq!(authorization(asked), Some(basic.as_str()));
    assert!(asked.target.ends_with("&account=me"), "{}", asked.target);
    assert!(server.requests("/v2/").iter().all(|seen| authorization(seen) != Some(&basic)));
}

#[tokio::test]
async fn an_open_registry_is_anonymous_whatever_is_configured() {
    let server = Server::start(|_, _| reply(200, &[], "content")).await;
    let (upstream, _file) = with_account(settings(server.address));
    let registry = registry(upstream);
    assert_eq!(registry.via(), Via::Shared);
    assert_eq!(registry.fetch(manifest()).await.unwrap().via, Via::Anonymous);
    assert_eq!(authorization(&server.requests("/")[0]), None);
}

#[tokio::test]
async fn post_where_get_is_not_known() {
    for status in [400, 404, 405] {
        let token = move |seen: &Seen| match seen.method {
            Method::POST => token_reply(r#"{"access_token":"t"}"#),
            _ => reply(status, &[], ""),
        };
        let server = guarded(token, |shown| shown == "Bearer t").await;
        let (upstream, _file) = with_account(settings(server.address));
        assert_eq!(registry(upstream).fetch(manifest()).await.unwrap().via, Via::Shared);
        let post = &server.requests("/token")[1];
        assert_eq!(
            post.body,
            "grant_type=password&username=me&password=canary%2Dpassword&client_id=ocistern&service=the%20service&scope=repository%3Alibrary%2Falpine%3Apull"
                .replace("%2D", "-")
        );
        assert_eq!(post.headers["content-type"], "application/x-www-form-urlencoded");
        assert_eq!(authorization(post), None);
    }
}

#[tokio::test]
async fn docker_config_decides_by_host() {
    let server = guarded(|_| token_reply(r#"{"access_token":"t"}"#), |shown| shown.starts_with("Bearer ")).await;
    let host = server.address.to_string();
    let file = tempfile::NamedTempFile::new().unwrap();
    let fetch = async |json: String| {
        std::fs::write(file.path(), json).unwrap();
        let mut upstream = settings(server.address);
        upstream.credentials = Credentials::DockerConfig { path: Some(file.path().to_owned()) };
        registry(upstream).fetch(manifest()).await.unwrap().via
    };
    let identity = fetch(format!(r#"{{"auths":{{"{host}":{{"identitytoken":"id+"}}}}}}"#)).await;
    assert_eq!(identity, Via::Shared);
    let asked = server.requests("/token").pop().unwrap();
    assert_eq!(asked.method, Method::POST);
    assert!(asked.body.starts_with("grant_type=refresh_token&refresh_token=id%2B&"), "{}", asked.body);

    let direct = fetch(format!(r#"{{"auths":{{"{host}":{{"registrytoken":"mine"}}}}}}"#)).await;
    assert_eq!(direct, Via::Shared);
    assert_eq!(server.count("/token"), 1, "a registry token needs no endpoint");
    assert_eq!(authorization(&server.requests("/v2/").pop().unwrap()), Some("Bearer mine"));

    assert_eq!(fetch(r#"{"auths":{"other.example":{"auth":"eDp5"}}}"#.into()).await, Via::Anonymous);
    assert_eq!(authorization(&server.requests("/token").pop().unwrap()), None);
}

#[tokio::test]
async fn basic_needs_an_account() {
    let basic = format!("Basic {}", STANDARD.encode("me:canary-password"));
    let server = Server::start(move |seen, _| {
        if authorization(seen) == Some(&basic) {
            return reply(200, &[], "content");
        }
        reply(401, &[("www-authenticate", r#"Basic realm="Registry""#)], "")
    })
    .await;
    let (upstream, _file) = with_account(settings(server.address));
    let with = registry(upstream);
    assert_eq!(with.fetch(manifest()).await.unwrap().via, Via::Shared);
    with.fetch(manifest()).await.unwrap();
    assert_eq!(server.count("/"), 3, "it is shown at once the second time");
    let error = registry(settings(server.address)).fetch(manifest()).await.unwrap_err();
    assert!(matches!(error.fault, Fault::Unauthorized { .. }), "{error}");
}

#[tokio::test]
async fn a_herd_fetches_one_token() {
    let server = guarded(|_| token_reply(r#"{"token":"t","expires_in":300}"#), |shown| shown == "Bearer t").await;
    let registry = registry(settings(server.address));
    let answers = futures_util::future::join_all((0..100).map(|_| registry.fetch(manifest()))).await;
    assert!(answers.iter().all(Result::is_ok));
    assert_eq!(server.count("/token"), 1);
}

#[tokio::test]
async fn a_revoked_token_is_replaced_once() {
    let issued = Arc::new(AtomicUsize::new(0));
    let (issuing, valid) = (Arc::clone(&issued), Arc::new(AtomicUsize::new(1)));
    let checking = Arc::clone(&valid);
    let server = guarded(
        move |_| token_reply(&format!(r#"{{"token":"t{}"}}"#, issuing.fetch_add(1, Ordering::SeqCst) + 1)),
        move |shown| shown == format!("Bearer t{}", checking.load(Ordering::SeqCst)),
    )
    .await;
    let registry = registry(settings(server.address));
    registry.fetch(manifest()).await.unwrap();
    valid.store(2, Ordering::SeqCst);
    let answers = futures_util::future::join_all((0..20).map(|_| registry.fetch(manifest()))).await;
    assert!(answers.iter().all(Result::is_ok), "everyone gets the new one");
    assert_eq!(issued.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn endless_refusal_is_bounded_and_tells_upstreams_words() {
    let server = guarded(|_| token_reply(r#"{"token":"t"}"#), |_| false).await;
    let registry = registry(settings(server.address));
    for _ in 0..2 {
        let error = registry.fetch(manifest()).await.unwrap_err();
        assert!(matches!(&error.fault, Fault::Unauthorized { message, .. } if message == "who are you"), "{error}");
        assert_eq!(error.class(), Class::Refused);
    }
    assert!(server.count("/v2/") <= 5 && server.count("/token") <= 3, "no storm of requests");
}

#[tokio::test]
async fn a_wider_challenge_is_answered_too() {
    let server = Server::start(|seen, _| match (authorization(seen), seen.target.starts_with("/token")) {
        (_, true) if seen.target.contains("metadata_read") => token_reply(r#"{"token":"wide"}"#),
        (_, true) => token_reply(r#"{"token":"narrow"}"#),
        (Some("Bearer wide"), _) => reply(200, &[], "content"),
        (Some(_), _) => reply(401, &[("www-authenticate", r#"Bearer realm="/token",scope="metadata_read""#)], ""),
        (None, _) => reply(401, &[("www-authenticate", r#"Bearer realm="/token""#)], ""),
    })
    .await;
    let registry = registry(settings(server.address));
    registry.fetch(manifest()).await.unwrap();
    assert_eq!(server.requests("/token")[0].target, "/token?scope=repository%3Alibrary%2Falpine%3Apull");
    registry.fetch(manifest()).await.unwrap();
    assert_eq!((server.count("/v2/"), server.count("/token")), (4, 2), "the wider one is remembered");
}

#[tokio::test]
async fn token_endpoints_that_do_not_give_one() {
    let huge = format!(r#"{{"token":"{}"}}"#, "t".repeat(70_000));
    for (name, response, expected) in [
        (
            "denied",
            reply(403, &[], r#"{"errors":[{"code":"DENIED","message":"not for you"}]}"#),
            "access denied: not for you",
        ),
        ("wrong password", reply(401, &[], r#"{"details":"incorrect username or password"}"#), "incorrect username"),
        ("echo", reply(401, &[("content-type", "text/plain")], "bad canary-password"), "left out"),
        ("busy", reply(429, &[("retry-after", "60")], "Ref A: x"), "too many requests"),
        ("broken", reply(500, &[("content-type", "text/html")], "<h1>oops</h1>"), "500"),
        ("not json", token_reply("<html>login</html>"), "something else than a token"),
        ("no token", token_reply(r#"{"expires_in":1}"#), "something else than a token"),
        ("injection", token_reply(r#"{"token":"a\r\nX-Evil: 1"}"#), "something else than a token"),
        ("huge", token_reply(&huge), "more than 65536 bytes"),
        ("redirect", redirect_to("http://127.0.0.1:1/"), "redirects, which is not followed"),
    ] {
        let server = guarded(move |_| response.clone(), |_| false).await;
        let (upstream, _file) = with_account(settings(server.address));
        let error = registry(upstream).fetch(manifest()).await.unwrap_err();
        assert!(error.to_string().contains(expected), "{name}: {error}");
        assert!(!format!("{error} {error:?}").contains("canary"), "{name}: {error:?}");
    }
}

#[tokio::test]
async fn a_token_endpoint_that_is_away_is_told_apart() {
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let server = Server::start(move |_, _| {
        reply(401, &[("www-authenticate", &format!(r#"Bearer realm="http://{gone}/token""#))], "")
    })
    .await;
    let error = registry(settings(server.address)).fetch(manifest()).await.unwrap_err();
    assert!(matches!(error.fault, Fault::Token(TokenFault::Away { .. })), "{error}");
    assert_eq!(error.class(), Class::Unavailable, "what is known may be served");
}

#[tokio::test]
async fn no_realm_leads_a_credential_astray() {
    let trap = Server::on("127.0.0.2:0", None, |_, _| token_reply(r#"{"token":"t"}"#)).await;
    let port = trap.address.port();
    let realms: Vec<String> = [
        "http://127.0.0.2:P/t",
        "https://127.0.0.2:P/t",
        "//127.0.0.2:P/t",
        "///127.0.0.2:P/t",
        "/\\127.0.0.2:P/t",
        "http://127.0.0.1@127.0.0.2:P/t",
        "http://127.0.0.1:x@127.0.0.2:P/t",
        "http://127.0.0.2:P#@127.0.0.1/t",
        "http://127.0.0.2:P?@127.0.0.1/",
        "http://127.0.0.2:P\\@127.0.0.1/",
        "http://127.0.0.2.:P/t",
        "http://[::ffff:127.0.0.2]:P/t",
        "http://2130706434:P/t",
        "http://0x7f000002:P/t",
        "http://0177.0.0.2:P/t",
        "http://127.2:P/t",
        "http://127.0.2:P/t",
        "HTTP://127.0.0.2:P/t",
        "http:127.0.0.2:P/t",
        "http:/127.0.0.2:P/t",
        "http:\\\\127.0.0.2:P/t",
        "ftp://127.0.0.2:P/t",
        "file://127.0.0.2:P/t",
        "\thttp://127.0.0.2:P/t",
        " http://127.0.0.2:P/t",
        "http://127.0.0.2:P /t",
        "http://127.0.0.1:0/t",
        "http://127.0.0.1:/t",
        "",
        "x",
        "http://",
        "http://127.0.0.1%2f@127.0.0.2:P/t",
        "http://127.0.0.1%00.127.0.0.2:P/t",
        "http://127.0.0.1,127.0.0.2:P/t",
        "http://127.0.0.1\u{e9}@127.0.0.2:P/t",
        "http://①②⑦.0.0.2:P/t",
        "http://127。0。0。2:P/t",
    ]
    .iter()
    .map(|realm| realm.replace('P', &port.to_string()))
    .collect();
    for realm in &realms {
        for extra in ["", r#",realm="http://127.0.0.1:1/t""#] {
            let challenge = format!(r#"Bearer realm="{}"{extra}"#, realm.replace('\\', "\\\\"));
            let server = Server::start(move |_, _| reply(401, &[("www-authenticate", &challenge)], "")).await;
            let (upstream, _file) = with_account(settings(server.address));
            let error = registry(upstream).fetch(manifest()).await.unwrap_err();
            assert!(matches!(error.fault, Fault::Token(_)), "{realm:?}: {error}");
            assert!(server.seen.lock().iter().all(|seen| authorization(seen).is_none()), "{realm:?}");
            assert_eq!(server.count("/"), 1, "{realm:?}: it is not asked again");
        }
    }
    assert_eq!(trap.count("/"), 0, "nothing ever came to the trap");
}

#[tokio::test]
async fn a_token_host_that_is_listed_still_needs_https() {
    let trap = Server::on("127.0.0.2:0", None, |_, _| token_reply(r#"{"token":"t"}"#)).await;
    let realm = trap.url("/t");
    let server =
        Server::start(move |_, _| reply(401, &[("www-authenticate", &format!(r#"Bearer realm="{realm}""#))], "")).await;
    let (mut upstream, _file) = with_account(settings(server.address));
    upstream.token_hosts = vec![trap.address.to_string()];
    let error = registry(upstream).fetch(manifest()).await.unwrap_err();
    assert!(matches!(error.fault, Fault::Token(TokenFault::Realm(RealmFault::Plain { .. }))), "{error}");
    assert_eq!(trap.count("/"), 0);
}
