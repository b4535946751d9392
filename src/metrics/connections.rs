//! Connections of one listener, counted.

use prometheus::{IntCounter, IntGauge};

use super::Metrics;

/// What counts the connections of one listener.
#[derive(Debug)]
pub struct Connections {
    open: IntGauge,
    accepted: IntCounter,
    refused: IntCounter,
}

/// An open connection; when it is dropped there is one less.
#[derive(Debug)]
#[must_use]
pub struct OpenConnection(IntGauge);

// === impl Connections ===

impl Connections {
    /// For the listener that has this address.
    pub fn new(metrics: &Metrics, listener: &str) -> Self {
        Self {
            open: metrics.connections.with_label_values(&[listener]),
            accepted: metrics.connections_accepted.with_label_values(&[listener]),
            refused: metrics.connections_refused.with_label_values(&[listener]),
        }
    }

    /// One was accepted.
    pub fn accepted(&self) -> OpenConnection {
        self.accepted.inc();
        self.open.inc();
        OpenConnection(self.open.clone())
    }

    /// One was closed at once.
    pub fn refused(&self) {
        self.refused.inc();
    }
}

// === impl OpenConnection ===

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.dec();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_is_open_until_it_is_dropped() {
        let metrics = Metrics::new().unwrap();
        let connections = Connections::new(&metrics, "127.0.0.1:5000");
        let (first, _second) = (connections.accepted(), connections.accepted());
        connections.refused();
        drop(first);
        let text = metrics.expose();
        for (name, count) in [("", 1), ("_total", 2), ("_refused_total", 1)] {
            let line = format!("ocistern_connections{name}{{listener=\"127.0.0.1:5000\"}} {count}\n");
            assert!(text.contains(&line), "{line} is missing in:\n{text}");
        }
    }
}
