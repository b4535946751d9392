//! Prometheus metrics: one struct of families, registered once and passed to who needs them; no globals.
//!
//! Labels come from the enums here or from the configuration (names of upstreams), never from a request, so a stranger
//! cannot make the number of time series grow. This module is a leaf: it uses nothing of the crate.

use prometheus::core::Collector;
use prometheus::{
    Gauge, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder,
    process_collector::ProcessCollector,
};

/// What kind of resource a request is for: the `kind` label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A manifest or index.
    Manifest,
    /// A blob.
    Blob,
    /// A tag list.
    Tags,
    /// A list of referrers.
    Referrers,
    /// An upload.
    Upload,
    /// `/v2/`, the catalog, token requests and what is not a registry request.
    Other,
}

/// How a request was answered: the `result` label, and what the log and `Cache-Status` say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// From the store, without waiting for upstream's content.
    Hit,
    /// This request started the fill.
    Miss,
    /// It joined a fill that another request had started.
    Collapsed,
    /// From the store although it could not be revalidated.
    Stale,
    /// Streamed from upstream without being kept.
    Bypass,
    /// With an error.
    Error,
}

/// Where the bytes of an answer came from: the `source` label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Source {
    /// A finished file of the store.
    Cache,
    /// A fill in progress, or upstream itself.
    Fill,
}

/// All metrics of the program.
#[derive(Debug, Clone)]
pub struct Metrics {
    registry: Registry,
    /// Requests by upstream, kind and result.
    pub requests: IntCounterVec,
    /// Bytes of bodies sent to clients, by upstream and source.
    pub served_bytes: IntCounterVec,
    /// Requests to upstreams, by upstream, kind and status (a number, or `error`).
    pub upstream_requests: IntCounterVec,
    /// Bytes of bodies received from upstreams.
    pub upstream_received_bytes: IntCounterVec,
    /// Fills that run now.
    pub fills_in_progress: IntGauge,
    /// Broken upstream bodies that were continued by Range.
    pub fill_resumes: IntCounterVec,
    /// Bytes in the store, reservations of running fills included.
    pub store_bytes: IntGauge,
    /// What the store may hold.
    pub store_capacity_bytes: IntGauge,
    /// Blobs in the store, manifests included.
    pub store_blobs: IntGauge,
    /// Bytes removed to make room.
    pub evicted_bytes: IntCounter,
    /// Stored blobs that no longer matched their digest.
    pub corrupt_blobs: IntCounter,
    /// Bytes of stored blobs that the background scrub has hashed again.
    pub scrubbed_bytes: IntCounter,
    /// When the last whole pass of the background scrub ended, in seconds since 1970; 0: never.
    pub scrub_last_pass: IntGauge,
    /// When the last sync of what is published without waiting for the disk began that left nothing of it, in seconds since
    /// 1970; 0: none has.
    pub store_synced: Gauge,
    /// Times the index was set aside and started anew.
    pub index_rebuilds: IntCounter,
    /// Lines of the log, one for each request, that were dropped because what reads it is too slow for them.
    pub log_lines_dropped: IntCounter,
    /// What upstream said is left of its rate limit.
    pub upstream_ratelimit_remaining: IntGaugeVec,
}

// === impl Kind ===

impl Kind {
    /// The label's value.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Manifest => "manifest",
            Self::Blob => "blob",
            Self::Tags => "tags",
            Self::Referrers => "referrers",
            Self::Upload => "upload",
            Self::Other => "other",
        }
    }
}

// === impl Outcome ===

impl Outcome {
    /// The label's value.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Hit => "hit",
            Self::Miss => "miss",
            Self::Collapsed => "collapsed",
            Self::Stale => "stale",
            Self::Bypass => "bypass",
            Self::Error => "error",
        }
    }
}

// === impl Source ===

impl Source {
    /// The label's value.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Cache => "cache",
            Self::Fill => "fill",
        }
    }
}

// === impl Metrics ===

impl Metrics {
    /// Creates and registers every family.
    ///
    /// # Errors
    /// Only if two families had the same name, which the test below excludes.
    pub fn new() -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        registry.register(Box::new(ProcessCollector::for_self()))?;
        let counter = |name: &str, help: &str| register(&registry, IntCounter::with_opts(Opts::new(name, help))?);
        let gauge = |name: &str, help: &str| register(&registry, IntGauge::with_opts(Opts::new(name, help))?);
        let counters = |name: &str, help: &str, labels: &[&str]| {
            register(&registry, IntCounterVec::new(Opts::new(name, help), labels)?)
        };
        Ok(Self {
            requests: counters(
                "ocistern_requests_total",
                "Requests answered, by upstream, kind of resource and result.",
                &["upstream", "kind", "result"],
            )?,
            served_bytes: counters(
                "ocistern_served_bytes_total",
                "Bytes of bodies sent to clients, by upstream and source (cache or fill).",
                &["upstream", "source"],
            )?,
            upstream_requests: counters(
                "ocistern_upstream_requests_total",
                "Requests sent to upstreams, by kind of resource and status (or error).",
                &["upstream", "kind", "status"],
            )?,
            upstream_received_bytes: counters(
                "ocistern_upstream_received_bytes_total",
                "Bytes of bodies received from upstreams.",
                &["upstream"],
            )?,
            fills_in_progress: gauge("ocistern_fills_in_progress", "Downloads into the store that run now.")?,
            fill_resumes: counters(
                "ocistern_fill_resumes_total",
                "Broken upstream bodies that were continued by Range.",
                &["upstream"],
            )?,
            store_bytes: gauge("ocistern_store_bytes", "Bytes in the store, reservations of running fills included.")?,
            store_capacity_bytes: gauge("ocistern_store_capacity_bytes", "Bytes that the store may hold.")?,
            store_blobs: gauge("ocistern_store_blobs", "Blobs in the store, manifests included.")?,
            evicted_bytes: counter("ocistern_evicted_bytes_total", "Bytes removed from the store to make room.")?,
            corrupt_blobs: counter(
                "ocistern_corrupt_blobs_total",
                "Stored blobs that no longer matched their digest and were quarantined.",
            )?,
            scrubbed_bytes: counter(
                "ocistern_scrubbed_bytes_total",
                "Bytes of stored blobs that the background scrub has hashed again.",
            )?,
            scrub_last_pass: gauge(
                "ocistern_scrub_last_pass_timestamp_seconds",
                "When the last whole pass of the background scrub ended; 0 if never.",
            )?,
            store_synced: register(
                &registry,
                Gauge::with_opts(Opts::new(
                    "ocistern_store_synced_timestamp_seconds",
                    "When the last sync of what is published without waiting for the disk began that left nothing of it; 0 if none has.",
                ))?,
            )?,
            index_rebuilds: counter(
                "ocistern_index_rebuilds_total",
                "Times the index was found bad, set aside and started anew.",
            )?,
            log_lines_dropped: counter(
                "ocistern_log_lines_dropped_total",
                "Lines of the log, one for each request, that were dropped because standard error takes them too slowly.",
            )?,
            upstream_ratelimit_remaining: register(
                &registry,
                IntGaugeVec::new(
                    Opts::new(
                        "ocistern_upstream_ratelimit_remaining",
                        "Requests that upstream said are left of its rate limit.",
                    ),
                    &["upstream"],
                )?,
            )?,
            registry,
        })
    }

    /// Counts one answered request.
    pub fn request(&self, upstream: &str, kind: Kind, outcome: Outcome) {
        self.requests.with_label_values(&[upstream, kind.as_str(), outcome.as_str()]).inc();
    }

    /// The exposition in Prometheus' text format.
    pub fn expose(&self) -> String {
        TextEncoder::new().encode_to_string(&self.registry.gather()).unwrap_or_default()
    }
}

fn register<C: Collector + Clone + 'static>(registry: &Registry, collector: C) -> Result<C, prometheus::Error> {
    registry.register(Box::new(collector.clone()))?;
    Ok(collector)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_contracted_name_is_exposed() {
        let metrics = Metrics::new().expect("names are unique");
        metrics.request("docker.io", Kind::Blob, Outcome::Hit);
        metrics.served_bytes.with_label_values(&["docker.io", Source::Cache.as_str()]).inc_by(1);
        metrics.upstream_requests.with_label_values(&["docker.io", "blob", "200"]).inc();
        metrics.upstream_received_bytes.with_label_values(&["docker.io"]).inc();
        metrics.fill_resumes.with_label_values(&["docker.io"]).inc();
        metrics.upstream_ratelimit_remaining.with_label_values(&["docker.io"]).set(9);
        let text = metrics.expose();
        for name in [
            "ocistern_requests_total{kind=\"blob\",result=\"hit\",upstream=\"docker.io\"} 1",
            "ocistern_served_bytes_total{source=\"cache\",upstream=\"docker.io\"} 1",
            "ocistern_upstream_requests_total",
            "ocistern_upstream_received_bytes_total",
            "ocistern_fills_in_progress 0",
            "ocistern_fill_resumes_total",
            "ocistern_store_bytes 0",
            "ocistern_store_capacity_bytes 0",
            "ocistern_store_blobs 0",
            "ocistern_evicted_bytes_total 0",
            "ocistern_corrupt_blobs_total 0",
            "ocistern_index_rebuilds_total 0",
            "ocistern_scrubbed_bytes_total 0",
            "ocistern_scrub_last_pass_timestamp_seconds 0",
            "ocistern_store_synced_timestamp_seconds 0",
            "ocistern_upstream_ratelimit_remaining{upstream=\"docker.io\"} 9",
            "process_resident_memory_bytes",
        ] {
            assert!(text.contains(name), "{name} is missing in:\n{text}");
        }
    }
}
