//! What becomes of downloads that are asked for in parts, or that nobody waits for any more.

use std::fmt;

use super::error::Fault;

const RANGE_FILL: &str = "what a request for a part brings: write \"always\" (the whole blob), \"never\" (only the part), or a share of the blob from \"1%\" to \"99%\" from which on the rest is fetched too";
const UNVERIFIED: &str = "what becomes of a part of a blob that is not verified yet: write \"serve\" (at once) or \"wait\" (until all of it is here and right)";
const ABANDON: &str = "what becomes of a download that nobody waits for: write \"auto\" (it goes on if it is small or far along), \"finish\" or \"park\"";

/// Whether a request for a part of a blob that is not stored brings the whole (`store.range_fill`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RangeFill {
    /// The whole is downloaded.
    #[default]
    Always,
    /// Only what is asked for is fetched, and kept.
    Never,
    /// The whole, as soon as so many percent of it are there because they were asked for: 1 to 99.
    From(u8),
}

/// What is done with a part of a blob whose digest is not known to be right yet (`store.unverified_ranges`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum UnverifiedRanges {
    /// It is served and says so; should the blob turn out wrong, answers that still run are broken.
    #[default]
    Serve,
    /// It is served when the blob is whole and its digest right.
    Wait,
}

/// What becomes of a download that nobody waits for any more (`store.abandon`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Abandon {
    /// It goes on if it is small or far along, else it is put aside until somebody asks again.
    #[default]
    Auto,
    /// It goes on to its end.
    Finish,
    /// It is put aside within seconds; what has come is kept.
    Park,
}

// === impl RangeFill ===

impl RangeFill {
    pub(super) fn parse(text: &str) -> Result<Self, Fault> {
        match text {
            "always" => Ok(Self::Always),
            "never" => Ok(Self::Never),
            other => {
                let percent: Option<u8> = other.trim().strip_suffix('%').and_then(|number| number.trim().parse().ok());
                percent
                    .filter(|percent| (1..=99).contains(percent))
                    .map(Self::From)
                    .ok_or_else(|| Fault::value(other, RANGE_FILL))
            }
        }
    }
}

/// As it is written in the file.
impl fmt::Display for RangeFill {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Always => f.write_str("always"),
            Self::Never => f.write_str("never"),
            Self::From(percent) => write!(f, "{percent}%"),
        }
    }
}

// === impl UnverifiedRanges ===

impl UnverifiedRanges {
    pub(super) fn parse(text: &str) -> Result<Self, Fault> {
        match text {
            "serve" => Ok(Self::Serve),
            "wait" => Ok(Self::Wait),
            other => Err(Fault::value(other, UNVERIFIED)),
        }
    }

    /// As it is written in the file.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Serve => "serve",
            Self::Wait => "wait",
        }
    }
}

// === impl Abandon ===

impl Abandon {
    pub(super) fn parse(text: &str) -> Result<Self, Fault> {
        match text {
            "auto" => Ok(Self::Auto),
            "finish" => Ok(Self::Finish),
            "park" => Ok(Self::Park),
            other => Err(Fault::value(other, ABANDON)),
        }
    }

    /// As it is written in the file.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Finish => "finish",
            Self::Park => "park",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_read_back_as_it_is_shown() {
        for fill in [RangeFill::Always, RangeFill::Never, RangeFill::From(1), RangeFill::From(99)] {
            assert_eq!(RangeFill::parse(&fill.to_string()), Ok(fill));
        }
        for text in ["", "0%", "100%", "25", "%", "-1%", "256%", "Always"] {
            assert!(RangeFill::parse(text).is_err(), "{text:?}");
        }
        for ranges in [UnverifiedRanges::Serve, UnverifiedRanges::Wait] {
            assert_eq!(UnverifiedRanges::parse(ranges.as_str()), Ok(ranges));
        }
        for abandon in [Abandon::Auto, Abandon::Finish, Abandon::Park] {
            assert_eq!(Abandon::parse(abandon.as_str()), Ok(abandon));
        }
    }
}
