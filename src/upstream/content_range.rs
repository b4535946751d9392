//! Which bytes a 206 brings: `Content-Range` (RFC 9110, 14.4).
#![warn(clippy::indexing_slicing)]

use std::fmt;
use std::ops::Range;

use http::HeaderMap;
use http::header::CONTENT_RANGE;

/// A part of a representation, as the answer names it. Never empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ContentRange {
    /// The first byte, counted from 0.
    pub start: u64,
    /// The byte after the last one; more than `start`.
    pub end: u64,
    /// Length of the whole, at least `end`; none: the answer does not know it (`*`).
    pub total: Option<u64>,
}

/// What a `Range` header of one part asks for (RFC 9110, 14.1.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// From this byte on, up to and with the other, or to the end.
    From(u64, Option<u64>),
    /// So many bytes at the end.
    Suffix(u64),
}

// === impl ContentRange ===

impl ContentRange {
    /// The only `Content-Range` of an answer; none: there is none, there are several, or it makes no sense.
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        let mut values = headers.get_all(CONTENT_RANGE).iter();
        let value = values.next()?;
        if values.next().is_some() {
            return None;
        }
        Self::parse(value.to_str().ok()?)
    }

    /// `bytes FIRST-LAST/TOTAL` or `bytes FIRST-LAST/*`. Nothing else is taken for a range: by a wrong one bytes would be
    /// written to a wrong place.
    pub fn parse(text: &str) -> Option<Self> {
        let (unit, rest) = text.split_once(' ')?;
        if !unit.eq_ignore_ascii_case("bytes") {
            return None;
        }
        let (range, total) = rest.split_once('/')?;
        let (first, last) = range.split_once('-')?;
        let (start, end) = (number(first)?, number(last)?.checked_add(1)?);
        let total = if total == "*" { None } else { Some(number(total)?) };
        (start < end && total.is_none_or(|total| end <= total)).then_some(Self { start, end, total })
    }

    /// How many bytes it has.
    #[expect(clippy::len_without_is_empty, reason = "it never is")]
    pub const fn len(&self) -> u64 {
        self.end - self.start
    }

    /// Its bytes.
    pub const fn bytes(&self) -> Range<u64> {
        self.start..self.end
    }

    /// Whether this answers what was asked for: it begins there and does not bring more. That it ends earlier is upstream's
    /// right (RFC 9110, 15.3.7).
    pub(crate) fn answers(&self, part: Part) -> bool {
        match part {
            Part::From(first, last) => self.start == first && last.is_none_or(|last| self.end - 1 <= last),
            Part::Suffix(bytes) => match self.total {
                Some(total) => self.start == total.saturating_sub(bytes),
                None => self.len() <= bytes,
            },
        }
    }
}

/// As it stands in the header.
impl fmt::Display for ContentRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "bytes {}-{}/", self.start, self.end - 1)?;
        match self.total {
            Some(total) => total.fmt(f),
            None => f.write_str("*"),
        }
    }
}

// === impl Part ===

impl Part {
    /// What a `Range` header asks for; none: it is not a single range of bytes.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (first, last) = text.strip_prefix("bytes=")?.split_once('-')?;
        match (first, last) {
            ("", bytes) => number(bytes).map(Self::Suffix),
            (first, "") => Some(Self::From(number(first)?, None)),
            (first, last) => Some(Self::From(number(first)?, Some(number(last)?))),
        }
    }
}

/// As it stands in the header.
impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::From(first, Some(last)) => write!(f, "bytes={first}-{last}"),
            Self::From(first, None) => write!(f, "bytes={first}-"),
            Self::Suffix(bytes) => write!(f, "bytes=-{bytes}"),
        }
    }
}

/// Digits alone: `parse` would take a sign too.
fn number(text: &str) -> Option<u64> {
    if text.bytes().all(|b| b.is_ascii_digit()) { text.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ranges_that_are_right() {
        let range = |start, end, total| Some(ContentRange { start, end, total });
        assert_eq!(ContentRange::parse("bytes 0-0/1"), range(0, 1, Some(1)));
        assert_eq!(ContentRange::parse("bytes 5-9/10"), range(5, 10, Some(10)));
        assert_eq!(ContentRange::parse("Bytes 5-9/*"), range(5, 10, None));
        assert_eq!(ContentRange::parse("bytes 5-9/10").unwrap().len(), 5);
        assert_eq!(ContentRange::parse("bytes 5-9/10").unwrap().bytes(), 5..10);
    }

    #[test]
    fn ranges_that_are_wrong() {
        for text in [
            "",
            "bytes",
            "bytes ",
            "bytes */10",
            "bytes 5-4/10",
            "bytes 5-9/9",
            "bytes 5-9",
            "bytes 5-/10",
            "bytes -9/10",
            "bytes 5-9/",
            "bytes 5-9/1x",
            "bytes +5-9/10",
            "bytes 5-9/+10",
            "bytes  5-9/10",
            "bytes 5 - 9/10",
            "bytes 5-9/10 ",
            "bytes=5-9/10",
            "bytes 5-9/10/10",
            "bytes 5-9-9/10",
            "items 5-9/10",
            "bytes 0-18446744073709551615/*",
            "bytes 0-99999999999999999999/*",
        ] {
            assert_eq!(ContentRange::parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn an_answer_has_one_range() {
        let mut headers = HeaderMap::new();
        assert_eq!(ContentRange::of(&headers), None);
        headers.append(CONTENT_RANGE, HeaderValue::from_static("bytes 5-9/10"));
        assert_eq!(ContentRange::of(&headers).unwrap().start, 5);
        headers.append(CONTENT_RANGE, HeaderValue::from_static("bytes 5-9/10"));
        assert_eq!(ContentRange::of(&headers), None);
        headers.insert(CONTENT_RANGE, HeaderValue::from_bytes(b"bytes 5-9/\xff").unwrap());
        assert_eq!(ContentRange::of(&headers), None);
    }

    #[test]
    fn what_answers_what() {
        let answers = |range: &str, part: &str| {
            ContentRange::parse(range).unwrap().answers(Part::parse(part).unwrap_or_else(|| panic!("{part}")))
        };
        assert!(answers("bytes 5-9/100", "bytes=5-9"));
        assert!(answers("bytes 5-8/100", "bytes=5-9"), "it may end earlier");
        assert!(!answers("bytes 5-10/100", "bytes=5-9"), "more than was asked for");
        assert!(!answers("bytes 4-9/100", "bytes=5-9") && !answers("bytes 6-9/100", "bytes=5-9"));
        assert!(answers("bytes 5-99/100", "bytes=5-") && answers("bytes 5-50/*", "bytes=5-"));
        assert!(answers("bytes 97-99/100", "bytes=-3") && answers("bytes 0-1/2", "bytes=-3"));
        assert!(!answers("bytes 96-99/100", "bytes=-3") && !answers("bytes 98-99/100", "bytes=-3"));
        assert!(answers("bytes 7-9/*", "bytes=-3") && !answers("bytes 6-9/*", "bytes=-3"));
        for several in ["bytes=0-1,5-6", "bytes=-", "bytes=a-b", "bytes=+1-2", "items=0-1", "0-1", ""] {
            assert_eq!(Part::parse(several), None, "{several:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_parsed_makes_sense(text in "(bytes|Bytes) [0-9+ ]{0,21}-[0-9]{0,21}/(\\*|[0-9]{0,21})|\\PC{0,40}") {
            if let Some(range) = ContentRange::parse(&text) {
                prop_assert!(range.start < range.end && range.total.is_none_or(|total| range.end <= total));
                prop_assert_eq!(ContentRange::parse(&range.to_string()), Some(range));
            }
        }

        #[test]
        fn what_is_written_is_read(start in 0_u64..1 << 60, len in 1_u64..1 << 60, rest in proptest::option::of(0_u64..1 << 60)) {
            let range = ContentRange { start, end: start + len, total: rest.map(|rest| start + len + rest) };
            prop_assert_eq!(ContentRange::parse(&range.to_string()), Some(range));
            prop_assert_eq!(range.len(), len);
            prop_assert!(range.answers(Part::From(start, None)) && range.answers(Part::From(start, Some(start + len - 1))));
            prop_assert!(len == 1 || !range.answers(Part::From(start, Some(start + len - 2))));
        }

        #[test]
        fn what_is_asked_is_read(first: u64, last in proptest::option::of(any::<u64>()), suffix: bool) {
            let part = if suffix { Part::Suffix(first) } else { Part::From(first, last) };
            prop_assert_eq!(Part::parse(&part.to_string()), Some(part));
        }
    }
}
