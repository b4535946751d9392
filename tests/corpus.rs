//! Replays the committed fuzz corpora through the fuzz targets' checks, so that a finding stays found without a
//! nightly compiler.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "test code")]

#[path = "../fuzz/targets.rs"]
mod targets;

use std::fs;
use std::path::Path;

fn replay(name: &str, target: fn(&[u8])) {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
    let files: Vec<_> = fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(files.len() >= 5, "the corpus of {name} has gone");
    for file in files {
        let data = fs::read(&file).unwrap();
        target(&data);
        // Cut and flipped at every place it is another input each.
        for at in 0..data.len() {
            target(&data[..at]);
            let mut flipped = data.clone();
            flipped[at] ^= 1 << (at % 8);
            target(&flipped);
        }
    }
}

#[test]
fn route() {
    replay("route", targets::route);
}

#[test]
fn name() {
    replay("name", targets::name);
}

#[test]
fn scope() {
    replay("scope", targets::scope);
}

#[test]
fn digest() {
    replay("digest", targets::digest);
}

#[test]
fn range() {
    replay("range", targets::range);
}

#[test]
fn challenge() {
    replay("challenge", targets::challenge);
}

#[test]
fn location() {
    replay("location", targets::location);
}

#[test]
fn content_range() {
    replay("content_range", targets::content_range);
}
