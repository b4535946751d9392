//! What the behaviour tests share: a scripted upstream registry, a client that tells a clean end from a cut, content
//! with known digests, an ocistern in this process, and the invariants that hold after every case.
#![allow(
    dead_code,
    unreachable_pub,
    unused_imports,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::format_push_string,
    clippy::needless_pass_by_value,
    clippy::unused_async,
    reason = "test code; each test program uses its own part of it"
)]

pub mod cistern;
pub mod client;
pub mod clock;
pub mod content;
pub mod daemon;
pub mod direct;
pub mod frames;
pub mod invariants;
pub mod left;
pub mod logs;
pub mod model;
pub mod tls;
pub mod uploading;
pub mod upstream;

pub use cistern::Cistern;
pub use client::{Ask, Client, Got, Live, Sending};
pub use clock::{eventually, patiently};
pub use content::Image;
pub use daemon::Daemon;
pub use direct::Direct;
pub use model::Model;
pub use upstream::{Gate, Upstream, acts};
