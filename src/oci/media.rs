//! Media types of manifests, and the Accept list with which every kind of manifest is asked for.

/// OCI image manifest.
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// OCI image index.
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// Docker image manifest, version 2 schema 2.
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// Docker manifest list.
pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
/// OCI artifact manifest, withdrawn before image-spec 1.1 but still found in registries.
pub const OCI_ARTIFACT: &str = "application/vnd.oci.artifact.manifest.v1+json";
/// Docker image manifest, version 2 schema 1, signed.
pub const DOCKER_SCHEMA1_SIGNED: &str = "application/vnd.docker.distribution.manifest.v1+prettyjws";
/// Docker image manifest, version 2 schema 1.
pub const DOCKER_SCHEMA1: &str = "application/vnd.docker.distribution.manifest.v1+json";

/// What is sent as `Accept` upstream, whoever asks: all kinds, newest first, so that one cached answer serves every
/// client. Schema 1 is not asked for: a registry that can convert would make up a manifest with another digest.
pub const ACCEPT_MANIFESTS: &str = concat!(
    "application/vnd.oci.image.index.v1+json, ",
    "application/vnd.oci.image.manifest.v1+json, ",
    "application/vnd.docker.distribution.manifest.list.v2+json, ",
    "application/vnd.docker.distribution.manifest.v2+json, ",
    "application/vnd.oci.artifact.manifest.v1+json, ",
    "*/*;q=0.1"
);

/// The media type without parameters (`; charset=utf-8`), trimmed.
pub fn essence(content_type: &str) -> &str {
    content_type.split(';').next().unwrap_or_default().trim()
}

/// Whether it is the media type of a manifest of any kind, with or without parameters.
pub fn is_manifest(content_type: &str) -> bool {
    let known =
        [OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_LIST, OCI_ARTIFACT, DOCKER_SCHEMA1_SIGNED, DOCKER_SCHEMA1];
    known.contains(&essence(content_type))
}

#[cfg(test)]
mod tests {
    #[test]
    fn essence_drops_parameters() {
        assert_eq!(super::essence("application/json ; charset=utf-8"), "application/json");
        assert!(super::is_manifest("application/vnd.oci.image.index.v1+json; charset=utf-8"));
        assert!(!super::is_manifest("text/html"));
    }
}
