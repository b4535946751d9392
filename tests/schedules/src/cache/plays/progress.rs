//! Progress: readers of a growing file, whatever ends it.

use std::fs::File;
use std::ops::Range;
use std::sync::{Arc, LazyLock};

use bytes::Bytes;
use shuttle::rand::{Rng as _, thread_rng};

use super::super::CacheError;
use super::super::bypass::Rest;
use super::super::demand::Demand;
use super::super::progress::{Head, Reporter, Watcher, channel};
use super::super::view::{HELD_BACK, Readable, View};
use super::{Met, within};
use crate::steps;
use crate::store::{Disk, Placed};

/// No reader reads it: what is there says the [`Disk`].
pub(super) static NO_FILE: LazyLock<Arc<File>> = LazyLock::new(|| Arc::new(File::open("/dev/null").expect("a file")));

const LENGTH: u64 = 100_001;

/// How a writer ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// All is there and right.
    Verified,
    /// All is there, and wrong.
    Wrong,
    /// The store takes no more, somewhere.
    Cut,
    /// It is gone without a word.
    Vanished,
}

/// A reader.
#[derive(Debug, Clone)]
struct Reader {
    /// None: all of it.
    part: Option<Range<u64>>,
    /// Nothing of a part is given before the verdict.
    waits: bool,
    /// It comes after so many steps, and leaves after so many more.
    comes_after: u32,
    leaves_within: Option<u32>,
}

/// What a reader was given in the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Given {
    /// All that it wanted, to there.
    All(u64),
    /// What is before that, and what follows it from elsewhere.
    UpTo(u64),
    Error(u64),
}

impl Reader {
    fn drawn() -> Self {
        let mut random = thread_rng();
        let start = random.gen_range(0..LENGTH);
        let part = if random.gen_bool(0.3) { None } else { Some(start..random.gen_range(start..LENGTH) + 1) };
        let leaves_within = if random.gen_bool(0.3) { Some(random.gen_range(0..30)) } else { None };
        Self { part, waits: random.gen_bool(0.3), comes_after: random.gen_range(0..40), leaves_within }
    }

    /// Less than all of it.
    fn is_part(&self) -> bool {
        self.part.as_ref().is_some_and(|part| part.end - part.start < LENGTH)
    }

    async fn read(&self, mut watcher: Watcher, demand: &Arc<Demand>, disk: &Disk) -> Given {
        if watcher.head().await.is_err() {
            return Given::Error(0);
        }
        let mut view = View::of_fill(demand, self.waits).expect("nobody shuts it");
        view.narrow(self.part.as_ref(), Some(LENGTH));
        let (mut at, end) = self.part.clone().map_or((0, None), |part| (part.start, Some(part.end)));
        loop {
            match view.readable(&mut watcher, Some(LENGTH), (at, end)).await {
                Ok(Readable::To(to)) if to <= at => return Given::All(at),
                Ok(Readable::To(to)) => {
                    let to = thread_rng().gen_range(at + 1..=to);
                    assert!(disk.has(&(at..to)), "{at}..{to} is read before it is there");
                    at = to;
                    steps(thread_rng().gen_range(0..4)).await;
                }
                Ok(Readable::Rest(_)) => return Given::UpTo(at),
                Err(_) => return Given::Error(at),
            }
        }
    }

    fn judge(&self, ending: Ending, given: Given, cut: u64) {
        let end = self.part.as_ref().map_or(LENGTH, |part| part.end);
        if let Given::All(at) = given {
            assert_eq!(at, end, "{self:?} was told that it had all");
        }
        match (ending, given) {
            (Ending::Verified, Given::All(_)) => {}
            (Ending::Verified, given) => panic!("{self:?} was given {given:?} of what was whole and right"),
            (Ending::Wrong | Ending::Vanished, Given::UpTo(_)) => panic!("{self:?} was sent elsewhere"),
            (Ending::Wrong | Ending::Vanished, Given::Error(at)) => {
                assert!(self.is_part() || at <= LENGTH - HELD_BACK, "{self:?} was given up to {at}");
            }
            // A part is given out as it comes, and said to be unverified.
            (_, Given::All(_)) => {
                assert!(self.is_part() && !self.waits, "{self:?} was given all of what ended {ending:?}")
            }
            (Ending::Cut, Given::UpTo(at)) => {
                assert!(at >= cut.min(end) && at < end, "{self:?} was given {at}, and {cut} was there");
            }
            (Ending::Cut, Given::Error(_)) => {
                assert!(self.is_part() && self.waits, "{self:?} could have gone on elsewhere")
            }
        }
    }
}

/// A writer, and jobs of its own that tell of what has reached the file, and five readers. `met` counts those who were given
/// all of what did not become whole, or a part of what did.
pub fn play(ending: Ending, met: &Arc<Met>) {
    tokio::time::begin();
    let met = Arc::clone(met);
    shuttle::future::block_on(async move {
        let (reporter, watcher) = channel();
        let demand = Arc::new(Demand::default());
        let disk = Disk::new(LENGTH, u64::MAX, true);
        let mut readers = Vec::new();
        for reader in [(); 5].map(|()| Reader::drawn()) {
            let (watcher, demand, disk) = (watcher.clone(), Arc::clone(&demand), Arc::clone(&disk));
            readers.push(tokio::spawn(async move {
                steps(reader.comes_after).await;
                let given = within(reader.leaves_within, reader.read(watcher, &demand, &disk)).await;
                (reader, given)
            }));
        }
        drop(watcher);
        let cut = write(&reporter, &disk, ending).await;
        drop(reporter);
        for reader in readers {
            let (reader, given) = reader.await.expect("a reader");
            let Some(given) = given else { continue };
            reader.judge(ending, given, cut);
            if matches!(given, Given::All(_)) == (reader.is_part() || ending != Ending::Verified) {
                met.one();
            }
        }
        assert_eq!(demand.now().readers, 0, "all have left");
    });
}

/// Writes as far as the ending wants; where it was cut.
async fn write(reporter: &Reporter, disk: &Arc<Disk>, ending: Ending) -> u64 {
    steps(thread_rng().gen_range(0..5)).await;
    reporter.head(Head { file: Arc::clone(&NO_FILE), length: Some(LENGTH) });
    let mut pieces: Vec<Range<u64>> = (0..5).map(|n| n * LENGTH / 5..(n + 1) * LENGTH / 5).collect();
    for last in (1..pieces.len()).rev() {
        pieces.swap(last, thread_rng().gen_range(0..=last));
    }
    if matches!(ending, Ending::Cut | Ending::Vanished) {
        pieces.truncate(thread_rng().gen_range(0..pieces.len()));
    }
    let others = pieces.split_off(pieces.len() / 2);
    let jobs = [pieces, others].map(|mine| {
        let (growth, disk) = (reporter.growth(&Arc::default()), Arc::clone(disk));
        tokio::spawn(async move {
            for piece in mine {
                disk.put(&piece);
                steps(thread_rng().gen_range(0..4)).await;
                let bytes = Bytes::from(vec![0; usize::try_from(piece.end - piece.start).expect("a length")]);
                growth(&[Placed { at: piece.start, bytes }]);
            }
        })
    });
    // What is told after the end changes nothing. Of what is whole all has been told, else it would not be.
    if ending == Ending::Verified {
        for job in jobs {
            job.await.expect("a job");
        }
    } else {
        steps(thread_rng().gen_range(0..30)).await;
    }
    match ending {
        Ending::Verified => reporter.verified(LENGTH),
        Ending::Wrong => reporter.failed(CacheError::NoSpace),
        Ending::Cut => {
            let at = disk.present().end_of_run(0);
            reporter.cut(Rest(at));
            return at;
        }
        Ending::Vanished => {}
    }
    0
}
