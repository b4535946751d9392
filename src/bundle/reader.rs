//! Reading a bundle as a stream: blob by blob, each compared with its name, and nothing but what is announced.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read};
use std::path::{Path, PathBuf};

use super::contents::{Blob, Contents};
use super::error::{BundleError, Fault};
use super::layout::{Index, Name, blob_path};
use super::tar::Tar;
use super::volumes::{Joined, streams};
use super::writer::open;
use super::{MAX_CONTENTS, MAX_INDEX};
use crate::oci::{Algorithm, Digest, Hasher};

/// How zstd begins.
const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// Memory that a compressed bundle may ask for, as a power of two: what the highest levels use.
const WINDOW_LOG: u32 = 27;
/// Documents of layouts without a manifest of contents that are kept, each and together.
const DOCUMENT: u64 = 4 << 20;
const DOCUMENTS: usize = 256 << 20;

/// A bundle, or an image layout of another program's, that is read.
pub struct Reader {
    file: String,
    source: Source,
    is_packed: bool,
    contents: Option<Contents>,
    index: Option<Index>,
    /// What the manifest of contents announces.
    announced: HashMap<Digest, u64>,
    seen: HashMap<Digest, u64>,
    documents_seen: HashSet<&'static str>,
    current: Option<Current>,
    documents: HashMap<Digest, Vec<u8>>,
    documents_bytes: usize,
}

enum Source {
    Directory { path: PathBuf, rest: std::vec::IntoIter<Blob>, file: Option<File> },
    Tar(Tar<Box<dyn Read + Send>>),
}

struct Current {
    entry: Entry,
    at: Option<u64>,
    hasher: Hasher,
    read: u64,
    /// None: it is none, or too long to be kept.
    document: Option<Vec<u8>>,
}

/// A blob of a bundle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// Its digest.
    pub digest: Digest,
    /// Its length.
    pub size: u64,
}

// === impl Reader ===

impl Reader {
    /// Opens what these files are: volumes belong together, whatever their order.
    pub fn open(paths: &[PathBuf]) -> Result<Vec<Self>, BundleError> {
        streams(paths)?.into_iter().map(Self::open_one).collect()
    }

    fn open_one(files: Vec<PathBuf>) -> Result<Self, BundleError> {
        let file = files.first().map(|first| first.display().to_string()).unwrap_or_default();
        let fail = |error: io::Error| Fault::Io(error).of(&file);
        if let Some(directory) = files.first().filter(|first| first.is_dir()) {
            let rest = Vec::new().into_iter();
            let source = Source::Directory { path: directory.clone(), rest, file: None };
            let mut reader = Self::new(file, source, false);
            reader.look_around()?;
            return Ok(reader);
        }
        for path in &files {
            // Else it would be told only when it is its turn.
            File::open(path).map_err(|error| Fault::Io(error).of(&path.display().to_string()))?;
        }
        let mut stream = BufReader::with_capacity(1 << 18, Joined::new(files));
        let is_packed = stream.fill_buf().map_err(fail)?.starts_with(&ZSTD);
        let stream: Box<dyn Read + Send> = if is_packed {
            let mut decoder = zstd::Decoder::with_buffer(stream).map_err(fail)?;
            decoder.window_log_max(WINDOW_LOG).map_err(fail)?;
            Box::new(BufReader::with_capacity(1 << 18, decoder))
        } else {
            Box::new(stream)
        };
        Ok(Self::new(file, Source::Tar(Tar::new(stream)), is_packed))
    }

    /// A tar that is read from anywhere.
    pub fn of_tar(name: &str, stream: Box<dyn Read + Send>) -> Self {
        Self::new(name.to_owned(), Source::Tar(Tar::new(stream)), false)
    }

    fn new(file: String, source: Source, is_packed: bool) -> Self {
        Self {
            file,
            source,
            is_packed,
            contents: None,
            index: None,
            announced: HashMap::new(),
            seen: HashMap::new(),
            documents_seen: HashSet::new(),
            current: None,
            documents: HashMap::new(),
            documents_bytes: 0,
        }
    }

    /// The name of the file.
    pub fn file(&self) -> &str {
        &self.file
    }

    /// The manifest of contents, as soon as it was read; other programs' layouts have none.
    pub const fn contents(&self) -> Option<&Contents> {
        self.contents.as_ref()
    }

    /// `index.json`, as soon as it was read.
    pub const fn index(&self) -> Option<&Index> {
        self.index.as_ref()
    }

    /// The length of a blob that has come.
    pub fn size(&self, digest: &Digest) -> Option<u64> {
        self.seen.get(digest).copied()
    }

    /// What has come that may be a manifest, where there is no manifest of contents.
    pub fn document(&self, digest: &Digest) -> Option<&[u8]> {
        self.documents.get(digest).map(Vec::as_slice)
    }

    /// The next blob; none: this was all, and nothing is missing. What is left of the one before must have been read.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, BundleError> {
        while self.read(&mut [0; 1 << 13])? > 0 {}
        let found = match &mut self.source {
            Source::Directory { .. } => self.next_of_directory()?,
            Source::Tar(_) => self.next_of_tar()?,
        };
        let Some((entry, at)) = found else {
            self.check_complete()?;
            return Ok(None);
        };
        let keeps = self.contents.is_none() && entry.size <= DOCUMENT;
        self.current = Some(Current {
            entry,
            at,
            hasher: Hasher::new(entry.digest.algorithm()),
            read: 0,
            document: keeps.then(Vec::new),
        });
        Ok(Some(entry))
    }

    /// The next bytes of the blob; 0: that was all of it, and it is what its name says.
    pub fn read(&mut self, buffer: &mut [u8]) -> Result<usize, BundleError> {
        let Some(current) = &mut self.current else { return Ok(0) };
        let (digest, at) = (current.entry.digest, current.at);
        let count = match &mut self.source {
            Source::Directory { file: Some(file), .. } => file.read(buffer).map_err(Fault::reading),
            Source::Directory { file: None, .. } => Ok(0),
            Source::Tar(tar) => tar.read(buffer),
        };
        let count = count.map_err(|fault| fault.within(&self.file, blob_path(&digest), at))?;
        let bytes = buffer.get(..count).unwrap_or_default();
        if count > 0 {
            current.read += count as u64;
            if current.read > current.entry.size {
                let fault = Fault::Size { announced: current.entry.size, actual: current.read };
                return Err(fault.within(&self.file, blob_path(&digest), at));
            }
            current.hasher.update(bytes);
            if let Some(document) = &mut current.document {
                document.extend(bytes);
                if !document.starts_with(b"{") {
                    current.document = None;
                }
            }
            return Ok(count);
        }
        let Some(Current { entry, hasher, read, document, .. }) = self.current.take() else { return Ok(0) };
        let actual = hasher.finish();
        let fault = if read != entry.size {
            Fault::Size { announced: entry.size, actual: read }
        } else if actual != digest {
            Fault::Digest { actual: Box::new(actual) }
        } else {
            self.seen.insert(digest, entry.size);
            if let Some(document) = document {
                self.documents_bytes += document.len();
                if self.documents_bytes <= DOCUMENTS {
                    self.documents.insert(digest, document);
                }
            }
            return Ok(0);
        };
        Err(fault.within(&self.file, blob_path(&digest), at))
    }

    fn next_of_tar(&mut self) -> Result<Option<(Entry, Option<u64>)>, BundleError> {
        loop {
            let Source::Tar(tar) = &mut self.source else { return Ok(None) };
            let member = tar.next().map_err(|(entry, at, fault)| {
                let file = self.file.clone();
                BundleError { file, entry, at: Some(at), fault }
            })?;
            let Some(member) = member else { return Ok(None) };
            let at = Some(member.at);
            let fail = |fault: Fault| Err(fault.within(&self.file, &member.path, at));
            let name = Name::parse(&member.path).filter(|name| member.is_directory == (*name == Name::Directory));
            match name {
                None => return fail(Fault::Name),
                Some(Name::Directory) => {}
                // Nothing says how long it may become.
                Some(Name::Blob(_) | Name::Docker) if self.is_packed && self.contents.is_none() => {
                    return fail(Fault::Unbounded);
                }
                Some(Name::Docker) if self.contents.is_none() => {}
                Some(Name::Docker) => return fail(Fault::Unannounced),
                Some(Name::Layout) => {
                    self.document_of_tar("oci-layout", &member.path, member.size, 4096, at)?;
                }
                Some(Name::Contents) => {
                    let bytes = self.document_of_tar("ocistern.json", &member.path, member.size, MAX_CONTENTS, at)?;
                    let read = Contents::from_json(&bytes);
                    self.learn(read.map_err(|fault| fault.within(&self.file, &member.path, at))?)?;
                }
                Some(Name::Index) => {
                    let bytes = self.document_of_tar("index.json", &member.path, member.size, MAX_INDEX, at)?;
                    let index = Index::from_json(&bytes);
                    self.index = Some(index.map_err(|fault| fault.within(&self.file, &member.path, at))?);
                }
                Some(Name::Blob(digest)) => {
                    let entry = Entry { digest, size: member.size };
                    if let Err(fault) = self.expects(&entry) {
                        return fail(fault);
                    }
                    return Ok(Some((entry, at)));
                }
            }
        }
    }

    /// Whether a blob may come now.
    fn expects(&self, entry: &Entry) -> Result<(), Fault> {
        if self.seen.contains_key(&entry.digest) {
            return Err(Fault::Twice);
        }
        match (&self.contents, self.announced.get(&entry.digest)) {
            (None, _) => Ok(()),
            (Some(_), None) => Err(Fault::Unannounced),
            (Some(_), Some(size)) if *size == entry.size => Ok(()),
            (Some(_), Some(size)) => Err(Fault::Size { announced: *size, actual: entry.size }),
        }
    }

    /// The manifest of contents is known now; blobs may have come before it.
    fn learn(&mut self, contents: Contents) -> Result<(), BundleError> {
        self.announced = contents.blobs.iter().map(|blob| (blob.digest, blob.size)).collect();
        for (digest, size) in &self.seen {
            let fault = match self.announced.get(digest) {
                Some(announced) if announced == size => continue,
                Some(announced) => Fault::Size { announced: *announced, actual: *size },
                None => Fault::Unannounced,
            };
            return Err(fault.within(&self.file, blob_path(digest), None));
        }
        self.contents = Some(contents);
        Ok(())
    }

    fn document_of_tar(
        &mut self,
        name: &'static str,
        path: &str,
        size: u64,
        limit: u64,
        at: Option<u64>,
    ) -> Result<Vec<u8>, BundleError> {
        let Source::Tar(tar) = &mut self.source else { return Ok(Vec::new()) };
        let mut bytes = Vec::new();
        let mut read = || -> Result<(), Fault> {
            if !self.documents_seen.insert(name) {
                return Err(Fault::Twice);
            }
            if size > limit {
                return Err(Fault::TooLong { actual: size, limit });
            }
            let mut buffer = vec![0; 1 << 16];
            loop {
                let count = tar.read(&mut buffer)?;
                if count == 0 {
                    return Ok(());
                }
                bytes.extend(buffer.get(..count).unwrap_or_default());
            }
        };
        read().map_err(|fault| fault.within(&self.file, path, at))?;
        Ok(bytes)
    }

    /// Reads what stands beside the blobs of a directory, and finds out which blobs are to be read.
    fn look_around(&mut self) -> Result<(), BundleError> {
        let Source::Directory { path, .. } = &self.source else { return Ok(()) };
        let path = path.clone();
        let file = self.file.clone();
        let read =
            |name: &str, limit| document(&path.join(name), limit).map_err(|fault| fault.within(&file, name, None));
        let (contents, index) = (read("ocistern.json", MAX_CONTENTS)?, read("index.json", MAX_INDEX)?);
        if contents.is_none() && index.is_none() {
            return Err(Fault::NoBundle.of(&file));
        }
        if let Some(bytes) = index {
            let index = Index::from_json(&bytes).map_err(|fault| fault.within(&file, "index.json", None))?;
            self.index = Some(index);
        }
        let blobs = match contents {
            Some(bytes) => {
                let contents =
                    Contents::from_json(&bytes).map_err(|fault| fault.within(&file, "ocistern.json", None))?;
                let blobs = contents.blobs.clone();
                self.learn(contents)?;
                blobs
            }
            None => blobs_of(&path).map_err(|error| Fault::Io(error).of(&file))?,
        };
        if let Source::Directory { rest, .. } = &mut self.source {
            *rest = blobs.into_iter();
        }
        Ok(())
    }

    fn next_of_directory(&mut self) -> Result<Option<(Entry, Option<u64>)>, BundleError> {
        let Source::Directory { path, rest, file } = &mut self.source else { return Ok(None) };
        let Some(Blob { digest, size }) = rest.next() else { return Ok(None) };
        let name = blob_path(&digest);
        let opened = || -> Result<(File, u64), Fault> {
            // No part of the way may lead elsewhere.
            for directory in [path.join("blobs"), path.join("blobs").join(digest.algorithm().as_str())] {
                match directory.symlink_metadata() {
                    Ok(found) if found.is_dir() => {}
                    Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(Fault::Missing(name.clone())),
                    Err(error) => return Err(error.into()),
                    Ok(_) => return Err(Fault::Kind("behind a symbolic link")),
                }
            }
            let file = match open(&path.join(&name)) {
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(Fault::Missing(name.clone())),
                Err(error) if rustix::io::Errno::from_io_error(&error) == Some(rustix::io::Errno::LOOP) => {
                    return Err(Fault::Kind("a symbolic link"));
                }
                Err(error) => return Err(error.into()),
            };
            let found = file.metadata()?;
            if !found.is_file() {
                return Err(Fault::Kind("no plain file"));
            }
            if found.len() != size {
                return Err(Fault::Size { announced: size, actual: found.len() });
            }
            Ok((file, size))
        };
        let (opened, size) = opened().map_err(|fault| fault.within(&self.file, name.clone(), None))?;
        *file = Some(opened);
        Ok(Some((Entry { digest, size }, None)))
    }

    fn check_complete(&self) -> Result<(), BundleError> {
        let at = match &self.source {
            Source::Directory { .. } => None,
            Source::Tar(tar) => Some(tar.at()),
        };
        let missing = match (&self.contents, &self.index) {
            (Some(contents), _) => {
                let missing = contents.blobs.iter().find(|blob| !self.seen.contains_key(&blob.digest));
                missing.map(|blob| blob_path(&blob.digest))
            }
            (None, Some(_)) => None,
            (None, None) => Some("index.json".to_owned()),
        };
        match missing {
            None => Ok(()),
            Some(missing) => {
                let file = self.file.clone();
                Err(BundleError { file, entry: None, at, fault: Fault::Missing(missing) })
            }
        }
    }
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader").field("file", &self.file).finish_non_exhaustive()
    }
}

/// A small file of a directory; none: it is not there.
fn document(path: &Path, limit: u64) -> Result<Option<Vec<u8>>, Fault> {
    let file = match open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let found = file.metadata()?;
    if !found.is_file() {
        return Err(Fault::Kind("no plain file"));
    }
    if found.len() > limit {
        return Err(Fault::TooLong { actual: found.len(), limit });
    }
    let mut bytes = Vec::new();
    file.take(limit).read_to_end(&mut bytes)?;
    Ok(Some(bytes))
}

/// The blobs of a layout that nobody announces, in order of their digests.
fn blobs_of(path: &Path) -> io::Result<Vec<Blob>> {
    let mut blobs = Vec::new();
    for algorithm in Algorithm::ALL {
        let directory = path.join("blobs").join(algorithm.as_str());
        let entries = match std::fs::read_dir(&directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            other => other?,
        };
        for entry in entries {
            let entry = entry?;
            let digest = entry.file_name().to_str().and_then(|hex| Digest::from_parts(algorithm, hex).ok());
            if let Some(digest) = digest {
                blobs.push(Blob { digest, size: entry.metadata()?.len() });
            }
        }
    }
    blobs.sort_by_key(|blob| blob.digest.to_string());
    Ok(blobs)
}
