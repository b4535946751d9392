//! What fuzz targets ask of parsers that are nobody else's business: see `fuzz/targets.rs`.

use std::time::SystemTime;

use serde_json::{Map, Value};

use super::lists::local_link;
use super::route::Route;
use super::seal::{self, Kind, Pass, Seal};

/// Upstream's `Link` field as a client is told it that asked for `route`.
pub fn next_page(route: &Route, link: &str) -> Option<String> {
    local_link(route, link)
}

/// A token that is good for nothing, and opens.
pub fn sealed(seal: &Seal, now: SystemTime) -> Option<String> {
    let pass = Pass::new(Kind::Access, seal::seconds(now), Some(seal::seconds(now).saturating_add(1)), Vec::new());
    seal.seal(&pass, &pass.claims(now)).ok()
}

/// Whether a text is taken for a token of any kind.
pub fn opens(seal: &Seal, token: &str, now: SystemTime) -> bool {
    [Kind::Access, Kind::Refresh].into_iter().any(|kind| seal.open(token, kind, now).is_ok())
}

/// The claims of upstream's token, which are copied into ocistern's.
pub fn claims(token: &str) -> Option<Map<String, Value>> {
    seal::claims(token)
}
