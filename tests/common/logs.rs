//! What a test program logs, kept so that tests can read it.

use std::io;
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;

static LOG: OnceLock<Arc<Mutex<Vec<u8>>>> = OnceLock::new();

struct Writer(Arc<Mutex<Vec<u8>>>);

impl io::Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Keeps everything at this level from now on, of all tests in the program. A program has one log: it is begun before
/// the first ocistern is, by every test alike.
pub fn keep(level: &str) {
    LOG.get_or_init(|| {
        let log: Arc<Mutex<Vec<u8>>> = Arc::default();
        let writer = Arc::clone(&log);
        let subscriber = tracing_subscriber::fmt().with_env_filter(level).with_ansi(false);
        let _ = subscriber.with_writer(move || Writer(Arc::clone(&writer))).try_init();
        log
    });
}

/// The lines so far that `wanted` takes.
pub fn lines(wanted: impl Fn(&str) -> bool) -> Vec<String> {
    let log = String::from_utf8_lossy(&LOG.get().expect("the log is kept").lock()).into_owned();
    log.lines().filter(|line| wanted(line)).map(ToOwned::to_owned).collect()
}

/// Those of them that ocistern wrote, and no library below it.
pub fn own_lines() -> Vec<String> {
    lines(|line| line.contains("ocistern::"))
}
