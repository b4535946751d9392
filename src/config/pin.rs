//! A pin: names whose content is never evicted. In the configuration a table `[[pin]]`, for commands one word.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::error::Fault;
use super::pattern;
use crate::oci::{Digest, RepoName, Tag, UpstreamName};

const PIN: &str = "a pin: write UPSTREAM/REPOSITORY with :TAG or @DIGEST behind it if it is not all tags, such as \
                   \"docker.io/library/alpine:3.20\" or \"ghcr.io/team/**:v*\"";

/// Names whose content is kept.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Pin {
    /// Of which upstream.
    pub upstream: UpstreamName,
    /// Pattern of repositories: `*` stays within a path part, `**` crosses.
    pub repository: String,
    /// Of which reference.
    pub pinned: Pinned,
}

/// What of a repository is kept.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Pinned {
    /// What the tags of this pattern mean, `*` for anything.
    Tags(String),
    /// This manifest.
    Digest(Digest),
}

// === impl Pin ===

impl Pin {
    /// Whether it keeps what this tag means.
    pub fn matches(&self, up: &UpstreamName, repo: &RepoName, tag: &Tag) -> bool {
        let Pinned::Tags(tags) = &self.pinned else { return false };
        self.is_about(up, repo) && pattern::matches(tags, tag.as_str())
    }

    /// Whether it keeps anything in this repository.
    pub fn is_about(&self, up: &UpstreamName, repo: &RepoName) -> bool {
        self.upstream == *up && pattern::matches(&self.repository, repo.as_str())
    }

    /// The manifest that it keeps, where it names one.
    pub const fn digest(&self) -> Option<&Digest> {
        match &self.pinned {
            Pinned::Digest(digest) => Some(digest),
            Pinned::Tags(_) => None,
        }
    }

    /// Reads `UPSTREAM/REPOSITORY[:TAGS|@DIGEST]`. `library` says whether that upstream's official images stand in
    /// `library/`.
    ///
    /// # Errors
    /// What is wrong with it, for whoever wrote it.
    pub fn parse(text: &str, library: impl Fn(&UpstreamName) -> bool) -> Result<Self, PinError> {
        let wrong = || PinError(Fault::value(text, PIN).to_string() + &pattern::advice(text));
        let (upstream, rest) = text.split_once('/').ok_or_else(wrong)?;
        let upstream: UpstreamName = upstream.parse().map_err(|_| wrong())?;
        let (repository, pinned) = if let Some((repository, digest)) = rest.split_once('@') {
            (repository, Pinned::Digest(digest.parse().map_err(|_| wrong())?))
        } else {
            let (repository, tags) = rest.split_once(':').unwrap_or((rest, "*"));
            (repository, Pinned::Tags(pattern::tag(tags).map_err(|fault| PinError(fault.to_string()))?))
        };
        let repository =
            pattern::repository(repository, library(&upstream)).map_err(|fault| PinError(fault.to_string()))?;
        Ok(Self { upstream, repository, pinned })
    }
}

/// As commands take it.
impl fmt::Display for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.upstream, self.repository)?;
        match &self.pinned {
            Pinned::Tags(tags) => write!(f, ":{tags}"),
            Pinned::Digest(digest) => write!(f, "@{digest}"),
        }
    }
}

impl From<Pin> for String {
    fn from(pin: Pin) -> Self {
        pin.to_string()
    }
}

/// What was written by [`Pin`]'s own `Display`.
impl TryFrom<String> for Pin {
    type Error = PinError;

    fn try_from(text: String) -> Result<Self, PinError> {
        Self::parse(&text, |_| false)
    }
}

/// A word that is no pin.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct PinError(String);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Algorithm;

    fn pin(text: &str) -> Result<Pin, PinError> {
        Pin::parse(text, |upstream| upstream.as_str() == "docker.io")
    }

    #[test]
    fn words_become_pins_and_back() {
        let digest = Digest::of(Algorithm::Sha256, b"x");
        for (text, shown) in [
            ("ghcr.io/org/app", "ghcr.io/org/app:*".to_owned()),
            ("docker.io/library/alpine:3.2*", "docker.io/library/alpine:3.2*".to_owned()),
            ("docker.io/**:latest", "docker.io/**:latest".to_owned()),
            (&format!("ghcr.io/a@{digest}"), format!("ghcr.io/a@{digest}")),
            ("docker.io/alpine:3.20", "docker.io/library/alpine:3.20".to_owned()),
            (&format!("docker.io/alpine@{digest}"), format!("docker.io/library/alpine@{digest}")),
        ] {
            let parsed = pin(text).unwrap();
            assert_eq!(parsed.to_string(), shown);
            assert_eq!(pin(&shown).unwrap(), parsed);
        }
        for text in ["", "alpine", "ghcr.io/", "ghcr.io/A", "ghcr.io/a:", "ghcr.io/a@sha256:1", "/a", "ghcr.io/a:b/c"] {
            assert!(pin(text).is_err(), "{text}");
        }
        for text in ["docker.io/*", "docker.io/alp*:3.20"] {
            let error = pin(text).unwrap_err().to_string();
            assert!(error.contains("library/NAME"), "{error}");
        }
    }

    #[test]
    fn a_pin_keeps_what_its_patterns_match() {
        let keeps = |text: &str, name: (&str, &str, &str)| {
            pin(text).unwrap().matches(&name.0.parse().unwrap(), &name.1.parse().unwrap(), &name.2.parse().unwrap())
        };
        assert!(keeps("ghcr.io/org/*", ("ghcr.io", "org/app", "v1")));
        assert!(!keeps("ghcr.io/org/*", ("ghcr.io", "org/sub/app", "v1")));
        assert!(!keeps("ghcr.io/org/*", ("quay.io", "org/app", "v1")));
        assert!(keeps("ghcr.io/**:v*", ("ghcr.io", "org/sub/app", "v1")));
        assert!(!keeps("ghcr.io/**:v*", ("ghcr.io", "org/sub/app", "latest")));
        let digest = Digest::of(Algorithm::Sha256, b"x");
        assert!(!keeps(&format!("ghcr.io/a@{digest}"), ("ghcr.io", "a", "v1")));
    }
}
