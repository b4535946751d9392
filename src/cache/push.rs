//! Manifests on their way up, and deletes: what they may change is doubtful before they are forwarded, and known again
//! only when upstream has answered.
//!
//! Each runs on a task of its own that goes on when its client leaves: upstream may do what it was asked all the same,
//! and until it has answered nothing that it says about the repository counts.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use http::header::CONTENT_TYPE;
use http::{HeaderMap, Method, StatusCode};
use http_body::{Body as _, Frame};
use http_body_util::{BodyExt as _, StreamBody};
use tokio::sync::oneshot;
use tokio::time::{Duration, Instant};

use super::upload::{ClientBody, ClientFault, Pace};
use super::write::{Said, WriteError};
use super::{Asked, Cache, CacheError, PublishedManifest, Target, WriteGuard};
use crate::config::TagPolicy;
use crate::metrics::Kind;
use crate::oci::{Algorithm, Digest, ManifestInfo, Reference, Tag, media};
use crate::upstream::{Call, CallBody, CallTarget, Fault, Right, UpstreamError};

/// The largest manifest that is passed on; one that is larger than `store.max_manifest` is not kept.
pub const LARGEST_MANIFEST: u64 = 64 << 20;
/// Time for upstream's answer to a manifest or a delete: some registries look for every part of it in their storage.
const WRITTEN_WITHIN: Duration = Duration::from_mins(2);

/// A manifest to be put.
pub struct Put {
    /// Where.
    pub target: Target,
    /// Under which name.
    pub reference: Reference,
    /// Under which further names (`?tag=`).
    pub tags: Vec<Tag>,
    /// What goes along.
    pub headers: HeaderMap,
    /// The manifest.
    pub body: ClientBody,
}

/// What is deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Doomed {
    /// A manifest, or a tag.
    Manifest(Reference),
    /// A blob.
    Blob(Digest),
    /// A tag, and nothing else.
    Tag(Tag),
    /// Everything.
    Repository,
    /// Nothing: the opposite, what was deleted comes back.
    Restored,
}

/// A client's manifest.
enum Manifest {
    /// All of it.
    Whole(Bytes),
    /// Larger than what is kept.
    Large(ClientBody, Option<u64>),
}

// === impl Doomed ===

impl Doomed {
    /// Upstream's answer, if it says that it was done. The specification has 202; some registries say 204.
    fn done(&self, said: Said) -> Result<Said, WriteError> {
        match self {
            // Nothing is believed by it but that everything has to be asked.
            Self::Restored => said.into_success(),
            _ => said.expecting(&[StatusCode::ACCEPTED, StatusCode::NO_CONTENT]),
        }
    }
}

// === impl Cache ===

impl Cache {
    /// Puts a manifest upstream, and keeps it here. The digest by which it can be asked for from now on.
    pub async fn put_manifest(self: &Arc<Self>, put: Put) -> Result<(Said, Digest), WriteError> {
        let cache = Arc::clone(self);
        self.to_the_end(async move { cache.put(put).await }).await
    }

    async fn put(self: &Arc<Self>, put: Put) -> Result<(Said, Digest), WriteError> {
        let Put { target, reference, mut tags, headers, body } = put;
        let manifest = self.receive(body).await?;
        let digest = match (&manifest, &reference) {
            (Manifest::Whole(bytes), Reference::Digest(expected)) => {
                let actual = Digest::of(expected.algorithm(), bytes);
                if actual != *expected {
                    let (expected, actual) = (Box::new(*expected), Box::new(actual));
                    return Err(WriteError::WrongDigest { expected, actual });
                }
                Some(actual)
            }
            (Manifest::Whole(bytes), Reference::Tag(_)) => Some(Digest::of(Algorithm::Sha256, bytes)),
            (Manifest::Large(..), Reference::Digest(digest)) => Some(*digest),
            (Manifest::Large(..), Reference::Tag(_)) => None,
        };
        // Nothing else goes upstream of the query: what else it might name there is not marked as doubtful.
        let query: Vec<_> = tags.iter().map(|tag| format!("tag={tag}")).collect();
        if let Reference::Tag(tag) = &reference
            && !tags.contains(tag)
        {
            tags.push(tag.clone());
        }
        let path = format!("/v2/{}/manifests/{reference}", target.repo);
        let mut call = call(Kind::Manifest, Method::PUT, with_query(path, &query.join("&")), &target);
        let media_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).map(str::to_owned);
        call.headers = headers;
        let kept = match manifest {
            Manifest::Whole(bytes) => {
                call.body = CallBody::Bytes(bytes.clone());
                Some(bytes)
            }
            Manifest::Large(body, length) => {
                call.body = CallBody::Stream(body, length);
                None
            }
        };
        self.check_open(&target, &tags)?;
        self.prove_writer(&target).await?;
        let guard = self.writing(&target, &tags).await.map_err(WriteError::Unmarked)?;
        let said = self.relay(&target.upstream, call).await.and_then(|said| said.expecting(&[StatusCode::CREATED]));
        let said = match said.map_err(blame) {
            Ok(said) => said,
            Err(error) => {
                if error.is_refusal() {
                    guard.refused().await;
                }
                return Err(error);
            }
        };
        // Upstream decides by which algorithm it names what was put under a tag.
        let digest = said.digest().or(digest).ok_or_else(|| WriteError::Cache(no_digest(&target)))?;
        // A registry that does not know the parameter has not set them: they stay doubtful.
        let named = said.tags();
        tags.retain(|tag| named.contains(tag) || reference == Reference::Tag(tag.clone()));
        // What is too large to be kept is empty here, and has another digest.
        let bytes = kept.unwrap_or_default();
        let media_type = media_type.unwrap_or_else(|| media_type_of(&bytes));
        self.published_manifest(guard, &target, &tags, PublishedManifest { digest, media_type, bytes }).await;
        Ok((said, digest))
    }

    /// Fails if a rule seals one of these tags: nothing is written there, and what is stored of it stays.
    fn check_open(&self, target: &Target, tags: &[Tag]) -> Result<(), WriteError> {
        if tags.iter().all(|tag| self.tag_policy(target, tag) != TagPolicy::Sealed) {
            return Ok(());
        }
        let (upstream, fault) = (target.upstream.clone(), Fault::Sealed);
        Err(WriteError::Cache(UpstreamError { upstream, fault }.into()))
    }

    /// Deletes upstream, and here before and after it.
    pub async fn delete(self: &Arc<Self>, target: &Target, doomed: Doomed, delete: Call) -> Result<Said, WriteError> {
        let (cache, target) = (Arc::clone(self), target.clone());
        if let Doomed::Manifest(Reference::Tag(tag)) | Doomed::Tag(tag) = &doomed {
            self.check_open(&target, std::slice::from_ref(tag))?;
        }
        self.to_the_end(async move {
            // Nobody empties the cache of what it may not write, though it may see it. A token to delete with may not
            // suffice to push: then upstream comes first.
            let writes = match cache.ask_writer(&target).await {
                Ok(()) => true,
                Err(error) if error.is_denial() && target.right != Right::Anonymous => false,
                Err(error) => return Err(error),
            };
            let guard = match &doomed {
                Doomed::Manifest(Reference::Tag(tag)) | Doomed::Tag(tag) => {
                    cache.writing(&target, std::slice::from_ref(tag)).await
                }
                _ => cache.deleting(&target).await,
            };
            let guard = guard.map_err(WriteError::Unmarked)?;
            // A crash between upstream's answer and what follows it leaves nothing that is deleted.
            if writes && let Err(error) = cache.forget(&target, &doomed).await {
                guard.refused().await;
                return Err(WriteError::Unmarked(error));
            }
            match cache.relay(&target.upstream, delete).await.and_then(|said| doomed.done(said)) {
                Ok(said) => {
                    cache.deleted(guard, &target, &doomed).await;
                    Ok(said)
                }
                Err(error) => {
                    if error.is_refusal() {
                        guard.refused().await;
                    } else if !writes && let Err(unforgotten) = cache.forget(&target, &doomed).await {
                        tracing::warn!(
                            upstream = %target.upstream, repository = %target.repo,
                            error = &unforgotten as &dyn std::error::Error,
                            "what may have been deleted upstream could not be forgotten"
                        );
                    }
                    Err(error)
                }
            }
        })
        .await
    }

    /// `DELETE NAME/manifests/REFERENCE`.
    pub async fn delete_manifest(self: &Arc<Self>, target: &Target, reference: &Reference) -> Result<Said, WriteError> {
        let path = format!("/v2/{}/manifests/{reference}", target.repo);
        let delete = call(Kind::Manifest, Method::DELETE, path, target);
        self.delete(target, Doomed::Manifest(reference.clone()), delete).await
    }

    /// `DELETE NAME/blobs/DIGEST`.
    pub async fn delete_blob(self: &Arc<Self>, target: &Target, digest: &Digest) -> Result<Said, WriteError> {
        let path = format!("/v2/{}/blobs/{digest}", target.repo);
        let delete = call(Kind::Blob, Method::DELETE, path, target);
        self.delete(target, Doomed::Blob(*digest), delete).await
    }

    /// Forgets what is about to be deleted. Tags are suspect already.
    async fn forget(&self, target: &Target, doomed: &Doomed) -> Result<(), CacheError> {
        let Target { upstream, repo, .. } = target;
        let repository = target.repository();
        match doomed {
            Doomed::Manifest(Reference::Digest(digest)) => {
                self.store.forget_manifest(upstream, repo, digest).await?;
                self.hot.remove_all_from(&repository);
            }
            Doomed::Blob(digest) => {
                self.store.forget_blob(upstream, repo, digest).await?;
                self.hot.remove_from(&repository, digest);
            }
            Doomed::Repository => {
                self.store.forget_repository(upstream, repo).await?;
                self.hot.remove_all_from(&repository);
            }
            Doomed::Manifest(Reference::Tag(_)) | Doomed::Tag(_) | Doomed::Restored => {}
        }
        Ok(())
    }

    /// Upstream has deleted it.
    async fn deleted(&self, guard: WriteGuard, target: &Target, doomed: &Doomed) {
        match doomed {
            Doomed::Manifest(Reference::Digest(digest)) => self.deleted_manifest(guard, target, digest).await,
            Doomed::Manifest(Reference::Tag(tag)) | Doomed::Tag(tag) => self.deleted_tag(guard, target, tag).await,
            Doomed::Blob(digest) => self.deleted_blob(guard, target, digest).await,
            Doomed::Repository => self.deleted_repository(guard, target).await,
            Doomed::Restored => self.restored(guard, target).await,
        }
    }

    /// Upstream, asked at `begun`, has mounted a blob.
    pub async fn mounted_blob(self: &Arc<Self>, target: &Target, digest: &Digest, begun: &Asked) {
        match self.stored(digest).await {
            Some(stored) => self.published_blob(target, digest, stored.len, begun).await,
            None => self.forget_missing_blob(target, digest),
        }
    }

    /// Runs `work` on a task of its own, to its end whatever becomes of who waits for it; only a stop ends it.
    async fn to_the_end<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, WriteError>> + Send + 'static,
    ) -> Result<T, WriteError> {
        let (sender, result) = oneshot::channel();
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            if let Some(outcome) = stop.run_until_cancelled(work).await {
                // Nobody may be waiting any more.
                let _ = sender.send(outcome);
            }
        });
        result.await.unwrap_or(Err(WriteError::Cache(CacheError::Stopped)))
    }

    /// Takes a manifest from the client: into memory, if it is to be kept.
    async fn receive(&self, mut body: ClientBody) -> Result<Manifest, WriteError> {
        let announced = body.size_hint().exact();
        if announced.is_some_and(|length| length > LARGEST_MANIFEST) {
            return Err(ClientFault::TooLarge { limit: LARGEST_MANIFEST }.into());
        }
        let (mut bytes, mut pace) = (BytesMut::new(), Pace::new(self.config.load().slowest));
        loop {
            if bytes.len() as u64 > self.config.load().max_manifest {
                return Ok(Manifest::Large(large(bytes.freeze(), body, pace), announced));
            }
            match pace.next(&mut body).await? {
                Some(data) => bytes.extend_from_slice(&data),
                None => return Ok(Manifest::Whole(bytes.freeze())),
            }
        }
    }
}

/// What has come of a manifest, and what still comes: as a body that is not held in memory and ends at the limit.
fn large(start: Bytes, rest: ClientBody, pace: Pace) -> ClientBody {
    let first = start.len() as u64;
    let state = (Some(start), rest, pace, first);
    let frames = futures_util::stream::try_unfold(state, |(start, mut rest, mut pace, mut count)| async move {
        if let Some(start) = start {
            return Ok(Some((Frame::data(start), (None, rest, pace, count))));
        }
        let Some(data) = pace.next(&mut rest).await? else { return Ok(None) };
        count += data.len() as u64;
        if count > LARGEST_MANIFEST {
            return Err(ClientFault::TooLarge { limit: LARGEST_MANIFEST });
        }
        Ok::<_, ClientFault>(Some((Frame::data(data), (None, rest, pace, count))))
    });
    StreamBody::new(frames).map_err(Into::into).boxed_unsync()
}

/// What a manifest says that it is, where the client did not.
fn media_type_of(bytes: &[u8]) -> String {
    let info = ManifestInfo::check(None, bytes).ok();
    info.and_then(|info| info.media_type).unwrap_or_else(|| media::OCI_MANIFEST.to_owned())
}

/// What came of a manifest that is passed on as it comes: where it was the client that broke off, that is what is said.
fn blame(error: WriteError) -> WriteError {
    let WriteError::Cache(CacheError::Upstream(failed)) = &error else { return error };
    let Fault::Interrupted(cause) = &failed.fault else { return error };
    match cause.downcast_ref::<ClientFault>() {
        Some(fault) => fault.again().into(),
        None => error,
    }
}

fn no_digest(target: &Target) -> CacheError {
    let reason = "a manifest was put and it did not say by which digest";
    CacheError::BadAnswer { upstream: target.upstream.clone(), reason }
}

fn with_query(path: String, query: &str) -> String {
    if query.is_empty() { path } else { format!("{path}?{query}") }
}

fn call(kind: Kind, method: Method, path: String, target: &Target) -> Call {
    Call::new(kind, method, CallTarget::Path(path), target.right.clone())
        .with_repo(&target.repo)
        .with_deadline(Instant::now() + WRITTEN_WITHIN)
}
