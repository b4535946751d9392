//! The base URL of an upstream: parsed strictly, because what follows from it decides where credentials may go.

use std::fmt;
use std::str::FromStr;

use super::error::Fault;
use super::{BaseUrl, parse};

const URL: &str = "a registry's URL: write a host with https:// (or http:// where it speaks no TLS), such as \"https://registry.example\" or \"http://localhost:5001\"";
const PUBLIC: &str = "the URL that clients see: write scheme and host, such as \"https://cache.example\"";

// === impl BaseUrl ===

impl BaseUrl {
    /// Host, with the port where it is not the scheme's: as in a `Host` header.
    pub fn authority(&self) -> String {
        if self.port == self.default_port() { self.host.clone() } else { format!("{}:{}", self.host, self.port) }
    }

    /// `https` or `http`.
    pub const fn scheme(&self) -> &'static str {
        if self.https { "https" } else { "http" }
    }

    const fn default_port(&self) -> u16 {
        if self.https { 443 } else { 80 }
    }
}

impl fmt::Display for BaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}{}", self.scheme(), self.authority(), self.prefix)
    }
}

impl FromStr for BaseUrl {
    type Err = Fault;

    /// A URL without a scheme is https. A path is kept as prefix, without the `/v2/` that some documentation writes.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let fault = || Fault::value(text, URL);
        let (https, rest) = match text.split_once("://") {
            None => (true, text),
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("https") => (true, rest),
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => (false, rest),
            Some((_, rest)) if rest.contains('@') => return Err(Fault::Userinfo),
            Some(_) => return Err(fault()),
        };
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        // Not repeated in a message: it may be a password.
        if rest.contains('@') {
            return Err(Fault::Userinfo);
        }
        let (host, port) = parse::host_and_port(authority).ok_or_else(fault)?;
        let path = path.trim_end_matches('/');
        let path = if path == "v2" { "" } else { path.strip_suffix("/v2").unwrap_or(path) };
        let part = |part: &str| {
            let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'~');
            !part.is_empty() && part != "." && part != ".." && part.bytes().all(plain)
        };
        let prefix = match path {
            "" => String::new(),
            _ if path.split('/').all(part) => format!("/{path}"),
            _ => return Err(fault()),
        };
        Ok(Self { https, host, port: port.unwrap_or(if https { 443 } else { 80 }), prefix })
    }
}

/// What clients see in front of another proxy: scheme, authority and path, without a trailing slash.
pub(super) fn public(text: &str) -> Result<String, Fault> {
    if !text.contains("://") {
        return Err(if text.contains('@') { Fault::Userinfo } else { Fault::value(text, PUBLIC) });
    }
    match text.parse::<BaseUrl>() {
        Ok(url) => Ok(url.to_string()),
        Err(Fault::Userinfo) => Err(Fault::Userinfo),
        Err(_) => Err(Fault::value(text, PUBLIC)),
    }
}
