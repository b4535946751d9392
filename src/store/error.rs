//! What can go wrong in the store, as one enum.

use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use crate::oci::Digest;

/// Why the store could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The capacity or the file system has no room, and nothing is left that may be evicted.
    #[error("the store has no room for this content")]
    NoSpace,
    /// There is something that may be evicted, but not enough of it went in the time that a client can wait.
    #[error("room was not made in time in the store")]
    NoRoomInTime,
    /// The content is larger than the whole capacity, so evicting would not help.
    #[error("{length} bytes are more than the store's capacity of {capacity} bytes")]
    TooLarge {
        /// Length of the content.
        length: u64,
        /// What the store may hold.
        capacity: u64,
    },
    /// What was written is not what the digest names.
    #[error("the content's digest is {actual}, not {expected}")]
    DigestMismatch {
        /// The digest that was asked for. (Boxed, like the other: digests are large, and errors should not be.)
        expected: Box<Digest>,
        /// The digest of what came.
        actual: Box<Digest>,
    },
    /// What was written is shorter or longer than announced.
    #[error("{actual} bytes were written where {expected} were announced")]
    LengthMismatch {
        /// The announced length.
        expected: u64,
        /// How much came (at least).
        actual: u64,
    },
    /// Another process works on this root.
    #[error(
        "{} is in use by {holder}: {}, or give this one another root (--root)", root.display(),
        if holder.command.is_some() { "wait until that has ended" } else { "stop that process" }
    )]
    Locked {
        /// The root.
        root: PathBuf,
        /// Who holds it.
        holder: super::Holder,
    },
    /// The root was written by another version of the layout.
    #[error(
        "{} has format version {found:?}, this program understands versions up to {supported}: use the program that \
         wrote it, or another root", root.display()
    )]
    Version {
        /// The root.
        root: PathBuf,
        /// What its VERSION file says.
        found: String,
        /// The newest version that this program understands.
        supported: u32,
    },
    /// The root has something in it, and no store wrote it.
    #[error("{} has other files and is no store of ocistern: give an empty or a new directory (root, --root)", root.display())]
    Foreign {
        /// The root.
        root: PathBuf,
    },
    /// A call to the operating system failed.
    #[error("cannot {action} {}{}", path.display(), advice(source))]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// On which file, of the root if it is relative.
        path: PathBuf,
        /// How it failed.
        #[source]
        source: io::Error,
    },
    /// The store is closed, or the task that did the work was ended with the runtime.
    #[error("the store is stopping")]
    Stopped,
}

impl StoreError {
    /// Wraps an I/O error. A full disk or quota becomes [`StoreError::NoSpace`], which callers answer by not keeping
    /// the content.
    pub(super) fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        if is_full(&source) { Self::NoSpace } else { Self::Io { action, path: path.to_owned(), source } }
    }

    /// The same with an absolute path, for people.
    pub(super) fn within(self, root: &Path) -> Self {
        match self {
            Self::Io { action, path, source } => Self::Io { action, path: root.join(path), source },
            other => other,
        }
    }

    /// Whether the content can still be passed on to clients, only not be kept.
    pub fn is_full(&self) -> bool {
        matches!(self, Self::NoSpace | Self::NoRoomInTime | Self::TooLarge { .. })
    }
}

/// What to do about an error, where that is known.
fn advice(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::PermissionDenied => {
            format!(": {error}; the root must belong to the user that ocistern runs as, or give another (root, --root)")
        }
        io::ErrorKind::ReadOnlyFilesystem => {
            format!(": {error}; ocistern needs to write in its root, to read what is in it too")
        }
        _ => String::new(),
    }
}

/// Whether the error says that disk, quota or inodes are used up.
pub(super) fn is_full(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::NOSPC | Errno::DQUOT))
}
