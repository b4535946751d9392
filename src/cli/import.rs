//! `ocistern import`: images out of a bundle. All blobs of it are stored and verified before anything leads to them.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use bytes::Bytes;
use indicatif::ProgressBar;
use serde::Serialize;

use super::carry::{Side, bar, with};
use super::store::{StoreFlags, Trouble};
use super::table::{bytes, count};
use super::{FAILED, complain, say};
use crate::bundle::{As, Contents, Entry, Image, Reader};
use crate::clock::{Clock as _, SystemClock, timestamp};
use crate::config::Config;
use crate::http::admin::Import;
use crate::oci::{Digest, UpstreamName};
use crate::store::{Taken, Terms};

/// Bytes read at once.
const CHUNK: usize = 1 << 18;

/// What `import` is told.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// What to take.
    #[arg(
        required = true,
        value_name = "FILE",
        help = "Bundles: tars, all volumes of one, or directories; also OCI image layouts of other programs"
    )]
    files: Vec<PathBuf>,
    /// Under which name.
    #[arg(
        long = "as",
        value_name = "NAME",
        help = "Of layouts that other programs made: the name, UPSTREAM/REPOSITORY[:TAG], under which their images are served [default: what they are called in it]"
    )]
    name: Option<As>,
    /// Not for everybody.
    #[arg(
        long,
        help = "Serve it only to callers whom the listener lets through as the upstream's own account: by htpasswd, client certificate, or from loopback"
    )]
    private: bool,
    /// Also backwards.
    #[arg(long, help = "Let a tag mean what the bundle says also where upstream has said something else later")]
    replace_newer: bool,
    /// Change nothing.
    #[arg(long, help = "Verify all of it and say what would be taken, and take nothing")]
    dry_run: bool,
    #[command(flatten)]
    store: StoreFlags,
}

/// What was imported.
#[derive(Debug, Default, Serialize)]
struct Imported {
    dry_run: bool,
    images: Vec<Outcome>,
    /// Blobs that were written, or would be.
    blobs: u64,
    bytes: u64,
    /// Those that were stored already.
    skipped_blobs: u64,
    /// Upstreams of images that the configuration does not have.
    unknown_upstreams: Vec<UpstreamName>,
}

#[derive(Debug, Serialize)]
struct Outcome {
    name: String,
    digest: Digest,
    /// It was not for everybody where it comes from.
    was_private: bool,
    #[serde(flatten)]
    taken: Taken,
}

/// Imports; fails if any image could not be taken.
pub(super) fn run(arguments: &Arguments) -> Result<ExitCode, Trouble> {
    let readers = Reader::open(&arguments.files).map_err(|error| Trouble::Failed(error.to_string()))?;
    let imported =
        with("import", &arguments.store, async |side, config| import(side, config, arguments, readers).await)?;
    let code = say(&if arguments.store.json {
        let json = serde_json::to_string(&imported).map_err(|error| Trouble::Failed(error.to_string()))?;
        format!("{json}\n")
    } else {
        text(&imported, arguments.private)
    });
    let failed = imported.images.iter().filter(|image| image.is_failure()).count();
    if failed > 0 {
        let message = format_args!("{} could not be taken", count(failed as u64, "image", "images")).to_string();
        return Ok(complain(FAILED, message));
    }
    Ok(code)
}

async fn import(
    side: &Side,
    config: &Config,
    arguments: &Arguments,
    readers: Vec<Reader>,
) -> Result<Imported, Trouble> {
    let have = side.have().await?;
    // What a delta may rely on, and what need not be written again.
    let mut named: HashSet<Digest> = have.digests.iter().copied().collect();
    let mut stored: HashSet<Digest> = have.unnamed.into_iter().chain(have.digests).collect();
    let capacity = side.capacity().await?;
    let mut imported = Imported { dry_run: arguments.dry_run, ..Imported::default() };
    for mut reader in readers {
        let failed = |error: crate::bundle::BundleError| Trouble::Failed(error.to_string());
        let bar = bar(0, "importing", arguments.store.json);
        let (mut brought, mut is_checked) = (HashSet::new(), false);
        while let Some(entry) = reader.next_entry().map_err(failed)? {
            if !std::mem::replace(&mut is_checked, true) {
                check_relied(&reader, &named)?;
                check_room(&reader, &stored, capacity)?;
            }
            bar.set_length(reader.contents().map_or_else(|| bar.position() + entry.size, Contents::bytes));
            if stored.contains(&entry.digest) || arguments.dry_run {
                pass(&mut reader, &bar).await?;
            } else {
                put(side, &mut reader, entry, &bar).await?;
            }
            if stored.insert(entry.digest) {
                imported.blobs += 1;
                imported.bytes += entry.size;
            } else {
                imported.skipped_blobs += 1;
            }
            brought.insert(entry.digest);
        }
        bar.finish_and_clear();
        // Of several bundles one may rely on what another brings.
        named.extend(&brought);
        // A delta may consist of tags alone.
        check_relied(&reader, &named)?;
        let images = match reader.contents() {
            Some(contents) => contents.images.clone(),
            None => reader.images(arguments.name.as_ref(), timestamp(SystemClock.now())).map_err(failed)?,
        };
        for image in images {
            let name = image.name();
            let (digest, was_private) = (image.digest, image.private);
            if !config.upstreams.contains_key(&image.upstream) && !imported.unknown_upstreams.contains(&image.upstream)
            {
                imported.unknown_upstreams.push(image.upstream.clone());
            }
            let taken = side.take(&Import { terms: arguments.terms(&image, &brought), image }).await?;
            imported.images.push(Outcome { name, digest, was_private, taken });
        }
    }
    Ok(imported)
}

/// Fails where a delta relies on what is not here, before anything is written.
fn check_relied(reader: &Reader, stored: &HashSet<Digest>) -> Result<(), Trouble> {
    let Some(contents) = reader.contents() else { return Ok(()) };
    let missing: HashSet<Digest> =
        contents.relies_on.iter().map(|blob| blob.digest).filter(|digest| !stored.contains(digest)).collect();
    let Some(first) = missing.iter().min_by_key(ToString::to_string) else { return Ok(()) };
    let of = contents.images.iter().find(|image| image.parts.iter().any(|part| missing.contains(&part.digest)));
    Err(Trouble::Failed(format!(
        "{}: it relies on {} that must be here already and {} not, such as {first} of {}: write down with `ocistern have` what is \
         here, and export with --missing-from that list",
        reader.file(),
        count(missing.len() as u64, "blob", "blobs"),
        if missing.len() == 1 { "is" } else { "are" },
        of.map_or_else(|| "an image".to_owned(), Image::name),
    )))
}

/// Fails where all that a bundle's images are made of can never be in the store at once, before anything is evicted for it: behind
/// a gap that does not come back.
fn check_room(reader: &Reader, stored: &HashSet<Digest>, capacity: u64) -> Result<(), Trouble> {
    let Some(contents) = reader.contents() else { return Ok(()) };
    let relied = contents.relies_on.iter().fold(0_u64, |sum, blob| sum.saturating_add(blob.size));
    let needed = contents.bytes().saturating_add(relied);
    // What is all here, in a store that may hold less since, takes nobody's room.
    if needed <= capacity || contents.blobs.iter().all(|blob| stored.contains(&blob.digest)) {
        return Ok(());
    }
    Err(Trouble::Failed(format!(
        "{}: its images are {} ({needed} bytes), and the store may hold {} ({capacity} bytes): raise store.capacity, or export fewer \
         images; nothing of it was taken",
        reader.file(),
        bytes(needed),
        bytes(capacity),
    )))
}

/// Reads and verifies a blob that is not needed. That never waits for anything but the disk: it stops after each piece, so that
/// a signal is heard meanwhile.
async fn pass(reader: &mut Reader, bar: &ProgressBar) -> Result<(), Trouble> {
    let mut buffer = vec![0; CHUNK];
    loop {
        let count = reader.read(&mut buffer).map_err(|error| Trouble::Failed(error.to_string()))?;
        if count == 0 {
            return Ok(());
        }
        bar.inc(count as u64);
        tokio::task::yield_now().await;
    }
}

/// Puts a blob into the store. It counts when both the reader and the store have found its digest right.
async fn put(side: &Side, reader: &mut Reader, entry: Entry, bar: &ProgressBar) -> Result<(), Trouble> {
    let putting = side.put(&entry.digest, entry.size);
    let mut buffer = vec![0; CHUNK];
    loop {
        let count = reader.read(&mut buffer).map_err(|error| Trouble::Failed(error.to_string()))?;
        let piece = Bytes::copy_from_slice(buffer.get(..count).unwrap_or_default());
        if count == 0 || !putting.add(piece).await {
            break;
        }
        bar.inc(count as u64);
    }
    putting.end().await.map_err(|trouble| match trouble {
        Trouble::Failed(why) | Trouble::Usage(why) => {
            Trouble::Failed(format!("{} of {} could not be stored: {why}", entry.digest, reader.file()))
        }
        Trouble::Interrupted => Trouble::Interrupted,
    })
}

fn text(imported: &Imported, private: bool) -> String {
    let mut text = String::new();
    let would = if imported.dry_run { "would be taken" } else { "imported" };
    for Outcome { name, taken, was_private, .. } in &imported.images {
        let _ = match taken {
            Taken::Taken { moved_from, private: stays_private } => {
                let from = moved_from.map(|from| format!(", the tag meant {from}")).unwrap_or_default();
                let access = match (stays_private, *was_private && !private) {
                    (true, _) => "; upstream said here that it is not for everybody, and so it stays",
                    (false, true) => "; it was not for everybody where it comes from, and is here (else: --private)",
                    (false, false) => "",
                };
                writeln!(text, "{name}{from}{access}")
            }
            Taken::NewerHere { digest } => {
                writeln!(
                    text,
                    "{name}: the tag stays {digest}, which upstream said later than the bundle (--replace-newer moves it)"
                )
            }
            Taken::Outdated => {
                writeln!(
                    text,
                    "{name}: not taken, something was deleted or written upstream later (--replace-newer takes it)"
                )
            }
            Taken::Missing { digests } => writeln!(
                text,
                "{name}: not taken, {} not in the store (any more), such as {}: what was damaged here is set aside now, and the same \
                 command brings it; else look whether store.capacity is large enough",
                count(digests.len() as u64, "part is", "parts are"),
                digests.first().map(ToString::to_string).unwrap_or_default()
            ),
            Taken::Hidden { digests } => writeln!(
                text,
                "{name}: not taken, {} not in the bundle, and not for everybody here, such as {}: export the image whole, without --since and \
                 --missing-from, or import it with --private",
                count(digests.len() as u64, "part is", "parts are"),
                digests.first().map(ToString::to_string).unwrap_or_default()
            ),
            Taken::Wrong { reason } => writeln!(text, "{name}: not taken, it is not what it says: {reason}"),
        };
    }
    let taken = imported.images.iter().filter(|image| !image.is_failure()).count();
    let (images, blobs) = (count(taken as u64, "image", "images"), count(imported.blobs, "blob", "blobs"));
    let _ = write!(text, "{would}: {images}, {blobs}, {}", bytes(imported.bytes));
    if imported.skipped_blobs > 0 {
        let skipped = count(imported.skipped_blobs, "blob was", "blobs were");
        let _ = write!(text, "; {skipped} here already");
    }
    text.push('\n');
    for upstream in &imported.unknown_upstreams {
        let _ = writeln!(
            text,
            "the configuration has no upstream {upstream}: to have it served, add [upstream.\"{upstream}\"] with its url"
        );
    }
    text
}

// === impl Arguments ===

impl Arguments {
    /// On which terms an image is taken.
    fn terms(&self, image: &Image, brought: &HashSet<Digest>) -> Terms {
        let brought = image.parts.iter().map(|part| part.digest).filter(|digest| brought.contains(digest)).collect();
        Terms { private: self.private, replace_newer: self.replace_newer, dry_run: self.dry_run, brought }
    }
}

// === impl Outcome ===

impl Outcome {
    fn is_failure(&self) -> bool {
        !matches!(self.taken, Taken::Taken { .. } | Taken::NewerHere { .. })
    }
}
