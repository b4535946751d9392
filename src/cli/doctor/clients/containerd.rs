//! `hosts.toml` of containerd, one for each registry, and whether its CRI plugin reads them at all.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use toml::{Table, Value};

use super::{GROUP, Places, Read, Speaks, from_toml};
use crate::cli::doctor::finding::{Finding, Level};

const CLIENT: &str = "containerd";
/// The CRI plugin's table of registries, in the second and the third version of containerd's configuration.
const CRI: [&str; 2] = ["io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images"];

#[derive(Deserialize)]
struct Hosts {
    server: Option<String>,
    /// By URL.
    #[serde(default)]
    host: BTreeMap<String, Value>,
}

pub(super) fn read(places: &Places, read: &mut Read) {
    for base in places.of("containerd") {
        let certs = base.join("certs.d");
        let mut names: Vec<_> = std::fs::read_dir(&certs)
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect();
        names.sort_unstable();
        let before = read.pointers.len();
        for name in names {
            let path = certs.join(&name).join("hosts.toml");
            let Some(text) = read.text(CLIENT, &path) else { continue };
            let Some(hosts) = read.parsed(CLIENT, &path, from_toml::<Hosts>(&text)) else { continue };
            let of = if name == "_default" { "every registry" } else { &name };
            for url in hosts.host.keys() {
                read.point(CLIENT, &path, of, url, Speaks::Tls);
            }
            // Where there is no host, the server itself is asked; it is usually the registry.
            if let Some(server) = hosts.server.filter(|_| hosts.host.is_empty()) {
                read.point(CLIENT, &path, of, &server, Speaks::Tls);
            }
        }
        if read.pointers.len() > before {
            cri(&base.join("config.toml"), &certs, read);
        }
    }
}

/// Kubernetes' pulls read `certs.d` only where the configuration says so, before containerd 2.
fn cri(path: &Path, certs: &Path, read: &mut Read) {
    let Some(text) = read.text(CLIENT, path) else { return };
    let Some(config) = read.parsed(CLIENT, path, from_toml::<Table>(&text)) else { return };
    // The third version of the file is that of containerd 2, which reads them unless it is told otherwise.
    let is_third = config.get("version").and_then(Value::as_integer).is_some_and(|version| version >= 3);
    let plugins = config.get("plugins");
    let path_of =
        |plugin: &&str| plugins?.get(plugin)?.get("registry")?.get("config_path")?.as_str().map(str::to_owned);
    let configured = CRI.iter().find_map(path_of);
    let certs = certs.display().to_string();
    let reads =
        configured.as_ref().map_or(is_third, |paths| paths.split(':').any(|path| path.trim_end_matches('/') == certs));
    if !reads {
        let found = format!(
            "does not lead the CRI plugin (Kubernetes, crictl) to {certs}; ctr and nerdctl read it all the same"
        );
        let advice = format!(
            "write config_path = \"{certs}\" into [plugins.\"{}\".registry], and restart containerd",
            if is_third { CRI[1] } else { CRI[0] }
        );
        read.findings.push(Finding::new(Level::Note, GROUP, format!("{CLIENT}, {}", path.display()), found, advice));
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{pointers, write};
    use super::*;

    fn certs(directory: &Path) {
        write(
            directory,
            "etc/containerd/certs.d/docker.io/hosts.toml",
            "server = \"https://registry-1.docker.io\"\n[host.\"http://127.0.0.1:5000\"]\ncapabilities = [\"pull\"]\n",
        );
        write(directory, "etc/containerd/certs.d/_default/hosts.toml", "server = \"http://localhost:5000\"");
        write(directory, "etc/containerd/certs.d/ghcr.io/other.toml", "x");
    }

    #[test]
    fn hosts_are_found() {
        let directory = tempfile::tempdir().unwrap();
        certs(directory.path());
        let pointer = |of: &str, at: &str| (CLIENT, of.to_owned(), at.to_owned(), Speaks::Plain);
        let expected = [pointer("every registry", "localhost:5000"), pointer("docker.io", "127.0.0.1:5000")];
        assert_eq!(pointers(directory.path()), expected);
    }

    #[test]
    fn a_cri_plugin_that_does_not_look_is_told() {
        let directory = tempfile::tempdir().unwrap();
        certs(directory.path());
        let path = directory.path().join("etc/containerd/certs.d");
        let told = |config: &str| {
            write(directory.path(), "etc/containerd/config.toml", config);
            let mut read = Read::default();
            super::read(&Places::below(directory.path()), &mut read);
            read.findings.len()
        };
        assert_eq!(told("version = 2"), 1);
        assert_eq!(told("version = 3"), 0, "containerd 2 looks there by itself");
        assert_eq!(told("version = 3\n[plugins.\"io.containerd.cri.v1.images\".registry]\nconfig_path = \"/x\""), 1);
        let right = format!(
            "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry]\nconfig_path = \"/x:{}/\"",
            path.display()
        );
        assert_eq!(told(&right), 0);
    }
}
