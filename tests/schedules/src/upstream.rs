//! The upstream that is asked for a blob, as the explorer has it: it answers, breaks off, stalls, is away and refuses parts as
//! drawn. What it sends is always the blob's: what lies is caught by hashes and headers, in no matter which order of steps.

#[allow(dead_code, reason = "the plays use what they need of it")]
#[path = "../../../src/upstream/places.rs"]
pub(crate) mod places;

use std::ops::Range;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use http_body::Frame;
use parking_lot::Mutex;
use shuttle::rand::{Rng as _, thread_rng};
use tokio::sync::watch;
use tokio::time::Instant;

pub use ocistern::upstream::{
    Class, ContentRange, Fault, Phase, ProtocolFault, RedirectFault, Right, TokenFault, UpstreamError,
};
pub(crate) use places::{Errand, Interest, Place, Priority};

use crate::oci::{Digest, RepoName, UpstreamName, Via};
use crate::party::Party;
use crate::steps;
use places::Places;

/// For how long a download that brings nothing is tried again.
const RESUME_FOR: Duration = Duration::from_mins(1);
/// After so many bytes the content repeats itself: no multiple of anything that is asked for.
const PERIOD: usize = 65_521;
/// At most so many bytes come at once.
pub const FRAME: u64 = 512 << 10;

static CONTENT: LazyLock<Bytes> = LazyLock::new(|| {
    let period: Vec<u8> = (0..PERIOD).map(|n| (n * 31 + n / 256 * 17) as u8).collect();
    let frames = usize::try_from(FRAME).unwrap_or_default() / PERIOD + 2;
    Bytes::from(period.repeat(frames))
});

/// What the blob has there.
fn content(range: &Range<u64>) -> Bytes {
    let start = (range.start % PERIOD as u64) as usize;
    CONTENT.slice(start..start + (range.end - range.start) as usize)
}

/// Whether these bytes are what the blob has there.
pub fn is_content(at: u64, bytes: &Bytes) -> bool {
    let expected = content(&(at..at + bytes.len() as u64));
    // Of all of it, the beginning and the end tell.
    let ends = |bytes: &Bytes| (bytes.slice(..bytes.len().min(64)), bytes.slice(bytes.len() - bytes.len().min(64)..));
    ends(&expected) == ends(bytes)
}

/// How an upstream behaves. Chances are of each answer or piece.
#[derive(Debug, Clone)]
pub struct Script {
    pub length: u64,
    /// That a body breaks off before a piece.
    pub breaks: f64,
    /// That an answer is an error. Who begins is told at once, so the first one never is.
    pub fails: f64,
    /// That a part ends earlier than it was asked for.
    pub short: f64,
    /// So many of these, then none: upstream is there in the end.
    pub faults: usize,
    /// What is done with a question for a part.
    pub parts: Answers,
    /// No body goes on past this byte before [`Registry::release`].
    pub stalls_at: Option<u64>,
    /// When it is away.
    pub away: Option<Away>,
}

/// An upstream that goes away after so many bytes, and is there again after so many questions.
#[derive(Debug, Clone, Copy)]
pub struct Away {
    pub after: u64,
    pub questions: usize,
}

/// What an upstream does with a question for a part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answers {
    /// It gives it.
    Parts,
    /// It gives the whole.
    Whole,
    /// It gives the one or the other.
    Either,
}

/// What has become of an upstream's answers.
#[derive(Debug, Default, Clone, Copy)]
pub struct Sent {
    /// Questions.
    pub asked: usize,
    /// Bytes that were taken from bodies.
    pub bytes: u64,
    /// Questions under way and bodies that are open, and the most that were.
    pub open: usize,
    pub peak: usize,
}

/// The upstream.
#[derive(Debug)]
pub struct Registry {
    name: UpstreamName,
    config: Config,
    places: Arc<Places>,
    script: Mutex<Script>,
    sent: Mutex<Sent>,
    released: watch::Sender<bool>,
}

#[derive(Debug)]
pub struct Config {
    pub transfer: Transfer,
}

#[derive(Debug)]
pub struct Transfer {
    pub blob_connections: usize,
    pub resume_for: Duration,
}

pub struct Ask {
    part: Option<(Option<u64>, Option<u64>)>,
}

pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: UpstreamBody,
    pub via: Via,
}

pub struct UpstreamBody {
    registry: Arc<Registry>,
    left: Range<u64>,
    _under_way: UnderWay,
}

/// A question, until its body is dropped.
struct UnderWay(Arc<Registry>);

// === impl Registry ===

impl Registry {
    /// One that a blob is asked of by so many requests at once, and that is asked by so many in all.
    pub fn new(script: Script, blob_connections: usize, max_connections: Option<usize>) -> Arc<Self> {
        Arc::new(Self {
            name: "reg".parse().expect("a name"),
            config: Config { transfer: Transfer { blob_connections, resume_for: RESUME_FOR } },
            places: Places::new(max_connections),
            script: Mutex::new(script),
            sent: Mutex::default(),
            released: watch::channel(false).0,
        })
    }

    pub fn sent(&self) -> Sent {
        *self.sent.lock()
    }

    pub fn name(&self) -> &UpstreamName {
        &self.name
    }

    pub fn endpoint(&self) -> String {
        "registry.test".to_owned()
    }

    pub fn mirrors(&self) -> &[Arc<Self>] {
        &[]
    }

    pub fn config(&self) -> &Config {
        &self.config
    }

    pub(crate) fn errand(&self, of: Option<Party>) -> Errand {
        self.places.errand(of)
    }

    pub(crate) fn try_place(&self) -> Option<Place> {
        self.places.try_place()
    }

    /// What stalls goes on.
    pub fn release(&self) {
        self.released.send_replace(true);
    }

    /// Whether it is away. A question is one of those after which it is there again.
    fn is_away(&self, is_question: bool) -> bool {
        let bytes = self.sent().bytes;
        let mut script = self.script.lock();
        let Some(away) = script.away.as_mut().filter(|away| away.questions > 0 && bytes >= away.after) else {
            return false;
        };
        away.questions -= usize::from(is_question);
        true
    }

    /// Whether a fault happens that has this chance.
    fn draws(&self, chance: impl Fn(&Script) -> f64) -> bool {
        let mut script = self.script.lock();
        let happens = script.faults > 0 && thread_rng().gen_bool(chance(&script));
        script.faults -= usize::from(happens);
        happens
    }

    fn error(&self, fault: Fault) -> UpstreamError {
        UpstreamError { upstream: self.name.clone(), fault }
    }

    pub async fn fetch(self: &Arc<Self>, ask: Ask) -> Result<Answer, UpstreamError> {
        let under_way = UnderWay::new(self);
        steps(thread_rng().gen_range(0..3)).await;
        if self.is_away(true) || (self.sent().bytes > 0 && self.draws(|script| script.fails)) {
            let status = StatusCode::SERVICE_UNAVAILABLE;
            return Err(self.error(Fault::Status { status, retry_after: None, message: String::new() }));
        }
        let Script { length, parts, .. } = *self.script.lock();
        let mut headers = HeaderMap::new();
        let gives_part = match parts {
            Answers::Parts => true,
            Answers::Whole => false,
            Answers::Either => thread_rng().gen_bool(0.7),
        };
        let (status, range) = match ask.part.filter(|_| gives_part) {
            None => (StatusCode::OK, 0..length),
            Some(part) => {
                let range = match part {
                    (Some(from), until) => from..until.map_or(length, |last| (last + 1).min(length)),
                    (None, suffix) => length.saturating_sub(suffix.unwrap_or(length))..length,
                };
                if range.is_empty() {
                    let status = StatusCode::RANGE_NOT_SATISFIABLE;
                    return Err(self.error(Fault::Status { status, retry_after: None, message: String::new() }));
                }
                let end = if range.end - range.start > 1 && self.draws(|script| script.short) {
                    thread_rng().gen_range(range.start + 1..range.end)
                } else {
                    range.end
                };
                let value = format!("bytes {}-{}/{length}", range.start, end - 1);
                headers.insert(header::CONTENT_RANGE, HeaderValue::from_str(&value).expect("a value"));
                (StatusCode::PARTIAL_CONTENT, range.start..end)
            }
        };
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(range.end - range.start));
        let body = UpstreamBody { registry: Arc::clone(self), left: range, _under_way: under_way };
        Ok(Answer { status, headers, body, via: Via::Anonymous })
    }
}

// === impl Ask, Answer, UpstreamBody ===

impl Ask {
    pub fn blob(_: Method, _: &RepoName, _: &Digest, _: Instant) -> Self {
        Self { part: None }
    }

    #[must_use]
    pub fn with_right(self, _: Right) -> Self {
        self
    }

    #[must_use]
    pub fn with_part(self, first: u64, last: Option<u64>, _: Option<&str>) -> Self {
        Self { part: Some((Some(first), last)) }
    }

    #[must_use]
    pub fn with_suffix(self, bytes: u64) -> Self {
        Self { part: Some((None, Some(bytes))) }
    }
}

impl Answer {
    pub fn part(&self) -> Option<ContentRange> {
        if self.status == StatusCode::PARTIAL_CONTENT { ContentRange::of(&self.headers) } else { None }
    }
}

impl UpstreamBody {
    pub async fn frame(&mut self) -> Option<Result<Frame<Bytes>, UpstreamError>> {
        steps(thread_rng().gen_range(0..3)).await;
        if self.left.is_empty() {
            return None;
        }
        if self.registry.is_away(false) || self.registry.draws(|script| script.breaks) {
            self.left.end = self.left.start;
            return Some(Err(self.registry.error(Fault::Timeout(Phase::Body))));
        }
        let stalls_at = self.registry.script.lock().stalls_at.filter(|_| !*self.registry.released.borrow());
        if stalls_at == Some(self.left.start) {
            // The sender is the registry's, which is held here.
            let _ = self.registry.released.subscribe().wait_for(|released| *released).await;
        }
        let stop = stalls_at.filter(|at| *at > self.left.start).map_or(self.left.end, |at| at.min(self.left.end));
        let most = FRAME.min(stop - self.left.start);
        // Often all that there is.
        let bytes = if thread_rng().gen_bool(0.5) { most } else { thread_rng().gen_range(1..=most) };
        let piece = self.left.start..self.left.start + bytes;
        self.left.start = piece.end;
        self.registry.sent.lock().bytes += piece.end - piece.start;
        Some(Ok(Frame::data(content(&piece))))
    }
}

// === impl UnderWay ===

impl UnderWay {
    fn new(registry: &Arc<Registry>) -> Self {
        let mut sent = registry.sent.lock();
        sent.asked += 1;
        sent.open += 1;
        sent.peak = sent.peak.max(sent.open);
        drop(sent);
        Self(Arc::clone(registry))
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.sent.lock().open -= 1;
    }
}
