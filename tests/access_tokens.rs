//! Logging in, tokens, and whose credential goes where: the flows of real clients, through real sockets.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "test code")]

mod common;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use common::content::{image, sha256};
use common::invariants::{self, check, files};
use common::upstream::{Auth, Cut, acts};
use common::{Ask, Cistern, Got, Image, Upstream, logs};
use http::Method;

const PASSWORD: &str = "CANARY-PASSWORD";
const NULL_USER: &str = "00000000-0000-0000-0000-000000000000";

/// A registry with `public` for everybody and `private` for alice, who may push there too.
async fn registry(seed: u64) -> (Upstream, Image, Image) {
    logs::keep("trace");
    let upstream = Upstream::start().await;
    let (public, private) = (image(seed), image(seed + 1));
    upstream.image("public", "1.0", &public);
    upstream.image("private", "1.0", &private);
    upstream.registry(|registry| {
        registry.auth = Auth::Accounts;
        registry.accounts.public.insert("public".to_owned());
        registry.accounts.user("alice", PASSWORD);
        registry.accounts.allow("alice", "private", "pull,push,delete");
        registry.accounts.directory.insert("CANARY-AAD".to_owned(), "alice".to_owned());
    });
    (upstream, public, private)
}

/// Lets a registry do what those with the OAuth 2 form of tokens do.
fn gives_refresh_tokens(upstream: &Upstream) {
    upstream.registry(|registry| {
        registry.accounts.gives_refresh = true;
        registry.token.get_only = false;
    });
}

/// The token of an answer.
#[track_caller]
fn token(got: &Got) -> String {
    assert_eq!(got.status, 200, "{}", got.summary());
    let json = got.json();
    assert_eq!(json["token"], json["access_token"], "clients read one or the other");
    assert!(json["issued_at"].as_str().unwrap().ends_with('Z') && json["expires_in"].as_u64().unwrap() > 0);
    assert_eq!(got.header("cache-control"), "no-store");
    json["token"].as_str().unwrap().to_owned()
}

fn claims(token: &str) -> serde_json::Value {
    let part = token.split('.').nth(1).unwrap();
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap()
}

/// A token by name and password, by GET as docker asks for it.
async fn login(cistern: &Cistern, scopes: &[&str]) -> Got {
    let scopes = scopes.join("&scope=");
    let target = format!("/oauth2/token?account=alice&service=x&scope={scopes}");
    cistern.send(Ask::get(target).basic("alice", PASSWORD)).await
}

const PRIVATE: &str = "/v2/private/manifests/1.0";
const PUBLIC: &str = "/v2/public/manifests/1.0";

#[tokio::test]
async fn who_shows_nothing_gets_a_token_for_what_is_public() {
    let (upstream, public, _) = registry(1).await;
    let cistern = Cistern::start(&upstream, "").await;
    let ping = cistern.get("/v2/").await;
    let own = cistern.client().0;
    let challenge = format!("Bearer realm=\"http://{own}/oauth2/token\",service=\"{own}\"");
    assert_eq!((ping.status, ping.header("www-authenticate")), (401, challenge.as_str()));
    assert_eq!(ping.error_code(), "UNAUTHORIZED");

    let asks = [
        Ask::get("/oauth2/token?service=x&scope=repository%3Apublic%3Apull"),
        // An empty name and password is none.
        Ask::get("/oauth2/token?scope=repository:public:pull").basic("", ""),
        Ask::new(Method::POST, "/oauth2/token").form("grant_type=password&service=x&scope=repository:public:pull"),
        Ask::new(Method::POST, "/oauth2/token")
            .form("grant_type=password&scope=repository:public:pull&username=&password="),
    ];
    for ask in asks.clone() {
        let before = upstream.log().len();
        let token = token(&cistern.send(ask).await);
        assert_eq!(upstream.log().len(), before, "upstream is not asked");
        assert!(claims(&token)["exp"].is_u64());
        assert_eq!(cistern.send(Ask::get("/v2/").bearer(&token)).await.status, 200);
        cistern.send(Ask::get(PUBLIC).bearer(&token)).await.assert_is(&public.manifest);
    }
    cistern.get(PUBLIC).await.assert_is(&public.manifest);
    upstream.down();
    for ask in asks {
        let token = token(&cistern.send(ask).await);
        cistern.send(Ask::get(PUBLIC).bearer(&token)).await.assert_is(&public.manifest);
    }
    check(&cistern).await;
}

#[tokio::test]
async fn a_login_and_a_pull_as_docker_does_them() {
    let (upstream, _, private) = registry(3).await;
    let cistern = Cistern::start(&upstream, "").await;
    // The login: a token that only proves who asks, and a look whether it works.
    let proof = token(&login(&cistern, &[]).await);
    assert_eq!(cistern.send(Ask::get("/v2/").bearer(&proof)).await.status, 200);
    cistern.send(Ask::get("/v2/").basic("alice", PASSWORD)).await.assert_is(&"{}".into());
    cistern.send(Ask::get("/v2/").basic("alice", "CANARY-WRONG")).await.assert_fails(401);
    let wrong = cistern.send(Ask::get("/oauth2/token?service=x").basic("alice", "CANARY-WRONG")).await;
    wrong.assert_fails(401);
    assert_eq!(wrong.error_code(), "UNAUTHORIZED");

    // The pull: refused, asked for a token, given.
    let own = cistern.client().0;
    let refused = cistern.get(PRIVATE).await;
    refused.assert_fails(401);
    let challenge =
        format!("Bearer realm=\"http://{own}/oauth2/token\",service=\"{own}\",scope=\"repository:private:pull\"");
    assert_eq!(refused.header("www-authenticate"), challenge);
    let nobody = token(&cistern.get("/oauth2/token?scope=repository:private:pull").await);
    let refused = cistern.send(Ask::get(PRIVATE).bearer(&nobody)).await;
    refused.assert_fails(401);
    assert_eq!(refused.header("www-authenticate"), format!("{challenge},error=\"insufficient_scope\""));
    let scoped = token(&login(&cistern, &["repository:private:pull"]).await);
    for _ in 0..2 {
        cistern.send(Ask::get(PRIVATE).bearer(&scoped)).await.assert_is(&private.manifest);
        let blob = format!("/v2/private/blobs/{}", sha256(&private.layers[0]));
        cistern.send(Ask::get(&blob).bearer(&scoped)).await.assert_is(&private.layers[0]);
        cistern.send(Ask::get(&blob).basic("alice", PASSWORD)).await.assert_is(&private.layers[0]);
    }
    // Nobody reads it because somebody did.
    for ask in [Ask::get(PRIVATE), Ask::head(PRIVATE), Ask::get(PRIVATE).bearer(&nobody)] {
        assert_eq!(cistern.send(ask).await.status, 401);
    }
    // Upstream's tokens stay here.
    let inner = format!("CANARY-TOKEN-{}", upstream.port());
    assert!(!String::from_utf8_lossy(&login(&cistern, &[]).await.body).contains(&inner));
    check(&cistern).await;
}

/// What a stranger sees of an answer.
fn seen(got: &Got) -> String {
    let mut headers = got.headers.clone();
    headers.remove("date");
    headers.remove("x-request-id");
    let mut fields: Vec<_> = headers.iter().map(|(name, value)| format!("{name}: {value:?}")).collect();
    fields.sort();
    format!("{} {fields:?} {}", got.status, String::from_utf8_lossy(&got.body))
}

#[tokio::test]
async fn a_stranger_cannot_tell_what_is_in_the_store() {
    let (upstream, _, private) = registry(33).await;
    let cistern = Cistern::start(&upstream, "").await;
    upstream.registry(|registry| registry.accounts.user("bob", "CANARY-BOB"));
    let nobody = token(&cistern.get("/oauth2/token?scope=repository:private:pull").await);
    let alice = token(&login(&cistern, &["repository:private:pull"]).await);
    let ask = Ask::get("/oauth2/token?scope=repository:private:pull").basic("bob", "CANARY-BOB");
    let bob = token(&cistern.send(ask).await);
    let layer = format!("/v2/private/blobs/{}", sha256(&private.layers[0]));
    let none = format!("/v2/private/blobs/{}", sha256(b"none"));
    let by_digest = format!("/v2/private/manifests/{}", sha256(&private.manifest));
    let mut asks = Vec::new();
    for target in [PRIVATE, &by_digest, &layer, &none, "/v2/private/tags/list", "/v2/private/manifests/none"] {
        for ask in [Ask::get(target), Ask::head(target), Ask::get(target).with("range", "bytes=0-1")] {
            asks.push(ask.clone());
            asks.push(ask.clone().bearer(&nobody));
            asks.push(ask.clone().bearer(&bob));
            asks.push(ask.basic("bob", "CANARY-BOB"));
        }
    }
    let look = async || {
        let mut all = Vec::new();
        for ask in &asks {
            let got = cistern.send(ask.clone()).await;
            assert!(!got.complete() && got.status != 206, "{ask:?}: {}", got.summary());
            all.push(format!("{ask:?} {}", seen(&got)));
        }
        all
    };
    let before = look().await;
    for target in [PRIVATE, &by_digest, &layer, "/v2/private/tags/list"] {
        assert_eq!(cistern.send(Ask::get(target).bearer(&alice)).await.status, 200, "{target}");
    }
    cistern.settle().await;
    for (before, after) in before.iter().zip(look().await) {
        assert_eq!(*before, after, "with and without a friend's pull");
    }
}

#[tokio::test]
async fn a_token_is_for_what_it_was_asked_for() {
    let (upstream, ..) = registry(5).await;
    let cistern = Cistern::start(&upstream, "").await;
    let before = upstream.log().len();
    for (scopes, target, method) in [
        (&["repository:public:pull"][..], PRIVATE, Method::GET),
        (&[], PRIVATE, Method::GET),
        (&["repository:private:push"], PRIVATE, Method::HEAD),
        (&["repository:private:pull"], PRIVATE, Method::PUT),
        (&["repository:private:pull,push"], PRIVATE, Method::DELETE),
        (&["repository:private:pull"], "/v2/_catalog", Method::GET),
        (&["repository:nobody.example/private:pull"], PRIVATE, Method::GET),
    ] {
        let token = token(&cistern.get(format!("/oauth2/token?scope={}", scopes.join("&scope="))).await);
        let got = cistern.send(Ask::new(method.clone(), target).bearer(&token)).await;
        assert_eq!(got.status, 401, "{scopes:?} {method} {target}: {}", got.summary());
        let challenge = got.header("www-authenticate");
        assert!(challenge.ends_with(",error=\"insufficient_scope\""), "{challenge}");
    }
    assert_eq!(upstream.log().len(), before, "upstream is not asked");
    for bad in ["/oauth2/token?scope=repository", "/oauth2/token?scope=repository:../x:pull", "/oauth2/token?scope=%ff"]
    {
        cistern.get(bad).await.assert_fails(400);
    }
}

/// Some registries give everybody a catalog of what is public. Who has a credential shows it when it is challenged, and
/// must not take that for all that there is.
#[tokio::test]
async fn who_asks_for_a_list_of_what_it_may_see_is_challenged_first() {
    let (upstream, ..) = registry(7).await;
    let cistern = Cistern::start(&upstream, "").await;
    let own = cistern.client().0;
    let bare = cistern.get("/v2/_catalog").await;
    assert_eq!(bare.status, 401, "{}", bare.summary());
    let challenge =
        format!("Bearer realm=\"http://{own}/oauth2/token\",service=\"{own}\",scope=\"registry:catalog:*\"");
    assert_eq!(bare.header("www-authenticate"), challenge);
    let anybody = token(&cistern.get("/oauth2/token?scope=registry:catalog:*").await);
    let somebody = token(&login(&cistern, &["registry:catalog:*"]).await);
    for token in [anybody, somebody] {
        let list = cistern.send(Ask::get("/v2/_catalog").bearer(&token)).await;
        assert_eq!(list.status, 200, "{}", list.summary());
        assert_eq!(list.json()["repositories"], serde_json::json!(["private", "public"]));
    }
    // Where nobody is challenged, there is nothing to show.
    upstream.registry(|registry| registry.auth = Auth::Open);
    assert_eq!(cistern.get("/v2/_catalog").await.status, 200);
}

/// Upstreams want both rights in one token, and say so in one challenge.
#[tokio::test]
async fn who_mounts_a_blob_needs_to_read_where_it_is() {
    let (upstream, public, _) = registry(9).await;
    upstream.image("ours", "1.0", &public);
    upstream.registry(|registry| registry.accounts.allow("alice", "ours", "pull,push"));
    let cistern = Cistern::start(&upstream, "").await;
    let mount = format!("/v2/private/blobs/uploads/?mount={}&from=ours", sha256(&public.layers[0]));
    let (to, from) = ("repository:private:pull,push", "repository:ours:pull");
    let one = token(&login(&cistern, &[to]).await);
    for ask in [Ask::post(&mount), Ask::post(&mount).bearer(&one)] {
        let refused = cistern.send(ask).await;
        assert_eq!(refused.status, 401, "{}", refused.summary());
        let challenge = refused.header("www-authenticate");
        assert!(challenge.contains(&format!("scope=\"{to} {from}\"")), "{challenge}");
    }
    let both = token(&login(&cistern, &[to, from]).await);
    let mounted = cistern.send(Ask::post(&mount).bearer(&both)).await;
    assert_eq!(mounted.status, 201, "{}", mounted.summary());
    // From nowhere, it is an upload like any other.
    let nowhere = mount.replace("from=ours", "from=..%2Fours");
    assert_eq!(cistern.send(Ask::post(nowhere).bearer(&one)).await.status, 202);
}

#[tokio::test]
async fn tokens_that_are_not_ours_are_invalid() {
    let (upstream, ..) = registry(7).await;
    let cistern = Cistern::start(&upstream, "").await;
    let good = token(&login(&cistern, &["repository:private:pull"]).await);
    let upstreams = format!("CANARY-TOKEN-{}-1", upstream.port());
    let other = Cistern::start(&upstream, "").await;
    let foreign = token(&login(&other, &["repository:private:pull"]).await);
    let (front, back) = good.rsplit_once('.').unwrap();
    let first = if back.starts_with('A') { 'B' } else { 'A' };
    let flipped = format!("{front}.{first}{}", &back[1..]);
    let before = upstream.count("GET", PRIVATE);
    for bad in ["", "x", "a.b.c", &upstreams, &foreign, &flipped, front, &good[..good.len() - 1]] {
        for target in ["/v2/", PRIVATE, PUBLIC] {
            let got = cistern.send(Ask::get(target).bearer(bad)).await;
            got.assert_fails(401);
            assert!(got.header("www-authenticate").ends_with(",error=\"invalid_token\""), "{}", got.summary());
        }
    }
    for scheme in ["Negotiate abc", "Basic", "Basic !"] {
        cistern.send(Ask::get(PRIVATE).with("authorization", scheme)).await.assert_fails(401);
    }
    assert_eq!(upstream.count("GET", PRIVATE), before, "upstream never sees them");
    assert_eq!(cistern.send(Ask::get(PRIVATE).bearer(&good)).await.status, 200);
}

#[tokio::test]
async fn a_credential_that_upstream_cannot_confirm_reads_what_is_public() {
    let (upstream, public, _) = registry(9).await;
    let cistern = Cistern::start(&upstream, "").await;
    cistern.get(PUBLIC).await.assert_is(&public.manifest);
    let confirmed = token(&login(&cistern, &["repository:private:pull,push"]).await);
    let scopes = ["repository:public:pull", "repository:private:pull,push"];
    let mut unconfirmed = Vec::new();
    for status in [500, 503, 429] {
        upstream.script("*", "/token", .., acts::fail(status, "UNAVAILABLE"));
        let got = login(&cistern, &scopes).await;
        assert_eq!(got.json()["expires_in"], 60, "{status}: {}", got.summary());
        unconfirmed.push(token(&got));
        upstream.unscript();
    }
    upstream.down();
    let got = login(&cistern, &scopes).await;
    unconfirmed.push(token(&got));
    for token in &unconfirmed {
        cistern.send(Ask::get(PUBLIC).bearer(token)).await.assert_is(&public.manifest);
        let private = cistern.send(Ask::get(PRIVATE).bearer(token)).await;
        assert!((500..600).contains(&private.status), "{}", private.summary());
        let push = cistern.send(Ask::new(Method::POST, "/v2/private/blobs/uploads/").bearer(token)).await;
        push.assert_fails(503);
        assert!(!push.header("retry-after").is_empty(), "{}", push.summary());
    }
    let push = cistern.send(Ask::new(Method::POST, "/v2/private/blobs/uploads/").bearer(&confirmed)).await;
    let message = push.json()["errors"][0]["message"].to_string();
    assert!(!message.contains("whether this credential is right"), "it is upstream that is away: {message}");
    // A refusal is one, as soon as upstream can say so.
    upstream.up();
    let wrong = Ask::get("/oauth2/token?service=x").basic("alice", "CANARY-WRONG");
    common::eventually("upstream is asked again", || async { cistern.send(wrong.clone()).await.status == 401 }).await;
}

#[tokio::test]
async fn what_upstream_allowed_before_holds_as_long_as_the_operator_says() {
    let (upstream, _, private) = registry(35).await;
    let cistern = Cistern::start(&upstream, "access_stale = \"10m\"").await;
    upstream.registry(|registry| registry.accounts.user("bob", "CANARY-BOB"));
    let scopes = ["repository:private:pull"];
    let confirmed = token(&login(&cistern, &scopes).await);
    cistern.send(Ask::get(PRIVATE).bearer(&confirmed)).await.assert_is(&private.manifest);
    cistern.settle().await;
    upstream.down();
    // Another token of the same account: it is who asks that was allowed.
    let unconfirmed = token(&login(&cistern, &scopes).await);
    cistern.send(Ask::get(PRIVATE).bearer(&unconfirmed)).await.assert_is(&private.manifest);
    let ask = Ask::get("/oauth2/token?scope=repository:private:pull").basic("bob", "CANARY-BOB");
    let bob = token(&cistern.send(ask).await);
    assert_ne!(cistern.send(Ask::get(PRIVATE).bearer(&bob)).await.status, 200);
    // Who may be about to push is told by upstream alone what is there.
    assert_eq!(cistern.send(Ask::head(PRIVATE).bearer(&unconfirmed)).await.status, 200);
    let pusher = token(&login(&cistern, &["repository:private:pull,push"]).await);
    let head = cistern.send(Ask::head(PRIVATE).bearer(&pusher)).await;
    assert_eq!(head.status, 503, "{}", head.summary());
    assert!(!head.header("retry-after").is_empty());
}

#[tokio::test]
async fn heads_ask_upstream_unless_a_token_is_for_pull_alone() {
    let (upstream, ..) = registry(37).await;
    let cistern = Cistern::start(&upstream, "").await;
    let pull = token(&cistern.get("/oauth2/token?scope=repository:public:pull").await);
    let push = token(&cistern.get("/oauth2/token?scope=repository:public:pull,push").await);
    assert_eq!(cistern.send(Ask::get(PUBLIC).bearer(&pull)).await.status, 200);
    for (ask, asks) in [
        (Ask::head(PUBLIC).bearer(&pull), 0),
        (Ask::head(PUBLIC).bearer(&push), 1),
        (Ask::head(PUBLIC), 1),
        (Ask::head(PUBLIC).basic("alice", PASSWORD), 1),
    ] {
        let before = upstream.count("HEAD", PUBLIC);
        assert_eq!(cistern.send(ask.clone()).await.status, 200);
        assert!(upstream.count("HEAD", PUBLIC) >= before + asks, "{ask:?}");
        assert!(asks > 0 || upstream.count("HEAD", PUBLIC) == before, "{ask:?}");
    }
    let off = Cistern::start(&upstream, "push = \"off\"").await;
    assert_eq!(off.get(PUBLIC).await.status, 200);
    let before = upstream.log().len();
    assert_eq!(off.head(PUBLIC).await.status, 200);
    assert_eq!(upstream.log().len(), before);
}

#[tokio::test]
async fn azures_clients_log_in() {
    let (upstream, _, private) = registry(11).await;
    upstream.registry(|registry| {
        registry.token.field = "access_token";
        registry.token.get_only = false;
        registry.accounts.jwt = Some(4500);
    });
    let cistern = Cistern::setup()
        .upstream("my.azurecr.io", &upstream, "")
        .listener(r#"hostnames = { "my.azurecr.io" = "my.azurecr.io" }"#)
        .start()
        .await;
    let host = "my.azurecr.io";
    let at = |ask: Ask| ask.with("host", host);
    let ping = cistern.send(at(Ask::get("/v2/"))).await;
    let challenge = "Bearer realm=\"http://my.azurecr.io/oauth2/token\",service=\"my.azurecr.io\"";
    assert_eq!((ping.status, ping.header("www-authenticate")), (401, challenge));

    // By name and password, as `az -u -p`.
    let form = format!(
        "grant_type=password&service={host}&username=alice&password={PASSWORD}&scope=repository%3Aprivate%3Apull"
    );
    let by_password = token(&cistern.send(at(Ask::new(Method::POST, "/oauth2/token").form(&form))).await);
    // By a token of the directory, as `az acr login`: exchanged, then refreshed.
    let form = format!("grant_type=access_token&service={host}&tenant=t&access_token=CANARY-AAD");
    let exchange = at(Ask::new(Method::POST, "/oauth2/exchange?api-version=2021-07-01").form(&form));
    let exchanged = cistern.send(exchange).await;
    let refresh = exchanged.json()["refresh_token"].as_str().unwrap().to_owned();
    let seen = claims(&refresh);
    assert_eq!(seen["sub"], "alice", "SDKs read it: {seen}");
    assert!(seen["exp"].as_u64().unwrap() > seen["iat"].as_u64().unwrap() + 11_000);
    let service = upstream.requests("POST", "/oauth2/exchange")[0].request.parameter("service");
    assert_eq!(service.as_deref(), Some("scripted"), "upstream's own");
    let form = format!("grant_type=refresh_token&service={host}&scope=repository:private:pull&refresh_token={refresh}");
    let by_refresh = token(&cistern.send(at(Ask::new(Method::POST, "/oauth2/token").form(&form))).await);
    assert_eq!(claims(&by_refresh)["sub"], "alice");
    // As the password behind the null user, which docker keeps.
    let ask = Ask::get("/oauth2/token?service=x&scope=repository:private:pull").basic(NULL_USER, &refresh);
    let by_null_user = token(&cistern.send(at(ask)).await);
    for token in [by_password, by_refresh, by_null_user] {
        cistern.send(at(Ask::get(PRIVATE).bearer(&token))).await.assert_is(&private.manifest);
    }
    cistern.send(at(Ask::get(PRIVATE).basic(NULL_USER, &refresh))).await.assert_is(&private.manifest);

    for (form, status) in [
        ("grant_type=access_token&access_token=CANARY-OTHER".to_owned(), 401),
        (format!("grant_type=access_token&access_token={refresh}x"), 401),
    ] {
        cistern.send(at(Ask::new(Method::POST, "/oauth2/exchange").form(&form))).await.assert_fails(status);
    }
    let altered = format!("grant_type=refresh_token&refresh_token={refresh}x");
    cistern.send(at(Ask::new(Method::POST, "/oauth2/token").form(&altered))).await.assert_fails(401);
    for entry in upstream.log() {
        let text = format!("{:?} {}", entry.request.headers, String::from_utf8_lossy(&entry.request.body));
        assert!(!text.contains(&refresh), "a sealed token reached upstream");
    }
}

#[tokio::test]
async fn a_refresh_token_for_who_wants_one() {
    let (upstream, _, private) = registry(13).await;
    gives_refresh_tokens(&upstream);
    let cistern = Cistern::start(&upstream, "").await;
    let got = cistern.send(Ask::get("/oauth2/token?service=x&offline_token=true").basic("alice", PASSWORD)).await;
    let refresh = got.json()["refresh_token"].as_str().unwrap().to_owned();
    assert!(!refresh.contains("CANARY"));
    let form = format!(
        "grant_type=refresh_token&service=x&client_id=docker&scope=repository:private:pull&refresh_token={refresh}"
    );
    let token = token(&cistern.send(Ask::new(Method::POST, "/oauth2/token").form(&form)).await);
    cistern.send(Ask::get(PRIVATE).bearer(&token)).await.assert_is(&private.manifest);
    // It is no access token, and an access token is no refresh token.
    cistern.send(Ask::get(PRIVATE).bearer(&refresh)).await.assert_fails(401);
    let form = format!("grant_type=refresh_token&refresh_token={token}");
    cistern.send(Ask::new(Method::POST, "/oauth2/token").form(&form)).await.assert_fails(401);
    // Upstream's own, from before ocistern stood in between.
    let native = format!("CANARY-REFRESH-{}-1", upstream.port());
    let form = format!("grant_type=refresh_token&scope=repository:private:pull&refresh_token={native}");
    assert_eq!(cistern.send(Ask::new(Method::POST, "/oauth2/token").form(&form)).await.status, 200);
}

#[tokio::test]
async fn a_token_as_a_password_is_worth_no_more_than_as_a_token() {
    let (upstream, _, private) = registry(41).await;
    upstream.registry(|registry| registry.auth = Auth::Basic("alice".into(), PASSWORD.into()));
    let cistern = Cistern::start(&upstream, "").await;
    // What it holds is the password itself, which is good for everything.
    let narrow = token(&login(&cistern, &["repository:public:pull"]).await);
    cistern.send(Ask::get(PRIVATE).bearer(&narrow)).await.assert_fails(401);
    for user in ["alice", NULL_USER] {
        cistern.send(Ask::get(PRIVATE).basic(user, &narrow)).await.assert_fails(401);
        let ask = Ask::get("/oauth2/token?service=x&scope=repository:private:pull,push").basic(user, &narrow);
        let wide = cistern.send(ask).await;
        assert_eq!(wide.status, 401, "{}", wide.summary());
    }
    // The same of one that upstream could not confirm.
    let (upstream, ..) = registry(43).await;
    let cistern = Cistern::start(&upstream, "").await;
    upstream.script("*", "/token", .., acts::fail(503, "UNAVAILABLE"));
    let narrow = token(&login(&cistern, &["repository:public:pull"]).await);
    upstream.unscript();
    cistern.send(Ask::get(PRIVATE).basic("alice", &narrow)).await.assert_fails(401);
    let ask = Ask::get("/oauth2/token?service=x&scope=repository:private:pull").basic("alice", &narrow);
    assert_eq!(cistern.send(ask).await.status, 401);
    let wide = token(&login(&cistern, &["repository:private:pull"]).await);
    assert_eq!(cistern.send(Ask::get(PRIVATE).bearer(&wide)).await.status, 200);
    drop(private);
}

#[tokio::test]
async fn a_token_of_one_registry_is_not_shown_to_another_that_gets_its_name() {
    let (upstream, ..) = registry(45).await;
    let (successor, ..) = registry(47).await;
    for upstream in [&upstream, &successor] {
        gives_refresh_tokens(upstream);
    }
    let mut cistern = Cistern::start(&upstream, "").await;
    let ask = Ask::get("/oauth2/token?scope=repository:private:pull&offline_token=true").basic("alice", PASSWORD);
    let got = cistern.send(ask).await;
    let (access, refresh) = (token(&got), got.json()["refresh_token"].as_str().unwrap().to_owned());
    let form = format!("grant_type=refresh_token&scope=repository:private:pull&refresh_token={refresh}");
    let renew = Ask::new(Method::POST, "/oauth2/token").form(&form);
    cistern.restart().await;
    assert_eq!(cistern.send(Ask::get(PRIVATE).bearer(&access)).await.status, 200, "it outlives a restart");
    assert_eq!(cistern.send(renew.clone()).await.status, 200);
    cistern.stop().await;
    cistern.point_to("up", &successor);
    cistern.start_again().await;
    cistern.send(Ask::get(PRIVATE).bearer(&access)).await.assert_fails(401);
    cistern.send(Ask::get(PRIVATE).basic(NULL_USER, &refresh)).await.assert_fails(401);
    cistern.send(renew).await;
    let old = upstream.port().to_string();
    for entry in successor.log() {
        let text = format!("{:?} {}", entry.request.headers, String::from_utf8_lossy(&entry.request.body));
        let shown = ["CANARY-TOKEN", "CANARY-REFRESH"].iter().any(|kind| text.contains(&format!("{kind}-{old}")));
        assert!(!shown, "{text}");
    }
}

/// The default upstream, and another one by its name in the path.
async fn two(keys: &str, seed: u64) -> (Cistern, Upstream, Upstream, Image) {
    let ((home, ..), (other, _, private)) = (registry(seed).await, registry(seed + 2).await);
    let cistern =
        Cistern::setup().upstream("home.example", &home, "").upstream("other.example", &other, keys).start().await;
    (cistern, home, other, private)
}

#[tokio::test]
async fn a_credential_goes_to_the_upstream_that_it_belongs_to() {
    let (cistern, home, other, _) = two("", 15).await;
    let own = cistern.client().0;
    let scopes =
        ["repository:private:pull", "repository:other.example/private:pull", "repository:other.example/public:pull"];
    let token = token(&login(&cistern, &scopes).await);
    assert_eq!(cistern.send(Ask::get(PRIVATE).bearer(&token)).await.status, 200);
    for ask in [Ask::get("x").bearer(&token), Ask::get("x").basic("alice", PASSWORD), Ask::get("x")] {
        for (target, scope) in [
            ("/v2/other.example/private/manifests/1.0", "other.example/private"),
            ("/other.example/v2/private/manifests/1.0", "private"),
            ("/v2/private/manifests/1.0?ns=other.example", "private"),
        ] {
            let got = cistern.send(ask.clone().at(target)).await;
            got.assert_fails(401);
            let realm = format!("realm=\"http://{own}/_ocistern/other.example/token\"");
            let challenge = got.header("www-authenticate");
            assert!(
                challenge.contains(&realm) && challenge.contains(&format!("scope=\"repository:{scope}:pull\"")),
                "{challenge}"
            );
            let message = String::from_utf8_lossy(&got.body).into_owned();
            assert!(message.contains("relay_credentials = true in [upstream."), "{message}");
        }
        assert_eq!(cistern.send(ask.at("/v2/other.example/public/manifests/1.0")).await.status, 200);
    }
    // The other's own realm gives it nothing more.
    let ask = Ask::get("/_ocistern/other.example/token?scope=repository:private:pull").basic("alice", PASSWORD);
    assert_eq!(cistern.send(ask).await.status, 200);
    cistern.send(Ask::get("/other.example/v2/").basic("alice", PASSWORD)).await.assert_fails(401);
    let form = "grant_type=access_token&access_token=CANARY-AAD";
    cistern.send(Ask::new(Method::POST, "/other.example/oauth2/exchange").form(form)).await.assert_fails(401);
    let encoded = STANDARD.encode(format!("alice:{PASSWORD}"));
    for entry in other.log() {
        let text = format!(
            "{:?} {} {}",
            entry.request.headers,
            entry.request.query,
            String::from_utf8_lossy(&entry.request.body)
        );
        let foreign = [PASSWORD, &encoded, "CANARY-AAD", &format!("CANARY-TOKEN-{}", home.port())];
        assert!(foreign.iter().all(|secret| !text.contains(secret)), "a foreign secret: {text}");
    }
    check(&cistern).await;
}

#[tokio::test]
async fn a_credential_is_relayed_where_the_operator_says_so() {
    let (cistern, _home, other, private) = two("relay_credentials = true", 19).await;
    let scopes = ["repository:private:pull", "repository:other.example/private:pull"];
    let both = token(&login(&cistern, &scopes).await);
    assert!(other.count("GET", "/token") > 0);
    cistern.send(Ask::get("/v2/other.example/private/manifests/1.0").bearer(&both)).await.assert_is(&private.manifest);
    let ask = Ask::get("/_ocistern/other.example/token?scope=repository:private:pull").basic("alice", PASSWORD);
    let named = token(&cistern.send(ask).await);
    cistern.send(Ask::get("/other.example/v2/private/manifests/1.0").bearer(&named)).await.assert_is(&private.manifest);
    cistern.send(Ask::get("/v2/").bearer(&named)).await.assert_is(&"{}".into());
    // What the token holds for one is nothing for the other.
    cistern.send(Ask::get(PRIVATE).bearer(&named)).await.assert_fails(401);
}

/// How a client comes to a token.
#[derive(Debug, Clone, Copy)]
enum Grant {
    /// As docker and podman do.
    GetBasic,
    /// As ORAS and `az -u -p` do.
    PostPassword,
    /// As docker does with an identity token.
    PostRefresh,
    /// As `az acr login` and the SDKs do: a token of the directory first becomes a refresh token.
    Exchange,
}

/// Where a token is asked for, and where what it is good for is pulled: as a Host, and as paths.
struct Place {
    host: Option<&'static str>,
    token: &'static str,
    exchange: &'static str,
    scope: &'static str,
    pulls: &'static [&'static str],
}

impl Place {
    fn at(&self, ask: Ask) -> Ask {
        self.host.map_or(ask.clone(), |host| ask.with("host", host))
    }

    /// A token from here, as a client gets it.
    async fn token(&self, cistern: &Cistern, grant: Grant) -> String {
        let post = |target: &str, form: String| self.at(Ask::post(target).form(&form));
        let (path, scope) = (self.token, self.scope);
        let with_refresh = async |got: Got| {
            let refresh = got.json()["refresh_token"].as_str().unwrap_or_default().to_owned();
            assert!(!refresh.is_empty(), "{path} {grant:?}: {}", got.summary());
            let form = format!("grant_type=refresh_token&service=x&scope={scope}&refresh_token={refresh}");
            cistern.send(post(path, form)).await
        };
        let basic = |query: &str| self.at(Ask::get(format!("{path}?service=x&{query}")).basic("alice", PASSWORD));
        let got = match grant {
            Grant::GetBasic => cistern.send(basic(&format!("scope={scope}"))).await,
            Grant::PostPassword => {
                let who = format!("username=alice&password={PASSWORD}");
                cistern.send(post(path, format!("grant_type=password&service=x&scope={scope}&{who}"))).await
            }
            Grant::PostRefresh => with_refresh(cistern.send(basic("offline_token=true")).await).await,
            Grant::Exchange => {
                let form = "grant_type=access_token&service=x&access_token=CANARY-AAD".to_owned();
                with_refresh(cistern.send(post(self.exchange, form)).await).await
            }
        };
        assert_eq!(got.status, 200, "{path} {grant:?}: {}", got.summary());
        token(&got)
    }
}

#[tokio::test]
async fn every_form_of_a_token_at_every_realm_in_every_form_of_address() {
    const OTHER: &[&str] = &[
        "/v2/other.example/private/manifests/1.0",
        "/other.example/v2/private/manifests/1.0",
        "/v2/private/manifests/1.0?ns=other.example",
    ];
    const HOME: &[&str] = &[
        PRIVATE,
        "/v2/home.example/private/manifests/1.0",
        "/home.example/v2/private/manifests/1.0",
        "/v2/private/manifests/1.0?ns=home.example",
    ];
    let ((home, _, ours), (other, _, theirs)) = (registry(61).await, registry(63).await);
    gives_refresh_tokens(&home);
    gives_refresh_tokens(&other);
    let cistern = Cistern::setup()
        .upstream("home.example", &home, "")
        .upstream("other.example", &other, "relay_credentials = true")
        .listener(r#"hostnames = { "other.test" = "other.example" }"#)
        .start()
        .await;
    let (own, prefixed) = ("repository:private:pull", "repository:other.example/private:pull");
    let place = |host, token, exchange, scope, pulls| Place { host, token, exchange, scope, pulls };
    let (at_root, exchange_at_root) = ("/oauth2/token", "/oauth2/exchange");
    let below = "/other.example/oauth2/exchange";
    for (place, image) in [
        (place(None, at_root, exchange_at_root, own, HOME), &ours),
        (place(None, "/home.example/oauth2/token", "/home.example/oauth2/exchange", own, HOME), &ours),
        (place(None, "/_ocistern/home.example/token", "/_ocistern/home.example/oauth2/exchange", own, HOME), &ours),
        (
            place(None, "/_ocistern/other.example/token", "/_ocistern/other.example/oauth2/exchange", own, OTHER),
            &theirs,
        ),
        (place(None, "/_ocistern/other.example/token", below, prefixed, OTHER), &theirs),
        (place(None, "/_ocistern/other.example/oauth2/token", below, own, OTHER), &theirs),
        (place(None, "/other.example/_ocistern/other.example/token", below, own, OTHER), &theirs),
        (place(None, "/other.example/oauth2/token", below, own, OTHER), &theirs),
        (place(Some("other.test"), at_root, exchange_at_root, own, &[PRIVATE]), &theirs),
        (place(Some("other.test:5000"), at_root, exchange_at_root, own, &[PRIVATE]), &theirs),
    ] {
        for grant in [Grant::GetBasic, Grant::PostPassword, Grant::PostRefresh, Grant::Exchange] {
            let token = place.token(&cistern, grant).await;
            for pull in place.pulls {
                for ask in [Ask::get(*pull), Ask::head(*pull)] {
                    let got = cistern.send(place.at(ask.bearer(&token))).await;
                    let by = format!("{pull} by {grant:?} from {} {:?}", place.token, place.host);
                    assert_eq!(got.status, 200, "{by}: {}", got.summary());
                    assert_eq!(got.header("docker-content-digest"), image.digest.to_string(), "{by}");
                }
            }
            let anonymous = cistern.send(place.at(Ask::get(place.pulls[0]))).await;
            assert_eq!(anonymous.status, 401, "it is the token that opens: {}", anonymous.summary());
        }
    }
    // What is exchanged at one is nothing to the other: its bearer is anybody there.
    let form = "grant_type=access_token&service=x&access_token=CANARY-AAD";
    let refresh = cistern.send(Ask::post(below).form(form)).await.json()["refresh_token"].as_str().unwrap().to_owned();
    let form = format!("grant_type=refresh_token&service=x&scope={own}&refresh_token={refresh}");
    let before = home.log().len();
    let anybody = token(&cistern.send(Ask::post(at_root).form(&form)).await);
    assert_eq!(home.log().len(), before, "it is not shown there");
    cistern.send(Ask::get(PRIVATE).bearer(&anybody)).await.assert_fails(401);
    check(&cistern).await;
}

#[tokio::test]
async fn client_upstreams_are_for_who_is_known() {
    let (upstream, public, _) = registry(23).await;
    let cistern = Cistern::start(&upstream, "credentials = { from = \"client\" }").await;
    let nobody = token(&cistern.get("/oauth2/token?scope=repository:public:pull").await);
    cistern.get(PUBLIC).await.assert_fails(401);
    cistern.send(Ask::get(PUBLIC).bearer(&nobody)).await.assert_fails(401);
    cistern.send(Ask::get(PUBLIC).basic("", "")).await.assert_fails(401);
    assert_eq!(upstream.log().len(), 0);
    let alice = token(&login(&cistern, &["repository:public:pull"]).await);
    cistern.send(Ask::get(PUBLIC).bearer(&alice)).await.assert_is(&public.manifest);
    // By upstream's own word, when it takes the token back.
    upstream.registry(|registry| registry.accounts.revoke());
    let revoked = cistern.send(Ask::get("/v2/public/tags/list").bearer(&alice)).await;
    revoked.assert_fails(401);
    assert!(revoked.header("www-authenticate").ends_with(",error=\"invalid_token\""), "{}", revoked.summary());
}

#[tokio::test]
async fn own_accounts_are_for_users_of_the_htpasswd_file() {
    let (upstream, _, private) = registry(25).await;
    let directory = tempfile::tempdir().unwrap();
    let (secret, users) = (directory.path().join("secret"), directory.path().join("htpasswd"));
    std::fs::write(&secret, PASSWORD).unwrap();
    // bob: CANARY-LOCAL
    std::fs::write(&users, format!("bob:{}\n", bcrypt::hash("CANARY-LOCAL", 4).unwrap())).unwrap();
    let keys = format!(
        "credentials = {{ from = \"static\", username = \"alice\", password_file = '{}' }}\npush = \"off\"",
        secret.display()
    );
    let cistern = Cistern::setup()
        .upstream("up", &upstream, &keys)
        .listener(&format!("htpasswd = '{}'", users.display()))
        .start()
        .await;
    // A name that is not this machine's: no trust by loopback.
    let afar = |ask: Ask| ask.with("host", "cache.test:5000");
    cistern.get(PRIVATE).await.assert_is(&private.manifest);
    let refused = cistern.send(afar(Ask::get(PRIVATE))).await;
    refused.assert_fails(401);
    assert!(refused.header("www-authenticate").starts_with("Bearer realm=\"http://cache.test:5000/oauth2/token\""));
    assert_eq!(cistern.send(afar(Ask::get("/v2/"))).await.status, 401);
    for (password, status) in [("CANARY-LOCAL", 200), ("CANARY-WRONG", 401)] {
        for target in ["/v2/", PRIVATE, "/oauth2/token?scope=repository:private:pull"] {
            let got = cistern.send(afar(Ask::get(target)).basic("bob", password)).await;
            assert_eq!(got.status, status, "{target}: {}", got.summary());
        }
    }
    let ask = Ask::get("/oauth2/token?scope=repository:private:pull").basic("bob", "CANARY-LOCAL");
    let bob = token(&cistern.send(afar(ask)).await);
    cistern.send(afar(Ask::get(PRIVATE)).bearer(&bob)).await.assert_is(&private.manifest);
    let nobody = token(&cistern.send(afar(Ask::get("/oauth2/token?scope=repository:private:pull"))).await);
    cistern.send(afar(Ask::get(PRIVATE)).bearer(&nobody)).await.assert_fails(401);
    cistern.send(afar(Ask::new(Method::PUT, PRIVATE)).basic("bob", "CANARY-LOCAL")).await.assert_fails(405);
    for entry in upstream.log() {
        let text = format!("{:?}", entry.request);
        assert!(!text.contains("CANARY-LOCAL") && !text.contains(&STANDARD.encode("bob:CANARY-LOCAL")), "{text}");
    }
}

#[tokio::test]
async fn upstreams_that_want_a_password_with_every_request() {
    let (upstream, _, private) = registry(27).await;
    upstream.registry(|registry| registry.auth = Auth::Basic("alice".into(), PASSWORD.into()));
    let cistern = Cistern::start(&upstream, "").await;
    cistern.get(PRIVATE).await.assert_fails(401);
    let wrong = cistern.send(Ask::get("/oauth2/token").basic("alice", "CANARY-WRONG")).await;
    wrong.assert_fails(401);
    let alice = token(&login(&cistern, &["repository:private:pull"]).await);
    assert!(!format!("{}", claims(&alice)).contains("alice"));
    cistern.send(Ask::get(PRIVATE).bearer(&alice)).await.assert_is(&private.manifest);
    cistern.send(Ask::get(PRIVATE).basic("alice", PASSWORD)).await.assert_is(&private.manifest);
    cistern.send(Ask::get(PRIVATE).basic("alice", "CANARY-WRONG")).await.assert_fails(401);
}

#[tokio::test]
async fn strange_requests_to_token_endpoints() {
    let (upstream, ..) = registry(29).await;
    let cistern = Cistern::start(&upstream, "").await;
    let post = |form: &str| Ask::new(Method::POST, "/oauth2/token").form(form);
    cistern.send(post(&format!("grant_type=password&x={}", "y".repeat(70_000)))).await.assert_fails(413);
    cistern.send(post("grant_type=client_credentials")).await.assert_fails(400);
    cistern.send(post("scope=%ff")).await.assert_fails(400);
    for (method, target, allow) in [
        (Method::PUT, "/oauth2/token", "GET, POST"),
        (Method::GET, "/oauth2/exchange", "POST"),
        (Method::DELETE, "/_ocistern/up/token", "GET, POST"),
    ] {
        let got = cistern.send(Ask::new(method, target)).await;
        got.assert_fails(405);
        assert_eq!(got.header("allow"), allow);
    }
    cistern.get("/_ocistern/nobody.example/token").await.assert_fails(404);
    assert_eq!(upstream.log().len(), 0);
}

#[tokio::test]
async fn what_upstream_says_to_a_refused_write_is_not_logged() {
    let (upstream, ..) = registry(49).await;
    let cistern = Cistern::start(&upstream, "").await;
    // The caller's own secret, and a line that looks like one of the log's.
    let words = r#"{"errors":[{"code":"DENIED\nCANARY-LINE","message":"CANARY-ECHO may not"}]}"#;
    upstream.script("POST", "/v2/*", .., acts::answer(403, "application/json", words));
    let scope = "repository:private:pull,push";
    let pusher = token(&login(&cistern, &[scope]).await);
    let got = cistern.send(Ask::new(Method::POST, "/v2/private/blobs/uploads/").bearer(&pusher)).await;
    assert_eq!((got.status, &got.body[..]), (403, words.as_bytes()), "it is the caller's to read");
    let own = logs::own_lines();
    assert!(own.iter().any(|line| line.contains("refused the write")), "it is said that there was a refusal");
    assert!(!own.iter().any(|line| line.contains("CANARY-ECHO") || line.contains("CANARY-LINE")));
}

#[tokio::test]
async fn secrets_are_nowhere_but_where_they_belong() {
    let (upstream, _, private) = registry(31).await;
    gives_refresh_tokens(&upstream);
    let storage = Upstream::start().await;
    let cistern = Cistern::start(&upstream, "").await;
    let scoped = token(&login(&cistern, &["repository:private:pull,push"]).await);
    let mut answers = vec![
        cistern.send(Ask::get(PRIVATE).bearer(&scoped)).await,
        cistern.send(Ask::get(PRIVATE).basic("alice", PASSWORD)).await,
        cistern.send(Ask::get("/oauth2/token?offline_token=true").basic("alice", PASSWORD)).await,
        cistern.send(Ask::get("/oauth2/token?x=CANARY-QUERY").basic("alice", "CANARY-WRONG")).await,
        cistern.send(Ask::get("/v2/").bearer("CANARY-BEARER")).await,
        cistern.send(Ask::new(Method::POST, "/oauth2/exchange").form("access_token=CANARY-AAD")).await,
        cistern.send(Ask::new(Method::POST, "/oauth2/exchange").form("access_token=CANARY-OTHER")).await,
    ];
    // The content comes from storage, by signed addresses: in good order, after a reset, and not at all.
    for (bytes, act, times, status) in [
        (&private.layers[0], acts::honest(), 1, 200),
        (&private.layers[1], acts::cut_at(4000, Cut::Reset), 1, 200),
        (&private.config, acts::fail(403, "DENIED"), 100, 502),
    ] {
        let (target, signed) = (format!("/v2/private/blobs/{}", sha256(bytes)), storage.file(bytes));
        upstream.script("GET", &target, .., acts::redirect(307, &signed));
        storage.script("GET", "/data/*", 0..times, act);
        let got = cistern.send(Ask::get(&target).bearer(&scoped)).await;
        assert_eq!(got.status, status, "{}", got.summary());
        if status == 200 {
            got.assert_is(bytes);
        }
        answers.push(got);
        storage.unscript();
    }
    upstream.script("*", "/token", .., acts::fail(503, "CANARY-UPSTREAM"));
    let form = format!("grant_type=password&username=alice&password={PASSWORD}&scope=repository:private:pull");
    answers.push(cistern.send(Ask::new(Method::POST, "/oauth2/token").form(&form)).await);
    upstream.down();
    answers.push(cistern.send(Ask::get(PRIVATE).basic("alice", PASSWORD)).await);
    let secrets = [
        PASSWORD,
        "CANARY-WRONG",
        "CANARY-AAD",
        "CANARY-OTHER",
        "CANARY-BEARER",
        "CANARY-QUERY",
        "CANARY-TOKEN",
        "CANARY-REFRESH",
        "CANARY-SIGNATURE",
    ];
    let encoded = STANDARD.encode(format!("alice:{PASSWORD}"));
    let check_text = |what: &str, text: &str| {
        for secret in secrets.iter().chain([&encoded.as_str(), &scoped.as_str()]) {
            let at = text.find(secret);
            assert!(at.is_none(), "{secret} in {what}: {}", &text[at.unwrap().saturating_sub(300)..at.unwrap()]);
        }
    };
    for answer in &answers {
        check_text("an answer", &format!("{:?} {}", answer.headers, String::from_utf8_lossy(&answer.body)));
    }
    check_text("the metrics", &cistern.metrics().await);
    for file in files(cistern.root()) {
        if let Ok(bytes) = std::fs::read(&file) {
            check_text(&file.display().to_string(), &String::from_utf8_lossy(&bytes));
        }
    }
    let own = logs::own_lines().join("\n");
    assert!(own.contains("request") && own.contains("redirect"), "something was logged");
    check_text("the log", &own);
    assert!(storage.count("GET", "/data/*") >= 4, "the storage was asked");
    invariants::check_no_secret(&storage);
}
