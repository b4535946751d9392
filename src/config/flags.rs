//! What `serve` is told on the command line, before it is joined with the environment and the file.

use std::path::PathBuf;

/// The options of `serve` that the file knows too. The first two are also those of commands that act on a store.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Flags {
    /// The configuration file, which must exist.
    #[arg(
        long,
        value_name = "FILE",
        help = "Configuration file [default: the first of $OCISTERN_CONFIG, $XDG_CONFIG_HOME/ocistern/config.toml, /etc/ocistern/config.toml]"
    )]
    pub config: Option<PathBuf>,
    /// The directory of the store.
    #[arg(
        long,
        value_name = "DIR",
        help = "Directory of the store [env: OCISTERN_ROOT] [default: ocistern in the user's cache directory]"
    )]
    pub root: Option<PathBuf>,
    /// Addresses to serve clients on; they replace those of environment and file.
    #[arg(
        long,
        value_name = "ADDR",
        help = "Address to serve clients on, IP:PORT or unix:/path; can be repeated [env: OCISTERN_LISTEN, divided by commas] [default: 127.0.0.1:5000 and [::1]:5000]"
    )]
    pub listen: Vec<String>,
    /// Address of the admin listener, or `off`.
    #[arg(
        long,
        value_name = "ADDR",
        help = "Address of metrics and health, or \"off\" [env: OCISTERN_ADMIN_LISTEN] [default: 127.0.0.1:5080]"
    )]
    pub admin_listen: Option<String>,
    /// Upstreams to add, or to point elsewhere.
    #[arg(
        long,
        value_name = "[NAME=]URL",
        help = "Registry to cache; can be repeated: URL makes it the one that names without a registry mean, called by its host (HOST-PORT where it has a port), NAME=URL adds one called NAME [env: OCISTERN_UPSTREAM, divided by commas]"
    )]
    pub upstream: Vec<String>,
    /// Whether all upstreams are sealed.
    #[arg(long, help = "Never ask any upstream; serve what is in the store [env: OCISTERN_SEALED]")]
    pub sealed: bool,
}
