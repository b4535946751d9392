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
//!
//! In an image anybody may have written a record, and on a machine whoever may write where a link of the operator's leads. So what
//! it says leads to nothing but what lies beside the same file, and to the directories that this file lies in, where they are a
//! client's; and one behind a link counts only if nobody but root and this user can have written it.

use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};

use rustix::fs::FileType;

use super::SetupError;
use super::record::{Before, Record, Spotted, VERSION, WRITTEN, digest, recorded};
use crate::cli::clients::folder::Folder;
use crate::cli::clients::{FileError, Place, Spot, Tree, Way};

/// How deep below a client's directory its files lie (`certs.d/HOST/hosts.toml`), and one more.
const DEPTH: usize = 4;

/// The file system as a client sees it, to be changed.
#[derive(Debug, Clone)]
pub(super) struct Disk {
    tree: Tree,
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
    /// It had been edited since ocistern wrote it, and has nothing of the edits any more: they are in this file.
    Over(PathBuf),
    /// It has edits in it that were made since ocistern wrote it, so that it can no longer be put back.
    Edited {
        /// What was there before the first change; none: nothing.
        before: Option<PathBuf>,
        /// The file as it was edited, where it has been just now.
        copy: Option<PathBuf>,
    },
}

/// What a text that is to be written was made from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Basis {
    /// From nothing that was in the file.
    Alone,
    /// From what was in it.
    Merged,
}

/// What became of a file that was to be put back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Undone {
    /// It is as it was before.
    Restored,
    /// It was not there before, and is not any more.
    Removed,
}

/// What was written and not put back yet.
#[derive(Debug)]
pub(super) struct Search<'a> {
    tree: &'a Tree,
    /// Whose; none: anybody's.
    client: Option<String>,
    /// The files, as clients see them.
    pub(super) files: Vec<PathBuf>,
    /// Those of them that a link leads to.
    by_link: BTreeSet<PathBuf>,
    /// Why there may be more.
    pub(super) failures: Vec<SetupError>,
    /// Where the files really are: one may be reached by several ways.
    found: BTreeSet<PathBuf>,
    /// Directories that were looked into.
    seen: BTreeSet<(u64, u64)>,
}

// === impl Disk ===

impl Disk {
    /// With everything below `prefix`, which is then a whole root directory; none: the file system itself.
    pub(super) const fn new(prefix: Option<PathBuf>) -> Self {
        Self { tree: Tree::new(prefix) }
    }

    /// To be read alone.
    pub(super) const fn tree(&self) -> &Tree {
        &self.tree
    }

    /// Whether it is an image's.
    pub(super) const fn is_image(&self) -> bool {
        self.tree.is_image()
    }

    /// Whether there is something at this path.
    pub(super) fn exists(&self, path: &Path) -> bool {
        self.tree.exists(path)
    }

    /// What is in a file; none: it is not there.
    pub(super) fn read(&self, path: &Path) -> Result<Option<String>, SetupError> {
        Ok(self.tree.read(path)?)
    }

    /// The files in a directory, in their order; none where there is no directory.
    pub(super) fn list(&self, directory: &Path) -> Result<Vec<PathBuf>, SetupError> {
        Ok(self.tree.list(directory)?)
    }

    /// A file, and what a change of it starts from.
    pub(super) fn find(&self, path: &Path) -> Result<Found, SetupError> {
        let place = self.tree.place(path)?;
        let Some(file) = Spotted::of(&place) else { return Ok(Found { now: None, base: None }) };
        let now = file.read()?;
        let base = match file.record()? {
            Some(record) => match file.before(&record, now.as_deref())? {
                Before::Text(text) if record.is_ours(now.as_deref()) => Some(text),
                Before::Nothing if record.is_ours(now.as_deref()) => None,
                Before::Text(_) | Before::Nothing | Before::Back => now.clone(),
            },
            None => now.clone(),
        };
        Ok(Found { now, base })
    }

    /// Puts `text` into a file, for `client`. What was there before is kept beside it, and so is what somebody has made of it since.
    pub(super) fn write(&self, client: &str, path: &Path, text: &str, basis: Basis) -> Result<Written, SetupError> {
        let place = self.tree.place(path)?;
        let directories: Vec<PathBuf> = path.ancestors().skip(1).take(place.missing()).map(Path::to_owned).collect();
        let place = place.made()?;
        let file = Spotted::of(&place).ok_or_else(|| FileError::write(path, rustix::io::Errno::NOENT))?;
        let now = file.read()?;
        if now.as_deref() == Some(text) {
            return Ok(Written::Unchanged);
        }
        let fresh = digest(text);
        let mut directories: Vec<PathBuf> = directories.into_iter().rev().collect();
        if let Some(mut record) = file.record()? {
            let before = file.before(&record, now.as_deref())?;
            if before == Before::Back {
                // It is written as for the first time.
                directories = record.directories;
            } else {
                let backup = record.before.as_ref().map(|name| file.at(name.as_ref()));
                let is_edited = |text: &str| !record.has_written(text) && !before.is(Some(text));
                let copy = match &now {
                    Some(text) if is_edited(text) => Some(file.at(&file.keep()?)),
                    _ => None,
                };
                record.edited = basis == Basis::Merged && (record.edited || copy.is_some());
                record.written.push(fresh);
                let spare = record.written.len().saturating_sub(WRITTEN);
                record.written.drain(..spare);
                file.put(&record)?;
                file.replace(text)?;
                return Ok(match copy {
                    copy if record.edited => Written::Edited { before: backup, copy },
                    Some(copy) => Written::Over(copy),
                    None => Written::Again(backup),
                });
            }
        }
        let before = match &now {
            None => None,
            Some(_) => Some(file.keep()?),
        };
        let record = Record {
            version: VERSION,
            client: client.to_owned(),
            before: before.as_ref().map(|name| name.to_string_lossy().into_owned()),
            kept: now.as_deref().map(digest),
            written: vec![fresh],
            edited: false,
            directories,
        };
        file.put(&record)?;
        file.replace(text)?;
        Ok(before.map_or(Written::New, |name| Written::Changed(file.at(&name))))
    }

    /// The files below these directories that were written for `client` and not put back yet, by whatever link they are reached.
    pub(super) fn written(&self, client: &str, directories: &[PathBuf]) -> Search<'_> {
        let mut search = Search::new(&self.tree, Some(client.to_owned()));
        for directory in directories {
            match self.tree.spot(directory) {
                Ok(Spot::Directory(folder)) => search.look(directory, &folder, DEPTH, Way::Straight),
                Ok(Spot::File(_)) => {}
                Err(error) => search.failures.push(error.into()),
            }
        }
        search.files.sort_unstable();
        search
    }

    /// Where a file really is; two that are the same have the same.
    pub(super) fn real(&self, path: &Path) -> Option<PathBuf> {
        Some(self.place(path).ok()?.path())
    }

    /// As [`Tree::place`], also of what a link to nothing leads to: there may be a record beside it.
    fn place(&self, path: &Path) -> Result<Place, SetupError> {
        match self.tree.spot(path)? {
            Spot::File(place) => Ok(place),
            Spot::Directory(folder) => Err(FileError::read(folder.path(), rustix::io::Errno::ISDIR).into()),
        }
    }

    /// Puts a file back to what it was before the first [`Disk::write`]; none: it was never written. `clients` are the directories
    /// that its client's files are in.
    pub(super) fn undo(&self, path: &Path, clients: &[PathBuf]) -> Result<Option<Undone>, SetupError> {
        let place = self.place(path)?;
        let Some(file) = Spotted::of(&place) else { return Ok(None) };
        let Some(record) = file.record()? else { return Ok(None) };
        // As long as all of it is there.
        let directories = self.made_for(&file, record.directories.clone(), clients);
        let now = file.read()?;
        let before = file.before(&record, now.as_deref())?;
        if !before.is(now.as_deref()) && !record.is_ours(now.as_deref()) {
            return Err(file.edited(&record));
        }
        // The backup has all that the file had: it is the same one.
        let outcome = match (&before, &record.before) {
            (Before::Text(_), Some(backup)) => {
                file.folder.rename(backup.as_ref(), file.name)?;
                // Where a crash had left both names to one file, that did nothing.
                file.folder.remove(backup.as_ref())?;
                Undone::Restored
            }
            (Before::Back, _) => Undone::Restored,
            (Before::Text(_) | Before::Nothing, _) => {
                file.folder.remove(file.name)?;
                Undone::Removed
            }
        };
        file.folder.remove(&file.record_name())?;
        self.remove_directories(directories)?;
        Ok(Some(outcome))
    }

    /// Of the directories that a record says were made for its file, those that can have been: the file is in them, and they are
    /// below a client's directory, or it or above it.
    fn made_for(&self, file: &Spotted<'_>, mut said: Vec<PathBuf>, clients: &[PathBuf]) -> Vec<PathBuf> {
        let real = file.folder.path();
        said.retain(|directory| {
            let is_plain = directory.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
            let is_clients =
                clients.iter().any(|client| directory.starts_with(client) || client.starts_with(directory));
            let is_above =
                || matches!(self.tree.spot(directory), Ok(Spot::Directory(above)) if real.starts_with(above.path()));
            is_plain && is_clients && is_above()
        });
        said
    }

    /// Removes directories that were made, innermost first, as far as they are empty. What others of our files lie in goes with
    /// the last of these.
    fn remove_directories(&self, mut directories: Vec<PathBuf>) -> Result<(), SetupError> {
        while let Some(directory) = directories.last() {
            if self.tree.remove_directory(directory) {
                directories.pop();
                continue;
            }
            let mut others = Search::new(&self.tree, None);
            if let Ok(Spot::Directory(folder)) = self.tree.spot(directory) {
                others.look(directory, &folder, DEPTH, Way::Straight);
            }
            // What a link in it leads to does not lie in it.
            let within = |path: &&PathBuf| !others.by_link.contains(*path);
            if let Some(other) = others.files.iter().find(within) {
                let place = self.place(other)?;
                if let Some(file) = Spotted::of(&place)
                    && let Some(mut record) = file.record()?
                {
                    record.directories = [directories, record.directories].concat();
                    file.put(&record)?;
                }
            }
            return Ok(());
        }
        Ok(())
    }
}

// === impl Search ===

impl<'a> Search<'a> {
    const fn new(tree: &'a Tree, client: Option<String>) -> Self {
        Self {
            tree,
            client,
            files: Vec::new(),
            by_link: BTreeSet::new(),
            failures: Vec::new(),
            found: BTreeSet::new(),
            seen: BTreeSet::new(),
        }
    }

    /// Looks into a directory, which clients see at this path, and those in it.
    fn look(&mut self, directory: &Path, folder: &Folder, depth: usize, way: Way) {
        if depth == 0 {
            return;
        }
        let names = match folder.identity().map(|identity| self.seen.insert(identity)) {
            Ok(true) => folder.names(),
            Ok(false) => return,
            Err(error) => Err(error),
        };
        let names = match names {
            Ok(names) => names,
            Err(error) => return self.failed(error, way),
        };
        let mut links = Vec::new();
        for name in &names {
            if let Some(of) = recorded(name) {
                self.take(directory.join(of), Spotted { folder, name: of, way });
                continue;
            }
            match folder.stat(name).map(|stat| stat.map(|stat| FileType::from_raw_mode(stat.st_mode))) {
                Ok(Some(FileType::Directory)) => match folder.inner(name) {
                    Ok(Some(inner)) => self.look(&directory.join(name), &inner, depth - 1, way),
                    Ok(None) => {}
                    Err(error) => self.failed(error, way),
                },
                Ok(Some(FileType::Symlink)) => links.push(directory.join(name)),
                Ok(_) => {}
                Err(error) => self.failed(error, way),
            }
        }
        // After the directories: of two ways to a file, the one without links is told.
        for path in links {
            match self.tree.spot(&path) {
                Ok(Spot::Directory(inner)) => self.look(&path, &inner, depth - 1, Way::ByLink),
                Ok(Spot::File(place)) => {
                    if let Some(file) = Spotted::of(&place) {
                        self.take(path, file);
                    }
                }
                // In a circle, or out of an image: another's, by which nothing of ours was written.
                Err(_) => {}
            }
        }
    }

    /// A file, if there is a record of it.
    fn take(&mut self, path: PathBuf, file: Spotted<'_>) {
        let record = match file.record() {
            Ok(Some(record)) => record,
            Ok(None) => return,
            Err(error) => return self.failures.push(error),
        };
        let real = file.at(file.name);
        if self.client.as_ref().is_some_and(|client| record.client != *client) || !self.found.insert(real) {
            return;
        }
        match file.folder.stat(file.name) {
            // Somebody has put a link into its place.
            Ok(Some(stat)) if FileType::from_raw_mode(stat.st_mode).is_symlink() => {
                self.failures.push(file.edited(&record));
            }
            Ok(_) => {
                if file.way == Way::ByLink {
                    self.by_link.insert(path.clone());
                }
                self.files.push(path);
            }
            Err(error) => self.failures.push(error.into()),
        }
    }

    /// A directory that cannot be looked into. Those that links lead to are others' as well.
    fn failed(&mut self, error: FileError, way: Way) {
        if way == Way::Straight {
            self.failures.push(error.into());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};

    use super::super::record::{BACKUP, RECORD};
    use super::*;
    use crate::cli::clients::folder::beside;

    fn image() -> (tempfile::TempDir, Disk) {
        let root = tempfile::tempdir().unwrap();
        let disk = Disk::new(Some(root.path().to_owned()));
        (root, disk)
    }

    /// The path of what lies beside a file.
    fn with_suffix(real: &Path, prefix: &str, suffix: &str) -> PathBuf {
        real.with_file_name(beside(real.file_name().unwrap(), prefix, suffix))
    }

    fn clients() -> [PathBuf; 1] {
        ["/etc/client".into()]
    }

    fn file() -> &'static Path {
        Path::new("/etc/client/conf.d/file.conf")
    }

    #[test]
    fn directories_that_were_made_go_again_unless_others_use_them() {
        let (root, disk) = image();
        fs::create_dir(root.path().join("etc")).unwrap();
        assert_eq!(disk.write("client", file(), "ours", Basis::Alone).unwrap(), Written::New);
        assert_eq!(disk.written("client", &["/etc/client".into()]).files, [file()]);
        assert_eq!(disk.written("another", &["/etc/client".into()]).files, [] as [PathBuf; 0]);
        fs::write(root.path().join("etc/client/theirs"), "").unwrap();
        assert_eq!(disk.undo(file(), &clients()).unwrap(), Some(Undone::Removed));
        assert!(!root.path().join("etc/client/conf.d").exists());
        assert!(root.path().join("etc/client/theirs").exists());
        assert_eq!(disk.undo(file(), &clients()).unwrap(), None, "there is nothing more to put back");
    }

    #[test]
    fn mode_and_file_come_back_as_they_were() {
        let (root, disk) = image();
        let real = root.path().join("etc/client/conf.d/file.conf");
        fs::create_dir_all(real.parent().unwrap()).unwrap();
        fs::write(&real, "theirs").unwrap();
        fs::set_permissions(&real, Permissions::from_mode(0o640)).unwrap();
        let before = fs::metadata(&real).unwrap();
        let Written::Changed(backup) = disk.write("client", file(), "ours", Basis::Alone).unwrap() else {
            panic!("it was there")
        };
        assert_eq!(fs::read_to_string(&backup).unwrap(), "theirs");
        assert_eq!(fs::metadata(&real).unwrap().mode() & 0o7777, 0o640, "the new file has the old one's mode");
        assert_eq!(disk.find(file()).unwrap(), Found { now: Some("ours".into()), base: Some("theirs".into()) });
        assert_eq!(disk.undo(file(), &clients()).unwrap(), Some(Undone::Restored));
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
        let Written::Changed(backup) = disk.write("client", file(), "ours", Basis::Alone).unwrap() else {
            panic!("it was there")
        };
        assert_eq!(backup, with_suffix(&real, "", ".ocistern-backup-2"));
        disk.undo(file(), &clients()).unwrap();
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
        disk.write("client", file(), "ours", Basis::Alone).unwrap();
        let backup = with_suffix(&real, "", BACKUP);
        // As before the rename of the file: both names lead to what was there before.
        fs::remove_file(&real).unwrap();
        fs::hard_link(&backup, &real).unwrap();
        assert_eq!(disk.find(file()).unwrap().base.as_deref(), Some("theirs"));
        assert_eq!(disk.undo(file(), &clients()).unwrap(), Some(Undone::Restored));
        assert!(!backup.exists() && fs::read_to_string(&real).unwrap() == "theirs");
        // As before the rename of a second version.
        disk.write("client", file(), "first", Basis::Alone).unwrap();
        disk.write("client", file(), "second", Basis::Alone).unwrap();
        fs::write(&real, "first").unwrap();
        assert_eq!(disk.undo(file(), &clients()).unwrap(), Some(Undone::Restored));
        assert_eq!(fs::read_to_string(&real).unwrap(), "theirs");
    }

    #[test]
    fn a_link_stays_one_and_none_leads_out_of_an_image() {
        let (root, disk) = image();
        let real = root.path().join("usr/share/file.conf");
        let link = root.path().join("etc/client/conf.d/file.conf");
        for file in [&real, &link] {
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::set_permissions(file.parent().unwrap(), Permissions::from_mode(0o755)).unwrap();
        }
        fs::write(&real, "theirs").unwrap();
        symlink("../../../usr/share/file.conf", &link).unwrap();
        disk.write("client", file(), "ours", Basis::Alone).unwrap();
        assert!(link.is_symlink());
        assert_eq!(fs::read_to_string(&real).unwrap(), "ours");
        assert_eq!(disk.undo(file(), &clients()).unwrap(), Some(Undone::Restored));
        assert_eq!(fs::read_to_string(&real).unwrap(), "theirs");
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("file.conf"), "the machine's").unwrap();
        fs::remove_file(&link).unwrap();
        symlink(outside.path().join("file.conf"), &link).unwrap();
        assert!(matches!(
            disk.write("client", file(), "ours", Basis::Alone),
            Err(SetupError::File(FileError::Outside { .. }))
        ));
        assert_eq!(fs::read_to_string(outside.path().join("file.conf")).unwrap(), "the machine's");
        fs::remove_file(&link).unwrap();
        symlink("nowhere", &link).unwrap();
        assert!(
            matches!(disk.find(file()), Err(SetupError::File(FileError::Read { .. }))),
            "a link to nothing is not replaced"
        );
    }

    #[test]
    fn a_record_of_another_version_is_left_alone() {
        let (root, disk) = image();
        disk.write("client", file(), "ours", Basis::Alone).unwrap();
        let record = with_suffix(&root.path().join("etc/client/conf.d/file.conf"), ".", RECORD);
        fs::write(&record, "{\"version\":9,\"client\":\"client\",\"before\":null,\"written\":[]}").unwrap();
        let error = disk.undo(file(), &clients()).unwrap_err().to_string();
        assert!(error.contains("of version 9") && error.contains(&record.display().to_string()), "{error}");
    }
}
