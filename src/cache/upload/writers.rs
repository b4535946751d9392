//! Proof that a caller may write to a repository: upstream let it begin an upload there.
//!
//! A write makes doubtful, or empties, what everybody else is served. Who is refused by upstream must not get that far.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::session::Session;
use super::table::Leftover;
use crate::cache::write::WriteError;
use crate::cache::{Cache, Repository, Target};
use crate::upstream::{Principal, Right};

/// How long a proof holds: a client puts its manifests right behind its blobs.
const PROOF_FOR: Duration = Duration::from_mins(1);
/// Writers that are kept.
const CAPACITY: usize = 10_000;

/// Who may write where, as upstream showed a moment ago.
#[derive(Default)]
pub(in crate::cache) struct Writers {
    /// When upstream was asked; without a principal: everybody. Held for look-ups only.
    known: Mutex<HashMap<(Option<Principal>, Repository), Instant>>,
}

// === impl Writers ===

impl Writers {
    /// Upstream, asked at `asked`, let the caller write.
    pub(super) fn add(&self, target: &Target, asked: Instant) {
        let Some(key) = key(target) else { return };
        let mut known = self.known.lock();
        if known.len() >= CAPACITY {
            known.retain(|_, asked| asked.elapsed() < PROOF_FOR);
            if known.len() >= CAPACITY {
                known.clear();
            }
        }
        let latest = known.entry(key).or_insert(asked);
        *latest = asked.max(*latest);
    }

    fn hold(&self, target: &Target) -> bool {
        let Some(key) = key(target) else { return true };
        self.known.lock().get(&key).is_some_and(|asked| asked.elapsed() < PROOF_FOR)
    }
}

/// None: ocistern's own account, which only those use whom the operator lets in.
fn key(target: &Target) -> Option<(Option<Principal>, Repository)> {
    let principal = match &target.right {
        Right::Shared => return None,
        Right::Anonymous => None,
        Right::Client(lent) => Some(lent.principal()),
    };
    Some((principal, target.repository()))
}

// === impl Cache ===

impl Cache {
    /// Fails with upstream's words where it does not let the caller write, and where it cannot be asked; who has written
    /// a moment ago need not show it again.
    pub(in crate::cache) async fn prove_writer(self: &Arc<Self>, target: &Target) -> Result<(), WriteError> {
        if self.writers.hold(target) { Ok(()) } else { self.ask_writer(target).await }
    }

    /// Asks upstream whether it lets the caller write, by an upload that is begun and given up at once.
    pub(in crate::cache) async fn ask_writer(self: &Arc<Self>, target: &Target) -> Result<(), WriteError> {
        let asked = Instant::now();
        let mut session = Session::new();
        session.open(self, target, "", None).await?;
        self.writers.add(target, asked);
        self.cancel_upstream(session.abandon().map(|location| Leftover::new(target, location)));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::Lent;

    fn target(repo: &str, right: Right) -> Target {
        Target { upstream: "up".parse().unwrap(), repo: repo.parse().unwrap(), right }
    }

    fn client(key: u8, principal: u8) -> Right {
        let (key, principal) = (Principal::new([key; 16]), Principal::new([principal; 16]));
        Right::Client(Lent::token(key, principal, "secret".to_owned()))
    }

    #[tokio::test(start_paused = true)]
    async fn a_proof_is_of_one_caller_in_one_repository_for_a_minute() {
        let writers = Writers::default();
        writers.add(&target("app", client(1, 1)), Instant::now());
        assert!(writers.hold(&target("app", client(2, 1))), "another token of the same caller");
        assert!(!writers.hold(&target("app", client(1, 2))) && !writers.hold(&target("other", client(1, 1))));
        assert!(!writers.hold(&target("app", Right::Anonymous)));
        assert!(writers.hold(&target("app", Right::Shared)));
        writers.add(&target("open", Right::Anonymous), Instant::now());
        assert!(writers.hold(&target("open", Right::Anonymous)) && !writers.hold(&target("open", client(1, 1))));
        tokio::time::advance(PROOF_FOR).await;
        assert!(!writers.hold(&target("app", client(1, 1))) && !writers.hold(&target("open", Right::Anonymous)));
    }

    #[tokio::test]
    async fn the_memory_is_bounded() {
        let writers = Writers::default();
        for n in 0..=CAPACITY {
            writers.add(&target(&format!("r{n}"), Right::Anonymous), Instant::now());
        }
        assert!(writers.known.lock().len() <= CAPACITY);
    }
}
