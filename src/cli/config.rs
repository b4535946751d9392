//! `ocistern config check` and `ocistern config show`: what the configuration is, as text for the caller to print.

use std::fmt::Write as _;
use std::path::Path;

use super::named::{self, Unusable};
use super::table::bytes;
use crate::config::{Capacity, Config, ConfigError, Flags};
use crate::store::room;

/// What `check` has found to be wrong.
#[derive(Debug, thiserror::Error)]
pub(super) enum Mistake {
    /// The configuration itself.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Files that it names and that `serve` would not start with, one line each; then what else there is to warn of.
    #[error("{}", [.0.iter().map(ToString::to_string).collect(), warned(.1)].concat().join("\n"))]
    Files(Vec<Unusable>, Vec<String>),
}

/// A line for each.
fn warned(warnings: &[String]) -> Vec<String> {
    warnings.iter().map(|warning| format!("warning: {warning}")).collect()
}

/// Checks the configuration that `serve` would use, and says where it came from and which of the files it names cannot be
/// read from here, where that is no mistake: `serve` starts without them, or may run as another user.
///
/// # Errors
/// As [`Config::load`], and for files that `serve` would refuse to start with.
pub(super) fn check(path: Option<&Path>) -> Result<String, Mistake> {
    let config = load(path)?;
    let unusable = named::unusable(&config);
    let mut unreadable = named::unreadable(&config);
    unreadable.retain(|file| unusable.iter().all(|told| told.key != file.key));
    let doubts = config.doubts(variables());
    let warnings: Vec<String> =
        unreadable.iter().map(ToString::to_string).chain(doubts.iter().map(ToString::to_string)).collect();
    if !unusable.is_empty() {
        return Err(Mistake::Files(unusable, warnings));
    }
    let verdict = if warnings.is_empty() { "no problem found" } else { "can be used, with warnings" };
    let mut text = match &config.source {
        Some(file) => format!("{}: {verdict}\n", file.display()),
        None => "no configuration file; the defaults apply\n".to_owned(),
    };
    for line in warned(&warnings) {
        let _ = writeln!(text, "{line}");
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

/// The names of all variables of the environment.
pub(super) fn variables() -> impl Iterator<Item = String> {
    std::env::vars_os().filter_map(|(name, _)| name.into_string().ok())
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

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
        assert!(said.contains(":5: upstream.\"a.example\".push: ") && said.contains("nobody can push"), "{said}");
    }

    #[test]
    fn check_says_what_was_read_and_warns_of_files_that_are_missing() {
        let (directory, file) = written(
            "[upstream.\"a.example\"]\n\
             credentials = { from = \"static\", username = \"u\", password_file = \"secret\" }",
        );
        let text = check(Some(&file)).unwrap();
        let secret = directory.path().join("secret");
        let key = "upstream.\"a.example\".credentials.password_file";
        assert_eq!(
            text.lines().collect::<Vec<_>>(),
            [
                format!("{}: can be used, with warnings", file.display()),
                format!(
                    "warning: {}:2: {key}: {}: No such file or directory (os error 2)",
                    file.display(),
                    secret.display()
                ),
            ]
        );
        std::fs::write(secret, "hunter2").unwrap();
        assert_eq!(check(Some(&file)).unwrap(), format!("{}: no problem found\n", file.display()));
    }

    #[test]
    fn check_refuses_files_that_serve_does_not_start_with() {
        let (directory, file) = written(
            "[[listener]]\ntls = { certificate = \"none.crt\",\n  key = \"none.key\" }\n\
             [upstream.\"a.example\"]\nca = \"ca.pem\"\n[upstream.\"b.example\"]\nca = \"directory\"\n\
             [admin]\ntoken_file = \"token\"",
        );
        std::fs::create_dir(directory.path().join("directory")).unwrap();
        let at = |name: &str| directory.path().join(name).display().to_string();
        let text = check(Some(&file)).unwrap_err().to_string();
        let lines: Vec<_> = text.lines().collect();
        let missing = |line: u32, key: &str, name: &str| {
            let (file, name) = (file.display(), at(name));
            format!("{file}:{line}: {key}: {name}: No such file or directory (os error 2)")
        };
        assert_eq!(lines.len(), 5, "{text}");
        assert_eq!(lines[4], format!("warning: {}", missing(9, "admin.token_file", "token")));
        assert_eq!(lines[0], missing(2, "listener[0].tls.certificate", "none.crt"));
        assert_eq!(lines[1], missing(3, "listener[0].tls.key", "none.key"));
        assert_eq!(lines[2], missing(5, "upstream.\"a.example\".ca", "ca.pem"));
        let start = format!("{}:7: upstream.\"b.example\".ca: ", file.display());
        assert!(lines[3].starts_with(&start) && lines[3].contains(&at("directory")), "{text}");

        std::fs::write(at("ca.pem"), "no certificate").unwrap();
        std::fs::write(&file, "[upstream.\"a.example\"]\nca = \"ca.pem\"").unwrap();
        let text = check(Some(&file)).unwrap_err().to_string();
        let empty = format!("upstream.\"a.example\".ca: there is no certificate in {}", at("ca.pem"));
        assert_eq!(text, format!("{}:2: {empty}", file.display()));
    }

    #[test]
    fn a_file_that_only_the_service_has_is_no_mistake() {
        let (_directory, file) = written("[upstream.\"a.example\"]\nca = \"credential:ocistern-test-ca\"");
        let text = check(Some(&file)).unwrap();
        assert!(text.contains(&format!("warning: {}:2: upstream.\"a.example\".ca: /", file.display())), "{text}");
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
        assert!(text.contains("\nbuiltin_upstreams = false # in this output: all upstreams"), "{text}");
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
