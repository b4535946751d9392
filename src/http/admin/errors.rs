//! `GET /api/v1/errors`: recent errors, folded, with what to do about them.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::clock::timestamp;
use crate::troubles::{Folded, Met, Troubles};

/// The answer to `GET /api/v1/errors`.
#[derive(Debug, Serialize, Deserialize)]
pub struct ErrorList {
    /// The last one first.
    pub errors: Vec<FoldedError>,
}

/// Equal errors.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FoldedError {
    /// `answer`: clients were answered with it; `upstream`: met in asking an upstream, whether a client waited or not.
    pub met: String,
    /// Null: the requests meant no upstream.
    pub upstream: Option<String>,
    /// The repository there; null: none.
    pub repository: Option<String>,
    /// The code of the answers, or what kind of failure it was.
    pub code: String,
    /// The status of the last answer; null: it had been sent, or there was none.
    pub status: Option<u16>,
    /// The last one's message: what went wrong and where.
    pub message: String,
    /// What to do about such errors.
    pub advice: String,
    /// How many there were.
    pub count: u64,
    /// When the first one was.
    pub first: Timestamp,
    /// When the last one was.
    pub last: Timestamp,
}

/// What is remembered.
pub(super) fn list(troubles: Option<&Troubles>) -> ErrorList {
    let all = troubles.map(Troubles::all).unwrap_or_default();
    ErrorList { errors: all.into_iter().map(report).collect() }
}

fn report(folded: Folded) -> FoldedError {
    FoldedError {
        met: folded.met.as_str().to_owned(),
        advice: advice(folded.met, folded.code).to_owned(),
        upstream: folded.upstream,
        repository: folded.repository,
        code: folded.code.to_owned(),
        status: folded.status,
        message: folded.message,
        count: folded.count,
        first: timestamp(folded.first),
        last: timestamp(folded.last),
    }
}

/// What to do where a code says enough to know.
fn advice(met: Met, code: &str) -> &'static str {
    match (met, code) {
        (_, "UNREACHABLE") => {
            "check name resolution, the route and the firewall to this host, and HTTPS_PROXY if there is a proxy"
        }
        (_, "OWN_LISTENER") => {
            "the upstream's name leads back here: set `connect` in its table to the registry's real addresses"
        }
        (_, "TLS") => {
            "check the certificate: `ca` in the upstream's table names a private CA, and the clock must be right"
        }
        (_, "TIMEOUT") => "the upstream, or the way to it, is slow: what is stored is still served",
        (_, "BROKEN") => {
            "the connection broke; it is tried again and downloads go on where they stopped. If it stays so, look at proxies and firewalls on the way"
        }
        (_, "RATE_LIMITED" | "TOOMANYREQUESTS") => {
            "use an account (`credentials` in the upstream's table), a longer `tags` time, or mirrors"
        }
        (Met::Upstream, "STATUS") => "the upstream has a problem of its own: what is stored is still served",
        (_, "TOKEN") => {
            "the upstream's token endpoint gives none: check that it can be reached, and `token_hosts` in the upstream's table"
        }
        (_, "CREDENTIAL") => {
            "ocistern's own credential for this upstream cannot be used: check `credentials` in its table"
        }
        (_, "REDIRECT") => {
            "the upstream sends to where it may not send ocistern: the message says which rule is in the way"
        }
        (_, "PROTOCOL") => "the upstream, or a proxy on the way, answers with something that is no registry's answer",
        (_, "BROKEN_OFF") => {
            "nothing, if it is rare: clients ask again. Otherwise the cause in the message says what to look at"
        }
        (_, "MANIFEST_UNKNOWN" | "BLOB_UNKNOWN" | "NAME_UNKNOWN") => {
            "check the name: it does not exist upstream for this caller, or the upstream is sealed and it was never stored"
        }
        (_, "NAME_INVALID" | "DIGEST_INVALID" | "UNSUPPORTED") => {
            "the client's request is not one of a registry client: check the address that it was given"
        }
        (_, "UNAUTHORIZED") => "log in with an account that may read it; the credential that was shown was refused",
        (_, "DENIED") => "the caller may not do this: the message says whose rule it is",
        (_, "UNAVAILABLE") => "the upstream cannot be asked now: see its state, and the last error there",
        (_, "UNKNOWN") => "the log says more, by the request id in x-request-id",
        _ => "the message says what is known",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::ErrorCode;

    #[test]
    fn what_happens_most_has_advice() {
        for code in [ErrorCode::TooManyRequests, ErrorCode::ManifestUnknown, ErrorCode::Denied, ErrorCode::Unavailable]
        {
            assert!(!advice(Met::Answer, code.as_str()).starts_with("the message says"), "{}", code.as_str());
        }
        assert!(advice(Met::Upstream, "UNREACHABLE").contains("firewall"));
    }
}
