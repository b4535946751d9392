//! `ocistern serve`: the daemon, from its configuration to its end by a signal.

use std::convert::Infallible;
use std::io;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::spawn_blocking;
use tokio::time::{Instant, MissedTickBehavior, interval_at};

use super::log::LogError;
use super::reload::Reloader;
use super::{FAILED, USAGE, complain, log};
use crate::clock::SystemClock;
use crate::config::{Config, Flags};
use crate::http::respond::causes;
use crate::oci::UpstreamName;
use crate::server::{Inherited, Server, raise_limit};
use crate::telemetry;

/// How long a thread for what blocks (files, mostly) waits for more to do.
///
/// These threads take turns: whatever there is to do for any of them keeps all alive, those of a burst too, and the C
/// library's allocator keeps for each a hundred KiB and more of what it has freed (ADR 0017). Short, so that there are as
/// many as are needed now. To make one costs less than any access to a disk.
const IDLE_THREAD: Duration = Duration::from_millis(20);
/// How long the runtime waits for what still blocks a thread after the stop.
const RUNTIME_ENDS_WITHIN: Duration = Duration::from_secs(2);

/// Signals within this time of the first are the same request: `timeout` and terminals signal the process and its
/// group, so that one request comes twice.
const SAME_REQUEST: Duration = Duration::from_millis(500);

/// How often what the allocator keeps free is given back.
const GIVE_BACK_EVERY: Duration = Duration::from_mins(1);

/// SIGTERM and SIGINT, and SIGHUP.
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    /// None: whoever started the command has it ignored.
    hangup: Option<Signal>,
}

/// What a signal asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wanted {
    /// An end.
    Stop,
    /// SIGHUP: of a daemon, that it reads its configuration again; of a command, an end too, because its terminal was
    /// closed. A daemon goes on also then.
    Reload,
}

/// Runs the daemon until it is told to stop.
pub(super) fn run(flags: &Flags) -> ExitCode {
    let config = match Config::load(flags, |name| std::env::var(name).ok()) {
        Ok(config) => config,
        Err(error) => return complain(USAGE, error),
    };
    // Before there are threads, because both change what all share: the environment, and the allocator's settings.
    let inherited = Inherited::from_env();
    crate::sys::allocator::set_up();
    let log = match log::start(&config.log) {
        Ok(log) => log,
        Err(error @ LogError::Filter(_)) => return complain(USAGE, error),
        Err(error @ LogError::Thread(_)) => return complain(FAILED, error),
    };
    let traces = match config.log.otlp.as_ref().map(|otlp| telemetry::start(&otlp.receiver.to_string(), otlp.sample()))
    {
        None => None,
        Some(Ok(traces)) => Some(traces),
        Some(Err(error)) => return complain(USAGE, error),
    };
    raise_limit();
    let inherited = match inherited {
        Ok(inherited) => inherited,
        Err(error) => return fail(&error),
    };
    let runtime =
        Builder::new_multi_thread().enable_all().thread_name("ocistern").thread_keep_alive(IDLE_THREAD).build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error),
    };
    if let Some(traces) = &traces {
        traces.run_on(runtime.handle());
    }
    let code = serve(&runtime, flags, config, inherited, &log);
    if let Some(traces) = traces {
        traces.stop();
    }
    runtime.shutdown_timeout(RUNTIME_ENDS_WITHIN);
    code
}

fn serve(runtime: &Runtime, flags: &Flags, config: Config, inherited: Inherited, log: &log::Started) -> ExitCode {
    runtime.block_on(async {
        // Listened to before the start, so that a stop in its middle is a proper one.
        let mut signals = match Signals::new() {
            Ok(signals) => signals,
            Err(error) => return fail(&error),
        };
        if let Some(file) = &config.source {
            tracing::info!(file = %file.display(), "configuration read");
        }
        announce(&config);
        let mut reloader = Reloader::new(flags.clone(), config.clone(), log.filter.clone());
        let started = tokio::select! {
            started = Server::start_with(config, inherited, Arc::new(SystemClock)) => started,
            () = signals.stop() => return ExitCode::SUCCESS,
        };
        let server = match started {
            Ok(server) => server,
            Err(error) if error.is_configuration() => {
                fail(&error);
                return ExitCode::from(USAGE);
            }
            Err(error) => return fail(&error),
        };
        log.requests.count_in(server.metrics().log_lines_dropped.clone());
        tokio::select! {
            () = until_stop(&mut signals, &mut reloader, &server) => {}
            never = give_memory_back() => match never {},
        }
        let first = Instant::now();
        tokio::select! {
            () = server.stop() => ExitCode::SUCCESS,
            () = another(first, async || signals.stop().await) => {
                tracing::warn!("a second signal: ending at once");
                ExitCode::from(FAILED)
            }
        }
    })
}

/// Reads the configuration again as often as it is asked to.
async fn until_stop(signals: &mut Signals, reloader: &mut Reloader, server: &Server) {
    while signals.next().await == Wanted::Reload {
        // A file system that hangs does not hold up the stop.
        tokio::select! {
            () = reloader.reload(server) => {}
            () = signals.stop() => return,
        }
    }
}

/// Gives back what the allocator keeps free, now and then: what a burst of requests has needed is not kept for ever.
async fn give_memory_back() -> Infallible {
    let mut ticks = interval_at(Instant::now() + GIVE_BACK_EVERY, GIVE_BACK_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let _ = spawn_blocking(crate::sys::allocator::give_back).await;
    }
}

/// Waits for a signal that is not the same request as the `first`.
async fn another(first: Instant, mut next: impl AsyncFnMut()) {
    loop {
        next().await;
        if first.elapsed() >= SAME_REQUEST {
            return;
        }
    }
}

/// What this process is going to be.
fn announce(config: &Config) {
    let mut defaults: Vec<&str> = Vec::new();
    for name in config.listeners.iter().filter_map(|listener| listener.default_upstream.as_ref()) {
        if !defaults.contains(&name.as_str()) {
            defaults.push(name.as_str());
        }
    }
    let upstreams: Vec<&str> = config.upstreams.keys().map(UpstreamName::as_str).collect();
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        root = %config.root.display(),
        capacity = %config.store.capacity,
        default_upstream = defaults.join(", "),
        upstreams = upstreams.join(", "),
        "starting"
    );
    warn_of_doubts(config);
}

/// Says what is allowed and hardly meant.
pub(super) fn warn_of_doubts(config: &Config) {
    for doubt in config.doubts(super::config::variables()) {
        tracing::warn!(place = doubt.place, "{}: {}; {}", doubt.key, doubt.found, doubt.advice);
    }
}

fn fail(error: &(dyn std::error::Error + Send + Sync + 'static)) -> ExitCode {
    // Why it ends is said whatever the log leaves out.
    if tracing::enabled!(tracing::Level::ERROR) {
        tracing::error!("{}", causes(error));
        return ExitCode::from(FAILED);
    }
    complain(FAILED, causes(error))
}

// === impl Signals ===

impl Signals {
    /// For a daemon.
    pub(super) fn new() -> io::Result<Self> {
        let (terminate, interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        Ok(Self { terminate, interrupt, hangup: Some(signal(SignalKind::hangup())?) })
    }

    /// For a command: when its terminal is closed it ends too, unless it was started so that it does not (`nohup`).
    pub(super) fn of_command() -> io::Result<Self> {
        if is_ignored(SignalKind::hangup()) {
            let (terminate, interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
            return Ok(Self { terminate, interrupt, hangup: None });
        }
        Self::new()
    }

    /// The next signal.
    pub(super) async fn next(&mut self) -> Wanted {
        let Self { terminate, interrupt, hangup } = self;
        let hung_up = async {
            match hangup {
                Some(hangup) => drop(hangup.recv().await),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = terminate.recv() => Wanted::Stop,
            _ = interrupt.recv() => Wanted::Stop,
            () = hung_up => Wanted::Reload,
        }
    }

    /// The next signal that asks for an end. A SIGHUP meanwhile is not lost: [`Signals::next`] tells of it afterwards.
    async fn stop(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Whether whoever started this process has it ignore the signal.
fn is_ignored(kind: SignalKind) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or_default();
    mask >> (kind.as_raw_value() - 1) & 1 == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn signals_that_follow_at_once_are_the_same_request() {
        let first = Instant::now();
        let mut gaps = [0, 100, 399, 1, 1000].map(Duration::from_millis).into_iter();
        another(first, async || tokio::time::sleep(gaps.next().unwrap_or_default()).await).await;
        assert_eq!(first.elapsed(), SAME_REQUEST);
    }
}
