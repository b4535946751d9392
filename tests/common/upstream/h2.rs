//! The scripted upstream over HTTP/2 (inside TLS, by ALPN): the same answers and faults, in that protocol's terms. A
//! reset is `RST_STREAM`; an early end closes the whole connection.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures_util::stream;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio_util::sync::CancellationToken;

use super::wire::{Cut, Framing, Reply, Request};
use super::{Entry, Shared};

type Io = TokioIo<tokio_rustls::server::TlsStream<tokio::net::TcpStream>>;

/// Answers the requests of a connection until it ends, or a script ends it.
pub async fn converse(io: Io, shared: Arc<Shared>) {
    let hang_up = CancellationToken::new();
    let service = service_fn(|request: http::Request<Incoming>| {
        let (shared, hang_up) = (Arc::clone(&shared), hang_up.clone());
        async move { Ok::<_, Infallible>(answer(request, &shared, hang_up).await) }
    });
    let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new()).serve_connection(io, service);
    tokio::select! {
        _ = connection => {}
        () = hang_up.cancelled() => {}
    }
}

async fn answer(
    request: http::Request<Incoming>,
    shared: &Shared,
    hang_up: CancellationToken,
) -> http::Response<http_body_util::combinators::UnsyncBoxBody<Bytes, std::io::Error>> {
    let (head, body) = request.into_parts();
    let text = |value: &http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    let request = Request {
        method: head.method.to_string(),
        path: head.uri.path().to_owned(),
        query: head.uri.query().unwrap_or_default().to_owned(),
        headers: head.headers.iter().map(|(name, value)| (name.as_str().to_owned(), text(value))).collect(),
        body: body.collect().await.map(|body| body.to_bytes().to_vec()).unwrap_or_default(),
        ..Request::default()
    };
    let reply = shared.reply(&request);
    let sent = Arc::new(AtomicU64::new(0));
    let at = tokio::time::Instant::now();
    let entry = Entry { request, at, status: reply.status, sent: Arc::clone(&sent) };
    shared.log.send_modify(|log| log.push(entry));
    for gate in &reply.head_gates {
        gate.pass().await;
    }
    if reply.no_head.is_some() {
        hang_up.cancel();
        return std::future::pending().await;
    }
    let mut response = http::Response::builder().status(reply.status);
    for (name, value) in &reply.headers {
        response = response.header(name, value);
    }
    if let Framing::Length(length) = reply.framing
        && !matches!(reply.status, 204 | 304)
    {
        response = response.header("content-length", length.unwrap_or(reply.body.len() as u64));
    }
    let silent = reply.head_only || matches!(reply.status, 204 | 304);
    let body = if silent {
        http_body_util::Empty::new().map_err(|never| match never {}).boxed_unsync()
    } else {
        body_of(reply, sent, hang_up)
    };
    response.body(body).unwrap()
}

/// Lets the connection's task write what it has: a reset or an end discards what is still queued.
async fn flushed() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

fn body_of(
    reply: Reply,
    sent: Arc<AtomicU64>,
    hang_up: CancellationToken,
) -> http_body_util::combinators::UnsyncBoxBody<Bytes, std::io::Error> {
    let frames = stream::try_unfold((0, reply, 0), move |(mut at, reply, mut passed)| {
        let (sent, hang_up) = (Arc::clone(&sent), hang_up.clone());
        async move {
            while let Some((_, gate)) = reply.holds.get(passed).filter(|(hold, _)| *hold <= at) {
                gate.pass().await;
                passed += 1;
            }
            let end = reply.cut.map_or(reply.body.len() as u64, |(cut, _)| cut.min(reply.body.len() as u64));
            if at >= end {
                if reply.cut.is_some() {
                    flushed().await;
                }
                return match reply.cut {
                    None => Ok(None),
                    Some((_, Cut::Reset)) => Err(std::io::Error::other("scripted")),
                    Some((_, Cut::Fin)) => {
                        hang_up.cancel();
                        std::future::pending().await
                    }
                };
            }
            let stop = reply.holds.get(passed).map_or(end, |(hold, _)| (*hold).min(end));
            let piece = reply.drip.map_or(16 * 1024, |(bytes, _)| bytes as u64).min(stop - at);
            let data = reply.body.slice(usize::try_from(at).unwrap()..usize::try_from(at + piece).unwrap());
            at += piece;
            sent.fetch_add(piece, Ordering::Relaxed);
            if let Some((_, pause)) = reply.drip {
                tokio::time::sleep(pause).await;
            }
            Ok(Some((Frame::data(data), (at, reply, passed))))
        }
    });
    StreamBody::new(frames).boxed_unsync()
}
