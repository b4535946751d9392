//! What the fuzz targets check, one function a parser of foreign bytes; `tests/corpus.rs` replays the corpora through
//! the same functions with a stable compiler.
#![allow(dead_code, unreachable_pub, reason = "each target uses one function, and tests/corpus.rs compiles them in")]

use std::collections::BTreeSet;
use std::sync::OnceLock;
use std::time::{Duration, UNIX_EPOCH};

use http::{HeaderValue, Uri};
use ocistern::bundle::{Reader, fuzzing};
use ocistern::config::{Config, Listener};
use ocistern::http::Seal;
use ocistern::http::fuzzing::{claims, next_page, opens, sealed};
use ocistern::http::location::{Bound, Claim, Locations};
use ocistern::http::part;
use ocistern::http::range::{self, Multipart, Ranges};
use ocistern::http::route::{self, Directory, Endpoint, Form, Routed};
use ocistern::oci::{Digest, ManifestInfo, Reference, RepoName, Scope, Tag, UpstreamName};
use ocistern::upstream::fuzzing::{follow, retry_after as asked_to_wait};
use ocistern::upstream::{Challenge, parse_challenges};
use serde_json::Value;

/// A closed world of two upstreams.
fn world() -> &'static (Directory, Listener, BTreeSet<UpstreamName>) {
    static WORLD: OnceLock<(Directory, Listener, BTreeSet<UpstreamName>)> = OnceLock::new();
    WORLD.get_or_init(|| {
        let config = Config::from_toml(
            r#"
            root = "/nonexistent"
            builtin_upstreams = false
            [[listener]]
            address = "127.0.0.1:0"
            default_upstream = "docker.io"
            hostnames = { "reg.test" = "reg.example" }
            [upstream."docker.io"]
            url = "https://registry-1.docker.io"
            library = true
            [upstream."reg.example"]
            url = "https://reg.example"
            "#,
        )
        .expect("the fixed configuration is valid");
        let names = config.upstreams.keys().cloned().collect();
        (Directory::new(&config), config.listeners[0].clone(), names)
    })
}

/// `HOST \n PATH \n QUERY`: whatever parses is within the grammar and within the configured upstreams.
pub fn route(data: &[u8]) {
    let (directory, listener, names) = world();
    let Ok(text) = std::str::from_utf8(data) else { return };
    let mut lines = text.splitn(3, '\n');
    let host = lines.next().filter(|host| !host.is_empty());
    let path = lines.next().unwrap_or_default();
    let query = lines.next();
    let Ok(Routed::Resource(found)) = route::parse(directory, listener, host, path, query) else { return };
    assert!(names.contains(&found.upstream), "an upstream that is not configured");
    let repo = match &found.endpoint {
        Endpoint::Catalog => None,
        Endpoint::Manifest(repo, reference) => {
            assert_eq!(reference.to_string().parse::<Reference>().as_ref(), Ok(reference));
            Some(repo)
        }
        Endpoint::Blob(repo, digest) | Endpoint::Referrers(repo, digest) => {
            assert_eq!(digest.to_string().parse::<Digest>(), Ok(*digest));
            Some(repo)
        }
        Endpoint::Tags(repo) | Endpoint::Uploads(repo) => Some(repo),
        Endpoint::Upload(repo, state) => {
            assert!(!state.is_empty() && !state.contains('/'));
            Some(repo)
        }
        Endpoint::Acr(acr) => {
            assert!(!acr.to_string().contains(['?', '#', '%']));
            acr.repo.as_ref()
        }
    };
    if let Some(repo) = repo {
        assert_eq!(repo.as_str().parse::<RepoName>().as_ref(), Ok(repo));
        assert!(repo.parts().all(|part| !matches!(part, "" | "." | "..") && !part.starts_with('_')));
    }
    let asked_ns =
        |pair: &str| pair.split('=').next().is_some_and(|key| percent_encoding::percent_decode_str(key).eq(*b"ns"));
    assert!(!found.query.split('&').any(asked_ns), "ns is taken out of the query");
}

/// Scopes: what parses prints as text that parses as the same, and that fits into a quoted string.
pub fn scope(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(scopes) = Scope::parse_all([text]) else { return };
    for scope in scopes {
        let shown = scope.to_string();
        assert!(!shown.contains(['"', '\\', ' ']) && shown.is_ascii());
        assert_eq!(shown.parse(), Ok(scope));
    }
}

/// Names, tags, references and names of upstreams: what parses prints as it was, and is one harmless file name a part.
pub fn name(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(name) = text.parse::<RepoName>() {
        assert_eq!(name.as_str(), text);
        assert!(name.parts().all(|part| !matches!(part, "" | "." | "..") && !part.starts_with('_')));
        assert!(name.with_library().as_str().parse::<RepoName>().is_ok());
    }
    if let Ok(tag) = text.parse::<Tag>() {
        assert_eq!(tag.as_str(), text);
        assert!(!text.contains('/') && !text.starts_with('.') && !text.is_empty() && text.len() <= 128);
    }
    if let Ok(reference) = text.parse::<Reference>() {
        assert_eq!(reference.to_string(), text);
    }
    if let Ok(upstream) = text.parse::<UpstreamName>() {
        assert_eq!(upstream.as_str(), text);
        assert!(!text.contains(['/', '\\', '\0']) && !text.starts_with('.'));
    }
}

/// A digest has one spelling, and is bytes.
pub fn digest(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(digest) = text.parse::<Digest>() {
        assert_eq!(digest.to_string(), text);
        assert_eq!(digest.as_bytes().len(), digest.algorithm().size());
        assert_eq!(Digest::from_parts(digest.algorithm(), &digest.hex()), Ok(digest));
    }
}

/// 8 bytes of length, then a `Range` field: parts lie within the content, are disjoint, and are few.
pub fn range(data: &[u8]) {
    let Some((length, field)) = data.split_first_chunk::<8>() else { return };
    let length = u64::from_le_bytes(*length);
    let Ok(field) = HeaderValue::from_bytes(field) else { return };
    let within = |part: &std::ops::Range<u64>| part.start < part.end && part.end <= length;
    match range::parse(Some(&field), length) {
        Ranges::Whole => {}
        Ranges::Unsatisfiable => assert!(range::unsatisfied(length).ends_with(&length.to_string())),
        Ranges::One(part) => {
            assert!(within(&part));
            assert!(range::content_range(&part, length).starts_with("bytes "));
        }
        Ranges::Many(parts) => {
            assert!(parts.len() >= 2 && parts.len() <= range::MAX_RANGES && parts.iter().all(within));
            let mut sorted = parts.clone();
            sorted.sort_by_key(|part| part.start);
            assert!(sorted.windows(2).all(|two| two[0].end <= two[1].start), "parts overlap");
            let framed = Multipart::new(parts, length, "application/octet-stream");
            assert!(framed.content_length() > 0);
        }
    }
    range::if_range(Some(&field), "\"sha256:x\"");
}

/// The last part of an upload's address: what holds, holds for one owner in one place only, and has one spelling.
pub fn location(data: &[u8]) {
    let Ok(state) = std::str::from_utf8(data) else { return };
    let Some(claim) = Claim::read(state) else { return };
    assert!(state.len() < 64 && state.is_ascii() && !state.contains(['/', '?', '%', '=']));
    let names = ["up", "up2"].map(str::parse::<UpstreamName>);
    let [Ok(upstream), Ok(other)] = &names else { return };
    let Ok(repo) = "app".parse::<RepoName>() else { return };
    let locations = Locations::new([7; 32]);
    let now = UNIX_EPOCH + Duration::from_secs(1_900_000_000);
    let mut holders = 0;
    for owner in [None, Some(""), Some("user:alice")] {
        for (upstream, form) in [(upstream, Form::Default), (upstream, Form::Prefix), (other, Form::Default)] {
            let bound = Bound { upstream, repo: &repo, form, owner };
            holders += usize::from(locations.holds(&claim, bound, now));
            let issued = locations.issue(claim.id, bound, now);
            let read = Claim::read(&issued);
            assert!(read.is_some_and(|read| read.id == claim.id && locations.holds(&read, bound, now)));
            assert_eq!(read == Some(claim), issued == state, "one spelling");
        }
    }
    assert!(holders <= 1);
}

/// The `Content-Range` of a part of an upload: it has bytes, and what goes upstream says the same in one way.
pub fn content_range(data: &[u8]) {
    let Ok(field) = HeaderValue::from_bytes(data) else { return };
    let Some(part) = part::parse(&field) else { return };
    assert!(part.start < part.end);
    assert_eq!(part.text, format!("{}-{}", part.start, part.end - 1));
    assert_eq!(part::parse(&part.text), Some(part));
}

/// A `WWW-Authenticate` field: bounded, and nothing that is no challenge.
pub fn challenge(data: &[u8]) {
    let challenges = parse_challenges(data);
    assert!(challenges.len() <= 8);
    for challenge in challenges {
        if let Challenge::Bearer(bearer) = challenge {
            assert!(!bearer.realm.is_empty());
            assert!(bearer.realm.len() + bearer.service.len() + bearer.scope.len() <= data.len() * 3);
        }
    }
}

/// `CONTENT-TYPE \n DOCUMENT`: what is accepted as a manifest reads the same by another parser.
pub fn manifest(data: &[u8]) {
    let Some(end) = data.iter().position(|byte| *byte == b'\n') else { return };
    let Ok(content_type) = std::str::from_utf8(&data[..end]) else { return };
    let document = &data[end + 1..];
    let Ok(info) = ManifestInfo::check(Some(content_type), document) else { return };
    // What is of no interest is passed over unread, and may hold what is no Unicode or no number to others.
    let Ok(other) = serde_json::from_slice::<Value>(document) else { return };
    assert!(other.is_object());
    let is_there = |key: &str| !other[key].is_null();
    assert_eq!(info.is_index, is_there("manifests"));
    assert!(!info.is_index || !(is_there("layers") || is_there("config")), "two kinds in one");
    assert_eq!(info.media_type.as_deref(), other["mediaType"].as_str());
    let digest = |descriptor: &Value| descriptor["digest"].as_str()?.parse::<Digest>().ok();
    assert_eq!(info.subject, digest(&other["subject"]));
    let lists = ["layers", "manifests"].into_iter().filter_map(|key| other[key].as_array()).flatten();
    let listed: Vec<Digest> = [&other["config"]].into_iter().chain(lists).filter_map(digest).collect();
    assert_eq!(info.children, listed);
}

/// `PATH \n LINK`: where a client is led is the list that it asked for, and fits into a header.
pub fn link(data: &[u8]) {
    let (directory, listener, _) = world();
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Some((path, link)) = text.split_once('\n') else { return };
    let (path, query) = path.split_once('?').map_or((path, None), |(path, query)| (path, Some(query)));
    let Ok(Routed::Resource(asked)) = route::parse(directory, listener, None, path, query) else { return };
    let Some(next) = next_page(&asked, link) else { return };
    let (target, _) = next.strip_prefix('<').and_then(|rest| rest.split_once('>')).expect("a link");
    assert!(target.starts_with('/') && !target.starts_with("//"), "{target}");
    let (path, query) = target.split_once('?').map_or((target, None), |(path, query)| (path, Some(query)));
    match route::parse(directory, listener, None, path, query) {
        Ok(Routed::Resource(led)) => {
            assert_eq!((&led.upstream, &led.endpoint, led.form), (&asked.upstream, &asked.endpoint, asked.form));
        }
        other => panic!("{target}: {other:?}"),
    }
}

/// `s` for a registry by https, then a `Location`: what is followed is a URL of one meaning, as bytes stand in it.
pub fn redirect(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let (https, location) = text.strip_prefix('s').map_or((false, text), |rest| (true, rest));
    let from = if https { "https" } else { "http" };
    let from: Uri = format!("{from}://reg.example/v2/a/blobs/sha256:x?n=1").parse().expect("a URL");
    let Some((to, kept, again)) = follow(&from, location) else { return };
    assert!(!https || to.scheme_str() == Some("https"), "a downgrade");
    let (host, authority) = (to.host().expect("a host"), to.authority().expect("an authority").as_str());
    assert!(!host.is_empty() && !authority.contains('@') && authority == authority.to_lowercase());
    assert!(to.port_u16() != Some(0));
    let target = to.path_and_query().expect("a target").as_str();
    let sent = location.split('#').next().unwrap_or_default();
    if sent.starts_with('/') && !sent.starts_with("//") {
        assert_eq!((target, host), (sent, "reg.example"), "storage signs it as it is");
    }
    // Absolute, with or without a path; else relative.
    let kept_whole = sent.ends_with(target) || sent.ends_with(&target[1..]) || target.ends_with(sent);
    assert!(kept_whole, "storage signs it as it is: {target}");
    assert_eq!(again.as_ref(), Some(&to), "{kept:?} is asked later");
}

/// A text, or (after a 1) changes of a sealed token, each a place of two bytes and what is put there: nothing opens that
/// ocistern has not given out, and it has one spelling.
pub fn seal(data: &[u8]) {
    static GIVEN: OnceLock<(Seal, String)> = OnceLock::new();
    let now = UNIX_EPOCH + Duration::from_secs(1_900_000_000);
    let (seal, given) = GIVEN.get_or_init(|| {
        let seal = Seal::new(&[7; 32]);
        let given = sealed(&seal, now).expect("random numbers");
        (seal, given)
    });
    let changed = match data {
        [1, changes @ ..] => {
            let mut token = given.clone().into_bytes();
            for [low, high, byte] in changes.as_chunks::<3>().0 {
                let at = usize::from(u16::from_le_bytes([*low, *high])) % token.len();
                token[at] = *byte;
            }
            token
        }
        text => text.to_vec(),
    };
    let Ok(text) = String::from_utf8(changed) else { return };
    assert_eq!(opens(seal, &text, now), text == *given, "{text}");
    if let Some(claims) = claims(&text) {
        assert!(serde_json::to_vec(&claims).expect("JSON").len() <= 8 * text.len());
    }
}

/// A `Retry-After` field: an hour at most, and seconds are what they say.
pub fn retry_after(data: &[u8]) {
    let Ok(field) = HeaderValue::from_bytes(data) else { return };
    let wait = asked_to_wait(&field, UNIX_EPOCH + Duration::from_secs(1_900_000_000));
    assert!(wait.is_none_or(|wait| wait <= Duration::from_hours(1)));
    if !data.is_empty() && data.len() < 10 && data.iter().all(u8::is_ascii_digit) {
        let seconds = std::str::from_utf8(data).expect("digits").parse().expect("a number");
        assert_eq!(wait, Some(Duration::from_secs(seconds).min(Duration::from_hours(1))));
    }
}

/// A bundle: what a tar has is read the same when it is written again, and no blob comes out whole that is not what its
/// name says.
pub fn bundle(data: &[u8]) {
    let (members, ends) = fuzzing::members(data);
    if ends && !members.iter().any(|(name, _)| name.contains('\0')) {
        assert_eq!(fuzzing::members(&fuzzing::tar(&members)), (members, true), "written and read again");
    }
    let mut reader = Reader::of_tar("bundle", Box::new(std::io::Cursor::new(data.to_vec())));
    let mut buffer = [0; 512];
    while let Ok(Some(entry)) = reader.next_entry() {
        let mut content = Vec::new();
        while let Ok(count) = reader.read(&mut buffer) {
            content.extend(&buffer[..count]);
            if count == 0 {
                assert_eq!(
                    Digest::of(entry.digest.algorithm(), &content),
                    entry.digest,
                    "other bytes than its name says"
                );
                break;
            }
        }
    }
}
