//! Rot: files in `blobs/` damaged while the daemon stands still or runs, with upstream there or away. No complete answer
//! is wrong, the bad file is set aside, and the content is fetched anew.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::Instant;

use bytes::Bytes;
use fastrand::Rng;
use futures_util::future::join_all;

use crate::common::content::{blob, sha256};
use crate::common::invariants::{blob_path, check, check_books};
use crate::common::{Ask, Cistern, Upstream};
use crate::options::Options;
use crate::report::Report;

/// Sizes of the blobs: less than a block, of one buffer, and more than is read at once.
const SIZES: [usize; 5] = [1, 700, 65_536, 200_000, 1_500_000];
/// Blobs that are damaged at a time.
const AT_ONCE: usize = 10;
const PATIENCE: Duration = Duration::from_secs(30);

type Way = (&'static str, fn(&Path, &Path, &mut Rng));

/// What becomes of a file, given another one.
const WAYS: [Way; 7] = [
    ("a byte flipped", |path, _, rng| {
        let file = fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
        let at = rng.u64(..file.metadata().unwrap().len());
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ (1 << rng.u8(..8))], at).unwrap();
    }),
    ("truncated", |path, _, rng| {
        let file = fs::OpenOptions::new().write(true).open(path).unwrap();
        let length = file.metadata().unwrap().len();
        file.set_len(rng.u64(..length)).unwrap();
    }),
    ("extended", |path, _, rng| {
        let file = fs::OpenOptions::new().write(true).open(path).unwrap();
        let length = file.metadata().unwrap().len();
        file.set_len(length + rng.u64(1..5000)).unwrap();
    }),
    ("a hole in it", |path, _, rng| {
        let file = fs::OpenOptions::new().write(true).open(path).unwrap();
        let at = rng.u64(..file.metadata().unwrap().len());
        let hole = vec![0; (file.metadata().unwrap().len() - at).min(4096) as usize];
        file.write_all_at(&hole, at).unwrap();
    }),
    ("swapped with another", |path, other, _| {
        let aside = path.with_extension("aside");
        fs::rename(path, &aside).unwrap();
        fs::rename(other, path).unwrap();
        fs::rename(&aside, other).unwrap();
    }),
    ("a link to another", |path, other, _| {
        fs::remove_file(path).unwrap();
        symlink(other, path).unwrap();
    }),
    ("removed", |path, _, _| fs::remove_file(path).unwrap()),
];

pub async fn run(options: &Options) -> Result<bool, String> {
    let mut report = Report::new("rot", options.seed, &options.text);
    damages(&mut report, options.seed, options.count("damages")).await;
    Ok(report.end())
}

pub async fn damages(report: &mut Report, seed: u64, count: u64) {
    let mut rng = Rng::with_seed(seed);
    let upstream = Upstream::start().await;
    let mut blobs: Vec<Bytes> = Vec::new();
    while blobs.len() < 30 {
        let bytes = blob(rng.u64(..), SIZES[blobs.len() % SIZES.len()]);
        // Of one byte there are soon two alike, which are one file: what is done to it would be counted to one of them.
        if !blobs.contains(&bytes) {
            blobs.push(bytes);
        }
    }
    for bytes in &blobs {
        upstream.blob("app", bytes);
    }
    let mut cistern = Cistern::start(&upstream, "tags = \"immutable\"\npublic_for = \"1h\"").await;
    let mut done = 0;
    while done < count {
        join_all(blobs.iter().map(|bytes| cistern.get(target(bytes)))).await;
        cistern.settle().await;
        let stopped = rng.bool();
        let away = rng.u8(..4) == 0;
        if stopped {
            cistern.stop().await;
        }
        let mut order: Vec<usize> = (0..blobs.len()).collect();
        rng.shuffle(&mut order);
        let mut hurt = BTreeSet::new();
        let mut case = format!("stopped {stopped}, upstream away {away}:");
        for pair in order.chunks(2).take(AT_ONCE.min((count - done) as usize)) {
            let (name, damage) = WAYS[rng.usize(..WAYS.len())];
            let (path, other) = (file_of(&cistern, &blobs[pair[0]]), file_of(&cistern, &blobs[pair[1]]));
            damage(&path, &other, &mut rng);
            hurt.insert(pair[0]);
            case += &format!(" {name} ({} bytes)", blobs[pair[0]].len());
            if name.starts_with("swapped") {
                hurt.insert(pair[1]);
            }
            done += 1;
            report.count("damages", 1);
        }
        if away {
            upstream.down();
        }
        if stopped {
            cistern.start_again().await;
        }
        let answers = join_all(blobs.iter().map(|bytes| ask(&cistern, bytes, !stopped))).await;
        for (n, (wrong, served)) in answers.into_iter().enumerate() {
            report.violations(&case, wrong);
            // What is sound is served. Of what is not, a running daemon may break off one transfer.
            if !served && !hurt.contains(&n) {
                report.violation(&case, &format!("a sound blob of {} bytes is not served", blobs[n].len()));
            }
        }
        upstream.up();
        for bytes in &blobs {
            let began = Instant::now();
            while !cistern.get(target(bytes)).await.complete() {
                if began.elapsed() > PATIENCE {
                    report.violation(&case, &format!("a blob of {} bytes is not mended", bytes.len()));
                    break;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        check(&cistern).await;
        check_books(&cistern).await;
        report.most("quarantined", cistern.metric("ocistern_corrupt_blobs_total", &[]).await);
    }
    cistern.stop().await;
}

fn target(bytes: &Bytes) -> String {
    format!("/v2/app/blobs/{}", sha256(bytes))
}

fn file_of(cistern: &Cistern, bytes: &Bytes) -> PathBuf {
    blob_path(cistern, &sha256(bytes))
}

/// Asks for it in every form: what is wrong in the answers, and whether the last one was whole.
async fn ask(cistern: &Cistern, bytes: &Bytes, _running: bool) -> (Vec<String>, bool) {
    let (target, digest) = (target(bytes), sha256(bytes));
    let mut wrong = Vec::new();
    let mut served = false;
    for ask in [Ask::get(&target).with("range", "bytes=0-"), Ask::get(&target).http2(), Ask::get(&target)] {
        let got = cistern.send(ask).await;
        let whole = got.complete() || got.status == 206 && got.cut.is_none() && got.length >= bytes.len() as u64;
        if whole && got.digest != digest {
            wrong.push(format!("{target}: a wrong complete answer: {}", got.summary()));
        }
        served = got.complete();
    }
    (wrong, served)
}
