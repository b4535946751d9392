//! The manifest of contents: which images a bundle has, what they are made of, which blobs are in it, and which it relies
//! on being there already.
//!
//! Its checksum is over the document as it stands, so that damage is noticed. Whoever can write the bundle can write the
//! checksum too: who must not trust the way that it took compares the file's own hash, or a signature of it.

use std::collections::{HashMap, HashSet};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::error::Fault;
use super::{MAX_CONTENTS, MAX_MANIFEST};
use crate::oci::{Algorithm, Digest, RepoName, Tag, UpstreamName};

/// The version that this program writes and reads.
const VERSION: u64 = 1;

#[derive(Serialize, Deserialize)]
struct Envelope<'a> {
    version: u64,
    checksum: String,
    #[serde(borrow)]
    contents: &'a RawValue,
}

/// What a bundle has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Contents {
    /// When it was made.
    pub made: Timestamp,
    /// By which program.
    pub by: String,
    /// The images, in order of their names.
    pub images: Vec<Image>,
    /// Every blob that is in it, in its order.
    pub blobs: Vec<Blob>,
    /// Blobs of the images that are not in it: whoever takes it has them.
    #[serde(default)]
    pub relies_on: Vec<Blob>,
}

/// A blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blob {
    /// Its digest.
    pub digest: Digest,
    /// Its length.
    pub size: u64,
}

/// An image, or another artifact: what a tag names, or a manifest without one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// The upstream's name.
    pub upstream: UpstreamName,
    /// Its URL, where that is known.
    #[serde(default)]
    pub url: Option<String>,
    /// The repository there.
    pub repository: RepoName,
    /// The tag.
    #[serde(default)]
    pub tag: Option<Tag>,
    /// Its manifest or index.
    pub digest: Digest,
    /// The media type of that.
    pub media_type: String,
    /// Upstream's entity tag.
    #[serde(default)]
    pub etag: Option<String>,
    /// Since when the tag means this where it is; a bundle does not say it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
    /// When upstream last said that this is what the tag means.
    pub as_of: Timestamp,
    /// Whether it was not for everybody where it comes from.
    #[serde(default)]
    pub private: bool,
    /// All that belongs to it and was there: manifests, configurations, layers, and what refers to its manifests.
    pub parts: Vec<Part>,
    /// What its manifests name and was not there.
    #[serde(default)]
    pub absent: Vec<Digest>,
}

/// As what a blob belongs to an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// A manifest or index.
    Manifest,
    /// A configuration, a layer, or another file.
    Blob,
}

/// A part of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// Its digest.
    pub digest: Digest,
    /// Its length.
    pub size: u64,
    /// As what it belongs to the image.
    pub role: Role,
    /// A manifest's media type.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    /// What a manifest refers to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Digest>,
    /// What kind of artifact a manifest is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// Since when it belongs to the repository where it is; a bundle does not say it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
}

// === impl Image ===

impl Image {
    /// `UPSTREAM/REPOSITORY:TAG`, without a tag `UPSTREAM/REPOSITORY@DIGEST`.
    pub fn name(&self) -> String {
        let Self { upstream, repository, tag, digest, .. } = self;
        match tag {
            Some(tag) => format!("{upstream}/{repository}:{tag}"),
            None => format!("{upstream}/{repository}@{digest}"),
        }
    }
}

// === impl Contents ===

impl Contents {
    /// Of these images: of their parts those are in it that `has` does not know.
    pub fn of(images: Vec<Image>, by: String, made: Timestamp, has: impl Fn(&Digest) -> bool) -> Self {
        let mut seen = HashSet::new();
        let (mut blobs, mut relies_on) = (Vec::new(), Vec::new());
        // What leads to others comes first, so that who reads it knows what is to come.
        for role in [Role::Manifest, Role::Blob] {
            let mut parts: Vec<&Part> =
                images.iter().flat_map(|image| &image.parts).filter(|part| part.role == role).collect();
            parts.sort_by_key(|part| part.digest.to_string());
            for Part { digest, size, .. } in parts {
                if seen.insert(*digest) {
                    let blob = Blob { digest: *digest, size: *size };
                    if has(digest) { relies_on.push(blob) } else { blobs.push(blob) }
                }
            }
        }
        Self { made, by, images, blobs, relies_on }
    }

    /// Bytes of all blobs that are in it.
    pub fn bytes(&self) -> u64 {
        self.blobs.iter().fold(0, |sum, blob| sum.saturating_add(blob.size))
    }

    /// The document.
    pub fn to_json(&self) -> Result<Vec<u8>, Fault> {
        let fail = |error: serde_json::Error| Fault::Document(error.to_string());
        let contents = serde_json::value::to_raw_value(self).map_err(fail)?;
        let envelope = Envelope { version: VERSION, checksum: checksum(&contents), contents: &contents };
        let mut bytes = serde_json::to_vec(&envelope).map_err(fail)?;
        bytes.push(b'\n');
        Ok(bytes)
    }

    /// Reads the document.
    pub fn from_json(bytes: &[u8]) -> Result<Self, Fault> {
        if bytes.len() as u64 > MAX_CONTENTS {
            return Err(Fault::TooLong { actual: bytes.len() as u64, limit: MAX_CONTENTS });
        }
        let fail = |error: serde_json::Error| Fault::Document(error.to_string());
        let envelope: Envelope<'_> = serde_json::from_slice(bytes).map_err(fail)?;
        if envelope.version != VERSION {
            return Err(Fault::Version(envelope.version));
        }
        if envelope.checksum != checksum(envelope.contents) {
            return Err(Fault::Checksum);
        }
        let contents: Self = serde_json::from_str(envelope.contents.get()).map_err(fail)?;
        contents.checked()
    }

    /// Whether what it says fits together.
    fn checked(self) -> Result<Self, Fault> {
        let wrong = |what: String| Err(Fault::Document(what));
        let mut sizes = HashMap::new();
        let mut sum = 0_u64;
        for Blob { digest, size } in self.blobs.iter().chain(&self.relies_on) {
            if sizes.insert(*digest, *size).is_some() {
                return wrong(format!("it names {digest} twice"));
            }
            let Some(more) = sum.checked_add(*size) else { return wrong("its sizes are no sizes".to_owned()) };
            sum = more;
        }
        for image in &self.images {
            for part in &image.parts {
                if sizes.get(&part.digest) != Some(&part.size) {
                    return wrong(format!("{} has a part that it does not name: {}", image.name(), part.digest));
                }
                if part.role == Role::Manifest && part.size > MAX_MANIFEST {
                    return wrong(format!("the manifest {} is longer than {MAX_MANIFEST} bytes", part.digest));
                }
            }
            if !image.parts.iter().any(|part| part.digest == image.digest && part.role == Role::Manifest) {
                return wrong(format!("{} is without its manifest", image.name()));
            }
        }
        Ok(self)
    }
}

fn checksum(contents: &RawValue) -> String {
    Digest::of(Algorithm::Sha256, format!("{VERSION}:{}", contents.get()).as_bytes()).to_string()
}
