//! What of a blob is asked for first, before its fill knows more than what one reader wants.

use std::ops::Range;

use super::plan::{BLOCK, NEAR};
use super::supply::Part;
use crate::config::RangeFill;
use crate::store::ByteRanges;

/// What a fill begins with, where `wanted` is wanted first. `waits`: no part is handed out before all is there. Where all of
/// it is to come anyway, what begins near its start comes soon enough.
pub(super) fn begins_with(wanted: Part, range_fill: RangeFill, waits: bool) -> Part {
    let is_near = matches!(wanted, Part::From(from, None) if from <= NEAR);
    if waits || (is_near && range_fill == RangeFill::Always) { Part::Whole } else { in_blocks(wanted) }
}

/// The same in whole blocks, so that neighbours meet.
fn in_blocks(part: Part) -> Part {
    match part {
        Part::From(from, until) => {
            Part::From(from - from % BLOCK, until.map(|until| until.checked_next_multiple_of(BLOCK).unwrap_or(until)))
        }
        part => part,
    }
}

/// What of `wanted` is missing first, where an earlier fill has left these bytes of a blob of this length.
pub(super) fn missing_first(wanted: Part, present: &ByteRanges, length: u64) -> Part {
    let within = match wanted {
        Part::Whole => 0..length,
        Part::From(from, until) => from.min(length)..until.unwrap_or(length).min(length),
        Part::Last(bytes) => length.saturating_sub(bytes)..length,
    };
    let part = |gap: Range<u64>| Part::From(gap.start, (gap.end < length).then_some(gap.end));
    if let Some(gap) = present.gaps(within).into_iter().next() {
        return part(gap);
    }
    // All that is wanted is there. Upstream is asked all the same, whether it may be given out, for as little as possible.
    let missing = present.gaps(0..length).into_iter().next();
    missing
        .map_or(Part::From(length.saturating_sub(BLOCK), None), |gap| part(gap.start..gap.end.min(gap.start + BLOCK)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_asked_for_in_blocks_and_what_is_near_the_start_as_the_whole() {
        let begins = |part, range_fill| begins_with(part, range_fill, false);
        assert_eq!(begins(Part::From(5000, Some(6000)), RangeFill::Always), Part::From(4096, Some(8192)));
        assert_eq!(begins(Part::From(NEAR, None), RangeFill::Always), Part::Whole);
        assert_eq!(begins(Part::From(NEAR, None), RangeFill::Never), Part::From(NEAR, None));
        assert_eq!(begins(Part::From(NEAR + 1, None), RangeFill::Always), Part::From(NEAR, None));
        assert_eq!(begins(Part::Last(5), RangeFill::Always), Part::Last(5));
        assert_eq!(begins_with(Part::From(5000, Some(6000)), RangeFill::Never, true), Part::Whole);
    }

    #[test]
    fn what_is_missing_is_asked_for_and_a_block_where_nothing_is() {
        let length = 10 * BLOCK + 7;
        let mut present = ByteRanges::default();
        present.insert(BLOCK..3 * BLOCK);
        let missing = |part| missing_first(part, &present, length);
        assert_eq!(missing(Part::Whole), Part::From(0, Some(BLOCK)));
        assert_eq!(missing(Part::From(BLOCK, Some(4 * BLOCK))), Part::From(3 * BLOCK, Some(4 * BLOCK)));
        assert_eq!(missing(Part::From(2 * BLOCK, None)), Part::From(3 * BLOCK, None), "to the end");
        assert_eq!(missing(Part::Last(7)), Part::From(length - 7, None));
        assert_eq!(missing(Part::From(BLOCK, Some(2 * BLOCK))), Part::From(0, Some(BLOCK)), "it is all there");
        present.insert(0..length);
        assert_eq!(missing_first(Part::Whole, &present, length), Part::From(length - BLOCK, None));
    }
}
