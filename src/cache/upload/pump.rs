//! From the client's body into the file and towards upstream, piece by piece, without losing one when upstream breaks.

use bytes::Bytes;
use futures_util::FutureExt as _;
use http_body_util::BodyExt as _;

use super::feed::{Inlet, Piece};
use super::kept::Kept;
use super::{ClientBody, ClientFault, Pace};

/// The body of a client's request, on its way.
///
/// Everything here survives that the future which works on it is dropped: that happens when upstream answers early.
pub(super) struct Pump {
    body: ClientBody,
    pace: Pace,
    /// Bytes that the client announced.
    length: Option<u64>,
    /// Taken from the client and not in the file yet.
    taken: Option<Bytes>,
    /// In the file and not on its way upstream yet.
    ready: Option<Bytes>,
    /// The last piece is not sent before it is known that all is what it should be.
    holds_back: bool,
    held: Option<Bytes>,
    /// Bytes of this body in the file (or, without one, accepted).
    accepted: u64,
    /// The body has said that nothing more comes.
    ended: bool,
}

// === impl Pump ===

impl Pump {
    pub(super) const fn new(body: ClientBody, pace: Pace, length: Option<u64>, holds_back: bool) -> Self {
        Self { body, pace, length, taken: None, ready: None, holds_back, held: None, accepted: 0, ended: false }
    }

    /// Bytes of the client's body that are in the file.
    pub(super) const fn accepted(&self) -> u64 {
        self.accepted
    }

    /// Whether the client has sent all: what it announced, which may be there long before the end of the body is (the
    /// last chunk, an empty frame with `END_STREAM`), or until that end.
    pub(super) fn has_ended(&self) -> bool {
        self.length.map_or(self.ended, |length| length == self.accepted)
    }

    /// Bytes at the end of the file that must not be sent yet.
    pub(super) fn held(&self) -> u64 {
        self.held.as_ref().map_or(0, |held| held.len() as u64)
    }

    /// Whether it is still to be found out that all is right.
    pub(super) const fn holds_back(&self) -> bool {
        self.holds_back
    }

    /// All is right: what was held back may go.
    pub(super) fn release(&mut self) {
        self.holds_back = false;
    }

    /// Everything in the file but what is held back is sent from there: it must not be sent once more.
    pub(super) fn restart(&mut self) {
        self.ready = None;
    }

    /// Takes what the client sends until its end, and hands it on. Returns early, with everything as it was, when the
    /// inlet is closed; without one, nothing is handed on.
    pub(super) async fn run(&mut self, kept: &mut Kept, inlet: Option<&Inlet>) -> Result<(), ClientFault> {
        loop {
            match inlet {
                Some(inlet) => {
                    if !self.hand_on(inlet).await {
                        return Ok(());
                    }
                }
                None => self.ready = None,
            }
            if let Some(chunk) = &self.taken {
                kept.add(chunk).await;
                self.accepted += chunk.len() as u64;
                let chunk = self.taken.take();
                self.ready = if self.holds_back { std::mem::replace(&mut self.held, chunk) } else { chunk };
                continue;
            }
            if self.has_ended() {
                // What is there already and was not announced is found before anything is made of the rest.
                return self.surplus().now_or_never().unwrap_or(Ok(()));
            }
            self.take().await?;
        }
    }

    /// Waits for the end of a body of which all is there that it announced. More than that is an error.
    pub(super) async fn surplus(&mut self) -> Result<(), ClientFault> {
        while !self.ended {
            match self.body.frame().await {
                Some(Ok(frame)) if frame.data_ref().is_some_and(|data| !data.is_empty()) => {
                    return Err(ClientFault::Length);
                }
                Some(Ok(_)) => {}
                // All is there: that the client has left since then makes no difference.
                Some(Err(_)) | None => self.ended = true,
            }
        }
        Ok(())
    }

    /// Hands on what was held back, and the end, if anybody still takes it.
    pub(super) async fn finish(&mut self, inlet: &Inlet) {
        if self.hand_on(inlet).await {
            self.ready = self.held.take();
            // A body that knows its length is not asked for its end.
            let _ = self.hand_on(inlet).await && inlet.send(Piece::End).await.is_ok();
        }
    }

    /// False if the inlet is closed.
    async fn hand_on(&mut self, inlet: &Inlet) -> bool {
        if self.ready.is_none() {
            return !inlet.is_closed();
        }
        let Ok(permit) = inlet.reserve().await else { return false };
        if let Some(chunk) = self.ready.take() {
            permit.send(Piece::Data(chunk));
        }
        true
    }

    async fn take(&mut self) -> Result<(), ClientFault> {
        match self.pace.next(&mut self.body).await? {
            Some(data) => {
                let total = self.accepted + data.len() as u64;
                if self.length.is_some_and(|length| total > length) {
                    return Err(ClientFault::Length);
                }
                self.taken = Some(data).filter(|data| !data.is_empty());
            }
            None if self.length.is_some() => return Err(ClientFault::Length),
            None => self.ended = true,
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures_util::{StreamExt as _, stream};
    use http_body::Frame;
    use http_body_util::StreamBody;
    use tokio::sync::mpsc;
    use tokio::time::{Instant, sleep, timeout};

    use super::super::BoxError;
    use super::*;
    use crate::config::Slowest;
    use crate::oci::{Algorithm, Digest, Hasher};

    fn body(pieces: &[&'static str]) -> ClientBody {
        let pieces: Vec<_> = pieces.iter().map(|piece| Ok(Frame::data(Bytes::from_static(piece.as_bytes())))).collect();
        StreamBody::new(stream::iter(pieces)).boxed_unsync()
    }

    fn pump(body: ClientBody, length: Option<u64>, holds_back: bool) -> Pump {
        let slowest = Slowest { bytes: 60 * 1024, window: Duration::from_mins(1) };
        Pump::new(body, Pace::new(slowest), length, holds_back)
    }

    /// Pieces of so many bytes, each after a pause, as many as there are.
    fn slowly(pieces: Vec<(usize, u64)>) -> ClientBody {
        let pieces = stream::iter(pieces).then(|(bytes, pause)| async move {
            sleep(Duration::from_secs(pause)).await;
            Ok::<_, BoxError>(Frame::data(Bytes::from(vec![7; bytes])))
        });
        StreamBody::new(pieces).boxed_unsync()
    }

    fn kept() -> Kept {
        Kept::Hashed(vec![Hasher::new(Algorithm::Sha256)])
    }

    /// What waits in the inlet.
    fn came(outlet: &mut mpsc::Receiver<Piece>) -> String {
        let mut text = String::new();
        while let Ok(piece) = outlet.try_recv() {
            match piece {
                Piece::Data(bytes) => text += std::str::from_utf8(&bytes).unwrap(),
                Piece::End => text += "$",
            }
        }
        text
    }

    #[tokio::test]
    async fn the_last_piece_waits_for_the_verdict() {
        let (inlet, mut outlet) = mpsc::channel(10);
        let (mut pump, mut kept) = (pump(body(&["a", "b", "", "c"]), Some(3), true), kept());
        pump.run(&mut kept, Some(&inlet)).await.unwrap();
        assert_eq!((came(&mut outlet).as_str(), pump.accepted(), pump.held()), ("ab", 3, 1));
        assert!(pump.has_ended());
        assert_eq!(kept.digest(Algorithm::Sha256).await, Some(Digest::of(Algorithm::Sha256, b"abc")));
        pump.release();
        pump.finish(&inlet).await;
        assert_eq!((came(&mut outlet).as_str(), pump.held()), ("c$", 0));
    }

    #[tokio::test]
    async fn nothing_is_lost_when_upstream_takes_no_more() {
        for room in 1..6 {
            let (mut pump, mut kept) = (pump(body(&["a", "b", "c", "d", "e"]), None, true), kept());
            let (inlet, mut outlet) = mpsc::channel(room);
            // Upstream answers early: the work is dropped where it stands.
            let run = timeout(Duration::ZERO, pump.run(&mut kept, Some(&inlet))).await;
            assert_eq!(run.is_err(), room < 4, "four pieces go, the fifth is held back");
            assert_eq!(came(&mut outlet).len(), room.min(4));
            drop((inlet, outlet));
            // The file so far is sent anew, without what is held back.
            pump.restart();
            let replayed = usize::try_from(pump.accepted() - pump.held()).unwrap();
            let (inlet, mut outlet) = mpsc::channel(10);
            pump.run(&mut kept, Some(&inlet)).await.unwrap();
            pump.release();
            pump.finish(&inlet).await;
            assert_eq!("abcde".get(..replayed).unwrap().to_owned() + &came(&mut outlet), "abcde$", "room for {room}");
            assert_eq!(
                kept.digest(Algorithm::Sha256).await,
                Some(Digest::of(Algorithm::Sha256, b"abcde")),
                "each once"
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn bodies_that_are_not_what_they_say() {
        for (pieces, length) in [(&["abc"][..], 2), (&["a", "b"][..], 3)] {
            let mut pump = pump(body(pieces), Some(length), false);
            assert!(matches!(pump.run(&mut kept(), None).await, Err(ClientFault::Length)));
        }
        let silent = StreamBody::new(stream::pending::<Result<Frame<Bytes>, BoxError>>()).boxed_unsync();
        let mut pump = pump(silent, None, false);
        assert!(matches!(pump.run(&mut kept(), None).await, Err(ClientFault::Idle)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_is_whole_when_what_it_announced_is_there() {
        let pieces = || stream::iter(["ab", "c"].map(|piece| Ok(Frame::data(Bytes::from_static(piece.as_bytes())))));
        let open = StreamBody::new(pieces().chain(stream::pending::<Result<_, BoxError>>())).boxed_unsync();
        for holds_back in [false, true] {
            let (inlet, mut outlet) = mpsc::channel(10);
            let late = StreamBody::new(pieces().chain(stream::once(async {
                sleep(Duration::from_secs(5)).await;
                Ok::<_, BoxError>(Frame::data(Bytes::from_static(b"d")))
            })));
            let (mut pump, mut kept) = (pump(late.boxed_unsync(), Some(3), holds_back), kept());
            timeout(Duration::ZERO, pump.run(&mut kept, Some(&inlet))).await.unwrap().unwrap();
            assert!(pump.has_ended());
            assert_eq!(came(&mut outlet), if holds_back { "ab" } else { "abc" });
            assert!(
                matches!(pump.surplus().await, Err(ClientFault::Length)),
                "what comes late was not announced either"
            );
        }
        // What is there already is seen before anything goes.
        let mut more = pump(body(&["abc", "", "d"]), Some(3), true);
        assert!(matches!(more.run(&mut kept(), None).await, Err(ClientFault::Length)));
        let mut none = pump(open, Some(0), false);
        assert!(matches!(none.run(&mut kept(), None).await, Err(ClientFault::Length)), "there is something");
        let mut none =
            pump(StreamBody::new(stream::pending::<Result<Frame<Bytes>, BoxError>>()).boxed_unsync(), Some(0), false);
        timeout(Duration::ZERO, none.run(&mut kept(), None)).await.unwrap().unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_must_send_at_the_minimum_rate() {
        // A byte, and a pause that is not long enough to be a silence.
        let begun = Instant::now();
        let mut drops = pump(slowly(vec![(1, 59); 1000]), None, false);
        assert!(matches!(drops.run(&mut kept(), None).await, Err(ClientFault::Slow)));
        assert_eq!(begun.elapsed(), Duration::from_mins(1));
        // A burst pays for its own window, and not for the next.
        let begun = Instant::now();
        let mut burst = pump(slowly([vec![(1 << 20, 1)], vec![(1, 50); 1000]].concat()), None, false);
        assert!(matches!(burst.run(&mut kept(), None).await, Err(ClientFault::Slow)));
        assert_eq!(begun.elapsed(), Duration::from_mins(2));
        // At the rate exactly, for hours.
        let mut steady = pump(slowly(vec![(30 * 1024, 30); 500]), None, false);
        steady.run(&mut kept(), None).await.unwrap();
        // The end of a body that has announced its length is no matter of rate.
        let mut short = pump(slowly(vec![(10, 1)]), Some(10), false);
        short.run(&mut kept(), None).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn time_in_which_upstream_is_the_slower_side_does_not_count() {
        let (inlet, mut outlet) = mpsc::channel(1);
        let (mut pump, mut kept) = (pump(slowly(vec![(1, 1); 50]), None, false), kept());
        let (run, taken) = tokio::join!(
            async {
                let run = pump.run(&mut kept, Some(&inlet)).await;
                drop(inlet);
                run
            },
            async {
                let mut taken = 0;
                while outlet.recv().await.is_some() {
                    taken += 1;
                    sleep(Duration::from_mins(5)).await;
                }
                taken
            }
        );
        run.unwrap();
        assert_eq!(taken, 50, "hours, of which the client has taken less than a window");
    }
}
