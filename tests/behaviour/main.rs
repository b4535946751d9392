//! What ocistern does, seen through its sockets: one program, so that what its tests share is compiled once. What looks at
//! the memory or the log of its whole process is a program of its own.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::format_push_string, reason = "test code")]

#[path = "../common/mod.rs"]
mod common;

mod access;
mod access_cache;
mod addressing;
mod admin;
mod bundles;
mod cli;
mod clocks;
mod cold_ranges;
mod commands;
mod common_selftest;
mod corruption;
mod credentials;
mod doctor;
mod fairness;
mod floods;
mod freshness;
mod health;
mod herd;
mod kill;
mod listeners;
mod lists;
mod matrix;
mod metrics;
mod mirrors;
mod partial;
mod progress;
mod pull;
mod push;
mod ranges;
mod reload;
mod restart;
mod resume;
mod room;
mod sealed;
mod server;
mod sessions;
mod strangers;
mod trust;
mod uploads;
mod warm;
mod writes_cache;
