//! What fuzz targets ask of parsers that are nobody else's business: see `fuzz/targets.rs`.

use std::time::{Duration, SystemTime};

use http::header::RETRY_AFTER;
use http::{HeaderMap, HeaderValue, Uri};

use super::origin::{Origin, Url};
use super::{Location, redirect, retry};

/// Where `location` leads from `from`, and that as it is kept and asked again later; none: it is not followed.
pub fn follow(from: &Uri, location: &str) -> Option<(Uri, Location, Option<Uri>)> {
    let from = Url::new(Origin::of(from)?, from.path_and_query()?.as_str()).ok()?;
    let to = redirect::resolve(&from, location).ok()?;
    let kept = to.location(&from.origin);
    let again = redirect::resolve(&from, kept.as_str()).ok().and_then(|url| url.to_uri().ok());
    Some((to.to_uri().ok()?, kept, again))
}

/// How long a `Retry-After` field asks to wait.
pub fn retry_after(field: &HeaderValue, now: SystemTime) -> Option<Duration> {
    retry::retry_after(&HeaderMap::from_iter([(RETRY_AFTER, field.clone())]), now)
}
