//! Which upstream and which endpoint a request means: pure, closed world, nothing outside the grammar gets through.
//!
//! Four forms of address are understood over one store, and a default; see [`Form`]. `ns`, `Host` and prefixes are
//! look-up keys among the configured upstreams, never an address to dial (OCI distribution-spec, "Registry Proxying").
//! The path is percent-decoded exactly once, then validated by the grammars of [`crate::oci`].
#![warn(clippy::indexing_slicing)]

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use foldhash::HashMap;
use percent_encoding::percent_decode_str;

use super::access::without_port;
use super::endpoint::Api;
pub use super::endpoint::{Acr, AcrItem, Endpoint};
use super::token_route::{self, TokenRoute};
use crate::config::{Config, Listener, Upstream};
use crate::oci::{InvalidDigest, InvalidName, RepoName, UpstreamName};

/// Host names by which Docker Hub is known; they all mean the upstream `docker.io`.
const DOCKER_HUB: [&str; 4] = ["docker.io", "registry-1.docker.io", "index.docker.io", "registry.hub.docker.com"];
/// Longest text of a request that an error message repeats.
const MAX_ECHO: usize = 128;

/// The configured upstreams by every name under which a client may ask for them.
#[derive(Debug, Clone)]
pub struct Directory {
    entries: HashMap<String, Entry>,
}

/// An upstream, as far as names need it.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) name: UpstreamName,
    /// Whether one-part names get `library/`.
    pub(super) library: bool,
}

/// What a path means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Routed {
    /// `/v2/`: does a registry answer here?
    Ping(Ping),
    /// A token endpoint.
    Token(TokenRoute),
    /// A resource of an upstream.
    Resource(Route),
}

/// A request for `/v2/`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ping {
    /// The upstream that was meant, if any is: a listener may have no default.
    pub upstream: Option<UpstreamName>,
    /// How it was addressed.
    pub form: Form,
    /// `?ns=` as the client gave it, if it decided: for `OCI-Namespace`.
    pub namespace: Option<String>,
}

/// A resource of an upstream, and how the client addressed it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// The upstream.
    pub upstream: UpstreamName,
    /// The resource.
    pub endpoint: Endpoint,
    /// How it was addressed.
    pub form: Form,
    /// The key of the upstream in the path, where `form` has one, in the client's words (lower case); else empty.
    pub prefix: String,
    /// `?ns=` as the client gave it, if it names this upstream: for `OCI-Namespace`.
    pub namespace: Option<String>,
    /// The query without `ns`, still encoded; usually empty.
    pub query: String,
    /// What stands before the path where clients see it: the path of the listener's `public_url`; usually empty.
    pub base: String,
}

/// The forms of address, in the order in which they are tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// `/v2/NAME/…?ns=HOST`: containerd and what is built on it.
    Namespace,
    /// `/HOST/v2/NAME/…`: containerd hosts without `override_path`, docker mirrors with a path.
    Path,
    /// `/v2/NAME/…` on a mapped `Host`: the rest is the name, never a prefix.
    Hostname,
    /// `/v2/HOST/NAME/…`: podman `location`, `BuildKit` mirrors, plain prefixed names.
    Prefix,
    /// `/v2/NAME/…`: the listener's default upstream.
    Default,
}

/// Why a request means nothing here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RouteError {
    /// Not an endpoint of the distribution specification.
    #[error("this path is no endpoint of the registry API; paths start with /v2/")]
    NoEndpoint,
    /// The path holds what no name can: bad or double percent-encoding, `.` or `..`, a backslash, a control character.
    #[error("the path is malformed: percent-encode at most once, and without `.`, `..`, `\\` and control characters")]
    Malformed,
    /// The repository name is outside the grammar.
    #[error("the repository in the path is {0}")]
    Name(#[source] InvalidName),
    /// The tag is outside the grammar.
    #[error("the reference is {0}")]
    Tag(#[source] InvalidName),
    /// The digest is outside the grammar.
    #[error("the digest is invalid: {0}")]
    Digest(#[source] InvalidDigest),
    /// `ns` is given more than once, with different values.
    #[error("the parameter `ns` is given more than once; give it once")]
    AmbiguousNamespace,
    /// No upstream of that name is configured.
    #[error(
        "ocistern has no upstream for {host:?}; add a table [upstream.\"{table}\"] to its configuration, or ask for a configured one"
    )]
    UnknownUpstream {
        /// As the client wrote it.
        host: String,
        /// The name that a table for it would have.
        table: String,
    },
    /// The listener has no default upstream and the request names none.
    #[error(
        "this listener has no default_upstream and the request names no upstream; ask for HOST/NAME, or set default_upstream"
    )]
    NoDefault,
}

// === impl Directory ===

impl Directory {
    /// The look-up table of all upstreams of the configuration. A name beats a host name, and of several upstreams at
    /// one host the first by name has it.
    pub fn new(config: &Config) -> Self {
        Self::of(&config.upstreams)
    }

    fn of(upstreams: &BTreeMap<UpstreamName, Arc<Upstream>>) -> Self {
        let mut entries = HashMap::default();
        let entry = |upstream: &Upstream| Entry { name: upstream.name.clone(), library: upstream.library };
        for upstream in upstreams.values() {
            entries.insert(upstream.name.as_str().to_owned(), entry(upstream));
        }
        // Behind a path prefix lies another registry than the host name means.
        for upstream in upstreams.values().filter(|u| u.url.prefix.is_empty()) {
            let url = &upstream.url;
            let default_port = if url.https { 443 } else { 80 };
            let host = url.host.to_ascii_lowercase();
            entries.entry(format!("{host}:{}", url.port)).or_insert_with(|| entry(upstream));
            if url.port == default_port {
                entries.entry(host).or_insert_with(|| entry(upstream));
            }
        }
        if let Some(hub) = DOCKER_HUB.iter().find_map(|alias| entries.get(*alias)).cloned() {
            for alias in DOCKER_HUB {
                entries.entry(alias.to_owned()).or_insert_with(|| hub.clone());
            }
        }
        Self { entries }
    }

    /// The upstream that a client means by `key`: a name, or a host with or without port.
    pub fn get(&self, key: &str) -> Option<&UpstreamName> {
        self.entry(key).map(|entry| &entry.name)
    }

    fn entry(&self, key: &str) -> Option<&Entry> {
        if key.bytes().any(|b| b.is_ascii_uppercase()) {
            self.entries.get(&key.to_ascii_lowercase())
        } else {
            self.entries.get(key)
        }
    }

    /// The upstream that a client means by `key`, or the error that says that there is none.
    pub(super) fn lookup(&self, key: &str) -> Result<&Entry, RouteError> {
        self.entry(key).ok_or_else(|| RouteError::unknown(key))
    }
}

// === impl Routed ===

/// Parses a request's target: `host` is the `Host` header or authority, `path` and `query` are still encoded.
pub fn parse(
    directory: &Directory,
    listener: &Listener,
    host: Option<&str>,
    path: &str,
    query: Option<&str>,
) -> Result<Routed, RouteError> {
    let path = match memchr::memchr(b'%', path.as_bytes()) {
        None => Cow::Borrowed(path),
        Some(_) => percent_decode_str(path).decode_utf8().map_err(|_| RouteError::Malformed)?,
    };
    refuse_malformed(&path)?;
    if let Some(route) = token_route::parse(directory, listener, host, &path)? {
        return Ok(Routed::Token(route));
    }
    let (namespace, query) = split_namespace(query.unwrap_or_default())?;
    let address = address(directory, listener, host, &path, namespace.as_deref())?;
    let namespace = namespace.filter(|ns| {
        address.entry.is_some_and(|entry| directory.entry(ns).is_some_and(|named| named.name == entry.name))
    });
    if address.api == Api::Registry && address.rest.is_empty() {
        let upstream = address.entry.map(|entry| entry.name.clone());
        return Ok(Routed::Ping(Ping { upstream, form: address.form, namespace }));
    }
    let endpoint = address.api.endpoint(address.rest)?;
    let entry = address.entry.ok_or(RouteError::NoDefault)?;
    let endpoint = if entry.library { endpoint.with_library() } else { endpoint };
    Ok(Routed::Resource(Route {
        upstream: entry.name.clone(),
        endpoint,
        form: address.form,
        prefix: address.prefix.to_ascii_lowercase(),
        namespace,
        query,
        base: public_path(listener).to_owned(),
    }))
}

/// Where the name begins, and whose it is.
struct Address<'a> {
    entry: Option<&'a Entry>,
    form: Form,
    prefix: &'a str,
    api: Api,
    /// What follows `/v2/` (or `/acr/v1/`) and the prefix.
    rest: &'a str,
}

fn address<'a>(
    directory: &'a Directory,
    listener: &Listener,
    host: Option<&str>,
    path: &'a str,
    namespace: Option<&str>,
) -> Result<Address<'a>, RouteError> {
    let Some((api, rest)) = Api::split(path) else {
        // A path is more particular than `ns`, which containerd adds by itself: the path decides.
        let (prefix, tail) = path.strip_prefix('/').and_then(split_part).ok_or(RouteError::NoEndpoint)?;
        let (api, rest) = Api::split(tail).ok_or(RouteError::NoEndpoint)?;
        return Ok(Address { entry: Some(directory.lookup(prefix)?), form: Form::Path, prefix, api, rest });
    };
    if let Some(namespace) = namespace {
        let entry = directory.lookup(namespace)?;
        // containerd adds `ns` also where `override_path` has put the host into the path: then it stands there twice.
        // No repository begins with the host name of its own registry.
        if let Some((first, behind)) = rest.split_once('/')
            && api.has_name(behind)
            && directory.entry(first).is_some_and(|named| named.name == entry.name)
        {
            return Ok(Address { entry: Some(entry), form: Form::Prefix, prefix: first, api, rest: behind });
        }
        return Ok(Address { entry: Some(entry), form: Form::Namespace, prefix: "", api, rest });
    }
    if let Some(name) = mapped(listener, host) {
        let entry = Some(directory.lookup(name.as_str())?);
        return Ok(Address { entry, form: Form::Hostname, prefix: "", api, rest });
    }
    let (first, behind) = rest.split_once('/').unwrap_or((rest, ""));
    // What has one part only is a name: there is nothing behind it that it could be a prefix of.
    let is_prefix = (behind.is_empty() && api == Api::Registry) || api.has_name(behind);
    if is_prefix && !first.is_empty() {
        if let Some(entry) = directory.entry(first) {
            return Ok(Address { entry: Some(entry), form: Form::Prefix, prefix: first, api, rest: behind });
        }
        if looks_like_host(first) {
            return Err(RouteError::unknown(first));
        }
    }
    let entry = listener.default_upstream.as_ref().and_then(|name| directory.entry(name.as_str()));
    Ok(Address { entry, form: Form::Default, prefix: "", api, rest })
}

/// The first part of a path, and the rest with its slash.
fn split_part(path: &str) -> Option<(&str, &str)> {
    path.find('/').and_then(|slash| path.split_at_checked(slash))
}

/// What nobody needs and attackers try: the grammars would refuse it too, but this way one error says so.
fn refuse_malformed(path: &str) -> Result<(), RouteError> {
    let bad_byte = |b: u8| !b.is_ascii_graphic() || matches!(b, b'\\' | b'%');
    // All of them are looked at, which is faster than to stop at the first.
    let bad = path.bytes().fold(false, |bad, byte| bad | bad_byte(byte));
    if bad
        || (memchr::memchr(b'.', path.as_bytes()).is_some() && path.split('/').any(|part| part == "." || part == ".."))
    {
        return Err(RouteError::Malformed);
    }
    Ok(())
}

/// Takes `ns` out of a query.
pub(super) fn split_namespace(query: &str) -> Result<(Option<String>, String), RouteError> {
    let mut namespace: Option<Cow<'_, str>> = None;
    let mut rest = String::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        if percent_decode_str(key).eq(b"ns".iter().copied()) {
            let value = percent_decode_str(value).decode_utf8().map_err(|_| RouteError::Malformed)?;
            if namespace.as_ref().is_some_and(|earlier| *earlier != value) {
                return Err(RouteError::AmbiguousNamespace);
            }
            namespace = Some(value);
        } else {
            if !rest.is_empty() {
                rest.push('&');
            }
            rest.push_str(pair);
        }
    }
    Ok((namespace.map(Cow::into_owned), rest))
}

/// The upstream that the listener maps this `Host` to: as it is written, with or without the scheme's port, else by its
/// name alone. Were a mapped name at an unexpected port (a container's published one) not that name, a private
/// registry's repositories would be asked of the default upstream, where anybody may have made one of that name.
pub(super) fn mapped<'a>(listener: &'a Listener, host: Option<&str>) -> Option<&'a UpstreamName> {
    if listener.hostnames.is_empty() {
        return None;
    }
    let host = host?.to_ascii_lowercase();
    let default_port = if listener.tls.is_some() { ":443" } else { ":80" };
    let bare = host.strip_suffix(default_port).unwrap_or(&host);
    let name = without_port(bare);
    // The root's dot: the same name.
    let name = name.strip_suffix('.').unwrap_or(name);
    [bare, &format!("{bare}{default_port}"), name].into_iter().find_map(|key| listener.hostnames.get(key))
}

/// As docker tells `HOST/NAME` from `ORG/NAME`: a dot, a port, or `localhost`.
pub(super) fn looks_like_host(part: &str) -> bool {
    part.contains('.') || part.contains(':') || part == "localhost"
}

// === impl Route ===

impl Route {
    /// The repository, for all but the catalog.
    pub fn repo(&self) -> Option<&RepoName> {
        self.endpoint.repo()
    }

    /// The path of the resource at the upstream, from `/v2/`: what its relative links are relative to. None for those
    /// that have no links.
    pub fn upstream_path(&self) -> Option<String> {
        match &self.endpoint {
            Endpoint::Catalog => Some("/v2/_catalog".to_owned()),
            Endpoint::Tags(repo) => Some(format!("/v2/{repo}/tags/list")),
            Endpoint::Referrers(repo, digest) => Some(format!("/v2/{repo}/referrers/{digest}")),
            Endpoint::Acr(acr) => Some(acr.to_string()),
            Endpoint::Manifest(..) | Endpoint::Blob(..) | Endpoint::Uploads(_) | Endpoint::Upload(..) => None,
        }
    }

    /// What a client has to ask here for `target` of the upstream (a path from `/v2/` or `/acr/v1/`, with its query), in
    /// the form of address that it used: for a relative `Link` or `Location`. None where `target` is no such path.
    pub fn local_target(&self, target: &str) -> Option<String> {
        let (api, rest) = Api::split(target)?;
        let (base, root) = (&self.base, api.root());
        let path = match self.form {
            Form::Path => format!("{base}/{}{root}{rest}", self.prefix),
            Form::Prefix => format!("{base}{root}{}/{rest}", self.prefix),
            Form::Namespace | Form::Hostname | Form::Default => format!("{base}{root}{rest}"),
        };
        Some(match &self.namespace {
            Some(namespace) => {
                let joint = if path.contains('?') { '&' } else { '?' };
                format!("{path}{joint}ns={}", percent_encoding::utf8_percent_encode(namespace, KEY))
            }
            None => path,
        })
    }
}

/// Whose repository a client means that asks, by `route`, for a blob to be mounted from `from`: a name as it would stand
/// in a path of the same form of address. None where it means nothing here.
pub fn mount_source(
    directory: &Directory,
    listener: &Listener,
    route: &Route,
    from: &str,
) -> Option<(UpstreamName, RepoName)> {
    let (entry, name) = match route.form {
        Form::Namespace | Form::Path | Form::Hostname => (directory.entry(route.upstream.as_str())?, from),
        Form::Prefix | Form::Default => {
            match from.split_once('/').map(|(first, name)| (directory.entry(first), name)) {
                Some((Some(entry), name)) => (entry, name),
                _ => (listener.default_upstream.as_ref().and_then(|name| directory.entry(name.as_str()))?, from),
            }
        }
    };
    let repo: RepoName = name.parse().ok()?;
    Some((entry.name.clone(), if entry.library { repo.with_library() } else { repo }))
}

/// The path of the URL by which clients reach the listener; another proxy in front has taken it off.
pub(super) fn public_path(listener: &Listener) -> &str {
    let rest = listener.public_url.as_deref().and_then(|url| url.split_once("://")).map_or("", |(_, rest)| rest);
    rest.find('/').and_then(|slash| rest.get(slash..)).unwrap_or_default()
}

/// The host of the URL by which clients reach the listener, with its port where that is not the scheme's.
pub(super) fn public_authority(listener: &Listener) -> Option<&str> {
    let (_, rest) = listener.public_url.as_deref()?.split_once("://")?;
    Some(rest.split_once('/').map_or(rest, |(authority, _)| authority))
}

/// Everything but what a host with a port is made of.
const KEY: &percent_encoding::AsciiSet = &percent_encoding::NON_ALPHANUMERIC.remove(b'.').remove(b'-').remove(b'_');

// === impl Form ===

impl Form {
    /// The word in the log.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Namespace => "ns",
            Self::Path => "path",
            Self::Hostname => "host",
            Self::Prefix => "prefix",
            Self::Default => "default",
        }
    }
}

// === impl RouteError ===

impl RouteError {
    fn unknown(host: &str) -> Self {
        let host: String = host.chars().take(MAX_ECHO).collect();
        // A table's name has no colon: an upstream with a port is called `host-PORT`.
        let table = host.to_ascii_lowercase().replace(':', "-");
        Self::UnknownUpstream { host, table }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::{Arc, LazyLock};

    use proptest::prelude::*;

    use super::*;
    use crate::config::{Address, BaseUrl, Credentials, TagPolicy};
    use crate::oci::{Digest, Reference};

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn upstream(name: &str, url: &str) -> (UpstreamName, Arc<Upstream>) {
        let (scheme, rest) = url.split_once("://").unwrap();
        let (authority, prefix) = rest.split_once('/').map_or((rest, String::new()), |(a, p)| (a, format!("/{p}")));
        let default = if scheme == "https" { 443 } else { 80 };
        let (host, port) = authority.split_once(':').map_or((authority, default), |(h, p)| (h, p.parse().unwrap()));
        let name: UpstreamName = name.parse().unwrap();
        let upstream = Upstream {
            url: BaseUrl { https: scheme == "https", host: host.to_owned(), port, prefix },
            credentials: Credentials::Auto,
            tags: TagPolicy::Always,
            rules: vec![],
            library: name.as_str() == "docker.io",
            ca: None,
            token_hosts: vec![],
            connect: vec![],
            push: crate::config::PushBy::Client,
            public_for: std::time::Duration::from_mins(10),
            access_ttl: std::time::Duration::from_mins(1),
            access_stale: std::time::Duration::ZERO,
            reserve: 0,
            relay_credentials: false,
            mirrors: vec![],
            transfer: crate::config::Transfer::default(),
            sealed: false,
            name: name.clone(),
        };
        (name, Arc::new(upstream))
    }

    fn directory() -> Directory {
        let upstreams = BTreeMap::from([
            upstream("docker.io", "https://registry-1.docker.io"),
            upstream("ghcr.io", "https://ghcr.io"),
            upstream("hub-private", "https://registry-1.docker.io"),
            upstream("localhost-5001", "http://localhost:5001"),
            upstream("team", "https://art.example/docker"),
            upstream("my.azurecr.io", "https://my.azurecr.io"),
        ]);
        Directory::of(&upstreams)
    }

    fn listener(default: Option<&str>) -> Listener {
        Listener {
            address: Address::Tcp("127.0.0.1:0".parse().unwrap()),
            default_upstream: default.map(|name| name.parse().unwrap()),
            public_url: None,
            hostnames: BTreeMap::from([("my.azurecr.io".to_owned(), "my.azurecr.io".parse().unwrap())]),
            tls: None,
            htpasswd: None,
            allow_plain_credentials: false,
            optional: false,
        }
    }

    fn go(host: &str, target: &str) -> Result<Routed, RouteError> {
        let (path, query) = target.split_once('?').map_or((target, None), |(p, q)| (p, Some(q)));
        parse(&directory(), &listener(Some("docker.io")), Some(host), path, query)
    }

    fn resource(target: &str) -> Route {
        match go("localhost:5000", target) {
            Ok(Routed::Resource(route)) => route,
            other => panic!("{target}: {other:?}"),
        }
    }

    /// Upstream, repository and form in one text.
    fn means(route: &Route) -> String {
        let repo = route.repo().map_or_else(String::new, ToString::to_string);
        format!("{} {repo} {}", route.upstream, route.form.as_str())
    }

    #[test]
    fn all_forms_of_address() {
        for (target, expected) in [
            ("/v2/library/alpine/manifests/3.20?ns=docker.io", "docker.io library/alpine ns"),
            ("/v2/org/app/manifests/1?ns=ghcr.io", "ghcr.io org/app ns"),
            ("/v2/org/app/manifests/1?ns=GHCR.io", "ghcr.io org/app ns"),
            ("/v2/org/app/manifests/1?ns=ghcr.io:443", "ghcr.io org/app ns"),
            ("/v2/org/app/manifests/1?ns=localhost:5001", "localhost-5001 org/app ns"),
            ("/v2/org/app/manifests/1?ns=localhost%3A5001", "localhost-5001 org/app ns"),
            ("/v2/org/app/manifests/1?ns=index.docker.io", "docker.io org/app ns"),
            ("/v2/org/app/manifests/1?ns=registry.hub.docker.com", "docker.io org/app ns"),
            ("/v2/my.org/app/manifests/1?ns=ghcr.io", "ghcr.io my.org/app ns"),
            ("/v2/ghcr.io/app/manifests/1?ns=ghcr.io", "ghcr.io app prefix"),
            ("/v2/docker.io/library/debian/manifests/1?ns=docker.io", "docker.io library/debian prefix"),
            ("/v2/quay.io/app/manifests/1?ns=ghcr.io", "ghcr.io quay.io/app ns"),
            ("/ghcr.io/v2/org/app/manifests/1", "ghcr.io org/app path"),
            ("/hub-private/v2/org/app/manifests/1?ns=docker.io", "hub-private org/app path"),
            ("/localhost:5001/v2/org/app/manifests/1", "localhost-5001 org/app path"),
            ("/docker.io/v2/alpine/manifests/1", "docker.io library/alpine path"),
            ("/v2/ghcr.io/org/app/manifests/1", "ghcr.io org/app prefix"),
            ("/v2/docker.io/alpine/manifests/1", "docker.io library/alpine prefix"),
            ("/v2/docker.io/library/alpine/manifests/1", "docker.io library/alpine prefix"),
            ("/v2/localhost:5001/app/manifests/1", "localhost-5001 app prefix"),
            ("/v2/team/app/manifests/1", "team app prefix"),
            ("/v2/ghcr.io/_catalog", "ghcr.io  prefix"),
            ("/v2/alpine/manifests/1", "docker.io library/alpine default"),
            ("/v2/team/manifests/1", "docker.io library/team default"),
            ("/v2/ghcr.io/manifests/1", "docker.io library/ghcr.io default"),
            ("/v2/org/app/manifests/1", "docker.io org/app default"),
            ("/v2/_catalog?n=10", "docker.io  default"),
        ] {
            assert_eq!(means(&resource(target)), expected, "{target}");
        }
    }

    #[test]
    fn a_mapped_host_name_has_no_prefixes() {
        for host in [
            "my.azurecr.io",
            "MY.azurecr.io",
            "my.azurecr.io:80",
            "my.azurecr.io:5000",
            "my.azurecr.io.",
            "my.azurecr.io.:80",
        ] {
            let Ok(Routed::Resource(route)) = go(host, "/v2/ghcr.io/app/manifests/1") else { panic!("{host}") };
            assert_eq!(means(&route), "my.azurecr.io ghcr.io/app host", "{host}");
        }
        for host in ["other.azurecr.io", "my.azurecr.io.evil.example", "evil.my.azurecr.io", "my.azurecr.io:x"] {
            let Ok(Routed::Resource(route)) = go(host, "/v2/a/manifests/1") else { panic!("{host}") };
            assert_eq!(route.form, Form::Default, "{host}");
        }
    }

    #[test]
    fn endpoints() {
        let repo: RepoName = "a/manifests/b".parse().unwrap();
        let digest: Digest = DIGEST.parse().unwrap();
        for (tail, expected) in [
            ("manifests/v1".to_owned(), Endpoint::Manifest(repo.clone(), "v1".parse().unwrap())),
            (format!("manifests/{DIGEST}"), Endpoint::Manifest(repo.clone(), Reference::Digest(digest))),
            (format!("blobs/{DIGEST}"), Endpoint::Blob(repo.clone(), digest)),
            (format!("referrers/{DIGEST}"), Endpoint::Referrers(repo.clone(), digest)),
            ("tags/list".to_owned(), Endpoint::Tags(repo.clone())),
            ("blobs/uploads".to_owned(), Endpoint::Uploads(repo.clone())),
            ("blobs/uploads/".to_owned(), Endpoint::Uploads(repo.clone())),
            ("blobs/uploads/some-id".to_owned(), Endpoint::Upload(repo, "some-id".to_owned())),
        ] {
            assert_eq!(resource(&format!("/v2/a/manifests/b/{tail}")).endpoint, expected, "{tail}");
        }
    }

    #[test]
    fn ping() {
        let ping = |target: &str| match go("localhost", target) {
            Ok(Routed::Ping(ping)) => ping,
            other => panic!("{target}: {other:?}"),
        };
        assert_eq!(ping("/v2/").upstream.unwrap().as_str(), "docker.io");
        assert_eq!(ping("/v2").form, Form::Default);
        assert_eq!(ping("/v2/?ns=ghcr.io").namespace.as_deref(), Some("ghcr.io"));
        assert_eq!(ping("/ghcr.io/v2/").upstream.unwrap().as_str(), "ghcr.io");
        assert_eq!(ping("/v2/ghcr.io/").upstream.unwrap().as_str(), "ghcr.io");
        let none = parse(&directory(), &listener(None), None, "/v2/", None);
        assert!(matches!(none, Ok(Routed::Ping(Ping { upstream: None, .. }))), "{none:?}");
    }

    #[test]
    fn percent_encoding_is_decoded_once() {
        let target = format!("/v2/library%2Falpine/manifests/{}", DIGEST.replace(':', "%3A"));
        let route = resource(&target);
        assert_eq!(route.endpoint, Endpoint::Manifest("library/alpine".parse().unwrap(), DIGEST.parse().unwrap()));
        for target in [
            "/v2/library%252Falpine/manifests/1",
            "/v2/a/manifests/%2531",
            "/v2/a%00b/manifests/1",
            "/v2/a%5cb/manifests/1",
            "/v2/a\\b/manifests/1",
            "/v2/../a/manifests/1",
            "/v2/a/%2e%2e/b/manifests/1",
            "/v2/a/..%2fb/manifests/1",
            "/v2/a/./b/manifests/1",
            "/v2/a/manifests/..",
            "/v2/a/manifests/%zz",
            "/v2/a%ff/manifests/1",
            "/v2/%C3%A9/manifests/1",
            "/v2/a%20b/manifests/1",
            "/v2/a%0d%0ab/manifests/1",
            "/..%2fetc/v2/a/manifests/1",
            "/v2/a/manifests/1?ns=%ff",
        ] {
            assert_eq!(go("localhost", target), Err(RouteError::Malformed), "{target}");
        }
    }

    #[test]
    fn what_is_outside_the_grammar() {
        for target in
            ["/v2/A/manifests/1", "/v2//a/manifests/1", "/v2/a//b/manifests/1", "/v2/_a/manifests/1", "/v2/manifests/1"]
        {
            assert!(matches!(go("localhost", target), Err(RouteError::Name(_))), "{target}");
        }
        for target in ["/v2/a/manifests/", "/v2/a/manifests/-x", "/v2/a/manifests/a+b"] {
            assert!(matches!(go("localhost", target), Err(RouteError::Tag(_))), "{target}");
        }
        for target in
            ["/v2/a/manifests/sha256:baddigeststring", "/v2/a/blobs/latest", "/v2/a/blobs/", "/v2/a/referrers/x"]
        {
            assert!(matches!(go("localhost", target), Err(RouteError::Digest(_))), "{target}");
        }
        for target in [
            "/",
            "",
            "*",
            "/v1/a",
            "/v2/a",
            "/v2/a/",
            "/v2/a/b",
            "/v2/a/tags",
            "/v2x/a/manifests/1",
            "/a/b/v2/c/manifests/1",
            "/ghcr.io",
        ] {
            assert_eq!(go("localhost", target), Err(RouteError::NoEndpoint), "{target}");
        }
    }

    #[test]
    fn an_unknown_host_is_named_and_never_guessed() {
        for (target, host, table) in [
            ("/v2/a/manifests/1?ns=evil.example", "evil.example", "evil.example"),
            ("/v2/a/manifests/1?ns=", "", ""),
            ("/v2/?ns=evil.example", "evil.example", "evil.example"),
            ("/evil.example/v2/a/manifests/1", "evil.example", "evil.example"),
            ("/nobody/v2/a/manifests/1", "nobody", "nobody"),
            ("/v2/evil.example/a/manifests/1", "evil.example", "evil.example"),
            ("/v2/evil.example/a/b/manifests/1", "evil.example", "evil.example"),
            ("/v2/Evil:8443/a/manifests/1", "Evil:8443", "evil-8443"),
            ("/v2/localhost/a/manifests/1", "localhost", "localhost"),
            ("/v2/art.example/a/manifests/1", "art.example", "art.example"),
            ("/v2/evil.example/_catalog", "evil.example", "evil.example"),
        ] {
            let expected = RouteError::UnknownUpstream { host: host.to_owned(), table: table.to_owned() };
            assert_eq!(go("localhost", target), Err(expected.clone()), "{target}");
            assert!(expected.to_string().contains(&format!("[upstream.\"{table}\"]")), "{expected}");
        }
        let none = parse(&directory(), &listener(None), None, "/v2/org/app/manifests/1", None);
        assert_eq!(none, Err(RouteError::NoDefault));
    }

    #[test]
    fn the_query_loses_ns_and_nothing_else() {
        let route = resource("/v2/a/tags/list?n=5&ns=ghcr.io&last=a%2Bb&x");
        assert_eq!((route.query.as_str(), route.namespace.as_deref()), ("n=5&last=a%2Bb&x", Some("ghcr.io")));
        assert_eq!(go("h", "/v2/a/tags/list?ns=ghcr.io&ns=docker.io"), Err(RouteError::AmbiguousNamespace));
        assert_eq!(resource("/v2/a/tags/list?ns=ghcr.io&ns=ghcr.io").query, "");
        assert_eq!(resource("/ghcr.io/v2/a/tags/list?ns=ghcr.io").namespace.as_deref(), Some("ghcr.io"));
        assert_eq!(resource("/ghcr.io/v2/a/tags/list?ns=quay.io").namespace, None, "the path decided, not `ns`");
    }

    #[test]
    fn a_link_keeps_the_form_of_address() {
        let link = |target: &str| resource(target).local_target("/v2/org/app/tags/list?n=2&last=b").unwrap();
        assert_eq!(link("/v2/org/app/tags/list?n=2"), "/v2/org/app/tags/list?n=2&last=b");
        assert_eq!(link("/v2/ghcr.io/org/app/tags/list"), "/v2/ghcr.io/org/app/tags/list?n=2&last=b");
        assert_eq!(link("/ghcr.io/v2/org/app/tags/list"), "/ghcr.io/v2/org/app/tags/list?n=2&last=b");
        assert_eq!(
            link("/v2/org/app/tags/list?ns=localhost:5001"),
            "/v2/org/app/tags/list?n=2&last=b&ns=localhost%3A5001"
        );
        assert_eq!(resource("/v2/a/tags/list").local_target("https://elsewhere/v2/a"), None);
        let behind_a_proxy = Route { base: "/sub".to_owned(), ..resource("/v2/ghcr.io/org/app/tags/list") };
        assert_eq!(behind_a_proxy.local_target("/v2/a/tags/list").unwrap(), "/sub/v2/ghcr.io/a/tags/list");
        // What the link says leads to the same place.
        for target in
            ["/v2/ghcr.io/org/app/tags/list", "/ghcr.io/v2/org/app/tags/list", "/v2/org/app/tags/list?ns=ghcr.io"]
        {
            let route = resource(target);
            assert_eq!(resource(&link(target)).endpoint, route.endpoint);
            assert_eq!(resource(&link(target)).upstream, route.upstream);
        }
    }

    #[test]
    fn the_path_of_the_public_url_stands_before_links() {
        for (url, base) in
            [(None, ""), (Some("https://cache.example"), ""), (Some("https://cache.example:8443/sub/dir"), "/sub/dir")]
        {
            let listener = Listener { public_url: url.map(str::to_owned), ..listener(Some("docker.io")) };
            let routed = parse(&directory(), &listener, Some("x"), "/v2/org/app/tags/list", None);
            let Ok(Routed::Resource(route)) = routed else { panic!("{url:?}: {routed:?}") };
            assert_eq!(
                route.local_target("/v2/org/app/tags/list?n=1").unwrap(),
                format!("{base}/v2/org/app/tags/list?n=1")
            );
        }
    }

    #[test]
    fn resources_of_azure_in_every_form_of_address() {
        for (target, expected, link) in [
            ("/acr/v1/org/app/_tags/1?ns=ghcr.io", "ghcr.io org/app ns", "/acr/v1/org/app/_tags?last=b&ns=ghcr.io"),
            ("/ghcr.io/acr/v1/org%2Fapp/_tags", "ghcr.io org/app path", "/ghcr.io/acr/v1/org/app/_tags?last=b"),
            ("/acr/v1/ghcr.io/org/app", "ghcr.io org/app prefix", "/acr/v1/ghcr.io/org/app/_tags?last=b"),
            ("/acr/v1/team/_catalog", "team  prefix", "/acr/v1/team/org/app/_tags?last=b"),
            ("/acr/v1/team/_tags", "docker.io team default", "/acr/v1/org/app/_tags?last=b"),
            ("/acr/v1/org/app", "docker.io org/app default", "/acr/v1/org/app/_tags?last=b"),
        ] {
            let route = resource(target);
            assert_eq!(means(&route), expected, "{target}");
            assert_eq!(route.local_target("/acr/v1/org/app/_tags?last=b").unwrap(), link, "{target}");
        }
        let Ok(Routed::Resource(route)) = go("my.azurecr.io", "/acr/v1/ghcr.io/app/_manifests") else { panic!() };
        assert_eq!(means(&route), "my.azurecr.io ghcr.io/app host");
        for target in ["/acr/v1/", "/acr/v1", "/acr", "/acr/v2/a", "/ghcr.io/acr/v1/"] {
            assert!(go("localhost", target).is_err(), "{target}");
        }
        assert!(matches!(go("h", "/acr/v1/evil.example/a"), Err(RouteError::UnknownUpstream { .. })));
    }

    #[test]
    fn what_is_mounted_comes_from_where_the_client_means() {
        let source = |target: &str, from: &str| {
            let (directory, listener) = (directory(), listener(Some("docker.io")));
            let source = mount_source(&directory, &listener, &resource(target), from);
            source.map(|(upstream, repo)| format!("{upstream} {repo}"))
        };
        for (target, from, expected) in [
            ("/v2/org/app/blobs/uploads/", "org/base", Some("docker.io org/base")),
            ("/v2/org/app/blobs/uploads/", "alpine", Some("docker.io library/alpine")),
            ("/v2/org/app/blobs/uploads/", "ghcr.io/org/base", Some("ghcr.io org/base")),
            ("/v2/ghcr.io/org/app/blobs/uploads/", "ghcr.io/org/base", Some("ghcr.io org/base")),
            ("/v2/ghcr.io/org/app/blobs/uploads/", "org/base", Some("docker.io org/base")),
            ("/ghcr.io/v2/org/app/blobs/uploads/", "org/base", Some("ghcr.io org/base")),
            ("/v2/org/app/blobs/uploads/?ns=ghcr.io", "org/base", Some("ghcr.io org/base")),
            ("/v2/org/app/blobs/uploads/", "../x", None),
            ("/v2/org/app/blobs/uploads/", "A", None),
        ] {
            assert_eq!(source(target, from).as_deref(), expected, "{target} from {from}");
        }
    }

    #[test]
    fn a_name_beats_a_host_name() {
        let directory = directory();
        assert_eq!(directory.get("registry-1.docker.io").unwrap().as_str(), "docker.io");
        assert_eq!(directory.get("hub-private").unwrap().as_str(), "hub-private");
        assert_eq!(directory.get("localhost"), None, "a port that is not the scheme's is part of the name");
        let only_private = Directory::of(&BTreeMap::from([upstream("hub-private", "https://registry-1.docker.io")]));
        assert_eq!(only_private.get("docker.io").unwrap().as_str(), "hub-private");
    }

    static DIRECTORY: LazyLock<Directory> = LazyLock::new(directory);

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(10_000))]
        #[test]
        fn nothing_outside_the_grammar_gets_through(
            path in "(/(v2|ghcr\\.io|[a-zA-Z0-9._%:\\\\-]{0,8}|manifests|blobs|uploads|tags|list|%2[fF]|%2e%2e|%00)){0,7}/?",
            query in prop::option::of("(ns=(ghcr\\.io|[!-~]{0,8})&?|[a-z]=[a-z%]{0,3}&?){0,3}"),
            host in prop::option::of("[ -~]{0,12}"),
        ) {
            let routed = parse(&DIRECTORY, &listener(Some("docker.io")), host.as_deref(), &path, query.as_deref());
            if let Ok(Routed::Resource(route)) = routed {
                prop_assert!(DIRECTORY.get(route.upstream.as_str()).is_some());
                if let Some(repo) = route.repo() {
                    prop_assert_eq!(&repo.as_str().parse::<RepoName>().unwrap(), repo);
                    prop_assert!(!repo.as_str().contains(".."), "{}", repo);
                }
            }
        }

        #[test]
        fn no_text_makes_it_panic(path in "\\PC{0,40}", query in "\\PC{0,40}", host in "\\PC{0,20}") {
            let _ = parse(&DIRECTORY, &listener(None), Some(&host), &path, Some(&query));
        }
    }
}
