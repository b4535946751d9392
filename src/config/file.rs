//! The file as written: every key as an optional value, not yet checked. Reading it finds keys that do not exist.
//!
//! `config/ocistern.toml` documents the keys for operators; a test compares both.

use std::collections::BTreeMap;
use std::path::Path;

use super::error::ConfigError;
use super::keys;
use super::passed::is_passed;
use super::place::{Document, KeyPath, Problems, Step};
pub(super) use super::scalar::{Scalar, ScrubValue};

/// The whole file.
#[derive(Debug, Clone, Default, serde::Deserialize, serde::Serialize)]
#[serde(default)]
pub(super) struct File {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) root: Option<Scalar>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) builtin_upstreams: Option<Scalar>,
    pub(super) listener: Vec<ListenerTable>,
    pub(super) admin: AdminTable,
    pub(super) store: StoreTable,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) pin: Vec<PinTable>,
    pub(super) limits: LimitsTable,
    pub(super) log: LogTable,
    pub(super) upstream: BTreeMap<String, UpstreamTable>,
}

/// `[[listener]]`
#[derive(Debug, Clone, Default, serde::Deserialize, serde::Serialize)]
#[serde(default)]
pub(super) struct ListenerTable {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) address: Option<Scalar>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) default_upstream: Option<Scalar>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) public_url: Option<Scalar>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) tls: Option<TlsTable>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) hostnames: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) htpasswd: Option<Scalar>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) allow_plain_credentials: Option<Scalar>,
}

/// `tls = { … }` of a listener
#[derive(Debug, Clone, Default, serde::Deserialize, serde::Serialize)]
#[serde(default)]
pub(super) struct TlsTable {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) certificate: Option<Scalar>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) key: Option<Scalar>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) client_ca: Option<Scalar>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) certificates: Option<Vec<CertificateTable>>,
}

/// `{ certificate = …, key = … }` in `certificates` of a listener's `tls`
#[derive(Debug, Clone, Default, serde::Deserialize, serde::Serialize)]
#[serde(default)]
pub(super) struct CertificateTable {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) certificate: Option<Scalar>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) key: Option<Scalar>,
}

/// `[admin]`
#[derive(Debug, Clone, Default, serde::Deserialize, serde::Serialize)]
#[serde(default)]
pub(super) struct AdminTable {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) address: Option<Scalar>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) token_file: Option<Scalar>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) socket: Option<Scalar>,
}

/// `[store]`
#[derive(Debug, Clone, Default, serde::Deserialize, serde::Serialize)]
#[serde(default)]
pub(super) struct StoreTable {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) capacity: Option<Scalar>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) durability: Option<Scalar>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) max_manifest: Option<Scalar>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) max_age: Option<Scalar>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) scrub: Option<ScrubValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) range_fill: Option<Scalar>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) unverified_ranges: Option<Scalar>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) abandon: Option<Scalar>,
}

/// `scrub = { … }` of the store
#[derive(Debug, Clone, Default, serde::Deserialize, serde::Serialize)]
#[serde(default)]
pub(super) struct ScrubTable {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) rate: Option<Scalar>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) every: Option<Scalar>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) hours: Option<Scalar>,
}

/// `[[pin]]`
#[derive(Debug, Clone, Default, serde::Deserialize, serde::Serialize)]
#[serde(default)]
pub(super) struct PinTable {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) upstream: Option<Scalar>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) repository: Option<Scalar>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) tag: Option<Scalar>,
}

/// `[limits]`
#[derive(Debug, Clone, Default, serde::Deserialize, serde::Serialize)]
#[serde(default)]
pub(super) struct LimitsTable {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) connections: Option<Scalar>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) connections_per_address: Option<Scalar>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) first_byte: Option<Scalar>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) header: Option<Scalar>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) idle: Option<Scalar>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) min_rate: Option<Scalar>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) min_rate_window: Option<Scalar>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) drain: Option<Scalar>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) max_rate: Option<Scalar>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) schedule: Option<Scalar>,
}

/// `[log]`
#[derive(Debug, Clone, Default, serde::Deserialize, serde::Serialize)]
#[serde(default)]
pub(super) struct LogTable {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) format: Option<Scalar>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) filter: Option<Scalar>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) otlp: Option<Scalar>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) otlp_sample: Option<Scalar>,
}

/// `[upstream."NAME"]`
#[derive(Debug, Clone, Default, serde::Deserialize, serde::Serialize)]
#[serde(default)]
pub(super) struct UpstreamTable {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) url: Option<Scalar>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) credentials: Option<CredentialsTable>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) tags: Option<Scalar>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) library: Option<Scalar>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) ca: Option<Scalar>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) token_hosts: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) connect: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) mirrors: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) push: Option<Scalar>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) public_for: Option<Scalar>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) access_ttl: Option<Scalar>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) access_stale: Option<Scalar>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) reserve: Option<Scalar>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) relay_credentials: Option<Scalar>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) stall: Option<Scalar>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) min_rate: Option<Scalar>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) resume_for: Option<Scalar>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) blob_connections: Option<Scalar>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) max_connections: Option<Scalar>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) max_rate: Option<Scalar>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) schedule: Option<Scalar>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) rule: Option<Vec<RuleTable>>,
}

/// `credentials = { … }` of an upstream
#[derive(Debug, Clone, Default, serde::Deserialize, serde::Serialize)]
#[serde(default)]
pub(super) struct CredentialsTable {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) from: Option<Scalar>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) username: Option<Scalar>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) password_file: Option<Scalar>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) path: Option<Scalar>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) name: Option<Scalar>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) tenant: Option<Scalar>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) client_id: Option<Scalar>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) secret_file: Option<Scalar>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) authority: Option<Scalar>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) region: Option<Scalar>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) endpoint: Option<Scalar>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) access_key_id: Option<Scalar>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) session_token_file: Option<Scalar>,
}

/// `[[upstream."NAME".rule]]`
#[derive(Debug, Clone, Default, serde::Deserialize, serde::Serialize)]
#[serde(default)]
pub(super) struct RuleTable {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) repository: Option<Scalar>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) tag: Option<Scalar>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) tags: Option<Scalar>,
}

// === impl File ===

impl File {
    /// Reads a file's text. Every unknown key is a problem of its own, to be told beside those of the values.
    pub(super) fn read(document: &Document, problems: &mut Problems) -> Result<Self, ConfigError> {
        let syntax = |error: &toml::de::Error, message: String| ConfigError::Syntax {
            place: document.place(error.span().map_or(0, |span| span.start)),
            message,
        };
        // Only the message, not the error's text, which quotes the line: there may be a secret on it.
        let toml = toml::Deserializer::parse(&document.text)
            .map_err(|error| syntax(&error, format!("not TOML: {}", error.message())))?;
        let mut track = serde_path_to_error::Track::new();
        let tracked = serde_path_to_error::Deserializer::new(toml, &mut track);
        let result: Result<Self, _> = serde_ignored::deserialize(tracked, |ignored| {
            let path = key_path(&ignored);
            let fault = keys::unknown(&path, document);
            problems.add(path, fault);
        });
        result.map_err(|error| {
            let path = tracked_path(&track.path());
            syntax(&error, format!("{path}: {}{}", keys::without_types(error.message()), keys::shape_hint(&path)))
        })
    }

    /// The scalars of the fixed tables: their keys and where they are kept. These are the ones that the environment can
    /// set.
    pub(super) fn scalars(&mut self) -> [(&'static str, &mut Option<Scalar>); 26] {
        [
            ("root", &mut self.root),
            ("builtin_upstreams", &mut self.builtin_upstreams),
            ("admin.address", &mut self.admin.address),
            ("admin.token_file", &mut self.admin.token_file),
            ("admin.socket", &mut self.admin.socket),
            ("store.capacity", &mut self.store.capacity),
            ("store.durability", &mut self.store.durability),
            ("store.max_manifest", &mut self.store.max_manifest),
            ("store.max_age", &mut self.store.max_age),
            ("store.range_fill", &mut self.store.range_fill),
            ("store.unverified_ranges", &mut self.store.unverified_ranges),
            ("store.abandon", &mut self.store.abandon),
            ("limits.connections", &mut self.limits.connections),
            ("limits.connections_per_address", &mut self.limits.connections_per_address),
            ("limits.first_byte", &mut self.limits.first_byte),
            ("limits.header", &mut self.limits.header),
            ("limits.idle", &mut self.limits.idle),
            ("limits.min_rate", &mut self.limits.min_rate),
            ("limits.min_rate_window", &mut self.limits.min_rate_window),
            ("limits.drain", &mut self.limits.drain),
            ("limits.max_rate", &mut self.limits.max_rate),
            ("limits.schedule", &mut self.limits.schedule),
            ("log.format", &mut self.log.format),
            ("log.filter", &mut self.log.filter),
            ("log.otlp", &mut self.log.otlp),
            ("log.otlp_sample", &mut self.log.otlp_sample),
        ]
    }

    /// Makes paths absolute that are written relative to the file's directory.
    pub(super) fn rebase(&mut self, directory: &Path) {
        for slot in self.files().into_iter().filter(|slot| !matches!(slot, Some(Scalar::Text(t)) if is_passed(t))) {
            join(slot, directory);
        }
        join(&mut self.root, directory);
        join(&mut self.admin.socket, directory);
    }

    /// The keys that name a file which is read.
    pub(super) fn files(&mut self) -> Vec<&mut Option<Scalar>> {
        let listener_paths = self.listener.iter_mut().flat_map(|listener| {
            let tls = listener.tls.iter_mut().flat_map(TlsTable::paths);
            tls.chain([&mut listener.htpasswd])
        });
        let upstream_paths = self.upstream.values_mut().flat_map(|upstream| {
            let files = upstream.credentials.as_mut().map(CredentialsTable::paths);
            files.into_iter().flatten().chain([&mut upstream.ca])
        });
        [&mut self.admin.token_file].into_iter().chain(listener_paths).chain(upstream_paths).collect()
    }
}

// === impl TlsTable ===

impl TlsTable {
    fn paths(&mut self) -> impl Iterator<Item = &mut Option<Scalar>> {
        let several = self.certificates.iter_mut().flatten().flat_map(|one| [&mut one.certificate, &mut one.key]);
        several.chain([&mut self.certificate, &mut self.key, &mut self.client_ca])
    }
}

// === impl CredentialsTable ===

impl CredentialsTable {
    fn paths(&mut self) -> [&mut Option<Scalar>; 4] {
        [&mut self.password_file, &mut self.path, &mut self.secret_file, &mut self.session_token_file]
    }
}

/// Makes a path absolute that is relative to `directory`.
fn join(slot: &mut Option<Scalar>, directory: &Path) {
    if let Some(Scalar::Text(text)) = slot
        && !text.is_empty()
        && let Some(joined) = directory.join(&text).to_str()
    {
        joined.clone_into(text);
    }
}

/// The path at which reading stopped.
fn tracked_path(path: &serde_path_to_error::Path) -> KeyPath {
    use serde_path_to_error::Segment;
    let step = |segment: &Segment| match segment {
        Segment::Seq { index } => Some(Step::Index(*index)),
        Segment::Map { key } => Some(Step::Key(key.clone())),
        Segment::Enum { .. } | Segment::Unknown => None,
    };
    path.iter().filter_map(step).collect()
}

/// The path that serde saw, without its marks for options.
fn key_path(path: &serde_ignored::Path<'_>) -> KeyPath {
    use serde_ignored::Path as Ignored;
    let mut steps = Vec::new();
    let mut here = path;
    loop {
        here = match here {
            Ignored::Root => break,
            Ignored::Seq { parent, index } => {
                steps.push(Step::Index(*index));
                parent
            }
            Ignored::Map { parent, key } => {
                steps.push(Step::Key(key.clone()));
                parent
            }
            Ignored::Some { parent } | Ignored::NewtypeStruct { parent } | Ignored::NewtypeVariant { parent } => parent,
        };
    }
    steps.into_iter().rev().collect()
}
