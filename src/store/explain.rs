//! What is stored of one image and what is not, since when, and what has gone of it: the facts behind "why was this a miss".

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::departed::Departed;
use super::images::MANIFEST;
use super::layout;
use super::survey::Survey;
use super::{Access, AccessRecord, Inner, LinkKind, Store, StoreError, TagRecord};
use crate::config::Pinned;
use crate::oci::{Digest, Reference, RepoName, UpstreamName, sizes};

/// Parts that are listed; counted are all.
const LISTED: usize = 200;
/// Manifests that are followed.
const FOLLOWED: usize = 1000;

/// What is stored of an image.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stored {
    /// Its manifest; null: nothing is known of the tag.
    pub digest: Option<Digest>,
    /// The media type of that, if it is known.
    pub media_type: Option<String>,
    /// Whether that is stored.
    pub manifest_stored: bool,
    /// Whether upstream served it, or took it, in this repository: without that, even what is stored is asked for.
    pub linked: bool,
    /// When the manifest was stored.
    pub fetched_at: Option<Timestamp>,
    /// When it was asked for last.
    pub last_used: Option<Timestamp>,
    /// Stored blobs, manifests included.
    pub blobs: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Configurations and layers of stored manifests that are not stored, and of an image that is no index the manifest.
    pub missing_blobs: usize,
    /// Their bytes, as far as manifests say how long they are.
    pub missing_bytes: u64,
    /// What it is made of: the manifest, those of an index, configurations and layers; two hundred at most, what is not
    /// stored first.
    pub parts: Vec<PartReport>,
    /// If the tag, or the manifest, is not there: when it went and why, if that is known.
    pub departed: Option<Departed>,
    /// Who may read the repository.
    pub access: Option<Access>,
    /// Pins that keep it.
    pub pins: Vec<String>,
}

/// A part of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartReport {
    /// Its digest.
    pub digest: Digest,
    /// As what.
    pub kind: PartKind,
    /// Of a manifest in an index: for which platform.
    pub platform: Option<String>,
    /// Its length, if it is stored or the manifest says so.
    pub bytes: Option<u64>,
    /// Whether it is stored.
    pub stored: bool,
    /// When it was stored.
    pub fetched_at: Option<Timestamp>,
    /// If it is not stored: when it went and why, if that is known.
    pub departed: Option<Departed>,
}

/// As what a blob is part of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PartKind {
    /// A manifest or index.
    Manifest,
    /// A configuration or layer.
    Content,
}

/// A part as a manifest names it.
struct Named {
    digest: Digest,
    platform: Option<String>,
    announced: Option<u64>,
}

// === impl Named ===

impl Named {
    const fn new(digest: Digest, announced: Option<u64>) -> Self {
        Self { digest, platform: None, announced }
    }
}

// === impl Store ===

impl Store {
    /// What is stored of an image.
    pub async fn explain(
        &self,
        up: &UpstreamName,
        repo: &RepoName,
        reference: &Reference,
    ) -> Result<Stored, StoreError> {
        let (up, repo, reference) = (up.clone(), repo.clone(), reference.clone());
        self.blocking(move |inner| inner.explain(&up, &repo, &reference)).await
    }
}

// === impl Inner ===

impl Inner {
    fn explain(
        self: &Arc<Self>,
        up: &UpstreamName,
        repo: &RepoName,
        reference: &Reference,
    ) -> Result<Stored, StoreError> {
        let mut stored = Stored {
            access: self
                .records
                .read::<AccessRecord>(&self.disk, &layout::access(up, repo))
                .map(|record| record.access),
            ..Stored::default()
        };
        match reference {
            Reference::Digest(digest) => stored.digest = Some(*digest),
            Reference::Tag(tag) => {
                if let Some(record) = self.records.read::<TagRecord>(&self.disk, &layout::tag(up, repo, tag)) {
                    (stored.digest, stored.media_type) = (Some(record.digest), Some(record.media_type));
                } else if let Some((digest, departed)) = self.departures.tag(up, repo, tag) {
                    (stored.digest, stored.departed) = (Some(digest), Some(departed));
                }
            }
        }
        for pin in self.pins.all() {
            let keeps = match (&pin.pinned, reference) {
                (Pinned::Tags(_), Reference::Tag(tag)) => pin.matches(up, repo, tag),
                (Pinned::Digest(kept), _) => pin.is_about(up, repo) && stored.digest == Some(*kept),
                (Pinned::Tags(_), Reference::Digest(_)) => false,
            };
            if keeps {
                stored.pins.push(pin.to_string());
            }
        }
        let Some(digest) = stored.digest else { return Ok(stored) };
        let mut survey = Survey::new(self);
        let link = self.records.read::<super::Link>(&self.disk, &layout::link(up, repo, &digest));
        stored.linked = link.as_ref().is_some_and(|link| link.kind == LinkKind::Manifest);
        stored.media_type = stored.media_type.or_else(|| link.and_then(|link| link.media_type));
        self.add_parts(&mut survey, &digest, &mut stored)?;
        stored.manifest_stored = survey.len(&digest).is_some();
        stored.fetched_at = self.written_at(&digest).filter(|_| stored.manifest_stored);
        stored.last_used = self.last_used(&super::order::Short::from(&digest));
        if stored.media_type.is_none() {
            stored.media_type.clone_from(&survey.node(&digest)?.info.media_type);
        }
        if stored.departed.is_none() && !stored.manifest_stored {
            stored.departed = self.departures.blob(&digest);
        }
        stored.parts.sort_by_key(|part| part.stored);
        stored.parts.truncate(LISTED);
        Ok(stored)
    }

    /// The manifest and everything below it.
    fn add_parts(&self, survey: &mut Survey<'_>, root: &Digest, stored: &mut Stored) -> Result<(), StoreError> {
        let mut seen = HashSet::from([*root]);
        let mut next = vec![Named::new(*root, None)];
        while let Some(Named { digest, platform, announced }) = next.pop() {
            let here = self.add_part(survey, stored, PartKind::Manifest, Named { digest, platform, announced });
            if digest == *root && !here {
                stored.missing_blobs += 1;
            }
            if !here {
                continue;
            }
            let node = survey.node(&digest)?;
            let bytes = self.disk.read_all(&layout::blob(&digest), MANIFEST).unwrap_or_default();
            let lengths: HashMap<Digest, u64> = sizes(&bytes).into_iter().collect();
            let platforms: HashMap<Digest, &String> = node.platforms.iter().map(|(of, name)| (*of, name)).collect();
            for child in &node.info.children {
                if !seen.insert(*child) {
                    continue;
                }
                let announced = lengths.get(child).copied();
                if node.info.is_index {
                    if seen.len() < FOLLOWED {
                        let platform = platforms.get(child).map(|name| (*name).clone());
                        next.push(Named { digest: *child, platform, announced });
                    }
                } else if !self.add_part(survey, stored, PartKind::Content, Named::new(*child, announced)) {
                    stored.missing_blobs += 1;
                    stored.missing_bytes += announced.unwrap_or_default();
                }
            }
        }
        Ok(())
    }

    /// Whether it is stored.
    fn add_part(&self, survey: &mut Survey<'_>, stored: &mut Stored, kind: PartKind, named: Named) -> bool {
        let Named { digest, platform, announced } = named;
        let length = survey.len(&digest);
        if let Some(length) = length {
            stored.blobs += 1;
            stored.bytes += length;
        }
        stored.parts.push(PartReport {
            digest,
            kind,
            platform,
            bytes: length.or(announced),
            stored: length.is_some(),
            fetched_at: length.and_then(|_| self.written_at(&digest)),
            departed: if length.is_none() { self.departures.blob(&digest) } else { None },
        });
        length.is_some()
    }

    /// When a blob's file was written: it is never changed after that.
    fn written_at(&self, digest: &Digest) -> Option<Timestamp> {
        let modified = self.disk.metadata(Path::new(&layout::blob(digest))).ok()?.modified().ok()?;
        Some(crate::clock::timestamp(modified))
    }

    /// For blobs, the images of which they are a part, by name; some of them, of each.
    pub(super) fn image_names(
        &self,
        blobs: &HashSet<Digest>,
        most: usize,
    ) -> Result<HashMap<Digest, Vec<String>>, StoreError> {
        let mut names: HashMap<Digest, Vec<String>> = HashMap::new();
        if blobs.is_empty() {
            return Ok(names);
        }
        let mut survey = Survey::new(self);
        for (up, repo) in self.repositories()? {
            let contents = survey.contents(&up, &repo)?;
            for (tag, root) in contents.roots(&mut survey)? {
                let mut reached = HashSet::new();
                contents.reach(&mut survey, &root, &mut reached)?;
                let name = super::inventory::image_name(&up, &repo, tag.as_ref(), &root);
                for digest in reached.iter().filter(|digest| blobs.contains(*digest)) {
                    let known = names.entry(*digest).or_default();
                    if known.len() < most {
                        known.push(name.clone());
                    }
                }
            }
        }
        Ok(names)
    }
}
