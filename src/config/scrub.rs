//! When and how fast the scrub reads.

use std::fmt;
use std::time::Duration;

use super::error::Fault;
use super::file::{Scalar, ScrubTable, ScrubValue};
use super::layer::{boolean, value};
use super::parse;
use super::place::{KeyPath, Problems};

const RATE: &str = "a rate: write a size with its unit for each second, such as \"20MiB\" or \"20MiB/s\"";
const EVERY: &str = "how often everything is read: write a duration of at least an hour, such as \"30d\"";
const HOURS: &str = "hours of the day: write two times, such as \"01:00-06:00\" (\"22:00-06:00\" crosses midnight)";
const SWITCH: &str = "how the scrub works: write false for never, or { rate = \"20MiB/s\", every = \"30d\" }";

/// Shortest time between two passes.
const SHORTEST: Duration = Duration::from_hours(1);
/// Minutes of a day.
const DAY: u16 = 24 * 60;

/// How stored blobs are hashed again in the background.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scrub {
    /// Bytes a second.
    pub rate: u64,
    /// From the end of one pass to the beginning of the next.
    pub every: Duration,
    /// When it works; none: at any time.
    pub hours: Option<Hours>,
}

/// A part of the day, in local time; it may cross midnight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hours {
    /// Minutes from midnight.
    from: u16,
    /// Minutes from midnight; never the same.
    to: u16,
}

/// A time of the day, to the second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TimeOfDay(u32);

// === impl Scrub ===

/// All of 100 GiB within an hour and a half a month, by one per cent of a core: too little to be noticed, and rot is
/// found before the next of many months.
impl Default for Scrub {
    fn default() -> Self {
        Self { rate: 20 << 20, every: Duration::from_hours(30 * 24), hours: None }
    }
}

impl Scrub {
    /// As the file has it; none: off.
    pub(super) fn read(written: Option<&ScrubValue>, at: &KeyPath, problems: &mut Problems) -> Option<Self> {
        let default = Self::default();
        let table = match written {
            None => return Some(default),
            Some(ScrubValue::Scalar(scalar)) => {
                let off = boolean(scalar).is_ok_and(|on| !on);
                let fault = || Err::<(), _>(Fault::value(&scalar.to_string(), SWITCH));
                problems.check(at.clone(), if off { Ok(()) } else { fault() });
                return None;
            }
            Some(ScrubValue::Table(table)) => table,
        };
        let every = |scalar: &Scalar| {
            let text = scalar.to_string();
            parse::duration(&text).ok().filter(|time| *time >= SHORTEST).ok_or_else(|| Fault::value(&text, EVERY))
        };
        Some(Self {
            rate: value(problems, &at.key("rate"), table.rate.as_ref(), |s| rate(&s.to_string()))
                .unwrap_or(default.rate),
            every: value(problems, &at.key("every"), table.every.as_ref(), every).unwrap_or(default.every),
            hours: value(problems, &at.key("hours"), table.hours.as_ref(), |s| hours(&s.to_string())),
        })
    }

    /// As the file would have it.
    pub(super) fn show(scrub: Option<&Self>) -> ScrubValue {
        let Some(Self { rate, every, hours }) = scrub else { return ScrubValue::Scalar(Scalar::Bool(false)) };
        ScrubValue::Table(ScrubTable {
            rate: Some(Scalar::Text(format!("{}/s", parse::show_size(*rate)))),
            every: Some(Scalar::Text(parse::show_duration(*every))),
            hours: hours.map(|hours| Scalar::Text(hours.to_string())),
        })
    }
}

/// Bytes a second, some: `20MiB/s`, or `20MiB`.
pub fn rate(text: &str) -> Result<u64, Fault> {
    parse::positive_rate(text).ok_or_else(|| Fault::value(text, RATE))
}

/// Two times of the day: `22:00-06:00`.
pub(super) fn hours(text: &str) -> Result<Hours, Fault> {
    let minutes = |time: &str| {
        let (hours, minutes) = time.trim().split_once(':')?;
        let digits = |text: &str| text.len() == 2 && text.bytes().all(|b| b.is_ascii_digit());
        let (hours, minutes) = (
            digits(hours).then(|| hours.parse::<u16>().ok())??,
            digits(minutes).then(|| minutes.parse::<u16>().ok())??,
        );
        (minutes < 60 && hours * 60 + minutes <= DAY).then_some((hours * 60 + minutes) % DAY)
    };
    let both = text.split_once('-').and_then(|(from, to)| Some((minutes(from)?, minutes(to)?)));
    let (from, to) = both.filter(|(from, to)| from != to).ok_or_else(|| Fault::value(text, HOURS))?;
    Ok(Hours { from, to })
}

// === impl Hours ===

impl Hours {
    /// How long it is until they begin; none: now is one of them.
    pub fn opens_in(self, now: TimeOfDay) -> Option<Duration> {
        let day = u32::from(DAY) * 60;
        let (from, to) = (u32::from(self.from) * 60, u32::from(self.to) * 60);
        let since = (now.0 + day - from) % day;
        let length = (to + day - from) % day;
        (since >= length).then(|| Duration::from_secs(u64::from(day - since)))
    }
}

impl fmt::Display for Hours {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { from, to } = self;
        write!(f, "{:02}:{:02}-{:02}:{:02}", from / 60, from % 60, to / 60, to % 60)
    }
}

// === impl TimeOfDay ===

impl From<jiff::civil::Time> for TimeOfDay {
    fn from(time: jiff::civil::Time) -> Self {
        let part = |part: i8| u32::try_from(part).unwrap_or_default();
        Self(part(time.hour()) * 3600 + part(time.minute()) * 60 + part(time.second()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(hour: i8, minute: i8) -> TimeOfDay {
        jiff::civil::time(hour, minute, 0, 0).into()
    }

    #[test]
    fn hours_of_the_day() {
        let night = hours("01:00-06:00").unwrap();
        assert_eq!((night.opens_in(at(1, 0)), night.opens_in(at(5, 59))), (None, None));
        assert_eq!(night.opens_in(at(6, 0)), Some(Duration::from_hours(19)));
        assert_eq!(night.opens_in(at(0, 30)), Some(Duration::from_mins(30)));
        let across = hours("22:30-04:00").unwrap();
        assert_eq!(
            (across.opens_in(at(23, 0)), across.opens_in(at(0, 0)), across.opens_in(at(3, 59))),
            (None, None, None)
        );
        assert_eq!(across.opens_in(at(4, 0)), Some(Duration::from_mins(18 * 60 + 30)));
        assert_eq!(hours("18:00-24:00").unwrap().opens_in(at(23, 59)), None);
        assert_eq!(across.to_string(), "22:30-04:00");
        for text in
            ["", "1-6", "01:00", "01:00-01:00", "25:00-26:00", "01:60-02:00", "00:00-24:00", "1:00-2:00", "+1:00-02:00"]
        {
            assert!(hours(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn rates() {
        assert_eq!((rate("20MiB/s"), rate("512 KiB/s")), (Ok(20 << 20), Ok(512 << 10)));
        assert_eq!((rate("20MiB"), rate(" 3B ")), (Ok(20 << 20), Ok(3)));
        for text in ["", "/s", "20", "20/s", "0/s", "0MiB", "20Mbit/s", "20MiB/m"] {
            assert!(rate(text).is_err(), "{text:?}");
        }
    }
}
