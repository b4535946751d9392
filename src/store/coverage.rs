//! What a pull of an image would miss if upstream could not be asked: looked at before anybody pulls.
//!
//! A part counts as there if its file is and this repository has a link to it: without either a pull asks upstream.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::explain::PartKind;
use super::layout;
use super::record::Records;
use super::refs::{LinkKind, TagRecord};
use super::survey::Survey;
use super::{Inner, Store, StoreError};
use crate::oci::{Digest, Reference, RepoName, UpstreamName, sizes};

/// Missing parts that are listed; counted are all.
const LISTED: usize = 200;
/// Manifests that are looked at; what has more is made up.
const FOLLOWED: usize = 100_000;
/// Longest manifest that is read.
const MANIFEST: u64 = 64 << 20;

/// How much of an image there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Extent {
    /// All that was asked about.
    Complete,
    /// Not all.
    Incomplete,
    /// Nothing is known of the tag, or the digest is not stored.
    Unknown,
}

/// What is there of an image, and what is not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Covered {
    /// How much.
    pub extent: Extent,
    /// Its manifest or index; null: nothing is known of the tag.
    pub digest: Option<Digest>,
    /// Of an index, the platforms that were looked at.
    pub platforms: Vec<String>,
    /// Platforms that were asked about and that the index does not offer.
    pub not_offered: Vec<String>,
    /// Blobs that are missing, manifests included.
    pub missing_blobs: usize,
    /// Their bytes, as far as manifests say.
    pub missing_bytes: u64,
    /// Those blobs; two hundred at most.
    pub missing: Vec<MissingPart>,
}

/// A part that is missing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MissingPart {
    /// Its digest.
    pub digest: Digest,
    /// As what.
    pub kind: PartKind,
    /// The platform that needs it; of a part of several one of them, of an image without an index null.
    pub platform: Option<String>,
    /// Its length, if a manifest says so.
    pub bytes: Option<u64>,
}

// === impl Covered ===

impl Covered {
    fn unknown(digest: Option<Digest>) -> Self {
        Self {
            extent: Extent::Unknown,
            digest,
            platforms: Vec::new(),
            not_offered: Vec::new(),
            missing_blobs: 0,
            missing_bytes: 0,
            missing: Vec::new(),
        }
    }

    fn lacks(&mut self, part: MissingPart) {
        self.extent = Extent::Incomplete;
        self.missing_blobs += 1;
        self.missing_bytes = self.missing_bytes.saturating_add(part.bytes.unwrap_or(0));
        if self.missing.len() < LISTED {
            self.missing.push(part);
        }
    }
}

// === impl Store ===

impl Store {
    /// What a pull of an image for these platforms (none: all that it has) finds in the store.
    pub async fn coverage(
        &self,
        up: &UpstreamName,
        repo: &RepoName,
        reference: &Reference,
        platforms: Vec<String>,
    ) -> Result<Covered, StoreError> {
        let (up, repo, reference) = (up.clone(), repo.clone(), reference.clone());
        self.blocking(move |inner| inner.coverage(&up, &repo, &reference, &platforms)).await
    }
}

// === impl Inner ===

impl Inner {
    fn coverage(
        self: &Arc<Self>,
        up: &UpstreamName,
        repo: &RepoName,
        reference: &Reference,
        wanted: &[String],
    ) -> Result<Covered, StoreError> {
        let root = match reference {
            Reference::Digest(digest) => *digest,
            Reference::Tag(tag) => {
                let record = Records::look::<TagRecord>(&self.disk, &layout::tag(up, repo, tag))?.record();
                let Some(record) = record else { return Ok(Covered::unknown(None)) };
                record.digest
            }
        };
        let has = |digest: &Digest, kind| {
            Ok::<_, StoreError>(self.stored_len(digest).is_some() && self.is_linked(up, repo, digest, kind)?)
        };
        if matches!(reference, Reference::Digest(_)) && !has(&root, LinkKind::Manifest)? {
            return Ok(Covered::unknown(Some(root)));
        }
        let mut covered = Covered { extent: Extent::Complete, ..Covered::unknown(Some(root)) };
        let mut survey = Survey::new(self);
        let mut seen = HashSet::from([root]);
        let mut followed = 0;
        let mut next: Vec<(Digest, Option<String>, Option<u64>)> = vec![(root, None, None)];
        while let Some((digest, platform, bytes)) = next.pop() {
            self.check_open()?;
            if !has(&digest, LinkKind::Manifest)? {
                covered.lacks(MissingPart { digest, kind: PartKind::Manifest, platform, bytes });
                continue;
            }
            let node = survey.node(&digest)?;
            let text = self.disk.read_all(&layout::blob(&digest), MANIFEST).unwrap_or_default();
            let lengths: HashMap<Digest, u64> = sizes(&text).into_iter().collect();
            let names: HashMap<&Digest, &String> = node.platforms.iter().map(|(of, name)| (of, name)).collect();
            if node.info.is_index && digest == root {
                let offers = |wanted: &&String| names.values().any(|name| is_for(name, wanted));
                covered.not_offered = wanted.iter().filter(|wanted| !offers(wanted)).cloned().collect();
            }
            for child in &node.info.children {
                let bytes = lengths.get(child).copied();
                if !node.info.is_index {
                    if seen.insert(*child) && !has(child, LinkKind::Blob)? {
                        let (kind, platform) = (PartKind::Content, platform.clone());
                        covered.lacks(MissingPart { digest: *child, kind, platform, bytes });
                    }
                    continue;
                }
                let name = names.get(child).map(|name| (*name).clone()).or_else(|| platform.clone());
                let is_wanted = wanted.is_empty()
                    || name.as_ref().is_some_and(|name| wanted.iter().any(|wanted| is_for(name, wanted)));
                if is_wanted && seen.insert(*child) {
                    if followed == FOLLOWED {
                        // What was not looked at is not known to be there.
                        covered.extent = Extent::Incomplete;
                        continue;
                    }
                    followed += 1;
                    covered.platforms.extend(name.clone().filter(|_| digest == root));
                    next.push((*child, name, bytes));
                }
            }
        }
        if !covered.not_offered.is_empty() {
            covered.extent = Extent::Incomplete;
        }
        covered.platforms.sort_unstable();
        covered.platforms.dedup();
        covered.missing.sort_by(|a, b| (&a.platform, a.digest).cmp(&(&b.platform, b.digest)));
        Ok(covered)
    }
}

/// Whether a platform of an index is one that is wanted. Variants that are not named fit any.
fn is_for(offered: &str, wanted: &str) -> bool {
    let fits =
        |long: &str, short: &str| long.strip_prefix(short).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    fits(offered, wanted) || fits(wanted, offered)
}

#[cfg(test)]
mod tests {
    use super::is_for;

    #[test]
    fn variants_that_are_not_named_fit_any() {
        for (offered, wanted) in
            [("linux/amd64", "linux/amd64"), ("linux/arm64/v8", "linux/arm64"), ("linux/arm64", "linux/arm64/v8")]
        {
            assert!(is_for(offered, wanted), "{offered} is {wanted}");
        }
        for (offered, wanted) in
            [("linux/arm64", "linux/arm"), ("linux/arm/v6", "linux/arm/v7"), ("windows/amd64", "linux/amd64")]
        {
            assert!(!is_for(offered, wanted), "{offered} is not {wanted}");
        }
    }
}
