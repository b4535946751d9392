//! `ocistern warm`: images are brought into the store before anybody pulls them.

use std::collections::{HashMap, HashSet};
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use http::Method;

use super::list::{self, LinePlace, Listed};
use super::progress::Work;
use super::store::{Ask, StoreFlags, Trouble};
use super::table::{bytes, count, table};
use super::workloads::{self, Form};
use super::{FAILED, say};
use crate::http::admin::{WarmImage, WarmReport, WarmRequest, WarmState};

/// What `warm` is told.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Which images.
    #[arg(
        value_name = "REF",
        required_unless_present_any = ["file", "compose", "kubernetes", "helm"],
        help = "Images to bring: [UPSTREAM/]REPOSITORY[:TAG][@DIGEST], as a pull names them"
    )]
    names: Vec<String>,
    /// Which further images.
    #[arg(
        long,
        value_name = "LIST",
        help = "Also the images of this list: a name a line, # before a comment; - is standard input"
    )]
    file: Vec<PathBuf>,
    /// What Compose runs.
    #[arg(
        long,
        value_name = "FILE",
        help = "Also the images of the services of this Compose file; variables have the values of the environment and of .env beside it"
    )]
    compose: Vec<PathBuf>,
    /// What Kubernetes runs.
    #[arg(
        long,
        value_name = "FILES",
        num_args = 1..,
        help = "Also the images of all pods in these manifests of Kubernetes, YAML or JSON; - is standard input, as behind helm template CHART |"
    )]
    kubernetes: Vec<PathBuf>,
    /// What a chart runs.
    #[arg(
        long,
        value_name = "CHART-VALUES",
        help = "Also the images that these values of a Helm chart name by the usual keys (image, repository, tag); a tag that is missing is the appVersion of Chart.yaml beside it"
    )]
    helm: Vec<PathBuf>,
    /// Which platforms.
    #[arg(
        long,
        value_name = "OS/ARCH[/VARIANT]",
        help = "Of an index bring this platform, may be repeated; all for all of them [default: Linux on this machine's processor]"
    )]
    platform: Vec<String>,
    /// Without signatures.
    #[arg(long, help = "Leave out what refers to the images: signatures, attestations, SBOMs")]
    no_referrers: bool,
    /// How much at once.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64), help = "Ask for so many parts at once, of all images together [default: 8]")]
    jobs: Option<u32>,
    /// Keep them.
    #[arg(long, help = "Pin what is all there then, so that it is never evicted")]
    pin: bool,
    /// Nothing is done.
    #[arg(long, help = "Only say what the names mean, and ask no registry")]
    dry_run: bool,
    #[command(flatten)]
    store: StoreFlags,
}

/// Brings them; fails if one is not all there.
pub(super) fn run(arguments: &Arguments) -> Result<ExitCode, Trouble> {
    let (images, places) = images(arguments)?;
    let request = WarmRequest {
        images,
        platforms: arguments.platform.clone(),
        referrers: !arguments.no_referrers,
        jobs: arguments.jobs,
        pin: arguments.pin,
        dry_run: arguments.dry_run,
    };
    let ask = Ask::new("warm", Method::POST, "/api/v1/warm").with_json(&request)?.asking_upstreams();
    let answer = ask.working(Work::Warm).send(&arguments.store)?;
    let report: WarmReport = answer.read()?;
    let code = say(&if arguments.store.json { answer.json() } else { text(&report, &places) });
    let failed = report.images.iter().any(|image| image.state == WarmState::Failed);
    Ok(if failed { ExitCode::from(FAILED) } else { code })
}

/// The names, each once, and where those of files stand.
fn images(arguments: &Arguments) -> Result<(Vec<String>, HashMap<String, LinePlace>), Trouble> {
    for name in &arguments.names {
        list::check(name).map_err(|error| Trouble::Usage(error.to_string()))?;
    }
    let mut listed = Vec::new();
    for file in &arguments.file {
        listed.extend(list::read(file).map_err(|error| Trouble::Usage(error.to_string()))?);
    }
    let forms =
        [(Form::Compose, &arguments.compose), (Form::Kubernetes, &arguments.kubernetes), (Form::Helm, &arguments.helm)];
    for (form, files) in forms {
        for file in files {
            let found = workloads::read(form, file).map_err(|error| Trouble::Usage(error.to_string()))?;
            for remark in found.remarks {
                let _ = writeln!(std::io::stderr(), "{remark}");
            }
            listed.extend(found.images);
        }
    }
    let mut images = arguments.names.clone();
    let mut places = HashMap::new();
    for Listed { name, place } in listed {
        places.entry(name.clone()).or_insert(place);
        images.push(name);
    }
    let mut seen = HashSet::new();
    images.retain(|name| seen.insert(name.clone()));
    if images.is_empty() {
        return Err(Trouble::Usage("there is no image in what was named".to_owned()));
    }
    Ok((images, places))
}

fn text(report: &WarmReport, places: &HashMap<String, LinePlace>) -> String {
    let row = |image: &WarmImage| {
        let name = image.image.clone().unwrap_or_else(|| image.name.clone());
        let came = match image.state {
            WarmState::Done => bytes(image.fetched_bytes),
            WarmState::There | WarmState::Failed | WarmState::Planned => "-".to_owned(),
        };
        let size = if image.parts == 0 { "-".to_owned() } else { bytes(image.bytes) };
        vec![name, state(image), size, came, remark(image, places)]
    };
    let rows: Vec<_> = report.images.iter().map(row).collect();
    let number = |state| report.images.iter().filter(|image| image.state == state).count();
    let table = table(&["IMAGE", "STATE", "SIZE", "FETCHED", ""], &[2, 3], &rows);
    let sum = match number(WarmState::Planned) {
        0 => format!("{} done, {} already there", number(WarmState::Done), number(WarmState::There)),
        planned => format!("{} would be asked for", count(planned as u64, "image", "images")),
    };
    format!("{table}{sum}, {} failed\n", number(WarmState::Failed))
}

fn state(image: &WarmImage) -> String {
    match image.state {
        WarmState::Done => "done",
        WarmState::There => "already there",
        WarmState::Failed => "failed",
        WarmState::Planned => "planned",
    }
    .to_owned()
}

/// Why it failed, and what else there is to say.
fn remark(image: &WarmImage, places: &HashMap<String, LinePlace>) -> String {
    let mut said = Vec::new();
    if let Some(error) = &image.error {
        let place = places.get(&image.name).map_or_else(String::new, |place| format!("{place}: "));
        said.push(format!("{place}{error}"));
    }
    if image.stale {
        said.push("the upstream could not be asked whether the tag still means this".to_owned());
    }
    if image.pinned {
        said.push("pinned".to_owned());
    }
    said.extend(image.left_out.iter().map(|part| format!("left out: {part}")));
    said.join("; ")
}

#[cfg(test)]
mod tests {
    use clap::{Args, FromArgMatches};

    use super::*;

    fn arguments(line: &str) -> Result<Arguments, clap::Error> {
        let command = Arguments::augment_args(clap::Command::new("warm"));
        let matches = command.try_get_matches_from(std::iter::once("warm").chain(line.split_whitespace()))?;
        Arguments::from_arg_matches(&matches)
    }

    #[test]
    fn names_come_once_and_are_looked_at_first() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("list");
        std::fs::write(&file, "alpine\n\nghcr.io/a:1\nalpine\n").unwrap();
        let asked = arguments(&format!("ghcr.io/a:1 --file {}", file.display())).unwrap();
        let (names, places) = images(&asked).unwrap();
        assert_eq!(names, ["ghcr.io/a:1", "alpine"]);
        assert_eq!((places["alpine"].line, places["ghcr.io/a:1"].line), (1, 3));
        assert!(matches!(images(&arguments("https://a").unwrap()), Err(Trouble::Usage(_))));
        std::fs::write(&file, "# none\n").unwrap();
        let none = images(&arguments(&format!("--file {}", file.display())).unwrap());
        assert!(none.is_err_and(|trouble| trouble.to_string().contains("no image")));
        assert!(arguments("").is_err() && arguments("a --jobs 0").is_err());
    }

    #[test]
    fn files_of_what_is_run_name_images() {
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let file = directory.path().join(name);
            std::fs::write(&file, text).unwrap();
            file.display().to_string()
        };
        let compose = file("compose.yaml", "services:\n  a: {image: 'alpine'}\n  b: {image: redis}\n");
        let pods = [1, 2].map(|k| file(&format!("{k}.yaml"), &format!("spec: {{containers: [{{image: 'app:{k}'}}]}}")));
        let values = file("values.yaml", "image: {repository: chart, tag: 3}\nother: {image: 'app:1'}");
        let line = format!("alpine --kubernetes {} {} --helm {values} --compose {compose}", pods[0], pods[1]);
        let (names, places) = images(&arguments(&line).unwrap()).unwrap();
        assert_eq!(names, ["alpine", "redis", "app:1", "app:2", "chart:3"]);
        assert_eq!(places["redis"].line, 3);
        let wrong = images(&arguments(&format!("--compose {}", pods[0])).unwrap()).unwrap_err().to_string();
        assert!(wrong.contains("1.yaml:1: there are no `services`"), "{wrong}");
    }

    #[test]
    fn the_table_says_what_failed_and_where() {
        let image = |name: &str, state, error: Option<&str>| WarmImage {
            name: name.to_owned(),
            image: Some(format!("docker.io/library/{name}:latest")),
            state,
            error: error.map(str::to_owned),
            parts: 3,
            bytes: 2048,
            fetched_parts: 1,
            fetched_bytes: 1024,
            left_out: Vec::new(),
            stale: false,
            pinned: state == WarmState::Done,
        };
        let images = vec![
            image("a", WarmState::Done, None),
            image("b", WarmState::There, None),
            image("c", WarmState::Failed, Some("it is not there")),
        ];
        let place = LinePlace { file: "list".into(), line: 7 };
        let text = text(&WarmReport { images }, &HashMap::from([("c".to_owned(), place)]));
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[1].contains("done") && lines[1].ends_with("pinned"), "{text}");
        assert!(lines[2].contains("already there"), "{text}");
        assert!(lines[3].contains("failed") && lines[3].ends_with("list:7: it is not there"), "{text}");
        assert_eq!(lines[4], "1 done, 1 already there, 1 failed");
    }
}
