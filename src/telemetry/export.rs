//! Sends finished spans to a receiver by OTLP (protobuf over HTTP).
//!
//! Spans wait in a queue of a few thousand, which a thread of its own empties every few seconds; what does not fit is lost, and
//! nothing that serves requests ever waits. The requests are hyper's, on the program's runtime.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use opentelemetry::KeyValue;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_http::hyper::HyperClient;
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{Protocol, RetryPolicy, SpanExporter, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{BatchConfigBuilder, BatchSpanProcessor, Sampler, SdkTracerProvider};
use rustls::{ClientConfig, RootCertStore};
use tokio::runtime::Handle;
use tokio_util::task::TaskTracker;

use super::TRACER;

/// How long a receiver may take for one batch.
const RECEIVED_WITHIN: Duration = Duration::from_secs(5);
/// How long spans wait for others to go with them.
const GATHER: Duration = Duration::from_secs(2);
/// Spans that wait at most; about 1 KiB each.
const QUEUE: usize = 4096;
/// How long the stop waits for what is left.
const FLUSHED_WITHIN: Duration = Duration::from_secs(2);

/// Traces that are being sent; [`Exporting::stop`] sends what is left.
#[derive(Debug)]
pub struct Exporting {
    provider: SdkTracerProvider,
    runtime: Arc<OnceLock<Handle>>,
}

/// Traces cannot be sent.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// TLS to the receiver cannot be set up.
    #[error("log.otlp: TLS: {0}")]
    Tls(#[from] rustls::Error),
    /// The exporter does not take the receiver's address, or the environment's settings (`OTEL_EXPORTER_OTLP_…`).
    #[error("log.otlp: {0}")]
    Exporter(#[from] opentelemetry_otlp::ExporterBuildError),
    /// It was started before.
    #[error("log.otlp: traces are being sent already")]
    Twice,
}

/// Takes batches to the receiver.
struct Receiver {
    client: HyperClient<HttpsConnector<HttpConnector>>,
    /// The batches' thread is none of it.
    runtime: Arc<OnceLock<Handle>>,
    tasks: TaskTracker,
    /// Whether the last batch was taken.
    takes: AtomicBool,
}

/// Begins to make spans, and to send them to a receiver, such as `http://localhost:4318`; `/v1/traces` is added. `sample` is the part of
/// the traces that is kept, of those that no client has begun.
///
/// # Errors
/// When the receiver cannot be one, or the second time.
pub fn start(receiver: &str, sample: f64) -> Result<Exporting, StartError> {
    let runtime = Arc::new(OnceLock::new());
    let client = Receiver {
        client: HyperClient::new(connector(receiver)?, RECEIVED_WITHIN, None),
        runtime: Arc::clone(&runtime),
        tasks: TaskTracker::new(),
        takes: AtomicBool::new(true),
    };
    let exporter = SpanExporter::builder()
        .with_http()
        .with_http_client(client)
        .with_protocol(Protocol::HttpBinary)
        .with_endpoint(format!("{}/v1/traces", receiver.trim_end_matches('/')))
        .with_timeout(RECEIVED_WITHIN)
        .with_retry_policy(RetryPolicy::disabled())
        .build()?;
    let batches = BatchConfigBuilder::default().with_max_queue_size(QUEUE).with_scheduled_delay(GATHER).build();
    let processor = BatchSpanProcessor::builder(exporter).with_batch_config(batches).build();
    let resource = Resource::builder()
        .with_service_name("ocistern")
        .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
        .build();
    let provider = SdkTracerProvider::builder()
        .with_span_processor(processor)
        .with_sampler(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(sample))))
        .with_resource(resource)
        .build();
    TRACER.set(provider.tracer("ocistern")).map_err(|_| StartError::Twice)?;
    Ok(Exporting { provider, runtime })
}

fn connector(receiver: &str) -> Result<HttpsConnector<HttpConnector>, StartError> {
    let mut roots = RootCertStore::empty();
    if receiver.starts_with("https:") {
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let tls = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1().build())
}

// === impl Exporting ===

impl Exporting {
    /// From now on batches are sent, on this runtime.
    pub fn run_on(&self, runtime: &Handle) {
        // A second one would be a mistake without consequences.
        let _ = self.runtime.set(runtime.clone());
    }

    /// Sends what is left, for two seconds at most. Blocks; the runtime is still needed.
    pub fn stop(self) {
        if let Err(error) = self.provider.shutdown_with_timeout(FLUSHED_WITHIN) {
            tracing::warn!(%error, "the last traces could not be sent");
        }
    }
}

// === impl Receiver ===

#[async_trait]
impl HttpClient for Receiver {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let runtime = self.runtime.get().ok_or("the program is just starting")?;
        let client = self.client.clone();
        let sent = self.tasks.spawn_on(async move { client.send_bytes(request).await }, runtime).await?;
        let failure = match &sent {
            Ok(response) if response.status().is_success() => None,
            Ok(response) => Some(format!("it answers {}", response.status())),
            Err(error) => Some(super::causes(&**error)),
        };
        // Said once, not with each batch.
        let took = self.takes.swap(failure.is_none(), Ordering::Relaxed);
        match failure {
            Some(failure) if took => {
                tracing::warn!(failure, "the receiver of traces (log.otlp) takes none; they are lost");
            }
            None if !took => tracing::info!("the receiver of traces (log.otlp) takes them again"),
            _ => {}
        }
        sent
    }
}

impl fmt::Debug for Receiver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Receiver").field("takes", &self.takes).finish_non_exhaustive()
    }
}
