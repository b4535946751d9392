//! Why a listener cannot speak TLS.

use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};

use rustls::pki_types::pem;

/// Why a listener cannot speak TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("{path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// A file is no PEM.
    #[error("{path} is not a file in PEM form: {source}")]
    Pem {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: pem::Error,
    },
    /// A file holds no certificate.
    #[error("{0} holds no certificate in PEM form")]
    NoCertificate(PathBuf),
    /// A file holds no key.
    #[error("{0} holds no private key in PEM form; one with a password must be written without it")]
    NoKey(PathBuf),
    /// Certificate and key are of two pairs.
    #[error("the key {key} is not that of the certificate {certificate}")]
    Mismatch {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
    },
    /// A certificate would never be chosen.
    #[error(
        "the certificate {0} has no DNS name in its subjectAltName, so no client would ever be shown it; only the first \
         certificate of a listener may be without"
    )]
    NoName(PathBuf),
    /// The certificate is not usable.
    #[error("the certificate {certificate} and its key {key} cannot be used: {source}")]
    Unusable {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// The cause.
        source: rustls::Error,
    },
    /// The CA of the clients is not usable.
    #[error("the client CA {path} cannot be used: {source}")]
    ClientCa {
        /// Its file.
        path: PathBuf,
        /// The cause.
        source: Box<dyn Error + Send + Sync>,
    },
    /// TLS itself is not to be had.
    #[error("TLS cannot be set up: {0}")]
    Setup(#[source] rustls::Error),
}

// === impl TlsError ===

impl TlsError {
    /// What went wrong with the PEM file at `path`; `missing` is what it should hold.
    pub(super) fn of_pem(path: &Path, source: pem::Error, missing: fn(PathBuf) -> Self) -> Self {
        let path = path.to_owned();
        match source {
            pem::Error::Io(source) => Self::Read { path, source },
            pem::Error::NoItemsFound => missing(path),
            source => Self::Pem { path, source },
        }
    }

    /// Whether a file could not be read here, which may be otherwise for another user or on another machine.
    pub const fn is_unreadable(&self) -> bool {
        matches!(self, Self::Read { .. })
    }

    /// The file that is wrong, or does not fit to another one.
    pub fn file(&self) -> Option<&Path> {
        match self {
            Self::Read { path, .. }
            | Self::Pem { path, .. }
            | Self::ClientCa { path, .. }
            | Self::NoCertificate(path)
            | Self::NoKey(path)
            | Self::NoName(path)
            | Self::Mismatch { key: path, .. }
            | Self::Unusable { certificate: path, .. } => Some(path),
            Self::Setup(_) => None,
        }
    }
}
