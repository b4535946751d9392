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
mod budget;
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
mod health;
mod inspect;
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

use arc_swap::ArcSwap;
use hyper_util::client::proxy::matcher::Matcher;

pub use address::AddressClass;
pub use ask::{Answer, Ask};
pub use body::UpstreamBody;
pub use budget::Spent;
pub use call::{Call, CallBody, CallTarget, Location, Reply};
pub use challenge::{Bearer, Challenge, parse_challenges};
pub use client::{TrustError, check_ca};
pub use content_range::ContentRange;
pub use credentials::{CredentialFault, HelperFault, Secret};
pub use error::{
    Cause, Class, Demand, Fault, NoTls, Phase, ProtocolFault, RealmFault, RedirectFault, TokenFault, UpstreamError,
};
pub use exchange::is_secret;
pub use grant::{ClientCredential, GrantMethod, GrantRequest, Granted, Scheme};
pub use health::{Health, HealthState, LastError};
pub use inspect::Greeting;
pub use origin::UrlFault;
pub(crate) use places::Places;
pub use places::{Errand, Interest, Place, Priority};
pub use registry::Registry;
pub use retry::RateLimit;
pub use right::{Lent, Principal, Right};
pub use upload::BoxError;

use crate::clock::Clock;
use crate::config::{self, Config};
use crate::metrics::Metrics;
use crate::oci::UpstreamName;
use crate::troubles::Troubles;
use client::Trust;
use connect::OwnAddresses;
use registry::Common;
use throttle::Throttle;

/// All configured upstreams. Nothing else is ever dialled on a client's behalf.
#[derive(Debug)]
pub struct Upstreams {
    /// As the configuration has them that holds now.
    registries: ArcSwap<Registries>,
    metrics: Metrics,
    clock: Arc<dyn Clock>,
    proxies: Arc<Matcher>,
    own: OwnAddresses,
    troubles: Arc<Troubles>,
    /// Of what comes from all of them.
    throttle: Arc<Throttle>,
}

type Registries = BTreeMap<UpstreamName, Arc<Registry>>;

/// The upstreams of a configuration that was read again, set up and not yet in use: see [`Upstreams::prepare`].
#[derive(Debug)]
pub struct Prepared(Registries);

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
    /// (`HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY`, `NO_PROXY`). Reads the files of CAs.
    pub fn new(config: &Config, metrics: Metrics, clock: Arc<dyn Clock>) -> Result<Self, SetupError> {
        let proxies = Arc::new(Matcher::from_env());
        let own = OwnAddresses::default();
        let throttle = Throttle::new(config.limits.max_rate, Arc::clone(&clock));
        let troubles = Arc::new(Troubles::new(Arc::clone(&clock)));
        let registries = ArcSwap::default();
        let upstreams = Self { registries, metrics, clock, proxies, own, troubles, throttle };
        let Prepared(registries) = upstreams.prepare(config)?;
        upstreams.exchange(registries);
        Ok(upstreams)
    }

    /// Sets up the upstreams of a configuration that was read again. One that is asked as before goes on with its
    /// connections, tokens and breaker; another one begins anew under the limits of its name, and what runs goes on by the
    /// old one. One with a CA of its own begins anew in any case: the file may hold another one now. Reads the files of CAs;
    /// metrics tell of nothing that is not taken over.
    ///
    /// # Errors
    /// One cannot be set up; nothing has changed.
    pub fn prepare(&self, config: &Config) -> Result<Prepared, SetupError> {
        let trust = Trust::platform();
        let common = Common {
            metrics: &self.metrics,
            clock: &self.clock,
            troubles: &self.troubles,
            trust: &trust,
            proxies: &self.proxies,
            own: &self.own,
            total: &self.throttle,
        };
        let known = self.registries.load();
        let set_up = |(name, upstream): (&UpstreamName, &Arc<config::Upstream>)| {
            let known = known.get(name);
            if let Some(known) = known.filter(|known| upstream.ca.is_none() && known.config().is_asked_as(upstream)) {
                return Ok((name.clone(), Arc::clone(known)));
            }
            let registry = Registry::new(Arc::clone(upstream), known.map(|known| known.limits()), common)
                .map_err(|source| SetupError { upstream: name.clone(), source })?;
            Ok((name.clone(), Arc::new(registry)))
        };
        config.upstreams.iter().map(set_up).collect::<Result<_, _>>().map(Prepared)
    }

    /// The upstream of that name.
    pub fn get(&self, name: &UpstreamName) -> Option<Arc<Registry>> {
        self.registries.load().get(name).cloned()
    }

    /// All of them, in the order of their names.
    pub fn all(&self) -> Vec<Arc<Registry>> {
        self.registries.load().values().cloned().collect()
    }

    /// The book of recent errors: those that are met here are in it, and who answers clients adds what they are told.
    pub const fn troubles(&self) -> &Arc<Troubles> {
        &self.troubles
    }

    /// From now on these are asked, within the limits of `config`, which they were prepared from: its limits hold for what
    /// is running too.
    pub fn take_over(&self, Prepared(registries): Prepared, config: &Config) {
        self.throttle.set(config.limits.max_rate);
        for (name, upstream) in &config.upstreams {
            if let Some(registry) = registries.get(name) {
                registry.set_limits(&upstream.transfer);
            }
        }
        self.exchange(registries);
    }

    /// Metrics tell of those that are asked, and of what is only prepared, or runs on by what was before, nothing.
    fn exchange(&self, registries: Registries) {
        let before = self.registries.swap(Arc::new(registries));
        let now = self.registries.load();
        for (name, registry) in before.iter() {
            if !now.get(name).is_some_and(|now| Arc::ptr_eq(now, registry)) {
                registry.go_out_of_use();
            }
        }
        self.forget_gauges(&before);
        for registry in now.values() {
            registry.come_into_use();
        }
    }

    /// What there is no more says nothing of how it is: one that was away would be told so for ever, and waking somebody for it
    /// would not end.
    fn forget_gauges(&self, before: &Registries) {
        let now = self.registries.load();
        let there: Vec<_> = now.values().flat_map(|registry| registry.endpoints()).collect();
        for (name, endpoint) in before.values().flat_map(|registry| registry.endpoints()) {
            if !there.contains(&(name.clone(), endpoint.clone())) {
                // Only one that was never there is an error.
                let _ = self.metrics.upstream_up.remove_label_values(&[&name, &endpoint]);
            }
        }
        for name in before.keys().filter(|name| !now.contains_key(*name)) {
            let _ = self.metrics.upstream_ratelimit_remaining.remove_label_values(&[name.as_str()]);
        }
    }

    /// Tells on which addresses ocistern itself listens: they are never dialled.
    pub fn set_own_addresses(&self, addresses: Vec<SocketAddr>) {
        *self.own.write() = addresses;
    }
}
