//! `GET /api/v1/errors`: recent errors, folded, with what to do about them.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::clock::timestamp;
use crate::http::caller::MANY_IN_QUESTION;
use crate::http::explain::{NO_UPSTREAM, SEALED};
use crate::http::relayed::BEGUN_UPLOADS;
use crate::troubles::{Folded, Met, Troubles};
use crate::upstream::{Fault, NoTls};

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
        advice: advice(&folded).to_owned(),
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

/// What to do about such errors: one code stands for several causes, which status, upstream and message tell apart.
fn advice(folded: &Folded) -> &'static str {
    match folded.met {
        Met::Answer => of_answer(folded),
        Met::Upstream => of_upstream(folded),
    }
}

/// Of what was met in asking an upstream.
fn of_upstream(folded: &Folded) -> &'static str {
    match folded.code {
        "UNREACHABLE" => {
            "check name resolution, the route and the firewall to this host, and HTTPS_PROXY if there is a proxy"
        }
        "OWN_LISTENER" => {
            "the upstream's name leads back here: set `connect` in its table to the registry's real addresses"
        }
        "TLS" if folded.message.contains(&NoTls.to_string()) => {
            "what listens there speaks something else than TLS: `url` of the upstream has to begin with http://, or has another port"
        }
        "TLS" if folded.message.contains(&Fault::WantsTls.to_string()) => {
            "what listens there speaks TLS: `url` of the upstream has to begin with https://"
        }
        "TLS" => "check the certificate: `ca` in the upstream's table names a private CA, and the clock must be right",
        "TIMEOUT" => "the upstream, or the way to it, is slow: what is stored is still served",
        "BROKEN" => {
            "the connection broke; it is tried again and downloads go on where they stopped. If it stays so, look at proxies and firewalls on the way"
        }
        "RATE_LIMITED" => LIMITED,
        "STATUS" => "the upstream has a problem of its own: what is stored is still served",
        "TOKEN" => {
            "the upstream's token endpoint gives none: check that it can be reached, and `token_hosts` in the upstream's table"
        }
        "CREDENTIAL" => "ocistern's own credential for this upstream cannot be used: check `credentials` in its table",
        "REDIRECT" => "the upstream sends to where it may not send ocistern: the message says which rule is in the way",
        "PROTOCOL" => NO_REGISTRY,
        _ => UNKNOWN,
    }
}

/// Of what clients were answered.
fn of_answer(folded: &Folded) -> &'static str {
    let is_ours = folded.status.is_some_and(|status| status >= 500);
    let says = |words: &str| folded.message.contains(words);
    match folded.code {
        "BROKEN_OFF" => {
            "nothing, if it is rare: clients ask again. Otherwise the cause in the message says what to look at"
        }
        "TOOMANYREQUESTS" if says(BEGUN_UPLOADS) => {
            "the client has to end its uploads, or to wait until those that were given up end by themselves"
        }
        "TOOMANYREQUESTS" if says(MANY_IN_QUESTION) => {
            "somebody there tries out passwords, or very many log in at once: it passes by itself"
        }
        "TOOMANYREQUESTS" => LIMITED,
        "NAME_UNKNOWN" if folded.upstream.is_none() || says(NO_UPSTREAM) => {
            "the name means no registry of the configuration: add the table that the message names, or ask for one that is there"
        }
        "BLOB_UNKNOWN" if is_ours => {
            "what the disk gave was wrong, and it is fetched anew when it is asked for: look at the disk (dmesg, smartctl), and run `ocistern verify`"
        }
        "MANIFEST_UNKNOWN" | "BLOB_UNKNOWN" | "NAME_UNKNOWN" if says(SEALED) => {
            "the configuration forbids to ask for this (`sealed`): only what was pulled before is there; `ocistern missed` lists what is not"
        }
        "MANIFEST_UNKNOWN" | "BLOB_UNKNOWN" | "NAME_UNKNOWN" => {
            "check the name: it does not exist upstream for this caller"
        }
        "DIGEST_INVALID" | "MANIFEST_INVALID" | "UNKNOWN" if folded.status == Some(502) => NO_REGISTRY,
        // Other refusals with a code that clients know have an upstream, too.
        "UNSUPPORTED" if folded.status == Some(405) && folded.upstream.is_some() => {
            "this upstream is not written to so: the message says whether its registry refuses, or `push` in its table here"
        }
        "NAME_INVALID" | "DIGEST_INVALID" | "UNSUPPORTED" => {
            "the client's request is not one of a registry client: check the address that it was given"
        }
        "UNAUTHORIZED" => {
            "log in with an account that may do this: the message says what was wrong with what was shown"
        }
        "DENIED" => "the caller may not do this: the message says whose rule it is",
        "UNAVAILABLE" => {
            "try again; if it was the upstream that could not be asked, see its state and the last error there"
        }
        "UNKNOWN" => "the log says more, by the request id in x-request-id",
        _ => UNKNOWN,
    }
}

const LIMITED: &str = "use an account (`credentials` in the upstream's table), a longer `tags` time, or mirrors";
const NO_REGISTRY: &str = "the upstream, or a proxy on the way, answers with something that is no registry's answer";
const UNKNOWN: &str = "the message says what is known";

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::oci::ErrorCode;

    fn answer(code: ErrorCode, status: u16, message: &str) -> Folded {
        let code = code.as_str();
        let (upstream, now) = (Some("up".to_owned()), SystemTime::UNIX_EPOCH);
        let (met, status, message) = (Met::Answer, Some(status), message.to_owned());
        Folded { met, upstream, repository: None, code, status, message, count: 1, first: now, last: now }
    }

    fn met(code: &'static str, message: &str) -> Folded {
        Folded { met: Met::Upstream, status: None, code, ..answer(ErrorCode::Unknown, 500, message) }
    }

    #[test]
    fn what_happens_most_has_advice() {
        for code in [ErrorCode::TooManyRequests, ErrorCode::ManifestUnknown, ErrorCode::Denied, ErrorCode::Unavailable]
        {
            let advice = advice(&answer(code, 400, ""));
            assert!(!advice.starts_with("the message says"), "{}", code.as_str());
        }
        assert!(advice(&met("UNREACHABLE", "")).contains("firewall"));
    }

    /// The same code, and something else to do.
    #[test]
    fn advice_goes_by_the_cause() {
        use ErrorCode::{BlobUnknown, DigestInvalid, ManifestUnknown, NameUnknown, Unsupported};
        let nowhere = |message: &str| Folded { upstream: None, ..answer(NameUnknown, 404, message) };
        for (folded, words) in [
            (answer(Unsupported, 405, "ocistern is configured not to write to up (push = \"off\")"), "`push`"),
            (answer(Unsupported, 400, "the Host field is no host"), "address that it was given"),
            (nowhere("ocistern has no upstream for \"x.y\"; add a table"), "add the table"),
            (answer(NameUnknown, 404, &format!("{NO_UPSTREAM} named up; add a table")), "add the table"),
            (answer(NameUnknown, 404, "upstream up does not have it"), "check the name"),
            (answer(ManifestUnknown, 404, &format!("upstream up {SEALED}")), "`sealed`"),
            (answer(ErrorCode::TooManyRequests, 429, &format!("you have 9 {BEGUN_UPLOADS}")), "its uploads"),
            (answer(ErrorCode::TooManyRequests, 429, &format!("busy with {MANY_IN_QUESTION}")), "passwords"),
            (answer(BlobUnknown, 502, "the stored copy was damaged"), "smartctl"),
            (answer(DigestInvalid, 400, "no digest"), "address that it was given"),
            (answer(DigestInvalid, 502, "upstream up sent content that is not x"), "no registry's answer"),
            (met("TLS", &format!("TLS failed: {NoTls}")), "http://"),
            (met("TLS", &format!("registry.test: {}", Fault::WantsTls)), "begin with https://"),
            (met("TLS", "TLS failed: invalid peer certificate: UnknownIssuer"), "certificate"),
        ] {
            assert!(advice(&folded).contains(words), "{folded:?}: {}", advice(&folded));
        }
    }
}
