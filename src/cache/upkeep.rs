//! What the operator removes from a store that is being served from, and brings into it.

use super::{Cache, Repository};
use crate::bundle::Image;
use crate::config::ImagePattern;
use crate::store::{Access, Removed, StoreError, Taken, Terms};

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

    /// Takes an image that came with a bundle: [`crate::store::Store::take_image`]. What upstream has said itself of who may
    /// read the repository stands.
    pub async fn take_image(&self, image: Image, terms: Terms) -> Result<Taken, StoreError> {
        let repository = Repository { upstream: image.upstream.clone(), repo: image.repository.clone() };
        let digests: Vec<_> = image.parts.iter().map(|part| part.digest).collect();
        let heard = self.verdicts.heard(&repository);
        let is_private_here = heard.is_some_and(|heard| heard.access == Access::Private);
        let opens = !terms.private && !terms.dry_run;
        let taken = self.store.take_image(image, terms, is_private_here).await?;
        for digest in &digests {
            self.hot.remove_from(&repository, digest);
        }
        if opens && matches!(taken, Taken::Taken { .. } | Taken::NewerHere { .. }) {
            // The record, which may be of a run before this one and not have been looked at by anybody since, decides.
            let access = self.store.access(&repository.upstream, &repository.repo).await?;
            if access.is_some_and(|record| record.access == Access::Public) && !is_private_here {
                self.open_to_all(&repository);
            }
        }
        Ok(taken)
    }
}
