//! What a store has, as text, by which the other side knows what need not be carried: `ocistern have > LIST`.
//!
//! ```text
//! # comments and blank lines say nothing
//! sha256:HEX                                        a blob that is stored
//! docker.io/library/alpine:3.20 sha256:HEX          what a tag means
//! ```

use std::collections::HashSet;
use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use crate::oci::{Digest, RepoName, Tag, UpstreamName};

/// What a store has.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Have {
    /// Blobs, in order of their digests.
    pub digests: Vec<Digest>,
    /// Tags, in order of their names.
    pub tags: Vec<HaveTag>,
}

/// What a tag means.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct HaveTag {
    /// `UPSTREAM/REPOSITORY:TAG`.
    pub name: String,
    /// The manifest.
    pub digest: Digest,
}

impl Have {
    /// The list.
    pub fn to_text(&self) -> String {
        let mut text = String::from("# ocistern have 1: blobs by digest, then what tags mean\n");
        for digest in &self.digests {
            let _ = writeln!(text, "{digest}");
        }
        for HaveTag { name, digest } in &self.tags {
            let _ = writeln!(text, "{name} {digest}");
        }
        text
    }

    /// Reads a list.
    ///
    /// # Errors
    /// The number of the line that is wrong, and why.
    pub fn from_text(text: &str) -> Result<Self, (usize, String)> {
        let mut have = Self::default();
        for (number, line) in text.lines().enumerate() {
            // No digest and no name has a `#` in it.
            let line = line.split('#').next().unwrap_or_default().trim();
            let mut words = line.split_whitespace();
            let Some(first) = words.next() else { continue };
            let digest = |word: &str| {
                word.parse::<Digest>().map_err(|_| (number + 1, format!("{word:?} is no digest, such as sha256:…")))
            };
            match (words.next(), words.next()) {
                (None, _) => have.digests.push(digest(first)?),
                (Some(second), None) => {
                    if !is_tag_name(first) {
                        return Err((number + 1, format!("{first:?} is not UPSTREAM/REPOSITORY:TAG")));
                    }
                    have.tags.push(HaveTag { name: first.to_owned(), digest: digest(second)? });
                }
                (Some(_), Some(_)) => {
                    let message = "it has more than a digest, or a name and a digest".to_owned();
                    return Err((number + 1, message));
                }
            }
        }
        Ok(have)
    }

    /// The digests, to look one up.
    pub fn set(&self) -> HashSet<Digest> {
        self.digests.iter().copied().collect()
    }
}

fn is_tag_name(text: &str) -> bool {
    let parts = || {
        let (name, tag) = text.rsplit_once(':')?;
        let (up, repo) = name.split_once('/')?;
        up.parse::<UpstreamName>().ok()?;
        repo.parse::<RepoName>().ok()?;
        tag.parse::<Tag>().ok()
    };
    parts().is_some()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Algorithm;

    #[test]
    fn a_list_is_read_back() {
        let digest = Digest::of(Algorithm::Sha256, b"x");
        let have = Have {
            digests: vec![digest, Digest::of(Algorithm::Sha512, b"x")],
            tags: vec![HaveTag { name: "docker.io/library/a:V1".to_owned(), digest }],
        };
        assert_eq!(Have::from_text(&have.to_text()).unwrap(), have);
        let edited = format!("\n  # mine\n{}\n\t{digest} # twice\r\n", have.to_text());
        assert_eq!(Have::from_text(&edited).unwrap().digests.len(), 3);
        assert_eq!(Have::from_text("").unwrap(), Have::default());
    }

    #[test]
    fn a_wrong_line_is_named() {
        let digest = Digest::of(Algorithm::Sha256, b"x");
        for (wrong, why) in [
            ("alpine", "no digest"),
            (&*format!("alpine {digest}"), "UPSTREAM/REPOSITORY:TAG"),
            (&*format!("docker.io/a:1 {digest} x"), "more than"),
            ("docker.io/a:1 sha256:00", "no digest"),
        ] {
            let (line, message) = Have::from_text(&format!("# first\n{digest}\n{wrong}\n")).unwrap_err();
            assert!(line == 3 && message.contains(why), "{wrong}: {line} {message}");
        }
    }
}
