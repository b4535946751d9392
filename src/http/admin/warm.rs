//! `POST /api/v1/warm`: images are brought into the store before anybody pulls them.

use std::sync::Arc;

use futures_util::StreamExt as _;
use futures_util::stream;
use http::StatusCode;
use serde::{Deserialize, Serialize};

use super::super::explain::explain;
use super::super::respond::Failure;
use super::api::bad;
use super::explain::Name;
use super::pins;
use crate::cache::{Cache, CacheError, WarmError, Warmed, Warming};
use crate::config::Config;
use crate::metrics::Kind;
use crate::oci::{ErrorCode, Platform, Platforms};
use crate::party::Party;
use crate::store::Store;

/// Requests at once, of all images together, unless the caller says how many.
const JOBS: u32 = 8;
/// Most of them: what is more only takes places from clients.
const MOST_JOBS: u32 = 64;
/// What `platforms` says for all.
const ALL: &str = "all";

/// What is asked for.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WarmRequest {
    /// Names of images, as `explain` takes them.
    pub images: Vec<String>,
    /// What of an index is brought; none: Linux on this machine's processor; `all`: everything.
    #[serde(default)]
    pub platforms: Vec<String>,
    /// Whether signatures, attestations and SBOMs that refer to an image are brought, too.
    #[serde(default = "yes")]
    pub referrers: bool,
    /// Requests at once.
    #[serde(default)]
    pub jobs: Option<u32>,
    /// What is all there then is pinned by its name.
    #[serde(default)]
    pub pin: bool,
    /// Only what the names mean is told.
    #[serde(default)]
    pub dry_run: bool,
}

const fn yes() -> bool {
    true
}

/// The answer.
#[derive(Debug, Serialize, Deserialize)]
pub struct WarmReport {
    /// One for each name, in their order.
    pub images: Vec<WarmImage>,
}

/// What became of an image.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct WarmImage {
    /// The name as it was asked for.
    pub name: String,
    /// What it means, with its upstream; null: nothing.
    pub image: Option<String>,
    /// What became of it.
    pub state: WarmState,
    /// Why it failed, and what to do.
    pub error: Option<String>,
    /// Manifests and blobs of it.
    pub parts: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Those that were downloaded now.
    pub fetched_parts: u64,
    /// Their bytes.
    pub fetched_bytes: u64,
    /// Parts that are not to be had from the registry.
    pub left_out: Vec<String>,
    /// Upstream could not be asked whether the tag still means what is there.
    pub stale: bool,
    /// It is pinned by its name.
    pub pinned: bool,
}

/// What became of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WarmState {
    /// It was brought.
    Done,
    /// It was there.
    There,
    /// It is not all there.
    Failed,
    /// It would be asked for.
    Planned,
}

/// Brings images, several at once; what fails stops no other.
pub(super) async fn warm(
    request: WarmRequest,
    store: &Store,
    cache: Option<&Arc<Cache>>,
    config: &Config,
) -> Result<WarmReport, Failure> {
    let Some(cache) = cache else {
        let message = "nothing here asks registries: `ocistern warm` does it, or a daemon";
        return Err(Failure::new(StatusCode::SERVICE_UNAVAILABLE, ErrorCode::Unavailable, message));
    };
    if request.images.is_empty() {
        return Err(bad("images: say which images are to be brought"));
    }
    let jobs = request.jobs.unwrap_or(JOBS);
    if !(1..=MOST_JOBS).contains(&jobs) {
        return Err(bad(format!("jobs: {jobs} is not between 1 and {MOST_JOBS}")));
    }
    let jobs = usize::try_from(jobs).unwrap_or(1);
    let warming = Warming::new(platforms(&request.platforms)?, request.referrers, jobs, Party::on_socket(None));
    let bring = |name: String| {
        let warming = &warming;
        async move {
            let mut image = WarmImage::new(&name);
            let meant = match Name::parse(&name, config) {
                Ok(meant) => meant,
                Err(failure) => {
                    image.error = Some(failure.message.trim_start_matches("image: ").to_owned());
                    return image;
                }
            };
            image.image = Some(meant.whole());
            if request.dry_run {
                image.state = WarmState::Planned;
                return image;
            }
            match cache.warm(warming, (&meant.upstream, &meant.repository), &meant.reference).await {
                Ok(warmed) => image.brought(warmed),
                Err(error) => image.error = Some(told(error, &meant, config)),
            }
            if request.pin && image.error.is_none() {
                match pins::make(store, config, &[&meant.whole()]).await {
                    Ok(_) => image.pinned = true,
                    Err(failure) => {
                        image.state = WarmState::Failed;
                        image.error = Some(format!("it is there, and could not be pinned: {}", failure.message));
                    }
                }
            }
            image
        }
    };
    let images = stream::iter(request.images).map(|name| Box::pin(bring(name))).buffered(jobs).collect().await;
    Ok(WarmReport { images })
}

fn platforms(written: &[String]) -> Result<Platforms, Failure> {
    if written.iter().any(|text| text == ALL) {
        return match written {
            [_] => Ok(Platforms::All),
            _ => Err(bad("platforms: \"all\" stands alone")),
        };
    }
    let parse = |text: &String| text.parse::<Platform>().map_err(|error| bad(format!("platforms: {error}")));
    let chosen = written.iter().map(parse).collect::<Result<Vec<_>, _>>()?;
    Ok(Platforms::Chosen(if chosen.is_empty() { vec![Platform::of_this_machine()] } else { chosen }))
}

/// Why an image is not all there, and what to do: nobody's credential is at hand here but that of ocistern's own account.
fn told(error: WarmError, name: &Name, config: &Config) -> String {
    let (what, error) = match error {
        WarmError::Part { what, error } => (what, error),
        WarmError::Spent { spent, .. } => {
            return format!(
                "{spent}: the same command goes on then with what is missing (what is kept is `reserve` of [upstream.\"{}\"])",
                name.upstream
            );
        }
        WarmError::NoPlatform(_) => return format!("{error}: choose with --platform"),
        error => return error.to_string(),
    };
    let upstream = &name.upstream;
    let why = match &error {
        error if error.is_refusal() => {
            let own = config.upstreams.get(upstream).is_some_and(|upstream| upstream.credentials.is_own_account());
            if own {
                format!("{upstream} does not let the account in `credentials` of [upstream.\"{upstream}\"] read it")
            } else {
                format!(
                    "{upstream} gives it to callers with a credential only, or not at all, and there is no caller's here: check the \
                     name, and give ocistern an account of its own by `credentials` in [upstream.\"{upstream}\"]"
                )
            }
        }
        CacheError::NoSpace => {
            "there is no room in the store for it: raise store.capacity, or see `ocistern gc --dry-run`".to_owned()
        }
        _ => explain(error, Kind::Manifest).message,
    };
    if what == name.reference.to_string() { why } else { format!("{what}: {why}") }
}

// === impl WarmImage ===

impl WarmImage {
    fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            image: None,
            state: WarmState::Failed,
            error: None,
            parts: 0,
            bytes: 0,
            fetched_parts: 0,
            fetched_bytes: 0,
            left_out: Vec::new(),
            stale: false,
            pinned: false,
        }
    }

    fn brought(&mut self, warmed: Warmed) {
        self.state = if warmed.fetched_parts == 0 { WarmState::There } else { WarmState::Done };
        self.parts = warmed.parts;
        self.bytes = warmed.bytes;
        self.fetched_parts = warmed.fetched_parts;
        self.fetched_bytes = warmed.fetched_bytes;
        self.left_out = warmed.left_out;
        self.stale = warmed.stale;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn platforms_are_this_machine_s_unless_they_are_named() {
        let of = |texts: &[&str]| platforms(&texts.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert_eq!(of(&[]).unwrap(), Platforms::Chosen(vec![Platform::of_this_machine()]));
        assert_eq!(of(&["all"]).unwrap(), Platforms::All);
        assert_eq!(of(&["linux/arm/v7"]).unwrap(), Platforms::Chosen(vec!["linux/arm/v7".parse().unwrap()]));
        for wrong in [&["all", "linux/amd64"][..], &["linux"], &[""]] {
            assert_eq!(of(wrong).unwrap_err().status, StatusCode::BAD_REQUEST, "{wrong:?}");
        }
    }

    #[test]
    fn a_request_needs_names_alone() {
        let request: WarmRequest = serde_json::from_str(r#"{"images":["a"]}"#).unwrap();
        assert!(request.referrers && !request.pin && !request.dry_run && request.jobs.is_none());
        assert!(serde_json::from_str::<WarmRequest>(r#"{"images":[],"dryrun":true}"#).is_err(), "a misspelt field");
    }
}
