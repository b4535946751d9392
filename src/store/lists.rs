//! The last answers to lists: a repository's tags, and what refers to a digest.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::layout::{self, REFS};
use super::{Inner, Store, StoreError};
use crate::oci::{Digest, RepoName, UpstreamName, Via};

/// Longest body of a list that is kept.
const LIST: usize = 4 << 20;
/// Lists that are kept of one repository; which queries are asked is up to clients.
const LISTS: usize = 256;
/// A list of a repository.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ListKind {
    /// Its tags.
    Tags,
    /// The manifests that refer to a digest.
    Referrers(Digest),
}

/// The last answer to a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredList {
    /// The body, byte for byte.
    #[serde(serialize_with = "to_base64", deserialize_with = "from_base64")]
    pub body: Bytes,
    /// Its media type.
    pub content_type: String,
    /// The `Link` header, as upstream gave it.
    pub link: Option<String>,
    /// The `OCI-Filters-Applied` header.
    pub filters_applied: Option<String>,
    /// By whose right it was fetched.
    pub via: Via,
}

fn to_base64<S: Serializer>(body: &Bytes, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&STANDARD.encode(body))
}

fn from_base64<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Bytes, D::Error> {
    let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
    STANDARD.decode(text.as_bytes()).map(Bytes::from).map_err(serde::de::Error::custom)
}

// === impl Store ===

impl Store {
    /// The last answer to a list, by its normalised query (usually empty).
    pub async fn list(
        &self,
        up: &UpstreamName,
        repo: &RepoName,
        kind: &ListKind,
        query: &str,
    ) -> Result<Option<StoredList>, StoreError> {
        let path = kind.path(up, repo, query);
        self.blocking(move |inner| Ok(inner.records.read(&inner.disk, &path))).await
    }

    /// Remembers the answer to a list that was asked for at `asked_at`. False, and nothing is done, if the repository may
    /// have been written since, or is just being written. Written only if it differs; a repository keeps a bounded number
    /// of lists, and none of more than 4 MiB.
    #[expect(clippy::too_many_arguments, reason = "which list, what it says, and as of when")]
    pub async fn set_list(
        &self,
        up: &UpstreamName,
        repo: &RepoName,
        kind: &ListKind,
        query: &str,
        list: &StoredList,
        asked_at: SystemTime,
    ) -> Result<bool, StoreError> {
        if list.body.len() > LIST {
            return Ok(false);
        }
        let path = kind.path(up, repo, query);
        let (up, repo, list) = (up.clone(), repo.clone(), list.clone());
        let write = move |inner: &Arc<Inner>| {
            let repository = inner.repository(&up, &repo)?;
            let _gate = repository.gate();
            if repository.refuses_list(asked_at) {
                return Ok(false);
            }
            if inner.records.read::<StoredList>(&inner.disk, &path).as_ref() == Some(&list) {
                return Ok(true);
            }
            if inner.disk.metadata(&path).is_err() {
                inner.bound_lists(path.parent().unwrap_or(Path::new(REFS)));
            }
            inner.records.write(&inner.disk, &inner.group, &path, &list)?;
            Ok(true)
        };
        self.blocking(move |inner| inner.with_room_for_record(|| write(inner))).await
    }
}

// === impl ListKind ===

impl ListKind {
    fn path(&self, up: &UpstreamName, repo: &RepoName, query: &str) -> PathBuf {
        match self {
            Self::Tags => layout::list(up, repo, "tags", query),
            Self::Referrers(digest) => {
                let name = format!("referrers-{}-{}", digest.algorithm().as_str(), digest.hex());
                layout::list(up, repo, &name, query)
            }
        }
    }
}

// === impl Inner ===

impl Inner {
    /// Leaves room for one more list, by removing the one that was written longest ago.
    fn bound_lists(&self, directory: &Path) {
        let Ok(listing) = self.disk.list(directory) else { return };
        let names: Vec<String> = listing.flatten().map(|entry| entry.name).collect();
        if names.len() < LISTS {
            return;
        }
        let age = |name: &String| self.disk.metadata(&directory.join(name)).and_then(|m| m.modified()).ok();
        let plain = |name: &&String| name.as_str() != "tags";
        if let Some(oldest) = names.iter().filter(plain).min_by_key(|name| age(name))
            && let Err(error) = self.disk.unlink(&directory.join(oldest))
        {
            tracing::warn!(directory = %directory.display(), %error, "an old list could not be removed");
        }
    }
}
