//! Where a redirect leads, and whether it is followed.
//!
//! Registries send blobs, and some send manifests, from storage elsewhere. Credentials never go along
//! (CVE-2020-15157), and the target's bytes are used as they came: storage signs them.

use http::header::LOCATION;
use http::{HeaderMap, StatusCode};

use super::error::{Fault, RedirectFault};
use super::origin::Url;

/// Redirects that are followed in a row.
pub(crate) const MAX_HOPS: usize = 5;

/// Whether the status is a redirect that keeps the method of GET and HEAD.
pub(crate) fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

/// The URL to ask next after `hops` redirects.
pub(crate) fn next(from: &Url, headers: &HeaderMap, hops: usize) -> Result<Url, Fault> {
    if hops >= MAX_HOPS {
        return Err(Fault::Redirect(RedirectFault::TooMany { limit: MAX_HOPS }));
    }
    target(from, headers).map_err(Fault::Redirect)
}

/// The URL that the one Location names.
pub(crate) fn target(from: &Url, headers: &HeaderMap) -> Result<Url, RedirectFault> {
    let mut locations = headers.get_all(LOCATION).iter();
    let (Some(location), None) = (locations.next(), locations.next()) else { return Err(RedirectFault::NoLocation) };
    let location = location.to_str().map_err(|_| RedirectFault::NoLocation)?;
    resolve(from, location)
}

/// What `location` means at `from`, if it may be asked from there.
pub(crate) fn resolve(from: &Url, location: &str) -> Result<Url, RedirectFault> {
    let to = Url::parse(location, from).map_err(RedirectFault::Url)?;
    if from.origin.https && !to.origin.https {
        return Err(RedirectFault::Downgrade { host: to.origin.authority() });
    }
    Ok(to)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;
    use crate::upstream::origin::{Origin, UrlFault};

    fn follow(https: bool, location: &str, hops: usize) -> Result<String, RedirectFault> {
        let origin = Origin { https, host: "reg.example".into(), port: if https { 443 } else { 80 } };
        let from = Url::new(origin, "/v2/a/blobs/x").unwrap();
        let headers = HeaderMap::from_iter([(LOCATION, HeaderValue::from_str(location).unwrap())]);
        match next(&from, &headers, hops) {
            Ok(url) => Ok(url.to_uri().unwrap().to_string()),
            Err(Fault::Redirect(fault)) => Err(fault),
            Err(fault) => panic!("{fault}"),
        }
    }

    #[test]
    fn targets_keep_every_byte() {
        let signed = "https://x.blob.example/1-a//docker/registry/v2/data?se=2026&sig=a%2Fb%3D&sp=r";
        assert_eq!(follow(true, signed, 0).unwrap(), signed);
        assert_eq!(follow(true, "/v2/other", 4).unwrap(), "https://reg.example/v2/other");
        assert_eq!(follow(false, "http://cdn.example/x", 0).unwrap(), "http://cdn.example/x");
        assert!(follow(false, "https://cdn.example/x", 0).is_ok());
    }

    #[test]
    fn others_are_not_followed() {
        assert_eq!(
            follow(true, "http://cdn.example/x", 0),
            Err(RedirectFault::Downgrade { host: "cdn.example".into() })
        );
        assert_eq!(follow(true, "/x", 5), Err(RedirectFault::TooMany { limit: 5 }));
        assert_eq!(follow(true, "file:///etc/passwd", 0), Err(RedirectFault::Url(UrlFault::Scheme)));
        assert_eq!(follow(true, "https://u:p@cdn.example/", 0), Err(RedirectFault::Url(UrlFault::UserInfo)));
        let mut two = HeaderMap::new();
        two.append(LOCATION, HeaderValue::from_static("/a"));
        two.append(LOCATION, HeaderValue::from_static("/b"));
        let from = Url::new(Origin { https: true, host: "reg.example".into(), port: 443 }, "/").unwrap();
        assert_eq!(target(&from, &two), Err(RedirectFault::NoLocation), "two are one too many");
        assert_eq!(target(&from, &HeaderMap::new()), Err(RedirectFault::NoLocation));
    }
}
