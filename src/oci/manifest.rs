//! Manifests: what the cache must know of one, and the refusal of ambiguous ones.
//!
//! The bytes are never changed; this reads them. A document that two parsers may read differently is refused
//! (CVE-2021-41190: an index and a manifest in one): duplicate keys at the top, `manifests` together with `layers` or
//! `config`, a `mediaType` that is not the Content-Type, nesting deeper than [`MAX_DEPTH`].

use std::fmt;

use serde::Deserialize;
use serde::de::{IgnoredAny, MapAccess, Visitor};

use super::{Digest, media};

/// Deepest nesting of arrays and objects; real manifests have 4 or 5, and some parsers recurse.
const MAX_DEPTH: usize = 64;

/// What the cache wants to know of a manifest or index.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ManifestInfo {
    /// `mediaType` in the document, if it is written there.
    pub media_type: Option<String>,
    /// `artifactType`, or the media type of the config, which stands in for it (image-spec 1.1, "Guidelines for
    /// artifact usage").
    pub artifact_type: Option<String>,
    /// The manifest that this one refers to.
    pub subject: Option<Digest>,
    /// The manifests of an index, else the config and the layers, in the order of the document. Descriptors with a
    /// digest of an unknown algorithm are left out.
    pub children: Vec<Digest>,
    /// Whether it is an index or manifest list.
    pub is_index: bool,
}

/// Why a document is not accepted as a manifest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestFault {
    /// Not JSON, not an object, or a field has the wrong shape.
    #[error("it is not a manifest: {0}")]
    Json(String),
    /// A top-level key stands there twice.
    #[error("the key {0:?} stands in it twice")]
    DuplicateKey(String),
    /// Nested deeper than any manifest has reason to be.
    #[error("it is nested deeper than {MAX_DEPTH} levels")]
    TooDeep,
    /// Both an index and an image manifest.
    #[error("it has both `manifests` and `layers` or `config`")]
    Ambiguous,
    /// The document and the header do not agree.
    #[error("its mediaType is {document:?} but the Content-Type is {header:?}")]
    MediaType {
        /// What the document says.
        document: String,
        /// What the header says.
        header: String,
    },
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    #[serde(default)]
    media_type: Option<String>,
    #[serde(default)]
    digest: Option<String>,
}

/// The top-level fields of interest, with duplicates noticed (also of fields that are of no interest).
#[derive(Default)]
struct Document {
    media_type: Option<String>,
    artifact_type: Option<String>,
    subject: Option<Descriptor>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
    manifests: Option<Vec<Descriptor>>,
    duplicate: Option<String>,
}

impl<'de> Deserialize<'de> for Document {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;
        impl<'de> Visitor<'de> for Fields {
            type Value = Document;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Document, A::Error> {
                let mut document = Document::default();
                let mut seen = std::collections::HashSet::new();
                while let Some(key) = map.next_key::<String>()? {
                    match key.as_str() {
                        "mediaType" => document.media_type = map.next_value()?,
                        "artifactType" => document.artifact_type = map.next_value()?,
                        "subject" => document.subject = map.next_value()?,
                        "config" => document.config = map.next_value()?,
                        "layers" => document.layers = map.next_value()?,
                        "manifests" => document.manifests = map.next_value()?,
                        _ => {
                            map.next_value::<IgnoredAny>()?;
                        }
                    }
                    if let Some(key) = seen.replace(key) {
                        document.duplicate = Some(key);
                    }
                }
                Ok(document)
            }
        }
        deserializer.deserialize_map(Fields)
    }
}

// === impl ManifestInfo ===

impl ManifestInfo {
    /// Reads `bytes` and checks that they are one unambiguous document of the type that `content_type` names.
    /// A Content-Type that names no manifest type (`application/json`, `text/plain`, none) is not held against a
    /// document that names its own, since some registries send it.
    pub fn check(content_type: Option<&str>, bytes: &[u8]) -> Result<Self, ManifestFault> {
        if depth(bytes) > MAX_DEPTH {
            return Err(ManifestFault::TooDeep);
        }
        let document: Document =
            serde_json::from_slice(bytes).map_err(|error| ManifestFault::Json(error.to_string()))?;
        if let Some(key) = document.duplicate {
            return Err(ManifestFault::DuplicateKey(key));
        }
        if document.manifests.is_some() && (document.layers.is_some() || document.config.is_some()) {
            return Err(ManifestFault::Ambiguous);
        }
        let header = content_type.map(media::essence).unwrap_or_default();
        if let Some(written) = &document.media_type
            && header.starts_with("application/vnd.")
            && written != header
        {
            return Err(ManifestFault::MediaType { document: written.clone(), header: header.to_owned() });
        }
        let digest = |descriptor: &Descriptor| descriptor.digest.as_deref().and_then(|text| text.parse().ok());
        let is_index = document.manifests.is_some();
        let children = document
            .config
            .iter()
            .chain(document.layers.iter().flatten())
            .chain(document.manifests.iter().flatten())
            .filter_map(digest)
            .collect();
        Ok(Self {
            subject: document.subject.as_ref().and_then(digest),
            artifact_type: document.artifact_type.or(document.config.and_then(|config| config.media_type)),
            media_type: document.media_type,
            children,
            is_index,
        })
    }
}

/// The deepest nesting of brackets outside strings. Right for JSON; what it says of other text does not matter.
fn depth(bytes: &[u8]) -> usize {
    let (mut open, mut deepest, mut in_string, mut escaped) = (0_usize, 0, false, false);
    for &byte in bytes {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'[' | b'{' if !in_string => {
                open += 1;
                deepest = deepest.max(open);
            }
            b']' | b'}' if !in_string => open = open.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::oci::Algorithm;

    /// A document of the keys that count, and one more, some of them twice or of another shape.
    fn documents() -> impl Strategy<Value = String> {
        let digest = Digest::of(Algorithm::Sha256, b"x").to_string();
        let descriptor = prop::sample::select(vec![
            format!(r#"{{"digest":"{digest}","size":1}}"#),
            r#"{"digest":"md5:x"}"#.to_owned(),
            r#"{"digest":"a","digest":"b"}"#.to_owned(),
            format!(r#"{{"mediaType":"a/b","digest":"{digest}","urls":[["x"]]}}"#),
            "null".to_owned(),
            "[]".to_owned(),
        ]);
        let list = prop::collection::vec(descriptor.clone(), 0..3).prop_map(|all| format!("[{}]", all.join(",")));
        let value = prop_oneof![descriptor, list, Just("\"text\"".to_owned()), Just("[[[{}]]]".to_owned())];
        let key =
            prop::sample::select(vec!["mediaType", "artifactType", "subject", "config", "layers", "manifests", "x"]);
        prop::collection::vec((key, value), 0..6).prop_map(|fields| {
            let fields: Vec<_> = fields.iter().map(|(key, value)| format!("{key:?}: {value}")).collect();
            format!("{{{}}}", fields.join(", "))
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(5_000))]
        #[test]
        fn what_is_accepted_reads_the_same_by_another_parser(text in documents()) {
            if let Ok(info) = ManifestInfo::check(None, text.as_bytes()) {
                let other: serde_json::Value = serde_json::from_str(&text).unwrap();
                let list = |key: &str| other.get(key).and_then(|list| list.as_array()).into_iter().flatten();
                let digest = |one: &serde_json::Value| one.get("digest")?.as_str()?.parse::<Digest>().ok();
                let listed = other.get("config").into_iter().chain(list("layers")).chain(list("manifests"));
                prop_assert_eq!(&info.children, &listed.filter_map(digest).collect::<Vec<_>>());
                prop_assert_eq!(info.is_index, other.get("manifests").is_some_and(serde_json::Value::is_array));
                prop_assert_eq!(info.subject, other.get("subject").and_then(digest));
            }
        }

        #[test]
        fn no_text_makes_it_panic(text in "[\\[\\]{}\",:a-z0-9 \\\\]{0,60}|\\PC{0,40}") {
            let _ = ManifestInfo::check(None, text.as_bytes());
        }
    }

    #[test]
    fn reads_an_image_with_a_subject() {
        let digest = Digest::of(Algorithm::Sha256, b"x");
        let text = format!(
            r#"{{"schemaVersion":2,"mediaType":"{m}","config":{{"mediaType":"application/x","digest":"{digest}","size":1}},
               "layers":[],"subject":{{"digest":"{digest}"}}}}"#,
            m = media::OCI_MANIFEST
        );
        let info = ManifestInfo::check(Some(media::OCI_MANIFEST), text.as_bytes()).unwrap();
        assert_eq!(info.subject, Some(digest));
        assert_eq!(info.artifact_type.as_deref(), Some("application/x"));
        assert_eq!(info.children, [digest]);
        assert!(!info.is_index);
    }

    #[test]
    fn refuses_what_two_parsers_could_read_differently() {
        let check = |text: &str| ManifestInfo::check(Some(media::OCI_MANIFEST), text.as_bytes());
        assert!(matches!(check("<html>login</html>"), Err(ManifestFault::Json(_))));
        assert!(matches!(check("[]"), Err(ManifestFault::Json(_))));
        assert!(matches!(check(""), Err(ManifestFault::Json(_))));
        assert_eq!(check(r#"{"manifests":[],"layers":[]}"#), Err(ManifestFault::Ambiguous));
        assert_eq!(check(r#"{"a":1,"a":2}"#), Err(ManifestFault::DuplicateKey("a".into())));
        assert!(matches!(
            check(&format!(r#"{{"mediaType":"{}"}}"#, media::OCI_INDEX)),
            Err(ManifestFault::MediaType { .. })
        ));
        let deep = format!("{}{}", "{\"a\":".repeat(200), "1") + &"}".repeat(200);
        assert_eq!(check(&deep), Err(ManifestFault::TooDeep));
        assert!(check(r#"{"a":"[[[[[{{{{\\\"[[[[["}"#).is_ok(), "brackets in strings do not nest");
    }
}
