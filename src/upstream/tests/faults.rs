//! Upstreams that fail, and how soon they are given up.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::metrics::Kind;
use crate::upstream::client::HANDSHAKE_TIMEOUT;

async fn error_of(
    script: impl Fn(&Seen, usize) -> Response<Full<Bytes>> + Send + Sync + 'static,
    ask: Ask,
) -> (UpstreamError, usize) {
    let server = Server::start(script).await;
    let error = registry(settings(server.address)).fetch(ask).await.unwrap_err();
    let count = server.count("/");
    (error, count)
}

async fn nobody() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

#[tokio::test]
async fn statuses_have_meanings() {
    let json = r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"no\u0000 such\r\nmanifest","detail":{}}]}"#;
    let (error, count) = error_of(move |_, _| reply(404, &[], json), manifest()).await;
    assert!(
        matches!(&error.fault, Fault::NotFound { code: Some(code), message } if code == "MANIFEST_UNKNOWN" && message == "no such manifest"),
        "{error:?}"
    );
    assert_eq!((error.class(), count), (Class::Missing, 1));

    let (error, _) = error_of(|_, _| reply(403, &[("content-type", "text/html")], "<html>"), manifest()).await;
    assert!(matches!(&error.fault, Fault::Forbidden { message } if message == "Forbidden"), "{error:?}");

    let huge = "x".repeat(1 << 20);
    let (error, count) = error_of(move |_, _| reply(500, &[("content-type", "text/plain")], &huge), manifest()).await;
    assert_eq!((error.class(), count), (Class::Unavailable, 1), "500 is not repeated");
    assert!(error.to_string().len() < 1000);

    let (error, _) = error_of(|_, _| reply(204, &[], ""), manifest()).await;
    assert_eq!(error.class(), Class::Bad, "success without content is none");
}

/// What servers that speak TLS say to a request without it.
#[tokio::test]
async fn a_server_that_wants_tls_is_told_from_one_that_is_out_of_order() {
    let go = "HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n";
    let nginx = "HTTP/1.1 400 Bad Request\r\nServer: nginx\r\nContent-Type: text/html\r\nConnection: close\r\n\r\n\
                 <html>\r\n<head><title>400 The plain HTTP request was sent to HTTPS port</title></head>\r\n</html>\r\n";
    for said in [go, nginx] {
        let (address, _tasks) = raw_server(vec![said], false).await;
        let error = registry(settings(address)).fetch(manifest()).await.unwrap_err();
        assert!(error.to_string().contains("write https:// in its url"), "{error}");
        assert_eq!(error.class(), Class::Unavailable);
        // Its answer to HEAD has no body: it is the same for whoever asks by that.
        let repo = "library/alpine".parse().unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        let head = Ask::manifest(Method::HEAD, &repo, &"latest".parse().unwrap(), deadline);
        let told = registry(settings(address)).fetch(head).await.unwrap_err();
        assert_eq!(told.to_string(), error.to_string());
    }
    let (error, _) = error_of(|_, _| reply(400, &[], "Client sent nonsense."), manifest()).await;
    assert_eq!(error.to_string(), "test: answered 400 Bad Request: Client sent nonsense.");
}

#[tokio::test]
async fn rate_limits_are_relayed_with_their_patience() {
    for (value, expected) in
        [("60", Some(60)), ("315360000", Some(3600)), ("soon", None), ("Fri, 31 Dec 1999 23:59:59 GMT", Some(0))]
    {
        let begun = Instant::now();
        let script = move |_: &Seen, _| {
            reply(429, &[("retry-after", value), ("content-type", "text/plain")], "Too Many Requests (HAP429).")
        };
        let (error, count) = error_of(script, manifest()).await;
        let Fault::RateLimited { retry_after, message } = &error.fault else { panic!("{error:?}") };
        assert_eq!(retry_after.map(|wait| wait.as_secs()), expected, "{value}");
        assert_eq!(message, "Too Many Requests (HAP429).");
        assert_eq!(error.class(), Class::Unavailable);
        assert_eq!(count, if expected == Some(0) { 4 } else { 1 }, "{value}: only a short wait is waited");
        assert!(begun.elapsed() < Duration::from_secs(5));
    }
}

#[tokio::test]
async fn what_passes_is_tried_again() {
    let metrics = Metrics::new().unwrap();
    let server = Server::start(|_, before| match before {
        0 => reply(503, &[], ""),
        1 => reply(429, &[("retry-after", "0")], ""),
        2 => reply(502, &[], "<html>"),
        _ => reply(200, &[("ratelimit-remaining", "76;w=21600")], "content"),
    })
    .await;
    let registry =
        registry_with(settings(server.address), &metrics, Matcher::builder().build(), &OwnAddresses::default());
    assert_eq!(text(registry.fetch(manifest()).await.unwrap()).await, "content");
    let exposed = metrics.expose();
    for line in [
        r#"ocistern_upstream_requests_total{kind="manifest",status="503",upstream="test"} 1"#,
        r#"ocistern_upstream_requests_total{kind="manifest",status="200",upstream="test"} 1"#,
        r#"ocistern_upstream_received_bytes_total{upstream="test"} 7"#,
        r#"ocistern_upstream_ratelimit_remaining{upstream="test"} 76"#,
    ] {
        assert!(exposed.contains(line), "{line} is missing in\n{exposed}");
    }
    let (head_broken, _server) =
        raw_server(vec!["", "garbage\r\n\r\n", "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"], false).await;
    let registry = super::registry(settings(head_broken));
    assert_eq!(text(registry.fetch(manifest()).await.unwrap()).await, "ok");
}

#[tokio::test]
async fn bodies_that_are_not_what_was_announced() {
    for (reply, expected, actual) in [
        ("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nshort", 10, 5),
        ("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n", 10, 0),
    ] {
        let (address, _server) = raw_server(vec![reply], false).await;
        let answer = registry(settings(address)).fetch(blob(Method::GET)).await.unwrap();
        let error = answer.body.collect().await.unwrap_err();
        assert!(
            matches!(error.fault, Fault::Protocol(ProtocolFault::Length { expected: e, actual: a }) if (e, a) == (expected, actual)),
            "{error:?}"
        );
        assert!(error.is_retryable());
    }
    let chunked = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n";
    let (address, _server) = raw_server(vec![chunked], false).await;
    let answer = registry(settings(address)).fetch(blob(Method::GET)).await.unwrap();
    assert!(
        matches!(answer.body.collect().await.unwrap_err().fault, Fault::Broken(_)),
        "no end without the last chunk"
    );
    let long = "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello and more";
    let (address, _server) = raw_server(vec![long], false).await;
    let answer = registry(settings(address)).fetch(blob(Method::GET)).await.unwrap();
    assert_eq!(text(answer).await, "hello", "what follows the announced length is no part of it");
}

#[tokio::test]
async fn answers_that_cannot_be_used() {
    for (headers, status, expected) in [
        (&[("content-encoding", "gzip")][..], 200, ProtocolFault::ContentEncoding),
        (&[("content-encoding", "identity"), ("content-encoding", "br")], 200, ProtocolFault::ContentEncoding),
        (&[("content-range", "bytes 0-4/5")], 206, ProtocolFault::Range),
    ] {
        let (error, count) = error_of(move |_, _| reply(status, headers, "hello"), blob(Method::GET)).await;
        assert!(matches!(&error.fault, Fault::Protocol(fault) if *fault == expected), "{error}");
        assert_eq!((error.class(), count), (Class::Bad, 1));
    }
    for range in ["bytes 3-4/5", "bytes */5", "octets 2-4/5", ""] {
        let script = move |_: &Seen, _| reply(206, &[("content-range", range)], "llo");
        let (error, _) = error_of(script, blob(Method::GET).with_part(2, None, None)).await;
        assert!(matches!(error.fault, Fault::Protocol(ProtocolFault::Range)), "{range:?}: {error}");
    }
    // Asked for "llo" without its end.
    for (range, body) in [
        ("bytes 2-4/5", "llo"),
        ("bytes 1-3/5", "ell"),
        ("bytes 3-3/5", "l"),
        ("bytes 2-3/5", "l"),
        ("bytes 2-3/5", "llo"),
        ("bytes 2-3/3", "ll"),
    ] {
        let script = move |_: &Seen, _| reply(206, &[("content-range", range)], body);
        let (error, count) = error_of(script, blob(Method::GET).with_part(2, Some(3), None)).await;
        assert!(matches!(error.fault, Fault::Protocol(ProtocolFault::Range)), "{range:?}: {error}");
        assert_eq!(count, 1);
    }
    let (error, count) = error_of(|_, _| reply(200, &[], ""), Ask::tags(&repo(), "last=\u{7f} x", soon())).await;
    assert!(matches!(error.fault, Fault::Protocol(ProtocolFault::Target)), "{error}");
    assert_eq!(count, 0);
}

#[tokio::test]
async fn an_upstream_that_is_away_costs_little() {
    let registry = registry(settings(nobody().await));
    let begun = Instant::now();
    let error = registry.fetch(manifest()).await.unwrap_err();
    assert!(matches!(error.fault, Fault::Unreachable(_)), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(3), "refused is known at once");
    let error = registry.fetch(manifest()).await.unwrap_err();
    assert!(matches!(error.fault, Fault::Unreachable(_)), "why the breaker opened is said once more: {error}");
    let begun = Instant::now();
    let error = registry.fetch(manifest()).await.unwrap_err();
    assert!(matches!(error.fault, Fault::BreakerOpen { .. }), "{error}");
    assert!(begun.elapsed() < Duration::from_millis(100));
    assert_eq!(error.class(), Class::Unavailable);
}

#[tokio::test]
async fn a_sealed_upstream_is_not_even_resolved() {
    let server = Server::start(|_, _| reply(200, &[], "")).await;
    let mut upstream = settings(server.address);
    upstream.sealed = true;
    let error = registry(upstream).fetch(manifest()).await.unwrap_err();
    assert!(matches!(error.fault, Fault::Sealed));
    assert_eq!(server.count("/"), 0);
}

/// Nobody completes the TCP handshake: the place of the one connection that may wait to be accepted is taken.
#[tokio::test]
async fn a_connection_that_is_not_made_is_given_up_in_time() {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(0).unwrap();
    let address = listener.local_addr().unwrap();
    let _waiting = TcpStream::connect(address).await.unwrap();
    let registry = registry(settings(address));
    let begun = Instant::now();
    tokio::time::pause();
    let error = registry.fetch(manifest()).await.unwrap_err();
    assert!(matches!(error.fault, Fault::Timeout(Phase::Connect)), "{error}");
    let took = begun.elapsed();
    assert!(took >= connect::CONNECT_TIMEOUT, "{took:?}");
    assert!(took < Duration::from_secs(20), "within the time of the whole request: {took:?}");
}

/// TCP stands, and then nothing comes where the other side's part of the TLS handshake is due.
#[tokio::test]
async fn a_tls_handshake_that_does_not_end_is_given_up_in_time() {
    let authority = tls::Authority::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let registry = registry(authority.settings("127.0.0.1", listener.local_addr().unwrap().port()));
    let mut ask = manifest();
    // Longer than the handshake may take, too short for another try.
    ask.deadline = Instant::now() + HANDSHAKE_TIMEOUT + Duration::from_millis(50);
    let begun = Instant::now();
    let silent = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        assert_eq!(stream.read_u8().await.unwrap(), 0x16, "the client's part of the handshake");
        tokio::time::pause();
        stream
    };
    let (result, _stream) = tokio::join!(registry.fetch(ask), silent);
    let error = result.unwrap_err();
    assert!(matches!(error.fault, Fault::Timeout(Phase::Connect)), "{error}");
    let took = begun.elapsed();
    assert!(took >= HANDSHAKE_TIMEOUT && took < HANDSHAKE_TIMEOUT + Duration::from_secs(1), "{took:?}");
}

#[tokio::test]
async fn a_head_that_does_not_come_ends_at_the_deadline() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let registry = registry(settings(listener.local_addr().unwrap()));
    let ask = manifest();
    let (deadline, begun) = (ask.deadline, Instant::now());
    let fetching = registry.fetch(ask);
    let stalling = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        read_head(&mut stream).await;
        // From here on only timers can do anything.
        tokio::time::pause();
        stream
    };
    let (result, _stream) = tokio::join!(fetching, stalling);
    let error = result.unwrap_err();
    assert!(matches!(error.fault, Fault::Timeout(Phase::Header)), "{error}");
    assert!(begun.elapsed() >= Duration::from_secs(19) && Instant::now() < deadline + Duration::from_secs(1));
}

#[tokio::test]
async fn a_body_that_stalls_is_given_up_after_a_while() {
    let reply = "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nstall";
    let (address, _server) = raw_server(vec![reply], true).await;
    let answer = registry(settings(address)).fetch(blob(Method::GET)).await.unwrap();
    let mut body = answer.body;
    let mut got = 0;
    while got < 5 {
        got += body.frame().await.unwrap().unwrap().into_data().unwrap().len();
    }
    tokio::time::pause();
    let begun = Instant::now();
    let error = body.frame().await.unwrap().unwrap_err();
    assert!(matches!(error.fault, Fault::Timeout(Phase::Body)), "{error}");
    assert_eq!(begun.elapsed().as_secs(), 30);
}

#[tokio::test]
async fn a_token_service_that_stalls_is_given_up_in_time() {
    let token = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let realm = format!(r#"Bearer realm="http://{}/token""#, token.local_addr().unwrap());
    let server = Server::start(move |_, _| reply(401, &[("www-authenticate", &realm)], "")).await;
    let registry = registry(settings(server.address));
    let mut ask = manifest();
    ask.deadline = Instant::now() + Duration::from_secs(8);
    let stalling = async {
        let (mut stream, _) = token.accept().await.unwrap();
        read_head(&mut stream).await;
        tokio::time::pause();
        stream
    };
    let (result, _stream) = tokio::join!(registry.fetch(ask), stalling);
    let error = result.unwrap_err();
    assert_eq!(error.class(), Class::Unavailable, "{error}");
}

#[tokio::test]
async fn connections_are_used_again() {
    let opened = Arc::new(AtomicUsize::new(0));
    let counting = Arc::clone(&opened);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (done, mut finished) = mpsc::channel(16);
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            counting.fetch_add(1, Ordering::SeqCst);
            loop {
                if read_head(&mut stream).await.is_empty() {
                    break;
                }
                let reply = "HTTP/1.1 401 Unauthorized\r\ncontent-length: 4\r\n\r\nbody";
                stream.write_all(reply.as_bytes()).await.unwrap();
                done.send(()).await.unwrap();
            }
        }
    });
    let registry = registry(settings(address));
    for _ in 0..5 {
        let ask = Ask { kind: Kind::Other, ..Ask::catalog("", soon()) };
        assert!(registry.fetch(ask).await.is_err());
        finished.recv().await.unwrap();
    }
    assert_eq!(opened.load(Ordering::SeqCst), 1, "also after a refusal, whose body is read");
}
