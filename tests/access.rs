//! The access matrix: every caller × repository × request × state of the cache, against a model of the rules.
//!
//! `Model::expected` says what is right by the rules alone: "A cached byte is not a permission", and a registry's own word
//! decides, as long as it can be had. It knows nothing of how the cache comes to its answers. All disagreements of a
//! table are printed at once. A second part compares whole answers: nobody who may not read a thing is told, by
//! anything in the answer, whether it is in the store.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "test code")]

mod common;

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use common::content::{artifact, blob, image, sha256};
use common::upstream::{Auth, acts};
use common::{Ask, Cistern, Got, Image, Upstream, clock};
use futures_util::future::join_all;
use tempfile::TempDir;

/// How long a caller's right is remembered, and how long public is public. A table takes seconds.
const ACCESS_TTL: Duration = Duration::from_mins(20);
const PUBLIC_FOR: Duration = Duration::from_mins(5);
/// Longer than any refusal or failure is remembered, and short against the times above.
const A_MOMENT: Duration = Duration::from_secs(10);
/// A listener's name that is not this machine's: nobody is trusted for coming by loopback.
const HOST: &str = "cache.test";

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Who {
    Nobody,
    /// Pulls and pushes.
    Friend,
    /// Pulls.
    Reader,
    /// Has an account and no right.
    Stranger,
}

/// What of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Repo {
    Public,
    /// The friend's.
    Private,
    /// The friend's, and the reader may read it.
    Readable,
    /// As `Readable`, and it was public before.
    Turned,
    /// Friend and reader might read it, and there is no such repository.
    Missing,
}

/// What for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Verb {
    ByTag,
    ByDigest,
    Head,
    Blob,
    Range,
    Tags,
    Referrers,
    /// Mounts a blob of the repository into one of the caller's own.
    MountFrom,
    /// Mounts a blob that is everybody's into the repository.
    MountInto,
}

/// What is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Show {
    Nothing,
    /// A token that was asked for with these actions.
    Token(Scope),
    /// The same, got after upstream went away.
    Late(Scope),
    Basic,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Scope {
    Pull,
    Push,
}

/// What happened before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum State {
    /// Nothing.
    Cold,
    /// The friend has pulled everything; public was `Turned` when everybody pulled it, and that is too long ago.
    Hot,
    /// As `Hot`, and the tag's time is over; it means something else upstream.
    Stale,
    /// As `Hot`, then the rights of the reader, and the friend's to `Private`, were revoked, and the remembered time is
    /// over.
    Revoked,
    // And with upstream away:
    ColdAway,
    HotAway,
    /// Everybody had asked for everything before.
    AskedAway,
    /// And then the remembered time was over.
    LongAway,
    /// Everybody had asked after the rights were revoked.
    RevokedAway,
    /// And then ocistern was started again.
    RestartedAway,
}

/// The class of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Class {
    /// A success, with exactly what was asked for.
    Given,
    /// 200, and nobody refers to it.
    NoReferrers,
    /// 202: nothing was mounted, the bytes have to be sent.
    Upload,
    /// 401 with a challenge.
    Challenged,
    /// 403.
    Denied,
    /// 404.
    NotFound,
    /// 405: ocistern is configured not to push.
    Off,
    /// 502, 503, 504.
    Away,
    /// None of these.
    Wrong(String),
}

/// How ocistern and upstream are configured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Model {
    credentials: Credentials,
    /// The status with which upstream refuses who has shown a token.
    refusal: u16,
    /// `access_stale` is longer than any test.
    prolongs: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Credentials {
    Auto,
    Client,
    /// An account of ocistern's own; friend and reader are users of the listener's htpasswd file.
    Own,
}

const REPOS: [Repo; 5] = [Repo::Public, Repo::Private, Repo::Readable, Repo::Turned, Repo::Missing];
const VERBS: [Verb; 9] = [
    Verb::ByTag,
    Verb::ByDigest,
    Verb::Head,
    Verb::Blob,
    Verb::Range,
    Verb::Tags,
    Verb::Referrers,
    Verb::MountFrom,
    Verb::MountInto,
];
const SHOWN: [(Who, Show); 12] = [
    (Who::Nobody, Show::Nothing),
    (Who::Stranger, Show::Token(Scope::Pull)),
    (Who::Reader, Show::Token(Scope::Pull)),
    (Who::Nobody, Show::Token(Scope::Pull)),
    (Who::Friend, Show::Token(Scope::Pull)),
    (Who::Nobody, Show::Token(Scope::Push)),
    (Who::Stranger, Show::Token(Scope::Push)),
    (Who::Reader, Show::Token(Scope::Push)),
    (Who::Friend, Show::Token(Scope::Push)),
    (Who::Stranger, Show::Basic),
    (Who::Reader, Show::Basic),
    (Who::Friend, Show::Basic),
];
/// Besides, while upstream is away.
const LATE: [(Who, Show); 5] = [
    (Who::Nobody, Show::Late(Scope::Pull)),
    (Who::Stranger, Show::Late(Scope::Pull)),
    (Who::Reader, Show::Late(Scope::Pull)),
    (Who::Friend, Show::Late(Scope::Pull)),
    (Who::Friend, Show::Late(Scope::Push)),
];

/// Of both, where the others would be the same again.
const SOME: [(Who, Show); 8] = [
    (Who::Nobody, Show::Nothing),
    (Who::Nobody, Show::Token(Scope::Pull)),
    (Who::Stranger, Show::Token(Scope::Pull)),
    (Who::Reader, Show::Token(Scope::Pull)),
    (Who::Reader, Show::Basic),
    (Who::Friend, Show::Token(Scope::Pull)),
    (Who::Friend, Show::Token(Scope::Push)),
    (Who::Friend, Show::Late(Scope::Pull)),
];

// === the model ===

impl Model {
    /// What is right.
    fn expected(self, state: State, who: Who, show: Show, repo: Repo, verb: Verb) -> Class {
        // A token is for what it was asked for, whoever shows it.
        if verb.writes() && show.scope() == Some(Scope::Pull) {
            return Class::Challenged;
        }
        if self.credentials == Credentials::Own {
            return Self::expected_of_own(state, who, repo, verb);
        }
        // "client": always challenged.
        if self.credentials == Credentials::Client && who == Who::Nobody {
            return Class::Challenged;
        }
        if state.is_away() {
            self.expected_away(state, who, show, repo, verb)
        } else {
            self.said(state, who, repo, verb)
        }
    }

    /// Upstream's own word, which decides whenever it can be had and is not remembered: what is stored changes nothing.
    /// (What is remembered never says anything else here: rights end by a time that is over.)
    fn said(self, state: State, who: Who, repo: Repo, verb: Verb) -> Class {
        let gives = match verb {
            // Into a repository of the caller's own; where upstream does not give the blob, the bytes have to be sent
            // (distribution-spec, "Mounting a blob").
            Verb::MountFrom if who == Who::Nobody => false,
            Verb::MountFrom if state.may_pull(who, repo) && repo != Repo::Missing => true,
            Verb::MountFrom => return Class::Upload,
            Verb::MountInto => state.may_push(who, repo),
            _ => state.may_pull(who, repo),
        };
        match verb {
            // Of a subject that there is not, the list is empty (distribution-spec, "Listing Referrers"); a 404 means that
            // there is no such API, and no such tag in its place.
            Verb::Referrers if gives && repo == Repo::Missing => Class::NoReferrers,
            Verb::Referrers if !gives && self.refusal == 404 => Class::NoReferrers,
            _ if gives && repo == Repo::Missing => Class::NotFound,
            _ if gives => Class::Given,
            _ => self.refused(who),
        }
    }

    /// 401 and 403 are no, and 404 is no for this. Whom a credential might help is challenged.
    fn refused(self, who: Who) -> Class {
        match self.refusal {
            404 => Class::NotFound,
            403 if who != Who::Nobody => Class::Denied,
            _ => Class::Challenged,
        }
    }

    /// While upstream cannot be asked, its last word stands: on what is public for good, on a caller's right as long as it
    /// is remembered. Nothing is pushed.
    fn expected_away(self, state: State, who: Who, show: Show, repo: Repo, verb: Verb) -> Class {
        if verb.writes() {
            return Class::Away;
        }
        let last = self.last_word(state, repo);
        let public = last == Some(true);
        let may_have = match verb {
            // Lists are kept as fetched anonymously.
            Verb::Tags | Verb::Referrers => public,
            // Who may be about to push is told by upstream alone what is there.
            Verb::Head if show.scope() == Some(Scope::Push) => false,
            _ => public || self.is_remembered(state, who, repo),
        };
        let held = state != State::ColdAway && repo != Repo::Missing;
        match last {
            _ if held && may_have => Class::Given,
            // It is private, and a credential might help: that says nothing about what is there.
            Some(false) if who == Who::Nobody => Class::Challenged,
            _ => Class::Away,
        }
    }

    /// What upstream said last when it was asked without a credential: public or private; none: it was not, or it said
    /// nothing about that.
    fn last_word(self, state: State, repo: Repo) -> Option<bool> {
        if self.credentials == Credentials::Client {
            return None;
        }
        match (state, repo) {
            (State::ColdAway, _) => None,
            // Only before it was made private.
            (State::HotAway, Repo::Turned) => Some(true),
            (State::HotAway, _) => None,
            (_, Repo::Public) => Some(true),
            // A 404 is a word about a thing, not about the repository.
            _ if self.refusal == 404 => None,
            // It is written down, but after a start nobody has a right, so a challenge would only tell that something of
            // the repository is kept.
            (State::RestartedAway, _) => None,
            _ => Some(false),
        }
    }

    /// Whether upstream's yes to a caller's credential counts.
    fn is_remembered(self, state: State, who: Who, repo: Repo) -> bool {
        let asked = match state {
            // It is in memory, and the memory is gone.
            State::ColdAway | State::RestartedAway => false,
            State::HotAway => who == Who::Friend,
            State::LongAway => self.prolongs,
            _ => true,
        };
        asked && who != Who::Nobody && repo != Repo::Missing && state.may_pull(who, repo)
    }

    /// ocistern's own account pulls, the listener's htpasswd decides who may, and nothing is pushed.
    fn expected_of_own(state: State, who: Who, repo: Repo, verb: Verb) -> Class {
        let held = !matches!(state, State::Cold | State::ColdAway) && repo != Repo::Missing;
        match (verb, repo) {
            _ if verb.writes() => Class::Off,
            _ if matches!(who, Who::Nobody | Who::Stranger) => Class::Challenged,
            // An empty list is a list, and kept.
            (Verb::Referrers, Repo::Missing) if !matches!(state, State::ColdAway | State::HotAway) => {
                Class::NoReferrers
            }
            _ if state.is_away() && held => Class::Given,
            _ if state.is_away() => Class::Away,
            (_, Repo::Missing) => Class::NotFound,
            _ => Class::Given,
        }
    }
}

impl State {
    fn is_away(self) -> bool {
        !matches!(self, Self::Cold | Self::Hot | Self::Stale | Self::Revoked)
    }

    fn may_pull(self, who: Who, repo: Repo) -> bool {
        let revoked = matches!(self, Self::Revoked | Self::RevokedAway);
        match (who, repo) {
            (_, Repo::Public) => true,
            (Who::Friend, Repo::Private) => !revoked,
            (Who::Friend, _) => true,
            (Who::Reader, Repo::Readable | Repo::Turned | Repo::Missing) => !revoked,
            _ => false,
        }
    }

    fn may_push(self, who: Who, repo: Repo) -> bool {
        who == Who::Friend && repo != Repo::Missing && self.may_pull(who, repo)
    }
}

impl Verb {
    fn writes(self) -> bool {
        matches!(self, Self::MountFrom | Self::MountInto)
    }
}

impl Show {
    fn scope(self) -> Option<Scope> {
        match self {
            Self::Token(scope) | Self::Late(scope) => Some(scope),
            Self::Nothing | Self::Basic => None,
        }
    }
}

// === the stage ===

/// A registry and an ocistern in front of it.
struct Stage {
    model: Model,
    upstream: Arc<Upstream>,
    cistern: Cistern,
    images: HashMap<String, Image>,
    tokens: HashMap<(Who, Show, String), String>,
    /// A blob that everybody may mount, in `commons`.
    common: Bytes,
    disagreements: Vec<Disagreement>,
    _secrets: TempDir,
}

struct Disagreement {
    cell: String,
    expected: Class,
    came: Class,
}

impl Stage {
    async fn new(model: Model, tags: &str) -> Self {
        Self::before(Arc::new(Upstream::start().await), model, tags).await
    }

    async fn before(upstream: Arc<Upstream>, model: Model, tags: &str) -> Self {
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
    fn add(&mut self, repo: Repo, name: &str) {
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
                    accounts.allow(who.name(), name, if pushes { "pull,push" } else { "pull" });
                }
            }
            accounts.allow("robot", name, "pull");
            if matches!(repo, Repo::Public | Repo::Turned) {
                accounts.public.insert(name.to_owned());
            }
        });
    }

    fn put(&self, name: &str, image: &Image) {
        let referrer = artifact("application/x.signature", &image.digest, 0);
        self.upstream.image(name, "v1", image);
        self.upstream.manifest(name, referrer.media_type, &referrer.manifest);
    }

    fn make_private(&self, name: &str) {
        self.upstream.registry(|registry| registry.accounts.public.remove(name));
    }

    /// The repositories of all states but the cold one, each once.
    fn add_all(&mut self) {
        for repo in REPOS {
            self.add(repo, repo.name());
        }
    }

    /// Everything of a repository, asked for by somebody who may.
    async fn pull(&mut self, who: Who, show: Show, repo: Repo) {
        for verb in VERBS.into_iter().filter(|verb| !verb.writes()) {
            let ask = self.request(who, show, repo.name(), verb).await;
            let got = self.cistern.send(ask).await;
            assert_eq!(self.judge(&got, repo.name(), verb), Class::Given, "{who:?} {repo:?} {verb:?}");
        }
    }

    /// What `State::Hot` says.
    async fn heat(&mut self) {
        self.add_all();
        self.pull_all().await;
        self.make_private(Repo::Turned.name());
        pass(PUBLIC_FOR + A_MOMENT).await;
    }

    /// The friend pulls everything, and everybody what is public.
    async fn pull_all(&mut self) {
        let everybody = self.model.credentials == Credentials::Auto;
        if everybody {
            self.pull(Who::Nobody, Show::Nothing, Repo::Turned).await;
        }
        for repo in [Repo::Public, Repo::Private, Repo::Readable, Repo::Turned] {
            self.pull(Who::Friend, Show::Token(Scope::Pull), repo).await;
        }
        self.cistern.settle().await;
    }

    fn revoke(&self) {
        self.upstream.registry(|registry| {
            for repo in REPOS {
                let rights = registry.accounts.rights.get_mut(repo.name());
                let Some(rights) = rights else { continue };
                rights.retain(|user, _| {
                    let who = [Who::Friend, Who::Reader].into_iter().find(|who| who.name() == user);
                    who.is_none_or(|who| State::Revoked.may_pull(who, repo))
                });
            }
        });
    }

    /// Ends upstream, and lets ocistern notice.
    async fn go_away(&self) {
        self.upstream.down();
        let warp = clock::warp();
        for _ in 0..6 {
            let credential = (Who::Friend.name(), Who::Friend.password());
            let ask = Ask::get("/v2/nothing/tags/list").with("host", HOST).basic(credential.0, &credential.1);
            assert!(self.cistern.send(ask).await.status >= 500);
        }
        drop(warp);
        tokio::time::resume();
        pass(A_MOMENT).await;
    }

    /// The request of a cell.
    async fn request(&mut self, who: Who, show: Show, name: &str, verb: Verb) -> Ask {
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
        };
        let ask = ask.with("host", HOST);
        match show {
            Show::Nothing => ask,
            Show::Basic => ask.basic(who.name(), &who.password()),
            Show::Token(_) | Show::Late(_) => ask.bearer(&self.token(who, show, name).await),
        }
    }

    /// A token for this repository, and what mounting needs besides; got once. One for all of [`REPOS`] serves them all.
    async fn token(&mut self, who: Who, show: Show, name: &str) -> String {
        let shared = REPOS.iter().any(|repo| repo.name() == name);
        let key = (who, show, if shared { String::new() } else { name.to_owned() });
        if let Some(token) = self.tokens.get(&key) {
            return token.clone();
        }
        let actions = if show.scope() == Some(Scope::Push) { "pull,push" } else { "pull" };
        let names = if shared { REPOS.map(Repo::name).to_vec() } else { vec![name] };
        let mut target =
            format!("/oauth2/token?service=x&scope=repository:commons:pull&scope=repository:{}:{actions}", who.home());
        for name in names {
            target += &format!("&scope=repository:{name}:{actions}");
        }
        let ask = Ask::get(target).with("host", HOST);
        let ask = if who == Who::Nobody { ask } else { ask.basic(who.name(), &who.password()) };
        let got = self.cistern.send(ask).await;
        assert_eq!(got.status, 200, "{who:?} {show:?}: {}", got.summary());
        let token = got.json()["token"].as_str().unwrap().to_owned();
        self.tokens.insert(key, token.clone());
        token
    }

    /// The class of what came.
    fn judge(&self, got: &Got, name: &str, verb: Verb) -> Class {
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
        };
        let success = match verb {
            Verb::Range => 206,
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
    async fn table(&mut self, state: State) {
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
        for some in cells.chunks(if warp.is_some() { 150 } else { 1 }) {
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
    fn setup(self, upstream: &Upstream, tags: &str, secrets: &TempDir) -> common::cistern::Setup {
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
                keys +=
                    &format!("credentials = {{ from = \"static\", username = \"robot\", password_file = '{file}' }}\n");
                keys += "push = \"off\"\n";
                listener = format!("htpasswd = '{}'", users.display());
            }
        }
        Cistern::setup().upstream("up", upstream, &keys).listener(&listener)
    }
}

impl Who {
    fn name(self) -> &'static str {
        match self {
            Self::Nobody => "nobody",
            Self::Friend => "friend",
            Self::Reader => "reader",
            Self::Stranger => "stranger",
        }
    }

    fn password(self) -> String {
        format!("CANARY-{}", self.name())
    }

    /// A repository of its own.
    fn home(self) -> String {
        format!("home-{}", self.name())
    }
}

impl Repo {
    fn name(self) -> &'static str {
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
async fn pass(time: Duration) {
    tokio::time::pause();
    tokio::time::advance(time).await;
    tokio::time::resume();
}

// === the tables ===

async fn tables(model: Model) {
    let mut stages = Vec::new();

    let mut stage = Stage::new(model, "1h").await;
    stage.table(State::Cold).await;
    stages.push(stage);

    let mut stage = Stage::new(model, "1h").await;
    stage.add_all();
    stage.make_private(Repo::Turned.name());
    stage.tokens_now().await;
    stage.go_away().await;
    stage.table(State::ColdAway).await;
    stages.push(stage);

    let mut stage = Stage::new(model, "1h").await;
    stage.heat().await;
    stage.table(State::Hot).await;
    stage.go_away().await;
    stage.table(State::AskedAway).await;
    pass(ACCESS_TTL + A_MOMENT).await;
    stage.table(State::LongAway).await;
    if model.credentials != Credentials::Own {
        stage.revoke();
        stage.upstream.up();
        pass(ACCESS_TTL + A_MOMENT).await;
        stage.table(State::Revoked).await;
        stage.go_away().await;
        stage.table(State::RevokedAway).await;
    }
    stage.cistern.restart().await;
    stage.go_away().await;
    stage.table(State::RestartedAway).await;
    stages.push(stage);

    let mut stage = Stage::new(model, "0s").await;
    stage.heat().await;
    stage.tokens_now().await;
    stage.go_away().await;
    stage.table(State::HotAway).await;
    stages.push(stage);

    let mut stage = Stage::new(model, "0s").await;
    stage.heat().await;
    for repo in REPOS.into_iter().filter(|repo| *repo != Repo::Missing) {
        let moved = image(1000 + repo as u64);
        stage.put(repo.name(), &moved);
        stage.images.insert(repo.name().to_owned(), moved);
    }
    stage.table(State::Stale).await;
    stages.push(stage);

    let all: Vec<String> = stages.iter().flat_map(|stage| &stage.disagreements).map(ToString::to_string).collect();
    assert!(all.is_empty(), "{model:?}: {} disagreements\n{}\n", all.len(), all.join("\n"));
}

impl Stage {
    /// Gets the tokens that are shown when upstream is away.
    async fn tokens_now(&mut self) {
        for (who, show) in SHOWN {
            let refused = self.model.credentials == Credentials::Own && who == Who::Stranger;
            if show.scope().is_some() && !refused {
                self.token(who, show, Repo::Public.name()).await;
            }
        }
    }
}

const AUTO: Model = Model { credentials: Credentials::Auto, refusal: 401, prolongs: false };

#[tokio::test]
async fn by_default_where_upstream_refuses_by_401() {
    tables(AUTO).await;
}

#[tokio::test]
async fn by_default_where_upstream_refuses_by_403_and_rights_are_prolonged() {
    tables(Model { refusal: 403, prolongs: true, ..AUTO }).await;
}

#[tokio::test]
async fn by_default_where_upstream_hides_by_404_and_rights_are_prolonged() {
    tables(Model { refusal: 404, prolongs: true, ..AUTO }).await;
}

#[tokio::test]
async fn where_a_credential_is_always_wanted() {
    tables(Model { credentials: Credentials::Client, refusal: 403, ..AUTO }).await;
}

#[tokio::test]
async fn by_an_account_of_ocisterns_own() {
    tables(Model { credentials: Credentials::Own, ..AUTO }).await;
}

// === what a refusal tells ===

/// Who must not learn anything, by what they show.
const CURIOUS: [(Who, Show); 6] = [
    (Who::Nobody, Show::Nothing),
    (Who::Nobody, Show::Token(Scope::Pull)),
    (Who::Nobody, Show::Token(Scope::Push)),
    (Who::Stranger, Show::Token(Scope::Pull)),
    (Who::Stranger, Show::Token(Scope::Push)),
    (Who::Stranger, Show::Basic),
];
/// What they may not read.
const CLOSED: [Repo; 4] = [Repo::Private, Repo::Readable, Repo::Turned, Repo::Missing];

/// Two caches of one registry; nothing was ever pulled through the first.
struct Pair([Stage; 2]);

/// What there is to see of an answer.
fn seen(got: &Got) -> String {
    let mut headers = got.headers.clone();
    for name in ["date", "x-request-id"] {
        headers.remove(name);
    }
    // Of an upload that began, these are its name.
    for name in ["location", "docker-upload-uuid"] {
        if got.status == 202 && headers.contains_key(name) {
            headers.insert(name, http::HeaderValue::from_static("the upload's"));
        }
    }
    let body = String::from_utf8_lossy(&got.body).into_owned();
    // Whether upstream was tried for this answer, or is left alone for some seconds, depends on when it was tried last.
    if body.contains("cannot reach upstream") || body.contains("cannot connect") || body.contains("not asked") {
        return "upstream cannot be reached".to_owned();
    }
    if got.body.is_empty() && matches!(got.status, 502 | 503) {
        headers.remove("retry-after");
        headers.remove("content-length");
        let fields: Vec<_> = headers.iter().map(|(name, value)| format!("{name}: {value:?}")).collect();
        return format!("5xx {fields:?}");
    }
    let mut fields: Vec<_> = headers.iter().map(|(name, value)| format!("{name}: {value:?}")).collect();
    fields.sort();
    format!("{} {fields:?} {body}", got.status)
}

impl Pair {
    async fn new(model: Model) -> Self {
        let mut cold = Stage::new(model, "1h").await;
        let mut hot = Stage::before(Arc::clone(&cold.upstream), model, "1h").await;
        for stage in [&mut cold, &mut hot] {
            stage.add_all();
            // An upstream that never answered a HEAD is asked by GET whether it means its 403 (ADR 0011).
            stage.add(Repo::Public, "other");
            let ask = stage.request(Who::Friend, Show::Basic, "other", Verb::Head).await;
            assert_eq!(stage.cistern.send(ask).await.status, 200);
        }
        hot.pull_all().await;
        cold.make_private(Repo::Turned.name());
        for stage in [&mut cold, &mut hot] {
            stage.tokens_now().await;
        }
        pass(PUBLIC_FOR + A_MOMENT).await;
        Self([cold, hot])
    }

    /// Asks both for everything, and tells where they differ.
    async fn compare(&mut self, when: &str, repos: &[Repo]) -> Vec<String> {
        let mut differ = Vec::new();
        for (who, show) in CURIOUS {
            for repo in repos {
                for verb in VERBS {
                    let mut both = Vec::new();
                    for stage in &mut self.0 {
                        let ask = stage.request(who, show, repo.name(), verb).await;
                        let got = stage.cistern.send(ask).await;
                        assert!(
                            stage.judge(&got, repo.name(), verb) != Class::Given,
                            "{when}: {who:?} {repo:?} {verb:?}"
                        );
                        both.push(seen(&got));
                    }
                    if both[0] != both[1] {
                        let cell = format!("{when} | {who:?} {show:?} | {repo:?} | {verb:?}");
                        differ.push(format!("{cell}\n  cold {}\n  hot  {}", both[0], both[1]));
                    }
                }
            }
        }
        differ
    }
}

async fn nothing_is_told(model: Model) {
    let mut differ = Vec::new();
    let open = if model.credentials == Credentials::Client { &[][..] } else { &[Repo::Public][..] };

    // Each kind of being away, before anybody but the friend has asked.
    for fails in [false, true] {
        let mut pair = Pair::new(model).await;
        if fails {
            pair.0[0].upstream.script("*", "*", .., acts::fail(500, "UNKNOWN"));
        } else {
            pair.0[0].upstream.down();
        }
        let warp = clock::warp();
        let repos = [&[Repo::Private, Repo::Readable, Repo::Missing], open].concat();
        differ.extend(pair.compare("away at once", &repos).await);
        drop(warp);
        tokio::time::resume();
    }

    let mut pair = Pair::new(model).await;
    differ.extend(pair.compare("there", &CLOSED).await);
    differ.extend(pair.compare("there, again", &CLOSED).await);
    pair.0[0].upstream.script("*", "*", .., acts::fail(500, "UNKNOWN"));
    pass(A_MOMENT).await;
    let warp = clock::warp();
    differ.extend(pair.compare("away", &CLOSED).await);
    drop(warp);
    tokio::time::resume();
    for stage in &mut pair.0 {
        stage.cistern.restart().await;
    }
    let warp = clock::warp();
    differ.extend(pair.compare("away, after a restart", &CLOSED).await);
    drop(warp);
    tokio::time::resume();
    assert!(differ.is_empty(), "{model:?}: {} differ\n{}\n", differ.len(), differ.join("\n"));
}

#[tokio::test]
async fn a_401_does_not_tell_what_is_stored() {
    nothing_is_told(AUTO).await;
}

#[tokio::test]
async fn a_403_does_not_tell_what_is_stored() {
    nothing_is_told(Model { refusal: 403, ..AUTO }).await;
}

#[tokio::test]
async fn a_404_does_not_tell_what_is_stored() {
    nothing_is_told(Model { refusal: 404, ..AUTO }).await;
}

#[tokio::test]
async fn nor_where_a_credential_is_always_wanted() {
    nothing_is_told(Model { credentials: Credentials::Client, ..AUTO }).await;
}
