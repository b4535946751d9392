//! Figures as people read them: bytes, and times as the configuration writes them.

use std::fmt::Write as _;
use std::time::Duration;

/// Units of a time, the largest first, with how many milliseconds they are.
const TIMES: [(&str, u128); 5] = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];

/// A number of bytes as people read it: three figures at least, four at most.
#[must_use]
pub fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    // Tenths, in whole numbers: u64 does not fit a float.
    let mut tenths = u128::from(bytes) * 10 / 1024;
    let mut units = UNITS.iter();
    let mut unit = units.next();
    while tenths >= 10_240 {
        let Some(next) = units.next() else { break };
        tenths /= 1024;
        unit = Some(next);
    }
    let unit = unit.copied().unwrap_or_default();
    if tenths >= 1000 { format!("{} {unit}", tenths / 10) } else { format!("{}.{} {unit}", tenths / 10, tenths % 10) }
}

/// A time as somebody writes it in the configuration: `5m`, `1h30m`.
pub(super) fn written(time: Duration) -> String {
    let mut rest = time.as_millis();
    let mut text = String::new();
    for (name, factor) in TIMES {
        if rest >= factor {
            let _ = write!(text, "{}{name}", rest / factor);
            rest %= factor;
        }
    }
    if text.is_empty() { "0s".to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures() {
        for (number, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1536, "1.5 KiB"),
            (102_400, "100 KiB"),
            (1_048_575, "1023 KiB"),
            (1 << 20, "1.0 MiB"),
            (5 << 30, "5.0 GiB"),
            (u64::MAX, "16383 PiB"),
        ] {
            assert_eq!(bytes(number), text);
        }
    }

    #[test]
    fn times() {
        for (millis, text) in [(0, "0s"), (500, "500ms"), (300_000, "5m"), (5_400_000, "1h30m"), (90_000_000, "1d1h")] {
            assert_eq!(written(Duration::from_millis(millis)), text);
        }
    }
}
