//! `/api/v1/missed` and `/api/v1/coverage`: what sealed upstreams were asked for in vain, and what pulls would miss.

use serde::{Deserialize, Serialize};

use super::super::respond::Failure;
use super::api::{bad, failed};
use super::explain::Name;
use crate::config::Config;
use crate::oci::{Reference, UpstreamName};
use crate::store::{Covered, Extent, Store};

/// Longest name of a platform.
const MAX_PLATFORM: usize = 128;

/// The answer to `GET /api/v1/coverage`.
#[derive(Debug, Serialize, Deserialize)]
pub struct Coverage {
    /// Whether all of all images is there.
    pub complete: bool,
    /// In the order in which they were asked for.
    pub images: Vec<ImageCoverage>,
}

/// What is there of one image.
#[derive(Debug, Serialize, Deserialize)]
pub struct ImageCoverage {
    /// The whole name, as it was understood.
    pub image: String,
    /// Whether a write through ocistern may have changed the tag: then it is not served unless upstream can be asked.
    pub suspect: bool,
    /// How much, and what is missing.
    #[serde(flatten)]
    pub covered: Covered,
}

/// What pulls of these images, for these platforms, would miss.
pub(super) async fn coverage(
    store: &Store,
    config: &Config,
    images: &[&str],
    platforms: &[&str],
) -> Result<Coverage, Failure> {
    if images.is_empty() {
        return Err(bad("image: say which images are meant"));
    }
    let is_platform = |text: &&str| {
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'/' | b'.' | b'_' | b'-' | b'(' | b')');
        text.len() <= MAX_PLATFORM
            && text.contains('/')
            && text.split('/').all(|part| !part.is_empty())
            && text.bytes().all(plain)
    };
    if let Some(wrong) = platforms.iter().find(|text| !is_platform(text)) {
        return Err(bad(format!(
            "platform: {wrong:?} is none: write OS/ARCHITECTURE, such as linux/amd64 or linux/arm/v7"
        )));
    }
    let platforms: Vec<String> = platforms.iter().map(|text| (*text).to_owned()).collect();
    // One that only a flag of `serve` names is known by what it has stored.
    let mut stored = Vec::new();
    for text in images {
        let first = text.split_once('/').and_then(|(first, _)| first.parse::<UpstreamName>().ok());
        let Some(first) = first.filter(|name| !config.upstreams.contains_key(name) && !stored.contains(name)) else {
            continue;
        };
        if store.has_refs_of(&first).await.map_err(failed)? {
            stored.push(first);
        }
    }
    // All of them, before any is looked at.
    let names = images.iter().map(|text| Name::parse_with(text, config, &stored)).collect::<Result<Vec<_>, _>>()?;
    let mut found = Vec::new();
    for name in names {
        let Name { upstream, repository, reference } = &name;
        let mut covered = store.coverage(upstream, repository, reference, platforms.clone()).await.map_err(failed)?;
        let suspect = match reference {
            Reference::Tag(tag) if covered.extent != Extent::Unknown => {
                let state = store.tag_state(upstream, repository, tag).await.map_err(failed)?;
                state.suspect.unwrap_or(true)
            }
            _ => false,
        };
        if suspect {
            covered.extent = Extent::Incomplete;
        }
        found.push(ImageCoverage { image: name.whole(), suspect, covered });
    }
    Ok(Coverage { complete: found.iter().all(|image| image.covered.extent == Extent::Complete), images: found })
}
