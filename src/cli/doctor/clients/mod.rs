//! The clients of this machine: which of them are set up to come here, and whether they would find anybody. Read only.

mod buildkit;
mod containerd;
mod docker;
mod k3s;
mod podman;

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde_json::error::Category;
use tokio::net::TcpStream;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::finding::{Finding, Group, Level};
use super::listeners::{Listeners, State};
use super::{FILES, Subject};
use crate::cli::clients::{FileError, Tree, Whose, position};
use crate::config::{Address, Listener};

const GROUP: Group = Group::Clients;
const OTHER_KIND: &str = "the value is not of the kind that is wanted there";
/// How long an address of this machine may take to accept a connection.
const ACCEPTS: Duration = Duration::from_millis(500);

/// Where the configurations of clients are.
#[derive(Debug)]
struct Places {
    tree: Tree,
    /// The machine's, and this user's.
    whose: Vec<Whose>,
}

/// What the files of the clients say.
#[derive(Debug)]
struct Read {
    tree: Tree,
    pointers: Vec<Pointer>,
    /// Files that cannot be read or understood.
    findings: Vec<Finding>,
}

/// A client's word on where it asks for images.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Pointer {
    /// As `ocistern setup` calls it.
    client: &'static str,
    file: PathBuf,
    /// Whose images are asked for there.
    of: String,
    endpoint: Endpoint,
    speaks: Speaks,
}

/// A host and port.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Endpoint {
    /// Lower case, IPv6 without brackets.
    host: String,
    port: u16,
}

/// How a client would speak there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Speaks {
    Plain,
    Tls,
    /// As it is answered.
    Either,
}

/// An address that this instance has, or would have.
#[derive(Debug, Clone)]
struct Ours {
    address: SocketAddr,
    names: Vec<String>,
    /// Whether it speaks TLS; none: that is not known.
    tls: Option<bool>,
    serves: bool,
}

/// Everything of the clients.
pub(super) async fn check(subject: &Arc<Subject>, listeners: &Listeners) -> Vec<Finding> {
    let places = Places::of_process(|name| std::env::var(name).ok());
    let reading = timeout(FILES, spawn_blocking(move || places.read())).await;
    let Ok(Ok(Read { pointers, mut findings, .. })) = reading else {
        let advice = "see to the file system that /etc or the home directory lies on";
        return vec![Finding::new(Level::Warning, GROUP, "configurations", "could not be read in time", advice)];
    };
    let ours = ours(subject, listeners);
    let mut here = false;
    for pointer in &pointers {
        let found = match ours.iter().find(|ours| ours.is_meant(&pointer.endpoint)) {
            Some(ours) => {
                here = true;
                pointer.to_us(ours)
            }
            None => pointer.elsewhere().await,
        };
        findings.push(found);
    }
    if !here {
        let found = "none of docker, containerd, podman, BuildKit and k3s is set up for this instance";
        let advice = "`ocistern setup docker` (or containerd, podman, buildkit, k3s) prints what to write, and writes it with --write";
        findings.push(Finding::new(Level::Note, GROUP, "all", found, advice));
    }
    findings
}

/// The addresses of the configuration, and those on which the daemon that runs listens besides.
fn ours(subject: &Subject, listeners: &Listeners) -> Vec<Ours> {
    let configured = subject.config.listeners.iter().zip(&listeners.states).filter_map(|(listener, state)| {
        let Address::Tcp(address) = listener.address else { return None };
        Some(Ours {
            address,
            names: listener.names(),
            tls: Some(listener.tls.is_some()),
            serves: *state == State::Serves,
        })
    });
    let mut ours: Vec<Ours> = configured.collect();
    let running = subject.status().map(|(_, status)| status.listeners.clone()).unwrap_or_default();
    for address in running.iter().filter_map(|address| address.parse::<SocketAddr>().ok()) {
        if ours.iter().all(|ours| ours.address != address) {
            let only: Option<&Listener> = match subject.config.listeners.as_slice() {
                [only] => Some(only),
                _ => None,
            };
            let tls = only.map(|listener| listener.tls.is_some());
            ours.push(Ours { address, names: Vec::new(), tls, serves: true });
        }
    }
    ours
}

// === impl Places ===

impl Places {
    fn of_process(env: impl Fn(&str) -> Option<String>) -> Self {
        Self { tree: Tree::new(None), whose: [Whose::Machine].into_iter().chain(Whose::of_user(env)).collect() }
    }

    /// The directories of one client.
    fn of(&self, client: impl Fn(&Whose) -> PathBuf) -> Vec<PathBuf> {
        self.whose.iter().map(client).collect()
    }

    fn read(&self) -> Read {
        let mut read = Read::new(self.tree.clone());
        docker::read(self, &mut read);
        containerd::read(self, &mut read);
        podman::read(self, &mut read);
        buildkit::read(self, &mut read);
        k3s::read(self, &mut read);
        read
    }
}

// === impl Read ===

impl Read {
    const fn new(tree: Tree) -> Self {
        Self { tree, pointers: Vec::new(), findings: Vec::new() }
    }

    /// The text of a file, if there is one.
    fn text(&mut self, client: &'static str, path: &Path) -> Option<String> {
        match self.tree.read(path) {
            Ok(text) => text,
            Err(FileError::Read { source, .. })
                if matches!(source.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) =>
            {
                None
            }
            Err(error) => {
                let why = match &error {
                    FileError::Read { source, .. } => source.to_string(),
                    _ => error.to_string(),
                };
                let about = format!("{client}, {}", path.display());
                let advice = match &error {
                    FileError::Large { .. } => "see what it is: the client itself reads all of it",
                    _ => "run this as a user that may read it",
                };
                self.findings.push(Finding::new(Level::Note, GROUP, about, why, advice));
                None
            }
        }
    }

    /// What a text says, if it is what the client can read; else why not.
    fn parsed<T>(&mut self, client: &'static str, path: &Path, parsed: Result<T, String>) -> Option<T> {
        parsed
            .inspect_err(|error| {
                let about = format!("{client}, {}", path.display());
                let found = format!("is not what {client} can read: {error}");
                self.findings.push(Finding::new(
                    Level::Warning,
                    GROUP,
                    about,
                    found,
                    "correct it; the client does not start with it",
                ));
            })
            .ok()
    }

    /// What is in a directory, in order.
    fn list(&self, directory: &Path) -> Vec<PathBuf> {
        self.tree.list(directory).unwrap_or_default()
    }

    fn point(&mut self, client: &'static str, file: &Path, of: &str, location: &str, speaks: Speaks) {
        // What is no host and port is for the client to complain about.
        if let Some((endpoint, written)) = Endpoint::parse(location, speaks) {
            let pointer = Pointer { client, file: file.to_owned(), of: of.to_owned(), endpoint, speaks: written };
            self.pointers.push(pointer);
        }
    }
}

/// What a text says, else where it says it wrongly: without its line and its values, among which there may be credentials.
fn from_toml<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    toml::from_str(text).map_err(|error| {
        let (line, column) = position(text, error.span().map_or(0, |span| span.start));
        match toml::from_str::<toml::Table>(text) {
            Err(syntax) => format!("line {line}, column {column}: {}", syntax.message()),
            Ok(_) => format!("line {line}, column {column}: {OTHER_KIND}"),
        }
    })
}

/// As [`from_toml`].
fn from_json<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    serde_json::from_str(text).map_err(|error| match error.classify() {
        Category::Data => format!("line {}, column {}: {OTHER_KIND}", error.line(), error.column()),
        _ => error.to_string(),
    })
}

// === impl Pointer ===

impl Pointer {
    fn about(&self) -> String {
        format!("{}, {}", self.client, self.file.display())
    }

    /// It leads here.
    fn to_us(&self, ours: &Ours) -> Finding {
        let Self { client, of, endpoint, .. } = self;
        let found = format!("asks {endpoint} for {of}");
        if !ours.serves {
            let found = format!(
                "{found}, which is this instance, and nobody listens there: pulls fail, or go around the cache"
            );
            let advice = "start the daemon (systemctl start ocistern, or `ocistern serve`)";
            return Finding::new(Level::Error, GROUP, self.about(), found, advice);
        }
        let found = match (self.speaks, ours.tls) {
            (Speaks::Tls, Some(false)) => format!("{found} by TLS, which that listener does not speak"),
            (Speaks::Plain, Some(true)) => format!("{found} by plain HTTP, and that listener speaks TLS"),
            _ => return Finding::ok(GROUP, self.about(), format!("{found}: this instance")),
        };
        Finding::new(
            Level::Error,
            GROUP,
            self.about(),
            found,
            format!("`ocistern setup {client}` prints what to write"),
        )
    }

    /// It leads to somebody else.
    async fn elsewhere(&self) -> Finding {
        let Self { client, of, endpoint, .. } = self;
        let found = format!("asks {endpoint} for {of}, which is not this instance");
        let advice = format!("right if that is meant; `ocistern setup {client}` prints what to write instead");
        // Of other machines nothing is asked.
        let Some(ip) = endpoint.local() else {
            return Finding::new(Level::Note, GROUP, self.about(), found, advice);
        };
        if let Ok(Ok(_)) = timeout(ACCEPTS, TcpStream::connect((ip, endpoint.port))).await {
            return Finding::new(Level::Note, GROUP, self.about(), found, advice);
        }
        let found = format!("{found}, and nobody listens there");
        let advice =
            format!("start what should listen there, or take it out; `ocistern setup {client}` prints what to write");
        Finding::new(Level::Warning, GROUP, self.about(), found, advice)
    }
}

// === impl Endpoint ===

impl Endpoint {
    /// Of a URL, or of a host with or without a port, and a path behind it. A scheme decides how it is spoken to.
    fn parse(text: &str, speaks: Speaks) -> Option<(Self, Speaks)> {
        let (speaks, rest) = match text.split_once("://") {
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => (Speaks::Plain, rest),
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("https") => (Speaks::Tls, rest),
            Some(_) => return None,
            None => (speaks, text),
        };
        let authority = rest.split('/').next()?;
        let (host, port) = match authority.rsplit_once(':') {
            // The last colon of a bare IPv6 address is no port's.
            Some((host, port)) if !port.contains(']') => (host, Some(port.parse().ok()?)),
            _ => (authority, None),
        };
        let host = host.trim_start_matches('[').trim_end_matches(']').to_ascii_lowercase();
        let port = port.unwrap_or(if speaks == Speaks::Plain { 80 } else { 443 });
        (!host.is_empty() && !host.contains('@')).then_some((Self { host, port }, speaks))
    }

    /// Its address, if that is one of this machine's. Names are not asked for, but for the one that is in no doubt.
    fn local(&self) -> Option<IpAddr> {
        let ip = match self.host.as_str() {
            "localhost" => IpAddr::from([127, 0, 0, 1]),
            host => host.parse().ok()?,
        };
        // Only an address of this machine can be bound.
        (ip.is_loopback() || UdpSocket::bind((ip, 0)).is_ok()).then_some(ip)
    }

    fn is_loopback(&self) -> bool {
        self.host == "localhost" || self.host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

// === impl Ours ===

impl Ours {
    fn is_meant(&self, endpoint: &Endpoint) -> bool {
        if self.names.contains(&endpoint.host) {
            return true;
        }
        if self.address.port() != endpoint.port {
            return false;
        }
        let own = self.address.ip();
        match endpoint.host.parse::<IpAddr>() {
            Ok(ip) => ip == own || (own.is_unspecified() && endpoint.local().is_some()),
            Err(_) => endpoint.host == "localhost" && (own.is_loopback() || own.is_unspecified()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    impl Places {
        pub(super) fn below(directory: &Path) -> Self {
            let user = Whose::User { home: "/home/me".into(), config: "/user".into() };
            Self { tree: Tree::new(Some(directory.to_owned())), whose: vec![Whose::Machine, user] }
        }
    }

    pub(super) fn write(directory: &Path, name: &str, text: &str) -> PathBuf {
        let path = directory.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path
    }

    /// Client, whose images, where, and how.
    pub(super) fn pointers(directory: &Path) -> Vec<(&'static str, String, String, Speaks)> {
        let read = Places::below(directory).read();
        assert_eq!(read.findings, [], "all of it can be read");
        let pointer = |pointer: Pointer| (pointer.client, pointer.of, pointer.endpoint.to_string(), pointer.speaks);
        read.pointers.into_iter().map(pointer).collect()
    }

    fn endpoint(text: &str) -> Option<(String, Speaks)> {
        Endpoint::parse(text, Speaks::Either).map(|(endpoint, speaks)| (endpoint.to_string(), speaks))
    }

    #[test]
    fn endpoints_in_every_form() {
        for (text, expected) in [
            ("http://127.0.0.1:5000", Some(("127.0.0.1:5000", Speaks::Plain))),
            ("HTTPS://Cache.Example/v2/ghcr.io", Some(("cache.example:443", Speaks::Tls))),
            ("http://cache.example", Some(("cache.example:80", Speaks::Plain))),
            ("localhost:5000/ghcr.io", Some(("localhost:5000", Speaks::Either))),
            ("[::1]:5000", Some(("[::1]:5000", Speaks::Either))),
            ("http://[::1]", Some(("[::1]:80", Speaks::Plain))),
            ("unix:///run/x", None),
            ("http://", None),
            ("http://a:b@c", None),
            ("host:port", None),
        ] {
            let expected = expected.map(|(text, speaks)| (text.to_owned(), speaks));
            assert_eq!(endpoint(text), expected, "{text}");
        }
    }

    #[test]
    fn what_is_meant_by_an_endpoint() {
        let ours = |address: &str, name: &str| Ours {
            address: address.parse().unwrap(),
            names: vec![name.to_owned()],
            tls: Some(false),
            serves: true,
        };
        for (listener, text, meant) in [
            ("127.0.0.1:5000", "127.0.0.1:5000", true),
            ("127.0.0.1:5000", "localhost:5000", true),
            ("127.0.0.1:5000", "localhost:5001", false),
            ("127.0.0.1:5000", "127.0.0.2:5000", false),
            ("0.0.0.0:5000", "127.0.0.2:5000", true),
            ("0.0.0.0:5000", "192.0.2.1:5000", false),
            ("10.0.0.1:5000", "localhost:5000", false),
            ("127.0.0.1:5000", "https://cache.example", true),
            ("127.0.0.1:5000", "https://other.example", false),
        ] {
            let (endpoint, _) = Endpoint::parse(text, Speaks::Either).unwrap();
            assert_eq!(ours(listener, "cache.example").is_meant(&endpoint), meant, "{listener} {text}");
        }
    }

    #[test]
    fn a_pointer_here_is_judged_by_whether_it_is_answered() {
        let pointer = |speaks| Pointer {
            client: "docker",
            file: "/etc/docker/daemon.json".into(),
            of: "docker.io".to_owned(),
            endpoint: Endpoint { host: "localhost".to_owned(), port: 5000 },
            speaks,
        };
        let ours = |tls, serves| Ours { address: ([127, 0, 0, 1], 5000).into(), names: Vec::new(), tls, serves };
        for (speaks, tls, serves, level) in [
            (Speaks::Plain, Some(false), true, Level::Ok),
            (Speaks::Plain, Some(false), false, Level::Error),
            (Speaks::Plain, Some(true), true, Level::Error),
            (Speaks::Tls, Some(false), true, Level::Error),
            (Speaks::Tls, Some(true), true, Level::Ok),
            (Speaks::Tls, None, true, Level::Ok),
            (Speaks::Either, Some(true), true, Level::Ok),
        ] {
            let found = pointer(speaks).to_us(&ours(tls, serves));
            assert_eq!(found.level, level, "{found:?}");
        }
    }

    #[test]
    fn files_that_no_client_could_read_are_told() {
        let directory = tempfile::tempdir().unwrap();
        write(directory.path(), "etc/docker/daemon.json", "{");
        write(directory.path(), "etc/buildkit/buildkitd.toml", "= 1");
        write(directory.path(), "etc/containerd/certs.d/ghcr.io/hosts.toml", "[[");
        write(directory.path(), "home/me/.config/containers/registries.conf", "registry = 1");
        let findings = Places::below(directory.path()).read().findings;
        assert_eq!(
            findings.iter().map(|finding| finding.level).collect::<Vec<_>>(),
            [Level::Warning; 4],
            "{findings:?}"
        );
        assert!(Places::below(&directory.path().join("none")).read().findings.is_empty());
    }

    #[test]
    fn what_is_told_of_a_file_has_no_credential_in_it() {
        let directory = tempfile::tempdir().unwrap();
        for (name, text) in [
            (
                "etc/containerd/certs.d/a/hosts.toml",
                "[host.\"https://b\".header]\nAuthorization = \"Basic hunter2\" x\n",
            ),
            ("etc/containerd/certs.d/b/hosts.toml", "host = \"hunter2\"\n"),
            ("etc/docker/daemon.json", "{\"registry-mirrors\": \"https://me:hunter2@b\"}"),
            ("etc/containers/registries.conf", "registry = 'hunter2'\n"),
        ] {
            write(directory.path(), name, text);
        }
        let findings = Places::below(directory.path()).read().findings;
        assert_eq!(findings.len(), 4, "{findings:?}");
        let told = format!("{findings:?}");
        assert!(!told.contains("hunter2") && told.matches("line ").count() == 4, "{told}");
    }
}
