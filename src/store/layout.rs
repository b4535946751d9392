//! Where things lie beneath the root.
//!
//! ```text
//! root/
//!   CACHEDIR.TAG  oci-layout          with blobs/ and an index.json, root is a valid OCI image layout
//!   VERSION  lock  ocistern.sock
//!   blobs/sha256/HEX                  immutable; the name is the digest; manifests are blobs too (sha512/ likewise)
//!   refs/UPSTREAM/_origin             the URL that these refs came from
//!   refs/UPSTREAM/REPO/_access        public or private, since when
//!   refs/UPSTREAM/REPO/_tags/TAG      upper case escaped, see `tag_file`
//!   refs/UPSTREAM/REPO/_links/ALG/HEX
//!   refs/UPSTREAM/REPO/_suspect       since when every tag is suspect; _suspects/TAG the same of one
//!   refs/UPSTREAM/REPO/_lists/…       tags, referrers-ALG-HEX; with ~QUERY where there was one
//!   refs/UPSTREAM~aside-N/            refs of another URL under the same name
//!   fills/*.tmp                       what is being written, and is garbage when the process is dead
//!   fills/*.part  fills/ALG-HEX.map   a fill that can be gone on with, and what of its file is there, see `partial`
//!   state/epoch                       which run the verification stamps belong to
//!   state/pins/HASH  HASH.copy        pins that were made by command, each twice: nobody else knows of them
//!   state/scrub                       how far the scrub is
//!   private/NAME                      keys, for nobody else to read
//!   quarantine/
//!   index/  index.bad-N/              sled; hints that may be lost at any time
//! ```
//!
//! No part of a repository's name starts with `_`, so what belongs to a repository cannot be taken for a part of a
//! longer name.

use std::io;
use std::path::{Path, PathBuf};

use super::StoreError;
use super::disk::Disk;
use crate::oci::{Algorithm, Digest, RepoName, Tag, UpstreamName};

/// Version of the layout that this program writes.
pub(super) const VERSION: u32 = 1;

/// Directory of partial files.
pub(super) const FILLS: &str = "fills";
/// End of the name of a file that belongs to the process that made it, and is garbage after it.
pub(super) const TEMPORARY: &str = ".tmp";
/// End of the name of a file that can be gone on with, if a map says so.
pub(super) const PART: &str = ".part";
/// End of the name of a map: what of such a file is there.
pub(super) const MAP: &str = ".map";
/// Directory of what failed verification.
pub(super) const QUARANTINE: &str = "quarantine";
/// Directory of refs.
pub(super) const REFS: &str = "refs";
/// Directory of small state files.
pub(super) const STATE: &str = "state";
/// The index' directory.
pub(super) const INDEX: &str = "index";
/// The lock file.
pub(super) const LOCK: &str = "lock";

/// Directory of keys, closed to others.
pub(super) const PRIVATE: &str = "private";

/// Directories that a first start makes, besides those of blobs.
const DIRECTORIES: [&str; 5] = [FILLS, QUARANTINE, REFS, STATE, PRIVATE];
/// More entries than a first start makes in any directory.
const MADE_FIRST: usize = 16;
const CACHEDIR: &str = "CACHEDIR.TAG";
const OCI_LAYOUT_FILE: &str = "oci-layout";

/// <https://bford.info/cachedir/>: backup programs leave such directories out.
const CACHEDIR_TAG: &str = "Signature: 8a477f597d28d172789f06886806bc55\n\
    # This directory is ocistern's store: everything in it can be fetched again.\n\
    # See https://bford.info/cachedir/\n";
/// OCI image-spec, `image-layout.md`, "oci-layout file".
const OCI_LAYOUT: &str = "{\"imageLayoutVersion\":\"1.0.0\"}";

/// Longest file name that is written as it is; longer ones get a hash.
const LONG_NAME: usize = 200;
/// Longest query that becomes part of a file name as it is.
const LONG_QUERY: usize = 48;

/// Makes what is missing of the layout. A root of another version is refused and not touched.
pub(super) fn prepare(disk: &Disk) -> Result<(), StoreError> {
    check_version(disk)?;
    let blobs = Algorithm::ALL.map(blob_dir);
    let others = DIRECTORIES.map(PathBuf::from);
    for path in blobs.iter().chain(&others) {
        disk.make_dirs(path).map_err(|e| StoreError::io("make the directory", path, e))?;
    }
    let private = Path::new(PRIVATE);
    disk.close_dir(private).map_err(|e| StoreError::io("close to others", private, e))?;
    for (name, content) in [(CACHEDIR, CACHEDIR_TAG), (OCI_LAYOUT_FILE, OCI_LAYOUT), ("VERSION", "1\n")] {
        write_once(disk, Path::new(name), content).map_err(|e| StoreError::io("write", Path::new(name), e))?;
    }
    let root = Path::new("");
    disk.sync_all_made()
        .and_then(|()| disk.sync_dir(root))
        .map_err(|e| StoreError::io("sync the directories of", disk.path(), e))
}

/// Whether this program understands what is there.
pub(super) fn check_version(disk: &Disk) -> Result<(), StoreError> {
    let path = Path::new("VERSION");
    let found = match disk.read_all(path, 64) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).trim().to_owned(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(StoreError::io("read", path, error)),
    };
    // Empty: a power cut between making the file and writing it. Nothing of another version can be here yet.
    if found.trim_matches('\0').is_empty() || found.parse::<u32>().is_ok_and(|v| (1..=VERSION).contains(&v)) {
        return Ok(());
    }
    Err(StoreError::Version { root: disk.path().to_owned(), found, supported: VERSION })
}

/// Refuses a directory that is not the store's and has something in it: it would be marked as a cache, which backup
/// programs leave out, and be closed to others. What a first start makes before VERSION is fine, when nothing is in it.
pub(super) fn check_foreign(disk: &Disk) -> Result<(), StoreError> {
    let is_store = || disk.metadata(Path::new("VERSION")).is_ok();
    // Asked again afterwards: another process may be at its first start.
    if is_store() || !has_foreign(disk)? || is_store() {
        return Ok(());
    }
    Err(StoreError::Foreign { root: disk.path().to_owned() })
}

fn has_foreign(disk: &Disk) -> Result<bool, StoreError> {
    let names = |path: &Path| -> Result<Vec<String>, StoreError> {
        let fail = |e: io::Error| StoreError::io("list", path, e);
        // Few are enough: what ocistern makes first is fewer.
        let entries = disk.list(path).map_err(fail)?.take(MADE_FIRST);
        entries.map(|entry| entry.map(|entry| entry.name).map_err(fail)).collect()
    };
    for name in names(Path::new("."))? {
        let foreign = match name.as_str() {
            LOCK | CACHEDIR | OCI_LAYOUT_FILE | "lost+found" => false,
            "blobs" => {
                let mut foreign = false;
                for name in names(Path::new("blobs"))? {
                    let ours = Algorithm::ALL.into_iter().find(|a| a.as_str() == name);
                    foreign |= match ours {
                        Some(algorithm) => !names(&blob_dir(algorithm))?.is_empty(),
                        None => true,
                    };
                }
                foreign
            }
            name if DIRECTORIES.contains(&name) => !names(Path::new(name))?.is_empty(),
            _ => true,
        };
        if foreign {
            return Ok(true);
        }
    }
    Ok(false)
}

fn write_once(disk: &Disk, path: &Path, content: &str) -> io::Result<()> {
    let file = disk.open_or_create(path)?;
    let len = file.metadata()?.len();
    // Shorter, or with zeros: it was torn when it was made. Anything else is somebody's own.
    let mut found = vec![0; content.len()];
    let is_torn = len < content.len() as u64 || {
        disk.read_exact_at(&file, &mut found, 0)?;
        found.contains(&0)
    };
    if is_torn {
        disk.write_all_at(&file, content.as_bytes(), 0)?;
        disk.sync_file(&file)?;
    }
    Ok(())
}

/// `blobs/ALG`.
pub(super) fn blob_dir(algorithm: Algorithm) -> PathBuf {
    Path::new("blobs").join(algorithm.as_str())
}

/// `blobs/ALG/HEX`.
pub(super) fn blob(digest: &Digest) -> PathBuf {
    blob_dir(digest.algorithm()).join(digest.hex())
}

/// `fills/ALG-HEX.map`.
pub(super) fn map(digest: &Digest) -> PathBuf {
    Path::new(FILLS).join(format!("{}-{}{MAP}", digest.algorithm().as_str(), digest.hex()))
}

/// The digest of the name of a [`map`].
pub(super) fn parse_map(name: &str) -> Option<Digest> {
    let (algorithm, hex) = name.strip_suffix(MAP)?.split_once('-')?;
    let algorithm = Algorithm::ALL.into_iter().find(|a| a.as_str() == algorithm)?;
    Digest::from_parts(algorithm, hex).ok()
}

/// `refs/UPSTREAM`.
pub(super) fn upstream(upstream: &UpstreamName) -> PathBuf {
    Path::new(REFS).join(short_name(upstream.as_str()))
}

/// `refs/UPSTREAM/REPO`.
pub(super) fn repository(up: &UpstreamName, repo: &RepoName) -> PathBuf {
    let mut path = upstream(up);
    path.extend(repo.parts());
    path
}

/// `refs/UPSTREAM/REPO/_tags`.
pub(super) fn tags(up: &UpstreamName, repo: &RepoName) -> PathBuf {
    repository(up, repo).join("_tags")
}

/// `refs/UPSTREAM/REPO/_tags/TAG`.
pub(super) fn tag(up: &UpstreamName, repo: &RepoName, tag: &Tag) -> PathBuf {
    tags(up, repo).join(tag_file(tag))
}

/// `refs/UPSTREAM/REPO/_suspects`.
pub(super) fn suspects(up: &UpstreamName, repo: &RepoName) -> PathBuf {
    repository(up, repo).join("_suspects")
}

/// `refs/UPSTREAM/REPO/_suspects/TAG`.
pub(super) fn suspect(up: &UpstreamName, repo: &RepoName, tag: &Tag) -> PathBuf {
    suspects(up, repo).join(tag_file(tag))
}

/// `refs/UPSTREAM/REPO/_suspect`.
pub(super) fn suspect_repository(up: &UpstreamName, repo: &RepoName) -> PathBuf {
    repository(up, repo).join("_suspect")
}

/// `refs/UPSTREAM/REPO/_links/ALG`.
pub(super) fn links(up: &UpstreamName, repo: &RepoName, algorithm: Algorithm) -> PathBuf {
    repository(up, repo).join("_links").join(algorithm.as_str())
}

/// `refs/UPSTREAM/REPO/_links/ALG/HEX`.
pub(super) fn link(up: &UpstreamName, repo: &RepoName, digest: &Digest) -> PathBuf {
    links(up, repo, digest.algorithm()).join(digest.hex())
}

/// `refs/UPSTREAM/REPO/_access`.
pub(super) fn access(up: &UpstreamName, repo: &RepoName) -> PathBuf {
    repository(up, repo).join("_access")
}

/// `refs/UPSTREAM/REPO/_lists`.
pub(super) fn lists(up: &UpstreamName, repo: &RepoName) -> PathBuf {
    repository(up, repo).join("_lists")
}

/// `refs/UPSTREAM/REPO/_lists/NAME`, where NAME is `tags` or `referrers-ALG-HEX`, and with a query `NAME~QUERY`.
pub(super) fn list(up: &UpstreamName, repo: &RepoName, name: &str, query: &str) -> PathBuf {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"=&._-".contains(&b);
    let file = if query.is_empty() {
        name.to_owned()
    } else if query.len() <= LONG_QUERY && query.bytes().all(plain) {
        format!("{name}~{query}")
    } else {
        format!("{name}~~{}", Digest::of(Algorithm::Sha256, query.as_bytes()).hex())
    };
    lists(up, repo).join(file)
}

/// A tag as a file name. Tags differ by case and some volumes do not, so upper case is written as lower case behind a
/// mark: `!x` for one letter, `~xyz~` for a run of several. Neither mark can stand in a tag. A run costs two more
/// characters and one letter one more, so a tag of 128 characters takes at most 214 of the 255 that a name may have.
pub(super) fn tag_file(tag: &Tag) -> String {
    let text = tag.as_str().as_bytes();
    let mut name = String::with_capacity(text.len() + 8);
    for run in text.chunk_by(|a, b| a.is_ascii_uppercase() == b.is_ascii_uppercase()) {
        let upper = run.first().is_some_and(u8::is_ascii_uppercase);
        let (before, after) = match (upper, run.len()) {
            (false, _) => ("", ""),
            (true, 1) => ("!", ""),
            (true, _) => ("~", "~"),
        };
        name.push_str(before);
        name.extend(run.iter().map(|b| char::from(b.to_ascii_lowercase())));
        name.push_str(after);
    }
    name
}

/// The tag that a file of `_tags/` stands for; none, if the store did not write this name.
pub(super) fn tag_of_file(name: &str) -> Option<Tag> {
    let mut text = String::with_capacity(name.len());
    let (mut next, mut run) = (false, false);
    for character in name.chars() {
        match character {
            '!' => next = true,
            '~' => run = !run,
            _ if next || run => {
                text.push(character.to_ascii_uppercase());
                next = false;
            }
            _ => text.push(character),
        }
    }
    let tag: Tag = text.parse().ok()?;
    (tag_file(&tag) == name).then_some(tag)
}

/// Whether a path is one of [`tag`].
pub(super) fn is_tag(path: &Path) -> bool {
    path.parent().is_some_and(|parent| parent.ends_with("_tags"))
}

/// Upstream, repository and tag of a path of [`tag`].
pub(super) fn parse_tag(path: &Path) -> Option<(UpstreamName, RepoName, Tag)> {
    let (up, rest) = split_ref(path)?;
    let [repo @ .., "_tags", tag] = rest.as_slice() else { return None };
    Some((up, repo.join("/").parse().ok()?, tag_of_file(tag)?))
}

/// Upstream of a path below its directory, and what follows. None where the upstream's name is too long to be the directory's.
fn split_ref(path: &Path) -> Option<(UpstreamName, Vec<&str>)> {
    let mut parts = path.strip_prefix(REFS).ok()?.iter().map(|part| part.to_str());
    let up = parts.next()??.parse().ok()?;
    Some((up, parts.collect::<Option<_>>()?))
}

/// The digest of a path of [`link`].
pub(super) fn parse_link(path: &Path) -> Option<Digest> {
    let mut parts = path.iter().rev().map(|part| part.to_str());
    let (hex, algorithm, links) = (parts.next()??, parts.next()??, parts.next()??);
    let algorithm = Algorithm::ALL.into_iter().find(|a| a.as_str() == algorithm)?;
    if links == "_links" { Digest::from_parts(algorithm, hex).ok() } else { None }
}

/// Upstream, repository and digest of a path of [`link`].
pub(super) fn parse_whole_link(path: &Path) -> Option<(UpstreamName, RepoName, Digest)> {
    let digest = parse_link(path)?;
    let (up, rest) = split_ref(path)?;
    let [repo @ .., "_links", _, _] = rest.as_slice() else { return None };
    Some((up, repo.join("/").parse().ok()?, digest))
}

/// An upstream's name may be longer (259) than a file's name; `~` cannot stand in one, so nothing collides.
fn short_name(name: &str) -> String {
    if name.len() <= LONG_NAME {
        return name.to_owned();
    }
    let start: String = name.chars().take(LONG_NAME - 70).collect();
    format!("{start}~{}", Digest::of(Algorithm::Sha256, name.as_bytes()).hex())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn tags_that_differ_by_case_get_different_names_on_any_volume() {
        let name = |t: &str| tag_file(&t.parse().unwrap());
        assert_eq!(name("3.20"), "3.20");
        assert_eq!(name("V1"), "!v1");
        assert_eq!(name("RC1-Beta"), "~rc~1-!beta");
        let all = ["latest", "Latest", "LATEST", "LAtest", "lAtest", "LaTeSt"].map(name);
        let distinct: std::collections::HashSet<_> = all.iter().map(|n| n.to_lowercase()).collect();
        assert_eq!(distinct.len(), all.len(), "{all:?}");
    }

    #[test]
    fn the_longest_names_fit() {
        for tag in ["A".repeat(128), "Aa".repeat(64), "AAa".repeat(42), "AAAa".repeat(32)] {
            assert!(tag_file(&tag.parse().unwrap()).len() <= 214, "{tag}");
        }
        let long: UpstreamName = "a".repeat(259).parse().unwrap();
        let other: UpstreamName = format!("{}b", "a".repeat(258)).parse().unwrap();
        assert!(upstream(&long).file_name().unwrap().len() <= 255);
        assert_ne!(upstream(&long), upstream(&other));
        let digest = Digest::of(Algorithm::Sha512, b"");
        let name = format!("referrers-sha512-{}", digest.hex());
        let path = list(&long, &"a".parse().unwrap(), &name, &"q".repeat(5000));
        assert!(path.file_name().unwrap().len() <= 255);
    }

    #[test]
    fn queries_with_separators_stay_one_name() {
        let (up, repo) = ("u".parse().unwrap(), "r".parse().unwrap());
        for query in ["last=../../x", "a/b", "N=1", "n=1%2f"] {
            let path = list(&up, &repo, "tags", query);
            assert_eq!(path.parent(), Some(Path::new("refs/u/r/_lists")), "{query}");
        }
        assert_eq!(list(&up, &repo, "tags", "n=5"), Path::new("refs/u/r/_lists/tags~n=5"));
    }

    #[test]
    fn a_layout_is_made_once_and_a_newer_one_refused() {
        let root = tempfile::tempdir().unwrap();
        let disk = Disk::open(root.path()).unwrap();
        prepare(&disk).unwrap();
        prepare(&disk).unwrap();
        assert_eq!(std::fs::read_to_string(root.path().join("VERSION")).unwrap(), "1\n");
        assert!(root.path().join("blobs/sha512").is_dir());
        for (name, torn) in [("VERSION", ""), ("VERSION", "\0\0"), ("oci-layout", "{\"image"), ("CACHEDIR.TAG", "")] {
            let path = root.path().join(name);
            let whole = std::fs::read(&path).unwrap();
            std::fs::write(&path, torn).unwrap();
            prepare(&disk).unwrap();
            assert_eq!(std::fs::read(&path).unwrap(), whole, "{name} was torn by a power cut");
        }
        for newer in ["2\n", "7-beta"] {
            std::fs::write(root.path().join("VERSION"), newer).unwrap();
            let error = prepare(&disk).unwrap_err();
            assert!(error.to_string().contains(newer.trim()), "{error}");
        }
    }

    #[test]
    fn a_directory_with_other_files_is_refused_and_stays_as_it_is() {
        for other in ["thesis.odt", "private/key", "blobs/sha256/x", "blobs/x", ".git/config", "index.json"] {
            let root = tempfile::tempdir().unwrap();
            let path = root.path().join(other);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, "").unwrap();
            let options = crate::store::StoreOptions {
                root: root.path().to_owned(),
                capacity: crate::config::Capacity::Bytes(1 << 30),
                durability: crate::config::Durability::Strict,
                keep: crate::store::Keep::default(),
                origins: Vec::new(),
                clock: crate::clock::twin::system(),
            };
            let error = crate::store::Store::open(options, crate::metrics::Metrics::new().unwrap()).unwrap_err();
            assert!(error.to_string().contains("--root"), "{other}: {error}");
            assert!(error.to_string().contains(root.path().to_str().unwrap()), "{other}: {error}");
            assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 1, "nothing is made beside {other}");
        }
    }

    #[test]
    fn an_interrupted_first_start_and_a_new_volume_are_no_other_files() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("lost+found")).unwrap();
        std::fs::write(root.path().join(LOCK), "").unwrap();
        let disk = Disk::open(root.path()).unwrap();
        prepare(&disk).unwrap();
        std::fs::remove_file(root.path().join("VERSION")).unwrap();
        prepare(&disk).unwrap();
    }

    #[test]
    fn paths_of_refs_are_read_back() {
        let (up, repo): (UpstreamName, RepoName) = ("docker.io".parse().unwrap(), "a/b".parse().unwrap());
        let name: Tag = "V1".parse().unwrap();
        assert_eq!(parse_tag(&tag(&up, &repo, &name)), Some((up.clone(), repo.clone(), name)));
        let digest = Digest::of(Algorithm::Sha512, b"");
        let path = link(&up, &repo, &digest);
        assert_eq!((parse_link(&path), parse_tag(&path)), (Some(digest), None));
        assert_eq!(parse_whole_link(&path), Some((up.clone(), repo.clone(), digest)));
        let long: UpstreamName = ["a"; 130].join(".").parse().unwrap();
        let path = link(&long, &repo, &digest);
        assert_eq!((parse_link(&path), parse_whole_link(&path)), (Some(digest), None), "its name is not in the path");
        assert_eq!(parse_link(&access(&up, &repo)), None);
        let path = map(&digest);
        let name = path.file_name().unwrap().to_str().unwrap();
        assert_eq!(parse_map(name), Some(digest));
        assert!(name.len() <= 255);
        for other in ["map", ".map", "sha256-.map", "sha256-00.map", &name[1..], &name[..name.len() - 1]] {
            assert_eq!(parse_map(other), None, "{other}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(10_000))]
        #[test]
        fn a_tag_survives_its_file_name(text in "[a-zA-Z0-9_][a-zA-Z0-9_.-]{0,127}") {
            let tag: Tag = text.parse().unwrap();
            let name = tag_file(&tag);
            prop_assert!(name.len() <= 214 && name.bytes().all(|b| !b.is_ascii_uppercase() && b != b'/'));
            prop_assert_eq!(tag_of_file(&name), Some(tag));
        }

        #[test]
        fn other_names_are_no_tags(name in "[a-c!~A]{0,8}") {
            if let Some(tag) = tag_of_file(&name) {
                prop_assert_eq!(tag_file(&tag), name);
            }
        }
    }
}
