//! Patterns of images, as commands on the store take them: `UPSTREAM/REPOSITORY`, and `:TAG` or `@DIGEST` after it.
//! `*` stays within a part of the name and `**` crosses parts; in a tag `*` is anything.

use std::fmt;
use std::str::FromStr;

use super::pattern;
use crate::oci::{Digest, RepoName, Tag, UpstreamName};

/// Which images are meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImagePattern {
    /// Of `UPSTREAM/REPOSITORY`.
    name: String,
    which: Which,
}

/// Which of a repository's images are meant.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Which {
    /// All, tagged or not.
    All,
    /// Those with such a tag.
    Tag(String),
    /// The one of this digest.
    Digest(Digest),
}

/// A pattern of images as it is typed: also one that begins with a host and its port. Which upstream that is, only who
/// serves it knows; it is sent as it was typed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageName(String);

/// The text is no pattern of images.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a name of images: write UPSTREAM/REPOSITORY, UPSTREAM/REPOSITORY:TAG or UPSTREAM/REPOSITORY@DIGEST, \
     such as docker.io/library/alpine:3.20, docker.io/library/* or ghcr.io/**{advice}", advice = pattern::advice(.0)
)]
pub struct InvalidPattern(String);

// === impl ImagePattern ===

impl ImagePattern {
    /// Whether any image of this repository may be meant.
    pub fn is_about(&self, up: &UpstreamName, repo: &RepoName) -> bool {
        pattern::matches(&self.name, &format!("{up}/{repo}"))
    }

    /// Whether everything in the repositories that it is about is meant.
    pub fn is_whole(&self) -> bool {
        self.which == Which::All
    }

    /// Whether an image of a repository that it is about is meant: one that a tag names, or one without a tag.
    pub fn selects(&self, tag: Option<&Tag>, digest: &Digest) -> bool {
        match &self.which {
            Which::All => true,
            Which::Tag(wanted) => tag.is_some_and(|tag| pattern::matches(wanted, tag.as_str())),
            Which::Digest(wanted) => wanted == digest,
        }
    }

    /// With `library/` before a name of one part, where the upstream has its official images there; a pattern stays.
    #[must_use]
    pub fn with_library(mut self, library: impl Fn(&UpstreamName) -> bool) -> Self {
        if let Some((up, repo)) = self.name.split_once('/')
            && !repo.contains(['/', '*'])
            && up.parse().is_ok_and(|up| library(&up))
        {
            self.name = format!("{up}/library/{repo}");
        }
        self
    }

    /// The digest, where it names one.
    pub fn digest(&self) -> Option<&Digest> {
        match &self.which {
            Which::Digest(digest) => Some(digest),
            Which::All | Which::Tag(_) => None,
        }
    }
}

impl FromStr for ImageName {
    type Err = InvalidPattern;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let host = |first: &str| {
            let (host, port) = first.rsplit_once(':')?;
            (!host.is_empty() && port.parse::<u16>().is_ok()).then_some(())
        };
        match text.split_once('/') {
            // Of the host nothing more has to be known here.
            Some((first, rest)) if host(first).is_some() => {
                let same = format!("host/{rest}").parse::<ImagePattern>();
                same.map_err(|_| InvalidPattern(text.to_owned()))?;
            }
            _ => {
                text.parse::<ImagePattern>()?;
            }
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for ImagePattern {
    type Err = InvalidPattern;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidPattern(text.to_owned());
        let last = text.rfind('/').map_or(0, |slash| slash + 1);
        let (name, which) = if let Some((name, digest)) = text.split_once('@') {
            (name, Which::Digest(digest.parse().map_err(|_| invalid())?))
        } else if let Some(colon) = text.rfind(':').filter(|colon| *colon >= last) {
            let (name, tag) = text.split_at(colon);
            let tag = pattern::tag(tag.trim_start_matches(':')).map_err(|_| invalid())?;
            (name, Which::Tag(tag))
        } else {
            (text, Which::All)
        };
        // Without a slash it would be an upstream or a repository alone, and nobody could tell which.
        let fits = name.contains('/') || name.contains("**");
        let name = pattern::repository(name, false).ok().filter(|_| fits).ok_or_else(invalid)?;
        Ok(Self { name, which })
    }
}

impl fmt::Display for ImagePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        match &self.which {
            Which::All => Ok(()),
            Which::Tag(tag) => write!(f, ":{tag}"),
            Which::Digest(digest) => write!(f, "@{digest}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Algorithm;
    use proptest::prelude::*;

    #[test]
    fn which_images_are_meant() {
        let digest = Digest::of(Algorithm::Sha256, b"x");
        let by_digest = format!("docker.io/library/alpine@{digest}");
        let meant = |pattern: &str, repo: &str, tag: Option<&str>| {
            let pattern: ImagePattern = pattern.parse().unwrap();
            let tag = tag.map(|tag| tag.parse().unwrap());
            pattern.is_about(&"docker.io".parse().unwrap(), &repo.parse().unwrap())
                && pattern.selects(tag.as_ref(), &digest)
        };
        for (pattern, repo, tag) in [
            ("docker.io/library/alpine", "library/alpine", Some("3.20")),
            ("docker.io/library/alpine", "library/alpine", None),
            ("docker.io/library/alpine:3.*", "library/alpine", Some("3.20")),
            ("docker.io/library/*", "library/alpine", None),
            ("docker.io/**", "library/alpine", None),
            ("**", "library/alpine", None),
            ("**:3.20", "library/alpine", Some("3.20")),
            (&by_digest, "library/alpine", None),
            (&by_digest, "library/alpine", Some("any")),
        ] {
            assert!(meant(pattern, repo, tag), "{pattern} means {repo} {tag:?}");
        }
        for (pattern, repo, tag) in [
            ("docker.io/library/alpine:3.*", "library/alpine", None),
            ("docker.io/library/alpine:3.*", "library/alpine", Some("2")),
            ("docker.io/*", "library/alpine", None),
            ("docker.io/library/alpine", "library/alpine/x", None),
            ("ghcr.io/**", "library/alpine", None),
            (&by_digest, "library/other", None),
        ] {
            assert!(!meant(pattern, repo, tag), "{pattern} does not mean {repo} {tag:?}");
        }
    }

    #[test]
    fn what_is_no_pattern_says_how_to_write_one() {
        for text in
            ["", "alpine", "docker.io", "docker.io/", "/a", "docker.io/a:", "docker.io/a@", "docker.io/A", "a/b@md5:1"]
        {
            let error = text.parse::<ImagePattern>().unwrap_err().to_string();
            assert!(error.contains("docker.io/library/alpine:3.20"), "{text}: {error}");
        }
    }

    #[test]
    fn a_short_digest_is_told_from_a_wrong_name() {
        for text in ["sha256:2e2cd0b74912", "docker.io/library/alpine@sha256:2e2cd0b74912", "a/b:1@sha512:0"] {
            let error = text.parse::<ImagePattern>().unwrap_err().to_string();
            assert!(error.contains("hex digits") && error.contains("`ocistern ls --json`"), "{error}");
        }
        let error = "docker.io/a@sha256:xyz".parse::<ImagePattern>().unwrap_err().to_string();
        assert!(!error.contains("hex digits"), "{error}");
    }

    #[test]
    fn what_is_probably_meant_is_said() {
        let digest = Digest::of(Algorithm::Sha256, b"x");
        let error = format!("docker.io/library/alpine:3@{digest}").parse::<ImagePattern>().unwrap_err().to_string();
        assert!(error.ends_with(&format!("write docker.io/library/alpine@{digest}")), "{error}");
    }

    #[test]
    fn a_name_may_begin_with_a_host_and_its_port() {
        for text in ["docker.io/library/alpine:3", "**", "localhost:5000/alpine", "[::1]:5000/library/alpine:3.*"] {
            assert_eq!(text.parse::<ImageName>().unwrap().to_string(), text);
        }
        for text in
            ["", "alpine", "localhost:5000", "localhost:5000/", "localhost:5000/A", "local:host/a", ":1/a", "a:/b"]
        {
            assert!(text.parse::<ImageName>().is_err(), "{text}");
        }
    }

    #[test]
    fn official_images_stand_in_their_library() {
        let with = |text: &str| {
            let pattern: ImagePattern = text.parse().unwrap();
            pattern.with_library(|up| up.as_str() == "docker.io").to_string()
        };
        for (text, meant) in [
            ("docker.io/alpine:3", "docker.io/library/alpine:3"),
            ("docker.io/alpine", "docker.io/library/alpine"),
            ("docker.io/team/app", "docker.io/team/app"),
            ("docker.io/*", "docker.io/*"),
            ("ghcr.io/alpine", "ghcr.io/alpine"),
            ("**", "**"),
        ] {
            assert_eq!(with(text), meant);
        }
    }

    proptest! {
        #[test]
        fn what_is_shown_reads_back(text in "[a-zA-Z0-9./:@*_-]{0,30}") {
            if let Ok(pattern) = text.parse::<ImagePattern>() {
                prop_assert_eq!(pattern.to_string().parse::<ImagePattern>(), Ok(pattern));
            }
        }
    }
}
