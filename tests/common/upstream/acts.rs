//! What may go wrong in an answer, one function each; for [`Upstream::script`](super::Upstream::script).

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::Act;
use super::registry::error;
use super::wire::{Cut, Framing, Gate, Reply, Request};

/// Any change.
pub fn change(act: impl Fn(Reply) -> Reply + Send + Sync + 'static) -> Act {
    Arc::new(move |_: &Request, reply| act(reply))
}

/// One change, then another.
pub fn both(first: Act, second: Act) -> Act {
    Arc::new(move |request, reply| second(request, first(request, reply)))
}

/// A change of those answers only that honestly have this status.
pub fn where_status(status: u16, act: Act) -> Act {
    Arc::new(move |request, honest| if honest.status == status { act(request, honest) } else { honest })
}

/// No change: the honest answer.
pub fn honest() -> Act {
    change(|reply| reply)
}

/// The connection ends before the head.
pub fn no_head(cut: Cut) -> Act {
    change(move |reply| Reply { no_head: Some(cut), ..reply })
}

/// The connection ends when so many bytes of the body are out.
pub fn cut_at(at: u64, cut: Cut) -> Act {
    change(move |reply| Reply { cut: Some((at, cut)), ..reply })
}

/// Nothing is sent until the gate opens.
pub fn hold_head(gate: &Gate) -> Act {
    let gate = gate.clone();
    change(move |mut reply| {
        // In front: what was scripted before may hold it for good.
        reply.head_gates.insert(0, gate.clone());
        reply
    })
}

/// The body stops at that byte until the gate opens.
pub fn hold_at(at: u64, gate: &Gate) -> Act {
    let gate = gate.clone();
    change(move |mut reply| {
        reply.holds.push((at, gate.clone()));
        reply.holds.sort_by_key(|(at, _)| *at);
        reply
    })
}

/// The body comes in pieces of so many bytes, a pause after each.
pub fn drip(bytes: usize, pause: Duration) -> Act {
    change(move |reply| Reply { drip: Some((bytes, pause)), ..reply })
}

/// Content-Length differs from the body's by so much; the connection ends after the body.
pub fn announce(difference: i64) -> Act {
    change(move |reply| {
        let length = (reply.body.len() as u64).saturating_add_signed(difference);
        let end = reply.body.len() as u64;
        Reply { framing: Framing::Length(Some(length)), cut: Some((end, Cut::Fin)), ..reply }
    })
}

/// Without Content-Length, in chunks.
pub fn chunked() -> Act {
    change(|reply| Reply { framing: Framing::Chunked, ..reply })
}

/// Without Content-Length, ended by the connection's end.
pub fn until_close() -> Act {
    change(|reply| {
        let end = reply.body.len() as u64;
        Reply { framing: Framing::Close, cut: Some((end, Cut::Fin)), ..reply }
    })
}

/// One bit in the middle of the body is wrong.
pub fn corrupt() -> Act {
    change(|reply| {
        let mut bytes = reply.body.to_vec();
        let middle = bytes.len() / 2;
        if let Some(byte) = bytes.get_mut(middle) {
            *byte ^= 1;
        }
        Reply { body: bytes.into(), ..reply }
    })
}

/// Another header, or another value of it.
pub fn header(name: &'static str, value: impl Into<String>) -> Act {
    let value = value.into();
    change(move |reply| reply.with(name, value.clone()))
}

/// Without a header.
pub fn without(name: &'static str) -> Act {
    change(move |reply| reply.without(name))
}

/// A header twice, with another value the second time.
pub fn duplicate(name: &'static str, value: &'static str) -> Act {
    change(move |mut reply| {
        reply.headers.push((name.to_owned(), value.to_owned()));
        reply
    })
}

/// A whole other answer.
pub fn answer(status: u16, content_type: &'static str, body: impl Into<Bytes>) -> Act {
    let body = body.into();
    Arc::new(move |request, _| Reply {
        head_only: request.method == "HEAD",
        ..Reply::new(status, content_type, body.clone())
    })
}

/// An error in the specification's form.
pub fn fail(status: u16, code: &'static str) -> Act {
    Arc::new(move |request, _| Reply { head_only: request.method == "HEAD", ..error(status, code) })
}

/// 429 with that Retry-After (or none) and a body that is not JSON.
pub fn too_many(retry_after: Option<&'static str>) -> Act {
    let plain = answer(429, "text/plain", "Too Many Requests (HAP429).");
    match retry_after {
        Some(value) => both(plain, header("Retry-After", value)),
        None => plain,
    }
}

/// A login page with 200.
pub fn login_page() -> Act {
    answer(200, "text/html; charset=utf-8", "<!doctype html><title>Sign in</title><form method=post></form>")
}

/// The body as it is, but said to be compressed.
pub fn gzip() -> Act {
    header("Content-Encoding", "gzip")
}

/// A redirect elsewhere.
pub fn redirect(status: u16, location: impl Into<String>) -> Act {
    both(answer(status, "text/html", "<a>moved</a>"), header("Location", location))
}

/// A redirect to itself with one more hop in the query, without end.
pub fn redirect_on() -> Act {
    Arc::new(|request, _| {
        let hop = request.parameter("hop").and_then(|hop| hop.parse::<u64>().ok()).unwrap_or(0) + 1;
        Reply { head_only: request.method == "HEAD", ..Reply::new(307, "text/html", "<a>moved</a>") }
            .with("Location", format!("{}?hop={hop}", request.path))
    })
}

/// A redirect to itself so many times, then the honest answer.
pub fn redirect_times(hops: u64) -> Act {
    let on = redirect_on();
    Arc::new(move |request, honest| {
        let hop = request.parameter("hop").and_then(|hop| hop.parse::<u64>().ok()).unwrap_or(0);
        if hop < hops { on(request, honest) } else { honest }
    })
}

/// 206 with the first half, although no range was asked for.
pub fn partial_unasked() -> Act {
    change(|mut reply| {
        let whole = reply.body.len();
        let half = (whole / 2).max(1);
        reply.status = 206;
        reply.body = reply.body.slice(..half.min(whole));
        reply.with("Content-Range", format!("bytes 0-{}/{whole}", half - 1))
    })
}

/// 304, although nothing was asked conditionally.
pub fn not_modified_unasked() -> Act {
    change(|reply| Reply { status: 304, body: Bytes::new(), ..reply })
}

/// Not HTTP.
pub fn garbage() -> Act {
    change(|reply| Reply {
        preface: Bytes::from_static(b"\x16\x03\x01 SSH-2.0 this is not the protocol\r\n\r\n"),
        no_head: Some(Cut::Fin),
        ..reply
    })
}

/// So many informational answers before the real one.
pub fn informational(count: usize) -> Act {
    change(move |reply| Reply {
        preface: "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n".repeat(count).into(),
        ..reply
    })
}

/// Always 401, whatever the credential.
pub fn challenge_again(challenge: impl Into<String>) -> Act {
    both(fail(401, "UNAUTHORIZED"), header("WWW-Authenticate", challenge))
}
