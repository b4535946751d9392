//! Names of images as people have them: by their upstream, or as they were pulled, through a listener of this ocistern.

use std::borrow::Cow;
use std::net::IpAddr;

use http::uri::Authority;

use super::super::access::is_loopback_host;
use super::super::route::{Directory, looks_like_host, mapped, public_authority};
use crate::config::{Address, Config, Listener};
use crate::oci::UpstreamName;

/// A name that leads to no upstream, and what to write instead.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unplaced {
    /// Nothing is known at that address.
    #[error(
        "{text:?}: {first} is neither an upstream of the configuration nor an address of this ocistern's: write \
         UPSTREAM/REPOSITORY{}; there is {known}; an upstream at {first} would be called {table}",
        such_as(meant.as_deref())
    )]
    Unknown {
        /// The whole.
        text: String,
        /// Its first part.
        first: String,
        /// What it would be through a listener's default upstream.
        meant: Option<String>,
        /// The upstreams that there are.
        known: String,
        /// How the upstream would be called.
        table: String,
    },
    /// The listener serves no such upstream, as it would answer a pull.
    #[error("{text:?}: through {first} that is a name of the upstream {second:?}, and there is none; there is {known}")]
    NoUpstream {
        /// The whole.
        text: String,
        /// Its first part.
        first: String,
        /// The second one.
        second: String,
        /// The upstreams that there are.
        known: String,
    },
    /// The listener has no default upstream.
    #[error("{text:?} names no upstream, and the listener at {first} has no default one; there is {known}")]
    NoDefault {
        /// The whole.
        text: String,
        /// Its first part.
        first: String,
        /// The upstreams that there are.
        known: String,
    },
    /// A pattern where an upstream may stand: of all, or of the default one?
    #[error("{text:?}: behind {first} it is not clear which upstream is meant: write UPSTREAM/REPOSITORY{}, or ** for all", such_as(meant.as_deref()))]
    Pattern {
        /// The whole.
        text: String,
        /// Its first part.
        first: String,
        /// What it would be through the listener's default upstream.
        meant: Option<String>,
    },
}

fn such_as(meant: Option<&str>) -> String {
    meant.map_or_else(String::new, |meant| format!(", such as {meant}"))
}

/// The same name with its upstream in front, where it begins with an address of one of the listeners: what a pull by it means
/// there. An upstream that is called so comes first; a name that begins with neither stays, since of upstreams that are
/// configured no more there is still something in the store.
///
/// # Errors
/// It begins with an address that is nobody's, or is one that a listener would not serve.
pub(super) fn placed<'a>(text: &'a str, config: &Config) -> Result<Cow<'a, str>, Unplaced> {
    let Some((first, rest)) = text.split_once('/') else { return Ok(Cow::Borrowed(text)) };
    let named = |key: &str| key.parse::<UpstreamName>().ok().filter(|name| config.upstreams.contains_key(name));
    if named(first).is_some() || first.contains('*') {
        return Ok(Cow::Borrowed(text));
    }
    let directory = Directory::new(config);
    // Without a port it may be the name of an upstream that is configured no more.
    let by_address = || directory.get(first).filter(|_| first.contains(':')).cloned();
    if let Some(upstream) = named(&first.replace(':', "-")).or_else(by_address) {
        return Ok(Cow::Owned(format!("{upstream}/{rest}")));
    }
    match addressed(config, first) {
        Some(listener) => through(listener, &directory, config, text).map(Cow::Owned),
        None if first.contains(':') => Err(Unplaced::Unknown {
            text: text.to_owned(),
            first: first.to_owned(),
            meant: config.listeners.iter().find_map(|listener| through(listener, &directory, config, text).ok()),
            known: known(config),
            table: first.to_ascii_lowercase().replace(':', "-"),
        }),
        None => Ok(Cow::Borrowed(text)),
    }
}

/// What `ADDRESS/REST` means to a client of this listener.
fn through(listener: &Listener, directory: &Directory, config: &Config, text: &str) -> Result<String, Unplaced> {
    let (first, rest) = text.split_once('/').unwrap_or(("", text));
    if let Some(upstream) = mapped(listener, Some(first)) {
        return Ok(format!("{upstream}/{rest}"));
    }
    let by_default = || Some(format!("{}/{rest}", listener.default_upstream.as_ref()?));
    let (text, first) = (text.to_owned(), first.to_owned());
    let second = rest.split_once('/');
    let start = second.map_or(rest, |(second, _)| second);
    // Behind the name of a repository a tag may be a pattern.
    if start.split([':', '@']).next().unwrap_or_default().contains('*') {
        return Err(Unplaced::Pattern { text, first, meant: by_default() });
    }
    if let Some((second, behind)) = second {
        if let Some(upstream) = directory.get(second) {
            return Ok(format!("{upstream}/{behind}"));
        }
        if looks_like_host(second) {
            return Err(Unplaced::NoUpstream { text, first, second: second.to_owned(), known: known(config) });
        }
    }
    by_default().ok_or_else(|| Unplaced::NoDefault { text, first, known: known(config) })
}

/// The listener that clients reach by this host, with its port unless that is the scheme's.
fn addressed<'a>(config: &'a Config, host: &str) -> Option<&'a Listener> {
    let ranked = config.listeners.iter().filter_map(|listener| Some((nearness(listener, host)?, listener)));
    ranked.min_by_key(|(nearness, _)| *nearness).map(|(_, listener)| listener)
}

/// How surely a host is this listener's, the surest first; none: it is not.
fn nearness(listener: &Listener, host: &str) -> Option<u8> {
    if mapped(listener, Some(host)).is_some()
        || public_authority(listener).is_some_and(|own| own.eq_ignore_ascii_case(host))
    {
        return Some(0);
    }
    let Address::Tcp(own) = listener.address else { return None };
    let authority: Authority = host.parse().ok()?;
    let usual = if listener.tls.is_some() { 443 } else { 80 };
    if authority.port_u16().unwrap_or(usual) != own.port() {
        return None;
    }
    let address: Option<IpAddr> = authority.host().trim_matches(['[', ']']).parse().ok();
    if address.is_some_and(|address| address.to_canonical() == own.ip().to_canonical()) {
        return Some(1);
    }
    let is_reached_here = own.ip().is_loopback() || own.ip().is_unspecified();
    is_loopback_host(host).then_some(if is_reached_here { 2 } else { 3 })
}

/// The upstreams that there are.
pub(super) fn known(config: &Config) -> String {
    let names: Vec<&str> = config.upstreams.keys().map(UpstreamName::as_str).collect();
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(more: &str) -> Config {
        Config::from_toml(&format!("root = \"/var/cache/x\"\n{more}")).unwrap()
    }

    #[test]
    fn a_name_means_what_a_pull_by_it_means() {
        let plain = config("[upstream.e500]\nurl = \"https://registry.example:8443\"");
        for (text, meant) in [
            ("localhost:5000/library/alpine:3", "docker.io/library/alpine:3"),
            ("LOCALHOST:5000/alpine", "docker.io/alpine"),
            ("127.0.0.1:5000/team/*:v1", "docker.io/team/*:v1"),
            ("[::1]:5000/team/**", "docker.io/team/**"),
            ("localhost:5000/alpine:3.*", "docker.io/alpine:3.*"),
            ("localhost:5000/e500/team/app:v1", "e500/team/app:v1"),
            ("localhost:5000/ghcr.io/**", "ghcr.io/**"),
            ("localhost:5000/registry.example:8443/app", "e500/app"),
            ("registry.example:8443/app", "e500/app"),
            // What needs no listener, and what may be of an upstream that is configured no more.
            ("docker.io/library/alpine", "docker.io/library/alpine"),
            ("gone.example/app", "gone.example/app"),
            ("localhost/app", "localhost/app"),
            ("**", "**"),
            ("*/app", "*/app"),
            ("alpine", "alpine"),
            ("ghcr.io/a@sha256:0", "ghcr.io/a@sha256:0"),
        ] {
            assert_eq!(placed(text, &plain).as_deref(), Ok(meant), "{text}");
        }
    }

    #[test]
    fn an_upstream_of_that_name_comes_first() {
        let named = config("[upstream.\"localhost-5000\"]\nurl = \"http://registry.example\"");
        assert_eq!(placed("localhost:5000/app", &named).unwrap(), "localhost-5000/app");
    }

    #[test]
    fn the_listener_that_is_meant_is_found() {
        let several = config(
            "[[listener]]\naddress = \"192.0.2.7:5000\"\ndefault_upstream = \"ghcr.io\"\n\
             [[listener]]\naddress = \"127.0.0.1:5000\"\ndefault_upstream = \"quay.io\"\npublic_url = \"https://cache.example\"\n\
             [[listener]]\naddress = \"127.0.0.1:80\"\nhostnames = { \"hub.example\" = \"docker.io\" }\n\
             [[listener]]\naddress = \"192.0.2.8:5001\"\ndefault_upstream = \"\"",
        );
        for (text, meant) in [
            ("192.0.2.7:5000/a", Ok("ghcr.io/a")),
            ("localhost:5000/a", Ok("quay.io/a")),
            ("cache.example/a", Ok("quay.io/a")),
            ("cache.example/gcr.io/a", Ok("gcr.io/a")),
            ("localhost/a", Ok("docker.io/a")),
            // A host that is mapped has no prefixes.
            ("hub.example/quay.io/a", Ok("docker.io/quay.io/a")),
            ("localhost:5001/quay.io/a", Ok("quay.io/a")),
            ("localhost:5001/a", Err("has no default one")),
        ] {
            match (placed(text, &several), meant) {
                (Ok(name), Ok(meant)) => assert_eq!(name, meant, "{text}"),
                (Err(error), Err(words)) => assert!(error.to_string().contains(words), "{text}: {error}"),
                (was, meant) => panic!("{text}: {was:?}, not {meant:?}"),
            }
        }
    }

    #[test]
    fn what_leads_nowhere_says_what_to_write() {
        let plain = config("");
        for (text, words) in [
            ("localhost:5001/team/app:1", "write UPSTREAM/REPOSITORY, such as docker.io/team/app:1;"),
            ("localhost:5001/team/app:1", "an upstream at localhost:5001 would be called localhost-5001"),
            ("192.0.2.7:5000/a", "nor an address of this ocistern's"),
            (
                "localhost:5000/nowhere.example/a",
                "the upstream \"nowhere.example\", and there is none; there is docker.io,",
            ),
            ("localhost:5000/**", "write UPSTREAM/REPOSITORY, such as docker.io/**, or ** for all"),
            ("localhost:5000/*:latest", "such as docker.io/*:latest"),
            ("localhost:5000/*/app", "such as docker.io/*/app"),
        ] {
            let error = placed(text, &plain).unwrap_err().to_string();
            assert!(error.contains(words) && error.contains(text), "{error}");
        }
    }
}
