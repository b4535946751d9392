//! `ocistern doctor`: looks at all that a pull depends on, says what was found, and what to do where something is wrong.
//!
//! It changes nothing, needs no daemon, and looks at one that runs. Every question to the network has its time, and all
//! are asked at once.

mod certificate;
mod clients;
mod configuration;
mod finding;
mod listeners;
mod reading;
mod root;
mod upstreams;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::runtime::Builder;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use self::finding::{Finding, Group, Level, Report};
use super::talk::Place;
use super::{FAILED, complain, say};
use crate::clock::{Clock as _, SystemClock};
use crate::config::{Config, ConfigError, Flags};
use crate::http::admin::Status;
use crate::server::admin_socket_path;
use crate::store::Holder;

/// How long one question to another machine may take.
const STEP: Duration = Duration::from_secs(5);
/// How long all that is asked of one upstream may take.
const UPSTREAM: Duration = Duration::from_secs(12);
/// How long what is on this machine may take to answer.
const LOCAL: Duration = Duration::from_secs(3);
/// How long files may take to be looked at; a file system that hangs is a finding.
const FILES: Duration = Duration::from_secs(10);

/// What `doctor` is told.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The configuration file, which must exist.
    #[arg(
        long,
        value_name = "FILE",
        help = "Configuration file [default: the first of $OCISTERN_CONFIG, $XDG_CONFIG_HOME/ocistern/config.toml, /etc/ocistern/config.toml]"
    )]
    config: Option<PathBuf>,
    /// The directory of the store.
    #[arg(
        long,
        value_name = "DIR",
        help = "Directory of the store [env: OCISTERN_ROOT] [default: that of the configuration, else ocistern in the user's cache directory]"
    )]
    root: Option<PathBuf>,
    /// For scripts.
    #[arg(long, help = "Print the findings as JSON, as the chapter on operations of the documentation describes them")]
    json: bool,
    /// This machine alone.
    #[arg(long, help = "Ask no other machine: leave the upstreams out")]
    no_network: bool,
}

/// What is looked at.
#[derive(Debug)]
struct Subject {
    config: Config,
    /// The user that the daemon runs as, as far as can be seen: the owner of its root, else this one.
    user: u32,
    /// This one.
    own_user: u32,
    now: SystemTime,
    daemon: Daemon,
}

/// Who has the root.
#[derive(Debug)]
enum Daemon {
    /// Nobody.
    None,
    /// It is not known whether anybody has it.
    Unknown(String),
    /// A command, or something that does not answer, and why not.
    Silent(Holder, String),
    /// A daemon.
    Running(Holder, Box<Status>),
}

/// Looks, and says it.
pub(super) fn run(arguments: &Arguments) -> ExitCode {
    let flags = Flags { config: arguments.config.clone(), root: arguments.root.clone(), ..Flags::default() };
    let loaded = Config::load(&flags, |name| std::env::var(name).ok());
    let runtime = match Builder::new_multi_thread().enable_all().thread_name("ocistern").build() {
        Ok(runtime) => runtime,
        Err(error) => return complain(FAILED, error),
    };
    let findings = runtime.block_on(async {
        match loaded {
            Ok(config) => examine(config, arguments.no_network).await,
            Err(error) => unreadable(&error),
        }
    });
    // Name servers that are silent, and disks that hang, hold up nobody.
    runtime.shutdown_background();
    let report = Report::new(findings);
    let said = say(&if arguments.json { report.json() } else { report.text() });
    if report.errors > 0 { ExitCode::from(FAILED) } else { said }
}

/// All that can be said without a configuration.
fn unreadable(error: &ConfigError) -> Vec<Finding> {
    let mut findings = configuration::mistakes(error);
    findings.push(Finding::new(
        Level::Note,
        Group::Root,
        "everything else",
        "not looked at, because the configuration says what there is",
        "run `ocistern doctor` again when the configuration is right",
    ));
    findings
}

async fn examine(config: Config, no_network: bool) -> Vec<Finding> {
    let subject = Arc::new(Subject::find(config).await);
    let (configuration, root, upstreams, listeners) = tokio::join!(
        files(&subject, Group::Configuration, configuration::check),
        files(&subject, Group::Root, root::check),
        upstreams::check(&subject, no_network),
        listeners::check(&subject),
    );
    // Last: it tells what listens from what does not.
    let clients = clients::check(&subject, &listeners).await;
    [configuration, root, upstreams, listeners.findings, clients].concat()
}

/// Runs a check that reads files, within its time.
async fn files(subject: &Arc<Subject>, group: Group, check: fn(&Subject) -> Vec<Finding>) -> Vec<Finding> {
    let of = Arc::clone(subject);
    let hangs = |why: String| {
        let advice = "see to the disk or the network file system that the configuration or the root lies on";
        vec![Finding::new(Level::Error, group, "its files", why, advice)]
    };
    match timeout(FILES, spawn_blocking(move || check(&of))).await {
        Ok(Ok(findings)) => findings,
        Ok(Err(error)) => hangs(format!("the check did not end properly: {error}")),
        Err(_) => hangs(format!("could not be looked at within {} s", FILES.as_secs())),
    }
}

// === impl Subject ===

impl Subject {
    async fn find(config: Config) -> Self {
        let own_user = rustix::process::geteuid().as_raw();
        let root = config.root.clone();
        let looking = spawn_blocking(move || (root::owner(&root), Holder::current(&root)));
        let (owner, holder) = match timeout(FILES, looking).await {
            Ok(Ok((owner, holder))) => (owner, holder.map_err(|error| error.to_string())),
            Ok(Err(error)) => (None, Err(error.to_string())),
            Err(_) => (None, Err("the file system does not answer".to_owned())),
        };
        let daemon = match holder {
            Ok(None) => Daemon::None,
            Ok(Some(holder)) => Daemon::ask(holder, &config).await,
            Err(why) => Daemon::Unknown(why),
        };
        Self { user: owner.unwrap_or(own_user), own_user, now: SystemClock.now(), config, daemon }
    }

    /// Whether a daemon serves this configuration's root.
    fn status(&self) -> Option<(&Holder, &Status)> {
        match &self.daemon {
            Daemon::Running(holder, status) => Some((holder, status)),
            Daemon::None | Daemon::Unknown(_) | Daemon::Silent(..) => None,
        }
    }
}

// === impl Daemon ===

impl Daemon {
    async fn ask(holder: Holder, config: &Config) -> Self {
        if holder.command.is_some() {
            return Self::Silent(holder, "a command is at work on it".to_owned());
        }
        let socket = holder.socket.clone().unwrap_or_else(|| admin_socket_path(config));
        match Place::Unix(socket.clone()).get("/api/v1/status", None, LOCAL).await {
            Ok(said) => match serde_json::from_slice::<Status>(&said.body) {
                Ok(status) => Self::Running(holder, Box::new(status)),
                Err(_) => Self::Silent(holder, format!("{} answers {}", socket.display(), said.status)),
            },
            Err(error) => Self::Silent(holder, format!("{}: {error}", socket.display())),
        }
    }
}
