//! The scrub, under paused time.

use jiff::Timestamp;
use tokio::time::sleep;

use super::images::content;
use super::*;
use crate::clock::timestamp;
use crate::clock::twin::Twin;
use crate::config::{Config, Scrub};

const MINUTE: Duration = Duration::from_mins(1);

/// Noon at the beginning, and then as tokio has it.
fn clock() -> Arc<Twin> {
    let twin = Twin::new();
    twin.set("2026-01-01T12:00:00Z".parse::<Timestamp>().unwrap().into());
    twin
}

fn plan(text: &str) -> Scrub {
    Config::from_toml(&format!("[store]\nscrub = {text}")).unwrap().store.scrub.unwrap()
}

impl Fixture {
    /// Scrubs while `during` runs.
    async fn scrubs(&self, plan: Scrub, during: impl Future<Output = ()>) {
        let stop = CancellationToken::new();
        let end = async {
            during.await;
            stop.cancel();
        };
        tokio::join!(self.store.scrub(plan, &stop), end);
    }

    fn scrubbed(&self) -> u64 {
        self.metrics.scrubbed_bytes.get()
    }
}

/// Voids the stamp of a blob, as an unclean stop does.
fn void(fixture: &Fixture, digest: &Digest, len: u64) {
    fixture.store.0.hints.set_blob(digest, len, None);
}

#[tokio::test(start_paused = true)]
async fn a_pass_finds_what_is_wrong_and_vouches_for_the_rest() {
    let clock = clock();
    let fixture = fixture_by(clock.clone(), 1 << 30);
    let (good, bad) = (put(&fixture.store, &content(1, 3000)).await, put(&fixture.store, &content(2, 500)).await);
    void(&fixture, &good, 3000);
    std::fs::write(fixture.path(&bad), content(3, 500)).unwrap();
    let during = async {
        sleep(4 * MINUTE).await;
        assert_eq!(fixture.scrubbed(), 0, "the start has the disk for itself");
        sleep(2 * MINUTE).await;
        assert_eq!(fixture.scrubbed(), 3500);
    };
    fixture.scrubs(plan("{}"), during).await;
    assert_eq!(read(&fixture.store, &good).await.unwrap().1, Trust::Verified, "its next read needs no check");
    assert!(read(&fixture.store, &bad).await.is_none() && fixture.metrics.corrupt_blobs.get() == 1);
    let noon = timestamp(clock.now()).as_second();
    assert!((noon - 120..=noon).contains(&fixture.metrics.scrub_last_pass.get()));
}

#[tokio::test(start_paused = true)]
async fn the_next_pass_begins_in_time() {
    let fixture = fixture_by(clock(), 1 << 30);
    put(&fixture.store, &content(1, 3000)).await;
    let during = async {
        sleep(30 * MINUTE).await;
        assert_eq!(fixture.scrubbed(), 3000, "one pass, and not one after the other");
        sleep(60 * 47 * MINUTE).await;
        assert_eq!(fixture.scrubbed(), 3000);
        sleep(60 * 2 * MINUTE).await;
        assert_eq!(fixture.scrubbed(), 6000);
    };
    fixture.scrubs(plan("{ every = \"2d\" }"), during).await;
}

#[tokio::test(start_paused = true)]
async fn it_gives_way_to_downloads() {
    let fixture = fixture_by(clock(), 1 << 30);
    put(&fixture.store, &content(1, 3 << 20)).await;
    let fills = fixture.metrics.fills_in_progress.clone();
    fills.set(1);
    let during = async {
        sleep(60 * MINUTE).await;
        assert_eq!(fixture.scrubbed(), 0);
        fills.set(0);
        // A step a minute, the first within a second.
        sleep(MINUTE / 2).await;
        assert_eq!(fixture.scrubbed(), 1 << 20);
        fills.set(1);
        sleep(60 * MINUTE).await;
        assert_eq!(fixture.scrubbed(), 1 << 20, "also in the middle of a blob");
        fills.set(0);
        sleep(3 * MINUTE).await;
        assert_eq!(fixture.scrubbed(), 3 << 20);
    };
    fixture.scrubs(plan("{ rate = \"17500B/s\" }"), during).await;
}

#[tokio::test(start_paused = true)]
async fn it_keeps_to_its_hours() {
    let fixture = fixture_by(clock(), 1 << 30);
    put(&fixture.store, &content(1, 3000)).await;
    let during = async {
        sleep((12 * 60 + 59) * MINUTE).await;
        assert_eq!(fixture.scrubbed(), 0, "it is not one o'clock");
        sleep(2 * MINUTE).await;
        assert_eq!(fixture.scrubbed(), 3000);
    };
    fixture.scrubs(plan("{ hours = \"01:00-06:00\" }"), during).await;
}

#[tokio::test(start_paused = true)]
async fn it_goes_on_after_a_restart() {
    let fixture = fixture_by(clock(), 1 << 30);
    for seed in 0..10 {
        put(&fixture.store, &content(seed, 1000)).await;
    }
    let slow = || plan("{ rate = \"10B/s\" }");
    // 100 seconds each; the first at once.
    let during = async { sleep(5 * MINUTE + Duration::from_secs(350)).await };
    fixture.scrubs(slow(), during).await;
    let before = fixture.scrubbed();
    assert_eq!(before, 4000);
    let fixture = fixture.restart(true, true).await;
    fixture.store.recover_once().await.unwrap();
    assert_eq!(fixture.metrics.scrub_last_pass.get(), 0);
    fixture.scrubs(slow(), async { sleep(30 * MINUTE).await }).await;
    assert_eq!(fixture.scrubbed(), 6000, "what was hashed before the restart is not hashed again");
    assert!(fixture.metrics.scrub_last_pass.get() > 0);
    std::fs::write(fixture.root.path().join("state/scrub"), "{").unwrap();
    fixture.scrubs(plan("{}"), async { sleep(30 * MINUTE).await }).await;
    assert_eq!(fixture.scrubbed(), 16_000, "a lost position costs a pass from the beginning");
}

#[tokio::test(start_paused = true)]
async fn without_an_index_no_pass_is_complete() {
    let fixture = fixture_by(clock(), 1 << 30);
    let digest = put(&fixture.store, &content(1, 3000)).await;
    fixture.store.0.hints.remove_blob(&digest);
    fixture.scrubs(plan("{}"), async { sleep(30 * MINUTE).await }).await;
    assert_eq!((fixture.scrubbed(), fixture.metrics.scrub_last_pass.get()), (0, 0));
}

/// Where something is always being downloaded, the wait ends after a day.
#[tokio::test(start_paused = true)]
async fn it_does_not_give_way_for_ever() {
    let fixture = fixture_by(clock(), 1 << 30);
    put(&fixture.store, &content(1, 3000)).await;
    fixture.metrics.fills_in_progress.set(1);
    let during = async {
        sleep(60 * 23 * MINUTE).await;
        assert_eq!(fixture.scrubbed(), 0);
        sleep(60 * 2 * MINUTE).await;
        assert_eq!(fixture.scrubbed(), 3000);
    };
    fixture.scrubs(plan("{}"), during).await;
}

/// One blob that can neither be read nor be moved does not hold up the others.
#[tokio::test(start_paused = true)]
async fn a_pass_goes_on_behind_what_it_cannot_look_at() {
    let fixture = fixture_by(clock(), 1 << 30);
    for seed in 0..3 {
        put(&fixture.store, &content(seed, 1000)).await;
    }
    let path = fixture.path(&sha256(&content(1, 1000)));
    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir_all(path.join("something")).unwrap();
    std::fs::remove_dir(fixture.root.path().join("quarantine")).unwrap();
    std::fs::write(fixture.root.path().join("quarantine"), "").unwrap();
    fixture.scrubs(plan("{}"), async { sleep(30 * MINUTE).await }).await;
    assert_eq!(fixture.scrubbed(), 2000);
    assert!(fixture.metrics.scrub_last_pass.get() > 0, "the pass has ended");
}
