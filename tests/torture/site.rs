//! What is tortured: a root, an upstream with content that the seed tells, and a daemon between them and the clients.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::time::Instant;

use bytes::Bytes;
use fastrand::Rng;
use parking_lot::Mutex;
use tempfile::TempDir;

use crate::common::content::{blob, image_of};
use crate::common::model::{Moves, TagName};
use crate::common::{Client, Daemon, Image, Model, Upstream};
use crate::slow::Slow;

/// What a publication waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    Strict,
    Fast,
}

/// Content that no run changes: what is pulled, what tags are moved to, and what is pushed.
pub struct Library {
    /// Under `lib:v0`, `lib:v1`, ….
    pub images: Vec<Image>,
    /// For each of `moved:m0`, `moved:m1`, ….
    pub moved: Vec<Vec<Image>>,
    /// For each of `pushed:p0`, `pushed:p1`, ….
    pub pushed: Vec<Vec<Image>>,
}

/// A place for one daemon. It is alive or not; the rest stays.
pub struct Site {
    _directory: TempDir,
    pub root: PathBuf,
    pub config: PathBuf,
    /// Further keys of `[store]`.
    pub keys: String,
    /// Further variables for the daemon.
    pub environment: Vec<(String, String)>,
    /// How many descriptors a daemon had open when it was quiet for the first time.
    pub descriptors: OnceLock<usize>,
    pub world: Arc<World>,
}

/// What the clients see.
pub struct World {
    pub upstream: Upstream,
    pub model: Model,
    pub library: Library,
    /// From now on requests may fail.
    faulty: AtomicBool,
    /// The targets of which upstream has sent bytes that are not those of the digest.
    lied: Mutex<BTreeSet<String>>,
    /// Requests for content that got an answer.
    answered: AtomicU64,
    /// Downloads that take their time.
    pub slow: Arc<Slow>,
    /// Where uploads were begun that have not been seen to end.
    uploads: Mutex<BTreeSet<String>>,
}

// === impl Library ===

impl Library {
    /// Images of layers of these sizes.
    pub fn new(rng: &mut Rng, images: usize, sizes: &[usize]) -> Self {
        let part = |rng: &mut Rng, sizes: &[usize]| -> Bytes {
            let size = sizes[rng.usize(..sizes.len())];
            blob(rng.u64(..), size - rng.usize(..size / 2))
        };
        // Some layers are in several images.
        let shared: Vec<Bytes> = (0..4).map(|_| part(rng, sizes)).collect();
        let images = (0..images).map(|_| {
            let mut layers: Vec<Bytes> = (0..rng.usize(1..4)).map(|_| part(rng, sizes)).collect();
            layers.push(shared[rng.usize(..shared.len())].clone());
            image_of(rng.u64(..), layers, None)
        });
        let images = images.collect();
        let mut variants = |tags: usize, count: usize, sizes: &[usize]| -> Vec<Vec<Image>> {
            let one = |rng: &mut Rng| {
                let layers = (0..rng.usize(1..3)).map(|_| part(rng, sizes)).collect();
                image_of(rng.u64(..), layers, None)
            };
            (0..tags).map(|_| (0..count).map(|_| one(rng)).collect()).collect()
        };
        let (moved, pushed) = (variants(3, 5, &[4096, 20_000]), variants(3, 6, &[4096, 65_536, 500_000]));
        Self { images, moved, pushed }
    }

    /// Every image, with its repository.
    pub fn all(&self) -> impl Iterator<Item = (&'static str, &Image)> {
        let moved = self.moved.iter().flatten().map(|image| ("moved", image));
        let pushed = self.pushed.iter().flatten().map(|image| ("pushed", image));
        self.images.iter().map(|image| ("lib", image)).chain(moved).chain(pushed)
    }
}

/// The name of a tag.
pub fn tag(repo: &str, letter: char, number: usize) -> TagName {
    (repo.to_owned(), format!("{letter}{number}"))
}

// === impl Site ===

impl Site {
    /// Content and upstream; the root is to be made by the daemon, at `root` or in a directory of the site's own.
    pub async fn new(rng: &mut Rng, images: usize, sizes: &[usize], root: Option<&Path>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let upstream = Upstream::start().await;
        let library = Library::new(rng, images, sizes);
        let model = Model::default();
        upstream.registry(|registry| {
            registry.deletes_tags = true;
            registry.forgets_broken_uploads = true;
        });
        let put = |name: TagName, moves, image: &Image| {
            upstream.image(&name.0, &name.1, image);
            model.begin(&name, moves, Some(image.digest));
        };
        for (n, image) in library.images.iter().enumerate() {
            put(tag("lib", 'v', n), Moves::Through, image);
        }
        for (n, variants) in library.moved.iter().enumerate() {
            for image in variants.iter().rev() {
                put(tag("moved", 'm', n), Moves::Behind, image);
            }
        }
        for (n, variants) in library.pushed.iter().enumerate() {
            put(tag("pushed", 'p', n), Moves::Through, &variants[0]);
        }
        model.settle(&upstream);
        let root = root.map_or_else(|| directory.path().join("root"), Path::to_owned);
        let config = directory.path().join("config.toml");
        let world = Arc::new(World {
            upstream,
            model,
            library,
            faulty: AtomicBool::new(false),
            lied: Mutex::default(),
            answered: AtomicU64::new(0),
            slow: Arc::default(),
            uploads: Mutex::default(),
        });
        world.slow.script(&world.upstream);
        Self {
            _directory: directory,
            root,
            config,
            keys: String::new(),
            environment: Vec::new(),
            descriptors: OnceLock::new(),
            world,
        }
    }

    /// Writes the configuration for the next start.
    pub fn configure(&self, durability: Durability, capacity: &str) {
        let durability = match durability {
            Durability::Strict => "strict",
            Durability::Fast => "fast",
        };
        let (root, url) = (self.root.display(), self.world.upstream.url());
        let text = format!(
            "root = '{root}'\nbuiltin_upstreams = false\n\
             [[listener]]\naddress = \"127.0.0.1:0\"\ndefault_upstream = \"up\"\n\
             [admin]\naddress = \"127.0.0.1:0\"\n\
             [store]\ncapacity = \"{capacity}\"\ndurability = \"{durability}\"\n{}\n\
             [upstream.up]\nurl = {url:?}\ntags = \"immutable\"\npublic_for = \"1h\"\nresume_for = \"5s\"\n\
             [[upstream.up.rule]]\nrepository = \"moved\"\ntags = \"always\"\n",
            self.keys
        );
        std::fs::write(&self.config, text).unwrap();
    }

    /// Starts the daemon: it, and how long it took from then until the first byte.
    pub async fn start(&self) -> Result<(Daemon, Duration), String> {
        let mut command = Daemon::command(&self.config);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        self.start_by(command).await
    }

    /// The same by any command.
    pub async fn start_by(&self, command: Command) -> Result<(Daemon, Duration), String> {
        let began = Instant::now();
        let daemon = Daemon::launch(command).await?;
        let got = daemon.client.get("/v2/").await;
        if got.status == 0 {
            return Err(format!("it started and answered nothing: {}", got.summary()));
        }
        Ok((daemon, began.elapsed()))
    }
}

// === impl World ===

impl World {
    /// Says whether a request may fail.
    pub fn set_faulty(&self, faulty: bool) {
        self.faulty.store(faulty, Ordering::SeqCst);
    }

    pub fn is_faulty(&self) -> bool {
        self.faulty.load(Ordering::SeqCst)
    }

    /// Upstream has sent wrong bytes for this digest. They stay in partial files, so there is no end to it.
    pub fn has_lied(&self, digest: &str) {
        self.lied.lock().insert(digest.to_owned());
    }

    pub fn may_be_a_lie(&self, digest: &str) -> bool {
        self.lied.lock().contains(digest)
    }

    /// An upload has begun, or goes on.
    pub fn upload_goes_on(&self, location: &str) {
        self.uploads.lock().insert(location.to_owned());
    }

    /// An upload has ended.
    pub fn upload_ended(&self, location: &str) {
        self.uploads.lock().remove(location);
    }

    /// The uploads that have not ended, each once.
    pub fn take_uploads(&self) -> BTreeSet<String> {
        std::mem::take(&mut self.uploads.lock())
    }

    /// So many more requests for content got an answer.
    pub fn answered(&self, more: u64) {
        self.answered.fetch_add(more, Ordering::SeqCst);
    }

    /// How many did.
    pub fn answers(&self) -> u64 {
        self.answered.load(Ordering::SeqCst)
    }

    /// Lets `moved` tags have other values, one after the other.
    pub fn move_tag(&self, number: usize, variant: usize) {
        let (name, image) = (tag("moved", 'm', number), &self.library.moved[number][variant]);
        self.model.begin(&name, Moves::Behind, Some(image.digest));
        self.upstream.tag(&name.0, &name.1, image.digest);
        self.model.end(&name);
    }

    /// A client of the daemon for these.
    pub fn at(self: &Arc<Self>, client: Client) -> super::load::Load {
        super::load::Load { world: self.clone(), client }
    }
}
