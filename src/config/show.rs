//! The effective configuration as TOML: what `config show` prints. Reading it back gives the same configuration.
//!
//! Nothing secret is in it: URLs with passwords are refused, and of password and token files only the paths are known.

use std::fmt;
use std::path::Path;

use super::file::{
    AdminTable, CertificateTable, CredentialsTable, File, LimitsTable, ListenerTable, LogTable, PinTable, RuleTable,
    Scalar, StoreTable, TlsTable, UpstreamTable,
};
use super::parse::{show_address, show_duration, show_size, show_tags};
use super::{
    Admin, AwsKeys, Capacity, CertificateFiles, Config, Credentials, Durability, Limits, Listener, ListenerTls, Log,
    LogFormat, Pin, Pinned, PushBy, Rule, Scrub, Store, Upstream,
};

/// Who reads it would take the line for the value of the file that was read.
const BUILTIN: (&str, &str) = (
    "\nbuiltin_upstreams = false\n",
    "\nbuiltin_upstreams = false # in this output: all upstreams that are in effect, built-in ones too, are written out below\n",
);

// === impl Config ===

impl Config {
    /// The configuration as TOML, all defaults written out.
    pub fn show(&self) -> String {
        let file = File {
            root: path(&self.root),
            // Those that are in use are all written out below: see `BUILTIN`.
            builtin_upstreams: Some(Scalar::Bool(false)),
            listener: self.listeners.iter().map(listener).collect(),
            admin: admin(&self.admin),
            store: store(&self.store),
            pin: self.pins.iter().map(pin).collect(),
            limits: limits(&self.limits),
            log: log(&self.log),
            upstream: self.upstreams.iter().map(|(name, u)| (name.to_string(), upstream(u))).collect(),
        };
        // Cannot fail: every key is a text and no value is of a type that TOML does not have.
        let text = toml::to_string(&file).unwrap_or_default();
        text.replacen(BUILTIN.0, BUILTIN.1, 1)
    }
}

// Has the form that the serializer's field slots want.
#[allow(clippy::unnecessary_wraps, reason = "every field of the file is optional")]
fn text(value: impl Into<String>) -> Option<Scalar> {
    Some(Scalar::Text(value.into()))
}

fn log(log: &Log) -> LogTable {
    let receiver = log.otlp.as_ref().map_or_else(|| "off".to_owned(), |otlp| otlp.receiver.to_string());
    LogTable {
        format: text(log.format.as_str()),
        filter: text(&log.filter),
        otlp: text(receiver),
        otlp_sample: log.otlp.as_ref().and_then(|otlp| text(format!("{}%", otlp.percent))),
    }
}

fn path(path: &Path) -> Option<Scalar> {
    text(path.to_string_lossy())
}

#[allow(clippy::unnecessary_wraps, reason = "every field of the file is optional")]
fn number(value: usize) -> Option<Scalar> {
    Some(Scalar::Integer(i64::try_from(value).unwrap_or(i64::MAX)))
}

fn listener(listener: &Listener) -> ListenerTable {
    ListenerTable {
        address: text(show_address(&listener.address)),
        default_upstream: text(listener.default_upstream.as_ref().map_or("", |name| name.as_str())),
        public_url: listener.public_url.as_ref().and_then(text),
        hostnames: listener.hostnames.iter().map(|(host, name)| (host.clone(), name.to_string())).collect(),
        tls: listener.tls.as_ref().map(listener_tls),
        htpasswd: listener.htpasswd.as_deref().and_then(path),
        allow_plain_credentials: Some(Scalar::Bool(listener.allow_plain_credentials)),
    }
}

fn listener_tls(tls: &ListenerTls) -> TlsTable {
    let client_ca = tls.client_ca.as_deref().and_then(path);
    match tls.certificates.as_slice() {
        [only] => {
            TlsTable { certificate: path(&only.certificate), key: path(&only.key), certificates: None, client_ca }
        }
        several => {
            let table = |files: &CertificateFiles| CertificateTable {
                certificate: path(&files.certificate),
                key: path(&files.key),
            };
            TlsTable { certificates: Some(several.iter().map(table).collect()), client_ca, ..TlsTable::default() }
        }
    }
}

fn admin(admin: &Admin) -> AdminTable {
    AdminTable {
        address: text(admin.address.map_or_else(|| "off".to_owned(), |address| address.to_string())),
        token_file: admin.token_file.as_deref().and_then(path),
        socket: admin.socket.as_deref().and_then(path),
    }
}

impl fmt::Display for Capacity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes(bytes) => f.write_str(&show_size(*bytes)),
            Self::Percent(percent) => write!(f, "{percent} % of the file system"),
            Self::Default => f.write_str("100 GiB, or 50 % of the file system if that is less"),
        }
    }
}

fn store(store: &Store) -> StoreTable {
    let durability = match store.durability {
        Durability::Strict => "strict",
        Durability::Fast => "fast",
    };
    StoreTable {
        // The default depends on the file system, so it has no value to write.
        capacity: match store.capacity {
            Capacity::Bytes(bytes) => text(show_size(bytes)),
            Capacity::Percent(percent) => text(format!("{percent}%")),
            Capacity::Default => None,
        },
        durability: text(durability),
        max_age: text(store.max_age.map_or_else(|| "off".to_owned(), show_duration)),
        max_manifest: text(show_size(store.max_manifest)),
        scrub: Some(Scrub::show(store.scrub.as_ref())),
        range_fill: text(store.range_fill.to_string()),
        unverified_ranges: text(store.unverified_ranges.as_str()),
        abandon: text(store.abandon.as_str()),
    }
}

fn limits(limits: &Limits) -> LimitsTable {
    LimitsTable {
        connections: number(limits.connections),
        connections_per_address: number(limits.connections_per_address),
        first_byte: text(show_duration(limits.first_byte)),
        header: text(show_duration(limits.header)),
        idle: text(show_duration(limits.idle)),
        min_rate: text(show_size(limits.min_rate)),
        min_rate_window: text(show_duration(limits.min_rate_window)),
        drain: text(show_duration(limits.drain)),
        max_rate: text(limits.max_rate.show()),
        schedule: limits.max_rate.schedule.and_then(|hours| text(hours.to_string())),
    }
}

fn upstream(upstream: &Upstream) -> UpstreamTable {
    let transfer = &upstream.transfer;
    UpstreamTable {
        url: text(upstream.url.to_string()),
        credentials: Some(credentials(&upstream.credentials)),
        tags: text(show_tags(upstream.tags)),
        library: Some(Scalar::Bool(upstream.library)),
        ca: upstream.ca.as_deref().and_then(path),
        token_hosts: Some(upstream.token_hosts.clone()),
        connect: Some(upstream.connect.clone()),
        push: text(upstream.push.as_str()),
        public_for: text(show_duration(upstream.public_for)),
        access_ttl: text(show_duration(upstream.access_ttl)),
        access_stale: text(show_duration(upstream.access_stale)),
        reserve: text(format!("{}%", upstream.reserve)),
        relay_credentials: Some(Scalar::Bool(upstream.relay_credentials)),
        mirrors: Some(upstream.mirrors.iter().map(ToString::to_string).collect()),
        stall: text(show_duration(transfer.stall)),
        min_rate: text(show_size(transfer.min_rate)),
        resume_for: text(show_duration(transfer.resume_for)),
        blob_connections: number(transfer.blob_connections),
        max_connections: transfer.max_connections.and_then(number),
        max_rate: text(transfer.max_rate.show()),
        schedule: transfer.max_rate.schedule.and_then(|hours| text(hours.to_string())),
        rule: (!upstream.rules.is_empty()).then(|| upstream.rules.iter().map(rule).collect()),
    }
}

fn credentials(credentials: &Credentials) -> CredentialsTable {
    let from = |from: &str| CredentialsTable { from: text(from), ..CredentialsTable::default() };
    match credentials {
        Credentials::Auto => from("auto"),
        Credentials::Anonymous => from("anonymous"),
        Credentials::Client => from("client"),
        Credentials::Static { username, password_file } => {
            CredentialsTable { username: text(username), password_file: path(password_file), ..from("static") }
        }
        Credentials::DockerConfig { path: file } => {
            CredentialsTable { path: file.as_deref().and_then(path), ..from("docker-config") }
        }
        Credentials::Helper { name } => CredentialsTable { name: text(name), ..from("helper") },
        Credentials::Azure { tenant, client_id, secret_file, authority } => CredentialsTable {
            tenant: text(tenant),
            client_id: text(client_id),
            secret_file: path(secret_file),
            authority: text(authority.to_string()),
            ..from("azure")
        },
        Credentials::Ecr { region, endpoint, keys } => {
            let table = CredentialsTable { region: text(region), endpoint: text(endpoint.to_string()), ..from("ecr") };
            match keys {
                AwsKeys::Standard => table,
                AwsKeys::Files { access_key_id, secret_file, session_token_file } => CredentialsTable {
                    access_key_id: text(access_key_id),
                    secret_file: path(secret_file),
                    session_token_file: session_token_file.as_deref().and_then(path),
                    ..table
                },
            }
        }
    }
}

fn pin(pin: &Pin) -> PinTable {
    let tag = match &pin.pinned {
        Pinned::Tags(tags) => text(tags),
        // The file has no pins of digests; commands make these.
        Pinned::Digest(_) => None,
    };
    PinTable { upstream: text(pin.upstream.as_str()), repository: text(&pin.repository), tag }
}

fn rule(rule: &Rule) -> RuleTable {
    RuleTable {
        repository: rule.repository.as_ref().and_then(text),
        tag: rule.tag.as_ref().and_then(text),
        tags: text(show_tags(rule.tags)),
    }
}

// === impl PushBy ===

impl PushBy {
    /// As it is written in the file.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Shared => "shared",
            Self::Off => "off",
        }
    }
}

// === impl LogFormat ===

impl LogFormat {
    /// As it is written in the file.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Human => "human",
            Self::Json => "json",
        }
    }
}
