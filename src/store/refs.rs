//! Refs: tags, links (which repository a digest was served in), access and the last lists, each a small record.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::layout::{self, REFS};
use super::{Inner, Store, StoreError};
use crate::oci::{Digest, RepoName, Tag, UpstreamName, Via};

/// Longest body of a list that is kept.
const LIST: usize = 4 << 20;
/// Lists that are kept of one repository; which queries are asked is up to clients.
const LISTS: usize = 256;
/// The file of an upstream's tree that says which URL it came from.
const ORIGIN: &str = "_origin";
/// Between the name of a tree that was set aside and its number; `~` cannot stand in an upstream's name.
const ASIDE: &str = "~aside-";

/// What a tag named when upstream was last asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TagRecord {
    /// The manifest.
    pub digest: Digest,
    /// Its media type, exactly as upstream said.
    pub media_type: String,
    /// Its length.
    pub size: u64,
    /// Upstream's entity tag, for conditional requests.
    pub etag: Option<String>,
}

/// As what upstream served a digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LinkKind {
    /// As a manifest.
    Manifest,
    /// As a blob.
    Blob,
}

/// Proof that upstream served a digest in a repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// As what.
    pub kind: LinkKind,
    /// By whose right.
    pub via: Via,
    /// A manifest's media type, exactly as upstream said.
    pub media_type: Option<String>,
    /// Its length.
    pub size: u64,
    /// What the manifest refers to.
    pub subject: Option<Digest>,
    /// What kind of artifact it is.
    pub artifact_type: Option<String>,
}

/// Who may read a repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Access {
    /// Upstream gives it to everybody.
    Public,
    /// Upstream asked for a credential.
    Private,
}

/// Who may read a repository, and since when that is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccessRecord {
    /// Who.
    pub access: Access,
    /// Since when.
    pub since: SystemTime,
}

/// A list of a repository.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ListKind {
    /// Its tags.
    Tags,
    /// The manifests that refer to a digest.
    Referrers(Digest),
}

/// The last answer to a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredList {
    /// The body, byte for byte.
    #[serde(serialize_with = "to_base64", deserialize_with = "from_base64")]
    pub body: Bytes,
    /// Its media type.
    pub content_type: String,
    /// The `Link` header, as upstream gave it.
    pub link: Option<String>,
    /// The `OCI-Filters-Applied` header.
    pub filters_applied: Option<String>,
    /// By whose right it was fetched.
    pub via: Via,
}

/// Where the refs of a tree came from.
#[derive(Debug, Serialize, Deserialize)]
struct Origin {
    url: String,
    /// When the tree was put back after a time under another URL; none: it never was.
    #[serde(default)]
    since: Option<SystemTime>,
}

fn to_base64<S: Serializer>(body: &Bytes, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&STANDARD.encode(body))
}

fn from_base64<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Bytes, D::Error> {
    let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
    STANDARD.decode(text.as_bytes()).map(Bytes::from).map_err(serde::de::Error::custom)
}

// === impl LinkKind ===

impl LinkKind {
    /// The word in files and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Manifest => "manifest",
            Self::Blob => "blob",
        }
    }
}

// === impl Link ===

impl Link {
    /// The link of a blob of `size` bytes.
    pub const fn blob(via: Via, size: u64) -> Self {
        Self { kind: LinkKind::Blob, via, media_type: None, size, subject: None, artifact_type: None }
    }
}

// === impl Access ===

impl Access {
    /// The word in files and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Public => "public",
            Self::Private => "private",
        }
    }
}

// === impl Store ===

impl Store {
    /// What the tag names, as far as is known.
    pub async fn tag(&self, up: &UpstreamName, repo: &RepoName, tag: &Tag) -> Result<Option<TagRecord>, StoreError> {
        let path = layout::tag(up, repo, tag);
        let read = move |inner: &Arc<Inner>| {
            let record: Option<TagRecord> = inner.records.read(&inner.disk, &path);
            if let Some(record) = &record {
                inner.books.set_tagged(&record.digest, true);
            }
            Ok(record)
        };
        self.blocking(read).await
    }

    /// Remembers what the tag names, as upstream said when it was asked at `asked_at`; that is when the tag was last
    /// found to be up to date. False, and nothing is done, if a later question was answered already: answers overtake
    /// each other. The file is written only if what it says differs.
    pub async fn set_tag(
        &self,
        up: &UpstreamName,
        repo: &RepoName,
        tag: &Tag,
        record: &TagRecord,
        asked_at: SystemTime,
    ) -> Result<bool, StoreError> {
        let path = layout::tag(up, repo, tag);
        let (up, repo, tag, record) = (up.clone(), repo.clone(), tag.clone(), record.clone());
        let write = move |inner: &Arc<Inner>| {
            // The link of what a known tag names from now on may still be waiting for its sync. A power cut would leave
            // a tag that leads nowhere, where one that leads to the older manifest was there before.
            if inner.records.read(&inner.disk, &path).is_some_and(|old: TagRecord| old.digest != record.digest) {
                inner.group.run(&inner.disk);
            }
            let _tags = inner.tags.lock();
            if inner.is_overtaken(&up, &repo, &tag, asked_at) {
                return Ok(false);
            }
            let before = inner.records.read::<TagRecord>(&inner.disk, &path);
            if before.as_ref() != Some(&record) {
                inner.records.write(&inner.disk, &inner.group, &path, &record)?;
            }
            if let Some(before) = before.filter(|before| before.digest != record.digest) {
                inner.hints.set_ref(&before.digest, &path, false);
                // Another tag may name it too: that one's next use says so again.
                inner.books.set_tagged(&before.digest, false);
            }
            inner.know_ref(&record.digest, &path);
            inner.books.set_tagged(&record.digest, true);
            inner.hints.set_checked_at(&up, &repo, &tag, Some(asked_at));
            Ok(true)
        };
        self.blocking(move |inner| inner.with_room_for_record(|| write(inner))).await
    }

    /// Forgets a tag that upstream no longer had when it was asked at `asked_at`. False, and nothing is done, if a later
    /// question was answered already.
    pub async fn remove_tag(
        &self,
        up: &UpstreamName,
        repo: &RepoName,
        tag: &Tag,
        asked_at: SystemTime,
    ) -> Result<bool, StoreError> {
        let path = layout::tag(up, repo, tag);
        let (up, repo, tag) = (up.clone(), repo.clone(), tag.clone());
        let remove = move |inner: &Arc<Inner>| {
            let _tags = inner.tags.lock();
            if inner.is_overtaken(&up, &repo, &tag, asked_at) {
                return Ok(false);
            }
            if let Some(before) = inner.records.read::<TagRecord>(&inner.disk, &path) {
                inner.hints.set_ref(&before.digest, &path, false);
                inner.books.set_tagged(&before.digest, false);
            }
            // Kept: an answer to an earlier question must not bring the tag back.
            inner.hints.set_checked_at(&up, &repo, &tag, Some(asked_at));
            inner.remove_record(&path)?;
            Ok(true)
        };
        self.blocking(remove).await
    }

    /// When upstream was last asked about the tag, with an answer. Unknown after the index is lost; a time in the future does not
    /// count.
    pub async fn checked_at(&self, up: &UpstreamName, repo: &RepoName, tag: &Tag) -> Option<SystemTime> {
        let (up, repo, tag) = (up.clone(), repo.clone(), tag.clone());
        self.blocking(move |inner| Ok(inner.checked_at(&up, &repo, &tag))).await.ok().flatten()
    }

    /// The proof that upstream served `digest` in `repo`.
    pub async fn link(&self, up: &UpstreamName, repo: &RepoName, digest: &Digest) -> Result<Option<Link>, StoreError> {
        let path = layout::link(up, repo, digest);
        self.blocking(move |inner| Ok(inner.records.read(&inner.disk, &path))).await
    }

    /// Remembers that upstream served `digest` in `repo`. Written only if it differs.
    pub async fn set_link(
        &self,
        up: &UpstreamName,
        repo: &RepoName,
        digest: &Digest,
        link: &Link,
    ) -> Result<(), StoreError> {
        let (path, digest, link) = (layout::link(up, repo, digest), *digest, link.clone());
        let write = move |inner: &Arc<Inner>| {
            if inner.records.read::<Link>(&inner.disk, &path).as_ref() != Some(&link) {
                inner.records.write(&inner.disk, &inner.group, &path, &link)?;
            }
            inner.know_ref(&digest, &path);
            Ok(())
        };
        self.blocking(move |inner| inner.with_room_for_record(|| write(inner))).await
    }

    /// Forgets that upstream served `digest` in `repo`.
    pub async fn remove_link(&self, up: &UpstreamName, repo: &RepoName, digest: &Digest) -> Result<(), StoreError> {
        let (path, digest) = (layout::link(up, repo, digest), *digest);
        let remove = move |inner: &Arc<Inner>| {
            inner.hints.set_ref(&digest, &path, false);
            inner.remove_record(&path)
        };
        self.blocking(remove).await
    }

    /// Who may read a repository, if that was ever found out. A time in the future counts as the beginning of time.
    pub async fn access(&self, up: &UpstreamName, repo: &RepoName) -> Result<Option<AccessRecord>, StoreError> {
        let path = layout::access(up, repo);
        let read = move |inner: &Arc<Inner>| {
            let record: Option<AccessRecord> = inner.records.read(&inner.disk, &path);
            Ok(record.map(|mut record| {
                if record.since > SystemTime::now() {
                    record.since = SystemTime::UNIX_EPOCH;
                }
                record
            }))
        };
        self.blocking(read).await
    }

    /// Remembers who may read a repository; since when is kept if that is what was known.
    pub async fn set_access(&self, up: &UpstreamName, repo: &RepoName, access: Access) -> Result<(), StoreError> {
        let path = layout::access(up, repo);
        let write = move |inner: &Arc<Inner>| {
            let before = inner.records.read::<AccessRecord>(&inner.disk, &path);
            if before.is_some_and(|before| before.access == access) {
                return Ok(());
            }
            let record = AccessRecord { access, since: SystemTime::now() };
            inner.records.write(&inner.disk, &inner.group, &path, &record)
        };
        self.blocking(move |inner| inner.with_room_for_record(|| write(inner))).await
    }

    /// The last answer to a list, by its normalised query (usually empty).
    pub async fn list(
        &self,
        up: &UpstreamName,
        repo: &RepoName,
        kind: &ListKind,
        query: &str,
    ) -> Result<Option<StoredList>, StoreError> {
        let path = kind.path(up, repo, query);
        self.blocking(move |inner| Ok(inner.records.read(&inner.disk, &path))).await
    }

    /// Remembers the answer to a list. Written only if it differs; a repository keeps a bounded number of them, and
    /// none of more than 4 MiB.
    pub async fn set_list(
        &self,
        up: &UpstreamName,
        repo: &RepoName,
        kind: &ListKind,
        query: &str,
        list: &StoredList,
    ) -> Result<(), StoreError> {
        if list.body.len() > LIST {
            return Ok(());
        }
        let (path, list) = (kind.path(up, repo, query), list.clone());
        let write = move |inner: &Arc<Inner>| {
            if inner.records.read::<StoredList>(&inner.disk, &path).as_ref() == Some(&list) {
                return Ok(());
            }
            if inner.disk.metadata(&path).is_err() {
                inner.bound_lists(path.parent().unwrap_or(Path::new(REFS)));
            }
            inner.records.write(&inner.disk, &inner.group, &path, &list)
        };
        self.blocking(move |inner| inner.with_room_for_record(|| write(inner))).await
    }
}

// === impl ListKind ===

impl ListKind {
    fn path(&self, up: &UpstreamName, repo: &RepoName, query: &str) -> PathBuf {
        match self {
            Self::Tags => layout::list(up, repo, "tags", query),
            Self::Referrers(digest) => {
                let name = format!("referrers-{}-{}", digest.algorithm().as_str(), digest.hex());
                layout::list(up, repo, &name, query)
            }
        }
    }
}

// === impl Inner ===

impl Inner {
    /// Makes sure that the index knows of a file that names a blob, so that it goes when the blob goes.
    pub(super) fn know_ref(&self, digest: &Digest, path: &Path) {
        if !self.hints.has_ref(digest, path) {
            self.hints.set_ref(digest, path, true);
        }
    }

    /// Whether a question about this tag that was put later than `asked_at` has been answered.
    fn is_overtaken(&self, up: &UpstreamName, repo: &RepoName, tag: &Tag, asked_at: SystemTime) -> bool {
        self.checked_at(up, repo, tag).is_some_and(|checked_at| checked_at > asked_at)
    }

    fn remove_record(&self, path: &Path) -> Result<(), StoreError> {
        if self.disk.unlink(path).map_err(|e| StoreError::io("remove", path, e))?
            && let Some(parent) = path.parent()
        {
            self.group.directories([parent.to_owned()]);
        }
        Ok(())
    }

    /// Leaves room for one more list, by removing the one that was written longest ago.
    fn bound_lists(&self, directory: &Path) {
        let Ok(listing) = self.disk.list(directory) else { return };
        let names: Vec<String> = listing.flatten().map(|entry| entry.name).collect();
        if names.len() < LISTS {
            return;
        }
        let age = |name: &String| self.disk.metadata(&directory.join(name)).and_then(|m| m.modified()).ok();
        let plain = |name: &&String| name.as_str() != "tags";
        if let Some(oldest) = names.iter().filter(plain).min_by_key(|name| age(name))
            && let Err(error) = self.disk.unlink(&directory.join(oldest))
        {
            tracing::warn!(directory = %directory.display(), %error, "an old list could not be removed");
        }
    }

    /// Compares each upstream's URL with the one that its refs came from. Refs of another URL are set aside, and come
    /// back when the URL does.
    pub(super) fn check_origins(&mut self, origins: &[(UpstreamName, String)]) -> Result<(), StoreError> {
        for (name, url) in origins {
            let tree = layout::upstream(name);
            let path = tree.join(ORIGIN);
            let found: Option<Origin> = self.records.read(&self.disk, &path);
            let since = match found {
                Some(found) if found.url == *url => found.since,
                found => {
                    if let Some(found) = found {
                        self.set_tree_aside(name, &tree, &found.url, url)?;
                    }
                    if self.disk.metadata(&tree).is_err()
                        && let Some(aside) = self.find_aside(&tree, url)
                    {
                        Some(self.put_tree_back(name, &aside, &tree, url)?)
                    } else {
                        self.put_origin_down(name, &path, &Origin { url: url.clone(), since: None });
                        None
                    }
                }
            };
            self.since.extend(since.map(|since| (name.clone(), since)));
        }
        Ok(())
    }

    fn put_origin_down(&self, name: &UpstreamName, path: &Path, origin: &Origin) {
        if let Err(error) = self.records.write(&self.disk, &self.group, path, origin) {
            // Tried again at the next start; a full disk does not keep the store from opening.
            let error = &error as &dyn std::error::Error;
            tracing::warn!(upstream = %name, error, "where the refs came from could not be put down");
        }
    }

    fn set_tree_aside(&self, name: &UpstreamName, tree: &Path, was: &str, is: &str) -> Result<(), StoreError> {
        let aside = |n: u32| {
            let mut name = tree.as_os_str().to_owned();
            name.push(format!("{ASIDE}{n}"));
            PathBuf::from(name)
        };
        let to = (1..u32::MAX).map(aside).find(|to| self.disk.metadata(to).is_err()).unwrap_or_else(|| aside(0));
        self.disk.rename(tree, &to).map_err(|e| StoreError::io("set aside", tree, e))?;
        self.group.directories([REFS.into()]);
        tracing::warn!(
            "upstream {name} had the URL {was} at the last start and has {is} now: what was pulled from {was} is not \
             served under this name until the URL is {was} again (kept in {})",
            to.display()
        );
        Ok(())
    }

    /// The refs under this name that came from `url`.
    fn find_aside(&self, tree: &Path, url: &str) -> Option<PathBuf> {
        let prefix = format!("{}{ASIDE}", tree.file_name()?.to_str()?);
        let listing = self.disk.list(Path::new(REFS)).ok()?;
        listing.flatten().filter(|entry| entry.is_dir && entry.name.starts_with(&prefix)).find_map(|entry| {
            let path = Path::new(REFS).join(entry.name);
            let origin: Origin = self.records.read(&self.disk, &path.join(ORIGIN))?;
            (origin.url == url).then_some(path)
        })
    }

    /// From when on answers are of this URL again.
    fn put_tree_back(
        &self,
        name: &UpstreamName,
        aside: &Path,
        tree: &Path,
        url: &str,
    ) -> Result<SystemTime, StoreError> {
        let since = SystemTime::now();
        // Before the rename: a tree that is back without this date would take the other URL's answers for its own.
        self.put_origin_down(name, &aside.join(ORIGIN), &Origin { url: url.to_owned(), since: Some(since) });
        self.disk.rename(aside, tree).map_err(|e| StoreError::io("put back", aside, e))?;
        self.group.directories([REFS.into()]);
        tracing::info!("upstream {name} has the URL {url} again: what was pulled from it is served again");
        Ok(since)
    }

    /// When upstream was last asked about the tag, if it was under its present URL.
    fn checked_at(&self, up: &UpstreamName, repo: &RepoName, tag: &Tag) -> Option<SystemTime> {
        let at = self.hints.checked_at(up, repo, tag)?;
        self.since.get(up).is_none_or(|since| at >= *since).then_some(at)
    }
}
