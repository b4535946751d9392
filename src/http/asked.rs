//! A request and where it came by: what everything that decides about it looks at.

use std::sync::Arc;

use http::StatusCode;
use http::request::Parts;

use super::access::{self, Peer};
use super::challenge::Place;
use super::connection::Security;
use super::respond::Failure;
use super::seal::{Inner, Pass};
use super::{App, ListenerState};
use crate::config::Upstream;
use crate::oci::{ErrorCode, UpstreamName};
use crate::party::Party;
use crate::sendfile::Outlet;
use crate::upstream::Registry;

/// A request, without its body, and where it came by.
#[derive(Clone, Copy)]
pub(super) struct Asked<'a> {
    pub(super) app: &'a App,
    pub(super) listener: &'a ListenerState,
    pub(super) peer: Peer,
    /// What sends parts of files by its connection.
    pub(super) outlet: Option<&'a Outlet>,
    /// What its connection has shown.
    pub(super) security: Security,
    /// The `Host` field or authority.
    pub(super) host: Option<&'a str>,
    pub(super) parts: &'a Parts,
}

// === impl Asked ===

impl<'a> Asked<'a> {
    /// The listener, and the name by which the client reached it.
    pub(super) fn place(&self) -> Place<'a> {
        Place { listener: &self.listener.config, host: self.host }
    }

    /// The configuration of an upstream.
    pub(super) fn upstream(&self, name: &UpstreamName) -> Result<&'a Arc<Upstream>, Failure> {
        let unknown = || Failure::internal(format!("the upstream {name} that a route led to is not configured"));
        self.app.config.upstreams.get(name).ok_or_else(unknown)
    }

    /// What asks an upstream.
    pub(super) fn registry(&self, name: &UpstreamName) -> Result<Arc<Registry>, Failure> {
        let unknown = || Failure::internal(format!("the upstream {name} that a route led to is not set up"));
        self.app.upstreams.get(name).ok_or_else(unknown)
    }

    /// As who it counts where something scarce is shared out.
    pub(super) fn party(&self) -> Party {
        access::party(&self.peer, &self.parts.headers)
    }

    /// Whether the client has shown a certificate of the listener's CA, which the listener still wants.
    pub(super) fn is_certified(&self) -> bool {
        self.security == Security::Certified && Security::of(&self.listener.config) == Security::Certified
    }

    /// The same for a token: one that holds nothing may cross any network.
    pub(super) fn refuse_plain_pass(&self, pass: &Pass) -> Result<(), Failure> {
        let holds_nothing = pass.grants.iter().all(|grant| grant.inner == Inner::Anonymous);
        if holds_nothing { Ok(()) } else { self.refuse_plain() }
    }

    /// A credential that crosses a network in the clear is not used, so that it is noticed.
    pub(super) fn refuse_plain(&self) -> Result<(), Failure> {
        let listener = &self.listener.config;
        if self.security != Security::Plain || listener.allow_plain_credentials || self.peer.is_local() {
            return Ok(());
        }
        let message = "credentials are not taken over plain HTTP from another machine: connect by TLS, or set \
                       allow_plain_credentials = true of this listener where the network in between is trusted";
        Err(Failure::new(StatusCode::FORBIDDEN, ErrorCode::Denied, message))
    }
}
