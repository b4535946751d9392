//! The table of uploads: how many there may be, which of them nobody touches any more, and how they end.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream;
use parking_lot::Mutex;
use tokio::sync::{Mutex as SessionLock, Semaphore};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::session::{self, Session};
use super::{Opening, UploadId};
use crate::cache::write::WriteError;
use crate::cache::{Cache, Target};
use crate::upstream::{Location, Right};

/// An upload that nobody touches for so long is ended. Clients send one request after the other; what takes longer has
/// gone, and holds room that others need.
pub(super) const IDLE: Duration = Duration::from_mins(15);
/// Uploads at once; each may hold a file open.
const MAX_UPLOADS: usize = 4096;
/// Of one caller.
const MAX_OF_CALLER: usize = 1024;
/// An upload that was not touched for so long makes room for new ones.
const MAY_GO: Duration = Duration::from_mins(5);
/// Uploads that are cancelled upstream at once.
const CANCELLED_AT_ONCE: usize = 16;
/// Time for each of them.
const CANCELLED_WITHIN: Duration = Duration::from_secs(5);

/// The uploads that are running.
#[derive(Default)]
pub(in crate::cache) struct Uploads {
    /// Held for look-ups only.
    table: Mutex<HashMap<UploadId, Arc<Entry>>>,
    counts: Arc<Mutex<Counts>>,
    /// Whether a task looks after the uploads that nobody touches.
    watched: Mutex<bool>,
}

/// How many uploads there are, those that are only being begun included.
#[derive(Default)]
struct Counts {
    all: usize,
    of_callers: HashMap<String, usize>,
}

/// A place for an upload; dropping it gives it back.
pub(super) struct Slot {
    counts: Arc<Mutex<Counts>>,
    caller: String,
}

/// An upload, as the table and its requests hold it.
pub(super) struct Entry {
    pub(super) id: UploadId,
    /// By whose right it was last gone on with.
    pub(super) target: Mutex<Target>,
    pub(super) owner: Option<String>,
    /// Whether whoever began it showed a credential.
    pub(super) by_client: bool,
    /// One request at a time.
    pub(super) session: Arc<SessionLock<Session>>,
    /// Bytes that were acknowledged.
    pub(super) offset: AtomicU64,
    pub(super) touched: Mutex<Instant>,
    /// It is over: a request that still runs stops.
    pub(super) gone: CancellationToken,
    pub(super) slot: Slot,
}

/// What is left upstream of an upload that has ended here.
pub(super) struct Leftover {
    target: Target,
    location: Location,
}

// === impl Uploads ===

impl Uploads {
    /// A place for one more upload of whoever begins it there, and what was ended for it.
    pub(super) fn reserve(
        &self,
        target: &Target,
        opening: &Opening<'_>,
    ) -> Result<(Slot, Option<Leftover>), WriteError> {
        let caller = caller(target, opening);
        let full = match Slot::take(&self.counts, &caller) {
            Ok(slot) => return Ok((slot, None)),
            Err(full) => full,
        };
        let leftover = self.end_oldest(full.of_caller.then_some(caller.as_str()));
        // Somebody else may have been quicker.
        let slot = Slot::take(&self.counts, &caller)
            .map_err(|full| WriteError::TooManyUploads { limit: full.limit, of_caller: full.of_caller })?;
        Ok((slot, leftover))
    }

    pub(super) fn insert(&self, entry: Arc<Entry>) {
        self.table.lock().insert(entry.id, entry);
    }

    pub(super) fn get(&self, id: &UploadId) -> Option<Arc<Entry>> {
        let entry = Arc::clone(self.table.lock().get(id)?);
        (entry.idle() < IDLE).then_some(entry)
    }

    pub(super) fn remove(&self, id: &UploadId) {
        let removed = self.table.lock().remove(id);
        drop(removed);
    }

    /// Ends the upload that was longest untouched, of one caller or of all, if that is long enough.
    fn end_oldest(&self, caller: Option<&str>) -> Option<Leftover> {
        let mut table = self.table.lock();
        let candidates = table.values().filter(|entry| caller.is_none_or(|caller| entry.slot.caller == caller));
        let oldest = candidates.filter(|entry| entry.idle() >= MAY_GO).max_by_key(|entry| entry.idle()).cloned()?;
        // A request that runs touches it when it ends.
        let mut session = Arc::clone(&oldest.session).try_lock_owned().ok()?;
        table.remove(&oldest.id);
        oldest.end(&mut session)
    }

    /// Ends what nobody has touched for too long: what is left of it upstream, and when to look again; none: no upload
    /// runs, and the next one has to begin the watch anew.
    fn expire(&self) -> (Vec<Leftover>, Option<Instant>) {
        let mut watched = self.watched.lock();
        let mut table = self.table.lock();
        let mut leftovers = Vec::new();
        table.retain(|_, entry| {
            if entry.idle() < IDLE {
                return true;
            }
            // A request that runs touches it when it ends.
            let Ok(mut session) = entry.session.try_lock() else { return true };
            {
                let Target { upstream, repo, .. } = &*entry.target.lock();
                let bytes = session.offset();
                tracing::info!(%upstream, repository = %repo, bytes, "an upload that nobody goes on with has ended");
            }
            leftovers.extend(entry.end(&mut session));
            false
        });
        let oldest = table.values().map(|entry| *entry.touched.lock()).min();
        *watched = oldest.is_some();
        let pause = Instant::now() + Duration::from_secs(1);
        (leftovers, oldest.map(|touched| (touched + IDLE).max(pause)))
    }
}

// === impl Cache ===

impl Cache {
    /// Sees to it that uploads which nobody touches end.
    pub(super) fn watch_uploads(self: &Arc<Self>) {
        if std::mem::replace(&mut *self.uploads.watched.lock(), true) {
            return;
        }
        let (cache, stop) = (Arc::clone(self), self.stop.clone());
        self.tasks.spawn(async move {
            loop {
                let (leftovers, next) = cache.uploads.expire();
                cache.cancel_upstream(leftovers);
                let Some(next) = next else { break };
                if stop.run_until_cancelled(sleep_until(next)).await.is_none() {
                    break;
                }
            }
            // Their files go now, before the store closes.
            if stop.is_cancelled() {
                cache.uploads.table.lock().clear();
            }
        });
    }

    /// Cancels uploads upstream that have ended here, behind the scenes. Where upstream cannot be asked, it forgets them
    /// by itself.
    pub(super) fn cancel_upstream(self: &Arc<Self>, leftovers: impl IntoIterator<Item = Leftover>) {
        let leftovers: Vec<_> = leftovers.into_iter().collect();
        if leftovers.is_empty() {
            return;
        }
        let (cache, stop) = (Arc::clone(self), self.stop.clone());
        self.tasks.spawn(async move {
            let cancelling = stream::iter(leftovers)
                .for_each_concurrent(CANCELLED_AT_ONCE, |leftover| leftover.cancel(Arc::clone(&cache)));
            stop.run_until_cancelled(cancelling).await;
        });
    }

    /// Ends all uploads, because ocistern stops: each when no request is at it any more. They are cancelled upstream, if
    /// there is time for it.
    pub async fn end_uploads(self: &Arc<Self>) {
        let entries: Vec<_> = self.uploads.table.lock().values().cloned().collect();
        let places = Semaphore::new(CANCELLED_AT_ONCE);
        // Without a limit: one that is busy holds no other one up.
        stream::iter(entries)
            .for_each_concurrent(None, |entry| async {
                let leftover = {
                    let mut session = Arc::clone(&entry.session).lock_owned().await;
                    self.uploads.remove(&entry.id);
                    entry.end(&mut session)
                };
                drop(entry);
                if let (Some(leftover), Ok(_place)) = (leftover, places.acquire().await) {
                    leftover.cancel(Arc::clone(self)).await;
                }
            })
            .await;
    }
}

// === impl Entry ===

impl Entry {
    fn idle(&self) -> Duration {
        self.touched.lock().elapsed()
    }

    pub(super) fn touch(&self) {
        *self.touched.lock() = Instant::now();
    }

    /// Ends it here, with all that is kept of it. What may be left of it upstream is returned.
    pub(super) fn end(&self, session: &mut Session) -> Option<Leftover> {
        self.gone.cancel();
        let location = session.abandon()?;
        Some(Leftover::new(&self.target.lock(), location))
    }

    pub(super) fn store_offset(&self, session: &Session) {
        self.offset.store(session.offset(), Ordering::Release);
    }
}

// === impl Leftover ===

impl Leftover {
    /// What is left at `location` of an upload to `target`.
    pub(super) fn new(target: &Target, location: Location) -> Self {
        Self { target: target.clone(), location }
    }

    async fn cancel(self, cache: Arc<Cache>) {
        let Self { target, location } = self;
        let cancelling = Box::pin(cache.relay(&target.upstream, session::cancelling(&location, &target)));
        match timeout(CANCELLED_WITHIN, cancelling).await {
            Ok(Ok(said)) if said.status.is_success() => {}
            Ok(Ok(said)) => tracing::debug!(status = said.status.as_u16(), "upstream did not cancel an upload"),
            Ok(Err(error)) => {
                let error = &error as &dyn std::error::Error;
                tracing::debug!(error, "an upload was not cancelled upstream");
            }
            Err(_) => tracing::debug!("an upload was not cancelled upstream in time"),
        }
    }
}

// === impl Slot ===

/// There are as many as there may be.
struct Full {
    limit: usize,
    of_caller: bool,
}

impl Slot {
    fn take(counts: &Arc<Mutex<Counts>>, caller: &str) -> Result<Self, Full> {
        let mut state = counts.lock();
        if state.of_callers.get(caller).is_some_and(|count| *count >= MAX_OF_CALLER) {
            return Err(Full { limit: MAX_OF_CALLER, of_caller: true });
        }
        if state.all >= MAX_UPLOADS {
            return Err(Full { limit: MAX_UPLOADS, of_caller: false });
        }
        state.all += 1;
        *state.of_callers.entry(caller.to_owned()).or_default() += 1;
        Ok(Self { counts: Arc::clone(counts), caller: caller.to_owned() })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut state = self.counts.lock();
        state.all -= 1;
        if let Some(count) = state.of_callers.get_mut(&self.caller) {
            *count -= 1;
            if *count == 0 {
                state.of_callers.remove(&self.caller);
            }
        }
    }
}

/// Whose uploads are counted together: those of callers that are told apart count apart.
fn caller(target: &Target, opening: &Opening<'_>) -> String {
    let Opening { owner, party, .. } = opening;
    match (owner, &target.right) {
        (Some(owner), _) => format!("owner {owner}"),
        (None, Right::Client(lent)) => format!("principal {:02x?}", lent.principal().as_bytes()),
        // Without a name, what is known is where it comes from.
        (None, Right::Shared | Right::Anonymous) => format!("{party:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::party::Party;

    #[test]
    fn who_has_no_name_is_told_apart_by_where_it_comes_from() {
        let target = crate::cache::tests::target();
        let of = |owner: Option<&str>, address: u8| {
            let party = Party::at([192, 0, 2, address].into());
            caller(&target, &Opening { query: "", scope: None, owner: owner.map(str::to_owned), party })
        };
        assert_ne!(of(None, 1), of(None, 2));
        assert_eq!(of(None, 1), of(None, 1));
        assert_eq!(of(Some("user:me"), 1), of(Some("user:me"), 2), "a name is one, wherever it comes from");
    }

    #[test]
    fn places_are_counted_by_caller_and_in_all() {
        let counts = Arc::default();
        let mut places: Vec<_> = (0..MAX_OF_CALLER).map(|_| Slot::take(&counts, "a").ok().unwrap()).collect();
        assert!(Slot::take(&counts, "a").is_err_and(|full| full.of_caller && full.limit == MAX_OF_CALLER));
        places.extend((MAX_OF_CALLER..MAX_UPLOADS).map(|n| Slot::take(&counts, &format!("b{n}")).ok().unwrap()));
        assert!(Slot::take(&counts, "c").is_err_and(|full| !full.of_caller && full.limit == MAX_UPLOADS));
        places.truncate(MAX_OF_CALLER - 1);
        let again = Slot::take(&counts, "a").ok().unwrap();
        assert!(Slot::take(&counts, "a").is_err() && Slot::take(&counts, "c").is_ok());
        drop((places, again));
        let state = counts.lock();
        assert!(state.all == 0 && state.of_callers.is_empty(), "nobody is remembered who has none");
    }
}
