//! The files that a configuration names, by their keys: which cannot be read, and which `serve` would not start with.

use std::collections::BTreeSet;
use std::fmt;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use crate::config::{Config, KeyPath, is_passed_file};
use crate::server::check_tls;
use crate::upstream::check_ca;

/// A file with the key that names it.
struct Named {
    key: KeyPath,
    file: PathBuf,
    /// Read when `serve` starts, and needed for that; others are read when they are used.
    at_start: bool,
}

/// A file that `serve` would not start with, or that cannot be read from here.
#[derive(Debug)]
pub(super) struct Unusable {
    /// Where it is named, as `FILE:LINE`.
    place: Option<String>,
    /// The key that names it.
    pub(super) key: String,
    /// What is wrong with it.
    pub(super) found: String,
    /// It is not there, or cannot be read.
    pub(super) is_unreadable: bool,
}

/// How a file is that systemd passes to the service alone, and only while that runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Passed {
    /// It is there.
    There,
    /// The service has others, and not this one.
    Missing,
    /// It is not to be seen from here: the service does not run, or shows it to nobody else.
    Hidden,
}

/// All files with their keys.
pub(super) fn files(config: &Config) -> Vec<(String, PathBuf)> {
    all(config).into_iter().map(|Named { key, file, .. }| (key.to_string(), file)).collect()
}

/// The files that `serve` would not start with, by the checks of its start. What may be otherwise where it runs is none of
/// them: what another user may read, and what systemd passes to the service alone.
pub(super) fn unusable(config: &Config) -> Vec<Unusable> {
    let (named, mut told, mut unusable) = (all(config), BTreeSet::new(), Vec::new());
    let mut tell = |key: &KeyPath, found: String, is_unreadable: bool| {
        let place = config.place_of(key);
        unusable.push(Unusable { place, key: key.to_string(), found, is_unreadable });
    };
    // Of a certificate and its key the start tells what it meets first; whoever mends it wants to know of both.
    for Named { key, file, .. } in named.iter().filter(|named| named.at_start) {
        if let Err(error) = File::open(file)
            && told.insert(file.clone())
            && !is_for_another(file, &error)
        {
            tell(key, format!("{}: {error}", file.display()), true);
        }
    }
    for (index, listener) in config.listeners.iter().enumerate() {
        let Some(tls) = &listener.tls else { continue };
        for error in check_tls(tls) {
            let file = error.file().unwrap_or(Path::new(""));
            if told.insert(file.to_owned()) {
                let key = named.iter().find(|named| named.file == file).map(|named| named.key.clone());
                let key = key.unwrap_or_else(|| config.key_of_listener(index).key("tls"));
                tell(&key, error.to_string(), error.is_unreadable());
            }
        }
    }
    for (name, upstream) in &config.upstreams {
        if let Some(file) = &upstream.ca
            && let Err(error) = check_ca(file)
            && told.insert(file.clone())
        {
            tell(&upstream_key(name.as_str()).key("ca"), error.to_string(), error.is_unreadable());
        }
    }
    unusable
}

/// The files that cannot be read from here, those that `serve` would not start with among them.
pub(super) fn unreadable(config: &Config) -> Vec<Unusable> {
    // A listener without an address stands for two.
    let mut named = BTreeSet::new();
    let mut told = Vec::new();
    for Named { key, file, .. } in all(config) {
        if named.insert(file.clone())
            && let Err(error) = File::open(&file)
        {
            let by_whom = if error.kind() == io::ErrorKind::PermissionDenied { " as this user" } else { "" };
            let found = format!("{}: {error}{by_whom}", file.display());
            told.push(Unusable { place: config.place_of(&key), key: key.to_string(), found, is_unreadable: true });
        }
    }
    told
}

/// How a file is that systemd passes; none: it is another one.
pub(super) fn passed(file: &Path) -> Option<Passed> {
    if !is_passed_file(file, |name| std::env::var(name).ok()) {
        return None;
    }
    Some(match file.try_exists() {
        Ok(true) => Passed::There,
        Ok(false) if file.parent().is_some_and(Path::is_dir) => Passed::Missing,
        Ok(false) | Err(_) => Passed::Hidden,
    })
}

/// What the service's unit has to have, so that a file is passed.
pub(super) fn to_be_passed(file: &Path) -> String {
    format!("its unit needs LoadCredential={}:FILE", file.file_name().unwrap_or_default().to_string_lossy())
}

/// Whether it may be otherwise for the service.
fn is_for_another(file: &Path, error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::PermissionDenied || passed(file).is_some()
}

fn upstream_key(name: &str) -> KeyPath {
    KeyPath::dotted("upstream").key(name)
}

fn all(config: &Config) -> Vec<Named> {
    let mut files = Vec::new();
    let mut add = |key: KeyPath, file: Option<&PathBuf>, at_start: bool| {
        files.extend(file.map(|file| Named { key, file: file.clone(), at_start }));
    };
    for (index, listener) in config.listeners.iter().enumerate() {
        let at = config.key_of_listener(index);
        add(at.key("htpasswd"), listener.htpasswd.as_ref(), false);
        if let Some(tls) = &listener.tls {
            let at = at.key("tls");
            for (place, files) in tls.certificates.iter().enumerate() {
                let at = match tls.certificates.len() {
                    1 => at.clone(),
                    _ => at.key("certificates").index(place),
                };
                add(at.key("certificate"), Some(&files.certificate), true);
                add(at.key("key"), Some(&files.key), true);
            }
            add(at.key("client_ca"), tls.client_ca.as_ref(), true);
        }
    }
    add(KeyPath::dotted("admin.token_file"), config.admin.token_file.as_ref(), false);
    for (name, upstream) in &config.upstreams {
        let at = upstream_key(name.as_str());
        add(at.key("ca"), upstream.ca.as_ref(), true);
        for (key, file) in upstream.credentials.files() {
            add(at.key("credentials").key(key), Some(&file.to_owned()), false);
        }
    }
    files
}

// === impl Unusable ===

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(place) = &self.place {
            write!(f, "{place}: ")?;
        }
        write!(f, "{}: {}", self.key, self.found)
    }
}
