//! Requests to one upstream, counted and timed.

use std::sync::OnceLock;
use std::time::Duration;

use http::StatusCode;
use prometheus::{Histogram, IntCounter};

use super::{Kind, Metrics};

/// What counts the requests that are sent to one upstream.
#[derive(Debug)]
pub struct Exchanges {
    metrics: Metrics,
    upstream: Box<str>,
    durations: [OnceLock<Histogram>; Kind::ALL.len()],
}

/// What counts the bytes of bodies that come from one upstream.
#[derive(Debug)]
pub struct Received {
    metrics: Metrics,
    upstream: Box<str>,
    /// Looked up once: it counts every frame.
    counter: OnceLock<IntCounter>,
}

// === impl Exchanges ===

impl Exchanges {
    /// For an upstream of the configuration.
    pub fn new(metrics: &Metrics, upstream: &str) -> Self {
        Self { metrics: metrics.clone(), upstream: upstream.into(), durations: Default::default() }
    }

    /// The head of an answer came, so long after the request was begun.
    pub fn answered(&self, kind: Kind, status: StatusCode, after: Duration) {
        self.requests(kind, label(&status)).inc();
        let series = || self.metrics.upstream_durations.with_label_values(&[&self.upstream, kind.as_str()]);
        self.durations[kind as usize].get_or_init(series).observe(after.as_secs_f64());
    }

    /// None came.
    pub fn failed(&self, kind: Kind) {
        self.requests(kind, "error").inc();
    }

    /// Looked up each time: beside a request to an upstream it is nothing.
    fn requests(&self, kind: Kind, status: &str) -> IntCounter {
        self.metrics.upstream_requests.with_label_values(&[&self.upstream, kind.as_str(), status])
    }
}

// === impl Received ===

impl Received {
    /// For an upstream of the configuration.
    pub fn new(metrics: &Metrics, upstream: &str) -> Self {
        Self { metrics: metrics.clone(), upstream: upstream.into(), counter: OnceLock::new() }
    }

    /// So many bytes of a body have come.
    pub fn count(&self, bytes: u64) {
        self.counter().inc_by(bytes);
    }

    /// How many, with what others have counted of the same upstream.
    pub fn total(&self) -> u64 {
        self.counter().get()
    }

    fn counter(&self) -> &IntCounter {
        self.counter.get_or_init(|| self.metrics.upstream_received_bytes.with_label_values(&[&self.upstream]))
    }
}

// === impl Metrics ===

impl Metrics {
    /// This upstream is asked from now on: what is counted of it is there before anything has happened, so that its first
    /// growth is seen. Of one that is only prepared there is no series.
    pub fn begin_upstream(&self, upstream: &str) {
        self.fill_resumes.with_label_values(&[upstream]);
        self.upstream_received_bytes.with_label_values(&[upstream]);
    }
}

/// The number, if it is one that has a meaning: an upstream could send 850 others, and each would be a series.
fn label(status: &StatusCode) -> &str {
    if status.canonical_reason().is_some() { status.as_str() } else { "other" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_upstream_answers_is_counted_and_timed() {
        let metrics = Metrics::new().unwrap();
        let exchanges = Exchanges::new(&metrics, "docker.io");
        exchanges.answered(Kind::Manifest, StatusCode::OK, Duration::from_millis(80));
        exchanges.failed(Kind::Manifest);
        for odd in 600..700 {
            exchanges.answered(Kind::Blob, StatusCode::from_u16(odd).unwrap(), Duration::ZERO);
        }
        let text = metrics.expose();
        for line in [
            r#"ocistern_upstream_requests_total{kind="manifest",status="200",upstream="docker.io"} 1"#,
            r#"ocistern_upstream_requests_total{kind="manifest",status="error",upstream="docker.io"} 1"#,
            r#"ocistern_upstream_requests_total{kind="blob",status="other",upstream="docker.io"} 100"#,
            r#"ocistern_upstream_request_duration_seconds_count{kind="manifest",upstream="docker.io"} 1"#,
            r#"ocistern_upstream_request_duration_seconds_bucket{kind="manifest",upstream="docker.io",le="0.05"} 0"#,
            r#"ocistern_upstream_request_duration_seconds_bucket{kind="manifest",upstream="docker.io",le="0.1"} 1"#,
        ] {
            assert!(text.contains(&format!("{line}\n")), "{line} is missing in:\n{text}");
        }
    }
}
