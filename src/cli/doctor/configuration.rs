//! The configuration: whether it is right, and whether the daemon's user can read it and the files that it names.

use std::collections::BTreeSet;
use std::path::Path;

use super::Subject;
use super::finding::{Finding, Group, Level};
use super::reading::{Reading, mode, reading};
use crate::cli::config::variables;
use crate::cli::named::{Passed, files, passed, to_be_passed, unusable};
use crate::config::ConfigError;

const GROUP: Group = Group::Configuration;
/// Ends of keys whose files hold secrets.
const SECRET: [&str; 6] =
    [".key", ".password_file", ".secret_file", ".session_token_file", ".token_file", "credentials.path"];

/// What is wrong with a configuration that cannot be used.
pub(super) fn mistakes(error: &ConfigError) -> Vec<Finding> {
    let wrong = |about: &str, found: String, advice: String| Finding::new(Level::Error, GROUP, about, found, advice);
    match error {
        ConfigError::Read { path, source } => {
            let advice = "name a file that is there and that this user can read (--config, $OCISTERN_CONFIG), or none";
            vec![wrong(&path.display().to_string(), source.to_string(), advice.to_owned())]
        }
        ConfigError::Syntax { place, message } => {
            vec![wrong(place, message.clone(), format!("write {place} as TOML; `ocistern config check` looks again"))]
        }
        ConfigError::Invalid(problems) => problems
            .iter()
            .map(|problem| {
                let place = problem.place.clone().unwrap_or_else(|| problem.key.clone());
                let advice = format!("correct {} in {place}; `ocistern config check` looks again", problem.key);
                let advice = if problem.place.is_some() { advice } else { format!("correct {place} as it says") };
                wrong(&place, format!("{}: {}", problem.key, problem.fault), advice)
            })
            .collect(),
    }
}

/// What can be said of one that can be used.
pub(super) fn check(subject: &Subject) -> Vec<Finding> {
    let config = &subject.config;
    let unusable = unusable(config);
    let mut findings = Vec::new();
    match &config.source {
        None => findings.push(Finding::ok(GROUP, "configuration file", "none, so the defaults apply")),
        Some(file) => {
            let about = file.display().to_string();
            if unusable.is_empty() {
                findings.push(Finding::ok(GROUP, about.as_str(), "no mistake"));
            }
            findings.extend(readable(&about, file, subject.user));
        }
    }
    // Of those that cannot be read, what is said below says why.
    for file in unusable.into_iter().filter(|file| !file.is_unreadable) {
        let advice = "put a certificate chain and its own key there, in PEM form and without a password";
        findings.push(Finding::new(Level::Error, GROUP, file.key, file.found, advice));
    }
    for doubt in config.doubts(variables()) {
        findings.push(Finding::new(Level::Warning, GROUP, doubt.key, doubt.found, doubt.advice));
    }
    let mut named = BTreeSet::new();
    for (key, file) in files(config) {
        // A listener without an address stands for two.
        if !named.insert((file.clone(), is_secret(&key))) {
            continue;
        }
        let found = match passed(&file) {
            Some(how) => of_passed(&key, &file, how),
            None => readable(&key, &file, subject.user).or_else(|| open_to_all(&key, &file)),
        };
        findings.push(found.unwrap_or_else(|| Finding::ok(GROUP, key, format!("{} can be read", file.display()))));
    }
    findings
}

fn is_secret(key: &str) -> bool {
    SECRET.iter().any(|end| key.ends_with(end))
}

/// What keeps the daemon's user from reading a file; none: nothing.
fn readable(about: &str, file: &Path, user: u32) -> Option<Finding> {
    let shown = file.display();
    Some(match reading(file, user) {
        Reading::Can => return None,
        Reading::Cannot(obstacle, why) => {
            let found = if obstacle == file {
                format!("{shown}: {why}")
            } else {
                format!("{shown}: {}: {why}", obstacle.display())
            };
            let advice = if file.exists() {
                format!(
                    "let the user that ocistern runs as ({user}) read it: chown {user} {shown}, or LoadCredential= of its unit"
                )
            } else {
                format!("make the file, or correct the path: relative ones begin at the configuration file ({about})")
            };
            Finding::new(Level::Error, GROUP, about, found, advice)
        }
        Reading::InGroup(obstacle, group) => Finding::new(
            Level::Note,
            GROUP,
            about,
            format!("{} is for members of the group {group}", obstacle.display()),
            format!("make sure that the user that ocistern runs as ({user}) is one of them: id {user}"),
        ),
    })
}

/// What is to be said of a file that systemd passes to the service's user, whoever its mode names; none: nothing.
fn of_passed(key: &str, file: &Path, how: Passed) -> Option<Finding> {
    let shown = file.display();
    let (level, found, then) = match how {
        Passed::There => return None,
        Passed::Hidden => (Level::Note, format!("{shown} is there only while the service runs"), ""),
        Passed::Missing => {
            (Level::Error, format!("the service runs, and {shown} is not passed to it"), ", and a restart")
        }
    };
    Some(Finding::new(level, GROUP, key, found, to_be_passed(file) + then))
}

/// A secret that everybody on this machine can read.
fn open_to_all(key: &str, file: &Path) -> Option<Finding> {
    let level = match key {
        key if is_secret(key) => Level::Warning,
        // Hashes: they can be guessed at, not read.
        key if key.ends_with(".htpasswd") => Level::Note,
        _ => return None,
    };
    let mode = mode(file).ok().filter(|mode| mode & 0o007 != 0)?;
    let found = format!("everybody on this machine can read {} (mode {mode:o})", file.display());
    Some(Finding::new(level, GROUP, key, found, format!("chmod o= {}", file.display())))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::cli::doctor::Daemon;
    use crate::config::{Config, Flags};

    fn subject(text: &str, directory: &Path) -> Result<Subject, ConfigError> {
        let file = directory.join("config.toml");
        std::fs::write(&file, text).unwrap();
        let flags = Flags { config: Some(file), root: Some(directory.join("root")), ..Flags::default() };
        let user = rustix::process::geteuid().as_raw();
        let now = crate::clock::twin::wall();
        let config = Config::load(&flags, |_| None)?;
        Ok(Subject { config, user, own_user: user, now, daemon: Daemon::None })
    }

    fn about<'a>(findings: &'a [Finding], about: &str) -> &'a Finding {
        findings.iter().find(|finding| finding.about == about).unwrap_or_else(|| panic!("{about}: {findings:?}"))
    }

    #[test]
    fn mistakes_have_place_key_and_what_to_do() {
        let directory = tempfile::tempdir().unwrap();
        let error = subject("rot = 1\n[store]\ncapacty = \"1GiB\"", directory.path()).unwrap_err();
        let findings = mistakes(&error);
        let place = |line: u32| format!("{}:{line}", directory.path().join("config.toml").display());
        assert!(about(&findings, &place(1)).found.starts_with("rot: unknown key; did you mean root?"), "{findings:?}");
        let second = about(&findings, &place(3));
        assert_eq!(second.level, Level::Error);
        assert!(second.advice.as_deref().unwrap().starts_with("correct store.capacty in "), "{second:?}");
        let findings = mistakes(&subject("= 1", directory.path()).unwrap_err());
        assert!(findings[0].about.ends_with("config.toml:1"), "{findings:?}");
    }

    /// As docs/install.md recommends it.
    #[test]
    fn what_systemd_passes_is_there_while_the_service_runs() {
        let directory = tempfile::tempdir().unwrap();
        let text = "[[listener]]\naddress = \"127.0.0.1:1\"\ntls = { certificate = \"credential:c\", key = \"credential:k\" }\n\
                    [upstream.\"a.example\"]\nca = \"credential:ca\"\n\
                    credentials = { from = \"static\", username = \"u\", password_file = \"credential:hub\" }";
        let findings = check(&subject(text, directory.path()).unwrap());
        let hub = about(&findings, "upstream.\"a.example\".credentials.password_file");
        assert_eq!(hub.found, "/run/credentials/ocistern.service/hub is there only while the service runs");
        assert_eq!(hub.advice.as_deref(), Some("its unit needs LoadCredential=hub:FILE"));
        assert!(findings.iter().all(|finding| finding.level <= Level::Note), "{findings:?}");
        let notes = findings.iter().filter(|finding| finding.level == Level::Note).count();
        assert_eq!(notes, 4, "{findings:?}");
        let file = Path::new("/run/credentials/ocistern.service/hub");
        assert_eq!(of_passed("x", file, Passed::Missing).unwrap().level, Level::Error);
        assert_eq!(of_passed("x", file, Passed::There), None);
    }

    #[test]
    fn secrets_are_there_and_closed() {
        let directory = tempfile::tempdir().unwrap();
        let text = "[upstream.\"a.example\"]\nca = \"none.pem\"\n\
                    credentials = { from = \"static\", username = \"u\", password_file = \"secret\" }";
        let secret = directory.path().join("secret");
        std::fs::write(&secret, "x").unwrap();
        let set = |mode| std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(mode)).unwrap();
        set(0o600);
        let subject = subject(text, directory.path()).unwrap();
        let findings = check(&subject);
        let key = "upstream.\"a.example\".credentials.password_file";
        assert_eq!(about(&findings, key).level, Level::Ok);
        let missing = about(&findings, "upstream.\"a.example\".ca");
        assert!(
            missing.level == Level::Error && missing.advice.as_deref().unwrap().starts_with("make the file"),
            "{missing:?}"
        );
        assert!(!findings.iter().any(|finding| finding.found == "no mistake"), "{findings:?}");
        set(0o644);
        let findings = check(&subject);
        let open = about(&findings, key);
        assert!(open.level == Level::Warning && open.advice.as_deref().unwrap().starts_with("chmod o= /"), "{open:?}");
        set(0o600);
        let findings = check(&Subject { user: 54_321, ..subject });
        assert_eq!(about(&findings, key).level, Level::Error, "{findings:?}");
    }
}
