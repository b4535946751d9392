//! Several listeners, on sockets of systemd and of their own: each has what is its own, whichever sockets stand for it and in
//! which order they came, and keeps it when the configuration is read again.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

use ocistern::clock::SystemClock;
use ocistern::config::{Config, KnownUrls};
use ocistern::server::{Inherited, Server};
use tempfile::TempDir;

use crate::common::content::image;
use crate::common::tls::{Authority, TlsClient};
use crate::common::{Ask, Client, Got, Upstream, patiently};

const TARGET: &str = "/v2/app/manifests/1.0";

/// An ocistern with listeners of which each has an upstream of its own: `one`, `two` and `three` answer with other images.
struct Several {
    home: TempDir,
    upstreams: Vec<(&'static str, Upstream)>,
    running: Option<(Server, Config)>,
}

// === impl Several ===

impl Several {
    async fn new() -> Self {
        let mut upstreams = Vec::new();
        for (name, seed) in [("one", 1), ("two", 2), ("three", 3)] {
            let upstream = Upstream::start().await;
            upstream.image("app", "1.0", &image(seed));
            upstreams.push((name, upstream));
        }
        Self { home: tempfile::tempdir().unwrap(), upstreams, running: None }
    }

    /// Each listener by its address and the lines of its table, in the order of the file.
    fn config(&self, listeners: &[(SocketAddr, &str)], extra: &str) -> Config {
        let root = self.home.path().join("root");
        let mut text =
            format!("root = '{}'\nbuiltin_upstreams = false\n[admin]\naddress = \"127.0.0.1:0\"\n", root.display());
        for (address, keys) in listeners {
            text += &format!("[[listener]]\naddress = \"{address}\"\n{keys}\n");
        }
        for (name, upstream) in &self.upstreams {
            text += &format!("[upstream.{name}]\nurl = \"{}\"\n", upstream.url());
        }
        text += extra;
        Config::from_toml(&text).unwrap_or_else(|error| panic!("{error}\n{text}"))
    }

    async fn start(&mut self, config: Config, sockets: Vec<TcpListener>) {
        let server = Server::start_with(config.clone(), Inherited::from(sockets), Arc::new(SystemClock)).await.unwrap();
        self.running = Some((server, config));
    }

    async fn reload(&mut self, new: &Config) {
        let (server, config) = self.running.as_mut().unwrap();
        let mut known = KnownUrls::default();
        known.learn(config);
        let (next, _) = config.reload(new, &known).unwrap();
        server.look_at_users().await;
        server.reload(next.clone()).await.unwrap();
        *config = next;
    }

    async fn stop(self) {
        patiently("ocistern stops", self.running.unwrap().0.stop()).await;
    }
}

/// Sockets on free ports: `count` of them, each on another port.
fn sockets(count: usize) -> (Vec<TcpListener>, Vec<SocketAddr>) {
    let sockets: Vec<_> = (0..count).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    let addresses = sockets.iter().map(|socket| socket.local_addr().unwrap()).collect();
    (sockets, addresses)
}

async fn ask(address: SocketAddr) -> Got {
    Client(address).get(TARGET).await
}

/// Fails unless each of these addresses leads to the image with this seed.
async fn assert_lead(expected: &[(SocketAddr, u64)]) {
    for (address, seed) in expected {
        let got = ask(*address).await;
        assert_eq!(got.body, image(*seed).manifest, "{address} leads elsewhere: {}", got.summary());
    }
}

const ONE: &str = "default_upstream = \"one\"";
const TWO: &str = "default_upstream = \"two\"";
const THREE: &str = "default_upstream = \"three\"";
/// What changes nothing of a listener.
const OTHER_LIMITS: &str = "[limits]\nidle = \"5m\"";

#[tokio::test]
async fn sockets_of_systemd_in_another_order_keep_their_listeners_through_reloads() {
    let mut several = Several::new().await;
    let (mut passed, at) = sockets(3);
    passed.reverse();
    let file = [(at[0], ONE), (at[1], TWO), (at[2], THREE)];
    several.start(several.config(&file, ""), passed).await;
    assert_lead(&[(at[0], 1), (at[1], 2), (at[2], 3)]).await;
    several.reload(&several.config(&file, OTHER_LIMITS)).await;
    assert_lead(&[(at[0], 1), (at[1], 2), (at[2], 3)]).await;
    // The file in another order, which means the same; and one that goes, one that is new, and one that changes.
    several.reload(&several.config(&[file[2], file[0], file[1]], "")).await;
    assert_lead(&[(at[0], 1), (at[1], 2), (at[2], 3)]).await;
    let new = "127.0.0.1:1".parse().unwrap();
    several.reload(&several.config(&[(new, ONE), (at[2], TWO), (at[1], TWO)], "")).await;
    assert_lead(&[(at[0], 1), (at[1], 2), (at[2], 2)]).await;
    several.stop().await;
}

#[tokio::test]
async fn both_sockets_of_a_listener_follow_it() {
    let mut several = Several::new().await;
    let (mut passed, at) = sockets(2);
    // As the unit has 127.0.0.1 and [::1]: another address, the same port.
    let twin = TcpListener::bind(("127.0.0.2", at[0].port())).unwrap();
    let beside = twin.local_addr().unwrap();
    passed.insert(1, twin);
    several.start(several.config(&[(at[0], ONE), (at[1], TWO)], ""), passed).await;
    assert_lead(&[(at[0], 1), (beside, 1), (at[1], 2)]).await;
    several.reload(&several.config(&[(at[0], ONE), (at[1], TWO)], OTHER_LIMITS)).await;
    assert_lead(&[(at[0], 1), (beside, 1), (at[1], 2)]).await;
    several.reload(&several.config(&[(at[1], TWO), (at[0], THREE)], "")).await;
    assert_lead(&[(at[0], 3), (beside, 3), (at[1], 2)]).await;
    several.stop().await;
}

/// One that sockets of systemd leave out, and one whose address the machine has not.
#[tokio::test]
async fn a_listener_that_is_not_served_passes_nothing_on() {
    let elsewhere: SocketAddr = "192.0.2.1:9".parse().unwrap();
    for optional in [false, true] {
        let mut several = Several::new().await;
        let (mut passed, at) = sockets(1);
        let mut config = several.config(&[(elsewhere, ONE), (at[0], TWO)], "");
        config.listeners[0].optional = optional;
        if optional {
            passed.clear();
        }
        several.start(config, passed).await;
        assert_lead(&[(at[0], 2)]).await;
        several.reload(&several.config(&[(elsewhere, ONE), (at[0], TWO)], OTHER_LIMITS)).await;
        assert_lead(&[(at[0], 2)]).await;
        several.reload(&several.config(&[(at[0], THREE), (elsewhere, ONE)], "")).await;
        assert_lead(&[(at[0], 3)]).await;
        several.stop().await;
    }
}

#[tokio::test]
async fn tls_and_names_stay_with_the_listener_that_has_them() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let ca = Authority::at(&path.join("ca.pem"));
    let tls = |stem: &str| {
        ca.server(path, stem, &["cache.test"]);
        let path = path.display();
        format!("{ONE}\ntls = {{ certificate = '{path}/{stem}.pem', key = '{path}/{stem}.key' }}")
    };
    let mut several = Several::new().await;
    let (mut passed, at) = sockets(2);
    passed.reverse();
    let client = TlsClient::new(at[0], &ca, "cache.test");
    several.start(several.config(&[(at[0], &tls("first")), (at[1], TWO)], ""), passed).await;
    let mapped = format!("{TWO}\nhostnames = {{ \"mapped.test\" = \"three\" }}");
    for stem in ["first", "second"] {
        several.reload(&several.config(&[(at[0], &tls(stem)), (at[1], &mapped)], "")).await;
        client.send(Ask::get(TARGET)).await.assert_is(&image(1).manifest);
        assert_eq!(ask(at[0]).await.status, 0, "plain HTTP where TLS is spoken");
        ask(at[1]).await.assert_is(&image(2).manifest);
        let by_name = Ask::get(TARGET).with("host", "mapped.test");
        Client(at[1]).send(by_name.clone()).await.assert_is(&image(3).manifest);
        client.send(by_name).await.assert_is(&image(1).manifest);
    }
    several.stop().await;
}

/// With a name and password that are remembered, and with a token.
#[tokio::test]
async fn who_is_taken_out_of_a_listeners_users_is_out_as_soon_as_it_is_told() {
    let mut several = Several::new().await;
    let users = several.home.path().join("users");
    std::fs::write(&users, format!("dev:{}\n", bcrypt::hash("pw", 4).unwrap())).unwrap();
    let password = several.home.path().join("password");
    std::fs::write(&password, "own").unwrap();
    let own = format!(
        "[upstream.own]\nurl = \"http://127.0.0.1:9\"\npush = \"off\"\n\
         credentials = {{ from = \"static\", username = \"own\", password_file = '{}' }}",
        password.display()
    );
    let keys = format!("default_upstream = \"own\"\nhtpasswd = '{}'\nallow_plain_credentials = true", users.display());
    let (passed, at) = sockets(1);
    several.start(several.config(&[(at[0], &keys)], &own), passed).await;
    // Not as one on this machine, who needs no name.
    let from_elsewhere = |ask: Ask| ask.with("x-forwarded-for", "192.0.2.1");
    let basic = from_elsewhere(Ask::get(TARGET).basic("dev", "pw"));
    let token = Client(at[0]).send(basic.clone().at("/oauth2/token?scope=repository:app:pull")).await.json();
    let bearer = from_elsewhere(Ask::get(TARGET).bearer(token["token"].as_str().unwrap()));
    for ask in [&basic, &bearer] {
        let got = Client(at[0]).send(ask.clone()).await;
        assert!(got.status >= 500, "let in, as far as upstream, which is not there: {}", got.summary());
    }
    std::fs::write(&users, "").unwrap();
    several.reload(&several.config(&[(at[0], &keys)], &own)).await;
    for ask in [basic, bearer] {
        Client(at[0]).send(ask).await.assert_fails(401);
    }
    several.stop().await;
}

/// Without sockets of systemd, each opens its own.
#[tokio::test]
async fn listeners_on_sockets_of_their_own_keep_what_is_theirs() {
    let mut several = Several::new().await;
    let (free, at) = sockets(2);
    drop(free);
    several.start(several.config(&[(at[0], ONE), (at[1], TWO)], ""), Vec::new()).await;
    several.reload(&several.config(&[(at[1], THREE), (at[0], ONE)], "")).await;
    assert_lead(&[(at[0], 1), (at[1], 3)]).await;
    several.stop().await;
}
