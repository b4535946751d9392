//! Pins: names whose content is never evicted, by the configuration or by command.
//!
//! What a pin keeps is worked out from the refs: the manifest that the name means now and all that it is made of, here
//! already or still to come. It follows the tag; what the tag meant before can go.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::gated::Gated;
use super::layout::{self, STATE};
use super::order::Short;
use super::recover::Walk;
use super::refs::TagRecord;
use super::{Inner, Store, StoreError};
use crate::config::Pin;
use crate::oci::{Algorithm, Digest, RepoName, Tag, UpstreamName};

/// Directory of the pins that were made by command.
const PINS: &str = "pins";

/// The pins of a store.
#[derive(Debug)]
pub(super) struct Pins {
    configured: Vec<Pin>,
    state: Gated<State>,
    /// Held while all refs are looked at: one look at a time. Before `state`.
    settling: Gated<()>,
    /// Whether what they keep was worked out since the store was opened: before that nothing may be evicted.
    settled: AtomicBool,
    /// What they keep has changed in a way that takes a new look at all refs.
    stale: Notify,
}

#[derive(Debug)]
struct State {
    /// By command.
    made: Vec<Pin>,
    /// What was pinned while all refs are being looked at.
    meanwhile: Option<HashSet<Short>>,
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
    pub(super) fn new(configured: Vec<Pin>, made: Vec<Pin>) -> Self {
        let settled = AtomicBool::new(configured.is_empty() && made.is_empty());
        let state = Gated::new(State { made, meanwhile: None });
        Self { configured, state, settling: Gated::default(), settled, stale: Notify::new() }
    }

    /// Whether it is known what must not be evicted.
    pub(super) fn are_settled(&self) -> bool {
        self.settled.load(Ordering::Acquire)
    }

    fn all(&self) -> Vec<Pin> {
        let made = self.state.lock().made.clone();
        self.configured.iter().cloned().chain(made).collect()
    }

    fn keeps(&self, up: &UpstreamName, repo: &RepoName, tag: &Tag) -> bool {
        let state = self.state.lock();
        self.configured.iter().chain(&state.made).any(|pin| pin.matches(up, repo, tag))
    }
}

// === impl Store ===

impl Store {
    /// All pins, those of the configuration first.
    pub fn pins(&self) -> Vec<PinOf> {
        let made = self.0.pins.state.lock().made.clone();
        let configured = self.0.pins.configured.iter().cloned().map(|pin| PinOf { pin, configured: true });
        configured.chain(made.into_iter().map(|pin| PinOf { pin, configured: false })).collect()
    }

    /// Makes a pin, durably. False if there is the same one by command already.
    pub async fn pin(&self, pin: Pin) -> Result<bool, StoreError> {
        let work = move |inner: &Arc<Inner>| {
            if inner.pins.state.lock().made.contains(&pin) {
                return Ok(false);
            }
            inner.records.write_through(&inner.disk, &inner.group, &path_of(&pin), &pin)?;
            inner.pins.state.lock().made.push(pin);
            inner.settle_pins();
            Ok(true)
        };
        self.blocking(work).await
    }

    /// Removes a pin that was made by command. False if there is none.
    pub async fn unpin(&self, pin: &Pin) -> Result<bool, StoreError> {
        let pin = pin.clone();
        let work = move |inner: &Arc<Inner>| {
            {
                let made = &mut inner.pins.state.lock().made;
                let Some(at) = made.iter().position(|one| *one == pin) else { return Ok(false) };
                inner.remove_record(&path_of(&pin))?;
                made.swap_remove(at);
            }
            inner.settle_pins();
            Ok(true)
        };
        self.blocking(work).await
    }

    /// Works out what the pins keep, now and whenever a look at all refs is needed.
    pub(super) async fn keep_pins(&self, stop: &CancellationToken) {
        loop {
            let settle = |inner: &Arc<Inner>| {
                inner.settle_pins();
                Ok(())
            };
            if self.blocking(settle).await.is_err()
                || stop.run_until_cancelled(self.0.pins.stale.notified()).await.is_none()
            {
                return;
            }
        }
    }
}

// === impl Inner ===

impl Inner {
    /// The pins that were made by command. What cannot be read is left out, and warned about.
    pub(super) fn read_pins(records: &super::Records, disk: &super::Disk) -> Vec<Pin> {
        let directory = Path::new(STATE).join(PINS);
        let Ok(listing) = disk.list(&directory) else { return Vec::new() };
        let mut pins: Vec<Pin> =
            listing.flatten().filter_map(|entry| records.read(disk, &directory.join(entry.name))).collect();
        pins.sort();
        pins
    }

    /// Looks at all refs for what the pins keep. Blocks.
    pub(super) fn settle_pins(&self) {
        let _one = self.pins.settling.lock();
        let pins = self.pins.all();
        self.pins.state.lock().meanwhile = Some(HashSet::new());
        let mut kept = HashSet::new();
        let mut keep = |digest: &Digest| kept.extend(self.parts_of(digest).iter().map(Short::from));
        for digest in pins.iter().filter_map(Pin::digest) {
            keep(digest);
        }
        let upstreams: HashSet<&UpstreamName> =
            pins.iter().filter(|pin| pin.digest().is_none()).map(|pin| &pin.upstream).collect();
        for up in upstreams {
            let Ok(mut walk) = Walk::new(&self.disk, layout::upstream(up)) else { continue };
            while let Some(path) = walk.next(&self.disk) {
                if let Some((up, repo, tag)) = layout::parse_tag(&path)
                    && pins.iter().any(|pin| pin.matches(&up, &repo, &tag))
                    && let Some(record) = self.records.read::<TagRecord>(&self.disk, &path)
                {
                    keep(&record.digest);
                }
            }
        }
        let mut state = self.pins.state.lock();
        kept.extend(state.meanwhile.take().into_iter().flatten());
        self.books.with_order(|order| order.set_pinned(kept));
        drop(state);
        self.pins.settled.store(true, Ordering::Release);
    }

    /// A tag means `now`, and meant `before`. Blocks.
    pub(super) fn follow_pinned_tag(
        &self,
        (up, repo, tag): (&UpstreamName, &RepoName, &Tag),
        before: Option<&Digest>,
        now: Option<&Digest>,
    ) {
        if before == now || !self.pins.keeps(up, repo, tag) {
            return;
        }
        if let Some(now) = now {
            self.add_pinned(self.parts_of(now).iter().map(Short::from).collect());
        }
        if before.is_some() {
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

    fn add_pinned(&self, more: Vec<Short>) {
        let mut state = self.pins.state.lock();
        if let Some(meanwhile) = &mut state.meanwhile {
            meanwhile.extend(more.iter().copied());
        }
        self.books.with_order(|order| order.pin(more));
    }
}

/// `state/pins/HASH`: a pattern may be longer than a file's name.
fn path_of(pin: &Pin) -> PathBuf {
    let name = Digest::of(Algorithm::Sha256, pin.to_string().as_bytes()).hex();
    Path::new(STATE).join(PINS).join(name)
}
