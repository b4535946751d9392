//! Accounts of clouds: what is asked of whom, how long it is kept, and what becomes of refusals.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};

use super::*;
use crate::config::AwsKeys;
use crate::oci::Via;

const SECRET: &str = "canary-secret";

/// Lets time pass. Only here it is paused: where it is paused while a socket is waited for, every time-out is over at once.
async fn later(time: Duration) {
    tokio::time::pause();
    tokio::time::advance(time).await;
    tokio::time::resume();
}

/// A JWT that lives for `seconds`.
fn jwt(id: &str, seconds: u64) -> String {
    let now = crate::clock::twin::wall().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let claims = format!(r#"{{"jti":"{id}","iat":{now},"exp":{}}}"#, now + seconds);
    format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(claims))
}

fn json(text: &str) -> Response<Full<Bytes>> {
    reply(200, &[("content-type", "application/json")], text)
}

/// An ACR: challenges, exchanges Entra's `entra` for refresh tokens and those for access tokens. `revoked`: the refresh
/// tokens that it issued so far are refused.
async fn registry_server(revoked: Arc<AtomicBool>) -> Server {
    let issued = AtomicUsize::new(0);
    Server::start(move |seen, _| match seen.target.as_str() {
        "/oauth2/exchange" => {
            revoked.store(false, Ordering::Relaxed);
            let number = issued.fetch_add(1, Ordering::Relaxed);
            json(&format!(r#"{{"refresh_token":"{}"}}"#, jwt(&format!("refresh-{number}"), 11_700)))
        }
        target if target.starts_with("/oauth2/token") => {
            if revoked.load(Ordering::Relaxed) {
                return reply(401, &[], r#"{"errors":[{"code":"UNAUTHORIZED","message":"revoked"}]}"#);
            }
            json(&format!(r#"{{"access_token":"{}"}}"#, jwt("access", 600)))
        }
        _ if authorization(seen).is_some() => reply(200, &[], "content"),
        target => {
            let repo = target.trim_start_matches("/v2/").rsplit_once("/manifests/").unwrap().0;
            let challenge =
                format!(r#"Bearer realm="/oauth2/token",service="my.azurecr.io",scope="repository:{repo}:pull""#);
            reply(401, &[("www-authenticate", &challenge)], "")
        }
    })
    .await
}

async fn entra_server() -> Server {
    Server::start(|_, _| json(r#"{"token_type":"Bearer","expires_in":3599,"access_token":"entra"}"#)).await
}

/// Settings with a service principal; keep the file while it is used.
fn with_principal(mut upstream: Upstream, authority: SocketAddr) -> (Upstream, tempfile::NamedTempFile) {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), SECRET).unwrap();
    upstream.credentials = Credentials::Azure {
        tenant: "contoso.example".into(),
        client_id: "the-app".into(),
        secret_file: file.path().to_owned(),
        authority: format!("http://{authority}/login").parse().unwrap(),
    };
    (upstream, file)
}

fn manifest_of(repo: &str) -> Ask {
    Ask::manifest(Method::GET, &repo.parse().unwrap(), &"latest".parse().unwrap(), soon())
}

#[tokio::test]
async fn a_service_principal_is_exchanged_once_for_all_repositories() {
    let (server, entra) = (registry_server(Arc::default()).await, entra_server().await);
    let (upstream, _file) = with_principal(settings(server.address), entra.address);
    let registry = registry(upstream);
    assert_eq!(registry.via(), Via::Shared);
    for repo in ["a/one", "a/two", "a/one"] {
        assert_eq!(registry.fetch(manifest_of(repo)).await.unwrap().via, Via::Shared);
    }
    let asked = entra.requests("/");
    assert_eq!(asked.len(), 1);
    assert_eq!(
        (&asked[0].method, asked[0].target.as_str()),
        (&Method::POST, "/login/contoso.example/oauth2/v2.0/token")
    );
    assert_eq!(
        asked[0].body,
        "grant_type=client_credentials&client_id=the-app&client_secret=canary-secret&scope=https%3A%2F%2Fcontainerregistry.azure.net%2F.default"
    );
    let exchanged = server.requests("/oauth2/exchange");
    assert_eq!(exchanged.len(), 1);
    assert_eq!(
        exchanged[0].body,
        "grant_type=access_token&service=my.azurecr.io&tenant=contoso.example&access_token=entra"
    );
    assert_eq!(exchanged[0].headers["content-type"], "application/x-www-form-urlencoded");
    let tokens = server.requests("/oauth2/token");
    assert_eq!(tokens.len(), 2, "one for each repository");
    assert!(tokens[0].body.starts_with("grant_type=refresh_token&refresh_token=e30."), "{}", tokens[0].body);
    assert!(tokens[1].body.ends_with("&service=my.azurecr.io&scope=repository%3Aa%2Ftwo%3Apull"), "{}", tokens[1].body);
    let shown = server.seen.lock().iter().filter(|seen| format!("{seen:?}").contains(SECRET)).count();
    assert_eq!(shown, 0, "the secret is Entra's alone to see");
}

#[tokio::test]
async fn a_refresh_token_is_renewed_before_it_expires_and_when_it_is_revoked() {
    let revoked: Arc<AtomicBool> = Arc::default();
    let (server, entra) = (registry_server(Arc::clone(&revoked)).await, entra_server().await);
    let (upstream, _file) = with_principal(settings(server.address), entra.address);
    let registry = registry(upstream);
    let fetch = async |expected: usize, why: &str| {
        registry.fetch(manifest_of("a/b")).await.unwrap();
        assert_eq!(server.count("/oauth2/exchange"), expected, "{why}");
    };
    fetch(1, "the first").await;
    later(Duration::from_mins(165)).await;
    fetch(1, "85 % of 11700 s are not over").await;
    later(Duration::from_secs(100)).await;
    // The access token is asked for anew only now.
    later(Duration::from_secs(500)).await;
    fetch(2, "it is renewed early").await;
    revoked.store(true, Ordering::Relaxed);
    later(Duration::from_mins(10)).await;
    fetch(3, "it was refused, so it was renewed").await;
}

#[tokio::test]
async fn what_entra_says_is_told_without_the_secret() {
    let server = registry_server(Arc::default()).await;
    for (status, body, class, expected) in [
        (
            401,
            r#"{"error":"invalid_client","error_description":"AADSTS7000215: Invalid client secret"}"#,
            Class::Bad,
            "AADSTS7000215",
        ),
        (400, r#"{"error":"x","error_description":"it was canary-secret"}"#, Class::Bad, "refuses the account"),
        (503, "{}", Class::Unavailable, "503"),
        (429, "{}", Class::Unavailable, "too many requests"),
        (302, "", Class::Bad, "redirects"),
        (200, r#"{"token":"x"}"#, Class::Bad, "something else than a token"),
    ] {
        let entra = Server::start(move |_, _| reply(status, &[("content-type", "application/json")], body)).await;
        let (upstream, _file) = with_principal(settings(server.address), entra.address);
        let error = registry(upstream).fetch(manifest_of("a/b")).await.unwrap_err();
        assert_eq!(error.class(), class, "{status}: {error}");
        assert!(error.to_string().contains(expected), "{status}: {error}");
        assert!(!error.to_string().contains(SECRET), "{error}");
    }
    let gone = Server::start(|_, _| reply(200, &[], "")).await.address;
    let (upstream, file) = with_principal(settings(server.address), gone);
    let error = registry(upstream.clone()).fetch(manifest_of("a/b")).await.unwrap_err();
    assert_eq!(error.class(), Class::Unavailable, "{error}");
    drop(file);
    let error = registry(upstream).fetch(manifest_of("a/b")).await.unwrap_err();
    assert!(matches!(error.fault, Fault::Credential(CredentialFault::Unreadable { .. })), "{error}");
}

/// A registry that wants a name and password: those that `accepts` says.
async fn basic_server(accepts: impl Fn(&str) -> bool + Send + Sync + 'static) -> Server {
    Server::start(move |seen, _| {
        let shown = authorization(seen)
            .and_then(|shown| shown.strip_prefix("Basic "))
            .map(|shown| String::from_utf8(STANDARD.decode(shown).unwrap()).unwrap());
        if shown.is_some_and(|shown| accepts(&shown)) {
            return reply(200, &[], "content");
        }
        let challenge = r#"Basic realm="https://1.dkr.ecr.eu-west-1.amazonaws.com/",service="ecr.amazonaws.com""#;
        reply(401, &[("www-authenticate", challenge)], "Not Authorized")
    })
    .await
}

/// The n-th password is `password-n`.
async fn ecr_api() -> Server {
    Server::start(|_, before| {
        let expires = crate::clock::twin::wall().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() + 43_200;
        let token = STANDARD.encode(format!("AWS:password-{before}"));
        let text = format!(
            r#"{{"authorizationData":[{{"authorizationToken":"{token}","expiresAt":{expires}.25,"proxyEndpoint":"https://1.dkr.ecr.eu-west-1.amazonaws.com"}}]}}"#
        );
        reply(200, &[("content-type", "application/x-amz-json-1.1")], &text)
    })
    .await
}

fn with_keys(mut upstream: Upstream, endpoint: SocketAddr) -> (Upstream, tempfile::NamedTempFile) {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), SECRET).unwrap();
    upstream.credentials = Credentials::Ecr {
        region: "eu-west-1".into(),
        endpoint: format!("http://{endpoint}").parse().unwrap(),
        keys: AwsKeys::Files {
            access_key_id: "AKIAEXAMPLE".into(),
            secret_file: file.path().to_owned(),
            session_token_file: None,
        },
    };
    (upstream, file)
}

#[tokio::test]
async fn a_password_of_ecr_is_kept_for_its_twelve_hours() {
    let api = ecr_api().await;
    let newest = Arc::new(AtomicUsize::new(0));
    let accepted = Arc::clone(&newest);
    let server = basic_server(move |shown| shown == format!("AWS:password-{}", accepted.load(Ordering::Relaxed))).await;
    let (upstream, _file) = with_keys(settings(server.address), api.address);
    let registry = registry(upstream);
    for pause in [0, 120, 3600, 32_000] {
        later(Duration::from_secs(pause)).await;
        assert_eq!(registry.fetch(manifest()).await.unwrap().via, Via::Shared);
    }
    let asked = api.requests("/");
    assert_eq!(asked.len(), 1);
    assert_eq!((&asked[0].method, asked[0].body.as_str()), (&Method::POST, "{}"));
    assert_eq!(asked[0].headers["x-amz-target"], "AmazonEC2ContainerRegistry_V20150921.GetAuthorizationToken");
    let signature = asked[0].headers["authorization"].to_str().unwrap();
    assert!(signature.starts_with("AWS4-HMAC-SHA256 Credential=AKIAEXAMPLE/") && !signature.contains(SECRET));
    newest.store(1, Ordering::Relaxed);
    registry.fetch(manifest()).await.expect("a password that is refused before its time is asked for again");
    assert_eq!(api.count("/"), 2);
    later(Duration::from_secs(40_000)).await;
    newest.store(2, Ordering::Relaxed);
    registry.fetch(manifest()).await.unwrap();
    assert_eq!(api.count("/"), 3, "85 % of its time were over");
}

#[tokio::test]
async fn a_registry_that_refuses_everything_does_not_wear_out_the_cloud() {
    let (api, server) = (ecr_api().await, basic_server(|_| false).await);
    let (upstream, _file) = with_keys(settings(server.address), api.address);
    let registry = registry(upstream);
    for _ in 0..5 {
        let error = registry.fetch(manifest()).await.unwrap_err();
        assert_eq!(error.class(), Class::Refused, "{error}");
    }
    assert_eq!(api.count("/"), 1);
}

#[tokio::test]
async fn what_aws_says_is_told() {
    let server = basic_server(|_| false).await;
    for (status, said) in [
        (400, r#"{"__type":"UnrecognizedClientException","message":"The token is invalid."}"#),
        (403, r#"{"__type":"AccessDeniedException","Message":"The token is invalid."}"#),
    ] {
        let api =
            Server::start(move |_, _| reply(status, &[("content-type", "application/x-amz-json-1.1")], said)).await;
        let (upstream, _file) = with_keys(settings(server.address), api.address);
        let error = registry(upstream).fetch(manifest()).await.unwrap_err();
        assert!(error.to_string().contains("refuses the account: The token is invalid."), "{error}");
        assert_eq!(error.class(), Class::Bad);
    }
}
