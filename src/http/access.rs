//! Which requests are this machine's own.
//!
//! What upstream gave to ocistern's own account is private: it is for such requests, and for callers that are known. A
//! browser or another proxy on this machine must not lend its loopback address to a stranger.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use http::HeaderMap;
use http::header::{FORWARDED, HeaderName, ORIGIN};

use super::route::public_authority;
use crate::config::{Listener, Upstream};
use crate::party::Party;

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// Where a connection comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    /// An address and port.
    Tcp(SocketAddr),
    /// A Unix socket; the user at the other end, where the kernel told.
    Unix(Option<u32>),
}

/// Why a request does not count as local.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotLocal {
    /// The connection comes from another machine.
    #[error("the connection does not come from this machine")]
    Peer,
    /// The `Host` is neither a loopback name nor a configured one: a page in a browser may have rebound its name.
    #[error("the Host is neither a loopback name nor one that the listener is configured for")]
    Host,
    /// `Origin`, `Forwarded` or `X-Forwarded-…`: somebody else is behind the connection.
    #[error("Origin, Forwarded or X-Forwarded-… shows that somebody else is behind the connection")]
    Relayed,
}

// === impl Peer ===

impl Peer {
    /// Whether the other end is on this machine.
    pub fn is_local(&self) -> bool {
        match self {
            Self::Tcp(address) => address.ip().to_canonical().is_loopback(),
            Self::Unix(_) => true,
        }
    }

    /// As who it counts where something scarce is shared out.
    pub fn party(&self) -> Party {
        match self {
            Self::Tcp(address) => Party::at(address.ip()),
            Self::Unix(user) => Party::on_socket(*user),
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(Some(uid)) => write!(f, "unix:uid={uid}"),
            Self::Unix(None) => f.write_str("unix"),
        }
    }
}

/// Whether `upstream` is pulled by an account of ocistern's own.
pub const fn is_own_account(upstream: &Upstream) -> bool {
    upstream.credentials.is_own_account()
}

/// Whether a request counts as one of this machine's own: see the module. `host` is the `Host` field or authority.
pub fn loopback_trust(
    peer: &Peer,
    listener: &Listener,
    host: Option<&str>,
    headers: &HeaderMap,
) -> Result<(), NotLocal> {
    if !peer.is_local() {
        return Err(NotLocal::Peer);
    }
    if !host.is_some_and(|host| is_loopback_host(host) || is_configured(listener, host)) {
        return Err(NotLocal::Host);
    }
    if is_relayed(headers) { Err(NotLocal::Relayed) } else { Ok(()) }
}

/// As who a request counts where something scarce is shared out. A proxy on this machine asks for others, and adds whom
/// it has seen at the end of `X-Forwarded-For`. Nothing else is decided by that: who is on this machine gains nothing by
/// writing something there, since it has a whole network of loopback addresses to come from.
pub(super) fn party(peer: &Peer, headers: &HeaderMap) -> Party {
    let seen = if peer.is_local() { seen_by_proxy(headers) } else { None };
    seen.map_or_else(|| peer.party(), Party::at)
}

/// The last address of `X-Forwarded-For` that is not this machine's: proxies here may stand behind each other.
fn seen_by_proxy(headers: &HeaderMap) -> Option<IpAddr> {
    for value in headers.get_all(X_FORWARDED_FOR).into_iter().rev() {
        for seen in value.to_str().ok()?.rsplit(',').map(str::trim) {
            // Some add the port.
            let address = seen.parse::<SocketAddr>().map(|address| address.ip());
            let address = address.or_else(|_| seen.trim_matches(['[', ']']).parse()).ok()?;
            if !IpAddr::to_canonical(&address).is_loopback() {
                return Some(address);
            }
        }
    }
    None
}

/// Whether a request shows that somebody else is behind the connection: a page in a browser, or another proxy.
pub(super) fn is_relayed(headers: &HeaderMap) -> bool {
    headers.contains_key(ORIGIN)
        || headers.contains_key(FORWARDED)
        || headers.keys().any(|name| name.as_str().starts_with("x-forwarded-"))
}

/// `localhost` or a loopback address, with or without a port.
pub fn is_loopback_host(host: &str) -> bool {
    let name = without_port(host);
    let address = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
    name.eq_ignore_ascii_case("localhost")
        || address.parse::<IpAddr>().is_ok_and(|address| address.to_canonical().is_loopback())
}

fn is_configured(listener: &Listener, host: &str) -> bool {
    let host = host.to_ascii_lowercase();
    listener.hostnames.contains_key(&host)
        || listener.hostnames.contains_key(without_port(&host))
        || public_authority(listener).is_some_and(|public| public.eq_ignore_ascii_case(&host))
}

/// The host without its port, if it has one.
pub(super) fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port))
            if port.bytes().all(|b| b.is_ascii_digit()) && (!name.contains(':') || name.ends_with(']')) =>
        {
            name
        }
        _ => host,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use http::HeaderValue;

    use super::*;
    use crate::config::Address;

    fn listener() -> Listener {
        Listener {
            address: Address::Tcp("127.0.0.1:0".parse().unwrap()),
            default_upstream: None,
            public_url: Some("https://cache.example".to_owned()),
            hostnames: BTreeMap::from([("my.azurecr.io".to_owned(), "my.azurecr.io".parse().unwrap())]),
            tls: None,
            htpasswd: None,
            allow_plain_credentials: false,
            optional: false,
        }
    }

    fn tcp(address: &str) -> Peer {
        Peer::Tcp(address.parse().unwrap())
    }

    #[test]
    fn a_proxy_on_this_machine_says_for_whom_it_asks() {
        let (near, far) = (tcp("127.0.0.1:9"), tcp("192.0.2.9:9"));
        let at = |address: &str| Party::at(address.parse().unwrap());
        let here = at("127.0.0.1");
        for (what, peer, fields, expected) in [
            ("nobody else", near, &[][..], here),
            ("one", near, &["192.0.2.1"], at("192.0.2.1")),
            ("what its client has written there comes before", near, &["10.0.0.1, 192.0.2.1"], at("192.0.2.1")),
            ("in a field of its own", near, &["10.0.0.1", "192.0.2.1"], at("192.0.2.1")),
            ("proxies behind each other", near, &["192.0.2.1,127.0.0.1", "::1"], at("192.0.2.1")),
            ("all of them here", near, &["127.0.0.1"], here),
            ("IPv6", near, &["2001:db8::1:2"], at("2001:db8::")),
            ("with ports", near, &["10.0.0.1, [2001:db8::1]:443"], at("2001:db8::")),
            ("with a port", near, &["192.0.2.1:4711"], at("192.0.2.1")),
            ("in brackets", near, &["[2001:db8::1]"], at("2001:db8::")),
            ("nonsense", near, &["192.0.2.1, unknown"], here),
            ("a Unix socket", Peer::Unix(Some(33)), &["192.0.2.1"], at("192.0.2.1")),
            ("a Unix socket without a proxy", Peer::Unix(Some(33)), &[], Party::on_socket(Some(33))),
            ("from elsewhere it is anybody's word", far, &["192.0.2.1"], at("192.0.2.9")),
        ] {
            let mut headers = HeaderMap::new();
            for field in fields {
                headers.append(X_FORWARDED_FOR, HeaderValue::from_static(field));
            }
            assert_eq!(party(&peer, &headers), expected, "{what}");
        }
    }

    #[test]
    fn loopback_trust_table() {
        let local = "127.0.0.1:40000";
        let cases = [
            ("by address", tcp(local), Some("127.0.0.1:5000"), None, Ok(())),
            ("by name", tcp(local), Some("localhost:5000"), None, Ok(())),
            ("by name, no port, other case", tcp(local), Some("LocalHost"), None, Ok(())),
            ("IPv6", tcp("[::1]:4000"), Some("[::1]:5000"), None, Ok(())),
            ("IPv4 in IPv6", tcp("[::ffff:127.0.0.1]:4000"), Some("localhost"), None, Ok(())),
            ("another loopback address", tcp("127.9.9.9:1"), Some("127.1.2.3"), None, Ok(())),
            ("a mapped host name", tcp(local), Some("my.azurecr.io"), None, Ok(())),
            ("a mapped host name with a port", tcp(local), Some("My.azurecr.io:5000"), None, Ok(())),
            ("the public name", tcp(local), Some("cache.example"), None, Ok(())),
            ("a Unix socket", Peer::Unix(Some(1000)), Some("localhost"), None, Ok(())),
            ("another machine", tcp("10.0.0.9:1"), Some("localhost"), None, Err(NotLocal::Peer)),
            ("a rebound name", tcp(local), Some("evil.example:5000"), None, Err(NotLocal::Host)),
            ("a name that only begins well", tcp(local), Some("localhost.evil.example"), None, Err(NotLocal::Host)),
            ("an address that only begins well", tcp(local), Some("127.0.0.1.evil.example"), None, Err(NotLocal::Host)),
            ("no host", tcp(local), None, None, Err(NotLocal::Host)),
            ("an empty host", tcp(local), Some(""), None, Err(NotLocal::Host)),
            ("a page in a browser", tcp(local), Some("localhost"), Some("origin"), Err(NotLocal::Relayed)),
            ("behind a proxy", tcp(local), Some("localhost"), Some("x-forwarded-for"), Err(NotLocal::Relayed)),
            (
                "behind a proxy that says less",
                tcp(local),
                Some("localhost"),
                Some("x-forwarded-host"),
                Err(NotLocal::Relayed),
            ),
            ("behind a modern proxy", tcp(local), Some("localhost"), Some("forwarded"), Err(NotLocal::Relayed)),
            (
                "a Unix socket behind a proxy",
                Peer::Unix(None),
                Some("localhost"),
                Some("forwarded"),
                Err(NotLocal::Relayed),
            ),
        ];
        for (what, peer, host, header, expected) in cases {
            let mut headers = HeaderMap::new();
            if let Some(name) = header {
                headers.insert(name, HeaderValue::from_static("x"));
            }
            assert_eq!(loopback_trust(&peer, &listener(), host, &headers), expected, "{what}");
        }
    }
}
