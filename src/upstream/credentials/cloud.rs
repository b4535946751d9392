//! Clouds' services that give a registry credential for a time: asking one, and keeping what it gave.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{HeaderMap, Method, Response, StatusCode};
use hyper::body::Incoming;
use serde::de::DeserializeOwned;
use tokio::time::{Instant, timeout, timeout_at};

use super::{Credential, CredentialFault};
use crate::metrics::Kind;
use crate::upstream::error::{Fault, RealmFault, TokenFault};
use crate::upstream::origin::Url;
use crate::upstream::read::{self, MAX_TEXT};
use crate::upstream::redirect::is_redirect;
use crate::upstream::retry::retry_after;
use crate::upstream::token::{LONGEST_LIFE, Timed};
use crate::upstream::upload::RequestBody;
use crate::upstream::wire::{Outgoing, Wire};

/// Time for all that is asked for one credential.
const CLOUD_TIMEOUT: Duration = Duration::from_secs(8);
/// What is younger is not asked for again, even if the registry refuses it: a registry that refuses everything must not
/// make us ask the cloud for every request.
pub(super) const YOUNG: Duration = Duration::from_secs(10);

/// A credential with its time.
pub(super) struct Kept {
    pub(super) credential: Credential,
    issued: Instant,
    expires: Instant,
}

/// A question to a service.
pub(super) struct Question<'a> {
    pub(super) url: &'a Url,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
    /// What must not be repeated in a message.
    pub(super) secrets: &'a [&'a str],
}

// === impl Kept ===

impl Kept {
    pub(super) fn new(credential: Credential, life: Duration) -> Self {
        let issued = Instant::now();
        Self { credential, issued, expires: issued + life.min(LONGEST_LIFE) }
    }
}

impl Timed for Kept {
    fn span(&self) -> (Instant, Instant) {
        (self.issued, self.expires)
    }
}

/// All that is asked for one credential, in time.
pub(super) async fn in_time(host: &str, asking: impl Future<Output = Result<Kept, Fault>>) -> Result<Arc<Kept>, Fault> {
    match timeout(CLOUD_TIMEOUT, asking).await {
        Ok(result) => result.map(Arc::new),
        Err(_) => Err(away(host, Arc::new(std::io::Error::from(std::io::ErrorKind::TimedOut)))),
    }
}

/// Posts a question; the answer is JSON.
pub(super) async fn ask<T: DeserializeOwned>(wire: &Wire, question: Question<'_>) -> Result<T, Fault> {
    let Question { url, headers, body, secrets } = question;
    let host = url.origin.authority();
    let deadline = Instant::now() + CLOUD_TIMEOUT;
    let outgoing = Outgoing { kind: Kind::Other, method: Method::POST, url, headers, body: RequestBody::whole(body) };
    let response = wire.send(outgoing, deadline).await.map_err(|fault| away(&host, Arc::new(fault)))?;
    if response.status() != StatusCode::OK {
        return Err(refused(&host, response, (deadline, wire.now()), secrets).await);
    }
    let body = timeout_at(deadline, read::whole(response.into_body(), MAX_TEXT)).await;
    let body = body.unwrap_or_else(|_| Err(read::Unread::Broken("it stalled".into())));
    let body = body.map_err(|unread| match unread {
        read::Unread::TooLarge => Fault::Token(TokenFault::TooLarge { host: host.clone(), limit: MAX_TEXT }),
        read::Unread::Broken(error) => away(&host, Arc::from(error)),
    })?;
    serde_json::from_slice(&body).map_err(|_| malformed(&host))
}

pub(super) fn malformed(host: &str) -> Fault {
    Fault::Token(TokenFault::Malformed { host: host.to_owned() })
}

async fn refused(
    host: &str,
    response: Response<Incoming>,
    (deadline, now): (Instant, SystemTime),
    secrets: &[&str],
) -> Fault {
    let status = response.status();
    let host = host.to_owned();
    if is_redirect(status) {
        return Fault::Token(TokenFault::Realm(RealmFault::Redirected { host }));
    }
    let retry_after = retry_after(response.headers(), now);
    let mut message = read::refusal(response, deadline, true).await.message;
    if secrets.iter().any(|secret| message.contains(secret)) {
        "(its words are left out, because they repeat a secret)".clone_into(&mut message);
    }
    match status.as_u16() {
        429 => Fault::RateLimited { retry_after, message },
        400 | 401 | 403 => Fault::Credential(CredentialFault::Refused { host, message }),
        _ => Fault::Token(TokenFault::Status { host, status, message }),
    }
}

fn away(host: &str, cause: Arc<dyn std::error::Error + Send + Sync>) -> Fault {
    Fault::Token(TokenFault::Away { host: host.to_owned(), cause })
}
