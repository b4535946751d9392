//! What is suspect, in memory: refs that a write upstream may have changed, and answers that are too old to be kept.
//!
//! Pure: the files are the business of `marks`, and this is what a look-up sees. All times are moments of one timeline,
//! so a clock that is set back changes no order. A repository's entry is read from its
//! files at the first look; from then on it is always ahead of them.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::SystemTime;

use foldhash::HashMap;
use parking_lot::{Mutex, MutexGuard, RwLock};
use tokio::time::Instant;

use super::gated::Gated;
use crate::clock::Timeline;
use crate::oci::{RepoName, Tag, UpstreamName};

/// Repositories that are remembered. When there are more, those that nobody is at are read from their files again.
const REPOSITORIES: usize = 8192;

/// All repositories that were looked at.
#[derive(Debug)]
pub(super) struct Table {
    entries: RwLock<Entries>,
    timeline: Arc<Timeline>,
}

#[derive(Debug, Default)]
struct Entries {
    by_upstream: HashMap<UpstreamName, HashMap<RepoName, Arc<Repository>>>,
    count: usize,
    /// How often entries were dropped.
    drops: u64,
    /// No entry that was dropped knew of anything later than this.
    floor: Option<SystemTime>,
}

/// What is suspect in one repository.
#[derive(Debug)]
pub(super) struct Repository {
    timeline: Arc<Timeline>,
    /// Held while a ref of this repository is written if its answer is recent enough, and while marks and what they
    /// stand for are written or removed: whoever has raised a floor or put down a mark and then takes this, meets no
    /// older answer that is on its way into a file. Taken before the store's other locks. Blocking pool only.
    gate: Gated<()>,
    /// Held for look-ups only.
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    tags: HashMap<Tag, Mark>,
    /// Of every tag.
    all: Option<Mark>,
    /// Writes that upstream has not answered.
    writes: Vec<Write>,
    next: u64,
    /// What writes might have changed that were left by a dead process and have ended since: the files do not say so yet.
    settled: Vec<Scope>,
    /// Answers to questions that were not put later than this are not kept: of tags and links,
    content: Option<SystemTime>,
    /// and of lists.
    lists: Option<SystemTime>,
}

/// Something is suspect until a question that was put later than this is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mark {
    pub(super) since: SystemTime,
    /// Since when, as its file says; no later mark has it too. The two differ where the file is from before the clock was
    /// set back.
    pub(super) name: SystemTime,
    /// There is a file.
    pub(super) kept: bool,
}

/// What a write may change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Scope {
    /// These tags.
    Tags(Vec<Tag>),
    /// Any tag of the repository.
    Repository,
}

#[derive(Debug)]
struct Write {
    number: u64,
    scope: Scope,
    /// The marks that were there when it began, in the order of the scope.
    before: Vec<Option<Mark>>,
    /// Another write of the same was there while this one was: nobody knows which upstream took last.
    overlapped: bool,
    /// It was left by a dead process, and nobody waits for its answer: upstream may take it until then. By the clock that
    /// does not jump.
    until: Option<Instant>,
}

/// What a repository's files say.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) tags: HashMap<Tag, Mark>,
    /// Of every tag.
    pub(super) all: Option<Mark>,
    /// What writes may change whose end nobody has put down.
    pub(super) open: Vec<Scope>,
}

/// What is known of a tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Judgement {
    /// Nothing speaks against it.
    Trusted,
    /// It is suspect.
    Suspect(SystemTime),
    /// It is, unless it was confirmed under this mark.
    UnlessConfirmed(Mark),
}

/// What marks are to be after a write was withdrawn.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Withdrawn {
    /// As they are.
    Nothing,
    /// Without these, if they have files.
    Tags(Vec<Tag>),
    /// The repository's as it was.
    Repository(Option<Mark>),
}

// === impl Mark ===

impl Mark {
    pub(super) const fn new(since: SystemTime, kept: bool) -> Self {
        Self { since, name: since, kept }
    }
}

// === impl Judgement ===

impl Judgement {
    /// Since when the tag is suspect; none: it is not. `is_confirmed` tells whether it was confirmed under the mark of this
    /// name.
    pub(super) fn since(self, is_confirmed: impl FnOnce(SystemTime) -> bool) -> Option<SystemTime> {
        match self {
            Self::Trusted => None,
            Self::Suspect(since) => Some(since),
            Self::UnlessConfirmed(mark) => (!is_confirmed(mark.name)).then_some(mark.since),
        }
    }
}

// === impl Table ===

impl Table {
    /// Of nothing yet.
    pub(super) fn new(timeline: Arc<Timeline>) -> Self {
        Self { entries: RwLock::default(), timeline }
    }

    /// A repository that was looked at before.
    pub(super) fn get(&self, up: &UpstreamName, repo: &RepoName) -> Option<Arc<Repository>> {
        self.entries.read().by_upstream.get(up)?.get(repo).cloned()
    }

    /// To be taken before the files are read, and given to [`Table::insert`] with what was found.
    pub(super) fn drops(&self) -> u64 {
        self.entries.read().drops
    }

    /// Puts in what the files say, unless somebody else has; what is open there upstream may take until then. None: read
    /// them again, it may be out of date.
    pub(super) fn insert(
        &self,
        up: &UpstreamName,
        repo: &RepoName,
        drops: u64,
        found: Found,
        until: Instant,
    ) -> Option<Arc<Repository>> {
        let mut entries = self.entries.write();
        if let Some(found) = entries.by_upstream.get(up).and_then(|repositories| repositories.get(repo)) {
            return Some(found.clone());
        }
        if entries.drops != drops {
            return None;
        }
        if entries.count >= REPOSITORIES {
            entries.drop_idle();
        }
        let (floor, Found { mut tags, mut all, open }) = (entries.floor, found);
        let now = self.timeline.moment();
        for mark in tags.values_mut().chain(&mut all) {
            // In the future: it was made before the clock was set back. It counts from now on, or nothing could end it.
            mark.since = now.min(mark.since);
        }
        let mut state = State { tags, all, content: floor, lists: floor, ..State::default() };
        for scope in open {
            state.write(scope, Vec::new(), Some(until));
        }
        let repository =
            Arc::new(Repository { timeline: self.timeline.clone(), gate: Gated::default(), state: Mutex::new(state) });
        entries.by_upstream.entry(up.clone()).or_default().insert(repo.clone(), repository.clone());
        entries.count += 1;
        Some(repository)
    }
}

// === impl Entries ===

impl Entries {
    /// Drops what nobody holds. Writes hold theirs.
    fn drop_idle(&mut self) {
        let (mut floor, mut count) = (self.floor, 0);
        for repositories in self.by_upstream.values_mut() {
            repositories.retain(|_, repository| {
                let busy = Arc::strong_count(repository) > 1;
                if !busy {
                    floor = floor.max(repository.state.lock().latest());
                }
                busy
            });
            count += repositories.len();
        }
        (self.floor, self.count) = (floor, count);
        self.drops += 1;
    }
}

// === impl Repository ===

impl Repository {
    /// See the field. Blocks.
    pub(super) fn gate(&self) -> MutexGuard<'_, ()> {
        self.gate.lock()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        let mut state = self.state.lock();
        state.settle(&self.timeline);
        state
    }

    /// Whether a tag is suspect.
    pub(super) fn judge(&self, tag: &Tag) -> Judgement {
        self.state().judge(tag)
    }

    /// Whether an answer about this tag is too old to be kept, or about a tag that is being written.
    pub(super) fn refuses_tag(&self, tag: &Tag, asked_at: SystemTime) -> bool {
        let state = self.state();
        let mark = state.tags.get(tag).map(|mark| mark.since);
        let all = state.all.map(|mark| mark.since);
        state.is_written(tag) || [mark, all, state.content].into_iter().flatten().any(|floor| asked_at <= floor)
    }

    /// Whether an answer that proves content is too old to be kept.
    pub(super) fn refuses_link(&self, asked_at: SystemTime) -> bool {
        self.state().content.is_some_and(|floor| asked_at <= floor)
    }

    /// Whether a list is too old to be kept, or the repository is being written.
    pub(super) fn refuses_list(&self, asked_at: SystemTime) -> bool {
        let state = self.state();
        !state.writes.is_empty() || state.lists.is_some_and(|floor| asked_at <= floor)
    }

    /// A write begins: what it may change is suspect from now on.
    pub(super) fn begin(&self, scope: Scope) -> u64 {
        let now = self.timeline.moment();
        let mut state = self.state();
        state.lists = Some(now);
        let mark = |before: Option<Mark>| Mark::new(now, before.is_some_and(|mark| mark.kept));
        let before = match &scope {
            Scope::Tags(tags) => tags
                .iter()
                .map(|tag| {
                    let before = state.tags.get(tag).copied();
                    state.tags.insert(tag.clone(), mark(before));
                    before
                })
                .collect(),
            Scope::Repository => {
                state.content = Some(now);
                let before = state.all;
                state.all = Some(mark(before));
                vec![before]
            }
        };
        state.write(scope, before, None)
    }

    /// A write has ended, and what it did is not known: what it may have changed is suspect since now. Returns a time
    /// for what the caller knows by itself: it counts, later answers count more, and earlier ones do not. None: another
    /// write was there.
    pub(super) fn end(&self, number: u64) -> Option<SystemTime> {
        let now = self.timeline.moment();
        let mut state = self.state();
        let write = state.take(number)?;
        state.end(&write.scope, now);
        (!write.overlapped).then(|| self.timeline.moment())
    }

    /// A write has ended without changing anything but what the store knows by now: what was not suspect before is not.
    pub(super) fn withdraw(&self, number: u64) -> Withdrawn {
        let now = self.timeline.moment();
        let mut state = self.state();
        if state.writes.iter().any(|write| write.number == number && write.overlapped) {
            drop(state);
            self.end(number);
            return Withdrawn::Nothing;
        }
        let Some(write) = state.take(number) else { return Withdrawn::Nothing };
        state.lists = Some(now);
        match write.scope {
            Scope::Tags(tags) => {
                let mut gone = Vec::new();
                for (tag, before) in tags.into_iter().zip(write.before) {
                    let Some(mark) = state.tags.get_mut(&tag) else { continue };
                    if let Some(before) = before {
                        // Its file may be a new one; that says the same.
                        mark.since = before.since;
                        continue;
                    }
                    if mark.kept {
                        gone.push(tag.clone());
                    }
                    state.tags.remove(&tag);
                }
                Withdrawn::Tags(gone)
            }
            Scope::Repository => {
                state.content = Some(now);
                let before = write.before.into_iter().flatten().next();
                let kept = state.all.is_some_and(|mark| mark.kept);
                state.all = before.map(|before| Mark { kept, ..before });
                if kept { Withdrawn::Repository(state.all) } else { Withdrawn::Nothing }
            }
        }
    }

    /// The mark of a tag.
    pub(super) fn mark(&self, tag: &Tag) -> Option<Mark> {
        self.state().tags.get(tag).copied()
    }

    /// The mark of the whole repository, and whether a write that may change all of it has not ended.
    pub(super) fn mark_of_all(&self) -> Option<(Mark, bool)> {
        let state = self.state();
        let open = state.writes.iter().any(|write| write.scope == Scope::Repository);
        state.all.map(|mark| (mark, open))
    }

    /// Whether the mark of a tag has a file.
    pub(super) fn set_kept(&self, tag: &Tag, kept: bool) {
        if let Some(mark) = self.state().tags.get_mut(tag) {
            mark.kept = kept;
        }
    }

    /// Whether the mark of the whole repository has a file.
    pub(super) fn set_all_kept(&self, kept: bool) {
        if let Some(mark) = &mut self.state().all {
            mark.kept = kept;
        }
    }

    /// Whether a write is under way that may change this tag.
    pub(super) fn is_written(&self, tag: &Tag) -> bool {
        self.state().is_written(tag)
    }

    /// What the files call open and is not any more.
    pub(super) fn take_settled(&self) -> Vec<Scope> {
        std::mem::take(&mut self.state().settled)
    }

    /// A question about the tag that was put then is answered. True if that ends its mark.
    pub(super) fn confirm(&self, tag: &Tag, asked_at: SystemTime) -> bool {
        let mut state = self.state();
        let ends = !state.is_written(tag) && state.tags.get(tag).is_some_and(|mark| mark.since < asked_at);
        if ends {
            state.tags.remove(tag);
        }
        ends
    }

    /// Older answers do not bring back what is removed after this.
    pub(super) fn raise(&self) {
        let mut state = self.state();
        let now = Some(self.timeline.moment());
        (state.content, state.lists) = (now, now);
    }

    /// Older lists do not come back.
    pub(super) fn raise_lists(&self) {
        self.state().lists = Some(self.timeline.moment());
    }

    /// Nothing is there any more that could be suspect, but what is being written: upstream may do that yet. Returns the
    /// tags whose marks have files that are to go, and whether that of the whole repository is.
    pub(super) fn emptied(&self) -> (Vec<Tag>, bool) {
        let mut state = self.state();
        let now = Some(self.timeline.moment());
        (state.content, state.lists) = (now, now);
        let State { tags, all, writes, .. } = &mut *state;
        let (mut named, mut whole) = (HashSet::new(), false);
        for write in writes {
            write.before.fill(None);
            match &write.scope {
                Scope::Tags(tags) => named.extend(tags),
                Scope::Repository => whole = true,
            }
        }
        let gone = tags.extract_if(|tag, _| !named.contains(tag)).filter(|(_, mark)| mark.kept);
        let gone = gone.map(|(tag, _)| tag).collect();
        let all = if whole { None } else { all.take() };
        (gone, all.is_some_and(|mark| mark.kept))
    }
}

// === impl State ===

impl State {
    fn judge(&self, tag: &Tag) -> Judgement {
        if let Some(mark) = self.tags.get(tag) {
            return Judgement::Suspect(mark.since);
        }
        match self.all {
            Some(mark) if self.is_written(tag) => Judgement::Suspect(mark.since),
            Some(mark) => Judgement::UnlessConfirmed(mark),
            None => Judgement::Trusted,
        }
    }

    fn is_written(&self, tag: &Tag) -> bool {
        self.writes.iter().any(|write| write.scope.covers(tag))
    }

    /// Puts down a write; its number.
    fn write(&mut self, scope: Scope, before: Vec<Option<Mark>>, until: Option<Instant>) -> u64 {
        let mut overlapped = false;
        for other in self.writes.iter_mut().filter(|other| other.scope.meets(&scope)) {
            (other.overlapped, overlapped) = (true, true);
        }
        let number = self.next;
        self.next += 1;
        self.writes.push(Write { number, scope, before, overlapped, until });
        number
    }

    /// A write ends now, and what it did is not known.
    fn end(&mut self, scope: &Scope, now: SystemTime) {
        self.lists = Some(now);
        match scope {
            Scope::Tags(tags) => {
                for tag in tags {
                    if let Some(mark) = self.tags.get_mut(tag) {
                        mark.since = now;
                    }
                }
            }
            Scope::Repository => {
                self.content = Some(now);
                let kept = self.all.is_some_and(|mark| mark.kept);
                self.all = Some(Mark::new(now, kept));
            }
        }
    }

    /// Ends writes of a dead process whose time is over. They count until somebody looks: what was asked before that may
    /// be too old, and is asked once more.
    fn settle(&mut self, timeline: &Timeline) {
        if self.writes.iter().all(|write| write.until.is_none()) {
            return;
        }
        let (instant, now) = (Instant::now(), timeline.moment());
        let over = |write: &mut Write| write.until.is_some_and(|until| until <= instant);
        let settled: Vec<Scope> = self.writes.extract_if(.., over).map(|write| write.scope).collect();
        for scope in &settled {
            self.end(scope, now);
        }
        self.settled.extend(settled);
    }

    fn take(&mut self, number: u64) -> Option<Write> {
        let at = self.writes.iter().position(|write| write.number == number)?;
        Some(self.writes.swap_remove(at))
    }

    /// The latest time that anything here speaks of.
    fn latest(&self) -> Option<SystemTime> {
        let marks = self.tags.values().chain(&self.all).map(|mark| mark.since);
        marks.chain(self.content).chain(self.lists).max()
    }
}

// === impl Scope ===

impl Scope {
    /// Whether it says something about this tag.
    pub(super) fn covers(&self, tag: &Tag) -> bool {
        match self {
            Self::Tags(tags) => tags.contains(tag),
            Self::Repository => true,
        }
    }

    fn meets(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Tags(tags), other) | (other, Self::Tags(tags)) => tags.iter().any(|tag| other.covers(tag)),
            (Self::Repository, Self::Repository) => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::clock::Clock as _;
    use crate::clock::twin::{Twin, system, wall};

    fn up() -> UpstreamName {
        "u".parse().unwrap()
    }

    fn repo(n: usize) -> RepoName {
        format!("r{n}").parse().unwrap()
    }

    fn load(table: &Table, n: usize) -> Arc<Repository> {
        let drops = table.drops();
        table
            .get(&up(), &repo(n))
            .or_else(|| table.insert(&up(), &repo(n), drops, Found::default(), Instant::now()))
            .unwrap()
    }

    #[test]
    fn the_table_is_bounded_and_what_it_drops_still_refuses() {
        let table = Table::new(Arc::new(Timeline::new(system())));
        let tag: Tag = "t".parse().unwrap();
        let held = load(&table, 0);
        let write = held.begin(Scope::Tags(vec![tag.clone()]));
        let asked_at = wall();
        load(&table, 1).raise();
        for n in 0..3 * REPOSITORIES {
            load(&table, n);
            assert!(table.entries.read().count <= REPOSITORIES);
        }
        assert!(table.entries.read().drops > 0);
        assert!(Arc::ptr_eq(&load(&table, 0), &held), "a write keeps its entry");
        let again = load(&table, 1);
        assert!(again.refuses_link(asked_at) && again.refuses_tag(&tag, asked_at) && again.refuses_list(asked_at));
        assert!(!again.refuses_link(wall()) && !again.refuses_tag(&tag, wall()));
        let entries = table.entries.read();
        let all = entries.by_upstream.values().map(HashMap::len).sum::<usize>();
        assert_eq!(all, entries.count, "the count is right");
        drop(entries);
        assert!(held.end(write).is_some());
    }

    #[test]
    fn what_was_read_before_entries_were_dropped_is_read_again() {
        let table = Table::new(Arc::new(Timeline::new(system())));
        let drops = table.drops();
        for n in 1..REPOSITORIES + 2 {
            load(&table, n);
        }
        let mark = Mark::new(wall(), true);
        let found = || Found { all: Some(mark), ..Found::default() };
        assert!(table.insert(&up(), &repo(0), drops, found(), Instant::now()).is_none());
        let known = load(&table, REPOSITORIES + 1);
        let found = table.insert(&up(), &repo(REPOSITORIES + 1), drops, found(), Instant::now()).unwrap();
        assert!(Arc::ptr_eq(&known, &found), "what is in memory is ahead of the files");
        assert_eq!(found.judge(&"t".parse().unwrap()), Judgement::Trusted);
    }

    #[test]
    fn a_clock_that_was_set_back_holds_nothing_up() {
        let clock = Twin::new();
        let timeline = Arc::new(Timeline::new(clock.clone()));
        let table = Table::new(timeline.clone());
        let future = clock.now() + Duration::from_hours(1000);
        let tag: Tag = "t".parse().unwrap();
        let mark = Mark::new(future, false);
        let found = Found { tags: HashMap::from_iter([(tag.clone(), mark)]), all: Some(mark), open: Vec::new() };
        let before = timeline.moment();
        let repository = table.insert(&up(), &repo(0), 0, found, Instant::now()).unwrap();
        assert!(repository.refuses_tag(&tag, before), "it counts from now on");
        clock.forward(Duration::from_hours(1000));
        repository.raise();
        let before = timeline.moment();
        repository.raise();
        clock.back(Duration::from_hours(1000));
        assert!(repository.refuses_tag(&tag, before) && repository.refuses_link(before));
        let asked_at = timeline.moment();
        assert!(!repository.refuses_tag(&tag, asked_at) && !repository.refuses_link(asked_at));
        assert!(!repository.refuses_list(asked_at));
        assert!(repository.confirm(&tag, asked_at));
    }

    #[test]
    fn scopes_meet_where_they_share_a_tag() {
        let tags = |names: &[&str]| Scope::Tags(names.iter().map(|name| name.parse().unwrap()).collect());
        assert!(tags(&["a", "b"]).meets(&tags(&["b", "c"])));
        assert!(!tags(&["a"]).meets(&tags(&["b"])) && !tags(&[]).meets(&Scope::Repository));
        assert!(tags(&["a"]).meets(&Scope::Repository) && Scope::Repository.meets(&tags(&["a"])));
        assert!(Scope::Repository.meets(&Scope::Repository));
    }
}
