//! What can be wrong with a configuration, said so that the operator knows which key to change to what.

use std::fmt;
use std::io;
use std::path::PathBuf;

/// A configuration that cannot be used. Its text is complete, one line a problem; sources need not be printed again.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file was named, or is there, but cannot be read.
    #[error("cannot read the configuration file {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file is not TOML, or a table stands where a value is expected or the other way round.
    #[error("{place}: {message}")]
    Syntax {
        /// File and line, as `FILE:LINE`.
        place: String,
        /// What is wrong there.
        message: String,
    },
    /// Keys, variables or flags with a name or value that does not fit; never empty.
    #[error("{}", lines(.0))]
    Invalid(Vec<Problem>),
}

/// One key, variable or flag that does not fit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// File and line as `FILE:LINE`; none: it comes from the environment, a flag, or a key that is missing.
    pub place: Option<String>,
    /// Path of the key, or the name of the variable or flag.
    pub key: String,
    /// What is wrong with it.
    pub fault: Fault,
}

/// What is wrong with a key, variable or flag.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// No such key.
    #[error("unknown key{}", hint(nearest.as_deref()))]
    UnknownKey {
        /// Path of a known key that was probably meant.
        nearest: Option<String>,
    },
    /// `[upstream.docker.io]` without quotes makes a table in a table.
    #[error("unknown key; a name with dots needs quotes: write [upstream.\"{0}\"]")]
    UnquotedName(String),
    /// A password or key where a file's name belongs.
    #[error(
        "passwords are not written here: put it into a file and name that with password_file (secret_file for a cloud's)"
    )]
    PasswordInline,
    /// The value does not fit.
    #[error("{got:?} is not {want}")]
    Value {
        /// The value as written.
        got: String,
        /// What would fit, with an example.
        want: &'static str,
    },
    /// The value has another type.
    #[error("{got} is not {want}")]
    Type {
        /// The type or value as written.
        got: String,
        /// What would fit, with an example.
        want: &'static str,
    },
    /// A pattern without a part for `library/` on an upstream whose names have one.
    #[error(
        "{0:?} matches nothing: this upstream's one-part names stand under library/, so write \"library/NAME\", or \"**\" for all"
    )]
    NoLibrary(String),
    /// Something that the rest of the configuration makes necessary is not there.
    #[error("missing: {0}")]
    Missing(&'static str),
    /// A URL carries a user or password.
    #[error(
        "a URL must not carry a user or password; use credentials = {{ from = \"static\", username, password_file }}"
    )]
    Userinfo,
    /// The value names an upstream that is not configured.
    #[error("no upstream is called {name:?}{}; add a table [upstream.\"{name}\"]", hint(nearest.as_deref()))]
    NoSuchUpstream {
        /// The name as written.
        name: String,
        /// A configured name that was probably meant.
        nearest: Option<String>,
    },
    /// Two upstreams have one name.
    #[error("{0:?} is the same upstream as another one here (case does not count, and : is -); keep one of them")]
    SameUpstream(String),
    /// Two listeners have one address.
    #[error("{0} is written twice; every listener needs an address of its own")]
    SameAddress(String),
    /// Two addresses of which the system gives only one.
    #[error("{address} cannot be had beside {other}, which includes it; write another port, or leave one of them out")]
    SharedAddress {
        /// The one that is reported.
        address: String,
        /// The one that is there before it.
        other: String,
    },
    /// An upstream's address is ocistern's own.
    #[error(
        "{0} is an address that ocistern itself listens on, so it would ask itself for ever; name the registry's own address, with `connect` if the system resolves its name to ocistern"
    )]
    OwnAddress(String),
    /// A mirror that is the upstream itself, or is written twice.
    #[error(
        "{0} is where this upstream is asked already; each of `mirrors` is another place that has the same content"
    )]
    SameMirror(String),
    /// A key that has no meaning beside another one's value.
    #[error("{0}")]
    Unfit(&'static str),
    /// `--upstream` with a word that is neither.
    #[error("{0:?} is neither NAME=URL nor a URL; write https://… or http://…")]
    BareWord(String),
    /// `--listen` where the file has several listeners and none at that address.
    #[error(
        "{0} is none of the several [[listener]] addresses in the file, so it is unclear which settings (TLS, default upstream) it gets; give one of theirs, or change the file"
    )]
    UnclearListener(String),
}

fn hint(nearest: Option<&str>) -> String {
    nearest.map(|key| format!("; did you mean {key}?")).unwrap_or_default()
}

fn lines(problems: &[Problem]) -> String {
    problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

// === impl Problem ===

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(place) = &self.place {
            write!(f, "{place}: ")?;
        }
        write!(f, "{}: {}", self.key, self.fault)
    }
}

// === impl Fault ===

impl Fault {
    /// The value `got` does not fit; `want` says what would. What stands before an `@` may be a password and is not
    /// repeated.
    pub(super) fn value(got: &str, want: &'static str) -> Self {
        let got = got.rsplit_once('@').map_or_else(|| got.to_owned(), |(_, rest)| format!("…@{rest}"));
        Self::Value { got, want }
    }
}
