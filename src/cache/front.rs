//! The front of a fill: what has come last, still in memory.
//!
//! Who keeps up with a fill reads from here. These bytes were just written and are still in the processor's caches; a page
//! of the file that the kernel sends costs whoever receives it twice as much (docs/performance.md, "The cold path"). Who
//! is further behind reads the file, so memory stays bounded whatever the clients do: that of one fill, and that of all.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;

use crate::store::Placed;

/// Bytes that are kept of one fill.
const OF_ONE: usize = 2 << 20;
/// Bytes that are kept of all fills together.
const OF_ALL: usize = 16 << 20;
/// Smaller pieces cost more to hand out one by one than they save.
const LEAST: usize = 16 << 10;

/// How many bytes the fronts of all fills have.
#[derive(Debug, Default)]
pub(super) struct Fronts(AtomicUsize);

/// What has come last of one fill.
#[derive(Debug, Default)]
pub(super) struct Front {
    /// The last one came last.
    pieces: VecDeque<Placed>,
    bytes: usize,
    /// None: nothing is kept.
    all: Option<Arc<Fronts>>,
}

// === impl Front ===

impl Front {
    /// An empty one, which counts there.
    pub(super) fn new(all: Arc<Fronts>) -> Self {
        Self { pieces: VecDeque::new(), bytes: 0, all: Some(all) }
    }

    /// These bytes have come, and are in the file.
    pub(super) fn add(&mut self, piece: &Placed) {
        let Some(all) = self.all.as_ref().filter(|_| piece.bytes.len() >= LEAST) else { return };
        self.bytes += piece.bytes.len();
        let mut of_all = all.0.fetch_add(piece.bytes.len(), Ordering::Relaxed) + piece.bytes.len();
        self.pieces.push_back(piece.clone());
        // One whose fill stands still keeps what it has; those that run share what is left.
        while self.bytes > OF_ONE || of_all > OF_ALL {
            let Some(oldest) = self.pieces.pop_front() else { return };
            self.bytes -= oldest.bytes.len();
            of_all = all.0.fetch_sub(oldest.bytes.len(), Ordering::Relaxed) - oldest.bytes.len();
        }
    }

    /// The bytes from `at` on as far as they are in one piece, up to `end` and not more than `most`; none if they are not
    /// here.
    pub(super) fn from(&self, at: u64, end: u64, most: u64) -> Option<Bytes> {
        let piece = self.pieces.iter().rev().find(|piece| piece.range().contains(&at))?;
        let until = piece.range().end.min(end).min(at.saturating_add(most));
        let [from, to] =
            [at, until].map(|place| place.checked_sub(piece.at).and_then(|place| usize::try_from(place).ok()));
        let (from, to) = (from?, to?);
        (from < to).then(|| piece.bytes.slice(from..to))
    }

    /// Nothing is kept from now on.
    pub(super) fn end(&mut self) {
        if let Some(all) = self.all.take() {
            all.0.fetch_sub(self.bytes, Ordering::Relaxed);
        }
        (self.pieces, self.bytes) = (VecDeque::new(), 0);
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        self.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(at: usize, length: usize) -> Placed {
        let bytes: Vec<u8> = (0..=250).cycle().skip(at % 251).take(length).collect();
        Placed { at: at as u64, bytes: bytes.into() }
    }

    #[test]
    fn what_has_come_last_is_there_piece_by_piece() {
        let mut front = Front::new(Arc::default());
        front.add(&piece(0, LEAST));
        front.add(&piece(LEAST, LEAST));
        // Another part of the blob, fetched ahead.
        front.add(&piece(10 * LEAST, LEAST));
        let from = |at: usize, end: usize, most: usize| front.from(at as u64, end as u64, most as u64);
        assert_eq!(from(0, usize::MAX, usize::MAX).unwrap(), piece(0, LEAST).bytes, "not more than a piece");
        assert_eq!(from(LEAST - 1, usize::MAX, usize::MAX).unwrap(), piece(LEAST - 1, 1).bytes);
        assert_eq!(from(LEAST, LEAST + 9, usize::MAX).unwrap(), piece(LEAST, 9).bytes, "what comes next is held back");
        assert_eq!(from(LEAST + 5, usize::MAX, 7).unwrap(), piece(LEAST + 5, 7).bytes);
        assert_eq!(from(10 * LEAST + 3, usize::MAX, 7).unwrap(), piece(10 * LEAST + 3, 7).bytes);
        for (at, end, most) in
            [(2 * LEAST, usize::MAX, 9), (11 * LEAST, usize::MAX, 9), (5, 5, 9), (5, 3, 9), (5, 9, 0)]
        {
            assert_eq!(from(at, end, most), None, "{at} {end} {most}");
        }
    }

    #[test]
    fn memory_is_bounded_for_one_and_for_all() {
        let all = Arc::new(Fronts::default());
        let kept = || all.0.load(Ordering::Relaxed);
        let mut fronts: Vec<_> = (0..20).map(|_| Front::new(Arc::clone(&all))).collect();
        for (n, front) in fronts.iter_mut().enumerate() {
            for step in 0..2 * OF_ONE / (1 << 18) {
                front.add(&piece(step << 18, 1 << 18));
                assert!(front.bytes <= OF_ONE && kept() <= OF_ALL, "{n}");
            }
            front.add(&piece(0, LEAST - 1));
            assert_eq!(front.bytes, front.pieces.iter().map(|piece| piece.bytes.len()).sum::<usize>());
        }
        assert_eq!((fronts[0].bytes, kept()), (OF_ONE, OF_ALL), "the first ones have all that may be kept");
        assert_eq!(fronts[0].pieces.back().unwrap().range().end, 2 * OF_ONE as u64, "the last bytes are there");
        fronts[0].end();
        assert_eq!(kept(), OF_ALL - OF_ONE);
        fronts[19].add(&piece(0, LEAST));
        assert_eq!(fronts[19].bytes, LEAST, "there is room again");
        fronts[0].add(&piece(0, LEAST));
        assert_eq!(fronts[0].bytes, 0, "it has ended");
        drop(fronts);
        assert_eq!(kept(), 0);
    }
}
