//! Upload sessions: how they end when nobody goes on with them, how many there may be, who may use their addresses, and
//! what becomes of them when the store fails.

use std::time::Duration;

use crate::common::clock::pass;
use crate::common::content::{blob, sha256, sha512};
use crate::common::invariants::{check, files, is_stored};
use crate::common::uploading::{ANY, UPLOADS, assert_created, assert_pushed, begin, closing, next};
use crate::common::upstream::{Auth, Cut, Then};
use crate::common::{Ask, Cistern, Daemon, Gate, Got, Upstream, acts, eventually};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use bytes::Bytes;
use ocistern::http::location::{Bound, Claim, Locations};
use ocistern::http::route::Form;
use ocistern::oci::Digest;

/// Longer than an upload is kept that nobody touches.
const IDLE: Duration = Duration::from_mins(16);

async fn world() -> (Cistern, Upstream) {
    let upstream = Upstream::start().await;
    let cistern = Cistern::start(&upstream, "").await;
    (cistern, upstream)
}

#[track_caller]
fn assert_code(got: &Got, status: u16, code: &str) {
    assert_eq!((got.status, got.error_code()), (status, code.to_owned()), "{}", got.summary());
}

/// Every request on an upload that has ended, or that is somebody else's.
async fn assert_unknown(cistern: &Cistern, location: &str, dress: impl Fn(Ask) -> Ask) {
    let digest = sha256(b"x");
    for ask in [
        Ask::get(location),
        Ask::head(location),
        Ask::patch(location).body("x"),
        Ask::put(closing(location, &digest)).body("x"),
        Ask::put(closing(location, &digest)),
        Ask::delete(location),
    ] {
        let got = cistern.send(dress(ask.clone())).await;
        assert_eq!(got.status, 404, "{ask:?}: {}", got.summary());
        if got.length > 0 {
            assert_eq!(got.error_code(), "BLOB_UPLOAD_UNKNOWN", "{ask:?}");
            assert_eq!(got.header("content-type"), "application/json");
        }
    }
}

/// The store has nothing, and no promise to anybody.
async fn nothing_is_taken(cistern: &Cistern) {
    eventually("the room is given back", || async { cistern.metric("ocistern_store_bytes", &[]).await == 0 }).await;
    eventually("no file is left", || async { files(&cistern.root().join("fills")).is_empty() }).await;
}

/// An upload of which 100,000 bytes were acknowledged.
async fn begun(cistern: &Cistern, seed: u64) -> String {
    let location = begin(cistern, UPLOADS).await;
    let got = cistern.send(Ask::patch(location).body(blob(seed, 100_000))).await;
    next(&got, 202, "0-99999")
}

// === idle ===

#[tokio::test]
async fn an_upload_that_nobody_goes_on_with_ends_here_and_upstream() {
    let (cistern, upstream) = world().await;
    let locations = [begun(&cistern, 1).await, begun(&cistern, 2).await];
    // Of a third one a part broke off.
    let broken = begun(&cistern, 3).await;
    let sending = cistern.client().stream(Ask::patch(&broken));
    assert!(sending.send(blob(4, 50_000)).await);
    upstream.until("PATCH", ANY, 3).await;
    sending.abort().await;
    let empty = begin(&cistern, UPLOADS).await;
    assert!(cistern.metric("ocistern_store_bytes", &[]).await >= 300_000, "what is spooled counts");
    // A little later one of them is asked about.
    pass(IDLE / 2).await;
    next(&cistern.get(&locations[0]).await, 204, "0-99999");
    pass(IDLE / 2 + Duration::from_secs(1)).await;
    upstream.until("DELETE", ANY, 3).await;
    assert_eq!(upstream.requests("DELETE", ANY).iter().filter(|entry| entry.status == 204).count(), 3);
    assert_eq!(upstream.registry(|registry| registry.uploads.len()), 1, "one is left upstream");
    eventually("one file is left", || async { files(&cistern.root().join("fills")).len() == 1 }).await;
    for location in [&locations[1], &broken, &empty] {
        assert_unknown(&cistern, location, |ask| ask).await;
    }
    let location = next(&cistern.get(&locations[0]).await, 204, "0-99999");
    pass(IDLE).await;
    nothing_is_taken(&cistern).await;
    upstream.until("DELETE", ANY, 4).await;
    assert_unknown(&cistern, &location, |ask| ask).await;
    assert_eq!(upstream.count("*", ANY), 4 + 4 + 4, "POST, PATCH, DELETE, and nothing of what came too late");
    // And the next one is looked after, too.
    begun(&cistern, 1).await;
    pass(IDLE).await;
    nothing_is_taken(&cistern).await;
    upstream.until("DELETE", ANY, 5).await;
    check(&cistern).await;
}

#[tokio::test]
async fn an_upload_at_which_a_request_is_does_not_end() {
    let (cistern, upstream) = world().await;
    let bytes = blob(1, 200_000);
    let digest = sha256(&bytes);
    let gate = Gate::new();
    upstream.script("PUT", ANY, 0..1, acts::hold_head(&gate));
    let location = begin(&cistern, UPLOADS).await;
    let client = cistern.client();
    let put = Ask::put(closing(&location, &digest)).body(bytes.clone());
    let mut putting = tokio::task::JoinSet::new();
    putting.spawn(async move { client.send(put).await });
    gate.reached(1).await;
    // Upstream may take minutes to answer.
    for _ in 0..4 {
        pass(Duration::from_mins(1)).await;
    }
    gate.open();
    assert_created(&putting.join_next().await.unwrap().unwrap(), &digest);
    assert_pushed(&cistern, &upstream, &bytes, &digest).await;
    assert_eq!(upstream.count("DELETE", ANY), 0);
}

#[tokio::test]
async fn upstream_that_is_away_holds_no_end_up() {
    let (cistern, upstream) = world().await;
    let location = begun(&cistern, 1).await;
    upstream.down();
    pass(IDLE).await;
    nothing_is_taken(&cistern).await;
    assert_unknown(&cistern, &location, |ask| ask).await;
    upstream.up();
    // One that answers nothing holds a stop up for a moment only.
    let mut cistern = cistern;
    eventually("upstream is asked again", || async { cistern.send(Ask::post(UPLOADS)).await.status == 202 }).await;
    let gate = Gate::new();
    upstream.script("DELETE", ANY, .., acts::hold_head(&gate));
    cistern.stop().await;
    gate.reached(1).await;
}

#[tokio::test]
async fn a_stop_cancels_what_is_open() {
    let (mut cistern, upstream) = world().await;
    let location = begun(&cistern, 1).await;
    begin(&cistern, UPLOADS).await;
    // One is being written while it stops: its request ends first.
    let busy = begin(&cistern, UPLOADS).await;
    let sending = cistern.client().stream(Ask::patch(&busy));
    assert!(sending.send(blob(2, 50_000)).await);
    eventually("it is being written", || async { files(&cistern.root().join("fills")).len() == 2 }).await;
    let client = cistern.client();
    let finish = async {
        eventually("new connections are refused", || async { client.open(Ask::get("/v2/")).await.is_err() }).await;
        upstream.until("DELETE", ANY, 2).await;
        assert!(sending.send(blob(3, 50_000)).await);
        sending.finish().await
    };
    let ((), got) = tokio::join!(cistern.stop(), finish);
    assert_eq!((got.status, got.header("range")), (202, "0-99999"), "{}", got.summary());
    assert_eq!(upstream.requests("DELETE", ANY).iter().filter(|entry| entry.status == 204).count(), 3);
    assert!(upstream.registry(|registry| registry.uploads.is_empty()), "nothing is left upstream");
    assert!(files(&cistern.root().join("fills")).is_empty());
    cistern.start_again().await;
    nothing_is_taken(&cistern).await;
    assert_unknown(&cistern, &location, |ask| ask).await;
}

// === how many ===

#[tokio::test]
async fn a_caller_has_so_many_uploads_and_no_more() {
    const LIMIT: usize = 1024;
    let upstream = Upstream::start().await;
    upstream.registry(|registry| {
        registry.auth = Auth::Accounts;
        for user in ["alice", "bob"] {
            registry.accounts.user(user, "CANARY");
            registry.accounts.allow(user, "app", "pull,push");
        }
    });
    let cistern = Cistern::start(&upstream, "").await;
    let alice = |ask: Ask| ask.basic("alice", "CANARY");
    let mut locations = Vec::new();
    for _ in 0..LIMIT {
        let got = cistern.send(alice(Ask::post(UPLOADS))).await;
        assert_eq!(got.status, 202, "{}", got.summary());
        locations.push(got.header("location").to_owned());
    }
    let asked = upstream.count("POST", ANY);
    for ask in [Ask::post(UPLOADS), Ask::post(closing(UPLOADS, &sha256(b"abc"))).body("abc")] {
        let got = cistern.send(alice(ask)).await;
        assert_code(&got, 429, "TOOMANYREQUESTS");
        assert!(got.header("retry-after").parse::<u64>().unwrap() > 0);
        assert!(String::from_utf8_lossy(&got.body).contains("you have 1024 uploads"), "{:?}", got.body);
    }
    assert_eq!(upstream.count("POST", ANY), asked, "upstream has not heard of it");
    let got = cistern.send(Ask::post(UPLOADS).basic("bob", "CANARY")).await;
    assert_eq!(got.status, 202, "somebody else is not concerned: {}", got.summary());
    // One that ends makes room for one.
    assert_eq!(cistern.send(alice(Ask::delete(&locations[7]))).await.status, 204);
    assert_eq!(cistern.send(alice(Ask::post(UPLOADS))).await.status, 202);
    assert_code(&cistern.send(alice(Ask::post(UPLOADS))).await, 429, "TOOMANYREQUESTS");
    // So does one that was left alone for a while: the one that was longest, which is cancelled upstream.
    pass(Duration::from_mins(6)).await;
    for location in &locations[1..10] {
        let status = cistern.send(alice(Ask::get(location))).await.status;
        assert!(matches!(status, 204 | 404));
    }
    let cancelled = upstream.count("DELETE", ANY);
    assert_eq!(cistern.send(alice(Ask::post(UPLOADS))).await.status, 202);
    upstream.until("DELETE", ANY, cancelled + 1).await;
    assert_unknown(&cistern, &locations[0], alice).await;
    assert_eq!(cistern.send(alice(Ask::get(&locations[1]))).await.status, 204);
}

// === addresses ===

const PASSWORD: &str = "CANARY-PASSWORD";

/// Two registries, and two users who may push to two repositories of either; behind a listener that knows the first one
/// by every form of address.
async fn guarded() -> (Cistern, Upstream, Upstream) {
    let (upstream, other) = (Upstream::start().await, Upstream::start().await);
    for registry in [&upstream, &other] {
        registry.registry(|registry| {
            registry.auth = Auth::Accounts;
            for user in ["alice", "bob"] {
                registry.accounts.user(user, PASSWORD);
                registry.accounts.allow(user, "app", "pull,push");
                registry.accounts.allow(user, "app2", "pull,push");
            }
        });
    }
    let cistern = Cistern::setup()
        .upstream("up", &upstream, "")
        .upstream("other", &other, "relay_credentials = true")
        .listener("hostnames = { \"reg.test\" = \"up\" }")
        .start()
        .await;
    (cistern, upstream, other)
}

#[tokio::test]
async fn an_address_is_good_for_who_got_it_where_it_was_got() {
    let (cistern, upstream, other) = guarded().await;
    let alice = |ask: Ask| ask.basic("alice", PASSWORD);
    let begun = cistern.send(alice(Ask::post(UPLOADS))).await;
    let location = next(&begun, 202, "0-0");
    let state = location.rsplit('/').next().unwrap();
    let asked = upstream.log().len();
    assert_unknown(&cistern, &location, |ask| ask.basic("bob", PASSWORD)).await;
    // The name alone is not enough to be alice, but what she may is upstream's to say.
    for target in [
        format!("/v2/app2/blobs/uploads/{state}"),
        format!("/v2/other/app/blobs/uploads/{state}"),
        format!("/v2/up/app/blobs/uploads/{state}"),
        format!("/up/v2/app/blobs/uploads/{state}"),
        format!("/v2/app/blobs/uploads/{state}?ns=up"),
        format!("/v2/app/blobs/uploads/{state}?ns=other"),
    ] {
        assert_unknown(&cistern, &target, alice).await;
    }
    assert_unknown(&cistern, &location, |ask| alice(ask).with("host", "reg.test")).await;
    assert_eq!((upstream.log().len(), other.log().len()), (asked, 0), "no upstream has heard of it");
    // A token that is nobody's is nobody's; one of hers is she, whichever it is.
    let tokens = Ask::get("/oauth2/token?service=x&scope=repository:app:pull,push");
    let text = |got: Got| got.json()["access_token"].as_str().unwrap().to_owned();
    let nobodys = text(cistern.send(tokens.clone()).await);
    assert_unknown(&cistern, &location, |ask| ask.bearer(&nobodys)).await;
    for _ in 0..2 {
        let hers = text(cistern.send(alice(tokens.clone())).await);
        next(&cistern.send(Ask::get(&location).bearer(&hers)).await, 204, "0-0");
    }
    let location = next(&cistern.send(alice(Ask::patch(&location).body("abc"))).await, 202, "0-2");
    let digest = sha256(b"abc");
    assert_created(&cistern.send(alice(Ask::put(closing(&location, &digest)))).await, &digest);
}

#[tokio::test]
async fn no_byte_of_an_address_can_be_another_one() {
    let (cistern, upstream) = world().await;
    let location = begun(&cistern, 1).await;
    let asked = upstream.log().len();
    let state = location.rsplit('/').next().unwrap();
    let bytes = URL_SAFE_NO_PAD.decode(state).unwrap();
    for at in 0..bytes.len() {
        for flip in [1, 0x80, 0xff] {
            let mut altered = bytes.clone();
            altered[at] ^= flip;
            let target = format!("{UPLOADS}{}", URL_SAFE_NO_PAD.encode(altered));
            // One of them is enough of each.
            let ask = [Ask::get(&target), Ask::patch(&target).body("x"), Ask::delete(&target)][at % 3].clone();
            let got = cistern.send(ask).await;
            assert_code(&got, 404, "BLOB_UPLOAD_UNKNOWN");
        }
    }
    let spare = format!("{}{}", &state[..state.len() - 1], if state.ends_with('A') { 'B' } else { 'C' });
    let swapped =
        state.chars().map(|c| if c.is_ascii_lowercase() { c.to_ascii_uppercase() } else { c.to_ascii_lowercase() });
    for altered in [
        &state[1..],
        &state[..state.len() - 1],
        &format!("{state}="),
        &format!("{state}A"),
        &spare,
        &swapped.collect::<String>(),
        "A",
        &"A".repeat(state.len()),
        &"A".repeat(5000),
    ] {
        assert_unknown(&cistern, &format!("{UPLOADS}{altered}"), |ask| ask).await;
    }
    assert_eq!(upstream.log().len(), asked, "upstream has not heard of any of this");
    next(&cistern.get(&location).await, 204, "0-99999");
}

#[tokio::test]
async fn an_address_is_worth_nothing_after_the_end() {
    let (mut cistern, upstream) = world().await;
    let digest = sha256(&blob(1, 100_000));
    let mut over = vec![begun(&cistern, 1).await, begun(&cistern, 1).await, begun(&cistern, 1).await];
    assert_created(&cistern.send(Ask::put(closing(&over[0], &digest))).await, &digest);
    assert_eq!(cistern.send(Ask::delete(&over[1])).await.status, 204);
    assert_code(&cistern.send(Ask::put(closing(&over[2], &sha256(b"x")))).await, 400, "DIGEST_INVALID");
    upstream.until("DELETE", ANY, 2).await;
    // It did not even go on: nothing is told apart for who only guesses.
    let open = begun(&cistern, 2).await;
    let asked = upstream.log().len();
    for location in &over {
        assert_unknown(&cistern, location, |ask| ask).await;
    }
    assert_eq!(upstream.log().len(), asked);
    over.push(open);
    cistern.restart().await;
    let asked = upstream.log().len();
    for location in &over {
        assert_unknown(&cistern, location, |ask| ask).await;
    }
    assert_eq!(upstream.log().len(), asked);
}

#[tokio::test]
async fn an_address_holds_for_a_day() {
    let (cistern, upstream) = world().await;
    let location = begun(&cistern, 1).await;
    let asked = upstream.log().len();
    // As this ocistern signs them.
    let record: serde_json::Value =
        serde_json::from_slice(&std::fs::read(cistern.root().join("private/upload")).unwrap()).unwrap();
    let key = find(&record, "key").expect("the key is in its file");
    let locations = Locations::new(STANDARD.decode(key).unwrap().try_into().unwrap());
    let claim = Claim::read(location.rsplit('/').next().unwrap()).unwrap();
    let (upstream_name, repo) = ("up".parse().unwrap(), "app".parse().unwrap());
    let bound = Bound { upstream: &upstream_name, repo: &repo, form: Form::Default, owner: None };
    let hours_ago = |hours| {
        let state = locations.issue(claim.id, bound, crate::common::clock::wall() - Duration::from_hours(hours));
        format!("{UPLOADS}{state}")
    };
    next(&cistern.get(hours_ago(23)).await, 204, "0-99999");
    for hours in [24, 25, 10_000] {
        assert_unknown(&cistern, &hours_ago(hours), |ask| ask).await;
    }
    assert_eq!(upstream.log().len(), asked);
    next(&cistern.get(&location).await, 204, "0-99999");
}

/// The text under that name, however deep.
fn find(value: &serde_json::Value, name: &str) -> Option<String> {
    let members = value.as_object()?;
    let own = members.get(name).and_then(|value| value.as_str().map(str::to_owned));
    own.or_else(|| members.values().find_map(|value| find(value, name)))
}

// === a store that fails ===

/// An ocistern whose store has room for three quarters of what is uploaded, and what is uploaded.
async fn crammed(seed: u64) -> (Cistern, Upstream, Bytes) {
    let upstream = Upstream::start().await;
    let cistern = Cistern::setup().upstream("up", &upstream, "").store("capacity = \"3MiB\"").start().await;
    (cistern, upstream, blob(seed, 4 << 20))
}

#[tokio::test]
async fn without_the_spool_the_digest_is_still_checked() {
    for wide in [false, true] {
        let (cistern, upstream, bytes) = crammed(1).await;
        let name = if wide { sha512 } else { sha256 };
        let (digest, wrong) = (name(&bytes), name(b"something else"));
        // In parts: upstream is not even asked.
        let location = begin(&cistern, UPLOADS).await;
        let got = cistern.send(Ask::patch(location).body(bytes.clone()).chunked()).await;
        let location = next(&got, 202, "0-4194303");
        nothing_is_taken(&cistern).await;
        assert_code(&cistern.send(Ask::put(closing(&location, &wrong))).await, 400, "DIGEST_INVALID");
        assert_eq!(upstream.count("PUT", ANY), 0);
        // In one, of which upstream has not the last piece.
        let location = begin(&cistern, UPLOADS).await;
        let put = Ask::put(closing(&location, &wrong)).body(bytes.clone()).chunked();
        assert_code(&cistern.send(put).await, 400, "DIGEST_INVALID");
        upstream.until("PUT", ANY, 1).await;
        assert_eq!(upstream.requests("PUT", ANY)[0].status, 0, "it was broken off");
        assert!(upstream.registry(|registry| registry.repos.is_empty()));
        // And the right one goes through.
        let location = begin(&cistern, UPLOADS).await;
        let got = cistern.send(Ask::patch(location).body(bytes.slice(..1 << 20))).await;
        let location = next(&got, 202, "0-1048575");
        let got = cistern.send(Ask::patch(location).body(bytes.slice(1 << 20..)).chunked()).await;
        let location = next(&got, 202, "0-4194303");
        assert_created(&cistern.send(Ask::put(closing(&location, &digest))).await, &digest);
        assert_eq!(upstream.registry(|registry| registry.repos["app"].blobs[&digest].clone()), bytes);
        assert!(!is_stored(&cistern, &digest));
        nothing_is_taken(&cistern).await;
        check(&cistern).await;
    }
}

#[tokio::test]
async fn without_the_spool_a_break_ends_the_upload_clearly() {
    let cut = |status| match status {
        0 => Then::Cut(Cut::Reset),
        status => Then::Answer(status, "SCRIPTED"),
    };
    for (broken, expected) in [(0, 502), (404, 404), (416, 404), (500, 500), (503, 503), (429, 429)] {
        let (cistern, upstream, bytes) = crammed(2).await;
        let digest = sha256(&bytes);
        upstream.take_in("PATCH", ANY, 1..2, (2 << 20) + 500_000, cut(broken));
        let location = begin(&cistern, UPLOADS).await;
        let got = cistern.send(Ask::patch(&location).body(bytes.slice(..1 << 20))).await;
        let location = next(&got, 202, "0-1048575");
        let got = cistern.send(Ask::patch(&location).body(bytes.slice(1 << 20..)).chunked()).await;
        assert_code(&got, expected, "BLOB_UPLOAD_INVALID");
        let said = String::from_utf8_lossy(&got.body).into_owned();
        assert!(said.contains("no room to keep") && said.contains("begin the upload again"), "{said}");
        assert_eq!(upstream.count("POST", ANY), 1, "nothing is replayed");
        nothing_is_taken(&cistern).await;
        assert_unknown(&cistern, &location, |ask| ask).await;
        // Where nothing was acknowledged, the client may send it again to the same place.
        upstream.unscript();
        upstream.take_in("PUT", ANY, 0..1, (3 << 20) + 500_000, cut(broken));
        let location = begin(&cistern, UPLOADS).await;
        let put = Ask::put(closing(&location, &digest)).body(bytes.clone()).chunked();
        assert_code(&cistern.send(put.clone()).await, expected, "BLOB_UPLOAD_INVALID");
        assert_created(&cistern.send(put).await, &digest);
        // A break before the first byte costs nothing, though.
        upstream.unscript();
        upstream.take_in("PUT", ANY, 0..1, 0, Then::Answer(503, "SCRIPTED"));
        let location = begin(&cistern, UPLOADS).await;
        let held = cistern.client().stream(Ask::put(closing(&location, &digest)));
        assert!(held.send(bytes.clone()).await);
        assert_created(&held.finish().await, &digest);
        check(&cistern).await;
    }
}

#[tokio::test]
async fn what_was_acknowledged_is_kept_when_the_next_part_breaks_off() {
    let upstream = Upstream::start().await;
    upstream.registry(|registry| registry.forgets_broken_uploads = true);
    // There is room for the whole, and not for the first part twice.
    let cistern = Cistern::setup().upstream("up", &upstream, "").store("capacity = \"1000KiB\"").start().await;
    let bytes = blob(1, 900 << 10);
    for (name, last) in [(sha256 as fn(&[u8]) -> Digest, 900 << 10), (sha512, 650 << 10)] {
        let bytes = bytes.slice(..last);
        let digest = name(&bytes);
        let location = begin(&cistern, UPLOADS).await;
        let got = cistern.send(Ask::patch(location).body(bytes.slice(..600 << 10))).await;
        let location = next(&got, 202, "0-614399");
        for seed in [2, 3] {
            // Other bytes than those that come in the end, and more of them than in the second upload.
            let sending = cistern.client().stream(Ask::patch(&location));
            assert!(sending.send(blob(seed, 200 << 10)).await);
            eventually("they are in the file", || async { spooled(&cistern) == 800 << 10 }).await;
            sending.abort().await;
        }
        next(&cistern.get(&location).await, 204, "0-614399");
        let got = cistern.send(Ask::put(closing(&location, &digest)).body(bytes.slice(600 << 10..))).await;
        assert_created(&got, &digest);
        assert_pushed(&cistern, &upstream, &bytes, &digest).await;
        check(&cistern).await;
        assert_eq!(cistern.send(Ask::delete(format!("/v2/app/blobs/{digest}"))).await.status, 202);
    }
}

/// Bytes of the file of the only upload.
fn spooled(cistern: &Cistern) -> u64 {
    files(&cistern.root().join("fills")).first().and_then(|file| file.metadata().ok()).map_or(0, |file| file.len())
}

#[tokio::test]
async fn a_client_that_sends_drops_is_told_so() {
    let (cistern, upstream) = world().await;
    let image = crate::common::content::image(1);
    for part in image.layers.iter().chain([&image.config]) {
        upstream.blob("app", part);
    }
    let location = begun(&cistern, 1).await;
    let sending = cistern.client().stream(Ask::patch(&location));
    let mut sent = 0;
    // Never silent for a minute.
    while sent < 4 && sending.send(Bytes::from_static(b"x")).await {
        sent += 1;
        eventually("it is there", || async { spooled(&cistern) == 100_000 + sent || sending.is_answered() }).await;
        pass(Duration::from_secs(30)).await;
    }
    let got = sending.answer().await;
    assert_code(&got, 408, "BLOB_UPLOAD_INVALID");
    assert!(String::from_utf8_lossy(&got.body).contains("too slow"), "{:?}", got.body);
    // What was acknowledged is, and it goes on.
    next(&cistern.get(&location).await, 204, "0-99999");
    let got = cistern.send(Ask::patch(&location).body("more")).await;
    next(&got, 202, "0-100003");
}

// === what is said about it ===

#[tokio::test]
async fn each_request_of_an_upload_is_a_line_and_a_count() {
    let upstream = Upstream::start().await;
    let mounted = upstream.blob("base", &blob(9, 1000));
    let directory = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(&Daemon::configure(directory.path(), &upstream, "")).await;
    let client = daemon.client;
    let (bytes, small) = (blob(1, 100_000), Bytes::from_static(b"abc"));
    let digest = sha256(&bytes);
    let mut expected = Vec::new();
    let mut secrets = Vec::new();
    // Method, status, bytes that came.
    let mut ask = async |method: &str, ask: Ask, status: u16, received: u64| {
        let got = client.send(ask).await;
        assert_eq!(got.status, status, "{method}: {}", got.summary());
        secrets.extend(got.header("location").rsplit('/').next().map(str::to_owned));
        expected.push((method.to_owned(), u64::from(status), received));
        got.header("location").to_owned()
    };
    let location = ask("POST", Ask::post(UPLOADS), 202, 0).await;
    let location = ask("PATCH", Ask::patch(location).body(bytes.slice(..60_000)), 202, 60_000).await;
    let location = ask("GET", Ask::get(location), 204, 0).await;
    let late = Ask::patch(&location).with("content-range", "70000-70002").body(small.clone());
    ask("PATCH", late, 416, 0).await;
    let gone = format!("{location}A");
    ask("PATCH", Ask::patch(gone), 404, 0).await;
    ask("PUT", Ask::put(closing(&location, &digest)).body(bytes.slice(60_000..)), 201, 40_000).await;
    ask("POST", Ask::post(closing(UPLOADS, &sha256(&small))).body(small.clone()), 201, 3).await;
    ask("POST", Ask::post(closing(UPLOADS, &sha256(b"x"))).body(small.clone()), 400, 3).await;
    ask("POST", Ask::post(format!("{UPLOADS}?mount={mounted}&from=base")), 201, 0).await;
    let location = ask("POST", Ask::post(UPLOADS), 202, 0).await;
    ask("DELETE", Ask::delete(location), 204, 0).await;
    upstream.script("POST", ANY, 0..1, acts::fail(403, "DENIED"));
    ask("POST", Ask::post(UPLOADS), 403, 0).await;
    // One whose client leaves.
    let location = ask("POST", Ask::post(UPLOADS), 202, 0).await;
    let leaving = client.stream(Ask::patch(location));
    assert!(leaving.send(blob(2, 5000)).await);
    eventually("it comes", || async { !files(&directory.path().join("root/fills")).is_empty() }).await;
    drop(leaving);
    expected.push(("PATCH".to_owned(), 499, 5000));

    let lines = || {
        let log = daemon.log().into_iter();
        log.filter(|event| event["message"] == "request" && event["kind"] == "upload").collect::<Vec<_>>()
    };
    eventually("all are logged", || async { lines().len() >= expected.len() }).await;
    let said: Vec<_> = lines()
        .iter()
        .map(|line| {
            assert_eq!((&line["upstream"], &line["repository"]), (&"up".into(), &"app".into()), "{line}");
            let (method, status) = (line["method"].as_str().unwrap().to_owned(), line["status"].as_u64().unwrap());
            assert_eq!(line["result"], if status < 400 { "bypass" } else { "error" }, "{line}");
            (method, status, line["received"].as_u64().unwrap_or(0))
        })
        .collect();
    assert_eq!(said, expected);
    for state in secrets.iter().filter(|state| state.len() > 20 && !state.contains(':')) {
        assert!(!daemon.log().iter().any(|event| event.to_string().contains(state)), "an address is a right: {state}");
    }
    let count = async |result: &str| daemon.metric("ocistern_requests_total", &["kind=\"upload\"", result]).await;
    let failed = expected.iter().filter(|(_, status, _)| *status >= 400).count() as u64;
    let (bypass, error, all) = (count("result=\"bypass\"").await, count("result=\"error\"").await, count("").await);
    assert_eq!((bypass, error, all), (expected.len() as u64 - failed, failed, expected.len() as u64));
    daemon.stop().await;
}
