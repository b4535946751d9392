//! One upstream registry: asks it, patiently but not forever.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use http::Response;
use hyper::body::Incoming;
use hyper_util::client::proxy::matcher::Matcher;
use tokio::time::{Duration, Instant, sleep};

use super::ask::{Answer, Ask};
use super::auth::Auth;
use super::body::Intake;
use super::breaker::Breaker;
use super::budget::{Budget, Spent};
use super::client::{Client, Trust, TrustError};
use super::connect::{Dial, OwnAddresses};
use super::credentials::Source;
use super::error::{Fault, ProtocolFault, UpstreamError};
use super::grant::SchemeMemory;
use super::health::{Health, Pulse};
use super::origin::{Origin, Url};
use super::places::{Errand, Place, Places};
use super::retry::{Retries, rate_limit};
use super::right::Right;
use super::throttle::Throttle;
use super::wire::{Outgoing, Wire};
use crate::clock::Clock;
use crate::config;
use crate::metrics::{Metrics, Received};
use crate::oci::{RepoName, UpstreamName, Via};
use crate::party::Party;
use crate::troubles::{Met, Trouble, Troubles};

/// A time-out counts against an upstream only if it had at least this long to answer.
const EVIDENCE: Duration = Duration::from_secs(1);

/// One upstream registry.
pub struct Registry {
    config: Arc<config::Upstream>,
    pub(super) origin: Origin,
    pub(super) auth: Auth,
    pub(super) wire: Wire,
    breaker: Breaker,
    pulse: Pulse,
    budget: Budget,
    troubles: Arc<Troubles>,
    metrics: Metrics,
    pub(super) intake: Arc<Intake>,
    pub(super) schemes: SchemeMemory,
    limits: Limits,
    mirrors: Vec<Arc<Registry>>,
    /// Another place of an upstream's content: asked as a stranger, and for nothing but content.
    is_mirror: bool,
    /// Metrics tell of it.
    in_use: AtomicBool,
}

/// What all registries have in common.
#[derive(Clone, Copy)]
pub(super) struct Common<'a> {
    pub(super) metrics: &'a Metrics,
    pub(super) clock: &'a Arc<dyn Clock>,
    pub(super) troubles: &'a Arc<Troubles>,
    pub(super) trust: &'a Trust,
    pub(super) proxies: &'a Arc<Matcher>,
    pub(super) own: &'a OwnAddresses,
    /// Of everything that comes from any of them.
    pub(super) total: &'a Arc<Throttle>,
}

/// What limits an upstream and its mirrors together.
#[derive(Clone)]
pub(super) struct Limits {
    throttle: Arc<Throttle>,
    places: Arc<Places>,
}

impl Registry {
    /// Of this upstream, whose name had an upstream with these limits before.
    pub(super) fn new(
        config: Arc<config::Upstream>,
        limits: Option<Limits>,
        common: Common<'_>,
    ) -> Result<Self, TrustError> {
        let limits = limits.unwrap_or_else(|| Limits {
            throttle: Throttle::new(config.transfer.max_rate, Arc::clone(common.clock)),
            places: Places::new(config.transfer.max_connections),
        });
        let mirror = |url: &config::BaseUrl| {
            let mirror = Self::endpoint_of(Arc::new(as_mirror(&config, url)), &limits, common)?;
            Ok(Arc::new(Self { is_mirror: true, ..mirror }))
        };
        let mirrors = config.mirrors.iter().map(mirror).collect::<Result<_, TrustError>>()?;
        let registry = Self::endpoint_of(config, &limits, common)?;
        Ok(Self { mirrors, ..registry })
    }

    /// One endpoint by itself.
    fn endpoint_of(config: Arc<config::Upstream>, limits: &Limits, common: Common<'_>) -> Result<Self, TrustError> {
        let Common { metrics, clock, troubles, trust, proxies, own, total } = common;
        let origin = Origin::of_upstream(&config.url);
        let dial = Dial::new(origin.clone(), config.connect.clone(), Arc::clone(own));
        let client = Client::new(dial, trust, config.ca.as_deref(), Arc::clone(proxies))?;
        let wire = Wire::new(client, config.name.clone(), metrics, Arc::clone(clock));
        // The operator named it, so it is dialled by an upstream's rules wherever it is.
        let wire_to = |cloud: Origin| {
            let dial = Dial::new(cloud, Vec::new(), Arc::clone(own));
            let client = Client::new(dial, trust, config.ca.as_deref(), Arc::clone(proxies))?;
            Ok(Wire::new(client, config.name.clone(), metrics, Arc::clone(clock)))
        };
        let credentials = Source::new(&config.credentials, &origin, wire_to)?;
        let auth = Auth::new(wire.clone(), origin.clone(), &config.token_hosts, credentials);
        let intake = Intake {
            upstream: config.name.clone(),
            received: Received::new(metrics, config.name.as_str()),
            stall: config.transfer.stall,
            min_rate: config.transfer.min_rate,
            throttles: [Arc::clone(&limits.throttle), Arc::clone(total)],
        };
        Ok(Self {
            config,
            origin,
            auth,
            wire,
            breaker: Breaker::default(),
            pulse: Pulse::default(),
            budget: Budget::default(),
            troubles: Arc::clone(troubles),
            metrics: metrics.clone(),
            intake: Arc::new(intake),
            schemes: SchemeMemory::default(),
            limits: limits.clone(),
            mirrors: Vec::new(),
            is_mirror: false,
            in_use: AtomicBool::new(false),
        })
    }

    /// Its name.
    pub fn name(&self) -> &UpstreamName {
        &self.config.name
    }

    /// Where it is, as host, with the port where it is not the scheme's: for logs and for who wants to see which of the
    /// upstream's places something comes from.
    pub fn endpoint(&self) -> String {
        self.config.url.authority()
    }

    /// Name and endpoint of this one and of its mirrors, as metrics have them.
    pub(super) fn endpoints(&self) -> Vec<(String, String)> {
        self.places().map(|place| (place.name().to_string(), place.endpoint())).collect()
    }

    /// It and its mirrors.
    fn places(&self) -> impl Iterator<Item = &Self> {
        std::iter::once(self).chain(self.mirrors.iter().map(Arc::as_ref))
    }

    /// Other places of the same content, in the order of the configuration. Each has its own connections, tokens and breaker;
    /// name, metrics and limits are those of this one. They answer only what is asked by everybody's right: no credential
    /// leaves its origin, and the caller sees to it that they are asked for nothing whose name is not everybody's, too.
    pub fn mirrors(&self) -> &[Arc<Registry>] {
        &self.mirrors
    }

    /// Its configuration.
    pub fn config(&self) -> &config::Upstream {
        &self.config
    }

    /// With whose credential it is asked by configuration; an answer's own `via` says what was really needed.
    pub fn via(&self) -> Via {
        if self.config.credentials.is_own_account() { Via::Shared } else { Via::Anonymous }
    }

    /// Whose right is used for a request that names none.
    pub fn own_right(&self) -> Right {
        match self.via() {
            Via::Shared => Right::Shared,
            Via::Anonymous | Via::Client => Right::Anonymous,
        }
    }

    /// What waits for leave to fetch a blob, which `max_connections` makes scarce: the caller asks for it by [`Errand::place`]
    /// before each GET of a blob, or of a part of one, and keeps it as long as the body. One place is for this upstream or
    /// any of its mirrors. What is dropped before its turn leaves the queue. HEAD, manifests and lists need none. `of`: who
    /// alone wants it; none where those who want it come and go ([`Errand::join`]).
    pub fn errand(&self, of: Option<Party>) -> Errand {
        self.limits.places.errand(of)
    }

    /// A place, if one is free and nobody waits for it: for one more connection of a blob that has one.
    pub fn try_place(&self) -> Option<Place> {
        self.limits.places.try_place()
    }

    /// What it is left alone by.
    #[cfg(test)]
    pub(super) const fn breaker(&self) -> &Breaker {
        &self.breaker
    }

    /// It is the one that is asked under its name, and metrics tell of it and its mirrors.
    pub(super) fn come_into_use(&self) {
        self.metrics.begin_upstream(self.name().as_str());
        for place in self.places() {
            let up = &place.metrics.upstream_up;
            place.breaker.tell_by(up.with_label_values(&[place.name().as_str(), &place.endpoint()]));
            place.in_use.store(true, Ordering::Relaxed);
        }
    }

    /// Another one, or none, is asked under its name. What still runs by it is told of no more.
    pub(super) fn go_out_of_use(&self) {
        for place in self.places() {
            place.in_use.store(false, Ordering::Relaxed);
            place.breaker.hush();
        }
    }

    /// What it shares with who comes in its place.
    pub(super) fn limits(&self) -> Limits {
        self.limits.clone()
    }

    /// From now on these limits hold, for what is running too.
    pub(super) fn set_limits(&self, transfer: &config::Transfer) {
        self.limits.throttle.set(transfer.max_rate);
        self.limits.places.set_limit(transfer.max_connections);
    }

    /// Asks, with tokens, redirects and retries, until the head of a successful answer is there, or the deadline.
    pub async fn fetch(&self, ask: Ask) -> Result<Answer, UpstreamError> {
        if self.is_closed_to(ask.right.as_ref()) || self.config.is_closed_to(ask.repo.as_ref(), ask.tag.as_ref()) {
            return Err(Fault::Sealed.of(self.name()));
        }
        let mut retries = Retries::until(ask.deadline);
        let mut last = None;
        loop {
            let fault = match Box::pin(self.attempt(&ask)).await {
                Ok(answer) => return Ok(answer),
                // What opened the breaker tells more than that it is open.
                Err(fault @ Fault::BreakerOpen { .. }) => {
                    return Err(self.ended(last.unwrap_or(fault), ask.repo.as_ref()));
                }
                Err(fault) => fault,
            };
            let Some(pause) = retries.after(&fault) else { return Err(self.ended(fault, ask.repo.as_ref())) };
            tracing::debug!(upstream = %self.name(), endpoint = self.endpoint(), ?ask, %fault, ?pause, "asking again");
            last = Some(fault);
            sleep(pause).await;
        }
    }

    /// Whether a request by this right is not sent at all.
    pub(super) fn is_closed_to(&self, right: Option<&Right>) -> bool {
        self.config.sealed || (self.is_mirror && right.is_some_and(|right| *right != Right::Anonymous))
    }

    /// How it does, by itself: each of its mirrors has its own.
    pub fn health(&self) -> Health {
        self.pulse.health(self.config.sealed, self.breaker.held_back())
    }

    /// Whether a request may be sent now that no client waits for, where `reserve` percent of the rate limit are for clients.
    /// Who fetches ahead asks before each request that counts there; HEADs are free on Docker Hub.
    ///
    /// # Errors
    /// Too little is left, or it has answered 429; with the time to wait.
    pub fn spare(&self, reserve: u8) -> Result<(), Spent> {
        self.budget.spare(reserve)
    }

    /// A request about this repository has ended with this, and is not repeated.
    pub(super) fn ended(&self, fault: Fault, repo: Option<&RepoName>) -> UpstreamError {
        self.pulse.ended(&fault, self.wire.now());
        if fault.is_trouble() {
            // With upstream's words, which not every caller is told.
            tracing::debug!(upstream = %self.name(), endpoint = self.endpoint(), %fault, "asked upstream in vain");
            self.troubles.note(Trouble {
                met: Met::Upstream,
                upstream: Some(self.name().as_str()),
                repository: repo.map(RepoName::as_str),
                code: fault.code(),
                status: None,
                message: &format!("{}: {fault}", self.endpoint()),
            });
        }
        fault.of(self.name())
    }

    /// Whether it failed so recently or so often that the next request is a probe.
    pub(super) fn is_doubtful(&self) -> bool {
        self.breaker.is_open()
    }

    /// The URL of a request, below the upstream's own prefix.
    pub(super) fn url(&self, path: &str) -> Result<Url, Fault> {
        let path = format!("{}{path}", self.config.url.prefix);
        Url::new(self.origin.clone(), &path).map_err(|_| Fault::Protocol(ProtocolFault::Target))
    }

    /// One exchange with the upstream itself, which the breaker guards.
    pub(super) async fn send_own(
        &self,
        outgoing: Outgoing<'_>,
        deadline: Instant,
    ) -> Result<Response<Incoming>, Fault> {
        let permit = self.breaker.permit().map_err(|retry_after| Fault::BreakerOpen { retry_after })?;
        let begun = Instant::now();
        let result = self.wire.send(outgoing, deadline).await;
        match &result {
            Ok(response) => {
                permit.reached();
                self.pulse.answered(response.status(), response.headers(), self.wire.now());
                self.budget.answered(response.status(), response.headers(), self.wire.now());
                // A mirror's word on its own limit would be taken for the upstream's.
                let is_told = !self.is_mirror && self.in_use.load(Ordering::Relaxed);
                if let Some(limit) = rate_limit(response.headers()).filter(|_| is_told) {
                    let gauge = &self.metrics.upstream_ratelimit_remaining;
                    gauge.with_label_values(&[self.name().as_str()]).set(limit.remaining);
                }
            }
            Err(fault @ (Fault::Unreachable(_) | Fault::Tls(_) | Fault::Broken(_))) => {
                permit.failed();
                self.pulse.failed(fault, self.wire.now());
            }
            Err(fault @ Fault::Timeout(_)) if begun.elapsed() >= EVIDENCE => {
                permit.failed();
                self.pulse.failed(fault, self.wire.now());
            }
            Err(fault @ Fault::OwnListener) => {
                drop(permit);
                self.pulse.failed(fault, self.wire.now());
            }
            Err(_) => drop(permit),
        }
        result
    }
}

/// The settings of a mirror: what belongs to `url` stays there. The hosts of tokens stay listed, since all they get from a
/// stranger is a question.
fn as_mirror(upstream: &config::Upstream, url: &config::BaseUrl) -> config::Upstream {
    config::Upstream {
        url: url.clone(),
        credentials: config::Credentials::Anonymous,
        connect: Vec::new(),
        mirrors: Vec::new(),
        push: config::PushBy::Off,
        relay_credentials: false,
        ..upstream.clone()
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry").field("name", self.name()).field("origin", &self.origin).finish_non_exhaustive()
    }
}
