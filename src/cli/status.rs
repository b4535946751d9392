//! `ocistern status`: what the daemon does and saves, how its upstreams do, and what the store holds; on one screen, which
//! `--watch` draws anew each second.
//!
//! 0: a daemon serves. 1: none does, or it is starting or stopping; what there is to say is printed all the same.

use std::fmt::Write as _;
use std::io::{self, ErrorKind, IsTerminal as _, Write as _};
use std::ops::ControlFlow;
use std::process::ExitCode;
use std::time::Duration;

use http::Method;
use jiff::Timestamp;
use rustix::termios::tcgetwinsize;

use super::store::{Answer, Ask, StoreFlags, Trouble};
use super::table::{ago, bytes, count, table};
use super::{FAILED, say};
use crate::cache::FillReport;
use crate::clock::{Clock as _, SystemClock, timestamp};
use crate::http::admin::{Stage, Status, Traffic, UpstreamReport};
use crate::store::Holder;

/// How often `--watch` asks.
const EVERY: Duration = Duration::from_secs(1);
/// Columns where nobody says how many there are.
const WIDTH: usize = 100;
/// Characters of a bar.
const BAR: usize = 20;
/// Downloads that are listed; of more, it is said how many.
const FILLS: usize = 20;
/// The other screen of a terminal, without a cursor: what was there before comes back at the end.
const ENTER: &str = "\x1b[?1049h\x1b[?25l";
const LEAVE: &str = "\x1b[?25h\x1b[?1049l";

/// What `status` is told.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Again and again.
    #[arg(
        long,
        short,
        help = "Draw it anew each second, until Ctrl-C or the daemon's end; with --json one answer a line"
    )]
    watch: bool,
    #[command(flatten)]
    store: StoreFlags,
}

/// Puts the terminal back, however this ends.
struct Screen;

/// Prints it; fails where no daemon serves.
pub(super) fn run(arguments: &Arguments) -> Result<ExitCode, Trouble> {
    let ask = Ask::new("status", Method::GET, "/api/v1/status");
    if arguments.watch {
        return watch(&ask, &arguments.store);
    }
    let answer = ask.send(&arguments.store)?;
    let status: Status = answer.read()?;
    let code = say(&shown(&answer, &status, &arguments.store, WIDTH));
    Ok(if code == ExitCode::SUCCESS { code_of(&status) } else { code })
}

fn watch(ask: &Ask, store: &StoreFlags) -> Result<ExitCode, Trouble> {
    let terminal = io::stdout().is_terminal() && !store.json;
    let mut screen = None;
    let mut code = ExitCode::from(FAILED);
    let mut last = String::new();
    let mut failure = None;
    let watched = ask.watch(store, EVERY, |answer| {
        let status: Status = answer.read()?;
        code = code_of(&status);
        let (columns, rows) = if terminal { size() } else { (WIDTH, usize::MAX) };
        last = shown(answer, &status, store, columns);
        let written = if terminal && answer.by.is_some() {
            if screen.is_none() {
                screen = Some(Screen::enter());
            }
            write(&drawn(&last, columns, rows))
        } else if !terminal {
            write(&if store.json { last.clone() } else { format!("{last}\n") })
        } else {
            Ok(())
        };
        failure = written.err();
        // Without a daemon each look would lock the store; where nobody reads there is nothing to look for.
        Ok(if answer.by.is_some() && failure.is_none() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
    });
    drop(screen);
    match failure {
        // Whoever has closed it (`head`) has what it wants.
        Some(error) if error.kind() != ErrorKind::BrokenPipe => {
            return Err(Trouble::Failed(format!("standard output: {error}")));
        }
        None if terminal => {
            // What was seen last stays on the screen that one comes back to; if that is gone, nobody comes back.
            let _ = write(&last);
        }
        Some(_) | None => {}
    }
    watched.map(|()| code)
}

/// Whether a daemon serves, as an exit code.
fn code_of(status: &Status) -> ExitCode {
    if status.stage == Stage::Ready.as_str() { ExitCode::SUCCESS } else { ExitCode::from(FAILED) }
}

fn shown(answer: &Answer, status: &Status, store: &StoreFlags, width: usize) -> String {
    if store.json { answer.json() } else { text(answer.by.as_ref(), status, timestamp(SystemClock.now()), width) }
}

fn write(text: &str) -> io::Result<()> {
    let mut out = io::stdout();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// Columns and rows of the terminal.
fn size() -> (usize, usize) {
    let size = tcgetwinsize(io::stdout()).ok().filter(|size| size.ws_col > 0 && size.ws_row > 0);
    size.map_or((WIDTH, 24), |size| (size.ws_col.into(), size.ws_row.into()))
}

/// The text in the place of what was drawn before, as far as there is room.
fn drawn(text: &str, columns: usize, rows: usize) -> String {
    let mut out = String::from("\x1b[H");
    for (row, line) in text.lines().take(rows).enumerate() {
        if row > 0 {
            out.push_str("\r\n");
        }
        out.extend(line.chars().take(columns));
        out.push_str("\x1b[K");
    }
    out.push_str("\x1b[J");
    out
}

impl Screen {
    fn enter() -> Self {
        // If it cannot be written, neither can what follows, and that says so.
        let _ = write(ENTER);
        Self
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let _ = write(LEAVE);
    }
}

fn text(daemon: Option<&Holder>, status: &Status, now: Timestamp, width: usize) -> String {
    let Status { version, stage, uptime_seconds, listeners, store, traffic, saved_bytes, forecast, .. } = status;
    let mut text = String::new();
    let mut line = |what: &str, value: String| {
        let _ = writeln!(text, "{what:<11}{value}");
    };
    let size = |bytes: i64| self::bytes(u64::try_from(bytes).unwrap_or_default());
    match daemon {
        Some(holder) => {
            let up = length(i64::try_from(*uptime_seconds).unwrap_or(i64::MAX));
            line("daemon", format!("{stage}, version {version}, process {}, up for {up}", holder.pid));
            line("listeners", listeners.join(", "));
        }
        None => line("daemon", "none; the store is not in use".to_owned()),
    }
    line("store", store.root.display().to_string());
    let used =
        share(u64::try_from(store.bytes).unwrap_or_default(), u64::try_from(store.capacity_bytes).unwrap_or_default());
    let holds = format!("{} in {} blobs, of {}", size(store.bytes), store.blobs, size(store.capacity_bytes));
    line("holds", format!("{}  {holds}", bar(used)));
    if daemon.is_none() {
        return text;
    }
    line("room", room(forecast, now));
    line("hit ratio", ratio(traffic));
    let (served, received) = (bytes(traffic.served_bytes), bytes(traffic.received_bytes));
    let saved = match u64::try_from(*saved_bytes) {
        Ok(saved) => bytes(saved),
        Err(_) => "nothing yet".to_owned(),
    };
    line("saved", format!("{saved}: {served} served, {received} fetched"));
    let (evicted, corrupt) = (bytes(store.evicted_bytes), count(store.corrupt_blobs, "damaged blob", "damaged blobs"));
    line(
        "upkeep",
        format!("{evicted} evicted, {corrupt} found; last whole scrub: {}", scrubbed(store.scrub_last_pass, now)),
    );
    text.push_str(&upstreams(&status.upstreams, now, width));
    text.push_str(&downloads(&status.fills, width));
    text
}

fn scrubbed(at: Option<Timestamp>, now: Timestamp) -> String {
    at.map_or_else(|| "never".to_owned(), |at| ago(Some(at), now))
}

fn room(forecast: &crate::http::admin::Forecast, now: Timestamp) -> String {
    let free = bytes(forecast.free_bytes);
    let pace = match forecast.growth_bytes_per_day {
        None => "how fast it grows is not known yet".to_owned(),
        Some(growth) if growth <= 0 => "it does not grow".to_owned(),
        Some(growth) => {
            let full = match forecast.full_at {
                Some(at) => format!("full in {}", length(at.duration_since(now).as_secs().max(0))),
                None => "years until it is full".to_owned(),
            };
            format!("it grows by {} a day, {full}", bytes(growth.unsigned_abs()))
        }
    };
    let evicts = if forecast.evicting { "; what nobody uses makes room" } else { "" };
    format!("{free} left; {pace}{evicts}")
}

fn ratio(traffic: &Traffic) -> String {
    if traffic.requests == 0 {
        return "nothing was asked for yet".to_owned();
    }
    let tenths = u128::from(traffic.hits) * 1000 / u128::from(traffic.requests);
    let errors = match traffic.results.error {
        0 => String::new(),
        errors => format!("; {}", count(errors, "error", "errors")),
    };
    let of = format!("{}.{} % of {}", tenths / 10, tenths % 10, count(traffic.requests, "request", "requests"));
    format!("{of} for manifests and blobs{errors}")
}

fn upstreams(reports: &[UpstreamReport], now: Timestamp, width: usize) -> String {
    let is_idle =
        |report: &&UpstreamReport| report.endpoint.state == "never_asked" && report.traffic == Traffic::default();
    let (idle, busy): (Vec<_>, Vec<_>) = reports.iter().partition(is_idle);
    let mut text = String::new();
    if !busy.is_empty() {
        let row = |report: &&UpstreamReport| {
            let traffic = &report.traffic;
            let limit = report.rate_limit.as_ref().map_or_else(String::new, |limit| match limit.limit {
                Some(of) => format!("{} of {of}", limit.remaining),
                None => limit.remaining.to_string(),
            });
            vec![
                report.name.clone(),
                report.endpoint.state.replace('_', " "),
                report
                    .endpoint
                    .since
                    .map_or_else(|| "-".to_owned(), |at| length(now.duration_since(at).as_secs().max(0))),
                traffic.requests.to_string(),
                traffic.hits.to_string(),
                bytes(traffic.served_bytes),
                bytes(traffic.received_bytes),
                limit,
            ]
        };
        let header = ["UPSTREAM", "STATE", "FOR", "REQUESTS", "HITS", "SERVED", "FETCHED", "LIMIT LEFT"];
        let rows: Vec<_> = busy.iter().map(row).collect();
        let _ = write!(text, "\n{}", table(&header, &[3, 4, 5, 6, 7], &rows));
    }
    for report in busy.iter().filter(|report| report.is_away()) {
        if let Some(error) = &report.endpoint.last_error {
            let said = format!("{}, {}: {}", report.name, ago(Some(error.at), now), error.message);
            let _ = writeln!(text, "{}", cut(&said, width));
        }
    }
    if !idle.is_empty() {
        let names: Vec<&str> = idle.iter().map(|report| report.name.as_str()).collect();
        let _ = writeln!(text, "\n{}", cut(&format!("not asked yet: {}", names.join(", ")), width));
    }
    text
}

fn downloads(fills: &[FillReport], width: usize) -> String {
    if fills.is_empty() {
        return "\nno downloads\n".to_owned();
    }
    let mut text = format!("\n{}\n", count(fills.len() as u64, "download", "downloads"));
    for fill in fills.iter().take(FILLS) {
        let size =
            fill.size.map_or_else(|| bytes(fill.present), |size| format!("{} of {}", bytes(fill.present), bytes(size)));
        let digest: String = fill.digest.split(':').next_back().unwrap_or_default().chars().take(12).collect();
        let line = format!(
            "{}  {digest}  {size}, {}/s, {}  {}/{}",
            bar(share(fill.present, fill.size.unwrap_or_default())),
            bytes(fill.rate),
            count(fill.readers as u64, "reader", "readers"),
            fill.upstream,
            fill.repository,
        );
        let _ = writeln!(text, "{}", cut(&line, width));
    }
    if fills.len() > FILLS {
        let _ = writeln!(text, "and {} more", fills.len() - FILLS);
    }
    text
}

/// Percents; none where there is no whole.
fn share(part: u64, whole: u64) -> Option<usize> {
    let percents = (u128::from(part) * 100).checked_div(u128::from(whole))?;
    usize::try_from(percents.min(100)).ok()
}

fn bar(percents: Option<usize>) -> String {
    let Some(percents) = percents else { return format!("[{}]   ? %", "-".repeat(BAR)) };
    let full = percents * BAR / 100;
    format!("[{}{}] {percents:>3} %", "#".repeat(full), "-".repeat(BAR - full))
}

/// As much of a line as fits.
fn cut(line: &str, width: usize) -> String {
    if line.chars().count() <= width {
        return line.to_owned();
    }
    line.chars().take(width.saturating_sub(1)).chain(['…']).collect()
}

/// How long something has been, roughly.
fn length(seconds: i64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn status() -> Status {
        let upstream = |name: &str, state: &str| {
            json!({
                "name": name, "url": "https://x", "state": state, "since": "2026-01-01T00:00:00Z",
                "asked_again_in_seconds": null, "last_error": {"message": "cannot connect", "at": "2026-01-01T00:50:00Z"},
                "mirrors": [], "rate_limit": {"limit": 100, "remaining": 76, "window_seconds": 21600, "at": "2026-01-01T00:00:00Z"},
                "requests": if state == "never_asked" { 0 } else { 9 }, "hits": 0, "served_bytes": 0, "received_bytes": 0,
                "results": {"hit": 0, "miss": 0, "collapsed": 0, "stale": 0, "bypass": 0, "error": 0},
            })
        };
        serde_json::from_value(json!({
            "version": "1.2.3", "stage": "ready", "uptime_seconds": 7300, "listeners": ["127.0.0.1:5000"],
            "store": {"root": "/r", "bytes": 1 << 30, "capacity_bytes": 4_i64 << 30, "blobs": 7, "evicted_bytes": 0,
                      "corrupt_blobs": 0, "fills_in_progress": 1, "scrubbed_bytes": 0, "scrub_last_pass": null},
            "traffic": {"requests": 1000, "hits": 876, "served_bytes": 10 << 20, "received_bytes": 4 << 20,
                        "results": {"hit": 876, "miss": 124, "collapsed": 0, "stale": 0, "bypass": 0, "error": 2}},
            "saved_bytes": 6 << 20,
            "forecast": {"free_bytes": 3_i64 << 30, "growth_bytes_per_day": 1 << 30, "measured_seconds": 86400,
                         "full_at": "2026-01-04T01:00:00Z", "evicting": false},
            "fills": [{"digest": "sha256:0123456789abcdef", "upstream": "docker.io", "repository": "library/alpine",
                       "size": 100, "present": 45, "rate": 2048, "readers": 2, "resumes": 0, "endpoint": null}],
            "upstreams": [upstream("docker.io", "breaker_open"), upstream("quay.io", "never_asked")],
        }))
        .unwrap()
    }

    #[test]
    fn all_of_it_on_one_screen() {
        let holder = Holder { pid: 12, socket: None, command: None };
        let now: Timestamp = "2026-01-01T01:00:00Z".parse().unwrap();
        let text = text(Some(&holder), &status(), now, 120);
        for part in [
            "daemon     ready, version 1.2.3, process 12, up for 2 h\n",
            "holds      [#####---------------]  25 %  1.0 GiB in 7 blobs, of 4.0 GiB\n",
            "room       3.0 GiB left; it grows by 1.0 GiB a day, full in 3 days\n",
            "hit ratio  87.6 % of 1000 requests for manifests and blobs; 2 errors\n",
            "saved      6.0 MiB: 10.0 MiB served, 4.0 MiB fetched\n",
            "docker.io  breaker open  60 min",
            "76 of 100\n",
            "docker.io, 10 minutes ago: cannot connect\n",
            "not asked yet: quay.io\n",
            "1 download\n[#########-----------]  45 %  0123456789ab  45 B of 100 B, 2.0 KiB/s, 2 readers  docker.io/library/alpine\n",
        ] {
            assert!(text.contains(part), "{part:?} is missing in\n{text}");
        }
        assert_eq!(code_of(&status()), ExitCode::SUCCESS);
        let stopping = Status { stage: "stopping".to_owned(), ..status() };
        assert_eq!(code_of(&stopping), ExitCode::from(FAILED));
    }

    #[test]
    fn nothing_is_drawn_outside_the_screen() {
        let drawn = drawn("one long line\ntwo\nthree\n", 8, 2);
        assert_eq!(drawn, "\x1b[Hone long\x1b[K\r\ntwo\x1b[K\x1b[J");
        assert_eq!(cut("abcdef", 4), "abc…");
        assert_eq!(bar(None), "[--------------------]   ? %");
        assert_eq!(share(5, 0), None);
        assert_eq!(share(u64::MAX, 1), Some(100));
    }

    /// What an older daemon answers has less in it.
    #[test]
    fn the_answer_of_an_older_daemon_is_understood() {
        let mut answer = serde_json::to_value(status()).unwrap();
        for name in ["traffic", "saved_bytes", "forecast", "fills", "upstreams"] {
            answer.as_object_mut().unwrap().remove(name);
        }
        let status: Status = serde_json::from_value(answer).unwrap();
        let now: Timestamp = "2026-01-01T01:00:00Z".parse().unwrap();
        let holder = Holder { pid: 12, socket: None, command: None };
        assert!(text(Some(&holder), &status, now, 80).contains("nothing was asked for yet"));
    }
}
