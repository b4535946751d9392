//! Asking upstream about manifests: the GET that brings one into the store, the HEAD that describes one, and the check
//! whether a tag moved. Each runs once however many requests wait for it.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use http_body_util::BodyExt as _;
use tokio::time::Instant;

use super::entitle::When;
use super::flight::{Flight, Role};
use super::freshness::{Freshness, judge};
use super::hot::HotManifest;
use super::manifest::KnownState;
use super::supply::content_length;
use super::writes::Asked;
use super::{ANSWER_WITHIN, Cache, CacheError, Target, Wanted};
use crate::config::TagPolicy;
use crate::oci::{Algorithm, Digest, ManifestInfo, Reference, Tag, Via, media};
use crate::store::{Link, LinkKind, TagRecord};
use crate::upstream::{Answer, Ask, Fault};

/// A manifest as it came from upstream.
#[derive(Debug, Clone)]
pub(super) struct Fetched {
    pub(super) digest: Digest,
    pub(super) media_type: String,
    pub(super) bytes: Bytes,
    pub(super) via: Via,
    /// Whether it is in the store now.
    pub(super) kept: bool,
}

/// A manifest as upstream's HEAD describes it.
#[derive(Debug, Clone)]
pub(super) struct Described {
    pub(super) digest: Digest,
    pub(super) media_type: String,
    pub(super) size: u64,
    pub(super) etag: Option<String>,
    pub(super) via: Via,
    /// When upstream was asked.
    pub(super) asked: Asked,
}

/// What the check of a known tag found.
#[derive(Debug, Clone)]
pub(super) enum Checked {
    /// The tag still means what is known.
    Current,
    /// It means something else now, which is in the store too.
    Back(Digest),
    /// It means something else now.
    Moved(Described),
    /// It means something else now, and since upstream's HEAD is unusable the check has brought it along.
    Fetched(Arc<Fetched>),
}

/// How long it counts what an upstream's HEADs are worth: one that has learned to answer them, or had a bad minute, is soon
/// asked by them again, and one in vain every hour costs nothing.
pub(super) const HEADS_FOR: Duration = Duration::from_hours(1);

/// What an upstream's HEADs of manifests are worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Heads {
    /// It has answered one usefully: its 403 to one is meant, and one that is of no use is an exception.
    Usable,
    /// It has answered a GET of what it did not answer a HEAD of.
    Unusable,
}

/// A flight of a manifest's GET.
pub(super) type FetchFlight = Flight<Result<Arc<Fetched>, CacheError>>;
/// A flight of a tag's check.
pub(super) type CheckFlight = Flight<Result<Checked, CacheError>>;

// === impl Cache ===

impl Cache {
    /// Joins the GET of `reference` in `target`, or starts it.
    pub(super) fn start_fetch(
        self: &Arc<Self>,
        target: &Target,
        reference: &Reference,
    ) -> Result<(FetchFlight, Role), CacheError> {
        self.registry(&target.upstream)?;
        let question = self.question(target, reference.clone());
        Ok(self.fetches.join(&question, &self.tasks, &self.stop, || {
            let (cache, target, reference) = (Arc::clone(self), target.clone(), reference.clone());
            async move {
                // Whoever asks saw nothing in the store; another flight may have kept it and landed since.
                if let Reference::Digest(digest) = reference
                    && let Some(hot) = cache.hot.get(&target, &digest)
                    && cache.store.touch(&digest)
                    && cache.passes(&target, hot.via, When::Now).await
                {
                    let HotManifest { labels, bytes, via } = hot;
                    let media_type = labels.media_type().to_owned();
                    return Ok(Arc::new(Fetched { digest, media_type, bytes, via, kept: true }));
                }
                let fetched = cache.fetch(&target, &reference, None).await;
                fetched.and_then(|fetched| fetched.ok_or_else(|| bad(&target, "304 to an unconditional GET")))
            }
        }))
    }

    /// Joins the check of a known tag, or starts it. The check goes on when its clients have lost patience.
    pub(super) fn start_check(
        self: &Arc<Self>,
        target: &Target,
        tag: &Tag,
        known: Arc<TagRecord>,
    ) -> Result<(CheckFlight, Role), CacheError> {
        self.registry(&target.upstream)?;
        let question = self.question(target, tag.clone());
        Ok(self.tag_checks.join(&question, &self.tasks, &self.stop, || {
            let (cache, key) = (Arc::clone(self), (target.clone(), tag.clone()));
            async move {
                let (target, tag) = &key;
                // Whoever asks found it expired; another flight may have answered that and landed since.
                if cache.is_current(target, tag, &known).await {
                    return Ok(Checked::Current);
                }
                let asked = cache.generations.asking();
                let checked = cache.check_tag(target, tag, &known, &asked).await;
                match &checked {
                    Ok(_) => cache.failed_checks.remove(&key),
                    // The tag is gone. It must not come back as stale when upstream is away.
                    Err(error) if error.is_missing() => cache.forget_tag(target, tag, &asked).await,
                    Err(error) if error.is_upstreams_word() => {}
                    Err(error) => {
                        tracing::warn!(
                            upstream = %target.upstream, repository = %target.repo, %tag,
                            error = error as &dyn std::error::Error,
                            "a tag could not be revalidated; the known one is served as stale"
                        );
                        cache.failed_checks.insert(key.clone(), ());
                    }
                }
                checked
            }
        }))
    }

    /// Whether a known tag need not be asked about: it has been confirmed a moment ago, and the caller may have it.
    async fn is_current(self: &Arc<Self>, target: &Target, tag: &Tag, known: &TagRecord) -> bool {
        let policy = self.tag_policy(target, tag);
        if !matches!(policy, TagPolicy::For(_)) {
            return false;
        }
        let KnownState { record, checked_at, suspect } = self.tag_state(target, tag).await;
        if judge(policy, checked_at, self.store.timeline().now(), suspect) != Freshness::Fresh {
            return false;
        }
        let same = record.is_some_and(|record| record.digest == known.digest);
        let via = self.linked(target, &known.digest, LinkKind::Manifest).await.map(|link| link.via);
        match via {
            Some(via) => same && self.passes(target, via, When::Now).await,
            None => false,
        }
    }

    async fn check_tag(
        self: &Arc<Self>,
        target: &Target,
        tag: &Tag,
        known: &TagRecord,
        asked: &Asked,
    ) -> Result<Checked, CacheError> {
        let reference = Reference::Tag(tag.clone());
        if let Some(described) = self.head(target, &reference).await? {
            if described.digest == known.digest {
                self.raise_manifest_link(target, &described).await;
                self.keep_tag(target, tag, known, asked).await;
                return Ok(Checked::Current);
            }
            if self.stored_manifest(target, &described.digest).await.is_some() {
                self.raise_manifest_link(target, &described).await;
                let Described { digest, media_type, size, etag, .. } = described;
                self.keep_tag(target, tag, &TagRecord { digest, media_type, size, etag }, asked).await;
                return Ok(Checked::Back(digest));
            }
            self.seen_tags.insert((target.repository(), tag.clone()), described.clone());
            return Ok(Checked::Moved(described));
        }
        let fetched = self.fetch(target, &reference, known.etag.as_deref()).await?;
        // The GET is answered, so it was the HEAD that upstream refused, and not the content.
        self.remember_unusable_head(target);
        match fetched {
            None => {
                self.keep_tag(target, tag, known, asked).await;
                Ok(Checked::Current)
            }
            Some(fetched) if fetched.digest == known.digest => Ok(Checked::Current),
            Some(fetched) => Ok(Checked::Fetched(fetched)),
        }
    }

    /// Describes what is not in the store, or must be confirmed, by HEAD; where upstream's HEAD is unusable, by GET.
    pub(super) async fn describe_upstream(
        self: &Arc<Self>,
        target: &Target,
        reference: &Reference,
    ) -> Result<Described, CacheError> {
        self.registry(&target.upstream)?;
        let question = self.question(target, reference.clone());
        let (flight, _) = self.descriptions.join(&question, &self.tasks, &self.stop, || {
            let (cache, target, reference) = (Arc::clone(self), target.clone(), reference.clone());
            async move {
                if let Some(described) = cache.head(&target, &reference).await? {
                    if let Reference::Tag(tag) = reference {
                        let (to_see, by) = (described.clone(), Arc::clone(&cache));
                        let see = async move {
                            by.see_tag(target, tag, to_see).await;
                            true
                        };
                        cache.keep_in_time(see).await;
                    }
                    return Ok(described);
                }
                let asked = cache.generations.asking();
                // Not by the flight of those who pull, which is content with what is in the store by now.
                let fetched = cache.fetch(&target, &reference, None).await?;
                let fetched = fetched.ok_or_else(|| bad(&target, "304 to an unconditional GET"))?;
                cache.remember_unusable_head(&target);
                Ok(Described {
                    digest: fetched.digest,
                    media_type: fetched.media_type.clone(),
                    size: fetched.bytes.len() as u64,
                    etag: None,
                    via: fetched.via,
                    asked,
                })
            }
        });
        flight.result().await.unwrap_or(Err(CacheError::Stopped))
    }

    /// Upstream's HEAD; none where it is unusable: refused by a registry that perhaps answers GET, or without a digest.
    /// Whether it is worth to be remembered tells the GET that follows: anybody can ask for something that upstream
    /// answers oddly. What it says about the caller's right is remembered.
    async fn head(self: &Arc<Self>, target: &Target, reference: &Reference) -> Result<Option<Described>, CacheError> {
        let worth = self.heads.get(&target.upstream);
        if worth == Some(Heads::Unusable) {
            return Ok(None);
        }
        let registry = self.registry(&target.upstream)?;
        let ask = Ask::manifest(Method::HEAD, &target.repo, reference, Instant::now() + ANSWER_WITHIN);
        let asked = self.generations.asking();
        match registry.fetch(ask.with_right(target.right.clone())).await {
            Ok(answer) => {
                let described = describe(&answer, reference, asked);
                if let Some(described) = &described {
                    self.heads.insert(target.upstream.clone(), Heads::Usable);
                    self.heard(target, &asked, Ok(described.via)).await;
                }
                Ok(described)
            }
            Err(error) => match &error.fault {
                // It may be the content that is refused: the GET that follows tells.
                Fault::Forbidden { .. } if worth.is_none() => Ok(None),
                Fault::Status { status, .. } if matches!(status.as_u16(), 400 | 405 | 501) => Ok(None),
                _ => {
                    let error = error.into();
                    self.heard(target, &asked, Err(&error)).await;
                    self.note_missing(target, Wanted::Manifest(reference.clone()), &error, &asked);
                    Err(error)
                }
            },
        }
    }

    /// A GET is answered of which the HEAD before was of no use.
    fn remember_unusable_head(&self, target: &Target) {
        if self.heads.get(&target.upstream).is_some() {
            return;
        }
        self.heads.insert(target.upstream.clone(), Heads::Unusable);
        tracing::info!(
            upstream = %target.upstream,
            "upstream does not answer HEAD of manifests usefully; it is asked by GET from now on"
        );
    }

    /// Upstream's GET, checked and kept; none: not modified since `etag`.
    async fn fetch(
        self: &Arc<Self>,
        target: &Target,
        reference: &Reference,
        etag: Option<&str>,
    ) -> Result<Option<Arc<Fetched>>, CacheError> {
        let registry = self.registry(&target.upstream)?;
        let asked = self.generations.asking();
        let mut ask = Ask::manifest(Method::GET, &target.repo, reference, Instant::now() + ANSWER_WITHIN)
            .with_right(target.right.clone());
        let condition = etag.and_then(|etag| HeaderValue::from_str(etag).ok());
        let conditional = condition.is_some();
        if let Some(condition) = condition {
            ask = ask.with_header(header::IF_NONE_MATCH, condition);
        }
        let answer = match registry.fetch(ask).await {
            Ok(answer) => answer,
            Err(error) => {
                let error = error.into();
                self.heard(target, &asked, Err(&error)).await;
                self.note_missing(target, Wanted::Manifest(reference.clone()), &error, &asked);
                return Err(error);
            }
        };
        if conditional && answer.status == StatusCode::NOT_MODIFIED {
            self.heard(target, &asked, Ok(answer.via)).await;
            return Ok(None);
        }
        if answer.status != StatusCode::OK {
            return Err(bad(target, "a status other than 200 to a manifest"));
        }
        let (headers, via) = (answer.headers.clone(), answer.via);
        let bytes = self.receive_manifest(target, answer).await?;
        let digest = digest_of(target, reference, &headers, &bytes)?;
        let content_type = text(&headers, &header::CONTENT_TYPE);
        let info = ManifestInfo::check(content_type.as_deref(), &bytes)
            .map_err(|fault| CacheError::ManifestRefused { upstream: target.upstream.clone(), fault })?;
        let media_type =
            content_type.or_else(|| info.media_type.clone()).unwrap_or_else(|| media::OCI_MANIFEST.to_owned());
        let link = Link {
            kind: LinkKind::Manifest,
            via,
            media_type: Some(media_type.clone()),
            size: bytes.len() as u64,
            subject: info.subject,
            artifact_type: info.artifact_type,
        };
        self.heard(target, &asked, Ok(via)).await;
        let tag = match reference {
            Reference::Tag(tag) => Some((tag.clone(), text(&headers, &header::ETAG))),
            Reference::Digest(_) => None,
        };
        let mut fetched = Fetched { digest, media_type, bytes, via, kept: false };
        let (cache, target, to_keep) = (Arc::clone(self), target.clone(), fetched.clone());
        let keep = async move { cache.keep_fetched(&target, to_keep, link, tag, &asked).await };
        fetched.kept = self.keep_in_time(keep).await;
        Ok(Some(Arc::new(fetched)))
    }

    /// Keeps a manifest that has come, and the tag by which it was asked for, with the entity tag. False if it is not kept.
    async fn keep_fetched(
        &self,
        target: &Target,
        fetched: Fetched,
        link: Link,
        tag: Option<(Tag, Option<String>)>,
        asked: &Asked,
    ) -> bool {
        let Fetched { digest, media_type, bytes, via, .. } = fetched;
        let size = link.size;
        let Some(held) = self.keep_manifest(target, &digest, link, bytes.clone(), asked).await else {
            if let Some((tag, _)) = tag {
                self.outdate_tag(target, &tag, &digest, asked).await;
            }
            return false;
        };
        let hot = HotManifest::new(&digest, &media_type, bytes, via);
        if let Some((tag, etag)) = tag {
            self.keep_tag(target, &tag, &TagRecord { digest, media_type, size, etag }, asked).await;
        }
        self.heat(target, &digest, hot, asked);
        self.keep_seen_tags(target, &digest).await;
        drop(held);
        true
    }

    /// The whole body, bounded by `store.max_manifest` and by time.
    async fn receive_manifest(&self, target: &Target, answer: Answer) -> Result<Bytes, CacheError> {
        let limit = self.config.load().max_manifest;
        let too_large = || CacheError::ManifestTooLarge { upstream: target.upstream.clone(), limit };
        let announced = content_length(&answer.headers);
        if announced.is_some_and(|length| length > limit) {
            return Err(too_large());
        }
        let receive = async {
            let mut body = answer.body;
            let mut bytes = BytesMut::new();
            while let Some(frame) = body.frame().await {
                if let Ok(data) = frame?.into_data() {
                    if (bytes.len() + data.len()) as u64 > limit {
                        return Err(too_large());
                    }
                    bytes.extend_from_slice(&data);
                }
            }
            Ok(bytes.freeze())
        };
        let bytes = tokio::time::timeout(ANSWER_WITHIN, receive)
            .await
            .map_err(|_| CacheError::Timeout { upstream: target.upstream.clone() })??;
        if announced.is_some_and(|length| length != bytes.len() as u64) {
            return Err(bad(target, "a manifest of another length than it announced"));
        }
        Ok(bytes)
    }
}

/// The digest of what came: the one asked for, else the one announced, else SHA-256. All that were named must
/// match.
fn digest_of(target: &Target, reference: &Reference, headers: &HeaderMap, bytes: &[u8]) -> Result<Digest, CacheError> {
    let asked = match reference {
        Reference::Digest(digest) => Some(*digest),
        Reference::Tag(_) => None,
    };
    let announced = announced_digest(headers);
    for expected in asked.into_iter().chain(announced) {
        let actual = Digest::of(expected.algorithm(), bytes);
        if actual != expected {
            return Err(CacheError::wrong_content(&target.upstream, expected, actual));
        }
    }
    Ok(asked.or(announced).unwrap_or_else(|| Digest::of(Algorithm::Sha256, bytes)))
}

fn bad(target: &Target, reason: &'static str) -> CacheError {
    CacheError::BadAnswer { upstream: target.upstream.clone(), reason }
}

fn text(headers: &HeaderMap, name: &header::HeaderName) -> Option<String> {
    headers.get(name)?.to_str().ok().map(str::to_owned)
}

pub(super) fn announced_digest(headers: &HeaderMap) -> Option<Digest> {
    headers.get("docker-content-digest")?.to_str().ok()?.parse().ok()
}

/// A HEAD's answer as a description; none if it lacks what clients need (ggcr demands all three), or may just as well be
/// a web page.
fn describe(answer: &Answer, reference: &Reference, asked: Asked) -> Option<Described> {
    let media_type = text(&answer.headers, &header::CONTENT_TYPE)?;
    let digest = match (reference, announced_digest(&answer.headers)) {
        (Reference::Tag(_), announced) => announced?,
        (Reference::Digest(digest), None) => media::is_manifest(&media_type).then_some(*digest)?,
        (Reference::Digest(digest), Some(announced)) => (announced == *digest).then_some(announced)?,
    };
    let size = content_length(&answer.headers)?;
    let etag = text(&answer.headers, &header::ETAG);
    Some(Described { digest, media_type, size, etag, via: answer.via, asked })
}
