//! How long the parts of a manifest are, as it says itself: also of parts that nobody has seen.

use serde::Deserialize;

use super::Digest;

#[derive(Deserialize)]
struct Document {
    #[serde(default)]
    config: Option<Entry>,
    #[serde(default)]
    layers: Vec<Entry>,
    #[serde(default)]
    manifests: Vec<Entry>,
}

#[derive(Deserialize)]
struct Entry {
    #[serde(default)]
    digest: String,
    size: Option<u64>,
}

/// The parts of a manifest or index with their announced lengths, in the order of the document; none, if it is neither.
/// Parts that do not say how long they are, or have digests of an unknown algorithm, are left out.
pub fn sizes(manifest: &[u8]) -> Vec<(Digest, u64)> {
    let Ok(document) = serde_json::from_slice::<Document>(manifest) else { return Vec::new() };
    let parts = document.config.into_iter().chain(document.layers).chain(document.manifests);
    parts.filter_map(|part| Some((part.digest.parse().ok()?, part.size?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Algorithm;

    #[test]
    fn what_a_manifest_says() {
        let digest = |n: u8| Digest::of(Algorithm::Sha256, &[n]);
        let text = serde_json::json!({
            "config": {"digest": digest(1).to_string(), "size": 7},
            "layers": [
                {"digest": digest(2).to_string(), "size": 1_u64 << 40},
                {"digest": "md5:x", "size": 1},
                {"digest": digest(3).to_string()},
                {"digest": digest(4).to_string(), "size": -1},
            ],
        });
        assert_eq!(sizes(text.to_string().as_bytes()), [], "a length below zero is nonsense, and so is all of it");
        let text = text.to_string().replace("-1", "0");
        assert_eq!(sizes(text.as_bytes()), [(digest(1), 7), (digest(2), 1 << 40), (digest(4), 0)]);
        assert_eq!(sizes(b"<html>"), []);
    }
}
