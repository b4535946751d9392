//! What each client is given, over several configurations, against files that are read by eye (`tests/setup/`); and how files
//! are written, written again and put back.

use std::path::Path;

use rustls::pki_types::UnixTime;

use super::*;

/// A day in 2026.
const NOW: UnixTime = UnixTime::since_unix_epoch(std::time::Duration::from_secs(1_790_000_000));

/// An empty root directory of an image, and a directory for what else there is.
fn places() -> (tempfile::TempDir, tempfile::TempDir) {
    (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap())
}

fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/setup")
}

/// The instance of a configuration of `tests/setup/`, with certificates in `directory`.
fn instance_of(name: &str, directory: &Path) -> Result<Instance, SetupError> {
    ca::certificates(directory, NOW);
    let text = std::fs::read_to_string(sources().join(format!("{name}.toml"))).unwrap();
    let text = text.replace("DIRECTORY", &directory.display().to_string());
    Instance::of(&Config::from_toml(&text).unwrap(), &Said::default(), NOW)
}

fn user() -> Whose {
    Whose::User { home: "/home/me".into(), config: "/home/me/.config".into() }
}

/// Compares with a file of `tests/setup/`; `OCISTERN_BLESS=1` writes it instead, for the eye.
fn golden(name: &str, found: &str) {
    let file = sources().join(name);
    if std::env::var_os("OCISTERN_BLESS").is_some() {
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(&file, found).unwrap();
    }
    let expected = std::fs::read_to_string(&file).unwrap_or_default();
    assert_eq!(found, expected, "{name} is not what `ocistern setup` shows; OCISTERN_BLESS=1 writes it anew");
}

fn shown_for(client: Client, whose: &Whose, instance: &Result<Instance, SetupError>, certificates: &Path) -> String {
    let root = tempfile::tempdir().unwrap();
    let disk = Disk::new(Some(root.path().to_owned()));
    let text = match instance {
        Ok(instance) => client
            .plan(&Site { disk: &disk, whose, instance })
            .map(|plan| show(client, &plan))
            .map_err(|e| e.to_string()),
        Err(error) => Err(error.to_string()),
    };
    let text = text.unwrap_or_else(|error| format!("error: {error}\n"));
    let ca = std::fs::read_to_string(certificates.join("ca.crt")).unwrap();
    text.replace(&ca, "(the CA's certificate)\n")
}

#[test]
fn every_client_is_given_what_the_files_say() {
    let mut seen = 0;
    for case in [
        "loopback",
        "remote-tls",
        "certificate-name",
        "several",
        "plain-remote",
        "client-certificates",
        "behind-a-path",
        "unix-only",
        "free-port",
    ] {
        let (_, certificates) = places();
        let instance = instance_of(case, certificates.path());
        for client in Client::ALL {
            let shown = shown_for(client, &Whose::Machine, &instance, certificates.path());
            golden(&format!("{case}/{}.txt", client.as_str()), &shown);
            seen += 1;
        }
    }
    let there: usize = std::fs::read_dir(sources())
        .unwrap()
        .flatten()
        .filter(|entry| entry.path().is_dir() && entry.file_name() != "rootless" && entry.file_name() != "merged")
        .map(|entry| std::fs::read_dir(entry.path()).unwrap().count())
        .sum();
    assert_eq!(there, seen, "no file is left over from a case that is gone");
}

#[test]
fn users_who_are_not_root_have_their_own_files() {
    let (_, certificates) = places();
    let instance = instance_of("loopback", certificates.path());
    for client in Client::ALL {
        let shown = shown_for(client, &user(), &instance, certificates.path());
        assert!(!shown.contains("# docker: /etc") && !shown.contains("podman: /etc"), "{shown}");
        golden(&format!("rootless/{}.txt", client.as_str()), &shown);
    }
    let env = |name: &str| (name == "HOME").then(|| "/home/me".to_owned());
    assert_eq!(whose(false, env), Ok(user()));
    assert_eq!(whose(true, env), Ok(Whose::Machine));
    assert_eq!(whose(false, |_| None), Err(NO_HOME));
}

#[test]
fn an_address_that_is_said_beats_the_configuration() {
    let said = |url: &str| Said { url: Some(url.parse().unwrap()), ca: None };
    let config = Config::from_toml("[[listener]]\naddress = \"unix:/run/o.sock\"").unwrap();
    let instance = Instance::of(&config, &said("http://10.0.0.1:5000"), NOW).unwrap();
    assert_eq!(instance.endpoint().unwrap().url.to_string(), "http://10.0.0.1:5000");
    assert!(instance.hub_endpoint().is_some(), "its default upstream is that of the configuration");
    let (_, certificates) = places();
    let none = Said { url: None, ca: Some(certificates.path().join("nothing")) };
    assert!(matches!(Instance::of(&config, &none, NOW), Err(SetupError::NoCertificate(_))));
}

#[test]
fn an_address_that_is_said_means_the_listener_at_its_port() {
    let (_, certificates) = places();
    instance_of("several", certificates.path()).unwrap();
    let text = std::fs::read_to_string(sources().join("several.toml")).unwrap();
    let text = text.replace("DIRECTORY", &certificates.path().display().to_string());
    let config = Config::from_toml(&text).unwrap();
    for (url, is_hub) in [("http://cache.example:5001", true), ("http://cache.example:5000", false)] {
        let said = Said { url: Some(url.parse().unwrap()), ca: None };
        assert_eq!(Instance::of(&config, &said, NOW).unwrap().hub_endpoint().is_some(), is_hub, "{url}");
    }
}

#[test]
fn the_command_line() {
    #[derive(Debug, clap::Parser)]
    struct Line {
        #[command(flatten)]
        arguments: Arguments,
    }
    let parse = |line: &str| <Line as clap::Parser>::try_parse_from(line.split_whitespace()).map(|line| line.arguments);
    let two = parse("setup docker podman --write --listen 127.0.0.1:6000").unwrap();
    assert_eq!((two.clients, two.write), (vec![Client::Docker, Client::Podman], true));
    assert!(matches!(parse("setup ca a.example --directory /d").unwrap().command, Some(Command::Ca(_))));
    assert!(parse("setup --all --undo").unwrap().undo);
    for wrong in ["setup docker --write --undo", "setup docker --all", "setup rkt", "setup docker ca"] {
        assert!(parse(wrong).is_err(), "{wrong}");
    }
}

/// What is written for a client of the default configuration.
fn write_default(root: &Path, client: Client, text: &str) -> Result<(String, Option<SetupError>), SetupError> {
    let disk = Disk::new(Some(root.to_owned()));
    let instance = Instance::of(&Config::from_toml(text).unwrap(), &Said::default(), NOW).unwrap();
    let site = Site { disk: &disk, whose: &Whose::Machine, instance: &instance };
    let (said, failures) = write(&site, client, client.plan(&site)?);
    Ok((said, only(failures)))
}

/// What failed, be it for the client or for one of its files.
fn failure_of(result: Result<(String, Option<SetupError>), SetupError>) -> String {
    result.map_or_else(Some, |(_, failure)| failure).unwrap().to_string()
}

/// What failed, which is one thing at most.
fn only(mut failures: Vec<SetupError>) -> Option<SetupError> {
    assert!(failures.len() < 2, "{failures:?}");
    failures.pop()
}

fn undo_all(root: &Path, client: Client) -> (String, Option<SetupError>) {
    let (said, failures) = undo(&Disk::new(Some(root.to_owned())), &Whose::Machine, client);
    (said, only(failures))
}

/// All files and directories below a directory, with their contents.
fn everything(root: &Path) -> Vec<(PathBuf, Option<String>)> {
    let mut found = Vec::new();
    let mut left = vec![root.to_owned()];
    while let Some(directory) = left.pop() {
        for entry in std::fs::read_dir(directory).unwrap().flatten() {
            let path = entry.path();
            let text = if path.is_dir() { None } else { Some(std::fs::read_to_string(&path).unwrap()) };
            found.push((path.strip_prefix(root).unwrap().to_owned(), text));
            if path.is_dir() {
                left.push(path);
            }
        }
    }
    found.sort();
    found
}

/// Files that machines have: each client's, with other things in it.
fn furnish(root: &Path) {
    for (path, text) in [
        (
            "etc/docker/daemon.json",
            "{\n    \"log-driver\": \"journald\",\n    \"registry-mirrors\": [\"https://mirror.gcr.io\"],\n    \"data-root\": \"/srv/docker\"\n}\n",
        ),
        (
            "etc/containerd/config.toml",
            "version = 2\n\n# Kubernetes\n[plugins.\"io.containerd.grpc.v1.cri\"]\n  sandbox_image = \"registry.k8s.io/pause:3.9\"\n",
        ),
        (
            "etc/containerd/certs.d/docker.io/hosts.toml",
            "server = \"https://registry-1.docker.io\"\n\n# the office's\n[host.\"https://mirror.example\"]\n  capabilities = [\"pull\"]\n",
        ),
        (
            "etc/containers/registries.conf",
            "unqualified-search-registries = [\"docker.io\"]\n\n[[registry]]\nprefix = \"quay.io\"\nlocation = \"quay.io\"\n\n[[registry.mirror]]\nlocation = \"mirror.example/quay\"\n",
        ),
        (
            "etc/buildkit/buildkitd.toml",
            "debug = true\n\n[registry.\"docker.io\"]\n  mirrors = [\"mirror.gcr.io\"]\n\n[worker.oci]\n  gc = true\n",
        ),
        (
            "etc/rancher/k3s/registries.yaml",
            "# by hand\nmirrors:\n  docker.io:\n    endpoint:\n      - \"https://mirror.example\"\nconfigs:\n  mirror.example:\n    auth:\n      username: me\n",
        ),
    ] {
        let path = root.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
}

#[test]
fn writing_twice_changes_nothing_and_undo_leaves_no_trace() {
    let (empty, furnished) = places();
    furnish(furnished.path());
    for root in [empty.path(), furnished.path()] {
        let before = everything(root);
        for client in Client::ALL {
            let (said, failure) = write_default(root, client, "").unwrap();
            assert!(failure.is_none() && !said.contains("nothing to change"), "{said}");
        }
        let once = everything(root);
        for client in Client::ALL {
            let (said, failure) = write_default(root, client, "").unwrap();
            let is_file = !matches!(client, Client::Kaniko | Client::Oras);
            assert!(failure.is_none() && (said.contains("nothing to change") == is_file), "{said}");
            assert!(!said.contains("now run"), "{said}");
        }
        assert_eq!(everything(root), once, "the second time changes nothing");
        for client in Client::ALL {
            let (said, failure) = undo_all(root, client);
            assert!(failure.is_none(), "{said} {failure:?}");
            assert!(undo_all(root, client).0.contains("nothing to put back"));
        }
        assert_eq!(everything(root), before, "all is as it was before");
    }
}

#[test]
fn what_others_have_in_their_files_stays() {
    let (root, _) = places();
    furnish(root.path());
    for client in Client::ALL {
        write_default(root.path(), client, "").unwrap();
    }
    let read = |path: &str| std::fs::read_to_string(root.path().join(path)).unwrap();
    for path in [
        "etc/docker/daemon.json",
        "etc/containerd/config.toml",
        "etc/containerd/certs.d/docker.io/hosts.toml",
        "etc/containers/registries.conf",
        "etc/containers/registries.conf.d/ocistern.conf",
        "etc/buildkit/buildkitd.toml",
        "etc/rancher/k3s/registries.yaml",
    ] {
        golden(&format!("merged/{}", path.replace('/', "_")), &read(path));
    }
}

#[test]
fn another_configuration_takes_the_place_of_the_one_before() {
    let (root, _) = places();
    furnish(root.path());
    let before = everything(root.path());
    write_default(root.path(), Client::Containerd, "").unwrap();
    write_default(root.path(), Client::Docker, "").unwrap();
    let other = "builtin_upstreams = false\n[[listener]]\naddress = \"127.0.0.1:6000\"\ndefault_upstream = \"docker.io\"\n\
                 [upstream.\"docker.io\"]\nurl = \"https://docker.io\"\n";
    let (said, failure) = write_default(root.path(), Client::Containerd, other).unwrap();
    assert!(failure.is_none() && said.contains("ghcr.io/hosts.toml is not needed any more"), "{said}");
    write_default(root.path(), Client::Docker, other).unwrap();
    let certificates = root.path().join("etc/containerd/certs.d");
    assert!(!certificates.join("ghcr.io").exists(), "what is no upstream any more has no file");
    for file in [certificates.join("docker.io/hosts.toml"), root.path().join("etc/docker/daemon.json")] {
        let text = std::fs::read_to_string(file).unwrap();
        assert!(text.contains("127.0.0.1:6000") && !text.contains("127.0.0.1:5000"), "{text}");
    }
    assert!(undo_all(root.path(), Client::Containerd).1.is_none());
    assert!(undo_all(root.path(), Client::Docker).1.is_none());
    assert_eq!(everything(root.path()), before, "the backup is of the first time");
}

#[test]
fn a_file_that_was_edited_is_not_put_back() {
    let (root, _) = places();
    furnish(root.path());
    let file = root.path().join("etc/docker/daemon.json");
    let before = std::fs::read_to_string(&file).unwrap();
    write_default(root.path(), Client::Docker, "").unwrap();
    let edited = std::fs::read_to_string(&file).unwrap().replace("journald", "json-file");
    std::fs::write(&file, &edited).unwrap();
    let error = undo_all(root.path(), Client::Docker).1.unwrap().to_string();
    let backup = file.with_file_name("daemon.json.ocistern-backup");
    let record = file.with_file_name(".daemon.json.ocistern-setup");
    for part in
        ["was edited after", &format!("mv {} {}", backup.display(), file.display()), &record.display().to_string()]
    {
        assert!(error.contains(part), "{error}");
    }
    assert_eq!(std::fs::read_to_string(&file).unwrap(), edited, "it is left alone");
    // What it says does what it says.
    let (said, _) = write_default(root.path(), Client::Docker, "").unwrap();
    assert!(said.contains("nothing to change"), "ocistern's lines are still there: {said}");
    std::fs::rename(&backup, &file).unwrap();
    std::fs::remove_file(&record).unwrap();
    assert!(undo_all(root.path(), Client::Docker).0.contains("nothing to put back"));
    assert_eq!(std::fs::read_to_string(&file).unwrap(), before);
}

#[test]
fn a_mixture_of_edits_and_ours_is_never_put_back() {
    let (root, _) = places();
    furnish(root.path());
    let file = root.path().join("etc/docker/daemon.json");
    write_default(root.path(), Client::Docker, "").unwrap();
    std::fs::write(&file, "{ \"debug\": true }\n").unwrap();
    let (said, _) = write_default(root.path(), Client::Docker, "").unwrap();
    assert!(said.contains("somebody had edited it"), "{said}");
    let mixed = std::fs::read_to_string(&file).unwrap();
    assert!(mixed.contains("debug") && mixed.contains("127.0.0.1:5000"), "{mixed}");
    assert!(matches!(undo_all(root.path(), Client::Docker).1, Some(SetupError::Edited { .. })));
    assert_eq!(std::fs::read_to_string(&file).unwrap(), mixed);
}

#[test]
fn what_cannot_be_merged_into_is_refused_with_its_place() {
    let docker = "etc/docker/daemon.json";
    for (client, path, text, said) in [
        (Client::Docker, docker, "{\n  \"a\": 1,\n}\n", "daemon.json:3:1: this is no JSON"),
        (Client::Docker, docker, "{ // why\n}", "daemon.json:1:3: this is no JSON"),
        (Client::Docker, docker, "[]", "daemon.json:1:1: this is no JSON object"),
        (Client::Docker, docker, "{\"registry-mirrors\": \"https://a\"}", "\"registry-mirrors\" is not a list"),
        (Client::Containerd, "etc/containerd/config.toml", "version = 2\n[a\n", "config.toml:2:3: this is no TOML"),
        (Client::Containerd, "etc/containerd/config.toml", "[plugins.cri]\nx = 1\n", "of version 1"),
        (Client::Containerd, "etc/containerd/certs.d/quay.io/hosts.toml", "host = 1\n", "\"host\" is no table"),
        (Client::Podman, "etc/containers/registries.conf", "[[registry]\n", "registries.conf:1:12: this is no TOML"),
        (
            Client::Podman,
            "etc/containers/registries.conf.d/a.conf",
            "registry = [{ location = \"docker.io\" }]\n",
            "write it as [[registry]] tables",
        ),
        (
            Client::Buildkit,
            "etc/buildkit/buildkitd.toml",
            "[registry.\"docker.io\"]\nmirrors = 1\n",
            "mirrors is no list",
        ),
        (Client::K3s, "etc/rancher/k3s/registries.yaml", "mirrors:\n  a: [\n", "registries.yaml:3:"),
        (
            Client::K3s,
            "etc/rancher/k3s/registries.yaml",
            "mirrors: {a: {}}\n",
            "registries.yaml:1:1: mirrors is written in a way",
        ),
    ] {
        let (root, _) = places();
        let file = root.path().join(path);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(&file, text).unwrap();
        let error = failure_of(write_default(root.path(), client, ""));
        assert!(error.contains(said) && error.contains(path), "{error}\n  should say: {said}");
        assert_eq!(std::fs::read_to_string(&file).unwrap(), text, "it is left alone");
    }
}

#[test]
fn docker_with_the_containerd_image_store_has_mirrors_for_all() {
    let (root, certificates) = places();
    let file = root.path().join("etc/docker/daemon.json");
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    std::fs::write(&file, "{ \"features\": { \"containerd-snapshotter\": true } }\n").unwrap();
    let disk = Disk::new(Some(root.path().to_owned()));
    let instance = instance_of("remote-tls", certificates.path()).unwrap();
    let plan = Client::Docker.plan(&Site { disk: &disk, whose: &Whose::Machine, instance: &instance }).unwrap();
    let shown = show(Client::Docker, &plan);
    let ca = std::fs::read_to_string(certificates.path().join("ca.crt")).unwrap();
    golden("merged/docker-image-store.txt", &shown.replace(&ca, "(the CA's certificate)\n"));
}

#[test]
fn containerd_is_found_where_it_looks() {
    let one = "[plugins.\"io.containerd.grpc.v1.cri\".registry]\n";
    let two = "[plugins.\"io.containerd.cri.v1.images\".registry]\n";
    let (usual, other) = ("etc/containerd/certs.d/quay.io/hosts.toml", "etc/elsewhere/quay.io/hosts.toml");
    for (config, file, restarts, said) in [
        (format!("version = 3\n{two}config_path = '/etc/elsewhere:/etc/docker/certs.d'\n"), other, false, "are read at each pull"),
        (format!("version = 2\n{one}config_path = ''\n"), usual, true, "config_path was not set"),
        ("version = 3\n".to_owned(), usual, true, "config_path was not set"),
        ("version = 2\nimports = ['conf.d/*.toml']\n".to_owned(), other, false, "are read at each pull"),
        ("version = 2\ndisabled_plugins = ['cri']\n".to_owned(), usual, false, "are read at each pull"),
        (
            "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry.mirrors.\"a.example\"]\nendpoint = ['https://b']\n".to_owned(),
            usual,
            false,
            "has registry.mirrors, the older way",
        ),
    ] {
        let (root, _) = places();
        let directory = root.path().join("etc/containerd");
        std::fs::create_dir_all(directory.join("conf.d")).unwrap();
        std::fs::write(directory.join("config.toml"), &config).unwrap();
        std::fs::write(directory.join("conf.d/a.toml"), format!("version = 2\n{one}config_path = '/etc/elsewhere'\n")).unwrap();
        let (out, failure) = write_default(root.path(), Client::Containerd, "").unwrap();
        assert!(failure.is_none() && out.contains(said), "{config}:\n{out}");
        assert!(root.path().join(file).exists(), "{config}");
        assert_eq!(out.contains("systemctl restart containerd"), restarts, "{config}:\n{out}");
        let now = std::fs::read_to_string(directory.join("config.toml")).unwrap();
        assert_eq!(now != config, restarts, "config.toml is changed only where it has to be: {now}");
        let key = if config.starts_with("version = 3") { two } else { one };
        assert!(!restarts || (now.contains(key) && now.contains("config_path = \"/etc/containerd/certs.d\"")), "{now}");
        undo_all(root.path(), Client::Containerd);
        assert_eq!(std::fs::read_to_string(directory.join("config.toml")).unwrap(), config);
        assert!(!root.path().join(file).exists(), "{config}");
    }
}

#[test]
fn the_installed_clients_are_found() {
    let (root, _) = places();
    let disk = Disk::new(Some(root.path().to_owned()));
    assert_eq!(installed(&disk), [], "nothing of this machine counts for an image");
    for program in ["usr/bin/skopeo", "usr/local/bin/oras", "usr/sbin/dockerd"] {
        let file = root.path().join(program);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, "").unwrap();
    }
    assert_eq!(installed(&disk), [Client::Docker, Client::Podman, Client::Oras]);
}

/// A file of this machine, and an image beside it.
fn machine_and_image() -> (tempfile::TempDir, PathBuf, PathBuf) {
    let (machine, _) = places();
    let (victim, image) = (machine.path().join("victim"), machine.path().join("image"));
    std::fs::write(&victim, "{ \"secret\": \"of the machine\" }\n").unwrap();
    std::fs::create_dir_all(image.join("etc/docker")).unwrap();
    (machine, victim, image)
}

/// What the record beside a file says, where `text` is in the file.
fn record(before: Option<&str>, directories: &[&str], text: &str) -> String {
    let written = crate::oci::Digest::of(crate::oci::Algorithm::Sha256, text.as_bytes()).to_string();
    let record = serde_json::json!({
        "version": 1, "client": "docker", "before": before, "written": [written], "directories": directories,
    });
    record.to_string()
}

#[test]
fn what_a_record_in_an_image_says_leads_to_nothing_outside() {
    let absolute = |victim: &Path| victim.display().to_string();
    let names: [&dyn Fn(&Path) -> String; 5] = [
        &absolute,
        &|_| "../../../victim".to_owned(),
        &|_| "other.json.ocistern-backup".to_owned(),
        &|_| "daemon.json.ocistern-backup-".to_owned(),
        &|_| "daemon.json".to_owned(),
    ];
    for before in names {
        let (_machine, victim, image) = machine_and_image();
        let file = image.join("etc/docker/daemon.json");
        let before = before(&victim);
        std::fs::write(&file, "{}").unwrap();
        std::fs::write(file.with_file_name("other.json.ocistern-backup"), "another's").unwrap();
        std::fs::write(file.with_file_name(".daemon.json.ocistern-setup"), record(Some(&before), &[], "{}")).unwrap();
        let untouched = everything(&image);
        let (_, failure) = undo_all(&image, Client::Docker);
        let failure = failure.unwrap_or_else(|| panic!("{before} is put back")).to_string();
        assert!(failure.contains(".daemon.json.ocistern-setup") && failure.contains("not as ocistern"), "{failure}");
        failure_of(write_default(&image, Client::Docker, DOCKER_HUB));
        assert_eq!(everything(&image), untouched, "{before}");
        assert!(victim.exists(), "{before}");
    }
}

/// Docker Hub behind the only listener, as docker wants it.
const DOCKER_HUB: &str = "[[listener]]\naddress = \"127.0.0.1:5000\"\ndefault_upstream = \"docker.io\"\n";

#[test]
fn no_link_of_an_image_leads_out_of_it() {
    use std::os::unix::fs::symlink;
    for link in ["etc/docker/daemon.json.ocistern-backup", "etc/docker/.daemon.json.ocistern-setup"] {
        let (machine, victim, image) = machine_and_image();
        std::fs::write(image.join("etc/docker/daemon.json"), "{}").unwrap();
        let said = record(Some("daemon.json.ocistern-backup"), &[], "{}");
        std::fs::write(image.join("etc/docker/.daemon.json.ocistern-setup"), said.clone()).unwrap();
        std::fs::write(image.join("etc/docker/daemon.json.ocistern-backup"), "{}\n").unwrap();
        std::fs::remove_file(image.join(link)).unwrap();
        if link.ends_with("setup") {
            std::fs::write(&victim, &said).unwrap();
        }
        symlink("../../../victim", image.join(link)).unwrap();
        let before = everything(machine.path());
        assert!(undo_all(&image, Client::Docker).1.is_some(), "{link}");
        failure_of(write_default(&image, Client::Docker, DOCKER_HUB));
        assert_eq!(everything(machine.path()), before, "{link}");
    }
    // Directories: nothing is looked for, made, or removed behind them.
    let (machine, _, image) = machine_and_image();
    let outside = machine.path().join("outside");
    std::fs::create_dir_all(outside.join("empty")).unwrap();
    std::fs::create_dir_all(outside.join("quay.io_5000_")).unwrap();
    std::fs::write(image.join("etc/docker/daemon.json"), "{}").unwrap();
    std::fs::write(image.join("etc/docker/.daemon.json.ocistern-setup"), record(None, &["/etc/leads/out/empty"], "{}"))
        .unwrap();
    std::fs::create_dir(image.join("etc/leads")).unwrap();
    symlink(&outside, image.join("etc/leads/out")).unwrap();
    assert!(undo_all(&image, Client::Docker).1.is_none());
    assert!(outside.join("empty").exists(), "a directory of the machine is removed");
    std::fs::write(outside.join("containerd"), "").unwrap();
    std::fs::create_dir_all(image.join("usr")).unwrap();
    symlink(&outside, image.join("usr/bin")).unwrap();
    assert_eq!(installed(&Disk::new(Some(image.clone()))), [], "a program of the machine is none of the image");
    // What records lie outside is not found.
    std::fs::write(outside.join("daemon.json"), "{}").unwrap();
    std::fs::write(outside.join(".daemon.json.ocistern-setup"), record(None, &[], "{}")).unwrap();
    std::fs::remove_dir(image.join("etc/docker")).unwrap();
    symlink(&outside, image.join("etc/docker")).unwrap();
    let before = everything(machine.path());
    assert!(undo_all(&image, Client::Docker).1.is_some());
    failure_of(write_default(&image, Client::Docker, DOCKER_HUB));
    assert_eq!(everything(machine.path()), before);
    std::fs::remove_file(image.join("etc/docker")).unwrap();
    std::fs::create_dir(image.join("etc/docker")).unwrap();
    symlink("../../../outside", image.join("etc/docker/certs.d")).unwrap();
    assert!(undo_all(&image, Client::Docker).0.contains("nothing to put back"), "another's link is in nobody's way");
}

#[test]
fn what_a_link_leads_to_is_put_back() {
    use std::os::unix::fs::{PermissionsExt as _, symlink};
    let (root, _) = places();
    furnish(root.path());
    // A file, a directory, and one whose record the directory itself would show, too.
    for (name, there) in [
        ("etc/docker/daemon.json", "srv/dot/daemon.json"),
        ("etc/containerd/certs.d", "srv/dot/hosts"),
        ("etc/containers/registries.conf", "etc/containers/real.conf"),
    ] {
        let (name, there) = (root.path().join(name), root.path().join(there));
        std::fs::create_dir_all(there.parent().unwrap()).unwrap();
        std::fs::rename(&name, &there).unwrap();
        let up = "../".repeat(name.strip_prefix(root.path()).unwrap().components().count() - 1);
        symlink(Path::new(&up).join(there.strip_prefix(root.path()).unwrap()), &name).unwrap();
    }
    // Whatever the umask is: what others may write is not gone by.
    for (path, _) in everything(root.path()).iter().filter(|(_, text)| text.is_none()) {
        std::fs::set_permissions(root.path().join(path), std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    let before = everything(root.path());
    let clients = [Client::Docker, Client::Containerd, Client::Podman];
    for client in clients {
        assert!(write_default(root.path(), client, DOCKER_HUB).unwrap().1.is_none());
    }
    let once = everything(root.path());
    assert_ne!(once, before);
    for client in clients {
        let (said, failure) = write_default(root.path(), client, DOCKER_HUB).unwrap();
        assert!(failure.is_none() && !said.contains("not needed any more"), "{said}");
    }
    assert_eq!(everything(root.path()), once, "the second time changes nothing");
    // What is not wanted any more goes, behind links too.
    let other = "builtin_upstreams = false\n[[listener]]\naddress = \"127.0.0.1:5000\"\n[upstream.\"docker.io\"]\nurl = \"https://docker.io\"\n";
    let (said, failure) = write_default(root.path(), Client::Containerd, other).unwrap();
    assert!(failure.is_none() && said.contains("ghcr.io/hosts.toml is not needed any more"), "{said}");
    assert!(!root.path().join("srv/dot/hosts/ghcr.io").exists());
    for client in clients {
        let (said, failure) = undo_all(root.path(), client);
        assert!(failure.is_none() && !said.contains("nothing to put back"), "{said} {failure:?}");
    }
    assert_eq!(everything(root.path()), before);
    for client in clients {
        assert!(undo_all(root.path(), client).0.contains("nothing to put back"));
    }
}

#[test]
fn a_link_that_leads_in_a_circle_ends_the_search() {
    use std::os::unix::fs::symlink;
    let (root, _) = places();
    furnish(root.path());
    for name in ["a", "b", "c", "d"] {
        symlink(".", root.path().join("etc/docker").join(name)).unwrap();
        symlink(name, root.path().join("etc/docker").join(format!("self-{name}"))).unwrap();
    }
    symlink("loop", root.path().join("etc/docker/loop")).unwrap();
    write_default(root.path(), Client::Docker, DOCKER_HUB).unwrap();
    let (said, failure) = undo_all(root.path(), Client::Docker);
    assert!(failure.is_none() && said.matches("is as it was before").count() == 1, "{said}");
}

#[test]
fn putting_back_that_was_cut_off_is_gone_on_with() {
    for edited in [false, true] {
        let (root, _) = places();
        furnish(root.path());
        let before = everything(root.path());
        let file = root.path().join("etc/docker/daemon.json");
        write_default(root.path(), Client::Docker, DOCKER_HUB).unwrap();
        // As the rename of the backup leaves it, before the record is removed.
        std::fs::rename(file.with_file_name("daemon.json.ocistern-backup"), &file).unwrap();
        if edited {
            let (said, failure) = write_default(root.path(), Client::Docker, DOCKER_HUB).unwrap();
            assert!(failure.is_none() && said.contains("what was there before is in"), "{said}");
        }
        let (_, failure) = undo_all(root.path(), Client::Docker);
        assert!(failure.is_none(), "{failure:?}");
        assert_eq!(everything(root.path()), before);
    }
}

#[test]
fn a_backup_that_is_gone_is_told_with_what_to_do() {
    let (root, _) = places();
    furnish(root.path());
    let file = root.path().join("etc/docker/daemon.json");
    write_default(root.path(), Client::Docker, DOCKER_HUB).unwrap();
    std::fs::remove_file(file.with_file_name("daemon.json.ocistern-backup")).unwrap();
    let (_, failure) = undo_all(root.path(), Client::Docker);
    let failure = failure.unwrap().to_string();
    let record = file.with_file_name(".daemon.json.ocistern-setup");
    assert!(failure.contains("is gone") && failure.contains(&format!("rm {}", record.display())), "{failure}");
    std::fs::remove_file(record).unwrap();
    assert!(undo_all(root.path(), Client::Docker).0.contains("nothing to put back"), "it does what it says");
}

#[test]
fn what_fails_for_one_file_leaves_the_others_alone() {
    let (root, _) = places();
    let certificates = root.path().join("etc/containerd/certs.d");
    let temporary = certificates.join(format!("ghcr.io/.hosts.toml.ocistern-{}", std::process::id()));
    std::fs::create_dir_all(certificates.join("quay.io")).unwrap();
    std::fs::create_dir_all(temporary.parent().unwrap()).unwrap();
    // One that nothing can be merged into, and one that cannot be written.
    std::fs::write(certificates.join("quay.io/hosts.toml"), "[[").unwrap();
    std::fs::write(&temporary, "").unwrap();
    let disk = Disk::new(Some(root.path().to_owned()));
    let instance = Instance::of(&Config::from_toml("").unwrap(), &Said::default(), NOW).unwrap();
    let site = Site { disk: &disk, whose: &Whose::Machine, instance: &instance };
    let (said, failures) = write(&site, Client::Containerd, Client::Containerd.plan(&site).unwrap());
    let failures: Vec<String> = failures.iter().map(ToString::to_string).collect();
    assert_eq!(failures.len(), 2, "{failures:?}");
    assert!(
        failures[0].contains("quay.io/hosts.toml:1:") && failures[1].contains("ghcr.io/hosts.toml"),
        "{failures:?}"
    );
    assert!(
        certificates.join("docker.io/hosts.toml").exists() && root.path().join("etc/containerd/config.toml").exists()
    );
    assert!(said.contains("docker.io/hosts.toml is new") && said.contains("systemctl restart containerd"), "{said}");
    let shown = Client::Containerd.plan(&site).unwrap();
    assert!(show(Client::Containerd, &shown).contains("docker.io/hosts.toml") && shown.failures.len() == 1);
    std::fs::remove_file(temporary).unwrap();
    std::fs::remove_file(certificates.join("quay.io/hosts.toml")).unwrap();
    assert!(write_default(root.path(), Client::Containerd, "").unwrap().1.is_none(), "the second time does the rest");
}

#[test]
fn where_a_file_cannot_be_read_nothing_counts_as_not_needed() {
    let (root, _) = places();
    let file = root.path().join("etc/docker/daemon.json");
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    std::fs::write(&file, "{ \"features\": { \"containerd-snapshotter\": true } }\n").unwrap();
    write_default(root.path(), Client::Docker, DOCKER_HUB).unwrap();
    let hosts = root.path().join("etc/docker/certs.d/ghcr.io/hosts.toml");
    assert!(hosts.exists());
    std::fs::write(&file, "{").unwrap();
    failure_of(write_default(root.path(), Client::Docker, DOCKER_HUB));
    assert!(hosts.exists(), "it may be wanted as before");
}

#[test]
fn an_edit_of_a_file_of_ours_is_kept_and_undo_goes_on() {
    let (root, _) = places();
    let before = everything(root.path());
    let ours = root.path().join("etc/containers/registries.conf.d/ocistern.conf");
    write_default(root.path(), Client::Podman, "").unwrap();
    let edited = std::fs::read_to_string(&ours).unwrap() + "# precious\n";
    std::fs::write(&ours, &edited).unwrap();
    let (said, failure) = write_default(root.path(), Client::Podman, "").unwrap();
    let copy = ours.with_file_name("ocistern.conf.ocistern-backup");
    assert!(failure.is_none() && said.contains(&format!("kept in {}", copy.display())), "{said}");
    assert_eq!(std::fs::read_to_string(&copy).unwrap(), edited);
    assert!(!std::fs::read_to_string(&ours).unwrap().contains("precious"));
    let (said, failure) = undo_all(root.path(), Client::Podman);
    assert!(failure.is_none() && said.contains("is removed"), "{said} {failure:?}");
    std::fs::remove_file(copy).unwrap();
    std::fs::remove_dir_all(root.path().join("etc")).unwrap();
    assert_eq!(everything(root.path()), before, "nothing but the copy of the edits was left");
}

#[test]
fn an_edit_that_is_merged_into_is_kept_as_it_was() {
    let (root, _) = places();
    furnish(root.path());
    let file = root.path().join("etc/docker/daemon.json");
    write_default(root.path(), Client::Docker, DOCKER_HUB).unwrap();
    std::fs::write(&file, "{ \"debug\": true }\n").unwrap();
    let (said, _) = write_default(root.path(), Client::Docker, DOCKER_HUB).unwrap();
    let copy = file.with_file_name("daemon.json.ocistern-backup-2");
    assert!(said.contains(&copy.display().to_string()), "{said}");
    assert_eq!(std::fs::read_to_string(&copy).unwrap(), "{ \"debug\": true }\n");
    // The mixture is no edit: it is not kept again.
    write_default(root.path(), Client::Docker, &DOCKER_HUB.replace("5000", "6000")).unwrap();
    assert!(!file.with_file_name("daemon.json.ocistern-backup-3").exists());
}

#[test]
fn no_credential_is_shown() {
    let (root, _) = places();
    let file = root.path().join("etc/rancher/k3s/registries.yaml");
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    std::fs::write(&file, "configs:\n  a.example:\n    auth:\n      username: me\n      password: hunter2\n").unwrap();
    let disk = Disk::new(Some(root.path().to_owned()));
    let instance = Instance::of(&Config::from_toml("").unwrap(), &Said::default(), NOW).unwrap();
    let shown = show(
        Client::K3s,
        &Client::K3s.plan(&Site { disk: &disk, whose: &Whose::Machine, instance: &instance }).unwrap(),
    );
    assert!(!shown.contains("hunter2") && shown.contains("password: \"***\""), "{shown}");
    assert!(shown.contains("*** stands for credentials") && shown.contains("docker.io"), "{shown}");
    write_default(root.path(), Client::K3s, "").unwrap();
    assert!(std::fs::read_to_string(&file).unwrap().contains("hunter2"), "it stays in the file");
}

/// A file's digest is a file's secret where it is short.
#[test]
fn records_are_for_their_owner_alone() {
    use std::os::unix::fs::PermissionsExt as _;
    let (root, _) = places();
    let record = root.path().join("etc/docker/.daemon.json.ocistern-setup");
    let mode = || std::fs::metadata(&record).unwrap().permissions().mode() & 0o7777;
    write_default(root.path(), Client::Docker, DOCKER_HUB).unwrap();
    assert_eq!(mode(), 0o600);
    // Those of earlier versions are so from the next time on.
    std::fs::set_permissions(&record, std::fs::Permissions::from_mode(0o644)).unwrap();
    write_default(root.path(), Client::Docker, &DOCKER_HUB.replace("5000", "6000")).unwrap();
    assert_eq!(mode(), 0o600);
}

#[test]
fn no_file_is_read_that_is_too_large() {
    for (name, most) in [("daemon.json", "4 MiB"), (".daemon.json.ocistern-setup", "64 KiB")] {
        let (root, _) = places();
        furnish(root.path());
        let file = root.path().join("etc/docker").join(name);
        std::fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(&file)
            .unwrap()
            .set_len(8 << 20)
            .unwrap();
        let mut failures = vec![failure_of(write_default(root.path(), Client::Docker, DOCKER_HUB))];
        if name.starts_with('.') {
            failures.push(undo_all(root.path(), Client::Docker).1.unwrap().to_string());
        }
        for failure in failures {
            assert!(failure.contains(&format!("{}: larger than {most}", file.display())), "{failure}");
        }
        assert_eq!(std::fs::metadata(&file).unwrap().len(), 8 << 20, "it is left alone");
    }
}

#[test]
fn a_record_names_no_directory_but_those_that_its_file_lies_in() {
    let (_machine, _, image) = machine_and_image();
    let file = image.join("etc/docker/certs.d/a/ca.crt");
    for directory in ["var/empty", "etc/docker/empty", "etc/other/empty", "etc/docker/certs.d/a"] {
        std::fs::create_dir_all(image.join(directory)).unwrap();
    }
    std::fs::write(&file, "{}").unwrap();
    let directories = [
        "/var",
        "/var/empty",
        "/etc/docker/empty",
        "/etc/docker/certs.d/../empty",
        "/etc/other/empty",
        "/etc/docker/certs.d/a",
    ];
    std::fs::write(file.with_file_name(".ca.crt.ocistern-setup"), record(None, &directories, "{}")).unwrap();
    let (said, failure) = undo_all(&image, Client::Docker);
    assert!(failure.is_none() && said.contains("ca.crt is removed"), "{said} {failure:?}");
    assert!(!image.join("etc/docker/certs.d/a").exists(), "that in which the file lay goes");
    for directory in ["var/empty", "etc/docker/empty", "etc/other/empty", "etc/docker/certs.d"] {
        assert!(image.join(directory).exists(), "{directory} is removed");
    }
}

#[test]
fn a_record_behind_a_link_is_gone_by_only_if_nobody_else_can_have_written_it() {
    use std::os::unix::fs::{PermissionsExt as _, symlink};
    for (mode, owner, taken) in
        [(0o755, None, true), (0o775, None, false), (0o1777, None, false), (0o755, Some(4242), false)]
    {
        if owner.is_some() && !rustix::process::geteuid().is_root() {
            continue;
        }
        for is_directory in [false, true] {
            let (_machine, _, image) = machine_and_image();
            let (certificates, other) = (image.join("etc/docker/certs.d"), image.join("other"));
            for directory in [&certificates, &other, &image.join("victim")] {
                std::fs::create_dir_all(directory).unwrap();
            }
            if is_directory {
                symlink("../../../other", certificates.join("reg")).unwrap();
            } else {
                std::fs::create_dir(certificates.join("reg")).unwrap();
                symlink("../../../../other/ca.crt", certificates.join("reg/ca.crt")).unwrap();
            }
            std::fs::write(other.join("ca.crt"), "theirs").unwrap();
            let planted = other.join(".ca.crt.ocistern-setup");
            std::fs::write(&planted, record(None, &["/victim", "/other"], "theirs")).unwrap();
            std::fs::set_permissions(&other, std::fs::Permissions::from_mode(mode)).unwrap();
            if let Some(owner) = owner {
                std::os::unix::fs::chown(&planted, Some(owner), None).unwrap();
            }
            let (_, written) = write_default(&image, Client::Docker, DOCKER_HUB).unwrap();
            let (said, undone) = undo_all(&image, Client::Docker);
            assert!(image.join("victim").exists(), "{said}");
            assert_eq!(other.join("ca.crt").exists(), !taken, "{said}");
            assert!(taken || other.exists());
            for failure in [written, undone] {
                let failure = failure.map_or_else(String::new, |failure| failure.to_string());
                assert_eq!(failure.contains(&format!("{}: ", planted.display())), !taken, "{failure}");
            }
        }
    }
}

/// What was written for a client, with what failed and what was said.
fn written_beside(client: Client, files: &[(&str, &str)], whose: &Whose) -> (tempfile::TempDir, String, Vec<String>) {
    let (root, _) = places();
    for (path, text) in files {
        let path = root.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    let before = everything(root.path());
    let (said, failures) = write_again(root.path(), client, whose);
    let once = everything(root.path());
    let (again, _) = write_again(root.path(), client, whose);
    assert!(!again.contains("changed") && !again.contains("not needed"), "{again}");
    assert_eq!(everything(root.path()), once, "the second time changes nothing");
    let (_, undone) = undo(&Disk::new(Some(root.path().to_owned())), whose, client);
    assert!(undone.is_empty(), "{undone:?}");
    assert_eq!(everything(root.path()), before);
    write_again(root.path(), client, whose);
    (root, said, failures)
}

fn write_again(root: &Path, client: Client, whose: &Whose) -> (String, Vec<String>) {
    let disk = Disk::new(Some(root.to_owned()));
    let instance = Instance::of(&Config::from_toml(DOCKER_HUB).unwrap(), &Said::default(), NOW).unwrap();
    let site = Site { disk: &disk, whose, instance: &instance };
    let (said, failures) = write(&site, client, client.plan(&site).unwrap());
    (said, failures.iter().map(ToString::to_string).collect())
}

#[test]
fn a_block_of_many_registries_is_not_switched_off() {
    let (main, drop_in) = ("etc/containers/registries.conf", "etc/containers/registries.conf.d/a.conf");
    let block = "[[registry]]\nprefix = \"*.io\"\nblocked = true\n";
    let list = "registry = [{ prefix = \"*.io\", blocked = true }]\n";
    let first = "[registries.block]\nregistries = [\"docker.io\"]\n";
    for (files, whose, blocked) in [
        (vec![(main, block)], Whose::Machine, true),
        (vec![(drop_in, list)], Whose::Machine, true),
        (vec![(main, first)], Whose::Machine, true),
        // The machine's files hold for a user who has no file of that name.
        (vec![(main, block)], user(), true),
        (vec![(drop_in, "[[registry]]\nlocation = \"docker.io\"\nblocked = true\n")], user(), true),
        (vec![(main, block), ("home/me/.config/containers/registries.conf", "")], user(), false),
        // A later file says otherwise, or a longer prefix.
        (vec![(main, block), (drop_in, "[[registry]]\nprefix = \"*.io\"\nblocked = false\n")], Whose::Machine, false),
    ] {
        let (root, said, failures) = written_beside(Client::Podman, &files, &whose);
        let base = if whose == Whose::Machine { "etc" } else { "home/me/.config" };
        let ours = root.path().join(base).join("containers/registries.conf.d/ocistern.conf");
        let ours = std::fs::read_to_string(ours).unwrap();
        assert_eq!(ours.contains("\"docker.io\""), !blocked, "{files:?}: {ours}");
        assert!(ours.contains("\"mcr.microsoft.com\""), "{files:?}: {ours}");
        if blocked {
            assert_eq!(failures.len(), 1, "{failures:?}");
            for part in [files[0].0, "is blocked", "docker.io", "left out", "[[registry]]"] {
                assert!(failures[0].contains(part), "{part}: {failures:?}\n{said}");
            }
        } else {
            assert!(failures.is_empty(), "{failures:?}");
        }
    }
}

/// An entry of ours for what is blocked since is taken back, also if it was all of the file.
#[test]
fn a_block_that_comes_later_is_not_shadowed_either() {
    let (root, _) = places();
    write_again(root.path(), Client::Podman, &Whose::Machine);
    let ours = root.path().join("etc/containers/registries.conf.d/ocistern.conf");
    assert!(ours.exists());
    let block = ["*.io", "*.com", "*.aws"]
        .map(|prefix| format!("[[registry]]\nprefix = \"{prefix}\"\nblocked = true\n"))
        .concat();
    std::fs::write(root.path().join("etc/containers/registries.conf"), block).unwrap();
    let (said, failures) = write_again(root.path(), Client::Podman, &Whose::Machine);
    assert!(!ours.exists() && said.contains("not needed any more"), "{said}");
    assert_eq!(failures.len(), 3, "{failures:?}");
}

#[test]
fn mirrors_of_many_registries_stay_behind_ours() {
    let main = "etc/containers/registries.conf";
    let of = |text: &str| {
        let (root, said, failures) = written_beside(Client::Podman, &[(main, text)], &Whose::Machine);
        let ours = root.path().join("etc/containers/registries.conf.d/ocistern.conf");
        (std::fs::read_to_string(ours).unwrap(), said, failures)
    };
    for text in [
        "[[registry]]\nprefix = \"*.io\"\ninsecure = true\n[[registry.mirror]]\nlocation = \"mirror.example/all\" # near\ninsecure = true\n",
        "registry = [{ prefix = \"*.io\", insecure = true, mirror = [{ location = \"mirror.example/all\", insecure = true }] }]\n",
    ] {
        let (ours, said, failures) = of(text);
        assert!(failures.is_empty(), "{failures:?}");
        golden("merged/covered-registries.conf", &ours);
        assert!(said.contains("\"*.io\"") && said.contains("taken over"), "{said}");
    }
    // What is not simple is left out: another location, mirrors for digests alone, what is not known.
    for line in ["location = \"elsewhere.example\"", "mirror-by-digest-only = true", "unheard-of = 1"] {
        let (ours, _, failures) = of(&format!("[[registry]]\nprefix = \"*.io\"\n{line}\n"));
        assert!(!ours.contains("\"docker.io\"") && ours.contains("mcr.microsoft.com"), "{line}: {ours}");
        assert!(
            failures.len() == 1 && failures[0].contains("\"*.io\"") && failures[0].contains("left out"),
            "{failures:?}"
        );
    }
    // The longest prefix is the one that holds; and one of our own is merged into as ever.
    let (ours, _, failures) = of(
        "[[registry]]\nprefix = \"*.io\"\nblocked = true\n[[registry]]\nprefix = \"*.k8s.io\"\n[[registry]]\nlocation = \"docker.io\"\n",
    );
    assert!(ours.contains("\"registry.k8s.io\"") && !ours.contains("\"docker.io\""), "{ours}");
    assert!(failures.len() == 1 && failures[0].contains("because of that: gcr.io, ghcr.io, quay.io."), "{failures:?}");
}

#[test]
fn what_goes_round_ours_is_told() {
    let text = "[[registry]]\nlocation = \"docker.io/library\"\n[[registry]]\nprefix = \"docker.io.example\"\nlocation = \"a.example\"\n";
    let (_, said, failures) =
        written_beside(Client::Podman, &[("etc/containers/registries.conf", text)], &Whose::Machine);
    assert!(failures.is_empty(), "{failures:?}");
    assert!(
        said.contains("registries.conf") && said.contains("\"docker.io/library\"") && said.contains("not by ocistern"),
        "{said}"
    );
    assert!(!said.contains("docker.io.example"), "{said}");
}

#[test]
fn what_containerd_has_for_all_registries_stays() {
    let config = (
        "etc/containerd/config.toml",
        "version = 3\n[plugins.\"io.containerd.cri.v1.images\".registry]\nconfig_path = '/etc/containerd/certs.d:/etc/more'\n",
    );
    let docker = ("etc/docker/daemon.json", "{ \"features\": { \"containerd-snapshotter\": true } }\n");
    for (client, other, base) in
        [(Client::Containerd, config, "etc/containerd/certs.d"), (Client::Docker, docker, "etc/docker/certs.d")]
    {
        let default = format!("{base}/_default/hosts.toml");
        let with = |path: &str, text: &str| {
            let (root, said, failures) = written_beside(client, &[other, (path, text)], &Whose::Machine);
            let read = |host: &str| std::fs::read_to_string(root.path().join(base).join(host).join("hosts.toml")).ok();
            (read("ghcr.io"), read("quay.io"), said, failures)
        };
        let mirror = "[host.\"https://mirror.example\"]\ncapabilities = [\"pull\"]\nca = \"/etc/m.crt\"\n";
        let (hub, _, said, failures) = with(&default, mirror);
        let hub = hub.unwrap();
        assert!(failures.is_empty() && said.contains("taken over"), "{failures:?} {said}");
        let places = ["127.0.0.1:5000", "mirror.example", "/etc/m.crt"].map(|part| hub.find(part).unwrap());
        assert!(places.is_sorted(), "{hub}");
        // What stands for the registries themselves may be a block; paths are beside the file; certificates lie there.
        for (path, text) in [
            (default.clone(), "server = \"https://only.example\"\n"),
            (default.clone(), "[host.\"https://mirror.example\"]\nca = \"m.crt\"\n"),
            (default.clone(), "[host.\"https://mirror.example\"]\nclient = [[\"a.crt\", \"/a.key\"]]\n"),
            (default.clone(), "[[\n"),
            (format!("{base}/_default/ca.crt"), "c"),
        ] {
            let (hub, _, _, failures) = with(&path, text);
            assert!(hub.is_none(), "{text}: {hub:?}");
            assert_eq!(failures.len(), 1, "{failures:?}");
            assert!(failures[0].contains("_default") && failures[0].contains("ghcr.io"), "{failures:?}");
        }
        // A registry with a directory of its own is not one of them.
        let (hub, quay, _, failures) = with(&format!("{base}/quay.io/hosts.toml"), mirror);
        assert!(failures.is_empty() && hub.unwrap().contains("ghcr.io") && quay.unwrap().contains("mirror.example"));
    }
    // In a directory that is looked into later.
    let (root, said, failures) = written_beside(
        Client::Containerd,
        &[config, ("etc/more/quay.io/hosts.toml", "server = \"https://only.example\"\n")],
        &Whose::Machine,
    );
    assert!(!root.path().join("etc/containerd/certs.d/quay.io").exists(), "{said}");
    assert!(failures.len() == 1 && failures[0].contains("etc/more/quay.io/hosts.toml"), "{failures:?}");
}

#[test]
fn what_k3s_has_for_all_registries_stays() {
    let path = "etc/rancher/k3s/registries.yaml";
    let with = |text: &str| {
        let (root, said, failures) = written_beside(Client::K3s, &[(path, text)], &Whose::Machine);
        (std::fs::read_to_string(root.path().join(path)).unwrap(), said, failures)
    };
    let (text, said, failures) =
        with("mirrors:\n  \"*\":\n    endpoint:\n      - \"https://mirror.example\"\n  quay.io:\n    endpoint: []\n");
    assert!(failures.is_empty() && said.contains("taken over"), "{failures:?} {said}");
    golden("merged/covered-registries.yaml", &text);
    // Names that are changed would be changed before they come here.
    let (text, _, failures) = with("mirrors:\n  quay.io:\n  \"*\":\n    rewrite:\n      \"^a\": \"b\"\n");
    assert!(text.contains("127.0.0.1:5000") && !text.contains("docker.io"), "only quay.io: {text}");
    assert!(
        failures.len() == 1 && failures[0].contains("registries.yaml:3:3: ") && failures[0].contains("docker.io"),
        "{failures:?}"
    );
    // Every registry is asked of the other nodes, and nothing else.
    let (text, _, failures) = with("mirrors:\n  \"*\":\n");
    assert!(failures.is_empty() && text.contains("docker.io"), "{text}");
}

/// A directory with a certificate alone is a directory all the same.
#[test]
fn a_certificate_takes_the_place_of_nothing_that_holds_for_all() {
    let (_, certificates) = places();
    let instance = instance_of("several", certificates.path()).unwrap();
    for (client, base, more) in [
        (Client::Containerd, "etc/containerd/certs.d", ""),
        (Client::Docker, "etc/docker/certs.d", "{ \"features\": { \"containerd-snapshotter\": true } }\n"),
    ] {
        for (text, expected) in [("server = \"https://only.example\"\n", false), ("", true)] {
            let (root, _) = places();
            std::fs::create_dir_all(root.path().join(base).join("_default")).unwrap();
            std::fs::write(root.path().join(base).join("_default/hosts.toml"), text).unwrap();
            if !more.is_empty() {
                std::fs::write(root.path().join("etc/docker/daemon.json"), more).unwrap();
            }
            let disk = Disk::new(Some(root.path().to_owned()));
            let plan = client.plan(&Site { disk: &disk, whose: &Whose::Machine, instance: &instance }).unwrap();
            let of = |host: &str| plan.files.iter().any(|file| file.path.ends_with(format!("{host}/ca.crt")));
            assert_eq!(of("myregistry.azurecr.io"), expected, "{plan:?}");
            let said: Vec<_> = plan.unwritten.iter().map(ToString::to_string).collect();
            assert_eq!(said.iter().any(|said| said.contains("myregistry.azurecr.io")), !expected, "{said:?}");
        }
    }
}
