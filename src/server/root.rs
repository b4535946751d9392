//! Opens the store for the daemon: a command that is at work on it is asked to end, and waited for.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep};

use super::{StartError, notify};
use crate::metrics::Metrics;
use crate::store::{Holder, Store, StoreError, StoreOptions};

/// How long a command may take to end. It puts its work down and closes the store, which is short.
const ENDS_WITHIN: Duration = Duration::from_secs(30);
/// How long the lock may say of another process that it is a daemon: it may just have ended, and a command have taken its
/// place and not said so yet.
const SAYS_WITHIN: Duration = Duration::from_millis(300);
/// How often it is looked whether the root is free. Short: where a script runs one command after the other, the root is
/// free for a moment only.
const BETWEEN: Duration = Duration::from_millis(5);

/// Opens the store. A daemon on it is an error, a command is not.
pub(super) async fn open(options: StoreOptions, metrics: Metrics) -> Result<Store, StartError> {
    let root = options.root.clone();
    if let Some(owner) = spawn_blocking(move || other_owner(&root)).await? {
        return Err(StartError::Owner { root: options.root, owner });
    }
    let begun = Instant::now();
    let mut asked = Vec::new();
    loop {
        let opening = (options.clone(), metrics.clone());
        let opened = spawn_blocking(move || Store::open(opening.0, opening.1)).await?;
        let (root, holder) = match opened {
            Err(StoreError::Locked { root, holder }) => (root, holder),
            other => return Ok(other?),
        };
        let patience = if holder.command.is_some() { ENDS_WITHIN } else { SAYS_WITHIN };
        if begun.elapsed() >= patience {
            return Err(StoreError::Locked { root, holder }.into());
        }
        if holder.command.is_some() && !asked.contains(&holder.pid) {
            if asked.is_empty() {
                notify::extend(ENDS_WITHIN);
                tracing::info!(%holder, "waiting for a command that is at work on the store; it is asked to end");
            }
            asked.push(holder.pid);
            let asking = spawn_blocking(move || ask_to_end(&root, &holder)).await?;
            if let Err(error) = asking {
                tracing::warn!(%error, "the command could not be asked to end: it is waited for");
            }
        }
        sleep(BETWEEN).await;
    }
}

/// The owner of a store, where this process is root and that is somebody else: what root writes there, the owner could
/// not read when it serves again.
fn other_owner(root: &Path) -> Option<u32> {
    let owner = root.join("VERSION").metadata().and_then(|_| root.metadata()).ok()?.uid();
    (rustix::process::geteuid().is_root() && owner != 0).then_some(owner)
}

/// Asks the process that holds the root's lock to end. What the lock says is not believed without proof: it may be the
/// number of a process in another container, and of quite another here.
fn ask_to_end(root: &Path, holder: &Holder) -> io::Result<()> {
    let unknown = || io::Error::new(io::ErrorKind::NotFound, format!("{holder} is not seen to hold the lock"));
    let pid = i32::try_from(holder.pid).ok().and_then(Pid::from_raw).ok_or_else(unknown)?;
    // Opened before it is looked at, so that its number cannot become another's in between.
    let process = pidfd_open(pid, PidfdFlags::empty())?;
    let inodes = [root.metadata()?.ino(), root.join("lock").metadata()?.ino()];
    let locks = std::fs::read_to_string("/proc/locks")?;
    if !locks.lines().any(|line| holds(line, holder.pid, &inodes)) {
        return Err(unknown());
    }
    Ok(pidfd_send_signal(process, Signal::TERM)?)
}

/// Whether a line of `/proc/locks` says that the process has locked one of these files, as in
/// `1: FLOCK  ADVISORY  WRITE 4242 fe:00:1234 0 EOF`.
fn holds(line: &str, pid: u32, inodes: &[u64]) -> bool {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let [_, "FLOCK", _, _, holder, file, ..] = fields.as_slice() else { return false };
    let inode = file.rsplit(':').next().and_then(|inode| inode.parse::<u64>().ok());
    holder.parse() == Ok(pid) && inode.is_some_and(|inode| inodes.contains(&inode))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_holds_a_lock() {
        let line = "1: FLOCK  ADVISORY  WRITE 4242 fe:00:1234 0 EOF";
        assert!(holds(line, 4242, &[7, 1234]));
        for other in [
            "1: FLOCK  ADVISORY  WRITE 4243 fe:00:1234 0 EOF",
            "1: FLOCK  ADVISORY  WRITE 4242 fe:00:1235 0 EOF",
            "1: -> FLOCK  ADVISORY  WRITE 4242 fe:00:1234 0 EOF",
            "1: POSIX  ADVISORY  WRITE 4242 fe:00:1234 0 EOF",
            "",
        ] {
            assert!(!holds(other, 4242, &[7, 1234]), "{other}");
        }
    }

    #[test]
    fn a_process_that_does_not_hold_the_lock_is_left_alone() {
        let root = tempfile::tempdir().unwrap();
        std::fs::write(root.path().join("lock"), "").unwrap();
        // Were it asked, this would be the end of the test.
        let holder = Holder { pid: std::process::id(), ..Holder::UNKNOWN };
        assert!(ask_to_end(root.path(), &holder).is_err());
    }
}
