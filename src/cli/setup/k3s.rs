//! k3s: `registries.yaml`, from which it makes containerd's files at its start. RKE2 reads the same from
//! `/etc/rancher/rke2`.

use super::SetupError;
use super::plan::{Plan, Site};
use super::yaml::{self, Entry};

const NOT_ROOT: &str =
    "k3s reads its registries from /etc/rancher/k3s, which only root can write: run this command as root";

/// What there is to do.
pub(super) fn plan(site: &Site<'_>) -> Result<Plan, SetupError> {
    let directory = site.whose.k3s().ok_or_else(|| SetupError::Unfit(NOT_ROOT.to_owned()))?;
    let endpoint = site.instance.endpoint().ok_or_else(|| SetupError::Unfit(String::new()))?;
    let mut plan = Plan::default();
    let ca = directory.join(super::CA_COPY);
    if let Some(text) = &endpoint.ca {
        plan.own(site.disk, ca.clone(), text.clone());
    }
    let wanted = Entry {
        hosts: site.instance.registries.iter().map(|registry| registry.host.clone()).collect(),
        endpoint: endpoint.url.to_string(),
        ca: endpoint.ca.as_ref().map(|_| (endpoint.authority(), ca.display().to_string())),
    };
    plan.merged(site.disk, directory.join("registries.yaml"), |text| yaml::merge(text, &wanted));
    plan.then.push("systemctl restart k3s".to_owned());
    plan.notes.push(
        "on agents the unit is k3s-agent. RKE2 reads the same file from /etc/rancher/rke2/registries.yaml; its units are \
         rke2-server and rke2-agent"
            .to_owned(),
    );
    if endpoint.wants_certificate {
        plan.notes.push(format!(
            "ocistern wants a client's certificate: add cert_file and key_file to configs.{:?}.tls",
            endpoint.authority()
        ));
    }
    Ok(plan)
}
