//! `hosts.toml`: where containerd, and docker with the containerd image store, go for a registry.
//!
//! Hosts are tried in the order of the file, the registry itself (`server`) last. containerd says by `?ns=` which registry it
//! means, so that all of them have the same host.

use std::path::Path;

use toml_edit::{Array, value};

use super::instance::{Endpoint, Registry};
use super::plan::Unmergeable;
use super::tables::{before, parse, table_of};

/// What ocistern is for: pulls. Pushes go to the registry itself.
const CAPABILITIES: [&str; 2] = ["pull", "resolve"];
const HOST: &str = "host";

/// Certificates of private CAs.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Cas<'a> {
    /// Of ocistern under its own address.
    pub(super) endpoint: Option<&'a Path>,
    /// Of what the registry's own name leads to, where that is ocistern too.
    pub(super) server: Option<&'a Path>,
}

/// The file for a registry, with ocistern first.
pub(super) fn merge(
    text: Option<&str>,
    registry: &Registry,
    endpoint: &Endpoint,
    ca: Cas<'_>,
) -> Result<String, Unmergeable> {
    // A file that is there says by itself what the registry is, or leaves it to containerd.
    let fresh = format!("server = {:?}\n", registry.origin);
    let mut document = parse(Some(text.unwrap_or(&fresh)))?;
    if let Some(ca) = ca.server.filter(|_| !document.contains_key("ca")) {
        document["ca"] = value(ca.display().to_string());
    }
    let url = endpoint.url.to_string();
    let hosts = table_of(document.as_table_mut(), HOST)?;
    let is_new = !hosts.contains_key(&url);
    let first = hosts.iter().filter_map(|(_, item)| item.as_table()?.position()).min();
    let entry = table_of(hosts, &url)?;
    let mut missing: Vec<&str> = CAPABILITIES.to_vec();
    let there: Vec<String> = match entry.get("capabilities") {
        None => Vec::new(),
        Some(item) => match item.as_array() {
            Some(list) => list.iter().filter_map(|item| item.as_str().map(str::to_owned)).collect(),
            None => {
                return Err(Unmergeable::new(format!("host.{url:?}.capabilities is no list: mend it, then try again")));
            }
        },
    };
    missing.retain(|capability| !there.iter().any(|have| have == capability));
    if !missing.is_empty() {
        let list: Array = there.iter().map(String::as_str).chain(missing).collect();
        entry["capabilities"] = value(list);
    }
    if let Some(ca) = ca.endpoint {
        entry["ca"] = value(ca.display().to_string());
    }
    if is_new {
        // Before those that are there: it is asked first.
        before(entry, first);
    }
    Ok(document.to_string())
}
