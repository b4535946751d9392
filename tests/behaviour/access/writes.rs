//! The part of the matrix that changes what it asks about: each cell has a repository of its own, brought into the state.

use super::model::{
    A_MOMENT, ACCESS_TTL, Class, Credentials, Model, PUBLIC_FOR, REPOS, Repo, Scope, Show, State, Verb, WRITERS,
    WRITES, Who,
};
use super::stage::{Disagreement, Stage, pass};
use crate::common::content::image;

/// A cell.
struct Cell {
    who: Who,
    show: Show,
    repo: Repo,
    verb: Verb,
    /// Its repository.
    name: String,
}

impl Stage {
    /// Asks for every write in this state, and notes where the model disagrees; `self` is new.
    pub(crate) async fn writes(&mut self, state: State) {
        let cells = self.cells(state).await;
        // While there is somebody to ask.
        for cell in &cells {
            self.request(cell.who, cell.show, &cell.name, cell.verb).await;
        }
        match state {
            State::HotAway => self.go_away().await,
            State::Revoked => {
                for cell in &cells {
                    self.revoke_in(cell.repo, &cell.name);
                }
                pass(ACCESS_TTL + A_MOMENT).await;
            }
            _ => {}
        }
        for Cell { who, show, repo, verb, name } in cells {
            let ask = self.request(who, show, &name, verb).await;
            let got = self.cistern.send(ask).await;
            let expected = self.model.expected(state, who, show, repo, verb);
            let came = match self.judge(&got, &name, verb) {
                Class::Given if !self.is_done(verb, &name) => Class::Wrong("acknowledged, and not done".to_owned()),
                class if class != Class::Given && self.is_done(verb, &name) && repo != Repo::Missing => {
                    Class::Wrong(format!("{class:?}, and done"))
                }
                class => class,
            };
            if came != expected {
                let cell = format!("{state:?} | {who:?} {show:?} | {repo:?} | {verb:?}");
                self.disagreements.push(Disagreement { cell, expected, came });
            }
        }
    }

    /// The cells, and their repositories as the state wants them.
    async fn cells(&mut self, state: State) -> Vec<Cell> {
        let mut cells = Vec::new();
        for (number, (who, show)) in WRITERS.into_iter().enumerate() {
            // The token endpoint itself turns away who is no user of the listener's.
            if self.model.credentials == Credentials::Own && who == Who::Stranger && show != Show::Basic {
                continue;
            }
            for repo in REPOS {
                for verb in WRITES {
                    let name = format!("{}-{number}-{verb:?}", repo.name()).to_lowercase();
                    self.add(repo, &name);
                    cells.push(Cell { who, show, repo, verb, name });
                }
            }
        }
        for cell in &cells {
            if state != State::Cold && cell.repo != Repo::Missing {
                self.heat_for_writes(cell).await;
            }
            if cell.repo == Repo::Turned {
                self.make_private(&cell.name);
            }
        }
        self.cistern.settle().await;
        if state != State::Cold && state != State::HotAway {
            pass(PUBLIC_FOR + A_MOMENT).await;
        }
        if state == State::Stale {
            for (seed, cell) in (5000..).zip(cells.iter().filter(|cell| cell.repo != Repo::Missing)) {
                let moved = image(seed);
                self.put(&cell.name, &moved);
                self.images.insert(cell.name.clone(), moved);
            }
        }
        cells
    }

    /// The friend pulls it, and everybody what is public before that.
    async fn heat_for_writes(&mut self, cell: &Cell) {
        let mut pullers = vec![(Who::Friend, Show::Token(Scope::Pull))];
        if self.model.credentials == Credentials::Auto && cell.repo == Repo::Turned {
            pullers.insert(0, (Who::Nobody, Show::Nothing));
        }
        for (who, show) in pullers {
            for verb in [Verb::ByTag, Verb::ByDigest, Verb::Tags] {
                let ask = self.request(who, show, &cell.name, verb).await;
                let got = self.cistern.send(ask).await;
                assert_eq!(self.judge(&got, &cell.name, verb), Class::Given, "{} {verb:?}", cell.name);
            }
        }
    }

    /// Whether upstream has it as the write wants it.
    fn is_done(&self, verb: Verb, name: &str) -> bool {
        let digest = self.images[name].digest;
        self.upstream.registry(|registry| {
            let Some(repo) = registry.repos.get(name) else { return false };
            match verb {
                Verb::Put => repo.tags.get("other") == Some(&digest),
                _ => !repo.manifests.contains_key(&digest),
            }
        })
    }
}

/// All states, each on a stage of its own.
pub(crate) async fn write_tables(model: Model, all: &[State]) -> Vec<Stage> {
    let mut stages = Vec::new();
    for state in all {
        let mut stage = Stage::new(model, if *state == State::Stale { "0s" } else { "1h" }).await;
        stage.writes(*state).await;
        stages.push(stage);
    }
    stages
}
