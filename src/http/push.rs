//! Writes: what is put and deleted, and where uploads and Azure's own interface begin.
//!
//! Who may write at all, and by whose right, was decided before ([`super::caller`]).

use http::header::{ALLOW, CONTENT_TYPE, HeaderName};
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode};
use http_body_util::BodyExt as _;

use super::Visit;
use super::body::Body;
use super::inbound::Inbound;
use super::respond::Failure;
use super::route::Endpoint;
use super::uploads::{empty, parameters};
use super::{acr, relayed, uploads};
use crate::cache::Put;
use crate::metrics::Kind;
use crate::oci::{Digest, ErrorCode, Reference, RepoName, Tag};

/// Fields of clients' requests that go upstream with a write.
const CHOSEN: [HeaderName; 3] =
    [CONTENT_TYPE, HeaderName::from_static("x-meta-source-client"), HeaderName::from_static("x-ms-client-request-id")];

// === impl Visit ===

impl Visit<'_> {
    /// Anything but a pull.
    pub(super) async fn write(&self, body: Inbound) -> Result<Response<Body>, Failure> {
        let method = &self.asked.parts.method;
        match &self.route.endpoint {
            Endpoint::Uploads(repo) if *method == Method::POST => Box::pin(uploads::begin(self, repo, body)).await,
            Endpoint::Upload(repo, state) if *method != Method::POST => {
                Box::pin(uploads::go_on(self, repo, state, body)).await
            }
            Endpoint::Manifest(repo, reference) if *method == Method::PUT => {
                put_manifest(self, repo, reference, body).await
            }
            Endpoint::Manifest(repo, reference) if *method == Method::DELETE => {
                delete_manifest(self, repo, reference).await
            }
            Endpoint::Blob(repo, digest) if *method == Method::DELETE => delete_blob(self, repo, digest).await,
            Endpoint::Acr(resource) => acr::write(self, resource, body).await,
            endpoint => Err(not_taken(endpoint)),
        }
    }

    /// The fields of the request that go upstream.
    pub(super) fn passed_on(&self) -> HeaderMap {
        let sent = &self.asked.parts.headers;
        CHOSEN.iter().filter_map(|name| Some((name.clone(), sent.get(name)?.clone()))).collect()
    }
}

/// The answer to a method that the resource does not take.
pub(super) fn not_taken(endpoint: &Endpoint) -> Failure {
    let methods = match endpoint {
        Endpoint::Manifest(..) => "GET, HEAD, PUT, DELETE",
        Endpoint::Blob(..) => "GET, HEAD, DELETE",
        Endpoint::Uploads(_) => "POST",
        Endpoint::Upload(..) => "GET, HEAD, PATCH, PUT, DELETE",
        Endpoint::Acr(_) => "GET, HEAD, PATCH, POST, DELETE",
        Endpoint::Catalog | Endpoint::Tags(_) | Endpoint::Referrers(..) => "GET, HEAD",
    };
    Failure::method("this resource does not take that method").with_header(ALLOW, HeaderValue::from_static(methods))
}

/// `PUT NAME/manifests/REFERENCE`.
async fn put_manifest(
    visit: &Visit<'_>,
    repo: &RepoName,
    reference: &Reference,
    body: Inbound,
) -> Result<Response<Body>, Failure> {
    let tags: Result<Vec<Tag>, _> = parameters(&visit.route.query, "tag").map(|tag| tag.parse()).collect();
    let invalid = |error| Failure::bad_request(ErrorCode::ManifestInvalid, format!("the parameter `tag` is {error}"));
    let put = Put {
        target: visit.target(repo),
        reference: reference.clone(),
        tags: tags.map_err(invalid)?,
        headers: visit.passed_on(),
        body: body.boxed_unsync(),
    };
    match visit.asked.app.cache.put_manifest(put).await {
        Ok((said, digest)) => visit.created_at(&format!("/v2/{repo}/manifests/{digest}"), &digest, &said),
        Err(error) => visit.answer_to(error, Kind::Manifest),
    }
}

/// `DELETE NAME/manifests/REFERENCE`.
async fn delete_manifest(visit: &Visit<'_>, repo: &RepoName, reference: &Reference) -> Result<Response<Body>, Failure> {
    let cache = &visit.asked.app.cache;
    match cache.delete_manifest(&visit.target(repo), reference).await {
        Ok(said) => Ok(done(said.status, &said.headers)),
        Err(error) => visit.answer_to(error, Kind::Manifest),
    }
}

/// `DELETE NAME/blobs/DIGEST`.
async fn delete_blob(visit: &Visit<'_>, repo: &RepoName, digest: &Digest) -> Result<Response<Body>, Failure> {
    match visit.asked.app.cache.delete_blob(&visit.target(repo), digest).await {
        Ok(said) => Ok(done(said.status, &said.headers)),
        Err(error) => visit.answer_to(error, Kind::Blob),
    }
}

fn done(status: StatusCode, headers: &HeaderMap) -> Response<Body> {
    let mut response = empty(status);
    response.headers_mut().extend(relayed::chosen(headers));
    relayed::written(response)
}
