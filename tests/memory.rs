//! What clients that do not read cost: alone in its process, because it looks at the memory of the whole.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "test code")]

mod common;

use std::collections::HashSet;

use common::content::blob;
use common::frames::{DATA, HEADERS, PREFACE, SETTINGS, frame, head};
use common::{Cistern, Upstream};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

const CONNECTIONS: usize = 10;
const STREAMS: u32 = 128;
/// A stream that nobody reads may hold so much on the average, with all that belongs to it, in a debug build.
const PER_STREAM: u64 = 160 * 1024;

/// A connection whose streams all ask for `path` and take one byte of it.
async fn stall(cistern: &Cistern, path: &str) -> TcpStream {
    let mut connection = TcpStream::connect(cistern.client().0).await.unwrap();
    let window = frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 1]);
    let mut opening = [PREFACE, window.as_slice()].concat();
    for stream in 0..STREAMS {
        opening.extend(frame(HEADERS, 5, 2 * stream + 1, &head(path)));
    }
    connection.write_all(&opening).await.unwrap();
    let mut answered = HashSet::new();
    while answered.len() < usize::try_from(STREAMS).unwrap() {
        let mut start = [0; 9];
        connection.read_exact(&mut start).await.unwrap();
        let length = u32::from_be_bytes([0, start[0], start[1], start[2]]);
        connection.read_exact(&mut vec![0; usize::try_from(length).unwrap()]).await.unwrap();
        if start[3] == DATA {
            answered.insert(u32::from_be_bytes([start[5], start[6], start[7], start[8]]));
        }
    }
    connection
}

fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<u64>().unwrap() * 1024
}

#[tokio::test]
async fn streams_that_nobody_reads_cost_little() {
    let upstream = Upstream::start().await;
    let bytes = blob(1, 2 << 20);
    let digest = upstream.blob("app", &bytes);
    let cistern = Cistern::start(&upstream, "").await;
    let path = format!("/v2/app/blobs/{digest}");
    cistern.get(&path).await.assert_is(&bytes);
    cistern.settle().await;
    let before = resident();
    let mut stalled = Vec::new();
    for _ in 0..CONNECTIONS {
        stalled.push(stall(&cistern, &path).await);
    }
    let grown = resident().saturating_sub(before);
    let per_stream = grown / (u64::try_from(CONNECTIONS).unwrap() * u64::from(STREAMS));
    assert!(per_stream < PER_STREAM, "{per_stream} bytes for each of the streams, {} MiB in all", grown >> 20);
    cistern.get(&path).await.assert_is(&bytes);
}
