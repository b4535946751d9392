//! `ocistern coverage`: what pulls would miss if no upstream could be asked.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::ExitCode;

use http::Method;

use super::store::{Ask, StoreFlags, Trouble};
use super::table::{bytes, count, table};
use super::{FAILED, list, say};
use crate::http::admin::{Coverage, ImageCoverage};
use crate::store::{Extent, PartKind};

/// Names are asked about in groups of no more bytes than this: they go into the target of a request.
const GROUP: usize = 8 << 10;

/// What `coverage` is told.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Which images.
    #[arg(
        value_name = "REF",
        required_unless_present = "file",
        help = "Images, as clients write them: UPSTREAM/REPOSITORY:TAG or UPSTREAM/REPOSITORY@DIGEST"
    )]
    images: Vec<String>,
    /// More of them.
    #[arg(
        long,
        value_name = "LIST",
        help = "File with more of them, one a line, with comments behind #; - is standard input"
    )]
    file: Option<PathBuf>,
    /// For whom.
    #[arg(
        long = "platform",
        value_name = "PLATFORM",
        help = "Look only at what this platform needs, such as linux/arm64; may be given several times [default: all that an image has]"
    )]
    platforms: Vec<String>,
    #[command(flatten)]
    store: StoreFlags,
}

/// Tells, with an exit code that says whether all is there.
pub(super) fn run(arguments: &Arguments) -> Result<ExitCode, Trouble> {
    let mut names = arguments.images.clone();
    if let Some(file) = &arguments.file {
        let listed = list::read(file).map_err(|error| Trouble::Usage(error.to_string()))?;
        names.extend(listed.into_iter().map(|listed| listed.name));
    }
    if names.is_empty() {
        return Err(Trouble::Usage("there is no image in the list".to_owned()));
    }
    let mut whole = Coverage { complete: true, images: Vec::new() };
    for group in groups(&names) {
        let mut ask = Ask::new("coverage", Method::GET, "/api/v1/coverage");
        for name in group {
            ask = ask.with("image", name);
        }
        for platform in &arguments.platforms {
            ask = ask.with("platform", platform);
        }
        let Coverage { complete, images } = ask.send(&arguments.store)?.read()?;
        whole.complete &= complete;
        whole.images.extend(images);
    }
    let text = if arguments.store.json {
        let json = serde_json::to_string(&whole).map_err(|error| Trouble::Failed(error.to_string()))?;
        format!("{json}\n")
    } else {
        table(
            &["IMAGE", "IN THE STORE", "MISSING", "SIZE", "PLATFORMS"],
            &[3],
            &whole.images.iter().map(row).collect::<Vec<_>>(),
        )
    };
    let code = say(&text);
    Ok(if whole.complete { code } else { ExitCode::from(FAILED) })
}

fn groups(names: &[String]) -> Vec<&[String]> {
    let (mut groups, mut rest) = (Vec::new(), names);
    while !rest.is_empty() {
        let mut bytes = 0;
        let fits = rest.iter().take_while(|name| {
            bytes += name.len() * 3;
            bytes <= GROUP
        });
        let (group, after) = rest.split_at(fits.count().max(1));
        groups.push(group);
        rest = after;
    }
    groups
}

fn row(ImageCoverage { image, suspect, covered }: &ImageCoverage) -> Vec<String> {
    let state = match (covered.extent, suspect) {
        (Extent::Complete, _) => "complete",
        (Extent::Incomplete, true) => "not certain: a push may have changed it",
        (Extent::Incomplete, false) => "incomplete",
        (Extent::Unknown, _) => "not known",
    };
    let manifests = covered.missing.iter().filter(|part| part.kind == PartKind::Manifest).count();
    let missing = match (covered.missing_blobs, manifests) {
        (0, _) => "-".to_owned(),
        (blobs, 0) => count(blobs as u64, "blob", "blobs"),
        (blobs, manifests) => {
            let of_them = if manifests == blobs { String::new() } else { format!(" of {blobs} blobs") };
            format!("{}{of_them}", count(manifests as u64, "manifest", "manifests"))
        }
    };
    let size = if covered.missing_bytes == 0 { "-".to_owned() } else { bytes(covered.missing_bytes) };
    let lacking: BTreeSet<&str> = covered.missing.iter().filter_map(|part| part.platform.as_deref()).collect();
    let mut platforms: Vec<String> = lacking.into_iter().map(str::to_owned).collect();
    platforms.extend(covered.not_offered.iter().map(|name| format!("{name} (the image has none)")));
    let platforms = if platforms.is_empty() { "-".to_owned() } else { platforms.join(", ") };
    vec![image.clone(), state.to_owned(), missing, size, platforms]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_lists_are_asked_about_in_groups() {
        let names: Vec<String> = (0..1000).map(|n| format!("docker.io/library/{n:0>100}")).collect();
        let groups = groups(&names);
        assert_eq!(groups.concat(), names);
        assert!(groups.iter().all(|group| group.iter().map(|name| name.len() * 3).sum::<usize>() <= GROUP));
        let long = ["x".repeat(GROUP)];
        assert_eq!(super::groups(&long).len(), 1);
    }
}
