//! `GET /api/v1/explain`: why an image was a miss, or would be: what is stored of it, how old the tag is, and whether its
//! upstream can be asked, in sentences and in fields.

use std::time::SystemTime;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::super::respond::Failure;
use super::super::route::{Directory, looks_like_host};
use super::api::{bad, failed};
use super::human::bytes;
use super::names::{known, placed};
use super::upstreams::UpstreamReport;
use crate::cache::{FillReport, is_fresh};
use crate::clock::timestamp;
use crate::config::{Config, TagPolicy, Upstream, show_duration};
use crate::oci::{Digest, Reference, RepoName, UpstreamName};
use crate::store::{Access, Departed, PartKind, Store, Stored};
use crate::upstream::HealthState;

/// The answer to `GET /api/v1/explain`.
#[derive(Debug, Serialize, Deserialize)]
pub struct Explanation {
    /// The whole name, as it was understood.
    pub image: String,
    /// The upstream that is asked for it.
    pub upstream: String,
    /// The repository there.
    pub repository: String,
    /// The tag or digest.
    pub reference: String,
    /// What the next pull of it will be.
    pub verdict: Verdict,
    /// The same for people, the most important first.
    pub sentences: Vec<String>,
    /// What is stored of it.
    pub stored: Stored,
    /// What is known of the tag; null for a digest, which means the same for ever.
    pub tag: Option<TagReport>,
    /// Downloads of this repository that run now.
    pub fills: Vec<FillReport>,
    /// How its upstream does.
    pub health: UpstreamReport,
}

/// What the next pull of an image will be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Answered from the store; upstream is not asked.
    Hit,
    /// Upstream is asked whether the tag still means the same; if so, or if it cannot be asked, answered from the store.
    Check,
    /// The manifest, and what else is stored, from the store; the rest is downloaded.
    Partial,
    /// All of it is asked for upstream.
    Miss,
    /// It is not stored, and upstream cannot be asked.
    Unavailable,
}

/// What is known of a tag.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TagReport {
    /// How long it is served before upstream is asked again: `always` (asked each time), `immutable`, `sealed`, or
    /// seconds as `300s`.
    pub policy: String,
    /// When upstream said last what it means; null: not known.
    pub checked_at: Option<Timestamp>,
    /// How long ago that was.
    pub age_seconds: Option<u64>,
    /// From when on a pull asks again; null: never, or at the next pull.
    pub next_check_at: Option<Timestamp>,
    /// Whether it is served without asking upstream.
    pub fresh: bool,
    /// Whether a write through ocistern may have changed it: then upstream is asked whatever the policy says.
    pub suspect: bool,
}

/// What is asked about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Name {
    pub(super) upstream: UpstreamName,
    pub(super) repository: RepoName,
    pub(super) reference: Reference,
}

// === impl Name ===

impl Name {
    /// What a client means by the name: with a tag or a digest, else `latest`; by an address of a listener, that of a pull through
    /// it; without an upstream, that of the first listener that has one; with `library/` where that belongs there.
    pub(super) fn parse(text: &str, config: &Config) -> Result<Self, Failure> {
        Self::parse_with(text, config, &[])
    }

    /// The same where there may be something in the store of upstreams that are not configured here.
    pub(super) fn parse_with(text: &str, config: &Config, stored: &[UpstreamName]) -> Result<Self, Failure> {
        let wrong = |what: &str| {
            bad(format!("image: {text:?} {what}: write UPSTREAM/REPOSITORY:TAG or UPSTREAM/REPOSITORY@DIGEST"))
        };
        let text = text.trim();
        if text.len() > 1024 {
            return Err(bad("image: this is longer than any name"));
        }
        let text = placed(text, config).map_err(|error| bad(format!("image: {error}")))?;
        let (name, reference) = if let Some((name, digest)) = text.split_once('@') {
            let digest = digest.parse::<Digest>().map_err(|_| wrong("has no digest behind the @"))?;
            // With a tag, too: the digest decides.
            let tagged = name.rsplit_once(':').filter(|(_, tag)| !tag.contains('/'));
            (tagged.map_or(name, |(name, _)| name), Reference::Digest(digest))
        } else {
            match text.rsplit_once(':').filter(|(_, tag)| !tag.contains('/')) {
                Some((name, tag)) => (name, tag.parse().map(Reference::Tag).map_err(|_| wrong("has no valid tag"))?),
                None => (&*text, "latest".parse().map(Reference::Tag).map_err(|_| wrong("is no name"))?),
            }
        };
        let (first, rest) = name.split_once('/').unwrap_or(("", name));
        let in_store = || first.parse::<UpstreamName>().ok().filter(|name| stored.contains(name));
        let (upstream, repository) = match Directory::new(config).get(first).cloned().or_else(in_store) {
            Some(upstream) => (upstream, rest),
            None if looks_like_host(first) => {
                return Err(bad(format!("image: there is no upstream {first:?}; there is {}", known(config))));
            }
            None => {
                let default = config.listeners.iter().find_map(|listener| listener.default_upstream.clone());
                (default.ok_or_else(|| wrong("names no upstream, and no listener has a default one"))?, name)
            }
        };
        let repository: RepoName = repository.parse().map_err(|_| wrong("has no valid repository"))?;
        let library = config.upstreams.get(&upstream).is_some_and(|upstream| upstream.library);
        let repository = if library { repository.with_library() } else { repository };
        Ok(Self { upstream, repository, reference })
    }

    /// As clients write it.
    pub(super) fn whole(&self) -> String {
        let separator = if matches!(self.reference, Reference::Tag(_)) { ':' } else { '@' };
        format!("{}/{}{separator}{}", self.upstream, self.repository, self.reference)
    }
}

/// Explains what will become of the next pull.
pub(super) async fn explain(
    name: &Name,
    upstream: &Upstream,
    store: &Store,
    health: UpstreamReport,
    fills: Vec<FillReport>,
) -> Result<Explanation, Failure> {
    let Name { upstream: up, repository: repo, reference } = name;
    let stored = store.explain(up, repo, reference).await.map_err(failed)?;
    let now = store.timeline().now();
    let tag = match reference {
        Reference::Digest(_) => None,
        Reference::Tag(tag) => {
            let state = store.tag_state(up, repo, tag).await.map_err(failed)?;
            let suspect = state.suspect.unwrap_or(true);
            Some(tag_report(upstream.policy(repo, tag), state.checked_at, suspect, now))
        }
    };
    let fills: Vec<FillReport> =
        fills.into_iter().filter(|fill| fill.upstream == up.as_str() && fill.repository == repo.as_str()).collect();
    let verdict = verdict(&stored, tag.as_ref(), &health);
    let sentences = sentences(name, upstream, verdict, &stored, tag.as_ref(), &health, &fills, timestamp(now));
    Ok(Explanation {
        image: name.whole(),
        upstream: up.to_string(),
        repository: repo.to_string(),
        reference: reference.to_string(),
        verdict,
        sentences,
        stored,
        tag,
        fills,
        health,
    })
}

fn tag_report(policy: TagPolicy, checked_at: Option<SystemTime>, suspect: bool, now: SystemTime) -> TagReport {
    let fresh = is_fresh(policy, checked_at, now, suspect);
    let next = match policy {
        TagPolicy::For(lifetime) if fresh => checked_at.map(|at| timestamp(at + lifetime)),
        _ => None,
    };
    TagReport {
        policy: match policy {
            TagPolicy::Always => "always".to_owned(),
            TagPolicy::Immutable => "immutable".to_owned(),
            TagPolicy::Sealed => "sealed".to_owned(),
            TagPolicy::For(lifetime) => format!("{}s", lifetime.as_secs()),
        },
        checked_at: checked_at.map(timestamp),
        age_seconds: checked_at.and_then(|at| now.duration_since(at).ok()).map(|age| age.as_secs()),
        next_check_at: next,
        fresh,
        suspect,
    }
}

/// Whether the endpoint, or none of an upstream's, is let through to now.
fn is_closed(health: &UpstreamReport) -> bool {
    let state = health.endpoint.state.as_str();
    state == HealthState::Sealed.as_str()
        || (state == HealthState::BreakerOpen.as_str() && health.endpoint.asked_again_in_seconds != Some(0))
}

/// How many platforms of an index are listed, and how many of them stored.
fn platforms(stored: &Stored) -> (usize, usize) {
    let listed = || stored.parts.iter().filter(|part| part.platform.is_some());
    (listed().count(), listed().filter(|part| part.stored).count())
}

fn verdict(stored: &Stored, tag: Option<&TagReport>, health: &UpstreamReport) -> Verdict {
    let is_there = stored.manifest_stored && stored.linked && stored.digest.is_some();
    if !is_there {
        return if is_closed(health) { Verdict::Unavailable } else { Verdict::Miss };
    }
    let (listed, there) = platforms(stored);
    if stored.missing_blobs > 0 || (listed > 0 && there == 0) {
        return Verdict::Partial;
    }
    let is_sealed = health.endpoint.state == HealthState::Sealed.as_str();
    if is_sealed || tag.is_none_or(|tag| tag.fresh) { Verdict::Hit } else { Verdict::Check }
}

#[expect(clippy::too_many_arguments, reason = "all that is known goes into the text")]
fn sentences(
    name: &Name,
    upstream: &Upstream,
    verdict: Verdict,
    stored: &Stored,
    tag: Option<&TagReport>,
    health: &UpstreamReport,
    fills: &[FillReport],
    now: Timestamp,
) -> Vec<String> {
    let up = &name.upstream;
    let mut said = vec![match verdict {
        Verdict::Hit => format!("The next pull is answered from the store, and {up} is not asked."),
        Verdict::Check => format!(
            "It is stored. The next pull first asks {up} whether the tag still means the same; if so, or if {up} \
                 cannot be asked, it is answered from the store."
        ),
        Verdict::Partial => "A part of it is stored: the next pull downloads the rest.".to_owned(),
        Verdict::Miss => format!("It is not stored: the next pull downloads it from {up}."),
        Verdict::Unavailable => format!("It is not stored, and {up} cannot be asked now: the next pull fails."),
    }];
    said.extend(of_content(name, stored, now));
    if let (Some(report), Reference::Tag(tag)) = (tag, &name.reference) {
        said.extend(of_tag(up, report, upstream.policy(&name.repository, tag), now));
    }
    if stored.access == Some(Access::Private) {
        said.push(format!(
            "The repository is private: a caller gets what is stored once {up} has said that this caller may read it \
             (remembered for access_ttl, {}).",
            show_duration(upstream.access_ttl)
        ));
    }
    for pin in &stored.pins {
        said.push(format!("It is pinned by {pin}: what is stored of it is never evicted."));
    }
    for fill in fills {
        let size = fill.size.map_or_else(String::new, |size| format!(" of {}", bytes(size)));
        said.push(format!("{} is being downloaded: {}{size} are there.", fill.digest, bytes(fill.present)));
    }
    said.extend(of_upstream(up, health, now));
    said
}

fn of_content(name: &Name, stored: &Stored, now: Timestamp) -> Vec<String> {
    let mut said = Vec::new();
    let Some(digest) = &stored.digest else {
        said.push(format!(
            "Nothing is known of {}: it was not asked for yet, or so long ago that it is forgotten.",
            name.whole()
        ));
        return said;
    };
    if stored.manifest_stored {
        let since = stored.fetched_at.map_or_else(String::new, |at| format!(", stored {}", ago(at, now)));
        said.push(format!(
            "It is the manifest {digest}{since}; {} blobs of it are stored, {}.",
            stored.blobs,
            bytes(stored.bytes)
        ));
    } else if let Some(departed) = &stored.departed {
        said.push(format!("It was the manifest {digest}, which {}.", went(departed, now)));
    } else {
        said.push(format!("Its manifest {digest} is not stored."));
    }
    if stored.manifest_stored && !stored.linked {
        said.push(format!(
            "{} has not served that in {} yet, or not as a manifest: its word is needed before what is stored counts here.",
            name.upstream, name.repository
        ));
    }
    let (listed, there) = platforms(stored);
    if listed > 0 {
        let of = |stored_ones: bool| {
            let names = stored.parts.iter().filter(|part| part.stored == stored_ones);
            names.filter_map(|part| part.platform.as_deref()).collect::<Vec<_>>().join(", ")
        };
        if there < listed {
            let which = if there == 0 { String::new() } else { format!(" ({})", of(true)) };
            said.push(format!(
                "It is an index of {listed} platforms, of which {there} are stored{which}; a pull of another one ({}) is a miss.",
                of(false)
            ));
        }
    }
    if stored.manifest_stored && stored.missing_blobs > 0 {
        said.push(format!("{} blobs are missing, {}.", stored.missing_blobs, bytes(stored.missing_bytes)));
    }
    let gone = stored.parts.iter().filter(|part| part.kind == PartKind::Content || part.platform.is_some());
    let mut gone: Vec<&Departed> = gone.filter_map(|part| part.departed.as_ref()).collect();
    gone.sort_by_key(|departed| departed.at);
    if let Some(last) = gone.last().filter(|_| stored.manifest_stored) {
        said.push(format!("{} of its parts went lately; the last one {}.", gone.len(), went(last, now)));
    }
    said
}

fn went(departed: &Departed, now: Timestamp) -> String {
    use crate::store::Departure;
    let how = match departed.why {
        Departure::Evicted => "was evicted to make room, or for its age",
        Departure::Removed => "was removed by an operator",
        Departure::Collected => "was removed because nothing led to it",
        Departure::Quarantined => "was found damaged and set aside",
    };
    format!("{how} {}", ago(departed.at, now))
}

fn of_tag(up: &UpstreamName, tag: &TagReport, policy: TagPolicy, now: Timestamp) -> Option<String> {
    if tag.suspect {
        return Some(format!(
            "A write may have changed the tag: {up} is asked at the next pull whatever the policy says."
        ));
    }
    let checked = tag.checked_at.map_or_else(
        || "It is not known when the tag was last checked".to_owned(),
        |at| format!("The tag was last checked {}", ago(at, now)),
    );
    let then = match (policy, tag.next_check_at) {
        (TagPolicy::Sealed, _) => return None,
        (TagPolicy::Immutable, _) => "it is never asked again (tags = \"immutable\")".to_owned(),
        (TagPolicy::Always, _) => "it is asked at each pull (tags = \"always\")".to_owned(),
        (TagPolicy::For(time), Some(at)) => {
            format!("it is asked again {} (tags = \"{}\")", until(at, now), show_duration(time))
        }
        (TagPolicy::For(time), None) => {
            format!("it is asked again at the next pull (tags = \"{}\")", show_duration(time))
        }
    };
    Some(format!("{checked}; {then}."))
}

fn of_upstream(up: &UpstreamName, health: &UpstreamReport, now: Timestamp) -> Option<String> {
    let endpoint = &health.endpoint;
    let since = endpoint.since.map(|at| now.duration_since(at).as_secs()).filter(|seconds| *seconds >= 0);
    let since = since.map_or_else(String::new, |seconds| format!(" for {}", length(seconds)));
    let why = endpoint.last_error.as_ref().map_or_else(String::new, |error| format!(": {}", error.message));
    let state = endpoint.state.as_str();
    if state == HealthState::Sealed.as_str() {
        Some(format!("{up} is sealed by the configuration: it is never asked."))
    } else if state == HealthState::Failing.as_str() {
        Some(format!("{up} has been failing{since}{why}."))
    } else if state == HealthState::BreakerOpen.as_str() {
        let again = endpoint.asked_again_in_seconds.unwrap_or_default();
        Some(format!("{up} has been failing{since} and is left alone for another {again} s{why}."))
    } else {
        let limit = health.rate_limit.as_ref()?;
        (limit.remaining == 0)
            .then(|| format!("{up} said {} that nothing is left of its rate limit.", ago(limit.at, now)))
    }
}

fn ago(at: Timestamp, now: Timestamp) -> String {
    let seconds = now.duration_since(at).as_secs();
    if seconds < 0 { "at a time that is still to come".to_owned() } else { format!("{} ago", length(seconds)) }
}

fn until(at: Timestamp, now: Timestamp) -> String {
    let left = at.duration_since(now).max(SignedDuration::ZERO).as_secs();
    format!("in {}", length(left))
}

fn length(seconds: i64) -> String {
    let (number, unit) = match seconds {
        0..120 => (seconds, "second"),
        120..7200 => (seconds / 60, "minute"),
        7200..172_800 => (seconds / 3600, "hour"),
        _ => (seconds / 86_400, "day"),
    };
    let s = if number == 1 { "" } else { "s" };
    format!("{number} {unit}{s}")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn config() -> Config {
        Config::from_toml("root = \"/var/cache/x\"\n[upstream.\"localhost-5001\"]\nurl = \"http://localhost:5001\"")
            .unwrap()
    }

    #[test]
    fn names_mean_what_clients_mean_by_them() {
        let config = config();
        let whole = |text: &str| Name::parse(text, &config).map(|name| name.whole()).map_err(|failure| failure.message);
        let digest = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        for (text, name) in [
            ("alpine", "docker.io/library/alpine:latest".to_owned()),
            (" docker.io/alpine:3 ", "docker.io/library/alpine:3".to_owned()),
            ("team/app:v1", "docker.io/team/app:v1".to_owned()),
            ("ghcr.io/org/app", "ghcr.io/org/app:latest".to_owned()),
            ("localhost:5001/app:1", "localhost-5001/app:1".to_owned()),
            ("localhost:5000/alpine:3", "docker.io/library/alpine:3".to_owned()),
            ("localhost:5000/ghcr.io/org/app:v1", "ghcr.io/org/app:v1".to_owned()),
            ("index.docker.io/alpine:3", "docker.io/library/alpine:3".to_owned()),
            (&format!("ghcr.io/org/app:v1@{digest}"), format!("ghcr.io/org/app@{digest}")),
        ] {
            assert_eq!(whole(text).as_ref(), Ok(&name), "{text}");
        }
        for text in ["", "ghcr.io/<script>", "ghcr.io/a@sha256:x", "ghcr.io/a:-", "ghcr.io/A", &"a".repeat(2000)] {
            assert!(whole(text).is_err(), "{text}");
        }
        assert!(whole("evil.example/a").unwrap_err().contains("there is docker.io"), "it says which there are");
    }

    #[test]
    fn the_tag_and_its_next_check() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let policy = TagPolicy::For(Duration::from_mins(5));
        let checked = Some(now - Duration::from_mins(1));
        let tag = tag_report(policy, checked, false, now);
        assert_eq!((tag.age_seconds, tag.fresh), (Some(60), true));
        assert_eq!(tag.next_check_at, Some(timestamp(now + Duration::from_mins(4))));
        let up = "docker.io".parse().unwrap();
        let said = of_tag(&up, &tag, policy, timestamp(now)).unwrap();
        assert_eq!(said, "The tag was last checked 60 seconds ago; it is asked again in 4 minutes (tags = \"5m\").");
        let suspect = tag_report(policy, checked, true, now);
        assert!(!suspect.fresh && of_tag(&up, &suspect, policy, timestamp(now)).unwrap().contains("write"));
        assert_eq!(tag_report(TagPolicy::Always, checked, false, now).next_check_at, None);
    }
}
