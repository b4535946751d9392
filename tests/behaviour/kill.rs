//! The daemon killed at each step of a push and of a delete, on whichever side of upstream's commit: after it no wrong tag
//! is served, nothing is left of what was under way, and the next push succeeds.

use std::path::Path;

use crate::common::content::{image, sha256};
use crate::common::invariants::{check_blobs, files};
use crate::common::uploading::{ANY, UPLOADS, closing};
use crate::common::upstream::Then;
use crate::common::{Ask, Client, Daemon, Gate, Got, Image, Upstream, acts, eventually};
use ocistern::oci::Digest;
use tempfile::TempDir;
use tokio::task::JoinSet;

const BY_TAG: &str = "/v2/app/manifests/1.0";

/// What the daemon waits for when it is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Begin,
    Part,
    Close,
    Manifest,
    DeleteManifest,
    DeleteTag,
}

/// When upstream commits it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Commit {
    /// Before the kill; its answer is still to come.
    Before,
    /// Between the kill and the next start: the request was on its way.
    After,
    /// After the next start, when a pull has asked already: upstream is slow.
    Late,
    /// Never: the connection broke.
    Never,
}

/// An upstream that has `first` as `1.0`, a daemon that knows it, and `second`, which is to take its place.
struct World {
    directory: TempDir,
    upstream: Upstream,
    first: Image,
    second: Image,
    daemon: Option<Daemon>,
}

impl World {
    async fn new(tags: &str) -> Self {
        let (first, second) = (image(1), image(2));
        let upstream = Upstream::start().await;
        upstream.registry(|registry| {
            registry.deletes_tags = true;
            registry.forgets_broken_uploads = true;
        });
        upstream.image("app", "1.0", &first);
        let directory = tempfile::tempdir().unwrap();
        Daemon::configure(directory.path(), &upstream, &format!("tags = {tags:?}"));
        let mut world = Self { directory, upstream, first, second, daemon: None };
        world.start().await;
        world.client().get(BY_TAG).await.assert_is(&world.first.manifest);
        world.client().get(by_digest(&world.first.digest)).await.assert_is(&world.first.manifest);
        world
    }

    async fn start(&mut self) {
        self.daemon = Some(Daemon::start(&self.directory.path().join("config.toml")).await);
    }

    fn client(&self) -> Client {
        self.daemon.as_ref().unwrap().client
    }

    fn root(&self) -> std::path::PathBuf {
        self.directory.path().join("root")
    }

    /// What upstream says that the tag means.
    fn truth(&self) -> Option<Digest> {
        self.upstream.registry(|registry| registry.repos["app"].tags.get("1.0").copied())
    }

    /// The request of that step, after those that come before it; and how many bytes of body it has.
    async fn ask(&self, step: Step) -> (Ask, usize) {
        let layer = &self.second.layers[0];
        match step {
            Step::Begin => (Ask::post(UPLOADS), 0),
            Step::Part => (Ask::patch(self.begin().await).body(layer.clone()), layer.len()),
            Step::Close => {
                let (first, last) = (layer.slice(..5000), layer.slice(5000..));
                let got = self.client().send(Ask::patch(self.begin().await).body(first)).await;
                let length = last.len();
                (Ask::put(closing(got.header("location"), &sha256(layer))).body(last), length)
            }
            Step::Manifest => {
                for part in self.second.layers.iter().chain([&self.second.config]) {
                    self.upstream.blob("app", part);
                }
                (put(&self.second), self.second.manifest.len())
            }
            Step::DeleteManifest => (Ask::delete(by_digest(&self.first.digest)), 0),
            Step::DeleteTag => (Ask::delete(BY_TAG), 0),
        }
    }

    async fn begin(&self) -> String {
        let got = self.client().send(Ask::post(UPLOADS)).await;
        assert_eq!(got.status, 202, "{}", got.summary());
        got.header("location").to_owned()
    }

    /// Kills the daemon in that step, and starts it again.
    async fn kill_in(&mut self, step: Step, commit: Commit) {
        let (ask, length) = self.ask(step).await;
        let (method, path) = match step {
            Step::Begin => ("POST", ANY),
            Step::Part => ("PATCH", ANY),
            Step::Close => ("PUT", ANY),
            Step::Manifest => ("PUT", "*/manifests/*"),
            Step::DeleteManifest | Step::DeleteTag => ("DELETE", "*/manifests/*"),
        };
        let gate = Gate::new();
        match commit {
            Commit::Before => self.upstream.script(method, path, .., acts::hold_head(&gate)),
            Commit::After | Commit::Late | Commit::Never => {
                self.upstream.take_in(method, path, .., length as u64, Then::Hold(gate.clone()));
            }
        }
        let client = self.client();
        let mut asking = JoinSet::new();
        asking.spawn(async move { client.send(ask).await });
        gate.reached(1).await;
        if matches!(step, Step::Part | Step::Close) {
            assert!(!fills(&self.root()).is_empty(), "something is under way");
        }
        let seen = self.upstream.count(method, path);
        self.daemon.take().unwrap().kill();
        let got = asking.join_next().await.unwrap().unwrap();
        assert_eq!(got.status, 0, "nobody was told anything: {}", got.summary());
        match commit {
            Commit::Before => gate.open(),
            Commit::After => {
                gate.open();
                self.upstream.until(method, path, seen + 1).await;
            }
            Commit::Late => {}
            Commit::Never => self.upstream.down(),
        }
        self.upstream.unscript();
        self.start().await;
        if commit == Commit::Late {
            self.client().get(BY_TAG).await.assert_is(&self.first.manifest);
            self.client().get(BY_TAG).await.assert_is(&self.first.manifest);
            gate.open();
            self.upstream.until(method, path, seen + 1).await;
        }
    }

    /// An answer about the tag that ends well says what upstream says.
    #[track_caller]
    fn assert_true(&self, got: &Got, case: &str) {
        let truth = self.truth();
        assert!(!got.complete() || Some(got.digest) == truth, "{case}: a wrong tag: {}", got.summary());
        assert!(got.status != 404 || truth.is_none(), "{case}: a tag that is there: {}", got.summary());
    }

    async fn push(&self, image: &Image) {
        let client = self.client();
        for part in image.layers.iter().chain([&image.config]) {
            let digest = sha256(part);
            let got = client.send(Ask::patch(self.begin().await).body(part.clone())).await;
            assert_eq!(got.status, 202, "{}", got.summary());
            let got = client.send(Ask::put(closing(got.header("location"), &digest))).await;
            assert_eq!(got.status, 201, "{}", got.summary());
            assert_eq!(self.upstream.registry(|registry| registry.repos["app"].blobs[&digest].clone()), *part);
        }
        let got = client.send(put(image)).await;
        assert_eq!(got.status, 201, "{}", got.summary());
    }
}

fn put(image: &Image) -> Ask {
    Ask::put(BY_TAG).with("content-type", image.media_type).body(image.manifest.clone())
}

fn by_digest(digest: &Digest) -> String {
    format!("/v2/app/manifests/{digest}")
}

fn fills(root: &Path) -> Vec<std::path::PathBuf> {
    files(&root.join("fills"))
}

/// A write that upstream takes after the daemon has come back, and was asked about the tag meanwhile.
async fn survives_a_late(step: Step) {
    for known in [true, false] {
        let case = format!("{step:?}, the tag was known: {known}");
        let mut world = World::new("immutable").await;
        if !known {
            // It is upstream alone that has it: somebody else's push.
            world.daemon.take().unwrap().stop().await;
            std::fs::remove_dir_all(world.root().join("refs")).unwrap();
            world.start().await;
        }
        world.kill_in(step, Commit::Late).await;
        let expected = (step == Step::Manifest).then_some(world.second.digest);
        assert_eq!(world.truth(), expected, "{case}: upstream did as it was scripted");
        for _ in 0..2 {
            world.assert_true(&world.client().get(BY_TAG).await, &case);
        }
        // A stop in good order must not pass for the end of the write either.
        world.daemon.take().unwrap().stop().await;
        world.start().await;
        world.assert_true(&world.client().get(BY_TAG).await, &case);
    }
}

#[tokio::test]
async fn a_manifest_that_upstream_takes_late() {
    survives_a_late(Step::Manifest).await;
}

#[tokio::test]
async fn a_delete_of_a_manifest_that_upstream_takes_late() {
    survives_a_late(Step::DeleteManifest).await;
}

#[tokio::test]
async fn a_delete_of_a_tag_that_upstream_takes_late() {
    survives_a_late(Step::DeleteTag).await;
}

/// The step, under each policy and on each side of the commit.
async fn survives(step: Step) {
    for tags in ["immutable", "1h"] {
        for commit in [Commit::Before, Commit::After, Commit::Never] {
            let case = format!("{step:?}, commit {commit:?}, tags {tags}");
            let mut world = World::new(tags).await;
            world.kill_in(step, commit).await;
            let expected = match (step, commit) {
                (Step::Manifest, Commit::Before | Commit::After) => Some(world.second.digest),
                (Step::DeleteManifest | Step::DeleteTag, Commit::Before | Commit::After) => None,
                _ => Some(world.first.digest),
            };
            assert_eq!(world.truth(), expected, "{case}: upstream did as it was scripted");
            // First while upstream cannot be asked.
            world.upstream.down();
            world.assert_true(&world.client().get(BY_TAG).await, &case);
            world.upstream.up();
            eventually("upstream is asked", || async {
                let got = world.client().get(BY_TAG).await;
                world.assert_true(&got, &case);
                matches!(got.status, 200 | 404)
            })
            .await;
            world.assert_true(&world.client().get(BY_TAG).await, &case);
            let deleted = step == Step::DeleteManifest && commit != Commit::Never;
            let got = world.client().get(by_digest(&world.first.digest)).await;
            assert_eq!(got.status, if deleted { 404 } else { 200 }, "{case}: by digest: {}", got.summary());

            let daemon = world.daemon.as_ref().unwrap();
            eventually("nothing of it is left", || async {
                let blobs = files(&world.root().join("blobs"));
                let stored: u64 = blobs.iter().filter_map(|file| Some(file.metadata().ok()?.len())).sum();
                fills(&world.root()).is_empty() && daemon.metric("ocistern_store_bytes", &[]).await == stored
            })
            .await;
            check_blobs(&world.root());

            world.push(&world.second).await;
            world.upstream.forget();
            let got = world.client().get(BY_TAG).await;
            got.assert_is(&world.second.manifest);
            // Upstream may take the lost delete yet, of any tag: what a tag means is asked each time.
            let status = if step == Step::DeleteManifest { "ocistern; fwd=miss; stored" } else { "ocistern; hit" };
            assert_eq!(got.header("cache-status"), status, "{case}");
            world.daemon.take().unwrap().stop().await;
        }
    }
}

#[tokio::test]
async fn at_the_begin_of_an_upload() {
    survives(Step::Begin).await;
}

#[tokio::test]
async fn at_a_part() {
    survives(Step::Part).await;
}

#[tokio::test]
async fn at_the_end_of_an_upload() {
    survives(Step::Close).await;
}

#[tokio::test]
async fn at_a_manifest() {
    survives(Step::Manifest).await;
}

#[tokio::test]
async fn at_the_delete_of_a_manifest() {
    survives(Step::DeleteManifest).await;
}

#[tokio::test]
async fn at_the_delete_of_a_tag() {
    survives(Step::DeleteTag).await;
}
