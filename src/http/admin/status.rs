//! `GET /api/v1/status`: the program and its store in figures, what it does now, and how its upstreams do.

use std::path::PathBuf;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::figures::Traffic;
use super::history::Forecast;
use super::upstreams::UpstreamReport;
use crate::cache::FillReport;

/// The answer to `GET /api/v1/status`. What a daemon of an older version does not say is empty.
#[derive(Debug, Serialize, Deserialize)]
pub struct Status {
    /// Of the program.
    pub version: String,
    /// A word of [`super::Stage::as_str`].
    pub stage: String,
    /// Since its start.
    pub uptime_seconds: u64,
    /// Where clients are served.
    pub listeners: Vec<String>,
    /// The store in figures.
    pub store: StoreStatus,
    /// What was asked for since the start, and what came of it.
    #[serde(default)]
    pub traffic: Traffic,
    /// Bytes that did not have to be fetched: served less received. Negative, where more was fetched than asked for.
    #[serde(default)]
    pub saved_bytes: i64,
    /// How long the room in the store lasts.
    #[serde(default)]
    pub forecast: Forecast,
    /// Downloads that run now, as of `GET /api/v1/fills`.
    #[serde(default)]
    pub fills: Vec<FillReport>,
    /// As of `GET /api/v1/upstreams`.
    #[serde(default)]
    pub upstreams: Vec<UpstreamReport>,
}

/// The store in figures; those of counters are since the start.
#[derive(Debug, Serialize, Deserialize)]
pub struct StoreStatus {
    /// Its directory.
    pub root: PathBuf,
    /// What it holds, running downloads included.
    pub bytes: i64,
    /// What it may hold.
    pub capacity_bytes: i64,
    /// Blobs, manifests included.
    pub blobs: i64,
    /// Removed to make room.
    pub evicted_bytes: u64,
    /// Blobs that were found to be wrong.
    pub corrupt_blobs: u64,
    /// Downloads that run now.
    pub fills_in_progress: i64,
    /// Hashed again by the scrub.
    pub scrubbed_bytes: u64,
    /// When its last whole pass ended.
    pub scrub_last_pass: Option<Timestamp>,
}
