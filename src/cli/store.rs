//! How a command reaches the store: through the daemon that has its root, else by locking the root itself. Either way
//! the same code answers, with the same JSON ([`crate::http::admin`]).

use std::convert::Infallible;
use std::io;
use std::ops::ControlFlow;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use http::header::{CONTENT_TYPE, HOST};
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::runtime::Builder;
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::known::{self, Known};
use super::progress::{Progress, Source, Work};
use super::serve::Signals;
use super::talk::Place;
use super::{FAILED, USAGE, complain, foreign, log};
use crate::cache::Cache;
use crate::clock::SystemClock;
use crate::config::{Config, Log, LogFormat};
use crate::http::access::Peer;
use crate::http::admin::{Admin, Api, LARGEST_BODY, Live, Readiness, Stage};
use crate::http::respond::causes;
use crate::metrics::Metrics;
use crate::oci::{ErrorBody, UpstreamName};
use crate::server::admin_socket_path;
use crate::store::{Holder, Keep, Store, StoreError, StoreOptions};
use crate::upstream::Upstreams;

/// How often a root is tried that is locked and has no socket: its process may just be starting, or have ended.
const ATTEMPTS: u32 = 20;
const BETWEEN: Duration = Duration::from_millis(100);
/// How long a daemon may take to say that it is there; what it is asked for then may take hours.
const ANSWERS_WITHIN: Duration = Duration::from_secs(10);
/// How long downloads have to end that were told to.
const TASKS_END_WITHIN: Duration = Duration::from_secs(10);

/// Which store.
#[derive(Debug, Clone, Default, clap::Args)]
pub(super) struct StoreFlags {
    /// The configuration file, which must exist.
    #[arg(
        long,
        value_name = "FILE",
        help = "Configuration file [default: the first of $OCISTERN_CONFIG, $XDG_CONFIG_HOME/ocistern/config.toml, /etc/ocistern/config.toml]"
    )]
    pub(super) config: Option<PathBuf>,
    /// The directory of the store.
    #[arg(
        long,
        value_name = "DIR",
        help = "Directory of the store [env: OCISTERN_ROOT] [default: that of the configuration, else ocistern in the user's cache directory]"
    )]
    pub(super) root: Option<PathBuf>,
    /// For scripts.
    #[arg(long, help = "Print the answer as JSON, as the chapter on the admin API of the documentation describes it")]
    pub(super) json: bool,
}

/// A request of the admin API.
#[derive(Debug, Clone)]
pub(super) struct Ask {
    command: &'static str,
    method: Method,
    path: String,
    query: String,
    /// JSON; empty: none.
    body: Bytes,
    /// Registries are asked for it, also where no daemon does.
    asks_upstreams: bool,
    /// What is shown on a terminal meanwhile.
    work: Option<Work>,
}

/// An answer.
#[derive(Debug)]
pub(super) struct Answer {
    bytes: Bytes,
    /// The daemon that gave it; none: this process.
    pub(super) by: Option<Holder>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum Trouble {
    /// A mistake in the command line or the configuration.
    #[error("{0}")]
    Usage(String),
    /// It failed.
    #[error("{0}")]
    Failed(String),
    /// A signal came before the answer.
    #[error("interrupted")]
    Interrupted,
}

/// Who answers.
pub(super) enum Way {
    /// The daemon that has the root.
    Daemon(UnixStream, Holder),
    /// This process, which has locked the root.
    Here(Box<Here>),
}

/// The store in this process.
pub(super) struct Here {
    pub(super) store: Store,
    pub(super) admin: Arc<Admin>,
    metrics: Metrics,
    background: Background,
}

/// Downloads and upkeep, where registries are asked.
#[derive(Default)]
struct Background {
    stop: CancellationToken,
    tasks: TaskTracker,
}

// === impl Ask ===

impl Ask {
    /// By the command of this name.
    pub(super) fn new(command: &'static str, method: Method, path: &str) -> Self {
        Self {
            command,
            method,
            path: path.to_owned(),
            query: String::new(),
            body: Bytes::new(),
            asks_upstreams: false,
            work: None,
        }
    }

    /// Something that takes its time, so that a terminal shows how far it is.
    pub(super) fn working(self, work: Work) -> Self {
        Self { work: Some(work), ..self }
    }

    /// Something for which registries are asked.
    pub(super) fn asking_upstreams(self) -> Self {
        Self { asks_upstreams: true, ..self }
    }

    /// With a parameter.
    pub(super) fn with(mut self, name: &str, value: &str) -> Self {
        let separator = if self.query.is_empty() { '?' } else { '&' };
        self.query.push(separator);
        self.query.push_str(name);
        self.query.push('=');
        self.query.extend(utf8_percent_encode(value, NON_ALPHANUMERIC));
        self
    }

    /// With a parameter that is true, if it is.
    pub(super) fn with_flag(self, name: &str, value: bool) -> Self {
        if value { self.with(name, "true") } else { self }
    }

    /// With a body: what may be too long for the query.
    pub(super) fn with_json(self, value: &impl Serialize) -> Result<Self, Trouble> {
        let body = serde_json::to_vec(value).map_err(|error| Trouble::Failed(error.to_string()))?;
        if body.len() > LARGEST_BODY {
            return Err(Trouble::Usage(format!("these are too many at once: {LARGEST_BODY} bytes fit a request")));
        }
        Ok(Self { body: body.into(), ..self })
    }

    fn request(&self) -> Result<Request<Full<Bytes>>, Trouble> {
        let mut request = Request::builder().method(&self.method).uri(format!("{}{}", self.path, self.query));
        if !self.body.is_empty() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        let request = request.header(HOST, "localhost").body(Full::new(self.body.clone()));
        request.map_err(|error| Trouble::Failed(error.to_string()))
    }

    /// Asks, and waits for the answer or a signal.
    pub(super) fn send(&self, flags: &StoreFlags) -> Result<Answer, Trouble> {
        Self::prepared(flags, async |known, signals| Box::pin(self.once(known, signals, flags.json)).await)
    }

    /// Asks again and again, with a pause in between, until `show` wants no more or a signal comes.
    pub(super) fn watch(
        &self,
        flags: &StoreFlags,
        every: Duration,
        mut show: impl FnMut(&Answer) -> Result<ControlFlow<()>, Trouble>,
    ) -> Result<(), Trouble> {
        Self::prepared(flags, async |known, signals| {
            loop {
                let answer = match Box::pin(self.once(known.clone(), signals, flags.json)).await {
                    Ok(answer) => answer,
                    Err(Trouble::Interrupted) => return Ok(()),
                    Err(trouble) => return Err(trouble),
                };
                if show(&answer)?.is_break() {
                    return Ok(());
                }
                tokio::select! {
                    () = sleep(every) => {}
                    _ = signals.next() => return Ok(()),
                }
            }
        })
    }

    /// Does something with the configuration, a log and a runtime, in which signals are listened to.
    pub(super) fn prepared<T>(
        flags: &StoreFlags,
        work: impl AsyncFnOnce(Known, &mut Signals) -> Result<T, Trouble>,
    ) -> Result<T, Trouble> {
        let known = known::load(flags.config.as_deref(), flags.root.as_deref(), known::Place::Named);
        let known = known.map_err(|error| Trouble::Usage(error.to_string()))?;
        // Failures are told once, by the command itself.
        let log = Log { format: LogFormat::Human, filter: "warn,ocistern::http=off".to_owned(), otlp: None };
        let _log = log::start(&log).map_err(|error| Trouble::Failed(error.to_string()))?;
        let runtime = Builder::new_multi_thread().enable_all().thread_name("ocistern").build();
        let runtime = runtime.map_err(|error| Trouble::Failed(error.to_string()))?;
        runtime.block_on(async {
            let mut signals = Signals::of_command().map_err(|error| Trouble::Failed(error.to_string()))?;
            work(known, &mut signals).await
        })
    }

    async fn once(&self, known: Known, signals: &mut Signals, json: bool) -> Result<Answer, Trouble> {
        let way = Way::find_unless(known, self.command, self.asks_upstreams, signals).await?;
        match way {
            // A daemon ends what nobody waits for any more.
            Way::Daemon(stream, holder) => {
                let socket = stream.peer_addr().ok().and_then(|peer| peer.as_pathname().map(Path::to_owned));
                let work = socket.map(|socket| Source::Daemon(Place::Unix(socket)));
                tokio::select! {
                    answer = self.send_to(stream, holder) => answer,
                    _ = signals.next() => Err(Trouble::Interrupted),
                    never = self.show(work, json) => match never {},
                }
            }
            Way::Here(here) => {
                let answer = tokio::select! {
                    answer = self.answer_here(&here) => answer,
                    _ = signals.next() => Err(Trouble::Interrupted),
                    never = self.show(Some(Source::Here(here.metrics.clone())), json) => match never {},
                };
                here.close().await;
                answer
            }
        }
    }

    /// Shows how far the work is, if somebody sees it.
    async fn show(&self, source: Option<Source>, json: bool) -> Infallible {
        if let Some((work, source)) = self.work.zip(source)
            && let Some(progress) = Progress::begin(work, source, json).await
        {
            return progress.follow().await;
        }
        std::future::pending().await
    }

    async fn send_to(&self, stream: UnixStream, holder: Holder) -> Result<Answer, Trouble> {
        let silent =
            |why: String| Trouble::Failed(format!("{holder} has the store, and does not answer properly: {why}"));
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| silent(e.to_string()))?;
        let talk = async {
            let health = Self::new(self.command, Method::GET, "/healthz").request()?;
            match timeout(ANSWERS_WITHIN, sender.send_request(health)).await {
                Ok(Ok(response)) => {
                    let _ = response.into_body().collect().await;
                }
                Ok(Err(error)) => return Err(silent(error.to_string())),
                Err(_) => return Err(silent(format!("nothing came within {} s", ANSWERS_WITHIN.as_secs()))),
            }
            sender.ready().await.map_err(|error| silent(error.to_string()))?;
            let response = sender.send_request(self.request()?).await;
            let response = response.map_err(|error| silent(error.to_string()))?;
            let status = response.status();
            let body = response.into_body().collect().await.map_err(|error| silent(error.to_string()))?;
            checked(status, body.to_bytes())
        };
        let bytes = tokio::select! {
            bytes = talk => bytes?,
            ended = connection => return Err(silent(ended.err().map_or_else(|| "it hung up".to_owned(), |e| e.to_string()))),
        };
        Ok(Answer { bytes, by: Some(holder) })
    }

    async fn answer_here(&self, Here { store, admin, background, .. }: &Here) -> Result<Answer, Trouble> {
        store.load().await.map_err(|error| Trouble::Failed(causes(&error)))?;
        if self.asks_upstreams {
            // What is downloaded is synced in groups, and what is in its way evicted.
            let (store, stop) = (store.clone(), background.stop.clone());
            background.tasks.spawn(async move { store.run(stop).await });
        }
        let user = rustix::process::geteuid().as_raw();
        let response = admin.handle(Peer::Unix(Some(user)), self.request()?).await;
        let status = response.status();
        let body = response.into_body().collect().await.map_err(|error| Trouble::Failed(error.to_string()))?;
        Ok(Answer { bytes: checked(status, body.to_bytes())?, by: None })
    }
}

/// The line that was typed.
fn words() -> Vec<String> {
    std::env::args_os().map(|word| word.to_string_lossy().into_owned()).collect()
}

/// The body of a good answer.
pub(super) fn checked(status: StatusCode, body: Bytes) -> Result<Bytes, Trouble> {
    if status.is_success() {
        return Ok(body);
    }
    if status == StatusCode::UNAUTHORIZED {
        let message = "the daemon that has the store does not take this from you: its socket is for root and for the user that it runs as";
        let line = foreign::by_root(&words());
        return Err(Trouble::Failed(format!("{message}: type `{line}`")));
    }
    let said =
        serde_json::from_slice::<ErrorBody>(&body).ok().and_then(|body| Some(body.errors.first()?.message.clone()));
    let said = said.unwrap_or_else(|| status.to_string());
    Err(if status == StatusCode::BAD_REQUEST { Trouble::Usage(said) } else { Trouble::Failed(said) })
}

// === impl Answer ===

impl Answer {
    /// The answer as a type.
    pub(super) fn read<T: DeserializeOwned>(&self) -> Result<T, Trouble> {
        let unknown =
            |error| Trouble::Failed(format!("the answer of another version of ocistern is not understood: {error}"));
        serde_json::from_slice(&self.bytes).map_err(unknown)
    }

    /// The answer as it came.
    pub(super) fn json(&self) -> String {
        format!("{}\n", String::from_utf8_lossy(&self.bytes))
    }
}

// === impl Trouble ===

impl Trouble {
    /// Says what it is, and with which exit code the command ends.
    pub(super) fn tell(&self) -> ExitCode {
        let code = match self {
            Self::Usage(_) => USAGE,
            Self::Failed(_) | Self::Interrupted => FAILED,
        };
        complain(code, self)
    }
}

// === impl Way ===

impl Way {
    /// Finds it, unless a signal comes.
    pub(super) async fn find_unless(
        known: Known,
        command: &'static str,
        asks_upstreams: bool,
        signals: &mut Signals,
    ) -> Result<Self, Trouble> {
        let mut finding = pin!(Self::find(known, command, asks_upstreams));
        tokio::select! {
            way = &mut finding => way,
            _ = signals.next() => {
                // A store that is just being opened must be closed; it takes no time that anybody would notice.
                if let Ok(Self::Here(here)) = finding.await {
                    here.close().await;
                }
                Err(Trouble::Interrupted)
            }
        }
    }

    async fn find(known: Known, command: &'static str, asks_upstreams: bool) -> Result<Self, Trouble> {
        let Known { config, mistake } = known;
        let root = &config.root;
        // A command makes no store: a mistyped directory would be an empty one.
        match root.join("VERSION").try_exists() {
            Ok(true) => {}
            Ok(false) => {
                let message = "there is no store in {}: `ocistern serve` makes one; say where it is (--root, --config)";
                return Err(Trouble::Failed(message.replace("{}", &root.display().to_string())));
            }
            // Whose it is can be seen all the same.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
            Err(error) => return Err(Trouble::Failed(format!("{}: {error}", root.display()))),
        }
        let user = rustix::process::geteuid().as_raw();
        let owner = root.metadata().map_err(|error| Trouble::Failed(format!("{}: {error}", root.display())))?.uid();
        if owner != user {
            // What this user would write in the root, the daemon could not read.
            return Self::foreign(&config, owner).await;
        }
        if let Some(mistake) = mistake {
            return Self::daemon(&config).await.ok_or(Trouble::Usage(mistake));
        }
        let metrics = Metrics::new().map_err(|error| Trouble::Failed(error.to_string()))?;
        for attempt in 1.. {
            let options = StoreOptions {
                root: root.clone(),
                capacity: config.store.capacity,
                durability: config.store.durability,
                keep: Keep { pins: config.pins.clone(), max_age: None },
                // Which URLs upstreams have is the daemon's to say: its flags may not be known here. But what is fetched here
                // must not be taken for another registry's.
                origins: if asks_upstreams { origins(&config) } else { Vec::new() },
                clock: Arc::new(SystemClock),
            };
            let opening = metrics.clone();
            let opened = spawn_blocking(move || Store::open_for(command, options, opening)).await;
            let holder = match opened.map_err(|error| Trouble::Failed(error.to_string()))? {
                Ok(store) if asks_upstreams => return Self::asking(store, config, metrics).await,
                Ok(store) => return Ok(Self::here(store, config, metrics, None, Background::default())),
                Err(StoreError::Locked { holder, .. }) => holder,
                Err(error) => return Err(Trouble::Failed(causes(&error))),
            };
            let socket = holder.socket.clone().unwrap_or_else(|| admin_socket_path(&config));
            if holder.command.is_some() {
                if attempt == ATTEMPTS {
                    let message = format!("{} is in use by {holder}: try again when that has ended", root.display());
                    return Err(Trouble::Failed(message));
                }
                sleep(BETWEEN).await;
                continue;
            }
            match UnixStream::connect(&socket).await {
                Ok(stream) => return Ok(Self::Daemon(stream, holder)),
                Err(error) if attempt < ATTEMPTS && error.kind() != io::ErrorKind::PermissionDenied => {
                    sleep(BETWEEN).await;
                }
                Err(error) => return Err(unreachable(root, &holder, &socket, &error)),
            }
        }
        Err(Trouble::Failed("the store cannot be reached".to_owned()))
    }

    /// The daemon that has the store, and nobody else: it goes by a configuration that cannot be read any more.
    async fn daemon(config: &Config) -> Option<Self> {
        let holder = Holder::read(&config.root)?;
        let socket = holder.socket.clone().unwrap_or_else(|| admin_socket_path(config));
        let stream = UnixStream::connect(&socket).await.ok()?;
        Some(Self::Daemon(stream, holder))
    }

    /// Into another user's store leads only the daemon that has it.
    async fn foreign(config: &Config, owner: u32) -> Result<Self, Trouble> {
        let holder = Holder::read(&config.root).unwrap_or(Holder::UNKNOWN);
        let socket = holder.socket.clone().unwrap_or_else(|| admin_socket_path(config));
        match UnixStream::connect(&socket).await {
            Ok(stream) => Ok(Self::Daemon(stream, holder)),
            Err(error) => {
                let (root, socket) = (config.root.display(), socket.display());
                let by_root = rustix::process::geteuid().is_root();
                let advice = foreign::advice(&config.root, by_root, &words()).await;
                let why = if error.kind() == io::ErrorKind::PermissionDenied {
                    format!("the admin socket {socket} is for that user and root")
                } else {
                    format!("no daemon answers at {socket} ({error})")
                };
                Err(Trouble::Failed(format!("{root} belongs to the user {owner}, and {why}: {advice}")))
            }
        }
    }

    /// With what asks registries.
    async fn asking(store: Store, config: Config, metrics: Metrics) -> Result<Self, Trouble> {
        let (of, figures, clock) = (config.clone(), metrics.clone(), Arc::clone(store.timeline().clock()));
        let made = spawn_blocking(move || Upstreams::new(&of, figures, clock)).await;
        let upstreams = match made.map_err(|error| error.to_string()).and_then(|made| made.map_err(|e| causes(&e))) {
            Ok(upstreams) => Arc::new(upstreams),
            Err(error) => {
                store.close().await;
                return Err(Trouble::Failed(error));
            }
        };
        let background = Background::default();
        let (tasks, stop) = (background.tasks.clone(), background.stop.clone());
        let cache = Cache::new(store.clone(), Arc::clone(&upstreams), &config, metrics.clone(), tasks, stop);
        Ok(Self::here(store, config, metrics, Some(Live { cache, upstreams }), background))
    }

    fn here(store: Store, config: Config, metrics: Metrics, live: Option<Live>, background: Background) -> Self {
        let readiness = Readiness::default();
        readiness.set(Stage::Stopped);
        let user = rustix::process::geteuid().as_raw();
        let api = Api::new(store.clone(), live);
        let admin = Arc::new(Admin::new(Arc::new(config), metrics.clone(), readiness, user, api));
        Self::Here(Box::new(Here { store, admin, metrics, background }))
    }
}

// === impl Here ===

impl Here {
    /// Ends what runs and closes the store: else the next start would take it for one after a crash.
    async fn close(self) {
        let Background { stop, tasks } = self.background;
        stop.cancel();
        tasks.close();
        // Where the disk hangs the store is closed without them, as the daemon does it.
        let _ = timeout(TASKS_END_WITHIN, tasks.wait()).await;
        self.store.close().await;
    }
}

/// Where the configuration has its upstreams.
fn origins(config: &Config) -> Vec<(UpstreamName, String)> {
    config.upstreams.values().map(|upstream| (upstream.name.clone(), upstream.url.to_string())).collect()
}

/// The root is locked, and whoever has it cannot be asked: what is known of that, and what to do.
fn unreachable(root: &Path, holder: &Holder, socket: &Path, error: &io::Error) -> Trouble {
    let who = match holder.pid {
        0 => "a process that has not said which it is".to_owned(),
        pid => format!("process {pid}"),
    };
    let look = match holder.pid {
        0 => "`fuser -v` on the file `lock` in it names the process".to_owned(),
        pid => format!("`ps -fp {pid}` shows what it is"),
    };
    let (root, socket) = (root.display(), socket.display());
    let known = match error.kind() {
        io::ErrorKind::PermissionDenied => {
            format!("its admin socket {socket} is for root and for the user that it runs as: be one of them")
        }
        io::ErrorKind::NotFound => format!(
            "there is no admin socket {socket}, which a daemon makes when it starts (its log says why, if it could not): {look}; \
             if that is a daemon, restart it"
        ),
        io::ErrorKind::ConnectionRefused => format!(
            "nobody listens at the admin socket {socket}, which is left over: {look}; if that is a daemon that does not start, \
             its log says why"
        ),
        _ => format!("its admin socket {socket} cannot be used: {error}; {look}"),
    };
    Trouble::Failed(format!("{root} is in use by {who}, and {known}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unreachable_daemon_is_described_by_what_is_known() {
        let holder = |pid| Holder { pid, ..Holder::UNKNOWN };
        let said = |pid, kind: io::ErrorKind| {
            unreachable(Path::new("/r"), &holder(pid), Path::new("/r/s"), &kind.into()).to_string()
        };
        let gone = said(7, io::ErrorKind::NotFound);
        assert!(gone.starts_with("/r is in use by process 7, and there is no admin socket /r/s"), "{gone}");
        assert!(gone.contains("`ps -fp 7`"), "{gone}");
        let left = said(7, io::ErrorKind::ConnectionRefused);
        assert!(left.contains("nobody listens at the admin socket /r/s, which is left over"), "{left}");
        let closed = said(0, io::ErrorKind::PermissionDenied);
        assert!(closed.contains("has not said which it is") && closed.contains("be one of them"), "{closed}");
        let other = said(0, io::ErrorKind::TimedOut);
        assert!(other.contains("timed out") && other.contains("`fuser -v`"), "{other}");
    }
}
