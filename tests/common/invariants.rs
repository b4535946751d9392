//! What holds after every case, whatever went wrong in it.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ocistern::oci::{Algorithm, Digest};

use super::cistern::Cistern;
use super::clock::eventually;
use super::upstream::Upstream;

/// Text that no upstream may ever see but the one it belongs to.
const CANARY: &str = "CANARY";

/// Files of a store as they were at one moment, with the time of their last change.
#[derive(Debug, Default, Clone)]
pub struct Seen {
    files: BTreeMap<PathBuf, (SystemTime, Option<Vec<u8>>)>,
    at: Option<SystemTime>,
}

/// What is left of a fill: a map, the file that it names, and the bytes that this takes.
#[derive(Debug)]
pub struct Partial {
    pub map: PathBuf,
    pub file: PathBuf,
    pub bytes: u64,
    pub digest: Digest,
    /// Which bytes of the blob the map says are in the file.
    pub present: Vec<(u64, u64)>,
    /// Since when the map has its name.
    pub published: SystemTime,
}

/// Every file in `blobs/` hashes to its name, once the fills have settled nothing of them is left but what can be gone on
/// with, and nothing was written outside of the root.
pub async fn check(cistern: &Cistern) {
    cistern.settle().await;
    check_blobs(cistern.root());
    eventually("no stray file", || async { strays(cistern.root()).is_empty() }).await;
    let strays = cistern.strays();
    assert!(strays.is_empty(), "written outside of the root: {strays:?}");
}

/// The books of a server in this process agree with the disk, and it holds no file of the store open.
pub async fn check_books(cistern: &Cistern) {
    let process = i32::try_from(std::process::id()).unwrap();
    eventually("the books agree with the disk, and nothing is held open", || async {
        let metric = |name| cistern.metric(name, &[]);
        let books = (metric("ocistern_store_bytes").await, metric("ocistern_store_blobs").await);
        unrest(cistern.root(), process, metric("ocistern_fills_in_progress").await, books).is_empty()
    })
    .await;
}

/// Every file in `blobs/` hashes to its name.
pub fn check_blobs(root: &Path) {
    let wrong = wrong_blobs(root);
    assert!(wrong.is_empty(), "files in blobs/ do not hash to their names: {wrong:?}");
}

/// The files in `blobs/` that do not hash to their name.
pub fn wrong_blobs(root: &Path) -> Vec<String> {
    let mut wrong = Vec::new();
    for algorithm in Algorithm::ALL {
        for path in files(&root.join("blobs").join(algorithm.as_str())) {
            let name = path.file_name().unwrap().to_str().unwrap();
            // It may be evicted or quarantined between the two looks.
            let Ok(bytes) = fs::read(&path) else { continue };
            match Digest::from_parts(algorithm, name) {
                Ok(expected) if Digest::of(algorithm, &bytes) == expected => {}
                _ => wrong.push(format!("blobs/{}/{name} ({} bytes)", algorithm.as_str(), bytes.len())),
            }
        }
    }
    wrong
}

/// Files that nobody will ever ask for again, when nothing is under way: all in `fills/`, but for what can be gone on with,
/// and temporary ones elsewhere.
pub fn strays(root: &Path) -> Vec<PathBuf> {
    let temporary = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "tmp");
    let known: Vec<PathBuf> = partials(root).into_iter().flat_map(|partial| [partial.map, partial.file]).collect();
    let all = files(root).into_iter().filter(|path| path.starts_with(root.join("fills")) || temporary(path));
    all.filter(|path| !known.contains(path)).collect()
}

/// What is left of fills: each map in `fills/` that is whole, and whose file has all that it claims.
pub fn partials(root: &Path) -> Vec<Partial> {
    let maps = files(&root.join("fills")).into_iter().filter(|path| path.extension().is_some_and(|e| e == "map"));
    maps.filter_map(partial).collect()
}

/// By so much more than its bytes a file may take.
const ROUNDING: u64 = 128 << 10;

fn partial(map: PathBuf) -> Option<Partial> {
    #[derive(serde::Deserialize)]
    struct Envelope<'a> {
        version: u32,
        checksum: String,
        #[serde(borrow)]
        data: &'a serde_json::value::RawValue,
    }
    #[derive(serde::Deserialize)]
    struct Record {
        digest: Digest,
        length: u64,
        file: String,
        present: Vec<(u64, u64)>,
    }

    let bytes = fs::read(&map).ok()?;
    let envelope: Envelope<'_> = serde_json::from_slice(&bytes).ok()?;
    let sum = Digest::of(Algorithm::Sha256, format!("1:{}", envelope.data.get()).as_bytes());
    let Record { digest, length, file, present } = serde_json::from_str(envelope.data.get()).ok()?;
    let name = format!("{}-{}.map", digest.algorithm().as_str(), digest.hex());
    let is_named = map.file_name()? == name.as_str() && Path::new(&file).extension().is_some_and(|e| e == "part");
    let in_order = present.iter().all(|(start, end)| start < end)
        && present.iter().zip(present.iter().skip(1)).all(|((_, end), (next, _))| end < next);
    let (total, end) = (present.iter().map(|(start, end)| end - start).sum(), present.last()?.1);
    let file = map.parent()?.join(file);
    let found = file.metadata().ok()?;
    // Blocks that were taken in advance and not given back count, beyond what file systems round up.
    let taken = found.blocks() * 512;
    let is_right = envelope.version == 1 && sum.hex().starts_with(&envelope.checksum) && envelope.checksum.len() == 32;
    let published = changed(&map.metadata().ok()?);
    (is_right && is_named && in_order && end <= length && found.len() >= end).then(|| Partial {
        map,
        file,
        bytes: if taken > end + ROUNDING { taken } else { taken.clamp(total, end) },
        digest,
        present,
        published,
    })
}

impl Partial {
    /// Whether the file has what the map says, which is of this blob.
    pub fn is_true(&self, blob: &[u8]) -> bool {
        let Ok(file) = fs::read(&self.file) else { return false };
        self.present.iter().all(|(from, to)| {
            let part = usize::try_from(*from).unwrap()..usize::try_from(*to).unwrap();
            blob.get(part.clone()).is_some_and(|right| file.get(part) == Some(right))
        })
    }

    /// Whether it says of all these bytes that they are there.
    pub fn has(&self, wanted: &[(u64, u64)]) -> bool {
        let within = |(from, to): &(u64, u64)| self.present.iter().any(|(start, end)| start <= from && to <= end);
        wanted.iter().all(within)
    }
}

/// When a file got its name, or was changed otherwise.
fn changed(metadata: &fs::Metadata) -> SystemTime {
    let since = Duration::from_secs(metadata.ctime().unsigned_abs());
    UNIX_EPOCH + since + Duration::from_nanos(metadata.ctime_nsec().unsigned_abs())
}

/// What is not at rest or not in agreement, of a store on which nothing is under way: stray files, files of the store that
/// the process holds open, and books that differ from the disk.
pub fn unrest(root: &Path, process: i32, filling: u64, (bytes, blobs): (u64, u64)) -> Vec<String> {
    let mut wrong = Vec::new();
    let (stray, open) = (strays(root), open_files(root, process));
    let left: u64 = partials(root).iter().map(|partial| partial.bytes).sum();
    let (there, files) = (stored_bytes(root) + left, stored(root).len() as u64);
    if filling > 0 {
        wrong.push(format!("{filling} fills run"));
    }
    if !stray.is_empty() {
        wrong.push(format!("stray files {stray:?}"));
    }
    if !open.is_empty() {
        wrong.push(format!("files held open {open:?}"));
    }
    if bytes != there || blobs != files {
        wrong.push(format!("the books have {bytes} bytes in {blobs} blobs, the disk {there} in {files}"));
    }
    wrong
}

/// Files with content that a process has open below the root: refs and what is being filled, removed ones included, and blobs
/// that were removed. Others it keeps open for a second or two after they were read.
pub fn open_files(root: &Path, process: i32) -> Vec<PathBuf> {
    let Ok(all) = fs::read_dir(format!("/proc/{process}/fd")) else { return Vec::new() };
    let links = all.flatten().filter_map(|entry| fs::read_link(entry.path()).ok());
    let content = |path: &PathBuf| {
        let below = path.strip_prefix(root).ok();
        let is_read = below.is_some_and(|below| below.starts_with("blobs")) && path.exists();
        !is_read
            && below.is_some_and(|below| {
                ["blobs", "refs", "fills", "quarantine"].iter().any(|part| below.starts_with(part))
            })
    };
    links.filter(content).collect()
}

/// Bytes of the files in `blobs/`.
pub fn stored_bytes(root: &Path) -> u64 {
    files(&root.join("blobs")).iter().filter_map(|file| Some(file.metadata().ok()?.len())).sum()
}

/// The files in `blobs/` by the digests that they are named after.
pub fn stored(root: &Path) -> Vec<Digest> {
    let of = |algorithm: Algorithm| {
        let names = files(&root.join("blobs").join(algorithm.as_str())).into_iter();
        names.filter_map(move |path| Digest::from_parts(algorithm, path.file_name()?.to_str()?).ok())
    };
    Algorithm::ALL.into_iter().flat_map(of).collect()
}

impl Seen {
    /// What is published now: blobs by their names, tags and links with their content.
    pub fn now(root: &Path) -> Self {
        let mut seen = BTreeMap::new();
        for path in files(&root.join("blobs")).into_iter().chain(files(&root.join("refs"))) {
            let Ok(metadata) = path.metadata() else { continue };
            let below = path.strip_prefix(root).unwrap().to_owned();
            let small = below.iter().any(|part| part == "_tags" || part == "_links");
            if small || below.starts_with("blobs") {
                let content = if small { fs::read(&path).ok() } else { None };
                seen.insert(below, (changed(&metadata), content));
            }
        }
        Self { files: seen, at: Some(super::clock::wall()) }
    }

    /// How many files it has.
    pub fn len(&self) -> usize {
        self.files.len()
    }

    /// When this was; none: nothing was looked at.
    pub fn at(&self) -> Option<SystemTime> {
        self.at
    }

    /// How many of these files had not been so then.
    pub fn new_since(&self, earlier: &Self) -> usize {
        self.files.iter().filter(|(path, file)| earlier.files.get(*path) != Some(file)).count()
    }

    /// Those of these files that had been so earlier already.
    pub fn since(mut self, earlier: &Self) -> Self {
        self.files.retain(|path, file| earlier.files.get(path) == Some(file));
        self
    }

    /// Which of these files are gone or other ones; but for those, by path, content and time of the last change, of which that
    /// is to be expected.
    pub fn lost(&self, root: &Path, expected: impl Fn(&Path, &[u8], SystemTime) -> bool) -> Vec<String> {
        let at = self.at.unwrap();
        let lost = self.files.iter().filter(|(path, (_, content))| !is_there(root, path, content.as_deref()));
        lost.filter(|(path, (changed, content))| !expected(path, content.as_deref().unwrap_or_default(), *changed))
            .map(|(path, (changed, content))| {
                let was = String::from_utf8_lossy(content.as_deref().unwrap_or_default()).into_owned();
                let now = fs::read(root.join(path));
                let now = now.map_or_else(|error| error.to_string(), |now| String::from_utf8_lossy(&now).into_owned());
                let old = at.duration_since(*changed).unwrap_or_default();
                format!("{} ({old:?} old): it was {was:.300}, now {now:.300}", path.display())
            })
            .collect()
    }

    /// Since when the file of a blob had its name, if it had it.
    pub fn published(&self, digest: &Digest) -> Option<SystemTime> {
        let path = Path::new("blobs").join(digest.algorithm().as_str()).join(digest.hex());
        self.files.get(&path).map(|(changed, _)| *changed)
    }
}

fn is_there(root: &Path, path: &Path, content: Option<&[u8]>) -> bool {
    match content {
        Some(content) => fs::read(root.join(path)).is_ok_and(|now| now == content),
        None => root.join(path).is_file(),
    }
}

/// The path of a blob in the store.
pub fn blob_path(cistern: &Cistern, digest: &Digest) -> PathBuf {
    let directory = cistern.root().join("blobs").join(digest.algorithm().as_str());
    files(&directory)
        .into_iter()
        .find(|path| path.file_name().is_some_and(|name| name.to_str() == Some(&digest.hex())))
        .unwrap_or_else(|| panic!("{digest} is not in the store"))
}

/// Whether a blob is in the store.
pub fn is_stored(cistern: &Cistern, digest: &Digest) -> bool {
    let directory = cistern.root().join("blobs").join(digest.algorithm().as_str());
    files(&directory).iter().any(|path| path.file_name().is_some_and(|name| name.to_str() == Some(&digest.hex())))
}

/// No secret of one origin reached another: `stranger` saw no credential and no canary.
pub fn check_no_secret(stranger: &Upstream) {
    for entry in stranger.log() {
        let request = &entry.request;
        assert!(request.header("authorization").is_none(), "credentials reached another origin: {request:?}");
        assert!(request.header("cookie").is_none(), "cookies reached another origin: {request:?}");
        let leaked = request.headers.iter().find(|(_, value)| value.contains(CANARY));
        assert!(leaked.is_none(), "a secret reached another origin: {leaked:?}");
        assert!(!String::from_utf8_lossy(&request.body).contains(CANARY), "a secret reached another origin");
    }
}

/// All files below `directory`.
pub fn files(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    entries
        .filter_map(Result::ok)
        .flat_map(|entry| if entry.path().is_dir() { files(&entry.path()) } else { vec![entry.path()] })
        .collect()
}
