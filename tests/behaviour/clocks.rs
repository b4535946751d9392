//! The clock on the wall jumps while ocistern runs, and between two runs: through real sockets.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::common::clock::{Twin, pass};
use crate::common::content::{blob, image, sha256};
use crate::common::invariants::check;
use crate::common::uploading::{UPLOADS, begin, closing, next};
use crate::common::upstream::Auth;
use crate::common::{Ask, Cistern, Gate, Image, Upstream, acts};
use ocistern::clock::Clock as _;

const TARGET: &str = "/v2/app/manifests/latest";
const HOUR: Duration = Duration::from_hours(1);
const DAY: Duration = Duration::from_hours(24);
const YEAR: Duration = Duration::from_hours(24 * 365);

/// Where the clock stands after a jump.
type Jump = fn(SystemTime) -> SystemTime;

/// Jumps, and what they are called.
fn jumps() -> Vec<(&'static str, Jump)> {
    vec![
        ("an hour forward", |now| now + HOUR),
        ("an hour back", |now| now - HOUR),
        ("a day forward", |now| now + DAY),
        ("a day back", |now| now - DAY),
        ("back to 1970", |_| UNIX_EPOCH),
        ("forward to 2106", |_| UNIX_EPOCH + Duration::from_secs(u32::MAX.into())),
        ("beyond 32 bits", |_| UNIX_EPOCH + Duration::from_secs(u64::from(u32::MAX) + 1_000_000)),
        ("a year back", |now| now - YEAR),
    ]
}

async fn by_twin(upstream: &Upstream, keys: &str) -> (Cistern, Arc<Twin>) {
    let clock = Twin::new();
    let cistern = Cistern::setup().upstream("up", upstream, keys).clock(clock.clone()).start().await;
    (cistern, clock)
}

async fn world(seed: u64, keys: &str) -> (Cistern, Arc<Twin>, Upstream, Image) {
    let upstream = Upstream::start().await;
    let image = image(seed);
    upstream.image("app", "latest", &image);
    let (cistern, clock) = by_twin(&upstream, keys).await;
    cistern.get(TARGET).await.assert_is(&image.manifest);
    cistern.settle().await;
    upstream.forget();
    (cistern, clock, upstream, image)
}

/// The tag is asked about at most once, and known after that.
async fn assert_asked_once(cistern: &Cistern, upstream: &Upstream, image: &Image, what: &str) {
    upstream.forget();
    for _ in 0..4 {
        cistern.get(TARGET).await.assert_is(&image.manifest);
    }
    let asked = upstream.count("HEAD", TARGET) + upstream.count("GET", TARGET);
    assert_eq!(asked, 1, "{what}: asked once, and not for ever");
    cistern.settle().await;
}

#[tokio::test]
async fn a_tag_is_asked_about_once_after_each_jump() {
    let (cistern, clock, upstream, image) = world(1, "tags = \"5m\"").await;
    for (what, jump) in jumps() {
        clock.set(jump(clock.now()));
        assert_asked_once(&cistern, &upstream, &image, what).await;
    }
    check(&cistern).await;
}

#[tokio::test]
async fn a_tag_is_asked_about_once_after_a_start_at_another_time() {
    let (mut cistern, clock, upstream, image) = world(2, "tags = \"5m\"").await;
    for (what, jump) in jumps() {
        cistern.stop().await;
        clock.set(jump(clock.now()));
        cistern.start_again().await;
        assert_asked_once(&cistern, &upstream, &image, what).await;
    }
    check(&cistern).await;
}

#[tokio::test]
async fn a_push_is_seen_whatever_the_clock_says() {
    let (cistern, clock, upstream, old) = world(3, "tags = \"5m\"").await;
    let mut known = old;
    for (number, (what, jump)) in (10_u64..).zip(jumps()) {
        // A question from before the push, whose answer comes after it.
        let gate = Gate::new();
        clock.set(clock.now() + HOUR);
        upstream.script("HEAD", TARGET, 0..1, acts::hold_head(&gate));
        let client = cistern.client();
        let mut asking = tokio::task::JoinSet::new();
        asking.spawn(async move { client.get(TARGET).await });
        gate.reached(1).await;
        let new = image(number);
        for content in new.layers.iter().chain([&new.config]) {
            upstream.blob("app", content);
        }
        clock.set(jump(clock.now()));
        let put = Ask::put(TARGET).with("content-type", new.media_type).body(new.manifest.clone());
        assert_eq!(cistern.send(put).await.status, 201, "{what}");
        gate.open();
        let answered = asking.join_next().await.unwrap().unwrap();
        assert!(answered.digest == known.digest || answered.digest == new.digest, "{what}: {}", answered.summary());
        for _ in 0..2 {
            cistern.get(TARGET).await.assert_is(&new.manifest);
        }
        upstream.unscript();
        known = new;
    }
}

#[tokio::test]
async fn an_upload_goes_on_whatever_the_clock_says() {
    let upstream = Upstream::start().await;
    let (cistern, clock) = by_twin(&upstream, "").await;
    for (seed, (what, jump)) in (20_u64..).zip(jumps()) {
        let bytes = blob(seed, 200_000);
        let location = begin(&cistern, UPLOADS).await;
        let got = cistern.send(Ask::patch(&location).body(bytes.slice(..100_000))).await;
        assert_eq!(got.status, 202, "{what}: {}", got.summary());
        let location = next(&got, 202, "0-99999");
        clock.set(jump(clock.now()));
        let got = cistern.send(Ask::patch(&location).body(bytes.slice(100_000..))).await;
        assert_eq!(got.status, 202, "{what}: {}", got.summary());
        let location = next(&got, 202, "0-199999");
        clock.set(jump(clock.now()));
        let got = cistern.send(Ask::put(closing(&location, &sha256(&bytes)))).await;
        assert_eq!(got.status, 201, "{what}: {}", got.summary());
    }
    check(&cistern).await;
}

#[tokio::test]
async fn an_upload_that_nobody_goes_on_with_ends_whatever_the_clock_says() {
    let upstream = Upstream::start().await;
    let (cistern, clock) = by_twin(&upstream, "").await;
    let location = begin(&cistern, UPLOADS).await;
    clock.set(clock.now() - DAY);
    pass(Duration::from_mins(16)).await;
    assert_eq!(cistern.get(&location).await.status, 404);
}

#[tokio::test]
async fn a_fill_goes_on_whatever_the_clock_says() {
    let upstream = Upstream::start().await;
    let (cistern, clock) = by_twin(&upstream, "").await;
    for (seed, (what, jump)) in (40_u64..).zip(jumps()) {
        let image = image(seed);
        upstream.image("app", "latest", &image);
        let layer = image.layers.first().unwrap();
        let target = format!("/v2/app/blobs/{}", sha256(layer));
        let gate = Gate::new();
        upstream.script("GET", target.as_str(), 0..1, acts::hold_head(&gate));
        let (client, asked) = (cistern.client(), target.clone());
        let mut asking = tokio::task::JoinSet::new();
        asking.spawn(async move { client.get(asked).await });
        gate.reached(1).await;
        clock.set(jump(clock.now()));
        gate.open();
        asking.join_next().await.unwrap().unwrap().assert_is(layer);
        cistern.settle().await;
        upstream.forget();
        cistern.get(&target).await.assert_is(layer);
        assert_eq!(upstream.count("GET", target.as_str()), 0, "{what}: it was kept");
        upstream.unscript();
    }
    check(&cistern).await;
}

/// A token for everybody, which is sealed by ocistern itself.
async fn token(cistern: &Cistern) -> String {
    let got = cistern.get("/oauth2/token?service=x&scope=repository:app:pull").await;
    assert_eq!(got.status, 200, "{}", got.summary());
    got.json()["token"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_token_does_not_live_longer_because_the_clock_was_set_back() {
    let upstream = Upstream::start().await;
    let image = image(60);
    upstream.image("app", "latest", &image);
    upstream.registry(|registry| {
        registry.auth = Auth::Accounts;
        registry.accounts.public.insert("app".to_owned());
    });
    let (cistern, clock) = by_twin(&upstream, "").await;
    for (what, jump) in jumps() {
        let old = token(&cistern).await;
        cistern.send(Ask::get(TARGET).bearer(&old)).await.assert_is(&image.manifest);
        clock.set(jump(clock.now()));
        let got = cistern.send(Ask::get(TARGET).bearer(&old)).await;
        assert_eq!(got.status, 401, "{what}: what was issued in the future has expired, as what is too old");
        assert!(got.header("www-authenticate").starts_with("Bearer"), "{what}: the client is told to get another one");
        let new = token(&cistern).await;
        cistern.send(Ask::get(TARGET).bearer(&new)).await.assert_is(&image.manifest);
    }
    // A clock that is set by seconds, as time services do it, costs no token.
    let token = token(&cistern).await;
    clock.set(clock.now() - Duration::from_secs(2));
    cistern.send(Ask::get(TARGET).bearer(&token)).await.assert_is(&image.manifest);
}

#[tokio::test]
async fn what_is_public_is_asked_about_again_after_its_time_whatever_the_clock_says() {
    let (cistern, clock, upstream, image) = world(70, "tags = \"immutable\"\npublic_for = \"10m\"").await;
    for (what, jump) in jumps() {
        clock.set(jump(clock.now()));
        upstream.forget();
        cistern.get(TARGET).await.assert_is(&image.manifest);
        assert_eq!(upstream.log().len(), 0, "{what}: in memory it goes by a clock that does not jump");
        pass(Duration::from_mins(11)).await;
        for _ in 0..3 {
            cistern.get(TARGET).await.assert_is(&image.manifest);
        }
        assert_eq!(upstream.log().len(), 1, "{what}: asked once");
    }
}

#[tokio::test]
async fn what_is_public_is_asked_about_once_after_a_start_at_another_time() {
    let (mut cistern, clock, upstream, image) = world(71, "tags = \"immutable\"\npublic_for = \"10m\"").await;
    // Since when the file says so.
    let mut since = clock.now();
    for (what, jump) in jumps() {
        cistern.stop().await;
        clock.set(jump(clock.now()));
        cistern.start_again().await;
        let age = clock.now().duration_since(since).ok();
        upstream.forget();
        for _ in 0..3 {
            cistern.get(TARGET).await.assert_is(&image.manifest);
        }
        let fresh = age.is_some_and(|age| age < Duration::from_mins(10));
        assert_eq!(upstream.log().len(), usize::from(!fresh), "{what}: asked once, if at all");
        if age.is_none() {
            since = clock.now();
        }
    }
}
