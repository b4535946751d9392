//! The program as a process of its own, which can be killed: what only the kernel cleans up after.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use rustix::process::{Pid, Signal, kill_process};
use tokio::time::Instant;

use super::cistern::sum;
use super::client::Client;
use super::clock::eventually;
use super::upstream::Upstream;

/// A running daemon; it is killed when it is dropped.
pub struct Daemon {
    child: Child,
    log: Arc<Mutex<Vec<serde_json::Value>>>,
    /// Where clients connect.
    pub client: Client,
    admin: Client,
}

impl Daemon {
    /// The command that serves this configuration, in an environment of its own.
    pub fn command(config: &Path) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ocistern"));
        Self::arguments(&mut command, config);
        command
    }

    /// Adds what [`Daemon::command`] has after the program's name, for another program that runs it.
    pub fn arguments(command: &mut Command, config: &Path) {
        command.arg("serve").arg("--config").arg(config).env_clear().env("HOME", "/nonexistent");
    }

    /// Starts one with this configuration, which has one listener and an admin address, and waits until it serves.
    pub async fn start(config: &Path) -> Self {
        Self::start_with(config, &[]).await
    }

    /// The same with further arguments.
    pub async fn start_with(config: &Path, arguments: &[&str]) -> Self {
        let mut command = Self::command(config);
        command.args(arguments);
        Self::launch(command).await.unwrap_or_else(|error| panic!("{error}"))
    }

    /// The same by any command. An error says why it ended instead.
    pub async fn launch(mut command: Command) -> Result<Self, String> {
        let mut child = command.stderr(Stdio::piped()).spawn().map_err(|error| format!("{command:?}: {error}"))?;
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let log = Arc::new(Mutex::new(Vec::<serde_json::Value>::new()));
        // A thread of its own, which ends with the process: a pipe that nobody reads would stop it.
        let lines = Arc::clone(&log);
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                lines.lock().push(serde_json::from_str(&line).unwrap_or_else(|_| line.clone().into()));
            }
        });
        let said = |message: &str, field: &str| {
            let log = log.lock();
            let event = log.iter().find(|event| event["message"] == message)?;
            event[field].as_str()?.parse::<SocketAddr>().ok()
        };
        let mut ended = None;
        eventually("the daemon serves clients", || {
            ended = child.try_wait().unwrap();
            std::future::ready(ended.is_some() || said("serving clients", "listener").is_some())
        })
        .await;
        if let Some(client) = said("serving clients", "listener")
            && let Some(admin) = said("the admin interface is open", "address")
        {
            return Ok(Self { child, log, client: Client(client), admin: Client(admin) });
        }
        let _ = child.kill();
        let _ = child.wait();
        Err(format!("it did not start ({ended:?}): {:?}", log.lock().iter().rev().take(3).collect::<Vec<_>>()))
    }

    /// Its process, or that of the program that runs it.
    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Stops it where it stands, without its knowing. The signal reaches one thread, which tells the others: where the machine
    /// is busy they run on until that one has got a processor.
    pub fn freeze(&self) {
        kill_process(self.pid(), Signal::STOP).unwrap();
        let began = Instant::now();
        while !self.stands_still() {
            assert!(began.elapsed() < Duration::from_mins(1), "a stopped process runs on");
            std::thread::yield_now();
        }
    }

    /// Whether all its threads are stopped; one that has ended meanwhile is.
    fn stands_still(&self) -> bool {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap();
        tasks.flatten().all(|task| {
            let stat = std::fs::read_to_string(task.path().join("stat")).unwrap_or_default();
            // Behind the name, which may have anything in it (proc(5)).
            let state = stat.rsplit_once(") ").map_or("T", |(_, rest)| rest);
            state.starts_with(['T', 't'])
        })
    }

    /// Whether it has ended.
    pub fn ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Ends it without a chance to do anything.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Writes a configuration for it: a root in `directory`, and one upstream called `up` with these keys.
    pub fn configure(directory: &Path, upstream: &Upstream, keys: &str) -> PathBuf {
        let (root, url) = (directory.join("root"), upstream.url());
        let text = format!(
            "root = '{}'\nbuiltin_upstreams = false\n\
             [[listener]]\naddress = \"127.0.0.1:0\"\ndefault_upstream = \"up\"\n\
             [admin]\naddress = \"127.0.0.1:0\"\n[upstream.up]\nurl = {url:?}\n{keys}\n",
            root.display(),
        );
        let path = directory.join("config.toml");
        std::fs::write(&path, text).unwrap();
        path
    }

    /// Asks it to stop, and waits for its end.
    pub async fn stop(mut self) {
        kill_process(self.pid(), Signal::TERM).unwrap();
        let mut ended = || self.child.try_wait().unwrap();
        eventually("the daemon stops", || std::future::ready(ended().is_some())).await;
        assert!(self.child.wait().unwrap().success());
    }

    /// What it has logged so far.
    pub fn log(&self) -> Vec<serde_json::Value> {
        self.log.lock().clone()
    }

    /// The text of `/metrics`.
    pub async fn metrics(&self) -> String {
        let got = self.admin.get("/metrics").await;
        assert!(got.complete(), "metrics: {}", got.summary());
        String::from_utf8(got.body.to_vec()).unwrap()
    }

    /// See [`super::Cistern::metric`].
    pub async fn metric(&self, name: &str, labels: &[&str]) -> u64 {
        sum(&self.metrics().await, name, labels)
    }

    /// Before which moment all that was published is on the disk, as it says itself; none if it does not know yet.
    pub async fn synced(&self) -> Option<SystemTime> {
        let text = self.metrics().await;
        let line = text.lines().find_map(|line| line.strip_prefix("ocistern_store_synced_timestamp_seconds "));
        let seconds: f64 = line.expect("it says when it synced").parse().unwrap();
        (seconds > 0.0).then(|| UNIX_EPOCH + Duration::from_secs_f64(seconds))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
