//! `ocistern rm`: removal of images by name.

use std::fmt::Write as _;
use std::process::ExitCode;

use http::Method;

use super::store::{Ask, StoreFlags, Trouble};
use super::table::{bytes, count};
use super::{FAILED, complain, say};
use crate::config::ImageName;
use crate::store::Removed;

/// What `rm` is told.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Which images.
    #[arg(
        required = true,
        value_name = "NAME",
        help = "Images to remove: UPSTREAM/REPOSITORY for all of a repository, or with :TAG or @DIGEST; * within a part of the name, ** across"
    )]
    names: Vec<ImageName>,
    /// Change nothing.
    #[arg(long, help = "Say what would be removed, and remove nothing")]
    dry_run: bool,
    #[command(flatten)]
    store: StoreFlags,
}

/// Removes; fails if a name means nothing that is stored.
pub(super) fn run(arguments: &Arguments) -> Result<ExitCode, Trouble> {
    let mut ask = Ask::new("rm", Method::DELETE, "/api/v1/images").with_flag("dry_run", arguments.dry_run);
    for name in &arguments.names {
        ask = ask.with("name", &name.to_string());
    }
    let answer = ask.send(&arguments.store)?;
    let removed: Removed = answer.read()?;
    let code = say(&if arguments.store.json { answer.json() } else { text(&removed) });
    if removed.unmatched.is_empty() {
        return Ok(code);
    }
    Ok(complain(FAILED, format_args!("no image in the store is called {}", removed.unmatched.join(", "))))
}

fn text(removed: &Removed) -> String {
    let mut text = String::new();
    for image in &removed.images {
        let pinned = removed.pinned.contains(&image.name);
        let _ = writeln!(text, "{}{}", image.name, if pinned { " (its pin stays: see `ocistern unpin`)" } else { "" });
    }
    if !removed.images.is_empty() {
        let verb = if removed.dry_run { "would be removed" } else { "removed" };
        let (blobs, freed) = (count(removed.blobs, "blob", "blobs"), bytes(removed.freed_bytes));
        let _ = write!(text, "{verb}: {}, {blobs}, {freed}", count(removed.images.len() as u64, "image", "images"));
        let _ = match removed.kept_bytes {
            0 => writeln!(text),
            kept => writeln!(text, "; {} stay, because others need them", bytes(kept)),
        };
    }
    if removed.unfinished > 0 {
        let verb = if removed.dry_run { "would be removed" } else { "removed" };
        let downloads = count(removed.unfinished, "unfinished download", "unfinished downloads");
        let _ = writeln!(text, "{verb}: {downloads}, {}", bytes(removed.unfinished_bytes));
    }
    if removed.running > 0 {
        let downloads = count(removed.running, "download goes", "downloads go");
        let _ =
            writeln!(text, "{downloads} on, because somebody waits: what is left of one that does not end is removed");
    }
    text
}
