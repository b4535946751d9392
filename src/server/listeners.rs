//! The listeners that are served: each with settings of its own, on however many sockets it has.
//!
//! Of the configured listeners some are not served (left out, or no such address here), and systemd passes sockets in an order
//! of its own, two for a pair of addresses. So a listener is known by its place in the configuration, which it keeps as long as
//! the daemon runs ([`Config::reload`] takes nothing away and adds nothing), and never by the order of sockets.

use std::sync::Arc;

use tokio::task::spawn_blocking;

use super::activity::Clients;
use super::connection::{Run, Serving};
use super::edge::RegistryHandler;
use super::listener::{self, Inherited, Opened, Socket};
use super::permits::{Loopback, Permits};
use super::reload::ReloadError;
use super::tls::Tls;
use super::{StartError, files};
#[cfg(doc)]
use crate::config::Config;
use crate::config::{Limits, Listener};
use crate::http::{App, ListenerState};

/// All listeners that are served.
#[derive(Clone)]
pub(super) struct Listeners {
    served: Vec<Served>,
    sockets: usize,
    permits: Permits,
}

/// One of them.
#[derive(Clone)]
struct Served {
    /// Where it stands among the configured ones.
    place: usize,
    /// The addresses that it has, as messages name it.
    name: String,
    serving: Arc<Serving<RegistryHandler>>,
}

/// A socket, and what serves its connections.
pub(super) type ServedSocket = (Socket, Arc<Serving<RegistryHandler>>);

/// What a listener goes on by.
pub(super) struct Turn {
    serving: Arc<Serving<RegistryHandler>>,
    settings: Listener,
    speech: Speech,
}

/// What connections of a listener speak from now on.
enum Speech {
    /// What they do.
    AsBefore,
    /// Plain HTTP.
    Plain,
    /// TLS by these files.
    Tls(Arc<Tls>),
}

// === impl Listeners ===

impl Listeners {
    /// Opens every listener, by `app`'s configuration; nothing is accepted yet.
    pub(super) async fn open(
        app: &Arc<App>,
        run: &Run,
        inherited: Inherited,
    ) -> Result<(Self, Vec<ServedSocket>), StartError> {
        let (configured, limits) = (&app.config.listeners, &app.config.limits);
        let opened = listener::open(configured, inherited).await?;
        let count = opened.iter().map(|opened| opened.sockets.len()).sum();
        let permits = Permits::new(connections(limits, count), limits.connections_per_address, Loopback::Free);
        let (mut served, mut all) = (Vec::with_capacity(opened.len()), Vec::with_capacity(count));
        for Opened { place, settings, sockets } in opened {
            let name = sockets.iter().map(Socket::to_string).collect::<Vec<_>>().join(", ");
            let tls = tls_of(&name, &settings).await?;
            let handler = RegistryHandler::new(app.clone(), ListenerState::new(settings));
            let serving = Serving::new(handler, tls, permits.clone(), (Clients::Anybody, limits), run.clone());
            all.extend(sockets.into_iter().map(|socket| (socket, Arc::clone(&serving))));
            served.push(Served { place, name, serving });
        }
        Ok((Self { served, sockets: count, permits }, all))
    }

    /// Takes up what the files with users hold now. Blocking.
    pub(super) fn look_at_users(&self) {
        for served in &self.served {
            served.serving.handler().look_at_users();
        }
    }

    /// What each of them goes on by, of the listeners of a configuration that is to hold. Changes nothing. Blocking.
    pub(super) fn prepare(&self, next: &[Listener]) -> Result<Vec<Turn>, ReloadError> {
        let turn = |Served { place, name, serving }: &Served| {
            let own = serving.handler().settings();
            // Its address is what a listener is; what stands in its place under another one is not it.
            let settings = next.get(*place).filter(|new| new.address == own.address).cloned();
            let settings = settings.unwrap_or_else(|| own.clone());
            let speech = Speech::of(name, &own, &settings)?;
            Ok(Turn { serving: Arc::clone(serving), settings, speech })
        };
        self.served.iter().map(turn).collect()
    }

    /// Connections and requests that come from here on are served so.
    pub(super) fn take_over(&self, turns: Vec<Turn>, app: &Arc<App>) {
        let limits = &app.config.limits;
        self.permits.set(connections(limits, self.sockets), limits.connections_per_address);
        for Turn { serving, settings, speech } in turns {
            match speech {
                Speech::AsBefore => {}
                Speech::Plain => serving.set_tls(None),
                Speech::Tls(tls) => serving.set_tls(Some(tls)),
            }
            serving.set_limits(limits);
            serving.handler().take_over(app.clone(), settings);
        }
    }
}

/// How many there may be: every socket holds one place for the connection that it waits for.
fn connections(limits: &Limits, sockets: usize) -> usize {
    files::connections(limits.connections).max(sockets)
}

async fn tls_of(name: &str, settings: &Listener) -> Result<Option<Arc<Tls>>, StartError> {
    let Some(tls) = settings.tls.clone() else { return Ok(None) };
    let named = name.to_owned();
    let tls = spawn_blocking(move || Tls::open(named, tls)).await?;
    tls.map(|tls| Some(Arc::new(tls))).map_err(|source| StartError::Tls { listener: name.to_owned(), source })
}

// === impl Speech ===

impl Speech {
    /// Blocking.
    fn of(name: &str, old: &Listener, new: &Listener) -> Result<Self, ReloadError> {
        // The files themselves are looked at anyway, whenever they change.
        if old.tls == new.tls {
            return Ok(Self::AsBefore);
        }
        let Some(settings) = &new.tls else { return Ok(Self::Plain) };
        match Tls::open(name.to_owned(), settings.clone()) {
            Ok(tls) => Ok(Self::Tls(Arc::new(tls))),
            Err(source) => Err(ReloadError::Tls { listener: name.to_owned(), source }),
        }
    }
}
