//! The registries behind ocistern: connections, tokens, redirects, retries; everything but what to do with the answer.
//!
//! ```text
//! Registry::fetch → retries, breaker → one walk: token → request → 401? new token · 3xx? next hop → Answer | Fault
//! Registry::relay → token → one request, whose body may stream → Reply | Fault
//! Registry::{challenge, grant, exchange, accepts} → tokens and their endpoint, for a caller
//!                                                  wire (headers, deadline, metrics) → client (TLS, proxy) → connect
//! ```
//!
//! Trust ends at the upstream's origin. Nothing that it names (realm, redirect) gets a credential unless the rules in
//! `realm` allow it, and nothing that it names is dialled unless the rules in `connect` do.

mod address;
mod ask;
mod auth;
mod body;
mod breaker;
mod call;
mod challenge;
mod client;
mod connect;
mod content_range;
mod credentials;
mod error;
mod exchange;
pub mod fuzzing;
mod grant;
mod origin;
mod places;
mod read;
mod realm;
mod redirect;
mod registry;
mod relay;
mod retry;
mod right;
mod throttle;
mod token;
mod upload;
mod walk;
mod wire;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use hyper_util::client::proxy::matcher::Matcher;

pub use address::AddressClass;
pub use ask::{Answer, Ask};
pub use body::UpstreamBody;
pub use call::{Call, CallBody, CallTarget, Location, Reply};
pub use challenge::{Bearer, Challenge, parse_challenges};
pub use client::TrustError;
pub use content_range::ContentRange;
pub use credentials::{CredentialFault, HelperFault, Secret};
pub use error::{
    Cause, Class, Demand, Fault, Phase, ProtocolFault, RealmFault, RedirectFault, TokenFault, UpstreamError,
};
pub use exchange::is_secret;
pub use grant::{ClientCredential, GrantMethod, GrantRequest, Granted, Scheme};
pub use origin::UrlFault;
pub use places::{Place, Priority};
pub use registry::Registry;
pub use right::{Lent, Principal, Right};
pub use upload::BoxError;

use crate::clock::Clock;
use crate::config::Config;
use crate::metrics::Metrics;
use crate::oci::UpstreamName;
use client::Trust;
use connect::OwnAddresses;
use registry::Common;
use throttle::Throttle;

/// All configured upstreams. Nothing else is ever dialled on a client's behalf.
#[derive(Debug)]
pub struct Upstreams {
    registries: BTreeMap<UpstreamName, Arc<Registry>>,
    own: OwnAddresses,
    /// Of what comes from all of them.
    throttle: Arc<Throttle>,
}

/// An upstream's configuration cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("upstream {upstream}: {source}")]
pub struct SetupError {
    /// Which one.
    pub upstream: UpstreamName,
    /// What is wrong.
    #[source]
    pub source: TrustError,
}

impl Upstreams {
    /// Sets up every upstream of `config`; nothing is connected or resolved yet. Proxies are those of the environment
    /// (`HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY`, `NO_PROXY`).
    #[expect(clippy::needless_pass_by_value, reason = "handles to share, as every constructor here takes them")]
    pub fn new(config: &Config, metrics: Metrics, clock: Arc<dyn Clock>) -> Result<Self, SetupError> {
        let proxies = Arc::new(Matcher::from_env());
        let own = OwnAddresses::default();
        let trust = Trust::platform();
        let throttle = Throttle::new(config.limits.max_rate, Arc::clone(&clock));
        let common =
            Common { metrics: &metrics, clock: &clock, trust: &trust, proxies: &proxies, own: &own, total: &throttle };
        let mut registries = BTreeMap::new();
        for (name, upstream) in &config.upstreams {
            let registry = Registry::new(Arc::clone(upstream), common)
                .map_err(|source| SetupError { upstream: name.clone(), source })?;
            registries.insert(name.clone(), Arc::new(registry));
        }
        Ok(Self { registries, own, throttle })
    }

    /// The upstream of that name.
    pub fn get(&self, name: &UpstreamName) -> Option<&Arc<Registry>> {
        self.registries.get(name)
    }

    /// From now on those limits of `config` hold that can be changed while ocistern runs: `max_rate`, `schedule` and
    /// `max_connections` of upstreams, `max_rate` and `schedule` of all. An upstream that is not in it keeps its own.
    pub fn set_limits(&self, config: &Config) {
        self.throttle.set(config.limits.max_rate);
        for (name, upstream) in &config.upstreams {
            if let Some(registry) = self.registries.get(name) {
                registry.set_limits(&upstream.transfer);
            }
        }
    }

    /// Tells on which addresses ocistern itself listens: they are never dialled.
    pub fn set_own_addresses(&self, addresses: Vec<SocketAddr>) {
        *self.own.write() = addresses;
    }
}
