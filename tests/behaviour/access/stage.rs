//! A registry with the repositories of the matrix, an ocistern in front of it, and the requests of the cells.

use std::collections::HashMap;
use std::fmt;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use tempfile::TempDir;

use super::model::{
    A_MOMENT, ACCESS_TTL, Class, Credentials, LATE, Model, PUBLIC_FOR, REPOS, Repo, SHOWN, SOME, Scope, Show, State,
    VERBS, Verb, Who,
};
use crate::common::cistern::Setup;
use crate::common::content::{artifact, blob, image, sha256};
use crate::common::upstream::Auth;
use crate::common::{Ask, Cistern, Got, Image, Upstream, clock};

/// A listener's name that is not this machine's: nobody is trusted for coming by loopback.
const HOST: &str = "cache.test";

/// A registry and an ocistern in front of it.
pub(crate) struct Stage {
    pub(crate) model: Model,
    pub(crate) upstream: Arc<Upstream>,
    pub(crate) cistern: Cistern,
    pub(crate) images: HashMap<String, Image>,
    tokens: HashMap<(Who, Show, String), String>,
    /// A blob that everybody may mount, in `commons`.
    common: Bytes,
    pub(crate) disagreements: Vec<Disagreement>,
    _secrets: TempDir,
}

pub(crate) struct Disagreement {
    pub(crate) cell: String,
    pub(crate) expected: Class,
    pub(crate) came: Class,
}

impl Stage {
    pub(crate) async fn new(model: Model, tags: &str) -> Self {
        Self::before(Arc::new(Upstream::start().await), model, tags).await
    }

    pub(crate) async fn before(upstream: Arc<Upstream>, model: Model, tags: &str) -> Self {
        let common = blob(1, 5000);
        upstream.blob("commons", &common);
        upstream.registry(|registry| {
            registry.auth = Auth::Accounts;
            let accounts = &mut registry.accounts;
            accounts.refused_with = (model.refusal != 401).then_some(model.refusal);
            accounts.public.insert("commons".to_owned());
            for who in [Who::Friend, Who::Reader, Who::Stranger] {
                if model.credentials != Credentials::Own || who == Who::Stranger {
                    accounts.user(who.name(), &who.password());
                }
                accounts.allow(who.name(), &who.home(), "pull,push");
            }
            accounts.user("robot", "CANARY-robot");
        });
        let secrets = tempfile::tempdir().unwrap();
        let cistern = model.setup(&upstream, tags, &secrets).start().await;
        let (images, tokens) = (HashMap::new(), HashMap::new());
        Self { model, upstream, cistern, images, tokens, common, disagreements: Vec::new(), _secrets: secrets }
    }

    /// Adds a repository as it is before anything happens.
    pub(crate) fn add(&mut self, repo: Repo, name: &str) {
        let image = image(2 + self.images.len() as u64);
        if repo != Repo::Missing {
            self.put(name, &image);
        }
        self.images.insert(name.to_owned(), image);
        self.upstream.registry(|registry| {
            let accounts = &mut registry.accounts;
            for who in [Who::Friend, Who::Reader] {
                if State::Hot.may_pull(who, repo) {
                    let pushes = State::Hot.may_push(who, repo);
                    accounts.allow(who.name(), name, if pushes { "pull,push,delete" } else { "pull" });
                }
            }
            accounts.allow("robot", name, "pull");
            if matches!(repo, Repo::Public | Repo::Turned) {
                accounts.public.insert(name.to_owned());
            }
        });
    }

    pub(crate) fn put(&self, name: &str, image: &Image) {
        let referrer = artifact("application/x.signature", &image.digest, 0);
        self.upstream.image(name, "v1", image);
        self.upstream.manifest(name, referrer.media_type, &referrer.manifest);
    }

    pub(crate) fn make_private(&self, name: &str) {
        self.upstream.registry(|registry| registry.accounts.public.remove(name));
    }

    /// The repositories of all states but the cold one, each once.
    pub(crate) fn add_all(&mut self) {
        for repo in REPOS {
            self.add(repo, repo.name());
        }
    }

    /// Everything of a repository, asked for by somebody who may.
    pub(crate) async fn pull(&mut self, who: Who, show: Show, repo: Repo) {
        for verb in VERBS.into_iter().filter(|verb| !verb.writes()) {
            let ask = self.request(who, show, repo.name(), verb).await;
            let got = self.cistern.send(ask).await;
            assert_eq!(self.judge(&got, repo.name(), verb), Class::Given, "{who:?} {repo:?} {verb:?}");
        }
    }

    /// What `State::Hot` says.
    pub(crate) async fn heat(&mut self) {
        self.add_all();
        self.pull_all().await;
        self.make_private(Repo::Turned.name());
        pass(PUBLIC_FOR + A_MOMENT).await;
    }

    /// The friend pulls everything, and everybody what is public.
    pub(crate) async fn pull_all(&mut self) {
        let everybody = self.model.credentials == Credentials::Auto;
        if everybody {
            self.pull(Who::Nobody, Show::Nothing, Repo::Turned).await;
        }
        for repo in [Repo::Public, Repo::Private, Repo::Readable, Repo::Turned] {
            self.pull(Who::Friend, Show::Token(Scope::Pull), repo).await;
        }
        self.cistern.settle().await;
    }

    pub(crate) fn revoke(&self) {
        for repo in REPOS {
            self.revoke_in(repo, repo.name());
        }
    }

    pub(crate) fn revoke_in(&self, repo: Repo, name: &str) {
        self.upstream.registry(|registry| {
            let Some(rights) = registry.accounts.rights.get_mut(name) else { return };
            rights.retain(|user, _| {
                let who = [Who::Friend, Who::Reader].into_iter().find(|who| who.name() == user);
                who.is_none_or(|who| State::Revoked.may_pull(who, repo))
            });
        });
    }

    /// A request that upstream alone can answer.
    pub(crate) fn probe() -> Ask {
        let credential = (Who::Friend.name(), Who::Friend.password());
        Ask::get("/v2/nothing/tags/list").with("host", HOST).basic(credential.0, &credential.1)
    }

    /// Ends upstream, and lets ocistern notice.
    pub(crate) async fn go_away(&self) {
        self.upstream.down();
        let warp = clock::warp();
        for _ in 0..6 {
            assert!(self.cistern.send(Self::probe()).await.status >= 500);
        }
        drop(warp);
        tokio::time::resume();
        pass(A_MOMENT).await;
    }

    /// The request of a cell.
    pub(crate) async fn request(&mut self, who: Who, show: Show, name: &str, verb: Verb) -> Ask {
        let image = &self.images[name];
        let layer = sha256(&image.layers[0]);
        let (digest, common, home) = (image.digest, sha256(&self.common), who.home());
        let ask = match verb {
            Verb::ByTag => Ask::get(format!("/v2/{name}/manifests/v1")),
            Verb::ByDigest => Ask::get(format!("/v2/{name}/manifests/{digest}")),
            Verb::Head => Ask::head(format!("/v2/{name}/manifests/v1")),
            Verb::Blob => Ask::get(format!("/v2/{name}/blobs/{layer}")),
            Verb::Range => Ask::get(format!("/v2/{name}/blobs/{layer}")).with("range", "bytes=5-99"),
            Verb::Tags => Ask::get(format!("/v2/{name}/tags/list")),
            Verb::Referrers => Ask::get(format!("/v2/{name}/referrers/{digest}")),
            Verb::MountFrom => Ask::post(format!("/v2/{home}/blobs/uploads/?mount={layer}&from={name}")),
            Verb::MountInto => Ask::post(format!("/v2/{name}/blobs/uploads/?mount={common}&from=commons")),
            Verb::Put => {
                let put = Ask::put(format!("/v2/{name}/manifests/other")).body(image.manifest.clone());
                put.with("content-type", image.media_type)
            }
            Verb::Delete => Ask::delete(format!("/v2/{name}/manifests/{digest}")),
        };
        self.shown(ask, who, show, name).await
    }

    /// A request that shows this.
    pub(crate) async fn shown(&mut self, ask: Ask, who: Who, show: Show, name: &str) -> Ask {
        let ask = ask.with("host", HOST);
        match show {
            Show::Nothing => ask,
            Show::Basic => ask.basic(who.name(), &who.password()),
            Show::Token(_) | Show::Late(_) => ask.bearer(&self.token(who, show, name).await),
        }
    }

    /// A token for this repository, and what mounting needs besides; got once. One for all of [`REPOS`] serves them all.
    pub(crate) async fn token(&mut self, who: Who, show: Show, name: &str) -> String {
        let shared = REPOS.iter().any(|repo| repo.name() == name);
        let key = (who, show, if shared { String::new() } else { name.to_owned() });
        if let Some(token) = self.tokens.get(&key) {
            return token.clone();
        }
        let actions = if show.scope() == Some(Scope::Push) { "pull,push,delete" } else { "pull" };
        let names = if shared { REPOS.map(Repo::name).to_vec() } else { vec![name] };
        let mut target =
            format!("/oauth2/token?service=x&scope=repository:commons:pull&scope=repository:{}:{actions}", who.home());
        for name in names {
            write!(target, "&scope=repository:{name}:{actions}").unwrap();
        }
        let ask = Ask::get(target).with("host", HOST);
        let ask = if who == Who::Nobody { ask } else { ask.basic(who.name(), &who.password()) };
        let got = self.cistern.send(ask).await;
        assert_eq!(got.status, 200, "{who:?} {show:?}: {}", got.summary());
        let token = got.json()["token"].as_str().unwrap().to_owned();
        self.tokens.insert(key, token.clone());
        token
    }

    /// Gets the tokens that are shown when upstream is away.
    pub(crate) async fn tokens_now(&mut self) {
        for (who, show) in SHOWN {
            let refused = self.model.credentials == Credentials::Own && who == Who::Stranger;
            if show.scope().is_some() && !refused {
                self.token(who, show, Repo::Public.name()).await;
            }
        }
    }

    /// The class of what came.
    pub(crate) fn judge(&self, got: &Got, name: &str, verb: Verb) -> Class {
        let image = &self.images[name];
        let wrong = |why: &str| Class::Wrong(format!("{why}: {}", got.summary()));
        if let Some(cut) = &got.cut {
            return wrong(cut);
        }
        let (blob, common) = (&image.layers[0], sha256(&self.common).to_string());
        let named = |digest: &str| got.header("docker-content-digest") == digest;
        let given = match verb {
            Verb::ByTag | Verb::ByDigest => got.body == image.manifest && named(&image.digest.to_string()),
            Verb::Head => {
                got.header("content-length") == image.manifest.len().to_string() && named(&image.digest.to_string())
            }
            Verb::Blob => got.body == *blob && named(&sha256(blob).to_string()),
            Verb::Range => got.body == blob.slice(5..100) && got.header("content-range").starts_with("bytes 5-99/"),
            Verb::Tags => got.body == format!(r#"{{"name":"{name}","tags":["v1"]}}"#),
            Verb::Referrers => String::from_utf8_lossy(&got.body).contains("application/x.signature"),
            Verb::MountFrom => named(&sha256(blob).to_string()),
            Verb::MountInto => named(&common),
            Verb::Put => named(&image.digest.to_string()),
            Verb::Delete => got.body.is_empty(),
        };
        let success = match verb {
            Verb::Range => 206,
            Verb::Delete => 202,
            _ if verb.writes() => 201,
            _ => 200,
        };
        match got.status {
            status if status == success && given => Class::Given,
            200 if verb == Verb::Referrers && got.json()["manifests"].as_array().is_some_and(Vec::is_empty) => {
                Class::NoReferrers
            }
            202 if verb == Verb::MountFrom => Class::Upload,
            401 if got.header("www-authenticate").starts_with("Bearer realm=") => Class::Challenged,
            403 => Class::Denied,
            404 => Class::NotFound,
            405 => Class::Off,
            502..=504 => Class::Away,
            _ => wrong("neither right nor an error"),
        }
    }

    /// Asks for every cell and notes where the model disagrees.
    pub(crate) async fn table(&mut self, state: State) {
        // While upstream is away, requests wait for nothing but the clock, many at a time.
        let warp = state.is_away().then(clock::warp);
        let shown = match state {
            _ if !state.is_away() => SHOWN.to_vec(),
            State::HotAway | State::AskedAway => [&SHOWN[..], &LATE].concat(),
            _ => SOME.to_vec(),
        };
        let mut cells = Vec::new();
        for (number, &(who, show)) in shown.iter().enumerate() {
            // The token endpoint itself turns away who is no user of the listener's.
            if self.model.credentials == Credentials::Own && who == Who::Stranger && show != Show::Basic {
                continue;
            }
            for repo in REPOS {
                for (column, verb) in VERBS.into_iter().enumerate() {
                    let mut name = repo.name().to_owned();
                    if state == State::Cold {
                        // Of its own: the cell before has warmed it.
                        name = format!("{name}-{number}-{column}");
                        self.add(repo, &name);
                        if repo == Repo::Turned {
                            self.make_private(&name);
                        }
                    }
                    let ask = self.request(who, show, &name, verb).await;
                    cells.push((who, show, repo, verb, name, ask));
                }
            }
        }
        let client = self.cistern.client();
        for some in cells.chunks(if warp.is_some() { 60 } else { 1 }) {
            let came = join_all(some.iter().map(|(.., ask)| client.send(ask.clone()))).await;
            for ((who, show, repo, verb, name, _), got) in some.iter().zip(came) {
                let came = self.judge(&got, name, *verb);
                let expected = self.model.expected(state, *who, *show, *repo, *verb);
                if came != expected {
                    let cell = format!("{state:?} | {who:?} {show:?} | {repo:?} | {verb:?}");
                    self.disagreements.push(Disagreement { cell, expected, came });
                }
            }
        }
        if warp.is_some() {
            drop(warp);
            tokio::time::resume();
        }
    }
}

impl Model {
    pub(crate) fn setup(self, upstream: &Upstream, tags: &str, secrets: &TempDir) -> Setup {
        let stale = if self.prolongs { "100h" } else { "0s" };
        let seconds = (ACCESS_TTL.as_secs(), PUBLIC_FOR.as_secs());
        let mut keys = format!(
            "tags = \"{tags}\"\naccess_ttl = \"{}s\"\npublic_for = \"{}s\"\naccess_stale = \"{stale}\"\n",
            seconds.0, seconds.1
        );
        let mut listener = String::new();
        match self.credentials {
            Credentials::Auto => {}
            Credentials::Client => keys += "credentials = { from = \"client\" }\n",
            Credentials::Own => {
                let (password, users) = (secrets.path().join("password"), secrets.path().join("htpasswd"));
                std::fs::write(&password, "CANARY-robot").unwrap();
                let line = |who: Who| format!("{}:{}\n", who.name(), bcrypt::hash(who.password(), 4).unwrap());
                std::fs::write(&users, line(Who::Friend) + &line(Who::Reader)).unwrap();
                let file = password.display();
                writeln!(keys, "credentials = {{ from = \"static\", username = \"robot\", password_file = '{file}' }}")
                    .unwrap();
                keys += "push = \"off\"\n";
                listener = format!("htpasswd = '{}'", users.display());
            }
        }
        Cistern::setup().upstream("up", upstream, &keys).listener(&listener)
    }
}

impl Who {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Nobody => "nobody",
            Self::Friend => "friend",
            Self::Reader => "reader",
            Self::Stranger => "stranger",
        }
    }

    pub(crate) fn password(self) -> String {
        format!("CANARY-{}", self.name())
    }

    /// A repository of its own.
    pub(crate) fn home(self) -> String {
        format!("home-{}", self.name())
    }
}

impl Repo {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Public => "public",
            Self::Private => "private",
            Self::Readable => "readable",
            Self::Turned => "turned",
            Self::Missing => "missing",
        }
    }
}

impl fmt::Display for Disagreement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<70} due {:<12} came {:?}", self.cell, format!("{:?}", self.expected), self.came)
    }
}

/// Lets that much time go by at once.
pub(crate) async fn pass(time: Duration) {
    tokio::time::pause();
    tokio::time::advance(time).await;
    tokio::time::resume();
}
