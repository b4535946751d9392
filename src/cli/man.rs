//! `ocistern man`: manual pages, one for each command.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::builder::Resettable;
use clap::{Command, CommandFactory};
use clap_mangen::Man;

use super::{Cli, FAILED, complain, pages, say};

/// What `man` is told.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Where to.
    #[arg(
        long,
        value_name = "DIR",
        help = "Write the pages of all commands as files into this directory, which is made [default: print that of the program]"
    )]
    directory: Option<PathBuf>,
}

/// A page as its file's name and text.
type Page = (String, Vec<u8>);

/// Prints one page, or writes all.
pub(super) fn run(arguments: &Arguments) -> ExitCode {
    let pages = match all() {
        Ok(pages) => pages,
        Err(error) => return complain(FAILED, error),
    };
    let Some(directory) = &arguments.directory else {
        let first = pages.first().map(|(_, text)| String::from_utf8_lossy(text)).unwrap_or_default();
        return say(&first);
    };
    match write(&pages, directory) {
        Ok(()) => ExitCode::SUCCESS,
        Err((path, error)) => complain(FAILED, format_args!("{}: {error}", path.display())),
    }
}

/// All pages, that of the program first.
fn all() -> std::io::Result<Vec<Page>> {
    // Otherwise each command would have a page for its `help`.
    let mut command = Cli::command().disable_help_subcommand(true);
    command.build();
    let mut pages = Vec::new();
    collect(&command, &mut pages)?;
    Ok(pages)
}

fn collect(command: &Command, found: &mut Vec<Page>) -> std::io::Result<()> {
    // What stands below the flags has sections of its own here, and not one called "extra".
    let manual = Man::new(command.clone().after_help(Resettable::Reset)).manual("ocistern");
    let mut text = Vec::new();
    manual.render(&mut text)?;
    let (name, text) = (manual.get_filename(), String::from_utf8_lossy(&text).into_owned());
    let end = text.find(".SH VERSION").unwrap_or(text.len());
    let (before, version) = text.split_at(end);
    let sections = pages::manual(pages::of_page(name.trim_end_matches(".1")));
    found.push((name, format!("{before}{sections}{version}").into_bytes()));
    command.get_subcommands().filter(|command| !command.is_hide_set()).try_for_each(|command| collect(command, found))
}

fn write(pages: &[Page], directory: &Path) -> Result<(), (PathBuf, std::io::Error)> {
    std::fs::create_dir_all(directory).map_err(|error| (directory.to_owned(), error))?;
    for (name, text) in pages {
        let path = directory.join(name);
        std::fs::write(&path, text).map_err(|error| (path, error))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each command with the name of its page.
    fn commands(command: &Command, name: &str, found: &mut Vec<(String, Command)>) {
        found.push((name.to_owned(), command.clone()));
        for command in command.get_subcommands() {
            commands(command, &format!("{name}-{}", command.get_name()), found);
        }
    }

    #[test]
    fn every_command_has_a_page_with_each_of_its_flags() {
        let pages = all().unwrap();
        let mut expected = Vec::new();
        commands(&Cli::command(), "ocistern", &mut expected);
        let names: Vec<String> = expected.iter().map(|(name, _)| format!("{name}.1")).collect();
        assert_eq!(pages.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>(), names);
        assert!(names.contains(&"ocistern-config-show.1".to_owned()), "{names:?}");
        for ((name, text), (_, command)) in pages.iter().zip(&expected) {
            let text = String::from_utf8(text.clone()).unwrap().replace("\\-", "-");
            assert!(text.contains(&format!(".TH {} 1", name.trim_end_matches(".1"))), "{name}: {text}");
            for flag in command.get_opts().filter_map(clap::Arg::get_long) {
                assert!(text.contains(&format!("--{flag}")), "{name} is without --{flag}: {text}");
            }
            for below in command.get_subcommands() {
                assert!(text.contains(below.get_name()), "{name} is without {}", below.get_name());
            }
        }
    }

    #[test]
    fn pages_have_the_usual_sections_once() {
        for (name, text) in &all().unwrap() {
            let text = String::from_utf8(text.clone()).unwrap();
            let mut sections = vec!["NAME", "SYNOPSIS", "VERSION"];
            match name.as_str() {
                "ocistern-config.1" => {}
                "ocistern.1" | "ocistern-serve.1" => sections.extend(["\"EXIT STATUS\"", "FILES", "EXAMPLES"]),
                "ocistern-completions.1" | "ocistern-man.1" => sections.push("EXAMPLES"),
                _ => sections.extend(["\"EXIT STATUS\"", "EXAMPLES"]),
            }
            for section in sections {
                let found = text.matches(&format!("\n.SH {section}\n")).count();
                let quoted = text.matches(&format!("\n.SH \"{section}\"\n")).count();
                assert_eq!(found + quoted, 1, "{name}: {section}: {text}");
            }
            assert!(!text.contains(".SH EXTRA"), "{text}");
        }
    }

    #[test]
    fn pages_become_files() {
        let directory = tempfile::tempdir().unwrap();
        let below = directory.path().join("share/man1");
        run(&Arguments { directory: Some(below.clone()) });
        let verify = std::fs::read_to_string(below.join("ocistern-verify.1")).unwrap();
        assert!(verify.contains("repair"), "{verify}");
        std::fs::write(directory.path().join("file"), "").unwrap();
        let (path, _) = write(&all().unwrap(), &directory.path().join("file")).unwrap_err();
        assert!(path.ends_with("file"));
    }
}
