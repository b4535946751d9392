//! Relayed requests: bodies that stream, answers that come early, and where an upstream's Location may lead.

use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::stream;
use http::header::{CONTENT_RANGE, CONTENT_TYPE};
use http_body::Frame;
use http_body_util::StreamBody;
use http_body_util::combinators::UnsyncBoxBody;
use tokio::sync::mpsc::Sender;

use super::*;
use crate::metrics::Kind;
use crate::oci::Via;

const UPLOADS: &str = "/v2/library/alpine/blobs/uploads/";
const UPLOAD: &str = "/v2/library/alpine/blobs/uploads/1?_nouploadcache=false&_state=a%2Fb-_%3D%3D";
const SCOPE: &str = "repository:library/alpine:pull,push";

type Piece = Result<&'static str, &'static str>;

/// A body whose pieces the test gives; an error breaks it.
fn source() -> (Sender<Piece>, UnsyncBoxBody<Bytes, BoxError>) {
    let (give, mut take) = mpsc::channel::<Piece>(1);
    let pieces = stream::poll_fn(move |context| take.poll_recv(context));
    let frames = futures_util::StreamExt::map(pieces, |piece| match piece {
        Ok(text) => Ok(Frame::data(Bytes::from_static(text.as_bytes()))),
        Err(reason) => Err(BoxError::from(reason)),
    });
    (give, StreamBody::new(frames).boxed_unsync())
}

/// A body that never ends, and when a piece of it was taken last.
fn endless() -> (UnsyncBoxBody<Bytes, BoxError>, Arc<Mutex<Instant>>) {
    let piece = Bytes::from(vec![b'x'; 64 << 10]);
    let taken = Arc::new(Mutex::new(Instant::now()));
    let taking = Arc::clone(&taken);
    let frames = stream::repeat_with(move || {
        *taking.lock() = Instant::now();
        Ok(Frame::data(piece.clone()))
    });
    (StreamBody::new(frames).boxed_unsync(), taken)
}

fn path(path: &str) -> CallTarget {
    CallTarget::Path(path.to_owned())
}

fn url(text: &str) -> CallTarget {
    CallTarget::Url(Location::new(text))
}

fn patch(right: Right, body: CallBody) -> Call {
    Call::new(Kind::Upload, Method::PATCH, url(UPLOAD), right).with_repo(&repo()).with_scope(SCOPE).with_body(body)
}

fn put_manifest(right: Right) -> Call {
    Call::new(Kind::Manifest, Method::PUT, path("/v2/library/alpine/manifests/latest"), right)
        .with_repo(&repo())
        .with_scope(SCOPE)
        .with_body(CallBody::Bytes(Bytes::from_static(b"{}")))
        .with_deadline(soon())
}

fn accepted() -> Response<Full<Bytes>> {
    reply(202, &[("location", UPLOAD), ("range", "0-9")], "")
}

async fn said(reply: Reply) -> String {
    String::from_utf8_lossy(&reply.body.collect().await.unwrap().to_bytes()).into_owned()
}

/// A registry that gives the token `t` to whoever asks, and answers by `answer` whoever shows it.
async fn guarded(answer: impl Fn(&Seen) -> Response<Full<Bytes>> + Send + Sync + 'static) -> Server {
    Server::start(move |seen, _| match authorization(seen) {
        _ if seen.target.starts_with("/token") => reply(200, &[], r#"{"access_token":"t"}"#),
        Some("Bearer t") => answer(seen),
        _ => reply(401, &[("www-authenticate", r#"Bearer realm="/token",service="reg""#)], ""),
    })
    .await
}

#[tokio::test]
async fn a_stream_arrives_whole_with_a_token_got_before() {
    for length in [Some(1 << 20), None] {
        let server = guarded(|_| accepted()).await;
        let registry = Arc::new(registry(settings(server.address)));
        let (give, body) = source();
        let call = patch(caller(1, "me", "pw"), CallBody::Stream(body, length))
            .with_header(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"))
            .with_header(CONTENT_RANGE, HeaderValue::from_static("0-1048575"))
            .with_header(http::header::AUTHORIZATION, HeaderValue::from_static("Bearer canary"));
        // Any thread can drive it.
        let mut relaying = JoinSet::new();
        relaying.spawn({
            let registry = Arc::clone(&registry);
            async move { registry.relay(call).await }
        });
        let piece: &'static str = Box::leak("0123456789abcdef".repeat(1024).into_boxed_str());
        for _ in 0..64 {
            give.send(Ok(piece)).await.unwrap();
        }
        drop(give);
        let reply = relaying.join_next().await.unwrap().unwrap().unwrap();
        assert_eq!((reply.status, reply.via, reply.whole), (StatusCode::ACCEPTED, Via::Client, true));
        assert_eq!(reply.headers["range"], "0-9");
        assert_eq!(reply.location.unwrap().as_str(), UPLOAD, "byte for byte");
        let [patched] = &server.requests(UPLOADS)[..] else { panic!("it is sent once") };
        assert_eq!((patched.method.as_str(), patched.target.as_str()), ("PATCH", UPLOAD));
        assert_eq!(patched.body, piece.repeat(64));
        assert_eq!(patched.headers.get("content-length").map(|value| value == "1048576"), length.map(|_| true));
        assert_eq!(patched.headers.get("transfer-encoding").is_some(), length.is_none());
        assert_eq!(patched.headers["content-range"], "0-1048575");
        assert_eq!(patched.headers["content-type"], "application/octet-stream");
        let asked = &server.requests("/token")[0];
        assert_eq!(asked.target, "/token?service=reg&scope=repository%3Alibrary%2Falpine%3Apull%2Cpush&account=me");
        assert_eq!((server.count("/token"), server.requests("/v2/").len()), (1, 2), "challenge, token, body");
    }
}

#[tokio::test]
async fn a_stream_over_http2_arrives_and_breaks_off() {
    let authority = tls::Authority::new();
    let acceptor = authority.acceptor(&["127.0.0.1"], &["h2"]);
    let server = Server::on("127.0.0.1:0", Some(acceptor), |_, _| accepted()).await;
    let registry = registry(authority.settings("127.0.0.1", server.address.port()));
    for broken in [false, true] {
        let (give, body) = source();
        let giving = async move {
            give.send(Ok("hello ")).await.unwrap();
            give.send(if broken { Err("the client is gone") } else { Ok("world") }).await.unwrap();
        };
        let relaying = registry.relay(patch(bearer(1, "mine"), CallBody::Stream(body, None)));
        let (result, ()) = tokio::join!(relaying, giving);
        assert_eq!(result.is_err(), broken);
    }
    assert_eq!(server.break_off().await, UPLOAD);
    let [whole] = &server.requests(UPLOADS)[..] else { panic!("the broken one was no request") };
    assert_eq!(whole.body, "hello world");
}

#[tokio::test]
async fn a_source_that_fails_breaks_the_request_off() {
    let server = Server::start(|_, _| accepted()).await;
    let registry = registry(settings(server.address));
    for (length, pieces, expected) in [
        (None, [Ok("hello"), Err("the client is gone")], "the client is gone"),
        (Some(11), [Ok("hello"), Err("the client is gone")], "the client is gone"),
        (Some(11), [Ok("hello"), Ok("!")], "6 bytes where 11 were announced"),
        (Some(7), [Ok("hello"), Ok(" world")], "11 bytes where 7 were announced"),
    ] {
        let (give, body) = source();
        let giving = async move {
            for piece in pieces {
                give.send(piece).await.unwrap();
            }
        };
        let relaying = registry.relay(patch(bearer(1, "mine"), CallBody::Stream(body, length)));
        let (result, ()) = tokio::join!(relaying, giving);
        let error = result.unwrap_err();
        assert!(matches!(error.fault, Fault::Interrupted(_)), "{error}");
        assert!(error.to_string().contains(expected) && !error.is_retryable(), "{error}");
        assert_eq!(server.break_off().await, UPLOAD, "upstream saw no end");
    }
    assert_eq!(server.count(UPLOADS), 0);
    for _ in 0..5 {
        let (give, body) = source();
        give.send(Err("gone")).await.unwrap();
        assert!(registry.relay(patch(bearer(1, "mine"), CallBody::Stream(body, None))).await.is_err());
    }
    assert!(registry.relay(put_manifest(bearer(1, "mine"))).await.is_ok(), "clients do not open the breaker");
}

#[tokio::test]
async fn a_caller_that_goes_breaks_the_request_off() {
    let server = Server::start(|_, _| accepted()).await;
    let registry = registry(settings(server.address));
    let (give, body) = source();
    let relaying = Box::pin(registry.relay(patch(bearer(1, "mine"), CallBody::Stream(body, None))));
    let giving = async {
        give.send(Ok("hello")).await.unwrap();
        // Taken when there is room for the next but one.
        give.send(Ok("hello")).await.unwrap();
        give.send(Ok("hello")).await.unwrap();
    };
    let futures_util::future::Either::Right(((), relaying)) =
        futures_util::future::select(relaying, Box::pin(giving)).await
    else {
        panic!("there is no answer yet");
    };
    drop(relaying);
    assert_eq!(server.break_off().await, UPLOAD);
    give.closed().await;
}

#[tokio::test]
async fn an_early_answer_is_the_answer() {
    let early = "HTTP/1.1 413 Payload Too Large\r\ncontent-length: 8\r\n\r\ntoo much";
    let (address, _server) = raw_server(vec![early], true).await;
    let registry = registry(settings(address));
    let (give, body) = source();
    give.send(Ok("hello")).await.unwrap();
    let reply = registry.relay(patch(bearer(1, "mine"), CallBody::Stream(body, Some(1 << 40)))).await.unwrap();
    assert_eq!((reply.status, reply.whole), (StatusCode::PAYLOAD_TOO_LARGE, false));
    assert!(!give.is_closed());
    assert_eq!(said(reply).await, "too much");
    give.closed().await;
}

#[tokio::test]
async fn an_upstream_that_takes_no_more_is_given_up() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let registry = registry(settings(listener.local_addr().unwrap()));
    let (body, taken) = endless();
    let relaying = registry.relay(patch(bearer(1, "mine"), CallBody::Stream(body, None)));
    let stalling = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        read_head(&mut stream).await;
        // The clock must not run ahead while the kernel still takes some.
        while taken.lock().elapsed() < Duration::from_millis(200) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        tokio::time::pause();
        (stream, *taken.lock())
    };
    let (result, (_stream, last)) = tokio::join!(relaying, stalling);
    let error = result.unwrap_err();
    assert!(matches!(error.fault, Fault::Timeout(Phase::Upload)), "{error}");
    assert_eq!(error.class(), Class::Unavailable);
    assert!((30..40).contains(&last.elapsed().as_secs()), "{:?}", last.elapsed());
}

#[tokio::test]
async fn an_expired_token_is_replaced_for_what_can_be_sent_again() {
    let issued = Arc::new(AtomicUsize::new(0));
    let valid = Arc::new(AtomicUsize::new(1));
    let (issuing, checking) = (Arc::clone(&issued), Arc::clone(&valid));
    let server = Server::start(move |seen, _| {
        if seen.target.starts_with("/token") {
            let number = issuing.fetch_add(1, Ordering::SeqCst) + 1;
            return reply(200, &[], &format!(r#"{{"access_token":"t{number}"}}"#));
        }
        if authorization(seen) == Some(&format!("Bearer t{}", checking.load(Ordering::SeqCst))) {
            return reply(201, &[("location", "/v2/library/alpine/manifests/x")], "");
        }
        let challenge = format!(r#"Bearer realm="/token",scope="{SCOPE}",error="invalid_token""#);
        reply(401, &[("www-authenticate", &challenge)], "")
    })
    .await;
    let registry = registry(settings(server.address));
    let me = caller(1, "me", "pw");
    assert_eq!(registry.relay(put_manifest(me.clone())).await.unwrap().status, StatusCode::CREATED);
    valid.store(2, Ordering::SeqCst);
    assert_eq!(registry.relay(put_manifest(me.clone())).await.unwrap().status, StatusCode::CREATED);
    let puts = server.requests("/v2/library");
    assert_eq!(puts.len(), 3, "only the refused one is sent again");
    assert!(puts.iter().all(|put| put.body == "{}"));

    valid.store(3, Ordering::SeqCst);
    let stream = || CallBody::Stream(Full::from("hello").map_err(BoxError::from).boxed_unsync(), Some(5));
    // Of this kind nothing is known yet, so it shows the token that it finds.
    let error = registry.relay(patch(me.clone(), stream())).await.unwrap_err();
    let Fault::Unauthorized { demand, .. } = &error.fault else { panic!("{error:?}") };
    assert_eq!((demand.scope.as_str(), demand.error.as_str()), (SCOPE, "invalid_token"));
    assert_eq!(server.count(UPLOADS), 1, "a stream is not sent again");
    assert!(registry.relay(patch(me.clone(), stream())).await.is_ok(), "but the next one has a new token");

    valid.store(9, Ordering::SeqCst);
    let before = server.count("/v2/library");
    assert!(registry.relay(put_manifest(me)).await.is_err());
    assert_eq!(server.count("/v2/library") - before, 2, "a fresh token that is refused is the end");
}

#[tokio::test]
async fn every_status_comes_back_but_401() {
    for (status, headers) in [
        (201, &[("location", "/v2/library/alpine/manifests/sha256:x"), ("oci-subject", "sha256:y")][..]),
        (400, &[]),
        (403, &[]),
        (404, &[]),
        (405, &[]),
        (416, &[]),
        (429, &[("retry-after", "60")]),
        (500, &[]),
        (503, &[("retry-after", "0")]),
    ] {
        let server = Server::start(move |_, _| reply(status, headers, "words")).await;
        let reply = registry(settings(server.address)).relay(put_manifest(Right::Anonymous)).await.unwrap();
        assert_eq!(reply.status.as_u16(), status);
        assert!(headers.iter().all(|(name, value)| reply.headers[*name] == *value));
        assert_eq!(said(reply).await, "words", "{status}");
        assert_eq!(server.count("/v2/library"), 1, "{status} is not asked again");
    }
}

#[tokio::test]
async fn what_is_empty_says_so() {
    let server = Server::start(|_, _| reply(204, &[], "")).await;
    let registry = registry(settings(server.address));
    for (method, length) in
        [(Method::POST, Some("0")), (Method::PUT, Some("0")), (Method::DELETE, None), (Method::GET, None)]
    {
        let call = Call::new(Kind::Upload, method.clone(), path(UPLOADS), Right::Anonymous);
        assert_eq!(said(registry.relay(call).await.unwrap()).await, "");
        let seen = server.requests(UPLOADS).pop().unwrap();
        assert_eq!(seen.headers.get("content-length").map(|value| value.to_str().unwrap()), length, "{method}");
    }
    let empty = CallBody::Stream(Full::default().map_err(|never| match never {}).boxed_unsync(), Some(0));
    registry.relay(patch(Right::Anonymous, empty)).await.unwrap();
    assert_eq!(server.requests(UPLOADS).pop().unwrap().headers["content-length"], "0");
}

#[tokio::test]
async fn a_location_is_kept_and_only_the_upstream_gets_the_credential() {
    let storage = Server::on("127.0.0.2:0", None, |_, _| reply(201, &[], "")).await;
    let elsewhere = storage.url("/put//x?sig=a%2Fb%3D");
    let states: Arc<Mutex<String>> = Arc::default();
    let saying = Arc::clone(&states);
    let server = Server::start(move |_, _| reply(202, &[("location", &saying.lock())], "")).await;
    let registry = registry(settings(server.address));
    let begin = || {
        let call = Call::new(Kind::Upload, Method::POST, path(UPLOADS), bearer(1, "canary"));
        registry.relay(call.with_repo(&repo()))
    };
    for (said, kept) in [
        (UPLOAD.to_owned(), UPLOAD.to_owned()),
        (server.url(UPLOAD), UPLOAD.to_owned()),
        ("2?_state=x".to_owned(), format!("{UPLOADS}2?_state=x")),
        (elsewhere.clone(), elsewhere.clone()),
    ] {
        states.lock().clone_from(&said);
        assert_eq!(begin().await.unwrap().location.unwrap().as_str(), kept, "{said}");
    }
    for bad in ["", "ftp://x/", "http://u:p@127.0.0.1/", "http://127.0.0.1:0/"] {
        bad.clone_into(&mut states.lock());
        let error = begin().await.unwrap_err();
        assert!(matches!(error.fault, Fault::Redirect(_)), "{bad:?}: {error}");
    }
    let digest = Digest::of(Algorithm::Sha256, b"hello");
    let put = |location: &str| {
        let target = CallTarget::Url(Location::new(location).with_digest(&digest));
        registry.relay(Call::new(Kind::Upload, Method::PUT, target, bearer(1, "canary")))
    };
    UPLOAD.clone_into(&mut states.lock());
    put(UPLOAD).await.unwrap();
    let last = server.requests("/").pop().unwrap();
    assert_eq!(last.target, format!("{UPLOAD}&digest={digest}"));
    assert_eq!(authorization(&last), Some("Bearer canary"));
    let reply = put(&elsewhere).await.unwrap();
    assert_eq!((reply.status, reply.via), (StatusCode::CREATED, Via::Anonymous));
    let stored = &storage.requests("/")[0];
    assert_eq!(stored.target, format!("/put//x?sig=a%2Fb%3D&digest={digest}"));
    assert!(!format!("{stored:?}").contains("canary"), "{stored:?}");
}

#[tokio::test]
async fn a_refusal_elsewhere_is_answered_with_nothing() {
    let storage =
        Server::on("127.0.0.2:0", None, |_, _| reply(401, &[("www-authenticate", r#"Bearer realm="/token""#)], ""))
            .await;
    let server = guarded(|_| accepted()).await;
    let call = Call::new(Kind::Upload, Method::PUT, url(&storage.url("/x")), caller(1, "me", "canary"));
    let error = registry(settings(server.address)).relay(call).await.unwrap_err();
    assert!(matches!(error.fault, Fault::Redirect(RedirectFault::Refused { .. })), "{error}");
    assert_eq!((storage.count("/"), server.count("/")), (1, 0));
    assert_eq!(authorization(&storage.requests("/")[0]), None);
}

#[tokio::test]
async fn redirects_of_writes() {
    let storage = Server::on("127.0.0.2:0", None, |_, _| reply(201, &[], "")).await;
    let abroad = storage.url("/there");
    let server = Server::start(move |seen, _| match seen.target.as_str() {
        "/v2/library/alpine/manifests/here" => reply(308, &[("location", "/moved")], ""),
        "/v2/library/alpine/manifests/there" => reply(307, &[("location", &abroad)], ""),
        "/v2/library/alpine/manifests/found" => reply(302, &[("location", "/moved")], ""),
        UPLOAD => reply(307, &[("location", "/moved")], ""),
        _ => reply(201, &[], ""),
    })
    .await;
    let registry = registry(settings(server.address));
    let put = |tag: &str| {
        let mut call = put_manifest(bearer(1, "canary"));
        call.target = path(&format!("/v2/library/alpine/manifests/{tag}"));
        registry.relay(call)
    };
    assert_eq!(put("here").await.unwrap().via, Via::Client);
    let moved = &server.requests("/moved")[0];
    assert_eq!((moved.method.as_str(), moved.body.as_str()), ("PUT", "{}"));
    assert_eq!(authorization(moved), Some("Bearer canary"), "it stays on the origin");
    assert_eq!(put("there").await.unwrap().via, Via::Client);
    let there = &storage.requests("/there")[0];
    assert_eq!((there.method.as_str(), there.body.as_str(), authorization(there)), ("PUT", "{}", None));
    let error = put("found").await.unwrap_err();
    assert!(matches!(error.fault, Fault::Redirect(RedirectFault::Write { .. })), "{error}");
    let body = Full::from("hello").map_err(BoxError::from).boxed_unsync();
    let error = registry.relay(patch(bearer(1, "canary"), CallBody::Stream(body, None))).await.unwrap_err();
    assert!(matches!(error.fault, Fault::Redirect(RedirectFault::Streamed { .. })), "{error}");
    assert_eq!(server.count("/moved"), 1, "a stream is not sent again");
}

#[tokio::test]
async fn what_does_no_harm_twice_is_sent_again() {
    let created = "HTTP/1.1 201 Created\r\ncontent-length: 0\r\n\r\n";
    let begin = || Call::new(Kind::Upload, Method::POST, path(UPLOADS), Right::Anonymous);
    let finish = || Call::new(Kind::Upload, Method::PUT, url(UPLOAD), Right::Anonymous);
    let delete = || Call::new(Kind::Manifest, Method::DELETE, path("/v2/a/manifests/x"), Right::Anonymous);
    for (call, again) in [(put_manifest(bearer(1, "t")), true), (begin(), true), (finish(), false), (delete(), false)] {
        let name = format!("{call:?}");
        // The first connection is closed without an answer.
        let (address, _server) = raw_server(vec!["", created], false).await;
        let result = registry(settings(address)).relay(call).await;
        assert_eq!(result.is_ok(), again, "{name}: {result:?}");
        if let Err(error) = result {
            assert!(matches!(error.fault, Fault::Broken(_)), "{error}");
        }
    }
}

#[tokio::test]
async fn a_stream_is_no_probe_of_an_upstream_that_failed() {
    let port = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let registry = registry(settings(port));
    for _ in 0..2 {
        registry.fetch(manifest()).await.unwrap_err();
    }
    let stream = |body| registry.relay(patch(bearer(1, "t"), CallBody::Stream(body, None)));
    let error = stream(source().1).await.unwrap_err();
    assert!(matches!(error.fault, Fault::BreakerOpen { .. }), "{error}");
    let server = Server::on(&port.to_string(), None, |_, _| accepted()).await;
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(6)).await;
    tokio::time::resume();
    let (give, body) = source();
    let giving = async {
        for _ in 0..3 {
            give.send(Ok("hello")).await.unwrap();
        }
        // The upload runs on; the next request does not wait for its end.
        let fetched = registry.relay(put_manifest(bearer(1, "t"))).await;
        drop(give);
        fetched
    };
    let (streamed, put) = tokio::join!(stream(body), giving);
    assert!(streamed.is_ok() && put.is_ok());
    assert_eq!(server.requests("/")[0].target, "/v2/");
}

#[tokio::test]
async fn a_sealed_upstream_is_sent_nothing() {
    let server = Server::start(|_, _| accepted()).await;
    let mut upstream = settings(server.address);
    upstream.sealed = true;
    let error = registry(upstream).relay(put_manifest(Right::Anonymous)).await.unwrap_err();
    assert!(matches!(error.fault, Fault::Sealed));
    assert_eq!(server.count("/"), 0);
}
