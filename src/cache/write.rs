//! Writes on their way through: what upstream said to one, and why one failed.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, StatusCode};
use http_body_util::BodyExt as _;
use tokio::time::timeout;

use super::upload::ClientFault;
use super::{Cache, CacheError};
use crate::oci::{Digest, ErrorBody, Tag, UpstreamName, Via};
use crate::upstream::{Call, Fault, Location, Reply};

/// Longest answer to a write that is passed on; what is longer is cut.
const MAX_SAID: usize = 4 << 20;
/// Longer than any code of an error.
const LONGEST_CODE: usize = 64;
/// Time for the body of such an answer.
const SAID_WITHIN: Duration = Duration::from_secs(20);

/// What upstream said to a write.
#[derive(Debug, Clone)]
#[expect(clippy::struct_excessive_bools, reason = "four facts about an answer that have nothing to do with each other")]
pub struct Said {
    /// Any.
    pub status: StatusCode,
    /// As they came: whoever passes them on chooses which.
    pub headers: HeaderMap,
    /// As much as came of it.
    pub body: Bytes,
    /// By whose right.
    pub via: Via,
    /// Whether upstream had asked for a credential, and was shown one: everybody's at least.
    pub shown: bool,
    /// Whether more of it should have come.
    pub is_cut: bool,
    pub(super) location: Option<Location>,
    /// Whether upstream had taken the whole request before it answered.
    pub(super) whole: bool,
    /// Whether it was asked once before, and its answer to that was lost.
    pub(super) repeated: bool,
}

/// Why a write failed.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// Upstream could not be asked, or wants another credential.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// Upstream refused it: its own words.
    #[error("upstream answered {}", .0.status)]
    Refused(Box<Said>),
    /// What came is not what the digest says.
    #[error("what came hashes to {actual}, not to {expected}")]
    WrongDigest {
        /// What was announced.
        expected: Box<Digest>,
        /// What came.
        actual: Box<Digest>,
    },
    /// A part that does not follow the one before.
    #[error("the next byte is {offset}")]
    OutOfOrder {
        /// How much is there.
        offset: u64,
    },
    /// The client's body.
    #[error(transparent)]
    Client(#[from] ClientFault),
    /// There is no such upload, or no more.
    #[error("there is no such upload")]
    UnknownUpload,
    /// Another request is at it.
    #[error("another request is at the same upload")]
    Busy,
    /// The caller, or all callers, have too many uploads.
    #[error("{limit} uploads have begun and not ended")]
    TooManyUploads {
        /// How many there may be at once.
        limit: usize,
        /// Of this caller; else of all.
        of_caller: bool,
    },
    /// Upstream broke an upload, and what had been sent was not kept.
    #[error("upstream broke an upload of which not all was kept: {0}")]
    Unreplayable(#[source] Box<WriteError>),
    /// It is not known what came of an upload: nothing may be committed.
    #[error("it could not be found out whether an upload is what its digest says")]
    Unchecked,
    /// What a tag meant could not be marked as doubtful, and so must not be changed upstream.
    #[error("the store could not be written to before the write")]
    Unmarked(#[source] CacheError),
    /// The operating system gave no random bytes.
    #[error("the operating system gives no random bytes")]
    NoRandomness,
}

// === impl Said ===

impl Said {
    /// The code of an error in the specification's form; none if it is not made of what codes are made of.
    pub fn code(&self) -> Option<String> {
        let body: ErrorBody = serde_json::from_slice(&self.body).ok()?;
        let code = body.errors.into_iter().next()?.code;
        let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
        (code.len() <= LONGEST_CODE && code.bytes().all(plain)).then_some(code)
    }

    /// Whether upstream surely did nothing. A 4xx says so, save those that speak of the way there; to a repetition it
    /// says nothing about the try before.
    pub fn is_refusal(&self) -> bool {
        !self.repeated && self.status.is_client_error() && !matches!(self.status.as_u16(), 408 | 499)
    }

    /// The answer, if it is one of those that say that it was done; else the error that it is not. Another success says
    /// nothing: what answers may be a page on the way, which has a 200 for everything.
    pub(super) fn expecting(self, done: &[StatusCode]) -> Result<Self, WriteError> {
        if done.contains(&self.status) { Ok(self) } else { Err(WriteError::Refused(Box::new(self))) }
    }

    /// Any success, or the error that it is not.
    pub fn into_success(self) -> Result<Self, WriteError> {
        if self.status.is_success() { Ok(self) } else { Err(WriteError::Refused(Box::new(self))) }
    }

    /// The digest of what was put.
    pub(super) fn digest(&self) -> Option<Digest> {
        self.headers.get("docker-content-digest")?.to_str().ok()?.parse().ok()
    }

    /// The tags that upstream says it has set: `OCI-Tag`, once for each, or a list of them.
    pub(super) fn tags(&self) -> Vec<Tag> {
        let fields = self.headers.get_all("oci-tag").into_iter().filter_map(|field| field.to_str().ok());
        fields.flat_map(|field| field.split(',')).filter_map(|tag| tag.trim().parse().ok()).collect()
    }

    /// What a registry says when it has a blob.
    pub(super) fn created(via: Via) -> Self {
        Self::without_words(StatusCode::CREATED, via)
    }

    /// What a registry says when it has a part.
    pub(super) fn accepted(via: Via) -> Self {
        Self::without_words(StatusCode::ACCEPTED, via)
    }

    fn without_words(status: StatusCode, via: Via) -> Self {
        Self {
            status,
            headers: HeaderMap::new(),
            body: Bytes::new(),
            via,
            shown: false,
            is_cut: false,
            location: None,
            whole: true,
            repeated: false,
        }
    }

    /// All that a reply says. What breaks off on the way is short: of an answer to a write the status counts.
    async fn read(reply: Reply) -> Self {
        let Reply { status, headers, mut body, via, shown, location, whole, repeated } = reply;
        let mut bytes = BytesMut::new();
        let reading = async {
            while let Some(frame) = body.frame().await {
                let Ok(frame) = frame else { return true };
                let data = frame.into_data().unwrap_or_default();
                let room = MAX_SAID - bytes.len();
                bytes.extend_from_slice(data.get(..room).unwrap_or(&data));
                if data.len() > room {
                    return true;
                }
            }
            false
        };
        let is_cut = timeout(SAID_WITHIN, reading).await.unwrap_or(true);
        Self { status, headers, body: bytes.freeze(), via, shown, is_cut, location, whole, repeated }
    }
}

// === impl WriteError ===

impl WriteError {
    /// Whether upstream answered, and it was that the caller may not.
    pub(super) fn is_denial(&self) -> bool {
        match self {
            Self::Refused(said) => said.status.is_client_error() && said.status != StatusCode::TOO_MANY_REQUESTS,
            Self::Cache(CacheError::Upstream(error)) => matches!(error.fault, Fault::Unauthorized { .. }),
            _ => false,
        }
    }

    /// Whether upstream surely did nothing.
    pub fn is_refusal(&self) -> bool {
        match self {
            Self::Refused(said) => said.is_refusal(),
            Self::Cache(CacheError::Upstream(error)) => matches!(
                error.fault,
                // It never got the request, or did not know who asks.
                Fault::Sealed
                    | Fault::OwnListener
                    | Fault::Unreachable(_)
                    | Fault::Tls(_)
                    | Fault::WantsTls
                    | Fault::BreakerOpen { .. }
                    | Fault::Token(_)
                    | Fault::Credential(_)
                    | Fault::Unauthorized { .. }
            ),
            Self::Cache(CacheError::NoUpstream(_)) | Self::Unmarked(_) | Self::WrongDigest { .. } => true,
            _ => false,
        }
    }
}

// === impl Cache ===

impl Cache {
    /// Relays one request of a write; whatever upstream says, except 401.
    pub async fn relay(&self, upstream: &UpstreamName, call: Call) -> Result<Said, WriteError> {
        let registry = self.registry(upstream)?;
        let reply = Box::pin(registry.relay(call)).await.map_err(CacheError::from)?;
        Ok(Said::read(reply).await)
    }
}
