//! kaniko: flags and variables, because it has no file. It runs in containers that others start.

use super::SetupError;
use super::instance::{DOCKER_HUB, Endpoint, Registry};
use super::plan::{Plan, Site};

/// What kaniko calls Docker Hub.
const HUB: &str = "index.docker.io";
const LOOPBACK: &str = "kaniko runs in a container, in which 127.0.0.1 is not this machine: say by --url at which address \
                        containers reach ocistern, or run it in the host's network";
const OLDER: &str = "--registry-map takes targets with a path, as these are, since kaniko 1.23";
/// Where the CA's certificate is to be mounted.
const CA: &str = "/kaniko/ssl/certs/ocistern-ca.crt";

/// What there is to do.
pub(super) fn plan(site: &Site<'_>) -> Result<Plan, SetupError> {
    let endpoint = site.instance.endpoint().ok_or_else(|| SetupError::Unfit(String::new()))?;
    let endpoint = endpoint.without_path("kaniko")?;
    let authority = endpoint.authority();
    let map: Vec<String> = site.instance.registries.iter().map(|registry| mapping(registry, endpoint)).collect();
    let map = map.join(";");
    let mut flags = vec![format!("--registry-map='{map}'")];
    if !endpoint.url.https {
        flags.push(format!("--insecure-registry={authority}"));
    } else if endpoint.ca.is_some() {
        flags.push(format!("--registry-certificate={authority}={CA}"));
    }
    let mut plan = Plan { text: Some(format!("{}\n", flags.join(" \\\n"))), ..Plan::default() };
    plan.notes.push(format!("in place of the first flag, as a variable of the container: KANIKO_REGISTRY_MAP='{map}'"));
    plan.notes.push(OLDER.to_owned());
    if let Some(hub) = site.instance.hub_endpoint().filter(|hub| hub.url.prefix.is_empty()) {
        plan.notes.push(format!(
            "for an older kaniko, Docker Hub alone: --registry-mirror={0}, or KANIKO_REGISTRY_MIRROR={0}",
            hub.authority()
        ));
    }
    if endpoint.ca.is_some() {
        plan.notes.push(format!("mount the CA's certificate into the container as {CA}"));
    }
    if endpoint.wants_certificate {
        plan.notes.push(format!(
            "ocistern wants a client's certificate: --registry-client-cert={authority}=/path/client.crt,/path/client.key"
        ));
    }
    if endpoint.is_loopback() {
        plan.notes.push(LOOPBACK.to_owned());
    }
    Ok(plan)
}

fn mapping(registry: &Registry, endpoint: &Endpoint) -> String {
    let host = if registry.host == DOCKER_HUB { HUB } else { &registry.host };
    format!("{host}={}", endpoint.prefixed(registry))
}
