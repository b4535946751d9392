//! Tag lists, referrers and the catalog.

use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderName, LINK};
use http::request::Parts;
use http::{HeaderValue, Method, Response};

use super::App;
use super::explain::explain;
use super::record::Served;
use super::respond::{Body, Failure, empty, full};
use super::route::Route;
use crate::cache::{Found, List, Target};
use crate::metrics::{Kind, Source};
use crate::oci::{Digest, RepoName};

const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");
const FILTERS_APPLIED: HeaderName = HeaderName::from_static("oci-filters-applied");

/// `NAME/tags/list`.
pub(super) async fn tags(
    app: &App,
    route: &Route,
    repo: &RepoName,
    request: &Parts,
) -> Result<Response<Body>, Failure> {
    let target = Target { upstream: route.upstream.clone(), repo: repo.clone() };
    let list = app.cache.tags(&target, &route.query).await;
    list.map(|list| respond(route, request, list)).map_err(|error| explain(error, Kind::Tags))
}

/// `NAME/referrers/DIGEST`.
pub(super) async fn referrers(
    app: &App,
    route: &Route,
    repo: &RepoName,
    subject: &Digest,
    request: &Parts,
) -> Result<Response<Body>, Failure> {
    let target = Target { upstream: route.upstream.clone(), repo: repo.clone() };
    let list = app.cache.referrers(&target, subject, &route.query).await;
    list.map(|list| respond(route, request, list)).map_err(|error| explain(error, Kind::Referrers))
}

/// `_catalog`.
pub(super) async fn catalog(app: &App, route: &Route, request: &Parts) -> Result<Response<Body>, Failure> {
    let list = app.cache.catalog(&route.upstream, &route.query).await;
    list.map(|list| respond(route, request, list)).map_err(|error| explain(error, Kind::Other))
}

fn respond(route: &Route, request: &Parts, list: List) -> Response<Body> {
    let length = list.body.len();
    let mut response = Response::new(if request.method == Method::HEAD { empty() } else { full(list.body) });
    let headers = response.headers_mut();
    headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    headers.insert(CACHE_STATUS, HeaderValue::from_static(list.status.as_header()));
    let mut insert = |name: HeaderName, value: Option<String>| {
        if let Some(value) = value.and_then(|value| HeaderValue::try_from(value).ok()) {
            headers.insert(name, value);
        }
    };
    insert(CONTENT_TYPE, Some(list.content_type));
    insert(FILTERS_APPLIED, list.filters_applied);
    insert(LINK, list.link.and_then(|link| local_link(route, &link)));
    let source = if list.status.found == Found::Stale { Source::Cache } else { Source::Fill };
    response.extensions_mut().insert(Served { outcome: list.status.outcome(), source });
    response
}

/// Upstream's `Link: <…>; rel="next"` for this client: relative, in the form of address that it used. Az keeps only
/// the query, others the whole path. None if it leads elsewhere than to the registry API.
fn local_link(route: &Route, link: &str) -> Option<String> {
    let (target, parameters) = link.strip_prefix('<')?.split_once('>')?;
    let path = match target.split_once("://") {
        // Absolute: the authority is upstream's, and none of the client's business.
        Some((_, rest)) => rest.get(rest.find('/')?..)?,
        None => target,
    };
    // A registry behind a path, or a relative reference: what counts starts at /v2/.
    let path = path.get(path.find("/v2/")?..)?;
    Some(format!("<{}>{parameters}", route.local_target(path)?))
}
