//! Answering an upstream's challenges: which token is shown for which request, and when a new one is got.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use http::HeaderMap;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::ask::Ask;
use super::challenge::{self, Bearer, Challenge};
use super::credentials::{Credential, Source};
use super::error::{Fault, RealmFault, TokenFault};
use super::exchange::{Endpoint, basic};
use super::origin::Origin;
use super::realm::RealmPolicy;
use super::token::{DEFAULT_LIFE, Grant, TokenCache, TokenKey};
use super::wire::Wire;
use crate::metrics::Kind;
use crate::oci::{RepoName, Via};

/// Challenges that are remembered, so that the next request need not be refused first.
const MAX_KNOWN: usize = 4096;
/// Longest scope of a challenge.
const MAX_SCOPE: usize = 4096;

/// The credentials and tokens of one upstream.
pub(crate) struct Auth {
    wire: Wire,
    origin: Origin,
    policy: RealmPolicy,
    credentials: Arc<Source>,
    tokens: TokenCache,
    /// How the upstream was last satisfied.
    known: Mutex<HashMap<Topic, Arc<Way>>>,
}

/// Requests that need the same rights.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Topic {
    repo: Option<RepoName>,
    /// Manifests and blobs are one.
    kind: Kind,
}

/// How to get something to show.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Way {
    /// A token of this endpoint.
    Token(Endpoint),
    /// Name and password, as they are.
    Basic,
}

/// What is shown with a request.
#[derive(Debug, Clone)]
pub(crate) struct Shown {
    way: Arc<Way>,
    key: TokenKey,
    pub(crate) grant: Arc<Grant>,
}

// === impl Auth ===

impl Auth {
    pub(crate) fn new(wire: Wire, origin: Origin, token_hosts: &[String], credentials: Source) -> Self {
        Self {
            wire,
            policy: RealmPolicy::new(origin.clone(), token_hosts),
            origin,
            credentials: Arc::new(credentials),
            tokens: TokenCache::default(),
            known: Mutex::default(),
        }
    }

    /// What to show at once, if the upstream has asked for such a request before.
    pub(crate) async fn ready(&self, ask: &Ask) -> Result<Option<Shown>, Fault> {
        let way = self.known.lock().get(&Topic::of(ask)).cloned();
        match way {
            Some(way) => self.own(way).await.map(Some),
            None => Ok(None),
        }
    }

    /// What to show after a 401 of the upstream itself to a request that showed `refused` and began at `begun`.
    /// None: nothing that was not refused already.
    pub(crate) async fn answer(
        &self,
        ask: &Ask,
        headers: &HeaderMap,
        refused: Option<&Shown>,
        begun: Instant,
    ) -> Result<Option<Shown>, Fault> {
        let way = Arc::new(self.choose(&challenge::parse(headers), ask)?);
        if let Some(refused) = refused {
            self.tokens.invalidate(&refused.key, &refused.grant);
            if *refused.way == Way::Basic {
                self.credentials.forget();
            }
            // Fresh, and asked for exactly this: another of the same kind will not be liked better.
            if refused.way == way && refused.grant.issued >= begun {
                return Ok(None);
            }
        }
        let shown = self.own(Arc::clone(&way)).await?;
        let mut known = self.known.lock();
        if known.len() >= MAX_KNOWN {
            known.clear();
        }
        known.insert(Topic::of(ask), way);
        Ok(Some(shown))
    }

    /// What to show after a 401 of a host to which the upstream redirected: what that host itself gives to everybody.
    pub(crate) async fn foreign(&self, host: &Origin, headers: &HeaderMap, ask: &Ask) -> Result<Shown, Fault> {
        let policy = RealmPolicy::foreign(host.clone());
        let challenges = challenge::parse(headers);
        let bearer = challenges.iter().find_map(|challenge| match challenge {
            Challenge::Bearer(bearer) => Some(bearer),
            Challenge::Basic => None,
        });
        let bearer = bearer.ok_or(Fault::Token(TokenFault::NoChallenge))?;
        let endpoint = endpoint(&policy, bearer, ask).map_err(|fault| Fault::Token(TokenFault::Realm(fault)))?;
        self.show(Arc::new(Way::Token(endpoint)), host.clone(), false).await
    }

    /// The first challenge that can be answered.
    fn choose(&self, challenges: &[Challenge], ask: &Ask) -> Result<Way, Fault> {
        let mut fault = TokenFault::NoChallenge;
        for challenge in challenges {
            if let Challenge::Bearer(bearer) = challenge {
                match endpoint(&self.policy, bearer, ask) {
                    Ok(endpoint) => return Ok(Way::Token(endpoint)),
                    Err(refused) => fault = TokenFault::Realm(refused),
                }
            }
        }
        if challenges.contains(&Challenge::Basic) {
            return if self.credentials.is_configured() {
                Ok(Way::Basic)
            } else {
                let message = "it wants a name and password, and none is configured".to_owned();
                Err(Fault::Unauthorized { message })
            };
        }
        Err(Fault::Token(fault))
    }

    async fn own(&self, way: Arc<Way>) -> Result<Shown, Fault> {
        self.show(way, self.origin.clone(), self.credentials.is_configured()).await
    }

    async fn show(&self, way: Arc<Way>, audience: Origin, shared: bool) -> Result<Shown, Fault> {
        let key = match &*way {
            Way::Token(endpoint) => TokenKey {
                audience,
                shared,
                realm: format!("{}{}", endpoint.url.origin, endpoint.url.target),
                service: endpoint.service.clone(),
                scope: endpoint.scope.clone(),
            },
            Way::Basic => {
                TokenKey { audience, shared, realm: String::new(), service: String::new(), scope: String::new() }
            }
        };
        let fetch = || {
            let (way, wire) = (Arc::clone(&way), self.wire.clone());
            let credentials = shared.then(|| Arc::clone(&self.credentials));
            Box::pin(async move { fetch(&way, &wire, credentials.as_deref()).await.map(Arc::new) }) as _
        };
        let grant = self.tokens.get(&key, fetch).await?;
        Ok(Shown { way, key, grant })
    }
}

impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Auth").field("origin", &self.origin).finish_non_exhaustive()
    }
}

// === impl Topic ===

impl Topic {
    fn of(ask: &Ask) -> Self {
        let kind = if ask.kind == Kind::Blob { Kind::Manifest } else { ask.kind };
        Self { repo: ask.repo.clone(), kind }
    }
}

async fn fetch(way: &Way, wire: &Wire, credentials: Option<&Source>) -> Result<Grant, Fault> {
    let grant = exchange(way, wire, credentials).await;
    match (&grant, credentials) {
        // What a cloud gave was withdrawn before its time.
        (Err(Fault::Unauthorized { .. }), Some(source)) if source.forget() => exchange(way, wire, credentials).await,
        _ => grant,
    }
}

async fn exchange(way: &Way, wire: &Wire, credentials: Option<&Source>) -> Result<Grant, Fault> {
    let endpoint = match way {
        Way::Token(endpoint) => Some(endpoint),
        Way::Basic => None,
    };
    let credential = match credentials {
        Some(source) => source.read(wire, endpoint).await?,
        None => Credential::None,
    };
    match (endpoint, credential) {
        (Some(endpoint), credential) => endpoint.fetch(wire, &credential).await,
        (None, Credential::Password { username, password }) => {
            Ok(Grant::new(basic(&username, &password)?, Via::Shared, DEFAULT_LIFE))
        }
        (None, _) => Err(Fault::Unauthorized {
            message: "it wants a name and password, and the configured credential has none for it".to_owned(),
        }),
    }
}

/// The endpoint of a challenge that passes the policy; what the challenge leaves out follows from the request.
fn endpoint(policy: &RealmPolicy, bearer: &Bearer, ask: &Ask) -> Result<Endpoint, RealmFault> {
    let url = policy.check(&bearer.realm)?;
    let plain = |text: &str| text.len() <= MAX_SCOPE && text.bytes().all(|b| b == b' ' || b.is_ascii_graphic());
    let scope = match &ask.repo {
        _ if !bearer.scope.is_empty() && plain(&bearer.scope) => bearer.scope.clone(),
        Some(repo) => format!("repository:{repo}:pull"),
        None => "registry:catalog:*".to_owned(),
    };
    let service = if plain(&bearer.service) { bearer.service.clone() } else { String::new() };
    Ok(Endpoint { url, service, scope })
}
