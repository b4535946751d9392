//! GET and HEAD of manifests and blobs.

use http::request::Parts;
use http::{HeaderValue, Method, Response};

use super::App;
use super::access::is_own_account;
use super::explain::explain;
use super::represent::{Payload, Representation};
use super::respond::{Body, Failure};
use super::route::Route;
use crate::cache::{BlobSource, Target, Want};
use crate::metrics::Kind;
use crate::oci::{Digest, Reference, RepoName};
use crate::upstream::Right;

const OCTETS: HeaderValue = HeaderValue::from_static("application/octet-stream");

/// `NAME/manifests/REFERENCE`.
pub(super) async fn manifest(
    app: &App,
    route: &Route,
    repo: &RepoName,
    reference: &Reference,
    request: &Parts,
) -> Result<Response<Body>, Failure> {
    let want = if request.method == Method::HEAD { Want::Description } else { Want::Bytes };
    let found = app.cache.manifest(&target(app, route, repo), reference, want).await;
    let found = found.map_err(|error| explain(error, Kind::Manifest))?;
    let representation = Representation {
        digest: found.digest,
        content_type: HeaderValue::from_str(&found.media_type).unwrap_or(OCTETS),
        length: Some(found.size),
        payload: found.bytes.map_or(Payload::None, Payload::Bytes),
        status: found.status,
    };
    representation.respond(request)
}

/// `NAME/blobs/DIGEST`.
pub(super) async fn blob(
    app: &App,
    route: &Route,
    repo: &RepoName,
    digest: &Digest,
    request: &Parts,
) -> Result<Response<Body>, Failure> {
    let target = target(app, route, repo);
    let found = if request.method == Method::HEAD {
        app.cache.describe_blob(&target, digest, Want::Description).await
    } else {
        app.cache.blob(&target, digest).await
    };
    let found = found.map_err(|error| explain(error, Kind::Blob))?;
    let (length, payload) = match found.source {
        BlobSource::Content(content) => (content.length(), Payload::Content(content)),
        BlobSource::Bypass(bypass) => (bypass.length(), Payload::Bypass(bypass)),
        BlobSource::Described { length } => (length, Payload::None),
    };
    let representation =
        Representation { digest: *digest, content_type: OCTETS, length, payload, status: found.status };
    representation.respond(request)
}

/// The repository, and by whose right it is asked for: until callers are known, by that of the configuration.
pub(super) fn target(app: &App, route: &Route, repo: &RepoName) -> Target {
    Target { upstream: route.upstream.clone(), repo: repo.clone(), right: right(app, route) }
}

/// By whose right upstream is asked: until callers are known, by that of the configuration.
pub(super) fn right(app: &App, route: &Route) -> Right {
    let own_account = app.config.upstreams.get(&route.upstream).is_some_and(|upstream| is_own_account(upstream));
    if own_account { Right::Shared } else { Right::Anonymous }
}
