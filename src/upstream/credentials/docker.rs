//! docker's `config.json`: what `docker login` and its relatives wrote, and which helpers it names.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use super::{Credential, CredentialFault, Secret, helper, is_not_found, read_file};
use crate::upstream::origin::Origin;

/// Largest `config.json`.
const MAX_CONFIG: u64 = 4 * 1024 * 1024;
/// Under which name docker keeps the account at Docker Hub.
const HUB_KEY: &str = "https://index.docker.io/v1/";
/// Every host under which Docker Hub is known.
const HUB_HOSTS: [&str; 3] = ["index.docker.io", "docker.io", "registry-1.docker.io"];

/// The upstream's host as configuration files and helpers know it, best first.
#[derive(Debug)]
pub(super) struct Names(Vec<String>);

/// The parts of docker's `config.json` that matter here.
#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct DockerConfig {
    auths: BTreeMap<String, Option<AuthEntry>>,
    creds_store: Option<String>,
    cred_helpers: BTreeMap<String, String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct AuthEntry {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
    registrytoken: Option<String>,
}

// === impl Names ===

impl Names {
    pub(super) fn of(upstream: &Origin) -> Self {
        Self(if HUB_HOSTS.contains(&upstream.host.as_str()) {
            HUB_HOSTS.iter().map(|&host| host.to_owned()).collect()
        } else {
            vec![upstream.authority(), format!("{}:{}", upstream.host, upstream.port)]
        })
    }

    /// The entry for this upstream; keys may be URLs. Keys for parts of a registry (`host/namespace`) are left alone.
    fn find<'a, T>(&self, entries: &'a BTreeMap<String, T>) -> Option<&'a T> {
        let host_of = |key: &str| {
            let key = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
            let (host, path) = key.split_once('/').unwrap_or((key, ""));
            matches!(path.trim_end_matches('/'), "" | "v1" | "v2").then(|| host.to_ascii_lowercase())
        };
        self.0.iter().find_map(|host| {
            let exact = entries.get(host.as_str());
            exact
                .or_else(|| entries.iter().find(|(key, _)| host_of(key).as_ref() == Some(host)).map(|(_, entry)| entry))
        })
    }

    /// Under which name helpers know the upstream.
    pub(super) fn server(&self) -> &str {
        match self.0.first() {
            Some(host) if host == HUB_HOSTS[0] => HUB_KEY,
            Some(host) => host,
            None => "",
        }
    }
}

/// What `path`, or the file where docker keeps it, has for the upstream.
pub(super) async fn read(path: Option<&Path>, names: &Names) -> Result<Credential, CredentialFault> {
    if let Some(path) = path {
        return choose(path, &read_file(path, MAX_CONFIG).await?, names).await;
    }
    let path = standard_path(|name| std::env::var_os(name).map(PathBuf::from))?;
    match read_file(&path, MAX_CONFIG).await {
        Ok(text) => choose(&path, &text, names).await,
        // Nobody has logged in yet.
        Err(CredentialFault::Unreadable { source, .. }) if is_not_found(&source) => Ok(Credential::None),
        Err(fault) => Err(fault),
    }
}

/// As docker does: the helper of this host, else the store of all, else what stands in the file.
async fn choose(path: &Path, text: &str, names: &Names) -> Result<Credential, CredentialFault> {
    let malformed = |reason| CredentialFault::Malformed { path: path.to_owned(), reason };
    let config: DockerConfig = serde_json::from_str(text).map_err(|_| malformed("not docker's config.json"))?;
    let helper = names.find(&config.cred_helpers).or(config.creds_store.as_ref());
    if let Some(name) = helper.filter(|name| !name.is_empty())
        && let Some(credential) = helper::ask(name, names.server()).await?
    {
        return Ok(credential);
    }
    let Some(Some(entry)) = names.find(&config.auths) else { return Ok(Credential::None) };
    let text = |value: &Option<String>| value.clone().filter(|value| !value.is_empty());
    if let Some(token) = text(&entry.registrytoken) {
        return Ok(Credential::Registry(Secret(token)));
    }
    if let Some(token) = text(&entry.identitytoken) {
        return Ok(Credential::Identity(Secret(token)));
    }
    if let Some(auth) = text(&entry.auth) {
        let decoded = STANDARD.decode(auth.trim()).ok().and_then(|bytes| String::from_utf8(bytes).ok());
        let decoded = decoded.ok_or_else(|| malformed("an `auth` is not base64 of text"))?;
        let (username, password) =
            decoded.split_once(':').ok_or_else(|| malformed("an `auth` is not base64 of name:password"))?;
        // Old versions of docker padded with zero bytes.
        return Ok(Credential::from_pair(username.to_owned(), password.trim_end_matches('\0').to_owned()));
    }
    let (username, password) = (text(&entry.username), text(&entry.password));
    Ok(Credential::from_pair(username.unwrap_or_default(), password.unwrap_or_default()))
}

fn standard_path(variable: impl Fn(&str) -> Option<PathBuf>) -> Result<PathBuf, CredentialFault> {
    let set = |name| variable(name).filter(|path| !path.as_os_str().is_empty());
    let directory = set("DOCKER_CONFIG").or_else(|| set("HOME").map(|home| home.join(".docker")));
    directory.map(|directory| directory.join("config.json")).ok_or(CredentialFault::NoHome)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(host: &str, port: u16) -> Names {
        Names::of(&Origin { https: true, host: host.into(), port })
    }

    fn password(username: &str, password: &str) -> Credential {
        Credential::Password { username: username.into(), password: Secret::new(password) }
    }

    async fn from_json(host: &str, port: u16, text: &str) -> Credential {
        let file = tempfile::NamedTempFile::new().unwrap();
        tokio::fs::write(file.path(), text).await.unwrap();
        read(Some(file.path()), &names(host, port)).await.unwrap()
    }

    #[tokio::test]
    async fn docker_config_in_all_its_forms() {
        let text = r#"{"auths": {
            "https://index.docker.io/v1/": {"auth": "aHViOnB3"},
            "reg.example": {"username": "a", "password": "b"},
            "https://url.example/v2/": {"auth": "dXJsOnB3OjI="},
            "port.example:5000": {"identitytoken": "idt", "auth": "eDp5"},
            "tok.example": {"registrytoken": "rt"},
            "reg.example/name/space": {"auth": "bm86bm8="},
            "empty.example": {}, "null.example": null
        }, "HttpHeaders": {"X": "y"}}"#;
        assert_eq!(from_json("registry-1.docker.io", 443, text).await, password("hub", "pw"));
        assert_eq!(from_json("reg.example", 443, text).await, password("a", "b"));
        assert_eq!(from_json("url.example", 443, text).await, password("url", "pw:2"));
        assert_eq!(from_json("port.example", 5000, text).await, Credential::Identity(Secret::new("idt")));
        assert_eq!(from_json("tok.example", 443, text).await, Credential::Registry(Secret::new("rt")));
        for none in ["port.example", "empty.example", "null.example", "other.example"] {
            assert_eq!(from_json(none, 443, text).await, Credential::None, "{none}");
        }
    }

    #[tokio::test]
    async fn a_config_that_is_not_one_is_an_error_without_its_content() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for text in ["canary", "[7]", r#"{"auths":{"reg.example":{"auth":"canary!"}}}"#] {
            tokio::fs::write(file.path(), text).await.unwrap();
            let path = Some(file.path().to_owned());
            let result = read(path.as_deref(), &names("reg.example", 443)).await;
            let message = result.unwrap_err().to_string();
            assert!(!message.contains("canary"), "{message}");
        }
    }

    #[test]
    fn where_docker_keeps_its_config() {
        let from = |set: &'static [(&str, &str)]| {
            standard_path(move |name| set.iter().find(|(known, _)| *known == name).map(|(_, path)| path.into()))
        };
        assert_eq!(from(&[("DOCKER_CONFIG", "/d"), ("HOME", "/h")]).unwrap(), Path::new("/d/config.json"));
        assert_eq!(from(&[("DOCKER_CONFIG", ""), ("HOME", "/h")]).unwrap(), Path::new("/h/.docker/config.json"));
        assert!(from(&[]).is_err());
    }

    #[test]
    fn docker_hub_has_a_name_of_its_own() {
        assert_eq!(names("registry-1.docker.io", 443).server(), HUB_KEY);
        assert_eq!(names("reg.example", 5000).server(), "reg.example:5000");
    }
}
