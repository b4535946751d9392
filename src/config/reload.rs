//! What of a configuration that is read again can be taken over by a running daemon, and what differs besides.

use std::sync::Arc;

use toml::{Table, Value};

use super::Config;
use super::place::KeyPath;

/// What has become of a configuration that was read again.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reload {
    /// Keys that hold now, with their values: `limits.max_rate = "20MiB"`.
    pub applied: Vec<String>,
    /// Keys that differ and are for the next start; of lists of tables, the list.
    pub pending: Vec<String>,
}

// === impl Config ===

impl Config {
    /// Takes over from `new` what can change while ocistern runs: `max_rate`, `schedule` and `max_connections` of upstreams,
    /// `max_rate` and `schedule` of `[limits]`.
    pub fn reload(&mut self, new: &Self) -> Reload {
        let before = self.table();
        self.limits.max_rate = new.limits.max_rate;
        for (name, upstream) in &mut self.upstreams {
            if let Some(new) = new.upstreams.get(name) {
                let transfer = &mut Arc::make_mut(upstream).transfer;
                transfer.max_rate = new.transfer.max_rate;
                transfer.max_connections = new.transfer.max_connections;
            }
        }
        let after = self.table();
        let mut reload = Reload::default();
        differences(&KeyPath::default(), &before, &after, &mut |key, value| {
            reload.applied.push(value.map_or_else(|| format!("{key} left out"), |value| format!("{key} = {value}")));
        });
        differences(&KeyPath::default(), &after, &new.table(), &mut |key, _| reload.pending.push(key.to_string()));
        reload
    }

    fn table(&self) -> Table {
        // What is shown can be read back.
        self.show().parse().unwrap_or_default()
    }
}

/// Tells every key that differs, with its value in `new`.
fn differences(at: &KeyPath, old: &Table, new: &Table, tell: &mut impl FnMut(&KeyPath, Option<&Value>)) {
    let mut keys: Vec<&String> = old.keys().chain(new.keys()).collect();
    keys.sort_unstable();
    keys.dedup();
    for key in keys {
        let here = at.key(key);
        match (old.get(key), new.get(key)) {
            (old, new) if old == new => {}
            (Some(Value::Table(old)), Some(Value::Table(new))) => differences(&here, old, new, tell),
            (_, new) => tell(&here, new),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Config {
        Config::from_toml(text).unwrap()
    }

    #[test]
    fn limits_are_taken_over_and_the_rest_is_told() {
        let mut running = parse(
            "[upstream.\"docker.io\"]\nmax_rate = \"1MiB\"\nschedule = \"22:00-06:00\"\nmax_connections = 3\n\
             [upstream.\"gone.example\"]\nmax_rate = \"1MiB\"",
        );
        let new = parse(
            "root = \"/elsewhere\"\n[store]\nmax_age = \"30d\"\n[limits]\nmax_rate = \"20MiB\"\nidle = \"5m\"\n\
             [upstream.\"docker.io\"]\nmax_rate = \"2MiB\"\nmirrors = [\"https://mirror.example\"]\n\
             [upstream.\"new.example\"]\nmax_rate = \"1MiB\"",
        );
        let reload = running.reload(&new);
        assert_eq!(
            reload.applied,
            [
                "limits.max_rate = \"20MiB\"",
                "upstream.\"docker.io\".max_connections left out",
                "upstream.\"docker.io\".max_rate = \"2MiB\"",
                "upstream.\"docker.io\".schedule left out",
            ]
        );
        let pending = [
            "limits.idle",
            "root",
            "store.max_age",
            "upstream.\"docker.io\".mirrors",
            "upstream.\"gone.example\"",
            "upstream.\"new.example\"",
        ];
        assert_eq!(reload.pending, pending);
        assert_eq!(running.limits.max_rate, new.limits.max_rate);
        let hub = "docker.io".parse().unwrap();
        assert_eq!(running.upstreams[&hub].transfer, new.upstreams[&hub].transfer);
        assert!(running.upstreams[&hub].mirrors.is_empty(), "the rest stays as it is");

        let again = running.reload(&new);
        assert_eq!((again.applied.len(), again.pending.len()), (0, pending.len()));
        let same = running.clone();
        assert_eq!(running.reload(&same), Reload::default());
    }
}
