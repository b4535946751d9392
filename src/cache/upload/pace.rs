//! How slowly a client may send: it must not hold a connection, a file and upstream's connection with a byte a minute.
//!
//! Only time counts in which nothing but the client is waited for. Where upstream or the disk is the slower side nobody
//! asks for the next frame, and what the client has sent meanwhile is there at once.

use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt as _;
use tokio::time::{Instant, timeout_at};

use super::{ClientBody, ClientFault};
use crate::config::Slowest;

/// A client that sends nothing for so long has gone.
const IDLE: Duration = Duration::from_mins(1);

/// Takes the frames of a client's body, and measures how fast they come.
#[derive(Debug)]
pub(in crate::cache) struct Pace {
    slowest: Slowest,
    /// How long the client was waited for, and what has come, in this window.
    waited: Duration,
    came: u64,
}

// === impl Pace ===

impl Pace {
    pub(in crate::cache) const fn new(slowest: Slowest) -> Self {
        Self { slowest, waited: Duration::ZERO, came: 0 }
    }

    /// The next data; none at the end. Trailers have no meaning here.
    pub(in crate::cache) async fn next(&mut self, body: &mut ClientBody) -> Result<Option<Bytes>, ClientFault> {
        let mut since = Instant::now();
        let gone = since + IDLE;
        let mut frame = pin!(body.frame());
        let frame = loop {
            let window = since + self.slowest.window.saturating_sub(self.waited);
            let taken = timeout_at(gone.min(window), frame.as_mut()).await;
            let now = Instant::now();
            self.waited += now - since;
            since = now;
            match taken {
                Ok(frame) => break frame,
                Err(_) if now >= gone => return Err(ClientFault::Idle),
                Err(_) if self.waited >= self.slowest.window => {
                    if self.came < self.slowest.bytes {
                        return Err(ClientFault::Slow);
                    }
                    (self.waited, self.came) = (Duration::ZERO, 0);
                }
                Err(_) => {}
            }
        };
        let Some(frame) = frame else { return Ok(None) };
        let data = frame.map_err(ClientFault::Broken)?.into_data().unwrap_or_default();
        self.came += data.len() as u64;
        Ok(Some(data))
    }
}
