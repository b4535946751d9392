//! The arguments: a subject with its count, a seed, and what else it takes.

use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

/// Every subject with the options that count it. Without one of these the word is a filter of `cargo test`, which every
/// test program gets.
const SUBJECTS: [(&str, &[&str]); 12] = [
    ("power", &["cuts"]),
    ("kill", &["kills", "points"]),
    ("errors", &["points"]),
    ("enospc", &["sizes"]),
    ("index", &["damages"]),
    ("rot", &["damages"]),
    ("blocks", &["cases"]),
    ("readonly", &["cases"]),
    ("limits", &["cases"]),
    ("removed", &["cases"]),
    ("clock", &["cases"]),
    ("soak", &["minutes", "killing"]),
];
/// Forms of the whole suite, with what may be counted in them. No filter begins like this.
const FORMS: [(&str, &[&str]); 2] = [
    ("--short", &["lanes"]),
    ("--long", &["cuts", "kills", "points", "sizes", "errors", "damages", "cases", "minutes", "batches", "lanes"]),
];
/// Options whose value is text.
const WORDS: [&str; 3] = ["error", "file", "docs"];

/// What was asked for.
#[derive(Debug)]
pub struct Options {
    /// Empty: what a plain `cargo test` runs.
    pub subject: String,
    counts: Vec<(String, u64)>,
    words: Vec<(String, String)>,
    pub seed: u64,
    /// As they were given, without the seed.
    pub text: String,
}

impl Options {
    pub fn parse(arguments: Vec<String>) -> Result<Self, String> {
        let seed = crate::common::clock::wall().duration_since(UNIX_EPOCH).map_or(1, |now| now.as_secs());
        let mut options =
            Self { subject: String::new(), counts: Vec::new(), words: Vec::new(), seed, text: String::new() };
        let Some((first, rest)) = arguments.split_first() else { return Ok(options) };
        let form = FORMS.iter().any(|(form, _)| form == first);
        let Some((subject, counted)) = SUBJECTS.iter().chain(&FORMS).find(|(subject, _)| subject == first) else {
            return Ok(options);
        };
        (*subject).clone_into(&mut options.text);
        let mut rest = rest.iter();
        while let Some(name) = rest.next() {
            let name = name.trim_start_matches("--");
            let text = rest.next().ok_or_else(|| format!("--{name} wants a value"))?;
            let number = || text.parse::<u64>().map_err(|_| format!("--{name} wants a number"));
            match name {
                "seed" => {
                    options.seed = number()?;
                    continue;
                }
                _ if counted.contains(&name) => options.counts.push((name.to_owned(), number()?)),
                _ if WORDS.contains(&name) => options.words.push((name.to_owned(), text.clone())),
                _ => return Err(format!("{subject} has no --{name}: only --seed, --{}", counted.join(", --"))),
            }
            options.text += &format!(" --{name} {text}");
        }
        if options.counts.is_empty() && !form {
            println!("torture {subject}: say how much, as --{} 60", counted[0]);
            options.text.clear();
            return Ok(options);
        }
        (*subject).clone_into(&mut options.subject);
        Ok(options)
    }

    /// A count that was given, else none.
    pub fn count(&self, name: &str) -> u64 {
        self.count_or(name, 0)
    }

    /// A count that was given, else this.
    pub fn count_or(&self, name: &str, otherwise: u64) -> u64 {
        self.given(name).unwrap_or(otherwise)
    }

    /// A count, if it was given.
    pub fn given(&self, name: &str) -> Option<u64> {
        self.counts.iter().find(|(given, _)| given == name).map(|(_, value)| *value)
    }

    /// A text that was given.
    pub fn word(&self, name: &str) -> Option<&str> {
        self.words.iter().find(|(given, _)| given == name).map(|(_, value)| value.as_str())
    }

    /// A path that was given.
    pub fn path(&self, name: &str) -> Option<PathBuf> {
        self.word(name).map(PathBuf::from)
    }
}

/// An error that names what is missing of these programs, and root if it is not there.
pub fn need(root: bool, tools: &[(&str, &str)]) -> Result<(), String> {
    if root && !rustix::process::geteuid().is_root() {
        return Err("needs root".into());
    }
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    let missing = tools.iter().filter(|(tool, _)| !path.split(':').any(|at| Path::new(at).join(tool).exists()));
    let missing: Vec<String> = missing.map(|(tool, package)| format!("{tool} (package {package})")).collect();
    if missing.is_empty() { Ok(()) } else { Err(format!("needs {}", missing.join(", "))) }
}
