//! Uploads of blobs: `NAME/blobs/uploads/…`.
//!
//! OCI distribution-spec, "Pushing blobs". Whatever a client does (POST and PUT, one POST, streamed or chunked PATCH, a
//! mount), upstream sees an upload of its own; the addresses that clients get are those of [`super::location`].

use std::borrow::Cow;

use http::header::{CONTENT_LENGTH, CONTENT_RANGE, LOCATION, RANGE};
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode};
use http_body::Body as _;
use http_body_util::BodyExt as _;
use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use super::Visit;
use super::body::Body;
use super::caller::Showed;
use super::inbound::Inbound;
use super::location::{Bound, Claim};
use super::part;
use super::relayed;
use super::respond::Failure;
use super::route::mount_source;
use crate::cache::{Begun, ClientBody, DOCKER_CONTENT_DIGEST, Opening, Part, Said, Target, Upload, WriteError};
use crate::metrics::Kind;
use crate::oci::{Algorithm, Digest, ErrorCode, RepoName, UpstreamName};
use crate::upstream::Right;

/// What Go's and most other clients leave as it is in a query.
const IN_QUERY: &percent_encoding::AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// What a POST asks for besides a place to upload to.
struct Wish {
    /// The query of the request upstream.
    query: String,
    /// A further scope that the token needs.
    scope: Option<String>,
    /// What is mounted, if upstream does it.
    mount: Option<Digest>,
    /// The whole blob is in this request.
    whole: Option<Digest>,
}

/// A request's body, and what it says of it.
struct Content {
    body: ClientBody,
    length: Option<u64>,
    part: Option<Part>,
}

/// `POST NAME/blobs/uploads/`.
pub(super) async fn begin(visit: &Visit<'_>, repo: &RepoName, body: Inbound) -> Result<Response<Body>, Failure> {
    let target = visit.target(repo);
    let content = Content::new(visit, body)?;
    let wish = Wish::of(visit, repo, content.length != Some(0))?;
    let owner = visit.caller.owner.clone();
    let opening = Opening { query: &wish.query, scope: wish.scope, owner, party: visit.asked.party() };
    let begun = visit.asked.app.cache.begin_upload(&target, opening).await;
    let (upload, said) = match begun {
        Ok(Begun::Session(upload, said)) => (upload, said),
        Err(error) => return visit.answer_to(error, Kind::Upload),
        Ok(Begun::Mounted(said, begun)) => {
            let digest = wish.mount.ok_or_else(|| Failure::internal("a blob was mounted that nobody named"))?;
            visit.asked.app.cache.mounted_blob(&target, &digest, &begun).await;
            return visit.created(&target, &digest, &said);
        }
    };
    let Some(digest) = wish.whole else {
        let mut headers = relayed::chosen(&said.headers);
        headers.insert(RANGE, range(0));
        return visit.at(&target, &upload, StatusCode::ACCEPTED, headers);
    };
    let closed = upload.close(&target, content.body, content.length, None, &digest).await;
    match closed {
        Ok(said) => visit.created(&target, &digest, &said),
        Err(error) => {
            // The client has no address to go on with.
            upload.abandon(&target).await;
            visit.answer_to(error, Kind::Upload)
        }
    }
}

/// GET, PATCH, PUT and DELETE of an upload that has begun.
pub(super) async fn go_on(
    visit: &Visit<'_>,
    repo: &RepoName,
    state: &str,
    body: Inbound,
) -> Result<Response<Body>, Failure> {
    let target = visit.target(repo);
    let upload = visit.upload(&target, state)?;
    let result = match visit.asked.parts.method {
        Method::GET | Method::HEAD => Ok((StatusCode::NO_CONTENT, HeaderMap::new())),
        Method::PATCH => {
            let Content { body, length, part } = Content::new(visit, body)?;
            let appended = upload.append(&target, body, length, part).await;
            appended.map(|said| (StatusCode::ACCEPTED, relayed::chosen(&said.headers)))
        }
        Method::PUT => {
            let digest = closing_digest(&visit.route.query)?;
            let Content { body, length, part } = Content::new(visit, body)?;
            match upload.close(&target, body, length, part, &digest).await {
                Ok(said) => return visit.created(&target, &digest, &said),
                Err(error) => Err(error),
            }
        }
        _ => match upload.cancel(&target).await {
            Ok(()) => return Ok(relayed::written(empty(StatusCode::NO_CONTENT))),
            Err(error) => Err(error),
        },
    };
    match result {
        Ok((status, mut headers)) => {
            headers.insert(RANGE, range(upload.offset()));
            visit.at(&target, &upload, status, headers)
        }
        Err(WriteError::OutOfOrder { offset }) => {
            let failure = visit.failed(WriteError::OutOfOrder { offset }, Kind::Upload);
            let failure = failure.with_header(RANGE, range(offset));
            Err(match visit.address(&target, &upload) {
                Some(address) => failure.with_header(LOCATION, address),
                None => failure,
            })
        }
        Err(error) => visit.answer_to(error, Kind::Upload),
    }
}

// === impl Visit ===

impl Visit<'_> {
    /// The upload that an address speaks of, if it was issued here to this caller.
    fn upload(&self, target: &Target, state: &str) -> Result<Upload, Failure> {
        let app = self.asked.app;
        let claim = Claim::read(state).ok_or_else(unknown)?;
        let upload = app.cache.upload(&claim.id).ok_or_else(unknown)?;
        let bound = self.bound(target, &upload);
        if !app.locations.holds(&claim, bound, app.steady.now()) {
            return Err(unknown());
        }
        // Some clients show a credential only when they are asked for it, for each request anew.
        if upload.is_by_client() && self.caller.showed == Showed::Nothing {
            let message = "the upload was begun with a credential; go on with one".to_owned();
            return Err(self.caller.challenged(self, None, message).unwrap_or_else(unknown));
        }
        let others = upload.owner().is_some() && upload.owner() != self.caller.owner.as_deref();
        if others || (upload.is_by_client() && matches!(target.right, Right::Anonymous)) {
            return Err(unknown());
        }
        Ok(upload)
    }

    /// An answer that says where the upload goes on.
    fn at(
        &self,
        target: &Target,
        upload: &Upload,
        status: StatusCode,
        headers: HeaderMap,
    ) -> Result<Response<Body>, Failure> {
        let address = self.address(target, upload).ok_or_else(|| Failure::internal("an upload has no address"))?;
        let mut response = empty(status);
        response.headers_mut().extend(headers);
        response.headers_mut().insert(LOCATION, address);
        Ok(relayed::written(response))
    }

    /// Where the upload goes on, for this client: relative, in the form of address that it used.
    fn address(&self, target: &Target, upload: &Upload) -> Option<HeaderValue> {
        let bound = self.bound(target, upload);
        let state = self.asked.app.locations.issue(upload.id(), bound, self.asked.app.steady.now());
        let local = self.route.local_target(&format!("/v2/{}/blobs/uploads/{state}", target.repo))?;
        HeaderValue::try_from(local).ok()
    }

    fn bound<'a>(&self, target: &'a Target, upload: &'a Upload) -> Bound<'a> {
        Bound { upstream: &target.upstream, repo: &target.repo, form: self.route.form, owner: upload.owner() }
    }

    /// The blob is there.
    fn created(&self, target: &Target, digest: &Digest, said: &Said) -> Result<Response<Body>, Failure> {
        self.created_at(&format!("/v2/{}/blobs/{digest}", target.repo), digest, said)
    }

    /// Something is there, and this is where.
    pub(super) fn created_at(&self, path: &str, digest: &Digest, said: &Said) -> Result<Response<Body>, Failure> {
        let address = self.route.local_target(path).and_then(|local| HeaderValue::try_from(local).ok());
        let digest = HeaderValue::try_from(digest.to_string()).ok();
        let (Some(address), Some(digest)) = (address, digest) else {
            return Err(Failure::internal("what was pushed has no address"));
        };
        let mut response = empty(StatusCode::CREATED);
        let headers = response.headers_mut();
        headers.extend(relayed::chosen(&said.headers));
        headers.remove(RANGE);
        headers.insert(LOCATION, address);
        headers.insert(DOCKER_CONTENT_DIGEST, digest);
        Ok(relayed::written(response))
    }
}

// === impl Wish ===

impl Wish {
    fn of(visit: &Visit<'_>, repo: &RepoName, has_body: bool) -> Result<Self, Failure> {
        let query = &visit.route.query;
        let digest = |name| parameter(query, name).map(|text| parse_digest(&text)).transpose();
        let (mount, whole) = (digest("mount")?, digest("digest")?);
        let named = parameter(query, "digest-algorithm");
        let named = named.and_then(|name| Algorithm::ALL.into_iter().find(|algorithm| algorithm.as_str() == name));
        let mut wish = Self { query: String::new(), scope: None, mount: None, whole: None };
        // Without a body it is an announcement at most: the bytes come later.
        wish.whole = whole.filter(|digest| has_body || *digest == Digest::of(digest.algorithm(), b""));
        if wish.whole.is_some() {
            return Ok(wish);
        }
        if let Some(name) = named {
            wish.query = format!("digest-algorithm={}", name.as_str());
        }
        let Some(mount) = mount else { return Ok(wish) };
        let in_query = |text: &str| utf8_percent_encode(text, IN_QUERY).to_string();
        let digest = in_query(&mount.to_string());
        match parameter(query, "from") {
            None => wish.query = format!("mount={digest}"),
            Some(from) => {
                let app = visit.asked.app;
                let source = mount_source(&app.directory, &visit.asked.listener.config, visit.route, &from);
                // Of another upstream, or of nobody: the bytes have to be sent (distribution-spec, "Mounting a blob").
                let own = |(upstream, _): &(UpstreamName, RepoName)| *upstream == visit.route.upstream;
                let Some((_, from)) = source.filter(own) else { return Ok(wish) };
                wish.query = format!("mount={digest}&from={}", in_query(from.as_str()));
                wish.scope = Some(format!("repository:{repo}:pull,push repository:{from}:pull"));
            }
        }
        wish.mount = Some(mount);
        Ok(wish)
    }
}

// === impl Content ===

impl Content {
    fn new(visit: &Visit<'_>, body: Inbound) -> Result<Self, Failure> {
        let length = body.size_hint().exact();
        let part = visit.asked.parts.headers.get(CONTENT_RANGE);
        // Of nothing there is no part, whatever it says.
        let part =
            part.filter(|_| length != Some(0)).map(|value| part::parse(value).ok_or_else(misplaced)).transpose()?;
        Ok(Self { body: body.boxed_unsync(), length, part })
    }
}

fn misplaced() -> Failure {
    let message = "the Content-Range of an upload is FIRST-LAST, such as 0-1023";
    Failure::bad_request(ErrorCode::BlobUploadInvalid, message)
}

/// The value of a query parameter, decoded.
pub(super) fn parameter<'a>(query: &'a str, name: &str) -> Option<Cow<'a, str>> {
    parameters(query, name).next()
}

/// The values of a query parameter that may come more than once, decoded.
pub(super) fn parameters<'a>(query: &'a str, name: &str) -> impl Iterator<Item = Cow<'a, str>> {
    query.split('&').filter_map(move |pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let same = percent_decode_str(key).eq(name.bytes());
        // What is no text is no value that anything here has.
        same.then(|| percent_decode_str(value).decode_utf8_lossy())
    })
}

fn closing_digest(query: &str) -> Result<Digest, Failure> {
    let missing = "the request that closes an upload says what it is: add ?digest=";
    let text = parameter(query, "digest");
    parse_digest(&text.ok_or_else(|| Failure::bad_request(ErrorCode::DigestInvalid, missing))?)
}

fn parse_digest(text: &str) -> Result<Digest, Failure> {
    text.parse()
        .map_err(|error| Failure::bad_request(ErrorCode::DigestInvalid, format!("the digest is invalid: {error}")))
}

/// How much of an upload is there: `0-LAST`, which docker reads.
fn range(offset: u64) -> HeaderValue {
    HeaderValue::try_from(format!("0-{}", offset.saturating_sub(1))).unwrap_or(HeaderValue::from_static("0-0"))
}

fn unknown() -> Failure {
    let message = "there is no such upload here: it has ended, or it belongs to another client; begin it again";
    Failure::new(StatusCode::NOT_FOUND, ErrorCode::BlobUploadUnknown, message)
}

pub(super) fn empty(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    if status != StatusCode::NO_CONTENT {
        response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_decoded_once() {
        let query = "a=1&digest=sha256%3Aab&tag=x&tag=y%252F&%64=z&flag";
        assert_eq!(parameter(query, "digest").as_deref(), Some("sha256:ab"));
        assert_eq!(parameters(query, "tag").collect::<Vec<_>>(), ["x", "y%2F"]);
        assert_eq!(parameter(query, "d").as_deref(), Some("z"));
        assert_eq!(parameter(query, "flag").as_deref(), Some(""));
        assert_eq!(parameter(query, "diges"), None);
    }

    #[test]
    fn what_is_there_begins_at_zero() {
        assert_eq!(
            (range(0), range(1), range(28)),
            ("0-0".parse().unwrap(), "0-0".parse().unwrap(), "0-27".parse().unwrap())
        );
    }
}
