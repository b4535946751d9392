//! `ocistern pin` and `ocistern unpin`: names whose content is never evicted.

use std::process::ExitCode;

use http::Method;

use super::store::{Ask, StoreFlags, Trouble};
use super::table::table;
use super::{FAILED, complain, say};
use crate::http::admin::{Pinning, Pins};

/// What `pin` is told.
#[derive(Debug, clap::Args)]
pub(super) struct PinArguments {
    /// Which names.
    #[arg(
        value_name = "NAME",
        help = "Names to keep: UPSTREAM/REPOSITORY for all tags, or with :TAG or @DIGEST; * within a part of the name, ** across; without any, the pins are listed"
    )]
    names: Vec<String>,
    #[command(flatten)]
    store: StoreFlags,
}

/// What `unpin` is told.
#[derive(Debug, clap::Args)]
pub(super) struct UnpinArguments {
    /// Which pins.
    #[arg(required = true, value_name = "NAME", help = "Pins to remove, as `ocistern pin` lists them")]
    names: Vec<String>,
    #[command(flatten)]
    store: StoreFlags,
}

/// Makes pins, or lists them.
pub(super) fn pin(arguments: &PinArguments) -> Result<ExitCode, Trouble> {
    if !arguments.names.is_empty() {
        let pinning = change(Method::POST, &arguments.names, &arguments.store)?;
        let (Pinning { changed, unchanged }, json) = pinning;
        let text = lines("pinned", &changed) + &lines("pinned already:", &unchanged);
        return Ok(say(&if arguments.store.json { json } else { text }));
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

/// Removes pins; fails if there is none of that name.
pub(super) fn unpin(arguments: &UnpinArguments) -> Result<ExitCode, Trouble> {
    let (pinning, json) = change(Method::DELETE, &arguments.names, &arguments.store)?;
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

fn change(method: Method, names: &[String], store: &StoreFlags) -> Result<(Pinning, String), Trouble> {
    let command = if method == Method::POST { "pin" } else { "unpin" };
    let mut ask = Ask::new(command, method, "/api/v1/pins");
    for name in names {
        ask = ask.with("name", name);
    }
    let answer = ask.send(store)?;
    Ok((answer.read()?, answer.json()))
}

fn lines(verb: &str, names: &[String]) -> String {
    names.iter().fold(String::new(), |text, name| text + verb + " " + name + "\n")
}
