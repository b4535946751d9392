//! The access matrix: every caller × repository × request × state of the cache, against a written model of the rules.
//!
//! All disagreements of a table are printed at once. A second part compares whole answers: nobody who may not read a
//! thing is told, by anything in the answer, whether it is in the store.

mod model;
mod stage;
mod writes;

use std::sync::Arc;

use self::model::{
    A_MOMENT, ACCESS_TTL, Class, Credentials, Model, PUBLIC_FOR, REPOS, Repo, SHOWN, Scope, Show, State, VERBS, Verb,
    WRITES_IN, Who,
};
use self::stage::{Stage, pass};
use self::writes::write_tables;
use crate::common::content::{image, sha256};
use crate::common::upstream::{Gate, acts};
use crate::common::{Ask, Got, clock};
use tokio::task::JoinSet;

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

    stages.extend(write_tables(model, &WRITES_IN).await);

    let all: Vec<String> = stages.iter().flat_map(|stage| &stage.disagreements).map(ToString::to_string).collect();
    assert!(all.is_empty(), "{model:?}: {} disagreements\n{}\n", all.len(), all.join("\n"));
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
    let mut without = vec!["date", "x-request-id"];
    // Of an upload that began, these are its name.
    if got.status == 202 {
        without.extend(["location", "docker-upload-uuid"]);
    }
    for name in without {
        headers.remove(name);
    }
    let mut fields: Vec<_> = headers.iter().map(|(name, value)| format!("{name}: {value:?}")).collect();
    fields.sort();
    format!("{} {fields:?} {}", got.status, String::from_utf8_lossy(&got.body))
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

    /// Lets both give upstream up, and find out at this moment whether it is back: whoever asks meanwhile is told the same,
    /// however often either has tried it. That lasts as long as nobody answers those who find out.
    async fn give_up(&self) -> JoinSet<Got> {
        for stage in &self.0 {
            stage.go_away().await;
        }
        let upstream = &self.0[0].upstream;
        let gate = Gate::new();
        upstream.script("*", "*", .., acts::hold_head(&gate));
        upstream.up();
        let mut probes = JoinSet::new();
        for (number, stage) in (1..).zip(&self.0) {
            let client = stage.cistern.client();
            probes.spawn(async move { client.send(Stage::probe()).await });
            gate.reached(number).await;
        }
        probes
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
    let repos = [&[Repo::Private, Repo::Readable, Repo::Missing], open].concat();
    let mut pair = Pair::new(model).await;
    let probes = pair.give_up().await;
    differ.extend(pair.compare("unreachable at once", &repos).await);
    drop(probes);
    let mut pair = Pair::new(model).await;
    pair.0[0].upstream.script("*", "*", .., acts::fail(500, "UNKNOWN"));
    let warp = clock::warp();
    differ.extend(pair.compare("failing at once", &repos).await);
    drop(warp);
    tokio::time::resume();

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

/// By its digest, under a name that everybody may read and that does not have it.
#[tokio::test]
async fn an_open_name_does_not_tell_what_is_stored_under_another_one() {
    for refusal in [401, 403, 404] {
        let mut pair = Pair::new(Model { refusal, ..AUTO }).await;
        let (open, private) = (Repo::Public.name(), pair.0[0].images[Repo::Private.name()].clone());
        let (manifest, layer) = (private.digest, sha256(&private.layers[0]));
        for stage in &mut pair.0 {
            // Upstream says to everybody that the name is theirs to read.
            let ask = stage.request(Who::Nobody, Show::Nothing, open, Verb::Head).await;
            assert_eq!(stage.cistern.send(ask).await.status, 200);
        }
        let mut differ = Vec::new();
        // Also when it has been told that it is not there, and when that is forgotten.
        for round in 0..2 {
            for (who, show) in SHOWN {
                for path in [format!("manifests/{manifest}"), format!("blobs/{manifest}"), format!("blobs/{layer}")] {
                    let target = format!("/v2/{open}/{path}");
                    for ask in [Ask::get(&*target), Ask::head(&*target), Ask::get(&*target).with("range", "bytes=1-2")]
                    {
                        let mut both = Vec::new();
                        for stage in &mut pair.0 {
                            let ask = stage.shown(ask.clone(), who, show, open).await;
                            both.push(seen(&stage.cistern.send(ask).await));
                        }
                        assert!(both[0].starts_with("404"), "{who:?} {show:?} {path}: {}", both[0]);
                        if both[0] != both[1] {
                            differ.push(format!("{who:?} {show:?} | {ask:?}\n  cold {}\n  hot  {}", both[0], both[1]));
                        }
                    }
                }
            }
            if round == 0 {
                pass(A_MOMENT).await;
            }
        }
        assert!(differ.is_empty(), "{refusal}: {} differ\n{}\n", differ.len(), differ.join("\n"));
    }
}
