//! `ocistern setup`: points clients at this ocistern, by files of theirs or by what there is to write, and takes that back.
//!
//! Every client has a file here that says what it needs (`plan::Plan`); how files are changed and put back is the same for
//! all (`disk`).

mod buildkit;
mod ca;
mod certificate;
mod certs_d;
mod containerd;
mod containers;
mod disk;
mod docker;
mod hosts_toml;
mod instance;
mod k3s;
mod kaniko;
mod oras;
mod plan;
mod record;
mod rules;
mod secrets;
mod tables;
#[cfg(test)]
mod tests;
pub(super) mod yaml;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::UNIX_EPOCH;

use rustls::pki_types::UnixTime;

use self::disk::{Disk, Undone, Written};
use self::instance::{Instance, Said};
use self::plan::{Client, Plan, Site, Unmergeable, Wanted};
use super::clients::{FileError, Whose};
use super::{FAILED, USAGE, complain, say};
use crate::clock::{Clock, SystemClock};
use crate::config::{Config, Flags};

/// Name of the copy of the CA's certificate in a client's directory.
const CA_COPY: &str = "ocistern-ca.crt";
const WHICH: &str = "say which client: docker, containerd, podman, buildkit, k3s, kaniko or oras; or --all for those that are \
                     installed here";
const NO_HOME: &str = "$HOME is not set, so it is not known where this user's clients have their files";

/// Which clients, and what is done.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    /// What to point at this ocistern
    #[arg(value_name = "CLIENT", conflicts_with = "all")]
    clients: Vec<Client>,
    /// All clients that are installed on this machine
    #[arg(long)]
    all: bool,
    /// Merge it into the clients' files, each with a backup beside it, instead of only showing what would be in them
    #[arg(long, conflicts_with = "undo")]
    write: bool,
    /// Put back what --write has changed
    #[arg(long)]
    undo: bool,
    /// The configuration file.
    #[arg(
        long,
        value_name = "FILE",
        help = "Configuration file of ocistern [default: the first of $OCISTERN_CONFIG, $XDG_CONFIG_HOME/ocistern/config.toml, /etc/ocistern/config.toml]"
    )]
    config: Option<PathBuf>,
    /// As `serve` has it.
    #[arg(
        long,
        value_name = "ADDR",
        help = "Address on which ocistern serves, where `serve` was given it, too; can be repeated [env: OCISTERN_LISTEN]"
    )]
    listen: Vec<String>,
    /// Where clients reach ocistern [default: the listener's `public_url`, else its address]
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// Certificate of the private CA of ocistern's certificate [default: ca.crt beside that, if it is of that CA]
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Root directory of an image whose clients are meant, instead of this machine's
    #[arg(long, value_name = "DIR")]
    directory: Option<PathBuf>,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Make a private CA and a certificate for ocistern, or renew the certificate
    Ca(ca::Arguments),
}

/// Why a client cannot be set up.
#[derive(Debug, thiserror::Error)]
enum SetupError {
    /// A client's file cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// Nothing can be merged into what is there.
    #[error("{}{}: {}; nothing was changed in it", path.display(), place(why.place), why.why)]
    Unmergeable {
        /// The file.
        path: PathBuf,
        /// Where, and what is in the way.
        why: Unmergeable,
    },
    /// A rule for many registries, which one of ocistern's would put out of force.
    #[error("{}{}: {}; left out because of that: {hosts}. {advice}", path.display(), place(what.place), what.why)]
    LeftOut {
        /// The file.
        path: PathBuf,
        /// Where, and what it says.
        what: Unmergeable,
        /// For which registries nothing is written.
        hosts: String,
        /// What to do.
        advice: &'static str,
    },
    /// It was edited after it was written.
    #[error("{}", edited(path, backup.as_deref(), record))]
    Edited {
        /// The file.
        path: PathBuf,
        /// What was there before; none: nothing.
        backup: Option<PathBuf>,
        /// What is known of it.
        record: PathBuf,
    },
    /// What was there before is not there any more.
    #[error(
        "{} cannot be put back: what was there before, {}, is gone; take ocistern's lines out by hand, and then `rm {}`",
        path.display(), backup.display(), record.display()
    )]
    Gone {
        /// The file.
        path: PathBuf,
        /// What was there before.
        backup: PathBuf,
        /// What is known of it.
        record: PathBuf,
    },
    /// A record beside a file says nothing that is understood.
    #[error("{}: {why}: it is not as ocistern writes it; put the file beside it back by hand, then remove it", path.display())]
    Record {
        /// Which.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// A link leads to a file whose record may be another's.
    #[error(
        "{}: {why}, and a link leads to it: it may be another's, so {} is left as it is. \
         If nobody else has written it, let {} and what is in it belong to you or root, \
         `chmod go-w` it, and try again; else remove the record",
        record.display(), path.display(), directory.display()
    )]
    Untrusted {
        /// The file.
        path: PathBuf,
        /// What is said to be known of it.
        record: PathBuf,
        /// Why it may be another's.
        why: String,
        /// Where both lie.
        directory: PathBuf,
    },
    /// This ocistern, as it is configured, is nothing for this client.
    #[error("{0}")]
    Unfit(String),
    /// What was given as a CA's certificate is none.
    #[error("{}: there is no certificate (PEM) in this file", .0.display())]
    NoCertificate(PathBuf),
    /// A certificate or key cannot be made or used.
    #[error("{0}")]
    Certificate(String),
}

fn place(place: Option<(usize, usize)>) -> String {
    place.map(|(line, column)| format!(":{line}:{column}")).unwrap_or_default()
}

fn edited(path: &Path, backup: Option<&Path>, record: &Path) -> String {
    let (path, record) = (path.display(), record.display());
    let changed = format!("{path} was edited after `ocistern setup` had written it, so it is left as it is");
    match backup.map(Path::display) {
        Some(backup) => format!(
            "{changed}. `diff {backup} {path}` shows what differs from what was there before. To keep the edits, take ocistern's \
             lines out and then `rm {backup} {record}`; to lose them, `mv {backup} {path}` and then `rm {record}`"
        ),
        None => format!(
            "{changed}. It was not there before. To keep the edits, take ocistern's lines out and then `rm {record}`; to lose \
             them, `rm {path} {record}`"
        ),
    }
}

/// Runs the command.
pub(super) fn run(arguments: &Arguments) -> ExitCode {
    if let Some(Command::Ca(arguments)) = &arguments.command {
        return ca::run(arguments);
    }
    let disk = Disk::new(arguments.directory.clone());
    let clients = if arguments.all { installed(&disk) } else { arguments.clients.clone() };
    let env = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let is_root = rustix::process::geteuid().is_root();
    let whose = match whose(is_root || arguments.directory.is_some(), env) {
        Ok(whose) => whose,
        Err(message) => return complain(USAGE, message),
    };
    if clients.is_empty() {
        return if arguments.all {
            complain(FAILED, format!("none of the clients is installed here; {WHICH}"))
        } else {
            complain(USAGE, WHICH)
        };
    }
    if arguments.undo {
        return each(&clients, |client| Ok(undo(&disk, &whose, client)));
    }
    let instance = match instance(arguments) {
        Ok(instance) => instance,
        Err((code, message)) => return complain(code, message),
    };
    let site = Site { disk: &disk, whose: &whose, instance: &instance };
    each(&clients, |client| {
        let plan = client.plan(&site)?;
        Ok(if arguments.write {
            write(&site, client, plan)
        } else {
            (show(client, &plan), plan.failures.into_iter().chain(plan.unwritten).collect())
        })
    })
}

/// Does something for each client; what fails for one leaves the others alone.
fn each(clients: &[Client], mut act: impl FnMut(Client) -> Result<(String, Vec<SetupError>), SetupError>) -> ExitCode {
    let (mut text, mut failures) = (String::new(), Vec::new());
    for client in clients {
        match act(*client) {
            Ok((said, failed)) => {
                if !text.is_empty() {
                    text.push('\n');
                }
                text.push_str(&said);
                failures.extend(failed.into_iter().map(|error| (client, error)));
            }
            Err(error) => failures.push((client, error)),
        }
    }
    let mut code = say(&text);
    for (client, error) in failures {
        code = complain(FAILED, format_args!("{}: {error}", client.as_str()));
    }
    code
}

fn instance(arguments: &Arguments) -> Result<Instance, (u8, String)> {
    let flags = Flags { config: arguments.config.clone(), listen: arguments.listen.clone(), ..Flags::default() };
    let config = Config::load(&flags, |name| std::env::var(name).ok()).map_err(|error| (USAGE, error.to_string()))?;
    let mut said = Said { url: None, ca: arguments.ca.clone() };
    if let Some(url) = &arguments.url {
        let wrong = "it has to say scheme and host, such as https://cache.example:5000";
        if !url.contains("://") {
            return Err((USAGE, format!("--url {url}: {wrong}")));
        }
        said.url = Some(url.parse().map_err(|_| (USAGE, format!("--url {url}: {wrong}")))?);
    }
    Instance::of(&config, &said, now()).map_err(|error| match error {
        SetupError::Unfit(_) | SetupError::NoCertificate(_) => (USAGE, error.to_string()),
        error => (FAILED, error.to_string()),
    })
}

/// The time, for certificates.
fn now() -> UnixTime {
    UnixTime::since_unix_epoch(SystemClock.now().duration_since(UNIX_EPOCH).unwrap_or_default())
}

/// Whose files are meant: an image's are the machine's, whoever writes them.
fn whose(machine: bool, env: impl Fn(&str) -> Option<String>) -> Result<Whose, &'static str> {
    if machine {
        return Ok(Whose::Machine);
    }
    Whose::of_user(env).ok_or(NO_HOME)
}

/// The clients whose programs are there.
fn installed(disk: &Disk) -> Vec<Client> {
    const USUAL: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    let path = std::env::var("PATH").ok().filter(|_| !disk.is_image()).unwrap_or_default();
    let places: Vec<&str> = path.split(':').chain(USUAL.split(':')).filter(|place| place.starts_with('/')).collect();
    let is_there = |program: &str| places.iter().any(|place| disk.exists(&Path::new(place).join(program)));
    Client::ALL.into_iter().filter(|client| client.programs().iter().any(|program| is_there(program))).collect()
}

/// What the files would be, and what is to be done then.
fn show(client: Client, plan: &Plan) -> String {
    let name = client.as_str();
    let mut out = String::new();
    for file in &plan.files {
        let state = match &file.now {
            None => "new",
            Some(now) if *now == file.text => "already so",
            Some(_) => "changed",
        };
        let shown = secrets::masked(&file.path, &file.text);
        let is_masked = shown.as_ref() != Some(&file.text);
        let shown = shown.unwrap_or_else(|| format!("{}\n", secrets::MASK));
        let _ = writeln!(out, "# {name}: {} ({state})\n{}", file.path.display(), ended(&shown));
        if is_masked {
            let _ =
                writeln!(out, "# note: {} stands for credentials, which stay in the file as they are\n", secrets::MASK);
        }
    }
    if let Some(text) = &plan.text {
        let _ = write!(out, "# {name}:\n{}\n", ended(text));
    }
    for command in &plan.then {
        let _ = writeln!(out, "# then: {command}");
    }
    for note in &plan.notes {
        let _ = writeln!(out, "# note: {}", note.replace('\n', "\n#   "));
    }
    out
}

fn ended(text: &str) -> String {
    if text.is_empty() || text.ends_with('\n') { text.to_owned() } else { format!("{text}\n") }
}

/// Writes the files, and puts back those of an earlier time that are not wanted any more.
/// What fails for one of them leaves the others alone.
fn write(site: &Site<'_>, client: Client, mut plan: Plan) -> (String, Vec<SetupError>) {
    let name = client.as_str();
    let mut out = String::new();
    let mut changed = false;
    let mut failures = std::mem::take(&mut plan.failures);
    // Where a file cannot be read, it is not known what else is wanted.
    let is_whole = failures.is_empty();
    failures.append(&mut plan.unwritten);
    for Wanted { path, text, basis, .. } in &plan.files {
        let shown = path.display();
        let written = match site.disk.write(name, path, text, *basis) {
            Ok(written) => written,
            Err(error) => {
                failures.push(error);
                continue;
            }
        };
        changed |= written != Written::Unchanged;
        let _ = match written {
            Written::Unchanged => writeln!(out, "{name}: {shown} is already so"),
            Written::New => writeln!(out, "{name}: {shown} is new"),
            Written::Changed(backup) => {
                writeln!(out, "{name}: {shown} is changed; what was there before is in {}", backup.display())
            }
            Written::Again(None) => writeln!(out, "{name}: {shown} is changed"),
            Written::Again(Some(backup)) => {
                writeln!(out, "{name}: {shown} is changed; what was there at first is in {}", backup.display())
            }
            Written::Over(copy) => writeln!(
                out,
                "{name}: {shown} is changed; somebody had edited it since the last time: that is kept in {}",
                copy.display()
            ),
            Written::Edited { before, copy } => {
                let kept =
                    copy.map_or_else(String::new, |path| format!(" (as edited it is kept in {})", path.display()));
                let first = before.map_or_else(String::new, |path| format!(", which is in {}", path.display()));
                writeln!(
                    out,
                    "{name}: {shown} is changed; somebody had edited it since the last time{kept}, so --undo will not put back what \
                     was there at first{first}"
                )
            }
        };
    }
    if is_whole {
        changed |= clean_up(site, client, &plan, &mut out, &mut failures);
    }
    if plan.files.is_empty() && failures.is_empty() {
        let _ = write!(out, "{}", show(client, &plan));
        return (out, failures);
    }
    if changed {
        for command in &plan.then {
            let _ = writeln!(out, "{name}: now run: {command}");
        }
    } else if failures.is_empty() {
        let _ = writeln!(out, "{name}: nothing to change");
    }
    for note in &plan.notes {
        let _ = writeln!(out, "{name}: note: {}", note.replace('\n', "\n  "));
    }
    (out, failures)
}

/// Puts back the files of an earlier time that are not wanted any more. Whether there were any.
fn clean_up(site: &Site<'_>, client: Client, plan: &Plan, out: &mut String, failures: &mut Vec<SetupError>) -> bool {
    let name = client.as_str();
    let wanted: Vec<_> = plan.files.iter().filter_map(|file| site.disk.real(&file.path)).collect();
    let directories = client.directories(site.disk, site.whose);
    let search = site.disk.written(name, &directories);
    failures.extend(search.failures);
    let mut changed = false;
    for path in search.files {
        if site.disk.real(&path).is_some_and(|real| wanted.contains(&real)) {
            continue;
        }
        match site.disk.undo(&path, &directories) {
            Ok(_) => {
                changed = true;
                let _ = writeln!(out, "{name}: {} is not needed any more, and as it was before", path.display());
            }
            Err(error) => failures.push(error),
        }
    }
    changed
}

/// Puts back all that was written for a client.
fn undo(disk: &Disk, whose: &Whose, client: Client) -> (String, Vec<SetupError>) {
    let name = client.as_str();
    let mut out = String::new();
    let directories = client.directories(disk, whose);
    let search = disk.written(name, &directories);
    let mut failures = search.failures;
    if search.files.is_empty() && failures.is_empty() {
        let _ = writeln!(out, "{name}: nothing to put back");
    }
    for path in search.files {
        let shown = path.display();
        match disk.undo(&path, &directories) {
            Ok(Some(Undone::Restored)) => {
                let _ = writeln!(out, "{name}: {shown} is as it was before");
            }
            Ok(_) => {
                let _ = writeln!(out, "{name}: {shown} is removed; it was not there before");
            }
            Err(error) => failures.push(error),
        }
    }
    (out, failures)
}

/// What is to be done so that registries' own names lead to ocistern. `certificates` is where the client looks for CAs.
fn own_names(instance: &Instance, certificates: &Path) -> Vec<String> {
    let mut notes = Vec::new();
    for name in &instance.own_names {
        let known = match &name.ca {
            _ if !name.https => String::new(),
            Some(_) => "; its CA is in place".to_owned(),
            None => format!(
                "; if its certificate is of a private CA, that goes to {}",
                certificates.join(&name.host).join("ca.crt").display()
            ),
        };
        notes.push(format!(
            "{} works under its own name where `{}` stands in /etc/hosts{known}",
            name.host,
            name.hosts_line()
        ));
        notes.extend(name.connect_advice());
    }
    notes
}
