//! What `serve` is told on the command line, before it is joined with the environment and the file.

use std::path::PathBuf;

/// The options of `serve` that the file knows too; commands that act on a store take the first two.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Flags {
    /// Configuration file [default: the first of $OCISTERN_CONFIG, $XDG_CONFIG_HOME/ocistern/config.toml,
    /// /etc/ocistern/config.toml]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Directory of the store [default: ocistern in the cache directory; env: OCISTERN_ROOT]
    #[arg(long, value_name = "DIR")]
    pub root: Option<PathBuf>,
    /// Address to serve clients on, IP:PORT or unix:/path; can be repeated
    /// [default: 127.0.0.1:5000 and [::1]:5000; env: OCISTERN_LISTEN, divided by commas]
    #[arg(long, value_name = "ADDR")]
    pub listen: Vec<String>,
    /// Address of metrics and health, or "off" [default: 127.0.0.1:5080; env: OCISTERN_ADMIN_LISTEN]
    #[arg(long, value_name = "ADDR")]
    pub admin_listen: Option<String>,
    /// Registry to cache: URL makes it the one that names without a host mean, NAME=URL adds one called NAME; can be
    /// repeated [env: OCISTERN_UPSTREAM, divided by commas]
    #[arg(long, value_name = "[NAME=]URL")]
    pub upstream: Vec<String>,
    /// Never ask any upstream; serve what is in the store [env: OCISTERN_SEALED]
    #[arg(long)]
    pub sealed: bool,
}
