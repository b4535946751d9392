//! Answers: the only place that turns errors into responses, and logs them.
//!
//! An error is always the specification's JSON (OCI distribution-spec, "Error Codes"). Its message says what went
//! wrong, where (client, ocistern, upstream) and what to do; its cause goes to the log only.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HeaderName, RETRY_AFTER};
use http::{HeaderMap, HeaderValue, Response, StatusCode};

use super::body::{Body, BodyError};
use super::route::RouteError;
use crate::oci::{ErrorBody, ErrorCode};

/// An error on its way to the client.
#[derive(Debug)]
pub struct Failure {
    /// The status.
    pub status: StatusCode,
    /// The code in the body.
    pub code: ErrorCode,
    /// For people: what went wrong, where, and what to do. It must not hold secrets or signed addresses.
    pub message: String,
    /// For `Retry-After`.
    pub retry_after: Option<Duration>,
    /// Further fields, such as `Allow` or `Content-Range`.
    pub headers: HeaderMap,
    /// The connection must not be used again (HTTP/1): the request's end is not known.
    pub close: bool,
    /// The cause, for the log.
    pub source: Option<BodyError>,
}

/// Why an answer is an error: the extension from which the record of the request has it.
#[derive(Debug, Clone)]
pub(super) struct Reason {
    /// For people.
    pub(super) message: Arc<str>,
    /// The code in the body.
    pub(super) code: &'static str,
}

// === impl Failure ===

impl Failure {
    /// A failure without more than it needs.
    pub fn new(status: StatusCode, code: ErrorCode, message: impl Into<String>) -> Self {
        Self {
            status,
            code,
            message: message.into(),
            retry_after: None,
            headers: HeaderMap::new(),
            close: false,
            source: None,
        }
    }

    /// The client's mistake: 400.
    pub fn bad_request(code: ErrorCode, message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code, message)
    }

    /// ocistern's own mistake: 500.
    pub fn internal(source: impl Into<BodyError>) -> Self {
        let message = "ocistern failed; its log says why, by the request id in x-request-id";
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, ErrorCode::Unknown, message).with_source(source)
    }

    /// A method that the resource does not have.
    pub fn method(message: impl Into<String>) -> Self {
        let failure = Self::new(StatusCode::METHOD_NOT_ALLOWED, ErrorCode::Unsupported, message);
        failure.with_header(ALLOW, HeaderValue::from_static("GET, HEAD"))
    }

    /// The range is outside the blob; `content_range` is that of [`super::range::unsatisfied`].
    pub fn range(content_range: &str) -> Self {
        let message = "the range lies outside the blob; ask for a part of it, or for all";
        let failure = Self::new(StatusCode::RANGE_NOT_SATISFIABLE, ErrorCode::RangeInvalid, message);
        match HeaderValue::from_str(content_range) {
            Ok(value) => failure.with_header(http::header::CONTENT_RANGE, value),
            Err(_) => failure,
        }
    }

    /// With its cause, for the log.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<BodyError>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// With the time after which to try again.
    #[must_use]
    pub fn with_retry_after(mut self, after: Option<Duration>) -> Self {
        self.retry_after = after;
        self
    }

    /// With a header field.
    #[must_use]
    pub fn with_header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.insert(name, value);
        self
    }

    /// Ending the connection.
    #[must_use]
    pub fn closing(mut self) -> Self {
        self.close = true;
        self
    }

    /// Logs it and makes it a response.
    pub fn into_response(self) -> Response<Body> {
        self.log();
        let reason = Reason { message: self.message.as_str().into(), code: self.code.as_str() };
        let body = ErrorBody::new(self.code, self.message).to_json();
        let mut response = json(self.status, body);
        response.extensions_mut().insert(reason);
        let headers = response.headers_mut();
        headers.extend(self.headers);
        if let Some(after) = self.retry_after {
            // Rounded up: to come a second early is to be refused again.
            let seconds = after.as_secs() + u64::from(after.subsec_nanos() > 0);
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds.max(1)));
        }
        if self.close {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }

    fn log(&self) {
        let (status, code) = (self.status.as_u16(), self.code.as_str());
        // The message is in the answer and in the record of the request; of both, the cause says more.
        let why = self.source.as_deref().map_or_else(|| self.message.clone(), causes);
        if self.status == StatusCode::INTERNAL_SERVER_ERROR {
            tracing::error!(status, code, "{why}");
        } else if self.status.is_server_error() {
            tracing::warn!(status, code, "{why}");
        } else {
            tracing::debug!(status, code, "{why}");
        }
    }
}

/// An error and its causes, in one line.
pub fn causes(error: &(dyn Error + Send + Sync + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let part = error.to_string();
        // Some errors print their cause as part of themselves.
        if !text.contains(&part) {
            text.push_str(": ");
            text.push_str(&part);
        }
        cause = error.source();
    }
    text
}

impl From<RouteError> for Failure {
    fn from(error: RouteError) -> Self {
        let (status, code) = match &error {
            RouteError::NoEndpoint => (StatusCode::NOT_FOUND, ErrorCode::Unsupported),
            RouteError::Malformed | RouteError::Name(_) | RouteError::AmbiguousNamespace => {
                (StatusCode::BAD_REQUEST, ErrorCode::NameInvalid)
            }
            // No manifest can have such a name, and what is not there is 404 (distribution-spec, "Pulling manifests").
            RouteError::Tag(_) => (StatusCode::NOT_FOUND, ErrorCode::ManifestUnknown),
            RouteError::Digest(_) => (StatusCode::BAD_REQUEST, ErrorCode::DigestInvalid),
            RouteError::UnknownUpstream { .. } | RouteError::NoDefault => {
                (StatusCode::NOT_FOUND, ErrorCode::NameUnknown)
            }
        };
        Self::new(status, code, error.to_string())
    }
}

/// A JSON answer.
pub fn json(status: StatusCode, body: impl Into<Bytes>) -> Response<Body> {
    let body = body.into();
    let length = HeaderValue::from(body.len());
    let mut response = Response::new(Body::full(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    // Written out, because HEAD is answered without polling the body.
    headers.insert(CONTENT_LENGTH, length);
    response
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    async fn text(response: Response<Body>) -> String {
        String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
    }

    #[tokio::test]
    async fn an_error_is_the_specifications_json() {
        let response = Failure::from(RouteError::NoDefault).into_response();
        assert_eq!(response.status(), StatusCode::NOT_FOUND);
        assert_eq!(response.headers()[CONTENT_TYPE], "application/json");
        let length = response.headers()[CONTENT_LENGTH].to_str().unwrap().parse::<usize>().unwrap();
        let body = text(response).await;
        assert_eq!(body.len(), length);
        assert!(body.starts_with(r#"{"errors":[{"code":"NAME_UNKNOWN","message":"#), "{body}");
    }

    #[tokio::test]
    async fn what_a_client_wrote_cannot_leave_the_json_string() {
        let error = RouteError::UnknownUpstream { host: "a\"b\r\nc.d".into(), table: "x".into() };
        let body = text(Failure::from(error).into_response()).await;
        let parsed: ErrorBody = serde_json::from_str(&body).unwrap();
        assert!(parsed.errors.first().unwrap().message.contains(super::super::explain::NO_UPSTREAM));
    }

    #[test]
    fn retry_after_is_rounded_up_and_never_zero() {
        let value = |after| {
            let failure = Failure::new(StatusCode::SERVICE_UNAVAILABLE, ErrorCode::Unavailable, "x");
            let response = failure.with_retry_after(Some(after)).into_response();
            response.headers()[RETRY_AFTER].to_str().unwrap().to_owned()
        };
        assert_eq!(value(Duration::ZERO), "1");
        assert_eq!(value(Duration::from_millis(1001)), "2");
        assert_eq!(value(Duration::from_secs(7)), "7");
    }

    #[test]
    fn causes_are_listed_once() {
        #[derive(Debug, thiserror::Error)]
        #[error("reading failed")]
        struct Outer(#[source] std::io::Error);
        let error = Outer(std::io::Error::other("disk on fire"));
        assert_eq!(causes(&error), "reading failed: disk on fire");
    }

    #[test]
    fn a_range_failure_names_the_length() {
        let response = Failure::range(&super::super::range::unsatisfied(10)).into_response();
        assert_eq!(response.status(), StatusCode::RANGE_NOT_SATISFIABLE);
        assert_eq!(response.headers()[http::header::CONTENT_RANGE], "bytes */10");
    }
}
