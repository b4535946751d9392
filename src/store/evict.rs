//! Making room: bytes are promised before a fill starts. Where there is no room, whoever needs it waits in a queue
//! (`capacity::queue`) while one job (`evictor`) removes the least recently used blobs; who has waited in vain for
//! [`IN_TIME`] passes the content on without keeping it.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::time::{Instant, timeout_at};

mod estimate;
mod evictor;
mod removal;
mod shortage;
mod trouble;

pub(super) use evictor::Evictor;
pub(super) use shortage::Shortage;

use shortage::Reason;

use super::capacity::{Answer, Reservation, Taken, Ticket, Want};
use super::error::is_full;
use super::fs::Space;
use super::{Inner, StoreError};
use crate::oci::Digest;

/// How often room is made for one write before it is given up, and which part of what it takes, as a divisor: the books
/// saw room, so mostly little is missing. Others may take it in between.
const PARTS: [u64; 3] = [8, 2, 1];
/// What is freed at least, where there is as much, when the file system is full although the books saw room.
const STEP: u64 = 1 << 20;
/// How long somebody waits for room. Clients wait meanwhile, and upstream is holding its answer.
const IN_TIME: Duration = Duration::from_secs(1);

/// What comes of asking for a promise.
pub(super) enum Room {
    /// It is given.
    Promised(Reservation),
    /// It may be, to who waits.
    Later(Waiting),
}

/// Waits for so many bytes.
pub(super) struct Waiting {
    ticket: Ticket,
    bytes: u64,
}

/// Why no room was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lack {
    NoRoom(Reason),
    /// The store is stopping.
    Stopped,
}

// === impl Inner ===

impl Inner {
    /// Asks for a promise of `bytes` to a fill of `digest` (none: it is not known yet). Blocks, but never for long.
    pub(super) fn ask_room(self: &Arc<Self>, digest: Option<&Digest>, bytes: u64) -> Result<Room, StoreError> {
        let capacity = self.books.capacity();
        if bytes > capacity {
            self.shortage.too_large(bytes, capacity);
            return Err(StoreError::TooLarge { length: bytes, capacity });
        }
        if let Ok(reservation) = self.books.reserve(digest, bytes, self.space()?) {
            return Ok(Room::Promised(reservation));
        }
        #[cfg(test)]
        if super::tests::gate::is_here() {
            // An explored schedule sees threads, and no tasks that wait.
            let want = Want::Promise { digest: digest.copied(), bytes };
            let promised = self.block_on_room(want).and_then(|promised| promised.ok_or(Lack::Stopped));
            return promised.map(Room::Promised).map_err(|lack| self.lacks(lack, bytes));
        }
        let ticket = self.books.wait(Want::Promise { digest: digest.copied(), bytes });
        self.start_evicting();
        Ok(Room::Later(Waiting { ticket, bytes }))
    }

    /// Waits for the promise.
    pub(super) async fn wait_for_room(&self, waiting: Waiting) -> Result<Reservation, StoreError> {
        let Waiting { ticket, bytes } = waiting;
        let promised = wait(ticket, Instant::now() + IN_TIME).await.and_then(|promised| promised.ok_or(Lack::Stopped));
        promised.map_err(|lack| self.lacks(lack, bytes))
    }

    /// Promises `more` bytes to a running fill; if there is no room for as much, at least the `least`. Blocks.
    pub(super) fn reserve_more(
        self: &Arc<Self>,
        reservation: &mut Reservation,
        more: u64,
        least: u64,
    ) -> Result<(), StoreError> {
        let space = self.space()?;
        if reservation.grow(more, space).is_ok() || reservation.grow(least, space).is_ok() {
            return Ok(());
        }
        let mut outcome = Err(Lack::Stopped);
        for bytes in [more, least] {
            outcome = self.block_on_room(Want::Promise { digest: None, bytes });
            // Who has waited in vain once does not wait again.
            if !matches!(outcome, Err(Lack::NoRoom(Reason::NothingMayGo))) {
                break;
            }
        }
        match outcome {
            Ok(Some(promised)) => {
                reservation.add(promised);
                Ok(())
            }
            Ok(None) => Err(StoreError::Stopped),
            Err(lack) => Err(self.lacks(lack, reservation.bytes() + least)),
        }
    }

    /// There is no room for so many bytes: says so, once.
    fn lacks(&self, lack: Lack, bytes: u64) -> StoreError {
        let reason = match lack {
            Lack::Stopped => return StoreError::Stopped,
            Lack::NoRoom(reason) => reason,
        };
        let is_news = self.shortage.begins(bytes, reason);
        let (capacity, keep_free) = (self.books.capacity(), self.books.floor());
        let Taken { stored, removable, promised, lingering } = self.books.taken();
        match reason {
            Reason::NothingMayGo if is_news => tracing::warn!(
                bytes,
                capacity,
                keep_free,
                stored,
                removable,
                promised,
                lingering,
                "the store has no room and nothing that may go: content is passed on without being kept until there is; \
                 free space or inodes on the file system, raise store.capacity, or remove pins"
            ),
            Reason::NotInTime if is_news => tracing::warn!(
                bytes,
                capacity,
                keep_free,
                stored,
                removable,
                promised,
                lingering,
                "room was not made in time: content is passed on without being kept while much must go, or the disk is slow"
            ),
            _ => {}
        }
        match reason {
            Reason::NothingMayGo => StoreError::NoSpace,
            Reason::NotInTime => StoreError::NoRoomInTime,
        }
    }

    pub(super) fn space(&self) -> Result<Space, StoreError> {
        let space = self.disk.space().map_err(|e| StoreError::io("measure the file system of", self.disk.path(), e))?;
        self.books.measured(space);
        Ok(space)
    }

    /// Runs a call that takes up to `bytes` of disk space; while there is none, older blobs make room. Blocks.
    pub(super) fn with_room<T>(self: &Arc<Self>, bytes: u64, mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
        let mut lack = None;
        for part in PARTS.map(|part| bytes.div_ceil(part)) {
            match call() {
                // The books saw room, so the file system needs more than the content: blocks, inodes, its own records.
                Err(error) if is_full(&error) => {
                    lack = self.free(part.max(STEP), part).err();
                    if lack.is_some() {
                        break;
                    }
                }
                other => return other,
            }
        }
        call().inspect_err(|error| {
            if is_full(error) {
                self.lacks(lack.unwrap_or(Lack::NoRoom(Reason::NothingMayGo)), bytes);
            }
        })
    }

    /// Writes small files; if the disk is full, a blob makes room once. The work must hold no lock of this store. Blocks.
    pub(super) fn with_room_for_record<T>(
        self: &Arc<Self>,
        work: impl Fn() -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        match work() {
            Err(StoreError::NoSpace) => match self.free(STEP, 1) {
                Ok(()) => work(),
                Err(lack) => {
                    self.lacks(lack, 1);
                    Err(StoreError::NoSpace)
                }
            },
            other => other,
        }
    }

    /// Has `bytes` of the least recently used blobs removed; if all that may go would not be enough (the disk is full of
    /// other things), at least the `least`, or else none. Blocks.
    fn free(self: &Arc<Self>, bytes: u64, least: u64) -> Result<(), Lack> {
        match self.block_on_room(Want::Freed { bytes }) {
            Err(Lack::NoRoom(Reason::NothingMayGo)) if least < bytes => {
                self.block_on_room(Want::Freed { bytes: least }).map(drop)
            }
            outcome => outcome.map(drop),
        }
    }

    /// Removes least recently used blobs until so many bytes are freed, or none. Whether it was done. Blocks.
    #[cfg(test)]
    pub(super) fn evict(self: &Arc<Self>, bytes: u64) -> bool {
        self.free(bytes, bytes).is_ok()
    }

    /// Waits on a thread that may block, no longer than others wait elsewhere. Where nobody evicts, this thread does so
    /// meanwhile: when many wait like this, the pool may have no other one to spare.
    fn block_on_room(self: &Arc<Self>, want: Want) -> Result<Option<Reservation>, Lack> {
        let until = Instant::now() + in_time();
        let mut ticket = self.books.wait(want);
        let mut answer = None;
        if self.books.begins_evicting() {
            self.run_evictor(|| {
                answer = answer.take().or_else(|| ticket.answer.try_recv().ok());
                answer.is_some() || Instant::now() >= until
            });
        }
        #[cfg(test)]
        super::tests::gate::wait_for(|| answer.is_some() || !ticket.answer.is_empty());
        match answer {
            Some(answer) => outcome(answer),
            None => Handle::current().block_on(wait(ticket, until)),
        }
    }
}

/// How long a thread waits. Explored schedules take their time between two steps.
fn in_time() -> Duration {
    #[cfg(test)]
    if super::tests::gate::is_here() {
        return Duration::from_hours(1);
    }
    IN_TIME
}

/// Waits for the answer; a promise, if that was asked for.
async fn wait(mut ticket: Ticket, until: Instant) -> Result<Option<Reservation>, Lack> {
    match timeout_at(until, &mut ticket.answer).await {
        Ok(Ok(answer)) => outcome(answer),
        Ok(Err(_)) => Err(Lack::Stopped),
        Err(_) => Err(Lack::NoRoom(Reason::NotInTime)),
    }
}

fn outcome(answer: Answer) -> Result<Option<Reservation>, Lack> {
    match answer {
        Answer::Promised(reservation) => Ok(Some(reservation)),
        Answer::Freed => Ok(None),
        Answer::Nothing => Err(Lack::NoRoom(Reason::NothingMayGo)),
        Answer::Stopped => Err(Lack::Stopped),
    }
}
