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
        below || named || has_userinfo(&self.text)
    }
}

/// Whether it is a URL with a name and a password.
fn has_userinfo(text: &str) -> bool {
    let authority = text.split_once("://").and_then(|(_, rest)| rest.split(['/', '?', '#']).next());
    authority.is_some_and(|authority| authority.contains('@'))
}

/// The text of the file at a path, with credentials masked; none: what is one cannot be told.
pub(super) fn masked(path: &Path, text: &str) -> Option<String> {
    let scalars = match path.extension().and_then(|end| end.to_str()) {
        Some("toml" | "conf") => of_toml(text)?,
        Some("yaml") => yaml::scalars(text).ok()?,
        Some("json") => of_json(text)?,
        _ => return Some(text.to_owned()),
    };
    let mut secrets: Vec<&Scalar> =
        scalars.iter().filter(|scalar| scalar.is_secret() && !scalar.range.is_empty()).collect();
    secrets.sort_unstable_by_key(|secret| secret.range.start);
    let (mut out, mut at) = (String::with_capacity(text.len()), 0);
    for secret in &secrets {
        out.push_str(text.get(at..secret.range.start)?);
        out.push('"');
        out.push_str(MASK);
        out.push('"');
        at = secret.range.end;
    }
    out.push_str(text.get(at..)?);
    Some(out.split_inclusive('\n').map(without_comment).collect())
}

/// A line, or what stands for it where it is a comment that may have a credential in it.
fn without_comment(line: &str) -> String {
    let lower = line.to_ascii_lowercase();
    let is_comment = lower.trim_start().starts_with('#');
    if !is_comment || !PARTS.iter().chain(&BELOW).any(|part| lower.contains(part)) {
        return line.to_owned();
    }
    let indent: String = line.chars().take_while(|c| c.is_whitespace()).collect();
    format!("{indent}# {MASK}{}", if line.ends_with('\n') { "\n" } else { "" })
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
                "configs: # c\n  a.example:\n    auth:\n      username: \"***\"\n      password: \"***\" # mine\n    tls:\n      ca_file: \
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
