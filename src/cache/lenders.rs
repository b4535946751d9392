//! Lenders: the readers of a fill who may have the blob by a right of their own, so that it can go on by theirs where
//! upstream refuses who began it.
//!
//! A refusal answers only its owner. Were it the answer to all who wait, anybody could take a blob from those who may
//! have it, by asking for it first and without end.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use parking_lot::Mutex;

use super::writes::Asked;
use super::{CacheError, Repository, Target};
use crate::oci::Via;

/// The lenders of one fill.
#[derive(Debug)]
pub(super) struct Lenders(Mutex<State>);

/// Somebody who may have the blob.
#[derive(Debug, Clone)]
pub(super) struct Lender {
    pub(super) target: Target,
    /// Upstream's word that this name has the blob; none: that is known from elsewhere, or not sure enough to be kept.
    pub(super) proof: Option<Proven>,
}

/// Upstream's word that a name has the blob.
#[derive(Debug, Clone, Copy)]
pub(super) struct Proven {
    pub(super) via: Via,
    /// When upstream was asked.
    pub(super) asked: Asked,
}

/// Whether a fill still takes lenders.
#[derive(Debug)]
enum State {
    /// It runs. Who is in here may be asked for as long as it does.
    Open(HashMap<Target, Standing>),
    /// The blob is published, and the names are linked to it.
    Linked,
    /// It has failed, and another one may have taken them over.
    Closed,
}

/// What is known of a lender.
#[derive(Debug, Clone, Copy)]
struct Standing {
    proof: Option<Proven>,
    /// Its right was shown, and refused.
    spent: bool,
}

/// What became of an offer to lend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lent {
    /// It stands by, and its name is linked when the blob is published.
    Waits,
    /// Too late to be linked: the blob is published already.
    Published,
    /// Too late: the fill has failed.
    Failed,
}

// === impl Lenders ===

impl Lenders {
    /// Those that stood by another fill.
    fn of(lenders: HashMap<Target, Standing>) -> Self {
        Self(Mutex::new(State::Open(lenders)))
    }

    /// Adds one, once for each name and right; the newest proof counts.
    pub(super) fn add(&self, lender: &Lender) -> Lent {
        match &mut *self.0.lock() {
            State::Open(lenders) => {
                let known = lenders.entry(lender.target.clone()).or_insert(Standing { proof: None, spent: false });
                known.proof = [known.proof, lender.proof].into_iter().flatten().max_by_key(|proof| proof.asked.instant);
                Lent::Waits
            }
            State::Linked => Lent::Published,
            State::Closed => Lent::Failed,
        }
    }

    /// Whether the fill has failed, or is about to.
    pub(super) fn are_closed(&self) -> bool {
        matches!(*self.0.lock(), State::Closed)
    }

    /// The next whose right goes on with a download, of which a part has come by that of `refused`; none: there is
    /// nobody. Who is not refused stays to be linked. A credential of another upstream never goes to this one.
    pub(super) fn borrow(&self, refused: &Target) -> Option<Target> {
        let mut state = self.0.lock();
        let State::Open(lenders) = &mut *state else { return None };
        if let Some(standing) = lenders.get_mut(refused) {
            *standing = Standing { proof: None, spent: true };
        }
        let mut left = lenders.iter_mut().filter(|(_, standing)| !standing.spent);
        let (next, standing) = left.find(|(target, _)| target.upstream == refused.upstream)?;
        standing.spent = true;
        Some(next.clone())
    }

    /// Ends those of a fill that `error` has ended before anything came in the name of `refused`: in whose name another
    /// one begins, and who stands by that. None: there is nobody whom upstream might answer otherwise.
    pub(super) fn pass_on(&self, refused: &Target, error: &CacheError) -> Option<(Target, Self)> {
        let state = std::mem::replace(&mut *self.0.lock(), State::Closed);
        let State::Open(mut lenders) = state else { return None };
        lenders.remove(refused);
        let elsewhere = error.is_of_upstream_as_a_whole();
        let next = lenders.keys().find(|target| !elsewhere || target.upstream != refused.upstream)?.clone();
        lenders.remove(&next);
        Some((next, Self::of(lenders)))
    }

    /// Ends those of a fill that has published the blob: all that was proven.
    pub(super) fn publish(&self) -> Vec<(Target, Proven)> {
        let State::Open(lenders) = std::mem::replace(&mut *self.0.lock(), State::Linked) else { return Vec::new() };
        lenders.into_iter().filter_map(|(target, standing)| Some((target, standing.proof?))).collect()
    }
}

/// What of it makes a link: the newest word for each name, by each kind of right.
pub(super) fn links(proven: Vec<(Target, Proven)>) -> impl Iterator<Item = (Target, Proven)> {
    let mut newest: HashMap<(Repository, Via), (Target, Proven)> = HashMap::new();
    for (target, proof) in proven {
        match newest.entry((target.repository(), proof.via)) {
            Entry::Vacant(entry) => {
                entry.insert((target, proof));
            }
            Entry::Occupied(mut entry) if entry.get().1.asked.instant < proof.asked.instant => {
                entry.insert((target, proof));
            }
            Entry::Occupied(_) => {}
        }
    }
    newest.into_values()
}

impl Default for Lenders {
    fn default() -> Self {
        Self::of(HashMap::new())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::super::writes::Generations;
    use super::*;
    use crate::clock::Timeline;
    use crate::clock::twin::system;
    use crate::oci::UpstreamName;
    use crate::upstream::{Fault, Lent as Credential, Principal, Right, UpstreamError};

    fn caller(upstream: &str, repo: &str, key: u8) -> Target {
        let principal = Principal::new([key; 16]);
        let right = Right::Client(Credential::token(principal, principal, "secret".to_owned()));
        Target { upstream: upstream.parse().unwrap(), repo: repo.parse().unwrap(), right }
    }

    fn lender(target: Target) -> Lender {
        let timeline = Arc::new(Timeline::new(system()));
        Lender { target, proof: Some(Proven { via: Via::Client, asked: Generations::new(timeline).asking() }) }
    }

    fn error(fault: Fault) -> CacheError {
        UpstreamError { upstream: "up".parse::<UpstreamName>().unwrap(), fault }.into()
    }

    fn forbidden() -> CacheError {
        error(Fault::Forbidden { message: String::new() })
    }

    #[tokio::test(start_paused = true)]
    async fn who_asks_a_thousand_times_stands_by_once_and_is_linked_once() {
        let lenders = Lenders::default();
        let mut newest = None;
        for n in 0..3000_u32 {
            tokio::time::advance(Duration::from_millis(1)).await;
            let lender = lender(caller("up", if n % 2 == 0 { "a" } else { "b" }, u8::try_from(n % 10).unwrap()));
            newest = lender.proof;
            assert_eq!(lenders.add(&lender), Lent::Waits);
            // That it is known from elsewhere takes nothing away.
            lenders.add(&Lender { proof: None, ..lender });
        }
        let proven = lenders.publish();
        assert_eq!(proven.len(), 10, "five callers in each of two names");
        let links: Vec<_> = links(proven).collect();
        assert_eq!(links.len(), 2, "one write to the disk for each name");
        let last = links.iter().map(|(_, proof)| proof.asked.instant).max();
        assert_eq!(last, newest.map(|proof| proof.asked.instant), "by the newest word");
        assert_eq!(lenders.add(&lender(caller("up", "a", 1))), Lent::Published);
    }

    #[tokio::test]
    async fn each_is_tried_once_in_turn_and_nobody_after_the_end() {
        let (eve, ann, bob) = (caller("up", "a", 1), caller("up", "a", 2), caller("up", "b", 3));
        let lenders = Lenders::default();
        lenders.add(&lender(ann.clone()));
        lenders.add(&lender(bob.clone()));
        let (first, rest) = lenders.pass_on(&eve, &forbidden()).unwrap();
        assert!(lenders.are_closed() && lenders.add(&lender(eve)) == Lent::Failed);
        let (second, last) = rest.pass_on(&first, &forbidden()).unwrap();
        assert!(first != second && [&first, &second].into_iter().all(|one| [&ann, &bob].contains(&one)));
        assert!(last.pass_on(&second, &forbidden()).is_none());
    }

    #[tokio::test]
    async fn an_upstream_that_cannot_be_reached_is_not_asked_in_everybodys_name() {
        let (eve, ann, elsewhere) = (caller("up", "a", 1), caller("up", "a", 2), caller("other", "a", 3));
        let lenders = Lenders::default();
        lenders.add(&lender(ann));
        lenders.add(&lender(elsewhere.clone()));
        let (next, rest) = lenders.pass_on(&eve, &error(Fault::OwnListener)).unwrap();
        assert_eq!(next, elsewhere);
        assert!(rest.pass_on(&next, &forbidden()).is_some(), "by its own word");
    }

    #[tokio::test]
    async fn a_download_goes_on_by_those_of_its_upstream_alone() {
        let (eve, ann, elsewhere) = (caller("up", "a", 1), caller("up", "a", 2), caller("other", "a", 3));
        let lenders = Lenders::default();
        lenders.add(&lender(elsewhere));
        assert_eq!(lenders.borrow(&eve), None, "a credential never goes to another upstream");
        lenders.add(&lender(ann.clone()));
        assert_eq!(lenders.borrow(&eve), Some(ann.clone()));
        assert_eq!(lenders.borrow(&ann), None, "each once");
        assert_eq!(lenders.publish().len(), 1, "who was refused is not linked");
    }
}
