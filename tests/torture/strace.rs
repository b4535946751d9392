//! Faults at system calls of the daemon, injected by strace: it is run by it, or attached to while it works.
//!
//! strace counts for each call and thread by itself, so a point is a call, an action, and which of the thread's calls.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tokio::time::Instant;

use rustix::process::{Pid, Signal, kill_process};

use crate::common::Daemon;

/// How long attaching or detaching may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// A strace that is attached to a running daemon.
pub struct Tracer(Child);

/// A command that runs the daemon under strace with these options.
pub fn command(config: &Path, options: &[String]) -> Command {
    let mut command = Command::new("strace");
    command.args(["-f", "-qq"]).args(options).arg("--").arg(env!("CARGO_BIN_EXE_ocistern"));
    Daemon::arguments(&mut command, config);
    command
}

/// The process that a strace runs.
pub fn child_of(strace: Pid) -> Option<Pid> {
    let pid = strace.as_raw_nonzero();
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    children.split_whitespace().next()?.parse().ok().and_then(Pid::from_raw)
}

/// How often each call of these is made by the thread that makes it most often.
pub fn counts(log: &Path) -> BTreeMap<String, u64> {
    let mut by_thread: BTreeMap<(String, String), u64> = BTreeMap::new();
    for line in std::fs::read_to_string(log).unwrap_or_default().lines() {
        let Some((thread, rest)) = line.trim_start().split_once(' ') else { continue };
        let Some((call, _)) = rest.trim_start().split_once('(') else { continue };
        if !call.is_empty() && call.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
            *by_thread.entry((thread.to_owned(), call.to_owned())).or_default() += 1;
        }
    }
    let mut most: BTreeMap<String, u64> = BTreeMap::new();
    for ((_, call), count) in by_thread {
        let known = most.entry(call).or_default();
        *known = count.max(*known);
    }
    most
}

/// How many calls it interfered with.
pub fn injected(log: &Path) -> u64 {
    std::fs::read_to_string(log).unwrap_or_default().matches("(INJECTED)").count() as u64
}

impl Tracer {
    /// Attaches to every thread of a process.
    pub async fn attach(pid: Pid, options: &[String]) -> Result<Self, String> {
        let mut command = Command::new("strace");
        command.args(["-f", "-qq"]).args(options).arg("-p").arg(pid.as_raw_nonzero().to_string());
        let mut child = command.stderr(Stdio::null()).spawn().map_err(|e| format!("strace: {e}"))?;
        let began = Instant::now();
        while !all_traced(pid) {
            if let Ok(Some(status)) = child.try_wait() {
                // What it injects may have killed the process before the last thread was traced.
                if is_dead(pid) {
                    break;
                }
                return Err(format!("strace ended with {status}: may it trace here?"));
            }
            if began.elapsed() > PATIENCE {
                let _ = child.kill();
                return Err("strace does not attach".into());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(Self(child))
    }

    /// Lets the process go on without it.
    pub async fn detach(mut self) {
        if self.0.try_wait().is_ok_and(|status| status.is_some()) {
            return;
        }
        let _ = kill_process(Pid::from_child(&self.0), Signal::INT);
        let began = Instant::now();
        while self.0.try_wait().is_ok_and(|status| status.is_none()) {
            if began.elapsed() > PATIENCE {
                let _ = self.0.kill();
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// Whether a child of this process has ended.
fn is_dead(pid: Pid) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).unwrap_or_default();
    stat.rsplit_once(')').is_none_or(|(_, rest)| rest.trim_start().starts_with(['Z', 'X']))
}

fn all_traced(pid: Pid) -> bool {
    let Ok(tasks) = std::fs::read_dir(format!("/proc/{}/task", pid.as_raw_nonzero())) else { return false };
    tasks.flatten().all(|task| {
        let status = std::fs::read_to_string(task.path().join("status")).unwrap_or_default();
        status.lines().any(|line| line.strip_prefix("TracerPid:").is_some_and(|tracer| tracer.trim() != "0"))
    })
}
