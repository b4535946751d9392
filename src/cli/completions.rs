//! `ocistern completions`: what a shell needs to complete the command line, on standard output.

use clap::CommandFactory;
use clap_complete::{Shell, generate};

use super::Cli;

/// What `completions` is told.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Which shell.
    #[arg(value_name = "SHELL", help = "Shell that is to complete")]
    shell: Shell,
}

/// The text to print.
pub(super) fn run(arguments: &Arguments) -> String {
    let mut text = Vec::new();
    generate(arguments.shell, &mut Cli::command(), "ocistern", &mut text);
    String::from_utf8_lossy(&text).into_owned()
}

#[cfg(test)]
mod tests {
    use clap::{Command, ValueEnum as _};

    use super::*;

    /// Every word that can be typed after a command, with the commands in front of it.
    fn words(command: &Command, before: &str) -> Vec<(String, String)> {
        let flags = command.get_opts().chain(command.get_arguments().filter(|argument| argument.is_global_set()));
        let mut found: Vec<_> =
            flags.filter_map(clap::Arg::get_long).map(|long| (before.to_owned(), long.to_owned())).collect();
        for command in command.get_subcommands() {
            found.push((before.to_owned(), command.get_name().to_owned()));
            found.extend(words(command, &format!("{before} {}", command.get_name())));
        }
        found
    }

    #[test]
    fn every_subcommand_and_flag_is_completed_in_every_shell() {
        let words = words(&Cli::command(), "ocistern");
        assert!(words.len() > 60, "{words:?}");
        for shell in Shell::value_variants() {
            let text = run(&Arguments { shell: *shell });
            for (before, word) in &words {
                // A word that is the beginning of another one is not found in that.
                let is_there = text.match_indices(word.as_str()).any(|(at, _)| {
                    let next = text[at + word.len()..].chars().next();
                    next.is_none_or(|next| !(next.is_alphanumeric() || next == '-' || next == '_'))
                });
                assert!(is_there, "{shell}: {before} {word}");
            }
        }
    }

    #[test]
    fn flags_are_completed_after_their_own_command() {
        let fish = run(&Arguments { shell: Shell::Fish });
        let has = |command: &str, flag: &str| {
            let (after, flag) = (format!("using_subcommand {command}\""), format!("-l {flag} "));
            fish.lines().any(|line| line.contains(&after) && format!("{line} ").contains(&flag))
        };
        assert!(has("verify", "repair") && has("gc", "dry-run") && has("doctor", "no-network"), "{fish}");
        assert!(!has("ls", "repair"), "{fish}");
    }
}
