//! TLS from the outside: an authority whose certificates become files, and clients that verify, show a certificate of
//! their own, or only look at what they are shown.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use rcgen::{
    BasicConstraints, Certificate, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair,
};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::client::{Ask, Client, Got};

/// An authority.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A certificate for a client, with its key.
#[derive(Debug)]
pub struct Identity {
    certificate: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
}

/// Where a client connects to, and what it wants and shows there.
#[derive(Debug, Clone)]
pub struct TlsClient {
    address: SocketAddr,
    name: String,
    roots: Arc<RootCertStore>,
    identity: Option<Arc<Identity>>,
}

// === impl Authority ===

impl Authority {
    /// A new one.
    pub fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    /// A new one, whose certificate is the file at `path`.
    pub fn at(path: &Path) -> Self {
        let authority = Self::new();
        replace(path, &authority.pem());
        authority
    }

    /// Its certificate.
    pub fn pem(&self) -> String {
        self.0.pem()
    }

    /// A server's certificate for these names and this key.
    pub fn certificate(&self, names: &[&str], key: &KeyPair) -> Certificate {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.signed_by(key, &self.0).unwrap()
    }

    /// A certificate for these names, as the files `STEM.pem` and `STEM.key` in `directory`.
    pub fn server(&self, directory: &Path, stem: &str, names: &[&str]) -> CertificateDer<'static> {
        self.server_with(directory, stem, names, &KeyPair::generate().unwrap())
    }

    /// The same with this key.
    pub fn server_with(&self, directory: &Path, stem: &str, names: &[&str], key: &KeyPair) -> CertificateDer<'static> {
        let certificate = self.certificate(names, key);
        replace(&directory.join(format!("{stem}.pem")), &certificate.pem());
        replace(&directory.join(format!("{stem}.key")), &key.serialize_pem());
        certificate.der().clone()
    }

    /// A certificate for a client.
    pub fn client(&self) -> Arc<Identity> {
        self.client_with(|params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth])
    }

    /// One that is for something else, or not yet or no longer.
    pub fn client_with(&self, change: impl FnOnce(&mut CertificateParams)) -> Arc<Identity> {
        let mut params = CertificateParams::new(vec!["client.test".to_owned()]).unwrap();
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap().der().clone();
        Arc::new(Identity { certificate, key: PrivateKeyDer::try_from(key.serialize_der()).unwrap() })
    }
}

/// Puts a file into place as programs do that renew certificates.
pub fn replace(path: &Path, text: &str) {
    let new = path.with_extension("new");
    std::fs::write(&new, text).unwrap();
    std::fs::rename(new, path).unwrap();
}

// === impl TlsClient ===

impl TlsClient {
    /// One that asks for `name`, and trusts this authority alone.
    pub fn new(address: SocketAddr, authority: &Authority, name: &str) -> Self {
        let mut roots = RootCertStore::empty();
        roots.add(authority.0.der().clone()).unwrap();
        Self { address, name: name.to_owned(), roots: Arc::new(roots), identity: None }
    }

    /// Shows a certificate.
    #[must_use]
    pub fn with(self, identity: &Arc<Identity>) -> Self {
        Self { identity: Some(Arc::clone(identity)), ..self }
    }

    /// Sends a request on a connection of its own, to the host that it asked for.
    pub async fn send(&self, ask: Ask) -> Got {
        let alpn = if ask.is_http2() { "h2" } else { "http/1.1" };
        let builder = builder().with_root_certificates(Arc::clone(&self.roots));
        let mut config = match &self.identity {
            None => builder.with_no_client_auth(),
            Some(identity) => {
                builder.with_client_auth_cert(vec![identity.certificate.clone()], identity.key.clone_key()).unwrap()
            }
        };
        config.alpn_protocols = vec![alpn.as_bytes().to_vec()];
        match super::patiently("a handshake", connect(self.address, &self.name, config)).await {
            Ok(stream) => {
                assert_eq!(stream.get_ref().1.alpn_protocol(), Some(alpn.as_bytes()));
                Box::pin(Client::send_over(stream, &self.name, ask)).await
            }
            Err(error) => Got::none(format!("handshake: {error}")),
        }
    }
}

/// The certificate that a client is shown which asks for `name` (none: it does not say) and takes any.
pub async fn shown(address: SocketAddr, name: Option<&str>) -> CertificateDer<'static> {
    shown_to(address, name, &aws_lc_rs::default_provider().signature_verification_algorithms.supported_schemes()).await
}

/// The same for a client that knows these signatures only.
pub async fn shown_to(address: SocketAddr, name: Option<&str>, schemes: &[SignatureScheme]) -> CertificateDer<'static> {
    let verifier = Arc::new(TakesAny(schemes.to_vec()));
    let mut config = builder().dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth();
    config.enable_sni = name.is_some();
    let connect = connect(address, name.unwrap_or("unsaid.test"), config);
    let stream = super::patiently("a handshake", connect).await.unwrap();
    stream.get_ref().1.peer_certificates().unwrap()[0].clone().into_owned()
}

async fn connect(address: SocketAddr, name: &str, config: ClientConfig) -> std::io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(address).await?;
    let name = ServerName::try_from(name.to_owned()).unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, stream).await
}

fn builder() -> rustls::ConfigBuilder<ClientConfig, rustls::WantsVerifier> {
    let provider: Arc<CryptoProvider> = Arc::new(aws_lc_rs::default_provider());
    ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap()
}

/// Verifies nothing: for looking only.
#[derive(Debug)]
struct TakesAny(Vec<SignatureScheme>);

impl ServerCertVerifier for TakesAny {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.clone()
    }
}
