//! What a long command shows on a terminal, and that it shows nothing elsewhere.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::common::content::{blob, sha256};
use crate::common::{Cistern, Upstream};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

/// Two ends of a terminal: what is written to the second is read from the first.
fn terminal() -> (File, File) {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    let size = Winsize { ws_row: 24, ws_col: 120, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(&master, size).unwrap();
    let name = ptsname(&master, Vec::new()).unwrap();
    let slave = File::options().read(true).write(true).open(name.to_str().unwrap()).unwrap();
    (master.into(), slave)
}

fn ocistern(root: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ocistern"));
    command.args(arguments).arg("--root").arg(root).env_clear().env("HOME", "/nonexistent").env("TERM", "xterm");
    command
}

/// Standard output, and what was shown on a terminal that is standard error.
fn shown(root: &Path, arguments: &[&str]) -> (String, String) {
    let (mut master, slave) = terminal();
    let mut command = ocistern(root, arguments);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::from(slave)).spawn().unwrap();
    // The last of this process's own ends of it: else the terminal would never end.
    drop(command);
    let reading = std::thread::spawn(move || {
        let (mut all, mut part) = (Vec::new(), [0; 4096]);
        // A terminal that nobody has open any more is an error of reading.
        while let Ok(read @ 1..) = master.read(&mut part) {
            all.extend_from_slice(&part[..read]);
        }
        String::from_utf8_lossy(&all).into_owned()
    });
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    (String::from_utf8(output.stdout).unwrap(), reading.join().unwrap())
}

/// A store with some megabytes.
async fn stored() -> (Cistern, Upstream) {
    let upstream = Upstream::start().await;
    let cistern = Cistern::start(&upstream, "").await;
    for seed in 0..3 {
        let bytes = blob(seed, 2 << 20);
        let digest = upstream.blob("app", &bytes);
        assert_eq!(digest, sha256(&bytes));
        cistern.get(format!("/v2/app/blobs/{digest}")).await.assert_is(&bytes);
    }
    cistern.settle().await;
    (cistern, upstream)
}

async fn off_the_runtime<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn verify_shows_how_far_it_is_with_a_daemon_and_without() {
    let (mut cistern, _upstream) = stored().await;
    let root = cistern.root().to_owned();
    for daemon in [true, false] {
        if !daemon {
            cistern.stop().await;
        }
        let of = root.clone();
        let (text, progress) = off_the_runtime(move || shown(&of, &["verify", "--rate", "4MiB/s"])).await;
        assert!(text.starts_with("verified 3 blobs, 6.0 MiB: 0 wrong"), "{text}");
        assert!(progress.contains("verifying") && progress.contains(" of 6.00 MiB"), "{daemon}: {progress:?}");
        let parts = progress.split("] ").skip(1).filter_map(|rest| rest.split_once('%')?.0.parse::<u32>().ok());
        let parts: Vec<u32> = parts.collect();
        assert!(parts.is_sorted(), "it goes forward: {parts:?}");
        assert!(parts.iter().any(|part| (1..100).contains(part)), "it shows more than beginning and end: {parts:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_shown_where_nobody_looks() {
    let (cistern, _upstream) = stored().await;
    let root = cistern.root().to_owned();
    let of = root.clone();
    let (text, progress) = off_the_runtime(move || shown(&of, &["verify", "--json", "--rate", "12MiB/s"])).await;
    assert!(serde_json::from_str::<serde_json::Value>(&text).is_ok(), "{text}");
    assert_eq!(progress, "", "JSON is for programs");
    let output = off_the_runtime(move || ocistern(&root, &["verify", "--rate", "12MiB/s"]).output().unwrap()).await;
    assert_eq!(String::from_utf8_lossy(&output.stderr), "", "no terminal, no progress");
    assert_eq!(cistern.metric("ocistern_verified_bytes_total", &[]).await, 12 << 20, "the daemon counts them");
}
