//! The file system as a client sees it: this machine's, or an image's below a directory, out of which nothing leads.
//!
//! A path is followed name by name, each in the directory that the one before has opened, and a link by what it says. So a link
//! that somebody puts into an image meanwhile leads out of it as little as one that was there. The kernel's own way (openat2) does
//! not say where a link has led, and beside the file that it leads to lie its backup and what is known of it.

use std::ffi::{OsStr, OsString};
use std::io::{self, ErrorKind};
use std::path::{Component, Path, PathBuf};

use rustix::fs::FileType;
use rustix::io::Errno;

use super::FileError;
use super::folder::Folder;

/// So many links may be on a way, as the kernel has it.
const LINKS: usize = 40;

/// The whole, or an image of one.
#[derive(Debug, Clone)]
pub(in crate::cli) struct Tree {
    prefix: Option<PathBuf>,
}

/// What a path leads to.
#[derive(Debug)]
pub(in crate::cli) enum Spot {
    /// A directory.
    Directory(Folder),
    /// A file, or nothing.
    File(Place),
}

/// How a file or directory was come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::cli) enum Way {
    /// By names of directories alone.
    Straight,
    /// By a link, be it to the file or to a directory above it.
    ByLink,
}

/// Where a file is, or would be.
#[derive(Debug)]
pub(in crate::cli) struct Place {
    /// The last directory that is there.
    folder: Folder,
    /// Those that are not, outermost first.
    missing: Vec<OsString>,
    name: OsString,
    way: Way,
    /// The link that leads to it, where there is nothing.
    dangling: Option<PathBuf>,
}

/// A name that is still to be followed.
enum Step {
    Root,
    Up,
    Name(OsString),
}

// === impl Tree ===

impl Tree {
    /// With everything below `prefix`, which is then a whole root directory; none: the file system itself.
    pub(in crate::cli) const fn new(prefix: Option<PathBuf>) -> Self {
        Self { prefix }
    }

    /// Whether it is an image's.
    pub(in crate::cli) const fn is_image(&self) -> bool {
        self.prefix.is_some()
    }

    /// Whether there is something at this path.
    pub(in crate::cli) fn exists(&self, path: &Path) -> bool {
        match self.spot(path) {
            Ok(Spot::Directory(_)) => true,
            Ok(Spot::File(place)) => place.exists(),
            Err(_) => false,
        }
    }

    /// What is in a file; none: it is not there.
    pub(in crate::cli) fn read(&self, path: &Path) -> Result<Option<String>, FileError> {
        self.place(path)?.read()
    }

    /// The names in a directory, in their order; none where there is no directory.
    pub(in crate::cli) fn list(&self, directory: &Path) -> Result<Vec<PathBuf>, FileError> {
        match self.spot(directory)? {
            Spot::Directory(folder) => Ok(folder.names()?.into_iter().map(|name| directory.join(name)).collect()),
            Spot::File(place) if place.exists() => Err(FileError::read(&place.path(), Errno::NOTDIR)),
            Spot::File(_) => Ok(Vec::new()),
        }
    }

    /// Where a file is, or would be. A link stays one, and what it leads to is the file; what a link leads to is not made.
    pub(in crate::cli) fn place(&self, path: &Path) -> Result<Place, FileError> {
        match self.spot(path)? {
            Spot::Directory(folder) => Err(FileError::read(folder.path(), Errno::ISDIR)),
            Spot::File(Place { dangling: Some(link), .. }) => {
                Err(FileError::read(&link, io::Error::new(ErrorKind::NotFound, "a link to nothing")))
            }
            Spot::File(place) => Ok(place),
        }
    }

    /// Follows a path.
    pub(in crate::cli) fn spot(&self, path: &Path) -> Result<Spot, FileError> {
        let (root, mut missing) = self.root()?;
        let mut way = vec![root];
        // The next one last.
        let mut left: Vec<Step> = Vec::new();
        push(&mut left, path, |part| matches!(part, Component::Normal(_)));
        let mut links = 0;
        // The link that is being followed, and how many steps are left behind what it says.
        let mut link: Option<(PathBuf, usize)> = None;
        let mut last = None;
        while let Some(step) = left.pop() {
            let Some(here) = way.last() else { break };
            let behind = link.as_ref().filter(|(_, behind)| left.len() >= *behind).map(|(link, _)| link.clone());
            match step {
                Step::Root => way.truncate(1),
                Step::Up if !missing.is_empty() => return Err(FileError::read(here.path(), Errno::NOENT)),
                Step::Up if way.len() > 1 => {
                    way.pop();
                }
                // There is nothing above the root, but for an image's.
                Step::Up => {
                    if let (Some(prefix), Some(path)) = (&self.prefix, behind) {
                        return Err(FileError::Outside { path, to: prefix.join(".."), prefix: prefix.clone() });
                    }
                }
                Step::Name(name) if !missing.is_empty() => missing.push(name),
                Step::Name(name) => match here.stat(&name)?.map(|stat| FileType::from_raw_mode(stat.st_mode)) {
                    None => {
                        missing.push(name);
                        last = behind;
                    }
                    Some(FileType::Directory) => {
                        let inner =
                            here.enter(&name).map_err(|error| FileError::read(&here.path().join(&name), error))?;
                        way.push(inner);
                    }
                    Some(FileType::Symlink) => {
                        let at = here.path().join(&name);
                        links += 1;
                        if links > LINKS {
                            return Err(FileError::read(&at, Errno::LOOP));
                        }
                        let to = here.link_target(&name)?;
                        if let Some(prefix) = self.prefix.as_ref().filter(|_| to.is_absolute()) {
                            return Err(FileError::Outside { path: at, to, prefix: prefix.clone() });
                        }
                        let behind = link.map_or(left.len(), |(_, behind)| behind.min(left.len()));
                        link = Some((at, behind));
                        push(&mut left, &to, |_| true);
                    }
                    Some(_) if left.is_empty() => missing.push(name),
                    Some(_) => return Err(FileError::read(&here.path().join(&name), Errno::NOTDIR)),
                },
            }
        }
        let folder = way.pop().ok_or_else(|| FileError::read(path, Errno::NOENT))?;
        Ok(match missing.pop() {
            None => Spot::Directory(folder),
            Some(name) => {
                let way = if links == 0 { Way::Straight } else { Way::ByLink };
                Spot::File(Place { folder, missing, name, way, dangling: last })
            }
        })
    }

    /// The root, and what is missing of the way to it.
    fn root(&self) -> Result<(Folder, Vec<OsString>), FileError> {
        let mut path = self.prefix.as_deref().unwrap_or(Path::new("/"));
        let mut missing = Vec::new();
        loop {
            match Folder::open(path) {
                Ok(folder) => {
                    missing.reverse();
                    return Ok((folder, missing));
                }
                Err(Errno::NOENT) => {
                    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
                        return Err(FileError::read(path, Errno::NOENT));
                    };
                    missing.push(name.to_owned());
                    path = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
                }
                Err(error) => return Err(FileError::read(path, error)),
            }
        }
    }

    /// Removes an empty directory. Whether it is gone.
    pub(in crate::cli) fn remove_directory(&self, directory: &Path) -> bool {
        let (inside, name) = match (directory.parent(), directory.file_name(), &self.prefix) {
            (Some(parent), Some(name), _) => (self.spot(parent).ok(), name),
            // The image's own.
            (_, _, Some(prefix)) => {
                let parent =
                    prefix.parent().map(|parent| if parent.as_os_str().is_empty() { Path::new(".") } else { parent });
                let folder = parent.and_then(|parent| Folder::open(parent).ok());
                (folder.map(Spot::Directory), prefix.file_name().unwrap_or_default())
            }
            _ => return false,
        };
        match inside {
            Some(Spot::Directory(folder)) => folder.remove_directory(name),
            Some(Spot::File(place)) => !place.exists(),
            None => false,
        }
    }
}

/// Puts the steps of a path before those that are left.
fn push(left: &mut Vec<Step>, path: &Path, counts: impl Fn(&Component<'_>) -> bool) {
    let steps = path.components().filter(counts).filter_map(|part| match part {
        Component::RootDir => Some(Step::Root),
        Component::ParentDir => Some(Step::Up),
        Component::Normal(name) => Some(Step::Name(name.to_owned())),
        Component::CurDir | Component::Prefix(_) => None,
    });
    left.extend(steps.collect::<Vec<_>>().into_iter().rev());
}

// === impl Place ===

impl Place {
    /// Its directory and its name there; none: the directory is not there.
    pub(in crate::cli) fn inside(&self) -> Option<(&Folder, &OsStr)> {
        self.missing.is_empty().then_some((&self.folder, &self.name))
    }

    /// Where it really is.
    pub(in crate::cli) fn path(&self) -> PathBuf {
        let directories = self.missing.iter().fold(self.folder.path().to_owned(), |path, name| path.join(name));
        directories.join(&self.name)
    }

    /// How it was come to.
    pub(in crate::cli) const fn way(&self) -> Way {
        self.way
    }

    /// How many directories are missing above it.
    pub(in crate::cli) const fn missing(&self) -> usize {
        self.missing.len()
    }

    fn exists(&self) -> bool {
        self.inside().is_some_and(|(folder, name)| matches!(folder.stat(name), Ok(Some(_))))
    }

    /// What is in it; none: it is not there.
    pub(in crate::cli) fn read(&self) -> Result<Option<String>, FileError> {
        self.inside().map_or(Ok(None), |(folder, name)| folder.read(name))
    }

    /// Makes the directories that are missing.
    pub(in crate::cli) fn made(self) -> Result<Self, FileError> {
        let Self { mut folder, missing, name, way, dangling } = self;
        for directory in &missing {
            folder = folder.make(directory)?;
        }
        Ok(Self { folder, missing: Vec::new(), name, way, dangling })
    }
}
