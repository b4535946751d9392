//! The upstreams: built-in ones, the file's tables merged over them, and what flags or environment name.

use std::collections::BTreeMap;

use super::error::Fault;
use super::file::{CredentialsTable, File, RuleTable, Scalar, UpstreamTable};
use super::layer::{Word, boolean, path, text, value};
use super::place::{At, KeyPath, Problems};
use super::{Address, BaseUrl, Credentials, Listener, Rule, TagPolicy, Upstream, builtin, keys, parse, pattern};
use crate::oci::UpstreamName;

/// Upstreams by name.
pub(super) type Named = BTreeMap<UpstreamName, Upstream>;

const NAME: &str = "a name for an upstream: write its host, such as \"registry.example\", or a word of lower-case letters and digits with single . _ or - between them";
const NO_URL: &str =
    "url, such as url = \"https://registry.example\" (it may be left out where the upstream's name is a host)";
const FROM: &str = "a source of credentials: write \"auto\", \"anonymous\", \"client\", \"static\" (username, password_file), \"docker-config\" (path) or \"helper\" (name)";
const NO_FROM: &str = "from, such as from = \"static\"";
const NO_USERNAME: &str = "username, which from = \"static\" needs";
const NO_PASSWORD_FILE: &str =
    "password_file, the path of a file whose first line is the password, which from = \"static\" needs";
const NO_NAME: &str = "name, which from = \"helper\" needs: \"pass\" for the program docker-credential-pass";
const HELPER: &str = "the name of a credential helper: write NAME for the program docker-credential-NAME, without path";
const USERNAME: &str = "an account name: it must not be empty nor contain a colon";
const ONLY_STATIC: &str = "username and password_file have a meaning only with from = \"static\"";
const ONLY_DOCKER_CONFIG: &str = "path has a meaning only with from = \"docker-config\"";
const ONLY_HELPER: &str = "name has a meaning only with from = \"helper\"";
const NO_TAGS: &str = "tags, the time that this rule sets, such as tags = \"immutable\"";
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
    for (key, scalar, set) in [
        ("public_for", &table.public_for, &mut upstream.public_for),
        ("access_ttl", &table.access_ttl, &mut upstream.access_ttl),
        ("access_stale", &table.access_stale, &mut upstream.access_stale),
    ] {
        if let Some(duration) = value(problems, &at.key(key), scalar.as_ref(), |s| parse::duration(&s.to_string())) {
            *set = duration;
        }
    }
    if let Some(relay) = value(problems, &at.key("relay_credentials"), table.relay_credentials.as_ref(), boolean) {
        upstream.relay_credentials = relay;
    }
    if let Some(table) = &table.credentials
        && let Some(credentials) = credentials(&at.key("credentials"), table, problems)
    {
        upstream.credentials = credentials;
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

fn credentials(at: &KeyPath, table: &CredentialsTable, problems: &mut Problems) -> Option<Credentials> {
    let username = |scalar: &Scalar| {
        let name = text(scalar)?;
        if name.is_empty() || name.contains(':') { Err(Fault::value(&name, USERNAME)) } else { Ok(name) }
    };
    let helper = |scalar: &Scalar| {
        let name = text(scalar)?;
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
        let fits = !name.is_empty() && name.bytes().all(plain) && !name.starts_with("docker-credential-");
        if fits { Ok(name) } else { Err(Fault::value(&name, HELPER)) }
    };
    let username = value(problems, &at.key("username"), table.username.as_ref(), username);
    let password_file = value(problems, &at.key("password_file"), table.password_file.as_ref(), path);
    let docker_config = value(problems, &at.key("path"), table.path.as_ref(), path);
    let helper = value(problems, &at.key("name"), table.name.as_ref(), helper);
    let Some(from) = &table.from else {
        problems.add(at.clone(), Fault::Missing(NO_FROM));
        return None;
    };
    let from = from.to_string();
    let mut only = |source: &str, present: bool, message: &'static str| {
        if present && from != source {
            problems.add(at.clone(), Fault::Unfit(message));
        }
    };
    only("static", table.username.is_some() || table.password_file.is_some(), ONLY_STATIC);
    only("docker-config", table.path.is_some(), ONLY_DOCKER_CONFIG);
    only("helper", table.name.is_some(), ONLY_HELPER);
    match from.as_str() {
        "auto" => Some(Credentials::Auto),
        "anonymous" => Some(Credentials::Anonymous),
        "client" => Some(Credentials::Client),
        "static" => {
            if table.username.is_none() {
                problems.add(at.clone(), Fault::Missing(NO_USERNAME));
            }
            if table.password_file.is_none() {
                problems.add(at.clone(), Fault::Missing(NO_PASSWORD_FILE));
            }
            let (username, password_file) = username.zip(password_file)?;
            Some(Credentials::Static { username, password_file })
        }
        "docker-config" => Some(Credentials::DockerConfig { path: docker_config }),
        "helper" => {
            if table.name.is_none() {
                problems.add(at.clone(), Fault::Missing(NO_NAME));
            }
            helper.map(|name| Credentials::Helper { name })
        }
        other => {
            problems.add(at.key("from"), Fault::value(other, FROM));
            None
        }
    }
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

// === impl Upstream ===

impl Upstream {
    fn seal(&mut self) {
        self.sealed = true;
        self.tags = TagPolicy::Sealed;
    }
}
