//! `BuildKit`: mirrors in `buildkitd.toml`, and a table for ocistern itself that says how it is spoken to.

use toml_edit::{Array, Item, Table, value};

use super::SetupError;
use super::instance::{Endpoint, Registry};
use super::plan::{Plan, Site, Unmergeable};
use super::tables::{self, parse, table_of};
use crate::cli::clients::Whose;

const REGISTRY: &str = "registry";

/// What there is to do.
pub(super) fn plan(site: &Site<'_>) -> Result<Plan, SetupError> {
    let endpoint = site.instance.endpoint().ok_or_else(|| SetupError::Unfit(String::new()))?;
    let endpoint = endpoint.without_path("BuildKit")?;
    let directory = site.whose.buildkit();
    let mut plan = Plan::default();
    let ca = directory.join(super::CA_COPY);
    if let Some(text) = &endpoint.ca {
        plan.own(site.disk, ca.clone(), text.clone());
    }
    let file = directory.join("buildkitd.toml");
    let shown = file.display().to_string();
    plan.merged(site.disk, file, |text| merge(text, &site.instance.registries, endpoint, &ca.display().to_string()));
    plan.then.push(match site.whose {
        Whose::Machine => "systemctl restart buildkit".to_owned(),
        Whose::User { .. } => "systemctl --user restart buildkit".to_owned(),
    });
    plan.notes.push(format!(
        "a builder of docker buildx gets a copy of this file when it is made: `docker buildx create --use --buildkitd-config \
         {shown}` (--config before buildx 0.17){}",
        if endpoint.is_loopback() {
            " --driver-opt network=host, without which 127.0.0.1 is its own container and not this machine"
        } else {
            ""
        }
    ));
    if endpoint.wants_certificate {
        plan.notes.push(format!(
            "ocistern wants a client's certificate: add [[registry.{:?}.keypair]] with key and cert",
            endpoint.authority()
        ));
    }
    Ok(plan)
}

fn merge(text: Option<&str>, registries: &[Registry], endpoint: &Endpoint, ca: &str) -> Result<String, Unmergeable> {
    let mut document = parse(text)?;
    let tables = table_of(document.as_table_mut(), REGISTRY)?;
    for registry in registries {
        let table = table_of(tables, &registry.host)?;
        prepend(table, "mirrors", &endpoint.prefixed(registry))?;
    }
    let own = table_of(tables, &endpoint.authority())?;
    if endpoint.url.https {
        if endpoint.ca.is_some() {
            prepend(own, "ca", ca)?;
        }
    } else {
        own["http"] = value(true);
    }
    if own.is_empty() {
        tables.remove(&endpoint.authority());
    }
    Ok(document.to_string())
}

fn prepend(table: &mut Table, key: &str, text: &str) -> Result<(), Unmergeable> {
    if !table.contains_key(key) {
        table[key] = value(Array::new());
    }
    let list = table.get_mut(key).and_then(Item::as_array_mut);
    let list = list.ok_or_else(|| Unmergeable::new(format!("{key} is no list of texts: mend it, then try again")))?;
    tables::prepend(list, text);
    Ok(())
}
