//! Recent errors, folded: what was answered to clients with an error, and what went wrong with upstreams. A leaf like
//! `metrics`: passed to who needs it.
//!
//! Names in here are chosen by strangers, so both their number and their length are bounded, and what clients get wrong
//! (4xx) never pushes out what is wrong with ocistern or an upstream. Nothing is kept that could be a secret: queries of
//! URLs, in which registries and their storage keep signatures, are cut off.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use parking_lot::Mutex;

use crate::clock::Clock;

/// How many different errors of each [`Weight`] are remembered.
const EACH: usize = 64;
/// Longest message, in characters.
const MAX_MESSAGE: usize = 600;
/// Longest name of a repository, in characters: the specification's, and what no client can choose is shorter.
const MAX_REPOSITORY: usize = 255;

/// Where an error was met.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Met {
    /// A client was answered with it.
    Answer,
    /// In asking an upstream, whether a client waited for that or not.
    Upstream,
}

/// Whose fault it is: what is forgotten first is chosen among the errors of one weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Weight {
    /// The client's, or nobody's: something that does not exist.
    Light,
    /// ocistern's, or an upstream's.
    Heavy,
}

/// An error as it is reported.
#[derive(Debug, Clone, Copy)]
pub struct Trouble<'a> {
    /// Where it was met.
    pub met: Met,
    /// Of which upstream; none where the request meant none.
    pub upstream: Option<&'a str>,
    /// Of which repository there, if one was meant.
    pub repository: Option<&'a str>,
    /// A word of an enum: the code of an answer, or the kind of a fault.
    pub code: &'static str,
    /// The status of the answer.
    pub status: Option<u16>,
    /// For people: what went wrong, where, and what to do.
    pub message: &'a str,
}

/// Equal errors, folded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Folded {
    /// Where they were met.
    pub met: Met,
    /// Of which upstream; none where requests meant none.
    pub upstream: Option<String>,
    /// Of which repository there.
    pub repository: Option<String>,
    /// The code.
    pub code: &'static str,
    /// The status of the last answer.
    pub status: Option<u16>,
    /// The last one's message, without queries of URLs.
    pub message: String,
    /// How many there were.
    pub count: u64,
    /// When the first of these was.
    pub first: SystemTime,
    /// When the last one was.
    pub last: SystemTime,
}

/// The book of recent errors.
pub struct Troubles {
    clock: Arc<dyn Clock>,
    known: Mutex<HashMap<Key, Entry>>,
}

/// What makes errors equal.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    met: Met,
    upstream: Option<String>,
    repository: Option<String>,
    code: &'static str,
    weight: Weight,
}

#[derive(Debug)]
struct Entry {
    status: Option<u16>,
    message: String,
    count: u64,
    first: SystemTime,
    last: SystemTime,
    /// Which note was the last one of these: clocks may be set back.
    number: u64,
}

// === impl Met ===

impl Met {
    /// The word in answers.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Answer => "answer",
            Self::Upstream => "upstream",
        }
    }
}

// === impl Trouble ===

impl Trouble<'_> {
    const fn weight(&self) -> Weight {
        match (self.met, self.status) {
            (Met::Answer, Some(400..=499)) => Weight::Light,
            _ => Weight::Heavy,
        }
    }
}

// === impl Troubles ===

impl Troubles {
    /// Empty.
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self { clock, known: Mutex::default() }
    }

    /// Remembers an error.
    pub fn note(&self, trouble: Trouble<'_>) {
        let now = self.clock.now();
        let message = tidy(trouble.message);
        let key = Key {
            met: trouble.met,
            upstream: trouble.upstream.map(ToOwned::to_owned),
            repository: trouble.repository.map(|name| name.chars().take(MAX_REPOSITORY).collect()),
            code: trouble.code,
            weight: trouble.weight(),
        };
        let mut known = self.known.lock();
        let number = known.values().map(|entry| entry.number).max().unwrap_or_default() + 1;
        if let Some(entry) = known.get_mut(&key) {
            entry.status = trouble.status;
            entry.message = message;
            entry.count = entry.count.saturating_add(1);
            (entry.last, entry.number) = (now, number);
            return;
        }
        let alike = || known.iter().filter(|(known, _)| known.weight == key.weight);
        if alike().count() >= EACH
            && let Some(oldest) = alike().min_by_key(|(_, entry)| entry.number).map(|(known, _)| known.clone())
        {
            known.remove(&oldest);
        }
        let entry = Entry { status: trouble.status, message, count: 1, first: now, last: now, number };
        known.insert(key, entry);
    }

    /// What is remembered, the last error first.
    pub fn all(&self) -> Vec<Folded> {
        let known = self.known.lock();
        let mut entries: Vec<_> = known.iter().collect();
        entries.sort_by_key(|(_, entry)| std::cmp::Reverse(entry.number));
        let folded = |(key, entry): (&Key, &Entry)| Folded {
            met: key.met,
            upstream: key.upstream.clone(),
            repository: key.repository.clone(),
            code: key.code,
            status: entry.status,
            message: entry.message.clone(),
            count: entry.count,
            first: entry.first,
            last: entry.last,
        };
        entries.into_iter().map(folded).collect()
    }
}

impl fmt::Debug for Troubles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Troubles").field("known", &self.known.lock().len()).finish_non_exhaustive()
    }
}

/// A text that may be shown: in one line, not too long, and without what in URLs may be secret: queries, fragments, users
/// with their passwords.
pub fn tidy(text: &str) -> String {
    let words = text.split(|c: char| c.is_whitespace() || c.is_control()).filter(|word| !word.is_empty());
    let mut clean = String::new();
    for word in words {
        if !clean.is_empty() {
            clean.push(' ');
        }
        clean.push_str(&without_secrets(word));
    }
    match clean.char_indices().nth(MAX_MESSAGE) {
        Some((end, _)) => format!("{}…", clean.get(..end).unwrap_or_default()),
        None => clean,
    }
}

/// A word; what follows a question mark is a query, unless the mark ends a sentence.
fn without_secrets(word: &str) -> String {
    let is_url = word.contains("://") || word.contains('/') || word.contains('=');
    let end = word.find(['?', '#']).filter(|at| is_url && at + 1 < word.len());
    let mut shown = match end {
        Some(at) => format!("{}{}…", word.get(..at).unwrap_or_default(), word.get(at..=at).unwrap_or_default()),
        None => word.to_owned(),
    };
    if let Some(start) = shown.find("://").map(|at| at + 3) {
        let rest = shown.get(start..).unwrap_or_default();
        let authority = rest.find('/').unwrap_or(rest.len());
        if let Some(at) = rest.get(..authority).and_then(|authority| authority.rfind('@')) {
            shown.replace_range(start..start + at, "…");
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::clock::twin::system;

    fn answer(repository: &str, status: u16) -> Trouble<'_> {
        let code = if status < 500 { "MANIFEST_UNKNOWN" } else { "UNAVAILABLE" };
        Trouble {
            met: Met::Answer,
            upstream: Some("up"),
            repository: Some(repository),
            code,
            status: Some(status),
            message: "it is not there; ask for another",
        }
    }

    #[test]
    fn equal_errors_are_one_with_a_count() {
        let troubles = Troubles::new(system());
        troubles.note(answer("a", 404));
        troubles.note(answer("b", 404));
        troubles.note(Trouble { message: "still not there", ..answer("a", 404) });
        let all = troubles.all();
        assert_eq!(all.len(), 2);
        let first = &all[0];
        assert_eq!((first.repository.as_deref(), first.count), (Some("a"), 2), "the last one is first");
        assert_eq!(first.message, "still not there");
        assert!(first.first <= first.last);
    }

    #[test]
    fn names_that_strangers_make_up_do_not_push_out_what_is_wrong_here() {
        let troubles = Troubles::new(system());
        troubles.note(answer("x", 502));
        for n in 0..10_000 {
            troubles.note(answer(&format!("{n}/{}", "x".repeat(10_000)), 404));
        }
        let all = troubles.all();
        assert_eq!(all.len(), EACH + 1);
        assert!(all.iter().any(|folded| folded.status == Some(502)), "it is still there");
        assert!(all.iter().all(|folded| folded.repository.as_ref().unwrap().len() <= MAX_REPOSITORY));
        assert!(all[0].repository.as_ref().unwrap().starts_with("9999/"), "of these the last ones are kept");
    }

    #[test]
    fn what_may_be_secret_is_cut_off() {
        for (text, shown) in [
            ("what now? try again", "what now? try again"),
            ("GET https://s3.example/b?X-Amz-Signature=canary&y=1 failed", "GET https://s3.example/b?… failed"),
            ("/v2/a/blobs/uploads/1?_state=canary", "/v2/a/blobs/uploads/1?…"),
            ("(https://me:canary@host/x?sig=canary)", "(https://…@host/x?…"),
            ("https://canary@host:1", "https://…@host:1"),
            ("a\r\nb\t\u{7}c", "a b c"),
            ("mail me@host", "mail me@host"),
            ("see https://host/path#canary", "see https://host/path#…"),
        ] {
            assert_eq!(tidy(text), shown);
        }
        assert_eq!(tidy(&"é".repeat(10_000)).chars().count(), MAX_MESSAGE + 1);
    }

    #[test]
    fn a_clock_that_is_set_back_does_not_change_the_order() {
        let clock = crate::clock::twin::Twin::new();
        let troubles = Troubles::new(clock.clone());
        troubles.note(answer("a", 404));
        clock.back(Duration::from_hours(24));
        troubles.note(answer("b", 404));
        assert_eq!(troubles.all()[0].repository.as_deref(), Some("b"));
    }
}
