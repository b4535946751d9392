//! A stream of bytes as one file, or cut into `FILE.001`, `FILE.002` and so on, which `cat` puts together again.
//!
//! What is written has other names until all of it is there.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use super::error::{BundleError, Fault};

/// Most volumes: their numbers have three digits.
const MOST: usize = 999;

/// The stream that is written. Dropped before [`Volumes::finish`], it leaves nothing.
#[derive(Debug)]
pub(super) struct Volumes {
    to: PathBuf,
    /// None: one file, however long.
    size: Option<u64>,
    /// The files so far, by their names until they are whole.
    files: Vec<PathBuf>,
    current: Option<File>,
    /// Bytes in the current one.
    filled: u64,
    written: u64,
    is_done: bool,
}

/// The stream that is read.
#[derive(Debug)]
pub(super) struct Joined {
    rest: std::vec::IntoIter<PathBuf>,
    current: Option<File>,
}

/// The name of volume `number`, counted from one.
fn volume(to: &Path, number: usize) -> PathBuf {
    let mut name = to.as_os_str().to_owned();
    name.push(format!(".{number:03}"));
    name.into()
}

/// The file and the number of the name of a volume.
fn parse(path: &Path) -> Option<(PathBuf, usize)> {
    let (stem, number) = (path.with_extension(""), path.extension()?.to_str()?);
    let is_number = number.len() == 3 && number.bytes().all(|byte| byte.is_ascii_digit());
    (is_number).then(|| number.parse().ok()).flatten().filter(|number| *number > 0).map(|number| (stem, number))
}

/// What is made until the file is whole.
fn temporary(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".unfinished");
    name.into()
}

/// Sorts the named files into streams: volumes belong together, in their order.
pub(super) fn streams(paths: &[PathBuf]) -> Result<Vec<Vec<PathBuf>>, BundleError> {
    let mut streams: Vec<(PathBuf, Vec<(usize, PathBuf)>)> = Vec::new();
    for path in paths {
        let (stem, number) = parse(path).filter(|_| !path.is_dir()).unwrap_or_else(|| (path.clone(), 0));
        match streams.iter_mut().find(|(known, of)| *known == stem && number > 0 && of.iter().all(|(n, _)| *n > 0)) {
            Some((_, of)) => of.push((number, path.clone())),
            None => streams.push((stem, vec![(number, path.clone())])),
        }
    }
    let ordered = |(stem, mut of): (PathBuf, Vec<(usize, PathBuf)>)| {
        of.sort();
        of.dedup();
        if of.first().is_some_and(|(first, _)| *first > 0)
            && let Some(missing) =
                (1..).zip(&of).find(|(wanted, (number, _))| wanted != number).map(|(wanted, _)| wanted)
        {
            let missing = volume(&stem, missing).display().to_string();
            return Err(Fault::Volume(missing).of(&stem.display().to_string()));
        }
        Ok(of.into_iter().map(|(_, path)| path).collect())
    };
    streams.into_iter().map(ordered).collect()
}

// === impl Volumes ===

impl Volumes {
    pub(super) fn new(to: &Path, size: Option<u64>) -> Self {
        Self { to: to.to_owned(), size, files: Vec::new(), current: None, filled: 0, written: 0, is_done: false }
    }

    /// What the file of this place among the volumes is called when it is whole.
    fn name(&self, place: usize) -> PathBuf {
        if self.size.is_some() { volume(&self.to, place + 1) } else { self.to.clone() }
    }

    fn next(&mut self) -> io::Result<&mut File> {
        if self.files.len() == MOST {
            return Err(io::Error::other("it would be more than 999 volumes: give a larger --volume-size"));
        }
        if let Some(full) = self.current.take() {
            full.sync_all()?;
        }
        let path = temporary(&self.name(self.files.len()));
        let file = File::create(&path)?;
        self.files.push(path);
        self.filled = 0;
        Ok(self.current.insert(file))
    }

    /// Gives the files their names; the first one last, so that a set that begins is whole. Volumes of an earlier and
    /// longer bundle go: they would be taken for its end.
    pub(super) fn finish(mut self) -> io::Result<(Vec<PathBuf>, u64)> {
        if self.current.is_none() {
            self.next()?;
        }
        if let Some(last) = self.current.take() {
            last.sync_all()?;
        }
        let count = self.files.len();
        for place in (0..count).rev() {
            let Some(made) = self.files.get(place) else { continue };
            fs::rename(made, self.name(place))?;
        }
        if self.size.is_some() {
            for place in count.. {
                if fs::remove_file(self.name(place)).is_err() {
                    break;
                }
            }
        }
        if let Some(directory) = self.to.parent() {
            let directory = if directory.as_os_str().is_empty() { Path::new(".") } else { directory };
            File::open(directory)?.sync_all()?;
        }
        self.is_done = true;
        Ok(((0..count).map(|place| self.name(place)).collect(), self.written))
    }
}

impl Write for Volumes {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let size = self.size.unwrap_or(u64::MAX);
        if self.filled >= size || self.current.is_none() {
            self.next()?;
        }
        let room = usize::try_from(size - self.filled).unwrap_or(usize::MAX).min(bytes.len());
        let (Some(file), Some(part)) = (&mut self.current, bytes.get(..room)) else { return Ok(0) };
        let count = file.write(part)?;
        self.filled += count as u64;
        self.written += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.current.as_mut().map_or(Ok(()), File::flush)
    }
}

impl Drop for Volumes {
    fn drop(&mut self) {
        if !self.is_done {
            for made in &self.files {
                // Whoever writes there next makes it anew.
                let _ = fs::remove_file(made);
            }
        }
    }
}

// === impl Joined ===

impl Joined {
    pub(super) fn new(files: Vec<PathBuf>) -> Self {
        Self { rest: files.into_iter(), current: None }
    }
}

impl Read for Joined {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            if let Some(file) = &mut self.current {
                let count = file.read(buffer)?;
                if count > 0 || buffer.is_empty() {
                    return Ok(count);
                }
            }
            match self.rest.next() {
                Some(path) => self.current = Some(File::open(path)?),
                None => return Ok(0),
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::indexing_slicing, reason = "a test that is out of bounds fails")]
mod tests {
    use super::*;

    #[test]
    fn volumes_are_joined_in_any_order_and_one_that_is_missing_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let to = directory.path().join("b.tar");
        fs::write(volume(&to, 4), "of an earlier one").unwrap();
        let mut volumes = Volumes::new(&to, Some(4));
        volumes.write_all(b"0123456789").unwrap();
        assert!(!volume(&to, 1).exists(), "nothing has its name before all is there");
        let (files, written) = volumes.finish().unwrap();
        assert_eq!((files.len(), written), (3, 10));
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 3);
        let named = [&files[2], &files[0], &files[1], &files[0]].map(PathBuf::clone);
        let [stream] = streams(&named).unwrap().try_into().unwrap();
        let mut text = String::new();
        Joined::new(stream).read_to_string(&mut text).unwrap();
        assert_eq!(text, "0123456789");
        let error = streams(&[files[0].clone(), files[2].clone()]).unwrap_err().to_string();
        assert!(error.contains("b.tar.002 is missing"), "{error}");
        let error = streams(&files[1..]).unwrap_err().to_string();
        assert!(error.contains("b.tar.001 is missing"), "{error}");
    }

    #[test]
    fn what_is_given_up_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let mut volumes = Volumes::new(&directory.path().join("b.tar"), None);
        volumes.write_all(b"0123456789").unwrap();
        drop(volumes);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }
}
