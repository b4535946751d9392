//! Parts of the suite as processes of their own, each a subject with its count and seed: their output, their figures, and
//! an end of all of them where this process is told to end.

use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// What a part has said.
pub struct Said {
    pub status: ExitStatus,
    pub output: String,
    /// Its last line of JSON.
    pub figures: Option<serde_json::Value>,
}

/// Runs this program with these arguments and this seed. When `stop` comes it is told to end, cleans up and ends.
pub async fn run(arguments: &str, seed: u64, stop: &CancellationToken) -> Result<Said, String> {
    let program: PathBuf = std::env::current_exe().map_err(|e| e.to_string())?;
    let mut command = Command::new(program);
    command.args(arguments.split(' ')).arg("--seed").arg(seed.to_string()).stdout(Stdio::piped());
    let mut child = command.spawn().map_err(|e| format!("{arguments}: {e}"))?;
    let pid = child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let (mut output, mut figures, mut told) = (String::new(), None, false);
    loop {
        let line = tokio::select! {
            line = lines.next_line() => line,
            () = stop.cancelled(), if !told => {
                told = true;
                pid.map(|pid| kill_process(pid, Signal::TERM));
                continue;
            }
        };
        let Ok(Some(line)) = line else { break };
        if line.starts_with('{') {
            figures = serde_json::from_str(&line).ok();
        }
        output += &line;
        output.push('\n');
    }
    let status = child.wait().await.map_err(|e| e.to_string())?;
    Ok(Said { status, output, figures })
}

/// A token that is cancelled when this process is told to end, as long as the task that listens lives.
pub fn told_to_end() -> (CancellationToken, JoinSet<()>) {
    let stop = CancellationToken::new();
    let cancel = stop.clone();
    let mut listening = JoinSet::new();
    listening.spawn(async move {
        ended_by_signal().await;
        cancel.cancel();
    });
    (stop, listening)
}

/// Returns when this process is told to end.
pub async fn ended_by_signal() {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut terminate), Ok(mut interrupt)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}
