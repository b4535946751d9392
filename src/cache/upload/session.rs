//! One upload: where it is upstream, what is kept of it here, and how it goes on when upstream breaks it.

use std::time::Duration;

use http::header::{CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderValue, Method, StatusCode};
use http_body_util::BodyExt as _;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::feed::Feed;
use super::kept::Kept;
use super::pump::Pump;
use super::{ClientBody, ClientFault, Pace, Part};
use crate::cache::write::{Said, WriteError};
use crate::cache::{ANSWER_WITHIN, Cache, CacheError, Target};
use crate::metrics::Kind;
use crate::oci::Digest;
use crate::store::SpoolReader;
use crate::upstream::{Call, CallBody, CallTarget, Class, Fault, Location};

/// How often an upload that upstream broke is begun anew, for one request of the client.
const REPLAYS: u32 = 3;
/// The first pause before that; each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// The longest pause that upstream may ask for without the client being told.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
const OCTETS: HeaderValue = HeaderValue::from_static("application/octet-stream");

/// One upload.
pub(super) struct Session {
    remote: Remote,
    kept: Kept,
    /// Bytes that were acknowledged.
    offset: u64,
    /// A request came in the middle of which something failed, or its client left: what it brought does not count.
    interrupted: bool,
}

/// Where the upload is upstream.
enum Remote {
    /// It goes on there, with as many bytes as were acknowledged.
    Open(Location),
    /// There is none, or upstream has broken it: the next byte begins a new one, with all the bytes before it.
    Broken,
    /// It is closed or given up: nothing more comes.
    Closed,
}

/// A request of a client on an upload.
pub(super) struct Job<'a> {
    pub(super) cache: &'a Cache,
    pub(super) target: &'a Target,
    /// The upload is over.
    pub(super) gone: &'a CancellationToken,
    pub(super) body: ClientBody,
    pub(super) length: Option<u64>,
    pub(super) part: Option<Part>,
    pub(super) last: Last,
}

/// Whether more comes after this request.
#[derive(Debug, Clone, Copy)]
pub(super) enum Last {
    /// Yes: PATCH.
    Part,
    /// No, and all is what this names: PUT.
    Closing(Digest),
}

/// Why a try failed.
enum Failed {
    /// For good.
    Final(WriteError),
    /// Upstream broke the upload: it is worth a new one, after a pause if upstream asked for it.
    Broken(WriteError, Option<Duration>),
}

impl From<WriteError> for Failed {
    fn from(error: WriteError) -> Self {
        Self::Final(error)
    }
}

impl From<ClientFault> for Failed {
    fn from(fault: ClientFault) -> Self {
        Self::Final(fault.into())
    }
}

/// What a request works with.
struct Context<'a> {
    cache: &'a Cache,
    target: &'a Target,
    part: Option<Part>,
    length: Option<u64>,
    last: Last,
}

// === impl Session ===

impl Session {
    pub(super) const fn new() -> Self {
        Self { remote: Remote::Broken, kept: Kept::Nothing, offset: 0, interrupted: false }
    }

    pub(super) const fn is_open(&self) -> bool {
        matches!(self.remote, Remote::Open(_))
    }

    /// Bytes that were acknowledged.
    pub(super) const fn offset(&self) -> u64 {
        self.offset
    }

    /// Whether it cannot go on: closed, or broken with nothing to replay.
    pub(super) const fn is_lost(&self) -> bool {
        match self.remote {
            Remote::Closed => true,
            Remote::Broken => self.offset > 0 && !self.kept.is_whole(),
            Remote::Open(_) => false,
        }
    }

    /// What was uploaded, after it was closed: its length, and the file.
    pub(super) fn take(&mut self) -> (u64, Kept) {
        self.remote = Remote::Closed;
        (self.offset, std::mem::replace(&mut self.kept, Kept::Nothing))
    }

    /// Begins the upload upstream. Not open afterwards: upstream had no need of it, for a mount.
    pub(super) async fn open(
        &mut self,
        cache: &Cache,
        target: &Target,
        query: &str,
        scope: Option<&str>,
    ) -> Result<Said, WriteError> {
        // Nothing has come yet that could be lost: the client tries again by itself, and knows how often.
        self.try_open(cache, target, query, scope).await.map_err(|failed| match failed {
            Failed::Final(error) | Failed::Broken(error, _) => error,
        })
    }

    async fn try_open(
        &mut self,
        cache: &Cache,
        target: &Target,
        query: &str,
        scope: Option<&str>,
    ) -> Result<Said, Failed> {
        let mut path = format!("/v2/{}/blobs/uploads/", target.repo);
        if !query.is_empty() {
            path.push('?');
            path.push_str(query);
        }
        let mut call = call(Method::POST, CallTarget::Path(path), target).with_deadline(Instant::now() + ANSWER_WITHIN);
        call.scope = scope.map(str::to_owned);
        let said = Box::pin(cache.relay(&target.upstream, call)).await.map_err(judge_error)?;
        match (said.status, &said.location) {
            (StatusCode::ACCEPTED, Some(location)) => {
                self.remote = Remote::Open(location.clone());
                Ok(said)
            }
            (StatusCode::CREATED, _) if query.contains("mount=") => Ok(said),
            (StatusCode::ACCEPTED | StatusCode::CREATED | StatusCode::NO_CONTENT | StatusCode::OK, _) => {
                let upstream = target.upstream.clone();
                let reason = "an upload was begun and it did not say where it goes on";
                Err(WriteError::from(CacheError::BadAnswer { upstream, reason }).into())
            }
            // To POST, 404 is said of the repository.
            (StatusCode::NOT_FOUND, _) => Err(Failed::Final(WriteError::Refused(Box::new(said)))),
            _ => Err(judge(said)),
        }
    }

    /// Takes a request's body, and sends it upstream. It counts whole or not at all.
    pub(super) async fn transmit(&mut self, job: Job<'_>) -> Result<Said, WriteError> {
        let Job { cache, target, gone, body, length, part, last } = job;
        self.repair().await?;
        check_part(part.as_ref(), self.offset, length)?;
        let length = length.or(part.as_ref().map(|part| part.end - part.start));
        let context = Context { cache, target, part, length, last };
        let pace = Pace::new(cache.config.load().slowest);
        let mut pump = Pump::new(body, pace, length, matches!(last, Last::Closing(_)));
        if matches!((length, last), (Some(0), Last::Part)) {
            // Some registries have no use for a part without bytes.
            return Ok(Said::accepted(target.right.via()));
        }
        self.interrupted = true;
        let said = tokio::select! {
            said = self.insist(&context, &mut pump) => said?,
            () = gone.cancelled() => {
                let stops = cache.stop.is_cancelled();
                return Err(if stops { CacheError::Stopped.into() } else { WriteError::UnknownUpload });
            }
        };
        self.interrupted = false;
        self.offset += pump.accepted();
        Ok(said)
    }

    /// Tries until upstream has it, or there is no hope.
    async fn insist(&mut self, context: &Context<'_>, pump: &mut Pump) -> Result<Said, WriteError> {
        let mut pause = FIRST_PAUSE;
        let mut replays = 0;
        loop {
            let (error, after) = match self.attempt(context, pump).await {
                Ok(said) => return Ok(said),
                Err(Failed::Final(error)) => return Err(error),
                Err(Failed::Broken(error, after)) => (error, after),
            };
            self.remote = Remote::Broken;
            if let Last::Closing(digest) = &context.last
                && pump.has_ended()
            {
                // Upstream may have broken off before it was: what it has is not what came, only because its name is asked for.
                self.check(&context.last, pump).await?;
                if let Some(said) = has_arrived(context, digest, self.offset + pump.accepted()).await {
                    return Ok(said);
                }
            }
            replays += 1;
            if replays > REPLAYS {
                return Err(error);
            }
            let sent = self.sent(pump);
            if !self.can_replay(sent).await {
                return Err(WriteError::Unreplayable(Box::new(error)));
            }
            tracing::info!(
                upstream = %context.target.upstream, repository = %context.target.repo, bytes = self.offset + pump.accepted(),
                error = &error as &dyn std::error::Error, "upstream broke an upload; it is begun anew and replayed"
            );
            sleep(after.unwrap_or(pause)).await;
            pause *= 2;
        }
    }

    /// One request upstream.
    async fn attempt(&mut self, context: &Context<'_>, pump: &mut Pump) -> Result<Said, Failed> {
        let Context { cache, target, length, last, .. } = context;
        let replays = !self.is_open();
        if replays {
            Box::pin(self.try_open(cache, target, "", None)).await?;
        }
        let Remote::Open(location) = &self.remote else {
            return Err(Failed::Final(WriteError::UnknownUpload));
        };
        let location = location.clone();
        let replay = if replays { self.replay(pump).await? } else { None };
        let (whole_length, algorithm) = match last {
            Last::Closing(digest) if self.offset == 0 => (*length, Some(digest.algorithm())),
            _ => (None, None),
        };
        if *length == Some(0) {
            pump.run(&mut self.kept, None).await?;
            self.check(last, pump).await?;
        } else {
            self.kept.begin(&cache.store, whole_length, algorithm).await;
        }
        // What the client has said of the part is not true of a replay, which begins at the beginning.
        let range = context.part.as_ref().filter(|_| replay.is_none() || self.offset == 0).map(|part| &part.text);
        let sent_before = replay.as_ref().map_or(0, |_| self.offset);
        let total = length.map(|length| sent_before + length);
        let mut call = match last {
            Last::Part => call(Method::PATCH, CallTarget::Url(location), target),
            Last::Closing(digest) => call(Method::PUT, CallTarget::Url(location.with_digest(digest)), target),
        };
        if let Some(range) = range {
            call.headers.insert(CONTENT_RANGE, range.clone());
        }
        if total == Some(0) {
            // The client's own request has ended with nothing in it: this one cannot be half done.
            return self.settle(context, cache.relay(&target.upstream, call).await, pump);
        }
        call.headers.insert(CONTENT_TYPE, OCTETS);
        let (inlet, feed) = Feed::new(replay);
        let mut relayed =
            Box::pin(cache.relay(&target.upstream, call.with_body(CallBody::Stream(feed.boxed_unsync(), total))));
        let early = {
            let work = async {
                pump.run(&mut self.kept, Some(&inlet)).await?;
                if pump.has_ended() && !inlet.is_closed() {
                    self.check(last, pump).await?;
                    pump.finish(&inlet).await;
                    pump.surplus().await?;
                }
                Ok::<(), Failed>(())
            };
            tokio::select! {
                biased;
                said = &mut relayed => Some(said),
                worked = work => worked.map(|()| None)?,
            }
        };
        drop(inlet);
        let said = match early {
            Some(said) => said,
            None => relayed.await,
        };
        if let (Ok(said), Last::Closing(_)) = (&said, last)
            && said.status == StatusCode::CREATED
            && !said.whole
        {
            // It has the blob already. What the client sends is looked at all the same.
            pump.run(&mut self.kept, None).await?;
            self.check(last, pump).await?;
            return Ok(Said { whole: true, ..said.clone() });
        }
        // Else the room of a file that has failed would be taken until the next part comes, or never does. Before anything of the
        // answer is noted: a client that leaves here has left before it.
        self.kept.write_out().await;
        self.settle(context, said, pump)
    }

    /// What a relayed request means for the upload.
    fn settle(&mut self, context: &Context<'_>, said: Result<Said, WriteError>, pump: &Pump) -> Result<Said, Failed> {
        let said = said.map_err(judge_error_of_part)?;
        let closing = matches!(context.last, Last::Closing(_));
        if !said.status.is_success() {
            // Of a sum that was checked here, upstream's complaint is of its own making.
            return Err(judge(said));
        }
        if !said.whole || !pump.has_ended() || !context.last.is_taken_by(said.status) {
            return Err(Failed::Broken(WriteError::Refused(Box::new(said)), None));
        }
        if let (Some(location), false) = (&said.location, closing) {
            self.remote = Remote::Open(location.clone());
        }
        Ok(said)
    }

    /// Whether these first bytes, which were sent, can be sent again. The file is asked: what was handed to it may still fail to get there.
    async fn can_replay(&mut self, sent: u64) -> bool {
        sent == 0 || self.kept.reader().await.is_some()
    }

    /// Everything but what is held back.
    fn sent(&self, pump: &Pump) -> u64 {
        self.offset + pump.accepted() - pump.held()
    }

    /// What is to be sent again to a new upload.
    async fn replay(&mut self, pump: &mut Pump) -> Result<Option<(SpoolReader, u64)>, WriteError> {
        pump.restart();
        let end = self.sent(pump);
        if end == 0 {
            return Ok(None);
        }
        // That it was there was seen before: the store has failed since.
        let reader = self.kept.reader().await;
        reader
            .map(|reader| Some((reader, end)))
            .ok_or_else(|| WriteError::Unreplayable(Box::new(WriteError::UnknownUpload)))
    }

    /// Whether all that came is what the closing digest names. Nothing that is not known to be right is committed.
    async fn check(&mut self, last: &Last, pump: &mut Pump) -> Result<(), WriteError> {
        if let Last::Closing(expected) = last
            && pump.holds_back()
        {
            let actual = self.kept.digest(expected.algorithm()).await.ok_or(WriteError::Unchecked)?;
            if actual != *expected {
                let (expected, actual) = (Box::new(*expected), Box::new(actual));
                return Err(WriteError::WrongDigest { expected, actual });
            }
        }
        pump.release();
        Ok(())
    }

    /// Lets go of what is of no use any more when a request ends: of one that failed, nothing counts.
    pub(super) fn rest(&mut self) {
        if self.interrupted && self.offset == 0 {
            self.kept = Kept::Nothing;
        }
    }

    /// Takes back what an interrupted request brought. Where this is dropped before it is done, the next request does it.
    async fn repair(&mut self) -> Result<(), WriteError> {
        if self.interrupted {
            self.remote = Remote::Broken;
            self.kept.rewind(self.offset).await;
            self.interrupted = false;
        }
        if self.is_lost() { Err(WriteError::UnknownUpload) } else { Ok(()) }
    }

    /// Gives it up, here and upstream. Where upstream will not hear of it, it goes on.
    pub(super) async fn cancel(&mut self, cache: &Cache, target: &Target) -> Result<(), WriteError> {
        let location = match &self.remote {
            Remote::Open(location) if !self.interrupted => location.clone(),
            _ => {
                self.abandon();
                return Ok(());
            }
        };
        match cache.relay(&target.upstream, cancelling(&location, target)).await {
            Ok(said) if !said.status.is_success() && said.status != StatusCode::NOT_FOUND => {
                return Err(WriteError::Refused(Box::new(said)));
            }
            Err(error) if error.is_refusal() => return Err(error),
            // Where it could not be asked, it forgets the upload by itself.
            Ok(_) | Err(_) => {}
        }
        self.abandon();
        Ok(())
    }

    /// Gives it up here. Where it may still be open upstream is returned.
    pub(super) fn abandon(&mut self) -> Option<Location> {
        self.kept = Kept::Nothing;
        match std::mem::replace(&mut self.remote, Remote::Closed) {
            Remote::Open(location) => Some(location),
            Remote::Broken | Remote::Closed => None,
        }
    }
}

/// The request that gives an upload up.
pub(super) fn cancelling(location: &Location, target: &Target) -> Call {
    let deadline = Instant::now() + ANSWER_WITHIN;
    call(Method::DELETE, CallTarget::Url(location.clone()), target).with_deadline(deadline)
}

fn call(method: Method, to: CallTarget, target: &Target) -> Call {
    Call::new(Kind::Upload, method, to, target.right.clone()).with_repo(&target.repo)
}

// === impl Last ===

impl Last {
    /// Whether upstream says by this that it has taken what was sent. The whole: by 201 alone, for what answers may be a
    /// page on the way that has a 200 for everything. A part: by 202; Amazon's registry says 201, and Pulp and ggcr's
    /// said 204 for years. That a part was taken is believed only until the whole is.
    fn is_taken_by(self, status: StatusCode) -> bool {
        match self {
            Self::Part => matches!(status, StatusCode::ACCEPTED | StatusCode::CREATED | StatusCode::NO_CONTENT),
            Self::Closing(_) => status == StatusCode::CREATED,
        }
    }
}

/// Whether upstream has the blob, although it did not say so: its answer may have been lost.
async fn has_arrived(context: &Context<'_>, digest: &Digest, size: u64) -> Option<Said> {
    let Context { cache, target, .. } = context;
    let path = CallTarget::Path(format!("/v2/{}/blobs/{digest}", target.repo));
    let head = Call::new(Kind::Blob, Method::HEAD, path, target.right.clone()).with_repo(&target.repo);
    let said = cache.relay(&target.upstream, head.with_deadline(Instant::now() + ANSWER_WITHIN)).await.ok()?;
    let length = said.headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    // One of them must be there, and none may say otherwise: a 200 alone is what a page on the way says.
    let there = said.status == StatusCode::OK
        && match (length, said.digest()) {
            (Some(length), named) => length == size && named.is_none_or(|named| named == *digest),
            (None, named) => named == Some(*digest),
        };
    there.then(|| Said::created(said.via))
}

/// A part must follow the one before, and be as long as it says.
fn check_part(part: Option<&Part>, offset: u64, length: Option<u64>) -> Result<(), WriteError> {
    match part {
        Some(part) if part.start != offset => Err(WriteError::OutOfOrder { offset }),
        Some(part) if length.is_some_and(|length| length != part.end - part.start) => Err(ClientFault::Length.into()),
        _ => Ok(()),
    }
}

/// What an answer other than a success means for the upload.
fn judge(said: Said) -> Failed {
    let about_the_upload = || {
        let code = said.code().unwrap_or_default();
        // Of bytes that were checked here, a complaint about their digest or number means that upstream lost some.
        ["BLOB_UPLOAD_INVALID", "BLOB_UPLOAD_UNKNOWN", "DIGEST_INVALID", "SIZE_INVALID", "RANGE_INVALID"]
            .contains(&code.as_str())
    };
    let broken = match said.status.as_u16() {
        404 | 408 | 410 | 416 | 425 | 429 | 500 | 502 | 503 | 504 => true,
        400 => about_the_upload(),
        _ => false,
    };
    let after = said.headers.get(RETRY_AFTER).and_then(|after| after.to_str().ok()?.parse().ok());
    let after = after.map(Duration::from_secs);
    let error = WriteError::Refused(Box::new(said));
    if broken && after.is_none_or(|after| after <= LONGEST_PAUSE) {
        Failed::Broken(error, after)
    } else {
        Failed::Final(error)
    }
}

/// What a request that got no answer means for the upload.
fn judge_error(error: WriteError) -> Failed {
    let (broken, after) = match &error {
        WriteError::Cache(CacheError::Upstream(cause)) => match &cause.fault {
            Fault::Sealed | Fault::OwnListener | Fault::WantsTls => (false, None),
            Fault::RateLimited { retry_after, .. } => (true, *retry_after),
            Fault::BreakerOpen { retry_after } => (true, Some(*retry_after)),
            _ => (cause.class() == Class::Unavailable, None),
        },
        _ => (false, None),
    };
    if broken && after.is_none_or(|after| after <= LONGEST_PAUSE) {
        Failed::Broken(error, after)
    } else {
        Failed::Final(error)
    }
}

/// The same of a request that streams: it is not repeated after a 401, and a new upload begins with a fresh token.
fn judge_error_of_part(error: WriteError) -> Failed {
    match &error {
        WriteError::Cache(CacheError::Upstream(cause))
            if matches!(cause.fault, Fault::Unauthorized { .. } | Fault::Token(_)) =>
        {
            Failed::Broken(error, None)
        }
        _ => judge_error(error),
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::cache::tests::cache;
    use crate::oci::Algorithm;

    #[tokio::test]
    async fn a_client_that_leaves_while_a_part_is_taken_back_loses_nothing() {
        let (cache, _root) = cache();
        let mut session = Session::new();
        session.kept.begin(&cache.store, None, None).await;
        for n in 1..4 {
            session.kept.add(&vec![n; 1 << 20].into()).await;
        }
        (session.offset, session.interrupted) = (1 << 20, true);
        for _ in 0..3 {
            assert!(futures_util::poll!(Box::pin(session.repair())).is_pending(), "given up in the middle");
            session.rest();
            assert!(!session.is_lost());
        }
        session.repair().await.unwrap();
        session.kept.add(&Bytes::from_static(b"again")).await;
        let whole = [&vec![1; 1 << 20][..], b"again"].concat();
        assert_eq!(session.kept.digest(Algorithm::Sha256).await, Some(Digest::of(Algorithm::Sha256, &whole)));
    }
}
