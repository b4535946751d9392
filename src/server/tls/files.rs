//! PEM files as rustls takes them, and whether they have changed since they were read. Everything here blocks.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::sign::CertifiedKey;
use rustls::{InconsistentKeys, RootCertStore};
use webpki::EndEntityCert;

use super::TlsError;
use super::names::Certificate;
use crate::config::CertificateFiles;

/// What was read from files, and which state of them it was.
#[derive(Debug)]
pub(super) struct FromFiles<T> {
    files: Vec<PathBuf>,
    state: State,
    /// The state that could not be used, once that was said.
    broken: Option<State>,
    pub(super) value: T,
}

/// One state of some files; none where there is no file.
type State = Vec<Option<Stamp>>;

/// One state of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

// === impl FromFiles ===

impl<T> FromFiles<T> {
    /// Reads them the first time.
    pub(super) fn read(files: Vec<PathBuf>, read: impl FnOnce() -> Result<T, TlsError>) -> Result<Self, TlsError> {
        // Before they are read: what changes meanwhile is seen the next time.
        let state = state(&files);
        Ok(Self { files, state, broken: None, value: read()? })
    }

    /// Reads them again if they have changed; whether there is another value now. Where they cannot be used, the value
    /// that was there stays. That is said once for a state of the files, and tried again: the cause may lie elsewhere.
    pub(super) fn renew(&mut self, listener: &str, read: impl FnOnce() -> Result<T, TlsError>) -> bool {
        let state = state(&self.files);
        if state == self.state {
            self.broken = None;
            return false;
        }
        let file = self.files.first().map(|file| file.display().to_string());
        match read() {
            Ok(value) => {
                tracing::info!(listener, file, "renewed TLS files are in use");
                (self.value, self.state, self.broken) = (value, state, None);
                true
            }
            Err(error) => {
                if self.broken.as_ref() != Some(&state) {
                    tracing::warn!(
                        listener,
                        %error,
                        "TLS files have changed and cannot be used; what they held before stays in use"
                    );
                    self.broken = Some(state);
                }
                false
            }
        }
    }
}

fn state(files: &[PathBuf]) -> State {
    files.iter().map(|file| fs::metadata(file).ok().map(|metadata| Stamp::of(&metadata))).collect()
}

// === impl Stamp ===

impl Stamp {
    fn of(metadata: &fs::Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

// === what the files hold ===

/// A certificate with its key and names.
pub(super) fn certificate(
    files: &CertificateFiles,
    needs_name: bool,
    provider: &CryptoProvider,
) -> Result<Certificate, TlsError> {
    let chain = certificates(&files.certificate)?;
    let key = PrivateKeyDer::from_pem_file(&files.key)
        .map_err(|error| TlsError::of_pem(&files.key, error, TlsError::NoKey))?;
    let certified = CertifiedKey::from_der(chain, key, provider).map_err(|source| unusable(files, source))?;
    let leaf = certified.end_entity_cert().map_err(|source| unusable(files, source))?;
    // Which certificate to show is no question of trust: whether it is for the name, the client decides.
    let leaf = EndEntityCert::try_from(leaf)
        .map_err(|error| unusable(files, rustls::Error::General(format!("not X.509: {error}"))))?;
    let names: Vec<String> = leaf.valid_dns_names().map(str::to_ascii_lowercase).collect();
    if needs_name && names.is_empty() {
        return Err(TlsError::NoName(files.certificate.clone()));
    }
    Ok(Certificate { certified: Arc::new(certified), names })
}

fn unusable(files: &CertificateFiles, source: rustls::Error) -> TlsError {
    let CertificateFiles { certificate, key } = files.clone();
    match source {
        rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => TlsError::Mismatch { certificate, key },
        source => TlsError::Unusable { certificate, key, source },
    }
}

/// What asks clients for a certificate of the CA in `path`.
pub(super) fn client_verifier(
    path: &Path,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
    let error = |source| TlsError::ClientCa { path: path.to_owned(), source };
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots.add(certificate).map_err(|source| error(source.into()))?;
    }
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider));
    verifier.build().map_err(|source| error(source.into()))
}

pub(super) fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let error = |error| TlsError::of_pem(path, error, TlsError::NoCertificate);
    let list: Vec<_> = CertificateDer::pem_file_iter(path).map_err(error)?.collect::<Result<_, _>>().map_err(error)?;
    if list.is_empty() { Err(TlsError::NoCertificate(path.to_owned())) } else { Ok(list) }
}
