//! Talking to a token endpoint: GET with Basic as docker does, POST with the `OAuth2` grants where that is needed.
//!
//! distribution's specifications "Token Authentication" (GET) and "`OAuth2` Token Authentication" (POST). Answers may
//! name the token `token` or `access_token`, and may or may not say how long it lives.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode};
use hyper::body::Incoming;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use tokio::time::{Instant, timeout, timeout_at};

use super::credentials::{Credential, CredentialFault, Secret};
use super::error::{Demand, Fault, RealmFault, RedirectFault, TokenFault, quotable};
use super::origin::{Url, query_separator};
use super::read::{self, MAX_TEXT};
use super::redirect::is_redirect;
use super::retry::retry_after;
use super::token::{DEFAULT_LIFE, Grant, life};
use super::upload::RequestBody;
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

/// How a token is asked for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Form<'a> {
    pub(crate) credential: &'a Credential,
    /// POST before GET, for a name and password.
    pub(crate) post_first: bool,
    /// With a refresh token, if the endpoint gives any.
    pub(crate) offline: bool,
    /// How the asking program calls itself; none: as ocistern.
    pub(crate) client_id: Option<&'a str>,
}

/// What a token endpoint gives.
#[derive(Debug)]
pub(crate) struct Token {
    /// To be shown as Bearer.
    pub(crate) access: Secret,
    pub(crate) life: Duration,
    /// For more of them.
    pub(crate) refresh: Option<Secret>,
}

#[derive(Deserialize)]
struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
    refresh_token: Option<String>,
    /// A number, but some send it as text.
    #[serde(default)]
    expires_in: serde_json::Value,
}

/// What an endpoint says to one form of the request.
enum Reply {
    Answer(TokenAnswer),
    /// It does not know this form; another may work.
    OtherForm(Fault),
}

// === impl Form ===

impl<'a> Form<'a> {
    /// The usual one.
    pub(crate) const fn of(credential: &'a Credential) -> Self {
        Self { credential, post_first: false, offline: false, client_id: None }
    }

    /// The methods to try, in order. A refresh token is never put in a URL.
    const fn methods(&self) -> &'static [Method] {
        match (self.credential, self.post_first) {
            (Credential::Identity(_), _) => &[Method::POST],
            (_, true) => &[Method::POST, Method::GET],
            (_, false) => &[Method::GET, Method::POST],
        }
    }
}

// === impl Endpoint ===

impl Endpoint {
    /// Something to show by the right of `credential`, which is `via`.
    pub(crate) async fn fetch(&self, wire: &Wire, credential: &Credential, via: Via) -> Result<Grant, Fault> {
        if let Credential::Registry(token) = credential {
            return bearer(token.expose(), via, DEFAULT_LIFE);
        }
        let Token { access, life, .. } = self.token(wire, Form::of(credential)).await?;
        bearer(access.expose(), via, life)
    }

    /// A token. What it is asked for is that which `form` says; the first form that the endpoint knows decides.
    pub(crate) async fn token(&self, wire: &Wire, form: Form<'_>) -> Result<Token, Fault> {
        let answer = timeout(TOKEN_TIMEOUT, self.answer(wire, form)).await.unwrap_or_else(|_| Err(self.slow()))?;
        let token = set(answer.token).or_else(|| set(answer.access_token)).ok_or_else(|| self.malformed())?;
        let expires_in = match &answer.expires_in {
            serde_json::Value::Number(number) => number.as_f64(),
            serde_json::Value::String(text) => text.parse().ok(),
            _ => None,
        };
        if !is_printable(&token) {
            return Err(self.malformed());
        }
        let life = life(&token, expires_in, wire.now());
        Ok(Token { access: Secret::new(token), life, refresh: set(answer.refresh_token).map(Secret::new) })
    }

    /// A refresh token for what the fields of `form` say, with the service that this endpoint knows.
    pub(crate) async fn refresh_token(&self, wire: &Wire, form: &[(String, String)]) -> Result<Secret, Fault> {
        let mut pairs: Vec<(&str, &str)> = form.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        pairs.retain(|(name, _)| *name != "service");
        pairs.push(("service", &self.service));
        let secrets: Vec<&str> = pairs.iter().filter(|(name, _)| is_secret(name)).map(|(_, value)| *value).collect();
        let asked = timeout(TOKEN_TIMEOUT, self.ask(wire, self.posted(&pairs), &secrets));
        match asked.await.unwrap_or_else(|_| Err(self.slow()))? {
            Reply::Answer(answer) => set(answer.refresh_token).map(Secret::new).ok_or_else(|| self.malformed()),
            Reply::OtherForm(fault) => Err(fault),
        }
    }

    async fn answer(&self, wire: &Wire, form: Form<'_>) -> Result<TokenAnswer, Fault> {
        let mut last = None;
        for method in form.methods() {
            let reply =
                if *method == Method::GET { self.get(wire, form).await? } else { self.post(wire, form).await? };
            match reply {
                Reply::Answer(answer) => return Ok(answer),
                Reply::OtherForm(fault) => {
                    tracing::debug!(host = self.host(), %fault, %method, "the token endpoint does not take this form");
                    last = Some(fault);
                }
            }
        }
        Err(last.unwrap_or_else(|| self.malformed()))
    }

    async fn get(&self, wire: &Wire, form: Form<'_>) -> Result<Reply, Fault> {
        let mut pairs = vec![("service", self.service.as_str())];
        pairs.extend(self.scope.split(' ').map(|scope| ("scope", scope)));
        let mut headers = HeaderMap::new();
        if let Credential::Password { username, password } = form.credential {
            pairs.push(("account", username));
            headers.insert(AUTHORIZATION, basic(username, password)?);
        }
        pairs.push(("client_id", form.client_id.unwrap_or_default()));
        pairs.push(("offline_token", if form.offline { "true" } else { "" }));
        let path = self.url.target.as_str();
        let path = format!("{path}{}{}", query_separator(path), encoded(&pairs));
        let url = Url::new(self.url.origin.clone(), &path)
            .map_err(|fault| Fault::Token(TokenFault::Realm(RealmFault::Url(fault))))?;
        let (kind, body) = (Kind::Other, RequestBody::empty());
        let request = Outgoing { kind, method: Method::GET, url: &url, headers, body };
        self.ask(wire, request, form.credential.secret().as_slice()).await
    }

    async fn post(&self, wire: &Wire, form: Form<'_>) -> Result<Reply, Fault> {
        let mut pairs = Vec::new();
        match form.credential {
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
        let client_id = form.client_id.unwrap_or(CLIENT_ID);
        pairs.extend([("client_id", client_id), ("service", &self.service), ("scope", &self.scope)]);
        pairs.push(("access_type", if form.offline { "offline" } else { "" }));
        self.ask(wire, self.posted(&pairs), form.credential.secret().as_slice()).await
    }

    fn posted(&self, pairs: &[(&str, &str)]) -> Outgoing<'_> {
        let form_type = HeaderValue::from_static("application/x-www-form-urlencoded");
        let headers = HeaderMap::from_iter([(CONTENT_TYPE, form_type)]);
        let body = RequestBody::whole(encoded(pairs).into());
        Outgoing { kind: Kind::Other, method: Method::POST, url: &self.url, headers, body }
    }

    async fn ask(&self, wire: &Wire, mut request: Outgoing<'_>, secrets: &[&str]) -> Result<Reply, Fault> {
        request.headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        let deadline = Instant::now() + TOKEN_TIMEOUT;
        let response = wire.send(request, deadline).await.map_err(|fault| self.away(fault))?;
        let status = response.status();
        if is_redirect(status) {
            return Err(Fault::Token(TokenFault::Realm(RealmFault::Redirected { host: self.host() })));
        }
        let retry_after = retry_after(response.headers(), wire.now());
        if status == StatusCode::OK {
            return self.read(response).await.map(Reply::Answer);
        }
        let message = read::refusal(response, deadline, true).await.hiding(secrets).message;
        let fault = match status {
            StatusCode::TOO_MANY_REQUESTS => return Err(Fault::RateLimited { retry_after, message }),
            StatusCode::UNAUTHORIZED => {
                let demand = Demand { scope: quotable(&self.scope), error: String::new() };
                return Err(Fault::Unauthorized { message, demand });
            }
            StatusCode::FORBIDDEN => return Err(Fault::Forbidden { message }),
            _ => Fault::Token(TokenFault::Status { host: self.host(), status, message }),
        };
        match status.as_u16() {
            400 | 404 | 405 | 501 => Ok(Reply::OtherForm(fault)),
            _ => Err(fault),
        }
    }

    async fn read(&self, response: Response<Incoming>) -> Result<TokenAnswer, Fault> {
        let deadline = Instant::now() + TOKEN_TIMEOUT;
        let body = timeout_at(deadline, read::whole(response.into_body(), MAX_TEXT)).await;
        let body = body.unwrap_or_else(|_| Err(read::Unread::Broken("it stalled".into())));
        let body = body.map_err(|unread| {
            Fault::Token(match unread {
                read::Unread::TooLarge => TokenFault::TooLarge { host: self.host(), limit: MAX_TEXT },
                read::Unread::Broken(error) => TokenFault::Away { host: self.host(), cause: Arc::from(error) },
            })
        })?;
        serde_json::from_slice(&body).map_err(|_| self.malformed())
    }

    fn malformed(&self) -> Fault {
        Fault::Token(TokenFault::Malformed { host: self.host() })
    }

    fn slow(&self) -> Fault {
        let cause = Arc::new(std::io::Error::from(std::io::ErrorKind::TimedOut));
        Fault::Token(TokenFault::Away { host: self.host(), cause })
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

fn set(text: Option<String>) -> Option<String> {
    text.filter(|text| !text.is_empty())
}

/// Fields of a token request that are nobody's business: they are kept out of what upstream says to them.
pub fn is_secret(field: &str) -> bool {
    ["access_token", "refresh_token", "password"].contains(&field)
}

/// A token with a space would be two words to the upstream.
fn is_printable(token: &str) -> bool {
    token.bytes().all(|b| b.is_ascii_graphic())
}

/// `Bearer TOKEN`.
pub(crate) fn bearer(token: &str, via: Via, life: Duration) -> Result<Grant, Fault> {
    if !is_printable(token) {
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
pub(crate) fn encoded(pairs: &[(&str, &str)]) -> String {
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
        assert_eq!(encoded(&pairs), "service=a%20b&password=p%26w%3D%25%2B%C3%A9");
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
