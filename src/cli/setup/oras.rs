//! ORAS: how its commands are written. It has no mirrors: what it is asked for is where it goes.

use std::fmt::Write as _;

use super::SetupError;
use super::plan::{Plan, Site};

const NO_MIRRORS: &str = "ORAS cannot be told of mirrors: a name leads where it says. It takes credentials from docker's \
                          ~/.docker/config.json (`oras login`), and plain HTTP by --plain-http alone, which it adds itself \
                          for localhost";
const VERBATIM: &str = "for commands that stay as they are, let the registry's own name lead to ocistern: `ocistern setup ca \
                        NAME` makes the certificate and says what else there is to do";

/// What there is to do.
pub(super) fn plan(site: &Site<'_>) -> Result<Plan, SetupError> {
    let endpoint = site.instance.endpoint().ok_or_else(|| SetupError::Unfit(String::new()))?;
    let endpoint = endpoint.without_path("ORAS")?;
    let mut flags = String::new();
    if !endpoint.url.https {
        flags.push_str(" --plain-http");
    } else if endpoint.ca.is_some() {
        flags.push_str(" --ca-file ca.crt");
    }
    if endpoint.wants_certificate {
        flags.push_str(" --cert-file client.crt --key-file client.key");
    }
    let mut text = String::new();
    for registry in &site.instance.registries {
        let prefixed = endpoint.prefixed(registry);
        let _ = writeln!(text, "oras pull{flags} {prefixed}/ORG/ARTIFACT:TAG   # {}/ORG/ARTIFACT:TAG", registry.host);
    }
    let mut plan = Plan { text: Some(text), ..Plan::default() };
    plan.notes.push(NO_MIRRORS.to_owned());
    if endpoint.ca.is_some() {
        plan.notes
            .push("ca.crt is the CA's certificate; ORAS needs no --ca-file where the system trusts it".to_owned());
    }
    if site.instance.own_names.is_empty() {
        plan.notes.push(VERBATIM.to_owned());
    }
    for name in &site.instance.own_names {
        let trusted = if name.https { " and the system trusts the CA of ocistern's certificate for it" } else { "" };
        plan.notes.push(format!(
            "commands with {} stay as they are where `{}` stands in /etc/hosts{trusted}",
            name.host,
            name.hosts_line()
        ));
        plan.notes.extend(name.connect_advice());
    }
    Ok(plan)
}
