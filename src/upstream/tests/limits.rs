//! Limits of an upstream and its mirrors, which change while it runs.

use super::*;
use crate::config::Config;

fn upstreams(config: &Config) -> Upstreams {
    Upstreams::new(config, Metrics::new().unwrap(), system()).unwrap()
}

fn limited(connections: &str) -> Config {
    Config::from_toml(&format!(
        "builtin_upstreams = false\n\
         [[listener]]\ndefault_upstream = \"\"\n\
         [upstream.\"a.example\"]\nmirrors = [\"https://b.example\"]\n{connections}"
    ))
    .unwrap()
}

/// How many places are free.
fn free(registry: &Registry) -> usize {
    let places: Vec<_> = std::iter::from_fn(|| registry.try_place()).take(100).collect();
    places.len()
}

#[tokio::test]
async fn places_are_shared_with_mirrors_and_change_while_they_run() {
    let upstreams = upstreams(&limited("max_connections = 3"));
    let registry = upstreams.get(&"a.example".parse().unwrap()).unwrap();
    let mirror = &registry.mirrors()[0];
    let place = registry.place(Priority::Waiting, Some(1)).await;
    assert_eq!((free(registry), free(mirror)), (2, 2));
    upstreams.set_limits(&limited("max_connections = 5"));
    assert_eq!((free(registry), free(mirror)), (4, 4));
    drop(place);
    upstreams.set_limits(&limited(""));
    assert_eq!((free(registry), free(mirror)), (100, 100));
    let others = Config::from_toml("").unwrap();
    upstreams.set_limits(&limited("max_connections = 1"));
    upstreams.set_limits(&others);
    assert_eq!(free(registry), 1, "what the configuration does not have stays as it is");
}

#[tokio::test]
async fn blobs_keep_to_the_rate_and_what_is_small_only_counts() {
    let server = Server::start(|_, _| reply(200, &[], "hello")).await;
    let registry = registry(settings(server.address));
    assert!(registry.fetch(blob(Method::GET)).await.unwrap().body.is_paced());
    assert!(!registry.fetch(manifest()).await.unwrap().body.is_paced());
}
