//! What the counters say, by upstream and in all: figures for people and for the history.

use std::collections::BTreeMap;

use prometheus::core::Collector;
use prometheus::proto::{LabelPair, MetricFamily};
use serde::{Deserialize, Serialize};

use crate::metrics::{Kind, Metrics, Outcome};

/// What was asked for and what came of it, since the start.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traffic {
    /// Requests for manifests and blobs that were answered with content.
    pub requests: u64,
    /// Of these, answered from the store without waiting for upstream's content: results `hit` and `stale`.
    pub hits: u64,
    /// All requests for manifests and blobs by result, errors too.
    pub results: Results,
    /// Bytes of bodies that were sent to clients.
    pub served_bytes: u64,
    /// Bytes of bodies that were received from upstreams.
    pub received_bytes: u64,
}

/// Requests for manifests and blobs, by the `result` label of `ocistern_requests_total`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Results {
    /// From the store.
    pub hit: u64,
    /// Started a download, or was asked upstream.
    pub miss: u64,
    /// Joined another's download.
    pub collapsed: u64,
    /// From the store although it could not be revalidated.
    pub stale: u64,
    /// Streamed without being kept.
    pub bypass: u64,
    /// Answered with an error, a challenge included.
    pub error: u64,
}

/// The counters at one time.
#[derive(Debug, Clone, Default)]
pub(super) struct Figures {
    by_upstream: BTreeMap<String, Traffic>,
}

// === impl Traffic ===

impl Traffic {
    fn add(&mut self, other: &Self) {
        let Results { hit, miss, collapsed, stale, bypass, error } = other.results;
        self.requests += other.requests;
        self.hits += other.hits;
        self.results.hit += hit;
        self.results.miss += miss;
        self.results.collapsed += collapsed;
        self.results.stale += stale;
        self.results.bypass += bypass;
        self.results.error += error;
        self.served_bytes += other.served_bytes;
        self.received_bytes += other.received_bytes;
    }

    fn count(&mut self, result: &str, number: u64) {
        let Results { hit, miss, collapsed, stale, bypass, error } = &mut self.results;
        let of = [
            (Outcome::Hit, hit),
            (Outcome::Miss, miss),
            (Outcome::Collapsed, collapsed),
            (Outcome::Stale, stale),
            (Outcome::Bypass, bypass),
            (Outcome::Error, error),
        ];
        for (outcome, counter) in of {
            if outcome.as_str() != result {
                continue;
            }
            *counter += number;
            self.requests += if outcome == Outcome::Error { 0 } else { number };
            self.hits += if matches!(outcome, Outcome::Hit | Outcome::Stale) { number } else { 0 };
        }
    }

    /// What did not have to be fetched. Negative where more came than was sent: a client left, or content was fetched for
    /// a later one.
    pub fn saved_bytes(&self) -> i64 {
        let signed = |bytes| i64::try_from(bytes).unwrap_or(i64::MAX);
        signed(self.served_bytes) - signed(self.received_bytes)
    }
}

// === impl Figures ===

impl Figures {
    /// As they are now.
    pub(super) fn now(metrics: &Metrics) -> Self {
        let mut by_upstream: BTreeMap<String, Traffic> = BTreeMap::new();
        let counted = [Kind::Manifest.as_str(), Kind::Blob.as_str()];
        each(&metrics.requests, |labels, number| {
            if counted.contains(&label(labels, "kind")) {
                let upstream = by_upstream.entry(label(labels, "upstream").to_owned()).or_default();
                upstream.count(label(labels, "result"), number);
            }
        });
        each(&metrics.served_bytes, |labels, number| {
            by_upstream.entry(label(labels, "upstream").to_owned()).or_default().served_bytes += number;
        });
        each(&metrics.upstream_received_bytes, |labels, number| {
            by_upstream.entry(label(labels, "upstream").to_owned()).or_default().received_bytes += number;
        });
        Self { by_upstream }
    }

    /// Those of one upstream.
    pub(super) fn of(&self, upstream: &str) -> Traffic {
        self.by_upstream.get(upstream).cloned().unwrap_or_default()
    }

    /// Those of all.
    pub(super) fn total(&self) -> Traffic {
        let mut total = Traffic::default();
        for traffic in self.by_upstream.values() {
            total.add(traffic);
        }
        total
    }
}

/// Shows every series of a family of counters: its labels, and its number.
fn each(family: &impl Collector, mut show: impl FnMut(&[LabelPair], u64)) {
    for metric in family.collect().iter().flat_map(MetricFamily::get_metric) {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a counter of whole numbers")]
        show(metric.get_label(), metric.get_counter().get_value() as u64);
    }
}

fn label<'a>(labels: &'a [LabelPair], name: &str) -> &'a str {
    labels.iter().find(|label| label.name() == name).map_or("", LabelPair::value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Source;

    #[test]
    fn what_counts_as_a_hit() {
        let metrics = Metrics::new().unwrap();
        let request = |upstream: &str, kind: Kind, outcome: Outcome| {
            metrics.requests.with_label_values(&[upstream, kind.as_str(), outcome.as_str()]).inc();
        };
        for outcome in
            [Outcome::Hit, Outcome::Stale, Outcome::Miss, Outcome::Collapsed, Outcome::Bypass, Outcome::Error]
        {
            request("up", Kind::Blob, outcome);
        }
        request("up", Kind::Other, Outcome::Bypass);
        request("none", Kind::Other, Outcome::Error);
        request("other", Kind::Manifest, Outcome::Hit);
        metrics.served_bytes.with_label_values(&["up", Source::Cache.as_str()]).inc_by(10);
        metrics.served_bytes.with_label_values(&["up", Source::Fill.as_str()]).inc_by(5);
        metrics.upstream_received_bytes.with_label_values(&["up"]).inc_by(7);
        let figures = Figures::now(&metrics);
        let up = figures.of("up");
        assert_eq!((up.requests, up.hits), (5, 2), "an error is no content, and a joined download is no hit");
        assert_eq!((up.served_bytes, up.received_bytes, up.saved_bytes()), (15, 7, 8));
        assert_eq!(figures.of("nobody"), Traffic::default());
        let total = figures.total();
        assert_eq!((total.requests, total.hits, total.results.error), (6, 3, 1), "tokens are no content");
    }
}
