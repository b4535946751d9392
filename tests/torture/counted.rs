//! What the clients, the daemon and upstream have counted, and whether it agrees.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::Ordering;

use tokio::time::Instant;

use crate::checks::{POLL, QUIET};
use crate::common::Daemon;
use crate::common::upstream::{Request, Upstream};
use crate::site::Site;
use crate::slow::truth;

/// What may have been on its way of an answer that was cut short for who reads far ahead.
const ON_ITS_WAY: u64 = 512 << 10;

/// What the clients, the daemon and upstream have counted.
#[derive(Debug, PartialEq, Eq, Clone)]
pub struct Counted {
    /// Requests for content, by the clients, and by the daemon.
    answers: u64,
    served: u64,
    /// Requests to upstream, by upstream, and by the daemon.
    received: u64,
    asked: u64,
    /// The parts of each blob that were asked for by GET, in their order: a download may be several, which never overlap.
    fetched: BTreeMap<String, Vec<Range<u64>>>,
    /// Bytes of bodies that the daemon has received.
    bytes: u64,
    /// Bytes of those that were no blobs, as upstream has sent them.
    others: u64,
    pub gone: u64,
    pub bypassed: u64,
}

/// The part of a blob that a request wants.
pub fn part(request: &Request) -> Range<u64> {
    let range = request.header("range").and_then(|range| range.strip_prefix("bytes=")?.split_once('-'));
    match range {
        Some((from, last)) => from.parse().unwrap_or(0)..last.parse().map_or(u64::MAX, |last: u64| last + 1),
        None => 0..u64::MAX,
    }
}

/// Whether some byte was asked for twice, of parts in the order of their requests. One that begins within an earlier one has
/// cut that short, for who reads far ahead.
fn overlap(parts: &[Range<u64>]) -> bool {
    let again = |later: &Range<u64>, earlier: &Range<u64>| later.start <= earlier.start && earlier.start < later.end;
    parts.iter().enumerate().any(|(index, later)| parts.iter().take(index).any(|earlier| again(later, earlier)))
}

impl Counted {
    pub async fn now(site: &Site, daemon: &Daemon) -> Self {
        let log = site.world.upstream.log();
        let mut fetched: BTreeMap<String, Vec<Range<u64>>> = BTreeMap::new();
        for entry in log.iter().filter(|entry| entry.request.method == "GET" && entry.request.path.contains("/blobs/"))
        {
            fetched.entry(entry.request.path.clone()).or_default().push(part(&entry.request));
        }
        let others =
            log.iter().filter(|entry| !(entry.request.method == "GET" && entry.request.path.contains("/blobs/")));
        let others = others.map(|entry| entry.sent.load(Ordering::Relaxed)).sum();
        let served = |kind| daemon.metric("ocistern_requests_total", kind);
        Self {
            answers: site.world.answers(),
            served: served(&["kind=\"blob\""]).await + served(&["kind=\"manifest\""]).await,
            received: log.len() as u64,
            asked: daemon.metric("ocistern_upstream_requests_total", &[]).await,
            fetched,
            bytes: daemon.metric("ocistern_upstream_received_bytes_total", &[]).await,
            others,
            gone: daemon.metric("ocistern_evicted_bytes_total", &[]).await
                + daemon.metric("ocistern_corrupt_blobs_total", &[]).await,
            bypassed: served(&["result=\"bypass\""]).await,
        }
    }

    /// When nothing is being counted any more of what was before.
    pub async fn at_rest(site: &Site, daemon: &Daemon) -> Self {
        let began = Instant::now();
        loop {
            let before = Self::now(site, daemon).await;
            tokio::time::sleep(POLL).await;
            let filling = daemon.metric("ocistern_fills_in_progress", &[]).await;
            if began.elapsed() > QUIET || filling == 0 && Self::now(site, daemon).await == before {
                return before;
            }
        }
    }

    pub fn agrees_since(&self, before: &Self) -> bool {
        self.answers - before.answers == self.served - before.served
            && self.received - before.received == self.asked - before.asked
    }

    /// Which blobs were asked of upstream more than once, and whether more bytes of them came than were asked for.
    pub fn twice_since(&self, before: &Self, upstream: &Upstream) -> Vec<String> {
        let (mut wrong, mut most) = (Vec::new(), self.others - before.others);
        for (blob, parts) in &self.fetched {
            let parts = parts.get(before.fetched.get(blob).map_or(0, Vec::len)..).unwrap_or_default();
            if overlap(parts) {
                wrong.push(format!("asked of upstream more than once: {blob} {parts:?}"));
            }
            let digest = blob.rsplit('/').next().and_then(|digest| digest.parse().ok());
            let length = digest.and_then(|digest| truth(upstream, &digest)).map_or(0, |blob| blob.len() as u64);
            most += union(parts, length) + ON_ITS_WAY * parts.len().saturating_sub(1) as u64;
        }
        let came = self.bytes - before.bytes;
        if came > most {
            wrong.push(format!("{came} bytes came from upstream, {most} at most were to be asked for: {self:?}"));
        }
        wrong
    }
}

/// How many bytes of a blob are in some of the parts.
fn union(parts: &[Range<u64>], length: u64) -> u64 {
    let mut parts: Vec<Range<u64>> = parts.iter().map(|part| part.start..part.end.min(length)).collect();
    parts.sort_by_key(|part| part.start);
    let (mut sum, mut end) = (0, 0);
    for part in parts {
        sum += part.end.saturating_sub(part.start.max(end));
        end = end.max(part.end);
    }
    sum
}
