//! The OCI image layout (image-spec, `image-layout.md`): names of its files, and `index.json`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::MAX_INDEX;
use super::contents::{Image, Role};
use super::error::Fault;
use crate::oci::{Algorithm, Digest, media};

/// The file that says that it is one.
pub(super) const OCI_LAYOUT: &[u8] = b"{\"imageLayoutVersion\":\"1.0.0\"}";
/// The name of an image, for skopeo, podman and oras.
const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// The same for containerd.
const IMAGE_NAME: &str = "io.containerd.image.name";

/// A file of a bundle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Name {
    /// `oci-layout`.
    Layout,
    /// `ocistern.json`.
    Contents,
    /// `index.json`.
    Index,
    /// `blobs/ALG/HEX`.
    Blob(Digest),
    /// What `docker save` puts beside a layout, for older programs.
    Docker,
    /// A directory of a layout.
    Directory,
}

/// `index.json`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Index {
    schema_version: u32,
    #[serde(default)]
    media_type: Option<String>,
    /// What is in the layout.
    #[serde(default)]
    pub manifests: Vec<Descriptor>,
}

/// A manifest in the layout.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// Its media type.
    #[serde(default)]
    pub media_type: String,
    /// Its digest.
    pub digest: Digest,
    /// Its length.
    pub size: u64,
    /// What kind of artifact it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// Its names among others.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

// === impl Name ===

impl Name {
    /// The name of a path in a tar; none: no bundle has such a file.
    pub(super) fn parse(path: &str) -> Option<Self> {
        let path = path.strip_prefix("./").unwrap_or(path);
        let is_directory = path.is_empty() || path.ends_with('/');
        match path.trim_end_matches('/') {
            "" | "." | "blobs" | "blobs/sha256" | "blobs/sha512" if is_directory || path == "." => {
                Some(Self::Directory)
            }
            _ if is_directory => None,
            "oci-layout" => Some(Self::Layout),
            "ocistern.json" => Some(Self::Contents),
            "index.json" => Some(Self::Index),
            "manifest.json" | "repositories" => Some(Self::Docker),
            path => {
                let (algorithm, hex) = path.strip_prefix("blobs/")?.split_once('/')?;
                let algorithm = Algorithm::ALL.into_iter().find(|known| known.as_str() == algorithm)?;
                Digest::from_parts(algorithm, hex).ok().map(Self::Blob)
            }
        }
    }
}

/// `blobs/ALG/HEX`.
pub(super) fn blob_path(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm().as_str(), digest.hex())
}

// === impl Index ===

impl Index {
    /// Of these images: each under its name, and without one what refers to them, as programs look for it there.
    pub fn of(images: &[Image]) -> Self {
        let mut manifests = Vec::new();
        for image in images {
            let root = image.parts.iter().find(|part| part.digest == image.digest);
            let mut annotations = BTreeMap::new();
            if image.tag.is_some() {
                annotations.insert(REF_NAME.to_owned(), image.name());
                annotations.insert(IMAGE_NAME.to_owned(), image.name());
            }
            manifests.push(Descriptor {
                media_type: image.media_type.clone(),
                digest: image.digest,
                size: root.map_or(0, |part| part.size),
                artifact_type: root.and_then(|part| part.artifact_type.clone()).filter(|_| image.tag.is_none()),
                annotations,
            });
        }
        let referring = images.iter().flat_map(|image| &image.parts);
        for part in referring.filter(|part| part.role == Role::Manifest && part.subject.is_some()) {
            if !manifests.iter().any(|known| known.digest == part.digest) {
                manifests.push(Descriptor {
                    media_type: part.media_type.clone().unwrap_or_else(|| media::OCI_MANIFEST.to_owned()),
                    digest: part.digest,
                    size: part.size,
                    artifact_type: part.artifact_type.clone(),
                    annotations: BTreeMap::new(),
                });
            }
        }
        Self { schema_version: 2, media_type: Some(media::OCI_INDEX.to_owned()), manifests }
    }

    /// The document.
    pub fn to_json(&self) -> Result<Vec<u8>, Fault> {
        serde_json::to_vec(self).map_err(|error| Fault::Document(error.to_string()))
    }

    /// Reads the document.
    pub fn from_json(bytes: &[u8]) -> Result<Self, Fault> {
        if bytes.len() as u64 > MAX_INDEX {
            return Err(Fault::TooLong { actual: bytes.len() as u64, limit: MAX_INDEX });
        }
        serde_json::from_slice(bytes).map_err(|error| Fault::Document(error.to_string()))
    }
}

// === impl Descriptor ===

impl Descriptor {
    /// The names that it goes by, the whole one first.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        [IMAGE_NAME, REF_NAME].into_iter().filter_map(|key| self.annotations.get(key)).map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_of_a_layout_have_names() {
        let digest = Digest::of(Algorithm::Sha512, b"");
        assert_eq!(Name::parse(&blob_path(&digest)), Some(Name::Blob(digest)));
        assert_eq!(Name::parse(&format!("./{}", blob_path(&digest))), Some(Name::Blob(digest)));
        for directory in ["./", ".", "blobs/", "./blobs/sha256/", "blobs/sha512/"] {
            assert_eq!(Name::parse(directory), Some(Name::Directory), "{directory}");
        }
        let hex = Digest::of(Algorithm::Sha256, b"").hex();
        for other in [
            "/etc/passwd",
            "../oci-layout",
            "blobs/sha256/../../index.json",
            "blobs",
            "x/",
            "././index.json",
            "//index.json",
            "index.json/",
            &format!("/blobs/sha256/{hex}"),
            &format!("blobs//sha256/{hex}"),
            &format!("blobs/sha512/{hex}"),
            &format!("blobs/sha256/{}", hex.to_uppercase()),
            &format!("blobs/sha256/{hex}\n"),
        ] {
            assert_eq!(Name::parse(other), None, "{other}");
        }
    }
}
