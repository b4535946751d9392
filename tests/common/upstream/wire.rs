//! HTTP/1.1 by hand, so that an answer can be wrong in every way: requests are parsed from a socket, replies written
//! to it with their faults.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use ocistern::oci::Hasher;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::watch;

/// A request as it came.
#[derive(Debug, Clone, Default)]
pub struct Request {
    pub method: String,
    /// As sent, without the query.
    pub path: String,
    /// Without the question mark; empty if there is none.
    pub query: String,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// Bytes of the body that came, also of one that is not kept.
    pub length: u64,
    /// Instead of the body, where it is not kept.
    pub hasher: Option<Hasher>,
}

/// A door in an answer: closed until the test opens it.
#[derive(Debug, Clone)]
pub struct Gate(Arc<watch::Sender<Door>>);

#[derive(Debug, Default)]
struct Door {
    open: bool,
    waiting: usize,
}

/// How a reply's body is delimited.
#[derive(Debug, Clone, Copy)]
pub enum Framing {
    /// Content-Length: the body's, or what is lied.
    Length(Option<u64>),
    /// Transfer-Encoding: chunked.
    Chunked,
    /// By the end of the connection.
    Close,
}

/// How a connection ends early.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// An orderly end of the stream.
    Fin,
    /// A TCP reset.
    Reset,
}

/// An answer, and what goes wrong in it.
#[derive(Debug, Clone)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Bytes,
    pub framing: Framing,
    /// Waits at each of these before anything is sent.
    pub head_gates: Vec<Gate>,
    /// Sent before the head, as it is.
    pub preface: Bytes,
    /// Ends the connection instead of sending a head.
    pub no_head: Option<Cut>,
    /// Waits when so many bytes of the body are out; in rising order.
    pub holds: Vec<(u64, Gate)>,
    /// Ends the connection when so many bytes of the body are out.
    pub cut: Option<(u64, Cut)>,
    /// So many bytes at a time, with so long a pause.
    pub drip: Option<(usize, Duration)>,
    /// For a HEAD: announces a body and sends none.
    pub head_only: bool,
}

/// The far end, plain or inside TLS.
#[derive(Debug)]
pub enum Conn {
    Plain(TcpStream),
    Tls(Box<tokio_rustls::server::TlsStream<TcpStream>>),
}

// === impl Request ===

impl Request {
    /// The first value of a header; `name` in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    /// The decoded value of a query parameter, or of a form field where the body is a form.
    pub fn parameter(&self, name: &str) -> Option<String> {
        let form = String::from_utf8_lossy(&self.body);
        let from = if self.body.is_empty() { self.query.as_str() } else { &form };
        from.split('&').find_map(|pair| {
            let (key, value) = pair.split_once('=')?;
            (key == name).then(|| percent_encoding::percent_decode_str(value).decode_utf8_lossy().into_owned())
        })
    }

    /// Reads the head of the next request; none: the peer has closed.
    pub async fn read_head(conn: &mut Conn, buffer: &mut Vec<u8>) -> io::Result<Option<Self>> {
        let end = loop {
            if let Some(at) = buffer.windows(4).position(|four| four == b"\r\n\r\n") {
                break at + 4;
            }
            if !more(conn, buffer).await? {
                return Ok(None);
            }
        };
        let head = String::from_utf8_lossy(&buffer[..end]).into_owned();
        buffer.drain(..end);
        let mut lines = head.split("\r\n");
        let mut first = lines.next().unwrap_or_default().split(' ');
        let method = first.next().unwrap_or_default().to_owned();
        let target = first.next().unwrap_or_default();
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let headers: Vec<_> = lines
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
            .collect();
        Ok(Some(Self { method, path: path.to_owned(), query: query.to_owned(), headers, ..Self::default() }))
    }

    /// Reads the body, or so much of it; false: the peer has closed before that.
    pub async fn read_body(&mut self, conn: &mut Conn, buffer: &mut Vec<u8>, upto: Option<u64>) -> io::Result<bool> {
        let chunked = self.header("transfer-encoding").is_some_and(|coding| coding.eq_ignore_ascii_case("chunked"));
        let length: u64 = self.header("content-length").and_then(|text| text.parse().ok()).unwrap_or(0);
        loop {
            if chunked {
                while let Some((at, size)) = chunk(buffer) {
                    self.take(&buffer[at..at + size]);
                    // The last chunk is empty, and trailers are not sent here.
                    buffer.drain(..at + size + 2);
                    if size == 0 {
                        return Ok(true);
                    }
                }
            } else {
                let wanted = usize::try_from(length - self.length).unwrap().min(buffer.len());
                self.take(&buffer[..wanted]);
                buffer.drain(..wanted);
                if self.length == length {
                    return Ok(true);
                }
            }
            if upto.is_some_and(|upto| self.length >= upto) {
                return Ok(true);
            }
            if !more(conn, buffer).await? {
                return Ok(false);
            }
        }
    }

    fn take(&mut self, bytes: &[u8]) {
        self.length += bytes.len() as u64;
        match &mut self.hasher {
            Some(hasher) => hasher.update(bytes),
            None => self.body.extend_from_slice(bytes),
        }
    }
}

/// Where the content of the first chunk begins, and its size, if it is there with its end.
fn chunk(buffer: &[u8]) -> Option<(usize, usize)> {
    let line = buffer.windows(2).position(|two| two == b"\r\n")?;
    let text = std::str::from_utf8(&buffer[..line]).unwrap();
    let size = usize::from_str_radix(text.split(';').next().unwrap().trim(), 16).unwrap();
    (buffer.len() >= line + 2 + size + 2).then_some((line + 2, size))
}

async fn more(conn: &mut Conn, buffer: &mut Vec<u8>) -> io::Result<bool> {
    Ok(conn.read_buf(buffer).await? > 0)
}

// === impl Gate ===

impl Gate {
    /// A closed gate.
    pub fn new() -> Self {
        Self(Arc::new(watch::Sender::new(Door::default())))
    }

    /// Lets everybody through, now and later.
    pub fn open(&self) {
        self.0.send_modify(|door| door.open = true);
    }

    /// Returns when at least `count` answers stand before the gate (or have passed it).
    pub async fn reached(&self, count: usize) {
        let _ = super::super::patiently("an answer reaches the gate", async {
            self.0.subscribe().wait_for(|door| door.waiting >= count).await.map(|_| ())
        })
        .await;
    }

    pub(super) async fn pass(&self) {
        self.0.send_modify(|door| door.waiting += 1);
        // The sender cannot have gone: it is in `self`.
        let _ = self.0.subscribe().wait_for(|door| door.open).await;
    }
}

// === impl Reply ===

impl Reply {
    /// An answer without faults.
    pub fn new(status: u16, content_type: &str, body: impl Into<Bytes>) -> Self {
        Self {
            status,
            headers: vec![("Content-Type".to_owned(), content_type.to_owned())],
            body: body.into(),
            framing: Framing::Length(None),
            head_gates: Vec::new(),
            preface: Bytes::new(),
            no_head: None,
            holds: Vec::new(),
            cut: None,
            drip: None,
            head_only: false,
        }
    }

    /// With another header, replacing one of the same name.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.retain(|(n, _)| !n.eq_ignore_ascii_case(name));
        self.headers.push((name.to_owned(), value.into()));
        self
    }

    /// Without that header.
    #[must_use]
    pub fn without(mut self, name: &str) -> Self {
        self.headers.retain(|(n, _)| !n.eq_ignore_ascii_case(name));
        self
    }

    fn head(&self) -> String {
        let mut head = format!("HTTP/1.1 {} Scripted\r\n", self.status);
        for (name, value) in &self.headers {
            head += &format!("{name}: {value}\r\n");
        }
        match self.framing {
            _ if matches!(self.status, 100..=199 | 204 | 304) => {}
            Framing::Length(length) => {
                let length = length.unwrap_or(self.body.len() as u64);
                head += &format!("Content-Length: {length}\r\n");
            }
            Framing::Chunked => head += "Transfer-Encoding: chunked\r\n",
            Framing::Close => head += "Connection: close\r\n",
        }
        head + "\r\n"
    }

    /// Sends the reply, counting the body's bytes in `sent`. Returns whether the connection may be used again.
    pub async fn write(self, conn: &mut Conn, sent: &AtomicU64) -> io::Result<bool> {
        for gate in &self.head_gates {
            gate.pass().await;
        }
        conn.write_all(&self.preface).await?;
        if let Some(cut) = self.no_head {
            conn.flush().await?;
            conn.end(cut)?;
            return Ok(false);
        }
        conn.write_all(self.head().as_bytes()).await?;
        if !self.head_only && !matches!(self.status, 204 | 304) {
            self.write_body(conn, sent).await?;
        }
        conn.flush().await?;
        if let Some((_, cut)) = self.cut
            && !self.head_only
        {
            conn.end(cut)?;
            return Ok(false);
        }
        Ok(match self.framing {
            Framing::Length(Some(length)) => length == self.body.len() as u64,
            Framing::Length(None) | Framing::Chunked => true,
            Framing::Close => false,
        })
    }

    async fn write_body(&self, conn: &mut Conn, sent: &AtomicU64) -> io::Result<()> {
        let total = self.body.len() as u64;
        let end = self.cut.map_or(total, |(at, _)| at.min(total));
        let mut stops: Vec<(u64, Option<&Gate>)> =
            self.holds.iter().map(|(at, gate)| ((*at).min(end), Some(gate))).collect();
        stops.push((end, None));
        let mut at = 0;
        for (stop, gate) in stops {
            while at < stop {
                let step = self.drip.map_or(64 * 1024, |(bytes, _)| bytes as u64).min(stop - at);
                let chunk = self.body.slice(usize::try_from(at).unwrap()..usize::try_from(at + step).unwrap());
                if matches!(self.framing, Framing::Chunked) {
                    conn.write_all(format!("{step:x}\r\n").as_bytes()).await?;
                    conn.write_all(&chunk).await?;
                    conn.write_all(b"\r\n").await?;
                } else {
                    conn.write_all(&chunk).await?;
                }
                at += step;
                sent.fetch_add(step, Ordering::Relaxed);
                if let Some((_, pause)) = self.drip {
                    conn.flush().await?;
                    tokio::time::sleep(pause).await;
                }
            }
            if let Some(gate) = gate {
                conn.flush().await?;
                gate.pass().await;
            }
        }
        if matches!(self.framing, Framing::Chunked) && self.cut.is_none() {
            conn.write_all(b"0\r\n\r\n").await?;
        }
        Ok(())
    }
}

// === impl Conn ===

impl Conn {
    /// Prepares the end of the connection, which dropping it then brings.
    pub(super) fn end(&self, cut: Cut) -> io::Result<()> {
        let stream = match self {
            Self::Plain(stream) => stream,
            Self::Tls(stream) => stream.get_ref().0,
        };
        match cut {
            Cut::Fin => socket2::SockRef::from(stream).shutdown(std::net::Shutdown::Write),
            Cut::Reset => socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO)),
        }
    }
}

impl AsyncRead for Conn {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Conn {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
