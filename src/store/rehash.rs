//! Hashing stored blobs again: one at a time, at a pace. A right one gets a new stamp, a wrong one goes to quarantine
//! and is fetched anew when it is next asked for. One that cannot be read stays where it is (`unreadable`).

use std::collections::{BTreeSet, HashMap, HashSet};
use std::io;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use prometheus::IntCounter;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep_until};

use super::blob::Quarantined;
use super::layout::{self, REFS};
use super::survey::Survey;
use super::{Inner, Store, StoreError, StoredBlob};
use crate::config::ImagePattern;
use crate::oci::{Algorithm, Digest, Hasher};

/// Bytes hashed at once on the blocking pool.
const STEP: u64 = 1 << 20;
/// Names that are read of a directory at a time.
const NAMES: usize = 500;
/// Refs that are named of a blob that was wrong.
const LEADING: usize = 16;
/// Blobs in a row that cannot be read, after which no more are tried: then it is the disk, or the way to it, and reading on
/// only makes it worse.
pub(super) const IN_A_ROW: u32 = 8;

/// What hashing a stored blob has shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checked {
    /// It is what its digest names, and its next read needs no check.
    Right,
    /// It is not, and is out of the way.
    Wrong(Quarantined),
    /// It cannot be read at this moment: what it is, nobody knows, and it stays where it is.
    Unreadable(Errno),
}

/// What a verification has found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verified {
    /// Blobs that were hashed.
    pub blobs: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Those that were wrong.
    pub wrong: Vec<WrongBlob>,
    /// What could not be looked at, or could not be moved out of the way.
    #[serde(default)]
    pub unreadable: Vec<Unreadable>,
    /// Patterns that mean nothing in the store.
    #[serde(default)]
    pub unmatched: Vec<String>,
    /// Under a pattern: manifests that were asked for, and configurations and layers of stored manifests, that are not
    /// stored. Platforms of an index that nobody has asked for are none.
    #[serde(default)]
    pub missing: Vec<Digest>,
    /// The same with the images of which they are parts.
    #[serde(default)]
    pub missing_of: Vec<MissingBlob>,
    /// Tags, links and other records that cannot be read. Not looked for under a pattern.
    pub damaged_records: u64,
    /// Tags and links older than an hour whose blob is not there: no damage, it is fetched when it is asked for.
    pub broken_refs: u64,
    /// Files of pins that cannot be read, as in [`super::Collected`].
    #[serde(default)]
    pub damaged_pins: Vec<PathBuf>,
    /// Whether these, and the index, were repaired.
    pub repaired: bool,
}

/// A blob that was not what its digest names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WrongBlob {
    /// The digest.
    pub digest: Digest,
    /// The length of the wrong file.
    pub bytes: u64,
    /// Some of what leads to it, as names of images.
    pub names: Vec<String>,
    /// Some of the images of which it is a part, by name.
    #[serde(default)]
    pub images: Vec<String>,
    /// Whether the file is in quarantine; else it was removed.
    #[serde(default)]
    pub kept: bool,
}

/// A part of an image that is not stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MissingBlob {
    /// The digest.
    pub digest: Digest,
    /// Some of the images of which it is a part, by name.
    pub images: Vec<String>,
}

/// What could not be verified.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unreadable {
    /// The file or directory, from the root.
    pub path: PathBuf,
    /// Why not.
    pub error: String,
    /// Of a blob: some of the images of which it is a part, by name.
    #[serde(default)]
    pub images: Vec<String>,
}

/// Nothing to wait for: somebody does already.
#[derive(Debug)]
pub struct AtOnce;

/// A verification under way.
struct Run {
    pace: Counted,
    report: Verified,
    /// Blobs in a row that could not be read.
    unreadable: u32,
}

/// The pace of a verification, which shows how far it is.
struct Counted {
    pace: Pace,
    bytes: IntCounter,
}

/// How fast is read.
#[derive(Debug)]
pub struct Pace {
    /// Bytes a second; none: as fast as it goes.
    rate: Option<u64>,
    due: Instant,
}

// === impl Verified ===

impl Verified {
    /// Whether nothing was wrong.
    pub fn is_clean(&self) -> bool {
        self.wrong.is_empty()
            && self.unreadable.is_empty()
            && self.unmatched.is_empty()
            && self.missing.is_empty()
            && self.damaged_pins.is_empty()
            && self.damaged_records == 0
    }

    /// It could not be looked at, which is no reason to stop; that the store is closed is.
    fn unreadable(&mut self, path: PathBuf, error: StoreError) -> Result<(), StoreError> {
        if matches!(error, StoreError::Stopped) {
            return Err(error);
        }
        let mut text = error.to_string();
        let mut source = std::error::Error::source(&error);
        while let Some(error) = source {
            text = format!("{text}: {error}");
            source = error.source();
        }
        self.unreadable.push(Unreadable { path, error: text, images: Vec::new() });
        Ok(())
    }
}

// === impl Run ===

impl Run {
    /// A blob could not be looked at: the verification goes on, unless that is so of many in a row.
    fn unreadable(&mut self, digest: &Digest, error: StoreError) -> Result<ControlFlow<()>, StoreError> {
        self.report.unreadable(layout::blob(digest), error)?;
        self.unreadable += 1;
        if self.unreadable < IN_A_ROW {
            return Ok(ControlFlow::Continue(()));
        }
        let why = "so many in a row could not be read that the rest was not looked at: see to the disk";
        let directory = layout::blob_dir(digest.algorithm());
        self.report.unreadable(directory.clone(), StoreError::io("verify", &directory, io::Error::other(why)))?;
        Ok(ControlFlow::Break(()))
    }
}

// === impl Pace ===

impl Pace {
    /// So many bytes a second; none: as fast as it goes.
    pub fn new(rate: Option<u64>) -> Self {
        Self { rate, due: Instant::now() }
    }

    /// Waits until more may be read.
    pub(super) async fn ready(&self) {
        if self.rate.is_some() {
            sleep_until(self.due).await;
        }
    }

    /// So many bytes are read now.
    pub(super) fn charge(&mut self, bytes: u64) {
        let Some(rate) = self.rate else { return };
        // Time in which nothing was read is not saved up.
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(rate.max(1));
        self.due = self.due.max(Instant::now()) + Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
    }
}

// === impl Store ===

impl Store {
    /// Hashes what is read through `blob`, and acts on what that shows. `before` is awaited before each step, which is
    /// one of so many bytes.
    ///
    /// # Errors
    /// The store is stopping, or a wrong blob could not be moved.
    pub async fn check<P: Before>(
        &self,
        digest: &Digest,
        blob: &StoredBlob,
        before: &mut P,
    ) -> Result<Checked, StoreError> {
        let mut state = (Hasher::new(digest.algorithm()), Vec::new());
        let mut at = 0;
        while at < blob.len {
            let wanted = STEP.min(blob.len - at);
            before.step(wanted).await;
            let file = Arc::clone(&blob.file);
            let step = move |inner: &Arc<Inner>| {
                inner.check_open()?;
                let (hasher, buffer) = &mut state;
                buffer.resize(usize::try_from(wanted).unwrap_or_default(), 0);
                let read = inner.disk.read_at(&file, buffer, at);
                if let Ok(read) = &read {
                    hasher.update(buffer.get(..*read).unwrap_or_default());
                }
                Ok((state, read))
            };
            let read;
            (state, read) = self.blocking(step).await?;
            match read {
                // Shorter than it was: the hash tells.
                Ok(0) => break,
                Ok(read) => at += read as u64,
                Err(error) => {
                    tracing::error!(
                        %digest, %error,
                        "a stored blob cannot be read; it stays, and is fetched anew when it is asked for"
                    );
                    self.note_unreadable(digest, blob).await?;
                    return Ok(Checked::Unreadable(Errno::from_io_error(&error).unwrap_or(Errno::IO)));
                }
            }
        }
        if state.0.finish() != *digest {
            return self.quarantine(digest, blob).await.map(Checked::Wrong);
        }
        // A stamp that cannot be written costs another check next time, nothing else.
        if let Err(error) = self.mark_verified(digest, blob).await {
            tracing::warn!(%digest, error = &error as &dyn std::error::Error, "a verification stamp was not kept");
        }
        Ok(Checked::Right)
    }

    /// Hashes all that is stored, or what the images lead to that a pattern means; at most `rate` bytes a second. Without
    /// a pattern records are looked at too, and with `repair` what cannot be read or leads nowhere is removed and the
    /// index repaired.
    pub async fn verify(
        &self,
        pattern: Option<ImagePattern>,
        rate: Option<u64>,
        repair: bool,
    ) -> Result<Verified, StoreError> {
        let report = self.verify_all(pattern, rate, repair).await?;
        self.named(report).await
    }

    /// With the names of the images that are concerned.
    async fn named(&self, mut report: Verified) -> Result<Verified, StoreError> {
        let of_path = |path: &PathBuf| {
            let parts: Vec<&str> = path.iter().filter_map(|part| part.to_str()).collect();
            let [.., algorithm, hex] = parts.as_slice() else { return None };
            format!("{algorithm}:{hex}").parse::<Digest>().ok()
        };
        let unreadable = report.unreadable.iter().filter_map(|unreadable| of_path(&unreadable.path));
        let wrong = report.wrong.iter().map(|wrong| wrong.digest);
        let blobs: HashSet<Digest> = report.missing.iter().copied().chain(unreadable).chain(wrong).collect();
        let looked_up = self.blocking(move |inner| inner.image_names(&blobs, LEADING)).await;
        let images_of = match looked_up {
            Ok(found) => found,
            Err(StoreError::Stopped) => return Err(StoreError::Stopped),
            // Where not all can be read, what was found out is worth more than the names.
            Err(_) => HashMap::new(),
        };
        let images = |digest: &Digest| images_of.get(digest).cloned().unwrap_or_default();
        for wrong in &mut report.wrong {
            wrong.images = images(&wrong.digest);
        }
        for unreadable in &mut report.unreadable {
            unreadable.images = of_path(&unreadable.path).map(|digest| images(&digest)).unwrap_or_default();
        }
        let missing = report.missing.iter().map(|digest| MissingBlob { digest: *digest, images: images(digest) });
        report.missing_of = missing.collect();
        Ok(report)
    }

    async fn verify_all(
        &self,
        pattern: Option<ImagePattern>,
        rate: Option<u64>,
        repair: bool,
    ) -> Result<Verified, StoreError> {
        let pace = Counted { pace: Pace::new(rate), bytes: self.0.metrics.verified_bytes.clone() };
        let mut run = Run { pace, report: Verified::default(), unreadable: 0 };
        if let Some(pattern) = pattern {
            let name = pattern.to_string();
            let (reached, missing) = self.blocking(move |inner| inner.reached_by(&pattern)).await?;
            if reached.is_empty() {
                run.report.unmatched.push(name);
            }
            run.report.missing = missing;
            for digest in reached {
                if self.verify_blob(&digest, &mut run).await?.is_break() {
                    break;
                }
            }
            return Ok(run.report);
        }
        for algorithm in Algorithm::ALL {
            if self.verify_directory(algorithm, &mut run).await?.is_break() {
                // Of what such a disk says of the records, nothing would be sure either.
                return Ok(run.report);
            }
        }
        let mut report = run.report;
        match self.repair(!repair).await {
            Ok(records) => {
                report.damaged_records = records.damaged_records;
                report.broken_refs = records.broken_refs;
                report.damaged_pins = records.damaged_pins;
                report.repaired = repair;
            }
            Err(error) => report.unreadable(REFS.into(), error)?,
        }
        Ok(report)
    }

    /// All blobs of one directory, unless so many in a row cannot be read that it makes no sense to go on.
    async fn verify_directory(&self, algorithm: Algorithm, run: &mut Run) -> Result<ControlFlow<()>, StoreError> {
        let directory = layout::blob_dir(algorithm);
        let open = |directory: PathBuf| {
            move |inner: &Arc<Inner>| inner.disk.list(&directory).map_err(|e| StoreError::io("list", &directory, e))
        };
        let mut listing = match self.blocking(open(directory.clone())).await {
            Ok(listing) => listing,
            Err(error) => {
                run.report.unreadable(directory, error)?;
                return Ok(ControlFlow::Continue(()));
            }
        };
        loop {
            let step = move |_: &Arc<Inner>| {
                let names: Vec<_> = listing.by_ref().take(NAMES).collect();
                Ok((listing, names))
            };
            let names;
            (listing, names) = self.blocking(step).await?;
            if names.is_empty() {
                return Ok(ControlFlow::Continue(()));
            }
            for entry in names {
                match entry {
                    Ok(entry) => {
                        if let Ok(digest) = Digest::from_parts(algorithm, &entry.name)
                            && self.verify_blob(&digest, run).await?.is_break()
                        {
                            return Ok(ControlFlow::Break(()));
                        }
                    }
                    // What is behind it is not known.
                    Err(error) => {
                        let error = StoreError::io("list", &directory, error);
                        run.report.unreadable(directory, error)?;
                        return Ok(ControlFlow::Continue(()));
                    }
                }
            }
        }
    }

    async fn verify_blob(&self, digest: &Digest, run: &mut Run) -> Result<ControlFlow<()>, StoreError> {
        let checked = match self.peek(digest).await {
            Ok(Some(blob)) => {
                run.report.blobs += 1;
                run.report.bytes += blob.len;
                match self.check(digest, &blob, &mut run.pace).await {
                    Ok(Checked::Right) => Ok(None),
                    Ok(Checked::Wrong(became)) => Ok(Some((blob.len, became))),
                    Ok(Checked::Unreadable(errno)) => Err(StoreError::io("read", &layout::blob(digest), errno.into())),
                    Err(error) => Err(error),
                }
            }
            // Evicted meanwhile.
            Ok(None) => Ok(None),
            Err(error) => match self.quarantine_if_no_file(digest).await {
                Ok(Some(became)) => Ok(Some((0, became))),
                Ok(None) | Err(_) => Err(error),
            },
        };
        match checked {
            Ok(wrong) => {
                run.unreadable = 0;
                if let Some((bytes, became)) = wrong {
                    let (names, kept) = (self.names_of(digest).await?, became == Quarantined::Kept);
                    let images = Vec::new();
                    run.report.wrong.push(WrongBlob { digest: *digest, bytes, names, images, kept });
                }
                Ok(ControlFlow::Continue(()))
            }
            Err(error) => run.unreadable(digest, error),
        }
    }

    /// What stands under a blob's name and is no regular file, such as a link, goes to quarantine. None if it is not so.
    pub(super) async fn quarantine_if_no_file(&self, digest: &Digest) -> Result<Option<Quarantined>, StoreError> {
        let digest = *digest;
        self.blocking(move |inner| inner.quarantine_no_file(&digest)).await
    }

    async fn names_of(&self, digest: &Digest) -> Result<Vec<String>, StoreError> {
        let digest = *digest;
        let names = move |inner: &Arc<Inner>| {
            let refs = inner.hints.refs(&digest, None, LEADING).found;
            Ok(refs.iter().filter_map(|path| Inner::name_of_ref(path)).collect())
        };
        self.blocking(names).await
    }
}

// === impl Inner ===

impl Inner {
    /// The stored and other blobs to which the images lead that a pattern means; and what is not there of them although
    /// somebody has asked for it.
    fn reached_by(&self, pattern: &ImagePattern) -> Result<(HashSet<Digest>, Vec<Digest>), StoreError> {
        let mut survey = Survey::new(self);
        let mut reached = HashSet::new();
        let mut wanted = BTreeSet::new();
        for (up, repo) in self.repositories()? {
            if !pattern.is_about(&up, &repo) {
                continue;
            }
            let contents = survey.contents(&up, &repo)?;
            if pattern.is_whole() {
                reached.extend(contents.links.keys());
            }
            let named = contents.links.keys().filter(|digest| pattern.digest() == Some(*digest));
            wanted.extend(named.clone().copied());
            reached.extend(named);
            for (tag, digest) in contents.roots(&mut survey)? {
                if pattern.selects(tag.as_ref(), &digest) {
                    let mut below = HashSet::new();
                    contents.reach(&mut survey, &digest, &mut below)?;
                    wanted.insert(digest);
                    reached.extend(below);
                }
            }
        }
        for digest in &reached {
            let node = survey.node(digest)?;
            if !node.info.is_index {
                wanted.extend(&node.info.children);
            }
        }
        let missing = wanted.into_iter().filter(|digest| survey.len(digest).is_none()).collect();
        Ok((reached, missing))
    }
}

impl Before for Counted {
    async fn step(&mut self, bytes: u64) {
        self.pace.step(bytes).await;
        self.bytes.inc_by(bytes);
    }
}

/// What is awaited before a step of a check.
pub trait Before: Send {
    /// Waits until so many bytes may be read.
    fn step(&mut self, bytes: u64) -> impl Future<Output = ()> + Send;
}

impl Before for AtOnce {
    async fn step(&mut self, _: u64) {}
}

impl Before for Pace {
    async fn step(&mut self, bytes: u64) {
        self.ready().await;
        self.charge(bytes);
    }
}
