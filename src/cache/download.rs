//! A download: the bytes of a blob as they come from upstream, continued by Range where they break off.
//!
//! Nothing is verified here: whoever takes the bytes hashes them.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use http::{HeaderMap, Method, StatusCode, header};
use http_body_util::BodyExt as _;
use tokio::time::Instant;

use super::lenders::Lenders;
use super::{ANSWER_WITHIN, CacheError, Target};
use crate::metrics::Metrics;
use crate::oci::{Digest, Via};
use crate::upstream::{Answer, Ask, Fault, Registry, UpstreamBody, UpstreamError};

/// Tries to continue a broken body without a single byte of progress between them.
const RESUMES_WITHOUT_PROGRESS: u32 = 3;

/// Which blob, and where it is asked for.
#[derive(Debug, Clone)]
pub(super) struct Origin {
    pub(super) registry: Arc<Registry>,
    /// In whose name upstream is asked.
    pub(super) target: Target,
    pub(super) digest: Digest,
    pub(super) metrics: Metrics,
}

/// What is known of a blob of which a part has come.
#[derive(Debug, Clone)]
pub(super) struct Mark {
    /// How much has come.
    pub(super) at: u64,
    /// Bytes of the whole blob, if upstream said so.
    pub(super) length: Option<u64>,
    /// Its strong entity tag.
    pub(super) etag: Option<String>,
}

/// A blob on its way from upstream.
pub(super) struct Download {
    origin: Origin,
    mark: Mark,
    via: Via,
    body: UpstreamBody,
    /// Others who may have it too, by whose right it can go on.
    lenders: Option<Arc<Lenders>>,
    /// The right by which it began was refused since.
    withdrawn: bool,
    /// Bytes to pass over, from an upstream that does not know ranges.
    skip: u64,
    /// Breaks since the last byte that came.
    fruitless: u32,
}

// === impl Download ===

impl Download {
    /// Asks for the whole blob; returns when upstream's head is there.
    pub(super) async fn whole(origin: Origin, deadline: Instant) -> Result<Self, CacheError> {
        let answer = origin.registry.fetch(origin.ask(deadline)).await?;
        if answer.status != StatusCode::OK {
            return Err(origin.bad("a status other than 200 to a whole blob"));
        }
        origin.check_announced(&answer.headers)?;
        if content_length(&answer.headers) == Some(0) {
            // Nothing can be held back of what has no bytes, so it must be right before anybody has its head.
            let actual = Digest::of(origin.digest.algorithm(), b"");
            if actual != origin.digest {
                return Err(CacheError::wrong_content(&origin.target.upstream, origin.digest, actual));
            }
        }
        let mark = Mark { at: 0, length: content_length(&answer.headers), etag: strong_etag(&answer.headers) };
        Ok(Self::begun(origin, mark, answer, 0))
    }

    /// Goes on by the right of others where that of who began is withdrawn.
    pub(super) fn with_lenders(self, lenders: Arc<Lenders>) -> Self {
        Self { lenders: Some(lenders), ..self }
    }

    /// Asks for what follows `mark`; returns when upstream's head is there.
    pub(super) async fn rest(origin: Origin, mut mark: Mark, deadline: Instant) -> Result<Self, CacheError> {
        let (answer, skip) = origin.ask_rest(&mut mark, deadline).await?;
        Ok(Self::begun(origin, mark, answer, skip))
    }

    fn begun(origin: Origin, mark: Mark, answer: Answer, skip: u64) -> Self {
        let Answer { via, body, .. } = answer;
        Self { origin, mark, via, body, lenders: None, withdrawn: false, skip, fruitless: 0 }
    }

    /// Bytes of the whole blob, if upstream said so.
    pub(super) fn length(&self) -> Option<u64> {
        self.mark.length
    }

    /// By whose right upstream gives it.
    pub(super) fn via(&self) -> Via {
        self.via
    }

    /// Whether upstream has refused since who it gave it to first.
    pub(super) fn is_withdrawn(&self) -> bool {
        self.withdrawn
    }

    /// How far it is, and what continues it later.
    pub(super) fn mark(&self) -> Mark {
        self.mark.clone()
    }

    /// The next bytes, never none of them; none at the end.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, CacheError> {
        loop {
            // Neither an upstream that keeps a stream open after its last byte, nor one that resets it there (HTTP/2),
            // concerns anybody: the digest decides.
            if self.mark.length == Some(self.mark.at) {
                return Ok(None);
            }
            let error = match self.body.frame().await {
                Some(Ok(frame)) => {
                    let Ok(mut data) = frame.into_data() else { continue };
                    let skipped = usize::try_from(self.skip).unwrap_or(usize::MAX).min(data.len());
                    data.advance(skipped);
                    self.skip -= skipped as u64;
                    if data.is_empty() {
                        continue;
                    }
                    self.mark.at += data.len() as u64;
                    self.fruitless = 0;
                    if self.mark.length.is_some_and(|length| self.mark.at > length) {
                        return Err(self.origin.bad("a body of another length than it announced"));
                    }
                    return Ok(Some(data));
                }
                None if self.mark.length.is_none() => return Ok(None),
                None => self.origin.bad("a body shorter than it announced"),
                Some(Err(error)) => error.into(),
            };
            self.resume(error).await?;
        }
    }

    /// Asks for what follows the mark, after `error`.
    async fn resume(&mut self, mut error: CacheError) -> Result<(), CacheError> {
        loop {
            self.fruitless += 1;
            if self.fruitless > RESUMES_WITHOUT_PROGRESS {
                return Err(error);
            }
            let Target { upstream, repo, .. } = &self.origin.target;
            tracing::info!(
                %upstream, repository = %repo, digest = %self.origin.digest, mark = self.mark.at,
                error = &error as &dyn std::error::Error, "upstream broke a blob off; going on from the mark"
            );
            self.origin.metrics.fill_resumes.with_label_values(&[upstream.as_str()]).inc();
            tokio::time::sleep(backoff(self.fruitless)).await;
            match self.origin.ask_rest(&mut self.mark, Instant::now() + ANSWER_WITHIN).await {
                Ok((answer, skip)) => {
                    (self.body, self.skip) = (answer.body, skip);
                    return Ok(());
                }
                // Without a length, all may have come before the body broke off: the digest decides.
                Err(CacheError::Upstream(next)) if self.mark.length.is_none() && is_beyond_the_end(&next) => {
                    self.mark.length = Some(self.mark.at);
                    return Ok(());
                }
                Err(CacheError::Upstream(next)) if next.is_retryable() => error = CacheError::Upstream(next),
                // It answers only for the one whose right was shown.
                Err(next) if next.is_upstreams_word() && self.borrow_another_right() => error = next,
                Err(next) => return Err(next),
            }
        }
    }

    /// Goes on in the name of somebody else who may have the blob. False: there is nobody.
    fn borrow_another_right(&mut self) -> bool {
        let next = self.lenders.as_ref().and_then(|lenders| lenders.borrow(&self.origin.target));
        let Some(next) = next else { return false };
        self.origin.target = next;
        self.withdrawn = true;
        true
    }
}

// === impl Origin ===

impl Origin {
    fn ask(&self, deadline: Instant) -> Ask {
        Ask::blob(Method::GET, &self.target.repo, &self.digest, deadline).with_right(self.target.right.clone())
    }

    /// Upstream's answer to what follows `mark`, and how many of its bytes come before that.
    async fn ask_rest(&self, mark: &mut Mark, deadline: Instant) -> Result<(Answer, u64), CacheError> {
        let mut ask = self.ask(deadline);
        if mark.at > 0 {
            ask = ask.with_range(mark.at, mark.etag.as_deref());
        }
        let answer = self.registry.fetch(ask).await?;
        match answer.status {
            StatusCode::PARTIAL_CONTENT => match content_range(&answer.headers) {
                Some((start, total))
                    if start == mark.at && (total.is_none() || mark.length.is_none() || total == mark.length) =>
                {
                    mark.length = mark.length.or(total);
                    Ok((answer, 0))
                }
                _ => Err(self.bad("a range other than the one asked for")),
            },
            StatusCode::OK => {
                mark.length = mark.length.or_else(|| content_length(&answer.headers));
                Ok((answer, mark.at))
            }
            _ => Err(self.bad("a status other than 200 or 206 to a range")),
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

/// Whether upstream says that nothing follows the mark.
fn is_beyond_the_end(error: &UpstreamError) -> bool {
    matches!(error.fault, Fault::Status { status: StatusCode::RANGE_NOT_SATISFIABLE, .. })
}

/// Jittered, doubling from a quarter of a second; none before the first try.
fn backoff(fruitless: u32) -> Duration {
    if fruitless <= 1 {
        return Duration::ZERO;
    }
    let base = Duration::from_millis(250) * 2_u32.saturating_pow(fruitless - 2).min(16);
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
