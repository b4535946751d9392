//! The listeners: those of the file, at the addresses that flags or environment name.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::error::Fault;
use super::file::{CertificateTable, File, ListenerTable, Scalar, TlsTable};
use super::layer::{Word, boolean, path, text, value};
use super::place::{At, KeyPath, Problems};
use super::upstreams::{Named, existing};
use super::{Address, CertificateFiles, DEFAULT_LISTEN, Listener, ListenerTls, builtin, parse, url};
use crate::oci::UpstreamName;

const NO_ADDRESS: &str =
    "an address, such as address = \"127.0.0.1:5000\"; only a single [[listener]] may leave it out";
const NO_CERTIFICATE: &str = "tls needs both certificate and key, each the path of a PEM file";
const EMPTY: &str = "at least one certificate, such as certificates = [{ certificate = \"FILE\", key = \"FILE\" }]";
const BOTH_FORMS: &str = "certificate and key are for a single certificate: beside certificates they have no place; \
                          write them as the first of its list";

/// A listener as written, before it has an address.
#[derive(Debug, Clone, Default)]
struct Settings {
    address: Option<Address>,
    /// It has one, if only one that is wrong.
    is_addressed: bool,
    default_upstream: Option<UpstreamName>,
    public_url: Option<String>,
    hostnames: BTreeMap<String, UpstreamName>,
    tls: Option<ListenerTls>,
    htpasswd: Option<PathBuf>,
    allow_plain_credentials: bool,
    table: Option<usize>,
}

/// A listener, what its address is from, and its table.
type Found = (At, Listener, Option<usize>);

/// All listeners, at least one, and the table that each is from. `default` is the default upstream that a flag or variable named.
pub(super) fn build(
    file: &File,
    words: &[Word],
    upstreams: &Named,
    default: Option<&UpstreamName>,
    problems: &mut Problems,
) -> (Vec<Listener>, Vec<Option<usize>>) {
    let hub = builtin::DEFAULT_UPSTREAM.parse().ok().filter(|name| upstreams.contains_key(name));
    let fallback = Settings { default_upstream: default.cloned().or(hub), ..Settings::default() };
    let tables: Vec<Settings> = file
        .listener
        .iter()
        .enumerate()
        .map(|(index, table)| {
            let at = KeyPath::dotted("listener").index(index);
            let mut settings = settings(&at, table, &fallback, upstreams, problems);
            settings.table = Some(index);
            settings.default_upstream = default.cloned().or(settings.default_upstream);
            settings
        })
        .collect();
    let found = if words.is_empty() {
        from_tables(tables, &fallback, problems)
    } else {
        from_words(words, &tables, &fallback, problems)
    };
    refuse_twice(&found, problems);
    let tables = found.iter().map(|(.., table)| *table).collect();
    let mut listeners: Vec<Listener> = found.into_iter().map(|(_, listener, _)| listener).collect();
    // The IPv6 half of a pair of loopback addresses may be missing on a machine; alone, it was asked for.
    let ipv4: Vec<u16> = listeners.iter().filter_map(|listener| loopback_port(listener, true)).collect();
    for listener in &mut listeners {
        listener.optional = loopback_port(listener, false).is_some_and(|port| ipv4.contains(&port));
    }
    (listeners, tables)
}

/// The port of a listener on the loopback address of IPv4 or of IPv6.
fn loopback_port(listener: &Listener, ipv4: bool) -> Option<u16> {
    match &listener.address {
        Address::Tcp(address) if address.ip().is_loopback() && address.is_ipv4() == ipv4 => Some(address.port()),
        _ => None,
    }
}

fn default_addresses(settings: &Settings) -> Vec<Found> {
    let at = At::Key(KeyPath::dotted("listener"));
    DEFAULT_LISTEN.iter().map(|&address| settings.clone().at(at.clone(), Address::Tcp(address))).collect()
}

/// Every table at its own address.
fn from_tables(tables: Vec<Settings>, fallback: &Settings, problems: &mut Problems) -> Vec<Found> {
    match tables.as_slice() {
        [] => return default_addresses(fallback),
        // Says something about the listener but not where it is.
        [only] if !only.is_addressed => return default_addresses(only),
        _ => {}
    }
    let mut listeners = Vec::new();
    for (index, mut table) in tables.into_iter().enumerate() {
        let at = KeyPath::dotted("listener").index(index).key("address");
        match table.address.take() {
            Some(address) => listeners.push(table.at(At::Key(at), address)),
            None if table.is_addressed => {}
            None => problems.add(at, Fault::Missing(NO_ADDRESS)),
        }
    }
    listeners
}

/// The addresses of a flag or variable. Each gets the settings of the file's listener at that address, or of the only
/// one there is: a listener with TLS never becomes one without because its address was changed.
fn from_words(words: &[Word], tables: &[Settings], fallback: &Settings, problems: &mut Problems) -> Vec<Found> {
    let mut listeners = Vec::new();
    for word in words {
        let at = At::Name(word.from.to_owned());
        let Some(address) = problems.check(at.clone(), parse::address(&word.value)) else { continue };
        let settings = match tables {
            [] => Some(fallback),
            [only] => Some(only),
            several => several.iter().find(|table| table.address.as_ref() == Some(&address)),
        };
        let Some(settings) = settings else {
            problems.add(at, Fault::UnclearListener(parse::show_address(&address)));
            continue;
        };
        listeners.push(settings.clone().at(at, address));
    }
    listeners
}

fn refuse_twice(listeners: &[Found], problems: &mut Problems) {
    for (index, (at, listener, _)) in listeners.iter().enumerate() {
        let mut before = listeners.iter().take(index).map(|(_, other, _)| &other.address);
        if let Some(other) = before.find(|other| other.overlaps(&listener.address)) {
            let (address, other) = (parse::show_address(&listener.address), parse::show_address(other));
            let is_same = address == other;
            let fault = if is_same { Fault::SameAddress(address) } else { Fault::SharedAddress { address, other } };
            problems.add(at.clone(), fault);
        }
    }
}

fn settings(
    at: &KeyPath,
    table: &ListenerTable,
    fallback: &Settings,
    upstreams: &Named,
    problems: &mut Problems,
) -> Settings {
    let address = |scalar: &_| parse::address(&text(scalar)?);
    let tls = table.tls.as_ref().and_then(|tls| listener_tls(&at.key("tls"), tls, problems));
    let default_upstream = match value(problems, &at.key("default_upstream"), table.default_upstream.as_ref(), text) {
        None => fallback.default_upstream.clone(),
        Some(none) if none.is_empty() => None,
        Some(name) => problems.check(at.key("default_upstream"), existing(&name, upstreams)),
    };
    let mut hostnames = BTreeMap::new();
    for (host, name) in &table.hostnames {
        let at = at.key("hostnames").key(host);
        let host = problems.check(at.clone(), parse::host(host));
        let name = problems.check(at, existing(name, upstreams));
        if let Some((host, name)) = host.zip(name) {
            let usual = if table.tls.is_some() { ":443" } else { ":80" };
            hostnames.insert(host.strip_suffix(usual).unwrap_or(&host).to_owned(), name);
        }
    }
    Settings {
        address: value(problems, &at.key("address"), table.address.as_ref(), address),
        is_addressed: table.address.is_some(),
        default_upstream,
        public_url: value(problems, &at.key("public_url"), table.public_url.as_ref(), |s| url::public(&text(s)?)),
        hostnames,
        tls,
        htpasswd: value(problems, &at.key("htpasswd"), table.htpasswd.as_ref(), path),
        allow_plain_credentials: value(
            problems,
            &at.key("allow_plain_credentials"),
            table.allow_plain_credentials.as_ref(),
            boolean,
        )
        .unwrap_or_default(),
        table: None,
    }
}

fn listener_tls(at: &KeyPath, table: &TlsTable, problems: &mut Problems) -> Option<ListenerTls> {
    let client_ca = value(problems, &at.key("client_ca"), table.client_ca.as_ref(), path);
    let certificates: Vec<CertificateFiles> = match &table.certificates {
        None => certificate(at, table.certificate.as_ref(), table.key.as_ref(), problems).into_iter().collect(),
        Some(list) => {
            let at = at.key("certificates");
            if list.is_empty() {
                problems.add(at.clone(), Fault::Missing(EMPTY));
            }
            if table.certificate.is_some() || table.key.is_some() {
                problems.add(at.clone(), Fault::Unfit(BOTH_FORMS));
            }
            let one = |(index, table): (usize, &CertificateTable)| {
                certificate(&at.index(index), table.certificate.as_ref(), table.key.as_ref(), problems)
            };
            list.iter().enumerate().filter_map(one).collect()
        }
    };
    (!certificates.is_empty()).then_some(ListenerTls { certificates, client_ca })
}

/// A certificate and its key.
fn certificate(
    at: &KeyPath,
    certificate: Option<&Scalar>,
    key: Option<&Scalar>,
    problems: &mut Problems,
) -> Option<CertificateFiles> {
    if certificate.is_none() || key.is_none() {
        problems.add(at.clone(), Fault::Missing(NO_CERTIFICATE));
    }
    let certificate = value(problems, &at.key("certificate"), certificate, path);
    let key = value(problems, &at.key("key"), key, path);
    certificate.zip(key).map(|(certificate, key)| CertificateFiles { certificate, key })
}

// === impl Settings ===

impl Settings {
    fn at(self, at: At, address: Address) -> Found {
        let listener = Listener {
            address,
            default_upstream: self.default_upstream,
            public_url: self.public_url,
            hostnames: self.hostnames,
            tls: self.tls,
            htpasswd: self.htpasswd,
            allow_plain_credentials: self.allow_plain_credentials,
            optional: false,
        };
        (at, listener, self.table)
    }
}
