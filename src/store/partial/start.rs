//! After a start: what dead processes have left in `fills/`.

use std::collections::HashSet;
use std::fs::Metadata;
use std::io;
use std::path::{Path, PathBuf};

use super::map::Record;
use super::{Left, fits, has_more, held};
use crate::oci::Digest;
use crate::store::disk::Disk;
use crate::store::fs::Entry;
use crate::store::layout::{self, FILLS, PART, TEMPORARY};
use crate::store::ranges::ByteRanges;
use crate::store::record::Records;

/// What a map says, of which digest, and how many bytes the file takes.
pub(super) type Found = (Digest, Left, u64);

/// What dead processes have left.
#[derive(Debug, Default)]
pub(super) struct Finds {
    /// What can be gone on with.
    pub(super) found: Vec<Found>,
    /// Of which there is a map that says nothing, and could not be removed.
    pub(super) stuck: Vec<Digest>,
}

/// Removes temporary files. The root's lock is held, so whoever wrote them is dead.
pub(in crate::store) fn remove_temporary(disk: &Disk) {
    let Ok(listing) = disk.list(Path::new(FILLS)) else { return };
    // Collected first: removing entries while reading a directory may skip some.
    let left: Vec<Entry> = listing.flatten().filter(|e| !e.is_dir && e.name.ends_with(TEMPORARY)).collect();
    let paths: Vec<PathBuf> = left.iter().map(|entry| Path::new(FILLS).join(&entry.name)).collect();
    remove_or_leave(disk, &paths);
    tell(paths.len());
}

/// What can be gone on with, with the bytes that each takes; what is of no use is removed. What the maps claim is not read:
/// it was on the disk before they were, and the whole is verified before it is published. Nobody may have a map meanwhile, and
/// so no file that one could name: what writes until then is temporary.
///
/// # Errors
/// That it cannot be found out now what is there, or that somebody stops it. Then nothing is removed: a file that cannot be read
/// now may be one to go on with. Where it is late, what can be read counts, and whatever may belong to the rest stays for the
/// next start.
pub(super) fn find(disk: &Disk, is_late: bool, is_stopping: impl Fn() -> bool) -> io::Result<Finds> {
    let directory = Path::new(FILLS);
    let names: Vec<String> = match disk.list(directory) {
        Ok(listing) => listing.map(|entry| entry.map(|entry| entry.name)).collect::<io::Result<_>>()?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(error),
    };
    let (mut finds, mut known, mut useless) = (Finds::default(), HashSet::new(), Vec::new());
    let mut all_read = true;
    for digest in names.iter().filter_map(|name| layout::parse_map(name)) {
        if is_stopping() {
            return Err(io::ErrorKind::Interrupted.into());
        }
        match read(disk, &digest) {
            Ok(Some((left, bytes))) if known.insert(left.path.clone()) => finds.found.push((digest, left, bytes)),
            Err(error) if !is_late => return Err(error),
            Err(_) => all_read = false,
            _ => useless.push(digest),
        }
    }
    finds.stuck = useless.iter().filter(|digest| !remove(disk, &layout::map(digest))).copied().collect();
    // After the maps: what none of them names is nothing.
    let parts = names.iter().filter(|name| all_read && name.ends_with(PART)).map(|name| directory.join(name));
    let strays: Vec<PathBuf> = parts.filter(|path| !known.contains(path)).collect();
    remove_or_leave(disk, &strays);
    tell(useless.len() + strays.len());
    Ok(finds)
}

/// What a map says, if it can be used.
fn read(disk: &Disk, digest: &Digest) -> io::Result<Option<(Left, u64)>> {
    let found = Records::look(disk, &layout::map(digest)).map_err(io::Error::other)?;
    let Some(record) = found.record() else { return Ok(None) };
    let Record { file, length, mark, touched, present, .. } = record;
    let Ok(present) = ByteRanges::try_from(present) else { return Ok(None) };
    let is_ours = record.digest == *digest && file.ends_with(PART) && !file.contains('/');
    if !is_ours || present.is_empty() || present.end() > length {
        return Ok(None);
    }
    let left = Left { path: Path::new(FILLS).join(file), length, present, mark, touched };
    let Some(mut found) = look(disk, &left)? else { return Ok(None) };
    if has_more(&found, &left.present) {
        // What came after the map was put down is not known to be right, and what was taken for the rest is nobody's.
        if let Err(error) = cut(disk, &left) {
            tracing::warn!(path = %left.path.display(), %error, "an unfinished download takes more of the disk than it has bytes");
        }
        let Some(now) = look(disk, &left)? else { return Ok(None) };
        found = now;
    }
    let bytes = held(&found, &left.present);
    Ok(Some((left, bytes)))
}

/// The file, if it can have what the map says.
fn look(disk: &Disk, left: &Left) -> io::Result<Option<Metadata>> {
    match disk.metadata(&left.path) {
        Ok(found) => Ok(Some(found).filter(|found| fits(found, left))),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Gives back what the file has behind what is there.
fn cut(disk: &Disk, left: &Left) -> io::Result<()> {
    let file = disk.open_or_create(&left.path)?;
    disk.set_len(&file, left.present.end())
}

/// Removes files that are nobody's, now or later.
fn remove_or_leave(disk: &Disk, paths: &[PathBuf]) {
    for path in paths.iter().filter(|path| !remove(disk, path)) {
        disk.leave(path, disk.metadata(path));
    }
}

/// Whether it is gone.
fn remove(disk: &Disk, path: &Path) -> bool {
    let removed = disk.unlink(path);
    if let Err(error) = &removed {
        tracing::warn!(path = %path.display(), %error, "a left-over file of a download could not be removed");
    }
    removed.is_ok()
}

fn tell(files: usize) {
    if files > 0 {
        tracing::info!(files, "removed what an unclean stop left half written");
    }
}
