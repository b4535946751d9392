//! Who may use ocistern's own accounts by name and password: a file of bcrypt hashes, as `htpasswd -B` writes it.
//!
//! Hashes are slow on purpose: they are computed on the blocking pool, a few at a time, and what came out is remembered
//! for a minute. The file is read again when it changes.

use std::collections::HashMap;
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
use tokio::time::Instant;

use super::seal::Seal;
use crate::party::Party;
use crate::upstream::{Places, Principal, Priority};

/// How long a password that was right is right, and how long a wrong one is wrong.
const REMEMBERED: Duration = Duration::from_mins(1);
const REFUSED: Duration = Duration::from_secs(5);
/// Passwords that are remembered.
const MAX_REMEMBERED: usize = 4096;
/// Largest file.
const MAX_FILE: u64 = 4 << 20;
/// Longest password that is hashed; bcrypt itself looks at 72 bytes.
const MAX_PASSWORD: usize = 1024;

/// A file with users.
pub struct Htpasswd {
    path: PathBuf,
    users: Mutex<Option<Arc<Users>>>,
    remembered: Mutex<HashMap<Principal, Verdict>>,
    /// So many hashes at once. Who tries out passwords takes its share of them, and no more.
    hashing: Arc<Places>,
}

/// The users of one state of the file.
struct Users {
    stamp: Stamp,
    hashes: HashMap<String, String>,
}

/// Which state of the file it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    size: u64,
    changed: (i64, i64),
}

#[derive(Debug, Clone, Copy)]
struct Verdict {
    right: bool,
    until: Instant,
}

/// The file cannot be used, or the check did not end.
#[derive(Debug, thiserror::Error)]
#[error("the htpasswd file {path} cannot be used")]
pub struct HtpasswdError {
    path: PathBuf,
    #[source]
    source: io::Error,
}

// === impl Htpasswd ===

impl Htpasswd {
    /// The users of the file at `path`, which is read when it is first needed.
    pub fn new(path: PathBuf) -> Arc<Self> {
        let cores = available_parallelism().map_or(1, usize::from);
        Arc::new(Self {
            path,
            users: Mutex::default(),
            remembered: Mutex::default(),
            hashing: Places::new(Some(cores.div_ceil(2))),
        })
    }

    /// Where the file is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the file has this user with this password, for one who comes from there.
    pub(super) async fn check(
        self: &Arc<Self>,
        seal: &Seal,
        (username, password): (&str, &str),
        party: Party,
    ) -> Result<bool, HtpasswdError> {
        if password.len() > MAX_PASSWORD || password.contains('\0') {
            return Ok(false);
        }
        let name = seal.name(&["htpasswd", username, password]);
        if let Some(right) = self.recall(&name) {
            return Ok(right);
        }
        let place = self.hashing.errand(Some(party)).place(Priority::Waiting, None).await;
        // It may have been the same one that was waited for.
        if let Some(right) = self.recall(&name) {
            return Ok(right);
        }
        let (this, username, password) = (Arc::clone(self), username.to_owned(), password.to_owned());
        let checked = spawn_blocking(move || {
            // Also where nobody waits for it any more.
            let _place = place;
            this.users().map(|users| users.check(&username, &password))
        });
        let checked = checked.await;
        let checked = checked.unwrap_or_else(|panic| Err(io::Error::other(panic)));
        let right = checked.map_err(|source| HtpasswdError { path: self.path.clone(), source })?;
        self.remember(name, right);
        Ok(right)
    }

    /// Whether it is the name of one of the users, as the file was when it was last read: then its password is nobody
    /// else's business.
    pub(super) fn knows(&self, username: &str) -> bool {
        self.users.lock().as_ref().is_some_and(|users| users.hashes.contains_key(username))
    }

    fn recall(&self, name: &Principal) -> Option<bool> {
        let remembered = self.remembered.lock();
        remembered.get(name).filter(|verdict| Instant::now() < verdict.until).map(|verdict| verdict.right)
    }

    fn remember(&self, name: Principal, right: bool) {
        let now = Instant::now();
        let mut remembered = self.remembered.lock();
        if remembered.len() >= MAX_REMEMBERED {
            remembered.retain(|_, verdict| now < verdict.until);
        }
        if remembered.len() >= MAX_REMEMBERED {
            // Somebody guesses: what is right is asked again soon enough.
            remembered.clear();
        }
        remembered.insert(name, Verdict { right, until: now + if right { REMEMBERED } else { REFUSED } });
    }

    /// The users as the file has them now. Blocking.
    fn users(&self) -> io::Result<Arc<Users>> {
        let stamp = Stamp::of(&fs::metadata(&self.path)?);
        let known = self.users.lock().clone();
        if let Some(users) = known.filter(|users| users.stamp == stamp) {
            return Ok(users);
        }
        let users = Arc::new(Users::read(&self.path)?);
        *self.users.lock() = Some(Arc::clone(&users));
        // Who was right by the old file may not be by the new one.
        self.remembered.lock().clear();
        Ok(users)
    }
}

impl fmt::Debug for Htpasswd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Htpasswd").field("path", &self.path).finish_non_exhaustive()
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
        Self { inode: metadata.ino(), size: metadata.size(), changed: (metadata.ctime(), metadata.ctime_nsec()) }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::stream::FuturesUnordered;
    use futures_util::{FutureExt as _, StreamExt as _};

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
        let (file, seal) = (Htpasswd::new(path), Seal::new(&[1; 32]));
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
            assert_eq!(file.check(&seal, (name, password), here()).await.unwrap(), expected, "{name} {password}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_changed_file_is_read_again_within_a_minute() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("htpasswd");
        fs::write(&path, line("me", "old")).unwrap();
        let (file, seal) = (Htpasswd::new(path.clone()), Seal::new(&[1; 32]));
        assert!(file.check(&seal, ("me", "old"), here()).await.unwrap());
        fs::write(&path, line("me", "new") + &line("other", "x")).unwrap();
        assert!(file.check(&seal, ("me", "old"), here()).await.unwrap(), "it is remembered");
        assert!(
            file.check(&seal, ("me", "new"), here()).await.unwrap(),
            "a password that is not known yet reads the file"
        );
        assert!(!file.check(&seal, ("me", "old"), here()).await.unwrap(), "and then the old one is forgotten");
        fs::remove_file(&path).unwrap();
        assert!(file.check(&seal, ("me", "new"), here()).await.unwrap());
        tokio::time::advance(REMEMBERED).await;
        let error = file.check(&seal, ("me", "new"), here()).await.unwrap_err();
        assert!(error.to_string().contains("htpasswd"), "nobody is let in without the file: {error}");
    }

    #[tokio::test]
    async fn who_tries_out_passwords_does_not_hold_up_others() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("htpasswd");
        fs::write(&path, line("me", "pw")).unwrap();
        let (file, seal) = (Htpasswd::new(path), Seal::new(&[1; 32]));
        let stranger = Party::at([192, 0, 2, 1].into());
        let guesses: Vec<_> = (0..500).map(|number| number.to_string()).collect();
        let mut guessing: FuturesUnordered<_> =
            guesses.iter().map(|guess| file.check(&seal, ("me", guess), stranger)).collect();
        assert!(guessing.next().now_or_never().is_none(), "all of them wait");
        let mut checking = Box::pin(file.check(&seal, ("me", "pw"), here()));
        let mut before = 0;
        let is_right = loop {
            tokio::select! {
                biased;
                right = &mut checking => break right.unwrap(),
                guess = guessing.next() => before += usize::from(!guess.unwrap().unwrap()),
            }
        };
        assert!(is_right && before < guesses.len() / 2, "{before} guesses were looked at before");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_remembered_is_bounded() {
        let file = Htpasswd::new(PathBuf::from("/nonexistent"));
        let seal = Seal::new(&[1; 32]);
        for number in 0..2 * MAX_REMEMBERED {
            file.remember(seal.name(&[&number.to_string()]), false);
        }
        assert!(file.remembered.lock().len() <= MAX_REMEMBERED);
    }
}
