//! ocistern's own account at an upstream: where it is written and how it is read.
//!
//! Files and helpers are asked anew for every token, so a rotated password needs no restart.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;
use tokio::time::timeout;

use super::error::{Cause, sanitise};
use super::origin::Origin;
use crate::config;

/// Largest password file, and largest answer of a helper.
const MAX_SECRET: u64 = 64 * 1024;
/// Largest `config.json`.
const MAX_CONFIG: u64 = 4 * 1024 * 1024;
/// Time that a helper may take: it may ask a cloud.
const HELPER_TIMEOUT: Duration = Duration::from_secs(8);
/// Under which name docker keeps the account at Docker Hub.
const HUB_KEY: &str = "https://index.docker.io/v1/";
/// Every host under which Docker Hub is known.
const HUB_HOSTS: [&str; 3] = ["index.docker.io", "docker.io", "registry-1.docker.io"];
/// The name with which a helper says that the secret is an identity token.
const TOKEN_USER: &str = "<token>";

/// Text that is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

/// What is shown to an upstream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Credential {
    /// Nothing.
    None,
    /// An account's name and password.
    Password { username: String, password: Secret },
    /// An `OAuth2` refresh token.
    Identity(Secret),
    /// A token for the registry itself; no token endpoint is asked.
    Registry(Secret),
}

/// Where an upstream's credential comes from.
#[derive(Debug, Clone)]
pub(crate) struct Source {
    from: config::Credentials,
    /// The upstream's host as configuration files and helpers know it, best first.
    hosts: Vec<String>,
}

/// Why ocistern's own credential cannot be used.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CredentialFault {
    /// A file cannot be read.
    #[error("cannot read {path}: {source}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: Cause,
    },
    /// There is nothing in the password file.
    #[error("the first line of {path} is empty")]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// The file is too large, not UTF-8, or not a docker `config.json`.
    #[error("{path} is not what it should be: {reason}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Why; never the content.
        reason: &'static str,
    },
    /// Neither `DOCKER_CONFIG` nor `HOME` says where `config.json` is.
    #[error("neither DOCKER_CONFIG nor HOME is set: set `path`")]
    NoHome,
    /// A credential helper did not do its work.
    #[error("docker-credential-{name} {fault}")]
    Helper {
        /// The helper.
        name: String,
        /// What went wrong.
        #[source]
        fault: HelperFault,
    },
    /// Name or password cannot be written in a header.
    #[error("the name contains a colon, or the credential characters that HTTP cannot carry")]
    Unusable,
}

/// What went wrong with a credential helper.
#[derive(Debug, Clone, thiserror::Error)]
pub enum HelperFault {
    /// The name cannot be part of a program's name.
    #[error("is not a valid name of a program")]
    Name,
    /// It does not start.
    #[error("does not start: {0}")]
    Start(#[source] Cause),
    /// It took too long and was killed.
    #[error("took longer than {} s", HELPER_TIMEOUT.as_secs())]
    Slow,
    /// It said no.
    #[error("failed: {0}")]
    Failed(String),
    /// It knows nothing of this upstream.
    #[error("has no credential for {0}")]
    NoEntry(String),
    /// Its answer is not the JSON of the protocol.
    #[error("answered with something else than a credential")]
    Malformed,
}

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

#[derive(Deserialize)]
struct HelperAnswer {
    #[serde(rename = "Username", default)]
    username: String,
    #[serde(rename = "Secret", default)]
    secret: String,
}

// === impl Secret ===

impl Secret {
    /// From now on it is not printed.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text, for where it must go.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

// === impl Credential ===

impl Credential {
    /// The secret, to keep it out of messages that an upstream echoes.
    pub(crate) fn secret(&self) -> Option<&str> {
        match self {
            Self::None => None,
            Self::Password { password: secret, .. } | Self::Identity(secret) | Self::Registry(secret) => {
                Some(secret.expose())
            }
        }
    }

    fn from_pair(username: String, secret: String) -> Self {
        match (username.as_str(), secret.is_empty()) {
            (_, true) => Self::None,
            (TOKEN_USER, false) => Self::Identity(Secret(secret)),
            _ => Self::Password { username, password: Secret(secret) },
        }
    }
}

// === impl Source ===

impl Source {
    pub(crate) fn new(from: &config::Credentials, upstream: &Origin) -> Self {
        let hosts = if HUB_HOSTS.contains(&upstream.host.as_str()) {
            HUB_HOSTS.iter().map(|&host| host.to_owned()).collect()
        } else {
            vec![upstream.authority(), format!("{}:{}", upstream.host, upstream.port)]
        };
        Self { from: from.clone(), hosts }
    }

    /// Whether an account is configured at all.
    pub(crate) fn is_configured(&self) -> bool {
        !matches!(self.from, config::Credentials::Auto | config::Credentials::Anonymous | config::Credentials::Client)
    }

    /// Reads the credential as it is now.
    pub(crate) async fn read(&self) -> Result<Credential, CredentialFault> {
        match &self.from {
            config::Credentials::Auto | config::Credentials::Anonymous | config::Credentials::Client => {
                Ok(Credential::None)
            }
            config::Credentials::Static { username, password_file } => {
                let text = read_file(password_file, MAX_SECRET).await?;
                let password = text.lines().next().unwrap_or_default().trim_end_matches('\r');
                if password.is_empty() {
                    return Err(CredentialFault::Empty { path: password_file.clone() });
                }
                Ok(Credential::Password { username: username.clone(), password: Secret::new(password) })
            }
            config::Credentials::DockerConfig { path: Some(path) } => {
                let text = read_file(path, MAX_CONFIG).await?;
                self.read_docker_config(path, &text).await
            }
            config::Credentials::DockerConfig { path: None } => {
                let path = default_docker_config(|name| std::env::var_os(name).map(PathBuf::from))?;
                match read_file(&path, MAX_CONFIG).await {
                    Ok(text) => self.read_docker_config(&path, &text).await,
                    // Nobody has logged in yet.
                    Err(CredentialFault::Unreadable { source, .. }) if is_not_found(&source) => Ok(Credential::None),
                    Err(fault) => Err(fault),
                }
            }
            config::Credentials::Helper { name } => self.ask_helper(name).await?.ok_or_else(|| {
                CredentialFault::Helper { name: name.clone(), fault: HelperFault::NoEntry(self.server().to_owned()) }
            }),
        }
    }

    /// As docker does: the helper of this host, else the store of all, else what stands in the file.
    async fn read_docker_config(&self, path: &Path, text: &str) -> Result<Credential, CredentialFault> {
        let malformed = |reason| CredentialFault::Malformed { path: path.to_owned(), reason };
        let config: DockerConfig = serde_json::from_str(text).map_err(|_| malformed("not docker's config.json"))?;
        let helper = self.find(&config.cred_helpers).or(config.creds_store.as_ref());
        if let Some(name) = helper.filter(|name| !name.is_empty())
            && let Some(credential) = self.ask_helper(name).await?
        {
            return Ok(credential);
        }
        let Some(Some(entry)) = self.find(&config.auths) else { return Ok(Credential::None) };
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

    /// The entry for this upstream; keys may be URLs. Keys for parts of a registry (`host/namespace`) are left alone.
    fn find<'a, T>(&self, entries: &'a BTreeMap<String, T>) -> Option<&'a T> {
        let host_of = |key: &str| {
            let key = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
            let (host, path) = key.split_once('/').unwrap_or((key, ""));
            matches!(path.trim_end_matches('/'), "" | "v1" | "v2").then(|| host.to_ascii_lowercase())
        };
        self.hosts.iter().find_map(|host| {
            let exact = entries.get(host.as_str());
            exact
                .or_else(|| entries.iter().find(|(key, _)| host_of(key).as_ref() == Some(host)).map(|(_, entry)| entry))
        })
    }

    /// Under which name helpers know the upstream.
    fn server(&self) -> &str {
        match self.hosts.first() {
            Some(host) if host == HUB_HOSTS[0] => HUB_KEY,
            Some(host) => host,
            None => "",
        }
    }

    /// None: the helper knows nothing of this upstream.
    async fn ask_helper(&self, name: &str) -> Result<Option<Credential>, CredentialFault> {
        let fault = |fault| CredentialFault::Helper { name: name.to_owned(), fault };
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
        if name.is_empty() || !name.bytes().all(plain) {
            return Err(fault(HelperFault::Name));
        }
        let program = format!("docker-credential-{name}");
        match timeout(HELPER_TIMEOUT, run_helper(&program, self.server())).await {
            Ok(result) => result.map_err(fault),
            Err(_) => Err(fault(HelperFault::Slow)),
        }
    }
}

/// `PROGRAM get` with the server on standard input. Dropped, it kills the program.
async fn run_helper(program: &str, server: &str) -> Result<Option<Credential>, HelperFault> {
    let start = |error| HelperFault::Start(Arc::new(error));
    let mut child = Command::new(program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(start)?;
    if let Some(mut input) = child.stdin.take() {
        // A helper that does not read its input has no use for it.
        let _ = input.write_all(server.as_bytes()).await;
    }
    let mut answer = Vec::new();
    if let Some(output) = child.stdout.take() {
        output.take(MAX_SECRET + 1).read_to_end(&mut answer).await.map_err(start)?;
    }
    if answer.len() as u64 > MAX_SECRET {
        return Err(HelperFault::Malformed);
    }
    let status = child.wait().await.map_err(start)?;
    if !status.success() {
        // The protocol reports failures on standard output.
        let message = String::from_utf8_lossy(&answer);
        if message.contains("credentials not found") {
            return Ok(None);
        }
        return Err(HelperFault::Failed(sanitise(&message)));
    }
    let answer: HelperAnswer = serde_json::from_slice(&answer).map_err(|_| HelperFault::Malformed)?;
    Ok(Some(Credential::from_pair(answer.username, answer.secret)).filter(|credential| *credential != Credential::None))
}

async fn read_file(path: &Path, limit: u64) -> Result<String, CredentialFault> {
    let unreadable = |error| CredentialFault::Unreadable { path: path.to_owned(), source: Arc::new(error) };
    let malformed = |reason| CredentialFault::Malformed { path: path.to_owned(), reason };
    let file = tokio::fs::File::open(path).await.map_err(unreadable)?;
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes).await.map_err(unreadable)?;
    if bytes.len() as u64 > limit {
        return Err(malformed("too large"));
    }
    String::from_utf8(bytes).map_err(|_| malformed("not UTF-8"))
}

fn is_not_found(cause: &Cause) -> bool {
    let error: &(dyn std::error::Error + 'static) = &**cause;
    error.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == std::io::ErrorKind::NotFound)
}

fn default_docker_config(variable: impl Fn(&str) -> Option<PathBuf>) -> Result<PathBuf, CredentialFault> {
    let set = |name| variable(name).filter(|path| !path.as_os_str().is_empty());
    let directory = set("DOCKER_CONFIG").or_else(|| set("HOME").map(|home| home.join(".docker")));
    directory.map(|directory| directory.join("config.json")).ok_or(CredentialFault::NoHome)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn source(from: &config::Credentials, host: &str, port: u16) -> Source {
        Source::new(from, &Origin { https: true, host: host.into(), port })
    }

    fn password(username: &str, password: &str) -> Credential {
        Credential::Password { username: username.into(), password: Secret::new(password) }
    }

    async fn from_json(host: &str, port: u16, text: &str) -> Credential {
        let file = tempfile::NamedTempFile::new().unwrap();
        tokio::fs::write(file.path(), text).await.unwrap();
        let path = Some(file.path().to_owned());
        source(&config::Credentials::DockerConfig { path }, host, port).read().await.unwrap()
    }

    #[tokio::test]
    async fn the_password_is_read_each_time() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let from = config::Credentials::Static { username: "me".into(), password_file: file.path().to_owned() };
        let source = source(&from, "reg.example", 443);
        assert!(matches!(source.read().await, Err(CredentialFault::Empty { .. })));
        tokio::fs::write(file.path(), "one\r\nnot this").await.unwrap();
        assert_eq!(source.read().await.unwrap(), password("me", "one"));
        tokio::fs::write(file.path(), "two").await.unwrap();
        assert_eq!(source.read().await.unwrap(), password("me", "two"));
        drop(file);
        assert!(matches!(source.read().await, Err(CredentialFault::Unreadable { .. })));
        assert!(!format!("{:?}", password("me", "canary")).contains("canary"));
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
            let result = source(&config::Credentials::DockerConfig { path }, "reg.example", 443).read().await;
            let message = result.unwrap_err().to_string();
            assert!(!message.contains("canary"), "{message}");
        }
    }

    #[test]
    fn where_docker_keeps_its_config() {
        let from = |set: &'static [(&str, &str)]| {
            default_docker_config(move |name| set.iter().find(|(known, _)| *known == name).map(|(_, path)| path.into()))
        };
        assert_eq!(from(&[("DOCKER_CONFIG", "/d"), ("HOME", "/h")]).unwrap(), Path::new("/d/config.json"));
        assert_eq!(from(&[("DOCKER_CONFIG", ""), ("HOME", "/h")]).unwrap(), Path::new("/h/.docker/config.json"));
        assert!(from(&[]).is_err());
    }

    /// A helper as a shell script; run by its path, because changing `PATH` is not sound in a test with threads.
    async fn helper(script: &str) -> Result<Option<Credential>, HelperFault> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("helper");
        tokio::fs::write(&path, format!("#!/bin/sh\n{script}")).await.unwrap();
        tokio::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).await.unwrap();
        // Another thread that forks while the script is still open for writing makes the first start fail.
        for _ in 0..100 {
            match run_helper(path.to_str().unwrap(), "reg.example").await {
                Err(HelperFault::Start(error)) if error.to_string().contains("busy") => tokio::task::yield_now().await,
                result => return result,
            }
        }
        panic!("the helper stays busy")
    }

    #[tokio::test]
    async fn helpers_speak_the_protocol() {
        let echo = r#"[ "$1" = get ] && printf '{"ServerURL":"%s","Username":"u-%s","Secret":"s"}' x "$(cat)""#;
        assert_eq!(helper(echo).await.unwrap(), Some(password("u-reg.example", "s")));
        let identity = r#"echo '{"Username":"<token>","Secret":"t"}'"#;
        assert_eq!(helper(identity).await.unwrap(), Some(Credential::Identity(Secret::new("t"))));
        assert_eq!(helper("echo credentials not found in native keychain; exit 1").await.unwrap(), None);
        let failed = helper("echo 'no\tkeychain'; exit 1").await.unwrap_err();
        assert_eq!(failed.to_string(), "failed: no keychain");
        assert!(matches!(helper("yes").await, Err(HelperFault::Malformed)), "endless output is cut off");
        assert!(matches!(helper("echo '[1]'").await, Err(HelperFault::Malformed)));
    }

    #[tokio::test]
    async fn helpers_have_plain_names_and_must_exist() {
        let run = |name: &str| {
            let source = source(&config::Credentials::Helper { name: name.into() }, "registry-1.docker.io", 443);
            async move { source.read().await.unwrap_err().to_string() }
        };
        assert!(run("../../bin/sh").await.contains("not a valid name"));
        assert!(run("surely-not-installed").await.contains("does not start"));
        assert_eq!(source(&config::Credentials::Auto, "docker.io", 443).server(), HUB_KEY);
    }
}
