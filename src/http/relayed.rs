//! What of upstream's answer to a write a client gets to see, and what a write that failed means to it.

use http::header::{CONTENT_TYPE, HeaderName, RETRY_AFTER, WARNING};
use http::{HeaderMap, HeaderValue, Response, StatusCode};

use super::Visit;
use super::body::Body;
use super::record::Served;
use super::respond::{self, Failure};
use crate::cache::{CacheError, ClientFault, Said, WriteError};
use crate::metrics::{Kind, Outcome, Source};
use crate::oci::{ErrorBody, ErrorCode, UpstreamName, Via};
use crate::upstream::{Fault, Right};

/// What the message says, by which advice tells it from a registry's 429 (`admin/errors.rs`).
pub(super) const BEGUN_UPLOADS: &str = "uploads that have begun and not ended";
/// Fields of upstream's answers that are passed on. All others may hold addresses or secrets of upstream's.
const CHOSEN: [HeaderName; 11] = [
    HeaderName::from_static("docker-upload-uuid"),
    HeaderName::from_static("oci-subject"),
    HeaderName::from_static("oci-tag"),
    HeaderName::from_static("oci-chunk-min-length"),
    HeaderName::from_static("oci-filters-applied"),
    HeaderName::from_static("x-ms-correlation-request-id"),
    HeaderName::from_static("x-ms-request-id"),
    HeaderName::from_static("x-ms-client-request-id"),
    HeaderName::from_static("x-ms-ratelimit-remaining-calls-per-second"),
    RETRY_AFTER,
    WARNING,
];

/// The fields that are passed on.
pub(super) fn chosen(headers: &HeaderMap) -> HeaderMap {
    let mut chosen = HeaderMap::new();
    for name in &CHOSEN {
        for value in headers.get_all(name) {
            chosen.append(name, value.clone());
        }
    }
    chosen
}

/// Marks an answer as that to a write, which no cache answers.
pub(super) fn written(mut response: Response<Body>) -> Response<Body> {
    response.body_mut().set_served(Served { outcome: Outcome::Bypass, source: Source::Fill });
    response
}

// === impl Visit ===

impl Visit<'_> {
    /// The answer to a write that failed: upstream's own where it refused, else one that says what went wrong.
    pub(super) fn answer_to(&self, error: WriteError, kind: Kind) -> Result<Response<Body>, Failure> {
        match error {
            // Upstream wanted a credential, and what everybody gets was not enough. It would have asked a client for its
            // own, and so the client is asked: some show one only then.
            WriteError::Refused(said)
                if said.status == StatusCode::FORBIDDEN && said.shown && self.caller.right == Right::Anonymous =>
            {
                let message = format!("upstream {} does not let everybody do this: log in", self.route.upstream);
                match self.caller.challenged(self, None, message) {
                    Some(failure) => Err(failure),
                    None => Ok(refusal(&self.route.upstream, *said)),
                }
            }
            WriteError::Refused(said) if said.status.is_client_error() || said.status.is_server_error() => {
                Ok(refusal(&self.route.upstream, *said))
            }
            error => Err(self.failed(error, kind)),
        }
    }

    /// What a write that failed means to the client.
    pub(super) fn failed(&self, error: WriteError, kind: Kind) -> Failure {
        let upstream = &self.route.upstream;
        let failure = match &error {
            WriteError::Cache(error) => return self.unasked(error.clone(), kind),
            WriteError::Refused(said) => Failure::new(
                StatusCode::BAD_GATEWAY,
                ErrorCode::Unknown,
                format!("upstream {upstream} answered {} where that makes no sense", said.status.as_u16()),
            ),
            WriteError::WrongDigest { .. } => Failure::bad_request(
                ErrorCode::DigestInvalid,
                format!("{error}; nothing of it has been stored upstream: send it again"),
            ),
            WriteError::OutOfOrder { offset } => Failure::new(
                StatusCode::RANGE_NOT_SATISFIABLE,
                ErrorCode::BlobUploadInvalid,
                format!("the parts of an upload come in order; the next one begins at byte {offset}"),
            ),
            WriteError::Client(ClientFault::Length) => Failure::bad_request(
                ErrorCode::SizeInvalid,
                "the body is not as long as Content-Length or Content-Range says; send this part again",
            )
            .closing(),
            WriteError::Client(ClientFault::Idle) => Failure::new(
                StatusCode::REQUEST_TIMEOUT,
                ErrorCode::BlobUploadInvalid,
                "the client sent nothing for a minute; send this part again",
            )
            .closing(),
            WriteError::Client(ClientFault::Slow) => Failure::new(
                StatusCode::REQUEST_TIMEOUT,
                ErrorCode::BlobUploadInvalid,
                "the body came too slow: fewer bytes than limits.min_rate of ocistern's configuration asks for; send this \
                 part again",
            )
            .closing(),
            WriteError::Client(ClientFault::Broken(_)) => {
                Failure::bad_request(ErrorCode::BlobUploadInvalid, "the body broke off; send this part again").closing()
            }
            WriteError::Client(ClientFault::TooLarge { limit }) => Failure::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                ErrorCode::ManifestInvalid,
                format!("a manifest has {limit} bytes at most; put large content into blobs"),
            )
            .closing(),
            WriteError::UnknownUpload => Failure::new(
                StatusCode::NOT_FOUND,
                ErrorCode::BlobUploadUnknown,
                "this upload cannot go on; begin it again",
            ),
            WriteError::Busy => Failure::new(
                StatusCode::CONFLICT,
                ErrorCode::BlobUploadInvalid,
                "another request is at this upload; an upload takes one request at a time",
            ),
            WriteError::TooManyUploads { limit, of_caller } => Failure::new(
                StatusCode::TOO_MANY_REQUESTS,
                ErrorCode::TooManyRequests,
                format!(
                    "{} {limit} {BEGUN_UPLOADS}, as many as ocistern takes; end some, or try again \
                     later",
                    if *of_caller { "you have" } else { "all callers together have" }
                ),
            )
            .with_retry_after(Some(std::time::Duration::from_secs(10))),
            WriteError::Unreplayable(cause) => self.unreplayable(cause, kind),
            WriteError::Unchecked => Failure::new(
                StatusCode::SERVICE_UNAVAILABLE,
                ErrorCode::BlobUploadInvalid,
                "ocistern's store failed, so that it is not known whether what came is what the digest says; nothing of \
                 it has been stored upstream: begin the upload again. Its log says why",
            ),
            WriteError::Unmarked(_) => Failure::new(
                StatusCode::SERVICE_UNAVAILABLE,
                ErrorCode::Unavailable,
                "ocistern's store cannot be written to, so a change upstream could not be told from what is known; \
                 nothing was sent there. Its log says why",
            ),
            WriteError::NoRandomness => return Failure::internal(error),
        };
        failure.with_source(error)
    }

    /// Upstream broke an upload that cannot be sent again: the client has to. The code is the one that says so
    /// (`BLOB_UPLOAD_INVALID`), by which clients begin anew.
    fn unreplayable(&self, cause: &WriteError, kind: Kind) -> Failure {
        let why = "the store had no room to keep what was sent, so it cannot be sent again from here; begin the upload \
                   again";
        let upstream = &self.route.upstream;
        match cause {
            WriteError::Refused(said) => {
                let (status, answered) = (said.status, said.status.as_u16());
                let status = if status.is_server_error() || answered == 429 { status } else { StatusCode::NOT_FOUND };
                let message = format!("upstream {upstream} broke the upload off with {answered}, and {why}");
                let failure = Failure::new(status, ErrorCode::BlobUploadInvalid, message);
                match said.headers.get(RETRY_AFTER) {
                    Some(after) => failure.with_header(RETRY_AFTER, after.clone()),
                    None => failure,
                }
            }
            cause => {
                let mut failure = match cause {
                    WriteError::Cache(error) => self.unasked(error.clone(), kind),
                    _ => Failure::new(StatusCode::BAD_GATEWAY, ErrorCode::Unknown, "upstream broke the upload off"),
                };
                failure.code = ErrorCode::BlobUploadInvalid;
                failure.message = format!("{}; and {why}", failure.message);
                failure
            }
        }
    }

    /// Upstream could not be asked.
    fn unasked(&self, error: CacheError, kind: Kind) -> Failure {
        if let CacheError::Upstream(cause) = &error
            && matches!(cause.fault, Fault::Sealed)
        {
            let message =
                format!("upstream {} is sealed by ocistern's configuration: nothing is sent there", cause.upstream);
            return Failure::new(StatusCode::FORBIDDEN, ErrorCode::Denied, message);
        }
        self.explain(error, kind)
    }
}

/// Upstream's refusal, in its own words where they are the specification's.
fn refusal(upstream: &UpstreamName, said: Said) -> Response<Body> {
    let status = said.status.as_u16();
    let in_form = serde_json::from_slice::<ErrorBody>(&said.body).is_ok_and(|body| !body.errors.is_empty());
    tracing::debug!(%upstream, status, code = said.code(), "upstream refused a write");
    // What upstream repeats of ocistern's own account is not for whoever used it.
    let mut response = if in_form && said.via != Via::Shared {
        // Its words are for the caller: in the log they could be anything, the credential included.
        let why =
            format!("upstream {upstream} refused the write: {}", said.code().as_deref().unwrap_or("no known code"));
        let mut response = respond::json(said.status, said.body);
        response.extensions_mut().insert(respond::Reason { message: why.into(), code: ErrorCode::Denied.as_str() });
        response
    } else {
        let code = match status {
            404 => ErrorCode::NameUnknown,
            403 => ErrorCode::Denied,
            413 => ErrorCode::SizeInvalid,
            429 => ErrorCode::TooManyRequests,
            405 | 501 => ErrorCode::Unsupported,
            _ => ErrorCode::Unknown,
        };
        let why = said.code().unwrap_or_else(|| "did not say why".to_owned());
        let message = format!("upstream {upstream} answered {status}: {why}");
        Failure::new(said.status, code, message).into_response()
    };
    let headers = response.headers_mut();
    headers.extend(chosen(&said.headers));
    headers.entry(CONTENT_TYPE).or_insert(HeaderValue::from_static("application/json"));
    response
}
