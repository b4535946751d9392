//! The endpoints of an upstream for one blob: its URL, and mirrors that take over from it and from each other in the
//! middle of a blob, since the digest is the identity (ADR 0020).
//!
//! Mirrors are asked anonymously, and only for what everybody may have: no credential leaves its origin, and no private
//! name is told to anybody. What they bring is verified like anything else; one that may have brought something wrong is
//! set aside for a while.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::recent::Recent;
use crate::oci::{Digest, Via};
use crate::upstream::Registry;

/// How long a mirror is not asked that may have brought something wrong.
pub(super) const ASIDE_FOR: Duration = Duration::from_hours(1);

/// Mirrors that are set aside, by their names.
pub(super) type Aside = Arc<Recent<String, ()>>;

/// The endpoints for one blob.
pub(super) struct Endpoints {
    own: Arc<Registry>,
    aside: Aside,
    state: Mutex<State>,
}

struct State {
    /// None before it is known that everybody may have the blob.
    mirrors: Vec<Arc<Registry>>,
    /// Which is asked: 0 is upstream itself.
    at: usize,
    /// How many have failed since the last one that answered.
    failed: usize,
    /// Mirrors that have brought bytes.
    used: Vec<String>,
}

/// One that is asked.
#[derive(Clone)]
pub(super) struct Endpoint {
    pub(super) registry: Arc<Registry>,
    pub(super) is_mirror: bool,
}

// === impl Endpoints ===

impl Endpoints {
    /// Of an upstream. Mirrors are asked from the start on only where upstream's last word is that everybody may have what is
    /// asked for.
    pub(super) fn new(own: &Arc<Registry>, is_public: bool, aside: &Aside) -> Self {
        let mirrors = if is_public { usable(own, aside) } else { Vec::new() };
        let state = State { mirrors, at: 0, failed: 0, used: Vec::new() };
        Self { own: Arc::clone(own), aside: Arc::clone(aside), state: Mutex::new(state) }
    }

    /// Upstream itself, and nobody else.
    pub(super) fn alone(own: &Arc<Registry>) -> Self {
        let state = State { mirrors: Vec::new(), at: 0, failed: 0, used: Vec::new() };
        Self { own: Arc::clone(own), aside: Arc::new(Recent::new(ASIDE_FOR, 1)), state: Mutex::new(state) }
    }

    /// Upstream itself has given the blob by this right.
    pub(super) fn given(&self, via: Via) {
        let mut state = self.state.lock();
        if via != Via::Anonymous {
            (state.mirrors, state.at) = (Vec::new(), 0);
        } else if state.mirrors.is_empty() {
            state.mirrors = usable(&self.own, &self.aside);
        }
    }

    /// The one that is asked now.
    pub(super) fn current(&self) -> Endpoint {
        self.state.lock().current(&self.own)
    }

    /// Its host.
    pub(super) fn name(&self) -> String {
        self.current().registry.endpoint()
    }

    /// Whether there is more than one.
    pub(super) fn has_others(&self) -> bool {
        !self.state.lock().mirrors.is_empty()
    }

    /// This one has failed: the next is asked, unless it is already. False where all have failed since one answered.
    pub(super) fn next(&self, failed: &Endpoint) -> bool {
        let mut state = self.state.lock();
        if !state.current(&self.own).is(failed) {
            return true;
        }
        let count = state.mirrors.len() + 1;
        state.at = (state.at + 1) % count;
        state.failed += 1;
        if state.failed < count {
            return true;
        }
        state.failed = 0;
        false
    }

    /// The same before anything has come: each is asked once.
    pub(super) fn next_at_the_start(&self) -> bool {
        let mut state = self.state.lock();
        if state.at < state.mirrors.len() {
            state.at += 1;
            return true;
        }
        false
    }

    /// Until when the first one may take to answer, so that the others can still do so in time.
    pub(super) fn first_deadline(&self, deadline: Instant) -> Instant {
        let state = self.state.lock();
        let left = deadline.saturating_duration_since(Instant::now());
        let others = u32::try_from(state.mirrors.len().saturating_sub(state.at)).unwrap_or(u32::MAX);
        if others == 0 { deadline } else { deadline.checked_sub(left / 2).unwrap_or(deadline) }
    }

    /// Bytes have come. A head alone is nothing: one that breaks every body off would be asked without a pause.
    pub(super) fn progressed(&self) {
        self.state.lock().failed = 0;
    }

    /// This one has answered.
    pub(super) fn answered(&self, endpoint: &Endpoint) {
        let name = endpoint.registry.endpoint();
        let mut state = self.state.lock();
        if endpoint.is_mirror && !state.used.contains(&name) {
            state.used.push(name);
        }
    }

    /// What a mirror refuses says nothing about upstream, which is asked next, and the mirror no more for this blob. False:
    /// it was upstream itself.
    pub(super) fn leave(&self, endpoint: &Endpoint) -> bool {
        if !endpoint.is_mirror {
            return false;
        }
        let mut state = self.state.lock();
        if state.current(&self.own).is(endpoint) {
            state.at = 0;
        }
        let now = state.at.checked_sub(1).map(|index| Arc::clone(&state.mirrors[index]));
        state.mirrors.retain(|mirror| !Arc::ptr_eq(mirror, &endpoint.registry));
        state.at = now.map_or(0, |now| {
            state.mirrors.iter().position(|mirror| Arc::ptr_eq(mirror, &now)).map_or(0, |index| index + 1)
        });
        true
    }

    /// The bytes of `digest` are wrong: no mirror that has brought some of them is asked for a while.
    pub(super) fn distrust(&self, digest: &Digest) {
        for mirror in &self.state.lock().used {
            tracing::warn!(
                %digest, mirror, upstream = %self.own.name(), minutes = ASIDE_FOR.as_secs() / 60,
                "a mirror has brought bytes of a blob that turned out wrong; it is not asked for a while"
            );
            self.aside.insert(mirror.clone(), ());
        }
    }
}

// === impl State, Endpoint ===

impl State {
    fn current(&self, own: &Arc<Registry>) -> Endpoint {
        match self.at.checked_sub(1).and_then(|index| self.mirrors.get(index)) {
            Some(mirror) => Endpoint { registry: Arc::clone(mirror), is_mirror: true },
            None => Endpoint { registry: Arc::clone(own), is_mirror: false },
        }
    }
}

impl Endpoint {
    fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.registry, &other.registry)
    }
}

fn usable(own: &Registry, aside: &Aside) -> Vec<Arc<Registry>> {
    own.mirrors().iter().filter(|mirror| aside.get(&mirror.endpoint()).is_none()).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::super::tests::registry_of;
    use super::*;

    fn endpoints(is_public: bool) -> (Endpoints, Aside) {
        let registry = registry_of("mirrors = [\"http://127.0.0.2:9\", \"http://127.0.0.3:9\"]");
        let aside: Aside = Arc::new(Recent::new(ASIDE_FOR, 10));
        (Endpoints::new(&registry, is_public, &aside), aside)
    }

    #[tokio::test(start_paused = true)]
    async fn each_is_asked_in_turn_and_a_wait_comes_after_all_of_them() {
        let (endpoints, _) = endpoints(true);
        let turn = |_| (endpoints.name(), endpoints.next(&endpoints.current()));
        let turns: Vec<_> = (0..4).map(turn).collect();
        let named = |name: &str, goes_on| (name.to_owned(), goes_on);
        assert_eq!(
            turns,
            [
                named("127.0.0.1:9", true),
                named("127.0.0.2:9", true),
                named("127.0.0.3:9", false),
                named("127.0.0.1:9", true)
            ]
        );
        let one = endpoints.current();
        endpoints.answered(&one);
        assert!(endpoints.next(&one));
        assert!(!endpoints.next(&endpoints.current()) && endpoints.next(&endpoints.current()), "a head is no progress");
        endpoints.progressed();
        let one = endpoints.current();
        assert!(endpoints.next(&one), "bytes begin it anew");
        assert!(endpoints.next(&one), "of several downloads that fail at once the first one moves on");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_not_everybodys_is_asked_of_upstream_alone() {
        let (endpoints, _) = endpoints(false);
        assert!(!endpoints.has_others());
        endpoints.given(Via::Shared);
        assert!(!endpoints.has_others());
        endpoints.given(Via::Anonymous);
        assert!(endpoints.has_others(), "upstream gave it without a credential");
        endpoints.next(&endpoints.current());
        endpoints.given(Via::Client);
        assert!(!endpoints.has_others() && !endpoints.current().is_mirror);
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_refuses_or_lies_is_left() {
        let (endpoints, aside) = endpoints(true);
        let own = endpoints.current();
        assert!(!endpoints.leave(&own), "upstream's own word counts");
        endpoints.next(&own);
        let first = endpoints.current();
        endpoints.answered(&first);
        endpoints.next(&first);
        let second = endpoints.current();
        assert!(endpoints.leave(&first));
        assert_eq!(endpoints.name(), "127.0.0.3:9", "the other one is asked as before");
        assert!(endpoints.leave(&second) && !endpoints.current().is_mirror);
        endpoints.distrust(&Digest::of(crate::oci::Algorithm::Sha256, b"x"));
        assert!(aside.get(&"127.0.0.2:9".to_owned()).is_some(), "it brought bytes");
        assert!(aside.get(&"127.0.0.3:9".to_owned()).is_none(), "it brought none");
    }
}
