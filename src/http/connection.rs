//! What a handler is told of the connection that a request came by.

use super::access::Peer;
use crate::sendfile::Outlet;

/// A connection of a client.
#[derive(Debug, Clone)]
pub struct Connection {
    /// Who is at its other end.
    pub peer: Peer,
    /// What sends parts of files by it; none where it has no such thing (TLS).
    pub outlet: Option<Outlet>,
}
