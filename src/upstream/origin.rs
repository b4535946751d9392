//! Scheme, host and port: what a credential is bound to, and which URLs are dialled at all.
#![warn(clippy::indexing_slicing)]

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

use http::Uri;
use http::uri::{Authority, PathAndQuery, Scheme};

use super::call::Location;
use crate::config::BaseUrl;

/// Longest URL that is taken from an upstream: signed storage URLs have 2 to 4 KiB.
pub(crate) const MAX_URL: usize = 16 * 1024;

/// Scheme, host and port.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Origin {
    /// https, else http.
    pub(crate) https: bool,
    /// Lower case; IPv6 in brackets.
    pub(crate) host: String,
    /// Never 0.
    pub(crate) port: u16,
}

/// A URL that came from an upstream and may be dialled as far as its form goes. The path and query are exactly the
/// bytes that came: storage signs them.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Url {
    pub(crate) origin: Origin,
    pub(crate) target: PathAndQuery,
}

/// Why a URL is not dialled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UrlFault {
    /// Not a URL.
    #[error("the URL is malformed")]
    Malformed,
    /// Neither https nor http.
    #[error("the URL is neither https nor http")]
    Scheme,
    /// `user:password@` in it.
    #[error("the URL contains user information")]
    UserInfo,
    /// The host is not a plain DNS name or address.
    #[error("the URL's host is not a plain name or address")]
    Host,
    /// Port 0, empty, or not a number.
    #[error("the URL's port is not usable")]
    Port,
    /// Longer than any URL that makes sense.
    #[error("the URL is too long")]
    TooLong,
}

// === impl Origin ===

impl Origin {
    /// Of a configured upstream.
    pub(crate) fn of_upstream(url: &BaseUrl) -> Self {
        Self { https: url.https, host: url.host.clone(), port: url.port }
    }

    /// Of a URI that this module made; others may give none.
    pub(crate) fn of(uri: &Uri) -> Option<Self> {
        let https = uri.scheme() == Some(&Scheme::HTTPS);
        let host = uri.host()?.to_ascii_lowercase();
        Some(Self { https, host, port: uri.port_u16().unwrap_or(if https { 443 } else { 80 }) })
    }

    /// The host, with the port where it is not the scheme's: as it stands in URLs and the Host header.
    pub(crate) fn authority(&self) -> String {
        if self.port == self.default_port() { self.host.clone() } else { format!("{}:{}", self.host, self.port) }
    }

    /// The address, where the host is one.
    pub(crate) fn address(&self) -> Option<IpAddr> {
        bare_host(&self.host).parse().ok()
    }

    /// `https://host[:port]`.
    fn fmt_url(&self) -> String {
        format!("{}://{}", if self.https { "https" } else { "http" }, self.authority())
    }

    const fn default_port(&self) -> u16 {
        if self.https { 443 } else { 80 }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.fmt_url())
    }
}

// === impl Url ===

impl Url {
    /// Parses `text` as an absolute URL, or as a reference relative to `base`. Nothing of the path is normalised.
    pub(crate) fn parse(text: &str, base: &Self) -> Result<Self, UrlFault> {
        if text.len() > MAX_URL {
            return Err(UrlFault::TooLong);
        }
        if text.is_empty() || !text.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(UrlFault::Malformed);
        }
        // A fragment is never sent.
        let text = text.split('#').next().unwrap_or_default();
        if let Some(rest) = text.strip_prefix("//") {
            return Self::absolute(base.origin.https, rest);
        }
        let scheme_end =
            text.find([':', '/', '?']).filter(|at| text.get(*at..).is_some_and(|rest| rest.starts_with(':')));
        if let Some(end) = scheme_end {
            let (scheme, rest) = text.split_at(end);
            let https = match scheme.to_ascii_lowercase().as_str() {
                "https" => true,
                "http" => false,
                _ => return Err(UrlFault::Scheme),
            };
            return Self::absolute(https, rest.strip_prefix("://").ok_or(UrlFault::Malformed)?);
        }
        let path = if text.starts_with('/') {
            text.to_owned()
        } else if text.starts_with('?') {
            format!("{}{text}", base.target.path())
        } else {
            let directory = base.target.path().rsplit_once('/').map_or("", |(directory, _)| directory);
            format!("{directory}/{text}")
        };
        Ok(Self { origin: base.origin.clone(), target: target(&path)? })
    }

    fn absolute(https: bool, rest: &str) -> Result<Self, UrlFault> {
        let end = rest.find(['/', '?', '\\']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        if authority.contains('@') {
            return Err(UrlFault::UserInfo);
        }
        let (host, port) = match authority.rsplit_once(':') {
            // The last colon of a bare IPv6 address is no port's.
            Some((host, port)) if !port.contains(']') => (host, Some(port)),
            _ => (authority, None),
        };
        let port = match port {
            None => {
                if https {
                    443
                } else {
                    80
                }
            }
            Some(text) if text.bytes().all(|b| b.is_ascii_digit()) => {
                text.parse().ok().filter(|port| *port != 0).ok_or(UrlFault::Port)?
            }
            Some(_) => return Err(UrlFault::Port),
        };
        let host = host.to_ascii_lowercase();
        if !is_plain_host(&host) {
            return Err(UrlFault::Host);
        }
        let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
        Ok(Self { origin: Origin { https, host, port }, target: target(&path)? })
    }

    /// On `origin`, with a target that starts with a slash.
    pub(crate) fn new(origin: Origin, path: &str) -> Result<Self, UrlFault> {
        Ok(Self { origin, target: target(path)? })
    }

    /// As it is kept by who will ask it: without the origin where that is `own`.
    pub(crate) fn location(&self, own: &Origin) -> Location {
        // A path that begins with two slashes would name a host.
        let short = self.origin == *own && !self.target.as_str().starts_with("//");
        let origin = if short { String::new() } else { self.origin.to_string() };
        Location::new(format!("{origin}{}", self.target))
    }

    /// As the client wants it.
    pub(crate) fn to_uri(&self) -> Result<Uri, UrlFault> {
        let scheme = if self.origin.https { Scheme::HTTPS } else { Scheme::HTTP };
        let authority: Authority = self.origin.authority().parse().map_err(|_| UrlFault::Host)?;
        Uri::builder()
            .scheme(scheme)
            .authority(authority)
            .path_and_query(self.target.clone())
            .build()
            .map_err(|_| UrlFault::Malformed)
    }
}

/// Without the query: signatures live there.
impl fmt::Debug for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let query = if self.target.query().is_some() { "?…" } else { "" };
        write!(f, "{}{}{query}", self.origin, self.target.path())
    }
}

/// What stands between a path that may have a query already and more of it.
pub(crate) fn query_separator(path: &str) -> &'static str {
    match (path.contains('?'), path.ends_with(['?', '&'])) {
        (false, _) => "?",
        (true, false) => "&",
        (true, true) => "",
    }
}

/// The host without the brackets of IPv6.
pub(crate) fn bare_host(host: &str) -> &str {
    host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host)
}

fn target(path: &str) -> Result<PathAndQuery, UrlFault> {
    let target = PathAndQuery::try_from(path).map_err(|_| UrlFault::Malformed)?;
    // The type may drop or repair; what storage signed must go out as it came.
    if target.as_str() == path { Ok(target) } else { Err(UrlFault::Malformed) }
}

fn is_plain_host(host: &str) -> bool {
    if host.starts_with('[') {
        return host.ends_with(']') && bare_host(host).parse::<Ipv6Addr>().is_ok();
    }
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'_');
    (1..=253).contains(&host.len()) && host.bytes().all(allowed) && !host.starts_with('.')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn base() -> Url {
        let origin = Origin { https: true, host: "reg.example".into(), port: 443 };
        Url::new(origin, "/v2/a/blobs/sha256:x?n=1").unwrap()
    }

    fn parsed(text: &str) -> String {
        let url = Url::parse(text, &base()).unwrap_or_else(|fault| panic!("{text}: {fault}"));
        url.to_uri().unwrap().to_string()
    }

    #[test]
    fn paths_stay_as_they_came() {
        for text in [
            "https://blob.example/1d6b-x//docker/registry/v2/data?se=2026&sig=a%2Fb%3D&x=/../",
            "https://blob.example//x",
            "https://blob.example:8443/a/../b/./c//",
            "https://[::1]:5000/x",
        ] {
            assert_eq!(parsed(text), text);
        }
    }

    #[test]
    fn relative_references_stay_on_the_origin() {
        assert_eq!(parsed("/x//y?z"), "https://reg.example/x//y?z");
        assert_eq!(parsed("other"), "https://reg.example/v2/a/blobs/other");
        assert_eq!(parsed("?n=2"), "https://reg.example/v2/a/blobs/sha256:x?n=2");
        assert_eq!(parsed("//cdn.example/x#part"), "https://cdn.example/x");
        assert_eq!(parsed("HTTPS://CDN.example:443?x"), "https://cdn.example/?x");
    }

    #[test]
    fn odd_urls_are_refused() {
        for (text, fault) in [
            ("file:///etc/passwd", UrlFault::Scheme),
            ("gopher://x/", UrlFault::Scheme),
            ("sha256:abc", UrlFault::Scheme),
            ("https:/x", UrlFault::Malformed),
            ("https://user@evil/", UrlFault::UserInfo),
            ("https://reg.example:pw@evil/", UrlFault::UserInfo),
            ("https://x:0/", UrlFault::Port),
            ("https://x:/", UrlFault::Port),
            ("https://x:65536/", UrlFault::Port),
            ("https://x:+443/", UrlFault::Port),
            ("https:///x", UrlFault::Host),
            ("https://%65vil/", UrlFault::Host),
            ("https://[fe80::1%25eth0]/", UrlFault::Host),
            ("https://::1/", UrlFault::Host),
            ("https://a b/", UrlFault::Malformed),
            ("", UrlFault::Malformed),
        ] {
            assert_eq!(Url::parse(text, &base()).unwrap_err(), fault, "{text}");
        }
        assert_eq!(Url::parse(&"/x".repeat(MAX_URL), &base()).unwrap_err(), UrlFault::TooLong);
    }

    #[test]
    fn a_location_that_is_kept_leads_to_the_same_place() {
        let kept = |text: &str| Url::parse(text, &base()).unwrap().location(&base().origin).as_str().to_owned();
        assert_eq!(kept("/v2/a/blobs/uploads/1?_state=a%2Fb"), "/v2/a/blobs/uploads/1?_state=a%2Fb");
        assert_eq!(kept("https://reg.example:443/x"), "/x");
        assert_eq!(kept("https://reg.example//evil.example/x"), "https://reg.example//evil.example/x");
        assert_eq!(kept("https://reg.example:8443/x"), "https://reg.example:8443/x");
        assert_eq!(kept("https://cdn.example/x?sig=y"), "https://cdn.example/x?sig=y");
    }

    #[test]
    fn signatures_are_not_printed() {
        let url = Url::parse("https://x/y?sig=canary", &base()).unwrap();
        assert_eq!(format!("{url:?}"), "https://x/y?…");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(10_000))]
        #[test]
        fn what_is_parsed_can_be_sent_and_names_the_same_host(text in "(https?:)?/{0,3}[a-zA-Z0-9.@:\\[\\]%\\\\-]{0,20}[/?#]?\\PC{0,20}") {
            if let Ok(url) = Url::parse(&text, &base()) {
                let uri = url.to_uri().unwrap();
                prop_assert_eq!(Origin::of(&uri), Some(url.origin.clone()));
                prop_assert_eq!(uri.path_and_query(), Some(&url.target));
                let root = Url::new(base().origin, "/").unwrap();
                prop_assert_eq!(Url::parse(url.location(&root.origin).as_str(), &root), Ok(url), "kept and asked later");
            }
        }
    }
}
