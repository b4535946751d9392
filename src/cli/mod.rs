//! The command line: what is asked, and the exit code.
//!
//! 0: done. 1: failed at run time. 64: a mistake in the command line or the configuration (`EX_USAGE`).

mod carry;
mod clients;
mod completions;
pub mod config;
mod coverage;
mod doctor;
mod du;
mod export;
mod filter;
mod foreign;
mod gc;
mod have;
mod health;
mod import;
mod known;
mod list;
mod log;
mod ls;
mod man;
mod missed;
mod named;
mod pages;
mod pin;
mod progress;
mod reload;
mod request_log;
mod rm;
mod serve;
mod setup;
mod status;
mod store;
mod table;
mod talk;
mod verify;
mod warm;
mod workloads;
mod yaml;

use std::fmt::Display;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::config::Flags;

/// Exit code of a failure at run time.
const FAILED: u8 = 1;
/// Exit code of a mistake in the command line or the configuration.
const USAGE: u8 = 64;

/// A local caching proxy for container registries
#[derive(Debug, Parser)]
#[command(version, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve registry clients
    Serve(Flags),
    /// Look at the configuration
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Bring images into the store before anybody pulls them, with all that they need; ends with 1 if one is not all there
    Warm(warm::Arguments),
    /// List what is in the store, by image
    Ls(ls::Arguments),
    /// Tell what takes the store's space, by repository
    Du(du::Arguments),
    /// Remove images from the store, and what has come of their unfinished downloads; upstream is not asked
    Rm(rm::Arguments),
    /// Keep names for ever, or list those that are kept
    Pin(pin::PinArguments),
    /// No longer keep names for ever
    Unpin(pin::UnpinArguments),
    /// Hash what is stored, and set aside what is wrong
    Verify(verify::Arguments),
    /// Remove what nothing leads to and downloads that were given up, and repair the index
    Gc(gc::Arguments),
    /// List what was asked of sealed upstreams and is not in the store, for who can bring it
    Missed(missed::Arguments),
    /// Tell what pulls of images would miss if no upstream could be asked
    Coverage(coverage::Arguments),
    /// Write images into a bundle, to be carried to another ocistern
    Export(export::Arguments),
    /// Take images out of a bundle, or another program's OCI image layout
    Import(import::Arguments),
    /// List what is stored, for who would export the rest
    Have(have::Arguments),
    /// Point clients at this ocistern, or make a private CA for it
    Setup(setup::Arguments),
    /// Show what the daemon does and saves, its upstreams and its store; ends with 1 if none serves
    Status(status::Arguments),
    /// Look for what is wrong: configuration, store, upstreams, listeners, clients of this machine
    Doctor(doctor::Arguments),
    /// Tell whether the daemon serves, for health checks
    Health(health::Arguments),
    /// Print completions for a shell
    Completions(completions::Arguments),
    /// Print the manual page, or write those of all commands
    Man(man::Arguments),
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Say whether the configuration is right, and what is wrong with it
    Check(ConfigFile),
    /// Print the effective configuration, without secrets
    Show(ConfigFile),
}

#[derive(Debug, clap::Args)]
struct ConfigFile {
    /// Configuration file
    #[arg(
        long,
        value_name = "FILE",
        help = "Configuration file [default: the first of $OCISTERN_CONFIG, $XDG_CONFIG_HOME/ocistern/config.toml, \
                /etc/ocistern/config.toml]"
    )]
    config: Option<PathBuf>,
}

/// Runs the program with the arguments and the environment of the process.
pub fn run() -> ExitCode {
    let command = pages::below_flags(Cli::command(), "ocistern");
    let cli = match command.try_get_matches().and_then(|matches| Cli::from_arg_matches(&matches)) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are such errors too, for standard output and without a fault.
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(USAGE) } else { ExitCode::SUCCESS };
        }
    };
    match cli.command {
        Command::Serve(flags) => serve::run(&flags),
        Command::Config(ConfigCommand::Check(file)) => print(config::check(file.config.as_deref())),
        Command::Config(ConfigCommand::Show(file)) => print(config::show(file.config.as_deref())),
        Command::Warm(arguments) => tell(warm::run(&arguments)),
        Command::Ls(arguments) => tell(ls::run(&arguments).map(|text| say(&text))),
        Command::Du(arguments) => tell(du::run(&arguments).map(|text| say(&text))),
        Command::Rm(arguments) => tell(rm::run(&arguments)),
        Command::Pin(arguments) => tell(pin::pin(&arguments)),
        Command::Unpin(arguments) => tell(pin::unpin(&arguments)),
        Command::Verify(arguments) => tell(verify::run(&arguments)),
        Command::Gc(arguments) => tell(gc::run(&arguments).map(|text| say(&text))),
        Command::Missed(arguments) => tell(missed::run(&arguments)),
        Command::Coverage(arguments) => tell(coverage::run(&arguments)),
        Command::Export(arguments) => tell(export::run(&arguments)),
        Command::Import(arguments) => tell(import::run(&arguments)),
        Command::Have(arguments) => tell(have::run(&arguments)),
        Command::Setup(arguments) => setup::run(&arguments),
        Command::Status(arguments) => tell(status::run(&arguments)),
        Command::Doctor(arguments) => doctor::run(&arguments),
        Command::Health(arguments) => health::run(&arguments),
        Command::Completions(arguments) => say(&completions::run(&arguments)),
        Command::Man(arguments) => man::run(&arguments),
    }
}

fn tell(outcome: Result<ExitCode, store::Trouble>) -> ExitCode {
    outcome.unwrap_or_else(|trouble| trouble.tell())
}

/// Prints a text to standard output. Whoever reads only its beginning (`head`) has what it wants.
fn say(text: &str) -> ExitCode {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            complain(FAILED, format_args!("standard output: {error}"))
        }
        _ => ExitCode::SUCCESS,
    }
}

fn print(text: Result<String, impl Display>) -> ExitCode {
    match text {
        Ok(text) => say(&text),
        Err(error) => complain(USAGE, error),
    }
}

/// Tells what is wrong, before there is a log.
fn complain(code: u8, error: impl Display) -> ExitCode {
    // If standard error is closed, the code has to do.
    let _ = writeln!(std::io::stderr(), "ocistern: {error}");
    ExitCode::from(code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn serve_takes_its_flags() {
        let line = "ocistern serve --root /r --listen 127.0.0.1:0 --listen unix:/s --admin-listen off --sealed \
                    --upstream http://localhost:5001 --upstream team=https://r.example";
        let Command::Serve(flags) = Cli::try_parse_from(line.split_whitespace()).unwrap().command else {
            panic!("not serve")
        };
        assert_eq!(flags.listen, ["127.0.0.1:0", "unix:/s"]);
        assert_eq!(flags.upstream, ["http://localhost:5001", "team=https://r.example"]);
        assert_eq!((flags.admin_listen.as_deref(), flags.sealed), (Some("off"), true));
    }
}
