//! Removal of images by name, by the operator's word: tags and links first, then the blobs to which nothing leads any
//! more. What other images lead to stays, and who reads a file that goes reads it to its end.

use std::collections::{BTreeSet, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::departed::Departure;
use super::inventory::image_name;
use super::layout;
use super::order::Short;
use super::partial::{Gone, Place};
use super::survey::{Contents, Spares, Survey};
use super::{Inner, Store, StoreError};
use crate::config::ImagePattern;
use crate::oci::{Digest, RepoName, Tag, UpstreamName};

/// What was removed, or would be.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Removed {
    /// Nothing was removed: this is what would be.
    pub dry_run: bool,
    /// The images, in order of their names.
    pub images: Vec<RemovedImage>,
    /// Of these, names that a pin keeps: what goes is fetched when it is asked for, and stays then.
    #[serde(default)]
    pub pinned: Vec<String>,
    /// The patterns that meant no image.
    pub unmatched: Vec<String>,
    /// Blobs to which nothing leads any more.
    pub blobs: u64,
    /// Their bytes.
    pub freed_bytes: u64,
    /// Bytes of the images that stay, because others lead to them too.
    pub kept_bytes: u64,
    /// Unfinished downloads of parts of these images, and with a whole repository all that were asked for there.
    #[serde(default)]
    pub unfinished: u64,
    /// Their bytes; not among the freed ones.
    #[serde(default)]
    pub unfinished_bytes: u64,
    /// Those that are being gone on with: what is left of them goes, if they do not come to their end.
    #[serde(default)]
    pub running: u64,
}

/// A removed image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemovedImage {
    /// As in [`super::Image`].
    pub name: String,
    /// Its manifest.
    pub digest: Digest,
}

/// Where something was removed, for memories beside the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemovedFrom {
    /// The upstream.
    pub upstream: UpstreamName,
    /// The repository there.
    pub repository: RepoName,
}

/// What is to go from one repository.
#[derive(Debug)]
struct Plan {
    up: UpstreamName,
    repo: RepoName,
    /// All of it, lists and marks too.
    whole: bool,
    /// What stands at each tag that goes; one that has moved meanwhile stays.
    tags: Vec<(Tag, Digest)>,
    /// Links that go, in order.
    links: Vec<Digest>,
    /// All that the images lead to, whether it goes or stays.
    reached: HashSet<Digest>,
    /// Whose images have names in the report.
    images: Vec<RemovedImage>,
}

// === impl Store ===

impl Store {
    /// Removes the images that any of the patterns means, with what nothing else leads to; or says what would go. Also
    /// the repositories in which something was removed.
    pub async fn remove_images(
        &self,
        patterns: Vec<ImagePattern>,
        dry_run: bool,
    ) -> Result<(Removed, Vec<RemovedFrom>), StoreError> {
        self.blocking(move |inner| inner.remove_images(&patterns, dry_run)).await
    }
}

// === impl Plan ===

impl Plan {
    /// The plan for one repository; none if nothing in it is meant. Marks the patterns that mean something.
    fn of(
        survey: &mut Survey<'_>,
        (up, repo): (&UpstreamName, &RepoName),
        patterns: &[ImagePattern],
        matched: &mut [bool],
    ) -> Result<Option<Self>, StoreError> {
        let mut about: Vec<_> =
            patterns.iter().zip(matched).filter(|(pattern, _)| pattern.is_about(up, repo)).collect();
        if about.is_empty() {
            return Ok(None);
        }
        let contents = survey.contents(up, repo)?;
        let mut whole = false;
        for (_, matched) in about.iter_mut().filter(|(pattern, _)| pattern.is_whole()) {
            (whole, **matched) = (true, true);
        }
        let mut selects = |tag: Option<&Tag>, digest: &Digest| {
            let mut any = false;
            for (pattern, matched) in &mut about {
                if pattern.selects(tag, digest) {
                    (any, **matched) = (true, true);
                }
            }
            any
        };
        let mut images = Vec::new();
        let mut roots = Vec::new();
        for (tag, digest) in contents.roots(survey)? {
            if selects(tag.as_ref(), &digest) {
                images.push(RemovedImage { name: image_name(up, repo, tag.as_ref(), &digest), digest });
                roots.push((tag, digest));
            }
        }
        // A digest may also be that of a platform's manifest, to which an index leads.
        for digest in contents.links.keys() {
            if !roots.iter().any(|(_, root)| root == digest) && selects(None, digest) {
                if !whole {
                    images.push(RemovedImage { name: image_name(up, repo, None, digest), digest: *digest });
                }
                roots.push((None, *digest));
            }
        }
        let plan = Self {
            up: up.clone(),
            repo: repo.clone(),
            whole,
            tags: Vec::new(),
            links: Vec::new(),
            reached: HashSet::new(),
            images,
        };
        if whole {
            return Ok(Some(plan.with_all(&contents)));
        }
        if roots.is_empty() {
            return Ok(None);
        }
        plan.with(survey, &contents, &roots).map(Some)
    }

    fn with_all(mut self, contents: &Contents) -> Self {
        self.tags = contents.tags.iter().map(|(tag, record)| (tag.clone(), record.digest)).collect();
        let tagged = self.tags.iter().map(|(_, digest)| digest);
        let all: BTreeSet<Digest> = contents.links.keys().chain(tagged).copied().collect();
        self.reached.extend(&all);
        self.links = all.into_iter().collect();
        self
    }

    /// These go, with what they lead to and nothing that stays in this repository does.
    fn with(
        mut self,
        survey: &mut Survey<'_>,
        contents: &Contents,
        roots: &[(Option<Tag>, Digest)],
    ) -> Result<Self, StoreError> {
        let (mut gone, mut untagged) = (HashSet::new(), HashSet::new());
        for (tag, digest) in roots {
            contents.reach(survey, digest, &mut gone)?;
            match tag {
                Some(tag) => self.tags.push((tag.clone(), *digest)),
                None => drop(untagged.insert(*digest)),
            }
        }
        let goes = |tag: &Tag| self.tags.iter().any(|(gone, _)| gone == tag);
        let stay: Vec<Digest> = contents
            .roots(survey)?
            .into_iter()
            .filter(|(tag, digest)| match tag {
                Some(tag) => !goes(tag),
                None => !gone.contains(digest),
            })
            .map(|(_, digest)| digest)
            .collect();
        // What is named by its digest goes, whatever leads to it, and is no way to anything else.
        let mut needed = untagged.clone();
        for digest in &stay {
            contents.reach(survey, digest, &mut needed)?;
        }
        self.reached.clone_from(&gone);
        let links: BTreeSet<Digest> =
            gone.into_iter().filter(|digest| untagged.contains(digest) || !needed.contains(digest)).collect();
        self.links = links.into_iter().collect();
        Ok(self)
    }

    /// The files that go.
    fn paths(&self) -> impl Iterator<Item = PathBuf> {
        let tags = self.tags.iter().map(|(tag, _)| layout::tag(&self.up, &self.repo, tag));
        tags.chain(self.links.iter().map(|digest| layout::link(&self.up, &self.repo, digest)))
    }

    /// Removes the refs.
    fn run(&self, inner: &Inner) -> Result<(), StoreError> {
        let Self { up, repo, .. } = self;
        if self.whole {
            return inner.forget_all(up, repo);
        }
        let repository = inner.repository(up, repo)?;
        let gate = repository.gate();
        inner.forget_tags(up, repo, |tag, record| {
            self.tags.iter().any(|(gone, digest)| gone == tag && *digest == record.digest)
        })?;
        for digest in &self.links {
            inner.forget_link(up, repo, digest)?;
        }
        drop(gate);
        inner.sync_group()
    }
}

// === impl Inner ===

impl Inner {
    fn remove_images(
        self: &Arc<Self>,
        patterns: &[ImagePattern],
        dry_run: bool,
    ) -> Result<(Removed, Vec<RemovedFrom>), StoreError> {
        self.know_partials()?;
        let mut survey = Survey::new(self);
        let mut matched = vec![false; patterns.len()];
        let mut plans = Vec::new();
        for (up, repo) in self.repositories()? {
            plans.extend(Plan::of(&mut survey, (&up, &repo), patterns, &mut matched)?);
        }
        // Of a repository perhaps nothing else is there.
        let places = self.places_of_partials();
        for (pattern, matched) in patterns.iter().zip(&mut matched) {
            *matched |= places.iter().any(|place| is_all_of(pattern, place));
        }
        let unmatched = patterns.iter().zip(&matched).filter(|(_, matched)| !**matched);
        let mut report =
            Removed { dry_run, unmatched: unmatched.map(|(p, _)| p.to_string()).collect(), ..Removed::default() };
        report.images = plans.iter().flat_map(|plan| plan.images.iter().cloned()).collect();
        report.images.sort_by(|a, b| a.name.cmp(&b.name));
        for Plan { up, repo, tags, .. } in &plans {
            let pinned = tags.iter().filter(|(tag, _)| self.pins.keeps(up, repo, tag));
            report.pinned.extend(pinned.map(|(tag, digest)| image_name(up, repo, Some(tag), digest)));
        }
        report.pinned.sort();
        // Before anything is removed: an error on the way leaves all of it, or refs that are gone and blobs for `gc`.
        let paths: HashSet<PathBuf> = plans.iter().flat_map(Plan::paths).collect();
        let led = if plans.is_empty() { HashSet::new() } else { self.led_to(|path: &Path| paths.contains(path))? };
        let gone: BTreeSet<Digest> = plans.iter().flat_map(|plan| plan.links.iter().copied()).collect();
        let reached: HashSet<Digest> = plans.iter().flat_map(|plan| plan.reached.iter().copied()).collect();
        let bytes: u64 = reached.iter().filter_map(|digest| survey.len(digest)).sum();
        if !dry_run {
            // What memory alone knows has no file by which it could be found.
            self.known.clear();
            plans.iter().try_for_each(|plan| plan.run(self))?;
            for Plan { up, repo, tags, .. } in &plans {
                for (tag, digest) in tags {
                    self.note_tag_gone((up.clone(), repo.clone(), tag.clone()), digest, Departure::Removed);
                }
            }
        }
        for digest in &gone {
            let Some(len) = survey.len(digest) else { continue };
            let stays = led.contains(&Short::from(digest));
            if !stays && (dry_run || self.remove_unled(digest, Spares::Nothing)?.is_some()) {
                report.blobs += 1;
                report.freed_bytes += len;
            }
        }
        report.kept_bytes = bytes - report.freed_bytes;
        let unfinished = self.remove_unfinished(patterns, &plans, &led, dry_run)?;
        (report.unfinished, report.unfinished_bytes) = (unfinished.downloads, unfinished.bytes);
        report.running = unfinished.doomed;
        if !dry_run && (!plans.is_empty() || unfinished != Gone::default()) {
            self.group.run(&self.disk);
            tracing::info!(
                images = report.images.len(),
                blobs = report.blobs,
                bytes = report.freed_bytes,
                unfinished = report.unfinished,
                running = report.running,
                "removed images"
            );
        }
        let from = plans.into_iter().map(|plan| RemovedFrom { upstream: plan.up, repository: plan.repo }).collect();
        Ok((report, from))
    }

    /// What fills have left of the images that go, and all of a repository that goes as a whole.
    fn remove_unfinished(
        self: &Arc<Self>,
        patterns: &[ImagePattern],
        plans: &[Plan],
        led: &HashSet<Short>,
        dry_run: bool,
    ) -> Result<Gone, StoreError> {
        let is_part = |place: &Place, digest: &Digest| {
            let mut of_images = plans.iter().filter(|plan| plan.up == place.0 && plan.repo == place.1);
            // They are in order.
            !led.contains(&Short::from(digest)) && of_images.any(|plan| plan.links.binary_search(digest).is_ok())
        };
        self.remove_partials(dry_run, |seen| {
            let goes = |place: Place| patterns.iter().any(|p| is_all_of(p, &place)) || is_part(&place, &seen.digest);
            seen.mark.place().is_some_and(goes)
        })
    }
}

/// Whether everything in a repository is meant.
fn is_all_of(pattern: &ImagePattern, (up, repo): &Place) -> bool {
    pattern.is_whole() && pattern.is_about(up, repo)
}
