//! Flights: who asks the same while it is asked shares the answer, and nobody waits for what will not come.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::FutureExt as _;
use parking_lot::Mutex;
use shuttle::rand::{Rng as _, thread_rng};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::super::flight::{Flight, Flights, Role};
use super::{Met, within};
use crate::steps;

/// What becomes of the tasks of the flights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// They end.
    Landed,
    /// All are stopped at some moment.
    Stopped,
    /// Those of [`DOUBTED`] in the air are doubted at some moment: who asks then gets an answer that is asked for anew.
    Doubted,
}

/// The questions. One of them may be doubted.
const QUESTIONS: [u8; 2] = [DOUBTED, 2];
const DOUBTED: u8 = 1;

struct Stage {
    ending: Ending,
    flights: Flights<u8, usize>,
    tasks: TaskTracker,
    stop: CancellationToken,
    led: Mutex<Vec<Led>>,
    /// What is being asked, with what was known to who began it.
    asking: Mutex<HashSet<(u8, usize)>>,
    /// What is the answer now: it changes before it is doubted.
    truth: AtomicUsize,
    /// What is at least the answer for whoever comes now.
    known: AtomicUsize,
    /// Somebody has come to what another one had begun.
    met: Arc<Met>,
}

/// A flight that somebody has begun.
struct Led {
    question: u8,
    /// What was known when its leader came.
    since: usize,
    flight: Flight<usize>,
}

/// Something is being asked, until it is answered or stopped.
struct Asks {
    stage: Arc<Stage>,
    question: u8,
    since: usize,
}

impl Drop for Asks {
    fn drop(&mut self) {
        self.stage.asking.lock().remove(&(self.question, self.since));
    }
}

impl Stage {
    /// Asks, and has what it was told held against what was so when it came.
    async fn ask(self: &Arc<Self>, question: u8) -> Role {
        let since = self.known.load(Ordering::SeqCst);
        let before = self.led.lock().len();
        let (flight, role) = self.join(question, since);
        if role == Role::Leader {
            self.lead(before, Led { question, since, flight: flight.clone() });
        } else {
            self.met.one();
        }
        match flight.result().await {
            Some(answer) => assert!(question != DOUBTED || answer >= since, "an answer from before it was doubted"),
            None => assert_eq!(self.ending, Ending::Stopped, "a flight that nobody stopped has no answer"),
        }
        role
    }

    fn join(self: &Arc<Self>, question: u8, since: usize) -> (Flight<usize>, Role) {
        let stage = Arc::clone(self);
        self.flights.join(&question, &self.tasks, &self.stop, || async move {
            // What is so when it is asked, not when the answer is there.
            let asked = stage.truth.load(Ordering::SeqCst);
            let is_first = stage.asking.lock().insert((question, since));
            // One that began before the doubt may have been let go, and another one begun, before the doubt was known.
            let may_be_doubted = stage.ending == Ending::Doubted && question == DOUBTED && since == 0;
            assert!(is_first || may_be_doubted, "the same is asked twice at a time");
            let _asks = Asks { stage: Arc::clone(&stage), question, since };
            steps(thread_rng().gen_range(0..20)).await;
            asked
        })
    }

    /// Who leads has found none in the table: all that were there before it came, and that nobody has doubted, have their
    /// answers.
    fn lead(&self, before: usize, mine: Led) {
        let mut led = self.led.lock();
        for earlier in led.iter().take(before).filter(|earlier| earlier.question == mine.question) {
            // One that began before the doubt, and one that came after it without knowing, are not told apart.
            let may_be_doubted = self.ending == Ending::Doubted && mine.question == DOUBTED && earlier.since == 0;
            let is_answered = earlier.flight.clone().result().now_or_never().is_some();
            assert!(may_be_doubted || is_answered, "the same is asked again before there is an answer");
        }
        led.push(mine);
    }
}

/// Six askers, each of them three times; some leave. What ends it comes in the middle.
pub fn play(ending: Ending, met: &Arc<Met>) {
    tokio::time::begin();
    let met = Arc::clone(met);
    shuttle::future::block_on(async move {
        let stage = Arc::new(Stage {
            ending,
            flights: Flights::new(),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
            led: Mutex::default(),
            asking: Mutex::default(),
            truth: AtomicUsize::new(0),
            known: AtomicUsize::new(0),
            met,
        });
        let mut askers = Vec::new();
        for asker in 0..6 {
            let stage = Arc::clone(&stage);
            askers.push(tokio::spawn(async move {
                for _ in 0..3 {
                    let question = QUESTIONS[thread_rng().gen_range(0..QUESTIONS.len())];
                    let leaves_within = (asker % 2 == 0).then(|| thread_rng().gen_range(0..15));
                    within(leaves_within, stage.ask(question)).await;
                    steps(thread_rng().gen_range(0..10)).await;
                }
            }));
        }
        steps(thread_rng().gen_range(0..60)).await;
        match ending {
            Ending::Landed => {}
            Ending::Stopped => stage.stop.cancel(),
            Ending::Doubted => {
                stage.truth.store(1, Ordering::SeqCst);
                stage.flights.detach(|question| *question == DOUBTED);
                stage.known.store(1, Ordering::SeqCst);
            }
        }
        for asker in askers {
            asker.await.expect("an asker");
        }
        stage.tasks.wait().await;
        // Nothing is left in the table: who comes then leads.
        for question in QUESTIONS {
            assert_eq!(stage.ask(question).await, Role::Leader);
        }
        stage.tasks.wait().await;
    });
}
