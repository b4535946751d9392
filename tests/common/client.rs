//! A client for HTTP/1.1 and HTTP/2 that tells a body's clean end from a cut.

use std::net::{IpAddr, SocketAddr};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use ocistern::oci::{Algorithm, Digest, Hasher};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

/// Bytes of a body that are kept; beyond, only the hash goes on.
const KEPT: usize = 16 * 1024 * 1024;

/// Where to ask.
#[derive(Debug, Clone, Copy)]
pub struct Client(pub SocketAddr);

/// A request to be sent.
#[derive(Debug, Clone)]
pub struct Ask {
    method: Method,
    target: String,
    headers: HeaderMap,
    body: Bytes,
    http2: bool,
    /// In chunks, without a length.
    chunked: bool,
}

type Body = UnsyncBoxBody<Bytes, std::io::Error>;

/// A request whose body the test sends piece by piece. Dropping it leaves.
#[derive(Debug)]
pub struct Sending {
    pieces: mpsc::Sender<Result<Frame<Bytes>, std::io::Error>>,
    answer: JoinSet<Got>,
}

/// An answer whose head has come and whose body is coming. Dropping it leaves: the connection is closed.
#[derive(Debug)]
pub struct Live {
    pub status: StatusCode,
    pub headers: HeaderMap,
    /// Whether the head carried a length, or the protocol delimits the body otherwise.
    body: Incoming,
    kept: BytesMut,
    length: u64,
    hasher: Hasher,
    driver: JoinSet<()>,
}

/// An answer that has ended, one way or the other.
#[derive(Debug, Clone)]
pub struct Got {
    /// 0 where no head came.
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Bytes,
    pub length: u64,
    /// SHA-256 of all that came.
    pub digest: Digest,
    /// Why the transfer was cut; none: it ended cleanly.
    pub cut: Option<String>,
}

// === impl Client ===

impl Client {
    /// Sends a request and waits for the head; an error where none came.
    pub async fn open(self, ask: Ask) -> Result<Live, String> {
        super::patiently("an answer's head", self.open_now(ask)).await
    }

    /// Sends a request from that address of this machine, and reads the answer to its end.
    pub async fn send_from(self, source: IpAddr, ask: Ask) -> Got {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind((source, 0).into()).unwrap();
        let stream = socket.connect(self.0).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self::send_over(stream, &self.0.to_string(), ask).await
    }

    /// Sends a request and reads the answer to its end.
    pub async fn send(self, ask: Ask) -> Got {
        match self.open(ask).await {
            Ok(live) => live.finish().await,
            Err(cut) => Got::none(cut),
        }
    }

    /// Begins a request whose body comes by [`Sending::send`], in chunks unless a Content-Length is set.
    pub fn stream(self, ask: Ask) -> Sending {
        let (pieces, mut taken) = mpsc::channel(1);
        let frames = futures_util::stream::poll_fn(move |cx| taken.poll_recv(cx));
        let mut answer = JoinSet::new();
        answer.spawn(async move {
            match self.open_with(ask, StreamBody::new(frames).boxed_unsync()).await {
                Ok(live) => live.finish().await,
                Err(cut) => Got::none(cut),
            }
        });
        Sending { pieces, answer }
    }

    /// GET of a path.
    pub async fn get(self, target: impl Into<String>) -> Got {
        self.send(Ask::get(target)).await
    }

    /// HEAD of a path.
    pub async fn head(self, target: impl Into<String>) -> Got {
        self.send(Ask::head(target)).await
    }

    async fn open_now(self, ask: Ask) -> Result<Live, String> {
        let body = if ask.chunked {
            let bytes = ask.body.clone();
            let pieces = (0..bytes.len())
                .step_by(10_000)
                .map(move |at| Ok(Frame::data(bytes.slice(at..bytes.len().min(at + 10_000)))));
            StreamBody::new(futures_util::stream::iter(pieces)).boxed_unsync()
        } else {
            Full::new(ask.body.clone()).map_err(|never| match never {}).boxed_unsync()
        };
        self.open_with(ask, body).await
    }

    async fn open_with(self, ask: Ask, body: Body) -> Result<Live, String> {
        let stream = TcpStream::connect(self.0).await.map_err(|error| format!("connect: {error}"))?;
        stream.set_nodelay(true).map_err(|error| error.to_string())?;
        Self::open_over(stream, &self.0.to_string(), ask, body).await
    }

    /// Sends a request over a connection that is there, to that host, and reads the answer to its end.
    pub async fn send_over(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, host: &str, ask: Ask) -> Got {
        let body = Full::new(ask.body.clone()).map_err(|never| match never {}).boxed_unsync();
        match super::patiently("an answer's head", Self::open_over(stream, host, ask, body)).await {
            Ok(live) => live.finish().await,
            Err(cut) => Got::none(cut),
        }
    }

    async fn open_over(
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        host: &str,
        ask: Ask,
        body: Body,
    ) -> Result<Live, String> {
        let io = TokioIo::new(stream);
        let mut driver = JoinSet::new();
        let mut request = Request::builder().method(ask.method);
        let response = if ask.http2 {
            let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io)
                .await
                .map_err(|error| format!("handshake: {error:?}"))?;
            driver.spawn(async move { drop(connection.await) });
            request = request.uri(format!("http://{host}{}", ask.target));
            let mut request = request.body(body).map_err(|error| error.to_string())?;
            request.headers_mut().extend(ask.headers);
            sender.send_request(request).await
        } else {
            let (mut sender, connection) =
                hyper::client::conn::http1::handshake(io).await.map_err(|error| format!("handshake: {error:?}"))?;
            driver.spawn(async move { drop(connection.await) });
            request = request.uri(ask.target);
            let mut request = request.body(body).map_err(|error| error.to_string())?;
            let host = HeaderValue::from_str(host).map_err(|error| error.to_string())?;
            request.headers_mut().insert("host", host);
            request.headers_mut().extend(ask.headers);
            sender.send_request(request).await
        };
        let (head, body) = response.map_err(|error| format!("no head: {error:?}"))?.into_parts();
        Ok(Live {
            status: head.status,
            headers: head.headers,
            body,
            kept: BytesMut::new(),
            length: 0,
            hasher: Hasher::new(Algorithm::Sha256),
            driver,
        })
    }
}

// === impl Ask ===

impl Ask {
    pub fn new(method: Method, target: impl Into<String>) -> Self {
        let (headers, body) = (HeaderMap::new(), Bytes::new());
        Self { method, target: target.into(), headers, http2: false, body, chunked: false }
    }

    pub fn post(target: impl Into<String>) -> Self {
        Self::new(Method::POST, target)
    }

    pub fn put(target: impl Into<String>) -> Self {
        Self::new(Method::PUT, target)
    }

    pub fn patch(target: impl Into<String>) -> Self {
        Self::new(Method::PATCH, target)
    }

    pub fn delete(target: impl Into<String>) -> Self {
        Self::new(Method::DELETE, target)
    }

    /// With a body.
    #[must_use]
    pub fn body(mut self, body: impl Into<Bytes>) -> Self {
        self.body = body.into();
        self
    }

    /// Without saying how long the body is.
    #[must_use]
    pub fn chunked(mut self) -> Self {
        self.chunked = true;
        self
    }

    pub fn get(target: impl Into<String>) -> Self {
        Self::new(Method::GET, target)
    }

    pub fn head(target: impl Into<String>) -> Self {
        Self::new(Method::HEAD, target)
    }

    /// With a header more.
    #[must_use]
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.append(HeaderName::try_from(name).unwrap(), HeaderValue::from_str(value).unwrap());
        self
    }

    /// The same for another target.
    #[must_use]
    pub fn at(mut self, target: impl Into<String>) -> Self {
        self.target = target.into();
        self
    }

    /// With a form as body.
    #[must_use]
    pub fn form(self, form: &str) -> Self {
        self.with("content-type", "application/x-www-form-urlencoded").body(form.to_owned())
    }

    /// With a name and password.
    #[must_use]
    pub fn basic(self, name: &str, password: &str) -> Self {
        self.with("authorization", &format!("Basic {}", STANDARD.encode(format!("{name}:{password}"))))
    }

    /// With a token.
    #[must_use]
    pub fn bearer(self, token: &str) -> Self {
        self.with("authorization", &format!("Bearer {token}"))
    }

    /// Whether it goes over HTTP/2.
    pub const fn is_http2(&self) -> bool {
        self.http2
    }

    /// Over HTTP/2 with prior knowledge.
    #[must_use]
    pub fn http2(mut self) -> Self {
        self.http2 = true;
        self
    }
}

// === impl Sending ===

impl Sending {
    /// Sends a piece; false if nobody takes it any more.
    pub async fn send(&self, piece: Bytes) -> bool {
        super::patiently("a piece is taken", self.pieces.send(Ok(Frame::data(piece)))).await.is_ok()
    }

    /// Ends the body.
    pub async fn finish(mut self) -> Got {
        drop(self.pieces);
        super::patiently("an answer", self.answer.join_next()).await.unwrap().unwrap()
    }

    /// Whether nobody takes any more of the body: the answer has come.
    pub fn is_answered(&self) -> bool {
        self.pieces.is_closed()
    }

    /// The answer to what was sent so far: the body does not end.
    pub async fn answer(mut self) -> Got {
        super::patiently("an answer", self.answer.join_next()).await.unwrap().unwrap()
    }

    /// Breaks the body off.
    pub async fn abort(mut self) -> Got {
        let _ = self.pieces.send(Err(std::io::Error::other("scripted"))).await;
        super::patiently("an answer", self.answer.join_next()).await.unwrap().unwrap()
    }
}

// === impl Live ===

impl Live {
    /// Reads on until so many bytes have come in all, or the body ends; how many have come.
    pub async fn read_to(&mut self, bytes: u64) -> u64 {
        while self.length < bytes {
            match super::patiently("the next piece of a body", self.body.frame()).await {
                Some(Ok(frame)) => self.take(frame.into_data().unwrap_or_default()),
                Some(Err(_)) | None => break,
            }
        }
        self.length
    }

    /// Reads to the end.
    pub async fn finish(mut self) -> Got {
        let mut cut = None;
        while let Some(frame) = super::patiently("the next piece of a body", self.body.frame()).await {
            match frame {
                Ok(frame) => self.take(frame.into_data().unwrap_or_default()),
                Err(error) => {
                    cut = Some(format!("{error:?}"));
                    break;
                }
            }
        }
        drop(self.driver);
        Got {
            status: self.status.as_u16(),
            headers: self.headers,
            body: self.kept.freeze(),
            length: self.length,
            digest: self.hasher.finish(),
            cut,
        }
    }

    /// What has come so far (at most the first 16 MiB).
    pub fn so_far(&self) -> &[u8] {
        &self.kept
    }

    fn take(&mut self, data: Bytes) {
        self.hasher.update(&data);
        self.length += data.len() as u64;
        let room = KEPT.saturating_sub(self.kept.len()).min(data.len());
        self.kept.extend_from_slice(&data[..room]);
    }
}

// === impl Got ===

impl Got {
    /// No head came.
    pub fn none(cut: String) -> Self {
        let digest = Digest::of(Algorithm::Sha256, b"");
        Self { status: 0, headers: HeaderMap::new(), body: Bytes::new(), length: 0, digest, cut: Some(cut) }
    }

    /// The value of a header; empty where it is missing or not text.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// Whether it is a 200 that ended cleanly.
    pub fn complete(&self) -> bool {
        self.status == 200 && self.cut.is_none()
    }

    /// The body as JSON.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("no JSON ({error}): {}", self.summary()))
    }

    /// The code of the specification's error body.
    #[track_caller]
    pub fn error_code(&self) -> String {
        let body: ocistern::oci::ErrorBody = serde_json::from_slice(&self.body).unwrap_or_else(|error| {
            panic!("{} without the specification's error body ({error}): {self:?}", self.status)
        });
        body.errors[0].code.clone()
    }

    /// Fails unless it is a complete 200 with exactly these bytes.
    #[track_caller]
    pub fn assert_is(&self, bytes: &Bytes) {
        let seen = self.summary();
        assert!(self.complete(), "a complete answer was due: {seen}");
        assert_eq!(self.length, bytes.len() as u64, "another length: {seen}");
        assert_eq!(self.digest, Digest::of(Algorithm::Sha256, bytes), "other bytes: {seen}");
    }

    /// Fails unless it is a clean error with this status, in the specification's form.
    #[track_caller]
    pub fn assert_fails(&self, status: u16) {
        let seen = self.summary();
        assert_eq!((self.status, self.cut.as_deref()), (status, None), "another answer: {seen}");
        assert!(!self.error_code().is_empty(), "an error without a code: {seen}");
    }

    /// Status, headers and the start of the body, for messages.
    pub fn summary(&self) -> String {
        let start = String::from_utf8_lossy(&self.body[..self.body.len().min(300)]).into_owned();
        let start = if self.status == 200 { String::new() } else { start };
        format!("{} {:?} length {} cut {:?} {start}", self.status, self.headers, self.length, self.cut)
    }
}
