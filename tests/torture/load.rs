//! Clients: they pull whole images, ranges and parts, push, move tags and delete, and judge every answer.

use std::sync::Arc;

use tokio::time::Instant;

use fastrand::Rng;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::common::content::sha256;
use crate::common::model::{Moves, TagName};
use crate::common::uploading::closing;
use crate::common::{Ask, Client, Got, Image};
use crate::site::{World, tag};

/// Requests to one daemon on behalf of one world.
#[derive(Clone)]
pub struct Load {
    pub world: Arc<World>,
    pub client: Client,
}

/// Running clients.
pub struct Running {
    stop: CancellationToken,
    tasks: JoinSet<()>,
}

impl Running {
    /// Lets so many more clients download what takes its time.
    pub fn and_downloads(mut self, load: &Load, rng: &mut Rng, clients: usize) -> Self {
        for _ in 0..clients {
            let (load, stop, mut rng) = (load.clone(), self.stop.clone(), rng.fork());
            self.tasks.spawn(async move {
                while !stop.is_cancelled() && !load.world.is_faulty() {
                    load.download(&mut rng).await;
                }
            });
        }
        self
    }

    /// Lets every client end with what it is at.
    pub async fn end(mut self) {
        self.stop.cancel();
        while let Some(ended) = self.tasks.join_next().await {
            ended.expect("a client ends");
        }
    }

    /// The same; those that have not ended by then leave.
    pub async fn end_within(mut self, patience: std::time::Duration) {
        self.stop.cancel();
        let all = async {
            while let Some(ended) = self.tasks.join_next().await {
                ended.expect("a client ends");
            }
        };
        let _ = tokio::time::timeout(patience, all).await;
    }
}

impl Load {
    /// Starts so many clients that pull, and one that pushes for each tag that is pushed to. They end when something may
    /// fail.
    pub fn run(&self, rng: &mut Rng, pullers: usize) -> Running {
        self.run_while(rng, pullers, false)
    }

    /// The same for a time at which requests may fail.
    pub fn run_faulty(&self, rng: &mut Rng, pullers: usize) -> Running {
        self.run_while(rng, pullers, true)
    }

    fn run_while(&self, rng: &mut Rng, pullers: usize, faulty: bool) -> Running {
        let mut running = Running { stop: CancellationToken::new(), tasks: JoinSet::new() };
        let pushers = self.world.library.pushed.len();
        for n in 0..=(pullers + pushers) {
            let (load, stop, mut rng) = (self.clone(), running.stop.clone(), rng.fork());
            running.tasks.spawn(async move {
                while !stop.is_cancelled() && (faulty || !load.world.is_faulty()) {
                    if n < pullers {
                        load.pull_something(&mut rng).await;
                    } else if n < pullers + pushers {
                        load.write_something(&mut rng, n - pullers).await;
                    } else {
                        let moved = &load.world.library.moved;
                        let number = rng.usize(..moved.len());
                        load.world.move_tag(number, rng.usize(..moved[number].len()));
                        tokio::time::sleep(std::time::Duration::from_millis(rng.u64(5..60))).await;
                    }
                }
            });
        }
        running
    }

    async fn pull_something(&self, rng: &mut Rng) {
        let library = &self.world.library;
        match rng.u8(..10) {
            0 => drop(self.tag(&tag("moved", 'm', rng.usize(..library.moved.len())), rng).await),
            1 | 2 => {
                let number = rng.usize(..library.pushed.len());
                let got = self.tag(&tag("pushed", 'p', number), rng).await;
                if let Some(image) =
                    library.pushed[number].iter().find(|image| got.complete() && image.digest == got.digest)
                {
                    self.parts("pushed", image, rng).await;
                }
            }
            _ => {
                self.pull(zipf(library.images.len(), rng), rng).await;
            }
        }
    }

    /// One of the images whole.
    pub async fn pull(&self, number: usize, rng: &mut Rng) {
        if self.tag(&tag("lib", 'v', number), rng).await.complete() {
            self.parts("lib", &self.world.library.images[number], rng).await;
        }
    }

    /// A manifest by its tag.
    pub async fn tag(&self, name: &TagName, rng: &mut Rng) -> Got {
        let asked = Instant::now();
        let got = self.send(Ask::get(format!("/v2/{}/manifests/{}", name.0, name.1)), rng).await;
        self.world.model.judge_tag(name, asked, &got);
        if got.status != 404 {
            self.must_be_whole(&format!("{name:?}"), &got);
        }
        got
    }

    async fn parts(&self, repo: &str, image: &Image, rng: &mut Rng) {
        for part in image.layers.iter().chain([&image.config]) {
            let digest = sha256(part);
            let target = format!("/v2/{repo}/blobs/{digest}");
            match rng.u8(..8) {
                0 => {
                    // Leaves in the middle.
                    if let Ok(mut live) = self.client.open(Ask::get(&target)).await {
                        self.world.answered(1);
                        live.read_to(rng.u64(..=part.len() as u64)).await;
                    }
                }
                1 if part.len() > 10 => {
                    let from = rng.usize(..part.len() - 1);
                    let got = self.send(Ask::get(&target).with("range", &format!("bytes={from}-")), rng).await;
                    let right = got.digest == sha256(&part[from..]);
                    // A part of what is not verified yet is as upstream sent it, and says that it may be wrong.
                    let is_unverified = got.header("cache-status").contains("detail=unverified");
                    let may_be_wrong = is_unverified && self.world.may_be_a_lie(&digest.to_string());
                    if got.status == 206 && got.cut.is_none() && !right && !may_be_wrong {
                        self.world.model.wrong(format!("{target} from {from}: other bytes: {}", got.summary()));
                    }
                    if got.status == 200 && got.cut.is_none() && got.digest != digest {
                        self.world.model.wrong(format!("{target}: other bytes: {}", got.summary()));
                    }
                    self.must_end_well(&target, &got);
                }
                _ => {
                    self.blob(repo, &digest, rng).await;
                }
            }
        }
    }

    /// A blob whole; whether it came.
    pub async fn blob(&self, repo: &str, digest: &ocistern::oci::Digest, rng: &mut Rng) -> bool {
        let target = format!("/v2/{repo}/blobs/{digest}");
        let got = self.send(Ask::get(&target), rng).await;
        self.world.model.judge(&target, digest, &got);
        self.must_be_whole(&target, &got);
        got.complete()
    }

    /// The same, of content that upstream may not have any more.
    pub async fn blob_if_there(&self, repo: &str, digest: &ocistern::oci::Digest, rng: &mut Rng) {
        let target = format!("/v2/{repo}/blobs/{digest}");
        let got = self.send(Ask::get(&target), rng).await;
        self.world.model.judge(&target, digest, &got);
    }

    async fn send(&self, ask: Ask, rng: &mut Rng) -> Got {
        let got = self.client.send(if rng.u8(..4) == 0 { ask.http2() } else { ask }).await;
        self.world.answered(u64::from(got.status != 0));
        got
    }

    fn must_be_whole(&self, what: &str, got: &Got) {
        if !got.complete() && !self.world.is_faulty() {
            self.world.model.wrong(format!("{what}: not served although nothing was wrong: {}", got.summary()));
        }
    }

    fn must_end_well(&self, what: &str, got: &Got) {
        if (got.cut.is_some() || got.status >= 400) && !self.world.is_faulty() {
            self.world.model.wrong(format!("{what}: not served although nothing was wrong: {}", got.summary()));
        }
    }

    async fn write_something(&self, rng: &mut Rng, number: usize) {
        let name = tag("pushed", 'p', number);
        let current = self.world.upstream.registry(|registry| registry.repos["pushed"].tags.get(&name.1).copied());
        match (rng.u8(..10), current) {
            (0, Some(_)) => self.delete(&name, &name.1).await,
            (1, Some(digest)) => {
                self.world.model.deleting(&name.0, digest);
                self.delete(&name, &digest.to_string()).await;
                self.world.model.deleted(&name.0, digest);
            }
            _ => {
                let variants = &self.world.library.pushed[number];
                self.push(&name, &variants[rng.usize(..variants.len())], rng).await;
            }
        }
    }

    async fn delete(&self, name: &TagName, reference: &str) {
        let model = &self.world.model;
        model.begin(name, Moves::Through, None);
        let got = self.client.send(Ask::delete(format!("/v2/{}/manifests/{reference}", name.0))).await;
        match got.status {
            202 | 404 if got.cut.is_none() => model.end(name),
            _ => self.must_end_well(&format!("delete of {reference}"), &got),
        }
    }

    /// Gives up what was being uploaded when its client left, which the daemon else keeps for a client that goes on.
    pub async fn give_up_uploads(&self) {
        for begun in self.world.take_uploads() {
            let got = self.client.send(Ask::delete(&begun)).await;
            if !matches!(got.status, 204 | 404) {
                self.world.model.wrong(format!("an upload is not given up: {}", got.summary()));
            }
        }
    }

    /// Pushes an image; whether all of it was acknowledged.
    pub async fn push(&self, name: &TagName, image: &Image, rng: &mut Rng) -> bool {
        let (repo, model) = (&name.0, &self.world.model);
        for part in image.layers.iter().chain([&image.config]) {
            let digest = sha256(part);
            let got = self.client.send(Ask::post(format!("/v2/{repo}/blobs/uploads/"))).await;
            self.must_end_well("begin of an upload", &got);
            let begun = got.header("location").to_owned();
            if !begun.is_empty() {
                self.world.upload_goes_on(&begun);
            }
            let mut at = begun.clone();
            let mut rest = part.clone();
            if rng.bool() && !at.is_empty() {
                let piece = rest.split_to(rng.usize(..=rest.len()));
                let got = self.client.send(Ask::patch(&at).body(piece)).await;
                self.must_end_well("part of an upload", &got);
                got.header("location").clone_into(&mut at);
            }
            if at.is_empty() {
                return false;
            }
            let got = self.client.send(Ask::put(closing(&at, &digest)).body(rest)).await;
            self.must_end_well("end of an upload", &got);
            if got.status != 201 || got.cut.is_some() {
                return false;
            }
            self.world.upload_ended(&begun);
            model.pushed(repo, digest);
        }
        model.begin(name, Moves::Through, Some(image.digest));
        let put = Ask::put(format!("/v2/{repo}/manifests/{}", name.1)).with("content-type", image.media_type);
        let got = self.client.send(put.body(image.manifest.clone())).await;
        self.must_end_well("push of a manifest", &got);
        let acknowledged = got.status == 201 && got.cut.is_none();
        if acknowledged {
            model.end(name);
            model.pushed(repo, image.digest);
        }
        acknowledged
    }
}

/// One of so many, as they are asked for in the world: the k-th most popular a k-th as often as the first.
fn zipf(count: usize, rng: &mut Rng) -> usize {
    let weight = |rank: usize| 1.0 / (rank + 1) as f64;
    let mut left = rng.f64() * (0..count).map(weight).sum::<f64>();
    (0..count)
        .find(|rank| {
            left -= weight(*rank);
            left < 0.0
        })
        .unwrap_or(count - 1)
}
