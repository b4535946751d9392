//! `ocistern pin` and `ocistern unpin`: names whose content is never evicted.

use std::fmt::Write as _;
use std::process::ExitCode;

use http::Method;

use super::store::{Ask, StoreFlags, Trouble};
use super::table::table;
use super::{FAILED, complain, say};
use crate::http::admin::{Images, Pinning, Pins};

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
        if arguments.store.json {
            return Ok(say(&json));
        }
        let mut text = lines("pinned", &changed) + &lines("pinned already:", &unchanged);
        for name in &changed {
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
