//! `ocistern pin` and `ocistern unpin`: names whose content is never evicted.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use http::Method;

use super::list;
use super::store::{Ask, StoreFlags, Trouble};
use super::table::table;
use super::{FAILED, complain, say};
use crate::http::admin::{Images, PinNames, Pinning, Pins};

/// What `pin` is told.
#[derive(Debug, clap::Args)]
pub(super) struct PinArguments {
    /// Which names.
    #[arg(
        value_name = "NAME",
        help = "Names to keep: UPSTREAM/REPOSITORY for all tags, or with :TAG or @DIGEST; * within a part of the name, ** across; without any, the pins are listed"
    )]
    names: Vec<String>,
    /// Which further names.
    #[arg(long, value_name = "LIST", help = LIST)]
    file: Vec<PathBuf>,
    #[command(flatten)]
    store: StoreFlags,
}

/// What `unpin` is told.
#[derive(Debug, clap::Args)]
pub(super) struct UnpinArguments {
    /// Which pins.
    #[arg(
        required_unless_present = "file",
        value_name = "NAME",
        help = "Pins to remove, as `ocistern pin` lists them"
    )]
    names: Vec<String>,
    /// Which further ones.
    #[arg(long, value_name = "LIST", help = LIST)]
    file: Vec<PathBuf>,
    #[command(flatten)]
    store: StoreFlags,
}

const LIST: &str = "Also the images of this list: a name a line, # before a comment; - is standard input";

/// Makes pins, or lists them.
pub(super) fn pin(arguments: &PinArguments) -> Result<ExitCode, Trouble> {
    let names = all(&arguments.names, &arguments.file)?;
    if !names.is_empty() {
        let pinning = change(Method::POST, names, &arguments.store)?;
        let (Pinning { changed, unchanged }, json) = pinning;
        if arguments.store.json {
            return Ok(say(&json));
        }
        let mut text = lines("pinned", &changed) + &lines("pinned already:", &unchanged);
        // Of a long list that would be a question for each.
        for name in changed.iter().filter(|_| arguments.file.is_empty()) {
            if is_of_nothing(name, &arguments.store)? {
                let _ = writeln!(
                    text,
                    "nothing in the store is called {name} yet: what is pulled by that name will be kept"
                );
            }
        }
        return Ok(say(&text));
    }
    let answer = Ask::new("pin", Method::GET, "/api/v1/pins").send(&arguments.store)?;
    if arguments.store.json {
        return Ok(say(&answer.json()));
    }
    let pins: Pins = answer.read()?;
    let rows: Vec<_> = pins
        .pins
        .iter()
        .map(|pin| vec![pin.name.clone(), if pin.configured { "configuration" } else { "command" }.to_owned()])
        .collect();
    Ok(say(&if rows.is_empty() { "nothing is pinned\n".to_owned() } else { table(&["NAME", "BY"], &[], &rows) }))
}

/// Whether no image has such a name, as far as that is told by names: a digest may be that of a part.
fn is_of_nothing(name: &str, store: &StoreFlags) -> Result<bool, Trouble> {
    if name.contains('@') {
        return Ok(false);
    }
    let answer = Ask::new("pin", Method::GET, "/api/v1/images").with("pattern", name).send(store)?;
    Ok(answer.read::<Images>()?.images.is_empty())
}

/// Removes pins; fails if there is none of that name.
pub(super) fn unpin(arguments: &UnpinArguments) -> Result<ExitCode, Trouble> {
    let names = all(&arguments.names, &arguments.file)?;
    let (pinning, json) = change(Method::DELETE, names, &arguments.store)?;
    let code = say(&if arguments.store.json { json } else { lines("unpinned", &pinning.changed) });
    if pinning.unchanged.is_empty() {
        return Ok(code);
    }
    let missing = pinning.unchanged.join(", ");
    Ok(complain(
        FAILED,
        format_args!("no pin by command is called {missing}; those of the configuration stand in its [[pin]]"),
    ))
}

/// Those of the command line, and those of lists.
fn all(names: &[String], lists: &[PathBuf]) -> Result<Vec<String>, Trouble> {
    let mut all = names.to_vec();
    for file in lists {
        let listed = list::read(file).map_err(|error| Trouble::Usage(error.to_string()))?;
        if listed.is_empty() {
            return Err(Trouble::Usage(format!("{}: there is no name in this list", file.display())));
        }
        all.extend(listed.into_iter().map(|listed| listed.name));
    }
    Ok(all)
}

fn change(method: Method, names: Vec<String>, store: &StoreFlags) -> Result<(Pinning, String), Trouble> {
    let command = if method == Method::POST { "pin" } else { "unpin" };
    let answer = Ask::new(command, method, "/api/v1/pins").with_json(&PinNames { names })?.send(store)?;
    Ok((answer.read()?, answer.json()))
}

fn lines(verb: &str, names: &[String]) -> String {
    names.iter().fold(String::new(), |text, name| text + verb + " " + name + "\n")
}
