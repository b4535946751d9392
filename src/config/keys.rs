//! What to say about a key that does not exist: the nearest one that does.
//!
//! The known keys are not written down a second time; they are asked of the structs that the file is read into.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Visitor};

use super::error::Fault;
use super::file::{
    AdminTable, CertificateTable, CredentialsTable, File, LimitsTable, ListenerTable, LogTable, PinTable, RuleTable,
    ScrubTable, StoreTable, TlsTable, UpstreamTable,
};
use super::place::{Document, KeyPath, Step};

/// What somebody writes who has the secret itself at hand.
const SECRETS: [&str; 7] =
    ["password", "token", "secret", "password-file", "client_secret", "secret_access_key", "session_token"];

/// The kinds of tables in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Table {
    Root,
    Listener,
    Tls,
    Certificate,
    Admin,
    Store,
    Pin,
    Scrub,
    Limits,
    Log,
    Upstream,
    Credentials,
    Rule,
}

/// Asks a struct for the names of its fields: it stops where deserialization would begin.
struct Fields<'a>(&'a mut &'static [&'static str]);

/// The end of asking; carries nothing.
#[derive(Debug, thiserror::Error)]
#[error("only the names were asked for")]
struct Asked;

/// What is wrong with an unknown key, and which one was probably meant.
pub(super) fn unknown(path: &KeyPath, document: &Document) -> Fault {
    let Some((Step::Key(key), parents)) = path.steps().split_last() else {
        return Fault::UnknownKey { nearest: None };
    };
    let table = Table::at(parents);
    if table == Table::Credentials && SECRETS.contains(&key.as_str()) {
        return Fault::PasswordInline;
    }
    let parent: KeyPath = parents.iter().cloned().collect();
    let nearest = nearest(key, table.keys().iter().copied());
    if table == Table::Upstream
        && nearest.is_none()
        && document.table(path).is_some()
        && let Some(Step::Key(name)) = parents.last()
    {
        return Fault::UnquotedName(unquoted(name, key, path, document));
    }
    let nearest = nearest.map(|name| parent.key(name).to_string()).or_else(|| elsewhere(key, table));
    Fault::UnknownKey { nearest }
}

/// The whole name of which `[upstream.a.b.c]` made tables in tables; the tables below `path` count as long as there is
/// no known key in between.
fn unquoted(name: &str, key: &str, path: &KeyPath, document: &Document) -> String {
    let mut whole = format!("{name}.{key}");
    let mut here = path.clone();
    while let Some([(inner, true)]) = document.table(&here).as_deref() {
        if Table::Upstream.keys().contains(&inner.as_str()) {
            break;
        }
        whole.push('.');
        whole.push_str(inner);
        here = here.key(inner);
    }
    whole
}

/// A table that has a key of exactly this name, and of several the one that is nearest.
fn elsewhere(key: &str, table: Table) -> Option<String> {
    let is_far = |other: &Table| {
        let (inner, outer) = (table.as_str(), other.as_str());
        outer.is_empty() || !(inner.starts_with(outer) || outer.starts_with(inner))
    };
    Table::ALL
        .into_iter()
        .filter(|&other| other != table && other.keys().contains(&key))
        .min_by_key(is_far)
        .map(|other| if other == Table::Root { key.to_owned() } else { format!("{}.{key}", other.as_str()) })
}

/// The known name that differs least, if it differs little or is one's beginning.
pub(super) fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let normal = name.to_lowercase().replace('-', "_");
    let shortened = |candidate: &str| normal.len() >= 3 && candidate.starts_with(&normal);
    known
        .map(|candidate| (strsim::damerau_levenshtein(&normal, &candidate.replace('-', "_")), candidate))
        .filter(|&(distance, candidate)| distance <= 1 + candidate.len() / 5 || shortened(candidate))
        .min_by_key(|&(distance, _)| distance)
        .map(|(_, candidate)| candidate)
}

/// A message of serde's, which knows the struct that a table is read into.
pub(super) fn without_types(message: &str) -> String {
    const STRUCT: &str = "expected struct ";
    let Some((before, rest)) = message.split_once(STRUCT) else { return message.to_owned() };
    let name = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
    format!("{before}expected a table{}", &rest[name..])
}

/// What to write where a value has the wrong shape.
pub(super) fn shape_hint(path: &KeyPath) -> String {
    let steps: Vec<&Step> = path.steps().iter().filter(|step| matches!(step, Step::Key(_))).collect();
    let hint = match steps.as_slice() {
        [Step::Key(upstream), Step::Key(name)] if upstream == "upstream" => {
            return format!("; write [upstream.{name:?}] and below it the keys, such as url");
        }
        [.., Step::Key(key)] => match key.as_str() {
            "listener" => "; write [[listener]] with two brackets",
            "pin" => "; write [[pin]] with two brackets",
            "rule" => "; write [[upstream.\"NAME\".rule]] with two brackets",
            "tls" => "; write one, such as { certificate = \"FILE\", key = \"FILE\" }",
            "credentials" => "; write one, such as { from = \"auto\" }",
            "certificates" => "; write a list, such as [{ certificate = \"FILE\", key = \"FILE\" }]",
            "token_hosts" | "connect" => "; write a list, such as [\"HOST\"]",
            "mirrors" => "; write a list, such as [\"https://mirror.example\"]",
            "hostnames" => "; write a table, such as { \"myregistry.azurecr.io\" = \"myregistry.azurecr.io\" }",
            "upstream" => "; write [upstream.\"NAME\"]",
            "admin" | "store" | "limits" | "log" => return format!("; write [{key}] and below it the keys"),
            _ => "",
        },
        _ => "",
    };
    hint.to_owned()
}

/// Every table with its keys, for the test that looks for them in the documented example.
#[cfg(test)]
pub(super) fn all() -> impl Iterator<Item = (&'static str, &'static [&'static str])> {
    Table::ALL.into_iter().map(|table| (table.as_str(), table.keys()))
}

// === impl Table ===

impl Table {
    const ALL: [Self; 13] = [
        Self::Root,
        Self::Store,
        Self::Limits,
        Self::Admin,
        Self::Log,
        Self::Listener,
        Self::Pin,
        Self::Upstream,
        Self::Credentials,
        Self::Tls,
        Self::Certificate,
        Self::Rule,
        Self::Scrub,
    ];

    /// The table that these steps lead to; for a table that is itself unknown, the innermost known one.
    fn at(steps: &[Step]) -> Self {
        steps.iter().fold(Self::Root, |table, step| match (table, step) {
            (Self::Root, Step::Key(key)) => match key.as_str() {
                "listener" => Self::Listener,
                "admin" => Self::Admin,
                "store" => Self::Store,
                "pin" => Self::Pin,
                "limits" => Self::Limits,
                "log" => Self::Log,
                "upstream" => Self::Upstream,
                _ => Self::Root,
            },
            (Self::Store, Step::Key(key)) if key == "scrub" => Self::Scrub,
            (Self::Listener, Step::Key(key)) if key == "tls" => Self::Tls,
            (Self::Tls, Step::Key(key)) if key == "certificates" => Self::Certificate,
            (Self::Upstream, Step::Key(key)) if key == "credentials" => Self::Credentials,
            (Self::Upstream, Step::Key(key)) if key == "rule" => Self::Rule,
            (table, _) => table,
        })
    }

    const fn as_str(self) -> &'static str {
        match self {
            Self::Root => "",
            Self::Listener => "listener",
            Self::Tls => "listener.tls",
            Self::Certificate => "listener.tls.certificates",
            Self::Admin => "admin",
            Self::Store => "store",
            Self::Pin => "pin",
            Self::Scrub => "store.scrub",
            Self::Limits => "limits",
            Self::Log => "log",
            Self::Upstream => "upstream.\"NAME\"",
            Self::Credentials => "upstream.\"NAME\".credentials",
            Self::Rule => "upstream.\"NAME\".rule",
        }
    }

    fn keys(self) -> &'static [&'static str] {
        match self {
            Self::Root => fields::<File>(),
            Self::Listener => fields::<ListenerTable>(),
            Self::Tls => fields::<TlsTable>(),
            Self::Certificate => fields::<CertificateTable>(),
            Self::Scrub => fields::<ScrubTable>(),
            Self::Admin => fields::<AdminTable>(),
            Self::Store => fields::<StoreTable>(),
            Self::Pin => fields::<PinTable>(),
            Self::Limits => fields::<LimitsTable>(),
            Self::Log => fields::<LogTable>(),
            Self::Upstream => fields::<UpstreamTable>(),
            Self::Credentials => fields::<CredentialsTable>(),
            Self::Rule => fields::<RuleTable>(),
        }
    }
}

// === impl Fields ===

fn fields<'de, T: Deserialize<'de>>() -> &'static [&'static str] {
    let mut names: &'static [&'static str] = &[];
    // Always ends in `Asked`; the names are what it was for.
    let _ = T::deserialize(Fields(&mut names));
    names
}

impl<'de> Deserializer<'de> for Fields<'_> {
    type Error = Asked;

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Asked> {
        Err(Asked)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        _: V,
    ) -> Result<V::Value, Asked> {
        *self.0 = fields;
        Err(Asked)
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

impl serde::de::Error for Asked {
    fn custom<T: fmt::Display>(_: T) -> Self {
        Self
    }
}
