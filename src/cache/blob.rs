//! Blobs: from the store, from a running fill, or by a new one.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, Method, StatusCode};
use tokio::time::{Instant, timeout, timeout_at};

use super::body::Content;
use super::entitle::{Held, When};
use super::fetch::announced_digest;
use super::fill::{Fill, Joining};
use super::first::begins_with;
use super::flight::Role;
use super::lenders::{Lender, Lent, Proven};
use super::manifest::Want;
use super::progress::Head;
use super::supply::{Part, content_length};
use super::writes::Asked;
use super::{ANSWER_WITHIN, Cache, CacheError, CacheStatus, Found, Target, Wanted, out_of_time};
use crate::config::UnverifiedRanges;
use crate::oci::{Digest, Via};
use crate::party::Party;
use crate::store::{Link, LinkKind, StoredBlob, Trust};
use crate::upstream::{Ask, Interest};

/// How long a request waits for the check of a stored file before it streams with the tail held back. Most files are
/// checked within it, and then a damaged one is fetched again without the client noticing.
const CHECK_PATIENCE: Duration = Duration::from_secs(1);
/// How long a request waits for a new copy of what could not be read before it is read once more.
const ANEW_PATIENCE: Duration = Duration::from_secs(10);
/// How often a request looks again for what has changed under its hands. The last time it fills by itself, so that nobody
/// else's attempts can use them up.
const TRIES: usize = 4;

/// A blob to answer with.
#[derive(Debug)]
pub struct Blob {
    /// Its bytes.
    pub source: BlobSource,
    /// How it was found.
    pub status: CacheStatus,
}

/// Where the bytes of a blob are.
#[expect(clippy::large_enum_variant, reason = "one at a time, and the large one is what is pulled all the time")]
#[derive(Debug)]
pub enum BlobSource {
    /// In a file, whole or growing.
    Content(Content),
    /// Upstream, and they are not kept.
    Bypass(super::bypass::Bypass),
    /// Not wanted: a HEAD that upstream answered.
    Described {
        /// Bytes of the blob, if upstream said so.
        length: Option<u64>,
    },
}

/// By what a caller may have what a fill brings that is not its own.
struct Standing {
    lender: Lender,
    /// A HEAD that may be about anything; what the fill brings tells whether it was about that.
    unsure: Option<Proof>,
}

/// Why a fill is not read.
enum Unread {
    /// The store has no room for it.
    NoRoom,
    /// The answer to this caller.
    Refused(CacheError),
    /// What ended another caller's attempt. It says nothing about this one.
    Foreign(CacheError),
}

/// What upstream's HEAD proved.
#[derive(Debug, Clone)]
pub(super) struct Proof {
    pub(super) via: Via,
    pub(super) headers: HeaderMap,
    /// When upstream was asked.
    pub(super) asked: Asked,
    /// Whether it can be nothing else than an answer about this blob. A web page that everybody gets is no proof.
    is_sure: bool,
}

// === impl Cache ===

impl Cache {
    /// The blob `digest` for a GET of `party`'s in `target`; `first` is the part of it that is wanted first.
    pub async fn blob(
        self: &Arc<Self>,
        target: &Target,
        digest: &Digest,
        first: Part,
        party: Party,
    ) -> Result<Blob, CacheError> {
        let deadline = Instant::now() + ANSWER_WITHIN;
        let (waits, range_fill) = {
            let config = self.config.load();
            (config.unverified_ranges == UnverifiedRanges::Wait, config.range_fill)
        };
        let first = begins_with(first, range_fill, waits);
        let in_time = pin!(self.blob_until(target, digest, (first, party), deadline));
        match timeout_at(deadline, in_time).await.unwrap_or_else(|_| Err(out_of_time(target))) {
            Ok(blob) => Ok(blob),
            Err(error) => Err(self.told_by_digest(target, error)),
        }
    }

    async fn blob_until(
        self: &Arc<Self>,
        target: &Target,
        digest: &Digest,
        (first, party): (Part, Party),
        deadline: Instant,
    ) -> Result<Blob, CacheError> {
        self.admit(target)?;
        let mut last = CacheError::Stopped;
        let mut standing = None;
        let mut anew = None;
        for turn in 1..=TRIES {
            if let Some(stored) = self.stored(digest).await {
                if stored.trust == Trust::Unreadable && anew.is_none() {
                    // A read of it has failed before, perhaps in the middle of an answer. Where upstream cannot help, it is
                    // read once more.
                    let filled = Box::pin(self.filled(target, digest, (first, party, false), &mut standing));
                    match timeout(ANEW_PATIENCE, filled)
                        .await
                        .unwrap_or_else(|_| Err(Unread::Refused(out_of_time(target))))
                    {
                        Ok(blob) => return Ok(blob),
                        Err(Unread::NoRoom) => return Box::pin(self.passed(target, digest, party, deadline)).await,
                        Err(Unread::Refused(error) | Unread::Foreign(error)) => anew = Some(error),
                    }
                }
                self.entitled_to_blob(target, digest, stored.len).await?;
                match self.trusted(digest, stored).await {
                    Ok(content) => {
                        return Ok(Blob { source: BlobSource::Content(content), status: Found::Hit.into() });
                    }
                    // Quarantined: the next turn fetches it anew.
                    Err(error @ CacheError::Damaged(_)) => {
                        last = error;
                        continue;
                    }
                    // It stays where it is until a new one takes its place.
                    Err(CacheError::Unreadable(_)) => {
                        if let Some(error) = anew {
                            return Err(error);
                        }
                    }
                    // It is bad, and cannot be moved out of the way: a new one would not be found either.
                    Err(CacheError::NoSpace | CacheError::Store(_)) => {
                        return Box::pin(self.passed(target, digest, party, deadline)).await;
                    }
                    Err(error) => return Err(error),
                }
            }
            match Box::pin(self.filled(target, digest, (first, party, turn == TRIES), &mut standing)).await {
                Ok(blob) => return Ok(blob),
                Err(Unread::NoRoom) => return Box::pin(self.passed(target, digest, party, deadline)).await,
                Err(Unread::Refused(error)) => return Err(error),
                // The next turn finds what has arrived, or another fill.
                Err(Unread::Foreign(error)) => last = error,
            }
        }
        Err(last)
    }

    /// The blob by a running fill that this caller may read, or by a new one; with `alone` by a new one in any case.
    async fn filled(
        self: &Arc<Self>,
        target: &Target,
        digest: &Digest,
        (first, party, alone): (Part, Party, bool),
        standing: &mut Option<Standing>,
    ) -> Result<Blob, Unread> {
        self.check_missing(target, Wanted::Blob(*digest)).map_err(Unread::Refused)?;
        let joining = match standing {
            _ if alone => Joining::None,
            None => Joining::Any,
            Some(Standing { lender, .. }) => Joining::With(lender),
        };
        let (fill, interest, role) = self.fill(target, digest, joining, (first, party)).map_err(Unread::Refused)?;
        let (fill, interest, head) = self.read_fill(target, digest, (fill, interest), role, standing).await?;
        let content = Content::growing(Arc::clone(&head.file), head.length, fill.watcher.clone());
        let waits = self.config.load().unverified_ranges == UnverifiedRanges::Wait;
        let origin = self.origin(target, digest, Some(party)).map_err(Unread::Refused)?;
        let Some(content) = content.for_reader(origin, (fill.demand(), interest), waits) else {
            return Err(Unread::Foreign(CacheError::Parked(Box::new(*digest))));
        };
        let found = if role == Role::Leader { Found::Miss } else { Found::Collapsed };
        Ok(Blob { source: BlobSource::Content(content), status: found.into() })
    }

    /// Waits for the head of a fill that this caller may read, or of the one that takes its place.
    async fn read_fill(
        self: &Arc<Self>,
        target: &Target,
        digest: &Digest,
        (mut fill, mut interest): (Fill, Interest),
        role: Role,
        standing: &mut Option<Standing>,
    ) -> Result<(Fill, Interest, Arc<Head>), Unread> {
        let mut own = role == Role::Leader;
        loop {
            // What another caller's right brings is no answer for this one, nor what was asked before a write.
            own = own || self.is_answered_by(&fill, target);
            if !own {
                let entitled = self.stand_by(target, digest, &fill, standing).await;
                entitled.map_err(Unread::Refused)?;
            }
            match fill.watcher.clone().head().await {
                Ok(head) => return Ok((fill, interest, head)),
                Err(CacheError::NoSpace | CacheError::Store(_)) => return Err(Unread::NoRoom),
                Err(error @ (CacheError::Arrived(_) | CacheError::Parked(_))) => return Err(Unread::Foreign(error)),
                Err(error) if own => return Err(Unread::Refused(error)),
                // It failed in another caller's attempt: that says nothing about this one.
                Err(error) => {
                    fill = fill.successor().ok_or(Unread::Foreign(error))?;
                    interest = fill.wanted_by(interest.party());
                }
            }
        }
    }

    /// The blob streamed from upstream, since the store cannot have it.
    async fn passed(
        self: &Arc<Self>,
        target: &Target,
        digest: &Digest,
        party: Party,
        deadline: Instant,
    ) -> Result<Blob, CacheError> {
        let bypass = self.bypass(target, digest, party, deadline).await?;
        Ok(Blob { source: BlobSource::Bypass(bypass), status: Found::Bypass.into() })
    }

    /// The blob `digest` for a HEAD in `target`: what is not in the store is asked upstream, not downloaded. `want` says
    /// whether upstream must be asked in any case.
    pub async fn describe_blob(
        self: &Arc<Self>,
        target: &Target,
        digest: &Digest,
        want: Want,
    ) -> Result<Blob, CacheError> {
        let within = async {
            self.admit(target)?;
            if matches!(want, Want::Confirmed | Want::Required)
                && let Some(answer) = Box::pin(self.confirmed(target, want, self.prove_blob(target, digest))).await
            {
                return answer;
            }
            if let Some(stored) = self.stored(digest).await {
                let length = stored.len;
                self.entitled_to_blob(target, digest, length).await?;
                match self.trusted(digest, stored).await {
                    Ok(_) => {
                        let described = BlobSource::Described { length: Some(length) };
                        return Ok(Blob { source: described, status: Found::Hit.into() });
                    }
                    // A damaged file's length is nobody's.
                    Err(
                        CacheError::Damaged(_) | CacheError::Unreadable(_) | CacheError::NoSpace | CacheError::Store(_),
                    ) => {}
                    Err(error) => return Err(error),
                }
            }
            self.check_missing(target, Wanted::Blob(*digest))?;
            Box::pin(self.prove_blob(target, digest)).await
        };
        match timeout(ANSWER_WITHIN, pin!(within)).await.unwrap_or_else(|_| Err(out_of_time(target))) {
            Ok(blob) => Ok(blob),
            Err(error) => Err(self.told_by_digest(target, error)),
        }
    }

    /// The blob as upstream's HEAD describes it.
    async fn prove_blob(self: &Arc<Self>, target: &Target, digest: &Digest) -> Result<Blob, CacheError> {
        let proof = self.ask_proof(target, digest).await?;
        let described = BlobSource::Described { length: content_length(&proof.headers) };
        Ok(Blob { source: described, status: Found::Passed.into() })
    }

    /// The stored file of `digest`. A store that cannot be read is a miss: upstream may still answer.
    pub(super) async fn stored(&self, digest: &Digest) -> Option<StoredBlob> {
        match self.store.blob(digest).await {
            Ok(stored) => stored,
            Err(error) => {
                tracing::warn!(%digest, error = &error as &dyn std::error::Error, "a stored blob cannot be opened");
                None
            }
        }
    }

    /// A stored file as content that may be served: checked first where its stamp is void.
    async fn trusted(self: &Arc<Self>, digest: &Digest, stored: StoredBlob) -> Result<Content, CacheError> {
        if stored.trust == Trust::Verified {
            return Ok(Content::stored(stored));
        }
        let (mut watcher, stored) = self.verify(digest, stored);
        // Nothing can be held back of what has no bytes: its head is the whole answer.
        let patience = if stored.len == 0 { ANSWER_WITHIN } else { CHECK_PATIENCE };
        match timeout(patience, watcher.verdict()).await {
            Ok(Err(error)) => Err(error),
            Ok(Ok(_)) => Ok(Content::stored(stored)),
            Err(_) if stored.len == 0 => Err(CacheError::Damaged(Box::new(*digest))),
            Err(_) => {
                let waits = self.config.load().unverified_ranges == UnverifiedRanges::Wait;
                Ok(Content::checked(stored, watcher, waits))
            }
        }
    }

    /// Makes sure that the caller may have the stored blob, and that this repository has it.
    async fn entitled_to_blob(self: &Arc<Self>, target: &Target, digest: &Digest, size: u64) -> Result<(), CacheError> {
        let via = self.linked(target, digest, LinkKind::Blob).await.map(|link| link.via);
        self.entitled(target, &Wanted::Blob(*digest), Held { digest, size, via }).await
    }

    /// Whether the question that began the fill is this caller's own, and still as good as a new one: a fill may go on
    /// for longer than upstream's word counts, and upstream may have said no since.
    fn is_answered_by(&self, fill: &Fill, target: &Target) -> bool {
        fill.target == *target
            && self.generations.holds(&target.repository(), &fill.asked)
            && self.is_recent(target, &fill.asked)
            && !fill.is_doubted()
    }

    /// Whether what the fill brings to the same repository is for this caller too.
    async fn passes_with(&self, fill: &Fill, target: &Target) -> bool {
        let repository = target.repository();
        fill.target.is_in(&repository)
            && self.generations.holds(&repository, &fill.asked)
            // Else there is no need to wait for its head.
            && self.passes(target, Via::Anonymous, When::Now).await
            && match fill.via().await {
                Some(via) => self.passes(target, via, When::Now).await,
                None => false,
            }
    }

    /// As [`Self::entitled_to_blob`], for a blob that is still being filled by another right, or in another name. The fill
    /// may go on by the caller's right, and has the blob linked under its name.
    async fn stand_by(
        self: &Arc<Self>,
        target: &Target,
        digest: &Digest,
        fill: &Fill,
        standing: &mut Option<Standing>,
    ) -> Result<(), CacheError> {
        if standing.is_none() && self.passes_with(fill, target).await {
            // This fill alone proves that the name has the blob, and may fail yet.
            fill.lend(&Lender { target: target.clone(), proof: None });
            return Ok(());
        }
        let standing = match standing {
            Some(standing) => standing,
            None => standing.insert(self.prove_standing(target, digest).await?),
        };
        if let Some(proof) = &standing.unsure {
            fill.lend(&standing.lender);
            // What becomes of another's attempt is seen by who waits for it, and what came in this name needs no proof.
            let Ok(head) = fill.watcher.clone().head().await else { return Ok(()) };
            if fill.target == *target {
                return Ok(());
            }
            if head.length.is_none() || content_length(&proof.headers) != head.length {
                let reason = "a HEAD of a blob that does not tell which";
                return Err(CacheError::BadAnswer { upstream: target.upstream.clone(), reason });
            }
            standing.lender.proof = Some(Proven { via: proof.via, asked: proof.asked });
            standing.unsure = None;
        }
        if fill.lend(&standing.lender) == Lent::Published
            && let Some(Proven { via, asked }) = standing.lender.proof
            && let Some(stored) = self.stored(digest).await
        {
            self.keep_link(target, digest, Link::blob(via, stored.len), &asked).await;
        }
        Ok(())
    }

    /// Makes sure that the caller may have the blob, and that this repository has it, whoever fills it.
    async fn prove_standing(self: &Arc<Self>, target: &Target, digest: &Digest) -> Result<Standing, CacheError> {
        let known = Lender { target: target.clone(), proof: None };
        if let Some(link) = self.linked(target, digest, LinkKind::Blob).await
            && self.passes(target, link.via, When::Now).await
        {
            return Ok(Standing { lender: known, unsure: None });
        }
        let proof = self.ask_proof(target, digest).await?;
        if !proof.is_sure {
            return Ok(Standing { lender: known, unsure: Some(proof) });
        }
        let proof = Some(Proven { via: proof.via, asked: proof.asked });
        Ok(Standing { lender: Lender { proof, ..known }, unsure: None })
    }

    /// One HEAD for `digest` under this name, shared by all who wait for it. What it says about the caller's right is
    /// remembered.
    pub(super) async fn ask_proof(self: &Arc<Self>, target: &Target, digest: &Digest) -> Result<Proof, CacheError> {
        self.registry(&target.upstream)?;
        let (flight, _) = self.proofs.join(&self.question(target, *digest), &self.tasks, &self.stop, || {
            let (cache, target, digest) = (Arc::clone(self), target.clone(), *digest);
            async move {
                let asked = cache.generations.asking();
                let proof = cache.head_blob(&target, &digest, asked).await;
                if proof.as_ref().is_ok_and(|proof| !proof.is_sure) {
                    return proof;
                }
                cache.heard(&target, &asked, proof.as_ref().map(|proof| proof.via)).await;
                proof.inspect_err(|error| cache.note_missing(&target, Wanted::Blob(digest), error, &asked))
            }
        });
        flight.result().await.unwrap_or(Err(CacheError::Stopped))
    }

    async fn head_blob(self: &Arc<Self>, target: &Target, digest: &Digest, asked: Asked) -> Result<Proof, CacheError> {
        let ask = Ask::blob(Method::HEAD, &target.repo, digest, Instant::now() + ANSWER_WITHIN);
        let answer = self.registry(&target.upstream)?.fetch(ask.with_right(target.right.clone())).await?;
        let bad = |reason| CacheError::BadAnswer { upstream: target.upstream.clone(), reason };
        if answer.status != StatusCode::OK {
            return Err(bad("a status other than 200 to a HEAD"));
        }
        let named = announced_digest(&answer.headers);
        let length = content_length(&answer.headers);
        let mut stored = self.stored(digest).await;
        if let Some(file) = stored.take_if(|stored| length.is_some_and(|length| length != stored.len))
            && !self.is_damaged(digest, file).await
        {
            return Err(bad("a blob of another length than its digest has"));
        }
        let is_sure = match stored {
            Some(_) if named.is_none() && length.is_none() => {
                return Err(bad("a HEAD of a blob without its length or digest"));
            }
            Some(_) => true,
            None => named == Some(*digest),
        };
        if named.is_some_and(|named| named != *digest && named.algorithm() == digest.algorithm()) {
            return Err(bad("a HEAD of another blob"));
        }
        Ok(Proof { via: answer.via, headers: answer.headers, asked, is_sure })
    }

    /// Whether the stored file is not what its digest names, or cannot be read: then it, and not upstream, may have the
    /// wrong length. A wrong one is in quarantine after that.
    async fn is_damaged(self: &Arc<Self>, digest: &Digest, stored: StoredBlob) -> bool {
        if stored.trust == Trust::Verified {
            return false;
        }
        let (mut watcher, _stored) = self.verify(digest, stored);
        matches!(watcher.verdict().await, Err(CacheError::Damaged(_) | CacheError::Unreadable(_)))
    }
}
