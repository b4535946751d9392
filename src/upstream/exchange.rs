//! Talking to a token endpoint: GET with Basic as docker does, POST with the `OAuth2` grants where that is needed.
//!
//! distribution's specifications "Token Authentication" (GET) and "`OAuth2` Token Authentication" (POST). Answers may
//! name the token `token` or `access_token`, and may or may not say how long it lives.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode};
use hyper::body::Incoming;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use tokio::time::{Instant, timeout, timeout_at};

use super::credentials::{Credential, CredentialFault, Secret};
use super::error::{Fault, RealmFault, RedirectFault, TokenFault};
use super::origin::Url;
use super::read::{self, MAX_TEXT};
use super::redirect::is_redirect;
use super::retry::retry_after;
use super::token::{DEFAULT_LIFE, Grant, life};
use super::wire::{Outgoing, Wire};
use crate::metrics::Kind;
use crate::oci::Via;

/// Time for a whole exchange, fallbacks included.
const TOKEN_TIMEOUT: Duration = Duration::from_secs(10);
/// How ocistern calls itself to token endpoints.
const CLIENT_ID: &str = "ocistern";
/// What stays as it is in a query or form value.
const VALUE: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// A checked token endpoint and what is wanted from it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Endpoint {
    pub(crate) url: Url,
    pub(crate) service: String,
    /// Several are separated by spaces.
    pub(crate) scope: String,
}

#[derive(Deserialize)]
struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
    /// A number, but some send it as text.
    #[serde(default)]
    expires_in: serde_json::Value,
}

/// What an endpoint says to one form of the request.
enum Reply {
    Token(Grant),
    /// It does not know this form; another may work.
    OtherForm(Fault),
}

// === impl Endpoint ===

impl Endpoint {
    /// A token for `credential`.
    pub(crate) async fn fetch(&self, wire: &Wire, credential: &Credential) -> Result<Grant, Fault> {
        if let Credential::Registry(token) = credential {
            return bearer(token.expose(), Via::Shared, DEFAULT_LIFE);
        }
        timeout(TOKEN_TIMEOUT, self.exchange(wire, credential)).await.unwrap_or_else(|_| {
            let cause = Arc::new(std::io::Error::from(std::io::ErrorKind::TimedOut));
            Err(Fault::Token(TokenFault::Away { host: self.host(), cause }))
        })
    }

    async fn exchange(&self, wire: &Wire, credential: &Credential) -> Result<Grant, Fault> {
        if !matches!(credential, Credential::Identity(_)) {
            match self.get(wire, credential).await? {
                Reply::Token(grant) => return Ok(grant),
                Reply::OtherForm(fault) => {
                    tracing::debug!(host = self.host(), %fault, "the token endpoint takes no GET, trying POST");
                }
            }
        }
        match self.post(wire, credential).await? {
            Reply::Token(grant) => Ok(grant),
            Reply::OtherForm(fault) => Err(fault),
        }
    }

    async fn get(&self, wire: &Wire, credential: &Credential) -> Result<Reply, Fault> {
        let mut pairs = vec![("service", self.service.as_str())];
        pairs.extend(self.scope.split(' ').map(|scope| ("scope", scope)));
        let mut headers = HeaderMap::new();
        if let Credential::Password { username, password } = credential {
            pairs.push(("account", username));
            headers.insert(AUTHORIZATION, basic(username, password)?);
        }
        let path = self.url.target.as_str();
        let separator = match (path.contains('?'), path.ends_with(['?', '&'])) {
            (false, _) => "?",
            (true, false) => "&",
            (true, true) => "",
        };
        let path = format!("{path}{separator}{}", form(&pairs));
        let url = Url::new(self.url.origin.clone(), &path)
            .map_err(|fault| Fault::Token(TokenFault::Realm(RealmFault::Url(fault))))?;
        let request = Outgoing { kind: Kind::Other, method: Method::GET, url: &url, headers, body: Bytes::new() };
        self.ask(wire, request, credential).await
    }

    async fn post(&self, wire: &Wire, credential: &Credential) -> Result<Reply, Fault> {
        let mut pairs = Vec::new();
        match credential {
            Credential::Identity(token) => {
                pairs.extend([("grant_type", "refresh_token"), ("refresh_token", token.expose())]);
            }
            Credential::Password { username, password } => {
                pairs.extend([
                    ("grant_type", "password"),
                    ("username", username.as_str()),
                    ("password", password.expose()),
                ]);
            }
            // Without a name it asks for what everybody may.
            Credential::None | Credential::Registry(_) => pairs.push(("grant_type", "password")),
        }
        pairs.extend([("client_id", CLIENT_ID), ("service", &self.service), ("scope", &self.scope)]);
        let form_type = HeaderValue::from_static("application/x-www-form-urlencoded");
        let headers = HeaderMap::from_iter([(CONTENT_TYPE, form_type)]);
        let body = form(&pairs).into();
        let request = Outgoing { kind: Kind::Other, method: Method::POST, url: &self.url, headers, body };
        self.ask(wire, request, credential).await
    }

    async fn ask(&self, wire: &Wire, mut request: Outgoing<'_>, credential: &Credential) -> Result<Reply, Fault> {
        request.headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        let deadline = Instant::now() + TOKEN_TIMEOUT;
        let response = wire.send(request, deadline).await.map_err(|fault| self.away(fault))?;
        let status = response.status();
        if is_redirect(status) {
            return Err(Fault::Token(TokenFault::Realm(RealmFault::Redirected { host: self.host() })));
        }
        let retry_after = retry_after(response.headers(), SystemTime::now());
        if status == StatusCode::OK {
            let via = if *credential == Credential::None { Via::Anonymous } else { Via::Shared };
            return self.grant(response, via).await.map(Reply::Token);
        }
        let mut message = read::refusal(response, deadline, true).await.message;
        if credential.secret().is_some_and(|secret| message.contains(secret)) {
            "(upstream's words are left out, because they repeat the credential)".clone_into(&mut message);
        }
        let fault = match status {
            StatusCode::TOO_MANY_REQUESTS => return Err(Fault::RateLimited { retry_after, message }),
            StatusCode::UNAUTHORIZED => return Err(Fault::Unauthorized { message }),
            StatusCode::FORBIDDEN => return Err(Fault::Forbidden { message }),
            _ => Fault::Token(TokenFault::Status { host: self.host(), status, message }),
        };
        match status.as_u16() {
            400 | 404 | 405 | 501 => Ok(Reply::OtherForm(fault)),
            _ => Err(fault),
        }
    }

    async fn grant(&self, response: Response<Incoming>, via: Via) -> Result<Grant, Fault> {
        let deadline = Instant::now() + TOKEN_TIMEOUT;
        let body = timeout_at(deadline, read::whole(response.into_body(), MAX_TEXT)).await;
        let body = body.unwrap_or_else(|_| Err(read::Unread::Broken("it stalled".into())));
        let body = body.map_err(|unread| {
            Fault::Token(match unread {
                read::Unread::TooLarge => TokenFault::TooLarge { host: self.host(), limit: MAX_TEXT },
                read::Unread::Broken(error) => TokenFault::Away { host: self.host(), cause: Arc::from(error) },
            })
        })?;
        let malformed = || Fault::Token(TokenFault::Malformed { host: self.host() });
        let answer: TokenAnswer = serde_json::from_slice(&body).map_err(|_| malformed())?;
        let set = |token: Option<String>| token.filter(|token| !token.is_empty());
        let token = set(answer.token).or_else(|| set(answer.access_token)).ok_or_else(malformed)?;
        let expires_in = match &answer.expires_in {
            serde_json::Value::Number(number) => number.as_f64(),
            serde_json::Value::String(text) => text.parse().ok(),
            _ => None,
        };
        let life = life(&token, expires_in, SystemTime::now());
        bearer(&token, via, life).map_err(|_| malformed())
    }

    /// What went wrong on the way to the endpoint, told as the endpoint's.
    fn away(&self, fault: Fault) -> Fault {
        let host = self.host();
        Fault::Token(match fault {
            Fault::Redirect(RedirectFault::Address { host, class }) => {
                TokenFault::Realm(RealmFault::Address { host, class })
            }
            fault => TokenFault::Away { host, cause: Arc::new(fault) },
        })
    }

    fn host(&self) -> String {
        self.url.origin.authority()
    }
}

/// `Bearer TOKEN`.
fn bearer(token: &str, via: Via, life: Duration) -> Result<Grant, Fault> {
    // A token with a space would be two words to the upstream.
    if !token.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(Fault::Credential(CredentialFault::Unusable));
    }
    Ok(Grant::new(sensitive(&format!("Bearer {token}"))?, via, life))
}

/// `Basic NAME:PASSWORD`, encoded.
pub(crate) fn basic(username: &str, password: &Secret) -> Result<HeaderValue, Fault> {
    if username.contains(':') {
        return Err(Fault::Credential(CredentialFault::Unusable));
    }
    sensitive(&format!("Basic {}", STANDARD.encode(format!("{username}:{}", password.expose()))))
}

pub(crate) fn sensitive(text: &str) -> Result<HeaderValue, Fault> {
    let mut value = HeaderValue::from_str(text).map_err(|_| Fault::Credential(CredentialFault::Unusable))?;
    value.set_sensitive(true);
    Ok(value)
}

/// `a=b&c=d`, without what is empty.
pub(crate) fn form(pairs: &[(&str, &str)]) -> String {
    let set = pairs.iter().filter(|(_, value)| !value.is_empty());
    let encoded = set.map(|(name, value)| format!("{name}={}", utf8_percent_encode(value, VALUE)));
    encoded.collect::<Vec<_>>().join("&")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_are_encoded() {
        let pairs = [("service", "a b"), ("scope", ""), ("password", "p&w=%+é")];
        assert_eq!(form(&pairs), "service=a%20b&password=p%26w%3D%25%2B%C3%A9");
    }

    #[test]
    fn headers_are_sensitive_and_never_split() {
        let grant = bearer("abc", Via::Shared, DEFAULT_LIFE).unwrap();
        assert!(grant.header.is_sensitive());
        for bad in ["a b", "a\r\nX: y", "é", "\0"] {
            assert!(bearer(bad, Via::Shared, DEFAULT_LIFE).is_err(), "{bad:?}");
        }
        assert_eq!(basic("me", &Secret::new("pw")).unwrap(), "Basic bWU6cHc=");
        assert!(basic("a:b", &Secret::new("pw")).is_err());
    }
}
