//! How content is fetched from an upstream: patience, connections, and how much of the link it may take.

use std::time::Duration;

use super::error::Fault;
use super::file::{Scalar, UpstreamTable};
use super::layer::value;
use super::place::{KeyPath, Problems};
use super::scrub::hours;
use super::{Hours, parse};

const STALL: &str = "a time of silence: write a duration from \"1s\" to \"10m\", such as \"30s\"";
const RESUME: &str =
    "a time to try again: write a duration up to \"24h\", such as \"15m\" (\"0s\" gives up after a few tries)";
const BLOB_CONNECTIONS: &str = "a number of requests for one blob at once: write one from 1 to 64";
const CONNECTIONS: &str = "a number of requests at once: write a whole number of at least 1, or leave the key out";
const MAX_RATE: &str = "a rate: write a size with its unit for each second, such as \"20MiB\", or \"off\" for no limit";
const NO_RATE: &str = "these are the hours in which max_rate does not hold, and there is none: write it too, such as max_rate = \"20MiB\"";

/// Longest and shortest `stall`.
const STALLS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_mins(10));
/// Longest `resume_for`.
const LONGEST_RESUME: Duration = Duration::from_hours(24);
/// Most `blob_connections`.
const MOST_BLOB_CONNECTIONS: usize = 64;

/// How content is fetched from one upstream, its mirrors included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transfer {
    /// Longest silence within a body; after it the connection is taken for a broken one.
    pub stall: Duration,
    /// Least bytes a second that a body brings over a minute in which it is waited for; 0: any.
    pub min_rate: u64,
    /// How long a download that brings no byte is tried again before it is given up; 0: after a few tries.
    pub resume_for: Duration,
    /// Requests at once for one blob: 1 to 64.
    pub blob_connections: usize,
    /// Requests for blobs at once, in total; none: any number. Changeable while ocistern runs.
    pub max_connections: Option<usize>,
    /// Bytes a second of everything from it. Changeable while ocistern runs.
    pub max_rate: MaxRate,
}

/// How many bytes a second may come, and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MaxRate {
    /// Bytes a second, never 0; none: any number.
    pub rate: Option<u64>,
    /// Hours in local time in which `rate` does not hold.
    pub schedule: Option<Hours>,
}

// === impl Transfer ===

impl Default for Transfer {
    fn default() -> Self {
        Self {
            stall: Duration::from_secs(30),
            // Connections of which only drops come are more common than links that are so slow.
            min_rate: 1 << 10,
            resume_for: Duration::from_mins(15),
            blob_connections: 8,
            max_connections: None,
            max_rate: MaxRate::default(),
        }
    }
}

impl Transfer {
    /// What the table says, over what held before.
    pub(super) fn merge(self, at: &KeyPath, table: &UpstreamTable, problems: &mut Problems) -> Self {
        let time = |range: (Duration, Duration), want: &'static str| {
            move |scalar: &Scalar| {
                let text = scalar.to_string();
                let fits = |time: &Duration| (range.0..=range.1).contains(time);
                parse::duration(&text).ok().filter(fits).ok_or_else(|| Fault::value(&text, want))
            }
        };
        let number = |most: usize, want: &'static str| {
            move |scalar: &Scalar| {
                let text = scalar.to_string();
                let fits = |number: &usize| (1..=most).contains(number);
                text.parse().ok().filter(fits).ok_or_else(|| Fault::value(&text, want))
            }
        };
        let resume = (Duration::ZERO, LONGEST_RESUME);
        let connections = value(
            problems,
            &at.key("max_connections"),
            table.max_connections.as_ref(),
            number(usize::MAX >> 4, CONNECTIONS),
        );
        Self {
            stall: value(problems, &at.key("stall"), table.stall.as_ref(), time(STALLS, STALL)).unwrap_or(self.stall),
            min_rate: value(problems, &at.key("min_rate"), table.min_rate.as_ref(), |s| parse::rate(&s.to_string()))
                .unwrap_or(self.min_rate),
            resume_for: value(problems, &at.key("resume_for"), table.resume_for.as_ref(), time(resume, RESUME))
                .unwrap_or(self.resume_for),
            blob_connections: value(
                problems,
                &at.key("blob_connections"),
                table.blob_connections.as_ref(),
                number(MOST_BLOB_CONNECTIONS, BLOB_CONNECTIONS),
            )
            .unwrap_or(self.blob_connections),
            max_connections: connections.or(self.max_connections),
            max_rate: self.max_rate.merge(at, table.max_rate.as_ref(), table.schedule.as_ref(), problems),
        }
    }
}

// === impl MaxRate ===

impl MaxRate {
    /// `max_rate` and `schedule` of a table, over what held before.
    pub(super) fn merge(
        self,
        at: &KeyPath,
        rate: Option<&Scalar>,
        schedule: Option<&Scalar>,
        problems: &mut Problems,
    ) -> Self {
        // Beside "off" the hours may stay, for who switches the limit off and on.
        let alone = rate.is_none() && self.rate.is_none();
        let rate = value(problems, &at.key("max_rate"), rate, |scalar| max_rate(&scalar.to_string()));
        let hours = value(problems, &at.key("schedule"), schedule, |scalar| hours(&scalar.to_string()));
        if alone && hours.is_some() {
            problems.add(at.key("schedule"), Fault::Unfit(NO_RATE));
        }
        Self { rate: rate.unwrap_or(self.rate), schedule: hours.or(self.schedule) }
    }

    /// `max_rate` as it is written in the file.
    pub(super) fn show(self) -> String {
        self.rate.map_or_else(|| "off".to_owned(), parse::show_size)
    }
}

/// Bytes a second, `20MiB`; `off`: none.
fn max_rate(text: &str) -> Result<Option<u64>, Fault> {
    if text == "off" {
        return Ok(None);
    }
    parse::positive_rate(text).map(Some).ok_or_else(|| Fault::value(text, MAX_RATE))
}

#[cfg(test)]
mod tests {
    use super::super::tests::{flags, load, parse, try_load, upstream};
    use super::super::{Abandon, Flags, RangeFill, UnverifiedRanges};
    use super::*;

    #[test]
    fn rates() {
        assert_eq!(max_rate("off"), Ok(None));
        for (text, bytes) in [("20MiB", 20 << 20), ("20MiB/s", 20 << 20), ("512 KiB", 512 << 10), ("3B", 3)] {
            assert_eq!(max_rate(text), Ok(Some(bytes)), "{text:?}");
            let shown = MaxRate { rate: Some(bytes), schedule: None }.show();
            assert_eq!(max_rate(&shown), Ok(Some(bytes)), "{text:?} is shown as {shown:?}");
        }
        for text in ["", "0", "0MiB", "20", "20/s", "20Mbit", "-1MiB", "on", "/s"] {
            assert!(max_rate(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn defaults_and_values() {
        let config = parse("");
        let hub = &upstream(&config, "docker.io").transfer;
        assert_eq!((hub.stall, hub.min_rate, hub.blob_connections), (Duration::from_secs(30), 1024, 8));
        assert_eq!((hub.resume_for, hub.max_connections), (Duration::from_mins(15), None));
        assert_eq!((hub.max_rate, config.limits.max_rate), (MaxRate::default(), MaxRate::default()));
        assert!(upstream(&config, "docker.io").mirrors.is_empty());
        assert_eq!((config.store.range_fill, config.store.abandon), (RangeFill::Always, Abandon::Auto));
        assert_eq!(config.store.unverified_ranges, UnverifiedRanges::Serve);

        let config = parse(
            "[store]\nrange_fill = \"25%\"\nabandon = \"park\"\n\
             [limits]\nmax_rate = \"1GiB\"\n\
             [upstream.\"docker.io\"]\nmirrors = [\"mirror.example/hub/\", \"http://10.0.0.9:5000\"]\nstall = \"1s\"\n\
             min_rate = 0\nresume_for = \"0s\"\nblob_connections = 64\nmax_connections = 1\nmax_rate = \"20MiB/s\"\n\
             schedule = \"22:00-06:00\"\n\
             [upstream.\"ghcr.io\"]\nmax_rate = \"off\"\nschedule = \"22:00-06:00\"",
        );
        let hub = upstream(&config, "docker.io");
        let mirrors: Vec<_> = hub.mirrors.iter().map(ToString::to_string).collect();
        assert_eq!(mirrors, ["https://mirror.example/hub", "http://10.0.0.9:5000"]);
        assert_eq!(
            (hub.transfer.stall, hub.transfer.min_rate, hub.transfer.resume_for),
            (Duration::from_secs(1), 0, Duration::ZERO)
        );
        assert_eq!((hub.transfer.blob_connections, hub.transfer.max_connections), (64, Some(1)));
        assert_eq!(hub.transfer.max_rate.rate, Some(20 << 20));
        assert!(hub.transfer.max_rate.schedule.is_some());
        assert_eq!(config.limits.max_rate.rate, Some(1 << 30));
        assert_eq!((config.store.range_fill, config.store.abandon), (RangeFill::From(25), Abandon::Park));
        assert_eq!(
            upstream(&config, "ghcr.io").transfer.max_rate.rate,
            None,
            "the hours may stay when the limit is off"
        );
        assert_eq!(format!("{:?}", parse(&config.show())), format!("{config:?}"));

        let wait = parse("[store]\nunverified_ranges = \"wait\"\nrange_fill = \"always\"");
        assert_eq!(wait.store.unverified_ranges, UnverifiedRanges::Wait);
        let config = load(&flags(), &[("OCISTERN_LIMITS__MAX_RATE", "5MiB"), ("OCISTERN_STORE__ABANDON", "finish")]);
        assert_eq!((config.limits.max_rate.rate, config.store.abandon), (Some(5 << 20), Abandon::Finish));
    }

    #[test]
    fn a_flag_does_not_make_a_mirror_the_upstream_itself() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("config.toml");
        std::fs::write(&file, "[upstream.mine]\nurl = \"https://a.example\"\nmirrors = [\"https://b.example\"]")
            .unwrap();
        let flags =
            |url: &str| Flags { config: Some(file.clone()), upstream: vec![url.to_owned()], ..Flags::default() };
        assert_eq!(upstream(&load(&flags("mine=https://c.example"), &[]), "mine").mirrors.len(), 1);
        let error = try_load(&flags("mine=https://b.example"), &[]).unwrap_err();
        assert!(error.contains("mirrors[0]: https://b.example is where this upstream is asked already"), "{error}");
    }
}
