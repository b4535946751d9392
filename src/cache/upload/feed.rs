//! What an upload's request carries upstream: first what is replayed from the file, then what comes from the client.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::Frame;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::super::body;
use super::BoxError;
use crate::store::SpoolReader;

/// Bytes of the file that are read at once.
const STEP: u64 = 256 * 1024;
/// Pieces that may wait for upstream: with what the connections hold, all of an upload that is in memory.
const WAITING: usize = 4;

/// The end at which pieces are put in.
pub(super) type Inlet = mpsc::Sender<Piece>;

/// What comes from the client.
#[derive(Debug)]
pub(super) enum Piece {
    Data(Bytes),
    /// Nothing more comes. An inlet that is gone without it means that the upload is given up.
    End,
}

/// The body of a request of an upload. It ends cleanly only after [`Piece::End`], so that upstream never takes a part
/// for the whole.
pub(super) struct Feed {
    replay: Option<Replay>,
    live: mpsc::Receiver<Piece>,
    ended: bool,
}

/// A part of the file that is still to be sent.
struct Replay {
    reader: SpoolReader,
    at: u64,
    end: u64,
    reading: Option<JoinHandle<io::Result<Bytes>>>,
}

/// The upload was given up.
#[derive(Debug, thiserror::Error)]
#[error("the upload was given up before its end")]
pub(super) struct GivenUp;

// === impl Feed ===

impl Feed {
    /// A body of `replay` (what is kept, and how much of it), then of what is put into the inlet.
    pub(super) fn new(replay: Option<(SpoolReader, u64)>) -> (Inlet, Self) {
        let (inlet, live) = mpsc::channel(WAITING);
        let replay = replay.map(|(reader, end)| Replay { reader, at: 0, end, reading: None });
        (inlet, Self { replay, live, ended: false })
    }
}

impl http_body::Body for Feed {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        if let Some(replay) = &mut self.replay {
            let read = ready!(replay.poll_read(cx));
            match read {
                Ok(Some(bytes)) => return Poll::Ready(Some(Ok(Frame::data(bytes)))),
                Ok(None) => self.replay = None,
                Err(error) => return Poll::Ready(Some(Err(error.into()))),
            }
        }
        Poll::Ready(match ready!(self.live.poll_recv(cx)) {
            Some(Piece::Data(bytes)) => Some(Ok(Frame::data(bytes))),
            Some(Piece::End) => {
                self.ended = true;
                None
            }
            None => Some(Err(GivenUp.into())),
        })
    }

    fn is_end_stream(&self) -> bool {
        self.ended
    }
}

// === impl Replay ===

impl Replay {
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<Bytes>>> {
        loop {
            if let Some(reading) = &mut self.reading {
                let read = ready!(Pin::new(reading).poll(cx));
                self.reading = None;
                let bytes = read.unwrap_or_else(|_| Err(io::Error::other("reading was given up")))?;
                if bytes.is_empty() {
                    return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
                }
                self.at += bytes.len() as u64;
                return Poll::Ready(Ok(Some(bytes)));
            }
            if self.at >= self.end {
                return Poll::Ready(Ok(None));
            }
            let (reader, at) = (self.reader.clone(), self.at);
            let length = usize::try_from(STEP.min(self.end - at)).unwrap_or(0);
            let read = body::reader(length);
            self.reading = Some(tokio::task::spawn_blocking(move || reader.read(|file| read(file, at))));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt as _;
    use std::io::Write as _;

    async fn pieces(mut feed: Feed) -> Result<Vec<u8>, String> {
        let mut all = Vec::new();
        while let Some(frame) = feed.frame().await {
            all.extend_from_slice(&frame.map_err(|error| error.to_string())?.into_data().unwrap());
        }
        Ok(all)
    }

    fn file(bytes: &[u8]) -> SpoolReader {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file.into()
    }

    #[tokio::test]
    async fn the_file_comes_first_and_only_as_far_as_was_said() {
        let content: Vec<u8> = (0..600_000_u32).map(|n| n.to_le_bytes()[0]).collect();
        let (inlet, feed) = Feed::new(Some((file(&content), 500_000)));
        inlet.send(Piece::Data(Bytes::from_static(b"live"))).await.unwrap();
        inlet.send(Piece::End).await.unwrap();
        let all = pieces(feed).await.unwrap();
        assert_eq!(all.len(), 500_004);
        assert!(all.starts_with(&content[..500_000]) && all.ends_with(b"live"));
    }

    #[tokio::test]
    async fn what_is_given_up_or_cut_short_never_ends_cleanly() {
        let (inlet, feed) = Feed::new(None);
        inlet.send(Piece::Data(Bytes::from_static(b"part"))).await.unwrap();
        drop(inlet);
        assert_eq!(pieces(feed).await.unwrap_err(), GivenUp.to_string());
        let (inlet, feed) = Feed::new(Some((file(b"short"), 10)));
        inlet.send(Piece::End).await.unwrap();
        assert!(pieces(feed).await.is_err(), "the file is shorter than it should be");
    }
}
