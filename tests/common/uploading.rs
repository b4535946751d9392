//! What tests of uploads do again and again: begin one, go on with it, and see that it has arrived.

use bytes::Bytes;
use ocistern::oci::Digest;

use super::cistern::Cistern;
use super::client::{Ask, Got};
use super::upstream::Upstream;

/// Where uploads to `app` begin.
pub const UPLOADS: &str = "/v2/app/blobs/uploads/";
/// Every request of an upload, upstream.
pub const ANY: &str = "*/blobs/uploads/*";

/// The address with the digest that closes the upload.
pub fn closing(location: &str, digest: &Digest) -> String {
    format!("{location}{}digest={digest}", if location.contains('?') { '&' } else { '?' })
}

/// Begins an upload: its address.
pub async fn begin(cistern: &Cistern, target: &str) -> String {
    let got = cistern.send(Ask::post(target)).await;
    assert_eq!(got.status, 202, "{got:?}");
    got.header("location").to_owned()
}

/// Where the upload goes on after this answer.
#[track_caller]
pub fn next(got: &Got, status: u16, range: &str) -> String {
    assert_eq!((got.status, got.header("range")), (status, range), "{}: {:?}", got.summary(), got.body);
    got.header("location").to_owned()
}

/// The blob is there.
#[track_caller]
pub fn assert_created(got: &Got, digest: &Digest) {
    assert_eq!(got.status, 201, "{}: {:?}", got.summary(), got.body);
    assert_eq!(got.header("docker-content-digest"), digest.to_string());
    assert_eq!(got.header("location"), format!("/v2/app/blobs/{digest}"));
    assert_eq!(got.header("content-length"), "0");
}

/// Upstream has it, and the next pull is a hit.
pub async fn assert_pushed(cistern: &Cistern, upstream: &Upstream, bytes: &Bytes, digest: &Digest) {
    let there = upstream.registry(|registry| registry.repos["app"].blobs.get(digest).cloned());
    assert_eq!(there.as_ref(), Some(bytes), "upstream has exactly what was pushed");
    let before = upstream.count("GET", "*/blobs/sha*");
    let got = cistern.get(format!("/v2/app/blobs/{digest}")).await;
    got.assert_is(bytes);
    assert_eq!(got.header("cache-status"), "ocistern; hit");
    assert_eq!(upstream.count("GET", "*/blobs/sha*"), before, "it was not asked for it");
}
