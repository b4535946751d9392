//! Tag lists, referrers, the catalog.
use http::request::Parts;
use http::{Response, StatusCode};

use super::App;
use super::respond::{Body, Failure};
use super::route::Route;
use crate::oci::{Digest, ErrorCode, RepoName};

pub(super) async fn tags(_: &App, _: &Route, _: &RepoName, _: &Parts) -> Result<Response<Body>, Failure> {
    Err(Failure::new(StatusCode::NOT_IMPLEMENTED, ErrorCode::Unsupported, "not merged yet"))
}
pub(super) async fn referrers(
    _: &App,
    _: &Route,
    _: &RepoName,
    _: &Digest,
    _: &Parts,
) -> Result<Response<Body>, Failure> {
    Err(Failure::new(StatusCode::NOT_IMPLEMENTED, ErrorCode::Unsupported, "not merged yet"))
}
pub(super) async fn catalog(_: &App, _: &Route, _: &Parts) -> Result<Response<Body>, Failure> {
    Err(Failure::new(StatusCode::NOT_IMPLEMENTED, ErrorCode::Unsupported, "not merged yet"))
}
