//! From the client's body into the file and towards upstream, piece by piece, without losing one when upstream breaks.

use bytes::Bytes;
use http_body_util::BodyExt as _;
use tokio::time::timeout;

use super::feed::{Inlet, Piece};
use super::kept::Kept;
use super::{CLIENT_IDLE, ClientBody, ClientFault};

/// The body of a client's request, on its way.
///
/// Everything here survives that the future which works on it is dropped: that happens when upstream answers early.
pub(super) struct Pump {
    body: ClientBody,
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
    ended: bool,
}

// === impl Pump ===

impl Pump {
    pub(super) fn new(body: ClientBody, length: Option<u64>, holds_back: bool) -> Self {
        Self { body, length, taken: None, ready: None, holds_back, held: None, accepted: 0, ended: false }
    }

    /// Bytes of the client's body that are in the file.
    pub(super) const fn accepted(&self) -> u64 {
        self.accepted
    }

    /// Whether the client has sent all.
    pub(super) const fn has_ended(&self) -> bool {
        self.ended
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
            if self.ended {
                return Ok(());
            }
            self.take().await?;
        }
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
        let frame = timeout(CLIENT_IDLE, self.body.frame()).await.map_err(|_| ClientFault::Idle)?;
        match frame {
            // Trailers have no meaning here.
            Some(frame) => {
                let data = frame.map_err(ClientFault::Broken)?.into_data().unwrap_or_default();
                let total = self.accepted + data.len() as u64;
                if self.length.is_some_and(|length| total > length) {
                    return Err(ClientFault::Length);
                }
                self.taken = Some(data).filter(|data| !data.is_empty());
            }
            None if self.length.is_some_and(|length| length != self.accepted) => return Err(ClientFault::Length),
            None => self.ended = true,
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use futures_util::stream;
    use http_body::Frame;
    use http_body_util::StreamBody;
    use tokio::sync::mpsc;

    use super::*;
    use crate::oci::{Algorithm, Digest, Hasher};

    fn body(pieces: &[&'static str]) -> ClientBody {
        let pieces: Vec<_> = pieces.iter().map(|piece| Ok(Frame::data(Bytes::from_static(piece.as_bytes())))).collect();
        StreamBody::new(stream::iter(pieces)).boxed_unsync()
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
        let (mut pump, mut kept) = (Pump::new(body(&["a", "b", "", "c"]), Some(3), true), kept());
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
            let (mut pump, mut kept) = (Pump::new(body(&["a", "b", "c", "d", "e"]), None, true), kept());
            let (inlet, mut outlet) = mpsc::channel(room);
            // Upstream answers early: the work is dropped where it stands.
            let run = timeout(std::time::Duration::ZERO, pump.run(&mut kept, Some(&inlet))).await;
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
            let mut pump = Pump::new(body(pieces), Some(length), false);
            assert!(matches!(pump.run(&mut kept(), None).await, Err(ClientFault::Length)));
        }
        let silent = StreamBody::new(stream::pending::<Result<Frame<Bytes>, super::super::BoxError>>()).boxed_unsync();
        let mut pump = Pump::new(silent, None, false);
        assert!(matches!(pump.run(&mut kept(), None).await, Err(ClientFault::Idle)));
    }
}
