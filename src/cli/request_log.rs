//! Lines of the log that come with every request: through a bounded queue to a thread that writes many of them at once, so
//! that no request waits for whoever reads the log. What finds the queue full is dropped, counted, and told.

use std::io::{self, stderr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, channel, sync_channel};
use std::sync::{Arc, OnceLock};
use std::thread::Thread;
use std::time::Duration;

use prometheus::IntCounter;

/// Lines that wait at most; each takes about half a kilobyte.
const WAITING: usize = 8192;
/// Bytes that are written at once, as soon as there are so many.
const BATCH: usize = 64 * 1024;
/// How long lines gather before the next are written: to wake a thread for each line costs a request as much as the rest of
/// it, where there are many.
const GATHERS: Duration = Duration::from_millis(5);
/// How long the end waits for what is not written yet: who reads the log may have stopped to.
const ENDS_WITHIN: Duration = Duration::from_secs(2);

/// The near end of the queue; cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct RequestLog {
    queue: SyncSender<Message>,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    /// Lines for which there was no room.
    dropped: AtomicU64,
    metric: OnceLock<IntCounter>,
    /// What is in the queue is all.
    ends: AtomicBool,
}

/// What goes through the queue.
#[derive(Debug)]
enum Message {
    Line(Vec<u8>),
    /// Look whether it ends.
    Wake,
}

/// Its drop writes what still waits, and ends the thread.
#[derive(Debug)]
pub(super) struct Flush {
    log: RequestLog,
    /// The thread that writes.
    writer: Thread,
    /// Closed when the thread has ended.
    ended: Receiver<()>,
}

/// One line on its way into the queue: it is sent when this is dropped.
#[derive(Debug)]
pub(super) struct Line<'a> {
    log: &'a RequestLog,
    bytes: Vec<u8>,
}

// === impl RequestLog ===

impl RequestLog {
    /// Starts the thread.
    ///
    /// # Errors
    /// There can be no further thread.
    pub(super) fn start() -> io::Result<(Self, Flush)> {
        Self::start_on(stderr, WAITING)
    }

    fn start_on<W: io::Write>(sink: impl FnOnce() -> W + Send + 'static, waiting: usize) -> io::Result<(Self, Flush)> {
        let ((queue, lines), (ending, ended)) = (sync_channel(waiting), channel());
        let log = Self { queue, shared: Arc::default() };
        let shared = log.shared.clone();
        let work = move || {
            let _ending = ending;
            write(&mut sink(), &lines, &shared);
        };
        let writer = std::thread::Builder::new().name("request log".to_owned()).spawn(work)?.thread().clone();
        Ok((log.clone(), Flush { log, writer, ended }))
    }

    /// What is dropped from now on is counted there, and what was before.
    pub(super) fn count_in(&self, metric: IntCounter) {
        metric.inc_by(self.shared.dropped.load(Ordering::Relaxed));
        let _ = self.shared.metric.set(metric);
    }

    /// A line that is sent when it is complete.
    pub(super) fn line(&self) -> Line<'_> {
        Line { log: self, bytes: Vec::with_capacity(512) }
    }
}

// === impl Shared ===

impl Shared {
    fn dropped(&self) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
        if let Some(metric) = self.metric.get() {
            metric.inc();
        }
    }
}

// === impl Line ===

impl io::Write for Line<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Line<'_> {
    fn drop(&mut self) {
        let line = Message::Line(std::mem::take(&mut self.bytes));
        if self.log.queue.try_send(line).is_err() {
            self.log.shared.dropped();
        }
    }
}

// === impl Flush ===

impl Drop for Flush {
    fn drop(&mut self) {
        self.log.shared.ends.store(true, Ordering::SeqCst);
        // Where there is no room the thread has something to do, and looks when it has done it.
        let _ = self.log.queue.try_send(Message::Wake);
        self.writer.unpark();
        let _ = self.ended.recv_timeout(ENDS_WITHIN);
    }
}

/// Writes what comes, until the end.
fn write(sink: &mut impl io::Write, lines: &Receiver<Message>, shared: &Shared) {
    let (mut batch, mut told, mut all) = (Vec::with_capacity(BATCH), 0, false);
    while !all {
        // In this order: what is sent before the end is told is found after it was.
        let mut ends = shared.ends.load(Ordering::SeqCst);
        let mut next = if ends { lines.try_recv().ok() } else { lines.recv().ok() };
        all = loop {
            match next {
                None => break ends,
                Some(Message::Line(line)) => batch.extend_from_slice(&line),
                Some(Message::Wake) => {}
            }
            if batch.len() >= BATCH {
                break false;
            }
            ends = shared.ends.load(Ordering::SeqCst);
            next = lines.try_recv().ok();
        };
        // As everywhere where a log is written: there is nobody to tell that it cannot be.
        let _ = sink.write_all(&batch).and_then(|()| sink.flush());
        let more = batch.len() >= BATCH;
        batch.clear();
        let count = shared.dropped.load(Ordering::Relaxed);
        if count > told {
            tracing::warn!(
                lines = count - told,
                "lines of the log were dropped, one for each request: what reads standard error is too slow for them"
            );
            told = count;
        }
        if !more && !all {
            std::thread::park_timeout(GATHERS);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::sync::mpsc::Sender;

    use parking_lot::Mutex;

    use super::*;

    /// Takes a write when it is told to.
    struct Slow {
        allowed: Receiver<()>,
        tell: Sender<()>,
        got: Arc<Mutex<Vec<u8>>>,
    }

    impl io::Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _ = self.tell.send(());
            let _ = self.allowed.recv();
            self.got.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    struct Stand {
        log: RequestLog,
        flush: Flush,
        allow: Sender<()>,
        begun: Receiver<()>,
        got: Arc<Mutex<Vec<u8>>>,
    }

    fn slow(waiting: usize) -> Stand {
        let ((allow, allowed), (tell, begun), got) = (channel(), channel(), Arc::<Mutex<Vec<u8>>>::default());
        let sink = Slow { allowed, tell, got: got.clone() };
        let (log, flush) = RequestLog::start_on(move || sink, waiting).unwrap();
        Stand { log, flush, allow, begun, got }
    }

    #[test]
    fn who_reads_slowly_costs_lines_and_no_time() {
        let Stand { log, flush, allow, begun, got } = slow(3);
        log.line().write_all(b"a\n").unwrap();
        begun.recv().unwrap();
        for line in ["b\n", "c\n", "d\n", "lost\n", "lost too\n"] {
            log.line().write_all(line.as_bytes()).unwrap();
        }
        let metric = IntCounter::new("dropped", "lines").unwrap();
        log.count_in(metric.clone());
        assert_eq!(metric.get(), 2, "what was dropped before somebody counted");
        log.line().write_all(b"and this\n").unwrap();
        assert_eq!(metric.get(), 3);
        drop(allow);
        drop(flush);
        assert_eq!(*got.lock(), b"a\nb\nc\nd\n", "the end waits for all that were taken");
    }

    #[test]
    fn what_waits_is_written_at_once() {
        let Stand { log, flush, allow, begun, got } = slow(100);
        log.line().write_all(b"0\n").unwrap();
        begun.recv().unwrap();
        for n in 1..50 {
            writeln!(log.line(), "{n}").unwrap();
        }
        allow.send(()).unwrap();
        begun.recv().unwrap();
        allow.send(()).unwrap();
        drop(flush);
        let lines = (0..50).fold(String::new(), |text, n| text + &n.to_string() + "\n");
        assert_eq!(String::from_utf8(got.lock().clone()).unwrap(), lines, "in two writes");
    }
}
