//! `Content-Range` of a part of an upload (OCI distribution-spec, "Pushing a blob in chunks").
#![warn(clippy::indexing_slicing)]

use http::HeaderValue;

use crate::cache::Part;

/// `FIRST-LAST`, as the specification writes the field for uploads; with `bytes` in front and the whole behind, as HTTP
/// writes it (RFC 9110, 14.4), too.
pub fn parse(value: &HeaderValue) -> Option<Part> {
    let text = value.to_str().ok()?.trim();
    let text = text.strip_prefix("bytes").map_or(text, |rest| rest.trim_start_matches([' ', '=']));
    let text = text.split_once('/').map_or(text, |(range, _)| range);
    let (first, last) = text.split_once('-')?;
    let number = |text: &str| text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse::<u64>().ok()).flatten();
    let (start, end) = (number(first)?, number(last)?.checked_add(1)?);
    let text = HeaderValue::try_from(format!("{start}-{}", end - 1)).ok()?;
    (start < end).then_some(Part { start, end, text })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(text: &str) -> Option<(u64, u64)> {
        parse(&HeaderValue::from_str(text).unwrap()).map(|part| (part.start, part.end))
    }

    #[test]
    fn content_ranges() {
        for (text, expected) in [
            ("0-0", (0, 1)),
            ("0-1023", (0, 1024)),
            ("1024-2047", (1024, 2048)),
            ("bytes 5-9/10", (5, 10)),
            ("bytes=5-9", (5, 10)),
            ("bytes 5-9/*", (5, 10)),
        ] {
            assert_eq!(read(text), Some(expected), "{text}");
        }
        for text in ["", "-", "5", "5-", "-5", "9-5", "+1-2", "0x1-2", "a-b", "1-18446744073709551615", "1 -2"] {
            assert_eq!(read(text), None, "{text}");
        }
        let part = parse(&HeaderValue::from_static("bytes 5-9/10")).unwrap();
        assert_eq!(part.text, "5-9", "as Azure's registry wants it");
    }

    proptest! {
        #[test]
        fn no_range_makes_it_panic(text in "[ -~]{0,40}") {
            if let Some((start, end)) = read(&text) {
                prop_assert!(start < end);
            }
        }
    }
}
