//! When a failed request is sent again, and what upstream's headers say about its patience.

use std::time::{Duration, SystemTime};

use http::HeaderMap;
use http::header::{DATE, RETRY_AFTER};
use tokio::time::Instant;

use super::error::Fault;

/// How often one request is sent in all.
const TRIES: u32 = 4;
/// First pause between two tries.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// Longest pause that upstream may ask for and still be waited for; with a longer one the caller decides.
const PATIENCE: Duration = Duration::from_secs(5);
/// Longest Retry-After that is believed.
const LONGEST_RETRY_AFTER: Duration = Duration::from_hours(1);

/// Counts the tries of one request.
#[derive(Debug)]
pub(crate) struct Retries {
    tried: u32,
    deadline: Instant,
}

impl Retries {
    pub(crate) fn until(deadline: Instant) -> Self {
        Self { tried: 0, deadline }
    }

    /// The pause before the next try; none: give up.
    pub(crate) fn after(&mut self, fault: &Fault) -> Option<Duration> {
        self.tried += 1;
        let tries = match fault {
            // Once more with a fresh signature; whoever blocks storage as such blocks it every time.
            Fault::Redirect(_) => 2,
            _ => TRIES,
        };
        if self.tried >= tries || !fault.is_retryable() {
            return None;
        }
        let asked = match (fault, fault.retry_after()) {
            // Without a word on when, a rate limit is not tested again: that only prolongs it.
            (Fault::RateLimited { .. }, None) => return None,
            (_, asked) => asked.unwrap_or_default(),
        };
        // Half to all of the exponential pause, so that a herd does not come back as one.
        let pause = FIRST_PAUSE * 2_u32.saturating_pow(self.tried - 1);
        let pause = pause.mul_f64(0.5 + fastrand::f64() / 2.0).max(asked);
        let in_time = pause <= PATIENCE && Instant::now() + pause < self.deadline;
        in_time.then_some(pause)
    }
}

/// `Retry-After` in seconds or as a date; what makes no sense is nothing, what is very long is an hour.
pub(crate) fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let wait = if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
        Duration::from_secs(text.parse().unwrap_or(u64::MAX))
    } else {
        // By upstream's own clock where it says how late it is there: ours may be wrong.
        let date = headers.get(DATE).and_then(|date| httpdate::parse_http_date(date.to_str().ok()?.trim()).ok());
        httpdate::parse_http_date(text).ok()?.duration_since(date.unwrap_or(now)).unwrap_or_default()
    };
    Some(wait.min(LONGEST_RETRY_AFTER))
}

/// What an upstream says of its rate limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RateLimit {
    /// Requests that it takes in a window, if it says so.
    pub limit: Option<i64>,
    /// Of these, what is left.
    pub remaining: i64,
    /// The window, if it says how long that is.
    pub window: Option<Duration>,
}

/// The rate limit: `ratelimit-limit: 100;w=21600` and `ratelimit-remaining: 76;w=21600`, as Docker Hub sends them; else the
/// same under `x-ratelimit-…`, as others do.
pub(crate) fn rate_limit(headers: &HeaderMap) -> Option<RateLimit> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let number = |text: &str| text.split(';').next()?.trim().parse().ok().filter(|number: &i64| *number >= 0);
    let seconds = |text: &str| text.split(';').find_map(|part| part.trim().strip_prefix("w=")?.parse().ok());
    let (limit, left) = match text("ratelimit-remaining") {
        Some(left) => (text("ratelimit-limit"), left),
        None => (text("x-ratelimit-limit"), text("x-ratelimit-remaining")?),
    };
    let window = seconds(left).or_else(|| limit.and_then(seconds)).map(Duration::from_secs);
    Some(RateLimit { limit: limit.and_then(number), remaining: number(left)?, window })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use http::{HeaderValue, StatusCode};
    use proptest::prelude::*;

    use super::*;
    use crate::clock::twin::wall;

    fn headers(name: &'static str, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(http::HeaderName::from_static(name), HeaderValue::from_str(value).unwrap())])
    }

    #[test]
    fn a_date_is_read_by_the_clock_of_who_wrote_it() {
        let mut headers = headers("retry-after", "Mon, 23 Nov 2026 12:00:30 GMT");
        headers.insert(DATE, HeaderValue::from_static("Mon, 23 Nov 2026 12:00:00 GMT"));
        let now = httpdate::parse_http_date("Mon, 23 Nov 2026 12:00:00 GMT").unwrap();
        let day = Duration::from_hours(24);
        for ours in [now, now + day, now - day, SystemTime::UNIX_EPOCH] {
            assert_eq!(retry_after(&headers, ours), Some(Duration::from_secs(30)));
        }
        headers.insert(DATE, HeaderValue::from_static("today"));
        assert_eq!(retry_after(&headers, now), Some(Duration::from_secs(30)), "nonsense says nothing");
    }

    #[test]
    fn every_form_of_retry_after() {
        let now = httpdate::parse_http_date("Mon, 23 Nov 2026 12:00:00 GMT").unwrap();
        let wait = |text: &str| retry_after(&headers("retry-after", text), now).map(|wait| wait.as_secs());
        assert_eq!(wait("7"), Some(7));
        assert_eq!(wait(" 0 "), Some(0));
        assert_eq!(wait("Mon, 23 Nov 2026 12:00:30 GMT"), Some(30));
        assert_eq!(wait("Monday, 23-Nov-26 12:01:00 GMT"), Some(60), "the obsolete form");
        assert_eq!(wait("Mon, 23 Nov 2020 12:00:00 GMT"), Some(0), "a date that is past");
        assert_eq!(wait("Sun, 23 Nov 2036 12:00:00 GMT"), Some(3600), "ten years");
        assert_eq!(wait("315360000"), Some(3600));
        assert_eq!(wait("99999999999999999999999"), Some(3600));
        for junk in ["", "soon", "-5", "1.5", "+3", "12 s", "1e3"] {
            assert_eq!(wait(junk), None, "{junk:?}");
        }
        assert_eq!(retry_after(&HeaderMap::new(), now), None);
    }

    proptest! {
        #[test]
        fn no_retry_after_is_longer_than_an_hour(text in "[ -~]{0,40}|[0-9]{0,30}|[A-Z][a-z]{2}, [0-9]{2} [A-Z][a-z]{2} [0-9]{4} [0-9:]{8} GMT") {
            if let Some(wait) = retry_after(&headers("retry-after", &text), wall()) {
                prop_assert!(wait <= LONGEST_RETRY_AFTER);
            }
        }

        #[test]
        fn seconds_are_waited_as_they_are_said(seconds in 0_u64..=3600) {
            let wait = retry_after(&headers("retry-after", &seconds.to_string()), wall());
            prop_assert_eq!(wait, Some(Duration::from_secs(seconds)));
        }
    }

    #[test]
    fn rate_limit_header() {
        let left =
            |text: &str| rate_limit(&headers("ratelimit-remaining", text)).map(|limit| (limit.remaining, limit.window));
        assert_eq!(left("76;w=21600"), Some((76, Some(Duration::from_hours(6)))));
        assert_eq!(left("0"), Some((0, None)));
        assert_eq!(left("-1"), None);
        assert_eq!(left("many;w=1"), None);
        assert_eq!(left("100; w=soon"), Some((100, None)));
        assert_eq!(left(";w=1"), None);
    }

    #[test]
    fn both_headers_of_the_rate_limit() {
        let mut headers = headers("ratelimit-remaining", "76; w=21600");
        let window = Some(Duration::from_hours(6));
        assert_eq!(rate_limit(&headers), Some(RateLimit { limit: None, remaining: 76, window }));
        headers.insert("ratelimit-limit", HeaderValue::from_static("200;w=3600"));
        assert_eq!(rate_limit(&headers), Some(RateLimit { limit: Some(200), remaining: 76, window }));
        headers.insert("ratelimit-remaining", HeaderValue::from_static("-4"));
        assert_eq!(rate_limit(&headers), None);
        headers.remove("ratelimit-remaining");
        assert_eq!(rate_limit(&headers), None, "what is left is what counts");
    }

    #[test]
    fn the_older_headers_count_where_there_are_no_others() {
        let mut headers = headers("x-ratelimit-remaining", "7");
        headers.insert("x-ratelimit-limit", HeaderValue::from_static("60"));
        assert_eq!(rate_limit(&headers), Some(RateLimit { limit: Some(60), remaining: 7, window: None }));
        headers.insert("ratelimit-remaining", HeaderValue::from_static("76;w=21600"));
        let window = Some(Duration::from_hours(6));
        assert_eq!(rate_limit(&headers), Some(RateLimit { limit: None, remaining: 76, window }), "no mixture");
    }

    #[tokio::test(start_paused = true)]
    async fn tries_are_bounded_in_number_and_time() {
        let broken = || Fault::Broken(Arc::new(std::io::Error::other("x")));
        let mut retries = Retries::until(Instant::now() + Duration::from_secs(20));
        let pauses: Vec<_> = std::iter::from_fn(|| retries.after(&broken())).collect();
        assert_eq!(pauses.len(), 3, "four tries in all");
        assert!(pauses[0] >= FIRST_PAUSE / 2 && pauses[2] <= FIRST_PAUSE * 4);
        assert!(Retries::until(Instant::now()).after(&broken()).is_none(), "no time left");
        let limited = |wait| Fault::RateLimited { retry_after: wait, message: String::new() };
        let mut retries = Retries::until(Instant::now() + Duration::from_secs(20));
        assert!(retries.after(&limited(None)).is_none());
        assert!(retries.after(&limited(Some(Duration::from_mins(1)))).is_none(), "too long to wait for");
        assert_eq!(retries.after(&limited(Some(Duration::from_secs(3)))), Some(Duration::from_secs(3)));
        let gone = Fault::Status { status: StatusCode::GONE, retry_after: None, message: String::new() };
        assert!(Retries::until(Instant::now() + Duration::from_secs(20)).after(&gone).is_none());
    }
}
