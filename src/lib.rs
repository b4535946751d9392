//! ocistern: a local caching proxy daemon for container registries.
//!
//! The library holds everything; the binary only wires it. Dependencies point one way, and `tests/architecture.rs`
//! enforces it:
//!
//! ```text
//! main → cli → server → http → cache → { store, upstream } → oci
//! config uses oci only and is read by constructors; clock, metrics, party, telemetry, troubles (over clock), sys and
//! sendfile (over sys) are leaves that anyone may use.
//! ```
//!
//! `ARCHITECTURE.md` tells the path of a request, the layout on disk and the orders of commit, start and stop.

pub mod bundle;
pub mod cache;
pub mod cli;
pub mod clock;
pub mod config;
pub mod http;
pub mod metrics;
pub mod oci;
pub mod party;
pub mod sendfile;
pub mod server;
pub mod store;
mod sys;
pub mod telemetry;
pub mod troubles;
pub mod upstream;
