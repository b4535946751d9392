//! The arguments: a subject with its count, and a seed.

use std::path::Path;
use std::time::UNIX_EPOCH;

/// Every subject with the option that counts it. Without that option the word is a filter of `cargo test`, which every
/// test program gets.
const SUBJECTS: [(&str, &[&str]); 7] = [
    ("power", &["cuts"]),
    ("kill", &["kills", "points"]),
    ("errors", &["points"]),
    ("enospc", &["sizes"]),
    ("index", &["damages"]),
    ("rot", &["damages"]),
    ("soak", &["minutes"]),
];

/// What was asked for.
#[derive(Debug)]
pub struct Options {
    /// Empty: the short form.
    pub subject: String,
    counts: Vec<(String, u64)>,
    pub seed: u64,
    /// As they were given, without the seed.
    pub text: String,
}

impl Options {
    pub fn parse(arguments: Vec<String>) -> Result<Self, String> {
        let seed = crate::common::clock::wall().duration_since(UNIX_EPOCH).map_or(1, |now| now.as_secs());
        let mut options = Self { subject: String::new(), counts: Vec::new(), seed, text: String::new() };
        let Some((first, rest)) = arguments.split_first() else { return Ok(options) };
        let Some((subject, counted)) = SUBJECTS.iter().find(|(subject, _)| subject == first) else {
            return Ok(options);
        };
        let mut rest = rest.iter();
        while let Some(name) = rest.next() {
            let name = name.trim_start_matches("--");
            let value = rest.next().and_then(|value| value.parse::<u64>().ok());
            let value = value.ok_or_else(|| format!("--{name} wants a number"))?;
            match name {
                "seed" => options.seed = value,
                _ if counted.contains(&name) => options.counts.push((name.to_owned(), value)),
                _ => return Err(format!("{subject} has no --{name}: only --seed, --{}", counted.join(", --"))),
            }
        }
        if options.counts.is_empty() {
            println!("torture {subject}: say how much, as --{} 60", counted[0]);
            return Ok(options);
        }
        (*subject).clone_into(&mut options.subject);
        let counts: Vec<String> = options.counts.iter().map(|(name, value)| format!("--{name} {value}")).collect();
        options.text = format!("{subject} {}", counts.join(" "));
        Ok(options)
    }

    /// A count that was given, else none.
    pub fn count(&self, name: &str) -> u64 {
        self.counts.iter().find(|(given, _)| given == name).map_or(0, |(_, value)| *value)
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
