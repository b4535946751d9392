//! Reading the small bodies of upstreams: tokens and error messages, never more than fits.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderMap, Response, StatusCode};
use http_body::Body;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Incoming;
use tokio::time::{Instant, timeout, timeout_at};

use super::challenge;
use super::error::{Fault, sanitise};
use super::retry::retry_after;
use crate::oci::{ErrorBody, media};

/// Largest token answer or error message that is read.
pub(crate) const MAX_TEXT: usize = 64 * 1024;
/// Time for an error message: the status alone is enough.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(5);
/// Body of a redirect or challenge that is read so that the connection can be used again.
const MAX_DRAIN: u64 = 16 * 1024;
/// Time for that.
const DRAIN_TIMEOUT: Duration = Duration::from_millis(200);

/// So much of a secret tells it from other words.
const TELLING: usize = 24;

/// What servers say on a port for TLS to a request without it, with 400: Go's, nginx, Apache.
const WANTS_TLS: [&str; 3] = [
    "Client sent an HTTP request to an HTTPS server",
    "The plain HTTP request was sent to HTTPS port",
    "speaking plain HTTP to an SSL-enabled server port",
];

/// Why a body was not read to its end.
pub(crate) enum Unread {
    /// Longer than allowed.
    TooLarge,
    /// It broke off.
    Broken(Box<dyn std::error::Error + Send + Sync>),
}

/// What an upstream says with an error status.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// The specification's code, if the body is the specification's JSON.
    pub(crate) code: Option<String>,
    /// Fit for logs and clients; never empty.
    pub(crate) message: String,
    /// It says that it is to be asked by TLS. A server behind the one that was asked may say so as well.
    pub(crate) wants_tls: bool,
}

/// Who has answered, and how it was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asked {
    /// The upstream itself, by TLS.
    Securely,
    /// The upstream itself, by plain http.
    Plainly,
    /// Storage, a CDN: where the upstream has sent us.
    Stranger,
}

// === impl Refusal ===

impl Refusal {
    /// Of an answer whose body is not read.
    pub(crate) fn of(status: StatusCode) -> Self {
        Self { message: status.canonical_reason().unwrap_or("no explanation").to_owned(), ..Self::default() }
    }

    /// Without words that repeat a secret.
    pub(crate) fn hiding<S: AsRef<str>>(mut self, secrets: &[S]) -> Self {
        // Long words are cut: the beginning of a token is enough to know it by.
        let repeats =
            |secret: &str| !secret.is_empty() && self.message.contains(secret.get(..TELLING).unwrap_or(secret));
        if secrets.iter().any(|secret| repeats(secret.as_ref())) {
            "(upstream's words are left out, because they repeat the credential)".clone_into(&mut self.message);
        }
        self
    }
}

/// What an unsuccessful answer means.
pub(crate) async fn fault<S: AsRef<str>>(
    response: Response<Incoming>,
    deadline: Instant,
    asked: Asked,
    secrets: &[S],
    now: SystemTime,
) -> Fault {
    let (status, headers) = (response.status(), response.headers().clone());
    let said = refusal(response, deadline, asked != Asked::Stranger).await.hiding(secrets);
    if asked == Asked::Plainly && said.wants_tls { Fault::WantsTls } else { judge(status, &headers, said, now) }
}

/// What an unsuccessful status means.
pub(crate) fn judge(status: StatusCode, headers: &HeaderMap, said: Refusal, now: SystemTime) -> Fault {
    let Refusal { code, message, wants_tls: _ } = said;
    let retry_after = retry_after(headers, now);
    match status {
        StatusCode::UNAUTHORIZED => Fault::Unauthorized { message, demand: challenge::demand(headers) },
        StatusCode::FORBIDDEN => Fault::Forbidden { message },
        StatusCode::NOT_FOUND => Fault::NotFound { code, message },
        StatusCode::TOO_MANY_REQUESTS => Fault::RateLimited { retry_after, message },
        _ => Fault::Status { status, retry_after, message },
    }
}

/// The whole body, if it has at most `limit` bytes.
pub(crate) async fn whole<B>(body: B, limit: usize) -> Result<Bytes, Unread>
where
    B: Body<Data = Bytes>,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    match Limited::new(body, limit).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(Unread::TooLarge),
        Err(error) => Err(Unread::Broken(error)),
    }
}

/// What the body of an error answer says. Of a stranger (`trusted` false: storage, a CDN) only the specification's
/// JSON is passed on: others repeat signatures.
pub(crate) async fn refusal(response: Response<Incoming>, deadline: Instant, trusted: bool) -> Refusal {
    let (head, body) = response.into_parts();
    let deadline = deadline.min(Instant::now() + REFUSAL_TIMEOUT);
    let body = timeout_at(deadline, whole(body, MAX_TEXT)).await;
    let body = body.ok().and_then(Result::ok).unwrap_or_default();
    let mut refusal = words(&head.headers, &body, trusted);
    if refusal.message.is_empty() {
        refusal.message = Refusal::of(head.status).message;
    }
    let says = |words: &&str| memchr::memmem::find(&body, words.as_bytes()).is_some();
    refusal.wants_tls = head.status == StatusCode::BAD_REQUEST && WANTS_TLS.iter().any(says);
    refusal
}

fn words(headers: &HeaderMap, body: &[u8], trusted: bool) -> Refusal {
    if let Ok(errors) = serde_json::from_slice::<ErrorBody>(body)
        && let Some(error) = errors.errors.first()
    {
        let code = sanitise(&error.code);
        let message = if error.message.is_empty() { code.clone() } else { sanitise(&error.message) };
        return Refusal { code: Some(code), message, ..Refusal::default() };
    }
    if !trusted {
        return Refusal::default();
    }
    if let Ok(serde_json::Value::Object(object)) = serde_json::from_slice(body) {
        let text = |key: &str| object.get(key).and_then(serde_json::Value::as_str);
        let message = ["error_description", "details", "message", "Message", "error"].into_iter().find_map(text);
        return Refusal { message: sanitise(message.unwrap_or_default()), ..Refusal::default() };
    }
    let kind = headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).map(media::essence);
    let text = std::str::from_utf8(body).ok().filter(|_| matches!(kind, None | Some("text/plain")));
    Refusal { message: sanitise(text.unwrap_or_default()), ..Refusal::default() }
}

/// Reads a body that nobody wants, if it is small: a connection with an unread body cannot be used again.
pub(crate) async fn drain(response: Response<Incoming>) {
    let length = response.headers().get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    if length.is_some_and(|length| length <= MAX_DRAIN) {
        let _ = timeout(DRAIN_TIMEOUT, response.into_body().collect()).await;
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use http_body_util::Full;

    use super::*;

    fn said(kind: &'static str, body: &str, trusted: bool) -> (Option<String>, String) {
        let headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static(kind))]);
        let refusal = words(&headers, body.as_bytes(), trusted);
        (refusal.code, refusal.message)
    }

    #[test]
    fn a_secret_is_hidden_also_where_its_end_is_cut_off() {
        let token = "CANARY".repeat(100);
        for (secret, hides) in [(token.as_str(), true), ("CANARY", true), ("", false), ("other", false)] {
            let message = said("text/plain", &format!("not with {token}"), true).1;
            assert!(!message.contains(&token), "it is too long to be passed on whole");
            let told = Refusal { message, ..Refusal::default() }.hiding(&[secret]).message;
            assert_eq!(!told.contains("CANARY"), hides, "{told}");
        }
    }

    #[test]
    fn bodies_of_every_kind() {
        let hub = r#"{"errors":[{"code":"TOOMANYREQUESTS","message":"You have\nreached"}]}"#;
        assert_eq!(said("application/json", hub, true), (Some("TOOMANYREQUESTS".into()), "You have reached".into()));
        assert_eq!(said("text/html", hub, false).1, "You have reached", "whatever its type says");
        let bare = r#"{"errors":[{"code":"DENIED"}]}"#;
        assert_eq!(said("", bare, true), (Some("DENIED".into()), "DENIED".into()));
        assert_eq!(
            said("text/plain; charset=utf-8", "Too Many Requests (HAP429).\n", true).1,
            "Too Many Requests (HAP429)."
        );
        assert_eq!(said("application/json", r#"{"details":"incorrect username"}"#, true).1, "incorrect username");
        assert_eq!(said("text/html", "<html>login</html>", true).1, "");
        assert_eq!(said("text/plain", "StringToSign canary", false).1, "");
        for odd in ["", "[]", "null", r#"{"errors":[]}"#, r#"{"errors":"x"}"#] {
            assert_eq!(said("application/json", odd, true), (None, String::new()), "{odd}");
        }
    }

    #[tokio::test]
    async fn nothing_larger_than_the_limit_is_kept() {
        assert!(matches!(whole(Full::new(Bytes::from(vec![0; 11])), 10).await, Err(Unread::TooLarge)));
        assert!(whole(Full::new(Bytes::from(vec![0; 10])), 10).await.is_ok());
    }
}
