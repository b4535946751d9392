//! One try at a request: shows what is known to be wanted, answers challenges, follows redirects, judges the answer.

use http::header::{AUTHORIZATION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, RANGE};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode};
use hyper::body::Incoming;
use tokio::time::Instant;

use super::ask::{Answer, Ask};
use super::auth::{Action, Shown, Want, repeatable};
use super::body::UpstreamBody;
use super::content_range::ContentRange;
use super::error::{Fault, ProtocolFault, RedirectFault};
use super::origin::Url;
use super::read;
use super::redirect::{self, is_redirect};
use super::registry::Registry;
use super::upload::RequestBody;
use super::wire::{Outgoing, pass_on};
use crate::metrics::Kind;
use crate::oci::Via;

/// How often a 401 is answered in one try: with what is known, with a fresh token, and with one for another challenge.
const MAX_CHALLENGES: usize = 3;
/// distribution-spec: the digest of the answer's content.
const DOCKER_CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

/// Where a try has got to.
struct Walk<'a> {
    registry: &'a Registry,
    ask: &'a Ask,
    want: Want<'a>,
    url: Url,
    headers: HeaderMap,
    /// Shown with the next request.
    shown: Option<Shown>,
    /// Whose right the upstream itself accepted.
    via: Via,
    /// The origin was left: nothing of ours is shown any more, also not if a redirect leads back.
    abroad: bool,
    hops: usize,
    challenged: usize,
    begun: Instant,
    /// As the upstream said it before it redirected; storage does not.
    digest: Option<HeaderValue>,
}

impl Registry {
    /// One try, without waiting and repeating.
    pub(super) async fn attempt(&self, ask: &Ask) -> Result<Answer, Fault> {
        let result = self.walk(ask).await;
        // Storage signs its URLs for GET alone (S3), so HEAD on them is refused: one byte tells as much.
        if ask.method == Method::HEAD && matches!(result, Err(Fault::Redirect(RedirectFault::Refused { .. }))) {
            let mut probe = ask.clone();
            probe.method = Method::GET;
            probe.headers.insert(RANGE, HeaderValue::from_static("bytes=0-0"));
            if let Some(answer) = self.walk(&probe).await.ok().and_then(as_head) {
                return Ok(Answer { body: UpstreamBody::empty(&self.intake), ..answer });
            }
        }
        result
    }

    async fn walk(&self, ask: &Ask) -> Result<Answer, Fault> {
        let begun = Instant::now();
        let own = self.own_right();
        let want = Want {
            repo: ask.repo.as_ref(),
            kind: ask.kind,
            action: Action::Pull,
            scope: None,
            right: ask.right.as_ref().unwrap_or(&own),
            bare: ask.bare,
        };
        // A token may have to be fetched: that too must end in time.
        let ready = tokio::time::timeout_at(ask.deadline, self.auth.ready(&want)).await;
        let walk = Walk {
            registry: self,
            ask,
            want,
            url: self.url(&ask.path)?,
            headers: pass_on(&ask.headers),
            shown: ready.unwrap_or(Err(timed_out()))?,
            via: Via::Anonymous,
            abroad: false,
            hops: 0,
            challenged: 0,
            begun,
            digest: None,
        };
        walk.run().await
    }
}

// === impl Walk ===

impl Walk<'_> {
    async fn run(mut self) -> Result<Answer, Fault> {
        loop {
            let response = self.send().await?;
            match response.status() {
                StatusCode::UNAUTHORIZED => self.challenged(response).await?,
                StatusCode::OK | StatusCode::PARTIAL_CONTENT | StatusCode::NOT_MODIFIED => {
                    return self.accept(response);
                }
                status if is_redirect(status) => self.redirected(response).await?,
                _ => return Err(self.refused(response).await),
            }
        }
    }

    async fn send(&self) -> Result<Response<Incoming>, Fault> {
        let mut headers = self.headers.clone();
        if let Some(shown) = &self.shown {
            headers.insert(AUTHORIZATION, shown.grant.header.clone());
        }
        let (kind, method) = (self.ask.kind, self.ask.method.clone());
        let outgoing = Outgoing { kind, method, url: &self.url, headers, body: RequestBody::empty() };
        if self.abroad {
            self.registry.wire.send(outgoing, self.ask.deadline).await
        } else {
            self.registry.send_own(outgoing, self.ask.deadline).await
        }
    }

    async fn challenged(&mut self, response: Response<Incoming>) -> Result<(), Fault> {
        self.challenged += 1;
        let auth = &self.registry.auth;
        let headers = response.headers().clone();
        let answering = async {
            if self.challenged > MAX_CHALLENGES {
                Ok(None)
            } else if !self.abroad {
                auth.answer(&self.want, &headers, self.shown.as_ref(), self.begun).await
            } else if self.shown.is_none() {
                auth.foreign(&self.url.origin, &headers, &self.want).await.map(Some)
            } else {
                Ok(None)
            }
        };
        match tokio::time::timeout_at(self.ask.deadline, answering).await.unwrap_or(Err(timed_out()))? {
            Some(shown) => {
                read::drain(response).await;
                self.shown = Some(shown);
                Ok(())
            }
            None => Err(self.refused(response).await),
        }
    }

    async fn redirected(&mut self, response: Response<Incoming>) -> Result<(), Fault> {
        if self.ask.kind == Kind::Referrers && response.status() == StatusCode::SEE_OTHER {
            // ghcr.io sends this to its web pages.
            let message = "there is no referrers API, only a web page".to_owned();
            return Err(Fault::NotFound { code: None, message });
        }
        let next = redirect::next(&self.url, response.headers(), self.hops)?;
        self.hops += 1;
        if !self.abroad {
            self.via = self.shown_via();
            self.digest = response.headers().get(DOCKER_CONTENT_DIGEST).cloned();
        }
        if next.origin != self.url.origin {
            self.abroad = true;
            self.shown = None;
            self.challenged = 0;
        }
        self.url = next;
        read::drain(response).await;
        Ok(())
    }

    fn accept(self, response: Response<Incoming>) -> Result<Answer, Fault> {
        let via = if self.abroad { self.via } else { self.shown_via() };
        let (head, body) = response.into_parts();
        let mut headers = head.headers;
        let protocol = |fault| Err(Fault::Protocol(fault));
        if headers.get_all(CONTENT_ENCODING).iter().any(|coding| !coding.as_bytes().eq_ignore_ascii_case(b"identity")) {
            return protocol(ProtocolFault::ContentEncoding);
        }
        let part = match head.status {
            StatusCode::PARTIAL_CONTENT => match ContentRange::of(&headers) {
                Some(part) if self.ask.wants_part(part) => Some(part),
                _ => return protocol(ProtocolFault::Range),
            },
            _ => None,
        };
        let length = match headers.get(CONTENT_LENGTH).map(|length| length.to_str().ok()?.parse().ok()) {
            Some(None) => return protocol(ProtocolFault::ContentLength),
            Some(Some(length)) => Some(length),
            // Chunked: the range says how many bytes these are.
            None => part.map(|part| part.len()),
        };
        if part.is_some_and(|part| length != Some(part.len())) {
            return protocol(ProtocolFault::Range);
        }
        if let (Some(digest), false) = (self.digest, headers.contains_key(DOCKER_CONTENT_DIGEST)) {
            headers.insert(DOCKER_CONTENT_DIGEST, digest);
        }
        let bodiless = self.ask.method == Method::HEAD || head.status == StatusCode::NOT_MODIFIED;
        let body = if bodiless {
            UpstreamBody::empty(&self.registry.intake)
        } else {
            let body = UpstreamBody::new(&self.registry.intake, body, length);
            if self.ask.kind == Kind::Blob { body.paced() } else { body }
        };
        Ok(Answer { status: head.status, headers, body, via })
    }

    /// What an unsuccessful status means.
    async fn refused(&self, response: Response<Incoming>) -> Fault {
        let status = response.status();
        let refusal = matches!(status.as_u16(), 400 | 401 | 403 | 405 | 501);
        if self.abroad && refusal {
            let host = self.url.origin.authority();
            return Fault::Redirect(RedirectFault::Refused { host, status });
        }
        let secrets = repeatable(self.want.right, self.shown.as_ref());
        let fault = self.registry.wire.fault(response, self.ask.deadline, !self.abroad, &secrets).await;
        let may_want_tls = status == StatusCode::BAD_REQUEST && self.ask.method == Method::HEAD && !self.abroad;
        if may_want_tls && self.registry.wants_tls(self.ask.deadline).await { Fault::WantsTls } else { fault }
    }

    fn shown_via(&self) -> Via {
        self.shown.as_ref().map_or(Via::Anonymous, |shown| shown.grant.via)
    }
}

fn timed_out() -> Fault {
    Fault::Timeout(super::error::Phase::Header)
}

/// The answer to HEAD that the answer to a one-byte GET implies.
fn as_head(mut answer: Answer) -> Option<Answer> {
    if answer.status == StatusCode::PARTIAL_CONTENT {
        let total = ContentRange::of(&answer.headers)?.total?;
        answer.headers.remove(CONTENT_RANGE);
        answer.headers.insert(CONTENT_LENGTH, total.into());
        answer.status = StatusCode::OK;
    }
    Some(answer)
}
