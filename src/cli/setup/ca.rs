//! `ocistern setup ca`: a private CA and a certificate for ocistern by it, so that registries' own names can lead here.
//!
//! The CA can sign for nothing but the names that it was made for (name constraints), so who trusts it trusts it with these
//! alone. Its key stays in the directory, for renewals: a second run makes another certificate and no other CA. The
//! server's key stays, too, so that a renewal replaces one file, and ocistern takes it up while it runs.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use jiff::{Timestamp, ToSpan as _};
use rcgen::{
    BasicConstraints, CertificateParams, CidrSubnet, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    GeneralSubtree, IsCa, Issuer, KeyPair, KeyUsagePurpose, NameConstraints, SerialNumber, date_time_ymd,
};
use rustls::pki_types::{ServerName, UnixTime};

use super::certificate::Leaf;
use super::instance::CA_FILE;
use super::{FAILED, SetupError, USAGE, complain, say};
use crate::cli::clients::folder;
use crate::config::{Address, Config, DEFAULT_LISTEN, Flags, Listener, is_azure_registry};
use crate::http::route::Directory;
use crate::oci::{Algorithm, Digest, UpstreamName};

const CA_KEY: &str = "ca.key";
const SERVER_CERTIFICATE: &str = "server.crt";
const SERVER_KEY: &str = "server.key";
/// Modes of keys, and of certificates.
const SECRET: u32 = 0o600;
const PUBLIC: u32 = 0o644;
/// How long a CA holds, and a certificate by it: short enough that renewing does not become a surprise.
const CA_DAYS: i64 = 3650;
const SERVER_DAYS: i64 = 397;
/// Valid from a day before: not every clock is right.
const BEFORE_DAYS: i64 = 1;
/// Where registries' names lead: clients know no other port for them.
const ADDRESS: &str = "0.0.0.0:443";
const OWN_PORT: &str = "# a port below 1024 is for root, unless the machine says otherwise: sysctl net.ipv4.ip_unprivileged_port_start=443\n\n";
const NO_NAMES: &str = "say for which host names: those of registries whose names are to lead to ocistern, or its own; without \
                        any, the names in the listeners' `hostnames` are taken, and there are none";

/// For which names, and where.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Host names and IP addresses [default: the names in the listeners' `hostnames`, and those of the certificate that is there]
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    /// Where the CA and the certificate are kept [default: tls beside the system's or the user's configuration of ocistern]
    #[arg(long, value_name = "DIR")]
    directory: Option<PathBuf>,
    /// The configuration file.
    #[arg(long, value_name = "FILE", help = "Configuration file of ocistern [default: as for serve]")]
    config: Option<PathBuf>,
}

/// A name that a certificate is for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Name {
    /// Lower case, perhaps with a wildcard.
    Dns(String),
    Ip(IpAddr),
}

/// Which ocistern is to use the certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Service {
    /// The machine's: `ocistern.service`, which runs as the user ocistern and may open no port below 1024 itself.
    System,
    /// This user's own.
    Own,
}

/// What was made.
#[derive(Debug, PartialEq, Eq)]
struct Made {
    /// Whether the CA is new.
    new_ca: bool,
    /// The CA ends before the certificate does.
    ca_ends: bool,
}

/// Runs the command.
pub(super) fn run(arguments: &Arguments) -> ExitCode {
    let flags = Flags { config: arguments.config.clone(), ..Flags::default() };
    let config = match Config::load(&flags, |name| std::env::var(name).ok()) {
        Ok(config) => config,
        Err(error) => return complain(USAGE, error),
    };
    let directory = arguments.directory.clone().map_or_else(default_directory, Ok);
    let directory = match directory.and_then(std::path::absolute) {
        Ok(directory) => directory,
        Err(error) => {
            return complain(USAGE, format!("the directory for the CA is not known: {error}; say --directory"));
        }
    };
    let before = match folder::read(&directory.join(SERVER_CERTIFICATE)) {
        Ok(before) => before.and_then(|text| Leaf::read(&text)),
        Err(error) => return complain(FAILED, error),
    };
    let names = match names(&arguments.names, &config, before.as_ref()) {
        Ok(names) => names,
        Err(message) => return complain(USAGE, message),
    };
    match make(&directory, &names, super::now()) {
        Ok(made) => {
            let of = if rustix::process::geteuid().is_root() { Service::System } else { Service::Own };
            say(&report(&directory, &names, &made, &config, of))
        }
        Err(error) => complain(FAILED, error),
    }
}

fn default_directory() -> std::io::Result<PathBuf> {
    if rustix::process::geteuid().is_root() {
        return Ok("/etc/ocistern/tls".into());
    }
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let home = || set("HOME").map(|home| home.join(".config"));
    let config = set("XDG_CONFIG_HOME").or_else(home);
    config.map(|config| config.join("ocistern/tls")).ok_or_else(|| std::io::Error::other("$HOME is not set"))
}

/// The names as they go into the certificate; those of this machine come by themselves. Without any given: those that are
/// mapped, and those of the certificate `before`, which is renewed.
fn names(given: &[String], config: &Config, before: Option<&Leaf>) -> Result<Vec<Name>, String> {
    // Where there is a listener with TLS, the names of those without need no certificate.
    let has_tls = config.listeners.iter().any(|listener| listener.tls.is_some());
    let listeners = config.listeners.iter().filter(|listener| listener.tls.is_some() || !has_tls);
    let mapped = listeners.flat_map(|listener| listener.hostnames.keys().cloned());
    let renewed = before.map(Leaf::dns_names).unwrap_or_default().into_iter().filter(|name| name != "localhost");
    let texts: Vec<String> = if given.is_empty() { mapped.chain(renewed).collect() } else { given.to_vec() };
    let mut names = BTreeSet::new();
    for text in &texts {
        let wrong = || {
            format!(
                "{text:?} is neither a host name nor an IP address: write it as in an image's name, without https:// and path, such \
                 as myregistry.azurecr.io"
            )
        };
        names.insert(Name::parse(text).ok_or_else(wrong)?);
    }
    if names.is_empty() {
        return Err(NO_NAMES.to_owned());
    }
    Ok(names.into_iter().collect())
}

/// What is in every certificate: ocistern under the names that lead to its own machine from there.
fn local() -> [Name; 3] {
    [
        Name::Dns("localhost".to_owned()),
        Name::Ip(IpAddr::V4(Ipv4Addr::LOCALHOST)),
        Name::Ip(IpAddr::V6(Ipv6Addr::LOCALHOST)),
    ]
}

/// Makes the CA, where there is none, and a certificate by it.
fn make(directory: &Path, names: &[Name], now: UnixTime) -> Result<Made, SetupError> {
    let mut names = names.to_vec();
    names.extend(local().into_iter().filter(|name| !names.contains(name)).collect::<Vec<_>>());
    folder::make_directories(directory)?;
    let (ca_file, key_file) = (directory.join(CA_FILE), directory.join(CA_KEY));
    let (ca, key, new_ca) = match (folder::read(&ca_file)?, folder::read(&key_file)?) {
        (Some(ca), Some(key)) => (ca, read_key(&key_file, &key)?, false),
        (Some(_), None) => return Err(half(&ca_file, &key_file)),
        // A key without a certificate is what is left of a run that was cut off.
        (None, key) => {
            let key = match key {
                Some(text) => read_key(&key_file, &text)?,
                None => new_key(&key_file)?,
            };
            let ca = authority(&key, &names, now)?;
            folder::replace(&ca_file, ca.as_bytes(), Some(PUBLIC))?;
            (ca, key, true)
        }
    };
    let server_key_file = directory.join(SERVER_KEY);
    let server_key = match folder::read(&server_key_file)? {
        Some(text) => read_key(&server_key_file, &text)?,
        None => new_key(&server_key_file)?,
    };
    let certificate = server(&server_key, &key, &names, now)?;
    let leaf =
        Leaf::read(&certificate).ok_or_else(|| SetupError::Certificate("the certificate cannot be read".into()))?;
    if let Some(why) = leaf.refused_by(&ca, &certificate, now) {
        return Err(SetupError::Certificate(format!(
            "the CA in {0} cannot be used for {1}: {why}. It is limited to the names that it was made for, it ends some day, \
             and {CA_KEY} has to be its key. Make another one by --directory, and let clients trust that, too; or move {CA_FILE} and {CA_KEY} away and run \
             this again, after which clients need the new {CA_FILE}",
            directory.display(),
            shown(&names),
        )));
    }
    folder::replace(&directory.join(SERVER_CERTIFICATE), certificate.as_bytes(), Some(PUBLIC))?;
    let end =
        Duration::from_secs(now.as_secs()) + Duration::from_hours(24 * SERVER_DAYS.unsigned_abs().saturating_sub(2));
    let ca_ends = leaf.refused_by(&ca, &certificate, UnixTime::since_unix_epoch(end)).is_some();
    Ok(Made { new_ca, ca_ends })
}

fn half(ca: &Path, key: &Path) -> SetupError {
    SetupError::Certificate(format!(
        "{} is there without its key {}, so nothing can be signed: bring the key back, or move the certificate away for a new CA \
         that clients have to trust anew",
        ca.display(),
        key.display()
    ))
}

fn new_key(file: &Path) -> Result<KeyPair, SetupError> {
    let key = KeyPair::generate().map_err(|error| SetupError::Certificate(format!("no key can be made: {error}")))?;
    folder::replace(file, key.serialize_pem().as_bytes(), Some(SECRET))?;
    Ok(key)
}

fn read_key(file: &Path, text: &str) -> Result<KeyPair, SetupError> {
    KeyPair::from_pem(text).map_err(|error| {
        SetupError::Certificate(format!("{}: this is no private key that can be used ({error})", file.display()))
    })
}

/// What a CA of this key is, apart from its names; the same each time, so that the key alone leads back to it.
fn authority_of(key: &KeyPair, now: UnixTime) -> CertificateParams {
    // Two CAs under one name would be taken for each other.
    let id: String = Digest::of(Algorithm::Sha256, key.public_key_raw()).hex().chars().take(8).collect();
    let mut subject = DistinguishedName::new();
    subject.push(DnType::CommonName, format!("ocistern private CA {id}"));
    let mut params = CertificateParams::default();
    params.distinguished_name = subject;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    set_days(&mut params, now, CA_DAYS);
    params
}

/// A CA's certificate, for these names and what is below them.
fn authority(key: &KeyPair, names: &[Name], now: UnixTime) -> Result<String, SetupError> {
    let mut params = authority_of(key, now);
    let permitted = names.iter().map(Name::subtree).collect();
    params.name_constraints = Some(NameConstraints { permitted_subtrees: permitted, excluded_subtrees: Vec::new() });
    let certificate = params.self_signed(key);
    Ok(certificate.map_err(|error| SetupError::Certificate(format!("no CA can be made: {error}")))?.pem())
}

/// A server's certificate.
fn server(key: &KeyPair, ca: &KeyPair, names: &[Name], now: UnixTime) -> Result<String, SetupError> {
    let wrong = |error: rcgen::Error| SetupError::Certificate(format!("no certificate can be made: {error}"));
    let texts: Vec<String> = names.iter().map(Name::to_string).collect();
    let mut params = CertificateParams::new(texts).map_err(wrong)?;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "ocistern");
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    params.serial_number = Some(serial_number()?);
    set_days(&mut params, now, SERVER_DAYS);
    let issuer = Issuer::new(authority_of(ca, now), ca);
    Ok(params.signed_by(key, &issuer).map_err(wrong)?.pem())
}

/// Of a certificate: another one each time, since a CA gives no two the same (RFC 5280, 4.1.2.2). Left to itself it would follow
/// from the key, which a renewal keeps.
fn serial_number() -> Result<SerialNumber, SetupError> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes)
        .map_err(|error| SetupError::Certificate(format!("no certificate can be made: no randomness ({error})")))?;
    // Positive, and never shorter.
    bytes[0] = bytes[0] & 0x7f | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}

/// Valid from yesterday, for so many days.
fn set_days(params: &mut CertificateParams, now: UnixTime, days: i64) {
    let (year, month, day) = date(now, -BEFORE_DAYS);
    params.not_before = date_time_ymd(year, month, day);
    let (year, month, day) = date(now, days);
    params.not_after = date_time_ymd(year, month, day);
}

/// Year, month and day (UTC) so many days from now.
fn date(now: UnixTime, days: i64) -> (i32, u8, u8) {
    let seconds = i64::try_from(now.as_secs()).unwrap_or_default();
    let then = Timestamp::from_second(seconds).unwrap_or_default();
    let then = then.checked_add((24 * days).hours()).unwrap_or(then);
    let date = then.to_zoned(jiff::tz::TimeZone::UTC).date();
    (i32::from(date.year()), date.month().unsigned_abs(), date.day().unsigned_abs())
}

// === impl Name ===

impl Name {
    fn parse(text: &str) -> Option<Self> {
        let text = text.to_ascii_lowercase();
        // As a hosts entry of `hostnames` has it.
        let bare = match text.rsplit_once(':') {
            Some((name, port)) if !name.contains(':') && port.parse::<u16>().is_ok() => name,
            _ => &text,
        };
        let bare = bare.strip_prefix('[').and_then(|ip| ip.strip_suffix(']')).unwrap_or(bare);
        if let Ok(ip) = bare.parse() {
            return Some(Self::Ip(ip));
        }
        let checked = bare.strip_prefix("*.").unwrap_or(bare);
        // Empty labels, blanks, paths and what else no name has.
        ServerName::try_from(checked).ok().filter(|_| !checked.ends_with('.'))?;
        Some(Self::Dns(bare.to_owned()))
    }

    /// What the CA may sign for: the name, which includes those below it.
    fn subtree(&self) -> GeneralSubtree {
        match self {
            Self::Dns(name) => GeneralSubtree::DnsName(name.strip_prefix("*.").unwrap_or(name).to_owned()),
            Self::Ip(ip @ IpAddr::V4(_)) => GeneralSubtree::IpAddress(CidrSubnet::from_addr_prefix(*ip, 32)),
            Self::Ip(ip @ IpAddr::V6(_)) => GeneralSubtree::IpAddress(CidrSubnet::from_addr_prefix(*ip, 128)),
        }
    }
}

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Dns(name) => f.write_str(name),
            Self::Ip(ip) => ip.fmt(f),
        }
    }
}

fn shown(names: &[Name]) -> String {
    names.iter().map(Name::to_string).collect::<Vec<_>>().join(", ")
}

/// What was made, and what there is to do with it.
fn report(directory: &Path, names: &[Name], made: &Made, config: &Config, of: Service) -> String {
    let at = |name: &str| directory.join(name).display().to_string();
    let (certificate, key, ca) = (at(SERVER_CERTIFICATE), at(SERVER_KEY), at(CA_FILE));
    let mut out = String::new();
    let which = if made.new_ca { "is new: clients have to trust it" } else { "is the one that was there" };
    let _ = writeln!(out, "# the CA {ca} {which}; its key {} stays here, for renewals", at(CA_KEY));
    let _ = writeln!(
        out,
        "# {certificate} is for {} and this machine, for {SERVER_DAYS} days; run this again to renew it",
        shown(names)
    );
    if made.ca_ends {
        let _ = writeln!(
            out,
            "# the CA itself ends before that certificate: move {CA_FILE} and {CA_KEY} away, and run this again for a new one"
        );
    }
    out.push('\n');
    let is_new = configuration(&mut out, names, &certificate, &key, config);
    match of {
        Service::System => service(&mut out, &key, config, is_new),
        Service::Own if is_new => out.push_str(OWN_PORT),
        Service::Own => {}
    }
    clients(&mut out, names, &ca, config);
    out
}

/// What the package's service needs, which is neither root nor may open the port: the key by its group, and the port from systemd.
fn service(out: &mut String, key: &str, config: &Config, is_new: bool) {
    let _ = writeln!(
        out,
        "# where it runs as the package's service (user ocistern), as root; a renewal leaves this as it is:\n\
         #   chgrp ocistern {key}\n#   chmod 0640 {key}\n#"
    );
    let mut ports: Vec<String> = config.listeners.iter().filter_map(tcp).map(|address| address.to_string()).collect();
    if is_new && is_usual(config) {
        ports.truncate(1);
    }
    if is_new {
        ports.push(ADDRESS.to_owned());
    }
    let is_low = |address: &String| address.parse::<SocketAddr>().is_ok_and(|address| address.port() < 1024);
    if !ports.iter().any(is_low) {
        return;
    }
    ports.dedup();
    let _ = writeln!(
        out,
        "# and a port below 1024 is opened by systemd, with all others: these lines by `systemctl edit ocistern.socket`\n\
         #     [Socket]\n#     ListenStream="
    );
    for port in &ports {
        let _ = writeln!(out, "#     ListenStream={port}");
    }
    out.push_str(
        "# and then:\n#   systemctl stop ocistern\n#   systemctl enable --now ocistern.socket\n#   systemctl start ocistern\n\n",
    );
}

/// Whether the listeners are those of a configuration that has none.
fn is_usual(config: &Config) -> bool {
    let is_bare = |listener: &Listener| {
        let Listener { hostnames, public_url, tls, htpasswd, .. } = listener;
        hostnames.is_empty() && public_url.is_none() && tls.is_none() && htpasswd.is_none()
    };
    config.listeners.iter().filter_map(tcp).eq(DEFAULT_LISTEN) && config.listeners.iter().all(is_bare)
}

fn tcp(listener: &Listener) -> Option<SocketAddr> {
    match listener.address {
        Address::Tcp(address) => Some(address),
        Address::Unix(_) => None,
    }
}

/// The lines for ocistern's own configuration. Whether there is a new listener among them.
fn configuration(out: &mut String, names: &[Name], certificate: &str, key: &str, config: &Config) -> bool {
    let uses = |listener: &Listener| {
        let tls = listener.tls.as_ref();
        tls.is_some_and(|tls| tls.certificates.iter().any(|files| files.certificate == Path::new(certificate)))
    };
    let serving = config.listeners.iter().find(|listener| uses(listener));
    let directory = Directory::new(config);
    let meant = |name: &Name| match name {
        Name::Dns(name) => {
            let known = directory.get(name).cloned().or_else(|| registry_of_azure(name))?;
            Some((name.clone(), known))
        }
        Name::Ip(_) => None,
    };
    let registries: Vec<_> = names.iter().filter_map(meant).collect();
    let missing: Vec<_> = registries
        .iter()
        .filter(|(name, _)| !serving.is_some_and(|listener| listener.hostnames.contains_key(name)))
        .collect();
    let has_it = serving.filter(|_| missing.is_empty());
    if let Some(listener) = has_it {
        let _ = writeln!(
            out,
            "# the listener at {} has this certificate already, and takes a renewed one within ten seconds\n",
            listener.address
        );
    } else {
        let entries: Vec<String> =
            registries.iter().map(|(name, upstream)| format!("{name:?} = {:?}", upstream.as_str())).collect();
        let _ = writeln!(out, "# for ocistern's configuration:\n[[listener]]\naddress = \"{ADDRESS}\"");
        let _ = writeln!(out, "tls = {{ certificate = {certificate:?}, key = {key:?} }}");
        if !entries.is_empty() {
            let _ = writeln!(out, "hostnames = {{ {} }}", entries.join(", "));
        }
        // Where no listener is configured there are those of the default, until there is one.
        if is_usual(config) {
            let usual = DEFAULT_LISTEN[0];
            let _ =
                writeln!(out, "[[listener]]\naddress = \"{usual}\"   # as before; leave it out if it is there already");
        }
        out.push('\n');
    }
    for (name, upstream) in &registries {
        let known = config.upstreams.get(upstream);
        if known.is_some_and(|known| !known.connect.is_empty()) {
            continue;
        }
        let why = format!("where ocistern's own machine finds itself under {name}, too (hosts entry, DNS)");
        let head = if known.is_some() { format!("# {why}:") } else { format!("# the registry; connect is for {why}:") };
        let _ = writeln!(
            out,
            "{head}\n[upstream.{:?}]\n\
             connect = [\"ADDRESS:443\"]   # where {name} is really: dig +short {name} @RESOLVER\n",
            upstream.as_str()
        );
    }
    for name in names.iter().filter(|name| meant(name).is_none()) {
        if matches!(name, Name::Dns(_)) {
            let _ = writeln!(
                out,
                "# {name} is no registry of the configuration, so it is taken for a name of ocistern's own; if it is one, it needs \
                 [upstream.\"{name}\"], and then hostnames = {{ \"{name}\" = \"{name}\" }} in the listener\n"
            );
        }
    }
    has_it.is_none()
}

/// A name that only a registry has: those of Azure Container Registry, in each of its clouds.
fn registry_of_azure(name: &str) -> Option<UpstreamName> {
    // A wildcard is for several of them.
    name.parse().ok().filter(|_| is_azure_registry(name) && !name.starts_with("*."))
}

/// What clients need.
fn clients(out: &mut String, names: &[Name], ca: &str, config: &Config) {
    let address = config.listeners.iter().filter(|listener| listener.tls.is_some()).find_map(|listener| {
        let Address::Tcp(socket) = &listener.address else { return None };
        (!socket.ip().is_unspecified()).then(|| socket.ip().to_string())
    });
    let address = address.unwrap_or_else(|| "127.0.0.1".to_owned());
    let _ = writeln!(out, "# for clients on this machine, in /etc/hosts (on others, the address of this one):");
    for name in names {
        if let Name::Dns(name) = name {
            let _ = writeln!(out, "{address} {}", name.strip_prefix("*.").unwrap_or(name));
        }
    }
    let _ = writeln!(
        out,
        "\n# where clients look for {ca} (`ocistern setup CLIENT --write` copies it there for the first three):"
    );
    for name in names {
        let _ = writeln!(out, "#   docker      /etc/docker/certs.d/{name}/ca.crt");
        let _ = writeln!(out, "#   podman …    /etc/containers/certs.d/{name}/ca.crt");
        let _ = writeln!(out, "#   containerd  /etc/containerd/certs.d/{name}/hosts.toml: ca = \"{ca}\"");
    }
    let _ = writeln!(
        out,
        "#   the system (ORAS, crane, Helm, curl): Debian: /usr/local/share/ca-certificates/ocistern.crt, then \
         update-ca-certificates; Fedora: /etc/pki/ca-trust/source/anchors/ocistern.crt, then update-ca-trust\n\
         #   az          REQUESTS_CA_BUNDLE=bundle.pem, made by `cat {ca} /etc/ssl/certs/ca-certificates.crt > bundle.pem`"
    );
}

/// As `server.*` a certificate for what is mapped in the tests' configurations, as `named.*` one for a name of ocistern's own
/// alone.
#[cfg(test)]
pub(super) fn certificates(directory: &Path, now: UnixTime) {
    let names = ["cache.example", "myregistry.azurecr.io", "registry.example", "mirror.example"];
    let names: Vec<Name> = names.iter().map(|name| Name::parse(name).unwrap()).collect();
    make(directory, &names, now).unwrap();
    let key = new_key(&directory.join("named.key")).unwrap();
    let ca = folder::read(&directory.join(CA_KEY)).unwrap().unwrap();
    let ca = read_key(Path::new(CA_KEY), &ca).unwrap();
    let certificate = server(&key, &ca, &[Name::Dns("mirror.example".into())], now).unwrap();
    folder::replace(&directory.join("named.crt"), certificate.as_bytes(), None).unwrap();
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject as _;
    use x509_cert::der::Decode as _;

    use super::*;

    fn after(days: u64) -> UnixTime {
        UnixTime::since_unix_epoch(Duration::from_hours(24 * (20_000 + days)))
    }

    fn parsed(names: &[&str]) -> Vec<Name> {
        names.iter().map(|name| Name::parse(name).unwrap()).collect()
    }

    fn read(directory: &Path, name: &str) -> String {
        std::fs::read_to_string(directory.join(name)).unwrap()
    }

    #[test]
    fn a_ca_and_a_certificate_that_clients_accept() {
        let directory = tempfile::tempdir().unwrap();
        let at = directory.path().join("new/tls");
        let names = parsed(&["MyRegistry.azurecr.io", "*.cache.example", "10.0.0.7"]);
        assert_eq!(make(&at, &names, after(0)).unwrap(), Made { new_ca: true, ca_ends: false });
        let (ca, certificate) = (read(&at, CA_FILE), read(&at, SERVER_CERTIFICATE));
        let leaf = Leaf::read(&certificate).unwrap();
        for name in ["myregistry.azurecr.io", "a.cache.example", "localhost", "10.0.0.7", "127.0.0.1", "[::1]"] {
            assert!(leaf.is_for(name), "{name}");
        }
        assert!(!leaf.is_for("other.azurecr.io"));
        for days in [0, 200, 396] {
            assert_eq!(leaf.refused_by(&ca, &certificate, after(days)), None, "on day {days}");
        }
        assert!(leaf.refused_by(&ca, &certificate, after(398)).is_some(), "it ends");
        for (file, mode) in [(CA_KEY, 0o600), (SERVER_KEY, 0o600), (CA_FILE, 0o644), (SERVER_CERTIFICATE, 0o644)] {
            let found = std::fs::metadata(at.join(file)).unwrap().permissions().mode() & 0o7777;
            assert_eq!(found, mode, "mode of {file}");
        }
    }

    fn serial(pem: &str) -> Vec<u8> {
        let der = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
        x509_cert::Certificate::from_der(&der).unwrap().tbs_certificate().serial_number().as_bytes().to_vec()
    }

    #[test]
    fn a_second_run_renews_the_certificate_by_the_same_ca() {
        let directory = tempfile::tempdir().unwrap();
        let at = directory.path();
        let names = parsed(&["r.example", "s.example"]);
        make(at, &names, after(0)).unwrap();
        let files = [CA_FILE, CA_KEY, SERVER_KEY];
        let before = files.map(|file| read(at, file));
        let first = read(at, SERVER_CERTIFICATE);
        assert_eq!(make(at, &names, after(390)).unwrap(), Made { new_ca: false, ca_ends: false });
        assert_eq!(files.map(|file| read(at, file)), before, "keys and CA stay");
        let second = read(at, SERVER_CERTIFICATE);
        assert_ne!(serial(&first), serial(&second), "a CA gives no two certificates the same number");
        let leaf = Leaf::read(&second).unwrap();
        assert_eq!(leaf.refused_by(&read(at, CA_FILE), &second, after(700)), None, "it holds for another year");
        // Fewer names are as good, and so are names below them.
        make(at, &parsed(&["s.example", "deep.r.example"]), after(400)).unwrap();
        assert!(make(at, &names, after(3500)).unwrap().ca_ends, "the CA's own end is told before it is there");
        let error = make(at, &names, after(3700)).unwrap_err().to_string();
        assert!(error.contains("its own certificate has expired"), "{error}");
    }

    #[test]
    fn the_ca_is_good_for_its_names_alone() {
        let directory = tempfile::tempdir().unwrap();
        let at = directory.path();
        make(at, &parsed(&["r.example"]), after(0)).unwrap();
        let before = read(at, SERVER_CERTIFICATE);
        for other in ["bank.example", "10.0.0.7"] {
            let error = make(at, &parsed(&["r.example", other]), after(1)).unwrap_err().to_string();
            assert!(error.contains("cannot be used for") && error.contains(other), "{error}");
        }
        assert_eq!(read(at, SERVER_CERTIFICATE), before, "the good certificate stays");
    }

    #[test]
    fn half_a_ca_and_keys_of_others_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let at = directory.path();
        let names = parsed(&["r.example"]);
        make(at, &names, after(0)).unwrap();
        let key = read(at, CA_KEY);
        std::fs::write(at.join(CA_KEY), KeyPair::generate().unwrap().serialize_pem()).unwrap();
        let error = make(at, &names, after(0)).unwrap_err().to_string();
        assert!(error.contains("cannot be used"), "{error}");
        std::fs::write(at.join(CA_KEY), "no key").unwrap();
        let error = make(at, &names, after(0)).unwrap_err().to_string();
        assert!(error.contains("ca.key: this is no private key"), "{error}");
        std::fs::remove_file(at.join(CA_KEY)).unwrap();
        let error = make(at, &names, after(0)).unwrap_err().to_string();
        assert!(error.contains("without its key"), "{error}");
        // The other half is a run that was cut off: it is gone on with.
        std::fs::write(at.join(CA_KEY), &key).unwrap();
        std::fs::remove_file(at.join(CA_FILE)).unwrap();
        assert!(make(at, &names, after(0)).unwrap().new_ca);
        assert_eq!(read(at, CA_KEY), key);
    }

    #[test]
    fn names_are_those_given_or_else_those_mapped() {
        let config = Config::from_toml(
            "[[listener]]\naddress = \"0.0.0.0:8443\"\nhostnames = { \"ghcr.io\" = \"ghcr.io\", \"quay.io:8443\" = \"quay.io\" }",
        )
        .unwrap();
        assert_eq!(names(&[], &config, None), Ok(parsed(&["ghcr.io", "quay.io"])));
        assert_eq!(names(&["A.example".to_owned()], &config, None), Ok(parsed(&["a.example"])));
        let directory = tempfile::tempdir().unwrap();
        make(directory.path(), &parsed(&["cache.example"]), after(0)).unwrap();
        let before = Leaf::read(&read(directory.path(), SERVER_CERTIFICATE));
        assert_eq!(names(&[], &config, before.as_ref()), Ok(parsed(&["cache.example", "ghcr.io", "quay.io"])));
        let with_tls = Config::from_toml(
            "[[listener]]\naddress = \"0.0.0.0:80\"\nhostnames = { \"ghcr.io\" = \"ghcr.io\" }\n[[listener]]\naddress = \
             \"0.0.0.0:443\"\ntls = { certificate = \"c\", key = \"k\" }\nhostnames = { \"quay.io\" = \"quay.io\" }",
        );
        assert_eq!(names(&[], &with_tls.unwrap(), None), Ok(parsed(&["quay.io"])), "plain HTTP needs no certificate");
        for wrong in ["https://a.example", "a/b", "", "a..b", "a b", "a.example.", "*", "*.*.example"] {
            assert!(
                names(&[wrong.to_owned()], &config, None).unwrap_err().contains("neither a host name"),
                "{wrong:?}"
            );
        }
        assert_eq!(names(&[], &Config::from_toml("").unwrap(), None).unwrap_err(), NO_NAMES);
    }

    #[test]
    fn the_report_has_what_there_is_to_add() {
        let text = "[[listener]]\naddress = \"127.0.0.1:5000\"\n[upstream.\"myregistry.azurecr.io\"]\n";
        let made = Made { new_ca: true, ca_ends: false };
        let names = parsed(&["myregistry.azurecr.io", "cache.example"]);
        let said = report(Path::new("/d"), &names, &made, &Config::from_toml(text).unwrap(), Service::System);
        // The lines are a configuration, apart from the address that only the operator can find out.
        let ours: String = said.split("# for clients").next().unwrap().replace("ADDRESS", "192.0.2.1");
        let config = Config::from_toml(&format!("{ours}\n")).unwrap();
        let listener = &config.listeners[0];
        assert_eq!(listener.hostnames.keys().collect::<Vec<_>>(), ["myregistry.azurecr.io"]);
        assert_eq!(listener.tls.as_ref().unwrap().certificates[0].certificate, Path::new("/d/server.crt"));
        assert_eq!(config.upstreams[listener.hostnames.values().next().unwrap()].connect, ["192.0.2.1:443"]);
        // One of Azure's is a registry, if no configuration says so.
        let fresh = report(Path::new("/d"), &names, &made, &Config::from_toml("").unwrap(), Service::System);
        let ours: String = fresh.split("# for clients").next().unwrap().replace("ADDRESS", "192.0.2.1");
        let from_nothing = Config::from_toml(&format!("{ours}\n")).unwrap();
        let name = from_nothing.listeners[0].hostnames.values().next().unwrap();
        assert_eq!(
            (name.as_str(), &from_nothing.upstreams[name].connect[0][..]),
            ("myregistry.azurecr.io", "192.0.2.1:443")
        );
        for part in [
            "127.0.0.1 myregistry.azurecr.io",
            "cache.example is no registry",
            "/etc/docker/certs.d/cache.example/ca.crt",
        ] {
            assert!(said.contains(part), "{part}:\n{said}");
        }
        let again = report(Path::new("/d"), &names[..1], &Made { new_ca: false, ..made }, &config, Service::System);
        assert!(again.contains("has this certificate already") && !again.contains("[[listener]]"), "{again}");
        assert!(!again.contains("connect ="), "it has that, too: {again}");
    }

    #[test]
    fn what_the_service_needs_is_said() {
        let made = Made { new_ca: true, ca_ends: false };
        let names = parsed(&["ghcr.io"]);
        let said = |text: &str, of| report(Path::new("/d"), &names, &made, &Config::from_toml(text).unwrap(), of);
        let lines = |said: &str| -> Vec<String> {
            said.lines().filter_map(|line| line.strip_prefix("#     ListenStream=").map(str::to_owned)).collect()
        };
        // The usual listeners are there only until one is configured, and a socket that fits none gets another's settings.
        let fresh = said("", Service::System);
        let ours = fresh.split("# for clients").next().unwrap().replace("ADDRESS", "192.0.2.1");
        let config = Config::from_toml(&ours).unwrap();
        let addresses: Vec<String> = config.listeners.iter().map(|listener| listener.address.to_string()).collect();
        assert_eq!(addresses, ["0.0.0.0:443", "127.0.0.1:5000"], "{ours}");
        for part in
            ["chgrp ocistern /d/server.key", "chmod 0640 /d/server.key", "systemctl enable --now ocistern.socket"]
        {
            assert!(fresh.contains(part), "{part}:\n{fresh}");
        }
        assert_eq!(lines(&fresh), ["", "127.0.0.1:5000", "0.0.0.0:443"], "{fresh}");
        let own = said("[[listener]]\naddress = \"10.0.0.1:5000\"", Service::System);
        assert_eq!(lines(&own), ["", "10.0.0.1:5000", "0.0.0.0:443"], "{own}");
        assert!(!own.contains("as before"), "{own}");
        let both = "[[listener]]\naddress = \"127.0.0.1:5000\"\nhostnames = { \"a.example\" = \"docker.io\" }\n[[listener]]\n\
                    address = \"[::1]:5000\"\n";
        let own = said(both, Service::System);
        assert_eq!(lines(&own), ["", "127.0.0.1:5000", "[::1]:5000", "0.0.0.0:443"], "{own}");
        let ours = own.split("# for clients").next().unwrap().replace("ADDRESS", "192.0.2.1");
        assert_eq!(Config::from_toml(&format!("{both}{ours}")).unwrap().listeners.len(), 3, "none of them twice");
        let high = "[[listener]]\naddress = \"0.0.0.0:8443\"\ntls = { certificate = \"/d/server.crt\", key = \"/d/server.key\" }\n\
                    hostnames = { \"ghcr.io\" = \"ghcr.io\" }";
        assert!(lines(&said(high, Service::System)).is_empty(), "no port that the service could not open");
        let own = said("", Service::Own);
        assert!(!own.contains("chgrp") && own.contains("ip_unprivileged_port_start"), "{own}");
    }
}
