//! Repository names, tags, references and the names of configured upstreams.
//!
//! OCI distribution-spec, `spec.md`, "Pulling manifests": `<name>` and `<reference>` grammars.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::Digest;

/// Longest repository name: the spec asks clients to keep host and name below 255 together.
const MAX_REPO: usize = 255;
/// Longest tag.
const MAX_TAG: usize = 128;
/// Longest name of an upstream: a DNS name with a port.
const MAX_UPSTREAM: usize = 253 + 6;

/// A repository's name, such as `library/alpine`; cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RepoName(Arc<str>);

/// A tag, such as `3.20`; cheap to clone. Tags are case-sensitive.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tag(Arc<str>);

/// What a manifest is asked by.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reference {
    /// By a name that may move.
    Tag(Tag),
    /// By its content.
    Digest(Digest),
}

/// The name of a configured upstream: its host, `host-PORT`, or what the operator called it. Matches
/// `[a-z0-9]+([._-][a-z0-9]+)*`; it is a directory name in the store and a metric label.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UpstreamName(Arc<str>);

/// The text does not fit the grammar of what it stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidName {
    /// Not a repository name.
    #[error(
        "not a repository name (lower-case letters, digits, and . _ __ - between them, parts divided by /, at most 255 characters)"
    )]
    Repository,
    /// Not a tag.
    #[error("not a tag (letters, digits, . _ and -, not starting with . or -, at most 128 characters)")]
    Tag,
    /// Neither a tag nor a digest.
    #[error("neither a tag nor a digest")]
    Reference,
    /// Not a name for an upstream.
    #[error("not a name for an upstream (lower-case letters and digits, with single . _ or - between them)")]
    Upstream,
}

// === impl RepoName ===

impl RepoName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The parts between slashes; at least one, none of them empty, `.`, `..` or starting with `_`.
    pub fn parts(&self) -> impl Iterator<Item = &str> {
        self.0.split('/')
    }

    /// The name with `library/` before it, if it has one part only (what Docker Hub calls official images).
    #[must_use]
    pub fn with_library(&self) -> Self {
        let candidate = format!("library/{}", self.0);
        if self.0.contains('/') || candidate.len() > MAX_REPO { self.clone() } else { Self(candidate.into()) }
    }
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn is_repo_part(part: &str) -> bool {
    let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = part.as_bytes();
    let (Some(&first), Some(&last)) = (bytes.first(), bytes.last()) else { return false };
    alphanumeric(first)
        && alphanumeric(last)
        && bytes.split(|&b| alphanumeric(b)).all(|separator| match separator {
            [] | b"." | b"_" | b"__" => true,
            dashes => dashes.iter().all(|&b| b == b'-'),
        })
}

impl FromStr for RepoName {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() <= MAX_REPO && text.split('/').all(is_repo_part) {
            Ok(Self(text.into()))
        } else {
            Err(InvalidName::Repository)
        }
    }
}

// === impl Tag ===

impl Tag {
    /// The tag as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The tag under which clients look for referrers of `subject` where a registry has no referrers API
    /// (distribution-spec, "Referrers Tag Schema"): the algorithm cut to 32 and the hash to 64 characters.
    pub fn referrers_fallback(subject: &Digest) -> Self {
        let hex: String = subject.hex().chars().take(64).collect();
        Self(format!("{}-{hex}", subject.algorithm().as_str()).into())
    }
}

impl FromStr for Tag {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut bytes = text.bytes();
        let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
        if text.len() <= MAX_TAG && bytes.next().is_some_and(word) && bytes.all(|b| word(b) || b == b'.' || b == b'-') {
            Ok(Self(text.into()))
        } else {
            Err(InvalidName::Tag)
        }
    }
}

// === impl Reference ===

impl FromStr for Reference {
    type Err = InvalidName;

    /// A text with a colon can only be a digest: tags have none.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.contains(':') {
            text.parse().map(Self::Digest).map_err(|_| InvalidName::Reference)
        } else {
            text.parse().map(Self::Tag).map_err(|_| InvalidName::Reference)
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tag(tag) => tag.fmt(f),
            Self::Digest(digest) => digest.fmt(f),
        }
    }
}

// === impl UpstreamName ===

impl UpstreamName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for UpstreamName {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let part = |p: &str| !p.is_empty() && p.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        if text.len() <= MAX_UPSTREAM && text.split(['.', '_', '-']).all(part) {
            Ok(Self(text.into()))
        } else {
            Err(InvalidName::Upstream)
        }
    }
}

macro_rules! text_newtype {
    ($($name:ident),*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    )*};
}
text_newtype!(RepoName, Tag, UpstreamName);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn repository_grammar() {
        for good in ["alpine", "library/alpine", "a.b_c__d---e/0", "a--b"] {
            assert!(good.parse::<RepoName>().is_ok(), "{good} is a repository name");
        }
        for bad in [
            "", "/", "a/", "/a", "a//b", "A", "a..b", "a___b", "a._b", "_a", "a_", ".a", "a/../b", "a/./b", "a b",
            "a\0b", "é", "a%2fb", "a\\b",
        ] {
            assert!(bad.parse::<RepoName>().is_err(), "{bad:?} is not a repository name");
        }
        assert!("a".repeat(256).parse::<RepoName>().is_err(), "256 characters are too many");
    }

    #[test]
    fn tag_and_reference_grammar() {
        for good in ["1.0", "v1", "_x", "A.b-C", &"t".repeat(128)] {
            assert!(good.parse::<Tag>().is_ok(), "{good} is a tag");
        }
        for bad in ["", ".a", "-a", "a/b", "a:b", "a b", &"t".repeat(129)] {
            assert!(bad.parse::<Tag>().is_err(), "{bad:?} is not a tag");
        }
        assert!("sha256:baddigeststring".parse::<Reference>().is_err());
    }

    #[test]
    fn upstream_grammar() {
        for good in ["docker.io", "localhost-5001", "myregistry.azurecr.io", "a"] {
            assert!(good.parse::<UpstreamName>().is_ok(), "{good} is an upstream's name");
        }
        for bad in ["", "Docker.io", "a..b", ".a", "a-", "a/b", "a:1"] {
            assert!(bad.parse::<UpstreamName>().is_err(), "{bad:?} is not an upstream's name");
        }
    }

    #[test]
    fn one_part_names_get_library() {
        let name: RepoName = "alpine".parse().unwrap();
        assert_eq!(name.with_library().as_str(), "library/alpine");
        assert_eq!(name.with_library().with_library().as_str(), "library/alpine");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(10_000))]
        #[test]
        fn a_name_never_leaves_its_directory(text in "[a-zA-Z0-9._/%\\\\:-]{0,40}") {
            if let Ok(name) = text.parse::<RepoName>() {
                prop_assert!(name.parts().all(|p| !p.is_empty() && p != "." && p != ".." && !p.starts_with('_')));
            }
            if let Ok(tag) = text.parse::<Tag>() {
                prop_assert!(!tag.as_str().contains('/') && tag.as_str() != "." && tag.as_str() != "..");
            }
        }
    }
}
