//! What a handler is told of the connection that a request came by.

use super::access::Peer;
use crate::config::Listener;
use crate::sendfile::Outlet;

/// A connection of a client.
#[derive(Debug, Clone)]
pub struct Connection {
    /// Who is at its other end.
    pub peer: Peer,
    /// What sends parts of files by it; none where it has no such thing (TLS).
    pub outlet: Option<Outlet>,
    /// What its handshake has shown. Not what the listener's configuration says: that may have changed since.
    pub security: Security,
}

/// What is known of a connection by its handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Security {
    /// There was none: whoever is on the way can read along.
    Plain,
    /// TLS.
    Tls,
    /// TLS, and the client has shown a certificate of the listener's CA.
    Certified,
}

// === impl Security ===

impl Security {
    /// Of connections that a listener with this configuration accepts.
    pub fn of(listener: &Listener) -> Self {
        match &listener.tls {
            None => Self::Plain,
            Some(tls) if tls.client_ca.is_none() => Self::Tls,
            // It could not have come any further without a certificate.
            Some(_) => Self::Certified,
        }
    }
}
