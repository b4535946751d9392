//! Fairness: who asks for a great deal at once does not hold up those who ask for little.

use std::net::IpAddr;
use std::time::Duration;

use crate::common::content::blob;
use crate::common::invariants::check;
use crate::common::upstream::Entry;
use crate::common::{Ask, Cistern, Gate, Got, Upstream, acts, eventually};
use bytes::Bytes;
use tokio::task::JoinSet;

/// Blobs that one client asks for at once.
const FLOOD: usize = 20;
/// Requests upstream at once.
const PLACES: usize = 2;

/// How a client is told from others: where its connection comes from, and what a proxy there adds.
#[derive(Clone, Copy)]
struct From(&'static str, Option<&'static str>);

/// An ocistern whose upstream answers each GET of a blob when it is told to.
struct Stage {
    upstream: Upstream,
    cistern: Cistern,
    /// Path, content, and what its answer waits for.
    blobs: Vec<(String, Bytes, Gate)>,
    asked: JoinSet<(usize, Got)>,
}

impl Stage {
    async fn new() -> Self {
        let upstream = Upstream::start().await;
        let blobs = (0..=FLOOD).map(|number| {
            let (bytes, gate) = (blob(number as u64, 20_000), Gate::new());
            let path = format!("/v2/app/blobs/{}", upstream.blob("app", &bytes));
            upstream.script("GET", &path, .., acts::hold_head(&gate));
            (path, bytes, gate)
        });
        let blobs = blobs.collect();
        let cistern = Cistern::start(&upstream, &format!("max_connections = {PLACES}")).await;
        Self { upstream, cistern, blobs, asked: JoinSet::new() }
    }

    /// That one asks for this blob.
    fn ask(&mut self, From(source, seen): From, number: usize) {
        let (client, source) = (self.cistern.client(), source.parse::<IpAddr>().unwrap());
        let ask = Ask::get(&self.blobs[number].0);
        let ask = if let Some(seen) = seen { ask.with("x-forwarded-for", seen) } else { ask };
        self.asked.spawn(async move { (number, client.send_from(source, ask).await) });
    }

    /// That one asks for all but the last blob, one after the other, and two of them are being fetched.
    async fn flood(&mut self, from: From) {
        for number in 0..FLOOD {
            self.ask(from, number);
            self.until_fills(number + 1).await;
        }
        self.upstream.until("GET", "/v2/app/blobs/*", PLACES).await;
    }

    async fn until_fills(&self, count: usize) {
        eventually("the fills have begun", || async {
            self.cistern.metric("ocistern_fills_in_progress", &[]).await == count as u64
        })
        .await;
    }

    /// The blobs that upstream was asked for, in the order of that.
    fn fetched(&self) -> Vec<usize> {
        let number = |entry: Entry| self.blobs.iter().position(|(path, ..)| *path == entry.request.path).unwrap();
        self.upstream.requests("GET", "/v2/app/blobs/*").into_iter().map(number).collect()
    }

    /// Lets blobs come one after the other until this one has been asked for; after how many that was.
    async fn until_fetched(&self, number: usize) -> usize {
        for come in 0.. {
            let fetched = self.fetched();
            if fetched.contains(&number) {
                return come;
            }
            self.blobs[fetched[come]].2.open();
            self.upstream.until("GET", "/v2/app/blobs/*", fetched.len() + 1).await;
        }
        unreachable!()
    }

    /// All come, and everybody has what was asked for.
    async fn end(mut self) {
        self.blobs.iter().for_each(|(.., gate)| gate.open());
        while let Some(asked) = self.asked.join_next().await {
            let (number, got) = asked.unwrap();
            got.assert_is(&self.blobs[number].1);
        }
        check(&self.cistern).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asks_for_one_blob_does_not_wait_for_all_that_another_one_has_asked_for() {
    let by_address = (From("127.0.0.2", None), From("127.0.0.3", None));
    let by_proxy = (From("127.0.0.1", Some("10.0.0.9, 192.0.2.1")), From("127.0.0.1", Some("192.0.2.2, 127.0.0.1")));
    for (hog, other) in [by_address, by_proxy] {
        let mut stage = Stage::new().await;
        stage.flood(hog).await;
        stage.ask(other, FLOOD);
        stage.until_fills(FLOOD + 1).await;
        let come = stage.until_fetched(FLOOD).await;
        assert!(come <= 2, "{come} of the other's came before: {:?}", stage.fetched());
        stage.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asks_for_what_another_one_waits_for_does_not_wait_for_all_before_it() {
    let mut stage = Stage::new().await;
    stage.flood(From("127.0.0.2", None)).await;
    stage.ask(From("127.0.0.3", None), FLOOD - 1);
    // Nothing tells that somebody waits for what is being fetched already.
    tokio::time::sleep(Duration::from_millis(300)).await;
    let come = stage.until_fetched(FLOOD - 1).await;
    assert!(come <= 2, "{come} came before: {:?}", stage.fetched());
    assert_eq!(stage.upstream.count("GET", &stage.blobs[FLOOD - 1].0), 1, "one download for both");
    stage.end().await;
}

/// What one client asks for comes in its own order.
#[tokio::test(flavor = "multi_thread")]
async fn who_is_one_client_waits_for_what_it_has_asked_for_before() {
    let mut stage = Stage::new().await;
    let hog = From("127.0.0.2", None);
    stage.flood(hog).await;
    stage.ask(hog, FLOOD);
    stage.until_fills(FLOOD + 1).await;
    assert!(stage.until_fetched(FLOOD).await > FLOOD / 2, "{:?}", stage.fetched());
    stage.end().await;
}
