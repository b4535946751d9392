//! `registries.conf` of podman, buildah, skopeo and CRI-O: registries that are elsewhere, and their mirrors.

use std::path::PathBuf;

use serde::Deserialize;

use super::{Places, Read, Speaks, from_toml};
use crate::cli::clients::Whose;

const CLIENT: &str = "podman";

#[derive(Deserialize)]
struct File {
    #[serde(default)]
    registry: Vec<Registry>,
}

#[derive(Deserialize)]
struct Registry {
    prefix: Option<String>,
    location: Option<String>,
    #[serde(default)]
    insecure: bool,
    #[serde(default)]
    mirror: Vec<Mirror>,
}

#[derive(Deserialize)]
struct Mirror {
    location: String,
    #[serde(default)]
    insecure: bool,
}

pub(super) fn read(places: &Places, read: &mut Read) {
    for base in places.of(Whose::containers) {
        let mut files = vec![base.join("registries.conf")];
        let is_one = |path: &PathBuf| path.extension().is_some_and(|end| end == "conf");
        files.extend(read.list(&base.join("registries.conf.d")).into_iter().filter(is_one));
        for path in files {
            let Some(text) = read.text(CLIENT, &path) else { continue };
            let Some(file) = read.parsed(CLIENT, &path, from_toml::<File>(&text)) else { continue };
            for registry in &file.registry {
                let prefix = registry.prefix.as_deref().or(registry.location.as_deref()).unwrap_or("a registry");
                if let Some(location) = registry.location.as_deref().filter(|location| *location != prefix) {
                    read.point(CLIENT, &path, prefix, location, speaks(registry.insecure));
                }
                for Mirror { location, insecure } in &registry.mirror {
                    read.point(CLIENT, &path, prefix, location, speaks(*insecure));
                }
            }
        }
    }
}

/// Insecure: plain HTTP where there is no TLS.
const fn speaks(insecure: bool) -> Speaks {
    if insecure { Speaks::Either } else { Speaks::Tls }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{pointers, write};
    use super::*;

    #[test]
    fn locations_and_mirrors_are_found() {
        let directory = tempfile::tempdir().unwrap();
        write(
            directory.path(),
            "etc/containers/registries.conf",
            "unqualified-search-registries = [\"docker.io\"]\n[[registry]]\nlocation = \"quay.io\"\n",
        );
        write(
            directory.path(),
            "home/me/.config/containers/registries.conf.d/50-cache.conf",
            "[[registry]]\nprefix = \"ghcr.io\"\nlocation = \"localhost:5000/ghcr.io\"\ninsecure = true\n\
             [[registry]]\nlocation = \"docker.io\"\n[[registry.mirror]]\nlocation = \"localhost:5000\"\n",
        );
        let pointer = |of: &str, speaks| (CLIENT, of.to_owned(), "localhost:5000".to_owned(), speaks);
        let found = pointers(directory.path());
        // One that is where its name says is no pointer.
        assert_eq!(found, [pointer("ghcr.io", Speaks::Either), pointer("docker.io", Speaks::Tls)]);
    }

    /// As podman has it, and as `ocistern setup podman` writes it.
    #[test]
    fn a_users_files_do_not_move() {
        let directory = tempfile::tempdir().unwrap();
        let text = "[[registry]]\nlocation = \"docker.io\"\n[[registry.mirror]]\nlocation = \"localhost:5000\"\n";
        write(directory.path(), "user/containers/registries.conf", text);
        assert_eq!(pointers(directory.path()), []);
    }
}
