//! containerd: a `hosts.toml` for each registry, and in `config.toml` the directory in which they are looked for.
//!
//! Only the CRI plugin (Kubernetes) goes by `config.toml`; nerdctl knows `/etc/containerd/certs.d` by itself, and ctr is told by
//! `--hosts-dir`. `config_path` and the older `registry.mirrors` exclude each other: with both, the CRI plugin does not start.

use std::path::{Path, PathBuf};

use toml_edit::{Item, value};

use super::SetupError;
use super::certs_d::{self, Roots, host_directory};
use super::disk::Disk;
use super::hosts_toml::Cas;
use super::instance::Endpoint;
use super::plan::{Plan, Site, Unmergeable};
use super::tables::{parse, table_of};
use crate::cli::clients::Whose;
use crate::cli::clients::containerd::{CONFIG_PATH, Configured, PLUGINS, REGISTRY, configured, key_of};

const RELOADS: &str = "hosts.toml files are read at each pull: nothing has to be restarted";
const CTR: &str = "ctr looks there only if it is told: `ctr images pull --hosts-dir DIR NAME`";

/// All directories in which there may be files of ours: also the one that `config.toml` names.
pub(super) fn directories(disk: &Disk, whose: &Whose) -> Vec<PathBuf> {
    let directory = whose.containerd();
    let text = disk.read(&directory.join("config.toml")).ok().flatten();
    let document = parse(text.as_deref()).ok();
    let configured = document.and_then(|document| configured(disk.tree(), &directory, &document).ok());
    let other = match configured {
        Some(Configured::At(path, _)) if !path.starts_with(&directory) => Some(path),
        _ => None,
    };
    [directory].into_iter().chain(other).collect()
}

/// What there is to do.
pub(super) fn plan(site: &Site<'_>) -> Result<Plan, SetupError> {
    let endpoint = site.instance.endpoint().ok_or_else(|| SetupError::Unfit(String::new()))?;
    let directory = site.whose.containerd();
    let file = directory.join("config.toml");
    let text = site.disk.find(&file)?.base;
    let unmergeable = |why| SetupError::Unmergeable { path: file.clone(), why };
    let document = parse(text.as_deref()).map_err(unmergeable)?;
    let configured = configured(site.disk.tree(), &directory, &document)?;
    let usual = directory.join("certs.d");
    let roots: Vec<PathBuf> = match &configured {
        Configured::At(path, others) => [path].into_iter().chain(others).cloned().collect(),
        _ => vec![usual.clone()],
    };
    let certificates = roots.first().unwrap_or(&usual).clone();
    let mut plan = Plan { advice: certs_d::ADVICE, ..Plan::default() };
    let ca = certificate_of(&mut plan, site, endpoint, &directory);
    let directories = Roots { disk: site.disk, roots: &roots };
    for name in &site.instance.own_names {
        let Some(ca) = &name.ca else { continue };
        let has_hosts = site.instance.registries.iter().any(|registry| registry.host == name.host);
        let place = host_directory(site.disk, &certificates, &name.host);
        directories.add_certificate(&mut plan, &place, &name.host, ca, has_hosts);
    }
    for registry in &site.instance.registries {
        let place = host_directory(site.disk, &certificates, &registry.host);
        let server = place.join("ca.crt");
        let has_server = site.instance.own_names.iter().any(|name| name.host == registry.host && name.ca.is_some());
        let cas = Cas { endpoint: ca.as_deref(), server: has_server.then_some(server.as_path()) };
        directories.add_hosts(&mut plan, &place, registry, endpoint, cas);
    }
    let key = key_of(&document);
    let lines = format!("[{PLUGINS}.{:?}.{REGISTRY}]\n  {CONFIG_PATH} = {:?}", key, usual.display().to_string());
    match (configured, site.whose) {
        (Configured::Nowhere, Whose::Machine) => {
            plan.merged(site.disk, file, |text| merge(text, &usual));
            plan.then.push("systemctl restart containerd".to_owned());
            plan.notes.push(format!(
                "config_path was not set in config.toml: it is, so that the CRI plugin (Kubernetes) reads the hosts.toml files; \
                 that takes one restart, which running containers survive. {RELOADS} after that"
            ));
        }
        (Configured::Older, _) => plan.notes.push(format!(
            "{} has registry.mirrors, the older way, with which the CRI plugin refuses config_path and reads no hosts.toml: move \
             what it says there into hosts.toml files, take it out, and add\n{lines}\nor run this command again",
            file.display()
        )),
        (Configured::At(..) | Configured::NoCri | Configured::Nowhere, _) => plan.notes.push(RELOADS.to_owned()),
    }
    plan.notes.push(CTR.replace("DIR", &certificates.display().to_string()));
    if endpoint.wants_certificate {
        plan.notes.push(
            "ocistern wants a client's certificate: add `client = [[\"/path/client.crt\", \"/path/client.key\"]]` to the host in \
             each hosts.toml"
                .to_owned(),
        );
    }
    plan.notes.extend(super::own_names(site.instance, &certificates));
    Ok(plan)
}

/// One copy of the CA's certificate for all hosts.toml files; its path.
fn certificate_of(plan: &mut Plan, site: &Site<'_>, endpoint: &Endpoint, directory: &Path) -> Option<PathBuf> {
    let ca = endpoint.ca.as_ref()?;
    let path = directory.join(super::CA_COPY);
    plan.own(site.disk, path.clone(), ca.clone());
    Some(path)
}

/// `config.toml` with `config_path`. A new file is of version 2, which containerd 1.6 and all later ones read.
fn merge(text: Option<&str>, certificates: &Path) -> Result<String, Unmergeable> {
    let mut document = parse(Some(text.unwrap_or("version = 2\n")))?;
    if document.get("version").is_none() || document.get("version").and_then(Item::as_integer) == Some(1) {
        let is_empty = document.iter().next().is_none();
        if !is_empty {
            return Err(Unmergeable::new(
                "this is of version 1, in which there is no config_path: say `version = 2` in it (plugins then have their long \
                 names), or move it away",
            ));
        }
        document["version"] = value(2);
    }
    let key = key_of(&document);
    let plugins = table_of(document.as_table_mut(), PLUGINS)?;
    let registry = table_of(table_of(plugins, key)?, REGISTRY)?;
    registry[CONFIG_PATH] = value(certificates.display().to_string());
    Ok(document.to_string())
}
