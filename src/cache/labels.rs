//! The fields that every answer with the same content has: made once for what is answered all the time.

use bytes::Bytes;
use http::header::{ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_TYPE, ETAG, HeaderName};
use http::{HeaderMap, HeaderValue};

use super::{CacheStatus, Found};
use crate::oci::Digest;

/// The digest, as clients look for it.
pub(crate) const DOCKER_CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");
/// How an answer was found (RFC 9211).
pub(crate) const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");
/// By which a request is found in the log.
pub(crate) const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// By which clients know a registry.
pub(crate) const API_VERSION: (HeaderName, HeaderValue) =
    (HeaderName::from_static("docker-distribution-api-version"), HeaderValue::from_static("registry/2.0"));
/// Fields of an answer.
const FIELDS: usize = 12;

/// The fields of a hit: those that name some content and describe the whole of it, and those of every answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Labels {
    /// Who found it in another way says so; the id of the request is left to the edge.
    pub fields: HeaderMap,
    /// `ETag`: the digest in quotes (RFC 9110, 8.8.3); among the fields, too.
    pub etag: HeaderValue,
}

// === impl Labels ===

impl Labels {
    /// Of a manifest of so many bytes; a media type that is no header value is that of octets.
    pub fn of_manifest(digest: &Digest, media_type: &str, size: u64) -> Self {
        let media_type = HeaderValue::from_str(media_type).unwrap_or(HeaderValue::from_static(OCTETS));
        Self::new(digest, media_type, Some(size))
    }

    /// Of a blob of so many bytes, if that is known.
    pub fn of_blob(digest: &Digest, size: Option<u64>) -> Self {
        Self::new(digest, HeaderValue::from_static(OCTETS), size)
    }

    /// `Content-Type`.
    pub fn media_type(&self) -> &str {
        self.fields.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    fn new(digest: &Digest, content_type: HeaderValue, size: Option<u64>) -> Self {
        let quoted = Bytes::from(["\"", digest.algorithm().as_str(), ":", &digest.hex(), "\""].concat());
        let plain = quoted.slice(1..quoted.len() - 1);
        // Digests are made of letters, digits and a colon, so both are values.
        let value = |bytes| HeaderValue::from_maybe_shared(bytes).unwrap_or(HeaderValue::from_static(""));
        let etag = value(quoted);
        let mut fields = HeaderMap::with_capacity(FIELDS);
        fields.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
        fields.insert(CACHE_STATUS, HeaderValue::from_static(CacheStatus::from(Found::Hit).as_header()));
        fields.insert(DOCKER_CONTENT_DIGEST, value(plain));
        fields.insert(ETAG, etag.clone());
        fields.insert(CONTENT_TYPE, content_type);
        if let Some(size) = size {
            fields.insert(CONTENT_LENGTH, HeaderValue::from(size));
        }
        fields.insert(API_VERSION.0, API_VERSION.1);
        // A place that the edge fills in every answer: a clone has no room for more, and would be copied once again.
        fields.insert(X_REQUEST_ID, HeaderValue::from_static(""));
        Self { fields, etag }
    }
}

/// What is not known to be anything else.
const OCTETS: &str = "application/octet-stream";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Algorithm;

    #[test]
    fn digest_and_tag_of_both_algorithms() {
        for algorithm in Algorithm::ALL {
            let digest = Digest::of(algorithm, b"x");
            let labels = Labels::of_manifest(&digest, "text/x", 1);
            assert_eq!(labels.fields["docker-content-digest"], digest.to_string());
            assert_eq!(labels.fields[ETAG], format!("\"{digest}\""));
            assert_eq!(labels.fields[ETAG], labels.etag);
            assert_eq!((labels.media_type(), &labels.fields[CONTENT_LENGTH]), ("text/x", &HeaderValue::from(1)));
            let blob = Labels::of_blob(&digest, None);
            assert_eq!((blob.media_type(), blob.fields.get(CONTENT_LENGTH)), (OCTETS, None));
            assert_eq!(Labels::of_manifest(&digest, "a\nb", 1).media_type(), OCTETS);
        }
    }
}
