//! What is in the store by image, and its removal by name.

use super::*;
use crate::config::ImagePattern;
use crate::store::survey::{Spares, Survey};

/// Images of two repositories of docker.io, over shared layers.
///
/// ```text
/// library/app:1   index ─▶ linux/amd64 ─▶ config 10, base 1000, top 100      linux/arm64: not stored
/// library/app:2   image ─▶ config 20, base 1000, other 500
/// library/app:two the same manifest as 2
/// library/app     untagged image ─▶ config 30;  a signature refers to app:1's index ─▶ config 5
/// team/tool:1     image ─▶ config 40, base 1000
/// ```
pub(super) struct Images {
    pub(super) fixture: Fixture,
    pub(super) index: Digest,
    amd64: Digest,
    two: Digest,
    untagged: Digest,
    signature: Digest,
    pub(super) tool: Digest,
}

fn up() -> UpstreamName {
    "docker.io".parse().unwrap()
}

fn repo(name: &str) -> RepoName {
    name.parse().unwrap()
}

pub(super) fn content(seed: u8, len: usize) -> Vec<u8> {
    vec![seed; len]
}

async fn link_blob(store: &Store, name: &str, digest: &Digest) {
    assert!(store.set_link(&up(), &repo(name), digest, &Link::blob(Via::Anonymous, 1), wall()).await.unwrap());
}

async fn layer(store: &Store, name: &str, seed: u8, len: usize) -> Digest {
    let digest = put(store, &content(seed, len)).await;
    link_blob(store, name, &digest).await;
    digest
}

async fn manifest(store: &Store, name: &str, text: serde_json::Value, subject: Option<Digest>) -> Digest {
    let digest = put(store, text.to_string().as_bytes()).await;
    let link = Link {
        kind: LinkKind::Manifest,
        via: Via::Anonymous,
        media_type: Some("application/vnd.oci.image.manifest.v1+json".into()),
        size: 1,
        subject,
        artifact_type: None,
    };
    assert!(store.set_link(&up(), &repo(name), &digest, &link, wall()).await.unwrap());
    digest
}

fn image(layers: &[Digest]) -> serde_json::Value {
    let layers: Vec<_> = layers.iter().map(|digest| serde_json::json!({"digest": digest.to_string()})).collect();
    serde_json::json!({"schemaVersion": 2, "layers": layers})
}

async fn tag(store: &Store, name: &str, tag: &str, digest: Digest) {
    let record = TagRecord { digest, media_type: "m".into(), size: 1, etag: None };
    assert!(store.set_tag(&up(), &repo(name), &tag.parse().unwrap(), &record, wall()).await.unwrap());
}

impl Images {
    pub(super) async fn new() -> Self {
        let fixture = fixture(1 << 30);
        let store = &fixture.store;
        let app = "library/app";
        let base = layer(store, app, 1, 1000).await;
        let amd64 =
            manifest(store, app, image(&[layer(store, app, 2, 10).await, base, layer(store, app, 3, 100).await]), None)
                .await;
        let arm64 = sha256(b"nobody asked for it");
        let entry = |digest: Digest, arch: &str| serde_json::json!({"digest": digest.to_string(), "platform": {"os": "linux", "architecture": arch}});
        let text = serde_json::json!({"manifests": [entry(amd64, "amd64"), entry(arm64, "arm64")]});
        let index = manifest(store, app, text, None).await;
        let two =
            manifest(store, app, image(&[layer(store, app, 4, 20).await, base, layer(store, app, 5, 500).await]), None)
                .await;
        let untagged = manifest(store, app, image(&[layer(store, app, 6, 30).await]), None).await;
        let signature = manifest(store, app, image(&[layer(store, app, 7, 5).await]), Some(index)).await;
        link_blob(store, "team/tool", &base).await;
        let tool = manifest(store, "team/tool", image(&[layer(store, "team/tool", 8, 40).await, base]), None).await;
        for (name, of, digest) in [(app, "1", index), (app, "2", two), (app, "two", two), ("team/tool", "1", tool)] {
            tag(store, name, of, digest).await;
        }
        Self { fixture, index, amd64, two, untagged, signature, tool }
    }

    pub(super) fn store(&self) -> &Store {
        &self.fixture.store
    }

    fn len(&self, digest: &Digest) -> u64 {
        self.fixture.path(digest).metadata().unwrap().len()
    }

    async fn names(&self) -> Vec<String> {
        self.store().images(None).await.unwrap().into_iter().map(|image| image.name).collect()
    }

    async fn remove(&self, patterns: &[&str], dry_run: bool) -> Removed {
        let patterns: Vec<ImagePattern> = patterns.iter().map(|text| text.parse().unwrap()).collect();
        let (removed, from) = self.store().remove_images(patterns, dry_run).await.unwrap();
        assert_eq!(from.is_empty(), removed.images.is_empty(), "who has memories of it is told: {from:?}");
        removed
    }

    /// What is in `blobs/`.
    pub(super) fn files(&self) -> usize {
        std::fs::read_dir(self.fixture.root.path().join("blobs/sha256")).unwrap().count()
    }
}

/// Layers are long, and nothing of them is needed to list images.
#[tokio::test]
async fn only_manifests_are_read_to_list_images() {
    let images = Images::new().await;
    let store = images.store().clone();
    let listing = tokio::task::spawn_blocking(move || {
        let mut survey = Survey::new(&store.0);
        store.0.images_by(&mut survey, None).unwrap();
        survey.blobs_read()
    });
    assert_eq!(listing.await.unwrap(), 7, "six manifests, and that of a platform which is not there");
}

#[tokio::test]
async fn images_have_their_sizes_and_platforms() {
    let images = Images::new().await;
    let found = images.store().images(None).await.unwrap();
    let untagged = format!("docker.io/library/app@{}", images.untagged);
    let names: Vec<&str> = found.iter().map(|image| image.name.as_str()).collect();
    let [one, two, also_two, rest, tool] = &found[..] else { panic!("{names:?}") };
    let expected = [
        "docker.io/library/app:1",
        "docker.io/library/app:2",
        "docker.io/library/app:two",
        &untagged,
        "docker.io/team/tool:1",
    ];
    assert_eq!(names, expected, "what an index leads to, and what refers to it, has no line of its own");
    let manifests = images.len(&images.index) + images.len(&images.amd64) + images.len(&images.signature);
    assert_eq!((one.bytes, one.own_bytes, one.shared_bytes), (1115 + manifests, 115 + manifests, 1000));
    assert_eq!((one.blobs, one.missing_blobs), (7, 1), "one platform is not stored");
    let platforms: Vec<_> = one.platforms.iter().map(|p| (p.platform.as_str(), p.stored)).collect();
    assert_eq!(platforms, [("linux/amd64", true), ("linux/arm64", false)]);
    assert_eq!((two.own_bytes, also_two.own_bytes), (0, 0), "removing one of two tags frees nothing");
    assert_eq!(two.bytes, 1520 + images.len(&images.two));
    assert_eq!((rest.own_bytes, rest.tag.as_ref()), (30 + images.len(&images.untagged), None));
    assert_eq!(tool.own_bytes, 40 + images.len(&images.tool));
    assert!(found.iter().all(|image| image.last_used.is_some()), "all of it was just written");
    let some = |pattern: &str| images.store().images(Some(pattern.parse().unwrap()));
    assert_eq!(
        some("docker.io/team/**").await.unwrap(),
        std::slice::from_ref(tool),
        "shared is what others have, shown or not"
    );
    assert!(some("ghcr.io/**").await.unwrap().is_empty());
}

#[tokio::test]
async fn looking_is_no_use() {
    let images = Images::new().await;
    let order = || {
        images.store().0.books.with_order(|order| order.victims(capacity::seconds(system().now())).collect::<Vec<_>>())
    };
    let before = order();
    images.store().images(None).await.unwrap();
    images.store().usage().await.unwrap();
    assert_eq!(order(), before);
}

#[tokio::test]
async fn usage_is_by_repository() {
    let images = Images::new().await;
    put(images.store(), &content(99, 77)).await;
    std::fs::write(images.fixture.root.path().join("quarantine/x"), "wrong").unwrap();
    let usage = images.store().usage().await.unwrap();
    let on_disk = images.fixture.metrics.store_bytes.get().cast_unsigned();
    assert_eq!((usage.bytes, usage.blobs), (on_disk, images.files() as u64));
    assert_eq!((usage.unlinked_bytes, usage.quarantine_bytes, usage.capacity_bytes), (77, 5, 1 << 30));
    let [app, tool] = &usage.repositories[..] else { panic!("{usage:?}") };
    assert_eq!((app.repository.as_str(), app.tags, app.shared_bytes), ("library/app", 3, 1000));
    assert_eq!((tool.bytes, tool.unique_bytes), (1040 + images.len(&images.tool), 40 + images.len(&images.tool)));
    assert_eq!(app.unique_bytes + tool.unique_bytes + 1000 + 77, usage.bytes);
}

#[tokio::test]
async fn a_removed_image_takes_what_nothing_else_leads_to() {
    let images = Images::new().await;
    let own = images.store().images(None).await.unwrap()[0].own_bytes;
    let would = images.remove(&["docker.io/library/app:1"], true).await;
    assert_eq!((images.names().await.len(), images.files()), (5, 14), "a dry run changes nothing");
    let removed = images.remove(&["docker.io/library/app:1"], false).await;
    assert_eq!(Removed { dry_run: true, ..removed.clone() }, would, "and says what the real one does");
    assert_eq!((removed.freed_bytes, removed.blobs, removed.kept_bytes), (own, 6, 1000));
    assert_eq!(removed.images.iter().map(|i| &*i.name).collect::<Vec<_>>(), ["docker.io/library/app:1"]);
    assert_eq!(images.files(), 8);
    assert!(!images.names().await.contains(&"docker.io/library/app:1".to_owned()));
    for digest in [&images.index, &images.amd64, &images.signature] {
        assert!(images.store().link(&up(), &repo("library/app"), digest).await.unwrap().is_none());
        assert!(images.store().blob(digest).await.unwrap().is_none());
    }
    let on_disk = images.fixture.metrics.store_bytes.get().cast_unsigned();
    assert_eq!(images.store().usage().await.unwrap().bytes, on_disk, "the books follow");
    assert_eq!(images.remove(&["docker.io/library/app:1"], false).await.unmatched, ["docker.io/library/app:1"]);
}

#[tokio::test]
async fn one_of_two_tags_frees_nothing() {
    let images = Images::new().await;
    let manifest = images.len(&images.two);
    let removed = images.remove(&["docker.io/library/app:two"], false).await;
    assert_eq!((removed.blobs, removed.freed_bytes), (0, 0));
    assert!(images.store().link(&up(), &repo("library/app"), &images.two).await.unwrap().is_some());
    let both = images.remove(&["docker.io/library/app:2"], false).await;
    assert_eq!((both.freed_bytes, both.kept_bytes), (520 + manifest, 1000), "its own go with the last tag");
}

#[tokio::test]
async fn a_digest_takes_its_tags_along_and_a_platform_leaves_the_index() {
    let images = Images::new().await;
    let removed = images.remove(&[&format!("docker.io/library/app@{}", images.two)], false).await;
    assert_eq!(removed.images.len(), 2, "{removed:?}");
    let platform = format!("docker.io/library/app@{}", images.amd64);
    let amd64 = images.len(&images.amd64);
    let removed = images.remove(&[&platform], false).await;
    assert_eq!((removed.images[0].name.as_str(), removed.freed_bytes), (platform.as_str(), 110 + amd64));
    assert!(images.names().await.contains(&"docker.io/library/app:1".to_owned()), "the index stays");
    assert!(!images.store().images(None).await.unwrap()[0].platforms[0].stored);
}

#[tokio::test]
async fn whole_repositories_go_by_pattern() {
    let images = Images::new().await;
    let removed = images.remove(&["docker.io/library/**", "quay.io/**"], false).await;
    assert_eq!((removed.images.len(), removed.unmatched.as_slice()), (4, &["quay.io/**".to_owned()][..]));
    assert_eq!(images.names().await, ["docker.io/team/tool:1"]);
    assert_eq!(images.files(), 3, "what the other repository has stays");
    assert!(!images.fixture.root.path().join("refs/docker.io/library").exists(), "nothing is left of it");
    assert!(images.fixture.root.path().join("refs/docker.io/_origin").exists());
    images.remove(&["**"], false).await;
    assert_eq!((images.files(), images.fixture.metrics.store_bytes.get()), (0, 0));
}

#[tokio::test]
async fn a_tree_that_was_set_aside_keeps_its_blobs() {
    let images = Images::new().await;
    let refs = images.fixture.root.path().join("refs");
    std::fs::create_dir_all(refs.join("docker.io~aside-1")).unwrap();
    copy(&refs.join("docker.io"), &refs.join("docker.io~aside-1"));
    let removed = images.remove(&["**"], false).await;
    assert_eq!((removed.freed_bytes, images.files()), (0, 14), "they come back with their URL");
}

#[tokio::test]
async fn who_reads_a_removed_blob_reads_it_to_its_end() {
    let images = Images::new().await;
    let digest = sha256(&content(5, 500));
    let blob = images.store().blob(&digest).await.unwrap().unwrap();
    let removed = images.remove(&["docker.io/library/app:*"], false).await;
    assert!(images.store().blob(&digest).await.unwrap().is_none());
    let mut read = vec![0; 500];
    blob.file.read_exact_at(&mut read, 0).unwrap();
    assert_eq!((read, blob.len), (content(5, 500), 500));
    assert!(removed.blobs > 0 && images.store().0.books.used_bytes() >= 500, "its bytes count until it is closed");
}

#[tokio::test]
async fn what_came_meanwhile_is_not_removed() {
    let images = Images::new().await;
    let digest = put(images.store(), &content(42, 9)).await;
    assert_eq!(images.store().0.remove_unled(&digest, Spares::Nothing).unwrap(), Some(9), "nothing leads to it");
    let digest = put(images.store(), &content(42, 9)).await;
    link_blob(images.store(), "team/tool", &digest).await;
    assert_eq!(images.store().0.remove_unled(&digest, Spares::Nothing).unwrap(), None);
    assert!(images.store().blob(&digest).await.unwrap().is_some());
}
