//! Sealed: upstream is asked nothing, whatever is asked here; what was missing is known, and what would be missing too.

use std::path::Path;
use std::process::{Output, Stdio};

use crate::common::content::{blob, image, sha256};
use crate::common::invariants::{blob_path, check};
use crate::common::upstream::Auth;
use crate::common::{Ask, Cistern, Image, Upstream};
use bytes::Bytes;
use ocistern::oci::{Digest, media};
use serde_json::{Value, json};

/// Runs the program on a root.
async fn ocistern(root: &Path, arguments: &[&str]) -> Output {
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_ocistern"));
    command.args(arguments).arg("--root").arg(root).env_clear().env("HOME", "/nonexistent");
    command.stdin(Stdio::null()).output().await.unwrap()
}

async fn says(root: &Path, arguments: &[&str], code: i32) -> String {
    let output = ocistern(root, arguments).await;
    let text = String::from_utf8(output.stdout).unwrap() + &String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {text}");
    text
}

async fn json_of(root: &Path, arguments: &[&str], code: i32) -> Value {
    let arguments: Vec<&str> = arguments.iter().copied().chain(["--json"]).collect();
    serde_json::from_str(&says(root, &arguments, code).await).unwrap()
}

async fn pull(cistern: &Cistern, repo: &str, reference: &str, image: &Image) {
    cistern.get(format!("/v2/{repo}/manifests/{reference}")).await.assert_is(&image.manifest);
    for part in image.layers.iter().chain([&image.config]) {
        cistern.get(format!("/v2/{repo}/blobs/{}", sha256(part))).await.assert_is(part);
    }
}

/// Requests of every kind about a repository: for what is there, and for what is not.
fn everything(repo: &str, known: &Image) -> Vec<Ask> {
    let (layer, digest) = (sha256(&known.layers[0]), known.digest);
    let (absent, new) = (sha256(b"absent"), image(77));
    let path = |rest: String| format!("/v2/{repo}/{rest}");
    let mut asks = Vec::new();
    for reference in ["latest".to_owned(), "none".to_owned(), digest.to_string(), absent.to_string()] {
        let target = path(format!("manifests/{reference}"));
        asks.extend([
            Ask::get(&target),
            Ask::head(&target),
            Ask::get(&target).basic("user", "password"),
            Ask::head(&target).basic("user", "password"),
            Ask::delete(&target).basic("user", "password"),
            Ask::put(&target).with("content-type", new.media_type).body(new.manifest.clone()).basic("user", "password"),
        ]);
    }
    for digest in [layer, absent] {
        let target = path(format!("blobs/{digest}"));
        asks.extend([
            Ask::get(&target),
            Ask::get(&target).with("range", "bytes=1-2"),
            Ask::get(&target).with("range", "bytes=-2"),
            Ask::head(&target),
            Ask::head(&target).basic("user", "password"),
            Ask::delete(&target).basic("user", "password"),
            Ask::get(path(format!("referrers/{digest}"))),
            Ask::get(path(format!("referrers/{digest}?artifactType=x%2Fy"))),
        ]);
    }
    let scope = format!("scope=repository:{repo}:pull,push");
    asks.extend([
        Ask::get(path("tags/list".to_owned())),
        Ask::get(path("tags/list?n=1".to_owned())).basic("user", "password"),
        Ask::post(path("blobs/uploads/".to_owned())).basic("user", "password"),
        Ask::post(path(format!("blobs/uploads/?digest={absent}"))).body("absent").basic("user", "password"),
        Ask::post(path(format!("blobs/uploads/?mount={absent}&from=other"))).basic("user", "password"),
        Ask::get(format!("/oauth2/token?service=x&{scope}")),
        Ask::get(format!("/oauth2/token?service=x&{scope}")).basic("user", "password"),
        Ask::post("/oauth2/token").form(&format!("grant_type=password&username=user&password=x&service=x&{scope}")),
        Ask::get(format!("/acr/v1/{repo}/_tags")).basic("user", "password"),
        Ask::get(format!("/acr/v1/{repo}/_tags/latest")).basic("user", "password"),
        Ask::delete(format!("/acr/v1/{repo}/_tags/latest")).basic("user", "password"),
        Ask::delete(format!("/acr/v1/{repo}")).basic("user", "password"),
    ]);
    asks
}

/// Those about the upstream as a whole.
fn of_the_whole() -> Vec<Ask> {
    vec![
        Ask::get("/v2/"),
        Ask::get("/v2/").basic("user", "password"),
        Ask::get("/v2/_catalog"),
        Ask::get("/acr/v1/_catalog").basic("user", "password"),
        Ask::post("/oauth2/exchange").form("grant_type=access_token&service=x&access_token=y"),
    ]
}

/// The name of the upstream has to be resolved before it can be asked, and each attempt to send counts, also one that ends
/// there; the listener behind it counts connections.
#[tokio::test]
async fn nothing_is_asked_of_a_sealed_upstream() {
    let (upstream, image) = (Upstream::start().await, image(1));
    upstream.image("app", "latest", &image);
    let by_name = format!("http://localhost:{}", upstream.port());
    let setup = Cistern::setup().upstream_at("up", &by_name, "tags = \"always\"").upstream_at(
        "nowhere",
        "http://no-such-host.invalid",
        "",
    );
    let mut cistern = setup.start().await;
    let attempts = async |cistern: &Cistern| cistern.metric("ocistern_upstream_requests_total", &[]).await;
    pull(&cistern, "app", "latest", &image).await;
    cistern.get("/v2/nowhere/x/manifests/1").await.assert_fails(502);
    assert!(cistern.metric("ocistern_upstream_requests_total", &["upstream=\"nowhere\""]).await > 0, "the trap works");
    assert!(upstream.connections() > 0, "this one too");
    cistern.settle().await;
    for name in ["up", "nowhere"] {
        cistern.configure(name, "tags = \"sealed\"");
    }
    cistern.restart().await;
    let before = upstream.connections();
    for ask in everything("app", &image).into_iter().chain(of_the_whole()) {
        let got = cistern.send(ask.clone()).await;
        assert!(got.status < 500 || got.status == 503, "{ask:?}: {}: {:?}", got.summary(), got.body);
    }
    cistern.get("/v2/nowhere/x/manifests/1").await.assert_fails(404);
    assert_eq!(upstream.connections(), before, "{:?}", upstream.log());
    assert_eq!(attempts(&cistern).await, 0, "{}", cistern.metrics().await);
    pull(&cistern, "app", "latest", &image).await;
    check(&cistern).await;
}

const CLOSED: &str = "[[upstream.up.rule]]\nrepository = \"closed/**\"\ntags = \"sealed\"\n\
                      [[upstream.up.rule]]\nrepository = \"half\"\ntag = \"v*\"\ntags = \"sealed\"\n";

/// An upstream that wants a token from everybody, and an ocistern that knows three of its repositories and is closed to one of
/// them, and to tags of another.
async fn half_closed() -> (Cistern, Upstream, Image) {
    let (upstream, image) = (Upstream::start().await, image(1));
    upstream.registry(|registry| registry.auth = Auth::Bearer(None));
    for (repo, tag) in [("closed/app", "latest"), ("half", "v1"), ("half", "latest"), ("open", "latest")] {
        upstream.image(repo, tag, &image);
    }
    let mut cistern = Cistern::setup().upstream("up", &upstream, "tags = \"always\"").start().await;
    for (repo, tag) in [("closed/app", "latest"), ("half", "v1"), ("half", "latest"), ("open", "latest")] {
        pull(&cistern, repo, tag, &image).await;
    }
    cistern.settle().await;
    cistern.reload(|setup| setup.extra(CLOSED)).await.unwrap();
    upstream.forget();
    (cistern, upstream, image)
}

#[tokio::test]
async fn a_rule_closes_a_repository() {
    let (cistern, upstream, image) = half_closed().await;
    for ask in everything("closed/app", &image) {
        let got = cistern.send(ask.clone()).await;
        assert!(got.status < 500 || got.status == 503, "{ask:?}: {}: {:?}", got.summary(), got.body);
    }
    let about: Vec<_> =
        upstream.log().into_iter().filter(|entry| format!("{:?}", entry.request).contains("closed")).collect();
    assert!(about.is_empty(), "{about:?}");
    pull(&cistern, "closed/app", "latest", &image).await;
    let both = "/oauth2/token?service=x&scope=repository:closed/app:pull&scope=repository:open:pull";
    assert_eq!(cistern.send(Ask::get(both).basic("user", "password")).await.status / 100, 2);
    assert!(upstream.log().iter().all(|entry| !format!("{:?}", entry.request).contains("closed")));
    // The others are asked as before.
    cistern.get("/v2/open/manifests/latest").await.assert_is(&image.manifest);
    assert!(upstream.count("HEAD", "/v2/open/manifests/latest") > 0);
    check(&cistern).await;
}

#[tokio::test]
async fn a_rule_closes_tags() {
    let (cistern, upstream, image) = half_closed().await;
    for (tag, method) in [("v1", "GET"), ("v1", "HEAD"), ("v2", "GET"), ("v2", "HEAD"), ("v1", "DELETE"), ("v1", "PUT")]
    {
        let target = format!("/v2/half/manifests/{tag}");
        let ask = match method {
            "GET" => Ask::get(target),
            "HEAD" => Ask::head(target).basic("user", "password"),
            "DELETE" => Ask::delete(target).basic("user", "password"),
            _ => Ask::put(target)
                .with("content-type", image.media_type)
                .body(image.manifest.clone())
                .basic("user", "password"),
        };
        let status = cistern.send(ask).await.status;
        let wanted: &[u16] = match (tag, method) {
            (_, "DELETE" | "PUT") => &[401, 403],
            ("v1", _) => &[200],
            _ => &[404],
        };
        assert!(wanted.contains(&status), "{method} {tag}: {status}");
    }
    assert_eq!(upstream.count("*", "/v2/half/manifests/v*"), 0, "{:?}", upstream.log());
    cistern.get("/v2/half/manifests/v1").await.assert_is(&image.manifest);
    // What is asked for by digest, and under other tags, is asked for.
    cistern.get("/v2/half/manifests/latest").await.assert_is(&image.manifest);
    assert!(upstream.count("HEAD", "/v2/half/manifests/latest") > 0);
    let new = blob(5, 1000);
    upstream.blob("half", &new);
    cistern.get(format!("/v2/half/blobs/{}", sha256(&new))).await.assert_is(&new);
    check(&cistern).await;
}

/// An ocistern that has a part of `app:multi` and all of `app:one`, and is sealed.
async fn gapped() -> (Cistern, Upstream, [Image; 2], Bytes) {
    let (upstream, images) = (Upstream::start().await, [image(1), image(2)]);
    let list: Bytes = format!(
        r#"{{"schemaVersion":2,"mediaType":"{}","manifests":[{}]}}"#,
        media::OCI_INDEX,
        images
            .iter()
            .zip(["amd64", "arm64"])
            .map(|(image, architecture)| format!(
                r#"{{"mediaType":"{}","digest":"{}","size":{},"platform":{{"os":"linux","architecture":"{architecture}"}}}}"#,
                image.media_type,
                image.digest,
                image.manifest.len()
            ))
            .collect::<Vec<_>>()
            .join(",")
    )
    .into();
    for image in &images {
        upstream.image("app", "x", image);
    }
    upstream.image("app", "one", &images[0]);
    let digest = upstream.manifest("app", media::OCI_INDEX, &list);
    upstream.tag("app", "multi", digest);
    upstream.image("app", "later", &image(3));
    let mut cistern = Cistern::start(&upstream, "").await;
    pull(&cistern, "app", "one", &images[0]).await;
    cistern.get("/v2/app/manifests/multi").await.assert_is(&list);
    cistern.settle().await;
    cistern.configure("up", "tags = \"sealed\"");
    cistern.restart().await;
    (cistern, upstream, images, list)
}

fn by_digest(kind: &str, digest: &Digest) -> String {
    format!("/v2/app/{kind}/{digest}")
}

#[tokio::test]
async fn what_was_missing_is_known_by_the_names_of_images() {
    let (mut cistern, upstream, [_, arm], _) = gapped().await;
    let got = cistern.get("/v2/app/manifests/later").await;
    got.assert_fails(404);
    assert_eq!(got.error_code(), "MANIFEST_UNKNOWN");
    let message = got.json()["errors"][0]["message"].as_str().unwrap().to_owned();
    for words in ["sealed", "up/app:later", "`ocistern missed`", "docs/troubleshooting.md"] {
        assert!(message.contains(words), "{message}");
    }
    assert_eq!(cistern.head("/v2/app/manifests/later").await.status, 404);
    cistern.get(by_digest("manifests", &arm.digest)).await.assert_fails(404);
    let stray = sha256(b"stray");
    let got = cistern.get(by_digest("blobs", &stray)).await;
    got.assert_fails(404);
    assert_eq!(got.error_code(), "BLOB_UNKNOWN");
    let signature = format!("/v2/app/manifests/sha256-{}.sig", arm.digest.hex());
    cistern.get(&signature).await.assert_fails(404);
    cistern.get("/v2/app/tags/list").await.assert_fails(404);
    cistern.get("/v2/app/manifests/one").await;
    for (kind, count) in [("manifest", 4), ("blob", 1), ("tags", 1)] {
        let labels = format!("kind=\"{kind}\"");
        assert_eq!(
            cistern.metric("ocistern_sealed_misses_total", &["upstream=\"up\"", &labels]).await,
            count,
            "{kind}"
        );
    }
    let root = cistern.root().to_owned();
    let of = |answer: &Value| {
        let rows = answer["missed"].as_array().unwrap().iter();
        rows.map(|row| (row["reference"].as_str().unwrap().to_owned(), row["kind"].clone(), row["asked"].clone()))
            .collect::<Vec<_>>()
    };
    let wanted = vec![
        ("up/app:later".to_owned(), json!("tag"), json!(2)),
        ("up/app:multi".to_owned(), json!("manifest"), json!(1)),
        (format!("up/app:sha256-{}.sig", arm.digest.hex()), json!("referrer"), json!(1)),
        (format!("up/app@{stray}"), json!("blob"), json!(1)),
    ];
    let answer = json_of(&root, &["missed"], 0).await;
    assert_eq!(of(&answer), wanted, "{answer:#}");
    assert_eq!(
        (&answer["missed"][1]["missing"], &answer["missed"][1]["platforms"]),
        (&json!([arm.digest]), &json!(["linux/arm64"]))
    );
    // It is there for the next run, and for a command without one.
    cistern.stop().await;
    assert_eq!(of(&json_of(&root, &["missed"], 0).await), wanted);
    cistern.start_again().await;
    let text = says(&root, &["missed"], 0).await;
    let list: Vec<&str> = text
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| line.split("  #").next().unwrap().trim())
        .collect();
    // A blob alone is nothing that could be fetched as an image.
    assert_eq!(list, ["up/app:later", "up/app:multi"], "{text}");
    assert!(text.contains(&format!("# up/app@{stray}")), "{text}");
    // What has come is not missing any more.
    cistern.configure("up", "");
    cistern.restart().await;
    cistern.get("/v2/app/manifests/later").await;
    cistern.get(by_digest("manifests", &arm.digest)).await.assert_is(&arm.manifest);
    cistern.settle().await;
    assert_eq!(of(&json_of(&root, &["missed"], 0).await), wanted[2..]);
    // Who clears it is told what it was, and it stays cleared.
    assert_eq!(of(&json_of(&root, &["missed", "--clear"], 0).await), wanted[2..]);
    cistern.restart().await;
    assert_eq!(says(&root, &["missed"], 0).await, "# nothing was asked for that is not in the store\n");
    drop(upstream);
    check(&cistern).await;
}

/// Names that nobody has are no reason to forget what others have asked for, nor for the list to grow.
#[tokio::test]
async fn names_that_are_made_up_do_not_push_out_others() {
    let (cistern, _upstream, ..) = gapped().await;
    cistern.get("/v2/app/manifests/later").await.assert_fails(404);
    for n in 0..4200 {
        let target = format!("/v2/made/up-{n}/manifests/1");
        let got = cistern.client().send_from("127.0.0.9".parse().unwrap(), Ask::get(target)).await;
        assert_eq!(got.status, 404);
    }
    let answer = json_of(cistern.root(), &["missed"], 0).await;
    let rows = answer["missed"].as_array().unwrap();
    assert_eq!((rows.len(), answer["forgotten"].as_u64()), (4096, Some(105)));
    assert!(rows.iter().any(|row| row["reference"] == "up/app:later"));
}

#[tokio::test]
async fn coverage_tells_beforehand() {
    let (mut cistern, _upstream, [_, arm], list) = gapped().await;
    let root = cistern.root().to_owned();
    for stopped in [false, true] {
        if stopped {
            cistern.stop().await;
        }
        let answer = json_of(&root, &["coverage", "up/app:one", "up/app:multi", "up/app:later"], 1).await;
        assert_eq!(answer["complete"], false);
        let extents: Vec<&Value> = answer["images"].as_array().unwrap().iter().map(|image| &image["extent"]).collect();
        assert_eq!(extents, ["complete", "incomplete", "unknown"], "{answer:#}");
        let multi = &answer["images"][1];
        assert_eq!(multi["digest"], sha256(&list).to_string());
        assert_eq!(multi["platforms"], json!(["linux/amd64", "linux/arm64"]));
        assert_eq!((&multi["missing_blobs"], &multi["missing_bytes"]), (&json!(1), &json!(arm.manifest.len())));
        let missing =
            json!([{"digest": arm.digest, "kind": "manifest", "platform": "linux/arm64", "bytes": arm.manifest.len()}]);
        assert_eq!(multi["missing"], missing);
        // Of one platform all is there.
        let answer = json_of(&root, &["coverage", "up/app:multi", "--platform", "linux/amd64"], 0).await;
        assert_eq!((&answer["complete"], &answer["images"][0]["extent"]), (&json!(true), &json!("complete")));
        let answer = json_of(&root, &["coverage", "up/app:multi", "--platform", "linux/s390x"], 1).await;
        assert_eq!(answer["images"][0]["not_offered"], json!(["linux/s390x"]));
        let file = root.parent().unwrap().join("list");
        std::fs::write(&file, "# wanted\n\nup/app:one   # all of it\n").unwrap();
        let text = says(&root, &["coverage", "--file", file.to_str().unwrap()], 0).await;
        assert!(text.contains("up/app:one") && text.contains("complete"), "{text}");
        std::fs::write(&file, "up/app:one\nup/app:later\n").unwrap();
        let text = says(&root, &["coverage", "--file", file.to_str().unwrap()], 1).await;
        assert!(text.contains("not known"), "{text}");
        std::fs::write(&file, "# nothing\n").unwrap();
        let text = says(&root, &["coverage", "--file", file.to_str().unwrap()], 64).await;
        assert!(text.contains("no image in the list"), "{text}");
        says(&root, &["coverage", "up/app:one", "--platform", "arm64"], 64).await;
        says(&root, &["coverage"], 64).await;
    }
    cistern.start_again().await;
    // A layer that is gone, and one that this name never had, would both be asked for.
    let layer = sha256(&image(1).layers[0]);
    std::fs::remove_file(blob_path(&cistern, &layer)).unwrap();
    let answer = json_of(&root, &["coverage", "up/app:one"], 1).await;
    assert_eq!(answer["images"][0]["missing"][0]["digest"], layer.to_string(), "{answer:#}");
    assert_eq!(answer["images"][0]["missing"][0]["kind"], "content");
    let elsewhere = format!("up/other@{}", image(1).digest);
    let answer = json_of(&root, &["coverage", &elsewhere], 1).await;
    assert_eq!(answer["images"][0]["extent"], "unknown");
}
