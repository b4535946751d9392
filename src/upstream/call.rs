//! A request that is relayed to an upstream, and its reply: uploads, writes, deletes and what has no cache.

use std::fmt;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use tokio::time::Instant;

use super::auth::{Action, Want};
use super::body::UpstreamBody;
use super::origin::query_separator;
use super::right::Right;
use super::upload::{BoxError, RequestBody};
use crate::metrics::Kind;
use crate::oci::{Digest, RepoName, Tag, Via};

/// A request to relay. Its body is taken out of it when it is sent.
pub struct Call<B = CallBody> {
    /// For metrics.
    pub kind: Kind,
    /// Any.
    pub method: Method,
    /// Where it goes.
    pub target: CallTarget,
    /// The repository, from which the token's scope follows where nothing else says it.
    pub repo: Option<RepoName>,
    /// The tag that it is about, which a rule may have sealed.
    pub tag: Option<Tag>,
    /// Sent along; what concerns the connection, the host, the length or credentials is dropped.
    pub headers: HeaderMap,
    /// What is sent.
    pub body: B,
    /// Whose right is used.
    pub right: Right,
    /// What is asked for where upstream's challenge does not say, such as `repository:app:pull,push`. A token for it is
    /// got before a body is sent.
    pub scope: Option<String>,
    /// Challenges of upstream are left to the caller, also those that anybody could answer.
    pub bare: bool,
    /// Until when the head of the answer must be there; none: as long as upstream takes the body, and some minutes more.
    pub deadline: Option<Instant>,
}

/// Where a call goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CallTarget {
    /// From `/v2/` or `/acr/v1/`, percent-encoded, with the query: below the upstream's own prefix.
    Path(String),
    /// Where the upstream itself said.
    Url(Location),
}

/// What is sent with a call.
pub enum CallBody {
    /// Nothing.
    Empty,
    /// This; sent again where a fresh token or a redirect wants it.
    Bytes(Bytes),
    /// What comes, of this length if it is known; never sent again. Where it fails, the request is broken off, so that
    /// upstream never takes a part for the whole. Whoever reads it from a client limits the client's silence.
    Stream(UnsyncBoxBody<Bytes, BoxError>, Option<u64>),
}

/// What has to be known of a body before it is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    /// It has no bytes.
    Empty,
    /// It can be sent again.
    Whole,
    /// It cannot.
    Stream,
}

/// An upstream's `Location`: from the root of its origin, or absolute where it lies elsewhere. Path and query are
/// exactly the bytes that came.
#[derive(Clone, PartialEq, Eq)]
pub struct Location(String);

/// What an upstream answered, whatever it is.
pub struct Reply {
    /// Any but 401, and but redirects that are followed.
    pub status: StatusCode,
    /// As they came: whoever passes them on chooses which.
    pub headers: HeaderMap,
    /// Dropped early, it also ends a request body that upstream did not wait for.
    pub body: UpstreamBody,
    /// By whose right.
    pub via: Via,
    /// Whether upstream had asked for a credential, and was shown one: everybody's at least.
    pub shown: bool,
    /// The Location, if it may be asked.
    pub location: Option<Location>,
    /// Whether the whole body had been sent before the answer came.
    pub whole: bool,
    /// Whether it is the answer to a repetition, after a try that upstream may have taken without being heard.
    pub repeated: bool,
}

// === impl Call ===

impl Call {
    /// A call without headers and body.
    pub fn new(kind: Kind, method: Method, target: CallTarget, right: Right) -> Self {
        Self {
            kind,
            method,
            target,
            repo: None,
            tag: None,
            headers: HeaderMap::new(),
            body: CallBody::Empty,
            right,
            scope: None,
            bare: false,
            deadline: None,
        }
    }

    /// For this repository.
    #[must_use]
    pub fn with_repo(self, repo: &RepoName) -> Self {
        Self { repo: Some(repo.clone()), ..self }
    }

    /// With this body.
    #[must_use]
    pub fn with_body(self, body: CallBody) -> Self {
        Self { body, ..self }
    }

    /// With one more header.
    #[must_use]
    pub fn with_header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.insert(name, value);
        self
    }

    /// With a right to this.
    #[must_use]
    pub fn with_scope(self, scope: impl Into<String>) -> Self {
        Self { scope: Some(scope.into()), ..self }
    }

    /// Until then.
    #[must_use]
    pub fn with_deadline(self, deadline: Instant) -> Self {
        Self { deadline: Some(deadline), ..self }
    }

    /// Whether it does no harm twice, when it is not known whether it was done once: a manifest is put under its name
    /// again, and of two uploads that were begun one is never used.
    pub(crate) fn is_idempotent(&self) -> bool {
        self.reads()
            || (self.method == Method::PUT && self.kind == Kind::Manifest)
            || (self.method == Method::POST && self.kind == Kind::Upload && matches!(self.body, CallBody::Empty))
    }

    /// The body apart from the rest, which many may look at.
    pub(crate) fn split(self) -> (Call<()>, CallBody) {
        let Self { kind, method, target, repo, tag, headers, body, right, scope, bare, deadline } = self;
        (Call { kind, method, target, repo, tag, headers, body: (), right, scope, bare, deadline }, body)
    }
}

impl<B> Call<B> {
    pub(crate) fn want(&self) -> Want<'_> {
        let action = match self.method {
            Method::GET | Method::HEAD => Action::Pull,
            Method::DELETE => Action::Delete,
            _ => Action::Push,
        };
        // Asking where an upload is, or giving it up, needs the right to upload.
        let action = if self.kind == Kind::Upload { Action::Push } else { action };
        Want {
            repo: self.repo.as_ref(),
            kind: self.kind,
            action,
            scope: self.scope.as_deref(),
            right: &self.right,
            bare: self.bare,
        }
    }

    pub(crate) fn reads(&self) -> bool {
        matches!(self.method, Method::GET | Method::HEAD)
    }
}

/// Without the query, in which upstreams keep secrets.
impl<B> fmt::Debug for Call<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.target {
            CallTarget::Path(path) => {
                write!(f, "{} {}", self.method, path.split('?').next().unwrap_or_default())
            }
            CallTarget::Url(location) => write!(f, "{} {location:?}", self.method),
        }
    }
}

// === impl CallBody ===

impl CallBody {
    /// The body to send now; none: it was sent already and is gone.
    pub(crate) fn next(this: &mut Option<Self>) -> Option<RequestBody> {
        match this {
            Some(Self::Empty) => Some(RequestBody::empty()),
            Some(Self::Bytes(bytes)) => Some(RequestBody::whole(bytes.clone())),
            Some(Self::Stream(..)) => match this.take() {
                Some(Self::Stream(body, length)) => Some(RequestBody::stream(body, length)),
                _ => None,
            },
            None => None,
        }
    }

    /// What has to be known of it before it is sent.
    pub(crate) fn shape(&self) -> Shape {
        match self {
            Self::Empty | Self::Stream(_, Some(0)) => Shape::Empty,
            Self::Bytes(bytes) if bytes.is_empty() => Shape::Empty,
            Self::Bytes(_) => Shape::Whole,
            Self::Stream(..) => Shape::Stream,
        }
    }
}

impl fmt::Debug for CallBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("Empty"),
            Self::Bytes(bytes) => write!(f, "Bytes({})", bytes.len()),
            Self::Stream(_, length) => write!(f, "Stream({length:?})"),
        }
    }
}

// === impl Location ===

impl Location {
    /// What [`as_str`](Self::as_str) gave. It is checked when it is asked.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// With one more query parameter behind what is there, which stays as it is; `value` is percent-encoded already.
    #[must_use]
    pub fn with_query(&self, name: &str, value: &str) -> Self {
        Self(format!("{}{}{name}={value}", self.0, query_separator(&self.0)))
    }

    /// With the digest that completes an upload.
    #[must_use]
    pub fn with_digest(&self, digest: &Digest) -> Self {
        self.with_query("digest", &digest.to_string())
    }
}

/// Without the query: signatures live there.
impl fmt::Debug for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.split_once('?') {
            Some((path, _)) => write!(f, "{path}?…"),
            None => f.write_str(&self.0),
        }
    }
}

// === impl Reply ===

impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reply")
            .field("status", &self.status)
            .field("via", &self.via)
            .field("location", &self.location)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Algorithm;

    #[test]
    fn queries_stay_as_they_came() {
        let digest = Digest::of(Algorithm::Sha256, b"");
        let appended = |text: &str| Location::new(text).with_digest(&digest).as_str().to_owned();
        assert_eq!(appended("/v2/a/blobs/uploads/1"), format!("/v2/a/blobs/uploads/1?digest={digest}"));
        let state = "/v2/a/blobs/uploads/1?_nouploadcache=false&_state=a%2Fb-_%3D%3D";
        assert_eq!(appended(state), format!("{state}&digest={digest}"));
        assert_eq!(appended("/u?"), format!("/u?digest={digest}"));
        assert_eq!(appended("/u?a=b&"), format!("/u?a=b&digest={digest}"));
    }

    #[test]
    fn states_are_not_printed() {
        let location = Location::new("/v2/a/blobs/uploads/1?_state=canary");
        let call = Call::new(Kind::Upload, Method::PUT, CallTarget::Url(location.clone()), Right::Anonymous);
        let path = CallTarget::Path("/v2/a/blobs/uploads/?mount=canary".into());
        let other = Call::new(Kind::Upload, Method::POST, path, Right::Anonymous);
        let printed = format!("{location:?} {call:?} {other:?}");
        assert!(printed.contains("/v2/a/blobs/uploads/1?…") && !printed.contains("canary"), "{printed}");
    }
}
