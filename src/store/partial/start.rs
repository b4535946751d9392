//! After a start: what dead processes have left in `fills/`.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use super::map::Record;
use super::{Left, fits, held};
use crate::oci::Digest;
use crate::store::disk::Disk;
use crate::store::layout::{self, FILLS, PART, TEMPORARY};
use crate::store::ranges::ByteRanges;
use crate::store::record::Records;

/// Removes what can be of no use, and returns what can be gone on with, with the bytes that each takes. The root's lock is
/// held, so whoever wrote it is dead. What the maps claim is not read: it was on the disk before they were, and the whole is
/// verified before it is published.
pub(in crate::store) fn clear(disk: &Disk) -> Vec<(Digest, Left, u64)> {
    let directory = Path::new(FILLS);
    let Ok(listing) = disk.list(directory) else { return Vec::new() };
    // Collected first: removing entries while reading a directory may skip some.
    let names: Vec<String> = listing.flatten().filter(|entry| !entry.is_dir).map(|entry| entry.name).collect();
    let (mut found, mut known, mut useless) = (Vec::new(), HashSet::new(), Vec::new());
    for name in &names {
        let Some(digest) = layout::parse_map(name) else { continue };
        match read(disk, &digest) {
            Some((left, bytes)) if known.insert(left.path.clone()) => found.push((digest, left, bytes)),
            _ => useless.push(directory.join(name)),
        }
    }
    // After the maps: what none of them names is nothing.
    let ends = |name: &&String| name.ends_with(TEMPORARY) || name.ends_with(PART);
    let files = names.iter().filter(ends).map(|name| directory.join(name));
    useless.extend(files.filter(|path| !known.contains(path)));
    remove(disk, &useless);
    found
}

/// What a map says, if it can be used.
fn read(disk: &Disk, digest: &Digest) -> Option<(Left, u64)> {
    // One that cannot be read now is dropped too: it costs a download.
    let record: Record = Records::look(disk, &layout::map(digest)).ok()?.record()?;
    let Record { file, length, mark, touched, present, .. } = record;
    let present = ByteRanges::try_from(present).ok()?;
    let is_ours = record.digest == *digest && file.ends_with(PART) && !file.contains('/');
    if !is_ours || present.is_empty() || present.end() > length {
        return None;
    }
    let left = Left { path: Path::new(FILLS).join(file), length, present, mark, touched };
    let found = disk.metadata(&left.path).ok()?;
    fits(&found, &left).then(|| (held(&found, &left.present), left)).map(|(bytes, left)| (left, bytes))
}

fn remove(disk: &Disk, useless: &[PathBuf]) {
    for path in useless {
        if let Err(error) = disk.unlink(path) {
            tracing::warn!(path = %path.display(), %error, "a left-over temporary file could not be removed");
            disk.leave(path);
        }
    }
    if !useless.is_empty() {
        tracing::info!(files = useless.len(), "removed what an unclean stop left half written");
    }
}
