//! `/api/v1/…`: what is in the store, and work on it. The same answers whether a daemon gives them or a command that has
//! locked the root itself. `docs/admin-api.md` documents it.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{ALLOW, HeaderValue};
use http::{Method, Response, StatusCode, Uri};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex, Semaphore};

use super::super::body::Body;
use super::super::form::Form;
use super::super::respond::{Failure, causes, json};
use super::carry::LayoutIndex;
use super::history::Step;
use super::pins::{self, PinNames};
use super::{missed, names, warm};
use crate::cache::{Cache, FillReport};
use crate::clock::Clock;
use crate::config::{Config, ImagePattern};
use crate::oci::ErrorCode;
use crate::store::{Image, Store, StoreError};
use crate::upstream::Upstreams;

/// The store behind the interface.
#[derive(Debug)]
pub struct Api {
    store: Store,
    /// What is there beside it; none: nothing is served.
    live: Option<Live>,
    /// Held by what removes: one at a time.
    removing: Mutex<()>,
    /// One verification reads the disk at a time.
    verifying: Semaphore,
}

/// What a daemon has beside the store.
#[derive(Debug)]
pub struct Live {
    /// What answers pulls.
    pub cache: Arc<Cache>,
    /// What is asked for what it has not.
    pub upstreams: Arc<Upstreams>,
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
    /// How upstreams do.
    Upstreams,
    /// Figures over time.
    History,
    /// What went wrong lately.
    Errors,
    /// Why an image was a miss.
    Explain,
    /// Removal of what nothing leads to.
    Gc,
    /// Hashing what is stored.
    Verify,
    /// Names whose content is never evicted.
    Pins,
    /// Bringing images before anybody pulls them.
    Warm,
    /// What sealed upstreams were asked for in vain.
    Missed,
    /// What pulls would miss.
    Coverage,
    /// What is here, for who would bring something.
    Have,
    /// Images with all that belongs to them, to be carried elsewhere.
    Carried,
    /// The bytes of blobs.
    Content,
    /// Images whose blobs are here, and nothing yet that leads to them.
    Imports,
    /// The file that makes the root an OCI image layout.
    LayoutIndex,
    /// The description of all this.
    OpenApi,
}

/// The parameters of a request.
#[derive(Debug)]
pub(super) struct Parameters {
    query: Form,
    /// JSON; empty: none came, or none is taken.
    body: Bytes,
}

// === impl Resource ===

impl Resource {
    /// All of them.
    pub(super) const ALL: [Self; 20] = [
        Self::Status,
        Self::Images,
        Self::Usage,
        Self::Fills,
        Self::Upstreams,
        Self::History,
        Self::Errors,
        Self::Explain,
        Self::Gc,
        Self::Verify,
        Self::Pins,
        Self::Warm,
        Self::Missed,
        Self::Coverage,
        Self::Have,
        Self::Carried,
        Self::Content,
        Self::Imports,
        Self::LayoutIndex,
        Self::OpenApi,
    ];

    pub(super) fn parse(path: &str) -> Option<Self> {
        let name = path.strip_prefix("/api/v1/")?;
        Self::ALL.into_iter().find(|resource| resource.name() == name)
    }

    /// Its name behind `/api/v1/`.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Status => "status",
            Self::Images => "images",
            Self::Usage => "usage",
            Self::Fills => "fills",
            Self::Upstreams => "upstreams",
            Self::History => "history",
            Self::Errors => "errors",
            Self::Explain => "explain",
            Self::Gc => "gc",
            Self::Verify => "verify",
            Self::Pins => "pins",
            Self::Warm => "warm",
            Self::Missed => "missed",
            Self::Coverage => "coverage",
            Self::Have => "have",
            Self::Carried => "carried",
            Self::Content => "content",
            Self::Imports => "imports",
            Self::LayoutIndex => "layout-index",
            Self::OpenApi => "openapi.json",
        }
    }

    /// Its methods, as `Allow` has them.
    const fn methods(self) -> &'static str {
        match self {
            Self::Images | Self::Missed => "GET, HEAD, DELETE",
            Self::Gc | Self::Verify | Self::Warm | Self::Imports | Self::LayoutIndex => "POST",
            Self::Content => "POST, PUT",
            Self::Pins => "GET, HEAD, POST, DELETE",
            _ => "GET, HEAD",
        }
    }

    /// Whether it takes JSON by this method.
    pub(super) const fn takes_body(self, method: &Method) -> bool {
        matches!((self, method), (Self::Pins, &Method::POST | &Method::DELETE) | (Self::Warm, &Method::POST))
    }

    /// The parameters that it takes by this method; none: it has no such method.
    pub(super) const fn parameters(self, method: &Method) -> Option<&'static [&'static str]> {
        Some(match (self, method) {
            (Self::Images, &Method::GET | &Method::HEAD) => &["pattern"],
            (Self::Images, &Method::DELETE) => &["name", "dry_run"],
            (Self::History, &Method::GET | &Method::HEAD) => &["step"],
            (Self::Explain, &Method::GET | &Method::HEAD) => &["image"],
            (Self::Gc, &Method::POST) => &["dry_run", "evict_bytes"],
            (Self::Verify, &Method::POST) => &["pattern", "rate", "repair"],
            (Self::Carried, &Method::GET | &Method::HEAD) | (Self::Pins, &Method::POST | &Method::DELETE) => &["name"],
            (Self::Coverage, &Method::GET | &Method::HEAD) => &["image", "platform"],
            // Not by GET, which is open to all users of this machine: it is for those who may read it.
            (Self::Content, &Method::POST) => &["digest"],
            (Self::Content, &Method::PUT) => &["digest", "size"],
            (Self::Gc | Self::Verify | Self::Content, _)
            | (Self::Imports | Self::LayoutIndex | Self::Warm, &Method::GET | &Method::HEAD) => return None,
            (_, &Method::GET | &Method::HEAD)
            | (Self::Missed, &Method::DELETE)
            | (Self::Imports | Self::LayoutIndex | Self::Warm, &Method::POST) => &[],
            _ => return None,
        })
    }
}

// === impl Api ===

impl Api {
    /// Over a store, and over what is in memory beside it where there is a daemon.
    pub fn new(store: Store, live: Option<Live>) -> Self {
        Self { store, live, removing: Mutex::default(), verifying: Semaphore::new(1) }
    }

    pub(super) const fn store(&self) -> &Store {
        &self.store
    }

    pub(super) const fn live(&self) -> Option<&Live> {
        self.live.as_ref()
    }

    pub(super) fn clock(&self) -> &dyn Clock {
        &**self.store.timeline().clock()
    }

    /// Downloads that run.
    pub(super) fn fills(&self) -> Vec<FillReport> {
        self.live.as_ref().map(|live| live.cache.fills()).unwrap_or_default()
    }

    /// Answers a request of somebody who may make it, about what is in the store.
    pub(super) async fn answer(
        &self,
        resource: Resource,
        method: &Method,
        asked: &Parameters,
        config: &Config,
    ) -> Result<Response<Body>, Failure> {
        match (resource, method) {
            (Resource::Images, &Method::DELETE) => self.remove(asked, config).await,
            (Resource::Images, _) => {
                let images = self.store.images(asked.pattern("pattern", config)?).await.map_err(failed)?;
                written(&Images { images })
            }
            (Resource::Missed, &Method::DELETE) => written(&self.store.clear_missed().await.map_err(failed)?),
            (Resource::Missed, _) => written(&self.store.missed().await.map_err(failed)?),
            (Resource::Coverage, _) => {
                let (images, platforms) =
                    (asked.query.all("image").collect::<Vec<_>>(), asked.query.all("platform").collect::<Vec<_>>());
                written(&missed::coverage(&self.store, config, &images, &platforms).await?)
            }
            (Resource::Fills, _) => written(&Fills { fills: self.fills() }),
            (Resource::Gc, _) => {
                let (dry_run, evict) = (asked.flag("dry_run")?, asked.number("evict_bytes")?);
                let _one = self.removing.lock().await;
                written(&self.store.collect(dry_run, evict).await.map_err(failed)?)
            }
            (Resource::Verify, _) => self.verify(asked, config).await,
            (Resource::Warm, _) => {
                let request = asked.json()?.ok_or_else(|| bad("a body is missing: {\"images\": [NAME, …]}"))?;
                let cache = self.live.as_ref().map(|live| &live.cache);
                written(&Box::pin(warm::warm(request, &self.store, cache, config)).await?)
            }
            (Resource::Pins, method) => {
                let body: Option<PinNames> = asked.json()?;
                let listed = body.iter().flat_map(|body| &body.names).map(String::as_str);
                let names: Vec<&str> = asked.query.all("name").chain(listed).collect();
                match *method {
                    Method::POST => written(&pins::make(&self.store, config, &names).await?),
                    Method::DELETE => written(&pins::remove(&self.store, config, &names).await?),
                    _ => written(&pins::list(&self.store)),
                }
            }
            (Resource::Have, _) => written(&self.store.have().await.map_err(failed)?),
            (Resource::Carried, _) => {
                let patterns =
                    asked.query.all("name").map(|name| pattern(name, config)).collect::<Result<Vec<_>, _>>()?;
                written(&self.store.carried(patterns).await.map_err(failed)?)
            }
            (Resource::Content, _) => self.blob(asked).await,
            (Resource::LayoutIndex, _) => {
                written(&LayoutIndex { manifests: self.store.write_index().await.map_err(failed)? })
            }
            _ => written(&self.store.usage().await.map_err(failed)?),
        }
    }

    async fn remove(&self, asked: &Parameters, config: &Config) -> Result<Response<Body>, Failure> {
        let patterns = asked.query.all("name").map(|name| pattern(name, config)).collect::<Result<Vec<_>, _>>()?;
        if patterns.is_empty() {
            return Err(bad("name: say which images are to be removed"));
        }
        let dry_run = asked.flag("dry_run")?;
        let _one = self.removing.lock().await;
        let removed = match &self.live {
            Some(live) => live.cache.remove_images(patterns, dry_run).await,
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
    /// Those of a request for a resource, which must have the method.
    pub(super) fn of(resource: Resource, method: &Method, uri: &Uri) -> Result<Self, Failure> {
        let Some(known) = resource.parameters(method) else {
            let allow = HeaderValue::from_static(resource.methods());
            let failure = Failure::method(format!("{} takes {}", uri.path(), resource.methods()));
            return Err(failure.with_header(ALLOW, allow).closing());
        };
        Self::read(uri, known)
    }

    /// Those of a request. One that is not known is an error: a misspelt `dry_run` must not remove anything.
    fn read(uri: &Uri, known: &[&str]) -> Result<Self, Failure> {
        let form = Form::parse(uri.query().unwrap_or_default()).map_err(|error| bad(error.to_string()))?;
        if let Some((name, _)) = form.clone().into_fields().iter().find(|(name, _)| !known.contains(&name.as_str())) {
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            return Err(bad(format!("{name:?} is no parameter of this; there is {known}")));
        }
        Ok(Self { query: form, body: Bytes::new() })
    }

    /// With the body that came.
    pub(super) fn with_body(self, body: Bytes) -> Self {
        Self { body, ..self }
    }

    /// The body; none: there is none.
    fn json<T: DeserializeOwned>(&self) -> Result<Option<T>, Failure> {
        if self.body.is_empty() {
            return Ok(None);
        }
        // serde_json says the line and the column.
        serde_json::from_slice(&self.body).map(Some).map_err(|error| bad(format!("the body: {error}")))
    }

    /// One that must be there.
    pub(super) fn required(&self, name: &str) -> Result<&str, Failure> {
        self.query.get(name).ok_or_else(|| bad(format!("?{name}=NAME is missing")))
    }

    /// How long the points of a history are.
    pub(super) fn step(&self) -> Result<Step, Failure> {
        match self.query.get("step") {
            None | Some("minute") => Ok(Step::Minute),
            Some("hour") => Ok(Step::Hour),
            Some(other) => Err(bad(format!("step: {other:?} is neither minute nor hour"))),
        }
    }

    fn flag(&self, name: &str) -> Result<bool, Failure> {
        match self.query.get(name) {
            None | Some("false") => Ok(false),
            Some("true") => Ok(true),
            Some(other) => Err(bad(format!("{name}: {other:?} is neither true nor false"))),
        }
    }

    pub(super) fn number(&self, name: &str) -> Result<Option<u64>, Failure> {
        let parse = |text: &str| text.parse().map_err(|_| bad(format!("{name}: {text:?} is not a number of bytes")));
        self.query.get(name).map(parse).transpose()
    }

    fn pattern(&self, name: &str, config: &Config) -> Result<Option<ImagePattern>, Failure> {
        self.query.get(name).map(|text| pattern(text, config)).transpose()
    }
}

/// What a name means: that of a pull through a listener, too, and with `library/` where the upstream has its official
/// images there.
fn pattern(text: &str, config: &Config) -> Result<ImagePattern, Failure> {
    let text = names::placed(text, config).map_err(|error| bad(error.to_string()))?;
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

pub(super) fn written(value: &impl Serialize) -> Result<Response<Body>, Failure> {
    Ok(json(StatusCode::OK, serde_json::to_vec(value).map_err(Failure::internal)?))
}
