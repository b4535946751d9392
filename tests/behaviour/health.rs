//! `ocistern health` against a daemon that serves, one that starts, and none.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

use crate::common::tls::Authority;
use crate::common::{Daemon, Upstream};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixListener;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

async fn run(arguments: &[&str], env: &[(&str, &str)]) -> Output {
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_ocistern"));
    command.arg("health").args(arguments).env_clear().env("HOME", "/nonexistent").envs(env.iter().copied());
    command.output().await.unwrap()
}

/// The exit code and the one line.
async fn health(arguments: &[&str], env: &[(&str, &str)]) -> (Option<i32>, String) {
    let output = run(arguments, env).await;
    let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    assert_eq!(said.lines().count(), 1, "{said}");
    (output.status.code(), said)
}

/// A configuration with these tables, and with its root beside it.
fn configured(directory: &TempDir, tables: &str) -> PathBuf {
    let path = directory.path().join("config.toml");
    let root = directory.path().join("root");
    std::fs::write(&path, format!("root = '{}'\n{tables}", root.display())).unwrap();
    path
}

/// Answers each connection to the socket with this, whatever is asked.
fn answering(socket: &Path, answer: &'static str) -> tokio::task::JoinSet<()> {
    let listener = UnixListener::bind(socket).unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.read(&mut [0; 1024]).await;
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    tasks
}

/// Answers each connection to the address so, and tells what it was asked.
fn posing(port: u16, answer: &'static str) -> (tokio::task::JoinSet<()>, mpsc::UnboundedReceiver<String>) {
    let listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
    listener.set_nonblocking(true).unwrap();
    let listener = tokio::net::TcpListener::from_std(listener).unwrap();
    let (asked, heard) = mpsc::unbounded_channel();
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = [0; 1024];
            let length = stream.read(&mut request).await.unwrap_or_default();
            let _ = asked.send(String::from_utf8_lossy(&request[..length]).into_owned());
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    (tasks, heard)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_serves_is_found_by_each_of_its_ways() {
    let (directory, upstream) = (tempfile::tempdir().unwrap(), Upstream::start().await);
    let (port, admin) = (free_port(), free_port());
    let tables = format!(
        "[[listener]]\naddress = \"127.0.0.1:{port}\"\n[admin]\naddress = \"127.0.0.1:{admin}\"\n\
         [upstream.up]\nurl = {:?}\n",
        upstream.url()
    );
    let config = configured(&directory, &tables);
    let config = config.to_str().unwrap();
    let daemon = Daemon::start(Path::new(config)).await;
    let root = directory.path().join("root");
    let root = root.to_str().unwrap();
    let socket = format!("ready ({root}/ocistern.sock)\n");
    assert_eq!(health(&["--config", config], &[]).await, (Some(0), socket.clone()));
    // As in a container: no file at all.
    let (admins, listens) = (format!("0.0.0.0:{admin}"), format!("0.0.0.0:{port}"));
    let env = [("OCISTERN_ROOT", root), ("OCISTERN_ADMIN_LISTEN", &admins), ("OCISTERN_LISTEN", &listens)];
    assert_eq!(health(&[], &env).await, (Some(0), socket));
    std::fs::remove_file(directory.path().join("root/ocistern.sock")).unwrap();
    let by_admin = (Some(0), format!("ready (127.0.0.1:{admin})\n"));
    assert_eq!(health(&["--config", config], &[]).await, by_admin);
    assert_eq!(health(&[], &env).await, by_admin, "an address for all is asked by loopback");
    let off = [("OCISTERN_ADMIN_LISTEN", "off")];
    let by_listener = (Some(0), format!("ready (127.0.0.1:{port})\n"));
    assert_eq!(health(&["--config", config], &off).await, by_listener);
    assert_eq!(health(&["--root", root], &[off[0], env[2]]).await, by_listener);
    daemon.stop().await;
    let (code, said) = health(&["--config", config], &[]).await;
    assert_eq!(code, Some(1), "{said}");
    assert!(said.starts_with("ocistern: no daemon answers: ") && said.contains("Connection refused"), "{said}");
}

/// While the daemon is down anybody on this machine can listen where it did.
#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_gets_no_token_and_is_not_believed() {
    const READY: &str = "HTTP/1.1 200 OK\r\ncontent-length: 6\r\nconnection: close\r\n\r\nready\n";
    const REGISTRY: &str = "HTTP/1.1 200 OK\r\ndocker-distribution-api-version: registry/2.0\r\ncontent-length: 2\r\n\
                            connection: close\r\n\r\n{}";
    const REFUSED: &str = "HTTP/1.1 401 Unauthorized\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("token"), "CANARY-TOKEN\n").unwrap();
    let (port, admin) = (free_port(), free_port());
    let tables = format!(
        "[[listener]]\naddress = \"127.0.0.1:{port}\"\n[admin]\naddress = \"127.0.0.1:{admin}\"\ntoken_file = \"token\"\n"
    );
    let config = configured(&directory, &tables);
    let path = config.to_str().unwrap();
    Daemon::start(&config).await.stop().await;
    for (answer, of_registry) in [(READY, READY), (REFUSED, REFUSED), (REFUSED, REGISTRY)] {
        let (mut stranger, mut heard) = posing(admin, answer);
        let (mut registry, mut asked) = posing(port, of_registry);
        let (code, said) = health(&["--config", path], &[]).await;
        assert_eq!(code, Some(1), "{said}");
        if answer == READY {
            let root = directory.path().join("root");
            let why =
                format!("127.0.0.1:{admin}: answers, and is not the daemon of {}: no process has it", root.display());
            assert!(said.contains(&why), "{said}");
        }
        let asked = [heard.recv().await.unwrap(), asked.recv().await.unwrap()];
        for asked in asked.into_iter().chain(std::iter::from_fn(|| heard.try_recv().ok())) {
            assert!(asked.starts_with("GET /") && !asked.contains("CANARY"), "{asked}");
        }
        // The addresses are free again when this is done.
        stranger.shutdown().await;
        registry.shutdown().await;
    }
    // A command that is at work on the store serves nobody.
    let root = directory.path().join("root");
    let lock = std::fs::File::options().write(true).open(root.join("lock")).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive).unwrap();
    std::fs::write(root.join("lock"), r#"{"pid":7,"socket":null,"command":"gc"}"#).unwrap();
    let (_posing, _heard) = posing(admin, READY);
    let (code, said) = health(&["--config", path], &[]).await;
    assert!(code == Some(1) && said.contains("`ocistern gc`, process 7 has it"), "{said}");
    // Where there is no store to be seen, in a container that shares an address alone, the address has to do.
    let empty = directory.path().join("empty");
    std::fs::create_dir(&empty).unwrap();
    for root in [directory.path().join("none"), empty] {
        let ready = (Some(0), format!("ready (127.0.0.1:{admin})\n"));
        assert_eq!(health(&["--config", path, "--root", root.to_str().unwrap()], &[]).await, ready);
    }
}

/// It runs on by what it has read, and a container must not be taken for sick because of what was typed into its file.
#[tokio::test(flavor = "multi_thread")]
async fn a_mistake_in_the_file_of_a_running_daemon_hides_nothing_of_it() {
    let (directory, upstream) = (tempfile::tempdir().unwrap(), Upstream::start().await);
    let admin = free_port();
    let tables = format!(
        "[[listener]]\naddress = \"127.0.0.1:{}\"\n[admin]\naddress = \"127.0.0.1:{admin}\"\n[upstream.up]\nurl = {:?}\n",
        free_port(),
        upstream.url()
    );
    let path = configured(&directory, &tables);
    let config = path.to_str().unwrap();
    let daemon = Daemon::start(&path).await;
    let root = directory.path().join("root");
    let root = root.to_str().unwrap();
    configured(&directory, "rot = 1\n");
    let said = async |arguments: &[&str], env: &[(&str, &str)]| {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_ocistern"));
        command.args(arguments).env_clear().env("HOME", "/nonexistent").envs(env.iter().copied());
        let output = command.output().await.unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code(), text(output.stdout), text(output.stderr))
    };
    for command in ["health", "status", "ls", "du", "gc"] {
        for (rest, env) in [(&["--root", root][..], &[][..]), (&[], &[("OCISTERN_ROOT", root)])] {
            let (code, out, err) = said(&[&[command, "--config", config], rest].concat(), env).await;
            assert_eq!(code, Some(0), "{command}: {out}{err}");
            let warning = format!(
                "ocistern: warning: the configuration has a mistake, so nothing is known but where to ask the daemon of {root}:\n"
            );
            assert!(
                err.starts_with(&warning) && err.ends_with("config.toml:2: rot: unknown key; did you mean root?\n"),
                "{err}"
            );
            assert_eq!(err.lines().count(), 2, "{command} warns once: {err}");
        }
        // Nobody says where it is.
        let (code, _, err) = said(&[command, "--config", config], &[]).await;
        assert!(code == Some(64) && err.contains("rot: unknown key"), "{command}: {code:?} {err}");
    }
    // The usual place counts for the health check of a container.
    let cache = directory.path().join("cache");
    std::fs::create_dir(&cache).unwrap();
    std::os::unix::fs::symlink(root, cache.join("ocistern")).unwrap();
    let (code, out, err) = said(&["health", "--config", config], &[("XDG_CACHE_HOME", cache.to_str().unwrap())]).await;
    assert!(code == Some(0) && out.starts_with("ready (") && err.contains("rot: unknown key"), "{code:?} {out}{err}");
    daemon.stop().await;
    // Without a daemon the store is opened by nobody who does not know its pins.
    let (code, _, err) = said(&["gc", "--config", config, "--root", root], &[]).await;
    assert!(code == Some(64) && err.contains("rot: unknown key"), "{code:?} {err}");
    // Another one at the usual addresses is not meant.
    let (code, _, err) = said(&["health", "--config", config, "--root", root], &[]).await;
    assert!(code == Some(1) && !err.contains("127.0.0.1"), "{code:?} {err}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listener_with_tls_counts_too() {
    let (directory, upstream) = (tempfile::tempdir().unwrap(), Upstream::start().await);
    Authority::new().server(directory.path(), "listener", &["cache.test"]);
    let port = free_port();
    let tables = format!(
        "[[listener]]\naddress = \"127.0.0.1:{port}\"\ntls = {{ certificate = \"listener.pem\", key = \"listener.key\" }}\n\
         [admin]\naddress = \"127.0.0.1:0\"\n[upstream.up]\nurl = {:?}\n",
        upstream.url()
    );
    let config = configured(&directory, &tables);
    let daemon = Daemon::start(&config).await;
    std::fs::remove_file(directory.path().join("root/ocistern.sock")).unwrap();
    let (code, said) = health(&["--config", config.to_str().unwrap()], &[]).await;
    assert_eq!((code, said), (Some(0), format!("ready (127.0.0.1:{port})\n")));
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_ready_is_not_healthy() {
    let directory = tempfile::tempdir().unwrap();
    let (port, admin) = (free_port(), free_port());
    let tables = format!("[[listener]]\naddress = \"127.0.0.1:{port}\"\n[admin]\naddress = \"127.0.0.1:{admin}\"\n");
    let config = configured(&directory, &tables);
    let config = config.to_str().unwrap();
    let root = directory.path().join("root");
    std::fs::create_dir(&root).unwrap();
    let socket = root.join("ocistern.sock");
    for (answer, word) in [
        ("HTTP/1.1 503 Service Unavailable\r\ncontent-length: 9\r\n\r\nstarting\n", "starting"),
        ("HTTP/1.1 503 Service Unavailable\r\ncontent-length: 9\r\n\r\nstopping\n", "stopping"),
    ] {
        let _serving = answering(&socket, answer);
        let expected = format!("ocistern: {word} ({})\n", socket.display());
        assert_eq!(health(&["--config", config], &[]).await, (Some(1), expected));
        std::fs::remove_file(&socket).unwrap();
    }
    let strange = answering(&socket, "HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nhello\n");
    let (code, said) = health(&["--config", config], &[]).await;
    assert!(code == Some(1) && said.contains("answers 200 OK, as no ocistern does"), "{said}");
    drop(strange);
    // Something that is no registry, at the address of one.
    let other = TcpListener::bind(("127.0.0.1", port)).unwrap();
    let began = Instant::now();
    let arguments = ["--config", config, "--timeout", "300ms"];
    let output = timeout(Duration::from_mins(1), run(&arguments, &[])).await.expect("it keeps to its time");
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("nothing came within "), "{output:?}");
    assert!(began.elapsed() >= Duration::from_millis(300), "it waits as long as it was told");
    drop(other);
    assert_eq!(run(&["--timeout", "soon"], &[]).await.status.code(), Some(64));
    assert_eq!(run(&["--config", "/nonexistent.toml"], &[]).await.status.code(), Some(64));
}
