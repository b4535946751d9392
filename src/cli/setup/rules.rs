//! Rules of `registries.conf` that hold for more than what they are asked for by ocistern: the longest prefix that fits a name
//! is the one that counts, so that a rule of ocistern's would put a shorter one out of force.

use std::path::{Path, PathBuf};

use toml_edit::{DocumentMut, Item, Table, TableLike};

const REGISTRY: &str = "registry";
const MIRROR: &str = "mirror";
const BLOCKED: &str = "blocked";
const INSECURE: &str = "insecure";

/// What a file says for the names below a prefix.
#[derive(Debug)]
pub(super) struct Rule {
    /// A registry, a part of one, or `*.` and the end of many.
    pub(super) prefix: String,
    pub(super) file: PathBuf,
    pub(super) says: Says,
}

/// What is said.
#[derive(Debug)]
pub(super) enum Says {
    /// That nothing is to be pulled.
    Blocked,
    /// Nothing that would not be the same in a rule for one registry.
    Simple(Simple),
    /// More than that: this key.
    More(String),
}

/// What of a rule goes into another one.
#[derive(Debug, Clone, Default)]
pub(super) struct Simple {
    /// Without TLS, or with a certificate that nobody vouches for.
    pub(super) insecure: bool,
    /// Each as it is.
    pub(super) mirrors: Vec<Table>,
}

/// How a prefix fits a registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fit {
    /// All of the name.
    Whole,
    /// But for the port, which then goes to the mirrors as well.
    ButPort,
}

// === impl Rule ===

impl Rule {
    /// Whether it holds for a registry, and all that is in it.
    pub(super) fn fits(&self, host: &str) -> Option<Fit> {
        let is_of = |host: &str| match self.prefix.strip_prefix('*') {
            Some(end) => host.len() > end.len() && host.ends_with(end),
            None => host == self.prefix,
        };
        let bare = host.rsplit_once(':').map(|(bare, _)| bare);
        is_of(host).then_some(Fit::Whole).or_else(|| bare.is_some_and(is_of).then_some(Fit::ButPort))
    }

    /// Whether it holds for a part of a registry.
    pub(super) fn is_within(&self, host: &str) -> bool {
        self.prefix.strip_prefix(host).is_some_and(|rest| rest.starts_with('/'))
    }
}

/// What a `[[registry]]` is about: `prefix`, or the location itself.
pub(super) fn prefix_of<'a>(get: impl Fn(&str) -> Option<&'a str>) -> Option<&'a str> {
    get("prefix").or_else(|| get("location"))
}

/// The rules of a file, in its order.
pub(super) fn rules(document: &DocumentMut, file: &Path) -> Vec<Rule> {
    let entries = document.get(REGISTRY).map(tables).unwrap_or_default();
    let newer = entries.into_iter().filter_map(|table| {
        let prefix = prefix_of(|key| table.get(key).and_then(Item::as_str))?;
        Some((prefix.to_owned(), said(table, prefix)))
    });
    // The first version of the format.
    let older = |name: &str| {
        let list = document.get("registries").and_then(|all| all.get(name)?.get("registries")?.as_array());
        let texts = list.into_iter().flatten().filter_map(|item| item.as_str());
        texts.map(str::to_owned).collect::<Vec<_>>()
    };
    let insecure = || Says::Simple(Simple { insecure: true, mirrors: Vec::new() });
    let older = older("block")
        .into_iter()
        .map(|prefix| (prefix, Says::Blocked))
        .chain(older(INSECURE).into_iter().map(|prefix| (prefix, insecure())));
    newer.chain(older).map(|(prefix, says)| Rule { prefix, file: file.to_owned(), says }).collect()
}

fn said(table: &dyn TableLike, prefix: &str) -> Says {
    let switch = |key: &str| table.get(key).and_then(Item::as_bool) == Some(true);
    if switch(BLOCKED) {
        return Says::Blocked;
    }
    let mut mirrors = Vec::new();
    for (key, item) in table.iter() {
        match key {
            "prefix" | BLOCKED | INSECURE => {}
            "location" if item.as_str() == Some(prefix) => {}
            MIRROR => mirrors.extend(tables(item).into_iter().map(alone)),
            _ => return Says::More(key.to_owned()),
        }
    }
    match mirrors.into_iter().collect() {
        Some(mirrors) => Says::Simple(Simple { insecure: switch(INSECURE), mirrors }),
        None => Says::More(MIRROR.to_owned()),
    }
}

/// The tables of a list, in either spelling.
fn tables(item: &Item) -> Vec<&dyn TableLike> {
    match item {
        Item::ArrayOfTables(tables) => tables.iter().map(|table| table as &dyn TableLike).collect(),
        _ => item
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|item| Some(item.as_inline_table()? as &dyn TableLike))
            .collect(),
    }
}

/// The same without comments and place, for another file; none: there is more in it than values.
fn alone(table: &dyn TableLike) -> Option<Table> {
    let mut alone = Table::new();
    for (key, item) in table.iter() {
        let mut value = item.as_value()?.clone();
        value.decor_mut().clear();
        alone.insert(key, Item::Value(value));
    }
    Some(alone)
}
