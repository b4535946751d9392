//! The platforms that an index offers, for people: `linux/arm64/v8`.

use serde::Deserialize;

use super::Digest;

#[derive(Deserialize)]
struct Index {
    #[serde(default)]
    manifests: Vec<Entry>,
}

#[derive(Deserialize)]
struct Entry {
    digest: Option<String>,
    platform: Option<Platform>,
}

#[derive(Deserialize)]
struct Platform {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
    variant: Option<String>,
}

/// The platforms of an index, in its order; none, if it is not one. What says `unknown` (attestations) is no
/// platform.
pub fn platforms(index: &[u8]) -> Vec<(Digest, String)> {
    let Ok(index) = serde_json::from_slice::<Index>(index) else { return Vec::new() };
    let entry = |entry: Entry| {
        let platform = entry.platform.filter(|platform| platform.os != "unknown" && !platform.os.is_empty())?;
        let parts = [Some(platform.os), Some(platform.architecture), platform.variant];
        let parts: Vec<String> = parts.into_iter().flatten().filter(|part| !part.is_empty()).collect();
        Some((entry.digest?.parse().ok()?, parts.join("/")))
    };
    index.manifests.into_iter().filter_map(entry).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Algorithm;

    #[test]
    fn attestations_are_no_platform() {
        let digest = |n: u8| Digest::of(Algorithm::Sha256, &[n]).to_string();
        let text = serde_json::json!({"manifests": [
            {"digest": digest(1), "platform": {"os": "linux", "architecture": "arm64", "variant": "v8"}},
            {"digest": digest(2), "platform": {"os": "unknown", "architecture": "unknown"}},
            {"digest": "md5:x", "platform": {"os": "linux", "architecture": "amd64"}},
            {"digest": digest(3)},
        ]});
        let found = platforms(text.to_string().as_bytes());
        assert_eq!(found, [(digest(1).parse().unwrap(), "linux/arm64/v8".to_owned())]);
        assert!(platforms(b"<html>").is_empty() && platforms(b"{\"layers\":[]}").is_empty());
    }
}
