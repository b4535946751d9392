//! Who waits for room, first come, first served: what goes for them, and who gets what is freed, is decided under the one
//! lock of the books.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use tokio::sync::oneshot;

use super::{Books, Reservation, State};
use crate::oci::Digest;
use crate::store::fs::Space;
use crate::store::order::{Claim, Short};

/// Blobs that are chosen to go at a time: what is looked at in between is not kept waiting for long.
pub(in crate::store) const CHUNK: usize = 256;

/// What somebody waits for.
#[derive(Debug)]
pub(in crate::store) enum Want {
    /// A promise of so many bytes to a fill of this digest (none: it is not known yet).
    Promise { digest: Option<Digest>, bytes: u64 },
    /// That so many bytes go, whatever the books say of room: the file system has none.
    Freed { bytes: u64 },
}

/// What a waiter is told.
#[derive(Debug)]
pub(in crate::store) enum Answer {
    /// The bytes are promised.
    Promised(Reservation),
    /// So many bytes went.
    Freed,
    /// All that may go would not be enough.
    Nothing,
    /// The store is stopping.
    Stopped,
}

/// A place in the queue; dropping it leaves the queue.
#[derive(Debug)]
pub(in crate::store) struct Ticket {
    pub(in crate::store) answer: oneshot::Receiver<Answer>,
    books: Arc<Books>,
    number: u64,
}

/// What is to be done next.
#[derive(Debug)]
pub(in crate::store) enum Round {
    /// What fills have left is to be removed: so many bytes of it, if there is as much.
    Forget(u64),
    /// These are to be removed, or released.
    Remove(Vec<Claim>),
    /// Nothing; whoever evicts has ended with this answer.
    Done,
}

#[derive(Debug, Default)]
pub(super) struct Queue {
    waiting: VecDeque<Waiter>,
    next: u64,
    /// Somebody goes through the rounds.
    evicting: bool,
    /// Blobs that could not be removed, and are not chosen for now.
    pub(super) stuck: HashSet<Short>,
}

#[derive(Debug)]
struct Waiter {
    number: u64,
    want: Want,
    /// None: nobody listens, it only has to be done.
    answer: Option<oneshot::Sender<Answer>>,
}

// === impl Queue ===

impl Queue {
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    fn push(&mut self, want: Want, answer: Option<oneshot::Sender<Answer>>) -> u64 {
        let number = self.next;
        self.next += 1;
        self.waiting.push_back(Waiter { number, want, answer });
        number
    }
}

// === impl Books ===

impl Books {
    /// Waits in the queue. Somebody must evict from here on ([`Books::begins_evicting`]).
    pub(in crate::store) fn wait(self: &Arc<Self>, want: Want) -> Ticket {
        let (sender, answer) = oneshot::channel();
        let number = self.state.lock().queue.push(want, Some(sender));
        Ticket { answer, books: self.clone(), number }
    }

    /// What must go for the floor of the file system is put into the queue, if all that may go is enough for it.
    pub(in crate::store) fn want_floor(&self, space: Space) {
        let mut state = self.state.lock();
        let bytes = (state.unallocated + self.floor).saturating_sub(space.free);
        let waits = state.queue.waiting.iter().any(|waiter| waiter.answer.is_none());
        if bytes > 0 && bytes <= state.removable() && !waits {
            state.queue.push(Want::Freed { bytes }, None);
        }
    }

    /// Whether the caller is to go through the rounds until it is told [`Round::Done`]: there is something to do, and
    /// nobody else is at it.
    pub(in crate::store) fn begins_evicting(&self) -> bool {
        let mut state = self.state.lock();
        let begins = !state.queue.evicting && (!state.queue.is_empty() || state.used() > self.capacity());
        state.queue.evicting |= begins;
        begins
    }

    /// Gives what room there is to those who wait, and chooses what goes for the others, a chunk of it.
    pub(in crate::store) fn round(self: &Arc<Self>, space: Space, may_evict: bool) -> Round {
        // Dropping a promise that nobody takes any more takes the lock.
        let mut untaken = Vec::new();
        let (mut state, now) = self.at();
        let round = self.round_in(&mut state, now, space, may_evict, &mut untaken);
        if matches!(round, Round::Done) {
            state.queue.evicting = false;
        }
        self.show(&state);
        drop(state);
        drop(untaken);
        round
    }

    fn round_in(
        self: &Arc<Self>,
        state: &mut State,
        now: u32,
        space: Space,
        may_evict: bool,
        untaken: &mut Vec<Answer>,
    ) -> Round {
        self.grant(state, space, untaken);
        if !may_evict {
            return Round::Done;
        }
        let removable = state.removable();
        while let Some(first) = state.queue.waiting.front() {
            let missing = match first.want {
                Want::Promise { bytes, .. } => self.lack(state, bytes, space),
                Want::Freed { bytes } => bytes,
            };
            if missing <= removable {
                break;
            }
            // Nothing goes in vain.
            let refused = state.queue.waiting.pop_front();
            untaken.extend(refused.and_then(|waiter| waiter.tell(Answer::Nothing)));
            self.grant(state, space, untaken);
        }
        let missing = self.wanted(state, space, removable);
        if missing == 0 {
            return Round::Done;
        }
        if state.parked > 0 {
            return Round::Forget(missing);
        }
        let State { order, busy, queue, .. } = state;
        let claims = order.claim(now, missing, CHUNK, |short| busy.contains_key(short) || queue.stuck.contains(short));
        if claims.is_empty() {
            for waiter in std::mem::take(&mut state.queue.waiting) {
                untaken.extend(waiter.tell(Answer::Nothing));
            }
            return Round::Done;
        }
        Round::Remove(claims)
    }

    /// Gives room to those who wait, in their order.
    fn grant(self: &Arc<Self>, state: &mut State, space: Space, untaken: &mut Vec<Answer>) {
        while let Some(first) = state.queue.waiting.front() {
            let is_gone = first.answer.as_ref().is_some_and(oneshot::Sender::is_closed);
            let fits = match first.want {
                Want::Promise { bytes, .. } => self.lack(state, bytes, space) == 0,
                Want::Freed { bytes } => bytes == 0,
            };
            if !fits && !is_gone {
                return;
            }
            let Some(waiter) = state.queue.waiting.pop_front() else { return };
            if is_gone {
                continue;
            }
            let answer = match waiter.want {
                Want::Promise { digest, bytes } => Answer::Promised(self.promise(state, digest.as_ref(), bytes)),
                Want::Freed { .. } => Answer::Freed,
            };
            untaken.extend(waiter.tell(answer));
        }
    }

    /// How many bytes must go for those who wait, as far as that can be done for one after the other, and for the
    /// capacity.
    fn wanted(&self, state: &State, space: Space, removable: u64) -> u64 {
        let mut wanted = state.used().saturating_sub(self.capacity()).min(removable);
        let (mut promised, mut freed) = (None::<u64>, 0_u64);
        for waiter in &state.queue.waiting {
            match waiter.want {
                Want::Promise { bytes, .. } => promised = Some(promised.unwrap_or(0).saturating_add(bytes)),
                Want::Freed { bytes } => freed = freed.saturating_add(bytes),
            }
            let missing = promised.map_or(0, |bytes| self.lack(state, bytes, space)).saturating_add(freed);
            if missing > removable {
                break;
            }
            wanted = wanted.max(missing);
        }
        wanted
    }

    /// So many bytes went: that counts for those who wait for it, in their order.
    pub(in crate::store) fn freed(&self, mut freed: u64) {
        for waiter in &mut self.state.lock().queue.waiting {
            if let Want::Freed { bytes } = &mut waiter.want {
                let part = freed.min(*bytes);
                *bytes -= part;
                freed -= part;
            }
        }
    }

    /// Somebody else is to go through the rounds from here on.
    pub(in crate::store) fn pause_evicting(&self) {
        self.state.lock().queue.evicting = false;
    }

    /// Whoever went through the rounds ends early: all who wait are told so.
    pub(in crate::store) fn end_evicting(&self, stopped: bool) {
        let mut state = self.state.lock();
        state.queue.evicting = false;
        let waiting = std::mem::take(&mut state.queue.waiting);
        drop(state);
        for waiter in waiting {
            drop(waiter.tell(if stopped { Answer::Stopped } else { Answer::Nothing }));
        }
    }

    /// At most `limit` blobs that nobody has used since `since`, and that nobody reads or writes: they are to be removed,
    /// or released.
    pub(in crate::store) fn claim_unused(&self, since: u32, limit: usize) -> Vec<Claim> {
        let State { order, busy, queue, .. } = &mut *self.state.lock();
        order.claim_unused(since, limit, |short| busy.contains_key(short) || queue.stuck.contains(short))
    }

    /// Whether what was claimed may still go: nobody has used, read, written or pinned it since.
    pub(in crate::store) fn may_go(&self, claim: &Claim) -> bool {
        let state = self.state.lock();
        state.order.holds(claim) && !state.busy.contains_key(&claim.short)
    }

    /// What was claimed stays.
    pub(in crate::store) fn release(&self, short: &Short) {
        self.state.lock().order.release(short);
    }

    /// What was claimed stays, as if it had been used at `used`.
    pub(in crate::store) fn postpone(&self, short: &Short, used: u32) {
        let (mut state, now) = self.at();
        state.order.postpone(short, used.min(now));
        state.order.release(short);
    }

    /// What was claimed cannot be removed: it keeps its place, and is not chosen again until [`Books::retry_stuck`].
    pub(in crate::store) fn set_stuck(&self, short: &Short) {
        let mut state = self.state.lock();
        state.order.release(short);
        state.queue.stuck.insert(*short);
    }

    /// What could not be removed may be chosen again.
    pub(in crate::store) fn retry_stuck(&self) {
        self.state.lock().queue.stuck = HashSet::new();
    }

    /// The next blobs that would go, so many.
    pub(in crate::store) fn ahead(&self, limit: usize) -> Vec<Short> {
        let (state, now) = self.at();
        state.order.victims(now).take(limit).map(|(short, _)| short).collect()
    }
}

// === impl Waiter ===

impl Waiter {
    /// Tells it; the answer comes back if nobody takes it.
    fn tell(self, answer: Answer) -> Option<Answer> {
        self.answer?.send(answer).err()
    }
}

// === impl Ticket ===

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut state = self.books.state.lock();
        let waiting = &mut state.queue.waiting;
        if let Some(at) = waiting.iter().position(|waiter| waiter.number == self.number) {
            waiting.remove(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{SPACE, books, digest};
    use super::*;

    fn wait(books: &Arc<Books>, n: u8, bytes: u64) -> Ticket {
        books.wait(Want::Promise { digest: Some(digest(n)), bytes })
    }

    fn told(ticket: &mut Ticket) -> Option<Answer> {
        ticket.answer.try_recv().ok()
    }

    fn promised(ticket: &mut Ticket) -> Reservation {
        match told(ticket) {
            Some(Answer::Promised(reservation)) => reservation,
            other => panic!("{other:?}"),
        }
    }

    /// What is to go in this round.
    fn claims(books: &Arc<Books>) -> Vec<Short> {
        match books.round(SPACE, true) {
            Round::Remove(claims) => claims.iter().map(|claim| claim.short).collect(),
            Round::Done | Round::Forget(_) => Vec::new(),
        }
    }

    fn gone(books: &Arc<Books>, claims: &[Short]) {
        for short in claims {
            books.forget(short);
        }
    }

    /// A round in which only so many of those that were chosen can be removed.
    fn partly(books: &Arc<Books>, count: usize) -> usize {
        let chosen = claims(books);
        gone(books, &chosen[..count]);
        for short in &chosen[count..] {
            books.release(short);
        }
        chosen.len()
    }

    fn full(count: u8) -> Arc<Books> {
        let books = books(u64::from(count) * 10);
        for n in 0..count {
            books.used_first(&digest(n), 10);
        }
        books
    }

    #[test]
    fn what_is_freed_goes_to_those_who_wait_in_their_order() {
        let books = full(6);
        let mut tickets = [wait(&books, 100, 15), wait(&books, 101, 10), wait(&books, 102, 20)];
        assert!(books.begins_evicting() && !books.begins_evicting(), "one at a time");
        assert_eq!(partly(&books, 1), 5, "for all of them");
        assert_eq!(partly(&books, 1), 4);
        assert!(tickets.iter_mut().all(|ticket| told(ticket).is_none()), "the first needs more");
        assert!(books.reserve(None, 0, SPACE).is_err(), "and nobody comes in between");
        let chosen = claims(&books);
        let (first, second) = (promised(&mut tickets[0]), told(&mut tickets[1]));
        assert!(second.is_none() && first.bytes() == 15);
        gone(&books, &chosen);
        assert!(matches!(books.round(SPACE, true), Round::Done));
        let _rest = [promised(&mut tickets[1]), promised(&mut tickets[2])];
        assert!(!books.begins_evicting(), "nothing is left to do");
    }

    #[test]
    fn who_leaves_gets_nothing_and_keeps_nobody_waiting() {
        let books = full(2);
        let (first, mut second) = (wait(&books, 100, 20), wait(&books, 101, 10));
        drop(first);
        assert!(books.begins_evicting());
        let chosen = claims(&books);
        assert_eq!(chosen.len(), 1);
        gone(&books, &chosen);
        assert!(matches!(books.round(SPACE, true), Round::Done));
        drop(promised(&mut second));
        let mut left = wait(&books, 102, 10);
        left.answer.close();
        assert!(matches!(books.round(SPACE, true), Round::Done));
        assert_eq!(books.used_bytes(), 10, "nothing stays promised");
    }

    #[test]
    fn nothing_goes_for_what_cannot_be_had() {
        let books = full(3);
        let _reader = books.hold(&digest(0), 1);
        let mut tickets = [wait(&books, 100, 30), wait(&books, 101, 10), wait(&books, 102, 20)];
        assert!(books.begins_evicting());
        let chosen = claims(&books);
        assert!(matches!(told(&mut tickets[0]), Some(Answer::Nothing)));
        assert_eq!(chosen.len(), 1, "for the second alone: with the third it would not be enough");
        gone(&books, &chosen);
        assert_eq!(claims(&books).len(), 0);
        drop(promised(&mut tickets[1]));
        assert!(matches!(told(&mut tickets[2]), Some(Answer::Nothing)));
    }

    #[test]
    fn what_is_used_while_it_is_chosen_stays() {
        let books = full(4);
        let _ticket = wait(&books, 100, 30);
        assert!(books.begins_evicting());
        let Round::Remove(claims) = books.round(SPACE, true) else { panic!("there is something to remove") };
        assert!(claims.iter().all(|claim| books.may_go(claim)));
        let _reader = books.hold(&digest(0), 1);
        books.with_order(|order| order.pin([Short::from(&digest(1))]));
        let used = books.with_order(|order| order.used(&Short::from(&digest(2)))).unwrap();
        books.with_order(|order| order.put(Short::from(&digest(2)), 10, used + 1, true));
        assert!(!claims.iter().any(|claim| books.may_go(claim)));
        for claim in &claims {
            books.release(&claim.short);
        }
        assert_eq!(books.victims(20), [digest(3), digest(2)].map(|d| Short::from(&d)));
    }

    #[test]
    fn memory_is_bounded_whatever_must_go() {
        let books = full(0);
        for n in 0..2_000_u32 {
            books.used_first(&Digest::of(crate::oci::Algorithm::Sha256, &n.to_le_bytes()), 10);
        }
        assert!(books.begins_evicting(), "above the capacity, although nobody waits");
        assert_eq!(claims(&books).len(), CHUNK);
    }

    #[test]
    fn the_floor_is_restored_if_that_can_be_done() {
        let books = books(1 << 40);
        for n in 0..4 {
            books.used_first(&digest(n), 1 << 30);
        }
        let floor = books.floor();
        books.want_floor(Space { free: floor, ..SPACE });
        books.want_floor(Space { free: floor - (5 << 30), ..SPACE });
        assert!(!books.begins_evicting(), "it is there, or all that may go would not be enough");
        let short = Space { free: floor - (2 << 30), ..SPACE };
        books.want_floor(short);
        books.want_floor(short);
        assert!(books.begins_evicting());
        let Round::Remove(claims) = books.round(short, true) else { panic!("there is something to remove") };
        assert_eq!(claims.len(), 2);
        books.freed(2 << 30);
        assert!(matches!(books.round(short, true), Round::Done));
    }
}
