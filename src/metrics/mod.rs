//! Prometheus metrics: one struct of families, registered once and passed to who needs them; no globals.
//!
//! Labels come from the enums of this module or from the configuration (names of upstreams, addresses of listeners), never from a
//! request, so a stranger cannot make the number of time series grow. What every request touches has its handles looked up
//! once: [`Requests`], [`Exchanges`]. This module is a leaf: it uses nothing of the crate.
//!
//! `docs/metrics.md` is the reference: a test compares.

mod connections;
mod labels;
mod requests;
mod upstreams;

use prometheus::core::Collector;
use prometheus::{
    Gauge, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder,
    process_collector::ProcessCollector,
};

pub use self::connections::{Connections, OpenConnection};
pub use self::labels::{Cause, Kind, Outcome, Source};
pub use self::requests::{Answered, NO_UPSTREAM, Requests};
pub use self::upstreams::{Exchanges, Received};

/// Bounds of times to the head of an answer, in seconds: from what a warm answer takes to what a client waits for at most
/// (containerd: 30 s; ocistern itself ends all waits within 20).
const FIRST_BYTE_BUCKETS: &[f64] =
    &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0];
/// Bounds of times to the end of an answer: up to a large layer over a slow link.
const DURATION_BUCKETS: &[f64] = &[
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0,
    900.0,
];
/// Bounds of times to the head of an upstream's answer: no network is faster than the first.
const UPSTREAM_BUCKETS: &[f64] = &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0];
/// Of which state of the sources this program was built, where its builder said so.
const REVISION: Option<&str> = option_env!("OCISTERN_REVISION");

/// All metrics of the program.
#[derive(Debug, Clone)]
pub struct Metrics {
    registry: Registry,
    /// Requests by upstream, kind and result.
    pub requests: IntCounterVec,
    /// Requests that ended with an error, by upstream and cause.
    pub request_errors: IntCounterVec,
    /// Questions for a credential, to who had shown none.
    pub challenges: IntCounterVec,
    /// Seconds from a request to the end of its answer, by kind and result.
    pub durations: HistogramVec,
    /// Seconds from a request to the head of its answer, by kind and result.
    pub first_bytes: HistogramVec,
    /// Bytes of bodies sent to clients, by upstream and source.
    pub served_bytes: IntCounterVec,
    /// Open connections of clients, by listener.
    pub connections: IntGaugeVec,
    /// Connections that were accepted, by listener.
    pub connections_accepted: IntCounterVec,
    /// Connections that were closed at once, because their address had too many, by listener.
    pub connections_refused: IntCounterVec,
    /// Requests to upstreams, by upstream, kind and status (a number, or `error`).
    pub upstream_requests: IntCounterVec,
    /// Seconds from a request to an upstream to the head of its answer, by upstream and kind.
    pub upstream_durations: HistogramVec,
    /// Whether an endpoint of an upstream is asked as usual (1), or is left alone because it does not answer (0).
    pub upstream_up: IntGaugeVec,
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
    /// Blobs removed to make room.
    pub evicted_blobs: IntCounter,
    /// Bytes removed to make room, or because nobody had used them for `max_age`.
    pub evicted_bytes: IntCounter,
    /// Stored blobs that no longer matched their digest.
    pub corrupt_blobs: IntCounter,
    /// Bytes of stored blobs that the background scrub has hashed again.
    pub scrubbed_bytes: IntCounter,
    /// Bytes of stored blobs that were hashed again because somebody asked for it.
    pub verified_bytes: IntCounter,
    /// When the last whole pass of the background scrub ended, in seconds since 1970; 0: never.
    pub scrub_last_pass: IntGauge,
    /// When the last sync of what is published without waiting for the disk began that left nothing of it, in seconds since
    /// 1970; 0: none has.
    pub store_synced: Gauge,
    /// Times the index was set aside and started anew.
    pub index_rebuilds: IntCounter,
    /// Lines of the log, one for each request, that were dropped because what reads it is too slow for them.
    pub log_lines_dropped: IntCounter,
    /// Requests for what is not stored at sealed upstreams, by upstream and kind.
    pub sealed_misses: IntCounterVec,
    /// What upstream said is left of its rate limit.
    pub upstream_ratelimit_remaining: IntGaugeVec,
    /// Whether requests are served: what `/readyz` says.
    pub ready: IntGauge,
}

// === impl Metrics ===

impl Metrics {
    /// Creates and registers every family.
    ///
    /// # Errors
    /// Only if two families had the same name, which the test below excludes.
    #[expect(clippy::too_many_lines, reason = "a table: a few lines for each family")]
    pub fn new() -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        registry.register(Box::new(ProcessCollector::for_self()))?;
        let counter = |name: &str, help: &str| register(&registry, IntCounter::with_opts(Opts::new(name, help))?);
        let gauge = |name: &str, help: &str| register(&registry, IntGauge::with_opts(Opts::new(name, help))?);
        let counters = |name: &str, help: &str, labels: &[&str]| {
            register(&registry, IntCounterVec::new(Opts::new(name, help), labels)?)
        };
        let gauges = |name: &str, help: &str, labels: &[&str]| {
            register(&registry, IntGaugeVec::new(Opts::new(name, help), labels)?)
        };
        let histograms = |name: &str, help: &str, labels: &[&str], buckets: &[f64]| {
            let options = HistogramOpts::new(name, help).buckets(buckets.to_vec());
            register(&registry, HistogramVec::new(options, labels)?)
        };
        let build =
            gauges("ocistern_build_info", "1, with version and revision of the program.", &["version", "revision"])?;
        build.with_label_values(&[env!("CARGO_PKG_VERSION"), REVISION.unwrap_or("unknown")]).set(1);
        Ok(Self {
            requests: counters(
                "ocistern_requests_total",
                "Requests answered, by upstream, kind of resource and result.",
                &["upstream", "kind", "result"],
            )?,
            request_errors: counters(
                "ocistern_request_errors_total",
                "Requests that ended with an error, by upstream and cause.",
                &["upstream", "cause"],
            )?,
            challenges: counters(
                "ocistern_challenges_total",
                "Answers 401 that ask for a credential, to requests that showed none.",
                &["upstream"],
            )?,
            durations: histograms(
                "ocistern_request_duration_seconds",
                "From a request's head to the end of its answer, by kind of resource and result.",
                &["kind", "result"],
                DURATION_BUCKETS,
            )?,
            first_bytes: histograms(
                "ocistern_first_byte_seconds",
                "From a request's head to the head of its answer, by kind of resource and what the result was until then.",
                &["kind", "result"],
                FIRST_BYTE_BUCKETS,
            )?,
            connections: gauges("ocistern_connections", "Open connections, by listener.", &["listener"])?,
            connections_accepted: counters(
                "ocistern_connections_total",
                "Connections that were accepted, by listener.",
                &["listener"],
            )?,
            connections_refused: counters(
                "ocistern_connections_refused_total",
                "Connections that were closed at once, because their address had as many as it may, by listener.",
                &["listener"],
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
            upstream_durations: histograms(
                "ocistern_upstream_request_duration_seconds",
                "From a request to an upstream to the head of its answer, by kind of resource.",
                &["upstream", "kind"],
                UPSTREAM_BUCKETS,
            )?,
            upstream_up: gauges(
                "ocistern_upstream_up",
                "Whether an endpoint of an upstream is asked as usual (1), or is left alone because it does not answer (0).",
                &["upstream", "endpoint"],
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
            evicted_blobs: counter(
                "ocistern_evicted_blobs_total",
                "Blobs removed from the store to make room or for their age.",
            )?,
            evicted_bytes: counter(
                "ocistern_evicted_bytes_total",
                "Bytes removed from the store to make room or for their age.",
            )?,
            corrupt_blobs: counter(
                "ocistern_corrupt_blobs_total",
                "Stored blobs that no longer matched their digest and were quarantined.",
            )?,
            scrubbed_bytes: counter(
                "ocistern_scrubbed_bytes_total",
                "Bytes of stored blobs that the background scrub has hashed again.",
            )?,
            verified_bytes: counter(
                "ocistern_verified_bytes_total",
                "Bytes of stored blobs that were hashed again because somebody asked for it.",
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
            sealed_misses: counters(
                "ocistern_sealed_misses_total",
                "Requests for what is not in the store and may not be asked for, since the configuration seals it.",
                &["upstream", "kind"],
            )?,
            upstream_ratelimit_remaining: gauges(
                "ocistern_upstream_ratelimit_remaining",
                "Requests that upstream said are left of its rate limit.",
                &["upstream"],
            )?,
            ready: gauge("ocistern_ready", "Whether requests are served (1), as /readyz says.")?,
            registry,
        })
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
        metrics.requests.with_label_values(&["docker.io", "blob", "hit"]).inc();
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
            "ocistern_verified_bytes_total 0",
            "ocistern_scrub_last_pass_timestamp_seconds 0",
            "ocistern_store_synced_timestamp_seconds 0",
            "ocistern_upstream_ratelimit_remaining{upstream=\"docker.io\"} 9",
            "process_resident_memory_bytes",
            "process_start_time_seconds",
            concat!("ocistern_build_info{revision=\"unknown\",version=\"", env!("CARGO_PKG_VERSION"), "\"} 1"),
            "ocistern_evicted_blobs_total 0",
            "ocistern_ready 0",
        ] {
            assert!(text.contains(name), "{name} is missing in:\n{text}");
        }
    }
}
