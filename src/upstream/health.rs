//! How an upstream does: whether it answers, since when, what went wrong last, and what it said of its rate limit. For
//! people who look at it; nothing is decided by it.

use std::time::{Duration, SystemTime};

use http::{HeaderMap, StatusCode};
use parking_lot::Mutex;

use super::error::{Class, Fault};
use super::retry::{RateLimit, rate_limit};
use crate::troubles::tidy;

/// Whether an upstream answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum HealthState {
    /// The configuration forbids to ask it.
    Sealed,
    /// It has not been asked since the start.
    NeverAsked,
    /// The last request got an answer: any but a 5xx.
    Answering,
    /// The last request got none, or a 5xx, or its token endpoint is away.
    Failing,
    /// It failed so often in a row that it is left alone for a while.
    BreakerOpen,
}

/// How an endpoint does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    /// Whether it answers.
    pub state: HealthState,
    /// Answering: since the first answer after it had failed, or was asked at all. Failing, or left alone: since the
    /// first failure after the last answer. None: it was not asked.
    pub since: Option<SystemTime>,
    /// Left alone: after so long the next request finds out.
    pub asked_again_in: Option<Duration>,
    /// What went wrong last, however long ago.
    pub last_error: Option<LastError>,
    /// What it said last of its rate limit, and when.
    pub rate_limit: Option<(RateLimit, SystemTime)>,
}

/// What went wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LastError {
    /// For people; without queries of URLs.
    pub message: String,
    /// When.
    pub at: SystemTime,
}

/// What is noticed of an endpoint.
#[derive(Debug, Default)]
pub(super) struct Pulse(Mutex<Noticed>);

#[derive(Debug, Default)]
struct Noticed {
    last: Option<Last>,
    since: Option<SystemTime>,
    error: Option<LastError>,
    limit: Option<(RateLimit, SystemTime)>,
}

/// How the last request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Last {
    Answered,
    /// By the endpoint itself.
    Failed,
    /// It answers, and nothing can be had of it: who gives its tokens is away.
    NoToken,
}

// === impl HealthState ===

impl HealthState {
    /// The word in answers.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Sealed => "sealed",
            Self::NeverAsked => "never_asked",
            Self::Answering => "answering",
            Self::Failing => "failing",
            Self::BreakerOpen => "breaker_open",
        }
    }
}

// === impl Pulse ===

impl Pulse {
    /// It answered.
    pub(super) fn answered(&self, status: StatusCode, headers: &HeaderMap, now: SystemTime) {
        let mut noticed = self.0.lock();
        if let Some(limit) = rate_limit(headers) {
            noticed.limit = Some((limit, now));
        }
        if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS {
            noticed.error = Some(LastError { message: format!("it answered {status}"), at: now });
        }
        if status.is_server_error() {
            noticed.becomes(Last::Failed, now);
        } else if noticed.last != Some(Last::NoToken) || status != StatusCode::UNAUTHORIZED {
            // That it still asks for a token says nothing of who gives it.
            noticed.becomes(Last::Answered, now);
        }
    }

    /// There was no answer of its own.
    pub(super) fn failed(&self, fault: &Fault, now: SystemTime) {
        let mut noticed = self.0.lock();
        noticed.error = Some(LastError { message: tidy(&fault.to_string()), at: now });
        noticed.becomes(Last::Failed, now);
    }

    /// Where a whole request ended with an error, tokens included. What is upstream's word on the caller or the content is
    /// none of the endpoint.
    pub(super) fn ended(&self, fault: &Fault, now: SystemTime) {
        let Fault::Token(_) = fault else { return };
        if fault.class() == Class::Unavailable {
            let mut noticed = self.0.lock();
            noticed.error = Some(LastError { message: tidy(&fault.to_string()), at: now });
            noticed.becomes(Last::NoToken, now);
        }
    }

    /// What is to be said of it; `held_back`: for how long the breaker lets nothing through.
    pub(super) fn health(&self, sealed: bool, held_back: Option<Duration>) -> Health {
        let noticed = self.0.lock();
        let state = match (sealed, held_back, noticed.last) {
            (true, ..) => HealthState::Sealed,
            (_, Some(_), _) => HealthState::BreakerOpen,
            (.., None) => HealthState::NeverAsked,
            (.., Some(Last::Answered)) => HealthState::Answering,
            (.., Some(Last::Failed | Last::NoToken)) => HealthState::Failing,
        };
        Health {
            state,
            since: noticed.since,
            asked_again_in: held_back,
            last_error: noticed.error.clone(),
            rate_limit: noticed.limit,
        }
    }
}

// === impl Noticed ===

impl Noticed {
    fn becomes(&mut self, last: Last, now: SystemTime) {
        let is_good = |last: Last| last == Last::Answered;
        if self.last.map(is_good) != Some(is_good(last)) {
            self.since = Some(now);
        }
        self.last = Some(last);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use http::HeaderValue;

    use super::super::error::TokenFault;
    use super::*;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn broken() -> Fault {
        let cause = std::io::Error::other("GET https://host/x?sig=canary failed");
        Fault::Broken(Arc::new(cause))
    }

    #[test]
    fn since_when_it_is_away() {
        let pulse = Pulse::default();
        let state = || {
            let health = pulse.health(false, None);
            (health.state, health.since)
        };
        let headers = HeaderMap::new();
        assert_eq!(state(), (HealthState::NeverAsked, None));
        pulse.answered(StatusCode::OK, &headers, at(1));
        pulse.answered(StatusCode::NOT_FOUND, &headers, at(2));
        assert_eq!(state(), (HealthState::Answering, Some(at(1))), "what is not there is an answer");
        pulse.failed(&broken(), at(3));
        pulse.answered(StatusCode::BAD_GATEWAY, &headers, at(4));
        assert_eq!(state(), (HealthState::Failing, Some(at(3))), "a 5xx is none");
        let left_alone = pulse.health(false, Some(Duration::from_secs(5)));
        assert_eq!((left_alone.state, left_alone.since), (HealthState::BreakerOpen, Some(at(3))));
        pulse.answered(StatusCode::UNAUTHORIZED, &headers, at(5));
        assert_eq!(state(), (HealthState::Answering, Some(at(5))));
        let error = pulse.health(false, None).last_error.unwrap();
        assert_eq!((error.message.as_str(), error.at), ("it answered 502 Bad Gateway", at(4)), "it is not forgotten");
        assert_eq!(pulse.health(true, None).state, HealthState::Sealed);
    }

    #[test]
    fn an_upstream_without_its_token_endpoint_is_failing() {
        let pulse = Pulse::default();
        let fault = Fault::Token(TokenFault::Away { host: "auth".into(), cause: Arc::new(std::io::Error::other("x")) });
        let headers = HeaderMap::new();
        pulse.answered(StatusCode::UNAUTHORIZED, &headers, at(1));
        pulse.ended(&fault, at(2));
        pulse.answered(StatusCode::UNAUTHORIZED, &headers, at(3));
        pulse.ended(&fault, at(4));
        let health = pulse.health(false, None);
        assert_eq!((health.state, health.since), (HealthState::Failing, Some(at(2))), "it does not flap");
        pulse.answered(StatusCode::OK, &headers, at(5));
        assert_eq!(pulse.health(false, None).state, HealthState::Answering);
        pulse.ended(&Fault::Forbidden { message: String::new() }, at(6));
        assert_eq!(pulse.health(false, None).state, HealthState::Answering, "its word on a caller is no failure");
    }

    #[test]
    fn signatures_are_not_told() {
        let pulse = Pulse::default();
        pulse.failed(&broken(), at(1));
        let message = pulse.health(false, None).last_error.unwrap().message;
        assert!(message.contains("https://host/x?…") && !message.contains("canary"), "{message}");
    }

    #[test]
    fn the_rate_limit_is_what_was_said_last() {
        let pulse = Pulse::default();
        let mut headers = HeaderMap::new();
        headers.insert("ratelimit-limit", HeaderValue::from_static("100;w=21600"));
        headers.insert("ratelimit-remaining", HeaderValue::from_static("76;w=21600"));
        pulse.answered(StatusCode::OK, &headers, at(1));
        pulse.answered(StatusCode::OK, &HeaderMap::new(), at(2));
        let limit = RateLimit { limit: Some(100), remaining: 76, window: Some(Duration::from_hours(6)) };
        assert_eq!(pulse.health(false, None).rate_limit, Some((limit, at(1))));
    }
}
