//! Tests of the configuration as a whole: layers, merging, and what each mistake is answered with.

mod reference;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Address, Capacity, CertificateFiles, Config, Credentials, Durability, Flags, LogFormat, TagPolicy, layer};
use crate::oci::UpstreamName;

/// No file where a test does not make one.
const NOWHERE: &str = "/nonexistent/ocistern.toml";

pub(super) fn load(flags: &Flags, env: &[(&str, &str)]) -> Config {
    try_load(flags, env).unwrap()
}

pub(super) fn try_load(flags: &Flags, env: &[(&str, &str)]) -> Result<Config, String> {
    let env: HashMap<&str, &str> = env.iter().copied().collect();
    layer::load(flags, &|name| env.get(name).map(ToString::to_string), Path::new(NOWHERE)).map_err(|e| e.to_string())
}

pub(super) fn parse(text: &str) -> Config {
    Config::from_toml(text).unwrap_or_else(|error| panic!("{text}\n{error}"))
}

/// The text of the error, which must be one.
fn error(text: &str) -> String {
    match Config::from_toml(text) {
        Ok(_) => panic!("this is accepted:\n{text}"),
        Err(error) => error.to_string(),
    }
}

fn addresses(config: &Config) -> Vec<String> {
    config.listeners.iter().map(|l| super::parse::show_address(&l.address)).collect()
}

fn default_of(config: &Config, index: usize) -> Option<&str> {
    config.listeners[index].default_upstream.as_ref().map(UpstreamName::as_str)
}

pub(super) fn upstream<'a>(config: &'a Config, name: &str) -> &'a super::Upstream {
    &config.upstreams[&name.parse().unwrap()]
}

pub(super) fn flags() -> Flags {
    Flags::default()
}

#[test]
fn nothing_at_all_is_a_working_configuration() {
    let config = parse("");
    assert_eq!(addresses(&config), ["127.0.0.1:5000", "[::1]:5000"]);
    assert_eq!(config.listeners.iter().map(|l| l.optional).collect::<Vec<_>>(), [false, true]);
    assert_eq!(default_of(&config, 0), Some("docker.io"));
    assert_eq!(config.admin.address.unwrap().to_string(), "127.0.0.1:5080");
    assert_eq!(config.store.capacity, Capacity::Default);
    assert_eq!(config.store.durability, Durability::Strict);
    assert_eq!(config.store.max_manifest, 4 * 1024 * 1024);
    assert_eq!(config.log.format, LogFormat::Auto);
    let names: Vec<&str> = config.upstreams.keys().map(UpstreamName::as_str).collect();
    assert_eq!(
        names,
        ["docker.io", "gcr.io", "ghcr.io", "mcr.microsoft.com", "public.ecr.aws", "quay.io", "registry.k8s.io"]
    );
    let hub = upstream(&config, "docker.io");
    assert_eq!(hub.url.to_string(), "https://registry-1.docker.io");
    assert_eq!(hub.token_hosts, ["auth.docker.io"]);
    assert!(hub.library);
    assert_eq!(hub.tags, TagPolicy::For(Duration::from_mins(5)));
    assert!(!upstream(&config, "ghcr.io").library);
}

#[test]
fn where_the_store_is_does_not_depend_on_where_commands_are_called() {
    let here = std::env::current_dir().unwrap();
    let relative = load(&Flags { root: Some("some/store".into()), ..flags() }, &[]);
    assert_eq!(relative.root, here.join("some/store"));
    assert!(load(&flags(), &[]).root.is_absolute());
}

#[test]
fn root_follows_flag_variable_file_systemd_xdg_home_and_system() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("c.toml");
    std::fs::write(&file, "root = \"/from-file\"").unwrap();
    let file = file.to_str().unwrap();
    let mut env = vec![
        ("OCISTERN_ROOT", "/from-env"),
        ("OCISTERN_CONFIG", file),
        ("CACHE_DIRECTORY", "/from-systemd:/second"),
        ("XDG_CACHE_HOME", "/xdg"),
        ("HOME", "/home/u"),
    ];
    let with_flag = Flags { root: Some("/from-flag".into()), ..flags() };
    assert_eq!(load(&with_flag, &env).root, Path::new("/from-flag"));
    for expected in ["/from-env", "/from-file", "/from-systemd", "/xdg/ocistern", "/home/u/.cache/ocistern"] {
        assert_eq!(load(&flags(), &env).root, Path::new(expected));
        env.remove(0);
    }
    assert_eq!(load(&flags(), &[]).root, Path::new("/var/cache/ocistern"), "a service without a home");
    let relative = [("CACHE_DIRECTORY", "here"), ("XDG_CACHE_HOME", "there"), ("HOME", "/h")];
    assert_eq!(load(&flags(), &relative).root, Path::new("/h/.cache/ocistern"), "relative ones are ignored");
}

#[test]
fn the_first_file_found_is_read() {
    let home = tempfile::tempdir().unwrap();
    let write = |name: &str| {
        let path = home.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, format!("root = \"/{}\"", name.replace('/', "-"))).unwrap();
        path
    };
    let system = write("system");
    let lookup = |pairs: Vec<(&'static str, PathBuf)>, flags: &Flags| {
        let env: HashMap<_, _> = pairs.into_iter().collect();
        let config =
            layer::load(flags, &|name| env.get(name).map(|p| p.to_str().unwrap().to_owned()), &system).unwrap();
        config.root.to_str().unwrap().to_owned()
    };
    assert_eq!(lookup(vec![("HOME", home.path().into())], &flags()), "/system");
    // The home of some system users is not even a directory.
    assert_eq!(lookup(vec![("HOME", "/dev/null".into())], &flags()), "/system");
    write(".config/ocistern/config.toml");
    assert_eq!(lookup(vec![("HOME", home.path().into())], &flags()), "/.config-ocistern-config.toml");
    write("xdg/ocistern/config.toml");
    let xdg = || vec![("HOME", home.path().to_owned()), ("XDG_CONFIG_HOME", home.path().join("xdg"))];
    assert_eq!(lookup(xdg(), &flags()), "/xdg-ocistern-config.toml");
    let named = write("named");
    let with_env = || xdg().into_iter().chain([("OCISTERN_CONFIG", named.clone())]).collect::<Vec<_>>();
    assert_eq!(lookup(with_env(), &flags()), "/named");
    let flag = Flags { config: Some(write("flag")), ..flags() };
    assert_eq!(lookup(with_env(), &flag), "/flag");
}

#[test]
fn a_named_file_must_exist_and_the_error_names_it() {
    let missing = Flags { config: Some(NOWHERE.into()), ..flags() };
    let text = try_load(&missing, &[]).unwrap_err();
    assert!(text.contains(NOWHERE) && text.contains("No such file"), "{text}");
    let text = try_load(&flags(), &[("OCISTERN_CONFIG", NOWHERE)]).unwrap_err();
    assert!(text.contains(NOWHERE), "{text}");
}

#[test]
fn problems_name_file_line_and_every_key_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("c.toml");
    std::fs::write(&file, "[store]\ncapacity = \"lots\"\n\n[upstream.\"a.b\"]\ntags = \"x\"\n").unwrap();
    let text = try_load(&Flags { config: Some(file.clone()), ..flags() }, &[]).unwrap_err();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 2, "{text}");
    let file = file.display();
    assert!(text.contains(&format!("{file}:2: store.capacity: \"lots\" is not a capacity: write")), "{text}");
    assert!(text.contains(&format!("{file}:5: upstream.\"a.b\".tags: \"x\" is not a time for tags: write")), "{text}");
}

#[test]
fn paths_in_a_file_are_relative_to_it() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("c.toml");
    std::fs::write(
        &file,
        r#"root = "store"
        [[listener]]
        address = "127.0.0.1:0"
        tls = { certificate = "c.pem", key = "/k.pem" }
        [[listener]]
        address = "127.0.0.1:0"
        tls = { certificates = [{ certificate = "/c.pem", key = "k.pem" }, { certificate = "d.pem", key = "l.pem" }] }
        [upstream."a.b"]
        ca = "ca.pem"
        credentials = { from = "static", username = "u", password_file = "p" }"#,
    )
    .unwrap();
    let config = load(&Flags { config: Some(file), ..flags() }, &[]);
    let at = |name: &str| directory.path().join(name);
    assert_eq!(config.root, at("store"));
    let tls = config.listeners[0].tls.as_ref().unwrap();
    let files = |certificate: PathBuf, key: PathBuf| CertificateFiles { certificate, key };
    assert_eq!(tls.certificates, [files(at("c.pem"), "/k.pem".into())]);
    let several = &config.listeners[1].tls.as_ref().unwrap().certificates;
    assert_eq!(*several, [files("/c.pem".into(), at("k.pem")), files(at("d.pem"), at("l.pem"))]);
    assert_eq!(upstream(&config, "a.b").ca, Some(at("ca.pem")));
    let Credentials::Static { password_file, .. } = &upstream(&config, "a.b").credentials else { panic!("static") };
    assert_eq!(*password_file, at("p"));
}

#[test]
fn files_that_systemd_passes_are_where_it_says() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("c.toml");
    std::fs::write(
        &file,
        r#"[[listener]]
        address = "127.0.0.1:0"
        htpasswd = "credential:users"
        tls = { certificate = "c.pem", key = "credential:key.pem", client_ca = "credential:ca" }
        [upstream."a.b"]
        ca = "credential:upstream-ca"
        credentials = { from = "static", username = "u", password_file = "credential:password" }
        [upstream."c.d"]
        credentials = { from = "docker-config", path = "credential:docker" }"#,
    )
    .unwrap();
    let env = [("CREDENTIALS_DIRECTORY", "/run/c"), ("OCISTERN_ADMIN__TOKEN_FILE", "credential:admin")];
    let config = load(&Flags { config: Some(file), ..flags() }, &env);
    assert_eq!(config.admin.token_file, Some("/run/c/admin".into()));
    let listener = &config.listeners[0];
    assert_eq!(listener.htpasswd, Some("/run/c/users".into()));
    let tls = listener.tls.as_ref().unwrap();
    let files = CertificateFiles { certificate: directory.path().join("c.pem"), key: "/run/c/key.pem".into() };
    assert_eq!((&tls.certificates[0], tls.client_ca.as_deref()), (&files, Some(Path::new("/run/c/ca"))));
    assert_eq!(upstream(&config, "a.b").ca, Some("/run/c/upstream-ca".into()));
    let credentials = |name| upstream(&config, name).credentials.files();
    assert_eq!(credentials("a.b"), [("password_file", Path::new("/run/c/password"))]);
    assert_eq!(credentials("c.d"), [("path", Path::new("/run/c/docker"))]);
}

#[test]
fn listen_flag_over_variable_over_file() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("c.toml");
    std::fs::write(&file, "[[listener]]\naddress = \"127.0.0.1:1\"\ndefault_upstream = \"quay.io\"").unwrap();
    let env = [("OCISTERN_CONFIG", file.to_str().unwrap()), ("OCISTERN_LISTEN", "127.0.0.1:2, unix:/run/o.sock,")];
    let flag = Flags { listen: vec!["[::1]:3".to_owned()], ..flags() };
    assert_eq!(addresses(&load(&flag, &env)), ["[::1]:3"]);
    assert!(!load(&flag, &env).listeners[0].optional, "the only listener was asked for");
    let by_env = load(&flags(), &env);
    assert_eq!(addresses(&by_env), ["127.0.0.1:2", "unix:/run/o.sock"]);
    assert_eq!(default_of(&by_env, 1), Some("quay.io"), "the file's settings stay");
    assert_eq!(addresses(&load(&flags(), &env[..1])), ["127.0.0.1:1"]);
}

#[test]
fn a_changed_address_never_drops_tls() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("c.toml");
    let listener = |port: u16, tls: &str| format!("[[listener]]\naddress = \"127.0.0.1:{port}\"\n{tls}\n");
    let tls = "tls = { certificate = \"c\", key = \"k\" }";
    let with = |listen: &str| {
        let flags = Flags { listen: vec![listen.to_owned()], config: Some(file.clone()), ..flags() };
        try_load(&flags, &[])
    };
    std::fs::write(&file, listener(1, tls)).unwrap();
    assert!(with("0.0.0.0:9").unwrap().listeners[0].tls.is_some());
    std::fs::write(&file, listener(1, tls) + &listener(2, "")).unwrap();
    assert!(with("127.0.0.1:1").unwrap().listeners[0].tls.is_some());
    assert!(with("127.0.0.1:2").unwrap().listeners[0].tls.is_none());
    let text = with("127.0.0.1:3").unwrap_err();
    assert!(text.starts_with("--listen: 127.0.0.1:3 is none of the several [[listener]]"), "{text}");
}

#[test]
fn a_single_listener_may_leave_its_address_out() {
    let config = parse("[[listener]]\ndefault_upstream = \"ghcr.io\"");
    assert_eq!(addresses(&config), ["127.0.0.1:5000", "[::1]:5000"]);
    assert_eq!(default_of(&config, 1), Some("ghcr.io"));
    let text = error("[[listener]]\naddress = \"127.0.0.1:1\"\n[[listener]]\n");
    assert!(text.starts_with("line 3: listener[1].address: missing: an address"), "{text}");
}

#[test]
fn scalars_of_fixed_tables_come_from_the_environment() {
    let config = load(
        &flags(),
        &[
            ("OCISTERN_STORE__CAPACITY", "10GiB"),
            ("OCISTERN_STORE__DURABILITY", "fast"),
            ("OCISTERN_LIMITS__IDLE", "9s"),
            ("OCISTERN_LIMITS__CONNECTIONS", "7"),
            ("OCISTERN_LOG__FORMAT", "json"),
            ("OCISTERN_ADMIN__ADDRESS", "127.0.0.1:9"),
            ("OCISTERN_BUILTIN_UPSTREAMS", "false"),
            ("OCISTERN_PORT", "tcp://10.0.0.1:5000"),
            ("OCISTERN_LISTEN", ""),
        ],
    );
    assert_eq!(config.store.capacity, Capacity::Bytes(10 << 30));
    assert_eq!(config.store.durability, Durability::Fast);
    assert_eq!(config.limits.idle, Duration::from_secs(9));
    assert_eq!(config.limits.connections, 7);
    assert_eq!(config.log.format, LogFormat::Json);
    assert_eq!(config.admin.address.unwrap().port(), 9);
    assert!(config.upstreams.is_empty());
    assert_eq!(default_of(&config, 0), None, "without upstreams there is no default one");
    assert_eq!(addresses(&config).len(), 2, "an empty variable is an unset one");
}

#[test]
fn a_bad_variable_or_flag_is_named_itself() {
    for (name, value, expected) in [
        ("OCISTERN_STORE__CAPACITY", "x", "OCISTERN_STORE__CAPACITY: \"x\" is not a capacity"),
        ("OCISTERN_LISTEN", "localhost:5000", "OCISTERN_LISTEN: \"localhost:5000\" is not an address to listen on"),
        ("OCISTERN_ADMIN_LISTEN", "5080", "OCISTERN_ADMIN_LISTEN: \"5080\" is not an address for the admin listener"),
        ("OCISTERN_SEALED", "maybe", "OCISTERN_SEALED: \"maybe\" is not true or false"),
        ("OCISTERN_UPSTREAM", "ftp://x", "OCISTERN_UPSTREAM: \"ftp://x\" is not a registry's URL"),
    ] {
        let text = try_load(&flags(), &[(name, value)]).unwrap_err();
        assert!(text.starts_with(expected), "{text}");
    }
    let text = try_load(&Flags { admin_listen: Some("x".to_owned()), ..flags() }, &[]).unwrap_err();
    assert!(text.starts_with("--admin-listen: \"x\" is not an address"), "{text}");
}

#[test]
fn admin_flag_over_variables_over_file() {
    let both = [("OCISTERN_ADMIN_LISTEN", "127.0.0.1:2"), ("OCISTERN_ADMIN__ADDRESS", "127.0.0.1:3")];
    let flag = Flags { admin_listen: Some("off".to_owned()), ..flags() };
    assert_eq!(load(&flag, &both).admin.address, None);
    assert_eq!(load(&flags(), &both).admin.address.unwrap().port(), 2);
    assert_eq!(load(&flags(), &both[1..]).admin.address.unwrap().port(), 3);
}

#[test]
fn upstream_flag_sets_the_default_or_adds() {
    let with =
        |list: &[&str]| load(&Flags { upstream: list.iter().map(ToString::to_string).collect(), ..flags() }, &[]);
    let config = with(&["http://127.0.0.1:5001", "mine=https://r.example/pre/v2/"]);
    assert_eq!(default_of(&config, 0), Some("127.0.0.1-5001"));
    assert_eq!(upstream(&config, "127.0.0.1-5001").url.to_string(), "http://127.0.0.1:5001");
    assert_eq!(upstream(&config, "mine").url.to_string(), "https://r.example/pre");
    assert!(config.upstreams.len() == 9, "the built-in ones stay");
    assert_eq!(default_of(&with(&["r.example"]), 0), Some("r.example"));
    assert!(upstream(&with(&["r.example"]), "r.example").url.https, "without a scheme it is https");
    assert_eq!(
        default_of(&with(&["https://R.example:443"]), 0),
        Some("r.example-443"),
        "a written port is in the name"
    );
    assert_eq!(default_of(&with(&["a=https://r.example"]), 0), Some("docker.io"), "a named one is not the default");
    assert_eq!(default_of(&with(&["http://[::1]:5001"]), 0), Some("1-5001"));
}

#[test]
fn docker_hub_is_one_upstream_by_any_of_its_names() {
    for url in ["docker.io", "https://registry-1.docker.io", "https://docker.io/", "index.docker.io"] {
        let config = load(&Flags { upstream: vec![url.to_owned()], ..flags() }, &[]);
        assert_eq!(default_of(&config, 0), Some("docker.io"), "{url}");
        assert_eq!(config.upstreams.len(), 7, "{url}");
        assert_eq!(upstream(&config, "docker.io").url.host, "registry-1.docker.io", "{url}");
    }
    let alone = load(
        &Flags { upstream: vec!["https://registry-1.docker.io".to_owned()], ..flags() },
        &[("OCISTERN_BUILTIN_UPSTREAMS", "0")],
    );
    assert!(upstream(&alone, "docker.io").library, "Docker Hub's ways come with its URL");
}

#[test]
fn a_flag_changes_only_the_url_of_a_known_upstream() {
    let config = load(&Flags { upstream: vec!["docker.io=http://127.0.0.1:1".to_owned()], ..flags() }, &[]);
    let hub = upstream(&config, "docker.io");
    assert_eq!(hub.url.to_string(), "http://127.0.0.1:1");
    assert!(hub.library);
}

#[test]
fn upstream_flag_over_variable() {
    let env = [("OCISTERN_UPSTREAM", "http://a:1,b=http://b:1")];
    assert!(load(&flags(), &env).upstreams.contains_key(&"b".parse().unwrap()));
    let flag = Flags { upstream: vec!["c=http://c:1".to_owned()], ..flags() };
    assert!(!load(&flag, &env).upstreams.contains_key(&"b".parse().unwrap()));
}

#[test]
fn bad_upstream_flags() {
    for (value, expected) in [
        ("a b=http://x", "\"a b\" is not a name for an upstream"),
        ("x=http://", "\"http://\" is not a registry's URL"),
        ("http://u:secret@x", "a URL must not carry a user or password"),
        ("u:se=cret@x", "a URL must not carry a user or password"),
        ("http://x/?q=secret", "is not a name for an upstream"),
    ] {
        let text = try_load(&Flags { upstream: vec![value.to_owned()], ..flags() }, &[]).unwrap_err();
        assert!(text.starts_with("--upstream: ") && text.contains(expected), "{text}");
        assert!(!value.contains('@') || !text.contains("cret"), "a password is repeated: {text}");
    }
    for word in ["foo", "foo/bar"] {
        let text = try_load(&Flags { upstream: vec![word.to_owned()], ..flags() }, &[]).unwrap_err();
        let expected = format!("--upstream: \"{word}\" is neither NAME=URL nor a URL; write https://… or http://…");
        assert!(text.starts_with(&expected), "{text}");
    }
    for host in ["localhost", "localhost:5001", "registry.example", "http://registry", "[2001:db8::1]:5000"] {
        load(&Flags { upstream: vec![host.to_owned()], ..flags() }, &[]);
    }
    let two = Flags { upstream: vec!["a.b".to_owned(), "c.d".to_owned()], ..flags() };
    assert!(try_load(&two, &[]).unwrap_err().contains("only one upstream can be the default"));
}

#[test]
fn sealed_for_all_and_for_one() {
    for config in [load(&Flags { sealed: true, ..flags() }, &[]), load(&flags(), &[("OCISTERN_SEALED", "1")])] {
        assert!(config.upstreams.values().all(|u| u.sealed && u.tags == TagPolicy::Sealed));
    }
    let text = "[upstream.\"ghcr.io\"]\ntags = \"sealed\"\nrule = [{ tags = \"5m\" }]";
    let config = parse(text);
    let ghcr = upstream(&config, "ghcr.io");
    assert!(ghcr.sealed && !upstream(&config, "quay.io").sealed);
    let policy = ghcr.policy(&"a/b".parse().unwrap(), &"t".parse().unwrap());
    assert_eq!(policy, TagPolicy::Sealed, "a sealed upstream has no exceptions");
}

#[test]
fn a_table_merges_over_the_built_in_upstream() {
    let config = parse("[upstream.\"Docker.IO\"]\ntags = \"1h\"\nconnect = [\"10.0.0.7:443\"]");
    let hub = upstream(&config, "docker.io");
    assert_eq!(hub.tags, TagPolicy::For(Duration::from_hours(1)));
    assert_eq!(hub.url.host, "registry-1.docker.io");
    assert_eq!(hub.connect, ["10.0.0.7:443"]);
    assert!(hub.library);
    let config = parse("builtin_upstreams = false\n[upstream.\"docker.io\"]\nurl = \"http://127.0.0.1:9\"");
    assert_eq!(config.upstreams.len(), 1);
    assert!(!upstream(&config, "docker.io").library, "nothing is inherited from what was dropped");
    assert_eq!(default_of(&config, 0), Some("docker.io"));
}

#[test]
fn a_url_may_follow_from_the_name() {
    let config = parse("[upstream.\"my.azurecr.io\"]\n[upstream.\"localhost:5001\"]\nurl = \"http://localhost:5001\"");
    assert_eq!(upstream(&config, "my.azurecr.io").url.to_string(), "https://my.azurecr.io");
    assert_eq!(upstream(&config, "localhost-5001").url.port, 5001);
    assert_eq!(
        error("[upstream.mine]\ntags = \"5m\""),
        "line 1: upstream.mine: missing: url, such as url = \"https://registry.example\" (it may be left out where the \
         upstream's name is a host)"
    );
}

#[test]
fn rules_decide_in_order() {
    let config = parse(
        r#"[upstream."docker.io"]
        tags = "always"
        [[upstream."docker.io".rule]]
        repository = "library/*"
        tag = "v*"
        tags = "immutable"
        [[upstream."docker.io".rule]]
        repository = "library/**"
        tags = "0s"
        [[upstream."docker.io".rule]]
        tag = "nightly"
        tags = "10s""#,
    );
    let policy =
        |repo: &str, tag: &str| upstream(&config, "docker.io").policy(&repo.parse().unwrap(), &tag.parse().unwrap());
    assert_eq!(policy("library/alpine", "v1"), TagPolicy::Immutable);
    assert_eq!(policy("library/alpine", "nightly"), TagPolicy::Always);
    assert_eq!(policy("team/app", "nightly"), TagPolicy::For(Duration::from_secs(10)));
    assert_eq!(policy("team/app", "latest"), TagPolicy::Always);
}

#[test]
fn credentials_of_each_kind() {
    let of = |credentials: &str| {
        let config = parse(&format!("[upstream.\"a.b\"]\ncredentials = {credentials}"));
        upstream(&config, "a.b").credentials.clone()
    };
    assert!(matches!(of("{ from = \"auto\" }"), Credentials::Auto));
    assert!(matches!(of("{ from = \"anonymous\" }"), Credentials::Anonymous));
    assert!(matches!(
        of("{ from = \"static\", username = \"u\", password_file = \"/p\" }"),
        Credentials::Static { username, password_file } if username == "u" && password_file == Path::new("/p")
    ));
    assert!(matches!(of("{ from = \"docker-config\" }"), Credentials::DockerConfig { path: None }));
    assert!(matches!(of("{ from = \"helper\", name = \"pass\" }"), Credentials::Helper { name } if name == "pass"));
}

#[test]
fn hostnames_are_normal_and_lead_to_configured_upstreams() {
    let config = parse(
        r#"[[listener]]
        address = "127.0.0.1:1"
        tls = { certificate = "c", key = "k" }
        hostnames = { "GHCR.io:443" = "GHCR.IO", "quay.io:8443" = "quay.io" }"#,
    );
    let hostnames: Vec<(&str, &str)> =
        config.listeners[0].hostnames.iter().map(|(host, name)| (host.as_str(), name.as_str())).collect();
    assert_eq!(hostnames, [("ghcr.io", "ghcr.io"), ("quay.io:8443", "quay.io")]);
}

#[test]
fn several_kinds_of_listeners() {
    let config = parse(
        r#"[[listener]]
        address = "0.0.0.0:5000"
        default_upstream = ""
        public_url = "https://cache.example/"
        [[listener]]
        address = "unix:/run/ocistern/o.sock"
        [[listener]]
        address = "127.0.0.1:0"
        [[listener]]
        address = "127.0.0.1:0""#,
    );
    assert_eq!(default_of(&config, 0), None);
    assert_eq!(config.listeners[0].public_url.as_deref(), Some("https://cache.example"));
    assert_eq!(config.listeners[1].address, Address::Unix("/run/ocistern/o.sock".into()));
    assert_eq!(default_of(&config, 1), Some("docker.io"));
}

#[test]
fn syntax_errors_do_not_quote_the_line() {
    let text = error("[upstream.\"a.b\"]\nurl = \"https://u:hunter2@x");
    assert!(text.starts_with("line 2: not TOML"), "{text}");
    assert!(!text.contains("hunter2"), "{text}");
}

#[test]
fn what_is_shown_reads_back_as_the_same() {
    for text in [
        "",
        "builtin_upstreams = false",
        r#"root = "/srv/cache"
        [[listener]]
        address = "127.0.0.1:1"
        default_upstream = ""
        public_url = "https://cache.example"
        tls = { certificate = "/c", key = "/k", client_ca = "/ca" }
        hostnames = { "ghcr.io" = "ghcr.io" }
        [[listener]]
        address = "127.0.0.1:2"
        tls = { certificates = [{ certificate = "/c", key = "/k" }, { certificate = "/d", key = "/l" }], client_ca = "/a" }
        [[listener]]
        address = "unix:/x"
        [admin]
        address = "off"
        token_file = "/t"
        socket = "/s"
        [store]
        capacity = "50%"
        durability = "fast"
        [limits]
        idle = "90s"
        min_rate = 0
        drain = "0s"
        [log]
        format = "json"
        filter = "info,ocistern=debug"
        [upstream."my.registry"]
        url = "http://my.registry:8080/pre"
        credentials = { from = "static", username = "u", password_file = "/p" }
        tags = "immutable"
        ca = "/ca"
        token_hosts = ["t.example"]
        connect = ["10.0.0.1:443"]
        [[upstream."my.registry".rule]]
        repository = "a/**"
        tags = "sealed"
        [upstream.helper]
        url = "h.example"
        credentials = { from = "helper", name = "pass" }
        [upstream.azure]
        url = "https://my.azurecr.us"
        credentials = { from = "azure", tenant = "t", client_id = "i", secret_file = "/s" }
        [upstream.ecr]
        url = "https://1.dkr.ecr.eu-west-1.amazonaws.com"
        credentials = { from = "ecr", access_key_id = "A", secret_file = "/s", session_token_file = "/t" }
        [upstream."d.example"]
        credentials = { from = "docker-config", path = "/d" }
        tags = "sealed""#,
    ] {
        let first = parse(text);
        let shown = first.show();
        let second = parse(&shown);
        assert_eq!(format!("{first:?}"), format!("{second:?}"), "{shown}");
    }
}

/// The documented example: its prose starts with `# `, a key at its default with `#key`.
const EXAMPLE: &str = include_str!("../../config/ocistern.toml");

#[test]
fn the_scrub_is_switched_off_by_the_environment_too() {
    let scrub = |value: &str| {
        let flags = Flags { config: Some("/dev/null".into()), ..Flags::default() };
        let env = |name: &str| (name == "OCISTERN_STORE__SCRUB").then(|| value.to_owned());
        Config::load(&flags, env).map(|config| config.store.scrub)
    };
    assert_eq!(scrub("false").unwrap(), None);
    assert_eq!(scrub("").unwrap(), Some(super::Scrub::default()));
    let error = scrub("1MiB/s").unwrap_err().to_string();
    assert!(error.starts_with("OCISTERN_STORE__SCRUB: \"1MiB/s\" is not how the scrub works"), "{error}");
    let shown = parse("[store]\nscrub = { rate = \"1MiB/s\", hours = \"22:00-06:30\" }").show();
    assert!(shown.contains("rate = \"1MiB/s\"") && shown.contains("hours = \"22:00-06:30\""), "{shown}");
    assert!(parse(&shown).store.scrub.is_some_and(|scrub| scrub.hours.is_some()));
    assert_eq!(parse(&parse("[store]\nscrub = false").show()).store.scrub, None);
}

#[test]
fn the_example_changes_nothing() {
    assert_eq!(format!("{:?}", parse(EXAMPLE)), format!("{:?}", parse("")));
}

#[test]
fn commented_keys_of_the_example_show_the_defaults() {
    let (fixed, examples) = EXAMPLE.split_once("# === Examples ===").expect("the example has two parts");
    let uncomment = |text: &str| {
        let line = |line: &str| match line.strip_prefix('#') {
            Some(key) if !key.starts_with([' ', '#']) => key.to_owned(),
            _ => line.to_owned(),
        };
        text.lines().map(line).collect::<Vec<_>>().join("\n")
    };
    assert_eq!(format!("{:?}", parse(&uncomment(fixed))), format!("{:?}", parse("")));
    let config = parse(&uncomment(examples));
    assert!(config.upstreams.len() > 7, "the examples configure something");
}

#[test]
fn the_example_documents_every_key() {
    for (table, keys) in super::keys::all() {
        for key in keys {
            let written = EXAMPLE.lines().any(|line| {
                let line = line.trim_start_matches('#').trim_start();
                line.starts_with(&format!("{key} ="))
                    || line.contains(&format!("{{ {key} ="))
                    || line.contains(&format!(", {key} ="))
                    || line.starts_with(&format!("[{key}"))
                    || line.starts_with(&format!("[[{key}"))
                    || line.contains(&format!(".{key}]"))
            });
            assert!(written, "{table} {key} is not in config/ocistern.toml");
        }
    }
}

#[test]
fn the_names_of_a_listener_are_without_ports() {
    let text = "[[listener]]\npublic_url = \"https://cache.example:8443\"\n\
                hostnames = { \"r.example:5000\" = \"docker.io\", \"s.example\" = \"docker.io\" }";
    let config = Config::from_toml(text).unwrap();
    assert_eq!(config.listeners[0].names(), ["cache.example", "r.example", "s.example"]);
    let config = Config::from_toml("[[listener]]\npublic_url = \"http://[::1]:5000\"").unwrap();
    assert_eq!(config.listeners[0].names(), ["::1"]);
    assert!(Config::from_toml("").unwrap().listeners[0].names().is_empty());
}
