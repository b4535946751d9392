//! What becomes of what cannot be removed, or is used just then; how much goes, and for how long somebody is kept at it.

use rustix::io::Errno;

use super::evict::Image;
use super::sim::{Fault, Harm, Sim, SimFs, fast_directory};
use super::*;
use crate::store::capacity::{Answer, Want};
use crate::store::order::{Order, Short};

const MIB: u64 = 1 << 20;

/// A store on the tests' file system.
fn simulated(capacity: u64) -> (Fixture, Arc<Sim>) {
    let root = fast_directory();
    let sim = Sim::new(root.path());
    let disk = Disk::over(Box::new(SimFs(sim.clone())), root.path().canonicalize().unwrap());
    let metrics = Metrics::new().unwrap();
    let options = options(root.path(), capacity);
    let store = Store::open_on(Arc::new(disk), options, metrics.clone(), |_| Box::new(InMemory)).unwrap();
    (Fixture { root, metrics, store }, sim)
}

/// Images with tags and the links of all their parts, each much older than the next.
async fn images(fixture: &Fixture, count: u8) -> Vec<Image> {
    let mut images = Vec::new();
    for n in 0..count {
        let image = Image::put(&fixture.store, n, &[n + 100]).await;
        let (up, repo) = ("docker.io".parse().unwrap(), format!("r{n}").parse().unwrap());
        for digest in image.parts() {
            let link = Link::blob(Via::Anonymous, 1);
            assert!(fixture.store.set_link(&up, &repo, &digest, &link, wall()).await.unwrap());
        }
        image.tag(&fixture.store, &format!("r{n}"), "1").await;
        fixture.settle().await;
        fixture.age(4_000_000 >> (4 * n));
        images.push(image);
    }
    images
}

/// All tags and links.
fn refs(fixture: &Fixture) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    let mut next = vec![fixture.root.path().join("refs")];
    while let Some(directory) = next.pop() {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                next.push(path);
            } else if layout::is_tag(&path) || layout::parse_link(&path).is_some() {
                found.push((path.clone(), std::fs::read(path).unwrap()));
            }
        }
    }
    found.sort();
    found
}

impl Fixture {
    /// Closed and opened again, without what the index had.
    async fn reopened(self, sim: &Arc<Sim>, capacity: u64) -> Self {
        let Self { root, store, .. } = self;
        store.close().await;
        drop(store);
        let disk = Disk::over(Box::new(SimFs(sim.clone())), root.path().canonicalize().unwrap());
        let metrics = Metrics::new().unwrap();
        let options = options(root.path(), capacity);
        let store = Store::open_on(Arc::new(disk), options, metrics.clone(), |_| Box::new(InMemory)).unwrap();
        Self { root, metrics, store }
    }

    /// What upkeep does each second, and waits for it.
    async fn trim(&self) {
        let inner = self.store.0.clone();
        tokio::task::spawn_blocking(move || inner.trim(true)).await.unwrap();
        self.settle().await;
    }
}

#[tokio::test]
async fn what_cannot_be_removed_keeps_its_refs_its_place_and_its_stamp() {
    for seen_before in [true, false] {
        let (fixture, sim) = simulated(1 << 30);
        let images = images(&fixture, 3).await;
        let (before, order) = (refs(&fixture), fixture.order());
        assert_eq!(before.len(), 3 * 4);
        sim.keep_blobs(Some((Errno::ACCESS, seen_before)));
        for _ in 0..6 {
            assert!(!fixture.evict(1).await);
        }
        assert!(refs(&fixture) == before, "seen before: {seen_before}");
        assert_eq!(fixture.order(), order, "nothing is put down as used");
        for digest in images.iter().flat_map(Image::parts) {
            assert_eq!(read(&fixture.store, &digest).await.unwrap().1, Trust::Verified);
            assert_eq!(
                fixture.store.0.hints.refs(&digest, None, 9).found.len(),
                1 + usize::from(images.iter().any(|i| i.manifest == digest))
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_could_not_be_removed_is_left_alone_for_a_while_and_goes_when_it_can() {
    let (fixture, sim) = simulated(1 << 30);
    let images = images(&fixture, 3).await;
    let fixture = fixture.reopened(&sim, 1).await;
    sim.keep_blobs(Some((Errno::ACCESS, true)));
    fixture.store.recover_once().await.unwrap();
    let before = refs(&fixture);
    fixture.trim().await;
    // Every call counts.
    sim.arm(Fault { harm: Harm::Kill, at: u64::MAX, times: 1 }, 0);
    for _ in 0..5 {
        fixture.trim().await;
    }
    let calls = sim.heal();
    assert!(calls <= 4 * 5, "no more than what is free is asked: {calls} calls");
    sim.keep_blobs(None);
    fixture.trim().await;
    assert!(refs(&fixture) == before, "not yet");
    tokio::time::advance(Duration::from_secs(11)).await;
    fixture.trim().await;
    assert!(images.iter().all(|image| !fixture.there(&image.parts()).contains(&true)), "and then all of it");
    assert!(refs(&fixture).is_empty());
}

#[tokio::test]
async fn one_that_cannot_be_removed_does_not_keep_others_from_going_for_longer() {
    let fixture = fixture(1 << 30);
    let stuck = put(&fixture.store, &[1; 400]).await;
    std::fs::remove_file(fixture.path(&stuck)).unwrap();
    std::fs::create_dir(fixture.path(&stuck)).unwrap();
    fixture.age(6_000);
    for n in 2..9 {
        let digest = put(&fixture.store, &[n; 400]).await;
        fixture.age(600);
        assert!(fixture.evict(1).await);
        assert!(!fixture.path(&digest).exists());
        assert_eq!(fixture.order(), [Short::from(&stuck)], "it is still the oldest");
    }
}

/// A removal in whose middle somebody comes for the blob.
#[tokio::test]
async fn what_is_used_in_the_middle_of_its_removal_is_as_it_was_before() {
    for turn in 1..6 {
        let fixture = fixture(1 << 30);
        let image = images(&fixture, 1).await.remove(0);
        let before = refs(&fixture);
        let inner = fixture.store.0.clone();
        let (up, repo, tag) = ("docker.io".parse().unwrap(), "r0".parse().unwrap(), "1".parse().unwrap());
        let freshness = inner.hints.check(&up, &repo, &tag);
        assert!(freshness.is_some());
        let asked = std::sync::atomic::AtomicU32::new(0);
        let stays = || asked.fetch_add(1, Ordering::SeqCst) + 1 >= turn;
        let gone = inner.remove_unless(&image.manifest, stays).unwrap();
        if gone.is_some() {
            assert_eq!(turn, 5, "it is looked at before, at each of two refs, and at the end");
            continue;
        }
        assert!(refs(&fixture) == before, "{turn}");
        assert_eq!(inner.hints.check(&up, &repo, &tag), freshness);
        assert_eq!(read(&fixture.store, &image.manifest).await.unwrap().1, Trust::Verified);
    }
}

#[tokio::test]
async fn what_somebody_forgets_in_the_middle_of_a_removal_does_not_come_back() {
    let fixture = fixture(1 << 30);
    let image = images(&fixture, 1).await.remove(0);
    let inner = fixture.store.0.clone();
    let asked = std::sync::atomic::AtomicU32::new(0);
    let path = layout::link(&"docker.io".parse().unwrap(), &"r0".parse().unwrap(), &image.manifest);
    let stays = || {
        let turn = asked.fetch_add(1, Ordering::SeqCst);
        if turn == 3 {
            inner.remove_record(&path).unwrap();
        }
        turn >= 3
    };
    assert!(inner.remove_unless(&image.manifest, stays).unwrap().is_none());
    assert!(!fixture.root.path().join(&path).exists());
}

#[test]
fn what_is_used_in_the_second_of_its_choice_stays() {
    let mut order = Order::new();
    let short = Short::from(&sha256(b"a"));
    for touch in [true, false] {
        order.put(short, 10, 5_000, true);
        let claim = order.claim(5_000, 1, 9, |_| false).remove(0);
        assert!(order.holds(&claim));
        if touch {
            assert!(order.touch(&short, 5_000));
        } else {
            order.put(short, 10, 5_000, true);
        }
        assert!(!order.holds(&claim));
        order.release(&short);
        assert_eq!(order.claim(5_000, 1, 9, |_| false).len(), 1, "it can be chosen again");
        order.remove(&short);
    }
}

#[tokio::test]
async fn a_part_of_an_image_that_the_index_alone_has_does_not_stay_in_the_books() {
    let fixture = fixture(1 << 30);
    let image = Image::put(&fixture.store, 1, &[1, 2]).await;
    fixture.settle().await;
    // A power cut took its name; the index was written out.
    std::fs::remove_file(fixture.path(&image.layers[0])).unwrap();
    fixture.store.load_index().await.unwrap();
    // Its manifest is asked for before the scan has come there.
    fixture.store.use_image(&image.manifest);
    assert!(fixture.store.touch(&image.layers[0]), "it is not known yet");
    fixture.settle().await;
    fixture.store.recover_once().await.unwrap();
    assert_eq!(fixture.metrics.store_blobs.get(), 3);
    assert!(!fixture.store.touch(&image.layers[0]));
}

#[tokio::test]
async fn a_blob_that_is_published_behind_the_back_of_a_scan_stays_in_the_books() {
    let fixture = fixture(1 << 30);
    let (here, digest) = (&fixture.store.0, put(&fixture.store, &[1; 400]).await);
    let short = Short::from(&digest);
    here.books.with_order(Order::clear_seen);
    let unseen = here.books.with_order(|order| order.unseen());
    assert_eq!(unseen, [short]);
    // The list is made; the blob is published again, and the index is gone.
    std::fs::remove_file(fixture.path(&digest)).unwrap();
    here.hints.remove_blob(&digest);
    put(&fixture.store, &[1; 400]).await;
    here.hints.remove_blob(&digest);
    here.forget_if_gone(&short);
    assert!(here.books.knows(&short));
}

#[tokio::test]
async fn a_thread_that_writes_does_not_finish_a_chunk_when_its_time_is_over() {
    let fixture = fixture(1 << 30);
    for n in 0..100 {
        put(&fixture.store, &[n; 100]).await;
    }
    let inner = fixture.store.0.clone();
    let ticket = inner.books.wait(Want::Freed { bytes: 10_000 });
    assert!(inner.books.begins_evicting());
    let looked = Arc::new(AtomicU64::new(0));
    let count = looked.clone();
    let run = tokio::task::spawn_blocking(move || {
        let stops = inner.clone();
        inner.run_evictor(|| {
            // Nobody takes over: what was done is what this one has done.
            let is_over = count.fetch_add(1, Ordering::SeqCst) >= 5;
            if is_over {
                stops.evictor.stop();
            }
            is_over
        });
    });
    run.await.unwrap();
    fixture.settle().await;
    let left = std::fs::read_dir(fixture.root.path().join("blobs/sha256")).unwrap().count();
    assert!(left >= 94, "{left} are left, it was looked {} times", looked.load(Ordering::SeqCst));
    drop(ticket);
}

#[tokio::test]
async fn a_file_system_that_lacks_a_little_costs_little() {
    let (fixture, sim) = simulated(1 << 30);
    for n in 0..24 {
        put(&fixture.store, &vec![n; 1 << 20]).await;
    }
    let content = vec![99; 16 << 20];
    // Making the file is the first call that a full disk can refuse.
    sim.arm(Fault { harm: Harm::Fail(Errno::NOSPC), at: 2, times: 1 }, 0);
    let mut writer = fixture.store.create(&sha256(&content), Some(content.len() as u64)).await.unwrap();
    assert_eq!(sim.fired(), 1);
    sim.heal();
    assert_eq!(fixture.metrics.evicted_bytes.get(), 2 * MIB, "an eighth of it was enough");
    writer.write(content.into()).await.unwrap();
    writer.finish().await.unwrap();
}

#[tokio::test]
async fn the_free_space_to_be_left_is_left_while_much_is_removed_and_written() {
    const WANT: u64 = 512 << 10;
    let (fixture, sim) = simulated(1 << 30);
    // Three chunks of what goes.
    for n in 0..850_u32 {
        put(&fixture.store, &n.to_le_bytes().repeat(1_024)).await;
    }
    // A tenth must stay free.
    sim.set_size(4 * MIB);
    let fixture = fixture.reopened(&sim, 1 << 30).await;
    fixture.store.recover_once().await.unwrap();
    fixture.settle().await;
    let inner = fixture.store.0.clone();
    let floor = inner.books.floor();
    assert_eq!(floor, 4 * MIB / 10);
    let run = tokio::task::spawn_blocking(move || {
        let (mut least, mut files) = (inner.space().unwrap().free, Vec::new());
        let want = || inner.books.wait(Want::Promise { digest: None, bytes: WANT });
        let mut tickets: std::collections::VecDeque<_> = std::iter::repeat_with(want).take(5).collect();
        assert!(inner.books.begins_evicting());
        let mut write = || {
            while let Some(Ok(answer)) = tickets.front_mut().map(|ticket| ticket.answer.try_recv()) {
                let Answer::Promised(mut promised) = answer else { panic!("{answer:?}") };
                // What a fill does while others wait.
                let path = PathBuf::from(format!("fills/{}.tmp", files.len()));
                let file = inner.disk.create_new(&path).unwrap();
                inner.disk.write_all_at(&file, &vec![7; 512 << 10], 0).unwrap();
                promised.allocated(WANT);
                files.push(promised);
                tickets.pop_front();
                least = least.min(inner.space().unwrap().free);
            }
            false
        };
        inner.run_evictor(&mut write);
        write();
        (least, files.len())
    });
    let (least, filled) = run.await.unwrap();
    assert_eq!(filled, 5);
    assert!(least >= floor, "{least} bytes were free, {floor} must stay so");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_disk_begins_to_write_a_large_file_while_it_comes() {
    let (fixture, sim) = simulated(1 << 30);
    let mut upload = fixture.store.spool(None).await.unwrap();
    let write = async |upload: &mut Spool, mebibytes: u64| {
        for _ in 0..mebibytes {
            upload.write(vec![7; 1 << 20].into()).await.unwrap();
            upload.flush().await.unwrap();
            fixture.strays().await;
        }
        sim.take_begun()
    };
    let first = write(&mut upload, 40).await;
    assert_eq!(first, [0..16 * MIB, 16 * MIB..32 * MIB], "each part once, and no more than a part is left");
    upload.rewind(8 * MIB).await.unwrap();
    let again = write(&mut upload, 20).await;
    assert_eq!(again, [std::ops::Range { start: 8 * MIB, end: 24 * MIB }], "what is written anew too");
    drop(upload);
    let content = vec![1; 17 << 20];
    let digest = sha256(&content);
    let mut writer = fixture.store.create(&digest, Some(content.len() as u64)).await.unwrap();
    writer.write(content.into()).await.unwrap();
    writer.finish().await.unwrap();
    fixture.strays().await;
    assert_eq!(sim.take_begun(), [std::ops::Range { start: 0, end: 17 * MIB }]);
}

#[test]
fn what_has_no_place_yet_is_not_sorted_to_see_what_is_too_old() {
    let mut order = Order::new();
    let short = |n: u32| Short::from(&sha256(&n.to_le_bytes()));
    for n in 0..100 {
        order.put(short(n), 10, 1_000 + n, true);
    }
    order.put(short(200), 10, 900, false);
    order.put(short(201), 10, 5_000, false);
    let claims = order.claim_unused(1_001, 99, |_| false);
    let mut claimed: Vec<Short> = claims.iter().map(|claim| claim.short).collect();
    claimed.sort();
    let mut expected = vec![short(0), short(200)];
    expected.sort();
    assert_eq!(claimed, expected);
    assert_eq!(order.unplaced(), 1, "the other one waits for its place");
}
