//! What holds after every case, whatever went wrong in it.

use std::fs;
use std::path::{Path, PathBuf};

use ocistern::oci::{Algorithm, Digest};

use super::cistern::Cistern;
use super::clock::eventually;
use super::upstream::Upstream;

/// Text that no upstream may ever see but the one it belongs to.
const CANARY: &str = "CANARY";

/// Every file in `blobs/` hashes to its name, no partial download is left once the fills have settled, and nothing was
/// written outside of the root.
pub async fn check(cistern: &Cistern) {
    cistern.settle().await;
    check_blobs(cistern.root());
    eventually("no stray file in fills/", || async { files(&cistern.root().join("fills")).is_empty() }).await;
    let strays = cistern.strays();
    assert!(strays.is_empty(), "written outside of the root: {strays:?}");
}

/// Every file in `blobs/` hashes to its name.
pub fn check_blobs(root: &Path) {
    for algorithm in Algorithm::ALL {
        for path in files(&root.join("blobs").join(algorithm.as_str())) {
            let name = path.file_name().unwrap().to_str().unwrap();
            let expected = Digest::from_parts(algorithm, name).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            // It may be evicted or quarantined between the two looks.
            let Ok(bytes) = fs::read(&path) else { continue };
            assert_eq!(Digest::of(algorithm, &bytes), expected, "a file in blobs/ does not hash to its name");
        }
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
