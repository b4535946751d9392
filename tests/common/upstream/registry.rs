//! What an honest registry answers: the content of the scripted upstream, and its credentials.

use std::collections::{BTreeMap, HashMap, HashSet};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use bytes::Bytes;
use ocistern::oci::{Digest, media};

use super::super::content::{Image, sha256};
use super::accounts::Accounts;
use super::uploads::Upload;
use super::wire::{Reply, Request};

/// Everything the registry holds, and how it behaves when it behaves.
#[derive(Debug, Default)]
#[allow(clippy::struct_excessive_bools, reason = "independent switches, not a state")]
pub struct Registry {
    /// `http://127.0.0.1:PORT`.
    pub url: String,
    pub repos: BTreeMap<String, Repo>,
    /// Answers at exact paths: the storage that redirects lead to. Refuses credentials, as Azure's does.
    pub files: HashMap<String, Bytes>,
    pub auth: Auth,
    /// Of [`Auth::Accounts`].
    pub accounts: Accounts,
    pub token: TokenAnswer,
    /// Whether it has the referrers API.
    pub referrers: bool,
    /// Largest page of a tag list; none: all at once.
    pub page: Option<usize>,
    /// Uploads that are running.
    pub uploads: BTreeMap<String, Upload>,
    /// Whether an upload whose request broke off is gone, as in Azure's registry; else what came of it stays.
    pub forgets_broken_uploads: bool,
    /// Whether bodies of uploads are hashed and dropped.
    pub swallow: bool,
    /// Whether a tag may be deleted alone.
    pub deletes_tags: bool,
    /// Whether a blob is mounted that is in no named repository.
    pub mounts_from_anywhere: bool,
    pub(super) issued: HashSet<String>,
    pub(super) serial: u64,
}

/// A repository.
#[derive(Debug, Default)]
pub struct Repo {
    pub tags: BTreeMap<String, Digest>,
    pub manifests: BTreeMap<Digest, (String, Bytes)>,
    pub blobs: BTreeMap<Digest, Bytes>,
}

/// Who may read.
#[derive(Debug, Clone, Default)]
pub enum Auth {
    /// Everybody, without asking.
    #[default]
    Open,
    /// Who has a token of the token endpoint, which asks for this account (none: gives one to everybody).
    Bearer(Option<(String, String)>),
    /// Who sends this account with every request.
    Basic(String, String),
    /// Who has a token of the token endpoint that allows it: see [`Accounts`].
    Accounts,
}

/// What the token endpoint answers.
#[derive(Debug, Clone)]
pub struct TokenAnswer {
    /// `token` or `access_token`.
    pub field: &'static str,
    /// `expires_in`, if it is said.
    pub expires_in: Option<u64>,
    /// Makes the token a JWT that expires so many seconds from now.
    pub jwt_lifetime: Option<i64>,
    /// Answers 404 to POST, as registries with only the old form do.
    pub get_only: bool,
}

impl Default for TokenAnswer {
    fn default() -> Self {
        Self { field: "token", expires_in: Some(300), jwt_lifetime: None, get_only: true }
    }
}

// === impl Registry ===

impl Registry {
    /// Adds a blob to a repository.
    pub fn put_blob(&mut self, repo: &str, digest: Digest, bytes: &Bytes) {
        self.repos.entry(repo.to_owned()).or_default().blobs.insert(digest, bytes.clone());
    }

    /// Adds a manifest to a repository.
    pub fn put_manifest(&mut self, repo: &str, media_type: &str, bytes: &Bytes) -> Digest {
        let digest = sha256(bytes);
        let manifests = &mut self.repos.entry(repo.to_owned()).or_default().manifests;
        manifests.insert(digest, (media_type.to_owned(), bytes.clone()));
        digest
    }

    /// Lets a tag point to a digest.
    pub fn put_tag(&mut self, repo: &str, tag: &str, digest: Digest) {
        self.repos.entry(repo.to_owned()).or_default().tags.insert(tag.to_owned(), digest);
    }

    /// Adds an image with all its parts.
    pub fn put_image(&mut self, repo: &str, tag: &str, image: &Image) {
        for part in image.layers.iter().chain([&image.config]) {
            self.put_blob(repo, sha256(part), part);
        }
        let digest = self.put_manifest(repo, image.media_type, &image.manifest);
        self.put_tag(repo, tag, digest);
    }

    /// The honest answer to a request.
    pub fn answer(&mut self, request: &Request) -> Reply {
        let mut reply = self.route(request);
        reply.head_only = request.method == "HEAD";
        reply
    }

    fn route(&mut self, request: &Request) -> Reply {
        if let Some(bytes) = self.files.get(&request.path) {
            if request.header("authorization").is_some() {
                return Reply::new(400, "text/xml", "<Error>Authentication information is not given correctly</Error>");
            }
            return ranged(request, Reply::new(200, "application/octet-stream", bytes.clone()));
        }
        if request.path == "/token" {
            return self.answer_token(request);
        }
        if request.path == "/oauth2/exchange" && request.method == "POST" {
            return self.accounts.exchange(request);
        }
        let path = percent_encoding::percent_decode_str(&request.path).decode_utf8_lossy().into_owned();
        let Some(path) = path.strip_prefix("/v2/") else { return error(404, "UNSUPPORTED") };
        if let Some(challenge) = self.challenge(request, path) {
            if let Some(status) = self.accounts.refused_with.filter(|_| challenge.contains("insufficient_scope")) {
                return error(status, if status == 403 { "DENIED" } else { "NAME_UNKNOWN" });
            }
            return error(401, "UNAUTHORIZED").with("WWW-Authenticate", challenge);
        }
        if let Some(reply) = self.answer_write(request, path) {
            return reply.with("Docker-Distribution-Api-Version", "registry/2.0");
        }
        let reply = match (path, path.rsplitn(3, '/').collect::<Vec<_>>().as_slice()) {
            ("", _) => Reply::new(200, "application/json", "{}"),
            ("_catalog", _) => {
                let names: Vec<_> = self.repos.keys().map(|name| format!("{name:?}")).collect();
                Reply::new(200, "application/json", format!(r#"{{"repositories":[{}]}}"#, names.join(",")))
            }
            (_, ["list", "tags", name]) => self.answer_tags(request, name),
            (_, [digest, "referrers", name]) if self.referrers => self.answer_referrers(request, name, digest),
            (_, [reference, "manifests", name]) => self.answer_manifest(request, name, reference),
            (_, [digest, "blobs", name]) => self.answer_blob(request, name, digest),
            _ => error(404, "NAME_UNKNOWN"),
        };
        reply.with("Docker-Distribution-Api-Version", "registry/2.0")
    }

    fn answer_manifest(&self, request: &Request, name: &str, reference: &str) -> Reply {
        let Some(repo) = self.repos.get(name) else { return error(404, "NAME_UNKNOWN") };
        let digest = repo.tags.get(reference).copied().or_else(|| reference.parse().ok());
        let found = digest.and_then(|digest| Some((digest, repo.manifests.get(&digest)?)));
        let Some((digest, (media_type, bytes))) = found else { return error(404, "MANIFEST_UNKNOWN") };
        let etag = format!("\"{digest}\"");
        let reply = if request.header("if-none-match") == Some(&etag) {
            Reply::new(304, media_type, Bytes::new())
        } else {
            Reply::new(200, media_type, bytes.clone())
        };
        reply.with("Docker-Content-Digest", digest.to_string()).with("ETag", etag)
    }

    fn answer_blob(&self, request: &Request, name: &str, digest: &str) -> Reply {
        let Some(repo) = self.repos.get(name) else { return error(404, "NAME_UNKNOWN") };
        let found = digest.parse().ok().and_then(|digest: Digest| repo.blobs.get(&digest));
        let Some(bytes) = found else { return error(404, "BLOB_UNKNOWN") };
        let whole = Reply::new(200, "application/octet-stream", bytes.clone())
            .with("Docker-Content-Digest", digest)
            .with("ETag", format!("\"{digest}\""));
        ranged(request, whole)
    }

    fn answer_tags(&self, request: &Request, name: &str) -> Reply {
        let Some(repo) = self.repos.get(name) else { return error(404, "NAME_UNKNOWN") };
        let last = request.parameter("last").unwrap_or_default();
        let asked = request.parameter("n").and_then(|n| n.parse::<usize>().ok());
        let page = [asked, self.page].into_iter().flatten().min().unwrap_or(usize::MAX);
        let rest: Vec<&String> = repo.tags.keys().filter(|tag| **tag > last).collect();
        let now: Vec<String> = rest.iter().take(page).map(|tag| format!("{tag:?}")).collect();
        let body = format!(r#"{{"name":"{name}","tags":[{}]}}"#, now.join(","));
        let reply = Reply::new(200, "application/json", body);
        if rest.len() > page && page > 0 {
            let link = format!("</v2/{name}/tags/list?last={}&n={page}>; rel=\"next\"", rest[page - 1]);
            return reply.with("Link", link);
        }
        reply
    }

    fn answer_referrers(&self, request: &Request, name: &str, subject: &str) -> Reply {
        let wanted = request.parameter("artifactType");
        let mut listed = Vec::new();
        for (digest, (media_type, bytes)) in self.repos.get(name).iter().flat_map(|repo| &repo.manifests) {
            let Ok(document) = serde_json::from_slice::<serde_json::Value>(bytes) else { continue };
            let artifact_type = document["artifactType"].as_str().unwrap_or_default();
            if document["subject"]["digest"] == subject && wanted.as_deref().is_none_or(|w| w == artifact_type) {
                listed.push(serde_json::json!({
                    "mediaType": media_type, "digest": digest.to_string(), "size": bytes.len(), "artifactType": artifact_type,
                }));
            }
        }
        let body = serde_json::json!({"schemaVersion": 2, "mediaType": media::OCI_INDEX, "manifests": listed});
        let reply = Reply::new(200, media::OCI_INDEX, body.to_string());
        if wanted.is_some() { reply.with("OCI-Filters-Applied", "artifactType") } else { reply }
    }

    fn challenge(&self, request: &Request, path: &str) -> Option<String> {
        let sent = request.header("authorization");
        match &self.auth {
            Auth::Open => None,
            Auth::Basic(user, password) => {
                let right = format!("Basic {}", STANDARD.encode(format!("{user}:{password}")));
                (sent != Some(&right)).then(|| "Basic realm=\"scripted\"".to_owned())
            }
            Auth::Accounts => {
                let upload = path.split_once("/blobs/uploads/").map(|(name, _)| name);
                let name = upload.or_else(|| path.rsplitn(3, '/').nth(2));
                let action = match request.method.as_str() {
                    _ if upload.is_some() => "push",
                    "GET" | "HEAD" => "pull",
                    "DELETE" => "delete",
                    _ => "push",
                };
                let refusal = self.accounts.refusal(request, name, action)?;
                Some(format!("Bearer realm=\"{}/token\",service=\"scripted\"{refusal}", self.url))
            }
            Auth::Bearer(_) => {
                let known = sent.and_then(|text| text.strip_prefix("Bearer ")).is_some_and(|t| self.issued.contains(t));
                let name = path.rsplitn(3, '/').nth(2);
                let scope = name.map_or_else(String::new, |name| format!(",scope=\"repository:{name}:pull\""));
                (!known).then(|| format!("Bearer realm=\"{}/token\",service=\"scripted\"{scope}", self.url))
            }
        }
    }

    /// Whether a request that is let in may pull from this repository, too.
    pub(super) fn may_pull(&self, request: &Request, repo: &str) -> bool {
        !matches!(self.auth, Auth::Accounts) || self.accounts.refusal(request, Some(repo), "pull").is_none()
    }

    fn answer_token(&mut self, request: &Request) -> Reply {
        if request.method == "POST" && self.token.get_only {
            return error(404, "UNSUPPORTED");
        }
        if matches!(self.auth, Auth::Accounts) {
            let port = self.url.rsplit(':').next().unwrap_or_default().to_owned();
            return self.accounts.answer(request, self.token.field, &port);
        }
        if let Auth::Bearer(Some((user, password))) = &self.auth {
            let basic = format!("Basic {}", STANDARD.encode(format!("{user}:{password}")));
            let by_form = request.parameter("username").as_ref() == Some(user)
                && request.parameter("password").as_ref() == Some(password);
            if request.header("authorization") != Some(&basic) && !by_form {
                return error(401, "UNAUTHORIZED");
            }
        }
        self.serial += 1;
        let token = match self.token.jwt_lifetime {
            Some(lifetime) => jwt(lifetime, self.serial),
            None => format!("CANARY-TOKEN-{}-{}", self.url.rsplit(':').next().unwrap(), self.serial),
        };
        self.issued.insert(token.clone());
        let lifetime = self.token.expires_in.map_or_else(String::new, |seconds| format!(r#","expires_in":{seconds}"#));
        Reply::new(200, "application/json", format!(r#"{{"{}":"{token}"{lifetime}}}"#, self.token.field))
    }

    /// Makes every token that was given out invalid.
    pub fn revoke_tokens(&mut self) {
        self.issued.clear();
    }
}

/// An error as the specification shapes it.
pub fn error(status: u16, code: &str) -> Reply {
    let body = format!(r#"{{"errors":[{{"code":"{code}","message":"scripted","detail":null}}]}}"#);
    Reply::new(status, "application/json", body)
}

/// The part of the body that a `Range` of one form or the other asks for.
fn ranged(request: &Request, whole: Reply) -> Reply {
    let etag = whole.headers.iter().find(|(name, _)| name == "ETag").map(|(_, value)| value.as_str());
    if request.header("if-range").is_some_and(|wanted| Some(wanted) != etag) {
        return whole;
    }
    let length = whole.body.len();
    let asked = request.header("range").and_then(|text| text.strip_prefix("bytes=")?.split_once('-'));
    let (from, to) = match asked {
        Some((from, to)) if !from.is_empty() => {
            (from.parse().unwrap_or(length), to.parse().map_or(length, |to: usize| (to + 1).min(length)))
        }
        Some((_, last)) if last.parse::<usize>().is_ok_and(|last| last > 0) => {
            (length.saturating_sub(last.parse().unwrap_or(length)), length)
        }
        _ => return whole,
    };
    if from >= to {
        return Reply::new(416, "text/plain", "").with("Content-Range", format!("bytes */{length}"));
    }
    let mut part = whole.with("Content-Range", format!("bytes {from}-{}/{length}", to - 1));
    part.status = 206;
    part.body = part.body.slice(from..to);
    part
}

/// A token that reads as a JWT; its signature is none.
fn jwt(lifetime: i64, serial: u64) -> String {
    jwt_of(lifetime, serial, "scripted")
}

/// The same about somebody.
pub fn jwt_of(lifetime: i64, serial: u64, subject: &str) -> String {
    let now = crate::common::clock::wall().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let exp = now.saturating_add_signed(lifetime);
    let claims = format!(r#"{{"exp":{exp},"iat":{now},"jti":"{serial}","sub":"{subject}"}}"#);
    let part = |text: &str| URL_SAFE_NO_PAD.encode(text);
    format!("{}.{}.CANARY", part(r#"{"alg":"none"}"#), part(&claims))
}
