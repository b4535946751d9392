//! Where a request came by, which upstream a credential shown there belongs to, and the challenge that asks for one.
//!
//! The challenge has exactly the form of Azure Container Registry's: one scheme, parameters in this order, no space
//! after commas. az splits it by hand.

use std::borrow::Cow;

use http::header::WWW_AUTHENTICATE;
use http::{HeaderValue, StatusCode};

use super::respond::Failure;
use super::route::{mapped, public_path};
use super::token_route::{OTHERS, TOKEN_PATH};
use crate::config::{Address, Listener, Upstream};
use crate::oci::{ErrorCode, UpstreamName};

/// A listener, and the name by which a client reached it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place<'a> {
    pub(super) listener: &'a Listener,
    /// The `Host` field or authority.
    pub(super) host: Option<&'a str>,
}

/// What was wrong with the token that was shown (RFC 6750, section 3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TokenError {
    /// Expired, altered, not one of ours, or one that upstream does not take any more.
    Invalid,
    /// Not for this.
    Scope,
}

// === impl Place ===

impl<'a> Place<'a> {
    /// The upstream that credentials belong to here: a client keeps one for a host and port.
    pub(super) fn home(&self) -> Option<&'a UpstreamName> {
        mapped(self.listener, self.host).or(self.listener.default_upstream.as_ref())
    }

    /// Whether a credential that is shown here may go to `upstream`.
    pub(super) fn belongs_to(&self, upstream: &Upstream) -> bool {
        upstream.relay_credentials || self.home() == Some(&upstream.name)
    }

    /// Where tokens for `upstream` are to be had.
    pub(super) fn realm(&self, upstream: Option<&UpstreamName>) -> String {
        let (scheme, authority) = (self.scheme(), self.authority());
        // Behind a mapped name nobody takes a path off.
        let base = if mapped(self.listener, self.host).is_some() { "" } else { public_path(self.listener) };
        match upstream {
            Some(upstream) if self.home() != Some(upstream) => {
                format!("{scheme}://{authority}{base}/{OTHERS}/{upstream}/token")
            }
            _ => format!("{scheme}://{authority}{base}{TOKEN_PATH}"),
        }
    }

    fn scheme(&self) -> &'a str {
        match self.listener.public_url.as_deref().and_then(|url| url.split_once("://")) {
            Some((scheme, _)) => scheme,
            None if self.listener.tls.is_some() => "https",
            None => "http",
        }
    }

    /// Host and port as clients know them.
    pub(super) fn authority(&self) -> Cow<'a, str> {
        let plain = |host: &&str| {
            let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b':' | b'[' | b']');
            !host.is_empty() && host.bytes().all(plain)
        };
        let host = self.host.filter(plain);
        let public = self.listener.public_url.as_deref().and_then(|url| url.split_once("://")).map(|(_, rest)| rest);
        let public = public.map(|rest| rest.split_once('/').map_or(rest, |(authority, _)| authority));
        match public {
            Some(public) if mapped(self.listener, self.host).is_none() => public.into(),
            _ => host.map_or_else(|| self.address(), Into::into),
        }
    }

    fn address(&self) -> Cow<'a, str> {
        match &self.listener.address {
            Address::Tcp(address) => address.to_string().into(),
            Address::Unix(_) => "localhost".into(),
        }
    }

    /// A 401 that says where to get a token for `upstream`. `scope` is in the client's words.
    pub(super) fn challenge(
        &self,
        upstream: Option<&UpstreamName>,
        scope: Option<&str>,
        error: Option<TokenError>,
        message: impl Into<String>,
    ) -> Failure {
        let mut text = format!("Bearer realm=\"{}\",service=\"{}\"", self.realm(upstream), self.authority());
        let parameters = [("scope", scope), ("error", error.map(TokenError::as_str))];
        for (name, value) in parameters {
            if let Some(value) = value {
                text.extend([",", name, "=\"", value, "\""]);
            }
        }
        let failure = Failure::new(StatusCode::UNAUTHORIZED, ErrorCode::Unauthorized, message);
        match HeaderValue::try_from(text) {
            Ok(value) => failure.with_header(WWW_AUTHENTICATE, value),
            Err(_) => failure,
        }
    }
}

// === impl TokenError ===

impl TokenError {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Invalid => "invalid_token",
            Self::Scope => "insufficient_scope",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn config(listener: &str) -> Config {
        let listener = format!("[[listener]]\naddress = \"127.0.0.1:5000\"\n{listener}\n");
        let upstreams = "[upstream.\"my.azurecr.io\"]\nurl = \"https://my.azurecr.io\"\n\
                         [upstream.\"ghcr.io\"]\nrelay_credentials = true\n";
        Config::from_toml(&format!("{listener}{upstreams}")).unwrap()
    }

    const MAPPED: &str = r#"hostnames = { "my.azurecr.io" = "my.azurecr.io" }"#;

    #[test]
    fn realms() {
        let tls = r#"tls = { certificate = "c", key = "k" }"#;
        let public = "public_url = \"https://cache.example/base\"";
        for (listener, host, upstream, realm, service) in [
            (MAPPED, "my.azurecr.io", "my.azurecr.io", "http://my.azurecr.io/oauth2/token", "my.azurecr.io"),
            (&format!("{MAPPED}\n{tls}"), "my.azurecr.io", "", "https://my.azurecr.io/oauth2/token", "my.azurecr.io"),
            (
                &format!("{MAPPED}\n{public}"),
                "my.azurecr.io:8443",
                "my.azurecr.io",
                "https://my.azurecr.io:8443/oauth2/token",
                "my.azurecr.io:8443",
            ),
            (
                &format!("{MAPPED}\n{public}"),
                "inner:5000",
                "docker.io",
                "https://cache.example/base/oauth2/token",
                "cache.example",
            ),
            (public, "inner:5000", "ghcr.io", "https://cache.example/base/_ocistern/ghcr.io/token", "cache.example"),
            ("", "localhost:5000", "docker.io", "http://localhost:5000/oauth2/token", "localhost:5000"),
            ("", "[::1]:5000", "ghcr.io", "http://[::1]:5000/_ocistern/ghcr.io/token", "[::1]:5000"),
            (MAPPED, "my.azurecr.io", "ghcr.io", "http://my.azurecr.io/_ocistern/ghcr.io/token", "my.azurecr.io"),
            ("", "evil\",realm=\"x", "docker.io", "http://127.0.0.1:5000/oauth2/token", "127.0.0.1:5000"),
            ("", "", "docker.io", "http://127.0.0.1:5000/oauth2/token", "127.0.0.1:5000"),
        ] {
            let config = config(listener);
            let place = Place { listener: config.listeners.first().unwrap(), host: Some(host) };
            let upstream = upstream.parse().ok();
            assert_eq!(place.realm(upstream.as_ref()), realm, "{listener} {host}");
            assert_eq!(place.authority(), service, "{listener} {host}");
        }
    }

    #[test]
    fn the_challenge_has_the_form_of_azures() {
        let config = config(MAPPED);
        let place = Place { listener: config.listeners.first().unwrap(), host: Some("my.azurecr.io") };
        let upstream = "my.azurecr.io".parse().unwrap();
        let text = |scope, error| {
            let response = place.challenge(Some(&upstream), scope, error, "x").into_response();
            assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
            response.headers()[WWW_AUTHENTICATE].to_str().unwrap().to_owned()
        };
        assert_eq!(text(None, None), r#"Bearer realm="http://my.azurecr.io/oauth2/token",service="my.azurecr.io""#);
        assert_eq!(
            text(Some("repository:a/b:pull"), Some(TokenError::Scope)),
            r#"Bearer realm="http://my.azurecr.io/oauth2/token",service="my.azurecr.io",scope="repository:a/b:pull",error="insufficient_scope""#
        );
        assert!(text(None, Some(TokenError::Invalid)).ends_with(r#",error="invalid_token""#));
    }

    #[test]
    fn whose_a_credential_is() {
        let config = config(MAPPED);
        let listener = config.listeners.first().unwrap();
        let belongs = |host: &str, upstream: &str| {
            let upstream = &config.upstreams[&upstream.parse().unwrap()];
            Place { listener, host: Some(host) }.belongs_to(upstream)
        };
        assert!(belongs("localhost:5000", "docker.io"));
        assert!(!belongs("localhost:5000", "my.azurecr.io"));
        assert!(!belongs("localhost:5000", "quay.io"));
        assert!(belongs("localhost:5000", "ghcr.io"), "by relay_credentials");
        assert!(belongs("my.azurecr.io", "my.azurecr.io"));
        assert!(!belongs("my.azurecr.io", "docker.io"), "behind a mapped name the default has no part");
    }
}
