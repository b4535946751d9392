//! What tests of the cache begin with.

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::*;
use crate::config::{Capacity, Durability};
use crate::party::Party;
use crate::store::{Keep, StoreOptions};

/// A cache over an empty store, whose only upstream refuses connections, and the directory of the store.
pub(super) fn cache() -> (Arc<Cache>, tempfile::TempDir) {
    cache_of("http://127.0.0.1:9")
}

/// The same with an upstream.
pub(super) fn cache_of(url: &str) -> (Arc<Cache>, tempfile::TempDir) {
    let root = tempfile::tempdir().unwrap();
    let config = format!(
        "builtin_upstreams = false\n[upstream.reg]\nurl = \"{url}\"\n\
         [[listener]]\naddress = \"127.0.0.1:0\"\ndefault_upstream = \"reg\"\n"
    );
    let config = Config::from_toml(&config).unwrap();
    let metrics = Metrics::new().unwrap();
    let options = StoreOptions {
        root: root.path().to_owned(),
        capacity: Capacity::Default,
        durability: Durability::Fast,
        keep: Keep::default(),
        origins: Vec::new(),
        clock: crate::clock::twin::system(),
    };
    let store = Store::open(options, metrics.clone()).unwrap();
    let upstreams = Arc::new(Upstreams::new(&config, metrics.clone(), crate::clock::twin::system()).unwrap());
    (Cache::new(store, upstreams, &config, metrics, TaskTracker::new(), CancellationToken::new()), root)
}

/// Who asks.
pub(super) fn party() -> Party {
    Party::at([192, 0, 2, 1].into())
}

pub(super) fn target() -> Target {
    Target { upstream: "reg".parse().unwrap(), repo: "app".parse().unwrap(), right: Right::Anonymous }
}

/// An upstream that refuses connections, with these lines in its table.
pub(super) fn registry_of(keys: &str) -> Arc<Registry> {
    let config = format!("builtin_upstreams = false\n[upstream.reg]\nurl = \"http://127.0.0.1:9\"\n{keys}\n");
    let config = Config::from_toml(&config).unwrap();
    let upstreams = Upstreams::new(&config, Metrics::new().unwrap(), crate::clock::twin::system()).unwrap();
    upstreams.get(&target().upstream).unwrap()
}
