//! Whose right a request to an upstream uses: everybody's, the configured account's, or a caller's own.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use super::credentials::{Credential, Secret};
use crate::oci::Via;

/// Whose right a request uses. Two rights are equal if upstream would answer both alike.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Right {
    /// Everybody's: nothing is shown.
    Anonymous,
    /// The account that the configuration names.
    Shared,
    /// A caller's own credential, lent for its request.
    Client(Lent),
}

/// Whose something is that was got by a right; told apart without keeping the credential.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Holder {
    /// Nobody's.
    Everybody,
    /// The configured account's.
    Shared,
    /// That of whoever showed the credential with this key.
    Client(Principal),
}

/// Who a caller is, told apart without keeping the credential: a keyed hash of it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Principal([u8; 16]);

/// A caller's credential. Equal to another one if both are the same credential.
#[derive(Clone)]
pub struct Lent(Arc<Inner>);

struct Inner {
    /// Of the credential itself.
    key: Principal,
    /// Who shows it: the same for all tokens of one account.
    principal: Principal,
    credential: Credential,
}

// === impl Right ===

impl Right {
    /// By whose right upstream answers, if the credential was needed.
    pub const fn via(&self) -> Via {
        match self {
            Self::Anonymous => Via::Anonymous,
            Self::Shared => Via::Shared,
            Self::Client(_) => Via::Client,
        }
    }

    pub(crate) fn holder(&self) -> Holder {
        match self {
            Self::Anonymous => Holder::Everybody,
            Self::Shared => Holder::Shared,
            Self::Client(lent) => Holder::Client(lent.key()),
        }
    }

    /// The secret that a caller lent, to keep it out of messages that an upstream echoes.
    pub(crate) fn secret(&self) -> Option<&str> {
        match self {
            Self::Client(lent) => lent.credential().secret(),
            Self::Anonymous | Self::Shared => None,
        }
    }

    /// The caller's own token, which is shown as it is and never exchanged.
    pub(crate) fn token(&self) -> Option<&Secret> {
        match self {
            Self::Client(lent) => match lent.credential() {
                Credential::Registry(token) => Some(token),
                _ => None,
            },
            _ => None,
        }
    }
}

// === impl Principal ===

impl Principal {
    /// A principal by the keyed hash of what tells it apart.
    pub const fn new(hash: [u8; 16]) -> Self {
        Self(hash)
    }

    /// The hash.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Debug for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Principal({:02x}{:02x}…)", self.0[0], self.0[1])
    }
}

// === impl Lent ===

impl Lent {
    /// A name and password: exchanged for tokens where upstream wants tokens.
    pub fn basic(key: Principal, principal: Principal, username: String, password: String) -> Self {
        Self::new(key, principal, Credential::Password { username, password: Secret::new(password) })
    }

    /// A token of upstream, shown as it is.
    pub fn token(key: Principal, principal: Principal, token: String) -> Self {
        Self::new(key, principal, Credential::Registry(Secret::new(token)))
    }

    /// A refresh token of upstream: exchanged for tokens.
    pub fn refresh(key: Principal, principal: Principal, token: String) -> Self {
        Self::new(key, principal, Credential::Identity(Secret::new(token)))
    }

    fn new(key: Principal, principal: Principal, credential: Credential) -> Self {
        Self(Arc::new(Inner { key, principal, credential }))
    }

    /// Who shows it.
    pub fn principal(&self) -> Principal {
        self.0.principal
    }

    /// Which credential it is.
    pub fn key(&self) -> Principal {
        self.0.key
    }

    pub(crate) fn credential(&self) -> &Credential {
        &self.0.credential
    }
}

impl PartialEq for Lent {
    fn eq(&self, other: &Self) -> bool {
        self.0.key == other.0.key
    }
}

impl Eq for Lent {}

impl Hash for Lent {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.key.hash(state);
    }
}

impl fmt::Debug for Lent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Lent").field(&self.0.principal).finish()
    }
}
