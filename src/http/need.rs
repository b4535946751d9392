//! What a request needs to be allowed, and the challenge that says so.

use http::Method;

use super::asked::Asked;
use super::caller::Allowed;
use super::challenge::TokenError;
use super::respond::Failure;
use super::route::{Acr, Endpoint, Form, Route, mount_source};
use super::uploads::parameter;
use crate::config::Upstream;
use crate::oci::{Action, Actions, Digest, RepoName, Resource, Scope};

/// What a request needs to be allowed.
#[derive(Debug)]
pub(super) struct Need<'a> {
    /// Whether something may change by it.
    pub(super) writes: bool,
    route: &'a Route,
    /// What a token for it is asked for.
    asked: Actions,
    resource: Resource,
    /// Any of these suffices.
    actions: &'static [Action],
    /// What has to be readable as well, and its name in the client's words: where a blob is mounted from.
    source: Option<(String, Resource)>,
}

// === impl Need ===

impl<'a> Need<'a> {
    /// What a request needs.
    pub(super) fn of(asked: &Asked<'_>, route: &'a Route) -> Self {
        let mounted = mounted_from(asked, route);
        let source = mounted.map(|(words, repo)| (words, Resource::Repository { host: None, repo }));
        Self { source, ..Self::of_method(route, &asked.parts.method) }
    }

    /// What a request with this method for this resource needs.
    fn of_method(route: &'a Route, method: &Method) -> Self {
        let reads = matches!(*method, Method::GET | Method::HEAD);
        let (writes, actions, asked): (_, &[Action], _) = match &route.endpoint {
            Endpoint::Catalog | Endpoint::Acr(Acr { repo: None, .. }) => (!reads, &[Action::All], Actions::ALL),
            Endpoint::Uploads(_) | Endpoint::Upload(..) => (true, &[Action::Push], Actions::PULL_AND_PUSH),
            Endpoint::Acr(acr) => match (acr.deleted, reads) {
                (true, true) => (false, &[Action::DeletedRead], Actions::DELETED_READ),
                (true, false) => (true, &[Action::DeletedRestore], Actions::DELETED_RESTORE),
                (false, true) => (false, &[Action::MetadataRead, Action::Pull], Actions::METADATA_READ),
                (false, false) if *method == Method::DELETE => (true, &[Action::Delete], Actions::DELETE),
                (false, false) => (true, &[Action::MetadataWrite], Actions::METADATA_WRITE),
            },
            Endpoint::Tags(_) if reads => (false, &[Action::Pull, Action::MetadataRead], Actions::PULL),
            Endpoint::Manifest(..) | Endpoint::Blob(..) | Endpoint::Referrers(..) if reads => {
                (false, &[Action::Pull], Actions::PULL)
            }
            _ if *method == Method::DELETE => (true, &[Action::Delete], Actions::DELETE),
            _ => (true, &[Action::Push], Actions::PULL_AND_PUSH),
        };
        let resource = match (route.repo(), &route.endpoint) {
            (Some(repo), _) => Resource::Repository { host: None, repo: repo.clone() },
            (None, Endpoint::Acr(Acr { deleted: true, .. })) => Resource::DeletedCatalog,
            (None, _) => Resource::Catalog,
        };
        Self { writes, route, asked, resource, actions, source: None }
    }

    /// What a token for it is asked for, in the client's words.
    pub(super) fn scope(&self) -> String {
        let (route, asked) = (self.route, self.asked);
        let scope = match (route.form, route.repo()) {
            // By the whole name that the client has for it, with which it asks at any realm.
            (Form::Prefix, Some(repo)) => format!("repository:{}/{repo}:{asked}", route.prefix),
            _ => Scope { resource: self.resource.clone(), actions: asked }.to_string(),
        };
        match &self.source {
            // As upstream itself asks for both at once (distribution, "Token Scope Documentation").
            Some((words, _)) => format!("{scope} repository:{words}:pull"),
            None => scope,
        }
    }

    /// Whether a credential is for it.
    pub(super) fn is_met_by(&self, allowed: &Allowed) -> bool {
        self.actions.iter().any(|action| allowed.allows(&self.resource, *action))
            && self.source.as_ref().is_none_or(|(_, source)| allowed.allows(source, Action::Pull))
    }

    /// A 401 that says how to get a token for it.
    pub(super) fn challenge(
        &self,
        asked: &Asked<'_>,
        upstream: &Upstream,
        error: Option<TokenError>,
        message: String,
    ) -> Failure {
        asked.place().challenge(Some(&upstream.name), Some(&self.scope()), error, message)
    }
}

/// The repository of the same upstream from which a blob is to be mounted, in the client's words and in upstream's.
fn mounted_from(asked: &Asked<'_>, route: &Route) -> Option<(String, RepoName)> {
    let Endpoint::Uploads(repo) = &route.endpoint else { return None };
    parameter(&route.query, "mount").filter(|_| asked.parts.method == Method::POST)?.parse::<Digest>().ok()?;
    let from = parameter(&route.query, "from")?;
    let (upstream, source) = mount_source(&asked.app.directory, &asked.listener.config, route, &from)?;
    if upstream != route.upstream || source == *repo {
        return None;
    }
    let words = if route.form == Form::Prefix { from.into_owned() } else { source.to_string() };
    Some((words, source))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::http::route::{Directory, Routed, parse};

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    /// The scope, whether something may change by it, and whether these scopes suffice.
    fn need(method: &Method, target: &str, allowed: &Allowed) -> (String, bool, bool) {
        let config = Config::from_toml("").unwrap();
        let listener = config.listeners.first().unwrap();
        let routed = parse(&Directory::new(&config), listener, Some("localhost"), target, None).unwrap();
        let Routed::Resource(route) = routed else { panic!("{target}") };
        let need = Need::of_method(&route, method);
        (need.scope(), need.writes, need.is_met_by(allowed))
    }

    #[test]
    fn what_requests_need() {
        let blob = format!("/v2/org/app/blobs/{DIGEST}");
        let restore = format!("/acr/v1/_deleted/org/app/_manifests/{DIGEST}");
        for (method, target, scope, writes) in [
            (Method::GET, "/v2/org/app/manifests/1", "repository:org/app:pull", false),
            (Method::HEAD, &blob, "repository:org/app:pull", false),
            (Method::GET, "/v2/alpine/tags/list", "repository:library/alpine:pull", false),
            (Method::GET, "/v2/ghcr.io/org/app/manifests/1", "repository:ghcr.io/org/app:pull", false),
            (Method::GET, "/ghcr.io/v2/org/app/manifests/1", "repository:org/app:pull", false),
            (Method::GET, "/v2/_catalog", "registry:catalog:*", false),
            (Method::GET, "/v2/ghcr.io/_catalog", "registry:catalog:*", false),
            (Method::PUT, "/v2/org/app/manifests/1", "repository:org/app:pull,push", true),
            (Method::POST, "/v2/org/app/blobs/uploads/", "repository:org/app:pull,push", true),
            (Method::GET, "/v2/org/app/blobs/uploads/x", "repository:org/app:pull,push", true),
            (Method::DELETE, "/v2/org/app/blobs/uploads/x", "repository:org/app:pull,push", true),
            (Method::DELETE, "/v2/org/app/manifests/1", "repository:org/app:delete", true),
            (Method::DELETE, &blob, "repository:org/app:delete", true),
            (Method::GET, "/acr/v1/org/app", "repository:org/app:metadata_read", false),
            (Method::PATCH, "/acr/v1/org/app/_tags/1", "repository:org/app:metadata_write", true),
            (Method::DELETE, "/acr/v1/org/app/_tags/1", "repository:org/app:delete", true),
            (Method::GET, "/acr/v1/_catalog", "registry:catalog:*", false),
            (Method::GET, "/acr/v1/_deleted/_catalog", "registry:deleted_catalog:*", false),
            (Method::POST, &restore, "repository:org/app:deleted_restore", true),
        ] {
            let (asked, changes, _) = need(&method, target, &Allowed::All);
            assert_eq!((asked.as_str(), changes), (scope, writes), "{method} {target}");
        }
    }

    #[test]
    fn what_tokens_suffice() {
        let met = |method: Method, target: &str, scope: &str| {
            need(&method, target, &Allowed::Only(Scope::parse_all([scope]).unwrap())).2
        };
        let manifest = "/v2/org/app/manifests/1";
        assert!(met(Method::GET, manifest, "repository:org/app:pull"));
        assert!(met(Method::GET, manifest, "repository:org/app:push,pull"));
        assert!(met(Method::GET, manifest, "repository:org/app:*"));
        assert!(!met(Method::GET, manifest, "repository:org/app:push"));
        assert!(!met(Method::GET, manifest, "repository:org/other:pull"));
        assert!(!met(Method::GET, manifest, "registry:catalog:*"));
        assert!(!met(Method::PUT, manifest, "repository:org/app:pull"));
        assert!(!met(Method::DELETE, manifest, "repository:org/app:pull,push"));
        assert!(met(Method::GET, "/v2/org/app/tags/list", "repository:org/app:metadata_read"));
        assert!(met(Method::GET, "/v2/_catalog", "registry:catalog:*"));
        assert!(!met(Method::GET, "/v2/_catalog", "repository:org/app:*"));
        assert!(need(&Method::PUT, manifest, &Allowed::All).2);
    }
}
