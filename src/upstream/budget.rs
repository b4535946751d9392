//! What is left of an upstream's rate limit, as far as its answers say, and whether work that no client waits for may use
//! some of it: a part is the clients'.
//!
//! Nothing here counts: another instance, or somebody behind the same address, may use the same limit, so what upstream
//! said last is all that is known. It is forgotten when its window is over.

use std::time::{Duration, SystemTime};

use http::{HeaderMap, StatusCode};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::retry::{RateLimit, rate_limit, retry_after};

/// How long nothing is asked ahead after a 429 that does not say when to come back, nor of which window it is.
const REST: Duration = Duration::from_mins(1);
/// The same where too little is left and upstream does not say of which window.
const LOOK_AGAIN: Duration = Duration::from_mins(5);

/// Too little is left for work that no client waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("what is left of the rate limit is kept for clients; more is certain in {} s", .again_in.as_secs())]
pub struct Spent {
    /// By then upstream gives as much as it ever does. It may be sooner: each answer tells what is left.
    pub again_in: Duration,
}

/// What an upstream has said.
#[derive(Debug, Default)]
pub(super) struct Budget(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    last: Option<(RateLimit, Instant)>,
    /// The most that was ever left, where upstream does not say its limit.
    most: i64,
    /// It said 429: until then it is not to be asked ahead.
    rests_until: Option<Instant>,
}

// === impl Budget ===

impl Budget {
    /// It answered. `wall`: the time that dates in its headers are of.
    pub(super) fn answered(&self, status: StatusCode, headers: &HeaderMap, wall: SystemTime) {
        let (said, now) = (rate_limit(headers), Instant::now());
        let is_refused = status == StatusCode::TOO_MANY_REQUESTS;
        if said.is_none() && !is_refused {
            return;
        }
        let mut state = self.0.lock();
        if let Some(limit) = said {
            state.last = Some((limit, now));
            state.most = state.most.max(limit.remaining);
        }
        if is_refused {
            let window = state.last.and_then(|(limit, _)| limit.window);
            state.rests_until = Some(now + retry_after(headers, wall).or(window).unwrap_or(REST));
        } else if said.is_some_and(|limit| limit.remaining > 0) {
            state.rests_until = None;
        }
    }

    /// Whether a request may be spent that no client waits for, where `reserve` percent of the limit are for clients.
    pub(super) fn spare(&self, reserve: u8) -> Result<(), Spent> {
        let (mut state, now) = (self.0.lock(), Instant::now());
        if let Some(until) = state.rests_until {
            if now < until {
                return Err(Spent { again_in: until - now });
            }
            state.rests_until = None;
        }
        let Some((limit, at)) = state.last else { return Ok(()) };
        let over = at + limit.window.unwrap_or(LOOK_AGAIN);
        if now >= over {
            state.last = None;
            return Ok(());
        }
        let whole = limit.limit.unwrap_or(state.most);
        let kept = i128::from(whole) * i128::from(reserve.min(100));
        // One of the clients' share is not touched, and none left is none.
        if limit.remaining > 0 && i128::from(limit.remaining) * 100 > kept {
            Ok(())
        } else {
            Err(Spent { again_in: over - now })
        }
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use tokio::time::advance;

    use super::*;
    use crate::clock::twin::wall;

    const HOURS: Duration = Duration::from_hours(6);

    fn headers(fields: &[(&'static str, &str)]) -> HeaderMap {
        fields
            .iter()
            .map(|(name, value)| (http::HeaderName::from_static(name), HeaderValue::from_str(value).unwrap()))
            .collect()
    }

    fn says(budget: &Budget, left: u32) {
        let left = format!("{left};w=21600");
        let fields = headers(&[("ratelimit-limit", "100;w=21600"), ("ratelimit-remaining", &left)]);
        budget.answered(StatusCode::OK, &fields, wall());
    }

    #[tokio::test(start_paused = true)]
    async fn the_clients_share_is_left() {
        let budget = Budget::default();
        assert_eq!(budget.spare(20), Ok(()), "nothing is known");
        says(&budget, 21);
        assert_eq!(budget.spare(20), Ok(()));
        says(&budget, 20);
        assert_eq!(budget.spare(20), Err(Spent { again_in: HOURS }));
        assert_eq!(budget.spare(0), Ok(()), "who keeps nothing back");
        says(&budget, 0);
        assert!(budget.spare(0).is_err());
        assert!(budget.spare(100).is_err());
        advance(HOURS.saturating_sub(Duration::from_secs(1))).await;
        assert_eq!(budget.spare(20), Err(Spent { again_in: Duration::from_secs(1) }));
        advance(Duration::from_secs(1)).await;
        assert_eq!(budget.spare(20), Ok(()), "the window is over");
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_is_a_rest() {
        let budget = Budget::default();
        let refuse =
            |fields: &[(&'static str, &str)]| budget.answered(StatusCode::TOO_MANY_REQUESTS, &headers(fields), wall());
        refuse(&[("retry-after", "90")]);
        assert_eq!(budget.spare(0), Err(Spent { again_in: Duration::from_secs(90) }));
        advance(Duration::from_secs(90)).await;
        assert_eq!(budget.spare(0), Ok(()));
        refuse(&[]);
        assert_eq!(budget.spare(0), Err(Spent { again_in: REST }));
        // Another account, or a window that has moved on.
        says(&budget, 80);
        assert_eq!(budget.spare(20), Ok(()));
        refuse(&[]);
        assert_eq!(budget.spare(0), Err(Spent { again_in: HOURS }), "of a window that is known");
    }

    #[tokio::test(start_paused = true)]
    async fn who_does_not_say_the_limit_has_the_most_that_was_left() {
        let budget = Budget::default();
        let left = |left: &str| budget.answered(StatusCode::OK, &headers(&[("x-ratelimit-remaining", left)]), wall());
        left("1000");
        assert_eq!(budget.spare(20), Ok(()));
        left("200");
        assert_eq!(budget.spare(20), Err(Spent { again_in: LOOK_AGAIN }));
        left("201");
        assert_eq!(budget.spare(20), Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn other_answers_say_nothing() {
        let budget = Budget::default();
        says(&budget, 5);
        budget.answered(StatusCode::OK, &HeaderMap::new(), wall());
        budget.answered(StatusCode::INTERNAL_SERVER_ERROR, &headers(&[("retry-after", "9")]), wall());
        assert_eq!(budget.spare(20), Err(Spent { again_in: HOURS }));
    }
}
