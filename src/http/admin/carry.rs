//! Images that are carried to another store or come from one: the bytes of blobs, and what leads to them.

use bytes::Bytes;
use futures_util::TryStreamExt as _;
use futures_util::stream::try_unfold;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderValue};
use http::{Method, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt as _, Limited, StreamBody};
use serde::{Deserialize, Serialize};

use super::super::body::{Body, BodyError};
use super::super::respond::{Failure, causes};
use super::api::{Api, Parameters, Resource, bad, failed, written};
use crate::bundle::Image;
use crate::oci::{Digest, ErrorCode};
use crate::store::{StoreError, Terms};

/// Longest description of an image that is taken: that of some ten thousand parts.
const MAX_IMAGE: usize = 32 << 20;
/// Bytes of a blob that are read at once.
const CHUNK: usize = 1 << 20;

/// What `POST /api/v1/imports` takes.
#[derive(Debug, Serialize, Deserialize)]
pub struct Import {
    /// The image.
    pub image: Image,
    /// On which terms.
    pub terms: Terms,
}

/// The answer to `PUT /api/v1/content`.
#[derive(Debug, Serialize, Deserialize)]
pub struct BlobKept {
    /// The blob.
    pub digest: Digest,
    /// Its length.
    pub size: u64,
}

/// The answer to `POST /api/v1/layout-index`.
#[derive(Debug, Serialize, Deserialize)]
pub struct LayoutIndex {
    /// How many manifests it names.
    pub manifests: usize,
}

// === impl Api ===

impl Api {
    /// The bytes of a blob, as they are: who carries them compares them with the digest.
    pub(super) async fn blob(&self, asked: &Parameters) -> Result<Response<Body>, Failure> {
        let digest = digest(asked)?;
        // No use: who carries all of it out every week would else have the order of eviction be the one of its exports.
        let Some(blob) = self.store().peek(&digest).await.map_err(failed)? else {
            let message = format!("{digest} is not in the store (any more)");
            return Err(Failure::new(StatusCode::NOT_FOUND, ErrorCode::BlobUnknown, message));
        };
        let length = blob.len;
        let chunks = try_unfold((blob, 0_u64), |(blob, at)| async move {
            let bytes = blob.read_at(at, CHUNK).await?;
            if bytes.is_empty() {
                return Ok::<_, BodyError>(None);
            }
            let next = at + bytes.len() as u64;
            Ok(Some((bytes, (blob, next))))
        });
        let mut response = Response::new(Body::stream(StreamBody::new(chunks.map_ok(Frame::data))));
        response.headers_mut().insert(CONTENT_LENGTH, length.into());
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
        Ok(response)
    }

    /// Answers a request that brings something.
    pub(super) async fn brought<B>(
        &self,
        resource: Resource,
        asked: &Parameters,
        body: B,
    ) -> Result<Response<Body>, Failure>
    where
        B: http_body::Body<Data = Bytes> + Unpin,
        B::Error: Into<BodyError>,
    {
        if resource == Resource::Content {
            return self.keep_blob(asked, body).await;
        }
        let bytes = Limited::new(body, MAX_IMAGE).collect().await.map_err(|error| bad(error.to_string()))?;
        let import: Import =
            serde_json::from_slice(&bytes.to_bytes()).map_err(|error| bad(format!("no import: {error}")))?;
        let Import { image, terms } = import;
        let taken = match self.live() {
            Some(live) => live.cache.take_image(image, terms).await,
            None => self.store().take_image(image, terms, false).await,
        };
        written(&taken.map_err(full)?)
    }

    async fn keep_blob<B>(&self, asked: &Parameters, mut body: B) -> Result<Response<Body>, Failure>
    where
        B: http_body::Body<Data = Bytes> + Unpin,
        B::Error: Into<BodyError>,
    {
        let digest = digest(asked)?;
        let size = asked.number("size")?.ok_or_else(|| bad("size: how many bytes it has is missing"))?;
        let mut writer = self.store().create(&digest, Some(size)).await.map_err(full)?;
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| bad(format!("the body broke off: {}", error.into())))?;
            if let Ok(bytes) = frame.into_data() {
                writer.write(bytes).await.map_err(full)?;
            }
        }
        writer.finish().await.map_err(full)?;
        written(&BlobKept { digest, size })
    }
}

/// Whether a request for this has a body that counts.
pub(super) fn takes_body(resource: Resource, method: &Method) -> bool {
    matches!((resource, method), (Resource::Content, &Method::PUT) | (Resource::Imports, &Method::POST))
}

fn digest(asked: &Parameters) -> Result<Digest, Failure> {
    let text = asked.required("digest")?;
    text.parse().map_err(|_| bad(format!("digest: {text:?} is no digest")))
}

/// A full disk is told so that it is known what to do.
fn full(error: StoreError) -> Failure {
    match error {
        StoreError::DigestMismatch { .. } | StoreError::LengthMismatch { .. } => bad(causes(&error)),
        full if full.is_full() => {
            let advice = "make room (store.capacity, or the disk), and give the same command again: what is here already is not written twice";
            let message = format!("{}: {advice}", causes(&full));
            Failure::new(StatusCode::INSUFFICIENT_STORAGE, ErrorCode::Unknown, message).with_source(full)
        }
        other => failed(other),
    }
}
