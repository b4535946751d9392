//! Unfinished downloads of the world: what a checkpoint promises, and that what maps claim is in their files.
//!
//! When a checkpoint has returned, the file and the map are synced and the map has its name, so a kill finds it. Of the names
//! the disk knows with the next sync of their directory, which is that of the group, in `fast` as in `strict`. From there on
//! a power cut finds this map or a later one, until it goes by right: for a blob that was published, for room, or by an error.

use std::ffi::OsString;

use super::*;

/// Blobs of so many bytes can be gone on with.
pub(super) const LEAST: u64 = 20_000;
/// The one content that has as many.
pub(super) const LONG: usize = 2;
/// What of it is written. What is there is put down after each but the last, of which only giving it up knows.
pub(in crate::store) const PARTS: [[Range<u64>; 3]; 2] =
    [[0..25_000, 40_000..50_000, 50_000..51_000], [30_000..45_000, 10_000..30_000, 69_000..70_000]];

/// What is there after each of these has come to it.
fn after_each(mut present: ByteRanges, parts: impl IntoIterator<Item = Range<u64>>) -> Vec<Value> {
    let add = |range| {
        present.insert(range);
        Value::Left((&present).into())
    };
    parts.into_iter().map(add).collect()
}

fn bytes(n: usize, range: &Range<u64>) -> Bytes {
    let [start, end] = [range.start, range.end].map(|at| usize::try_from(at).unwrap());
    Bytes::copy_from_slice(&known().contents[n].0[start..end])
}

/// Whether the blob is there after this, and nothing is left of it.
fn ends(op: Op) -> bool {
    matches!(op, Op::Publish(LONG, _) | Op::Spool(LONG) | Op::GoOn(LONG))
}

fn length() -> u64 {
    known().contents[LONG].0.len() as u64
}

// === impl World ===

impl World {
    /// What can be gone on with, by the files alone.
    pub(super) fn left(&self) -> Value {
        self.claimed(LONG, "by the files").map_or(Value::Nothing, |(_, present)| Value::Left(present))
    }

    /// The name of the file that a map names, if it is there, and what the map claims of it: all of that is there, and right,
    /// whatever was promised.
    fn claimed(&self, n: usize, when: &str) -> Option<(OsString, Vec<(u64, u64)>)> {
        let (content, digest) = &known().contents[n];
        let map = std::fs::read(self.root.path().join(layout::map(digest))).ok()?;
        let record: serde_json::Value = record::decode(&map).unwrap_or_else(|e| panic!("{when}: a map: {e}"));
        let file = record["file"].as_str().unwrap();
        let there = std::fs::read(self.root.path().join("fills").join(file)).ok()?;
        let present: Vec<(u64, u64)> = serde_json::from_value(record["present"].clone()).unwrap();
        // In `fast` a power cut may give a file back its old name, and then what was done to it is done to what is left.
        let is_damaged = self.damaged.contains(&n);
        for (start, end) in present.iter().filter(|_| !is_damaged) {
            let [from, to] = [start, end].map(|at| usize::try_from(*at).unwrap());
            assert!(
                there.get(from..to) == Some(&content[from..to]),
                "{when}: of {n} the map claims {start}..{end}\n{:?}",
                self.log
            );
        }
        Some((file.into(), present))
    }

    /// A map claims nothing that is not there, and right; its file may be gone. Returns the maps with their files.
    pub(super) fn check_maps(&self, when: &str) -> BTreeSet<OsString> {
        let mut known_names = BTreeSet::new();
        for n in 0..CONTENTS {
            if let Some((file, _)) = self.claimed(n, when) {
                known_names.extend([layout::map(&Self::digest(n)).file_name().unwrap().to_owned(), file]);
            }
        }
        known_names
    }

    /// Before a start after a crash: what is there must be possible, and then the start finds it. In the middle of a
    /// publication the map goes after the file has its name, which POSIX lets a power cut turn round.
    pub(super) fn narrow_left(&mut self, crash: Crash) {
        let (found, is_ending) = (self.left(), self.log.last().is_some_and(|op| ends(*op)));
        let is_gone = is_ending && found == Value::Nothing;
        let is_stored = self.look(Thing::Blob(LONG)) != Value::Nothing;
        let may_be_gone = matches!(crash, Crash::Cut(Order::Any, _)) || is_stored;
        let claim = self.claims.get_mut(&Thing::Partial).unwrap();
        assert!(
            claim.now.contains(&found) || is_gone && may_be_gone,
            "after {crash:?}: left is {found:?}, possible is {:?}\n{:?}",
            claim.now,
            self.log
        );
        claim.disk.insert(found.clone());
        claim.now = BTreeSet::from([found]);
        if is_stored {
            // A start removes what is left of a blob that is there.
            claim.disk.insert(Value::Nothing);
            claim.now.insert(Value::Nothing);
        }
        self.is_doubtful = false;
    }

    /// What the store would go on with is what is in the files.
    pub(super) fn check_left(&self, when: &str) {
        let taken = self.block(async |store| {
            let partial = store.take_up(&Self::digest(LONG)).await;
            partial.map_or(Value::Nothing, |partial| Value::Left(partial.present().into()))
        });
        assert_eq!(taken, self.left(), "{when}: what is taken up is what is there\n{:?}", self.log);
    }

    /// What may be left of a download by this.
    pub(super) fn widen_left(&mut self, op: Op) {
        let mut bases = self.claims[&Thing::Partial].now.clone();
        if self.is_doubtful {
            // Its removal may have failed, and is tried again: who comes meanwhile begins anew.
            bases.insert(Value::Nothing);
        }
        let anew = bases.contains(&Value::Nothing);
        let bases = bases.into_iter().map(|base| match base {
            Value::Left(present) => ByteRanges::try_from(present).unwrap(),
            _ => ByteRanges::default(),
        });
        let mut possible = Vec::new();
        match op {
            Op::Leave(LONG, set) => possible.extend(bases.flat_map(|base| after_each(base, PARTS[set].clone()))),
            Op::GoOn(LONG) => possible.extend(bases.flat_map(|base| {
                let gaps = base.gaps(0..length());
                after_each(base, gaps)
            })),
            // Given up, or ended by an error, after any of its chunks.
            Op::Publish(LONG, true) | Op::Abandon(LONG) if anew => {
                let chunks = (0..length()).step_by(CHUNK).map(|at| at..length().min(at + CHUNK as u64));
                possible.extend(after_each(ByteRanges::default(), chunks));
            }
            _ => {}
        }
        // What is collected is collected two hours later.
        if matches!(op, Op::Evict(_) | Op::Collect) || self.is_doubtful && matches!(op, Op::Tick | Op::Restart) {
            possible.push(Value::Nothing);
        }
        // A start removes what is left of a blob that is there.
        if op == Op::Restart && self.look(Thing::Blob(LONG)) != Value::Nothing {
            possible.push(Value::Nothing);
        }
        for value in possible {
            self.widen(Thing::Partial, value);
        }
    }

    /// It was done, or has failed. What is left of a blob goes when the blob is there, and not before.
    pub(super) fn widen_by_blob(&mut self, op: Op) {
        if ends(op) && self.look(Thing::Blob(LONG)) != Value::Nothing {
            self.widen(Thing::Partial, Value::Nothing);
        }
    }

    /// Something went wrong in this.
    pub(super) fn harm_left(&mut self, op: Op) {
        self.is_doubtful = true;
        // A fill that fails leaves nothing, and a start drops what it cannot look at.
        let may_end = matches!(op, Op::Leave(..) | Op::GoOn(_) | Op::Abandon(_) | Op::Restart);
        if may_end {
            self.widen(Thing::Partial, Value::Nothing);
        }
    }

    /// Nothing went wrong in this.
    pub(super) fn after_left(&mut self, op: Op) {
        if matches!(op, Op::Tick | Op::Restart) {
            self.is_doubtful = false;
            self.check_left(&format!("after {op:?}"));
        }
        if (ends(op) || op == Op::Collect) && !self.is_doubtful {
            assert_eq!(self.left(), Value::Nothing, "what is of no use any more goes: {op:?}\n{:?}", self.log);
        }
    }

    /// Goes on with what is left of a blob, or begins.
    async fn begin(store: &Store, n: usize) -> Result<BlobWriter, StoreError> {
        match store.take_up(&Self::digest(n)).await {
            Some(partial) => partial.resume().await,
            None => store.create(&Self::digest(n), Some(known().contents[n].0.len() as u64)).await,
        }
    }

    /// Goes on, to the end.
    pub(super) fn go_on(&self, n: usize) -> Result<(), StoreError> {
        self.block(async |store| {
            let writer = Self::begin(store, n).await?;
            for gap in writer.present().gaps(0..known().contents[n].0.len() as u64) {
                writer.write_at(gap.start, bytes(n, &gap)).await?;
                writer.checkpoint().await;
            }
            writer.finish().await.map(drop)
        })
    }

    /// Goes on, and gives it up. In between the disk is waited for: what was put down by then is promised.
    pub(super) fn leave(&mut self, set: usize) -> Result<(), StoreError> {
        let (fired, before) = (self.sim.fired(), self.left());
        let writer = self.block(async |store| Self::begin(store, LONG).await)?;
        let outcome = self.leave_parts(set, &writer, before, fired);
        // Also after an error: nothing of it is under way when this returns.
        self.block(async |_| writer.park().await);
        outcome
    }

    fn leave_parts(&mut self, set: usize, writer: &BlobWriter, before: Value, fired: u64) -> Result<(), StoreError> {
        let [first, second, last] = &PARTS[set];
        let synced = self.block(async |store| {
            for range in [first, second] {
                writer.write_at(range.start, bytes(LONG, range)).await?;
                writer.checkpoint().await;
            }
            store.blocking(|inner| Ok(inner.group.run(&inner.disk))).await
        })?;
        if self.sim.fired() == fired && !self.is_doubtful {
            assert!(synced, "{:?}", self.log);
            let base = match before {
                Value::Left(present) => ByteRanges::try_from(present).unwrap(),
                _ => ByteRanges::default(),
            };
            let [_, put_down, parked] = &after_each(base, PARTS[set].clone())[..] else { panic!("three parts") };
            assert_eq!(self.left(), *put_down, "what was put down is there\n{:?}", self.log);
            self.durable(Thing::Partial);
            self.widen(Thing::Partial, parked.clone());
        }
        self.block(async |_| writer.write_at(last.start, bytes(LONG, last)).await)
    }
}
