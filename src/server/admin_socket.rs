//! Where the admin socket is: in the root, or in the runtime directory if that path is too long for a socket.

use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::config::Config;
use crate::oci::{Algorithm, Digest};

/// Longest path that fits `sockaddr_un`, without its final zero.
const MAX_PATH: usize = 107;
/// The socket's name in the root.
const NAME: &str = "ocistern.sock";

/// The path of the admin socket. Several roots whose paths are too long have different ones in the runtime directory.
pub fn admin_socket_path(config: &Config) -> PathBuf {
    choose(config.admin.socket.as_deref(), &config.root, |name| std::env::var_os(name).map(PathBuf::from))
}

fn choose(configured: Option<&Path>, root: &Path, env: impl Fn(&str) -> Option<PathBuf>) -> PathBuf {
    if let Some(path) = configured {
        return path.to_owned();
    }
    let in_root = root.join(NAME);
    if in_root.as_os_str().len() <= MAX_PATH {
        return in_root;
    }
    let runtime = env("RUNTIME_DIRECTORY").or_else(|| env("XDG_RUNTIME_DIR")).filter(|path| path.is_absolute());
    let directory = runtime.unwrap_or_else(private_directory);
    let of_root = Digest::of(Algorithm::Sha256, root.as_os_str().as_encoded_bytes()).hex();
    let short: String = of_root.chars().take(16).collect();
    directory.join(format!("ocistern-{short}.sock"))
}

fn private_directory() -> PathBuf {
    PathBuf::from(format!("/tmp/ocistern-{}", rustix::process::geteuid().as_raw()))
}

/// Makes the directory of a socket path that this module chose, where nobody else has made it: in `/tmp` anyone could
/// have, and would then own the socket's place.
pub(super) fn prepare(path: &Path) -> io::Result<()> {
    let directory = private_directory();
    if path.parent() != Some(&directory) {
        return Ok(());
    }
    match std::fs::DirBuilder::new().mode(0o700).create(&directory) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let metadata = std::fs::symlink_metadata(&directory)?;
    let ours = metadata.is_dir() && metadata.uid() == rustix::process::geteuid().as_raw();
    if ours && metadata.mode() & 0o777 == 0o700 {
        Ok(())
    } else {
        let message = format!("{} is not this user's alone; set admin.socket", directory.display());
        Err(io::Error::new(io::ErrorKind::PermissionDenied, message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_that_is_too_long_moves_to_the_runtime_directory() {
        let env = |name: &str| (name == "XDG_RUNTIME_DIR").then(|| PathBuf::from("/run/user/1"));
        assert_eq!(choose(None, Path::new("/r"), env), Path::new("/r/ocistern.sock"));
        assert_eq!(choose(Some(Path::new("/a.sock")), Path::new("/r"), env), Path::new("/a.sock"));
        let long = |last: char| PathBuf::from(format!("/{}{last}", "x".repeat(120)));
        let (one, other) = (choose(None, &long('a'), env), choose(None, &long('b'), env));
        assert!(one.starts_with("/run/user/1") && one.as_os_str().len() <= MAX_PATH, "{}", one.display());
        assert_ne!(one, other);
        let fallback = choose(None, &long('a'), |_| None);
        assert_eq!(fallback.parent(), Some(private_directory().as_path()));
        let edge = PathBuf::from(format!("/{}", "x".repeat(MAX_PATH - NAME.len() - 2)));
        assert_eq!(choose(None, &edge, env), edge.join(NAME), "the longest that fits");
    }
}
