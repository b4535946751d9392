//! `ocistern missed`: what was asked of sealed upstreams and is not in the store, as a list that other commands take.

use std::fmt::Write as _;
use std::process::ExitCode;

use http::Method;

use super::say;
use super::store::{Ask, StoreFlags, Trouble};
use super::table::count;
use crate::oci::Digest;
use crate::store::{Missed, MissedImage, MissedKind};

/// What `missed` is told.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Whether it begins anew.
    #[arg(long, help = "Also forget all of it, so that the next list has what was asked for from now on")]
    clear: bool,
    #[command(flatten)]
    store: StoreFlags,
}

/// Prints the list.
pub(super) fn run(arguments: &Arguments) -> Result<ExitCode, Trouble> {
    let method = if arguments.clear { Method::DELETE } else { Method::GET };
    let answer = Ask::new("missed", method, "/api/v1/missed").send(&arguments.store)?;
    if arguments.store.json {
        return Ok(say(&answer.json()));
    }
    Ok(say(&list(&answer.read()?)))
}

/// References one a line; what follows `#` is for people.
fn list(Missed { missed, forgotten }: &Missed) -> String {
    let mut text = String::new();
    let width = missed.iter().map(|image| image.reference.len()).max().unwrap_or(0);
    if missed.is_empty() {
        text.push_str("# nothing was asked for that is not in the store\n");
    }
    for image in missed {
        // That an image has no signature is the rule, and nothing that could be fetched; nor is a blob without its image.
        let comment = if image.kind == MissedKind::Referrer || is_alone(image) { "# " } else { "" };
        let _ = writeln!(text, "{comment}{:width$}  # {}", image.reference, details(image));
    }
    if *forgotten > 0 {
        let _ = writeln!(
            text,
            "# and {} for more than there is room to remember",
            count(*forgotten, "request", "requests")
        );
    }
    text
}

/// Whether it is a blob of which nothing stored says to what image it belongs.
fn is_alone(image: &MissedImage) -> bool {
    let is_itself = |digest: &Digest| image.reference.ends_with(&format!("@{digest}"));
    image.kind == MissedKind::Blob && image.missing.iter().all(is_itself)
}

fn details(image: &MissedImage) -> String {
    let what = match (image.kind, image.missing.len() as u64) {
        (MissedKind::Blob, _) if is_alone(image) => "a blob of an image that is not stored: name that image".to_owned(),
        (MissedKind::Tag, _) => "the tag".to_owned(),
        (MissedKind::Referrer, _) => "a signature or the like, which it may not have".to_owned(),
        (MissedKind::Manifest, missing) => count(missing, "part, a manifest", "parts, manifests among them"),
        (MissedKind::Blob, missing) => count(missing, "blob", "blobs"),
    };
    let platforms =
        if image.platforms.is_empty() { String::new() } else { format!(" ({})", image.platforms.join(", ")) };
    let times = count(image.asked, "time", "times");
    format!("{what}{platforms}; {times}, last {:.0}", image.last_asked)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Algorithm;

    #[test]
    fn a_list_that_commands_take() {
        let at = |text: &str| text.parse().unwrap();
        let image = |reference: &str, kind, asked, missing: usize, platforms: &[&str]| MissedImage {
            reference: reference.to_owned(),
            kind,
            asked,
            first_asked: at("2026-11-01T00:00:00Z"),
            last_asked: at("2026-11-30T22:00:01.5Z"),
            missing: vec![Digest::of(Algorithm::Sha256, b"x"); missing],
            platforms: platforms.iter().map(|name| (*name).to_owned()).collect(),
        };
        let missed = Missed {
            missed: vec![
                image("docker.io/library/alpine:3", MissedKind::Tag, 3, 0, &[]),
                image("ghcr.io/a:1", MissedKind::Manifest, 1, 1, &["linux/arm64"]),
                image("ghcr.io/a:sha256-0.sig", MissedKind::Referrer, 1, 0, &[]),
                image("ghcr.io/b:1", MissedKind::Blob, 2, 2, &[]),
            ],
            forgotten: 1,
        };
        assert_eq!(
            list(&missed),
            "docker.io/library/alpine:3  # the tag; 3 times, last 2026-11-30T22:00:01Z\n\
             ghcr.io/a:1                 # 1 part, a manifest (linux/arm64); 1 time, last 2026-11-30T22:00:01Z\n\
             # ghcr.io/a:sha256-0.sig      # a signature or the like, which it may not have; 1 time, last 2026-11-30T22:00:01Z\n\
             ghcr.io/b:1                 # 2 blobs; 2 times, last 2026-11-30T22:00:01Z\n\
             # and 1 request for more than there is room to remember\n"
        );
        let alone = format!("ghcr.io/c@{}", Digest::of(Algorithm::Sha256, b"x"));
        let missed = Missed { missed: vec![image(&alone, MissedKind::Blob, 1, 1, &[])], forgotten: 0 };
        let line = format!(
            "# {alone}  # a blob of an image that is not stored: name that image; 1 time, last 2026-11-30T22:00:01Z\n"
        );
        assert_eq!(list(&missed), line);
        assert_eq!(list(&Missed::default()), "# nothing was asked for that is not in the store\n");
    }
}
