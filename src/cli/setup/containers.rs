//! podman, buildah, skopeo, CRI-O: mirrors in a file of `registries.conf.d`, and the CA in `certs.d`.
//!
//! A `[[registry]]` with the same prefix in a later file replaces the one before, mirrors and all. So a registry that another
//! file speaks of already gets its mirror there, and only the others go into a file of ours.

use std::path::PathBuf;

use toml_edit::{ArrayOfTables, DocumentMut, Item, Table, value};

use super::SetupError;
use super::instance::{Endpoint, Registry};
use super::plan::{Plan, Site, Unmergeable};
use super::tables::{before, parse};

const REGISTRY: &str = "registry";
const MIRROR: &str = "mirror";
const OURS: &str = "ocistern.conf";
const HEADER: &str = "# Written by `ocistern setup podman`, which takes it away again with --undo.\n";

/// What there is to do.
pub(super) fn plan(site: &Site<'_>) -> Result<Plan, SetupError> {
    let endpoint = site.instance.endpoint().ok_or_else(|| SetupError::Unfit(String::new()))?;
    let endpoint = endpoint.without_path("podman")?;
    let directory = site.whose.containers();
    let mut plan = Plan::default();
    let mut left: Vec<&Registry> = site.instance.registries.iter().collect();
    let drop_ins = directory.join("registries.conf.d");
    let ours = drop_ins.join(OURS);
    let mut others = vec![directory.join("registries.conf")];
    let is_other = |path: &PathBuf| path.extension().is_some_and(|end| end == "conf") && *path != ours;
    others.extend(site.disk.list(&drop_ins)?.into_iter().filter(is_other));
    // The last one that speaks of a registry is the one that counts.
    for path in others.into_iter().rev() {
        // One that cannot be read counts as if it spoke of none: podman starts with it as little.
        let document = match site.disk.find(&path).map(|found| found.base) {
            Ok(None) => continue,
            Ok(Some(text)) => parse(Some(&text)).map_err(|why| SetupError::Unmergeable { path: path.clone(), why }),
            Err(error) => Err(error),
        };
        let document = match document {
            Ok(document) => document,
            Err(error) => {
                plan.failures.push(error);
                continue;
            }
        };
        let (here, rest): (Vec<_>, Vec<_>) = left.into_iter().partition(|registry| speaks_of(&document, registry));
        left = rest;
        if !here.is_empty() {
            plan.merged(site.disk, path, |text| merge(text, &here, endpoint));
        }
    }
    if !left.is_empty() {
        plan.own(site.disk, ours, fresh(&left, endpoint));
    }
    let certificates = directory.join("certs.d");
    if let Some(ca) = &endpoint.ca {
        plan.own(site.disk, certificates.join(endpoint.authority()).join("ca.crt"), ca.clone());
    }
    for name in site.instance.own_names.iter().filter(|name| name.host != endpoint.authority()) {
        if let Some(ca) = &name.ca {
            plan.own(site.disk, certificates.join(&name.host).join("ca.crt"), ca.clone());
        }
    }
    plan.notes.push(
        "podman, buildah and skopeo read these files at each start; CRI-O takes notice by `systemctl reload crio`"
            .to_owned(),
    );
    if endpoint.wants_certificate {
        let place = certificates.join(endpoint.authority());
        plan.notes.push(format!(
            "ocistern wants a client's certificate: put it into {0}/client.cert and its key into {0}/client.key",
            place.display()
        ));
    }
    plan.notes.extend(super::own_names(site.instance, &certificates));
    Ok(plan)
}

/// What a `[[registry]]` is about: `prefix`, or the location itself.
fn prefix_of<'a>(get: impl Fn(&str) -> Option<&'a str>) -> Option<&'a str> {
    get("prefix").or_else(|| get("location"))
}

fn speaks_of(document: &DocumentMut, registry: &Registry) -> bool {
    let is_it = |prefix: Option<&str>| prefix == Some(registry.host.as_str());
    match document.get(REGISTRY) {
        Some(Item::ArrayOfTables(tables)) => {
            tables.iter().any(|table| is_it(prefix_of(|key| table.get(key).and_then(Item::as_str))))
        }
        Some(item) => item.as_array().is_some_and(|list| {
            list.iter().any(|item| {
                let table = item.as_inline_table();
                is_it(table.and_then(|table| prefix_of(|key| table.get(key).and_then(|value| value.as_str()))))
            })
        }),
        None => false,
    }
}

/// A file of ours. Without TLS `insecure` is needed also for loopback addresses.
fn fresh(registries: &[&Registry], endpoint: &Endpoint) -> String {
    let mut document = DocumentMut::new();
    let mut tables = ArrayOfTables::new();
    for registry in registries {
        let mut table = Table::new();
        table["prefix"] = value(&registry.host);
        table["location"] = value(&registry.host);
        if registry.plain {
            table["insecure"] = value(true);
        }
        let mut mirrors = ArrayOfTables::new();
        mirrors.push(mirror(registry, endpoint));
        table.insert(MIRROR, Item::ArrayOfTables(mirrors));
        tables.push(table);
    }
    document.insert(REGISTRY, Item::ArrayOfTables(tables));
    format!("{HEADER}{document}")
}

fn mirror(registry: &Registry, endpoint: &Endpoint) -> Table {
    let mut table = Table::new();
    table["location"] = value(endpoint.prefixed(registry));
    if !endpoint.url.https {
        table["insecure"] = value(true);
    }
    table
}

/// Another's file, with ocistern as the first mirror of these registries.
fn merge(text: Option<&str>, registries: &[&Registry], endpoint: &Endpoint) -> Result<String, Unmergeable> {
    let mut document = parse(text)?;
    let Some(Item::ArrayOfTables(tables)) = document.get_mut(REGISTRY) else {
        return Err(Unmergeable::new(
            "registry = [ … ] is a list in one line here: write it as [[registry]] tables, then try again",
        ));
    };
    for table in tables.iter_mut() {
        let prefix = prefix_of(|key| table.get(key).and_then(Item::as_str)).unwrap_or_default().to_owned();
        if let Some(registry) = registries.iter().find(|registry| registry.host == prefix) {
            first_mirror(table, registry, endpoint)?;
        }
    }
    Ok(document.to_string())
}

fn first_mirror(table: &mut Table, registry: &Registry, endpoint: &Endpoint) -> Result<(), Unmergeable> {
    let ours = mirror(registry, endpoint);
    let location = endpoint.prefixed(registry);
    let own = table.position();
    match table.get_mut(MIRROR) {
        None => {
            let mut mirrors = ArrayOfTables::new();
            let mut ours = ours;
            ours.set_position(own);
            mirrors.push(ours);
            table.insert(MIRROR, Item::ArrayOfTables(mirrors));
        }
        Some(Item::ArrayOfTables(mirrors)) => {
            let is_ours = |mirror: &Table| mirror.get("location").and_then(Item::as_str) == Some(&location);
            if !mirrors.iter().any(is_ours) {
                let first = mirrors.iter().filter_map(Table::position).min();
                let mut ours = ours;
                before(&mut ours, first);
                mirrors.push(ours);
            }
        }
        Some(item) => {
            let list = item.as_array_mut().ok_or_else(|| {
                Unmergeable::new(format!("the mirror of {:?} is no list: mend it, then try again", registry.host))
            })?;
            let is_ours = |item: &toml_edit::Value| {
                item.as_inline_table().and_then(|table| table.get("location")?.as_str()) == Some(&location)
            };
            if !list.iter().any(is_ours) {
                list.insert(0, ours.into_inline_table());
            }
        }
    }
    Ok(())
}
