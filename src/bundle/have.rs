//! What a store has, as text, by which the other side knows what need not be carried: `ocistern have > LIST`.
//!
//! ```text
//! # comments and blank lines say nothing
//! sha256:HEX                                        a blob that is stored
//! docker.io/library/alpine:3.20 sha256:HEX          what a tag means
//! ```

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use crate::oci::{Digest, RepoName, Tag, UpstreamName};

/// What a store has.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Have {
    /// Blobs that were given to everybody or to ocistern's account, in order of their digests: who exports may leave them out.
    pub digests: Vec<Digest>,
    /// Other blobs, in order of their digests: no name leads to them, as after an import that was cut off, or only such as
    /// the credential of a client opens. An import need not write them again; an export may not leave them out.
    #[serde(default)]
    pub unnamed: Vec<Digest>,
    /// Tags, and images without one, in order of their names.
    pub tags: Vec<HaveTag>,
}

/// What a tag means, or an image that has none.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct HaveTag {
    /// `UPSTREAM/REPOSITORY:TAG` or `UPSTREAM/REPOSITORY@DIGEST`.
    pub name: String,
    /// The manifest.
    pub digest: Digest,
}

impl Have {
    /// The list, of what may be left out of an export.
    pub fn to_text(&self) -> String {
        let mut text =
            String::from("# ocistern have 1: blobs by digest, then what tags mean, and images without one\n");
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
                    let digest = digest(second)?;
                    if !is_name(first, &digest) {
                        let message =
                            format!("{first:?} is not UPSTREAM/REPOSITORY:TAG, nor UPSTREAM/REPOSITORY@{digest}");
                        return Err((number + 1, message));
                    }
                    have.tags.push(HaveTag { name: first.to_owned(), digest });
                }
                (Some(_), Some(_)) => {
                    let message = "it has more than a digest, or a name and a digest".to_owned();
                    return Err((number + 1, message));
                }
            }
        }
        Ok(have)
    }
}

/// Whether this can be the name of an image of that digest.
fn is_name(text: &str, digest: &Digest) -> bool {
    let parts = || {
        let (name, is_right) = match (text.split_once('@'), text.rsplit_once(':')) {
            (Some((name, of)), _) => (name, of.parse::<Digest>().is_ok_and(|of| of == *digest)),
            (None, Some((name, tag))) => (name, tag.parse::<Tag>().is_ok()),
            (None, None) => return None,
        };
        let (up, repo) = name.split_once('/')?;
        up.parse::<UpstreamName>().ok()?;
        repo.parse::<RepoName>().ok()?;
        Some(is_right)
    };
    parts() == Some(true)
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
            unnamed: Vec::new(),
            tags: vec![
                HaveTag { name: "docker.io/library/a:V1".to_owned(), digest },
                HaveTag { name: format!("docker.io/library/a@{digest}"), digest },
            ],
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
            (&*format!("docker.io/a@{} {digest}", Digest::of(Algorithm::Sha256, b"y")), "UPSTREAM/REPOSITORY@sha256"),
        ] {
            let (line, message) = Have::from_text(&format!("# first\n{digest}\n{wrong}\n")).unwrap_err();
            assert!(line == 3 && message.contains(why), "{wrong}: {line} {message}");
        }
    }
}
