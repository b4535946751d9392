//! Tells systemd how the service is (`sd_notify`); without it, nothing happens.

use std::future::Future;
use std::io;
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::net::UnixDatagram;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

/// Where systemd listens, as `sd_notify(3)` has it.
const SOCKET: &str = "NOTIFY_SOCKET";

/// Requests are served.
pub(super) fn ready() {
    send(&[NotifyState::Ready]);
}

/// The start takes up to so much longer.
pub(super) fn extend(time: Duration) {
    send(&[NotifyState::ExtendTimeoutUsec(u32::try_from(time.as_micros()).unwrap_or(u32::MAX))]);
}

/// The stop has begun.
pub(super) fn stopping() {
    send(&[NotifyState::Stopping]);
}

fn send(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "systemd could not be told");
    }
}

/// Where systemd watches over this process (`WatchdogSec=`), tells it until `stop` that tasks are run.
///
/// What hangs the runtime (every worker at once waits for a lock, or runs in a circle) ends these signs of life, and then
/// systemd ends the process and starts another. They do not touch the blocking pool: a disk that hangs is survived by
/// streaming past it, and no restart would mend it.
pub(super) async fn watchdog(stop: CancellationToken) {
    let (Some(limit), Some(socket)) = (sd_notify::watchdog_enabled(), std::env::var_os(SOCKET)) else { return };
    tracing::debug!(seconds = limit.as_secs_f64(), "systemd watches over this process");
    let tell = async || {
        // Not the way of `send`, which waits on the worker where systemd takes no message; and connected anew each
        // time, because systemd may have been executed again meanwhile.
        let told: io::Result<_> = async {
            let datagram = UnixDatagram::unbound()?;
            datagram.connect(&socket)?;
            datagram.send(NotifyState::Watchdog.to_string().as_bytes()).await
        }
        .await;
        if let Err(error) = told {
            tracing::warn!(%error, "systemd could not be told that the service lives: it will restart it");
        }
    };
    tokio::select! {
        () = beat(limit, tell) => {}
        () = stop.cancelled() => {}
    }
}

/// Calls `tell` twice within each `limit`, as `sd_watchdog_enabled(3)` recommends.
async fn beat<F: Future<Output = ()>>(limit: Duration, tell: impl Fn() -> F) {
    // At no shorter times than a timer has.
    let mut ticks = interval((limit / 2).max(Duration::from_millis(1)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        tell().await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{RecvTimeoutError, channel};

    use tokio::runtime::Builder;

    use super::*;

    const WORKERS: usize = 2;
    const LIMIT: Duration = Duration::from_millis(20);
    /// Much longer than a beat, and short enough for a test.
    const SILENCE: Duration = Duration::from_millis(500);
    /// What a busy machine may take for anything.
    const PATIENCE: Duration = Duration::from_secs(30);

    #[test]
    fn signs_of_life_end_when_every_worker_is_blocked_and_go_on_after_it() {
        let runtime = Builder::new_multi_thread().worker_threads(WORKERS).enable_all().build().unwrap();
        let (told, signs) = channel();
        let beating = runtime.spawn(async move {
            beat(LIMIT, || {
                let told = told.clone();
                async move { told.send(()).unwrap() }
            })
            .await;
        });
        for _ in 0..3 {
            signs.recv_timeout(PATIENCE).unwrap();
        }
        let (entered, inside) = channel();
        let gates: Vec<_> = (0..WORKERS)
            .map(|_| {
                let ((open, gate), entered) = (channel::<()>(), entered.clone());
                runtime.spawn(async move {
                    entered.send(()).unwrap();
                    let _ = gate.recv();
                });
                open
            })
            .collect();
        for _ in 0..WORKERS {
            inside.recv_timeout(PATIENCE).unwrap();
        }
        // What was told before.
        while signs.try_recv().is_ok() {}
        assert_eq!(signs.recv_timeout(SILENCE), Err(RecvTimeoutError::Timeout), "nothing runs, and says that it lives");
        drop(gates);
        signs.recv_timeout(PATIENCE).unwrap();
        beating.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn two_signs_of_life_come_within_each_limit() {
        let count = std::cell::Cell::new(0);
        let beating = beat(Duration::from_secs(30), async || count.set(count.get() + 1));
        assert!(tokio::time::timeout(Duration::from_secs(301), beating).await.is_err());
        assert_eq!(count.get(), 21);
    }
}
