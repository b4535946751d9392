//! containerd: a `hosts.toml` for each registry, and in `config.toml` the directory in which they are looked for.
//!
//! Only the CRI plugin (Kubernetes) goes by `config.toml`; nerdctl knows `/etc/containerd/certs.d` by itself, and ctr is told by
//! `--hosts-dir`. `config_path` and the older `registry.mirrors` exclude each other: with both, the CRI plugin does not start.

use std::path::{Path, PathBuf};

use toml_edit::{DocumentMut, Item, value};

use super::SetupError;
use super::disk::Disk;
use super::hosts_toml::{self, Cas};
use super::instance::Endpoint;
use super::plan::{Plan, Site, Unmergeable, Whose};
use super::tables::{parse, table_of};

const PLUGINS: &str = "plugins";
const REGISTRY: &str = "registry";
const CONFIG_PATH: &str = "config_path";
/// Of containerd 1, and of files with `version = 2`, which containerd 2 reads too.
const CRI_1: &str = "io.containerd.grpc.v1.cri";
/// Of containerd 2, in files with `version = 3` or newer.
const CRI_2: &str = "io.containerd.cri.v1.images";
const RELOADS: &str = "hosts.toml files are read at each pull: nothing has to be restarted";
const CTR: &str = "ctr looks there only if it is told: `ctr images pull --hosts-dir DIR NAME`";

/// What `config.toml` says of where hosts.toml files are.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Configured {
    /// In this directory.
    At(PathBuf),
    /// Nothing.
    Nowhere,
    /// The CRI plugin is switched off, so nobody asks.
    NoCri,
    /// Mirrors are configured in the older way, which excludes it.
    Older,
}

/// Where containerd's files are.
pub(super) fn directory(whose: &Whose) -> PathBuf {
    whose.user_config().map_or_else(|| "/etc/containerd".into(), |config| config.join("containerd"))
}

/// All directories in which there may be files of ours: also the one that `config.toml` names.
pub(super) fn directories(disk: &Disk, whose: &Whose) -> Vec<PathBuf> {
    let directory = directory(whose);
    let text = disk.read(&directory.join("config.toml")).ok().flatten();
    let document = parse(text.as_deref()).ok();
    let configured = document.and_then(|document| configured(disk, &directory, &document).ok());
    let other = match configured {
        Some(Configured::At(path)) if !path.starts_with(&directory) => Some(path),
        _ => None,
    };
    [directory].into_iter().chain(other).collect()
}

/// What there is to do.
pub(super) fn plan(site: &Site<'_>) -> Result<Plan, SetupError> {
    let endpoint = site.instance.endpoint().ok_or_else(|| SetupError::Unfit(String::new()))?;
    let directory = directory(site.whose);
    let file = directory.join("config.toml");
    let text = site.disk.find(&file)?.base;
    let unmergeable = |why| SetupError::Unmergeable { path: file.clone(), why };
    let document = parse(text.as_deref()).map_err(unmergeable)?;
    let configured = configured(site.disk, &directory, &document)?;
    let usual = directory.join("certs.d");
    let certificates = match &configured {
        Configured::At(path) => path.clone(),
        _ => usual.clone(),
    };
    let mut plan = Plan::default();
    let ca = certificate_of(&mut plan, site, endpoint, &directory);
    for name in &site.instance.own_names {
        if let Some(ca) = &name.ca {
            plan.own(site.disk, host_directory(site.disk, &certificates, &name.host).join("ca.crt"), ca.clone());
        }
    }
    for registry in &site.instance.registries {
        let place = host_directory(site.disk, &certificates, &registry.host);
        let server = place.join("ca.crt");
        let has_server = site.instance.own_names.iter().any(|name| name.host == registry.host && name.ca.is_some());
        let cas = Cas { endpoint: ca.as_deref(), server: has_server.then_some(server.as_path()) };
        plan.merged(site.disk, place.join("hosts.toml"), |text| hosts_toml::merge(text, registry, endpoint, cas));
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
        (Configured::At(_) | Configured::NoCri | Configured::Nowhere, _) => plan.notes.push(RELOADS.to_owned()),
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

/// The directory of a registry; of one with a port it has two spellings, and containerd looks for this one first.
fn host_directory(disk: &Disk, certificates: &Path, host: &str) -> PathBuf {
    if let Some((name, port)) = host.rsplit_once(':') {
        let other = certificates.join(format!("{name}_{port}_"));
        if disk.exists(&other) {
            return other;
        }
    }
    certificates.join(host)
}

/// The name of the plugin that pulls for Kubernetes, as a file of this version has it.
fn key_of(document: &DocumentMut) -> &'static str {
    let version = document.get("version").and_then(Item::as_integer).unwrap_or(2);
    if version >= 3 { CRI_2 } else { CRI_1 }
}

/// What `config.toml`, and what it imports, say.
fn configured(disk: &Disk, directory: &Path, document: &DocumentMut) -> Result<Configured, SetupError> {
    let mut found = said_by(document);
    if found != Configured::Nowhere {
        return Ok(found);
    }
    let imports = document.get("imports").and_then(Item::as_array);
    let patterns = imports.into_iter().flatten().filter_map(|item| item.as_str());
    for pattern in patterns {
        for path in imported(disk, directory, pattern)? {
            // What containerd cannot read is for it to complain about.
            let text = disk.read(&path)?.unwrap_or_default();
            if let Ok(document) = text.parse::<DocumentMut>() {
                found = said_by(&document);
            }
            if found != Configured::Nowhere {
                return Ok(found);
            }
        }
    }
    Ok(found)
}

fn said_by(document: &DocumentMut) -> Configured {
    // Version 1 has the plugins by short names, and nothing of this.
    for key in [CRI_2, CRI_1, "cri"] {
        let registry = document.get(PLUGINS).and_then(|plugins| plugins.get(key)?.get(REGISTRY));
        let Some(registry) = registry else { continue };
        // A list, divided as PATH is; the first is the one that is asked first.
        let path = registry.get(CONFIG_PATH).and_then(Item::as_str).and_then(|path| path.split(':').next());
        if let Some(path) = path.filter(|path| !path.is_empty()) {
            return Configured::At(path.into());
        }
        let has = |key: &str| registry.get(key).and_then(Item::as_table_like).is_some_and(|table| !table.is_empty());
        if has("mirrors") {
            return Configured::Older;
        }
    }
    let disabled = document.get("disabled_plugins").and_then(Item::as_array);
    let is_cri = |name: &str| name == "cri" || name == CRI_1 || name == CRI_2;
    if disabled.into_iter().flatten().filter_map(|item| item.as_str()).any(is_cri) {
        return Configured::NoCri;
    }
    Configured::Nowhere
}

/// The files that an entry of `imports` means: a path, with `*` in its last part.
fn imported(disk: &Disk, directory: &Path, pattern: &str) -> Result<Vec<PathBuf>, SetupError> {
    let pattern = directory.join(pattern);
    let (Some(parent), Some(name)) = (pattern.parent(), pattern.file_name()) else { return Ok(Vec::new()) };
    let name = name.to_string_lossy();
    let Some((before, behind)) = name.split_once('*') else { return Ok(vec![pattern]) };
    let fits = |path: &PathBuf| {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        name.len() >= before.len() + behind.len() && name.starts_with(before) && name.ends_with(behind)
    };
    Ok(disk.list(parent)?.into_iter().filter(fits).collect())
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
