//! `ocistern verify`: whether what is stored is what it should be.

use std::fmt::Write as _;
use std::process::ExitCode;

use http::Method;

use super::progress::Work;
use super::store::{Ask, StoreFlags, Trouble};
use super::table::{bytes, count};
use super::{FAILED, complain, say};
use crate::config::{self, ImageName};
use crate::store::{Unreadable, Verified};

/// What `verify` is told.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Which images.
    #[arg(
        value_name = "PATTERN",
        help = "Images to verify: UPSTREAM/REPOSITORY[:TAG|@DIGEST], * within a part of the name, ** across [default: all that is stored]"
    )]
    pattern: Option<ImageName>,
    /// Remove what leads nowhere.
    #[arg(
        long,
        conflicts_with = "pattern",
        help = "Also remove records that are damaged or lead nowhere, and repair the index"
    )]
    repair: bool,
    /// How fast.
    #[arg(long, value_name = "SIZE/s", value_parser = config::rate, help = "Read at most so much, such as 50MiB/s [default: as fast as it goes]")]
    rate: Option<u64>,
    #[command(flatten)]
    store: StoreFlags,
}

/// Verifies; fails if something was wrong.
pub(super) fn run(arguments: &Arguments) -> Result<ExitCode, Trouble> {
    let work = if arguments.pattern.is_some() { Work::VerifySome } else { Work::VerifyAll };
    let mut ask =
        Ask::new("verify", Method::POST, "/api/v1/verify").with_flag("repair", arguments.repair).working(work);
    if let Some(pattern) = &arguments.pattern {
        ask = ask.with("pattern", &pattern.to_string());
    }
    if let Some(rate) = arguments.rate {
        ask = ask.with("rate", &rate.to_string());
    }
    let answer = ask.send(&arguments.store)?;
    let verified: Verified = answer.read()?;
    let is_known = verified.unmatched.is_empty();
    let code = say(&match arguments.store.json {
        true => answer.json(),
        // That nothing was verified would be a second answer, and sound like a good one.
        false if !is_known => String::new(),
        false => text(&verified),
    });
    if !is_known {
        return Ok(complain(FAILED, format_args!("no image in the store is called {}", verified.unmatched.join(", "))));
    }
    Ok(if verified.is_clean() { code } else { ExitCode::from(FAILED) })
}

fn text(verified: &Verified) -> String {
    let mut text = String::new();
    for wrong in &verified.wrong {
        let names = if wrong.images.is_empty() { &wrong.names } else { &wrong.images };
        let names = if names.is_empty() { "nothing that is known".to_owned() } else { names.join(", ") };
        let became = if wrong.kept { "in quarantine now" } else { "removed" };
        let _ = writeln!(text, "wrong, {became}: {} ({}), of {names}", wrong.digest, bytes(wrong.bytes));
    }
    for Unreadable { path, error, images } in &verified.unreadable {
        let _ = writeln!(text, "could not be verified: {}: {error}{}", path.display(), of(images));
    }
    for digest in &verified.missing {
        let images = verified.missing_of.iter().find(|missing| missing.digest == *digest);
        let _ = writeln!(text, "not there: {digest}{}", of(images.map_or(&[], |missing| &missing.images)));
    }
    for path in &verified.damaged_pins {
        let _ = writeln!(text, "a pin by command is damaged: {}; pin it again, or remove the file", path.display());
    }
    let did = if verified.repaired { "removed" } else { "remove with --repair" };
    if verified.damaged_records > 0 {
        let but = if verified.repaired { ", but for tags that are pinned" } else { "" };
        let _ = writeln!(text, "{}: {did}{but}", count(verified.damaged_records, "damaged record", "damaged records"));
    }
    if verified.broken_refs > 0 {
        let refs = count(verified.broken_refs, "tag or link leads", "tags and links lead");
        let _ = writeln!(text, "{refs} to blobs that are not there any more, which is no damage: {did}");
    }
    let _ = writeln!(
        text,
        "verified {}, {}: {} wrong{}{}",
        count(verified.blobs, "blob", "blobs"),
        bytes(verified.bytes),
        verified.wrong.len(),
        unless_none(verified.unreadable.len(), "unreadable"),
        unless_none(verified.missing.len(), "missing")
    );
    text
}

fn of(images: &[String]) -> String {
    if images.is_empty() { String::new() } else { format!(", of {}", images.join(", ")) }
}

fn unless_none(number: usize, what: &str) -> String {
    if number == 0 { String::new() } else { format!(", {number} {what}") }
}
