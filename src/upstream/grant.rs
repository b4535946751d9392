//! Getting tokens on a caller's behalf: how an upstream wants to be asked, and what it gives for a credential.

use http::header::AUTHORIZATION;
use http::{HeaderMap, Method, Response, StatusCode};
use hyper::body::Incoming;
use parking_lot::Mutex;
use serde_json::{Map, Value};
use tokio::sync::Semaphore;
use tokio::time::{Duration, Instant, timeout_at};

use super::call::{Call, CallTarget};
use super::challenge::{self, Challenge};
use super::credentials::{Credential, Secret};
use super::error::{Class, Demand, Fault, Phase, TokenFault, UpstreamError};
use super::exchange::{Endpoint, Form, Token, basic};
use super::origin::Url;
use super::read::{self, Refusal};
use super::registry::Registry;
use super::right::Right;
use super::token::claims;
use super::upload::RequestBody;
use super::wire::Outgoing;
use crate::metrics::Kind;

/// How long an upstream's general challenge is taken for what it would say now.
const SCHEME_LIFE: Duration = Duration::from_mins(10);
/// How long it is taken for that if it could not be asked again.
const SCHEME_REPRIEVE: Duration = Duration::from_secs(10);
/// Where a token endpoint of Azure trades tokens of the directory for its own; clients put this path behind the realm's
/// host.
const EXCHANGE_PATH: &str = "/oauth2/exchange";

/// How an upstream wants to be asked: its answer to `GET /v2/` without credentials.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scheme {
    /// As one comes.
    Open,
    /// With name and password in each request.
    Basic,
    /// With a token.
    Bearer {
        /// Where tokens are; absolute, and one that this upstream may name.
        realm: String,
        /// The audience; may be empty.
        service: String,
    },
}

/// A caller's request for a token of an upstream.
#[derive(Debug, Clone)]
pub struct GrantRequest {
    /// For what the token is given.
    pub credential: ClientCredential,
    /// As upstream names them; none: a token that only proves who asks.
    pub scopes: Vec<String>,
    /// Which form is tried first for a name and password.
    pub method_hint: GrantMethod,
    /// With a refresh token, if upstream gives any.
    pub offline: bool,
    /// How the client calls itself.
    pub client_id: Option<String>,
}

/// What a caller shows to get a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClientCredential {
    /// A name and password.
    Basic {
        /// The name.
        username: String,
        /// The password.
        password: Secret,
    },
    /// A refresh token of upstream.
    Refresh(Secret),
}

/// Of the two forms of a token request, the one that the caller used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum GrantMethod {
    /// GET with Basic.
    #[default]
    Get,
    /// POST of a form.
    Post,
}

/// What upstream gave for a caller's credential.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Granted {
    /// A token.
    Token {
        /// To be shown as Bearer.
        token: Secret,
        /// How long it lives from now on.
        expires_in: Duration,
        /// For more tokens.
        refresh_token: Option<Secret>,
        /// What it says, if it is a JWT. Nobody has checked the signature but upstream, which made it.
        claims: Option<Map<String, Value>>,
    },
    /// Upstream gives no tokens; it accepted the name and password as they are.
    Basic,
}

/// What an upstream last said to nobody in particular.
pub(crate) struct SchemeMemory {
    known: Mutex<Option<(Instant, Scheme)>>,
    /// One asks; who waits finds the answer.
    asking: Semaphore,
}

impl Registry {
    /// How upstream wants to be asked, by `GET /v2/` without credentials. Remembered for some minutes, and beyond them
    /// while upstream cannot be asked.
    pub async fn challenge(&self, deadline: Instant) -> Result<Scheme, UpstreamError> {
        self.open()?;
        self.scheme(deadline).await.map_err(|fault| fault.of(self.name()))
    }

    /// A token for a caller's credential, and what upstream told of it.
    pub async fn grant(&self, mut request: GrantRequest, deadline: Instant) -> Result<Granted, UpstreamError> {
        self.open()?;
        let asked = request.scopes.len();
        request.scopes.retain(|scope| !self.is_of_sealed(scope));
        if request.scopes.is_empty() && asked > 0 {
            return Err(Fault::Sealed.of(self.name()));
        }
        within(deadline, self.granted(request, deadline)).await.map_err(|fault| fault.of(self.name()))
    }

    /// A refresh token for the fields of an exchange request; its `service` becomes upstream's own.
    pub async fn exchange(&self, form: Vec<(String, String)>, deadline: Instant) -> Result<String, UpstreamError> {
        self.open()?;
        within(deadline, self.exchanged(&form, deadline)).await.map_err(|fault| fault.of(self.name()))
    }

    /// Whether upstream takes this right for a valid one, by `GET /v2/`. That it does says nothing about repositories.
    pub async fn accepts(&self, right: &Right, deadline: Instant) -> Result<bool, UpstreamError> {
        self.open()?;
        within(deadline, self.accepted(right, deadline)).await.map_err(|fault| fault.of(self.name()))
    }

    pub(super) async fn scheme(&self, deadline: Instant) -> Result<Scheme, Fault> {
        if let Some(scheme) = self.schemes.fresh() {
            return Ok(scheme);
        }
        let permit = timeout_at(deadline, self.schemes.asking.acquire()).await;
        let _permit = permit.map_err(|_| Fault::Timeout(Phase::Header))?;
        if let Some(scheme) = self.schemes.fresh() {
            return Ok(scheme);
        }
        match self.ask_scheme(deadline).await {
            Ok(scheme) => {
                self.schemes.keep(scheme.clone(), SCHEME_LIFE);
                Ok(scheme)
            }
            Err(fault) if fault.class() == Class::Unavailable => self.schemes.last().ok_or(fault),
            Err(fault) => Err(fault),
        }
    }

    /// `GET /v2/` with these headers.
    pub(super) async fn ping(&self, headers: HeaderMap, deadline: Instant) -> Result<Response<Incoming>, Fault> {
        let url = self.url("/v2/")?;
        let (kind, body) = (Kind::Other, RequestBody::empty());
        self.send_own(Outgoing { kind, method: Method::GET, url: &url, headers, body }, deadline).await
    }

    /// Whether a scope speaks of a repository that a rule seals: upstream learns nothing of it.
    fn is_of_sealed(&self, scope: &str) -> bool {
        let name = scope.strip_prefix("repository:").and_then(|rest| rest.rsplit_once(':'));
        name.and_then(|(name, _)| name.parse().ok()).is_some_and(|repo| self.config().is_sealed(&repo))
    }

    pub(super) fn open(&self) -> Result<(), UpstreamError> {
        if self.config().sealed { Err(Fault::Sealed.of(self.name())) } else { Ok(()) }
    }

    async fn ask_scheme(&self, deadline: Instant) -> Result<Scheme, Fault> {
        let response = self.ping(HeaderMap::new(), deadline).await?;
        self.scheme_in(response, deadline).await
    }

    /// What an answer to `GET /v2/` without credentials says.
    pub(super) async fn scheme_in(&self, response: Response<Incoming>, deadline: Instant) -> Result<Scheme, Fault> {
        if response.status().is_success() {
            read::drain(response).await;
            return Ok(Scheme::Open);
        }
        if response.status() != StatusCode::UNAUTHORIZED {
            return Err(self.wire.fault(response, deadline, true, &[""]).await);
        }
        let challenges = challenge::parse(response.headers());
        read::drain(response).await;
        let mut refused = Fault::Token(TokenFault::NoChallenge);
        for challenge in &challenges {
            let Challenge::Bearer(bearer) = challenge else { continue };
            match self.auth.realm(&bearer.realm) {
                Ok(url) => {
                    let realm = format!("{}{}", url.origin, url.target);
                    return Ok(Scheme::Bearer { realm, service: bearer.service.clone() });
                }
                Err(fault) => refused = fault,
            }
        }
        if challenges.contains(&Challenge::Basic) { Ok(Scheme::Basic) } else { Err(refused) }
    }

    async fn granted(&self, request: GrantRequest, deadline: Instant) -> Result<Granted, Fault> {
        let (realm, service) = match (self.scheme(deadline).await?, &request.credential) {
            (Scheme::Bearer { realm, service }, _) => (realm, service),
            (Scheme::Open | Scheme::Basic, ClientCredential::Basic { username, password }) => {
                let response = self.ping_as(username, password, deadline).await?;
                if response.status().is_success() {
                    read::drain(response).await;
                    return Ok(Granted::Basic);
                }
                return Err(self.wire.fault(response, deadline, true, &[password.expose()]).await);
            }
            (Scheme::Open | Scheme::Basic, ClientCredential::Refresh(_)) => {
                let message = "it gives no tokens, so this refresh token is not its own".to_owned();
                return Err(Fault::Unauthorized { message, demand: Demand::default() });
            }
        };
        // Checked again: what is remembered may be older than what it is allowed by.
        let endpoint = Endpoint { url: self.auth.realm(&realm)?, service, scope: request.scopes.join(" ") };
        let credential = match request.credential {
            ClientCredential::Basic { username, password } => Credential::Password { username, password },
            ClientCredential::Refresh(token) => Credential::Identity(token),
        };
        let form = Form {
            credential: &credential,
            post_first: request.method_hint == GrantMethod::Post,
            offline: request.offline,
            client_id: request.client_id.as_deref(),
        };
        let Token { access, life, refresh } = endpoint.token(&self.wire, form).await?;
        let claims = claims(access.expose());
        Ok(Granted::Token { token: access, expires_in: life, refresh_token: refresh, claims })
    }

    async fn exchanged(&self, form: &[(String, String)], deadline: Instant) -> Result<String, Fault> {
        let Scheme::Bearer { realm, service } = self.scheme(deadline).await? else {
            return Err(Fault::Token(TokenFault::NoChallenge));
        };
        let realm = self.auth.realm(&realm)?;
        let url = Url::new(realm.origin, EXCHANGE_PATH).map_err(|_| Fault::Token(TokenFault::NoChallenge))?;
        let endpoint = Endpoint { url, service, scope: String::new() };
        endpoint.refresh_token(&self.wire, form).await.map(|token| token.expose().to_owned())
    }

    async fn accepted(&self, right: &Right, deadline: Instant) -> Result<bool, Fault> {
        // Where no token endpoint would check a name and password, and perhaps nobody asks for them, they are shown.
        if let Right::Client(lent) = right
            && let Credential::Password { username, password } = lent.credential()
            && !matches!(self.scheme(deadline).await?, Scheme::Bearer { .. })
        {
            let response = self.ping_as(username, password, deadline).await?;
            return match response.status() {
                status if status.is_success() => Ok(true),
                StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Ok(false),
                _ => Err(self.wire.fault(response, deadline, true, &[password.expose()]).await),
            };
        }
        let target = CallTarget::Path("/v2/".to_owned());
        let call = Call::new(Kind::Other, Method::GET, target, right.clone()).with_scope("").with_deadline(deadline);
        let reply = match Box::pin(self.relay(call)).await {
            Ok(reply) => reply,
            Err(UpstreamError { fault: Fault::Unauthorized { .. } | Fault::Forbidden { .. }, .. }) => return Ok(false),
            Err(error) => return Err(error.fault),
        };
        match reply.status {
            status if status.is_success() => Ok(true),
            StatusCode::FORBIDDEN => Ok(false),
            status => Err(read::judge(status, &reply.headers, Refusal::of(status), self.wire.now())),
        }
    }

    async fn ping_as(&self, username: &str, password: &Secret, deadline: Instant) -> Result<Response<Incoming>, Fault> {
        let headers = HeaderMap::from_iter([(AUTHORIZATION, basic(username, password)?)]);
        self.ping(headers, deadline).await
    }
}

// === impl SchemeMemory ===

impl SchemeMemory {
    fn fresh(&self) -> Option<Scheme> {
        let known = self.known.lock();
        known.as_ref().filter(|(until, _)| Instant::now() < *until).map(|(_, scheme)| scheme.clone())
    }

    fn keep(&self, scheme: Scheme, life: Duration) {
        *self.known.lock() = Some((Instant::now() + life, scheme));
    }

    /// What was known before, however old: taken for true for a moment, so that not everyone waits to learn no more.
    fn last(&self) -> Option<Scheme> {
        let mut known = self.known.lock();
        let (until, scheme) = known.as_mut()?;
        *until = Instant::now() + SCHEME_REPRIEVE;
        Some(scheme.clone())
    }
}

impl Default for SchemeMemory {
    fn default() -> Self {
        Self { known: Mutex::default(), asking: Semaphore::new(1) }
    }
}

async fn within<T>(deadline: Instant, work: impl Future<Output = Result<T, Fault>>) -> Result<T, Fault> {
    timeout_at(deadline, work).await.unwrap_or(Err(Fault::Timeout(Phase::Header)))
}
