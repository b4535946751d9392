//! How many files this process may open, and how many of them connections may take.
//!
//! A connection is a file, and so is what it is answered from: without one left the store cannot be read, no upstream
//! can be asked, and accepting fails in a loop.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Of every four files connections take three; the store, upstreams and the admin interface have the fourth.
const SHARE: (u64, u64) = (3, 4);

/// Raises the number of files that this process may open to what the system allows it. Shells and service managers
/// start programs with a low one (1024), for the sake of those that use select(2).
pub fn raise_limit() {
    let limit = getrlimit(Resource::Nofile);
    if limit.current == limit.maximum {
        return;
    }
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        tracing::debug!(%error, "the number of files that may be opened stays as it is");
    }
}

/// As many connections as were wanted, or fewer where the files are too few.
pub(super) fn connections(wanted: usize) -> usize {
    let limit = getrlimit(Resource::Nofile).current;
    let allowed = fitting(wanted, limit);
    if allowed < wanted {
        tracing::warn!(
            wanted,
            allowed,
            files = limit,
            "fewer connections at once than limits.connections: raise the number of files that may be opened \
             (LimitNOFILE of the systemd unit, `ulimit -n`), or lower limits.connections"
        );
    }
    allowed
}

/// `limit`: none is no limit.
fn fitting(wanted: usize, limit: Option<u64>) -> usize {
    let share = limit.map(|files| files.saturating_mul(SHARE.0) / SHARE.1);
    let share = share.map_or(usize::MAX, |share| usize::try_from(share).unwrap_or(usize::MAX));
    wanted.min(share).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_files_for_what_answers_them() {
        assert_eq!(fitting(8192, None), 8192);
        assert_eq!(fitting(8192, Some(1 << 20)), 8192);
        assert_eq!(fitting(8192, Some(8192)), 6144);
        assert_eq!(fitting(8192, Some(u64::MAX)), 8192);
        assert_eq!(fitting(100, Some(1024)), 100);
        assert_eq!(fitting(100, Some(0)), 1);
    }
}
