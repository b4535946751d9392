//! `GET /api/v1/history`: what came of the cache over time, and how the store grows. In memory, of bounded size: a point
//! a minute for a day, and one an hour for thirty days, 86 KiB in all.

use std::collections::VecDeque;
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, MissedTickBehavior, interval_at};
use tokio_util::sync::CancellationToken;

use super::figures::{Figures, Traffic};
use crate::clock::{Clock, timestamp};
use crate::metrics::Metrics;

/// How often a point is made.
const MINUTE: Duration = Duration::from_mins(1);
/// How many of these are kept: a day.
const MINUTES: usize = 24 * 60;
/// How many minutes are an hour.
const HOUR: usize = 60;
/// How many points of an hour are kept: thirty days.
const HOURS: usize = 30 * 24;
/// Over how many hours growth is measured, where there are as many.
const GROWTH_HOURS: usize = 7 * 24;
/// Less than so many seconds say nothing of a day's growth.
const TELLING: u64 = 30 * 60;
const DAY: u64 = 24 * 60 * 60;
/// Nobody plans further ahead.
const FORESEEN: u64 = 10 * 365 * DAY;

/// What has happened since the start.
#[derive(Debug, Default)]
pub(super) struct History(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    minutes: VecDeque<Point>,
    hours: VecDeque<Point>,
    /// The counters when the last point was made.
    last: Mark,
    /// Minutes of the hour that is not over.
    of_hour: usize,
    /// What has come together in it.
    hour: Mark,
}

/// Counters, or what they grew by.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Mark {
    served: u64,
    received: u64,
    requests: u64,
    hits: u64,
}

/// What has happened in a minute or an hour; 40 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Point {
    served: u64,
    received: u64,
    /// At its end.
    store: u64,
    /// Seconds since 1970 at its end.
    at: u32,
    requests: u32,
    hits: u32,
}

/// How long the points of an answer are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// A day of them is kept.
    Minute,
    /// Thirty days.
    Hour,
}

/// The answer to `GET /api/v1/history`.
#[derive(Debug, Serialize, Deserialize)]
pub struct HistoryReport {
    /// How long a point is: 60 or 3600.
    pub step_seconds: u64,
    /// The oldest first; the last one is that of the time which is not over yet.
    pub points: Vec<HistoryPoint>,
}

/// What has happened in some time.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct HistoryPoint {
    /// Its end, by the clock on the wall as it was then.
    pub at: Timestamp,
    /// Bytes of bodies that were sent to clients.
    pub served_bytes: u64,
    /// Bytes of bodies that came from upstreams.
    pub received_bytes: u64,
    /// Requests for manifests and blobs that were answered with content.
    pub requests: u64,
    /// Of these, from the store.
    pub hits: u64,
    /// What the store held at its end.
    pub store_bytes: u64,
}

/// How long the room lasts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forecast {
    /// What the store may still take before something must go: by its capacity, and by what the file system has left above
    /// what stays free there.
    pub free_bytes: u64,
    /// By how much a day what it holds has grown; null: it has not been watched for half an hour.
    pub growth_bytes_per_day: Option<i64>,
    /// Over so many seconds that was measured.
    pub measured_seconds: u64,
    /// When it is full if that goes on; null: not known, or not within ten years.
    pub full_at: Option<Timestamp>,
    /// Whether something has been removed to make room since the start: the store is as full as it gets.
    pub evicting: bool,
}

// === impl Step ===

impl Step {
    const fn seconds(self) -> u64 {
        match self {
            Self::Minute => 60,
            Self::Hour => 3600,
        }
    }
}

// === impl Mark ===

impl Mark {
    fn now(metrics: &Metrics) -> Self {
        let Traffic { requests, hits, served_bytes, received_bytes, .. } = Figures::now(metrics).total();
        Self { served: served_bytes, received: received_bytes, requests, hits }
    }

    const fn since(self, earlier: Self) -> Self {
        Self {
            served: self.served.saturating_sub(earlier.served),
            received: self.received.saturating_sub(earlier.received),
            requests: self.requests.saturating_sub(earlier.requests),
            hits: self.hits.saturating_sub(earlier.hits),
        }
    }

    const fn plus(self, other: Self) -> Self {
        Self {
            served: self.served.saturating_add(other.served),
            received: self.received.saturating_add(other.received),
            requests: self.requests.saturating_add(other.requests),
            hits: self.hits.saturating_add(other.hits),
        }
    }

    fn point(self, store: u64, now: SystemTime) -> Point {
        let small = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
        let at = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        Point {
            served: self.served,
            received: self.received,
            store,
            at: small(at),
            requests: small(self.requests),
            hits: small(self.hits),
        }
    }
}

// === impl Point ===

impl Point {
    fn report(self) -> HistoryPoint {
        HistoryPoint {
            at: timestamp(SystemTime::UNIX_EPOCH + Duration::from_secs(self.at.into())),
            served_bytes: self.served,
            received_bytes: self.received,
            requests: self.requests.into(),
            hits: self.hits.into(),
            store_bytes: self.store,
        }
    }
}

// === impl History ===

impl History {
    /// Makes a point each minute until `stop`.
    pub(super) async fn keep(&self, metrics: &Metrics, clock: &dyn Clock, stop: &CancellationToken) {
        let mut ticks = interval_at(Instant::now() + MINUTE, MINUTE);
        // A machine that slept has nothing to catch up with.
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while stop.run_until_cancelled(ticks.tick()).await.is_some() {
            self.sample(metrics, clock.now());
        }
    }

    fn sample(&self, metrics: &Metrics, now: SystemTime) {
        let (mark, store) = (Mark::now(metrics), held(metrics));
        let mut kept = self.0.lock();
        let grown = mark.since(kept.last);
        kept.last = mark;
        push(&mut kept.minutes, grown.point(store, now), MINUTES);
        kept.hour = kept.hour.plus(grown);
        kept.of_hour += 1;
        if kept.of_hour == HOUR {
            let hour = std::mem::take(&mut kept.hour).point(store, now);
            kept.of_hour = 0;
            push(&mut kept.hours, hour, HOURS);
        }
    }

    /// What is remembered.
    pub(super) fn report(&self, step: Step, metrics: &Metrics, now: SystemTime) -> HistoryReport {
        let (mark, store) = (Mark::now(metrics), held(metrics));
        let kept = self.0.lock();
        let fresh = mark.since(kept.last);
        let (points, last) = match step {
            Step::Minute => (&kept.minutes, fresh),
            Step::Hour => (&kept.hours, fresh.plus(kept.hour)),
        };
        let points = points.iter().copied().chain([last.point(store, now)]).map(Point::report).collect();
        HistoryReport { step_seconds: step.seconds(), points }
    }

    /// How long room of so many bytes lasts at the pace of the last days, or of as long as is known.
    pub(super) fn forecast(&self, metrics: &Metrics, free_bytes: u64, now: SystemTime) -> Forecast {
        let store = held(metrics);
        let (first, measured_seconds) = {
            let kept = self.0.lock();
            let hours = kept.hours.len().min(GROWTH_HOURS);
            if hours > 1 {
                let first = kept.hours.get(kept.hours.len() - hours);
                (first.copied(), (hours as u64 - 1) * 3600 + kept.of_hour as u64 * 60)
            } else {
                (kept.minutes.front().copied(), (kept.minutes.len() as u64).saturating_sub(1) * 60)
            }
        };
        let first = first.filter(|_| measured_seconds >= TELLING);
        let growth = first.map(|first| {
            let grown = i128::from(store) - i128::from(first.store);
            i64::try_from(grown * i128::from(DAY) / i128::from(measured_seconds)).unwrap_or_default()
        });
        let seconds = growth
            .filter(|growth| *growth > 0)
            .map(|growth| u128::from(free_bytes) * u128::from(DAY) / u128::from(growth.unsigned_abs()));
        let full_at = seconds
            .and_then(|seconds| u64::try_from(seconds).ok())
            .filter(|seconds| *seconds <= FORESEEN)
            .map(|seconds| timestamp(now + Duration::from_secs(seconds)));
        let evicting = metrics.evicted_bytes.get() > 0;
        Forecast { free_bytes, growth_bytes_per_day: growth, measured_seconds, full_at, evicting }
    }
}

fn push(points: &mut VecDeque<Point>, point: Point, most: usize) {
    if points.len() >= most {
        points.pop_front();
    }
    points.push_back(point);
}

fn held(metrics: &Metrics) -> u64 {
    u64::try_from(metrics.store_bytes.get()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::{Kind, Outcome, Source};

    fn at(minute: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(2_000_000_000 + minute * 60)
    }

    fn serve(metrics: &Metrics, bytes: u64) {
        metrics.requests.with_label_values(&["up", Kind::Blob.as_str(), Outcome::Hit.as_str()]).inc();
        metrics.served_bytes.with_label_values(&["up", Source::Cache.as_str()]).inc_by(bytes);
    }

    #[test]
    fn points_are_what_the_counters_grew_by() {
        let (history, metrics) = (History::default(), Metrics::new().unwrap());
        serve(&metrics, 10);
        history.sample(&metrics, at(1));
        history.sample(&metrics, at(2));
        serve(&metrics, 5);
        serve(&metrics, 5);
        metrics.store_bytes.set(77);
        let report = history.report(Step::Minute, &metrics, at(3));
        assert_eq!(report.step_seconds, 60);
        let served: Vec<_> = report.points.iter().map(|point| (point.served_bytes, point.hits)).collect();
        assert_eq!(served, [(10, 1), (0, 0), (10, 2)], "the last one is of the minute that is not over");
        assert_eq!(report.points[2].store_bytes, 77);
        assert_eq!(report.points[0].at, timestamp(at(1)));
    }

    #[test]
    fn memory_is_bounded_and_hours_add_up() {
        let (history, metrics) = (History::default(), Metrics::new().unwrap());
        let minutes = (HOURS + 2) * HOUR;
        for minute in 0..minutes {
            serve(&metrics, 1);
            history.sample(&metrics, at(minute as u64));
        }
        let minutes = history.report(Step::Minute, &metrics, at(0)).points;
        let hours = history.report(Step::Hour, &metrics, at(0)).points;
        assert_eq!((minutes.len(), hours.len()), (MINUTES + 1, HOURS + 1));
        assert!(hours.iter().take(HOURS).all(|hour| (hour.served_bytes, hour.requests) == (60, 60)));
        assert!(size_of::<Point>() * (MINUTES + HOURS) <= 86 << 10, "as the documentation says");
    }

    #[test]
    fn how_long_the_room_lasts() {
        let (history, metrics) = (History::default(), Metrics::new().unwrap());
        let forecast = |minute| {
            let free = 1000_u64.saturating_sub(metrics.store_bytes.get().try_into().unwrap());
            history.forecast(&metrics, free, at(minute))
        };
        assert_eq!(forecast(0).growth_bytes_per_day, None, "nobody knows yet");
        for minute in 0..=40 {
            metrics.store_bytes.set(100 + i64::try_from(minute).unwrap());
            history.sample(&metrics, at(minute));
        }
        let seen = forecast(40);
        assert_eq!((seen.free_bytes, seen.growth_bytes_per_day), (860, Some(1440)), "a byte a minute");
        assert_eq!(seen.full_at, Some(timestamp(at(40 + 860))));
        assert!(!seen.evicting);
        let seen = history.forecast(&metrics, 60, at(40));
        assert_eq!(seen.full_at, Some(timestamp(at(40 + 60))), "where others fill the file system it is full earlier");
        metrics.store_bytes.set(50);
        let seen = forecast(40);
        assert!(seen.growth_bytes_per_day < Some(0) && seen.full_at.is_none(), "it shrinks: {seen:?}");
        metrics.evicted_bytes.inc_by(1);
        assert!(forecast(40).evicting);
        for minute in 41..10_000 {
            metrics.store_bytes.set(i64::try_from(minute).unwrap());
            history.sample(&metrics, at(minute));
        }
        let growth = forecast(9999).growth_bytes_per_day.unwrap();
        assert!((1400..1480).contains(&growth), "over hours, too: {growth}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_point_each_minute_until_the_stop() {
        let (history, metrics) = (History::default(), Metrics::new().unwrap());
        let (clock, stop) = (crate::clock::twin::system(), CancellationToken::new());
        let keeping = history.keep(&metrics, &*clock, &stop);
        let stopping = async {
            tokio::time::sleep(Duration::from_secs(150)).await;
            stop.cancel();
        };
        tokio::join!(keeping, stopping);
        assert_eq!(history.report(Step::Minute, &metrics, clock.now()).points.len(), 3);
    }
}
