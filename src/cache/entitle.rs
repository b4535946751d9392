//! Whether a caller may have what is in the store: the one check before every hit, whatever is asked for and how.
//!
//! A cached byte is not a permission. What upstream gives to everybody is for everybody as long as its word is fresh;
//! what it gave to a caller's credential is for callers to whose own credential upstream said yes; what it gave to
//! ocistern's account is for those whom the listener let through as that. Where none of this is known, upstream is
//! asked for the very thing by HEAD, by the caller's right; what a miss fetches is proof in itself.
//!
//! A stranger must not learn from a refusal whether there was anything to refuse: it gets upstream's answer, by one
//! request, in either case (see [`Cache::told`]).

use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;

use super::freshness::REVALIDATION_PATIENCE;
use super::supply::content_length;
use super::writes::Asked;
use super::{Cache, CacheError, Target, Wanted};
use crate::config::{Credentials, Upstream};
use crate::oci::{Digest, Reference, RepoName, Via};
use crate::store::{Access, Link, LinkKind};
use crate::upstream::Right;

/// What a caller's right is judged by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum When {
    /// Upstream's word that is still fresh.
    Now,
    /// Its last word, as far as the operator lets that stand while upstream cannot be asked.
    Away,
}

/// What of the store a request is about to be answered with.
#[derive(Debug, Clone, Copy)]
pub(super) struct Held<'a> {
    pub(super) digest: &'a Digest,
    /// Its length.
    pub(super) size: u64,
    /// By whose right upstream gave it in this repository; none: it never did.
    pub(super) via: Option<Via>,
}

/// What the operator says about rights.
#[derive(Debug, Clone, Copy)]
struct Terms {
    sealed: bool,
    /// Nothing is public.
    always_client: bool,
    public_for: Duration,
    access_ttl: Duration,
    access_stale: Duration,
}

// === impl Terms ===

impl Terms {
    fn of(upstream: Option<&Arc<Upstream>>, repo: &RepoName) -> Self {
        upstream.map_or(
            // An upstream that there is not is asked nothing and holds nothing.
            Self {
                sealed: false,
                always_client: true,
                public_for: Duration::ZERO,
                access_ttl: Duration::ZERO,
                access_stale: Duration::ZERO,
            },
            |upstream| Self {
                sealed: upstream.is_sealed(repo),
                always_client: matches!(upstream.credentials, Credentials::Client),
                public_for: upstream.public_for,
                access_ttl: upstream.access_ttl,
                access_stale: upstream.access_stale,
            },
        )
    }
}

// === impl Cache ===

impl Cache {
    fn terms(&self, target: &Target) -> Terms {
        Terms::of(self.config.load().upstreams.get(&target.upstream), &target.repo)
    }

    /// The door of every request: refused is who was refused a moment ago, and who shows no credential where one is
    /// always wanted.
    pub(super) fn admit(&self, target: &Target) -> Result<(), CacheError> {
        self.check_identity(target)?;
        match &target.right {
            Right::Client(lent) => self.rights.refuses(lent, &target.repository()).map_or(Ok(()), Err),
            Right::Anonymous | Right::Shared => Ok(()),
        }
    }

    /// Fails for a caller without a credential where one is always wanted.
    pub(super) fn check_identity(&self, target: &Target) -> Result<(), CacheError> {
        if target.right == Right::Anonymous && self.terms(target).always_client {
            return Err(CacheError::CredentialWanted { upstream: target.upstream.clone() });
        }
        Ok(())
    }

    /// Whether the caller may have what upstream gave `via`, as far as is known.
    pub(super) async fn passes(&self, target: &Target, via: Via, when: When) -> bool {
        match (&target.right, via) {
            (Right::Shared, via) => via != Via::Client,
            (_, Via::Shared) | (Right::Anonymous, Via::Client) => false,
            (Right::Anonymous, Via::Anonymous) => self.is_public(target, when).await,
            (Right::Client(_), Via::Client) => self.is_allowed(target, when),
            (Right::Client(_), Via::Anonymous) => self.is_public(target, when).await || self.is_allowed(target, when),
        }
    }

    /// Whether upstream gives the repository to everybody. One look into memory as long as that is fresh.
    async fn is_public(&self, target: &Target, when: When) -> bool {
        let (terms, repository) = (self.terms(target), target.repository());
        if terms.always_client {
            return false;
        }
        match self.verdict(&repository).await {
            Some(verdict) if when == When::Away || terms.sealed => verdict.access == Access::Public,
            Some(verdict) => verdict.is_fresh_public(terms.public_for),
            None => false,
        }
    }

    /// Whether upstream said yes to this caller's credential.
    fn is_allowed(&self, target: &Target, when: When) -> bool {
        let Right::Client(lent) = &target.right else { return false };
        let terms = self.terms(target);
        let prolonged = when == When::Away || terms.sealed;
        let lifetime = terms.access_ttl + if prolonged { terms.access_stale } else { Duration::ZERO };
        self.rights.allows(lent, &target.repository(), lifetime)
    }

    /// Whether what upstream said when it was asked then still counts for this caller.
    pub(super) fn is_recent(&self, target: &Target, asked: &Asked) -> bool {
        let terms = self.terms(target);
        let lifetime = match target.right {
            Right::Shared => return true,
            Right::Anonymous => terms.public_for,
            Right::Client(_) => terms.access_ttl,
        };
        asked.instant.elapsed() < lifetime
    }

    /// Makes sure that the caller may have `held`, which is `wanted`, and that this repository has it: by what is known,
    /// else by asking upstream.
    pub(super) async fn entitled(
        self: &Arc<Self>,
        target: &Target,
        wanted: &Wanted,
        held: Held<'_>,
    ) -> Result<(), CacheError> {
        let mut known_while_away = false;
        if let Some(via) = held.via {
            if self.passes(target, via, When::Now).await {
                return Ok(());
            }
            known_while_away = self.passes(target, via, When::Away).await;
        }
        if known_while_away && self.unanswered.get(target).is_some() {
            return Ok(());
        }
        self.check_missing(target, wanted.clone())?;
        let asked = self.generations.asking();
        let asking = Box::pin(self.ask_whether(target, wanted, held));
        let answer = if known_while_away {
            // As a known tag does, what is known waits for upstream so long and no longer.
            timeout(REVALIDATION_PATIENCE, asking).await
        } else {
            Ok(asking.await)
        };
        match answer {
            Ok(Ok(())) => {
                self.unanswered.remove(target);
                Ok(())
            }
            Ok(Err(error)) if !known_while_away || error.is_upstreams_word() => {
                if error.is_missing() {
                    Box::pin(self.withdraw(target, held.digest, &asked)).await;
                }
                Err(error)
            }
            Ok(Err(_)) | Err(_) => {
                self.unanswered.insert(target.clone(), ());
                Ok(())
            }
        }
    }

    /// Upstream, asked then, did not have what it gave before: it is gone, or hidden from who may not read it any more.
    /// That it was given before does not count again, should upstream be away next time.
    async fn withdraw(&self, target: &Target, digest: &Digest, asked: &Asked) {
        let (Target { upstream, repo, right }, repository) = (target, target.repository());
        match right {
            Right::Shared => {}
            Right::Client(lent) => self.rights.doubt(lent, &repository, asked.instant),
            Right::Anonymous => {
                let link = self.linked(target, digest, LinkKind::Blob).await;
                let Some(link) = link.filter(|link| link.via == Via::Anonymous) else { return };
                let link = Link { via: Via::Client, ..Arc::unwrap_or_clone(link) };
                if let Err(error) = self.store.set_link(upstream, repo, digest, &link, asked.at).await {
                    tracing::warn!(
                        %upstream, repository = %repo, %digest, error = &error as &dyn std::error::Error,
                        "that something is not public any more could not be kept"
                    );
                }
                self.hot.remove_from(&repository, digest);
            }
        }
    }

    /// Asks upstream whether this repository has it and this caller may have it; a yes is kept as its link.
    async fn ask_whether(self: &Arc<Self>, target: &Target, wanted: &Wanted, held: Held<'_>) -> Result<(), CacheError> {
        match wanted {
            Wanted::Blob(digest) => {
                let proof = self.ask_proof(target, digest).await?;
                // The file may have turned out to be damaged.
                let size = content_length(&proof.headers).unwrap_or(held.size);
                self.keep_link(target, digest, Link::blob(proof.via, size), &proof.asked).await;
            }
            Wanted::Manifest(reference) => {
                let proof = self.describe_upstream(target, reference).await?;
                if *reference == Reference::Digest(*held.digest) {
                    self.keep_manifest_link(target, &proof).await;
                    self.keep_seen_tags(target, held.digest).await;
                }
            }
        }
        Ok(())
    }

    /// Upstream has answered a question about `target`: with something, `via` whose right, or not. Of what the answer
    /// says about content it must be sure: a web page that anybody gets is no proof that the repository is public.
    pub(super) async fn heard(&self, target: &Target, asked: &Asked, answer: Result<Via, &CacheError>) {
        let repository = target.repository();
        if answer.is_err_and(CacheError::is_refusal) {
            self.doubt_what_is_under_way(target, asked);
        }
        match (answer, &target.right) {
            (Ok(Via::Anonymous), _) => self.learn_access(&repository, Access::Public, asked).await,
            (Ok(Via::Client), Right::Client(lent)) => {
                let terms = self.terms(target);
                self.rights.allow(lent, &repository, asked.instant, terms.access_ttl + terms.access_stale);
            }
            (Err(error), Right::Anonymous) if error.is_refusal() => {
                self.learn_access(&repository, Access::Private, asked).await;
            }
            (Err(error), Right::Client(lent)) if error.is_refusal() => {
                self.rights.refuse(lent, &repository, asked.instant, error);
            }
            // What the account gets, and what says nothing about rights.
            _ => {}
        }
    }

    /// An error as the caller is told it: what it says must not depend on what is in the store.
    pub(super) fn told(&self, target: &Target, error: CacheError) -> CacheError {
        if target.right == Right::Shared {
            return error;
        }
        // Not what the disk says of repositories of which something is kept: after a start nobody has a right yet to what
        // is private, so that a challenge would lead nowhere.
        let (terms, heard) = (self.terms(target), self.verdicts.heard(&target.repository()));
        let is_public = !terms.always_client && heard.is_some_and(|heard| heard.is_fresh_public(terms.public_for));
        let is_private = heard.is_some_and(|heard| heard.access == Access::Private);
        let cannot_be_asked = error.is_unavailable() || matches!(error, CacheError::Sealed { .. });
        if target.right == Right::Anonymous && cannot_be_asked && is_private {
            return CacheError::CredentialWanted { upstream: target.upstream.clone() };
        }
        if is_public || self.is_allowed(target, When::Now) { error } else { error.without_words() }
    }

    /// The same of what is asked for by its digest. It may be in the store under a name of which this caller must not know,
    /// and upstream is asked by HEAD then: its words are for nobody, also where the repository is everybody's.
    pub(super) fn told_by_digest(&self, target: &Target, error: CacheError) -> CacheError {
        self.told(target, error.without_words())
    }

    /// Whether the caller may read the repository, as far as is known: then upstream's 404 means what it says.
    pub(super) async fn may_read(&self, target: &Target) -> bool {
        target.right == Right::Shared || self.passes(target, Via::Anonymous, When::Away).await
    }

    /// Whether upstream never said that a credential is needed, nor the operator.
    pub(super) async fn may_be_public(&self, target: &Target) -> bool {
        !self.terms(target).always_client && !self.is_private(target).await
    }

    /// Whether upstream's last word was that a credential is needed.
    async fn is_private(&self, target: &Target) -> bool {
        self.verdict(&target.repository()).await.is_some_and(|verdict| verdict.access == Access::Private)
    }
}
