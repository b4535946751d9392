//! What the refs lead to: repositories with their tags and links, and through manifests to blobs. Read from the files,
//! whatever the index says. Everything here blocks, and ends early when the store is closed.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::atomic::Ordering;

use super::layout::{self, REFS};
use super::order::Short;
use super::origin::is_aside;
use super::record::{Found, Records, is_no_file};
use super::refs::{Link, LinkKind, TagRecord};
use super::{Inner, StoreError};
use crate::oci::{Algorithm, Digest, ManifestInfo, RepoName, Tag, UpstreamName, platforms};

/// Longest manifest that is read for what it leads to.
const MANIFEST: u64 = 64 << 20;

/// What one repository has.
#[derive(Debug, Default)]
pub(super) struct Contents {
    /// What its tags name.
    pub(super) tags: BTreeMap<Tag, TagRecord>,
    /// What upstream served in it. None: the record cannot be read.
    pub(super) links: BTreeMap<Digest, Option<Link>>,
    /// Untagged manifests by what they refer to, such as signatures by the image that they sign.
    referrers: HashMap<Digest, Vec<Digest>>,
}

/// What a stored manifest says.
#[derive(Debug, Default)]
pub(super) struct Node {
    pub(super) info: ManifestInfo,
    /// Of an index.
    pub(super) platforms: Vec<(Digest, String)>,
}

/// What stays although nothing leads to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Spares {
    /// What is pinned, or what somebody reads or writes.
    PinnedAndBusy,
    /// Nothing: somebody has said that it is to go.
    Nothing,
}

/// A look at the whole store; remembers what it has read.
pub(super) struct Survey<'a> {
    inner: &'a Inner,
    nodes: HashMap<Digest, Rc<Node>>,
    lengths: HashMap<Digest, Option<u64>>,
}

// === impl Contents ===

impl Contents {
    /// The manifests that stand for themselves: those that tags name, and of the others those to which no manifest of
    /// this repository leads.
    pub(super) fn roots(&self, survey: &mut Survey<'_>) -> Result<Vec<(Option<Tag>, Digest)>, StoreError> {
        let tagged: Vec<_> = self.tags.iter().map(|(tag, record)| (Some(tag.clone()), record.digest)).collect();
        let mut reached = HashSet::new();
        for (_, digest) in &tagged {
            self.reach(survey, digest, &mut reached)?;
        }
        let untagged: Vec<Digest> = self.manifests().filter(|digest| !reached.contains(*digest)).copied().collect();
        let mut inner = HashSet::new();
        for digest in &untagged {
            let mut below = HashSet::new();
            self.reach(survey, digest, &mut below)?;
            below.remove(digest);
            inner.extend(below);
        }
        let untagged = untagged.into_iter().filter(|digest| !inner.contains(digest)).map(|digest| (None, digest));
        Ok(tagged.into_iter().chain(untagged).collect())
    }

    /// Adds all that a manifest leads to, and it: what an index names, configurations and layers, and what refers to any
    /// of its manifests and has no tag of its own.
    pub(super) fn reach(
        &self,
        survey: &mut Survey<'_>,
        digest: &Digest,
        reached: &mut HashSet<Digest>,
    ) -> Result<(), StoreError> {
        let mut next = vec![*digest];
        while let Some(digest) = next.pop() {
            if !reached.insert(digest) {
                continue;
            }
            let node = survey.node(&digest)?;
            if node.info.is_index {
                next.extend(&node.info.children);
            } else {
                reached.extend(&node.info.children);
            }
            next.extend(self.referrers.get(&digest).into_iter().flatten());
        }
        Ok(())
    }

    /// The linked manifests.
    fn manifests(&self) -> impl Iterator<Item = &Digest> {
        let is_manifest = |link: &Option<Link>| link.as_ref().is_some_and(|link| link.kind == LinkKind::Manifest);
        self.links.iter().filter(move |(_, link)| is_manifest(link)).map(|(digest, _)| digest)
    }
}

// === impl Survey ===

impl<'a> Survey<'a> {
    /// Of this store.
    pub(super) fn new(inner: &'a Inner) -> Self {
        Self { inner, nodes: HashMap::new(), lengths: HashMap::new() }
    }

    /// What one repository has.
    pub(super) fn contents(&mut self, up: &UpstreamName, repo: &RepoName) -> Result<Contents, StoreError> {
        self.inner.check_open()?;
        let mut contents = Contents::default();
        contents.tags.extend(self.inner.tags_of(up, repo)?);
        for digest in self.inner.linked(up, repo)? {
            let link = match Records::look::<Link>(&self.inner.disk, &layout::link(up, repo, &digest))? {
                Found::Record(link) => Some(link),
                Found::Damaged => None,
                Found::Nothing => continue,
            };
            contents.links.insert(digest, link);
        }
        let tagged: HashSet<Digest> = contents.tags.values().map(|record| record.digest).collect();
        let mut referrers: HashMap<Digest, Vec<Digest>> = HashMap::new();
        for (digest, link) in &contents.links {
            let Some(link) = link.as_ref().filter(|link| link.kind == LinkKind::Manifest) else { continue };
            // A link that was made from the answer to a HEAD does not say.
            let subject = match link.subject {
                Some(subject) => Some(subject),
                None => self.node(digest)?.info.subject,
            };
            if let Some(subject) = subject.filter(|_| !tagged.contains(digest)) {
                referrers.entry(subject).or_default().push(*digest);
            }
        }
        contents.referrers = referrers;
        Ok(contents)
    }

    /// What a manifest says; nothing, if it is not stored, or is none.
    pub(super) fn node(&mut self, digest: &Digest) -> Result<Rc<Node>, StoreError> {
        if let Some(node) = self.nodes.get(digest) {
            return Ok(Rc::clone(node));
        }
        self.inner.check_open()?;
        let path = layout::blob(digest);
        let node = match self.inner.disk.read_all(&path, MANIFEST) {
            Ok(bytes) => ManifestInfo::check(None, &bytes).ok().map(|info| {
                let platforms = if info.is_index { platforms(&bytes) } else { Vec::new() };
                Node { info, platforms }
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound || is_no_file(&error) => None,
            // What it leads to would pass for needless.
            Err(error) => return Err(StoreError::io("read", &path, error)),
        };
        let node = Rc::new(node.unwrap_or_default());
        self.nodes.insert(*digest, Rc::clone(&node));
        Ok(node)
    }

    /// What a manifest says that was looked at already; none of what is no manifest. Layers are long, and not read to find
    /// that out.
    pub(super) fn seen(&self, digest: &Digest) -> Option<Rc<Node>> {
        self.nodes.get(digest).map(Rc::clone)
    }

    /// How many blobs were read.
    #[cfg(test)]
    pub(super) fn blobs_read(&self) -> usize {
        self.nodes.len()
    }

    /// The length of a stored blob; none if it is not stored.
    pub(super) fn len(&mut self, digest: &Digest) -> Option<u64> {
        let inner = self.inner;
        *self.lengths.entry(*digest).or_insert_with_key(|digest| inner.stored_len(digest))
    }
}

// === impl Inner ===

impl Inner {
    /// An error once the store is closed: what goes through all of it must not hold up a stop.
    pub(super) fn check_open(&self) -> Result<(), StoreError> {
        if self.closed.load(Ordering::Relaxed) { Err(StoreError::Stopped) } else { Ok(()) }
    }

    /// The length of a stored blob; none if it is not stored.
    pub(super) fn stored_len(&self, digest: &Digest) -> Option<u64> {
        Some(self.disk.metadata(&layout::blob(digest)).ok()?.len())
    }

    /// The repositories, in order of their names. Trees that were set aside belong to nobody.
    pub(super) fn repositories(&self) -> Result<Vec<(UpstreamName, RepoName)>, StoreError> {
        let mut found = Vec::new();
        for name in self.names_in(Path::new(REFS))? {
            let Ok(up) = name.parse::<UpstreamName>() else { continue };
            let mut next = vec![String::new()];
            while let Some(repo) = next.pop() {
                self.check_open()?;
                let mut has_refs = false;
                let directory = Path::new(REFS).join(&name).join(&repo);
                for name in self.directories_in(&directory)? {
                    if name.starts_with('_') {
                        has_refs = true;
                    } else {
                        next.push(if repo.is_empty() { name } else { format!("{repo}/{name}") });
                    }
                }
                if has_refs && let Ok(repo) = repo.parse() {
                    found.push((up.clone(), repo));
                }
            }
        }
        found.sort_unstable();
        Ok(found)
    }

    /// The tags of a repository that can be read.
    pub(super) fn tags_of(&self, up: &UpstreamName, repo: &RepoName) -> Result<Vec<(Tag, TagRecord)>, StoreError> {
        let directory = layout::tags(up, repo);
        let mut tags = Vec::new();
        for name in self.names_in(&directory)? {
            let Some(tag) = layout::tag_of_file(&name) else { continue };
            if let Found::Record(record) = Records::look::<TagRecord>(&self.disk, &directory.join(name))? {
                tags.push((tag, record));
            }
        }
        Ok(tags)
    }

    fn directories_in(&self, directory: &Path) -> Result<Vec<String>, StoreError> {
        let fail = |e: io::Error| StoreError::io("list", directory, e);
        match self.disk.list(directory) {
            Ok(listing) => listing
                .filter(|entry| entry.as_ref().map_or(true, |entry| entry.is_dir))
                .map(|entry| entry.map(|entry| entry.name).map_err(fail))
                .collect(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(fail(error)),
        }
    }

    /// Shows every file below `refs/`, those of trees that were set aside too; directories after what is in them.
    pub(super) fn each_ref(
        &self,
        mut show: impl FnMut(&Path, bool) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        /// A directory before and after what is below it.
        enum Step {
            Enter(PathBuf),
            Leave(PathBuf),
        }
        let mut next = vec![Step::Enter(REFS.into())];
        while let Some(step) = next.pop() {
            let directory = match step {
                Step::Leave(directory) => {
                    show(&directory, true)?;
                    continue;
                }
                Step::Enter(directory) => directory,
            };
            self.check_open()?;
            let fail = |e: io::Error| StoreError::io("list", &directory, e);
            let listing = match self.disk.list(&directory) {
                Ok(listing) => listing,
                // Emptied and removed in between.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(fail(error)),
            };
            // What cannot be listed is an error: nobody may take what it leads to for garbage.
            let entries = listing.map(|entry| entry.map_err(fail)).collect::<Result<Vec<_>, _>>()?;
            next.push(Step::Leave(directory.clone()));
            for entry in entries {
                let path = directory.join(&entry.name);
                if entry.is_dir {
                    next.push(Step::Enter(path));
                } else {
                    show(&path, false)?;
                }
            }
        }
        Ok(())
    }

    /// The digest that a file below `refs/` names, if it is a link or a tag that can be read.
    ///
    /// # Errors
    /// It cannot be said now.
    pub(super) fn named_by(&self, path: &Path) -> Result<Option<Digest>, StoreError> {
        if !layout::is_tag(path) {
            return Ok(layout::parse_link(path));
        }
        match Records::look::<TagRecord>(&self.disk, path)? {
            Found::Record(record) => Ok(Some(record.digest)),
            Found::Damaged | Found::Nothing => Ok(None),
        }
    }

    /// What the refs lead to, but for those that `without` accepts.
    pub(super) fn led_to(&self, without: impl Fn(&Path) -> bool) -> Result<HashSet<Short>, StoreError> {
        let mut led = HashSet::new();
        self.each_ref(|path, is_dir| {
            if !is_dir && !without(path) {
                led.extend(self.named_by(path)?.as_ref().map(Short::from));
            }
            Ok(())
        })?;
        Ok(led)
    }

    /// Removes a blob that no ref led to a moment ago, unless one does now. Returns its length.
    pub(super) fn remove_unled(&self, digest: &Digest, spares: Spares) -> Result<Option<u64>, StoreError> {
        let mut after = None::<Vec<u8>>;
        loop {
            let part = self.hints.refs(digest, after.as_deref(), 64);
            for path in &part.found {
                // Behind a symbolic link, which is never followed, is nothing either.
                let is_there = match self.disk.metadata(path) {
                    Ok(_) => true,
                    Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                        false
                    }
                    Err(error) if is_no_file(&error) => false,
                    Err(error) => return Err(StoreError::io("look at", path, error)),
                };
                if is_there && self.named_by(path)? == Some(*digest) {
                    return Ok(None);
                }
            }
            after = part.next;
            if after.is_none() {
                return match spares {
                    Spares::PinnedAndBusy => self.remove_unused(digest),
                    Spares::Nothing => self.remove(digest).map(Some),
                };
            }
        }
    }

    /// Shows every file below `blobs/` that has a digest for a name, with that.
    pub(super) fn each_blob(&self, mut show: impl FnMut(&Digest) -> Result<(), StoreError>) -> Result<(), StoreError> {
        for algorithm in Algorithm::ALL {
            let directory = layout::blob_dir(algorithm);
            let fail = |e: io::Error| StoreError::io("list", &directory, e);
            for entry in self.disk.list(&directory).map_err(fail)? {
                self.check_open()?;
                if let Ok(digest) = Digest::from_parts(algorithm, &entry.map_err(fail)?.name) {
                    show(&digest)?;
                }
            }
        }
        Ok(())
    }

    /// `UPSTREAM/REPOSITORY:TAG` or `UPSTREAM/REPOSITORY@DIGEST` of a file below `refs/`, for people.
    pub(super) fn name_of_ref(path: &Path) -> Option<String> {
        if let Some((up, repo, tag)) = layout::parse_tag(path) {
            return Some(format!("{up}/{repo}:{tag}"));
        }
        let digest = layout::parse_link(path)?;
        let repository = path.ancestors().nth(3)?.strip_prefix(REFS).ok()?;
        (!is_aside(repository)).then(|| format!("{}@{digest}", repository.display()))
    }
}
