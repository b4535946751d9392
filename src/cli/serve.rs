//! `ocistern serve`: the daemon, from its configuration to its end by a signal.

use std::io;
use std::process::ExitCode;
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::{FAILED, USAGE, complain, log};
use crate::config::{Config, Flags};
use crate::http::respond::causes;
use crate::server::{Inherited, Server, raise_limit};

/// How long the runtime waits for what still blocks a thread after the stop.
const RUNTIME_ENDS_WITHIN: Duration = Duration::from_secs(2);

/// SIGTERM and SIGINT, whichever comes.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

/// Runs the daemon until it is told to stop.
pub(super) fn run(flags: &Flags) -> ExitCode {
    let config = match Config::load(flags, |name| std::env::var(name).ok()) {
        Ok(config) => config,
        Err(error) => return complain(USAGE, error),
    };
    if let Err(error) = log::start(&config.log) {
        return complain(USAGE, format_args!("log.filter: {error}"));
    }
    raise_limit();
    // Before the threads of the runtime, because it changes the environment.
    let inherited = match Inherited::from_env() {
        Ok(inherited) => inherited,
        Err(error) => return fail(&error),
    };
    let runtime = match Builder::new_multi_thread().enable_all().thread_name("ocistern").build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error),
    };
    let code = serve(&runtime, config, inherited);
    runtime.shutdown_timeout(RUNTIME_ENDS_WITHIN);
    code
}

fn serve(runtime: &Runtime, config: Config, inherited: Inherited) -> ExitCode {
    runtime.block_on(async {
        // Listened to before the start, so that a stop in its middle is a proper one.
        let mut signals = match Signals::new() {
            Ok(signals) => signals,
            Err(error) => return fail(&error),
        };
        if let Some(file) = &config.source {
            tracing::info!(file = %file.display(), "configuration read");
        }
        let started = tokio::select! {
            started = Server::start_with(config, inherited) => started,
            () = signals.next() => return ExitCode::SUCCESS,
        };
        let server = match started {
            Ok(server) => server,
            Err(error) => return fail(&error),
        };
        signals.next().await;
        tokio::select! {
            () = server.stop() => ExitCode::SUCCESS,
            () = signals.next() => {
                tracing::warn!("a second signal: ending at once");
                ExitCode::from(FAILED)
            }
        }
    })
}

fn fail(error: &(dyn std::error::Error + Send + Sync + 'static)) -> ExitCode {
    tracing::error!("{}", causes(error));
    ExitCode::from(FAILED)
}

// === impl Signals ===

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
