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

/// Each corpus, its target and the wrapper for libFuzzer have one name.
macro_rules! replayed {
    ($($name:ident)*) => {
        $(#[test] fn $name() { replay(stringify!($name), targets::$name); })*

        #[test]
        fn every_target_is_replayed() {
            let replayed = [$(stringify!($name)),*];
            for directory in ["fuzz/corpus", "fuzz/fuzz_targets"] {
                for entry in fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(directory)).unwrap() {
                    let path = entry.unwrap().path();
                    let name = path.file_stem().unwrap().to_str().unwrap();
                    assert!(replayed.contains(&name), "{name} of {directory} is not replayed");
                }
            }
        }
    };
}

replayed! {
    route name scope digest range challenge location content_range manifest link redirect seal retry_after bundle
}
