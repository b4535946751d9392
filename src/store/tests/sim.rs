//! A file system that fails, dies and loses what was not synced.
//!
//! Calls go to a real directory, so that descriptors are real. Beside it stands what the disk has: of each file the
//! content as of its last sync and the writes since, and of the names every change, with whether it was synced.
//!
//! After a power cut a directory is made of that and of any part of the rest, drawn from a seed:
//! - of writes since the last sync, in each file: all, none, a prefix, or any of their blocks, with zeros in the holes;
//! - of changes of names, under [`Order::Journal`] a prefix of all of them (ext4 and XFS, where any sync writes out the
//!   journal up to it), under [`Order::Any`] any subset in which the changes of one name keep their order, and a sync of
//!   a directory writes out that directory's changes only. A rename is one change. The second is what POSIX promises.
//!
//! A sync that failed loses for good what was written before it, as it does on Linux: a later one succeeds without it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};
use rustix::io::Errno;

use super::gate;
use crate::store::fs::{Create, Fs, Listing, Space};
use crate::store::real_fs::RealFs;
use crate::store::stamp::Stamp;

/// What survives or is lost of a file at a time; small, because the tests' files are.
const BLOCK: usize = 64;

/// The calls, as far as it matters which ones can fail how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Call {
    /// Opening to read or to look.
    Open,
    List,
    Create,
    MakeDir,
    Rename,
    Unlink,
    RemoveDir,
    CloseDir,
    Read,
    Write,
    SetLen,
    Allocate,
    CloseFile,
    SyncFile,
    SyncDir,
    SyncAll,
    Space,
}

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::store) enum Harm {
    /// The call says this; only those that can.
    Fail(Errno),
    /// A write takes half of the bytes.
    Short,
    /// The power is cut in this call.
    Cut,
    /// The process is killed before this call.
    Kill,
}

/// When it goes wrong.
#[derive(Debug, Clone, Copy)]
pub(in crate::store) struct Fault {
    pub(in crate::store) harm: Harm,
    /// At which of the calls that can fail so, from 1.
    pub(in crate::store) at: u64,
    /// How many of them.
    pub(in crate::store) times: u64,
}

/// What is known of the order in which changes of names reach the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::store) enum Order {
    /// That in which they were made.
    Journal,
    /// None, but for one name.
    Any,
}

type Id = usize;
/// A name in a directory.
type Name = (Id, String);

#[derive(Debug)]
enum Node {
    File(Content),
    Directory { closed: bool },
}

#[derive(Debug, Default)]
struct Content {
    /// As of the last sync.
    durable: Vec<u8>,
    since: Vec<Write>,
    closed: bool,
    /// What could be seen of it when it lost its last name.
    last: Option<Stamp>,
}

#[derive(Debug, Clone)]
enum Change {
    Write(u64, Vec<u8>),
    Length(u64),
}

#[derive(Debug, Clone)]
struct Write {
    change: Change,
    /// Before a sync that failed.
    lost: bool,
}

#[derive(Debug)]
struct NameChange {
    sets: Vec<(Name, Option<Id>)>,
    synced: bool,
}

#[derive(Debug)]
struct State {
    fault: Option<Fault>,
    /// Calls that the fault could have met.
    seen: u64,
    fired: u64,
    dead: bool,
    rng: fastrand::Rng,
    /// What cannot be read, with all beneath it.
    spoiled: Vec<PathBuf>,
    nodes: Vec<Node>,
    inodes: HashMap<u64, Id>,
    names: HashMap<Name, Id>,
    /// Names at the beginning.
    base: HashMap<Name, Id>,
    changes: Vec<NameChange>,
    /// Of the changes, how many are on the disk where a journal keeps their order.
    journal: usize,
    /// What the removal of a blob's file says, and whether that can be seen before.
    kept: Option<(Errno, bool)>,
    /// Parts of files that the disk was to begin with.
    begun: Vec<Range<u64>>,
    /// The size of the disk, if it is a real one.
    size: Option<u64>,
    /// A sync of all has failed.
    has_lost: bool,
}

/// The file system.
#[derive(Debug)]
pub(in crate::store) struct Sim {
    real: RealFs,
    root: PathBuf,
    state: Mutex<State>,
}

/// A handle for a store.
#[derive(Debug, Clone)]
pub(in crate::store) struct SimFs(pub(in crate::store) Arc<Sim>);

/// What a power cut has left.
pub(in crate::store) struct Remains {
    pub(in crate::store) root: tempfile::TempDir,
    /// Of files: what could be seen of them, and what can now.
    pub(in crate::store) stamps: Vec<(Stamp, Stamp)>,
}

/// A directory in memory, where there is one: the tests make very many.
pub(in crate::store) fn fast_directory() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

// === impl Harm ===

impl Harm {
    fn meets(self, call: Call) -> bool {
        use Call::{
            Allocate, CloseDir, CloseFile, Create, List, MakeDir, Open, RemoveDir, Rename, SetLen, SyncDir, SyncFile,
            Unlink, Write,
        };
        match self {
            Self::Short => call == Write,
            Self::Fail(Errno::NOSPC) => matches!(call, Create | MakeDir | Rename | Write | Allocate | SyncFile),
            Self::Fail(Errno::MFILE) => {
                matches!(call, Open | List | Create | MakeDir | Rename | Unlink | RemoveDir | CloseDir | SyncDir)
            }
            Self::Fail(Errno::ROFS) => matches!(
                call,
                Create | MakeDir | Rename | Unlink | RemoveDir | CloseDir | Write | SetLen | Allocate | CloseFile
            ),
            Self::Fail(_) | Self::Cut | Self::Kill => true,
        }
    }
}

// === impl Content ===

impl Content {
    fn whole(&self) -> Vec<u8> {
        apply(self.durable.clone(), self.since.iter().map(|write| &write.change))
    }

    fn sync(&mut self) {
        let now = self.whole();
        let last = self.since.iter().rposition(|write| !write.lost);
        let mut at = 0..;
        let synced = self.since.extract_if(.., |write| {
            let is_before = at.next() < last;
            // What was lost, and may be there all the same, is not there instead of what was written over it.
            if is_before && let Change::Write(from, bytes) = &mut write.change {
                let from = usize::try_from(*from).unwrap().min(now.len());
                let there = &now[from..];
                let length = bytes.len().min(there.len());
                *bytes = there[..length].to_vec();
            }
            !write.lost || is_before && matches!(write.change, Change::Length(_))
        });
        let synced: Vec<Change> = synced.map(|write| write.change).collect();
        self.durable = apply(std::mem::take(&mut self.durable), &synced);
    }

    /// What a power cut leaves.
    fn remains(&self, rng: &mut fastrand::Rng) -> Vec<u8> {
        let now = self.whole();
        let mut left = self.durable.clone();
        if self.since.is_empty() {
            return left;
        }
        match rng.u8(..5) {
            0 => left,
            1 => now,
            2 => apply(left, self.since.iter().take(rng.usize(..=self.since.len())).map(|write| &write.change)),
            3 => now[..rng.usize(left.len().min(now.len())..=now.len())].to_vec(),
            // The length is there, and any of the blocks.
            _ => {
                left.resize(now.len(), 0);
                for (before, after) in left.chunks_mut(BLOCK).zip(now.chunks(BLOCK)) {
                    if rng.bool() {
                        before.copy_from_slice(after);
                    }
                }
                left
            }
        }
    }
}

fn apply<'c>(mut content: Vec<u8>, changes: impl IntoIterator<Item = &'c Change>) -> Vec<u8> {
    for change in changes {
        match change {
            Change::Write(at, bytes) => {
                let at = usize::try_from(*at).unwrap();
                content.resize(content.len().max(at + bytes.len()), 0);
                content[at..at + bytes.len()].copy_from_slice(bytes);
            }
            Change::Length(length) => content.resize(usize::try_from(*length).unwrap(), 0),
        }
    }
    content
}

// === impl Sim ===

impl Sim {
    /// Over a directory, all of which is on the disk.
    pub(in crate::store) fn new(root: &Path) -> Arc<Self> {
        let (real, root) = RealFs::open(root).unwrap();
        let mut state = State {
            fault: None,
            seen: 0,
            fired: 0,
            dead: false,
            rng: fastrand::Rng::with_seed(1),
            spoiled: Vec::new(),
            nodes: vec![Node::Directory { closed: false }],
            inodes: HashMap::new(),
            names: HashMap::new(),
            base: HashMap::new(),
            changes: Vec::new(),
            journal: 0,
            kept: None,
            begun: Vec::new(),
            size: None,
            has_lost: false,
        };
        state.load(&root, 0);
        state.base = state.names.clone();
        Arc::new(Self { real, root, state: Mutex::new(state) })
    }

    /// Lets something go wrong from now on, and counts from 0.
    pub(in crate::store) fn arm(&self, fault: Fault, seed: u64) {
        let mut state = self.state.lock();
        (state.fault, state.seen, state.fired) = (Some(fault), 0, 0);
        state.rng = fastrand::Rng::with_seed(seed);
    }

    /// Nothing goes wrong any more. How many calls the fault could have met since it was armed.
    pub(in crate::store) fn heal(&self) -> u64 {
        let mut state = self.state.lock();
        (state.fault, state.dead) = (None, false);
        state.seen
    }

    /// From now on files of blobs cannot be removed, for this reason; whether that can be seen before. None: they can again.
    pub(in crate::store) fn keep_blobs(&self, why: Option<(Errno, bool)>) {
        self.state.lock().kept = why;
    }

    /// Parts of files that the disk was to begin with since the last call.
    pub(in crate::store) fn take_begun(&self) -> Vec<Range<u64>> {
        std::mem::take(&mut self.state.lock().begun)
    }

    /// From now on what is free is counted: the disk has this size.
    pub(in crate::store) fn set_size(&self, size: u64) {
        self.state.lock().size = Some(size);
    }

    /// From now on the disk has bad blocks under these paths: listing and reading fail there, looking and writing do not. They
    /// take the place of those of the last call.
    pub(in crate::store) fn spoil(&self, paths: impl IntoIterator<Item = PathBuf>) {
        self.state.lock().spoiled = paths.into_iter().collect();
    }

    /// How often something has gone wrong since it was armed.
    pub(in crate::store) fn fired(&self) -> u64 {
        self.state.lock().fired
    }

    /// Whether the process is dead.
    pub(in crate::store) fn is_dead(&self) -> bool {
        self.state.lock().dead
    }

    /// Whether calls say that the disk is full, now or a moment ago.
    pub(in crate::store) fn is_short_of_space(&self) -> bool {
        self.state.lock().fault.is_some_and(|fault| fault.harm == Harm::Fail(Errno::NOSPC))
    }

    /// Whether a sync of a file may fail, now or a moment ago.
    pub(in crate::store) fn may_fail_to_sync(&self) -> bool {
        let harm = self.state.lock().fault.map(|fault| fault.harm);
        matches!(harm, Some(Harm::Fail(Errno::NOSPC | Errno::IO)))
    }

    /// Whether a sync of all has failed since the last call.
    pub(in crate::store) fn take_lost(&self) -> bool {
        std::mem::take(&mut self.state.lock().has_lost)
    }

    /// The process is killed now.
    pub(in crate::store) fn kill(&self) {
        self.state.lock().dead = true;
    }

    /// Changes a file behind everybody's back, on the disk too.
    pub(in crate::store) fn damage(&self, path: &Path) {
        let mut state = self.state.lock();
        let id = state.find(path).unwrap();
        let Node::File(content) = &mut state.nodes[id] else { panic!("no file") };
        let mut bytes = content.whole();
        match bytes.first_mut() {
            Some(first) => *first ^= 1,
            None => bytes.push(1),
        }
        std::fs::write(self.root.join(path), &bytes).unwrap();
        (content.durable, content.since) = (bytes, Vec::new());
    }

    /// The call, unless something goes wrong with it: the state to do it in, and whether it is the last one.
    fn begin(&self, call: Call) -> io::Result<(MutexGuard<'_, State>, Option<Harm>)> {
        gate::step();
        let mut state = self.state.lock();
        if state.dead {
            return Err(Errno::IO.into());
        }
        let Some(fault) = state.fault.filter(|fault| fault.harm.meets(call)) else { return Ok((state, None)) };
        state.seen += 1;
        if !(fault.at..fault.at.saturating_add(fault.times)).contains(&state.seen) {
            return Ok((state, None));
        }
        state.fired += 1;
        match fault.harm {
            Harm::Fail(errno) => Err(errno.into()),
            Harm::Short => Ok((state, Some(Harm::Short))),
            Harm::Kill => {
                state.dead = true;
                Err(Errno::IO.into())
            }
            Harm::Cut => {
                state.dead = true;
                // The call may have been carried out, but for the syncs, whose point is that one knows.
                if state.rng.bool() { Ok((state, Some(Harm::Cut))) } else { Err(Errno::IO.into()) }
            }
        }
    }

    fn file(state: &mut State, file: &File) -> Id {
        state.inodes[&file.metadata().unwrap().ino()]
    }

    /// Before a name goes: what can be seen of its file.
    fn note(&self, state: &mut State, path: &Path) {
        if let Some(id) = state.find(path)
            && let Ok(metadata) = std::fs::symlink_metadata(self.root.join(path))
            && let Node::File(content) = &mut state.nodes[id]
        {
            content.last = Some(Stamp::of(&metadata));
        }
    }

    /// What is there after a power cut at this moment.
    pub(in crate::store) fn cut(&self, order: Order, seed: u64) -> Remains {
        let mut state = self.state.lock();
        state.dead = true;
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut names = state.base.clone();
        let survives = state.survivors(order, &mut rng);
        for (change, _) in state.changes.iter().zip(survives).filter(|(_, survives)| *survives) {
            for (name, to) in &change.sets {
                match to {
                    Some(id) => drop(names.insert(name.clone(), *id)),
                    None => drop(names.remove(name)),
                }
            }
        }
        let root = fast_directory();
        let mut stamps = Vec::new();
        let now: HashMap<Id, PathBuf> = state.paths();
        let mut next = vec![(0, root.path().to_owned())];
        let mut placed = HashSet::new();
        let mut below: BTreeMap<Id, Vec<(String, Id)>> = BTreeMap::new();
        for ((directory, name), id) in names {
            below.entry(directory).or_default().push((name, id));
        }
        while let Some((directory, path)) = next.pop() {
            let mut entries = below.remove(&directory).unwrap_or_default();
            entries.sort();
            for (name, id) in entries {
                assert!(placed.insert(id), "{name} has two names");
                let path = path.join(name);
                match &state.nodes[id] {
                    Node::Directory { closed } => {
                        std::fs::create_dir(&path).unwrap();
                        if *closed {
                            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700)).unwrap();
                        }
                        next.push((id, path));
                    }
                    Node::File(content) => {
                        std::fs::write(&path, content.remains(&mut rng)).unwrap();
                        let mode = if content.closed { 0o600 } else { 0o640 };
                        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
                        let there = now.get(&id).and_then(|at| std::fs::symlink_metadata(self.root.join(at)).ok());
                        if let Some(before) = there.map(|there| Stamp::of(&there)).or(content.last) {
                            stamps.push((before, Stamp::of(&path.metadata().unwrap())));
                        }
                    }
                }
            }
        }
        Remains { root, stamps }
    }
}

// === impl State ===

impl State {
    fn load(&mut self, at: &Path, id: Id) {
        for entry in std::fs::read_dir(at).unwrap() {
            let entry = entry.unwrap();
            let metadata = entry.metadata().unwrap();
            let child = self.nodes.len();
            self.names.insert((id, entry.file_name().into_string().unwrap()), child);
            let closed = matches!(metadata.mode() & 0o777, 0o600 | 0o700);
            if metadata.is_dir() {
                self.nodes.push(Node::Directory { closed });
                self.load(&entry.path(), child);
            } else {
                let durable = std::fs::read(entry.path()).unwrap();
                self.nodes.push(Node::File(Content { durable, closed, ..Content::default() }));
                self.inodes.insert(metadata.ino(), child);
            }
        }
    }

    fn find(&self, path: &Path) -> Option<Id> {
        path.iter()
            .filter(|part| *part != ".")
            .try_fold(0, |at, part| self.names.get(&(at, part.to_str().unwrap().to_owned())).copied())
    }

    fn name(&self, path: &Path) -> Name {
        let parent = self.find(path.parent().unwrap()).unwrap();
        (parent, path.file_name().unwrap().to_str().unwrap().to_owned())
    }

    fn set(&mut self, sets: Vec<(Name, Option<Id>)>) {
        for (name, to) in &sets {
            match to {
                Some(id) => drop(self.names.insert(name.clone(), *id)),
                None => drop(self.names.remove(name)),
            }
        }
        self.changes.push(NameChange { sets, synced: false });
    }

    fn add(&mut self, path: &Path, node: Node) -> Id {
        let id = self.nodes.len();
        self.nodes.push(node);
        self.set(vec![(self.name(path), Some(id))]);
        id
    }

    fn is_spoiled(&self, path: &Path) -> bool {
        self.spoiled.iter().any(|spoiled| path.starts_with(spoiled))
    }

    /// Where files and directories are now.
    fn paths(&self) -> HashMap<Id, PathBuf> {
        let mut found = HashMap::from([(0, PathBuf::new())]);
        loop {
            let before = found.len();
            for ((directory, name), id) in &self.names {
                if let Some(at) = found.get(directory).map(|at| at.join(name)) {
                    found.entry(*id).or_insert(at);
                }
            }
            if found.len() == before {
                return found;
            }
        }
    }

    /// A change takes along every earlier one of the same names: there is no way to have it without them.
    fn close_over(&self, chosen: &mut [bool]) {
        let mut needed: HashSet<&Name> = HashSet::new();
        for (change, chosen) in self.changes.iter().zip(chosen).rev() {
            *chosen |= change.sets.iter().any(|(name, _)| needed.contains(name));
            if *chosen {
                needed.extend(change.sets.iter().map(|(name, _)| name));
            }
        }
    }

    /// A sync of all has failed: of any file may be lost what was not on the disk, unless the process is no more.
    fn lose_any(&mut self) {
        if self.dead {
            return;
        }
        self.has_lost = true;
        for node in &mut self.nodes {
            if let Node::File(content) = node
                && self.rng.bool()
            {
                content.since.iter_mut().for_each(|write| write.lost = true);
            }
        }
    }

    fn sync_changes(&mut self, of: impl Fn(&NameChange) -> bool) {
        let mut synced: Vec<bool> = self.changes.iter().map(|change| change.synced || of(change)).collect();
        self.close_over(&mut synced);
        for (change, synced) in self.changes.iter_mut().zip(synced) {
            change.synced = synced;
        }
    }

    fn survivors(&self, order: Order, rng: &mut fastrand::Rng) -> Vec<bool> {
        let count = self.changes.len();
        match order {
            Order::Journal => {
                let upto = if rng.bool() { rng.usize(self.journal..=count) } else { self.journal };
                (0..count).map(|n| n < upto).collect()
            }
            Order::Any => {
                let share = [0.0, 0.2, 0.5, 0.8, 1.0][rng.usize(..5)];
                let mut chosen: Vec<bool> =
                    self.changes.iter().map(|change| change.synced || rng.f64() < share).collect();
                self.close_over(&mut chosen);
                chosen
            }
        }
    }
}

impl Fs for SimFs {
    fn open(&self, path: &Path) -> io::Result<File> {
        let (_state, _) = self.0.begin(Call::Open)?;
        self.0.real.open(path)
    }

    fn look(&self, path: &Path) -> io::Result<File> {
        let (_state, _) = self.0.begin(Call::Open)?;
        self.0.real.look(path)
    }

    fn is_dir(&self, path: &Path) -> bool {
        self.0.begin(Call::Open).is_ok_and(|_| self.0.real.is_dir(path))
    }

    fn list(&self, path: &Path) -> io::Result<Listing> {
        if self.0.state.lock().is_spoiled(path) {
            return Err(Errno::IO.into());
        }
        match self.0.begin(Call::List) {
            Ok(_) => self.0.real.list(path),
            // It may also break off in the middle.
            Err(error) => {
                let mut state = self.0.state.lock();
                if state.dead || Errno::from_io_error(&error) != Some(Errno::IO) || state.rng.bool() {
                    return Err(error);
                }
                let mut listing = self.0.real.list(path)?;
                listing.breaks = Some((state.rng.usize(..3), error));
                Ok(listing)
            }
        }
    }

    fn create(&self, path: &Path, create: Create) -> io::Result<File> {
        let (mut state, _) = self.0.begin(Call::Create)?;
        let is_new = state.find(path).is_none();
        let file = self.0.real.create(path, create)?;
        if is_new {
            let id = state.add(path, Node::File(Content::default()));
            state.inodes.insert(file.metadata()?.ino(), id);
        }
        Ok(file)
    }

    fn make_dir(&self, path: &Path) -> io::Result<()> {
        let (mut state, _) = self.0.begin(Call::MakeDir)?;
        self.0.real.make_dir(path)?;
        state.add(path, Node::Directory { closed: false });
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let (mut state, _) = self.0.begin(Call::Rename)?;
        self.0.note(&mut state, to);
        self.0.real.rename(from, to)?;
        let id = state.find(from).unwrap();
        let sets = vec![(state.name(from), None), (state.name(to), Some(id))];
        state.set(sets);
        Ok(())
    }

    fn unlink(&self, path: &Path) -> io::Result<()> {
        let (mut state, _) = self.0.begin(Call::Unlink)?;
        if let Some((errno, _)) = state.kept.filter(|_| path.starts_with("blobs")) {
            return Err(errno.into());
        }
        self.0.note(&mut state, path);
        self.0.real.unlink(path)?;
        let sets = vec![(state.name(path), None)];
        state.set(sets);
        Ok(())
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        let (mut state, _) = self.0.begin(Call::RemoveDir)?;
        if let Some((errno, true)) = state.kept.filter(|_| path.starts_with("blobs")) {
            return Err(errno.into());
        }
        self.0.real.remove_dir(path)?;
        let sets = vec![(state.name(path), None)];
        state.set(sets);
        Ok(())
    }

    fn close_dir(&self, path: &Path) -> io::Result<()> {
        let (mut state, _) = self.0.begin(Call::CloseDir)?;
        self.0.real.close_dir(path)?;
        let id = state.find(path).unwrap();
        state.nodes[id] = Node::Directory { closed: true };
        Ok(())
    }

    fn read_at(&self, file: &File, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        let (mut state, _) = self.0.begin(Call::Read)?;
        if !state.spoiled.is_empty() {
            let id = Sim::file(&mut state, file);
            if state.paths().get(&id).is_some_and(|path| state.is_spoiled(path)) {
                return Err(Errno::IO.into());
            }
        }
        file.read_at(buffer, at)
    }

    fn write_at(&self, file: &File, bytes: &[u8], at: u64) -> io::Result<usize> {
        let (mut state, harm) = self.0.begin(Call::Write)?;
        let bytes = if harm.is_some() { &bytes[..bytes.len().div_ceil(2)] } else { bytes };
        file.write_all_at(bytes, at)?;
        let id = Sim::file(&mut state, file);
        if let Node::File(content) = &mut state.nodes[id] {
            content.since.push(Write { change: Change::Write(at, bytes.to_vec()), lost: false });
        }
        Ok(bytes.len())
    }

    fn set_len(&self, file: &File, length: u64) -> io::Result<()> {
        let (mut state, _) = self.0.begin(Call::SetLen)?;
        file.set_len(length)?;
        let id = Sim::file(&mut state, file);
        if let Node::File(content) = &mut state.nodes[id] {
            content.since.push(Write { change: Change::Length(length), lost: false });
        }
        Ok(())
    }

    fn allocate(&self, file: &File, length: u64) -> io::Result<()> {
        let (_state, _) = self.0.begin(Call::Allocate)?;
        self.0.real.allocate(file, length)
    }

    fn close_file(&self, file: &File) -> io::Result<()> {
        let (mut state, _) = self.0.begin(Call::CloseFile)?;
        self.0.real.close_file(file)?;
        let id = Sim::file(&mut state, file);
        if let Node::File(content) = &mut state.nodes[id] {
            content.closed = true;
        }
        Ok(())
    }

    fn begin_sync(&self, _: &File, range: Range<u64>) {
        self.0.state.lock().begun.push(range);
    }

    fn sync_file(&self, file: &File) -> io::Result<()> {
        match self.0.begin(Call::SyncFile) {
            Ok((mut state, None)) => {
                let id = Sim::file(&mut state, file);
                if let Node::File(content) = &mut state.nodes[id] {
                    content.sync();
                }
                state.journal = state.changes.len();
                Ok(())
            }
            // The power is cut while it waits: what is drawn decides what is there.
            Ok(_) => Err(Errno::IO.into()),
            Err(error) => {
                let mut state = self.0.state.lock();
                // What a process that is no more had written is in the page cache as before.
                if state.dead {
                    return Err(error);
                }
                let id = Sim::file(&mut state, file);
                if let Node::File(content) = &mut state.nodes[id] {
                    content.since.iter_mut().for_each(|write| write.lost = true);
                }
                Err(error)
            }
        }
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let (mut state, harm) = self.0.begin(Call::SyncDir)?;
        if harm.is_some() {
            return Err(Errno::IO.into());
        }
        let Some(id) = state.find(path) else { return Err(Errno::NOENT.into()) };
        state.sync_changes(|change| change.sets.iter().any(|((directory, _), _)| *directory == id));
        state.journal = state.changes.len();
        Ok(())
    }

    fn sync_everything(&self) -> io::Result<()> {
        let (mut state, harm) = match self.0.begin(Call::SyncAll) {
            Ok(begun) => begun,
            Err(error) => {
                self.0.state.lock().lose_any();
                return Err(error);
            }
        };
        if harm.is_some() {
            return Err(Errno::IO.into());
        }
        for node in &mut state.nodes {
            if let Node::File(content) = node {
                content.sync();
            }
        }
        state.sync_changes(|_| true);
        state.journal = state.changes.len();
        Ok(())
    }

    fn space(&self) -> io::Result<Space> {
        let (state, _) = self.0.begin(Call::Space)?;
        if let Some(total) = state.size {
            let used: u64 = state.paths().values().map(|path| blocks(&self.0.root.join(path))).sum();
            return Ok(Space { total, free: total.saturating_sub(used) });
        }
        Ok(Space { total: 1 << 40, free: 1 << 39 })
    }
}

/// What a file takes of the disk.
fn blocks(path: &Path) -> u64 {
    std::fs::symlink_metadata(path).map_or(0, |found| if found.is_file() { 512 * found.blocks() } else { 0 })
}

// === what it is held against ===

#[test]
fn what_is_synced_survives_and_what_is_not_may_go() {
    let root = fast_directory();
    let sim = Sim::new(root.path());
    let fs = SimFs(sim.clone());
    let file = fs.create(Path::new("a"), Create::New).unwrap();
    fs.write_at(&file, &[1; 100], 0).unwrap();
    fs.sync_file(&file).unwrap();
    fs.write_at(&file, &[2; 100], 100).unwrap();
    let mut lengths = HashSet::new();
    let mut there = HashSet::new();
    for seed in 0..60 {
        let remains = sim.cut(Order::Any, seed);
        let found = std::fs::read(remains.root.path().join("a"));
        there.insert(found.is_ok());
        if let Ok(found) = found {
            assert!(found[..100] == [1; 100], "what was synced is there");
            assert!(found.len() <= 200 && found[100..].iter().all(|b| [0, 2].contains(b)));
            lengths.insert(found.len());
        }
    }
    assert!(there.len() == 2 && lengths.len() > 2, "the name was not synced: {there:?} {lengths:?}");
    sim.heal();
    fs.sync_dir(Path::new("")).unwrap();
    fs.rename(Path::new("a"), Path::new("b")).unwrap();
    for order in [Order::Any, Order::Journal] {
        let names: HashSet<_> = (0..60)
            .map(|seed| {
                let remains = sim.cut(order, seed);
                ["a", "b"].map(|name| remains.root.path().join(name).exists())
            })
            .collect();
        assert_eq!(names, HashSet::from([[true, false], [false, true]]), "a rename is one change");
    }
}

#[test]
fn a_sync_that_fails_loses_what_was_before_it() {
    let root = fast_directory();
    let sim = Sim::new(root.path());
    let fs = SimFs(sim.clone());
    let file = fs.create(Path::new("a"), Create::New).unwrap();
    fs.sync_dir(Path::new("")).unwrap();
    fs.write_at(&file, &[1; 100], 0).unwrap();
    sim.arm(Fault { harm: Harm::Fail(Errno::IO), at: 1, times: 1 }, 0);
    assert!(fs.sync_file(&file).is_err());
    fs.sync_file(&file).unwrap();
    let lost = (0..20).any(|seed| std::fs::read(sim.cut(Order::Any, seed).root.path().join("a")).unwrap() != [1; 100]);
    assert!(lost, "the second sync has written nothing");
}

#[test]
fn what_is_written_and_synced_after_a_sync_that_failed_is_there() {
    let root = fast_directory();
    let sim = Sim::new(root.path());
    let fs = SimFs(sim.clone());
    let file = fs.create(Path::new("a"), Create::New).unwrap();
    fs.sync_dir(Path::new("")).unwrap();
    fs.write_at(&file, &[1; 100], 0).unwrap();
    fs.set_len(&file, 50).unwrap();
    sim.arm(Fault { harm: Harm::Fail(Errno::IO), at: 1, times: 1 }, 0);
    assert!(fs.sync_file(&file).is_err());
    fs.write_at(&file, &[2; 200], 0).unwrap();
    fs.sync_file(&file).unwrap();
    for seed in 0..20 {
        assert!(std::fs::read(sim.cut(Order::Any, seed).root.path().join("a")).unwrap() == [2; 200], "{seed}");
    }
}
