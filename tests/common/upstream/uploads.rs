//! What an honest registry does when it is written to: uploads, manifests, deletes.

use bytes::Bytes;
use ocistern::oci::Digest;

use super::super::content::{sha256, sha512};
use super::registry::{Registry, error};
use super::wire::{Reply, Request};

/// A running upload.
#[derive(Debug, Default, Clone)]
pub struct Upload {
    pub repo: String,
    pub bytes: Vec<u8>,
    /// Changes with every answer; only the last one is good.
    pub state: u64,
}

// === impl Registry ===

impl Registry {
    /// The answer to a request that is no pull; none: it is one.
    pub(super) fn answer_write(&mut self, request: &Request, path: &str) -> Option<Reply> {
        let (front, last) = path.rsplit_once('/')?;
        if let Some(repo) = front.strip_suffix("/blobs/uploads") {
            return Some(match (request.method.as_str(), last) {
                ("POST", "") => self.begin(request, repo),
                _ => self.go_on(request, repo, last),
            });
        }
        let (repo, kind) = front.rsplit_once('/')?;
        match (request.method.as_str(), kind) {
            ("PUT", "manifests") => Some(self.put(request, repo, last)),
            ("DELETE", "manifests") => Some(self.delete(repo, last)),
            ("DELETE", "blobs") => {
                let digest = last.parse().ok()?;
                let gone = self.repos.get_mut(repo)?.blobs.remove(&digest);
                Some(if gone.is_some() { done(202) } else { error(404, "BLOB_UNKNOWN") })
            }
            _ => None,
        }
    }

    /// A request of which only a part came.
    pub(super) fn broken(&mut self, request: &Request) {
        let Some((_, id)) = request.path.rsplit_once("/blobs/uploads/") else { return };
        if self.forgets_broken_uploads {
            self.uploads.remove(id);
        } else if let Some(upload) = self.uploads.get_mut(id) {
            upload.bytes.extend_from_slice(&request.body);
        }
    }

    fn begin(&mut self, request: &Request, repo: &str) -> Reply {
        if let Some(digest) = request.parameter("mount").and_then(|text| text.parse::<Digest>().ok()) {
            // Who may not pull it there has to send the bytes.
            let from = query(request, "from").filter(|from| self.may_pull(request, from));
            let anywhere = self.mounts_from_anywhere && query(request, "from").is_none();
            let mut places = self.repos.iter().filter(|(name, _)| match &from {
                Some(from) => *name == from,
                None => anywhere,
            });
            if let Some(bytes) = places.find_map(|(_, repo)| repo.blobs.get(&digest)).cloned() {
                self.put_blob(repo, digest, &bytes);
                return created(repo, "blobs", &digest);
            }
        }
        self.serial += 1;
        let id = format!("upload-{}", self.serial);
        self.uploads.insert(id.clone(), Upload { repo: repo.to_owned(), ..Upload::default() });
        self.at(202, &id).with("OCI-Chunk-Min-Length", "10")
    }

    fn go_on(&mut self, request: &Request, repo: &str, id: &str) -> Reply {
        let state = query(request, "_state").and_then(|state| state.parse().ok());
        let Some(upload) = self.uploads.get_mut(id).filter(|u| u.repo == repo && Some(u.state) == state) else {
            return error(404, "BLOB_UPLOAD_INVALID");
        };
        let start = request.header("content-range").and_then(|range| range.split_once('-')?.0.parse().ok());
        if start.is_some_and(|start: usize| start != upload.bytes.len()) {
            return self.at(416, id);
        }
        match request.method.as_str() {
            "GET" => self.at(204, id),
            "DELETE" => {
                self.uploads.remove(id);
                done(204)
            }
            "PATCH" => {
                upload.bytes.extend_from_slice(&request.body);
                upload.state += 1;
                self.at(202, id)
            }
            "PUT" => {
                upload.bytes.extend_from_slice(&request.body);
                let bytes = Bytes::from(std::mem::take(&mut upload.bytes));
                self.uploads.remove(id);
                let expected = query(request, "digest").unwrap_or_default();
                let swallowed = request.hasher.clone().map(ocistern::oci::Hasher::finish);
                let actual = swallowed.into_iter().chain([sha256(&bytes), sha512(&bytes)]);
                match actual.into_iter().find(|digest| digest.to_string() == expected) {
                    Some(digest) => {
                        self.put_blob(repo, digest, &bytes);
                        created(repo, "blobs", &digest)
                    }
                    None => error(400, "DIGEST_INVALID"),
                }
            }
            _ => error(405, "UNSUPPORTED"),
        }
    }

    /// An answer that says where an upload is.
    fn at(&self, status: u16, id: &str) -> Reply {
        let upload = &self.uploads[id];
        let location = format!("/v2/{}/blobs/uploads/{id}?_nouploadcache=false&_state={}", upload.repo, upload.state);
        let range = format!("0-{}", upload.bytes.len().saturating_sub(1));
        let reply = done(status).with("Location", location).with("Range", range);
        reply.with("Docker-Upload-UUID", id)
    }

    fn put(&mut self, request: &Request, repo: &str, reference: &str) -> Reply {
        let bytes = Bytes::from(request.body.clone());
        let Ok(document) = serde_json::from_slice::<serde_json::Value>(&bytes) else {
            return error(400, "MANIFEST_INVALID");
        };
        let held = self.repos.entry(repo.to_owned()).or_default();
        let parts = document["layers"].as_array().into_iter().flatten().chain([&document["config"]]);
        let missing =
            parts.filter_map(|part| part["digest"].as_str()?.parse().ok()).find(|d| !held.blobs.contains_key(d));
        if missing.is_some() {
            return error(404, "MANIFEST_BLOB_UNKNOWN");
        }
        let digest = match reference.parse::<Digest>() {
            Ok(digest) if digest == sha256(&bytes) || digest == sha512(&bytes) => digest,
            Ok(_) => return error(400, "DIGEST_INVALID"),
            Err(_) => sha256(&bytes),
        };
        let media_type = request.header("content-type").unwrap_or_default().to_owned();
        held.manifests.insert(digest, (media_type, bytes));
        let mut reply = created(repo, "manifests", &digest);
        let more = request.query.split('&').filter_map(|pair| pair.strip_prefix("tag="));
        let tags: Vec<&str> = more.chain((!reference.contains(':')).then_some(reference)).collect();
        for tag in &tags {
            held.tags.insert((*tag).to_owned(), digest);
        }
        if reference.contains(':') && !tags.is_empty() {
            reply = reply.with("OCI-Tag", tags.join(","));
        }
        match document["subject"]["digest"].as_str() {
            Some(subject) => reply.with("OCI-Subject", subject),
            None => reply,
        }
    }

    fn delete(&mut self, repo: &str, reference: &str) -> Reply {
        let Some(held) = self.repos.get_mut(repo) else { return error(404, "NAME_UNKNOWN") };
        let Ok(digest) = reference.parse::<Digest>() else {
            if !self.deletes_tags {
                return error(405, "UNSUPPORTED");
            }
            return if held.tags.remove(reference).is_some() { done(202) } else { error(404, "MANIFEST_UNKNOWN") };
        };
        if held.manifests.remove(&digest).is_none() {
            return error(404, "MANIFEST_UNKNOWN");
        }
        held.tags.retain(|_, means| *means != digest);
        // What refers to it goes too, as in Azure's registry.
        held.manifests.retain(|_, (_, bytes)| {
            let document: serde_json::Value = serde_json::from_slice(bytes).unwrap_or_default();
            document["subject"]["digest"].as_str() != Some(&digest.to_string())
        });
        let left: Vec<Digest> = held.manifests.keys().copied().collect();
        held.tags.retain(|_, means| left.contains(means));
        done(202)
    }
}

fn done(status: u16) -> Reply {
    Reply::new(status, "text/plain", "")
}

fn created(repo: &str, kind: &str, digest: &Digest) -> Reply {
    done(201).with("Location", format!("/v2/{repo}/{kind}/{digest}")).with("Docker-Content-Digest", digest.to_string())
}

/// A parameter of the query, also where the body is no form.
fn query(request: &Request, name: &str) -> Option<String> {
    Request { body: Vec::new(), ..request.clone() }.parameter(name)
}
