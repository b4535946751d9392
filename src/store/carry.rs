//! What is carried to another store, and what comes from one: images with all that belongs to them and is here.
//!
//! What a bundle says of an image counts for nothing that its manifests do not say too; and bytes that were not in the bundle
//! are linked only where somebody could read them already, so that a made-up bundle opens nothing.

use std::collections::{HashMap, HashSet};
use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::layout;
use super::lists::{ListKind, StoredList};
use super::record::{Found, Records};
use super::refs::{Access, AccessRecord, Link, LinkKind, TagRecord};
use super::rehash::AtOnce;
use super::survey::{Contents, Survey};
use super::temporary::Temporary;
use super::{Inner, Store, StoreError, Trust};
use crate::bundle::{Have, HaveTag, Image, Index, MAX_MANIFEST, Part, Role};
use crate::clock::timestamp;
use crate::config::ImagePattern;
use crate::oci::{Algorithm, Digest, ManifestInfo, RepoName, Tag, UpstreamName, Via, media};

/// Most bytes that the manifests of an image may have together: they are looked at together.
const MANIFESTS: u64 = 256 << 20;
/// Blobs of an image that are held while its refs are written.
const HELD: usize = 256;

/// Images to be carried.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Carried {
    /// In order of their names.
    pub images: Vec<Image>,
    /// Names of images whose manifest is not stored.
    pub unstored: Vec<String>,
    /// Patterns that mean nothing in the store.
    pub unmatched: Vec<String>,
}

/// On which terms an image is taken.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terms {
    /// It is for those whom the listener lets through as the account's, not for everybody.
    #[serde(default)]
    pub private: bool,
    /// Its tag counts also where upstream said something else later.
    #[serde(default)]
    pub replace_newer: bool,
    /// Nothing is changed.
    #[serde(default)]
    pub dry_run: bool,
    /// The blobs whose bytes came with it.
    #[serde(default)]
    pub brought: HashSet<Digest>,
}

/// What became of an image that came.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "kebab-case")]
pub enum Taken {
    /// It is here.
    Taken {
        /// What the tag meant before.
        moved_from: Option<Digest>,
        /// For nobody but those who may read the repository upstream, since that said so.
        private: bool,
    },
    /// Its tag means something that upstream said later; the image itself is here, by its digest.
    NewerHere {
        /// What the tag means.
        digest: Digest,
    },
    /// Something was deleted upstream since, or a write may have changed it.
    Outdated,
    /// Parts are not here: so is nothing that leads to it.
    Missing {
        /// These.
        digests: Vec<Digest>,
    },
    /// Parts did not come with it, and are here by a name that not everybody may read.
    Hidden {
        /// These.
        digests: Vec<Digest>,
    },
    /// It is not as it says.
    Wrong {
        /// Why.
        reason: String,
    },
}

/// What the manifests of an image say.
struct Proof {
    infos: HashMap<Digest, ManifestInfo>,
    held: Vec<super::StoredBlob>,
}

// === impl Store ===

impl Store {
    /// What is here, for who would bring something.
    pub async fn have(&self) -> Result<Have, StoreError> {
        self.blocking(Inner::have).await
    }

    /// The images that any of the patterns means, without patterns all, with the signatures and what else refers to them.
    pub async fn carried(&self, patterns: Vec<ImagePattern>) -> Result<Carried, StoreError> {
        self.blocking(move |inner| inner.carried(&patterns)).await
    }

    /// Writes the `index.json` with which the root is an OCI image layout; how many images it names.
    pub async fn write_index(&self) -> Result<usize, StoreError> {
        self.blocking(Inner::write_index).await
    }

    /// Takes an image whose blobs are here: links, then the tag. Where it cannot be taken, nothing of it can be seen.
    /// `is_private_here`: upstream has said lately that it is not for everybody.
    pub async fn take_image(&self, image: Image, terms: Terms, is_private_here: bool) -> Result<Taken, StoreError> {
        if !terms.dry_run {
            self.check_parts(&image).await?;
        }
        let image = Arc::new(image);
        let (of, under) = (Arc::clone(&image), terms.clone());
        let proof = match self.blocking(move |inner| inner.prove(&of, &under)).await? {
            Ok(proof) => proof,
            Err(refused) => return Ok(refused),
        };
        let Image { upstream: up, repository: repo, .. } = &*image;
        let now = self.0.timeline.now();
        let as_of = SystemTime::from(image.as_of).min(now);
        let asked_at = if terms.replace_newer { now } else { as_of };
        let mut moved_from = None;
        if let Some(tag) = &image.tag {
            let state = self.tag_state(up, repo, tag).await?;
            let other = state.record.map(|record| record.digest).filter(|digest| *digest != image.digest);
            let is_newer = state.checked_at.is_some_and(|checked| checked > asked_at);
            if let Some(digest) = other.filter(|_| is_newer && terms.dry_run) {
                return Ok(Taken::NewerHere { digest });
            }
            moved_from = other;
        }
        let access = self.access(up, repo).await?;
        let is_private = access.is_some_and(|record| record.access == Access::Private) || is_private_here;
        let taken = Taken::Taken { moved_from, private: is_private && !terms.private };
        if terms.dry_run {
            return Ok(taken);
        }
        let via = if terms.private { Via::Shared } else { Via::Anonymous };
        // What leads to others last.
        let order = |part: &&Part| (part.role == Role::Manifest, part.digest == image.digest);
        let mut parts: Vec<&Part> = image.parts.iter().collect();
        parts.sort_by_key(order);
        for part in parts {
            let before = self.link(up, repo, &part.digest).await?;
            let via = if before.is_some_and(|before| before.via == Via::Anonymous) { Via::Anonymous } else { via };
            if !self.set_link(up, repo, &part.digest, &proof.link(part, via), asked_at).await? {
                return Ok(Taken::Outdated);
            }
        }
        self.list_referrers(&image, &proof, via, asked_at).await?;
        if !terms.private && !is_private {
            self.set_access(up, repo, Access::Public).await?;
        }
        if let Some(tag) = &image.tag {
            let size = image.parts.iter().find(|part| part.digest == image.digest).map_or(0, |part| part.size);
            let Image { digest, media_type, etag, .. } = &*image;
            let record = TagRecord { digest: *digest, media_type: media_type.clone(), size, etag: etag.clone() };
            if !self.set_tag(up, repo, tag, &record, asked_at).await? {
                let state = self.tag_state(up, repo, tag).await?;
                return Ok(match state.record.map(|record| record.digest) {
                    Some(digest) if digest == image.digest => taken,
                    Some(digest) => Taken::NewerHere { digest },
                    None => Taken::Outdated,
                });
            }
        }
        drop(proof);
        Ok(taken)
    }

    /// Hashes what is not known to be right. What is wrong goes to quarantine: the tag must not lead to it, and the next
    /// import of the same bundle brings it.
    async fn check_parts(&self, image: &Image) -> Result<(), StoreError> {
        for part in &image.parts {
            match self.peek(&part.digest).await? {
                Some(blob) if blob.trust != Trust::Verified => {
                    self.check(&part.digest, &blob, &mut AtOnce).await?;
                }
                Some(_) | None => {}
            }
        }
        Ok(())
    }

    /// Adds what refers to manifests of the image to the lists that are served while upstream cannot be asked.
    async fn list_referrers(
        &self,
        image: &Image,
        proof: &Proof,
        via: Via,
        asked_at: SystemTime,
    ) -> Result<(), StoreError> {
        let Image { upstream: up, repository: repo, .. } = image;
        let mut lists: HashMap<Digest, Vec<serde_json::Value>> = HashMap::new();
        for part in &image.parts {
            let Some(info) = proof.infos.get(&part.digest) else { continue };
            let Some(subject) = info.subject else { continue };
            let digest = part.digest;
            let Some(bytes) = self.blocking(move |inner| inner.right_manifest(&digest)).await? else { continue };
            let document: serde_json::Value = serde_json::from_slice(&bytes).unwrap_or_default();
            let mut entry = serde_json::json!({
                "mediaType": part.media_type, "digest": part.digest.to_string(), "size": part.size,
            });
            if let Some(fields) = entry.as_object_mut() {
                if let Some(artifact_type) = &info.artifact_type {
                    fields.insert("artifactType".to_owned(), artifact_type.as_str().into());
                }
                if let Some(annotations) = document.get("annotations").filter(|found| found.is_object()) {
                    fields.insert("annotations".to_owned(), annotations.clone());
                }
            }
            lists.entry(subject).or_default().push(entry);
        }
        for (subject, entries) in lists {
            let kind = ListKind::Referrers(subject);
            let before = self.list(up, repo, &kind, "").await?;
            if via == Via::Shared && before.as_ref().is_some_and(|before| before.via != via) {
                // Those who may read the list may not all know of these.
                continue;
            }
            let is_wider = before.as_ref().is_some_and(|before| before.via != via);
            let known = before.and_then(|before| serde_json::from_slice::<serde_json::Value>(&before.body).ok());
            let known = known.and_then(|mut known| known.get_mut("manifests")?.as_array_mut().map(std::mem::take));
            let mut manifests = known.unwrap_or_default();
            if is_wider && !self.all_public(up, repo, &manifests).await? {
                // Everybody would read of what only some know.
                continue;
            }
            for entry in entries {
                if !manifests.iter().any(|known| known.get("digest") == entry.get("digest")) {
                    manifests.push(entry);
                }
            }
            let body = serde_json::json!({
                "schemaVersion": 2, "mediaType": media::OCI_INDEX, "manifests": manifests,
            });
            let list = StoredList {
                body: body.to_string().into(),
                content_type: media::OCI_INDEX.to_owned(),
                link: None,
                filters_applied: None,
                via,
            };
            self.set_list(up, repo, &kind, "", &list, asked_at).await?;
        }
        Ok(())
    }

    /// Whether all descriptors of a list are of what everybody was given.
    async fn all_public(
        &self,
        up: &UpstreamName,
        repo: &RepoName,
        manifests: &[serde_json::Value],
    ) -> Result<bool, StoreError> {
        for entry in manifests {
            let digest = entry.get("digest").and_then(|text| text.as_str()?.parse::<Digest>().ok());
            let Some(digest) = digest else { return Ok(false) };
            if self.link(up, repo, &digest).await?.is_none_or(|link| link.via != Via::Anonymous) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

// === impl Proof ===

impl Proof {
    /// As what the manifests say that a part belongs to the image.
    fn link(&self, part: &Part, via: Via) -> Link {
        let Some(info) = self.infos.get(&part.digest) else { return Link::blob(via, part.size) };
        Link {
            kind: LinkKind::Manifest,
            via,
            media_type: part.media_type.clone(),
            size: part.size,
            subject: info.subject,
            artifact_type: info.artifact_type.clone(),
        }
    }
}

// === impl Inner ===

impl Inner {
    fn have(self: &Arc<Self>) -> Result<Have, StoreError> {
        let mut have = Have::default();
        let mut survey = Survey::new(self);
        let mut named = HashSet::new();
        for (up, repo) in self.repositories()? {
            let contents = survey.contents(&up, &repo)?;
            // What only the credential of a client has shown to be here is nothing to rely on.
            let counts = |digest: &Digest| {
                contents.links.get(digest).and_then(Option::as_ref).is_some_and(|link| link.via != Via::Client)
            };
            named.extend(contents.links.keys().filter(|digest| counts(digest)).copied());
            for (tag, digest) in contents.roots(&mut survey)? {
                if tag.is_some() || counts(&digest) {
                    have.tags.push(HaveTag {
                        name: super::inventory::image_name(&up, &repo, tag.as_ref(), &digest),
                        digest,
                    });
                }
            }
        }
        self.each_blob(|digest| {
            if named.contains(digest) { &mut have.digests } else { &mut have.unnamed }.push(*digest);
            Ok(())
        })?;
        for digests in [&mut have.digests, &mut have.unnamed] {
            digests.sort_by_key(ToString::to_string);
        }
        have.tags.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(have)
    }

    fn carried(self: &Arc<Self>, patterns: &[ImagePattern]) -> Result<Carried, StoreError> {
        let mut survey = Survey::new(self);
        let mut carried = Carried::default();
        let mut unmatched: Vec<&ImagePattern> = patterns.iter().collect();
        for (up, repo) in self.repositories()? {
            if !patterns.is_empty() && !patterns.iter().any(|pattern| pattern.is_about(&up, &repo)) {
                continue;
            }
            let contents = survey.contents(&up, &repo)?;
            let mut selected = Vec::new();
            for (tag, digest) in contents.roots(&mut survey)? {
                let means = |p: &ImagePattern| p.is_about(&up, &repo) && p.selects(tag.as_ref(), &digest);
                unmatched.retain(|pattern| !means(pattern));
                if patterns.is_empty() || patterns.iter().any(means) {
                    selected.push((tag, digest));
                }
            }
            contents.add_signatures(&mut survey, &mut selected)?;
            for (tag, digest) in selected {
                match self.whole_image(&mut survey, (&up, &repo), &contents, (tag.as_ref(), digest))? {
                    Some(image) => carried.images.push(image),
                    None => carried.unstored.push(super::inventory::image_name(&up, &repo, tag.as_ref(), &digest)),
                }
            }
        }
        carried.unmatched = unmatched.into_iter().map(ToString::to_string).collect();
        carried.images.sort_by_key(Image::name);
        Ok(carried)
    }

    /// An image with all its parts; none: its manifest is not stored.
    fn whole_image(
        &self,
        survey: &mut Survey<'_>,
        (up, repo): (&UpstreamName, &RepoName),
        contents: &Contents,
        (tag, digest): (Option<&Tag>, Digest),
    ) -> Result<Option<Image>, StoreError> {
        let mut reached = HashSet::new();
        contents.reach(survey, &digest, &mut reached)?;
        let mut manifests = HashSet::from([digest]);
        for one in &reached {
            let linked = contents.links.get(one).and_then(Option::as_ref);
            if linked.is_some_and(|link| link.kind == LinkKind::Manifest) {
                manifests.insert(*one);
            }
            if let Some(node) = survey.seen(one).filter(|node| node.info.is_index) {
                manifests.extend(&node.info.children);
            }
        }
        let written = |path: &Path| self.disk.metadata(path).and_then(|found| found.modified()).ok();
        let (mut parts, mut absent) = (Vec::new(), Vec::new());
        for one in &reached {
            let Some(size) = survey.len(one) else {
                absent.push(*one);
                continue;
            };
            let mut part = Part {
                digest: *one,
                size,
                role: Role::Blob,
                media_type: None,
                subject: None,
                artifact_type: None,
                since: None,
            };
            part.since = written(&layout::link(up, repo, one)).map(timestamp);
            if manifests.contains(one) {
                let node = survey.node(one)?;
                let linked = contents.links.get(one).and_then(Option::as_ref).and_then(|link| link.media_type.clone());
                let assumed = if node.info.is_index { media::OCI_INDEX } else { media::OCI_MANIFEST };
                part.role = Role::Manifest;
                part.media_type =
                    Some(linked.or_else(|| node.info.media_type.clone()).unwrap_or_else(|| assumed.to_owned()));
                (part.subject, part.artifact_type) = (node.info.subject, node.info.artifact_type.clone());
            }
            parts.push(part);
        }
        parts.sort_by_key(|part| (part.digest != digest, part.role != Role::Manifest, part.digest.to_string()));
        absent.sort_by_key(ToString::to_string);
        let Some(root) = parts.first().filter(|part| part.digest == digest) else { return Ok(None) };
        let record = tag.and_then(|tag| contents.tags.get(tag));
        let media_type = record.map(|record| record.media_type.clone()).or_else(|| root.media_type.clone());
        let link = contents.links.get(&digest).and_then(Option::as_ref);
        let access: Option<AccessRecord> = self.records.read(&self.disk, &layout::access(up, repo));
        let is_private = access.is_some_and(|record| record.access == Access::Private)
            || link.is_some_and(|link| link.via != Via::Anonymous);
        let path = match tag {
            Some(tag) => layout::tag(up, repo, tag),
            None => layout::link(up, repo, &digest),
        };
        let since = written(&path);
        let as_of = tag.and_then(|tag| self.checked_at(up, repo, tag)).or(since).unwrap_or(SystemTime::UNIX_EPOCH);
        Ok(Some(Image {
            upstream: up.clone(),
            url: self.origin_url(up),
            repository: repo.clone(),
            tag: tag.cloned(),
            digest,
            media_type: media_type.unwrap_or_else(|| media::OCI_MANIFEST.to_owned()),
            etag: record.and_then(|record| record.etag.clone()),
            since: since.map(timestamp),
            as_of: timestamp(as_of),
            private: is_private,
            parts,
            absent,
        }))
    }

    fn write_index(self: &Arc<Self>) -> Result<usize, StoreError> {
        let path = Path::new("index.json");
        let index = Index::of(&self.carried(&[])?.images);
        let fail = |e: std::io::Error| StoreError::io("write", path, e);
        let bytes = index.to_json().map_err(|fault| fail(std::io::Error::other(fault)))?;
        let temporary = Temporary::create(&self.disk, "index").map_err(fail)?;
        temporary.write(&bytes).map_err(fail)?;
        temporary.sync().map_err(fail)?;
        temporary.publish(path).map_err(|(_, e)| fail(e))?;
        self.disk.sync_dir(Path::new("")).map_err(fail)?;
        Ok(index.manifests.len())
    }

    /// What the manifests of an image say, if they say what it says, and all of it is here and may be linked.
    fn prove(self: &Arc<Self>, image: &Image, terms: &Terms) -> Result<Result<Proof, Taken>, StoreError> {
        let wrong = |reason: String| Ok(Err(Taken::Wrong { reason }));
        let mut proof = Proof { infos: HashMap::new(), held: Vec::new() };
        let mut missing = Vec::new();
        for part in &image.parts {
            self.check_open()?;
            // In a dry run what comes with it is not here yet.
            if terms.dry_run && terms.brought.contains(&part.digest) {
                continue;
            }
            match self.open_blob(&part.digest, true)? {
                Some(blob) if blob.len == part.size => {
                    if proof.held.len() < HELD {
                        proof.held.push(blob);
                    }
                }
                _ => missing.push(part.digest),
            }
        }
        if !missing.is_empty() {
            return Ok(Err(Taken::Missing { digests: missing }));
        }
        if terms.dry_run && image.parts.iter().any(|part| terms.brought.contains(&part.digest)) {
            return Ok(Ok(proof));
        }
        let manifests = || image.parts.iter().filter(|part| part.role == Role::Manifest);
        if manifests().map(|part| part.size).sum::<u64>() > MANIFESTS {
            return wrong(format!("its manifests are larger than {MANIFESTS} bytes together"));
        }
        for part in manifests() {
            let Some(bytes) = self.right_manifest(&part.digest)? else {
                return Ok(Err(Taken::Missing { digests: vec![part.digest] }));
            };
            match ManifestInfo::check(part.media_type.as_deref(), &bytes) {
                Ok(info) => drop(proof.infos.insert(part.digest, info)),
                Err(fault) => return wrong(format!("{}: {fault}", part.digest)),
            }
        }
        // All that leads to it, as long as there is more.
        let mut reached = HashSet::from([image.digest]);
        loop {
            let before = reached.len();
            for (digest, info) in &proof.infos {
                if info.subject.is_some_and(|subject| reached.contains(&subject)) {
                    reached.insert(*digest);
                }
                if reached.contains(digest) {
                    reached.extend(&info.children);
                }
            }
            if reached.len() == before {
                break;
            }
        }
        let said =
            image.parts.iter().find(|part| part.digest == image.digest).and_then(|part| part.media_type.as_deref());
        if said.map(media::essence) != Some(media::essence(&image.media_type)) {
            return wrong(format!("it is called {} and {} at once", image.media_type, said.unwrap_or("nothing")));
        }
        if let Some(strange) = image.parts.iter().find(|part| !reached.contains(&part.digest)) {
            return wrong(format!("its manifests do not name {}", strange.digest));
        }
        let hidden = self.hidden_parts(image, terms)?;
        if hidden.is_empty() { Ok(Ok(proof)) } else { Ok(Err(Taken::Hidden { digests: hidden })) }
    }

    /// The bytes of a manifest that is here and right; they may be gone, or rot, at any moment.
    fn right_manifest(&self, digest: &Digest) -> Result<Option<Vec<u8>>, StoreError> {
        let path = layout::blob(digest);
        match self.disk.read_all(&path, MAX_MANIFEST) {
            Ok(bytes) => Ok(Some(bytes).filter(|bytes| Digest::of(digest.algorithm(), bytes) == *digest)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(StoreError::io("read", &path, error)),
        }
    }

    /// The parts that did not come with the image, and that those for whom it is may not read here already: neither in its
    /// repository nor in another.
    fn hidden_parts(&self, image: &Image, terms: &Terms) -> Result<Vec<Digest>, StoreError> {
        let Image { upstream: up, repository: repo, .. } = image;
        let link = |up: &UpstreamName, repo: &RepoName, digest: &Digest| {
            Ok::<_, StoreError>(Records::look::<Link>(&self.disk, &layout::link(up, repo, digest))?.record())
        };
        let mut open = Vec::new();
        for part in image.parts.iter().filter(|part| !terms.brought.contains(&part.digest)) {
            // The link would be made anew, for everybody; what a few were given in this repository stays theirs.
            let stays = match link(up, repo, &part.digest)?.map(|link| link.via) {
                Some(Via::Anonymous) => true,
                Some(Via::Shared) => terms.private,
                Some(Via::Client) | None => false,
            };
            if !stays {
                open.push(part.digest);
            }
        }
        if open.is_empty() {
            return Ok(open);
        }
        for (up, repo) in self.repositories()? {
            self.check_open()?;
            let access = Records::look::<AccessRecord>(&self.disk, &layout::access(&up, &repo))?;
            let is_public = matches!(access, Found::Record(AccessRecord { access: Access::Public, .. }));
            let mut rest = Vec::new();
            for digest in open {
                let found = link(&up, &repo, &digest)?.map(|link| link.via);
                let is_open = match found {
                    Some(Via::Anonymous) => is_public,
                    // What is for those whom the listener lets through stays that.
                    Some(Via::Shared) => terms.private,
                    Some(Via::Client) | None => false,
                };
                if !is_open {
                    rest.push(digest);
                }
            }
            open = rest;
            if open.is_empty() {
                break;
            }
        }
        Ok(open)
    }
}

// === impl Contents ===

impl Contents {
    /// Adds tags that stand for signatures and the like of what is selected: by a name that begins with its digest
    /// (cosign's `sha256-HEX.sig`), or because they refer to it.
    fn add_signatures(
        &self,
        survey: &mut Survey<'_>,
        selected: &mut Vec<(Option<Tag>, Digest)>,
    ) -> Result<(), StoreError> {
        let mut next = 0;
        while let Some((_, digest)) = selected.get(next).cloned() {
            next += 1;
            let mut reached = HashSet::new();
            self.reach(survey, &digest, &mut reached)?;
            for (tag, record) in &self.tags {
                let names = named_digest(tag).is_some_and(|named| reached.contains(&named));
                let mut refers = || -> Result<bool, StoreError> {
                    Ok(survey.node(&record.digest)?.info.subject.is_some_and(|subject| reached.contains(&subject)))
                };
                let is_new = !selected.iter().any(|(known, _)| known.as_ref() == Some(tag));
                if is_new && (names || refers()?) {
                    selected.push((Some(tag.clone()), record.digest));
                }
            }
        }
        Ok(())
    }
}

/// The digest that a tag begins with: `sha256-HEX`, and perhaps `.sig` or the like.
fn named_digest(tag: &Tag) -> Option<Digest> {
    let (algorithm, rest) = tag.as_str().split_once('-')?;
    let hex = rest.split('.').next()?;
    let algorithm = Algorithm::ALL.into_iter().find(|known| known.as_str() == algorithm)?;
    Digest::from_parts(algorithm, hex).ok()
}
