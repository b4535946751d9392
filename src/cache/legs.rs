//! The legs of a fill: which requests upstream bring a blob into its file, until all of it is there or nobody reads it.
//!
//! [`super::plan`] says what to ask for, [`super::width`] with how many requests; this runs them, in the one task of the
//! fill, and looks again whenever a reader comes or goes, a request ends, or a second has passed.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use parking_lot::Mutex;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::Settings;
use super::demand::{Demand, Wanted};
use super::download::Download;
use super::leg::{Broken, Handle, Into};
use super::plan::{Situation, Step, plan};
use super::report::Gauges;
use super::supply::{Parts, Supply};
use super::width::Width;
use crate::config::{Abandon, RangeFill};
use crate::store::{BlobWriter, ByteRanges};
use crate::upstream::Priority;

/// How often is looked at rates, and at whether somebody reads.
const TICK: Duration = Duration::from_secs(1);
/// How long a fill goes on that nobody reads and that is not to be finished.
const UNREAD: Duration = Duration::from_secs(10);
/// The same where parts are all that was asked for: who reads these comes again.
const UNREAD_PARTS: Duration = Duration::from_secs(20);
/// Less than this is brought in any case.
const SMALL: u64 = 64 << 20;
/// What is not known of a blob's length.
const UNKNOWN: u64 = u64::MAX;

/// How a fill ended without an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    /// All of the blob has come.
    Whole,
    /// Nobody reads it, and it is not worth to be finished.
    Unread,
}

/// What decides about the legs of one fill.
pub(super) struct Legs<'a> {
    settings: &'a Settings,
    supply: &'a Arc<Supply>,
    demand: &'a Demand,
    gauges: &'a Gauges,
    most: usize,
    width: Width,
    /// All of it is to come, whoever reads.
    whole: bool,
    /// Since when nobody has read it.
    unread: Option<Instant>,
    /// Those that are not stopped; the last piece of some may wait for the writer.
    running: Vec<Handle>,
    next: u64,
}

// === impl Legs ===

impl<'a> Legs<'a> {
    pub(super) fn new(settings: &'a Settings, supply: &'a Arc<Supply>, demand: &'a Demand, gauges: &'a Gauges) -> Self {
        let most = supply.origin.registry.config().transfer.blob_connections;
        Self {
            settings,
            supply,
            demand,
            gauges,
            most,
            width: Width::new(most),
            whole: false,
            unread: None,
            running: Vec::new(),
            next: 0,
        }
    }

    /// Brings the blob into the file; the first leg is what was begun.
    pub(super) async fn bring(mut self, writer: &BlobWriter, first: Download) -> Result<Ended, Broken> {
        let come = Mutex::new(writer.present());
        let into = Into { writer, come: &come };
        let mut legs = FuturesUnordered::new();
        let part = first.at()..first.end().unwrap_or(UNKNOWN);
        let handle = self.started(Handle::of(self.next, &first, Priority::Waiting));
        legs.push(handle.run(Arc::clone(self.supply), Some(first), into));
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let mut wanted = self.demand.now();
            if !wanted.ever {
                // Whoever it was begun for is about to ask for it.
                wanted.wants.push(part.clone());
            }
            self.decide_on_whole(&wanted, writer.length(), &come);
            let was_idle = self.running.is_empty();
            for part in self.steps(&wanted, &come) {
                // What those that were stopped have in hand waits for the writer. The next one that is done wakes this.
                if legs.len() >= 2 * self.most {
                    break;
                }
                let waits = is_waited_for(&part, &wanted, &come);
                if !waits && !self.running.is_empty() && !self.has_place() {
                    continue;
                }
                // Where nobody reads it counts as ahead for as long as that is so, and who comes waits for it.
                let priority = if waits || wanted.readers == 0 { Priority::Waiting } else { Priority::Ahead };
                if was_idle && self.running.is_empty() {
                    self.supply.patience.renew();
                }
                let length = self.supply.mark().length.unwrap_or(UNKNOWN);
                let handle = self.started(Handle::new(self.next, &part, length, priority));
                legs.push(handle.run(Arc::clone(self.supply), None, into));
            }
            if legs.is_empty() && self.is_whole(&come) {
                return Ok(Ended::Whole);
            }
            tokio::select! {
                Some(ended) = legs.next() => {
                    let id = ended?;
                    self.running.retain(|one| one.id() != id);
                }
                // Where nothing more is brought, nothing else would tell.
                error = writer.failed() => return Err(Broken::Store(error)),
                () = self.demand.changed() => {}
                () = self.supply.refused() => {}
                _ = ticks.tick() => {
                    writer.tick();
                    let total = come.lock().total();
                    self.gauges.tick(total);
                    let left = self.supply.mark().length.map_or(0, |length| length.saturating_sub(total));
                    if self.whole && self.supply.parts() != Parts::Refused {
                        self.width.measure(total, left, self.running.len());
                    }
                    if self.is_abandoned(&self.demand.now(), total, writer) {
                        return Ok(Ended::Unread);
                    }
                }
            }
        }
    }

    /// The handle of a leg that is about to run.
    fn started(&mut self, handle: Handle) -> Handle {
        self.next += 1;
        self.running.push(handle.clone());
        handle
    }

    fn is_whole(&self, come: &Mutex<ByteRanges>) -> bool {
        self.supply.mark().length.is_some_and(|length| come.lock().contains(&(0..length)))
    }

    /// Whether all of it is to come. Once it is, it stays so.
    fn decide_on_whole(&mut self, wanted: &Wanted, length: Option<u64>, come: &Mutex<ByteRanges>) {
        let by_policy = match (self.settings.range_fill, length) {
            (RangeFill::Always, _) | (_, None) => true,
            (RangeFill::Never, _) => false,
            (RangeFill::From(percent), Some(length)) => {
                // What an earlier fill has left was asked for then.
                wanted.asked.max(come.lock().total()) >= length / 100 * u64::from(percent)
            }
        };
        self.whole = self.whole || by_policy || wanted.whole || self.supply.parts() == Parts::Refused;
    }

    /// Stops and shortens legs as planned; the parts for which new ones are to begin.
    fn steps(&mut self, wanted: &Wanted, come: &Mutex<ByteRanges>) -> Vec<Range<u64>> {
        let Some(length) = self.supply.mark().length else { return Vec::new() };
        if self.supply.parts() == Parts::Refused {
            return self.one_whole(length, come);
        }
        let running: Vec<_> = self.running.iter().map(|one| one.running(length)).collect();
        let come = come.lock().clone();
        let steps = plan(&Situation {
            length,
            come: &come,
            running: &running,
            wants: &wanted.wants,
            whole: self.whole,
            width: self.width.get(),
            // One more would wait for a place; but one that nobody waits for can give its own way. Who has brought all has none.
            most: if self.has_place() {
                self.most
            } else {
                running.iter().filter(|one| !one.left.is_empty()).count().clamp(1, self.most)
            },
        });
        let mut parts = Vec::new();
        for step in steps {
            match step {
                Step::Start(part) => parts.push(part),
                Step::Shorten { id, end } => self.with(id, |one| one.shorten(end)),
                Step::Stop(id) => self.stop(id),
            }
        }
        parts
    }

    /// Whether one more request may be made now.
    fn has_place(&self) -> bool {
        self.supply.origin.registry.try_place().is_some()
    }

    fn with(&self, id: u64, act: impl Fn(&Handle)) {
        self.running.iter().filter(|one| one.id() == id).for_each(act);
    }

    /// It brings nothing more from here on, although it may have something left to write.
    fn stop(&mut self, id: u64) {
        self.with(id, Handle::stop);
        self.running.retain(|one| one.id() != id);
    }

    /// Upstream gives no parts: one leg brings it all.
    fn one_whole(&mut self, length: u64, come: &Mutex<ByteRanges>) -> Vec<Range<u64>> {
        let whole = self.running.iter().find(|one| one.is_whole()).map(Handle::id);
        if whole.is_some() || self.running.len() > 1 {
            for one in self.running.iter().filter(|one| Some(one.id()) != whole) {
                one.stop();
            }
            self.running.retain(|one| Some(one.id()) == whole);
        }
        let is_due = self.running.is_empty() && !come.lock().contains(&(0..length));
        is_due.then_some(0..length).into_iter().collect()
    }

    /// Whether nobody has read it for a while, and it is not to be finished.
    fn is_abandoned(&mut self, wanted: &Wanted, total: u64, writer: &BlobWriter) -> bool {
        if wanted.readers > 0 {
            self.unread = None;
            return false;
        }
        let since = *self.unread.get_or_insert_with(Instant::now);
        let patience = if self.whole { UNREAD } else { UNREAD_PARTS };
        if since.elapsed() < patience {
            return false;
        }
        // What cannot be put aside is finished.
        let Some(length) = self.supply.mark().length.filter(|length| *length >= BlobWriter::KEPT_FROM) else {
            self.whole = true;
            return false;
        };
        let far_along = length - total.min(length) <= SMALL || total >= length / 2;
        let finish = match self.settings.abandon {
            Abandon::Finish => true,
            Abandon::Park => false,
            Abandon::Auto => far_along,
        };
        !(finish && self.whole) && self.demand.shut_if_unread(|| writer.ends())
    }
}

/// Whether the next byte that some reader lacks is in this part.
fn is_waited_for(part: &Range<u64>, wanted: &Wanted, come: &Mutex<ByteRanges>) -> bool {
    let come = come.lock();
    wanted.wants.iter().any(|want| part.contains(&come.end_of_run(want.start)))
}
