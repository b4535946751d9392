//! What a listener's certificates are for, to look at; no handshake needs it.

use rustls::pki_types::{CertificateDer, ServerName};
use webpki::EndEntityCert;

use super::TlsError;
use super::files::certificates;
use crate::config::{CertificateFiles, ListenerTls};

/// A listener's own certificate.
#[derive(Debug)]
pub struct Leaf {
    /// Where it and its key are.
    pub files: CertificateFiles,
    /// The certificate.
    pub certificate: CertificateDer<'static>,
}

/// The certificates of a listener, in the order of the configuration; keys are not read. Blocking.
pub fn leaves(settings: &ListenerTls) -> Result<Vec<Leaf>, TlsError> {
    let leaf = |files: &CertificateFiles| {
        let mut chain = certificates(&files.certificate)?.into_iter();
        let certificate = chain.next().ok_or_else(|| TlsError::NoCertificate(files.certificate.clone()))?;
        Ok(Leaf { files: files.clone(), certificate })
    };
    settings.certificates.iter().map(leaf).collect()
}

// === impl Leaf ===

impl Leaf {
    /// Whether it is for this DNS name or address, as clients judge.
    pub fn covers(&self, host: &str) -> bool {
        let Ok(name) = ServerName::try_from(host) else { return false };
        let Ok(leaf) = EndEntityCert::try_from(&self.certificate) else { return false };
        leaf.verify_is_valid_for_subject_name(&name).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair};

    use super::*;

    #[test]
    fn a_certificate_is_for_its_names_alone() {
        let directory = tempfile::tempdir().unwrap();
        let files =
            CertificateFiles { certificate: directory.path().join("a.pem"), key: directory.path().join("missing.key") };
        let names = ["cache.test", "*.wild.test", "10.0.0.7"].map(str::to_owned);
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(names).unwrap().self_signed(&key).unwrap();
        std::fs::write(&files.certificate, certificate.pem()).unwrap();
        let settings = ListenerTls { certificates: vec![files], client_ca: None };
        let [leaf] = &leaves(&settings).unwrap()[..] else { panic!("not one") };
        assert_eq!(leaf.certificate, *certificate.der());
        for (host, covered) in [
            ("cache.test", true),
            ("Cache.Test", true),
            ("a.wild.test", true),
            ("wild.test", false),
            ("a.b.wild.test", false),
            ("10.0.0.7", true),
            ("10.0.0.8", false),
            ("", false),
            ("no host at all", false),
        ] {
            assert_eq!(leaf.covers(host), covered, "{host:?}");
        }
    }
}
