//! What a server's certificate says to clients: for which names it is, and whether a private CA has issued it.

use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};

/// The first certificate of a PEM file.
#[derive(Debug)]
pub(super) struct Leaf(CertificateDer<'static>);

// === impl Leaf ===

impl Leaf {
    /// From PEM; none where there is no certificate in it.
    pub(super) fn read(pem: &str) -> Option<Self> {
        let der = CertificateDer::from_pem_slice(pem.as_bytes()).ok()?;
        EndEntityCert::try_from(&der).ok()?;
        Some(Self(der))
    }

    /// The DNS names that it is for, wildcards included, in its order.
    pub(super) fn dns_names(&self) -> Vec<String> {
        let parsed = EndEntityCert::try_from(&self.0);
        parsed.map(|leaf| leaf.valid_dns_names().map(str::to_owned).collect()).unwrap_or_default()
    }

    /// Whether it is for this name or IP address.
    pub(super) fn is_for(&self, host: &str) -> bool {
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let (Ok(leaf), Ok(name)) = (EndEntityCert::try_from(&self.0), ServerName::try_from(bare)) else { return false };
        leaf.verify_is_valid_for_subject_name(&name).is_ok()
    }

    /// Why it would not be accepted by a client that trusts the CA of `ca` (PEM) alone; `chain` is the server's file, whose
    /// further certificates the server shows too.
    pub(super) fn refused_by(&self, ca: &str, chain: &str, now: UnixTime) -> Option<String> {
        let Ok(authority) = CertificateDer::from_pem_slice(ca.as_bytes()) else {
            return Some("there is no certificate in the CA's file".to_owned());
        };
        // Here a CA that is trusted is trusted for ever; clients look at its end, too.
        if has_ended(&authority, now) {
            return Some("its own certificate has expired".to_owned());
        }
        let between: Vec<_> = CertificateDer::pem_slice_iter(chain.as_bytes()).skip(1).filter_map(Result::ok).collect();
        let verdict = || {
            let anchor = anchor_from_trusted_cert(&authority)?;
            let leaf = EndEntityCert::try_from(&self.0)?;
            let known = aws_lc_rs::default_provider().signature_verification_algorithms.all;
            leaf.verify_for_usage(known, &[anchor], &between, now, KeyUsage::server_auth(), None, None).map(|_| ())
        };
        verdict().err().map(|error: webpki::Error| error.to_string())
    }
}

/// Whether a certificate, a CA's too, has expired.
fn has_ended(certificate: &CertificateDer<'_>, now: UnixTime) -> bool {
    let Ok(parsed) = EndEntityCert::try_from(certificate) else { return false };
    let known = aws_lc_rs::default_provider().signature_verification_algorithms.all;
    // Its time is looked at before anything else is found wrong.
    let verdict = parsed.verify_for_usage(known, &[], &[], now, KeyUsage::server_auth(), None, None);
    matches!(verdict, Err(webpki::Error::CertExpired { .. }))
}
