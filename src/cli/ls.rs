//! `ocistern ls`: what is in the store, by image.

use http::Method;
use jiff::Timestamp;

use super::store::{Ask, StoreFlags, Trouble};
use super::table::{ago, bytes, count, table};
use crate::clock::{Clock as _, SystemClock, timestamp};
use crate::config::ImageName;
use crate::http::admin::Images;
use crate::oci::Digest;
use crate::store::Image;

/// What `ls` is told.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Which images.
    #[arg(
        value_name = "PATTERN",
        help = "Images to list: UPSTREAM/REPOSITORY[:TAG|@DIGEST], * within a part of the name, ** across [default: all]"
    )]
    pattern: Option<ImageName>,
    #[command(flatten)]
    store: StoreFlags,
}

/// The text to print.
pub(super) fn run(arguments: &Arguments) -> Result<String, Trouble> {
    let mut ask = Ask::new("ls", Method::GET, "/api/v1/images");
    if let Some(pattern) = &arguments.pattern {
        ask = ask.with("pattern", &pattern.to_string());
    }
    let answer = ask.send(&arguments.store)?;
    if arguments.store.json {
        return Ok(answer.json());
    }
    let Images { images } = answer.read()?;
    if images.is_empty() {
        return Ok(arguments
            .pattern
            .as_ref()
            .map_or_else(|| "nothing\n".to_owned(), |pattern| format!("nothing in the store is called {pattern}\n")));
    }
    let now = timestamp(SystemClock.now());
    let rows: Vec<_> = images.iter().map(|image| row(image, now)).collect();
    Ok(table(&["IMAGE", "DIGEST", "PLATFORMS", "SIZE", "OWN", "MISSING", "LAST USE"], &[3, 4], &rows))
}

fn row(image: &Image, now: Timestamp) -> Vec<String> {
    let name = match &image.tag {
        Some(_) => image.name.clone(),
        None => format!("{}/{}", image.upstream, image.repository),
    };
    let columns = [name, short(&image.digest), platforms(image), bytes(image.bytes), bytes(image.own_bytes)];
    columns.into_iter().chain([missing(image), ago(image.last_used, now)]).collect()
}

/// What is not there although the image is listed. Platforms that nobody has asked for stand in a column of their own.
fn missing(image: &Image) -> String {
    match image.missing_parts {
        _ if !image.stored => "manifest".to_owned(),
        0 => "-".to_owned(),
        missing => count(missing as u64, "blob", "blobs"),
    }
}

fn short(digest: &Digest) -> String {
    let hex: String = digest.hex().chars().take(12).collect();
    format!("{}:{hex}", digest.algorithm().as_str())
}

/// Those that are stored, and how many more there are.
fn platforms(image: &Image) -> String {
    let stored: Vec<&str> = image.platforms.iter().filter(|p| p.stored).map(|p| p.platform.as_str()).collect();
    match (image.platforms.len() - stored.len(), stored.is_empty()) {
        (0, true) => "-".to_owned(),
        (0, false) => stored.join(","),
        (more, true) => format!("(+{more})"),
        (more, false) => format!("{} (+{more})", stored.join(",")),
    }
}
