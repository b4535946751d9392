//! The configuration as it is shipped: the documented example, the container's and the units' presets.

#![allow(clippy::unwrap_used, reason = "a test program")]

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use ocistern::config::{Address, Config, ConfigError, Fault, Flags};

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn text(name: &str) -> String {
    std::fs::read_to_string(file(name)).unwrap()
}

/// The values of `KEY=VALUE` lines of a unit, empty ones included.
fn unit(text: &str, key: &str) -> Vec<String> {
    text.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix('=')).map(ToOwned::to_owned).collect()
}

#[test]
fn the_documented_example_is_the_default() {
    let flags = Flags { config: Some(file("config/ocistern.toml")), ..Flags::default() };
    let home = |name: &str| (name == "HOME").then(|| "/home/somebody".to_owned());
    let example = Config::load(&flags, home).unwrap();
    assert_eq!(example.source, Some(file("config/ocistern.toml")));
    let default = Config { root: "/home/somebody/.cache/ocistern".into(), ..Config::from_toml("").unwrap() };
    assert_eq!(example.show(), default.show());
}

#[test]
fn the_container_listens_where_it_is_published() {
    let dockerfile = text("Dockerfile").replace("\\\n", "");
    let env: HashMap<String, String> = dockerfile
        .lines()
        .filter_map(|line| line.strip_prefix("ENV "))
        .flat_map(str::split_whitespace)
        .filter_map(|pair| pair.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    let config = Config::load(&nothing(), |name| env.get(name).cloned()).unwrap();
    let addresses: Vec<&Address> = config.listeners.iter().map(|listener| &listener.address).collect();
    assert_eq!(addresses, [&Address::Tcp("0.0.0.0:5000".parse().unwrap())]);
    assert_eq!(config.admin.address, Some("0.0.0.0:5080".parse().unwrap()));
    let exposed: Vec<&str> = dockerfile.lines().filter_map(|line| line.strip_prefix("EXPOSE ")).collect();
    assert_eq!(exposed, ["5000 5080"]);
    let volumes: Vec<&str> = dockerfile.lines().filter_map(|line| line.strip_prefix("VOLUME ")).collect();
    assert_eq!(volumes, [config.root.to_str().unwrap()], "the store is on the volume");
    assert!(dockerfile.contains("\nUSER 65532:65532\n"), "the container does not run as root");
}

/// No file of this machine is read.
fn nothing() -> Flags {
    Flags { config: Some("/dev/null".into()), ..Flags::default() }
}

#[test]
fn the_socket_unit_has_the_default_addresses() {
    let config = Config::from_toml("").unwrap();
    let default: Vec<String> = config
        .listeners
        .iter()
        .map(|listener| match &listener.address {
            Address::Tcp(address) => address.to_string(),
            Address::Unix(path) => path.display().to_string(),
        })
        .collect();
    assert_eq!(unit(&text("systemd/ocistern.socket"), "ListenStream"), default);
}

#[test]
fn the_service_unit_fits_the_program() {
    let service = text("systemd/ocistern.service");
    assert_eq!(unit(&service, "Type"), ["notify"]);
    let directory = format!("/var/cache/{}", unit(&service, "CacheDirectory").concat());
    let env = |name: &str| (name == "CACHE_DIRECTORY").then(|| directory.clone());
    let config = Config::load(&nothing(), env).unwrap();
    assert_eq!(config.root, Path::new(&directory));
    let files: usize = unit(&service, "LimitNOFILE").concat().parse().unwrap();
    assert!(files > 4 * config.limits.connections, "a connection needs up to two descriptors, and fills need some");
    let stop: u64 = unit(&service, "TimeoutStopSec").concat().trim_end_matches('s').parse().unwrap();
    assert!(stop > config.limits.drain.as_secs(), "systemd must not kill what is being drained");
    assert_eq!(unit(&service, "RestartPreventExitStatus"), ["64"]);
    let calls = unit(&service, "SystemCallFilter").concat();
    assert!(calls.split([' ', '~']).any(|call| call == "mincore"), "@system-service is without it: {calls}");
}

#[test]
fn errors_can_be_told_apart_by_programs() {
    let error = Config::from_toml("[store]\ncapacty = 1").unwrap_err();
    let ConfigError::Invalid(problems) = error else { panic!("{error}") };
    assert_eq!(problems.len(), 1);
    assert_eq!((problems[0].place.as_deref(), problems[0].key.as_str()), (Some("line 2"), "store.capacty"));
    assert_eq!(problems[0].fault, Fault::UnknownKey { nearest: Some("store.capacity".to_owned()) });
    let missing = Flags { config: Some("/nonexistent.toml".into()), ..Flags::default() };
    assert!(
        matches!(Config::load(&missing, |_| None), Err(ConfigError::Read { path, .. }) if path == Path::new("/nonexistent.toml"))
    );
    assert!(matches!(Config::from_toml("= 1"), Err(ConfigError::Syntax { .. })));
}
