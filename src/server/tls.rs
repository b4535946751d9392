//! TLS of a listener: certificate, key, and the CA of its clients, by one explicit provider.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio_rustls::TlsAcceptor;

use crate::config::ListenerTls;

/// Why a listener cannot speak TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read, or is no PEM.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: pem::Error,
    },
    /// A file holds no certificate.
    #[error("{0} holds no certificate in PEM form")]
    NoCertificate(PathBuf),
    /// Certificate and key do not fit, or are not usable.
    #[error("the certificate {certificate} and its key cannot be used: {source}")]
    Unusable {
        /// The certificate's file.
        certificate: PathBuf,
        /// The cause.
        source: rustls::Error,
    },
    /// The CA of the clients is not usable.
    #[error("the client CA {path} cannot be used: {source}")]
    ClientCa {
        /// Its file.
        path: PathBuf,
        /// The cause.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// What accepts TLS connections by this configuration. Reads files.
pub(super) fn acceptor(tls: &ListenerTls) -> Result<TlsAcceptor, TlsError> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let unusable = |source| TlsError::Unusable { certificate: tls.certificate.clone(), source };
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(unusable)?;
    let builder = match &tls.client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let error = |source| TlsError::ClientCa { path: path.clone(), source };
            let mut roots = RootCertStore::empty();
            for certificate in certificates(path)? {
                roots.add(certificate).map_err(|source| error(source.into()))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            builder.with_client_cert_verifier(verifier.build().map_err(|source| error(source.into()))?)
        }
    };
    let key =
        PrivateKeyDer::from_pem_file(&tls.key).map_err(|source| TlsError::File { path: tls.key.clone(), source })?;
    let mut config = builder.with_single_cert(certificates(&tls.certificate)?, key).map_err(unusable)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let error = |source| TlsError::File { path: path.to_owned(), source };
    let list: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path).map_err(error)?.collect();
    let list = list.map_err(error)?;
    if list.is_empty() { Err(TlsError::NoCertificate(path.to_owned())) } else { Ok(list) }
}
