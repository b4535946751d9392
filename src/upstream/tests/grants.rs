//! Tokens on a caller's behalf: the forms of the requests, and what is made of the answers.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};

use super::*;

/// A registry in the manner of Azure's: its `/oauth2/token` and `/oauth2/exchange` are answered by `token`.
async fn azure(token: impl Fn(&Seen) -> Response<Full<Bytes>> + Send + Sync + 'static) -> Server {
    Server::start(move |seen, _| {
        if seen.target.starts_with("/oauth2/") {
            return token(seen);
        }
        match authorization(seen) {
            Some("Bearer good") => reply(200, &[], ""),
            Some("Bearer barred") => reply(403, &[], ""),
            Some("Bearer busy") => reply(429, &[("retry-after", "60")], ""),
            _ => reply(401, &[("www-authenticate", r#"Bearer realm="/oauth2/token",service="reg.example""#)], ""),
        }
    })
    .await
}

fn basic_request(scopes: &[&str]) -> GrantRequest {
    GrantRequest {
        credential: ClientCredential::Basic { username: "me".into(), password: Secret::new("canary&") },
        scopes: scopes.iter().map(|&scope| scope.to_owned()).collect(),
        method_hint: GrantMethod::Get,
        offline: false,
        client_id: None,
    }
}

fn refresh_request(scopes: &[&str]) -> GrantRequest {
    GrantRequest { credential: ClientCredential::Refresh(Secret::new("canary+")), ..basic_request(scopes) }
}

const BASIC: &str = "Basic bWU6Y2FuYXJ5Jg==";

#[tokio::test]
async fn a_name_and_password_are_shown_as_docker_does() {
    assert_eq!(BASIC, format!("Basic {}", STANDARD.encode("me:canary&")));
    let server = azure(|_| reply(200, &[], r#"{"access_token":"t","refresh_token":"r"}"#)).await;
    let registry = registry(settings(server.address));
    let scopes = ["repository:a/b:pull,push", "repository:c:pull"];
    let granted = registry.grant(basic_request(&scopes), soon()).await.unwrap();
    let Granted::Token { token, expires_in, refresh_token, claims } = granted else { panic!("{granted:?}") };
    assert_eq!((token.expose(), expires_in.as_secs(), claims), ("t", 60, None));
    assert_eq!(refresh_token.unwrap().expose(), "r");
    let asked = &server.requests("/oauth2/")[0];
    assert_eq!(
        (asked.method.as_str(), asked.target.as_str()),
        (
            "GET",
            "/oauth2/token?service=reg.example&scope=repository%3Aa%2Fb%3Apull%2Cpush&scope=repository%3Ac%3Apull&account=me"
        )
    );
    assert_eq!(authorization(asked), Some(BASIC));

    let request = GrantRequest { offline: true, client_id: Some("docker".into()), ..basic_request(&[]) };
    registry.grant(request, soon()).await.unwrap();
    let asked = server.requests("/oauth2/").pop().unwrap();
    assert_eq!(asked.target, "/oauth2/token?service=reg.example&account=me&client_id=docker&offline_token=true");
    assert_eq!(server.count("/v2/"), 1, "the challenge is remembered");
}

#[tokio::test]
async fn the_other_form_is_tried_where_the_first_is_not_known() {
    let post = "grant_type=password&username=me&password=canary%26&client_id=ocistern&service=reg.example&scope=a%20b";
    for (known, hint, expected) in [
        (Method::POST, GrantMethod::Get, &["GET", "POST"][..]),
        (Method::POST, GrantMethod::Post, &["POST"]),
        // Azure answers 400 to a password in a form.
        (Method::GET, GrantMethod::Post, &["POST", "GET"]),
        (Method::GET, GrantMethod::Get, &["GET"]),
    ] {
        let server = azure(move |seen| {
            let (status, body) = if seen.method == known { (200, r#"{"access_token":"t"}"#) } else { (400, "") };
            reply(status, &[], body)
        })
        .await;
        let request = GrantRequest { method_hint: hint, ..basic_request(&["a", "b"]) };
        registry(settings(server.address)).grant(request, soon()).await.unwrap();
        let asked = server.requests("/oauth2/");
        assert_eq!(asked.iter().map(|seen| seen.method.as_str()).collect::<Vec<_>>(), expected);
        for seen in asked.iter().filter(|seen| seen.method == Method::POST) {
            assert_eq!((seen.body.as_str(), authorization(seen)), (post, None));
            assert_eq!(seen.headers["content-type"], "application/x-www-form-urlencoded");
        }
    }
}

#[tokio::test]
async fn a_refresh_token_is_posted() {
    let claims = r#"{"exp":99999999999,"sub":"me","access":[{"Type":"repository"}]}"#;
    let jwt = format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(claims));
    let json = format!(r#"{{"access_token":"{jwt}"}}"#);
    let server = azure(move |_| reply(200, &[], &json)).await;
    let registry = registry(settings(server.address));
    let request = GrantRequest { offline: true, client_id: Some("az".into()), ..refresh_request(&["a:b:pull", "c"]) };
    let granted = registry.grant(request, soon()).await.unwrap();
    let Granted::Token { token, expires_in, refresh_token, claims } = granted else { panic!("{granted:?}") };
    assert_eq!((token.expose(), refresh_token), (jwt.as_str(), None));
    assert_eq!(expires_in, Duration::from_hours(24), "no longer is believed");
    assert_eq!(claims.unwrap()["sub"], "me");
    let asked = &server.requests("/oauth2/")[0];
    assert_eq!((asked.method.as_str(), asked.target.as_str()), ("POST", "/oauth2/token"));
    assert_eq!(
        asked.body,
        "grant_type=refresh_token&refresh_token=canary%2B&client_id=az&service=reg.example&scope=a%3Ab%3Apull%20c&access_type=offline"
    );
    assert_eq!(authorization(asked), None);
}

#[tokio::test]
async fn an_exchange_goes_beside_the_realm_with_upstreams_service() {
    let server = azure(|seen| match seen.target.as_str() {
        "/oauth2/exchange" => reply(200, &[], r#"{"refresh_token":"r"}"#),
        _ => reply(404, &[], ""),
    })
    .await;
    let registry = registry(settings(server.address));
    let form = |token: &str| {
        [("grant_type", "access_token"), ("service", "cache.example"), ("tenant", "t"), ("access_token", token)]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .to_vec()
    };
    assert_eq!(registry.exchange(form("canary"), soon()).await.unwrap(), "r");
    let asked = &server.requests("/oauth2/")[0];
    assert_eq!((asked.method.as_str(), asked.target.as_str()), ("POST", "/oauth2/exchange"));
    assert_eq!(asked.body, "grant_type=access_token&tenant=t&access_token=canary&service=reg.example");
    assert_eq!(asked.headers["content-type"], "application/x-www-form-urlencoded");

    for (status, body, expected) in [
        (401, r#"{"errors":[{"code":"UNAUTHORIZED","message":"bad canary"}]}"#, "left out"),
        (403, "", "access denied"),
        (429, "", "too many requests"),
        (500, "", "answered 500"),
        (200, r#"{"access_token":"x"}"#, "something else than a token"),
    ] {
        let server = azure(move |_| reply(status, &[("retry-after", "9")], body)).await;
        let error = super::registry(settings(server.address)).exchange(form("canary"), soon()).await.unwrap_err();
        assert!(error.to_string().contains(expected), "{status}: {error}");
        assert!(!format!("{error} {error:?}").contains("canary"), "{error:?}");
    }
}

#[tokio::test]
async fn a_refused_grant_says_what_was_refused() {
    for (status, expected) in [(401, Class::Refused), (403, Class::Refused), (429, Class::Unavailable)] {
        let server = azure(move |_| {
            let body = r#"{"errors":[{"code":"UNAUTHORIZED","message":"wrong: canary& canary+"}]}"#;
            reply(status, &[("retry-after", "9")], body)
        })
        .await;
        let registry = registry(settings(server.address));
        for request in [basic_request(&["repository:a:pull"]), refresh_request(&["repository:a:pull"])] {
            assert!(!format!("{request:?}").contains("canary"));
            let error = registry.grant(request, soon()).await.unwrap_err();
            assert_eq!(error.class(), expected, "{error}");
            assert!(!format!("{error} {error:?}").contains("canary"), "{error:?}");
            if let Fault::Unauthorized { demand, .. } = &error.fault {
                assert_eq!(demand.scope, "repository:a:pull");
            }
        }
        assert_eq!(server.count("/oauth2/"), 2, "{status} is an answer: no other form is tried");
    }
}

#[tokio::test]
async fn where_there_are_no_tokens_the_password_itself_is_tried() {
    for (status, scheme) in [(401, Scheme::Basic), (200, Scheme::Open)] {
        let server = Server::start(move |seen, _| match authorization(seen) {
            Some(BASIC) => reply(200, &[], ""),
            None => reply(status, &[("www-authenticate", r#"Basic realm="x""#)], ""),
            Some(_) => reply(401, &[("www-authenticate", r#"Basic realm="x""#)], "wrong"),
        })
        .await;
        let registry = registry(settings(server.address));
        assert_eq!(registry.challenge(soon()).await.unwrap(), scheme);
        assert_eq!(registry.grant(basic_request(&[]), soon()).await.unwrap(), Granted::Basic);
        let mut wrong = basic_request(&[]);
        wrong.credential = ClientCredential::Basic { username: "me".into(), password: Secret::new("x") };
        assert_eq!(registry.grant(wrong, soon()).await.unwrap_err().class(), Class::Refused);
        assert_eq!(registry.grant(refresh_request(&[]), soon()).await.unwrap_err().class(), Class::Refused);
        assert!(registry.accepts(&caller(1, "me", "canary&"), soon()).await.unwrap());
        assert!(!registry.accepts(&caller(2, "me", "x"), soon()).await.unwrap());
    }
}

#[tokio::test]
async fn what_upstream_accepts() {
    let server = azure(|seen| match authorization(seen) {
        Some(BASIC) => reply(200, &[], r#"{"access_token":"good"}"#),
        Some(_) => reply(401, &[], ""),
        None => reply(403, &[], ""),
    })
    .await;
    let registry = registry(settings(server.address));
    for (right, expected) in [
        (bearer(1, "good"), true),
        (bearer(2, "bad"), false),
        (bearer(3, "barred"), false),
        (caller(4, "me", "canary&"), true),
        (caller(5, "me", "wrong"), false),
        (Right::Anonymous, false),
    ] {
        assert_eq!(registry.accepts(&right, soon()).await.unwrap(), expected, "{right:?}");
    }
    let asked = server.requests("/oauth2/");
    assert!(asked.iter().all(|seen| !seen.target.contains("scope")), "who asks is all that is proved");
    let error = registry.accepts(&bearer(6, "busy"), soon()).await.unwrap_err();
    let Fault::RateLimited { retry_after, .. } = error.fault else { panic!("{error:?}") };
    assert_eq!(retry_after.unwrap().as_secs(), 60);
}

#[tokio::test]
async fn the_challenge_is_remembered_for_a_while_and_while_upstream_is_away() {
    let status = Arc::new(Mutex::new(401));
    let answering = Arc::clone(&status);
    let server = Server::start(move |_, _| {
        let status = *answering.lock();
        reply(status, &[("www-authenticate", r#"Bearer realm="/t?x=y",service="s",Basic realm="z""#)], "")
    })
    .await;
    let registry = registry(settings(server.address));
    let expected = Scheme::Bearer { realm: server.url("/t?x=y"), service: "s".into() };
    let herd = futures_util::future::join_all((0..20).map(|_| registry.challenge(soon()))).await;
    assert!(herd.into_iter().all(|scheme| scheme.unwrap() == expected));
    assert_eq!(server.count("/"), 1, "asked once, however many want to know");
    let later = async |status_now: u16, pause: u64| {
        *status.lock() = status_now;
        tokio::time::pause();
        tokio::time::advance(Duration::from_secs(pause)).await;
        tokio::time::resume();
        registry.challenge(soon()).await
    };
    assert_eq!(later(503, 599).await.unwrap(), expected);
    assert_eq!(server.count("/"), 1);
    assert_eq!(later(503, 2).await.unwrap(), expected, "what it said before holds while it is away");
    assert_eq!(later(503, 1).await.unwrap(), expected);
    assert_eq!(server.count("/"), 2, "and it is not asked by everyone");
    assert_eq!(later(200, 10).await.unwrap(), Scheme::Open);
}

#[tokio::test]
async fn no_realm_elsewhere_gets_a_callers_credential() {
    let trap = Server::on("127.0.0.2:0", None, |_, _| reply(200, &[], r#"{"token":"t"}"#)).await;
    let realm = trap.url("/t");
    let server =
        Server::start(move |_, _| reply(401, &[("www-authenticate", &format!(r#"Bearer realm="{realm}""#))], "")).await;
    let registry = registry(settings(server.address));
    let form = vec![("access_token".to_owned(), "canary".to_owned())];
    for error in [
        registry.challenge(soon()).await.unwrap_err(),
        registry.grant(basic_request(&[]), soon()).await.unwrap_err(),
        registry.grant(refresh_request(&[]), soon()).await.unwrap_err(),
        registry.exchange(form, soon()).await.unwrap_err(),
    ] {
        assert!(matches!(error.fault, Fault::Token(TokenFault::Realm(_))), "{error}");
    }
    assert_eq!(trap.count("/"), 0);
}

#[tokio::test]
async fn a_sealed_upstream_gives_nothing() {
    let server = azure(|_| reply(200, &[], "{}")).await;
    let mut upstream = settings(server.address);
    upstream.sealed = true;
    let registry = registry(upstream);
    for error in [
        registry.challenge(soon()).await.unwrap_err(),
        registry.grant(basic_request(&[]), soon()).await.unwrap_err(),
        registry.exchange(Vec::new(), soon()).await.unwrap_err(),
        registry.accepts(&Right::Anonymous, soon()).await.unwrap_err(),
    ] {
        assert!(matches!(error.fault, Fault::Sealed), "{error}");
    }
    assert_eq!(server.count("/"), 0);
}
