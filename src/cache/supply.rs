//! The supply of a blob: what all downloads of its parts have in common. By whose right upstream is asked, which of its
//! endpoints, what is known of the blob, whether it is given in parts, and the patience with it all.

use std::sync::Arc;

use http::{HeaderMap, Method, StatusCode, header};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::endpoints::{Endpoint, Endpoints};
use super::lenders::Lenders;
use super::patience::Patience;
use super::{CacheError, Target};
use crate::metrics::Metrics;
use crate::oci::Digest;
use crate::upstream::{Answer, Ask, Errand, Fault, ProtocolFault, Registry, Right, UpstreamError};

/// Which blob, and where it is asked for.
#[derive(Debug, Clone)]
pub(super) struct Origin {
    pub(super) registry: Arc<Registry>,
    /// In whose name upstream is asked.
    pub(super) target: Target,
    pub(super) digest: Digest,
    /// For whom it is fetched: what each request upstream waits for its place with.
    pub(super) errand: Errand,
    pub(super) metrics: Metrics,
}

/// What is known of a blob of which a part has come.
#[derive(Debug, Clone, Default)]
pub(super) struct Mark {
    /// Bytes of the whole blob, if upstream said so.
    pub(super) length: Option<u64>,
    /// Its strong entity tag, as `url` of the upstream gave it.
    pub(super) etag: Option<String>,
}

/// Which part of a blob is asked for; ends are exclusive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// All of it, without a Range.
    Whole,
    /// From a byte on, to its end or to another byte.
    From(u64, Option<u64>),
    /// So many bytes at its end.
    Last(u64),
}

/// What all downloads of one blob have in common.
pub(super) struct Supply {
    pub(super) origin: Origin,
    pub(super) endpoints: Endpoints,
    /// Others who may have it too, by whose right it can go on.
    lenders: Option<Arc<Lenders>>,
    pub(super) patience: Patience,
    state: Mutex<State>,
    /// Parts were refused.
    refused: Notify,
}

#[derive(Debug)]
struct State {
    mark: Mark,
    /// In whose name upstream is asked now.
    target: Target,
    /// The right by which it began was refused since.
    withdrawn: bool,
    /// Whether upstream gives parts.
    parts: Parts,
    /// It has given one.
    has_given_parts: bool,
    /// Upstream has several entity tags for it.
    is_tag_useless: bool,
    /// How often a body was gone on with.
    resumes: u64,
}

/// Whether upstream gives parts of a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Parts {
    /// It has not been asked.
    Unknown,
    /// It has given one.
    Given,
    /// It gives the whole, whatever is asked for, or nonsense.
    Refused,
}

// === impl Supply ===

impl Supply {
    /// Of a blob of which nothing is known, or of which a part has come.
    pub(super) fn new(origin: Origin, endpoints: Endpoints, mark: Mark, lenders: Option<Arc<Lenders>>) -> Arc<Self> {
        let patience = Patience::new(origin.registry.config().transfer.resume_for);
        let target = origin.target.clone();
        let state = State {
            mark,
            target,
            withdrawn: false,
            parts: Parts::Unknown,
            has_given_parts: false,
            is_tag_useless: false,
            resumes: 0,
        };
        Arc::new(Self { origin, endpoints, lenders, patience, state: Mutex::new(state), refused: Notify::new() })
    }

    /// What is known of the blob.
    pub(super) fn mark(&self) -> Mark {
        self.state.lock().mark.clone()
    }

    /// Whether upstream has refused since who it gave it to first.
    pub(super) fn is_withdrawn(&self) -> bool {
        self.state.lock().withdrawn
    }

    /// Whether upstream gives parts.
    pub(super) fn parts(&self) -> Parts {
        self.state.lock().parts
    }

    /// Whether it has ever given one.
    pub(super) fn has_given_parts(&self) -> bool {
        self.state.lock().has_given_parts
    }

    /// Upstream gives no parts, as far as is known.
    pub(super) fn refuse_parts(&self) {
        self.state.lock().parts = Parts::Refused;
        self.refused.notify_one();
    }

    /// Waits until parts are refused; that they were since the last time counts.
    pub(super) async fn refused(&self) {
        self.refused.notified().await;
    }

    /// In whose name upstream is asked now.
    pub(super) fn target(&self) -> Target {
        self.state.lock().target.clone()
    }

    /// How often a body was gone on with.
    pub(super) fn resumes(&self) -> u64 {
        self.state.lock().resumes
    }

    /// What came is not what its digest says: mirrors that may have brought it are not asked again for a while.
    pub(super) fn distrust(&self) {
        self.endpoints.distrust(&self.origin.digest);
    }

    /// An endpoint's answer to a question for this part, and where in the blob its body begins.
    pub(super) async fn ask(
        &self,
        endpoint: &Endpoint,
        part: Part,
        deadline: Instant,
    ) -> Result<(Answer, u64), CacheError> {
        let (target, etag, parts) = {
            let state = self.state.lock();
            (state.target.clone(), state.mark.etag.clone(), state.parts)
        };
        let right = if endpoint.is_mirror { Right::Anonymous } else { target.right.clone() };
        let ask = Ask::blob(Method::GET, &target.repo, &self.origin.digest, deadline).with_right(right);
        let etag = etag.filter(|_| !endpoint.is_mirror);
        let asked_for_part = !matches!(part, Part::Whole | Part::From(0, None)) && parts != Parts::Refused;
        let ask = match part {
            _ if !asked_for_part => ask,
            Part::From(from, until) => ask.with_part(from, until.map(|until| until - 1), etag.as_deref()),
            Part::Last(bytes) => ask.with_suffix(bytes),
            Part::Whole => ask,
        };
        let answer = endpoint.registry.fetch(ask).await?;
        self.check_announced(&answer.headers)?;
        let at = match answer.status {
            StatusCode::PARTIAL_CONTENT if asked_for_part => {
                // That it is the part that was asked for has been seen to. Without a length it is of no use.
                let (start, total) =
                    answer.part().and_then(|range| Some((range.start, range.total?))).ok_or_else(|| self.no_part())?;
                self.learn(Some(total))?;
                let mut state = self.state.lock();
                (state.parts, state.has_given_parts) = (Parts::Given, true);
                start
            }
            // Another validator: another place of the same upstream, or the same content stored anew. The digest is the
            // identity, so the part is asked for all the same.
            StatusCode::OK if asked_for_part && is_another(etag.as_deref(), &answer.headers) => {
                self.forget_tag();
                drop(answer);
                return Box::pin(self.ask(endpoint, part, deadline)).await;
            }
            StatusCode::OK if asked_for_part && endpoint.is_mirror => {
                return Err(self.bad("the whole where a part was asked for"));
            }
            StatusCode::OK => {
                let length = content_length(&answer.headers);
                if length.is_none() && part != Part::Whole && self.mark().length.is_some() {
                    return Err(self.bad("an answer without a length in the middle of a blob"));
                }
                self.learn(length)?;
                // Storage that knows no suffix ranges may know others.
                if asked_for_part && !matches!(part, Part::Last(_)) {
                    self.refuse_parts();
                }
                0
            }
            StatusCode::PARTIAL_CONTENT => return Err(self.bad("a part where the whole was asked for")),
            _ => return Err(self.bad("a status other than 200 or 206 to a blob")),
        };
        let mut state = self.state.lock();
        if !endpoint.is_mirror && !state.is_tag_useless && state.mark.etag.is_none() {
            state.mark.etag = strong_etag(&answer.headers);
        }
        drop(state);
        if content_length(&answer.headers) == Some(0) && at == 0 {
            // Nothing can be held back of what has no bytes, so it must be right before anybody has its head.
            let actual = Digest::of(self.origin.digest.algorithm(), b"");
            if actual != self.origin.digest {
                return Err(CacheError::wrong_content(&self.origin.target.upstream, self.origin.digest, actual));
            }
        }
        Ok((answer, at))
    }

    fn forget_tag(&self) {
        let mut state = self.state.lock();
        (state.mark.etag, state.is_tag_useless) = (None, true);
    }

    /// Upstream has said how long the blob is. Another length than before is another blob.
    pub(super) fn learn(&self, length: Option<u64>) -> Result<(), CacheError> {
        let mut state = self.state.lock();
        match (state.mark.length, length) {
            (Some(known), Some(length)) if known != length => Err(self.bad("another length than before")),
            (None, Some(length)) => {
                state.mark.length = Some(length);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Upstream is asked for a part again after a break: it costs nothing, and the next one may give it.
    pub(super) fn hope_for_parts(&self) {
        let mut state = self.state.lock();
        if state.parts == Parts::Refused {
            state.parts = Parts::Unknown;
        }
    }

    pub(super) fn count_resume(&self) {
        self.state.lock().resumes += 1;
        let upstream = &self.origin.target.upstream;
        self.origin.metrics.fill_resumes.with_label_values(&[upstream.as_str()]).inc();
    }

    /// Goes on in the name of somebody else who may have the blob, where `refused` is the one by whom it is asked. False:
    /// there is nobody.
    pub(super) fn borrow_another_right(&self, refused: &Target) -> bool {
        let mut state = self.state.lock();
        if state.target != *refused {
            // Another download of this blob has borrowed one meanwhile.
            return true;
        }
        let Some(next) = self.lenders.as_ref().and_then(|lenders| lenders.borrow(refused)) else { return false };
        state.target = next;
        state.withdrawn = true;
        true
    }

    /// A `Docker-Content-Digest` that names other content than was asked for is believed before a byte is served.
    fn check_announced(&self, headers: &HeaderMap) -> Result<(), CacheError> {
        let announced = headers.get("docker-content-digest").and_then(|value| value.to_str().ok()?.parse().ok());
        let digest = self.origin.digest;
        match announced {
            Some(actual) if actual != digest && Digest::algorithm(&actual) == digest.algorithm() => {
                Err(CacheError::wrong_content(&self.origin.target.upstream, digest, actual))
            }
            _ => Ok(()),
        }
    }

    fn no_part(&self) -> CacheError {
        let upstream = self.origin.target.upstream.clone();
        UpstreamError { upstream, fault: Fault::Protocol(ProtocolFault::Range) }.into()
    }

    pub(super) fn no_place(&self) -> CacheError {
        CacheError::NoPlace { upstream: self.origin.target.upstream.clone() }
    }

    pub(super) fn bad(&self, reason: &'static str) -> CacheError {
        CacheError::BadAnswer { upstream: self.origin.target.upstream.clone(), reason }
    }
}

/// Whether an answer to If-Range with this tag says that there is another one now.
fn is_another(sent: Option<&str>, headers: &HeaderMap) -> bool {
    sent.is_some() && headers.contains_key(header::ETAG) && strong_etag(headers).as_deref() != sent
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
