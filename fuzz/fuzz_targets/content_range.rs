//! libFuzzer target: see `targets::content_range`.
#![no_main]

#[path = "../targets.rs"]
mod targets;

libfuzzer_sys::fuzz_target!(|data: &[u8]| targets::content_range(data));
