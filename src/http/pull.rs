//! GET and HEAD of manifests and blobs.

use std::sync::Arc;

use http::header::{IF_RANGE, RANGE};
use http::request::Parts;
use http::{Method, Response};

use super::Visit;
use super::body::Body;
use super::range::{self, First};
use super::represent::{Payload, Representation};
use super::respond::Failure;
use crate::cache::{BlobPart, BlobSource, Labels, Target, Want};
use crate::metrics::Kind;
use crate::oci::{Digest, Reference, RepoName};
use crate::store::Sought;

/// `NAME/manifests/REFERENCE`.
pub(super) async fn manifest(
    visit: &Visit<'_>,
    repo: &RepoName,
    reference: &Reference,
) -> Result<Response<Body>, Failure> {
    let request = visit.asked.parts;
    let want = if request.method == Method::HEAD { visit.head()? } else { Want::Bytes };
    let target = visit.target(repo);
    let found = visit.asked.app.cache.manifest(&target, reference, want).await;
    let sought = || match reference {
        Reference::Tag(tag) => Sought::Tag(tag.clone()),
        Reference::Digest(digest) => Sought::Manifest(*digest),
    };
    let found = found.map_err(|error| visit.missed(error, Kind::Manifest, &target, || Some(sought())))?;
    let representation = Representation {
        labels: Arc::unwrap_or_clone(found.labels),
        length: Some(found.size),
        payload: found.bytes.map_or(Payload::None, Payload::Bytes),
        status: found.status,
    };
    representation.respond(request, visit.asked.outlet)
}

/// `NAME/blobs/DIGEST`.
pub(super) async fn blob(visit: &Visit<'_>, repo: &RepoName, digest: &Digest) -> Result<Response<Body>, Failure> {
    let (request, cache) = (visit.asked.parts, &visit.asked.app.cache);
    let target = visit.target(repo);
    let found = if request.method == Method::HEAD {
        cache.describe_blob(&target, digest, visit.head()?).await
    } else {
        cache.blob(&target, digest, first_part(request, digest), visit.asked.party()).await
    };
    let found = found.map_err(|error| visit.missed(error, Kind::Blob, &target, || Some(Sought::Blob(*digest))))?;
    let (length, payload) = match found.source {
        BlobSource::Content(content) => (content.length(), Payload::Content(content)),
        BlobSource::Bypass(bypass) => (bypass.length(), Payload::Bypass(bypass)),
        BlobSource::Described { length } => (length, Payload::None),
    };
    let labels = Labels::of_blob(digest, length);
    let representation = Representation { labels, length, payload, status: found.status };
    representation.respond(request, visit.asked.outlet)
}

/// The part of a blob that a request wants first, by its header alone: how long the blob is may not be known.
fn first_part(request: &Parts, digest: &Digest) -> BlobPart {
    let first = range::first(request.headers.get(RANGE));
    // The tag is made where it is needed: most requests are for the whole.
    match first.filter(|_| range::if_range(request.headers.get(IF_RANGE), &format!("\"{digest}\""))) {
        None => BlobPart::Whole,
        Some(First::From(from)) => BlobPart::From(from, None),
        Some(First::Between(from, until)) => BlobPart::From(from, Some(until)),
        Some(First::Last(bytes)) => BlobPart::Last(bytes),
    }
}

// === impl Visit ===

impl Visit<'_> {
    /// What a HEAD is answered from.
    fn head(&self) -> Result<Want, Failure> {
        self.asked.upstream(&self.route.upstream).map(|upstream| self.caller.head(upstream))
    }

    /// The repository, and by whose right it is asked for.
    pub(super) fn target(&self, repo: &RepoName) -> Target {
        Target { upstream: self.route.upstream.clone(), repo: repo.clone(), right: self.caller.right.clone() }
    }
}
