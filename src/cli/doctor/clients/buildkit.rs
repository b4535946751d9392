//! `buildkitd.toml`: the mirrors of each registry.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::{Endpoint, Places, Read, Speaks, from_toml};

const CLIENT: &str = "buildkit";

#[derive(Deserialize)]
struct File {
    #[serde(default)]
    registry: BTreeMap<String, Registry>,
}

#[derive(Deserialize)]
struct Registry {
    #[serde(default)]
    mirrors: Vec<String>,
    #[serde(default)]
    http: bool,
    #[serde(default)]
    insecure: bool,
}

pub(super) fn read(places: &Places, read: &mut Read) {
    for path in places.of(|whose| whose.buildkit().join("buildkitd.toml")) {
        let Some(text) = read.text(CLIENT, &path) else { continue };
        let Some(file) = read.parsed(CLIENT, &path, from_toml::<File>(&text)) else { continue };
        for (of, registry) in &file.registry {
            for mirror in &registry.mirrors {
                read.point(CLIENT, &path, of, mirror, speaks(mirror, &file.registry));
            }
        }
    }
}

/// A mirror's own table says how it is spoken to; this machine is asked as it answers.
fn speaks(mirror: &str, registries: &BTreeMap<String, Registry>) -> Speaks {
    let host = mirror.split('/').next().unwrap_or_default();
    let is_loopback = Endpoint::parse(mirror, Speaks::Plain).is_some_and(|(endpoint, _)| endpoint.is_loopback());
    match registries.get(host) {
        Some(registry) if registry.insecure => Speaks::Either,
        Some(registry) if registry.http => Speaks::Plain,
        _ if is_loopback => Speaks::Either,
        _ => Speaks::Tls,
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{pointers, write};
    use super::*;

    #[test]
    fn mirrors_are_found_with_how_they_are_spoken_to() {
        let directory = tempfile::tempdir().unwrap();
        write(
            directory.path(),
            "etc/buildkit/buildkitd.toml",
            "debug = true\n[registry.\"docker.io\"]\nmirrors = [\"cache.lan:5000\", \"localhost:5000/docker.io\", \"other.lan\"]\n\
             [registry.\"cache.lan:5000\"]\nhttp = true\n",
        );
        let expected =
            [("cache.lan:5000", Speaks::Plain), ("localhost:5000", Speaks::Either), ("other.lan:443", Speaks::Tls)]
                .map(|(at, speaks)| (CLIENT, "docker.io".to_owned(), at.to_owned(), speaks));
        assert_eq!(pointers(directory.path()), expected);
    }
}
