//! `ocistern export`: images into a bundle, all of them or what the other side does not have.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use bytes::Bytes;
use http::Method;
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;

use super::carry::{Side, bar, with};
use super::say;
use super::store::{StoreFlags, Trouble};
use super::table::{bytes, count};
use crate::bundle::{Blob, BundleError, Contents, Fault, Form, Have, HaveTag, Image, Reader, Writer, Written};
use crate::clock::{Clock as _, SystemClock, timestamp};
use crate::config::{self, ImageName};
use crate::http::admin::LayoutIndex;
use crate::oci::Digest;

/// How hard it is compressed, unless somebody says.
const LEVEL: &str = "3";

/// What `export` is told.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Which images.
    #[arg(
        value_name = "NAME",
        conflicts_with = "all",
        help = "Images to export: UPSTREAM/REPOSITORY for all of a repository, or with :TAG or @DIGEST; * within a part of the name, ** across"
    )]
    names: Vec<ImageName>,
    /// Everything.
    #[arg(long, help = "Export all that is stored")]
    all: bool,
    /// Where to.
    #[arg(
        long,
        value_name = "FILE|DIR",
        required_unless_present = "in_place",
        help = "Where the bundle is written: a tar, or a directory if that is one or the name ends with /"
    )]
    to: Option<PathBuf>,
    /// A delta by what the other side has.
    #[arg(
        long,
        value_name = "LIST",
        help = "Leave out what this list has, which `ocistern have` wrote on the other side; without names, of all images"
    )]
    missing_from: Option<PathBuf>,
    /// A delta by what was carried.
    #[arg(
        long,
        value_name = "BUNDLE|TIME",
        help = "Leave out what an earlier bundle has, or what was stored before a time such as 2026-11-30 or 7d ago; without names, of all images"
    )]
    since: Option<String>,
    /// Compressed.
    #[arg(
        long,
        value_name = "LEVEL",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = LEVEL,
        value_parser = clap::value_parser!(i32).range(1..=22),
        help = "Compress a tar; layers are compressed already as a rule, so that it pays for those that are not [default level: 3]"
    )]
    zstd: Option<i32>,
    /// Cut into volumes.
    #[arg(long, value_name = "SIZE", value_parser = config::size, help = "Cut a tar into FILE.001, FILE.002 and so on of this size")]
    volume_size: Option<u64>,
    /// The root itself.
    #[arg(
        long,
        conflicts_with_all = ["to", "all", "names", "missing_from", "since", "zstd", "volume_size"],
        help = "Write index.json into the root, which makes it an OCI image layout; it says what is stored now"
    )]
    in_place: bool,
    #[command(flatten)]
    store: StoreFlags,
}

/// What is left out of a bundle.
#[derive(Debug, Default)]
struct Known {
    digests: HashSet<Digest>,
    tags: HashSet<HaveTag>,
    before: Option<Timestamp>,
}

/// What was exported.
#[derive(Debug, Serialize)]
struct Exported {
    images: Vec<String>,
    /// Images of which something that they name is not stored, as platforms that nobody has pulled.
    partial: Vec<String>,
    blobs: usize,
    bytes: u64,
    relies_on_blobs: usize,
    files: Vec<PathBuf>,
    written_bytes: u64,
}

/// Exports.
pub(super) fn run(arguments: &Arguments) -> Result<ExitCode, Trouble> {
    if arguments.in_place {
        return in_place(arguments);
    }
    let is_delta = arguments.missing_from.is_some() || arguments.since.is_some();
    if arguments.names.is_empty() && !arguments.all && !is_delta {
        let message = "say which images: names, --all, --missing-from LIST or --since BUNDLE|TIME";
        return Err(Trouble::Usage(message.to_owned()));
    }
    let Some(to) = &arguments.to else { return Err(Trouble::Usage("say where to: --to FILE|DIR".to_owned())) };
    if (arguments.zstd.is_some() || arguments.volume_size.is_some()) && to.is_dir() {
        let message = "--zstd and --volume-size are for a tar, and --to is a directory";
        return Err(Trouble::Usage(message.to_owned()));
    }
    let known = Known::read(arguments)?;
    let exported = with("export", &arguments.store, async |side, _| export(side, arguments, to.clone(), known).await)?;
    if arguments.store.json {
        let json = serde_json::to_string(&exported).map_err(|error| Trouble::Failed(error.to_string()))?;
        return Ok(say(&format!("{json}\n")));
    }
    Ok(say(&text(&exported)))
}

fn in_place(arguments: &Arguments) -> Result<ExitCode, Trouble> {
    let index: LayoutIndex = with("export", &arguments.store, async |side, _| {
        side.ask(Method::POST, "/api/v1/layout-index".to_owned(), Bytes::new()).await
    })?;
    if arguments.store.json {
        let json = serde_json::to_string(&index).map_err(|error| Trouble::Failed(error.to_string()))?;
        return Ok(say(&format!("{json}\n")));
    }
    let named = count(index.manifests as u64, "manifest", "manifests");
    Ok(say(&format!("the root is an OCI image layout: its index.json names {named}\n")))
}

async fn export(side: &Side, arguments: &Arguments, to: PathBuf, known: Known) -> Result<Exported, Trouble> {
    let names: Vec<String> = arguments.names.iter().map(ToString::to_string).collect();
    let carried = side.carried(&names).await?;
    if !carried.unmatched.is_empty() {
        return Err(Trouble::Failed(format!("no image in the store is called {}", carried.unmatched.join(", "))));
    }
    if !names.is_empty() && !carried.unstored.is_empty() {
        let message = format!("the manifest is not stored of {}: pull it first", carried.unstored.join(", "));
        return Err(Trouble::Failed(message));
    }
    let images = carried.images.into_iter().filter(|image| !known.has_all_of(image)).collect();
    let contents = known.contents_of(images);
    let mut exported = Exported {
        images: contents.images.iter().map(Image::name).collect(),
        partial: contents.images.iter().filter(|image| !image.absent.is_empty()).map(Image::name).collect(),
        blobs: contents.blobs.len(),
        bytes: contents.bytes(),
        relies_on_blobs: contents.relies_on.len(),
        files: Vec::new(),
        written_bytes: 0,
    };
    if contents.images.is_empty() {
        return Ok(exported);
    }
    let form = Form { zstd: arguments.zstd, volume: arguments.volume_size };
    let mut writer = Writer::begin(&to, form, contents).map_err(|error| failed(&error))?;
    let bar = bar(exported.bytes, "exporting", arguments.store.json);
    for blob in writer.contents().blobs.clone() {
        if writer.has(&blob).map_err(|error| failed(&error))? {
            bar.inc(blob.size);
            // Between those that are there already nothing else waits: a signal is heard here.
            tokio::task::yield_now().await;
            continue;
        }
        writer.start(blob).map_err(|error| failed(&error))?;
        let show = |bytes: &[u8]| {
            bar.inc(bytes.len() as u64);
            writer.write(bytes).map_err(|error| failed(&error))
        };
        if !side.read(&blob.digest, show).await? {
            return Err(gone(&writer, &blob));
        }
        writer.end().map_err(|error| failed(&error))?;
    }
    let Written { files, bytes } = writer.finish().map_err(|error| failed(&error))?;
    bar.finish_and_clear();
    (exported.files, exported.written_bytes) = (files, bytes);
    Ok(exported)
}

/// A blob went between the look at what there is and its turn.
fn gone(writer: &Writer, blob: &Blob) -> Trouble {
    let of = writer.contents().images.iter().find(|image| image.parts.iter().any(|part| part.digest == blob.digest));
    let of = of.map_or_else(|| "an image".to_owned(), Image::name);
    Trouble::Failed(format!(
        "{} of {of} went from the store meanwhile (evicted, removed, or set aside because it was damaged): pull it again, pin it \
         (`ocistern pin`) if it was for want of room, and give the same command again",
        blob.digest
    ))
}

fn failed(error: &BundleError) -> Trouble {
    let advice = match error.fault {
        Fault::Digest { .. } | Fault::Size { .. } => {
            ". The store's own copy is damaged: `ocistern verify` sets it aside, and the next pull brings it anew"
        }
        _ => "",
    };
    Trouble::Failed(format!("{error}{advice}"))
}

fn text(exported: &Exported) -> String {
    let mut text = String::new();
    if exported.images.is_empty() {
        return "nothing is stored here that the other side lacks: no bundle was written\n".to_owned();
    }
    for image in &exported.images {
        let partial = if exported.partial.contains(image) {
            " (what is stored of it: it names more, as platforms that nobody has pulled)"
        } else {
            ""
        };
        let _ = writeln!(text, "{image}{partial}");
    }
    let images = count(exported.images.len() as u64, "image", "images");
    let blobs = count(exported.blobs as u64, "blob", "blobs");
    let _ = write!(text, "exported: {images}, {blobs}, {}", bytes(exported.bytes));
    if exported.relies_on_blobs > 0 {
        let relied = count(exported.relies_on_blobs as u64, "blob", "blobs");
        let _ = write!(text, "; {relied} more must be there already");
    }
    let files: Vec<String> = exported.files.iter().map(|file| file.display().to_string()).collect();
    let _ = writeln!(text, ", in {}", files.join(" "));
    text
}

// === impl Known ===

impl Known {
    fn read(arguments: &Arguments) -> Result<Self, Trouble> {
        let mut known = Self::default();
        if let Some(list) = &arguments.missing_from {
            let text = std::fs::read_to_string(list);
            let text = text.map_err(|error| Trouble::Usage(format!("{}: {error}", list.display())))?;
            let have = Have::from_text(&text)
                .map_err(|(line, why)| Trouble::Usage(format!("{}, line {line}: {why}", list.display())))?;
            known.digests.extend(have.digests);
            known.tags.extend(have.tags);
        }
        match &arguments.since {
            None => {}
            Some(bundle) if std::path::Path::new(bundle).exists() => known.learn_bundle(bundle)?,
            Some(time) => known.before = Some(parse_time(time)?),
        }
        Ok(known)
    }

    /// What whoever took that bundle has.
    fn learn_bundle(&mut self, path: &str) -> Result<(), Trouble> {
        let usage = |error: BundleError| Trouble::Usage(format!("--since: {error}"));
        for mut reader in Reader::open(&[path.into()]).map_err(usage)? {
            // In a tar it comes before the first blob.
            if reader.contents().is_none() {
                reader.next_entry().map_err(usage)?;
            }
            let Some(contents) = reader.contents() else {
                return Err(Trouble::Usage(format!("--since: {path} has no ocistern.json: no bundle of ocistern")));
            };
            self.digests.extend(contents.blobs.iter().chain(&contents.relies_on).map(|blob| blob.digest));
            self.tags.extend(contents.images.iter().map(|image| HaveTag { name: image.name(), digest: image.digest }));
        }
        Ok(())
    }

    /// Whether an image need not be carried.
    fn has_all_of(&self, image: &Image) -> bool {
        let has_parts = image.parts.iter().all(|part| self.digests.contains(&part.digest) || self.is_old(part.since));
        let tag = HaveTag { name: image.name(), digest: image.digest };
        has_parts && (self.tags.contains(&tag) || self.is_old(image.since))
    }

    fn is_old(&self, since: Option<Timestamp>) -> bool {
        self.before.zip(since).is_some_and(|(before, since)| since < before)
    }

    fn contents_of(self, mut images: Vec<Image>) -> Contents {
        let mut has = self.digests.clone();
        for part in images.iter().flat_map(|image| &image.parts) {
            if self.is_old(part.since) {
                has.insert(part.digest);
            }
        }
        for image in &mut images {
            image.since = None;
            for part in &mut image.parts {
                part.since = None;
            }
        }
        let by = format!("ocistern {}", env!("CARGO_PKG_VERSION"));
        Contents::of(images, by, timestamp(SystemClock.now()), |digest| has.contains(digest))
    }
}

/// A time: a date, one with a time of day, or so long ago.
fn parse_time(text: &str) -> Result<Timestamp, Trouble> {
    let wrong = || {
        Trouble::Usage(format!(
            "--since: {text:?} is no bundle that is there, and no time, such as 2026-11-30, 2026-11-30T12:00:00Z or 7d"
        ))
    };
    if let Ok(ago) = config::duration(text) {
        let ago = SignedDuration::try_from(ago).map_err(|_| wrong())?;
        return timestamp(SystemClock.now()).checked_sub(ago).map_err(|_| wrong());
    }
    if let Ok(time) = text.parse::<Timestamp>() {
        return Ok(time);
    }
    let time: jiff::civil::DateTime = text.parse().map_err(|_| wrong())?;
    Ok(time.to_zoned(jiff::tz::TimeZone::system()).map_err(|_| wrong())?.timestamp())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_dates_or_ages() {
        let now = timestamp(SystemClock.now());
        assert_eq!(parse_time("2026-11-30T12:00:00Z").unwrap().as_second(), 1_796_040_000);
        assert!(parse_time("2026-11-30").is_ok() && parse_time("7d").unwrap() < now);
        for wrong in ["yesterday", "", "bundle.tar"] {
            assert!(parse_time(wrong).is_err(), "{wrong}");
        }
    }
}
