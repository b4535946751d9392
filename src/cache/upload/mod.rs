//! Uploads of blobs on their way through: each byte goes upstream as it comes and into a file at the same time.
//!
//! ```text
//! client ──body──▶ pump ──▶ kept (a file of the store)
//!                    └────▶ feed ──body──▶ upstream      upstream breaks: a new session there, the file from its start
//! ```
//!
//! A [`session`] is one upload; [`table`] has all of them. A client's request on an upload counts whole or not at
//! all: what came of one that failed is forgotten, so that the client may send it again.

mod feed;
mod kept;
mod pace;
mod pump;
mod session;
mod table;
mod writers;

use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderValue;
use http_body_util::combinators::UnsyncBoxBody;
use parking_lot::Mutex;
use tokio::sync::{Mutex as SessionLock, OwnedMutexGuard};
use tokio::time::{Instant, timeout};

use super::write::{Said, WriteError};
use super::{Asked, Cache, Target};
use crate::oci::Digest;
use crate::party::Party;
use crate::upstream::Right;

pub(super) use pace::Pace;
use session::{Job, Last, Session};
use table::Entry;
pub(super) use table::Uploads;
pub(super) use writers::Writers;

/// How long a request waits for the one before it on the same upload: its client may have left a moment ago.
const PATIENCE: Duration = Duration::from_secs(5);

type BoxError = Box<dyn Error + Send + Sync>;
/// The body of a client's request.
pub type ClientBody = UnsyncBoxBody<Bytes, BoxError>;

/// Names an upload; nobody can guess it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct UploadId([u8; 16]);

/// What is wrong with a client's body.
#[derive(Debug, thiserror::Error)]
pub enum ClientFault {
    /// It broke off.
    #[error("the client's body broke off: {0}")]
    Broken(#[source] BoxError),
    /// Nothing came for a minute.
    #[error("the client sent nothing for a minute")]
    Idle,
    /// It came slower than the configured minimum.
    #[error("the client sent fewer bytes than the minimum rate asks for")]
    Slow,
    /// It is not as long as was announced.
    #[error("the client's body is not as long as it announced")]
    Length,
    /// It is larger than what is taken at all.
    #[error("the client's body is larger than {limit} bytes")]
    TooLarge {
        /// The largest that is taken.
        limit: u64,
    },
}

/// A running upload.
#[derive(Clone)]
pub struct Upload {
    cache: Arc<Cache>,
    entry: Arc<Entry>,
}

/// A request's turn at the session; it also ends when the request's client leaves.
struct Turn {
    upload: Upload,
    session: OwnedMutexGuard<Session>,
}

/// What begins an upload.
#[derive(Debug)]
pub struct Opening<'a> {
    /// The query of upstream's request: empty, or a mount.
    pub query: &'a str,
    /// Further scopes that the token needs: of the repository that is mounted from.
    pub scope: Option<String>,
    /// Who begins it, where that is known.
    pub owner: Option<String>,
    /// As who it counts where it is not.
    pub party: Party,
}

/// How an upload began.
pub enum Begun {
    /// It goes on.
    Session(Upload, Said),
    /// Upstream, asked then, has mounted the blob: nothing is to be sent.
    Mounted(Said, Asked),
}

// === impl ClientFault ===

impl ClientFault {
    /// The same, for a second one to be told.
    pub(super) fn again(&self) -> Self {
        match self {
            Self::Broken(cause) => Self::Broken(cause.to_string().into()),
            Self::Idle => Self::Idle,
            Self::Slow => Self::Slow,
            Self::Length => Self::Length,
            Self::TooLarge { limit } => Self::TooLarge { limit: *limit },
        }
    }
}

// === impl UploadId ===

impl UploadId {
    /// An id by its bytes.
    pub const fn new(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// Its bytes.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }

    fn random() -> Result<Self, WriteError> {
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes).map_err(|_| WriteError::NoRandomness)?;
        Ok(Self(bytes))
    }
}

/// Not the id: whoever has it may be able to go on with the upload.
impl fmt::Debug for UploadId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "UploadId({:02x}…)", self.0[0])
    }
}

// === impl Cache ===

impl Cache {
    /// Begins an upload upstream.
    pub async fn begin_upload(self: &Arc<Self>, target: &Target, opening: Opening<'_>) -> Result<Begun, WriteError> {
        let (slot, ended) = self.uploads.reserve(target, &opening)?;
        self.cancel_upstream(ended);
        let (mut session, begun) = (Session::new(), self.asking());
        let said = session.open(self, target, opening.query, opening.scope.as_deref()).await?;
        self.writers.add(target, begun.instant);
        if !session.is_open() {
            return Ok(Begun::Mounted(said, begun));
        }
        let entry = Arc::new(Entry {
            id: UploadId::random()?,
            target: Mutex::new(target.clone()),
            owner: opening.owner,
            by_client: matches!(target.right, Right::Client(_)),
            session: Arc::new(SessionLock::new(session)),
            offset: AtomicU64::new(0),
            touched: Mutex::new(Instant::now()),
            gone: self.stop.child_token(),
            slot,
        });
        self.uploads.insert(Arc::clone(&entry));
        self.watch_uploads();
        Ok(Begun::Session(Upload { cache: Arc::clone(self), entry }, said))
    }

    /// The running upload of that id.
    pub fn upload(self: &Arc<Self>, id: &UploadId) -> Option<Upload> {
        Some(Upload { entry: self.uploads.get(id)?, cache: Arc::clone(self) })
    }
}

// === impl Upload ===

impl Upload {
    /// Its id.
    pub fn id(&self) -> UploadId {
        self.entry.id
    }

    /// Who began it, where that is known.
    pub fn owner(&self) -> Option<&str> {
        self.entry.owner.as_deref()
    }

    /// Whether it was begun with a credential: without one it does not go on.
    pub fn is_by_client(&self) -> bool {
        self.entry.by_client
    }

    /// Bytes that were acknowledged. Whoever asks means to go on.
    pub fn offset(&self) -> u64 {
        self.entry.touch();
        self.entry.offset.load(Ordering::Acquire)
    }

    /// Adds a part. `start` is where the client means it to begin, if it says so.
    pub async fn append(
        &self,
        target: &Target,
        body: ClientBody,
        length: Option<u64>,
        part: Option<Part>,
    ) -> Result<Said, WriteError> {
        self.enter(target).await?.session.transmit(self.job(target, body, length, part, Last::Part)).await
    }

    /// Adds the last part, if there is one, and closes the upload: all of it must be what `digest` names. It is in the
    /// store when this returns, if there was room for it.
    pub async fn close(
        &self,
        target: &Target,
        body: ClientBody,
        length: Option<u64>,
        part: Option<Part>,
        digest: &Digest,
    ) -> Result<Said, WriteError> {
        let mut turn = self.enter(target).await?;
        let begun = self.cache.asking();
        let result = turn.session.transmit(self.job(target, body, length, part, Last::Closing(*digest))).await;
        match &result {
            Ok(_) => {
                self.cache.uploads.remove(&self.entry.id);
                let (size, kept) = turn.session.take();
                if kept.publish(&self.cache.store, digest).await.is_some() {
                    self.cache.published_blob(target, digest, size, &begun).await;
                } else {
                    self.cache.forget_missing_blob(target, digest);
                }
            }
            Err(WriteError::WrongDigest { .. }) => self.end(&mut turn.session),
            Err(_) => {}
        }
        result
    }

    /// Gives it up, here and upstream.
    pub async fn cancel(&self, target: &Target) -> Result<(), WriteError> {
        self.enter(target).await?.session.cancel(&self.cache, target).await?;
        self.entry.gone.cancel();
        self.cache.uploads.remove(&self.entry.id);
        Ok(())
    }

    /// Gives it up here; upstream is told behind the scenes.
    pub async fn abandon(&self, target: &Target) {
        if let Ok(mut turn) = self.enter(target).await {
            self.end(&mut turn.session);
        }
    }

    /// The session, when no other request is at it.
    async fn enter(&self, target: &Target) -> Result<Turn, WriteError> {
        self.entry.touch();
        let lock = timeout(PATIENCE, Arc::clone(&self.entry.session).lock_owned()).await;
        let session = lock.map_err(|_| WriteError::Busy)?;
        if self.entry.gone.is_cancelled() {
            return Err(WriteError::UnknownUpload);
        }
        self.entry.target.lock().clone_from(target);
        Ok(Turn { upload: self.clone(), session })
    }

    /// Gives it up; upstream is told behind the scenes.
    fn end(&self, session: &mut Session) {
        self.cache.uploads.remove(&self.entry.id);
        self.cache.cancel_upstream(self.entry.end(session));
    }

    fn job<'a>(
        &'a self,
        target: &'a Target,
        body: ClientBody,
        length: Option<u64>,
        part: Option<Part>,
        last: Last,
    ) -> Job<'a> {
        Job { cache: &self.cache, target, gone: &self.entry.gone, body, length, part, last }
    }
}

// === impl Turn ===

impl Drop for Turn {
    fn drop(&mut self) {
        self.session.rest();
        let Upload { cache, entry } = &self.upload;
        entry.touch();
        entry.store_offset(&self.session);
        if self.session.is_lost() {
            cache.uploads.remove(&entry.id);
        }
    }
}

/// Which part of the whole a request brings, by its `Content-Range`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// The first byte.
    pub start: u64,
    /// One past the last byte.
    pub end: u64,
    /// As the client wrote it.
    pub text: HeaderValue,
}

impl fmt::Debug for Upload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upload").field("id", &self.entry.id).finish_non_exhaustive()
    }
}
