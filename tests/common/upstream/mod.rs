//! A registry on 127.0.0.1 that behaves as a script says: the far side of every test.
//!
//! `registry` answers honestly; a script of rules (method, path pattern, which of the matching requests) changes
//! answers by the functions in `acts`; `wire` sends them, faults included. Every request is logged.

pub mod accounts;
pub mod acts;
mod h2;
pub mod registry;
mod serve;
pub mod uploads;
mod wire;

use std::ops::{Bound, RangeBounds};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use ocistern::oci::Digest;
use parking_lot::Mutex;
use tokio::sync::watch;

use super::content::{Image, sha256, sha512};
pub use accounts::Accounts;
pub use registry::{Auth, Registry};
pub use wire::{Cut, Framing, Gate, Reply, Request};

/// Changes an honest answer.
pub type Act = Arc<dyn Fn(&Request, Reply) -> Reply + Send + Sync>;

/// The scripted upstream; stops when dropped.
pub struct Upstream {
    shared: Arc<Shared>,
    server: Mutex<serve::Server>,
    port: u16,
}

/// What the connections' tasks see.
pub struct Shared {
    registry: Mutex<Registry>,
    script: Mutex<Vec<Rule>>,
    intakes: Mutex<Vec<IntakeRule>>,
    /// Before every TLS handshake.
    handshakes: Mutex<Option<Gate>>,
    log: watch::Sender<Vec<Entry>>,
    connections: AtomicU64,
    tls: Option<tokio_rustls::TlsAcceptor>,
}

/// One request, and how far its answer came.
#[derive(Debug, Clone)]
pub struct Entry {
    pub request: Request,
    /// When it was read completely.
    pub at: tokio::time::Instant,
    /// Status of the answer as it was scripted.
    pub status: u16,
    /// Bytes of the body sent so far.
    pub sent: Arc<AtomicU64>,
}

/// What goes wrong while a request's body comes.
#[derive(Debug, Clone)]
pub struct Intake {
    /// When so many bytes of it have come.
    pub at: u64,
    pub then: Then,
}

#[derive(Debug, Clone)]
pub enum Then {
    /// The connection ends, and an upload is broken for good, as Azure's registry has it.
    Cut(Cut),
    /// Nothing more is read until the gate opens.
    Hold(Gate),
    /// An error is answered without reading on.
    Answer(u16, &'static str),
}

struct IntakeRule {
    method: String,
    path: String,
    from: usize,
    to: usize,
    seen: usize,
    intake: Intake,
}

struct Rule {
    method: String,
    path: String,
    /// The first and the end of the matching requests on which it acts.
    from: usize,
    to: usize,
    seen: usize,
    act: Act,
}

// === impl Upstream ===

impl Upstream {
    /// Starts one on plain HTTP, empty and open to everybody.
    pub async fn start() -> Self {
        Self::start_with(None, "http")
    }

    /// Starts one on TLS, with a certificate of a CA whose PEM text is returned.
    pub async fn start_tls() -> (Self, String) {
        let (acceptor, ca) = serve::tls_acceptor(&[]);
        (Self::start_with(Some(acceptor), "https"), ca)
    }

    /// As [`Upstream::start_tls`], over HTTP/2.
    pub async fn start_h2() -> (Self, String) {
        let (acceptor, ca) = serve::tls_acceptor(&[b"h2"]);
        (Self::start_with(Some(acceptor), "https"), ca)
    }

    fn start_with(tls: Option<tokio_rustls::TlsAcceptor>, scheme: &str) -> Self {
        let shared = Arc::new(Shared {
            registry: Mutex::new(Registry { referrers: true, ..Registry::default() }),
            script: Mutex::default(),
            intakes: Mutex::default(),
            handshakes: Mutex::default(),
            log: watch::Sender::default(),
            connections: AtomicU64::new(0),
            tls,
        });
        let server = serve::Server::reserve();
        let port = server.port();
        shared.registry.lock().url = format!("{scheme}://127.0.0.1:{port}");
        let upstream = Self { shared, server: Mutex::new(server), port };
        upstream.up();
        upstream
    }

    /// `http://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        self.shared.registry.lock().url.clone()
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Ends every connection and refuses new ones; the port stays reserved.
    pub fn down(&self) {
        self.server.lock().down();
    }

    /// Accepts connections (again).
    pub fn up(&self) {
        self.server.lock().up(&self.shared);
    }

    /// Reads or changes what the registry holds and how it behaves.
    pub fn registry<T>(&self, change: impl FnOnce(&mut Registry) -> T) -> T {
        change(&mut self.shared.registry.lock())
    }

    pub fn image(&self, repo: &str, tag: &str, image: &Image) {
        self.registry(|registry| registry.put_image(repo, tag, image));
    }

    pub fn blob(&self, repo: &str, bytes: &Bytes) -> Digest {
        let digest = sha256(bytes);
        self.registry(|registry| registry.put_blob(repo, digest, bytes));
        digest
    }

    pub fn blob_sha512(&self, repo: &str, bytes: &Bytes) -> Digest {
        let digest = sha512(bytes);
        self.registry(|registry| registry.put_blob(repo, digest, bytes));
        digest
    }

    pub fn manifest(&self, repo: &str, media_type: &str, bytes: &Bytes) -> Digest {
        self.registry(|registry| registry.put_manifest(repo, media_type, bytes))
    }

    pub fn tag(&self, repo: &str, tag: &str, digest: Digest) {
        self.registry(|registry| registry.put_tag(repo, tag, digest));
    }

    /// Puts a blob on this server as a storage that another one redirects to: its URL, with the double slash that
    /// Azure's storage has.
    pub fn file(&self, bytes: &Bytes) -> String {
        let path = format!("/data//blobs/{}", sha256(bytes).hex());
        self.registry(|registry| registry.files.insert(path.clone(), bytes.clone()));
        format!("{}{path}?sig=CANARY-SIGNATURE", self.url())
    }

    /// Adds a rule: `act` changes the answers to those requests among the matching ones whose number (from 0) lies
    /// in `times`. `*` in `path` stands for any text; `method` may be `*`. The first rule that acts wins.
    pub fn script(&self, method: &str, path: &str, times: impl RangeBounds<usize>, act: Act) {
        let (from, to) = bounds(&times);
        let rule = Rule { method: method.to_owned(), path: path.to_owned(), from, to, seen: 0, act };
        self.shared.script.lock().push(rule);
    }

    /// Adds a rule for what happens while the bodies of matching requests come; all that match apply, in this order.
    pub fn take_in(&self, method: &str, path: &str, times: impl RangeBounds<usize>, at: u64, then: Then) {
        let (from, to) = bounds(&times);
        let intake = Intake { at, then };
        let rule = IntakeRule { method: method.to_owned(), path: path.to_owned(), from, to, seen: 0, intake };
        self.shared.intakes.lock().push(rule);
    }

    /// Answers no TLS handshake of a connection that is made from now on until the gate opens.
    pub fn hold_handshakes(&self, gate: &Gate) {
        *self.shared.handshakes.lock() = Some(gate.clone());
    }

    /// Removes all rules, also that on handshakes.
    pub fn unscript(&self) {
        *self.shared.handshakes.lock() = None;
        self.shared.script.lock().clear();
        self.shared.intakes.lock().clear();
    }

    /// Every request so far.
    pub fn log(&self) -> Vec<Entry> {
        self.shared.log.borrow().clone()
    }

    /// The requests so far that match.
    pub fn requests(&self, method: &str, path: &str) -> Vec<Entry> {
        self.log().into_iter().filter(|entry| entry.matches(method, path)).collect()
    }

    /// How many requests so far match.
    pub fn count(&self, method: &str, path: &str) -> usize {
        self.requests(method, path).len()
    }

    /// Body bytes sent so far in answers to matching requests.
    pub fn sent(&self, method: &str, path: &str) -> u64 {
        self.requests(method, path).iter().map(|entry| entry.sent.load(Ordering::Relaxed)).sum()
    }

    /// Connections accepted so far.
    pub fn connections(&self) -> u64 {
        self.shared.connections.load(Ordering::Relaxed)
    }

    /// Waits until so many matching requests have come.
    pub async fn until(&self, method: &str, path: &str, count: usize) {
        let what = format!("{count} requests {method} {path} upstream");
        super::patiently(&what, async {
            let mut log = self.shared.log.subscribe();
            let enough = |log: &Vec<Entry>| log.iter().filter(|e| e.matches(method, path)).count() >= count;
            log.wait_for(enough).await.map(|_| ()).unwrap();
        })
        .await;
    }

    /// Forgets the requests so far.
    pub fn forget(&self) {
        self.shared.log.send_modify(Vec::clear);
    }
}

// === impl Entry ===

impl Entry {
    fn matches(&self, method: &str, path: &str) -> bool {
        matches(method, &self.request.method) && matches(path, &self.request.path)
    }
}

fn bounds(times: &impl RangeBounds<usize>) -> (usize, usize) {
    let from = match times.start_bound() {
        Bound::Included(&from) => from,
        Bound::Excluded(&from) => from + 1,
        Bound::Unbounded => 0,
    };
    let to = match times.end_bound() {
        Bound::Included(&to) => to + 1,
        Bound::Excluded(&to) => to,
        Bound::Unbounded => usize::MAX,
    };
    (from, to)
}

// === impl Shared ===

impl Shared {
    fn intakes(&self, request: &Request) -> Vec<Intake> {
        let mut rules = self.intakes.lock();
        let matching = rules
            .iter_mut()
            .filter(|rule| matches(&rule.method, &request.method) && matches(&rule.path, &request.path));
        matching
            .filter_map(|rule| {
                rule.seen += 1;
                (rule.from..rule.to).contains(&(rule.seen - 1)).then(|| rule.intake.clone())
            })
            .collect()
    }

    /// Whether the body of such a request is only hashed.
    fn swallows(&self, request: &Request) -> bool {
        self.registry.lock().swallow && request.path.contains("/blobs/uploads/")
    }

    /// A request of which only a part came. It is logged with status 0.
    fn broken(&self, request: Request) {
        self.registry.lock().broken(&request);
        let at = tokio::time::Instant::now();
        self.log.send_modify(|log| log.push(Entry { request, at, status: 0, sent: Arc::default() }));
    }

    fn reply(&self, request: &Request) -> Reply {
        let honest = self.registry.lock().answer(request);
        let act = self.script.lock().iter_mut().find_map(|rule| {
            if !matches(&rule.method, &request.method) || !matches(&rule.path, &request.path) {
                return None;
            }
            rule.seen += 1;
            (rule.from..rule.to).contains(&(rule.seen - 1)).then(|| Arc::clone(&rule.act))
        });
        act.map_or_else(|| honest.clone(), |act| act(request, honest.clone()))
    }
}

/// Whether `text` fits `pattern`, where `*` stands for any text.
fn matches(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((start, rest)) => text
            .strip_prefix(start)
            .is_some_and(|tail| (0..=tail.len()).any(|at| tail.is_char_boundary(at) && matches(rest, &tail[at..]))),
    }
}
