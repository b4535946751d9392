//! What upstream said to callers' own credentials: who may pull from which repository, for a short time.
//!
//! A yes belongs to the principal, since a client may come with a new token each time. A no belongs to the credential:
//! a token that was issued for something else is refused, and the same client comes back at once with a better one.
//! Pushes and deletes are asked upstream every time, so there is nothing to remember about them.

use std::time::Duration;

use foldhash::HashMap;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::{CacheError, Repository};
use crate::upstream::{Lent, Principal};

/// How long a no is remembered.
pub(super) const NO_FOR: Duration = Duration::from_secs(5);
/// Entries of each memory.
const CAPACITY: usize = 10_000;

/// The memory.
#[derive(Default)]
pub(super) struct Rights {
    /// When upstream was asked that then said yes. Held for look-ups only.
    yes: Mutex<HashMap<(Principal, Repository), Instant>>,
    /// When upstream was asked that then said no, and its words.
    no: Mutex<HashMap<(Principal, Repository), (Instant, CacheError)>>,
}

// === impl Rights ===

impl Rights {
    /// Whether upstream said yes to whoever shows `lent` less than `lifetime` ago.
    pub(super) fn allows(&self, lent: &Lent, repository: &Repository, lifetime: Duration) -> bool {
        let asked = self.yes.lock().get(&(lent.principal(), repository.clone())).copied();
        asked.is_some_and(|asked| asked.elapsed() < lifetime)
    }

    /// What upstream said when it refused this credential a moment ago.
    pub(super) fn refuses(&self, lent: &Lent, repository: &Repository) -> Option<CacheError> {
        let no = self.no.lock();
        let (asked, error) = no.get(&(lent.key(), repository.clone()))?;
        (asked.elapsed() < NO_FOR).then(|| error.clone())
    }

    /// Upstream, asked at `asked`, said yes. What has been forgotten after `lifetime` makes room.
    pub(super) fn allow(&self, lent: &Lent, repository: &Repository, asked: Instant, lifetime: Duration) {
        let mut no = self.no.lock();
        let key = (lent.key(), repository.clone());
        match no.get(&key) {
            // Refused since.
            Some((refused, _)) if *refused > asked => return,
            Some(_) => no.remove(&key),
            None => None,
        };
        drop(no);
        let mut yes = self.yes.lock();
        make_room(&mut yes, |asked| asked.elapsed() < lifetime);
        let known = yes.entry((lent.principal(), repository.clone())).or_insert(asked);
        *known = asked.max(*known);
    }

    /// Upstream, asked at `asked`, did not have something that it gave before: it may be gone, or hidden from who may not
    /// read it any more. The yes from before does not count again; that is no no to anything else.
    pub(super) fn doubt(&self, lent: &Lent, repository: &Repository, asked: Instant) {
        let mut yes = self.yes.lock();
        let key = (lent.principal(), repository.clone());
        if yes.get(&key).is_some_and(|allowed| *allowed <= asked) {
            yes.remove(&key);
        }
    }

    /// The repository was written to: what was refused may be allowed now.
    pub(super) fn forget_refusals(&self, repository: &Repository) {
        self.no.lock().retain(|(_, of), _| of != repository);
    }

    /// Upstream, asked at `asked`, said no.
    pub(super) fn refuse(&self, lent: &Lent, repository: &Repository, asked: Instant, error: &CacheError) {
        let mut no = self.no.lock();
        make_room(&mut no, |(asked, _)| asked.elapsed() < NO_FOR);
        no.insert((lent.key(), repository.clone()), (asked, error.clone()));
        drop(no);
        self.doubt(lent, repository, asked);
    }
}

/// Where the memory is full, what has expired goes, and if nothing has, everything: it only ever saves a question.
fn make_room<K: Eq + std::hash::Hash, V>(memory: &mut HashMap<K, V>, is_alive: impl Fn(&V) -> bool) {
    if memory.len() >= CAPACITY {
        memory.retain(|_, value| is_alive(value));
        if memory.len() >= CAPACITY {
            memory.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_mins(1);

    fn repository(name: &str) -> Repository {
        Repository { upstream: "up".parse().unwrap(), repo: name.parse().unwrap() }
    }

    fn token(key: u8, principal: u8) -> Lent {
        Lent::token(Principal::new([key; 16]), Principal::new([principal; 16]), "secret".to_owned())
    }

    #[tokio::test(start_paused = true)]
    async fn a_yes_belongs_to_the_principal_and_expires() {
        let (rights, app) = (Rights::default(), repository("app"));
        let asked = Instant::now();
        tokio::time::advance(Duration::from_secs(2)).await;
        rights.allow(&token(1, 9), &app, asked, MINUTE);
        assert!(rights.allows(&token(2, 9), &app, MINUTE), "another token of the same principal");
        assert!(!rights.allows(&token(1, 8), &app, MINUTE), "somebody else");
        assert!(!rights.allows(&token(1, 9), &repository("other"), MINUTE), "another repository");
        tokio::time::advance(Duration::from_secs(57)).await;
        assert!(rights.allows(&token(1, 9), &app, MINUTE));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(!rights.allows(&token(1, 9), &app, MINUTE), "a minute after the question, not after the answer");
        assert!(rights.allows(&token(1, 9), &app, MINUTE * 2), "prolonged");
    }

    #[tokio::test(start_paused = true)]
    async fn a_no_belongs_to_the_credential_and_ends_the_yes() {
        let (rights, app) = (Rights::default(), repository("app"));
        rights.allow(&token(1, 9), &app, Instant::now(), MINUTE);
        rights.refuse(&token(2, 9), &app, Instant::now(), &CacheError::Stopped);
        assert!(!rights.allows(&token(1, 9), &app, MINUTE), "upstream is asked again");
        assert!(rights.refuses(&token(1, 9), &app).is_none(), "the better token is not refused");
        assert!(rights.refuses(&token(2, 9), &app).is_some());
        tokio::time::advance(NO_FOR).await;
        assert!(rights.refuses(&token(2, 9), &app).is_none(), "five seconds are over");
    }

    #[tokio::test(start_paused = true)]
    async fn a_doubt_ends_an_earlier_yes_and_refuses_nothing() {
        let (rights, app) = (Rights::default(), repository("app"));
        let early = Instant::now();
        tokio::time::advance(Duration::from_secs(1)).await;
        rights.allow(&token(1, 9), &app, Instant::now(), MINUTE);
        rights.doubt(&token(1, 9), &app, early);
        assert!(rights.allows(&token(1, 9), &app, MINUTE), "it was asked before the yes");
        rights.doubt(&token(2, 9), &app, Instant::now());
        assert!(!rights.allows(&token(1, 9), &app, MINUTE), "upstream is asked again");
        assert!(rights.refuses(&token(2, 9), &app).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_was_overtaken_changes_nothing() {
        let (rights, app) = (Rights::default(), repository("app"));
        let early = Instant::now();
        tokio::time::advance(Duration::from_secs(1)).await;
        rights.refuse(&token(1, 9), &app, Instant::now(), &CacheError::Stopped);
        rights.allow(&token(1, 9), &app, early, MINUTE);
        assert!(!rights.allows(&token(1, 9), &app, MINUTE), "it was revoked in between");
        tokio::time::advance(Duration::from_secs(1)).await;
        rights.allow(&token(1, 9), &app, Instant::now(), MINUTE);
        assert!(rights.refuses(&token(1, 9), &app).is_none() && rights.allows(&token(1, 9), &app, MINUTE));
        rights.refuse(&token(2, 9), &app, early, &CacheError::Stopped);
        assert!(rights.allows(&token(1, 9), &app, MINUTE), "an early no does not end a later yes");
    }

    #[tokio::test]
    async fn both_memories_are_bounded() {
        let (rights, now) = (Rights::default(), Instant::now());
        for n in 0..=CAPACITY {
            let name = repository(&format!("r{n}"));
            rights.allow(&token(1, 1), &name, now, MINUTE);
            rights.refuse(&token(2, 2), &name, now, &CacheError::Stopped);
        }
        assert!(rights.yes.lock().len() <= CAPACITY && rights.no.lock().len() <= CAPACITY);
    }
}
