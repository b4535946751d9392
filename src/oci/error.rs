//! Error codes of the distribution specification and the JSON body that carries them.
//!
//! OCI distribution-spec, `spec.md`, "Error Codes": `{"errors":[{"code":…,"message":…,"detail":…}]}`.

use serde::{Deserialize, Serialize};

/// A code of the specification; `as_str` is what goes on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorCode {
    /// The blob is not known to the registry.
    BlobUnknown,
    /// The upload is not valid any more.
    BlobUploadInvalid,
    /// The upload is not known.
    BlobUploadUnknown,
    /// The digest is malformed or does not match the content.
    DigestInvalid,
    /// A manifest refers to a blob that is not there.
    ManifestBlobUnknown,
    /// The manifest is malformed.
    ManifestInvalid,
    /// The manifest is not known.
    ManifestUnknown,
    /// The repository name is malformed.
    NameInvalid,
    /// The repository is not known.
    NameUnknown,
    /// The length does not match the content.
    SizeInvalid,
    /// Authentication is required.
    Unauthorized,
    /// Access was refused.
    Denied,
    /// The operation is not supported.
    Unsupported,
    /// Too many requests.
    TooManyRequests,
    /// Not of the specification but of distribution: the registry, or what it depends on, is not available.
    Unavailable,
    /// Not of the specification but of distribution: the registry itself failed.
    Unknown,
    /// Not of the specification but of distribution: the range cannot be satisfied.
    RangeInvalid,
}

/// The body of an error answer.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ErrorBody {
    /// At least one entry.
    pub errors: Vec<ErrorEntry>,
}

/// One error of the body.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ErrorEntry {
    /// See [`ErrorCode::as_str`]; upstreams may use others.
    pub code: String,
    /// For people: what went wrong, where, and what to do.
    #[serde(default)]
    pub message: String,
    /// For programs; null if there is nothing to say.
    #[serde(default)]
    pub detail: serde_json::Value,
}

// === impl ErrorCode ===

impl ErrorCode {
    /// The code as the specification spells it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::BlobUnknown => "BLOB_UNKNOWN",
            Self::BlobUploadInvalid => "BLOB_UPLOAD_INVALID",
            Self::BlobUploadUnknown => "BLOB_UPLOAD_UNKNOWN",
            Self::DigestInvalid => "DIGEST_INVALID",
            Self::ManifestBlobUnknown => "MANIFEST_BLOB_UNKNOWN",
            Self::ManifestInvalid => "MANIFEST_INVALID",
            Self::ManifestUnknown => "MANIFEST_UNKNOWN",
            Self::NameInvalid => "NAME_INVALID",
            Self::NameUnknown => "NAME_UNKNOWN",
            Self::SizeInvalid => "SIZE_INVALID",
            Self::Unauthorized => "UNAUTHORIZED",
            Self::Denied => "DENIED",
            Self::Unsupported => "UNSUPPORTED",
            Self::TooManyRequests => "TOOMANYREQUESTS",
            Self::Unavailable => "UNAVAILABLE",
            Self::Unknown => "UNKNOWN",
            Self::RangeInvalid => "RANGE_INVALID",
        }
    }
}

// === impl ErrorBody ===

impl ErrorBody {
    /// A body with one entry and no detail.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self {
            errors: vec![ErrorEntry {
                code: code.as_str().to_owned(),
                message: message.into(),
                detail: serde_json::Value::Null,
            }],
        }
    }

    /// The body as JSON text.
    pub fn to_json(&self) -> Vec<u8> {
        // Strings and JSON values only: serialisation has no way to fail.
        serde_json::to_vec(self).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn body_has_the_shape_of_the_specification() {
        let body = ErrorBody::new(ErrorCode::BlobUnknown, "gone").to_json();
        assert_eq!(body, br#"{"errors":[{"code":"BLOB_UNKNOWN","message":"gone","detail":null}]}"#);
    }
}
