//! What a manifest is made of, one descriptor at a time: which of it an image of a platform needs.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::Digest;

/// The annotation by which an attestation says which manifest of the same index it is about (`BuildKit`).
const REFERENCE_DIGEST: &str = "vnd.docker.reference.digest";

/// A platform, as `linux/arm64/v8`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Platform {
    os: String,
    architecture: String,
    /// None: any.
    variant: Option<String>,
}

/// What is no platform.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no platform: write OS/ARCHITECTURE or OS/ARCHITECTURE/VARIANT, such as linux/amd64 or linux/arm/v7")]
pub struct InvalidPlatform(String);

/// Which platforms of an index are meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Platforms {
    /// All that there are.
    All,
    /// Those that are one of these.
    Chosen(Vec<Platform>),
}

/// What a manifest or an index names, in its order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Parts {
    /// Config, layers and other blobs.
    pub blobs: Vec<BlobPart>,
    /// Manifests of an index.
    pub manifests: Vec<ManifestPart>,
    /// Digests of algorithms that are not known.
    pub unknown: Vec<String>,
}

/// A blob that a manifest names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlobPart {
    /// Its digest.
    pub digest: Digest,
    /// Its bytes.
    pub size: u64,
    /// It is to be had elsewhere (`urls`), or must not be given on: registries need not have it.
    pub foreign: bool,
}

/// A manifest that an index names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManifestPart {
    /// Its digest.
    pub digest: Digest,
    /// For what it is; none: the index does not say, or it is for nothing that runs.
    pub platform: Option<Platform>,
    /// The manifest that it is an attestation of.
    pub attests: Option<String>,
}

#[derive(Deserialize)]
struct Document {
    config: Option<Descriptor>,
    #[serde(default)]
    layers: Option<Vec<Descriptor>>,
    /// Of the withdrawn OCI artifact manifest.
    #[serde(default)]
    blobs: Option<Vec<Descriptor>>,
    #[serde(default)]
    manifests: Option<Vec<Descriptor>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    #[serde(default)]
    media_type: Option<String>,
    digest: String,
    #[serde(default)]
    size: u64,
    #[serde(default)]
    urls: Option<Vec<String>>,
    #[serde(default)]
    platform: Option<Written>,
    #[serde(default)]
    annotations: Option<std::collections::BTreeMap<String, String>>,
}

#[derive(Deserialize)]
struct Written {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    variant: Option<String>,
}

// === impl Platform ===

impl Platform {
    /// Linux on the processor that this program is built for, as images call it.
    pub fn of_this_machine() -> Self {
        let (architecture, variant) = match std::env::consts::ARCH {
            "x86_64" => ("amd64", None),
            "x86" => ("386", None),
            "aarch64" => ("arm64", None),
            "arm" => ("arm", Some("v7")),
            "powerpc64" => (if cfg!(target_endian = "little") { "ppc64le" } else { "ppc64" }, None),
            "loongarch64" => ("loong64", None),
            other => (other, None),
        };
        Self { os: "linux".to_owned(), architecture: architecture.to_owned(), variant: variant.map(str::to_owned) }
    }

    /// Whether what an index offers is this one. Without a variant any is; `arm64` alone is its `v8`, as clients have it.
    fn is(&self, offered: &Self) -> bool {
        let variant = |platform: &Self| match (&platform.variant, platform.architecture.as_str()) {
            (None, "arm64") => Some("v8".to_owned()),
            (variant, _) => variant.clone(),
        };
        self.os == offered.os
            && self.architecture == offered.architecture
            && (self.variant.is_none() || variant(self) == variant(offered))
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant.as_ref().map_or(Ok(()), |variant| write!(f, "/{variant}"))
    }
}

impl FromStr for Platform {
    type Err = InvalidPlatform;

    fn from_str(text: &str) -> Result<Self, InvalidPlatform> {
        let word =
            |word: &&str| !word.is_empty() && word.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
        let parts: Vec<&str> = text.split('/').collect();
        match parts.as_slice() {
            [os, architecture, variant @ ..] if variant.len() <= 1 && parts.iter().all(word) => Ok(Self {
                os: (*os).to_owned(),
                architecture: (*architecture).to_owned(),
                variant: variant.first().map(|variant| (*variant).to_owned()),
            }),
            _ => Err(InvalidPlatform(text.to_owned())),
        }
    }
}

impl TryFrom<String> for Platform {
    type Error = InvalidPlatform;

    fn try_from(text: String) -> Result<Self, InvalidPlatform> {
        text.parse()
    }
}

impl From<Platform> for String {
    fn from(platform: Platform) -> Self {
        platform.to_string()
    }
}

// === impl Parts ===

impl Parts {
    /// Those of a document; none, if it is no manifest.
    pub fn of(document: &[u8]) -> Option<Self> {
        let Document { config, layers, blobs, manifests } = serde_json::from_slice(document).ok()?;
        let mut parts = Self::default();
        for descriptor in config.into_iter().chain(layers.into_iter().flatten()).chain(blobs.into_iter().flatten()) {
            match descriptor.digest.parse() {
                Ok(digest) => {
                    let foreign = descriptor.is_foreign();
                    parts.blobs.push(BlobPart { digest, size: descriptor.size, foreign });
                }
                Err(_) => parts.unknown.push(descriptor.digest),
            }
        }
        for descriptor in manifests.into_iter().flatten() {
            match descriptor.digest.parse() {
                Ok(digest) => parts.manifests.push(ManifestPart {
                    digest,
                    platform: descriptor.platform.and_then(Written::known),
                    attests: descriptor.annotations.and_then(|mut all| all.remove(REFERENCE_DIGEST)),
                }),
                Err(_) => parts.unknown.push(descriptor.digest),
            }
        }
        Some(parts)
    }

    /// The manifests that are needed for these platforms: theirs, the attestations of those, and what is for no platform.
    ///
    /// # Errors
    /// The index has platforms, and none of these: the ones that it has.
    pub fn chosen(&self, platforms: &Platforms) -> Result<Vec<&ManifestPart>, Vec<String>> {
        let Platforms::Chosen(wanted) = platforms else { return Ok(self.manifests.iter().collect()) };
        let fits = |part: &ManifestPart| {
            let platform = part.platform.as_ref();
            platform.is_some_and(|offered| wanted.iter().any(|wanted| wanted.is(offered)))
        };
        let offered = || self.manifests.iter().filter_map(|part| part.platform.as_ref());
        if offered().next().is_some() && !self.manifests.iter().any(fits) {
            return Err(offered().map(ToString::to_string).collect());
        }
        let is_wanted = |part: &&ManifestPart| match (&part.platform, &part.attests) {
            (Some(_), _) => fits(part),
            (None, Some(subject)) => {
                let about = self.manifests.iter().find(|other| other.digest.to_string() == *subject);
                about.is_none_or(|about| about.platform.is_none() || fits(about))
            }
            (None, None) => true,
        };
        Ok(self.manifests.iter().filter(is_wanted).collect())
    }
}

impl Descriptor {
    fn is_foreign(&self) -> bool {
        let of_type = |kind: &str| kind.contains(".nondistributable.") || kind.contains(".foreign.");
        self.urls.as_ref().is_some_and(|urls| !urls.is_empty()) || self.media_type.as_deref().is_some_and(of_type)
    }
}

impl Written {
    /// None: what `unknown` stands for is no platform.
    fn known(self) -> Option<Platform> {
        let Self { os, architecture, variant } = self;
        let known = !os.is_empty() && os != "unknown";
        known.then(|| Platform { os, architecture, variant: variant.filter(|variant| !variant.is_empty()) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Algorithm;

    fn digest(n: u8) -> Digest {
        Digest::of(Algorithm::Sha256, &[n])
    }

    fn chosen(index: &serde_json::Value, platforms: &[&str]) -> Result<Vec<Digest>, Vec<String>> {
        let parts = Parts::of(index.to_string().as_bytes()).unwrap();
        let platforms = Platforms::Chosen(platforms.iter().map(|text| text.parse().unwrap()).collect());
        parts.chosen(&platforms).map(|parts| parts.iter().map(|part| part.digest).collect())
    }

    #[test]
    fn an_index_gives_what_a_platform_needs() {
        let platform = |os: &str, architecture: &str, variant: &str| serde_json::json!({"os": os, "architecture": architecture, "variant": variant});
        let of = |n: u8, platform: serde_json::Value| serde_json::json!({"digest": digest(n).to_string(), "platform": platform});
        let attestation = |n: u8, about: u8| {
            serde_json::json!({"digest": digest(n).to_string(), "platform": platform("unknown", "unknown", ""),
                "annotations": {REFERENCE_DIGEST: digest(about).to_string(), "vnd.docker.reference.type": "attestation-manifest"}})
        };
        let index = serde_json::json!({"manifests": [
            of(1, platform("linux", "amd64", "")), of(2, platform("linux", "arm64", "v8")), of(3, platform("linux", "arm", "v6")),
            of(4, platform("linux", "arm", "v7")), of(5, platform("windows", "amd64", "")),
            attestation(11, 1), attestation(12, 2), {"digest": digest(20).to_string()},
        ]});
        let wanted = |numbers: &[u8]| Ok(numbers.iter().map(|n| digest(*n)).collect());
        assert_eq!(chosen(&index, &["linux/amd64"]), wanted(&[1, 11, 20]));
        assert_eq!(chosen(&index, &["linux/arm64"]), wanted(&[2, 12, 20]));
        assert_eq!(chosen(&index, &["linux/arm64/v8", "linux/arm/v7"]), wanted(&[2, 4, 12, 20]));
        assert_eq!(chosen(&index, &["linux/arm"]), wanted(&[3, 4, 20]));
        assert!(chosen(&index, &["linux/s390x"]).unwrap_err().contains(&"linux/arm/v6".to_owned()));
        let parts = Parts::of(index.to_string().as_bytes()).unwrap();
        assert_eq!(parts.chosen(&Platforms::All).unwrap().len(), 8);
        let artifacts = serde_json::json!({"manifests": [{"digest": digest(1).to_string()}]});
        assert_eq!(chosen(&artifacts, &["linux/amd64"]), wanted(&[1]), "what is for no platform");
    }

    #[test]
    fn foreign_layers_are_told() {
        let manifest = serde_json::json!({
            "config": {"digest": digest(1).to_string(), "size": 2},
            "layers": [
                {"digest": digest(2).to_string(), "size": 9, "mediaType": "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"},
                {"digest": digest(3).to_string(), "size": 9, "urls": ["https://elsewhere.example/x"]},
                {"digest": digest(4).to_string(), "size": 9, "urls": []},
                {"digest": "md5:x", "size": 1},
            ],
        });
        let parts = Parts::of(manifest.to_string().as_bytes()).unwrap();
        let told: Vec<_> = parts.blobs.iter().map(|part| (part.size, part.foreign)).collect();
        assert_eq!(told, [(2, false), (9, true), (9, true), (9, false)]);
        assert_eq!(parts.unknown, ["md5:x"]);
        assert_eq!(Parts::of(b"<html>"), None);
    }

    #[test]
    fn platforms_as_people_write_them() {
        for text in ["linux/amd64", "linux/arm/v7", "windows/amd64"] {
            assert_eq!(text.parse::<Platform>().unwrap().to_string(), text);
        }
        for text in ["", "linux", "linux/", "linux/arm/v7/x", "linux/a b", "all"] {
            assert!(text.parse::<Platform>().is_err(), "{text}");
        }
        assert!(Platform::of_this_machine().to_string().starts_with("linux/"));
    }
}
