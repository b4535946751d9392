//! The property that marks are for: what the store does not call suspect is what upstream has.
//!
//! A small upstream takes pushes and deletes, at any time between their beginning and their end or not at all; readers
//! ask it and keep the answers later, in any order; and now and then the process is killed.

use std::collections::{BTreeMap, BTreeSet};

use super::*;

/// An index that outlives the store.
pub(super) struct Kept(pub(super) Arc<MemoryIndex>);

struct Shared(Arc<MemoryIndex>);

impl Source for Kept {
    fn open(&self) -> Result<Box<dyn Index>, IndexError> {
        Ok(Box::new(Shared(self.0.clone())))
    }

    fn set_aside(&self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Index for Shared {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, IndexError> {
        self.0.get(key)
    }

    fn apply(&self, changes: &index::Changes) -> Result<(), IndexError> {
        self.0.apply(changes)
    }

    fn scan(&self, prefix: &[u8], after: Option<&[u8]>, limit: usize) -> Result<index::Pairs, IndexError> {
        self.0.scan(prefix, after, limit)
    }

    fn size_on_disk(&self) -> Result<u64, IndexError> {
        self.0.size_on_disk()
    }

    fn flush(&self) -> Result<(), IndexError> {
        self.0.flush()
    }
}

const NAMES: [&str; 3] = ["a", "B", "c"];

#[derive(Debug, Clone)]
enum Step {
    Ask(usize),
    AskLink(u8),
    /// The answer of that number is kept.
    Keep(usize),
    Push(usize, u8),
    Delete(u8),
    /// Upstream does the write of that number.
    Do(usize),
    /// Upstream answers it: acknowledged if it was done, else refused.
    Answer(usize),
    /// Nobody knows how it ended.
    Lose(usize),
    /// kill -9; the index is lost with it or not.
    Crash(bool),
}

fn step() -> impl Strategy<Value = Step> {
    let (t, n, i) = (0..NAMES.len(), 0..4_u8, 0..64_usize);
    prop_oneof![
        6 => t.clone().prop_map(Step::Ask),
        2 => n.clone().prop_map(Step::AskLink),
        8 => i.clone().prop_map(Step::Keep),
        3 => (t, n.clone()).prop_map(|(t, n)| Step::Push(t, n)),
        2 => n.prop_map(Step::Delete),
        5 => i.clone().prop_map(Step::Do),
        4 => i.clone().prop_map(Step::Answer),
        1 => i.prop_map(Step::Lose),
        1 => any::<bool>().prop_map(Step::Crash),
    ]
}

#[derive(Debug, Default)]
struct Upstream {
    tags: BTreeMap<usize, u8>,
    manifests: BTreeSet<u8>,
}

enum Said {
    Tag(usize, Option<u8>),
    Link(u8),
}

#[derive(Clone, Copy)]
enum Request {
    Push(usize, u8),
    Delete(u8),
}

struct Write {
    request: Request,
    done: bool,
    suspicion: Suspicion,
}

struct World {
    fixture: Fixture,
    index: Arc<MemoryIndex>,
    upstream: Upstream,
    said: Vec<(SystemTime, Said)>,
    writes: Vec<Write>,
    /// Manifests whose delete was acknowledged, and that were not pushed again.
    deleted: BTreeSet<u8>,
}

fn name() -> Names {
    ("docker.io".parse().unwrap(), "a/b".parse().unwrap())
}

fn tag(t: usize) -> Tag {
    NAMES[t].parse().unwrap()
}

fn record(n: u8) -> TagRecord {
    TagRecord { digest: sha256(&[n]), media_type: "m".into(), size: 1, etag: None }
}

impl World {
    async fn take(&mut self, step: Step) {
        let (up, repo) = name();
        let store = self.fixture.store.clone();
        match step {
            Step::Ask(t) => {
                let said = Said::Tag(t, self.upstream.tags.get(&t).copied());
                self.said.push((wall(), said));
            }
            Step::AskLink(n) if self.upstream.manifests.contains(&n) => {
                self.said.push((wall(), Said::Link(n)));
            }
            Step::Keep(i) if !self.said.is_empty() => {
                let (asked_at, said) = self.said.swap_remove(i % self.said.len());
                match said {
                    Said::Tag(t, Some(n)) => {
                        store.set_tag(&up, &repo, &tag(t), &record(n), asked_at).await.unwrap();
                    }
                    Said::Tag(t, None) => {
                        store.remove_tag(&up, &repo, &tag(t), asked_at).await.unwrap();
                    }
                    Said::Link(n) => {
                        store.set_link(&up, &repo, &sha256(&[n]), &link(Via::Client), asked_at).await.unwrap();
                    }
                }
            }
            Step::Push(t, n) => {
                let suspicion = store.suspect_tags(&up, &repo, &[tag(t)]).await.unwrap();
                self.writes.push(Write { request: Request::Push(t, n), done: false, suspicion });
            }
            Step::Delete(n) => {
                let suspicion = store.suspect_repository(&up, &repo).await.unwrap();
                self.writes.push(Write { request: Request::Delete(n), done: false, suspicion });
            }
            Step::Do(i) if !self.writes.is_empty() => {
                let at = i % self.writes.len();
                let write = &mut self.writes[at];
                if !std::mem::replace(&mut write.done, true) {
                    match write.request {
                        Request::Push(t, n) => {
                            self.upstream.tags.insert(t, n);
                            self.upstream.manifests.insert(n);
                            self.deleted.remove(&n);
                        }
                        Request::Delete(n) => {
                            self.upstream.tags.retain(|_, names| *names != n);
                            self.upstream.manifests.remove(&n);
                        }
                    }
                }
            }
            Step::Answer(i) if !self.writes.is_empty() => {
                let write = self.writes.swap_remove(i % self.writes.len());
                match write.request {
                    _ if !write.done => write.suspicion.withdraw().await.unwrap(),
                    Request::Push(t, n) => {
                        if let Some(known) = write.suspicion.end() {
                            store.set_tag(&up, &repo, &tag(t), &record(n), known).await.unwrap();
                        }
                    }
                    Request::Delete(n) => {
                        store.forget_manifest(&up, &repo, &sha256(&[n])).await.unwrap();
                        write.suspicion.withdraw().await.unwrap();
                        if !self.upstream.manifests.contains(&n) {
                            self.deleted.insert(n);
                        }
                    }
                }
            }
            Step::Lose(i) if !self.writes.is_empty() => {
                drop(self.writes.swap_remove(i % self.writes.len()));
            }
            Step::Crash(with_index) => {
                self.fixture.store.0.hints.settle();
                if with_index {
                    self.index = Arc::default();
                }
                let crashed = self.fixture.crashed(Kept(self.index.clone())).await;
                self.said.clear();
                self.writes.clear();
                self.fixture = crashed;
            }
            _ => {}
        }
    }

    async fn check(&self, after: &Step) {
        let (up, repo) = name();
        let store = &self.fixture.store;
        for (t, name) in NAMES.iter().enumerate() {
            let found = store.tag(&up, &repo, &tag(t)).await.unwrap();
            if let Some(found) = found
                && store.suspected_since(&up, &repo, &tag(t)).await.unwrap().is_none()
            {
                let is = self.upstream.tags.get(&t).map(|n| sha256(&[*n]));
                assert_eq!(Some(found.digest), is, "{name} after {after:?}");
            }
        }
        for n in &self.deleted {
            assert_eq!(store.link(&up, &repo, &sha256(&[*n])).await.unwrap(), None, "{n} after {after:?}");
        }
    }
}

async fn live(steps: Vec<Step>) {
    let index = Arc::new(MemoryIndex::default());
    let fixture = fixture(1 << 30).crashed(Kept(index.clone())).await;
    let upstream = Upstream { tags: [(0, 0), (1, 0), (2, 1)].into(), manifests: [0, 1].into() };
    let mut world = World { fixture, index, upstream, said: Vec::new(), writes: Vec::new(), deleted: BTreeSet::new() };
    for step in steps {
        world.take(step.clone()).await;
        world.check(&step).await;
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn what_is_not_suspect_is_what_upstream_has(steps in proptest::collection::vec(step(), 1..60)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(live(steps));
    }
}
