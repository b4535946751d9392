//! Whom a listener lets in (htpasswd, client certificates, loopback), and who pushes and deletes by whose account.

use std::fmt;
use std::path::{Path, PathBuf};

use crate::common::content::{blob, image, sha256};
use crate::common::invariants::check;
use crate::common::tls::{Authority, TlsClient, replace};
use crate::common::upstream::Auth;
use crate::common::{Ask, Cistern, Client, Got, Image, Upstream, acts};
use rcgen::ExtendedKeyUsagePurpose;
use tempfile::TempDir;
use tokio::net::UnixStream;

/// The passwords of ocistern's own account upstream, of another account there, and of bob in the htpasswd file.
const FARM: &str = "CANARY-FARM";
const CAROL: &str = "CANARY-CAROL";
const BOB: &str = "CANARY-BOB";
const MANIFEST: &str = "/v2/private/manifests/1.0";
const UPLOADS: &str = "/v2/private/blobs/uploads/";

/// A registry with an image in `private`, files beside it, and what ocistern is told of them.
struct World {
    upstream: Upstream,
    image: Image,
    files: TempDir,
}

/// How a caller comes: the connection, and what it shows.
#[derive(Clone)]
struct Caller {
    connection: Connection,
    shows: Shows,
}

#[derive(Clone)]
enum Connection {
    Plain(Client),
    /// By a name that is not this machine's: no trust by loopback.
    Afar(Client),
    Tls(TlsClient),
    Unix(PathBuf),
}

#[derive(Debug, Clone)]
enum Shows {
    Nothing,
    Account(&'static str, &'static str),
    Token(String),
}

// === impl World ===

impl World {
    async fn new() -> Self {
        let (upstream, image) = (Upstream::start().await, image(1));
        upstream.image("private", "1.0", &image);
        upstream.registry(|registry| {
            registry.auth = Auth::Accounts;
            registry.deletes_tags = true;
            for (name, password) in [("farm", FARM), ("carol", CAROL)] {
                registry.accounts.user(name, password);
                registry.accounts.allow(name, "private", "pull,push,delete");
            }
        });
        let files = tempfile::tempdir().unwrap();
        std::fs::write(files.path().join("farm"), FARM).unwrap();
        users(files.path(), &[("bob", BOB), ("eve", "CANARY-EVE")]);
        Self { upstream, image, files }
    }

    /// ocistern with an account of its own.
    async fn start(&self, push: &str, listener: &str) -> Cistern {
        Cistern::setup().upstream("up", &self.upstream, &self.keys(push)).listener(listener).start().await
    }

    /// The keys of an upstream with an account of ocistern's own.
    fn keys(&self, push: &str) -> String {
        format!(
            "credentials = {{ from = \"static\", username = \"farm\", password_file = '{}' }}\npush = \"{push}\"",
            self.path("farm")
        )
    }

    fn path(&self, name: &str) -> String {
        self.files.path().join(name).display().to_string()
    }

    fn htpasswd(&self) -> String {
        format!("htpasswd = '{}'", self.path("htpasswd"))
    }

    /// The keys of a listener that asks for certificates, the authority of the server, and that of the clients.
    fn client_ca(&self) -> (String, Authority, Authority) {
        let (server, clients) = (
            Authority::at(&self.files.path().join("server-ca.pem")),
            Authority::at(&self.files.path().join("clients.pem")),
        );
        server.server(self.files.path(), "server", &["cache.test"]);
        let keys = format!(
            "tls = {{ certificate = '{}', key = '{}', client_ca = '{}' }}",
            self.path("server.pem"),
            self.path("server.key"),
            self.path("clients.pem")
        );
        (keys, server, clients)
    }

    /// Whose token upstream was shown by writes: every one of them.
    fn writers(&self) -> Vec<Option<String>> {
        let log = self.upstream.log().into_iter().filter(|entry| entry.request.path.starts_with("/v2/"));
        let mut writers: Vec<_> = log
            .filter(|entry| !matches!(entry.request.method.as_str(), "GET" | "HEAD"))
            .filter_map(|entry| {
                let token = entry.request.header("authorization")?.strip_prefix("Bearer ")?.to_owned();
                Some(self.upstream.registry(|registry| registry.accounts.owner(&token).map(ToOwned::to_owned)))
            })
            .collect();
        writers.sort();
        writers.dedup();
        writers
    }
}

/// The htpasswd file with these users.
fn users(directory: &Path, users: &[(&str, &str)]) {
    let line = |(name, password): &(&str, &str)| format!("{name}:{}\n", bcrypt::hash(password, 4).unwrap());
    replace(&directory.join("htpasswd"), &users.iter().map(line).collect::<String>());
}

// === impl Caller ===

impl fmt::Debug for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let connection = match &self.connection {
            Connection::Plain(_) => "plain",
            Connection::Afar(_) => "afar",
            Connection::Tls(_) => "tls",
            Connection::Unix(_) => "unix",
        };
        write!(f, "{connection} {:?}", self.shows)
    }
}

impl Caller {
    fn new(connection: Connection, shows: Shows) -> Self {
        Self { connection, shows }
    }

    /// The same with a token for these actions in `private`, and to mount from `other`, which it gets by what it shows.
    async fn with_token(&self, actions: &str) -> Self {
        let scopes = format!("scope=repository:private:{actions}&scope=repository:other:pull");
        let got = self.send(Ask::get(format!("/oauth2/token?{scopes}"))).await;
        assert_eq!(got.status, 200, "{}", got.summary());
        let token = got.json()["token"].as_str().unwrap().to_owned();
        Self { shows: Shows::Token(token), ..self.clone() }
    }

    async fn send(&self, ask: Ask) -> Got {
        let ask = match &self.shows {
            Shows::Nothing => ask,
            Shows::Account(name, password) => ask.basic(name, password),
            Shows::Token(token) => ask.bearer(token),
        };
        match &self.connection {
            Connection::Plain(client) => client.send(ask).await,
            Connection::Afar(client) => client.send(ask.with("host", "cache.test:5000")).await,
            Connection::Tls(client) => client.send(ask).await,
            Connection::Unix(path) => {
                let stream = UnixStream::connect(path).await.unwrap();
                Client::send_over(stream, "localhost", ask).await
            }
        }
    }

    /// Pushes a layer and the image's manifest, pulls it, and deletes both.
    async fn writes(&self, image: &Image, seed: u64) {
        let layer = blob(seed, 50_000);
        let begun = self.send(Ask::post(UPLOADS)).await;
        assert_eq!(begun.status, 202, "{}", begun.summary());
        let patched = self.send(Ask::patch(begun.header("location")).body(layer.clone())).await;
        assert_eq!(patched.status, 202, "{}", patched.summary());
        let digest = sha256(&layer);
        let closed = self.send(Ask::put(with(patched.header("location"), &format!("digest={digest}")))).await;
        assert_eq!(closed.status, 201, "{}", closed.summary());
        for (ask, status) in [
            (put("/v2/private/manifests/pushed", image), 201),
            (Ask::get("/v2/private/manifests/pushed"), 200),
            (Ask::delete("/v2/private/manifests/pushed"), 202),
            (Ask::delete(format!("/v2/private/blobs/{digest}")), 202),
        ] {
            let got = self.send(ask).await;
            assert_eq!(got.status, status, "{}", got.summary());
        }
    }
}

fn with(location: &str, parameter: &str) -> String {
    format!("{location}{}{parameter}", if location.contains('?') { '&' } else { '?' })
}

fn put(target: &str, image: &Image) -> Ask {
    Ask::put(target).with("content-type", image.media_type).body(image.manifest.clone())
}

/// Everything by which something could change upstream; `location` is that of somebody's upload.
fn all_writes(image: &Image, location: &str) -> Vec<Ask> {
    let layer = &image.layers[0];
    let digest = sha256(layer);
    vec![
        Ask::post(UPLOADS),
        Ask::post(format!("{UPLOADS}?digest={digest}")).body(layer.clone()),
        Ask::post(format!("{UPLOADS}?mount={digest}&from=other")),
        Ask::patch(location).body(layer.clone()),
        Ask::put(with(location, &format!("digest={digest}"))).body(layer.clone()),
        Ask::delete(location),
        Ask::get(location),
        put("/v2/private/manifests/2.0", image),
        put(&format!("/v2/private/manifests/{}", image.digest), image),
        Ask::delete(MANIFEST),
        Ask::delete(format!("/v2/private/manifests/{}", image.digest)),
        Ask::delete(format!("/v2/private/blobs/{digest}")),
        Ask::delete("/acr/v1/private"),
        Ask::delete("/acr/v1/private/_tags/1.0"),
        Ask::patch(format!("/acr/v1/private/_manifests/{}", image.digest)).body("{}"),
    ]
}

/// All of them get this status, and nothing reaches upstream.
async fn assert_refused(world: &World, caller: &Caller, location: &str, status: u16) {
    let before = world.upstream.log().len();
    for ask in all_writes(&world.image, location) {
        let what = format!("{ask:?} of {caller:?}");
        let got = caller.send(ask).await;
        assert_eq!(got.status, status, "{what}: {}", got.summary());
        assert_eq!(status == 401, got.headers.contains_key("www-authenticate"), "{what}: {}", got.summary());
    }
    let log = world.upstream.log();
    assert_eq!(log.len(), before, "upstream was asked: {:?}", log.last());
}

/// The address of an upload that `caller` begins.
async fn upload(caller: &Caller) -> String {
    let begun = caller.send(Ask::post(UPLOADS)).await;
    assert_eq!(begun.status, 202, "{}", begun.summary());
    begun.header("location").to_owned()
}

fn connections(cistern: &Cistern) -> [Connection; 2] {
    [Connection::Plain(cistern.client()), Connection::Afar(cistern.client())]
}

// === push = "shared" ===

#[tokio::test]
async fn users_of_the_htpasswd_file_write_by_the_shared_account() {
    let world = World::new().await;
    let cistern = world.start("shared", &world.htpasswd()).await;
    for (seed, connection) in (10..).zip(connections(&cistern)) {
        let bob = Caller::new(connection, Shows::Account("bob", BOB));
        bob.writes(&world.image, seed).await;
        bob.with_token("pull,push,delete").await.writes(&world.image, seed + 10).await;
    }
    assert_eq!(world.writers(), [Some("farm".to_owned())], "no other account has written");
    for entry in world.upstream.log() {
        let text = format!("{:?}", entry.request);
        assert!(!text.contains("bob") && !text.contains(BOB), "what the listener lets in by stays here: {text}");
    }
    check(&cistern).await;
}

#[tokio::test]
async fn who_is_not_in_the_htpasswd_file_writes_nothing() {
    let world = World::new().await;
    let cistern = world.start("shared", &world.htpasswd()).await;
    let bob = Caller::new(Connection::Plain(cistern.client()), Shows::Account("bob", BOB));
    let location = upload(&bob).await;
    for connection in connections(&cistern) {
        let caller = |shows| Caller::new(connection.clone(), shows);
        let nobody = caller(Shows::Nothing);
        let bobs_pull = caller(Shows::Account("bob", BOB)).with_token("pull").await;
        for caller in [
            nobody.clone(),
            nobody.with_token("pull,push,delete").await,
            caller(Shows::Account("bob", "CANARY-WRONG")),
            caller(Shows::Account("nobody", BOB)),
            // Accounts upstream, ocistern's own among them, are none of the listener.
            caller(Shows::Account("farm", FARM)),
            caller(Shows::Account("carol", CAROL)),
            caller(Shows::Token("nonsense".to_owned())),
            // Its own, but not for writing.
            bobs_pull,
        ] {
            assert_refused(&world, &caller, &location, 401).await;
        }
        for shows in [Shows::Account("carol", CAROL), Shows::Account("bob", "CANARY-WRONG")] {
            let got = caller(shows).send(Ask::get("/oauth2/token?scope=repository:private:push")).await;
            got.assert_fails(401);
        }
    }
    // Another user's upload is nobody else's.
    let eve = Caller::new(Connection::Plain(cistern.client()), Shows::Account("eve", "CANARY-EVE"));
    let before = world.upstream.log().len();
    for ask in [Ask::patch(&*location).body("x"), Ask::put(with(&location, "digest=x")), Ask::delete(&*location)] {
        let got = eve.send(ask).await;
        assert!(matches!(got.status, 400..=404), "{}", got.summary());
    }
    assert_eq!(world.upstream.log().len(), before);
    // Who is let in goes on.
    let digest = sha256(&world.image.layers[0]);
    let closed = Ask::put(with(&location, &format!("digest={digest}"))).body(world.image.layers[0].clone());
    assert_eq!(bob.send(closed).await.status, 201);
}

/// What a listener says to a wrong password does not tell whether its file has the name.
#[tokio::test]
async fn names_of_the_htpasswd_file_cannot_be_tried_out() {
    let world = World::new().await;
    for push in ["off", "shared", "client"] {
        let cistern = world.start(push, &world.htpasswd()).await;
        let afar = Connection::Afar(cistern.client());
        let mut asks = vec![
            Ask::get("/v2/"),
            Ask::get("/oauth2/token?scope=repository:private:pull"),
            Ask::get("/v2/private/manifests/1.0"),
            Ask::head("/v2/private/manifests/1.0"),
            Ask::get("/v2/private/tags/list"),
        ];
        if push != "client" {
            // With it, writes of strangers are upstream's to judge.
            asks.extend([Ask::post("/v2/private/blobs/uploads/"), Ask::delete("/v2/private/manifests/1.0")]);
        }
        for ask in asks {
            let of = async |name| {
                let got = Caller::new(afar.clone(), Shows::Account(name, "CANARY-WRONG")).send(ask.clone()).await;
                let challenge = got.headers.get("www-authenticate").cloned();
                (got.status, challenge, String::from_utf8_lossy(&got.body).into_owned())
            };
            let (known, stranger) = (of("bob").await, of("nobody").await);
            assert_eq!(known, stranger, "push = {push}: {ask:?}");
            assert!(!matches!(known.0, 200..400), "push = {push}: {ask:?}: {known:?}");
        }
    }
}

/// A token of ocistern's is opened only in fields whose values upstream's words are searched for.
#[tokio::test]
async fn what_is_inside_a_token_is_not_told_by_an_exchange() {
    let upstream = Upstream::start().await;
    upstream.image("private", "1.0", &image(1));
    upstream.registry(|registry| {
        registry.auth = Auth::Accounts;
        registry.accounts.user("carol", CAROL);
        registry.accounts.allow("carol", "private", "pull");
    });
    let cistern = Cistern::start(&upstream, "").await;
    let token = cistern.send(Ask::get("/oauth2/token?scope=repository:private:pull").basic("carol", CAROL)).await;
    let token = token.json()["token"].as_str().unwrap().to_owned();
    for field in ["tenant", "service", "username", "x", "Access_Token"] {
        upstream.forget();
        let form = format!("grant_type=access_token&access_token=CANARY-AAD&{field}={token}");
        cistern.send(Ask::new(http::Method::POST, "/oauth2/exchange").form(&form)).await.assert_fails(401);
        assert_eq!(upstream.log().len(), 0, "{field}");
    }
    for field in ["access_token", "refresh_token", "password"] {
        upstream.forget();
        let form = format!("grant_type=access_token&{field}={token}");
        let ask = Ask::new(http::Method::POST, "/oauth2/exchange").form(&form);
        cistern.send(ask.clone()).await;
        let shown = upstream.requests("POST", "/oauth2/exchange")[0].request.parameter(field).unwrap();
        assert_ne!(shown, token, "{field}: upstream gets its own");
        // Upstream repeats what it was shown.
        upstream.script("POST", "/oauth2/exchange", .., acts::answer(400, "text/plain", shown.clone()));
        let got = cistern.send(ask).await;
        upstream.unscript();
        let said = String::from_utf8_lossy(&got.body).into_owned();
        assert!(got.status >= 400 && !said.contains(shown.get(..20).unwrap()), "{field}: {said}");
    }
}

/// Who mistypes a password of the listener's does not show it to upstream, although upstream may know other callers.
#[tokio::test]
async fn a_wrong_password_of_the_htpasswd_file_goes_no_further() {
    let world = World::new().await;
    let cistern = world.start("client", &world.htpasswd()).await;
    let before = world.upstream.log().len();
    for connection in connections(&cistern) {
        let wrong = Caller::new(connection, Shows::Account("bob", "CANARY-WRONG"));
        for ask in [
            Ask::get("/oauth2/token?scope=repository:private:push"),
            Ask::get("/v2/private/manifests/1.0"),
            Ask::post("/v2/private/blobs/uploads/"),
        ] {
            assert_eq!(wrong.send(ask).await.status, 401);
        }
    }
    assert_eq!(world.upstream.log().len(), before);
}

#[tokio::test]
async fn being_on_this_machine_is_not_enough_to_write() {
    let world = World::new().await;
    let socket = world.files.path().join("socket");
    let keys = format!("[[listener]]\naddress = \"unix:{}\"\ndefault_upstream = \"up\"", socket.display());
    let setup = Cistern::setup().upstream("up", &world.upstream, &world.keys("shared")).extra(&keys);
    let cistern = setup.start().await;
    let [plain, afar] = connections(&cistern);
    let unix = Connection::Unix(socket);
    let local = [plain.clone(), unix];
    for connection in &local {
        let reader = Caller::new(connection.clone(), Shows::Nothing);
        reader.send(Ask::get(MANIFEST)).await.assert_is(&world.image.manifest);
    }
    for connection in local.into_iter().chain([afar]) {
        let nobody = Caller::new(connection.clone(), Shows::Nothing);
        for caller in [
            nobody.with_token("pull,push,delete,metadata_write").await,
            Caller::new(connection.clone(), Shows::Account("bob", BOB)),
            Caller::new(connection.clone(), Shows::Account("carol", CAROL)),
            nobody,
        ] {
            assert_refused(&world, &caller, &format!("{UPLOADS}forged"), 403).await;
        }
    }
    let refused = Caller::new(plain, Shows::Nothing).send(Ask::post(UPLOADS)).await;
    assert_eq!(refused.error_code(), "DENIED");
    let said = String::from_utf8_lossy(&refused.body).into_owned();
    assert!(said.contains("htpasswd") && said.contains("tls.client_ca"), "what to set: {said}");
}

#[tokio::test]
async fn clients_with_a_certificate_write_by_the_shared_account() {
    let world = World::new().await;
    let (keys, server, clients) = world.client_ca();
    let cistern = world.start("shared", &keys).await;
    let client = TlsClient::new(cistern.client().0, &server, "cache.test");
    let known = Caller::new(Connection::Tls(client.clone().with(&clients.client())), Shows::Nothing);
    known.writes(&world.image, 20).await;
    known.with_token("pull,push,delete").await.writes(&world.image, 21).await;
    assert_eq!(world.writers(), [Some("farm".to_owned())]);
    let location = upload(&known).await;
    // A token does not stand in for the certificate, and what it was issued for holds for who has one.
    assert_refused(&world, &known.with_token("pull").await, &location, 401).await;
    let token = known.with_token("pull,push,delete").await;
    let unknown = Caller::new(Connection::Tls(client), token.shows);
    let before = world.upstream.log().len();
    for ask in all_writes(&world.image, &location) {
        assert_eq!(unknown.send(ask).await.status, 0, "the handshake fails");
    }
    assert_eq!(world.upstream.log().len(), before);
}

#[tokio::test]
async fn what_the_shared_account_may_not_write_is_no_callers_fault() {
    let world = World::new().await;
    world.upstream.registry(|registry| registry.accounts.allow("farm", "private", "pull"));
    let cistern = world.start("shared", &world.htpasswd()).await;
    let bob = Caller::new(Connection::Plain(cistern.client()), Shows::Account("bob", BOB));
    for caller in [bob.with_token("pull,push,delete").await, bob] {
        for ask in [Ask::post(UPLOADS), put("/v2/private/manifests/2.0", &world.image), Ask::delete(MANIFEST)] {
            let what = format!("{ask:?}");
            let got = caller.send(ask).await;
            // Another login would change nothing, and a client that is challenged tries one.
            assert!(!got.headers.contains_key("www-authenticate"), "{what}: {}", got.summary());
            assert_eq!((got.status, got.error_code().as_str()), (403, "DENIED"), "{what}: {}", got.summary());
            let said = String::from_utf8_lossy(&got.body).into_owned();
            assert!(said.contains("up") && said.contains("account"), "{what} says whose fault it is: {said}");
        }
    }
}

// === push = "client" ===

#[tokio::test]
async fn with_client_the_shared_account_never_writes() {
    let world = World::new().await;
    let (certified, server, clients) = world.client_ca();
    let cistern = world.start("client", &world.htpasswd()).await;
    let by_certificate = world.start("client", &certified).await;
    let tls = TlsClient::new(by_certificate.client().0, &server, "cache.test").with(&clients.client());
    let [plain, afar] = connections(&cistern);
    for connection in [plain, afar, Connection::Tls(tls)] {
        let nobody = Caller::new(connection.clone(), Shows::Nothing);
        // Who may read by it may not write by it.
        let reader = match &connection {
            Connection::Afar(_) => Caller::new(connection.clone(), Shows::Account("bob", BOB)),
            _ => nobody.clone(),
        };
        reader.send(Ask::get(MANIFEST)).await.assert_is(&world.image.manifest);
        world.upstream.forget();
        let mut callers = vec![nobody.with_token("pull,push,delete").await, nobody];
        if !matches!(connection, Connection::Tls(_)) {
            let bob = Caller::new(connection.clone(), Shows::Account("bob", BOB));
            callers.extend([bob.with_token("pull,push,delete").await, bob]);
        }
        for caller in callers {
            for ask in all_writes(&world.image, &format!("{UPLOADS}forged")) {
                let what = format!("{ask:?} of {caller:?}");
                let got = caller.send(ask).await;
                assert!(matches!(got.status, 401 | 404), "{what}: {}", got.summary());
            }
        }
        for entry in world.upstream.log() {
            let request = &entry.request;
            assert!(request.header("authorization").is_none_or(|text| !text.starts_with("Basic")), "{request:?}");
        }
        assert!(world.writers().iter().all(Option::is_none), "{:?}", world.writers());
        // Who has an account upstream writes by that.
        world.upstream.forget();
        let carol = Caller::new(connection.clone(), Shows::Account("carol", CAROL));
        let got = carol.send(put("/v2/private/manifests/2.0", &world.image)).await;
        assert_eq!(got.status, 201, "{}", got.summary());
        let carol = carol.with_token("pull,push,delete").await;
        let got = carol.send(Ask::delete("/v2/private/manifests/2.0")).await;
        assert_eq!(got.status, 202, "{}", got.summary());
        assert_eq!(world.writers(), [Some("carol".to_owned())]);
    }
}

// === push = "off" ===

#[tokio::test]
async fn with_off_nobody_writes() {
    let world = World::new().await;
    let cistern = world.start("off", &world.htpasswd()).await;
    for connection in connections(&cistern) {
        for shows in [Shows::Nothing, Shows::Account("bob", BOB), Shows::Account("carol", CAROL)] {
            let caller = Caller::new(connection.clone(), shows);
            assert_refused(&world, &caller, &format!("{UPLOADS}forged"), 405).await;
            let got = caller.send(Ask::post(UPLOADS)).await;
            assert_eq!(got.error_code(), "UNSUPPORTED");
            let said = String::from_utf8_lossy(&got.body).into_owned();
            let set = "set push = \\\"client\\\" or \\\"shared\\\" in [upstream.\\\"up\\\"]";
            assert!(said.contains(set), "what to set: {said}");
        }
    }
    let bob = Caller::new(Connection::Plain(cistern.client()), Shows::Account("bob", BOB));
    bob.send(Ask::get(MANIFEST)).await.assert_is(&world.image.manifest);
}

// === who reads ===

/// Neither a miss nor a hit is for who was not let in.
async fn assert_reads(caller: &Caller, image: &Image, status: u16) {
    let layer = &image.layers[0];
    let digest = sha256(layer);
    for (ask, bytes) in [
        (Ask::get(MANIFEST), &image.manifest),
        (Ask::get(format!("/v2/private/manifests/{}", image.digest)), &image.manifest),
        (Ask::get(format!("/v2/private/blobs/{digest}")), layer),
    ] {
        let what = format!("{ask:?} of {caller:?}");
        let got = caller.send(ask).await;
        assert_eq!(got.status, status, "{what}: {}", got.summary());
        if status == 200 {
            got.assert_is(bytes);
        }
    }
    for target in ["/v2/private/tags/list", "/v2/_catalog", "/acr/v1/private/_tags"] {
        let got = caller.send(Ask::get(target)).await;
        assert!(got.status == status || status == 200, "{target} of {caller:?}: {}", got.summary());
    }
}

#[tokio::test]
async fn users_of_the_htpasswd_file_read() {
    let world = World::new().await;
    let cistern = world.start("off", &world.htpasswd()).await;
    let caller = |shows| Caller::new(Connection::Afar(cistern.client()), shows);
    let strangers = [
        Shows::Nothing,
        Shows::Account("bob", "CANARY-WRONG"),
        Shows::Account("bob", ""),
        Shows::Account("carol", CAROL),
        Shows::Account("farm", FARM),
    ];
    for shows in &strangers {
        assert_reads(&caller(shows.clone()), &world.image, 401).await;
    }
    assert_eq!(world.upstream.log().len(), 0);
    let bob = caller(Shows::Account("bob", BOB));
    let by_token = bob.with_token("pull").await;
    assert_reads(&by_token, &world.image, 200).await;
    assert_reads(&bob, &world.image, 200).await;
    for shows in &strangers {
        assert_reads(&caller(shows.clone()), &world.image, 401).await;
    }
    assert_eq!(by_token.send(Ask::get("/v2/third/manifests/1.0")).await.status, 401, "it is not for that");
    // Changes of the file hold without a restart: for somebody new at once.
    users(world.files.path(), &[("dora", "CANARY-DORA")]);
    assert_reads(&caller(Shows::Account("dora", "CANARY-DORA")), &world.image, 200).await;
    assert_reads(&bob, &world.image, 401).await;
    // Without the file nobody is let in.
    std::fs::remove_file(world.files.path().join("htpasswd")).unwrap();
    assert_reads(&bob, &world.image, 401).await;
    let got = caller(Shows::Account("dora", "CANARY-NEW")).send(Ask::get(MANIFEST)).await;
    got.assert_fails(500);
}

#[tokio::test]
async fn clients_with_a_certificate_read() {
    let world = World::new().await;
    let (keys, server, clients) = world.client_ca();
    let cistern = world.start("off", &keys).await;
    let client = TlsClient::new(cistern.client().0, &server, "cache.test");
    let day = std::time::Duration::from_hours(24);
    let client_auth = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let strangers = [
        client.clone(),
        client.clone().with(&server.client()),
        client.clone().with(&clients.client_with(|params| {
            params.extended_key_usages = client_auth.clone();
            params.not_after = (crate::common::clock::wall() - day).into();
        })),
        client.clone().with(&clients.client_with(|params| {
            params.extended_key_usages = client_auth.clone();
            params.not_before = (crate::common::clock::wall() + day).into();
        })),
        client.clone().with(&clients.client_with(|params| {
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        })),
    ];
    let strangers = strangers.map(|client| Caller::new(Connection::Tls(client), Shows::Nothing));
    for stranger in &strangers {
        assert_reads(stranger, &world.image, 0).await;
    }
    assert_eq!(world.upstream.log().len(), 0);
    let known = Caller::new(Connection::Tls(client.with(&clients.client())), Shows::Nothing);
    assert_reads(&known, &world.image, 200).await;
    assert_reads(&known.with_token("pull").await, &world.image, 200).await;
    for stranger in &strangers {
        assert_reads(stranger, &world.image, 0).await;
    }
    // TLS without asking for certificates lets in nobody by it.
    let plain_tls =
        format!("tls = {{ certificate = '{}', key = '{}' }}", world.path("server.pem"), world.path("server.key"));
    let open = world.start("off", &plain_tls).await;
    let client = TlsClient::new(open.client().0, &server, "cache.test").with(&clients.client());
    assert_reads(&Caller::new(Connection::Tls(client), Shows::Nothing), &world.image, 403).await;
}

#[tokio::test]
async fn requests_of_this_machine_read() {
    let world = World::new().await;
    let socket = world.files.path().join("socket");
    let second = format!("[[listener]]\naddress = \"unix:{}\"\ndefault_upstream = \"up\"", socket.display());
    let setup = Cistern::setup().upstream("up", &world.upstream, &world.keys("client")).extra(&second);
    let setup = setup.listener("hostnames = { \"reg.test\" = \"up\" }\npublic_url = \"http://cache.public\"");
    let cistern = setup.start().await;
    let client = cistern.client();
    let over_unix =
        async |ask: Ask| Client::send_over(UnixStream::connect(&socket).await.unwrap(), "localhost", ask).await;
    // First as misses, then as hits.
    for hit in [false, true] {
        let before = world.upstream.count("GET", MANIFEST);
        for (name, value) in [
            ("host", "cache.test"),
            ("host", "127.0.0.1.evil.test:5000"),
            ("host", "192.0.2.1:5000"),
            ("origin", "http://evil.test"),
            ("origin", "null"),
            ("forwarded", "for=192.0.2.1"),
            ("x-forwarded-for", "192.0.2.1"),
            ("x-forwarded-for", "127.0.0.1"),
        ] {
            let got = client.send(Ask::get(MANIFEST).with(name, value)).await;
            got.assert_fails(403);
            assert_eq!(got.error_code(), "DENIED");
            if name != "host" {
                over_unix(Ask::get(MANIFEST).with(name, value)).await.assert_fails(403);
            }
        }
        for host in
            ["localhost", "LOCALHOST:5000", "127.0.0.1:1", "127.9.9.9", "[::1]:5000", "reg.test", "cache.public"]
        {
            let got = client.send(Ask::get(MANIFEST).with("host", host)).await;
            assert!(got.complete(), "{host}: {}", got.summary());
        }
        client.send(Ask::get(MANIFEST).http2()).await.assert_is(&world.image.manifest);
        over_unix(Ask::get(MANIFEST)).await.assert_is(&world.image.manifest);
        assert_eq!(world.upstream.count("GET", MANIFEST) == before, hit);
    }
}
