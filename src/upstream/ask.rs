//! What is asked of an upstream, and what it answers.

use std::fmt;

use http::header::{ACCEPT, IF_RANGE, RANGE};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use tokio::time::Instant;

use super::body::UpstreamBody;
use super::content_range::{ContentRange, Part};
use super::right::Right;
use crate::metrics::Kind;
use crate::oci::{Digest, Reference, RepoName, Tag, Via, media};

/// A request to an upstream, idempotent and without a body.
#[derive(Clone)]
pub struct Ask {
    /// For metrics, and for rules that differ between blobs and the rest.
    pub kind: Kind,
    /// GET or HEAD.
    pub method: Method,
    /// The repository, from which the token's scope follows.
    pub repo: Option<RepoName>,
    /// The tag that it is about, which a rule may have sealed.
    pub tag: Option<Tag>,
    /// From `/v2/`, percent-encoded, with the query.
    pub path: String,
    /// Sent along; what concerns the connection, the host or credentials is dropped.
    pub headers: HeaderMap,
    /// Whose right is used; none: what the configuration says.
    pub right: Option<Right>,
    /// Challenges of upstream are left to the caller, also those that anybody could answer.
    pub bare: bool,
    /// Until when the head of the answer must be there, all tries included.
    pub deadline: Instant,
}

/// A successful answer: 200, 206 or 304; everything else is an error.
pub struct Answer {
    /// 200, 206 or 304.
    pub status: StatusCode,
    /// As upstream, or the host to which it redirected, sent them.
    pub headers: HeaderMap,
    /// Empty for HEAD and 304.
    pub body: UpstreamBody,
    /// With whose credential.
    pub via: Via,
}

// === impl Ask ===

impl Ask {
    /// A manifest, with the Accept list of every kind.
    pub fn manifest(method: Method, repo: &RepoName, reference: &Reference, deadline: Instant) -> Self {
        let tag = match reference {
            Reference::Tag(tag) => Some(tag.clone()),
            Reference::Digest(_) => None,
        };
        let ask = Self::repository(Kind::Manifest, method, repo, &format!("manifests/{reference}"), deadline)
            .with_header(ACCEPT, HeaderValue::from_static(media::ACCEPT_MANIFESTS));
        Self { tag, ..ask }
    }

    /// A blob.
    pub fn blob(method: Method, repo: &RepoName, digest: &Digest, deadline: Instant) -> Self {
        Self::repository(Kind::Blob, method, repo, &format!("blobs/{digest}"), deadline)
    }

    /// The list of tags; `query` without the question mark, empty for none.
    pub fn tags(repo: &RepoName, query: &str, deadline: Instant) -> Self {
        Self::repository(Kind::Tags, Method::GET, repo, &with_query("tags/list", query), deadline)
    }

    /// What refers to `subject`; `query` without the question mark, empty for none.
    pub fn referrers(repo: &RepoName, subject: &Digest, query: &str, deadline: Instant) -> Self {
        Self::repository(
            Kind::Referrers,
            Method::GET,
            repo,
            &with_query(&format!("referrers/{subject}"), query),
            deadline,
        )
        .with_header(ACCEPT, HeaderValue::from_static(media::OCI_INDEX))
    }

    /// The list of repositories; `query` without the question mark, empty for none.
    pub fn catalog(query: &str, deadline: Instant) -> Self {
        Self {
            kind: Kind::Other,
            method: Method::GET,
            repo: None,
            tag: None,
            path: format!("/v2/{}", with_query("_catalog", query)),
            headers: HeaderMap::new(),
            right: None,
            bare: false,
            deadline,
        }
    }

    /// Only the bytes from `first` up to and with `last`, or to the end; with `if_range` (a strong entity tag) the whole if
    /// it changed. Upstream may answer with the whole, or with a part that ends earlier (RFC 9110, 15.3.7).
    #[must_use]
    pub fn with_part(self, first: u64, last: Option<u64>, if_range: Option<&str>) -> Self {
        let ask = self.with_text(RANGE, &Part::From(first, last).to_string());
        match if_range {
            Some(tag) => ask.with_text(IF_RANGE, tag),
            None => ask,
        }
    }

    /// Only the last `bytes` bytes, or the whole where it is shorter.
    #[must_use]
    pub fn with_suffix(self, bytes: u64) -> Self {
        self.with_text(RANGE, &Part::Suffix(bytes).to_string())
    }

    /// With this right instead of what the configuration says.
    #[must_use]
    pub fn with_right(self, right: Right) -> Self {
        Self { right: Some(right), ..self }
    }

    /// Leaving upstream's challenges to the caller, or not.
    #[must_use]
    pub fn bare(self, bare: bool) -> Self {
        Self { bare, ..self }
    }

    /// With one more header.
    #[must_use]
    pub fn with_header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.insert(name, value);
        self
    }

    /// A value that cannot stand in a header came from an upstream's earlier answer and is left out.
    fn with_text(self, name: HeaderName, value: &str) -> Self {
        match HeaderValue::from_str(value) {
            Ok(value) => self.with_header(name, value),
            Err(_) => self,
        }
    }

    fn repository(kind: Kind, method: Method, repo: &RepoName, rest: &str, deadline: Instant) -> Self {
        Self {
            kind,
            method,
            repo: Some(repo.clone()),
            tag: None,
            path: format!("/v2/{repo}/{rest}"),
            headers: HeaderMap::new(),
            right: None,
            bare: false,
            deadline,
        }
    }

    /// Whether this part is what was asked for.
    pub(crate) fn wants_part(&self, part: ContentRange) -> bool {
        let asked = self.headers.get(RANGE).and_then(|range| Part::parse(range.to_str().ok()?));
        asked.is_some_and(|asked| part.answers(asked))
    }
}

/// Without the query, which a client may have filled with anything.
impl fmt::Debug for Ask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.method, self.path.split('?').next().unwrap_or_default())
    }
}

fn with_query(path: &str, query: &str) -> String {
    if query.is_empty() { path.to_owned() } else { format!("{path}?{query}") }
}

// === impl Answer ===

impl Answer {
    /// Which bytes of the whole these are; none: they are the whole (200), or nothing (304). A 206 always says it: it would
    /// be an error otherwise.
    pub fn part(&self) -> Option<ContentRange> {
        if self.status == StatusCode::PARTIAL_CONTENT { ContentRange::of(&self.headers) } else { None }
    }
}

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Answer").field("status", &self.status).field("via", &self.via).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Algorithm;

    #[tokio::test]
    async fn paths_are_those_of_the_specification() {
        let deadline = Instant::now();
        let repo: RepoName = "library/alpine".parse().unwrap();
        let digest = Digest::of(Algorithm::Sha256, b"");
        let tag = "3.20".parse().unwrap();
        assert_eq!(Ask::manifest(Method::GET, &repo, &tag, deadline).path, "/v2/library/alpine/manifests/3.20");
        assert_eq!(Ask::tags(&repo, "n=2&last=a", deadline).path, "/v2/library/alpine/tags/list?n=2&last=a");
        assert_eq!(Ask::catalog("", deadline).path, "/v2/_catalog");
        let part = Ask::blob(Method::GET, &repo, &digest, deadline).with_part(7, None, Some("\"tag\""));
        assert_eq!(part.headers[RANGE], "bytes=7-");
        assert_eq!(part.headers[IF_RANGE], "\"tag\"");
        let range = |text: &str| ContentRange::parse(text).unwrap();
        assert!(part.wants_part(range("bytes 7-9/10")) && !part.wants_part(range("bytes 0-9/10")));
        let closed = Ask::blob(Method::GET, &repo, &digest, deadline).with_part(7, Some(8), None);
        assert_eq!(
            (&closed.headers[RANGE], closed.headers.contains_key(IF_RANGE)),
            (&"bytes=7-8".parse().unwrap(), false)
        );
        assert!(closed.wants_part(range("bytes 7-7/10")) && !closed.wants_part(range("bytes 7-9/10")));
        let suffix = Ask::blob(Method::GET, &repo, &digest, deadline).with_suffix(5);
        assert_eq!(suffix.headers[RANGE], "bytes=-5");
        assert!(suffix.wants_part(range("bytes 5-9/10")) && !suffix.wants_part(range("bytes 4-9/10")));
        assert!(!Ask::catalog("", deadline).wants_part(range("bytes 0-9/10")), "nobody asked for a part");
        assert!(!part.with_part(7, None, Some("a\r\nb")).headers.contains_key("b"), "a header is not injected");
    }
}
