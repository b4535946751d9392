//! Sealed tokens: what ocistern hands out instead of upstream's own tokens.
//!
//! A token has the shape of a JWT, because clients read `exp` and `access` from it: header, claims (those of the token
//! inside where that is a JWT) and, where a signature would stand, the sealed part: XChaCha20-Poly1305 over what the
//! token says, with header and claims as associated data. Nobody but ocistern can open, make or alter one. Nonces are
//! random; with 192 bits they never meet.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::alphabet::URL_SAFE;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use chacha20poly1305::aead::{Aead, Generate, KeyInit, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use hmac::{Hmac, Mac};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};
use sha2::Sha256;

use crate::config::Upstream;
use crate::oci::{Scope, UpstreamName};
use crate::upstream::Principal;

/// `{"alg":"XC20P","typ":"JWT"}`: no algorithm of JWS, so that nobody takes it for a signature.
const HEADER: &str = "eyJhbGciOiJYQzIwUCIsInR5cCI6IkpXVCJ9";
/// Version of what is inside; others do not open.
const VERSION: u8 = 3;
/// Seconds by which time services may set the clock back without ending tokens.
const NUDGE: u64 = 60;
/// Bytes of a nonce.
const NONCE: usize = 24;
/// Longest token that is looked at; a request's head has no more room either.
const MAX_TOKEN: usize = 32 * 1024;
/// Longest claims that are copied from the token inside: clients read them, but the token must stay usable in a head.
const MAX_CLAIMS: usize = 4 * 1024;

/// The keys for tokens, and for telling callers apart.
pub struct Seal {
    cipher: XChaCha20Poly1305,
    names: Hmac<Sha256>,
}

/// What a token says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Pass {
    version: u8,
    /// What it is good for.
    pub(super) kind: Kind,
    /// Seconds since 1970 when it was given out.
    issued: u64,
    /// Seconds since 1970; none: it ends with what is inside.
    pub(super) expires: Option<u64>,
    /// At most one for an upstream.
    pub(super) grants: Vec<Grant>,
}

/// What a token is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Kind {
    /// Shown with requests.
    Access,
    /// Exchanged for access tokens.
    Refresh,
}

/// What a token holds for one upstream. It never goes to another one, nor to one that has got its name since.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Grant {
    upstream: UpstreamName,
    /// Where that is.
    url: String,
    /// What it was asked for, by upstream's names.
    #[serde(with = "as_text")]
    pub(super) scopes: Vec<Scope>,
    pub(super) inner: Inner,
}

/// By what right its bearer is there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Inner {
    /// Everybody's.
    Anonymous,
    /// The user has this line in this htpasswd file.
    Local {
        file: String,
        user: String,
        #[serde(with = "as_bytes")]
        line: Principal,
    },
    /// A credential of upstream's.
    Lent(Credential),
}

/// A credential of upstream's, and whose it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Credential {
    pub(super) secret: Shown,
    /// Who showed it.
    #[serde(with = "as_bytes")]
    pub(super) principal: Principal,
    /// To whom uploads belong.
    pub(super) owner: Option<String>,
    /// Upstream could not be asked whether it is right.
    pub(super) unconfirmed: bool,
}

/// What is shown to an upstream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Shown {
    /// A name and password.
    Basic { username: String, password: Hidden },
    /// A token for the registry.
    Token(Hidden),
    /// A token for its token endpoint.
    Refresh(Hidden),
}

/// Text that is never printed.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Hidden(String);

/// Why a token does not open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unopened {
    /// Not one of ocistern's, altered, or sealed with keys that are gone.
    #[error("the token is not one that this ocistern has given out for this")]
    Foreign,
    /// Its time is over.
    #[error("the token has expired")]
    Expired,
}

// === impl Seal ===

impl Seal {
    /// The keys that follow from a secret of the store.
    pub fn new(secret: &[u8; 32]) -> Self {
        let keyed = |label: &str| {
            let mut mac = hmac(secret);
            mac.update(label.as_bytes());
            <[u8; 32]>::from(mac.finalize().into_bytes())
        };
        Self { cipher: XChaCha20Poly1305::new(&keyed("tokens").into()), names: hmac(&keyed("principals")) }
    }

    /// The token that says `pass`, with `claims` for clients to read.
    pub(super) fn seal(&self, pass: &Pass, claims: &Map<String, Value>) -> Result<String, SealError> {
        let claims = serde_json::to_vec(claims).map_err(|_| SealError)?;
        let open = format!("{HEADER}.{}", URL_SAFE_NO_PAD.encode(claims));
        let inside = serde_json::to_vec(pass).map_err(|_| SealError)?;
        let nonce = XNonce::try_generate().map_err(|_| SealError)?;
        let payload = Payload { msg: &inside, aad: open.as_bytes() };
        let sealed = self.cipher.encrypt(&nonce, payload).map_err(|_| SealError)?;
        Ok(format!("{open}.{}", URL_SAFE_NO_PAD.encode([nonce.as_slice(), &sealed].concat())))
    }

    /// What a token says, if it is one of ours, of this kind and alive.
    pub(super) fn open(&self, token: &str, kind: Kind, now: SystemTime) -> Result<Pass, Unopened> {
        let now = seconds(now);
        let pass = self.open_any(token).filter(|pass| pass.kind == kind).ok_or(Unopened::Foreign)?;
        // Else a clock that was set back would prolong it. A refresh token is worth no more than upstream says each time,
        // and to lose it means to log in again.
        let future = pass.kind == Kind::Access && pass.issued > now.saturating_add(NUDGE);
        match pass.expires {
            _ if future => Err(Unopened::Expired),
            Some(expires) if now >= expires => Err(Unopened::Expired),
            _ => Ok(pass),
        }
    }

    fn open_any(&self, token: &str) -> Option<Pass> {
        if token.len() > MAX_TOKEN || !looks_sealed(token) {
            return None;
        }
        let (open, sealed) = token.rsplit_once('.')?;
        let sealed = URL_SAFE_NO_PAD.decode(sealed).ok()?;
        let (nonce, sealed) = sealed.split_at_checked(NONCE)?;
        let payload = Payload { msg: sealed, aad: open.as_bytes() };
        let inside = self.cipher.decrypt(nonce.try_into().ok()?, payload).ok()?;
        let pass: Pass = serde_json::from_slice(&inside).ok()?;
        (pass.version == VERSION).then_some(pass)
    }

    /// The name under which something secret is remembered. Parts are told apart by their lengths.
    pub(super) fn name(&self, parts: &[&str]) -> Principal {
        let mut mac = self.names.clone();
        for part in parts {
            mac.update(&(part.len() as u64).to_le_bytes());
            mac.update(part.as_bytes());
        }
        let mut name = [0; 16];
        name.copy_from_slice(mac.finalize().into_bytes().split_at(16).0);
        Principal::new(name)
    }
}

/// A token cannot be sealed: the system has no random numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no token can be sealed: the system gives no random numbers")]
pub(super) struct SealError;

fn hmac(key: &[u8; 32]) -> Hmac<Sha256> {
    // Shorter keys than a block are filled up with zeroes (RFC 2104).
    let mut block = [0; 64];
    for (to, from) in block.iter_mut().zip(key) {
        *to = *from;
    }
    Hmac::new(&block.into())
}

impl fmt::Debug for Seal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Seal")
    }
}

/// Whether a text has the form of a sealed token, which says nothing about whether it opens.
pub(super) fn looks_sealed(token: &str) -> bool {
    token.strip_prefix(HEADER).is_some_and(|rest| rest.starts_with('.'))
}

// === impl Grant ===

impl Grant {
    pub(super) fn new(upstream: &Upstream, scopes: Vec<Scope>, inner: Inner) -> Self {
        Self { upstream: upstream.name.clone(), url: upstream.url.to_string(), scopes, inner }
    }
}

// === impl Pass ===

impl Pass {
    /// Given out at `issued`, in seconds since 1970.
    pub(super) const fn new(kind: Kind, issued: u64, expires: Option<u64>, grants: Vec<Grant>) -> Self {
        Self { version: VERSION, kind, issued, expires, grants }
    }

    /// What it holds for an upstream.
    pub(super) fn grant(&self, upstream: &Upstream) -> Option<&Grant> {
        let url = upstream.url.to_string();
        self.grants.iter().find(|grant| grant.upstream == upstream.name && grant.url == url)
    }

    /// What clients may read of it: the claims of the token inside where that is a JWT, with our own end.
    pub(super) fn claims(&self, now: SystemTime) -> Map<String, Value> {
        let inside = self.grants.iter().find_map(|grant| match &grant.inner {
            Inner::Lent(Credential { secret: Shown::Token(token) | Shown::Refresh(token), .. }) => claims(&token.0),
            _ => None,
        });
        let mut claims = inside.unwrap_or_else(|| Map::from_iter([("iat".to_owned(), seconds(now).into())]));
        match self.expires {
            Some(expires) => claims.insert("exp".to_owned(), expires.into()),
            None => claims.remove("exp"),
        };
        claims
    }
}

/// The claims of a JWT; none if it is something else. Nothing is verified.
pub(super) fn claims(token: &str) -> Option<Map<String, Value>> {
    let mut parts = token.split('.');
    let (Some(_), Some(claims), Some(_), None) = (parts.next(), parts.next(), parts.next(), parts.next()) else {
        return None;
    };
    let lenient = GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
    let claims = GeneralPurpose::new(&URL_SAFE, lenient).decode(claims).ok()?;
    (claims.len() <= MAX_CLAIMS).then(|| serde_json::from_slice(&claims).ok())?
}

/// Seconds since 1970.
pub(super) fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs()
}

// === impl Hidden ===

impl Hidden {
    pub(super) fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    pub(super) fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Hidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

// === how it is written ===

mod as_text {
    use serde::de::Error;

    use super::{Deserialize, Deserializer, Scope, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(scopes: &[Scope], serializer: S) -> Result<S::Ok, S::Error> {
        let texts: Vec<String> = scopes.iter().map(ToString::to_string).collect();
        texts.join(" ").serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Scope>, D::Error> {
        let text = String::deserialize(deserializer)?;
        Scope::parse_all([text.as_str()]).map_err(D::Error::custom)
    }
}

mod as_bytes {
    use super::{Deserialize, Deserializer, Principal, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(principal: &Principal, serializer: S) -> Result<S::Ok, S::Error> {
        principal.as_bytes().serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Principal, D::Error> {
        <[u8; 16]>::deserialize(deserializer).map(Principal::new)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::config::Config;

    const NOW: SystemTime = UNIX_EPOCH;

    fn seal() -> Seal {
        Seal::new(&[7; 32])
    }

    fn jwt(claims: &str) -> String {
        format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(claims))
    }

    fn pass(kind: Kind, secret: Shown) -> Pass {
        let credential = Credential {
            secret,
            principal: Principal::new([9; 16]),
            owner: Some("user:me".to_owned()),
            unconfirmed: false,
        };
        let config = Config::from_toml("").unwrap();
        let upstream = |name: &str| &config.upstreams[&name.parse::<UpstreamName>().unwrap()];
        let scopes = Scope::parse_all(["repository:library/alpine:pull registry:catalog:*"]).unwrap();
        let grant = Grant::new(upstream("docker.io"), scopes, Inner::Lent(credential));
        let other = Grant::new(upstream("ghcr.io"), vec![], Inner::Anonymous);
        Pass::new(kind, 0, Some(100), vec![grant, other])
    }

    fn sealed(pass: &Pass) -> String {
        seal().seal(pass, &pass.claims(NOW)).unwrap()
    }

    #[test]
    fn what_was_sealed_opens_until_it_expires() {
        let pass = pass(Kind::Access, Shown::Token(Hidden::new("CANARY")));
        let token = sealed(&pass);
        assert_eq!(seal().open(&token, Kind::Access, NOW), Ok(pass));
        let at = |seconds| NOW + Duration::from_secs(seconds);
        assert!(seal().open(&token, Kind::Access, at(99)).is_ok());
        assert_eq!(seal().open(&token, Kind::Access, at(100)), Err(Unopened::Expired));
        assert_eq!(seal().open(&token, Kind::Refresh, NOW), Err(Unopened::Foreign), "another kind");
        assert_eq!(Seal::new(&[8; 32]).open(&token, Kind::Access, NOW), Err(Unopened::Foreign), "other keys");
        assert_ne!(token, sealed(&self::pass(Kind::Access, Shown::Token(Hidden::new("CANARY")))), "a new nonce");
    }

    #[test]
    fn what_was_given_out_in_the_future_has_expired() {
        let at = |seconds| NOW + Duration::from_secs(seconds);
        let token = |kind| sealed(&Pass::new(kind, 1_000, Some(2_000), Vec::new()));
        let access = token(Kind::Access);
        assert!(seal().open(&access, Kind::Access, at(1_000 - NUDGE)).is_ok(), "a clock is nudged now and then");
        assert_eq!(seal().open(&access, Kind::Access, at(999 - NUDGE)), Err(Unopened::Expired), "it was set back");
        assert!(seal().open(&token(Kind::Refresh), Kind::Refresh, NOW).is_ok(), "that would mean to log in again");
    }

    #[test]
    fn the_secret_is_neither_readable_nor_printed() {
        let pass = pass(Kind::Access, Shown::Basic { username: "me".into(), password: Hidden::new("CANARY") });
        let token = sealed(&pass);
        for part in token.split('.') {
            let decoded = URL_SAFE_NO_PAD.decode(part).unwrap();
            assert!(!String::from_utf8_lossy(&decoded).contains("CANARY"));
        }
        assert!(!format!("{pass:?} {:?}", seal()).contains("CANARY"));
    }

    #[test]
    fn claims_are_those_of_the_token_inside_with_our_end() {
        let inner = jwt(r#"{"sub":"me","exp":5,"access":[{"Type":"repository"}]}"#);
        let token = sealed(&pass(Kind::Access, Shown::Token(Hidden::new(inner))));
        let read = claims(&token).unwrap();
        assert_eq!(Value::Object(read), serde_json::json!({"sub":"me","exp":100,"access":[{"Type":"repository"}]}));
        for opaque in ["opaque".to_owned(), "a.b.c".to_owned(), jwt("[]"), jwt(&format!("{:?}", "x".repeat(9000)))] {
            let token = sealed(&pass(Kind::Refresh, Shown::Refresh(Hidden::new(opaque))));
            assert_eq!(Value::Object(claims(&token).unwrap()), serde_json::json!({"iat":0,"exp":100}));
        }
    }

    #[test]
    fn header_is_what_it_says() {
        assert_eq!(URL_SAFE_NO_PAD.decode(HEADER).unwrap(), br#"{"alg":"XC20P","typ":"JWT"}"#);
    }

    #[test]
    fn names_tell_apart_by_parts_and_keys() {
        let seal = seal();
        assert_eq!(seal.name(&["a", "b"]), seal.name(&["a", "b"]));
        assert_ne!(seal.name(&["a", "b"]), seal.name(&["ab"]));
        assert_ne!(seal.name(&["a", "b"]), seal.name(&["", "ab"]));
        assert_ne!(seal.name(&["a"]), Seal::new(&[8; 32]).name(&["a"]));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(5_000))]
        #[test]
        fn an_altered_token_never_opens(at in any::<prop::sample::Index>(), to in any::<u8>(), cut in any::<bool>()) {
            let token = sealed(&pass(Kind::Access, Shown::Token(Hidden::new("CANARY"))));
            let mut altered = token.clone().into_bytes();
            let at = at.index(altered.len());
            if cut {
                altered.truncate(at);
            } else {
                altered[at] = to;
            }
            if let Ok(altered) = String::from_utf8(altered)
                && altered != token
            {
                prop_assert_eq!(seal().open(&altered, Kind::Access, NOW), Err(Unopened::Foreign));
            }
        }

        #[test]
        fn parts_of_two_tokens_never_open(which in 0_usize..3, secret in "[a-z]{1,8}") {
            let (one, other) = (
                sealed(&pass(Kind::Access, Shown::Token(Hidden::new(jwt(r#"{"sub":"one"}"#))))),
                sealed(&pass(Kind::Access, Shown::Token(Hidden::new(secret)))),
            );
            let mut parts: Vec<&str> = one.split('.').collect();
            parts[which] = other.split('.').nth(which).unwrap();
            let mixed = parts.join(".");
            if mixed != one {
                prop_assert_eq!(seal().open(&mixed, Kind::Access, NOW), Err(Unopened::Foreign));
            }
        }

        #[test]
        fn any_text_is_refused(text in "\\PC{0,80}", claims_text in "[A-Za-z0-9_-]{0,20}", rest in "[A-Za-z0-9_-]{0,90}") {
            prop_assert_eq!(seal().open(&text, Kind::Access, NOW), Err(Unopened::Foreign));
            let shaped = format!("{HEADER}.{claims_text}.{rest}");
            prop_assert_eq!(seal().open(&shaped, Kind::Access, NOW), Err(Unopened::Foreign));
            claims(&shaped);
        }
    }
}
