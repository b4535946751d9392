//! TLS, HTTP/2, proxies and pinned addresses.

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

use super::*;

/// A CA of our own: `file` is what an upstream's `ca` names.
pub(super) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    file: tempfile::NamedTempFile,
}

impl Authority {
    pub(super) fn new() -> Self {
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), issuer.pem()).unwrap();
        Self { issuer, file }
    }

    pub(super) fn acceptor(&self, names: &[&str], protocols: &[&str]) -> tokio_rustls::TlsAcceptor {
        let key = KeyPair::generate().unwrap();
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let certificate = CertificateParams::new(names).unwrap().signed_by(&key, &self.issuer).unwrap();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let mut config =
            rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_no_client_auth()
                .with_single_cert(vec![certificate.der().clone()], key)
                .unwrap();
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
        Arc::new(config).into()
    }

    /// Settings of `https://HOST:PORT` that trust this authority.
    pub(super) fn settings(&self, host: &str, port: u16) -> Upstream {
        let mut upstream = settings(([127, 0, 0, 1], port).into());
        upstream.url = BaseUrl { https: true, host: host.into(), port, prefix: String::new() };
        upstream.ca = Some(self.file.path().to_owned());
        upstream
    }
}

#[tokio::test]
async fn https_with_an_authority_of_our_own_in_both_versions() {
    let authority = Authority::new();
    for protocols in [&["h2", "http/1.1"][..], &["http/1.1"], &[]] {
        let acceptor = authority.acceptor(&["127.0.0.1"], protocols);
        let body = "x".repeat(3 << 20);
        let server = Server::on("127.0.0.1:0", Some(acceptor), move |_, _| reply(200, &[], &body)).await;
        let registry = registry(authority.settings("127.0.0.1", server.address.port()));
        let answers = futures_util::future::join_all((0..4).map(|_| registry.fetch(blob(Method::GET)))).await;
        for answer in answers {
            assert_eq!(text(answer.unwrap()).await.len(), 3 << 20, "{protocols:?}");
        }
    }
}

/// A registry behind a proxy that speaks TLS may be asked by plain http by that one: `url` is right then.
#[tokio::test]
async fn who_is_asked_by_tls_does_not_want_it() {
    let authority = Authority::new();
    let said = "Client sent an HTTP request to an HTTPS server.";
    let acceptor = authority.acceptor(&["127.0.0.1"], &[]);
    let server = Server::on("127.0.0.1:0", Some(acceptor), move |_, _| reply(400, &[], said)).await;
    let error = registry(authority.settings("127.0.0.1", server.address.port())).fetch(manifest()).await.unwrap_err();
    assert_eq!(error.to_string(), format!("test: answered 400 Bad Request: {said}"));
}

#[tokio::test]
async fn certificates_are_checked() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    for acceptor in [authority.acceptor(&["other.example"], &[]), stranger.acceptor(&["127.0.0.1"], &[])] {
        let server = Server::on("127.0.0.1:0", Some(acceptor), |_, _| reply(200, &[], "")).await;
        let error =
            registry(authority.settings("127.0.0.1", server.address.port())).fetch(manifest()).await.unwrap_err();
        assert!(matches!(error.fault, Fault::Tls(_)), "{error:?}");
        assert_eq!(server.count("/"), 0);
    }
    let plain = Server::start(|_, _| reply(200, &[], "")).await;
    let error = registry(authority.settings("127.0.0.1", plain.address.port())).fetch(manifest()).await.unwrap_err();
    assert_eq!(error.class(), Class::Unavailable, "plain http is not taken for https: {error}");
    let said = error.to_string();
    assert!(said.contains("does not speak TLS there") && !said.contains("InvalidContentType"), "{said}");
}

/// What TLS breaks over after the request was sent says nothing about whether upstream has done it: of a write that is
/// no refusal.
#[tokio::test]
async fn tls_that_breaks_after_the_request_is_no_failed_handshake() {
    // Something that is not TLS; an alert that is not encrypted; a record that cannot be decrypted.
    let garbage: [&[u8]; 3] = [
        b"HTTP/1.1 502 Bad Gateway\r\n\r\n",
        b"\x15\x03\x03\x00\x02\x02\x50",
        b"\x17\x03\x03\x00\x14xxxxxxxxxxxxxxxxxxxx",
    ];
    for bytes in garbage {
        let authority = Authority::new();
        let acceptor = authority.acceptor(&["127.0.0.1"], &["http/1.1"]);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let registry = registry(authority.settings("127.0.0.1", listener.local_addr().unwrap().port()));
        let mut serving = JoinSet::new();
        serving.spawn(async move {
            let mut taken = 0;
            while let Ok((stream, _)) = listener.accept().await {
                let mut stream = acceptor.accept(stream).await.unwrap();
                let mut head = Vec::new();
                while !head.ends_with(b"{}") {
                    head.push(stream.read_u8().await.unwrap());
                    // What is asked before a write is sent.
                    if head.starts_with(b"GET ") && head.ends_with(b"\r\n\r\n") {
                        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
                        stream.flush().await.unwrap();
                        head.clear();
                    }
                }
                taken += 1;
                let (mut stream, _) = stream.into_inner();
                stream.write_all(bytes).await.unwrap();
                stream.shutdown().await.unwrap();
            }
            taken
        });
        let put = Call::new(
            crate::metrics::Kind::Manifest,
            Method::PUT,
            CallTarget::Path("/v2/library/alpine/manifests/latest".to_owned()),
            caller(1, "me", "pw"),
        );
        let put = put.with_repo(&repo()).with_body(CallBody::Bytes(Bytes::from_static(b"{}"))).with_deadline(soon());
        let error = registry.relay(put).await.unwrap_err();
        assert!(matches!(error.fault, Fault::Broken(_)), "{bytes:?}: {error:?}");
    }
}

#[tokio::test]
async fn https_never_leads_to_http() {
    let authority = Authority::new();
    let plain = Server::start(|_, _| reply(200, &[], r#"{"token":"t"}"#)).await;
    let (location, realm) = (plain.url("/x"), format!(r#"Bearer realm="{}""#, plain.url("/token")));
    let server = Server::on("127.0.0.1:0", Some(authority.acceptor(&["127.0.0.1"], &[])), move |seen, _| {
        if seen.target.contains("blobs") {
            redirect_to(&location)
        } else {
            reply(401, &[("www-authenticate", &realm)], "")
        }
    })
    .await;
    let registry = registry(authority.settings("127.0.0.1", server.address.port()));
    let error = registry.fetch(blob(Method::GET)).await.unwrap_err();
    assert!(matches!(error.fault, Fault::Redirect(RedirectFault::Downgrade { .. })), "{error}");
    let error = registry.fetch(manifest()).await.unwrap_err();
    assert!(matches!(error.fault, Fault::Token(TokenFault::Realm(RealmFault::Plain { .. }))), "{error}");
    assert_eq!(plain.count("/"), 0);
}

#[tokio::test]
async fn a_listed_token_host_gets_the_account_over_https() {
    let authority = Authority::new();
    let acceptor = authority.acceptor(&["127.0.0.2"], &["h2"]);
    let auth = Server::on("127.0.0.2:0", Some(acceptor), |_, _| reply(200, &[], r#"{"token":"t"}"#)).await;
    let realm = format!(r#"Bearer realm="https://{}/token""#, auth.address);
    let server = Server::on("127.0.0.1:0", Some(authority.acceptor(&["127.0.0.1"], &[])), move |seen, _| {
        match authorization(seen) {
            Some("Bearer t") => reply(200, &[], "content"),
            _ => reply(401, &[("www-authenticate", &realm)], ""),
        }
    })
    .await;
    let (mut upstream, _file) = with_account(authority.settings("127.0.0.1", server.address.port()));
    let error = registry(upstream.clone()).fetch(manifest()).await.unwrap_err();
    assert!(error.to_string().contains(&format!("add \"{}\" to `token_hosts`", auth.address)), "{error}");
    assert_eq!(auth.count("/"), 0);
    upstream.token_hosts = vec![auth.address.to_string()];
    registry(upstream).fetch(manifest()).await.unwrap();
    assert!(authorization(&auth.requests("/token")[0]).unwrap().starts_with("Basic "));
}

#[tokio::test]
async fn pinned_addresses_keep_name_and_certificate() {
    let authority = Authority::new();
    let acceptor = authority.acceptor(&["registry.invalid"], &["h2"]);
    let server = Server::on("127.0.0.1:0", Some(acceptor), |_, _| reply(200, &[], "content")).await;
    let mut upstream = authority.settings("registry.invalid", 443);
    upstream.connect = vec![server.address.to_string()];
    // No proxy is asked for what is pinned.
    let proxies = Matcher::builder().all("http://127.0.0.1:1").build();
    let registry = registry_with(upstream, &Metrics::new().unwrap(), proxies, &OwnAddresses::default());
    assert_eq!(text(registry.fetch(manifest()).await.unwrap()).await, "content");
}

/// A proxy that writes down every request head, and for CONNECT leads to `to`.
async fn proxy(to: SocketAddr) -> (SocketAddr, Arc<Mutex<Vec<String>>>, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let heads: Arc<Mutex<Vec<String>>> = Arc::default();
    let log = Arc::clone(&heads);
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let log = Arc::clone(&log);
            connections.spawn(async move {
                let head = read_head(&mut stream).await;
                let tunnel = head.starts_with("CONNECT ");
                log.lock().push(head);
                if tunnel {
                    stream.write_all(b"HTTP/1.1 200 Connected\r\n\r\n").await.unwrap();
                    let mut target = TcpStream::connect(to).await.unwrap();
                    let _ = tokio::io::copy_bidirectional(&mut stream, &mut target).await;
                } else {
                    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nproxy").await;
                }
            });
        }
    });
    (address, heads, tasks)
}

#[tokio::test]
async fn proxies_of_the_environment_are_used() {
    let authority = Authority::new();
    let acceptor = authority.acceptor(&["registry.invalid"], &["h2"]);
    let server = Server::on("127.0.0.1:0", Some(acceptor), |_, _| reply(200, &[], "content")).await;
    let (address, heads, _proxy) = proxy(server.address).await;
    let matcher = || Matcher::builder().all(format!("http://user:pw@{address}")).no("direct.invalid").build();
    let fetch = async |upstream| {
        let registry = registry_with(upstream, &Metrics::new().unwrap(), matcher(), &OwnAddresses::default());
        registry.fetch(manifest()).await
    };
    let answer = fetch(authority.settings("registry.invalid", 443)).await.unwrap();
    assert_eq!(text(answer).await, "content", "the name is resolved by the proxy alone");
    assert!(heads.lock()[0].starts_with("CONNECT registry.invalid:443 HTTP/1.1\r\n"));
    assert!(heads.lock()[0].contains("Proxy-Authorization: Basic dXNlcjpwdw=="));

    let mut plain = settings(server.address);
    plain.url = BaseUrl { https: false, host: "plain.invalid".into(), port: 80, prefix: "/sub".into() };
    assert_eq!(text(fetch(plain).await.unwrap()).await, "proxy");
    let head = heads.lock()[1].to_ascii_lowercase();
    assert!(head.starts_with("get http://plain.invalid/sub/v2/library/alpine/manifests/latest http/1.1\r\n"), "{head}");
    assert!(head.contains("proxy-authorization: basic "), "{head}");

    let error = fetch(authority.settings("direct.invalid", 443)).await.unwrap_err();
    assert!(matches!(error.fault, Fault::Unreachable(_)), "{error}");
    assert_eq!(heads.lock().len(), 2, "NO_PROXY is heeded");
}
