//! `ocistern config check` and `ocistern config show`: what the configuration is, as text for the caller to print.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use crate::config::{Config, ConfigError, Credentials, Flags};

/// Checks the configuration that `serve` would use, and says where it came from and which files it names that cannot be
/// read from here (no error: `serve` may run as another user, or on another machine).
///
/// # Errors
/// As [`Config::load`].
pub fn check(path: Option<&Path>) -> Result<String, ConfigError> {
    let config = load(path)?;
    let mut text = match &config.source {
        Some(file) => format!("{}: no problem found\n", file.display()),
        None => "no configuration file; the defaults apply\n".to_owned(),
    };
    for (key, file) in files(&config) {
        if let Err(error) = std::fs::File::open(&file) {
            let _ = writeln!(text, "warning: {key}: {}: {error}", file.display());
        }
    }
    Ok(text)
}

/// The effective configuration as TOML, all defaults written out and nothing secret in it.
///
/// # Errors
/// As [`Config::load`].
pub fn show(path: Option<&Path>) -> Result<String, ConfigError> {
    let config = load(path)?;
    let source = config.source.as_ref().map_or_else(|| "none".to_owned(), |file| file.display().to_string());
    Ok(format!("# configuration file: {source}\n{}", config.show()))
}

fn load(path: Option<&Path>) -> Result<Config, ConfigError> {
    let flags = Flags { config: path.map(ToOwned::to_owned), ..Flags::default() };
    Config::load(&flags, |name| std::env::var(name).ok())
}

/// The files that the configuration names, with their keys.
fn files(config: &Config) -> Vec<(String, PathBuf)> {
    let mut files = Vec::new();
    let mut add = |key: String, file: Option<&PathBuf>| files.extend(file.map(|file| (key, file.clone())));
    for (index, listener) in config.listeners.iter().enumerate() {
        if let Some(tls) = &listener.tls {
            add(format!("listener[{index}].tls.certificate"), Some(&tls.certificate));
            add(format!("listener[{index}].tls.key"), Some(&tls.key));
            add(format!("listener[{index}].tls.client_ca"), tls.client_ca.as_ref());
        }
    }
    add("admin.token_file".to_owned(), config.admin.token_file.as_ref());
    for (name, upstream) in &config.upstreams {
        add(format!("upstream.\"{name}\".ca"), upstream.ca.as_ref());
        match &upstream.credentials {
            Credentials::Static { password_file, .. } => {
                add(format!("upstream.\"{name}\".credentials.password_file"), Some(password_file));
            }
            Credentials::DockerConfig { path } => add(format!("upstream.\"{name}\".credentials.path"), path.as_ref()),
            Credentials::Auto | Credentials::Anonymous | Credentials::Helper { .. } => {}
        }
    }
    files
}
