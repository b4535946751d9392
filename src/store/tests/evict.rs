//! What goes first: images that nobody asked for as a whole, never what is pinned, and what is too old.

use super::*;
use crate::config::{Pin, Pinned};
use crate::oci::media;
use crate::store::capacity::seconds;
use crate::store::order::Short;

const LAYER: usize = 100 << 10;

/// An image in the store: its layers, and its manifest.
pub(super) struct Image {
    pub(super) layers: Vec<Digest>,
    pub(super) config: Digest,
    pub(super) manifest: Digest,
    pub(super) size: u64,
}

impl Image {
    /// Layers by number; two images with the same number share that layer.
    pub(super) async fn put(store: &Store, name: u8, layers: &[u8]) -> Self {
        let mut digests = Vec::new();
        for layer in layers {
            digests.push(put(store, &vec![*layer; LAYER]).await);
        }
        let config = put(store, &[name; 700]).await;
        let text = manifest(&config, &digests);
        let digest = put(store, text.as_bytes()).await;
        store.use_image(&digest);
        Self { layers: digests, config, manifest: digest, size: text.len() as u64 }
    }

    pub(super) async fn tag(&self, store: &Store, repo: &str, tag: &str) {
        let record = TagRecord {
            digest: self.manifest,
            media_type: media::OCI_MANIFEST.to_owned(),
            size: self.size,
            etag: None,
        };
        let (up, repo, tag) = ("docker.io".parse().unwrap(), repo.parse().unwrap(), tag.parse().unwrap());
        assert!(store.set_tag(&up, &repo, &tag, &record, wall()).await.unwrap());
    }

    pub(super) fn parts(&self) -> Vec<Digest> {
        self.layers.iter().chain([&self.config, &self.manifest]).copied().collect()
    }
}

pub(super) fn manifest(config: &Digest, layers: &[Digest]) -> String {
    let descriptor = |digest: &Digest| format!(r#"{{"mediaType":"application/x","digest":"{digest}","size":1}}"#);
    let layers: Vec<_> = layers.iter().map(descriptor).collect();
    format!(
        r#"{{"schemaVersion":2,"mediaType":"{}","config":{},"layers":[{}]}}"#,
        media::OCI_MANIFEST,
        descriptor(config),
        layers.join(",")
    )
}

impl Fixture {
    /// With these pins in the configuration.
    fn keeping(capacity: u64, keep: Keep) -> Self {
        let root = tempfile::tempdir().unwrap();
        let metrics = Metrics::new().unwrap();
        let options = StoreOptions { keep, ..options(root.path(), capacity) };
        let store = Store::open_with(options, metrics.clone(), |_| Box::new(InMemory)).unwrap();
        Self { root, metrics, store }
    }

    /// Waits for what is done in the background.
    pub(super) async fn settle(&self) {
        self.strays().await;
    }

    /// All that is in the store grows older by so many seconds.
    pub(super) fn age(&self, seconds: u32) {
        self.store.0.books.with_order(|order| order.age_all(seconds));
        self.store.0.uses.age_all(seconds);
    }

    /// What is there of these.
    pub(super) fn there(&self, digests: &[Digest]) -> Vec<bool> {
        digests.iter().map(|digest| self.path(digest).exists()).collect()
    }

    /// What would go, one after the other.
    pub(super) fn order(&self) -> Vec<Short> {
        self.store.0.books.with_order(|order| order.victims(seconds(system().now())).map(|(short, _)| short).collect())
    }

    pub(super) async fn evict(&self, bytes: u64) -> bool {
        let inner = self.store.0.clone();
        tokio::task::spawn_blocking(move || inner.evict(bytes)).await.unwrap()
    }

    pub(super) async fn settle_pins(&self) {
        let inner = self.store.0.clone();
        tokio::task::spawn_blocking(move || inner.settle_pins()).await.unwrap().unwrap();
    }
}

fn shorts(digests: &[Digest]) -> Vec<Short> {
    digests.iter().map(Short::from).collect()
}

fn pin(text: &str) -> Pin {
    Pin::parse(text, |_| false).unwrap()
}

#[tokio::test]
async fn an_image_that_nobody_asks_for_goes_whole_before_a_part_of_one_in_use() {
    let fixture = fixture(1 << 30);
    let store = &fixture.store;
    let dead = Image::put(store, 1, &[1, 2]).await;
    dead.tag(store, "app", "old").await;
    let live = Image::put(store, 2, &[2, 3]).await;
    live.tag(store, "app", "new").await;
    fixture.settle().await;
    fixture.age(3_000);
    // Clients that have the layers already ask for nothing but the manifest.
    store.use_image(&live.manifest);
    fixture.settle().await;
    let (order, own) = (fixture.order(), [dead.layers[0], dead.config, dead.manifest]);
    assert_eq!(order[..3], shorts(&own), "the manifest of its tag last, and without the layer that both have");
    assert_eq!(order[3..], shorts(&[live.layers[0], live.layers[1], live.config, live.manifest]));
    assert!(fixture.evict(LAYER as u64 + 1).await);
    assert_eq!(fixture.there(&own), [false, false, true], "no more than is needed");
    assert!(fixture.evict(1).await);
    assert_eq!(fixture.there(&own), [false; 3]);
    assert_eq!(fixture.there(&live.parts()), [true; 4]);
    let tag = |name: &str| (("docker.io".parse().unwrap(), "app".parse().unwrap()), name.parse::<Tag>().unwrap());
    let ((up, repo), old) = tag("old");
    assert!(store.tag(&up, &repo, &old).await.unwrap().is_none(), "nothing names what is gone");
}

#[tokio::test]
async fn the_use_of_an_index_is_the_use_of_its_images_that_are_here() {
    let fixture = fixture(1 << 30);
    let store = &fixture.store;
    let one = Image::put(store, 1, &[1]).await;
    let absent = sha256(b"another platform");
    let descriptors = [one.manifest, absent].map(|digest| format!(r#"{{"digest":"{digest}"}}"#)).join(",");
    let text = format!(r#"{{"schemaVersion":2,"mediaType":"{}","manifests":[{descriptors}]}}"#, media::OCI_INDEX);
    let index = put(store, text.as_bytes()).await;
    let other = Image::put(store, 2, &[2]).await;
    fixture.settle().await;
    fixture.age(3_000);
    store.use_image(&index);
    fixture.settle().await;
    assert_eq!(fixture.order()[..3], shorts(&other.parts()));
    store.use_image(&other.manifest);
    fixture.settle().await;
    assert_eq!(fixture.order().len(), 7, "what is not here is not made up");
}

#[tokio::test]
async fn what_a_pin_keeps_never_goes() {
    let keep = Keep { pins: vec![pin("docker.io/team/**:v*")], max_age: None };
    let fixture = Fixture::keeping(1 << 30, keep);
    let store = &fixture.store;
    let (kept, free) = (Image::put(store, 1, &[1, 2]).await, Image::put(store, 2, &[2, 3]).await);
    assert!(!fixture.evict(1).await, "as long as it is not known what is pinned");
    fixture.settle_pins().await;
    kept.tag(store, "team/app", "v1").await;
    free.tag(store, "team/app", "latest").await;
    let of_free = [free.layers[1], free.config, free.manifest];
    assert_eq!(fixture.order(), shorts(&of_free));
    assert!(!fixture.evict(u64::MAX).await && fixture.evict(1).await);
    assert_eq!(fixture.there(&kept.parts()), [true; 4]);

    // A pin by command, of what is still to come.
    let late = pin("docker.io/late");
    assert!(store.pin(late.clone()).await.unwrap() && !store.pin(late.clone()).await.unwrap());
    let layers = [vec![7; LAYER], vec![8; LAYER]];
    let text = manifest(&free.config, &layers.each_ref().map(|layer| sha256(layer)));
    let digest = put(store, text.as_bytes()).await;
    let image = Image { layers: Vec::new(), config: free.config, manifest: digest, size: text.len() as u64 };
    image.tag(store, "late", "1").await;
    for layer in &layers {
        put(store, layer).await;
    }
    let victims = fixture.order();
    assert!(
        layers.iter().all(|layer| !victims.contains(&Short::from(&sha256(layer)))),
        "layers come after the manifest"
    );
    let pins: Vec<_> = store.pins().into_iter().map(|of| (of.pin.to_string(), of.configured)).collect();
    assert_eq!(pins, [("docker.io/team/**:v*".into(), true), ("docker.io/late:*".into(), false)]);

    // It survives a crash, and a lost index.
    let crashed = fixture.crashed(InMemory).await;
    assert_eq!(crashed.store.pins().into_iter().map(|of| of.pin).collect::<Vec<_>>(), std::slice::from_ref(&late));
    assert!(!crashed.evict(1).await, "not known yet");
    crashed.settle_pins().await;
    crashed.store.recover_once().await.unwrap();
    let victims = crashed.order();
    assert!(layers.iter().all(|layer| !victims.contains(&Short::from(&sha256(layer)))));
    assert!(victims.contains(&Short::from(&kept.manifest)), "the configuration has changed");

    assert!(store.unpin(&late).await.unwrap() && !store.unpin(&late).await.unwrap());
    let victims = fixture.order();
    assert!(layers.iter().all(|layer| victims.contains(&Short::from(&sha256(layer)))));
    assert!(!store.unpin(&pin("docker.io/team/**:v*")).await.unwrap(), "that of the configuration stays");
}

#[tokio::test]
async fn a_pin_follows_its_tag() {
    let keep = Keep { pins: vec![pin("docker.io/app:1")], max_age: None };
    let fixture = Fixture::keeping(1 << 30, keep);
    let store = &fixture.store;
    let (first, second) = (Image::put(store, 1, &[1]).await, Image::put(store, 2, &[2]).await);
    fixture.settle_pins().await;
    first.tag(store, "app", "1").await;
    assert_eq!(fixture.order(), shorts(&second.parts()));
    second.tag(store, "app", "1").await;
    fixture.settle_pins().await;
    let mut victims = fixture.order();
    victims.sort();
    let mut expected = shorts(&first.parts());
    expected.sort();
    assert_eq!(victims, expected, "what it meant before can go");
    let digest = Pin { pinned: Pinned::Digest(first.manifest), ..pin("docker.io/app") };
    assert!(store.pin(digest).await.unwrap());
    assert!(fixture.order().is_empty(), "a digest is pinned whatever the tags mean");
}

#[tokio::test]
async fn a_pin_is_kept_up_to_date_in_the_background() {
    let keep = Keep { pins: vec![pin("docker.io/app:1")], max_age: None };
    let fixture = Fixture::keeping(1 << 30, keep);
    let store = &fixture.store;
    let (first, second) = (Image::put(store, 1, &[1]).await, Image::put(store, 2, &[2]).await);
    let stop = CancellationToken::new();
    let mut upkeep = tokio::task::JoinSet::new();
    upkeep.spawn({
        let (store, stop) = (store.clone(), stop.clone());
        async move { store.run(stop).await }
    });
    first.tag(store, "app", "1").await;
    second.tag(store, "app", "1").await;
    let first_goes = || fixture.order().contains(&Short::from(&first.manifest));
    for _ in 0..1_000 {
        if store.0.pins.are_settled() && first_goes() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(first_goes() && !fixture.order().contains(&Short::from(&second.manifest)));
    stop.cancel();
    upkeep.join_all().await;
}

#[tokio::test]
async fn what_nobody_uses_for_long_goes_although_there_is_room() {
    let keep = Keep { pins: vec![pin("docker.io/kept")], max_age: Some(Duration::from_hours(2)) };
    let fixture = Fixture::keeping(1 << 30, keep);
    let store = &fixture.store;
    let images = [Image::put(store, 1, &[1]).await, Image::put(store, 2, &[2]).await, Image::put(store, 3, &[3]).await];
    let [kept, used, unused] = &images;
    for (image, repo) in [(kept, "kept"), (used, "used"), (unused, "unused")] {
        image.tag(store, repo, "1").await;
    }
    let expire = || {
        let inner = store.0.clone();
        tokio::task::spawn_blocking(move || inner.expire())
    };
    fixture.settle().await;
    fixture.age(7_300);
    expire().await.unwrap();
    assert_eq!(fixture.there(&unused.parts()), [true; 3], "before it is known what is pinned nothing goes");
    fixture.settle_pins().await;
    store.use_image(&used.manifest);
    fixture.settle().await;
    let reader = store.blob(&unused.layers[0]).await.unwrap().unwrap();
    fixture.settle().await;
    fixture.age(7_100);
    expire().await.unwrap();
    assert_eq!(fixture.there(&unused.parts()), [true; 3], "the use of a layer is the use of its image");
    store.use_image(&used.manifest);
    fixture.settle().await;
    fixture.age(200);
    expire().await.unwrap();
    assert_eq!(fixture.there(&unused.parts()), [true, false, false], "a reader holds the layer");
    assert_eq!(fixture.there(&used.parts()), [true; 3]);
    assert_eq!(fixture.there(&kept.parts()), [true; 3]);
    drop(reader);
    fixture.age(7_100);
    expire().await.unwrap();
    assert_eq!(fixture.there(&[unused.layers[0], used.manifest, kept.manifest]), [false, false, true]);
}

/// Images of random layers, used at random: whatever must go, no part of an image goes while an image that was not
/// used for much longer has one that is not shared with a younger one.
#[test]
fn whole_images_in_the_order_of_their_use() {
    let config = ProptestConfig::with_cases(if cfg!(debug_assertions) { 12 } else { 200 });
    let images = proptest::collection::vec((proptest::collection::vec(0..9_u8, 1..4), 0..6_u32), 2..6);
    proptest!(config, |(images in images, bytes in 1..900_000_u64)| {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        runtime.block_on(async {
            let fixture = fixture(1 << 30);
            let mut all = Vec::new();
            // From the oldest to the youngest; ages far apart.
            let mut ages: Vec<u32> = images.iter().map(|(_, age)| *age).collect();
            ages.sort_by_key(|age| std::cmp::Reverse(*age));
            let mut before = None::<u32>;
            for ((layers, _), age) in images.iter().zip(&ages) {
                if let Some(before) = before {
                    fixture.age((1 << (2 * before + 6)) - (1 << (2 * age + 6)));
                }
                before = Some(*age);
                let name = u8::try_from(all.len()).unwrap() + 100;
                let image = Image::put(&fixture.store, name, layers).await;
                image.tag(&fixture.store, &format!("r{name}"), "1").await;
                fixture.settle().await;
                all.push((*age, image));
            }
            fixture.age(1 << (2 * before.unwrap() + 6));
            fixture.evict(bytes).await;
            for (n, (age, image)) in all.iter().enumerate() {
                let gone = fixture.there(&image.parts()).contains(&false);
                for (older, other) in &all[..n] {
                    let shared = |digest: &Digest| all[n..].iter().any(|(_, image)| image.parts().contains(digest));
                    let own: Vec<Digest> = other.parts().into_iter().filter(|digest| !shared(digest)).collect();
                    if *older > *age {
                        prop_assert!(!gone || !fixture.there(&own).contains(&true), "image {n} of age {age}, {older}");
                    }
                }
                let there = fixture.there(&image.parts());
                prop_assert!(there[there.len() - 1] || !there.contains(&true) || image_is_shared(&all, n), "{there:?}");
            }
            Ok(())
        })?;
    });
}

/// Whether another image has a part of this one: then the part may outlive the manifest.
fn image_is_shared(all: &[(u32, Image)], n: usize) -> bool {
    let parts = all[n].1.parts();
    all.iter().enumerate().any(|(m, (_, other))| m != n && other.parts().iter().any(|part| parts.contains(part)))
}
