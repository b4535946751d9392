//! The validated configuration: what constructors read. Made from flags, environment, file and defaults.

mod builtin;
mod credentials;
mod doubts;
mod error;
mod file;
mod fills;
mod flags;
mod images;
mod keys;
mod layer;
mod listeners;
#[cfg(test)]
mod mistakes;
mod parse;
mod passed;
mod pattern;
mod pin;
mod place;
mod reload;
mod scalar;
mod scrub;
mod show;
#[cfg(test)]
mod tests;
mod transfer;
mod upstreams;
mod url;

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

pub use self::credentials::{AwsKeys, Credentials, is_azure_registry};
pub use self::doubts::Doubt;
pub use self::error::{ConfigError, Fault, Problem};
pub use self::fills::{Abandon, RangeFill, UnverifiedRanges};
pub use self::flags::Flags;
pub use self::images::{ImageName, ImagePattern, InvalidPattern};
pub use self::parse::{duration, show_duration, size};
pub use self::passed::is_passed_file;
pub use self::pin::{Pin, PinError, Pinned};
pub use self::place::KeyPath;
use self::place::Written;
pub use self::reload::{KnownUrls, Reload, ReturnedElsewhere};
pub use self::scrub::{Hours, Scrub, TimeOfDay, rate};
pub use self::transfer::{MaxRate, Transfer};
pub use self::url::BaseUrl;
use crate::oci::UpstreamName;

/// Where clients connect if nobody said.
pub(crate) const DEFAULT_LISTEN: [SocketAddr; 2] =
    [SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 5000), SocketAddr::new(IpAddr::V6(Ipv6Addr::LOCALHOST), 5000)];
/// Where metrics and health are if nobody said.
const DEFAULT_ADMIN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 5080);
/// How long a tag is served before it is asked again.
const DEFAULT_TAGS: Duration = Duration::from_mins(5);
/// How long a public repository counts as public.
const DEFAULT_PUBLIC: Duration = Duration::from_mins(10);
/// How long upstream's yes to a caller is remembered.
const DEFAULT_ACCESS: Duration = Duration::from_mins(1);
const DEFAULT_RESERVE: u8 = 50;
/// Shortest window of the minimum rate.
const SHORTEST_WINDOW: Duration = Duration::from_millis(100);
/// The file that is read where no other one is.
const SYSTEM_FILE: &str = "/etc/ocistern/config.toml";

/// Everything the daemon was told, validated.
#[derive(Debug, Clone)]
pub struct Config {
    /// Directory of the store.
    pub root: PathBuf,
    /// Where registry clients connect; at least one.
    pub listeners: Vec<Listener>,
    /// Metrics, health and the admin socket.
    pub admin: Admin,
    /// What is kept, and how.
    pub store: Store,
    /// All upstreams by name, built-in ones included.
    pub upstreams: BTreeMap<UpstreamName, Arc<Upstream>>,
    /// Names whose content is never evicted.
    pub pins: Vec<Pin>,
    /// Limits on clients, and on all upstreams together.
    pub limits: Limits,
    /// What the log looks like.
    pub log: Log,
    /// The file that was read; none: there was none.
    pub source: Option<PathBuf>,
    /// Where the keys stand.
    written: Arc<Written>,
}

/// One address on which clients are served.
#[derive(Debug, Clone)]
pub struct Listener {
    /// Where to listen.
    pub address: Address,
    /// The upstream that a name without a host means; none: such names answer 404.
    pub default_upstream: Option<UpstreamName>,
    /// What clients see, where ocistern stands behind another proxy: `https://cache.example`, no trailing slash.
    pub public_url: Option<String>,
    /// `Host` header (lower case, with the port if it is not the scheme's) → upstream: transparent host names.
    pub hostnames: BTreeMap<String, UpstreamName>,
    /// Certificates and keys; none: plain HTTP.
    pub tls: Option<ListenerTls>,
    /// File with names and bcrypt hashes of who may use ocistern's own accounts.
    pub htpasswd: Option<PathBuf>,
    /// Whether callers on other machines may show credentials without TLS.
    pub allow_plain_credentials: bool,
    /// Left out, not an error, where the machine does not have the address: the IPv6 loopback beside the IPv4 one.
    pub optional: bool,
}

/// An address to listen on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// An IP address and port; port 0 takes a free one.
    Tcp(SocketAddr),
    /// A Unix socket's path (`unix:/path`).
    Unix(PathBuf),
}

impl Address {
    /// Whether the system gives only one of the two: they are equal, or one is all addresses of the other's family. (Whether
    /// `[::]` has those of IPv4 too is the system's to say.)
    fn overlaps(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Tcp(one), Self::Tcp(other)) => {
                let is_all = one.ip().is_unspecified() || other.ip().is_unspecified();
                let is_same = one.ip() == other.ip() || (is_all && one.is_ipv4() == other.is_ipv4());
                is_same && one.port() == other.port() && one.port() != 0
            }
            _ => self == other,
        }
    }
}

/// As the configuration has it.
impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// TLS of a listener: PEM files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListenerTls {
    /// At least one. The first is shown to clients that name no host, or one that none of them is for.
    pub certificates: Vec<CertificateFiles>,
    /// Only clients with a certificate of this CA are served.
    pub client_ca: Option<PathBuf>,
}

/// A certificate and its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateFiles {
    /// Certificate chain, leaf first.
    pub certificate: PathBuf,
    /// Private key.
    pub key: PathBuf,
}

/// The admin listener.
#[derive(Debug, Clone)]
pub struct Admin {
    /// TCP address; none: no TCP admin listener.
    pub address: Option<SocketAddr>,
    /// Bearer token that callers from elsewhere than loopback must show; none: they are refused.
    pub token_file: Option<PathBuf>,
    /// Path of the admin socket; none: `ROOT/ocistern.sock`.
    pub socket: Option<PathBuf>,
}

/// The store's limits.
#[derive(Debug, Clone)]
pub struct Store {
    /// How much it may hold.
    pub capacity: Capacity,
    /// What a publication waits for.
    pub durability: Durability,
    /// Content that nobody has used for longer is removed; none: only for want of room.
    pub max_age: Option<Duration>,
    /// Largest manifest in bytes (default 4 MiB, as the specification asks registries to accept at least).
    pub max_manifest: u64,
    /// How what is stored is hashed again in the background; none: it is not.
    pub scrub: Option<Scrub>,
    /// Whether a request for a part of a blob brings the whole.
    pub range_fill: RangeFill,
    /// What is done with a part of a blob that is not verified yet; with `Wait`, `range_fill` is `Always`.
    pub unverified_ranges: UnverifiedRanges,
    /// What becomes of a download that nobody waits for any more.
    pub abandon: Abandon,
}

/// How much the store may hold.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Capacity {
    /// So many bytes.
    Bytes(u64),
    /// So many percent of the file system's size, 1 to 100.
    Percent(u8),
    /// The lesser of 100 GiB and 50 % of the file system.
    Default,
}

/// What a publication waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// The data is on the disk before the name exists.
    Strict,
    /// Nothing; after an unclean stop every blob is verified before it is served again.
    Fast,
}

/// One upstream registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upstream {
    /// Its name: directory, label, first part of a prefixed name.
    pub name: UpstreamName,
    /// Where it is.
    pub url: BaseUrl,
    /// Who pulls.
    pub credentials: Credentials,
    /// How long a tag is served before it is asked again.
    pub tags: TagPolicy,
    /// First match wins; none: `tags`.
    pub rules: Vec<Rule>,
    /// Whether one-part names get `library/`.
    pub library: bool,
    /// PEM file with CAs to trust besides the platform's.
    pub ca: Option<PathBuf>,
    /// Hosts (or host:port) besides its own that its token realm may lie on.
    pub token_hosts: Vec<String>,
    /// Addresses (`IP:PORT` or `HOST:PORT`) to dial instead of what the system resolves; name, SNI and certificate
    /// stay those of `url`.
    pub connect: Vec<String>,
    /// Where the same content is besides `url`: asked without any credential, and only for what everybody may have.
    pub mirrors: Vec<BaseUrl>,
    /// How content is fetched from `url` and `mirrors`.
    pub transfer: Transfer,
    /// Who pushes and deletes.
    pub push: PushBy,
    /// How long a repository that upstream showed to everybody counts as public.
    pub public_for: Duration,
    /// How long upstream's yes to a caller is remembered; at most a minute unless the operator says more.
    pub access_ttl: Duration,
    /// How much longer that yes holds while upstream cannot be asked.
    pub access_stale: Duration,
    /// So many percent of its rate limit are left to clients by what nobody waits for; 0 to 100.
    pub reserve: u8,
    /// Whether callers' credentials go to this upstream where it is neither the `Host`'s nor the listener's default.
    pub relay_credentials: bool,
    /// Never asked at all.
    pub sealed: bool,
}

/// Who pushes to an upstream, and deletes there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PushBy {
    /// The caller, with a credential of its own.
    Client,
    /// ocistern's own account, for callers that the listener trusts.
    Shared,
    /// Nobody.
    Off,
}

/// How long a tag is served before upstream is asked whether it moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TagPolicy {
    /// Asked every time.
    Always,
    /// Never asked again once it is known.
    Immutable,
    /// Asked when older than this.
    For(Duration),
    /// Upstream is not asked, also not for a tag that is unknown.
    Sealed,
}

/// An exception from an upstream's tag policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Pattern of repositories: `*` stays within a path part, `**` crosses; none: all.
    pub repository: Option<String>,
    /// Pattern of tags, `*` for anything; none: all.
    pub tag: Option<String>,
    /// What holds for them.
    pub tags: TagPolicy,
}

/// Limits on clients, and on all upstreams together; each has a default that suits a build farm.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Connections at once, all listeners together.
    pub connections: usize,
    /// Connections at once from one address (loopback is not counted).
    pub connections_per_address: usize,
    /// Time for the TLS handshake, and after it for the first byte of a request.
    pub first_byte: Duration,
    /// Time for a whole request head.
    pub header: Duration,
    /// Time that a connection may stay open between requests.
    pub idle: Duration,
    /// Slowest client, bytes a second, measured over `min_rate_window` while bytes are waiting for it or it is waited for.
    pub min_rate: u64,
    /// See `min_rate`.
    pub min_rate_window: Duration,
    /// How long a stop waits for running answers.
    pub drain: Duration,
    /// Bytes a second from all upstreams together. Changeable while ocistern runs.
    pub max_rate: MaxRate,
}

/// The slowest client that is served.
#[derive(Debug, Clone, Copy)]
pub struct Slowest {
    /// Bytes in a window.
    pub bytes: u64,
    /// Its length.
    pub window: Duration,
}

/// The log.
#[derive(Debug, Clone)]
pub struct Log {
    /// Human-readable, JSON, or by whether standard error is a terminal.
    pub format: LogFormat,
    /// A filter as of `tracing_subscriber::EnvFilter`, such as `info,ocistern=debug`.
    pub filter: String,
    /// Where traces are sent, if they are.
    pub otlp: Option<Otlp>,
}

/// Where traces are sent, and how many of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Otlp {
    /// What takes them by OTLP over HTTP, below `/v1/traces`.
    pub receiver: BaseUrl,
    /// How many of a hundred are kept, of those that no client has begun.
    pub percent: u8,
}

/// Form of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// `Human` on a terminal, else `Json`.
    Auto,
    /// One readable line an event.
    Human,
    /// One JSON object an event.
    Json,
}

// === impl Config ===

impl Config {
    /// Flags over environment over file over defaults. `env` looks up a variable of the environment.
    ///
    /// # Errors
    /// All that does not fit, each with its place, key and what to write instead.
    pub fn load(flags: &Flags, env: impl Fn(&str) -> Option<String>) -> Result<Self, ConfigError> {
        layer::load(flags, &env, Path::new(SYSTEM_FILE))
    }

    /// A file's text alone, over the defaults, without flags and environment. Paths stay as they are written.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn from_toml(text: &str) -> Result<Self, ConfigError> {
        layer::from_text(text)
    }

    /// Where a daemon's store and socket are by flags and environment alone, and otherwise the defaults: for who has something
    /// to ask it, whatever is wrong with the file. The second is whether flags or environment name the root.
    pub fn without_file(flags: &Flags, env: impl Fn(&str) -> Option<String>) -> Result<(Self, bool), ConfigError> {
        layer::without_file(flags, &env)
    }

    /// `FILE:LINE` of a key, or of the innermost table around it that is written; none: it is not in the file.
    pub fn place_of(&self, key: &KeyPath) -> Option<String> {
        self.written.document.place_of(key)
    }

    /// The key of the table that a listener is from; the order need not be that of the file, which may have none.
    pub fn key_of_listener(&self, index: usize) -> KeyPath {
        let table = self.written.listeners.get(index).copied().flatten();
        KeyPath::dotted("listener").index(table.unwrap_or(index))
    }
}

// === impl Listener ===

impl Listener {
    /// The upstreams that its clients mean without naming them.
    fn upstreams(&self) -> impl Iterator<Item = &UpstreamName> {
        self.default_upstream.iter().chain(self.hostnames.values())
    }

    /// The host names by which the configuration says that clients come here, without ports: that of `public_url`, and those
    /// of `hostnames`.
    pub fn names(&self) -> Vec<String> {
        let public = self.public_url.as_deref().and_then(|url| url.split_once("://")).map(|(_, rest)| rest);
        let hosts = public.into_iter().chain(self.hostnames.keys().map(String::as_str));
        let name = |host: &str| {
            let host = host.split('/').next().unwrap_or_default();
            let bare = match host.rsplit_once(':') {
                // The last colon of an IPv6 address is no port's.
                Some((name, port)) if !port.contains(']') => name,
                _ => host,
            };
            bare.trim_start_matches('[').trim_end_matches(']').to_owned()
        };
        hosts.map(name).collect()
    }
}

// === impl Store ===

impl Default for Store {
    fn default() -> Self {
        Self {
            capacity: Capacity::Default,
            durability: Durability::Strict,
            max_age: None,
            max_manifest: 4 << 20,
            scrub: Some(Scrub::default()),
            range_fill: RangeFill::default(),
            unverified_ranges: UnverifiedRanges::default(),
            abandon: Abandon::default(),
        }
    }
}

// === impl Limits ===

impl Limits {
    /// What `min_rate` and `min_rate_window` say.
    pub fn slowest(&self) -> Slowest {
        // A window of nothing would be over before it began.
        let window = self.min_rate_window.max(SHORTEST_WINDOW);
        let millis = u64::try_from(window.as_millis()).unwrap_or(u64::MAX);
        Slowest { bytes: self.min_rate.saturating_mul(millis) / 1000, window }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 8192,
            connections_per_address: 1024,
            first_byte: Duration::from_secs(10),
            header: Duration::from_secs(15),
            idle: Duration::from_secs(75),
            min_rate: 1 << 10,
            min_rate_window: Duration::from_mins(1),
            drain: Duration::from_secs(30),
            max_rate: MaxRate::default(),
        }
    }
}

// === impl Otlp ===

impl Otlp {
    /// The part that is kept, from 0 to 1.
    pub fn sample(&self) -> f64 {
        f64::from(self.percent) / 100.0
    }
}

// === impl Log ===

impl Default for Log {
    fn default() -> Self {
        Self { format: LogFormat::Auto, filter: "info".to_owned(), otlp: None }
    }
}
