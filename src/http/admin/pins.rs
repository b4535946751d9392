//! `/api/v1/pins`: names whose content is never evicted.

use serde::{Deserialize, Serialize};

use super::super::respond::Failure;
use super::api::{bad, failed};
use super::names::placed;
use crate::config::{Config, Pin};
use crate::store::Store;

/// The answer to `GET /api/v1/pins`.
#[derive(Debug, Serialize, Deserialize)]
pub struct Pins {
    /// Those of the configuration first.
    pub pins: Vec<PinName>,
}

/// One pin.
#[derive(Debug, Serialize, Deserialize)]
pub struct PinName {
    /// As commands take it.
    pub name: String,
    /// Whether it stands in the configuration.
    pub configured: bool,
}

/// What POST and DELETE take as a body, where the names are too many for a query.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PinNames {
    /// Names, or patterns of one upstream.
    pub names: Vec<String>,
}

/// What became of pins that were to be made or removed.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Pinning {
    /// Those that were.
    pub changed: Vec<String>,
    /// Those that were there already, or were not.
    pub unchanged: Vec<String>,
}

/// All pins.
pub(super) fn list(store: &Store) -> Pins {
    let name = |of: crate::store::PinOf| PinName { name: of.pin.to_string(), configured: of.configured };
    Pins { pins: store.pins().into_iter().map(name).collect() }
}

/// Makes pins.
pub(super) async fn make(store: &Store, config: &Config, names: &[&str]) -> Result<Pinning, Failure> {
    let mut pinning = Pinning::default();
    for pin in parse(config, names)? {
        // One that only a flag of `serve` names is known by what it has stored.
        if !config.upstreams.contains_key(&pin.upstream) && !store.has_refs_of(&pin.upstream).await.map_err(failed)? {
            return Err(bad(format!("{pin}: there is no upstream {} in the configuration", pin.upstream)));
        }
        let made = store.pin(pin.clone()).await.map_err(failed)?;
        pinning.put(made, &pin);
    }
    Ok(pinning)
}

/// Removes pins that were made by command.
pub(super) async fn remove(store: &Store, config: &Config, names: &[&str]) -> Result<Pinning, Failure> {
    let mut pinning = Pinning::default();
    for pin in parse(config, names)? {
        let removed = store.unpin(&pin).await.map_err(failed)?;
        pinning.put(removed, &pin);
    }
    Ok(pinning)
}

impl Pinning {
    fn put(&mut self, changed: bool, pin: &Pin) {
        if changed { &mut self.changed } else { &mut self.unchanged }.push(pin.to_string());
    }
}

/// All of them, before any is made.
fn parse(config: &Config, names: &[&str]) -> Result<Vec<Pin>, Failure> {
    if names.is_empty() {
        return Err(bad("name: say which names are meant"));
    }
    let library = |name: &crate::oci::UpstreamName| config.upstreams.get(name).is_some_and(|upstream| upstream.library);
    let pin = |name: &&str| {
        let name = placed(name, config).map_err(|error| bad(error.to_string()))?;
        Pin::parse(&name, library).map_err(|error| bad(error.to_string()))
    };
    names.iter().map(pin).collect()
}
