//! What was asked of sealed upstreams and is not here: a bounded table, in `state/missed` for the next run, and what can be
//! done about it: names of images that the other side of the gap can fetch.
//!
//! Anybody can ask for names that do not exist. Where there is no room the oldest name goes of the asker who has the most,
//! so that who makes names up pushes out their own.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use jiff::Timestamp;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::gated::Gated;
use super::inventory::image_name;
use super::layout::{self, STATE};
use super::record::{Found, Records};
use super::refs::{Link, LinkKind, TagRecord};
use super::survey::{Contents, Survey};
use super::{Inner, Store, StoreError};
use crate::clock::timestamp;
use crate::oci::{Digest, RepoName, Tag, UpstreamName};

/// Names that are remembered.
const NAMES: usize = 4096;
/// Bytes of all of them.
const BYTES: usize = 512 << 10;

/// What was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Sought {
    /// What a tag means.
    Tag(Tag),
    /// A manifest.
    Manifest(Digest),
    /// A blob.
    Blob(Digest),
}

/// Something that is not here, as who fetches it calls it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MissedImage {
    /// `UPSTREAM/REPOSITORY:TAG`: the image of which it is a part, where that is known; else `UPSTREAM/REPOSITORY@DIGEST`.
    pub reference: String,
    /// What was asked for; of several things the one that is the most.
    pub kind: MissedKind,
    /// How often.
    pub asked: u64,
    /// When first.
    pub first_asked: Timestamp,
    /// When last.
    pub last_asked: Timestamp,
    /// The manifests and blobs that were asked for by digest.
    pub missing: Vec<Digest>,
    /// Of these manifests, the platforms for which they are, where an index says so.
    pub platforms: Vec<String>,
}

/// As what something was asked for, the least first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MissedKind {
    /// A tag under which signatures and the like of an image would be; most images have none.
    Referrer,
    /// A configuration or layer.
    Blob,
    /// A manifest by its digest: mostly a platform of an index.
    Manifest,
    /// A tag.
    Tag,
}

/// What was asked for and is not here.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Missed {
    /// In the order of their references.
    pub missed: Vec<MissedImage>,
    /// How often something was asked for that is not in the list any more, since there was no room for all.
    pub forgotten: u64,
}

/// The names of a store.
#[derive(Debug, Default)]
pub(super) struct MissedNames {
    table: Gated<Names>,
    /// Something was asked for since it was put down.
    changed: AtomicBool,
    /// It could not be put down last time.
    failing: AtomicBool,
    /// Held by who puts it down: an older state must not come behind a newer one.
    writing: Mutex<()>,
}

#[derive(Debug, Default)]
struct Names {
    known: HashMap<Name, Times>,
    /// How many each asker has.
    of: HashMap<u64, usize>,
    bytes: usize,
    forgotten: u64,
    /// What an earlier run has put down could not be read yet.
    unread: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
struct Name {
    upstream: UpstreamName,
    repository: RepoName,
    sought: Sought,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Times {
    asked: u64,
    first: Timestamp,
    last: Timestamp,
    /// Who: nothing but a number that is the same for the same one.
    by: u64,
}

/// As it is put down.
#[derive(Debug, Default, Serialize, Deserialize)]
struct PutDown {
    names: Vec<(Name, Times)>,
    forgotten: u64,
}

// === impl Sought ===

impl Sought {
    /// What is asked for by digest.
    const fn digest(&self) -> Option<&Digest> {
        match self {
            Self::Tag(_) => None,
            Self::Manifest(digest) | Self::Blob(digest) => Some(digest),
        }
    }

    fn kind(&self) -> MissedKind {
        match self {
            Self::Tag(tag) if is_of_referrers(tag) => MissedKind::Referrer,
            Self::Tag(_) => MissedKind::Tag,
            Self::Manifest(_) => MissedKind::Manifest,
            Self::Blob(_) => MissedKind::Blob,
        }
    }
}

/// Whether clients look under this tag for what refers to an image: `sha256-HEX`, perhaps with an ending such as `.sig`.
fn is_of_referrers(tag: &Tag) -> bool {
    let digits = |rest: &str| rest.bytes().take_while(u8::is_ascii_hexdigit).count();
    let (text, long) = (tag.as_str(), |rest: &str, wanted| digits(rest) == wanted);
    text.strip_prefix("sha256-").is_some_and(|rest| long(rest, 64))
        || text.strip_prefix("sha512-").is_some_and(|rest| long(rest, 128))
}

// === impl Name ===

impl Name {
    fn bytes(&self) -> usize {
        let sought = match &self.sought {
            Sought::Tag(tag) => tag.as_str().len(),
            Sought::Manifest(digest) | Sought::Blob(digest) => digest.hex().len(),
        };
        self.upstream.as_str().len() + self.repository.as_str().len() + sought
    }
}

// === impl Names ===

impl Names {
    fn add(&mut self, name: Name, times: Times) {
        if let Some(known) = self.known.get_mut(&name) {
            known.asked = known.asked.saturating_add(times.asked);
            known.first = known.first.min(times.first);
            known.last = known.last.max(times.last);
            let (owner, held) = (known.by, |by: u64| self.of.get(&by).copied().unwrap_or(0));
            // Whose names are many makes nobody else's go with them.
            if owner != times.by && held(times.by) < held(owner) {
                known.by = times.by;
                self.give_back(owner);
                *self.of.entry(times.by).or_default() += 1;
            }
            return;
        }
        self.bytes += name.bytes();
        *self.of.entry(times.by).or_default() += 1;
        self.known.insert(name, times);
        while self.known.len() > NAMES || self.bytes > BYTES {
            let Some(most) = self.of.values().max().copied() else { return };
            // Of those who have as many, whose name is the oldest.
            let of_most = self.known.iter().filter(|(_, times)| self.of.get(&times.by) == Some(&most));
            let Some(oldest) = of_most.min_by_key(|(_, times)| times.last).map(|(name, _)| name.clone()) else {
                return;
            };
            if let Some(times) = self.known.remove(&oldest) {
                self.bytes -= oldest.bytes();
                self.forgotten = self.forgotten.saturating_add(times.asked);
                self.give_back(times.by);
            }
        }
    }

    /// Takes out what was asked for no more often since; what is taken out.
    fn remove(&mut self, names: Vec<(Name, Times)>, forgotten: u64) -> PutDown {
        let forgotten = forgotten.min(self.forgotten);
        self.forgotten -= forgotten;
        let mut removed = PutDown { names: Vec::new(), forgotten };
        for (name, times) in names {
            if self.known.get(&name).is_some_and(|known| known.asked == times.asked)
                && let Some(times) = self.known.remove(&name)
            {
                self.bytes -= name.bytes();
                self.give_back(times.by);
                removed.names.push((name, times));
            }
        }
        removed
    }

    fn give_back(&mut self, by: u64) {
        if let Some(held) = self.of.get_mut(&by) {
            *held -= 1;
            if *held == 0 {
                self.of.remove(&by);
            }
        }
    }

    fn take_up(&mut self, earlier: PutDown) {
        self.unread = false;
        self.forgotten = self.forgotten.saturating_add(earlier.forgotten);
        for (name, times) in earlier.names {
            self.add(name, times);
        }
    }

    /// Askers by small numbers: what stood for them in this process is nobody's business.
    fn put_down(&self) -> PutDown {
        let mut numbers = HashMap::new();
        let number = |(name, times): (&Name, &Times)| {
            let next = numbers.len() as u64;
            (name.clone(), Times { by: *numbers.entry(times.by).or_insert(next), ..*times })
        };
        PutDown { names: self.known.iter().map(number).collect(), forgotten: self.forgotten }
    }
}

// === impl MissedNames ===

impl MissedNames {
    /// With what an earlier run has put down. Blocks.
    pub(super) fn read(disk: &super::Disk) -> Self {
        let names = Self::default();
        names.table.lock().unread = true;
        let _ = names.read_again(disk);
        names
    }

    /// Takes up what could not be read before.
    ///
    /// # Errors
    /// It still cannot.
    fn read_again(&self, disk: &super::Disk) -> Result<(), StoreError> {
        if !self.table.lock().unread {
            return Ok(());
        }
        let earlier = match Records::look::<PutDown>(disk, &path()) {
            Ok(Found::Record(earlier)) => earlier,
            Ok(Found::Nothing) => PutDown::default(),
            Ok(Found::Damaged) => {
                tracing::warn!("what was asked for and missing before cannot be read, and is forgotten");
                PutDown::default()
            }
            Err(error) => {
                let cause = &error as &dyn std::error::Error;
                tracing::debug!(error = cause, "what was asked for and missing before cannot be read now");
                return Err(error);
            }
        };
        let mut table = self.table.lock();
        // Somebody else may have read it meanwhile.
        if table.unread {
            table.take_up(earlier);
        }
        Ok(())
    }

    /// All names, and how often something was asked for that is not among them any more.
    fn known(&self) -> (Vec<(Name, Times)>, u64) {
        let table = self.table.lock();
        (table.known.iter().map(|(name, times)| (name.clone(), *times)).collect(), table.forgotten)
    }
}

// === impl Store ===

impl Store {
    /// Something was asked for that is not here, and upstream is not to be asked. `by`: a number for who did.
    pub fn note_missed(&self, upstream: &UpstreamName, repository: &RepoName, sought: Sought, by: u64) {
        let now = timestamp(self.0.timeline.now());
        let name = Name { upstream: upstream.clone(), repository: repository.clone(), sought };
        self.0.missed.table.lock().add(name, Times { asked: 1, first: now, last: now, by });
        self.0.missed.changed.store(true, Ordering::Release);
    }

    /// What was asked for and is not here now.
    pub async fn missed(&self) -> Result<Missed, StoreError> {
        let work = |inner: &Arc<Inner>| {
            // What can be told without what an earlier run has put down is told.
            let _ = inner.missed.read_again(&inner.disk);
            let (names, forgotten) = inner.missed.known();
            inner.missed_images(names, forgotten)
        };
        self.blocking(work).await
    }

    /// The same, and none of it is remembered any more; what is asked for meanwhile is.
    ///
    /// # Errors
    /// It could not be read, or not be put down that there is nothing: all is remembered as before.
    pub async fn clear_missed(&self) -> Result<Missed, StoreError> {
        let work = |inner: &Arc<Inner>| {
            let names = &inner.missed;
            names.read_again(&inner.disk)?;
            let (known, forgotten) = names.known();
            let missed = inner.missed_images(known.clone(), forgotten)?;
            let removed = names.table.lock().remove(known, forgotten);
            names.changed.store(true, Ordering::Release);
            if let Err(error) = inner.put_down_missed() {
                names.table.lock().take_up(removed);
                names.changed.store(true, Ordering::Release);
                return Err(error);
            }
            Ok(missed)
        };
        self.blocking(work).await
    }
}

// === impl Inner ===

impl Inner {
    /// Puts down what was asked for since last time, if anything was. Blocks.
    pub(super) fn keep_missed(&self) {
        let outcome = self.put_down_missed();
        let failed = outcome.is_err();
        if let Err(error) = outcome
            && !self.missed.failing.load(Ordering::Relaxed)
        {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(error, "what was asked for and is missing could not be put down; that is tried again");
        }
        self.missed.failing.store(failed, Ordering::Relaxed);
    }

    fn put_down_missed(&self) -> Result<(), StoreError> {
        let names = &self.missed;
        let _alone = names.writing.lock();
        // What cannot be read must not be written over.
        if !names.changed.load(Ordering::Acquire) || names.read_again(&self.disk).is_err() {
            return Ok(());
        }
        names.changed.store(false, Ordering::Release);
        let put_down = names.table.lock().put_down();
        let written = self.records.write(&self.disk, &self.group, &path(), &put_down);
        if written.is_err() {
            names.changed.store(true, Ordering::Release);
        }
        written
    }

    fn missed_images(&self, mut names: Vec<(Name, Times)>, forgotten: u64) -> Result<Missed, StoreError> {
        // Contents are looked at once for each repository.
        names.sort_unstable_by(|(a, _), (b, _)| (&a.upstream, &a.repository).cmp(&(&b.upstream, &b.repository)));
        let mut survey = Survey::new(self);
        let mut images: BTreeMap<String, MissedImage> = BTreeMap::new();
        for of_one in names.chunk_by(|(a, _), (b, _)| (&a.upstream, &a.repository) == (&b.upstream, &b.repository)) {
            let Some((Name { upstream, repository, .. }, _)) = of_one.first() else { continue };
            let mut wholes = None;
            for (Name { sought, .. }, times) in of_one {
                if self.has(upstream, repository, sought)? {
                    continue;
                }
                let (reference, platform) = match sought {
                    Sought::Tag(tag) => (format!("{upstream}/{repository}:{tag}"), None),
                    Sought::Manifest(digest) | Sought::Blob(digest) => {
                        let wholes = match &mut wholes {
                            Some(wholes) => wholes,
                            None => wholes.insert(Wholes::of(&mut survey, upstream, repository)?),
                        };
                        wholes.name(&survey, upstream, repository, digest)
                    }
                };
                let image = images.entry(reference.clone()).or_insert_with(|| MissedImage {
                    reference,
                    kind: sought.kind(),
                    asked: 0,
                    first_asked: times.first,
                    last_asked: times.last,
                    missing: Vec::new(),
                    platforms: Vec::new(),
                });
                image.kind = image.kind.max(sought.kind());
                image.asked = image.asked.saturating_add(times.asked);
                image.first_asked = image.first_asked.min(times.first);
                image.last_asked = image.last_asked.max(times.last);
                image.missing.extend(sought.digest());
                image.platforms.extend(platform);
            }
        }
        for image in images.values_mut() {
            image.missing.sort_unstable();
            image.platforms.sort_unstable();
            image.platforms.dedup();
        }
        Ok(Missed { missed: images.into_values().collect(), forgotten })
    }

    /// Whether it has come since, under this name.
    fn has(&self, up: &UpstreamName, repo: &RepoName, sought: &Sought) -> Result<bool, StoreError> {
        let (digest, kind) = match sought {
            Sought::Manifest(digest) => (*digest, LinkKind::Manifest),
            Sought::Blob(digest) => (*digest, LinkKind::Blob),
            Sought::Tag(tag) => {
                let path = layout::tag(up, repo, tag);
                let Some(record) = Records::look::<TagRecord>(&self.disk, &path)?.record() else { return Ok(false) };
                (record.digest, LinkKind::Manifest)
            }
        };
        Ok(self.is_linked(up, repo, &digest, kind)? && self.stored_len(&digest).is_some())
    }

    /// Whether this repository has it, as this or as more than this.
    pub(super) fn is_linked(
        &self,
        up: &UpstreamName,
        repo: &RepoName,
        digest: &Digest,
        kind: LinkKind,
    ) -> Result<bool, StoreError> {
        let link = Records::look::<Link>(&self.disk, &layout::link(up, repo, digest))?.record();
        Ok(link.is_some_and(|link| link.kind == kind || kind == LinkKind::Blob))
    }
}

/// The images of a repository, and what they lead to.
struct Wholes {
    contents: Contents,
    /// Those that have a tag first.
    roots: Vec<(Option<Tag>, Digest, HashSet<Digest>)>,
}

// === impl Wholes ===

impl Wholes {
    fn of(survey: &mut Survey<'_>, up: &UpstreamName, repo: &RepoName) -> Result<Self, StoreError> {
        let contents = survey.contents(up, repo)?;
        let mut roots = Vec::new();
        for (tag, digest) in contents.roots(survey)? {
            let mut reached = HashSet::new();
            contents.reach(survey, &digest, &mut reached)?;
            roots.push((tag, digest, reached));
        }
        Ok(Self { contents, roots })
    }

    /// The image of which this is a part, and for which platform it is, if that is known.
    fn name(
        &self,
        survey: &Survey<'_>,
        up: &UpstreamName,
        repo: &RepoName,
        digest: &Digest,
    ) -> (String, Option<String>) {
        let root = self.roots.iter().find(|(_, _, reached)| reached.contains(digest));
        let Some((tag, root, reached)) = root else { return (image_name(up, repo, None, digest), None) };
        let mut platform = None;
        for index in reached.iter().filter(|index| self.contents.links.contains_key(*index)) {
            let Some(node) = survey.seen(index) else { continue };
            platform = platform.or_else(|| {
                let mut of = node.platforms.iter().filter(|(manifest, _)| manifest == digest);
                of.next().map(|(_, name)| name.clone())
            });
        }
        (image_name(up, repo, tag.as_ref(), root), platform)
    }
}

fn path() -> PathBuf {
    Path::new(STATE).join("missed")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn name(text: &str) -> Name {
        let sought = Sought::Tag(text.parse().unwrap());
        Name { upstream: "up".parse().unwrap(), repository: "app".parse().unwrap(), sought }
    }

    fn at(second: u64, by: u64) -> Times {
        let at = timestamp(std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(second));
        Times { asked: 1, first: at, last: at, by }
    }

    #[test]
    fn who_makes_names_up_pushes_out_their_own() {
        let mut names = Names::default();
        for n in 0..20 {
            names.add(name(&format!("real-{n}")), at(n, 7));
        }
        for n in 0..NAMES as u64 * 2 {
            names.add(name(&format!("made-up-{n}")), at(100 + n, 1));
        }
        // Who asks for everything does not come to own what others ask for.
        names.add(name("real-3"), at(99_999, 1));
        names.add(name("made-up-x"), at(100_000, 1));
        assert_eq!(names.known.len(), NAMES);
        assert!((0..20).all(|n| names.known.contains_key(&name(&format!("real-{n}")))), "what others asked for stays");
        assert!(names.known.contains_key(&name("made-up-x")) && !names.known.contains_key(&name("made-up-0")));
        assert_eq!(names.known[&name("real-3")].asked, 2);
        assert_eq!(names.forgotten, NAMES as u64 + 21, "what went is counted");
        assert_eq!(names.of.values().sum::<usize>(), NAMES);
    }

    #[test]
    fn what_many_ask_for_is_the_one_of_who_has_few() {
        let mut names = Names::default();
        for n in 0..NAMES as u64 - 1 {
            names.add(name(&format!("made-up-{n}")), at(100 + n, 1));
        }
        names.add(name("real"), at(1, 1));
        names.add(name("real"), at(2, 9));
        names.add(name("one-more"), at(3, 1));
        assert!(names.known.contains_key(&name("real")), "the oldest, but of who has few");
        assert_eq!((names.of[&9], names.of[&1]), (1, NAMES - 1));
    }

    #[test]
    fn long_names_have_room_for_fewer() {
        let mut names = Names::default();
        for n in 0..NAMES as u64 {
            let repository = format!("{n:05}/{}", "a".repeat(200)).parse().unwrap();
            names.add(Name { repository, ..name(&"t".repeat(128)) }, at(n, n));
        }
        assert!(names.bytes <= BYTES && names.known.len() < NAMES / 2, "{} {}", names.bytes, names.known.len());
        assert_eq!(names.bytes, names.known.keys().map(Name::bytes).sum::<usize>());
        let put_down = serde_json::to_vec(&names.put_down()).unwrap();
        assert!(put_down.len() < 2 << 20, "{}", put_down.len());
    }

    #[test]
    fn what_was_put_down_is_taken_up() {
        let mut names = Names::default();
        names.add(name("1"), at(5, u64::MAX));
        names.add(name("1"), at(9, 3));
        names.add(name("2"), at(6, u64::MAX));
        names.forgotten = 4;
        let text = serde_json::to_string(&names.put_down()).unwrap();
        assert!(!text.contains(&u64::MAX.to_string()), "{text}");
        let mut again = Names { unread: true, ..Names::default() };
        again.add(name("2"), at(20, 0));
        again.take_up(serde_json::from_str(&text).unwrap());
        assert_eq!((again.known.len(), again.forgotten, again.unread), (2, 4, false));
        assert_eq!((again.known[&name("1")].asked, again.known[&name("2")].asked), (2, 2));
        assert_eq!(again.known[&name("2")].first, at(6, 0).first);
        assert_eq!(again.known[&name("2")].last, at(20, 0).last);
    }

    #[test]
    fn what_is_asked_for_while_a_list_is_cleared_stays() {
        let names = MissedNames::default();
        for text in ["a", "b"] {
            names.table.lock().add(name(text), at(1, 1));
        }
        let (known, forgotten) = names.known();
        names.table.lock().add(name("b"), at(2, 1));
        names.table.lock().add(name("c"), at(2, 2));
        let removed = names.table.lock().remove(known, forgotten);
        let left = |names: &MissedNames| -> HashMap<Name, u64> {
            names.known().0.into_iter().map(|(name, times)| (name, times.asked)).collect()
        };
        let are = |of: &[(&str, u64)]| of.iter().map(|(text, asked)| (name(text), *asked)).collect();
        assert_eq!(left(&names), are(&[("b", 2), ("c", 1)]));
        assert_eq!(names.table.lock().of, HashMap::from([(1, 1), (2, 1)]));
        // It could not be put down.
        names.table.lock().take_up(removed);
        assert_eq!(left(&names), are(&[("a", 1), ("b", 2), ("c", 1)]));
        assert_eq!(names.table.lock().of, HashMap::from([(1, 2), (2, 1)]));
    }

    #[test]
    fn tags_of_referrers_are_told_from_others() {
        let hex = "0123456789abcdef".repeat(4);
        for (tag, kind) in [
            (format!("sha256-{hex}"), MissedKind::Referrer),
            (format!("sha256-{hex}.sig"), MissedKind::Referrer),
            (format!("sha512-{hex}"), MissedKind::Tag),
            ("sha256-abc".to_owned(), MissedKind::Tag),
            ("latest".to_owned(), MissedKind::Tag),
        ] {
            assert_eq!(Sought::Tag(tag.parse().unwrap()).kind(), kind, "{tag}");
        }
    }
}
