//! Content with known digests: pseudo-random blobs, images, indexes and artifacts that refer to images.

use bytes::Bytes;
use ocistern::oci::{Algorithm, Digest, media};

/// An image with all its parts.
#[derive(Debug, Clone)]
pub struct Image {
    /// The manifest's bytes.
    pub manifest: Bytes,
    /// The manifest's digest.
    pub digest: Digest,
    /// Its media type.
    pub media_type: &'static str,
    /// The config blob.
    pub config: Bytes,
    /// The layer blobs.
    pub layers: Vec<Bytes>,
}

/// `len` bytes that differ for each `seed` and do not compress.
pub fn blob(seed: u64, len: usize) -> Bytes {
    let mut random = fastrand::Rng::with_seed(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(1));
    let mut bytes = vec![0; len];
    random.fill(&mut bytes);
    bytes.into()
}

/// The SHA-256 digest of `bytes`.
pub fn sha256(bytes: &[u8]) -> Digest {
    Digest::of(Algorithm::Sha256, bytes)
}

/// The SHA-512 digest of `bytes`.
pub fn sha512(bytes: &[u8]) -> Digest {
    Digest::of(Algorithm::Sha512, bytes)
}

/// An OCI image of two layers of 8 KiB that differs for each `seed`.
pub fn image(seed: u64) -> Image {
    let layers = vec![blob(seed.wrapping_add(1000), 8192), blob(seed.wrapping_add(2000), 8192)];
    image_of(seed, layers, None)
}

/// An OCI image of these layers, which may refer to another manifest.
pub fn image_of(seed: u64, layers: Vec<Bytes>, subject: Option<&Digest>) -> Image {
    let config: Bytes = format!(r#"{{"architecture":"amd64","os":"linux","seed":{seed}}}"#).into();
    let listed: Vec<String> = layers
        .iter()
        .map(|layer| descriptor("application/vnd.oci.image.layer.v1.tar", &sha256(layer), layer.len()))
        .collect();
    let subject = subject
        .map_or_else(String::new, |digest| format!(r#","subject":{}"#, descriptor(media::OCI_MANIFEST, digest, 2)));
    // The odd spacing is on purpose: whoever re-encodes the document changes its digest.
    let manifest: Bytes = format!(
        "{{ \"schemaVersion\": 2,\n\t\"mediaType\":\"{}\", \"config\":{}, \"layers\":[{}]{subject} }}\n",
        media::OCI_MANIFEST,
        descriptor("application/vnd.oci.image.config.v1+json", &sha256(&config), config.len()),
        listed.join(" , "),
    )
    .into();
    Image { digest: sha256(&manifest), manifest, media_type: media::OCI_MANIFEST, config, layers }
}

/// An artifact of `artifact_type` that refers to `subject`.
pub fn artifact(artifact_type: &str, subject: &Digest, seed: u64) -> Image {
    let config = Bytes::from_static(b"{}");
    let manifest: Bytes = format!(
        r#"{{"schemaVersion":2,"mediaType":"{}","artifactType":"{artifact_type}","config":{},"layers":[],"subject":{},"annotations":{{"seed":"{seed}"}}}}"#,
        media::OCI_MANIFEST,
        descriptor("application/vnd.oci.empty.v1+json", &sha256(&config), config.len()),
        descriptor(media::OCI_MANIFEST, subject, 2),
    )
    .into();
    Image { digest: sha256(&manifest), manifest, media_type: media::OCI_MANIFEST, config, layers: Vec::new() }
}

/// An OCI index over `images`: its bytes.
pub fn index(images: &[&Image]) -> Bytes {
    let listed: Vec<String> =
        images.iter().map(|image| descriptor(image.media_type, &image.digest, image.manifest.len())).collect();
    format!(r#"{{"schemaVersion":2,"mediaType":"{}","manifests":[{}]}}"#, media::OCI_INDEX, listed.join(",")).into()
}

fn descriptor(media_type: &str, digest: &Digest, size: usize) -> String {
    format!(r#"{{"mediaType":"{media_type}","digest":"{digest}","size":{size}}}"#)
}
