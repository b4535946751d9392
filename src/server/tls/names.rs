//! Which certificate a client is shown: by the name that it says it wants (SNI, RFC 6066, section 3).

use std::collections::HashMap;
use std::sync::Arc;

use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

/// A certificate with its key.
#[derive(Debug, Clone)]
pub(super) struct Certificate {
    pub(super) certified: Arc<CertifiedKey>,
    /// The DNS names of its subjectAltName in lower case, `*.` of wildcards included.
    pub(super) names: Vec<String>,
}

/// The certificates of a listener.
#[derive(Debug)]
pub(super) struct ByName {
    /// In the order of the configuration.
    all: Vec<Arc<CertifiedKey>>,
    /// Name or wildcard → places in `all`.
    named: HashMap<String, Vec<usize>>,
}

// === impl ByName ===

impl ByName {
    /// The first one is the default.
    pub(super) fn new<'a>(certificates: impl Iterator<Item = &'a Certificate>) -> Self {
        let (mut all, mut named) = (Vec::new(), HashMap::<String, Vec<usize>>::new());
        for (place, certificate) in certificates.enumerate() {
            all.push(Arc::clone(&certificate.certified));
            for name in &certificate.names {
                named.entry(name.clone()).or_default().push(place);
            }
        }
        Self { all, named }
    }

    /// Places of those that are for `name`, then of all. One with the name itself goes before a wildcard, which stands
    /// for exactly one label (RFC 9525, section 6.3).
    fn candidates(&self, name: Option<&str>) -> impl Iterator<Item = usize> {
        let exact = name.map(str::to_ascii_lowercase);
        let wildcard = exact.as_deref().and_then(|name| name.split_once('.')).map(|(_, rest)| format!("*.{rest}"));
        let named = [exact, wildcard].into_iter().flatten().filter_map(|name| self.named.get(&name));
        named.flatten().copied().chain(0..self.all.len())
    }
}

impl ResolvesServerCert for ByName {
    /// The first candidate whose key the client can deal with: of RSA and ECDSA for one name, either may be in the list.
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let mut candidates = self.candidates(hello.server_name()).filter_map(|place| self.all.get(place));
        candidates.find(|certified| certified.key.choose_scheme(hello.signature_schemes()).is_some()).cloned()
    }
}

#[cfg(test)]
mod tests {
    use rcgen::KeyPair;
    use rustls::crypto::aws_lc_rs;
    use rustls::pki_types::PrivateKeyDer;

    use super::*;

    fn by_name(list: &[&[&str]]) -> ByName {
        let key = KeyPair::generate().unwrap();
        let chain = vec![rcgen::CertificateParams::default().self_signed(&key).unwrap().der().clone()];
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let certified = Arc::new(CertifiedKey::from_der(chain, key, &aws_lc_rs::default_provider()).unwrap());
        let certificates: Vec<Certificate> = list
            .iter()
            .map(|names| Certificate {
                certified: Arc::clone(&certified),
                names: names.iter().map(ToString::to_string).collect(),
            })
            .collect();
        ByName::new(certificates.iter())
    }

    #[test]
    fn names_and_wildcards() {
        let certificates = by_name(&[
            &["first.test"],
            &["*.wild.test", "wild.test"],
            &["exact.wild.test", "other.test"],
            &["other.test"],
            &["*.deep.wild.test"],
        ]);
        for (name, expected) in [
            (None, &[0, 1, 2, 3, 4][..]),
            (Some("first.test"), &[0, 0]),
            (Some("FIRST.Test"), &[0, 0]),
            (Some("a.wild.test"), &[1, 0]),
            (Some("wild.test"), &[1, 0]),
            (Some("exact.wild.test"), &[2, 1, 0]),
            (Some("other.test"), &[2, 3, 0]),
            (Some("a.deep.wild.test"), &[4, 0]),
            (Some("a.b.wild.test"), &[0, 1]),
            (Some("deep.wild.test"), &[1, 0]),
            (Some("unknown.test"), &[0, 1]),
            (Some("*.wild.test"), &[1, 1, 0]),
            (Some("test"), &[0, 1]),
            (Some(""), &[0, 1]),
        ] {
            let found: Vec<usize> = certificates.candidates(name).take(expected.len()).collect();
            assert_eq!(found, expected, "{name:?}");
        }
    }
}
