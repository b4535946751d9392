//! The torture suite: power cuts, kills, errors, full disks, a destroyed index, rot, and all of it for an hour.
//!
//! `cargo test` runs a little of what needs neither root nor tools. `cargo test --test torture -- --short` runs all of it
//! as CI does, `--long` the long form, which goes on where it stopped; one subject with its count, and a seed to repeat
//! it: `-- power --cuts 60 --seed 1`. See docs/reliability.md.
#![allow(
    unreachable_pub,
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    clippy::format_push_string,
    clippy::needless_pass_by_value,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::too_many_lines,
    reason = "test code"
)]

#[path = "../common/mod.rs"]
mod common;

mod blocks;
mod checks;
mod clock;
mod counted;
mod enospc;
mod errors;
mod index;
mod kill;
mod limits;
mod load;
mod long;
mod options;
mod parts;
mod power;
mod readonly;
mod removed;
mod report;
mod rot;
mod short;
mod site;
mod slow;
mod soak;
mod strace;
mod table;
mod volume;
mod work;

use std::process::ExitCode;

use fastrand::Rng;
use options::Options;
use report::Report;

fn main() -> ExitCode {
    let options = match Options::parse(std::env::args().skip(1).collect()) {
        Ok(options) => options,
        Err(error) => {
            println!("{error}");
            return ExitCode::from(64);
        }
    };
    // What a server in this process says of the damage that is done to it is no news, but how much that is.
    common::logs::keep("warn");
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let outcome = runtime.block_on(async {
        // Whoever is told to end ends its processes and unmounts; the forms have parts of their own to tell first.
        let alone = !options.subject.starts_with("--");
        tokio::select! {
            () = parts::ended_by_signal(), if alone => Err("told to end".into()),
            outcome = dispatch(&options) => outcome,
        }
    });
    match outcome {
        Ok(true) => {
            println!("test result: ok.");
            ExitCode::SUCCESS
        }
        Ok(false) => {
            println!("test result: FAILED.");
            ExitCode::FAILURE
        }
        Err(error) => {
            println!("torture {}: {error}", options.subject);
            ExitCode::FAILURE
        }
    }
}

async fn dispatch(options: &Options) -> Result<bool, String> {
    match options.subject.as_str() {
        "power" => power::run(options).await,
        "kill" => kill::run(options).await,
        "errors" => errors::run(options).await,
        "enospc" => enospc::run(options).await,
        "index" => index::run(options).await,
        "rot" => rot::run(options).await,
        "blocks" => blocks::run(options).await,
        "readonly" => readonly::run(options).await,
        "limits" => limits::run(options).await,
        "removed" => removed::run(options).await,
        "clock" => clock::run(options).await,
        "soak" => soak::run(options).await,
        "--short" => short::run(options).await,
        "--long" => long::run(options).await,
        _ => quick(options).await,
    }
}

/// What a plain `cargo test` runs.
async fn quick(options: &Options) -> Result<bool, String> {
    let mut report = Report::new("in cargo test", options.seed, "");
    index::damages(&mut report, options.seed, 13).await;
    rot::damages(&mut report, options.seed, 10).await;
    kill::at_random(&mut report, &mut Rng::with_seed(options.seed), 1).await?;
    Ok(report.end())
}
