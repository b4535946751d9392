//! The fields that every answer with the same content has: made once for what is answered all the time.

use bytes::Bytes;
use http::HeaderValue;

use crate::oci::Digest;

/// Header values that name some content; cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Labels {
    /// `Docker-Content-Digest`.
    pub digest: HeaderValue,
    /// `ETag`: the digest in quotes (RFC 9110, 8.8.3).
    pub etag: HeaderValue,
    /// `Content-Type`.
    pub content_type: HeaderValue,
}

// === impl Labels ===

impl Labels {
    /// Of a manifest; a media type that is no header value is that of octets.
    pub fn of_manifest(digest: &Digest, media_type: &str) -> Self {
        Self::new(digest, HeaderValue::from_str(media_type).unwrap_or(HeaderValue::from_static(OCTETS)))
    }

    /// Of a blob.
    pub fn of_blob(digest: &Digest) -> Self {
        Self::new(digest, HeaderValue::from_static(OCTETS))
    }

    fn new(digest: &Digest, content_type: HeaderValue) -> Self {
        let quoted = Bytes::from(["\"", digest.algorithm().as_str(), ":", &digest.hex(), "\""].concat());
        let plain = quoted.slice(1..quoted.len() - 1);
        // Digests are made of letters, digits and a colon, so both are values.
        let value = |bytes| HeaderValue::from_maybe_shared(bytes).unwrap_or(HeaderValue::from_static(""));
        Self { digest: value(plain), etag: value(quoted), content_type }
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
            let labels = Labels::of_manifest(&digest, "text/x");
            assert_eq!(labels.digest, digest.to_string());
            assert_eq!(labels.etag, format!("\"{digest}\""));
            assert_eq!(labels.content_type, "text/x");
            assert_eq!(Labels::of_blob(&digest).content_type, OCTETS);
            assert_eq!(Labels::of_manifest(&digest, "a\nb").content_type, OCTETS);
        }
    }
}
