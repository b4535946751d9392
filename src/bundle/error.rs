//! Why a bundle cannot be written or read: which file, which entry of it, and where.

use std::io;

use crate::oci::Digest;

/// Something about a bundle is wrong, and where.
#[derive(Debug, thiserror::Error)]
#[error("{file}{}: {fault}", place(entry.as_deref(), *at))]
pub struct BundleError {
    /// The file, or the first of the volumes.
    pub file: String,
    /// The entry of it.
    pub entry: Option<String>,
    /// How many bytes of the (uncompressed) stream come before.
    pub at: Option<u64>,
    /// What is wrong.
    #[source]
    pub fault: Fault,
}

/// What is wrong.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// What the file system said.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// It ends too early.
    #[error("it ends here, in the middle: it was cut off, or not copied whole")]
    Truncated,
    /// No tar, and nothing else that is known.
    #[error("it is no bundle: neither a tar (or one compressed by zstd) nor a directory with an OCI image layout")]
    NoBundle,
    /// A header of a tar that is none.
    #[error("a tar header is damaged")]
    Header,
    /// Headers, and no file behind them.
    #[error(
        "more than {0} tar headers follow each other without a file, which no bundle has; nothing of such a bundle is taken"
    )]
    Headers(usize),
    /// An entry that is no file.
    #[error("it is {0}, which no bundle has; nothing of such a bundle is taken")]
    Kind(&'static str),
    /// An entry under a name that no bundle has.
    #[error("no bundle has a file of this name; nothing of such a bundle is taken")]
    Name,
    /// An entry that comes twice.
    #[error("it comes a second time")]
    Twice,
    /// An entry that the manifest of contents does not announce.
    #[error("ocistern.json does not announce it")]
    Unannounced,
    /// An entry that is longer or shorter than announced.
    #[error("it has {actual} bytes, and ocistern.json announces {announced}")]
    Size {
        /// What is announced.
        announced: u64,
        /// What is there.
        actual: u64,
    },
    /// Content that is not what its name says.
    #[error("its content is damaged: it has the digest {actual}")]
    Digest {
        /// The digest of what is there.
        actual: Box<Digest>,
    },
    /// A document that is longer than it can be.
    #[error("it has {actual} bytes, and at most {limit} are read")]
    TooLong {
        /// How long it is.
        actual: u64,
        /// How long it may be.
        limit: u64,
    },
    /// A document that cannot be understood.
    #[error("it cannot be understood: {0}")]
    Document(String),
    /// A manifest of contents that is not as it was written.
    #[error("its checksum does not match: it is damaged, or was edited")]
    Checksum,
    /// A later version.
    #[error("its version is {0}, and this ocistern knows 1: use the one that wrote it, or a later one")]
    Version(u64),
    /// What is announced and does not come.
    #[error("{0} is announced, and not in it: it was not copied whole")]
    Missing(String),
    /// Something after the end.
    #[error("something follows behind the end of the tar")]
    Trailing,
    /// Compressed, by somebody else.
    #[error("what is compressed must begin with the ocistern.json that says how much it is: decompress it first")]
    Unbounded,
    /// Volumes that are not all there.
    #[error("the volume {0} is missing")]
    Volume(String),
    /// A place where something else is.
    #[error("there is something else in this directory: give an empty or a new one")]
    Foreign,
}

impl Fault {
    /// Of a file.
    pub(super) fn of(self, file: &str) -> BundleError {
        BundleError { file: file.to_owned(), entry: None, at: None, fault: self }
    }

    /// Of an entry.
    pub(super) fn within(self, file: &str, entry: impl Into<String>, at: Option<u64>) -> BundleError {
        BundleError { file: file.to_owned(), entry: Some(entry.into()), at, fault: self }
    }

    /// A short read is no fault of the disk.
    pub(super) fn reading(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::UnexpectedEof { Self::Truncated } else { Self::Io(error) }
    }
}

fn place(entry: Option<&str>, at: Option<u64>) -> String {
    let entry = entry.map(|entry| format!(", {entry}")).unwrap_or_default();
    let at = at.map(|at| format!(" (at byte {at})")).unwrap_or_default();
    entry + &at
}
