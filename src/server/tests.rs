//! Connections and their end, through real sockets, with a handler of the tests' own.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{CertificateParams, KeyPair};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::activity::{Clients, Heard};
use super::connection::{Handler, Run, STREAMS, Serving};
use super::listener::{Purpose, Socket};
use super::permits::{Loopback, Permits};
use super::tls::Tls;
use crate::config::{CertificateFiles, Limits, ListenerTls, MaxRate};
use crate::http::MAX_HEAD;
use crate::http::body::{Body, BodyError};
use crate::http::connection::Connection;
use crate::metrics::{Connections, Metrics};

const SHORT: Duration = Duration::from_millis(100);
const LONG: Duration = Duration::from_mins(1);

/// Answers by path; the gates are opened by the tests.
#[derive(Clone, Default)]
struct Answers {
    /// Opens the rest of `/gated`.
    gate: Arc<Notify>,
    /// Told when the body of `/endless` is dropped.
    gone: Arc<Notify>,
}

/// One byte, then after the gate another one.
struct Gated {
    gate: Pin<Box<dyn Future<Output = ()> + Send>>,
    sent: usize,
}

/// Never ends.
struct Endless(Arc<Notify>);

impl Handler for Answers {
    fn handle(
        &self,
        _connection: Connection,
        request: Request<Heard<Incoming>>,
    ) -> impl Future<Output = Response<Body>> + Send {
        assert_ne!(request.uri().path(), "/panic-at-once", "as asked");
        let Self { gate, gone } = self.clone();
        async move {
            match request.uri().path() {
                "/panic" => panic!("as asked"),
                "/gated" => {
                    let gate = Box::pin(async move { gate.notified().await });
                    Response::new(Body::stream(Gated { gate, sent: 0 }))
                }
                "/endless" => Response::new(Body::stream(Endless(gone))),
                _ => Response::new(Body::full("hello")),
            }
        }
    }
}

impl http_body::Body for Gated {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.sent += 1;
        match self.sent {
            1 => Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b"1"))))),
            2 => {
                if self.gate.as_mut().poll(cx).is_pending() {
                    self.sent -= 1;
                    return Poll::Pending;
                }
                Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b"2")))))
            }
            _ => Poll::Ready(None),
        }
    }
}

impl http_body::Body for Endless {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(&[0; 16 * 1024])))))
    }
}

impl Drop for Endless {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}

fn limits() -> Limits {
    Limits {
        connections: 100,
        connections_per_address: 100,
        first_byte: LONG,
        header: LONG,
        idle: LONG,
        min_rate: 1024,
        min_rate_window: LONG,
        drain: LONG,
        max_rate: MaxRate::default(),
    }
}

async fn start(limits: Limits) -> (SocketAddr, Run, Answers) {
    start_with(limits, None).await
}

async fn start_with(limits: Limits, tls: Option<Arc<Tls>>) -> (SocketAddr, Run, Answers) {
    let (run, answers) = (Run::default(), Answers::default());
    let permits = Permits::new(limits.connections, limits.connections_per_address, Loopback::Free);
    let socket = Socket::tcp("127.0.0.1:0".parse().unwrap(), Purpose::Listener).await.unwrap();
    let address = socket.address().unwrap();
    let serving = Serving::new(answers.clone(), tls, permits, (Clients::Anybody, &limits), run.clone());
    run.tasks.spawn(serving.accept(socket, Connections::new(&Metrics::new().unwrap(), "x")));
    (address, run, answers)
}

/// Sends a request on a connection of its own, and reads what comes until the server closes it.
async fn raw(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

fn get(path: &str, fields: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n{fields}\r\n")
}

/// Reads until `end` has come.
async fn read_until(stream: &mut TcpStream, end: &str) -> String {
    let mut text = String::new();
    let mut buffer = [0; 1024];
    while !text.contains(end) {
        let count = stream.read(&mut buffer).await.unwrap();
        assert!(count > 0, "closed after {text:?}, before {end:?}");
        text.push_str(std::str::from_utf8(buffer.get(..count).unwrap()).unwrap());
    }
    text
}

#[tokio::test]
async fn a_silent_connection_is_closed() {
    let (address, ..) = start(Limits { first_byte: SHORT, ..limits() }).await;
    assert_eq!(raw(address, "").await, "");
}

/// Also where TLS has to come first, which has a time of its own.
#[tokio::test]
async fn a_connection_that_is_silent_in_its_handshake_is_closed() {
    let directory = tempfile::tempdir().unwrap();
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(vec!["a.test".to_owned()]).unwrap().self_signed(&key).unwrap();
    let files = CertificateFiles { certificate: directory.path().join("pem"), key: directory.path().join("key") };
    std::fs::write(&files.certificate, certificate.pem()).unwrap();
    std::fs::write(&files.key, key.serialize_pem()).unwrap();
    let tls = Tls::open("a listener".to_owned(), ListenerTls { certificates: vec![files], client_ca: None }).unwrap();
    let (address, ..) = start_with(Limits { first_byte: SHORT, ..limits() }, Some(Arc::new(tls))).await;
    assert_eq!(raw(address, "").await, "");
    assert_eq!(raw(address, "\x16\x03\x01").await, "", "the beginning of a hello");
}

#[tokio::test]
async fn an_unfinished_head_is_closed() {
    let (address, ..) = start(Limits { header: SHORT, ..limits() }).await;
    assert_eq!(raw(address, "GET /v2/ HTTP/1.1\r\nHost: local").await, "");
    assert_eq!(raw(address, "P").await, "", "not even the protocol is known");
}

#[tokio::test]
async fn an_idle_connection_is_closed_after_its_answer() {
    let (address, ..) = start(Limits { idle: SHORT, ..limits() }).await;
    assert!(raw(address, &get("/", "")).await.ends_with("hello"));
}

#[tokio::test]
async fn a_client_that_does_not_read_is_dropped() {
    let (address, _run, answers) = start(Limits { min_rate_window: SHORT, ..limits() }).await;
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(get("/endless", "").as_bytes()).await.unwrap();
    answers.gone.notified().await;
}

#[tokio::test]
async fn a_client_of_http2_that_does_not_read_is_dropped() {
    let (address, _run, answers) = start(Limits { min_rate_window: SHORT, ..limits() }).await;
    let stream = TcpStream::connect(address).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    let tasks = tokio_util::task::TaskTracker::new();
    tasks.spawn(connection);
    let request = Request::get(format!("http://{address}/endless")).body(Empty::<Bytes>::new()).unwrap();
    let response = sender.send_request(request).await.unwrap();
    // The body is held and not read: the connection lives, its window stays shut.
    answers.gone.notified().await;
    drop(response);
}

#[tokio::test]
async fn a_panic_is_a_500_and_the_connection_lives() {
    let (address, ..) = start(limits()).await;
    let mut stream = TcpStream::connect(address).await.unwrap();
    for target in ["/panic", "/panic-at-once"] {
        stream.write_all(get(target, "X-Request-Id: my-id.1\r\n").as_bytes()).await.unwrap();
        let answer = read_until(&mut stream, "}]}").await;
        assert!(answer.starts_with("HTTP/1.1 500 "), "{answer}");
        assert!(answer.contains("x-request-id: my-id.1\r\n"), "{answer}");
        assert!(answer.contains("content-type: application/json\r\n"), "{answer}");
        assert!(answer.contains(r#"{"errors":[{"code":"UNKNOWN","#), "{answer}");
        assert!(!answer.contains("as asked"), "what a panic says is for the log: {answer}");
    }
    stream.write_all(get("/", "").as_bytes()).await.unwrap();
    assert!(read_until(&mut stream, "hello").await.starts_with("HTTP/1.1 200 "));
}

#[tokio::test]
async fn a_strange_request_id_is_replaced() {
    let (address, ..) = start(limits()).await;
    let strange = format!("X-Request-Id: {}\r\nConnection: close\r\n", "x".repeat(65));
    for fields in ["X-Request-Id: a b\r\nConnection: close\r\n", &strange, "Connection: close\r\n"] {
        let answer = raw(address, &get("/", fields)).await;
        let id = answer.lines().find_map(|line| line.strip_prefix("x-request-id: ")).unwrap();
        assert!(id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit()), "{id}");
    }
}

#[tokio::test]
async fn a_stop_waits_for_a_running_answer() {
    let (address, run, answers) = start(limits()).await;
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(get("/gated", "").as_bytes()).await.unwrap();
    read_until(&mut stream, "\r\n1\r\n").await;
    let mut idle = TcpStream::connect(address).await.unwrap();
    idle.write_all(get("/", "").as_bytes()).await.unwrap();
    read_until(&mut idle, "hello").await;

    let mut end = std::pin::pin!(super::end(&run, Instant::now() + LONG));
    assert!(futures_util::poll!(end.as_mut()).is_pending());
    assert_eq!(idle.read(&mut [0; 8]).await.unwrap(), 0, "an idle connection is closed at once");
    assert!(futures_util::poll!(end.as_mut()).is_pending(), "the answer still runs");
    answers.gate.notify_one();
    end.await;
    let rest = read_until(&mut stream, "0\r\n\r\n").await;
    assert!(rest.contains('2'), "{rest}");
    assert!(TcpStream::connect(address).await.is_err(), "nobody accepts any more");
}

#[tokio::test]
async fn a_stop_ends_at_its_deadline() {
    let (address, run, _answers) = start(limits()).await;
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(get("/gated", "").as_bytes()).await.unwrap();
    read_until(&mut stream, "\r\n1\r\n").await;
    super::end(&run, Instant::now()).await;
    assert!(run.tasks.is_empty());
    assert_eq!(stream.read(&mut [0; 8]).await.unwrap(), 0, "broken off, without the last chunk");
}

#[tokio::test]
async fn a_connection_too_many_waits_for_a_place() {
    let (address, ..) = start(Limits { connections: 1, ..limits() }).await;
    let mut first = TcpStream::connect(address).await.unwrap();
    first.write_all(get("/", "").as_bytes()).await.unwrap();
    read_until(&mut first, "hello").await;
    let mut second = TcpStream::connect(address).await.unwrap();
    second.write_all(get("/", "").as_bytes()).await.unwrap();
    let mut buffer = [0; 8];
    {
        let reading = second.read(&mut buffer);
        let mut reading = std::pin::pin!(reading);
        // The first one is served again meanwhile: time has passed, and the second one has still not been accepted.
        first.write_all(get("/", "").as_bytes()).await.unwrap();
        read_until(&mut first, "hello").await;
        assert!(poll_fn(|cx| Poll::Ready(reading.as_mut().poll(cx).is_pending())).await);
    }
    drop(first);
    assert!(read_until(&mut second, "hello").await.starts_with("HTTP/1.1 200 "));
}

#[tokio::test]
async fn a_head_of_http2_that_is_too_large_is_refused() {
    let (address, ..) = start(limits()).await;
    for (length, fits) in [(MAX_HEAD / 2, true), (MAX_HEAD, false), (10 * MAX_HEAD, false)] {
        let stream = TcpStream::connect(address).await.unwrap();
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
        let tasks = tokio_util::task::TaskTracker::new();
        tasks.spawn(connection);
        let request = Request::get(format!("http://{address}/")).header("x-large", "x".repeat(length));
        match sender.send_request(request.body(Empty::<Bytes>::new()).unwrap()).await {
            Ok(response) if fits => assert_eq!(response.status(), StatusCode::OK),
            Ok(response) => assert_eq!(response.status(), StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "{length}"),
            Err(error) => assert!(!fits, "{length}: {error}"),
        }
    }
}

/// A frame of HTTP/2 (RFC 9113, section 4.1).
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// By a client that does not care for what the server's settings say.
#[tokio::test]
async fn streams_of_http2_beyond_the_limit_are_refused() {
    const HEADERS: u8 = 1;
    const RST_STREAM: u8 = 3;
    const SETTINGS: u8 = 4;
    const REFUSED_STREAM: [u8; 4] = [0, 0, 0, 7];
    let (address, ..) = start(limits()).await;
    let mut stream = TcpStream::connect(address).await.unwrap();
    let mut sent =
        [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", &*frame(SETTINGS, 0, 0, &[]), &frame(SETTINGS, 1, 0, &[])].concat();
    // GET, http, :path and :authority as literals (RFC 7541): an answer that does not end.
    let head = [&[0x82, 0x86, 0x04, 6][..], b"/gated", &[0x01, 9], b"localhost"].concat();
    let id = |number: u32| 2 * number + 1;
    for number in 0..=STREAMS {
        sent.extend(frame(HEADERS, 0x5, id(number), &head));
    }
    stream.write_all(&sent).await.unwrap();
    let mut answered = 0;
    loop {
        let mut start = [0; 9];
        stream.read_exact(&mut start).await.unwrap();
        let (kind, number) = (start[3], u32::from_be_bytes(start[5..].try_into().unwrap()));
        let length = u32::from_be_bytes(start[..4].try_into().unwrap()) >> 8;
        let mut payload = vec![0; usize::try_from(length).unwrap()];
        stream.read_exact(&mut payload).await.unwrap();
        match kind {
            HEADERS => answered += 1,
            RST_STREAM => {
                assert_eq!((number, &*payload), (id(STREAMS), &REFUSED_STREAM[..]), "the one too many, and no other");
                break;
            }
            _ => {}
        }
    }
    assert!(answered <= STREAMS, "{answered}");
}

#[tokio::test]
async fn plain_listeners_speak_http2_by_prior_knowledge() {
    let (address, run, _answers) = start(limits()).await;
    let stream = TcpStream::connect(address).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    let tasks = tokio_util::task::TaskTracker::new();
    tasks.spawn(connection);
    let request = Request::get(format!("http://{address}/")).body(Empty::<Bytes>::new()).unwrap();
    let response = sender.send_request(request).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "hello");
    super::end(&run, Instant::now() + LONG).await;
    assert!(run.tasks.is_empty(), "an idle connection of HTTP/2 ends with GOAWAY");
}
