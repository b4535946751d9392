//! Images carried over a gap: exported from one ocistern, imported by another whose upstream cannot be reached, pulled there.

use std::fs;
use std::path::Path;
use std::process::{Output, Stdio};

use crate::common::content::{Image, artifact, blob, image, image_of, sha256};
use crate::common::invariants::{blob_path, check, is_stored, stored};
use crate::common::upstream::acts;
use crate::common::{Cistern, Upstream, eventually};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// Nobody listens there.
const NOWHERE: &str = "http://127.0.0.1:1";

async fn ocistern(root: &Path, arguments: &[&str]) -> Output {
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_ocistern"));
    command.args(arguments).arg("--root").arg(root).env_clear().env("HOME", "/nonexistent");
    command.output().await.unwrap()
}

/// What it says on both channels, with this exit code.
async fn says(root: &Path, arguments: &[&str], code: i32) -> String {
    let output = ocistern(root, arguments).await;
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {text}");
    text
}

async fn json(root: &Path, arguments: &[&str]) -> Value {
    let arguments: Vec<&str> = arguments.iter().copied().chain(["--json"]).collect();
    let output = ocistern(root, &arguments).await;
    assert_eq!(output.status.code(), Some(0), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

async fn pull(cistern: &Cistern, repo: &str, reference: &str, image: &Image) {
    cistern.get(format!("/v2/{repo}/manifests/{reference}")).await.assert_is(&image.manifest);
    for part in image.layers.iter().chain([&image.config]) {
        cistern.get(format!("/v2/{repo}/blobs/{}", sha256(part))).await.assert_is(part);
    }
}

/// One that has pulled two images and a signature, and has its upstream.
async fn outside() -> (Cistern, Upstream, [Image; 2], Image) {
    let upstream = Upstream::start().await;
    let images = [image(1), image(2)];
    upstream.image("app", "1", &images[0]);
    upstream.image("team/app", "V2", &images[1]);
    let signature = artifact("application/vnd.example.signature", &images[0].digest, 7);
    upstream.blob("app", &signature.config);
    upstream.manifest("app", signature.media_type, &signature.manifest);
    let cistern = Cistern::start(&upstream, "tags = \"immutable\"").await;
    pull(&cistern, "app", "1", &images[0]).await;
    pull(&cistern, "team/app", "V2", &images[1]).await;
    cistern.get(format!("/v2/app/manifests/{}", signature.digest)).await.assert_is(&signature.manifest);
    cistern.get(format!("/v2/app/blobs/{}", sha256(&signature.config))).await.assert_is(&signature.config);
    cistern.settle().await;
    (cistern, upstream, images, signature)
}

/// One on the other side of the gap.
async fn inside(keys: &str) -> Cistern {
    Cistern::setup().upstream_at("up", NOWHERE, keys).start().await
}

#[tokio::test]
async fn what_is_carried_is_served_under_its_name() {
    let (mut from, _upstream, images, signature) = outside().await;
    let place = tempfile::tempdir().unwrap();
    for (form, stopped) in [
        (&["one.tar"][..], false),
        (&["two/"], true),
        (&["three.tar.zst", "--zstd"], true),
        (&["four.tar", "--volume-size", "10KiB"], false),
    ] {
        let to = place.path().join(form[0]);
        let mut arguments = vec!["export", "--all", "--to", to.to_str().unwrap()];
        arguments.extend(&form[1..]);
        if stopped {
            from.stop().await;
        }
        let exported = json(from.root(), &arguments).await;
        if stopped {
            from.start_again().await;
        }
        assert_eq!(exported["images"], serde_json::json!(["up/app:1", "up/team/app:V2"]), "{form:?}");
        let files: Vec<&str> =
            exported["files"].as_array().unwrap().iter().rev().map(|f| f.as_str().unwrap()).collect();
        assert_eq!(files.len() > 1, form.contains(&"--volume-size"), "{files:?}");

        let mut to = inside("tags = \"sealed\"").await;
        let import: Vec<&str> = ["import"].into_iter().chain(files.iter().copied()).collect();
        let dry: Vec<&str> = import.iter().copied().chain(["--dry-run"]).collect();
        let text = says(to.root(), &dry, 0).await;
        assert!(text.contains("would be taken: 2 images"), "{text}");
        assert_eq!(stored(to.root()).len(), 0, "a dry run changes nothing");
        if stopped {
            to.stop().await;
        }
        let imported = json(to.root(), &import).await;
        assert_eq!((&imported["blobs"], &imported["skipped_blobs"]), (&10.into(), &0.into()), "{imported}");
        if stopped {
            to.start_again().await;
        }
        pull(&to, "app", "1", &images[0]).await;
        pull(&to, "team/app", "V2", &images[1]).await;
        for (repo, reference) in [("app", "1".to_owned()), ("app", images[0].digest.to_string())] {
            let got = to.get(format!("/v2/{repo}/manifests/{reference}")).await;
            assert_eq!(got.header("cache-status"), "ocistern; hit", "{form:?} {reference}");
            assert_eq!(got.header("content-type"), images[0].media_type);
        }
        to.get(format!("/v2/app/manifests/{}", signature.digest)).await.assert_is(&signature.manifest);
        let listed = to.get(format!("/v2/app/referrers/{}", images[0].digest)).await;
        assert_eq!(listed.status, 200, "{}", listed.summary());
        assert_eq!(listed.json()["manifests"][0]["digest"], signature.digest.to_string());
        // Nothing leads from one repository into another.
        to.get(format!("/v2/app/manifests/{}", images[1].digest)).await.assert_fails(404);
        let again = json(to.root(), &import).await;
        assert_eq!((&again["blobs"], &again["skipped_blobs"]), (&0.into(), &10.into()), "what is there is passed over");
        check(&to).await;
    }
    check(&from).await;
}

#[tokio::test]
async fn what_is_carried_out_was_not_used() {
    let (from, ..) = outside().await;
    let place = tempfile::tempdir().unwrap();
    let to = place.path().join("b.tar");
    let gc = ["gc", "--dry-run", "--bytes", "1"];
    let next = json(from.root(), &gc).await["evict_next"].clone();
    assert!(next[0].to_string().contains("up/app:1"), "what was pulled first goes first: {next}");
    says(from.root(), &["export", "up/app:1", "--to", to.to_str().unwrap()], 0).await;
    assert_eq!(json(from.root(), &gc).await["evict_next"], next);
}

#[tokio::test]
async fn an_upstream_that_cannot_be_reached_is_stood_in_for() {
    let (from, _upstream, images, signature) = outside().await;
    let place = tempfile::tempdir().unwrap();
    let bundle = place.path().join("b.tar");
    let bundle = bundle.to_str().unwrap();
    says(from.root(), &["export", "--to", bundle, "up/app:1"], 0).await;
    let mut to = inside("tags = \"1m\"").await;
    to.get("/v2/app/manifests/1").await.assert_fails(502);
    says(to.root(), &["import", bundle], 0).await;
    pull(&to, "app", "1", &images[0]).await;
    to.restart().await;
    pull(&to, "app", "1", &images[0]).await;
    let got = to.get(format!("/v2/app/referrers/{}", images[0].digest)).await;
    assert_eq!(got.status, 200, "{}", got.summary());
    let listed = &got.json()["manifests"][0];
    assert_eq!(listed["digest"], signature.digest.to_string());
    assert_eq!(listed["artifactType"], "application/vnd.example.signature");
    assert_eq!(listed["annotations"]["seed"], "7");
    assert!(!is_stored(&to, &images[1].digest), "it was not asked for");
}

#[tokio::test]
async fn inside_all_is_warm_although_nobody_can_be_asked_what_refers_to_it() {
    let (from, ..) = outside().await;
    let place = tempfile::tempdir().unwrap();
    let bundle = place.path().join("b.tar");
    says(from.root(), &["export", "--all", "--to", bundle.to_str().unwrap()], 0).await;
    for keys in ["tags = \"sealed\"", "rule = [{ repository = \"**\", tags = \"sealed\" }]"] {
        let to = inside(keys).await;
        says(to.root(), &["import", bundle.to_str().unwrap()], 0).await;
        let warmed = json(to.root(), &["warm", "--pin", "up/app:1", "up/team/app:V2"]).await;
        for image in warmed["images"].as_array().unwrap() {
            assert_eq!((&image["state"], &image["pinned"]), (&"there".into(), &true.into()), "{keys}: {warmed}");
        }
    }
}

#[tokio::test]
async fn a_delta_has_what_the_other_side_lacks() {
    let (from, upstream, images, _) = outside().await;
    let place = tempfile::tempdir().unwrap();
    let (first, second, list) = (place.path().join("1.tar"), place.path().join("2.tar"), place.path().join("have"));
    let (first, second) = (first.to_str().unwrap(), second.to_str().unwrap());
    let to = inside("tags = \"sealed\"").await;
    says(from.root(), &["export", "--all", "--to", first], 0).await;
    says(to.root(), &["import", first], 0).await;
    fs::write(&list, format!("# what is inside\n\n{}", says(to.root(), &["have"], 0).await)).unwrap();
    let missing_from = ["export", "--to", second, "--missing-from", list.to_str().unwrap()];
    let text = says(from.root(), &missing_from, 0).await;
    assert!(text.contains("nothing is stored here that the other side lacks"), "{text}");
    assert!(!Path::new(second).exists());

    // Of the new one a layer is there already.
    let large = blob(77, 4 << 20);
    let newer = image_of(3, vec![images[0].layers[0].clone(), large.clone()], None);
    upstream.image("app", "3", &newer);
    pull(&from, "app", "3", &newer).await;
    from.settle().await;
    for since in [None, Some(first)] {
        let arguments = since.map_or(missing_from, |bundle| ["export", "--to", second, "--since", bundle]);
        let exported = json(from.root(), &arguments).await;
        assert_eq!((&exported["images"], &exported["blobs"]), (&serde_json::json!(["up/app:3"]), &3.into()));
        let sum = large.len() + newer.manifest.len() + newer.config.len();
        assert_eq!(exported["bytes"], sum);
        let written = fs::metadata(second).unwrap().len();
        assert!(written * 1000 <= sum as u64 * 1001 + 8 * 1024 * 1000, "{written} for {sum}");
    }
    // Elsewhere it is no use, and says so before it writes anything.
    let other = inside("tags = \"sealed\"").await;
    let text = says(other.root(), &["import", second], 1).await;
    assert!(text.contains("relies on 1 blob") && text.contains("ocistern have"), "{text}");
    assert_eq!(stored(other.root()).len(), 0);
    says(to.root(), &["import", second], 0).await;
    pull(&to, "app", "3", &newer).await;
    check(&to).await;
}

#[tokio::test]
async fn damage_leaves_nothing_to_be_seen_and_the_same_command_goes_on() {
    let (from, _upstream, images, _) = outside().await;
    let place = tempfile::tempdir().unwrap();
    let bundle = place.path().join("b.tar");
    says(from.root(), &["export", "--all", "--to", bundle.to_str().unwrap()], 0).await;
    let whole = fs::read(&bundle).unwrap();
    let to = inside("tags = \"sealed\"").await;
    let layer = images[1].layers[1].clone();
    let at = whole.windows(64).position(|window| window == &layer[..64]).unwrap();
    let mut damaged = whole.clone();
    damaged[at + 100] ^= 1;
    for (content, said) in [(&damaged[..], "its content is damaged"), (&whole[..at + 5000], "it was cut off")] {
        fs::write(&bundle, content).unwrap();
        let text = says(to.root(), &["import", bundle.to_str().unwrap()], 1).await;
        assert!(text.contains(said) && text.contains(&sha256(&layer).hex()) && text.contains("at byte"), "{text}");
        to.get("/v2/app/manifests/1").await.assert_fails(404);
        to.get("/v2/team/app/manifests/V2").await.assert_fails(404);
        assert_eq!(json(to.root(), &["ls"]).await["images"], serde_json::json!([]));
    }
    // Blobs came, and no name leads to them: nothing that a delta could rely on.
    assert!(!stored(to.root()).is_empty());
    let have = json(to.root(), &["have"]).await;
    assert_eq!((&have["digests"], &have["tags"]), (&serde_json::json!([]), &serde_json::json!([])));
    assert!(!says(to.root(), &["have"], 0).await.contains("sha256:"));
    fs::write(&bundle, &whole).unwrap();
    let imported = json(to.root(), &["import", bundle.to_str().unwrap()]).await;
    assert!(imported["skipped_blobs"].as_u64().unwrap() > 0, "{imported}");
    pull(&to, "app", "1", &images[0]).await;
    pull(&to, "team/app", "V2", &images[1]).await;
    // A stored blob that is damaged does not go out.
    let path = blob_path(&from, &sha256(&layer));
    let mut bytes = fs::read(&path).unwrap();
    bytes[0] ^= 1;
    fs::write(&path, bytes).unwrap();
    fs::remove_file(&bundle).unwrap();
    let text = says(from.root(), &["export", "--all", "--to", bundle.to_str().unwrap()], 1).await;
    assert!(text.contains("ocistern verify"), "{text}");
    assert_eq!(fs::read_dir(place.path()).unwrap().count(), 0, "no bundle is left");
}

/// Else it would first evict what does not come back behind a gap, and then its own first blobs.
#[tokio::test]
async fn what_can_never_fit_is_refused_before_anything_goes() {
    let (from, upstream, images, _) = outside().await;
    let large = image_of(3, vec![blob(77, 4 << 20), blob(78, 4 << 20)], None);
    upstream.image("large", "1", &large);
    pull(&from, "large", "1", &large).await;
    from.settle().await;
    let place = tempfile::tempdir().unwrap();
    let (small, all) = (place.path().join("small.tar"), place.path().join("all.tar"));
    let (small, all) = (small.to_str().unwrap(), all.to_str().unwrap());
    says(from.root(), &["export", "up/app:1", "--to", small], 0).await;
    says(from.root(), &["export", "--all", "--to", all], 0).await;
    let to =
        Cistern::setup().upstream_at("up", NOWHERE, "tags = \"sealed\"").store("capacity = \"6MiB\"").start().await;
    says(to.root(), &["import", small], 0).await;
    let before = stored(to.root());
    for import in [&["import", all][..], &["import", "--dry-run", all]] {
        let text = says(to.root(), import, 1).await;
        assert!(text.contains("(6291456 bytes)") && text.contains("raise store.capacity"), "{text}");
        assert_eq!(stored(to.root()), before);
    }
    pull(&to, "app", "1", &images[0]).await;
}

/// Nothing of such an import waits for anything but the disk; a daemon that starts asks it to end like this.
#[tokio::test]
async fn a_signal_ends_an_import_that_only_reads() {
    let mut to = inside("tags = \"sealed\"").await;
    to.stop().await;
    let place = tempfile::tempdir().unwrap();
    let bundle = place.path().join("long.tar");
    // One blob, a hole as long as the field of its size can say.
    let name = format!("blobs/sha256/{}", sha256(b"x").hex());
    let mut header = [0_u8; 512];
    header[..name.len()].copy_from_slice(name.as_bytes());
    header[124..135].copy_from_slice(b"77777777777");
    let sum = header.iter().map(|byte| u32::from(*byte)).sum::<u32>() + 8 * u32::from(b' ');
    header[148..154].copy_from_slice(format!("{sum:06o}").as_bytes());
    fs::write(&bundle, header).unwrap();
    fs::File::options().write(true).open(&bundle).unwrap().set_len(8 << 30).unwrap();
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_ocistern"));
    command.args(["import", "--dry-run"]).arg(&bundle).arg("--root").arg(to.root());
    command.env_clear().env("HOME", "/nonexistent").stderr(Stdio::piped()).kill_on_drop(true);
    let child = command.spawn().unwrap();
    let id = child.id().unwrap();
    eventually("it reads the blob", || async {
        let io = fs::read_to_string(format!("/proc/{id}/io")).unwrap();
        let read = io.lines().find_map(|line| line.strip_prefix("rchar: ")).unwrap();
        read.parse::<u64>().unwrap() > 64 << 20
    })
    .await;
    kill_process(Pid::from_raw(i32::try_from(id).unwrap()).unwrap(), Signal::TERM).unwrap();
    let output = child.wait_with_output().await.unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && text.contains("interrupted"), "{:?}: {text}", output.status);
}

#[tokio::test]
async fn what_upstream_said_later_stays() {
    let upstream = Upstream::start().await;
    let [old, new] = [image(1), image(2)];
    upstream.image("app", "1", &old);
    let from = Cistern::start(&upstream, "tags = \"0s\"").await;
    pull(&from, "app", "1", &old).await;
    from.settle().await;
    let place = tempfile::tempdir().unwrap();
    let bundle = place.path().join("b.tar");
    let bundle = bundle.to_str().unwrap();
    says(from.root(), &["export", "--all", "--to", bundle], 0).await;
    upstream.image("app", "1", &new);
    let to = Cistern::start(&upstream, "tags = \"1h\"").await;
    pull(&to, "app", "1", &new).await;
    to.settle().await;
    let text = says(to.root(), &["import", bundle], 0).await;
    assert!(text.contains(&format!("the tag stays {}", new.digest)), "{text}");
    to.get("/v2/app/manifests/1").await.assert_is(&new.manifest);
    to.get(format!("/v2/app/manifests/{}", old.digest)).await.assert_is(&old.manifest);
    let text = says(to.root(), &["import", "--replace-newer", bundle], 0).await;
    assert!(text.contains(&format!("the tag meant {}", new.digest)), "{text}");
    to.get("/v2/app/manifests/1").await.assert_is(&old.manifest);
}

#[tokio::test]
async fn what_is_private_is_for_those_whom_the_listener_lets_through() {
    let (from, _upstream, images, _) = outside().await;
    let place = tempfile::tempdir().unwrap();
    let bundle = place.path().join("b.tar");
    says(from.root(), &["export", "up/app:1", "--to", bundle.to_str().unwrap()], 0).await;
    let password = place.path().join("password");
    fs::write(&password, "x").unwrap();
    let keys = format!(
        "tags = \"sealed\"\ncredentials = {{ from = \"static\", username = \"u\", password_file = '{}' }}",
        password.display()
    );
    // From this machine everybody is let through as the account.
    let own = inside(&keys).await;
    says(own.root(), &["import", "--private", bundle.to_str().unwrap()], 0).await;
    pull(&own, "app", "1", &images[0]).await;
    let to = inside("tags = \"sealed\"").await;
    says(to.root(), &["import", "--private", bundle.to_str().unwrap()], 0).await;
    let got = to.get("/v2/app/manifests/1").await;
    assert!(got.status >= 400, "{}", got.summary());
    let got = to.get(format!("/v2/app/blobs/{}", sha256(&images[0].config))).await;
    assert!(got.status >= 400, "{}", got.summary());
    // Later for everybody.
    says(to.root(), &["import", bundle.to_str().unwrap()], 0).await;
    pull(&to, "app", "1", &images[0]).await;
}

#[tokio::test]
async fn a_made_up_bundle_opens_nothing() {
    // What is private there must not come out by a bundle that only names it.
    let (from, _upstream, images, _) = outside().await;
    let place = tempfile::tempdir().unwrap();
    let (whole, delta) = (place.path().join("whole.tar"), place.path().join("delta.tar"));
    says(from.root(), &["export", "up/app:1", "--to", whole.to_str().unwrap()], 0).await;
    let to = inside("tags = \"sealed\"").await;
    says(to.root(), &["import", "--private", whole.to_str().unwrap()], 0).await;
    let list = place.path().join("have");
    let layers: Vec<String> = images[0].layers.iter().map(|layer| sha256(layer).to_string()).collect();
    fs::write(&list, layers.join("\n")).unwrap();
    // The same image in another repository, without its layers.
    let upstream = Upstream::start().await;
    upstream.image("open/copy", "1", &images[0]);
    let other = Cistern::start(&upstream, "tags = \"immutable\"").await;
    pull(&other, "open/copy", "1", &images[0]).await;
    other.settle().await;
    let export = ["export", "--all", "--missing-from", list.to_str().unwrap(), "--to", delta.to_str().unwrap()];
    says(other.root(), &export, 0).await;
    let text = says(to.root(), &["import", delta.to_str().unwrap()], 1).await;
    assert!(text.contains("2 parts are not in the bundle") && text.contains("1 image could not be taken"), "{text}");
    to.get("/v2/open/copy/manifests/1").await.assert_fails(404);
    to.get(format!("/v2/open/copy/blobs/{}", sha256(&images[0].layers[0]))).await.assert_fails(404);
}

#[tokio::test]
async fn nor_what_is_private_in_the_same_repository() {
    let (from, upstream, images, _) = outside().await;
    let place = tempfile::tempdir().unwrap();
    let file = |name: &str| place.path().join(name).to_str().unwrap().to_owned();
    let (whole, delta) = (file("whole.tar"), file("delta.tar"));
    says(from.root(), &["export", "up/app:1", "--to", &whole], 0).await;
    let to = inside("tags = \"sealed\"").await;
    says(to.root(), &["import", "--private", &whole], 0).await;
    // All of it is named, nothing brought.
    upstream.image("app", "2", &images[0]);
    pull(&from, "app", "2", &images[0]).await;
    from.settle().await;
    says(from.root(), &["export", "up/app:2", "--since", &whole, "--to", &delta], 0).await;
    let text = says(to.root(), &["import", &delta], 1).await;
    assert!(text.contains("not for everybody here") && text.contains("export the image whole"), "{text}");
    for target in
        ["manifests/1".to_owned(), "manifests/2".to_owned(), format!("blobs/{}", sha256(&images[0].layers[0]))]
    {
        let got = to.get(format!("/v2/app/{target}")).await;
        assert!(got.status >= 400, "{target}: {}", got.summary());
    }
    says(to.root(), &["import", "--private", &delta], 0).await;
    let got = to.get("/v2/app/manifests/2").await;
    assert!(got.status >= 400, "{}", got.summary());
}

#[tokio::test]
async fn an_older_bundle_opens_nothing_that_upstream_has_closed() {
    let upstream = Upstream::start().await;
    let [old, new] = [image(1), image(2)];
    upstream.image("app", "1", &old);
    let from = Cistern::start(&upstream, "tags = \"0s\"").await;
    pull(&from, "app", "1", &old).await;
    from.settle().await;
    let place = tempfile::tempdir().unwrap();
    let bundle = place.path().join("b.tar");
    let bundle = bundle.to_str().unwrap();
    says(from.root(), &["export", "--all", "--to", bundle], 0).await;
    upstream.image("app", "1", &new);
    let mut to = Cistern::start(&upstream, "tags = \"always\"\npublic_for = \"0s\"").await;
    pull(&to, "app", "1", &new).await;
    upstream.script("*", "/v2/app/*", .., acts::fail(403, "DENIED"));
    to.get("/v2/app/manifests/1").await.assert_fails(401);
    to.settle().await;
    to.restart().await;
    let text = says(to.root(), &["import", bundle], 0).await;
    assert!(text.contains(&format!("the tag stays {}", new.digest)), "{text}");
    upstream.down();
    for target in [format!("manifests/{}", old.digest), format!("blobs/{}", sha256(&new.layers[0]))] {
        let got = to.get(format!("/v2/app/{target}")).await;
        assert!(got.status >= 400, "{target}: {}", got.summary());
    }
}

#[tokio::test]
async fn an_image_without_a_tag_is_carried_although_its_blobs_are_there() {
    let (from, upstream, images, _) = outside().await;
    upstream.image("copy", "x", &images[0]);
    from.get(format!("/v2/copy/manifests/{}", images[0].digest)).await.assert_is(&images[0].manifest);
    for part in images[0].layers.iter().chain([&images[0].config]) {
        from.get(format!("/v2/copy/blobs/{}", sha256(part))).await.assert_is(part);
    }
    from.settle().await;
    let place = tempfile::tempdir().unwrap();
    let file = |name: &str| place.path().join(name).to_str().unwrap().to_owned();
    let (first, second, list) = (file("1.tar"), file("2.tar"), file("have"));
    let to = inside("tags = \"sealed\"").await;
    says(from.root(), &["export", "up/app:1", "--to", &first], 0).await;
    says(to.root(), &["import", &first], 0).await;
    let name = format!("up/copy@{}", images[0].digest);
    let export = ["export", &name, "--missing-from", &list, "--to", &second];
    fs::write(&list, says(to.root(), &["have"], 0).await).unwrap();
    let exported = json(from.root(), &export).await;
    assert_eq!((&exported["images"], &exported["blobs"]), (&serde_json::json!([name]), &0.into()));
    says(to.root(), &["import", &second], 0).await;
    to.get(format!("/v2/copy/manifests/{}", images[0].digest)).await.assert_is(&images[0].manifest);
    fs::remove_file(&second).unwrap();
    fs::write(&list, says(to.root(), &["have"], 0).await).unwrap();
    let text = says(from.root(), &export, 0).await;
    assert!(text.contains("nothing is stored here that the other side lacks"), "{text}");
}

#[tokio::test]
async fn what_was_damaged_inside_is_found_by_an_import_and_brought_by_the_next() {
    let (from, _upstream, images, _) = outside().await;
    let place = tempfile::tempdir().unwrap();
    let bundle = place.path().join("b.tar");
    let import = ["import", bundle.to_str().unwrap()];
    says(from.root(), &["export", "up/app:1", "--to", bundle.to_str().unwrap()], 0).await;
    let to = inside("tags = \"sealed\"").await;
    says(to.root(), &import, 0).await;
    let layer = &images[0].layers[0];
    let path = blob_path(&to, &sha256(layer));
    let mut flipped = layer.to_vec();
    flipped[0] ^= 1;
    for wrong in [&flipped[..], &layer[..layer.len() / 2]] {
        fs::write(&path, wrong).unwrap();
        let text = says(to.root(), &import, 1).await;
        assert!(text.contains("1 part is not in the store") && text.contains("set aside"), "{text}");
        assert!(!path.exists(), "it is in quarantine");
        says(to.root(), &import, 0).await;
        pull(&to, "app", "1", &images[0]).await;
    }
}

#[tokio::test]
async fn the_root_itself_becomes_a_layout() {
    let (mut from, _upstream, images, _) = outside().await;
    let text = says(from.root(), &["export", "--in-place"], 0).await;
    assert!(text.contains("names 3 manifests"), "{text}");
    let index: Value = serde_json::from_slice(&fs::read(from.root().join("index.json")).unwrap()).unwrap();
    let first = &index["manifests"][0];
    assert_eq!(first["digest"], images[0].digest.to_string());
    assert_eq!(first["annotations"]["org.opencontainers.image.ref.name"], "up/app:1");
    from.restart().await;
    check(&from).await;
    // It is one for others, and for another ocistern.
    let copy = tempfile::tempdir().unwrap();
    for name in ["oci-layout", "index.json"] {
        fs::copy(from.root().join(name), copy.path().join(name)).unwrap();
    }
    fs::create_dir_all(copy.path().join("blobs/sha256")).unwrap();
    for digest in stored(from.root()) {
        fs::copy(blob_path(&from, &digest), copy.path().join("blobs/sha256").join(digest.hex())).unwrap();
    }
    let to = inside("tags = \"sealed\"").await;
    let text = says(to.root(), &["import", copy.path().to_str().unwrap()], 1).await;
    assert!(text.contains("--as"), "`up` is no host that anybody would mean: {text}");
    let arguments = ["import", "--as", "up/app", copy.path().to_str().unwrap()];
    says(to.root(), &arguments, 0).await;
    pull(&to, "app", "1", &images[0]).await;
    pull(&to, "app", "V2", &images[1]).await;
}

#[tokio::test]
async fn mistakes_are_told() {
    let (from, ..) = outside().await;
    let place = tempfile::tempdir().unwrap();
    let file = |name: &str| place.path().join(name).to_str().unwrap().to_owned();
    fs::write(place.path().join("list"), "# fine\n\nnonsense\n").unwrap();
    let root = from.root();
    for (arguments, code, said) in [
        (vec!["export", "--to", &file("b")], 64, "say which images"),
        (vec!["export", "--all"], 64, "--to"),
        (vec!["export", "--to", &file("b"), "--missing-from", &file("list")], 64, "line 3: \"nonsense\" is no digest"),
        (vec!["export", "--to", &file("b"), "--since", "yesterday"], 64, "no time"),
        (vec!["export", "--to", &file("b"), "up/none:1"], 1, "no image in the store is called up/none:1"),
        (vec!["export", "--to", root.to_str().unwrap(), "--all"], 1, "something else in this directory"),
        (vec!["import", &file("nothing")], 1, "No such file"),
        (vec!["import", &file("list")], 1, "is cut off"),
        (vec!["import", "--as", "x", &file("list")], 64, "UPSTREAM/REPOSITORY"),
    ] {
        let text = says(root, &arguments, code).await;
        assert!(
            text.contains(said) || (said == "is cut off" && text.contains("it ends here")),
            "{arguments:?}: {text}"
        );
    }
    assert_eq!(fs::read_dir(place.path()).unwrap().count(), 1, "no bundle was begun");
}
