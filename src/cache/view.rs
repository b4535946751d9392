//! A view: what a reader wants of a blob that is on its way, as its fill knows it, and how far it may read.
//!
//! The end of the blob waits for the verdict, so that nobody can ever have received a complete wrong one (ADR 0003).

use std::ops::Range;
use std::sync::Arc;

use super::CacheError;
use super::bypass::Rest;
use super::demand::{Demand, Seat, Want};
use super::progress::{State, Watcher};

/// How many bytes at the end of a blob wait for the verdict.
pub(super) const HELD_BACK: u64 = 4096;

/// A reader of a blob that is filled or checked.
#[derive(Debug, Clone, Default)]
pub(super) struct View {
    /// None where nothing is filled: the file is only checked.
    seat: Option<Arc<Seat>>,
    want: Option<Arc<Want>>,
    /// Less than the whole is wanted.
    is_part: bool,
    /// Nothing of a part is handed out before it is verified.
    waits: bool,
}

/// What may be read now.
pub(super) enum Readable {
    /// The file, up to here. The position itself means the end.
    To(u64),
    /// What follows the file.
    Rest(Arc<Rest>),
}

// === impl View ===

impl View {
    /// Of a reader whose wants the fill is told; `waits` says whether parts wait until they are verified. None: the fill is
    /// about to end without being whole.
    pub(super) fn of_fill(demand: &Arc<Demand>, waits: bool) -> Option<Self> {
        Some(Self { seat: Some(Arc::new(Seat::take(demand)?)), waits, ..Self::default() })
    }

    /// Of a reader of a file that is checked.
    pub(super) fn of_check(waits: bool) -> Self {
        Self { waits, ..Self::default() }
    }

    /// This range alone (none: all of it) of a blob of this length is wanted.
    pub(super) fn narrow(&mut self, range: Option<&Range<u64>>, length: Option<u64>) {
        let part = range.filter(|range| Some(range.end - range.start) != length);
        self.is_part = part.is_some();
        self.want = self.seat.as_ref().map(|seat| Arc::new(seat.want(part)));
    }

    /// Waits until there are bytes past `at`, and before `end` if there is one, of a blob of this length.
    pub(super) async fn readable(
        &self,
        watcher: &mut Watcher,
        length: Option<u64>,
        (at, end): (u64, Option<u64>),
    ) -> Result<Readable, CacheError> {
        let within = |limit: u64| Readable::To(end.map_or(limit, |end| end.min(limit)));
        if let Some(want) = &self.want {
            want.reached(at);
        }
        if end.is_some_and(|end| at >= end) {
            return Ok(Readable::To(at));
        }
        loop {
            let look = watcher.look(at);
            let safe = match look.state {
                State::Verified(bytes) => return Ok(within(bytes)),
                State::Failed(error) => return Err(error),
                // It will not be verified any more.
                State::Cut(_) if self.is_part && self.waits => return Err(CacheError::NoSpace),
                State::Growing if self.is_part && self.waits => at,
                // More bytes follow, and the last of them wait for the verdict.
                State::Cut(rest) if at >= rest.at() => {
                    if self.is_part && look.run > at {
                        return Ok(within(look.run));
                    }
                    return Ok(Readable::Rest(rest));
                }
                State::Cut(rest) => rest.at(),
                // A part of what is not all there is handed out as it comes. Once all is there the verdict is near, and the
                // end of the blob waits for it.
                State::Growing if self.is_part && length.is_none_or(|length| look.total < length) => look.run,
                State::Growing => match length {
                    Some(length) => look.run.min(length.saturating_sub(HELD_BACK)),
                    // Of a blob of unknown length any byte may be the last one.
                    None => look.run.saturating_sub(HELD_BACK),
                },
            };
            if safe > at {
                return Ok(within(safe));
            }
            watcher.changed().await?;
        }
    }
}
