//! The upstreams: built-in ones, the file's tables merged over them, and what flags or environment name.

use std::collections::BTreeMap;
use std::time::Duration;

use super::error::Fault;
use super::file::{File, RuleTable, Scalar, UpstreamTable};
use super::layer::{Word, boolean, path, text, value};
use super::place::{At, KeyPath, Problems};
use super::{
    Address, BaseUrl, Listener, MaxRate, PushBy, Rule, TagPolicy, Transfer, Upstream, builtin, credentials, keys,
    parse, pattern,
};
use crate::oci::UpstreamName;

/// Upstreams by name.
pub(super) type Named = BTreeMap<UpstreamName, Upstream>;

const NAME: &str = "a name for an upstream: write its host, such as \"registry.example\", or a word of lower-case letters and digits with single . _ or - between them";
const NO_URL: &str =
    "url, such as url = \"https://registry.example\" (it may be left out where the upstream's name is a host)";
const NO_TAGS: &str = "tags, the time that this rule sets, such as tags = \"immutable\"";
const RESERVE: &str = "a share of the rate limit: write a percentage from \"0%\" to \"100%\"";
const NO_ACCOUNT: &str = "\"shared\" is for an account of ocistern's own, and this upstream has none: give it one, such as credentials = { from = \"static\", username = \"…\", password_file = \"…\" } (or docker-config, helper, azure, ecr), or write push = \"client\" or \"off\"";
const TWO_DEFAULTS: &str = "only one upstream can be the default one; write NAME=URL for the others";

/// All upstreams, and the one that a flag or variable made the default.
pub(super) fn build(
    file: &File,
    words: &[Word],
    sealed: bool,
    problems: &mut Problems,
) -> (Named, Option<UpstreamName>) {
    let with_builtin = value(problems, &KeyPath::dotted("builtin_upstreams"), file.builtin_upstreams.as_ref(), boolean)
        .unwrap_or(true);
    let mut upstreams = Named::new();
    if with_builtin {
        upstreams.extend(builtin::upstreams().into_iter().map(|upstream| (upstream.name.clone(), upstream)));
    }
    merge_tables(file, &mut upstreams, problems);
    let default = merge_words(words, &mut upstreams, problems);
    if sealed {
        upstreams.values_mut().for_each(Upstream::seal);
    }
    (upstreams, default)
}

fn merge_tables(file: &File, upstreams: &mut Named, problems: &mut Problems) {
    let mut seen = Vec::new();
    for (key, table) in &file.upstream {
        let at = KeyPath::dotted("upstream").key(key);
        let Some(name) = problems.check(at.clone(), name(key)) else { continue };
        if seen.contains(&name) {
            problems.add(at, Fault::SameUpstream(key.clone()));
            continue;
        }
        seen.push(name.clone());
        let url = value(problems, &at.key("url"), table.url.as_ref(), |s| text(s)?.parse::<BaseUrl>());
        let url = match (url, &table.url) {
            (Some(url), _) => Some(builtin::api_url(url)),
            (None, Some(_)) => continue,
            (None, None) => None,
        };
        let Some(base) = base(upstreams, &name, key, url) else {
            problems.add(at, Fault::Missing(NO_URL));
            continue;
        };
        let upstream = merge(&at, base, table, problems);
        upstreams.insert(name, upstream);
    }
}

/// What a table is merged over: the upstream of that name, else a new one, whose URL may follow from its name.
fn base(upstreams: &mut Named, name: &UpstreamName, key: &str, url: Option<BaseUrl>) -> Option<Upstream> {
    match (upstreams.remove(name), url) {
        (Some(known), None) => Some(known),
        (Some(known), Some(url)) => Some(Upstream { url, ..known }),
        (None, Some(url)) => Some(builtin::fresh(name.clone(), url)),
        (None, None) if key.contains(['.', ':']) || key == "localhost" => {
            key.parse().ok().map(|url| builtin::fresh(name.clone(), builtin::api_url(url)))
        }
        (None, None) => None,
    }
}

fn merge(at: &KeyPath, mut upstream: Upstream, table: &UpstreamTable, problems: &mut Problems) -> Upstream {
    if let Some(library) = value(problems, &at.key("library"), table.library.as_ref(), boolean) {
        upstream.library = library;
    }
    if let Some(ca) = value(problems, &at.key("ca"), table.ca.as_ref(), path) {
        upstream.ca = Some(ca);
    }
    match value(problems, &at.key("tags"), table.tags.as_ref(), |s| parse::tags(&s.to_string())) {
        Some(TagPolicy::Sealed) => upstream.seal(),
        Some(tags) => upstream.tags = tags,
        None => {}
    }
    if let Some(list) = &table.token_hosts {
        upstream.token_hosts = each(&at.key("token_hosts"), list, parse::host, problems);
    }
    if let Some(list) = &table.connect {
        upstream.connect = each(&at.key("connect"), list, parse::dial, problems);
    }
    if let Some(push) = value(problems, &at.key("push"), table.push.as_ref(), |s| parse::push(&text(s)?)) {
        upstream.push = push;
    }
    if let Some(list) = &table.mirrors {
        upstream.mirrors = each(&at.key("mirrors"), list, mirror, problems);
    }
    upstream.transfer = upstream.transfer.merge(at, table, problems);
    for (key, scalar, set) in [
        ("public_for", &table.public_for, &mut upstream.public_for),
        ("access_ttl", &table.access_ttl, &mut upstream.access_ttl),
        ("access_stale", &table.access_stale, &mut upstream.access_stale),
    ] {
        if let Some(duration) = value(problems, &at.key(key), scalar.as_ref(), |s| parse::duration(&s.to_string())) {
            *set = duration;
        }
    }
    let reserve =
        value(problems, &at.key("reserve"), table.reserve.as_ref(), |s| parse::percent(&s.to_string(), RESERVE));
    if let Some(reserve) = reserve {
        upstream.reserve = reserve;
    }
    if let Some(relay) = value(problems, &at.key("relay_credentials"), table.relay_credentials.as_ref(), boolean) {
        upstream.relay_credentials = relay;
    }
    let mut known = true;
    if let Some(table) = &table.credentials {
        match credentials::build(&at.key("credentials"), table, &upstream.url, problems) {
            Some(credentials) => upstream.credentials = credentials,
            None => known = false,
        }
    }
    // Where `credentials` itself is wrong, that is the mistake.
    if known && upstream.push == PushBy::Shared && !upstream.credentials.is_own_account() {
        problems.add(at.key("push"), Fault::Unfit(NO_ACCOUNT));
    }
    if let Some(tables) = &table.rule {
        let at = at.key("rule");
        let rules = tables.iter().enumerate();
        upstream.rules =
            rules.filter_map(|(index, table)| rule(&at.index(index), table, upstream.library, problems)).collect();
    }
    upstream
}

fn each<T>(at: &KeyPath, list: &[String], parse: fn(&str) -> Result<T, Fault>, problems: &mut Problems) -> Vec<T> {
    let items = list.iter().enumerate();
    items.filter_map(|(index, text)| problems.check(at.index(index), parse(text))).collect()
}

fn mirror(text: &str) -> Result<BaseUrl, Fault> {
    text.parse().map(builtin::api_url)
}

fn rule(at: &KeyPath, table: &RuleTable, library: bool, problems: &mut Problems) -> Option<Rule> {
    let repository = |scalar: &Scalar| pattern::repository(&text(scalar)?, library);
    let tag = |scalar: &Scalar| pattern::tag(&text(scalar)?);
    let rule = Rule {
        repository: value(problems, &at.key("repository"), table.repository.as_ref(), repository),
        tag: value(problems, &at.key("tag"), table.tag.as_ref(), tag),
        tags: TagPolicy::Always,
    };
    if table.tags.is_none() {
        problems.add(at.clone(), Fault::Missing(NO_TAGS));
    }
    let tags = value(problems, &at.key("tags"), table.tags.as_ref(), |s| parse::tags(&s.to_string()))?;
    Some(Rule { tags, ..rule })
}

/// `[NAME=]URL` of flags or environment: sets the URL of a known upstream or adds one. One without NAME is the default.
fn merge_words(words: &[Word], upstreams: &mut Named, problems: &mut Problems) -> Option<UpstreamName> {
    let mut default: Option<UpstreamName> = None;
    for word in words {
        let at = At::Name(word.from.to_owned());
        match problems.check(at.clone(), merge_word(&word.value, upstreams)) {
            Some(Some(_)) if default.is_some() => problems.add(at, Fault::Unfit(TWO_DEFAULTS)),
            Some(Some(name)) => default = Some(name),
            Some(None) | None => {}
        }
    }
    default
}

/// Its name, if it was written without one.
fn merge_word(word: &str, upstreams: &mut Named) -> Result<Option<UpstreamName>, Fault> {
    // A password may contain `=`: it must not end up in a message as a name.
    if word.contains('@') {
        return Err(Fault::Userinfo);
    }
    let (given, location) = match word.split_once('=') {
        Some((given, location)) => (Some(name(given)?), location),
        None => (None, word),
    };
    if given.is_none()
        && let Ok(known) = name(word)
        && upstreams.contains_key(&known)
    {
        return Ok(Some(known));
    }
    if given.is_none() && !word.contains(['.', ':', '[']) && authority(word) != "localhost" {
        return Err(Fault::BareWord(word.to_owned()));
    }
    let url: BaseUrl = location.parse()?;
    let derived = match given.clone() {
        Some(name) => name,
        None if builtin::is_docker_hub(&url) => name(builtin::DEFAULT_UPSTREAM)?,
        None => name(authority(location))?,
    };
    let url = builtin::api_url(url);
    if let Some(upstream) = base(upstreams, &derived, "", Some(url)) {
        upstreams.insert(derived.clone(), upstream);
    }
    Ok(given.is_none().then_some(derived))
}

/// Host, and port where one is written.
fn authority(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    rest.split_once('/').map_or(rest, |(authority, _)| authority)
}

/// An upstream's name from what was written: in lower case, `:` as `-`.
fn name(text: &str) -> Result<UpstreamName, Fault> {
    let fault = || Fault::value(text, NAME);
    if text.contains('@') {
        return Err(Fault::Userinfo);
    }
    let mut normal = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            // Brackets and colons of an IPv6 address, and doubled dashes of an encoded international name.
            '[' | ']' | ':' | '-' if normal.is_empty() || normal.ends_with('-') => {}
            '[' | ']' | ':' => normal.push('-'),
            other => normal.push(other.to_ascii_lowercase()),
        }
    }
    normal.trim_end_matches('-').parse().map_err(|_| fault())
}

/// The configured upstream that is called so.
pub(super) fn existing(text: &str, upstreams: &Named) -> Result<UpstreamName, Fault> {
    let name = name(text)?;
    if upstreams.contains_key(&name) {
        return Ok(name);
    }
    let nearest = keys::nearest(name.as_str(), upstreams.keys().map(UpstreamName::as_str)).map(ToOwned::to_owned);
    Err(Fault::NoSuchUpstream { name: name.to_string(), nearest })
}

/// An upstream whose address is written as one of our own listeners would be asked by itself until something gives.
pub(super) fn refuse_own_addresses(
    file: &File,
    words: &[Word],
    upstreams: &Named,
    listeners: &[Listener],
    problems: &mut Problems,
) {
    let own = |host: &str, port: u16| {
        listeners.iter().any(|l| matches!(&l.address, Address::Tcp(address) if parse::reaches(address, host, port)))
    };
    refuse_odd_mirrors(file, upstreams, own, problems);
    for upstream in upstreams.values() {
        let table = file.upstream.keys().find(|key| name(key).as_ref() == Ok(&upstream.name));
        let at = || match (table, words.first()) {
            (None, Some(word)) => At::Name(word.from.to_owned()),
            (key, _) => At::Key(KeyPath::dotted("upstream").key(key.map_or(upstream.name.as_str(), String::as_str))),
        };
        if upstream.connect.is_empty() && own(&upstream.url.host, upstream.url.port) {
            problems.add(at(), Fault::OwnAddress(upstream.url.authority()));
        }
        for dial in &upstream.connect {
            if let Some((host, Some(port))) = parse::host_and_port(dial)
                && own(&host, port)
            {
                problems.add(at(), Fault::OwnAddress(dial.clone()));
            }
        }
    }
}

/// Only tables have mirrors; but a flag or a variable may have set the URL that they must differ from.
fn refuse_odd_mirrors(file: &File, upstreams: &Named, own: impl Fn(&str, u16) -> bool, problems: &mut Problems) {
    for (key, table) in &file.upstream {
        let Some(upstream) = name(key).ok().and_then(|name| upstreams.get(&name)) else { continue };
        let at = KeyPath::dotted("upstream").key(key).key("mirrors");
        let mut asked = vec![upstream.url.clone()];
        for (index, text) in table.mirrors.iter().flatten().enumerate() {
            let Ok(url) = mirror(text) else { continue };
            if asked.contains(&url) {
                problems.add(at.index(index), Fault::SameMirror(url.to_string()));
            } else if own(&url.host, url.port) {
                problems.add(at.index(index), Fault::OwnAddress(url.authority()));
            }
            asked.push(url);
        }
    }
}

// === impl Upstream ===

impl Upstream {
    /// Whether `other` is asked in the same way: what differs, if anything, is for who answers clients, or a limit that can
    /// be set on what is running.
    pub fn is_asked_as(&self, other: &Self) -> bool {
        let asked = |upstream: &Self| {
            let Self { transfer, .. } = *upstream;
            let transfer = Transfer { max_connections: None, max_rate: MaxRate::default(), ..transfer };
            let (zero, tags) = (Duration::ZERO, TagPolicy::Always);
            let periods = Self { public_for: zero, access_ttl: zero, access_stale: zero, ..upstream.clone() };
            let of_clients =
                Self { push: PushBy::Off, relay_credentials: false, library: false, reserve: 0, ..periods };
            // What is sealed decides what is sent, everything else how long what is known is served.
            let mut rules = upstream.rules.clone();
            rules.iter_mut().filter(|rule| rule.tags != TagPolicy::Sealed).for_each(|rule| rule.tags = tags);
            if rules.iter().all(|rule| rule.tags != TagPolicy::Sealed) {
                rules.clear();
            }
            Self { tags, rules, transfer, ..of_clients }
        };
        asked(self) == asked(other)
    }

    fn seal(&mut self) {
        self.sealed = true;
        self.tags = TagPolicy::Sealed;
    }
}
