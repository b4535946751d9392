//! Patterns in rules: `*` stays within a path part, `**` crosses; in patterns of tags, which have no parts, `*` is
//! anything. Every other character stands for itself.
//!
//! The matcher follows all possibilities at once, so its time is bounded by pattern times text whatever the pattern.

use super::error::Fault;
use super::{Rule, TagPolicy, Upstream};
use crate::oci::{RepoName, Tag};

const REPOSITORY: &str = "a pattern of repositories: write a name with * (within a part) or ** (across parts), such as \"library/*\" or \"team/**\"";
const TAG: &str = "a pattern of tags: write a tag with *, such as \"v*\" or \"latest\"";

/// Longest pattern.
const MAX_PATTERN: usize = 512;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Token {
    /// Exactly this byte.
    Byte(u8),
    /// Any number of bytes other than `/`.
    Within,
    /// Any number of bytes.
    Across,
}

fn tokens(pattern: &str) -> Vec<Token> {
    let mut tokens: Vec<Token> = Vec::with_capacity(pattern.len());
    for byte in pattern.bytes() {
        match (byte, tokens.last_mut()) {
            (b'*', Some(last @ (Token::Within | Token::Across))) => *last = Token::Across,
            (b'*', _) => tokens.push(Token::Within),
            (byte, _) => tokens.push(Token::Byte(byte)),
        }
    }
    tokens
}

/// Whether all of `text` fits `pattern`.
pub(super) fn matches(pattern: &str, text: &str) -> bool {
    let tokens = tokens(pattern);
    // `alive[i]`: the tokens before i have consumed the text so far.
    let mut alive = vec![false; tokens.len() + 1];
    if let Some(first) = alive.first_mut() {
        *first = true;
    }
    skip_stars(&tokens, &mut alive);
    for byte in text.bytes() {
        let mut next = vec![false; alive.len()];
        for (position, token) in tokens.iter().enumerate() {
            if !alive.get(position).copied().unwrap_or(false) {
                continue;
            }
            let target = match token {
                Token::Byte(wanted) if *wanted == byte => position + 1,
                Token::Within if byte != b'/' => position,
                Token::Across => position,
                Token::Byte(_) | Token::Within => continue,
            };
            if let Some(slot) = next.get_mut(target) {
                *slot = true;
            }
        }
        skip_stars(&tokens, &mut next);
        alive = next;
    }
    alive.last().copied().unwrap_or(false)
}

/// A star may also stand for nothing.
fn skip_stars(tokens: &[Token], alive: &mut [bool]) {
    for (position, token) in tokens.iter().enumerate() {
        let here = alive.get(position).copied().unwrap_or(false);
        if here
            && matches!(token, Token::Within | Token::Across)
            && let Some(slot) = alive.get_mut(position + 1)
        {
            *slot = true;
        }
    }
}

/// What is most likely meant by a name of images that is none.
pub(super) fn advice(text: &str) -> String {
    for (algorithm, digits) in [("sha256", 64), ("sha512", 128)] {
        let hex = text.rsplit(['@', '/']).next().and_then(|last| last.strip_prefix(algorithm)?.strip_prefix(':'));
        if hex.is_some_and(|hex| hex.len() < digits && hex.bytes().all(|b| b.is_ascii_hexdigit())) {
            return format!(
                "; a digest of {algorithm} has {digits} hex digits, of which `ocistern ls` shows the first ones: `ocistern ls --json` \
                 has all, and what has a tag is meant by that as well"
            );
        }
    }
    if let Some((name, digest)) = text.split_once('@')
        && let Some((name, _)) = name.rsplit_once(':').filter(|(_, tag)| !tag.contains('/'))
    {
        return format!("; a tag and a digest at once are one too many: write {name}@{digest}");
    }
    String::new()
}

/// A pattern of repositories that can match something. `library`: names of one part stand under `library/`.
pub(super) fn repository(text: &str, library: bool) -> Result<String, Fault> {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'_' | b'-' | b'/' | b'*');
    if text.is_empty() || text.len() > MAX_PATTERN || !text.bytes().all(plain) || text.split('/').any(str::is_empty) {
        return Err(Fault::value(text, REPOSITORY));
    }
    match library && !text.contains('/') {
        // As in a pull.
        true if !text.contains('*') => Ok(format!("library/{text}")),
        true if !text.contains("**") => Err(Fault::NoLibrary(text.to_owned())),
        _ => Ok(text.to_owned()),
    }
}

/// A pattern of tags that can match something.
pub(super) fn tag(text: &str) -> Result<String, Fault> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b'*');
    if text.is_empty() || text.len() > MAX_PATTERN || !text.bytes().all(plain) {
        return Err(Fault::value(text, TAG));
    }
    Ok(text.to_owned())
}

// === impl Upstream ===

impl Upstream {
    /// How long `tag` of `repo` is served before it is asked again: the first rule that matches, else `tags`. A sealed
    /// upstream has no exceptions.
    pub fn policy(&self, repo: &RepoName, tag: &Tag) -> TagPolicy {
        if self.sealed {
            return TagPolicy::Sealed;
        }
        self.rules.iter().find(|rule| rule.matches(repo, tag)).map_or(self.tags, |rule| rule.tags)
    }

    /// Whether upstream is asked for nothing of this repository. A rule seals a repository if it speaks about all its tags,
    /// and no rule before it leaves one of them open.
    pub fn is_sealed(&self, repo: &RepoName) -> bool {
        if self.sealed || self.rules.iter().all(|rule| rule.tags != TagPolicy::Sealed) {
            return self.sealed;
        }
        for rule in self.rules.iter().filter(|rule| rule.is_about(repo)) {
            match (rule.tags, rule.is_about_all_tags()) {
                (TagPolicy::Sealed, true) => return true,
                (TagPolicy::Sealed, false) => {}
                _ => return false,
            }
        }
        false
    }

    /// Whether a request about this repository, and this tag of it, is not to be sent.
    pub fn is_closed_to(&self, repo: Option<&RepoName>, tag: Option<&Tag>) -> bool {
        let Some(repo) = repo else { return self.sealed };
        self.is_sealed(repo) || tag.is_some_and(|tag| self.policy(repo, tag) == TagPolicy::Sealed)
    }
}

// === impl Rule ===

impl Rule {
    /// Whether the rule speaks about this tag.
    pub fn matches(&self, repo: &RepoName, tag: &Tag) -> bool {
        self.is_about(repo) && self.tag.as_deref().is_none_or(|pattern| matches(pattern, tag.as_str()))
    }

    /// Whether it speaks about tags of this repository.
    fn is_about(&self, repo: &RepoName) -> bool {
        self.repository.as_deref().is_none_or(|pattern| matches(pattern, repo.as_str()))
    }

    /// Whether it speaks about every tag of its repositories.
    fn is_about_all_tags(&self) -> bool {
        self.tag.as_deref().is_none_or(|pattern| pattern.bytes().all(|byte| byte == b'*'))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn stars() {
        for (pattern, text) in [
            ("library/*", "library/alpine"),
            ("library/*", "library/"),
            ("*/app", "team/app"),
            ("team/**", "team/a/b/c"),
            ("**", "a/b"),
            ("**/app", "a/b/app"),
            ("a*b*c", "axxbyyc"),
            ("v*", "v"),
            ("***", "a/b"),
            ("a", "a"),
        ] {
            assert!(matches(pattern, text), "{pattern} matches {text}");
        }
        for (pattern, text) in [
            ("library/*", "library/a/b"),
            ("library/*", "other/alpine"),
            ("*", "a/b"),
            ("*/app", "a/b/app"),
            ("**/app", "app"),
            ("v*", "1v"),
            ("a", "ab"),
            ("a", ""),
            ("", "a"),
        ] {
            assert!(!matches(pattern, text), "{pattern} does not match {text}");
        }
    }

    #[test]
    fn rules_that_seal() {
        let text = "[upstream.up]\nurl = \"http://localhost\"\n\
                    rule = [{ repository = \"a/open\", tags = \"5m\" }, { repository = \"a/**\", tags = \"sealed\" }, \
                    { repository = \"b\", tag = \"v*\", tags = \"sealed\" }, { repository = \"c\", tag = \"dev\", tags = \"1h\" }, \
                    { repository = \"c\", tag = \"*\", tags = \"sealed\" }, { repository = \"d\", tag = \"v*\", tags = \"sealed\" }, \
                    { repository = \"d\", tags = \"sealed\" }]";
        let config = super::super::Config::from_toml(text).unwrap();
        let upstream = &config.upstreams[&"up".parse().unwrap()];
        for (repo, tag, repo_is_closed, tag_is_closed) in [
            ("a/x", "1", true, true),
            ("a/open", "1", false, false),
            ("b", "v1", false, true),
            ("b", "1", false, false),
            // One of its tags is asked for, so what it means must be asked for too.
            ("c", "dev", false, false),
            ("c", "1", false, true),
            ("d", "1", true, true),
            ("e", "1", false, false),
        ] {
            let (name, tag): (RepoName, Tag) = (repo.parse().unwrap(), tag.parse().unwrap());
            assert_eq!(upstream.is_closed_to(Some(&name), None), repo_is_closed, "{repo}");
            assert_eq!(upstream.is_closed_to(Some(&name), Some(&tag)), tag_is_closed, "{repo}:{tag}");
        }
        assert!(!upstream.is_closed_to(None, None));
    }

    #[test]
    fn a_name_of_one_part_stands_in_the_library() {
        for (text, library, meant) in [
            ("alpine", true, Some("library/alpine")),
            ("team/app", true, Some("team/app")),
            ("**", true, Some("**")),
            ("*", true, None),
            ("alp*", true, None),
            ("alpine", false, Some("alpine")),
            ("alp*", false, Some("alp*")),
        ] {
            assert_eq!(repository(text, library).ok().as_deref(), meant, "{text}");
        }
    }

    #[test]
    fn a_hostile_pattern_ends_soon() {
        let pattern = "a*".repeat(MAX_PATTERN / 2);
        assert!(!matches(&pattern, &format!("{}b", "a".repeat(254))));
    }

    /// The meaning, written down as directly as possible.
    fn reference(pattern: &[u8], text: &[u8]) -> bool {
        match pattern {
            [] => text.is_empty(),
            [b'*', b'*', rest @ ..] => (0..=text.len()).any(|n| reference(rest, &text[n..])),
            [b'*', rest @ ..] => {
                let part = text.iter().position(|&b| b == b'/').unwrap_or(text.len());
                (0..=part).any(|n| reference(rest, &text[n..]))
            }
            [byte, rest @ ..] => text.first() == Some(byte) && reference(rest, &text[1..]),
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(5_000))]
        #[test]
        fn matching_agrees_with_its_meaning(pattern in "[ab/*]{0,8}", text in "[ab/]{0,8}") {
            prop_assert_eq!(matches(&pattern, &text), reference(pattern.as_bytes(), text.as_bytes()));
        }

        #[test]
        fn a_pattern_without_stars_is_itself(text in "[a-z0-9/._-]{1,20}", other in "[a-z0-9/._-]{1,20}") {
            prop_assert!(matches(&text, &text));
            prop_assert_eq!(matches(&text, &other), text == other);
        }
    }
}
