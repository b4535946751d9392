//! What is around every handler, in an order that matters, the outermost first:
//!
//! 1. *sensitive fields* ([`sensitive`], a layer of tower-http's): before anything could print them;
//! 2. *request id* (`x-request-id`, the client's where it is sane): before the span that carries it;
//! 3. *span*: around everything that logs; [`Body`] enters it again where its bytes come in pieces;
//! 4. *trace*, where traces are sent: around everything that asks upstream;
//! 5. *panic guard*: a panic of a handler is a 500 with the specification's JSON, and the connection lives. The answer
//!    has the id in any case.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

use futures_util::FutureExt as _;
use http::header::{AUTHORIZATION, COOKIE, PROXY_AUTHORIZATION};
use http::{HeaderMap, HeaderValue, Request, Response};
use tower_http::sensitive_headers::SetSensitiveRequestHeadersLayer;
use tracing::Instrument as _;

use super::body::Body;
use super::branded;
use super::respond::Failure;
use crate::cache::X_REQUEST_ID;
use crate::oci;
use crate::telemetry;

/// Longest request id that is taken over from a client.
const MAX_REQUEST_ID: usize = 64;

/// Marks the fields that hold credentials, so that nothing prints them.
pub fn sensitive() -> SetSensitiveRequestHeadersLayer {
    SetSensitiveRequestHeadersLayer::new([AUTHORIZATION, PROXY_AUTHORIZATION, COOKIE])
}

/// Answers a request by `handler`, with everything around it.
pub async fn around<B, F>(request: Request<B>, handler: impl FnOnce(Request<B>) -> F) -> Response<Body>
where
    F: Future<Output = Response<Body>>,
{
    let id = request_id(request.headers());
    let span = tracing::info_span!("request", id = id.to_str().unwrap_or_default());
    // What a handler that panicked has left behind is dropped with it. Its state is in one place: it would be moved with each
    // wrapping otherwise.
    let trace = telemetry::request(&request);
    let begun = span.in_scope(|| catch_unwind(AssertUnwindSafe(|| Box::pin(handler(request)))));
    let answered = match begun {
        Ok(answering) => {
            let answering = AssertUnwindSafe(answering).catch_unwind().instrument(span.clone());
            match trace {
                None => answering.await,
                trace => telemetry::within(trace, answering).await,
            }
        }
        Err(payload) => Err(payload),
    };
    let mut response = answered.unwrap_or_else(|payload| span.in_scope(|| panicked(payload)));
    response.headers_mut().insert(X_REQUEST_ID, id);
    response
}

/// An id that a client or a proxy before it chose is kept where it is short and plain, because it goes to the log.
fn request_id(headers: &HeaderMap) -> HeaderValue {
    let plain = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    let sane = |id: &&HeaderValue| (1..=MAX_REQUEST_ID).contains(&id.len()) && id.as_bytes().iter().all(plain);
    headers.get(X_REQUEST_ID).filter(sane).cloned().unwrap_or_else(|| {
        let id = fastrand::u128(..).to_be_bytes();
        // Hexadecimal digits always are a value.
        HeaderValue::from_str(oci::hex(&id, &mut [0; 32])).unwrap_or_else(|_| HeaderValue::from_static("unknown"))
    })
}

fn panicked(payload: Box<dyn Any + Send + 'static>) -> Response<Body> {
    let message = payload
        .downcast::<String>()
        .map(|text| *text)
        .or_else(|payload| payload.downcast::<&'static str>().map(|text| (*text).to_owned()));
    let message = message.unwrap_or_else(|_| "no message".to_owned());
    branded(Failure::internal(format!("a handler panicked: {message}")).into_response())
}
