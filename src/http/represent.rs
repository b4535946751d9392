//! From content to a response: validators, ranges, framing. The same for manifests and blobs, which differ only in
//! their media type and in where their bytes are.
//!
//! RFC 9110 sections 13 (conditional requests) and 14 (range requests); OCI distribution-spec, "Pulling manifests" and
//! "Pulling blobs".

use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::stream::{self, BoxStream, StreamExt as _};
use http::header::{CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderName, IF_NONE_MATCH, IF_RANGE, RANGE};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, Version};
use http_body::{Frame, SizeHint};

use super::body::{Body, BodyError};
use super::range::{self, Multipart, Ranges};
use super::record::Served;
use super::respond::Failure;
use crate::cache::{Bypass, CACHE_STATUS, CacheStatus, Content, Found, Labels};
use crate::metrics::Source;
use crate::sendfile::Outlet;

/// What a digest names, ready to be sent.
pub(super) struct Representation {
    pub(super) labels: Labels,
    /// Bytes in all, if they are known.
    pub(super) length: Option<u64>,
    pub(super) payload: Payload,
    pub(super) status: CacheStatus,
}

/// Where the bytes are.
pub(super) enum Payload {
    /// In memory.
    Bytes(Bytes),
    /// In a file, whole or growing.
    Content(Content),
    /// On their way from upstream, not kept.
    Bypass(Bypass),
    /// Not wanted.
    None,
}

/// Bytes of a file that are read at once for a client of HTTP/2: a stream that its client does not read holds what was
/// read for it, and a connection has a hundred of them.
const HTTP2_CHUNK: usize = 32 * 1024;

type Chunks = BoxStream<'static, Result<Bytes, BodyError>>;

/// A stream of chunks as a body that knows its length.
struct Chunked {
    chunks: Chunks,
    /// What is still to come, if it is known.
    left: Option<u64>,
}

// === impl Representation ===

impl Representation {
    /// The response to a GET or HEAD with these header fields, by a connection that has this outlet.
    pub(super) fn respond(mut self, request: &Parts, outlet: Option<&Outlet>) -> Result<Response<Body>, Failure> {
        let mut headers = std::mem::take(&mut self.labels.fields);
        let etag = self.labels.etag.clone();
        let etag = etag.to_str().unwrap_or_default();
        let head_only = request.method == Method::HEAD;
        let in_frames = request.version >= Version::HTTP_2;
        let ranges = match self.length {
            Some(length) if !head_only && self.can_seek() && range::if_range(request.headers.get(IF_RANGE), etag) => {
                range::parse(request.headers.get(RANGE), length)
            }
            _ => Ranges::Whole,
        };
        // Parts that are the whole together are verified like the whole: as one.
        let ranges = match ranges {
            Ranges::Many(parts)
                if !self.is_verified() && Some(parts.iter().map(|part| part.end - part.start).sum()) == self.length =>
            {
                Ranges::Whole
            }
            ranges => ranges,
        };
        let outlet = outlet.filter(|_| !in_frames);
        let part = matches!(ranges, Ranges::One(_) | Ranges::Many(_));
        let partial = match &ranges {
            // A range that covers everything is verified like the whole: its end is held back.
            Ranges::One(range) => Some(range.end - range.start) != self.length,
            Ranges::Many(_) => true,
            Ranges::Whole | Ranges::Unsatisfiable => false,
        };
        self.status.unverified = partial && !self.is_verified();

        if self.status != CacheStatus::from(Found::Hit) {
            headers.insert(CACHE_STATUS, HeaderValue::from_static(self.status.as_header()));
        }

        let mut response = if none_match(&request.headers, etag) {
            headers.remove(CONTENT_TYPE);
            headers.remove(CONTENT_LENGTH);
            status(StatusCode::NOT_MODIFIED, Body::empty())
        } else if part || head_only || !matches!(ranges, Ranges::Unsatisfiable) {
            self.body(ranges, head_only, in_frames, outlet, &mut headers)
        } else {
            return Err(Failure::range(&range::unsatisfied(self.length.unwrap_or_default())));
        };
        let source = self.source();
        *response.headers_mut() = headers;
        response.body_mut().set_served(Served { outcome: self.status.outcome(), source });
        Ok(response)
    }

    /// The response with its body, and the fields that depend on the ranges.
    fn body(
        &mut self,
        ranges: Ranges,
        head_only: bool,
        in_frames: bool,
        outlet: Option<&Outlet>,
        headers: &mut HeaderMap,
    ) -> Response<Body> {
        let length = self.length.unwrap_or_default();
        let (code, sent) = match &ranges {
            Ranges::One(range) => {
                insert(headers, CONTENT_RANGE, &range::content_range(range, length));
                (StatusCode::PARTIAL_CONTENT, Some(range.end - range.start))
            }
            Ranges::Many(ranges) => {
                let media_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
                let plan = Multipart::new(ranges.clone(), length, media_type);
                insert(headers, CONTENT_TYPE, &plan.content_type());
                let sent = plan.content_length();
                headers.insert(CONTENT_LENGTH, HeaderValue::from(sent));
                let chunks = self.multipart(plan, in_frames, outlet);
                return status(StatusCode::PARTIAL_CONTENT, Body::stream(Chunked { chunks, left: Some(sent) }));
            }
            Ranges::Whole | Ranges::Unsatisfiable => (StatusCode::OK, self.length),
        };
        if let Some(sent) = sent.filter(|sent| Some(*sent) != self.length) {
            headers.insert(CONTENT_LENGTH, HeaderValue::from(sent));
        }
        if head_only {
            return status(code, Body::empty());
        }
        let range = if let Ranges::One(range) = ranges { Some(range) } else { None };
        let body = match self.at_hand(range.as_ref()) {
            Some(bytes) => Body::full(bytes),
            None => Body::stream(Chunked { chunks: self.chunks(range, in_frames, outlet), left: sent }),
        };
        status(code, body)
    }

    /// The bytes of `range`, or all, if they are in memory.
    fn at_hand(&self, range: Option<&Range<u64>>) -> Option<Bytes> {
        match &self.payload {
            Payload::Bytes(bytes) => Some(slice(bytes, range)),
            Payload::Content(content) => content.at_hand(range),
            Payload::Bypass(_) | Payload::None => None,
        }
    }

    /// The bytes of `range`, or all, as a stream. The bypass is used up by it.
    fn chunks(&mut self, range: Option<Range<u64>>, in_frames: bool, outlet: Option<&Outlet>) -> Chunks {
        match &mut self.payload {
            Payload::Bytes(bytes) => stream::once(std::future::ready(Ok(slice(bytes, range.as_ref())))).boxed(),
            Payload::Content(content) => {
                let content = content.narrowed(range.as_ref());
                match range.clone().or(self.length.map(|length| 0..length)) {
                    Some(range) if in_frames => frames(&content, range),
                    _ => content.read(range, outlet).map(|chunk| chunk.map_err(Into::into)).boxed(),
                }
            }
            payload @ Payload::Bypass(_) => match std::mem::replace(payload, Payload::None) {
                Payload::Bypass(bypass) => bypass.read().map(|chunk| chunk.map_err(Into::into)).boxed(),
                _ => stream::empty().boxed(),
            },
            Payload::None => stream::empty().boxed(),
        }
    }

    fn multipart(&mut self, plan: Multipart, in_frames: bool, outlet: Option<&Outlet>) -> Chunks {
        let one = |bytes: Bytes| stream::once(std::future::ready(Ok(bytes)));
        let mut parts = Vec::with_capacity(plan.parts.len() + 1);
        for part in plan.parts {
            parts.push(one(part.head).chain(self.chunks(Some(part.range), in_frames, outlet)).boxed());
        }
        parts.push(one(plan.trailer).boxed());
        stream::iter(parts).flatten().boxed()
    }

    fn can_seek(&self) -> bool {
        matches!(self.payload, Payload::Bytes(_) | Payload::Content(_))
    }

    fn is_verified(&self) -> bool {
        match &self.payload {
            Payload::Content(content) => content.is_verified(),
            _ => true,
        }
    }

    fn source(&self) -> Source {
        match self.status.found {
            Found::Hit | Found::Stale => Source::Cache,
            Found::Miss | Found::Collapsed | Found::Passed | Found::Bypass => Source::Fill,
        }
    }
}

/// `range` of `bytes`, or all.
fn slice(bytes: &Bytes, range: Option<&Range<u64>>) -> Bytes {
    let at = |offset: u64| usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
    range.map_or_else(|| bytes.clone(), |range| bytes.slice(at(range.start)..at(range.end)))
}

/// `range` of `content`, in small pieces. Nobody asks for more after an error.
fn frames(content: &Content, range: Range<u64>) -> Chunks {
    content.read_in(Some(range), None, HTTP2_CHUNK).map(|chunk| chunk.map_err(Into::into)).boxed()
}

/// `If-None-Match` holds an equal tag, weakly compared, or `*` (RFC 9110, 13.1.2).
fn none_match(headers: &HeaderMap, etag: &str) -> bool {
    headers.get_all(IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok()).any(|value| {
        value.split(',').map(str::trim).any(|tag| tag == "*" || tag.strip_prefix("W/").unwrap_or(tag) == etag)
    })
}

fn status(code: StatusCode, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = code;
    response
}

/// Inserts a value that is made of digests, numbers and fixed text, so it always is one.
fn insert(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}

// === impl Chunked ===

impl http_body::Body for Chunked {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let chunk = self.chunks.poll_next_unpin(cx);
        chunk.map(|chunk| {
            chunk.map(|chunk| {
                let chunk = chunk?;
                self.left = self.left.map(|left| left.saturating_sub(chunk.len() as u64));
                Ok(Frame::data(chunk))
            })
        })
    }

    fn size_hint(&self) -> SizeHint {
        self.left.map_or_else(SizeHint::default, SizeHint::with_exact)
    }

    fn is_end_stream(&self) -> bool {
        self.left == Some(0)
    }
}

#[cfg(test)]
mod tests {
    use http::Request;
    use http_body_util::BodyExt as _;

    use super::*;
    use crate::oci::{Algorithm, Digest};

    const TEXT: &[u8] = b"0123456789";

    fn ask(method: Method, headers: &[(&str, &str)]) -> Result<Response<Body>, Failure> {
        let mut request = Request::builder().method(method);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let representation = Representation {
            labels: Labels::of_manifest(&Digest::of(Algorithm::Sha256, TEXT), "text/x", 10),
            length: Some(10),
            payload: Payload::Bytes(Bytes::from_static(TEXT)),
            status: Found::Hit.into(),
        };
        representation.respond(&request.body(()).unwrap().into_parts().0, None)
    }

    async fn text(response: Response<Body>) -> Vec<u8> {
        response.into_body().collect().await.unwrap().to_bytes().to_vec()
    }

    #[tokio::test]
    async fn whole_head_and_not_modified() {
        let response = ask(Method::GET, &[]).unwrap();
        assert_eq!(response.headers()["cache-status"], "ocistern; hit");
        assert_eq!(response.headers()["content-length"], "10");
        let etag = response.headers()["etag"].to_str().unwrap().to_owned();
        assert_eq!(text(response).await, TEXT);

        let response = ask(Method::HEAD, &[("range", "bytes=0-1")]).unwrap();
        assert_eq!(
            (response.status(), &response.headers()["content-length"]),
            (StatusCode::OK, &"10".parse().unwrap())
        );
        assert_eq!(text(response).await, b"", "HEAD has no body");

        for condition in [etag.clone(), format!("W/{etag}"), format!("\"x\", {etag}"), "*".to_owned()] {
            let response = ask(Method::GET, &[("if-none-match", &condition)]).unwrap();
            assert_eq!(response.status(), StatusCode::NOT_MODIFIED, "{condition}");
            assert!(!response.headers().contains_key("content-length"));
        }
        assert_eq!(ask(Method::GET, &[("if-none-match", "\"x\"")]).unwrap().status(), StatusCode::OK);
    }

    #[tokio::test]
    async fn ranges_of_it() {
        let response = ask(Method::GET, &[("range", "bytes=2-4")]).unwrap();
        assert_eq!(response.status(), StatusCode::PARTIAL_CONTENT);
        assert_eq!(response.headers()["content-range"], "bytes 2-4/10");
        assert_eq!(response.headers()["content-length"], "3");
        assert_eq!(text(response).await, b"234");

        let response = ask(Method::GET, &[("range", "bytes=0-1,-2")]).unwrap();
        let content_type = response.headers()["content-type"].to_str().unwrap().to_owned();
        assert!(content_type.starts_with("multipart/byteranges; boundary="));
        let length: usize = response.headers()["content-length"].to_str().unwrap().parse().unwrap();
        let body = text(response).await;
        assert_eq!(body.len(), length, "the framing's length is exact");
        let body = String::from_utf8(body).unwrap();
        assert!(body.contains("Content-Range: bytes 0-1/10\r\n\r\n01\r\n"), "{body}");
        assert!(body.contains("Content-Range: bytes 8-9/10\r\n\r\n89\r\n"), "{body}");

        let failure = ask(Method::GET, &[("range", "bytes=10-")]).unwrap_err();
        assert_eq!(failure.status, StatusCode::RANGE_NOT_SATISFIABLE);
        let response = ask(Method::GET, &[("range", "bytes=0-1"), ("if-range", "\"other\"")]).unwrap();
        assert_eq!(response.status(), StatusCode::OK, "another tag: the whole");
    }
}
