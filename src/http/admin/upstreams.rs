//! `GET /api/v1/upstreams`: whether each upstream answers, what came of it, and what it said of its rate limit.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::figures::{Figures, Traffic};
use crate::clock::timestamp;
use crate::config::{self, Config};
use crate::upstream::{Health, HealthState, Upstreams};

/// The answer to `GET /api/v1/upstreams`.
#[derive(Debug, Serialize, Deserialize)]
pub struct UpstreamList {
    /// In order of their names.
    pub upstreams: Vec<UpstreamReport>,
}

/// An upstream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpstreamReport {
    /// Its name in the configuration.
    pub name: String,
    /// Its own endpoint.
    #[serde(flatten)]
    pub endpoint: EndpointReport,
    /// Other places of its content, in the order of the configuration.
    pub mirrors: Vec<EndpointReport>,
    /// What it said last of its rate limit; null: nothing.
    pub rate_limit: Option<RateLimitReport>,
    /// What was asked of it, and what came, mirrors included.
    #[serde(flatten)]
    pub traffic: Traffic,
}

/// A place that is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointReport {
    /// Where it is.
    pub url: String,
    /// A word of [`HealthState::as_str`].
    pub state: String,
    /// Since when: [`Health::since`]. Null: it was not asked since the start.
    pub since: Option<Timestamp>,
    /// While it is left alone: after so many seconds the next request finds out.
    pub asked_again_in_seconds: Option<u64>,
    /// What went wrong last, however long ago.
    pub last_error: Option<ErrorReport>,
}

/// What went wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorReport {
    /// For people.
    pub message: String,
    /// When.
    pub at: Timestamp,
}

/// A rate limit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RateLimitReport {
    /// Requests in a window; null: it does not say.
    pub limit: Option<i64>,
    /// Of these, what was left.
    pub remaining: i64,
    /// The window; null: it does not say.
    pub window_seconds: Option<u64>,
    /// When it said so.
    pub at: Timestamp,
}

// === impl UpstreamReport ===

impl UpstreamReport {
    /// Whether it is known to be away.
    pub fn is_away(&self) -> bool {
        self.endpoint.is_away()
    }
}

// === impl EndpointReport ===

impl EndpointReport {
    fn new(url: &config::BaseUrl, health: &Health) -> Self {
        Self {
            url: url.to_string(),
            state: health.state.as_str().to_owned(),
            since: health.since.map(timestamp),
            // Rounded up: to come a second early is to be held back again.
            asked_again_in_seconds: health
                .asked_again_in
                .map(|wait| wait.as_secs() + u64::from(wait.subsec_nanos() > 0)),
            last_error: health
                .last_error
                .as_ref()
                .map(|error| ErrorReport { message: error.message.clone(), at: timestamp(error.at) }),
        }
    }

    /// One that nobody asks: no daemon is there.
    fn idle(url: &config::BaseUrl, sealed: bool) -> Self {
        let state = if sealed { HealthState::Sealed } else { HealthState::NeverAsked };
        let state = state.as_str().to_owned();
        Self { url: url.to_string(), state, since: None, asked_again_in_seconds: None, last_error: None }
    }

    fn is_away(&self) -> bool {
        [HealthState::Failing, HealthState::BreakerOpen].iter().any(|state| state.as_str() == self.state)
    }
}

/// All upstreams; those of the configuration where there is no daemon.
pub(super) fn list(config: &Config, live: Option<&Upstreams>, figures: &Figures) -> Vec<UpstreamReport> {
    let Some(upstreams) = live else {
        let idle = |upstream: &config::Upstream| UpstreamReport {
            name: upstream.name.to_string(),
            endpoint: EndpointReport::idle(&upstream.url, upstream.sealed),
            mirrors: upstream.mirrors.iter().map(|url| EndpointReport::idle(url, upstream.sealed)).collect(),
            rate_limit: None,
            traffic: Traffic::default(),
        };
        return config.upstreams.values().map(|upstream| idle(upstream)).collect();
    };
    let report = |registry: &std::sync::Arc<crate::upstream::Registry>| {
        let health = registry.health();
        let limit = health.rate_limit;
        UpstreamReport {
            name: registry.name().to_string(),
            endpoint: EndpointReport::new(&registry.config().url, &health),
            mirrors: registry
                .mirrors()
                .iter()
                .map(|mirror| EndpointReport::new(&mirror.config().url, &mirror.health()))
                .collect(),
            rate_limit: limit.map(|(limit, at)| RateLimitReport {
                limit: limit.limit,
                remaining: limit.remaining,
                window_seconds: limit.window.map(|window| window.as_secs()),
                at: timestamp(at),
            }),
            traffic: figures.of(registry.name().as_str()),
        }
    };
    upstreams.all().iter().map(report).collect()
}
