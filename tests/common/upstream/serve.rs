//! The scripted upstream's sockets: listening, refusing, and the loop over the requests of a connection.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ocistern::oci::{Algorithm, Hasher};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use socket2::{Domain, Socket, Type};
use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::super::tls::Authority;
use super::registry::error;
use super::wire::{Conn, Cut, Request};
use super::{Entry, Shared, Then};

/// A port, which may be listening or not.
pub struct Server {
    /// Bound, never listening: holds the port while nobody listens, so that a refused connection is refused and
    /// does not reach another test's server.
    reserved: Socket,
    tasks: JoinSet<()>,
}

impl Server {
    /// Reserves a free port without listening on it.
    pub fn reserve() -> Self {
        Self { reserved: bind(0), tasks: JoinSet::new() }
    }

    pub fn port(&self) -> u16 {
        self.reserved.local_addr().unwrap().as_socket().unwrap().port()
    }

    /// Ends the listener and every connection.
    pub fn down(&mut self) {
        self.tasks = JoinSet::new();
    }

    /// Listens.
    pub fn up(&mut self, shared: &Arc<Shared>) {
        let socket = bind(self.port());
        socket.listen(1024).unwrap();
        let listener = TcpListener::from_std(socket.into()).unwrap();
        self.tasks.spawn(accept(listener, Arc::clone(shared)));
    }
}

fn bind(port: u16) -> Socket {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_reuse_port(true).unwrap();
    socket.set_reuse_address(true).unwrap();
    socket.set_nonblocking(true).unwrap();
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, port)).into()).unwrap();
    socket
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    // Owned here: aborting this task ends the connections too.
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        shared.connections.fetch_add(1, Ordering::Relaxed);
        connections.spawn(converse(stream, Arc::clone(&shared)));
        while connections.try_join_next().is_some() {}
    }
}

async fn converse(stream: TcpStream, shared: Arc<Shared>) {
    // Without this, small pieces wait for the kernel's delayed acknowledgement.
    let _ = stream.set_nodelay(true);
    let held = shared.handshakes.lock().clone();
    if let Some(gate) = held {
        gate.pass().await;
    }
    let mut conn = match &shared.tls {
        None => Conn::Plain(stream),
        Some(acceptor) => match acceptor.accept(stream).await {
            Ok(stream) if stream.get_ref().1.alpn_protocol() == Some(b"h2") => {
                return super::h2::converse(hyper_util::rt::TokioIo::new(stream), shared).await;
            }
            Ok(stream) => Conn::Tls(Box::new(stream)),
            Err(_) => return,
        },
    };
    let mut buffer = Vec::new();
    while let Ok(Some(mut request)) = Request::read_head(&mut conn, &mut buffer).await {
        if shared.swallows(&request) {
            request.hasher = Some(Hasher::new(Algorithm::Sha256));
        }
        for intake in shared.intakes(&request) {
            if !matches!(request.read_body(&mut conn, &mut buffer, Some(intake.at)).await, Ok(true)) {
                return shared.broken(request);
            }
            match &intake.then {
                Then::Hold(gate) => gate.pass().await,
                Then::Cut(cut) => {
                    shared.broken(request);
                    let _ = conn.end(*cut);
                    return;
                }
                Then::Answer(status, code) => {
                    let reply = error(*status, code);
                    shared.broken(request);
                    let _ = reply.write(&mut conn, &AtomicU64::new(0)).await;
                    let _ = conn.end(Cut::Fin);
                    // What still comes is thrown away, as servers do: a reset would overtake the answer.
                    while matches!(conn.read_buf(&mut Vec::new()).await, Ok(1..)) {}
                    return;
                }
            }
        }
        if !matches!(request.read_body(&mut conn, &mut buffer, None).await, Ok(true)) {
            return shared.broken(request);
        }
        let reply = shared.reply(&request);
        let sent = Arc::new(AtomicU64::new(0));
        let entry = Entry { request, at: tokio::time::Instant::now(), status: reply.status, sent: Arc::clone(&sent) };
        shared.log.send_modify(|log| log.push(entry));
        if !matches!(reply.write(&mut conn, &sent).await, Ok(true)) {
            return;
        }
    }
}

/// A TLS server for 127.0.0.1 and localhost that offers these protocols by ALPN, and its CA's certificate as PEM.
pub fn tls_acceptor(protocols: &[&[u8]]) -> (TlsAcceptor, String) {
    let authority = Authority::new();
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = authority.certificate(&["127.0.0.1", "localhost"], &key);
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![certificate.der().clone()],
            PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
        )
        .unwrap();
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    (TlsAcceptor::from(Arc::new(config)), authority.pem())
}
