//! `certs.d`: which directory holds for a registry, for containerd and for docker with the containerd image store.
//!
//! The first one that is there counts, and nothing else: the registry's own, else `_default`, in each of the directories that are
//! looked into. So where a registry gets a directory of its own, what has held for it is taken over, or it is left out.

use std::path::{Path, PathBuf};

use toml_edit::Item;

use super::disk::Disk;
use super::hosts_toml::{self, Cas};
use super::instance::{Endpoint, Registry};
use super::plan::{Plan, Unmergeable};
use super::record::{BACKUP, recorded};
use super::tables::parse;

const HOSTS: &str = "hosts.toml";
const DEFAULT: &str = "_default";
/// What to do about registries that are left out.
pub(super) const ADVICE: &str = "A directory of ocistern's would take the place of that. Where they should come through ocistern, write \
                                 a hosts.toml for each in its own directory, with what should hold for it, then try again";

/// The directories that are looked into, in their order. The first one is written to.
#[derive(Debug)]
pub(super) struct Roots<'a> {
    pub(super) disk: &'a Disk,
    pub(super) roots: &'a [PathBuf],
}

/// What holds for a registry so far.
#[derive(Debug)]
enum Standing {
    /// Its own directory, or nothing.
    Free,
    /// The hosts of this file, whose text stands as well in another.
    Hosts(PathBuf, String),
    /// Something that is not taken over: a file or directory, and what is in it.
    Fixed(PathBuf, Unmergeable),
}

// === impl Roots ===

impl Roots<'_> {
    /// Adds a registry's `hosts.toml` in its directory, with what has held for it so far behind ocistern.
    pub(super) fn add_hosts(
        &self,
        plan: &mut Plan,
        place: &Path,
        registry: &Registry,
        endpoint: &Endpoint,
        cas: Cas<'_>,
    ) {
        let base = match self.standing(&registry.host) {
            Standing::Free => None,
            Standing::Hosts(path, text) => {
                plan.take_over(&path, "[host]", &registry.host);
                Some(text)
            }
            Standing::Fixed(path, what) => return plan.leave_out(&path, what, &registry.host),
        };
        let merge = |text: Option<&str>| hosts_toml::merge(text.or(base.as_deref()), registry, endpoint, cas);
        plan.merged(self.disk, place.join(HOSTS), merge);
    }

    /// Adds the certificate of a registry's CA in its directory; `has_hosts`: there is to be a `hosts.toml`, too.
    pub(super) fn add_certificate(&self, plan: &mut Plan, place: &Path, host: &str, ca: &str, has_hosts: bool) {
        match self.standing(host) {
            Standing::Fixed(path, what) => plan.leave_out(&path, what, host),
            Standing::Hosts(path, _) if !has_hosts => plan.leave_out(&path, Unmergeable::new("hosts are here"), host),
            Standing::Free | Standing::Hosts(..) => plan.own(self.disk, place.join("ca.crt"), ca.to_owned()),
        }
    }

    fn standing(&self, host: &str) -> Standing {
        let disk = self.disk;
        for (number, root) in self.roots.iter().enumerate() {
            let own = host_directory(disk, root, host);
            if number == 0 && has_others(disk, &own) {
                return Standing::Free;
            }
            let own = (number > 0).then_some(own);
            let mut directories = own.into_iter().chain([root.join(DEFAULT)]);
            if let Some(directory) = directories.find(|directory| disk.exists(directory)) {
                return in_directory(disk, &directory);
            }
        }
        Standing::Free
    }
}

/// The directory of a registry; of one with a port it has two spellings, and containerd looks for this one first.
pub(super) fn host_directory(disk: &Disk, certificates: &Path, host: &str) -> PathBuf {
    if let Some((name, port)) = host.rsplit_once(':') {
        let other = certificates.join(format!("{name}_{port}_"));
        if disk.exists(&other) {
            return other;
        }
    }
    certificates.join(host)
}

/// Whether there is anything in a directory but what ocistern has put there.
fn has_others(disk: &Disk, directory: &Path) -> bool {
    let Ok(files) = disk.list(directory) else { return true };
    files.iter().any(|path| {
        let name = path.file_name().unwrap_or_default();
        let is_beside = recorded(name).is_some() || name.to_string_lossy().contains(BACKUP);
        !is_beside && !matches!(disk.find(path), Ok(found) if found.base.is_none())
    })
}

fn in_directory(disk: &Disk, directory: &Path) -> Standing {
    let file = directory.join(HOSTS);
    match disk.find(&file).map(|found| found.base) {
        Ok(Some(text)) => match hosts_alone(&text) {
            Ok(()) => Standing::Hosts(file, text),
            Err(what) => Standing::Fixed(file, what),
        },
        // Then the certificates in it count.
        Ok(None) => match disk.list(directory) {
            Ok(files) if !files.iter().any(|path| is_certificate(path)) => Standing::Free,
            Ok(_) => Standing::Fixed(directory.to_owned(), Unmergeable::new("certificates are here")),
            Err(error) => Standing::Fixed(directory.to_owned(), Unmergeable::new(error.to_string())),
        },
        Err(error) => Standing::Fixed(file, Unmergeable::new(error.to_string())),
    }
}

fn is_certificate(path: &Path) -> bool {
    path.extension().is_some_and(|end| ["crt", "cert", "key"].iter().any(|known| end == *known))
}

/// Whether a file has nothing but hosts that are the same in another directory. `server` stands for the registry itself, and may be
/// there to keep it from being asked.
fn hosts_alone(text: &str) -> Result<(), Unmergeable> {
    let document = parse(Some(text))?;
    if let Some((key, _)) = document.iter().find(|(key, _)| *key != "host") {
        return Err(Unmergeable::new(format!("{key:?} is set here")));
    }
    let hosts = document.get("host").and_then(Item::as_table_like);
    for (host, item) in hosts.into_iter().flat_map(|hosts| hosts.iter()) {
        let files = ["ca", "client"].into_iter().filter_map(|key| item.get(key)?.as_value());
        if files.into_iter().any(has_relative) {
            return Err(Unmergeable::new(format!("{host:?} has files here that are named relative to this one")));
        }
    }
    Ok(())
}

fn has_relative(value: &toml_edit::Value) -> bool {
    match value.as_array() {
        Some(list) => list.iter().any(has_relative),
        None => value.as_str().is_some_and(|path| !path.is_empty() && !Path::new(path).is_absolute()),
    }
}
