//! How far a long command is, on the terminal; nothing at all where standard error is none, or JSON was asked for.

use std::convert::Infallible;
use std::io::{IsTerminal as _, stderr};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::time::{MissedTickBehavior, interval};

use super::talk::Place;
use crate::metrics::Metrics;

/// How often the figures are looked at.
const EVERY: Duration = Duration::from_millis(500);
/// How often the display moves, so that a command that hangs is told from one that is at work.
const MOVES: Duration = Duration::from_millis(200);
/// How long the figures may take; without them the display only moves.
const PATIENCE: Duration = Duration::from_secs(2);

/// How far a work is whose end is known,
const WHOLE: &str = "{spinner} {msg} [{bar:30}] {percent}%, {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left";
/// one whose end is not,
const PART: &str = "{spinner} {msg} {bytes}, {bytes_per_sec}, for {elapsed}";
/// and one that nobody counts.
const BARE: &str = "{spinner} {msg} for {elapsed}";

/// What is being done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Work {
    /// All that is stored is hashed.
    VerifyAll,
    /// A part of it, nobody knows how much.
    VerifySome,
    /// What nothing leads to is looked for.
    Collect,
    /// Images are brought; what there is to download turns out by and by.
    Warm,
}

/// Whose figures they are.
#[derive(Debug, Clone)]
pub(super) enum Source {
    /// A daemon's, asked beside the work itself.
    Daemon(Place),
    /// This process's own.
    Here(Metrics),
}

/// The display; it goes when it is dropped.
#[derive(Debug)]
pub(super) struct Progress {
    work: Work,
    bar: ProgressBar,
    source: Source,
    /// What the figures were before the work.
    before: Figures,
}

/// What can be told of the work.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Figures {
    /// Bytes hashed since the process began; none: a version that does not say it.
    verified: Option<u64>,
    /// Bytes that came from registries since then.
    received: Option<u64>,
    /// Bytes that are stored.
    stored: Option<u64>,
}

// === impl Progress ===

impl Progress {
    /// Begins to show it; none: nobody would see it.
    pub(super) async fn begin(work: Work, source: Source, json: bool) -> Option<Self> {
        if json || !stderr().is_terminal() {
            return None;
        }
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        let before = source.figures().await;
        let progress = Self { work, bar, source, before };
        let counted = before.since(before, work).is_some();
        progress.bar.set_style(style(if counted { PART } else { BARE }));
        progress.bar.set_message(work.as_str());
        progress.show(before);
        progress.bar.enable_steady_tick(MOVES);
        Some(progress)
    }

    /// Shows it from now on, until it is dropped.
    pub(super) async fn follow(&self) -> Infallible {
        let mut ticks = interval(EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.show(self.source.figures().await);
        }
    }

    fn show(&self, now: Figures) {
        let Some(done) = now.since(self.before, self.work) else { return };
        // Nothing is stored: a store that is just being read, as a rule.
        if self.work == Work::VerifyAll
            && let Some(stored) = now.stored.filter(|stored| *stored > 0)
        {
            if self.bar.length().is_none() {
                self.bar.set_style(style(WHOLE));
            }
            // What is evicted meanwhile has been hashed as well.
            self.bar.set_length(stored.max(done));
        }
        self.bar.set_position(done);
    }
}

/// A mistake in a template would be one on all terminals: a test has made them all.
fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_spinner())
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

// === impl Work ===

impl Work {
    /// As it is shown.
    const fn as_str(self) -> &'static str {
        match self {
            Self::VerifyAll | Self::VerifySome => "verifying",
            Self::Collect => "looking for what nothing leads to",
            Self::Warm => "warming",
        }
    }
}

// === impl Source ===

impl Source {
    async fn figures(&self) -> Figures {
        match self {
            Self::Here(metrics) => Figures::parse(&metrics.expose()),
            Self::Daemon(place) => match place.get("/metrics", None, PATIENCE).await {
                Ok(said) if said.status.is_success() => Figures::parse(&String::from_utf8_lossy(&said.body)),
                Ok(_) | Err(_) => Figures::default(),
            },
        }
    }
}

// === impl Figures ===

impl Figures {
    /// Of all metrics, in Prometheus's text form.
    fn parse(text: &str) -> Self {
        let value = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
            line.trim().parse().ok()
        };
        // One line for each upstream; none before anything has come.
        let received = text.lines().filter_map(|line| line.strip_prefix("ocistern_upstream_received_bytes_total{"));
        let received = received.filter_map(|line| line.rsplit_once(' ')?.1.parse::<u64>().ok()).sum();
        let verified = value("ocistern_verified_bytes_total");
        Self { verified, received: verified.map(|_| received), stored: value("ocistern_store_bytes") }
    }

    /// How many bytes of the work have been done since; none where nobody counts them.
    fn since(self, before: Self, work: Work) -> Option<u64> {
        let of = |figures: Self| match work {
            Work::VerifyAll | Work::VerifySome => figures.verified,
            Work::Warm => figures.received,
            Work::Collect => None,
        };
        Some(of(self)?.saturating_sub(of(before)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_read_from_the_metrics() {
        let metrics = Metrics::new().unwrap();
        metrics.verified_bytes.inc_by(7);
        metrics.store_bytes.set(9);
        let before = Figures::parse(&metrics.expose());
        assert_eq!(before, Figures { verified: Some(7), received: Some(0), stored: Some(9) });
        metrics.verified_bytes.inc_by(5);
        let after = Figures::parse(&metrics.expose());
        assert_eq!(after.since(before, Work::VerifyAll), Some(5));
        assert_eq!((after.since(before, Work::Warm), after.since(before, Work::Collect)), (Some(0), None));
        let received = "ocistern_verified_bytes_total 0\nocistern_upstream_received_bytes_total{upstream=\"a\"} 4\n\
                        ocistern_upstream_received_bytes_total{upstream=\"b\"} 5\n";
        assert_eq!(Figures::parse(received).received, Some(9));
        assert_eq!(Figures::parse("ocistern_store_bytes_total 4\n"), Figures::default(), "another name");
        assert_eq!(
            Figures::default().since(before, Work::VerifyAll),
            None,
            "a daemon that does not answer is no progress"
        );
    }

    #[test]
    fn every_template_is_one() {
        for template in [WHOLE, PART, BARE] {
            assert!(ProgressStyle::with_template(template).is_ok(), "{template}");
        }
    }

    #[test]
    fn the_end_is_shown_once_it_is_known() {
        let progress = |work| Progress {
            work,
            bar: ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden()),
            source: Source::Here(Metrics::new().unwrap()),
            before: Figures { verified: Some(7), stored: Some(0), ..Figures::default() },
        };
        let all = progress(Work::VerifyAll);
        let show = |verified, stored| {
            all.show(Figures { verified: Some(verified), stored: Some(stored), ..Figures::default() });
            (all.bar.position(), all.bar.length())
        };
        assert_eq!(show(7, 0), (0, None), "an empty store is not done at once");
        assert_eq!(show(7, 90), (0, Some(90)));
        assert_eq!(show(37, 90), (30, Some(90)));
        assert_eq!(show(37, 20), (30, Some(30)), "the rest was evicted");
        let some = progress(Work::VerifySome);
        some.show(Figures { verified: Some(9), stored: Some(90), ..Figures::default() });
        assert_eq!((some.bar.position(), some.bar.length()), (2, None));
    }
}
