//! Writing a bundle: a directory or a tar, from whose parts nothing goes out that is not what its digest says.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use super::contents::{Blob, Contents};
use super::error::{BundleError, Fault};
use super::layout::{Index, OCI_LAYOUT, blob_path};
use super::tar;
use super::volumes::Volumes;
use crate::oci::{Algorithm, Digest, Hasher};

/// Bytes read at once.
const CHUNK: usize = 1 << 18;

/// The form of a bundle that is no directory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Form {
    /// At which level it is compressed.
    pub zstd: Option<i32>,
    /// How long a volume is.
    pub volume: Option<u64>,
}

/// A bundle that is written. Dropped before [`Writer::finish`], a tar leaves nothing, and a directory what is to be gone on
/// with.
pub struct Writer {
    to: PathBuf,
    place: Place,
    contents: Contents,
    current: Option<Current>,
}

enum Place {
    Directory(Directory),
    Tar(Box<Volumes>),
    Packed(Box<zstd::Encoder<'static, Volumes>>),
}

struct Directory {
    /// The file of the blob that is being written.
    file: Option<File>,
}

/// The blob that is being written.
struct Current {
    blob: Blob,
    hasher: Hasher,
    written: u64,
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// The files, or the directory.
    pub files: Vec<PathBuf>,
    /// Bytes of the tar, as it stands; of a directory those of the blobs.
    pub bytes: u64,
}

// === impl Writer ===

impl Writer {
    /// Begins a bundle at `to`: a directory if it is one, or ends with a slash.
    pub fn begin(to: &Path, form: Form, contents: Contents) -> Result<Self, BundleError> {
        let name = to.display().to_string();
        let index = Index::of(&contents.images);
        let files = || -> Result<_, Fault> {
            Ok([
                ("oci-layout", OCI_LAYOUT.to_vec()),
                ("ocistern.json", contents.to_json()?),
                ("index.json", index.to_json()?),
            ])
        };
        let files = files().map_err(|fault| fault.of(&name))?;
        let io = |error: io::Error| Fault::Io(error).of(&name);
        let place = if is_directory(to) {
            Directory::begin(to).map_err(|fault| fault.of(&name))?;
            Place::Directory(Directory { file: None })
        } else {
            let volumes = Volumes::new(to, form.volume);
            match form.zstd {
                None => Place::Tar(Box::new(volumes)),
                Some(level) => {
                    let mut encoder = zstd::Encoder::new(volumes, level).map_err(io)?;
                    encoder.include_checksum(true).map_err(io)?;
                    Place::Packed(Box::new(encoder))
                }
            }
        };
        let mut writer = Self { to: to.to_owned(), place, contents, current: None };
        // In a directory they come last: it is no layout before it is whole.
        if !matches!(writer.place, Place::Directory(_)) {
            for (file, content) in files {
                let header = tar::header(file, content.len() as u64);
                let rest = vec![0; tar::padding(content.len() as u64)];
                writer.put(&header).and_then(|()| writer.put(&content)).and_then(|()| writer.put(&rest)).map_err(io)?;
            }
        }
        Ok(writer)
    }

    /// What is to be in it.
    pub const fn contents(&self) -> &Contents {
        &self.contents
    }

    /// Whether the blob is there already, from an earlier time, and is right. Only in a directory.
    pub fn has(&self, blob: &Blob) -> Result<bool, BundleError> {
        let Place::Directory(_) = self.place else { return Ok(false) };
        let path = self.to.join(blob_path(&blob.digest));
        let found = || -> io::Result<bool> {
            let mut file = match open(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
                other => other?,
            };
            let found = file.metadata()?;
            if !found.is_file() || found.len() != blob.size {
                return Ok(false);
            }
            let (mut hasher, mut buffer) = (Hasher::new(blob.digest.algorithm()), vec![0; CHUNK]);
            loop {
                let count = file.read(&mut buffer)?;
                if count == 0 {
                    return Ok(hasher.finish() == blob.digest);
                }
                hasher.update(buffer.get(..count).unwrap_or_default());
            }
        };
        found().map_err(|error| self.fault(Some(blob), Fault::Io(error)))
    }

    /// Begins a blob.
    pub fn start(&mut self, blob: Blob) -> Result<(), BundleError> {
        let begun = match &mut self.place {
            Place::Directory(directory) => directory.start(&self.to, &blob),
            Place::Tar(_) | Place::Packed(_) => self.put(&tar::header(&blob_path(&blob.digest), blob.size)),
        };
        begun.map_err(|error| self.fault(Some(&blob), Fault::Io(error)))?;
        self.current = Some(Current { blob, hasher: Hasher::new(blob.digest.algorithm()), written: 0 });
        Ok(())
    }

    /// Adds bytes to it.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), BundleError> {
        let Some(current) = &mut self.current else { return Ok(()) };
        let blob = current.blob;
        current.written += bytes.len() as u64;
        if current.written > blob.size {
            let fault = Fault::Size { announced: blob.size, actual: current.written };
            return Err(self.fault(Some(&blob), fault));
        }
        current.hasher.update(bytes);
        let written = match &mut self.place {
            Place::Directory(Directory { file: Some(file) }) => file.write_all(bytes),
            Place::Directory(Directory { file: None }) => Ok(()),
            Place::Tar(_) | Place::Packed(_) => self.put(bytes),
        };
        written.map_err(|error| self.fault(Some(&blob), Fault::Io(error)))
    }

    /// It is whole: fails if it is not what its digest says.
    pub fn end(&mut self) -> Result<(), BundleError> {
        let Some(Current { blob, hasher, written }) = self.current.take() else { return Ok(()) };
        if written != blob.size {
            return Err(self.fault(Some(&blob), Fault::Size { announced: blob.size, actual: written }));
        }
        let actual = hasher.finish();
        if actual != blob.digest {
            return Err(self.fault(Some(&blob), Fault::Digest { actual: Box::new(actual) }));
        }
        let ended = match &mut self.place {
            Place::Directory(directory) => directory.end(&self.to, &blob),
            Place::Tar(_) | Place::Packed(_) => self.put(&vec![0; tar::padding(blob.size)]),
        };
        ended.map_err(|error| self.fault(Some(&blob), Fault::Io(error)))
    }

    /// All blobs are in it: it gets its name.
    pub fn finish(mut self) -> Result<Written, BundleError> {
        let name = self.to.display().to_string();
        let io = |error: io::Error| Fault::Io(error).of(&name);
        let trailer = [0; 2 * tar::BLOCK];
        if !matches!(self.place, Place::Directory(_)) {
            self.put(&trailer).map_err(io)?;
        }
        let Self { to, place, contents, .. } = self;
        let volumes = match place {
            Place::Directory(_) => {
                let files =
                    [("ocistern.json", contents.to_json()), ("index.json", Index::of(&contents.images).to_json())];
                for (file, content) in files {
                    let content = content.map_err(|fault| fault.of(&name))?;
                    Directory::put(&to, file, &content).map_err(io)?;
                }
                return Ok(Written { bytes: contents.bytes(), files: vec![to] });
            }
            Place::Tar(volumes) => *volumes,
            Place::Packed(encoder) => encoder.finish().map_err(io)?,
        };
        let (files, bytes) = volumes.finish().map_err(io)?;
        Ok(Written { files, bytes })
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &mut self.place {
            Place::Directory(_) => Ok(()),
            Place::Tar(volumes) => volumes.write_all(bytes),
            Place::Packed(encoder) => encoder.write_all(bytes),
        }
    }

    fn fault(&self, blob: Option<&Blob>, fault: Fault) -> BundleError {
        let entry = blob.map(|blob| blob_path(&blob.digest));
        BundleError { file: self.to.display().to_string(), entry, at: None, fault }
    }
}

impl fmt::Debug for Writer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Writer").field("to", &self.to).finish_non_exhaustive()
    }
}

/// Whether a path is meant as a directory.
fn is_directory(path: &Path) -> bool {
    path.is_dir() || path.as_os_str().as_encoded_bytes().ends_with(b"/")
}

/// Opens what is a file itself, not a link to one.
pub(super) fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed()).open(path)
}

// === impl Directory ===

impl Directory {
    /// Makes what is missing of it; something else in it is left alone.
    fn begin(to: &Path) -> Result<(), Fault> {
        fs::create_dir_all(to)?;
        let mut names = fs::read_dir(to)?.map(|entry| Ok::<_, io::Error>(entry?.file_name()));
        // A store has the same files, and others.
        let is_store = to.join("VERSION").exists() || to.join("lock").exists();
        if is_store || (!to.join("oci-layout").exists() && names.next().is_some()) {
            return Err(Fault::Foreign);
        }
        for algorithm in Algorithm::ALL {
            fs::create_dir_all(to.join("blobs").join(algorithm.as_str()))?;
        }
        Self::put(to, "oci-layout", OCI_LAYOUT)?;
        Ok(())
    }

    fn put(to: &Path, name: &str, content: &[u8]) -> io::Result<()> {
        let temporary = to.join(format!("{name}.unfinished"));
        let mut file = File::create(&temporary)?;
        file.write_all(content)?;
        // The blobs too, before anything leads to them.
        rustix::fs::syncfs(&file)?;
        fs::rename(&temporary, to.join(name))?;
        File::open(to)?.sync_all()
    }

    fn start(&mut self, to: &Path, blob: &Blob) -> io::Result<()> {
        self.file = Some(File::create(unfinished(to, &blob.digest))?);
        Ok(())
    }

    fn end(&mut self, to: &Path, blob: &Blob) -> io::Result<()> {
        self.file = None;
        fs::rename(unfinished(to, &blob.digest), to.join(blob_path(&blob.digest)))
    }
}

/// The name of a blob's file until it is whole.
fn unfinished(to: &Path, digest: &Digest) -> PathBuf {
    to.join(format!("{}.unfinished", blob_path(digest)))
}
