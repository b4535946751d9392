//! What is known of a tag, one by one.

use super::*;

impl Store {
    pub(super) async fn tag(
        &self,
        up: &UpstreamName,
        repo: &RepoName,
        tag: &Tag,
    ) -> Result<Option<TagRecord>, StoreError> {
        Ok(self.tag_state(up, repo, tag).await?.record.map(Arc::unwrap_or_clone))
    }

    pub(super) async fn checked_at(&self, up: &UpstreamName, repo: &RepoName, tag: &Tag) -> Option<SystemTime> {
        self.tag_state(up, repo, tag).await.ok()?.checked_at
    }

    pub(super) async fn suspected_since(
        &self,
        up: &UpstreamName,
        repo: &RepoName,
        tag: &Tag,
    ) -> Result<Option<SystemTime>, StoreError> {
        let (up, repo, tag) = (up.clone(), repo.clone(), tag.clone());
        self.blocking(move |inner| inner.suspected_since(&up, &repo, &tag)).await
    }
}
