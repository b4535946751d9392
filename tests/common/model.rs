//! What was acknowledged to clients, and what an answer may therefore say: the memory of tests that kill and damage.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use ocistern::oci::Digest;
use parking_lot::Mutex;

use super::client::Got;
use super::upstream::Upstream;

/// Name of a repository, and a tag in it.
pub type TagName = (String, String);

/// How a tag's values change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moves {
    /// Only by pushes and deletes through ocistern: an old value is never served again.
    Through,
    /// Upstream, behind ocistern's back, which asks at every request; requests that wait for one question share its
    /// answer, and one that takes too long is answered with what is known.
    Behind,
}

/// Everything that was acknowledged so far.
#[derive(Debug, Default)]
pub struct Model(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    tags: BTreeMap<TagName, History>,
    /// With the time of the acknowledgement.
    pushed: BTreeMap<(String, Digest), SystemTime>,
    /// Changes of tags.
    changes: BTreeMap<TagName, Doing>,
    /// Deletes by digest.
    deletes: BTreeMap<(String, Digest), Doing>,
    wrong: Vec<String>,
    answers: u64,
}

#[derive(Debug)]
struct History {
    moves: Moves,
    values: Vec<Value>,
}

#[derive(Debug)]
struct Value {
    /// None: there is no such tag.
    digest: Option<Digest>,
    /// When a later value was acknowledged.
    superseded: Option<Instant>,
    /// When a client first got it.
    seen: Option<Instant>,
}

/// When something was done: each time its begin, and its end if that is known.
#[derive(Debug, Default)]
struct Doing(Vec<(SystemTime, Option<SystemTime>)>);

/// How long an answer that is shared may be older than the request.
const SHARED: Duration = Duration::from_secs(2);

impl Model {
    /// A tag is about to get another value.
    pub fn begin(&self, tag: &TagName, moves: Moves, digest: Option<Digest>) {
        let mut state = self.0.lock();
        let history = state.tags.entry(tag.clone()).or_insert_with(|| History { moves, values: Vec::new() });
        history.values.push(Value { digest, superseded: None, seen: None });
        state.changes.entry(tag.clone()).or_default().begin();
    }

    /// The change of it that began last was acknowledged.
    pub fn end(&self, tag: &TagName) {
        let mut state = self.0.lock();
        state.tags.get_mut(tag).unwrap().supersede();
        state.changes.get_mut(tag).unwrap().end();
    }

    /// A push of this content was acknowledged.
    pub fn pushed(&self, repo: &str, digest: Digest) {
        self.0.lock().pushed.insert((repo.to_owned(), digest), super::clock::wall());
    }

    /// A delete of it is about to be asked for.
    pub fn deleting(&self, repo: &str, digest: Digest) {
        let (mut state, named) = (self.0.lock(), (repo.to_owned(), digest));
        state.pushed.remove(&named);
        state.deletes.entry(named).or_default().begin();
    }

    /// That delete was answered.
    pub fn deleted(&self, repo: &str, digest: Digest) {
        self.0.lock().deletes.get_mut(&(repo.to_owned(), digest)).unwrap().end();
    }

    /// Whether a tag's record, or a link, may be gone or another one at the time `by`, although it had been published: because
    /// of something that was asked for by then and had not ended when it was published. Blobs are not deleted.
    pub fn may_be_gone(&self, file: &Path, content: &[u8], published: SystemTime, by: SystemTime) -> bool {
        let state = self.0.lock();
        let since = |doing: &Doing| doing.between(published, by);
        let Some((repo, kind, name)) = reference(file) else { return false };
        let deleted = |digest: &Digest| state.deletes.get(&(repo.clone(), *digest)).is_some_and(since);
        if kind == "_links" {
            return name.parse().is_ok_and(|digest| deleted(&digest));
        }
        let content = String::from_utf8_lossy(content);
        let mut of_repo = state.deletes.keys().filter(|(of, digest)| *of == repo && content.contains(&digest.hex()));
        state.changes.get(&(repo.clone(), name)).is_some_and(since) || of_repo.any(|(_, digest)| deleted(digest))
    }

    /// What was pushed and acknowledged, and not deleted since: repository, digest, and when it was acknowledged last.
    pub fn acknowledged(&self) -> Vec<(String, Digest, SystemTime)> {
        self.0.lock().pushed.iter().map(|((repo, digest), at)| (repo.clone(), *digest, *at)).collect()
    }

    /// Something is wrong.
    pub fn wrong(&self, what: String) {
        self.0.lock().wrong.push(what);
    }

    /// What was wrong since the last call.
    pub fn take_wrong(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().wrong)
    }

    /// How many answers were judged.
    pub fn answers(&self) -> u64 {
        self.0.lock().answers
    }

    /// Judges an answer about content by digest, asked for whole.
    pub fn judge(&self, what: &str, digest: &Digest, got: &Got) {
        let mut state = self.0.lock();
        state.answers += 1;
        if got.complete() && got.digest != *digest {
            state.wrong.push(format!("{what}: a complete answer with other bytes: {}", got.summary()));
        }
    }

    /// Judges an answer about a tag that was asked for at that time, while upstream was there.
    pub fn judge_tag(&self, tag: &TagName, asked: Instant, got: &Got) {
        let now = Instant::now();
        let mut state = self.0.lock();
        state.answers += 1;
        let Some(history) = state.tags.get_mut(tag) else { return };
        let outdated = history.moves == Moves::Behind && got.header("cache-status").contains("stale");
        let means = if got.complete() { Some(Some(got.digest)) } else { (got.status == 404).then_some(None) };
        let wrong = means.is_some_and(|digest| !history.allows(digest, asked, outdated, now));
        if wrong {
            let history = format!("{history:?}");
            state.wrong.push(format!(
                "{tag:?}: neither this nor that tag: {} {} of {history}",
                got.digest,
                got.summary()
            ));
        }
    }

    /// Upstream's word on every tag, after whoever was changing it is dead. Nothing that is served from here on may
    /// differ, except that what is asked at every request may be older while upstream cannot be asked.
    pub fn settle(&self, upstream: &Upstream) {
        let mut state = self.0.lock();
        let State { changes, deletes, .. } = &mut *state;
        changes.values_mut().chain(deletes.values_mut()).for_each(Doing::settle);
        for ((repo, tag), history) in &mut state.tags {
            let truth = upstream.registry(|registry| registry.repos.get(repo)?.tags.get(tag).copied());
            if history.values.last().is_none_or(|last| last.digest != truth) {
                history.values.push(Value { digest: truth, superseded: None, seen: None });
            }
            history.supersede();
        }
    }

    /// Whether an answer about a tag, given while upstream cannot be asked, is right. What a client had got before `kept`
    /// no power cut has taken.
    pub fn judge_alone(&self, tag: &TagName, got: &Got, kept: Option<Instant>) {
        let mut state = self.0.lock();
        state.answers += 1;
        if !got.complete() {
            return;
        }
        let history = &state.tags[tag];
        let right = match history.moves {
            Moves::Through => history.values.last().is_some_and(|last| last.digest == Some(got.digest)),
            Moves::Behind => {
                let first = history.values.iter().rposition(|value| value.seen.is_some_and(|at| Some(at) < kept));
                history.values[first.unwrap_or(0)..].iter().any(|value| value.digest == Some(got.digest))
            }
        };
        if !right {
            let history = format!("{history:?}");
            state.wrong.push(format!(
                "{tag:?}: a wrong tag with upstream away: {} {} of {history}",
                got.digest,
                got.summary()
            ));
        }
    }

    /// A power cut may have taken what clients had got since `kept`: they may get what was there before once more.
    pub fn forget_seen_since(&self, kept: Option<Instant>) {
        for history in self.0.lock().tags.values_mut() {
            for value in &mut history.values {
                value.seen = value.seen.filter(|at| Some(*at) < kept);
            }
        }
    }

    /// Of what was pushed and acknowledged, what upstream does not have.
    pub fn missing_upstream(&self, upstream: &Upstream) -> Vec<String> {
        let pushed = self.acknowledged();
        let there = |repo: &str, digest: &Digest| {
            upstream.registry(|registry| {
                let repo = registry.repos.get(repo);
                repo.is_some_and(|repo| repo.blobs.contains_key(digest) || repo.manifests.contains_key(digest))
            })
        };
        let missing = pushed.into_iter().filter(|(repo, digest, _)| !there(repo, digest));
        missing.map(|(repo, digest, _)| format!("{repo} {digest}")).collect()
    }

    /// Every tag that was ever spoken of.
    pub fn tags(&self) -> Vec<TagName> {
        self.0.lock().tags.keys().cloned().collect()
    }
}

impl Doing {
    fn begin(&mut self) {
        self.0.push((super::clock::wall(), None));
    }

    /// One that began has ended: of several under way it is taken for the last, so that the time of all is covered until all
    /// have. One that was settled meanwhile ends again.
    fn end(&mut self) {
        let open = self.0.iter().rposition(|(_, ended)| ended.is_none());
        let ended = open.unwrap_or(self.0.len() - 1);
        self.0[ended].1 = Some(super::clock::wall());
    }

    /// Nobody does it any more. Only the last time counts from now on.
    fn settle(&mut self) {
        let last = self.0.last().map(|(begun, _)| *begun);
        let ended = self.0.iter().map(|(_, ended)| ended.unwrap_or_else(super::clock::wall)).max();
        self.0 = last.zip(ended).map(|(begun, ended)| (begun, Some(ended))).into_iter().collect();
    }

    /// Whether it had begun by then, and was still being done when `published`, or later. What was asked of upstream before
    /// its end may be written down after it.
    fn between(&self, published: SystemTime, by: SystemTime) -> bool {
        self.0.iter().any(|(begun, ended)| *begun <= by && ended.is_none_or(|ended| ended + SHARED >= published))
    }
}

/// Repository, kind (`_tags` or `_links`) and name of a file below `refs/UPSTREAM/`; the name of a link as a digest.
fn reference(file: &Path) -> Option<(String, &'static str, String)> {
    let parts: Vec<&str> = file.iter().skip(2).map(|part| part.to_str()).collect::<Option<_>>()?;
    let (at, kind) = parts.iter().enumerate().find_map(|(at, part)| {
        let kind = ["_tags", "_links"].into_iter().find(|kind| kind == part)?;
        Some((at, kind))
    })?;
    Some((parts[..at].join("/"), kind, parts[at + 1..].join(":")))
}

impl History {
    fn supersede(&mut self) {
        let now = Instant::now();
        let (_, before) = self.values.split_last_mut().unwrap();
        for value in before {
            value.superseded.get_or_insert(now);
        }
        // What nobody can be told any more.
        let old = self.values.len().saturating_sub(50);
        self.values.drain(..old);
    }

    fn allows(&mut self, digest: Option<Digest>, asked: Instant, outdated: bool, now: Instant) -> bool {
        let shared = if self.moves == Moves::Behind { SHARED } else { Duration::ZERO };
        let legal = |value: &Value| outdated || value.superseded.is_none_or(|at| at + shared >= asked);
        let found = self.values.iter_mut().rev().find(|value| value.digest == digest && legal(value));
        if let Some(value) = found {
            value.seen.get_or_insert(now);
            return true;
        }
        false
    }
}
