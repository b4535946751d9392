//! Which token endpoints an upstream may name: the realm policy.
//!
//! A registry's 401 says where tokens are, and our credential is sent there. So the place must be the upstream's own
//! host, or one that the operator listed (CVE-2026-33540, CVE-2020-15157). Which addresses the name may lead to is
//! checked when it is dialled.
#![warn(clippy::indexing_slicing)]

use super::error::RealmFault;
use super::origin::{Origin, Url, UrlFault};

/// Longest realm.
const MAX_REALM: usize = 2048;
/// Token services that well-known registries keep on another host.
const KNOWN: [(&str, &str); 2] = [("registry-1.docker.io", "auth.docker.io"), ("registry.gitlab.com", "gitlab.com")];

/// Whose challenges, and which other hosts they may name.
#[derive(Debug, Clone)]
pub(crate) struct RealmPolicy {
    origin: Origin,
    /// `host` (then port 443) or `host:port`, lower case.
    others: Vec<String>,
}

impl RealmPolicy {
    /// Of a configured upstream.
    pub(crate) fn new(origin: Origin, token_hosts: &[String]) -> Self {
        let known = KNOWN.iter().filter(|(registry, _)| *registry == origin.host).map(|(_, host)| (*host).to_owned());
        let listed = token_hosts.iter().map(|host| {
            let host = host.to_ascii_lowercase();
            host.strip_suffix(":443").map_or(host.clone(), str::to_owned)
        });
        let others = known.chain(listed).collect();
        Self { origin, others }
    }

    /// Of a host to which an upstream redirected: itself alone.
    pub(crate) fn foreign(origin: Origin) -> Self {
        Self { origin, others: Vec::new() }
    }

    /// The token endpoint that `realm` names, if it may.
    pub(crate) fn check(&self, realm: &str) -> Result<Url, RealmFault> {
        if realm.len() > MAX_REALM {
            return Err(RealmFault::Url(UrlFault::TooLong));
        }
        // A path is taken as on the upstream; everything else must say where it is. `//host` does, but not how.
        let relative = realm.starts_with('/') && !realm.starts_with("//") && !realm.starts_with("/\\");
        if realm.contains('#') || (!relative && !realm.contains("://")) || realm.starts_with("//") {
            return Err(RealmFault::Url(UrlFault::Malformed));
        }
        let base = Url::new(self.origin.clone(), "/").map_err(RealmFault::Url)?;
        let url = Url::parse(realm, &base).map_err(RealmFault::Url)?;
        let own = url.origin.host == self.origin.host;
        if !url.origin.https {
            return if own && !self.origin.https {
                Ok(url)
            } else {
                Err(RealmFault::Plain { host: url.origin.authority() })
            };
        }
        let authority = url.origin.authority();
        if own || self.others.contains(&authority) { Ok(url) } else { Err(RealmFault::Host { host: authority }) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(https: bool, token_hosts: &[&str]) -> RealmPolicy {
        let origin = Origin { https, host: "reg.example".into(), port: if https { 443 } else { 80 } };
        RealmPolicy::new(origin, &token_hosts.iter().map(|&host| host.to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn realms_that_are_right() {
        for (https, hosts, realm) in [
            (true, &[][..], "https://reg.example/token"),
            (true, &[], "https://REG.example:443/token?x=y"),
            (true, &[], "https://reg.example:5001/token"),
            (true, &[], "/token"),
            (true, &["auth.example"], "https://auth.example/token"),
            (true, &["Auth.example:443"], "https://auth.example/token"),
            (true, &["auth.example:8443"], "https://auth.example:8443/token"),
            (false, &[], "http://reg.example:5001/token"),
            (false, &[], "https://reg.example/token"),
        ] {
            let url = policy(https, hosts).check(realm).unwrap_or_else(|fault| panic!("{realm}: {fault}"));
            assert!(["reg.example", "auth.example"].contains(&url.origin.host.as_str()), "{realm}");
        }
        let hub = Origin { https: true, host: "registry-1.docker.io".into(), port: 443 };
        assert!(RealmPolicy::new(hub, &[]).check("https://auth.docker.io/token").is_ok());
    }

    #[test]
    fn the_zoo_stays_outside() {
        let huge = format!("https://reg.example/{}", "a".repeat(64 << 10));
        let zoo = [
            "https://evil.example/token",
            "https://reg.example.evil.example/",
            "https://evil-reg.example/",
            "https://evilreg.example/",
            "https://sub.reg.example/",
            "https://example/",
            "https://reg.example./token",
            "https://reg.example@evil.example/",
            "https://reg.example:pw@evil.example/",
            "https://user@reg.example/",
            "https://user:pw@reg.example/",
            "https://@reg.example/",
            "https://evil.example#@reg.example/",
            "https://evil.example?@reg.example/",
            "https://evil.example\\@reg.example/",
            "https://evil.example/@reg.example",
            "https://reg.example%2f@evil.example/",
            "https://reg.example%00.evil.example/",
            "https://reg%2eexample/",
            "https://rеg.example/",
            "https://xn--rg-eya.example/",
            "https://reg。example/",
            "https://ⓡⓔⓖ.example/",
            "http://reg.example/token",
            "HTTP://reg.example/",
            "http://auth.example/",
            "ftp://reg.example/",
            "file:///etc/passwd",
            "file://reg.example/x",
            "javascript:alert(1)",
            "data:text/plain,x",
            "gopher://reg.example/",
            "ws://reg.example/",
            "unix:/run/x",
            "https:reg.example",
            "https:/reg.example/",
            "https:\\\\reg.example/",
            "//evil.example/token",
            "//reg.example/token",
            "///evil.example",
            "/\\evil.example",
            "\\\\evil.example\\x",
            "token",
            "?x",
            "#",
            "",
            " ",
            "https://",
            "https:///token",
            "https://:443/",
            "https://reg.example:0/",
            "https://reg.example:/",
            "https://reg.example:65536/",
            "https://reg.example:443443/",
            "https://reg.example:-1/",
            "https://reg.example:4 43/",
            "https://127.0.0.1/",
            "https://[::1]/",
            "https://[::ffff:127.0.0.1]/",
            "https://2130706433/",
            "https://0x7f000001/",
            "https://017700000001/",
            "https://127.1/",
            "https://0/",
            "https://[::]/",
            "https://169.254.169.254/latest/",
            "https://[fe80::1%25lo]/",
            "https://localhost/",
            "https://reg.example/\r\nHost: evil",
            "https://reg.example\r\n/",
            "https://reg.example\0/",
            "https://reg.example\t/",
            "https://reg.example /",
            " https://reg.example/",
            "https://reg.example,evil.example/",
            "https://*/",
            "https://reg.example;evil/",
            "https://[reg.example]/",
            "https://reg.example]/",
            huge.as_str(),
        ];
        assert!(zoo.len() > 60);
        for realm in zoo {
            for hosts in [&[][..], &["auth.example"]] {
                let result = policy(true, hosts).check(realm);
                assert!(result.is_err(), "{realm:?} must be refused, not taken as {result:?}");
            }
        }
        for realm in ["http://evil.example/", "http://auth.example/", "https://evil.example/"] {
            assert!(policy(false, &["auth.example"]).check(realm).is_err(), "{realm} of a plain http upstream");
        }
        assert!(RealmPolicy::foreign(policy(true, &[]).origin).check("https://auth.example/").is_err());
    }

    #[test]
    fn the_refusal_says_what_to_configure() {
        let fault = policy(true, &[]).check("https://auth.example:8443/t").unwrap_err();
        assert!(fault.to_string().contains("add \"auth.example:8443\" to `token_hosts`"), "{fault}");
    }
}
