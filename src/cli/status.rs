//! `ocistern status`: whether a daemon has the store, and both in figures.

use std::fmt::Write as _;

use http::Method;

use super::store::{Ask, StoreFlags, Trouble};
use super::table::{ago, bytes};
use crate::clock::{Clock as _, SystemClock, timestamp};
use crate::http::admin::Status;

/// What `status` is told.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    store: StoreFlags,
}

/// The text to print.
pub(super) fn run(arguments: &Arguments) -> Result<String, Trouble> {
    let answer = Ask::new("status", Method::GET, "/api/v1/status").send(&arguments.store)?;
    if arguments.store.json {
        return Ok(answer.json());
    }
    let Status { version, stage, uptime_seconds, listeners, store } = answer.read()?;
    let mut text = String::new();
    let mut line = |what: &str, value: String| {
        let _ = writeln!(text, "{what:<11}{value}");
    };
    match &answer.by {
        Some(holder) => {
            line("daemon", format!("{stage}, version {version}, process {}, up for {uptime_seconds} s", holder.pid));
            line("listeners", listeners.join(", "));
        }
        None => line("daemon", "none; the store is not in use".to_owned()),
    }
    let size = |bytes: i64| self::bytes(u64::try_from(bytes).unwrap_or_default());
    line("store", store.root.display().to_string());
    line("holds", format!("{} in {} blobs, of {}", size(store.bytes), store.blobs, size(store.capacity_bytes)));
    if answer.by.is_some() {
        line("downloads", store.fills_in_progress.to_string());
        line("evicted", format!("{} since the start", bytes(store.evicted_bytes)));
        line("corrupt", format!("{} blobs since the start", store.corrupt_blobs));
        let last =
            store.scrub_last_pass.map_or_else(|| "never".to_owned(), |at| ago(Some(at), timestamp(SystemClock.now())));
        line("scrub", format!("last whole pass: {last}; {} since the start", bytes(store.scrubbed_bytes)));
    }
    Ok(text)
}
