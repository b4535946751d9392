//! Where clients connect: whether the address is free or this daemon's, whether it answers, and what its certificates are for.

use std::sync::Arc;

use futures_util::future::join_all;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::certificate::life;
use super::finding::{Finding, Group, Level};
use super::{Daemon, LOCAL, Subject};
use crate::cli::health::is_registry;
use crate::cli::talk::{Place, Said, Silent, reachable};
use crate::config::{Address, Listener};
use crate::server::{Leaf, can_listen, leaves};

const GROUP: Group = Group::Listeners;

/// What was seen of all.
#[derive(Debug)]
pub(super) struct Listeners {
    pub(super) findings: Vec<Finding>,
    /// In the order of the configuration.
    pub(super) states: Vec<State>,
}

/// How the address of a listener is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// Nobody listens there.
    Free,
    /// An ocistern, or another registry, answers there.
    Serves,
    /// Something else has it, or it cannot be had.
    Not,
}

/// Everything of the listeners.
pub(super) async fn check(subject: &Arc<Subject>) -> Listeners {
    let all = subject.config.listeners.iter().map(|listener| one(subject, listener));
    let (seen, admin) = tokio::join!(join_all(all), admin(subject));
    let (findings, states): (Vec<Vec<Finding>>, Vec<State>) = seen.into_iter().unzip();
    Listeners { findings: findings.into_iter().flatten().chain(admin).collect(), states }
}

async fn one(subject: &Arc<Subject>, listener: &Listener) -> (Vec<Finding>, State) {
    let about = listener.address.to_string();
    let mut findings = Vec::new();
    let (found, state, shown) = address(subject, listener).await;
    findings.push(found);
    if let Some(tls) = &listener.tls {
        let tls = tls.clone();
        let leaves = timeout(LOCAL, spawn_blocking(move || leaves(&tls))).await;
        // What cannot be read is said with the configuration.
        if let Ok(Ok(Ok(leaves))) = leaves {
            findings.extend(certificates(subject, listener, &leaves));
            if let Some(shown) = shown.and_then(|said| said.certificate)
                && !leaves.iter().any(|leaf| leaf.certificate == shown)
            {
                let advice =
                    "it takes up renewed files within ten seconds; if it does not, its log says why, or restart it";
                let found = "the daemon shows a certificate that is in none of its files";
                findings.push(Finding::new(Level::Warning, GROUP, about.as_str(), found, advice));
            }
        }
    }
    let is_public = matches!(listener.address, Address::Tcp(address) if !address.ip().is_loopback());
    if is_public && listener.tls.is_none() {
        let found = "serves whoever reaches it, without TLS";
        let advice = "right in a closed network; else set `tls`, or listen on 127.0.0.1";
        findings.push(Finding::new(Level::Note, GROUP, about, found, advice));
    }
    (findings, state)
}

/// The address: free, served, or somebody else's; and what was answered there.
async fn address(subject: &Subject, listener: &Listener) -> (Finding, State, Option<Said>) {
    let about = listener.address.to_string();
    let running = subject.status();
    let Some(place) = Place::of_listener(listener) else {
        let advice = "write a port, so that clients can be set up for it";
        let found = "a free port is taken at each start, another one each time";
        return (Finding::new(Level::Note, GROUP, about, found, advice), State::Not, None);
    };
    let error = match can_listen(&listener.address).await {
        Ok(()) => {
            let found = match running {
                None => Finding::ok(GROUP, about, "free: a daemon can listen there"),
                Some((holder, _)) => Finding::new(
                    Level::Error,
                    GROUP,
                    about,
                    format!("the daemon that runs (process {}) does not listen there", holder.pid),
                    "restart it if the configuration has changed since its start; it may also have been started with --listen",
                ),
            };
            return (found, State::Free, None);
        }
        Err(error) => error,
    };
    if listener.optional && error.is_missing_address() {
        let found = "left out, since this machine has no such address";
        let advice = "nothing, unless clients here use IPv6";
        return (Finding::new(Level::Note, GROUP, about, found, advice), State::Not, None);
    }
    if error.is_forbidden() && !matches!(listener.address, Address::Unix(_)) && subject.own_user != subject.user {
        let found = format!("this user may not listen there: {error}");
        let advice = format!("run this as the user that serves ({}) to see whether that one may", subject.user);
        return (Finding::new(Level::Note, GROUP, about, found, advice), State::Not, None);
    }
    if !error.is_taken() {
        let advice = "choose another address (listener.address, --listen), or do as it says";
        return (Finding::new(Level::Error, GROUP, about, error.to_string(), advice), State::Not, None);
    }
    let asked = place.get("/v2/", None, LOCAL).await;
    let wants_certificates = listener.tls.as_ref().is_some_and(|tls| tls.client_ca.is_some());
    let answers = match &asked {
        Ok(said) if is_registry(said) => Some(format!("answers /v2/ with {}", said.status.as_u16())),
        // It ends the handshake of who shows none, or the connection after it.
        Err(Silent::Tls(_) | Silent::Http(_)) if wants_certificates => {
            Some("wants a certificate of its clients".to_owned())
        }
        _ => None,
    };
    let is_own = running.is_some_and(|(_, status)| status.listeners.contains(&about));
    let (found, state) = match (answers, running) {
        (Some(answers), Some((holder, _))) if is_own => {
            (Finding::ok(GROUP, about, format!("process {} serves there, and {answers}", holder.pid)), State::Serves)
        }
        // A socket of systemd has another form of the same address.
        (Some(answers), Some(_)) => (Finding::ok(GROUP, about, format!("served, and {answers}")), State::Serves),
        (Some(answers), None) if is_hidden(subject) => {
            (unseen(subject, about, &format!("served, and {answers}")), State::Serves)
        }
        (Some(answers), None) => (
            Finding::new(
                Level::Error,
                GROUP,
                about.as_str(),
                format!("a registry that is not this store's daemon has it, and {answers}"),
                format!(
                    "`{}` names the process: another ocistern (its root?) or another registry; stop it, or choose another address",
                    tool(listener)
                ),
            ),
            State::Serves,
        ),
        (None, _) => {
            let what = match &asked {
                Ok(said) => format!("it answers {} to /v2/, as no registry does", said.status),
                Err(error) => error.to_string(),
            };
            let finding = Finding::new(
                Level::Error,
                GROUP,
                about,
                format!("something has it that is no registry: {what}"),
                format!(
                    "`{}` names the process: stop it, or choose another address (listener.address, --listen)",
                    tool(listener)
                ),
            );
            (finding, State::Not)
        }
    };
    (found, state, asked.ok())
}

/// Whether there may be a daemon that this user cannot ask.
const fn is_hidden(subject: &Subject) -> bool {
    matches!(subject.daemon, Daemon::Unknown(_) | Daemon::Silent(..))
}

/// Somebody answers at an address, and who that is cannot be told.
fn unseen(subject: &Subject, about: String, answers: &str) -> Finding {
    let found = format!("{answers}; whether by this store's daemon cannot be seen");
    Finding::new(Level::Note, GROUP, about, found, format!("run this as root or as the user {}", subject.user))
}

/// What tells who listens.
const fn tool(listener: &Listener) -> &'static str {
    match listener.address {
        Address::Tcp(_) => "ss -ltnp",
        Address::Unix(_) => "ss -lxp",
    }
}

/// The certificates in the files: how long they are good, and whether there is one for each name.
fn certificates(subject: &Subject, listener: &Listener, leaves: &[Leaf]) -> Vec<Finding> {
    let about = listener.address.to_string();
    let mut findings = Vec::new();
    for leaf in leaves {
        let life = life(&leaf.certificate, subject.now);
        let found = format!("the certificate {} {}", leaf.files.certificate.display(), life.said);
        let advice = "renew it; a daemon that runs takes up the new file by itself";
        findings.push(match life.level {
            Level::Ok => Finding::ok(GROUP, about.as_str(), found),
            level => Finding::new(level, GROUP, about.as_str(), found, advice),
        });
    }
    for name in listener.names() {
        if leaves.iter().any(|leaf| leaf.covers(&name)) {
            findings.push(Finding::ok(GROUP, about.as_str(), format!("there is a certificate for {name}")));
        } else {
            let found = format!("no certificate is for {name}, which clients are to use: they will refuse it");
            let advice = format!(
                "add one with {name} in its subjectAltName (tls.certificates), or correct public_url and hostnames"
            );
            findings.push(Finding::new(Level::Error, GROUP, about.as_str(), found, advice));
        }
    }
    findings
}

/// The admin address.
async fn admin(subject: &Subject) -> Option<Finding> {
    let address = subject.config.admin.address.filter(|address| address.port() != 0)?;
    let about = format!("{address} (admin)");
    let running = subject.status();
    let error = match can_listen(&Address::Tcp(address)).await {
        Ok(()) => {
            return Some(match running {
                None => Finding::ok(GROUP, about, "free: a daemon can listen there"),
                Some((holder, _)) => Finding::new(
                    Level::Warning,
                    GROUP,
                    about,
                    format!("the daemon that runs (process {}) does not listen there", holder.pid),
                    "restart it if the configuration has changed since its start; it may also have been started with --admin-listen",
                ),
            });
        }
        Err(error) => error,
    };
    let advice =
        "`ss -ltnp` names the process: stop it, or choose another address (admin.address, --admin-listen, \"off\")";
    if !error.is_taken() {
        return Some(Finding::new(Level::Error, GROUP, about, error.to_string(), advice));
    }
    let asked = Place::Plain(reachable(address)).get("/readyz", None, LOCAL).await;
    Some(match (asked, running) {
        (Ok(said), Some((holder, _))) => Finding::ok(
            GROUP,
            about,
            format!("process {} is there, /readyz answers {}", holder.pid, said.status.as_u16()),
        ),
        (Ok(said), None) if is_hidden(subject) => {
            unseen(subject, about, &format!("/readyz answers {}", said.status.as_u16()))
        }
        (Ok(said), None) => {
            let found =
                format!("something that is not this store's daemon has it; /readyz answers {}", said.status.as_u16());
            Finding::new(Level::Error, GROUP, about, found, advice)
        }
        (Err(error), _) => Finding::new(
            Level::Error,
            GROUP,
            about,
            format!("something has it that is no daemon of this version: {error}"),
            advice,
        ),
    })
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;
    use crate::config::Config;

    /// Answers everything as a registry does, for ever.
    async fn serve(listener: &TcpListener) {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 1024];
            let _ = stream.read(&mut request).await;
            let answer = "HTTP/1.1 200 OK\r\nDocker-Distribution-Api-Version: registry/2.0\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    }

    /// What is found of a listener and an admin address at which somebody answers.
    async fn found(daemon: Daemon) -> Vec<Finding> {
        let (listener, admin) =
            (TcpListener::bind("127.0.0.1:0").await.unwrap(), TcpListener::bind("127.0.0.1:0").await.unwrap());
        let [a, b] = [&listener, &admin].map(|listener| listener.local_addr().unwrap());
        let config =
            Config::from_toml(&format!("listener = [{{ address = \"{a}\" }}]\nadmin.address = \"{b}\"")).unwrap();
        let now = crate::clock::twin::wall();
        let subject = Arc::new(Subject { config, user: 123, own_user: 456, now, daemon });
        tokio::select! {
            listeners = check(&subject) => listeners.findings,
            () = serve(&listener) => unreachable!(),
            () = serve(&admin) => unreachable!(),
        }
    }

    #[tokio::test]
    async fn who_cannot_see_the_daemon_does_not_say_that_it_is_another() {
        let hidden = found(Daemon::Unknown("Permission denied".to_owned())).await;
        assert_eq!(hidden.len(), 2, "{hidden:?}");
        for finding in hidden {
            assert!(finding.level == Level::Note && finding.found.contains("cannot be seen"), "{finding:?}");
            assert_eq!(finding.advice.as_deref(), Some("run this as root or as the user 123"));
        }
        let none = found(Daemon::None).await;
        assert!(none.len() == 2 && none.iter().all(|finding| finding.found.contains("not this store's")), "{none:?}");
    }
}
