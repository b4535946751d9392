//! What a command knows of a daemon and its store: the configuration; or, where that has a mistake, only where they are.
//!
//! A daemon runs on by what it has read, whatever becomes of its file meanwhile, and whoever looks after it needs it then.

use std::io::Write as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::config::{Config, ConfigError, Flags};
use crate::server::admin_socket_path;

/// What is known.
#[derive(Debug, Clone)]
pub(super) struct Known {
    pub(super) config: Config,
    /// What is wrong with the configuration. Then nothing but the place of root and admin socket is of use: a store that is
    /// opened without its pins and its capacity loses what they keep.
    pub(super) mistake: Option<String>,
}

/// Where the root has to be named if the file does not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// By flag or environment.
    Named,
    /// So, or there is a socket at the usual place.
    NamedOrUsual,
}

/// Whether the warning has been given; some commands ask several times.
static WARNED: AtomicBool = AtomicBool::new(false);

/// The configuration; with a mistake in it, as much as flags and environment say.
///
/// # Errors
/// The file cannot be read, or has a mistake, and nothing else says where the daemon is.
pub(super) fn load(file: Option<&Path>, root: Option<&Path>, place: Place) -> Result<Known, ConfigError> {
    let flags = Flags { config: file.map(Into::into), root: root.map(Into::into), ..Flags::default() };
    let env = |name: &str| std::env::var(name).ok();
    let error = match Config::load(&flags, env) {
        Ok(config) => return Ok(Known { config, mistake: None }),
        // Whoever names a file that is not there has mistyped its name.
        Err(error @ ConfigError::Read { .. }) => return Err(error),
        Err(error) => error,
    };
    let (config, is_named) = Config::without_file(&flags, env)?;
    if !is_named && (place == Place::Named || !admin_socket_path(&config).exists()) {
        return Err(error);
    }
    let mistake = error.to_string();
    if !WARNED.swap(true, Ordering::Relaxed) {
        let root = config.root.display();
        let warning = "the configuration has a mistake, so nothing is known but where to ask the daemon of";
        // If standard error is closed, the answer has to do.
        let _ = writeln!(std::io::stderr(), "ocistern: warning: {warning} {root}:\n{mistake}");
    }
    Ok(Known { config, mistake: Some(mistake) })
}
