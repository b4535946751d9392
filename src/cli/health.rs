//! `ocistern health`: whether the daemon of this configuration serves, for health checks of containers and scripts.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use http::{HeaderValue, StatusCode};
use tokio::runtime::Builder;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, timeout_at};

use super::known::{self, Known};
use super::talk::{Place, Said, Silent, reachable};
use super::{FAILED, USAGE, complain, say};
use crate::config::{self, Config};
use crate::server::admin_socket_path;
use crate::store::Holder;

/// How long an answer may take where nobody says; less than the usual time-outs of health checks.
const TIMEOUT: &str = "5s";

/// What `health` is told.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The configuration file, which must exist.
    #[arg(
        long,
        value_name = "FILE",
        help = "Configuration file of the daemon [default: the first of $OCISTERN_CONFIG, $XDG_CONFIG_HOME/ocistern/config.toml, /etc/ocistern/config.toml]"
    )]
    config: Option<PathBuf>,
    /// The directory of the store.
    #[arg(
        long,
        value_name = "DIR",
        help = "Directory of the daemon's store, where its admin socket is [env: OCISTERN_ROOT] [default: that of the configuration, else ocistern in the user's cache directory]"
    )]
    root: Option<PathBuf>,
    /// How long to wait.
    #[arg(long, value_name = "TIME", value_parser = config::duration, default_value = TIMEOUT, help = "How long to wait for an answer")]
    timeout: Duration,
}

/// How the daemon is.
#[derive(Debug, PartialEq, Eq)]
enum Health {
    /// It serves.
    Ready,
    /// It says what it does instead.
    Not(String),
    /// It is there, and what it does cannot be known.
    Unknown(String),
}

/// Who has the store.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Had {
    /// A daemon, as its lock says.
    ByDaemon,
    /// No daemon, and what is known instead: whoever answers is somebody else.
    ByNone(String),
    /// No store can be seen from here: it is in another container, or another user's.
    Unseen,
}

/// Asks, and says it in one line.
pub(super) fn run(arguments: &Arguments) -> ExitCode {
    let known = known::load(arguments.config.as_deref(), arguments.root.as_deref(), known::Place::NamedOrUsual);
    let known = match known {
        Ok(known) => known,
        Err(error) => return complain(USAGE, error),
    };
    let runtime = match Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return complain(FAILED, error),
    };
    let found = runtime.block_on(find(&known, Instant::now() + arguments.timeout));
    // A file system that hangs must not hold up the answer.
    runtime.shutdown_background();
    match found {
        Ok((Health::Ready, place)) => say(&format!("ready ({place})\n")),
        Ok((health, place)) => complain(FAILED, format_args!("{health} ({place})")),
        Err(silence) => complain(FAILED, format_args!("no daemon answers: {}", silence.join("; "))),
    }
}

/// Asks one place after the other, until one knows. An error says why none does.
async fn find(known: &Known, deadline: Instant) -> Result<(Health, String), Vec<String>> {
    let config = &known.config;
    let mut silence = Vec::new();
    // The socket first: it is this root's and no other daemon's.
    let socket = timeout_at(deadline, socket(config)).await.unwrap_or_else(|_| admin_socket_path(config));
    let mut admin = vec![Place::Unix(socket)];
    // The usual addresses may be another daemon's.
    let addresses = known.mistake.is_none();
    let address = config.admin.address.filter(|address| addresses && address.port() != 0);
    admin.extend(address.map(|address| Place::Plain(reachable(address))));
    for place in admin {
        match ask(&place, config, deadline).await {
            Ok(said) => match judged(&said) {
                Health::Unknown(why) => silence.push(format!("{place}: {why}")),
                Health::Ready => match believed(config, deadline).await {
                    Ok(()) => return Ok((Health::Ready, place.to_string())),
                    Err(why) => silence.push(format!("{place}: {why}")),
                },
                health @ Health::Not(_) => return Ok((health, place.to_string())),
            },
            Err(error) => silence.push(format!("{place}: {error}")),
        }
    }
    for place in config.listeners.iter().filter(|_| addresses).filter_map(Place::of_listener) {
        match place.get("/v2/", None, left(deadline)).await {
            Ok(said) if is_registry(&said) => match believed(config, deadline).await {
                Ok(()) => return Ok((Health::Ready, place.to_string())),
                Err(why) => silence.push(format!("{place}: {why}")),
            },
            Ok(said) => silence.push(format!("{place}: answers {}, as no registry does", said.status)),
            Err(error) => silence.push(format!("{place}: {}", because(&error))),
        }
    }
    Err(silence)
}

/// Asks for readiness; shows the token to who wants one and may have it.
async fn ask(place: &Place, config: &Config, deadline: Instant) -> Result<Said, Silent> {
    let said = place.get("/readyz", None, left(deadline)).await?;
    if let Place::Plain(address) = place
        && wants_token(*address, said.status)
        && had(config, deadline).await == Had::ByDaemon
        && let Some(token) = token(config).await
    {
        return place.get("/readyz", Some(&token), left(deadline)).await;
    }
    Ok(said)
}

/// Whether an answer is one of a daemon that goes by the token. On loopback none does: who reads there needs none, and who
/// asks for one all the same is somebody else, who has taken the address while no daemon had it.
fn wants_token(address: SocketAddr, status: StatusCode) -> bool {
    status == StatusCode::UNAUTHORIZED && !address.ip().to_canonical().is_loopback()
}

/// Whether it may be this store's daemon that says that it is ready: anybody can answer at an address while nobody has the
/// store. Looked at after the answer: a daemon that may say so has had the store by then.
async fn believed(config: &Config, deadline: Instant) -> Result<(), String> {
    match had(config, deadline).await {
        Had::ByDaemon | Had::Unseen => Ok(()),
        Had::ByNone(known) => Err(format!("answers, and is not the daemon of {}: {known}", config.root.display())),
    }
}

/// Who has the store of this root.
async fn had(config: &Config, deadline: Instant) -> Had {
    let root = config.root.clone();
    // The directory alone says nothing: an image has it too, and the store may be in another container's volume.
    let looking = spawn_blocking(move || (root.join("VERSION").exists(), Holder::current(&root)));
    match timeout_at(deadline, looking).await {
        Ok(Ok((_, Ok(Some(holder))))) if holder.command.is_some() => Had::ByNone(format!("{holder} has it")),
        Ok(Ok((_, Ok(Some(_))))) => Had::ByDaemon,
        Ok(Ok((true, Ok(None)))) => Had::ByNone("no process has it".to_owned()),
        // What cannot be looked at, and a disk that hangs, say nothing either.
        Ok(Ok((false, Ok(None)) | (_, Err(_))) | Err(_)) | Err(_) => Had::Unseen,
    }
}

/// Where the daemon of this root says that it listens, else where it would.
async fn socket(config: &Config) -> PathBuf {
    let root = config.root.clone();
    let holder = spawn_blocking(move || Holder::read(&root)).await;
    holder.ok().flatten().and_then(|holder| holder.socket).unwrap_or_else(|| admin_socket_path(config))
}

/// What opens the admin listener where it is not on loopback.
async fn token(config: &Config) -> Option<HeaderValue> {
    let text = tokio::fs::read_to_string(config.admin.token_file.as_ref()?).await.ok()?;
    let mut token = HeaderValue::from_str(&format!("Bearer {}", text.lines().next()?.trim())).ok()?;
    token.set_sensitive(true);
    Some(token)
}

fn left(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now())
}

/// What an answer of `/readyz` means.
fn judged(said: &Said) -> Health {
    let word = String::from_utf8_lossy(&said.body);
    let word = word.trim();
    match said.status {
        StatusCode::OK if word == "ready" => Health::Ready,
        StatusCode::SERVICE_UNAVAILABLE if matches!(word, "starting" | "stopping" | "stopped") => {
            Health::Not(word.to_owned())
        }
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Health::Unknown(format!(
            "answers {}: this user, or the token of admin.token_file, is not let in",
            said.status
        )),
        status => Health::Unknown(format!("answers {status}, as no ocistern does")),
    }
}

/// Whether it is a registry that answers to `/v2/`. Without a credential it may well refuse.
pub(super) fn is_registry(said: &Said) -> bool {
    matches!(said.status, StatusCode::OK | StatusCode::UNAUTHORIZED)
        && said.headers.get("docker-distribution-api-version").is_some_and(|version| version == "registry/2.0")
}

/// A listener that wants a certificate of its clients ends the handshake, or the connection after it.
fn because(error: &Silent) -> String {
    match error {
        Silent::Tls(_) | Silent::Http(_) => format!("{error} (a listener with client_ca answers nobody else)"),
        other => other.to_string(),
    }
}

impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ready => f.write_str("ready"),
            Self::Not(stage) => f.write_str(stage),
            Self::Unknown(why) => f.write_str(why),
        }
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderMap;

    use super::*;

    fn said(status: u16, body: &'static str) -> Said {
        let status = StatusCode::from_u16(status).unwrap();
        Said { status, headers: HeaderMap::new(), body: body.into(), certificate: None }
    }

    #[test]
    fn only_the_words_of_readyz_count() {
        assert_eq!(judged(&said(200, "ready\n")), Health::Ready);
        assert_eq!(judged(&said(503, "starting\n")), Health::Not("starting".to_owned()));
        assert_eq!(judged(&said(503, "stopping\n")), Health::Not("stopping".to_owned()));
        for (status, body) in [(200, "<html>"), (404, "ready\n"), (503, "no backend"), (401, "ready\n"), (200, "")] {
            assert!(matches!(judged(&said(status, body)), Health::Unknown(_)), "{status} {body:?}");
        }
    }

    #[test]
    fn a_token_is_for_who_goes_by_one() {
        for (address, status, expected) in [
            ("192.0.2.7:5080", 401, true),
            ("[2001:db8::7]:5080", 401, true),
            ("192.0.2.7:5080", 200, false),
            ("192.0.2.7:5080", 403, false),
            ("127.0.0.1:5080", 401, false),
            ("127.8.0.1:5080", 401, false),
            ("[::1]:5080", 401, false),
            ("[::ffff:127.0.0.1]:5080", 401, false),
        ] {
            let status = StatusCode::from_u16(status).unwrap();
            assert_eq!(wants_token(address.parse().unwrap(), status), expected, "{address} {status}");
        }
    }

    #[test]
    fn a_registry_says_that_it_is_one() {
        let mut open = said(200, "{}");
        assert!(!is_registry(&open), "any web server answers 200");
        open.headers.insert("docker-distribution-api-version", HeaderValue::from_static("registry/2.0"));
        assert!(is_registry(&open));
        open.status = StatusCode::UNAUTHORIZED;
        assert!(is_registry(&open));
        open.status = StatusCode::BAD_GATEWAY;
        assert!(!is_registry(&open));
    }
}
