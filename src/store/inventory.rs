//! What is in the store: by image, and by repository.

use std::collections::{HashMap, HashSet};
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::layout::{FILLS, PART, QUARANTINE};
use super::order::Short;
use super::survey::{Contents, Survey};
use super::{Inner, Store, StoreError};
use crate::config::ImagePattern;
use crate::oci::{Digest, RepoName, Tag, UpstreamName};

/// An image, or another artifact: what a tag names, or a manifest to which neither a tag nor another manifest leads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// `UPSTREAM/REPOSITORY:TAG`, without a tag `UPSTREAM/REPOSITORY@DIGEST`.
    pub name: String,
    /// The upstream.
    pub upstream: UpstreamName,
    /// The repository there.
    pub repository: RepoName,
    /// The tag.
    pub tag: Option<Tag>,
    /// Its manifest or index.
    pub digest: Digest,
    /// The media type of that, if it is known.
    pub media_type: Option<String>,
    /// Of an index, the platforms that it offers.
    pub platforms: Vec<Platform>,
    /// Stored bytes of all that it leads to.
    pub bytes: u64,
    /// Of these, what would be freed if this image alone were removed.
    pub own_bytes: u64,
    /// The rest: others lead to it too.
    pub shared_bytes: u64,
    /// Stored blobs, manifests included.
    pub blobs: usize,
    /// Blobs that it names and that are not stored: nobody has asked for them, or they were evicted.
    pub missing_blobs: usize,
    /// Of these, configurations and layers of stored manifests: the others are platforms that nobody has asked for.
    #[serde(default)]
    pub missing_parts: usize,
    /// Whether its manifest is stored; if not, nothing more is known of it.
    #[serde(default = "stored")]
    pub stored: bool,
    /// When it was asked for last, if that is known.
    pub last_used: Option<Timestamp>,
}

/// What a daemon of a version means that does not say.
const fn stored() -> bool {
    true
}

/// A platform of an index.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    /// As in `linux/arm64/v8`.
    pub platform: String,
    /// Its manifest.
    pub digest: Digest,
    /// Whether that is stored.
    pub stored: bool,
}

/// What takes the store's space.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Each repository, by name.
    pub repositories: Vec<RepositoryUsage>,
    /// Bytes of all blobs.
    pub bytes: u64,
    /// Number of all blobs.
    pub blobs: u64,
    /// Bytes of blobs to which nothing leads: `gc` removes them when they are older than an hour.
    pub unlinked_bytes: u64,
    /// Bytes of running and interrupted downloads.
    pub fills_bytes: u64,
    /// Bytes of what failed verification.
    pub quarantine_bytes: u64,
    /// What the store may hold.
    pub capacity_bytes: u64,
}

/// What a repository takes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RepositoryUsage {
    /// The upstream.
    pub upstream: UpstreamName,
    /// The repository there.
    pub repository: RepoName,
    /// Bytes of all stored blobs that were served in it.
    pub bytes: u64,
    /// Of these, what was served in no other.
    pub unique_bytes: u64,
    /// The rest.
    pub shared_bytes: u64,
    /// Number of stored blobs.
    pub blobs: u64,
    /// Number of tags.
    pub tags: u64,
}

// === impl Store ===

impl Store {
    /// Reads the index, so that the ages of blobs are known: for a store on which [`Store::run`] does not work.
    pub async fn load(&self) -> Result<(), StoreError> {
        self.load_index().await
    }

    /// The images that a pattern means; without one, all.
    pub async fn images(&self, pattern: Option<ImagePattern>) -> Result<Vec<Image>, StoreError> {
        self.blocking(move |inner| inner.images(pattern.as_ref())).await
    }

    /// What takes the space.
    pub async fn usage(&self) -> Result<Usage, StoreError> {
        self.blocking(|inner| inner.usage()).await
    }
}

// === impl Inner ===

impl Inner {
    fn images(self: &Arc<Self>, pattern: Option<&ImagePattern>) -> Result<Vec<Image>, StoreError> {
        self.images_by(&mut Survey::new(self), pattern)
    }

    /// The same by a survey that goes on.
    pub(super) fn images_by(
        self: &Arc<Self>,
        survey: &mut Survey<'_>,
        pattern: Option<&ImagePattern>,
    ) -> Result<Vec<Image>, StoreError> {
        let mut found = Vec::new();
        // By how many images each blob is led to: all of them, whatever the pattern.
        let mut led: HashMap<Digest, u32> = HashMap::new();
        for (up, repo) in self.repositories()? {
            let contents = survey.contents(&up, &repo)?;
            let mut rest: HashSet<Digest> = contents.links.keys().copied().collect();
            for (tag, digest) in contents.roots(survey)? {
                let mut reached = HashSet::new();
                contents.reach(survey, &digest, &mut reached)?;
                for digest in &reached {
                    *led.entry(*digest).or_default() += 1;
                    rest.remove(digest);
                }
                let selected = |p: &ImagePattern| p.is_about(&up, &repo) && p.selects(tag.as_ref(), &digest);
                if pattern.is_none_or(selected) {
                    let image = self.image(survey, &up, &repo, &contents, (tag, digest))?;
                    found.push((image, reached));
                }
            }
            // Served in this repository, by an image that is not there: not an image's own either.
            for digest in rest {
                *led.entry(digest).or_default() += 1;
            }
        }
        let mut images = Vec::new();
        for (mut image, reached) in found {
            let mut parts = HashSet::new();
            for digest in &reached {
                // To reach them, all manifests have been read.
                if let Some(node) = survey.seen(digest).filter(|node| !node.info.is_index) {
                    parts.extend(node.info.children.iter().copied());
                }
                let Some(len) = survey.len(digest) else {
                    image.missing_blobs += 1;
                    continue;
                };
                image.blobs += 1;
                image.bytes += len;
                if led.get(digest) == Some(&1) {
                    image.own_bytes += len;
                }
            }
            image.shared_bytes = image.bytes - image.own_bytes;
            image.missing_parts = parts.iter().filter(|digest| survey.len(digest).is_none()).count();
            images.push(image);
        }
        Ok(images)
    }

    /// An image, without its sizes.
    fn image(
        &self,
        survey: &mut Survey<'_>,
        up: &UpstreamName,
        repo: &RepoName,
        contents: &Contents,
        (tag, digest): (Option<Tag>, Digest),
    ) -> Result<Image, StoreError> {
        let node = survey.node(&digest)?;
        let platform = |(digest, platform): &(Digest, String)| Platform {
            platform: platform.clone(),
            digest: *digest,
            stored: survey.len(digest).is_some(),
        };
        let platforms: Vec<Platform> = node.platforms.iter().map(platform).collect();
        let of_tag = tag.as_ref().and_then(|tag| contents.tags.get(tag)).map(|record| record.media_type.clone());
        let of_link = || contents.links.get(&digest)?.as_ref()?.media_type.clone();
        let children = node.info.children.iter().filter(|_| node.info.is_index);
        let used = children.chain([&digest]).filter_map(|digest| self.last_used(&Short::from(digest))).max();
        Ok(Image {
            name: image_name(up, repo, tag.as_ref(), &digest),
            upstream: up.clone(),
            repository: repo.clone(),
            media_type: of_tag.or_else(of_link).or_else(|| node.info.media_type.clone()),
            platforms,
            bytes: 0,
            own_bytes: 0,
            shared_bytes: 0,
            blobs: 0,
            missing_blobs: 0,
            missing_parts: 0,
            stored: survey.len(&digest).is_some(),
            last_used: used,
            tag,
            digest,
        })
    }

    /// When a blob was used last, if that is known.
    pub(super) fn last_used(&self, short: &Short) -> Option<Timestamp> {
        let seconds = self.books.with_order(|order| order.used(short)).filter(|seconds| *seconds > 0)?;
        Timestamp::from_second(i64::from(seconds)).ok()
    }

    fn usage(&self) -> Result<Usage, StoreError> {
        let mut repositories: Vec<RepositoryUsage> = Vec::new();
        // The repository that leads to a blob; none: several.
        let mut owners: HashMap<Short, Option<usize>> = HashMap::new();
        for (up, repo) in self.repositories()? {
            self.check_open()?;
            let tags = self.tags_of(&up, &repo)?;
            let named = tags.iter().map(|(_, record)| record.digest);
            let digests: HashSet<Digest> = self.linked(&up, &repo)?.into_iter().chain(named).collect();
            let number = repositories.len();
            let mut usage = RepositoryUsage {
                upstream: up,
                repository: repo,
                bytes: 0,
                unique_bytes: 0,
                shared_bytes: 0,
                blobs: 0,
                tags: tags.len() as u64,
            };
            for digest in &digests {
                let Some(len) = self.stored_len(digest) else { continue };
                usage.bytes += len;
                usage.blobs += 1;
                owners.entry(Short::from(digest)).and_modify(|owner| *owner = None).or_insert(Some(number));
            }
            repositories.push(usage);
        }
        let (mut bytes, mut blobs, mut unlinked) = (0, 0, 0);
        self.each_blob(|digest| {
            let Some(len) = self.stored_len(digest) else { return Ok(()) };
            bytes += len;
            blobs += 1;
            match owners.get(&Short::from(digest)) {
                Some(owner) => {
                    if let Some(usage) = owner.and_then(|number| repositories.get_mut(number)) {
                        usage.unique_bytes += len;
                    }
                }
                None => unlinked += len,
            }
            Ok(())
        })?;
        for usage in &mut repositories {
            usage.shared_bytes = usage.bytes.saturating_sub(usage.unique_bytes);
        }
        Ok(Usage {
            repositories,
            bytes,
            blobs,
            unlinked_bytes: unlinked,
            fills_bytes: self.bytes_in(Path::new(FILLS))?,
            quarantine_bytes: self.bytes_in(Path::new(QUARANTINE))?,
            capacity_bytes: self.books.capacity(),
        })
    }

    fn bytes_in(&self, directory: &Path) -> Result<u64, StoreError> {
        let names = self.names_in(directory)?;
        // What is written in several places at once has holes.
        let taken = |found: Metadata| found.len().min(found.blocks().saturating_mul(512));
        let bytes = names.iter().filter_map(|name| {
            let found = self.disk.metadata(&directory.join(name)).ok()?;
            Some(if name.ends_with(PART) { taken(found) } else { found.len() })
        });
        Ok(bytes.sum())
    }
}

/// `UPSTREAM/REPOSITORY:TAG`, or with the digest.
pub(super) fn image_name(up: &UpstreamName, repo: &RepoName, tag: Option<&Tag>, digest: &Digest) -> String {
    match tag {
        Some(tag) => format!("{up}/{repo}:{tag}"),
        None => format!("{up}/{repo}@{digest}"),
    }
}
