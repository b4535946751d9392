//! The registries and their mirrors, as a pull would go: name, connection, certificate, `/v2/`, credential, rate limit; and
//! what they say of the time.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use futures_util::future::join_all;
use rustls::CertificateError;
use tokio::task::spawn_blocking;
use tokio::time::{Duration, Instant};

use super::certificate::life;
use super::finding::{Finding, Group, Level};
use super::{STEP, Subject, UPSTREAM};
use crate::cli::named::{Passed, passed, to_be_passed};
use crate::clock::{Clock as _, SystemClock};
use crate::config::{Address, Config, Credentials};
use crate::http::respond::causes;
use crate::metrics::Metrics;
use crate::upstream::{Cause, Fault, RateLimit, Registry, Right, Scheme, TokenFault, UpstreamError, Upstreams};

const GROUP: Group = Group::Upstreams;
/// A clock that differs by less is set well enough; upstreams say the time to the second.
const SKEW: Duration = Duration::from_mins(1);
/// Of a rate limit, the part that is little.
const LITTLE: i64 = 10;

/// One upstream, or one of its mirrors.
struct Place {
    registry: Arc<Registry>,
    /// As it stands in the report.
    about: String,
    is_mirror: bool,
    /// How bad it is if it cannot be asked.
    dead: Level,
}

/// What was seen of one.
#[derive(Default)]
struct Seen {
    findings: Vec<Finding>,
    /// What time it is there, and what it was here.
    time: Option<(SystemTime, SystemTime)>,
}

/// Everything of the upstreams, at once.
pub(super) async fn check(subject: &Arc<Subject>, no_network: bool) -> Vec<Finding> {
    if no_network {
        let advice = "run `ocistern doctor` without --no-network to ask them";
        return vec![Finding::new(Level::Note, GROUP, "all", "not asked, as was wished", advice)];
    }
    let config = &subject.config;
    let mut findings = Vec::new();
    let making = {
        let mut config = config.clone();
        config.upstreams.retain(|name, upstream| {
            let hidden = upstream.ca.as_deref().filter(|file| is_hidden(file));
            findings.extend(hidden.map(|file| unseen(name.as_str(), file)));
            hidden.is_none()
        });
        spawn_blocking(move || {
            let metrics = Metrics::new().map_err(|error| error.to_string())?;
            Upstreams::new(&config, metrics, Arc::new(SystemClock)).map_err(|error| causes(&error))
        })
    };
    let upstreams = match making.await {
        Ok(Ok(upstreams)) => upstreams,
        Ok(Err(why)) => {
            let advice = "correct the file that it names; `ocistern serve` does not start with it";
            return vec![Finding::new(Level::Error, GROUP, "certificate authorities", why, advice)];
        }
        Err(error) => {
            let advice = "this is a mistake in ocistern: report it";
            return vec![Finding::new(Level::Error, GROUP, "all", error.to_string(), advice)];
        }
    };
    upstreams.set_own_addresses(own_addresses(config));
    let defaults = Config::from_toml("").ok();
    let mut places = Vec::new();
    for (name, upstream) in &config.upstreams {
        let Some(registry) = upstreams.get(name) else { continue };
        let builtin = defaults.as_ref().and_then(|defaults| defaults.upstreams.get(name));
        // One that nobody has configured may be of no use here: that it cannot be reached is then no fault.
        let unwanted = builtin.is_some_and(|builtin| builtin.url == upstream.url)
            && config.listeners.iter().all(|listener| listener.default_upstream.as_ref() != Some(name));
        let dead = if unwanted { Level::Warning } else { Level::Error };
        let place = |registry: &Arc<Registry>, about, is_mirror, dead| Place {
            registry: Arc::clone(registry),
            about,
            is_mirror,
            dead,
        };
        places.push(place(&registry, name.to_string(), false, dead));
        for mirror in registry.mirrors() {
            places.push(place(mirror, format!("{name}, mirror {}", mirror.endpoint()), true, Level::Warning));
        }
    }
    let seen = join_all(places.iter().map(Place::look)).await;
    findings
        .extend(clock(places.iter().zip(&seen).filter_map(|(place, seen)| Some((place.about.as_str(), seen.time?)))));
    findings.extend(seen.into_iter().flat_map(|seen| seen.findings));
    findings
}

/// Whether systemd passes it to the service, and it is not to be seen from here.
fn is_hidden(file: &Path) -> bool {
    passed(file) == Some(Passed::Hidden)
}

/// What cannot be tried without this file.
fn unseen(about: &str, file: &Path) -> Finding {
    let found = format!("not tried: {} is there only while the service runs", file.display());
    let advice = format!("{}; run this as root while the service runs", to_be_passed(file));
    Finding::new(Level::Note, GROUP, about, found, advice)
}

/// Where ocistern itself listens: an upstream that leads there would be asked by itself.
fn own_addresses(config: &Config) -> Vec<SocketAddr> {
    let listeners = config.listeners.iter().filter_map(|listener| match listener.address {
        Address::Tcp(address) => Some(address),
        Address::Unix(_) => None,
    });
    listeners.chain(config.admin.address).filter(|address| address.port() != 0).collect()
}

// === impl Place ===

impl Place {
    async fn look(&self) -> Seen {
        let mut seen = Seen::default();
        let about = self.about.as_str();
        let upstream = self.registry.config();
        if upstream.sealed {
            seen.findings.push(Finding::ok(GROUP, about, "sealed: never asked"));
            return seen;
        }
        let until = Instant::now() + UPSTREAM;
        let step = || (Instant::now() + STEP).min(until);
        let way = match self.registry.proxy() {
            Some(proxy) => format!("through the proxy {proxy}"),
            None => match self.registry.addresses(step()).await {
                Ok(addresses) => format!("at {}", listed(&addresses)),
                Err(error) => {
                    seen.findings.push(self.unresolved(&error));
                    return seen;
                }
            },
        };
        let certificates = match self.registry.certificates(step()).await {
            Ok(certificates) => certificates,
            Err(error) => {
                seen.findings.push(self.failed(self.dead, &error));
                return seen;
            }
        };
        if let Some(leaf) = certificates.first() {
            let life = life(leaf, SystemClock.now());
            let advice = "whoever runs that registry is to renew it";
            seen.findings.push(match life.level {
                Level::Ok => Finding::ok(GROUP, about, format!("its certificate {}", life.said)),
                level => Finding::new(level, GROUP, about, format!("its certificate {}", life.said), advice),
            });
        }
        let greeting = match self.registry.greet(step()).await {
            Ok(greeting) => greeting,
            Err(error) => {
                seen.findings.push(self.failed(self.dead, &error));
                return seen;
            }
        };
        seen.time = greeting.date.map(|there| (there, SystemClock.now()));
        let scheme = match greeting.scheme {
            Ok(scheme) => scheme,
            Err(error) => {
                seen.findings.push(self.failed(self.dead, &error));
                return seen;
            }
        };
        if let Some(strange) = greeting.strange {
            let url = &self.registry.config().url;
            let status = greeting.status.as_u16();
            let found = format!(
                "reached {way}: something answers that is hardly a registry: /v2/ answers {status} with {strange}"
            );
            let advice = format!(
                "`curl -v {url}/v2/` from this machine: a captive portal, a proxy's page, or another server? correct `url`{}",
                self.unused()
            );
            seen.findings.push(Finding::new(Level::Warning, GROUP, about, found, advice));
            return seen;
        }
        let wants = match &scheme {
            Scheme::Open => "wants no credential".to_owned(),
            Scheme::Basic => "wants a name and password".to_owned(),
            Scheme::Bearer { realm, .. } => format!("wants a token of {realm}"),
        };
        seen.findings.push(Finding::ok(
            GROUP,
            about,
            format!("reached {way}: /v2/ answers {}, {wants}", greeting.status.as_u16()),
        ));
        let hidden = upstream.credentials.files().into_iter().map(|(_, file)| file).find(|file| is_hidden(file));
        if let Some(file) = hidden.filter(|_| !self.is_mirror) {
            seen.findings.push(unseen(&format!("{about}, credentials"), file));
            seen.findings.extend(greeting.limit.map(|limit| left(about, limit)));
            return seen;
        }
        if !self.is_mirror {
            seen.findings.push(self.credential(&scheme, step()).await);
        }
        let limit = match greeting.limit {
            None if !self.is_mirror => self.registry.rate_limit(step()).await,
            limit => Ok(limit),
        };
        seen.findings.extend(match limit {
            Ok(limit) => limit.map(|limit| left(about, limit)),
            Err(error) => Some(self.failed(Level::Warning, &error)),
        });
        seen
    }

    /// Whether what the configuration has to show is taken.
    async fn credential(&self, scheme: &Scheme, deadline: Instant) -> Finding {
        let about = format!("{}, credentials", self.about);
        let credentials = &self.registry.config().credentials;
        if credentials.is_own_account() {
            if matches!(scheme, Scheme::Open) {
                let found = "not asked for: /v2/ lets everybody in, so that nothing is known of them";
                return Finding::ok(GROUP, about, found);
            }
            return match self.registry.accepts(&Right::Shared, deadline).await {
                Ok(true) => Finding::ok(GROUP, about, "taken"),
                Ok(false) => Finding::new(
                    Level::Error,
                    GROUP,
                    about,
                    "refused",
                    "correct `credentials` of this upstream, or the file with the password: it may have expired or been withdrawn",
                ),
                Err(error) => Finding { about, ..self.failed(Level::Error, &error) },
            };
        }
        match (credentials, scheme) {
            (Credentials::Client, _) => Finding::ok(GROUP, about, "each caller shows its own"),
            (_, Scheme::Open) => Finding::ok(GROUP, about, "none is needed"),
            (Credentials::Anonymous, Scheme::Basic) => Finding::new(
                Level::Warning,
                GROUP,
                about,
                "\"anonymous\" shows none, and this registry wants a name and password",
                "credentials = { from = \"client\" }, or an account of ocistern's own (static, docker-config, helper)",
            ),
            (_, Scheme::Basic) => Finding::ok(GROUP, about, "each caller shows its own"),
            (_, Scheme::Bearer { .. }) => match self.registry.accepts(&Right::Anonymous, deadline).await {
                Ok(true) => Finding::ok(GROUP, about, "anybody is given a token"),
                Ok(false) => Finding::ok(
                    GROUP,
                    about,
                    "a stranger is given no token for /v2/ alone; images are asked for one by one",
                ),
                Err(error) => Finding { about, ..self.failed(self.dead, &error) },
            },
        }
    }

    fn unresolved(&self, error: &UpstreamError) -> Finding {
        let host = &self.registry.config().url.host;
        let advice = match error.fault {
            Fault::Timeout(_) => {
                format!("the name servers of this machine do not answer (/etc/resolv.conf, resolvectl query {host})")
            }
            _ => format!(
                "`getent hosts {host}`: correct `url`, or the DNS of this machine; `connect` does without{}",
                self.unused()
            ),
        };
        Finding::new(self.dead, GROUP, self.about.as_str(), error.fault.to_string(), advice)
    }

    fn failed(&self, level: Level, error: &UpstreamError) -> Finding {
        let advice = advice(&error.fault, &self.registry.config().url.to_string());
        let advice = if level == Level::Error { advice } else { format!("{advice}{}", self.unused()) };
        Finding::new(level, GROUP, self.about.as_str(), error.fault.to_string(), advice)
    }

    /// What to do about one that nobody wants.
    const fn unused(&self) -> &'static str {
        match (self.dead, self.is_mirror) {
            (Level::Warning, false) => "; or builtin_upstreams = false, with tables for those that you use",
            _ => "",
        }
    }
}

/// What to do about a failed request to the registry at `url`.
fn advice(fault: &Fault, url: &str) -> String {
    match fault {
        Fault::Unreachable(_) => {
            format!("`curl -v {url}/v2/` from this machine: is `url` right, does a firewall refuse it, does it need a proxy (HTTPS_PROXY)?")
        }
        Fault::Timeout(_) => {
            format!("`curl -v {url}/v2/` from this machine: a firewall drops it, a proxy is needed (HTTPS_PROXY), or it is overloaded")
        }
        Fault::OwnListener => "set `connect` of this upstream to the registry's real addresses".to_owned(),
        Fault::Tls(cause) => of_tls(cause, url),
        Fault::WantsTls => format!("write https:// in `url`: {}", url.replacen("http://", "https://", 1)),
        Fault::Broken(_) | Fault::Protocol(_) => {
            "something else than a registry answers there: check host, port, and http:// or https:// in `url`, and proxies on the way".to_owned()
        }
        Fault::RateLimited { .. } => "wait as it says, or let ocistern log in (`credentials`): accounts have larger limits".to_owned(),
        Fault::Token(TokenFault::Realm(_)) => "if it is right that tokens come from there, allow it: `token_hosts` of this upstream".to_owned(),
        Fault::Token(TokenFault::Away { host, .. } | TokenFault::Status { host, .. }) => {
            format!("tokens come from {host}: it must be reached from here too (firewall, proxy, DNS)")
        }
        Fault::Credential(_) => "correct `credentials` of this upstream: the file or the helper that it names".to_owned(),
        Fault::Unauthorized { .. } | Fault::Forbidden { .. } => {
            "the registry does not let this machine or account in: correct `credentials` of this upstream, or ask who runs it".to_owned()
        }
        Fault::NotFound { .. } | Fault::Status { .. } => {
            format!("is `url` a registry's, with the right path? {url}/v2/ should answer 200 or 401; if it does not now, wait")
        }
        _ => "the chapter on troubleshooting of ocistern's documentation has this message".to_owned(),
    }
}

fn of_tls(cause: &Cause, url: &str) -> String {
    match (**cause).downcast_ref::<rustls::Error>() {
        Some(rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer)) => {
            format!(
                "if the certificate of {url} is right, name its CA: ca = \"FILE.pem\" of this upstream; else somebody is in between"
            )
        }
        Some(rustls::Error::InvalidCertificate(
            CertificateError::Expired | CertificateError::ExpiredContext { .. },
        )) => "it has to be renewed there, or the clock of this machine is ahead (timedatectl)".to_owned(),
        Some(rustls::Error::InvalidCertificate(
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. },
        )) => "the clock of this machine is behind (timedatectl)".to_owned(),
        Some(rustls::Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        )) => "use the name that the certificate is for in `url`; where another address is meant, that is `connect`"
            .to_owned(),
        _ => format!("does {url} speak TLS? if not, `url` begins with http://"),
    }
}

/// What is left of a limit.
fn left(about: &str, limit: RateLimit) -> Finding {
    let RateLimit { remaining, limit, window } = limit;
    let of = limit.map(|limit| format!(" of {limit}")).unwrap_or_default();
    let each = window.map(|window| format!(" in {} minutes", window.as_secs().div_ceil(60))).unwrap_or_default();
    let found = format!("rate limit: {remaining}{of}{each} are left");
    let about = format!("{about}, rate limit");
    if remaining == 0 || limit.is_some_and(|limit| remaining.saturating_mul(LITTLE) < limit) {
        let advice = "let ocistern log in (`credentials`): accounts have larger limits; a longer `tags` asks less";
        return Finding::new(Level::Warning, GROUP, about, found, advice);
    }
    Finding::ok(GROUP, about, found)
}

/// Some addresses, as they fit a line.
fn listed(addresses: &[SocketAddr]) -> String {
    let shown: Vec<String> = addresses.iter().take(3).map(ToString::to_string).collect();
    let more = addresses.len().saturating_sub(shown.len());
    if more > 0 { format!("{} and {more} more", shown.join(", ")) } else { shown.join(", ") }
}

/// Whether the clock here is that of the upstreams.
fn clock<'a>(times: impl Iterator<Item = (&'a str, (SystemTime, SystemTime))>) -> Option<Finding> {
    let apart =
        |(there, here): (SystemTime, SystemTime)| there.duration_since(here).unwrap_or_else(|error| error.duration());
    let times: Vec<_> = times.collect();
    // One may be wrong by itself: the nearest says most about this machine.
    let (about, nearest) = times.iter().min_by_key(|(_, time)| apart(*time)).copied()?;
    let (there, here) = nearest;
    let apart = apart(nearest);
    if apart <= SKEW {
        return Some(Finding::ok(Group::Root, "clock", format!("that of {about} differs by {} s", apart.as_secs())));
    }
    let way = if there > here { "behind" } else { "ahead of" };
    Some(Finding::new(
        Level::Warning,
        Group::Root,
        "clock",
        format!("is {} s {way} that of {about}", apart.as_secs()),
        "set the clock, and keep it set (timedatectl set-ntp true): tokens and certificates depend on it",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::twin::wall;

    #[test]
    fn little_that_is_left_is_a_warning() {
        let limit = |remaining, limit, seconds: Option<u64>| {
            left("up", RateLimit { remaining, limit, window: seconds.map(Duration::from_secs) })
        };
        assert_eq!(limit(76, Some(100), Some(21_600)).found, "rate limit: 76 of 100 in 360 minutes are left");
        assert_eq!(limit(76, Some(100), None).level, Level::Ok);
        assert_eq!(limit(9, Some(100), None).level, Level::Warning);
        assert_eq!(limit(10, Some(100), None).level, Level::Ok);
        assert_eq!(limit(0, None, None).level, Level::Warning);
        assert_eq!(limit(3, None, None).level, Level::Ok, "of how many, nobody has said");
    }

    #[test]
    fn the_nearest_clock_says_most() {
        let now = wall();
        let (hour, second) = (Duration::from_hours(1), Duration::from_secs(1));
        let found = clock([("a", (now + hour, now)), ("b", (now - second, now))].into_iter()).unwrap();
        assert_eq!((found.level, found.group), (Level::Ok, Group::Root));
        let found = clock([("a", (now + hour, now))].into_iter()).unwrap();
        assert_eq!((found.level, found.found.as_str()), (Level::Warning, "is 3600 s behind that of a"));
        let found = clock([("a", (now - hour, now))].into_iter()).unwrap();
        assert_eq!(found.found, "is 3600 s ahead of that of a");
        assert_eq!(clock(std::iter::empty()), None);
    }

    #[test]
    fn each_fault_of_tls_has_its_advice() {
        let advice = |error: CertificateError| {
            advice(&Fault::Tls(Arc::new(rustls::Error::InvalidCertificate(error))), "https://r.example")
        };
        assert!(advice(CertificateError::UnknownIssuer).contains("ca = \"FILE.pem\""));
        assert!(advice(CertificateError::Expired).contains("clock of this machine is ahead"));
        assert!(advice(CertificateError::NotValidYet).contains("behind"));
        assert!(advice(CertificateError::NotValidForName).contains("`connect`"));
        assert!(advice(CertificateError::BadEncoding).contains("speak TLS"));
        let plain = super::advice(&Fault::WantsTls, "http://r.example:8443");
        assert_eq!(plain, "write https:// in `url`: https://r.example:8443");
    }
}
