//! A download: a part of a blob as it comes from upstream, gone on with by Range where it breaks off.
//!
//! Several of them may bring parts of one blob; what they have in common is their [`Supply`]. Nothing is verified here:
//! whoever takes the bytes hashes them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use http_body_util::BodyExt as _;
use tokio::time::Instant;

use super::endpoints::Endpoint;
use super::patience::PROGRESS;
use super::supply::{Part, Parts, Supply};
use super::{ANSWER_WITHIN, CacheError, Target};
use crate::oci::Via;
use crate::upstream::{
    Answer, Class, Fault, Place, Priority, ProtocolFault, RedirectFault, UpstreamBody, UpstreamError,
};

/// Answers in a row to a question for a part that are of no use, after which the whole is asked for.
const WRONG_ANSWERS: u32 = 3;
/// The pause after a failure at the beginning.
const BEFORE_ANOTHER: Duration = Duration::from_millis(250);
/// So much earlier than for an answer is a place given up.
const PLACE_BEFORE: Duration = Duration::from_secs(1);

/// Where a download is to end, for whoever decides that; it looks before each question and each piece.
#[derive(Debug, Clone)]
pub(super) struct Bound(Arc<AtomicU64>);

/// Whether what comes now is the answer with all of the blob, not with a part, for whoever wants to know.
#[derive(Debug, Clone, Default)]
pub(super) struct Entire(Arc<AtomicBool>);

/// A part of a blob on its way from upstream.
pub(super) struct Download {
    supply: Arc<Supply>,
    /// Which was asked last.
    endpoint: Endpoint,
    /// Where the next byte belongs.
    at: u64,
    /// The furthest that it has been.
    furthest: u64,
    /// Where it is to end.
    bound: Bound,
    /// None where it has to be asked for.
    body: Option<UpstreamBody>,
    /// Leave to fetch, for as long as there is a body and it keeps it.
    place: Option<Place>,
    keeps_place: bool,
    priority: Priority,
    entire: Entire,
    /// By whose right upstream gives it.
    via: Via,
    /// Bytes that were new since upstream was asked last.
    gained: u64,
    /// Tries in a row that brought next to nothing.
    fruitless: u32,
    /// Useless answers since then.
    wrong: u32,
}

// === impl Bound ===

impl Bound {
    /// None: at the end of the blob, wherever that is.
    pub(super) fn new(until: Option<u64>) -> Self {
        Self(Arc::new(AtomicU64::new(until.unwrap_or(u64::MAX))))
    }

    /// The byte before which it ends; none: the blob's end.
    pub(super) fn get(&self) -> Option<u64> {
        Some(self.0.load(Ordering::Relaxed)).filter(|until| *until != u64::MAX)
    }

    /// It ends there, if that is before what it was to bring.
    pub(super) fn shorten(&self, until: u64) {
        self.0.fetch_min(until, Ordering::Relaxed);
    }
}

// === impl Entire ===

impl Entire {
    pub(super) fn get(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    fn set(&self, is_whole: bool) {
        self.0.store(is_whole, Ordering::Relaxed);
    }
}

// === impl Download ===

impl Download {
    /// Asks for a part, for the first time; returns when upstream's head is there. Where an upstream that is asked for
    /// everybody cannot be reached, its mirrors are. One that does not give this part is asked for the whole.
    pub(super) async fn begin(supply: Arc<Supply>, part: Part, deadline: Instant) -> Result<Self, CacheError> {
        let (mut part, mut failed) = (part, false);
        let place = supply.origin.errand.place(Priority::Waiting, None);
        // Earlier than the answer is given up, so that it is said what was waited for.
        let until = deadline.checked_sub(PLACE_BEFORE).unwrap_or(deadline);
        let place = tokio::time::timeout_at(until, place).await.map_err(|_| supply.no_place())?;
        loop {
            let (endpoint, until) = (supply.endpoints.current(), supply.endpoints.first_deadline(deadline));
            match supply.ask(&endpoint, part, until).await {
                Ok(answer) => return Ok(Self::begun(&supply, part, (endpoint, place), answer)),
                // Azure's storage, for one, knows no suffix ranges. Where the end is the whole tells.
                Err(error)
                    if matches!(part, Part::Last(_)) && !error.is_unavailable() && !error.is_upstreams_word() =>
                {
                    part = Part::Whole;
                }
                // It may have been about something else: a part is asked for once more.
                Err(error) if part != Part::Whole && !endpoint.is_mirror && is_failure(&error) => {
                    if failed {
                        part = Part::Whole;
                    } else {
                        tokio::time::sleep(BEFORE_ANOTHER).await;
                    }
                    failed = true;
                }
                Err(error) if part != Part::Whole && !endpoint.is_mirror && is_about_the_part(&error) => {
                    // Perhaps it is shorter than somebody thinks: the whole tells. Nonsense is no part, and a refusal
                    // may be one of parts.
                    if !matches!(&error, CacheError::Upstream(error) if is_beyond_the_end(error)) {
                        supply.refuse_parts();
                    }
                    part = Part::Whole;
                }
                // What a mirror says counts for itself alone.
                Err(_) if supply.endpoints.leave(&endpoint) => {
                    supply.endpoints.next_at_the_start();
                }
                Err(error) if error.is_of_upstream_as_a_whole() && supply.endpoints.next_at_the_start() => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// The same in the middle of a blob, with all the patience that there is.
    pub(super) async fn resumed(
        supply: Arc<Supply>,
        (from, bound, entire): (u64, Bound, Entire),
        (priority, keeps_place): (Priority, bool),
    ) -> Result<Self, CacheError> {
        let mut download = Self {
            endpoint: supply.endpoints.current(),
            supply,
            at: from,
            furthest: from,
            bound,
            body: None,
            place: None,
            keeps_place,
            priority,
            entire,
            via: Via::Anonymous,
            gained: 0,
            fruitless: 0,
            wrong: 0,
        };
        download.ask_on(None).await?;
        Ok(download)
    }

    fn begun(
        supply: &Arc<Supply>,
        part: Part,
        (endpoint, place): (Endpoint, Place),
        (answer, at): (Answer, u64),
    ) -> Self {
        let Answer { via, body, status, .. } = answer;
        let until = match part {
            Part::From(_, until) if status == StatusCode::PARTIAL_CONTENT => until,
            _ => None,
        };
        supply.endpoints.answered(&endpoint);
        let entire = Entire::default();
        entire.set(status == StatusCode::OK);
        Self {
            endpoint,
            supply: Arc::clone(supply),
            at,
            furthest: at,
            bound: Bound::new(until),
            body: Some(body),
            place: Some(place),
            keeps_place: true,
            priority: Priority::Waiting,
            entire,
            via,
            gained: 0,
            fruitless: 0,
            wrong: 0,
        }
    }

    /// By whose right upstream gives it.
    pub(super) fn via(&self) -> Via {
        self.via
    }

    /// Gives its place to others, and goes on: of a client that reads when it likes nobody knows how long that takes.
    pub(super) fn give_place_back(&mut self) {
        (self.place, self.keeps_place) = (None, false);
    }

    /// Whether a mirror gives it.
    pub(super) fn is_from_mirror(&self) -> bool {
        self.endpoint.is_mirror
    }

    /// Whether it was answered with all of the blob, not with a part.
    pub(super) fn entire(&self) -> &Entire {
        &self.entire
    }

    /// Where the next byte belongs.
    pub(super) fn at(&self) -> u64 {
        self.at
    }

    /// Where it is to end, to be decided elsewhere.
    pub(super) fn bound(&self) -> &Bound {
        &self.bound
    }

    /// Where it ends; none: at the end of the blob, wherever that is.
    pub(super) fn end(&self) -> Option<u64> {
        let length = self.supply.mark().length;
        // What is asked for in blocks may end behind the blob.
        match (self.until(), length) {
            (Some(until), Some(length)) => Some(until.min(length)),
            (until, length) => until.or(length),
        }
    }

    /// Whether it brings all of the blob, whatever it was to bring: upstream gives no parts.
    pub(super) fn is_all(&self) -> bool {
        self.entire.get() && self.supply.parts() == Parts::Refused
    }

    /// Where it ends before the end of the blob, if that was decided and can be.
    fn until(&self) -> Option<u64> {
        self.bound.get().filter(|_| !self.is_all())
    }

    /// The next bytes, never none of them, and where they belong; none at the end. What upstream repeats is repeated here.
    pub(super) async fn next(&mut self) -> Result<Option<(u64, Bytes)>, CacheError> {
        loop {
            // Neither an upstream that keeps a stream open after its last byte, nor one that resets it there (HTTP/2),
            // concerns anybody: the digest decides.
            let end = self.end();
            if end.is_some_and(|end| self.at >= end) {
                return Ok(None);
            }
            let Some(body) = &mut self.body else {
                self.ask_on(None).await?;
                continue;
            };
            let error = match body.frame().await {
                Some(Ok(frame)) => {
                    let Ok(mut data) = frame.into_data() else { continue };
                    if data.is_empty() {
                        continue;
                    }
                    let at = self.at;
                    // Where it ends may have been decided anew since this was waited for.
                    let end = self.end();
                    if let Some(left) = end.map(|end| end.saturating_sub(at)).filter(|left| *left < data.len() as u64) {
                        if self.until().is_none() {
                            return Err(self.supply.bad("a body of another length than it announced"));
                        }
                        data.truncate(usize::try_from(left).unwrap_or(usize::MAX));
                        // Should it have to bring more after all, what follows in this body is not what follows this.
                        self.let_go();
                        if data.is_empty() {
                            continue;
                        }
                    }
                    self.at += data.len() as u64;
                    self.gain();
                    if end.is_some_and(|end| self.at >= end) {
                        // Who takes this may take a while: others may fetch meanwhile.
                        if self.until().is_some() {
                            self.let_go();
                        } else {
                            // Whoever takes it asks whether it is all that came.
                            (self.body, self.place) = (None, None);
                        }
                    }
                    return Ok(Some((at, data)));
                }
                None if end.is_none() => {
                    self.supply.learn(Some(self.at))?;
                    return Ok(None);
                }
                None => self.supply.bad("a body shorter than it announced"),
                Some(Err(error)) => error.into(),
            };
            self.resume(error).await?;
        }
    }

    /// Counts what is new.
    fn gain(&mut self) {
        let new = self.at.saturating_sub(self.furthest);
        if new == 0 {
            return;
        }
        self.furthest = self.at;
        self.gained += new;
        self.wrong = 0;
        self.supply.patience.came(new);
        if self.gained >= PROGRESS {
            self.fruitless = 0;
            self.supply.endpoints.progressed();
        }
    }

    /// Goes on after `error`.
    async fn resume(&mut self, error: CacheError) -> Result<(), CacheError> {
        if self.wrong >= WRONG_ANSWERS && self.at >= self.furthest {
            // It says that there is nothing more, and the whole, which was asked for then, ends at the same place.
            return Err(error);
        }
        let Target { upstream, repo, .. } = &self.supply.origin.target;
        tracing::info!(
            %upstream, repository = %repo, digest = %self.supply.origin.digest, mark = self.at,
            endpoint = self.endpoint.registry.endpoint(), error = &error as &dyn std::error::Error,
            "upstream broke a blob off; going on from the mark"
        );
        // The whole was asked for, and breaks like anything else: a part may be given now.
        self.wrong = 0;
        self.ask_on(Some(error)).await
    }

    /// What comes is not read on. Meanwhile others may fetch.
    fn let_go(&mut self) {
        (self.body, self.place) = (None, None);
        self.entire.set(false);
    }

    /// Asks for what follows the mark, until there is an answer or no patience left. `error` is what made it necessary.
    async fn ask_on(&mut self, mut error: Option<CacheError>) -> Result<(), CacheError> {
        loop {
            if let Some(last) = error.take() {
                self.let_go();
                // What was repeated need not come once more.
                self.at = self.furthest;
                self.supply.hope_for_parts();
                self.fruitless += 1;
                let pause = self.pause(&last)?;
                tokio::time::sleep(pause).await;
            }
            if self.place.is_none() {
                let left = self.end().map(|end| end.saturating_sub(self.at));
                self.place = Some(self.supply.origin.errand.place(self.priority, left).await);
            }
            if self.end().is_some_and(|end| self.at >= end) {
                // What it was to bring became another one's while it waited.
                return Ok(());
            }
            let asked_as = self.supply.target();
            // An end that is the blob's need not be said.
            let length = self.supply.mark().length;
            let until = self.bound.get().filter(|until| length.is_none_or(|length| *until < length));
            let part = if self.wrong >= WRONG_ANSWERS { Part::Whole } else { Part::From(self.at, until) };
            self.endpoint = self.supply.endpoints.current();
            let answer = self.supply.ask(&self.endpoint, part, Instant::now() + ANSWER_WITHIN).await;
            if part == Part::Whole && answer.is_err() {
                // Then it was not about the part, and the next one may be given.
                self.wrong = 0;
            }
            error = Some(match answer {
                Ok((answer, at)) => {
                    self.supply.endpoints.answered(&self.endpoint);
                    if self.fruitless > 0 {
                        self.supply.count_resume();
                    }
                    self.entire.set(answer.status == StatusCode::OK);
                    if self.entire.get() && part == Part::Whole {
                        // It gives this, and nothing of use for a part.
                        self.supply.refuse_parts();
                    }
                    if !self.keeps_place {
                        self.place = None;
                    }
                    (self.body, self.via, self.at, self.gained) = (Some(answer.body), answer.via, at, 0);
                    return Ok(());
                }
                // Without a length, all may have come before the body broke off: the digest decides.
                Err(CacheError::Upstream(next))
                    if self.end().is_none() && !self.endpoint.is_mirror && is_beyond_the_end(&next) =>
                {
                    return self.supply.learn(Some(self.at));
                }
                Err(next) if next.is_upstreams_word() => {
                    // It answers only for the one whose right was shown, and a mirror only for itself.
                    if !self.supply.endpoints.leave(&self.endpoint) && !self.supply.borrow_another_right(&asked_as) {
                        return Err(next);
                    }
                    next
                }
                Err(next @ (CacheError::BadAnswer { .. } | CacheError::WrongContent(_)))
                    if self.supply.endpoints.leave(&self.endpoint) =>
                {
                    next
                }
                Err(next) if self.endpoint.is_mirror && is_about_the_part(&next) => {
                    // It says nothing about what upstream gives.
                    self.supply.endpoints.leave(&self.endpoint);
                    next
                }
                Err(next) if part != Part::Whole && self.is_perhaps_about_the_part(&next) => {
                    self.wrong += 1;
                    next
                }
                // It says that this digest means other content to it, and goes on saying so.
                Err(next @ CacheError::WrongContent(_)) if self.fruitless > WRONG_ANSWERS => return Err(next),
                Err(CacheError::Upstream(next)) if !may_pass(&next) && !self.supply.endpoints.has_others() => {
                    return Err(CacheError::Upstream(next));
                }
                // It may be the page of a proxy that stands there for a while: patience decides.
                Err(next) => next,
            });
        }
    }

    /// Whether asking for the whole may help. One that has given parts has other reasons to fail.
    fn is_perhaps_about_the_part(&self, error: &CacheError) -> bool {
        is_about_the_part(error) || (is_failure(error) && !self.endpoint.is_mirror && !self.supply.has_given_parts())
    }

    /// How long to wait before the next try, after `error`; the error where it is given up.
    fn pause(&self, error: &CacheError) -> Result<Duration, CacheError> {
        let endpoints = &self.supply.endpoints;
        let asked = match error {
            CacheError::Upstream(error) => error.fault.retry_after(),
            _ => None,
        };
        let pause = self.supply.patience.pause(self.fruitless, asked).ok_or_else(|| error.clone())?;
        // Another endpoint need not be waited for before it has failed too.
        Ok(if endpoints.next(&self.endpoint) { Duration::ZERO } else { pause })
    }
}

/// Whether it may be over after a while, however long that is.
fn may_pass(error: &UpstreamError) -> bool {
    let lasts = matches!(error.fault, Fault::Sealed | Fault::OwnListener | Fault::WantsTls);
    !lasts && (error.is_retryable() || error.class() == Class::Unavailable)
}

/// Whether upstream says that nothing follows the mark.
fn is_beyond_the_end(error: &UpstreamError) -> bool {
    matches!(error.fault, Fault::Status { status: StatusCode::RANGE_NOT_SATISFIABLE, .. })
}

/// Whether it is about which part was asked for, or that it was a part, and not about the blob: 416 and nonsense, but also
/// what registries, and proxies and storage behind them, that want no Range have for it.
fn is_about_the_part(error: &CacheError) -> bool {
    let CacheError::Upstream(error) = error else { return false };
    match &error.fault {
        Fault::Protocol(ProtocolFault::Range) | Fault::Redirect(RedirectFault::Refused { .. }) => true,
        Fault::Status { status, .. } => matches!(status.as_u16(), 400 | 405 | 416 | 501),
        _ => false,
    }
}

/// Whether it is what a program says that has met what it cannot do, or just something: 500.
fn is_failure(error: &CacheError) -> bool {
    let CacheError::Upstream(error) = error else { return false };
    matches!(error.fault, Fault::Status { status: StatusCode::INTERNAL_SERVER_ERROR, .. })
}
