//! What fills have left, when there is much of it and when it cannot be removed: in which order it goes, how many may be left,
//! what counts meanwhile, and who finds it.

#![expect(clippy::single_range_in_vec_init, reason = "what is written is a list of ranges")]

use rustix::io::Errno;

use super::partial::{MIB, begin, content, end, mark, on, simulated, write, written};
use super::sim::{Fault, Harm, Sim};
use super::*;
use crate::clock::twin::Twin;

impl Fixture {
    async fn run<T: Send + 'static>(&self, work: impl FnOnce(&Arc<Inner>) -> T + Send + 'static) -> T {
        self.store.blocking(|inner| Ok(work(inner))).await.unwrap()
    }

    /// Leaves the first MiB of so many blobs of two, one after the other.
    async fn leave_each(&self, clock: &Twin, seeds: std::ops::Range<u64>) -> Vec<Digest> {
        let mut digests = Vec::new();
        for seed in seeds {
            clock.forward(Duration::from_secs(10));
            digests.push(self.leave(&content(seed, 2 * MIB), &[0..MIB]).await);
        }
        digests
    }

    async fn is_left(&self, digest: &Digest) -> bool {
        self.store.take_up(digest).await.is_some()
    }
}

/// From now on nothing can be removed, made or written.
fn freeze(sim: &Sim) {
    sim.arm(Fault { harm: Harm::Fail(Errno::ROFS), at: 1, times: u64::MAX }, 0);
}

// === the order ===

#[tokio::test]
async fn a_store_that_stops_removes_nothing_more() {
    let clock = Twin::new();
    let fixture = fixture_by(clock.clone(), 1 << 30);
    let digests = fixture.leave_each(&clock, 100..103).await;
    let mut left = 1;
    let freed = fixture.run(move |inner| inner.forget_partials(u64::MAX, &mut || std::mem::take(&mut left) == 0)).await;
    assert_eq!(freed, MIB, "one, and it was enough");
    assert!(!fixture.is_left(&digests[0]).await);
    fixture.store.0.evictor.stop();
    clock.forward(Duration::from_hours(24 * 365));
    fixture
        .run(|inner| {
            assert_eq!(inner.forget_partials(u64::MAX, &mut || false), 0);
            inner.partials.set_most(0);
            inner.expire_partials();
            inner.forget_surplus_partials();
        })
        .await;
    assert_eq!(fixture.fills().await, ["map", "map", "part", "part"]);
}

#[tokio::test]
async fn who_waits_for_room_has_it_before_all_has_gone() {
    let fixture = fixture(1 << 30);
    for seed in 0..300 {
        let content = content(seed, 4096);
        fixture.store.0.partials.set_least(1024);
        fixture.leave(&content, &[0..2048]).await;
    }
    assert_eq!(fixture.run(|inner| inner.forget_partials(u64::MAX, &mut || false)).await, 256 * 2048);
    assert!(fixture.run(|inner| inner.evict(44 * 2048)).await, "the rest goes too");
    assert!(fixture.fills().await.is_empty());
}

// === how many ===

#[tokio::test]
async fn of_so_many_at_most_something_is_left_the_oldest_go() {
    let clock = Twin::new();
    let fixture = fixture_by(clock.clone(), 1 << 30);
    fixture.store.0.partials.set_most(3);
    let digests = fixture.leave_each(&clock, 110..115).await;
    assert_eq!(fixture.bytes(), 3 * MIB);
    assert_eq!(fixture.fills().await, ["map", "map", "map", "part", "part", "part"]);
    for (n, digest) in digests.iter().enumerate() {
        assert_eq!(fixture.is_left(digest).await, n >= 2, "{n}");
    }
    // What somebody goes on with is none of them, and one more when it is given up.
    let taken = fixture.store.take_up(&digests[4]).await.unwrap();
    let last = fixture.leave_each(&clock, 115..116).await;
    assert!(fixture.is_left(&digests[2]).await);
    drop(taken);
    fixture.run(|inner| inner.forget_surplus_partials()).await;
    assert!(
        !fixture.is_left(&digests[2]).await && fixture.is_left(&digests[4]).await && fixture.is_left(&last[0]).await
    );
}

#[tokio::test]
async fn a_start_keeps_the_latest_of_too_many() {
    let clock = Twin::new();
    let fixture = fixture_by(clock.clone(), 1 << 30);
    let digests = fixture.leave_each(&clock, 120..124).await;
    let fixture = fixture.restart(true, false).await;
    fixture.store.0.partials.set_most(2);
    let stop = CancellationToken::new();
    let until_two = async {
        while fixture.bytes() > 2 * MIB {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        stop.cancel();
    };
    tokio::join!(fixture.store.run(stop.clone()), until_two);
    for (n, digest) in digests.iter().enumerate() {
        assert_eq!(fixture.is_left(digest).await, n >= 2, "{n}");
    }
}

// === what cannot be removed ===

#[tokio::test]
async fn what_cannot_be_removed_counts_until_it_is_gone() {
    let (fixture, sim) = simulated();
    let content = content(130, 3 * MIB);
    let digest = fixture.leave(&content, &[0..2 * MIB]).await;
    let blob = put(&fixture.store, &vec![1; 1 << 20]).await;
    freeze(&sim);
    assert_eq!(fixture.run(|inner| inner.forget_partials(1, &mut || false)).await, 0);
    fixture.run(|inner| inner.remove_stuck_partials()).await;
    assert_eq!(fixture.bytes(), 3 * MIB, "it is still on the disk");
    assert!(!fixture.is_left(&digest).await, "it is nobody's any more");
    assert!(fixture.store.0.books.victims(1).len() == 1, "making room does not count on it");
    sim.heal();
    fixture.run(|inner| inner.remove_stuck_partials()).await;
    assert_eq!(fixture.bytes(), MIB);
    assert!(fixture.fills().await.is_empty());
    assert!(fixture.store.blob(&blob).await.unwrap().is_some());
    let again = fixture.leave(&content, &[0..MIB]).await;
    assert!(fixture.is_left(&again).await, "there is a map again");
}

#[tokio::test]
async fn a_map_that_could_not_be_removed_is_not_taken_for_the_next_one() {
    let (fixture, sim) = simulated();
    let content = content(131, 3 * MIB);
    for is_left in [true, false] {
        let writer = begin(&fixture.store, &content).await;
        write(&writer, &content, &[0..2 * MIB]).await;
        written(&writer, 2 * MIB).await;
        writer.checkpoint().await;
        if is_left {
            drop(writer);
            fixture.idle().await;
            freeze(&sim);
            fixture.store.take_up(&sha256(&content)).await.unwrap().discard().await;
        } else {
            freeze(&sim);
            writer.discard();
            fixture.idle().await;
        }
        sim.heal();
        // Before it is tried again: what this one leaves would go with it.
        let next = begin(&fixture.store, &content).await;
        write(&next, &content, &[0..MIB]).await;
        written(&next, MIB).await;
        drop(next);
        fixture.idle().await;
        fixture
            .run(|inner| {
                inner.remove_left();
                inner.remove_stuck_partials();
            })
            .await;
        assert_eq!((fixture.fills().await.len(), fixture.bytes()), (0, 0), "{is_left}");
        let digest = fixture.leave(&content, &[0..MIB]).await;
        fixture
            .run(|inner| {
                inner.remove_left();
                inner.remove_stuck_partials();
            })
            .await;
        assert_eq!(fixture.fills().await, ["map", "part"]);
        fixture.store.take_up(&digest).await.unwrap().discard().await;
    }
}

#[tokio::test]
async fn a_file_that_could_neither_be_kept_nor_removed_counts_until_it_is_gone() {
    let (fixture, sim) = simulated();
    let content = content(132, 3 * MIB);
    for is_given_up in [true, false] {
        let writer = begin(&fixture.store, &content).await;
        write(&writer, &content, &[0..2 * MIB]).await;
        written(&writer, 2 * MIB).await;
        freeze(&sim);
        if is_given_up {
            drop(writer);
        } else {
            writer.discard();
        }
        assert_eq!(fixture.fills().await, ["part"]);
        assert!((2 * MIB..4 * MIB).contains(&fixture.bytes()), "it is still on the disk: {}", fixture.bytes());
        fixture.run(|inner| inner.remove_left()).await;
        assert!((2 * MIB..4 * MIB).contains(&fixture.store.0.books.used_bytes()), "and is not forgotten");
        sim.heal();
        fixture.run(|inner| inner.remove_left()).await;
        assert_eq!((fixture.fills().await.len(), fixture.bytes()), (0, 0));
    }
}

#[tokio::test]
async fn what_a_start_finds_that_nobody_wants_and_cannot_remove_counts() {
    let (fixture, sim) = simulated();
    fixture.store.close().await;
    let Fixture { root, store, .. } = fixture;
    drop(store);
    std::fs::create_dir_all(root.path().join("fills")).unwrap();
    std::fs::write(root.path().join("fills/stray-1-1.part"), vec![1; 1 << 20]).unwrap();
    sim.spoil([PathBuf::from("fills")]);
    let fixture = on(&sim, root);
    sim.spoil([]);
    freeze(&sim);
    fixture.run(|inner| inner.find_partials(false)).await;
    fixture.run(|inner| inner.remove_left()).await;
    assert!((MIB..2 * MIB).contains(&fixture.bytes()), "{}", fixture.bytes());
    sim.heal();
    fixture.run(|inner| inner.remove_left()).await;
    assert_eq!((fixture.fills().await.len(), fixture.bytes()), (0, 0));
}

// === who finds it ===

#[tokio::test]
async fn what_a_start_cannot_find_out_is_found_later_and_harms_no_running_fill() {
    let (fixture, sim) = simulated();
    let [old, new, small] = [140, 141, 142].map(|seed| content(seed, 3 * MIB));
    let digest = fixture.leave(&old, &[0..2 * MIB]).await;
    let stray = "fills/stray-1-1.part";
    std::fs::write(fixture.root.path().join(stray), "x").unwrap();
    fixture.store.close().await;
    let Fixture { root, store, .. } = fixture;
    drop(store);
    sim.spoil([PathBuf::from("fills")]);
    let fixture = on(&sim, root);
    assert!(fixture.store.take_up(&digest).await.is_none(), "it is not known yet");
    let running = begin(&fixture.store, &new).await;
    write(&running, &new, &[0..2 * MIB]).await;
    written(&running, 2 * MIB).await;
    running.checkpoint().await;
    let again = begin(&fixture.store, &old).await;
    sim.spoil([layout::map(&digest)]);
    fixture.run(|inner| inner.find_partials(false)).await;
    assert!(!fixture.is_left(&digest).await, "its map cannot be read");
    let rm = fixture.store.remove_images(vec!["docker.io/a".parse().unwrap()], false).await;
    assert!(rm.is_err(), "nor is it known what would go");
    assert_eq!(fixture.fills().await, ["map", "part", "part", "tmp", "tmp"], "and nothing was removed");
    sim.spoil([]);
    fixture.run(|inner| inner.find_partials(false)).await;
    assert_eq!(fixture.fills().await, ["map", "part", "tmp", "tmp"]);
    assert!(fixture.is_left(&digest).await);
    // They have no map, and end as ever.
    let ends = [(running, &new, 2 * MIB..3 * MIB), (again, &old, 0..3 * MIB)];
    for (writer, content, rest) in ends {
        write(&writer, content, &[rest]).await;
        writer.finish().await.unwrap();
        assert!(read(&fixture.store, &sha256(content)).await.unwrap().0 == *content);
    }
    assert!(fixture.fills().await.is_empty());
    fixture.leave(&small, &[0..MIB]).await;
    end(&fixture.store, &small).await;
    assert_eq!(fixture.bytes(), 9 * MIB);
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_read_for_long_stays_and_keeps_no_other_waiting() {
    let (fixture, sim) = simulated();
    let [bad, good] = [150, 151].map(|seed| content(seed, 3 * MIB));
    let [bad, good] = [fixture.leave(&bad, &[0..2 * MIB]).await, fixture.leave(&good, &[0..MIB]).await];
    fixture.store.close().await;
    let Fixture { root, store, .. } = fixture;
    drop(store);
    sim.spoil([layout::map(&bad)]);
    let fixture = on(&sim, root);
    for _ in 0..40 {
        fixture.run(|inner| inner.find_partials(false)).await;
    }
    assert!(!fixture.is_left(&good).await, "however often it is asked, it is not late yet");
    tokio::time::advance(Duration::from_secs(31)).await;
    fixture.run(|inner| inner.find_partials(false)).await;
    assert!(fixture.is_left(&good).await && !fixture.is_left(&bad).await);
    assert_eq!(fixture.fills().await, ["map", "map", "part", "part"], "the other is there for the next start");
}

// === what is removed by command ===

impl Fixture {
    /// Leaves a part of a blob that was asked for in this repository of docker.io.
    async fn leave_of(&self, content: &[u8], repository: Option<&str>) -> Digest {
        let writer = begin(&self.store, content).await;
        writer.remember(PartialMark { repository: repository.map(Into::into), ..mark() });
        let half = content.len() as u64 / 2;
        write(&writer, content, &[0..half]).await;
        written(&writer, half).await;
        drop(writer);
        self.idle().await;
        sha256(content)
    }

    /// What `rm` says of unfinished downloads, of images, and of names that mean nothing.
    async fn rm(&self, pattern: &str, dry_run: bool) -> (u64, u64, usize, usize) {
        let (removed, _) = self.store.remove_images(vec![pattern.parse().unwrap()], dry_run).await.unwrap();
        (removed.unfinished, removed.unfinished_bytes, removed.images.len(), removed.unmatched.len())
    }
}

#[tokio::test]
async fn what_is_left_of_a_repository_goes_with_it() {
    let fixture = fixture(1 << 30);
    let app = fixture.leave_of(&content(150, 2 * MIB), Some("team/app")).await;
    let other = fixture.leave_of(&content(151, 2 * MIB), Some("team/other")).await;
    let unknown = fixture.leave_of(&content(152, 2 * MIB), None).await;
    let running = begin(&fixture.store, &content(153, 2 * MIB)).await;
    for nothing in ["docker.io/team/app:1", "docker.io/team", "ghcr.io/team/app"] {
        assert_eq!(fixture.rm(nothing, false).await, (0, 0, 0, 1), "{nothing}");
    }
    assert_eq!(fixture.rm("docker.io/team/app", true).await, (1, MIB, 0, 0));
    assert!(fixture.is_left(&app).await, "nothing was removed");
    assert_eq!(fixture.rm("docker.io/team/app", false).await, (1, MIB, 0, 0), "it means something");
    assert!(!fixture.is_left(&app).await && fixture.is_left(&other).await && fixture.is_left(&unknown).await);
    assert_eq!(fixture.rm("docker.io/team/app", false).await, (0, 0, 0, 1), "once");
    // After a restart it is known too.
    let taken = fixture.store.take_up(&other).await.unwrap();
    assert_eq!(fixture.rm("docker.io/team/app", false).await, (0, 0, 0, 1), "it is another's");
    assert_eq!(fixture.rm("**", true).await, (0, 0, 0, 0), "somebody goes on with it");
    drop(taken);
    running.discard();
    fixture.idle().await;
    let fixture = fixture.restart(false, false).await;
    assert_eq!(fixture.rm("docker.io/**", false).await, (1, MIB, 0, 0));
    assert_eq!(
        (fixture.fills().await.len(), fixture.bytes()),
        (2, MIB),
        "of that one nobody knows where it was asked for"
    );
}

#[tokio::test]
async fn what_is_left_of_an_image_goes_with_it() {
    let images = images::Images::new().await;
    let fixture = &images.fixture;
    fixture.store.0.partials.set_least(1);
    // The platform of `app:1` that is not stored.
    let part = b"nobody asked for it";
    for (repository, goes) in [("team/tool", false), ("library/app", true)] {
        let digest = fixture.leave_of(part, Some(repository)).await;
        assert_eq!(fixture.rm("docker.io/library/app:2", true).await, (0, 0, 1, 0), "it is no part of that one");
        assert_eq!(fixture.rm("docker.io/library/app:1", true).await, (u64::from(goes), 9 * u64::from(goes), 1, 0));
        if goes {
            fixture.rm("docker.io/library/app:1", false).await;
        } else {
            fixture.store.take_up(&digest).await.unwrap().discard().await;
        }
        assert!(!fixture.is_left(&digest).await && fixture.fills().await.is_empty());
    }
}

#[tokio::test]
async fn others_do_not_wait_while_it_is_chosen_what_goes() {
    let fixture = fixture(1 << 30);
    let [one, other] = [162, 163].map(|seed| content(seed, 2 * MIB));
    let one = fixture.leave_of(&one, Some("team/app")).await;
    fixture.leave_of(&other, Some("team/app")).await;
    for dry_run in [true, false] {
        let choose = move |inner: &Arc<Inner>| {
            let is_free = std::cell::Cell::new(true);
            let gone = inner.remove_partials(dry_run, |seen| {
                is_free.set(is_free.get() && inner.partials.are_free());
                seen.digest == one
            });
            (gone.unwrap().downloads, is_free.get())
        };
        assert_eq!(fixture.run(choose).await, (1, true), "{dry_run}");
    }
    assert_eq!(fixture.fills().await, ["map", "part"], "the other stays");
}

#[tokio::test]
async fn gc_removes_what_nobody_has_gone_on_with_for_an_hour() {
    let fixture = fixture(1 << 30);
    let digest = fixture.leave_of(&content(160, 2 * MIB), Some("team/app")).await;
    let blob = put(&fixture.store, &vec![1; 1000]).await;
    let collect = |minutes, dry_run, evict| {
        let (store, at) = (&fixture.store, wall() + Duration::from_mins(minutes));
        async move { store.collect_at(at, dry_run, evict).await.unwrap() }
    };
    let young = collect(50, false, Some(MIB)).await;
    assert_eq!((young.unfinished, young.unfinished_bytes, young.blobs), (0, 0, 0));
    assert_eq!((young.evict_unfinished_bytes, young.evict_next.unwrap().len()), (MIB, 0), "it goes before any blob");
    let more = collect(50, false, Some(MIB + 1)).await;
    assert_eq!((more.evict_unfinished_bytes, more.evict_next.unwrap().len()), (MIB, 1));
    let too_much = collect(50, false, Some(2 * MIB)).await;
    assert_eq!((too_much.evict_unfinished_bytes, too_much.evict_next.unwrap().len()), (0, 0));
    assert_eq!(collect(70, true, None).await.unfinished, 1);
    assert!(fixture.is_left(&digest).await && fixture.store.blob(&blob).await.unwrap().is_some());
    let old = collect(70, false, None).await;
    assert_eq!((old.unfinished, old.unfinished_bytes, old.blobs, old.freed_bytes), (1, MIB, 1, 1000));
    assert_eq!((fixture.fills().await.len(), fixture.bytes()), (0, 0));
}

#[tokio::test]
async fn a_map_that_does_not_say_the_repository_is_one_too() {
    let fixture = fixture(1 << 30);
    let digest = fixture.leave_of(&content(161, 2 * MIB), Some("team/app")).await;
    let path = fixture.root.path().join(layout::map(&digest));
    let mut record = record::decode::<serde_json::Value>(&std::fs::read(&path).unwrap()).unwrap();
    assert!(record["mark"].as_object_mut().unwrap().remove("repository").is_some());
    std::fs::write(path, record::encode(&record).unwrap()).unwrap();
    let fixture = fixture.restart(true, false).await;
    let partial = fixture.store.take_up(&digest).await.unwrap();
    assert_eq!(partial.mark(), &PartialMark { repository: None, ..mark() });
}
