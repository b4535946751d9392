//! Clients' files: read, written with a backup beside them, and put back. Everything here blocks, in a command of its own.
//!
//! Beside a file NAME that was changed lie, until it is put back:
//!
//! ```text
//! NAME.ocistern-backup     what was there before; not there where the file is new
//! .NAME.ocistern-setup     JSON: whose file it is, what was written (as digests), the directories that were made for it
//! ```
//!
//! No client reads files of such names. The order is backup, record, file, so that a crash between two of them leaves what
//! `--undo` understands.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, fchown};
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::SetupError;
use crate::oci::{Algorithm, Digest};

/// Version of the record beside a file.
const VERSION: u32 = 1;
const BACKUP: &str = ".ocistern-backup";
const RECORD: &str = ".ocistern-setup";
/// So many contents of ours are recognised: the one that is there, and the one that is about to be.
const WRITTEN: usize = 2;
/// How deep below a client's directory its files lie (`certs.d/HOST/hosts.toml`), and one more.
const DEPTH: usize = 4;
/// Mode of a new file, and of a new directory.
const FILE_MODE: u32 = 0o644;
const DIRECTORY_MODE: u32 = 0o755;

/// The file system as a client sees it: the whole, or an image of one below a directory.
#[derive(Debug, Clone)]
pub(super) struct Disk {
    prefix: Option<PathBuf>,
}

/// A file as it is found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    /// What is in it; none: it is not there.
    pub(super) now: Option<String>,
    /// What to start from: without what an earlier `--write` has put there, where nobody has edited the file since.
    pub(super) base: Option<String>,
}

/// What became of a file that was to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Written {
    /// It was as it should be.
    Unchanged,
    /// It is new.
    New,
    /// It was changed, and what was there before is in this file.
    Changed(PathBuf),
    /// It was changed again; what was there before the first change (none: nothing) is in this file.
    Again(Option<PathBuf>),
    /// It had been edited since ocistern wrote it, so that it can no longer be put back.
    Edited(Option<PathBuf>),
}

/// What became of a file that was to be put back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Undone {
    /// It is as it was before.
    Restored,
    /// It was not there before, and is not any more.
    Removed,
}

/// What is known of a file that was written.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Record {
    version: u32,
    client: String,
    /// Name of the backup; none: there was no file.
    before: Option<String>,
    /// Digests of what was written, the newest last.
    written: Vec<Digest>,
    /// Somebody has edited the file, and then ocistern changed it again: it is a mixture.
    #[serde(default)]
    edited: bool,
    /// Directories that were made for it, outermost first, as clients see them.
    #[serde(default)]
    directories: Vec<PathBuf>,
}

// === impl Disk ===

impl Disk {
    /// With everything below `prefix`, which is then a whole root directory; none: the file system itself.
    pub(super) const fn new(prefix: Option<PathBuf>) -> Self {
        Self { prefix }
    }

    /// Whether it is an image's.
    pub(super) const fn is_image(&self) -> bool {
        self.prefix.is_some()
    }

    /// Where a path that clients know lies really.
    fn at(&self, path: &Path) -> PathBuf {
        match &self.prefix {
            None => path.to_owned(),
            Some(prefix) => {
                prefix.join(path.components().filter(|part| matches!(part, Component::Normal(_))).collect::<PathBuf>())
            }
        }
    }

    /// As [`Disk::at`], with links followed: a link stays one, and what it leads to is changed. Within an image a link that
    /// leads out of it would lead to this machine's own files.
    fn real(&self, path: &Path) -> Result<PathBuf, SetupError> {
        let at = self.at(path);
        let mut there = at.as_path();
        let mut behind = Vec::new();
        let found = loop {
            match there.canonicalize() {
                Ok(found) => break found,
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    // A link to what is not there would be replaced.
                    if there.is_symlink() {
                        return Err(SetupError::read(there, io::Error::new(ErrorKind::NotFound, "a link to nothing")));
                    }
                    let (Some(parent), Some(name)) = (there.parent(), there.file_name()) else {
                        return Err(SetupError::read(&at, error));
                    };
                    behind.push(name);
                    there = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
                }
                Err(error) => return Err(SetupError::read(there, error)),
            }
        };
        if let Some(prefix) = &self.prefix {
            // It may not be there yet; then nothing below it is a link.
            let inside = prefix.canonicalize().map_or(true, |prefix| found.starts_with(prefix));
            if !inside {
                return Err(SetupError::Outside { path: at, to: found, prefix: prefix.clone() });
            }
        }
        Ok(behind.into_iter().rev().fold(found, |path, name| path.join(name)))
    }

    /// Whether there is something at this path.
    pub(super) fn exists(&self, path: &Path) -> bool {
        self.at(path).exists()
    }

    /// What is in a file; none: it is not there.
    pub(super) fn read(&self, path: &Path) -> Result<Option<String>, SetupError> {
        read(&self.real(path)?)
    }

    /// Names of the files in a directory, in their order; none where there is no directory.
    pub(super) fn list(&self, directory: &Path) -> Result<Vec<PathBuf>, SetupError> {
        let at = self.at(directory);
        let entries = match fs::read_dir(&at) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(SetupError::read(&at, error)),
        };
        let names: Result<Vec<_>, _> = entries.map(|entry| Ok(directory.join(entry?.file_name()))).collect();
        let mut names = names.map_err(|error| SetupError::read(&at, error))?;
        names.sort_unstable();
        Ok(names)
    }

    /// A file, and what a change of it starts from.
    pub(super) fn find(&self, path: &Path) -> Result<Found, SetupError> {
        let real = self.real(path)?;
        let now = read(&real)?;
        let base = match Record::of(&real)? {
            Some(record) if record.is_ours(now.as_deref()) => record.before_of(&real)?,
            _ => now.clone(),
        };
        Ok(Found { now, base })
    }

    /// Puts `text` into a file, for `client`. What was there before is kept beside it.
    pub(super) fn write(&self, client: &str, path: &Path, text: &str) -> Result<Written, SetupError> {
        let real = self.real(path)?;
        let now = read(&real)?;
        if now.as_deref() == Some(text) {
            return Ok(Written::Unchanged);
        }
        let fresh = digest(text);
        if let Some(mut record) = Record::of(&real)? {
            let ours = record.is_ours(now.as_deref());
            let before = record.before.as_ref().map(|name| real.with_file_name(name));
            if !ours && now != record.before_of(&real)? {
                record.edited = true;
            }
            record.written.push(fresh);
            let spare = record.written.len().saturating_sub(WRITTEN);
            record.written.drain(..spare);
            record.put(&real)?;
            replace(&real, text.as_bytes(), None)?;
            return Ok(if record.edited { Written::Edited(before) } else { Written::Again(before) });
        }
        let directories = Self::make_directories(path, &real)?;
        let backup = match &now {
            None => None,
            Some(_) => Some(keep(&real)?),
        };
        let record = Record {
            version: VERSION,
            client: client.to_owned(),
            before: backup.as_ref().and_then(|path| Some(path.file_name()?.to_string_lossy().into_owned())),
            written: vec![fresh],
            edited: false,
            directories,
        };
        record.put(&real)?;
        replace(&real, text.as_bytes(), None)?;
        Ok(backup.map_or(Written::New, Written::Changed))
    }

    /// Makes the directory of a file; those that were missing, outermost first.
    fn make_directories(path: &Path, real: &Path) -> Result<Vec<PathBuf>, SetupError> {
        let (mut missing, mut seen, mut there) = (Vec::new(), path.parent(), real.parent());
        while let (Some(seen_now), Some(there_now)) = (seen, there) {
            if there_now.exists() {
                break;
            }
            missing.push((seen_now.to_owned(), there_now.to_owned()));
            (seen, there) = (seen_now.parent(), there_now.parent());
        }
        missing.reverse();
        for (_, directory) in &missing {
            make_directory(directory)?;
        }
        Ok(missing.into_iter().map(|(seen, _)| seen).collect())
    }

    /// The files below these directories that were written for `client` and not put back yet.
    pub(super) fn written(&self, client: &str, directories: &[PathBuf]) -> Result<Vec<PathBuf>, SetupError> {
        let mut found = Vec::new();
        for directory in directories {
            self.search(Some(client), directory, DEPTH, &mut found)?;
        }
        found.sort_unstable();
        found.dedup();
        Ok(found)
    }

    fn search(
        &self,
        client: Option<&str>,
        directory: &Path,
        depth: usize,
        found: &mut Vec<PathBuf>,
    ) -> Result<(), SetupError> {
        if depth == 0 || self.at(directory).is_file() {
            return Ok(());
        }
        for path in self.list(directory)? {
            let at = self.at(&path);
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            if let Some(name) = name.strip_prefix('.').and_then(|name| name.strip_suffix(RECORD)) {
                let file = path.with_file_name(name);
                if Record::of(&self.real(&file)?)?
                    .is_some_and(|record| client.is_none_or(|client| record.client == client))
                {
                    found.push(file);
                }
            } else if at.is_dir() && !at.is_symlink() {
                self.search(client, &path, depth - 1, found)?;
            }
        }
        Ok(())
    }

    /// Puts a file back to what it was before the first [`Disk::write`]; none: it was never written.
    pub(super) fn undo(&self, path: &Path) -> Result<Option<Undone>, SetupError> {
        let real = self.real(path)?;
        let Some(record) = Record::of(&real)? else { return Ok(None) };
        let (now, before) = (read(&real)?, record.before_of(&real)?);
        let backup = record.before.as_ref().map(|name| real.with_file_name(name));
        if now != before && (record.edited || !record.is_ours(now.as_deref())) {
            return Err(SetupError::Edited { path: real.clone(), backup, record: record_of(&real) });
        }
        // The backup has all that the file had: it is the same one.
        let outcome = if let Some(backup) = &backup {
            fs::rename(backup, &real).map_err(|error| SetupError::write(&real, error))?;
            // Where a crash had left both names to one file, that did nothing.
            remove(backup)?;
            Undone::Restored
        } else {
            remove(&real)?;
            Undone::Removed
        };
        remove(&record_of(&real))?;
        self.remove_directories(record.directories)?;
        Ok(Some(outcome))
    }

    /// Removes directories that were made, innermost first, as far as they are empty. What others of our files lie in goes with
    /// the last of these.
    fn remove_directories(&self, mut directories: Vec<PathBuf>) -> Result<(), SetupError> {
        while let Some(directory) = directories.last() {
            match fs::remove_dir(self.at(directory)) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(_) => {
                    let mut others = Vec::new();
                    self.search(None, directory, DEPTH, &mut others)?;
                    if let Some(other) = others.first() {
                        let real = self.real(other)?;
                        if let Some(mut record) = Record::of(&real)? {
                            record.directories = [directories, record.directories].concat();
                            record.put(&real)?;
                        }
                    }
                    return Ok(());
                }
            }
            directories.pop();
        }
        Ok(())
    }
}

// === impl Record ===

impl Record {
    fn of(real: &Path) -> Result<Option<Self>, SetupError> {
        let path = record_of(real);
        let Some(text) = read(&path)? else { return Ok(None) };
        let unknown = |why: String| SetupError::Record { path: path.clone(), why };
        let record: Self = serde_json::from_str(&text).map_err(|error| unknown(error.to_string()))?;
        if record.version != VERSION {
            return Err(unknown(format!("it is of version {}", record.version)));
        }
        Ok(Some(record))
    }

    fn put(&self, real: &Path) -> Result<(), SetupError> {
        let path = record_of(real);
        let text = serde_json::to_vec(self).map_err(|error| SetupError::write(&path, error.into()))?;
        replace(&path, &text, None)
    }

    /// Whether this is what was written.
    fn is_ours(&self, now: Option<&str>) -> bool {
        !self.edited && now.is_some_and(|text| self.written.contains(&digest(text)))
    }

    fn before_of(&self, real: &Path) -> Result<Option<String>, SetupError> {
        match &self.before {
            None => Ok(None),
            Some(name) => {
                let backup = real.with_file_name(name);
                let gone = || SetupError::read(&backup, ErrorKind::NotFound.into());
                read(&backup)?.ok_or_else(gone).map(Some)
            }
        }
    }
}

fn digest(text: &str) -> Digest {
    Digest::of(Algorithm::Sha256, text.as_bytes())
}

fn with_suffix(real: &Path, prefix: &str, suffix: &str) -> PathBuf {
    let mut name = std::ffi::OsString::from(prefix);
    name.push(real.file_name().unwrap_or_default());
    name.push(suffix);
    real.with_file_name(name)
}

fn record_of(real: &Path) -> PathBuf {
    with_suffix(real, ".", RECORD)
}

/// What is in a file; none: it is not there.
pub(super) fn read(path: &Path) -> Result<Option<String>, SetupError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(SetupError::read(path, error)),
    }
}

/// Makes a directory, in one that is there.
fn make_directory(directory: &Path) -> Result<(), SetupError> {
    match DirBuilder::new().mode(DIRECTORY_MODE).create(directory) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(SetupError::write(directory, error)),
        _ => Ok(()),
    }
}

/// Makes a directory and those above it, where they are missing.
pub(super) fn make_directories(directory: &Path) -> Result<(), SetupError> {
    let made = DirBuilder::new().recursive(true).mode(DIRECTORY_MODE).create(directory);
    made.map_err(|error| SetupError::write(directory, error))
}

fn remove(path: &Path) -> Result<(), SetupError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(SetupError::write(path, error)),
        _ => Ok(()),
    }
}

/// A second name for a file, under which it stays when another takes its place.
fn keep(real: &Path) -> Result<PathBuf, SetupError> {
    for number in 1.. {
        let suffix = if number == 1 { BACKUP.to_owned() } else { format!("{BACKUP}-{number}") };
        let backup = with_suffix(real, "", &suffix);
        match fs::hard_link(real, &backup) {
            Ok(()) => return Ok(backup),
            // Somebody's: it is not ours to overwrite.
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            // A file system without such names.
            Err(_) => {
                let text = fs::read(real).map_err(|error| SetupError::read(real, error))?;
                replace_like(&backup, &text, real)?;
                return Ok(backup);
            }
        }
    }
    Err(SetupError::write(real, ErrorKind::AlreadyExists.into()))
}

/// Puts a file into place in one step, with the mode and the owner of the one that was there, else with this mode.
pub(super) fn replace(path: &Path, bytes: &[u8], mode: Option<u32>) -> Result<(), SetupError> {
    let like = fs::metadata(path).ok();
    put(path, bytes, like.as_ref(), mode).map_err(|error| SetupError::write(path, error))
}

fn replace_like(path: &Path, bytes: &[u8], model: &Path) -> Result<(), SetupError> {
    let like = fs::metadata(model).map_err(|error| SetupError::read(model, error))?;
    put(path, bytes, Some(&like), None).map_err(|error| SetupError::write(path, error))
}

fn put(path: &Path, bytes: &[u8], like: Option<&fs::Metadata>, mode: Option<u32>) -> io::Result<()> {
    let temporary = with_suffix(path, ".", &format!(".ocistern-{}", std::process::id()));
    // Readable for nobody else before it is known who may.
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
    let mut write = || {
        file.write_all(bytes)?;
        if let Some(like) = like {
            // Only root can give files away; what is one's own already needs no giving.
            let own = file.metadata()?;
            if (own.uid(), own.gid()) != (like.uid(), like.gid()) {
                fchown(&file, Some(like.uid()), Some(like.gid()))?;
            }
        }
        let mode = mode.unwrap_or_else(|| like.map_or(FILE_MODE, |like| like.mode() & 0o7777));
        file.set_permissions(Permissions::from_mode(mode))?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    };
    if let Err(error) = write() {
        let _ = fs::remove_file(&temporary);
        return Err(error);
    }
    // The name is on the disk when its directory is.
    match path.parent() {
        Some(directory) if !directory.as_os_str().is_empty() => File::open(directory)?.sync_all(),
        _ => File::open(".")?.sync_all(),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn image() -> (tempfile::TempDir, Disk) {
        let root = tempfile::tempdir().unwrap();
        let disk = Disk::new(Some(root.path().to_owned()));
        (root, disk)
    }

    fn file() -> &'static Path {
        Path::new("/etc/client/conf.d/file.conf")
    }

    #[test]
    fn directories_that_were_made_go_again_unless_others_use_them() {
        let (root, disk) = image();
        fs::create_dir(root.path().join("etc")).unwrap();
        assert_eq!(disk.write("client", file(), "ours").unwrap(), Written::New);
        assert_eq!(disk.written("client", &["/etc/client".into()]).unwrap(), [file()]);
        assert_eq!(disk.written("another", &["/etc/client".into()]).unwrap(), [] as [PathBuf; 0]);
        fs::write(root.path().join("etc/client/theirs"), "").unwrap();
        assert_eq!(disk.undo(file()).unwrap(), Some(Undone::Removed));
        assert!(!root.path().join("etc/client/conf.d").exists());
        assert!(root.path().join("etc/client/theirs").exists());
        assert_eq!(disk.undo(file()).unwrap(), None, "there is nothing more to put back");
    }

    #[test]
    fn mode_and_file_come_back_as_they_were() {
        let (root, disk) = image();
        let real = root.path().join("etc/client/conf.d/file.conf");
        fs::create_dir_all(real.parent().unwrap()).unwrap();
        fs::write(&real, "theirs").unwrap();
        fs::set_permissions(&real, Permissions::from_mode(0o640)).unwrap();
        let before = fs::metadata(&real).unwrap();
        let Written::Changed(backup) = disk.write("client", file(), "ours").unwrap() else { panic!("it was there") };
        assert_eq!(fs::read_to_string(&backup).unwrap(), "theirs");
        assert_eq!(fs::metadata(&real).unwrap().mode() & 0o7777, 0o640, "the new file has the old one's mode");
        assert_eq!(disk.find(file()).unwrap(), Found { now: Some("ours".into()), base: Some("theirs".into()) });
        assert_eq!(disk.undo(file()).unwrap(), Some(Undone::Restored));
        let after = fs::metadata(&real).unwrap();
        assert_eq!((after.ino(), after.mtime_nsec(), after.mode()), (before.ino(), before.mtime_nsec(), before.mode()));
        assert_eq!(fs::read_dir(real.parent().unwrap()).unwrap().count(), 1, "nothing is left beside it");
    }

    #[test]
    fn somebody_elses_backup_is_not_overwritten() {
        let (root, disk) = image();
        let real = root.path().join("etc/client/conf.d/file.conf");
        fs::create_dir_all(real.parent().unwrap()).unwrap();
        fs::write(&real, "theirs").unwrap();
        fs::write(with_suffix(&real, "", BACKUP), "old").unwrap();
        let Written::Changed(backup) = disk.write("client", file(), "ours").unwrap() else { panic!("it was there") };
        assert_eq!(backup, with_suffix(&real, "", ".ocistern-backup-2"));
        disk.undo(file()).unwrap();
        assert_eq!(fs::read_to_string(&real).unwrap(), "theirs");
        assert_eq!(fs::read_to_string(with_suffix(&real, "", BACKUP)).unwrap(), "old");
    }

    /// What a crash leaves: after the backup, after the record, after a second record.
    #[test]
    fn a_run_that_was_cut_off_is_gone_on_with_and_put_back() {
        let (root, disk) = image();
        let real = root.path().join("etc/client/conf.d/file.conf");
        fs::create_dir_all(real.parent().unwrap()).unwrap();
        fs::write(&real, "theirs").unwrap();
        disk.write("client", file(), "ours").unwrap();
        let backup = with_suffix(&real, "", BACKUP);
        // As before the rename of the file: both names lead to what was there before.
        fs::remove_file(&real).unwrap();
        fs::hard_link(&backup, &real).unwrap();
        assert_eq!(disk.find(file()).unwrap().base.as_deref(), Some("theirs"));
        assert_eq!(disk.undo(file()).unwrap(), Some(Undone::Restored));
        assert!(!backup.exists() && fs::read_to_string(&real).unwrap() == "theirs");
        // As before the rename of a second version.
        disk.write("client", file(), "first").unwrap();
        disk.write("client", file(), "second").unwrap();
        fs::write(&real, "first").unwrap();
        assert_eq!(disk.undo(file()).unwrap(), Some(Undone::Restored));
        assert_eq!(fs::read_to_string(&real).unwrap(), "theirs");
    }

    #[test]
    fn a_link_stays_one_and_none_leads_out_of_an_image() {
        let (root, disk) = image();
        let real = root.path().join("usr/share/file.conf");
        let link = root.path().join("etc/client/conf.d/file.conf");
        for file in [&real, &link] {
            fs::create_dir_all(file.parent().unwrap()).unwrap();
        }
        fs::write(&real, "theirs").unwrap();
        symlink("../../../usr/share/file.conf", &link).unwrap();
        disk.write("client", file(), "ours").unwrap();
        assert!(link.is_symlink());
        assert_eq!(fs::read_to_string(&real).unwrap(), "ours");
        assert_eq!(disk.undo(file()).unwrap(), Some(Undone::Restored));
        assert_eq!(fs::read_to_string(&real).unwrap(), "theirs");
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("file.conf"), "the machine's").unwrap();
        fs::remove_file(&link).unwrap();
        symlink(outside.path().join("file.conf"), &link).unwrap();
        assert!(matches!(disk.write("client", file(), "ours"), Err(SetupError::Outside { .. })));
        assert_eq!(fs::read_to_string(outside.path().join("file.conf")).unwrap(), "the machine's");
        fs::remove_file(&link).unwrap();
        symlink("nowhere", &link).unwrap();
        assert!(matches!(disk.find(file()), Err(SetupError::Read { .. })), "a link to nothing is not replaced");
    }

    #[test]
    fn a_record_of_another_version_is_left_alone() {
        let (root, disk) = image();
        disk.write("client", file(), "ours").unwrap();
        let record = record_of(&root.path().join("etc/client/conf.d/file.conf"));
        fs::write(&record, "{\"version\":9,\"client\":\"client\",\"before\":null,\"written\":[]}").unwrap();
        let error = disk.undo(file()).unwrap_err().to_string();
        assert!(error.contains("of version 9") && error.contains(&record.display().to_string()), "{error}");
    }
}
