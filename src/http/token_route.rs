//! Paths of token endpoints, and what the names in scopes mean there. Pure, like [`super::route`].
//!
//! `/oauth2/token` belongs to the upstream that the Host is mapped to, else to the listener's default; az and the SDKs
//! of Azure replace the path of a realm by `/oauth2/exchange`. Other upstreams have `/_ocistern/UPSTREAM/token`, and
//! everything exists below `/UPSTREAM` and below the path of `public_url` too.

use super::route::{Directory, Form, RouteError, looks_like_host, mapped, public_path};
use crate::config::Listener;
use crate::oci::{Resource, Scope, UpstreamName};

/// A request to a token endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenRoute {
    /// The upstream that was meant, if any is: a listener may have no default.
    pub upstream: Option<UpstreamName>,
    /// How it was addressed: [`Form::Hostname`], [`Form::Default`], or [`Form::Path`] where the path names it.
    pub form: Form,
    /// What is asked for.
    pub what: TokenEndpoint,
}

/// What a token endpoint gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenEndpoint {
    /// Access tokens.
    Token,
    /// Refresh tokens, for tokens of another authority (Azure Container Registry).
    Exchange,
}

/// The realm's path for the default upstream, or the one of the Host.
pub(super) const TOKEN_PATH: &str = "/oauth2/token";
/// Before the name of another upstream in a realm's path.
pub(super) const OTHERS: &str = "_ocistern";

/// The token endpoint that a path means; none: it is something else. `path` is decoded.
pub(super) fn parse(
    directory: &Directory,
    listener: &Listener,
    host: Option<&str>,
    path: &str,
) -> Result<Option<TokenRoute>, RouteError> {
    // The proxy in front may or may not have taken it off.
    let path = path.strip_prefix(public_path(listener)).filter(|rest| rest.starts_with('/')).unwrap_or(path);
    if path == "/v2" || path.starts_with("/v2/") {
        return Ok(None);
    }
    let parts: Vec<&str> = path.split('/').skip(1).collect();
    let (named, what) = match *parts.as_slice() {
        [OTHERS, upstream, "token"] | [_, OTHERS, upstream, "token"] => (Some(upstream), TokenEndpoint::Token),
        ["oauth2", last] => (None, endpoint(last)?),
        [upstream, "oauth2", last] | [OTHERS, upstream, "oauth2", last] => (Some(upstream), endpoint(last)?),
        _ => return Ok(None),
    };
    let (upstream, form) = match named {
        Some(named) => (Some(directory.lookup(named)?.name.clone()), Form::Path),
        None => match mapped(listener, host) {
            Some(name) => (Some(directory.lookup(name.as_str())?.name.clone()), Form::Hostname),
            None => (listener.default_upstream.clone(), Form::Default),
        },
    };
    Ok(Some(TokenRoute { upstream, form, what }))
}

fn endpoint(last: &str) -> Result<TokenEndpoint, RouteError> {
    match last {
        "token" => Ok(TokenEndpoint::Token),
        "exchange" => Ok(TokenEndpoint::Exchange),
        _ => Err(RouteError::NoEndpoint),
    }
}

// === impl TokenRoute ===

impl TokenRoute {
    /// Whose resource a scope means, and the scope by that upstream's own names. None: nobody's that is configured.
    pub(super) fn place(&self, directory: &Directory, scope: Scope) -> Option<(UpstreamName, Scope)> {
        let Resource::Repository { host, repo } = &scope.resource else {
            return Some((self.upstream.clone()?, scope));
        };
        let (key, rest) = match (host, repo.as_str().split_once('/')) {
            (Some(host), _) => (Some(host.as_str()), Some(repo.clone())),
            (None, Some((first, rest))) => (Some(first), rest.parse().ok()),
            (None, None) => (None, None),
        };
        let prefix = key.zip(rest).and_then(|(key, rest)| Some((directory.lookup(key).ok()?, rest)));
        let own = self.upstream.as_ref().and_then(|name| directory.lookup(name.as_str()).ok());
        let (entry, repo) = match (self.form, prefix) {
            // No repository begins with the host name of its own registry.
            (Form::Path, Some((entry, rest))) if own.is_some_and(|own| own.name == entry.name) => (entry, rest),
            // What cannot be a part of a name is a host, and none that is meant here.
            (Form::Path | Form::Hostname, _) if host.is_some() => return None,
            // Behind a mapped name or a named path stands one registry: what looks like a prefix is a part of the name.
            (Form::Path | Form::Hostname, _) => (own?, repo.clone()),
            (_, Some((entry, rest))) => (entry, rest),
            (_, None) if key.is_some_and(looks_like_host) => return None,
            (_, None) => (own?, repo.clone()),
        };
        let repo = if entry.library { repo.with_library() } else { repo };
        Some((entry.name.clone(), Scope::repository(repo, scope.actions)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn world() -> (Directory, Listener) {
        let config = Config::from_toml(
            r#"
            [[listener]]
            address = "127.0.0.1:0"
            public_url = "https://cache.example/base"
            hostnames = { "my.azurecr.io" = "my.azurecr.io" }
            [upstream."my.azurecr.io"]
            url = "https://my.azurecr.io"
            [upstream."localhost-5001"]
            url = "http://localhost:5001"
            "#,
        )
        .unwrap();
        (Directory::new(&config), config.listeners.first().unwrap().clone())
    }

    fn go(host: &str, path: &str) -> Result<Option<TokenRoute>, RouteError> {
        let (directory, listener) = world();
        parse(&directory, &listener, Some(host), path)
    }

    #[test]
    fn paths() {
        use TokenEndpoint::{Exchange, Token};
        for (host, path, upstream, form, what) in [
            ("localhost:5000", "/oauth2/token", "docker.io", Form::Default, Token),
            ("localhost:5000", "/oauth2/exchange", "docker.io", Form::Default, Exchange),
            ("localhost:5000", "/base/oauth2/token", "docker.io", Form::Default, Token),
            ("my.azurecr.io", "/oauth2/token", "my.azurecr.io", Form::Hostname, Token),
            ("my.azurecr.io:443", "/oauth2/exchange", "my.azurecr.io", Form::Hostname, Exchange),
            ("my.azurecr.io", "/base/oauth2/exchange", "my.azurecr.io", Form::Hostname, Exchange),
            ("localhost:5000", "/_ocistern/ghcr.io/token", "ghcr.io", Form::Path, Token),
            ("my.azurecr.io", "/_ocistern/ghcr.io/token", "ghcr.io", Form::Path, Token),
            ("localhost:5000", "/base/_ocistern/GHCR.io/token", "ghcr.io", Form::Path, Token),
            ("localhost:5000", "/_ocistern/ghcr.io/oauth2/token", "ghcr.io", Form::Path, Token),
            ("localhost:5000", "/_ocistern/ghcr.io/oauth2/exchange", "ghcr.io", Form::Path, Exchange),
            ("localhost:5000", "/ghcr.io/oauth2/token", "ghcr.io", Form::Path, Token),
            ("localhost:5000", "/localhost:5001/oauth2/exchange", "localhost-5001", Form::Path, Exchange),
            ("localhost:5000", "/ghcr.io/_ocistern/quay.io/token", "quay.io", Form::Path, Token),
        ] {
            let route = go(host, path).unwrap().unwrap_or_else(|| panic!("{path}"));
            assert_eq!(route, TokenRoute { upstream: upstream.parse().ok(), form, what }, "{host} {path}");
        }
        for path in [
            "/",
            "/v2/",
            "/token",
            "/oauth2",
            "/_ocistern/ghcr.io",
            "/x/y/z/token",
            "/v2/oauth2/tags",
            "/v2/_ocistern/x/token",
        ] {
            assert_eq!(go("localhost:5000", path), Ok(None), "{path}");
        }
        for path in ["/oauth2/x", "/oauth2/", "/_ocistern/nobody.example/token", "/nobody.example/oauth2/token"] {
            assert!(go("localhost:5000", path).is_err(), "{path}");
        }
    }

    #[test]
    fn names_in_scopes() {
        let (directory, _) = world();
        let route =
            |upstream: &str, form| TokenRoute { upstream: upstream.parse().ok(), form, what: TokenEndpoint::Token };
        let at_default = route("docker.io", Form::Default);
        let at_ghcr = route("ghcr.io", Form::Path);
        let at_host = route("my.azurecr.io", Form::Hostname);
        let nowhere = TokenRoute { upstream: None, ..at_default.clone() };
        for (route, scope, expected) in [
            (&at_default, "repository:alpine:pull", "docker.io repository:library/alpine:pull"),
            (&at_default, "repository:org/app:pull,push", "docker.io repository:org/app:pull,push"),
            (&at_default, "repository:ghcr.io/org/app:pull", "ghcr.io repository:org/app:pull"),
            (&at_default, "repository:docker.io/alpine:pull", "docker.io repository:library/alpine:pull"),
            (&at_default, "repository:localhost:5001/app:pull", "localhost-5001 repository:app:pull"),
            (&at_default, "repository:nobody.example/app:pull", "none"),
            (&at_default, "repository:nobody:5001/app:pull", "none"),
            (&at_default, "registry:catalog:*", "docker.io registry:catalog:*"),
            (&at_ghcr, "repository:org/app:pull", "ghcr.io repository:org/app:pull"),
            (&at_ghcr, "repository:ghcr.io/org/app:pull", "ghcr.io repository:org/app:pull"),
            (&at_ghcr, "repository:localhost:5001/app:pull", "none"),
            (&at_ghcr, "repository:quay.io/org/app:pull", "ghcr.io repository:quay.io/org/app:pull"),
            (&at_host, "repository:ghcr.io/app:pull", "my.azurecr.io repository:ghcr.io/app:pull"),
            (&at_host, "repository:localhost:5001/app:pull", "none"),
            (&nowhere, "repository:ghcr.io/org/app:pull", "ghcr.io repository:org/app:pull"),
            (&nowhere, "repository:org/app:pull", "none"),
            (&nowhere, "registry:catalog:*", "none"),
        ] {
            let placed = route.place(&directory, scope.parse().unwrap());
            let shown = placed.map_or("none".to_owned(), |(upstream, scope)| format!("{upstream} {scope}"));
            assert_eq!(shown, expected, "{scope} at {:?}", route.upstream);
        }
    }
}
