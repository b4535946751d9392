//! An ocistern in this process: on free ports, with a store of its own that outlives a restart.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ocistern::clock::{Clock, SystemClock};
use ocistern::config::{Config, KnownUrls, Reload};
use ocistern::server::{Inherited, Server};
use tempfile::TempDir;

use super::client::{Ask, Client, Got, Live};
use super::clock::eventually;
use super::invariants::files;
use super::upstream::Upstream;

/// What an ocistern is started with.
#[derive(Debug, Default)]
pub struct Setup {
    upstreams: Vec<(String, String, String)>,
    listener: String,
    store: String,
    extra: String,
    clock: Option<Arc<dyn Clock>>,
}

/// A running (or stopped) ocistern.
pub struct Cistern {
    /// The root lies a few levels below it, so that what climbs out of the root is seen.
    home: TempDir,
    root: PathBuf,
    setup: Setup,
    server: Option<Server>,
    /// What it goes by.
    config: Option<Box<Config>>,
    known: KnownUrls,
}

// === impl Setup ===

impl Setup {
    /// Adds an upstream; the first one is the listener's default. `keys` are lines of its table; sub-tables (rules)
    /// go into [`Setup::extra`].
    #[must_use]
    pub fn upstream(self, name: &str, upstream: &Upstream, keys: &str) -> Self {
        self.upstream_at(name, &upstream.url(), keys)
    }

    /// Adds an upstream at any URL.
    #[must_use]
    pub fn upstream_at(mut self, name: &str, url: &str, keys: &str) -> Self {
        self.upstreams.push((name.to_owned(), url.to_owned(), keys.to_owned()));
        self
    }

    /// Lines of the listener's table.
    #[must_use]
    pub fn listener(mut self, keys: &str) -> Self {
        keys.clone_into(&mut self.listener);
        self
    }

    /// Lines of the store's table.
    #[must_use]
    pub fn store(mut self, keys: &str) -> Self {
        keys.clone_into(&mut self.store);
        self
    }

    /// More tables.
    #[must_use]
    pub fn extra(mut self, tables: &str) -> Self {
        tables.clone_into(&mut self.extra);
        self
    }

    /// The clock on its wall; else the system's.
    #[must_use]
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = Some(clock);
        self
    }

    /// Without this upstream.
    #[must_use]
    pub fn without(mut self, name: &str) -> Self {
        self.upstreams.retain(|(known, ..)| known != name);
        self
    }

    /// Starts it.
    pub async fn start(self) -> Cistern {
        let home = tempfile::tempdir().unwrap();
        let root = home.path().join("a/b/c/root");
        let known = KnownUrls::default();
        let mut cistern = Cistern { home, root, setup: self, server: None, config: None, known };
        cistern.start_again().await;
        cistern
    }

    fn toml(&self, root: &Path) -> String {
        let default = self.upstreams.first().map_or_else(String::new, |u| format!("default_upstream = {:?}", u.0));
        let root = root.display();
        let mut text = format!(
            "root = '{root}'\nbuiltin_upstreams = false\n\
             [[listener]]\naddress = \"127.0.0.1:0\"\n{default}\n{}\n\
             [admin]\naddress = \"127.0.0.1:0\"\n[store]\n{}\n",
            self.listener, self.store
        );
        for (name, url, keys) in &self.upstreams {
            text += &format!("[upstream.{name:?}]\nurl = {url:?}\n{keys}\n");
        }
        text + &self.extra
    }
}

// === impl Cistern ===

impl Cistern {
    /// A set-up with no upstream yet.
    pub fn setup() -> Setup {
        Setup::default()
    }

    /// Starts one with a single upstream called `up`.
    pub async fn start(upstream: &Upstream, keys: &str) -> Self {
        Setup::default().upstream("up", upstream, keys).start().await
    }

    /// Starts it (again) on the same store; upstreams keep their ports, its own listeners get others.
    pub async fn start_again(&mut self) {
        assert!(self.server.is_none(), "it is running");
        // `RUST_LOG=debug cargo test … -- --nocapture` shows what it logs; a second subscriber is none.
        let _ = tracing_subscriber::fmt()
            .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
            .with_test_writer()
            .try_init();
        let toml = self.setup.toml(&self.root);
        let config = Config::from_toml(&toml).unwrap_or_else(|error| panic!("{error}\n{toml}"));
        let clock = self.setup.clock.clone().unwrap_or_else(|| Arc::new(SystemClock));
        self.known = KnownUrls::default();
        self.known.learn(&config);
        self.config = Some(Box::new(config.clone()));
        let server = Server::start_with(config, Inherited::default(), clock).await;
        let server = server.unwrap_or_else(|error| panic!("{error:?}\n{toml}"));
        self.server = Some(server);
    }

    /// Stops it in good order.
    pub async fn stop(&mut self) {
        super::patiently("ocistern stops", self.server.take().unwrap().stop()).await;
    }

    /// Stops and starts.
    pub async fn restart(&mut self) {
        self.stop().await;
        self.start_again().await;
    }

    /// Forgets the server without stopping it, after its runtime has been dropped: what a kill leaves.
    pub fn abandon(&mut self) {
        self.server = None;
    }

    /// Lets an upstream's name stand for another one, from the next start on.
    pub fn point_to(&mut self, name: &str, upstream: &Upstream) {
        let known = self.setup.upstreams.iter_mut().find(|(n, ..)| n == name).unwrap();
        known.1 = upstream.url();
    }

    /// Gives an upstream other keys, from the next start on.
    pub fn configure(&mut self, name: &str, keys: &str) {
        let known = self.setup.upstreams.iter_mut().find(|(n, ..)| n == name).unwrap();
        keys.clone_into(&mut known.2);
    }

    /// Has it read its configuration again, which `change` has changed; what came of that, or why nothing did.
    pub async fn reload(&mut self, change: impl FnOnce(Setup) -> Setup) -> Result<Reload, String> {
        self.setup = change(std::mem::take(&mut self.setup));
        let toml = self.setup.toml(&self.root);
        let new = Config::from_toml(&toml).unwrap_or_else(|error| panic!("{error}\n{toml}"));
        let current = self.config.as_ref().unwrap();
        let (next, reload) = current.reload(&new, &self.known).map_err(|error| error.to_string())?;
        let done = self.server.as_ref().unwrap().reload(next.clone()).await;
        done.map_err(|error| error.to_string())?;
        self.known.learn(&next);
        self.config = Some(Box::new(next));
        Ok(reload)
    }

    /// Tries to start another daemon on the same root: its refusal, with all causes.
    pub async fn second(&self) -> Result<(), String> {
        let config = Config::from_toml(&self.setup.toml(&self.root)).unwrap();
        match Server::start(config).await {
            Ok(server) => {
                server.stop().await;
                Ok(())
            }
            Err(error) => {
                let mut text = error.to_string();
                let mut source = std::error::Error::source(&error);
                while let Some(cause) = source {
                    text += &format!(": {cause}");
                    source = cause.source();
                }
                Err(text)
            }
        }
    }

    /// The directory of the store.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Files around the root, where it has no business to write.
    pub fn strays(&self) -> Vec<PathBuf> {
        files(self.home.path()).into_iter().filter(|path| !path.starts_with(&self.root)).collect()
    }

    /// Where clients connect.
    pub fn client(&self) -> Client {
        Client(self.server.as_ref().unwrap().addresses()[0])
    }

    /// Where its admin interface is.
    pub fn admin_address(&self) -> SocketAddr {
        self.server.as_ref().unwrap().admin_address().unwrap()
    }

    pub async fn get(&self, target: impl Into<String>) -> Got {
        self.client().get(target).await
    }

    pub async fn head(&self, target: impl Into<String>) -> Got {
        self.client().head(target).await
    }

    pub async fn send(&self, ask: Ask) -> Got {
        self.client().send(ask).await
    }

    /// Sends a GET and returns when the head is there; fails where none comes.
    pub async fn open(&self, target: impl Into<String>) -> Live {
        self.client().open(Ask::get(target)).await.unwrap()
    }

    /// The metrics as the admin listener tells them.
    pub async fn metrics(&self) -> String {
        let admin = Client(self.admin_address());
        let got = admin.get("/metrics").await;
        assert!(got.complete(), "metrics: {}", got.summary());
        String::from_utf8(got.body.to_vec()).unwrap()
    }

    /// The sum of a metric over the series whose labels contain all of `labels` (such as `kind="blob"`).
    pub async fn metric(&self, name: &str, labels: &[&str]) -> u64 {
        sum(&self.metrics().await, name, labels)
    }

    /// The fills that run, as the admin API tells them.
    pub async fn fills(&self) -> serde_json::Value {
        let admin = Client(self.admin_address());
        admin.get("/api/v1/fills").await.json()["fills"].clone()
    }

    /// Waits until no fill is running.
    pub async fn settle(&self) {
        eventually("no fill is running", || async { self.metric("ocistern_fills_in_progress", &[]).await == 0 }).await;
    }
}

/// The sum of a metric in the text of `/metrics`: see [`Cistern::metric`].
pub fn sum(metrics: &str, name: &str, labels: &[&str]) -> u64 {
    let lines = metrics.lines().filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])));
    lines
        .filter(|line| labels.iter().all(|label| line.contains(label)))
        .filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok())
        .sum()
}
