//! Hashing stored blobs again: one at a time, at a pace. A right one gets a new stamp, a wrong one goes to quarantine
//! and is fetched anew when it is next asked for.

use std::collections::HashSet;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep_until};

use super::survey::Survey;
use super::{Inner, Store, StoreError, StoredBlob, layout};
use crate::config::ImagePattern;
use crate::oci::{Algorithm, Digest, Hasher};

/// Bytes hashed at once on the blocking pool.
const STEP: u64 = 1 << 20;
/// Names that are read of a directory at a time.
const NAMES: usize = 500;
/// Refs that are named of a blob that was wrong.
const REFS: usize = 16;

/// What hashing a stored blob has shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checked {
    /// It is what its digest names, and its next read needs no check.
    Right,
    /// It is not, or it could not be read; it is in quarantine.
    Wrong,
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
    /// Tags, links and other records that cannot be read. Not looked for under a pattern.
    pub damaged_records: u64,
    /// Tags and links older than an hour whose blob is not there: no damage, it is fetched when it is asked for.
    pub broken_refs: u64,
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
}

/// Nothing to wait for: somebody does already.
#[derive(Debug)]
pub struct AtOnce;

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
        self.wrong.is_empty() && self.damaged_records == 0
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
                    tracing::error!(%digest, %error, "a stored blob cannot be read; it is set aside");
                    self.quarantine(digest, blob).await?;
                    return Ok(Checked::Wrong);
                }
            }
        }
        if state.0.finish() != *digest {
            self.quarantine(digest, blob).await?;
            return Ok(Checked::Wrong);
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
        let mut report = Verified::default();
        let mut pace = Pace::new(rate);
        if let Some(pattern) = pattern {
            for digest in self.blocking(move |inner| inner.reached_by(&pattern)).await? {
                self.verify_blob(&digest, &mut pace, &mut report).await?;
            }
            return Ok(report);
        }
        for algorithm in Algorithm::ALL {
            let directory = layout::blob_dir(algorithm);
            let open = move |inner: &Arc<Inner>| {
                inner.disk.list(&directory).map_err(|e| StoreError::io("list", &directory, e))
            };
            let mut listing = self.blocking(open).await?;
            loop {
                let step = move |_: &Arc<Inner>| {
                    let names: Vec<_> = listing.by_ref().take(NAMES).flatten().map(|entry| entry.name).collect();
                    Ok((listing, names))
                };
                let names;
                (listing, names) = self.blocking(step).await?;
                if names.is_empty() {
                    break;
                }
                for digest in names.iter().filter_map(|name| Digest::from_parts(algorithm, name).ok()) {
                    self.verify_blob(&digest, &mut pace, &mut report).await?;
                }
            }
        }
        let records = self.repair(!repair).await?;
        report.damaged_records = records.damaged_records;
        report.broken_refs = records.broken_refs;
        report.repaired = repair;
        Ok(report)
    }

    async fn verify_blob(&self, digest: &Digest, pace: &mut Pace, report: &mut Verified) -> Result<(), StoreError> {
        let blob = match self.peek(digest).await {
            Ok(Some(blob)) => blob,
            // Evicted meanwhile.
            Ok(None) => return Ok(()),
            Err(StoreError::Stopped) => return Err(StoreError::Stopped),
            Err(error) => {
                if !self.quarantine_if_no_file(digest).await? {
                    return Err(error);
                }
                report.wrong.push(WrongBlob { digest: *digest, bytes: 0, names: self.names_of(digest).await? });
                return Ok(());
            }
        };
        report.blobs += 1;
        report.bytes += blob.len;
        if self.check(digest, &blob, pace).await? == Checked::Wrong {
            report.wrong.push(WrongBlob { digest: *digest, bytes: blob.len, names: self.names_of(digest).await? });
        }
        Ok(())
    }

    /// What stands under a blob's name and is no regular file, such as a link, goes to quarantine. Whether it was so.
    pub(super) async fn quarantine_if_no_file(&self, digest: &Digest) -> Result<bool, StoreError> {
        let digest = *digest;
        let work = move |inner: &Arc<Inner>| match inner.disk.metadata(&layout::blob(&digest)) {
            Ok(found) if !found.is_file() => inner.quarantine_blob(&digest, found.ino()).map(|()| true),
            _ => Ok(false),
        };
        self.blocking(work).await
    }

    async fn names_of(&self, digest: &Digest) -> Result<Vec<String>, StoreError> {
        let digest = *digest;
        let names = move |inner: &Arc<Inner>| {
            let refs = inner.hints.refs(&digest, None, REFS).found;
            Ok(refs.iter().filter_map(|path| Inner::name_of_ref(path)).collect())
        };
        self.blocking(names).await
    }
}

// === impl Inner ===

impl Inner {
    /// The stored and other blobs to which the images lead that a pattern means.
    fn reached_by(&self, pattern: &ImagePattern) -> Result<HashSet<Digest>, StoreError> {
        let mut survey = Survey::new(self);
        let mut reached = HashSet::new();
        for (up, repo) in self.repositories()? {
            if !pattern.is_about(&up, &repo) {
                continue;
            }
            let contents = survey.contents(&up, &repo)?;
            if pattern.is_whole() {
                reached.extend(contents.links.keys());
            }
            reached.extend(contents.links.keys().filter(|digest| pattern.digest() == Some(*digest)));
            for (tag, digest) in contents.roots(&mut survey)? {
                if pattern.selects(tag.as_ref(), &digest) {
                    let mut below = HashSet::new();
                    contents.reach(&mut survey, &digest, &mut below)?;
                    reached.extend(below);
                }
            }
        }
        Ok(reached)
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
