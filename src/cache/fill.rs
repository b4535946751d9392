//! A fill: the one download of a blob, by a task that no client owns.
//!
//! Ask upstream → write and hash → tell the readers how far it is → verify → release the tail → publish. A body that
//! breaks is continued by Range from the mark; the readers see a pause (ADR 0002).

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Buf as _;
use http::{HeaderMap, Method, StatusCode, header};
use http_body_util::BodyExt as _;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::flight::Role;
use super::progress::{self, Head, Reporter, Watcher};
use super::{ANSWER_WITHIN, Cache, CacheError, Target, blame};
use crate::oci::{Digest, Via};
use crate::store::{BlobWriter, Link};
use crate::upstream::{Answer, Ask, Registry, UpstreamError};

/// Tries to continue a broken body without a single byte of progress between them.
const RESUMES_WITHOUT_PROGRESS: u32 = 3;

/// The running fills, one per digest across all names and clients.
#[derive(Default)]
pub(super) struct Fills {
    /// Held for look-ups only, never over an await.
    running: Mutex<HashMap<Digest, Fill>>,
}

/// Names under which upstream has said that it has the blob too; none once they were turned into links.
type Proven = Mutex<Option<Vec<(Target, Via)>>>;

/// A running fill, as a reader holds it.
#[derive(Clone)]
pub(super) struct Fill {
    /// In whose name upstream is asked.
    pub(super) target: Target,
    /// How far it is.
    pub(super) watcher: Watcher,
    proven: Arc<Proven>,
}

/// Takes the fill out of the table and off the gauge, however its task ends.
struct Landing {
    cache: Arc<Cache>,
    digest: Digest,
}

// === impl Fill ===

impl Fill {
    /// Has `target` linked to the blob when it is published. False if that has happened already.
    pub(super) fn also_for(&self, target: &Target, via: Via) -> bool {
        let mut proven = self.proven.lock();
        let Some(proven) = proven.as_mut() else { return false };
        proven.push((target.clone(), via));
        true
    }
}

// === impl Cache ===

impl Cache {
    /// Joins the fill of `digest`, or starts one in the name of `target`.
    pub(super) fn fill(self: &Arc<Self>, target: &Target, digest: &Digest) -> Result<(Fill, Role), CacheError> {
        let registry = Arc::clone(self.registry(&target.upstream)?);
        let mut running = self.fills.running.lock();
        if let Some(fill) = running.get(digest) {
            return Ok((fill.clone(), Role::Follower));
        }
        let (reporter, watcher) = progress::channel();
        let fill = Fill { target: target.clone(), watcher, proven: Arc::new(Mutex::new(Some(Vec::new()))) };
        running.insert(*digest, fill.clone());
        drop(running);
        self.metrics.fills_in_progress.inc();
        let landing = Landing { cache: Arc::clone(self), digest: *digest };
        let task = FillTask {
            cache: Arc::clone(self),
            registry,
            target: target.clone(),
            digest: *digest,
            reporter,
            proven: Arc::clone(&fill.proven),
        };
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            // The landing comes last: until the blob is published a new request finds the fill, and after it the file.
            let _landing = landing;
            if stop.run_until_cancelled(task.run()).await.is_none() {
                tracing::debug!("a fill was given up because ocistern is stopping");
            }
        });
        Ok((fill, Role::Leader))
    }
}

// === impl Landing ===

impl Drop for Landing {
    fn drop(&mut self) {
        self.cache.fills.running.lock().remove(&self.digest);
        self.cache.metrics.fills_in_progress.dec();
    }
}

/// All that the task of a fill needs.
struct FillTask {
    cache: Arc<Cache>,
    registry: Arc<Registry>,
    target: Target,
    digest: Digest,
    reporter: Reporter,
    proven: Arc<Proven>,
}

// === impl FillTask ===

impl FillTask {
    async fn run(self) {
        if let Err(error) = self.attempt().await {
            tracing::warn!(
                upstream = %self.target.upstream, repository = %self.target.repo, digest = %self.digest,
                error = &error as &dyn std::error::Error, "a blob could not be fetched"
            );
            self.reporter.failed(error);
        }
    }

    async fn attempt(&self) -> Result<(), CacheError> {
        let deadline = Instant::now() + ANSWER_WITHIN;
        let answer = self.registry.fetch(Ask::blob(Method::GET, &self.target.repo, &self.digest, deadline)).await?;
        if answer.status != StatusCode::OK {
            return Err(self.bad("a status other than 200 to a whole blob"));
        }
        self.check_announced(&answer.headers)?;
        let length = content_length(&answer.headers);
        let etag = strong_etag(&answer.headers);
        let via = answer.via;
        let mut writer = self.cache.store.create(&self.digest, length).await?;
        self.reporter.head(Head { file: writer.file(), length });

        self.receive(&mut writer, answer, length, etag.as_deref()).await?;
        writer.verify().await.map_err(|error| blame(error, &self.target.upstream))?;
        // The digest matches: the readers get the tail before the disk has confirmed anything.
        let bytes = writer.written();
        self.reporter.verified(bytes);
        if let Err(error) = writer.finish().await {
            tracing::warn!(
                digest = %self.digest, error = &error as &dyn std::error::Error,
                "a blob was served but could not be kept"
            );
            return Ok(());
        }
        let also = self.proven.lock().take().unwrap_or_default();
        for (target, via) in std::iter::once((self.target.clone(), via)).chain(also) {
            self.cache.keep_link(&target, &self.digest, Link::blob(via, bytes)).await;
        }
        Ok(())
    }

    /// Receives the whole body, continuing it where it breaks.
    async fn receive(
        &self,
        writer: &mut BlobWriter,
        first: Answer,
        length: Option<u64>,
        etag: Option<&str>,
    ) -> Result<(), CacheError> {
        let (mut answer, mut skip) = (first, 0);
        let (mut received, mut fruitless) = (0, 0);
        loop {
            let before = received;
            let error = match self.copy(writer, answer, skip, length, &mut received).await {
                Ok(()) if length.is_none_or(|length| received >= length) => return Ok(()),
                // Over HTTP/2 a stream may break between its last byte and its end: the digest decides.
                Err(CopyError::Upstream(_)) if length == Some(received) => return Ok(()),
                Ok(()) => self.bad("a body shorter than it announced"),
                Err(CopyError::Here(error)) => return Err(error),
                Err(CopyError::Upstream(error)) => CacheError::from(error),
            };
            if length.is_none() {
                // Without a length nobody can tell a continued body from a repeated one.
                return Err(error);
            }
            fruitless = if received > before { 0 } else { fruitless + 1 };
            (answer, skip) = self.resume(received, length, etag, fruitless, error).await?;
        }
    }

    /// Asks for the rest from `mark` on; with it, how many bytes of the answer to skip.
    async fn resume(
        &self,
        mark: u64,
        length: Option<u64>,
        etag: Option<&str>,
        mut fruitless: u32,
        mut error: CacheError,
    ) -> Result<(Answer, u64), CacheError> {
        loop {
            if fruitless >= RESUMES_WITHOUT_PROGRESS {
                return Err(error);
            }
            tracing::info!(
                upstream = %self.target.upstream, repository = %self.target.repo, digest = %self.digest, mark,
                error = &error as &dyn std::error::Error, "upstream broke a blob off; going on from the mark"
            );
            self.cache.metrics.fill_resumes.with_label_values(&[self.target.upstream.as_str()]).inc();
            tokio::time::sleep(backoff(fruitless)).await;
            let deadline = Instant::now() + ANSWER_WITHIN;
            let mut ask = Ask::blob(Method::GET, &self.target.repo, &self.digest, deadline);
            if mark > 0 {
                ask = ask.with_range(mark, etag);
            }
            match self.registry.fetch(ask).await {
                Ok(answer) if answer.status == StatusCode::PARTIAL_CONTENT => {
                    return match content_range(&answer.headers) {
                        Some((start, total)) if start == mark && total.is_none_or(|t| Some(t) == length) => {
                            Ok((answer, 0))
                        }
                        _ => Err(self.bad("a range other than the one asked for")),
                    };
                }
                Ok(answer) if answer.status == StatusCode::OK => return Ok((answer, mark)),
                Ok(_) => return Err(self.bad("a status other than 200 or 206 to a range")),
                Err(next) if next.is_retryable() => error = next.into(),
                Err(next) => return Err(next.into()),
            }
            fruitless += 1;
        }
    }

    /// Copies a body to the writer, less its first `skip` bytes, and tells the readers as the bytes reach the file.
    /// The writer gathers what comes while it writes and hashes, so receiving goes on meanwhile.
    async fn copy(
        &self,
        writer: &mut BlobWriter,
        answer: Answer,
        mut skip: u64,
        length: Option<u64>,
        received: &mut u64,
    ) -> Result<(), CopyError> {
        let mut body = answer.body;
        let mut progress = writer.progress();
        loop {
            let frame = tokio::select! {
                frame = body.frame() => frame,
                Ok(()) = progress.changed() => {
                    self.reporter.grown(*progress.borrow_and_update());
                    continue;
                }
            };
            let Some(frame) = frame else { return Ok(()) };
            let Ok(mut data) = frame.map_err(CopyError::Upstream)?.into_data() else { continue };
            let skipped = usize::try_from(skip).unwrap_or(usize::MAX).min(data.len());
            data.advance(skipped);
            skip -= skipped as u64;
            if data.is_empty() {
                continue;
            }
            let bytes = data.len() as u64;
            let accepted = writer.write(data).await;
            accepted.map_err(|error| CopyError::Here(blame(error, &self.target.upstream)))?;
            *received += bytes;
            // An upstream that keeps a stream open after its last byte delays nobody.
            if length == Some(*received) {
                return Ok(());
            }
        }
    }

    /// A `Docker-Content-Digest` that names other content than was asked for is believed before a byte is served.
    fn check_announced(&self, headers: &HeaderMap) -> Result<(), CacheError> {
        let announced = headers.get("docker-content-digest").and_then(|value| value.to_str().ok()?.parse().ok());
        match announced {
            Some(actual) if actual != self.digest && Digest::algorithm(&actual) == self.digest.algorithm() => {
                Err(CacheError::wrong_content(&self.target.upstream, self.digest, actual))
            }
            _ => Ok(()),
        }
    }

    fn bad(&self, reason: &'static str) -> CacheError {
        CacheError::BadAnswer { upstream: self.target.upstream.clone(), reason }
    }
}

/// Where copying stopped.
enum CopyError {
    /// Upstream broke the body off.
    Upstream(UpstreamError),
    /// The store failed.
    Here(CacheError),
}

/// Jittered, doubling from a quarter of a second; none before the first try.
fn backoff(fruitless: u32) -> Duration {
    if fruitless == 0 {
        return Duration::ZERO;
    }
    let base = Duration::from_millis(250) * 2_u32.saturating_pow(fruitless - 1).min(16);
    base.mul_f64(0.5 + fastrand::f64())
}

/// `Content-Length`, if there is one that makes sense.
pub(super) fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// The `ETag`, if it is a strong one: only such a one may stand in If-Range (RFC 9110, 13.1.5).
fn strong_etag(headers: &HeaderMap) -> Option<String> {
    let etag = headers.get(header::ETAG)?.to_str().ok()?;
    etag.starts_with('"').then(|| etag.to_owned())
}

/// Start and total of `Content-Range: bytes START-END/TOTAL` (RFC 9110, 14.4).
fn content_range(headers: &HeaderMap) -> Option<(u64, Option<u64>)> {
    let value = headers.get(header::CONTENT_RANGE)?.to_str().ok()?.strip_prefix("bytes ")?;
    let (range, total) = value.split_once('/')?;
    let start = range.split_once('-')?.0.parse().ok()?;
    Some((start, if total == "*" { None } else { Some(total.parse().ok()?) }))
}
