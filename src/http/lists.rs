//! Tag lists, referrers and the catalog.
#![warn(clippy::indexing_slicing)]

use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderName, LINK};
use http::request::Parts;
use http::{HeaderValue, Method, Response};
use percent_encoding::percent_decode_str;

use super::Visit;
use super::body::Body;
use super::record::Served;
use super::respond::Failure;
use super::route::{Route, split_namespace};
use crate::cache::{CACHE_STATUS, Found, List};
use crate::metrics::{Kind, Source};
use crate::oci::{Digest, RepoName};

const FILTERS_APPLIED: HeaderName = HeaderName::from_static("oci-filters-applied");

/// `NAME/tags/list`.
pub(super) async fn tags(visit: &Visit<'_>, repo: &RepoName) -> Result<Response<Body>, Failure> {
    let target = visit.target(repo);
    let list = visit.asked.app.cache.tags(&target, &visit.route.query).await;
    visit.list(list.map_err(|error| visit.missed(error, Kind::Tags, &target, || None)))
}

/// `NAME/referrers/DIGEST`.
pub(super) async fn referrers(visit: &Visit<'_>, repo: &RepoName, subject: &Digest) -> Result<Response<Body>, Failure> {
    let target = visit.target(repo);
    let list = visit.asked.app.cache.referrers(&target, subject, &visit.route.query).await;
    visit.list(list.map_err(|error| visit.missed(error, Kind::Referrers, &target, || None)))
}

/// `_catalog`.
pub(super) async fn catalog(visit: &Visit<'_>) -> Result<Response<Body>, Failure> {
    let (caller, route) = (visit.caller, visit.route);
    let list =
        visit.asked.app.cache.catalog(&route.upstream, &caller.right, visit.leaves_challenges(), &route.query).await;
    visit.list(list.map_err(|error| visit.explain(error, Kind::Other)))
}

// === impl Visit ===

impl Visit<'_> {
    fn list(&self, list: Result<List, Failure>) -> Result<Response<Body>, Failure> {
        list.map(|list| respond(self.route, self.asked.parts, list))
    }
}

fn respond(route: &Route, request: &Parts, list: List) -> Response<Body> {
    let length = list.body.len();
    let mut response =
        Response::new(if request.method == Method::HEAD { Body::empty() } else { Body::full(list.body) });
    let headers = response.headers_mut();
    headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    headers.insert(CACHE_STATUS, HeaderValue::from_static(list.status.as_header()));
    let mut insert = |name: HeaderName, value: Option<String>| {
        if let Some(value) = value.and_then(|value| HeaderValue::try_from(value).ok()) {
            headers.insert(name, value);
        }
    };
    insert(CONTENT_TYPE, Some(list.content_type));
    insert(FILTERS_APPLIED, list.filters_applied);
    insert(LINK, list.link.and_then(|link| local_link(route, &link)));
    let source = if list.status.found == Found::Stale { Source::Cache } else { Source::Fill };
    response.body_mut().set_served(Served { outcome: list.status.outcome(), source });
    response
}

/// Upstream's `Link: <…>; rel="next"` for this client: relative, in the form of address that it used. Az keeps only
/// the query, others the whole path. None if there is no next page, or if it leads elsewhere than to the registry API.
pub(super) fn local_link(route: &Route, link: &str) -> Option<String> {
    let values = link_values(link);
    let is_next = |parameters: &str| parameters.to_ascii_lowercase().contains("next");
    // Of a single link without parameters it is clear what it means.
    let alone = values.len() == 1;
    let (target, parameters) = values.into_iter().find(|(_, parameters)| alone || is_next(parameters))?;
    let path = api_path(route, target)?;
    Some(format!("<{}>{parameters}", route.local_target(&path)?))
}

/// The path from `/v2/` on, with the query, that `target` leads to (RFC 3986, section 5), if that is more of the same
/// list. Only its query is upstream's to choose: a client shows ocistern its credential wherever the link leads.
fn api_path(route: &Route, target: &str) -> Option<String> {
    let own = route.upstream_path()?;
    let root = if own.starts_with("/acr/v1/") { "/acr/v1/" } else { "/v2/" };
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    // Absolute: the authority is upstream's, and none of the client's business.
    let absolute = path.split_once("://").map(|(_, rest)| rest).or_else(|| path.strip_prefix("//"));
    let path = match absolute {
        Some(rest) => rest.get(rest.find('/')?..)?.to_owned(),
        None if path.is_empty() => own.clone(),
        None if path.starts_with('/') => path.to_owned(),
        None => format!("{}/{path}", own.rsplit_once('/').map_or("", |(directory, _)| directory)),
    };
    // A registry may stand behind a path, or write the name in another way; what it lists is what the end says.
    let kind = |path: &str| path.rsplit('/').next().map(|last| percent_decode_str(last).collect::<Vec<_>>());
    if !path.contains(root) || kind(&path) != kind(&own) {
        return None;
    }
    let (_, query) = split_namespace(query).ok()?;
    Some(if query.is_empty() { own } else { format!("{own}?{query}") })
}

/// The links of a field, each with its parameters (RFC 8288, section 3); what does not fit the grammar ends the list.
fn link_values(field: &str) -> Vec<(&str, &str)> {
    let mut values = Vec::new();
    let mut rest = field;
    while let Some((target, behind)) =
        rest.trim_start_matches([' ', '\t', ',']).strip_prefix('<').and_then(|rest| rest.split_once('>'))
    {
        let mut quoted = false;
        let end = behind.find(|c| {
            quoted ^= c == '"';
            c == ',' && !quoted
        });
        let (parameters, after) = behind.split_at(end.unwrap_or(behind.len()));
        values.push((target, parameters.trim_end()));
        rest = after;
    }
    values
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use proptest::prelude::*;

    use super::*;
    use crate::config::Config;
    use crate::http::route::{Directory, Routed, parse};

    static CONFIG: LazyLock<Config> = LazyLock::new(|| Config::from_toml("").unwrap());

    fn local(target: &str, link: &str) -> Option<String> {
        let listener = CONFIG.listeners.first().unwrap();
        let routed = parse(&Directory::new(&CONFIG), listener, Some("localhost"), target, None).unwrap();
        let Routed::Resource(route) = routed else { panic!("{target}") };
        local_link(&route, link)
    }

    #[test]
    fn every_form_of_link_leads_to_the_next_page_here() {
        let next = Some("</v2/ghcr.io/org/app/tags/list?n=2&last=b>; rel=\"next\"".to_owned());
        for link in [
            "</v2/org/app/tags/list?n=2&last=b>; rel=\"next\"",
            "<https://ghcr.io/v2/org/app/tags/list?n=2&last=b>; rel=\"next\"",
            "<//ghcr.io/v2/org/app/tags/list?n=2&last=b>; rel=\"next\"",
            "<https://ghcr.io/behind/a/path/v2/org/app/tags/list?n=2&last=b>; rel=\"next\"",
            "<?n=2&last=b>; rel=\"next\"",
            "<list?n=2&last=b>; rel=\"next\"",
            "</v2/org/app/tags/list?n=2&last=a>; rel=\"prev,1\", </v2/org/app/tags/list?n=2&last=b>; rel=\"next\"",
        ] {
            assert_eq!(local("/v2/ghcr.io/org/app/tags/list", link), next, "{link}");
        }
        let odd = "</v2/org/app/tags/list?last=http://x/v2/y>";
        assert_eq!(local("/v2/org/app/tags/list", odd).as_deref(), Some(odd), "a query is no path");
    }

    /// Whatever the link's path says, a client with credentials for ocistern is led to no other place there.
    #[test]
    fn a_link_leads_to_the_same_list() {
        let next = Some("</v2/org/app/tags/list?n=2&last=b>".to_owned());
        for link in [
            "</v2/other/tags/list?n=2&last=b>",
            "</v2/ghcr.io/org/app/tags/list?n=2&last=b>",
            "</v2/../../elsewhere/list?n=2&last=b>",
            "</v2/org%2Fapp/tags/list?n=2&last=b>",
            "</v2/org/app/tags/list?ns=ghcr.io&n=2&last=b>",
            "</v2/org/app/tags/list?n=2&%6es=ghcr.io&last=b>",
        ] {
            assert_eq!(local("/v2/org/app/tags/list", link), next, "{link}");
        }
        for link in ["</v2/..>", "</v2/../x?n=1>", "</v2/org/app/manifests/1?n=1>", "</v2/org/app/tags/list?ns=a&ns=b>"]
        {
            assert_eq!(local("/v2/org/app/tags/list", link), None, "{link}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]
        #[test]
        fn only_the_query_is_upstreams(
            path in "(https?:/)?/{0,2}[a-z.]{0,4}(/v2/|/)[a-z/.%:]{0,12}(tags/list|list)?",
            query in "(\\?[a-z&=%?/:#. ]{0,20})?", rel in "(; ?rel=\"?(next|prev)\"?)?",
        ) {
            for (target, start) in [("/v2/org/app/tags/list", "</v2/org/app/tags/list"), ("/v2/ghcr.io/a/tags/list", "</v2/ghcr.io/a/tags/list")] {
                if let Some(link) = local(target, &format!("<{path}{query}>{rel}")) {
                    let rest = link.strip_prefix(start);
                    prop_assert!(rest.is_some_and(|rest| rest.starts_with(['?', '>'])), "{link}");
                }
            }
        }

        #[test]
        fn no_text_makes_it_panic(link in "[<>;,\"?#/= a-z\\PC]{0,60}") {
            local("/v2/org/app/tags/list", &link);
        }
    }

    #[test]
    fn links_elsewhere_are_left_out() {
        for link in [
            "",
            "nonsense",
            "</web/page?page=2>; rel=\"next\"",
            "<https://ghcr.io>; rel=\"next\"",
            "<https://ghcr.io?x=/v2/y>; rel=\"next\"",
            "</v2/a/tags/list?last=a>; rel=\"prev\", </v2/a/tags/list>; rel=\"first\"",
            "</v2/unfinished",
        ] {
            assert_eq!(local("/v2/org/app/tags/list", link), None, "{link}");
        }
    }
}
