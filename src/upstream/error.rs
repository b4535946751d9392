//! What can go wrong on the way to an upstream, by what the caller may do about it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;

use super::address::AddressClass;
use super::credentials::CredentialFault;
use super::origin::UrlFault;
use crate::oci::UpstreamName;

/// Longest message of an upstream that is passed on, in characters.
const MAX_MESSAGE: usize = 300;
/// Longest parameter of a challenge that is passed on.
const MAX_PARAMETER: usize = 4096;

/// The error under a [`Fault`], for logs. Shared, because many waiters may get the same failure.
pub type Cause = Arc<dyn std::error::Error + Send + Sync>;

/// A failed request to an upstream.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{upstream}: {fault}")]
pub struct UpstreamError {
    /// Which upstream.
    pub upstream: UpstreamName,
    /// What went wrong.
    #[source]
    pub fault: Fault,
}

/// What went wrong.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Fault {
    /// No connection: name not resolved, refused, no route, or the proxy on the way did not let us through.
    #[error("cannot connect: {0}")]
    Unreachable(#[source] Cause),
    /// The name or address of the upstream leads to ocistern itself.
    #[error(
        "its name leads to ocistern's own listener: set `connect` of this upstream to the registry's real addresses"
    )]
    OwnListener,
    /// The TLS handshake failed: certificate, name or protocol.
    #[error("TLS failed: {0}")]
    Tls(#[source] Cause),
    /// Asked by plain http, it says that it is to be asked by TLS.
    #[error("it speaks TLS there and was asked by plain http: write https:// in its url")]
    WantsTls,
    /// Nothing came in time.
    #[error("timed out while {}", .0.as_str())]
    Timeout(Phase),
    /// The connection broke before the answer was complete, or what came was not HTTP.
    #[error("the connection broke: {0}")]
    Broken(#[source] Cause),
    /// The upstream failed so often that it is left alone for a while.
    #[error("not asked: it failed repeatedly and is tried again in {} s", .retry_after.as_secs().max(1))]
    BreakerOpen {
        /// When it will be tried again.
        retry_after: Duration,
    },
    /// The configuration forbids to ask it.
    #[error("not asked: it is sealed by the configuration")]
    Sealed,
    /// 429.
    #[error("too many requests: {message}")]
    RateLimited {
        /// What upstream asked us to wait, clamped.
        retry_after: Option<Duration>,
        /// Upstream's words.
        message: String,
    },
    /// 401, also with a fresh token; or the token endpoint refused.
    #[error("authentication required or refused: {message}")]
    Unauthorized {
        /// Upstream's words.
        message: String,
        /// What upstream's last challenge asked for.
        demand: Demand,
    },
    /// 403.
    #[error("access denied: {message}")]
    Forbidden {
        /// Upstream's words.
        message: String,
    },
    /// 404.
    #[error("not found: {message}")]
    NotFound {
        /// The first error code of the body, where it is the specification's JSON.
        code: Option<String>,
        /// Upstream's words.
        message: String,
    },
    /// Any other status that is no answer.
    #[error("answered {status}: {message}")]
    Status {
        /// The status.
        status: StatusCode,
        /// What upstream asked us to wait, clamped.
        retry_after: Option<Duration>,
        /// Upstream's words.
        message: String,
    },
    /// No token could be got.
    #[error("no token: {0}")]
    Token(#[source] TokenFault),
    /// A redirect that is not followed.
    #[error("redirect not followed: {0}")]
    Redirect(#[source] RedirectFault),
    /// ocistern's own credential for this upstream cannot be used.
    #[error("credential: {0}")]
    Credential(#[source] CredentialFault),
    /// The answer breaks the protocol.
    #[error("unusable answer: {0}")]
    Protocol(#[source] ProtocolFault),
    /// The caller's body failed, so the request was broken off and upstream never got the whole.
    #[error("the body to send broke off: {0}")]
    Interrupted(#[source] Cause),
}

/// The cause of [`Fault::Tls`] where the other end speaks something else, as a rule plain HTTP: rustls's own words,
/// "received corrupt message of type `InvalidContentType`", send people looking for a bad certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("what answers does not speak TLS there: is the url's http:// or port right?")]
pub struct NoTls;

/// What a challenge asked for, fit to stand in a challenge of our own: no quotes, no control characters.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Demand {
    /// What is needed, several separated by spaces; empty if not said.
    pub scope: String,
    /// What was wrong with the token, such as `insufficient_scope`; empty if not said.
    pub error: String,
}

/// What was waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// A connection, the TLS handshake included.
    Connect,
    /// The head of the answer.
    Header,
    /// More of the body.
    Body,
    /// That upstream takes more of the body that is sent to it.
    Upload,
}

/// Why there is no token.
#[derive(Debug, Clone, thiserror::Error)]
pub enum TokenFault {
    /// The challenge's realm is not one that this upstream may send us to.
    #[error("{0}")]
    Realm(#[source] RealmFault),
    /// The 401 carried no challenge that can be answered.
    #[error("the 401 carries no Bearer or Basic challenge that can be answered")]
    NoChallenge,
    /// The token endpoint could not be reached, broke off or was too slow.
    #[error("the token endpoint {host} failed: {cause}")]
    Away {
        /// Host of the realm.
        host: String,
        /// What happened.
        #[source]
        cause: Cause,
    },
    /// The token endpoint answered with something else than 200, 401, 403 or 429.
    #[error("the token endpoint {host} answered {status}: {message}")]
    Status {
        /// Host of the realm.
        host: String,
        /// The status.
        status: StatusCode,
        /// The endpoint's words.
        message: String,
    },
    /// The answer is not the JSON that it should be.
    #[error("the token endpoint {host} answered with something else than a token")]
    Malformed {
        /// Host of the realm.
        host: String,
    },
    /// The answer is larger than any token.
    #[error("the token endpoint {host} answered with more than {limit} bytes")]
    TooLarge {
        /// Host of the realm.
        host: String,
        /// What would have been read.
        limit: usize,
    },
}

/// Why a realm is refused (CVE-2026-33540: a registry must not choose who gets our credential).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RealmFault {
    /// Not a URL that is dialled at all.
    #[error("the challenge's realm is refused: {0}")]
    Url(#[source] UrlFault),
    /// Plain http where that is not allowed.
    #[error("the challenge's realm is plain http on {host}, which only a plain http upstream on the same host may ask")]
    Plain {
        /// Host of the realm.
        host: String,
    },
    /// Another host than the upstream's, and not in `token_hosts`.
    #[error("the challenge's realm lies on {host}: if that is right, add \"{host}\" to `token_hosts` of this upstream")]
    Host {
        /// Host of the realm, with the port if it is not the scheme's.
        host: String,
    },
    /// The name leads to an address that this upstream may not send us to.
    #[error("the challenge's realm {host} leads to a {} address", .class.as_str())]
    Address {
        /// Host of the realm.
        host: String,
        /// What kind of address.
        class: AddressClass,
    },
    /// A redirect of the token endpoint.
    #[error("the token endpoint {host} redirects, which is not followed with a credential at stake")]
    Redirected {
        /// Host of the realm.
        host: String,
    },
}

/// Why a redirect is not followed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RedirectFault {
    /// No Location header, or more than one.
    #[error("there is no usable Location")]
    NoLocation,
    /// Location is not a URL that is dialled at all.
    #[error("{0}")]
    Url(#[source] UrlFault),
    /// From https to http.
    #[error("it leads from https to plain http on {host}")]
    Downgrade {
        /// Where it leads.
        host: String,
    },
    /// Too many.
    #[error("there are more than {limit} in a row")]
    TooMany {
        /// How many are followed.
        limit: usize,
    },
    /// The name leads to an address that this upstream may not send us to.
    #[error("{host} is a {} address", .class.as_str())]
    Address {
        /// Where it leads.
        host: String,
        /// What kind of address.
        class: AddressClass,
    },
    /// The target refused: its word says nothing about what the registry allows.
    #[error("{host}, to which it leads, answered {status}")]
    Refused {
        /// Where it leads.
        host: String,
        /// 401 or 403.
        status: StatusCode,
    },
    /// Of a write, with a status that does not say that the write itself is to be repeated there.
    #[error("a write is not repeated after {status}")]
    Write {
        /// Neither 307 nor 308.
        status: StatusCode,
    },
    /// Of a request whose body is gone by now.
    #[error("the body that it wants on {host} was streamed and cannot be sent again")]
    Streamed {
        /// Where it leads.
        host: String,
    },
}

/// How an answer breaks the protocol.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolFault {
    /// Compressed although `Accept-Encoding: identity` was sent: the bytes would not match any digest.
    #[error("it has a Content-Encoding although identity was asked for")]
    ContentEncoding,
    /// 206 to a request without Range, or for another range.
    #[error("it is a part that was not asked for")]
    Range,
    /// The body ended early or late.
    #[error("the body has {actual} bytes where {expected} were announced")]
    Length {
        /// Content-Length.
        expected: u64,
        /// What came; of a body that is too long, what had come when it was noticed.
        actual: u64,
    },
    /// What was asked cannot be written as a request target.
    #[error("the request target is not valid")]
    Target,
    /// Content-Length is not one number.
    #[error("its Content-Length is not a number")]
    ContentLength,
}

/// What a failure means for the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Class {
    /// Network, time-out, 429, 5xx, breaker, sealed, token endpoint away: what is known may be served as stale.
    Unavailable,
    /// 401 and 403: the registry's word on this caller.
    Refused,
    /// 404.
    Missing,
    /// It answers, but not usably; or our credential cannot be read.
    Bad,
}

// === impl UpstreamError ===

impl UpstreamError {
    /// What it means for the caller.
    pub fn class(&self) -> Class {
        self.fault.class()
    }

    /// Whether the same request may succeed if it is repeated soon.
    pub fn is_retryable(&self) -> bool {
        self.fault.is_retryable()
    }
}

// === impl Fault ===

impl Fault {
    /// What it means for the caller.
    pub fn class(&self) -> Class {
        match self {
            Self::Unreachable(_)
            | Self::OwnListener
            | Self::Tls(_)
            | Self::WantsTls
            | Self::Timeout(_)
            | Self::Broken(_)
            | Self::BreakerOpen { .. }
            | Self::Sealed
            | Self::RateLimited { .. }
            | Self::Token(TokenFault::Away { .. }) => Class::Unavailable,
            Self::Status { status, .. } | Self::Token(TokenFault::Status { status, .. }) => {
                if status.is_server_error() || *status == StatusCode::REQUEST_TIMEOUT {
                    Class::Unavailable
                } else {
                    Class::Bad
                }
            }
            Self::Unauthorized { .. } | Self::Forbidden { .. } => Class::Refused,
            Self::NotFound { .. } => Class::Missing,
            Self::Token(_) | Self::Redirect(_) | Self::Credential(_) | Self::Protocol(_) | Self::Interrupted(_) => {
                Class::Bad
            }
        }
    }

    /// Whether the same request may succeed if it is repeated soon, or continued from where its body broke off.
    /// A head that did not come in time is not waited for again: whoever waited so long has no time left.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Unreachable(_)
            | Self::Timeout(Phase::Body)
            | Self::Broken(_)
            | Self::RateLimited { .. }
            | Self::Token(TokenFault::Away { .. })
            | Self::Redirect(RedirectFault::Refused { .. }) => true,
            Self::Protocol(ProtocolFault::Length { expected, actual }) => actual < expected,
            Self::Status { status, .. } | Self::Token(TokenFault::Status { status, .. }) => {
                matches!(status.as_u16(), 502..=504)
            }
            _ => false,
        }
    }

    /// Whether somebody should look after it: it is no upstream's word on a caller or on content, and not what the
    /// configuration wants.
    pub(crate) fn is_trouble(&self) -> bool {
        match self.class() {
            Class::Unavailable | Class::Bad => {
                !matches!(self, Self::Sealed | Self::BreakerOpen { .. } | Self::Interrupted(_))
            }
            Class::Refused | Class::Missing => false,
        }
    }

    /// What kind of failure it is, in a word.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Unreachable(_) => "UNREACHABLE",
            Self::OwnListener => "OWN_LISTENER",
            Self::Tls(_) | Self::WantsTls => "TLS",
            Self::Timeout(_) => "TIMEOUT",
            Self::Broken(_) => "BROKEN",
            Self::BreakerOpen { .. } => "BREAKER_OPEN",
            Self::Sealed => "SEALED",
            Self::RateLimited { .. } => "RATE_LIMITED",
            Self::Unauthorized { .. } => "UNAUTHORIZED",
            Self::Forbidden { .. } => "FORBIDDEN",
            Self::NotFound { .. } => "NOT_FOUND",
            Self::Status { .. } => "STATUS",
            Self::Token(_) => "TOKEN",
            Self::Redirect(_) => "REDIRECT",
            Self::Credential(_) => "CREDENTIAL",
            Self::Protocol(_) => "PROTOCOL",
            Self::Interrupted(_) => "INTERRUPTED",
        }
    }

    /// What upstream asked us to wait, if it did.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::RateLimited { retry_after, .. } | Self::Status { retry_after, .. } => *retry_after,
            Self::BreakerOpen { retry_after } => Some(*retry_after),
            _ => None,
        }
    }

    /// Adds the upstream's name.
    pub(crate) fn of(self, upstream: &UpstreamName) -> UpstreamError {
        UpstreamError { upstream: upstream.clone(), fault: self }
    }
}

// === impl Phase ===

impl Phase {
    /// What was waited for, as it stands after "while".
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Connect => "connecting",
            Self::Header => "waiting for the answer",
            Self::Body => "waiting for more of the body",
            Self::Upload => "sending the body",
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A challenge's parameter, if it may stand in another challenge.
pub(crate) fn quotable(text: &str) -> String {
    let fits = text.len() <= MAX_PARAMETER
        && text.bytes().all(|b| b == b' ' || (b.is_ascii_graphic() && !matches!(b, b'"' | b'\\')));
    if fits { text.to_owned() } else { String::new() }
}

/// Words of an upstream, fit for a log line and a JSON message: no control or direction-changing characters, runs of
/// white space as one space, at most 300 characters.
pub(crate) fn sanitise(text: &str) -> String {
    let hidden = |c: char| {
        c.is_control()
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
    };
    let words = text.split(|c: char| c.is_whitespace() || hidden(c)).filter(|word| !word.is_empty());
    let mut clean = String::new();
    for word in words {
        if !clean.is_empty() {
            clean.push(' ');
        }
        clean.push_str(word);
        if clean.chars().count() > MAX_MESSAGE {
            return clean.chars().take(MAX_MESSAGE - 1).chain(['…']).collect();
        }
    }
    clean
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_fit_for_one_log_line() {
        assert_eq!(sanitise("a\r\nSet-Cookie: x\0\tb\u{202e}c"), "a Set-Cookie: x b c");
        let long = sanitise(&"é".repeat(100_000));
        assert_eq!(long.chars().count(), MAX_MESSAGE, "a long message is cut by characters, not in the middle of one");
        assert!(long.ends_with('…'));
        assert_eq!(quotable("repository:a/b:pull,push x"), "repository:a/b:pull,push x");
        for bad in ["a\"b", "a\\b", "a\r\nb", "é", &"x".repeat(5000)] {
            assert_eq!(quotable(bad), "", "{bad:?}");
        }
        assert_eq!(sanitise("\n\n"), "");
    }

    #[test]
    fn classes_decide_what_may_be_served_stale() {
        let status = |code| Fault::Status {
            status: StatusCode::from_u16(code).unwrap(),
            retry_after: None,
            message: String::new(),
        };
        assert_eq!(status(503).class(), Class::Unavailable);
        assert_eq!(status(418).class(), Class::Bad);
        assert!(status(502).is_retryable() && !status(500).is_retryable());
        assert_eq!(Fault::Forbidden { message: String::new() }.class(), Class::Refused);
        assert_eq!(Fault::Sealed.class(), Class::Unavailable);
        assert!(!Fault::Timeout(Phase::Connect).is_retryable() && Fault::Timeout(Phase::Body).is_retryable());
        let short = Fault::Protocol(ProtocolFault::Length { expected: 2, actual: 1 });
        assert!(short.is_retryable(), "a body that broke off can be continued");
    }
}
