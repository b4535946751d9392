//! podman, buildah, skopeo, CRI-O: mirrors in a file of `registries.conf.d`, and the CA in `certs.d`.
//!
//! A `[[registry]]` with the same prefix in a later file replaces the one before, mirrors and all. So a registry that another
//! file speaks of already gets its mirror there, and only the others go into a file of ours. A longer prefix goes before a shorter
//! one, so what that says (`*.io`) is taken over, or the registry is left out.

use std::path::{Path, PathBuf};

use toml_edit::{ArrayOfTables, DocumentMut, Item, Table, value};

use super::SetupError;
use super::instance::{Endpoint, Registry};
use super::plan::{Plan, Site, Unmergeable};
use super::rules::{Fit, Rule, Says, Simple, prefix_of, rules};
use super::tables::{before, parse};
use crate::cli::clients::Whose;

const REGISTRY: &str = "registry";
const MIRROR: &str = "mirror";
const OURS: &str = "ocistern.conf";
const HEADER: &str = "# Written by `ocistern setup podman`, which takes it away again with --undo.\n";

const ADVICE: &str = "A rule of ocistern's would go before that. Where they should come through ocistern, write a [[registry]] for \
                      each (prefix = \"docker.io\", location = \"docker.io\") with what should hold for it, then try again";

/// What there is to do.
pub(super) fn plan(site: &Site<'_>) -> Result<Plan, SetupError> {
    let endpoint = site.instance.endpoint().ok_or_else(|| SetupError::Unfit(String::new()))?;
    let endpoint = endpoint.without_path("podman")?;
    let directory = site.whose.containers();
    let mut plan = Plan { advice: ADVICE, ..Plan::default() };
    let mut there: Vec<Rule> = Vec::new();
    let mut left: Vec<&Registry> = site.instance.registries.iter().collect();
    let drop_ins = directory.join("registries.conf.d");
    let ours = drop_ins.join(OURS);
    let mut others = vec![directory.join("registries.conf")];
    others.extend(site.disk.list(&drop_ins)?.into_iter().filter(|path| is_read(path) && *path != ours));
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
        know(&mut there, rules(&document, &path));
        let (here, rest): (Vec<_>, Vec<_>) = left.into_iter().partition(|registry| speaks_of(&document, registry));
        left = rest;
        if !here.is_empty() {
            plan.merged(site.disk, path, |text| merge(text, &here, endpoint));
        }
    }
    for path in machines(site)?.into_iter().rev() {
        let document = match site.disk.read(&path) {
            Ok(text) => parse(text.as_deref()).map_err(|why| SetupError::Unmergeable { path: path.clone(), why }),
            Err(error) => Err(error),
        };
        match document {
            Ok(document) => know(&mut there, rules(&document, &path)),
            Err(error) => plan.failures.push(error),
        }
    }
    let fresh: Vec<(&Registry, Simple)> =
        left.iter().filter_map(|registry| Some((*registry, covered(&mut plan, &there, registry, endpoint)?))).collect();
    let is_ours = |host: &str| {
        fresh.iter().any(|(registry, _)| registry.host == host) || !left.iter().any(|registry| registry.host == host)
    };
    for registry in site.instance.registries.iter().filter(|registry| is_ours(&registry.host)) {
        plan.notes.extend(there.iter().filter(|rule| rule.is_within(&registry.host)).map(
            |Rule { prefix, file, .. }| {
                format!(
                    "what is below {prefix:?} goes by a [[registry]] of its own in {}, and not by ocistern",
                    file.display()
                )
            },
        ));
    }
    if !fresh.is_empty() {
        plan.own(site.disk, ours, own(&fresh, endpoint));
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

/// Whether a file of this name in `registries.conf.d` is read.
fn is_read(path: &Path) -> bool {
    path.extension().is_some_and(|end| end == "conf")
}

/// The machine's files, in their order, where a user's clients read them: where the user has no `registries.conf`.
fn machines(site: &Site<'_>) -> Result<Vec<PathBuf>, SetupError> {
    if *site.whose == Whose::Machine || site.disk.exists(&site.whose.containers().join("registries.conf")) {
        return Ok(Vec::new());
    }
    let directory = Whose::Machine.containers();
    let mut files = vec![directory.join("registries.conf")];
    files.extend(site.disk.list(&directory.join("registries.conf.d"))?.into_iter().filter(|path| is_read(path)));
    Ok(files)
}

/// Adds the rules of a file that is read before those that are known: theirs go before its.
fn know(there: &mut Vec<Rule>, rules: Vec<Rule>) {
    for rule in rules {
        if !there.iter().any(|known| known.prefix == rule.prefix) {
            there.push(rule);
        }
    }
}

/// What stays for a registry behind ocistern of the rule that holds for it; none: it is left out.
fn covered(plan: &mut Plan, there: &[Rule], registry: &Registry, endpoint: &Endpoint) -> Option<Simple> {
    let host = registry.host.as_str();
    let fitting = there.iter().filter_map(|rule| Some((rule, rule.fits(host)?)));
    let Some((rule, fit)) = fitting.max_by_key(|(rule, _)| rule.prefix.len()) else { return Some(Simple::default()) };
    let prefix = &rule.prefix;
    let what = match &rule.says {
        Says::Blocked => format!("{prefix:?} is blocked here"),
        Says::More(key) => format!("{prefix:?} has {key:?} here"),
        // Of two that are as long, this one counts.
        Says::Simple(_) if prefix.starts_with('*') && prefix.len() >= host.len() => format!("{prefix:?} is here"),
        Says::Simple(simple) if fit == Fit::ButPort && !simple.mirrors.is_empty() => {
            format!("{prefix:?} has mirrors here, which are asked for the port, too")
        }
        Says::Simple(simple) => {
            let mut simple = simple.clone();
            let ours = endpoint.prefixed(registry);
            simple.mirrors.retain(|mirror| mirror.get("location").and_then(Item::as_str) != Some(&ours));
            if simple.insecure || !simple.mirrors.is_empty() {
                plan.take_over(&rule.file, &format!("{prefix:?}"), host);
            }
            return Some(simple);
        }
    };
    plan.leave_out(&rule.file, Unmergeable::new(what), host);
    None
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
fn own(registries: &[(&Registry, Simple)], endpoint: &Endpoint) -> String {
    let mut document = DocumentMut::new();
    let mut tables = ArrayOfTables::new();
    for (registry, behind) in registries {
        let mut table = Table::new();
        table["prefix"] = value(&registry.host);
        table["location"] = value(&registry.host);
        if registry.plain || behind.insecure {
            table["insecure"] = value(true);
        }
        let mut mirrors = ArrayOfTables::new();
        mirrors.push(mirror(registry, endpoint));
        for mirror in &behind.mirrors {
            mirrors.push(mirror.clone());
        }
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
