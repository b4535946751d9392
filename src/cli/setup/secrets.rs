//! What is shown of clients' files: all of it but credentials. The terminal, a script's log and a bug report are read by more
//! people than a file of mode 0600.

use std::ops::Range;
use std::path::Path;

use jsonc_parser::ast::Value as Json;
use jsonc_parser::common::Ranged as _;
use jsonc_parser::{CollectOptions, ParseOptions, parse_to_ast};
use toml_edit::{Document, Item, Key, Value as Toml};

use super::yaml;

/// In the place of a credential.
pub(super) const MASK: &str = "***";
/// Keys below which all is one: `configs.HOST.auth` of containerd and k3s, `header` of hosts.toml.
const BELOW: [&str; 4] = ["auth", "header", "headers", "authorization"];
/// Parts of keys whose values are one.
const PARTS: [&str; 4] = ["password", "passwd", "secret", "token"];
/// Part of keys below which addresses may have one in them, in forms that are no URL.
const PROXY: &str = "proxy";

/// A value that is none of the structure, or a key.
#[derive(Debug)]
pub(super) struct Scalar {
    /// The keys that lead to it, lower case.
    pub(super) keys: Vec<String>,
    /// Where it is in the text, quotes included.
    pub(super) range: Range<usize>,
    /// What it says.
    pub(super) text: String,
}

// === impl Scalar ===

impl Scalar {
    fn is_secret(&self) -> bool {
        let below = self.keys.iter().any(|key| BELOW.contains(&key.as_str()));
        let named = self.keys.last().is_some_and(|key| PARTS.iter().any(|part| key.contains(part)));
        // A switch (`userland-proxy`) is no address.
        let is_text = !matches!(self.text.as_str(), "" | "true" | "false");
        // Nor is the name of a host one of a proxy.
        let is_proxy = |key: &String| key.contains(PROXY) && !key.contains(['.', ':', '/']);
        let proxy = is_text && self.keys.iter().any(is_proxy);
        below || named || proxy || has_userinfo(&self.text)
    }

    /// Where in the text there is no comment. The line on which a block (`|`, `>`) begins has none of its text yet.
    fn covers(&self, text: &str) -> Range<usize> {
        let own = text.get(self.range.clone()).unwrap_or_default();
        let first = if own.starts_with(['|', '>']) { own.find('\n').unwrap_or_default() } else { 0 };
        self.range.start + first..self.range.end
    }
}

/// Whether there may be a name and a password before a host, with or without a scheme and whatever is in the password.
fn has_userinfo(text: &str) -> bool {
    text.split_once(':').is_some_and(|(_, rest)| rest.contains('@'))
}

/// The text of the file at a path, with credentials masked; none: what is one cannot be told.
pub(super) fn masked(path: &Path, text: &str) -> Option<String> {
    let scalars = match path.extension().and_then(|end| end.to_str()) {
        Some("toml" | "conf") => of_toml(text)?,
        Some("yaml") => yaml::scalars(text).ok()?,
        Some("json") => of_json(text)?,
        _ => return Some(text.to_owned()),
    };
    let secrets: Vec<&Scalar> =
        scalars.iter().filter(|scalar| scalar.is_secret() && !scalar.range.is_empty()).collect();
    let mut masks: Vec<(Range<usize>, String)> =
        secrets.iter().map(|secret| (secret.range.clone(), format!("\"{MASK}\""))).collect();
    let mut covered: Vec<Range<usize>> = scalars.iter().map(|scalar| scalar.covers(text)).collect();
    // A header of TOML names its parents again, and the parser says only once where a key is.
    for key in secrets.iter().filter(|secret| secret.keys.is_empty() && !secret.text.is_empty()) {
        for (at, name) in text.match_indices(&key.text) {
            let quotes = text.get(..at).is_some_and(|before| before.ends_with(['"', '\'']));
            let quote = usize::from(quotes);
            let range = at - quote..(at + name.len() + quote).min(text.len());
            if !scalars.iter().any(|scalar| scalar.range.start < range.end && range.start < scalar.range.end) {
                masks.push((range.clone(), format!("\"{MASK}\"")));
                covered.push(range);
            }
        }
    }
    let is_json = path.extension().is_some_and(|end| end == "json");
    if !is_json {
        let mut comments = comments(text, &mut covered);
        // One beside a secret may say what it was before.
        let beside = |comment: &Range<usize>| {
            let line = text.get(..comment.start).map_or(0, |before| before.rfind('\n').map_or(0, |end| end + 1));
            masks.iter().any(|(mask, _)| line < mask.end && mask.start < comment.start)
        };
        comments.retain(|comment| beside(comment) || text.get(comment.clone()).is_none_or(may_have_secret));
        masks.extend(comments.into_iter().map(|comment| (comment, format!("# {MASK}"))));
    }
    masks.sort_unstable_by_key(|(range, _)| range.start);
    let (mut out, mut at) = (String::with_capacity(text.len()), 0);
    for (range, mask) in &masks {
        // Two that are entangled: the second one is masked by the first as far as that goes.
        if range.start >= at {
            out.push_str(text.get(at..range.start)?);
            out.push_str(mask);
        }
        at = at.max(range.end);
    }
    out.push_str(text.get(at..)?);
    Some(out)
}

/// The comments of YAML or TOML: from a `#` that no scalar has in it to the end of its line.
fn comments(text: &str, covered: &mut [Range<usize>]) -> Vec<Range<usize>> {
    covered.sort_unstable_by_key(|range| range.start);
    let (mut found, mut at) = (Vec::new(), 0);
    let mut left = covered.iter().peekable();
    while let Some(hash) = text.get(at..).and_then(|rest| rest.find('#')).map(|offset| at + offset) {
        while left.next_if(|range| range.end <= hash).is_some() {}
        if let Some(range) = left.peek().filter(|range| range.start <= hash) {
            at = range.end;
            continue;
        }
        let line = text.get(hash..).and_then(|rest| rest.split('\n').next()).unwrap_or_default();
        let end = hash + line.trim_end().len();
        found.push(hash..end);
        at = end;
    }
    found
}

/// Whether a comment speaks of what is masked as a value.
fn may_have_secret(comment: &str) -> bool {
    let lower = comment.to_lowercase();
    PARTS.iter().chain(&BELOW).chain([&PROXY]).any(|part| lower.contains(part)) || has_userinfo(comment)
}

fn of_toml(text: &str) -> Option<Vec<Scalar>> {
    let document = Document::parse(text).ok()?;
    let mut scalars = Vec::new();
    for (name, item) in document.as_table() {
        item_of_toml(item, &[name.to_lowercase()], &mut scalars);
    }
    keys_of_toml(document.as_table().iter().filter_map(|(name, _)| document.as_table().key(name)), &mut scalars);
    Some(scalars)
}

/// A key has no value that it could be the name of; it may be a URL.
fn keys_of_toml<'a>(keys: impl Iterator<Item = &'a Key>, scalars: &mut Vec<Scalar>) {
    let scalar = |key: &Key| Some(Scalar { keys: Vec::new(), range: key.span()?, text: key.get().to_owned() });
    scalars.extend(keys.filter_map(scalar));
}

fn item_of_toml(item: &Item, keys: &[String], scalars: &mut Vec<Scalar>) {
    match item {
        Item::None => {}
        Item::Value(value) => value_of_toml(value, keys, scalars),
        Item::Table(table) => {
            for (name, item) in table {
                item_of_toml(item, &deeper(keys, name), scalars);
            }
            keys_of_toml(table.iter().filter_map(|(name, _)| table.key(name)), scalars);
        }
        Item::ArrayOfTables(tables) => {
            for table in tables {
                for (name, item) in table {
                    item_of_toml(item, &deeper(keys, name), scalars);
                }
                keys_of_toml(table.iter().filter_map(|(name, _)| table.key(name)), scalars);
            }
        }
    }
}

fn value_of_toml(value: &Toml, keys: &[String], scalars: &mut Vec<Scalar>) {
    match value {
        Toml::Array(list) => list.iter().for_each(|value| value_of_toml(value, keys, scalars)),
        Toml::InlineTable(table) => {
            for (name, value) in table {
                value_of_toml(value, &deeper(keys, name), scalars);
            }
            keys_of_toml(table.iter().filter_map(|(name, _)| table.key(name)), scalars);
        }
        _ => {
            let text = value.as_str().unwrap_or_default().to_owned();
            scalars.extend(value.span().map(|range| Scalar { keys: keys.to_vec(), range, text }));
        }
    }
}

fn of_json(text: &str) -> Option<Vec<Scalar>> {
    if text.trim().is_empty() {
        return Some(Vec::new());
    }
    let parsed = parse_to_ast(text, &CollectOptions::default(), &ParseOptions::default()).ok()?;
    let mut scalars = Vec::new();
    value_of_json(&parsed.value?, &[], &mut scalars);
    Some(scalars)
}

fn value_of_json(value: &Json<'_>, keys: &[String], scalars: &mut Vec<Scalar>) {
    match value {
        Json::Array(list) => list.elements.iter().for_each(|value| value_of_json(value, keys, scalars)),
        Json::Object(object) => {
            for entry in &object.properties {
                value_of_json(&entry.value, &deeper(keys, entry.name.as_str()), scalars);
            }
        }
        _ => {
            let text = value.as_string_lit().map(|text| text.value.to_string()).unwrap_or_default();
            let range = value.range();
            scalars.push(Scalar { keys: keys.to_vec(), range: range.start..range.end, text });
        }
    }
}

/// The keys that lead to what has this name.
pub(super) fn deeper(keys: &[String], name: &str) -> Vec<String> {
    keys.iter().cloned().chain([name.to_lowercase()]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_masked_in_every_form() {
        for (path, text, shown) in [
            (
                "registries.yaml",
                "configs: # c\n  a.example:\n    auth:\n      username: me\n      password: hunter2 # mine\n    tls:\n      ca_file: /c\n",
                "configs: # c\n  a.example:\n    auth:\n      username: \"***\"\n      password: \"***\" # ***\n    tls:\n      ca_file: \
                 /c\n",
            ),
            (
                "registries.yaml",
                "configs:\n  é:\n    auth: {username: me, password: 'hunter2', auth: \"aHVudGVyMg==\"}\nx: y\n",
                "configs:\n  é:\n    auth: {username: \"***\", password: \"***\", auth: \"***\"}\nx: y\n",
            ),
            (
                "registries.yaml",
                "mirrors:\n  a:\n    endpoint:\n      - https://me:hunter2@b\n",
                "mirrors:\n  a:\n    endpoint:\n      - \"***\"\n",
            ),
            ("registries.yaml", "# password: hunter2\n  # a comment\nx: y\n", "# ***\n  # a comment\nx: y\n"),
            (
                "hosts.toml",
                "[host.\"https://a\"]\nca = \"/c\"\n[host.\"https://a\".header]\nAuthorization = [\"Basic hunter2\", 'b']\nx-key = \"hunter2\"\n",
                "[host.\"https://a\"]\nca = \"/c\"\n[host.\"https://a\".header]\nAuthorization = [\"***\", \"***\"]\nx-key = \"***\"\n",
            ),
            ("hosts.toml", "[host.\"https://me:hunter2@a\"]\nca = \"/c\"\n", "[host.\"***\"]\nca = \"/c\"\n"),
            (
                "config.toml",
                "[plugins.'io.containerd.grpc.v1.cri'.registry.configs.\"a\".auth]\n  identitytoken = \"\"\"\nhunter2\"\"\"\n",
                "[plugins.'io.containerd.grpc.v1.cri'.registry.configs.\"a\".auth]\n  identitytoken = \"***\"\n",
            ),
            ("registries.conf", "[[registry]]\nlocation = \"me:x\" # c\n", "[[registry]]\nlocation = \"me:x\" # c\n"),
            (
                "daemon.json",
                "{\n \"proxies\": {\"http-proxy\": \"http://me:hunter2@p:80\"},\n \"log-opts\": {\"splunk-token\": \"hunter2\"}, \"n\": 1\n}\n",
                "{\n \"proxies\": {\"http-proxy\": \"***\"},\n \"log-opts\": {\"splunk-token\": \"***\"}, \"n\": 1\n}\n",
            ),
            (
                "daemon.json",
                "{\"proxies\": {\"http-proxy\": \"me:hunter3@proxy:3128\", \"https-proxy\": \"http://me:hunt/er4@proxy:3128\", \"b\": \"x\"}}",
                "{\"proxies\": {\"http-proxy\": \"***\", \"https-proxy\": \"***\", \"b\": \"x\"}}",
            ),
            (
                "daemon.json",
                "{\"userland-proxy\": false, \"x\": [\"me:hunter3@proxy:3128\", \"http://me:hunt/er4@b\", \"a@b:c\"], \"HTTP_PROXY\": \"p\"}",
                "{\"userland-proxy\": false, \"x\": [\"***\", \"***\", \"a@b:c\"], \"HTTP_PROXY\": \"***\"}",
            ),
            (
                "registries.yaml",
                "a: b # old password: hunter1\r\nc: 'd # token' # e\nf: |  # secret: hunter1\n  # g\n# at http://me:hunt/er1@h\nh: i#token\n",
                "a: b # ***\r\nc: 'd # token' # e\nf: |  # ***\n  # g\n# ***\nh: i#token\n",
            ),
            (
                "hosts.toml",
                "a = \"b # token\" # c\n[host.\"https://a#token\"] # the token hunter1\nca = [ # secret hunter1\n  \"/c\", # d\n]\n",
                "a = \"b # token\" # c\n[host.\"https://a#token\"] # ***\nca = [ # ***\n  \"/c\", # d\n]\n",
            ),
            ("registries.conf", "[[registry]]\n\"a:b@c\" = 1\n", "[[registry]]\n\"***\" = 1\n"),
            (
                "hosts.toml",
                "[host.\"https://me:hunter2@a\"]\nca = \"/c\"\n[host.\"https://me:hunter2@a\".header]\n[host.'https://me:hunter2@a'.x]\n",
                "[host.\"***\"]\nca = \"/c\"\n[host.\"***\".header]\n[host.\"***\".x]\n",
            ),
            ("ca.crt", "a secret: b", "a secret: b"),
        ] {
            let found = masked(Path::new(path), text).unwrap();
            assert_eq!(found, shown, "{path}");
        }
        assert_eq!(masked(Path::new("a.toml"), "[[ hunter2"), None);
    }

    #[test]
    fn texts_of_several_lines_are_masked_as_a_whole() {
        let text = "configs:\n  a:\n    auth:\n      password: |\n        hunter2\n        hunter3\n    tls: {}\n";
        let found = masked(Path::new("registries.yaml"), text).unwrap();
        assert!(!found.contains("hunter") && found.contains("tls: {}"), "{found}");
    }
}
