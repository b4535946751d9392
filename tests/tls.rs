//! Listeners with TLS, through real sockets: which certificate is shown, and what happens to it on the disk.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "test code")]

mod common;

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use common::clock::pass;
use common::content::image;
use common::tls::{Authority, TlsClient, replace, shown, shown_to};
use common::{Ask, Cistern, Upstream, eventually, logs};
use ocistern::config::Config;
use ocistern::server::{Server, StartError};
use rcgen::{KeyPair, PKCS_RSA_SHA256};
use rustls::SignatureScheme;
use rustls::pki_types::CertificateDer;

/// Longer than a listener leaves its files alone.
const A_WHILE: Duration = Duration::from_secs(11);

/// The lines of the log with this level that name `path`.
fn lines(level: &str, path: &Path) -> Vec<String> {
    let path = path.display().to_string();
    logs::lines(|line| line.contains(level) && line.contains(&path))
}

/// The list of certificates with these names in a directory.
fn list(directory: &Path, stems: &[&str]) -> String {
    let path = directory.display();
    let one = |stem: &&str| format!("{{ certificate = '{path}/{stem}.pem', key = '{path}/{stem}.key' }}");
    format!("certificates = [{}]", stems.iter().map(one).collect::<Vec<_>>().join(", "))
}

async fn start(keys: &str, upstream: &Upstream) -> (Cistern, SocketAddr) {
    logs::keep("info");
    let cistern = Cistern::setup().upstream("up", upstream, "").listener(keys).start().await;
    let address = cistern.client().0;
    (cistern, address)
}

async fn assert_shown(address: SocketAddr, name: Option<&str>, certificate: &CertificateDer<'_>) {
    assert!(shown(address, name).await == *certificate, "another certificate for {name:?}");
}

// === which certificate ===

#[tokio::test]
async fn certificates_are_chosen_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let ca = Authority::at(&path.join("ca.pem"));
    let first = ca.server(path, "first", &["first.test", "second.first.test"]);
    let wild = ca.server(path, "wild", &["*.wild.test"]);
    let exact = ca.server(path, "exact", &["exact.wild.test", "127.0.0.1"]);
    let upstream = Upstream::start().await;
    let keys = format!("tls = {{ {} }}", list(path, &["first", "wild", "exact"]));
    let (_cistern, address) = start(&keys, &upstream).await;
    for (name, certificate) in [
        (Some("first.test"), &first),
        (Some("second.first.test"), &first),
        (Some("a.wild.test"), &wild),
        (Some("B.Wild.test"), &wild),
        (Some("exact.wild.test"), &exact),
        (Some("a.b.wild.test"), &first),
        (Some("wild.test"), &first),
        (Some("unknown.test"), &first),
        (None, &first),
    ] {
        assert_shown(address, name, certificate).await;
    }
}

#[tokio::test]
async fn a_certificate_without_a_name_can_be_the_default() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let ca = Authority::at(&path.join("ca.pem"));
    let address_only = ca.server(path, "address", &["127.0.0.1"]);
    let named = ca.server(path, "named", &["named.test"]);
    let upstream = Upstream::start().await;
    let (_cistern, address) = start(&format!("tls = {{ {} }}", list(path, &["address", "named"])), &upstream).await;
    assert_shown(address, None, &address_only).await;
    assert_shown(address, Some("named.test"), &named).await;
    let got = TlsClient::new(address, &ca, "127.0.0.1").send(Ask::get("/v2/")).await;
    got.assert_fails(401);
}

#[tokio::test]
async fn of_two_kinds_of_keys_a_client_gets_the_one_it_knows() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let ca = Authority::at(&path.join("ca.pem"));
    let ecdsa = ca.server(path, "ecdsa", &["both.test"]);
    let rsa_key = KeyPair::generate_for(&PKCS_RSA_SHA256).unwrap();
    let rsa = ca.server_with(path, "rsa", &["both.test"], &rsa_key);
    let upstream = Upstream::start().await;
    let (_cistern, address) = start(&format!("tls = {{ {} }}", list(path, &["ecdsa", "rsa"])), &upstream).await;
    assert_shown(address, Some("both.test"), &ecdsa).await;
    for name in [Some("both.test"), Some("unknown.test"), None] {
        let certificate = shown_to(address, name, &[SignatureScheme::RSA_PSS_SHA256]).await;
        assert!(certificate == rsa, "{name:?}");
    }
}

#[tokio::test]
async fn mapped_names_lead_to_their_upstreams_under_their_certificates() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let ca = Authority::at(&path.join("ca.pem"));
    for (stem, name) in [("one", "one.test"), ("two", "*.two.test"), ("own", "cache.test")] {
        ca.server(path, stem, &[name]);
    }
    let (one, two, other) = (Upstream::start().await, Upstream::start().await, Upstream::start().await);
    let images = [image(1), image(2), image(3)];
    for (upstream, image) in [&one, &two, &other].into_iter().zip(&images) {
        upstream.image("app", "1.0", image);
    }
    let hosts = "hostnames = { \"one.test\" = \"one\", \"reg.two.test\" = \"two\" }";
    let keys = format!("tls = {{ {} }}\n{hosts}", list(path, &["own", "one", "two"]));
    let setup = Cistern::setup().upstream("other", &other, "").upstream("one", &one, "").upstream("two", &two, "");
    let cistern = setup.listener(&keys).start().await;
    let address = cistern.client().0;
    for (name, image) in [("one.test", &images[0]), ("reg.two.test", &images[1]), ("cache.test", &images[2])] {
        // The client verifies that the certificate is for the name.
        let client = TlsClient::new(address, &ca, name);
        for ask in [Ask::get("/v2/app/manifests/1.0"), Ask::get("/v2/app/manifests/1.0").http2()] {
            client.send(ask).await.assert_is(&image.manifest);
        }
        let challenge = client.send(Ask::get("/v2/")).await;
        let realm = format!("Bearer realm=\"https://{name}/oauth2/token\",service=\"{name}\"");
        assert_eq!(challenge.header("www-authenticate"), realm);
    }
    for (upstream, image) in [&one, &two, &other].into_iter().zip(&images) {
        let manifests = upstream.requests("*", "/v2/app/manifests/*");
        assert!(!manifests.is_empty() && manifests.len() <= 2, "{}: {manifests:?}", image.digest);
    }
    let unknown = TlsClient::new(address, &ca, "unknown.test").send(Ask::get("/v2/")).await;
    let cut = unknown.cut.unwrap();
    assert!(cut.contains("not valid for name"), "no certificate is for it: {cut}");
}

#[tokio::test]
async fn clients_are_asked_for_a_certificate_under_every_name() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let ca = Authority::at(&path.join("ca.pem"));
    let clients = Authority::at(&path.join("clients.pem"));
    ca.server(path, "one", &["one.test"]);
    ca.server(path, "two", &["two.test"]);
    let upstream = Upstream::start().await;
    let tls = format!("tls = {{ {}, client_ca = '{}/clients.pem' }}", list(path, &["one", "two"]), path.display());
    let (_cistern, address) = start(&tls, &upstream).await;
    for name in ["one.test", "two.test"] {
        let client = TlsClient::new(address, &ca, name);
        client.clone().with(&clients.client()).send(Ask::get("/v2/")).await.assert_fails(401);
        assert_eq!(client.send(Ask::get("/v2/")).await.status, 0, "without a certificate");
        assert_eq!(client.with(&ca.client()).send(Ask::get("/v2/")).await.status, 0, "of another authority");
    }
}

// === renewal ===

#[tokio::test]
async fn renewed_certificates_are_taken_up() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let ca = Authority::at(&path.join("ca.pem"));
    let one = ca.server(path, "one", &["one.test"]);
    let two = ca.server(path, "two", &["two.test"]);
    let upstream = Upstream::start().await;
    let (_cistern, address) = start(&format!("tls = {{ {} }}", list(path, &["one", "two"])), &upstream).await;
    assert_shown(address, Some("one.test"), &one).await;
    assert_shown(address, Some("two.test"), &two).await;
    // It may be for other names then.
    let renewed = ca.server(path, "two", &["two.test", "three.test"]);
    pass(A_WHILE).await;
    eventually("the new certificate is shown", async || shown(address, Some("two.test")).await == renewed).await;
    assert_shown(address, Some("three.test"), &renewed).await;
    assert_shown(address, Some("one.test"), &one).await;
    assert_eq!(lines("INFO", &path.join("two.pem")).len(), 1, "it is said once");
    assert_eq!(lines("INFO", &path.join("one.pem")).len(), 0);
    TlsClient::new(address, &ca, "three.test").send(Ask::get("/v2/")).await.assert_fails(401);
}

#[tokio::test]
async fn a_broken_renewal_keeps_the_certificate() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let ca = Authority::at(&path.join("ca.pem"));
    let one = ca.server(path, "one", &["one.test"]);
    ca.server(path, "two", &["two.test"]);
    let upstream = Upstream::start().await;
    let (_cistern, address) = start(&format!("tls = {{ {} }}", list(path, &["one", "two"])), &upstream).await;
    assert_shown(address, Some("one.test"), &one).await;
    let key = std::fs::read_to_string(path.join("one.key")).unwrap();
    let file = path.join("one.pem");
    let breakages: [(&str, &dyn Fn()); 4] = [
        ("is not that of the certificate", &|| {
            ca.server(path, "one", &["one.test"]);
            // The certificate is there, the key not yet.
            replace(&path.join("one.key"), &key);
        }),
        ("holds no certificate", &|| replace(&file, "")),
        ("No such file", &|| std::fs::remove_file(&file).unwrap()),
        ("is not a file in PEM form", &|| replace(&file, "-----BEGIN CERTIFICATE-----\n")),
    ];
    for (count, (said, breakage)) in (1..).zip(breakages) {
        breakage();
        // What comes with it is taken up all the same.
        let two = ca.server(path, "two", &["two.test"]);
        for _ in 0..3 {
            pass(A_WHILE).await;
            eventually("the other is shown", async || shown(address, Some("two.test")).await == two).await;
            assert_shown(address, Some("one.test"), &one).await;
        }
        let warnings = lines("WARN", path);
        assert_eq!(warnings.len(), count, "once for each: {warnings:?}");
        let last = warnings.last().unwrap();
        assert!(last.contains(said) && last.contains("one."), "{said}: {last}");
        assert!(last.contains(&address.to_string()), "the listener: {last}");
    }
    let mended = ca.server(path, "one", &["one.test"]);
    pass(A_WHILE).await;
    eventually("the new certificate is shown", async || shown(address, Some("one.test")).await == mended).await;
}

#[tokio::test]
async fn a_renewed_client_ca_lets_others_in() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let ca = Authority::at(&path.join("ca.pem"));
    let old = Authority::at(&path.join("clients.pem"));
    ca.server(path, "one", &["one.test"]);
    let upstream = Upstream::start().await;
    let tls = format!("tls = {{ {}, client_ca = '{}/clients.pem' }}", list(path, &["one"]), path.display());
    let (_cistern, address) = start(&tls, &upstream).await;
    let client = TlsClient::new(address, &ca, "one.test");
    let was = client.clone().with(&old.client());
    was.send(Ask::get("/v2/")).await.assert_fails(401);
    // One that cannot be used lets the same ones in, and nobody else.
    replace(&path.join("clients.pem"), "nothing");
    pass(A_WHILE).await;
    was.send(Ask::get("/v2/")).await.assert_fails(401);
    assert_eq!(client.send(Ask::get("/v2/")).await.status, 0, "without a certificate");
    let new = Authority::at(&path.join("clients.pem"));
    pass(A_WHILE).await;
    let will_be = client.with(&new.client());
    eventually("the new ones are let in", async || will_be.send(Ask::get("/v2/")).await.status == 401).await;
    assert_eq!(was.send(Ask::get("/v2/")).await.status, 0, "of the authority before");
}

// === mistakes ===

#[tokio::test]
async fn files_that_cannot_be_used_are_named_at_the_start() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let ca = Authority::at(&path.join("ca.pem"));
    for (stem, name) in [("good", "good.test"), ("mixed", "mixed.test"), ("nameless", "127.0.0.1")] {
        ca.server(path, stem, &[name]);
    }
    std::fs::copy(path.join("good.key"), path.join("mixed.key")).unwrap();
    for stem in ["keyless", "certless"] {
        ca.server(path, stem, &["x.test"]);
    }
    std::fs::copy(path.join("good.pem"), path.join("keyless.key")).unwrap();
    std::fs::copy(path.join("good.key"), path.join("certless.pem")).unwrap();
    std::fs::write(path.join("empty.pem"), "").unwrap();
    let good = list(path, &["good"]);
    let at = |name: &str| path.join(name).display().to_string();
    for (tls, said) in [
        (
            list(path, &["mixed"]),
            format!("the key {} is not that of the certificate {}", at("mixed.key"), at("mixed.pem")),
        ),
        (list(path, &["good", "mixed"]), format!("the key {} is not that of", at("mixed.key"))),
        (list(path, &["good", "none"]), format!("{}: No such file", at("none.pem"))),
        (list(path, &["keyless"]), format!("{} holds no private key", at("keyless.key"))),
        (list(path, &["certless"]), format!("{} holds no certificate", at("certless.pem"))),
        (list(path, &["good", "nameless"]), format!("{} has no DNS name", at("nameless.pem"))),
        (format!("{good}, client_ca = '{}'", at("empty.pem")), format!("{} holds no certificate", at("empty.pem"))),
        (format!("{good}, client_ca = '{}'", at("none.pem")), format!("{}: No such file", at("none.pem"))),
    ] {
        let text = format!(
            "root = '{}/store'\nadmin = {{ address = \"off\" }}\n[[listener]]\naddress = \"127.0.0.1:0\"\n\
             tls = {{ {tls} }}\n",
            path.display()
        );
        let error = Server::start(Config::from_toml(&text).unwrap()).await.unwrap_err();
        assert!(matches!(error, StartError::Tls { .. }) && error.is_configuration(), "{error:?}");
        assert!(error.to_string().contains(&said), "{said}: {error}");
        assert!(error.to_string().starts_with("TLS of the listener 127.0.0.1:"), "{error}");
    }
}

// === another configuration ===

#[tokio::test]
async fn a_reload_brings_other_files_and_plain_http_and_breaks_no_answer() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let ca = Authority::at(&path.join("ca.pem"));
    let (first, second) = (ca.server(path, "first", &["cache.test"]), ca.server(path, "second", &["cache.test"]));
    let upstream = Upstream::start().await;
    let bytes = common::content::blob(1, 900_000);
    let target = format!("/v2/app/blobs/{}", upstream.blob("app", &bytes));
    let gate = common::Gate::new();
    upstream.script("GET", &target, .., common::acts::hold_at(300_000, &gate));
    let tls = |stem: &str| format!("tls = {{ {} }}", list(path, &[stem]));
    let (mut cistern, address) = start(&tls("first"), &upstream).await;
    assert_shown(address, Some("cache.test"), &first).await;
    let client = TlsClient::new(address, &ca, "cache.test");
    let mut reading = tokio::task::JoinSet::new();
    let ask = Ask::get(&target);
    reading.spawn({
        let client = client.clone();
        async move { client.send(ask).await }
    });
    gate.reached(1).await;
    let done = cistern.reload(|setup| setup.listener(&tls("second"))).await.unwrap();
    assert_eq!(done.applied, ["listener"]);
    assert_shown(address, Some("cache.test"), &second).await;
    cistern.reload(|setup| setup.listener("")).await.unwrap();
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut stream, b"GET /v2/ HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    cistern.get("/v2/").await.assert_fails(401);
    // Who was let in as another one does not stay.
    cistern.reload(|setup| setup.listener(&tls("first"))).await.unwrap();
    let mut said = Vec::new();
    tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut said).await.unwrap();
    assert!(said.starts_with(b"HTTP/1.1 401"), "answered, and then closed");
    gate.open();
    reading.join_next().await.unwrap().unwrap().assert_is(&bytes);
}
