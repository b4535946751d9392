//! A gate before every call to the file system and every lock that is held over such calls: one thread at a time goes
//! on, and which one is drawn from a seed. Threads of no actor pass.

use std::cell::RefCell;
use std::sync::Arc;

use parking_lot::{Condvar, Mutex};

thread_local! {
    static HERE: RefCell<Option<(Arc<Gate>, usize)>> = const { RefCell::new(None) };
}

/// How the next actor is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::store) enum Policy {
    /// Any that can go on, at each step.
    Random,
    /// The one of the highest priority, which it loses at a few drawn steps (probabilistic concurrency testing).
    Priorities,
}

/// Where an actor is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    /// Between two steps, or not begun.
    Running,
    /// At the gate.
    Waiting,
    /// Somebody has the lock that it wants; it looks again when another has done something.
    Blocked,
    /// It has ended.
    Done,
}

/// The gate of one schedule.
#[derive(Debug)]
pub(in crate::store) struct Gate {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    rng: fastrand::Rng,
    policy: Policy,
    actors: Vec<At>,
    priorities: Vec<u64>,
    /// Steps at which whoever is first becomes last.
    changes: Vec<u64>,
    /// Who may go on.
    turn: Option<usize>,
    steps: u64,
    /// Who went on at each step, to tell schedules apart.
    trace: u64,
    /// Everybody waits for a lock.
    deadlock: bool,
}

// === impl Gate ===

impl Gate {
    pub(in crate::store) fn new(actors: usize, policy: Policy, seed: u64) -> Arc<Self> {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut priorities: Vec<u64> = (1..=actors as u64).map(|n| n << 32).collect();
        rng.shuffle(&mut priorities);
        let changes = (0..3).map(|_| rng.u64(1..120)).collect();
        let state = State {
            rng,
            policy,
            actors: vec![At::Running; actors],
            priorities,
            changes,
            turn: None,
            steps: 0,
            trace: 0,
            deadlock: false,
        };
        Arc::new(Self { state: Mutex::new(state), changed: Condvar::new() })
    }

    /// This thread works for an actor from now on.
    pub(in crate::store) fn enter(self: &Arc<Self>, actor: usize) {
        HERE.set(Some((self.clone(), actor)));
    }

    /// Waits for the actor's turn.
    pub(in crate::store) fn step(&self, actor: usize) {
        self.arrive(actor, At::Waiting);
    }

    /// The actor has nothing more to do.
    pub(in crate::store) fn done(&self, actor: usize) {
        let mut state = self.state.lock();
        state.unblock();
        state.actors[actor] = At::Done;
        state.choose();
        self.changed.notify_all();
    }

    /// How many steps were made, and a number for the schedule.
    pub(in crate::store) fn trace(&self) -> (u64, u64) {
        let state = self.state.lock();
        (state.steps, state.trace)
    }

    fn arrive(&self, actor: usize, at: At) {
        let mut state = self.state.lock();
        if at == At::Waiting {
            state.unblock();
        }
        state.actors[actor] = at;
        state.choose();
        self.changed.notify_all();
        while state.turn != Some(actor) {
            assert!(!state.deadlock, "every actor waits for a lock: {:?}", state.actors);
            self.changed.wait(&mut state);
        }
        state.turn = None;
        state.actors[actor] = At::Running;
    }
}

// === impl State ===

impl State {
    /// Somebody has done something, and may have let go of what others wait for.
    fn unblock(&mut self) {
        self.actors.iter_mut().filter(|at| **at == At::Blocked).for_each(|at| *at = At::Waiting);
    }

    /// Gives somebody the turn, once all have arrived.
    fn choose(&mut self) {
        if self.turn.is_some() || self.actors.contains(&At::Running) {
            return;
        }
        let ready: Vec<usize> = (0..self.actors.len()).filter(|n| self.actors[*n] == At::Waiting).collect();
        if ready.is_empty() {
            self.deadlock = self.actors.contains(&At::Blocked);
            return;
        }
        self.steps += 1;
        let first = |priorities: &[u64]| ready.iter().copied().max_by_key(|n| priorities[*n]).unwrap();
        if self.changes.contains(&self.steps) {
            let last = first(&self.priorities);
            self.priorities[last] = self.priorities.iter().min().unwrap() - 1;
        }
        let next = match self.policy {
            Policy::Random => ready[self.rng.usize(..ready.len())],
            Policy::Priorities => first(&self.priorities),
        };
        self.trace = self.trace.wrapping_mul(0x0100_0000_01b3) ^ (next as u64 + 1);
        self.turn = Some(next);
    }
}

/// Whether this thread works for an actor.
pub(in crate::store) fn is_here() -> bool {
    HERE.with_borrow(Option::is_some)
}

/// This thread works for no actor from now on.
pub(in crate::store) fn leave() {
    HERE.set(None);
}

/// A step of this thread's actor.
pub(in crate::store) fn step() {
    let here = HERE.with_borrow(Clone::clone);
    if let Some((gate, actor)) = here {
        gate.step(actor);
    }
}

/// Waits until a lock is `free`. Only the actor whose turn it is runs, so it is still free when this returns.
pub(in crate::store) fn wait_for(free: impl Fn() -> bool) {
    let here = HERE.with_borrow(Clone::clone);
    let Some((gate, actor)) = here else { return };
    gate.step(actor);
    while !free() {
        gate.arrive(actor, At::Blocked);
    }
}
