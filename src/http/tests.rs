//! Who may do what, through the whole edge but without sockets, so that callers can come from anywhere. No upstream is
//! reachable: what is decided here is decided before one is asked.

use bytes::Bytes;
use http::header::{AUTHORIZATION, WWW_AUTHENTICATE};
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::access::Peer;
use super::connection::Security;
use super::*;
use crate::clock::SystemClock;
use crate::clock::twin::system;
use crate::metrics::Metrics;
use crate::store::{Keep, Store, StoreOptions};
use crate::upstream::Right;

const LOCAL: &str = "127.0.0.1:40000";
const AFAR: &str = "10.0.0.9:40000";
/// alice:pw
const ALICE: &str = "Basic YWxpY2U6cHc=";

/// An edge with the first listener of a configuration.
struct Edge {
    app: App,
    listener: ListenerState,
    _root: TempDir,
}

impl Edge {
    /// `listener` and `upstreams` are lines and tables of a configuration.
    async fn new(listener: &str, upstreams: &str) -> Self {
        let root = tempfile::tempdir().unwrap();
        let text = format!(
            "root = '{}'\nbuiltin_upstreams = false\n[[listener]]\naddress = \"127.0.0.1:0\"\n{listener}\n{upstreams}",
            root.path().display()
        );
        let config = Arc::new(Config::from_toml(&text).unwrap_or_else(|error| panic!("{error}\n{text}")));
        let metrics = Metrics::new().unwrap();
        let options = StoreOptions {
            root: root.path().join("store"),
            capacity: config.store.capacity,
            durability: config.store.durability,
            keep: Keep::default(),
            origins: vec![],
            clock: system(),
        };
        let store = {
            let metrics = metrics.clone();
            tokio::task::spawn_blocking(move || Store::open(options, metrics)).await.unwrap().unwrap()
        };
        let upstreams = Arc::new(Upstreams::new(&config, metrics.clone(), system()).unwrap());
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let cache = Cache::new(store, Arc::clone(&upstreams), &config, metrics.clone(), tasks.clone(), stop);
        let listener = ListenerState::new(config.listeners[0].clone());
        let app = App {
            directory: Directory::new(&config),
            config,
            cache,
            upstreams,
            seal: Seal::new(&[1; 32]).into(),
            locations: Locations::new([2; 32]).into(),
            requests: Requests::new(&metrics, ["up"]).into(),
            clock: system(),
            steady: Steady::new(&SystemClock),
            tasks,
        };
        Self { app, listener, _root: root }
    }

    async fn send(&self, peer: &str, method: &str, target: &str, authorization: Option<&str>) -> Response<Body> {
        self.send_by(Security::of(&self.listener.config), peer, method, target, authorization).await
    }

    /// By a connection of which this is known, whatever the listener's configuration is by now.
    async fn send_by(
        &self,
        security: Security,
        peer: &str,
        method: &str,
        target: &str,
        authorization: Option<&str>,
    ) -> Response<Body> {
        let mut request = Request::builder().method(method).uri(target).header("host", "localhost:5000");
        if let Some(text) = authorization {
            request = request.header(AUTHORIZATION, text);
        }
        let request = request.body(Full::new(Bytes::new())).unwrap();
        let connection = Connection { peer: Peer::Tcp(peer.parse().unwrap()), outlet: None, security };
        handle(&self.app, &self.listener, connection, request).await
    }

    async fn status(&self, peer: &str, method: &str, target: &str, authorization: Option<&str>) -> u16 {
        match self.send(peer, method, target, authorization).await.status().as_u16() {
            // After some failures upstream is left alone.
            503 => UNREACHABLE,
            status => status,
        }
    }

    async fn token(&self, peer: &str, query: &str, authorization: Option<&str>) -> String {
        let response = self.send(peer, "GET", &format!("/oauth2/token?{query}"), authorization).await;
        let body = response.into_body().collect().await.unwrap().to_bytes();
        let json: serde_json::Value = serde_json::from_slice(&body).unwrap();
        format!("Bearer {}", json["token"].as_str().unwrap_or_else(|| panic!("{json}")))
    }
}

const MANIFEST: &str = "/v2/app/manifests/1";
const UNREACHABLE: u16 = 502;

async fn text(response: Response<Body>) -> String {
    String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
}

/// An upstream that nobody can reach.
fn upstream(name: &str, keys: &str) -> String {
    format!("[upstream.\"{name}\"]\nurl = \"http://127.0.0.1:1\"\n{keys}\n")
}

/// One that ocistern pulls by an account of its own.
fn own(keys: &str) -> String {
    let account = "credentials = { from = \"static\", username = \"u\", password_file = \"/nonexistent\" }";
    upstream("up", &format!("{account}\n{keys}"))
}

#[tokio::test]
async fn credentials_do_not_cross_a_network_in_the_clear() {
    let plain = Edge::new("default_upstream = \"up\"", &upstream("up", "")).await;
    let nobody = plain.token(AFAR, "scope=repository:app:pull", None).await;
    for (peer, authorization, expected) in [
        (AFAR, None, UNREACHABLE),
        (AFAR, Some("Basic Og=="), UNREACHABLE),
        (AFAR, Some(nobody.as_str()), UNREACHABLE),
        (AFAR, Some(ALICE), 403),
        (LOCAL, Some(ALICE), UNREACHABLE),
        ("[::ffff:10.0.0.9]:1", Some(ALICE), 403),
    ] {
        assert_eq!(plain.status(peer, "GET", MANIFEST, authorization).await, expected, "{peer} {authorization:?}");
    }
    // Upstream is away, so this is an unconfirmed one; it holds a password all the same.
    let alices = plain.token(LOCAL, "scope=repository:app:pull", Some(ALICE)).await;
    for target in [MANIFEST, "/v2/"] {
        assert_eq!(plain.status(AFAR, "GET", target, Some(&alices)).await, 403, "{target}");
    }
    for (method, target) in [("GET", "/oauth2/token"), ("GET", "/v2/"), ("POST", "/oauth2/token")] {
        let refused = plain.send(AFAR, method, target, Some(ALICE)).await;
        assert_eq!(refused.status(), StatusCode::FORBIDDEN, "{method} {target}");
        assert!(text(refused).await.contains("allow_plain_credentials"), "it names the key");
    }
    assert_eq!(plain.status(AFAR, "POST", "/oauth2/exchange", None).await, 403);
    let allowed = "default_upstream = \"up\"\nallow_plain_credentials = true";
    let allowed = Edge::new(allowed, &upstream("up", "")).await;
    assert_eq!(allowed.status(AFAR, "GET", MANIFEST, Some(ALICE)).await, UNREACHABLE);
}

#[tokio::test]
async fn who_may_read_by_ocisterns_own_account() {
    let users = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(users.path(), format!("alice:{}\n", bcrypt::hash("pw", 4).unwrap())).unwrap();
    let htpasswd =
        format!("default_upstream = \"up\"\nhtpasswd = '{}'\nallow_plain_credentials = true", users.path().display());
    let bare = Edge::new("default_upstream = \"up\"", &own("push = \"off\"")).await;
    let with_users = Edge::new(&htpasswd, &own("push = \"off\"")).await;
    // Who is let in gets as far as upstream, or as the password file that cannot be read.
    let let_in = UNREACHABLE;
    for (edge, peer, authorization, expected) in [
        (&bare, LOCAL, None, let_in),
        (&bare, AFAR, None, 403),
        (&with_users, LOCAL, None, let_in),
        (&with_users, AFAR, None, 401),
        (&with_users, AFAR, Some(ALICE), let_in),
        (&with_users, AFAR, Some("Basic YWxpY2U6eA=="), 401),
    ] {
        assert_eq!(edge.status(peer, "GET", MANIFEST, authorization).await, expected, "{peer} {authorization:?}");
    }
    let alices = with_users.token(AFAR, "scope=repository:app:pull", Some(ALICE)).await;
    assert_eq!(with_users.status(AFAR, "GET", MANIFEST, Some(&alices)).await, let_in);
    assert_eq!(with_users.status(AFAR, "GET", "/v2/other/manifests/1", Some(&alices)).await, 401);
    let nobodys = with_users.token(AFAR, "scope=repository:app:pull", None).await;
    let refused = with_users.send(AFAR, "GET", MANIFEST, Some(&nobodys)).await;
    let challenge = refused.headers()[WWW_AUTHENTICATE].to_str().unwrap().to_owned();
    assert!(challenge.ends_with("scope=\"repository:app:pull\",error=\"insufficient_scope\""), "{challenge}");
    // Another listener's users are not this one's.
    let others = Edge {
        listener: ListenerState {
            htpasswd: Some(Htpasswd::new("/other".into())),
            ..ListenerState::new(with_users.listener.config.clone())
        },
        ..Edge::new(&htpasswd, &own("push = \"off\"")).await
    };
    assert_eq!(others.status(AFAR, "GET", MANIFEST, Some(&alices)).await, 401);
}

/// With a name and password, and with the token that was given for them.
#[tokio::test]
async fn who_is_taken_out_of_the_file_may_no_longer_read() {
    let users = tempfile::NamedTempFile::new().unwrap();
    let line = |password: &str| format!("alice:{}\n", bcrypt::hash(password, 4).unwrap());
    let listener =
        format!("default_upstream = \"up\"\nhtpasswd = '{}'\nallow_plain_credentials = true", users.path().display());
    for left in ["", &line("other")] {
        std::fs::write(users.path(), line("pw")).unwrap();
        let edge = Edge::new(&listener, &own("push = \"off\"")).await;
        let token = edge.token(AFAR, "scope=repository:app:pull", Some(ALICE)).await;
        for shown in [ALICE, &token] {
            assert_eq!(edge.status(AFAR, "GET", MANIFEST, Some(shown)).await, UNREACHABLE);
        }
        std::fs::write(users.path(), left).unwrap();
        tokio::time::pause();
        tokio::time::advance(std::time::Duration::from_secs(9)).await;
        tokio::time::resume();
        for shown in [&token, ALICE] {
            assert_eq!(edge.status(AFAR, "GET", MANIFEST, Some(shown)).await, 401, "{left:?} {shown}");
        }
    }
}

#[tokio::test]
async fn a_connection_is_what_it_was_when_it_was_accepted() {
    let tls = "default_upstream = \"up\"\ntls = { certificate = \"/a\", key = \"/b\"";
    let wants_certificates = Edge::new(&format!("{tls}, client_ca = \"/c\" }}"), &own("push = \"off\"")).await;
    let has_tls = Edge::new(&format!("{tls} }}"), &own("push = \"off\"")).await;
    // The configuration may have changed while it was open: neither does that make a certificate, nor is one of use that is not
    // wanted any more.
    for (edge, security, expected) in [
        (&wants_certificates, Security::Certified, UNREACHABLE),
        (&wants_certificates, Security::Tls, 403),
        (&wants_certificates, Security::Plain, 403),
        (&has_tls, Security::Certified, 403),
    ] {
        let got = edge.send_by(security, AFAR, "GET", MANIFEST, None).await;
        let got = if got.status() == StatusCode::SERVICE_UNAVAILABLE { UNREACHABLE } else { got.status().as_u16() };
        assert_eq!(got, expected, "{security:?}");
    }
    let plain = Edge::new(&format!("{tls} }}"), &upstream("up", "")).await;
    let got = plain.send_by(Security::Plain, AFAR, "GET", MANIFEST, Some(ALICE)).await;
    assert_eq!(got.status(), StatusCode::FORBIDDEN, "the password crossed the network in the clear");
}

#[tokio::test]
async fn the_shared_account_writes_for_known_callers_only() {
    let users = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(users.path(), format!("alice:{}\n", bcrypt::hash("pw", 4).unwrap())).unwrap();
    let listener = "default_upstream = \"up\"";
    let bare = Edge::new(listener, &own("push = \"shared\"")).await;
    let with_users = format!("{listener}\nhtpasswd = '{}'", users.path().display());
    let with_users = Edge::new(&with_users, &own("push = \"shared\"")).await;
    let right = async |edge: &Edge, authorization: Option<&str>| {
        let mut request = Request::builder().method("PUT").uri(MANIFEST).header("host", "localhost:5000");
        if let Some(text) = authorization {
            request = request.header(AUTHORIZATION, text);
        }
        let (parts, ()) = request.body(()).unwrap().into_parts();
        let peer = Peer::Tcp(LOCAL.parse().unwrap());
        let asked = Asked {
            app: &edge.app,
            listener: &edge.listener,
            peer,
            outlet: None,
            security: Security::Plain,
            host: Some("localhost:5000"),
            parts: &parts,
        };
        let listener = &edge.listener.config;
        let routed = route::parse(&edge.app.directory, listener, Some("localhost:5000"), MANIFEST, None);
        let Ok(Routed::Resource(route)) = routed else { panic!("a route") };
        let caller = caller::identify(&asked, &route).await;
        caller.map(|caller| (caller.right, caller.owner)).map_err(|failure| failure.status.as_u16())
    };
    assert_eq!(right(&bare, None).await, Err(403), "loopback is not enough");
    assert_eq!(right(&bare, Some(ALICE)).await, Err(403));
    assert_eq!(right(&with_users, None).await, Err(401));
    assert_eq!(right(&with_users, Some("Basic YWxpY2U6eA==")).await, Err(401));
    let alice = Some("user:alice".to_owned());
    assert_eq!(right(&with_users, Some(ALICE)).await, Ok((Right::Shared, alice.clone())));
    let pushes = with_users.token(LOCAL, "scope=repository:app:pull,push", Some(ALICE)).await;
    assert_eq!(right(&with_users, Some(&pushes)).await, Ok((Right::Shared, alice)));
    let pulls = with_users.token(LOCAL, "scope=repository:app:pull", Some(ALICE)).await;
    assert_eq!(right(&with_users, Some(&pulls)).await, Err(401), "it was issued for pull");
    // By the caller's own credential: a user of the file has none of upstream's.
    let by_client = format!("{listener}\nhtpasswd = '{}'", users.path().display());
    let by_client = Edge::new(&by_client, &own("push = \"client\"")).await;
    assert_eq!(right(&by_client, Some(ALICE)).await.unwrap().0, Right::Anonymous, "its password goes nowhere");
    let other = right(&by_client, Some("Basic Ym9iOnB3")).await.unwrap();
    assert!(matches!(other.0, Right::Client(_)) && other.1.as_deref() == Some("user:bob"), "{other:?}");
    // One that nobody writes to.
    let off = Edge::new(listener, &upstream("up", "push = \"off\"")).await;
    assert_eq!(right(&off, Some(ALICE)).await, Err(405));
}

#[tokio::test]
async fn the_version_check_challenges_where_a_credential_may_be_wanted() {
    for (listener, upstreams, expected) in [
        ("default_upstream = \"up\"", upstream("up", ""), 401),
        ("default_upstream = \"up\"", upstream("up", "credentials = { from = \"client\" }\npush = \"off\""), 401),
        ("default_upstream = \"up\"", upstream("up", "credentials = { from = \"anonymous\" }"), 401),
        ("default_upstream = \"up\"", upstream("up", "credentials = { from = \"anonymous\" }\npush = \"off\""), 200),
        ("default_upstream = \"up\"", own(""), 401),
        ("default_upstream = \"up\"", own("push = \"off\""), 200),
        ("default_upstream = \"up\"\nhtpasswd = \"/x\"", own("push = \"off\""), 401),
        ("default_upstream = \"up\"", own("push = \"shared\"") + &upstream("other", ""), 401),
        ("", upstream("up", ""), 401),
    ] {
        let edge = Edge::new(listener, &upstreams).await;
        assert_eq!(edge.status(LOCAL, "GET", "/v2/", None).await, expected, "{listener} {upstreams}");
        let nobody = edge.token(LOCAL, "service=x", None).await;
        assert_eq!(edge.status(LOCAL, "HEAD", "/v2/", Some(&nobody)).await, 200, "{upstreams}");
        assert_eq!(edge.status(LOCAL, "POST", "/v2/", None).await, 405);
    }
    let mixed = own("push = \"off\"") + &upstream("other", "");
    let edge = Edge::new("default_upstream = \"up\"", &mixed).await;
    assert_eq!(edge.status(LOCAL, "GET", "/up/v2/", None).await, 200, "this one wants nothing");
    assert_eq!(edge.status(LOCAL, "GET", "/other/v2/", None).await, 401);
    // What upstream cannot be asked is neither yes nor no.
    let edge = Edge::new("default_upstream = \"up\"", &upstream("up", "")).await;
    assert_eq!(edge.status(LOCAL, "GET", "/v2/", Some(ALICE)).await, UNREACHABLE);
}
