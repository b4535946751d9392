//! Requests of clients, counted and timed: the handles of every series are looked up once and kept.
//!
//! To look a series up by its labels costs some 450 instructions, which is what the whole of a warm answer's bookkeeping
//! may cost; to add one to a series that is at hand costs ten. So each upstream of the configuration has its handles in arrays,
//! and those of the histograms, which have no upstream, are in another.

use std::sync::OnceLock;
use std::time::Duration;

use foldhash::HashMap;
use prometheus::{Histogram, IntCounter};

use super::{Cause, Kind, Metrics, Outcome, Source};

/// The label where a request means no upstream.
pub const NO_UPSTREAM: &str = "none";

/// What counts the requests of clients.
#[derive(Debug)]
pub struct Requests {
    metrics: Metrics,
    upstreams: HashMap<Box<str>, OfUpstream>,
    none: OfUpstream,
    durations: Table<Histogram>,
    first_bytes: Table<Histogram>,
}

/// One answered request.
#[derive(Debug, Clone, Copy)]
pub struct Answered<'a> {
    /// Which upstream of the configuration it meant.
    pub upstream: Option<&'a str>,
    /// What was asked for.
    pub kind: Kind,
    /// How it was answered.
    pub outcome: Outcome,
    /// Where the content came from, if there was any.
    pub source: Option<Source>,
    /// Bytes of the body that were handed over.
    pub sent: u64,
    /// From the request's head to the end of its answer.
    pub took: Duration,
    /// Why it is an error, if it is one.
    pub cause: Option<Cause>,
    /// It is a question for a credential (401), to who has shown none.
    pub challenge: bool,
}

/// The series of one upstream.
#[derive(Debug)]
struct OfUpstream {
    name: Box<str>,
    requests: Table<IntCounter>,
    served: [IntCounter; Source::ALL.len()],
    causes: [IntCounter; Cause::ALL.len()],
    challenges: IntCounter,
}

/// A series for each kind and outcome, from its first use on: most of them never come to be.
#[derive(Debug)]
struct Table<T>([[OnceLock<T>; Outcome::ALL.len()]; Kind::ALL.len()]);

// === impl Requests ===

impl Requests {
    /// For these upstreams; what is of any other is counted as `none`.
    pub fn new<'a>(metrics: &Metrics, upstreams: impl IntoIterator<Item = &'a str>) -> Self {
        Self {
            metrics: metrics.clone(),
            upstreams: upstreams.into_iter().map(|name| (name.into(), OfUpstream::new(metrics, name))).collect(),
            none: OfUpstream::new(metrics, NO_UPSTREAM),
            durations: Table::default(),
            first_bytes: Table::default(),
        }
    }

    /// The head of an answer is there, so long after the request's.
    pub fn begun(&self, kind: Kind, outcome: Outcome, after: Duration) {
        let series = || self.metrics.first_bytes.with_label_values(&[kind.as_str(), outcome.as_str()]);
        self.first_bytes.get(kind, outcome, series).observe(after.as_secs_f64());
    }

    /// Counts a request whose answer has ended.
    pub fn ended(&self, answered: &Answered<'_>) {
        let Answered { kind, outcome, .. } = *answered;
        let of = answered.upstream.and_then(|name| self.upstreams.get(name)).unwrap_or(&self.none);
        of.requests.get(kind, outcome, || of.request_series(&self.metrics, kind, outcome)).inc();
        let series = || self.metrics.durations.with_label_values(&[kind.as_str(), outcome.as_str()]);
        self.durations.get(kind, outcome, series).observe(answered.took.as_secs_f64());
        if let Some(source) = answered.source {
            of.served[source as usize].inc_by(answered.sent);
        }
        if let Some(cause) = answered.cause {
            of.causes[cause as usize].inc();
        }
        if answered.challenge {
            of.challenges.inc();
        }
    }
}

// === impl OfUpstream ===

impl OfUpstream {
    fn new(metrics: &Metrics, name: &str) -> Self {
        let of = Self {
            name: name.into(),
            requests: Table::default(),
            served: Source::ALL.map(|source| metrics.served_bytes.with_label_values(&[name, source.as_str()])),
            causes: Cause::ALL.map(|cause| metrics.request_errors.with_label_values(&[name, cause.as_str()])),
            challenges: metrics.challenges.with_label_values(&[name]),
        };
        if name != NO_UPSTREAM {
            // There from the start: the first one would be lost to `rate()` and `increase()`, which see a series that begins with 1.
            for kind in [Kind::Manifest, Kind::Blob] {
                for outcome in Outcome::ALL {
                    of.requests.get(kind, outcome, || of.request_series(metrics, kind, outcome));
                }
            }
        }
        of
    }

    fn request_series(&self, metrics: &Metrics, kind: Kind, outcome: Outcome) -> IntCounter {
        metrics.requests.with_label_values(&[&self.name, kind.as_str(), outcome.as_str()])
    }
}

// === impl Table ===

impl<T> Table<T> {
    fn get(&self, kind: Kind, outcome: Outcome, series: impl FnOnce() -> T) -> &T {
        self.0[kind as usize][outcome as usize].get_or_init(series)
    }
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self(Default::default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HIT: Answered<'_> = Answered {
        upstream: Some("docker.io"),
        kind: Kind::Blob,
        outcome: Outcome::Hit,
        source: Some(Source::Cache),
        sent: 7,
        took: Duration::from_millis(3),
        cause: None,
        challenge: false,
    };

    #[test]
    fn each_request_is_in_the_series_of_its_upstream() {
        let metrics = Metrics::new().unwrap();
        let requests = Requests::new(&metrics, ["docker.io", "ghcr.io"]);
        requests.ended(&HIT);
        requests.ended(&Answered { upstream: Some("ghcr.io"), sent: 5, ..HIT });
        let failed = Answered { outcome: Outcome::Error, source: None, cause: Some(Cause::Upstream), ..HIT };
        requests.ended(&failed);
        requests.ended(&Answered { kind: Kind::Other, outcome: Outcome::Bypass, challenge: true, source: None, ..HIT });
        // A name that is not of the configuration makes no series.
        requests.ended(&Answered { upstream: Some("evil.example"), ..HIT });
        requests.ended(&Answered { upstream: None, ..HIT });
        let text = metrics.expose();
        for line in [
            r#"ocistern_requests_total{kind="blob",result="hit",upstream="docker.io"} 1"#,
            r#"ocistern_requests_total{kind="blob",result="hit",upstream="ghcr.io"} 1"#,
            r#"ocistern_requests_total{kind="blob",result="hit",upstream="none"} 2"#,
            r#"ocistern_requests_total{kind="blob",result="error",upstream="docker.io"} 1"#,
            r#"ocistern_requests_total{kind="manifest",result="stale",upstream="docker.io"} 0"#,
            r#"ocistern_served_bytes_total{source="cache",upstream="docker.io"} 7"#,
            r#"ocistern_served_bytes_total{source="fill",upstream="docker.io"} 0"#,
            r#"ocistern_served_bytes_total{source="cache",upstream="ghcr.io"} 5"#,
            r#"ocistern_request_errors_total{cause="upstream",upstream="docker.io"} 1"#,
            r#"ocistern_request_errors_total{cause="broken",upstream="docker.io"} 0"#,
            r#"ocistern_challenges_total{upstream="docker.io"} 1"#,
            r#"ocistern_challenges_total{upstream="ghcr.io"} 0"#,
        ] {
            assert!(text.contains(&format!("{line}\n")), "{line} is missing in:\n{text}");
        }
        assert!(!text.contains("evil"), "{text}");
        assert!(!text.contains(r#"kind="upload""#), "what never was has no series: {text}");
    }

    #[test]
    fn times_are_in_their_buckets() {
        let metrics = Metrics::new().unwrap();
        let requests = Requests::new(&metrics, ["docker.io"]);
        for millis in [0, 3, 40_000] {
            requests.ended(&Answered { took: Duration::from_millis(millis), ..HIT });
        }
        requests.begun(Kind::Manifest, Outcome::Miss, Duration::from_millis(700));
        let text = metrics.expose();
        let labels = r#"kind="blob",result="hit""#;
        for (bound, count) in [("0.0005", 1), ("0.0025", 1), ("0.005", 2), ("30", 2), ("60", 3), ("+Inf", 3)] {
            let line = format!("ocistern_request_duration_seconds_bucket{{{labels},le=\"{bound}\"}} {count}\n");
            assert!(text.contains(&line), "{line} is missing in:\n{text}");
        }
        assert!(text.contains(&format!("ocistern_request_duration_seconds_sum{{{labels}}} 40.003\n")), "{text}");
        for (bound, count) in [("0.5", 0), ("1", 1)] {
            let line = format!(
                "ocistern_first_byte_seconds_bucket{{kind=\"manifest\",result=\"miss\",le=\"{bound}\"}} {count}\n"
            );
            assert!(text.contains(&line), "{line} is missing in:\n{text}");
        }
    }
}
