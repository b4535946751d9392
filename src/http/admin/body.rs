//! Bodies of requests: JSON, where what is asked for may be too long for a query.

use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, StatusCode};
use http_body::Body;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use tokio::time::timeout;

use super::super::body::BodyError;
use super::super::respond::Failure;
use crate::oci::{ErrorCode, media};

/// Largest body of a request, in bytes.
pub const LARGEST_BODY: usize = 4 * 1024 * 1024;
/// How long a body may take.
const WITHIN: Duration = Duration::from_secs(30);

/// The whole body. Only what says that it is JSON: a form on somebody's page can send anything else.
pub(super) async fn read<B>(headers: &HeaderMap, body: B) -> Result<Bytes, Failure>
where
    B: Body<Error: Into<BodyError>>,
{
    if body.is_end_stream() {
        return Ok(Bytes::new());
    }
    let refused = |status, message: String| Failure::new(status, ErrorCode::Unsupported, message).closing();
    let is_json = headers
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .is_some_and(|value| media::essence(value).eq_ignore_ascii_case("application/json"));
    if !is_json {
        let message = "the body of a request is JSON here: send it with Content-Type: application/json";
        return Err(refused(StatusCode::UNSUPPORTED_MEDIA_TYPE, message.to_owned()));
    }
    let collecting = std::pin::pin!(Limited::new(body, LARGEST_BODY).collect());
    match timeout(WITHIN, collecting).await {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            let message = format!("the body is larger than {LARGEST_BODY} bytes: ask for less at once");
            Err(refused(StatusCode::PAYLOAD_TOO_LARGE, message))
        }
        Ok(Err(_)) => Err(refused(StatusCode::BAD_REQUEST, "the body of the request broke off".to_owned())),
        Err(_) => {
            let message = format!("the body of the request did not come within {} s", WITHIN.as_secs());
            Err(refused(StatusCode::REQUEST_TIMEOUT, message))
        }
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use http_body_util::{Empty, Full};

    use super::*;

    async fn sent(content_type: Option<&'static str>, body: Vec<u8>) -> Result<Bytes, StatusCode> {
        let mut headers = HeaderMap::new();
        headers.extend(content_type.map(|value| (CONTENT_TYPE, HeaderValue::from_static(value))));
        read(&headers, Full::new(Bytes::from(body))).await.map_err(|failure| failure.status)
    }

    #[tokio::test]
    async fn json_is_read_up_to_a_size() {
        assert_eq!(sent(Some("application/json"), b"{}".to_vec()).await, Ok(Bytes::from_static(b"{}")));
        assert_eq!(sent(Some("Application/JSON; charset=utf-8"), b"{}".to_vec()).await, Ok(Bytes::from_static(b"{}")));
        assert_eq!(sent(Some("text/plain"), b"{}".to_vec()).await, Err(StatusCode::UNSUPPORTED_MEDIA_TYPE));
        assert_eq!(sent(None, b"{}".to_vec()).await, Err(StatusCode::UNSUPPORTED_MEDIA_TYPE));
        assert_eq!(
            sent(Some("application/json"), vec![b' '; LARGEST_BODY]).await.map(|body| body.len()),
            Ok(LARGEST_BODY)
        );
        assert_eq!(
            sent(Some("application/json"), vec![b' '; LARGEST_BODY + 1]).await,
            Err(StatusCode::PAYLOAD_TOO_LARGE)
        );
        assert_eq!(read(&HeaderMap::new(), Empty::<Bytes>::new()).await.unwrap(), Bytes::new(), "none is needed");
    }
}
