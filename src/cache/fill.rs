//! A fill: the one download of a blob, by a task that no client owns.
//!
//! Ask upstream → write and hash → tell the readers how far it is → verify → release the tail → publish. A body that
//! breaks is continued by Range from the mark; the readers see a pause (ADR 0002).

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use futures_util::FutureExt as _;
use http::{HeaderMap, Method, StatusCode, header};
use http_body_util::BodyExt as _;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::flight::Role;
use super::progress::{self, Head, Reporter, Watcher};
use super::{ANSWER_WITHIN, Cache, CacheError, Target};
use crate::oci::{Digest, Via};
use crate::store::{BlobWriter, Link, LinkKind};
use crate::upstream::{Answer, Ask, Registry, UpstreamBody, UpstreamError};

/// Bytes gathered from upstream before they are written and hashed in one go on the blocking pool.
const BATCH: usize = 512 * 1024;
/// Tries to continue a broken body without a single byte of progress between them.
const RESUMES_WITHOUT_PROGRESS: u32 = 5;

/// The running fills, one per digest across all names and clients.
#[derive(Default)]
pub(super) struct Fills {
    /// Held for look-ups only, never over an await.
    running: Mutex<HashMap<Digest, Fill>>,
}

/// A running fill, as a reader holds it.
#[derive(Clone)]
pub(super) struct Fill {
    /// In whose name upstream is asked.
    pub(super) target: Target,
    /// How far it is.
    pub(super) watcher: Watcher,
    /// Names under which upstream has said that it has the blob too; none once they were turned into links.
    proven: Arc<Mutex<Option<Vec<(Target, Via)>>>>,
}

/// Takes the fill out of the table and off the gauge, however its task ends.
struct Landing {
    cache: Arc<Cache>,
    digest: Digest,
}

// === impl Fills ===

impl Fills {
    /// The fill of `digest` that runs now.
    pub(super) fn running(&self, digest: &Digest) -> Option<Fill> {
        self.running.lock().get(digest).cloned()
    }
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
    proven: Arc<Mutex<Option<Vec<(Target, Via)>>>>,
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
        self.reporter.head(Head { file: writer.file(), length, via });

        self.receive(&mut writer, answer, length, etag.as_deref()).await?;

        let sealed = writer.seal().await.map_err(|error| self.cache.describe(error, &self.target.upstream))?;
        let bytes = sealed.len();
        // The digest matches: the readers get the tail before the disk has confirmed anything.
        self.reporter.verified(bytes);
        if let Err(error) = sealed.publish().await {
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
        let mut answer = first;
        let (mut skip, mut fruitless) = (0, 0);
        loop {
            let before = writer.written();
            let error = match self.copy(writer, answer, skip).await {
                Ok(()) if length.is_none_or(|length| writer.written() == length) => return Ok(()),
                Ok(()) if length.is_some_and(|length| writer.written() > length) => {
                    return Err(self.bad("a body longer than it announced"));
                }
                Ok(()) => self.bad("a body shorter than it announced"),
                Err(CopyError::Here(error)) => return Err(error),
                Err(CopyError::Upstream(error)) => CacheError::from(error),
            };
            if length.is_none() {
                // Without a length nobody can tell a continued body from a repeated one.
                return Err(error);
            }
            fruitless = if writer.written() > before { 0 } else { fruitless + 1 };
            (answer, skip) = self.resume(writer.written(), length, etag, fruitless, error).await?;
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

    /// Copies a body into the file, less its first `skip` bytes. The next bytes are received while the last ones are
    /// written and hashed.
    async fn copy(&self, writer: &mut BlobWriter, answer: Answer, mut skip: u64) -> Result<(), CopyError> {
        let mut body = answer.body;
        let mut gathered = gather(&mut body).await;
        loop {
            let skipped = usize::try_from(skip).unwrap_or(usize::MAX).min(gathered.bytes.len());
            gathered.bytes.advance(skipped);
            skip -= skipped as u64;
            match gathered.end {
                None => {
                    let (written, next) = tokio::join!(self.write(writer, gathered.bytes), gather(&mut body));
                    written.map_err(CopyError::Here)?;
                    gathered = next;
                }
                // What came before a break is good: it need not be fetched again.
                Some(end) => {
                    self.write(writer, gathered.bytes).await.map_err(CopyError::Here)?;
                    return end.map_err(CopyError::Upstream);
                }
            }
        }
    }

    async fn write(&self, writer: &mut BlobWriter, bytes: Bytes) -> Result<(), CacheError> {
        if bytes.is_empty() {
            return Ok(());
        }
        writer.write(bytes).await.map_err(|error| self.cache.describe(error, &self.target.upstream))?;
        self.reporter.grown(writer.written());
        Ok(())
    }

    /// A `Docker-Content-Digest` that names other content than was asked for is believed before a byte is served.
    fn check_announced(&self, headers: &HeaderMap) -> Result<(), CacheError> {
        let announced = headers.get("docker-content-digest").and_then(|value| value.to_str().ok()?.parse().ok());
        match announced {
            Some(actual) if actual != self.digest && Digest::algorithm(&actual) == self.digest.algorithm() => {
                Err(CacheError::DigestMismatch {
                    upstream: self.target.upstream.clone(),
                    expected: self.digest,
                    actual,
                })
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

/// Bytes of a body that were there together.
struct Gathered {
    bytes: Bytes,
    /// None: more may come.
    end: Option<Result<(), UpstreamError>>,
}

/// Waits for one frame, then takes what is there already up to [`BATCH`], so that small frames share a write. A single
/// frame is passed on without a copy.
async fn gather(body: &mut UpstreamBody) -> Gathered {
    let mut first = Bytes::new();
    let mut rest = BytesMut::new();
    let mut next = body.frame().await;
    let end = loop {
        match next {
            None => break Some(Ok(())),
            Some(Err(error)) => break Some(Err(error)),
            Some(Ok(frame)) => {
                if let Ok(data) = frame.into_data() {
                    if first.is_empty() {
                        first = data;
                    } else {
                        if rest.is_empty() {
                            rest.reserve(BATCH);
                            rest.extend_from_slice(&first);
                        }
                        rest.extend_from_slice(&data);
                    }
                }
            }
        }
        if first.len().max(rest.len()) >= BATCH {
            break None;
        }
        match body.frame().now_or_never() {
            Some(frame) => next = frame,
            None if first.is_empty() => next = body.frame().await,
            None => break None,
        }
    };
    Gathered { bytes: if rest.is_empty() { first } else { rest.freeze() }, end }
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

/// The ETag, if it is a strong one: only such a one may stand in If-Range (RFC 9110, 13.1.5).
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
