//! The admin API on live data: what `docs/openapi.json` says of its answers, and what they say.

use std::path::Path;

use http::{Method, header::WWW_AUTHENTICATE};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

use crate::common::client::{Ask, Client, Got};
use crate::common::clock::{eventually, patiently};
use crate::common::content::{Image, image, index, sha256};
use crate::common::invariants::blob_path;
use crate::common::{Cistern, Gate, Upstream, acts};
use ocistern::oci::media;

/// A request over the admin socket.
async fn admin(root: &Path, method: Method, target: &str) -> Got {
    let stream = UnixStream::connect(root.join("ocistern.sock")).await.unwrap();
    Client::send_over(stream, "localhost", Ask::new(method, target)).await
}

async fn get(cistern: &Cistern, target: &str) -> Value {
    let got = admin(cistern.root(), Method::GET, target).await;
    assert!(got.complete(), "{target}: {}", got.summary());
    got.json()
}

fn document() -> Value {
    serde_json::from_str(include_str!("../../docs/openapi.json")).unwrap()
}

/// What is not described counts as wrong here; clients must put up with more.
fn close(schema: &mut Value) {
    match schema {
        Value::Object(fields) => {
            if fields.contains_key("properties") {
                fields.insert("additionalProperties".to_owned(), Value::Bool(false));
            }
            fields.values_mut().for_each(close);
        }
        Value::Array(items) => items.iter_mut().for_each(close),
        _ => {}
    }
}

/// Fails unless the answer is what the document says of it.
#[track_caller]
fn assert_described(document: &Value, method: &Method, target: &str, got: &Got) {
    let path = target.split('?').next().unwrap();
    let operation = &document["paths"][path][method.as_str().to_ascii_lowercase()];
    let mut response = &operation["responses"][got.status.to_string()];
    if let Some(name) = response["$ref"].as_str() {
        response = &document["components"]["responses"][name.rsplit('/').next().unwrap()];
    }
    let schema = &response["content"]["application/json"]["schema"];
    assert!(schema.is_object(), "{method} {target}: {} is not described", got.status);
    let mut whole = json!({ "allOf": [schema], "components": document["components"] });
    close(&mut whole["components"]["schemas"]);
    let validator = jsonschema::options().should_validate_formats(true).build(&whole).unwrap();
    let answer = got.json();
    let errors: Vec<String> =
        validator.iter_errors(&answer).map(|error| format!("{}: {error}", error.instance_path())).collect();
    assert!(errors.is_empty(), "{method} {target}: {errors:#?}\n{answer:#}");
}

async fn pull(cistern: &Cistern, repo: &str, reference: &str, image: &Image) {
    cistern.get(format!("/v2/{repo}/manifests/{reference}")).await.assert_is(&image.manifest);
    for part in image.layers.iter().chain([&image.config]) {
        cistern.get(format!("/v2/{repo}/blobs/{}", sha256(part))).await.assert_is(part);
    }
}

/// A pulled image `app:1`, an index `multi:1` of which one platform is there, and a download that is held.
async fn busy() -> (Cistern, Upstream, [Image; 2], Gate) {
    let upstream = Upstream::start().await;
    let images = [image(1), image(2)];
    upstream.image("app", "1", &images[0]);
    for image in &images {
        upstream.image("multi", "x", image);
    }
    let bytes = index(&[&images[0], &images[1]]);
    let digest = upstream.manifest("multi", media::OCI_INDEX, &bytes);
    upstream.tag("multi", "1", digest);
    let limit =
        acts::both(acts::header("ratelimit-limit", "100;w=21600"), acts::header("ratelimit-remaining", "76;w=21600"));
    upstream.script("HEAD", "/v2/**", .., limit.clone());
    upstream.script("GET", "/v2/*/manifests/*", .., limit);
    let cistern = Cistern::start(&upstream, "tags = \"10m\"").await;
    pull(&cistern, "app", "1", &images[0]).await;
    cistern.get("/v2/multi/manifests/1").await.assert_is(&bytes);
    pull(&cistern, "multi", &images[0].digest.to_string(), &images[0]).await;
    cistern.settle().await;
    let gate = Gate::new();
    let large = crate::common::content::blob(9, 3 << 20);
    let held = upstream.blob("app", &large);
    upstream.script("GET", &format!("/v2/app/blobs/{held}"), .., acts::hold_at(1 << 20, &gate));
    (cistern, upstream, images, gate)
}

#[tokio::test]
async fn real_answers_are_as_the_document_says() {
    let (cistern, upstream, images, gate) = busy().await;
    let held = sha256(&crate::common::content::blob(9, 3 << 20));
    let live = cistern.open(format!("/v2/app/blobs/{held}")).await;
    gate.reached(1).await;
    cistern.get("/v2/app/manifests/none").await.assert_fails(404);
    let root = cistern.root();
    let document = document();
    let digest = &images[0].digest;
    let layer = sha256(&images[0].layers[0]);
    let asked = [
        (Method::GET, "/api/v1/status".to_owned()),
        (Method::GET, "/api/v1/images".to_owned()),
        (Method::GET, "/api/v1/images?pattern=up%2Fapp".to_owned()),
        (Method::GET, "/api/v1/usage".to_owned()),
        (Method::GET, "/api/v1/fills".to_owned()),
        (Method::GET, "/api/v1/upstreams".to_owned()),
        (Method::GET, "/api/v1/history".to_owned()),
        (Method::GET, "/api/v1/history?step=hour".to_owned()),
        (Method::GET, "/api/v1/history?step=day".to_owned()),
        (Method::GET, "/api/v1/errors".to_owned()),
        (Method::GET, "/api/v1/explain?image=up%2Fapp%3A1".to_owned()),
        (Method::GET, "/api/v1/explain?image=up%2Fmulti%3A1".to_owned()),
        (Method::GET, "/api/v1/explain?image=up%2Fnobody".to_owned()),
        (Method::GET, format!("/api/v1/explain?image=up%2Fapp%40{digest}")),
        (Method::GET, "/api/v1/explain".to_owned()),
        (Method::GET, "/api/v1/explain?image=%3Cscript%3E".to_owned()),
        (Method::GET, "/api/v1/openapi.json".to_owned()),
        (Method::GET, "/api/v1/missed".to_owned()),
        (Method::DELETE, "/api/v1/missed".to_owned()),
        (Method::GET, "/api/v1/coverage?image=up%2Fapp%3A1&image=up%2Fmulti%3A1&image=up%2Fnobody".to_owned()),
        (Method::GET, "/api/v1/coverage?image=up%2Fmulti%3A1&platform=linux%2Farm64".to_owned()),
        (Method::GET, "/api/v1/coverage".to_owned()),
        (Method::GET, "/api/v1/coverage?image=up%2Fapp&platform=arm64".to_owned()),
        (Method::POST, "/api/v1/pins?name=up%2Fapp%3A1&name=up%2Fmulti".to_owned()),
        (Method::GET, "/api/v1/pins".to_owned()),
        (Method::DELETE, "/api/v1/pins?name=up%2Fapp%3A1&name=up%2Fother".to_owned()),
        (Method::DELETE, "/api/v1/pins?name=up%2Fmulti".to_owned()),
        (Method::POST, "/api/v1/gc?dry_run=true&evict_bytes=100".to_owned()),
        (Method::POST, "/api/v1/gc?dryrun=true".to_owned()),
        (Method::POST, "/api/v1/status".to_owned()),
        (Method::POST, "/api/v1/verify".to_owned()),
        (Method::DELETE, "/api/v1/images?name=up%2Fapp&dry_run=true".to_owned()),
        (Method::GET, "/api/v1/pins?name=x".to_owned()),
    ];
    for (method, target) in &asked {
        let got = admin(root, method.clone(), target).await;
        if got.status == 405 {
            assert!(document["paths"]["/api/v1/status"]["post"].is_null() && !got.header("allow").is_empty());
            continue;
        }
        assert_described(&document, method, target, &got);
    }
    // One that is wrong, and one that is not there: with the names of the images that they are of.
    std::fs::write(blob_path(&cistern, &layer), "wrong").unwrap();
    std::fs::remove_file(blob_path(&cistern, &sha256(&images[0].layers[1]))).unwrap();
    for target in ["/api/v1/verify?pattern=up%2Fapp", "/api/v1/verify"] {
        let got = admin(root, Method::POST, target).await;
        assert_described(&document, &Method::POST, target, &got);
        let answer = got.json();
        if target.contains('?') {
            assert_eq!(answer["wrong"][0]["images"], json!(["up/app:1", "up/multi:1"]), "{answer:#}");
            assert_eq!(answer["missing_of"][0]["images"][0], "up/app:1", "{answer:#}");
        }
    }
    let target = "/api/v1/explain?image=up%2Fapp%3A1";
    let got = admin(root, Method::GET, target).await;
    assert_described(&document, &Method::GET, target, &got);
    assert_eq!(got.json()["verdict"], "partial", "{:#}", got.json());
    gate.open();
    drop(live.finish().await);
    drop(upstream);
}

#[tokio::test]
async fn upstreams_tell_how_they_do() {
    let (cistern, upstream, _, _) = busy().await;
    let of = async || get(&cistern, "/api/v1/upstreams").await["upstreams"][0].clone();
    let seen = of().await;
    assert_eq!((&seen["name"], &seen["state"]), (&"up".into(), &"answering".into()), "{seen:#}");
    assert_eq!(seen["rate_limit"]["limit"], 100);
    assert_eq!(seen["rate_limit"]["remaining"], 76);
    assert_eq!(seen["rate_limit"]["window_seconds"], 21600);
    assert!(seen["served_bytes"].as_u64() > Some(16_384) && seen["received_bytes"].as_u64() > Some(16_384), "{seen:#}");
    assert!(seen["since"].is_string() && seen["last_error"].is_null(), "{seen:#}");

    upstream.down();
    for n in 0..3 {
        let got = cistern.get(format!("/v2/app/manifests/away{n}")).await;
        assert!(got.status >= 500, "{}", got.summary());
    }
    let seen = of().await;
    assert!(["failing", "breaker_open"].contains(&seen["state"].as_str().unwrap()), "{seen:#}");
    assert!(seen["last_error"]["message"].as_str().unwrap().contains("cannot connect"), "{seen:#}");
    let errors = get(&cistern, "/api/v1/errors").await["errors"].as_array().unwrap().clone();
    let met = |met: &str| errors.iter().find(|error| error["met"] == met).unwrap_or_else(|| panic!("{errors:#?}"));
    assert_eq!((&met("upstream")["code"], &met("upstream")["repository"]), (&"UNREACHABLE".into(), &"app".into()));
    assert!(met("upstream")["advice"].as_str().unwrap().contains("firewall"));
    assert_eq!(met("answer")["upstream"], "up");
    let status = get(&cistern, "/api/v1/status").await;
    assert_eq!(status["upstreams"][0]["state"], seen["state"], "the status says the same");

    upstream.up();
    eventually("it answers again", || async {
        let _ = cistern.get("/v2/app/manifests/other").await;
        of().await["state"] == "answering"
    })
    .await;
    assert!(of().await["last_error"].is_object(), "what was is not forgotten");
}

/// Strangers' names and upstreams' words are in what is told; signatures and credentials are not.
#[tokio::test]
async fn errors_are_folded_and_hold_no_secret() {
    let upstream = Upstream::start().await;
    let said = r#"{"errors":[{"code":"DENIED","message":"<script>alert(1)</script> https://s3.example/x?X-Amz-Signature=canary"}]}"#;
    upstream.script("GET", "/v2/team/app/manifests/*", .., acts::answer(500, "application/json", said));
    upstream.script("HEAD", "/v2/team/app/manifests/*", .., acts::answer(500, "application/json", ""));
    let cistern = Cistern::start(&upstream, "").await;
    for n in 0..3 {
        let ask = Ask::get(format!("/v2/team/app/manifests/v{n}?sig=canary"));
        assert!(cistern.send(ask).await.status >= 400);
    }
    // A client's first request is told what is wanted: no error of anybody's.
    assert_eq!(cistern.get("/v2/").await.status, 401);
    for n in 0..300 {
        cistern.get(format!("/v2/made-up-{n}/manifests/x")).await.assert_fails(404);
    }
    let answer = get(&cistern, "/api/v1/errors").await;
    let text = answer.to_string();
    assert!(!text.contains("canary"), "{answer:#}");
    let errors = answer["errors"].as_array().unwrap();
    assert!(errors.len() <= 128, "{}", errors.len());
    assert!(errors.iter().all(|error| error["code"] != "UNAUTHORIZED"), "{answer:#}");
    let folded: Vec<_> = errors.iter().filter(|error| error["repository"] == "team/app").collect();
    assert!(folded.iter().any(|error| error["count"].as_u64() >= Some(3) && error["met"] == "answer"), "{answer:#}");
    assert!(folded.iter().any(|error| error["met"] == "upstream" && error["code"] == "STATUS"), "{folded:#?}");
    assert!(text.contains("<script>"), "what upstream says is shown as it is: {folded:#?}");
}

#[tokio::test]
async fn why_it_was_a_miss() {
    let (cistern, upstream, images, _) = busy().await;
    let explain = async |image: &str| get(&cistern, &format!("/api/v1/explain?image={image}")).await;
    let said = |answer: &Value| answer["sentences"].to_string();
    let seen = explain("up%2Fapp%3A1").await;
    assert_eq!((&seen["verdict"], &seen["image"]), (&"hit".into(), &"up/app:1".into()), "{seen:#}");
    assert_eq!(seen["stored"]["digest"], images[0].digest.to_string());
    assert_eq!((&seen["stored"]["blobs"], &seen["stored"]["missing_blobs"]), (&4.into(), &0.into()));
    assert_eq!((&seen["tag"]["policy"], &seen["tag"]["fresh"]), (&"600s".into(), &true.into()));
    assert!(seen["tag"]["next_check_at"].is_string() && seen["stored"]["fetched_at"].is_string(), "{seen:#}");

    assert!(said(&seen).contains(" blobs of it are stored, ") && said(&seen).contains(" KiB."), "{seen:#}");
    assert!(said(&seen).contains("(tags = \\\"10m\\\")"), "as the configuration has it: {seen:#}");
    let unnamed = admin(cistern.root(), Method::GET, "/api/v1/explain").await;
    unnamed.assert_fails(400);
    assert!(String::from_utf8_lossy(&unnamed.body).contains("?image=NAME is missing"), "{}", unnamed.summary());

    let seen = explain("multi%3A1").await;
    assert_eq!(seen["verdict"], "hit", "what was asked for of it is there: {seen:#}");

    let seen = explain("up%2Fnobody%3A1").await;
    assert_eq!(seen["verdict"], "miss");
    assert!(said(&seen).contains("Nothing is known of up/nobody:1"), "{seen:#}");

    assert!(admin(cistern.root(), Method::POST, "/api/v1/pins?name=up%2Fapp%3A1").await.complete());
    assert_eq!(explain("up%2Fapp%3A1").await["stored"]["pins"], json!(["up/app:1"]));
    assert!(admin(cistern.root(), Method::DELETE, "/api/v1/pins?name=up%2Fapp%3A1").await.complete());

    let names = "name=up%2Fapp&name=up%2Fmulti";
    assert!(admin(cistern.root(), Method::DELETE, &format!("/api/v1/images?{names}")).await.complete());
    let seen = explain("up%2Fapp%3A1").await;
    assert_eq!(seen["verdict"], "miss", "{seen:#}");
    assert_eq!(seen["stored"]["departed"]["why"], "removed", "{seen:#}");
    assert!(said(&seen).contains("was removed by an operator"), "{seen:#}");

    upstream.down();
    let mut seen = Value::Null;
    for _ in 0..20 {
        let _ = cistern.get("/v2/app/manifests/1").await;
        seen = explain("up%2Fapp%3A1").await;
        if seen["verdict"] == "unavailable" {
            break;
        }
    }
    assert!(said(&seen).contains("cannot be asked now"), "{seen:#}");
}

/// Connections that one client opens, of which some may be refused; how many were answered.
async fn sit_down(address: std::net::SocketAddr, connections: &mut Vec<TcpStream>) -> usize {
    let mut answered = 0;
    for _ in 0..63 {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let asked = stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
        let mut first = [0; 1];
        // A refused one is closed, or reset where it has said something already.
        let said = patiently("an answer or an end", stream.read(&mut first)).await;
        answered += usize::from(asked.is_ok() && said.is_ok_and(|bytes| bytes > 0));
        connections.push(stream);
    }
    answered
}

#[tokio::test]
async fn who_sits_on_the_admin_address_locks_out_neither_commands_nor_others() {
    let cistern = Cistern::setup().start().await;
    let mut sitting = Vec::new();
    let answered = sit_down(cistern.admin_address(), &mut sitting).await;
    assert_eq!(answered, 16, "what one address may have");
    // The next in line, who would take each place that becomes free.
    for _ in 0..8 {
        sitting.push(TcpStream::connect(cistern.admin_address()).await.unwrap());
    }
    for _ in 0..3 {
        let health = patiently("an answer on the socket", admin(cistern.root(), Method::GET, "/healthz")).await;
        assert_eq!(health.status, 200, "{}", health.summary());
    }
    drop(sitting);
    eventually("one who comes later is served", || async {
        Client(cistern.admin_address()).get("/readyz").await.status == 200
    })
    .await;
}

#[tokio::test]
async fn nothing_of_it_is_on_the_listeners_of_clients() {
    let (cistern, ..) = busy().await;
    let document = document();
    let mut paths: Vec<String> = document["paths"].as_object().unwrap().keys().cloned().collect();
    paths.extend(["/", "/favicon.svg", "/metrics", "/healthz", "/readyz"].map(ToOwned::to_owned));
    let index = admin(cistern.root(), Method::GET, "/").await;
    let index = std::str::from_utf8(&index.body).unwrap();
    let parts: Vec<String> =
        index.split('"').filter(|text| text.starts_with("/dashboard/")).map(ToOwned::to_owned).collect();
    assert!(parts.len() >= 2, "the page has a style and a script: {parts:?}");
    paths.extend(parts);
    for path in paths {
        // Else it would say nothing that it is not here.
        let there = admin(cistern.root(), Method::HEAD, &path).await;
        assert_ne!(there.status, 404, "{path} is not even there");
        for method in [Method::GET, Method::HEAD, Method::POST, Method::DELETE] {
            let got = cistern.send(Ask::new(method.clone(), path.clone())).await;
            assert!([404, 405].contains(&got.status), "{method} {path}: {}", got.summary());
            assert_eq!(got.header("docker-distribution-api-version"), "registry/2.0", "{method} {path}");
            assert!(got.headers.get(WWW_AUTHENTICATE).is_none(), "{method} {path}");
        }
    }
}
