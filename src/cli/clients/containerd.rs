//! What containerd's `config.toml` says of where its hosts.toml files are: `setup` writes there, and `doctor` looks there.

use std::path::{Path, PathBuf};

use toml_edit::{DocumentMut, Item};

use super::{FileError, Tree};

pub(in crate::cli) const PLUGINS: &str = "plugins";
pub(in crate::cli) const REGISTRY: &str = "registry";
pub(in crate::cli) const CONFIG_PATH: &str = "config_path";
/// Of containerd 1, and of files with `version = 2`, which containerd 2 reads too.
const CRI_1: &str = "io.containerd.grpc.v1.cri";
/// Of containerd 2, in files with `version = 3` or newer.
const CRI_2: &str = "io.containerd.cri.v1.images";

/// What `config.toml` says of where hosts.toml files are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::cli) enum Configured {
    /// In this directory, and then in these.
    At(PathBuf, Vec<PathBuf>),
    /// Nothing: the CRI plugin looks nowhere, but for that of containerd 2.2 and later, which takes `certs.d`.
    Nowhere,
    /// The CRI plugin is switched off, so nobody asks.
    NoCri,
    /// Mirrors are configured in the older way, which excludes it.
    Older,
}

/// The name of the plugin that pulls for Kubernetes, as a file of this version has it.
pub(in crate::cli) fn key_of(document: &DocumentMut) -> &'static str {
    let version = document.get("version").and_then(Item::as_integer).unwrap_or(2);
    if version >= 3 { CRI_2 } else { CRI_1 }
}

/// What `config.toml`, and what it imports, say.
pub(in crate::cli) fn configured(
    tree: &Tree,
    directory: &Path,
    document: &DocumentMut,
) -> Result<Configured, FileError> {
    let mut found = said_by(document);
    if found != Configured::Nowhere {
        return Ok(found);
    }
    let imports = document.get("imports").and_then(Item::as_array);
    let patterns = imports.into_iter().flatten().filter_map(|item| item.as_str());
    for pattern in patterns {
        for path in imported(tree, directory, pattern)? {
            // What containerd cannot read is for it to complain about.
            let text = tree.read(&path)?.unwrap_or_default();
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
        let paths = registry.get(CONFIG_PATH).and_then(Item::as_str).unwrap_or_default().split(':');
        let mut paths = paths.filter(|path| !path.is_empty()).map(PathBuf::from);
        if let Some(first) = paths.next() {
            return Configured::At(first, paths.collect());
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
fn imported(tree: &Tree, directory: &Path, pattern: &str) -> Result<Vec<PathBuf>, FileError> {
    let pattern = directory.join(pattern);
    let (Some(parent), Some(name)) = (pattern.parent(), pattern.file_name()) else { return Ok(Vec::new()) };
    let name = name.to_string_lossy();
    let Some((before, behind)) = name.split_once('*') else { return Ok(vec![pattern]) };
    let fits = |path: &PathBuf| {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        name.len() >= before.len() + behind.len() && name.starts_with(before) && name.ends_with(behind)
    };
    Ok(tree.list(parent)?.into_iter().filter(fits).collect())
}
