//! What lies beside a client's file that was written: the backup, and the record of whose it is and what was written; how
//! they are made, read and checked.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::SetupError;
use crate::cli::clients::folder::{Folder, beside, is_trusted};
use crate::cli::clients::{FileError, Place, Way};
use crate::oci::{Algorithm, Digest};

/// Version of the record beside a file.
pub(super) const VERSION: u32 = 1;
pub(super) const BACKUP: &str = ".ocistern-backup";
pub(super) const RECORD: &str = ".ocistern-setup";
/// A record is larger by no means; of what is, nothing is taken into memory.
const LARGEST: u64 = 64 << 10;
/// It has the digest of what may be a secret, and a short one is found by its digest.
const MODE: u32 = 0o600;
/// So many contents of ours are recognised: the one that is there, and the one that is about to be.
pub(super) const WRITTEN: usize = 2;

/// What is known of a file that was written.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) version: u32,
    pub(super) client: String,
    /// Name of the backup, which is one of this file; none: there was no file.
    pub(super) before: Option<String>,
    /// Digest of what was there before; none also in records of earlier versions.
    #[serde(default)]
    pub(super) kept: Option<Digest>,
    /// Digests of what was written, the newest last.
    pub(super) written: Vec<Digest>,
    /// Somebody has edited the file, and then ocistern changed it again: it is a mixture.
    #[serde(default)]
    pub(super) edited: bool,
    /// Directories that were made for it, outermost first, as clients see them. A record is no reason to remove another one:
    /// those count that the file lies in (`Disk::undo`).
    #[serde(default)]
    pub(super) directories: Vec<PathBuf>,
}

/// What was there before the first change.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Before {
    /// No file.
    Nothing,
    /// This.
    Text(String),
    /// It is there again, and its backup is not: putting back was cut off, and has nothing left to do but to remove the record.
    Back,
}

/// A file by its name in a directory, with what lies beside it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Spotted<'a> {
    pub(super) folder: &'a Folder,
    pub(super) name: &'a OsStr,
    pub(super) way: Way,
}

// === impl Spotted ===

impl<'a> Spotted<'a> {
    /// None: not even its directory is there.
    pub(super) fn of(place: &'a Place) -> Option<Self> {
        place.inside().map(|(folder, name)| Self { folder, name, way: place.way() })
    }

    pub(super) fn read(&self) -> Result<Option<String>, SetupError> {
        Ok(self.folder.read(self.name)?)
    }

    pub(super) fn replace(&self, text: &str) -> Result<(), SetupError> {
        Ok(self.folder.replace(self.name, text.as_bytes(), None)?)
    }

    /// The path of what lies beside it, for people.
    pub(super) fn at(&self, name: &OsStr) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(super) fn record_name(&self) -> OsString {
        beside(self.name, ".", RECORD)
    }

    pub(super) fn record(&self) -> Result<Option<Record>, SetupError> {
        let name = self.record_name();
        let Some(seen) = self.folder.look(&name, LARGEST)? else { return Ok(None) };
        if self.way == Way::ByLink {
            self.trusted(&name, seen.owner)?;
        }
        let unknown = |why: String| SetupError::Record { path: self.at(&name), why };
        let record: Record = serde_json::from_str(&seen.text).map_err(|error| unknown(error.to_string()))?;
        if record.version != VERSION {
            return Err(unknown(format!("it is of version {}", record.version)));
        }
        match record.before.as_deref().filter(|before| !self.is_backup(before.as_ref())) {
            Some(before) => Err(unknown(format!("{before:?} is no backup of this file"))),
            None => Ok(Some(record)),
        }
    }

    /// A link of the operator's may lead to where others write, who are then not to say what is removed in their name.
    fn trusted(&self, record: &OsStr, owner: u32) -> Result<(), SetupError> {
        let why =
            if is_trusted(owner) { self.folder.shared_with()? } else { Some(format!("it belongs to user {owner}")) };
        why.map_or(Ok(()), |why| {
            let (path, record) = (self.at(self.name), self.at(record));
            Err(SetupError::Untrusted { path, record, why, directory: self.folder.path().to_owned() })
        })
    }

    pub(super) fn put(&self, record: &Record) -> Result<(), SetupError> {
        let name = self.record_name();
        let text = serde_json::to_vec(record).map_err(|error| FileError::write(&self.at(&name), error))?;
        Ok(self.folder.replace(&name, &text, Some(MODE))?)
    }

    /// It was edited, so it is not put back.
    pub(super) fn edited(&self, record: &Record) -> SetupError {
        SetupError::Edited {
            path: self.at(self.name),
            backup: record.before.as_ref().map(|name| self.at(name.as_ref())),
            record: self.at(&self.record_name()),
        }
    }

    /// Whether a backup of this file may have this name.
    pub(super) fn is_backup(&self, name: &OsStr) -> bool {
        let name = name.as_encoded_bytes().strip_prefix(self.name.as_encoded_bytes());
        let number = name.and_then(|name| name.strip_prefix(BACKUP.as_bytes()));
        number.is_some_and(|number| match number.strip_prefix(b"-") {
            None => number.is_empty(),
            Some(digits) => !digits.is_empty() && digits.iter().all(u8::is_ascii_digit),
        })
    }

    /// A second name for it, under which it stays when another takes its place.
    pub(super) fn keep(&self) -> Result<OsString, SetupError> {
        for number in 1_u32.. {
            let suffix = if number == 1 { BACKUP.to_owned() } else { format!("{BACKUP}-{number}") };
            let backup = beside(self.name, "", &suffix);
            // One that is there is somebody's: it is not ours to overwrite.
            if self.folder.keep(self.name, &backup)? {
                return Ok(backup);
            }
        }
        Err(FileError::write(&self.at(self.name), rustix::io::Errno::EXIST).into())
    }

    /// What was there before; `now` is what is there now.
    pub(super) fn before(&self, record: &Record, now: Option<&str>) -> Result<Before, SetupError> {
        let Some(name) = &record.before else { return Ok(Before::Nothing) };
        match self.folder.read(name.as_ref())? {
            Some(text) => Ok(Before::Text(text)),
            None if record.is_back(now) => Ok(Before::Back),
            None => Err(SetupError::Gone {
                path: self.at(self.name),
                backup: self.at(name.as_ref()),
                record: self.at(&self.record_name()),
            }),
        }
    }
}

// === impl Before ===

impl Before {
    /// Whether this is what was there before.
    pub(super) fn is(&self, now: Option<&str>) -> bool {
        match self {
            Self::Nothing => now.is_none(),
            Self::Text(text) => now == Some(text),
            Self::Back => true,
        }
    }
}

// === impl Record ===

impl Record {
    /// Whether this is what was written.
    pub(super) fn is_ours(&self, now: Option<&str>) -> bool {
        !self.edited && now.is_some_and(|text| self.has_written(text))
    }

    /// Whether this was written, perhaps with edits in it.
    pub(super) fn has_written(&self, text: &str) -> bool {
        self.written.contains(&digest(text))
    }

    /// Whether this is what was there before, as far as that is known without its backup.
    pub(super) fn is_back(&self, now: Option<&str>) -> bool {
        now.map(digest).is_some_and(|now| match &self.kept {
            Some(kept) => now == *kept,
            None => !self.written.contains(&now),
        })
    }
}

pub(super) fn digest(text: &str) -> Digest {
    Digest::of(Algorithm::Sha256, text.as_bytes())
}

/// Of which file this is the record.
pub(super) fn recorded(name: &OsStr) -> Option<&OsStr> {
    let name = name.as_encoded_bytes().strip_prefix(b".")?.strip_suffix(RECORD.as_bytes())?;
    (!name.is_empty()).then(|| OsStr::from_bytes(name))
}
