//! What a failure of the cache means to a client: the status it gets, and the sentence that says what to do.
//!
//! Statuses are chosen for what clients do with them: containerd goes on to the next host at a 404 or any 5xx, hammers
//! at a 429, and docker falls back to its own registry at any error.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use http::{Method, StatusCode};

use super::Visit;
use super::access::is_own_account;
use super::challenge::TokenError;
use super::respond::Failure;
use crate::cache::{CacheError, Target, Want};
use crate::metrics::Kind;
use crate::oci::{ErrorCode, UpstreamName};
use crate::store::Sought;
use crate::upstream::{Class, Fault, Right, UpstreamError};

/// When to ask again for what upstream alone may answer, and could not.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// What messages say, by which advice tells causes apart that share a code (`admin/errors.rs`).
pub(super) const NO_UPSTREAM: &str = "ocistern has no upstream";
pub(super) const SEALED: &str = "is sealed by ocistern's configuration";

// === impl Visit ===

impl Visit<'_> {
    /// The failure of a request for a resource of this kind. Where upstream refuses who a credential might help, it is
    /// asked for.
    pub(super) fn explain(&self, error: CacheError, kind: Kind) -> Failure {
        let refused = match &error {
            CacheError::Upstream(error) => self.refused(error),
            CacheError::CredentialWanted { upstream } => {
                let message = format!(
                    "upstream {upstream} gives this to callers with a credential only: {}",
                    self.how_to_log_in()
                );
                self.caller.challenged(self, None, message)
            }
            _ => None,
        };
        let unconfirmed = self.must_ask() && error.is_unavailable();
        let mut failure = refused.unwrap_or_else(|| explain(error, kind));
        if unconfirmed && failure.status.is_server_error() {
            failure.status = StatusCode::SERVICE_UNAVAILABLE;
            failure.retry_after = failure.retry_after.or(Some(ASK_AGAIN));
        }
        failure
    }

    /// The same of something that is pulled. What is missing at a sealed upstream is noted: `sought` tells what that is, where
    /// somebody can bring it.
    pub(super) fn missed(
        &self,
        error: CacheError,
        kind: Kind,
        target: &Target,
        sought: impl FnOnce() -> Option<Sought>,
    ) -> Failure {
        let is_sealed = error.is_sealed();
        let mut failure = self.explain(error, kind);
        if !is_sealed || failure.status != StatusCode::NOT_FOUND {
            return failure;
        }
        // Who asks before a push whether something is there wants to bring it.
        let sought = sought().filter(|_| !self.must_ask());
        let (up, repo) = (&target.upstream, &target.repo);
        let what = match &sought {
            Some(Sought::Tag(tag)) => format!("{up}/{repo}:{tag}"),
            Some(Sought::Manifest(digest) | Sought::Blob(digest)) => format!("{up}/{repo}@{digest}"),
            None => format!("{} of {up}/{repo}", if kind == Kind::Tags { "the list of tags" } else { "this" }),
        };
        let _ = write!(failure.message, ": {what}");
        if sought.is_some() {
            failure.message.push_str(". `ocistern missed` lists it for who can bring it (docs/troubleshooting.md)");
        }
        self.asked.app.cache.note_sealed(target, kind, sought, self.asked.party());
        failure
    }

    /// Whether upstream alone may answer this, whatever is known here.
    fn must_ask(&self) -> bool {
        let head = self
            .asked
            .upstream(&self.route.upstream)
            .is_ok_and(|upstream| self.caller.head(upstream) == Want::Required);
        head && self.asked.parts.method == Method::HEAD
    }

    /// The answer to a caller whom upstream itself refused; none where no credential of the caller's counts.
    pub(super) fn refused(&self, error: &Arc<UpstreamError>) -> Option<Failure> {
        let by_own = matches!(self.caller.right, Right::Client(_));
        let (unauthorized, token_error) = match &error.fault {
            Fault::Unauthorized { demand, .. } if demand.error == "insufficient_scope" => (true, TokenError::Scope),
            Fault::Unauthorized { .. } => (true, TokenError::Invalid),
            Fault::Forbidden { .. } => (false, TokenError::Scope),
            _ => return None,
        };
        let failure = if by_own && !unauthorized {
            Failure::new(StatusCode::FORBIDDEN, ErrorCode::Denied, format!("upstream {error}"))
        } else if by_own {
            self.caller.challenged(self, Some(token_error), format!("upstream {error}"))?
        } else {
            self.caller.challenged(self, None, self.advice(error))?
        };
        Some(failure.with_source(Arc::clone(error)))
    }
}

impl Visit<'_> {
    /// Where and as whom: clients keep their credentials by the address that they ask.
    fn how_to_log_in(&self) -> String {
        let host = self.asked.host.unwrap_or("ocistern's address");
        format!("log in here (docker login {host}) with an account of {}", self.route.upstream)
    }

    /// What somebody can do whom upstream refused, and who showed nothing that could have helped.
    fn advice(&self, error: &UpstreamError) -> String {
        if matches!(self.asked.parts.method, Method::GET | Method::HEAD) {
            return format!("{}. It does not exist there, or is private: {}", sentence(error), self.how_to_log_in());
        }
        let name = &self.route.upstream;
        let mut advice =
            format!("{}. It takes this only from an account that may do it: {}", sentence(error), self.how_to_log_in());
        if self.asked.upstream(name).is_ok_and(|upstream| is_own_account(upstream)) {
            let _ = write!(
                advice,
                ". ocistern's own account only pulls; push = \"shared\" in [upstream.\"{name}\"] lends it to callers that \
                 the listener knows"
            );
        }
        advice
    }
}

/// What upstream said, without the full stop that may be in its words.
fn sentence(error: &UpstreamError) -> String {
    format!("upstream {error}").trim_end_matches('.').to_owned()
}

/// The failure of a request for a resource of this kind.
pub(super) fn explain(error: CacheError, kind: Kind) -> Failure {
    let failure = match &error {
        CacheError::Upstream(error) => return upstream(error, kind),
        CacheError::RecentlyMissing { upstream } => {
            let message = format!("upstream {upstream} said a moment ago that it does not have this");
            return Failure::new(StatusCode::NOT_FOUND, unknown(kind), message);
        }
        CacheError::Sealed { upstream } => return sealed(upstream, kind),
        CacheError::CredentialWanted { upstream } => {
            let message =
                format!("upstream {upstream} gives this to callers with a credential only: log in to ocistern");
            return Failure::new(StatusCode::UNAUTHORIZED, ErrorCode::Unauthorized, message);
        }
        CacheError::NoUpstream(upstream) => {
            let message = format!("ocistern has no upstream named {upstream}; add a table [upstream.\"{upstream}\"]");
            return Failure::new(StatusCode::NOT_FOUND, ErrorCode::NameUnknown, message);
        }
        CacheError::Timeout { upstream } => Failure::new(
            StatusCode::GATEWAY_TIMEOUT,
            ErrorCode::Unavailable,
            format!("upstream {upstream} did not answer in time; try again, and check the way to it"),
        ),
        CacheError::WrongContent(wrong) => Failure::new(
            StatusCode::BAD_GATEWAY,
            ErrorCode::DigestInvalid,
            format!(
                "upstream {} sent content that is not {}; nothing of it was kept. If it stays so, the upstream, or a \
                 proxy on the way to it, is damaged",
                wrong.upstream, wrong.expected
            ),
        ),
        CacheError::ManifestTooLarge { upstream, limit } => Failure::new(
            StatusCode::BAD_GATEWAY,
            ErrorCode::ManifestInvalid,
            format!("upstream {upstream} sent a manifest larger than {limit} bytes; store.max_manifest sets the limit"),
        ),
        CacheError::ManifestRefused { upstream, fault } => Failure::new(
            StatusCode::BAD_GATEWAY,
            ErrorCode::ManifestInvalid,
            format!("upstream {upstream} sent something that is not accepted as a manifest: {fault}"),
        ),
        CacheError::BadAnswer { upstream, reason } => Failure::new(
            StatusCode::BAD_GATEWAY,
            ErrorCode::Unknown,
            format!("upstream {upstream} answered in a way that cannot be used: {reason}"),
        ),
        CacheError::Damaged(digest) => Failure::new(
            StatusCode::BAD_GATEWAY,
            ErrorCode::BlobUnknown,
            format!(
                "the stored copy of {digest} was damaged and has been quarantined; ask again to have it fetched anew"
            ),
        ),
        CacheError::Unreadable(digest) => Failure::new(
            StatusCode::BAD_GATEWAY,
            ErrorCode::BlobUnknown,
            format!("the stored copy of {digest} could not be read; ask again to have it fetched anew"),
        ),
        CacheError::NoSpace | CacheError::Store(_) => Failure::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            ErrorCode::Unknown,
            "ocistern's store failed; its log says why, by the request id in x-request-id",
        ),
        CacheError::BadPart(digest) => Failure::new(
            StatusCode::BAD_GATEWAY,
            ErrorCode::Unavailable,
            format!("what an earlier download of {digest} had left was damaged and is removed; ask again to have it fetched anew"),
        ),
        CacheError::NoPlace { upstream } => Failure::new(
            StatusCode::SERVICE_UNAVAILABLE,
            ErrorCode::Unavailable,
            format!(
                "other downloads from upstream {upstream} took all the requests that its max_connections allows; try again \
                 later, or raise it (no restart is needed: SIGHUP)"
            ),
        )
        .with_retry_after(Some(Duration::from_secs(5))),
        CacheError::Parked(_) => Failure::new(
            StatusCode::SERVICE_UNAVAILABLE,
            ErrorCode::Unavailable,
            "the download was put aside a moment ago, since nobody read it; try again",
        )
        .with_retry_after(Some(Duration::from_secs(1))),
        CacheError::Arrived(_) => Failure::new(
            StatusCode::SERVICE_UNAVAILABLE,
            ErrorCode::Unavailable,
            "the store gains and loses this faster than it can be read; try again, and give it more capacity",
        )
        .with_retry_after(Some(Duration::from_secs(1))),
        CacheError::Stopped => Failure::new(
            StatusCode::SERVICE_UNAVAILABLE,
            ErrorCode::Unavailable,
            "ocistern is stopping; try again when it has started",
        )
        .with_retry_after(Some(Duration::from_secs(1))),
    };
    failure.with_source(error)
}

fn upstream(error: &UpstreamError, kind: Kind) -> Failure {
    let name = &error.upstream;
    let unavailable = |message: String| Failure::new(StatusCode::BAD_GATEWAY, ErrorCode::Unavailable, message);
    let failure = match &error.fault {
        Fault::Sealed => return sealed(name, kind),
        Fault::Unreachable(cause) => unavailable(format!(
            "ocistern cannot reach upstream {name}: {cause}; pulls that the store may answer without it still work"
        )),
        Fault::OwnListener | Fault::Tls(_) | Fault::WantsTls => unavailable(format!(
            "ocistern cannot reach upstream {error}; pulls that the store may answer without it still work"
        )),
        Fault::Timeout(_) => Failure::new(
            StatusCode::GATEWAY_TIMEOUT,
            ErrorCode::Unavailable,
            format!("upstream {error}; try again, and check the way to it"),
        ),
        Fault::BreakerOpen { retry_after } => Failure::new(
            StatusCode::SERVICE_UNAVAILABLE,
            ErrorCode::Unavailable,
            format!("upstream {error}; pulls that the store may answer without it still work"),
        )
        .with_retry_after(Some(*retry_after)),
        Fault::RateLimited { retry_after, message } => {
            let limited = format!("upstream {name} limits the rate of requests: {message}");
            Failure::new(StatusCode::TOO_MANY_REQUESTS, ErrorCode::TooManyRequests, limited)
                .with_retry_after(*retry_after)
        }
        Fault::NotFound { message, .. } => {
            return Failure::new(
                StatusCode::NOT_FOUND,
                unknown(kind),
                format!("upstream {name} does not have it: {message}"),
            );
        }
        Fault::Unauthorized { .. } | Fault::Forbidden { .. } => Failure::new(
            StatusCode::FORBIDDEN,
            ErrorCode::Denied,
            format!(
                "{}. It does not exist, or is private: `credentials` in [upstream.\"{name}\"] of ocistern's \
                 configuration must be an account that may read it",
                sentence(error)
            ),
        ),
        _ if error.class() == Class::Unavailable => unavailable(format!("upstream {error}; try again")),
        _ => Failure::new(StatusCode::BAD_GATEWAY, ErrorCode::Unknown, format!("upstream {error}")),
    };
    failure.with_source(error.clone())
}

fn sealed(upstream: &UpstreamName, kind: Kind) -> Failure {
    let message = format!("upstream {upstream} is sealed by ocistern's configuration and this is not in the store");
    Failure::new(StatusCode::NOT_FOUND, unknown(kind), message)
}

const fn unknown(kind: Kind) -> ErrorCode {
    match kind {
        Kind::Manifest => ErrorCode::ManifestUnknown,
        Kind::Blob | Kind::Upload => ErrorCode::BlobUnknown,
        Kind::Tags | Kind::Referrers | Kind::Other => ErrorCode::NameUnknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(fault: Fault) -> Failure {
        let error = UpstreamError { upstream: "docker.io".parse().unwrap(), fault };
        explain(CacheError::Upstream(Arc::new(error)), Kind::Manifest)
    }

    #[test]
    fn statuses_that_clients_act_on() {
        let not_found = of(Fault::NotFound { code: None, message: "no such tag".into() });
        assert_eq!((not_found.status, not_found.code), (StatusCode::NOT_FOUND, ErrorCode::ManifestUnknown));
        let limited = of(Fault::RateLimited { retry_after: Some(Duration::from_secs(9)), message: String::new() });
        assert_eq!(
            (limited.status, limited.retry_after),
            (StatusCode::TOO_MANY_REQUESTS, Some(Duration::from_secs(9)))
        );
        let open = of(Fault::BreakerOpen { retry_after: Duration::from_secs(3) });
        assert_eq!((open.status, open.retry_after), (StatusCode::SERVICE_UNAVAILABLE, Some(Duration::from_secs(3))));
        let refused = of(Fault::Unauthorized { message: String::new(), demand: crate::upstream::Demand::default() });
        assert_eq!((refused.status, refused.code), (StatusCode::FORBIDDEN, ErrorCode::Denied));
        assert!(refused.message.contains("[upstream.\"docker.io\"]"), "it says which table: {}", refused.message);
        let gone = of(Fault::Unreachable(Arc::new(std::io::Error::other("refused"))));
        assert_eq!(gone.status, StatusCode::BAD_GATEWAY);
        assert_eq!(
            gone.message,
            "ocistern cannot reach upstream docker.io: refused; pulls that the store may answer without it still work"
        );
        assert_eq!(of(Fault::Sealed).status, StatusCode::NOT_FOUND);
    }

    #[test]
    fn what_advice_goes_by_is_said() {
        assert!(of(Fault::Sealed).message.contains(SEALED));
        let nowhere = explain(CacheError::NoUpstream("docker.io".parse().unwrap()), Kind::Manifest);
        assert!(nowhere.message.contains(NO_UPSTREAM));
    }
}
