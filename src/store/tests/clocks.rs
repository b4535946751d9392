//! A clock that jumps, also between two runs: what was asked first counts as first, nothing is fresh for too long, and
//! nothing stays suspect or expired for ever.

use super::images::content;
use super::truth::Kept;
use super::*;
use crate::clock::twin::Twin;

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_mins(1);
const HOUR: Duration = Duration::from_hours(1);
const DAY: Duration = Duration::from_hours(24);
const YEAR: Duration = Duration::from_hours(24 * 365);

fn up() -> UpstreamName {
    "docker.io".parse().unwrap()
}

fn repo() -> RepoName {
    "app".parse().unwrap()
}

fn tag() -> Tag {
    "t".parse().unwrap()
}

/// Seconds since 1970.
fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

/// Sets a clock.
type Jump = Box<dyn Fn(&Twin)>;

/// An hour and a day to both sides, the beginning of time, and the end of 32 bits of seconds and beyond.
fn jumps() -> Vec<Jump> {
    let mut jumps: Vec<Jump> = Vec::new();
    for by in [SECOND, HOUR, DAY] {
        jumps.push(Box::new(move |clock| clock.forward(by)));
        jumps.push(Box::new(move |clock| clock.back(by)));
    }
    for to in [0, u64::from(u32::MAX) - 10, u64::from(u32::MAX) + 1_000_000] {
        jumps.push(Box::new(move |clock| clock.set(at(to))));
    }
    jumps
}

/// A store by a clock that can be set, with an index that outlives it.
struct Site {
    root: tempfile::TempDir,
    clock: Arc<Twin>,
    store: Store,
}

impl Site {
    fn new() -> Self {
        let (root, clock) = (tempfile::tempdir().unwrap(), Twin::new());
        let store = Self::open(root.path(), &clock, "https://registry-1.docker.io");
        Self { root, clock, store }
    }

    fn open(root: &Path, clock: &Arc<Twin>, url: &str) -> Store {
        let mut options = StoreOptions { clock: clock.clone(), ..options(root, 1 << 30) };
        options.origins[0].1 = url.to_owned();
        Store::open(options, Metrics::new().unwrap()).unwrap()
    }

    /// Stops in good order, lets the clock jump, and starts with the upstream at that URL.
    async fn restart_at(self, jump: impl FnOnce(&Twin), url: &str) -> Self {
        let Self { root, clock, store } = self;
        store.close().await;
        drop(store);
        jump(&clock);
        let store = Self::open(root.path(), &clock, url);
        Self { root, clock, store }
    }

    async fn restart(self, jump: impl FnOnce(&Twin)) -> Self {
        self.restart_at(jump, "https://registry-1.docker.io").await
    }

    fn asking(&self) -> SystemTime {
        self.store.timeline().moment()
    }

    /// Keeps that the tag means the manifest `n`, as upstream said when it was asked then.
    async fn keep(&self, n: u8, asked_at: SystemTime) -> bool {
        let record = TagRecord { digest: sha256(&[n]), media_type: "m".into(), size: 1, etag: None };
        self.store.set_tag(&up(), &repo(), &tag(), &record, asked_at).await.unwrap()
    }

    async fn known(&self) -> Option<Digest> {
        self.store.tag(&up(), &repo(), &tag()).await.unwrap().map(|record| record.digest)
    }

    async fn keep_link(&self, asked_at: SystemTime) -> bool {
        let link = Link::blob(Via::Anonymous, 1);
        self.store.set_link(&up(), &repo(), &sha256(b"1"), &link, asked_at).await.unwrap()
    }

    async fn keep_list(&self, asked_at: SystemTime) -> bool {
        let list = StoredList {
            body: Bytes::from_static(b"{}"),
            content_type: "j".into(),
            link: None,
            filters_applied: None,
            via: Via::Anonymous,
        };
        self.store.set_list(&up(), &repo(), &ListKind::Tags, "", &list, asked_at).await.unwrap()
    }

    /// How old what is known of the tag is; none: it must be asked about.
    async fn age(&self) -> Option<Duration> {
        let checked_at = self.store.checked_at(&up(), &repo(), &tag()).await?;
        self.store.timeline().now().duration_since(checked_at).ok()
    }

    async fn is_suspect(&self) -> bool {
        self.store.suspected_since(&up(), &repo(), &tag()).await.unwrap().is_some()
    }

    async fn write(&self) -> Suspicion {
        self.store.suspect_tags(&up(), &repo(), &[tag()]).await.unwrap()
    }

    async fn delete(&self) -> Suspicion {
        self.store.suspect_repository(&up(), &repo()).await.unwrap()
    }

    /// One question is enough to know the tag again, and the next look finds it so.
    async fn assert_one_question_is_enough(&self, what: &str) {
        self.is_suspect().await;
        let asked_at = self.asking();
        assert!(self.keep(1, asked_at).await, "{what}: the answer is kept");
        assert!(!self.is_suspect().await, "{what}: it is not suspect any more");
        assert!(self.age().await.is_some_and(|age| age < MINUTE), "{what}: and fresh");
    }
}

#[tokio::test]
async fn no_answer_from_before_a_write_passes_for_a_newer_one() {
    for (number, jump) in jumps().iter().enumerate() {
        let site = Site::new();
        assert!(site.keep(1, site.asking()).await);
        let before = site.asking();
        jump(&site.clock);
        site.write().await.end();
        assert!(!site.keep(2, before).await, "{number}: asked before the push");
        let during = site.delete().await;
        let meanwhile = site.asking();
        jump(&site.clock);
        during.end();
        for asked_at in [before, meanwhile] {
            assert!(!site.keep(2, asked_at).await, "{number}: asked before the delete ended");
            assert!(!site.keep_link(asked_at).await && !site.keep_list(asked_at).await, "{number}");
        }
        assert_eq!(site.known().await, Some(sha256(&[1])), "{number}");
        site.assert_one_question_is_enough(&format!("jump {number}")).await;
        let now = site.asking();
        assert!(site.keep_link(now).await && site.keep_list(now).await, "{number}: nothing is refused for ever");
    }
}

#[tokio::test]
async fn what_the_writer_knows_by_the_write_is_kept() {
    for (number, jump) in jumps().iter().enumerate() {
        let site = Site::new();
        assert!(site.keep(1, site.asking()).await);
        let write = site.write().await;
        jump(&site.clock);
        let known = write.end().unwrap();
        assert!(site.keep(2, known).await && !site.is_suspect().await, "{number}");
        jump(&site.clock);
        assert!(site.keep(3, site.asking()).await, "{number}: a later answer counts more");
        assert!(!site.keep(2, known).await, "{number}");
    }
}

#[tokio::test]
async fn answers_do_not_overtake_each_other() {
    for (number, jump) in jumps().iter().enumerate() {
        let site = Site::new();
        let first = site.asking();
        jump(&site.clock);
        let second = site.asking();
        assert!(site.keep(2, second).await);
        assert!(!site.keep(1, first).await, "{number}: asked first, answered last");
        assert_eq!(site.known().await, Some(sha256(&[2])), "{number}");
    }
}

#[tokio::test]
async fn after_a_jump_a_tag_is_asked_about_once() {
    for (number, jump) in jumps().iter().enumerate() {
        let mut site = Site::new();
        assert!(site.keep(1, site.asking()).await);
        jump(&site.clock);
        site.assert_one_question_is_enough(&format!("jump {number}")).await;
        site.store.close().await;
        site = site.restart(jump).await;
        site.assert_one_question_is_enough(&format!("jump {number}, at a start")).await;
        drop(site.write().await);
        site = site.restart(jump).await;
        assert!(site.is_suspect().await, "{number}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_is_set_back_makes_nothing_young() {
    let site = Site::new();
    assert!(site.keep(1, site.asking()).await);
    tokio::time::advance(MINUTE).await;
    site.clock.back(HOUR);
    assert_eq!(site.age().await, None, "it seems to have been asked in the future");
    tokio::time::advance(HOUR).await;
    assert_eq!(site.age().await, None, "an hour later it is no younger");
    site.assert_one_question_is_enough("then").await;
    tokio::time::advance(MINUTE).await;
    assert!(site.age().await.is_some_and(|age| (MINUTE..2 * MINUTE).contains(&age)));
}

#[tokio::test]
async fn what_was_known_before_a_delete_never_comes_back() {
    for restarts in [false, true] {
        let mut site = Site::new();
        site.clock.forward(YEAR);
        assert!(site.keep(1, site.asking()).await);
        if restarts {
            site = site.restart(|clock| clock.back(YEAR)).await;
        } else {
            site.clock.back(YEAR);
        }
        site.delete().await.end();
        assert!(site.is_suspect().await);
        site.clock.forward(2 * YEAR);
        assert!(site.is_suspect().await, "it was asked before the delete, whatever the clock said then");
        site = site.restart(|clock| clock.forward(YEAR)).await;
        assert!(site.is_suspect().await, "and after a start");
        site.assert_one_question_is_enough("then").await;
        site = site.restart(|clock| clock.back(DAY)).await;
        assert!(!site.is_suspect().await, "what was asked after the delete stays known");
    }
}

#[tokio::test]
async fn what_another_url_said_never_counts_for_this_one() {
    let mut site = Site::new();
    site.clock.forward(YEAR);
    assert!(site.keep(1, site.asking()).await);
    site = site.restart_at(|clock| clock.back(YEAR), "https://other.example").await;
    site = site.restart(|_| ()).await;
    assert_eq!(site.known().await, Some(sha256(&[1])), "the refs are back");
    site.clock.forward(YEAR + HOUR);
    assert_eq!(site.age().await, None, "but nobody has asked since");
    site.assert_one_question_is_enough("then").await;
}

#[tokio::test]
async fn a_verdict_from_the_future_is_learned_anew() {
    let site = Site::new();
    site.clock.forward(YEAR);
    site.store.set_access(&up(), &repo(), Access::Public).await.unwrap();
    site.clock.back(YEAR);
    let since = async || site.store.access(&up(), &repo()).await.unwrap().unwrap().since;
    assert!(
        since().await > site.store.timeline().now(),
        "as it stands there: who counts its age sees that it has none"
    );
    let before = site.store.timeline().now();
    site.store.set_access(&up(), &repo(), Access::Public).await.unwrap();
    assert!(since().await >= before, "the file says it as of now");
    let learned = since().await;
    site.store.set_access(&up(), &repo(), Access::Public).await.unwrap();
    assert_eq!(since().await, learned, "since when is kept");
}

#[tokio::test(start_paused = true)]
async fn a_jump_makes_nothing_garbage_at_once() {
    let site = Site::new();
    let young = put(&site.store, &content(1, 3000)).await;
    site.clock.forward(DAY);
    let later = put(&site.store, &content(2, 3000)).await;
    let collect = async || site.store.collect(false, None).await.unwrap();
    collect().await;
    let blobs = async || (read(&site.store, &young).await.is_some(), read(&site.store, &later).await.is_some());
    assert_eq!(blobs().await, (true, true), "nothing was here for an hour");
    tokio::time::advance(HOUR + MINUTE).await;
    collect().await;
    assert_eq!(blobs().await, (false, false), "an hour after the jump everything was");
    assert!(site.root.path().exists());
}

#[tokio::test(start_paused = true)]
async fn a_jump_evicts_nothing_by_age_at_once() {
    let (root, clock) = (tempfile::tempdir().unwrap(), Twin::new());
    let keep = Keep { max_age: Some(30 * DAY), ..Keep::default() };
    let options = StoreOptions { keep, clock: clock.clone(), ..options(root.path(), 1 << 30) };
    let metrics = Metrics::new().unwrap();
    let store = Store::open_with(options, metrics.clone(), |_| Box::new(InMemory)).unwrap();
    let fixture = Fixture { root, metrics, store };
    fixture.settle_pins().await;
    let store = &fixture.store;
    let digest = put(store, &content(1, 3000)).await;
    let expire = async || {
        let expire = |inner: &Arc<Inner>| {
            inner.expire();
            Ok(())
        };
        store.blocking(expire).await.unwrap();
    };
    clock.forward(YEAR);
    expire().await;
    assert!(store.peek(&digest).await.unwrap().is_some(), "a clock that jumps makes nothing old");
    clock.back(YEAR);
    tokio::time::advance(2 * HOUR).await;
    expire().await;
    assert!(store.peek(&digest).await.unwrap().is_some(), "and back again");
    clock.forward(YEAR);
    expire().await;
    tokio::time::advance(2 * HOUR).await;
    expire().await;
    assert!(store.peek(&digest).await.unwrap().is_none(), "a clock that goes on to say so is believed");
}

/// A store that removes what nobody has used for a month, with an index that outlives it.
fn monthly(root: &Path, index: &Arc<MemoryIndex>, clock: &Arc<Twin>) -> Store {
    let keep = Keep { max_age: Some(30 * DAY), ..Keep::default() };
    let options = StoreOptions { keep, clock: clock.clone(), ..options(root, 1 << 30) };
    Store::open_with(options, Metrics::new().unwrap(), |_| Box::new(Kept(index.clone()))).unwrap()
}

/// As the store does each minute.
async fn expire(store: &Store) {
    let expire = |inner: &Arc<Inner>| {
        inner.books.look_at_clock();
        inner.expire();
        Ok(())
    };
    store.blocking(expire).await.unwrap();
}

async fn there(store: &Store, digests: &[Digest]) -> Vec<bool> {
    let mut there = Vec::new();
    for digest in digests {
        there.push(store.peek(digest).await.unwrap().is_some());
    }
    there
}

/// A machine without a battery: its clock is set a minute, or hours, after the start.
#[tokio::test(start_paused = true)]
async fn a_start_in_1970_forgets_no_age() {
    for until_set in [MINUTE, 5 * HOUR] {
        started_in_1970(until_set).await;
    }
}

async fn started_in_1970(until_set: Duration) {
    let (root, index, clock) = (tempfile::tempdir().unwrap(), Arc::default(), Twin::new());
    let store = monthly(root.path(), &index, &clock);
    let mut digests = Vec::new();
    for (n, until_next) in [(1, 40 * DAY), (2, 10 * DAY), (3, HOUR)] {
        digests.push(put(&store, &content(n, 3000)).await);
        clock.forward(until_next);
    }
    store.close().await;
    drop(store);
    let right = clock.now();
    clock.set(at(10));
    let store = monthly(root.path(), &index, &clock);
    store.recover_once().await.unwrap();
    digests.push(put(&store, &content(4, 3000)).await);
    let order = |store: &Store| {
        let victims = store.0.books.victims(12_000);
        digests
            .iter()
            .map(|d| victims.iter().position(|short| *short == order::Short::from(d)).unwrap())
            .collect::<Vec<_>>()
    };
    assert_eq!(order(&store), [0, 1, 2, 3], "by use, whatever the clock says");
    for _ in 0..5 {
        tokio::time::advance(until_set / 5).await;
        store.touch(&digests[3]);
        expire(&store).await;
    }
    clock.set(right + until_set);
    expire(&store).await;
    assert_eq!(there(&store, &digests).await, [true; 4], "a leap is not believed at once");
    assert_eq!(order(&store), [0, 1, 2, 3]);
    tokio::time::advance(2 * HOUR).await;
    expire(&store).await;
    assert_eq!(
        there(&store, &digests).await,
        [false, true, true, true],
        "what is older than a month, and nothing else"
    );
}

/// Of a new store nothing has an age from before.
#[tokio::test(start_paused = true)]
async fn what_was_used_in_1970_is_not_old_when_the_clock_is_set() {
    let (root, index, clock) = (tempfile::tempdir().unwrap(), Arc::default(), Twin::new());
    let right = clock.now();
    clock.set(at(10));
    let store = monthly(root.path(), &index, &clock);
    let digests = [put(&store, &content(1, 3000)).await, put(&store, &content(2, 3000)).await];
    tokio::time::advance(MINUTE).await;
    clock.set(right);
    expire(&store).await;
    tokio::time::advance(2 * HOUR).await;
    expire(&store).await;
    assert_eq!(there(&store, &digests).await, [true, true]);
    tokio::time::advance(31 * DAY).await;
    store.touch(&digests[1]);
    expire(&store).await;
    assert_eq!(there(&store, &digests).await, [false, true], "it grows old from then on");
}

/// The clock is nudged back while it is still in 1970.
#[tokio::test(start_paused = true)]
async fn a_clock_that_goes_back_a_little_forgets_no_age_of_an_earlier_run() {
    let (root, index, clock) = (tempfile::tempdir().unwrap(), Arc::default(), Twin::new());
    let store = monthly(root.path(), &index, &clock);
    let old = put(&store, &content(1, 3000)).await;
    clock.forward(DAY);
    let young = put(&store, &content(2, 3000)).await;
    store.close().await;
    drop(store);
    clock.set(at(1000));
    let store = monthly(root.path(), &index, &clock);
    store.load_index().await.unwrap();
    store.touch(&young);
    clock.set(at(990));
    store.touch(&young);
    let used = |digest: &Digest| store.0.books.with_order(|order| order.used(&order::Short::from(digest))).unwrap();
    assert!(used(&young) - used(&old) > 80_000, "{} {}", used(&young), used(&old));
}

/// It was published in the last seconds before a kill, or its age is lost.
#[tokio::test]
async fn a_blob_without_an_age_is_not_the_oldest() {
    let (root, index, clock) = (tempfile::tempdir().unwrap(), Arc::default(), Twin::new());
    let store = monthly(root.path(), &index, &clock);
    let digests = [put(&store, &content(1, 3000)).await, put(&store, &content(2, 3000)).await];
    let path = root.path().join(layout::blob(&digests[0]));
    let then = wall() - 60 * DAY;
    std::fs::File::options().write(true).open(&path).unwrap().set_modified(then).unwrap();
    drop(store);
    let store = monthly(root.path(), &index, &clock);
    let short = order::Short::from(&digests[0]);
    assert_eq!(store.0.hints.used(&short), None);
    store.load_index().await.unwrap();
    expire(&store).await;
    assert_eq!(there(&store, &digests).await, [true, true], "nobody knows yet how old it is");
    store.recover_once().await.unwrap();
    assert_eq!(store.0.hints.used(&short), Some(capacity::seconds(then)), "the next start knows");
    expire(&store).await;
    assert_eq!(there(&store, &digests).await, [false, true], "its file says so");
}
