//! What to type where the store belongs to another user: the command again, as that user.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Where systemd keeps the caches of users that exist only while their service runs; nobody but root may go there.
const PRIVATE: &str = "/var/cache/private";

/// Where the base directories of a user are that do not follow from its home.
const BASES: [&str; 2] = ["XDG_CONFIG_HOME", "XDG_CACHE_HOME"];

/// Somebody's store.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Foreign {
    /// Its root, as the command was told.
    root: PathBuf,
    owner: u32,
    group: u32,
    /// The owner's name, where it has one.
    name: Option<String>,
    /// The owner's home, where there is such a directory.
    home: Option<PathBuf>,
    /// Variables of who types it that lead away from that home.
    away: Vec<&'static str>,
    /// The name of its directory in [`PRIVATE`], if it is there.
    dynamic: Option<String>,
}

/// Who the owner of the root is, and the command line to type instead of this process's own.
pub(super) async fn advice(root: &Path, by_root: bool, arguments: &[String]) -> String {
    match Foreign::find(root).await {
        Ok(foreign) => foreign.advice(by_root, arguments),
        Err(error) => format!("run this command as the user that {} belongs to ({error})", root.display()),
    }
}

/// The command line to type instead of this process's own where root is let in.
pub(super) fn by_root(arguments: &[String]) -> String {
    let line: Vec<String> = arguments.iter().map(|argument| quoted(argument)).collect();
    format!("sudo {}", line.join(" "))
}

// === impl Foreign ===

impl Foreign {
    async fn find(root: &Path) -> std::io::Result<Self> {
        let metadata = tokio::fs::metadata(root).await?;
        let real = tokio::fs::canonicalize(root).await?;
        let dynamic = real.strip_prefix(PRIVATE).ok().map(|below| below.display().to_string());
        let users = tokio::fs::read_to_string("/etc/passwd").await.unwrap_or_default();
        let (name, home) = entry_of(&users, metadata.uid()).unzip();
        let home = match home {
            Some(home) if is_home(&home).await => Some(home),
            _ => None,
        };
        let away = BASES.into_iter().filter(|name| std::env::var_os(name).is_some()).collect();
        Ok(Self { root: root.to_owned(), owner: metadata.uid(), group: metadata.gid(), name, home, away, dynamic })
    }

    fn advice(&self, by_root: bool, arguments: &[String]) -> String {
        let sudo = if by_root { "" } else { "sudo " };
        let mut line: Vec<String> = arguments.iter().map(|argument| quoted(argument)).collect();
        // What follows `--` is no flag, whatever it begins with.
        let end = arguments.iter().position(|argument| argument == "--").unwrap_or(arguments.len());
        let mut flags = arguments.iter().take(end);
        if !flags.any(|argument| argument == "--root" || argument.starts_with("--root=")) {
            line.splice(end..end, ["--root".to_owned(), quoted(&self.root.display().to_string())]);
        }
        let line = line.join(" ");
        if let Some(directory) = &self.dynamic {
            // The directory changes its owner with each start, so that no user can be named.
            return format!(
                "that user exists only while its service runs: type `{sudo}systemctl start ocistern` and then this command \
                 again (as root), or to leave the service stopped `{sudo}systemd-run --pipe --wait --collect \
                 -p DynamicUser=yes -p User=ocistern -p CacheDirectory={} -p CacheDirectoryMode=0700 -- {line}`",
                quoted(directory)
            );
        }
        // A configuration is looked for at home: that of the owner has the pins and the capacity of the store, and that of
        // who types it is not that user's to read.
        let home = self.home.as_deref().unwrap_or(Path::new("/"));
        let away: String = self.away.iter().flat_map(|name| ["-u ", name, " "]).collect();
        let env = format!("env {away}HOME={}", quoted(&home.display().to_string()));
        let alias = match (&self.name, by_root) {
            (Some(name), true) => format!("runuser -u {} -- {env} ", quoted(name)),
            (Some(name), false) => format!("sudo -u {} {env} ", quoted(name)),
            (None, _) => {
                format!("{sudo}setpriv --reuid={} --regid={} --clear-groups {env} ", self.owner, self.group)
            }
        };
        format!("type `{alias}{line}`")
    }
}

/// The name of a user and its home, in the text of `/etc/passwd`.
fn entry_of(users: &str, wanted: u32) -> Option<(String, PathBuf)> {
    users.lines().find_map(|line| {
        let mut fields = line.split(':');
        let (name, id) = (fields.next()?, fields.nth(1)?);
        (id.parse() == Ok(wanted)).then(|| (name.to_owned(), fields.nth(2).unwrap_or_default().into()))
    })
}

/// Whether there is such a directory, as far as this user can see: many system users have a home that nobody has made.
async fn is_home(home: &Path) -> bool {
    use std::io::ErrorKind::PermissionDenied;
    home.is_absolute()
        && match tokio::fs::metadata(home).await {
            Ok(metadata) => metadata.is_dir(),
            Err(error) => error.kind() == PermissionDenied,
        }
}

/// As a shell takes it for one word.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-./:=@%+,".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn foreign(name: Option<&str>, dynamic: Option<&str>) -> Foreign {
        let dynamic = dynamic.map(str::to_owned);
        let (root, name) = ("/srv/it's".into(), name.map(str::to_owned));
        Foreign { root, owner: 1001, group: 100, name, home: None, away: Vec::new(), dynamic }
    }

    fn line(words: &[&str]) -> Vec<String> {
        words.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_command_is_written_out() {
        let words = line(&["ocistern", "ls", "docker.io/**"]);
        for (name, by_root, expected) in [
            (None, true, "`setpriv --reuid=1001 --regid=100 --clear-groups env HOME=/ ocistern ls"),
            (None, false, "`sudo setpriv --reuid=1001 --regid=100 --clear-groups env HOME=/ ocistern ls"),
            (Some("cache"), true, "`runuser -u cache -- env HOME=/ ocistern ls"),
            (Some("cache"), false, "`sudo -u cache env HOME=/ ocistern ls"),
        ] {
            let advice = foreign(name, None).advice(by_root, &words);
            assert_eq!(advice, format!("type {expected} 'docker.io/**' --root '/srv/it'\\''s'`"));
        }
        let words = line(&["ocistern", "ls", "--root", "/other"]);
        assert!(foreign(None, None).advice(true, &words).ends_with("ocistern ls --root /other`"), "not twice");
    }

    #[tokio::test]
    async fn the_owners_configuration_is_read() {
        let existing = tempfile::tempdir().unwrap();
        assert!(is_home(existing.path()).await);
        for none in ["", "home", "/nonexistent", "/dev/null"] {
            assert!(!is_home(Path::new(none)).await, "{none}");
        }
        let at_home = Foreign { home: Some("/home/it's".into()), ..foreign(Some("cache"), None) };
        let words = line(&["ocistern", "ls"]);
        for (by_root, away, expected) in [
            (true, Vec::new(), r"runuser -u cache -- env HOME='/home/it'\''s' ocistern ls "),
            (false, Vec::new(), r"sudo -u cache env HOME='/home/it'\''s' ocistern ls "),
            (true, BASES.to_vec(), r"env -u XDG_CONFIG_HOME -u XDG_CACHE_HOME HOME='/home/it'\''s' ocistern ls "),
        ] {
            let advice = Foreign { away, ..at_home.clone() }.advice(by_root, &words);
            assert!(advice.contains(expected), "{advice}");
        }
    }

    #[test]
    fn flags_stand_before_what_is_none() {
        for (words, expected) in [
            (&["ocistern", "rm", "--", "docker.io/**"][..], "ocistern rm --root '/srv/it'\\''s' -- 'docker.io/**'`"),
            (&["ocistern", "rm", "--", "--root", "--"], "ocistern rm --root '/srv/it'\\''s' -- --root --`"),
            (&["ocistern", "rm", "--root=/other", "--", "a"], "ocistern rm --root=/other -- a`"),
        ] {
            let advice = foreign(Some("cache"), None).advice(true, &line(words));
            assert!(advice.ends_with(expected), "{advice}");
        }
    }

    #[test]
    fn root_types_the_same() {
        assert_eq!(by_root(&line(&["ocistern", "rm", "ghcr.io/**"])), "sudo ocistern rm 'ghcr.io/**'");
    }

    #[test]
    fn a_user_of_systemd_is_not_named() {
        let advice = foreign(None, Some("ocistern")).advice(true, &line(&["ocistern", "gc"]));
        assert!(advice.contains("`systemctl start ocistern`"), "{advice}");
        assert!(advice.contains("-p CacheDirectory=ocistern -p CacheDirectoryMode=0700 -- ocistern gc"), "{advice}");
        assert!(!advice.contains("1001"), "{advice}");
    }

    #[test]
    fn names_of_users() {
        let users = "root:x:0:0:root:/root:/bin/sh\nbroken\ncache:x:1001:1001::/srv/cache:/bin/false\nodd:x:1003\n";
        assert_eq!(entry_of(users, 1001), Some(("cache".to_owned(), "/srv/cache".into())));
        assert_eq!(entry_of(users, 1002), None);
        assert_eq!(entry_of(users, 1003), Some(("odd".to_owned(), PathBuf::new())), "a line that is cut off");
    }
}
