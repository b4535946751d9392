//! Images that are brought before anybody pulls them: `ocistern warm`, with a daemon and on a stopped store.

use std::fs;
use std::path::Path;
use std::process::{Output, Stdio};

use bytes::Bytes;
use ocistern::oci::{Tag, media};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::process::Command;

use crate::common::content::{Image, artifact, blob, image, image_of, sha256};
use crate::common::invariants::{check, is_stored};
use crate::common::{Cistern, Gate, Upstream, acts, patiently};

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ocistern"));
    command.arg("warm").args(arguments).env_clear().env("HOME", "/nonexistent").stdin(Stdio::null());
    command
}

async fn warm(root: &Path, arguments: &[&str]) -> Output {
    patiently("warm ends", command(arguments).arg("--root").arg(root).output()).await.unwrap()
}

/// The answers, one for each name.
async fn warmed(root: &Path, arguments: &[&str], code: i32) -> Vec<Value> {
    let arguments: Vec<&str> = arguments.iter().copied().chain(["--json"]).collect();
    let output = warm(root, &arguments).await;
    let (text, complaint) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {text}{complaint}");
    let answer: Value = serde_json::from_str(&text).unwrap();
    answer["images"].as_array().unwrap().clone()
}

/// A pull of all of it, of which nothing may come from upstream.
async fn pull_hits(cistern: &Cistern, repo: &str, reference: &str, image: &Image) {
    let got = cistern.get(format!("/v2/{repo}/manifests/{reference}")).await;
    got.assert_is(&image.manifest);
    assert!(got.header("cache-status").starts_with("ocistern; hit"), "{}", got.summary());
    for part in image.layers.iter().chain([&image.config]) {
        let got = cistern.get(format!("/v2/{repo}/blobs/{}", sha256(part))).await;
        got.assert_is(part);
        assert!(got.header("cache-status").starts_with("ocistern; hit"), "{}", got.summary());
    }
}

/// An index of these images, each for its platform.
fn index(images: &[(&str, &Image)]) -> Bytes {
    let entry = |(architecture, image): &(&str, &Image)| {
        serde_json::json!({
            "mediaType": image.media_type, "digest": image.digest.to_string(), "size": image.manifest.len(),
            "platform": {"os": "linux", "architecture": architecture},
        })
    };
    let entries: Vec<Value> = images.iter().map(entry).collect();
    serde_json::json!({"schemaVersion": 2, "mediaType": media::OCI_INDEX, "manifests": entries}).to_string().into()
}

#[tokio::test]
async fn what_was_warmed_is_a_hit_while_upstream_is_away() {
    let upstream = Upstream::start().await;
    let of_app = image(1);
    upstream.image("app", "1", &of_app);
    let cistern = Cistern::start(&upstream, "tags = \"10m\"").await;
    let images = warmed(cistern.root(), &["up/app:1"], 0).await;
    assert_eq!((&images[0]["state"], &images[0]["parts"]), (&"done".into(), &4.into()), "{images:#?}");
    assert_eq!(images[0]["bytes"], images[0]["fetched_bytes"]);
    upstream.down();
    pull_hits(&cistern, "app", "1", &of_app).await;
    check(&cistern).await;
}

#[tokio::test]
async fn a_second_run_asks_for_no_blob_and_no_manifest_again() {
    let upstream = Upstream::start().await;
    upstream.image("app", "1", &image(1));
    let cistern = Cistern::start(&upstream, "").await;
    warmed(cistern.root(), &["up/app:1"], 0).await;
    upstream.forget();
    let images = warmed(cistern.root(), &["up/app:1", "--no-referrers"], 0).await;
    assert_eq!((&images[0]["state"], &images[0]["fetched_parts"]), (&"there".into(), &0.into()), "{images:#?}");
    let asked: Vec<String> =
        upstream.log().iter().map(|entry| format!("{} {}", entry.request.method, entry.request.path)).collect();
    assert!(asked.iter().all(|asked| asked == "HEAD /v2/app/manifests/1" || asked == "GET /v2/"), "{asked:?}");
}

#[tokio::test]
async fn of_an_index_only_what_is_chosen_is_brought() {
    let upstream = Upstream::start().await;
    let (amd64, s390x) = (image(1), image(2));
    upstream.image("multi", "a", &amd64);
    upstream.image("multi", "s", &s390x);
    let bytes = index(&[("amd64", &amd64), ("s390x", &s390x)]);
    upstream.tag("multi", "1", upstream.manifest("multi", media::OCI_INDEX, &bytes));
    let cistern = Cistern::start(&upstream, "tags = \"10m\"").await;
    let images = warmed(cistern.root(), &["up/multi:1", "--platform", "linux/s390x"], 0).await;
    assert_eq!(images[0]["parts"], 5, "the index and one image: {images:#?}");
    assert!(is_stored(&cistern, &s390x.digest) && !is_stored(&cistern, &amd64.digest));
    assert!(amd64.layers.iter().all(|layer| !is_stored(&cistern, &sha256(layer))));
    let images = warmed(cistern.root(), &["up/multi:1", "--platform", "linux/riscv64"], 1).await;
    let error = images[0]["error"].as_str().unwrap();
    assert!(error.contains("linux/amd64, linux/s390x") && error.contains("--platform"), "{error}");
    warmed(cistern.root(), &["up/multi:1", "--platform", "all"], 0).await;
    upstream.down();
    pull_hits(&cistern, "multi", &amd64.digest.to_string(), &amd64).await;
}

/// By the API, by the tag that stands in for it, and by cosign's tags.
#[tokio::test]
async fn what_refers_to_an_image_comes_along() {
    for by_api in [true, false] {
        let upstream = Upstream::start().await;
        upstream.registry(|registry| registry.referrers = by_api);
        let of_app = image(1);
        let (sbom, signature) = (artifact("application/spdx+json", &of_app.digest, 1), image(7));
        upstream.image("app", "1", &of_app);
        upstream.image("app", "sbom", &sbom);
        let fallback = Tag::referrers_fallback(&of_app.digest);
        if !by_api {
            let listed = crate::common::content::index(&[&sbom]);
            upstream.tag("app", fallback.as_str(), upstream.manifest("app", media::OCI_INDEX, &listed));
        }
        let cosign = format!("{fallback}.sig");
        upstream.image("app", &cosign, &signature);
        let cistern = Cistern::start(&upstream, "tags = \"10m\"").await;
        warmed(cistern.root(), &["up/app:1", "--no-referrers"], 0).await;
        assert!(!is_stored(&cistern, &sbom.digest) && !is_stored(&cistern, &signature.digest), "{by_api}");
        let images = warmed(cistern.root(), &["up/app:1"], 0).await;
        assert_eq!(images[0]["state"], "done", "{by_api}: {images:#?}");
        upstream.down();
        pull_hits(&cistern, "app", &sbom.digest.to_string(), &sbom).await;
        pull_hits(&cistern, "app", &cosign, &signature).await;
        let list = cistern.get(format!("/v2/app/referrers/{}", of_app.digest)).await;
        assert_eq!(list.json()["manifests"][0]["digest"], sbom.digest.to_string(), "{by_api}: {}", list.summary());
    }
}

#[tokio::test]
async fn one_that_fails_stops_no_other() {
    let upstream = Upstream::start().await;
    let images = [image(1), image(2)];
    upstream.image("app", "1", &images[0]);
    upstream.image("app", "2", &images[1]);
    let broken = sha256(&images[1].layers[1]);
    upstream.script("GET", &format!("/v2/app/blobs/{broken}"), .., acts::fail(404, "BLOB_UNKNOWN"));
    let cistern = Cistern::start(&upstream, "tags = \"10m\"").await;
    let list = cistern.root().with_file_name("warm-list.txt");
    fs::write(&list, "# of the site\nup/app:2\n\nnowhere.example/a:1 # gone\nup/none:1\nup/app:1\n").unwrap();
    let file = list.to_str().unwrap();
    let answers = warmed(cistern.root(), &["--file", file, "--pin"], 1).await;
    let states: Vec<&str> = answers.iter().map(|image| image["state"].as_str().unwrap()).collect();
    assert_eq!(states, ["failed", "failed", "failed", "done"], "{answers:#?}");
    assert!(answers[0]["error"].as_str().unwrap().contains(&broken.to_string()), "{answers:#?}");
    assert!(answers[1]["error"].as_str().unwrap().contains("no upstream \"nowhere.example\""), "{answers:#?}");
    assert!(is_stored(&cistern, &sha256(&images[1].layers[0])), "what of it could be had is there");
    assert!(answers[3]["pinned"].as_bool().unwrap() && !answers[0]["pinned"].as_bool().unwrap());
    let output = warm(cistern.root(), &["--file", file]).await;
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains(&format!("{file}:4: ")) && text.ends_with("0 done, 1 already there, 3 failed\n"), "{text}");
    upstream.unscript();
    upstream.forget();
    // That upstream does not have something is remembered for a second.
    crate::common::eventually("the rest comes", || async {
        warm(cistern.root(), &["up/app:2"]).await.status.code() == Some(0)
    })
    .await;
    let asked = upstream.requests("GET", "/v2/app/blobs/*");
    assert!(asked.iter().all(|entry| entry.request.path.ends_with(&broken.to_string())), "only what was missing");
    fs::remove_file(&list).unwrap();
}

#[tokio::test]
async fn what_is_left_of_a_rate_limit_is_the_clients() {
    let upstream = Upstream::start().await;
    let images = [image(1), image(2), image(3), image(4)];
    for (tag, image) in ["1", "2", "3", "4"].into_iter().zip(&images) {
        upstream.image("app", tag, image);
    }
    let left = |left: &str| {
        upstream.unscript();
        upstream.script("*", "/v2/app/manifests/*", .., acts::header("ratelimit-remaining", left));
    };
    let cistern = Cistern::start(&upstream, "reserve = \"50%\"").await;
    left("40;w=21600");
    warmed(cistern.root(), &["up/app:1"], 0).await;
    // Of 40, which is the most there was, 20 are kept.
    left("20;w=21600");
    cistern.get("/v2/app/manifests/3").await.assert_is(&images[2].manifest);
    upstream.forget();
    let answers = warmed(cistern.root(), &["up/app:2", "up/app:1"], 1).await;
    assert_eq!((&answers[0]["state"], &answers[1]["state"]), (&"failed".into(), &"there".into()), "{answers:#?}");
    let error = answers[0]["error"].as_str().unwrap();
    assert!(error.contains("kept for clients") && error.contains("`reserve` of [upstream.\"up\"]"), "{error}");
    assert_eq!(upstream.requests("GET", "/v2/app/manifests/*").len(), 0, "HEADs are free");
    assert_eq!(upstream.requests("GET", "/v2/app/blobs/*").len(), 0);
    // Clients go on, and so does the command when there is more again.
    cistern.get("/v2/app/manifests/4").await.assert_is(&images[3].manifest);
    left("39;w=21600");
    cistern.get("/v2/app/manifests/2").await.assert_is(&images[1].manifest);
    warmed(cistern.root(), &["up/app:2"], 0).await;
    pull_hits(&cistern, "app", "2", &images[1]).await;
}

#[tokio::test]
async fn nothing_is_asked_for_when_only_names_are_wanted() {
    let upstream = Upstream::start().await;
    let cistern = Cistern::start(&upstream, "").await;
    let answers = warmed(cistern.root(), &["app", "--dry-run"], 0).await;
    assert_eq!((&answers[0]["state"], &answers[0]["image"]), (&"planned".into(), &"up/app:latest".into()));
    assert!(upstream.log().is_empty());
    for wrong in [&["two words"][..], &["app", "--platform", "amd64"], &["app", "--jobs", "65"], &[]] {
        let output = warm(cistern.root(), wrong).await;
        assert_eq!(output.status.code(), Some(64), "{wrong:?}");
    }
}

/// Whoever asked has gone in the middle of a layer: the next run goes on with it.
#[tokio::test]
async fn a_run_that_broke_off_is_gone_on_with() {
    let upstream = Upstream::start().await;
    let large = blob(5, 6 << 20);
    let of_app = image_of(5, vec![large.clone()], None);
    upstream.image("app", "1", &of_app);
    let gate = Gate::new();
    let path = format!("/v2/app/blobs/{}", sha256(&large));
    upstream.script("GET", &path, ..1, acts::hold_at(4 << 20, &gate));
    let cistern =
        Cistern::setup().upstream("up", &upstream, "tags = \"10m\"").store("abandon = \"park\"").start().await;
    let mut running = command(&["up/app:1"]).arg("--root").arg(cistern.root()).stdout(Stdio::null()).spawn().unwrap();
    patiently("the layer is under way", gate.reached(1)).await;
    let id = Pid::from_raw(i32::try_from(running.id().unwrap()).unwrap()).unwrap();
    kill_process(id, Signal::TERM).unwrap();
    assert_eq!(running.wait().await.unwrap().code(), Some(1));
    crate::common::eventually("the download is put aside", || async {
        cistern.metrics().await.contains("ocistern_fills_in_progress 0")
    })
    .await;
    gate.open();
    let answers = warmed(cistern.root(), &["up/app:1"], 0).await;
    assert_eq!(answers[0]["state"], "done");
    let again = &upstream.requests("GET", &path)[1];
    assert!(
        again.request.header("range").is_some_and(|range| range != "bytes=0-"),
        "{:?}",
        again.request.header("range")
    );
    upstream.down();
    pull_hits(&cistern, "app", "1", &of_app).await;
    check(&cistern).await;
}

#[tokio::test]
async fn a_stopped_store_is_warmed_by_the_command_itself() {
    let upstream = Upstream::start().await;
    let of_app = image(1);
    upstream.image("app", "1", &of_app);
    let mut cistern = Cistern::start(&upstream, "tags = \"10m\"").await;
    let root = cistern.root().to_owned();
    cistern.stop().await;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("config.toml");
    let url = upstream.url();
    let config =
        format!("root = {root:?}\nbuiltin_upstreams = false\n[upstream.up]\nurl = \"{url}\"\ntags = \"10m\"\n");
    fs::write(&file, config).unwrap();
    for state in ["done", "there"] {
        let output = command(&["up/app:1", "--json", "--config"]).arg(&file).output().await.unwrap();
        let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!((&answer["images"][0]["state"], output.status.code()), (&state.into(), Some(0)), "{answer:#}");
    }
    cistern.start_again().await;
    upstream.down();
    pull_hits(&cistern, "app", "1", &of_app).await;
    check(&cistern).await;
}

/// Nobody's credential is at hand: what to configure is said.
#[tokio::test]
async fn what_is_private_says_what_to_configure() {
    let upstream = Upstream::start().await;
    upstream.script("*", "/v2/**", .., acts::fail(403, "DENIED"));
    let cistern = Cistern::start(&upstream, "").await;
    let answers = warmed(cistern.root(), &["up/team/app:1"], 1).await;
    let error = answers[0]["error"].as_str().unwrap();
    assert!(error.contains("`credentials` in [upstream.\"up\"]"), "{error}");
}
