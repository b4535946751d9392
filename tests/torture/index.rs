//! The index destroyed in every way: it costs the order of eviction, never content, and never the start.

use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::Instant;

use fastrand::Rng;

use crate::common::content::{blob, image_of, sha256};
use crate::common::invariants::{check, check_books, files};
use crate::common::logs::own_lines;
use crate::common::{Cistern, Image, Upstream};
use crate::options::Options;
use crate::report::Report;

/// From the start of the server to its first byte.
const FIRST_BYTE: Duration = Duration::from_secs(2);

/// So many warnings about one damage are enough.
const MOST_SAID: usize = 1;
/// What is said where sled panicked.
const PANICKED: &str = "panicked";

/// What is done to the index in this directory; an older copy of it is in the other one.
type Way = (&'static str, fn(&Path, &Path, &mut Rng));

/// Nothing is done to its files, but somebody else holds sled's lock.
const LOCKED: &str = "locked by somebody else";

const WAYS: [Way; 13] = [
    (LOCKED, |_, _, _| ()),
    ("removed", |index, _, _| fs::remove_dir_all(index).unwrap()),
    ("its files removed", |index, _, _| files(index).iter().for_each(|file| fs::remove_file(file).unwrap())),
    ("truncated", |index, _, rng| {
        each(index, |file| {
            let length = file.metadata().unwrap().len();
            file.set_len(rng.u64(..=length)).unwrap();
        });
    }),
    ("zeroed", |index, _, _| {
        each(index, |file| {
            let length = file.metadata().unwrap().len() as usize;
            file.write_all_at(&vec![0; length], 0).unwrap();
        });
    }),
    ("a snapshot that was being written", |index, _, _| {
        for file in files(index) {
            fs::write(file.parent().unwrap().join("snap.0000000000FFFFFF.generating"), "").unwrap();
        }
    }),
    // Root reads it all the same; then it is a harmless case.
    ("closed to everybody", |index, _, _| {
        for file in files(index) {
            fs::set_permissions(file, fs::Permissions::from_mode(0o000)).unwrap();
        }
        fs::set_permissions(index, fs::Permissions::from_mode(0o000)).unwrap();
    }),
    ("of another format", |index, _, rng| {
        let noise: Vec<u8> = (0..5000).map(|_| rng.u8(..)).collect();
        for file in files(index) {
            fs::write(file, &noise).unwrap();
        }
    }),
    ("a file", |index, _, _| {
        fs::remove_dir_all(index).unwrap();
        fs::write(index, "not a directory").unwrap();
    }),
    ("a pipe in it, which hangs", |index, _, _| {
        for file in files(index) {
            fs::remove_file(&file).unwrap();
            let fifo = rustix::fs::FileType::Fifo;
            rustix::fs::mknodat(rustix::fs::CWD, &file, fifo, rustix::fs::Mode::RWXU, 0).unwrap();
        }
    }),
    ("an older copy", |index, older, _| {
        fs::remove_dir_all(index).unwrap();
        copy(older, index);
    }),
    ("a link elsewhere", |index, older, _| {
        fs::remove_dir_all(index).unwrap();
        std::os::unix::fs::symlink(older, index).unwrap();
    }),
    ("torn: each file of another time", |index, older, rng| {
        for file in files(index) {
            let old = older.join(file.strip_prefix(index).unwrap());
            if rng.bool() && old.exists() {
                fs::copy(old, file).unwrap();
            }
        }
    }),
];

pub async fn run(options: &Options) -> Result<bool, String> {
    let mut report = Report::new("index", options.seed, &options.text);
    damages(&mut report, options.seed, options.count("damages")).await;
    Ok(report.end())
}

/// Every way once, as far as the count goes, and then flipped bits.
pub async fn damages(report: &mut Report, seed: u64, count: u64) {
    let mut rng = Rng::with_seed(seed);
    let upstream = Upstream::start().await;
    let images: Vec<Image> = (0..4)
        .map(|_| image_of(rng.u64(..), vec![blob(rng.u64(..), 20_000), blob(rng.u64(..), 90_000)], None))
        .collect();
    for (n, image) in images.iter().enumerate() {
        upstream.image("app", &format!("v{n}"), image);
    }
    let mut cistern = Cistern::start(&upstream, "tags = \"immutable\"\npublic_for = \"1h\"").await;
    pull(&cistern, &images[..1]).await;
    cistern.settle().await;
    cistern.stop().await;
    let index = cistern.root().join("index");
    let older = tempfile::tempdir().unwrap();
    copy(&index, &older.path().join("index"));
    cistern.start_again().await;
    pull(&cistern, &images).await;
    cistern.settle().await;
    cistern.stop().await;
    let good = tempfile::tempdir().unwrap();
    copy(&index, &good.path().join("index"));
    upstream.down();
    // Until the end: whoever waits for the lock in this process goes on when it is free, and would get in the way of what is
    // done to the index next.
    let mut locked = None;
    for damage in 0..count {
        let mut rng = rng.fork();
        remove(&index);
        copy(&good.path().join("index"), &index);
        let case = match WAYS.get(damage as usize) {
            Some((name, destroy)) => {
                destroy(&index, &older.path().join("index"), &mut rng);
                (*name).to_owned()
            }
            None => flip(&index, &mut rng),
        };
        if case == LOCKED {
            locked = Some(lock(&index));
        }
        let said = own_lines().len();
        let began = Instant::now();
        cistern.start_again().await;
        // Upstream is away: what is not served is lost.
        let wrong = pull(&cistern, &images).await;
        let took = began.elapsed();
        report.violations(&case, wrong);
        report.most("slowest_start_and_pulls_ms", took.as_millis() as u64);
        if cistern.get("/v2/").await.status == 0 || took > FIRST_BYTE * 5 {
            report.violation(&case, &format!("it came up after {took:?}"));
        }
        check(&cistern).await;
        check_books(&cistern).await;
        report.count("index_rebuilds", cistern.metric("ocistern_index_rebuilds_total", &[]).await);
        report.count("damages", 1);
        cistern.stop().await;
        // Of the store alone: on a busy machine a connection may be closed in the middle of an answer by a stop.
        let mut said = own_lines().split_off(said);
        said.retain(|line| line.contains("ocistern::store::"));
        report.count("panics", u64::from(said.iter().any(|line| line.contains(PANICKED))));
        report.most("warnings_about_one_damage", said.len() as u64);
        if said.len() > MOST_SAID {
            report.violation(&case, &format!("{} warnings: {said:?}", said.len()));
        }
        let bad = fs::read_dir(cistern.root()).unwrap().flatten();
        let bad = bad.filter(|entry| entry.file_name().to_string_lossy().starts_with("index.bad")).count();
        report.most("bad_indexes_kept", bad as u64);
        if damage % 50 == 49 {
            report.progress(damage + 1, count);
        }
    }
    drop(locked);
}

/// As another process would; it is free again when this is dropped.
fn lock(index: &Path) -> fs::File {
    let file = fs::File::open(index.join("db")).unwrap();
    rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive).unwrap();
    file
}

/// Everything of these, right; what is not.
async fn pull(cistern: &Cistern, images: &[Image]) -> Vec<String> {
    let mut wrong = Vec::new();
    for (n, image) in images.iter().enumerate() {
        let manifest = (format!("/v2/app/manifests/v{n}"), &image.manifest);
        let parts = image.layers.iter().chain([&image.config]);
        let parts = parts.map(|part| (format!("/v2/app/blobs/{}", sha256(part)), part));
        for (target, bytes) in parts.chain([manifest]) {
            let got = cistern.get(&target).await;
            if !got.complete() || got.digest != sha256(bytes) {
                wrong.push(format!("{target}: {}", got.summary()));
            }
        }
    }
    wrong
}

fn flip(index: &Path, rng: &mut Rng) -> String {
    let all: Vec<PathBuf> = files(index).into_iter().filter(|file| file.metadata().unwrap().len() > 0).collect();
    let path = &all[rng.usize(..all.len())];
    let file = fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    // Most of the file was never written to.
    let bytes = fs::read(path).unwrap();
    let used = bytes.iter().rposition(|byte| *byte != 0).map_or(bytes.len(), |last| last + 1);
    let (at, bit) = (rng.usize(..used), rng.u8(..8));
    file.write_all_at(&[bytes[at] ^ (1 << bit)], at as u64).unwrap();
    format!("bit {bit} of byte {at} of {} flipped", path.strip_prefix(index).unwrap().display())
}

fn each(index: &Path, mut change: impl FnMut(&fs::File)) {
    for path in files(index) {
        change(&fs::OpenOptions::new().read(true).write(true).open(path).unwrap());
    }
}

fn remove(path: &Path) {
    let _ = fs::set_permissions(path, fs::Permissions::from_mode(0o700));
    let _ = fs::remove_file(path);
    let _ = fs::remove_dir_all(path);
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for file in files(from) {
        let below = to.join(file.strip_prefix(from).unwrap());
        fs::create_dir_all(below.parent().unwrap()).unwrap();
        fs::copy(file, below).unwrap();
    }
}
