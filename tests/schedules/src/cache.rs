//! The explored files of the cache, and the little of the rest that they name.

#[allow(dead_code, unused_imports, reason = "the plays use what they need of it")]
#[path = "../../../src/cache/demand.rs"]
pub(crate) mod demand;
#[allow(dead_code, unused_imports, reason = "the plays use what they need of it")]
#[path = "../../../src/cache/download.rs"]
pub(crate) mod download;
#[allow(dead_code, unused_imports, reason = "the plays use what they need of it")]
#[path = "../../../src/cache/endpoints.rs"]
pub(crate) mod endpoints;
#[allow(dead_code, unused_imports, reason = "the plays use what they need of it")]
#[path = "../../../src/cache/error.rs"]
pub(crate) mod error;
#[allow(dead_code, unused_imports, reason = "the plays use what they need of it")]
#[path = "../../../src/cache/first.rs"]
pub(crate) mod first;
#[allow(dead_code, unused_imports, reason = "the plays use what they need of it")]
#[path = "../../../src/cache/flight.rs"]
pub(crate) mod flight;
#[allow(dead_code, unused_imports, reason = "the plays use what they need of it")]
#[path = "../../../src/cache/front.rs"]
pub(crate) mod front;
#[allow(dead_code, unused_imports, reason = "the plays use what they need of it")]
#[path = "../../../src/cache/leg.rs"]
pub(crate) mod leg;
#[allow(dead_code, unused_imports, reason = "the plays use what they need of it")]
#[path = "../../../src/cache/legs.rs"]
pub(crate) mod legs;
#[allow(dead_code, unused_imports, reason = "the plays use what they need of it")]
#[path = "../../../src/cache/lenders.rs"]
pub(crate) mod lenders;
#[allow(dead_code, unused_imports, reason = "the plays use what they need of it")]
#[path = "../../../src/cache/patience.rs"]
pub(crate) mod patience;
#[allow(dead_code, unused_imports, reason = "the plays use what they need of it")]
#[path = "../../../src/cache/plan.rs"]
pub(crate) mod plan;
#[allow(dead_code, unused_imports, reason = "the plays use what they need of it")]
#[path = "../../../src/cache/progress.rs"]
pub(crate) mod progress;
#[allow(dead_code, unused_imports, reason = "the plays use what they need of it")]
#[path = "../../../src/cache/recent.rs"]
pub(crate) mod recent;
#[allow(dead_code, unused_imports, reason = "the plays use what they need of it")]
#[path = "../../../src/cache/supply.rs"]
pub(crate) mod supply;
#[allow(dead_code, unused_imports, reason = "the plays use what they need of it")]
#[path = "../../../src/cache/view.rs"]
pub(crate) mod view;
#[allow(dead_code, unused_imports, reason = "the plays use what they need of it")]
#[path = "../../../src/cache/width.rs"]
pub(crate) mod width;

pub mod plays;

use std::time::Duration;

use crate::config::{Abandon, RangeFill};
use crate::oci::{RepoName, UpstreamName};
use crate::upstream::Right;

pub use error::CacheError;

const ANSWER_WITHIN: Duration = Duration::from_secs(20);

/// As in the cache.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Target {
    upstream: UpstreamName,
    repo: RepoName,
    right: Right,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Repository {
    upstream: UpstreamName,
    repo: RepoName,
}

impl Target {
    fn repository(&self) -> Repository {
        Repository { upstream: self.upstream.clone(), repo: self.repo.clone() }
    }
}

/// What of the configuration legs look at.
pub(crate) struct Settings {
    range_fill: RangeFill,
    abandon: Abandon,
}

pub(crate) mod report {
    /// Nobody looks at them here.
    #[derive(Debug, Default)]
    pub(crate) struct Gauges;

    impl Gauges {
        pub(crate) fn tick(&self, _: u64) {}
    }
}

pub(crate) mod writes {
    use tokio::time::Instant;

    /// When upstream was asked.
    #[derive(Debug, Clone, Copy)]
    pub(crate) struct Asked {
        pub(crate) instant: Instant,
    }
}

pub(crate) mod bypass {
    /// What follows a file that was cut.
    #[derive(Debug)]
    pub(crate) struct Rest(pub(crate) u64);

    impl Rest {
        pub(crate) fn at(&self) -> u64 {
            self.0
        }
    }
}
