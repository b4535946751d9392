//! `hosts.toml` of containerd, one for each registry, and whether its CRI plugin reads them at all.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use toml::{Table, Value};
use toml_edit::DocumentMut;

use super::{GROUP, Places, Read, Speaks, from_toml};
use crate::cli::clients::Whose;
use crate::cli::clients::containerd::{Configured, configured, key_of};
use crate::cli::doctor::finding::{Finding, Level};

const CLIENT: &str = "containerd";
#[derive(Deserialize)]
struct Hosts {
    server: Option<String>,
    /// By URL.
    #[serde(default)]
    host: BTreeMap<String, Value>,
}

pub(super) fn read(places: &Places, read: &mut Read) {
    for base in places.of(Whose::containerd) {
        let usual = base.join("certs.d");
        let path = base.join("config.toml");
        let text = read.text(CLIENT, &path);
        let document = text.and_then(|text| {
            let parsed = from_toml::<Table>(&text)
                .and_then(|_| text.parse::<DocumentMut>().map_err(|error| error.message().to_owned()));
            read.parsed(CLIENT, &path, parsed)
        });
        let configured = document.as_ref().and_then(|document| configured(&places.tree, &base, document).ok());
        let mut directories = match &configured {
            Some(Configured::At(first, others)) => [first].into_iter().chain(others).cloned().collect(),
            _ => Vec::new(),
        };
        let is_asked = directories.contains(&usual);
        if !is_asked {
            // nerdctl looks there by itself.
            directories.push(usual.clone());
        }
        for directory in directories {
            let before = read.pointers.len();
            hosts(&directory, read);
            if let (true, Some(configured), Some(document)) = (directory == usual && !is_asked, &configured, &document)
                && read.pointers.len() > before
            {
                cri(&path, &usual, configured, document, read);
            }
        }
    }
}

fn hosts(directory: &Path, read: &mut Read) {
    for of in read.list(directory) {
        let path = of.join("hosts.toml");
        let Some(text) = read.text(CLIENT, &path) else { continue };
        let Some(hosts) = read.parsed(CLIENT, &path, from_toml::<Hosts>(&text)) else { continue };
        let name = of.file_name().unwrap_or_default().to_string_lossy();
        let of = if name == "_default" { "every registry" } else { &name };
        for url in hosts.host.keys() {
            read.point(CLIENT, &path, of, url, Speaks::Tls);
        }
        // Where there is no host, the server itself is asked; it is usually the registry.
        if let Some(server) = hosts.server.filter(|_| hosts.host.is_empty()) {
            read.point(CLIENT, &path, of, &server, Speaks::Tls);
        }
    }
}

/// Kubernetes' pulls read `certs.d` only where the configuration says so.
fn cri(path: &Path, certs: &Path, configured: &Configured, document: &DocumentMut, read: &mut Read) {
    let certs = certs.display();
    let key = key_of(document);
    let advice = match configured {
        Configured::NoCri => return,
        Configured::Older => {
            "move what registry.mirrors says into hosts.toml files: with it, containerd takes no config_path".to_owned()
        }
        Configured::At(..) | Configured::Nowhere => {
            format!("write config_path = \"{certs}\" into [plugins.\"{key}\".registry], and restart containerd")
        }
    };
    // Nothing is said in files of the third version either, of which containerd 2.2 and later look there by themselves.
    let found = format!(
        "does not lead the CRI plugin (Kubernetes, crictl) to {certs}, where it looks by itself only since containerd 2.2; ctr and \
         nerdctl read it all the same"
    );
    read.findings.push(Finding::new(Level::Note, GROUP, format!("{CLIENT}, {}", path.display()), found, advice));
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
        let told = |config: &str| {
            write(directory.path(), "etc/containerd/config.toml", config);
            Places::below(directory.path()).read().findings.len()
        };
        assert_eq!(told("version = 2"), 1);
        assert_eq!(told("version = 3"), 1, "containerd 2.0 and 2.1 look there as little, and `setup` writes the key");
        assert_eq!(told("version = 3\n[plugins.\"io.containerd.cri.v1.images\".registry]\nconfig_path = \"/x\""), 1);
        let right = "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry]\nconfig_path = \"/x:/etc/containerd/certs.d/\"";
        assert_eq!(told(right), 0);
        assert_eq!(told("version = 2\ndisabled_plugins = ['cri']"), 0, "nobody asks");
        write(directory.path(), "etc/containerd/conf.d/a.toml", right);
        assert_eq!(told("version = 2\nimports = ['conf.d/*.toml']"), 0, "an imported file says it");
    }

    #[test]
    fn hosts_are_found_where_the_configuration_leads() {
        let directory = tempfile::tempdir().unwrap();
        let host = "[host.\"http://127.0.0.1:5000\"]\n";
        write(directory.path(), "etc/elsewhere/quay.io/hosts.toml", host);
        write(
            directory.path(),
            "etc/containerd/config.toml",
            "version = 3\n[plugins.\"io.containerd.cri.v1.images\".registry]\nconfig_path = \"/etc/elsewhere\"\n",
        );
        let found = pointers(directory.path());
        assert_eq!(found, [(CLIENT, "quay.io".to_owned(), "127.0.0.1:5000".to_owned(), Speaks::Plain)]);
    }
}
