//! Fills: one blob, its readers, and the requests that bring it, over `legs`, `leg`, `download`, `supply`, `plan`, `first`,
//! `demand`, `progress` and `view` as they are.
//!
//! However it goes: who reads gets all that it wants, of what is in the file and nothing else; no byte is written twice;
//! two downloads never run beside each other; and a task that waits for what nobody will tell it is found as a deadlock,
//! since no clock ticks as long as somebody reads.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use parking_lot::Mutex;
use shuttle::rand::{Rng as _, thread_rng};
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use super::super::bypass::Rest;
use super::super::demand::Demand;
use super::super::download::Download;
use super::super::endpoints::Endpoints;
use super::super::first::{begins_with, missing_first};
use super::super::leg::Broken;
use super::super::legs::{Ended, Legs};
use super::super::plan::BLOCK;
use super::super::progress::{Head, Reporter, Watcher, channel};
use super::super::report::Gauges;
use super::super::supply::{Mark, Origin, Part, Supply};
use super::super::view::{Readable, View};
use super::super::{ANSWER_WITHIN, CacheError, Settings, Target};
use super::cast::{Answers, Play, Reader};
use super::progress::NO_FILE;
use super::within;
use crate::config::RangeFill;
use crate::metrics::Metrics;
use crate::oci::{Algorithm, Digest};
use crate::party::Party;
use crate::steps;
use crate::store::{BlobWriter, ByteRanges, Disk};
use crate::upstream::{Errand, FRAME, Interest, Priority, Registry, Right, Script};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
/// Ticks until a fill is put aside that nobody reads, and some more.
const ENOUGH_TICKS: usize = 100;

thread_local! {
    /// Making them is slow, and nothing here looks at them.
    static METRICS: Metrics = Metrics::new().expect("metrics");
}

/// One blob and all that is around it.
struct Stage {
    play: Play,
    settings: Settings,
    registry: Arc<Registry>,
    running: Mutex<Option<Fill>>,
    /// What the fills write into, one after the other.
    disk: Arc<Disk>,
    is_published: AtomicBool,
    /// How many have begun.
    fills: AtomicUsize,
    /// Whether a fill has the file, and if so whether it has said that it ends.
    taken: Mutex<Option<Arc<AtomicBool>>>,
    given_back: Notify,
    tasks: TaskTracker,
}

/// A running fill, as a reader holds it.
#[derive(Clone)]
struct Fill {
    watcher: Watcher,
    demand: Arc<Demand>,
    errand: Errand,
}

/// What a reader was given.
enum Given {
    All,
    /// It wanted no more.
    Enough,
    /// The store took no more: the rest comes past it.
    Rest,
    /// It was broken off there.
    Broken(u64),
}

/// The file, for as long as one fill has it.
struct Taken {
    stage: Arc<Stage>,
    ends: Arc<AtomicBool>,
}

// === impl Play ===

impl Play {
    /// Plays it once, under the schedule that the explorer draws.
    pub fn run(self) {
        tokio::time::begin();
        shuttle::future::block_on(async move {
            let stage = Stage::new(self);
            stage.begin_rivals();
            let readers: Vec<_> = stage.play.readers.iter().map(|reader| stage.begin(reader.clone())).collect();
            let (parts, wholes): (Vec<_>, Vec<_>) =
                readers.into_iter().zip(&stage.play.readers).partition(|(_, reader)| reader.part.is_some());
            for (part, _) in parts {
                part.await.expect("a reader");
            }
            stage.registry.release();
            for (whole, _) in wholes {
                whole.await.expect("a reader");
            }
            // What is to be finished is finished without a clock; what is to be put aside is by it.
            stage.turn_clock();
            stage.tasks.wait().await;
            stage.judge();
        });
    }
}

// === impl Stage ===

impl Stage {
    fn new(mut play: Play) -> Arc<Self> {
        // What never becomes whole cannot be waited for: the configuration refuses it.
        play.waits &= play.range_fill == RangeFill::Always;
        let faulty = |chance: f64| if play.faults > 0 { chance } else { 0.0 };
        let script = Script {
            length: play.length,
            breaks: faulty(0.2),
            fails: faulty(0.2),
            short: faulty(0.3),
            faults: play.faults,
            parts: play.parts,
            stalls_at: play.stalls_at,
            away: play.away,
        };
        Arc::new(Self {
            settings: Settings { range_fill: play.range_fill, abandon: play.abandon },
            registry: Registry::new(script, play.blob_connections, play.max_connections),
            running: Mutex::new(None),
            disk: Disk::new(play.length, play.room, play.parts == Answers::Parts),
            is_published: AtomicBool::new(false),
            fills: AtomicUsize::new(0),
            taken: Mutex::new(None),
            given_back: Notify::new(),
            tasks: TaskTracker::new(),
            play,
        })
    }

    /// Who else wants something of upstream.
    fn begin_rivals(self: &Arc<Self>) {
        for _ in 0..self.play.rivals {
            let stage = Arc::clone(self);
            self.tasks.spawn(async move {
                let errand = stage.registry.errand(Some(party()));
                for _ in 0..3 {
                    steps(thread_rng().gen_range(0..60)).await;
                    let place = errand.place(Priority::Waiting, None).await;
                    steps(thread_rng().gen_range(0..20)).await;
                    drop(place);
                }
            });
        }
    }

    /// A reader has come, or one has gone: the clock ticks where nobody reads.
    fn turn_clock(&self) {
        let demand = self.running.lock().as_ref().map(|fill| Arc::clone(&fill.demand));
        let is_unread = demand.is_none_or(|demand| demand.now().readers == 0);
        let ticks = if is_unread && !self.play.finishes() { ENOUGH_TICKS } else { 0 };
        tokio::time::set_ticks(ticks);
    }

    // --- a reader, as `Cache::blob` and the body of its answer are one ---

    fn begin(self: &Arc<Self>, reader: Reader) -> tokio::task::JoinHandle<()> {
        let stage = Arc::clone(self);
        tokio::spawn(async move {
            steps(reader.comes_after).await;
            if within(reader.leaves_within, stage.read(&reader)).await.is_none() {
                stage.play.met.left.one();
            }
            stage.turn_clock();
        })
    }

    async fn read(self: &Arc<Self>, reader: &Reader) {
        let Play { length, range_fill, waits, .. } = self.play;
        let (mut from, end) = reader.part.clone().map_or((0, None), |part| (part.start, Some(part.end)));
        // One that comes when a fill ends looks again; no reader has to do so for ever.
        for _ in 0..100 {
            if self.is_published.load(Ordering::SeqCst) {
                return;
            }
            let whole = from == 0 && end.is_none_or(|end| end == length);
            let wanted = if whole { Part::Whole } else { Part::From(from, end.filter(|end| *end < length)) };
            let (fill, _interest) = self.join(begins_with(wanted, range_fill, waits), party());
            let mut watcher = fill.watcher.clone();
            steps(reader.proves).await;
            let view = match watcher.head().await {
                Ok(_) => View::of_fill(&fill.demand, waits),
                Err(CacheError::Parked(_) | CacheError::Arrived(_)) => None,
                Err(_) if self.play.away.is_some() => None,
                Err(error) => panic!("{reader:?}: {error}"),
            };
            drop(fill);
            let Some(mut view) = view else {
                self.play.met.looked_again.one();
                steps(1).await;
                continue;
            };
            self.turn_clock();
            view.narrow((!whole).then_some(&(from..end.unwrap_or(length))), Some(length));
            match self.follow(reader, (from, end), watcher, view).await {
                Given::All | Given::Enough => return,
                Given::Rest => {
                    assert!(self.play.room < u64::MAX, "{reader:?} has to go past the store");
                    return;
                }
                // It goes on from there, as clients do.
                Given::Broken(at) => from = at,
            }
        }
        panic!("{reader:?} has looked again a hundred times")
    }

    async fn follow(
        &self,
        reader: &Reader,
        (from, end): (u64, Option<u64>),
        mut watcher: Watcher,
        view: View,
    ) -> Given {
        let mut at = from;
        let mut stall = reader.stalls;
        loop {
            if reader.leaves_after.is_some_and(|bytes| at - from >= bytes) {
                self.play.met.left.one();
                return Given::Enough;
            }
            match view.readable(&mut watcher, Some(self.play.length), (at, end)).await {
                Ok(Readable::To(to)) if to <= at => {
                    assert_eq!(at, end.unwrap_or(self.play.length), "{reader:?} ends early");
                    return Given::All;
                }
                Ok(Readable::To(to)) => {
                    let to = at + (to - at).min(thread_rng().gen_range(16 * KIB..4 * MIB));
                    assert!(self.disk.has(&(at..to)), "{reader:?} reads {at}..{to} before it is there");
                    at = to;
                    steps(1 + stall.take_if(|(bytes, _)| at - from >= *bytes).map_or(0, |(_, steps)| steps)).await;
                }
                Ok(Readable::Rest(rest)) => {
                    assert!(at >= rest.at(), "what follows {} was to begin at {at}", rest.at());
                    return Given::Rest;
                }
                // A part that waits for the verdict gets none.
                Err(CacheError::NoSpace) if self.play.room < u64::MAX && self.play.waits && end.is_some() => {
                    return Given::Rest;
                }
                Err(_) if self.play.away.is_some() => return Given::Broken(at),
                Err(error) => panic!("{reader:?} at {at}: {error}"),
            }
        }
    }

    // --- a fill, as `Cache::fill` and `FillTask` are one ---

    fn join(self: &Arc<Self>, first: Part, party: Party) -> (Fill, Interest) {
        let mut running = self.running.lock();
        if let Some(fill) = running.as_ref().filter(|fill| !fill.watcher.has_failed() && !fill.demand.is_shut()) {
            return (fill.clone(), fill.errand.join(party));
        }
        let (reporter, watcher) = channel();
        let fill = Fill { watcher, demand: Arc::default(), errand: self.registry.errand(None) };
        let interest = fill.errand.join(party);
        *running = Some(fill.clone());
        drop(running);
        let (stage, demand, errand) = (Arc::clone(self), Arc::clone(&fill.demand), fill.errand.clone());
        self.tasks.spawn(async move {
            if let Err(error) = stage.fill(&reporter, (&demand, errand), first).await {
                reporter.failed(error);
            }
            let mut running = stage.running.lock();
            if running.as_ref().is_some_and(|fill| Arc::ptr_eq(&fill.demand, &demand)) {
                *running = None;
            }
        });
        (fill, interest)
    }

    async fn fill(
        self: &Arc<Self>,
        reporter: &Reporter,
        (demand, errand): (&Arc<Demand>, Errand),
        first: Part,
    ) -> Result<(), CacheError> {
        if self.is_published.load(Ordering::SeqCst) {
            return Err(CacheError::Arrived(Box::new(digest())));
        }
        let taken = self.take_up().await;
        let (present, met) = (self.disk.present(), &self.play.met);
        self.fills.fetch_add(1, Ordering::SeqCst);
        let is_left = present.total() > 0;
        let supply = self.supply(errand);
        let first = if is_left { missing_first(first, &present, self.play.length) } else { first };
        let download = Download::begin(Arc::clone(&supply), first, Instant::now() + ANSWER_WITHIN).await?;
        let mut writer = BlobWriter::new(&self.disk, Arc::clone(&taken.ends));
        if is_left {
            met.taken_up.one();
        }
        reporter.present(writer.present());
        writer.follow(reporter.growth(&Arc::default()));
        reporter.head(Head { file: Arc::clone(&NO_FILE), length: supply.mark().length });
        let gauges = Gauges;
        let ended = Legs::new(&self.settings, &supply, demand, &gauges).bring(&writer, download).await;
        let verified = match ended {
            Ok(Ended::Whole) => writer.verify().await.map_err(Broken::Store),
            Ok(Ended::Unread) => {
                met.parked.one();
                writer.park().await;
                return Err(CacheError::Parked(Box::new(digest())));
            }
            Err(broken) => Err(broken),
        };
        match verified {
            Ok(bytes) => {
                reporter.verified(bytes);
                steps(thread_rng().gen_range(0..10)).await;
                self.is_published.store(true, Ordering::SeqCst);
                Ok(())
            }
            Err(Broken::Upstream(error)) => {
                met.failed.one();
                writer.ends();
                demand.shut();
                writer.park().await;
                Err(error)
            }
            Err(Broken::Store(_)) => {
                met.cut.one();
                reporter.cut(Rest(self.disk.present().end_of_run(0)));
                Ok(())
            }
        }
    }

    fn supply(&self, errand: Errand) -> Arc<Supply> {
        let target = Target {
            upstream: self.registry.name().clone(),
            repo: "app".parse().expect("a name"),
            right: Right::Anonymous,
        };
        let metrics = METRICS.with(Metrics::clone);
        let origin = Origin { registry: Arc::clone(&self.registry), target, digest: digest(), errand, metrics };
        Supply::new(origin, Endpoints::alone(&self.registry), Mark::default(), None)
    }

    /// The file, with what an earlier fill has left. One that is about to end is waited for; one that goes on must not be met.
    async fn take_up(self: &Arc<Self>) -> Taken {
        loop {
            let given_back = self.given_back.notified();
            {
                let mut taken = self.taken.lock();
                match &*taken {
                    None => {
                        let ends = Arc::new(AtomicBool::new(false));
                        *taken = Some(Arc::clone(&ends));
                        return Taken { stage: Arc::clone(self), ends };
                    }
                    Some(ends) => assert!(ends.load(Ordering::SeqCst), "a second download of what is being downloaded"),
                }
            }
            given_back.await;
        }
    }

    /// What holds in the end.
    fn judge(&self) {
        let Play { length, parts, room, faults, away, .. } = self.play;
        let (present, sent) = (self.disk.present(), self.registry.sent());
        if sent.peak > 1 {
            self.play.met.side_by_side.one();
        }
        assert_eq!(sent.open, 0, "a body is left open");
        if room < u64::MAX {
            return;
        }
        for reader in self.play.readers.iter().filter(|reader| !reader.leaves()) {
            let wanted = reader.part.clone().unwrap_or(0..length);
            assert!(present.contains(&wanted), "{wanted:?} was read, and is not there");
        }
        if self.play.finishes() && sent.asked > 0 {
            assert_eq!(present.total(), length, "a blob that was to be finished");
        }
        if parts == Answers::Whole {
            // One request may have been cut short, and ended, before it turned out. Of those that were on their way then, one
            // brings it all, and the others next to nothing.
            let most = 2 * length + 3 * FRAME * sent.asked as u64;
            assert!(sent.bytes <= most, "{} bytes of {length} were sent, to {} questions", sent.bytes, sent.asked);
        }
        if parts != Answers::Parts {
            return;
        }
        let most = self.play.max_connections.unwrap_or(usize::MAX).min(self.play.blob_connections);
        assert!(sent.peak <= most, "{} requests at once", sent.peak);
        if let Some(most) = self.play.most_asked {
            let fills = self.fills.load(Ordering::SeqCst);
            assert!(sent.asked <= most * fills, "{} questions of {fills} fills", sent.asked);
        }
        if faults == 0 && away.is_none() {
            // Of each question at most one piece was thrown away: a request was cut short where it was.
            let most = present.total() + FRAME * sent.asked as u64;
            assert!(sent.bytes <= most, "{} bytes of {} came in vain", sent.bytes - present.total(), sent.bytes);
            self.judge_what_came(present);
        }
    }

    /// What nobody wanted was not fetched.
    fn judge_what_came(&self, mut present: ByteRanges) {
        let Play { length, range_fill, ref readers, .. } = self.play;
        if range_fill != RangeFill::Never || readers.iter().any(|reader| reader.part.is_none()) {
            return;
        }
        for part in readers.iter().filter_map(|reader| reader.part.as_ref()) {
            present.remove(&(part.start - part.start % BLOCK..part.end.next_multiple_of(BLOCK).min(length)));
        }
        // Who goes on asks for a block although all is there, to know whether it may be given out.
        let fills = self.fills.load(Ordering::SeqCst) as u64;
        assert!(present.total() <= fills * BLOCK, "{present:?} was fetched, and nobody wanted it");
    }
}

// === impl Taken ===

impl Drop for Taken {
    fn drop(&mut self) {
        *self.stage.taken.lock() = None;
        self.stage.given_back.notify_waiters();
    }
}

/// One of two clients.
fn party() -> Party {
    Party::at([192, 0, 2, thread_rng().gen_range(1..=2)].into())
}

fn digest() -> Digest {
    Digest::of(Algorithm::Sha256, b"it is not looked at")
}
