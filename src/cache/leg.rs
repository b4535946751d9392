//! A leg: one of the requests that bring a blob into its file, each a part of it.

use std::ops::Range;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Buf as _;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::CacheError;
use super::download::{Bound, Download, Entire};
use super::plan::Running;
use super::supply::Supply;
use crate::store::{BlobWriter, ByteRanges, StoreError};
use crate::upstream::Priority;

/// What the fill knows of a leg while it runs.
#[derive(Debug, Clone)]
pub(super) struct Handle {
    id: u64,
    /// Whether somebody waits for what it brings.
    priority: Priority,
    bounds: Arc<Bounds>,
    stop: CancellationToken,
}

/// Where a leg is, and where it ends. It tells the one, and is told the other.
#[derive(Debug)]
struct Bounds {
    at: AtomicU64,
    end: Bound,
    /// Upstream sends it all, whatever was asked for.
    entire: Entire,
}

/// Why receiving ended.
#[derive(Debug)]
pub(super) enum Broken {
    /// Upstream broke the body off, or it is not what was asked for.
    Upstream(CacheError),
    /// The store does not take it.
    Store(StoreError),
}

/// What legs write into.
#[derive(Clone, Copy)]
pub(super) struct Into<'a> {
    pub(super) writer: &'a BlobWriter,
    /// What has come, if only into memory.
    pub(super) come: &'a Mutex<ByteRanges>,
}

// === impl Handle ===

impl Handle {
    /// Of a leg that is to bring this part.
    pub(super) fn new(id: u64, part: &Range<u64>, length: u64, priority: Priority) -> Self {
        let end = Bound::new((part.end != length).then_some(part.end));
        Self::bounded(id, (part.start, end, Entire::default()), priority)
    }

    /// Of one that brings what was begun.
    pub(super) fn of(id: u64, begun: &Download, priority: Priority) -> Self {
        Self::bounded(id, (begun.at(), begun.bound().clone(), begun.entire().clone()), priority)
    }

    fn bounded(id: u64, (at, end, entire): (u64, Bound, Entire), priority: Priority) -> Self {
        let bounds = Arc::new(Bounds { at: AtomicU64::new(at), end, entire });
        Self { id, priority, bounds, stop: CancellationToken::new() }
    }

    pub(super) fn id(&self) -> u64 {
        self.id
    }

    /// What it has yet to bring of a blob of this length.
    pub(super) fn running(&self, length: u64) -> Running {
        let end = self.bounds.end.get().map_or(length, |end| end.min(length));
        Running { id: self.id, left: self.bounds.at.load(Ordering::Relaxed).min(end)..end }
    }

    /// Whether upstream sends it all, also where a part was asked for.
    pub(super) fn is_whole(&self) -> bool {
        self.bounds.entire.get()
    }

    /// It ends there.
    pub(super) fn shorten(&self, end: u64) {
        self.bounds.end.shorten(end);
    }

    /// It brings nothing more; what it has in hand is written.
    pub(super) fn stop(&self) {
        self.stop.cancel();
    }

    /// Runs it, with what was begun or else by a request of its own, until all of its part has come, or it is stopped.
    pub(super) async fn run(self, supply: Arc<Supply>, begun: Option<Download>, into: Into<'_>) -> Result<u64, Broken> {
        let Bounds { at, end, entire } = &*self.bounds;
        let mut download = if let Some(download) = begun {
            download
        } else {
            let part = (at.load(Ordering::Relaxed), end.clone(), entire.clone());
            let resumed = Download::resumed(supply, part, (self.priority, true));
            match self.unless_stopped(resumed).await {
                Some(resumed) => resumed.map_err(Broken::Upstream)?,
                None => return Ok(self.id),
            }
        };
        while let Some(next) = self.unless_stopped(download.next()).await {
            let Some((from, mut data)) = next.map_err(Broken::Upstream)? else { break };
            if download.is_all() {
                at.fetch_min(from, Ordering::Relaxed);
            }
            // What comes again, because upstream does not go on from the mark, is here already.
            let known = at.load(Ordering::Relaxed).saturating_sub(from);
            data.advance(usize::try_from(known).unwrap_or(usize::MAX).min(data.len()));
            if data.is_empty() {
                continue;
            }
            let from = from.max(at.load(Ordering::Relaxed));
            let range = from..from + data.len() as u64;
            // Before the writer has room for it: until then this part could become another leg's. So it is written, also
            // where the leg is stopped meanwhile; only that others need not wait for its connection.
            at.fetch_max(range.end, Ordering::Relaxed);
            into.come.lock().insert(range);
            let mut writing = pin!(into.writer.write_at(from, data));
            if let Some(written) = self.unless_stopped(writing.as_mut()).await {
                written.map_err(Broken::Store)?;
            } else {
                drop(download);
                writing.await.map_err(Broken::Store)?;
                break;
            }
        }
        Ok(self.id)
    }

    /// What comes of it, unless the leg is stopped before: then nothing more is asked for, and nothing more is taken.
    async fn unless_stopped<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            () = self.stop.cancelled() => None,
            come = work => Some(come),
        }
    }
}
