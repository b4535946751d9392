//! Tag lists, referrers and the catalog: upstream's answer is passed on, and of the first two the last one is kept for
//! the time when upstream is down.
//!
//! They are asked for every time, by the caller's right, so what upstream says to one caller is not told to another. Kept
//! is what it gives to everybody or to ocistern's account, never what it gave to a caller. To list is not to pull:
//! registries may allow the one and refuse the other, so neither says anything about the other here.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, StatusCode, header};
use http_body_util::BodyExt as _;
use tokio::time::{Instant, timeout_at};

use super::entitle::When;
use super::flight::Role;
use super::manifest::Want;
use super::writes::Asked;
use super::{ANSWER_WITHIN, Cache, CacheError, CacheStatus, Found, Target, out_of_time};
use crate::oci::{Digest, Reference, Tag, UpstreamName, Via, media};
use crate::store::{ListKind, StoredList};
use crate::upstream::{Answer, Ask, Class, Fault, Right};

/// Longest list that is passed on: some 100,000 tags.
const MAX_LIST: usize = 16 * 1024 * 1024;
/// What a registry without the referrers API, and without the fallback tag, is answered for
/// (distribution-spec, "Listing Referrers").
const NO_REFERRERS: &[u8] =
    br#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}"#;

/// A list to answer with.
#[derive(Debug, Clone)]
pub struct List {
    /// The JSON, byte for byte as upstream sent it.
    pub body: Bytes,
    /// Its media type.
    pub content_type: String,
    /// Upstream's `Link` to the next page, as it came.
    pub link: Option<String>,
    /// Upstream's `OCI-Filters-Applied`.
    pub filters_applied: Option<String>,
    /// How it was found.
    pub status: CacheStatus,
}

// === impl Cache ===

impl Cache {
    /// The tags of `target`; `query` as the client wrote it (`n`, `last`).
    pub async fn tags(self: &Arc<Self>, target: &Target, query: &str) -> Result<List, CacheError> {
        self.list(target, ListKind::Tags, query).await
    }

    /// What refers to `subject` in `target`; `query` as the client wrote it (`artifactType`).
    pub async fn referrers(
        self: &Arc<Self>,
        target: &Target,
        subject: &Digest,
        query: &str,
    ) -> Result<List, CacheError> {
        self.list(target, ListKind::Referrers(*subject), query).await
    }

    /// Asked once however many wait for it, and then in memory once.
    async fn list(self: &Arc<Self>, target: &Target, kind: ListKind, query: &str) -> Result<List, CacheError> {
        self.registry(&target.upstream)?;
        self.check_identity(target)?;
        let question = self.question(target, (kind, query.to_owned()));
        let (flight, role) = self.lists.join(&question, &self.tasks, &self.stop, || {
            let (cache, target, (kind, query)) = (Arc::clone(self), target.clone(), question.what.clone());
            async move {
                let (begun, deadline) = (cache.generations.asking(), Instant::now() + ANSWER_WITHIN);
                let asked = async {
                    match &kind {
                        ListKind::Tags => {
                            let tags = cache.pass(&target, Ask::tags(&target.repo, &query, deadline)).await;
                            tags.map(|(list, via)| (list, Some(via)))
                        }
                        ListKind::Referrers(subject) => cache.ask_referrers(&target, subject, &query, deadline).await,
                    }
                };
                let asked = timeout_at(deadline, asked).await.unwrap_or_else(|_| Err(out_of_time(&target)));
                cache.kept_list(&target, &kind, &query, asked, &begun).await
            }
        });
        let mut list = match flight.result().await.unwrap_or(Err(CacheError::Stopped)) {
            Ok(list) => list,
            Err(error) => return Err(self.told(target, error)),
        };
        if role == Role::Follower && list.status.found == Found::Passed {
            list.status = Found::Collapsed.into();
        }
        Ok(list)
    }

    /// The repositories of an upstream, as far as it tells a caller of this right; `bare`: its challenge is the caller's
    /// to answer.
    pub async fn catalog(
        self: &Arc<Self>,
        upstream: &UpstreamName,
        right: &Right,
        bare: bool,
        query: &str,
    ) -> Result<List, CacheError> {
        let registry = self.registry(upstream)?;
        let deadline = Instant::now() + ANSWER_WITHIN;
        let ask = Ask::catalog(query, deadline).with_right(right.clone()).bare(bare);
        let asked = async { receive(upstream, registry.fetch(ask).await?).await };
        let too_late = |_| Err(CacheError::Timeout { upstream: upstream.clone() });
        Ok(timeout_at(deadline, asked).await.unwrap_or_else(too_late)?.0)
    }

    async fn ask_referrers(
        self: &Arc<Self>,
        target: &Target,
        subject: &Digest,
        query: &str,
        deadline: Instant,
    ) -> Result<(List, Option<Via>), CacheError> {
        match self.pass(target, Ask::referrers(&target.repo, subject, query, deadline)).await {
            Ok((list, via)) if media::essence(&list.content_type) == media::OCI_INDEX => Ok((list, Some(via))),
            // A web page, or a redirect to one, is no referrers API; nor is a refusal to know the path.
            Ok((_, via)) => self.fallback_tag(target, subject, via).await,
            Err(error) if has_no_referrers_api(&error) => self.fallback_tag(target, subject, target.right.via()).await,
            Err(error) => Err(error),
        }
    }

    async fn pass(self: &Arc<Self>, target: &Target, ask: Ask) -> Result<(List, Via), CacheError> {
        let registry = self.registry(&target.upstream)?;
        receive(&target.upstream, registry.fetch(ask.with_right(target.right.clone())).await?).await
    }

    /// Referrers by the tag under which clients put them where the API is missing, and by whose right that is known;
    /// none: a registry that hides the repository would say the same.
    async fn fallback_tag(
        self: &Arc<Self>,
        target: &Target,
        subject: &Digest,
        via: Via,
    ) -> Result<(List, Option<Via>), CacheError> {
        let tag = Reference::Tag(Tag::referrers_fallback(subject));
        let body = match self.manifest(target, &tag, Want::Bytes).await {
            Ok(manifest) if media::essence(manifest.media_type()) == media::OCI_INDEX => manifest.bytes,
            Ok(_) => None,
            Err(error) if error.is_missing() => None,
            Err(error) => return Err(error),
        };
        let hidden =
            body.is_none() && target.right == Right::Anonymous && !self.passes(target, Via::Anonymous, When::Now).await;
        let list = List {
            body: body.unwrap_or(Bytes::from_static(NO_REFERRERS)),
            content_type: media::OCI_INDEX.to_owned(),
            link: None,
            filters_applied: None,
            status: Found::Passed.into(),
        };
        Ok((list, (!hidden).then_some(via)))
    }

    /// Keeps what upstream answered; where it could not be asked, what was kept last time answers.
    async fn kept_list(
        &self,
        target: &Target,
        kind: &ListKind,
        query: &str,
        asked: Result<(List, Option<Via>), CacheError>,
        begun: &Asked,
    ) -> Result<List, CacheError> {
        let Target { upstream, repo, .. } = target;
        let warn = |error: &(dyn std::error::Error + 'static), what: &'static str| {
            tracing::warn!(%upstream, repository = %repo, error, "{what}");
        };
        let forget = async || {
            let forgotten = self.store.forget_lists(upstream, repo).await;
            forgotten.unwrap_or_else(|error| warn(&error, "lists that are not public any more were not removed"));
        };
        match asked {
            Ok((list, None)) => {
                forget().await;
                Ok(list)
            }
            Ok((list, Some(via))) if via == Via::Client || !is_keepable(query) => Ok(list),
            Ok((list, _)) if !self.generations.holds(&target.repository(), begun) => Ok(list),
            Ok((list, Some(via))) => {
                let stored = StoredList {
                    body: list.body.clone(),
                    content_type: list.content_type.clone(),
                    link: list.link.clone(),
                    filters_applied: list.filters_applied.clone(),
                    via,
                };
                let (store, of, kind, query, at) =
                    (self.store.clone(), target.clone(), kind.clone(), query.to_owned(), begun.at);
                let keep = async move {
                    let kept = store.set_list(&of.upstream, &of.repo, &kind, &query, &stored, at).await;
                    if let Err(error) = &kept {
                        tracing::warn!(
                            upstream = %of.upstream, repository = %of.repo, error = error as &dyn std::error::Error,
                            "a list could not be kept"
                        );
                    }
                    kept.is_ok()
                };
                self.keep_in_time(keep).await;
                Ok(list)
            }
            // A list may also have come with a bundle, for a time when nobody is asked.
            Err(error) if error.is_unavailable() || error.is_sealed() => {
                let stored = self.store.list(upstream, repo, kind, query).await.unwrap_or_else(|error| {
                    warn(&error, "a stored list cannot be read");
                    None
                });
                match stored {
                    Some(stored) if self.may_list(target, stored.via).await => Ok(List {
                        body: stored.body,
                        content_type: stored.content_type,
                        link: stored.link,
                        filters_applied: stored.filters_applied,
                        status: Found::Stale.into(),
                    }),
                    _ => Err(error),
                }
            }
            Err(error) => {
                if error.is_refusal() {
                    // What it gives still of what it was asked before is no answer to who comes now.
                    self.lists.detach(|question| question.target == *target);
                }
                if target.right == Right::Anonymous && error.is_upstreams_word() {
                    // What was given to everybody is not any more.
                    forget().await;
                }
                Err(error)
            }
        }
    }

    /// Whether a caller may have a list that upstream gave `via` when it was last asked, while it cannot be asked.
    async fn may_list(&self, target: &Target, via: Via) -> bool {
        match (&target.right, via) {
            (_, Via::Anonymous) => self.may_be_public(target).await || self.passes(target, via, When::Away).await,
            (right, via) => *right == Right::Shared && via == Via::Shared,
        }
    }
}

/// Whether the answer to this query is worth keeping: one that the specification knows, each parameter once. Else every
/// query that somebody makes up would leave a file.
fn is_keepable(query: &str) -> bool {
    let mut seen = Vec::new();
    query.split('&').filter(|pair| !pair.is_empty()).all(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let fits = match key {
            "n" => value.parse::<u32>().is_ok(),
            "last" | "artifactType" => value.len() <= 255,
            _ => false,
        };
        let first = !seen.contains(&key);
        seen.push(key);
        fits && first
    })
}

/// Whether an error of the referrers endpoint means that the registry does not have it.
fn has_no_referrers_api(error: &CacheError) -> bool {
    match error {
        CacheError::Upstream(error) => match &error.fault {
            Fault::Status { status, .. } => matches!(status.as_u16(), 303 | 400 | 405 | 406 | 501),
            Fault::Redirect(_) | Fault::Protocol(_) => true,
            _ => error.class() == Class::Missing,
        },
        CacheError::BadAnswer { .. } => true,
        _ => false,
    }
}

/// The whole list; the caller bounds the time.
async fn receive(upstream: &UpstreamName, answer: Answer) -> Result<(List, Via), CacheError> {
    let bad = |reason| CacheError::BadAnswer { upstream: upstream.clone(), reason };
    if answer.status != StatusCode::OK {
        return Err(bad("a status other than 200 to a list"));
    }
    let text = |headers: &HeaderMap, name: &str| Some(headers.get(name)?.to_str().ok()?.to_owned());
    let content_type =
        text(&answer.headers, header::CONTENT_TYPE.as_str()).unwrap_or_else(|| "application/json".to_owned());
    let link = text(&answer.headers, header::LINK.as_str());
    let filters_applied = text(&answer.headers, "oci-filters-applied");
    let via = answer.via;
    let (mut body, mut bytes) = (answer.body, BytesMut::new());
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame?.into_data() {
            if bytes.len() + data.len() > MAX_LIST {
                return Err(bad("a list that is too long"));
            }
            bytes.extend_from_slice(&data);
        }
    }
    let body = bytes.freeze();
    // A login page with status 200 is not a list, and neither passed on nor kept. The syntax is checked without building
    // the tree, which would take many times the list's length.
    let object = body.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'{');
    if !object || serde_json::from_slice::<serde::de::IgnoredAny>(&body).is_err() {
        return Err(bad("something that is not JSON where a list was asked for"));
    }
    let list = List { body, content_type, link, filters_applied, status: Found::Passed.into() };
    Ok((list, via))
}

#[cfg(test)]
mod tests {
    use super::is_keepable;

    #[test]
    fn only_known_queries_are_kept() {
        for known in ["", "n=100", "n=100&last=v1", "artifactType=application%2Fx", "&n=1"] {
            assert!(is_keepable(known), "{known}");
        }
        for other in ["x=1", "n=many", "n=1&n=2", "n=1&junk", &format!("last={}", "a".repeat(300))] {
            assert!(!is_keepable(other), "{other}");
        }
    }
}
