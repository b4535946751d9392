//! What clients need to know of a running ocistern: where it is reached, and which registries it stands for.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use rustls::pki_types::UnixTime;

use super::SetupError;
use super::certificate::Leaf;
use crate::cli::clients::folder;
use crate::config::{Address, BaseUrl, Config, Listener};
use crate::http::access::is_loopback_host;
use crate::http::route::Directory;
use crate::oci::UpstreamName;

/// Docker Hub as image names have it.
pub(super) const DOCKER_HUB: &str = "docker.io";
/// Where Docker Hub is really.
const DOCKER_HUB_API: &str = "registry-1.docker.io";
/// Other names of Docker Hub; clients that are asked for one of them ask for `docker.io`.
const DOCKER_HUB_NAMES: [&str; 3] = [DOCKER_HUB, DOCKER_HUB_API, "index.docker.io"];
/// Name of a CA's certificate beside the server's, as `setup ca` writes it.
pub(super) const CA_FILE: &str = "ca.crt";

const NO_LISTENER: &str = "no client can be pointed at this ocistern: all its listeners are Unix sockets, and these clients \
                           reach a registry by TCP only; add a [[listener]] with address = \"127.0.0.1:5000\", or say by \
                           --url where another proxy in front of it is reached";
const FREE_PORT: &str = "takes another port at each start, so no client can be pointed at it: write a fixed one, such as \
                         127.0.0.1:5000";

/// An ocistern, as clients see it.
#[derive(Debug)]
pub(super) struct Instance {
    /// Where it is reached, at least one; the best for clients in general first.
    endpoints: Vec<Endpoint>,
    /// The registries that it stands for, Docker Hub first.
    pub(super) registries: Vec<Registry>,
    /// Registries that are reached under their own names, which lead here.
    pub(super) own_names: Vec<OwnName>,
}

/// A place where it is reached.
#[derive(Debug, Clone)]
pub(super) struct Endpoint {
    /// Scheme, host and port, and a path where another proxy in front wants one.
    pub(super) url: BaseUrl,
    /// The upstream that a name without a registry means.
    default_upstream: Option<UpstreamName>,
    /// The private CA whose certificate it shows, as PEM; none: plain HTTP, or a CA that clients know.
    pub(super) ca: Option<String>,
    /// Whether clients must show a certificate.
    pub(super) wants_certificate: bool,
    /// What cannot be known from the configuration, and what to do about it.
    pub(super) doubt: Option<String>,
}

/// A registry that ocistern stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Registry {
    /// As image names have it: `ghcr.io`, `localhost:5001`.
    pub(super) host: String,
    /// The upstream's name: what stands before the repository at ocistern.
    pub(super) upstream: UpstreamName,
    /// Where clients go themselves when ocistern is away.
    pub(super) origin: String,
    /// Whether they go there without TLS.
    pub(super) plain: bool,
}

/// A registry's own name, which leads to ocistern (`hostnames`).
#[derive(Debug, Clone)]
pub(super) struct OwnName {
    /// As clients write it: with the port where it is not the scheme's.
    pub(super) host: String,
    /// The private CA of that listener.
    pub(super) ca: Option<String>,
    /// The upstream behind it.
    pub(super) upstream: UpstreamName,
    /// Whether ocistern is told where the registry really is.
    pub(super) connects: bool,
    /// Whether it is served with TLS.
    pub(super) https: bool,
    /// Where it is served, for the hosts file of this machine.
    address: IpAddr,
}

/// What the caller knows better than the configuration.
#[derive(Debug, Default)]
pub(super) struct Said {
    /// Where clients reach ocistern.
    pub(super) url: Option<BaseUrl>,
    /// The CA's certificate.
    pub(super) ca: Option<PathBuf>,
}

// === impl Instance ===

impl Instance {
    /// What this configuration comes to. `now` is for certificates.
    pub(super) fn of(config: &Config, said: &Said, now: UnixTime) -> Result<Self, SetupError> {
        let directory = Directory::new(config);
        let ca = match &said.ca {
            None => None,
            Some(file) => {
                let text = folder::read(file)?.filter(|text| Leaf::read(text).is_some());
                Some(text.ok_or_else(|| SetupError::NoCertificate(file.clone()))?)
            }
        };
        let mut found = Vec::new();
        let mut own_names = Vec::new();
        let mut free_port = None;
        for listener in &config.listeners {
            let shown = Shown::of(listener, now);
            let ca = ca.clone().or_else(|| shown.ca.clone());
            own_names.extend(names_of(config, listener, ca.as_ref()));
            match endpoint(listener, &shown, ca.as_ref()) {
                Some(endpoint) if endpoint.url.port == 0 => free_port = Some(listener.address.to_string()),
                Some(endpoint) => found.push((rank(listener, &endpoint), endpoint)),
                None => {}
            }
        }
        found.sort_by_key(|(rank, _)| *rank);
        let mut endpoints: Vec<_> = found.into_iter().map(|(_, endpoint)| endpoint).collect();
        if let Some(url) = &said.url {
            // It leads to one of them: the one at that port, else probably the best one.
            let behind = endpoints.iter().find(|endpoint| endpoint.url.port == url.port).or(endpoints.first());
            let default_upstream = match behind {
                Some(endpoint) => endpoint.default_upstream.clone(),
                None => config.listeners.first().and_then(|listener| listener.default_upstream.clone()),
            };
            let same = endpoints.iter().find(|endpoint| endpoint.url == *url);
            let ca = same.and_then(|same| same.ca.clone()).or(ca).filter(|_| url.https);
            let wants_certificate = same.is_some_and(|same| same.wants_certificate);
            endpoints = vec![Endpoint { url: url.clone(), default_upstream, ca, wants_certificate, doubt: None }];
        }
        if endpoints.is_empty() {
            return Err(match free_port {
                Some(address) => SetupError::Unfit(format!("the listener at {address} {FREE_PORT}")),
                None => SetupError::Unfit(NO_LISTENER.to_owned()),
            });
        }
        own_names.sort_by(|a, b| a.host.cmp(&b.host));
        own_names.dedup_by(|a, b| a.host == b.host);
        Ok(Self { endpoints, registries: registries(config, &directory), own_names })
    }

    /// Where clients go that say which registry they mean.
    pub(super) fn endpoint(&self) -> Option<&Endpoint> {
        self.endpoints.first()
    }

    /// Where clients go that mean Docker Hub and do not say so.
    pub(super) fn hub_endpoint(&self) -> Option<&Endpoint> {
        let hub = &self.registries.iter().find(|registry| registry.host == DOCKER_HUB)?.upstream;
        self.endpoints.iter().find(|endpoint| endpoint.default_upstream.as_ref() == Some(hub))
    }
}

/// What the certificate of a listener tells.
#[derive(Debug, Default)]
struct Shown {
    leaf: Option<Leaf>,
    ca: Option<String>,
}

// === impl Shown ===

impl Shown {
    fn of(listener: &Listener, now: UnixTime) -> Self {
        let first = listener.tls.as_ref().and_then(|tls| tls.certificates.first());
        let Some(file) = first.map(|files| files.certificate.as_path()) else { return Self::default() };
        // Who points clients at it need not be allowed to read them: what is not known is said.
        let Some(chain) = folder::read(file).ok().flatten() else { return Self::default() };
        let Some(leaf) = Leaf::read(&chain) else { return Self::default() };
        let beside = folder::read(&file.with_file_name(CA_FILE)).ok().flatten();
        let ca = beside.filter(|ca| leaf.refused_by(ca, &chain, now).is_none());
        Self { leaf: Some(leaf), ca }
    }
}

/// Where a listener is reached from its own machine, or from where it is told.
fn endpoint(listener: &Listener, shown: &Shown, ca: Option<&String>) -> Option<Endpoint> {
    let https = listener.tls.is_some();
    let fits = |url: BaseUrl, doubt: Option<String>| {
        let ca = ca.filter(|_| url.https).cloned();
        let wants_certificate = listener.tls.as_ref().is_some_and(|tls| tls.client_ca.is_some());
        let default_upstream = listener.default_upstream.clone();
        Endpoint { url, default_upstream, ca, wants_certificate, doubt }
    };
    if let Some(url) = listener.public_url.as_deref().and_then(|url| url.parse().ok()) {
        return Some(fits(url, None));
    }
    let Address::Tcp(address) = &listener.address else { return None };
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => "127.0.0.1".to_owned(),
        // It takes IPv4 too, which more clients know to write.
        IpAddr::V6(ip) if ip.is_unspecified() => "127.0.0.1".to_owned(),
        IpAddr::V4(ip) => ip.to_string(),
        IpAddr::V6(ip) => format!("[{ip}]"),
    };
    let at = |host: String| BaseUrl { https, host, port: address.port(), prefix: String::new() };
    if !https {
        return Some(fits(at(ip), None));
    }
    let Some(leaf) = &shown.leaf else {
        let doubt = format!(
            "the certificate of the listener at {address} cannot be read from here, so it is not known which name clients \
             have to use: say it by --url, or by public_url in the configuration"
        );
        return Some(fits(at(ip), Some(doubt)));
    };
    let is_mapped = |name: &str| listener.hostnames.keys().any(|host| host == name);
    let usual = |name: &String| !name.contains('*') && !is_mapped(name) && name != "localhost";
    let is_local = ip == "127.0.0.1" || is_loopback_host(&ip);
    let (host, doubt) = if leaf.is_for(&ip) {
        (ip, None)
    } else if is_local && leaf.is_for("localhost") {
        ("localhost".to_owned(), None)
    } else if let Some(name) = leaf.dns_names().into_iter().find(usual) {
        (name, None)
    } else {
        let doubt = format!(
            "the certificate of the listener at {address} is for neither {ip} nor another name of this machine: say by --url \
             under which name clients reach it, or make a certificate by `ocistern setup ca`"
        );
        (ip, Some(doubt))
    };
    Some(fits(at(host), doubt))
}

/// Which of several places is the best: the lowest.
fn rank(listener: &Listener, endpoint: &Endpoint) -> (bool, bool, bool, bool) {
    let near = is_loopback_host(&endpoint.url.authority());
    let no_default = listener.default_upstream.is_none();
    (endpoint.wants_certificate || endpoint.doubt.is_some(), !near, endpoint.url.https, no_default)
}

/// The registries' own names that a listener is told to take.
fn names_of(config: &Config, listener: &Listener, ca: Option<&String>) -> Vec<OwnName> {
    let https = listener.tls.is_some();
    let Address::Tcp(socket) = &listener.address else { return Vec::new() };
    let port = socket.port();
    let address = match socket.ip() {
        ip if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        ip => ip,
    };
    let usual = if https { 443 } else { 80 };
    let name = |(host, upstream): (&String, &UpstreamName)| {
        let has_port = host.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
        let connects = config.upstreams.get(upstream).is_some_and(|upstream| !upstream.connect.is_empty());
        OwnName {
            host: if has_port || port == usual { host.clone() } else { format!("{host}:{port}") },
            ca: ca.filter(|_| https).cloned(),
            upstream: upstream.clone(),
            connects,
            https,
            address,
        }
    };
    listener.hostnames.iter().map(name).collect()
}

/// All registries, as image names have them; Docker Hub first, because it is what most people mean.
fn registries(config: &Config, directory: &Directory) -> Vec<Registry> {
    let mut found: Vec<Registry> = Vec::new();
    for (name, upstream) in &config.upstreams {
        let url = &upstream.url;
        // What a `serve --upstream URL` calls it, where the URL has a port.
        let is_of_url = url.prefix.is_empty() && name.as_str() == url.authority().replace(':', "-");
        let host = if name.as_str().contains('.') && !is_of_url {
            name.as_str().to_owned()
        } else if url.prefix.is_empty() {
            url.authority()
        } else {
            // No image name leads there: behind a path lies what only ocistern's own prefix reaches.
            continue;
        };
        let host = if DOCKER_HUB_NAMES.contains(&host.as_str()) { DOCKER_HUB.to_owned() } else { host };
        // Of several at one host, requests that name the host mean one.
        if directory.get(&host) != Some(name) || found.iter().any(|registry| registry.host == host) {
            continue;
        }
        let plain = !url.https && url.authority() == host;
        let api = if host == DOCKER_HUB { DOCKER_HUB_API } else { &host };
        let origin = format!("{}://{api}", if plain { "http" } else { "https" });
        found.push(Registry { host, upstream: name.clone(), origin, plain });
    }
    found.sort_by_key(|registry| registry.host != DOCKER_HUB);
    found
}

// === impl OwnName ===

impl OwnName {
    /// The name without its port.
    fn bare(&self) -> &str {
        match self.host.rsplit_once(':') {
            Some((name, port)) if port.parse::<u16>().is_ok() => name,
            _ => &self.host,
        }
    }

    /// The line by which the name leads to ocistern.
    pub(super) fn hosts_line(&self) -> String {
        format!("{} {}", self.address, self.bare())
    }

    /// What ocistern has to be told itself on a machine with such a line, if it is not yet.
    pub(super) fn connect_advice(&self) -> Option<String> {
        let what = format!(
            "with that line ocistern would find itself where it looks for {0}: tell it where {0} is really, by connect = \
             [\"ADDRESS:443\"] in its table [upstream.\"{1}\"] (`dig +short {0} @RESOLVER` shows the address)",
            self.bare(),
            self.upstream
        );
        (!self.connects).then_some(what)
    }
}

// === impl Endpoint ===

impl Endpoint {
    /// `host:port` as clients write it before a name.
    pub(super) fn authority(&self) -> String {
        self.url.authority()
    }

    /// Whether it is on this machine.
    pub(super) fn is_loopback(&self) -> bool {
        is_loopback_host(&self.authority())
    }

    /// The address before a name of this registry: `127.0.0.1:5000/ghcr.io`.
    pub(super) fn prefixed(&self, registry: &Registry) -> String {
        format!("{}/{}", self.authority(), registry.upstream)
    }

    /// Refuses a place that has a path, for clients that put names behind host and port.
    pub(super) fn without_path(&self, client: &str) -> Result<&Self, SetupError> {
        if self.url.prefix.is_empty() {
            return Ok(self);
        }
        Err(SetupError::Unfit(format!(
            "{client} cannot be pointed at {}: it asks for /v2/ at a host and port, without a path before it; give ocistern a \
             host name of its own at the proxy in front of it, or say by --url where it is reached directly",
            self.url
        )))
    }
}
