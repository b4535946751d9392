//! One question to an ocistern on this machine, over its admin socket, its admin address or a listener: for looking only.
//! Nothing secret is asked for. The caller decides about a token; one that goes over a plain connection goes to this machine
//! alone.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::header::{AUTHORIZATION, HOST};
use http::{HeaderMap, HeaderValue, Request, StatusCode};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::config::{Address, Listener};

/// Longest answer that is read: all metrics of many upstreams.
const MAX_ANSWER: usize = 8 << 20;

/// Where to ask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    /// A Unix socket.
    Unix(PathBuf),
    /// An address that speaks plain HTTP.
    Plain(SocketAddr),
    /// An address that speaks TLS, asked for this host.
    Tls(SocketAddr, String),
}

/// What was answered.
#[derive(Debug)]
pub(super) struct Said {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
    /// The certificate that was shown.
    pub(super) certificate: Option<CertificateDer<'static>>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum Silent {
    /// Nobody listens there, or this user may not ask.
    #[error("{0}")]
    Connect(io::Error),
    /// Somebody listens, and TLS does not come about.
    #[error("TLS: {0}")]
    Tls(io::Error),
    /// Somebody listens, and says nothing that is HTTP.
    #[error("no HTTP: {0}")]
    Http(String),
    /// Somebody listens, or no packet comes back at all.
    #[error("nothing came within {}", Seconds(*.0))]
    Time(Duration),
}

/// A time as people read it.
struct Seconds(Duration);

/// Takes any certificate: it is looked at, and what it protects is not believed.
#[derive(Debug)]
struct TakesAny(Arc<CryptoProvider>);

// === impl Place ===

impl Place {
    /// Where a listener of this machine is asked; `host` is whom TLS asks for. A port that the system chose is not known.
    pub(super) fn of_listener(listener: &Listener) -> Option<Self> {
        match &listener.address {
            Address::Unix(path) => Some(Self::Unix(path.clone())),
            Address::Tcp(address) if address.port() == 0 => None,
            Address::Tcp(address) if listener.tls.is_some() => {
                Some(Self::Tls(reachable(*address), host_of(listener).unwrap_or_else(|| "localhost".to_owned())))
            }
            Address::Tcp(address) => Some(Self::Plain(reachable(*address))),
        }
    }

    /// Asks, within this time.
    pub(super) async fn get(&self, path: &str, token: Option<&HeaderValue>, within: Duration) -> Result<Said, Silent> {
        let asking = async {
            match self {
                Self::Unix(socket) => {
                    let stream = UnixStream::connect(socket).await.map_err(Silent::Connect)?;
                    exchange(stream, "localhost", path, token).await
                }
                Self::Plain(address) => {
                    let stream = TcpStream::connect(address).await.map_err(Silent::Connect)?;
                    exchange(stream, &address.to_string(), path, token).await
                }
                Self::Tls(address, host) => {
                    let stream = TcpStream::connect(address).await.map_err(Silent::Connect)?;
                    let name = ServerName::try_from(host.clone())
                        .unwrap_or_else(|_| ServerName::IpAddress(address.ip().into()));
                    let stream = looking()?.connect(name, stream).await.map_err(Silent::Tls)?;
                    let shown = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
                    let certificate = shown.map(|certificate| certificate.clone().into_owned());
                    let said = exchange(stream, host, path, token).await?;
                    Ok(Said { certificate, ..said })
                }
            }
        };
        timeout(within, asking).await.unwrap_or(Err(Silent::Time(within)))
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "{}", path.display()),
            Self::Plain(address) | Self::Tls(address, _) => address.fmt(f),
        }
    }
}

/// Where a listening address is reached from this machine: one for all addresses, by loopback.
pub(super) fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

/// A name that clients of a listener use, if the configuration has one.
fn host_of(listener: &Listener) -> Option<String> {
    listener.names().into_iter().next()
}

async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    host: &str,
    path: &str,
    token: Option<&HeaderValue>,
) -> Result<Said, Silent> {
    let error = |error: &dyn fmt::Display| Silent::Http(error.to_string());
    let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(|e| error(&e))?;
    let mut request = Request::get(path).header(HOST, host);
    if let Some(token) = token {
        request = request.header(AUTHORIZATION, token);
    }
    let request = request.body(Empty::<Bytes>::new()).map_err(|e| error(&e))?;
    let talk = async {
        let response = sender.send_request(request).await.map_err(|e| error(&e))?;
        let (head, body) = response.into_parts();
        let body = Limited::new(body, MAX_ANSWER).collect().await.map_err(|e| error(&e))?.to_bytes();
        Ok(Said { status: head.status, headers: head.headers, body, certificate: None })
    };
    tokio::pin!(talk, connection);
    tokio::select! {
        biased;
        said = &mut talk => said,
        ended = &mut connection => match ended {
            // The answer may have come with the end.
            Ok(()) => talk.await,
            Err(e) => Err(error(&e)),
        },
    }
}

fn looking() -> Result<TlsConnector, Silent> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions();
    let config = config.map_err(|error| Silent::Tls(io::Error::other(error)))?;
    let config = config.dangerous().with_custom_certificate_verifier(Arc::new(TakesAny(provider)));
    Ok(TlsConnector::from(Arc::new(config.with_no_client_auth())))
}

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = self.0.as_millis();
        if millis.is_multiple_of(1000) { write!(f, "{} s", millis / 1000) } else { write!(f, "{millis} ms") }
    }
}

// === impl TakesAny ===

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
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_for_all_is_reached_by_loopback() {
        for (listening, reached) in [
            ("0.0.0.0:5000", "127.0.0.1:5000"),
            ("[::]:5000", "[::1]:5000"),
            ("10.0.0.7:5000", "10.0.0.7:5000"),
            ("127.0.0.1:80", "127.0.0.1:80"),
        ] {
            assert_eq!(reachable(listening.parse().unwrap()), reached.parse().unwrap());
        }
    }

    #[test]
    fn times_are_readable() {
        assert_eq!(Silent::Time(Duration::from_secs(5)).to_string(), "nothing came within 5 s");
        assert_eq!(Silent::Time(Duration::from_millis(250)).to_string(), "nothing came within 250 ms");
    }
}
