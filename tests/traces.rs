//! Traces by OTLP, as a receiver gets them: a scripted one, on loopback.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "test code")]

mod common;

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use common::content::{image, sha256};
use common::{Ask, Daemon, Upstream, acts, eventually};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use parking_lot::Mutex;
use prost::Message;
use tokio::net::TcpListener;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

/// How a client says beneath which span its request is (W3C Trace Context).
const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "b7ad6b7169203331";

/// A receiver of traces.
#[derive(Clone, Default)]
struct Receiver {
    /// Path, and what was sent there.
    got: Arc<Mutex<Vec<(String, Bytes)>>>,
    tasks: TaskTracker,
}

// === impl Receiver ===

impl Receiver {
    /// Starts one that answers with this status; with none it never does.
    async fn start(status: Option<u16>) -> (Self, SocketAddr) {
        let receiver = Self::default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let this = receiver.clone();
        receiver.tasks.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let here = this.clone();
                let service = hyper::service::service_fn(move |request| here.clone().take(request, status));
                let connection =
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
                this.tasks.spawn(async move { drop(connection.await) });
            }
        });
        (receiver, address)
    }

    async fn take(
        self,
        request: Request<Incoming>,
        status: Option<u16>,
    ) -> Result<Response<Full<Bytes>>, hyper::Error> {
        let path = request.uri().path().to_owned();
        let body = request.into_body().collect().await?.to_bytes();
        self.got.lock().push((path, body));
        let Some(status) = status else { return std::future::pending().await };
        let mut response = Response::new(Full::default());
        *response.status_mut() = StatusCode::from_u16(status).unwrap();
        Ok(response)
    }

    fn requests(&self) -> Vec<ExportTraceServiceRequest> {
        let got = self.got.lock();
        assert!(got.iter().all(|(path, _)| path == "/v1/traces"));
        got.iter().map(|(_, body)| ExportTraceServiceRequest::decode(body.clone()).unwrap()).collect()
    }

    fn spans(&self) -> Vec<Span> {
        let scopes =
            self.requests().into_iter().flat_map(|request| request.resource_spans).flat_map(|spans| spans.scope_spans);
        scopes.flat_map(|scope| scope.spans).collect()
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

/// An attribute as text.
fn attribute(span: &Span, key: &str) -> Option<String> {
    let value = span.attributes.iter().find(|attribute| attribute.key == key)?.value.clone()?.value?;
    Some(match value {
        Value::StringValue(text) => text,
        Value::IntValue(number) => number.to_string(),
        other => format!("{other:?}"),
    })
}

fn with(spans: &[Span], key: &str, value: &str) -> Vec<Span> {
    spans.iter().filter(|span| attribute(span, key).as_deref() == Some(value)).cloned().collect()
}

fn traceparent(request: &common::upstream::Request) -> Option<&str> {
    request.headers.iter().find(|(name, _)| name == "traceparent").map(|(_, value)| value.as_str())
}

fn log_keys(receiver: SocketAddr) -> String {
    format!("[log]\notlp = \"http://{receiver}\"")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_is_one_trace_from_the_client_to_the_upstream() {
    let (receiver, address) = Receiver::start(Some(200)).await;
    let (upstream, image) = (Upstream::start().await, image(1));
    upstream.image("app", "1", &image);
    let layer = sha256(&image.layers[0]);
    let directory = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(&Daemon::configure(directory.path(), &upstream, &log_keys(address))).await;
    let blob = format!("/v2/app/blobs/{layer}");
    let ask = Ask::get(format!("{blob}?ns=up&canary=queries-are-secrets"));
    let ask = ask.with("traceparent", &format!("00-{TRACE}-{PARENT}-01")).with("cookie", "canary=cookies-are-secrets");
    daemon.client.send(ask).await.assert_is(&image.layers[0]);
    daemon
        .client
        .send(Ask::get("/v2/app/manifests/none").basic("user", "passwords-are-secrets"))
        .await
        .assert_fails(404);
    daemon.client.get("/v2/app/manifests/none").await.assert_fails(404);
    daemon.client.send(Ask::get("/v2/app/blobs/uploads/states-are-secrets")).await;
    // What has not been sent is sent at the stop.
    daemon.stop().await;

    let spans = receiver.spans();
    let mine: Vec<Span> = spans.iter().filter(|span| hex(&span.trace_id) == TRACE).cloned().collect();
    let server = mine.iter().find(|span| hex(&span.parent_span_id) == PARENT).expect("the client's is the parent");
    assert_eq!((server.name.as_str(), server.kind), ("GET /v2/{name}/blobs/{digest}", 2));
    for (key, value) in [
        ("http.request.method", "GET"),
        ("url.path", &*blob),
        ("http.route", "/v2/{name}/blobs/{digest}"),
        ("http.response.status_code", "200"),
        ("http.response.body.size", &*image.layers[0].len().to_string()),
        ("network.protocol.version", "1.1"),
        ("server.address", "127.0.0.1"),
        ("ocistern.upstream", "up"),
        ("ocistern.repository", "app"),
        ("ocistern.result", "miss"),
    ] {
        assert_eq!(attribute(server, key).as_deref(), Some(value), "{key}: {server:?}");
    }
    let fill = mine.iter().find(|span| span.name == "fill").expect("what it began");
    assert_eq!(fill.parent_span_id, server.span_id);
    assert_eq!(attribute(fill, "oci.digest"), Some(layer.to_string()));
    let download = with(&mine, "url.full", &format!("{}{blob}", upstream.url()));
    let download = download.iter().find(|span| span.name == "GET").expect("the download");
    assert_eq!((&download.parent_span_id, download.kind), (&fill.span_id, 3), "{download:?}");
    assert_eq!(attribute(download, "http.response.status_code").as_deref(), Some("200"));
    assert_eq!(attribute(download, "server.port"), Some(upstream.port().to_string()));
    // Upstream is told beneath what it is asked.
    let told = format!("00-{TRACE}-{}-01", hex(&download.span_id));
    let asked = upstream.requests("GET", &blob);
    let asked = &asked.first().unwrap().request;
    assert_eq!(traceparent(asked), Some(&*told));

    // Whoever says nothing begins a trace; a 404 is no failure of this server, and one of upstream's client.
    let missing = with(&spans, "url.path", "/v2/app/manifests/none");
    assert!(missing.len() == 2 && missing.iter().all(|span| span.parent_span_id.is_empty()), "{missing:?}");
    let missing = missing.iter().find(|span| attribute(span, "http.response.status_code").unwrap() == "404").unwrap();
    assert!(missing.status.as_ref().is_none_or(|status| status.code == 0), "{missing:?}");
    let beneath: Vec<&Span> = spans.iter().filter(|span| span.parent_span_id == missing.span_id).collect();
    assert!(beneath.iter().any(|span| attribute(span, "error.type").as_deref() == Some("404")), "{beneath:?}");
    assert_eq!(with(&spans, "url.path", "/v2/app/blobs/uploads/…").len(), 1);

    for (_, body) in receiver.got.lock().iter() {
        let text = String::from_utf8_lossy(body);
        assert!(!text.contains("are-secrets") && !text.contains("cGFzc3dvcmRz"), "{text}");
    }
    let resource = receiver.requests()[0].resource_spans[0].resource.clone().unwrap();
    let name = resource.attributes.iter().find(|attribute| attribute.key == "service.name").unwrap();
    assert_eq!(name.value.clone().unwrap().value, Some(Value::StringValue("ocistern".to_owned())));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_takes_nothing_costs_pulls_nothing() {
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let (silent, hangs) = Receiver::start(None).await;
    let (refusing, refuses) = Receiver::start(Some(503)).await;
    for (what, address) in [("closed", closed), ("silent", hangs), ("refusing", refuses)] {
        let (upstream, image) = (Upstream::start().await, image(1));
        upstream.image("app", "1", &image);
        let directory = tempfile::tempdir().unwrap();
        let daemon = Daemon::start(&Daemon::configure(directory.path(), &upstream, &log_keys(address))).await;
        for _ in 0..50 {
            daemon.client.get("/v2/app/manifests/1").await.assert_is(&image.manifest);
        }
        let complaints =
            || daemon.log().iter().filter(|event| event.to_string().contains("receiver of traces")).count();
        if what != "silent" {
            eventually("it is said", || std::future::ready(complaints() > 0)).await;
        }
        daemon.client.get("/v2/app/manifests/1").await.assert_is(&image.manifest);
        assert!(complaints() <= 1, "{what}: once, not with each batch");
        let began = Instant::now();
        daemon.stop().await;
        assert!(began.elapsed() < Duration::from_secs(20), "{what}: the stop took {:?}", began.elapsed());
    }
    assert!(!silent.got.lock().is_empty() && !refusing.got.lock().is_empty(), "they were tried");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_receiver_there_are_no_traces() {
    let (upstream, image) = (Upstream::start().await, image(1));
    upstream.image("app", "1", &image);
    upstream.script("*", "*/none", .., acts::fail(404, "MANIFEST_UNKNOWN"));
    let directory = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(&Daemon::configure(directory.path(), &upstream, "")).await;
    let ask = Ask::get("/v2/app/manifests/1").with("traceparent", &format!("00-{TRACE}-{PARENT}-01"));
    daemon.client.send(ask).await.assert_is(&image.manifest);
    let log = upstream.log();
    assert!(!log.is_empty() && log.iter().all(|entry| traceparent(&entry.request).is_none()));
    daemon.stop().await;
}
