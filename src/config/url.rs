//! The base URL of an upstream: parsed strictly, because what follows from it decides where credentials may go.

use std::fmt;
use std::str::FromStr;

use super::error::Fault;
use super::parse;

const URL: &str = "a registry's URL: write a host with https:// (or http:// where it speaks no TLS), such as \"https://registry.example\" or \"http://localhost:5001\"";
const PUBLIC: &str = "the URL that clients see: write scheme and host, such as \"https://cache.example\"";

/// Scheme, host, port and path prefix of an upstream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaseUrl {
    /// https, else http.
    pub https: bool,
    /// Host name or address, lower case, IPv6 in brackets.
    pub host: String,
    /// Port, the scheme's default filled in.
    pub port: u16,
    /// Path before `/v2/`: empty, or `/prefix` without a trailing slash.
    pub prefix: String,
}

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
        let plain_part = |part: &str| {
            let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'~');
            !part.is_empty() && part != "." && part != ".." && part.bytes().all(plain)
        };
        let prefix = match path {
            "" => String::new(),
            _ if path.split('/').all(plain_part) => format!("/{path}"),
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn urls() {
        for (text, shown) in [
            ("registry.example", "https://registry.example"),
            ("HTTPS://Registry.Example/", "https://registry.example"),
            ("https://r.example:443", "https://r.example"),
            ("http://r.example:80/", "http://r.example"),
            ("http://localhost:5001", "http://localhost:5001"),
            ("localhost:5001", "https://localhost:5001"),
            ("https://r.example/v2/", "https://r.example"),
            ("https://r.example/a/b/v2", "https://r.example/a/b"),
            ("https://[::1]:5000/p/", "https://[::1]:5000/p"),
        ] {
            assert_eq!(text.parse::<BaseUrl>().map(|url| url.to_string()), Ok(shown.to_owned()), "{text}");
        }
        for text in [
            "",
            "https://",
            "ftp://x",
            "https:///x",
            "https://x?y",
            "https://x/a?b",
            "https://x#y",
            "https://x/../y",
            "https://x//y",
            "https://x:99999",
            "https://x:y",
            "https://a b",
            "//x",
            "https://x/%2e%2e",
            "https://::1",
        ] {
            assert!(matches!(text.parse::<BaseUrl>(), Err(Fault::Value { .. })), "{text:?} is not a URL");
        }
        for text in ["https://u@x", "https://u:p@x/y", "u:p@x", "ftp://u:p@x", "https://x/a@b"] {
            assert_eq!(text.parse::<BaseUrl>(), Err(Fault::Userinfo), "{text}");
        }
    }

    #[test]
    fn public_urls_have_a_scheme() {
        assert_eq!(public("https://Cache.example/sub/"), Ok("https://cache.example/sub".to_owned()));
        assert!(public("cache.example").is_err());
        assert_eq!(public("https://u:p@x"), Err(Fault::Userinfo));
    }

    proptest! {
        #[test]
        fn what_is_accepted_reads_back_as_the_same(text in "(https?://)?[a-zA-Z0-9.:/@?%\\[\\]-]{0,24}") {
            if let Ok(url) = text.parse::<BaseUrl>() {
                prop_assert_eq!(url.to_string().parse(), Ok(url));
                prop_assert!(!text.contains(['@', '?', '%']));
            }
        }
    }
}
