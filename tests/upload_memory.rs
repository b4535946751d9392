//! What an upload costs in memory: alone in its process, because it looks at the memory of the whole.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "test code")]

mod common;

use common::content::blob;
use common::invariants::is_stored;
use common::upstream::{Cut, Then};
use common::{Ask, Cistern, Upstream};
use ocistern::oci::{Algorithm, Hasher};

const PIECE: usize = 1 << 20;
const PIECES: usize = 64;
/// What 64 MiB on their way, and on their way once more, may add.
const ALLOWED: u64 = 24 << 20;

fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<u64>().unwrap() * 1024
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_is_not_held_in_memory() {
    let upstream = Upstream::start().await;
    upstream.registry(|registry| registry.swallow = true);
    // The second half is sent while the first one is replayed.
    upstream.take_in("PUT", "*", 0..1, (PIECE * PIECES / 2) as u64, Then::Cut(Cut::Reset));
    let cistern = Cistern::start(&upstream, "").await;
    let piece = blob(1, PIECE);
    let mut hasher = Hasher::new(Algorithm::Sha256);
    for _ in 0..PIECES {
        hasher.update(&piece);
    }
    let digest = hasher.finish();
    let begun = cistern.send(Ask::post("/v2/app/blobs/uploads/")).await;
    let close = format!("{}?digest={digest}", begun.header("location"));
    let before = peak();
    let length = (PIECE * PIECES).to_string();
    let sending = cistern.client().stream(Ask::put(close).with("content-length", &length));
    for _ in 0..PIECES {
        assert!(sending.send(piece.clone()).await);
    }
    let got = sending.finish().await;
    assert_eq!(got.status, 201, "{}: {:?}", got.summary(), got.body);
    let grown = peak() - before;
    assert!(grown < ALLOWED, "{} MiB for an upload of {PIECES} MiB", grown >> 20);
    assert_eq!(upstream.count("POST", "*"), 2, "it was replayed");
    assert!(is_stored(&cistern, &digest));
}
