//! The daemon: what is started, in which order, and how it stops.
//!
//! Start: store, upstreams, cache, admin interface (not ready), listeners, ready. Stop, in the opposite order: no
//! further connections, not ready, running answers to their end or the deadline and open uploads, downloads, background
//! tasks, admin interface, store.

mod activity;
mod admin_socket;
mod connection;
mod edge;
mod files;
mod inherited;
mod listener;
mod listeners;
mod notify;
mod permits;
mod reload;
mod root;
mod sending;
mod stream;
mod supervise;
#[cfg(test)]
mod tests;
mod tls;

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::task::{JoinError, spawn_blocking};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use self::activity::Clients;
pub use self::admin_socket::admin_socket_path;
use self::connection::{Run, Serving};
use self::edge::AdminHandler;
pub use self::files::raise_limit;
pub use self::listener::{Inherited, ListenError, can_listen};
use self::listener::{Purpose, Socket};
use self::listeners::{Listeners, ServedSocket};
use self::permits::{Loopback, Permits};
pub use self::reload::ReloadError;
pub use self::tls::{Leaf, TlsError, check as check_tls, leaves};
use crate::cache::Cache;
use crate::clock::{Clock, Steady, SystemClock};
use crate::config::{Config, Scrub};
use crate::http::admin::{Admin, Api, Live, Readiness, Stage};
use crate::http::route::Directory;
use crate::http::{App, Locations, Seal};
use crate::metrics::{Connections, Metrics};
use crate::store::{Keep, Store, StoreError, StoreOptions};
use crate::upstream::{SetupError, Upstreams};

/// Connections that the admin interface has at most: on its socket, and on its address in all and from one client. Who sits on
/// the address takes no place on the socket, by which health is asked and commands come, and leaves some for who asks from
/// elsewhere.
const ADMIN_CONNECTIONS: usize = 64;
const ADMIN_CONNECTIONS_PER_ADDRESS: usize = 16;
/// Who may connect to the admin socket: its owner.
const ADMIN_SOCKET_MODE: u32 = 0o600;
/// How long tasks have to end that were told to; none waits for anything but the disk.
const TASKS_END_WITHIN: Duration = Duration::from_secs(10);

/// A running daemon. Dropping it stops it without grace; [`Server::stop`] is the proper way.
pub struct Server {
    addresses: Vec<SocketAddr>,
    admin_address: Option<SocketAddr>,
    metrics: Metrics,
    readiness: Readiness,
    store: Store,
    cache: Arc<Cache>,
    upstreams: Arc<Upstreams>,
    app: Arc<App>,
    listeners: Listeners,
    admin_interface: Arc<Admin>,
    /// What serves it: its socket, its address.
    admin_servings: Vec<Arc<Serving<AdminHandler>>>,
    /// What holds now.
    current: Mutex<Arc<Config>>,
    drain: Mutex<Duration>,
    /// Ends the running scrub.
    scrubbing: Mutex<DropGuard>,
    registry: Run,
    admin: Run,
    background: Background,
    /// Cancels what still runs, when the server is dropped.
    _guards: [DropGuard; 5],
}

/// The admin interface as it was opened.
#[derive(Default)]
struct AdminOpened {
    address: Option<SocketAddr>,
    servings: Vec<Arc<Serving<AdminHandler>>>,
}

/// Downloads and upkeep.
#[derive(Debug, Clone, Default)]
struct Background {
    stop: CancellationToken,
    tasks: TaskTracker,
}

/// Why the daemon cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The store cannot be opened.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The store is another user's.
    #[error(
        "{} belongs to the user {owner}, who could not read what root writes there: serve as that user, or give the root \
         to this one (chown -R)", root.display()
    )]
    Owner {
        /// The root.
        root: PathBuf,
        /// Its owner.
        owner: u32,
    },
    /// An upstream's configuration cannot be used.
    #[error(transparent)]
    Upstreams(#[from] SetupError),
    /// A socket cannot be opened.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// A listener cannot speak TLS.
    #[error("TLS of the listener {listener}: {source}")]
    Tls {
        /// Its address.
        listener: String,
        /// The cause.
        source: TlsError,
    },
    /// The metrics cannot be registered.
    #[error("the metrics cannot be registered")]
    Metrics(#[from] prometheus::Error),
    /// A step of the start panicked.
    #[error("a step of the start did not end properly")]
    Step(#[from] JoinError),
}

// === impl Server ===

impl Server {
    /// Starts the daemon; it is ready when this returns. No upstream is asked for anything.
    pub async fn start(config: Config) -> Result<Self, StartError> {
        Self::start_with(config, Inherited::default(), Arc::new(SystemClock)).await
    }

    /// As [`Server::start`], on sockets that systemd opened and by another clock.
    pub async fn start_with(config: Config, inherited: Inherited, clock: Arc<dyn Clock>) -> Result<Self, StartError> {
        let metrics = Metrics::new()?;
        let store = open_store(&config, metrics.clone(), clock).await?;
        let started = Self::start_on(store.clone(), Arc::new(config), metrics, inherited).await;
        if started.is_err() {
            store.close().await;
        }
        started
    }

    async fn start_on(
        store: Store,
        config: Arc<Config>,
        metrics: Metrics,
        inherited: Inherited,
    ) -> Result<Self, StartError> {
        let (registry, admin_run, background) = (Run::default(), Run::default(), Background::default());
        let guards = [&registry.drain, &registry.abort, &admin_run.drain, &admin_run.abort, &background.stop]
            .map(|token| token.clone().drop_guard());
        let upstreams = {
            let (config, metrics, clock) = (config.clone(), metrics.clone(), store.timeline().clock().clone());
            Arc::new(spawn_blocking(move || Upstreams::new(&config, metrics, clock)).await??)
        };
        background.tasks.spawn({
            let (store, stop) = (store.clone(), background.stop.clone());
            async move { store.run(stop).await }
        });
        let scrubbing = background.scrub(&store, config.store.scrub);
        let (tasks, stop) = (background.tasks.clone(), background.stop.clone());
        let cache = Cache::new(store.clone(), Arc::clone(&upstreams), &config, metrics.clone(), tasks, stop);

        let readiness = Readiness::default();
        let user = rustix::process::geteuid().as_raw();
        let live = Live { cache: Arc::clone(&cache), upstreams: Arc::clone(&upstreams) };
        let api = Api::new(store.clone(), Some(live));
        let admin = Arc::new(Admin::new(config.clone(), metrics.clone(), readiness.clone(), user, api));
        background.tasks.spawn({
            let (admin, stop) = (Arc::clone(&admin), background.stop.clone());
            async move { admin.keep_history(&stop).await }
        });
        let AdminOpened { address: admin_address, servings: admin_servings } =
            start_admin(&config, &store, &admin, &admin_run, &metrics).await?;

        let app = Arc::new(App {
            directory: Directory::new(&config),
            config: config.clone(),
            cache: Arc::clone(&cache),
            upstreams: Arc::clone(&upstreams),
            seal: Arc::new(Seal::new(&private_key(&store, "token").await?)),
            locations: Arc::new(Locations::new(private_key(&store, "upload").await?)),
            requests: reload::requests(&config, &metrics),
            steady: Steady::new(&**store.timeline().clock()),
            clock: store.timeline().clock().clone(),
            tasks: registry.tasks.clone(),
        });
        let (listeners, sockets) = Listeners::open(&app, &registry, inherited).await?;
        // Before the first request could lead back here.
        let own = sockets.iter().filter_map(|(socket, _)| socket.address()).chain(admin_address);
        upstreams.set_own_addresses(own.collect());
        let sockets = serve_on(sockets, &registry, &metrics);
        admin.set_listeners(sockets.iter().map(|(name, _)| name.clone()).collect());
        readiness.set(Stage::Ready);
        notify::ready();
        background.tasks.spawn(notify::watchdog(background.stop.clone()));
        Ok(Self {
            addresses: sockets.into_iter().filter_map(|(_, address)| address).collect(),
            admin_address,
            metrics,
            readiness,
            store,
            cache,
            upstreams,
            app,
            listeners,
            admin_interface: admin,
            admin_servings,
            drain: Mutex::new(config.limits.drain),
            scrubbing: Mutex::new(scrubbing),
            current: Mutex::new(config),
            registry,
            admin: admin_run,
            background,
            _guards: guards,
        })
    }

    /// The TCP addresses on which clients are served, with the ports that were chosen.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// The TCP address of the admin interface, if it has one.
    pub const fn admin_address(&self) -> Option<SocketAddr> {
        self.admin_address
    }

    /// All metrics.
    pub const fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Scrubs by this plan from now on.
    fn scrub(&self, plan: Option<Scrub>) {
        if self.current.lock().store.scrub != plan {
            // The one before ends with its guard; where it is it has put down.
            *self.scrubbing.lock() = self.background.scrub(&self.store, plan);
        }
    }

    /// Stops: running answers have until the deadline of `limits.drain`.
    pub async fn stop(self) {
        let deadline = Instant::now() + *self.drain.lock();
        self.registry.drain.cancel();
        self.readiness.set(Stage::Stopping);
        notify::stopping();
        tracing::info!(seconds = self.drain.lock().as_secs(), "stopping; running answers have their time");
        // Uploads between two requests cannot go on: their clients find no listener any more. Those that were begun
        // meanwhile follow.
        let ended = timeout_at(deadline, self.cache.end_uploads());
        let ((), _) = tokio::join!(end(&self.registry, deadline), ended);
        let _ = timeout_at(deadline, self.cache.end_uploads()).await;
        // Only now: the answers read what is being downloaded.
        self.background.stop.cancel();
        self.background.tasks.close();
        if timeout(TASKS_END_WITHIN, self.background.tasks.wait()).await.is_err() {
            tracing::warn!(tasks = self.background.tasks.len(), "some tasks did not end; stopping without them");
        }
        self.admin.drain.cancel();
        end(&self.admin, Instant::now()).await;
        self.store.close().await;
        tracing::info!("stopped");
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("addresses", &self.addresses)
            .field("admin_address", &self.admin_address)
            .field("store", &self.store)
            .finish_non_exhaustive()
    }
}

// === impl Background ===

impl Background {
    /// Scrubs by this plan until the guard is dropped, or all ends.
    fn scrub(&self, store: &Store, plan: Option<Scrub>) -> DropGuard {
        let stop = self.stop.child_token();
        if let Some(plan) = plan {
            let (store, stop) = (store.clone(), stop.clone());
            self.tasks.spawn(async move { store.scrub(plan, &stop).await });
        }
        stop.drop_guard()
    }
}

/// Waits for the connections until `deadline`, then drops them.
async fn end(run: &Run, deadline: Instant) {
    run.drain.cancel();
    run.tasks.close();
    if timeout_at(deadline, run.tasks.wait()).await.is_err() {
        run.abort.cancel();
        // A handler that does not yield would hold the stop for ever.
        let _ = timeout(TASKS_END_WITHIN, run.tasks.wait()).await;
    }
}

async fn open_store(config: &Config, metrics: Metrics, clock: Arc<dyn Clock>) -> Result<Store, StartError> {
    let options = StoreOptions {
        root: config.root.clone(),
        capacity: config.store.capacity,
        durability: config.store.durability,
        keep: Keep { pins: config.pins.clone(), max_age: config.store.max_age },
        origins: config.upstreams.values().map(|u| (u.name.clone(), u.url.to_string())).collect(),
        clock,
    };
    root::open(options, metrics).await
}

/// A key of this root: for the tokens that are given out, for the addresses of uploads.
async fn private_key(store: &Store, name: &'static str) -> Result<[u8; 32], StartError> {
    let store = store.clone();
    Ok(spawn_blocking(move || store.private_key(name)).await??)
}

/// Opens the admin interface, on its socket and its address.
async fn start_admin(
    config: &Config,
    store: &Store,
    admin: &Arc<Admin>,
    run: &Run,
    metrics: &Metrics,
) -> Result<AdminOpened, StartError> {
    let mut opened = AdminOpened::default();
    let serving = |permits, clients| {
        Serving::new(AdminHandler(admin.clone()), None, permits, (clients, &config.limits), run.clone())
    };
    let path = admin_socket_path(config);
    match open_admin_socket(path.clone()).await {
        Ok(socket) => {
            store.announce_socket(path.clone()).await?;
            let connections = Connections::new(metrics, &socket.to_string());
            // One user's own, which is nobody's address.
            let permits = Permits::new(ADMIN_CONNECTIONS, ADMIN_CONNECTIONS, Loopback::Free);
            let serving = serving(permits, Clients::Owner);
            opened.servings.push(Arc::clone(&serving));
            run.tasks.spawn(serving.accept(socket, connections));
        }
        // A full disk is not down: pulls need no socket.
        Err(StartError::Listen(error)) if error.is_full() => {
            let error: &dyn std::error::Error = &error;
            tracing::warn!(
                error,
                "there is no admin socket until the next start: commands cannot reach this daemon meanwhile"
            );
        }
        Err(error) => return Err(error),
    }
    let Some(address) = config.admin.address else { return Ok(opened) };
    let socket = Socket::tcp(address, Purpose::Admin).await?;
    opened.address = socket.address();
    if let Some(address) = opened.address {
        tracing::info!(%address, socket = %path.display(), "the admin interface is open");
    }
    let connections = Connections::new(metrics, &socket.to_string());
    let permits = Permits::new(ADMIN_CONNECTIONS, ADMIN_CONNECTIONS_PER_ADDRESS, Loopback::Counted);
    let serving = serving(permits, Clients::Anybody);
    opened.servings.push(Arc::clone(&serving));
    run.tasks.spawn(serving.accept(socket, connections));
    Ok(opened)
}

async fn open_admin_socket(path: PathBuf) -> Result<Socket, StartError> {
    let at = path.clone();
    let prepared = spawn_blocking(move || {
        admin_socket::prepare(&at).map_err(|error| ListenError::unix(&at, Purpose::AdminSocket, error))
    });
    prepared.await??;
    Ok(Socket::unix(&path, ADMIN_SOCKET_MODE, Purpose::AdminSocket)?)
}

/// Serves on all of them; their names and TCP addresses.
fn serve_on(sockets: Vec<ServedSocket>, run: &Run, metrics: &Metrics) -> Vec<(String, Option<SocketAddr>)> {
    let mut names = Vec::with_capacity(sockets.len());
    for (socket, serving) in sockets {
        tracing::info!(listener = %socket, tls = serving.is_tls(), "serving clients");
        names.push((socket.to_string(), socket.address()));
        let connections = Connections::new(metrics, &socket.to_string());
        run.tasks.spawn(serving.accept(socket, connections));
    }
    names
}

// === impl StartError ===

impl StartError {
    /// Whether the configuration has to be changed, or the files that it names.
    pub const fn is_configuration(&self) -> bool {
        matches!(self, Self::Tls { .. } | Self::Upstreams(_))
    }
}
