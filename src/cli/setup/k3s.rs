//! k3s: `registries.yaml`, from which it makes containerd's files at its start. RKE2 reads the same from
//! `/etc/rancher/rke2`.

use super::SetupError;
use super::plan::{Plan, Site};
use super::yaml::{self, All, Entry};

const NOT_ROOT: &str =
    "k3s reads its registries from /etc/rancher/k3s, which only root can write: run this command as root";

const ADVICE: &str = "An entry of ocistern's would take the place of that. Where they should come through ocistern, write an \
                      entry for each, with the endpoints that it should have, then try again";

/// What there is to do.
pub(super) fn plan(site: &Site<'_>) -> Result<Plan, SetupError> {
    let directory = site.whose.k3s().ok_or_else(|| SetupError::Unfit(NOT_ROOT.to_owned()))?;
    let endpoint = site.instance.endpoint().ok_or_else(|| SetupError::Unfit(String::new()))?;
    let mut plan = Plan::default();
    let ca = directory.join(super::CA_COPY);
    if let Some(text) = &endpoint.ca {
        plan.own(site.disk, ca.clone(), text.clone());
    }
    plan.advice = ADVICE;
    let mut wanted = Entry {
        hosts: site.instance.registries.iter().map(|registry| registry.host.clone()).collect(),
        endpoint: endpoint.url.to_string(),
        behind: Vec::new(),
        ca: endpoint.ca.as_ref().map(|_| (endpoint.authority(), ca.display().to_string())),
    };
    let file = directory.join("registries.yaml");
    let mut all = (All::Nothing, Vec::new());
    plan.merged(site.disk, file.clone(), |text| {
        all = yaml::all(text, &wanted.hosts)?;
        match &all {
            (All::Nothing, _) => {}
            (All::Endpoints(endpoints), _) => wanted.behind.clone_from(endpoints),
            (All::More(_), hosts) => wanted.hosts.retain(|host| !hosts.contains(host)),
        }
        yaml::merge(text, &wanted)
    });
    for host in &all.1 {
        match &all.0 {
            All::Nothing => {}
            All::Endpoints(_) => plan.take_over(&file, "\"*\"", host),
            All::More(what) => plan.leave_out(&file, what.clone(), host),
        }
    }
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
