//! What can go wrong between a request and the bytes that answer it.
//!
//! Clones share their source: one failure answers all the requests that waited for it.

use std::sync::Arc;

use crate::oci::{Digest, ManifestFault, UpstreamName};
use crate::store::StoreError;
use crate::upstream::{Class, Fault, TokenFault, UpstreamError};

/// What a caller without standing is told of what upstream does not have.
const NOTHING: &str = "no such thing for this caller";

/// Why the cache has no answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CacheError {
    /// Upstream could not be asked, or said no.
    #[error(transparent)]
    Upstream(Arc<UpstreamError>),
    /// The store failed. Never the reason alone that a pull fails, as long as upstream can be asked.
    #[error(transparent)]
    Store(Arc<StoreError>),
    /// There is no upstream of that name.
    #[error("there is no upstream named {0}")]
    NoUpstream(UpstreamName),
    /// Upstream was asked a moment ago and did not have it.
    #[error("{upstream} said a moment ago that it does not have it")]
    RecentlyMissing {
        /// Who said so.
        upstream: UpstreamName,
    },
    /// Not in the store, and upstream is not to be asked.
    #[error("it is not in the store and {upstream} is sealed")]
    Sealed {
        /// Who is not asked.
        upstream: UpstreamName,
    },
    /// A credential is wanted: the upstream is configured so, or what is asked for was private when upstream was last
    /// asked, and now it cannot be asked.
    #[error("{upstream} is read with the caller's credential, and there is none")]
    CredentialWanted {
        /// Whose content it is.
        upstream: UpstreamName,
    },
    /// Upstream's bytes do not hash to the digest that was asked for or that it announced.
    #[error(transparent)]
    WrongContent(Box<WrongContent>),
    /// The manifest is larger than allowed.
    #[error("{upstream} sent a manifest larger than {limit} bytes")]
    ManifestTooLarge {
        /// Who sent it.
        upstream: UpstreamName,
        /// `store.max_manifest`.
        limit: u64,
    },
    /// The manifest is not what it says, or ambiguous.
    #[error("{upstream} sent something that is not accepted as a manifest: {fault}")]
    ManifestRefused {
        /// Who sent it.
        upstream: UpstreamName,
        /// Why.
        #[source]
        fault: ManifestFault,
    },
    /// Upstream's answer makes no sense: a required header is missing, a status does not fit the question.
    #[error("{upstream} answered in a way that cannot be used: {reason}")]
    BadAnswer {
        /// Who answered.
        upstream: UpstreamName,
        /// What was wrong with it.
        reason: &'static str,
    },
    /// A stored blob no longer matches its digest; it was quarantined.
    #[error("the stored copy of {0} was damaged and has been quarantined")]
    Damaged(Box<Digest>),
    /// A stored blob could not be read. It stays: what it is, nobody knows.
    #[error("the stored copy of {0} could not be read")]
    Unreadable(Box<Digest>),
    /// There is no room to keep it: the caller streams it without keeping.
    #[error("there is no room in the store")]
    NoSpace,
    /// What an earlier download of it had left was not what it should be. It is removed; the next one begins anew.
    #[error("what an earlier download of {0} had left was damaged and has been removed")]
    BadPart(Box<Digest>),
    /// The download was put aside, since nobody read it: look again.
    #[error("the download of {0} was put aside a moment ago")]
    Parked(Box<Digest>),
    /// It was stored between the look into the store and the start of a fill: look again.
    #[error("{0} was stored a moment ago")]
    Arrived(Box<Digest>),
    /// The time for an answer's head ran out.
    #[error("{upstream} did not answer in time")]
    Timeout {
        /// Who was asked.
        upstream: UpstreamName,
    },
    /// Other downloads from there had all the requests that may run at once, for as long as this one could wait.
    #[error("as many downloads from {upstream} run as upstream.max_connections allows")]
    NoPlace {
        /// From where.
        upstream: UpstreamName,
    },
    /// ocistern is stopping, or a task ended without a result.
    #[error("the download was given up because ocistern is stopping")]
    Stopped,
}

/// Content that is not what its digest says.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{upstream} sent content that hashes to {actual}, not to {expected}")]
pub struct WrongContent {
    /// Who sent it.
    pub upstream: UpstreamName,
    /// What was asked for.
    pub expected: Digest,
    /// What came.
    pub actual: Digest,
}

// === impl CacheError ===

impl CacheError {
    /// Whether it says nothing about the content, only that upstream cannot be asked now: what is known may be served
    /// as stale.
    pub fn is_unavailable(&self) -> bool {
        match self {
            Self::Upstream(error) => error.class() == Class::Unavailable,
            Self::Timeout { .. } | Self::NoPlace { .. } | Self::Arrived(_) | Self::Parked(_) | Self::Stopped => true,
            _ => false,
        }
    }

    /// Whether upstream refused the caller: 401, 403, or a 401 whose challenge cannot be answered.
    pub fn is_refusal(&self) -> bool {
        match self {
            Self::Upstream(error) => {
                error.class() == Class::Refused
                    || matches!(error.fault, Fault::Token(TokenFault::Realm(_) | TokenFault::NoChallenge))
            }
            Self::CredentialWanted { .. } => true,
            _ => false,
        }
    }

    /// The same without upstream's words. Its GET says more than its HEAD, so they would tell a stranger which of them
    /// was asked, and from that whether there was something in the store.
    pub(super) fn without_words(self) -> Self {
        let error = match &self {
            Self::Upstream(error) => error,
            // That it was asked a moment ago is nobody else's business.
            Self::RecentlyMissing { upstream } => {
                let fault = Fault::NotFound { code: None, message: NOTHING.to_owned() };
                return UpstreamError { upstream: upstream.clone(), fault }.into();
            }
            _ => return self,
        };
        let mut silent = UpstreamError::clone(error);
        match &mut silent.fault {
            Fault::Unauthorized { message, .. } => "it wants a credential that may read this".clone_into(message),
            Fault::Forbidden { message } => "it does not let this caller read this".clone_into(message),
            Fault::NotFound { code, message } => {
                *code = None;
                NOTHING.clone_into(message);
            }
            Fault::RateLimited { message, .. } => "it takes no more of them now".clone_into(message),
            Fault::Status { message, .. } => "it did not say more to this caller".clone_into(message),
            _ => return self,
        }
        silent.into()
    }

    /// `upstream` sent content that hashes to `actual`.
    pub(super) fn wrong_content(upstream: &UpstreamName, expected: Digest, actual: Digest) -> Self {
        Self::WrongContent(Box::new(WrongContent { upstream: upstream.clone(), expected, actual }))
    }

    /// Whether it is upstream's own word about the content: refused, or not there. Anything else, nonsense like the web
    /// page of a captive portal included, says nothing about a tag that is known, which is then served as stale.
    pub fn is_upstreams_word(&self) -> bool {
        self.is_refusal() || self.is_missing()
    }

    /// Whether it is about the way to upstream, whoever asks there and for what.
    pub(super) fn is_of_upstream_as_a_whole(&self) -> bool {
        match self {
            Self::Upstream(error) => matches!(
                error.fault,
                Fault::Unreachable(_)
                    | Fault::OwnListener
                    | Fault::Tls(_)
                    | Fault::WantsTls
                    | Fault::Timeout(_)
                    | Fault::BreakerOpen { .. }
                    | Fault::Sealed
            ),
            _ => false,
        }
    }

    /// Whether upstream said that it does not have it.
    pub fn is_missing(&self) -> bool {
        match self {
            Self::Upstream(error) => error.class() == Class::Missing,
            Self::RecentlyMissing { .. } => true,
            _ => false,
        }
    }
}

impl From<UpstreamError> for CacheError {
    fn from(error: UpstreamError) -> Self {
        Self::Upstream(Arc::new(error))
    }
}

impl From<StoreError> for CacheError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::NoSpace | StoreError::NoRoomInTime | StoreError::TooLarge { .. } => Self::NoSpace,
            error => Self::Store(Arc::new(error)),
        }
    }
}
