//! Making room under load: who waits, for how long, who gets what is freed, and what goes for it.

use super::evict::Image;
use super::*;
use crate::config::Pin;
use crate::store::order::Short;

/// What the tests of eviction call a layer.
const LAYER: u64 = 100 << 10;

async fn write(store: &Store, content: &[u8]) -> Result<Digest, StoreError> {
    let digest = sha256(content);
    let mut writer = store.create(&digest, Some(content.len() as u64)).await?;
    writer.write(Bytes::copy_from_slice(content)).await?;
    writer.finish().await?;
    Ok(digest)
}

fn content(round: u8, n: u8, len: usize) -> Vec<u8> {
    let mut content = vec![n; len];
    content[0] = round;
    content
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_misses_at_once_into_a_full_store_are_all_kept() {
    let fixture = fixture(6_400_000);
    for n in 0..64 {
        put(&fixture.store, &content(0, n, 100_000)).await;
    }
    for round in 1..5 {
        let writers = (0..40).map(|n| {
            let store = fixture.store.clone();
            TaskTracker::new().spawn(async move { write(&store, &content(round, n, 70_000)).await.map(drop) })
        });
        for (n, outcome) in futures_util::future::join_all(writers).await.into_iter().enumerate() {
            outcome.unwrap().unwrap_or_else(|error| panic!("round {round}, {n}: {error}"));
        }
    }
    assert!(fixture.metrics.store_bytes.get() <= 6_400_000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_much_must_go_others_are_answered_and_the_stop_is_quick() {
    let fixture = fixture(10_000_000);
    let store = &fixture.store;
    let hot = put(store, &[200; 900]).await;
    let digests: Vec<Digest> =
        futures_util::future::join_all((0..1_000_u32).map(|n| async move { put(store, &n.to_le_bytes()).await })).await;
    // A store whose capacity was lowered below nearly all that it holds: most of it is in the books alone.
    for n in 0..200_000_u32 {
        let short = Short::from(&Digest::of(Algorithm::Sha256, &(u64::from(n) << 32 | 7).to_le_bytes()));
        store.0.books.found(short, 1_000, 4_000_000_000);
    }
    store.blob(&hot).await.unwrap().unwrap();
    // A disk on which nothing can be removed for now.
    let held = HeldNames::of(store);
    let began = Instant::now();
    let pulls = (0..20_u8).map(|n| {
        let store = store.clone();
        TaskTracker::new().spawn(async move { store.create(&sha256(&[n, 1]), Some(9_000)).await.map(drop) })
    });
    let pulls = tokio::time::timeout(Duration::from_secs(10), futures_util::future::join_all(pulls)).await;
    let pulls = pulls.expect("a pull waits for all that must go");
    for outcome in pulls {
        let error = outcome.unwrap().expect_err("nothing was removed");
        assert!(error.is_full(), "passed on without being kept: {error}");
    }
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert!(store.blob(&hot).await.unwrap().is_some(), "a hit is answered meanwhile");
    let left = |digests: &[Digest]| digests.iter().filter(|digest| fixture.path(digest).exists()).count();
    assert_eq!(left(&digests), 1_000);
    let close = TaskTracker::new().spawn({
        let store = store.clone();
        async move { store.close().await }
    });
    tokio::time::sleep(Duration::from_millis(50)).await;
    drop(held);
    tokio::time::timeout(Duration::from_secs(10), close).await.expect("the stop waits for all that must go").unwrap();
    assert!(left(&digests) >= 1_000 - 256, "it ended in the middle: {}", left(&digests));
}

/// A pull that takes half an hour: the manifest first, then a layer every ten minutes.
async fn slow_pull(fixture: &Fixture) -> Image {
    let layers: Vec<Vec<u8>> = (1..4).map(|n| vec![n; usize::try_from(LAYER).unwrap()]).collect();
    let config = put(&fixture.store, &[9; 700]).await;
    let text = evict::manifest(&config, &layers.iter().map(|layer| sha256(layer)).collect::<Vec<_>>());
    let manifest = put(&fixture.store, text.as_bytes()).await;
    let image =
        Image { layers: layers.iter().map(|layer| sha256(layer)).collect(), config, manifest, size: text.len() as u64 };
    image.tag(&fixture.store, "slow", "1").await;
    fixture.store.use_image(&manifest);
    for layer in &layers {
        fixture.settle().await;
        fixture.age(600);
        put(&fixture.store, layer).await;
    }
    fixture.settle().await;
    fixture.age(600);
    image
}

#[tokio::test]
async fn the_manifest_of_a_slow_pull_goes_last() {
    let fixture = fixture(1 << 30);
    let image = slow_pull(&fixture).await;
    for gone in 1..=3 {
        assert!(fixture.evict(1).await);
        let there = fixture.there(&image.parts());
        assert_eq!(there.iter().filter(|there| !**there).count(), gone, "{there:?}");
        assert!(there[3] && there[4], "its layers go first: {there:?}");
    }
    assert!(fixture.evict(701).await);
    assert_eq!(fixture.there(&image.parts()), [false; 5]);
}

#[tokio::test]
async fn a_layer_that_is_read_in_parts_keeps_its_image_young() {
    let fixture = fixture(1 << 30);
    let image = Image::put(&fixture.store, 1, &[1, 2]).await;
    image.tag(&fixture.store, "lazy", "1").await;
    fixture.settle().await;
    fixture.age(4_000);
    let other = Image::put(&fixture.store, 2, &[3]).await;
    other.tag(&fixture.store, "other", "1").await;
    fixture.settle().await;
    fixture.age(2_000);
    // A lazy reader asks for ranges of a layer and for nothing else.
    drop(fixture.store.blob(&image.layers[0]).await.unwrap());
    fixture.settle().await;
    assert_eq!(fixture.order()[..3], [other.layers[0], other.config, other.manifest].map(|d| Short::from(&d)));
}

#[tokio::test]
async fn with_a_lost_index_the_manifest_of_a_tag_does_not_go_before_a_younger_layer() {
    let fixture = fixture(1 << 30);
    let image = slow_pull(&fixture).await;
    let crashed = fixture.crashed(InMemory).await;
    let now = wall();
    let ages = [1_800, 1_200, 600, 4_000, 4_000];
    for (digest, age) in image.parts().iter().zip(ages) {
        let file = std::fs::File::options().write(true).open(crashed.path(digest)).unwrap();
        file.set_modified(now - Duration::from_secs(age)).unwrap();
    }
    crashed.store.recover_once().await.unwrap();
    for gone in 1..=4 {
        assert!(crashed.evict(1).await);
        let there = crashed.there(&image.parts());
        assert_eq!(there.iter().filter(|there| !**there).count(), gone, "{there:?}");
        assert!(there[4], "{there:?}");
    }
}

#[tokio::test]
async fn what_was_pinned_goes_by_its_age() {
    let fixture = fixture(1 << 30);
    let store = &fixture.store;
    let pin = Pin::parse("docker.io/pinned", |_| false).unwrap();
    store.pin(pin.clone()).await.unwrap();
    let old = Image::put(store, 1, &[1]).await;
    fixture.settle().await;
    fixture.age(100_000);
    let pinned = Image::put(store, 2, &[2]).await;
    pinned.tag(store, "pinned", "1").await;
    fixture.settle().await;
    fixture.age(8_000);
    let young = Image::put(store, 3, &[3]).await;
    fixture.settle().await;
    assert!(store.unpin(&pin).await.unwrap());
    let expected: Vec<_> = [&old, &pinned, &young].iter().flat_map(|image| image.parts()).collect();
    assert_eq!(fixture.order(), expected.iter().map(Short::from).collect::<Vec<_>>());
}

#[tokio::test]
async fn manifests_of_tags_keep_their_age_over_a_restart() {
    let fixture = fixture(1 << 30).restart(true, true).await;
    let mut images = Vec::new();
    for n in 1..4 {
        let image = Image::put(&fixture.store, n, &[n]).await;
        image.tag(&fixture.store, &format!("r{n}"), "1").await;
        fixture.settle().await;
        fixture.age(3_000_000 >> (5 * n));
        images.push(image);
    }
    fixture.store.0.books.with_order(|order| {
        for image in &images {
            for digest in image.parts() {
                let (short, len) = (Short::from(&digest), order.get(&Short::from(&digest)).unwrap());
                let used = order.used(&short).unwrap();
                order.put(short, len, used, true);
            }
        }
    });
    // A file's own time is that of its publication.
    for digest in images.iter().flat_map(Image::parts) {
        let file = std::fs::File::options().write(true).open(fixture.path(&digest)).unwrap();
        file.set_modified(SystemTime::UNIX_EPOCH).unwrap();
    }
    let fixture = fixture.restart(true, true).await;
    fixture.store.load_index().await.unwrap();
    let expected: Vec<_> = images.iter().flat_map(Image::parts).collect();
    assert_eq!(fixture.order(), expected.iter().map(Short::from).collect::<Vec<_>>(), "from the index alone");
    fixture.store.recover_once().await.unwrap();
    assert_eq!(fixture.order(), expected.iter().map(Short::from).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fills_of_unknown_length_find_room_in_a_full_store_too() {
    let fixture = fixture(6_400_000);
    for n in 0..64 {
        put(&fixture.store, &content(0, n, 100_000)).await;
    }
    let writers = (0..20).map(|n| {
        let store = fixture.store.clone();
        TaskTracker::new().spawn(async move {
            let content = content(1, n, 90_000);
            let mut writer = store.create(&sha256(&content), None).await?;
            let told = Arc::new(tokio::sync::Notify::new());
            writer.follow({
                let told = Arc::clone(&told);
                move |_| told.notify_one()
            });
            for chunk in content.chunks(30_000) {
                writer.write(Bytes::copy_from_slice(chunk)).await?;
                // Or it has failed, which the next call says.
                let _ = tokio::time::timeout(Duration::from_secs(2), told.notified()).await;
            }
            writer.finish().await.map(drop)
        })
    });
    for outcome in futures_util::future::join_all(writers).await {
        outcome.unwrap().unwrap();
    }
    assert!(fixture.metrics.store_bytes.get() <= 6_400_000);
}

#[tokio::test]
async fn without_an_index_the_directories_are_listed_once_for_many_that_go() {
    let fixture = fixture(1 << 30);
    for n in 0..600_u32 {
        let digest = put(&fixture.store, &[n.to_le_bytes(); 3].concat()).await;
        fixture.store.0.hints.remove_blob(&digest);
    }
    for gone in 1..=5 {
        assert!(fixture.evict(1_200).await);
        assert_eq!(fixture.metrics.store_blobs.get(), 600 - gone * 100);
    }
    assert_eq!(fixture.store.0.evictor.listings(), 1);
    let files = std::fs::read_dir(fixture.root.path().join("blobs/sha256")).unwrap().count();
    assert_eq!(files, 100, "and they are gone");
}

#[tokio::test]
async fn what_cannot_be_removed_keeps_no_other_from_going() {
    let fixture = fixture(1 << 30);
    let stuck = [put(&fixture.store, &[1; 400]).await, put(&fixture.store, &[2; 400]).await];
    let free = put(&fixture.store, &[3; 400]).await;
    for digest in stuck {
        std::fs::remove_file(fixture.path(&digest)).unwrap();
        std::fs::create_dir(fixture.path(&digest)).unwrap();
    }
    fixture.age(600);
    assert!(fixture.evict(1).await);
    assert!(!fixture.path(&free).exists());
    assert_eq!(fixture.metrics.evicted_bytes.get(), 400);
    assert!(!fixture.evict(1).await, "it is given up when nothing else is left");
}

#[tokio::test]
async fn a_capacity_that_was_lowered_is_kept_without_any_pull() {
    let fixture = fixture(1 << 30).restart(true, true).await;
    for n in 0..20 {
        put(&fixture.store, &[n; 1_000]).await;
    }
    let Fixture { root, store, .. } = fixture;
    store.close().await;
    drop(store);
    let metrics = Metrics::new().unwrap();
    let store = Store::open(options(root.path(), 5_500), metrics.clone()).unwrap();
    let fixture = Fixture { root, metrics, store };
    let stop = CancellationToken::new();
    let upkeep = TaskTracker::new().spawn({
        let (store, stop) = (fixture.store.clone(), stop.clone());
        async move { store.run(stop).await }
    });
    // What went is counted at the end of a round, after the books.
    let counted = || (fixture.metrics.store_bytes.get(), fixture.metrics.evicted_bytes.get());
    for _ in 0..1_000 {
        if counted() == (5_000, 15_000) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!((counted(), fixture.metrics.store_blobs.get()), ((5_000, 15_000), 5));
    stop.cancel();
    upkeep.await.unwrap();
    fixture.store.close().await;
}

#[tokio::test]
async fn a_dead_image_goes_although_a_layer_that_it_shares_is_in_use() {
    let fixture = fixture(1 << 30);
    let dead = Image::put(&fixture.store, 1, &[1, 2]).await;
    dead.tag(&fixture.store, "dead", "1").await;
    fixture.settle().await;
    fixture.age(9_000);
    let live = Image::put(&fixture.store, 2, &[2, 3]).await;
    live.tag(&fixture.store, "live", "1").await;
    fixture.settle().await;
    assert!(fixture.evict(LAYER + 701).await);
    assert_eq!(fixture.there(&[dead.layers[0], dead.config, dead.manifest]), [false; 3]);
    assert_eq!(fixture.there(&live.parts()), [true; 4]);
}

/// An index that is there when nobody holds the other end any more.
struct Late(Mutex<std::sync::mpsc::Receiver<()>>);

impl Source for Late {
    fn open(&self) -> Result<Box<dyn Index>, IndexError> {
        let _ = self.0.lock().recv();
        Ok(Box::new(MemoryIndex::default()))
    }

    fn set_aside(&self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn an_index_that_opens_late_keeps_nothing_from_going() {
    let root = tempfile::tempdir().unwrap();
    let (closed, late) = std::sync::mpsc::channel();
    let late = |_: &Path| -> Box<dyn Source> { Box::new(Late(late.into())) };
    let store = Store::open_with(options(root.path(), 1_000), Metrics::new().unwrap(), late).unwrap();
    let stop = CancellationToken::new();
    let upkeep = TaskTracker::new().spawn({
        let (store, stop) = (store.clone(), stop.clone());
        async move { store.run(stop).await }
    });
    // The scan has begun, and waits for the index.
    tokio::task::yield_now().await;
    let [first, ..] = [put(&store, &[1; 400]).await, put(&store, &[2; 400]).await, put(&store, &[3; 400]).await];
    assert!(read(&store, &first).await.is_none(), "it has made room for the third");
    drop(closed);
    stop.cancel();
    upkeep.await.unwrap();
}
