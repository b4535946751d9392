//! Every way in which an upstream misbehaves × {nothing cached, cached with an expired tag, in the middle of a herd}.
//!
//! Each row of the table at the end names what happens to upstream's answers for good, and what a client may see:
//! `right` (a complete answer with the right bytes), `stale` (the same, marked as stale), `broken` (a transfer that
//! visibly ends early), or an error status with the specification's JSON. A complete answer with wrong bytes is
//! never allowed. When upstream is healthy again the next request succeeds, nothing stray is left on disk, and no
//! secret has left upstream's origin.

use crate::common::content::{blob, image, sha256};
use crate::common::invariants::{check, check_no_secret, is_stored};
use crate::common::upstream::{Act, Auth, Cut};
use crate::common::{Ask, Cistern, Client, Gate, Got, Image, Upstream, acts, clock, eventually};
use bytes::Bytes;
use ocistern::oci::Digest;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::Instant;

use Fault::{Blob, Down, Handshake, Manifest, Token};

/// How often one request is sent in all (`TRIES` of `upstream/retry.rs`): no row asks for its subject more often, or it
/// says how often and why.
const TRIES: usize = 4;
/// Within this a client sees a head: containerd gives up after 30 s. ocistern means to do it within 20; the rest is for
/// the warped clock, on which a millisecond of work is 25.
const HEAD_WITHIN: Duration = Duration::from_secs(29);
/// Clients of a herd.
const HERD: usize = 8;
/// Length of the blob: large enough for several buffers, and to be under way when it is cut.
const LENGTH: usize = 300_000;
/// Where a body is cut.
const CUT: u64 = 100_000;
/// Where the last byte begins.
const LAST: u64 = LENGTH as u64 - 1;

/// The situation in which upstream misbehaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Cold,
    WarmExpired,
    MidHerd,
}

/// What misbehaves.
enum Fault {
    /// The answers to GETs of the blob (cold and herd) or to everything (warm).
    Blob(Act),
    /// The answers to requests for the manifest by its tag.
    Manifest(Act),
    /// The answers of the token endpoint.
    Token(Act),
    /// Connections are refused.
    Down,
    /// Connections are taken, and no TLS handshake is answered.
    Handshake,
}

/// The far side of a case.
struct Stage {
    upstream: Upstream,
    /// Another origin: where redirects lead, or must not lead.
    other: Upstream,
    image: Image,
    blob: Bytes,
    /// Never opened.
    closed: Gate,
    /// Of the upstream's certificate; empty where it speaks plain HTTP.
    ca: String,
}

/// A line of the table.
struct Row {
    name: &'static str,
    fault: fn(&Stage) -> Fault,
    cold: &'static str,
    warm: &'static str,
    herd: &'static str,
    /// Requests upstream for the subject, for one client.
    asks: usize,
}

// === impl Stage ===

impl Stage {
    async fn new(row: &Row) -> Self {
        let (upstream, ca) = match row.name.split('_').next() {
            Some("tls") => Upstream::start_tls().await,
            Some("h2") => Upstream::start_h2().await,
            _ => (Upstream::start().await, String::new()),
        };
        let stage = Self {
            upstream,
            other: Upstream::start().await,
            image: image(1),
            blob: blob(2, LENGTH),
            closed: Gate::new(),
            ca,
        };
        stage.upstream.image("app", "latest", &stage.image);
        stage.upstream.blob("app", &stage.blob);
        stage
    }

    fn blob_target(&self) -> String {
        format!("/v2/app/blobs/{}", sha256(&self.blob))
    }

    /// What the fault is about, and what is right there.
    fn subject(&self, fault: &Fault) -> (String, Bytes) {
        match fault {
            Manifest(_) => ("/v2/app/manifests/latest".to_owned(), self.image.manifest.clone()),
            _ => (self.blob_target(), self.blob.clone()),
        }
    }

    fn with_account(&self) {
        let account = ("user".to_owned(), "CANARY-PASSWORD".to_owned());
        self.upstream.registry(|registry| registry.auth = Auth::Bearer(Some(account)));
    }

    /// Starts an ocistern with an account upstream, so that there is a secret to be kept.
    async fn cistern(&self, directory: &tempfile::TempDir) -> Cistern {
        let password = directory.path().join("password");
        std::fs::write(&password, "CANARY-PASSWORD").unwrap();
        let mut keys = format!(
            "tags = \"always\"\nresume_for = \"0s\"\ncredentials = {{ from = \"static\", username = \"user\", password_file = '{}' }}\n",
            password.display()
        );
        if !self.ca.is_empty() {
            let path = directory.path().join("ca.pem");
            std::fs::write(&path, &self.ca).unwrap();
            keys += &format!("ca = '{}'\n", path.display());
        }
        // A few tries, and no patience beyond them: that is `resume.rs`.
        // On the warped clock a disk that takes its time to sync would look like an upstream that does.
        Cistern::setup().upstream("up", &self.upstream, &keys).store("durability = \"fast\"").start().await
    }

    fn apply(&self, fault: &Fault, mode: Mode) {
        let (target, _) = self.subject(fault);
        match fault {
            Down => self.upstream.down(),
            Handshake => {
                self.upstream.down();
                self.upstream.hold_handshakes(&self.closed);
                self.upstream.up();
            }
            Token(act) => {
                self.upstream.registry(crate::common::upstream::Registry::revoke_tokens);
                self.upstream.script("*", "/token", .., act.clone());
            }
            Blob(act) if mode == Mode::WarmExpired => self.upstream.script("*", "/v2/*", .., act.clone()),
            Blob(act) => self.upstream.script("GET", &target, .., act.clone()),
            Manifest(act) => self.upstream.script("*", &target, .., act.clone()),
        }
    }
}

// === the three situations ===

/// GET, whose head comes in time whatever happens.
async fn ask(client: Client, target: String) -> Got {
    let begun = Instant::now();
    let answer = client.open(Ask::get(&target)).await;
    let waited = begun.elapsed();
    assert!(waited < HEAD_WITHIN, "{waited:?} without a head: {answer:?}");
    match answer {
        Ok(live) => live.finish().await,
        Err(cut) => Got::none(cut),
    }
}

async fn cold(row: &Row, stage: &Stage, cistern: &Cistern) {
    let fault = (row.fault)(stage);
    stage.apply(&fault, Mode::Cold);
    let (target, bytes) = stage.subject(&fault);
    let got = ask(cistern.client(), target.clone()).await;
    expect(row.cold, &got, &bytes);
    let (asked, all) = (stage.upstream.count("GET", &target), stage.upstream.count("*", "*"));
    assert!(asked <= row.asks, "{asked} requests upstream for one of a client");
    // Each may need a token of its own.
    assert!(all <= 2 * row.asks, "{all} requests upstream in all for one of a client");
    cistern.settle().await;
    let digest = sha256(&bytes);
    assert!(got.complete() || !is_stored(cistern, &digest) || right_is_stored(cistern, &digest), "kept");
}

/// A transfer that broke for the client may still have ended well in the store.
fn right_is_stored(cistern: &Cistern, digest: &Digest) -> bool {
    let path = crate::common::invariants::blob_path(cistern, digest);
    sha256(&std::fs::read(path).unwrap()) == *digest
}

async fn warm_expired(row: &Row, stage: &Stage, cistern: &Cistern) {
    let fault = (row.fault)(stage);
    cistern.get("/v2/app/manifests/latest").await.assert_is(&stage.image.manifest);
    cistern.get(stage.blob_target()).await.assert_is(&stage.blob);
    cistern.settle().await;
    stage.apply(&fault, Mode::WarmExpired);
    for _ in 0..2 {
        let got = ask(cistern.client(), "/v2/app/manifests/latest".to_owned()).await;
        expect(row.warm, &got, &stage.image.manifest);
        cistern.get(stage.blob_target()).await.assert_is(&stage.blob);
    }
}

async fn mid_herd(row: &Row, stage: &Stage, cistern: &Cistern) {
    let fault = (row.fault)(stage);
    let (target, bytes) = stage.subject(&fault);
    let gate = Gate::new();
    let door = if matches!(fault, Token(_)) { "/token" } else { &target };
    // The first answer is held until the herd is there; from then on upstream misbehaves.
    let held_act = match &fault {
        Blob(act) | Manifest(act) | Token(act) => acts::both(act.clone(), acts::hold_head(&gate)),
        Down | Handshake => acts::hold_head(&gate),
    };
    if let Token(_) = fault {
        stage.upstream.registry(crate::common::upstream::Registry::revoke_tokens);
    }
    stage.upstream.script("GET", door, 0..1, held_act);
    let client = cistern.client();
    let mut herd = JoinSet::new();
    for _ in 0..HERD {
        herd.spawn(ask(client, target.clone()));
    }
    let strike = async {
        gate.reached(1).await;
        stage.apply(&fault, Mode::MidHerd);
        gate.open();
    };
    let (all, ()) = tokio::join!(herd.join_all(), strike);
    for got in &all {
        expect(row.herd, got, &bytes);
    }
    let asked = stage.upstream.count("GET", &target);
    // One more for who came when the others' request had failed already.
    assert!(asked <= row.asks + 1, "{asked} requests upstream for a herd of {HERD}");
}

/// Fails unless what the client got is one of `allowed`.
fn expect(allowed: &str, got: &Got, bytes: &Bytes) {
    let seen = got.summary();
    let class = if got.status == 0 || got.cut.is_some() {
        "broken".to_owned()
    } else if got.status == 200 {
        assert_eq!(got.digest, sha256(bytes), "a wrong complete answer: {seen}");
        if got.header("cache-status").contains("detail=stale") { "stale".to_owned() } else { "right".to_owned() }
    } else {
        assert!(!got.error_code().is_empty(), "{seen}");
        got.status.to_string()
    };
    assert!(allowed.split(' ').any(|one| one == class), "{class}, where {allowed} is allowed: {seen}");
}

fn run(mode: Mode, row: &Row) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let stage = Stage::new(row).await;
        if matches!((row.fault)(&stage), Token(_)) || row.name.contains("secret") {
            stage.with_account();
        }
        let directory = tempfile::tempdir().unwrap();
        let cistern = stage.cistern(&directory).await;
        let _warp = clock::warp();
        match mode {
            Mode::Cold => cold(row, &stage, &cistern).await,
            Mode::WarmExpired => warm_expired(row, &stage, &cistern).await,
            Mode::MidHerd => mid_herd(row, &stage, &cistern).await,
        }
        check_no_secret(&stage.other);
        if row.name.contains("untouched") {
            assert_eq!(stage.other.connections(), 0, "another origin was dialled");
        }
        stage.upstream.unscript();
        if matches!((row.fault)(&stage), Down) {
            stage.upstream.up();
        }
        for (target, bytes) in
            [(stage.blob_target(), &stage.blob), ("/v2/app/manifests/latest".to_owned(), &stage.image.manifest)]
        {
            eventually("the next healthy request succeeds", || async {
                let got = cistern.get(&target).await;
                assert!(!got.complete() || got.digest == sha256(bytes), "wrong: {}", got.summary());
                got.complete()
            })
            .await;
        }
        check(&cistern).await;
    });
}

macro_rules! matrix {
    ($($name:ident: $fault:expr, cold $cold:literal, warm $warm:literal, herd $herd:literal $(, asks $asks:literal)?;)*) => {
        mod row {
            use super::*;
            $(pub(super) const fn $name() -> Row {
                let asks = [TRIES $(, $asks)?];
                let asks = asks[asks.len() - 1];
                Row { name: stringify!($name), fault: $fault, cold: $cold, warm: $warm, herd: $herd, asks }
            })*
        }
        mod cold {
            $(#[test] fn $name() { super::run(super::Mode::Cold, &super::row::$name()); })*
        }
        mod warm_expired {
            $(#[test] fn $name() { super::run(super::Mode::WarmExpired, &super::row::$name()); })*
        }
        mod mid_herd {
            $(#[test] fn $name() { super::run(super::Mode::MidHerd, &super::row::$name()); })*
        }
    };
}

matrix! {
    // --- the connection ---
    refused: |_| Down, cold "502", warm "stale", herd "502";
    reset_before_the_head: |_| Blob(acts::no_head(Cut::Reset)), cold "502", warm "stale", herd "502";
    end_before_the_head: |_| Blob(acts::no_head(Cut::Fin)), cold "502", warm "stale", herd "502";
    not_http: |_| Blob(acts::garbage()), cold "502", warm "stale 502", herd "502";
    reset_in_the_body: |_| Blob(acts::cut_at(CUT, Cut::Reset)), cold "right", warm "right stale", herd "right";
    end_in_the_body: |_| Blob(acts::cut_at(CUT, Cut::Fin)), cold "right", warm "right stale", herd "right";
    // Clients have all but what is held back until the digest is right.
    reset_in_the_tail: |_| Blob(acts::cut_at(LAST, Cut::Reset)), cold "right", warm "right stale", herd "right";
    end_in_the_tail: |_| Blob(acts::cut_at(LAST, Cut::Fin)), cold "right", warm "right stale", herd "right";
    reset_at_the_first_byte: |_| Blob(acts::cut_at(0, Cut::Reset)), cold "broken", warm "right stale", herd "broken";
    stall_before_the_head: |s| Blob(acts::hold_head(&s.closed)), cold "504", warm "stale", herd "504";
    stall_in_the_body: |s| Blob(acts::hold_at(CUT, &s.closed)), cold "right", warm "right stale", herd "right";
    stall_at_the_first_byte: |s| Blob(acts::hold_at(0, &s.closed)), cold "broken", warm "right stale", herd "broken";
    // Longer in all than any head may take, at a rate that is no broken connection's.
    slow: |_| Blob(acts::drip(50_000, Duration::from_secs(8))), cold "right", warm "right stale", herd "right";
    tls_reset_in_the_body: |_| Blob(acts::cut_at(CUT, Cut::Reset)), cold "right", warm "right stale", herd "right";
    tls_end_in_the_body: |_| Blob(acts::cut_at(CUT, Cut::Fin)), cold "right", warm "right stale", herd "right";
    tls_reset_in_the_tail: |_| Blob(acts::cut_at(LAST, Cut::Reset)), cold "right", warm "right stale", herd "right";
    tls_handshake_stalls: |_| Handshake, cold "504", warm "stale", herd "504";

    // --- HTTP/2 ---
    h2_honest: |_| Blob(acts::honest()), cold "right", warm "right stale", herd "right";
    h2_end_before_the_head: |_| Blob(acts::no_head(Cut::Fin)), cold "502", warm "stale", herd "502";
    h2_stream_reset_in_the_body: |_| Blob(acts::cut_at(CUT, Cut::Reset)), cold "right", warm "right stale", herd "right";
    h2_connection_end_in_the_body: |_| Blob(acts::cut_at(CUT, Cut::Fin)), cold "right", warm "right stale", herd "right";
    h2_stream_reset_in_the_tail: |_| Blob(acts::cut_at(LAST, Cut::Reset)), cold "right", warm "right stale", herd "right";
    h2_handshake_stalls: |_| Handshake, cold "504", warm "stale", herd "504";
    h2_stall_before_the_head: |s| Blob(acts::hold_head(&s.closed)), cold "504", warm "stale", herd "504";
    h2_stall_in_the_body: |s| Blob(acts::hold_at(CUT, &s.closed)), cold "right", warm "right stale", herd "right";
    h2_slow: |_| Blob(acts::drip(50_000, Duration::from_secs(8))), cold "right", warm "right stale", herd "right";
    h2_announced_shorter: |_| Blob(acts::announce(-10)), cold "broken 502", warm "right stale", herd "broken 502";
    h2_announced_longer: |_| Blob(acts::announce(10)), cold "broken 502", warm "right stale", herd "broken 502";
    h2_without_a_length: |_| Blob(acts::chunked()), cold "right", warm "right stale", herd "right";
    // Who of a herd has no head yet when the digest turns out wrong is told so by a status.
    h2_wrong_bytes: |_| Blob(acts::corrupt()), cold "broken", warm "right stale", herd "broken 502";
    h2_too_many: |_| Blob(acts::too_many(Some("60"))), cold "429", warm "stale", herd "429";
    h2_unavailable: |_| Blob(acts::fail(503, "UNAVAILABLE")), cold "502 503", warm "stale", herd "502 503";
    h2_unauthorized_secret: |s| Blob(acts::challenge_again(format!("Bearer realm=\"{}/token\"", s.upstream.url()))),
        cold "401 403", warm "401 403", herd "401 403";

    // --- lengths and content ---
    announced_shorter: |_| Blob(acts::announce(-10)), cold "broken", warm "right stale", herd "broken";
    announced_longer: |_| Blob(acts::announce(10)), cold "broken", warm "right stale", herd "broken";
    two_lengths: |_| Blob(acts::duplicate("Content-Length", "7")), cold "502", warm "right stale 502", herd "502";
    chunked: |_| Blob(acts::chunked()), cold "right", warm "right stale", herd "right";
    until_the_end: |_| Blob(acts::until_close()), cold "right", warm "right stale", herd "right";
    until_an_early_end: |_| Blob(acts::both(acts::until_close(), acts::cut_at(CUT, Cut::Fin))),
        cold "broken", warm "right stale", herd "broken";
    until_an_end_in_the_tail: |_| Blob(acts::both(acts::until_close(), acts::cut_at(LAST, Cut::Fin))),
        cold "broken", warm "right stale", herd "broken";
    // Without a length it goes on from the mark all the same; also where all is there when the connection breaks.
    until_a_reset_in_the_body: |_| Blob(acts::both(acts::until_close(), acts::cut_at(CUT, Cut::Reset))),
        cold "right", warm "right stale", herd "right";
    chunked_end_in_the_body: |_| Blob(acts::both(acts::chunked(), acts::cut_at(CUT, Cut::Fin))),
        cold "right", warm "right stale", herd "right";
    h2_without_a_length_reset_in_the_body: |_| Blob(acts::both(acts::chunked(), acts::cut_at(CUT, Cut::Reset))),
        cold "right", warm "right stale", herd "right";
    until_a_reset_at_the_end: |_| Blob(acts::both(acts::until_close(), acts::cut_at(LENGTH as u64, Cut::Reset))),
        cold "right", warm "right stale", herd "right";
    chunked_without_the_last_chunk: |_| Blob(acts::both(acts::chunked(), acts::cut_at(LENGTH as u64, Cut::Fin))),
        cold "right", warm "right stale", herd "right";
    wrong_bytes: |_| Blob(acts::corrupt()), cold "broken", warm "right stale", herd "broken";
    wrong_digest_header: |_| Blob(acts::header("Docker-Content-Digest", sha256(b"other").to_string())),
        cold "502", warm "stale 502", herd "502";
    no_digest_header: |_| Blob(acts::without("Docker-Content-Digest")), cold "right", warm "right stale", herd "right";
    junk_digest_header: |_| Blob(acts::header("Docker-Content-Digest", "md5:../../etc")),
        cold "right", warm "right stale", herd "right";
    login_page: |_| Blob(acts::login_page()), cold "502 broken", warm "stale 502", herd "502 broken";
    gzip: |_| Blob(acts::gzip()), cold "502", warm "right stale 502", herd "502";
    no_content: |_| Blob(acts::answer(204, "text/plain", "")), cold "502", warm "stale 502", herd "502";
    partial_unasked: |_| Blob(acts::partial_unasked()), cold "502", warm "right stale 502", herd "502";
    not_modified_unasked: |_| Blob(acts::not_modified_unasked()), cold "502", warm "right stale 502", herd "502";
    wrong_manifest: |_| Manifest(acts::corrupt()), cold "502", warm "right stale", herd "502";
    manifest_with_wrong_digest_header: |_| Manifest(acts::header("Docker-Content-Digest", sha256(b"other").to_string())),
        cold "502", warm "stale 502", herd "502";
    manifest_is_a_login_page: |_| Manifest(acts::login_page()), cold "502", warm "stale 502", herd "502";
    manifest_cut_short: |_| Manifest(acts::cut_at(50, Cut::Fin)), cold "502", warm "right stale", herd "502";
    manifest_stalls: |s| Manifest(acts::hold_at(50, &s.closed)), cold "504", warm "right stale", herd "504";
    manifest_compressed: |_| Manifest(acts::gzip()), cold "502", warm "right stale 502", herd "502";

    // --- heads ---
    informational_flood: |_| Blob(acts::informational(100)), cold "right", warm "right stale", herd "right";
    huge_header: |_| Blob(acts::header("X-Huge", "x".repeat(1_000_000))), cold "502", warm "stale", herd "502";
    two_digest_headers: |_| Blob(acts::duplicate("Docker-Content-Digest", "sha256:0")),
        cold "right", warm "right stale", herd "right";

    // --- refusals ---
    unauthorized_loop: |s| Blob(acts::challenge_again(format!("Bearer realm=\"{}/token\",service=\"x\"", s.upstream.url()))),
        cold "401 403 502", warm "401 403 502", herd "401 403 502";
    unauthorized_without_challenge: |_| Blob(acts::fail(401, "UNAUTHORIZED")),
        cold "401 403 502", warm "401 403 502", herd "401 403 502";
    forbidden: |_| Blob(acts::fail(403, "DENIED")), cold "403", warm "403", herd "403";
    not_found: |_| Blob(acts::fail(404, "BLOB_UNKNOWN")), cold "404", warm "404", herd "404";
    not_found_as_html: |_| Blob(acts::answer(404, "text/html", "<h1>404</h1>")), cold "404", warm "404", herd "404";
    gone: |_| Blob(acts::answer(410, "text/plain", "gone")), cold "404 502", warm "404 502 stale", herd "404 502";
    teapot: |_| Blob(acts::answer(418, "text/plain", "short and stout")), cold "502", warm "502 stale", herd "502";

    // --- overload ---
    too_many_seconds: |_| Blob(acts::too_many(Some("2"))), cold "429", warm "stale", herd "429";
    too_many_a_date: |_| Blob(acts::too_many(Some("Wed, 21 Oct 2037 07:28:00 GMT"))), cold "429", warm "stale", herd "429";
    too_many_a_past_date: |_| Blob(acts::too_many(Some("Wed, 21 Oct 2015 07:28:00 GMT"))), cold "429", warm "stale", herd "429";
    too_many_junk: |_| Blob(acts::too_many(Some("soon-ish"))), cold "429", warm "stale", herd "429";
    too_many_ten_years: |_| Blob(acts::too_many(Some("315360000"))), cold "429", warm "stale", herd "429";
    too_many_without_a_word: |_| Blob(acts::too_many(None)), cold "429", warm "stale", herd "429";
    internal_error: |_| Blob(acts::fail(500, "UNKNOWN")), cold "502", warm "stale", herd "502";
    bad_gateway: |_| Blob(acts::answer(502, "text/html", "<h1>502</h1>")), cold "502", warm "stale", herd "502";
    unavailable: |_| Blob(acts::both(acts::fail(503, "UNAVAILABLE"), acts::header("Retry-After", "1"))),
        cold "502 503", warm "stale", herd "502 503";
    gateway_timeout: |_| Blob(acts::answer(504, "text/plain", "")), cold "502 504", warm "stale", herd "502 504";
    huge_error: |_| Blob(acts::answer(500, "text/plain", "x".repeat(10_000_000))), cold "502", warm "stale", herd "502";

    // --- redirects ---
    redirect_to_storage_secret: |s| Blob(acts::redirect(307, s.other.file(&s.blob))),
        cold "right", warm "stale 502", herd "right";
    // Each hop is a request, and five are followed.
    redirect_loop: |_| Blob(acts::redirect_on()), cold "502", warm "stale 502", herd "502", asks 6;
    redirect_five_hops: |_| Blob(acts::redirect_times(5)), cold "right", warm "right stale", herd "right", asks 6;
    redirect_six_hops: |_| Blob(acts::redirect_times(6)), cold "502", warm "stale 502", herd "502", asks 6;
    redirect_without_location: |_| Blob(acts::answer(307, "text/html", "")), cold "502", warm "stale 502", herd "502";
    redirect_to_a_file: |_| Blob(acts::redirect(307, "file:///etc/passwd")), cold "502", warm "stale 502", herd "502";
    redirect_to_userinfo_untouched: |s| Blob(acts::redirect(307, format!("http://u:CANARY@127.0.0.1:{}/x", s.other.port()))),
        cold "502", warm "stale 502", herd "502";
    redirect_to_unspecified_untouched: |s| Blob(acts::redirect(307, format!("http://0.0.0.0:{}/x", s.other.port()))),
        cold "502", warm "stale 502", herd "502";
    tls_redirect_downgrade_untouched_secret: |s| Blob(acts::redirect(307, s.other.file(&s.blob))),
        cold "502", warm "stale 502", herd "502";

    // --- tokens ---
    token_internal_error: |_| Token(acts::fail(500, "UNKNOWN")), cold "502 503", warm "stale", herd "502 503";
    token_too_many: |_| Token(acts::too_many(Some("60"))), cold "429 502 503", warm "stale", herd "429 502 503";
    token_refused: |_| Token(acts::fail(401, "UNAUTHORIZED")), cold "401 403 502", warm "401 403 502 stale", herd "401 403 502";
    token_reset: |_| Token(acts::no_head(Cut::Reset)), cold "502", warm "stale", herd "502";
    token_stalls: |s| Token(acts::hold_head(&s.closed)), cold "504", warm "stale", herd "504";
    token_stalls_in_the_body: |s| Token(acts::hold_at(5, &s.closed)), cold "504 502", warm "stale", herd "504 502";
    token_huge: |_| Token(acts::answer(200, "application/json", format!("{{\"token\":\"{}\"}}", "x".repeat(10_000_000)))),
        cold "502", warm "stale 502", herd "502";
    token_is_html: |_| Token(acts::login_page()), cold "502", warm "stale 502", herd "502";
    token_is_empty: |_| Token(acts::answer(200, "application/json", "{}")), cold "502", warm "stale 502", herd "502";
    token_is_no_header: |_| Token(acts::answer(200, "application/json", "{\"token\":\"a\\r\\nX-Evil: b\"}")),
        cold "401 403 502", warm "stale 502", herd "401 403 502";
    token_is_never_accepted: |_| Token(acts::answer(200, "application/json", "{\"token\":\"wrong\"}")),
        cold "401 403 502", warm "401 403 502", herd "401 403 502";
    token_redirects_untouched_secret: |s| Token(acts::redirect(307, format!("{}/token", s.other.url()))),
        cold "502 401 403", warm "stale 502 401 403", herd "502 401 403";
    realm_elsewhere_untouched_secret: |s| Blob(acts::challenge_again(format!("Bearer realm=\"http://localhost:{}/token\"", s.other.port()))),
        cold "401 403 502", warm "401 403 502", herd "401 403 502";
    realm_is_junk: |_| Blob(acts::challenge_again("Bearer realm=\"javascript:alert(1)\",service=")),
        cold "401 403 502", warm "401 403 502", herd "401 403 502";
    challenge_is_huge: |_| Blob(acts::challenge_again(format!("Bearer {}", "realm=\"x\",".repeat(5_000)))),
        cold "401 403 502", warm "401 403 502 stale", herd "401 403 502";
}
