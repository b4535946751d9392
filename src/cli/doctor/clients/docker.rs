//! `daemon.json` of dockerd: the mirrors of Docker Hub.

use serde::Deserialize;

use super::{Places, Read, Speaks, from_json};

const CLIENT: &str = "docker";

#[derive(Deserialize)]
struct File {
    #[serde(default, rename = "registry-mirrors")]
    mirrors: Vec<String>,
}

pub(super) fn read(places: &Places, read: &mut Read) {
    for path in places.of(|whose| whose.docker().join("daemon.json")) {
        let Some(text) = read.text(CLIENT, &path) else { continue };
        // dockerd takes an empty file for one without settings.
        if text.trim().is_empty() {
            continue;
        }
        let Some(file) = read.parsed(CLIENT, &path, from_json::<File>(&text)) else { continue };
        for mirror in &file.mirrors {
            read.point(CLIENT, &path, "docker.io", mirror, Speaks::Tls);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{pointers, write};
    use super::*;

    #[test]
    fn mirrors_are_found() {
        let directory = tempfile::tempdir().unwrap();
        let text = r#"{"registry-mirrors": ["http://127.0.0.1:5000", "https://m.example/"], "data-root": "/x"}"#;
        write(directory.path(), "etc/docker/daemon.json", text);
        write(directory.path(), "user/docker/daemon.json", "\n");
        let expected = [("127.0.0.1:5000", Speaks::Plain), ("m.example:443", Speaks::Tls)]
            .map(|(at, speaks)| (CLIENT, "docker.io".to_owned(), at.to_owned(), speaks));
        assert_eq!(pointers(directory.path()), expected);
    }
}
