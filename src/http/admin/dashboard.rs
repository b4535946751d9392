//! The dashboard: one page and what belongs to it, compiled in. It holds no data: it asks the admin API like everybody else,
//! so that it is open also to who has to type in the token first.

use http::header::{CONTENT_SECURITY_POLICY, CONTENT_TYPE};
use http::{HeaderValue, Response};

use super::super::body::Body;

/// Nothing but the files here and the API; no frame, no form that leads anywhere, and no text that becomes markup.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
                      frame-ancestors 'none'; base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'; \
                      trusted-types 'none'";

const SCRIPT: &str = "text/javascript; charset=utf-8";

/// A file of the page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Asset {
    path: &'static str,
    content_type: &'static str,
    content: &'static str,
}

/// The page and its files.
const ASSETS: [Asset; 8] = [
    Asset { path: "/", content_type: "text/html; charset=utf-8", content: include_str!("dashboard/index.html") },
    Asset { path: "/favicon.svg", content_type: "image/svg+xml", content: include_str!("dashboard/favicon.svg") },
    Asset {
        path: "/dashboard/style.css",
        content_type: "text/css; charset=utf-8",
        content: include_str!("dashboard/style.css"),
    },
    Asset { path: "/dashboard/main.js", content_type: SCRIPT, content: include_str!("dashboard/main.js") },
    Asset { path: "/dashboard/api.js", content_type: SCRIPT, content: include_str!("dashboard/api.js") },
    Asset { path: "/dashboard/chart.js", content_type: SCRIPT, content: include_str!("dashboard/chart.js") },
    Asset { path: "/dashboard/format.js", content_type: SCRIPT, content: include_str!("dashboard/format.js") },
    Asset { path: "/dashboard/panels.js", content_type: SCRIPT, content: include_str!("dashboard/panels.js") },
];

// === impl Asset ===

impl Asset {
    /// The file at a path.
    pub(super) fn at(path: &str) -> Option<Self> {
        ASSETS.into_iter().find(|asset| asset.path == path)
    }

    /// The answer.
    pub(super) fn response(self) -> Response<Body> {
        let mut response = Response::new(Body::full(self.content));
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(self.content_type));
        headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What would break the policy, or let a name become markup, is not even written.
    #[test]
    fn nothing_is_loaded_from_elsewhere_and_no_text_becomes_markup() {
        for asset in ASSETS {
            let text = asset.content;
            let foreign = text.match_indices("://").filter(|(at, _)| {
                let before = text.get(..*at).unwrap_or_default();
                let after = text.get(*at + 3..).unwrap_or_default();
                // The name of the SVG vocabulary is no address.
                !(before.ends_with("http") && after.starts_with("www.w3.org/2000/svg"))
            });
            assert_eq!(foreign.count(), 0, "{}", asset.path);
            for sink in [
                "innerHTML =",
                "outerHTML",
                "insertAdjacentHTML",
                "document.write",
                "eval(",
                "new Function",
                " style=",
                "javascript:",
            ] {
                assert!(!text.contains(sink), "{}: {sink}", asset.path);
            }
            let handlers = ["onclick=", "onload=", "onerror=", "onsubmit=", "oninput="];
            assert!(handlers.iter().all(|handler| !text.contains(handler)), "{}", asset.path);
        }
    }

    #[test]
    fn everything_that_the_page_names_is_there() {
        for asset in ASSETS {
            let mut named = Vec::new();
            for mark in ["src=\"", "href=\"", "from \""] {
                for (at, _) in asset.content.match_indices(mark) {
                    let rest = asset.content.get(at + mark.len()..).unwrap_or_default();
                    named.push(rest.split('"').next().unwrap_or_default());
                }
            }
            for name in named {
                let path = name.replace("./", "/dashboard/");
                let is_elsewhere = path.starts_with('#') || path == "/metrics" || path.starts_with("/api/v1/");
                assert!(is_elsewhere || Asset::at(&path).is_some(), "{}: {name}", asset.path);
            }
        }
    }
}
