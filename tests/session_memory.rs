//! What many open uploads cost in memory: alone in its process, because it looks at the memory of the whole.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "test code")]

mod common;

use common::content::blob;
use common::uploading::{UPLOADS, begin, next};
use common::{Ask, Cistern, Upstream};

/// As many as a caller may have.
const MANY: usize = 1024;
const EACH: usize = 64 << 10;
/// For all of them, what the scripted upstream keeps of each request included: less than they carry.
const ALLOWED: u64 = 32 << 20;

fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<u64>().unwrap() * 1024
}

#[tokio::test(flavor = "multi_thread")]
async fn open_uploads_are_not_held_in_memory() {
    // Each has its spool open.
    ocistern::server::raise_limit();
    let upstream = Upstream::start().await;
    upstream.registry(|registry| registry.swallow = true);
    let cistern = Cistern::start(&upstream, "").await;
    let piece = blob(1, EACH);
    let push = async || {
        let location = begin(&cistern, UPLOADS).await;
        let got = cistern.send(Ask::patch(location).body(piece.clone())).await;
        next(&got, 202, "0-65535");
    };
    for _ in 0..20 {
        push().await;
    }
    let before = resident();
    for _ in 20..MANY {
        push().await;
    }
    let grown = resident().saturating_sub(before);
    assert!(grown < ALLOWED, "{} KiB for {MANY} open uploads", grown >> 10);
    assert_eq!(cistern.send(Ask::post(UPLOADS)).await.status, 429, "and more there are not");
    let taken = cistern.metric("ocistern_store_bytes", &[]).await;
    assert!(taken >= (MANY * EACH) as u64, "the spools count: {taken}");
}
