//! Which events are logged: `log.filter`, which may be exchanged while the program runs.
//!
//! Not `tracing_subscriber::reload`, which takes a lock that all threads share whenever a span is entered, left or closed.

use std::sync::Arc;

use arc_swap::ArcSwap;
use tracing::callsite::rebuild_interest_cache;
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::Interest;
use tracing::{Metadata, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;
use tracing_subscriber::layer::{Context, Layer};

/// The filter of the log; clones are of the same.
#[derive(Debug, Clone)]
pub(super) struct Filter(Arc<ArcSwap<EnvFilter>>);

// === impl Filter ===

impl Filter {
    /// Such as `info,ocistern=debug`.
    pub(super) fn new(text: &str) -> Result<Self, ParseError> {
        Ok(Self(Arc::new(ArcSwap::from_pointee(EnvFilter::try_new(text)?))))
    }

    /// From now on the log is filtered as by `other`.
    pub(super) fn become_as(&self, other: &Self) {
        self.0.store(other.0.load_full());
        // Places in the code remember whether they are logged.
        rebuild_interest_cache();
    }
}

impl<S: Subscriber> Layer<S> for Filter
where
    EnvFilter: Layer<S>,
{
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        Layer::<S>::register_callsite(&**self.0.load(), metadata)
    }

    fn enabled(&self, metadata: &Metadata<'_>, context: Context<'_, S>) -> bool {
        Layer::<S>::enabled(&**self.0.load(), metadata, context)
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Layer::<S>::max_level_hint(&**self.0.load())
    }

    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        self.0.load().on_new_span(attributes, id, context);
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        Layer::<S>::on_record(&**self.0.load(), id, values, context);
    }

    fn on_enter(&self, id: &Id, context: Context<'_, S>) {
        Layer::<S>::on_enter(&**self.0.load(), id, context);
    }

    fn on_exit(&self, id: &Id, context: Context<'_, S>) {
        Layer::<S>::on_exit(&**self.0.load(), id, context);
    }

    fn on_close(&self, id: Id, context: Context<'_, S>) {
        Layer::<S>::on_close(&**self.0.load(), id, context);
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use parking_lot::Mutex;
    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    #[derive(Debug, Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn another_filter_holds_from_the_next_event_on() {
        let (filter, lines) = (Filter::new("info").unwrap(), Lines::default());
        let writer = lines.clone();
        let log = tracing_subscriber::fmt().with_max_level(LevelFilter::TRACE).with_ansi(false);
        let log = log.with_writer(move || writer.clone()).finish().with(filter.clone());
        // The same place in the code each time: it remembers.
        let say = |text: &str| tracing::debug!(target: "filter_test", "{text}");
        tracing::subscriber::with_default(log, || {
            say("one");
            filter.become_as(&Filter::new("warn,filter_test=debug").unwrap());
            say("two");
            tracing::info!("three");
            filter.become_as(&Filter::new("off").unwrap());
            say("four");
        });
        let text = String::from_utf8(lines.0.lock().clone()).unwrap();
        assert!(text.contains("two"), "{text}");
        for silent in ["one", "three", "four"] {
            assert!(!text.contains(silent), "{silent}: {text}");
        }
        assert!(Filter::new("=,=").is_err());
    }
}
