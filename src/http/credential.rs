//! Credentials as callers show them: the `Authorization` field, and what a name and password mean to an upstream.

use std::time::SystemTime;

use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use http::HeaderMap;
use http::header::AUTHORIZATION;

use super::seal::{self, Credential, Hidden, Inner, Kind, Pass, Seal, Shown, Unopened, looks_sealed};
use crate::config::Upstream;
use crate::upstream::Lent;

/// The name with which Azure's clients show a token where others show a password.
const NULL_USER: &str = "00000000-0000-0000-0000-000000000000";

/// What a request shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Presented {
    /// Nothing, or an empty name and password.
    Nothing,
    /// A name and password.
    Basic(Account),
    /// A token.
    Bearer(Hidden),
}

/// A name and password.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Account {
    pub(super) username: String,
    pub(super) password: Hidden,
}

/// Why an `Authorization` field is not understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Malformed {
    /// More than one.
    #[error("there is more than one Authorization field; send one")]
    Several,
    /// Neither Basic nor Bearer.
    #[error("the Authorization field has a scheme that is not served here; Basic and Bearer are")]
    Scheme,
    /// Not base64 of a name, a colon and a password.
    #[error("the Authorization field holds no name and password, as Basic has them")]
    Basic,
}

// === impl Presented ===

impl Presented {
    /// What the fields of a request show.
    pub(super) fn of(headers: &HeaderMap) -> Result<Self, Malformed> {
        let mut fields = headers.get_all(AUTHORIZATION).iter();
        let Some(field) = fields.next() else { return Ok(Self::Nothing) };
        if fields.next().is_some() {
            return Err(Malformed::Several);
        }
        let text = field.to_str().map_err(|_| Malformed::Scheme)?.trim();
        let (scheme, rest) = text.split_once(' ').unwrap_or((text, ""));
        let rest = rest.trim_start();
        if scheme.eq_ignore_ascii_case("bearer") {
            return Ok(Self::Bearer(Hidden::new(rest)));
        }
        if !scheme.eq_ignore_ascii_case("basic") {
            return Err(Malformed::Scheme);
        }
        let lenient = GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
        let decoded = GeneralPurpose::new(&STANDARD, lenient).decode(rest).map_err(|_| Malformed::Basic)?;
        let decoded = String::from_utf8(decoded).map_err(|_| Malformed::Basic)?;
        let (username, password) = decoded.split_once(':').ok_or(Malformed::Basic)?;
        Ok(Self::account(username, password))
    }

    /// A name and password, unless both are empty.
    pub(super) fn account(username: &str, password: &str) -> Self {
        if username.is_empty() && password.is_empty() {
            return Self::Nothing;
        }
        Self::Basic(Account { username: username.to_owned(), password: Hidden::new(password) })
    }
}

// === impl Account ===

impl Account {
    /// The credential of `upstream` that a name and password are. A password may be a refresh token that ocistern gave
    /// out: then it is what that token holds for this upstream, and None where it holds nothing. An access token is no
    /// password: it is for its scopes alone, and what it holds may be good for more.
    pub(super) fn credential(
        &self,
        seal: &Seal,
        upstream: &Upstream,
        now: SystemTime,
    ) -> Result<Option<Credential>, Unopened> {
        let (username, password) = (&self.username, self.password.expose());
        if looks_sealed(password) {
            let pass = seal.open(password, Kind::Refresh, now)?;
            return Ok(inside(&pass, upstream).map(|inside| inside.behind(username)));
        }
        let owner = if username == NULL_USER { owner_of(password) } else { Some(format!("user:{username}")) };
        Ok(Some(Credential {
            principal: seal.name(&["basic", username, password]),
            owner,
            unconfirmed: false,
            secret: Shown::Basic { username: username.clone(), password: self.password.clone() },
        }))
    }
}

/// The credential that a token holds for `upstream`.
pub(super) fn inside(pass: &Pass, upstream: &Upstream) -> Option<Credential> {
    match &pass.grant(upstream)?.inner {
        Inner::Lent(credential) => Some(credential.clone()),
        Inner::Anonymous | Inner::Local { .. } => None,
    }
}

/// To whom uploads belong that are made with this token: who it is about, if it says so.
pub(super) fn owner_of(token: &str) -> Option<String> {
    let claims = seal::claims(token)?;
    claims.get("sub")?.as_str().filter(|sub| !sub.is_empty()).map(|sub| format!("sub:{sub}"))
}

// === impl Credential ===

impl Credential {
    /// A refresh token of upstream's own.
    pub(super) fn refresh(seal: &Seal, token: &str) -> Self {
        Self {
            principal: seal.name(&["refresh", token]),
            owner: owner_of(token),
            unconfirmed: false,
            secret: Shown::Refresh(Hidden::new(token)),
        }
    }

    /// The same as the password behind a name, as upstream itself takes its tokens.
    fn behind(self, username: &str) -> Self {
        let secret = match self.secret {
            Shown::Token(token) | Shown::Refresh(token) => {
                Shown::Basic { username: username.to_owned(), password: token }
            }
            basic @ Shown::Basic { .. } => basic,
        };
        Self { secret, ..self }
    }

    /// What is lent for requests to upstream.
    pub(super) fn lend(&self, seal: &Seal) -> Lent {
        match &self.secret {
            Shown::Basic { username, password } => {
                let key = seal.name(&["basic", username, password.expose()]);
                Lent::basic(key, self.principal, username.clone(), password.expose().to_owned())
            }
            Shown::Token(token) => {
                let key = seal.name(&["token", token.expose()]);
                Lent::token(key, self.principal, token.expose().to_owned())
            }
            Shown::Refresh(token) => {
                let key = seal.name(&["refresh", token.expose()]);
                Lent::refresh(key, self.principal, token.expose().to_owned())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use http::HeaderValue;

    use super::super::seal::Grant;
    use super::*;
    use crate::config::Config;

    const NOW: SystemTime = UNIX_EPOCH;

    fn presented(text: &str) -> Result<Presented, Malformed> {
        Presented::of(&HeaderMap::from_iter([(AUTHORIZATION, HeaderValue::from_str(text).unwrap())]))
    }

    fn upstream(name: &str) -> Upstream {
        let config = "[upstream.\"my.azurecr.io\"]\nurl = \"https://my.azurecr.io\"\n";
        let config = Config::from_toml(config).unwrap();
        Upstream::clone(&config.upstreams[&name.parse().unwrap()])
    }

    fn account(username: &str, password: &str) -> Account {
        Account { username: username.to_owned(), password: Hidden::new(password) }
    }

    #[test]
    fn what_clients_send() {
        assert_eq!(Presented::of(&HeaderMap::new()), Ok(Presented::Nothing));
        for (text, expected) in [
            ("Basic bWU6cHc=", Ok(Presented::Basic(account("me", "pw")))),
            ("basic  bWU6cHc", Ok(Presented::Basic(account("me", "pw")))),
            ("Basic bWU6cDp3", Ok(Presented::Basic(account("me", "p:w")))),
            ("Basic Og==", Ok(Presented::Nothing)),
            ("Basic bWU6", Ok(Presented::Basic(account("me", "")))),
            ("Bearer abc", Ok(Presented::Bearer(Hidden::new("abc")))),
            ("BEARER", Ok(Presented::Bearer(Hidden::new("")))),
            ("Basic", Err(Malformed::Basic)),
            ("Basic bWU=", Err(Malformed::Basic)),
            ("Basic !!", Err(Malformed::Basic)),
            ("Basic /w==", Err(Malformed::Basic)),
            ("Negotiate abc", Err(Malformed::Scheme)),
            ("", Err(Malformed::Scheme)),
        ] {
            assert_eq!(presented(text), expected, "{text}");
        }
        let mut headers = HeaderMap::new();
        headers.append(AUTHORIZATION, HeaderValue::from_static("Bearer a"));
        headers.append(AUTHORIZATION, HeaderValue::from_static("Bearer b"));
        assert_eq!(Presented::of(&headers), Err(Malformed::Several));
        let shown = format!("{:?} {:?}", presented("Basic bWU6Q0FOQVJZ"), presented("Bearer CANARY"));
        assert!(!shown.contains("CANARY"), "{shown}");
    }

    #[test]
    fn a_token_of_ours_as_password_is_what_it_holds_for_this_upstream() {
        let seal = Seal::new(&[1; 32]);
        let (own, other) = (upstream("my.azurecr.io"), upstream("ghcr.io"));
        let credential = Credential::refresh(&seal, "CANARY");
        let grant = Grant::new(&own, vec![], Inner::Lent(credential));
        let shown = |kind| {
            let pass = Pass::new(kind, 0, Some(10), vec![grant.clone()]);
            account(NULL_USER, &seal.seal(&pass, &pass.claims(NOW)).unwrap())
        };
        let account = shown(Kind::Refresh);
        let inner = account.credential(&seal, &own, NOW).unwrap().unwrap();
        let password = Hidden::new("CANARY");
        assert_eq!(inner.secret, Shown::Basic { username: NULL_USER.to_owned(), password });
        assert_eq!(account.credential(&seal, &other, NOW), Ok(None), "it never goes to another upstream");
        let later = NOW + Duration::from_secs(10);
        assert_eq!(account.credential(&seal, &own, later), Err(Unopened::Expired));
        let stranger = Seal::new(&[2; 32]);
        assert_eq!(account.credential(&stranger, &own, NOW), Err(Unopened::Foreign), "nor what does not open");
        let access = shown(Kind::Access).credential(&seal, &own, NOW);
        assert_eq!(access, Err(Unopened::Foreign), "an access token is for its scopes alone");
    }

    #[test]
    fn owners_and_principals() {
        let seal = Seal::new(&[1; 32]);
        let upstream = upstream("my.azurecr.io");
        let of = |username: &str, password: &str| {
            account(username, password).credential(&seal, &upstream, NOW).unwrap().unwrap()
        };
        assert_eq!(of("me", "pw").owner.as_deref(), Some("user:me"));
        assert_eq!(of(NULL_USER, "opaque").owner, None, "the null user is nobody in particular");
        // {"sub":"alice"}
        assert_eq!(of(NULL_USER, "e30.eyJzdWIiOiJhbGljZSJ9.x").owner.as_deref(), Some("sub:alice"));
        assert_eq!(of("me", "pw").principal, of("me", "pw").principal);
        assert_ne!(of("me", "pw").principal, of("me", "other").principal);
        assert_eq!(of("me", "pw").lend(&seal), of("me", "pw").lend(&seal));
        assert_ne!(of("me", "pw").lend(&seal), of("me", "other").lend(&seal));
    }
}
