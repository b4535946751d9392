//! The bytes of a blob as a stream: from a finished file, or from one that still grows, with the tail held back.
//!
//! Every reader, the first one too, reads at its own pace; the disk is the buffer, so memory stays bounded whatever the
//! size of the blob and the number of clients (ADR 0002). Who keeps up gets what has just come from memory (ADR 0035). The last bytes of the blob are handed
//! out only when the digest is known to match, so that no client can ever have received a complete wrong blob
//! (ADR 0003). hyper stops polling a body once Content-Length bytes are out, hence nothing here depends on being
//! polled to the end.

use std::fs::File;
use std::ops::Range;
use std::sync::Arc;

use bytes::{Buf as _, Bytes};
use futures_util::stream::{self, Stream};

use super::CacheError;
use super::bypass::Passing;
use super::demand::Demand;
use super::progress::{State, Watcher};
use super::supply::Origin;
use super::view::{Readable, View};
use crate::sendfile::{Outlet, Part};
use crate::store::StoredBlob;
use crate::sys::read_now::read_now;
use crate::upstream::Interest;

/// Bytes read from the file at once, and so the memory that a reader needs.
const CHUNK: usize = 128 * 1024;
/// Bytes handed to the kernel at once where it sends the file.
const SENT_CHUNK: u64 = 1024 * 1024;
/// Ranges up to this size are read: that is faster than mapping them.
const READ_UP_TO: u64 = 16 * 1024;

/// A blob whose bytes can be read: now, or as they come.
#[derive(Debug, Clone)]
pub struct Content(Source);

#[derive(Debug, Clone)]
enum Source {
    /// A verified file of the store.
    Stored(StoredBlob),
    /// A file that is being filled or checked.
    Watched {
        file: Arc<File>,
        length: Option<u64>,
        watcher: Watcher,
        _keep: Option<StoredBlob>,
        /// None where nothing is filled: the file is only checked.
        reader: Option<Arc<Reader>>,
        /// What its fill knows of the reader.
        view: View,
    },
}

/// Who reads what is filled.
#[derive(Debug)]
struct Reader {
    /// Where, and by whose right, it gets what the store cannot take.
    origin: Origin,
    /// The fill is for it, among others.
    _interest: Interest,
}

/// Why a body ends before its end. The transfer is broken, never ended cleanly.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// The fill failed, or the content turned out wrong.
    #[error("the transfer is broken off: {0}")]
    Content(#[from] CacheError),
    /// The file could not be read.
    #[error("the store's file could not be read")]
    Read(#[source] std::io::Error),
    /// The file is shorter than what was promised.
    #[error("the store's file ends early")]
    Short,
}

/// A position in a blob, and how far to read.
struct Cursor {
    source: Source,
    at: u64,
    end: Option<u64>,
    /// Bytes that are read at once.
    chunk: usize,
    part: Sent,
    /// What follows the file of a fill that was cut.
    passing: Option<Box<Passing>>,
}

/// The part of the file that the kernel sends.
enum Sent {
    /// None: the bytes are read.
    Never,
    /// To be prepared with the first bytes. The answer to many ranges has a body for each and sends one at a time, and
    /// the mappings that a process may have are few.
    Later(Outlet, Range<u64>),
    /// Prepared.
    Part(Part),
}

// === impl Content ===

impl Content {
    /// A verified file of the store.
    pub(super) fn stored(blob: StoredBlob) -> Self {
        Self(Source::Stored(blob))
    }

    /// A file that is being filled.
    pub(super) fn growing(file: Arc<File>, length: Option<u64>, watcher: Watcher) -> Self {
        Self(Source::Watched { file, length, watcher, _keep: None, reader: None, view: View::default() })
    }

    /// A file of the store that is being checked; `waits` says whether parts wait until it is verified.
    pub(super) fn checked(blob: StoredBlob, watcher: Watcher, waits: bool) -> Self {
        let (file, length, view) = (Arc::clone(&blob.file), Some(blob.len), View::of_check(waits));
        Self(Source::Watched { file, length, watcher, _keep: Some(blob), reader: None, view })
    }

    /// For a reader who gets from there what the store cannot take, and whose wants the fill is told, which is for it too;
    /// `waits` says whether parts wait until they are verified. None: the fill is about to end without being whole.
    pub(super) fn for_reader(
        mut self,
        origin: Origin,
        (demand, interest): (&Arc<Demand>, Interest),
        waits: bool,
    ) -> Option<Self> {
        if let Source::Watched { reader, view, .. } = &mut self.0 {
            *reader = Some(Arc::new(Reader { origin, _interest: interest }));
            *view = View::of_fill(demand, waits)?;
        }
        Some(self)
    }

    /// The same, to be read in this range alone (none: all of it), in one piece or in several.
    #[must_use]
    pub fn narrowed(&self, range: Option<&Range<u64>>) -> Self {
        let mut content = self.clone();
        if let Source::Watched { length, view, .. } = &mut content.0 {
            view.narrow(range, *length);
        }
        content
    }

    /// Bytes of the whole blob, if they are known.
    pub fn length(&self) -> Option<u64> {
        match &self.0 {
            Source::Stored(blob) => Some(blob.len),
            Source::Watched { length, watcher, .. } => match watcher.state() {
                State::Verified(bytes) => Some(bytes),
                _ => *length,
            },
        }
    }

    /// Whether the digest is known to match.
    pub fn is_verified(&self) -> bool {
        match &self.0 {
            Source::Stored(_) => true,
            Source::Watched { watcher, .. } => matches!(watcher.state(), State::Verified(_)),
        }
    }

    /// Waits until nothing more becomes of it: whole, checked, and as far as it is kept published and linked. Its length. As long
    /// as that is waited for, the fill is for this reader.
    pub(super) async fn settled(&self) -> Result<u64, CacheError> {
        match &self.0 {
            Source::Stored(blob) => Ok(blob.len),
            Source::Watched { watcher, .. } => {
                let mut watcher = watcher.clone();
                // The writer goes when it has published, or has failed.
                while watcher.changed().await.is_ok() {}
                watcher.verdict().await
            }
        }
    }

    /// The bytes of `range`, which lies within the blob (none: all of them), where they are few, are known to be right, and
    /// are in memory. Does not block.
    pub fn at_hand(&self, range: Option<&Range<u64>>) -> Option<Bytes> {
        let Source::Stored(blob) = &self.0 else { return None };
        let (at, end) = range.map_or((0, blob.len), |range| (range.start, range.end));
        let length = end.checked_sub(at).filter(|length| (1..=READ_UP_TO).contains(length))?;
        let length = usize::try_from(length).ok()?;
        read_now(&blob.file, at, length).filter(|bytes| bytes.len() == length).map(Bytes::from)
    }

    /// The bytes of `range`, which lies within the blob; none: all of them. With an outlet, those that are in memory
    /// are not read, but stand for the file.
    pub fn read(
        &self,
        range: Option<Range<u64>>,
        outlet: Option<&Outlet>,
    ) -> impl Stream<Item = Result<Bytes, BodyError>> + Send + use<> {
        self.read_in(range, outlet, CHUNK)
    }

    /// The same, of which at most so many bytes are read at once.
    pub fn read_in(
        &self,
        range: Option<Range<u64>>,
        outlet: Option<&Outlet>,
        chunk: usize,
    ) -> impl Stream<Item = Result<Bytes, BodyError>> + Send + use<> {
        let whole = range.clone().or_else(|| self.length().map(|length| 0..length));
        let part = match (outlet, whole) {
            (Some(outlet), Some(whole)) if whole.end - whole.start > READ_UP_TO => Sent::Later(outlet.clone(), whole),
            _ => Sent::Never,
        };
        let (at, end) = range.map_or((0, None), |range| (range.start, Some(range.end)));
        let cursor = Cursor { source: self.0.clone(), at, end, chunk, part, passing: None };
        stream::try_unfold(cursor, |mut cursor| async move { Ok(cursor.next().await?.map(|bytes| (bytes, cursor))) })
    }
}

// === impl Cursor ===

impl Cursor {
    /// The next bytes; none at the end.
    async fn next(&mut self) -> Result<Option<Bytes>, BodyError> {
        if let Some(passing) = &mut self.passing {
            return pass(passing, &mut self.at, self.end).await;
        }
        let readable = match self.readable().await? {
            Readable::To(readable) => readable,
            Readable::Rest(rest) => {
                let passing = self.passing.insert(Box::new(rest.open(self.source.reader()).await?));
                return pass(passing, &mut self.at, self.end).await;
            }
        };
        let Some(wanted) = readable.checked_sub(self.at).filter(|&wanted| wanted > 0) else { return Ok(None) };
        if let Some(bytes) = self.at_hand(readable) {
            self.at += bytes.len() as u64;
            return Ok(Some(bytes));
        }
        let sent = self.at..self.at + wanted.min(SENT_CHUNK);
        if let Some(bytes) = self.part().and_then(|part| part.bytes(sent)) {
            self.at += bytes.len() as u64;
            return Ok(Some(bytes));
        }
        let length = usize::try_from(wanted).unwrap_or(self.chunk).min(self.chunk);
        if let Some(bytes) = read_now(self.source.file(), self.at, length) {
            self.at += bytes.len() as u64;
            return Ok(Some(bytes.into()));
        }
        let (file, at) = (Arc::clone(self.source.file()), self.at);
        let read = reader(length);
        let bytes = tokio::task::spawn_blocking(move || read(&file, at))
            .await
            .map_err(|_| BodyError::Content(CacheError::Stopped))?
            .inspect_err(|_| self.source.distrust())
            .map_err(BodyError::Read)?;
        if bytes.is_empty() {
            return Err(BodyError::Short);
        }
        self.at += bytes.len() as u64;
        Ok(Some(bytes))
    }

    /// The next bytes, up to `end`, where they have come a moment ago.
    fn at_hand(&self, end: u64) -> Option<Bytes> {
        let Source::Watched { watcher, .. } = &self.source else { return None };
        let most = if matches!(self.part, Sent::Never) { self.chunk as u64 } else { SENT_CHUNK };
        watcher.at_hand(self.at, end, most)
    }

    /// The file, where the kernel can send it.
    fn part(&mut self) -> Option<&Part> {
        if let Sent::Later(outlet, range) = &self.part {
            // hyper drops the body when it has its last bytes, before it sends them: the source has to outlive it.
            let source = self.source.clone();
            let part = match &self.source {
                Source::Stored(blob) => blob.mapping().map(|whole| outlet.part_of(whole, move || source.distrust())),
                Source::Watched { file, .. } => outlet.part(file, range.clone(), move || source.distrust()).ok(),
            };
            // Without address space left the bytes are read.
            self.part = part.map_or(Sent::Never, Sent::Part);
        }
        match &self.part {
            Sent::Part(part) => Some(part),
            Sent::Never | Sent::Later(..) => None,
        }
    }

    /// Waits until there are bytes past the position.
    async fn readable(&mut self) -> Result<Readable, CacheError> {
        match &mut self.source {
            Source::Stored(blob) => Ok(Readable::To(self.end.map_or(blob.len, |end| end.min(blob.len)))),
            Source::Watched { length, watcher, view, .. } => view.readable(watcher, *length, (self.at, self.end)).await,
        }
    }
}

/// The next bytes from `at` on, as they come from upstream; none at the end.
async fn pass(passing: &mut Passing, at: &mut u64, end: Option<u64>) -> Result<Option<Bytes>, BodyError> {
    while end.is_none_or(|end| *at < end) {
        let Some((begin, mut bytes)) = passing.next().await? else {
            return if end.is_none() { Ok(None) } else { Err(BodyError::Short) };
        };
        let before = usize::try_from(at.saturating_sub(begin)).unwrap_or(usize::MAX).min(bytes.len());
        bytes.advance(before);
        if let Some(end) = end {
            bytes.truncate(usize::try_from(end - *at).unwrap_or(usize::MAX));
        }
        if !bytes.is_empty() {
            *at += bytes.len() as u64;
            return Ok(Some(bytes));
        }
    }
    Ok(None)
}

// === impl Source ===

impl Source {
    /// A sector that cannot be read changes nothing about the file that a stamp would show.
    fn distrust(&self) {
        if let Self::Stored(blob) = self {
            blob.distrust();
        }
    }

    fn reader(&self) -> Option<&Origin> {
        match self {
            Self::Stored(_) => None,
            Self::Watched { reader, .. } => reader.as_ref().map(|reader| &reader.origin),
        }
    }

    fn file(&self) -> &Arc<File> {
        match self {
            Self::Stored(blob) => &blob.file,
            Self::Watched { file, .. } => file,
        }
    }
}

/// One read of at most `length` bytes of a file at an offset, for the blocking pool; empty at the end of the file.
///
/// The buffer is made here, by the caller. Made by the pool's threads, which are many, each of them would keep
/// memory for further ones: the allocator gives a thread megabytes at a time for buffers of this size.
pub(super) fn reader(length: usize) -> impl FnOnce(&File, u64) -> std::io::Result<Bytes> + Send {
    let mut buffer = Vec::with_capacity(length);
    move |file, offset| {
        loop {
            match rustix::io::pread(file, rustix::buffer::spare_capacity(&mut buffer), offset) {
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
                Ok(_) => {
                    // There may be more room than was asked for, and what follows may be held back.
                    buffer.truncate(length);
                    return Ok(Bytes::from(buffer));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::TryStreamExt as _;

    use super::*;
    use crate::config::{Capacity, Durability};
    use crate::metrics::Metrics;
    use crate::oci::{Algorithm, Digest};
    use crate::store::{Keep, Store, StoreOptions, Trust};

    /// A store with one blob, and the blob.
    async fn stored(root: &std::path::Path, content: &[u8]) -> (Store, Digest, StoredBlob) {
        let options = StoreOptions {
            root: root.to_owned(),
            capacity: Capacity::Default,
            durability: Durability::Fast,
            keep: Keep::default(),
            origins: Vec::new(),
            clock: crate::clock::twin::system(),
        };
        let store = Store::open(options, Metrics::new().unwrap()).unwrap();
        let digest = Digest::of(Algorithm::Sha256, content);
        let mut writer = store.create(&digest, None).await.unwrap();
        writer.write(Bytes::copy_from_slice(content)).await.unwrap();
        let blob = writer.finish().await.unwrap();
        assert_eq!(blob.trust, Trust::Verified);
        (store, digest, blob)
    }

    #[tokio::test]
    async fn a_file_that_cannot_be_read_is_not_trusted_again() {
        let root = tempfile::tempdir().unwrap();
        let (store, digest, mut blob) = stored(root.path(), b"content").await;
        // Reading fails, as on a bad sector.
        blob.file = Arc::new(File::create(root.path().join("unreadable")).unwrap());
        let read = Content::stored(blob).read(None, None).try_collect::<Vec<_>>().await;
        assert!(matches!(read, Err(BodyError::Read(_))), "{read:?}");
        assert_eq!(
            store.blob(&digest).await.unwrap().unwrap().trust,
            Trust::Unverified,
            "the next reader's is checked"
        );
    }

    #[tokio::test]
    async fn a_file_that_cannot_be_sent_is_not_trusted_again_when_the_body_is_gone() {
        let root = tempfile::tempdir().unwrap();
        let (store, digest, blob) = stored(root.path(), &vec![5; 100_000]).await;
        let outlet = Outlet::default();
        // A connection drops the body with its last bytes, before it sends them.
        let bytes = Content::stored(blob).read(None, Some(&outlet)).try_collect::<Vec<_>>().await.unwrap();
        assert_eq!(store.blob(&digest).await.unwrap().unwrap().trust, Trust::Verified);
        outlet.find(&bytes[0]).unwrap().unreadable();
        assert_eq!(store.blob(&digest).await.unwrap().unwrap().trust, Trust::Unverified);
    }

    #[tokio::test]
    async fn a_body_that_is_not_read_yet_takes_no_mapping() {
        let root = tempfile::tempdir().unwrap();
        let (_store, _, blob) = stored(root.path(), &vec![5; 100_000]).await;
        let mappings = || {
            let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
            maps.lines().filter(|line| line.contains(root.path().to_str().unwrap())).count()
        };
        let (content, outlet) = (Content::stored(blob), Outlet::default());
        // As the parts of a multipart answer, of which one is sent at a time.
        let mut bodies: Vec<_> = (0..64).map(|n| Box::pin(content.read(Some(n..n + 90_000), Some(&outlet)))).collect();
        assert_eq!(mappings(), 0);
        let bytes = bodies[0].try_next().await.unwrap().unwrap();
        assert!(outlet.find(&bytes).is_some());
        assert_eq!(mappings(), 1);
    }
}
