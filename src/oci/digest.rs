//! Content digests: `sha256:HEX` and `sha512:HEX`, parsed strictly and kept as bytes.
//!
//! OCI image-spec, `descriptor.md`, "Digests". Only the two registered algorithms with their exact length and
//! lower-case hexadecimal are accepted: file names are made from a digest, so a lenient parser here would be a path
//! traversal (CVE-2024-3727) or a second name for the same content.

use std::fmt;
use std::hash::Hash;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest as _, Sha256, Sha512};

/// A registered digest algorithm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Algorithm {
    /// SHA-256, 32 bytes; what practically all content uses.
    Sha256,
    /// SHA-512, 64 bytes.
    Sha512,
}

/// Longest hash in hexadecimal.
const HEX: usize = 128;

/// The digest of some content: an algorithm and its exact number of bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Digest {
    algorithm: Algorithm,
    /// The hash, left-aligned; bytes past the algorithm's length are zero.
    bytes: [u8; 64],
}

/// A running hash that ends in a [`Digest`].
#[derive(Clone)]
pub struct Hasher(State);

#[derive(Clone)]
enum State {
    Sha256(Sha256),
    Sha512(Sha512),
}

/// The text is not a digest that this program accepts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidDigest {
    /// There is no `algorithm:` part.
    #[error("a digest is written algorithm:hex")]
    NoAlgorithm,
    /// The algorithm is not sha256 or sha512.
    #[error("the digest algorithm is not sha256 or sha512")]
    Algorithm,
    /// The hexadecimal part has the wrong length or other characters than 0-9 and a-f.
    #[error("the digest's hexadecimal part has the wrong length or characters other than 0-9 a-f")]
    Hex,
}

// === impl Algorithm ===

impl Algorithm {
    /// Every algorithm, in the order in which directories are walked.
    pub const ALL: [Self; 2] = [Self::Sha256, Self::Sha512];

    /// The registered identifier: `sha256` or `sha512`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }

    /// Length of the hash in bytes: 32 or 64.
    pub const fn size(self) -> usize {
        match self {
            Self::Sha256 => 32,
            Self::Sha512 => 64,
        }
    }
}

// === impl Digest ===

impl Digest {
    /// The digest of `content`.
    pub fn of(algorithm: Algorithm, content: &[u8]) -> Self {
        let mut hasher = Hasher::new(algorithm);
        hasher.update(content);
        hasher.finish()
    }

    /// Its algorithm.
    pub const fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The raw hash: 32 or 64 bytes.
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.algorithm.size()).unwrap_or_default()
    }

    /// The hash in lower-case hexadecimal: 64 or 128 characters.
    pub fn hex(&self) -> String {
        hex(self.as_bytes(), &mut [0; HEX]).to_owned()
    }

    /// From an algorithm and its hexadecimal part, as they stand in a path of the store.
    pub fn from_parts(algorithm: Algorithm, hex: &str) -> Result<Self, InvalidDigest> {
        let text = hex.as_bytes();
        if text.len() != algorithm.size() * 2 {
            return Err(InvalidDigest::Hex);
        }
        let mut bytes = [0; 64];
        for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
            let &[high, low] = pair else { return Err(InvalidDigest::Hex) };
            *byte = (nibble(high)? << 4) | nibble(low)?;
        }
        Ok(Self { algorithm, bytes })
    }
}

/// Bytes in lower-case hexadecimal, in a buffer that has two characters for each: every answer has some, and formatting them
/// one by one was dear.
pub fn hex<'t>(bytes: &[u8], text: &'t mut [u8]) -> &'t str {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |nibble: u8| DIGITS.get(usize::from(nibble)).copied().unwrap_or(b'0');
    for (pair, byte) in text.chunks_exact_mut(2).zip(bytes) {
        pair.copy_from_slice(&[digit(byte >> 4), digit(byte & 15)]);
    }
    text.get(..bytes.len() * 2).and_then(|hex| std::str::from_utf8(hex).ok()).unwrap_or_default()
}

fn nibble(character: u8) -> Result<u8, InvalidDigest> {
    match character {
        b'0'..=b'9' => Ok(character - b'0'),
        b'a'..=b'f' => Ok(character - b'a' + 10),
        _ => Err(InvalidDigest::Hex),
    }
}

impl FromStr for Digest {
    type Err = InvalidDigest;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (algorithm, hex) = text.split_once(':').ok_or(InvalidDigest::NoAlgorithm)?;
        let algorithm = Algorithm::ALL.into_iter().find(|a| a.as_str() == algorithm).ok_or(InvalidDigest::Algorithm)?;
        Self::from_parts(algorithm, hex)
    }
}

impl Hash for Digest {
    /// Of its bytes, without those that are always zero.
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.as_bytes().hash(state);
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.algorithm.as_str())?;
        f.write_str(":")?;
        f.write_str(hex(self.as_bytes(), &mut [0; HEX]))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

// === impl Hasher ===

impl Hasher {
    /// A hash over nothing yet.
    pub fn new(algorithm: Algorithm) -> Self {
        Self(match algorithm {
            Algorithm::Sha256 => State::Sha256(Sha256::new()),
            Algorithm::Sha512 => State::Sha512(Sha512::new()),
        })
    }

    /// Adds the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        match &mut self.0 {
            State::Sha256(state) => state.update(bytes),
            State::Sha512(state) => state.update(bytes),
        }
    }

    /// The digest of all that was added.
    pub fn finish(self) -> Digest {
        let mut bytes = [0; 64];
        let algorithm = match self.0 {
            State::Sha256(state) => {
                bytes.iter_mut().zip(state.finalize()).for_each(|(to, from)| *to = from);
                Algorithm::Sha256
            }
            State::Sha512(state) => {
                bytes.iter_mut().zip(state.finalize()).for_each(|(to, from)| *to = from);
                Algorithm::Sha512
            }
        };
        Digest { algorithm, bytes }
    }
}

impl fmt::Debug for Hasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hasher")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_vectors() {
        assert_eq!(
            Digest::of(Algorithm::Sha256, b"").to_string(),
            "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        );
        assert!(Digest::of(Algorithm::Sha512, b"abc").hex().starts_with("ddaf35a193617abacc417349ae204131"));
    }

    #[test]
    fn refuses_everything_but_the_one_spelling() {
        let hex = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        for bad in [
            String::new(),
            "sha256".into(),
            "sha256:".into(),
            format!("SHA256:{hex}"),
            format!("sha256:{}", hex.to_uppercase()),
            format!("sha256:{hex}0"),
            format!("sha512:{hex}"),
            format!("md5:{hex}"),
            format!("sha256:{}/", &hex[..63]),
            format!("sha256:../{}", &hex[..61]),
            "sha256:baddigeststring".into(),
        ] {
            assert!(bad.parse::<Digest>().is_err(), "{bad:?} must not be a digest");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(10_000))]
        #[test]
        fn parse_never_panics_and_prints_what_it_parsed(text in "\\PC{0,140}") {
            if let Ok(digest) = text.parse::<Digest>() {
                prop_assert_eq!(digest.to_string(), text);
            }
        }

        #[test]
        fn round_trip(content in proptest::collection::vec(any::<u8>(), 0..64), wide in any::<bool>()) {
            let digest = Digest::of(if wide { Algorithm::Sha512 } else { Algorithm::Sha256 }, &content);
            prop_assert_eq!(digest.to_string().parse::<Digest>(), Ok(digest));
        }
    }
}
