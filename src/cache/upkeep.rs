//! What the operator removes from a store that is being served from.

use super::{Cache, Repository};
use crate::config::ImagePattern;
use crate::store::{Removed, StoreError};

// === impl Cache ===

impl Cache {
    /// Removes images, from memory too: [`crate::store::Store::remove_images`].
    pub async fn remove_images(&self, patterns: Vec<ImagePattern>, dry_run: bool) -> Result<Removed, StoreError> {
        let (removed, from) = self.store.remove_images(patterns, dry_run).await?;
        if !dry_run {
            for place in from {
                let repository = Repository { upstream: place.upstream, repo: place.repository };
                self.hot.remove_all_from(&repository);
            }
        }
        Ok(removed)
    }
}
