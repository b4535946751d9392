//! `ocistern doctor` against a world in which all is well, and against one in which nothing is.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::Output;
use std::time::Duration;

use crate::common::tls::{Authority, replace};
use crate::common::upstream::Auth;
use crate::common::{Daemon, Gate, Upstream, acts};
use rustix::fs::FlockOperation;
use serde_json::Value;
use tempfile::TempDir;

/// A machine: its directories, and two ports on which nobody listens yet.
struct Machine {
    directory: TempDir,
    port: u16,
    admin: u16,
}

/// What doctor said.
struct Said {
    code: Option<i32>,
    findings: Vec<Value>,
}

impl Machine {
    fn new() -> Self {
        let free = || TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let (directory, port, admin) = (tempfile::tempdir().unwrap(), free(), free());
        Self { directory, port, admin }
    }

    fn path(&self, name: &str) -> PathBuf {
        let path = self.directory.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        path
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, text).unwrap();
        path
    }

    /// A configuration with one listener, the keys of it, and further tables.
    fn configure(&self, listener: &str, tables: &str) -> PathBuf {
        let (root, port, admin) = (self.directory.path().join("root"), self.port, self.admin);
        let text = format!(
            "root = '{}'\nbuiltin_upstreams = false\n[[listener]]\naddress = \"127.0.0.1:{port}\"\n{listener}\n\
             [admin]\naddress = \"127.0.0.1:{admin}\"\n{tables}\n",
            root.display()
        );
        self.write("config.toml", &text)
    }

    async fn run(&self, arguments: &[&str]) -> Output {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_ocistern"));
        command.arg("doctor").args(arguments).env_clear().env("HOME", self.directory.path().join("home"));
        command.output().await.unwrap()
    }

    async fn doctor(&self, more: &[&str]) -> Said {
        let config = self.path("config.toml");
        let arguments = [&["--json", "--config", config.to_str().unwrap()], more].concat();
        let output = self.run(&arguments).await;
        let text = String::from_utf8(output.stdout).unwrap();
        let report: Value =
            serde_json::from_str(&text).unwrap_or_else(|_| panic!("{text}{}", String::from_utf8_lossy(&output.stderr)));
        let said = Said { code: output.status.code(), findings: report["findings"].as_array().unwrap().clone() };
        for finding in &said.findings {
            let is_ok = finding["level"] == "ok";
            assert_eq!(finding["advice"].is_null(), is_ok, "what is not ok says what to do: {finding}");
            assert!(!finding["found"].as_str().unwrap().contains('\n'), "{finding}");
        }
        assert_eq!(report["errors"], said.of_level("error").len(), "{text}");
        assert_eq!(report["warnings"], said.of_level("warning").len(), "{text}");
        assert_eq!(said.code, Some(i32::from(!said.of_level("error").is_empty())), "{text}");
        said
    }
}

impl Said {
    fn of_level(&self, level: &str) -> Vec<&Value> {
        self.findings.iter().filter(|finding| finding["level"] == level).collect()
    }

    /// Asserts that there is a finding of this level about that, which says these words or advises so.
    #[track_caller]
    fn says(&self, level: &str, about: &str, words: &str) {
        let is_it = |finding: &&Value| {
            finding["level"] == level
                && finding["about"].as_str().unwrap().contains(about)
                && (finding["found"].as_str().unwrap().contains(words)
                    || finding["advice"].as_str().unwrap_or_default().contains(words))
        };
        assert!(self.findings.iter().any(|finding| is_it(&finding)), "{level} {about}: {words}\n{:#?}", self.findings);
    }

    /// Asserts that nothing is wrong but what this machine itself may lack.
    #[track_caller]
    fn is_well(&self) {
        let machine = ["space", "inodes", "mincore", "clock"];
        let wrong: Vec<_> =
            self.of_level("error").into_iter().filter(|f| !machine.contains(&f["about"].as_str().unwrap())).collect();
        assert!(wrong.is_empty(), "{wrong:#?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_world_in_which_all_is_well() {
    let machine = Machine::new();
    let (plain, (secure, ca)) = (Upstream::start().await, Upstream::start_tls().await);
    plain.script(
        "GET",
        "/v2/",
        ..,
        acts::both(acts::header("ratelimit-limit", "100;w=21600"), acts::header("ratelimit-remaining", "76;w=21600")),
    );
    secure.registry(|registry| registry.auth = Auth::Basic("user".to_owned(), "secret".to_owned()));
    machine.write("ca.pem", &ca);
    let secret = machine.write("secret", "secret\n");
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
    let tables = format!(
        "[upstream.plain]\nurl = {0:?}\n[upstream.secure]\nurl = {1:?}\nca = \"ca.pem\"\n\
         credentials = {{ from = \"static\", username = \"user\", password_file = \"secret\" }}\n\
         [upstream.needless]\nurl = {0:?}\n\
         credentials = {{ from = \"static\", username = \"user\", password_file = \"secret\" }}",
        plain.url(),
        secure.url()
    );
    let config = machine.configure("default_upstream = \"plain\"", &tables);
    let mirror = format!("{{\"registry-mirrors\": [\"http://127.0.0.1:{}\"]}}", machine.port);
    let client = machine.write("home/.config/docker/daemon.json", &mirror);
    let client = client.to_str().unwrap();
    let listener = format!("127.0.0.1:{}", machine.port);

    let said = machine.doctor(&[]).await;
    said.says("ok", "lock", "nobody has the store");
    said.says("ok", "root", "`ocistern serve` makes it");
    said.says("ok", &listener, "free");
    said.says("ok", "plain", "/v2/ answers 200, wants no credential");
    said.says("ok", "plain, rate limit", "76 of 100 in 360 minutes are left");
    said.says("ok", "secure", "its certificate is good until ");
    said.says("ok", "secure, credentials", "taken");
    said.says("ok", "needless, credentials", "not asked for");
    said.says("ok", "password_file", "can be read");
    said.says("error", client, "which is this instance, and nobody listens there");
    assert!(!machine.path("root").exists(), "doctor makes no store");

    let daemon = Daemon::start(&config).await;
    let said = machine.doctor(&[]).await;
    said.is_well();
    let pid = daemon.pid().as_raw_nonzero();
    said.says("ok", "lock", &format!("process {pid}, version {}", env!("CARGO_PKG_VERSION")));
    said.says("ok", &listener, &format!("process {pid} serves there, and answers /v2/ with 401"));
    said.says("ok", "(admin)", "/readyz answers 200");
    said.says("ok", client, "asks 127.0.0.1:");
    // For people: the same, with what to do below.
    let output = machine.run(&["--no-network", "--config", config.to_str().unwrap()]).await;
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.starts_with("configuration\n  ok       /"), "{text}");
    assert!(text.contains("\nupstreams\n  note     all: not asked, as was wished\n           → run "), "{text}");
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    daemon.stop().await;
}

/// docs/install.md recommends it.
#[tokio::test(flavor = "multi_thread")]
async fn what_systemd_passes_is_no_fault_before_the_service_runs() {
    let machine = Machine::new();
    let (upstream, (secure, _)) = (Upstream::start().await, Upstream::start_tls().await);
    upstream.registry(|registry| registry.auth = Auth::Basic("user".to_owned(), "secret".to_owned()));
    let tables = format!(
        "[upstream.hub]\nurl = {:?}\n\
         credentials = {{ from = \"static\", username = \"user\", password_file = \"credential:hub\" }}\n\
         [upstream.secure]\nurl = {:?}\nca = \"credential:ca\"\n",
        upstream.url(),
        secure.url()
    );
    machine.configure("default_upstream = \"hub\"", &tables);
    let said = machine.doctor(&[]).await;
    said.is_well();
    said.says("note", "upstream.hub.credentials.password_file", "is there only while the service runs");
    said.says("ok", "hub", "/v2/ answers 401, wants a name and password");
    said.says("note", "hub, credentials", "its unit needs LoadCredential=hub:FILE");
    said.says("note", "secure", "its unit needs LoadCredential=ca:FILE");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_world_in_which_nothing_is_well() {
    let machine = Machine::new();
    let (dead, (strange, _), closed) = (Upstream::start().await, Upstream::start_tls().await, Upstream::start().await);
    dead.down();
    closed.registry(|registry| registry.auth = Auth::Basic("user".to_owned(), "right".to_owned()));
    closed.script(
        "GET",
        "/v2/",
        ..,
        acts::both(
            acts::header("date", "Mon, 23 Nov 2020 12:00:00 GMT"),
            acts::both(acts::header("ratelimit-limit", "100;w=60"), acts::header("ratelimit-remaining", "3;w=60")),
        ),
    );
    let page = Upstream::start().await;
    page.script("GET", "/v2/", .., acts::fail(404, "NOT_A_REGISTRY"));
    let (portal, wants_tls) = (Upstream::start().await, Upstream::start().await);
    portal.script("GET", "/v2/", .., acts::login_page());
    let said = "Client sent an HTTP request to an HTTPS server.\n";
    wants_tls.script("GET", "/v2/", .., acts::answer(400, "text/plain", said));
    machine.write("secret", "wrong\n");
    fs::set_permissions(machine.path("secret"), fs::Permissions::from_mode(0o644)).unwrap();
    let tables = format!(
        "[upstream.dead]\nurl = {0:?}\nmirrors = [{0:?}]\n[upstream.nameless]\nurl = \"https://nowhere.invalid\"\n\
         [upstream.strange]\nurl = {1:?}\n[upstream.page]\nurl = {3:?}\n\
         [upstream.closed]\nurl = {2:?}\nca = \"none.pem\"\n\
         credentials = {{ from = \"static\", username = \"user\", password_file = \"secret\" }}\n\
         [upstream.loop]\nurl = \"http://127.1:{4}\"\n[upstream.portal]\nurl = {5:?}\n[upstream.plain]\nurl = {6:?}\n",
        dead.url(),
        strange.url(),
        closed.url(),
        page.url(),
        machine.port,
        portal.url(),
        wants_tls.url()
    );
    let tables = tables.replacen(
        &format!("mirrors = [{:?}]", dead.url()),
        &format!("mirrors = [\"http://localhost:{}\"]", dead.port()),
        1,
    );
    // The CA of an upstream that is not there keeps all from being asked.
    machine.configure("default_upstream = \"dead\"", &tables);
    let said = machine.doctor(&[]).await;
    said.says("error", "upstream.closed.ca", "none.pem: No such file or directory");
    said.says("error", "certificate authorities", "cannot read certificates from");
    said.says("warning", "password_file", "chmod o= ");

    machine.configure("default_upstream = \"dead\"", &tables.replace("ca = \"none.pem\"\n", ""));
    let _taken = TcpListener::bind(("127.0.0.1", machine.port)).unwrap();
    let gone = dead.port();
    let client = machine.write(
        "home/.config/containers/registries.conf",
        &format!("[[registry]]\nprefix = \"ghcr.io\"\nlocation = \"localhost:{gone}/ghcr.io\"\ninsecure = true\n"),
    );
    machine.write("home/.config/docker/daemon.json", "{ nonsense");
    let said = machine.doctor(&[]).await;
    said.says("error", "dead", "cannot connect: ");
    said.says("warning", "dead, mirror localhost:", "cannot connect: ");
    // As fast as the name servers of this machine are with a name that nobody has.
    let nameless = said.of_level("error").into_iter().find(|finding| finding["about"] == "nameless").unwrap();
    let found = nameless["found"].as_str().unwrap();
    assert!(found.contains("nowhere.invalid does not resolve") || found.contains("timed out"), "{nameless}");
    said.says("error", "strange", "ca = \"FILE.pem\"");
    said.says("error", "page", "should answer 200 or 401");
    said.says("warning", "portal", "something answers that is hardly a registry: /v2/ answers 200 with a web page");
    said.says("error", "plain", &format!("write https:// in `url`: {}", wants_tls.url().replace("http:", "https:")));
    said.says("error", "closed, credentials", "refused");
    said.says("warning", "closed, rate limit", "3 of 100 in 1 minutes are left");
    said.says("warning", "clock", "ahead of that of closed");
    said.says("error", "loop", "set `connect` of this upstream");
    said.says("error", &format!("127.0.0.1:{}", machine.port), "`ss -ltnp` names the process");
    said.says("warning", client.to_str().unwrap(), "nobody listens there");
    said.says("warning", "daemon.json", "is not what docker can read");
    said.says("note", "all", "none of docker, containerd, podman, BuildKit and k3s is set up for this instance");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_says_nothing_holds_up_nobody() {
    let machine = Machine::new();
    let (silent, gate) = (Upstream::start().await, Gate::new());
    silent.script("GET", "/v2/", .., acts::hold_head(&gate));
    let tables = format!("[upstream.silent]\nurl = {:?}", silent.url());
    machine.configure("default_upstream = \"silent\"", &tables);
    let said = tokio::time::timeout(Duration::from_mins(1), machine.doctor(&[])).await.expect("it ends by itself");
    said.says("error", "silent", "timed out while ");
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_that_are_not_for_the_names_in_use() {
    let machine = Machine::new();
    let authority = Authority::new();
    authority.server(machine.directory.path(), "listener", &["cache.test", "127.0.0.1"]);
    let upstream = Upstream::start().await;
    let listener = "tls = { certificate = \"listener.pem\", key = \"listener.key\" }\npublic_url = \"https://cache.test\"\n\
                    hostnames = { \"registry.test\" = \"up\" }";
    let config = machine.configure(listener, &format!("[upstream.up]\nurl = {:?}", upstream.url()));
    let mirror = format!("{{\"registry-mirrors\": [\"http://127.0.0.1:{}\"]}}", machine.port);
    let client = machine.write("home/.config/docker/daemon.json", &mirror);
    let daemon = Daemon::start(&config).await;
    let said = machine.doctor(&["--no-network"]).await;
    let address = format!("127.0.0.1:{}", machine.port);
    said.says("ok", &address, "there is a certificate for cache.test");
    said.says("error", &address, "no certificate is for registry.test");
    said.says("ok", &address, "serves there, and answers /v2/ with 401");
    said.says("error", client.to_str().unwrap(), "by plain HTTP, and that listener speaks TLS");
    // The certificate of another key, which the daemon cannot take up.
    let other = authority.certificate(&["cache.test", "registry.test"], &rcgen::KeyPair::generate().unwrap());
    replace(&machine.path("listener.pem"), &other.pem());
    let said = machine.doctor(&["--no-network"]).await;
    said.says("ok", &address, "there is a certificate for registry.test");
    said.says("warning", &address, "shows a certificate that is in none of its files");
    said.says("error", "listener[0].tls", "is not that of the certificate");
    daemon.stop().await;
    fs::remove_file(machine.path("listener.key")).unwrap();
    let said = machine.doctor(&["--no-network"]).await;
    said.says("error", "listener[0].tls.key", "make the file");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_the_root_and_what_is_in_it() {
    let machine = Machine::new();
    machine.configure("", "[upstream.up]\nurl = \"http://127.0.0.1:9\"");
    let (root, lock) = (machine.path("root/x"), machine.path("root/lock"));
    let root = root.parent().unwrap();
    fs::write(root.join("VERSION"), "1\n").unwrap();
    fs::write(&lock, "{\"pid\":4242,\"socket\":\"/nonexistent/sock\"}").unwrap();
    let held = fs::File::open(&lock).unwrap();
    rustix::fs::flock(&held, FlockOperation::NonBlockingLockExclusive).unwrap();
    let said = machine.doctor(&["--no-network"]).await;
    said.says("error", "lock", "process 4242 (its admin socket: /nonexistent/sock) has it and cannot be asked");
    fs::write(&lock, "{\"pid\":4242,\"socket\":null,\"command\":\"verify\"}").unwrap();
    machine.doctor(&["--no-network"]).await.says("note", "lock", "`ocistern verify`, process 4242 has it");
    drop(held);
    machine.doctor(&["--no-network"]).await.says("ok", "lock", "nobody has the store");

    fs::write(root.join("VERSION"), "99\n").unwrap();
    fs::set_permissions(root, fs::Permissions::from_mode(0o777)).unwrap();
    let said = machine.doctor(&["--no-network"]).await;
    said.says("error", "root", "has format version \"99\"");
    said.says("error", "root", "chmod go-w ");
    fs::remove_file(root.join("VERSION")).unwrap();
    fs::write(root.join("letter"), "dear").unwrap();
    machine.doctor(&["--no-network"]).await.says("error", "root", "is no store of ocistern");
    fs::remove_dir_all(root).unwrap();
    fs::write(root, "").unwrap();
    machine.doctor(&["--no-network"]).await.says("error", "root", "is no directory");
}

/// A file system of a megabyte, which goes when it is dropped.
struct Small(PathBuf);

impl Small {
    /// None: this process may not mount.
    fn mount(path: PathBuf) -> Option<Self> {
        fs::create_dir(&path).unwrap();
        let mut mount = std::process::Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=1m,mode=0700", "none"]).arg(&path);
        mount.output().is_ok_and(|output| output.status.success()).then(|| Self(path))
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(&self.0).output();
    }
}

/// Where nobody may mount, the unit tests of the check have to do.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_an_error_and_memory_is_no_disk() {
    let machine = Machine::new();
    machine.configure("", "[upstream.up]\nurl = \"http://127.0.0.1:9\"");
    let Some(small) = Small::mount(machine.directory.path().join("root")) else { return };
    let said = machine.doctor(&["--no-network"]).await;
    said.says("ok", "space", "free of 1.0 MiB; capacity 512 KiB");
    said.says("warning", "root", "lies on tmpfs, which takes memory");
    fs::create_dir_all(small.0.join("blobs/sha256")).unwrap();
    fs::write(small.0.join("VERSION"), "1\n").unwrap();
    fs::write(small.0.join("blobs/sha256/x"), vec![0; 950 << 10]).unwrap();
    let said = machine.doctor(&["--no-network"]).await;
    said.says("error", "space", "less is free than is kept free");
}

#[tokio::test(flavor = "multi_thread")]
async fn mistakes_of_the_configuration_are_findings_and_those_of_the_command_line_are_not() {
    let machine = Machine::new();
    let config = machine.write("config.toml", "[store]\ncapacty = \"1GiB\"\n");
    let said = machine.doctor(&[]).await;
    said.says("error", &format!("{}:2", config.display()), "store.capacty: unknown key; did you mean store.capacity?");
    said.says("note", "everything else", "not looked at");
    assert_eq!(said.code, Some(1));
    let missing = machine.run(&["--config", "/nonexistent/x.toml"]).await;
    assert_eq!(missing.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&missing.stdout).contains("error    /nonexistent/x.toml: No such file"));
    let output = machine.run(&["--no-such-flag"]).await;
    assert_eq!((output.status.code(), output.stdout.len()), (Some(64), 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_serves_elsewhere_than_it_is_told_now() {
    let machine = Machine::new();
    let config = machine.configure("", "[upstream.up]\nurl = \"http://127.0.0.1:9\"");
    let daemon = Daemon::start(&config).await;
    let old = machine.port;
    let machine = Machine { port: Machine::new().port, ..machine };
    machine.configure("", "[upstream.up]\nurl = \"http://127.0.0.1:9\"");
    machine.write(
        "home/.config/buildkit/buildkitd.toml",
        &format!("[registry.\"docker.io\"]\nmirrors = [\"127.0.0.1:{old}\"]\n"),
    );
    let said = machine.doctor(&["--no-network"]).await;
    said.says("error", &format!("127.0.0.1:{}", machine.port), "does not listen there");
    said.says("ok", "buildkit", &format!("asks 127.0.0.1:{old} for docker.io: this instance"));
    daemon.stop().await;
}
