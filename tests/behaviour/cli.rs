//! The program as a process: exit codes, signals, and what it says where.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Output, Stdio};
use std::time::Duration;

use crate::common::content::{image, sha256};
use crate::common::{Client, Upstream, eventually};
use rustix::process::{Pid, Signal, kill_process};
use tokio::time::Instant;

fn ocistern(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ocistern"));
    // The configuration of whoever runs the tests stays out of them.
    command.args(arguments).env_clear().env("HOME", "/nonexistent");
    command
}

fn run(arguments: &[&str]) -> Output {
    ocistern(arguments).output().unwrap()
}

/// A daemon; it is killed when the test ends without having stopped it.
struct Daemon {
    child: Child,
    log: BufReader<ChildStderr>,
    address: SocketAddr,
}

impl Daemon {
    fn start(root: &Path) -> Self {
        Self::start_with(root, &["--sealed"])
    }

    fn start_with(root: &Path, more: &[&str]) -> Self {
        let arguments = ["serve", "--listen", "127.0.0.1:0", "--admin-listen", "off", "--root"];
        Self::of(ocistern(&arguments).arg(root.join("store")).args(more))
    }

    fn of(command: &mut Command) -> Self {
        Self::that_says(command, |line| {
            let event: serde_json::Value = serde_json::from_str(line).expect("without a terminal the log is JSON");
            (event["message"] == "serving clients").then(|| event["listener"].as_str().unwrap().parse().unwrap())
        })
    }

    /// The address is in one of the first lines of its log.
    fn that_says(command: &mut Command, address: impl Fn(&str) -> Option<SocketAddr>) -> Self {
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let address = loop {
            let mut line = String::new();
            assert!(log.read_line(&mut line).unwrap() > 0, "ended before it served clients");
            if let Some(address) = address(&line) {
                break address;
            }
        };
        Self { child, log, address }
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// The next event of the log with this message.
    fn until(&mut self, message: &str) -> serde_json::Value {
        loop {
            let mut line = String::new();
            assert!(self.log.read_line(&mut line).unwrap() > 0, "it has ended and never said: {message}");
            let event: serde_json::Value = serde_json::from_str(&line).unwrap();
            if event["message"] == message {
                return event;
            }
        }
    }

    /// The exit code, and the rest of the log.
    fn end(mut self) -> (Option<i32>, String) {
        let mut log = String::new();
        self.log.read_to_string(&mut log).unwrap();
        (self.child.wait().unwrap().code(), log)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The daemon's log of a layer that is pulled until it is a hit, how many bytes it has, and how the daemon ended.
async fn log_of_pulls(format: Option<&str>, address: impl Fn(&str) -> Option<SocketAddr>) -> (String, usize) {
    let (upstream, image) = (Upstream::start().await, image(1));
    upstream.image("org/app", "1.0", &image);
    let layer = &image.layers[0];
    let directory = tempfile::tempdir().unwrap();
    let mut command = ocistern(&["serve", "--listen", "127.0.0.1:0", "--admin-listen", "off"]);
    command.arg("--root").arg(directory.path().join("store"));
    command.arg("--upstream").arg(format!("up={}", upstream.url()));
    command.envs(format.map(|format| ("OCISTERN_LOG__FORMAT", format)));
    let daemon = Daemon::that_says(&mut command, address);
    let (client, target) = (Client(daemon.address), format!("/up/v2/org/app/blobs/{}", sha256(layer)));
    eventually("it is a hit", || async {
        let got = client.get(&target).await;
        got.assert_is(layer);
        got.header("cache-status") == "ocistern; hit"
    })
    .await;
    daemon.signal(Signal::TERM);
    let (code, log) = daemon.end();
    assert_eq!(code, Some(0), "{log}");
    (log, layer.len())
}

#[tokio::test(flavor = "multi_thread")]
async fn each_pull_is_a_line_of_the_log_with_what_it_cost() {
    for format in [None, Some("json")] {
        let (log, length) = log_of_pulls(format, |line| {
            let event: serde_json::Value = serde_json::from_str(line).expect("a JSON object each");
            (event["message"] == "serving clients").then(|| event["listener"].as_str().unwrap().parse().unwrap())
        })
        .await;
        let lines = log.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).expect("JSON"));
        let requests: Vec<_> = lines.filter(|event| event["message"] == "request").collect();
        let (first, last) = (requests.first().unwrap(), requests.last().unwrap());
        assert_eq!((&first["result"], &last["result"]), (&"miss".into(), &"hit".into()), "{log}");
        for event in [first, last] {
            for (key, value) in [("upstream", "up"), ("repository", "org/app"), ("kind", "blob"), ("end", "whole")] {
                assert_eq!(event[key], value, "{key}: {event}");
            }
            assert_eq!((&event["status"], &event["bytes"]), (&200.into(), &length.into()), "{event}");
            assert!(event["duration_ms"].is_u64() && event["timestamp"].is_string(), "{event}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_for_humans_is_text_also_without_a_terminal() {
    let (log, length) = log_of_pulls(Some("human"), |line| {
        let (_, rest) = line.split_once("serving clients ")?;
        rest.split_whitespace().find_map(|field| field.strip_prefix("listener="))?.parse().ok()
    })
    .await;
    assert!(!log.contains('\u{1b}'), "colours are for terminals: {log}");
    assert!(log.lines().all(|line| !line.starts_with('{')), "{log}");
    for result in ["miss", "hit"] {
        let result = format!("result=\"{result}\"");
        let line = log.lines().find(|line| line.contains(&result)).unwrap_or_else(|| panic!("no {result}: {log}"));
        let bytes = format!("bytes={length} ");
        for part in ["upstream=\"up\"", "repository=\"org/app\"", "kind=\"blob\"", "status=200", &bytes, "duration_ms="]
        {
            assert!(line.contains(part), "{part}: {line}");
        }
    }
}

#[test]
fn exit_codes() {
    let directory = tempfile::tempdir().unwrap();
    let bad = directory.path().join("bad.toml");
    std::fs::write(&bad, "rooot = \"/x\"\n").unwrap();
    let bad = bad.to_str().unwrap();
    for (arguments, code) in [
        (&["--version"][..], 0),
        (&["serve", "--help"], 0),
        (&["config", "check"], 0),
        (&["config", "show"], 0),
        (&[], 64),
        (&["bake"], 64),
        (&["serve", "--nonsense"], 64),
        (&["serve", "--listen", "nonsense"], 64),
        (&["serve", "--config", "/nonexistent.toml"], 64),
        (&["serve", "--config", bad], 64),
        (&["config", "check", "--config", bad], 64),
        (&["serve", "--root", "/dev/null/x", "--listen", "127.0.0.1:0", "--admin-listen", "off"], 1),
    ] {
        let output = run(arguments);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
        assert_eq!(code == 0, said.is_empty(), "{arguments:?} says what is wrong: {said}");
    }
    assert!(String::from_utf8_lossy(&run(&["config", "check", "--config", bad]).stderr).contains("rooot"));
    assert!(String::from_utf8_lossy(&run(&["config", "show"]).stdout).contains("docker.io"));
}

/// Another start would change nothing, so systemd must not try one.
#[test]
fn certificates_that_cannot_be_used_are_mistakes_of_the_configuration() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).display().to_string();
    for stem in ["one", "two"] {
        let pair = rcgen::generate_simple_self_signed(vec!["one.test".to_owned()]).unwrap();
        std::fs::write(path(&format!("{stem}.pem")), pair.cert.pem()).unwrap();
        std::fs::write(path(&format!("{stem}.key")), pair.signing_key.serialize_pem()).unwrap();
    }
    let file = path("ocistern.toml");
    let certificate = |certificate: &str, key: &str| format!("{{ certificate = '{certificate}', key = '{key}' }}");
    let listener = |second: &str| {
        let first = certificate("one.pem", "one.key");
        format!(
            "root = 'store'\nadmin = {{ address = \"off\" }}\n[[listener]]\naddress = \"127.0.0.1:0\"\n\
             tls = {{ certificates = [{first}, {second}] }}\n"
        )
    };
    let said = |arguments: &[&str], code: i32| {
        let output = run(arguments);
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {text}");
        text
    };
    std::fs::write(&file, listener(&certificate("two.pem", "one.key"))).unwrap();
    let mismatch = format!("the key {} is not that of the certificate {}", path("one.key"), path("two.pem"));
    for arguments in [&["serve", "--config", &file][..], &["config", "check", "--config", &file]] {
        let text = said(arguments, 64);
        assert!(text.contains(&mismatch), "{arguments:?}: {text}");
    }
    // What stops `serve` stops whoever looks before.
    std::fs::write(&file, listener(&certificate("none.pem", "two.key"))).unwrap();
    let text = said(&["config", "check", "--config", &file], 64);
    let mistake = format!("{file}:5: listener[0].tls.certificates[1].certificate: {}: No such file", path("none.pem"));
    assert!(text.contains(&mistake) && text.lines().count() == 1, "{text}");
    let text = said(&["doctor", "--no-network", "--config", &file], 1);
    assert!(!text.contains("no mistake") && text.contains(&path("none.pem")), "{text}");
    assert!(said(&["serve", "--config", &file], 64).contains(&path("none.pem")));
    std::fs::write(&file, listener(&certificate("two.pem", "two.key"))).unwrap();
    assert_eq!(said(&["config", "check", "--config", &file], 0).lines().count(), 1);
    // Nor does it start without the authorities of an upstream.
    std::fs::write(&file, "root = 'store'\nadmin = { address = \"off\" }\n[upstream.\"a.example\"]\nca = 'none.pem'\n")
        .unwrap();
    let text = said(&["config", "check", "--config", &file], 64);
    assert!(text.contains(&format!("{file}:4: upstream.\"a.example\".ca: {}: No such", path("none.pem"))), "{text}");
    assert!(said(&["serve", "--config", &file, "--listen", "127.0.0.1:0"], 64).contains(&path("none.pem")));
    // An account that is not there cannot push.
    std::fs::write(&file, "[upstream.\"a.example\"]\npush = \"shared\"\n").unwrap();
    let text = said(&["config", "check", "--config", &file], 64);
    assert!(text.contains("upstream.\"a.example\".push: \"shared\" is for an account of ocistern's own"), "{text}");
}

#[test]
fn a_signal_is_a_proper_stop() {
    for signal in [Signal::TERM, Signal::INT] {
        let directory = tempfile::tempdir().unwrap();
        let daemon = Daemon::start(directory.path());
        let mut stream = TcpStream::connect(daemon.address).unwrap();
        stream.write_all(b"GET /v2/ HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 401 "), "{answer}");
        daemon.signal(signal);
        let (code, log) = daemon.end();
        assert_eq!(code, Some(0), "{log}");
        assert!(log.contains("\"message\":\"request\"") && log.contains("\"status\":401"), "{log}");
        assert!(log.contains("\"message\":\"stopped\""), "{log}");
    }
}

/// A daemon with a connection on which a request is not complete, which holds the stop up for a while.
fn busy(root: &Path) -> (Daemon, TcpStream) {
    let daemon = Daemon::start(root);
    let mut stream = TcpStream::connect(daemon.address).unwrap();
    stream.write_all(b"GET /v2/ HTTP/1.1\r\nHost: localhost\r\n\r\nGET /v2/").unwrap();
    stream.read_exact(&mut [0; 12]).unwrap();
    (daemon, stream)
}

/// A terminal that closes is no reason to stop serving, also where there is no file to read again.
#[test]
fn a_hangup_does_not_end_the_daemon() {
    let directory = tempfile::tempdir().unwrap();
    let mut daemon = Daemon::start(directory.path());
    daemon.signal(Signal::HUP);
    daemon.until("configuration read again: nothing has changed that can change without a restart");
    let mut stream = TcpStream::connect(daemon.address).unwrap();
    stream.write_all(b"GET /v2/ HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 "), "{answer}");
    daemon.signal(Signal::TERM);
    let (code, log) = daemon.end();
    assert_eq!(code, Some(0), "{log}");
}

/// Whoever takes a user out makes a mistake elsewhere more easily than they look at the log.
#[tokio::test(flavor = "multi_thread")]
async fn who_was_taken_out_is_out_at_a_hangup_whatever_the_configuration_says() {
    let directory = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(directory.path().join(name), text).unwrap();
    write("users", &format!("dev:{}\n", bcrypt::hash("pw", 4).unwrap()));
    write("secret", "own");
    let text = "[[listener]]\naddress = \"127.0.0.1:0\"\ndefault_upstream = \"own\"\nhtpasswd = \"users\"\n[admin]\naddress = \"off\"\n\
                [upstream.own]\nurl = \"http://127.0.0.1:9\"\npush = \"off\"\n\
                credentials = { from = \"static\", username = \"own\", password_file = \"secret\" }\n";
    write("config.toml", text);
    let mut command = ocistern(&["serve", "--config"]);
    command.arg(directory.path().join("config.toml")).arg("--root").arg(directory.path().join("store"));
    let mut daemon = Daemon::of(&mut command);
    let client = Client(daemon.address);
    let ask = || client.send(crate::common::client::Ask::get("/v2/").basic("dev", "pw"));
    assert_eq!(ask().await.status, 200);
    write("users", "");
    write("config.toml", &format!("{text}[limits]\nidle = \"0s\"\n"));
    daemon.signal(Signal::HUP);
    daemon.until("the configuration has mistakes: everything stays as it was");
    assert_eq!(ask().await.status, 401);
}

#[test]
fn what_can_change_changes_at_a_hangup() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("config.toml");
    let write = |text: &str| std::fs::write(&file, text).unwrap();
    write("[upstream.\"docker.io\"]\nmax_rate = \"1MiB\"");
    let mut daemon = Daemon::start_with(directory.path(), &["--sealed", "--config", file.to_str().unwrap()]);
    write(
        "[limits]\nmax_rate = \"20MiB\"\n[store]\ndurability = \"fast\"\n[upstream.\"docker.io\"]\nmax_rate = \"2MiB\"\nmax_connections = 4",
    );
    daemon.signal(Signal::HUP);
    let event = daemon.until("configuration read again: these hold from now on");
    let changed = "limits.max_rate = \"20MiB\", upstream.\"docker.io\".max_connections = 4, upstream.\"docker.io\".max_rate = \"2MiB\"";
    assert_eq!((&event["changed"], &event["level"]), (&changed.into(), &"INFO".into()));
    assert_eq!(event["file"], file.to_str().unwrap());
    let event = daemon.until("what else has changed in the configuration needs a restart");
    assert_eq!((&event["keys"], &event["level"]), (&"store.durability".into(), &"WARN".into()));

    write("[limits]\nmax_rate = \"fast\"\nidle = \"0s\"");
    daemon.signal(Signal::HUP);
    let event = daemon.until("the configuration has mistakes: everything stays as it was");
    let mistakes = event["mistakes"].as_str().unwrap();
    assert!(mistakes.contains("config.toml:3: limits.idle: \"0s\" is not a time limit"), "{mistakes}");
    assert!(mistakes.contains("config.toml:2: limits.max_rate: \"fast\" is not a rate"), "{mistakes}");
    assert_eq!(event["level"], "ERROR");

    write("[upstream.\"docker.io\"]\nmax_rate = \"2MiB\"");
    daemon.signal(Signal::HUP);
    let event = daemon.until("configuration read again: these hold from now on");
    assert_eq!(event["changed"], "limits.max_rate = \"off\", upstream.\"docker.io\".max_connections left out");

    write("[upstream.\"docker.io\"]\nmax_rate = \"2MiB\"\n[log]\nfilter = \"=,=\"");
    daemon.signal(Signal::HUP);
    let event = daemon.until("the configuration has mistakes: everything stays as it was");
    assert!(event["mistakes"].as_str().unwrap().contains("log.filter"), "{event}");
    write("[upstream.\"docker.io\"]\nmax_rate = \"2MiB\"\n[log]\nfilter = \"warn\"");
    daemon.signal(Signal::HUP);
    // Of that it is silent.
    write("[upstream.\"docker.io\"]\nmax_rate = \"2MiB\"\n[store]\ndurability = \"fast\"\n[log]\nfilter = \"warn\"");
    daemon.signal(Signal::HUP);
    daemon.until("what else has changed in the configuration needs a restart");
    daemon.signal(Signal::TERM);
    let (code, log) = daemon.end();
    assert_eq!(code, Some(0), "{log}");
    assert!(!log.contains("\"INFO\""), "{log}");
}

/// As `timeout` does it: the child is signalled, and its group.
#[test]
fn a_signal_that_comes_twice_is_one_request() {
    let directory = tempfile::tempdir().unwrap();
    let (mut daemon, stream) = busy(directory.path());
    daemon.signal(Signal::TERM);
    daemon.signal(Signal::INT);
    let mut line = String::new();
    while !line.contains("stopping") {
        line.clear();
        assert!(daemon.log.read_line(&mut line).unwrap() > 0, "ended before it was stopping");
    }
    drop(stream);
    let (code, log) = daemon.end();
    assert_eq!(code, Some(0), "{log}");
    assert!(log.contains("\"message\":\"stopped\""), "{log}");
}

/// An answer that upstream holds back keeps the stop waiting for `limits.drain`; who asks again later means it.
#[test]
fn a_second_signal_ends_it_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let upstream = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", upstream.local_addr().unwrap());
    let mut daemon = Daemon::start_with(directory.path(), &["--upstream", &url]);
    let mut stream = TcpStream::connect(daemon.address).unwrap();
    stream.write_all(b"GET /v2/app/manifests/1 HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    let (_silent, _) = upstream.accept().unwrap();
    daemon.signal(Signal::TERM);
    let mut line = String::new();
    while !line.contains("stopping") {
        line.clear();
        assert!(daemon.log.read_line(&mut line).unwrap() > 0, "ended before it was stopping");
    }
    // Signals within half a second are one request, so they are repeated until one counts.
    let pid = Pid::from_child(&daemon.child);
    let (ended, waiting) = std::sync::mpsc::channel::<()>();
    let code = std::thread::scope(|scope| {
        scope.spawn(move || {
            for _ in 0..100 {
                let _ = kill_process(pid, Signal::TERM);
                if waiting.recv_timeout(Duration::from_millis(100)) != Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
                    return;
                }
            }
        });
        let code = daemon.child.wait().unwrap().code();
        drop(ended);
        code
    });
    assert_eq!(code, Some(1), "given up, and not after the drain's 30 seconds");
}

#[test]
fn the_second_daemon_on_a_root_says_who_is_there() {
    let directory = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(directory.path());
    let root = directory.path().join("store");
    let output = run(&["serve", "--listen", "127.0.0.1:0", "--admin-listen", "off", "--root", root.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains(&format!("process {}", daemon.child.id())), "{said}");
    let starting: serde_json::Value = serde_json::from_str(said.lines().next().unwrap()).unwrap();
    assert_eq!(starting["message"], "starting", "{said}");
    assert_eq!(starting["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(starting["root"], root.to_str().unwrap());
    assert_eq!(starting["default_upstream"], "docker.io");
    assert!(starting["upstreams"].as_str().unwrap().contains("quay.io"), "{said}");
}

#[test]
fn the_log_says_what_was_asked_and_no_query() {
    let directory = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(directory.path());
    let mut stream = TcpStream::connect(daemon.address).unwrap();
    let request = "GET /v2/evil.example/app/manifests/1?sig=canary HTTP/1.1\r\nHost: here\r\n\
                   Authorization: Bearer canary\r\nCookie: canary\r\nConnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).unwrap();
    stream.read_to_string(&mut String::new()).unwrap();
    daemon.signal(Signal::TERM);
    let (_, log) = daemon.end();
    let lines: Vec<_> = log.lines().filter(|line| line.contains("\"message\":\"request\"")).collect();
    assert_eq!(lines.len(), 1, "{log}");
    let event: serde_json::Value = serde_json::from_str(lines[0]).unwrap();
    assert_eq!(event["asked"], "here/v2/evil.example/app/manifests/1", "{log}");
    assert!(!log.contains("canary"), "{log}");
}

/// As systemd starts it with `Type=notify`, a `.socket` unit and `CacheDirectory=`.
#[test]
fn sockets_readiness_and_the_cache_directory_of_systemd() {
    let directory = tempfile::tempdir().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let notified = UnixDatagram::bind(directory.path().join("notify")).unwrap();
    notified.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    // The first passed socket is descriptor 3, for the process of that number alone.
    let script = "export LISTEN_PID=$$ LISTEN_FDS=1; exec \"$0\" serve --admin-listen off --sealed 3<&0 </dev/null";
    let mut command = Command::new("/bin/sh");
    command.args(["-c", script]).arg(env!("CARGO_BIN_EXE_ocistern")).stdin(OwnedFd::from(listener)).env_clear();
    command.env("HOME", "/nonexistent").env("CACHE_DIRECTORY", directory.path().join("cache"));
    let daemon = Daemon::of(command.env("NOTIFY_SOCKET", directory.path().join("notify")));
    assert_eq!(daemon.address, address, "the passed socket takes the place of the default ones");
    let said = || {
        let mut buffer = [0; 256];
        let length = notified.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..length]).trim().to_owned()
    };
    assert_eq!(said(), "READY=1");
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(b"GET /v2/ HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 401 "), "{answer}");
    assert!(directory.path().join("cache/oci-layout").exists(), "the store is where systemd says");
    daemon.signal(Signal::TERM);
    assert_eq!(said(), "STOPPING=1");
    let (code, log) = daemon.end();
    assert_eq!(code, Some(0), "{log}");
}

/// As systemd starts it with `WatchdogSec=`: signs of life, to the process alone that they are asked of.
#[test]
fn systemd_hears_that_the_daemon_lives_where_it_asks() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("notify");
    let notified = UnixDatagram::bind(&socket).unwrap();
    notified.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let said = || {
        let mut buffer = [0; 256];
        let length = notified.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..length]).trim().to_owned()
    };
    for (pid, signs) in [("$$", true), ("1", false)] {
        let script = format!(
            "export WATCHDOG_PID={pid} WATCHDOG_USEC=200000; exec \"$0\" serve --listen 127.0.0.1:0 --admin-listen off --sealed"
        );
        let mut command = Command::new("/bin/sh");
        command.args(["-c", &script]).arg(env!("CARGO_BIN_EXE_ocistern")).env_clear();
        command.env("HOME", "/nonexistent").env("CACHE_DIRECTORY", directory.path().join("cache"));
        let daemon = Daemon::of(command.env("NOTIFY_SOCKET", &socket));
        assert_eq!(said(), "READY=1", "watched: {signs}");
        if signs {
            let began = Instant::now();
            for _ in 0..5 {
                assert_eq!(said(), "WATCHDOG=1");
            }
            // The first is sent at once.
            assert!(began.elapsed() >= Duration::from_millis(300), "twice in 200 ms: {:?}", began.elapsed());
        }
        daemon.signal(Signal::TERM);
        let mut last = said();
        while signs && last == "WATCHDOG=1" {
            last = said();
        }
        assert_eq!(last, "STOPPING=1", "watched: {signs}");
        let (code, log) = daemon.end();
        assert_eq!(code, Some(0), "{log}");
        assert!(!log.contains("systemd could not be told"), "{log}");
    }
}

/// A daemon behind a shell that sets limits.
fn limited(limits: &str, root: &Path) -> Daemon {
    let mut command = Command::new("/bin/sh");
    command.args(["-c", &format!("{limits}; exec \"$0\" \"$@\"")]).arg(env!("CARGO_BIN_EXE_ocistern"));
    command.args(["serve", "--listen", "127.0.0.1:0", "--admin-listen", "off", "--sealed", "--root"]);
    command.arg(root.join("store")).env_clear().env("HOME", "/nonexistent").env("OCISTERN_LIMITS__FIRST_BYTE", "300ms");
    Daemon::of(&mut command)
}

#[test]
fn the_soft_limit_of_files_is_raised_to_the_hard_one() {
    let directory = tempfile::tempdir().unwrap();
    let daemon = limited("ulimit -Sn 200; ulimit -Hn 500", directory.path());
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", daemon.child.id())).unwrap();
    let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    assert_eq!(line.split_whitespace().skip(3).take(2).collect::<Vec<_>>(), ["500", "500"]);
}

/// More silent connections than files: a client waits until they are cut, and nothing else suffers.
#[test]
fn connections_do_not_take_the_last_file() {
    let directory = tempfile::tempdir().unwrap();
    let daemon = limited("ulimit -n 100", directory.path());
    let silent: Vec<_> = (0..120).map(|_| TcpStream::connect(daemon.address).unwrap()).collect();
    let mut stream = TcpStream::connect(daemon.address).unwrap();
    stream.write_all(b"GET /v2/ HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 401 "), "{answer}");
    drop(silent);
    daemon.signal(Signal::TERM);
    let (code, log) = daemon.end();
    assert_eq!(code, Some(0));
    assert!(!log.contains("WARN"), "{log}");
}
