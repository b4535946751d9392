//! The store's directory: whose it is, who has it, what its file system gives, and what the kernel and the clock do for it.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::finding::{Finding, Group, Level};
use super::{Daemon, Subject};
use crate::cli::table::bytes;
use crate::clock::NEVER_SET;
use crate::config::Capacity;
use crate::http::respond::causes;
use crate::store::{Room, check_format, has_openat2, room};
use crate::sys::mapping::Mapping;

const GROUP: Group = Group::Root;
/// Files that a store of some size soon makes: fewer will not do.
const FEW_FILES: u64 = 10_000;
/// Clocks of machines that write to one file system differ by less.
const AHEAD: Duration = Duration::from_mins(2);
/// What is written in a root as time goes by.
const WRITTEN: [&str; 6] = ["lock", "state", "blobs/sha256", "refs", "fills", "index"];

/// The user that the root belongs to, if it is there.
pub(super) fn owner(root: &Path) -> Option<u32> {
    fs::metadata(root).ok().map(|metadata| metadata.uid())
}

/// Everything of the root.
pub(super) fn check(subject: &Subject) -> Vec<Finding> {
    let root = &subject.config.root;
    let about = root.display().to_string();
    let mut findings = vec![held(subject)];
    let place = match fs::metadata(root) {
        Ok(metadata) if metadata.is_dir() => {
            findings.extend(directory(subject, &metadata));
            root.as_path()
        }
        Ok(_) => {
            let advice = "name a directory (root, --root)";
            findings.push(Finding::new(Level::Error, GROUP, about.as_str(), "is no directory", advice));
            return findings;
        }
        Err(error) => {
            let Some(above) = root.ancestors().skip(1).find(|path| path.is_dir()) else {
                let advice = "write an absolute path (root, --root)";
                findings.push(Finding::new(Level::Error, GROUP, about.as_str(), error.to_string(), advice));
                return findings;
            };
            findings.push(missing(subject, above));
            above
        }
    };
    match room(place, subject.config.store.capacity) {
        Ok(found) => {
            let stored = subject.status().map(|(_, status)| status.store.bytes);
            let stored = match stored {
                Some(bytes) => u64::try_from(bytes).ok(),
                None if place == root => None,
                None => Some(0),
            };
            let chosen = subject.config.store.capacity != Capacity::Default;
            findings.extend(space(&about, found, stored, chosen));
        }
        Err(error) => {
            let advice = "see to the file system that the root lies on";
            findings.push(Finding::new(Level::Error, GROUP, about.as_str(), error.to_string(), advice));
        }
    }
    findings.extend(file_system(&about, place));
    findings.extend(kernel(place));
    findings.push(clock(root, subject.now));
    findings
}

/// Who has the lock.
fn held(subject: &Subject) -> Finding {
    let about = "lock";
    match &subject.daemon {
        Daemon::None => Finding::ok(GROUP, about, "nobody has the store; no daemon runs on it"),
        Daemon::Running(holder, status) if status.stage == "ready" => Finding::ok(
            GROUP,
            about,
            format!("process {}, version {}, serves, for {} s", holder.pid, status.version, status.uptime_seconds),
        ),
        Daemon::Running(holder, status) => Finding::new(
            Level::Note,
            GROUP,
            about,
            format!("process {} has it, and is {}", holder.pid, status.stage),
            "wait for it; its log says how far it is",
        ),
        Daemon::Silent(holder, why) if holder.command.is_some() => Finding::new(
            Level::Note,
            GROUP,
            about,
            format!("{holder} has it: {why}"),
            "wait until that has ended; a daemon that starts asks it to",
        ),
        Daemon::Silent(holder, why) => {
            let look = match holder.pid {
                0 => "`fuser -v` on the file `lock` in the root names the process".to_owned(),
                pid => format!("`ps -fp {pid}` shows what it is"),
            };
            let (level, advice) = if subject.own_user == 0 || subject.own_user == subject.user {
                (Level::Error, format!("{look}; restart it if it is a daemon"))
            } else {
                // Of what is another user's, this one may know no more.
                (Level::Warning, format!("run this as root or as the user {} to see more; {look}", subject.user))
            };
            Finding::new(level, GROUP, about, format!("{holder} has it and cannot be asked: {why}"), advice)
        }
        Daemon::Unknown(why) => {
            let advice = format!("run this as root or as the user {}", subject.user);
            Finding::new(
                Level::Warning,
                GROUP,
                about,
                format!("whether somebody has the store cannot be seen: {why}"),
                advice,
            )
        }
    }
}

/// A root that is there.
fn directory(subject: &Subject, metadata: &fs::Metadata) -> Vec<Finding> {
    let root = &subject.config.root;
    let about = root.display().to_string();
    let (mode, owner) = (metadata.mode() & 0o7777, metadata.uid());
    let mut findings = Vec::new();
    if subject.own_user != owner && subject.own_user != 0 {
        let found = format!("belongs to the user {owner}, and this is {}", subject.own_user);
        let advice = format!(
            "serve as {owner}, or give the root to the user that serves (chown -R); for the whole picture run this as {owner}"
        );
        findings.push(Finding::new(Level::Warning, GROUP, about.as_str(), found, advice));
    }
    if mode & 0o700 != 0o700 {
        let found = format!("its owner may not read, write and search it (mode {mode:o})");
        findings.push(Finding::new(Level::Error, GROUP, about.as_str(), found, format!("chmod u+rwx {about}")));
    } else if mode & 0o022 != 0 {
        let found = format!("others than its owner may write in it (mode {mode:o}), and so replace what is served");
        findings.push(Finding::new(Level::Error, GROUP, about.as_str(), found, format!("chmod go-w {about}")));
    } else if mode & 0o005 != 0 {
        let found = format!("everybody on this machine may read it (mode {mode:o}), private images too");
        findings.push(Finding::new(
            Level::Note,
            GROUP,
            about.as_str(),
            found,
            format!("chmod o= {about}, unless all images are public"),
        ));
    } else {
        findings.push(Finding::ok(GROUP, about.as_str(), format!("belongs to the user {owner}, mode {mode:o}")));
    }
    // What this user may not see is said above.
    if let Err(error) = check_format(root)
        && !(subject.own_user != owner && is_denied(&error))
    {
        let found = causes(&error);
        let advice = "use another root (root, --root), or the version of ocistern that wrote this one";
        findings.push(Finding::new(Level::Error, GROUP, about, found, advice));
    }
    findings
}

/// Whether it is for want of a permission.
fn is_denied(error: &(dyn std::error::Error + 'static)) -> bool {
    std::iter::successors(Some(error), |error| error.source())
        .filter_map(|error| error.downcast_ref::<io::Error>())
        .any(|error| error.kind() == io::ErrorKind::PermissionDenied)
}

/// A root that is not there yet; `above` is the lowest directory that is.
fn missing(subject: &Subject, above: &Path) -> Finding {
    let about = subject.config.root.display().to_string();
    let may = rustix::fs::access(above, rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK);
    match may {
        Ok(()) => Finding::ok(GROUP, about, "not there yet; `ocistern serve` makes it"),
        Err(error) => Finding::new(
            Level::Error,
            GROUP,
            about.as_str(),
            format!(
                "is not there, and this user ({}) cannot make it in {}: {error}",
                subject.own_user,
                above.display()
            ),
            format!("install -d -m 0750 -o USER {about}, or another root (root, --root)"),
        ),
    }
}

/// The room on the file system; `stored`: what of it is the store's, where that is known; `chosen`: whether somebody has
/// said that the capacity is to be had.
fn space(about: &str, room: Room, stored: Option<u64>, chosen: bool) -> Vec<Finding> {
    let Room { total, free, capacity, floor, free_files } = room;
    let has =
        format!("{} free of {}; capacity {}, kept free {}", bytes(free), bytes(total), bytes(capacity), bytes(floor));
    let mut findings = vec![if capacity == 0 || total == 0 {
        let advice = "say how much it may hold (store.capacity), or lay the root on another file system";
        Finding::new(Level::Error, GROUP, "space", format!("the store may hold nothing: {has}"), advice)
    } else if free < floor {
        let advice = format!("free {} there, or lay the root on another file system", bytes(floor - free));
        let found =
            format!("less is free than is kept free, so what others have taken is made up for by evicting: {has}");
        Finding::new(Level::Error, GROUP, "space", found, advice)
    } else if let Some(stored) = stored
        && stored.saturating_add(free - floor) < capacity
    {
        let reachable = stored + (free - floor);
        let advice = format!("free room for the rest, or say store.capacity = \"{}GiB\"", (reachable >> 30).max(1));
        let found = format!("the capacity cannot be reached, only {}: {has}", bytes(reachable));
        let level = if chosen { Level::Warning } else { Level::Note };
        Finding::new(level, GROUP, "space", found, advice)
    } else {
        Finding::ok(GROUP, "space", has)
    }];
    match free_files {
        Some(0) => findings.push(Finding::new(
            Level::Error,
            GROUP,
            "inodes",
            "the file system of the root can make no more files",
            format!("remove small files there (df -i {about}), or make it with more inodes"),
        )),
        Some(few) if few < FEW_FILES => findings.push(Finding::new(
            Level::Warning,
            GROUP,
            "inodes",
            format!("the file system of the root can make {few} more files only"),
            format!("remove small files there (df -i {about}), or make it with more inodes"),
        )),
        Some(many) => findings.push(Finding::ok(GROUP, "inodes", format!("{many} more files can be made"))),
        None => findings.push(Finding::ok(GROUP, "inodes", "the file system has no limit of files")),
    }
    findings
}

/// A file system that a store should not lie on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Unfit {
    name: &'static str,
    why: &'static str,
    level: Level,
}

/// By the number that statfs(2) has for it.
const fn unfit(magic: u64) -> Option<Unfit> {
    Some(match magic {
        0x0102_1994 => Unfit {
            name: "tmpfs",
            why: "takes memory, and is gone after a restart of the machine",
            level: Level::Warning,
        },
        0x8584_58f6 => Unfit {
            name: "ramfs",
            why: "takes memory without a limit, and is gone after a restart of the machine",
            level: Level::Warning,
        },
        0x6969 => Unfit {
            name: "NFS",
            why: "locks and syncs as its server pleases, and hangs with it",
            level: Level::Warning,
        },
        0xff53_4d42 | 0xfe53_4d42 | 0x517b => Unfit {
            name: "SMB",
            why: "has neither the locks nor the renames that a store needs",
            level: Level::Warning,
        },
        0x794c_7630 => Unfit {
            name: "overlay",
            why: "is a container's own layer, and gone with the container",
            level: Level::Warning,
        },
        0x0102_1997 => {
            Unfit { name: "9p", why: "is another machine's file system, slow for small files", level: Level::Note }
        }
        0x6573_5546 => Unfit {
            name: "FUSE",
            why: "is a program's: whether it keeps what it was told to sync, only that knows",
            level: Level::Note,
        },
        _ => return None,
    })
}

fn file_system(about: &str, path: &Path) -> Option<Finding> {
    let stat = rustix::fs::statfs(path).ok()?;
    // Its sign depends on the machine.
    #[allow(clippy::cast_sign_loss, clippy::unnecessary_cast, reason = "a bit pattern, compared as one")]
    let magic = stat.f_type as u64 & 0xffff_ffff;
    let Unfit { name, why, level } = unfit(magic)?;
    let advice = "lay the root on a local disk (ext4, xfs, btrfs); in a container, on a volume";
    Some(Finding::new(level, GROUP, about, format!("lies on {name}, which {why}"), advice))
}

/// What the kernel, or what stands before it, lets a program do.
fn kernel(path: &Path) -> Vec<Finding> {
    let mut findings = Vec::new();
    findings.push(if has_openat2(path) {
        Finding::ok(GROUP, "openat2", "paths are resolved by the kernel")
    } else {
        let advice = "use Linux 5.6 or later, and a container runtime whose filter of system calls knows openat2";
        Finding::new(Level::Note, GROUP, "openat2", "is not there: each look-up takes several calls", advice)
    });
    let asked = File::open("/proc/self/exe").and_then(|file| Mapping::new(Arc::new(file), 0..1)?.can_be_asked());
    findings.push(match asked {
        Ok(()) => Finding::ok(GROUP, "mincore", "the kernel says what is in memory, and can send it"),
        Err(error) => {
            let advice = "allow mincore in the filter of system calls (SystemCallFilter=, seccomp profile)";
            let found = format!("is refused ({error}): files are copied instead of sent by the kernel");
            Finding::new(Level::Warning, GROUP, "mincore", found, advice)
        }
    });
    findings
}

/// Whether the clock can be right, as far as can be told without asking anybody.
fn clock(root: &Path, now: SystemTime) -> Finding {
    let advice = "set the clock, and keep it set (timedatectl set-ntp true): tokens and certificates depend on it";
    if now < UNIX_EPOCH + Duration::from_secs(NEVER_SET.into()) {
        return Finding::new(Level::Error, GROUP, "clock", "was never set", advice);
    }
    let written = WRITTEN.iter().filter_map(|name| fs::metadata(root.join(name)).ok()?.modified().ok()).max();
    match written.and_then(|written| written.duration_since(now).ok()).filter(|ahead| *ahead > AHEAD) {
        Some(ahead) => {
            let found = format!(
                "something in the root was written {} s from now: the clock has gone back, or was ahead",
                ahead.as_secs()
            );
            Finding::new(Level::Warning, GROUP, "clock", found, advice)
        }
        None => Finding::ok(GROUP, "clock", "later than all that was written in the root"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn levels(findings: &[Finding]) -> Vec<Level> {
        findings.iter().map(|finding| finding.level).collect()
    }

    #[test]
    fn space_is_judged_by_what_can_be_reached() {
        let room = Room { total: 100 * GIB, free: 60 * GIB, capacity: 50 * GIB, floor: 5 * GIB, free_files: None };
        for (what, room, stored, level) in [
            ("enough", room, Some(0), Level::Ok),
            ("full of its own", Room { free: 6 * GIB, ..room }, Some(49 * GIB), Level::Ok),
            ("full of others'", Room { free: 6 * GIB, ..room }, Some(0), Level::Warning),
            ("nobody knows whose", Room { free: 6 * GIB, ..room }, None, Level::Ok),
            ("below the floor", Room { free: GIB, ..room }, Some(49 * GIB), Level::Error),
            ("nothing at all", Room { free: 0, ..room }, None, Level::Error),
            ("no capacity", Room { capacity: 0, ..room }, None, Level::Error),
        ] {
            let findings = space("/r", room, stored, true);
            assert_eq!(levels(&findings), [level, Level::Ok], "{what}: {findings:?}");
        }
        let warned = &space("/r", Room { free: 12 * GIB, ..room }, Some(3 * GIB), true)[0];
        assert!(warned.found.starts_with("the capacity cannot be reached, only 10.0 GiB"), "{warned:?}");
        assert!(warned.advice.as_deref().unwrap().ends_with("store.capacity = \"10GiB\""), "{warned:?}");
        let default = &space("/r", Room { free: 12 * GIB, ..room }, Some(3 * GIB), false)[0];
        assert_eq!(default.level, Level::Note, "nobody has asked for so much");
        let full = &space("/r", Room { free: 4 * GIB, ..room }, None, true)[0];
        assert!(full.advice.as_deref().unwrap().starts_with("free 1.0 GiB there"), "{full:?}");
        for (files, level) in [(Some(0), Level::Error), (Some(9_999), Level::Warning), (Some(10_000), Level::Ok)] {
            assert_eq!(space("/r", Room { free_files: files, ..room }, None, true)[1].level, level);
        }
    }

    #[test]
    fn file_systems_that_are_none_for_a_store() {
        for (magic, name) in [
            (0x0102_1994, "tmpfs"),
            (0x6969, "NFS"),
            (0x794c_7630, "overlay"),
            (0xfe53_4d42, "SMB"),
            (0x6573_5546, "FUSE"),
        ] {
            assert_eq!(unfit(magic).map(|unfit| unfit.name), Some(name));
        }
        for magic in [0xef53, 0x5846_5342, 0x9123_683e] {
            assert_eq!(unfit(magic), None, "ext4, xfs, btrfs");
        }
        // On every Linux with /dev/shm.
        if Path::new("/dev/shm").is_dir() {
            let found = file_system("/dev/shm", Path::new("/dev/shm")).expect("a tmpfs");
            assert!(found.level == Level::Warning && found.found.contains("tmpfs"), "{found:?}");
        }
    }

    #[test]
    fn a_clock_that_went_back_is_seen_by_what_was_written() {
        let root = tempfile::tempdir().unwrap();
        let now = crate::clock::twin::wall();
        let at = |now| clock(root.path(), now).level;
        assert_eq!(at(now), Level::Ok, "an empty root says nothing");
        fs::write(root.path().join("lock"), "").unwrap();
        assert_eq!(at(now), Level::Ok);
        assert_eq!(at(now - Duration::from_hours(1)), Level::Warning);
        assert_eq!(at(UNIX_EPOCH), Level::Error);
    }

    #[test]
    fn this_kernel_is_asked() {
        let root = tempfile::tempdir().unwrap();
        let findings = kernel(root.path());
        assert_eq!(findings.iter().map(|finding| finding.about.as_str()).collect::<Vec<_>>(), ["openat2", "mincore"]);
        assert_eq!(has_openat2(root.path()), findings[0].level == Level::Ok);
    }
}
