//! Forgetting what was deleted upstream. Content stays until it is evicted: other repositories may have it.
//!
//! What is forgotten does not come back by an answer to a question that was put before. When these calls return, what
//! they have removed is gone from the disk.

use std::collections::{HashMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::layout;
use super::record::{Found, Records};
use super::refs::{Link, LinkKind, TagRecord};
use super::{Inner, Store, StoreError};
use crate::oci::{Algorithm, Digest, RepoName, Tag, UpstreamName};

// === impl Store ===

impl Store {
    /// Forgets a manifest that was deleted in `repo`, with all that refers to it, directly or through others, as registries
    /// remove these too: their links, the tags that name any of them, and the lists of `repo`. Returns the tags. Doing it
    /// again does nothing.
    pub async fn forget_manifest(
        &self,
        up: &UpstreamName,
        repo: &RepoName,
        digest: &Digest,
    ) -> Result<Vec<Tag>, StoreError> {
        let (up, repo, digest) = (up.clone(), repo.clone(), *digest);
        let forget = move |inner: &Arc<Inner>| {
            let repository = inner.repository(&up, &repo)?;
            repository.raise();
            let gate = repository.gate();
            let gone = inner.referrers_of(&up, &repo, &digest)?;
            let tags = inner.forget_tags(&up, &repo, |_, record| gone.contains(&record.digest))?;
            for digest in &gone {
                inner.forget_link(&up, &repo, digest)?;
            }
            inner.remove_all(&layout::lists(&up, &repo))?;
            // What is removed is found by its file. Where that was gone before (a sync of it failed, somebody removed it), memory
            // is the only place that knows of it.
            inner.known.clear();
            drop(gate);
            inner.sync_group()?;
            Ok(tags)
        };
        self.blocking(forget).await
    }

    /// Forgets that upstream served `digest` in `repo`, where it was deleted.
    pub async fn forget_blob(&self, up: &UpstreamName, repo: &RepoName, digest: &Digest) -> Result<(), StoreError> {
        let (up, repo, digest) = (up.clone(), repo.clone(), *digest);
        let forget = move |inner: &Arc<Inner>| {
            let repository = inner.repository(&up, &repo)?;
            repository.raise();
            let gate = repository.gate();
            inner.forget_link(&up, &repo, &digest)?;
            drop(gate);
            inner.sync_group()
        };
        self.blocking(forget).await
    }

    /// Forgets all of a repository, but not of those whose names begin with its name.
    pub async fn forget_repository(&self, up: &UpstreamName, repo: &RepoName) -> Result<(), StoreError> {
        let (up, repo) = (up.clone(), repo.clone());
        self.blocking(move |inner| inner.forget_all(&up, &repo)).await
    }

    /// Forgets the lists of a repository, tags and referrers, after it was written.
    pub async fn forget_lists(&self, up: &UpstreamName, repo: &RepoName) -> Result<(), StoreError> {
        let (up, repo) = (up.clone(), repo.clone());
        let forget = move |inner: &Arc<Inner>| {
            let repository = inner.repository(&up, &repo)?;
            repository.raise_lists();
            let gate = repository.gate();
            let some = inner.remove_all(&layout::lists(&up, &repo))?;
            drop(gate);
            if some { inner.sync_group() } else { Ok(()) }
        };
        self.blocking(forget).await
    }
}

// === impl Inner ===

impl Inner {
    /// Removes all refs of a repository. Blocks.
    pub(super) fn forget_all(&self, up: &UpstreamName, repo: &RepoName) -> Result<(), StoreError> {
        let repository = self.repository(up, repo)?;
        repository.raise();
        let gate = repository.gate();
        self.forget_tags(up, repo, |_, _| true)?;
        for digest in self.linked(up, repo)? {
            self.forget_link(up, repo, &digest)?;
        }
        // As of a manifest, above.
        self.known.clear();
        for directory in [layout::tags(up, repo), layout::lists(up, repo)] {
            self.remove_all(&directory)?;
        }
        let (tags, all) = repository.emptied();
        let marks = tags.iter().map(|tag| layout::suspect(up, repo, tag));
        let mark_of_all = all.then(|| layout::suspect_repository(up, repo));
        for path in marks.chain(mark_of_all).chain([layout::access(up, repo)]) {
            self.remove_record(&path)?;
            self.remove_empty_above(&path);
        }
        drop(gate);
        self.sync_group()
    }

    /// Waits until what was removed is gone from the disk. Blocks.
    pub(super) fn sync_group(&self) -> Result<(), StoreError> {
        if self.group.run(&self.disk) {
            return Ok(());
        }
        Err(StoreError::io("sync what was removed from", Path::new(layout::REFS), io::Error::other("the log says why")))
    }

    /// Removes the tags that `wanted` accepts; damaged ones go too. Returns them in order. The repository's gate must be held.
    /// Blocks.
    ///
    /// # Errors
    /// A tag cannot be read at this moment: what it names is not known, and it stays.
    pub(super) fn forget_tags(
        &self,
        up: &UpstreamName,
        repo: &RepoName,
        wanted: impl Fn(&Tag, &TagRecord) -> bool,
    ) -> Result<Vec<Tag>, StoreError> {
        let mut gone = Vec::new();
        for name in self.names_in(&layout::tags(up, repo))? {
            let Some(tag) = layout::tag_of_file(&name) else { continue };
            let path = layout::tag(up, repo, &tag);
            let _tags = self.tags.lock();
            let found = Records::look::<TagRecord>(&self.disk, &path)?;
            if let Found::Record(record) = &found {
                if !wanted(&tag, record) {
                    continue;
                }
                self.hints.set_ref(&record.digest, &path, false);
                // Another tag may name it too: that one's next use says so again.
                self.books.set_tagged(&record.digest, false);
                if self.pins.keeps(up, repo, &tag) {
                    self.follow_pinned_tag(None, true);
                }
            }
            self.note_forgotten(up, repo, &tag);
            self.remove_record(&path)?;
            self.remove_empty_above(&path);
            gone.push(tag);
        }
        gone.sort_unstable();
        Ok(gone)
    }

    pub(super) fn forget_link(&self, up: &UpstreamName, repo: &RepoName, digest: &Digest) -> Result<(), StoreError> {
        let path = layout::link(up, repo, digest);
        self.hints.set_ref(digest, &path, false);
        self.remove_record(&path)?;
        self.remove_empty_above(&path);
        Ok(())
    }

    /// A manifest and all that refers to it in this repository, directly or through others.
    fn referrers_of(&self, up: &UpstreamName, repo: &RepoName, digest: &Digest) -> Result<HashSet<Digest>, StoreError> {
        let mut by_subject: HashMap<Digest, Vec<Digest>> = HashMap::new();
        let mut put = |digest, subject: Option<Digest>| {
            if let Some(subject) = subject {
                by_subject.entry(subject).or_default().push(digest);
            }
        };
        let mut seen = HashSet::new();
        for digest in self.linked(up, repo)? {
            match Records::look::<Link>(&self.disk, &layout::link(up, repo, &digest))? {
                Found::Nothing => {}
                Found::Record(link) if link.kind == LinkKind::Blob => {}
                found => {
                    // A link that was made from the answer to a HEAD does not say.
                    let said = found.record().and_then(|link| link.subject);
                    put(digest, said.or_else(|| self.read_subject(&digest)));
                    seen.insert(digest);
                }
            }
        }
        let directory = layout::tags(up, repo);
        for name in self.names_in(&directory)? {
            let found = Records::look::<TagRecord>(&self.disk, &directory.join(name))?;
            if let Found::Record(TagRecord { digest, .. }) = found
                && seen.insert(digest)
            {
                put(digest, self.read_subject(&digest));
            }
        }
        let (mut gone, mut next) = (HashSet::from([*digest]), vec![*digest]);
        while let Some(subject) = next.pop() {
            next.extend(
                by_subject.remove(&subject).unwrap_or_default().into_iter().filter(|found| gone.insert(*found)),
            );
        }
        Ok(gone)
    }

    /// The subject of a stored manifest.
    fn read_subject(&self, digest: &Digest) -> Option<Digest> {
        self.manifest_info(digest)?.subject
    }

    /// The digests that were served in this repository.
    pub(super) fn linked(&self, up: &UpstreamName, repo: &RepoName) -> Result<Vec<Digest>, StoreError> {
        let mut found = Vec::new();
        for algorithm in Algorithm::ALL {
            let names = self.names_in(&layout::links(up, repo, algorithm))?;
            found.extend(names.iter().filter_map(|name| Digest::from_parts(algorithm, name).ok()));
        }
        Ok(found)
    }

    /// Removes all files of a directory, and it. Whether there were any. Blocks.
    fn remove_all(&self, directory: &Path) -> Result<bool, StoreError> {
        let paths: Vec<PathBuf> = self.names_in(directory)?.into_iter().map(|name| directory.join(name)).collect();
        for path in &paths {
            self.remove_record(path)?;
            self.remove_empty_above(path);
        }
        Ok(!paths.is_empty())
    }

    /// The names in a directory; none where there is no such directory.
    pub(super) fn names_in(&self, directory: &Path) -> Result<Vec<String>, StoreError> {
        let fail = |e: io::Error| StoreError::io("list", directory, e);
        match self.disk.list(directory) {
            Ok(listing) => listing.map(|entry| entry.map(|entry| entry.name).map_err(fail)).collect(),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                Ok(Vec::new())
            }
            Err(error) => Err(fail(error)),
        }
    }
}
