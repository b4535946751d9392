//! Commands that act on a store: with a daemon on it and without, by the program itself.

use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use std::process::Output;

use crate::common::content::{Image, blob, image};
use crate::common::invariants::{blob_path, check, is_stored};
use crate::common::{Cistern, Gate, Upstream, acts};
use ocistern::oci::Digest;
use rustix::fs::FlockOperation;
use rustix::process::Signal;
use serde_json::Value;

/// Runs the program on a root.
async fn ocistern(root: &Path, arguments: &[&str]) -> Output {
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_ocistern"));
    command.args(arguments).arg("--root").arg(root).env_clear().env("HOME", "/nonexistent");
    command.output().await.unwrap()
}

async fn says(root: &Path, arguments: &[&str], code: i32) -> String {
    let output = ocistern(root, arguments).await;
    let text = String::from_utf8(output.stdout).unwrap();
    let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {text}{complaint}");
    assert_eq!(code == 64 || (code == 1 && text.is_empty()), text.is_empty(), "{arguments:?}: {text}");
    text + &complaint
}

async fn json(root: &Path, arguments: &[&str]) -> Value {
    json_with(root, arguments, 0).await
}

async fn json_with(root: &Path, arguments: &[&str], code: i32) -> Value {
    let arguments: Vec<&str> = arguments.iter().copied().chain(["--json"]).collect();
    serde_json::from_str(&says(root, &arguments, code).await).unwrap()
}

async fn pull(cistern: &Cistern, repo: &str, reference: &str, image: &Image) {
    cistern.get(format!("/v2/{repo}/manifests/{reference}")).await.assert_is(&image.manifest);
    for part in image.layers.iter().chain([&image.config]) {
        cistern.get(format!("/v2/{repo}/blobs/{}", crate::common::content::sha256(part))).await.assert_is(part);
    }
}

/// Two images of `app`, and the first of them also as `other`.
async fn stored() -> (Cistern, Upstream, [Image; 2]) {
    let upstream = Upstream::start().await;
    let images = [image(1), image(2)];
    upstream.image("app", "1", &images[0]);
    upstream.image("app", "2", &images[1]);
    upstream.image("other", "1", &images[0]);
    let cistern = Cistern::start(&upstream, "tags = \"immutable\"").await;
    pull(&cistern, "app", "1", &images[0]).await;
    pull(&cistern, "app", "2", &images[1]).await;
    pull(&cistern, "other", "1", &images[0]).await;
    cistern.settle().await;
    (cistern, upstream, images)
}

fn names(answer: &Value) -> Vec<&str> {
    answer["images"].as_array().unwrap().iter().map(|image| image["name"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn what_is_said_is_the_same_with_a_daemon_and_without() {
    let (mut cistern, _upstream, images) = stored().await;
    let root = cistern.root().to_owned();
    let asked: [&[&str]; 4] = [&["ls"], &["ls", "up/app:2"], &["du"], &["gc"]];
    let mut before = Vec::new();
    for arguments in asked {
        before.push(json(&root, arguments).await);
    }
    assert_eq!(names(&before[0]), ["up/app:1", "up/app:2", "up/other:1"]);
    assert_eq!(names(&before[1]), ["up/app:2"]);
    let size: usize = images[1].manifest.len() + images[1].config.len() + 2 * 8192;
    assert_eq!((&before[0]["images"][1]["bytes"], &before[0]["images"][1]["own_bytes"]), (&size.into(), &size.into()));
    assert_eq!(before[0]["images"][0]["own_bytes"], 0);
    assert_eq!(before[2]["repositories"][0]["repository"], "app");
    assert_eq!(json(&root, &["status"]).await["stage"], "ready");
    let text = says(&root, &["ls"], 0).await;
    assert!(text.starts_with("IMAGE ") && text.contains("up/app:2 ") && text.contains(" now\n"), "{text}");
    assert!(says(&root, &["du"], 0).await.contains("\ntotal "));
    assert!(says(&root, &["status"], 0).await.contains(&format!("process {}", std::process::id())));

    cistern.stop().await;
    for (arguments, before) in asked.iter().zip(before) {
        assert_eq!(json(&root, arguments).await, before, "{arguments:?}");
    }
    let status = json_with(&root, &["status"], 1).await;
    assert_eq!((&status["stage"], &status["store"]["blobs"]), (&"stopped".into(), &8.into()));
    assert!(says(&root, &["status"], 1).await.contains("not in use"));
    assert!(says(&root, &["status", "--watch"], 1).await.contains("not in use"), "there is nothing to watch");
    // A command is no unclean stop: nothing is verified again.
    cistern.start_again().await;
    let blob = crate::common::content::sha256(&images[0].config);
    let got = cistern.get(format!("/v2/app/blobs/{blob}")).await;
    assert_eq!(got.header("cache-status"), "ocistern; hit");
    check(&cistern).await;
}

#[tokio::test]
async fn rm_removes_from_a_daemon_and_from_its_memory() {
    let (cistern, upstream, images) = stored().await;
    let root = cistern.root();
    // In memory by now.
    let by_digest = format!("/v2/app/manifests/{}", images[0].digest);
    for _ in 0..2 {
        cistern.get(&by_digest).await.assert_is(&images[0].manifest);
    }
    let text = says(root, &["rm", "--dry-run", "up/app"], 0).await;
    assert!(text.contains("up/app:1\nup/app:2\nwould be removed: 2 images, 4 blobs"), "{text}");
    assert_eq!(names(&json(root, &["ls"]).await).len(), 3);
    let removed = json(root, &["rm", "up/app"]).await;
    assert_eq!((&removed["blobs"], names(&removed)), (&4.into(), vec!["up/app:1", "up/app:2"]));
    assert!(removed["kept_bytes"].as_u64().unwrap() > 16_384, "the other repository needs the first image");
    assert!(is_stored(&cistern, &images[0].digest) && !is_stored(&cistern, &images[1].digest));
    let asked = upstream.log().len();
    cistern.get(&by_digest).await.assert_is(&images[0].manifest);
    assert!(upstream.log().len() > asked, "without a link nobody is served before upstream was asked");
    cistern.get("/v2/app/manifests/2").await.assert_is(&images[1].manifest);
    check(&cistern).await;
}

#[tokio::test]
async fn pins_are_made_listed_and_removed_with_a_daemon_and_without() {
    let (mut cistern, _upstream, images) = stored().await;
    let root = cistern.root().to_owned();
    assert_eq!(says(&root, &["pin"], 0).await, "nothing is pinned\n");
    let by_digest = format!("up/app@{}", images[0].digest);
    let text = says(&root, &["pin", "up/app:1", &by_digest], 0).await;
    assert_eq!(text, format!("pinned up/app:1\npinned {by_digest}\n"));
    assert_eq!(says(&root, &["pin", "up/app:1"], 0).await, "pinned already: up/app:1\n");
    let text = says(&root, &["pin", "up/app:1*", "up/appp:1"], 0).await;
    assert!(
        text.starts_with("pinned up/app:1*\npinned up/appp:1\nnothing in the store is called up/appp:1 yet"),
        "{text}"
    );
    assert_eq!(says(&root, &["unpin", "up/app:1*", "up/appp:1"], 0).await, "unpinned up/app:1*\nunpinned up/appp:1\n");
    let text = says(&root, &["rm", "--dry-run", "up/app:1", "up/app:2"], 0).await;
    assert!(text.starts_with("up/app:1 (its pin stays: see `ocistern unpin`)\nup/app:2\n"), "{text}");
    let again = json(&root, &["pin", "up/app:1"]).await;
    assert_eq!(again, serde_json::json!({"changed": [], "unchanged": ["up/app:1"]}));
    for (wrong, why) in [("app", "UPSTREAM/REPOSITORY"), ("nowhere/app", "no upstream nowhere")] {
        let text = says(&root, &["pin", wrong], 64).await;
        assert!(text.contains(why), "{text}");
    }
    cistern.stop().await;
    // The upstream stands in no configuration that the command knows, but something of it is stored.
    assert_eq!(says(&root, &["pin", "up/app:2"], 0).await, "pinned up/app:2\n");
    says(&root, &["pin", "nowhere/app"], 64).await;
    says(&root, &["unpin", "up/app:2"], 0).await;
    let pins = json(&root, &["pin"]).await;
    let pin = |name: &str| serde_json::json!({"name": name, "configured": false});
    let mut expected = [pin("up/app:1"), pin(&by_digest)];
    expected.sort_by_key(|pin| pin["name"].to_string());
    let mut found = pins["pins"].as_array().unwrap().clone();
    found.sort_by_key(|pin| pin["name"].to_string());
    assert_eq!(found, expected);
    let text = says(&root, &["unpin", "up/app:1", "up/app:2"], 1).await;
    assert!(text.contains("unpinned up/app:1") && text.contains("no pin by command is called up/app:2"), "{text}");
    cistern.start_again().await;
    assert_eq!(json(&root, &["pin"]).await["pins"], serde_json::json!([pin(&by_digest)]));
    says(&root, &["unpin"], 64).await;
    check(&cistern).await;
}

/// More names than a query has fields, in more bytes than a request's head may have.
#[tokio::test]
async fn a_long_list_is_pinned_with_a_daemon_and_unpinned_without() {
    let (mut cistern, _upstream, _) = stored().await;
    let root = cistern.root().to_owned();
    let list = root.with_file_name("images.txt");
    let name = |n: usize| format!("up/{}/app:{n}", "team".repeat(20));
    let lines: Vec<String> = (0..300).map(|n| format!("{} # the {n}th", name(n))).collect();
    fs::write(&list, lines.join("\r\n\r\n")).unwrap();
    let file = list.to_str().unwrap();
    let pinned = json(&root, &["pin", "--file", file, "up/app:1"]).await;
    assert_eq!(pinned["changed"].as_array().unwrap().len(), 301);
    cistern.stop().await;
    let unpinned = json(&root, &["unpin", "--file", file]).await;
    assert_eq!(unpinned["changed"].as_array().unwrap().len(), 300);
    assert_eq!(json(&root, &["pin"]).await["pins"][0]["name"], "up/app:1");
    fs::write(&list, "up/app:1\nup/app :1\n\nhttps://up/app\n").unwrap();
    let text = says(&root, &["pin", "--file", file], 64).await;
    assert!(text.contains(&format!("{file}:2: ")) && text.contains(&format!("{file}:4: ")), "{text}");
    fs::write(&list, "# nothing yet\n").unwrap();
    let text = says(&root, &["unpin", "--file", file], 64).await;
    assert!(text.contains("there is no name in this list"), "{text}");
    fs::remove_file(&list).unwrap();
}

#[tokio::test]
async fn rm_on_a_stopped_store_and_of_what_is_not_there() {
    let (mut cistern, _upstream, images) = stored().await;
    cistern.stop().await;
    let root = cistern.root().to_owned();
    let text = says(&root, &["rm", "up/app:2", "up/none"], 1).await;
    assert!(text.contains("removed: 1 image") && text.contains("no image in the store is called up/none"), "{text}");
    assert!(!is_stored(&cistern, &images[1].digest));
    let text = says(&root, &["rm", "app"], 64).await;
    assert!(text.contains("UPSTREAM/REPOSITORY"), "{text}");
    says(&root, &["rm"], 64).await;
    says(&root, &["gc", "--bytes", "1GiB"], 64).await;
    cistern.start_again().await;
    pull(&cistern, "app", "2", &images[1]).await;
    check(&cistern).await;
}

fn flip(cistern: &Cistern, digest: &Digest) {
    let path = blob_path(cistern, digest);
    let file = fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, 9).unwrap();
    file.write_all_at(&[byte[0] ^ 1], 9).unwrap();
}

#[tokio::test]
async fn verify_fails_once_for_what_is_wrong() {
    let (mut cistern, _upstream, images) = stored().await;
    let root = cistern.root().to_owned();
    assert!(says(&root, &["verify"], 0).await.contains("verified 8 blobs"));
    let layer = crate::common::content::sha256(&images[1].layers[0]);
    flip(&cistern, &layer);
    says(&root, &["verify", "up/other"], 0).await;
    let text = says(&root, &["verify", "--rate", "100MiB/s"], 1).await;
    assert!(
        text.contains(&format!("{layer} (8.0 KiB), of up/app:2")),
        "the image, not what nobody has ever typed: {text}"
    );
    assert_eq!(cistern.metric("ocistern_corrupt_blobs_total", &[]).await, 1);
    says(&root, &["verify", "--repair"], 0).await;
    pull(&cistern, "app", "2", &images[1]).await;
    cistern.settle().await;
    cistern.stop().await;
    flip(&cistern, &layer);
    let text = says(&root, &["verify", "up/app:2", "--json"], 1).await;
    let answer: Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
    assert_eq!(answer["wrong"][0]["digest"], layer.to_string());
    says(&root, &["verify"], 0).await;
    cistern.start_again().await;
    pull(&cistern, "app", "2", &images[1]).await;
    check(&cistern).await;
}

#[tokio::test]
async fn gc_cleans_up_with_a_daemon_and_without() {
    let (mut cistern, _upstream, _) = stored().await;
    let root = cistern.root().to_owned();
    assert!(says(&root, &["gc"], 0).await.contains("nothing to clean up"));
    fs::create_dir_all(root.join("refs/up/old/empty")).unwrap();
    let text = says(&root, &["gc", "--dry-run", "--bytes", "1KiB"], 0).await;
    assert!(text.contains("would be cleaned up:\n2 empty directories\n"), "{text}");
    assert!(text.contains("to free 1.0 KiB, would be evicted:\nBLOB "), "{text}");
    let text = says(&root, &["gc", "--dry-run"], 0).await;
    assert!(text.contains("would be evicted:\nBLOB "), "a part of a small store: {text}");
    let text = says(&root, &["gc", "--dry-run", "--bytes", "1TiB"], 0).await;
    assert!(text.contains("\n1.0 TiB cannot be freed, so nothing is listed: the store holds 3"), "{text}");
    says(&root, &["pin", "up/app"], 0).await;
    says(&root, &["pin", "up/other"], 0).await;
    let text = says(&root, &["gc", "--dry-run"], 0).await;
    assert!(text.contains("\nnothing may be evicted: all that is stored, 3"), "all of it is pinned: {text}");
    says(&root, &["unpin", "up/app"], 0).await;
    says(&root, &["unpin", "up/other"], 0).await;
    assert!(root.join("refs/up/old/empty").exists());
    says(&root, &["gc"], 0).await;
    assert!(!root.join("refs/up/old/empty").exists());
    cistern.stop().await;
    fs::create_dir(root.join("index.bad-7")).unwrap();
    assert_eq!(json(&root, &["gc"]).await["bad_indexes"], 1);
    assert!(!root.join("index.bad-7").exists());
    cistern.start_again().await;
    check(&cistern).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_download_has_left_is_counted_and_goes_with_its_repository() {
    const MIB: u64 = 1 << 20;
    let upstream = Upstream::start().await;
    let digest = upstream.blob("app", &blob(9, 8 << 20));
    let (target, gate) = (format!("/v2/app/blobs/{digest}"), Gate::new());
    upstream.script("GET", &target, 0..1, acts::hold_at(5 * MIB, &gate));
    let mut cistern = Cistern::start(&upstream, "").await;
    let root = cistern.root().to_owned();
    let mut reader = cistern.open(&target).await;
    gate.reached(1).await;
    reader.read_to(4 * MIB).await;
    let stopped = cistern.stop();
    drop(reader);
    stopped.await;
    let kept = || fs::read_dir(root.join("fills")).unwrap().count();
    assert!(says(&root, &["du"], 0).await.contains("of downloads, running or interrupted, besides"));
    let text = says(&root, &["gc", "--dry-run", "--bytes", "1MiB"], 0).await;
    assert!(text.starts_with("nothing to clean up\n"), "it is young: {text}");
    assert!(text.contains("to free 1.0 MiB, unfinished downloads would go first, 1.0 MiB\n"), "{text}");
    let text = says(&root, &["rm", "--dry-run", "up/app"], 0).await;
    assert!(text.starts_with("would be removed: 1 unfinished download, "), "{text}");
    assert_eq!(kept(), 2);
    cistern.start_again().await;
    assert!(says(&root, &["rm", "up/app:1"], 1).await.contains("no image in the store is called up/app:1"));
    let text = says(&root, &["rm", "up/app"], 0).await;
    assert!(text.starts_with("removed: 1 unfinished download, "), "{text}");
    assert_eq!(kept(), 0);
    assert!(says(&root, &["rm", "up/app"], 1).await.contains("no image in the store is called up/app"));
    check(&cistern).await;
}

#[tokio::test]
async fn who_has_the_store_and_does_not_answer_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    let text = says(root, &["ls"], 1).await;
    assert!(text.contains("there is no store in") && fs::read_dir(root).unwrap().count() == 0, "{text}");
    fs::write(root.join("VERSION"), "1\n").unwrap();
    let socket = root.join("gone.sock");
    fs::write(root.join("lock"), format!("{{\"pid\":4242,\"socket\":{socket:?}}}")).unwrap();
    let lock = fs::File::open(root.join("lock")).unwrap();
    rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).unwrap();
    let text = says(root, &["ls"], 1).await;
    assert!(
        text.contains("in use by process 4242, and there is no admin socket ") && text.contains("gone.sock"),
        "{text}"
    );
    // It listens, and says nothing that is HTTP.
    let listener = tokio::net::UnixListener::bind(&socket).unwrap();
    let (text, ()) = tokio::join!(says(root, &["du"], 1), async {
        drop(listener.accept().await.unwrap());
    });
    assert!(text.contains("process 4242") && text.contains("does not answer properly"), "{text}");
    drop(lock);
    assert_eq!(says(root, &["ls"], 0).await, "nothing\n");
}

#[tokio::test]
async fn a_socket_elsewhere_is_found_by_the_lock() {
    let upstream = Upstream::start().await;
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("admin.sock");
    let mut cistern = Cistern::setup().upstream("up", &upstream, "").start().await;
    let holder: Value = serde_json::from_slice(&fs::read(cistern.root().join("lock")).unwrap()).unwrap();
    assert_eq!(holder["pid"], std::process::id());
    // What stands in the lock counts, not where the socket would be by default.
    fs::rename(cistern.root().join("ocistern.sock"), &socket).unwrap();
    let text = format!("{{\"pid\":{},\"socket\":{socket:?}}}", std::process::id());
    fs::write(cistern.root().join("lock"), text).unwrap();
    assert_eq!(json(cistern.root(), &["status"]).await["stage"], "ready");
    cistern.stop().await;
}

/// What root leaves in a store, its daemon could not read.
#[tokio::test]
async fn another_users_store_is_left_to_its_daemon() {
    if !rustix::process::geteuid().is_root() {
        // Nobody else can give a directory away.
        return;
    }
    let (mut cistern, _upstream, _) = stored().await;
    let root = cistern.root().to_owned();
    std::os::unix::fs::chown(&root, Some(65_534), None).unwrap();
    assert_eq!(names(&json(&root, &["ls"]).await).len(), 3, "the daemon is asked");
    cistern.stop().await;
    let text = says(&root, &["ls"], 1).await;
    assert!(text.contains("belongs to the user 65534, and no daemon answers at"), "{text}");
    what_is_told_works(&root, &text).await;
    let refused = cistern.second().await.expect_err("root serves another user's store");
    assert!(refused.contains("belongs to the user 65534"), "{refused}");
}

/// Runs the command that a message tells to type, as whoever typed the first one.
async fn what_is_told_works(root: &Path, said: &str) {
    let line = said.split('`').nth(1).unwrap_or_else(|| panic!("nothing to type: {said}"));
    assert!(line.contains("env HOME=/ ") && line.ends_with(&format!(" ls --root {}", root.display())), "{line}");
    for path in root.ancestors().skip(1).take_while(|path| *path != std::env::temp_dir()) {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let sh = async |line: &str| tokio::process::Command::new("sh").args(["-c", line]).output().await.unwrap();
    assert!(sh(&format!("chown -R 65534 {}", root.display())).await.status.success());
    let program = env!("CARGO_BIN_EXE_ocistern");
    if !sh(&format!("setpriv --reuid=65534 --clear-groups test -x {program}")).await.status.success() {
        // A build below somebody's home is for nobody else.
        return;
    }
    let output = sh(line).await;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success() && text.contains("up/app:1 "),
        "{line}: {text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// The root is taken as long as its process lives, whatever becomes of the file that says by whom.
#[tokio::test]
async fn a_root_without_its_lock_file_is_still_taken() {
    let (mut cistern, _upstream, _) = stored().await;
    let root = cistern.root().to_owned();
    fs::remove_file(root.join("lock")).unwrap();
    assert_eq!(json(&root, &["status"]).await["stage"], "ready", "the daemon is asked");
    let refused = cistern.second().await.expect_err("a second daemon takes the root");
    assert!(refused.contains("in use"), "{refused}");
    cistern.stop().await;
    assert_eq!(json_with(&root, &["status"], 1).await["stage"], "stopped");
}

/// A command at work for a long time on a stopped store.
async fn long_command(root: &Path) -> tokio::process::Child {
    at_work(root, tokio::process::Command::new(env!("CARGO_BIN_EXE_ocistern"))).await
}

async fn at_work(root: &Path, mut command: tokio::process::Command) -> tokio::process::Child {
    command.args(["verify", "--rate", "1kB/s", "--root"]).arg(root).env_clear().env("HOME", "/nonexistent");
    let child = command.stderr(std::process::Stdio::piped()).kill_on_drop(true).spawn().unwrap();
    let pid = child.id().unwrap();
    crate::common::eventually("the command has the store", || async {
        let holder = fs::read(root.join("lock")).ok().and_then(|text| serde_json::from_slice::<Value>(&text).ok());
        holder.is_some_and(|holder| holder["pid"] == pid)
    })
    .await;
    child
}

async fn ended(child: tokio::process::Child) -> (Option<i32>, String) {
    let output = child.wait_with_output().await.unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

/// Whether the store was left as after a clean stop.
fn is_clean(root: &Path) -> bool {
    fs::read_to_string(root.join("state/epoch")).unwrap().contains("\"clean\":true")
}

#[tokio::test]
async fn a_daemon_starts_between_commands_that_follow_each_other() {
    let (mut cistern, _upstream, _) = stored().await;
    cistern.stop().await;
    let root = cistern.root().to_owned();
    let running = std::sync::atomic::AtomicBool::new(true);
    let commands = async || {
        while running.load(std::sync::atomic::Ordering::Relaxed) {
            // Some are interrupted by the daemon.
            let output = ocistern(&root, &["status", "--json"]).await;
            assert!(matches!(output.status.code(), Some(0 | 1)), "{output:?}");
        }
    };
    let daemon = async {
        cistern.start_again().await;
        running.store(false, std::sync::atomic::Ordering::Relaxed);
    };
    tokio::join!(commands(), commands(), commands(), daemon);
    assert_eq!(json(&root, &["status"]).await["stage"], "ready");
    check(&cistern).await;
}

#[tokio::test]
async fn a_daemon_ends_the_command_that_has_its_store() {
    let (mut cistern, _upstream, images) = stored().await;
    cistern.stop().await;
    let root = cistern.root().to_owned();
    let command = long_command(&root).await;
    cistern.start_again().await;
    let (code, said) = ended(command).await;
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("interrupted"), "{said}");
    let got = cistern.get(format!("/v2/app/blobs/{}", crate::common::content::sha256(&images[0].config))).await;
    assert_eq!(got.header("cache-status"), "ocistern; hit");
    check(&cistern).await;
}

#[tokio::test]
async fn a_command_that_loses_its_terminal_ends_cleanly() {
    let (mut cistern, _upstream, _) = stored().await;
    cistern.stop().await;
    let root = cistern.root().to_owned();
    assert!(is_clean(&root));
    for signal in [Signal::HUP, Signal::INT] {
        let command = long_command(&root).await;
        kill(&command, signal);
        let (code, said) = ended(command).await;
        assert_eq!(code, Some(1), "{signal:?}: {said}");
        assert!(is_clean(&root), "{signal:?}");
    }
    // Who started it with `nohup` wants it to go on.
    let mut nohup = tokio::process::Command::new("/bin/sh");
    nohup.args(["-c", "trap '' HUP; exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_ocistern")]);
    let command = at_work(&root, nohup).await;
    let status = fs::read_to_string(format!("/proc/{}/status", command.id().unwrap())).unwrap();
    let has = |mask: &str, signal: Signal| {
        let mask = status.lines().find_map(|line| line.strip_prefix(mask)).unwrap().trim();
        u64::from_str_radix(mask, 16).unwrap() >> (signal.as_raw() - 1) & 1 == 1
    };
    assert!(has("SigIgn:", Signal::HUP) && !has("SigCgt:", Signal::HUP) && has("SigCgt:", Signal::INT), "{status}");
    kill(&command, Signal::INT);
    let (code, said) = ended(command).await;
    assert_eq!(code, Some(1), "{said}");
}

fn kill(command: &tokio::process::Child, signal: Signal) {
    let pid = rustix::process::Pid::from_raw(command.id().unwrap().cast_signed()).unwrap();
    rustix::process::kill_process(pid, signal).unwrap();
}

#[tokio::test]
async fn images_have_the_names_that_they_were_pulled_by() {
    let upstream = Upstream::start().await;
    let image = image(1);
    upstream.image("library/app", "1", &image);
    let setup = Cistern::setup().upstream("up", &upstream, "library = true\ntags = \"immutable\"");
    let cistern = setup.listener("public_url = \"http://cache.test:5000\"").start().await;
    pull(&cistern, "app", "1", &image).await;
    cistern.settle().await;
    let root = cistern.root();
    for name in ["up/app:1", "cache.test:5000/app:1", "cache.test:5000/library/app:1", "cache.test:5000/up/app:1"] {
        assert_eq!(names(&json(root, &["ls", name]).await), ["up/library/app:1"], "{name}");
        assert_eq!(json(root, &["verify", name]).await["blobs"], 4, "{name}");
        assert_eq!(names(&json(root, &["rm", "--dry-run", name]).await), ["up/library/app:1"], "{name}");
        assert_eq!(says(root, &["pin", name], 0).await, "pinned up/library/app:1\n", "{name}");
        assert_eq!(says(root, &["unpin", name], 0).await, "unpinned up/library/app:1\n", "{name}");
    }
    for command in ["ls", "rm", "verify", "pin"] {
        let said = says(root, &[command, "cache.test:5001/app:1"], 64).await;
        assert!(said.contains("such as up/app:1"), "{said}");
    }
}

#[tokio::test]
async fn verify_of_what_is_not_there_fails() {
    let (mut cistern, _upstream, images) = stored().await;
    let root = cistern.root().to_owned();
    let text = says(&root, &["verify", "up/none"], 1).await;
    assert_eq!(text, "ocistern: no image in the store is called up/none\n", "and not that all of it was verified");
    assert_eq!(says(&root, &["ls", "up/none"], 0).await, "nothing in the store is called up/none\n");
    let layer = crate::common::content::sha256(&images[1].layers[0]);
    cistern.stop().await;
    fs::remove_file(blob_path(&cistern, &layer)).unwrap();
    let text = says(&root, &["verify", "up/app:2"], 1).await;
    assert!(text.contains(&format!("not there: {layer}")), "{text}");
    says(&root, &["verify", "up/app:1"], 0).await;
    let text = says(&root, &["ls"], 0).await;
    let line = |name: &str| text.lines().find(|line| line.starts_with(name)).unwrap().to_owned();
    assert!(line("up/app:2 ").contains(" 1 blob "), "{text}");
    assert!(line("up/app:1 ").contains(" - "), "{text}");
    fs::remove_file(blob_path(&cistern, &images[1].digest)).unwrap();
    let text = says(&root, &["ls", "up/app:2"], 0).await;
    assert!(text.contains(" manifest "), "{text}");
    says(&root, &["verify", "up/app:2"], 1).await;
}

/// What a person sees, while a download runs; and what a program reads, an answer a line.
#[tokio::test]
async fn status_shows_it_all_again_and_again() {
    let (mut cistern, upstream, _) = stored().await;
    let root = cistern.root().to_owned();
    let (large, gate) = (blob(5, 3 << 20), Gate::new());
    let held = upstream.blob("app", &large);
    upstream.script("GET", &format!("/v2/app/blobs/{held}"), .., acts::hold_at(1 << 20, &gate));
    let pulling = cistern.open(format!("/v2/app/blobs/{held}")).await;
    gate.reached(1).await;
    let text = says(&root, &["status"], 0).await;
    for part in ["daemon     ready", "hit ratio  ", "saved      ", "up        answering", "1 download\n[", "  up/app\n"]
    {
        assert!(text.contains(part), "{part:?} is missing in\n{text}");
    }
    assert!(!text.contains('\x1b'), "no terminal, no control sequences: {text}");

    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_ocistern"));
    command.args(["status", "--watch", "--json", "--root"]).arg(&root).env_clear().env("HOME", "/nonexistent");
    let mut child = command.stdout(std::process::Stdio::piped()).kill_on_drop(true).spawn().unwrap();
    let mut lines = tokio::io::AsyncBufReadExt::lines(tokio::io::BufReader::new(child.stdout.take().unwrap()));
    for _ in 0..2 {
        let line = lines.next_line().await.unwrap().unwrap();
        let status: Value = serde_json::from_str(&line).unwrap();
        assert_eq!((&status["stage"], &status["fills"][0]["size"]), (&"ready".into(), &(3 << 20).into()), "{line}");
    }
    gate.open();
    drop(pulling.finish().await);
    // It ends with the daemon, and says so.
    cistern.stop().await;
    let status = crate::common::patiently("the watch ends", child.wait()).await.unwrap();
    assert_eq!(status.code(), Some(1));
}

/// `status --watch | head -1`: whoever has read enough is not waited for until the daemon's end.
#[tokio::test]
async fn a_watch_ends_when_nobody_reads_it() {
    let (cistern, _upstream, _) = stored().await;
    for form in [&["status", "--watch", "--json"][..], &["status", "--watch"]] {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_ocistern"));
        command.args(form).arg("--root").arg(cistern.root()).env_clear().env("HOME", "/nonexistent");
        command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().unwrap();
        let mut lines = tokio::io::AsyncBufReadExt::lines(tokio::io::BufReader::new(child.stdout.take().unwrap()));
        assert!(lines.next_line().await.unwrap().is_some());
        drop(lines);
        let output = crate::common::patiently("the watch ends", child.wait_with_output()).await.unwrap();
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert_eq!((output.status.code(), &*complaint), (Some(0), ""), "{form:?}: quietly, a daemon serves");
    }
}
