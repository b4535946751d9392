//! Whether a known tag may be served without asking upstream. Pure: the decision, not the asking.

use std::time::{Duration, SystemTime};

use crate::config::TagPolicy;

/// How long a client waits for the revalidation of a tag that is known; then the known one is served as stale and the
/// check goes on behind it.
pub(super) const REVALIDATION_PATIENCE: Duration = Duration::from_secs(2);
/// How long a client that wants upstream's own word waits for it, where what is known will do as well.
pub(super) const CONFIRMATION_PATIENCE: Duration = Duration::from_secs(5);
/// How long a known tag is served as stale at once after a check that failed: a failed check moves the clock too,
/// else every pull would wait for an upstream that is away.
pub(super) const AFTER_FAILED_CHECK: Duration = Duration::from_secs(5);

/// What to do with a tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Freshness {
    /// Serve what is known.
    Fresh,
    /// Ask upstream first.
    Expired,
    /// Upstream is not to be asked, whether anything is known or not.
    Sealed,
}

/// Decides by the tag's policy and when upstream last confirmed it. A time in the future counts as expired: the clock
/// has been set back since. What is `suspect`, because a write may have changed it, is expired whatever the policy says.
pub(super) fn judge(policy: TagPolicy, checked_at: Option<SystemTime>, now: SystemTime, suspect: bool) -> Freshness {
    match policy {
        TagPolicy::Sealed => Freshness::Sealed,
        _ if suspect => Freshness::Expired,
        TagPolicy::Immutable => Freshness::Fresh,
        TagPolicy::Always => Freshness::Expired,
        TagPolicy::For(lifetime) => match checked_at.map(|at| now.duration_since(at)) {
            Some(Ok(age)) if age < lifetime => Freshness::Fresh,
            _ => Freshness::Expired,
        },
    }
}

/// Whether a tag that is known is served without asking upstream; arguments as of the cache's own decision.
pub fn is_fresh(policy: TagPolicy, checked_at: Option<SystemTime>, now: SystemTime, suspect: bool) -> bool {
    match judge(policy, checked_at, now, suspect) {
        Freshness::Fresh | Freshness::Sealed => true,
        Freshness::Expired => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_policy_and_age() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let ago = |seconds| Some(now - Duration::from_secs(seconds));
        let judge = |policy, checked_at, now| judge(policy, checked_at, now, false);
        let five_minutes = TagPolicy::For(Duration::from_mins(5));
        assert_eq!(judge(five_minutes, ago(299), now), Freshness::Fresh);
        assert_eq!(judge(five_minutes, ago(300), now), Freshness::Expired);
        assert_eq!(judge(five_minutes, None, now), Freshness::Expired, "never confirmed");
        let future = Some(now + Duration::from_secs(1));
        assert_eq!(judge(five_minutes, future, now), Freshness::Expired, "the clock was set back");
        assert_eq!(judge(TagPolicy::Always, ago(0), now), Freshness::Expired);
        assert_eq!(judge(TagPolicy::Immutable, None, now), Freshness::Fresh);
        assert_eq!(judge(TagPolicy::Sealed, ago(0), now), Freshness::Sealed);
    }

    #[test]
    fn what_is_suspect_is_never_fresh() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        for policy in [TagPolicy::Immutable, TagPolicy::For(Duration::from_mins(5)), TagPolicy::Always] {
            assert_eq!(judge(policy, Some(now), now, true), Freshness::Expired, "{policy:?}");
        }
        assert_eq!(judge(TagPolicy::Sealed, Some(now), now, true), Freshness::Sealed, "nobody may be asked");
    }
}
