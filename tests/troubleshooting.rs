//! docs/troubleshooting.md is looked up by message: each message that it quotes is one that the program has.
#![allow(clippy::unwrap_used, reason = "a test program")]

use std::path::Path;

/// Messages of others that ocistern passes on, and words of configurations.
const FOREIGN: [&str; 1] = ["insufficient_scope"];
/// Fewer letters than this are found anywhere.
const TELLING: usize = 8;

fn sources(directory: &Path, text: &mut String) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, text);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            text.push_str(&std::fs::read_to_string(path).unwrap());
        }
    }
}

/// A source with the texts that go over several lines on one.
fn joined(text: &str) -> String {
    let mut parts = text.split("\\\n");
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |joined, part| joined + part.trim_start()).replace("\\\"", "\"")
}

#[test]
fn every_quoted_message_is_one_of_the_program() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut text = String::new();
    sources(&root.join("src"), &mut text);
    let text = joined(&text);
    let document = std::fs::read_to_string(root.join("docs/troubleshooting.md")).unwrap();
    let headings: Vec<&str> = document.lines().filter_map(|line| line.strip_prefix("### ")).collect();
    assert!(headings.len() > 40, "{headings:?}");
    for heading in headings {
        let messages: Vec<&str> = heading.split('`').skip(1).step_by(2).collect();
        assert!(!messages.is_empty(), "{heading} quotes no message");
        for message in messages.into_iter().filter(|message| !FOREIGN.contains(message)) {
            let pieces: Vec<&str> = message.split('…').map(str::trim).filter(|piece| piece.len() >= TELLING).collect();
            assert!(!pieces.is_empty(), "{message} could be anything");
            for piece in pieces {
                assert!(text.contains(piece), "{heading}: the program nowhere says {piece:?}");
            }
        }
    }
}
