//! Drives a connection, and ends it: when it is done, when its time is over, when the server stops.

use std::error::Error;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use hyper_util::server::graceful::GracefulConnection;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::activity::{Activity, Overdue, Verdict};

/// Why a connection ended otherwise than by being done.
#[derive(Debug, thiserror::Error)]
pub(super) enum Ended {
    /// By the protocol or the network; clients that go away are here too.
    #[error("the connection failed")]
    Connection(#[source] Box<dyn Error + Send + Sync>),
    /// By a limit.
    #[error(transparent)]
    Overdue(Overdue),
    /// The server's deadline for running answers is over.
    #[error("the server stopped before the answer was complete")]
    Stopped,
}

/// Runs `connection` to its end. `drain` asks it to finish what it is doing, `abort` drops it.
pub(super) async fn run<C>(
    connection: C,
    activity: Arc<Activity>,
    drain: &CancellationToken,
    abort: &CancellationToken,
) -> Result<(), Ended>
where
    C: GracefulConnection<Error: Into<Box<dyn Error + Send + Sync>>>,
{
    let mut connection = pin!(connection);
    let mut drain = pin!(drain.cancelled());
    let mut abort = pin!(abort.cancelled());
    let mut armed = Instant::now();
    let mut timer = pin!(sleep_until(armed));
    let mut closing = false;
    poll_fn(|cx| {
        loop {
            if let Poll::Ready(result) = connection.as_mut().poll(cx) {
                return Poll::Ready(result.map_err(|error| Ended::Connection(error.into())));
            }
            if abort.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Err(Ended::Stopped));
            }
            if !closing && drain.as_mut().poll(cx).is_ready() {
                closing = true;
                activity.closing();
                connection.as_mut().graceful_shutdown();
                continue;
            }
            let now = Instant::now();
            let deadline = match activity.judge(now) {
                Verdict::Until(deadline) => deadline,
                Verdict::Cut(overdue) => return Poll::Ready(Err(Ended::Overdue(overdue))),
                Verdict::Retire => {
                    closing = true;
                    activity.closing();
                    connection.as_mut().graceful_shutdown();
                    continue;
                }
            };
            // Deadlines mostly move away, with every request: the timer is set back only when it fires too early.
            if deadline < armed || armed <= now {
                armed = deadline;
                timer.as_mut().reset(deadline);
            }
            if timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
        }
    })
    .await
}
