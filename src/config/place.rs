//! Where a value came from: the path of its key in the file, or a variable or flag; and on which line that is.

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};

use toml::de::{DeTable, DeValue};

use super::error::{ConfigError, Fault, Problem};

/// The path of a key in the file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct KeyPath(Vec<Step>);

/// One step of a path.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Step {
    /// Into a table.
    Key(String),
    /// Into an array; counted from 0.
    Index(usize),
}

/// What a problem is reported at.
#[derive(Debug, Clone)]
pub(super) enum At {
    /// A key of the file.
    Key(KeyPath),
    /// A variable or flag, by its name.
    Name(String),
}

/// The text that keys are looked up in to tell their line.
#[derive(Debug, Clone, Default)]
pub(super) struct Document {
    /// The file's name; none: a text without a file.
    pub(super) path: Option<PathBuf>,
    /// What it contains.
    pub(super) text: String,
}

/// Where the keys of a configuration stand.
#[derive(Clone, Default)]
pub(super) struct Written {
    /// What it was read from.
    pub(super) document: Document,
    /// Which `[[listener]]` each listener is from, counted from 0; none: no table says anything of it.
    pub(super) listeners: Vec<Option<usize>>,
}

/// Collects problems, so that all of them are told at once.
#[derive(Debug, Default)]
pub(super) struct Problems {
    list: Vec<(At, Fault)>,
    /// Keys whose value came from this variable or flag instead of the file.
    overridden: HashMap<KeyPath, String>,
}

/// Whether a key can stand in TOML without quotes.
fn is_bare(key: &str) -> bool {
    !key.is_empty() && key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
}

// === impl KeyPath ===

impl KeyPath {
    /// The path of a dotted key without quotes, such as `store.capacity`.
    pub fn dotted(path: &str) -> Self {
        Self(path.split('.').map(|key| Step::Key(key.to_owned())).collect())
    }

    /// One step into a table.
    #[must_use]
    pub fn key(&self, key: &str) -> Self {
        self.then(Step::Key(key.to_owned()))
    }

    /// One step into an array.
    #[must_use]
    pub fn index(&self, index: usize) -> Self {
        self.then(Step::Index(index))
    }

    fn then(&self, step: Step) -> Self {
        let mut steps = self.0.clone();
        steps.push(step);
        Self(steps)
    }

    /// The table that it stands in.
    fn parent(&self) -> Self {
        Self(self.0.split_last().map(|(_, parents)| parents.to_vec()).unwrap_or_default())
    }

    /// The steps, outermost first.
    pub(super) fn steps(&self) -> &[Step] {
        &self.0
    }
}

impl FromIterator<Step> for KeyPath {
    fn from_iter<I: IntoIterator<Item = Step>>(steps: I) -> Self {
        Self(steps.into_iter().collect())
    }
}

impl fmt::Display for KeyPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, step) in self.0.iter().enumerate() {
            match step {
                Step::Index(index) => write!(f, "[{index}]")?,
                Step::Key(key) => {
                    if position > 0 {
                        f.write_str(".")?;
                    }
                    if is_bare(key) { f.write_str(key)? } else { write!(f, "{key:?}")? }
                }
            }
        }
        Ok(())
    }
}

impl From<KeyPath> for At {
    fn from(path: KeyPath) -> Self {
        Self::Key(path)
    }
}

// === impl Document ===

impl Document {
    /// A text, from a file or not.
    pub(super) fn new(path: Option<&Path>, text: &str) -> Self {
        Self { path: path.map(Path::to_owned), text: text.to_owned() }
    }

    /// `FILE:LINE` of a position in the text; `line LINE` where there is no file.
    pub(super) fn place(&self, offset: usize) -> String {
        let before = self.text.as_bytes().iter().take(offset);
        let line = before.filter(|&&b| b == b'\n').count() + 1;
        match &self.path {
            Some(path) => format!("{}:{line}", path.display()),
            None => format!("line {line}"),
        }
    }

    /// Where a key stands, or the innermost table around it that is written.
    pub(super) fn place_of(&self, path: &KeyPath) -> Option<String> {
        self.offset_of(path).map(|offset| self.place(offset))
    }

    fn offset_of(&self, path: &KeyPath) -> Option<usize> {
        let document = DeTable::parse(&self.text).ok()?;
        let mut value = DeValue::Table(document.into_inner());
        let mut offset = None;
        for step in path.steps() {
            let next = match (step, value) {
                (Step::Key(key), DeValue::Table(mut table)) => {
                    let Some((name, inner)) = table.remove_entry(key.as_str()) else { break };
                    offset = Some(name.span().start);
                    inner
                }
                (Step::Index(index), DeValue::Array(array)) => {
                    let Some(inner) = array.into_iter().nth(*index) else { break };
                    offset = Some(inner.span().start);
                    inner
                }
                _ => break,
            };
            value = next.into_inner();
        }
        offset
    }

    /// The keys of the table at this path, each with whether it is a table; none: there is no table.
    pub(super) fn table(&self, path: &KeyPath) -> Option<Vec<(String, bool)>> {
        let root = DeValue::Table(DeTable::parse(&self.text).ok()?.into_inner());
        let found = path.steps().iter().try_fold(&root, |value, step| {
            let next = match step {
                Step::Key(key) => value.get(key.as_str()),
                Step::Index(index) => value.get(*index),
            };
            next.map(toml::Spanned::get_ref)
        });
        let keys = found?.as_table()?.iter();
        Some(keys.map(|(key, value)| (key.get_ref().to_string(), value.get_ref().is_table())).collect())
    }
}

// === impl Written ===

/// Without the text, in which there may be anything; and two files that say the same are the same configuration.
impl fmt::Debug for Written {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Written").finish_non_exhaustive()
    }
}

// === impl Problems ===

impl Problems {
    /// Reports one.
    pub(super) fn add(&mut self, at: impl Into<At>, fault: Fault) {
        self.list.push((at.into(), fault));
    }

    /// Passes a value on, or reports why there is none.
    pub(super) fn check<T>(&mut self, at: impl Into<At>, result: Result<T, Fault>) -> Option<T> {
        result.map_err(|fault| self.add(at, fault)).ok()
    }

    /// From here on problems with `path` are reported at the variable or flag `name`.
    pub(super) fn override_by(&mut self, path: KeyPath, name: &str) {
        self.overridden.insert(path, name.to_owned());
    }

    /// All problems, with their lines and in that order, what is from elsewhere at the end; nothing where there are none.
    pub(super) fn into_result(self, document: &Document) -> Result<(), ConfigError> {
        if self.list.is_empty() {
            return Ok(());
        }
        let Self { list, overridden } = self;
        // What a misspelt key was to say is not missing: there is one mistake to mend. Some of what is missing is told of the
        // table that it is missing from.
        let misspelt: Vec<(KeyPath, Option<String>)> =
            list.iter().filter_map(|(at, fault)| at.unknown_in(fault)).collect();
        let is_told = |at: &At, fault: &Fault| match at {
            At::Key(path) if matches!(fault, Fault::Missing(_)) => {
                misspelt.iter().any(|(table, meant)| table == path || meant.as_deref() == Some(&path.to_string()))
            }
            At::Key(_) | At::Name(_) => false,
        };
        let mut problems: Vec<(usize, Problem)> = Vec::new();
        for (at, fault) in list.into_iter().filter(|(at, fault)| !is_told(at, fault)) {
            let (offset, key) = match at {
                At::Name(name) => (None, name),
                At::Key(path) => match overridden.get(&path) {
                    Some(name) => (None, name.clone()),
                    None => (document.offset_of(&path), path.to_string()),
                },
            };
            let place = offset.map(|offset| document.place(offset));
            problems.push((offset.unwrap_or(usize::MAX), Problem { place, key, fault }));
        }
        problems.sort_by_key(|&(offset, _)| offset);
        Err(ConfigError::Invalid(problems.into_iter().map(|(_, problem)| problem).collect()))
    }
}

// === impl At ===

impl At {
    /// The table that has an unknown key here, and the path of the key that was probably meant.
    fn unknown_in(&self, fault: &Fault) -> Option<(KeyPath, Option<String>)> {
        let meant = match fault {
            Fault::UnknownKey { nearest } => nearest.clone(),
            Fault::UnquotedName(_) | Fault::PasswordInline => None,
            _ => return None,
        };
        match self {
            Self::Key(path) => Some((path.parent(), meant)),
            Self::Name(_) => None,
        }
    }
}
