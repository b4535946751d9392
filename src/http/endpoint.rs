//! The resources of a registry, parsed from what follows `/v2/` or `/acr/v1/`.
//!
//! The text comes decoded and free of what no path needs (see [`super::route`]); what leads upstream again is made of
//! validated parts only, so nothing that a client wrote gets there by another way.
#![warn(clippy::indexing_slicing)]

use std::fmt;

use super::route::RouteError;
use crate::metrics::Kind;
use crate::oci::{Digest, Reference, RepoName, Tag};

/// Longest text that stands where an upload's state does.
const MAX_STATE: usize = 256;

/// Which of a registry's interfaces a path belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Api {
    /// `/v2/`: the distribution specification's.
    Registry,
    /// `/acr/v1/`: what Azure's registry has beside it.
    Acr,
}

/// The resources of a registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// `_catalog`: the list of repositories.
    Catalog,
    /// `NAME/manifests/REFERENCE`.
    Manifest(RepoName, Reference),
    /// `NAME/blobs/DIGEST`.
    Blob(RepoName, Digest),
    /// `NAME/tags/list`.
    Tags(RepoName),
    /// `NAME/referrers/DIGEST`.
    Referrers(RepoName, Digest),
    /// `NAME/blobs/uploads/`: where uploads begin.
    Uploads(RepoName),
    /// `NAME/blobs/uploads/STATE`: an upload that has begun; the state is opaque to clients.
    Upload(RepoName, String),
    /// `/acr/v1/…`.
    Acr(Acr),
}

/// A resource of `/acr/v1/`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Acr {
    /// Whether it lies below `_deleted/`: what can be restored.
    pub deleted: bool,
    /// The repository; none for the catalog.
    pub repo: Option<RepoName>,
    /// What of it.
    pub item: AcrItem,
}

/// What of a repository a resource of `/acr/v1/` is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AcrItem {
    /// `_catalog`.
    Catalog,
    /// The repository itself.
    Repository,
    /// `_tags`.
    Tags,
    /// `_tags/TAG`.
    Tag(Tag),
    /// `_manifests`.
    Manifests,
    /// `_manifests/DIGEST`.
    Manifest(Digest),
}

// === impl Api ===

impl Api {
    /// What stands before its resources.
    pub(super) const fn root(self) -> &'static str {
        match self {
            Self::Registry => "/v2/",
            Self::Acr => "/acr/v1/",
        }
    }

    /// The interface that a path from the root belongs to, and what follows. `/v2` alone is a path of it, too.
    pub(super) fn split(path: &str) -> Option<(Self, &str)> {
        if path == "/v2" {
            return Some((Self::Registry, ""));
        }
        [Self::Registry, Self::Acr].into_iter().find_map(|api| Some((api, path.strip_prefix(api.root())?)))
    }

    /// The endpoint that `rest` names; it follows the root, and the upstream's key where there is one.
    pub(super) fn endpoint(self, rest: &str) -> Result<Endpoint, RouteError> {
        match self {
            Self::Registry => Endpoint::parse(rest),
            Self::Acr => Acr::parse(rest).map(Endpoint::Acr),
        }
    }

    /// Whether `behind`, which follows the first part, is more than a resource of a repository with one part: then the
    /// first part may be an upstream's key.
    pub(super) fn has_name(self, behind: &str) -> bool {
        match self {
            Self::Registry => behind == "_catalog" || Endpoint::split(behind).is_some_and(|(name, _)| !name.is_empty()),
            Self::Acr => {
                let first = behind.split('/').next().unwrap_or_default();
                matches!(first, "_catalog" | "_deleted") || !(first.is_empty() || first.starts_with('_'))
            }
        }
    }
}

// === impl Endpoint ===

impl Endpoint {
    /// The path of its kind, with what varies left out; none for what is asked for seldom.
    pub(super) const fn template(&self) -> Option<&'static str> {
        match self {
            Self::Manifest(..) => Some("/v2/{name}/manifests/{reference}"),
            Self::Blob(..) => Some("/v2/{name}/blobs/{digest}"),
            Self::Tags(_) => Some("/v2/{name}/tags/list"),
            Self::Referrers(..) => Some("/v2/{name}/referrers/{digest}"),
            Self::Uploads(_) => Some("/v2/{name}/blobs/uploads/"),
            Self::Upload(..) => Some("/v2/{name}/blobs/uploads/{state}"),
            Self::Catalog | Self::Acr(_) => None,
        }
    }

    /// The `kind` label.
    pub const fn kind(&self) -> Kind {
        match self {
            Self::Catalog | Self::Acr(_) => Kind::Other,
            Self::Manifest(..) => Kind::Manifest,
            Self::Blob(..) => Kind::Blob,
            Self::Tags(_) => Kind::Tags,
            Self::Referrers(..) => Kind::Referrers,
            Self::Uploads(_) | Self::Upload(..) => Kind::Upload,
        }
    }

    /// The repository, for all but the catalogs.
    pub const fn repo(&self) -> Option<&RepoName> {
        match self {
            Self::Catalog => None,
            Self::Manifest(repo, _)
            | Self::Blob(repo, _)
            | Self::Tags(repo)
            | Self::Referrers(repo, _)
            | Self::Uploads(repo)
            | Self::Upload(repo, _) => Some(repo),
            Self::Acr(acr) => acr.repo.as_ref(),
        }
    }

    /// `rest` is decoded and follows `/v2/`.
    fn parse(rest: &str) -> Result<Self, RouteError> {
        if rest == "_catalog" {
            return Ok(Self::Catalog);
        }
        let (name, tail) = Self::split(rest).ok_or(RouteError::NoEndpoint)?;
        let repo: RepoName = name.parse().map_err(RouteError::Name)?;
        Ok(match tail {
            Tail::Tags => Self::Tags(repo),
            Tail::Uploads => Self::Uploads(repo),
            // What is longer than ours ever is cannot be one.
            Tail::Upload(text) => Self::Upload(repo, text.get(..MAX_STATE).unwrap_or(text).to_owned()),
            Tail::Manifest(text) => Self::Manifest(repo, reference(text)?),
            Tail::Blob(text) => Self::Blob(repo, text.parse().map_err(RouteError::Digest)?),
            Tail::Referrers(text) => Self::Referrers(repo, text.parse().map_err(RouteError::Digest)?),
        })
    }

    /// Splits from the right, for a repository may have a part called `manifests`; the name may come out empty.
    fn split(rest: &str) -> Option<(&str, Tail<'_>)> {
        let (front, last) = split_last(rest)?;
        let (name, word) = split_last(front).unwrap_or(("", front));
        match (word, last) {
            ("tags", "list") => return Some((name, Tail::Tags)),
            ("manifests", text) => return Some((name, Tail::Manifest(text))),
            ("blobs", "uploads") => return Some((name, Tail::Uploads)),
            ("blobs", text) => return Some((name, Tail::Blob(text))),
            ("referrers", text) => return Some((name, Tail::Referrers(text))),
            ("uploads", _) => {}
            _ => return None,
        }
        let (name, word) = split_last(name).unwrap_or(("", name));
        let tail = if last.is_empty() { Tail::Uploads } else { Tail::Upload(last) };
        (word == "blobs").then_some((name, tail))
    }

    /// The same under `library/`, where the name has one part only.
    pub(super) fn with_library(self) -> Self {
        match self {
            Self::Catalog => Self::Catalog,
            Self::Manifest(repo, reference) => Self::Manifest(repo.with_library(), reference),
            Self::Blob(repo, digest) => Self::Blob(repo.with_library(), digest),
            Self::Tags(repo) => Self::Tags(repo.with_library()),
            Self::Referrers(repo, digest) => Self::Referrers(repo.with_library(), digest),
            Self::Uploads(repo) => Self::Uploads(repo.with_library()),
            Self::Upload(repo, state) => Self::Upload(repo.with_library(), state),
            Self::Acr(acr) => Self::Acr(acr),
        }
    }
}

/// At the last slash.
fn split_last(text: &str) -> Option<(&str, &str)> {
    let slash = memchr::memrchr(b'/', text.as_bytes())?;
    Some((text.get(..slash)?, text.get(slash + 1..)?))
}

/// What follows a repository's name, not yet validated.
enum Tail<'a> {
    Tags,
    Uploads,
    Upload(&'a str),
    Manifest(&'a str),
    Blob(&'a str),
    Referrers(&'a str),
}

fn reference(text: &str) -> Result<Reference, RouteError> {
    if text.contains(':') {
        text.parse().map(Reference::Digest).map_err(RouteError::Digest)
    } else {
        text.parse::<Tag>().map(Reference::Tag).map_err(RouteError::Tag)
    }
}

// === impl Acr ===

impl Acr {
    /// `rest` is decoded and follows `/acr/v1/`.
    fn parse(rest: &str) -> Result<Self, RouteError> {
        let (deleted, rest) = rest.strip_prefix("_deleted/").map_or((false, rest), |rest| (true, rest));
        if rest == "_catalog" {
            return Ok(Self { deleted, repo: None, item: AcrItem::Catalog });
        }
        // No part of a name begins with an underscore.
        let (name, item) = match rest.find("/_") {
            Some(slash) => (rest.get(..slash), rest.get(slash + 1..)),
            None => (Some(rest), None),
        };
        let repo: RepoName = name.unwrap_or_default().parse().map_err(RouteError::Name)?;
        let item = match item.map(|item| item.split_once('/').unwrap_or((item, ""))) {
            None => AcrItem::Repository,
            Some(("_tags", "")) => AcrItem::Tags,
            Some(("_tags", tag)) => AcrItem::Tag(tag.parse().map_err(RouteError::Tag)?),
            Some(("_manifests", "")) => AcrItem::Manifests,
            Some(("_manifests", digest)) => AcrItem::Manifest(digest.parse().map_err(RouteError::Digest)?),
            Some(_) => return Err(RouteError::NoEndpoint),
        };
        Ok(Self { deleted, repo: Some(repo), item })
    }
}

/// The path at the upstream.
impl fmt::Display for Acr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(Api::Acr.root())?;
        if self.deleted {
            f.write_str("_deleted/")?;
        }
        let Some(repo) = &self.repo else { return f.write_str("_catalog") };
        write!(f, "{repo}")?;
        match &self.item {
            AcrItem::Catalog | AcrItem::Repository => Ok(()),
            AcrItem::Tags => f.write_str("/_tags"),
            AcrItem::Tag(tag) => write!(f, "/_tags/{tag}"),
            AcrItem::Manifests => f.write_str("/_manifests"),
            AcrItem::Manifest(digest) => write!(f, "/_manifests/{digest}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn resources_beside_the_specification() {
        for (rest, repo) in [
            ("_catalog", None),
            ("_deleted/_catalog", None),
            ("samples/artifact", Some("samples/artifact")),
            ("a/_tags", Some("a")),
            ("a/b/_tags/1.0", Some("a/b")),
            ("a/_manifests", Some("a")),
            (&format!("a/_manifests/{DIGEST}"), Some("a")),
            ("_deleted/a/b/_tags", Some("a/b")),
            (&format!("_deleted/a/_manifests/{DIGEST}"), Some("a")),
        ] {
            let acr = Acr::parse(rest).unwrap_or_else(|error| panic!("{rest}: {error}"));
            assert_eq!(acr.repo.as_ref().map(RepoName::as_str), repo, "{rest}");
            assert_eq!(acr.to_string(), format!("/acr/v1/{rest}"), "it leads to the same place upstream");
        }
        for rest in ["", "_tags", "a/_x", "A", "a//b", "a/_tags/-", "a/_tags/x?y", "a/_manifests/x", "_deleted", "a/_"]
        {
            assert!(Acr::parse(rest).is_err(), "{rest}");
        }
    }

    #[test]
    fn uploads_begin_and_go_on() {
        let state = |rest: &str| match Endpoint::parse(rest).unwrap() {
            Endpoint::Uploads(repo) => (repo.to_string(), None),
            Endpoint::Upload(repo, state) => (repo.to_string(), Some(state)),
            other => panic!("{rest}: {other:?}"),
        };
        assert_eq!(state("a/blobs/uploads"), ("a".to_owned(), None));
        assert_eq!(state("a/blobs/uploads/"), ("a".to_owned(), None));
        assert_eq!(state("a/blobs/uploads/x"), ("a".to_owned(), Some("x".to_owned())));
        assert_eq!(state("a/blobs/uploads/blobs/uploads/x"), ("a/blobs/uploads".to_owned(), Some("x".to_owned())));
        let long = "x".repeat(10 * MAX_STATE);
        assert_eq!(state(&format!("a/blobs/uploads/{long}")).1.unwrap().len(), MAX_STATE);
    }
}
