//! Who may use ocistern's own accounts by name and password: a file of bcrypt hashes, as `htpasswd -B` writes it.
//!
//! Hashes are slow on purpose: they are computed on the blocking pool, a few at a time, and what came out is remembered
//! for a minute, as long as the file is the one that it came from. Whoever asks looks whether it has changed, if nobody has
//! for a while.
//!
//! Nobody waits for long: neither for the hashes of others, nor for a disk that hangs. What was begun goes on without who
//! waited for it, and is there when they try again.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::available_parallelism;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, timeout, timeout_at};

use super::seal::Seal;
use crate::party::Party;
use crate::upstream::{Place, Places, Principal, Priority};

/// How long a password that was right is right, and how long a wrong one is wrong.
const REMEMBERED: Duration = Duration::from_mins(1);
const REFUSED: Duration = Duration::from_secs(5);
/// How often the file is looked at for what is remembered, at most: docs/operations.md promises ten seconds.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// How long a request waits for that, before it goes on with what is known.
const WAIT: Duration = Duration::from_secs(1);
/// How long a request waits to hear whether it is let in. Its answer takes up to 20 seconds from there, and clients give up
/// after 30.
const KNOWN_WITHIN: Duration = Duration::from_secs(8);
/// Names with their passwords that are in question for one party at once. Any number of requests may wait for the same one.
const MAX_IN_QUESTION: usize = 32;
/// Passwords that are remembered.
const MAX_REMEMBERED: usize = 4096;
/// Largest file.
const MAX_FILE: u64 = 4 << 20;
/// Longest password that is hashed; bcrypt itself looks at 72 bytes.
const MAX_PASSWORD: usize = 1024;

/// A file with users.
pub struct Htpasswd {
    path: PathBuf,
    /// Held by who reads the file, on the blocking pool: what was read later is known later. Goes before `known`.
    reading: Mutex<()>,
    known: Mutex<Known>,
    /// So many hashes at once. Who tries out passwords takes its share of them, and no more.
    hashing: Arc<Places>,
    /// What is waited for, and by how many requests.
    in_question: Mutex<HashMap<Party, HashMap<Principal, usize>>>,
}

/// What is known of the file.
#[derive(Default)]
struct Known {
    /// None: it was never read, or could not be when it was last looked at.
    users: Option<Arc<Users>>,
    /// What came out by these users, and by no others.
    verdicts: HashMap<Principal, Verdict>,
    /// None: now.
    look_at: Option<Instant>,
}

/// The line of a user in the file, without what it says: another password is another line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Line(pub(super) Principal);

/// The users of one state of the file.
struct Users {
    stamp: Stamp,
    hashes: HashMap<String, String>,
}

/// Which state of the file it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    changed: (i64, i64),
}

#[derive(Debug, Clone, Copy)]
struct Verdict {
    /// The line that it is right by.
    right: Option<Line>,
    until: Instant,
}

/// A request that waits for a verdict.
struct Question<'a> {
    file: &'a Htpasswd,
    party: Party,
    name: Principal,
}

/// Why it is not known whether somebody is let in.
#[derive(Debug, thiserror::Error)]
pub enum HtpasswdError {
    /// The file cannot be used, or the check did not end.
    #[error("the htpasswd file {path} cannot be used")]
    Unusable {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// Others' passwords take so long, or the disk.
    #[error("what the htpasswd file {path} says of a credential was not known within {} s", KNOWN_WITHIN.as_secs())]
    Late {
        /// The file.
        path: PathBuf,
    },
    /// The caller's party waits for many others already.
    #[error("{} names and passwords of one address are being checked by the htpasswd file {path}", MAX_IN_QUESTION)]
    TooMany {
        /// The file.
        path: PathBuf,
    },
}

// === impl Htpasswd ===

impl Htpasswd {
    /// The users of the file at `path`, which is read when it is first needed.
    pub fn new(path: PathBuf) -> Arc<Self> {
        let cores = available_parallelism().map_or(1, usize::from);
        Arc::new(Self {
            path,
            reading: Mutex::default(),
            known: Mutex::default(),
            hashing: Places::new(Some(cores.div_ceil(2))),
            in_question: Mutex::default(),
        })
    }

    /// Where the file is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The line of the file that has this user with this password, for one who comes from there; none: there is no such.
    pub(super) async fn check(
        self: &Arc<Self>,
        seal: &Arc<Seal>,
        (username, password): (&str, &str),
        party: Party,
    ) -> Result<Option<Line>, HtpasswdError> {
        if password.len() > MAX_PASSWORD || password.contains('\0') {
            return Ok(None);
        }
        let deadline = Instant::now() + KNOWN_WITHIN;
        self.look().await;
        let name = seal.name(&["htpasswd", username, password]);
        if let Some(verdict) = self.recall(&name) {
            return Ok(verdict.right);
        }
        let _question = self.question(party, name)?;
        let place = self.place(party, deadline).await?;
        // It may have been the same one that was waited for.
        if let Some(verdict) = self.recall(&name) {
            return Ok(verdict.right);
        }
        let (seal, user, password) = (Arc::clone(seal), username.to_owned(), password.to_owned());
        self.blocking(deadline, move |this| {
            // Also where nobody waits for it any more, who may come again.
            let _place = place;
            let users = this.users()?;
            let right = if users.check(&user, &password) { users.line(&seal, &user) } else { None };
            this.remember(&users, name, right);
            Ok(right)
        })
        .await
    }

    /// Whether the user still has this line: who was let in by it is let in no longer than it is there.
    pub(super) async fn has(
        self: &Arc<Self>,
        seal: &Seal,
        username: &str,
        line: Line,
        party: Party,
    ) -> Result<bool, HtpasswdError> {
        let deadline = Instant::now() + KNOWN_WITHIN;
        self.look().await;
        let known = self.known.lock().users.clone();
        let users = if let Some(users) = known {
            users
        } else {
            // A disk that hangs keeps a thread for each place, and not for each request.
            let place = self.place(party, deadline).await?;
            self.blocking(deadline, move |this| {
                let _place = place;
                this.users()
            })
            .await?
        };
        Ok(users.line(seal, username) == Some(line))
    }

    /// Whether it is the name of one of the users, as the file was when it was last read: then its password is nobody
    /// else's business.
    pub(super) fn knows(&self, username: &str) -> bool {
        self.known.lock().users.as_ref().is_some_and(|users| users.hashes.contains_key(username))
    }

    /// Takes up what the file holds now, if it has changed; from then on nothing else is known. Blocking.
    pub fn renew(&self) {
        // Whoever asks is told what is wrong with it.
        let _ = self.users();
    }

    /// The same, if nobody has looked for a while.
    async fn look(self: &Arc<Self>) {
        let now = Instant::now();
        {
            let mut known = self.known.lock();
            if known.look_at.is_some_and(|look_at| now < look_at) {
                return;
            }
            // The others go on meanwhile.
            known.look_at = Some(now + LOOK_EVERY);
        }
        let this = Arc::clone(self);
        let looking = spawn_blocking(move || {
            // Somebody may be looking since the last time, at a disk that hangs, which must not keep out who is known.
            if let Some(_reading) = this.reading.try_lock() {
                let _ = this.read();
            }
        });
        let _ = timeout(WAIT, looking).await;
    }

    /// Asks whether this name and password are right.
    fn question(&self, party: Party, name: Principal) -> Result<Question<'_>, HtpasswdError> {
        let mut in_question = self.in_question.lock();
        let own = in_question.entry(party).or_default();
        if own.len() >= MAX_IN_QUESTION && !own.contains_key(&name) {
            return Err(HtpasswdError::TooMany { path: self.path.clone() });
        }
        *own.entry(name).or_insert(0) += 1;
        Ok(Question { file: self, party, name })
    }

    async fn place(&self, party: Party, deadline: Instant) -> Result<Place, HtpasswdError> {
        let errand = self.hashing.errand(Some(party));
        timeout_at(deadline, errand.place(Priority::Waiting, None)).await.map_err(|_| self.late())
    }

    async fn blocking<T: Send + 'static>(
        self: &Arc<Self>,
        deadline: Instant,
        work: impl FnOnce(&Self) -> io::Result<T> + Send + 'static,
    ) -> Result<T, HtpasswdError> {
        let this = Arc::clone(self);
        let done = timeout_at(deadline, spawn_blocking(move || work(&this))).await.map_err(|_| self.late())?;
        let done = done.unwrap_or_else(|panic| Err(io::Error::other(panic)));
        done.map_err(|source| HtpasswdError::Unusable { path: self.path.clone(), source })
    }

    fn late(&self) -> HtpasswdError {
        HtpasswdError::Late { path: self.path.clone() }
    }

    fn recall(&self, name: &Principal) -> Option<Verdict> {
        self.known.lock().verdicts.get(name).copied().filter(|verdict| Instant::now() < verdict.until)
    }

    /// Remembers what came out by `users`, if those are still the ones of the file: hashing takes its time.
    fn remember(&self, users: &Arc<Users>, name: Principal, right: Option<Line>) {
        let now = Instant::now();
        let mut known = self.known.lock();
        if !known.users.as_ref().is_some_and(|known| Arc::ptr_eq(known, users)) {
            return;
        }
        let verdicts = &mut known.verdicts;
        if verdicts.len() >= MAX_REMEMBERED {
            verdicts.retain(|_, verdict| now < verdict.until);
        }
        if verdicts.len() >= MAX_REMEMBERED {
            // Somebody guesses: what is right is asked again soon enough.
            verdicts.clear();
        }
        verdicts.insert(name, Verdict { right, until: now + if right.is_some() { REMEMBERED } else { REFUSED } });
    }

    /// The users as the file has them now. Blocking.
    fn users(&self) -> io::Result<Arc<Users>> {
        let _reading = self.reading.lock();
        self.read()
    }

    /// The same, by who holds `reading`.
    fn read(&self) -> io::Result<Arc<Users>> {
        let before = self.known.lock().users.clone();
        let stamp = fs::metadata(&self.path).map(|metadata| Stamp::of(&metadata));
        let now = stamp.and_then(|stamp| match &before {
            Some(users) if users.stamp == stamp => Ok(Arc::clone(users)),
            _ => Users::read(&self.path).map(Arc::new),
        });
        let mut known = self.known.lock();
        known.look_at = Some(Instant::now() + LOOK_EVERY);
        let is_same = before.as_ref().zip(now.as_ref().ok()).is_some_and(|(before, now)| Arc::ptr_eq(before, now));
        if !is_same {
            // Who was right by the old file may not be by the new one, and without one nobody is.
            *known = Known { users: now.as_ref().ok().cloned(), verdicts: HashMap::new(), look_at: known.look_at };
        }
        now
    }
}

impl fmt::Debug for Htpasswd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Htpasswd").field("path", &self.path).finish_non_exhaustive()
    }
}

// === impl Question ===

impl Drop for Question<'_> {
    fn drop(&mut self) {
        let mut in_question = self.file.in_question.lock();
        let Entry::Occupied(mut own) = in_question.entry(self.party) else { return };
        if let Entry::Occupied(mut requests) = own.get_mut().entry(self.name) {
            *requests.get_mut() -= 1;
            if *requests.get() == 0 {
                requests.remove();
            }
        }
        if own.get().is_empty() {
            own.remove();
        }
    }
}

// === impl Users ===

impl Users {
    fn read(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        // Of the file that is read, which may be a newer one than was looked at.
        let stamp = Stamp::of(&file.metadata()?);
        let mut text = String::new();
        file.take(MAX_FILE + 1).read_to_string(&mut text)?;
        if text.len() as u64 > MAX_FILE {
            return Err(io::Error::other("the file is too large"));
        }
        let mut hashes = HashMap::new();
        for (number, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            if let Some((name, hash)) = line.split_once(':').filter(|(_, hash)| is_bcrypt(hash)) {
                hashes.insert(name.to_owned(), hash.to_owned());
            } else {
                tracing::warn!(
                    file = %path.display(),
                    line = number + 1,
                    "this line of the htpasswd file is no NAME:HASH with a bcrypt hash, and lets nobody in; \
                     `htpasswd -B` writes such"
                );
            }
        }
        Ok(Self { stamp, hashes })
    }

    fn line(&self, seal: &Seal, username: &str) -> Option<Line> {
        let hash = self.hashes.get(username)?;
        Some(Line(seal.name(&["htpasswd line", username, hash])))
    }

    /// Blocking, and slow.
    fn check(&self, username: &str, password: &str) -> bool {
        let known = self.hashes.get(username);
        // A user who is not there takes as long as one who is.
        let Some(hash) = known.or_else(|| self.hashes.values().next()) else { return false };
        bcrypt::verify(password, hash).unwrap_or(false) && known.is_some()
    }
}

fn is_bcrypt(hash: &str) -> bool {
    hash.parse::<bcrypt::HashParts>().is_ok()
}

// === impl Stamp ===

impl Stamp {
    fn of(metadata: &fs::Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::Poll;

    use futures_util::future::join_all;
    use futures_util::stream::FuturesUnordered;
    use futures_util::{FutureExt as _, StreamExt as _, poll};
    use rustix::fs::{FileType, Mode};
    use tokio::time::advance;

    use super::*;

    fn here() -> Party {
        Party::on_socket(None)
    }

    fn line(name: &str, password: &str) -> String {
        format!("{name}:{}\n", bcrypt::hash(password, 4).unwrap())
    }

    #[tokio::test]
    async fn who_is_in_the_file_is_let_in() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("htpasswd");
        // As Apache writes it: with $2y$.
        let own = line("own", "p:w").replace("$2b$", "$2y$");
        fs::write(&path, format!("# users\n\n{own}{}plain:secret\nmd5:$apr1$x$y\nno-colon\n", line("me", "pw")))
            .unwrap();
        let (file, seal) = (Htpasswd::new(path), Arc::new(Seal::new(&[1; 32])));
        for (name, password, expected) in [
            ("me", "pw", true),
            ("me", "pw", true),
            ("own", "p:w", true),
            ("me", "other", false),
            ("me", "", false),
            ("nobody", "pw", false),
            ("plain", "secret", false),
            ("me", "pw\0", false),
            ("me", &"x".repeat(5000), false),
        ] {
            assert_eq!(
                file.check(&seal, (name, password), here()).await.unwrap().is_some(),
                expected,
                "{name} {password}"
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_changed_file_is_read_again_within_a_minute() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("htpasswd");
        fs::write(&path, line("me", "old")).unwrap();
        let (file, seal) = (Htpasswd::new(path.clone()), Arc::new(Seal::new(&[1; 32])));
        assert!(file.check(&seal, ("me", "old"), here()).await.unwrap().is_some());
        fs::write(&path, line("me", "new") + &line("other", "x")).unwrap();
        assert!(file.check(&seal, ("me", "old"), here()).await.unwrap().is_some(), "it is remembered");
        assert!(
            file.check(&seal, ("me", "new"), here()).await.unwrap().is_some(),
            "a password that is not known yet reads the file"
        );
        assert!(file.check(&seal, ("me", "old"), here()).await.unwrap().is_none(), "and then the old one is forgotten");
        fs::remove_file(&path).unwrap();
        assert!(file.check(&seal, ("me", "new"), here()).await.unwrap().is_some());
        advance(REMEMBERED).await;
        let error = file.check(&seal, ("me", "new"), here()).await.unwrap_err();
        assert!(error.to_string().contains("htpasswd"), "nobody is let in without the file: {error}");
    }

    #[tokio::test]
    async fn who_tries_out_passwords_does_not_hold_up_others() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("htpasswd");
        fs::write(&path, line("me", "pw")).unwrap();
        let (file, seal) = (Htpasswd::new(path), Arc::new(Seal::new(&[1; 32])));
        let stranger = Party::at([192, 0, 2, 1].into());
        file.look().await;
        // As many as may wait.
        let guesses: Vec<_> = (0..MAX_IN_QUESTION).map(|number| number.to_string()).collect();
        let mut guessing: FuturesUnordered<_> =
            guesses.iter().map(|guess| file.check(&seal, ("me", guess), stranger)).collect();
        {
            let _reading = file.reading.lock();
            assert!(guessing.next().now_or_never().is_none(), "all of them wait");
        }
        let mut checking = Box::pin(file.check(&seal, ("me", "pw"), here()));
        let mut before = 0;
        let right = loop {
            tokio::select! {
                biased;
                right = &mut checking => break right.unwrap(),
                guess = guessing.next() => before += usize::from(guess.unwrap().unwrap().is_none()),
            }
        };
        assert!(right.is_some() && before < guesses.len() / 2, "{before} guesses were looked at before");
    }

    /// A file whose disk hangs until this is dropped: nobody can open it.
    struct Hanging(PathBuf);

    impl Hanging {
        fn at(path: &Path) -> Self {
            rustix::fs::mknodat(rustix::fs::CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
            Self(path.to_owned())
        }
    }

    impl Drop for Hanging {
        /// Whoever is at it reads nothing; whoever comes finds another file, if there is one.
        fn drop(&mut self) {
            let aside = self.0.with_extension("aside");
            fs::rename(&self.0, &aside).unwrap();
            let next = self.0.with_extension("next");
            if next.exists() {
                fs::rename(next, &self.0).unwrap();
            }
            drop(File::options().read(true).write(true).open(aside).unwrap());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_disk_that_hangs_keeps_nobody_waiting() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("htpasswd");
        let hanging = Hanging::at(&path);
        let (file, seal) = (Htpasswd::new(path.clone()), Arc::new(Seal::new(&[1; 32])));
        {
            let mut checking = pin!(file.check(&seal, ("me", "pw"), here()));
            assert!(poll!(&mut checking).is_pending());
            advance(WAIT).await;
            assert!(poll!(&mut checking).is_pending());
            advance(KNOWN_WITHIN).await;
            let Poll::Ready(checked) = poll!(&mut checking) else { panic!("it waits for ever") };
            assert!(matches!(checked, Err(HtpasswdError::Late { .. })), "{checked:?}");
        }
        // Nor who has a token.
        let mine = Line(seal.name(&["x"]));
        {
            let mut looking = pin!(join_all((0..100).map(|_| file.has(&seal, "me", mine, here()))));
            assert!(poll!(&mut looking).is_pending());
            advance(WAIT).await;
            assert!(poll!(&mut looking).is_pending());
            advance(KNOWN_WITHIN).await;
            let Poll::Ready(looked) = poll!(&mut looking) else { panic!("they wait for ever") };
            assert!(looked.iter().all(|looked| matches!(looked, Err(HtpasswdError::Late { .. }))), "{looked:?}");
        }
        fs::write(path.with_extension("next"), line("me", "pw")).unwrap();
        drop(hanging);
        assert!(file.check(&seal, ("me", "pw"), here()).await.unwrap().is_some(), "the disk is back");
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_behind_many_is_told_in_time() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("htpasswd");
        fs::write(&path, line("me", "pw")).unwrap();
        let (file, seal) = (Htpasswd::new(path), Arc::new(Seal::new(&[1; 32])));
        file.look().await;
        file.hashing.set_limit(Some(0));
        {
            let mut checking = pin!(file.check(&seal, ("me", "pw"), here()));
            assert!(poll!(&mut checking).is_pending());
            advance(KNOWN_WITHIN).await;
            let Poll::Ready(checked) = poll!(&mut checking) else { panic!("it waits for ever") };
            assert!(matches!(checked, Err(HtpasswdError::Late { .. })), "{checked:?}");
        }
        file.hashing.set_limit(Some(1));
        assert!(file.check(&seal, ("me", "pw"), here()).await.unwrap().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn one_party_has_so_many_in_question() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("htpasswd");
        fs::write(&path, line("me", "pw")).unwrap();
        let (file, seal) = (Htpasswd::new(path), Arc::new(Seal::new(&[1; 32])));
        let stranger = Party::at([192, 0, 2, 1].into());
        file.look().await;
        file.hashing.set_limit(Some(0));
        let names: Vec<_> = (0..=MAX_IN_QUESTION).map(|number| number.to_string()).collect();
        let ask = |name: usize| Box::pin(file.check(&seal, ("me", names[name].as_str()), stranger));
        let mut asking: Vec<_> = (0..MAX_IN_QUESTION).map(ask).collect();
        for asking in &mut asking {
            assert!(poll!(asking).is_pending());
        }
        let Poll::Ready(refused) = poll!(ask(MAX_IN_QUESTION)) else { panic!("one more waits") };
        assert!(matches!(refused, Err(HtpasswdError::TooMany { .. })), "{refused:?}");
        assert!(poll!(ask(0)).is_pending(), "what is in question already waits with the others");
        assert!(poll!(pin!(file.check(&seal, ("me", "pw"), here()))).is_pending(), "others have theirs");
        asking.pop();
        assert!(poll!(ask(MAX_IN_QUESTION)).is_pending(), "who has gone leaves room");
        drop(asking);
        assert!(file.in_question.lock().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_hash_that_was_begun_is_for_who_comes_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("htpasswd");
        fs::write(&path, line("me", "pw")).unwrap();
        let (file, seal) = (Htpasswd::new(path), Arc::new(Seal::new(&[1; 32])));
        file.look().await;
        file.hashing.set_limit(Some(1));
        {
            // The hash cannot be done before anybody has stopped waiting for it.
            let _reading = file.reading.lock();
            assert!(file.check(&seal, ("me", "pw"), here()).now_or_never().is_none());
        }
        drop(file.place(here(), Instant::now() + KNOWN_WITHIN).await.unwrap());
        assert!(file.recall(&seal.name(&["htpasswd", "me", "pw"])).unwrap().right.is_some());
    }

    /// Longer than the file is left alone, and shorter than docs/operations.md promises.
    const SOON: Duration = Duration::from_secs(9);

    #[tokio::test(start_paused = true)]
    async fn who_is_taken_out_is_let_in_no_more_within_ten_seconds() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("htpasswd");
        fs::write(&path, line("me", "pw") + &line("other", "pw")).unwrap();
        let (file, seal) = (Htpasswd::new(path.clone()), Arc::new(Seal::new(&[1; 32])));
        for name in ["me", "other"] {
            assert!(file.check(&seal, (name, "pw"), here()).await.unwrap().is_some(), "{name}");
        }
        assert!(file.check(&seal, ("new", "pw"), here()).await.unwrap().is_none());
        fs::write(&path, line("other", "pw") + &line("new", "pw")).unwrap();
        advance(SOON).await;
        assert!(file.check(&seal, ("me", "pw"), here()).await.unwrap().is_none(), "a user who was taken out");
        assert!(file.check(&seal, ("other", "pw"), here()).await.unwrap().is_some(), "one who stays");
        assert!(file.check(&seal, ("new", "pw"), here()).await.unwrap().is_some(), "and one who is new");
        fs::remove_file(&path).unwrap();
        advance(SOON).await;
        assert!(file.check(&seal, ("other", "pw"), here()).await.is_err(), "without a file nobody is let in");
        fs::write(&path, line("other", "pw")).unwrap();
        assert!(file.check(&seal, ("other", "pw"), here()).await.unwrap().is_some(), "it is back");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_remembered_is_bounded() {
        let empty = tempfile::NamedTempFile::new().unwrap();
        let file = Htpasswd::new(empty.path().to_owned());
        let (seal, users) = (Arc::new(Seal::new(&[1; 32])), file.users().unwrap());
        for number in 0..2 * MAX_REMEMBERED {
            file.remember(&users, seal.name(&[&number.to_string()]), None);
        }
        let remembered = file.known.lock().verdicts.len();
        assert!((1..=MAX_REMEMBERED).contains(&remembered), "{remembered}");
    }

    /// A hash takes long, and the file may be another one when it is done.
    #[tokio::test(start_paused = true)]
    async fn what_came_out_by_another_file_is_not_remembered() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("htpasswd");
        fs::write(&path, line("me", "pw")).unwrap();
        let (file, seal) = (Htpasswd::new(path.clone()), Arc::new(Seal::new(&[1; 32])));
        let (before, name) = (file.users().unwrap(), seal.name(&["htpasswd", "me", "pw"]));
        let right = before.line(&seal, "me");
        fs::write(&path, line("other", "x")).unwrap();
        file.renew();
        file.remember(&before, name, right);
        assert!(file.recall(&name).is_none());
        assert!(file.check(&seal, ("me", "pw"), here()).await.unwrap().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_line_is_one_user_with_one_password() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("htpasswd");
        let (me, other) = (line("me", "pw"), line("other", "pw"));
        fs::write(&path, me.clone() + &other).unwrap();
        let (file, seal) = (Htpasswd::new(path.clone()), Arc::new(Seal::new(&[1; 32])));
        let mine = file.check(&seal, ("me", "pw"), here()).await.unwrap().unwrap();
        assert!(!file.has(&seal, "other", mine, here()).await.unwrap());
        // Another line above it changes nothing.
        fs::write(&path, other + &me).unwrap();
        file.renew();
        assert!(file.has(&seal, "me", mine, here()).await.unwrap());
        fs::write(&path, line("me", "changed")).unwrap();
        assert!(file.has(&seal, "me", mine, here()).await.unwrap(), "nobody has looked yet");
        advance(SOON).await;
        assert!(!file.has(&seal, "me", mine, here()).await.unwrap());
        fs::remove_file(&path).unwrap();
        advance(SOON).await;
        assert!(file.has(&seal, "me", mine, here()).await.is_err());
    }
}
