//! The store from which images are carried, or into which: behind a daemon's socket, or locked by this process. Both are
//! asked by the same requests, whose bodies are streams.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream::unfold;
use http::header::{CONTENT_LENGTH, HOST};
use http::{Method, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Empty, Full, StreamBody};
use hyper_util::rt::TokioIo;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::task::TaskTracker;

use super::store::{Ask, Here, StoreFlags, Trouble, Way, checked};
use crate::bundle::Have;
use crate::config::Config;
use crate::http::access::Peer;
use crate::http::admin::{Admin, Import, Status};
use crate::oci::Digest;
use crate::store::{Carried, Holder, Taken};

/// Pieces of a body that are on their way.
const AHEAD: usize = 4;
/// What is shown of the work.
const BAR: &str = "{spinner} {msg} [{bar:30}] {percent}%, {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left";

/// The body of a request or an answer.
type Stream = UnsyncBoxBody<Bytes, io::Error>;

/// Who has the store.
#[derive(Clone)]
pub(super) enum Side {
    /// A daemon, at this socket.
    Daemon(PathBuf, TaskTracker),
    /// This process.
    Here(Arc<Admin>, TaskTracker),
}

/// A blob that is being put into the store.
pub(super) struct Putting {
    pieces: mpsc::Sender<Bytes>,
    answer: JoinHandle<Result<(), Trouble>>,
}

/// Does something with the store that the flags mean.
pub(super) fn with<T>(
    command: &'static str,
    flags: &StoreFlags,
    work: impl AsyncFnOnce(&Side, &Config) -> Result<T, Trouble>,
) -> Result<T, Trouble> {
    Ask::prepared(flags, async |known, signals| {
        let config = known.config.clone();
        let tasks = TaskTracker::new();
        let (side, store) = match Way::find_unless(known, command, false, signals).await? {
            Way::Daemon(stream, holder) => (Side::daemon(&stream, &holder, tasks)?, None),
            Way::Here(here) => {
                let Here { store, admin, .. } = *here;
                store.load().await.map_err(|error| Trouble::Failed(error.to_string()))?;
                (Side::Here(admin, tasks), Some(store))
            }
        };
        let done = tokio::select! {
            done = work(&side, &config) => done,
            _ = signals.next() => Err(Trouble::Interrupted),
        };
        if let Some(store) = store {
            // What was being written ends with its source; the store must not be closed under it.
            side.tasks().close();
            side.tasks().wait().await;
            store.close().await;
        }
        done
    })
}

/// A bar on the terminal, if somebody sees it.
pub(super) fn bar(total: u64, message: &'static str, json: bool) -> ProgressBar {
    let target = if json { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
    let bar = ProgressBar::with_draw_target(Some(total), target);
    bar.set_style(ProgressStyle::with_template(BAR).unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar.with_message(message)
}

// === impl Side ===

impl Side {
    fn daemon(stream: &UnixStream, holder: &Holder, tasks: TaskTracker) -> Result<Self, Trouble> {
        let peer = stream.peer_addr().ok();
        let socket = peer.as_ref().and_then(|peer| peer.as_pathname());
        let socket =
            socket.ok_or_else(|| Trouble::Failed(format!("{holder} has the store, at a socket without a name")))?;
        Ok(Self::Daemon(socket.to_owned(), tasks))
    }

    const fn tasks(&self) -> &TaskTracker {
        match self {
            Self::Daemon(_, tasks) | Self::Here(_, tasks) => tasks,
        }
    }

    /// What it has.
    pub(super) async fn have(&self) -> Result<Have, Trouble> {
        self.ask(Method::GET, "/api/v1/have".to_owned(), Bytes::new()).await
    }

    /// How many bytes it may hold.
    pub(super) async fn capacity(&self) -> Result<u64, Trouble> {
        let status: Status = self.ask(Method::GET, "/api/v1/status".to_owned(), Bytes::new()).await?;
        Ok(u64::try_from(status.store.capacity_bytes).unwrap_or(0))
    }

    /// The images that the names mean; without names, all.
    pub(super) async fn carried(&self, names: &[String]) -> Result<Carried, Trouble> {
        let mut path = "/api/v1/carried".to_owned();
        for (number, name) in names.iter().enumerate() {
            path.push(if number == 0 { '?' } else { '&' });
            path.push_str("name=");
            path.extend(utf8_percent_encode(name, NON_ALPHANUMERIC));
        }
        self.ask(Method::GET, path, Bytes::new()).await
    }

    /// Has it take an image whose blobs it has.
    pub(super) async fn take(&self, import: &Import) -> Result<Taken, Trouble> {
        let body = serde_json::to_vec(import).map_err(|error| Trouble::Failed(error.to_string()))?;
        self.ask(Method::POST, "/api/v1/imports".to_owned(), body.into()).await
    }

    /// Asks for something short.
    pub(super) async fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path: String,
        body: Bytes,
    ) -> Result<T, Trouble> {
        let body = Full::new(body).map_err(|never| match never {}).boxed_unsync();
        let (status, answer) = self.exchange(method, &path, body, None).await?;
        let answer = answer.collect().await.map_err(|error| Trouble::Failed(error.to_string()))?.to_bytes();
        let unknown =
            |error| Trouble::Failed(format!("the answer of another version of ocistern is not understood: {error}"));
        serde_json::from_slice(&checked(status, answer)?).map_err(unknown)
    }

    /// Shows the bytes of a blob piece by piece. False: it is not in the store.
    pub(super) async fn read(
        &self,
        digest: &Digest,
        mut show: impl FnMut(&[u8]) -> Result<(), Trouble>,
    ) -> Result<bool, Trouble> {
        let path = format!("/api/v1/content?digest={}", utf8_percent_encode(&digest.to_string(), NON_ALPHANUMERIC));
        let body = Empty::new().map_err(|never| match never {}).boxed_unsync();
        let (status, mut answer) = self.exchange(Method::POST, &path, body, None).await?;
        if status == StatusCode::NOT_FOUND {
            return Ok(false);
        }
        if !status.is_success() {
            let body = answer.collect().await.map_err(|error| Trouble::Failed(error.to_string()))?.to_bytes();
            return checked(status, body).map(|_| false);
        }
        while let Some(frame) = answer.frame().await {
            let frame = frame.map_err(|error| Trouble::Failed(format!("{digest} could not be read: {error}")))?;
            if let Ok(bytes) = frame.into_data() {
                show(&bytes)?;
            }
        }
        Ok(true)
    }

    /// Begins to put a blob into the store.
    pub(super) fn put(&self, digest: &Digest, size: u64) -> Putting {
        let digest = utf8_percent_encode(&digest.to_string(), NON_ALPHANUMERIC).to_string();
        let path = format!("/api/v1/content?digest={digest}&size={size}");
        let (pieces, coming) = mpsc::channel::<Bytes>(AHEAD);
        let body = unfold(coming, |mut coming| async { Some((Ok(Frame::data(coming.recv().await?)), coming)) });
        let (asked, body) = (self.clone(), StreamBody::new(body).boxed_unsync());
        let answer = self.tasks().spawn(async move {
            let (status, answer) = asked.exchange(Method::PUT, &path, body, Some(size)).await?;
            let answer = answer.collect().await.map_err(|error| Trouble::Failed(error.to_string()))?.to_bytes();
            checked(status, answer).map(drop)
        });
        Putting { pieces, answer }
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: Stream,
        length: Option<u64>,
    ) -> Result<(StatusCode, Stream), Trouble> {
        let mut request = Request::builder().method(method).uri(path).header(HOST, "localhost");
        if let Some(length) = length {
            request = request.header(CONTENT_LENGTH, length);
        }
        let request = request.body(body).map_err(|error| Trouble::Failed(error.to_string()))?;
        let answer: Response<Stream> = match self {
            Self::Here(admin, _) => {
                let user = rustix::process::geteuid().as_raw();
                let answer = admin.handle(Peer::Unix(Some(user)), request).await;
                answer.map(|body| body.map_err(io::Error::other).boxed_unsync())
            }
            Self::Daemon(socket, tasks) => {
                let silent = |why: String| {
                    Trouble::Failed(format!("the daemon at {} does not answer properly: {why}", socket.display()))
                };
                let stream = UnixStream::connect(socket).await.map_err(|error| silent(error.to_string()))?;
                let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
                let (mut sender, connection) = handshake.map_err(|error| silent(error.to_string()))?;
                // It ends with the answer's body.
                tasks.spawn(connection);
                let answer = sender.send_request(request).await.map_err(|error| silent(error.to_string()))?;
                answer.map(|body| body.map_err(io::Error::other).boxed_unsync())
            }
        };
        let (head, body) = answer.into_parts();
        Ok((head.status, body))
    }
}

// === impl Putting ===

impl Putting {
    /// Adds bytes. False: the store wants no more, and [`Putting::end`] says why.
    pub(super) async fn add(&self, bytes: Bytes) -> bool {
        self.pieces.send(bytes).await.is_ok()
    }

    /// Waits until the blob is stored.
    pub(super) async fn end(self) -> Result<(), Trouble> {
        let Self { pieces, answer } = self;
        drop(pieces);
        answer.await.unwrap_or_else(|error| Err(Trouble::Failed(error.to_string())))
    }
}
