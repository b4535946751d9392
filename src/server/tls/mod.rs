//! TLS of a listener: its certificates and the CA of its clients, by one explicit provider, and renewed with their files.
//!
//! Certificates live for weeks and are replaced on disk by programs that know nothing of ocistern. A handshake that
//! comes looks at the files, if nobody has for a while.

mod error;
mod files;
mod leaf;
mod names;
#[cfg(test)]
mod tests;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rustls::ServerConfig;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::server::danger::ClientCertVerifier;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::task::TaskTracker;

pub use self::error::TlsError;
use self::files::FromFiles;
pub use self::leaf::{Leaf, leaves};
use self::names::{ByName, Certificate};
use crate::config::{CertificateFiles, ListenerTls};
use crate::http::connection::Security;

/// How often the files are looked at, at most.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// How long a handshake waits for what is on the disk, before it goes on with what is known.
const WAIT: Duration = Duration::from_secs(1);

/// What accepts the TLS connections of a listener.
pub(super) struct Tls {
    /// For the log.
    listener: String,
    settings: ListenerTls,
    /// Held by who looks at the files, on the blocking pool. Goes before `current`.
    loaded: Mutex<Loaded>,
    current: Mutex<Current>,
}

/// What the files held when they were last of use.
struct Loaded {
    provider: Arc<CryptoProvider>,
    certificates: Vec<FromFiles<Certificate>>,
    client_ca: Option<FromFiles<Arc<dyn ClientCertVerifier>>>,
}

/// What handshakes use.
struct Current {
    config: Arc<ServerConfig>,
    look_at: Instant,
}

/// All that keeps a listener from speaking TLS with these files. Reads them.
pub fn check(settings: &ListenerTls) -> Vec<TlsError> {
    let one = |place: usize, certificates: &[CertificateFiles], client_ca: Option<&PathBuf>| {
        let settings = ListenerTls { certificates: certificates.to_vec(), client_ca: client_ca.cloned() };
        Loaded::read_from(place, &settings).and_then(|loaded| loaded.config()).err()
    };
    let each = settings.certificates.iter().enumerate();
    let certificates = each.filter_map(|(place, files)| one(place, std::slice::from_ref(files), None));
    certificates.chain(settings.client_ca.iter().filter_map(|path| one(0, &[], Some(path)))).collect()
}

// === impl Tls ===

impl Tls {
    /// TLS with the files as they are. Blocking.
    pub(super) fn open(listener: String, settings: ListenerTls) -> Result<Self, TlsError> {
        let look_at = Instant::now() + LOOK_EVERY;
        let loaded = Loaded::read(&settings)?;
        let current = Current { config: loaded.config()?, look_at };
        Ok(Self { listener, settings, loaded: Mutex::new(loaded), current: Mutex::new(current) })
    }

    /// What is known of a client that has come through its handshake.
    pub(super) fn security(&self) -> Security {
        if self.settings.client_ca.is_some() { Security::Certified } else { Security::Tls }
    }

    /// What accepts the next connection.
    pub(super) async fn acceptor(self: &Arc<Self>, tasks: &TaskTracker) -> TlsAcceptor {
        if self.is_due() {
            let this = Arc::clone(self);
            let looking = tasks.spawn_blocking(move || this.renew());
            // A disk that hangs must not keep clients out.
            let _ = timeout(WAIT, looking).await;
        }
        TlsAcceptor::from(Arc::clone(&self.current.lock().config))
    }

    /// Whether it is time to look, which is then the caller's task.
    fn is_due(&self) -> bool {
        let now = Instant::now();
        let mut current = self.current.lock();
        let due = now >= current.look_at;
        if due {
            current.look_at = now + LOOK_EVERY;
        }
        due
    }

    /// Takes up what has changed on the disk. Blocking.
    fn renew(&self) {
        // Somebody may be looking since the last time, at a disk that hangs.
        let Some(mut loaded) = self.loaded.try_lock() else { return };
        if !loaded.renew(&self.listener, &self.settings) {
            return;
        }
        match loaded.config() {
            // A new one, also for a certificate alone: who resumed a session of the old one would not be asked for a
            // certificate of the new CA.
            Ok(config) => self.current.lock().config = config,
            Err(error) => tracing::warn!(listener = self.listener, %error, "the renewed TLS files are not in use"),
        }
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls")
            .field("listener", &self.listener)
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

// === impl Loaded ===

impl Loaded {
    fn read(settings: &ListenerTls) -> Result<Self, TlsError> {
        Self::read_from(0, settings)
    }

    /// As if there were so many certificates before these.
    fn read_from(before: usize, settings: &ListenerTls) -> Result<Self, TlsError> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let certificate = |(place, files): (usize, &CertificateFiles)| {
            let paths = vec![files.certificate.clone(), files.key.clone()];
            FromFiles::read(paths, || files::certificate(files, before + place > 0, &provider))
        };
        let certificates = settings.certificates.iter().enumerate().map(certificate).collect::<Result<_, _>>()?;
        let client_ca = settings
            .client_ca
            .as_ref()
            .map(|path| FromFiles::read(vec![path.clone()], || files::client_verifier(path, &provider)));
        let client_ca = client_ca.transpose()?;
        Ok(Self { provider, certificates, client_ca })
    }

    /// Reads again what has changed; whether anything has, that can be used.
    fn renew(&mut self, listener: &str, settings: &ListenerTls) -> bool {
        let mut renewed = false;
        let certificates = self.certificates.iter_mut().zip(&settings.certificates);
        for (place, (certificate, files)) in certificates.enumerate() {
            renewed |= certificate.renew(listener, || files::certificate(files, place > 0, &self.provider));
        }
        if let Some((client_ca, path)) = self.client_ca.as_mut().zip(settings.client_ca.as_ref()) {
            renewed |= client_ca.renew(listener, || files::client_verifier(path, &self.provider));
        }
        renewed
    }

    fn config(&self) -> Result<Arc<ServerConfig>, TlsError> {
        let builder = ServerConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_safe_default_protocol_versions()
            .map_err(TlsError::Setup)?;
        let builder = match &self.client_ca {
            None => builder.with_no_client_auth(),
            Some(verifier) => builder.with_client_cert_verifier(Arc::clone(&verifier.value)),
        };
        let certificates = self.certificates.iter().map(|certificate| &certificate.value);
        let mut config = builder.with_cert_resolver(Arc::new(ByName::new(certificates)));
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }
}
