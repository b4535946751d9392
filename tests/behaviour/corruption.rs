//! Rot on the disk: whatever becomes of a file in the store, no complete answer is ever wrong.

use std::fs;
use std::os::unix::fs::{FileExt, symlink};
use std::path::Path;

use crate::common::content::{blob, image, sha256};
use crate::common::invariants::{blob_path, check, check_blobs, files};
use crate::common::{Ask, Cistern, Upstream, acts, clock};
use bytes::Bytes;
use ocistern::oci::Digest;

/// Small, of one buffer, and larger than what is read at once.
const SIZES: [usize; 3] = [700, 65_536, 1_500_000];

type Damage = fn(&Path, &Path);

/// What may happen to a file, given another file of the store of the same size.
const DAMAGES: [(&str, Damage); 8] = [
    ("the first byte flipped", |path, _| flip(path, 0)),
    ("a byte in the middle flipped", |path, _| flip(path, fs::metadata(path).unwrap().len() / 2)),
    ("the last byte flipped", |path, _| flip(path, fs::metadata(path).unwrap().len() - 1)),
    ("truncated", |path, _| resize(path, -1)),
    ("emptied", |path, _| fs::OpenOptions::new().write(true).open(path).unwrap().set_len(0).unwrap()),
    ("extended", |path, _| resize(path, 1)),
    ("swapped with another", |path, other| {
        let aside = path.with_extension("aside");
        fs::rename(path, &aside).unwrap();
        fs::rename(other, path).unwrap();
        fs::rename(&aside, other).unwrap();
    }),
    ("a link to another", |path, other| {
        fs::remove_file(path).unwrap();
        symlink(other, path).unwrap();
    }),
];

fn flip(path: &Path, at: u64) {
    let file = fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 0x40], at).unwrap();
}

fn resize(path: &Path, by: i64) {
    let file = fs::OpenOptions::new().write(true).open(path).unwrap();
    let length = file.metadata().unwrap().len();
    file.set_len(length.saturating_add_signed(by)).unwrap();
}

/// A store with two blobs of the same size, and where they lie.
async fn stored(size: usize) -> (Cistern, Upstream, [(Bytes, Digest, String); 2]) {
    let upstream = Upstream::start().await;
    let cistern = Cistern::start(&upstream, "").await;
    let mut both = Vec::new();
    for seed in 0..2 {
        let bytes = blob(seed + size as u64 * 10, size);
        let digest = upstream.blob("app", &bytes);
        let target = format!("/v2/app/blobs/{digest}");
        cistern.get(&target).await.assert_is(&bytes);
        both.push((bytes, digest, target));
    }
    cistern.settle().await;
    (cistern, upstream, both.try_into().unwrap())
}

/// Whatever way it is asked for, a complete answer is the right one.
async fn never_wrong(what: &str, cistern: &Cistern, bytes: &Bytes, target: &str) {
    for ask in [Ask::get(target), Ask::get(target).http2()] {
        let got = cistern.send(ask).await;
        assert!(!got.complete() || got.digest == sha256(bytes), "{what}: a wrong complete answer: {}", got.summary());
        let covering = cistern.send(Ask::get(target).with("range", "bytes=0-")).await;
        let whole = covering.status == 206 && covering.cut.is_none() && covering.length >= bytes.len() as u64;
        assert!(!whole || covering.digest == sha256(bytes), "{what}: a wrong covering range: {}", covering.summary());
    }
}

/// Side by side, because a dead upstream is tried a few times before it is given up.
#[tokio::test]
async fn damage_while_stopped_is_found_and_mended() {
    let _warp = clock::warp();
    let cases = DAMAGES.iter().flat_map(|damage| SIZES.map(|size| (damage, size)));
    futures_util::future::join_all(cases.map(|(&(what, damage), size)| damaged_while_stopped(what, damage, size)))
        .await;
}

async fn damaged_while_stopped(what: &str, damage: Damage, size: usize) {
    let (mut cistern, upstream, [(bytes, digest, target), (other, other_digest, other_target)]) = stored(size).await;
    cistern.stop().await;
    damage(&blob_path(&cistern, &digest), &blob_path(&cistern, &other_digest));
    upstream.down();
    cistern.start_again().await;
    for (bytes, target) in [(&bytes, &target), (&other, &other_target)] {
        never_wrong(what, &cistern, bytes, target).await;
    }
    upstream.up();
    for (bytes, target) in [(&bytes, &target), (&other, &other_target)] {
        crate::common::eventually("it is fetched again", || async { cistern.get(target).await.complete() }).await;
        cistern.get(target).await.assert_is(bytes);
    }
    check(&cistern).await;
}

/// As after a power cut where nothing was synced one by one: the file is there without its content, and its link is not.
#[tokio::test]
async fn a_file_without_content_and_link_is_fetched_anew() {
    for head in [false, true] {
        let (mut cistern, _upstream, [(bytes, digest, target), _]) = stored(65_536).await;
        cistern.stop().await;
        fs::OpenOptions::new().write(true).open(blob_path(&cistern, &digest)).unwrap().set_len(0).unwrap();
        for path in files(&cistern.root().join("refs")) {
            if path.file_name().is_some_and(|name| name.to_str() == Some(&digest.hex())) {
                fs::remove_file(path).unwrap();
            }
        }
        cistern.start_again().await;
        if head {
            let got = cistern.send(Ask::head(&target)).await;
            assert_eq!((got.status, got.header("content-length")), (200, "65536"), "{got:?}");
        }
        cistern.get(&target).await.assert_is(&bytes);
        check(&cistern).await;
    }
}

/// Nothing can be held back of an answer without bytes.
#[tokio::test]
async fn an_upstream_that_sends_nothing_for_something_is_no_answer() {
    let upstream = Upstream::start().await;
    let cistern = Cistern::start(&upstream, "").await;
    let bytes = blob(1, 1000);
    let target = format!("/v2/app/blobs/{}", upstream.blob("app", &bytes));
    upstream.script("GET", &target, .., acts::answer(200, "application/octet-stream", ""));
    for ask in [Ask::get(&target), Ask::get(&target).http2()] {
        let got = cistern.send(ask).await;
        assert!(got.status == 502 || !got.complete(), "{}", got.summary());
    }
    upstream.unscript();
    cistern.get(&target).await.assert_is(&bytes);
    let empty = format!("/v2/app/blobs/{}", upstream.blob("app", &Bytes::new()));
    cistern.get(&empty).await.assert_is(&Bytes::new());
    check(&cistern).await;
}

#[tokio::test]
async fn damage_while_running_is_found_and_mended() {
    let _warp = clock::warp();
    for (what, damage) in DAMAGES {
        for size in SIZES {
            let (cistern, upstream, [(bytes, digest, target), (other, other_digest, other_target)]) =
                stored(size).await;
            damage(&blob_path(&cistern, &digest), &blob_path(&cistern, &other_digest));
            for (bytes, target) in [(&bytes, &target), (&other, &other_target)] {
                never_wrong(what, &cistern, bytes, target).await;
                crate::common::eventually("it is fetched again", || async { cistern.get(target).await.complete() })
                    .await;
                cistern.get(target).await.assert_is(bytes);
            }
            assert!(upstream.count("GET", &target) >= 2, "{what}: it was fetched again");
            check(&cistern).await;
        }
    }
}

#[tokio::test]
async fn damage_is_counted_and_set_aside() {
    let _warp = clock::warp();
    let (cistern, _upstream, [(bytes, digest, target), _]) = stored(50_000).await;
    assert_eq!(cistern.metric("ocistern_corrupt_blobs_total", &[]).await, 0);
    flip(&blob_path(&cistern, &digest), 100);
    crate::common::eventually("it is mended", || async { cistern.get(&target).await.complete() }).await;
    cistern.get(&target).await.assert_is(&bytes);
    assert!(cistern.metric("ocistern_corrupt_blobs_total", &[]).await >= 1);
    assert!(!files(&cistern.root().join("quarantine")).is_empty(), "the bad file is kept for inspection");
    check_blobs(cistern.root());
}

#[tokio::test]
async fn with_upstream_away_damage_is_an_error_or_a_broken_transfer() {
    let _warp = clock::warp();
    for size in SIZES {
        let (cistern, upstream, [(bytes, digest, target), (other, _, other_target)]) = stored(size).await;
        upstream.down();
        flip(&blob_path(&cistern, &digest), 5);
        for _ in 0..3 {
            let got = cistern.get(&target).await;
            assert!(!got.complete(), "a complete answer of damaged bytes: {}", got.summary());
            assert!(got.cut.is_some() || got.status >= 500, "{}", got.summary());
        }
        cistern.get(&other_target).await.assert_is(&other);
        upstream.up();
        crate::common::eventually("it is mended", || async { cistern.get(&target).await.complete() }).await;
        cistern.get(&target).await.assert_is(&bytes);
    }
}

#[tokio::test]
async fn a_damaged_manifest_is_never_served() {
    let _warp = clock::warp();
    let upstream = Upstream::start().await;
    let image = image(1);
    upstream.image("app", "1.0", &image);
    let mut cistern = Cistern::start(&upstream, "").await;
    let targets = ["/v2/app/manifests/1.0".to_owned(), format!("/v2/app/manifests/{}", image.digest)];
    for target in &targets {
        cistern.get(target).await.assert_is(&image.manifest);
        cistern.settle().await;
        flip(&blob_path(&cistern, &image.digest), 10);
        upstream.down();
        // What is in memory is still the right one.
        cistern.get(target).await.assert_is(&image.manifest);
        // And the memory does not survive a restart.
        cistern.restart().await;
        for _ in 0..2 {
            let got = cistern.get(target).await;
            assert!(!got.complete(), "a damaged manifest was served: {}", got.summary());
        }
        upstream.up();
        crate::common::eventually("it is mended", || async { cistern.get(target).await.complete() }).await;
        cistern.get(target).await.assert_is(&image.manifest);
        cistern.settle().await;
    }
    check(&cistern).await;
}

#[tokio::test]
async fn a_file_cut_short_under_a_reader_breaks_the_transfer_and_nothing_else() {
    let _warp = clock::warp();
    let (cistern, _upstream, [(bytes, digest, target), (other, _, other_target)]) = stored(12_000_000).await;
    for ask in [Ask::get(&target), Ask::get(&target).http2()] {
        let mut live = cistern.client().open(ask).await.unwrap();
        live.read_to(10_000).await;
        let path = blob_path(&cistern, &digest);
        fs::OpenOptions::new().write(true).open(path).unwrap().set_len(20_000).unwrap();
        let got = live.finish().await;
        assert!(!got.complete() || got.digest == digest, "{}", got.summary());
        cistern.get(&other_target).await.assert_is(&other);
        crate::common::eventually("it is mended", || async { cistern.get(&target).await.complete() }).await;
        cistern.get(&target).await.assert_is(&bytes);
        cistern.settle().await;
    }
}

#[tokio::test]
async fn a_removed_file_is_fetched_again() {
    let _warp = clock::warp();
    let (cistern, upstream, [(bytes, digest, target), _]) = stored(10_000).await;
    fs::remove_file(blob_path(&cistern, &digest)).unwrap();
    cistern.get(&target).await.assert_is(&bytes);
    cistern.settle().await;
    assert_eq!(upstream.count("GET", &target), 2);
    // And all of them at once, with their directory.
    fs::remove_dir_all(cistern.root().join("blobs/sha256")).unwrap();
    cistern.get(&target).await.assert_is(&bytes);
    check(&cistern).await;
}

#[tokio::test]
async fn strangers_files_in_the_store_do_no_harm() {
    let _warp = clock::warp();
    let (mut cistern, _upstream, [(bytes, _, target), _]) = stored(10_000).await;
    cistern.stop().await;
    let blobs = cistern.root().join("blobs/sha256");
    fs::create_dir(blobs.join("lost+found")).unwrap();
    fs::write(cistern.root().join("blobs/README"), "x").unwrap();
    fs::create_dir_all(cistern.root().join("refs/up/x/_tags/y")).unwrap();
    fs::write(cistern.root().join("fills").join("leftover-of-a-dead-daemon"), "x").unwrap();
    let absent = blob(9, 300);
    fs::create_dir(blobs.join(sha256(&absent).hex())).unwrap();
    cistern.start_again().await;
    cistern.get(&target).await.assert_is(&bytes);
    let directory = cistern.get(format!("/v2/app/blobs/{}", sha256(&absent))).await;
    assert!(directory.status >= 400, "{}", directory.summary());
    assert!(!blobs.join(sha256(&absent).hex()).exists(), "it is set aside");
}

#[tokio::test]
async fn head_of_a_damaged_file_tells_the_right_length() {
    let (mut cistern, _upstream, [(bytes, digest, target), _]) = stored(65_536).await;
    cistern.stop().await;
    resize(&blob_path(&cistern, &digest), -1);
    cistern.start_again().await;
    let got = cistern.head(&target).await;
    assert_eq!((got.status, got.header("content-length")), (200, bytes.len().to_string().as_str()));
}

/// What is no file under a blob's name is found by the first who asks, and is in nobody's way after that.
#[tokio::test]
async fn what_is_no_file_is_set_aside_by_the_read_that_finds_it() {
    type Make = fn(&Path);
    let cases: [(&str, Make); 3] = [
        ("a directory", |path| fs::create_dir(path).unwrap()),
        ("a full directory", |path| fs::create_dir_all(path.join("a/b")).unwrap()),
        ("a link", |path| symlink("/dev/null", path).unwrap()),
    ];
    for (what, make) in cases {
        let (cistern, _upstream, [(bytes, digest, target), _]) = stored(1_500_000).await;
        let path = blob_path(&cistern, &digest);
        fs::remove_file(&path).unwrap();
        make(&path);
        let first = cistern.get(&target).await;
        first.assert_is(&bytes);
        assert_eq!(first.header("cache-status"), "ocistern; fwd=miss; stored", "{what}");
        cistern.settle().await;
        let second = cistern.get(&target).await;
        second.assert_is(&bytes);
        assert_eq!(second.header("cache-status"), "ocistern; hit", "{what}");
        assert_eq!(cistern.metric("ocistern_corrupt_blobs_total", &[]).await, 1, "{what}");
        assert_eq!(fs::read_dir(cistern.root().join("quarantine")).unwrap().count(), 1, "{what}");
        check(&cistern).await;
    }
}
