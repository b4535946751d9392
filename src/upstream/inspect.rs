//! Looking at an upstream step by step, as a request would go: which addresses, which certificates, what it says of itself.
//! For whoever looks for what is wrong; a request needs none of this.

use std::net::SocketAddr;
use std::time::SystemTime;

use http::header::{CONTENT_TYPE, DATE};
use http::{HeaderMap, Method, StatusCode, Uri};
use rustls::pki_types::CertificateDer;
use tokio::time::{Instant, timeout_at};

use super::ask::Ask;
use super::error::{Fault, Phase, ProtocolFault, UpstreamError};
use super::grant::Scheme;
use super::origin::Url;
use super::read::{self, MAX_TEXT};
use super::registry::Registry;
use super::retry::{RateLimit, rate_limit};
use crate::oci::{Reference, RepoName, media};

/// Where Docker Hub's registry is.
const HUB: &str = "registry-1.docker.io";
/// The image of Docker Hub that is there to be asked for the rate limit; a HEAD does not count against it.
const HUB_LIMIT: (&str, &str) = ("ratelimitpreview/test", "latest");

/// What upstream answered to `GET /v2/` without credentials.
#[derive(Debug)]
pub struct Greeting {
    /// The status.
    pub status: StatusCode,
    /// What time it is there, to the second.
    pub date: Option<SystemTime>,
    /// Why it is hardly a registry, although it lets everybody in; none: it may be one.
    pub strange: Option<String>,
    /// What it says of a limit.
    pub limit: Option<RateLimit>,
    /// How it wants to be asked, or why that answer is no registry's, or cannot be answered.
    pub scheme: Result<Scheme, UpstreamError>,
}

impl Registry {
    /// The addresses that are dialled: those of `connect`, or what the system resolves. Behind a proxy nobody here asks for
    /// them.
    pub async fn addresses(&self, deadline: Instant) -> Result<Vec<SocketAddr>, UpstreamError> {
        self.open()?;
        self.step(deadline, self.wire.client().addresses()).await
    }

    /// The proxy of the environment through which it is asked, without the password; none: directly.
    pub fn proxy(&self) -> Option<String> {
        self.wire.client().proxy(&self.root().ok()?)
    }

    /// Makes a connection as a request would, and lets it go: the certificates that were shown, the server's own first;
    /// none over plain http.
    pub async fn certificates(&self, deadline: Instant) -> Result<Vec<CertificateDer<'static>>, UpstreamError> {
        self.open()?;
        let root = self.root().map_err(|fault| fault.of(self.name()))?;
        self.step(deadline, self.wire.client().connect(root)).await
    }

    /// Asks it who it is, now, whatever is remembered.
    pub async fn greet(&self, deadline: Instant) -> Result<Greeting, UpstreamError> {
        self.open()?;
        let response = self.step(deadline, self.ping(HeaderMap::new(), deadline)).await?;
        let (status, headers) = (response.status(), response.headers());
        let date = headers.get(DATE).and_then(|date| httpdate::parse_http_date(date.to_str().ok()?.trim()).ok());
        let limit = rate_limit(headers);
        let (strange, scheme) = if status.is_success() {
            let (head, body) = response.into_parts();
            let body = timeout_at(deadline, read::whole(body, MAX_TEXT)).await.ok().and_then(Result::ok);
            (strange(&head.headers, body.as_deref()), Ok(Scheme::Open))
        } else {
            (None, self.scheme_in(response, deadline).await.map_err(|fault| fault.of(self.name())))
        };
        Ok(Greeting { status, date, strange, limit, scheme })
    }

    /// Whether the upstream, which is asked by plain http, wants TLS. It says so in a body, which an answer to HEAD has not; and
    /// what a caller is told must not depend on whether upstream was asked by HEAD or by GET.
    pub(super) async fn wants_tls(&self, deadline: Instant) -> bool {
        if self.origin.https {
            return false;
        }
        let Ok(response) = self.ping(HeaderMap::new(), deadline).await else { return false };
        matches!(self.scheme_in(response, deadline).await, Err(Fault::WantsTls))
    }

    /// What is left of the limit of those who pull as ocistern does, where upstream tells it without counting the question:
    /// Docker Hub alone.
    pub async fn rate_limit(&self, deadline: Instant) -> Result<Option<RateLimit>, UpstreamError> {
        let (Ok(repo), Ok(tag)) = (HUB_LIMIT.0.parse::<RepoName>(), HUB_LIMIT.1.parse::<Reference>()) else {
            return Ok(None);
        };
        if self.origin.host != HUB {
            return Ok(None);
        }
        let ask = Ask::manifest(Method::HEAD, &repo, &tag, deadline).with_right(self.own_right());
        let answer = timeout_at(deadline, self.fetch(ask)).await;
        let answer = answer.unwrap_or_else(|_| Err(Fault::Timeout(Phase::Header).of(self.name())))?;
        Ok(rate_limit(&answer.headers))
    }

    fn root(&self) -> Result<Uri, Fault> {
        let root = Url::new(self.origin.clone(), "/").map_err(|_| Fault::Protocol(ProtocolFault::Target))?;
        root.to_uri().map_err(|_| Fault::Protocol(ProtocolFault::Target))
    }

    async fn step<T>(
        &self,
        deadline: Instant,
        work: impl Future<Output = Result<T, Fault>>,
    ) -> Result<T, UpstreamError> {
        let done = timeout_at(deadline, work).await.unwrap_or(Err(Fault::Timeout(Phase::Connect)));
        done.map_err(|fault| fault.of(self.name()))
    }
}

/// What speaks against a registry in a good answer to `GET /v2/`, of which the specification asks no more than 200. `body`:
/// none if it is too long, or broke off.
fn strange(headers: &HeaderMap, body: Option<&[u8]>) -> Option<String> {
    let says_so = headers.contains_key("docker-distribution-api-version");
    let kind = headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).map(media::essence);
    let is_page = kind.is_some_and(|kind| kind.eq_ignore_ascii_case("text/html"));
    let is_empty = body.is_some_and(|body| body.trim_ascii().is_empty());
    let is_json = body.is_some_and(|body| serde_json::from_slice::<serde::de::IgnoredAny>(body).is_ok());
    // Some registries send nothing, or their JSON, by the type that their web server is set to.
    let fits = is_json || is_empty;
    match (is_page, says_so) {
        (true, false) => Some("a web page (text/html)".to_owned()),
        (true, true) if !fits => Some("a web page (text/html)".to_owned()),
        (false, false) if !fits => {
            Some("something that is no JSON, without Docker-Distribution-Api-Version".to_owned())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};

    use super::*;

    #[test]
    fn a_registry_is_told_from_a_page() {
        let says = |kind: &'static str, says_so: bool, body: Option<&str>| {
            let mut headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static(kind))]);
            if says_so {
                let name = HeaderName::from_static("docker-distribution-api-version");
                headers.insert(name, HeaderValue::from_static("registry/2.0"));
            }
            strange(&headers, body.map(str::as_bytes))
        };
        for (kind, says_so, body) in [
            ("application/json", true, Some("{}")),
            ("application/json", false, Some("{}")),
            ("text/plain", false, Some("true\n")),
            ("text/plain", true, Some("It works")),
            ("text/plain", false, Some("")),
            ("text/html", true, Some("")),
            ("text/html; charset=utf-8", true, Some("{}")),
        ] {
            assert_eq!(says(kind, says_so, body), None, "{kind} {says_so} {body:?}");
        }
        for (kind, says_so, body, words) in [
            ("text/html; charset=utf-8", false, Some("<html>"), "text/html"),
            ("Text/HTML", true, Some("<html>"), "text/html"),
            ("text/html", false, Some("{}"), "text/html"),
            ("text/plain", false, Some("It works"), "no JSON"),
            ("application/json", false, None, "no JSON"),
        ] {
            assert!(says(kind, says_so, body).is_some_and(|said| said.contains(words)), "{kind} {says_so} {body:?}");
        }
    }
}
