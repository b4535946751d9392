//! A service principal at an Azure container registry: its secret for a token of Microsoft Entra ID, that for a refresh
//! token of the registry, which is then exchanged as any identity token is.
//!
//! ACR's "Azure Container Registry and AAD" (`POST /oauth2/exchange`); the `OAuth2` client credentials grant (RFC 6749,
//! 4.4). The secret is shown to the authority that the operator named and to nobody else.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use http::header::{ACCEPT, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue};
use serde::Deserialize;

use super::cloud::{self, Kept, Question, YOUNG};
use super::{Credential, Secret, read_secret};
use crate::config::BaseUrl;
use crate::upstream::error::{Fault, RealmFault, TokenFault};
use crate::upstream::exchange::{Endpoint, encoded};
use crate::upstream::origin::{Origin, Url};
use crate::upstream::token::{TokenCache, life};
use crate::upstream::wire::Wire;

/// What the token of Entra ID is for: container registries, in every cloud.
const SCOPE: &str = "https://containerregistry.azure.net/.default";
/// Where a registry exchanges such a token.
const EXCHANGE: &str = "/oauth2/exchange";

/// A service principal.
pub(super) struct Azure {
    principal: Arc<Principal>,
    refresh_tokens: TokenCache<Registry, Kept>,
}

struct Principal {
    tenant: String,
    client_id: String,
    secret_file: PathBuf,
    authority: BaseUrl,
    /// Reaches the authority.
    wire: Wire,
}

/// Where a refresh token is good: as the challenge says.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Registry {
    origin: Origin,
    service: String,
}

#[derive(Deserialize)]
struct EntraAnswer {
    access_token: String,
}

#[derive(Deserialize)]
struct ExchangeAnswer {
    refresh_token: String,
}

// === impl Azure ===

impl Azure {
    pub(super) fn new(tenant: &str, client_id: &str, secret_file: &Path, authority: &BaseUrl, wire: Wire) -> Self {
        let principal = Principal {
            tenant: tenant.to_owned(),
            client_id: client_id.to_owned(),
            secret_file: secret_file.to_owned(),
            authority: authority.clone(),
            wire,
        };
        Self { principal: Arc::new(principal), refresh_tokens: TokenCache::default() }
    }

    /// A refresh token of the registry whose token endpoint this is; `wire` reaches that.
    pub(super) async fn read(&self, wire: &Wire, endpoint: &Endpoint) -> Result<Credential, Fault> {
        let registry = Registry { origin: endpoint.url.origin.clone(), service: endpoint.service.clone() };
        let fetch = || {
            let (principal, wire, registry) = (Arc::clone(&self.principal), wire.clone(), registry.clone());
            Box::pin(async move {
                let host = principal.authority.authority();
                cloud::in_time(&host, principal.refresh_token(&wire, &registry)).await
            }) as _
        };
        let kept = self.refresh_tokens.get(&registry, fetch).await?;
        Ok(kept.credential.clone())
    }

    pub(super) fn forget(&self) -> bool {
        self.refresh_tokens.forget_older(YOUNG)
    }
}

impl fmt::Debug for Azure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Azure").field("client_id", &self.principal.client_id).finish_non_exhaustive()
    }
}

// === impl Principal ===

impl Principal {
    async fn refresh_token(&self, wire: &Wire, registry: &Registry) -> Result<Kept, Fault> {
        let entra = self.entra_token().await?;
        let pairs = [
            ("grant_type", "access_token"),
            ("service", &registry.service),
            ("tenant", &self.tenant),
            ("access_token", entra.expose()),
        ];
        let url = url(registry.origin.clone(), EXCHANGE)?;
        let answer: ExchangeAnswer = post(wire, &url, &pairs, entra.expose()).await?;
        if answer.refresh_token.is_empty() {
            return Err(cloud::malformed(&url.origin.authority()));
        }
        let life = life(&answer.refresh_token, None, wire.now());
        Ok(Kept::new(Credential::Identity(Secret::new(answer.refresh_token)), life))
    }

    async fn entra_token(&self) -> Result<Secret, Fault> {
        let secret = read_secret(&self.secret_file).await.map_err(Fault::Credential)?;
        let pairs = [
            ("grant_type", "client_credentials"),
            ("client_id", self.client_id.as_str()),
            ("client_secret", secret.expose()),
            ("scope", SCOPE),
        ];
        let path = format!("{}/{}/oauth2/v2.0/token", self.authority.prefix, self.tenant);
        let url = url(Origin::of_upstream(&self.authority), &path)?;
        let answer: EntraAnswer = post(&self.wire, &url, &pairs, secret.expose()).await?;
        Ok(Secret::new(answer.access_token))
    }
}

async fn post<T: serde::de::DeserializeOwned>(
    wire: &Wire,
    url: &Url,
    pairs: &[(&str, &str)],
    secret: &str,
) -> Result<T, Fault> {
    let headers = HeaderMap::from_iter([
        (CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded")),
        (ACCEPT, HeaderValue::from_static("application/json")),
    ]);
    cloud::ask(wire, Question { url, headers, body: encoded(pairs).into(), secrets: &[secret] }).await
}

fn url(origin: Origin, path: &str) -> Result<Url, Fault> {
    Url::new(origin, path).map_err(|fault| Fault::Token(TokenFault::Realm(RealmFault::Url(fault))))
}
