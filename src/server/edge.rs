//! What answers the requests of a listener: exchanged as a whole when the configuration is read again, so that each request
//! sees one configuration from its beginning to its end.

use std::sync::Arc;

use arc_swap::ArcSwap;
use http::{Request, Response};
use hyper::body::Incoming;

use super::activity::Heard;
use super::connection::Handler;
use crate::config::Listener;
use crate::http::admin::Admin;
use crate::http::body::Body;
use crate::http::connection::Connection;
use crate::http::{App, ListenerState, handle};

/// What the requests of a listener are served with.
struct Edge {
    app: Arc<App>,
    listener: ListenerState,
}

/// Answers registry clients of one listener.
#[derive(Clone)]
pub(super) struct RegistryHandler(Arc<ArcSwap<Edge>>);

/// Answers the admin interface.
#[derive(Debug, Clone)]
pub(super) struct AdminHandler(pub(super) Arc<Admin>);

// === impl RegistryHandler ===

impl RegistryHandler {
    pub(super) fn new(app: Arc<App>, listener: ListenerState) -> Self {
        Self(Arc::new(ArcSwap::from_pointee(Edge { app, listener })))
    }

    /// What its listener goes by now.
    pub(super) fn settings(&self) -> Listener {
        self.0.load().listener.config.clone()
    }

    /// Who may use it is looked up anew at once, and not only after a while. Blocking.
    pub(super) fn look_at_users(&self) {
        if let Some(users) = &self.0.load().listener.htpasswd {
            users.renew();
        }
    }

    /// Requests that come from here on are served so; those that are running end by what was there.
    pub(super) fn take_over(&self, app: Arc<App>, settings: Listener) {
        let listener = self.0.load().listener.with(settings);
        self.0.store(Arc::new(Edge { app, listener }));
    }
}

impl Handler for RegistryHandler {
    async fn handle(&self, connection: Connection, request: Request<Heard<Incoming>>) -> Response<Body> {
        // A guard, not another owner: a counter that all processors write to would be all that they do.
        let edge = self.0.load();
        handle(&edge.app, &edge.listener, connection, request).await
    }
}

// === impl AdminHandler ===

impl Handler for AdminHandler {
    async fn handle(&self, connection: Connection, request: Request<Heard<Incoming>>) -> Response<Body> {
        self.0.handle(connection.peer, request).await
    }
}
