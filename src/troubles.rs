//! Recent errors, folded: what was answered to clients with an error, and what went wrong with upstreams. A leaf like
//! `metrics`: passed to who needs it.
//!
//! Names in here are chosen by strangers, so both their number and their length are bounded, and what clients get wrong
//! (4xx) never pushes out what is wrong with ocistern or an upstream; nor does one thing that is wrong there, met in however many
//! repositories, push out another one. Nothing is kept that could be a secret: queries of
//! URLs, in which registries and their storage keep signatures, are cut off.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use parking_lot::Mutex;

use crate::clock::Clock;

/// How many different errors of each [`Weight`] are remembered.
const EACH: usize = 64;
/// How many of one [`Kind`], of those that are ocistern's or an upstream's, are told apart by repository; the others are one.
const OF_A_KIND: usize = 16;
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
    book: Mutex<Book>,
}

#[derive(Debug, Default)]
struct Book {
    kinds: HashMap<Kind, Entries>,
    /// Of the last note.
    number: u64,
}

/// What makes errors one thing that is wrong, in however many repositories it is met. No stranger makes one up: upstreams are
/// the operator's.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Kind {
    met: Met,
    upstream: Option<String>,
    code: &'static str,
    weight: Weight,
}

/// The errors of one kind, by repository; none: those that meant none, and those of repositories that there is no room for.
type Entries = HashMap<Option<String>, Entry>;

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
        Self { clock, book: Mutex::default() }
    }

    /// Remembers an error.
    pub fn note(&self, trouble: Trouble<'_>) {
        let now = self.clock.now();
        let kind = Kind {
            met: trouble.met,
            upstream: trouble.upstream.map(ToOwned::to_owned),
            code: trouble.code,
            weight: trouble.weight(),
        };
        let repository = trouble.repository.map(|name| name.chars().take(MAX_REPOSITORY).collect());
        let mut book = self.book.lock();
        book.number += 1;
        let entry = Entry {
            status: trouble.status,
            message: tidy(trouble.message),
            count: 1,
            first: now,
            last: now,
            number: book.number,
        };
        book.enter(kind, repository, entry);
    }

    /// What is remembered, the last error first.
    pub fn all(&self) -> Vec<Folded> {
        let book = self.book.lock();
        let mut entries: Vec<_> = book
            .kinds
            .iter()
            .flat_map(|(kind, entries)| entries.iter().map(move |(repository, entry)| (kind, repository, entry)))
            .collect();
        entries.sort_by_key(|(_, _, entry)| std::cmp::Reverse(entry.number));
        let folded = |(kind, repository, entry): (&Kind, &Option<String>, &Entry)| Folded {
            met: kind.met,
            upstream: kind.upstream.clone(),
            repository: repository.clone(),
            code: kind.code,
            status: entry.status,
            message: entry.message.clone(),
            count: entry.count,
            first: entry.first,
            last: entry.last,
        };
        entries.into_iter().map(folded).collect()
    }
}

// === impl Book ===

impl Book {
    fn enter(&mut self, kind: Kind, repository: Option<String>, entry: Entry) {
        let known = self.kinds.get_mut(&kind).and_then(|entries| entries.get_mut(&repository));
        if let Some(known) = known {
            known.add(entry);
            return;
        }
        if kind.weight == Weight::Heavy
            && let Some(entries) = self.kinds.get_mut(&kind)
        {
            while entries.len() >= OF_A_KIND && fold_oldest(entries) {}
        }
        while self.count(kind.weight) >= EACH {
            self.make_room(kind.weight);
        }
        self.kinds.entry(kind).or_default().insert(repository, entry);
    }

    fn count(&self, weight: Weight) -> usize {
        self.kinds.iter().filter(|(kind, _)| kind.weight == weight).map(|(_, entries)| entries.len()).sum()
    }

    /// Takes from the kind that has the most, so that none is pushed out by another one; the oldest kind goes where each has
    /// one entry.
    fn make_room(&mut self, weight: Weight) {
        let alike = self.kinds.iter().filter(|(kind, _)| kind.weight == weight);
        let oldest = |entries: &Entries| entries.values().map(|entry| entry.number).min();
        let most = alike.max_by_key(|(_, entries)| (entries.len(), std::cmp::Reverse(oldest(entries))));
        let Some(kind) = most.map(|(kind, _)| kind.clone()) else { return };
        let Some(entries) = self.kinds.get_mut(&kind) else { return };
        if weight == Weight::Heavy && entries.len() > 1 && fold_oldest(entries) {
            return;
        }
        forget_oldest(entries);
        if entries.is_empty() {
            self.kinds.remove(&kind);
        }
    }
}

/// The oldest error that has its repository's name loses it; false: none has one.
fn fold_oldest(entries: &mut Entries) -> bool {
    let named = entries.iter().filter(|(repository, _)| repository.is_some());
    let Some(oldest) = named.min_by_key(|(_, entry)| entry.number).map(|(repository, _)| repository.clone()) else {
        return false;
    };
    let Some(entry) = entries.remove(&oldest) else { return false };
    match entries.get_mut(&None) {
        Some(rest) => rest.add(entry),
        None => drop(entries.insert(None, entry)),
    }
    true
}

fn forget_oldest(entries: &mut Entries) {
    let oldest = entries.iter().min_by_key(|(_, entry)| entry.number).map(|(repository, _)| repository.clone());
    if let Some(oldest) = oldest {
        entries.remove(&oldest);
    }
}

// === impl Entry ===

impl Entry {
    /// Both are one: with what the later one said.
    fn add(&mut self, other: Self) {
        let count = self.count.saturating_add(other.count);
        let first = self.first.min(other.first);
        if other.number > self.number {
            *self = other;
        }
        (self.count, self.first) = (count, first);
    }
}

impl fmt::Debug for Troubles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Troubles").field("kinds", &self.book.lock().kinds.len()).finish_non_exhaustive()
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

    fn failed<'a>(upstream: &'a str, repository: &'a str, code: &'static str) -> Trouble<'a> {
        let message = "it cannot be reached";
        Trouble {
            met: Met::Upstream,
            upstream: Some(upstream),
            repository: Some(repository),
            code,
            status: None,
            message,
        }
    }

    #[test]
    fn an_upstream_that_is_down_does_not_push_out_what_is_wrong_with_another_one() {
        let troubles = Troubles::new(system());
        troubles.note(failed("other", "app", "TLS"));
        troubles.note(Trouble { repository: None, ..failed("other", "", "CREDENTIAL") });
        // Whoever asks chooses the names, and each request is two errors: what was met, and what was answered.
        for n in 0..1000 {
            let name = format!("made-up/{n}");
            troubles.note(failed("down", &name, "UNREACHABLE"));
            troubles.note(Trouble { upstream: Some("down"), ..answer(&name, 503) });
        }
        let all = troubles.all();
        for code in ["TLS", "CREDENTIAL"] {
            assert!(all.iter().any(|folded| folded.code == code), "{code} was pushed out");
        }
        let down: Vec<_> = all.iter().filter(|folded| folded.code == "UNREACHABLE").collect();
        assert!(down.len() <= 16, "one thing that is wrong is not the whole book: {}", down.len());
        assert_eq!(down.iter().map(|folded| folded.count).sum::<u64>(), 1000, "none is lost");
        assert_eq!(down[0].repository.as_deref(), Some("made-up/999"), "the last ones have their names");
        let folded = down.iter().find(|folded| folded.repository.is_none()).unwrap();
        assert!(folded.first <= folded.last && folded.message == "it cannot be reached");
    }

    #[test]
    fn many_upstreams_that_are_down_leave_room_for_each() {
        let troubles = Troubles::new(system());
        troubles.note(failed("first", "app", "TLS"));
        let names: Vec<_> = (0..20).map(|n| format!("down-{n}")).collect();
        for name in &names {
            for n in 0..70 {
                troubles.note(failed(name, &format!("made-up/{n}"), "UNREACHABLE"));
            }
        }
        let all = troubles.all();
        assert!(all.len() <= EACH);
        assert!(all.iter().any(|folded| folded.code == "TLS"));
        for name in &names {
            let of_it = all.iter().filter(|folded| folded.upstream.as_ref() == Some(name));
            assert_eq!(of_it.map(|folded| folded.count).sum::<u64>(), 70, "{name}");
        }
        // More kinds than there is room for: the oldest goes.
        for n in 0..EACH {
            troubles.note(Trouble { repository: None, ..failed(&format!("more-{n}"), "", "UNREACHABLE") });
        }
        let all = troubles.all();
        assert!(all.len() <= EACH && all.iter().all(|folded| folded.code != "TLS"));
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
