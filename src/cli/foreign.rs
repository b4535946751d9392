//! What to type where the store belongs to another user: the command again, as that user.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Where systemd keeps the caches of users that exist only while their service runs; nobody but root may go there.
const PRIVATE: &str = "/var/cache/private";

/// Somebody's store.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Foreign {
    /// Its root, as the command was told.
    root: PathBuf,
    owner: u32,
    group: u32,
    /// The owner's name, where it has one.
    name: Option<String>,
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
        let name = name_of(&users, metadata.uid());
        Ok(Self { root: root.to_owned(), owner: metadata.uid(), group: metadata.gid(), name, dynamic })
    }

    fn advice(&self, by_root: bool, arguments: &[String]) -> String {
        let sudo = if by_root { "" } else { "sudo " };
        let mut line: Vec<String> = arguments.iter().map(|argument| quoted(argument)).collect();
        if !arguments.iter().any(|argument| argument == "--root" || argument.starts_with("--root=")) {
            line.extend(["--root".to_owned(), quoted(&self.root.display().to_string())]);
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
        // The home of who types it is not that user's to read, and a configuration is looked for there.
        let alias = match (&self.name, by_root) {
            (Some(name), true) => format!("runuser -u {} -- env HOME=/ ", quoted(name)),
            (Some(name), false) => format!("sudo -u {} env HOME=/ ", quoted(name)),
            (None, _) => {
                format!("{sudo}setpriv --reuid={} --regid={} --clear-groups env HOME=/ ", self.owner, self.group)
            }
        };
        format!("type `{alias}{line}`")
    }
}

/// The name of a user in the text of `/etc/passwd`.
fn name_of(users: &str, wanted: u32) -> Option<String> {
    users.lines().find_map(|line| {
        let mut fields = line.split(':');
        let (name, id) = (fields.next()?, fields.nth(1)?);
        (id.parse() == Ok(wanted)).then(|| name.to_owned())
    })
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
        Foreign { root: "/srv/it's".into(), owner: 1001, group: 100, name: name.map(str::to_owned), dynamic }
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
        let users = "root:x:0:0:root:/root:/bin/sh\nbroken\ncache:x:1001:1001::/:/bin/false\n";
        assert_eq!(name_of(users, 1001).as_deref(), Some("cache"));
        assert_eq!(name_of(users, 1002), None);
    }
}
