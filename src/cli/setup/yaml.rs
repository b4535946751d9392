//! `registries.yaml` of k3s and RKE2, changed in its text, so that comments and order stay; what has come of it is parsed and
//! compared with what it should be, and anything that is not sure is refused.
//!
//! ```yaml
//! mirrors:
//!   docker.io:
//!     endpoint:
//!       - "http://127.0.0.1:5000"
//! configs:
//!   "cache.example:5000":
//!     tls:
//!       ca_file: /etc/rancher/k3s/ocistern-ca.crt
//! ```

use saphyr_parser::{Event, Parser, ScalarStyle};

use super::plan::Unmergeable;
use super::secrets::{Scalar, deeper};

const BY_HAND: &str = "is written in a way that is not changed safely: write it as an indented block, or add the lines by hand \
                       (without --write this command shows a file of its own)";

/// So many lists and mappings may be in each other, of which such a file has six.
const DEPTH: usize = 64;

/// What is to be in the file.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    /// Registries.
    pub(super) hosts: Vec<String>,
    /// What comes first among the endpoints of each.
    pub(super) endpoint: String,
    /// What comes behind it where a registry has no entry yet: what holds for it so far.
    pub(super) behind: Vec<String>,
    /// Host and port of ocistern, and the path of its CA's certificate.
    pub(super) ca: Option<(String, String)>,
}

/// A value, and where it is in the text.
#[derive(Debug, Clone)]
struct Node {
    value: Value,
    /// Line from 0 and column where it begins.
    line: usize,
    column: usize,
    /// Byte where it begins.
    at: usize,
    /// Byte behind it, of a scalar.
    end: usize,
}

#[derive(Debug, Clone)]
enum Value {
    Null,
    Scalar(String),
    List(Vec<Node>),
    Map(Vec<(Node, Node)>),
}

/// What `"*"`, which stands for each registry without an entry of its own, says.
#[derive(Debug)]
pub(super) enum All {
    /// Nothing that an entry of its own would take away.
    Nothing,
    /// Endpoints.
    Endpoints(Vec<String>),
    /// More than that, or something else.
    More(Unmergeable),
}

/// What holds for these registries by `"*"`, and for which of them: those without an entry.
pub(super) fn all(text: Option<&str>, hosts: &[String]) -> Result<(All, Vec<String>), Unmergeable> {
    let root = parse(text.unwrap_or_default())?;
    let Some((_, Node { value: Value::Map(entries), .. })) = top(root.as_ref(), "mirrors")? else {
        return Ok((All::Nothing, Vec::new()));
    };
    let without = |host: &&String| !entries.iter().any(|(key, _)| key.is(host));
    let without = hosts.iter().filter(without).cloned().collect();
    let Some((name, all)) = entries.iter().find(|(key, _)| key.is("*")) else {
        return Ok((All::Nothing, Vec::new()));
    };
    let more =
        |what: &str| All::More(Unmergeable::at(name.line + 1, name.column + 1, format!("\"*\" has {what} here")));
    let Value::Map(fields) = &all.value else {
        return Ok((if matches!(all.value, Value::Null) { All::Nothing } else { more("no fields") }, without));
    };
    let mut endpoints = Vec::new();
    for (key, value) in fields {
        match &value.value {
            Value::Null => {}
            Value::List(items) if key.is("endpoint") => {
                endpoints.extend(items.iter().map(|item| item.scalar().cloned()));
            }
            _ => return Ok((more(key.scalar().map_or("a field of another form", String::as_str)), without)),
        }
    }
    let Some(endpoints) = endpoints.into_iter().collect::<Option<Vec<_>>>() else {
        return Ok((more("endpoints that are no texts"), without));
    };
    Ok((if endpoints.is_empty() { All::Nothing } else { All::Endpoints(endpoints) }, without))
}

/// The file with what is wanted in it; a new one where there is none.
pub(super) fn merge(text: Option<&str>, wanted: &Entry) -> Result<String, Unmergeable> {
    let mut text = text.unwrap_or_default().to_owned();
    let before = parse(&text)?.as_ref().map(plain);
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    // Each of them alone in the text as it is: what is in the way there is told with its place.
    for host in &wanted.hosts {
        add_mirror(&text, host, wanted)?;
    }
    if let Some((host, file)) = &wanted.ca {
        add_ca(&text, host, file)?;
    }
    let expected = expected(before, wanted)?;
    // What is in the way of a later one is in no file, and no fault of it.
    match added(text, wanted) {
        Ok((text, Some(found))) if found.same(&expected) => Ok(text),
        _ => Err(Unmergeable::new(format!("it {BY_HAND}"))),
    }
}

/// All that is wanted, and what it comes to. Each step is small, and looks at what the one before has left.
fn added(mut text: String, wanted: &Entry) -> Result<(String, Option<Plain>), Unmergeable> {
    for host in wanted.hosts.iter().rev() {
        text = add_mirror(&text, host, wanted)?;
    }
    if let Some((host, file)) = &wanted.ca {
        text = add_ca(&text, host, file)?;
    }
    let found = parse(&text)?.as_ref().map(plain);
    Ok((text, found))
}

fn add_mirror(text: &str, host: &str, wanted: &Entry) -> Result<String, Unmergeable> {
    let endpoint = wanted.endpoint.as_str();
    let quoted = quote(endpoint);
    let root = parse(text)?;
    let Some((key, mirrors)) = top(root.as_ref(), "mirrors")? else {
        return Ok(append(text, &format!("mirrors:\n  {}:\n    endpoint:\n      - {quoted}\n", key_text(host))));
    };
    let step = mirrors.step();
    let block = |indent: usize| {
        let pad = " ".repeat(indent);
        let item = |endpoint: &String| format!("{pad}{step}{step}- {}\n", quote(endpoint));
        let items: String = wanted.fresh().iter().map(item).collect();
        format!("{pad}{}:\n{pad}{step}endpoint:\n{items}", key_text(host))
    };
    let entries = match &mirrors.value {
        Value::Null => return Ok(insert_after(text, key.line, &block(2))),
        Value::Map(entries) if mirrors.is_block(text) => entries,
        _ => return Err(key.refused("mirrors")),
    };
    let indent = entries.first().map_or(2, |(key, _)| key.column);
    let Some((name, mirror)) = entries.iter().find(|(key, _)| key.is(host)) else {
        return Ok(insert_after(text, key.line, &block(indent)));
    };
    let pad = " ".repeat(indent);
    let list = |indent: &str| format!("{indent}endpoint:\n{indent}{step}- {quoted}\n");
    let fields = match &mirror.value {
        Value::Null => return Ok(insert_after(text, name.line, &list(&format!("{pad}{step}")))),
        Value::Map(fields) if mirror.is_block(text) => fields,
        _ => return Err(name.refused(&format!("mirrors.{host}"))),
    };
    if fields.iter().any(|(key, value)| key.is("rewrite") && !matches!(value.value, Value::Null)) {
        return Err(Unmergeable::at(
            name.line + 1,
            name.column + 1,
            format!(
                "{host} has rewrite rules, which would change the names that ocistern is asked for: take them out if its other \
                 endpoints can do without, or leave this registry to them"
            ),
        ));
    }
    let Some((field, endpoints)) = fields.iter().find(|(key, _)| key.is("endpoint")) else {
        let indent = " ".repeat(fields.first().map_or(indent + 2, |(key, _)| key.column));
        return Ok(insert_after(text, name.line, &list(&indent)));
    };
    let items = match &endpoints.value {
        Value::Null => {
            let pad = " ".repeat(field.column);
            return Ok(insert_after(text, field.line, &format!("{pad}{step}- {quoted}\n")));
        }
        Value::List(items) => items,
        _ => return Err(field.refused(&format!("mirrors.{host}.endpoint"))),
    };
    if items.iter().any(|item| item.is(endpoint)) {
        return Ok(text.to_owned());
    }
    if text.get(endpoints.at..).is_some_and(|rest| rest.starts_with('[')) {
        let (before, behind) = text.split_at(endpoints.at + 1);
        let comma = if items.is_empty() { "" } else { ", " };
        return Ok(format!("{before}{quoted}{comma}{behind}"));
    }
    let first = items.first().map_or(endpoints.line, |item| item.line);
    let Some(dash) = text.lines().nth(first).and_then(|line| line.find('-')) else {
        return Err(field.refused(&format!("mirrors.{host}.endpoint")));
    };
    Ok(insert_after(text, first.wrapping_sub(1), &format!("{}- {quoted}\n", " ".repeat(dash))))
}

fn add_ca(text: &str, host: &str, file: &str) -> Result<String, Unmergeable> {
    let root = parse(text)?;
    let Some((key, configs)) = top(root.as_ref(), "configs")? else {
        let lines = format!("configs:\n  {}:\n    tls:\n      ca_file: {}\n", key_text(host), quote(file));
        return Ok(append(text, &lines));
    };
    let step = configs.step();
    let pad = |indent: usize| " ".repeat(indent);
    let block = |indent: usize| {
        let pad = pad(indent);
        format!("{pad}{}:\n{pad}{step}tls:\n{pad}{step}{step}ca_file: {}\n", key_text(host), quote(file))
    };
    let entries = match &configs.value {
        Value::Null => return Ok(insert_after(text, key.line, &block(2))),
        Value::Map(entries) if configs.is_block(text) => entries,
        _ => return Err(key.refused("configs")),
    };
    let indent = entries.first().map_or(2, |(key, _)| key.column);
    let Some((name, config)) = entries.iter().find(|(key, _)| key.is(host)) else {
        return Ok(insert_after(text, key.line, &block(indent)));
    };
    let fields = match &config.value {
        Value::Map(fields) if config.is_block(text) => fields,
        _ => return Err(name.refused(&format!("configs.{host}"))),
    };
    let column = fields.first().map_or(indent + 2, |(key, _)| key.column);
    let Some((tls_key, tls)) = fields.iter().find(|(key, _)| key.is("tls")) else {
        let pad = pad(column);
        return Ok(insert_after(text, name.line, &format!("{pad}tls:\n{pad}{step}ca_file: {}\n", quote(file))));
    };
    match &tls.value {
        Value::Map(tls) if tls.iter().any(|(key, value)| key.is("ca_file") && value.is(file)) => Ok(text.to_owned()),
        Value::Map(fields) if tls.is_block(text) && !fields.iter().any(|(key, _)| key.is("ca_file")) => {
            let pad = pad(fields.first().map_or(column + 2, |(key, _)| key.column));
            Ok(insert_after(text, tls_key.line, &format!("{pad}ca_file: {}\n", quote(file))))
        }
        _ => Err(Unmergeable::at(
            tls_key.line + 1,
            tls_key.column + 1,
            format!("configs.{host}.tls already says something else: it needs ca_file: {file}"),
        )),
    }
}

/// A key of the document, and its value.
fn top<'a>(root: Option<&'a Node>, name: &str) -> Result<Option<(&'a Node, &'a Node)>, Unmergeable> {
    match root.map(|node| (&node.value, node)) {
        None | Some((Value::Null, _)) => Ok(None),
        Some((Value::Map(entries), node)) if node.column == 0 => {
            Ok(entries.iter().find(|(key, _)| key.is(name)).map(|(key, value)| (key, value)))
        }
        Some((_, node)) => Err(node.refused("this file")),
    }
}

/// Puts lines behind the line of this number, from 0; behind none, first of all.
fn insert_after(text: &str, line: usize, lines: &str) -> String {
    let mut out = String::with_capacity(text.len() + lines.len());
    if line == usize::MAX {
        out.push_str(lines);
    }
    for (number, there) in text.split_inclusive('\n').enumerate() {
        out.push_str(there);
        if number == line {
            out.push_str(lines);
        }
    }
    out
}

fn append(text: &str, lines: &str) -> String {
    let gap = if text.trim().is_empty() { "" } else { "\n" };
    format!("{text}{gap}{lines}")
}

/// A text in double quotes, in which YAML escapes as JSON does.
fn quote(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// A key: bare where nothing in it means anything to YAML.
fn key_text(host: &str) -> String {
    let bare = host.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'.' || b == b'-');
    if bare && host.starts_with(|c: char| c.is_ascii_alphabetic()) { host.to_owned() } else { quote(host) }
}

// === impl Entry ===

impl Entry {
    /// The endpoints of a registry that has no entry yet.
    fn fresh(&self) -> Vec<String> {
        let others = self.behind.iter().filter(|endpoint| **endpoint != self.endpoint);
        [&self.endpoint].into_iter().chain(others).cloned().collect()
    }
}

// === impl Node ===

impl Node {
    const fn scalar(&self) -> Option<&String> {
        if let Value::Scalar(text) = &self.value { Some(text) } else { None }
    }

    fn is(&self, text: &str) -> bool {
        matches!(&self.value, Value::Scalar(scalar) if scalar == text)
    }

    /// Whether a mapping is written as a block.
    fn is_block(&self, text: &str) -> bool {
        !text.get(self.at..).is_some_and(|rest| rest.starts_with(['{', '[']))
    }

    /// By how much this mapping's children stand to the right.
    fn step(&self) -> String {
        let inner = match &self.value {
            Value::Map(entries) => entries.iter().find_map(|(key, value)| match &value.value {
                Value::Map(fields) => fields.first()?.0.column.checked_sub(key.column),
                _ => None,
            }),
            _ => None,
        };
        " ".repeat(inner.filter(|step| *step > 0).unwrap_or(2))
    }

    fn refused(&self, what: &str) -> Unmergeable {
        Unmergeable::at(self.line + 1, self.column + 1, format!("{what} {BY_HAND}"))
    }
}

/// The only document of a text; none where there is nothing in it.
fn parse(text: &str) -> Result<Option<Node>, Unmergeable> {
    let mut events = Vec::new();
    for event in Parser::new_from_str(text) {
        let (event, span) = event.map_err(|error| {
            let (at, info) = (*error.marker(), error.info().to_owned());
            Unmergeable::at(at.line(), at.col() + 1, format!("this is no YAML ({info}); mend it, then try again"))
        })?;
        events.push((event, span));
    }
    if events.iter().filter(|(event, _)| matches!(event, Event::DocumentStart(_))).count() > 1 {
        return Err(Unmergeable::new(
            "there is more than one document in it, of which only the first is read: leave one",
        ));
    }
    let mut nodes = events.into_iter().filter(|(event, _)| {
        !matches!(
            event,
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentStart(_) | Event::DocumentEnd
        )
    });
    let bytes: Vec<usize> = text.char_indices().map(|(at, _)| at).chain([text.len()]).collect();
    let Some(first) = nodes.next() else { return Ok(None) };
    node(first, &mut nodes, &bytes, DEPTH).map(Some)
}

type Spanned<'a> = (Event<'a>, saphyr_parser::Span);

fn node<'a>(
    (event, span): Spanned<'a>,
    rest: &mut impl Iterator<Item = Spanned<'a>>,
    bytes: &[usize],
    depth: usize,
) -> Result<Node, Unmergeable> {
    let (line, column) = (span.start.line().saturating_sub(1), span.start.col());
    let at = bytes.get(span.start.index()).copied().unwrap_or_default();
    let end = bytes.get(span.end.index()).copied().unwrap_or(at);
    let Some(depth) = depth.checked_sub(1) else {
        return Err(Unmergeable::at(
            line + 1,
            column + 1,
            "this is deeper than any such file: mend it, then try again",
        ));
    };
    let cut = || Unmergeable::at(line + 1, column + 1, "this is no YAML: it ends too early");
    let value = match event {
        Event::Scalar(text, style, _, _) => match (text.as_ref(), style) {
            ("" | "~" | "null" | "Null" | "NULL", ScalarStyle::Plain) => Value::Null,
            _ => Value::Scalar(text.into_owned()),
        },
        Event::SequenceStart(..) => {
            let mut items = Vec::new();
            loop {
                match rest.next().ok_or_else(cut)? {
                    (Event::SequenceEnd, _) => break,
                    item => items.push(node(item, rest, bytes, depth)?),
                }
            }
            Value::List(items)
        }
        Event::MappingStart(..) => {
            let mut entries = Vec::new();
            loop {
                let key = match rest.next().ok_or_else(cut)? {
                    (Event::MappingEnd, _) => break,
                    key => node(key, rest, bytes, depth)?,
                };
                let value = rest.next().ok_or_else(cut)?;
                entries.push((key, node(value, rest, bytes, depth)?));
            }
            Value::Map(entries)
        }
        _ => {
            let why = "there is an alias (*name) here, which is not changed safely: write out what it stands for";
            return Err(Unmergeable::at(line + 1, column + 1, why));
        }
    };
    Ok(Node { value, line, column, at, end })
}

/// The registries of a text, each with its endpoints; else where and why it is no such file.
pub(in crate::cli) fn endpoints(text: &str) -> Result<Vec<(String, Vec<String>)>, String> {
    let root = parse(text).map_err(|wrong| {
        let place = wrong.place.map(|(line, column)| format!("line {line}, column {column}: ")).unwrap_or_default();
        format!("{place}{}", wrong.why)
    })?;
    let scalar = |node: &Node| node.scalar().cloned();
    let entry = |node: &Node, name: &str| match &node.value {
        Value::Map(entries) => entries.iter().find(|(key, _)| key.is(name)).map(|(_, value)| value.clone()),
        _ => None,
    };
    let Some(Value::Map(mirrors)) = root.and_then(|root| entry(&root, "mirrors")).map(|node| node.value) else {
        return Ok(Vec::new());
    };
    let of = |(key, value): &(Node, Node)| {
        let list = match entry(value, "endpoint")?.value {
            Value::List(items) => items.iter().filter_map(scalar).collect(),
            _ => Vec::new(),
        };
        Some((scalar(key)?, list))
    };
    Ok(mirrors.iter().filter_map(of).collect())
}

/// The scalars of a text, keys included, with where they are.
pub(super) fn scalars(text: &str) -> Result<Vec<Scalar>, Unmergeable> {
    fn collect(node: &Node, keys: &[String], found: &mut Vec<Scalar>) {
        match &node.value {
            Value::Null => {}
            Value::Scalar(text) => {
                found.push(Scalar { keys: keys.to_vec(), range: node.at..node.end, text: text.clone() });
            }
            Value::List(items) => items.iter().for_each(|item| collect(item, keys, found)),
            Value::Map(entries) => {
                for (key, value) in entries {
                    // A key is the name of nothing itself.
                    collect(key, &[], found);
                    let name = if let Value::Scalar(name) = &key.value { name } else { "" };
                    collect(value, &deeper(keys, name), found);
                }
            }
        }
    }
    let mut found = Vec::new();
    if let Some(root) = parse(text)? {
        collect(&root, &[], &mut found);
    }
    Ok(found)
}

// --- what it should come to --------------------------------------------------------------------------------------------

/// A value without its place.
#[derive(Debug, Clone)]
enum Plain {
    Null,
    Scalar(String),
    List(Vec<Self>),
    Map(Vec<(Self, Self)>),
}

fn plain(node: &Node) -> Plain {
    match &node.value {
        Value::Null => Plain::Null,
        Value::Scalar(text) => Plain::Scalar(text.clone()),
        Value::List(items) => Plain::List(items.iter().map(plain).collect()),
        Value::Map(entries) => Plain::Map(entries.iter().map(|(key, value)| (plain(key), plain(value))).collect()),
    }
}

/// What a right merge comes to, worked out without any text.
fn expected(before: Option<Plain>, wanted: &Entry) -> Result<Plain, Unmergeable> {
    let mut root = before.unwrap_or(Plain::Null);
    for host in &wanted.hosts {
        let mirrors = root.map("mirrors")?;
        let is_new = !matches!(&*mirrors, Plain::Map(entries) if entries.iter().any(|(key, _)| key.is(host)));
        let list = mirrors.map(host)?.entry("endpoint")?;
        match list {
            Plain::Null if is_new => *list = Plain::List(wanted.fresh().into_iter().map(Plain::Scalar).collect()),
            Plain::Null => *list = Plain::List(vec![Plain::Scalar(wanted.endpoint.clone())]),
            Plain::List(items) if items.iter().any(|item| item.is(&wanted.endpoint)) => {}
            Plain::List(items) => items.insert(0, Plain::Scalar(wanted.endpoint.clone())),
            _ => return Err(Unmergeable::new(format!("mirrors.{host}.endpoint is no list"))),
        }
    }
    if let Some((host, file)) = &wanted.ca {
        *root.map("configs")?.map(host)?.map("tls")?.entry("ca_file")? = Plain::Scalar(file.clone());
    }
    Ok(root)
}

// === impl Plain ===

impl Plain {
    fn is(&self, text: &str) -> bool {
        matches!(self, Self::Scalar(scalar) if scalar == text)
    }

    fn map(&mut self, key: &str) -> Result<&mut Self, Unmergeable> {
        let entry = self.entry(key)?;
        match entry {
            Self::Null => *entry = Self::Map(Vec::new()),
            Self::Map(_) => {}
            _ => {
                return Err(Unmergeable::new(format!("{key} is no mapping, as it should be: mend it, then try again")));
            }
        }
        Ok(entry)
    }

    fn entry(&mut self, key: &str) -> Result<&mut Self, Unmergeable> {
        if matches!(self, Self::Null) {
            *self = Self::Map(Vec::new());
        }
        let Self::Map(entries) = self else {
            return Err(Unmergeable::new("this is no mapping, as it should be: mend it, then try again"));
        };
        let found = entries.iter().position(|(there, _)| there.is(key));
        let at = found.unwrap_or_else(|| {
            entries.push((Self::Scalar(key.to_owned()), Self::Null));
            entries.len() - 1
        });
        entries.get_mut(at).map(|(_, value)| value).ok_or_else(|| Unmergeable::new("this cannot be changed"))
    }

    /// Whether both say the same; the order of keys says nothing.
    fn same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Null, Self::Null) => true,
            (Self::Scalar(a), Self::Scalar(b)) => a == b,
            (Self::List(a), Self::List(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.same(b)),
            (Self::Map(a), Self::Map(b)) => {
                let has = |key: &Self, value: &Self| b.iter().any(|(k, v)| k.same(key) && v.same(value));
                a.len() == b.len() && a.iter().all(|(key, value)| has(key, value))
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const OURS: &str = "http://127.0.0.1:5000";

    fn wanted(hosts: &[&str], ca: bool) -> Entry {
        Entry {
            hosts: hosts.iter().map(ToString::to_string).collect(),
            endpoint: OURS.to_owned(),
            behind: Vec::new(),
            ca: ca.then(|| ("cache.example:5000".to_owned(), "/etc/ca.crt".to_owned())),
        }
    }

    #[test]
    fn a_new_file() {
        let text = merge(None, &wanted(&["docker.io", "localhost:5001"], true)).unwrap();
        assert_eq!(
            text,
            "mirrors:\n  docker.io:\n    endpoint:\n      - \"http://127.0.0.1:5000\"\n  \"localhost:5001\":\n    endpoint:\n      \
             - \"http://127.0.0.1:5000\"\n\nconfigs:\n  \"cache.example:5000\":\n    tls:\n      ca_file: \"/etc/ca.crt\"\n"
        );
    }

    #[test]
    fn other_lines_stay_as_they_are() {
        for (before, after) in [
            // Comments, another endpoint, another indentation.
            (
                "# mine\nmirrors: # all\n    # the hub\n    docker.io:\n        endpoint:\n        - https://m.example # near\n",
                "# mine\nmirrors: # all\n    # the hub\n    docker.io:\n        endpoint:\n        - \"http://127.0.0.1:5000\"\n        \
                 - https://m.example # near\n",
            ),
            // Nothing but the name, as for the embedded registry.
            (
                "mirrors:\n  docker.io:\n  \"*\":\n",
                "mirrors:\n  docker.io:\n    endpoint:\n      - \"http://127.0.0.1:5000\"\n  \"*\":\n",
            ),
            // Another registry.
            (
                "mirrors:\n  quay.io:\n    endpoint: [\"https://q.example\"]\n",
                "mirrors:\n  docker.io:\n    endpoint:\n      - \"http://127.0.0.1:5000\"\n  quay.io:\n    endpoint: \
                 [\"https://q.example\"]\n",
            ),
            // A list in one line.
            (
                "mirrors:\n  docker.io:\n    endpoint: [\"https://q.example\"]\n",
                "mirrors:\n  docker.io:\n    endpoint: [\"http://127.0.0.1:5000\", \"https://q.example\"]\n",
            ),
            ("mirrors:\n", "mirrors:\n  docker.io:\n    endpoint:\n      - \"http://127.0.0.1:5000\"\n"),
            // No line end at the end, and a document start.
            (
                "---\nconfigs:\n  a.example:\n    auth: {username: me}",
                "---\nconfigs:\n  a.example:\n    auth: {username: me}\n\nmirrors:\n  docker.io:\n    endpoint:\n      - \
                 \"http://127.0.0.1:5000\"\n",
            ),
            // It is there already, in another place of the list.
            (
                "mirrors:\n  'docker.io':\n    endpoint:\n      - https://a.example\n      - 'http://127.0.0.1:5000'\n",
                "mirrors:\n  'docker.io':\n    endpoint:\n      - https://a.example\n      - 'http://127.0.0.1:5000'\n",
            ),
        ] {
            let entry = wanted(&["docker.io"], false);
            let found = merge(Some(before), &entry).unwrap();
            assert_eq!(found, after);
            assert_eq!(merge(Some(&found), &entry).unwrap(), found, "the second time changes nothing");
        }
    }

    #[test]
    fn a_ca_goes_to_what_is_there() {
        for (before, after) in [
            (
                "configs:\n  b.example:\n    auth:\n      username: me\n",
                "configs:\n  \"cache.example:5000\":\n    tls:\n      ca_file: \"/etc/ca.crt\"\n  b.example:\n    auth:\n      username: \
                 me\n",
            ),
            (
                "configs:\n  \"cache.example:5000\":\n    auth:\n      username: me\n",
                "configs:\n  \"cache.example:5000\":\n    tls:\n      ca_file: \"/etc/ca.crt\"\n    auth:\n      username: me\n",
            ),
            (
                "configs:\n  \"cache.example:5000\":\n    tls:\n      cert_file: /c\n",
                "configs:\n  \"cache.example:5000\":\n    tls:\n      ca_file: \"/etc/ca.crt\"\n      cert_file: /c\n",
            ),
        ] {
            assert_eq!(merge(Some(before), &wanted(&[], true)).unwrap(), after);
        }
        let other = "configs:\n  \"cache.example:5000\":\n    tls:\n      ca_file: /other\n";
        let refused = merge(Some(other), &wanted(&[], true)).unwrap_err();
        assert_eq!(refused.place, Some((3, 5)), "{refused:?}");
    }

    #[test]
    fn what_is_not_sure_is_refused() {
        for text in [
            "mirrors: {docker.io: {endpoint: []}}\n",
            "mirrors:\n  docker.io: {endpoint: []}\n",
            "mirrors:\n  docker.io:\n    endpoint: https://a.example\n",
            "mirrors:\n  docker.io:\n    rewrite:\n      \"^a\": \"b\"\n    endpoint:\n      - https://a.example\n",
            "mirrors:\n  quay.io: &q\n    endpoint: []\n  docker.io: *q\n",
            "- a\n",
            "a: 1\n---\nb: 2\n",
            "mirrors:\n\tdocker.io:\n",
            &format!("mirrors: {}", "[".repeat(100_000)),
            &format!(
                "mirrors:\n{}",
                (0..3000).map(|depth| format!("{}a:\n", " ".repeat(depth))).collect::<Vec<_>>().concat()
            ),
            "  mirrors:\n    docker.io:\n",
        ] {
            let refused = merge(Some(text), &wanted(&["docker.io"], false)).unwrap_err();
            assert!(!refused.why.is_empty(), "{text}");
        }
    }

    /// Places are those of the file as it is, and what is no fault of it is not called one.
    #[test]
    fn what_is_refused_is_so_in_the_file_as_it_is() {
        let hosts = ["docker.io", "ghcr.io", "quay.io"];
        let rewrite =
            "mirrors:\n  docker.io:\n    endpoint:\n      - https://a.example\n    rewrite:\n      \"^a\": \"b\"\n";
        let line = "mirrors:\n  quay.io: {}\n";
        let tls = "configs:\n  \"cache.example:5000\":\n    tls:\n      ca_file: /other\n";
        for (text, place) in [(rewrite, (2, 3)), (line, (2, 3)), (tls, (3, 5))] {
            let refused = merge(Some(text), &wanted(&hosts, true)).unwrap_err();
            assert_eq!(refused.place, Some(place), "{refused:?}");
        }
        for text in [
            "mirrors:\n  ? docker.io\n  : endpoint:\n      - https://a.example\n",
            "? mirrors\n: docker.io:\n    endpoint:\n      - https://a.example\n",
        ] {
            let refused = merge(Some(text), &wanted(&hosts, true)).unwrap_err();
            assert!(refused.why.contains("by hand") && refused.place.is_none(), "{refused:?}");
        }
    }

    proptest! {
        /// Whatever is in a file: it is changed as it should be, or not at all.
        #[test]
        fn what_is_merged_stays_merged(lines in prop::collection::vec(
            "( {0,6})(- )?(mirrors|docker\\.io|endpoint|configs|tls|rewrite|a|\\[|\\{|\"x|# b)?(:|: [a{}\\[\\]*&|>]{0,3}|)", 0..8,
        )) {
            let text = lines.join("\n");
            let entry = wanted(&["docker.io", "ghcr.io"], true);
            if let Ok(once) = merge(Some(&text), &entry) {
                prop_assert_eq!(merge(Some(&once), &entry).unwrap(), once);
            }
        }
    }
}
