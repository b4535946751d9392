//! `ocistern du`: what takes the store's space.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use http::Method;

use super::store::{Ask, StoreFlags, Trouble};
use super::table::{bytes, count, table};
use crate::oci::UpstreamName;
use crate::store::Usage;

/// What `du` is told.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    store: StoreFlags,
}

/// The text to print.
pub(super) fn run(arguments: &Arguments) -> Result<String, Trouble> {
    let answer = Ask::new("du", Method::GET, "/api/v1/usage").send(&arguments.store)?;
    if arguments.store.json { Ok(answer.json()) } else { answer.read().map(|usage| text(&usage)) }
}

fn text(usage: &Usage) -> String {
    let mut by_upstream: BTreeMap<&UpstreamName, Vec<_>> = BTreeMap::new();
    for repository in &usage.repositories {
        by_upstream.entry(&repository.upstream).or_default().push(repository);
    }
    let mut rows = Vec::new();
    for (upstream, mut repositories) in by_upstream {
        repositories.sort_by_key(|repository| std::cmp::Reverse((repository.unique_bytes, repository.bytes)));
        let unique = repositories.iter().map(|repository| repository.unique_bytes).sum();
        // Shared ones may be so among these, so their sum is no size.
        rows.push(vec![upstream.to_string(), bytes(unique), String::new(), String::new()]);
        for repository in repositories {
            let name = format!("  {}", repository.repository);
            let (unique, shared) = (bytes(repository.unique_bytes), bytes(repository.shared_bytes));
            rows.push(vec![name, unique, shared, repository.blobs.to_string()]);
        }
    }
    let mut text = if rows.is_empty() {
        String::new()
    } else {
        table(&["REPOSITORY", "UNIQUE", "SHARED", "BLOBS"], &[1, 2, 3], &rows) + "\n"
    };
    let blobs = count(usage.blobs, "blob", "blobs");
    let _ = writeln!(text, "total {} in {blobs}, of {}", bytes(usage.bytes), bytes(usage.capacity_bytes));
    for (size, what) in [
        (usage.unlinked_bytes, "to which nothing leads (see `ocistern gc`)"),
        (usage.fills_bytes, "of downloads, running or interrupted, besides"),
        (usage.quarantine_bytes, "in quarantine, besides"),
    ] {
        if size > 0 {
            let _ = writeln!(text, "{} {what}", bytes(size));
        }
    }
    text
}
