//! Restarts: what was published survives them, in order or not, whatever becomes of the index.

use std::fs;
use std::path::Path;

use crate::common::content::{blob, image, sha256};
use crate::common::invariants::{check, files};
use crate::common::{Ask, Cistern, Gate, Image, Upstream, acts};
use tokio::runtime::Runtime;

/// An ocistern that has pulled `app:1.0` whole.
async fn filled() -> (Cistern, Upstream, Image) {
    let upstream = Upstream::start().await;
    let image = image(1);
    upstream.image("app", "1.0", &image);
    let cistern = Cistern::start(&upstream, "").await;
    pull(&cistern, &image).await;
    cistern.settle().await;
    (cistern, upstream, image)
}

/// Everything of `app:1.0`, right.
async fn pull(cistern: &Cistern, image: &Image) {
    cistern.get("/v2/app/manifests/1.0").await.assert_is(&image.manifest);
    cistern.get(format!("/v2/app/manifests/{}", image.digest)).await.assert_is(&image.manifest);
    for part in image.layers.iter().chain([&image.config]) {
        cistern.get(format!("/v2/app/blobs/{}", sha256(part))).await.assert_is(part);
    }
}

#[tokio::test]
async fn content_and_tags_survive_a_restart_with_upstream_down() {
    let (mut cistern, upstream, image) = filled().await;
    upstream.down();
    for _ in 0..2 {
        cistern.restart().await;
        pull(&cistern, &image).await;
        check(&cistern).await;
    }
}

#[tokio::test]
async fn it_starts_empty_with_upstream_down_and_recovers_with_it() {
    let upstream = Upstream::start().await;
    let image = image(2);
    upstream.image("app", "1.0", &image);
    upstream.down();
    let cistern = Cistern::start(&upstream, "").await;
    let got = cistern.get("/v2/app/manifests/1.0").await;
    got.assert_fails(502);
    upstream.up();
    crate::common::eventually("upstream is found again", || async {
        cistern.get("/v2/app/manifests/1.0").await.complete()
    })
    .await;
    pull(&cistern, &image).await;
}

#[test]
fn content_and_tags_survive_a_kill() {
    let world = Runtime::new().unwrap();
    let victim = Runtime::new().unwrap();
    let upstream = world.block_on(Upstream::start());
    let image = image(3);
    upstream.image("app", "1.0", &image);
    let big = blob(4, 2_000_000);
    let target = format!("/v2/app/blobs/{}", upstream.blob("app", &big));
    let gate = Gate::new();
    upstream.script("GET", &target, .., acts::hold_at(1_000_000, &gate));
    let mut cistern = victim.block_on(Cistern::start(&upstream, ""));
    world.block_on(async {
        pull(&cistern, &image).await;
        // A client has its bytes before the disk has: what was published survives.
        cistern.settle().await;
        // One download is under way when the end comes.
        let mut live = cistern.open(&target).await;
        live.read_to(10_000).await;
    });
    // Every task of it is dropped where it stands: nothing is flushed, nothing closed in order.
    drop(victim);
    cistern.abandon();
    upstream.down();
    world.block_on(async {
        cistern.start_again().await;
        pull(&cistern, &image).await;
        let partial = cistern.get(&target).await;
        assert!(!partial.complete(), "a part was taken for the whole: {}", partial.summary());
        upstream.unscript();
        upstream.up();
        crate::common::eventually("the download succeeds", || async { cistern.get(&target).await.complete() }).await;
        cistern.get(&target).await.assert_is(&big);
        check(&cistern).await;
    });
}

#[tokio::test]
async fn the_index_may_vanish_or_rot() {
    type Damage = fn(&Path);
    let damages: [(&str, Damage); 7] = [
        ("removed", |index| fs::remove_dir_all(index).unwrap()),
        ("emptied", |index| files(index).iter().for_each(|file| fs::remove_file(file).unwrap())),
        ("zeroed", |index| files(index).iter().for_each(|file| zero(file))),
        ("truncated", |index| files(index).iter().for_each(|file| truncate(file))),
        ("garbage", |index| files(index).iter().for_each(|file| fs::write(file, "garbage".repeat(500)).unwrap())),
        ("a file instead", |index| {
            fs::remove_dir_all(index).unwrap();
            fs::write(index, "not a directory").unwrap();
        }),
        ("a snapshot that was being written", |index| {
            let directory = files(index).first().and_then(|file| file.parent().map(Path::to_owned));
            fs::write(directory.unwrap_or_else(|| index.to_owned()).join("snap.0000000000FFFFFF.generating"), "")
                .unwrap();
        }),
    ];
    for (name, damage) in damages {
        let (mut cistern, upstream, image) = filled().await;
        upstream.down();
        cistern.stop().await;
        let index = cistern.root().join("index");
        assert!(index.is_dir(), "{name}");
        damage(&index);
        cistern.start_again().await;
        pull(&cistern, &image).await;
        check(&cistern).await;
        cistern.restart().await;
        pull(&cistern, &image).await;
    }
}

#[tokio::test]
async fn damaged_refs_are_absent_and_asked_anew() {
    let (mut cistern, upstream, image) = filled().await;
    cistern.stop().await;
    let refs = files(&cistern.root().join("refs"));
    assert!(refs.iter().any(|file| file.components().any(|part| part.as_os_str() == "_tags")), "{refs:?}");
    for (number, file) in refs.iter().enumerate() {
        match number % 4 {
            0 => zero(file),
            1 => truncate(file),
            2 => fs::write(file, "{}").unwrap(),
            _ => fs::write(file, "\u{0}garbage").unwrap(),
        }
    }
    cistern.start_again().await;
    pull(&cistern, &image).await;
    upstream.down();
    cistern.restart().await;
    pull(&cistern, &image).await;
    check(&cistern).await;
}

#[tokio::test]
async fn another_url_under_the_same_name_does_not_inherit_the_tags() {
    let (mut cistern, old, image) = filled().await;
    let other = Upstream::start().await;
    cistern.stop().await;
    cistern.point_to("up", &other);
    cistern.start_again().await;
    old.down();
    cistern.get("/v2/app/manifests/1.0").await.assert_fails(404);
    cistern.get(format!("/v2/app/blobs/{}", sha256(&image.config))).await.assert_fails(404);
}

#[tokio::test]
async fn a_root_belongs_to_one_daemon_and_to_its_format() {
    let (mut cistern, _upstream, image) = filled().await;
    let refusal = cistern.second().await.expect_err("a second daemon on the root is refused");
    assert!(refusal.contains(&std::process::id().to_string()), "it names who holds it: {refusal}");
    pull(&cistern, &image).await;
    cistern.stop().await;
    let version = cistern.root().join("VERSION");
    let ours = fs::read_to_string(&version).unwrap();
    fs::write(&version, "999\n").unwrap();
    let refusal = cistern.second().await.expect_err("a newer format is refused");
    assert!(refusal.contains("999"), "it names the version: {refusal}");
    fs::write(&version, ours).unwrap();
    cistern.start_again().await;
    pull(&cistern, &image).await;
}

#[tokio::test]
async fn the_root_is_an_oci_layout() {
    let (cistern, _upstream, image) = filled().await;
    let layout = fs::read_to_string(cistern.root().join("oci-layout")).unwrap();
    let layout: serde_json::Value = serde_json::from_str(&layout).unwrap();
    assert_eq!(layout["imageLayoutVersion"], "1.0.0");
    assert!(
        fs::read_to_string(cistern.root().join("CACHEDIR.TAG"))
            .unwrap()
            .starts_with("Signature: 8a477f597d28d172789f06886806bc55")
    );
    assert_eq!(fs::read(cistern.root().join("blobs/sha256").join(image.digest.hex())).unwrap(), image.manifest);
}

#[tokio::test]
async fn a_stop_lets_running_answers_end() {
    let upstream = Upstream::start().await;
    let bytes = blob(5, 500_000);
    let target = format!("/v2/app/blobs/{}", upstream.blob("app", &bytes));
    let gate = Gate::new();
    upstream.script("GET", &target, .., acts::hold_at(200_000, &gate));
    let mut cistern = Cistern::start(&upstream, "").await;
    let client = cistern.client();
    let mut live = cistern.open(&target).await;
    live.read_to(1000).await;
    let finish = async {
        // The listener has gone, the transfer has not.
        crate::common::eventually("new connections are refused", || async {
            client.open(Ask::get("/v2/")).await.is_err()
        })
        .await;
        gate.open();
        live.finish().await
    };
    let ((), got) = tokio::join!(cistern.stop(), finish);
    got.assert_is(&bytes);
}

fn zero(file: &Path) {
    let length = fs::metadata(file).unwrap().len();
    fs::write(file, vec![0; usize::try_from(length).unwrap()]).unwrap();
}

fn truncate(file: &Path) {
    let length = fs::metadata(file).unwrap().len();
    fs::OpenOptions::new().write(true).open(file).unwrap().set_len(length / 2).unwrap();
}
