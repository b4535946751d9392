//! `ocistern have`: what is stored, for who would export the rest.

use std::process::ExitCode;

use http::Method;

use super::say;
use super::store::{Ask, StoreFlags, Trouble};
use crate::bundle::Have;

/// What `have` is told.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    store: StoreFlags,
}

/// Prints the list.
pub(super) fn run(arguments: &Arguments) -> Result<ExitCode, Trouble> {
    let answer = Ask::new("have", Method::GET, "/api/v1/have").send(&arguments.store)?;
    if arguments.store.json {
        return Ok(say(&answer.json()));
    }
    Ok(say(&answer.read::<Have>()?.to_text()))
}
