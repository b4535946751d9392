//! Where the files of each client are: `setup` writes there, and `doctor` looks there.

use std::path::{Path, PathBuf};

/// Whose configuration: the machine's, or a user's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::cli) enum Whose {
    /// The machine's: below /etc.
    Machine,
    /// That of a user who is not root, and runs the rootless variants.
    User {
        /// `$HOME`.
        home: PathBuf,
        /// `$XDG_CONFIG_HOME`, else `.config` in it.
        config: PathBuf,
    },
}

// === impl Whose ===

impl Whose {
    /// This user's, where it is known whose home is meant. What is not absolute counts as not set.
    pub(in crate::cli) fn of_user(env: impl Fn(&str) -> Option<String>) -> Option<Self> {
        let absolute = |name| env(name).map(PathBuf::from).filter(|path: &PathBuf| path.is_absolute());
        let home = absolute("HOME")?;
        let config = absolute("XDG_CONFIG_HOME").unwrap_or_else(|| home.join(".config"));
        Some(Self::User { home, config })
    }

    /// dockerd's.
    pub(in crate::cli) fn docker(&self) -> PathBuf {
        self.below("docker")
    }

    /// containerd's.
    pub(in crate::cli) fn containerd(&self) -> PathBuf {
        self.below("containerd")
    }

    /// buildkitd's.
    pub(in crate::cli) fn buildkit(&self) -> PathBuf {
        self.below("buildkit")
    }

    /// Those of podman, buildah, skopeo and CRI-O. A user's do not move with `$XDG_CONFIG_HOME`.
    pub(in crate::cli) fn containers(&self) -> PathBuf {
        match self {
            Self::Machine => "/etc/containers".into(),
            Self::User { home, .. } => home.join(".config/containers"),
        }
    }

    /// k3s', which runs as root.
    pub(in crate::cli) fn k3s(&self) -> Option<PathBuf> {
        (*self == Self::Machine).then(|| "/etc/rancher/k3s".into())
    }

    fn below(&self, name: &str) -> PathBuf {
        match self {
            Self::Machine => Path::new("/etc").join(name),
            Self::User { config, .. } => config.join(name),
        }
    }
}
