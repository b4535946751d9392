//! `ocistern config check` and `ocistern config show`: what the configuration is, as text for the caller to print.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use super::table::bytes;
use crate::config::{Address, Capacity, Config, ConfigError, Flags, Listener, PushBy};
use crate::server::check_tls;
use crate::store::room;

/// What `check` has found to be wrong.
#[derive(Debug, thiserror::Error)]
pub(super) enum Mistake {
    /// The configuration itself.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Files that it names, one line each.
    #[error("{}", .0.join("\n"))]
    Files(Vec<String>),
}

/// Checks the configuration that `serve` would use, and says where it came from and which files it names that cannot be
/// read from here (no error: `serve` may run as another user, or on another machine).
///
/// # Errors
/// As [`Config::load`], and for certificates and keys that can be read and not used.
pub(super) fn check(path: Option<&Path>) -> Result<String, Mistake> {
    let config = load(path)?;
    let unusable = unusable(&config);
    if !unusable.is_empty() {
        return Err(Mistake::Files(unusable));
    }
    // A listener without an address stands for two.
    let mut named = BTreeSet::new();
    let mut warnings: Vec<_> = files(&config)
        .into_iter()
        .filter(|(_, file)| named.insert(file.clone()))
        .filter_map(|(key, file)| {
            let error = std::fs::File::open(&file).err()?;
            Some(format!("{key}: {}: {error}", file.display()))
        })
        .collect();
    warnings.extend(useless(&config).into_iter().map(|(found, advice)| format!("{found}; {advice}")));
    let verdict = if warnings.is_empty() { "no problem found" } else { "can be used, with warnings" };
    let mut text = match &config.source {
        Some(file) => format!("{}: {verdict}\n", file.display()),
        None => "no configuration file; the defaults apply\n".to_owned(),
    };
    for warning in warnings {
        let _ = writeln!(text, "warning: {warning}");
    }
    Ok(text)
}

/// The effective configuration as TOML, all defaults written out and nothing secret in it.
///
/// # Errors
/// As [`Config::load`].
pub(super) fn show(path: Option<&Path>) -> Result<String, ConfigError> {
    let config = load(path)?;
    let source = config.source.as_ref().map_or_else(|| "none".to_owned(), |file| file.display().to_string());
    Ok(format!("# configuration file: {source}\n{}", with_capacity(&config, config.show())))
}

/// Adds, as a comment, what capacity a store has that none was given: it depends on the file system.
fn with_capacity(config: &Config, text: String) -> String {
    const TABLE: &str = "\n[store]\n";
    if config.store.capacity != Capacity::Default {
        return text;
    }
    let existing = config.root.ancestors().find(|path| path.is_dir());
    let room = existing.and_then(|path| room(path, config.store.capacity).ok());
    let here = room.map_or_else(
        || "nobody can say how much that is here".to_owned(),
        |room| format!("here {}", bytes(room.capacity)),
    );
    text.replacen(TABLE, &format!("{TABLE}# capacity: the default, {} ({here})\n", config.store.capacity), 1)
}

fn load(path: Option<&Path>) -> Result<Config, ConfigError> {
    let flags = Flags { config: path.map(ToOwned::to_owned), ..Flags::default() };
    Config::load(&flags, |name| std::env::var(name).ok())
}

/// What is wrong with TLS files, where it can be seen from here.
pub(super) fn unusable(config: &Config) -> Vec<String> {
    let listeners = config.listeners.iter().enumerate();
    let checked = listeners.filter_map(|(index, listener)| Some((index, check_tls(listener.tls.as_ref()?).err()?)));
    let wrong = checked.filter(|(_, error)| !error.is_unreadable());
    wrong.map(|(index, error)| format!("listener[{index}].tls: {error}")).collect()
}

/// What is allowed and lets nobody in: what it is, and what to do.
pub(super) fn useless(config: &Config) -> Vec<(String, &'static str)> {
    let knows_callers = |listener: &Listener| {
        listener.htpasswd.is_some() || listener.tls.as_ref().is_some_and(|tls| tls.client_ca.is_some())
    };
    let mut warnings = Vec::new();
    for (name, upstream) in &config.upstreams {
        if upstream.push == PushBy::Shared && !config.listeners.iter().any(knows_callers) {
            let found = format!(
                "upstream.\"{name}\".push: \"shared\" is for users of a listener's htpasswd file and clients with a \
                 certificate, and no listener has htpasswd or tls.client_ca: nobody can push"
            );
            warnings.push((found, "give a listener one of them, or say push = \"client\""));
        }
    }
    for (index, listener) in config.listeners.iter().enumerate() {
        let is_public = matches!(listener.address, Address::Tcp(address) if !address.ip().is_loopback());
        if is_public && listener.htpasswd.is_some() && listener.tls.is_none() && !listener.allow_plain_credentials {
            let found =
                format!("listener[{index}].htpasswd: no password is taken over plain HTTP from another machine");
            warnings.push((found, "set tls, or allow_plain_credentials = true where the network is closed"));
        }
    }
    warnings
}

/// The files that the configuration names, with their keys.
pub(super) fn files(config: &Config) -> Vec<(String, PathBuf)> {
    let mut files = Vec::new();
    let mut add = |key: String, file: Option<&PathBuf>| files.extend(file.map(|file| (key, file.clone())));
    for (index, listener) in config.listeners.iter().enumerate() {
        add(format!("listener[{index}].htpasswd"), listener.htpasswd.as_ref());
        if let Some(tls) = &listener.tls {
            for (place, files) in tls.certificates.iter().enumerate() {
                let at = match tls.certificates.len() {
                    1 => format!("listener[{index}].tls"),
                    _ => format!("listener[{index}].tls.certificates[{place}]"),
                };
                add(format!("{at}.certificate"), Some(&files.certificate));
                add(format!("{at}.key"), Some(&files.key));
            }
            add(format!("listener[{index}].tls.client_ca"), tls.client_ca.as_ref());
        }
    }
    add("admin.token_file".to_owned(), config.admin.token_file.as_ref());
    for (name, upstream) in &config.upstreams {
        add(format!("upstream.\"{name}\".ca"), upstream.ca.as_ref());
        for (key, file) in upstream.credentials.files() {
            add(format!("upstream.\"{name}\".credentials.{key}"), Some(&file.to_owned()));
        }
    }
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(text: &str) -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("config.toml");
        std::fs::write(&file, text).unwrap();
        (directory, file)
    }

    #[test]
    fn check_warns_of_what_lets_nobody_in() {
        let text = "[[listener]]\naddress = \"0.0.0.0:5000\"\nhtpasswd = \"users\"\n[upstream.\"a.example\"]\n\
                    credentials = { from = \"docker-config\" }\npush = \"shared\"\n";
        let (_directory, file) = written(text);
        std::fs::write(file.with_file_name("users"), "").unwrap();
        let said = check(Some(&file)).unwrap();
        assert!(
            said.contains("can be used, with warnings") && said.contains("listener[0].htpasswd: no password"),
            "{said}"
        );
        assert!(!said.contains("nobody can push"), "{said}");
        std::fs::write(&file, text.replace("htpasswd = \"users\"\n", "")).unwrap();
        let said = check(Some(&file)).unwrap();
        assert!(said.contains("warning: upstream.\"a.example\".push: ") && said.contains("nobody can push"), "{said}");
    }

    #[test]
    fn check_says_what_was_read_and_warns_of_files_that_are_missing() {
        let (directory, file) = written(
            "[upstream.\"a.example\"]\nca = \"ca.pem\"\n\
             credentials = { from = \"static\", username = \"u\", password_file = \"secret\" }",
        );
        std::fs::write(directory.path().join("secret"), "hunter2").unwrap();
        let text = check(Some(&file)).unwrap();
        let ca = directory.path().join("ca.pem");
        assert_eq!(
            text.lines().collect::<Vec<_>>(),
            [
                format!("{}: can be used, with warnings", file.display()),
                format!("warning: upstream.\"a.example\".ca: {}: No such file or directory (os error 2)", ca.display()),
            ]
        );
    }

    #[test]
    fn check_fails_with_every_problem() {
        let (_directory, file) = written("rot = 1\nbuiltin_upstream = true");
        let text = check(Some(&file)).unwrap_err().to_string();
        assert_eq!(text.lines().count(), 2, "{text}");
    }

    #[test]
    fn show_is_a_configuration_without_secrets() {
        let (directory, file) = written(
            "[upstream.\"a.example\"]\ncredentials = { from = \"static\", username = \"u\", password_file = \"secret\" }",
        );
        let secret = directory.path().join("secret");
        std::fs::write(&secret, "hunter2").unwrap();
        let text = show(Some(&file)).unwrap();
        assert!(text.starts_with(&format!("# configuration file: {}\n", file.display())), "{text}");
        assert!(text.contains(&format!("password_file = \"{}\"", secret.display())), "{text}");
        assert!(!text.contains("hunter2"), "{text}");
        let shown = Config::from_toml(&text).unwrap();
        assert_eq!((shown.upstreams.len(), shown.store.capacity), (8, Capacity::Default));
    }

    #[test]
    fn show_says_what_the_default_capacity_is_here() {
        let (_directory, file) = written("root = \"store\"");
        let text = show(Some(&file)).unwrap();
        let capacity = room(file.parent().unwrap(), Capacity::Default).unwrap().capacity;
        let line = format!(
            "\n[store]\n# capacity: the default, 100 GiB, or 50 % of the file system if that is less (here {})\n",
            bytes(capacity)
        );
        assert!(text.contains(&line), "{text}");
        std::fs::write(&file, "root = \"store\"\nstore.capacity = \"7GiB\"").unwrap();
        let text = show(Some(&file)).unwrap();
        assert!(text.contains("capacity = \"7GiB\"\n") && !text.contains("# capacity"), "{text}");
    }
}
