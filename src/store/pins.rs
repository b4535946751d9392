//! Pins: names whose content is never evicted, by the configuration or by command.
//!
//! What a pin keeps is worked out from the refs: the manifest that the name means now and all that it is made of, here
//! already or still to come. It follows the tag; what the tag meant before can go. What cannot be read is no reason to let
//! go: while a directory cannot be listed nothing is evicted, and where a tag or its manifest is damaged all that its
//! repository links stays.

use std::collections::{BTreeSet, HashSet};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use super::gated::Gated;
use super::images::MANIFEST;
use super::layout::{self, STATE};
use super::order::Short;
use super::record::{Found, Records};
use super::refs::TagRecord;
use super::sync::GroupSync;
use super::{Disk, Inner, Store, StoreError, StoredBlob};
use crate::config::Pin;
use crate::oci::{Algorithm, Digest, RepoName, Tag, UpstreamName};

/// Directory of the pins that were made by command.
const PINS: &str = "pins";
/// End of the name of a pin's second file.
const COPY: &str = ".copy";
/// How soon it is tried again to find out what the pins keep, when that failed.
const AGAIN: Duration = Duration::from_secs(10);
/// How long nobody looks at all refs again only because some content is not pinned any more.
const REST: Duration = Duration::from_mins(1);

/// The pins of a store.
#[derive(Debug)]
pub(super) struct Pins {
    state: Gated<State>,
    /// Held while a pin is made or removed, with its files. Before `state`, which nobody may hold for as long: who writes a
    /// tag waits for it.
    changing: Gated<()>,
    /// Held while all refs are looked at: one look at a time. Before `state`.
    settling: Gated<()>,
    /// Whether what they keep was worked out since the store was opened: before that nothing may be evicted.
    settled: AtomicBool,
    /// What they keep has changed in a way that takes a new look at all refs.
    stale: Notify,
}

#[derive(Debug)]
struct State {
    /// By the configuration.
    configured: Vec<Pin>,
    /// By command.
    made: Vec<Pin>,
    /// Those were not read yet: it failed.
    unread: bool,
    /// What was pinned while all refs are being looked at.
    meanwhile: Option<HashSet<Short>>,
    /// How often it became unknown what is pinned.
    doubts: u64,
}

/// The content of a pinned tag.
pub(super) struct ToKeep {
    parts: Vec<Short>,
    /// Whether that is all of it.
    is_certain: bool,
}

/// A pin, and where it comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PinOf {
    /// The pin.
    pub pin: Pin,
    /// Whether it stands in the configuration, and cannot be removed by command.
    pub configured: bool,
}

// === impl Pins ===

impl Pins {
    /// With those that were made by command, if they could be read.
    pub(super) fn new(configured: Vec<Pin>, made: Result<Vec<Pin>, StoreError>) -> Self {
        let settled = AtomicBool::new(configured.is_empty() && made.as_ref().is_ok_and(Vec::is_empty));
        let unread = made.is_err();
        let state =
            Gated::new(State { configured, made: made.unwrap_or_default(), unread, meanwhile: None, doubts: 0 });
        let (changing, settling) = (Gated::default(), Gated::default());
        Self { state, changing, settling, settled, stale: Notify::new() }
    }

    /// Whether it is known what must not be evicted.
    pub(super) fn are_settled(&self) -> bool {
        self.settled.load(Ordering::Acquire)
    }

    pub(super) fn all(&self) -> Vec<Pin> {
        let state = self.state.lock();
        state.configured.iter().chain(&state.made).cloned().collect()
    }

    /// Whether a pin of tags means this one.
    pub(super) fn keeps(&self, up: &UpstreamName, repo: &RepoName, tag: &Tag) -> bool {
        let state = self.state.lock();
        state.configured.iter().chain(&state.made).any(|pin| pin.matches(up, repo, tag))
    }
}

// === impl ToKeep ===

impl ToKeep {
    /// This manifest, and what it is made of is still to be found out.
    pub(super) fn at_least(manifest: &Digest) -> Self {
        Self { parts: vec![Short::from(manifest)], is_certain: false }
    }
}

// === impl Store ===

impl Store {
    /// All pins, those of the configuration first.
    pub fn pins(&self) -> Vec<PinOf> {
        let state = self.0.pins.state.lock();
        let configured = state.configured.iter().cloned().map(|pin| PinOf { pin, configured: true });
        configured.chain(state.made.iter().cloned().map(|pin| PinOf { pin, configured: false })).collect()
    }

    /// Makes a pin, durably. False if there is the same one by command already.
    pub async fn pin(&self, pin: Pin) -> Result<bool, StoreError> {
        let work = move |inner: &Arc<Inner>| {
            let changing = inner.pins.changing.lock();
            if inner.pins.state.lock().made.contains(&pin) {
                return Ok(false);
            }
            inner.write_pin(&pin)?;
            inner.pins.state.lock().made.push(pin);
            drop(changing);
            inner.settle_pins_soon();
            Ok(true)
        };
        self.blocking(work).await
    }

    /// Removes a pin that was made by command. False if there is none.
    pub async fn unpin(&self, pin: &Pin) -> Result<bool, StoreError> {
        let pin = pin.clone();
        let work = move |inner: &Arc<Inner>| {
            let changing = inner.pins.changing.lock();
            if !inner.pins.state.lock().made.contains(&pin) {
                return Ok(false);
            }
            // The copy first: if that is all that is done, the pin stays.
            for path in paths_of(&pin).iter().rev() {
                inner.remove_record(path)?;
            }
            inner.pins.state.lock().made.retain(|one| *one != pin);
            drop(changing);
            inner.settle_pins_soon();
            Ok(true)
        };
        self.blocking(work).await
    }

    /// Works out what the pins keep, now and whenever a look at all refs is needed.
    pub(super) async fn keep_pins(&self, stop: &CancellationToken) {
        let mut failing = false;
        let mut rest = Instant::now();
        loop {
            let failed = match self.blocking(|inner| inner.settle_pins()).await {
                Ok(()) => false,
                Err(StoreError::Stopped) => return,
                Err(error) => {
                    if !failing {
                        let error = &error as &dyn std::error::Error;
                        tracing::warn!(
                            error,
                            "what is pinned cannot be found out: nothing is evicted before it is known"
                        );
                    }
                    true
                }
            };
            if failing && !failed {
                tracing::info!("what is pinned is known again");
            }
            failing = failed;
            let again = async {
                let pins = &self.0.pins;
                if failing {
                    drop(timeout(AGAIN, pins.stale.notified()).await);
                    return;
                }
                pins.stale.notified().await;
                // At once where it is not known what must stay. What may go can wait.
                while pins.are_settled() && timeout_at(rest, pins.stale.notified()).await.is_ok() {}
                rest = Instant::now() + REST;
            };
            if stop.run_until_cancelled(again).await.is_none() {
                return;
            }
        }
    }
}

// === impl Inner ===

impl Inner {
    /// The pins that were made by command. Each is in two files, and one that is damaged or missing is written anew from
    /// the other; where both are, the pin is lost, which is warned about, and told by `verify` and `gc`.
    ///
    /// # Errors
    /// What the file system said: then it is not known which pins there are.
    pub(super) fn read_pins(records: &Records, disk: &Disk, group: &GroupSync) -> Result<Vec<Pin>, StoreError> {
        let mut pins = Vec::new();
        for name in pin_names(disk)? {
            let paths = [directory().join(&name), directory().join(name + COPY)];
            let [first, copy] = &paths;
            let found = [Records::look::<Pin>(disk, first)?, Records::look::<Pin>(disk, copy)?];
            let whole = found.iter().all(|found| matches!(found, Found::Record(_)));
            let Some(pin) = found.into_iter().find_map(Found::record) else {
                tracing::error!(path = %first.display(), "a pin by command is damaged, and with it what it kept: pin it again");
                continue;
            };
            if !whole {
                tracing::warn!(%pin, "a damaged or missing file of this pin is written anew");
                for path in &paths {
                    if let Err(error) = records.write_through(disk, group, path, &pin) {
                        tracing::warn!(error = &error as &dyn std::error::Error, "a pin could not be written");
                    }
                }
            }
            pins.push(pin);
        }
        pins.sort();
        Ok(pins)
    }

    /// The files of pins that cannot be read. With `repair`, those of pins that are known are written anew.
    pub(super) fn damaged_pins(&self, repair: bool) -> Result<Vec<PathBuf>, StoreError> {
        let mut damaged = Vec::new();
        for name in pin_names(&self.disk)? {
            for path in [directory().join(&name), directory().join(name.clone() + COPY)] {
                if Records::look::<Pin>(&self.disk, &path)? == Found::Damaged {
                    damaged.push(path);
                }
            }
        }
        if repair {
            let _changing = self.pins.changing.lock();
            let made = self.pins.state.lock().made.clone();
            for pin in made.iter().filter(|pin| paths_of(pin).iter().any(|path| damaged.contains(path))) {
                self.write_pin(pin)?;
            }
        }
        Ok(damaged)
    }

    fn write_pin(&self, pin: &Pin) -> Result<(), StoreError> {
        paths_of(pin).iter().try_for_each(|path| self.records.write_through(&self.disk, &self.group, path, pin))
    }

    /// The pins of the configuration are these now. Blocks.
    pub(super) fn set_configured_pins(&self, pins: Vec<Pin>) {
        let mut state = self.pins.state.lock();
        if state.configured == pins {
            return;
        }
        state.configured = pins;
        // As with one by command: until all refs have been looked at, nobody knows what must stay.
        state.doubts += 1;
        self.pins.settled.store(false, Ordering::Release);
        drop(state);
        self.settle_pins_soon();
    }

    /// The pins have changed. What cannot be found out now is tried again in the background, and nothing goes before.
    fn settle_pins_soon(&self) {
        if let Err(error) = self.settle_pins() {
            tracing::debug!(error = &error as &dyn std::error::Error, "what is pinned cannot be found out");
            self.unsettle_pins();
        }
    }

    fn unsettle_pins(&self) {
        let mut state = self.pins.state.lock();
        state.doubts += 1;
        self.pins.settled.store(false, Ordering::Release);
        drop(state);
        self.pins.stale.notify_one();
    }

    /// Looks at all refs for what the pins keep. Blocks.
    ///
    /// # Errors
    /// Something cannot be read, and what was known stands.
    pub(super) fn settle_pins(&self) -> Result<(), StoreError> {
        let _one = self.pins.settling.lock();
        if self.pins.state.lock().unread {
            let made = Self::read_pins(&self.records, &self.disk, &self.group)?;
            let mut state = self.pins.state.lock();
            state.unread = false;
            let known = std::mem::take(&mut state.made);
            state.made.extend(made.into_iter().chain(known).collect::<BTreeSet<_>>());
        }
        let pins = self.pins.all();
        let doubts = {
            let mut state = self.pins.state.lock();
            state.meanwhile = Some(HashSet::new());
            state.doubts
        };
        let kept = self.kept_by(&pins);
        let mut state = self.pins.state.lock();
        let meanwhile = state.meanwhile.take();
        let mut kept = kept?;
        kept.extend(meanwhile.into_iter().flatten());
        self.books.with_order(|order| order.set_pinned(kept));
        // What has become unknown meanwhile was perhaps looked at before.
        if state.doubts == doubts {
            self.pins.settled.store(true, Ordering::Release);
        }
        Ok(())
    }

    fn kept_by(&self, pins: &[Pin]) -> Result<HashSet<Short>, StoreError> {
        let mut kept = HashSet::new();
        let mut keep = |digest: &Digest| {
            let parts = self.certain_parts_of(digest)?;
            kept.extend(parts.iter().flatten().map(Short::from));
            Ok::<_, StoreError>(parts.is_some())
        };
        // Those of a manifest that is damaged: nobody knows which repository's it is.
        let mut doubted = Vec::new();
        for pin in pins {
            if let Some(digest) = pin.digest()
                && !keep(digest)?
            {
                doubted.push(pin);
            }
        }
        let mut repositories = BTreeSet::new();
        if !doubted.is_empty() {
            let all = self.repositories()?.into_iter();
            repositories.extend(all.filter(|(up, repo)| doubted.iter().any(|pin| pin.is_about(up, repo))));
        }
        let of_tags: Vec<&Pin> = pins.iter().filter(|pin| pin.digest().is_none()).collect();
        let all = if of_tags.is_empty() { Vec::new() } else { self.repositories()? };
        for (up, repo) in all {
            if !of_tags.iter().any(|pin| pin.is_about(&up, &repo)) {
                continue;
            }
            // Links are many more, and do not count here.
            for name in self.names_in(&layout::tags(&up, &repo))? {
                let Some(tag) = layout::tag_of_file(&name) else { continue };
                if !of_tags.iter().any(|pin| pin.matches(&up, &repo, &tag)) {
                    continue;
                }
                let certain = match Records::look::<TagRecord>(&self.disk, &layout::tag(&up, &repo, &tag))? {
                    Found::Record(record) => keep(&record.digest)?,
                    Found::Damaged => false,
                    Found::Nothing => true,
                };
                if !certain {
                    repositories.insert((up.clone(), repo.clone()));
                }
            }
        }
        for (up, repo) in repositories {
            tracing::warn!(%up, %repo, "a pinned tag or its manifest is damaged: all of its repository is kept until it is fetched anew");
            kept.extend(self.linked(&up, &repo)?.iter().map(Short::from));
        }
        Ok(kept)
    }

    /// What a pin would keep if this tag meant `digest`; none if no pin means the tag. Manifests are read for it: it is found
    /// out before the locks are taken under which the tag is written. Blocks.
    pub(super) fn kept_if(&self, up: &UpstreamName, repo: &RepoName, tag: &Tag, digest: &Digest) -> Option<ToKeep> {
        if !self.pins.keeps(up, repo, tag) {
            return None;
        }
        let Ok(Some(parts)) = self.certain_parts_of(digest) else { return Some(ToKeep::at_least(digest)) };
        Some(ToKeep { parts: parts.iter().map(Short::from).collect(), is_certain: true })
    }

    /// A pinned tag means something else now, with this content, or nothing, and meant something `before`.
    pub(super) fn follow_pinned_tag(&self, now: Option<ToKeep>, before: bool) {
        if let Some(ToKeep { parts, is_certain }) = now {
            self.add_pinned(parts);
            if !is_certain {
                self.unsettle_pins();
            }
        }
        if before {
            self.pins.stale.notify_one();
        }
    }

    /// A manifest that may be pinned is made of these parts.
    pub(super) fn pin_parts(&self, manifest: &Digest, parts: &[Digest]) {
        let short = Short::from(manifest);
        if self.books.with_order(|order| order.is_pinned(&short)) {
            self.add_pinned(parts.iter().map(Short::from).collect());
        }
    }

    /// A blob has come: what a manifest names is pinned with it, also where a tag meant it before it was here. Blocks.
    pub(super) fn pin_with_parts(&self, digest: &Digest, blob: &StoredBlob) {
        let is_pinned = blob.len <= MANIFEST && self.books.with_order(|order| order.is_pinned(&Short::from(digest)));
        if is_pinned && begins_as_json(&self.disk, &blob.file) {
            self.pin_parts(digest, &self.parts_of(digest));
        }
    }

    fn add_pinned(&self, more: Vec<Short>) {
        let mut state = self.pins.state.lock();
        if let Some(meanwhile) = &mut state.meanwhile {
            meanwhile.extend(more.iter().copied());
        }
        self.books.with_order(|order| order.pin(more));
    }
}

/// Whether it may be a manifest: spares a layer being read whole.
fn begins_as_json(disk: &Disk, file: &File) -> bool {
    let mut first = [0];
    disk.read_exact_at(file, &mut first, 0).is_err() || matches!(first, [b'{' | b' ' | b'\t' | b'\r' | b'\n'])
}

/// `state/pins`.
fn directory() -> PathBuf {
    Path::new(STATE).join(PINS)
}

/// `state/pins/HASH` and its copy: a pattern may be longer than a file's name.
fn paths_of(pin: &Pin) -> [PathBuf; 2] {
    let name = Digest::of(Algorithm::Sha256, pin.to_string().as_bytes()).hex();
    [directory().join(&name), directory().join(name + COPY)]
}

/// The names of pins' files, without that of the copy.
fn pin_names(disk: &Disk) -> Result<BTreeSet<String>, StoreError> {
    let fail = |e: io::Error| StoreError::io("list", &directory(), e);
    let listing = match disk.list(&directory()) {
        Ok(listing) => listing,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
        Err(error) => return Err(fail(error)),
    };
    listing.map(|entry| entry.map(|entry| entry.name.trim_end_matches(COPY).to_owned()).map_err(fail)).collect()
}
