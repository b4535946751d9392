//! Addressing: every form in which clients name an upstream, over one store, in a closed world; and bad requests.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::common::content::{blob, image, sha256};
use crate::common::invariants::{check, files};
use crate::common::{Ask, Cistern, Image, Upstream};
use http::Method;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Two upstreams with hosts for names: the default one (with `library/`), and another.
async fn two() -> (Cistern, Upstream, Upstream, Image, Image) {
    let (hub, other) = (Upstream::start().await, Upstream::start().await);
    let (official, foreign) = (image(1), image(2));
    hub.image("library/alpine", "3.20", &official);
    other.image("org/app", "1.0", &foreign);
    let cistern = Cistern::setup()
        .upstream("docker.io", &hub, "library = true")
        .upstream("reg.example", &other, "")
        .listener(r#"hostnames = { "reg.test" = "reg.example" }"#)
        .start()
        .await;
    (cistern, hub, other, official, foreign)
}

#[tokio::test]
async fn every_form_reaches_its_upstream_over_one_store() {
    let (cistern, hub, other, official, foreign) = two().await;
    for target in [
        "/v2/library/alpine/manifests/3.20",
        "/v2/alpine/manifests/3.20",
        "/v2/library/alpine/manifests/3.20?ns=docker.io",
        "/v2/alpine/manifests/3.20?ns=docker.io",
        "/docker.io/v2/library/alpine/manifests/3.20",
        "/docker.io/v2/alpine/manifests/3.20",
        "/v2/docker.io/library/alpine/manifests/3.20",
        "/v2/docker.io/alpine/manifests/3.20",
        "/v2/library%2Falpine/manifests/3.20",
        "/v2/docker.io%2Flibrary%2Falpine/manifests/3.20",
        // containerd with override_path: it adds `ns` to the prefix.
        "/v2/docker.io/library/alpine/manifests/3.20?ns=docker.io",
    ] {
        cistern.get(target).await.assert_is(&official.manifest);
    }
    let digest = foreign.digest.to_string();
    let encoded = digest.replace(':', "%3A");
    for target in [
        "/v2/org/app/manifests/1.0?ns=reg.example".to_owned(),
        "/reg.example/v2/org/app/manifests/1.0".to_owned(),
        "/v2/reg.example/org/app/manifests/1.0".to_owned(),
        "/v2/reg.example/org/app/manifests/1.0?ns=reg.example".to_owned(),
        format!("/v2/org%2Fapp/manifests/{encoded}?ns=reg.example"),
        format!("/reg.example/v2/org/app/manifests/{digest}"),
        format!("/v2/reg.example/org%2fapp/manifests/{encoded}"),
    ] {
        cistern.get(target).await.assert_is(&foreign.manifest);
    }
    assert_eq!(
        raw(&cistern, "GET /v2/org/app/manifests/1.0 HTTP/1.1\r\nHost: reg.test\r\nConnection: close\r\n\r\n").await.0,
        200
    );
    assert_eq!(hub.count("GET", "*/manifests/*"), 1, "one store under all forms");
    assert!(other.count("GET", "*/manifests/*") <= 2, "one store under all forms");
    check(&cistern).await;
}

#[tokio::test]
async fn a_mapped_host_takes_the_whole_path_as_the_name() {
    let (cistern, hub, other, ..) = two().await;
    let nested = image(3);
    other.image("docker.io/library/alpine", "3.20", &nested);
    let head =
        "GET /v2/docker.io/library/alpine/manifests/3.20 HTTP/1.1\r\nHost: reg.test\r\nConnection: close\r\n\r\n";
    let (status, answer) = raw(&cistern, head).await;
    assert_eq!(status, 200, "{answer}");
    assert!(answer.contains(&nested.digest.to_string()), "{answer}");
    assert_eq!(hub.log().len(), 0, "the name on a mapped host is never a prefix");
    // A mapped name is that name at any port: were it not, the default upstream would be asked.
    for port in ["80", "443", "5000"] {
        for (name, expected) in [("org/app/manifests/1.0", 200), ("alpine/manifests/3.20", 404)] {
            let head = format!("GET /v2/{name} HTTP/1.1\r\nHost: reg.test:{port}\r\nConnection: close\r\n\r\n");
            let (status, answer) = raw(&cistern, &head).await;
            assert_eq!(status, expected, "{name} at port {port}: {answer}");
        }
    }
    assert_eq!(hub.log().len(), 0, "nor with a port");
}

#[tokio::test]
async fn the_world_is_closed() {
    let (cistern, hub, other, ..) = two().await;
    let trap = Upstream::start().await;
    let trap_host = format!("127.0.0.1:{}", trap.port());
    for target in [
        "/v2/org/app/manifests/1.0?ns=unknown.example".to_owned(),
        format!("/v2/org/app/manifests/1.0?ns={trap_host}"),
        format!("/v2/org/app/manifests/1.0?ns={}", trap_host.replace(':', "%3A")),
        format!("/v2/org/app/manifests/1.0?ns=http://{trap_host}"),
        "/v2/org/app/manifests/1.0?ns=".to_owned(),
        "/v2/org/app/manifests/1.0?ns=..%2f..".to_owned(),
        "/unknown.example/v2/org/app/manifests/1.0".to_owned(),
        format!("/{trap_host}/v2/org/app/manifests/1.0"),
        "/v2/unknown.example/org/app/manifests/1.0".to_owned(),
        format!("/v2/{trap_host}/org/app/manifests/1.0"),
        "/v2/localhost:5000/org/app/manifests/1.0".to_owned(),
    ] {
        let got = cistern.get(&target).await;
        assert_eq!(got.status, 404, "{target}: {}", got.summary());
        assert!(!got.error_code().is_empty(), "{target}");
    }
    let named = cistern.get("/v2/unknown.example/org/app/manifests/1.0").await;
    assert!(
        String::from_utf8_lossy(&named.body).contains("unknown.example"),
        "it names what is missing: {}",
        named.summary()
    );
    assert_eq!(trap.connections(), 0, "nobody was dialled");
    assert_eq!(hub.log().len() + other.log().len(), 0, "no configured upstream was asked either");
}

#[tokio::test]
async fn an_unmapped_host_header_is_no_address() {
    let (cistern, _hub, _other, ..) = two().await;
    let trap = Upstream::start().await;
    let head = format!(
        "GET /v2/alpine/manifests/3.20 HTTP/1.1\r\nHost: 127.0.0.1:{}\r\nConnection: close\r\n\r\n",
        trap.port()
    );
    assert_eq!(raw(&cistern, &head).await.0, 200, "the default upstream answers");
    let absolute = format!(
        "GET http://127.0.0.1:{}/v2/alpine/manifests/3.20 HTTP/1.1\r\nHost: reg.test\r\nConnection: close\r\n\r\n",
        trap.port()
    );
    // RFC 9112, 3.2.2: the host of the target counts, and Host is ignored; that host is no mapped one.
    let (status, answer) = raw(&cistern, &absolute).await;
    assert_eq!(status, 200, "the default upstream answers: {answer}");
    assert_eq!(trap.connections(), 0);
}

#[tokio::test]
async fn the_namespace_is_told_back() {
    let (cistern, _hub, _other, ..) = two().await;
    for method in [Method::GET, Method::HEAD] {
        let got = cistern.send(Ask::new(method, "/v2/org/app/manifests/1.0?ns=reg.example")).await;
        assert_eq!((got.status, got.header("oci-namespace")), (200, "reg.example"), "{}", got.summary());
    }
    assert!(!cistern.get("/v2/alpine/manifests/3.20").await.headers.contains_key("oci-namespace"));
}

#[tokio::test]
async fn the_version_check_answers_in_every_form() {
    let (cistern, hub, other, ..) = two().await;
    let own = cistern.client().0;
    let (default, named) = (format!("http://{own}/oauth2/token"), format!("http://{own}/_ocistern/reg.example/token"));
    for (target, realm) in [
        ("/v2/", &default),
        ("/v2", &default),
        ("/docker.io/v2/", &default),
        ("/reg.example/v2/", &named),
        ("/v2/?ns=reg.example", &named),
    ] {
        let got = cistern.get(target).await;
        assert_eq!(got.status, 401, "{target}: {}", got.summary());
        let challenge = format!("Bearer realm=\"{realm}\",service=\"{own}\"");
        assert_eq!(got.header("www-authenticate"), challenge, "{target}");
        assert_eq!(got.header("docker-distribution-api-version"), "registry/2.0");
    }
    assert_eq!(hub.log().len() + other.log().len(), 0);
}

#[tokio::test]
async fn bad_requests_get_the_specifications_errors() {
    let upstream = Upstream::start().await;
    let image = image(4);
    upstream.image("app", "1.0", &image);
    let cistern = Cistern::start(&upstream, "").await;
    let hex = "a".repeat(64);
    for (target, code) in [
        ("/v2/App/manifests/1.0".to_owned(), "NAME_INVALID"),
        ("/v2/a..b/manifests/1.0".to_owned(), "NAME_INVALID"),
        ("/v2/../../etc/passwd/manifests/1.0".to_owned(), "NAME_INVALID"),
        ("/v2/%2e%2e%2f%2e%2e%2fetc/manifests/1.0".to_owned(), "NAME_INVALID"),
        ("/v2/app%00/manifests/1.0".to_owned(), "NAME_INVALID"),
        ("/v2/app%ff/manifests/1.0".to_owned(), "NAME_INVALID"),
        ("/v2/app%5c..%5c/manifests/1.0".to_owned(), "NAME_INVALID"),
        ("/v2/app%252Fx/manifests/1.0".to_owned(), "NAME_INVALID"),
        (format!("/v2/{}/manifests/1.0", "a".repeat(300)), "NAME_INVALID"),
        ("/v2//manifests/1.0".to_owned(), "NAME_INVALID"),
        (format!("/v2/app/blobs/sha256:{}", &hex[1..]), "DIGEST_INVALID"),
        (format!("/v2/app/blobs/sha256:{}", hex.to_uppercase()), "DIGEST_INVALID"),
        (format!("/v2/app/blobs/md5:{hex}"), "DIGEST_INVALID"),
        ("/v2/app/blobs/sha256:../../../../etc/passwd".to_owned(), ""),
        ("/v2/app/blobs/latest".to_owned(), "DIGEST_INVALID"),
        ("/v2/app/manifests/sha256:baddigeststring".to_owned(), ""),
        ("/v2/app/manifests/-bad".to_owned(), ""),
        (format!("/v2/app/manifests/{}", "t".repeat(129)), ""),
        ("/v2/app/manifests/".to_owned(), ""),
        ("/v2/app/manifests/1%2e0%0d%0aX:y".to_owned(), ""),
        ("/v2/app/nonsense/x".to_owned(), ""),
        ("/".to_owned(), ""),
        ("/v1/app".to_owned(), ""),
    ] {
        let got = cistern.get(&target).await;
        assert!(matches!(got.status, 400 | 404), "{target}: {}", got.summary());
        let seen = got.error_code();
        assert!(code.is_empty() || seen == code, "{target}: {seen}, not {code}");
    }
    assert_eq!(upstream.log().len(), 0, "none of these reached upstream: {:?}", upstream.log().first());
    cistern.get("/v2/app/manifests/1.0").await.assert_is(&image.manifest);
    let known = [
        "CACHEDIR.TAG",
        "VERSION",
        "blobs",
        "fills",
        "index",
        "lock",
        "ocistern.sock",
        "oci-layout",
        "private",
        "quarantine",
        "refs",
        "state",
    ];
    let mut names = std::fs::read_dir(cistern.root()).unwrap().map(|entry| entry.unwrap().file_name());
    let unknown = names.find(|name| !known.iter().any(|known| name == known));
    assert_eq!(unknown, None, "a name took the place of one of the store's directories");
    let pulled = BTreeSet::from(["up".into(), "up/app".into()]);
    assert_eq!(referred(cistern.root()), pulled, "refs of what was pulled, and of nothing else");
    check(&cistern).await;
}

/// The upstreams and repositories that have something in `refs/`.
fn referred(root: &Path) -> BTreeSet<PathBuf> {
    let refs = root.join("refs");
    let name = |path: &PathBuf| -> PathBuf {
        let below = path.strip_prefix(&refs).unwrap();
        below.iter().take_while(|part| !part.as_encoded_bytes().starts_with(b"_")).collect()
    };
    files(&refs).iter().map(name).collect()
}

#[tokio::test]
async fn odd_methods_bodies_and_heads_are_refused() {
    let upstream = Upstream::start().await;
    let bytes = blob(5, 1000);
    let digest = upstream.blob("app", &bytes);
    let cistern = Cistern::start(&upstream, "").await;
    let target = format!("/v2/app/blobs/{digest}");
    for method in [Method::OPTIONS, Method::TRACE, Method::PATCH, Method::from_bytes(b"BREW").unwrap()] {
        let got = cistern.send(Ask::new(method.clone(), &target)).await;
        assert!(matches!(got.status, 400 | 405 | 501), "{method}: {}", got.summary());
    }
    let line = format!("GET {target} HTTP/1.1\r\nHost: x\r\n");
    for (what, head, statuses) in [
        ("a body on GET", format!("{line}Content-Length: 5\r\n\r\nhello"), vec![400]),
        (
            "a chunked body on GET",
            format!("{line}Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"),
            vec![400],
        ),
        ("both framings", format!("{line}Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"), vec![400]),
        ("two lengths", format!("{line}Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello!"), vec![400]),
        ("a huge head", format!("{line}X: {}\r\n\r\n", "x".repeat(200_000)), vec![400, 431]),
        ("many headers", format!("{line}{}\r\n", "X: y\r\n".repeat(1000)), vec![400, 431]),
        (
            "a long target",
            format!("GET /v2/{} HTTP/1.1\r\nHost: x\r\n\r\n", "a/".repeat(60_000)),
            vec![400, 404, 414, 431],
        ),
        ("no HTTP", "SSH-2.0-x\r\n\r\n".to_owned(), vec![400]),
        ("CONNECT", "CONNECT 127.0.0.1:22 HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(), vec![400, 404, 405, 501]),
        ("an upgrade", format!("{line}Connection: upgrade\r\nUpgrade: websocket\r\n\r\n"), vec![200, 400]),
    ] {
        let (status, answer) = raw(&cistern, &head).await;
        // Where the head is beyond parsing, closing without an answer is as good as one.
        assert!(status == 0 || statuses.contains(&status), "{what}: {answer}");
    }
    cistern.get(&target).await.assert_is(&bytes);
    cistern.get(format!("/v2/app/blobs/{}", sha256(b"x"))).await.assert_fails(404);
    check(&cistern).await;
}

/// Sends bytes as they are and reads one answer: its status (0: none came), and all of it.
async fn raw(cistern: &Cistern, head: &str) -> (u16, String) {
    let mut stream = tokio::net::TcpStream::connect(cistern.client().0).await.unwrap();
    // A refused head may be cut while it is being sent.
    let _ = stream.write_all(head.as_bytes()).await;
    let mut answer = String::new();
    let mut piece = [0; 4096];
    while !is_whole(&answer) {
        match crate::common::patiently("a raw answer", stream.read(&mut piece)).await {
            Ok(read) if read > 0 => answer += &String::from_utf8_lossy(&piece[..read]),
            _ => break,
        }
    }
    let status = answer.strip_prefix("HTTP/1.1 ").and_then(|rest| rest[..3].parse().ok()).unwrap_or(0);
    (status, answer)
}

fn is_whole(answer: &str) -> bool {
    let Some((head, body)) = answer.split_once("\r\n\r\n") else { return false };
    let head = head.to_ascii_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse::<usize>().ok());
    length.is_some_and(|length| body.len() >= length)
}
