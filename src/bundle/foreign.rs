//! Image layouts of other programs (skopeo, oras, docker): which images they have, by `index.json` and the manifests, since
//! they have no manifest of contents.

use std::collections::HashSet;
use std::str::FromStr;

use jiff::Timestamp;

use super::contents::{Image, Part, Role};
use super::error::{BundleError, Fault};
use super::layout::{Descriptor, blob_path};
use super::reader::Reader;
use crate::oci::{Digest, ManifestInfo, RepoName, Tag, UpstreamName, media};

/// Indexes may name indexes; nobody nests them deeper.
const DEPTH: u32 = 4;

/// The name that images of a layout get: `UPSTREAM/REPOSITORY[:TAG]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct As {
    upstream: UpstreamName,
    repository: RepoName,
    tag: Option<Tag>,
}

impl FromStr for As {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let (upstream, rest) = text.split_once('/')?;
            let (repository, tag) = match rest.split_once(':') {
                Some((repository, tag)) => (repository, Some(tag.parse().ok()?)),
                None => (rest, None),
            };
            Some(Self { upstream: upstream.parse().ok()?, repository: repository.parse().ok()?, tag })
        };
        parse().ok_or_else(|| format!("{text:?} is not UPSTREAM/REPOSITORY or UPSTREAM/REPOSITORY:TAG"))
    }
}

impl Reader {
    /// The images of another program's layout that has been read to its end, under these names, else under those that they
    /// have in it.
    pub fn images(&self, under: Option<&As>, now: Timestamp) -> Result<Vec<Image>, BundleError> {
        let manifests = self.index().map(|index| index.manifests.as_slice()).unwrap_or_default();
        let wrong = |what: String| Err(Fault::Document(what).within(self.file(), "index.json", None));
        // What refers to another and has no name comes with that one.
        let roots: Vec<&Descriptor> = manifests
            .iter()
            .filter(|one| {
                one.names().next().is_some() || self.info(&one.digest).is_none_or(|info| info.subject.is_none())
            })
            .collect();
        let mut images: Vec<Image> = Vec::new();
        for root in roots {
            let named = match under {
                Some(under) => Ok(under.with_tag_of(root)),
                None => root.names().find_map(whole_name).ok_or_else(|| root.digest.to_string()),
            };
            let As { upstream, repository, tag } = match named {
                Ok(named) => named,
                Err(digest) => {
                    return wrong(format!(
                        "{digest} has no whole name in it: say which with --as UPSTREAM/REPOSITORY:TAG"
                    ));
                }
            };
            let image = self.image(manifests, root, (upstream, repository, tag), now)?;
            if images.iter().any(|known| known.name() == image.name() && known.digest != image.digest) {
                return wrong(format!(
                    "several of its images would be {}: --as without a tag keeps theirs",
                    image.name()
                ));
            }
            images.push(image);
        }
        Ok(images)
    }

    fn image(
        &self,
        manifests: &[Descriptor],
        root: &Descriptor,
        (upstream, repository, tag): (UpstreamName, RepoName, Option<Tag>),
        now: Timestamp,
    ) -> Result<Image, BundleError> {
        let (mut parts, mut absent, mut seen) = (Vec::new(), Vec::new(), HashSet::new());
        let mut next = vec![(root.digest, Role::Manifest, Some(root.media_type.clone()), DEPTH)];
        while let Some((digest, role, said, depth)) = next.pop() {
            if !seen.insert(digest) {
                continue;
            }
            let Some(size) = self.size(&digest) else {
                if digest == root.digest {
                    return Err(Fault::Missing(blob_path(&digest)).of(self.file()));
                }
                absent.push(digest);
                continue;
            };
            let mut part =
                Part { digest, size, role, media_type: None, subject: None, artifact_type: None, since: None };
            if role == Role::Manifest {
                let bytes = self.document(&digest).unwrap_or_default();
                let info = ManifestInfo::check(said.as_deref(), bytes);
                let info = info.map_err(|fault| {
                    Fault::Document(fault.to_string()).within(self.file(), blob_path(&digest), None)
                })?;
                let assumed = if info.is_index { media::OCI_INDEX } else { media::OCI_MANIFEST };
                let said = said.filter(|said| !said.is_empty()).or_else(|| info.media_type.clone());
                part.media_type = Some(said.unwrap_or_else(|| assumed.to_owned()));
                (part.subject, part.artifact_type) = (info.subject, info.artifact_type.clone());
                if let Some(depth) = depth.checked_sub(1) {
                    let role = if info.is_index { Role::Manifest } else { Role::Blob };
                    next.extend(info.children.iter().map(|child| (*child, role, None, depth)));
                    let referring = manifests.iter().filter(|one| {
                        one.names().next().is_none()
                            && self.info(&one.digest).is_some_and(|info| info.subject == Some(digest))
                    });
                    next.extend(referring.map(|one| (one.digest, Role::Manifest, Some(one.media_type.clone()), depth)));
                }
            }
            parts.push(part);
        }
        let media_type = parts.first().and_then(|part| part.media_type.clone());
        Ok(Image {
            upstream,
            url: None,
            repository,
            tag,
            digest: root.digest,
            media_type: media_type.unwrap_or_else(|| media::OCI_MANIFEST.to_owned()),
            etag: None,
            since: None,
            as_of: now,
            private: false,
            parts,
            absent,
        })
    }

    fn info(&self, digest: &Digest) -> Option<ManifestInfo> {
        ManifestInfo::check(None, self.document(digest)?).ok()
    }
}

impl As {
    fn with_tag_of(&self, root: &Descriptor) -> Self {
        let own = || root.names().find_map(|name| name.rsplit([':', '/']).next()?.parse().ok());
        let tag = self.tag.clone().or_else(own);
        Self { tag, ..self.clone() }
    }
}

/// A name with the host of a registry.
fn whole_name(name: &str) -> Option<As> {
    let named: As = name.parse().ok()?;
    let is_host = named.upstream.as_str().contains('.') || named.upstream.as_str() == "localhost";
    (is_host && named.tag.is_some()).then_some(named)
}
