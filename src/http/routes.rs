//! A memory of parsed targets: what is asked for all the time is parsed once.
//!
//! What a target means depends on it, on the host and on keys of the configuration that do not change while ocistern runs; so
//! an entry is never wrong, and goes only to make room.

use std::sync::Arc;

use foldhash::quality::RandomState;
use quick_cache::sync::{Cache, DefaultLifecycle};
use quick_cache::{Equivalent, Weighter};

use super::route::{Endpoint, Route};

/// Bytes of targets that are remembered, about.
const CAPACITY: u64 = 4 * 1024 * 1024;
/// Longer ones are parsed each time: no target of a client is.
const LONGEST: usize = 1024;
/// What an entry costs besides its target, about.
const OVERHEAD: u64 = 512;

/// The memory of one listener.
#[derive(Debug)]
pub(super) struct Routes(Cache<Target, Arc<Route>, Cost, RandomState>);

/// What a client asked for, and of whom.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Target {
    host: Option<Box<str>>,
    /// Path and query.
    path: Box<str>,
}

/// The same, as it stands in a request.
#[derive(Debug, Clone, Copy, Hash)]
struct TargetRef<'a> {
    host: Option<&'a str>,
    path: &'a str,
}

#[derive(Debug, Clone, Copy)]
struct Cost;

// === impl Routes ===

impl Routes {
    /// The route of a target that was asked for lately: path and query as they came.
    pub(super) fn get(&self, host: Option<&str>, path: &str) -> Option<Arc<Route>> {
        self.0.get(&TargetRef { host, path })
    }

    /// Remembers what a target means.
    pub(super) fn keep(&self, host: Option<&str>, path: &str, route: Route) -> Arc<Route> {
        let route = Arc::new(route);
        // The state of an upload is asked for a few times, and is as good as the right to go on with it.
        let is_upload = matches!(route.endpoint, Endpoint::Uploads(_) | Endpoint::Upload(..));
        if !is_upload && path.len() + host.map_or(0, str::len) <= LONGEST {
            self.0.insert(Target { host: host.map(Into::into), path: path.into() }, Arc::clone(&route));
        }
        route
    }
}

impl Default for Routes {
    fn default() -> Self {
        let items = usize::try_from(CAPACITY / (2 * OVERHEAD)).unwrap_or_default();
        Self(Cache::with(items, CAPACITY, Cost, RandomState::default(), DefaultLifecycle::default()))
    }
}

// === impl TargetRef ===

impl Equivalent<Target> for TargetRef<'_> {
    fn equivalent(&self, key: &Target) -> bool {
        self.host == key.host.as_deref() && *self.path == *key.path
    }
}

// === impl Cost ===

impl Weighter<Target, Arc<Route>> for Cost {
    fn weight(&self, key: &Target, _: &Arc<Route>) -> u64 {
        // The route has most of the path a second time.
        (2 * key.path.len() + key.host.as_ref().map_or(0, |host| host.len())) as u64 + OVERHEAD
    }
}

#[cfg(test)]
mod tests {
    use super::super::route::Form;
    use super::*;

    fn route(endpoint: Endpoint) -> Route {
        Route {
            upstream: "up".parse().unwrap(),
            endpoint,
            form: Form::Default,
            prefix: String::new(),
            namespace: None,
            query: String::new(),
            base: String::new(),
        }
    }

    fn tags(name: &str) -> Route {
        route(Endpoint::Tags(name.parse().unwrap()))
    }

    #[test]
    fn the_host_and_the_query_are_part_of_what_is_asked() {
        let routes = Routes::default();
        let kept = routes.keep(Some("a"), "/v2/x/tags/list", tags("x"));
        assert!(Arc::ptr_eq(&kept, &routes.get(Some("a"), "/v2/x/tags/list").unwrap()));
        for (host, path) in [
            (Some("b"), "/v2/x/tags/list"),
            (None, "/v2/x/tags/list"),
            (Some("a"), "/v2/x/tags/list?n=1"),
            (Some("a/v2/x"), "/tags/list"),
        ] {
            assert_eq!(routes.get(host, path), None, "{host:?} {path}");
        }
    }

    #[test]
    fn uploads_and_long_targets_are_not_kept() {
        let routes = Routes::default();
        let upload = route(Endpoint::Upload("x".parse().unwrap(), "state".to_owned()));
        routes.keep(None, "/v2/x/blobs/uploads/state", upload);
        assert_eq!(routes.get(None, "/v2/x/blobs/uploads/state"), None);
        let long = format!("/v2/x/tags/list?{}", "x".repeat(LONGEST));
        routes.keep(None, &long, tags("x"));
        assert_eq!(routes.get(None, &long), None);
    }

    #[test]
    fn it_is_bounded() {
        let routes = Routes::default();
        for number in 0..20_000 {
            routes.keep(None, &format!("/v2/x{number}/tags/list"), tags("x"));
        }
        assert!(routes.0.weight() <= CAPACITY, "{}", routes.0.weight());
        assert!(!routes.0.is_empty());
    }
}
