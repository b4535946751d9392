//! What fails with a client's file.

use std::io;
use std::path::{Path, PathBuf};

/// Why a file cannot be used.
#[derive(Debug, thiserror::Error)]
pub(in crate::cli) enum FileError {
    /// A file or directory cannot be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file or directory cannot be written.
    #[error("{}: {source}{}", path.display(), advice(source))]
    Write {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file is larger than any of its kind is.
    #[error("{}: larger than {}, which no such file is: nothing of it was taken", path.display(), size(*most))]
    Large {
        /// Which.
        path: PathBuf,
        /// So many bytes it may have.
        most: u64,
    },
    /// Within an image, a link leads to a file of this machine.
    #[error("{} leads to {}, which is not in {}: nothing was changed; make the link relative", path.display(), to.display(), prefix.display())]
    Outside {
        /// The link.
        path: PathBuf,
        /// Where it leads.
        to: PathBuf,
        /// The image.
        prefix: PathBuf,
    },
}

// === impl FileError ===

impl FileError {
    pub(in crate::cli) fn read(path: &Path, source: impl Into<io::Error>) -> Self {
        Self::Read { path: path.to_owned(), source: source.into() }
    }

    pub(in crate::cli) fn write(path: &Path, source: impl Into<io::Error>) -> Self {
        Self::Write { path: path.to_owned(), source: source.into() }
    }
}

fn size(bytes: u64) -> String {
    if bytes >= 1 << 20 { format!("{} MiB", bytes >> 20) } else { format!("{} KiB", bytes >> 10) }
}

fn advice(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::PermissionDenied => "; run this command as root, or as the user whose file it is",
        _ => "",
    }
}
