//! Values of labels: each an enum, so that nothing that a stranger sends can become one.

/// What kind of resource a request is for: the `kind` label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A manifest or index.
    Manifest,
    /// A blob.
    Blob,
    /// A tag list.
    Tags,
    /// A list of referrers.
    Referrers,
    /// An upload.
    Upload,
    /// `/v2/`, the catalog, token requests, challenges, and what is not a registry request.
    Other,
}

/// How a request was answered: the `result` label, and what the log and `Cache-Status` say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// From the store, without waiting for upstream's content.
    Hit,
    /// This request started the fill.
    Miss,
    /// It joined a fill that another request had started.
    Collapsed,
    /// From the store although it could not be revalidated.
    Stale,
    /// Past the store: streamed from upstream without being kept, taken for upstream, or no content at all.
    Bypass,
    /// With an error.
    Error,
}

/// Where the bytes of an answer came from: the `source` label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Source {
    /// A finished file of the store.
    Cache,
    /// A fill in progress, or upstream itself.
    Fill,
}

/// Why an answer is an error: the `cause` label. It tells what someone has to look after (`upstream`, `internal`, `broken`) from what
/// clients do all day: they ask whether something is there, and are told that it is not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Cause {
    /// 404: there is no such thing.
    NotFound,
    /// 401 and 403: the credential that was shown does not suffice.
    Denied,
    /// 429: upstream wants to be asked later.
    RateLimited,
    /// Any other 4xx: the request cannot be answered as it is.
    Client,
    /// The client left before the head of the answer was there.
    Left,
    /// 502, 503 and 504: upstream cannot be reached, does not answer, or is left alone.
    Upstream,
    /// Any other 5xx: ocistern failed.
    Internal,
    /// The answer was broken off behind its head: upstream's bytes ended, or were wrong.
    Broken,
}

// === impl Kind ===

impl Kind {
    /// All, in the order of their numbers.
    pub const ALL: [Self; 6] = [Self::Manifest, Self::Blob, Self::Tags, Self::Referrers, Self::Upload, Self::Other];

    /// The label's value.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Manifest => "manifest",
            Self::Blob => "blob",
            Self::Tags => "tags",
            Self::Referrers => "referrers",
            Self::Upload => "upload",
            Self::Other => "other",
        }
    }
}

// === impl Outcome ===

impl Outcome {
    /// All, in the order of their numbers.
    pub const ALL: [Self; 6] = [Self::Hit, Self::Miss, Self::Collapsed, Self::Stale, Self::Bypass, Self::Error];

    /// The label's value.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Hit => "hit",
            Self::Miss => "miss",
            Self::Collapsed => "collapsed",
            Self::Stale => "stale",
            Self::Bypass => "bypass",
            Self::Error => "error",
        }
    }
}

// === impl Source ===

impl Source {
    /// All, in the order of their numbers.
    pub const ALL: [Self; 2] = [Self::Cache, Self::Fill];

    /// The label's value.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Cache => "cache",
            Self::Fill => "fill",
        }
    }
}

// === impl Cause ===

impl Cause {
    /// All, in the order of their numbers.
    pub const ALL: [Self; 8] = [
        Self::NotFound,
        Self::Denied,
        Self::RateLimited,
        Self::Client,
        Self::Left,
        Self::Upstream,
        Self::Internal,
        Self::Broken,
    ];

    /// The label's value.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NotFound => "not_found",
            Self::Denied => "denied",
            Self::RateLimited => "rate_limited",
            Self::Client => "client",
            Self::Left => "left",
            Self::Upstream => "upstream",
            Self::Internal => "internal",
            Self::Broken => "broken",
        }
    }

    /// Why an answer with this status is an error.
    pub const fn of_status(status: u16) -> Self {
        match status {
            404 => Self::NotFound,
            401 | 403 => Self::Denied,
            429 => Self::RateLimited,
            400..=499 => Self::Client,
            502..=504 => Self::Upstream,
            _ => Self::Internal,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_places() {
        // Handles are kept in arrays in this order.
        assert!(Kind::ALL.iter().enumerate().all(|(place, kind)| *kind as usize == place));
        assert!(Outcome::ALL.iter().enumerate().all(|(place, outcome)| *outcome as usize == place));
        assert!(Source::ALL.iter().enumerate().all(|(place, source)| *source as usize == place));
        assert!(Cause::ALL.iter().enumerate().all(|(place, cause)| *cause as usize == place));
    }

    #[test]
    fn whose_failure_a_status_is() {
        for (status, cause) in [
            (404, Cause::NotFound),
            (401, Cause::Denied),
            (403, Cause::Denied),
            (429, Cause::RateLimited),
            (400, Cause::Client),
            (416, Cause::Client),
            (502, Cause::Upstream),
            (503, Cause::Upstream),
            (504, Cause::Upstream),
            (500, Cause::Internal),
            (507, Cause::Internal),
        ] {
            assert_eq!(Cause::of_status(status), cause, "{status}");
        }
    }
}
