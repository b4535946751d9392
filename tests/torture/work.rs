//! Pieces of work that faults are injected into, each with content of its own: fills, a push, evictions.

use fastrand::Rng;

use crate::common::Ask;
use crate::common::content::{blob, image_of, sha256};
use crate::load::Load;
use crate::site::tag;
use crate::slow;

/// What the daemon does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    Start,
    Fill,
    /// A fill that takes so long that it is put down how far it is.
    Checkpoint,
    Push,
    Evict,
    Stop,
}

impl Work {
    pub const ALL: [Self; 6] = [Self::Start, Self::Fill, Self::Checkpoint, Self::Push, Self::Evict, Self::Stop];
    /// What clients ask for.
    pub const ASKED: [Self; 4] = [Self::Fill, Self::Checkpoint, Self::Push, Self::Evict];

    /// Lets clients ask for it; whether all that they asked for was done.
    pub async fn ask(self, load: &Load, rng: &mut Rng) -> bool {
        match self {
            Self::Start | Self::Stop => true,
            Self::Fill => {
                let mut whole = true;
                for size in [700, 70_000, 900_000] {
                    let bytes = blob(rng.u64(..), size);
                    let digest = load.world.upstream.blob("extra", &bytes);
                    let target = format!("/v2/extra/blobs/{digest}");
                    let (one, two) =
                        tokio::join!(load.client.get(&target), load.client.send(Ask::get(&target).http2()));
                    for got in [one, two] {
                        load.world.model.judge(&target, &digest, &got);
                        whole &= got.complete();
                    }
                }
                whole
            }
            Self::Checkpoint => {
                let digest = slow::new(&load.world.upstream, rng);
                let target = format!("/v2/{}/blobs/{digest}", slow::REPO);
                let got = load.client.get(&target).await;
                load.world.model.judge(&target, &digest, &got);
                got.complete()
            }
            Self::Push => {
                let image = image_of(rng.u64(..), vec![blob(rng.u64(..), 5_000), blob(rng.u64(..), 300_000)], None);
                load.push(&tag("pushed", 'p', 0), &image, rng).await
            }
            Self::Evict => {
                let mut whole = true;
                for _ in 0..4 {
                    let image = &load.world.library.images[rng.usize(..load.world.library.images.len())];
                    for part in image.layers.iter().chain([&image.config]) {
                        let digest = sha256(part);
                        let target = format!("/v2/lib/blobs/{digest}");
                        let got = load.client.get(&target).await;
                        load.world.model.judge(&target, &digest, &got);
                        whole &= got.complete();
                    }
                }
                whole
            }
        }
    }
}
