//! The daemon's edge through real sockets: listeners, limits of requests, access, the admin interface, one per root.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::{TokioExecutor, TokioIo};
use ocistern::config::Config;
use ocistern::server::{Server, StartError};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio_util::task::TaskTracker;

const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

/// A configuration on free ports, with more text at its end.
fn config(root: &Path, more: &str) -> Config {
    let root = root.display();
    let text = format!(
        "root = \"{root}/store\"\nlistener = [{{ address = \"127.0.0.1:0\" }}]\nadmin = {{ address = \"127.0.0.1:0\" }}\n{more}"
    );
    Config::from_toml(&text).unwrap_or_else(|error| panic!("{text}\n{error}"))
}

async fn start(more: &str) -> (Server, SocketAddr, TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let server = Server::start(config(directory.path(), more)).await.unwrap();
    let address = *server.addresses().first().unwrap();
    (server, address, directory)
}

/// Writes a request and reads until the other side closes.
async fn exchange(mut stream: impl AsyncRead + AsyncWrite + Unpin, request: &str) -> String {
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    String::from_utf8(answer).unwrap()
}

async fn raw(address: SocketAddr, request: &str) -> String {
    exchange(TcpStream::connect(address).await.unwrap(), request).await
}

/// A request that asks for the connection to be closed after its answer.
async fn get(address: SocketAddr, target: &str) -> String {
    raw(address, &format!("GET {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")).await
}

fn assert_error(answer: &str, status: u16, code: &str) {
    assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{status}: {answer}");
    assert!(answer.contains("content-type: application/json\r\n"), "{answer}");
    assert!(answer.contains("docker-distribution-api-version: registry/2.0\r\n"), "{answer}");
    assert!(answer.contains("x-request-id: "), "{answer}");
    assert!(answer.contains(&format!("{{\"errors\":[{{\"code\":\"{code}\",\"message\":\"")), "{code}: {answer}");
}

#[tokio::test]
async fn ping() {
    let (server, address, _directory) = start("").await;
    let answer = get(address, "/v2/").await;
    assert!(answer.starts_with("HTTP/1.1 401 Unauthorized\r\n"), "{answer}");
    let challenge = "www-authenticate: Bearer realm=\"http://localhost/oauth2/token\",service=\"localhost\"\r\n";
    assert!(answer.contains(challenge), "{answer}");
    assert!(answer.contains("docker-distribution-api-version: registry/2.0\r\n"), "{answer}");
    assert!(!answer.contains("oci-namespace"), "{answer}");
    assert!(get(address, "/v2/?ns=ghcr.io").await.contains("oci-namespace: ghcr.io\r\n"));
    let head = raw(address, "HEAD /v2/ HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await;
    assert!(head.contains("content-length: 152\r\n") && head.ends_with("\r\n\r\n"), "{head}");
    let text = server.metrics().expose();
    // To be asked for a credential is how every pull begins: no error (ADR 0025).
    for counted in [
        "ocistern_requests_total{kind=\"other\",result=\"bypass\",upstream=\"docker.io\"} 2\n",
        "ocistern_challenges_total{upstream=\"docker.io\"} 2\n",
        "ocistern_request_errors_total{cause=\"denied\",upstream=\"docker.io\"} 0\n",
    ] {
        assert!(text.contains(counted), "{counted} is missing in:\n{text}");
    }
    server.stop().await;
}

#[tokio::test]
async fn requests_that_no_client_sends() {
    let (server, address, _directory) = start("[upstream.\"docker.io\"]\npush = \"off\"").await;
    let fields = "Host: localhost\r\nConnection: close\r\n";
    for (request, status, code) in [
        (format!("GET /v2/?ns=evil.example HTTP/1.1\r\n{fields}\r\n"), 404, "NAME_UNKNOWN"),
        (format!("GET /v2/evil.example/a/manifests/1 HTTP/1.1\r\n{fields}\r\n"), 404, "NAME_UNKNOWN"),
        (format!("GET /v2/a/../b/manifests/1 HTTP/1.1\r\n{fields}\r\n"), 400, "NAME_INVALID"),
        (format!("GET /v2/a/%2e%2e/b/manifests/1 HTTP/1.1\r\n{fields}\r\n"), 400, "NAME_INVALID"),
        (format!("GET /v2/A/manifests/1 HTTP/1.1\r\n{fields}\r\n"), 400, "NAME_INVALID"),
        (format!("GET /v2/a/manifests/sha256:bad HTTP/1.1\r\n{fields}\r\n"), 400, "DIGEST_INVALID"),
        (format!("GET /v2/a/manifests/-a HTTP/1.1\r\n{fields}\r\n"), 404, "MANIFEST_UNKNOWN"),
        // The specification's own conformance suite, up to v1.1.1, asks for this one.
        (format!("GET /v2/a/manifests/.INVALID_MANIFEST_NAME HTTP/1.1\r\n{fields}\r\n"), 404, "MANIFEST_UNKNOWN"),
        (format!("GET / HTTP/1.1\r\n{fields}\r\n"), 404, "UNSUPPORTED"),
        (format!("GET /v2/a/blobs/uploads/id HTTP/1.1\r\n{fields}\r\n"), 405, "UNSUPPORTED"),
        (format!("POST /v2/a/blobs/uploads/ HTTP/1.1\r\n{fields}Content-Length: 0\r\n\r\n"), 405, "UNSUPPORTED"),
        (format!("PUT /v2/a/manifests/1 HTTP/1.1\r\n{fields}Content-Length: 2\r\n\r\n{{}}"), 405, "UNSUPPORTED"),
        (format!("DELETE /v2/a/blobs/{DIGEST} HTTP/1.1\r\n{fields}\r\n"), 405, "UNSUPPORTED"),
        (format!("OPTIONS /v2/ HTTP/1.1\r\n{fields}\r\n"), 405, "UNSUPPORTED"),
        (format!("CONNECT evil.example:443 HTTP/1.1\r\n{fields}\r\n"), 405, "UNSUPPORTED"),
        // What must not be taken for the end of a request closes the connection, also without being asked to.
        ("GET /v2/ HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n{}".to_owned(), 400, "UNSUPPORTED"),
        ("GET /v2/ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".to_owned(), 400, "UNSUPPORTED"),
        ("GET /v2/ HTTP/1.1\r\n\r\n".to_owned(), 400, "UNSUPPORTED"),
        ("GET /v2/ HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n".to_owned(), 400, "UNSUPPORTED"),
        (format!("GET /v2/ HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "x".repeat(33_000)), 431, "UNSUPPORTED"),
        (format!("GET /v2/{} HTTP/1.1\r\nHost: a\r\n\r\n", "x".repeat(33_000)), 431, "UNSUPPORTED"),
    ] {
        let short: String = request.chars().take(60).collect();
        let answer = raw(address, &request).await;
        assert_error(&answer, status, code);
        assert_eq!(answer.matches("x-request-id: ").count(), 1, "one answer to {short}: {answer}");
        assert_eq!(status == 405, answer.contains("allow: GET, HEAD\r\n"), "{answer}");
    }
    server.stop().await;
}

#[tokio::test]
async fn what_hyper_refuses_by_itself() {
    let (server, address, _directory) = start("").await;
    let many = "X-Field: 1\r\n".repeat(120);
    for (request, status) in [
        (format!("GET /v2/ HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "x".repeat(200_000)), 431),
        (format!("GET /v2/ HTTP/1.1\r\nHost: a\r\n{many}\r\n"), 431),
        ("GET /v2/ HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab".to_owned(), 400),
        ("POST /v2/ HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".to_owned(), 400),
        ("POST /v2/ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n0\r\n\r\n".to_owned(), 400),
        ("GET /v2/ HTTP/1.1\r\nHost: a\r\nX: 1\r\n folded\r\n\r\n".to_owned(), 400),
        ("GET /v2/ HTTP/1.1\r\nHost : a\r\n\r\n".to_owned(), 400),
        ("no request\r\n\r\n".to_owned(), 400),
    ] {
        let mut stream = TcpStream::connect(address).await.unwrap();
        // It may close before it has read everything: only the answer counts.
        let _ = stream.write_all(request.as_bytes()).await;
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).await.unwrap();
        let short: String = request.chars().take(60).collect();
        assert_eq!(std::str::from_utf8(&answer).unwrap(), format!("HTTP/1.1 {status}"), "{short}");
    }
    server.stop().await;
}

/// A client that sends everything before it looks at the answer would get a reset in its place.
#[tokio::test]
async fn an_answer_reaches_who_still_sends() {
    let (server, address, _directory) = start("[upstream.\"docker.io\"]\npush = \"off\"").await;
    // More than the buffers of both ends hold.
    let body = "a".repeat(32 << 20);
    let head = format!("PUT /v2/a/manifests/1 HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", body.len());
    let answer = raw(address, &format!("{head}{body}")).await;
    assert_error(&answer, 405, "UNSUPPORTED");
    assert!(answer.contains("connection: close\r\n"), "{answer}");
    // Who asks first is told not to send.
    let answer = raw(address, &head.replace("Host: a", "Host: a\r\nExpect: 100-continue")).await;
    assert_error(&answer, 405, "UNSUPPORTED");
    server.stop().await;
}

#[tokio::test]
async fn a_second_request_hidden_in_a_body_is_not_answered() {
    let (server, address, _directory) = start("[upstream.\"docker.io\"]\npush = \"off\"").await;
    let hidden = "GET /v2/?ns=ghcr.io HTTP/1.1\r\nHost: a\r\n\r\n";
    for first in [
        format!("GET /v2/ HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", hidden.len()),
        "GET /v2/ HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".to_owned(),
        "GET /v2/ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n".to_owned(),
        "POST /v2/ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n".to_owned(),
        "PUT /v2/a/manifests/1 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".to_owned(),
    ] {
        let answer = raw(address, &format!("{first}{hidden}")).await;
        assert_eq!(answer.matches("x-request-id: ").count(), 1, "{first:?} got {answer}");
        assert!(!answer.contains("oci-namespace"), "{answer}");
    }
    server.stop().await;
}

#[tokio::test]
async fn content_of_an_own_account_is_for_this_machine() {
    let upstream = "[upstream.\"private.example\"]\nurl = \"https://private.example\"\ntags = \"sealed\"\n\
                    credentials = { from = \"static\", username = \"u\", password_file = \"/nonexistent\" }";
    let (server, address, _directory) = start(upstream).await;
    let ask = async |fields: &str| {
        let path = "/private.example/v2/a/manifests/1";
        raw(address, &format!("GET {path} HTTP/1.1\r\n{fields}\r\nConnection: close\r\n\r\n")).await
    };
    assert_error(&ask("Host: rebound.example").await, 403, "DENIED");
    assert_error(&ask("Host: localhost\r\nOrigin: http://evil.example").await, 403, "DENIED");
    assert_error(&ask("Host: localhost\r\nX-Forwarded-For: 192.0.2.1").await, 403, "DENIED");
    let answer = ask("Host: localhost:5000").await;
    assert!(answer.starts_with("HTTP/1.1 404 "), "let through, and not in the store: {answer}");
    server.stop().await;
}

/// Where a hosts entry leads the registry's own name to ocistern, a request would go round until something gives.
#[tokio::test]
async fn an_upstream_whose_name_leads_here_is_not_asked() {
    let directory = tempfile::tempdir().unwrap();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    // A name of the loopback address that only the resolver sees through.
    let text = format!(
        "root = \"{}/store\"\nbuiltin_upstreams = false\n[[listener]]\naddress = \"127.0.0.1:{port}\"\n\
         [admin]\naddress = \"127.0.0.1:0\"\n[upstream.loop]\nurl = \"http://127.1:{port}\"",
        directory.path().display()
    );
    let server = Server::start(Config::from_toml(&text).unwrap()).await.unwrap();
    let address = *server.addresses().first().unwrap();
    let answer = get(address, "/v2/loop/app/manifests/1").await;
    assert_error(&answer, 502, "UNAVAILABLE");
    assert!(answer.contains("set `connect`"), "it says what to do: {answer}");
    let text = server.metrics().expose();
    let counted = |line: &&str| line.starts_with("ocistern_requests_total") && !line.ends_with(" 0");
    let requests: Vec<_> = text.lines().filter(counted).collect();
    assert_eq!(requests, ["ocistern_requests_total{kind=\"manifest\",result=\"error\",upstream=\"loop\"} 1"]);
    server.stop().await;
}

#[tokio::test]
async fn the_second_daemon_on_a_root_is_refused() {
    let (server, _, directory) = start("").await;
    let error = Server::start(config(directory.path(), "")).await.unwrap_err();
    assert!(matches!(error, StartError::Store(_)), "{error:?}");
    assert!(error.to_string().contains(&std::process::id().to_string()), "names the process: {error}");
    let socket = directory.path().join("store/ocistern.sock");
    assert!(socket.exists(), "the first one's admin socket is untouched");
    server.stop().await;
    assert!(!socket.exists());
    let again = Server::start(config(directory.path(), "")).await.unwrap();
    again.stop().await;
}

#[tokio::test]
async fn a_taken_address_is_an_error_and_frees_the_root() {
    let (first, address, _directory) = start("").await;
    let directory = tempfile::tempdir().unwrap();
    let mut second = config(directory.path(), "");
    second.listeners.first_mut().unwrap().address = ocistern::config::Address::Tcp(address);
    let error = Server::start(second).await.unwrap_err();
    assert!(matches!(error, StartError::Listen(_)), "{error:?}");
    assert!(error.to_string().contains(&address.to_string()), "{error}");
    Server::start(config(directory.path(), "")).await.unwrap().stop().await;
    first.stop().await;
}

#[tokio::test]
async fn unix_listener() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("registry.sock");
    let mut config = config(directory.path(), "");
    config.listeners.first_mut().unwrap().address = ocistern::config::Address::Unix(path.clone());
    let server = Server::start(config).await.unwrap();
    assert!(server.addresses().is_empty());
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
    let request = "GET /v2/ HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    let answer = exchange(UnixStream::connect(&path).await.unwrap(), request).await;
    assert!(answer.starts_with("HTTP/1.1 401 "), "{answer}");
    server.stop().await;
    assert!(!path.exists());
}

#[tokio::test]
async fn admin_by_socket_and_by_address() {
    let (server, address, directory) = start("").await;
    let admin = server.admin_address().unwrap();
    assert!(get(admin, "/readyz").await.ends_with("\r\n\r\nready\n"));
    assert!(get(admin, "/metrics").await.contains("ocistern_store_capacity_bytes"));
    assert!(get(admin, "/v2/").await.starts_with("HTTP/1.1 404 "), "no registry there");
    assert!(get(address, "/metrics").await.starts_with("HTTP/1.1 404 "), "and no metrics here");
    let rebound = raw(admin, "GET /metrics HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n").await;
    assert!(rebound.starts_with("HTTP/1.1 401 "), "{rebound}");
    let socket = directory.path().join("store/ocistern.sock");
    assert_eq!(std::fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    let request = "GET /api/v1/status HTTP/1.1\r\nHost: ocistern\r\nConnection: close\r\n\r\n";
    let status = exchange(UnixStream::connect(&socket).await.unwrap(), request).await;
    assert!(status.contains("\"stage\":\"ready\"") && status.contains(&address.to_string()), "{status}");
    server.stop().await;
}

/// A CA, a certificate of it for `localhost`, and one for a client; as files in `directory`.
fn certificates(directory: &Path) {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    std::fs::write(directory.join("ca.pem"), ca.pem()).unwrap();
    for (name, usage) in
        [("server", ExtendedKeyUsagePurpose::ServerAuth), ("client", ExtendedKeyUsagePurpose::ClientAuth)]
    {
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.extended_key_usages = vec![usage];
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &ca).unwrap();
        std::fs::write(directory.join(format!("{name}.pem")), certificate.pem()).unwrap();
        std::fs::write(directory.join(format!("{name}.key")), key.serialize_pem()).unwrap();
    }
}

/// A TLS client that trusts the CA in `directory`, with or without its client certificate.
fn connector(directory: &Path, alpn: &[&str], with_certificate: bool) -> tokio_rustls::TlsConnector {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(directory.join("ca.pem")).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let mut config = if with_certificate {
        let certificate = CertificateDer::from_pem_file(directory.join("client.pem")).unwrap();
        let key = PrivateKeyDer::from_pem_file(directory.join("client.key")).unwrap();
        builder.with_client_auth_cert(vec![certificate], key).unwrap()
    } else {
        builder.with_no_client_auth()
    };
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    Arc::new(config).into()
}

async fn start_tls(directory: &Path, client_ca: &str) -> Server {
    certificates(directory);
    let path = directory.display();
    let text = format!(
        "root = \"{path}/store\"\nadmin = {{ address = \"off\" }}\n[[listener]]\naddress = \"127.0.0.1:0\"\n\
         tls = {{ certificate = \"{path}/server.pem\", key = \"{path}/server.key\"{client_ca} }}\n"
    );
    Server::start(Config::from_toml(&text).unwrap()).await.unwrap()
}

#[tokio::test]
async fn tls_listener() {
    let directory = tempfile::tempdir().unwrap();
    let server = start_tls(directory.path(), "").await;
    let address = *server.addresses().first().unwrap();
    let connect = async |alpn: &[&str]| {
        let stream = TcpStream::connect(address).await.unwrap();
        let connector = connector(directory.path(), alpn, false);
        connector.connect(ServerName::try_from("localhost").unwrap(), stream).await.unwrap()
    };
    let request = "GET /v2/ HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    assert!(exchange(connect(&["http/1.1"]).await, request).await.starts_with("HTTP/1.1 401 "));

    let stream = connect(&["h2", "http/1.1"]).await;
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    let tasks = TaskTracker::new();
    tasks.spawn(connection);
    let ask = |path: &str| Request::get(format!("https://localhost{path}")).body(Empty::<Bytes>::new()).unwrap();
    let response = sender.send_request(ask("/v2/")).await.unwrap();
    assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
    let challenge = response.headers()["www-authenticate"].to_str().unwrap();
    assert_eq!(challenge, "Bearer realm=\"https://localhost/oauth2/token\",service=\"localhost\"");
    assert!(!response.into_body().collect().await.unwrap().to_bytes().is_empty());
    let refused = sender.send_request(ask("/v2/?ns=evil.example")).await.unwrap();
    assert_eq!(refused.status(), StatusCode::NOT_FOUND);

    let mut plain = TcpStream::connect(address).await.unwrap();
    plain.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    // Closed with the request unread, it may be reset.
    let _ = plain.read_to_end(&mut answer).await;
    assert!(!answer.starts_with(b"HTTP"), "no plain HTTP on a TLS listener");
    server.stop().await;
}

#[tokio::test]
async fn tls_listener_with_client_certificates() {
    let directory = tempfile::tempdir().unwrap();
    let client_ca = format!(", client_ca = \"{}/ca.pem\"", directory.path().display());
    let server = start_tls(directory.path(), &client_ca).await;
    let address = *server.addresses().first().unwrap();
    for with_certificate in [true, false] {
        let stream = TcpStream::connect(address).await.unwrap();
        let connector = connector(directory.path(), &["http/1.1"], with_certificate);
        let mut stream = connector.connect(ServerName::try_from("localhost").unwrap(), stream).await.unwrap();
        // TLS 1.3: the client learns of the refusal when it reads.
        let _ = stream.write_all(b"GET /v2/ HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await;
        let mut answer = Vec::new();
        let read = stream.read_to_end(&mut answer).await;
        assert_eq!(read.is_ok() && answer.starts_with(b"HTTP/1.1 401 "), with_certificate);
    }
    server.stop().await;
}

#[tokio::test]
async fn a_bad_certificate_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().display();
    let text = format!(
        "root = \"{path}/store\"\nadmin = {{ address = \"off\" }}\n[[listener]]\naddress = \"127.0.0.1:0\"\n\
         tls = {{ certificate = \"{path}/none.pem\", key = \"{path}/none.key\" }}\n"
    );
    let error = Server::start(Config::from_toml(&text).unwrap()).await.unwrap_err();
    assert!(matches!(error, StartError::Tls { .. }), "{error:?}");
    assert!(error.to_string().contains("none.pem"), "{error}");
}
