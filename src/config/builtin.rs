//! The upstreams that are there without any configuration.

use std::time::Duration;

use super::{BaseUrl, Credentials, PushBy, TagPolicy, Transfer, Upstream};
use crate::oci::UpstreamName;

/// The upstream that a bare name means where nothing else was said.
pub(super) const DEFAULT_UPSTREAM: &str = "docker.io";

/// Hosts that are all Docker Hub: its name, the one its API is served at, and the one in old credential files.
const DOCKER_HUB: [&str; 3] = ["docker.io", "registry-1.docker.io", "index.docker.io"];

/// Where Docker Hub issues tokens.
const DOCKER_HUB_TOKENS: &str = "auth.docker.io";

/// Name and host of the API.
///
/// Only Docker Hub has its token realm on another host: ghcr.io, quay.io, gcr.io and public.ecr.aws issue tokens on their own host,
/// mcr.microsoft.com needs none. registry.k8s.io answers with redirects to regional hosts, each of which is
/// challenged, if at all, by itself and without credentials.
const BUILTIN: [(&str, &str); 7] = [
    ("docker.io", "registry-1.docker.io"),
    ("ghcr.io", "ghcr.io"),
    ("quay.io", "quay.io"),
    ("gcr.io", "gcr.io"),
    ("registry.k8s.io", "registry.k8s.io"),
    ("mcr.microsoft.com", "mcr.microsoft.com"),
    ("public.ecr.aws", "public.ecr.aws"),
];

/// Their names.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    BUILTIN.iter().map(|&(name, _)| name)
}

/// Where a host is by its name alone.
pub(super) fn url(host: &str) -> BaseUrl {
    BaseUrl { https: true, host: host.to_owned(), port: 443, prefix: String::new() }
}

/// All of them.
pub(super) fn upstreams() -> Vec<Upstream> {
    // Every name parses: a test counts them.
    BUILTIN.iter().filter_map(|(name, host)| Some(fresh(name.parse().ok()?, url(host)))).collect()
}

/// An upstream of which nothing is known but name and URL; Docker Hub's own ways come with its URL.
pub(super) fn fresh(name: UpstreamName, url: BaseUrl) -> Upstream {
    let hub = is_docker_hub(&url);
    Upstream {
        name,
        url,
        credentials: Credentials::Auto,
        tags: TagPolicy::For(super::DEFAULT_TAGS),
        rules: Vec::new(),
        library: hub,
        ca: None,
        token_hosts: if hub { vec![DOCKER_HUB_TOKENS.to_owned()] } else { Vec::new() },
        connect: Vec::new(),
        mirrors: Vec::new(),
        transfer: Transfer::default(),
        push: PushBy::Client,
        public_for: super::DEFAULT_PUBLIC,
        access_ttl: super::DEFAULT_ACCESS,
        access_stale: Duration::ZERO,
        reserve: super::DEFAULT_RESERVE,
        relay_credentials: false,
        sealed: false,
    }
}

/// Whether a URL is Docker Hub's, by any of its names.
pub(super) fn is_docker_hub(url: &BaseUrl) -> bool {
    url.https && url.port == 443 && url.prefix.is_empty() && DOCKER_HUB.contains(&url.host.as_str())
}

/// `docker.io` itself is a web site; its registry is elsewhere.
pub(super) fn api_url(url: BaseUrl) -> BaseUrl {
    if is_docker_hub(&url) { BaseUrl { host: "registry-1.docker.io".to_owned(), ..url } } else { url }
}
