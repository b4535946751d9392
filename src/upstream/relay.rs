//! Relaying a request to an upstream: with a token that was got before, and without a second try of what was streamed.

use http::header::{AUTHORIZATION, CONTENT_ENCODING, CONTENT_LENGTH, LOCATION};
use http::{HeaderMap, Method, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::time::{Duration, Instant, sleep, timeout_at};

use super::auth::{Shown, Want, repeatable};
use super::body::UpstreamBody;
use super::call::{Call, CallBody, CallTarget, Location, Reply, Shape};
use super::challenge::Bearer;
use super::error::{Class, Fault, Phase, ProtocolFault, RedirectFault, TokenFault, UpstreamError};
use super::grant::Scheme;
use super::origin::Url;
use super::read;
use super::redirect::{self, is_redirect};
use super::registry::Registry;
use super::retry::Retries;
use super::upload::{ANSWER_TIMEOUT, BoxError, RequestBody, Stopper};
use super::wire::{Outgoing, pass_on};
use crate::oci::Via;

/// How often a 401 is answered: with what is known, with a fresh token, and with one for another challenge.
const MAX_CHALLENGES: usize = 3;
/// Time for what comes before the request itself: challenge and token.
const PREPARATION: Duration = Duration::from_secs(20);
/// Stands for no deadline: a body may stream for days as long as it moves.
const UNLIMITED: Duration = Duration::from_hours(24 * 365);

/// Where a call has got to.
struct Relay<'a> {
    registry: &'a Registry,
    call: &'a Call<()>,
    /// None: streamed and gone.
    body: &'a mut Option<CallBody>,
    url: Url,
    headers: HeaderMap,
    shown: Option<Shown>,
    /// Another origin: nothing of ours is shown there, also not if a redirect leads back.
    abroad: bool,
    via: Via,
    hops: usize,
    challenged: usize,
    begun: Instant,
}

impl Registry {
    /// Relays one request; whatever upstream says comes back, except for 401, which is an error that tells what the
    /// challenge asked for. A body that streams is sent once. Others are sent again with a fresh token after a 401,
    /// where upstream was not reached, and where the connection broke and the request does no harm twice.
    pub async fn relay(&self, call: Call) -> Result<Reply, UpstreamError> {
        if self.is_closed_to(Some(&call.right)) || self.config().is_closed_to(call.repo.as_ref(), call.tag.as_ref()) {
            return Err(Fault::Sealed.of(self.name()));
        }
        let (is_idempotent, shape) = (call.is_idempotent(), call.body.shape());
        let (call, body) = call.split();
        let mut body = Some(body);
        let mut retries = Retries::until(call.deadline.unwrap_or_else(|| Instant::now() + PREPARATION));
        // The failure that tells most: what opened the breaker, and once the request may have been done, that it may.
        let mut telling = None;
        loop {
            let fault = match Box::pin(self.relay_once(&call, shape, &mut body)).await {
                Ok(reply) => {
                    let repeated = matches!(telling, Some(Fault::Broken(_)));
                    return Ok(Reply { repeated, ..reply });
                }
                Err(fault @ Fault::BreakerOpen { .. }) => {
                    return Err(self.ended(telling.unwrap_or(fault), call.repo.as_ref()));
                }
                Err(fault) => fault,
            };
            let repeats = body.is_some()
                && match &fault {
                    Fault::Unreachable(_) | Fault::Token(TokenFault::Away { .. }) => true,
                    Fault::Broken(_) => is_idempotent,
                    _ => false,
                };
            let pause = if repeats { retries.after(&fault) } else { None };
            let fault = match telling.take() {
                Some(broken @ Fault::Broken(_)) => broken,
                _ => fault,
            };
            let Some(pause) = pause else { return Err(self.ended(fault, call.repo.as_ref())) };
            tracing::debug!(upstream = %self.name(), ?call, %fault, ?pause, "relaying again");
            telling = Some(fault);
            sleep(pause).await;
        }
    }

    async fn relay_once(&self, call: &Call<()>, shape: Shape, body: &mut Option<CallBody>) -> Result<Reply, Fault> {
        let url = self.target(&call.target)?;
        let abroad = url.origin != self.origin;
        let mut headers = pass_on(&call.headers);
        let writes = matches!(call.method, Method::POST | Method::PUT | Method::PATCH);
        if writes && shape == Shape::Empty {
            // Some servers answer 411 without it.
            headers.insert(CONTENT_LENGTH, 0.into());
        }
        let begun = Instant::now();
        let deadline = call.deadline.unwrap_or(begun + PREPARATION);
        let shown = if abroad {
            None
        } else {
            let want = call.want();
            let preparing = self.prepare(&want, shape, deadline);
            timeout_at(deadline, preparing).await.unwrap_or(Err(Fault::Timeout(Phase::Header)))?
        };
        let relay = Relay {
            registry: self,
            call,
            body,
            url,
            headers,
            shown,
            abroad,
            via: Via::Anonymous,
            hops: 0,
            challenged: 0,
            begun,
        };
        relay.run().await
    }

    fn target(&self, target: &CallTarget) -> Result<Url, Fault> {
        match target {
            CallTarget::Path(path) => self.url(path),
            CallTarget::Url(location) => {
                let redirect = |fault| Fault::Redirect(RedirectFault::Url(fault));
                let base = Url::new(self.origin.clone(), "/").map_err(redirect)?;
                redirect::resolve(&base, location.as_str()).map_err(Fault::Redirect)
            }
        }
    }

    /// What to show with the first request. With a body the token must be there before: a stream cannot be repeated,
    /// and of a manifest a refusal costs a second transfer.
    async fn prepare(&self, want: &Want<'_>, shape: Shape, deadline: Instant) -> Result<Option<Shown>, Fault> {
        if shape == Shape::Stream && self.is_doubtful() {
            // One that takes hours must not be the probe for which all others wait.
            self.ping(HeaderMap::new(), deadline).await?;
        }
        let shown = self.auth.ready(want).await?;
        if shown.is_some() || shape == Shape::Empty {
            return Ok(shown);
        }
        match self.scheme(deadline).await {
            Ok(Scheme::Basic) => self.auth.prepared(want, None).await,
            Ok(Scheme::Bearer { realm, service }) => {
                let bearer = Bearer { realm, service, scope: String::new(), error: String::new() };
                self.auth.prepared(want, Some(&bearer)).await
            }
            // What it says to the request itself is worth more, and if that is a challenge it can be answered.
            Err(Fault::RateLimited { .. } | Fault::Status { .. }) if shape == Shape::Whole => Ok(None),
            Err(fault) if fault.class() == Class::Unavailable => Err(fault),
            // What is wrong with a challenge is told by the one to the request itself.
            Ok(Scheme::Open) | Err(_) => Ok(None),
        }
    }
}

// === impl Relay ===

impl Relay<'_> {
    async fn run(mut self) -> Result<Reply, Fault> {
        loop {
            let Some(body) = CallBody::next(self.body) else { return Err(self.streamed()) };
            let watch = body.watch();
            let stopper = watch.clone().map(Stopper::new);
            let response = self.send(body).await?;
            let whole = watch.as_ref().is_none_or(|watch| watch.is_whole());
            if let (Some(watch), false) = (watch, whole) {
                watch.hold();
            }
            match response.status() {
                StatusCode::UNAUTHORIZED => self.challenged(response).await?,
                status if is_redirect(status) => self.redirected(response).await?,
                _ => return self.reply(response, whole, stopper),
            }
        }
    }

    async fn send(&mut self, body: RequestBody) -> Result<Response<Incoming>, Fault> {
        let mut headers = self.headers.clone();
        if let Some(shown) = &self.shown {
            headers.insert(AUTHORIZATION, shown.grant.header.clone());
        }
        let limit = if body.watch().is_some() { UNLIMITED } else { ANSWER_TIMEOUT };
        let deadline = self.call.deadline.unwrap_or_else(|| Instant::now() + limit);
        let (kind, method) = (self.call.kind, self.call.method.clone());
        let outgoing = Outgoing { kind, method, url: &self.url, headers, body };
        if self.abroad {
            self.registry.wire.send(outgoing, deadline).await
        } else {
            self.registry.send_own(outgoing, deadline).await
        }
    }

    async fn challenged(&mut self, response: Response<Incoming>) -> Result<(), Fault> {
        if self.abroad {
            let (host, status) = (self.url.origin.authority(), response.status());
            return Err(Fault::Redirect(RedirectFault::Refused { host, status }));
        }
        self.challenged += 1;
        let deadline = self.call.deadline.unwrap_or_else(|| Instant::now() + PREPARATION);
        let want = self.call.want();
        let headers = response.headers().clone();
        // Also where the body is gone: the refused token must not be shown to the next request.
        let shown = self.shown.take();
        let secrets = repeatable(&self.call.right, shown.as_ref());
        let answering = self.registry.auth.answer(&want, &headers, shown.as_ref(), self.begun);
        let answer = if self.challenged > MAX_CHALLENGES {
            None
        } else {
            timeout_at(deadline, answering).await.unwrap_or(Err(Fault::Timeout(Phase::Header)))?
        };
        match answer {
            Some(shown) if self.body.is_some() => {
                read::drain(response).await;
                self.shown = Some(shown);
                Ok(())
            }
            _ => Err(self.registry.wire.fault(response, deadline, true, &secrets).await),
        }
    }

    async fn redirected(&mut self, response: Response<Incoming>) -> Result<(), Fault> {
        let status = response.status();
        if !self.call.reads() && !matches!(status.as_u16(), 307 | 308) {
            return Err(Fault::Redirect(RedirectFault::Write { status }));
        }
        let next = redirect::next(&self.url, response.headers(), self.hops)?;
        self.hops += 1;
        if !self.abroad {
            self.via = self.shown_via();
        }
        if next.origin != self.url.origin {
            self.abroad = true;
            self.shown = None;
        }
        self.url = next;
        read::drain(response).await;
        Ok(())
    }

    /// The body of the answer keeps `stopper`: an early answer is read to its end before the request is broken off.
    fn reply(self, response: Response<Incoming>, whole: bool, stopper: Option<Stopper>) -> Result<Reply, Fault> {
        let via = if self.abroad { self.via } else { self.shown_via() };
        let (head, body) = response.into_parts();
        let headers = head.headers;
        if headers.get_all(CONTENT_ENCODING).iter().any(|coding| !coding.as_bytes().eq_ignore_ascii_case(b"identity")) {
            return Err(Fault::Protocol(ProtocolFault::ContentEncoding));
        }
        let length = match headers.get(CONTENT_LENGTH).map(|length| length.to_str().ok()?.parse().ok()) {
            Some(None) => return Err(Fault::Protocol(ProtocolFault::ContentLength)),
            length => length.flatten(),
        };
        let location = match self.location(&headers) {
            // Without it the upload cannot go on, and why is worth saying.
            Err(fault) if head.status == StatusCode::ACCEPTED => return Err(Fault::Redirect(fault)),
            location => location.ok().flatten(),
        };
        let bodiless = self.call.method == Method::HEAD
            || matches!(head.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        let body = if bodiless {
            UpstreamBody::empty(&self.registry.intake)
        } else {
            let body = body.map_err(move |error| {
                let _ = &stopper;
                BoxError::from(error)
            });
            UpstreamBody::new(&self.registry.intake, body, length)
        };
        let shown = self.shown.is_some();
        Ok(Reply { status: head.status, headers, body, via, shown, location, whole, repeated: false })
    }

    fn location(&self, headers: &HeaderMap) -> Result<Option<Location>, RedirectFault> {
        if !headers.contains_key(LOCATION) {
            return Ok(None);
        }
        let url = redirect::target(&self.url, headers)?;
        Ok(Some(url.location(&self.registry.origin)))
    }

    fn streamed(&self) -> Fault {
        Fault::Redirect(RedirectFault::Streamed { host: self.url.origin.authority() })
    }

    fn shown_via(&self) -> Via {
        self.shown.as_ref().map_or(Via::Anonymous, |shown| shown.grant.via)
    }
}
