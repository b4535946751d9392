//! docker: `daemon.json`, and the CA where dockerd looks for it.
//!
//! dockerd takes mirrors for Docker Hub alone (`registry-mirrors`), and asks them without saying which registry it means; every
//! other registry goes by ocistern's own name as a prefix. With the containerd image store it reads `hosts.toml` files
//! too, and then every registry can have its mirror.

use jsonc_parser::ParseOptions;
use jsonc_parser::cst::{CstInputValue, CstObject, CstRootNode};

use super::SetupError;
use super::certs_d::{self, Roots};
use super::hosts_toml::Cas;
use super::instance::{DOCKER_HUB, Endpoint};
use super::plan::{Plan, Site, Unmergeable};
use crate::cli::clients::Whose;

const MIRRORS: &str = "registry-mirrors";
const INSECURE: &str = "insecure-registries";
const NO_HUB: &str = "docker cannot be pointed at this ocistern: it takes mirrors for Docker Hub alone and asks them for names \
                      without a registry, and no listener that it could reach has Docker Hub as its default_upstream; add \
                      one (address = \"127.0.0.1:5001\", default_upstream = \"docker.io\")";
const RESTART_USER: &str = "systemctl --user restart docker";
const OLD_ROOTLESS: &str = "rootless docker before version 26 has a network of its own, in which 127.0.0.1 is not this \
                            machine: point it by --url at an address of the machine that ocistern listens on";

/// What there is to do.
pub(super) fn plan(site: &Site<'_>) -> Result<Plan, SetupError> {
    let endpoint = site.instance.hub_endpoint().ok_or_else(|| SetupError::Unfit(NO_HUB.to_owned()))?;
    let endpoint = endpoint.without_path("docker")?;
    let directory = site.whose.docker();
    let mut plan = Plan { advice: certs_d::ADVICE, ..Plan::default() };
    // Not known where the file cannot be read.
    let mut image_store = None;
    plan.merged(site.disk, directory.join("daemon.json"), |text| {
        let text = merge(text, endpoint)?;
        image_store = Some(has_image_store(&text));
        Ok(text)
    });
    let certificates = directory.join("certs.d");
    if let Some(ca) = &endpoint.ca {
        plan.own(site.disk, certificates.join(endpoint.authority()).join("ca.crt"), ca.clone());
    }
    let has_store = image_store == Some(true);
    let directories = Roots { disk: site.disk, roots: std::slice::from_ref(&certificates) };
    for name in site.instance.own_names.iter().filter(|name| name.host != endpoint.authority()) {
        let Some(ca) = &name.ca else { continue };
        let place = certificates.join(&name.host);
        if has_store {
            let has_hosts = site.instance.registries.iter().any(|registry| registry.host == name.host);
            directories.add_certificate(&mut plan, &place, &name.host, ca, has_hosts);
        } else {
            plan.own(site.disk, place.join("ca.crt"), ca.clone());
        }
    }
    if has_store {
        for registry in site.instance.registries.iter().filter(|registry| registry.host != DOCKER_HUB) {
            let ca = endpoint.ca.as_ref().map(|_| certificates.join(endpoint.authority()).join("ca.crt"));
            let server = certificates.join(&registry.host).join("ca.crt");
            let has_server = site.instance.own_names.iter().any(|name| name.host == registry.host && name.ca.is_some());
            let cas = Cas { endpoint: ca.as_deref(), server: has_server.then_some(server.as_path()) };
            directories.add_hosts(&mut plan, &certificates.join(&registry.host), registry, endpoint, cas);
        }
    } else if let Some(registry) =
        site.instance.registries.iter().find(|registry| registry.host != DOCKER_HUB && image_store.is_some())
    {
        plan.notes.push(format!(
            "docker has mirrors for Docker Hub alone; of other registries it pulls by prefix, as in `docker pull {}/ORG/APP`",
            endpoint.prefixed(registry)
        ));
        plan.notes.push(
            "with \"features\": { \"containerd-snapshotter\": true } in daemon.json (the containerd image store) it takes \
             mirrors for every registry: run this command again when that is set"
                .to_owned(),
        );
    }
    if endpoint.wants_certificate {
        let place = certificates.join(endpoint.authority());
        plan.notes.push(format!(
            "ocistern wants a client's certificate: put it into {0}/client.cert and its key into {0}/client.key",
            place.display()
        ));
    }
    plan.then = match site.whose {
        Whose::Machine => vec!["systemctl reload docker".to_owned()],
        Whose::User { .. } => vec![RESTART_USER.to_owned()],
    };
    if matches!(site.whose, Whose::User { .. }) && endpoint.is_loopback() {
        plan.notes.push(OLD_ROOTLESS.to_owned());
    }
    plan.notes.extend(super::own_names(site.instance, &certificates));
    Ok(plan)
}

/// Whether dockerd is told to keep images in containerd.
fn has_image_store(text: &str) -> bool {
    let json: Option<serde_json::Value> = serde_json::from_str(text).ok();
    json.is_some_and(|json| json["features"]["containerd-snapshotter"] == true)
}

fn merge(text: Option<&str>, endpoint: &Endpoint) -> Result<String, Unmergeable> {
    let text = text.filter(|text| !text.trim().is_empty());
    let root = match text {
        None => CstRootNode::parse("{}\n", &ParseOptions::default()).map_err(syntax)?,
        // dockerd reads strict JSON: what it would refuse is not made worse.
        Some(text) => {
            serde_json::from_str::<serde::de::IgnoredAny>(text).map_err(|error| {
                Unmergeable::at(
                    error.line(),
                    error.column(),
                    format!("this is no JSON ({error}); mend it, then try again"),
                )
            })?;
            CstRootNode::parse(text, &ParseOptions::default()).map_err(syntax)?
        }
    };
    let Some(object) = root.object_value() else {
        return Err(Unmergeable::at(1, 1, "this is no JSON object: it has to begin with {"));
    };
    prepend(&object, MIRRORS, &endpoint.url.to_string())?;
    // Loopback addresses are without TLS by themselves. A mirror without it needs no word, but a name by prefix does.
    if !endpoint.url.https && !endpoint.is_loopback() {
        prepend(&object, INSECURE, &endpoint.authority())?;
    }
    if text.is_none() {
        object.ensure_multiline();
    }
    Ok(root.to_string())
}

// Has the form that `map_err` wants.
#[allow(clippy::needless_pass_by_value, reason = "for map_err")]
fn syntax(error: jsonc_parser::errors::ParseError) -> Unmergeable {
    Unmergeable::at(error.line_display(), error.column_display(), format!("this is no JSON: {}", error.kind()))
}

/// Puts a value before all others of a list, unless it is in it.
fn prepend(object: &CstObject, key: &str, value: &str) -> Result<(), Unmergeable> {
    let list = object.array_value_or_create(key).ok_or_else(|| {
        Unmergeable::new(format!("{key:?} is not a list of texts, as dockerd wants it: mend it, then try again"))
    })?;
    let same = |there: &str| there.trim_end_matches('/') == value.trim_end_matches('/');
    let has = list.elements().iter().any(|element| {
        element.as_string_lit().and_then(|text| text.decoded_value().ok()).is_some_and(|text| same(&text))
    });
    if !has {
        list.insert(0, CstInputValue::String(value.to_owned()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::config::Config;

    fn endpoint(address: &str) -> Endpoint {
        let text = format!("[[listener]]\naddress = \"{address}\"");
        let config = Config::from_toml(&text).unwrap();
        let now = rustls::pki_types::UnixTime::since_unix_epoch(std::time::Duration::from_secs(1));
        let instance = super::super::Instance::of(&config, &super::super::Said::default(), now).unwrap();
        instance.endpoint().unwrap().clone()
    }

    #[test]
    fn order_layout_and_other_values_stay() {
        for (before, after) in [
            (
                "{}",
                "{\n  \"registry-mirrors\": [\"http://10.0.0.1:5000\"],\n  \"insecure-registries\": [\"10.0.0.1:5000\"]\n}",
            ),
            (
                "{\n\t\"z\": 1.50,\n\t\"registry-mirrors\": [\n\t\t\"https://a.example\"\n\t],\n\t\"a\": \"\\u00e9\"\n}\n",
                "{\n\t\"z\": 1.50,\n\t\"registry-mirrors\": [\n\t\t\"http://10.0.0.1:5000\",\n\t\t\"https://a.example\"\n\t],\n\t\"a\": \
                 \"\\u00e9\",\n\t\"insecure-registries\": [\"10.0.0.1:5000\"]\n}\n",
            ),
            (
                "{\"registry-mirrors\":[\"https://a\",\"http://10.0.0.1:5000/\"],\"insecure-registries\":[\"10.0.0.1:5000\"]}",
                "{\"registry-mirrors\":[\"https://a\",\"http://10.0.0.1:5000/\"],\"insecure-registries\":[\"10.0.0.1:5000\"]}",
            ),
        ] {
            assert_eq!(merge(Some(before), &endpoint("10.0.0.1:5000")).unwrap(), after);
        }
    }

    proptest! {
        /// Whatever else is in the file, it is JSON as before, with the same values, and a second merge changes nothing.
        #[test]
        fn everything_else_stays(
            keys in prop::collection::btree_map("[a-z]{1,6}", "[a-z\\\\\"/é]{0,6}", 0..5),
            mirrors in prop::collection::vec("https://[a-z]{1,5}", 0..4),
        ) {
            let mut json = serde_json::json!({ "registry-mirrors": mirrors });
            for (key, value) in &keys {
                json[key] = value.as_str().into();
            }
            let at = endpoint("127.0.0.1:5000");
            let once = merge(Some(&serde_json::to_string_pretty(&json).unwrap()), &at).unwrap();
            let mut found: serde_json::Value = serde_json::from_str(&once).unwrap();
            let list = found["registry-mirrors"].as_array_mut().unwrap();
            prop_assert_eq!(list.remove(0), "http://127.0.0.1:5000");
            prop_assert_eq!(found, json);
            prop_assert_eq!(merge(Some(&once), &at).unwrap(), once);
        }
    }
}
