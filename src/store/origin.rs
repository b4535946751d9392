//! Which URL refs came from: refs of another URL under the same name are set aside, and come back when the URL does.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::layout::{self, REFS};
use super::{Inner, StoreError};
use crate::oci::UpstreamName;

/// The file of an upstream's tree that says which URL it came from.
const ORIGIN: &str = "_origin";
/// Between the name of a tree that was set aside and its number; `~` cannot stand in an upstream's name.
const ASIDE: &str = "~aside-";

/// Where the refs of a tree came from.
#[derive(Debug, Serialize, Deserialize)]
struct Origin {
    url: String,
    /// When the tree was put back after a time under another URL; none: it never was.
    #[serde(default)]
    since: Option<SystemTime>,
}

/// Whether a path below `refs/` is in a tree that was set aside.
pub(super) fn is_aside(below_refs: &Path) -> bool {
    let first = below_refs.iter().next().and_then(|name| name.to_str());
    first.is_some_and(|name| name.contains(ASIDE))
}

// === impl Inner ===

impl Inner {
    /// Compares each upstream's URL with the one that its refs came from. Refs of another URL are set aside, and come
    /// back when the URL does.
    pub(super) fn check_origins(&self, origins: &[(UpstreamName, String)]) -> Result<(), StoreError> {
        for (name, url) in origins {
            let tree = layout::upstream(name);
            let path = tree.join(ORIGIN);
            let found: Option<Origin> = self.records.read(&self.disk, &path);
            let since = match found {
                Some(found) if found.url == *url => found.since,
                found => {
                    if let Some(found) = found {
                        self.set_tree_aside(name, &tree, &found.url, url)?;
                    }
                    if self.disk.metadata(&tree).is_err()
                        && let Some(aside) = self.find_aside(&tree, url)
                    {
                        Some(self.put_tree_back(name, &aside, &tree, url)?)
                    } else {
                        self.put_origin_down(name, &path, &Origin { url: url.clone(), since: None });
                        None
                    }
                }
            };
            if let Some(since) = since {
                self.since.rcu(|known| {
                    let mut known = HashMap::clone(known);
                    known.insert(name.clone(), since);
                    known
                });
            }
        }
        Ok(())
    }

    /// The URL that an upstream's refs came from.
    pub(super) fn origin_url(&self, name: &UpstreamName) -> Option<String> {
        let found: Option<Origin> = self.records.read(&self.disk, &layout::upstream(name).join(ORIGIN));
        Some(found?.url)
    }

    fn put_origin_down(&self, name: &UpstreamName, path: &Path, origin: &Origin) {
        if let Err(error) = self.records.write(&self.disk, &self.group, path, origin) {
            // Tried again at the next start; a full disk does not keep the store from opening.
            let error = &error as &dyn std::error::Error;
            tracing::warn!(upstream = %name, error, "where the refs came from could not be put down");
        }
    }

    fn set_tree_aside(&self, name: &UpstreamName, tree: &Path, was: &str, is: &str) -> Result<(), StoreError> {
        let aside = |n: u32| {
            let mut name = tree.as_os_str().to_owned();
            name.push(format!("{ASIDE}{n}"));
            PathBuf::from(name)
        };
        let to = (1..u32::MAX).map(aside).find(|to| self.disk.metadata(to).is_err()).unwrap_or_else(|| aside(0));
        self.disk.rename(tree, &to).map_err(|e| StoreError::io("set aside", tree, e))?;
        self.group.directories([REFS.into()]);
        tracing::warn!(
            "upstream {name} had the URL {was} at the last start and has {is} now: what was pulled from {was} is not \
             served under this name until the URL is {was} again (kept in {})",
            to.display()
        );
        Ok(())
    }

    /// The refs under this name that came from `url`.
    fn find_aside(&self, tree: &Path, url: &str) -> Option<PathBuf> {
        let prefix = format!("{}{ASIDE}", tree.file_name()?.to_str()?);
        let listing = self.disk.list(Path::new(REFS)).ok()?;
        listing.flatten().filter(|entry| entry.is_dir && entry.name.starts_with(&prefix)).find_map(|entry| {
            let path = Path::new(REFS).join(entry.name);
            let origin: Origin = self.records.read(&self.disk, &path.join(ORIGIN))?;
            (origin.url == url).then_some(path)
        })
    }

    /// From when on answers are of this URL again.
    fn put_tree_back(
        &self,
        name: &UpstreamName,
        aside: &Path,
        tree: &Path,
        url: &str,
    ) -> Result<SystemTime, StoreError> {
        let since = self.timeline.now();
        // Before the rename: a tree that is back without this date would take the other URL's answers for its own.
        self.put_origin_down(name, &aside.join(ORIGIN), &Origin { url: url.to_owned(), since: Some(since) });
        self.disk.rename(aside, tree).map_err(|e| StoreError::io("put back", aside, e))?;
        self.group.directories([REFS.into()]);
        tracing::info!("upstream {name} has the URL {url} again: what was pulled from it is served again");
        Ok(since)
    }
}
