//! Manifests and blobs.
use http::request::Parts;
use http::{Response, StatusCode};

use super::App;
use super::respond::{Body, Failure};
use super::route::Route;
use crate::oci::{Digest, ErrorCode, Reference, RepoName};

pub(super) async fn manifest(
    _: &App,
    _: &Route,
    _: &RepoName,
    _: &Reference,
    _: &Parts,
) -> Result<Response<Body>, Failure> {
    Err(Failure::new(StatusCode::NOT_IMPLEMENTED, ErrorCode::Unsupported, "not merged yet"))
}
pub(super) async fn blob(_: &App, _: &Route, _: &RepoName, _: &Digest, _: &Parts) -> Result<Response<Body>, Failure> {
    Err(Failure::new(StatusCode::NOT_IMPLEMENTED, ErrorCode::Unsupported, "not merged yet"))
}
