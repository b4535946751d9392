//! Credentials: whose they are, where they go, where they must not go, and how long a token is used.

use crate::common::content::{image, sha256};
use crate::common::invariants::{self, check};
use crate::common::upstream::{Auth, Registry};
use crate::common::{Cistern, Upstream, acts};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// Lines that make ocistern pull with the account `user`, and the file with its password, which may be rewritten.
fn account(password: &str) -> (tempfile::TempDir, std::path::PathBuf, String) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("password");
    std::fs::write(&path, password).unwrap();
    let keys =
        format!("credentials = {{ from = \"static\", username = \"user\", password_file = '{}' }}", path.display());
    (directory, path, keys)
}

#[tokio::test]
async fn the_operators_account_pulls_and_its_secret_stays_with_its_upstream() {
    let (upstream, storage) = (Upstream::start().await, Upstream::start().await);
    let image = image(14);
    upstream.image("app", "1.0", &image);
    let layer = &image.layers[0];
    let target = format!("/v2/app/blobs/{}", sha256(layer));
    upstream.script("GET", &target, .., acts::redirect(307, storage.file(layer)));
    let (_secrets, _, keys) = account("CANARY-PASSWORD\n");
    let known = ("user".to_owned(), "CANARY-PASSWORD".to_owned());
    for auth in [Auth::Bearer(Some(known.clone())), Auth::Basic(known.0, known.1)] {
        upstream.registry(|registry| registry.auth = auth.clone());
        let cistern = Cistern::start(&upstream, &keys).await;
        cistern.get("/v2/app/manifests/1.0").await.assert_is(&image.manifest);
        cistern.get(&target).await.assert_is(layer);
        cistern.get(format!("/v2/app/blobs/{}", sha256(&image.config))).await.assert_is(&image.config);
        invariants::check_no_secret(&storage);
        assert!(upstream.count("*", "/token") <= 2, "one token a scope: {}", upstream.count("*", "/token"));
        upstream.forget();
        check(&cistern).await;
    }
    assert_eq!(storage.count("GET", "/data//blobs/*"), 2, "the double slash is kept");
}

#[tokio::test]
async fn what_an_upstream_repeats_of_the_account_is_not_told_to_clients() {
    let (_secrets, _, keys) = account("CANARY-PASSWORD");
    let known = ("user".to_owned(), "CANARY-PASSWORD".to_owned());
    for auth in [Auth::Bearer(Some(known.clone())), Auth::Basic(known.0, known.1)] {
        let upstream = Upstream::start().await;
        upstream.image("app", "1.0", &image(14));
        upstream.registry(|registry| registry.auth = auth);
        let cistern = Cistern::start(&upstream, &keys).await;
        assert_eq!(cistern.get("/v2/app/manifests/1.0").await.status, 200);
        let shown = upstream.requests("GET", "*/manifests/1.0").pop().unwrap();
        let shown = shown.request.header("authorization").unwrap().split_once(' ').unwrap().1.to_owned();
        let password = STANDARD
            .decode(&shown)
            .ok()
            .and_then(|pair| String::from_utf8(pair).ok()?.split(':').nth(1).map(str::to_owned));
        for repeated in [Some(shown), password].into_iter().flatten() {
            let page = format!("denied, you sent: {repeated}");
            upstream.script("*", "/v2/*", .., acts::answer(403, "text/plain", page));
            let got = cistern.get("/v2/app/manifests/2.0").await;
            let text = String::from_utf8_lossy(&got.body).into_owned();
            assert_eq!(got.status, 403, "{text}");
            assert!(!text.contains(&repeated), "{text}");
            upstream.unscript();
        }
    }
}

#[tokio::test]
async fn tokens_of_every_shape_are_understood_and_kept() {
    for (field, expires_in, jwt_lifetime, fetched) in [
        ("token", Some(300), None, 1),
        ("access_token", Some(300), None, 1),
        ("access_token", None, Some(300), 1),
        ("token", None, None, 1),
        // Expired on arrival: usable once, and not kept.
        ("token", None, Some(0), 3),
    ] {
        let upstream = Upstream::start().await;
        let images = [image(20), image(21), image(22)];
        for (image, tag) in images.iter().zip(["a", "b", "c"]) {
            upstream.image("app", tag, image);
        }
        upstream.registry(|registry| {
            registry.auth = Auth::Bearer(None);
            registry.token.field = field;
            registry.token.expires_in = expires_in;
            registry.token.jwt_lifetime = jwt_lifetime;
        });
        let cistern = Cistern::start(&upstream, "").await;
        for (image, tag) in images.iter().zip(["a", "b", "c"]) {
            cistern.get(format!("/v2/app/manifests/{tag}")).await.assert_is(&image.manifest);
        }
        let seen = upstream.count("GET", "/token");
        assert_eq!(seen, fetched, "{field}, expires_in {expires_in:?}, JWT {jwt_lifetime:?}");
        let query = upstream.requests("GET", "/token")[0].request.query.clone();
        assert!(query.contains("service=scripted"), "{query}");
        assert!(
            query.contains("scope=repository%3Aapp%3Apull") || query.contains("scope=repository:app:pull"),
            "{query}"
        );
    }
}

#[tokio::test]
async fn a_revoked_token_is_replaced_once() {
    let upstream = Upstream::start().await;
    let (first, second) = (image(23), image(24));
    upstream.image("app", "a", &first);
    upstream.image("app", "b", &second);
    upstream.registry(|registry| registry.auth = Auth::Bearer(None));
    let cistern = Cistern::start(&upstream, "").await;
    cistern.get("/v2/app/manifests/a").await.assert_is(&first.manifest);
    upstream.registry(Registry::revoke_tokens);
    cistern.get("/v2/app/manifests/b").await.assert_is(&second.manifest);
    assert_eq!(upstream.count("GET", "/token"), 2);
}

#[tokio::test]
async fn token_endpoints_that_take_only_one_method_are_served() {
    let (_secrets, _, keys) = account("CANARY-PASSWORD");
    for refused in ["GET", "POST"] {
        let upstream = Upstream::start().await;
        let image = image(31);
        upstream.image("app", "1.0", &image);
        upstream.registry(|registry| {
            registry.auth = Auth::Bearer(Some(("user".into(), "CANARY-PASSWORD".into())));
            registry.token.get_only = false;
            registry.token.field = "access_token";
        });
        for status in [404, 405] {
            upstream.script(refused, "/token", .., acts::fail(status, "UNSUPPORTED"));
            let cistern = Cistern::start(&upstream, &keys).await;
            cistern.get("/v2/app/manifests/1.0").await.assert_is(&image.manifest);
            upstream.unscript();
            for entry in upstream.requests("*", "/token") {
                assert!(!entry.request.query.contains("CANARY"), "a password in a URL: {}", entry.request.query);
            }
        }
    }
}

#[tokio::test]
async fn a_password_that_was_changed_in_its_file_is_used() {
    let upstream = Upstream::start().await;
    let (first, second) = (image(32), image(33));
    upstream.image("app", "a", &first);
    upstream.image("app", "b", &second);
    let (_secrets, password, keys) = account("CANARY-OLD");
    upstream.registry(|registry| registry.auth = Auth::Bearer(Some(("user".into(), "CANARY-OLD".into()))));
    let cistern = Cistern::start(&upstream, &keys).await;
    cistern.get("/v2/app/manifests/a").await.assert_is(&first.manifest);
    upstream.registry(|registry| {
        registry.revoke_tokens();
        registry.auth = Auth::Bearer(Some(("user".into(), "CANARY-NEW".into())));
    });
    std::fs::write(&password, "CANARY-NEW\n").unwrap();
    cistern.get("/v2/app/manifests/b").await.assert_is(&second.manifest);
}

#[tokio::test]
async fn a_redirect_to_another_registry_is_authorised_there_anew_and_anonymously() {
    // registry.k8s.io redirects manifests and blobs to registries with token endpoints of their own.
    let (upstream, other) = (Upstream::start().await, Upstream::start().await);
    let image = image(35);
    upstream.image("app", "1.0", &image);
    other.image("mirror/app", "1.0", &image);
    upstream.registry(|registry| registry.auth = Auth::Bearer(Some(("user".into(), "CANARY-PASSWORD".into()))));
    other.registry(|registry| registry.auth = Auth::Bearer(None));
    let layer = sha256(&image.layers[0]);
    for (path, there) in [
        ("/v2/app/manifests/1.0".to_owned(), "/v2/mirror/app/manifests/1.0".to_owned()),
        (format!("/v2/app/blobs/{layer}"), format!("/v2/mirror/app/blobs/{layer}")),
    ] {
        // Upstream itself asks for a token before it redirects.
        let location = format!("{}{there}", other.url());
        let redirect = acts::redirect(307, location);
        upstream.script("*", &path, .., acts::where_status(200, redirect));
    }
    let (_secrets, _, keys) = account("CANARY-PASSWORD");
    let cistern = Cistern::start(&upstream, &keys).await;
    cistern.get("/v2/app/manifests/1.0").await.assert_is(&image.manifest);
    cistern.get(format!("/v2/app/blobs/{layer}")).await.assert_is(&image.layers[0]);
    assert!(upstream.count("GET", "/token") >= 1 && other.count("GET", "/token") >= 1);
    let own = format!("CANARY-TOKEN-{}-", other.port());
    for entry in other.log() {
        let shown = entry.request.header("authorization");
        assert!(shown.is_none_or(|text| text.contains(&own)), "a foreign credential: {shown:?}");
        assert!(
            !entry.request.query.contains("CANARY") && !entry.request.query.contains("account"),
            "{}",
            entry.request.query
        );
    }
    check(&cistern).await;
}
