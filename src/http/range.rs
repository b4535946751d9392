//! Byte ranges: which parts of a blob a request wants, and how several of them are framed (RFC 9110, section 14).
//!
//! Pure: the body that sends the bytes lives elsewhere.
#![warn(clippy::indexing_slicing)]

use std::ops::Range;

use bytes::Bytes;
use http::HeaderValue;

/// More ranges than this are not honoured: the answer is the whole blob (RFC 9110, 14.2 allows to ignore them). containers/image
/// asks for so many parts of a zstd:chunked layer in one request.
pub const MAX_RANGES: usize = 1024;

/// Which bytes to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ranges {
    /// Everything, with 200: no range, one that is to be ignored, or an empty blob.
    Whole,
    /// One part, with 206; never empty, within the blob.
    One(Range<u64>),
    /// At least two parts, with 206 and [`Multipart`]; in the order asked, not empty, within the blob, disjoint.
    Many(Vec<Range<u64>>),
    /// None of it is there: 416 with [`unsatisfied`].
    Unsatisfiable,
}

/// The framing of a `multipart/byteranges` answer (RFC 9110, section 14.6): each part is its head, then its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Multipart {
    boundary: String,
    /// In the order of sending.
    pub parts: Vec<Part>,
    /// What follows the last part's bytes.
    pub trailer: Bytes,
}

/// One part of a [`Multipart`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// Delimiter and header fields, sent before the bytes.
    pub head: Bytes,
    /// The bytes of the blob.
    pub range: Range<u64>,
}

/// What a request wants first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum First {
    /// From this byte on.
    From(u64),
    /// From this byte on, before the other.
    Between(u64, u64),
    /// So many bytes at the end.
    Last(u64),
}

/// One element of a `Range` field, before the length is known.
enum Spec {
    From(u64),
    Between(u64, u64),
    Last(u64),
}

// === impl Ranges ===

/// What the `Range` field of a GET means for a blob of `len` bytes. (It means nothing for other methods.)
///
/// A unit other than `bytes` and a field outside the grammar are ignored. A range that ends before it starts is
/// refused like one beyond the end: RFC 9110 leaves the choice, and so the client learns of its mistake. Overlapping
/// ranges are merged; adjacent ones are not, because clients count the parts.
pub fn parse(header: Option<&HeaderValue>, len: u64) -> Ranges {
    let Some(set) = header.and_then(|value| value.to_str().ok()).and_then(bytes_unit) else { return Ranges::Whole };
    // Some clients send `bytes=0-` with every request; of an empty blob there is nothing to refuse.
    if len == 0 {
        return Ranges::Whole;
    }
    let mut wanted: Vec<Range<u64>> = Vec::new();
    let mut seen = 0;
    for element in set.split(',').map(|element| element.trim_matches([' ', '\t'])) {
        // A list may have empty elements (RFC 9110, 5.6.1.2).
        if element.is_empty() {
            continue;
        }
        seen += 1;
        let Some(spec) = Spec::parse(element) else { return Ranges::Whole };
        if seen > MAX_RANGES {
            return Ranges::Whole;
        }
        match spec {
            Spec::Between(first, last) if last < first => return Ranges::Unsatisfiable,
            spec => wanted.extend(spec.resolve(len)),
        }
    }
    let mut wanted = merge(wanted);
    match (seen, wanted.len()) {
        (0, _) => Ranges::Whole,
        (_, 0) => Ranges::Unsatisfiable,
        (_, 1) => wanted.pop().map_or(Ranges::Unsatisfiable, Ranges::One),
        _ => Ranges::Many(wanted),
    }
}

/// What a GET wants first of a blob whose length is not known yet; none: all of it, or what makes no sense.
pub fn first(header: Option<&HeaderValue>) -> Option<First> {
    let set = header.and_then(|value| value.to_str().ok()).and_then(bytes_unit)?;
    let mut elements = set.split(',').map(|element| element.trim_matches([' ', '\t'])).filter(|one| !one.is_empty());
    let first = Spec::parse(elements.next()?)?;
    if elements.count() >= MAX_RANGES {
        return None;
    }
    match first {
        Spec::From(from) => Some(First::From(from)),
        Spec::Between(from, last) if from <= last => Some(First::Between(from, last.checked_add(1)?)),
        Spec::Between(..) | Spec::Last(0) => None,
        Spec::Last(count) => Some(First::Last(count)),
    }
}

/// Whether the ranges of a request with this `If-Range` field hold for content with this strong `ETag` (quotes
/// included). A date never matches: a blob has none. A weak tag never matches (RFC 9110, 13.1.5).
pub fn if_range(header: Option<&HeaderValue>, etag: &str) -> bool {
    header.is_none_or(|value| !etag.starts_with("W/") && value.as_bytes() == etag.as_bytes())
}

/// The `Content-Range` of a part: `bytes 0-499/1234`; the range is not empty.
pub fn content_range(range: &Range<u64>, len: u64) -> String {
    format!("bytes {}-{}/{len}", range.start, range.end.saturating_sub(1))
}

/// The `Content-Range` of a 416.
pub fn unsatisfied(len: u64) -> String {
    format!("bytes */{len}")
}

fn bytes_unit(value: &str) -> Option<&str> {
    let (unit, set) = value.split_once('=')?;
    unit.trim().eq_ignore_ascii_case("bytes").then_some(set)
}

/// Merges what overlaps into the place of the earliest of them; the rest keeps its order. At most [`MAX_RANGES`], so
/// the square of their number is small.
fn merge(ranges: Vec<Range<u64>>) -> Vec<Range<u64>> {
    let mut merged: Vec<Range<u64>> = Vec::with_capacity(ranges.len());
    for mut range in ranges {
        let mut place = merged.len();
        while let Some(index) = merged.iter().position(|other| other.start < range.end && range.start < other.end) {
            let other = merged.remove(index);
            range = range.start.min(other.start)..range.end.max(other.end);
            place = place.min(index);
        }
        merged.insert(place.min(merged.len()), range);
    }
    merged
}

// === impl Spec ===

impl Spec {
    fn parse(text: &str) -> Option<Self> {
        let (first, last) = text.split_once('-')?;
        Some(match (first.is_empty(), last.is_empty()) {
            (true, true) => return None,
            (true, false) => Self::Last(number(last)?),
            (false, true) => Self::From(number(first)?),
            (false, false) => Self::Between(number(first)?, number(last)?),
        })
    }

    /// The bytes of a blob that is not empty; none if they lie beyond its end.
    fn resolve(&self, len: u64) -> Option<Range<u64>> {
        let range = match *self {
            Self::From(first) => first..len,
            Self::Between(first, last) => first..last.saturating_add(1).min(len),
            Self::Last(count) => len.saturating_sub(count)..len,
        };
        (!range.is_empty()).then_some(range)
    }
}

/// Digits; a number too large for any blob counts as the largest.
fn number(text: &str) -> Option<u64> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    Some(text.parse().unwrap_or(u64::MAX))
}

// === impl Multipart ===

impl Multipart {
    /// The framing of `ranges` of a blob of `len` bytes and this media type.
    pub fn new(ranges: Vec<Range<u64>>, len: u64, content_type: &str) -> Self {
        // Unguessable, lest content could be made that contains it.
        Self::with_boundary(ranges, len, content_type, format!("{:032x}", fastrand::u128(..)))
    }

    fn with_boundary(ranges: Vec<Range<u64>>, len: u64, content_type: &str, boundary: String) -> Self {
        let parts = ranges.into_iter().enumerate().map(|(index, range)| {
            // The line break before a delimiter belongs to it; nothing stands before the first.
            let line_break = if index == 0 { "" } else { "\r\n" };
            let content_range = content_range(&range, len);
            let fields = format!("Content-Type: {content_type}\r\nContent-Range: {content_range}\r\n\r\n");
            Part { head: format!("{line_break}--{boundary}\r\n{fields}").into(), range }
        });
        Self { parts: parts.collect(), trailer: format!("\r\n--{boundary}--\r\n").into(), boundary }
    }

    /// The `Content-Type` of the answer.
    pub fn content_type(&self) -> String {
        format!("multipart/byteranges; boundary={}", self.boundary)
    }

    /// The exact `Content-Length` of the answer.
    pub fn content_length(&self) -> u64 {
        let part =
            |part: &Part| (part.head.len() as u64).saturating_add(part.range.end.saturating_sub(part.range.start));
        self.parts.iter().map(part).fold(self.trailer.len() as u64, u64::saturating_add)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ranges(header: &str, len: u64) -> Ranges {
        parse(Some(&HeaderValue::from_str(header).unwrap()), len)
    }

    #[test]
    fn what_is_wanted_first() {
        let first = |text: &str| first(Some(&HeaderValue::from_str(text).unwrap()));
        assert_eq!(first("bytes=5-"), Some(First::From(5)));
        assert_eq!(first("bytes=5-9, 0-1"), Some(First::Between(5, 10)));
        assert_eq!(first("bytes=,-7"), Some(First::Last(7)));
        for text in ["bytes=9-5", "bytes=-0", "bytes=", "bytes=x", "lines=1-2", "bytes=0-18446744073709551615"] {
            assert_eq!(first(text), None, "{text}");
        }
        assert_eq!(super::first(None), None);
        assert_eq!(first(&format!("bytes={}", vec!["0-1"; MAX_RANGES].join(","))), Some(First::Between(0, 2)));
        assert_eq!(
            first(&format!("bytes={}", vec!["0-1"; MAX_RANGES + 1].join(","))),
            None,
            "it is ignored as a whole"
        );
    }

    #[test]
    fn ranges_of_the_conformance_suite() {
        assert_eq!(ranges("bytes=500-1499", 2048), Ranges::One(500..1500));
        assert_eq!(ranges("bytes=500-", 2048), Ranges::One(500..2048));
        assert_eq!(ranges("bytes=-500", 2048), Ranges::One(1548..2048));
        assert_eq!(ranges("bytes=1000-5000", 2048), Ranges::One(1000..2048), "clamped to the end");
        assert_eq!(ranges("bytes=500-0", 2048), Ranges::Unsatisfiable, "ends before it starts");
        assert_eq!(ranges("bytes=5000-10000", 2048), Ranges::Unsatisfiable, "beyond the end");
    }

    #[test]
    fn what_is_not_a_byte_range_is_ignored() {
        for header in [
            "",
            "bytes",
            "bytes=",
            "bytes=,",
            "items=0-1",
            "bytes=a-b",
            "bytes=1",
            "bytes=-",
            "bytes=+1-2",
            "bytes=0-1,x",
        ] {
            assert_eq!(ranges(header, 10), Ranges::Whole, "{header:?}");
        }
        assert_eq!(parse(None, 10), Ranges::Whole);
        assert_eq!(parse(Some(&HeaderValue::from_bytes(b"bytes=0-\xff").unwrap()), 10), Ranges::Whole);
    }

    #[test]
    fn corners() {
        assert_eq!(ranges("bytes=0-", 0), Ranges::Whole, "an empty blob is sent whole");
        assert_eq!(ranges("bytes=0-0", 1), Ranges::One(0..1));
        assert_eq!(ranges("bytes=10-", 10), Ranges::Unsatisfiable);
        assert_eq!(ranges("bytes=-0", 10), Ranges::Unsatisfiable);
        assert_eq!(ranges("bytes=-99", 10), Ranges::One(0..10), "a suffix longer than the blob is the blob");
        assert_eq!(ranges("Bytes = 1-2", 10), Ranges::One(1..3), "the unit is case-insensitive");
        let huge = "9".repeat(40);
        assert_eq!(ranges(&format!("bytes=1-{huge}"), 10), Ranges::One(1..10));
        assert_eq!(ranges(&format!("bytes={huge}-"), 10), Ranges::Unsatisfiable);
        assert_eq!(ranges(&format!("bytes=-{huge}"), 10), Ranges::One(0..10));
    }

    #[test]
    fn several_ranges() {
        assert_eq!(ranges("bytes=8-9, 0-1", 10), Ranges::Many(vec![8..10, 0..2]), "in the order asked");
        assert_eq!(ranges("bytes=0-1,2-3", 10), Ranges::Many(vec![0..2, 2..4]), "adjacent ones stay apart");
        assert_eq!(ranges("bytes=0-1,50-", 10), Ranges::One(0..2), "what is not there is left out");
        assert_eq!(ranges("bytes=4-5,0-1,1-4", 10), Ranges::One(0..6), "overlapping ones are merged");
        assert_eq!(ranges("bytes=50-,60-", 10), Ranges::Unsatisfiable);
        let many = |count: usize| {
            let list: Vec<String> = (0..count).map(|i| format!("{0}-{0}", i * 2)).collect();
            ranges(&format!("bytes={}", list.join(",")), 10_000)
        };
        assert!(matches!(many(MAX_RANGES), Ranges::Many(list) if list.len() == MAX_RANGES));
        assert_eq!(many(MAX_RANGES + 1), Ranges::Whole, "more than the limit");
    }

    #[test]
    fn if_range_is_a_strong_comparison() {
        let etag = "\"sha256:abc\"";
        assert!(if_range(None, etag));
        assert!(if_range(Some(&HeaderValue::from_static("\"sha256:abc\"")), etag));
        for other in ["\"sha256:abd\"", "W/\"sha256:abc\"", "sha256:abc", "Wed, 21 Oct 2015 07:28:00 GMT"] {
            assert!(!if_range(Some(&HeaderValue::from_str(other).unwrap()), etag), "{other}");
        }
        assert!(!if_range(Some(&HeaderValue::from_static("W/\"a\"")), "W/\"a\""), "a weak tag matches nothing");
    }

    #[test]
    fn content_range_fields() {
        assert_eq!(content_range(&(0..500), 1234), "bytes 0-499/1234");
        assert_eq!(unsatisfied(1234), "bytes */1234");
    }

    #[test]
    fn framing_is_that_of_the_rfc_and_its_length_is_exact() {
        let content = b"0123456789";
        let plan = Multipart::with_boundary(vec![0..2, 7..10], 10, "application/octet-stream", "B".to_owned());
        let mut body = Vec::new();
        for part in &plan.parts {
            body.extend_from_slice(&part.head);
            let (start, end) = (usize::try_from(part.range.start).unwrap(), usize::try_from(part.range.end).unwrap());
            body.extend_from_slice(content.get(start..end).unwrap());
        }
        body.extend_from_slice(&plan.trailer);
        assert_eq!(body.len() as u64, plan.content_length());
        assert_eq!(plan.content_type(), "multipart/byteranges; boundary=B");
        assert_eq!(
            String::from_utf8(body).unwrap(),
            "--B\r\nContent-Type: application/octet-stream\r\nContent-Range: bytes 0-1/10\r\n\r\n01\
             \r\n--B\r\nContent-Type: application/octet-stream\r\nContent-Range: bytes 7-9/10\r\n\r\n789\
             \r\n--B--\r\n"
        );
    }

    /// The set of positions that the ranges ask for, position by position.
    fn naive(specs: &[(Option<u64>, Option<u64>)], len: u64) -> Vec<bool> {
        let mut wanted = vec![false; usize::try_from(len).unwrap()];
        for (position, flag) in (0..).zip(wanted.iter_mut()) {
            *flag = specs.iter().any(|spec| match *spec {
                (Some(first), Some(last)) => first <= position && position <= last,
                (Some(first), None) => first <= position,
                (None, Some(count)) => position + count >= len,
                (None, None) => false,
            });
        }
        wanted
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(10_000))]

        #[test]
        fn the_parts_are_what_was_asked(
            specs in prop::collection::vec(
                (prop::option::of(0_u64..40), prop::option::of(0_u64..40))
                    .prop_filter("some number, in order", |(a, b)| (a.is_some() || b.is_some()) && !matches!((a, b), (Some(a), Some(b)) if b < a)),
                1..8,
            ),
            len in 1_u64..32,
        ) {
            let text = |n: &Option<u64>| n.map(|n| n.to_string()).unwrap_or_default();
            let list: Vec<String> = specs.iter().map(|(a, b)| format!("{}-{}", text(a), text(b))).collect();
            let parts = match ranges(&format!("bytes={}", list.join(",")), len) {
                Ranges::Whole => return Err(TestCaseError::fail("a valid set was ignored")),
                Ranges::One(range) => vec![range],
                Ranges::Many(parts) => { prop_assert!(parts.len() > 1); parts }
                Ranges::Unsatisfiable => vec![],
            };
            let mut sent = vec![0_u32; usize::try_from(len).unwrap()];
            for part in &parts {
                prop_assert!(part.start < part.end && part.end <= len, "{part:?} of {len}");
                for position in part.clone() {
                    *sent.get_mut(usize::try_from(position).unwrap()).unwrap() += 1;
                }
            }
            let expected: Vec<u32> = naive(&specs, len).into_iter().map(u32::from).collect();
            prop_assert_eq!(sent, expected);
        }

        #[test]
        fn no_field_makes_it_panic(field in "[ -~]{0,60}", len in any::<u64>()) {
            match ranges(&field, len) {
                Ranges::One(range) => prop_assert!(range.start < range.end && range.end <= len),
                Ranges::Many(parts) => {
                    prop_assert!(parts.iter().all(|range| range.start < range.end && range.end <= len));
                    let total = Multipart::new(parts, len, "a/b").content_length();
                    prop_assert!(total > 0);
                }
                Ranges::Whole | Ranges::Unsatisfiable => {}
            }
        }
    }
}
