//! Lists of images, as files have them: a reference a line, with comments. What a short name means is decided where the list is used
//! ([`crate::http::admin`]).

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::oci::{Digest, RepoName, Tag};

/// Largest list that is read, some 30,000 images; as JSON it fits a request of the admin API.
pub(super) const MAX_LIST: u64 = 2 * 1024 * 1024;
/// Longest line of a list: no name is half as long.
const MAX_LINE: usize = 2048;
/// How many mistakes are told.
const TOLD: usize = 20;
/// What editors put before UTF-8.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// A reference, and where it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Listed {
    /// As it stands there, without what is around it.
    pub(super) name: String,
    /// Where it stands.
    pub(super) place: LinePlace,
}

/// A line of a file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct LinePlace {
    /// The file, as it was named; `-`: standard input.
    pub(super) file: PathBuf,
    /// From 1.
    pub(super) line: usize,
}

/// Why there is no list.
#[derive(Debug, thiserror::Error)]
pub(super) enum ListError {
    /// The file cannot be read.
    #[error("{}: {error}", shown(file))]
    Read {
        /// Which.
        file: PathBuf,
        /// Why.
        #[source]
        error: io::Error,
    },
    /// It is larger than any list.
    #[error("{}: larger than {MAX_LIST} bytes, which is no list of images: divide it", shown(.0))]
    TooLarge(PathBuf),
    /// Lines that are no references.
    #[error("{}", lines(.0))]
    Lines(Vec<(LinePlace, NotAReference)>),
}

/// What is no reference to an image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum NotAReference {
    /// Bytes that are no text.
    #[error("this is not UTF-8")]
    Text,
    /// Longer than any name.
    #[error("this is longer than any name of an image")]
    TooLong,
    /// Several words.
    #[error("{0:?} is more than one word: one image a line, and # before a comment")]
    Words(String),
    /// A URL.
    #[error("{text:?} begins with {scheme:?}, which no name of an image has: leave that out")]
    Scheme {
        /// The whole.
        text: String,
        /// What it begins with.
        scheme: String,
    },
    /// No digest behind the @.
    #[error("{0:?} has no digest behind the @: write NAME@sha256:HEX")]
    Digest(String),
    /// No tag behind the colon.
    #[error("{0:?} has no valid tag (letters, digits, . _ and -, not starting with . or -)")]
    Tag(String),
    /// No name before that.
    #[error("{0:?} is no name of an image: write [UPSTREAM/]REPOSITORY[:TAG][@DIGEST], in lower case")]
    Name(String),
}

/// The references of a file, or of standard input where it is `-`.
///
/// # Errors
/// It cannot be read, or has lines that are no references: all of them, with their numbers.
pub(super) fn read(file: &Path) -> Result<Vec<Listed>, ListError> {
    parse(file, &content(file)?)
}

/// The bytes of a file, or of standard input where it is `-`, as many as a list may have.
pub(super) fn content(file: &Path) -> Result<Vec<u8>, ListError> {
    let failed = |error| ListError::Read { file: file.to_owned(), error };
    let source: &mut dyn Read =
        if file == Path::new("-") { &mut io::stdin().lock() } else { &mut File::open(file).map_err(failed)? };
    let mut bytes = Vec::new();
    source.take(MAX_LIST + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > MAX_LIST { Err(ListError::TooLarge(file.to_owned())) } else { Ok(bytes) }
}

/// The references of a list that stands in `file`.
///
/// # Errors
/// All lines that are no references.
pub(super) fn parse(file: &Path, bytes: &[u8]) -> Result<Vec<Listed>, ListError> {
    let bytes = bytes.strip_prefix(BYTE_ORDER_MARK).unwrap_or(bytes);
    let (mut listed, mut wrong) = (Vec::new(), Vec::new());
    for (index, line) in bytes.split(|byte| *byte == b'\n').enumerate() {
        let place = || LinePlace { file: file.to_owned(), line: index + 1 };
        match reference(line) {
            Ok(None) => {}
            Ok(Some(name)) => listed.push(Listed { name: name.to_owned(), place: place() }),
            Err(mistake) => wrong.push((place(), mistake)),
        }
    }
    if wrong.is_empty() { Ok(listed) } else { Err(ListError::Lines(wrong)) }
}

/// The reference in a line; none: it is blank, or a comment.
fn reference(line: &[u8]) -> Result<Option<&str>, NotAReference> {
    if line.len() > MAX_LINE {
        return Err(NotAReference::TooLong);
    }
    let line = std::str::from_utf8(line).map_err(|_| NotAReference::Text)?;
    // A # within a word begins no comment; no name has one, so it is told as a mistake.
    let comment = line.char_indices().find(|(at, found)| {
        *found == '#' && line.get(..*at).is_some_and(|before| before.is_empty() || before.ends_with([' ', '\t']))
    });
    let text = comment.map_or(line, |(at, _)| line.get(..at).unwrap_or(line)).trim();
    if text.is_empty() {
        return Ok(None);
    }
    check(text).map(|()| Some(text))
}

/// Whether a text can be a reference to an image: `[HOST/]REPOSITORY[:TAG][@DIGEST]`.
///
/// # Errors
/// What is wrong with it.
pub(super) fn check(text: &str) -> Result<(), NotAReference> {
    if text.contains(char::is_whitespace) {
        return Err(NotAReference::Words(text.to_owned()));
    }
    if let Some((scheme, _)) = text.split_once("://") {
        return Err(NotAReference::Scheme { text: text.to_owned(), scheme: format!("{scheme}://") });
    }
    let name = match text.split_once('@') {
        Some((name, digest)) if digest.parse::<Digest>().is_ok() => name,
        Some(_) => return Err(NotAReference::Digest(text.to_owned())),
        None => text,
    };
    let name = match name.rsplit_once(':') {
        // That of a port.
        Some((_, behind)) if behind.contains('/') => name,
        Some((name, tag)) if tag.parse::<Tag>().is_ok() => name,
        Some(_) => return Err(NotAReference::Tag(text.to_owned())),
        None => name,
    };
    let is_repository = |name: &str| name.parse::<RepoName>().is_ok();
    // Hosts may have a port, brackets, and upper case.
    let is_host = |host: &str| {
        let known = |byte: u8| byte.is_ascii_alphanumeric() || b".-_:[]".contains(&byte);
        !host.is_empty() && host.bytes().all(known)
    };
    let fits = match name.split_once('/') {
        Some((host, rest)) => is_repository(name) || (is_host(host) && is_repository(rest)),
        None => is_repository(name),
    };
    if fits { Ok(()) } else { Err(NotAReference::Name(text.to_owned())) }
}

/// `-` for people.
pub(super) fn shown(file: &Path) -> String {
    if file == Path::new("-") { "standard input".to_owned() } else { file.display().to_string() }
}

/// Mistakes with their places, a line each, the first ones of many.
pub(super) fn lines<E: fmt::Display>(wrong: &[(LinePlace, E)]) -> String {
    let mut told: Vec<String> = wrong.iter().take(TOLD).map(|(place, mistake)| format!("{place}: {mistake}")).collect();
    if let Some(more) = wrong.len().checked_sub(TOLD).filter(|more| *more > 0) {
        told.push(format!("and {more} more"));
    }
    told.join("\n")
}

// === impl LinePlace ===

impl fmt::Display for LinePlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", shown(&self.file), self.line)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::oci::Algorithm;

    fn names(bytes: &[u8]) -> Vec<(String, usize)> {
        let listed = parse(Path::new("x"), bytes).unwrap();
        listed.into_iter().map(|listed| (listed.name, listed.place.line)).collect()
    }

    #[test]
    fn lists_as_people_write_them() {
        let digest = Digest::of(Algorithm::Sha256, b"x");
        let text = format!(
            "\u{feff}# images of the site\r\n\r\nalpine\r\n  ghcr.io/team/app:v1 # the app\r\n\tlocalhost:5000/a/b\t#x\r\n\
             [::1]:5000/a:1\r\nquay.io/a:1@{digest}\r\n   # nothing\r\nREGISTRY.example/a@{digest}"
        );
        assert_eq!(
            names(text.as_bytes()),
            [
                ("alpine".to_owned(), 3),
                ("ghcr.io/team/app:v1".to_owned(), 4),
                ("localhost:5000/a/b".to_owned(), 5),
                ("[::1]:5000/a:1".to_owned(), 6),
                (format!("quay.io/a:1@{digest}"), 7),
                (format!("REGISTRY.example/a@{digest}"), 9),
            ]
        );
        assert_eq!(names(b""), []);
        assert_eq!(names(b"\xef\xbb\xbf"), []);
    }

    #[test]
    fn all_mistakes_are_told_with_their_lines() {
        let text = b"good\ntwo words\n\xff\nhttps://ghcr.io/a\na@sha256:1\na:.b\nUpper\na#b\n/a\na:\n".to_vec();
        let long = [b"x".repeat(MAX_LINE + 1), b"\n".to_vec()].concat();
        let error = parse(Path::new("dir/list"), &[text, long].concat()).unwrap_err().to_string();
        let told: Vec<&str> = error.lines().collect();
        for (told, words) in told.iter().zip([
            "dir/list:2: \"two words\" is more than one word",
            "dir/list:3: this is not UTF-8",
            "dir/list:4: \"https://ghcr.io/a\" begins with \"https://\"",
            "dir/list:5: \"a@sha256:1\" has no digest",
            "dir/list:6: \"a:.b\" has no valid tag",
            "dir/list:7: \"Upper\" is no name",
            "dir/list:8: \"a#b\" is no name",
            "dir/list:9: \"/a\" is no name",
            "dir/list:10: \"a:\" has no valid tag",
            "dir/list:11: this is longer",
        ]) {
            assert!(told.starts_with(words), "{told}");
        }
        assert_eq!(told.len(), 10);
        let many = parse(Path::new("-"), "a b\n".repeat(TOLD + 3).as_bytes()).unwrap_err().to_string();
        assert!(many.starts_with("standard input:1: ") && many.ends_with("\nand 3 more"), "{many}");
    }

    #[test]
    fn files_are_read_up_to_a_size() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("list");
        std::fs::write(&file, "alpine\n").unwrap();
        assert_eq!(read(&file).unwrap().len(), 1);
        File::create(&file).unwrap().set_len(MAX_LIST + 1).unwrap();
        assert!(matches!(read(&file), Err(ListError::TooLarge(_))));
        let missing = read(&directory.path().join("none")).unwrap_err().to_string();
        assert!(missing.contains("none: No such file"), "{missing}");
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            if let Ok(listed) = parse(Path::new("x"), &bytes) {
                prop_assert!(listed.iter().all(|listed| check(&listed.name).is_ok() && !listed.name.contains('#')));
            }
        }
    }
}
