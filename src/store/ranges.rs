//! Which bytes of a file are there: sorted ranges that neither touch nor overlap.

use std::ops::Range;

/// A set of bytes. Few ranges, however many bytes: as many as there are places at which a file is written at once.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ByteRanges(Vec<Range<u64>>);

/// What was read is no such set: it is not in order, or has ranges that are empty, touch or overlap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("these are no ranges in order")]
pub struct NotRanges;

// === impl ByteRanges ===

impl ByteRanges {
    /// Adds these.
    pub fn insert(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        // Those that it touches become one with it.
        let first = self.0.partition_point(|run| run.end < range.start);
        let last = self.0.partition_point(|run| run.start <= range.end);
        let Some(touched) = self.0.get(first..last).filter(|touched| !touched.is_empty()) else {
            return self.0.insert(first, range);
        };
        let start = touched.first().map_or(range.start, |run| run.start.min(range.start));
        let end = touched.last().map_or(range.end, |run| run.end.max(range.end));
        self.0.splice(first..last, std::iter::once(start..end));
    }

    /// Takes these away.
    pub fn remove(&mut self, range: &Range<u64>) {
        if range.is_empty() {
            return;
        }
        let first = self.0.partition_point(|run| run.end <= range.start);
        let last = self.0.partition_point(|run| run.start < range.end);
        let Some(cut) = self.0.get(first..last).filter(|cut| !cut.is_empty()) else { return };
        let before = cut.first().map(|run| run.start..range.start).filter(|run| !run.is_empty());
        let after = cut.last().map(|run| range.end..run.end).filter(|run| !run.is_empty());
        self.0.splice(first..last, before.into_iter().chain(after));
    }

    /// Whether all of them are there. None are there always.
    pub fn contains(&self, range: &Range<u64>) -> bool {
        range.is_empty() || self.end_of_run(range.start) >= range.end
    }

    /// The end of the run that holds the byte `at`; `at` itself where that byte is not there.
    pub fn end_of_run(&self, at: u64) -> u64 {
        let next = self.0.partition_point(|run| run.end <= at);
        self.0.get(next).filter(|run| run.start <= at).map_or(at, |run| run.end)
    }

    /// The start of the first range that begins at `at` or after it.
    pub fn next_start(&self, at: u64) -> Option<u64> {
        let next = self.0.partition_point(|run| run.start < at);
        self.0.get(next).map(|run| run.start)
    }

    /// What is missing of these.
    pub fn gaps(&self, range: Range<u64>) -> Vec<Range<u64>> {
        let (mut gaps, mut at) = (Vec::new(), range.start);
        let first = self.0.partition_point(|run| run.end <= range.start);
        for run in self.0.get(first..).unwrap_or_default() {
            if at >= range.end || run.start >= range.end {
                break;
            }
            if at < run.start {
                gaps.push(at..run.start);
            }
            at = run.end;
        }
        if at < range.end {
            gaps.push(at..range.end);
        }
        gaps
    }

    /// How many bytes they are.
    pub fn total(&self) -> u64 {
        self.iter().map(|run| run.end - run.start).sum()
    }

    /// Where the last one ends; 0 if there are none.
    pub fn end(&self) -> u64 {
        self.0.last().map_or(0, |run| run.end)
    }

    /// The ranges, in order.
    pub fn iter(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        self.0.iter().cloned()
    }

    /// How many ranges there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl From<Range<u64>> for ByteRanges {
    fn from(range: Range<u64>) -> Self {
        let mut ranges = Self::default();
        ranges.insert(range);
        ranges
    }
}

impl TryFrom<Vec<(u64, u64)>> for ByteRanges {
    type Error = NotRanges;

    /// From what a file says, which may be anything.
    fn try_from(pairs: Vec<(u64, u64)>) -> Result<Self, NotRanges> {
        let are_full = pairs.iter().all(|(start, end)| start < end);
        let are_apart = pairs.iter().zip(pairs.iter().skip(1)).all(|((_, end), (next, _))| end < next);
        let ranges = || pairs.into_iter().map(|(start, end)| start..end).collect();
        if are_full && are_apart { Ok(Self(ranges())) } else { Err(NotRanges) }
    }
}

impl From<&ByteRanges> for Vec<(u64, u64)> {
    fn from(ranges: &ByteRanges) -> Self {
        ranges.iter().map(|run| (run.start, run.end)).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use proptest::prelude::*;

    /// The bytes that the model has.
    const BYTES: u64 = 48;

    #[derive(Debug, Clone)]
    enum Step {
        Insert(Range<u64>),
        Remove(Range<u64>),
    }

    fn range() -> impl Strategy<Value = Range<u64>> {
        (0..BYTES, 0..BYTES).prop_map(|(start, len)| start..(start + len / 4).min(BYTES))
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![3 => range().prop_map(Step::Insert), 1 => range().prop_map(Step::Remove)]
    }

    fn pairs(ranges: &ByteRanges) -> Vec<(u64, u64)> {
        ranges.into()
    }

    #[test]
    fn what_touches_becomes_one_and_what_is_cut_two() {
        let mut ranges = ByteRanges::default();
        for range in [10..20, 30..40, 0..5, 40..41, 7..7] {
            ranges.insert(range);
        }
        assert_eq!(pairs(&ranges), [(0, 5), (10, 20), (30, 41)]);
        ranges.insert(20..30);
        assert_eq!(pairs(&ranges), [(0, 5), (10, 41)]);
        ranges.remove(&(12..15));
        assert_eq!(pairs(&ranges), [(0, 5), (10, 12), (15, 41)]);
        assert_eq!((ranges.len(), ranges.total(), ranges.end()), (3, 33, 41));
        assert_eq!(ranges.gaps(3..50), [5..10, 12..15, 41..50]);
        assert_eq!(ByteRanges::from(3..4), ByteRanges::try_from(vec![(3, 4)]).unwrap());
        let all = ByteRanges::from(0..u64::MAX);
        assert!(all.contains(&(1..u64::MAX)) && all.total() == u64::MAX);
    }

    #[test]
    fn what_is_not_in_order_is_refused() {
        for wrong in [
            vec![(0, 0)],
            vec![(5, 4)],
            vec![(0, 5), (5, 6)],
            vec![(0, 5), (4, 6)],
            vec![(8, 9), (0, 1)],
            vec![(0, 9), (1, 2)],
        ] {
            assert_eq!(ByteRanges::try_from(wrong.clone()), Err(NotRanges), "{wrong:?}");
        }
        assert!(ByteRanges::try_from(Vec::new()).unwrap().is_empty());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]
        #[test]
        fn they_are_a_set_of_bytes(steps in proptest::collection::vec(step(), 0..24), asked in range()) {
            let (mut ranges, mut model) = (ByteRanges::default(), BTreeSet::new());
            for step in steps {
                match step {
                    Step::Insert(range) => {
                        model.extend(range.clone());
                        ranges.insert(range);
                    }
                    Step::Remove(range) => {
                        model.retain(|byte| !range.contains(byte));
                        ranges.remove(&range);
                    }
                }
                prop_assert_eq!(&ByteRanges::try_from(pairs(&ranges)).unwrap(), &ranges, "in order, and apart");
            }
            let bytes: BTreeSet<u64> = ranges.iter().flatten().collect();
            prop_assert_eq!(&bytes, &model);
            prop_assert_eq!((ranges.total(), ranges.is_empty()), (model.len() as u64, model.is_empty()));
            prop_assert_eq!(ranges.end(), model.last().map_or(0, |last| last + 1));
            prop_assert_eq!(ranges.contains(&asked), asked.clone().all(|byte| model.contains(&byte)));
            let missing: Vec<u64> = asked.clone().filter(|byte| !model.contains(byte)).collect();
            let gaps = ranges.gaps(asked.clone());
            prop_assert!(gaps.iter().all(|gap| !gap.is_empty()));
            prop_assert_eq!(gaps.into_iter().flatten().collect::<Vec<u64>>(), missing);
            let at = asked.start;
            prop_assert_eq!(ranges.end_of_run(at), (at..=BYTES).find(|byte| !model.contains(byte)).unwrap());
            let starts = |byte: &u64| model.contains(byte) && (*byte == 0 || !model.contains(&(byte - 1)));
            prop_assert_eq!(ranges.next_start(at), (at..BYTES).find(starts));
        }
    }
}
