//! Figures and tables for people.

use std::fmt::Write as _;

use jiff::Timestamp;

pub(super) use crate::http::admin::bytes;

/// Rows under a header, in columns two spaces apart; those of `right` end in line.
pub(super) fn table(header: &[&str], right: &[usize], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = header.iter().map(|text| text.chars().count()).collect();
    for row in rows {
        for (width, text) in widths.iter_mut().zip(row) {
            *width = (*width).max(text.chars().count());
        }
    }
    let mut out = String::new();
    let mut line = |cells: &mut dyn Iterator<Item = &str>| {
        let mut text = String::new();
        for (column, (cell, width)) in cells.zip(&widths).enumerate() {
            let gap = if column == 0 { "" } else { "  " };
            let _ = if right.contains(&column) {
                write!(text, "{gap}{cell:>width$}")
            } else {
                write!(text, "{gap}{cell:<width$}")
            };
        }
        out.push_str(text.trim_end());
        out.push('\n');
    };
    line(&mut header.iter().copied());
    for row in rows {
        line(&mut row.iter().map(String::as_str));
    }
    out
}

/// How long ago something was, roughly.
pub(super) fn ago(at: Option<Timestamp>, now: Timestamp) -> String {
    let Some(at) = at else { return "-".to_owned() };
    let seconds = now.duration_since(at).as_secs().max(0);
    let (number, unit) = match seconds {
        0..60 => return "now".to_owned(),
        60..3600 => (seconds / 60, "minute"),
        3600..86_400 => (seconds / 3600, "hour"),
        _ => (seconds / 86_400, "day"),
    };
    let s = if number == 1 { "" } else { "s" };
    format!("{number} {unit}{s} ago")
}

/// `1 blob`, `2 blobs`.
pub(super) fn count(number: u64, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        let now = Timestamp::from_second(1_000_000).unwrap();
        let at = |seconds: i64| ago(Timestamp::from_second(1_000_000 - seconds).ok(), now);
        assert_eq!([-5, 59, 60, 7200, 86_400 * 3].map(at), ["now", "now", "1 minute ago", "2 hours ago", "3 days ago"]);
        assert_eq!(ago(None, now), "-");
    }

    #[test]
    fn columns_are_in_line() {
        let rows = [vec!["a".to_owned(), "10".to_owned()], vec!["bbb".to_owned(), "9".to_owned()]];
        assert_eq!(table(&["X", "N"], &[1], &rows), "X     N\na    10\nbbb   9\n");
        assert_eq!(table(&["X", "N"], &[], &rows), "X    N\na    10\nbbb  9\n");
    }
}
