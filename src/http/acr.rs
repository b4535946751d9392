//! `/acr/v1/…`: what Azure's registry has beside the specification, passed through.
//!
//! Nothing of it is cached. What is deleted or untagged by it is forgotten here too.

use http::header::{CONTENT_LENGTH, CONTENT_TYPE, LINK};
use http::{HeaderValue, Method, Response};
use http_body_util::{BodyExt as _, Limited};
use tokio::time::{Duration, Instant, timeout};

use super::Visit;
use super::body::Body;
use super::inbound::Inbound;
use super::lists::local_link;
use super::relayed;
use super::respond::Failure;
use super::route::{Acr, AcrItem};
use crate::cache::{Doomed, Said};
use crate::metrics::Kind;
use crate::oci::{ErrorCode, Reference};
use crate::upstream::{Call, CallBody, CallTarget};

/// Time for upstream's answer: az waits for five minutes.
const ANSWER_WITHIN: Duration = Duration::from_mins(2);
/// The longest body: attributes, or the name of a tag.
const MAX_BODY: usize = 64 * 1024;
const JSON: HeaderValue = HeaderValue::from_static("application/json; charset=utf-8");

/// GET and HEAD.
pub(super) async fn read(visit: &Visit<'_>, resource: &Acr) -> Result<Response<Body>, Failure> {
    let call = call(visit, resource);
    match visit.asked.app.cache.relay(&visit.route.upstream, call).await.and_then(Said::into_success) {
        Ok(said) => answer(visit, said),
        Err(error) => visit.answer_to(error, Kind::Other),
    }
}

/// PATCH, DELETE and POST.
pub(super) async fn write(visit: &Visit<'_>, resource: &Acr, body: Inbound) -> Result<Response<Body>, Failure> {
    let cache = &visit.asked.app.cache;
    let mut call = call(visit, resource);
    let bytes = timeout(ANSWER_WITHIN, Limited::new(body, MAX_BODY).collect()).await;
    let bytes = bytes.ok().and_then(Result::ok).ok_or_else(unreadable)?.to_bytes();
    call.body = if bytes.is_empty() { CallBody::Empty } else { CallBody::Bytes(bytes) };
    let written = match (doomed(visit, resource), resource.repo.as_ref()) {
        (Some(doomed), Some(repo)) => cache.delete(&visit.target(repo), doomed, call).await,
        _ => cache.relay(&visit.route.upstream, call).await.and_then(Said::into_success),
    };
    match written {
        Ok(said) => answer(visit, said),
        Err(error) => visit.answer_to(error, Kind::Other),
    }
}

/// What the request removes, or brings back.
fn doomed(visit: &Visit<'_>, resource: &Acr) -> Option<Doomed> {
    match (&visit.asked.parts.method, &resource.item) {
        (&Method::PATCH, _) | (_, AcrItem::Catalog) => None,
        _ if resource.deleted => Some(Doomed::Restored),
        (_, AcrItem::Tag(tag)) => Some(Doomed::Tag(tag.clone())),
        (_, AcrItem::Manifest(digest)) => Some(Doomed::Manifest(Reference::Digest(*digest))),
        (_, AcrItem::Repository | AcrItem::Tags | AcrItem::Manifests) => Some(Doomed::Repository),
    }
}

fn call(visit: &Visit<'_>, resource: &Acr) -> Call {
    let query = &visit.route.query;
    let path = if query.is_empty() { resource.to_string() } else { format!("{resource}?{query}") };
    let method = visit.asked.parts.method.clone();
    let mut call = Call::new(Kind::Other, method, CallTarget::Path(path), visit.caller.right.clone())
        .with_deadline(Instant::now() + ANSWER_WITHIN);
    call.repo.clone_from(&resource.repo);
    if let AcrItem::Tag(tag) = &resource.item {
        call.tag = Some(tag.clone());
    }
    call.bare = matches!(visit.asked.parts.method, Method::GET | Method::HEAD) && visit.leaves_challenges();
    call.headers = visit.passed_on();
    call
}

/// Upstream's answer: the same but for where its links lead.
fn answer(visit: &Visit<'_>, said: Said) -> Result<Response<Body>, Failure> {
    if said.is_cut {
        return Err(Failure::new(
            http::StatusCode::BAD_GATEWAY,
            ErrorCode::Unknown,
            format!("upstream {} broke its answer off, or it is too long", visit.route.upstream),
        ));
    }
    let length = said.body.len();
    let is_head = visit.asked.parts.method == Method::HEAD;
    let mut response = Response::new(if is_head { Body::empty() } else { Body::full(said.body) });
    *response.status_mut() = said.status;
    let headers = response.headers_mut();
    headers.extend(relayed::chosen(&said.headers));
    if !is_head && said.status != http::StatusCode::NO_CONTENT {
        headers.insert(CONTENT_LENGTH, length.into());
    }
    if length > 0 {
        headers.insert(CONTENT_TYPE, said.headers.get(CONTENT_TYPE).cloned().unwrap_or(JSON));
    }
    let link = said.headers.get(LINK).and_then(|link| local_link(visit.route, link.to_str().ok()?));
    if let Some(link) = link.and_then(|link| HeaderValue::try_from(link).ok()) {
        headers.insert(LINK, link);
    }
    Ok(relayed::written(response))
}

fn unreadable() -> Failure {
    let message = format!("the body broke off, or is longer than {MAX_BODY} bytes");
    Failure::bad_request(ErrorCode::Unsupported, message).closing()
}
