//! What a token is asked for: `repository:NAME:ACTIONS`, `registry:catalog:*`.
//!
//! distribution's token specification, "Token Scope Documentation". Actions are a closed set: what is not known here
//! is not passed on, so a scope has a bounded size and one spelling.

use std::fmt;
use std::str::FromStr;

use super::RepoName;

/// Most scopes of one request for a token.
const MAX_SCOPES: usize = 64;
/// Longest host before a repository's name.
const MAX_HOST: usize = 253 + 6;

/// A resource, and what is to be done with it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Scope {
    /// What it is about.
    pub resource: Resource,
    /// What may be done.
    pub actions: Actions,
}

/// What a scope is about.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Resource {
    /// A repository.
    Repository {
        /// What stands before the name, where that cannot be a part of one (`localhost:5001`).
        host: Option<String>,
        /// The name; its first part may be a host all the same.
        repo: RepoName,
    },
    /// The list of repositories.
    Catalog,
    /// The list of deleted repositories (Azure Container Registry, soft delete).
    DeletedCatalog,
    /// A type of resource that is not served here, such as `repository(plugin)`.
    Other,
}

/// Something to be done with a resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// Read manifests and blobs.
    Pull,
    /// Write manifests and blobs.
    Push,
    /// Delete manifests, tags, blobs.
    Delete,
    /// Read what a registry knows about tags and manifests (Azure Container Registry).
    MetadataRead,
    /// Change it.
    MetadataWrite,
    /// Read what was deleted.
    DeletedRead,
    /// Bring it back.
    DeletedRestore,
    /// All of them.
    All,
}

/// A set of actions.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Actions(u8);

/// A scope that is outside the grammar.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidScope {
    /// Not `TYPE:NAME:ACTIONS`.
    #[error("a scope is TYPE:NAME:ACTIONS, such as repository:library/alpine:pull")]
    Shape,
    /// The name is no repository's.
    #[error("the name in a scope is no repository name")]
    Name,
    /// More scopes than anybody needs.
    #[error("more than {MAX_SCOPES} scopes are asked for at once")]
    TooMany,
}

// === impl Scope ===

impl Scope {
    /// A repository, by the name that its registry knows it by.
    pub const fn repository(repo: RepoName, actions: Actions) -> Self {
        Self { resource: Resource::Repository { host: None, repo }, actions }
    }

    /// Whether nothing changes by it.
    pub fn only_reads(&self) -> bool {
        matches!(self.resource, Resource::Catalog | Resource::DeletedCatalog) || self.actions.only_read()
    }

    /// Several scopes: each of `texts` may hold more than one, with spaces between them. Those about the same resource
    /// become one; those about what is not served here are left out.
    pub fn parse_all<'a>(texts: impl IntoIterator<Item = &'a str>) -> Result<Vec<Self>, InvalidScope> {
        let mut scopes: Vec<Self> = Vec::new();
        for text in texts.into_iter().flat_map(|text| text.split(' ')).filter(|text| !text.is_empty()) {
            let scope: Self = text.parse()?;
            if scope.resource == Resource::Other {
                continue;
            }
            if let Some(known) = scopes.iter_mut().find(|known| known.resource == scope.resource) {
                known.actions = known.actions.and(scope.actions);
            } else if scopes.len() >= MAX_SCOPES {
                return Err(InvalidScope::TooMany);
            } else {
                scopes.push(scope);
            }
        }
        Ok(scopes)
    }
}

impl FromStr for Scope {
    type Err = InvalidScope;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // A host before the name may have a port: the name ends at the last colon.
        let (kind, rest) = text.split_once(':').ok_or(InvalidScope::Shape)?;
        let (name, actions) = rest.rsplit_once(':').ok_or(InvalidScope::Shape)?;
        let resource = match (kind, name) {
            ("repository", name) => repository(name).ok_or(InvalidScope::Name)?,
            ("registry", "catalog") => Resource::Catalog,
            ("registry", "deleted_catalog") => Resource::DeletedCatalog,
            _ => Resource::Other,
        };
        Ok(Self { resource, actions: Actions::parse(actions) })
    }
}

fn repository(name: &str) -> Option<Resource> {
    if let Ok(repo) = name.parse() {
        return Some(Resource::Repository { host: None, repo });
    }
    let (host, repo) = name.split_once('/')?;
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b':' | b'[' | b']');
    let fits = host.len() <= MAX_HOST
        && host.starts_with(|first: char| first.is_ascii_alphanumeric() || first == '[')
        && host.contains(['.', ':'])
        && host.bytes().all(plain);
    let host = fits.then(|| host.to_ascii_lowercase())?;
    Some(Resource::Repository { host: Some(host), repo: repo.parse().ok()? })
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.resource {
            Resource::Repository { host: Some(host), repo } => write!(f, "repository:{host}/{repo}:{}", self.actions),
            Resource::Repository { host: None, repo } => write!(f, "repository:{repo}:{}", self.actions),
            Resource::Catalog => write!(f, "registry:catalog:{}", self.actions),
            Resource::DeletedCatalog => write!(f, "registry:deleted_catalog:{}", self.actions),
            Resource::Other => write!(f, "other::{}", self.actions),
        }
    }
}

// === impl Action ===

impl Action {
    /// Every action, in the order in which they are written.
    const EACH: [Self; 8] = [
        Self::Pull,
        Self::Push,
        Self::Delete,
        Self::MetadataRead,
        Self::MetadataWrite,
        Self::DeletedRead,
        Self::DeletedRestore,
        Self::All,
    ];

    /// The word in a scope.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pull => "pull",
            Self::Push => "push",
            Self::Delete => "delete",
            Self::MetadataRead => "metadata_read",
            Self::MetadataWrite => "metadata_write",
            Self::DeletedRead => "deleted_read",
            Self::DeletedRestore => "deleted_restore",
            Self::All => "*",
        }
    }

    /// Whether nothing changes by it.
    pub const fn only_reads(self) -> bool {
        matches!(self, Self::Pull | Self::MetadataRead | Self::DeletedRead)
    }

    const fn bit(self) -> u8 {
        1 << self as u8
    }
}

// === impl Actions ===

impl Actions {
    /// What reads a repository.
    pub const PULL: Self = Self(Action::Pull.bit());
    /// What writes to one: who pushes looks first what is there.
    pub const PULL_AND_PUSH: Self = Self(Action::Pull.bit() | Action::Push.bit());
    /// What deletes.
    pub const DELETE: Self = Self(Action::Delete.bit());
    /// What reads what a registry knows about tags and manifests.
    pub const METADATA_READ: Self = Self(Action::MetadataRead.bit());
    /// What changes it.
    pub const METADATA_WRITE: Self = Self(Action::MetadataWrite.bit());
    /// What reads what was deleted.
    pub const DELETED_READ: Self = Self(Action::DeletedRead.bit());
    /// What brings it back.
    pub const DELETED_RESTORE: Self = Self(Action::DeletedRestore.bit());
    /// Everything.
    pub const ALL: Self = Self(Action::All.bit());

    /// Words between commas; those that are not known are left out.
    fn parse(text: &str) -> Self {
        let known = |word: &str| Action::EACH.into_iter().find(|action| action.as_str() == word);
        Self(text.split(',').filter_map(known).fold(0, |bits, action| bits | action.bit()))
    }

    /// Both.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether `action` is among them, or everything is.
    pub const fn allow(self, action: Action) -> bool {
        self.0 & (action.bit() | Action::All.bit()) != 0
    }

    /// Whether nothing changes by them.
    fn only_read(self) -> bool {
        self.each().all(Action::only_reads)
    }

    fn each(self) -> impl Iterator<Item = Action> {
        Action::EACH.into_iter().filter(move |action| self.0 & action.bit() != 0)
    }
}

impl fmt::Display for Actions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut comma = "";
        for action in self.each() {
            write!(f, "{comma}{}", action.as_str())?;
            comma = ",";
        }
        Ok(())
    }
}

impl fmt::Debug for Actions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn shown(texts: &[&str]) -> Result<Vec<String>, InvalidScope> {
        Scope::parse_all(texts.iter().copied()).map(|scopes| scopes.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn scopes_of_real_clients() {
        for (texts, expected) in [
            (&["repository:library/alpine:pull"][..], &["repository:library/alpine:pull"][..]),
            (&["repository:app:push,pull"], &["repository:app:pull,push"]),
            (&["registry:catalog:*"], &["registry:catalog:*"]),
            (&["registry:deleted_catalog:*"], &["registry:deleted_catalog:*"]),
            (
                &["repository:a:pull repository:b:pull,push", "repository:a:push"],
                &["repository:a:pull,push", "repository:b:pull,push"],
            ),
            (
                &["repository:a:metadata_write,metadata_read,delete"],
                &["repository:a:delete,metadata_read,metadata_write"],
            ),
            (&["repository:Localhost:5001/app:pull"], &["repository:localhost:5001/app:pull"]),
            (&["repository:[::1]:5001/org/app:pull"], &["repository:[::1]:5001/org/app:pull"]),
            (&["repository:a:pull,fly"], &["repository:a:pull"]),
            (&["repository(plugin):a/b:pull artifact-repository:repo:pull"], &[]),
            (&[" ", ""], &[]),
        ] {
            assert_eq!(shown(texts).unwrap(), expected, "{texts:?}");
        }
    }

    #[test]
    fn what_is_no_scope() {
        for (text, expected) in [
            ("repository", InvalidScope::Shape),
            ("repository:app", InvalidScope::Shape),
            ("repository::pull", InvalidScope::Name),
            ("repository:../x:pull", InvalidScope::Name),
            ("repository:A:pull", InvalidScope::Name),
            ("repository:host:1/:pull", InvalidScope::Name),
            ("repository:h\"ost/a:pull", InvalidScope::Name),
            ("repository:a%2fb:pull", InvalidScope::Name),
        ] {
            assert_eq!(text.parse::<Scope>(), Err(expected), "{text}");
        }
        let many = (0..=MAX_SCOPES).map(|n| format!("repository:r{n}:pull")).collect::<Vec<_>>().join(" ");
        assert_eq!(shown(&[&many]), Err(InvalidScope::TooMany));
    }

    #[test]
    fn what_actions_allow() {
        let actions = |text| Actions::parse(text);
        assert!(actions("pull").allow(Action::Pull) && !actions("pull").allow(Action::Push));
        assert!(actions("*").allow(Action::Push) && actions("*").allow(Action::Delete));
        assert!(actions("pull,metadata_read").only_read() && actions("").only_read());
        for text in ["push", "pull,push", "delete", "metadata_write", "deleted_restore", "*"] {
            assert!(!actions(text).only_read(), "{text}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(10_000))]
        #[test]
        fn what_is_accepted_reads_back_as_the_same(
            text in "(repository|registry|x)(:[a-zA-Z0-9./_:\\[\\]%\" -]{0,20}){0,3}:?(pull|push|\\*|,){0,4}"
        ) {
            if let Ok(scope) = text.parse::<Scope>()
                && scope.resource != Resource::Other
            {
                let shown = scope.to_string();
                prop_assert!(!shown.contains(['"', ' ', '\\']), "it goes into a quoted string: {shown}");
                prop_assert_eq!(shown.parse(), Ok(scope));
            }
        }
    }
}
