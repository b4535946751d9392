//! What somebody goes on with while it is removed by command: whoever has it is not disturbed, and what is left of it goes.

#![expect(clippy::single_range_in_vec_init, reason = "what is written is a list of ranges")]

use super::partial::{MIB, begin, content, end, mark, simulated, write, written};
use super::sim::{Fault, Harm};
use super::*;

const APP: &str = "docker.io/library/app";

impl Fixture {
    /// How many unfinished downloads `rm` says are gone; none: the name means nothing.
    async fn rm_of(&self, pattern: &str) -> Option<u64> {
        let (removed, _) = self.store.remove_images(vec![pattern.parse().unwrap()], false).await.unwrap();
        removed.unmatched.is_empty().then_some(removed.unfinished)
    }

    /// How many `rm` says that somebody goes on with.
    async fn rm_running(&self, pattern: &str, dry_run: bool) -> u64 {
        self.store.remove_images(vec![pattern.parse().unwrap()], dry_run).await.unwrap().0.running
    }

    async fn has_nothing(&self) -> bool {
        self.fills().await.is_empty() && self.bytes() == 0
    }

    async fn keeps(&self, content: &[u8]) -> bool {
        let digest = self.leave(content, &[0..MIB]).await;
        let Some(partial) = self.store.take_up(&digest).await else { return false };
        partial.discard().await;
        true
    }
}

/// Begins, and puts down the first MiB.
async fn run(fixture: &Fixture, content: &[u8]) -> BlobWriter {
    let writer = begin(&fixture.store, content).await;
    writer.remember(mark());
    write(&writer, content, &[0..MIB]).await;
    written(&writer, MIB).await;
    writer.checkpoint().await;
    writer
}

#[tokio::test]
async fn what_somebody_has_taken_up_goes_when_it_is_given_back() {
    let fixture = fixture(1 << 30);
    let content = content(170, 3 * MIB);
    let digest = fixture.leave(&content, &[0..MIB]).await;
    let taken = fixture.store.take_up(&digest).await.unwrap();
    assert_eq!(fixture.rm_of("docker.io/library/other").await, None);
    assert_eq!(fixture.rm_running("docker.io/library/other", true).await, 0);
    assert_eq!(fixture.rm_running(APP, true).await, 1, "a dry run says so too");
    assert_eq!(fixture.rm_running(APP, false).await, 1);
    assert_eq!(fixture.rm_of(APP).await, Some(0), "it means something, and nothing is gone yet");
    assert_eq!((taken.present().total(), fixture.bytes()), (MIB, MIB));
    drop(taken);
    // Who comes at once does not miss the map.
    assert!(fixture.store.take_up(&digest).await.is_none());
    let next = begin(&fixture.store, &content).await;
    assert!(fixture.has_nothing().await || fixture.fills().await == ["part"]);
    next.remember(mark());
    write(&next, &content, &[0..2 * MIB]).await;
    written(&next, 2 * MIB).await;
    drop(next);
    assert_eq!(fixture.fills().await, ["map", "part"], "what has begun since stays");
    end(&fixture.store, &content).await;
}

#[tokio::test]
async fn what_is_gone_on_with_meanwhile_is_not_put_down_again() {
    let fixture = fixture(1 << 30);
    let content = content(171, 4 * MIB);
    for before in [true, false] {
        let digest = fixture.leave(&content, &[0..MIB]).await;
        let taken = fixture.store.take_up(&digest).await.unwrap();
        if before {
            assert_eq!(fixture.rm_of("**").await, Some(0));
        }
        let writer = taken.resume().await.unwrap();
        if !before {
            assert_eq!(fixture.rm_of("**").await, Some(0));
        }
        assert_eq!(fixture.fills().await, ["part"], "a restart would not find it");
        write(&writer, &content, &[MIB..3 * MIB]).await;
        written(&writer, 3 * MIB).await;
        writer.checkpoint().await;
        assert_eq!(fixture.fills().await, ["part"]);
        writer.park().await;
        assert!(fixture.has_nothing().await, "{before}");
        assert!(fixture.keeps(&content).await, "what has begun since is kept");
    }
}

#[tokio::test]
async fn what_runs_for_the_first_time_ends_as_ever_or_leaves_nothing() {
    let fixture = fixture(1 << 30);
    let content = content(172, 3 * MIB);
    for ends in [false, true] {
        let writer = run(&fixture, &content).await;
        assert_eq!(fixture.fills().await, ["map", "part"]);
        assert_eq!(fixture.rm_of(&format!("{APP}:1")).await, None);
        assert_eq!(fixture.fills().await, ["map", "part"], "it is no part of what that means");
        assert_eq!(fixture.rm_of(APP).await, Some(0));
        assert_eq!(fixture.fills().await, ["part"]);
        if ends {
            write(&writer, &content, &[MIB..3 * MIB]).await;
            writer.finish().await.unwrap();
            assert!(read(&fixture.store, &sha256(&content)).await.unwrap().0 == content);
            assert!(fixture.fills().await.is_empty());
        } else {
            drop(writer);
            assert!(fixture.has_nothing().await);
        }
    }
}

#[tokio::test]
async fn a_process_that_ends_at_once_does_not_bring_it_back() {
    let fixture = fixture(1 << 30);
    let content = content(173, 3 * MIB);
    let writer = run(&fixture, &content).await;
    assert_eq!(fixture.rm_of(APP).await, Some(0));
    let after = fixture.crashed(InMemory).await;
    assert!(after.store.take_up(&sha256(&content)).await.is_none());
    assert!(after.has_nothing().await);
    drop(writer);
}

#[tokio::test]
async fn a_part_of_a_removed_image_goes_when_it_is_given_back() {
    let images = images::Images::new().await;
    let fixture = &images.fixture;
    fixture.store.0.partials.set_least(1);
    // The platform of `app:1` that is not stored.
    let digest = fixture.leave(b"nobody asked for it", &[0..9]).await;
    for (image, stays) in [("2", true), ("1", false)] {
        let taken = fixture.store.take_up(&digest).await.unwrap();
        assert_eq!(fixture.rm_of(&format!("{APP}:{image}")).await, Some(0));
        drop(taken);
        assert_eq!(fixture.fills().await.len(), if stays { 2 } else { 0 }, "{image}");
    }
}

#[tokio::test]
async fn a_map_that_cannot_be_removed_goes_with_its_file() {
    let (fixture, sim) = simulated();
    let content = content(174, 3 * MIB);
    let writer = run(&fixture, &content).await;
    sim.arm(Fault { harm: Harm::Fail(rustix::io::Errno::ROFS), at: 1, times: u64::MAX }, 0);
    assert!(fixture.store.remove_images(vec![APP.parse().unwrap()], false).await.is_err(), "it is told");
    sim.heal();
    writer.checkpoint().await;
    drop(writer);
    assert!(fixture.has_nothing().await);
    assert!(fixture.keeps(&content).await);
}

#[tokio::test]
async fn gc_leaves_what_somebody_goes_on_with() {
    let fixture = fixture(1 << 30);
    let content = content(175, 3 * MIB);
    let digest = fixture.leave(&content, &[0..MIB]).await;
    let later = wall() + Duration::from_mins(70);
    let collect = || async { fixture.store.collect_at(later, false, None).await.unwrap().unfinished };
    let taken = fixture.store.take_up(&digest).await.unwrap();
    assert_eq!(collect().await, 0);
    let writer = taken.resume().await.unwrap();
    assert_eq!(collect().await, 0);
    drop(writer);
    assert_eq!(fixture.fills().await, ["map", "part"], "nobody has called it garbage");
    let taken = fixture.store.take_up(&digest).await.unwrap();
    assert_eq!(collect().await, 0);
    drop(taken);
    assert_eq!(fixture.fills().await, ["map", "part"]);
    assert_eq!(collect().await, 1, "nobody has gone on with it for an hour");
    assert!(fixture.has_nothing().await);
}
