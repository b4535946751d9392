//! The log: where it goes, in which form, and that panics get there.

use std::io::{self, IsTerminal, Stderr, stderr};
use std::panic::PanicHookInfo;

use tracing::level_filters::LevelFilter;
use tracing::{Level, Metadata};
use tracing_subscriber::filter::ParseError;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use super::filter::Filter;
use super::request_log::{Flush, Line, RequestLog};
use crate::config::{Log, LogFormat};
use crate::http::REQUEST_LOG;

/// The log cannot be begun.
#[derive(Debug, thiserror::Error)]
pub(super) enum LogError {
    /// Its filter is none.
    #[error("log.filter: {0}")]
    Filter(#[from] ParseError),
    /// There can be no further thread.
    #[error("the thread that writes the log cannot be started: {0}")]
    Thread(#[from] io::Error),
}

/// Standard error: lines of requests through their queue, all others at once.
#[derive(Debug)]
struct Output(RequestLog);

/// Where one line goes.
#[derive(Debug)]
enum Writer<'a> {
    Request(Line<'a>),
    Other(Stderr),
}

/// A log that has begun; to be dropped last.
pub(super) struct Started {
    /// Where lines of requests go.
    pub(super) requests: RequestLog,
    /// What is logged.
    pub(super) filter: Filter,
    _flush: Flush,
}

/// Sends events to standard error: one readable line each on a terminal, else one JSON object.
pub(super) fn start(log: &Log) -> Result<Started, LogError> {
    let filter = Filter::new(&log.filter)?;
    let (requests, flush) = RequestLog::start()?;
    let terminal = stderr().is_terminal();
    // What the filter leaves out is all that is left out.
    let builder = tracing_subscriber::fmt().with_max_level(LevelFilter::TRACE).with_ansi(terminal);
    let builder = builder.with_writer(Output(requests.clone()));
    let json = match log.format {
        LogFormat::Auto => !terminal,
        LogFormat::Human => false,
        LogFormat::Json => true,
    };
    // Only a second call could fail; the first one's log stays.
    let _ = if json {
        builder.json().flatten_event(true).with_span_list(false).finish().with(filter.clone()).try_init()
    } else {
        builder.finish().with(filter.clone()).try_init()
    };
    std::panic::set_hook(Box::new(log_panic));
    Ok(Started { requests, filter, _flush: flush })
}

fn log_panic(info: &PanicHookInfo<'_>) {
    let location = info.location().map(ToString::to_string).unwrap_or_default();
    let message = info.payload_as_str().unwrap_or("no message");
    let backtrace = std::backtrace::Backtrace::capture();
    let backtrace = (backtrace.status() == std::backtrace::BacktraceStatus::Captured).then(|| backtrace.to_string());
    tracing::error!(location, backtrace, "panic: {message}");
}

// === impl Output, Writer ===

impl<'a> MakeWriter<'a> for Output {
    type Writer = Writer<'a>;

    fn make_writer(&'a self) -> Self::Writer {
        Writer::Other(stderr())
    }

    fn make_writer_for(&'a self, metadata: &Metadata<'_>) -> Self::Writer {
        if metadata.target() == REQUEST_LOG && *metadata.level() == Level::INFO {
            Writer::Request(self.0.line())
        } else {
            self.make_writer()
        }
    }
}

impl io::Write for Writer<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Request(line) => line.write(bytes),
            Self::Other(stderr) => stderr.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Request(line) => line.flush(),
            Self::Other(stderr) => stderr.flush(),
        }
    }
}
