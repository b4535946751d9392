//! ocistern's own account at an upstream: where it is written, and what is shown for it.
//!
//! Files and helpers are asked anew for every token, so a rotated password needs no restart. What a cloud gives for a
//! time is kept for that time (`cloud`).

mod aws;
mod azure;
mod cloud;
mod docker;
mod ecr;
mod helper;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::io::AsyncReadExt;

pub use self::helper::HelperFault;

use self::azure::Azure;
use self::docker::Names;
use self::ecr::Ecr;
use super::client::TrustError;
use super::error::{Cause, Fault};
use super::exchange::Endpoint;
use super::origin::Origin;
use super::wire::Wire;
use crate::config;

/// Largest password file, and largest answer of a helper.
const MAX_SECRET: u64 = 64 * 1024;
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
#[derive(Debug)]
pub(crate) struct Source {
    from: config::Credentials,
    names: Names,
    cloud: Option<Cloud>,
}

/// Sources that are services themselves.
#[derive(Debug)]
enum Cloud {
    Azure(Azure),
    Ecr(Ecr),
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
    /// A cloud's service does not accept the account.
    #[error("{host} refuses the account: {message}")]
    Refused {
        /// The service.
        host: String,
        /// Its words.
        message: String,
    },
    /// There are no AWS keys in any of the usual places.
    #[error(
        "there are no AWS keys: set access_key_id and secret_file, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the environment, or write the profile {profile} into {path}"
    )]
    NoKeys {
        /// The file that would have been read.
        path: PathBuf,
        /// What was looked for in it.
        profile: String,
    },
    /// Name or password cannot be written in a header.
    #[error("the name contains a colon, or the credential characters that HTTP cannot carry")]
    Unusable,
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
    /// `wire_to` makes what asks a cloud's service, which the operator named and no upstream did.
    pub(crate) fn new(
        from: &config::Credentials,
        upstream: &Origin,
        wire_to: impl FnOnce(Origin) -> Result<Wire, TrustError>,
    ) -> Result<Self, TrustError> {
        let cloud = match from {
            config::Credentials::Azure { tenant, client_id, secret_file, authority } => {
                let wire = wire_to(Origin::of_upstream(authority))?;
                Some(Cloud::Azure(Azure::new(tenant, client_id, secret_file, authority, wire)))
            }
            config::Credentials::Ecr { region, endpoint, keys } => {
                let wire = wire_to(Origin::of_upstream(endpoint))?;
                Some(Cloud::Ecr(Ecr::new(region, endpoint, keys, wire)))
            }
            _ => None,
        };
        Ok(Self { from: from.clone(), names: Names::of(upstream), cloud })
    }

    /// Whether an account is configured at all.
    pub(crate) fn is_configured(&self) -> bool {
        self.from.is_own_account()
    }

    /// The credential as it is now, to get a token of `endpoint`, or to be shown as it is. `wire` reaches the upstream
    /// and its token endpoints.
    pub(crate) async fn read(&self, wire: &Wire, endpoint: Option<&Endpoint>) -> Result<Credential, Fault> {
        match (&self.cloud, endpoint) {
            (Some(Cloud::Azure(azure)), Some(endpoint)) => azure.read(wire, endpoint).await,
            // The secret is Entra's alone to see.
            (Some(Cloud::Azure(_)), None) => Ok(Credential::None),
            (Some(Cloud::Ecr(ecr)), _) => ecr.read().await,
            (None, _) => self.local().await.map_err(Fault::Credential),
        }
    }

    /// Forgets what a cloud gave, because the upstream refused it; not what is only seconds old.
    /// False: there was nothing to forget.
    pub(crate) fn forget(&self) -> bool {
        match &self.cloud {
            Some(Cloud::Azure(azure)) => azure.forget(),
            Some(Cloud::Ecr(ecr)) => ecr.forget(),
            None => false,
        }
    }

    /// From a file or a program of this machine.
    async fn local(&self) -> Result<Credential, CredentialFault> {
        match &self.from {
            config::Credentials::Static { username, password_file } => {
                let password = read_secret(password_file).await?;
                Ok(Credential::Password { username: username.clone(), password })
            }
            config::Credentials::DockerConfig { path } => docker::read(path.as_deref(), &self.names).await,
            config::Credentials::Helper { name } => {
                let server = self.names.server();
                helper::ask(name, server).await?.ok_or_else(|| CredentialFault::Helper {
                    name: name.clone(),
                    fault: HelperFault::NoEntry(server.to_owned()),
                })
            }
            config::Credentials::Auto
            | config::Credentials::Anonymous
            | config::Credentials::Client
            | config::Credentials::Azure { .. }
            | config::Credentials::Ecr { .. } => Ok(Credential::None),
        }
    }
}

/// The first line of a file.
async fn read_secret(path: &Path) -> Result<Secret, CredentialFault> {
    let text = read_file(path, MAX_SECRET).await?;
    let secret = text.lines().next().unwrap_or_default().trim_end_matches('\r');
    if secret.is_empty() { Err(CredentialFault::Empty { path: path.to_owned() }) } else { Ok(Secret::new(secret)) }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_password_is_read_each_time() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let from = config::Credentials::Static { username: "me".into(), password_file: file.path().to_owned() };
        let origin = Origin { https: true, host: "reg.example".into(), port: 443 };
        let source = Source::new(&from, &origin, |_| panic!("no cloud is meant")).unwrap();
        let password = |text: &str| Credential::Password { username: "me".into(), password: Secret::new(text) };
        assert!(matches!(source.local().await, Err(CredentialFault::Empty { .. })));
        tokio::fs::write(file.path(), "one\r\nnot this").await.unwrap();
        assert_eq!(source.local().await.unwrap(), password("one"));
        tokio::fs::write(file.path(), "two").await.unwrap();
        assert_eq!(source.local().await.unwrap(), password("two"));
        drop(file);
        assert!(matches!(source.local().await, Err(CredentialFault::Unreadable { .. })));
        assert!(!format!("{:?}", password("canary")).contains("canary"));
    }
}
