//! Whose right is used, and that one caller's never serves another.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::*;
use crate::oci::Via;

fn basic(username: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{username}:{password}")))
}

/// Its token service calls each token after who asks; its content goes to `alice` and `me`, and it refuses others.
async fn registry_of_names() -> Server {
    Server::start(|seen, _| {
        if seen.target.starts_with("/token") {
            let name = match authorization(seen) {
                None => "nobody".to_owned(),
                Some(shown) => {
                    let decoded = STANDARD.decode(shown.strip_prefix("Basic ").unwrap()).unwrap();
                    String::from_utf8(decoded).unwrap().split_once(':').unwrap().0.to_owned()
                }
            };
            return reply(200, &[], &format!(r#"{{"access_token":"{name}"}}"#));
        }
        let challenge = r#"Bearer realm="/token",service="reg",scope="repository:library/alpine:pull""#;
        let scarce = format!(r#"{challenge},error="insufficient_scope""#);
        match authorization(seen) {
            Some("Bearer alice" | "Bearer me") => reply(200, &[], "content"),
            Some(_) => reply(
                401,
                &[("www-authenticate", &scarce)],
                r#"{"errors":[{"code":"UNAUTHORIZED","message":"not you"}]}"#,
            ),
            None => reply(401, &[("www-authenticate", challenge)], ""),
        }
    })
    .await
}

#[tokio::test]
async fn tokens_of_one_serve_no_other() {
    let server = registry_of_names().await;
    let (upstream, _file) = with_account(settings(server.address));
    let registry = registry(upstream);
    assert_eq!(registry.own_right(), Right::Shared);
    for _ in 0..2 {
        for (right, expected) in [
            (Right::Shared, Ok(Via::Shared)),
            (caller(1, "alice", "pw"), Ok(Via::Client)),
            (caller(2, "bob", "pw"), Err(Class::Refused)),
            (Right::Anonymous, Err(Class::Refused)),
        ] {
            let result = registry.fetch(manifest().with_right(right.clone())).await;
            assert_eq!(result.map(|answer| answer.via).map_err(|error| error.class()), expected, "{right:?}");
        }
    }
    let mut asked: Vec<_> =
        server.requests("/token").iter().map(|seen| authorization(seen).map(str::to_owned)).collect();
    asked.sort();
    asked.dedup();
    assert_eq!(asked.len(), 4, "each by its own credential: {asked:?}");
    assert!(asked.contains(&None) && asked.contains(&Some(basic("bob", "pw"))));
    let content = server.requests("/v2/");
    assert!(content.iter().all(|seen| authorization(seen).is_none_or(|shown| shown.starts_with("Bearer "))));
    let count = |token| content.iter().filter(|seen| authorization(seen) == Some(token)).count();
    assert_eq!((count("Bearer me"), count("Bearer alice")), (2, 2));
}

#[tokio::test]
async fn a_callers_token_is_shown_as_it_is_and_nothing_replaces_it() {
    let server = registry_of_names().await;
    let (upstream, _file) = with_account(settings(server.address));
    let registry = registry(upstream);
    let answer = registry.fetch(manifest().with_right(bearer(1, "alice"))).await.unwrap();
    assert_eq!(answer.via, Via::Client);
    assert_eq!(server.count("/v2/"), 1, "it is shown at once");
    // Even where others have made known how to get a token.
    registry.fetch(manifest().with_right(Right::Shared)).await.unwrap();
    let (before, tokens) = (server.count("/v2/"), server.count("/token"));
    let error = registry.fetch(manifest().with_right(bearer(2, "scarce"))).await.unwrap_err();
    let Fault::Unauthorized { message, demand } = &error.fault else { panic!("{error:?}") };
    assert_eq!(message, "not you");
    assert_eq!(demand.scope, "repository:library/alpine:pull");
    assert_eq!(demand.error, "insufficient_scope");
    assert_eq!((server.count("/v2/") - before, server.count("/token") - tokens), (1, 0));
    let error = registry.fetch(manifest().with_right(bearer(3, "a b\r\nX: y"))).await.unwrap_err();
    assert_eq!(error.class(), Class::Refused, "what cannot be shown is the caller's own fault: {error}");
    assert_eq!(server.count("/v2/") - before, 1);
}

#[tokio::test]
async fn a_callers_name_and_password_are_shown_where_upstream_asks_for_them() {
    let accepted = basic("alice", "pw");
    let server = Server::start(move |seen, _| match authorization(seen) {
        Some(shown) if shown == accepted => reply(200, &[], "content"),
        _ => reply(401, &[("www-authenticate", r#"Basic realm="Registry""#)], "who are you"),
    })
    .await;
    let (upstream, _file) = with_account(settings(server.address));
    let registry = registry(upstream);
    let ask = |right| registry.fetch(manifest().with_right(right));
    assert_eq!(ask(caller(1, "alice", "pw")).await.unwrap().via, Via::Client);
    for right in [caller(2, "alice", "wrong"), caller(3, "bob", "pw"), Right::Anonymous, Right::Shared] {
        let error = ask(right.clone()).await.unwrap_err();
        assert_eq!(error.class(), Class::Refused, "{right:?}: {error}");
    }
    let anonymous = server.requests("/").into_iter().filter(|seen| authorization(seen).is_none()).count();
    assert_eq!(
        anonymous, 5,
        "each right is challenged by itself: what one caller learned would tell the next that it was there"
    );
}

#[tokio::test]
async fn an_open_registry_sees_no_password() {
    let server = Server::start(|_, _| reply(200, &[], "content")).await;
    let registry = registry(settings(server.address));
    let answer = registry.fetch(manifest().with_right(caller(1, "alice", "pw"))).await.unwrap();
    assert_eq!(answer.via, Via::Anonymous, "it gives this to everybody");
    assert_eq!(authorization(&server.requests("/")[0]), None);
}

#[tokio::test]
async fn secrets_are_not_printed() {
    let right = caller(1, "alice", "canary");
    let lent = bearer(2, "canary");
    assert!(!format!("{right:?} {lent:?}").contains("canary"));
    let echo = r#"{"errors":[{"code":"UNAUTHORIZED","message":"bad token canary"}]}"#;
    let server = Server::start(move |_, _| reply(401, &[("www-authenticate", "Basic")], echo)).await;
    let registry = registry(settings(server.address));
    for right in [right, lent] {
        let error = registry.fetch(manifest().with_right(right)).await.unwrap_err();
        assert!(!format!("{error} {error:?}").contains("canary"), "{error}");
    }
}
