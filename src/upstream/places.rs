//! How many blobs are fetched from an upstream at once, and who is next: `max_connections`.
//!
//! What a client waits for goes before what nobody waits for. Of the clients, the one that holds the fewest places is next,
//! so that one that asks for a thousand blobs takes no more than its share from the others (ADR 0031). Of what one client
//! waits for, the small goes before the large, so that the many small blobs of images are not held up by the few large ones.
//!
//! Nobody waits for ever. Of what a client waits for, what has waited long goes first; and of clients that wait for such a
//! thing, the one whose last turn was the longest ago gets one place in so many, however many it holds.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::party::Party;

/// Who has waited for so long goes before all others of its client and priority. Well before who wants a head gives up.
const LONG: Duration = Duration::from_secs(10);
/// What is taken for the size of what has not begun: less than what is left of most layers, so that these do not go before
/// it for as long as they come.
const UNKNOWN_SIZE: u64 = 8 << 20;
/// One place in so many goes to what has waited long and would not be next: to what nobody waits for, and to a client whose
/// turn was long ago. Not all: a thousand blobs that are fetched ahead, or for one client, have all waited long, and the
/// others would come after them.
const SHARE: u32 = 4;

/// For whom a place is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Priority {
    /// Somebody waits for the bytes. Where there is nobody any more, it counts as ahead until there is again.
    Waiting,
    /// They are fetched ahead, or to their end although nobody waits any more.
    Ahead,
}

/// Something that is to be fetched, and for whom: what waits for a place with it goes when the best placed of these is next,
/// and moves when one comes or goes.
#[derive(Debug, Clone)]
pub struct Errand {
    places: Arc<Places>,
    number: u64,
    /// For whom it is as long as nobody has joined.
    of: Owner,
}

/// Somebody's part in an errand, which ends when this is dropped.
#[must_use = "it ends when it is dropped"]
#[derive(Debug)]
pub struct Interest {
    errand: Errand,
    party: Party,
}

/// Leave to fetch from an upstream; whoever has it gives it back by dropping it.
#[must_use = "the place is given back when it is dropped"]
pub struct Place {
    places: Arc<Places>,
    number: u64,
}

/// The places of one upstream, or of something else that clients share.
#[derive(Debug)]
pub(crate) struct Places {
    /// Held for a moment; nothing else is locked under it.
    state: Mutex<State>,
}

/// On whose account a place is; none: nobody's.
type Owner = Option<Party>;

#[derive(Debug)]
struct State {
    /// None: any number.
    limit: Option<usize>,
    /// Places that are held: each is on the account of the one for whom it was given.
    held: HashMap<u64, Owner>,
    /// Of everything that happens, to tell what was first.
    number: u64,
    waiters: HashMap<u64, Waiter>,
    /// Those that somebody has joined, or waits with.
    errands: HashMap<u64, Joined>,
    /// Of those who hold a place or wait for one. Few enough to be looked through for each place: a place is a request.
    accounts: BTreeMap<Owner, Account>,
    /// Since the last place that was given to what nobody waits for.
    until_ahead: Countdown,
    /// By priority: since the last place that was given to who had waited the longest for a turn.
    until_turn: ByPriority<Countdown>,
}

/// Whom an errand is for.
#[derive(Debug, Default)]
struct Joined {
    /// How often each has joined.
    parties: BTreeMap<Party, usize>,
    /// Numbers of those who wait with it.
    waiting: BTreeSet<u64>,
}

#[derive(Debug)]
struct Waiter {
    since: Instant,
    size: u64,
    priority: Priority,
    errand: u64,
    of: Owner,
    call: oneshot::Sender<()>,
}

/// What one party has, and waits for.
#[derive(Debug, Default)]
struct Account {
    held: usize,
    /// When it came, or got its last place, or gave one back.
    turn: u64,
    queues: ByPriority<Queue>,
}

#[derive(Debug, Default)]
struct ByPriority<T> {
    waiting: T,
    ahead: T,
}

/// Those who wait for a place with one priority on one account.
#[derive(Debug, Default)]
struct Queue {
    by_age: BTreeSet<u64>,
    /// Size and number.
    by_size: BTreeSet<(u64, u64)>,
}

/// Counts places that went to others than who has waited long, up to the one that does not.
#[derive(Debug, Default)]
struct Countdown(u32);

/// One who waits: dropped before it has its place, it leaves the queue, or gives back the place that was just meant for it.
struct Turn<'a> {
    places: &'a Arc<Places>,
    number: u64,
    has_place: bool,
}

// === impl Places ===

impl Places {
    pub(crate) fn new(limit: Option<usize>) -> Arc<Self> {
        let state = State {
            limit,
            held: HashMap::new(),
            number: 0,
            waiters: HashMap::new(),
            errands: HashMap::new(),
            accounts: BTreeMap::new(),
            until_ahead: Countdown::default(),
            until_turn: ByPriority::default(),
        };
        Arc::new(Self { state: Mutex::new(state) })
    }

    /// From now on so many; those that are held beyond that are kept.
    pub(crate) fn set_limit(&self, limit: Option<usize>) {
        let mut state = self.state.lock();
        state.limit = limit;
        state.admit();
    }

    /// An errand for `of`, or else for those who join it.
    pub(crate) fn errand(self: &Arc<Self>, of: Option<Party>) -> Errand {
        Errand { places: Arc::clone(self), number: self.state.lock().tick(), of }
    }

    /// A place, if one is free and nobody waits for it. It is on nobody's account.
    pub(crate) fn try_place(self: &Arc<Self>) -> Option<Place> {
        let mut state = self.state.lock();
        if !state.has_room() {
            return None;
        }
        let number = state.tick();
        state.give(number, None);
        Some(Place { places: Arc::clone(self), number })
    }
}

// === impl Errand ===

impl Errand {
    /// Waits for a place. `size`: bytes that are to be fetched, if that is known.
    pub async fn place(&self, priority: Priority, size: Option<u64>) -> Place {
        let (call, called) = oneshot::channel();
        let size = size.unwrap_or(UNKNOWN_SIZE);
        let waiter = Waiter { since: Instant::now(), size, priority, errand: self.number, of: self.of, call };
        let number = self.places.state.lock().wait(waiter);
        let mut turn = Turn { places: &self.places, number, has_place: false };
        // It is always called: who waits is dropped from the queue by `turn` alone.
        let _ = called.await;
        turn.has_place = true;
        Place { places: Arc::clone(&self.places), number }
    }

    /// It is for this one too.
    pub fn join(&self, party: Party) -> Interest {
        self.places.state.lock().join(self, party);
        Interest { errand: self.clone(), party }
    }
}

// === impl Interest ===

impl Interest {
    /// Whose it is.
    pub fn party(&self) -> Party {
        self.party
    }
}

impl Drop for Interest {
    fn drop(&mut self) {
        self.errand.places.state.lock().leave(&self.errand, self.party);
    }
}

// === impl State ===

impl State {
    fn tick(&mut self) -> u64 {
        self.number += 1;
        self.number
    }

    /// Where there is room nobody waits.
    fn has_room(&self) -> bool {
        self.limit.is_none_or(|limit| self.held.len() < limit)
    }

    fn wait(&mut self, waiter: Waiter) -> u64 {
        let number = self.tick();
        self.errands.entry(waiter.errand).or_default().waiting.insert(number);
        self.waiters.insert(number, waiter);
        for owner in self.owners(number) {
            self.enqueue(number, owner);
        }
        self.admit();
        number
    }

    fn join(&mut self, errand: &Errand, party: Party) {
        self.tick();
        let joined = self.errands.entry(errand.number).or_default();
        let is_first = joined.parties.is_empty();
        let times = joined.parties.entry(party).or_insert(0);
        *times += 1;
        if *times > 1 {
            return;
        }
        for number in joined.waiting.clone() {
            if is_first {
                self.dequeue(number, errand.of);
            }
            self.enqueue(number, Some(party));
        }
    }

    fn leave(&mut self, errand: &Errand, party: Party) {
        self.tick();
        let Some(joined) = self.errands.get_mut(&errand.number) else { return };
        if let Some(times) = joined.parties.get_mut(&party).filter(|times| **times > 1) {
            *times -= 1;
            return;
        }
        joined.parties.remove(&party);
        let was_last = joined.parties.is_empty();
        for number in joined.waiting.clone() {
            self.dequeue(number, Some(party));
            if was_last {
                self.enqueue(number, errand.of);
            }
        }
        self.forget_errand(errand.number);
    }

    /// Who is not there to wait any more.
    fn remove(&mut self, number: u64) -> Option<Waiter> {
        for owner in self.owners(number) {
            self.dequeue(number, owner);
        }
        let waiter = self.waiters.remove(&number)?;
        if let Some(joined) = self.errands.get_mut(&waiter.errand) {
            joined.waiting.remove(&number);
        }
        self.forget_errand(waiter.errand);
        Some(waiter)
    }

    fn forget_errand(&mut self, errand: u64) {
        if self.errands.get(&errand).is_some_and(|joined| joined.parties.is_empty() && joined.waiting.is_empty()) {
            self.errands.remove(&errand);
        }
    }

    /// On whose accounts it waits.
    fn owners(&self, number: u64) -> Vec<Owner> {
        let Some(waiter) = self.waiters.get(&number) else { return Vec::new() };
        match self.errands.get(&waiter.errand).filter(|joined| !joined.parties.is_empty()) {
            Some(joined) => joined.parties.keys().copied().map(Some).collect(),
            None => vec![waiter.of],
        }
    }

    fn enqueue(&mut self, number: u64, owner: Owner) {
        let Some(waiter) = self.waiters.get(&number) else { return };
        let now = self.number;
        let account = self.accounts.entry(owner).or_insert_with(|| Account { turn: now, ..Account::default() });
        account.queues.of_mut(waiter.priority.on(owner)).insert(number, waiter.size);
    }

    fn dequeue(&mut self, number: u64, owner: Owner) {
        let Some(waiter) = self.waiters.get(&number) else { return };
        if let Some(account) = self.accounts.get_mut(&owner) {
            account.queues.of_mut(waiter.priority.on(owner)).remove(number, waiter.size);
        }
        self.forget_account(owner);
    }

    fn forget_account(&mut self, owner: Owner) {
        if self.accounts.get(&owner).is_some_and(Account::is_idle) {
            self.accounts.remove(&owner);
        }
    }

    fn give(&mut self, number: u64, owner: Owner) {
        self.held.insert(number, owner);
        let now = self.tick();
        let account = self.accounts.entry(owner).or_default();
        account.held += 1;
        account.turn = now;
    }

    fn take_back(&mut self, number: u64) {
        let now = self.tick();
        let Some(owner) = self.held.remove(&number) else { return };
        if let Some(account) = self.accounts.get_mut(&owner) {
            account.held -= 1;
            account.turn = now;
        }
        self.forget_account(owner);
        self.admit();
    }

    /// Calls those who are next, as long as there is room.
    fn admit(&mut self) {
        while self.has_room()
            && let Some((number, owner)) = self.next(Instant::now())
            && let Some(waiter) = self.remove(number)
        {
            self.give(number, owner);
            // Nobody there any more: its turn, which ends now, gives the place back.
            let _ = waiter.call.send(());
        }
    }

    /// Who is next, and for whom.
    fn next(&mut self, now: Instant) -> Option<(u64, Owner)> {
        let is_due = self.until_ahead.is_over()
            && self.accounts.values().any(|account| self.has_waited_long(&account.queues.ahead, now));
        if !is_due && let Some(next) = self.next_of(Priority::Waiting, now) {
            self.until_ahead.passed_over();
            return Some(next);
        }
        let next = self.next_of(Priority::Ahead, now)?;
        self.until_ahead.begin();
        Some(next)
    }

    fn next_of(&mut self, priority: Priority, now: Instant) -> Option<(u64, Owner)> {
        let waiting = || self.accounts.iter().filter(|(_, account)| !account.queues.of(priority).is_empty());
        let long = |(_, account): &(&Owner, &Account)| self.has_waited_long(account.queues.of(priority), now);
        let fewest = waiting().min_by_key(|(_, account)| (account.held, account.turn))?;
        let overdue = waiting().filter(long).min_by_key(|(_, account)| account.turn);
        let countdown = self.until_turn.of(priority);
        let (owner, account) = overdue.filter(|_| countdown.is_over()).unwrap_or(fewest);
        let is_passed_over = overdue.is_some_and(|(overdue, _)| overdue != owner);
        let queue = account.queues.of(priority);
        let first = if self.has_waited_long(queue, now) { queue.oldest() } else { queue.smallest() };
        let next = (first?, *owner);
        let countdown = self.until_turn.of_mut(priority);
        if is_passed_over {
            countdown.passed_over();
        } else {
            countdown.begin();
        }
        Some(next)
    }

    fn has_waited_long(&self, queue: &Queue, now: Instant) -> bool {
        let oldest = queue.oldest().and_then(|number| self.waiters.get(&number));
        oldest.is_some_and(|waiter| now.duration_since(waiter.since) >= LONG)
    }
}

// === impl Priority ===

impl Priority {
    /// What it is on this account.
    fn on(self, owner: Owner) -> Self {
        if owner.is_none() { Self::Ahead } else { self }
    }
}

// === impl ByPriority ===

impl<T> ByPriority<T> {
    const fn of(&self, priority: Priority) -> &T {
        match priority {
            Priority::Waiting => &self.waiting,
            Priority::Ahead => &self.ahead,
        }
    }

    const fn of_mut(&mut self, priority: Priority) -> &mut T {
        match priority {
            Priority::Waiting => &mut self.waiting,
            Priority::Ahead => &mut self.ahead,
        }
    }
}

// === impl Account ===

impl Account {
    fn is_idle(&self) -> bool {
        self.held == 0 && self.queues.waiting.is_empty() && self.queues.ahead.is_empty()
    }
}

// === impl Queue ===

impl Queue {
    fn insert(&mut self, number: u64, size: u64) {
        self.by_age.insert(number);
        self.by_size.insert((size, number));
    }

    fn remove(&mut self, number: u64, size: u64) {
        self.by_age.remove(&number);
        self.by_size.remove(&(size, number));
    }

    fn is_empty(&self) -> bool {
        self.by_age.is_empty()
    }

    fn oldest(&self) -> Option<u64> {
        self.by_age.first().copied()
    }

    fn smallest(&self) -> Option<u64> {
        self.by_size.first().map(|(_, number)| *number)
    }
}

// === impl Countdown ===

impl Countdown {
    fn begin(&mut self) {
        self.0 = 0;
    }

    fn passed_over(&mut self) {
        self.0 = self.0.saturating_add(1);
    }

    fn is_over(&self) -> bool {
        self.0 >= SHARE - 1
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if self.has_place {
            return;
        }
        let mut state = self.places.state.lock();
        if state.remove(self.number).is_none() {
            state.take_back(self.number);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.state.lock().take_back(self.number);
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Place")
    }
}
