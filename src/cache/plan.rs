//! Which parts of a blob are asked of upstream next: decided from what is there, what is on its way and what is wanted,
//! and from nothing else.
//!
//! No byte is asked for twice: requests never overlap each other nor what is there. Where somebody waits ahead of what is on
//! its way, that request is cut short there, and another one begins (ADR 0020).

use std::collections::HashMap;
use std::ops::{Range, RangeInclusive};

use crate::store::ByteRanges;

/// Who waits so close behind what a request is bringing is not worth another one.
pub(super) const NEAR: u64 = 512 << 10;
/// Parts begin and end at multiples of this: neighbours of small parts meet, and the map of what is there stays short.
pub(super) const BLOCK: u64 = 4096;
/// What is left of a request is not divided into smaller parts than this.
const WORTH_DIVIDING: u64 = 4 << 20;
/// Where several requests bring the rest, each is for a stripe of this size, as far as so much is left for each of them twice.
/// So they stay close together: who reads from the start on is never far behind what has come.
const STRIPE: RangeInclusive<u64> = 8 << 20..=64 << 20;
/// A request that has no more than this to bring is not stopped where nobody waits for it any more: as much is on its way.
const WORTH_STOPPING: u64 = 256 << 10;
/// Where there are more separate parts than this of one blob, a new one also closes a gap: the map is kept in memory, and
/// written to the disk.
const PARTS: usize = if cfg!(test) { 4 } else { 8192 };

/// A request that runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Running {
    pub(super) id: u64,
    /// What it has yet to bring.
    pub(super) left: Range<u64>,
}

/// All that a decision depends on.
#[derive(Debug)]
pub(super) struct Situation<'a> {
    /// Bytes of the blob.
    pub(super) length: u64,
    /// What has come, if only into memory.
    pub(super) come: &'a ByteRanges,
    /// In any order.
    pub(super) running: &'a [Running],
    /// What readers have not read yet, in the order in which they came.
    pub(super) wants: &'a [Range<u64>],
    /// Whether all of it is to come, whoever reads.
    pub(super) whole: bool,
    /// How many requests that is worth.
    pub(super) width: usize,
    /// How many there may be at most.
    pub(super) most: usize,
}

/// What is to be done, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// A request is to end there: what follows is another one's.
    Shorten { id: u64, end: u64 },
    /// A request has nothing more to bring.
    Stop(u64),
    /// A new request for this part.
    Start(Range<u64>),
}

/// The decision in the making.
struct Draft<'a> {
    situation: &'a Situation<'a>,
    running: Vec<Running>,
    /// See [`missing`].
    missing: Vec<(u64, u64)>,
    /// Somebody waits for each that runs, and no more may run: that stays so.
    is_full: bool,
    steps: Vec<Step>,
}

/// What to do. Nothing, where all that is wanted is on its way.
pub(super) fn plan(situation: &Situation<'_>) -> Vec<Step> {
    let missing = missing(situation);
    let mut draft = Draft { situation, running: Vec::new(), missing, is_full: false, steps: Vec::new() };
    for one in situation.running.iter().filter(|one| !one.left.is_empty()) {
        // Upstream may have begun it where it liked.
        if situation.come.contains(&one.left) {
            draft.steps.push(Step::Stop(one.id));
        } else {
            draft.running.push(one.clone());
        }
    }
    let mut served = Vec::new();
    for missing in draft.missing.clone() {
        match draft.serve(missing) {
            Some(id) => served.push(id),
            None => draft.begin_for(missing, &mut served),
        }
    }
    if situation.whole {
        draft.widen();
    } else {
        draft.stop_all_but(&served);
    }
    draft.steps
}

/// The first byte that each reader lacks, with the end of what it wants: who has least before it comes first. Those who
/// lack the same are one, and the furthest end counts.
fn missing(situation: &Situation<'_>) -> Vec<(u64, u64)> {
    let Situation { length, come, wants, .. } = situation;
    let lacks = |want: &Range<u64>| {
        let end = want.end.min(*length);
        let at = come.end_of_run(want.start);
        (at < end).then(|| (at - want.start, at, end))
    };
    let mut lacking: Vec<_> = wants.iter().filter_map(lacks).collect();
    lacking.sort_by_key(|(ahead, ..)| *ahead);
    let mut missing: Vec<(u64, u64)> = Vec::with_capacity(lacking.len());
    let mut places = HashMap::with_capacity(lacking.len());
    for (_, at, end) in lacking {
        let place = *places.entry(at).or_insert(missing.len());
        match missing.get_mut(place) {
            Some((_, furthest)) => *furthest = end.max(*furthest),
            None => missing.push((at, end)),
        }
    }
    missing
}

// === impl Draft ===

impl Draft<'_> {
    /// The request that brings this byte soon, if there is one.
    fn serve(&self, (at, _): (u64, u64)) -> Option<u64> {
        let soon = |one: &&Running| one.left.contains(&at) && at - one.left.start <= NEAR;
        self.running.iter().find(soon).map(|one| one.id)
    }

    /// A new request for who lacks this, if there may be one more, or one that nobody waits for gives way.
    fn begin_for(&mut self, (at, end): (u64, u64), served: &mut Vec<u64>) {
        let Situation { length, come, .. } = *self.situation;
        if self.is_full {
            return;
        }
        if self.running.len() >= self.situation.most && !self.give_way(served) {
            self.is_full = true;
            return;
        }
        // Not over what is there or on its way.
        let block = at - at % BLOCK;
        let mut start = come.gaps(block..at + 1).pop().map_or(at, |gap| gap.start);
        start = self.running.iter().map(|one| one.left.end).filter(|before| *before <= at).fold(start, u64::max);
        let mut stop = end.checked_next_multiple_of(BLOCK).unwrap_or(end).min(length);
        stop = come.next_start(at).map_or(stop, |next| stop.min(next));
        stop = self.running.iter().map(|one| one.left.start).filter(|next| *next > at).fold(stop, u64::min);
        if come.len() >= PARTS && !self.running.iter().any(|one| one.left.contains(&start)) {
            (start, stop) = self.closing(start..stop);
        }
        if let Some(index) = self.running.iter().position(|one| one.left.contains(&start)) {
            stop = stop.min(self.shorten(index, start));
        }
        self.start(start..stop, served);
    }

    /// This part, and what is missing on the shorter side of it, so that there is no separate part more.
    fn closing(&self, part: Range<u64>) -> (u64, u64) {
        let Situation { length, come, .. } = self.situation;
        let before = come.gaps(0..part.start + 1).pop().map_or(part.start, |gap| gap.start);
        let ends = self.running.iter().map(|one| one.left.end).filter(|end| *end <= part.start);
        let before = ends.fold(before, u64::max);
        let after = come.next_start(part.end).unwrap_or(*length);
        let after =
            self.running.iter().map(|one| one.left.start).filter(|start| *start >= part.end).fold(after, u64::min);
        if part.start - before <= after - part.end { (before, part.end) } else { (part.start, after) }
    }

    /// One that runs, or is to begin, ends there; where it would have ended.
    fn shorten(&mut self, index: usize, end: u64) -> u64 {
        let Some(one) = self.running.get_mut(index) else { return end };
        let (id, start) = (one.id, one.left.start);
        let before = std::mem::replace(&mut one.left.end, end);
        let begun = self.steps.iter_mut().find_map(|step| match step {
            Step::Start(part) if part.start == start => Some(part),
            _ => None,
        });
        match begun {
            Some(part) => part.end = end,
            None => self.steps.push(Step::Shorten { id, end }),
        }
        before
    }

    fn start(&mut self, part: Range<u64>, served: &mut Vec<u64>) {
        // Its number is not known yet; what is begun here is never stopped here.
        self.running.push(Running { id: u64::MAX, left: part.clone() });
        served.push(u64::MAX);
        self.steps.push(Step::Start(part));
    }

    /// Stops a request that nobody waits for: the one with most to bring. False: somebody waits for each.
    fn give_way(&mut self, served: &[u64]) -> bool {
        let waited = |one: &Running| {
            served.contains(&one.id) || self.missing.iter().any(|missing| self.serve(*missing) == Some(one.id))
        };
        let idle = self.running.iter().enumerate().filter(|(_, one)| one.id != u64::MAX && !waited(one));
        let Some((index, _)) = idle.max_by_key(|(_, one)| one.left.end - one.left.start) else { return false };
        let one = self.running.swap_remove(index);
        self.steps.push(Step::Stop(one.id));
        true
    }

    /// Requests for what is neither there nor on its way, up to the width; where there is nothing of that, the largest
    /// rest of a request is divided.
    fn widen(&mut self) {
        let Situation { length, come, width, most, .. } = *self.situation;
        let stripe = if width <= 1 { length } else { stripe(length.saturating_sub(come.total()), width) };
        while self.running.len() < width.max(1).min(most) {
            let mut covered = come.clone();
            for one in &self.running {
                covered.insert(one.left.clone());
            }
            let mut ignored = Vec::new();
            if let Some(gap) = covered.gaps(0..length).into_iter().next() {
                self.start(gap.start..gap.end.min(in_blocks(gap.start, stripe)), &mut ignored);
                continue;
            }
            let largest = self.running.iter().enumerate().max_by_key(|(_, one)| one.left.end - one.left.start);
            let Some((index, one)) = largest else { return };
            let middle = one.left.start + ((one.left.end - one.left.start) / 2).min(stripe);
            let middle = middle - middle % BLOCK;
            if middle <= one.left.start || one.left.end - middle < WORTH_DIVIDING {
                return;
            }
            let end = self.shorten(index, middle);
            self.start(middle..end.min(in_blocks(middle, stripe)), &mut ignored);
        }
    }

    /// What nobody waits for any more is not brought.
    fn stop_all_but(&mut self, served: &[u64]) {
        let Situation { wants, .. } = self.situation;
        for one in &self.running {
            let wanted = served.contains(&one.id) || wants.iter().any(|want| overlap(want, &one.left));
            if one.id != u64::MAX && !wanted && one.left.end - one.left.start > WORTH_STOPPING {
                self.steps.push(Step::Stop(one.id));
            }
        }
    }
}

/// How much one of so many requests brings at a time, where so much is left.
fn stripe(left: u64, width: usize) -> u64 {
    (left / (2 * width as u64)).clamp(*STRIPE.start(), *STRIPE.end())
}

/// Where so many bytes from there on end, in whole blocks.
fn in_blocks(start: u64, bytes: u64) -> u64 {
    start.saturating_add(bytes).checked_next_multiple_of(BLOCK).unwrap_or(u64::MAX)
}

fn overlap(one: &Range<u64>, other: &Range<u64>) -> bool {
    one.start < other.end && other.start < one.end
}

#[cfg(test)]
mod tests {
    #![expect(clippy::single_range_in_vec_init, reason = "one range is what is meant")]

    use proptest::prelude::*;

    use super::super::demand::OPEN;
    use super::*;

    const MIB: u64 = 1 << 20;
    const LENGTH: u64 = 100 * MIB;

    fn there(ranges: &[Range<u64>]) -> ByteRanges {
        let mut there = ByteRanges::default();
        for range in ranges {
            there.insert(range.clone());
        }
        there
    }

    fn running(id: u64, left: Range<u64>) -> Running {
        Running { id, left }
    }

    fn decide(come: &ByteRanges, running: &[Running], wants: &[Range<u64>], whole: bool, width: usize) -> Vec<Step> {
        plan(&Situation { length: LENGTH, come, running, wants, whole, width, most: 8 })
    }

    #[test]
    fn who_reads_behind_a_request_waits_for_it() {
        let come = there(&[0..10 * MIB]);
        let one = [running(1, 10 * MIB..LENGTH)];
        let wants = [MIB..OPEN, 10 * MIB..OPEN, 10 * MIB + NEAR..11 * MIB];
        assert_eq!(decide(&come, &one, &wants, true, 1), []);
    }

    #[test]
    fn who_waits_far_ahead_gets_a_request_of_its_own() {
        let one = [running(1, 10 * MIB..LENGTH)];
        let come = there(&[0..10 * MIB]);
        let steps = decide(&come, &one, &[50 * MIB + 100..50 * MIB + 70_000], true, 1);
        let end = (50 * MIB + 70_000).next_multiple_of(BLOCK);
        assert_eq!(steps, [Step::Shorten { id: 1, end: 50 * MIB }, Step::Start(50 * MIB..end)]);
        // What follows it is brought later, when one of them has ended.
        let come = there(&[0..10 * MIB, 50 * MIB..end]);
        let steps = decide(&come, &[running(1, 10 * MIB..50 * MIB)], &[], true, 2);
        let left = LENGTH - come.total();
        assert_eq!(steps, [Step::Start(end..(end + left / 4).next_multiple_of(BLOCK))]);
        let steps = decide(&come, &[], &[], true, 1);
        assert_eq!(steps, [Step::Start(10 * MIB..50 * MIB)], "one brings all that it can");
    }

    #[test]
    fn open_ended_chunks_of_containerd_share_what_is_left() {
        let wants = [0..OPEN, 25 * MIB..OPEN, 50 * MIB..OPEN, 75 * MIB..OPEN];
        let steps = decide(&there(&[]), &[running(1, 0..LENGTH)], &wants, true, 1);
        let parts = [25 * MIB..50 * MIB, 50 * MIB..75 * MIB, 75 * MIB..LENGTH].map(Step::Start);
        assert_eq!(steps[0], Step::Shorten { id: 1, end: 25 * MIB });
        assert_eq!(steps[1..], parts);
    }

    #[test]
    fn without_the_whole_only_what_is_wanted_comes() {
        let come = there(&[]);
        assert_eq!(decide(&come, &[], &[5000..6000], false, 4), [Step::Start(4096..8192)]);
        assert_eq!(decide(&come, &[running(1, 4096..8192)], &[5000..6000], false, 4), []);
        assert_eq!(decide(&come, &[running(1, 0..MIB)], &[], false, 4), [Step::Stop(1)], "who wanted it has left");
        assert_eq!(decide(&come, &[running(1, 0..WORTH_STOPPING)], &[], false, 4), [], "that little comes anyway");
        assert_eq!(decide(&come, &[], &[], false, 4), []);
    }

    #[test]
    fn equal_and_overlapping_parts_are_one_request() {
        let come = there(&[]);
        let wants = [5000..6000, 5000..6000, 5500..20_000];
        assert_eq!(decide(&come, &[], &wants, false, 4), [Step::Start(4096..8192)]);
        // Who wants more gets the rest after that.
        assert_eq!(decide(&there(&[4096..8192]), &[], &wants, false, 4), [Step::Start(8192..20_480)]);
    }

    #[test]
    fn who_waits_takes_the_place_of_what_nobody_waits_for() {
        let full: Vec<_> = (0..8).map(|n| running(n, n * 10 * MIB + MIB..(n + 1) * 10 * MIB)).collect();
        let come = there(&[]);
        let mut wants: Vec<_> = (0..7).map(|n| n * 10 * MIB + MIB..OPEN).collect();
        wants.push(95 * MIB..95 * MIB + 10);
        let steps = decide(&come, &full, &wants, true, 8);
        assert_eq!(steps, [Step::Stop(7), Step::Start(95 * MIB..95 * MIB + BLOCK)]);
        wants.insert(0, 71 * MIB..OPEN);
        assert_eq!(decide(&come, &full, &wants, true, 8), [], "somebody waits for each");
    }

    /// As of clients that ask for a thousand parts in each request: what one plan costs grows with their number, not with its
    /// square, which would take minutes here.
    #[test]
    fn many_readers_who_cannot_all_be_served_are_quickly_told_from_each_other() {
        let runs: Vec<_> = (0..8).map(|n| running(n, n * 10 * MIB + MIB..(n + 1) * 10 * MIB)).collect();
        let come = there(&(0..8).map(|n| n * 10 * MIB..n * 10 * MIB + MIB).collect::<Vec<_>>());
        // Those for whom the requests run have much before them, and so they come last.
        let mut wants: Vec<_> = (0..8).map(|n| n * 10 * MIB..(n + 1) * 10 * MIB).collect();
        wants.extend((0..200_000).map(|n| 85 * MIB + n * 64..85 * MIB + n * 64 + 10));
        assert_eq!(decide(&come, &runs, &wants, false, 1), []);
    }

    #[test]
    fn what_is_left_is_divided_where_more_requests_pay() {
        let one = [running(1, 20 * MIB..LENGTH)];
        let steps = decide(&there(&[0..20 * MIB]), &one, &[0..OPEN], true, 2);
        assert_eq!(steps, [Step::Shorten { id: 1, end: 40 * MIB }, Step::Start(40 * MIB..60 * MIB)]);
        let two = [running(1, 30 * MIB..40 * MIB), running(2, 50 * MIB..60 * MIB)];
        let come = there(&[0..30 * MIB, 40 * MIB..50 * MIB]);
        let steps = decide(&come, &two, &[0..OPEN], true, 3);
        assert_eq!(steps, [Step::Start(60 * MIB..70 * MIB)], "they stay close together");
        let end = [running(1, LENGTH - MIB..LENGTH)];
        assert_eq!(decide(&there(&[0..LENGTH - MIB]), &end, &[0..OPEN], true, 4), [], "too little to divide");
    }

    fn blob() -> impl Strategy<Value = (u64, ByteRanges, Vec<Running>, Vec<Range<u64>>, bool, usize, usize)> {
        let part = |length: u64| (0..length, 1..length).prop_map(move |(at, n)| at..(at + n).min(length));
        prop_oneof![1_u64..3_000_000, 1_u64..300_000_000].prop_flat_map(move |length| {
            let come = prop::collection::vec(part(length), 0..5);
            let running = prop::collection::vec(part(length), 0..5);
            let wants = prop::collection::vec((0..length, prop_oneof![Just(OPEN), 1..length]), 0..6);
            (Just(length), come, running, wants, any::<bool>(), 1_usize..5, 1_usize..6).prop_map(
                |(length, come, parts, wants, whole, width, most)| {
                    let mut covered = there(&come);
                    let come = covered.clone();
                    let mut running = Vec::new();
                    for part in parts {
                        // Requests never overlap: what is left of the part that is not covered.
                        if let Some(gap) = covered.gaps(part).into_iter().next() {
                            covered.insert(gap.clone());
                            running.push(Running { id: running.len() as u64, left: gap });
                        }
                    }
                    let wants = wants.into_iter().map(|(at, n)| at..at.saturating_add(n)).collect();
                    (length, come, running, wants, whole, width, most)
                },
            )
        })
    }

    proptest! {
        /// Done step by step until nothing is to be done, with requests that end in any order: nothing is asked for twice,
        /// all that is wanted comes, and never more requests run than may.
        #[test]
        fn everything_wanted_comes_and_nothing_twice(
            (length, mut come, mut running, wants, whole, width, most) in blob(),
            order in prop::collection::vec(any::<prop::sample::Index>(), 64),
        ) {
            let mut next = 100;
            running.truncate(most);
            let mut order = order.into_iter().cycle();
            for turn in 0.. {
                prop_assert!(turn < 2000, "it ends");
                let situation = Situation {
                    length, come: &come, running: &running, wants: &wants, whole, width, most,
                };
                for step in plan(&situation) {
                    match step {
                        Step::Shorten { id, end } => {
                            let one = running.iter_mut().find(|one| one.id == id).unwrap();
                            prop_assert!(one.left.contains(&end) && end > one.left.start, "{one:?} to {end}");
                            one.left.end = end;
                        }
                        Step::Stop(id) => {
                            let before = running.len();
                            running.retain(|one| one.id != id);
                            prop_assert_eq!(running.len(), before - 1);
                        }
                        Step::Start(part) => {
                            prop_assert!(!part.is_empty() && part.end <= length, "{part:?} of {length}");
                            prop_assert!(come.gaps(part.clone()) == vec![part.clone()], "it is there: {part:?} {come:?}");
                            for one in &running {
                                prop_assert!(!overlap(&one.left, &part), "{part:?} over {one:?}");
                            }
                            running.push(Running { id: next, left: part });
                            next += 1;
                        }
                    }
                }
                prop_assert!(running.len() <= most, "{} of {most}", running.len());
                running.retain(|one| !one.left.is_empty());
                if running.is_empty() {
                    break;
                }
                let one = running.swap_remove(order.next().unwrap().index(running.len()));
                come.insert(one.left);
            }
            for want in &wants {
                prop_assert!(come.contains(&(want.start..want.end.min(length).max(want.start))), "{want:?} in {come:?}");
            }
            if whole {
                prop_assert!(come.contains(&(0..length)));
            }
        }

        /// Readers come, read on and leave, requests bring some bytes, break off and end, in any order, and each time it is
        /// decided anew: nothing is ever asked for twice, no more requests run than may, and whoever stays gets all of its part.
        #[test]
        fn readers_come_and_go(
            length in prop_oneof![1_u64..2_000_000, 1_u64..300_000_000],
            (whole, width, most) in (any::<bool>(), 1_usize..4, 1_usize..5),
            happenings in prop::collection::vec((0_u8..7, any::<usize>(), prop_oneof![0_u64..2_000_000, 0_u64..50_000_000]), 1..120),
        ) {
            let mut come = ByteRanges::default();
            let mut asked = ByteRanges::default();
            let (mut running, mut wants): (Vec<Running>, Vec<Range<u64>>) = (Vec::new(), Vec::new());
            let mut next = 0;
            let mut happenings = happenings.into_iter();
            for turn in 0.. {
                prop_assert!(turn < 20_000, "it ends");
                let situation = Situation { length, come: &come, running: &running, wants: &wants, whole, width, most };
                for step in plan(&situation) {
                    match step {
                        Step::Shorten { id, end } => {
                            let one = running.iter_mut().find(|one| one.id == id).unwrap();
                            asked.remove(&(end..one.left.end));
                            one.left.end = end;
                        }
                        Step::Stop(id) => {
                            let index = running.iter().position(|one| one.id == id).unwrap();
                            asked.remove(&running.swap_remove(index).left);
                        }
                        Step::Start(part) => {
                            prop_assert_eq!(asked.gaps(part.clone()), vec![part.clone()], "it was asked for already");
                            asked.insert(part.clone());
                            running.push(Running { id: next, left: part });
                            next += 1;
                        }
                    }
                }
                running.retain(|one| !one.left.is_empty());
                prop_assert!(running.len() <= most);
                // When nothing more happens, all that runs ends.
                let (kind, which, bytes) = match happenings.next() {
                    Some(happening) => happening,
                    None if running.is_empty() => break,
                    None => (6, 0, length),
                };
                match kind {
                    0 => wants.push(bytes.min(length - 1)..(bytes + 1 + bytes / 3).min(length)),
                    1 => wants.push(bytes.min(length - 1)..OPEN),
                    2 if !wants.is_empty() => {
                        wants.swap_remove(which % wants.len());
                    }
                    3 if !wants.is_empty() => {
                        let index = which % wants.len();
                        let want = &mut wants[index];
                        // A reader gets no further than what is there.
                        want.start = come.end_of_run(want.start).min(want.start + bytes).min(want.end);
                    }
                    // One breaks off for good: what it did not bring is asked for again.
                    4 if !running.is_empty() => {
                        asked.remove(&running.swap_remove(which % running.len()).left);
                    }
                    _ if !running.is_empty() => {
                        let index = which % running.len();
                        let one = &mut running[index];
                        let at = (one.left.start + bytes + 1).min(one.left.end);
                        come.insert(one.left.start..at);
                        one.left.start = at;
                        running.retain(|one| !one.left.is_empty());
                    }
                    _ => {}
                }
            }
            for want in &wants {
                let part = want.start..want.end.min(length).max(want.start);
                prop_assert!(come.contains(&part), "{part:?} in {come:?}");
            }
            prop_assert!(!whole || come.contains(&(0..length)));
        }
    }
}
