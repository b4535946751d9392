//! `registries.yaml` of k3s: the endpoints of each registry.

use super::{Places, Read, Speaks};
use crate::cli::clients::Whose;
use crate::cli::setup::yaml;

const CLIENT: &str = "k3s";

pub(super) fn read(places: &Places, read: &mut Read) {
    for directory in places.whose.iter().filter_map(Whose::k3s) {
        let path = directory.join("registries.yaml");
        let Some(text) = read.text(CLIENT, &path) else { continue };
        let Some(registries) = read.parsed(CLIENT, &path, yaml::endpoints(&text)) else { continue };
        for (name, endpoints) in &registries {
            let of = if name == "*" { "every registry" } else { name };
            for endpoint in endpoints {
                read.point(CLIENT, &path, of, endpoint, Speaks::Tls);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{pointers, write};
    use super::*;

    #[test]
    fn endpoints_are_found() {
        let directory = tempfile::tempdir().unwrap();
        write(
            directory.path(),
            "etc/rancher/k3s/registries.yaml",
            "mirrors:\n  docker.io:\n    endpoint:\n      - \"http://127.0.0.1:5000\"\n  \"*\":\n    endpoint: [https://m.example]\n  quay.io:\n\
             configs:\n  m.example:\n    auth: {username: me, password: x}\n",
        );
        let expected =
            [("docker.io", "127.0.0.1:5000", Speaks::Plain), ("every registry", "m.example:443", Speaks::Tls)]
                .map(|(of, at, speaks)| (CLIENT, of.to_owned(), at.to_owned(), speaks));
        assert_eq!(pointers(directory.path()), expected);
    }
}
