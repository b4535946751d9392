//! Other places of an upstream's content, and parts of blobs.

use super::*;
use crate::oci::Via;

fn mirrored(main: &Server, mirrors: &[&Server]) -> Upstream {
    let mirrors = mirrors.iter().map(|mirror| mirror.url("").parse().unwrap()).collect();
    Upstream { mirrors, ..settings(main.address) }
}

/// A server of "hello" that wants a token, which it gives to everybody.
async fn guarded() -> Server {
    Server::start(|seen, _| {
        let host = seen.headers["host"].to_str().unwrap();
        if seen.target.starts_with("/token") {
            return reply(200, &[], "{\"token\":\"everybodys\"}");
        }
        let challenge = format!("Bearer realm=\"http://{host}/token\",service=\"x\"");
        match authorization(seen) {
            Some("Bearer everybodys") => reply(200, &[("ratelimit-remaining", "7;w=1")], "hello"),
            _ => reply(401, &[("www-authenticate", &challenge)], ""),
        }
    })
    .await
}

#[tokio::test]
async fn a_mirror_is_asked_as_a_stranger_under_the_same_name() {
    let (main, mirror) = (guarded().await, guarded().await);
    let (upstream, _file) = with_account(mirrored(&main, &[&mirror]));
    let metrics = Metrics::new().unwrap();
    let registry = registry_with(upstream, &metrics, Matcher::builder().build(), &OwnAddresses::default());
    let [place] = registry.mirrors() else { panic!("one mirror is configured") };
    assert_eq!((place.name(), place.endpoint()), (registry.name(), mirror.address.to_string()));
    assert_eq!(registry.endpoint(), main.address.to_string());
    assert!(place.mirrors().is_empty());

    let answer = place.fetch(blob(Method::GET)).await.unwrap();
    assert_eq!(answer.via, Via::Anonymous);
    assert_eq!(text(answer).await, "hello");
    let answer = place.fetch(blob(Method::GET).with_right(Right::Anonymous)).await.unwrap();
    assert_eq!(text(answer).await, "hello");
    assert!(!format!("{:?}", mirror.requests("/")).contains("canary"), "no credential leaves its origin");
    assert_eq!(main.count("/"), 0);
    let received = metrics.upstream_received_bytes.with_label_values(&["test"]);
    assert_eq!(received.get(), 10, "bytes are the upstream's, wherever they come from");
    assert_eq!(metrics.upstream_ratelimit_remaining.with_label_values(&["test"]).get(), 0, "its limit is another one");
}

#[tokio::test]
async fn nothing_of_a_caller_or_of_the_account_goes_to_a_mirror() {
    let (main, mirror) = (guarded().await, guarded().await);
    let (upstream, _file) = with_account(mirrored(&main, &[&mirror]));
    let registry = registry(upstream);
    let place = &registry.mirrors()[0];
    for right in [Right::Shared, caller(1, "me", "canary"), bearer(1, "canary")] {
        let error = place.fetch(blob(Method::GET).with_right(right)).await.unwrap_err();
        assert!(matches!(error.fault, Fault::Sealed), "{error}");
    }
    assert_eq!(mirror.count("/"), 0, "not even the name");
}

#[tokio::test]
async fn each_place_has_a_breaker_of_its_own() {
    let (main, mirror) = (guarded().await, guarded().await);
    let upstream = mirrored(&main, &[&mirror]);
    drop(main);
    let registry = registry(upstream);
    for _ in 0..3 {
        registry.fetch(blob(Method::GET)).await.unwrap_err();
    }
    assert!(registry.is_doubtful() && !registry.mirrors()[0].is_doubtful());
    assert_eq!(text(registry.mirrors()[0].fetch(blob(Method::GET)).await.unwrap()).await, "hello");
}

#[tokio::test]
async fn connect_is_for_the_url_alone() {
    let (main, mirror) = (guarded().await, guarded().await);
    let mut upstream = mirrored(&main, &[&mirror]);
    upstream.url.host = "registry.example".into();
    upstream.connect = vec![main.address.to_string()];
    let registry = registry(upstream);
    assert_eq!(text(registry.mirrors()[0].fetch(blob(Method::GET)).await.unwrap()).await, "hello");
    assert_eq!((main.count("/"), mirror.count("/v2/")), (0, 2));
}

#[tokio::test]
async fn parts_say_which_they_are() {
    let server = Server::start(|seen, _| {
        let (range, body) = match seen.headers["range"].to_str().unwrap() {
            "bytes=1-3" => ("bytes 1-3/5", "ell"),
            "bytes=2-" => ("bytes 2-4/5", "llo"),
            "bytes=-2" => ("bytes 3-4/*", "lo"),
            // An end that comes earlier than what was asked for.
            "bytes=0-100" => ("bytes 0-1/5", "he"),
            other => panic!("{other}"),
        };
        reply(206, &[("content-range", range)], body)
    })
    .await;
    let registry = registry(settings(server.address));
    let part = async |ask: Ask| {
        let answer = registry.fetch(ask).await.unwrap();
        let part = answer.part().unwrap();
        (part.start, part.end, part.total, text(answer).await)
    };
    assert_eq!(part(blob(Method::GET).with_part(1, Some(3), None)).await, (1, 4, Some(5), "ell".into()));
    assert_eq!(part(blob(Method::GET).with_part(2, None, None)).await, (2, 5, Some(5), "llo".into()));
    assert_eq!(part(blob(Method::GET).with_suffix(2)).await, (3, 5, None, "lo".into()));
    assert_eq!(part(blob(Method::GET).with_part(0, Some(100), None)).await, (0, 2, Some(5), "he".into()));
}

/// Without a Content-Length the range says where the body ends.
#[tokio::test]
async fn a_part_of_chunks_is_as_long_as_its_range() {
    for (chunks, whole) in [("3\r\nell\r\n0\r\n\r\n", true), ("2\r\nel\r\n0\r\n\r\n", false)] {
        let head = "HTTP/1.1 206 Partial Content\r\ntransfer-encoding: chunked\r\ncontent-range: bytes 1-3/5\r\n\r\n";
        let (address, _server) = raw_server(vec![format!("{head}{chunks}").leak()], false).await;
        let answer = registry(settings(address)).fetch(blob(Method::GET).with_part(1, Some(3), None)).await.unwrap();
        let result = answer.body.collect().await;
        assert_eq!(result.is_ok(), whole);
        if let Err(error) = result {
            assert!(
                matches!(error.fault, Fault::Protocol(ProtocolFault::Length { expected: 3, actual: 2 })),
                "{error}"
            );
        }
    }
}
