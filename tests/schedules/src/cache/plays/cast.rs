//! What a play of fills is about: the blob, who reads it, how upstream and the file behave.

use std::ops::Range;
use std::sync::Arc;

use shuttle::rand::{Rng as _, thread_rng};

use super::Met;
use crate::config::{Abandon, RangeFill};
pub use crate::upstream::{Answers, Away};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// What is played.
#[derive(Debug, Clone)]
pub struct Play {
    /// Bytes of the blob.
    pub length: u64,
    /// Who reads it.
    pub readers: Vec<Reader>,
    pub range_fill: RangeFill,
    pub abandon: Abandon,
    /// Nothing of a part is given before the verdict.
    pub waits: bool,
    /// What upstream does with questions for parts.
    pub parts: Answers,
    /// So many answers fail, break off or end early.
    pub faults: usize,
    /// Upstream stalls there until all readers of parts have theirs.
    pub stalls_at: Option<u64>,
    /// Upstream is away for a while.
    pub away: Option<Away>,
    /// Requests for one blob at once.
    pub blob_connections: usize,
    /// Requests to upstream at once, and others who want some of these.
    pub max_connections: Option<usize>,
    pub rivals: usize,
    /// So many questions of a fill are enough.
    pub most_asked: Option<usize>,
    /// Bytes that the file takes.
    pub room: u64,
    /// What has happened in all schedules.
    pub met: Arc<Events>,
}

/// What may happen.
#[derive(Debug, Default)]
pub struct Events {
    /// A fill was put aside.
    pub parked: Met,
    /// A fill began with what another one had left.
    pub taken_up: Met,
    /// A fill failed after its head.
    pub failed: Met,
    /// A reader had to look again.
    pub looked_again: Met,
    /// A reader left.
    pub left: Met,
    /// The file took no more.
    pub cut: Met,
    /// Several requests ran at once.
    pub side_by_side: Met,
}

/// A reader.
#[derive(Debug, Clone)]
pub struct Reader {
    /// None: all of it.
    pub part: Option<Range<u64>>,
    /// It comes after so many steps.
    pub comes_after: u32,
    /// Steps for which it is made sure that it may have the blob, when it has joined a fill.
    pub proves: u32,
    /// After so many bytes it stops reading for so many steps.
    pub stalls: Option<(u64, u32)>,
    /// It leaves after so many bytes.
    pub leaves_after: Option<u64>,
    /// It leaves after so many steps, wherever it is then.
    pub leaves_within: Option<u32>,
}

// === impl Reader ===

impl Reader {
    /// Of all of it, to the end.
    pub const fn whole() -> Self {
        Self { part: None, comes_after: 0, proves: 0, stalls: None, leaves_after: None, leaves_within: None }
    }

    /// Of a part, to its end.
    pub const fn of(part: Range<u64>) -> Self {
        Self { part: Some(part), ..Self::whole() }
    }

    /// The same, which leaves after so many bytes.
    #[must_use]
    pub fn leaving(self, bytes: u64) -> Self {
        Self { leaves_after: Some(bytes), ..self }
    }

    /// The same, which comes later.
    #[must_use]
    pub fn later(self, comes_after: u32) -> Self {
        Self { comes_after, ..self }
    }

    /// The same, of which it takes a while to know whether it may have the blob.
    #[must_use]
    pub fn proving(self, proves: u32) -> Self {
        Self { proves, ..self }
    }

    /// Of all or a part of a blob of this length, small or large.
    fn drawn(length: u64) -> Self {
        let mut random = thread_rng();
        if random.gen_bool(0.25) {
            return Self::whole();
        }
        let start = random.gen_range(0..length);
        let longest = if random.gen_bool(0.5) { 128 * KIB } else { length };
        let end = random.gen_range(start..(start + longest).min(length)) + 1;
        Self::of(start..if random.gen_bool(0.2) { length } else { end })
    }

    pub(super) fn leaves(&self) -> bool {
        self.leaves_after.is_some() || self.leaves_within.is_some()
    }
}

// === impl Play ===

impl Play {
    /// Of a blob of this length that these read; nothing goes wrong.
    pub fn of(length: u64, readers: Vec<Reader>) -> Self {
        Self {
            length,
            readers,
            range_fill: RangeFill::Always,
            abandon: Abandon::Finish,
            waits: false,
            parts: Answers::Parts,
            faults: 0,
            stalls_at: None,
            away: None,
            blob_connections: 8,
            max_connections: None,
            rivals: 0,
            most_asked: None,
            room: u64::MAX,
            met: Arc::default(),
        }
    }

    /// Two to five readers of a blob of some 24 MiB, who come at once or one after the other, and may stop for a while.
    pub fn drawn(met: &Arc<Events>) -> Self {
        let mut random = thread_rng();
        let length = 24 * MIB + random.gen_range(0..3) * 1_111;
        let late = if random.gen_bool(0.5) { 1 } else { 150 };
        let readers = (0..random.gen_range(2..=5)).map(|_| {
            let stalls = random.gen_bool(0.3).then(|| (random.gen_range(0..length / 2), random.gen_range(0..200)));
            Reader {
                comes_after: random.gen_range(0..late),
                proves: random.gen_range(0..10),
                stalls,
                ..Reader::drawn(length)
            }
        });
        let readers = readers.collect();
        Self { waits: random.gen_bool(0.1), met: Arc::clone(met), ..Self::of(length, readers) }
    }

    /// The same, of which some leave at any moment.
    #[must_use]
    pub fn restless(mut self) -> Self {
        for reader in &mut self.readers {
            if thread_rng().gen_bool(0.5) {
                reader.leaves_within = Some(thread_rng().gen_range(0..150));
            }
        }
        self
    }

    /// The same, whose readers come one long after the other.
    #[must_use]
    pub fn spread(mut self) -> Self {
        for reader in &mut self.readers {
            reader.comes_after = thread_rng().gen_range(0..800);
        }
        self
    }

    /// Whether all of it is to come, whoever reads.
    pub(super) fn finishes(&self) -> bool {
        self.range_fill == RangeFill::Always && self.abandon == Abandon::Finish && self.away.is_none()
    }
}
