//! Whether another user could read a file, by its mode and those of the directories above it.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// What a user may do with a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Reading {
    /// Read it.
    Can,
    /// Not read it: this stands in the way, or there is no such file.
    Cannot(PathBuf, String),
    /// Read it if the user is in this group.
    InGroup(PathBuf, u32),
}

/// Whether `user` could read the file at `path`.
pub(super) fn reading(path: &Path, user: u32) -> Reading {
    let path = match fs::canonicalize(path) {
        Ok(path) => path,
        Err(error) => return Reading::Cannot(path.to_owned(), error.to_string()),
    };
    let mut group = None;
    // From the top: the first obstacle is the one to name.
    let above: Vec<&Path> = path.ancestors().skip(1).collect();
    for (path, bit, what) in
        above.into_iter().rev().map(|directory| (directory, 0o1, "search")).chain([(path.as_path(), 0o4, "read")])
    {
        let metadata = match fs::metadata(path) {
            Ok(metadata) => metadata,
            Err(error) => return Reading::Cannot(path.to_owned(), error.to_string()),
        };
        match allowed(&metadata, user, bit) {
            Some(true) => {}
            Some(false) => {
                let mode = metadata.mode() & 0o7777;
                return Reading::Cannot(
                    path.to_owned(),
                    format!("user {user} may not {what} it (mode {mode:o}, of user {})", metadata.uid()),
                );
            }
            None => group = group.or_else(|| Some((path.to_owned(), metadata.gid()))),
        }
    }
    group.map_or(Reading::Can, |(path, group)| Reading::InGroup(path, group))
}

/// Whether the bit is set for the user; none: if it is in the group.
fn allowed(metadata: &Metadata, user: u32, bit: u32) -> Option<bool> {
    let mode = metadata.mode();
    if user == 0 {
        Some(true)
    } else if metadata.uid() == user {
        Some(mode & (bit << 6) != 0)
    } else if mode & bit != 0 {
        Some(true)
    } else if mode & (bit << 3) != 0 {
        None
    } else {
        Some(false)
    }
}

/// The permission bits of a file.
pub(super) fn mode(path: &Path) -> io::Result<u32> {
    Ok(fs::metadata(path)?.mode() & 0o7777)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_first_obstacle_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let below = directory.path().canonicalize().unwrap().join("below");
        fs::create_dir(&below).unwrap();
        let file = below.join("secret");
        fs::write(&file, "x").unwrap();
        let set = |path: &Path, mode: u32| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        let owner = fs::metadata(&file).unwrap().uid();
        let stranger = 54_321;
        set(directory.path(), 0o755);
        set(&below, 0o755);
        set(&file, 0o600);
        assert_eq!(reading(&file, owner), Reading::Can);
        assert_eq!(reading(&file, 0), Reading::Can);
        let Reading::Cannot(path, why) = reading(&file, stranger) else { panic!("a stranger can") };
        assert!(path == file && why.contains("mode 600"), "{why}");
        set(&file, 0o640);
        assert!(matches!(reading(&file, stranger), Reading::InGroup(path, _) if path == file));
        set(&file, 0o644);
        assert_eq!(reading(&file, stranger), Reading::Can);
        set(&below, 0o700);
        let Reading::Cannot(path, why) = reading(&file, stranger) else { panic!("a stranger can") };
        assert!(path == below && why.contains("may not search it"), "{why}");
        assert!(matches!(reading(&directory.path().join("none"), 0), Reading::Cannot(..)));
    }
}
