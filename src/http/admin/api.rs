//! `/api/v1/…`: what is in the store, and work on it. The same answers whether a daemon gives them or a command that has
//! locked the root itself. `docs/admin-api.md` documents it.

use std::sync::Arc;

use http::header::{ALLOW, HeaderValue};
use http::{Method, Response, StatusCode, Uri};
use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex, Semaphore};

use super::super::body::Body;
use super::super::form::Form;
use super::super::respond::{Failure, causes, json};
use super::pins;
use crate::cache::{Cache, FillReport};
use crate::config::{Config, ImagePattern};
use crate::oci::ErrorCode;
use crate::store::{Image, Store, StoreError};

/// The store behind the interface.
#[derive(Debug)]
pub struct Api {
    store: Store,
    /// What is in memory beside it; none: nothing is served.
    cache: Option<Arc<Cache>>,
    /// Held by what removes: one at a time.
    removing: Mutex<()>,
    /// One verification reads the disk at a time.
    verifying: Semaphore,
}

/// The answer to `GET /api/v1/images`.
#[derive(Debug, Serialize, Deserialize)]
pub struct Images {
    /// In order of their names.
    pub images: Vec<Image>,
}

/// The answer to `GET /api/v1/fills`.
#[derive(Debug, Serialize, Deserialize)]
pub struct Fills {
    /// In order of their digests.
    pub fills: Vec<FillReport>,
}

/// What there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Resource {
    /// The program and its store in figures.
    Status,
    /// What is stored, by image.
    Images,
    /// What is stored, by repository.
    Usage,
    /// Downloads that run.
    Fills,
    /// Removal of what nothing leads to.
    Gc,
    /// Hashing what is stored.
    Verify,
    /// Names whose content is never evicted.
    Pins,
}

/// The parameters of a request.
struct Parameters(Form);

// === impl Resource ===

impl Resource {
    pub(super) fn parse(path: &str) -> Option<Self> {
        Some(match path.strip_prefix("/api/v1/")? {
            "status" => Self::Status,
            "images" => Self::Images,
            "usage" => Self::Usage,
            "fills" => Self::Fills,
            "gc" => Self::Gc,
            "verify" => Self::Verify,
            "pins" => Self::Pins,
            _ => return None,
        })
    }

    /// Its methods, as `Allow` has them.
    const fn methods(self) -> &'static str {
        match self {
            Self::Status | Self::Usage | Self::Fills => "GET, HEAD",
            Self::Images => "GET, HEAD, DELETE",
            Self::Gc | Self::Verify => "POST",
            Self::Pins => "GET, HEAD, POST, DELETE",
        }
    }
}

// === impl Api ===

impl Api {
    /// Over a store, and over what is in memory beside it where there is a daemon.
    pub fn new(store: Store, cache: Option<Arc<Cache>>) -> Self {
        Self { store, cache, removing: Mutex::default(), verifying: Semaphore::new(1) }
    }

    /// Answers a request of somebody who may make it; anything but the status.
    pub(super) async fn answer(
        &self,
        resource: Resource,
        method: &Method,
        uri: &Uri,
        config: &Config,
    ) -> Result<Response<Body>, Failure> {
        let known: &[&str] = match (resource, method) {
            (Resource::Images, &Method::GET | &Method::HEAD) => &["pattern"],
            (Resource::Images, &Method::DELETE) => &["name", "dry_run"],
            (Resource::Gc, &Method::POST) => &["dry_run", "evict_bytes"],
            (Resource::Verify, &Method::POST) => &["pattern", "rate", "repair"],
            (Resource::Pins, &Method::POST | &Method::DELETE) => &["name"],
            (Resource::Usage | Resource::Status | Resource::Fills | Resource::Pins, &Method::GET | &Method::HEAD) => {
                &[]
            }
            _ => {
                let allow = HeaderValue::from_static(resource.methods());
                let failure = Failure::method(format!("{} takes {}", uri.path(), resource.methods()));
                return Err(failure.with_header(ALLOW, allow).closing());
            }
        };
        let asked = Parameters::read(uri, known)?;
        match (resource, method) {
            (Resource::Images, &Method::DELETE) => self.remove(&asked, config).await,
            (Resource::Images, _) => {
                let images = self.store.images(asked.pattern("pattern", config)?).await.map_err(failed)?;
                written(&Images { images })
            }
            (Resource::Fills, _) => {
                let fills = self.cache.as_ref().map(|cache| cache.fills()).unwrap_or_default();
                written(&Fills { fills })
            }
            (Resource::Gc, _) => {
                let (dry_run, evict) = (asked.flag("dry_run")?, asked.number("evict_bytes")?);
                let _one = self.removing.lock().await;
                written(&self.store.collect(dry_run, evict).await.map_err(failed)?)
            }
            (Resource::Verify, _) => self.verify(&asked, config).await,
            (Resource::Pins, method) => {
                let names: Vec<&str> = asked.0.all("name").collect();
                match *method {
                    Method::POST => written(&pins::make(&self.store, config, &names).await?),
                    Method::DELETE => written(&pins::remove(&self.store, config, &names).await?),
                    _ => written(&pins::list(&self.store)),
                }
            }
            (Resource::Usage | Resource::Status, _) => written(&self.store.usage().await.map_err(failed)?),
        }
    }

    async fn remove(&self, asked: &Parameters, config: &Config) -> Result<Response<Body>, Failure> {
        let patterns = asked.0.all("name").map(|name| pattern(name, config)).collect::<Result<Vec<_>, _>>()?;
        if patterns.is_empty() {
            return Err(bad("name: say which images are to be removed"));
        }
        let dry_run = asked.flag("dry_run")?;
        let _one = self.removing.lock().await;
        let removed = match &self.cache {
            Some(cache) => cache.remove_images(patterns, dry_run).await,
            None => self.store.remove_images(patterns, dry_run).await.map(|(removed, _)| removed),
        };
        written(&removed.map_err(failed)?)
    }

    async fn verify(&self, asked: &Parameters, config: &Config) -> Result<Response<Body>, Failure> {
        let (wanted, rate) = (asked.pattern("pattern", config)?, asked.number("rate")?);
        let repair = asked.flag("repair")?;
        if rate == Some(0) {
            return Err(bad("rate: it must be more than 0 bytes a second"));
        }
        let Ok(_one) = self.verifying.try_acquire() else {
            let message = "another verification is running; ask again when it has ended";
            return Err(Failure::new(StatusCode::CONFLICT, ErrorCode::Denied, message));
        };
        written(&self.store.verify(wanted, rate, repair).await.map_err(failed)?)
    }
}

// === impl Parameters ===

impl Parameters {
    /// Those of a request. One that is not known is an error: a misspelt `dry_run` must not remove anything.
    fn read(uri: &Uri, known: &[&str]) -> Result<Self, Failure> {
        let form = Form::parse(uri.query().unwrap_or_default()).map_err(|error| bad(error.to_string()))?;
        if let Some((name, _)) = form.clone().into_fields().iter().find(|(name, _)| !known.contains(&name.as_str())) {
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            return Err(bad(format!("{name:?} is no parameter of this; there is {known}")));
        }
        Ok(Self(form))
    }

    fn flag(&self, name: &str) -> Result<bool, Failure> {
        match self.0.get(name) {
            None | Some("false") => Ok(false),
            Some("true") => Ok(true),
            Some(other) => Err(bad(format!("{name}: {other:?} is neither true nor false"))),
        }
    }

    fn number(&self, name: &str) -> Result<Option<u64>, Failure> {
        let parse = |text: &str| text.parse().map_err(|_| bad(format!("{name}: {text:?} is not a number of bytes")));
        self.0.get(name).map(parse).transpose()
    }

    fn pattern(&self, name: &str, config: &Config) -> Result<Option<ImagePattern>, Failure> {
        self.0.get(name).map(|text| pattern(text, config)).transpose()
    }
}

/// What a name means, with `library/` where the upstream has its official images there, as in a pull.
fn pattern(text: &str, config: &Config) -> Result<ImagePattern, Failure> {
    let pattern: ImagePattern = text.parse().map_err(|error: crate::config::InvalidPattern| bad(error.to_string()))?;
    Ok(pattern.with_library(|name| config.upstreams.get(name).is_some_and(|upstream| upstream.library)))
}

pub(super) fn bad(message: impl Into<String>) -> Failure {
    Failure::bad_request(ErrorCode::Unsupported, message)
}

/// Who may ask here may know why.
pub(super) fn failed(error: StoreError) -> Failure {
    let status = match error {
        StoreError::Stopped => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    };
    Failure::new(status, ErrorCode::Unknown, causes(&error)).with_source(error)
}

fn written(value: &impl Serialize) -> Result<Response<Body>, Failure> {
    Ok(json(StatusCode::OK, serde_json::to_vec(value).map_err(Failure::internal)?))
}
