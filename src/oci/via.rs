//! By whose right upstream answered: the difference between public and private content.

use serde::{Deserialize, Serialize};

/// The credential under which upstream handed something out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Via {
    /// Without any: upstream gives it to everybody.
    Anonymous,
    /// The asking client's own.
    Client,
    /// The account that the operator configured for this upstream.
    Shared,
}

impl Via {
    /// The word in files and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Anonymous => "anonymous",
            Self::Client => "client",
            Self::Shared => "shared",
        }
    }
}
