//! Values as operators write them: sizes, durations, tag policies, addresses, host names. Pure; each parser has a
//! formatter whose output it reads back.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::error::Fault;
use super::{Address, Capacity, PushBy, TagPolicy, passed};

const CREDENTIAL: &str =
    "a path here: \"credential:NAME\" is for files that are read, with NAME as in LoadCredential=NAME:FILE of the unit";
const SIZE: &str = "a size: write a number with a unit, such as \"512MiB\" or \"100GiB\" (KiB, MiB, GiB, TiB count by 1024; kB, MB, GB, TB by 1000)";
const CAPACITY: &str = "a capacity: write a size with its unit such as \"100GiB\", or a part of the file system such as \"50%\" (1% to 100%)";
const DURATION: &str = "a duration: write a number with a unit, such as \"30s\", \"5m\" or \"1h30m\" (ms, s, m, h, d)";
const TAGS: &str = "a time for tags: write a duration such as \"5m\", \"always\" (ask every time), \"immutable\" (never ask again) or \"sealed\" (never ask at all)";
const PUSH: &str =
    "who pushes: write \"client\" (callers with their own credential), \"shared\" (ocistern's account) or \"off\"";
const ADDRESS: &str = "an address to listen on: write an IP address and a port, such as \"127.0.0.1:5000\", \"[::1]:5000\" or \"0.0.0.0:5000\" (all), or \"unix:/path\"";
const ADMIN: &str =
    "an address for the admin listener: write an IP address and a port, such as \"127.0.0.1:5080\", or \"off\"";
const HOST: &str = "a host name: write it without scheme and path, with a port only if it is an unusual one, such as \"auth.example\" or \"auth.example:8443\"";
const DIAL: &str =
    "an address to dial: write host and port, such as \"10.0.0.7:443\", \"[fd00::7]:443\" or \"registry.internal:443\"";

const SIZE_UNITS: [(&str, u64); 10] = [
    ("PiB", 1 << 50),
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("kB", 1_000),
    ("B", 1),
];

/// Units with their milliseconds, largest first; as written in one duration they must get smaller.
const DURATION_UNITS: [(&str, u64); 5] = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

/// Bytes a second: a [`size`], with `/s` behind it or without.
pub(super) fn rate(text: &str) -> Result<u64, Fault> {
    let trimmed = text.trim();
    size(trimmed.strip_suffix("/s").unwrap_or(trimmed))
}

/// A [`rate`] of at least one byte, with its unit: without one it would be bytes, which nobody means.
pub(super) fn positive_rate(text: &str) -> Option<u64> {
    let has_unit = text.contains(|c: char| c.is_ascii_alphabetic() && c != 's');
    rate(text).ok().filter(|&rate| rate > 0 && has_unit)
}

/// A number of bytes: `100GiB`, `512 MB`, `4096`. Units may be written in any case.
pub fn size(text: &str) -> Result<u64, Fault> {
    let trimmed = text.trim();
    let digits = trimmed.len() - trimmed.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = trimmed.split_at(digits);
    let unit = unit.trim_start();
    let factor = match unit {
        "" => Some(1),
        _ => SIZE_UNITS.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit)).map(|&(_, factor)| factor),
    };
    let number: Option<u64> = number.parse().ok();
    number.zip(factor).and_then(|(n, f)| n.checked_mul(f)).ok_or_else(|| Fault::value(text, SIZE))
}

/// The shortest way to write a size exactly.
pub(super) fn show_size(bytes: u64) -> String {
    let exact = |&&(_, factor): &&(&str, u64)| bytes != 0 && bytes.is_multiple_of(factor);
    // Only binary units and bytes: a reader should not have to compare units.
    match SIZE_UNITS.iter().filter(|(name, _)| name.ends_with("iB")).find(exact) {
        Some(&(name, factor)) => format!("{}{name}", bytes / factor),
        None => format!("{bytes}B"),
    }
}

/// `"0%"` to `"100%"`; `what` says of what.
pub(super) fn percent(text: &str, what: &'static str) -> Result<u8, Fault> {
    let percent = text.trim().strip_suffix('%').and_then(|percent| percent.trim_end().parse::<u8>().ok());
    percent.filter(|percent| *percent <= 100).ok_or_else(|| Fault::value(text, what))
}

/// A capacity: a size, or `50%`.
pub(super) fn capacity(text: &str) -> Result<Capacity, Fault> {
    if let Some(percent) = text.trim().strip_suffix('%') {
        let percent: Option<u8> = percent.trim().parse().ok();
        return percent
            .filter(|p| (1..=100).contains(p))
            .map(Capacity::Percent)
            .ok_or_else(|| Fault::value(text, CAPACITY));
    }
    // Without a unit it would be bytes, which nobody means.
    let has_unit = text.trim().ends_with(|c: char| c.is_ascii_alphabetic());
    let bytes = size(text).ok().filter(|_| has_unit).ok_or_else(|| Fault::value(text, CAPACITY))?;
    if bytes == 0 { Err(Fault::value(text, CAPACITY)) } else { Ok(Capacity::Bytes(bytes)) }
}

/// A length of time: `30s`, `1h30m`, `500ms`, `0s`.
pub fn duration(text: &str) -> Result<Duration, Fault> {
    duration_ms(text.trim()).map(Duration::from_millis).ok_or_else(|| Fault::value(text, DURATION))
}

fn duration_ms(text: &str) -> Option<u64> {
    let mut total: u64 = 0;
    let mut rest = text;
    let mut units = DURATION_UNITS.iter();
    while !rest.is_empty() {
        let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (number, tail) = rest.split_at(digits);
        let letters = tail.len() - tail.trim_start_matches(|c: char| c.is_ascii_alphabetic()).len();
        let (unit, tail) = tail.split_at(letters);
        let &(_, factor) = units.find(|(name, _)| *name == unit)?;
        total = total.checked_add(number.parse::<u64>().ok()?.checked_mul(factor)?)?;
        rest = tail;
    }
    (!text.is_empty()).then_some(total)
}

/// A duration as it would be written.
#[must_use]
pub fn show_duration(duration: Duration) -> String {
    let mut rest = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let mut text = String::new();
    for (name, factor) in DURATION_UNITS {
        if rest >= factor {
            let _ = write!(text, "{}{name}", rest / factor);
            rest %= factor;
        }
    }
    if text.is_empty() { "0s".to_owned() } else { text }
}

/// Who pushes: `client`, `shared` or `off`.
pub(super) fn push(text: &str) -> Result<PushBy, Fault> {
    match text {
        "client" => Ok(PushBy::Client),
        "shared" => Ok(PushBy::Shared),
        "off" => Ok(PushBy::Off),
        other => Err(Fault::value(other, PUSH)),
    }
}

/// How long a tag is served: `always`, `immutable`, `sealed`, or a duration.
pub(super) fn tags(text: &str) -> Result<TagPolicy, Fault> {
    match text.trim() {
        "always" => Ok(TagPolicy::Always),
        "immutable" => Ok(TagPolicy::Immutable),
        "sealed" => Ok(TagPolicy::Sealed),
        other => match duration_ms(other) {
            Some(0) => Ok(TagPolicy::Always),
            Some(ms) => Ok(TagPolicy::For(Duration::from_millis(ms))),
            None => Err(Fault::value(text, TAGS)),
        },
    }
}

/// A tag policy as it would be written.
pub(super) fn show_tags(policy: TagPolicy) -> String {
    match policy {
        TagPolicy::Always => "always".to_owned(),
        TagPolicy::Immutable => "immutable".to_owned(),
        TagPolicy::For(duration) => show_duration(duration),
        TagPolicy::Sealed => "sealed".to_owned(),
    }
}

/// An address to listen on: `IP:PORT` or `unix:/path`.
pub(super) fn address(text: &str) -> Result<Address, Fault> {
    if let Some(path) = text.strip_prefix("unix:") {
        let path = PathBuf::from(path);
        let usable = path.is_absolute() && path.file_name().is_some() && !text.contains('\0');
        return if usable { Ok(Address::Unix(path)) } else { Err(Fault::value(text, ADDRESS)) };
    }
    text.parse().map(Address::Tcp).map_err(|_| Fault::value(text, ADDRESS))
}

/// An address as it would be written.
pub(super) fn show_address(address: &Address) -> String {
    address.to_string()
}

/// The admin listener's address: `IP:PORT`, or `off`.
pub(super) fn admin_address(text: &str) -> Result<Option<SocketAddr>, Fault> {
    if text == "off" { Ok(None) } else { text.parse().map(Some).map_err(|_| Fault::value(text, ADMIN)) }
}

/// A path, which must not be empty.
pub(super) fn path(text: &str) -> Result<PathBuf, Fault> {
    if text.is_empty() || text.contains('\0') {
        return Err(Fault::value(text, "a path"));
    }
    if passed::is_passed(text) {
        return Err(Fault::value(text, CREDENTIAL));
    }
    Ok(Path::new(text).to_owned())
}

/// Whether a text is a DNS name, an IPv4 address or an IPv6 address in brackets, in lower case.
pub(super) fn is_host(text: &str) -> bool {
    if let Some(inner) = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')) {
        return inner.parse::<std::net::Ipv6Addr>().is_ok();
    }
    let label = |label: &str| {
        let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_';
        !label.is_empty()
            && label.len() <= 63
            && label.bytes().all(inner)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    text.len() <= 253 && text.split('.').all(label)
}

/// Host and port of `HOST`, `HOST:PORT`, `[V6]` or `[V6]:PORT`; the host in lower case. A port of 0 is none.
pub(super) fn host_and_port(text: &str) -> Option<(String, Option<u16>)> {
    let colon = text.rfind(':').filter(|&colon| text.rfind(']').is_none_or(|bracket| bracket < colon));
    let (host, port) = match colon {
        None => (text, None),
        Some(colon) => {
            let (host, port) = text.split_at(colon);
            let port = port.strip_prefix(':').filter(|p| p.bytes().all(|b| b.is_ascii_digit()))?;
            (host, Some(port.parse::<u16>().ok().filter(|&p| p != 0)?))
        }
    };
    let host = host.to_ascii_lowercase();
    is_host(&host).then_some((host, port))
}

/// A host, with a port or not, in lower case.
pub(super) fn host(text: &str) -> Result<String, Fault> {
    match host_and_port(text) {
        Some((host, None)) => Ok(host),
        Some((host, Some(port))) => Ok(format!("{host}:{port}")),
        None => Err(Fault::value(text, HOST)),
    }
}

/// An address to dial: `HOST:PORT`, host in lower case.
pub(super) fn dial(text: &str) -> Result<String, Fault> {
    match host_and_port(text) {
        Some((host, Some(port))) => Ok(format!("{host}:{port}")),
        _ => Err(Fault::value(text, DIAL)),
    }
}

/// Whether two addresses are the same place for a connection from this machine: equal ports, and equal or wildcard
/// addresses.
pub(super) fn reaches(listener: &SocketAddr, host: &str, port: u16) -> bool {
    if listener.port() != port || port == 0 {
        return false;
    }
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    match bare.parse::<IpAddr>() {
        Ok(ip) => listener.ip() == ip || (listener.ip().is_unspecified() && (ip.is_loopback() || ip.is_unspecified())),
        Err(_) => bare == "localhost" && (listener.ip().is_loopback() || listener.ip().is_unspecified()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn rates() {
        for text in ["20MiB", "20MiB/s", " 20 MiB/s "] {
            assert_eq!(rate(text), Ok(20 << 20), "{text}");
        }
        for text in ["/s", "20MiB/m", "20MiB/s/s", "-1/s"] {
            assert!(rate(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("1KiB", 1024),
            ("100GiB", 100 << 30),
            ("5 mib", 5 << 20),
            ("2TB", 2_000_000_000_000),
            ("1kB", 1000),
            ("7B", 7),
        ] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for text in ["", "GiB", "-1", "1.5GiB", "10G", "1 000", "99999999999PiB", "1GiB2", "0x10"] {
            assert!(size(text).is_err(), "{text:?} is not a size");
        }
    }

    #[test]
    fn a_capacity_has_a_unit() {
        for (text, expected) in [
            ("10GiB", Capacity::Bytes(10 << 30)),
            ("65537B", Capacity::Bytes(65_537)),
            (" 50 % ", Capacity::Percent(50)),
        ] {
            assert_eq!(capacity(text), Ok(expected), "{text}");
        }
        for text in ["10", "107374182400", "0GiB", "0%", "101%", "GiB", ""] {
            assert!(capacity(text).is_err(), "{text:?} is no capacity");
        }
    }

    #[test]
    fn durations() {
        for (text, ms) in
            [("0s", 0), ("500ms", 500), ("5m", 300_000), ("1h30m", 5_400_000), ("1d2h3m4s5ms", 93_784_005)]
        {
            assert_eq!(duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for text in ["", "5", "m", "5 m", "-5m", "1.5h", "5m1h", "5m5m", "5minutes", "99999999999999d", "5m!"] {
            assert!(duration(text).is_err(), "{text:?} is not a duration");
        }
    }

    #[test]
    fn tag_policies() {
        for (text, policy) in [
            ("always", TagPolicy::Always),
            ("0s", TagPolicy::Always),
            ("immutable", TagPolicy::Immutable),
            ("sealed", TagPolicy::Sealed),
            ("90s", TagPolicy::For(Duration::from_secs(90))),
        ] {
            assert_eq!(tags(text), Ok(policy), "{text}");
        }
        assert!(tags("never").is_err());
    }

    #[test]
    fn hosts_and_ports() {
        for (text, expected) in [
            ("A.example", Some(("a.example", None))),
            ("a.example:443", Some(("a.example", Some(443)))),
            ("[::1]", Some(("[::1]", None))),
            ("[fd00::7]:443", Some(("[fd00::7]", Some(443)))),
            ("10.0.0.7:1", Some(("10.0.0.7", Some(1)))),
            ("under_score", Some(("under_score", None))),
            ("a:", None),
            ("a:0", None),
            ("a:+1", None),
            ("a:65536", None),
            ("::1", None),
            ("[::1", None),
            ("[x]:1", None),
            ("a b", None),
            ("a/b", None),
            ("-a", None),
            ("a..b", None),
            ("", None),
            ("é.example", None),
        ] {
            let expected = expected.map(|(host, port)| (host.to_owned(), port));
            assert_eq!(host_and_port(text), expected, "{text:?}");
        }
    }

    #[test]
    fn which_addresses_are_our_own() {
        let reaches = |listener: &str, host: &str, port| reaches(&listener.parse().unwrap(), host, port);
        assert!(reaches("127.0.0.1:5000", "127.0.0.1", 5000));
        assert!(reaches("127.0.0.1:5000", "localhost", 5000));
        assert!(reaches("[::1]:5000", "[::1]", 5000));
        assert!(reaches("0.0.0.0:5000", "127.0.0.1", 5000));
        assert!(reaches("0.0.0.0:5000", "localhost", 5000));
        assert!(!reaches("127.0.0.1:5000", "127.0.0.1", 5001));
        assert!(!reaches("10.0.0.1:5000", "127.0.0.1", 5000));
        assert!(!reaches("0.0.0.0:5000", "10.0.0.9", 5000), "another machine's");
        assert!(!reaches("127.0.0.1:0", "127.0.0.1", 0), "a port that is not known yet");
    }

    proptest! {
        #[test]
        fn what_is_shown_of_a_size_reads_back(bytes: u64) {
            prop_assert_eq!(size(&show_size(bytes)), Ok(bytes));
        }

        #[test]
        fn what_is_shown_of_whole_units_is_short(number in 1_u64..1024, unit in 0_usize..5) {
            let (name, factor) = SIZE_UNITS[unit];
            prop_assert_eq!(show_size(number * factor), format!("{number}{name}"));
        }

        #[test]
        fn what_is_shown_of_a_duration_reads_back(ms: u64) {
            let time = Duration::from_millis(ms);
            prop_assert_eq!(duration(&show_duration(time)), Ok(time));
        }

        #[test]
        fn no_text_panics(text in "[0-9a-zA-Z.:%\\[\\] /é-]{0,24}") {
            let _ = (size(&text), capacity(&text), duration(&text), tags(&text), address(&text), dial(&text), host(&text));
        }

        #[test]
        fn hosts_that_are_accepted_read_back(text in "[a-zA-Z0-9.:\\[\\]_-]{1,20}") {
            if let Ok(host) = host(&text) {
                prop_assert_eq!(super::host(&host), Ok(host.clone()));
                prop_assert!(!host.contains(['/', '@', '?', '#', ' ']));
            }
        }
    }
}
