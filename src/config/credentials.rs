//! Who pulls from an upstream: the sources of credentials, and how they are written (`credentials = { from = "…", … }`).

use std::path::{Path, PathBuf};

use super::BaseUrl;
use super::error::Fault;
use super::file::{CredentialsTable, Scalar};
use super::layer::{path, text, value};
use super::place::{KeyPath, Problems};

const FROM: &str = "a source of credentials: write \"auto\", \"anonymous\", \"client\", \"static\" (username, password_file), \"docker-config\" (path), \"helper\" (name), \"azure\" (tenant, client_id, secret_file) or \"ecr\"";
const NO_FROM: &str = "from, such as from = \"static\"";
const NO_USERNAME: &str = "username, which from = \"static\" needs";
const NO_PASSWORD_FILE: &str =
    "password_file, the path of a file whose first line is the password, which from = \"static\" needs";
const NO_NAME: &str = "name, which from = \"helper\" needs: \"pass\" for the program docker-credential-pass";
const NO_TENANT: &str = "tenant, which from = \"azure\" needs: the id or domain name of the Entra directory";
const NO_CLIENT_ID: &str = "client_id, which from = \"azure\" needs: the application id of the service principal";
const NO_SECRET_FILE: &str =
    "secret_file, the path of a file whose first line is the service principal's secret, which from = \"azure\" needs";
const NO_REGION: &str =
    "region, such as region = \"eu-central-1\", which from = \"ecr\" needs where it does not follow from the URL";
const HALF_KEYS: &str = "access_key_id and secret_file are written both, or neither: then the keys are those of AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or of ~/.aws/credentials";
const LONE_TOKEN: &str = "session_token_file belongs to access_key_id and secret_file";
const HELPER: &str = "the name of a credential helper: write NAME for the program docker-credential-NAME, without path";
const USERNAME: &str = "an account name: it must not be empty nor contain a colon";
const TENANT: &str =
    "a tenant: write the id or domain name of the Entra directory, such as \"contoso.onmicrosoft.com\"";
const CLIENT_ID: &str = "a client id: write the application id, such as \"11111111-2222-3333-4444-555555555555\"";
const REGION: &str = "a region: write it as AWS does, such as \"eu-central-1\"";
const KEY_ID: &str = "an access key's id, such as \"AKIAIOSFODNN7EXAMPLE\"";

/// Who pulls from an upstream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Credentials {
    /// The caller where upstream wants to know who asks; what it gives to everybody is public.
    Auto,
    /// Nobody in particular.
    Anonymous,
    /// The caller, always: nothing is public.
    Client,
    /// An account: name, and a file whose first line is the password.
    Static {
        /// Account name.
        username: String,
        /// File with the password; read at each token request, so it can be rotated.
        password_file: PathBuf,
    },
    /// A `config.json` of docker (auths, credHelpers, credsStore, identitytoken); read at each token request.
    DockerConfig {
        /// The file; none: `$DOCKER_CONFIG/config.json`, else `~/.docker/config.json`.
        path: Option<PathBuf>,
    },
    /// A credential helper: `docker-credential-NAME`.
    Helper {
        /// NAME.
        name: String,
    },
    /// A service principal of Microsoft Entra ID, at an Azure container registry.
    Azure {
        /// The directory that it is in: a GUID or a domain name.
        tenant: String,
        /// Its application (client) id.
        client_id: String,
        /// File whose first line is its secret; read whenever a token is needed.
        secret_file: PathBuf,
        /// Where Entra ID is; it alone is shown the secret.
        authority: BaseUrl,
    },
    /// An AWS account, at its container registry (ECR).
    Ecr {
        /// The registry's region.
        region: String,
        /// Where the API of the service is; the keys sign requests to it and are shown to nobody.
        endpoint: BaseUrl,
        /// The keys.
        keys: AwsKeys,
    },
}

/// Where the keys of an AWS account are; read whenever a token is needed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AwsKeys {
    /// `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY` and `AWS_SESSION_TOKEN` of the environment, else the profile
    /// `$AWS_PROFILE` (`default`) in `$AWS_SHARED_CREDENTIALS_FILE` (`~/.aws/credentials`).
    Standard,
    /// Written in the configuration.
    Files {
        /// The access key's id.
        access_key_id: String,
        /// File whose first line is the secret access key.
        secret_file: PathBuf,
        /// File whose first line is the session token, where the keys are temporary.
        session_token_file: Option<PathBuf>,
    },
}

/// Keys, the sources that have them, and what to say where another one is meant.
type Meaning = (fn(&CredentialsTable) -> bool, &'static [&'static str], &'static str);

const MEANINGS: [Meaning; 7] = [
    (
        |table| table.username.is_some() || table.password_file.is_some(),
        &["static"],
        "username and password_file have a meaning only with from = \"static\"",
    ),
    (|table| table.path.is_some(), &["docker-config"], "path has a meaning only with from = \"docker-config\""),
    (|table| table.name.is_some(), &["helper"], "name has a meaning only with from = \"helper\""),
    (
        |table| table.tenant.is_some() || table.client_id.is_some() || table.authority.is_some(),
        &["azure"],
        "tenant, client_id and authority have a meaning only with from = \"azure\"",
    ),
    (
        |table| table.secret_file.is_some(),
        &["azure", "ecr"],
        "secret_file has a meaning only with from = \"azure\" or \"ecr\"",
    ),
    (
        |table| table.region.is_some() || table.endpoint.is_some(),
        &["ecr"],
        "region and endpoint have a meaning only with from = \"ecr\"",
    ),
    (
        |table| table.access_key_id.is_some() || table.session_token_file.is_some(),
        &["ecr"],
        "access_key_id and session_token_file have a meaning only with from = \"ecr\"",
    ),
];

/// Azure's clouds: what a registry's name ends in, and where that cloud's Entra ID is. The first is the public one.
const AUTHORITIES: [(&str, &str); 3] = [
    (".azurecr.io", AUTHORITY),
    (".azurecr.cn", "login.partner.microsoftonline.cn"),
    (".azurecr.us", "login.microsoftonline.us"),
];
/// The public cloud's, which is also that of registries under names of their own.
const AUTHORITY: &str = "login.microsoftonline.com";

/// Whether only a registry of Azure's has such a host name.
pub fn is_azure_registry(host: &str) -> bool {
    AUTHORITIES.iter().any(|(end, _)| host.ends_with(end))
}

// === impl Credentials ===

impl Credentials {
    /// Whether this is an account of ocistern's own.
    pub const fn is_own_account(&self) -> bool {
        !matches!(self, Self::Auto | Self::Anonymous | Self::Client)
    }

    /// The files that it names, by their keys.
    pub fn files(&self) -> Vec<(&'static str, &Path)> {
        match self {
            Self::Static { password_file, .. } => vec![("password_file", password_file)],
            Self::DockerConfig { path: Some(path) } => vec![("path", path)],
            Self::Azure { secret_file, .. } => vec![("secret_file", secret_file)],
            Self::Ecr { keys: AwsKeys::Files { secret_file, session_token_file, .. }, .. } => {
                let token = session_token_file.iter().map(|file| ("session_token_file", file.as_path()));
                [("secret_file", secret_file.as_path())].into_iter().chain(token).collect()
            }
            Self::Auto
            | Self::Anonymous
            | Self::Client
            | Self::DockerConfig { path: None }
            | Self::Helper { .. }
            | Self::Ecr { keys: AwsKeys::Standard, .. } => Vec::new(),
        }
    }
}

/// The credentials of an upstream at `url`.
pub(super) fn build(
    at: &KeyPath,
    table: &CredentialsTable,
    url: &BaseUrl,
    problems: &mut Problems,
) -> Option<Credentials> {
    let Some(from) = &table.from else {
        problems.add(at.clone(), Fault::Missing(NO_FROM));
        return None;
    };
    let from = from.to_string();
    for (present, sources, message) in MEANINGS {
        if present(table) && !sources.contains(&from.as_str()) {
            problems.add(at.clone(), Fault::Unfit(message));
        }
    }
    match from.as_str() {
        "auto" => Some(Credentials::Auto),
        "anonymous" => Some(Credentials::Anonymous),
        "client" => Some(Credentials::Client),
        "static" => account(at, table, problems),
        "docker-config" => {
            let path = value(problems, &at.key("path"), table.path.as_ref(), path);
            Some(Credentials::DockerConfig { path })
        }
        "helper" => {
            let name = needed(at, "name", table.name.as_ref(), NO_NAME, helper, problems);
            name.map(|name| Credentials::Helper { name })
        }
        "azure" => azure(at, table, url, problems),
        "ecr" => ecr(at, table, url, problems),
        other => {
            problems.add(at.key("from"), Fault::value(other, FROM));
            None
        }
    }
}

fn account(at: &KeyPath, table: &CredentialsTable, problems: &mut Problems) -> Option<Credentials> {
    let username = |scalar: &Scalar| {
        let name = text(scalar)?;
        if name.is_empty() || name.contains(':') { Err(Fault::value(&name, USERNAME)) } else { Ok(name) }
    };
    let username = needed(at, "username", table.username.as_ref(), NO_USERNAME, username, problems);
    let file = needed(at, "password_file", table.password_file.as_ref(), NO_PASSWORD_FILE, path, problems);
    let (username, password_file) = username.zip(file)?;
    Some(Credentials::Static { username, password_file })
}

fn helper(scalar: &Scalar) -> Result<String, Fault> {
    let name = text(scalar)?;
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    let fits = !name.is_empty() && name.bytes().all(plain) && !name.starts_with("docker-credential-");
    if fits { Ok(name) } else { Err(Fault::value(&name, HELPER)) }
}

fn azure(at: &KeyPath, table: &CredentialsTable, url: &BaseUrl, problems: &mut Problems) -> Option<Credentials> {
    // It becomes a part of a path.
    let tenant = |scalar: &Scalar| word(scalar, TENANT, |b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.'));
    let client_id = |scalar: &Scalar| word(scalar, CLIENT_ID, |b| b.is_ascii_graphic() && b != b':');
    let tenant = needed(at, "tenant", table.tenant.as_ref(), NO_TENANT, tenant, problems);
    let client_id = needed(at, "client_id", table.client_id.as_ref(), NO_CLIENT_ID, client_id, problems);
    let secret_file = needed(at, "secret_file", table.secret_file.as_ref(), NO_SECRET_FILE, path, problems);
    let authority = value(problems, &at.key("authority"), table.authority.as_ref(), |s| text(s)?.parse::<BaseUrl>());
    let authority = authority.unwrap_or_else(|| {
        let own = AUTHORITIES.into_iter().find(|(suffix, _)| url.host.ends_with(suffix));
        https(own.map_or(AUTHORITY, |(_, authority)| authority))
    });
    let ((tenant, client_id), secret_file) = tenant.zip(client_id).zip(secret_file)?;
    Some(Credentials::Azure { tenant, client_id, secret_file, authority })
}

fn ecr(at: &KeyPath, table: &CredentialsTable, url: &BaseUrl, problems: &mut Problems) -> Option<Credentials> {
    let region = |scalar: &Scalar| word(scalar, REGION, |b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    let key_id = |scalar: &Scalar| word(scalar, KEY_ID, |b| b.is_ascii_alphanumeric() || b == b'_');
    let known = Place::of(&url.host);
    let written = value(problems, &at.key("region"), table.region.as_ref(), region);
    if table.region.is_none() && known.is_none() {
        problems.add(at.clone(), Fault::Missing(NO_REGION));
    }
    let endpoint = value(problems, &at.key("endpoint"), table.endpoint.as_ref(), |s| text(s)?.parse::<BaseUrl>());
    let id = value(problems, &at.key("access_key_id"), table.access_key_id.as_ref(), key_id);
    let secret = value(problems, &at.key("secret_file"), table.secret_file.as_ref(), path);
    let session = value(problems, &at.key("session_token_file"), table.session_token_file.as_ref(), path);
    if table.access_key_id.is_some() != table.secret_file.is_some() {
        problems.add(at.clone(), Fault::Unfit(HALF_KEYS));
    } else if table.session_token_file.is_some() && table.secret_file.is_none() {
        problems.add(at.clone(), Fault::Unfit(LONE_TOKEN));
    }
    let keys = match id.zip(secret) {
        Some((access_key_id, secret_file)) => {
            AwsKeys::Files { access_key_id, secret_file, session_token_file: session }
        }
        None => AwsKeys::Standard,
    };
    let fips = known.as_ref().is_some_and(|place| place.fips);
    let region = written.or(known.map(|place| place.region))?;
    let endpoint = endpoint.unwrap_or_else(|| {
        let service = if fips { "ecr-fips" } else { "api.ecr" };
        let domain = if region.starts_with("cn-") { "amazonaws.com.cn" } else { "amazonaws.com" };
        https(&format!("{service}.{region}.{domain}"))
    });
    Some(Credentials::Ecr { region, endpoint, keys })
}

/// What the host of a registry says: `ACCOUNT.dkr.ecr.REGION.amazonaws.com`, `.com.cn`, `dkr.ecr-fips`, and
/// `ACCOUNT.dkr-ecr.REGION.on.aws`.
struct Place {
    region: String,
    fips: bool,
}

impl Place {
    fn of(host: &str) -> Option<Self> {
        let parts: Vec<&str> = host.split('.').collect();
        let (service, region) = match parts.as_slice() {
            [_, "dkr", service, region, "amazonaws", "com"] | [_, "dkr", service, region, "amazonaws", "com", "cn"] => {
                (*service, *region)
            }
            [_, "dkr-ecr", region, "on", "aws"] => ("ecr", *region),
            [_, "dkr-ecr-fips", region, "on", "aws"] => ("ecr-fips", *region),
            _ => return None,
        };
        matches!(service, "ecr" | "ecr-fips").then(|| Self { region: region.to_owned(), fips: service == "ecr-fips" })
    }
}

/// A key without which the source is nothing.
fn needed<T>(
    at: &KeyPath,
    key: &str,
    scalar: Option<&Scalar>,
    missing: &'static str,
    parse: impl Fn(&Scalar) -> Result<T, Fault>,
    problems: &mut Problems,
) -> Option<T> {
    if scalar.is_none() {
        problems.add(at.clone(), Fault::Missing(missing));
    }
    value(problems, &at.key(key), scalar, parse)
}

fn word(scalar: &Scalar, want: &'static str, plain: impl Fn(u8) -> bool) -> Result<String, Fault> {
    let word = text(scalar)?;
    if !word.is_empty() && word.bytes().all(plain) { Ok(word) } else { Err(Fault::value(&word, want)) }
}

fn https(host: &str) -> BaseUrl {
    BaseUrl { https: true, host: host.to_owned(), port: 443, prefix: String::new() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn of(host: &str, keys: &str) -> Credentials {
        let config = Config::from_toml(&format!("[upstream.\"{host}\"]\ncredentials = {{ {keys} }}")).unwrap();
        config.upstreams[&host.parse().unwrap()].credentials.clone()
    }

    #[test]
    fn a_service_principal_has_the_authority_of_its_cloud() {
        let keys = "from = \"azure\", tenant = \"t.example\", client_id = \"id\", secret_file = \"/s\"";
        let authority = |host: &str, keys: &str| match of(host, keys) {
            Credentials::Azure { authority, tenant, client_id, secret_file } => {
                assert_eq!((tenant.as_str(), client_id.as_str()), ("t.example", "id"));
                assert_eq!(secret_file, Path::new("/s"));
                authority.to_string()
            }
            other => panic!("{other:?}"),
        };
        assert_eq!(authority("my.azurecr.io", keys), "https://login.microsoftonline.com");
        assert_eq!(authority("my.azurecr.cn", keys), "https://login.partner.microsoftonline.cn");
        assert_eq!(authority("my.azurecr.us", keys), "https://login.microsoftonline.us");
        let keys = format!("{keys}, authority = \"http://127.0.0.1:9/x/\"");
        assert_eq!(authority("my.azurecr.io", &keys), "http://127.0.0.1:9/x");
    }

    #[test]
    fn a_region_follows_from_the_registry() {
        let ecr = |host: &str, keys: &str| match of(host, keys) {
            Credentials::Ecr { region, endpoint, keys } => (region, endpoint.to_string(), keys),
            other => panic!("{other:?}"),
        };
        for (host, region, endpoint) in [
            ("1.dkr.ecr.eu-central-1.amazonaws.com", "eu-central-1", "https://api.ecr.eu-central-1.amazonaws.com"),
            (
                "1.dkr.ecr-fips.us-gov-west-1.amazonaws.com",
                "us-gov-west-1",
                "https://ecr-fips.us-gov-west-1.amazonaws.com",
            ),
            ("1.dkr.ecr.cn-north-1.amazonaws.com.cn", "cn-north-1", "https://api.ecr.cn-north-1.amazonaws.com.cn"),
            ("1.dkr-ecr.us-east-1.on.aws", "us-east-1", "https://api.ecr.us-east-1.amazonaws.com"),
        ] {
            let (found, at, keys) = ecr(host, "from = \"ecr\"");
            assert_eq!((found.as_str(), at.as_str()), (region, endpoint), "{host}");
            assert!(matches!(keys, AwsKeys::Standard));
        }
        let keys = "from = \"ecr\", region = \"eu-west-1\", endpoint = \"http://127.0.0.1:9\", access_key_id = \"AKIA\", secret_file = \"/s\", session_token_file = \"/t\"";
        let (region, endpoint, keys) = ecr("mirror.example", keys);
        assert_eq!((region.as_str(), endpoint.as_str()), ("eu-west-1", "http://127.0.0.1:9"));
        assert!(
            matches!(keys, AwsKeys::Files { access_key_id, session_token_file: Some(_), .. } if access_key_id == "AKIA")
        );
    }
}
