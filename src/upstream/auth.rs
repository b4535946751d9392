//! Answering an upstream's challenges: which token is shown for which request, and when a new one is got.
#![warn(clippy::indexing_slicing)]

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::HeaderMap;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::challenge::{self, Bearer, Challenge};
use super::credentials::{Credential, Source};
use super::error::{Demand, Fault, RealmFault, TokenFault};
use super::exchange::{Endpoint, basic, bearer};
use super::origin::{Origin, Url};
use super::realm::RealmPolicy;
use super::right::{Holder, Lent, Right};
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

/// What a request needs a right for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Want<'a> {
    pub(crate) repo: Option<&'a RepoName>,
    pub(crate) kind: Kind,
    pub(crate) action: Action,
    /// What is asked for where the challenge does not say; none: what follows from the rest; empty: nothing.
    pub(crate) scope: Option<&'a str>,
    /// Whose right is used.
    pub(crate) right: &'a Right,
    /// Challenges are left to the caller: not even the token that everybody gets is shown.
    pub(crate) bare: bool,
}

/// What a request does to a repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Action {
    /// Reads.
    Pull,
    /// Adds or changes.
    Push,
    /// Removes.
    Delete,
}

/// Requests that need the same rights.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Topic {
    /// Else the time that a stranger's question takes would tell that somebody has asked for the repository.
    holder: Holder,
    repo: Option<RepoName>,
    /// Manifests and blobs are one.
    kind: Kind,
    action: Action,
    scope: Option<String>,
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
    /// How it was got; none: a caller's own token, as it came.
    origin: Option<(Arc<Way>, TokenKey)>,
    pub(crate) grant: Arc<Grant>,
}

/// Who lends a credential to get a token.
enum Lender {
    Nobody,
    Account(Arc<Source>),
    Caller(Lent),
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

    /// What to show at once: a caller's own token, else what satisfied the upstream at such a request before.
    pub(crate) async fn ready(&self, want: &Want<'_>) -> Result<Option<Shown>, Fault> {
        if want.bare {
            return Ok(None);
        }
        if let Some(token) = want.right.token() {
            return Shown::lent(token.expose()).map(Some);
        }
        let way = self.known.lock().get(&Topic::of(want)).cloned();
        match way {
            Some(way) if self.can_show(&way, want.right) => self.own(way, want.right).await.map(Some),
            _ => Ok(None),
        }
    }

    /// As [`ready`](Self::ready); where nothing is known of such a request, what the upstream's general challenge
    /// implies: `bearer` and the wanted scope, or else a name and password.
    pub(crate) async fn prepared(&self, want: &Want<'_>, bearer: Option<&Bearer>) -> Result<Option<Shown>, Fault> {
        if let Some(shown) = self.ready(want).await? {
            return Ok(Some(shown));
        }
        let way = match bearer {
            _ if want.bare => return Ok(None),
            Some(bearer) => Way::Token(self.endpoint(bearer, want)?),
            None => Way::Basic,
        };
        if self.can_show(&way, want.right) { self.own(Arc::new(way), want.right).await.map(Some) } else { Ok(None) }
    }

    /// What to show after a 401 of the upstream itself to a request that showed `refused` and began at `begun`.
    /// None: nothing that was not refused already.
    pub(crate) async fn answer(
        &self,
        want: &Want<'_>,
        headers: &HeaderMap,
        refused: Option<&Shown>,
        begun: Instant,
    ) -> Result<Option<Shown>, Fault> {
        if want.bare || want.right.token().is_some() {
            // It is all that the caller has; nothing of ours takes its place.
            return Ok(None);
        }
        let way = Arc::new(self.choose(&challenge::parse(headers), want)?);
        if let Some(Shown { origin: Some((old, key)), grant }) = refused {
            self.tokens.invalidate(key, grant);
            if **old == Way::Basic && matches!(want.right, Right::Shared) {
                self.credentials.forget();
            }
            // Fresh, and asked for exactly this: another of the same kind will not be liked better.
            if *old == way && grant.issued >= begun {
                return Ok(None);
            }
        }
        let shown = self.own(Arc::clone(&way), want.right).await?;
        let mut known = self.known.lock();
        if known.len() >= MAX_KNOWN {
            known.clear();
        }
        known.insert(Topic::of(want), way);
        Ok(Some(shown))
    }

    /// What to show after a 401 of a host to which the upstream redirected: what that host itself gives to everybody.
    pub(crate) async fn foreign(&self, host: &Origin, headers: &HeaderMap, want: &Want<'_>) -> Result<Shown, Fault> {
        let policy = RealmPolicy::foreign(host.clone());
        let bearer =
            challenge::first_bearer(&challenge::parse(headers)).ok_or(Fault::Token(TokenFault::NoChallenge))?;
        let endpoint = endpoint(&policy, &bearer, want).map_err(|fault| Fault::Token(TokenFault::Realm(fault)))?;
        self.show(Arc::new(Way::Token(endpoint)), host.clone(), &Right::Anonymous).await
    }

    /// The token endpoint that a challenge names, if the upstream may name it.
    pub(crate) fn realm(&self, realm: &str) -> Result<Url, Fault> {
        self.policy.check(realm).map_err(|fault| Fault::Token(TokenFault::Realm(fault)))
    }

    fn endpoint(&self, bearer: &Bearer, want: &Want<'_>) -> Result<Endpoint, Fault> {
        endpoint(&self.policy, bearer, want).map_err(|fault| Fault::Token(TokenFault::Realm(fault)))
    }

    /// The first challenge that can be answered.
    fn choose(&self, challenges: &[Challenge], want: &Want<'_>) -> Result<Way, Fault> {
        let mut fault = TokenFault::NoChallenge;
        for challenge in challenges {
            if let Challenge::Bearer(bearer) = challenge {
                match endpoint(&self.policy, bearer, want) {
                    Ok(endpoint) => return Ok(Way::Token(endpoint)),
                    Err(refused) => fault = TokenFault::Realm(refused),
                }
            }
        }
        if challenges.contains(&Challenge::Basic) {
            return if self.can_show(&Way::Basic, want.right) {
                Ok(Way::Basic)
            } else {
                let message = "it wants a name and password".to_owned();
                Err(Fault::Unauthorized { message, demand: Demand::default() })
            };
        }
        Err(Fault::Token(fault))
    }

    /// Everybody gets tokens, but a name and password is somebody's.
    fn can_show(&self, way: &Way, right: &Right) -> bool {
        match (way, right) {
            (Way::Basic, Right::Anonymous) => false,
            (Way::Basic, Right::Shared) => self.credentials.is_configured(),
            (Way::Token(_), _) | (Way::Basic, Right::Client(_)) => true,
        }
    }

    async fn own(&self, way: Arc<Way>, right: &Right) -> Result<Shown, Fault> {
        self.show(way, self.origin.clone(), right).await
    }

    async fn show(&self, way: Arc<Way>, audience: Origin, right: &Right) -> Result<Shown, Fault> {
        let holder = right.holder();
        let key = match &*way {
            Way::Token(endpoint) => TokenKey {
                audience,
                holder,
                realm: format!("{}{}", endpoint.url.origin, endpoint.url.target),
                service: endpoint.service.clone(),
                scope: endpoint.scope.clone(),
            },
            Way::Basic => {
                TokenKey { audience, holder, realm: String::new(), service: String::new(), scope: String::new() }
            }
        };
        let fetch = || {
            let (way, wire) = (Arc::clone(&way), self.wire.clone());
            let lender = match right {
                Right::Anonymous => Lender::Nobody,
                Right::Shared => Lender::Account(Arc::clone(&self.credentials)),
                Right::Client(lent) => Lender::Caller(lent.clone()),
            };
            Box::pin(async move { fetch(&way, &wire, &lender).await.map(Arc::new) }) as _
        };
        let grant = self.tokens.get(&key, fetch).await?;
        Ok(Shown { origin: Some((way, key)), grant })
    }
}

impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Auth").field("origin", &self.origin).finish_non_exhaustive()
    }
}

// === impl Topic ===

impl Topic {
    fn of(want: &Want<'_>) -> Self {
        let kind = if want.kind == Kind::Blob { Kind::Manifest } else { want.kind };
        Self {
            holder: want.right.holder(),
            repo: want.repo.cloned(),
            kind,
            action: want.action,
            scope: want.scope.map(str::to_owned),
        }
    }
}

// === impl Shown ===

impl Shown {
    fn lent(token: &str) -> Result<Self, Fault> {
        let grant = bearer(token, Via::Client, DEFAULT_LIFE).map_err(|_| Fault::Unauthorized {
            message: "the token contains characters that HTTP cannot carry".to_owned(),
            demand: Demand::default(),
        })?;
        Ok(Self { origin: None, grant: Arc::new(grant) })
    }
}

/// What an upstream could repeat of what it was shown: to a client that would be somebody's credential.
pub(crate) fn repeatable(right: &Right, shown: Option<&Shown>) -> Vec<String> {
    let mut secrets: Vec<String> = right.secret().map(str::to_owned).into_iter().collect();
    let header = shown.and_then(|shown| shown.grant.header.to_str().ok());
    if let Some((scheme, text)) = header.and_then(|header| header.split_once(' ')) {
        let pair =
            STANDARD.decode(text).ok().filter(|_| scheme == "Basic").and_then(|pair| String::from_utf8(pair).ok());
        secrets.extend(pair.as_deref().and_then(|pair| pair.split_once(':')).map(|(_, password)| password.to_owned()));
        secrets.push(text.to_owned());
    }
    secrets
}

async fn fetch(way: &Way, wire: &Wire, lender: &Lender) -> Result<Grant, Fault> {
    let grant = exchange(way, wire, lender).await;
    match (&grant, lender) {
        // What a cloud gave was withdrawn before its time.
        (Err(Fault::Unauthorized { .. }), Lender::Account(source)) if source.forget() => {
            exchange(way, wire, lender).await
        }
        _ => grant,
    }
}

async fn exchange(way: &Way, wire: &Wire, lender: &Lender) -> Result<Grant, Fault> {
    let endpoint = match way {
        Way::Token(endpoint) => Some(endpoint),
        Way::Basic => None,
    };
    let credential = match lender {
        Lender::Nobody => Credential::None,
        Lender::Account(source) => source.read(wire, endpoint).await?,
        Lender::Caller(lent) => lent.credential().clone(),
    };
    let via = match lender {
        _ if credential == Credential::None => Via::Anonymous,
        Lender::Nobody | Lender::Account(_) => Via::Shared,
        Lender::Caller(_) => Via::Client,
    };
    match (endpoint, credential) {
        (Some(endpoint), credential) => endpoint.fetch(wire, &credential, via).await,
        (None, Credential::Password { username, password }) => {
            Ok(Grant::new(basic(&username, &password)?, via, DEFAULT_LIFE))
        }
        (None, _) => Err(Fault::Unauthorized {
            message: "it wants a name and password, and the configured credential has none for it".to_owned(),
            demand: Demand::default(),
        }),
    }
}

/// The endpoint of a challenge that passes the policy; what the challenge leaves out follows from the request.
fn endpoint(policy: &RealmPolicy, bearer: &Bearer, want: &Want<'_>) -> Result<Endpoint, RealmFault> {
    let url = policy.check(&bearer.realm)?;
    let plain = |text: &str| text.len() <= MAX_SCOPE && text.bytes().all(|b| b == b' ' || b.is_ascii_graphic());
    let scope = match (want.scope, want.repo) {
        _ if !bearer.scope.is_empty() && plain(&bearer.scope) => bearer.scope.clone(),
        (Some(scope), _) => scope.to_owned(),
        (None, Some(repo)) => format!("repository:{repo}:{}", want.action.as_str()),
        (None, None) => "registry:catalog:*".to_owned(),
    };
    let service = if plain(&bearer.service) { bearer.service.clone() } else { String::new() };
    Ok(Endpoint { url, service, scope })
}

// === impl Action ===

impl Action {
    /// The actions of a scope (distribution's "Token Scope Documentation").
    const fn as_str(self) -> &'static str {
        match self {
            Self::Pull => "pull",
            Self::Push => "pull,push",
            Self::Delete => "delete",
        }
    }
}
