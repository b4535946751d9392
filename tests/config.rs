//! The configuration as it is shipped: the documented example, the container's and the units' presets.

#![allow(clippy::unwrap_used, reason = "a test program")]

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;

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
    let mut default = Config::from_toml("").unwrap();
    default.root = "/home/somebody/.cache/ocistern".into();
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
    let health = dockerfile.lines().find(|line| line.starts_with("HEALTHCHECK ")).expect("it says whether it serves");
    assert!(health.ends_with(r#" CMD ["/usr/bin/ocistern", "health"]"#), "there is no shell: {health}");
}

/// What is left out of the image's build (.dockerignore) must not be needed by it: the manifest is read as a whole, and sources
/// may include other files.
#[test]
fn the_image_is_built_from_what_it_copies() {
    let directory = tempfile::tempdir().unwrap();
    let ignored = text(".dockerignore");
    let mut lines = ignored.lines().filter(|line| !line.starts_with('#'));
    assert_eq!(lines.next(), Some("*"), "nothing is copied but what is named");
    let copied: Vec<&str> = lines.map(|line| line.strip_prefix('!').unwrap()).collect();
    for name in &copied {
        copy(&file(name), &directory.path().join(name));
    }
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["metadata", "--format-version", "1", "--no-deps", "--offline", "--locked", "--manifest-path"]);
    let output = cargo.arg(directory.path().join("Cargo.toml")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut sources = vec![directory.path().join("src")];
    while let Some(path) = sources.pop() {
        if path.is_dir() {
            sources.extend(path.read_dir().unwrap().map(|entry| entry.unwrap().path()));
            continue;
        }
        let source = std::fs::read_to_string(&path).unwrap();
        let included = source.match_indices("include_str!(\"").chain(source.match_indices("include_bytes!(\""));
        for (at, call) in included {
            // The tests of a file stand at its end, or in a file of that name.
            let is_test = path.ends_with("tests.rs") || source[..at].contains("#[cfg(test)]\nmod tests");
            let name = source[at + call.len()..].split('"').next().unwrap();
            let exists = path.parent().unwrap().join(name).exists();
            assert!(is_test || exists, "{}: {name} is not copied: name it in .dockerignore", path.display());
        }
    }
}

fn copy(from: &Path, to: &Path) {
    if !from.is_dir() {
        std::fs::create_dir_all(to.parent().unwrap()).unwrap();
        std::fs::copy(from, to).unwrap();
        return;
    }
    for entry in from.read_dir().unwrap() {
        let entry = entry.unwrap();
        copy(&entry.path(), &to.join(entry.file_name()));
    }
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
    assert_eq!(unit(&service, "User"), [user(&text("systemd/ocistern.sysusers"))]);
    let store = text("systemd/ocistern.tmpfiles");
    let store = store.lines().find(|line| !line.starts_with('#')).unwrap();
    assert_eq!(store, format!("d {directory} 0700 ocistern ocistern -"), "the same directory as the unit makes");
    let stop: u64 = unit(&service, "TimeoutStopSec").concat().trim_end_matches('s').parse().unwrap();
    assert!(stop > config.limits.drain.as_secs(), "systemd must not kill what is being drained");
    assert_eq!(unit(&service, "RestartPreventExitStatus"), ["64"]);
    let calls = unit(&service, "SystemCallFilter").concat();
    assert!(calls.split([' ', '~']).any(|call| call == "mincore"), "@system-service is without it: {calls}");
}

/// The user that a sysusers file makes.
fn user(sysusers: &str) -> String {
    sysusers.lines().find_map(|line| line.strip_prefix("u ")).unwrap().split_whitespace().next().unwrap().to_owned()
}

/// One user's own daemon: the same addresses and times as the system's, no user and no namespace of its own.
#[test]
fn the_user_units_are_like_those_of_the_system() {
    let (own, system) = (text("systemd/user/ocistern.service"), text("systemd/ocistern.service"));
    for key in ["Type", "WatchdogSec", "TimeoutStopSec", "RestartPreventExitStatus", "KillMode", "CacheDirectory"] {
        assert_eq!(unit(&own, key), unit(&system, key), "{key}");
    }
    for key in
        ["User", "DynamicUser", "ProtectSystem", "ProtectHome", "PrivateTmp", "PrivateUsers", "CapabilityBoundingSet"]
    {
        assert!(unit(&own, key).is_empty(), "{key} wants a privilege or a namespace, which a user may not have");
    }
    for key in ["ListenStream", "FreeBind", "Backlog"] {
        assert_eq!(
            unit(&text("systemd/user/ocistern.socket"), key),
            unit(&text("systemd/ocistern.socket"), key),
            "{key}"
        );
    }
    // With `root` on the command line, the system's file does not decide about it.
    assert_eq!(unit(&own, "ExecStart"), ["/usr/bin/ocistern serve --root=%C/ocistern"]);
}

/// What the Debian package, the Compose file and the documentation give to copy.
#[test]
fn the_configurations_that_are_shipped_are_right() {
    let package = Flags { config: Some(file("deploy/debian/config.toml")), ..Flags::default() };
    let package = Config::load(&package, |_| None).unwrap();
    assert_eq!(package.root, Path::new("/var/cache/ocistern"), "where the unit has it");
    assert_eq!(package.upstreams.len(), Config::from_toml("").unwrap().upstreams.len());
    // The example in it, too.
    let example = text("deploy/debian/config.toml").replace("\n#[", "\n[").replace("\n#credentials", "\ncredentials");
    let example = Config::from_toml(&example).unwrap();
    assert!(example.upstreams.values().any(|upstream| upstream.credentials.is_own_account()));
    let compose = text("deploy/compose/ocistern.toml");
    let compose = Config::from_toml(&compose).unwrap();
    assert_eq!(compose.admin.token_file.as_deref(), Some(Path::new("/run/secrets/admin-token")));
    let guide = text("docs/install.md");
    let examples: Vec<&str> = guide.split("```toml\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
    assert!(!examples.is_empty());
    for example in examples.into_iter().filter(|example| !example.contains("[host.")) {
        Config::from_toml(example).unwrap_or_else(|error| panic!("{example}\n{error}"));
    }
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
