//! `WWW-Authenticate`: what credential an upstream wants.
//!
//! RFC 9110, 11.6.1: several challenges in one header or in several, parameters as tokens or quoted strings. What does
//! not fit the grammar is left out; of a parameter that occurs twice neither can be trusted, so its challenge is.
#![warn(clippy::indexing_slicing)]

use http::HeaderMap;
use http::header::WWW_AUTHENTICATE;

use super::error::{Demand, quotable};

/// Bytes of all `WWW-Authenticate` headers that are looked at.
const MAX_BYTES: usize = 16 * 1024;
/// Challenges that are looked at.
const MAX_CHALLENGES: usize = 8;
/// Parameters of a challenge; with more it is ignored.
const MAX_PARAMS: usize = 16;

/// A challenge that can be answered.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Challenge {
    /// A token from `realm`.
    Bearer(Bearer),
    /// Name and password.
    Basic,
}

/// What a Bearer challenge says.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Bearer {
    /// Where tokens are; not checked yet.
    pub realm: String,
    /// The audience, often empty.
    pub service: String,
    /// What is needed, several separated by spaces; empty if not said.
    pub scope: String,
    /// What is wrong with the token that was shown (RFC 6750, 3.1: `insufficient_scope`, `invalid_token`); empty if not
    /// said.
    pub error: String,
}

/// The challenges of an answer, in its order.
pub(crate) fn parse(headers: &HeaderMap) -> Vec<Challenge> {
    let mut left = MAX_BYTES;
    let mut found = Vec::new();
    for value in headers.get_all(WWW_AUTHENTICATE) {
        let bytes = value.as_bytes();
        let Some(rest) = left.checked_sub(bytes.len()) else { break };
        left = rest;
        found.extend(parse_challenges(bytes));
    }
    found.truncate(MAX_CHALLENGES);
    found
}

/// What the first Bearer challenge says.
pub(crate) fn first_bearer(challenges: &[Challenge]) -> Option<Bearer> {
    challenges.iter().find_map(|challenge| match challenge {
        Challenge::Bearer(bearer) => Some(bearer.clone()),
        Challenge::Basic => None,
    })
}

/// What the challenges of a refusal ask for.
pub(crate) fn demand(headers: &HeaderMap) -> Demand {
    let bearer = first_bearer(&parse(headers));
    bearer.map_or_else(Demand::default, |bearer| Demand {
        scope: quotable(&bearer.scope),
        error: quotable(&bearer.error),
    })
}

/// The challenges of one header.
pub fn parse_challenges(bytes: &[u8]) -> Vec<Challenge> {
    let mut cursor = Cursor { rest: bytes };
    let mut raw: Vec<Raw> = Vec::new();
    loop {
        cursor.skip(|b| b == b',' || is_space(b));
        let Some(name) = cursor.token() else {
            // Nothing more, or nothing that can be understood.
            break;
        };
        let spaced = cursor.skip(is_space);
        if cursor.eat(b'=') {
            cursor.skip(is_space);
            let Some(value) = cursor.value() else { break };
            if let Some(challenge) = raw.last_mut() {
                challenge.add(&name, value);
            }
        } else if raw.len() == MAX_CHALLENGES {
            break;
        } else {
            raw.push(Raw { scheme: name, params: Vec::new(), broken: false });
            if spaced {
                cursor.token68();
            }
        }
    }
    raw.into_iter().filter_map(Raw::into_challenge).collect()
}

struct Raw {
    /// Lower case.
    scheme: String,
    params: Vec<(String, String)>,
    broken: bool,
}

struct Cursor<'a> {
    rest: &'a [u8],
}

// === impl Raw ===

impl Raw {
    fn add(&mut self, name: &str, value: String) {
        self.broken |= self.params.len() == MAX_PARAMS || self.get(name).is_some();
        if !self.broken {
            self.params.push((name.to_owned(), value));
        }
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.params.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    fn into_challenge(self) -> Option<Challenge> {
        if self.broken {
            return None;
        }
        match self.scheme.as_str() {
            "bearer" => Some(Challenge::Bearer(Bearer {
                realm: self.get("realm").filter(|realm| !realm.is_empty())?.to_owned(),
                service: self.get("service").unwrap_or_default().to_owned(),
                scope: self.get("scope").unwrap_or_default().to_owned(),
                error: self.get("error").unwrap_or_default().to_owned(),
            })),
            "basic" => Some(Challenge::Basic),
            _ => None,
        }
    }
}

// === impl Cursor ===

impl Cursor<'_> {
    fn peek(&self) -> Option<u8> {
        self.rest.first().copied()
    }

    fn bump(&mut self) -> Option<u8> {
        let (&first, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(first)
    }

    fn eat(&mut self, byte: u8) -> bool {
        let there = self.peek() == Some(byte);
        if there {
            self.bump();
        }
        there
    }

    /// Whether anything was skipped.
    fn skip(&mut self, what: impl Fn(u8) -> bool) -> bool {
        let length = self.rest.iter().take_while(|b| what(**b)).count();
        self.rest = self.rest.get(length..).unwrap_or_default();
        length > 0
    }

    /// A token, in lower case: names of schemes and parameters do not depend on case.
    fn token(&mut self) -> Option<String> {
        self.raw_token().map(|token| token.to_ascii_lowercase())
    }

    fn raw_token(&mut self) -> Option<String> {
        let length = self.rest.iter().take_while(|b| is_token(**b)).count();
        let (token, rest) = self.rest.split_at_checked(length)?;
        if token.is_empty() {
            return None;
        }
        self.rest = rest;
        Some(String::from_utf8_lossy(token).into_owned())
    }

    fn value(&mut self) -> Option<String> {
        if !self.eat(b'"') {
            // Some registries leave the quotes out around a URL.
            let length = self.rest.iter().take_while(|b| !is_space(**b) && !matches!(**b, b',' | b'"')).count();
            let (value, rest) = self.rest.split_at_checked(length)?;
            self.rest = rest;
            return Some(String::from_utf8_lossy(value).into_owned());
        }
        let mut value = Vec::new();
        loop {
            match self.bump()? {
                b'"' => return Some(String::from_utf8_lossy(&value).into_owned()),
                b'\\' => value.push(self.bump()?),
                byte => value.push(byte),
            }
        }
    }

    /// `Negotiate dGVzdA==`: skips the credentials-like form, which is followed by a comma or the end.
    fn token68(&mut self) {
        let length = self.rest.iter().take_while(|b| is_token(**b) || **b == b'/').count();
        let Some(rest) = self.rest.get(length..) else { return };
        let padding = rest.iter().take_while(|b| **b == b'=').count();
        let Some(after) = rest.get(padding..) else { return };
        if length > 0 && matches!(after.iter().find(|b| !is_space(**b)), None | Some(b',')) {
            self.rest = after;
        }
    }
}

fn is_space(byte: u8) -> bool {
    byte == b' ' || byte == b'\t'
}

fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    fn bearer(realm: &str, service: &str, scope: &str) -> Challenge {
        Challenge::Bearer(Bearer {
            realm: realm.into(),
            service: service.into(),
            scope: scope.into(),
            error: String::new(),
        })
    }

    #[test]
    fn the_error_is_kept() {
        let text = r#"Bearer realm="https://r/t",service="r",scope="repository:a:pull",error="insufficient_scope""#;
        let [Challenge::Bearer(bearer)] = &parse_challenges(text.as_bytes())[..] else { panic!("one challenge") };
        assert_eq!((bearer.scope.as_str(), bearer.error.as_str()), ("repository:a:pull", "insufficient_scope"));
    }

    #[test]
    fn challenges_of_real_registries() {
        for (text, expected) in [
            (
                r#"Bearer realm="https://REG.azurecr.io/oauth2/token",service="REG.azurecr.io""#,
                vec![bearer("https://REG.azurecr.io/oauth2/token", "REG.azurecr.io", "")],
            ),
            (
                r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull,push""#,
                vec![bearer("https://auth.docker.io/token", "registry.docker.io", "repository:a/b:pull,push")],
            ),
            (r#"Basic realm="Registry Realm""#, vec![Challenge::Basic]),
            ("basic", vec![Challenge::Basic]),
            (
                r#"Bearer realm="https://a/t", service=s , Basic realm="x, y", Negotiate, NTLM TlRMTVNTUAAC=, Digest qop="auth""#,
                vec![bearer("https://a/t", "s", ""), Challenge::Basic],
            ),
            ("Bearer realm=https://a/t?x=1,service=b", vec![bearer("https://a/t?x=1", "b", "")]),
            (r#"bEaReR REALM = "https://a\"\\b""#, vec![bearer(r#"https://a"\b"#, "", "")]),
        ] {
            assert_eq!(parse_challenges(text.as_bytes()), expected, "{text}");
        }
    }

    #[test]
    fn nonsense_is_no_challenge() {
        let many =
            format!("Bearer {}realm=\"x\"", (0..20).map(|n| format!("p{n}=1")).collect::<Vec<_>>().join(",") + ",");
        for text in [
            "",
            ",,,",
            "Bearer",
            "Bearer realm=",
            r#"Bearer realm="""#,
            r#"Bearer realm="https://a"#,
            r#"realm="https://a""#,
            r#"Bearer realm="https://a",realm="https://b""#,
            r#"Bearer realm="https://a",scope="x",scope="y""#,
            "Bearer token68==",
            "\u{e9}",
            &many,
        ] {
            assert_eq!(parse_challenges(text.as_bytes()), [], "{text}");
        }
    }

    #[test]
    fn several_headers_and_a_limit_on_all() {
        let mut headers = HeaderMap::new();
        headers.append(WWW_AUTHENTICATE, HeaderValue::from_static("Basic realm=x"));
        headers.append(WWW_AUTHENTICATE, HeaderValue::from_static(r#"Bearer realm="https://a""#));
        assert_eq!(parse(&headers), [Challenge::Basic, bearer("https://a", "", "")]);
        let huge = format!("Bearer realm=\"https://{}\"", "a".repeat(64 << 10));
        headers.insert(WWW_AUTHENTICATE, HeaderValue::from_str(&huge).unwrap());
        assert_eq!(parse(&headers), []);
        assert!(parse_challenges("Basic,".repeat(1000).as_bytes()).len() <= MAX_CHALLENGES);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(10_000))]
        #[test]
        fn any_bytes_parse_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(parse_challenges(&bytes).len() <= MAX_CHALLENGES);
        }

        #[test]
        fn almost_challenges_parse_without_panic(text in "((Bearer|Basic|x) ?)?([a-z]{1,6} ?= ?\"?[a-z:/\\\\\"]{0,8}\"?[ ,]{0,2}){0,6}") {
            parse_challenges(text.as_bytes());
        }

        #[test]
        fn what_is_quoted_comes_back(realm in "[ -~]{1,40}", service in "[ -~]{0,20}") {
            let quote = |text: &str| text.replace('\\', "\\\\").replace('"', "\\\"");
            let text = format!("Bearer service=\"{}\",realm=\"{}\"", quote(&service), quote(&realm));
            prop_assert_eq!(parse_challenges(text.as_bytes()), [bearer(&realm, &service, "")]);
        }
    }
}
