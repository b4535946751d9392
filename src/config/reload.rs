//! What of a configuration that is read again a running daemon can take over, and what is for its next start.
//!
//! For the next start is what is decided once: the root, which sockets are open, how what is stored is written, the form of
//! the log, and where an upstream is, since its URL is what everything that is known of it hangs on.

use std::collections::BTreeMap;
use std::sync::Arc;

use toml::{Table, Value};

use super::place::KeyPath;
use super::{BaseUrl, Config, Listener};
use crate::oci::UpstreamName;

/// The keys that are for the next start, as the reference of the configuration has them.
#[cfg(test)]
pub(super) const AT_THE_START: [&str; 9] = [
    "root",
    "listener.address",
    "admin.address",
    "admin.socket",
    "store.durability",
    "log.format",
    "log.otlp",
    "log.otlp_sample",
    "upstream.\"NAME\".url",
];

/// What is to become of a configuration that was read again.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reload {
    /// Keys that change, with their values: `limits.max_rate = "20MiB"`; of lists of tables, the list.
    pub applied: Vec<String>,
    /// Keys that differ and are for the next start; of lists of tables, the list.
    pub pending: Vec<String>,
}

/// The URLs that upstreams have had since the start, those that are no longer there too.
#[derive(Debug, Clone, Default)]
pub struct KnownUrls(BTreeMap<UpstreamName, BaseUrl>);

/// A configuration that a running daemon cannot come to, not even in part.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "upstream {name} was removed and comes back with another URL ({url}, before {before}): what is known of it belongs to the \
     other one; restart ocistern, or give the new one another name"
)]
pub struct ReturnedElsewhere {
    /// Which.
    pub name: UpstreamName,
    /// Where it is said to be now.
    pub url: String,
    /// Where it was.
    pub before: String,
}

// === impl KnownUrls ===

impl KnownUrls {
    /// Those of this configuration too.
    pub fn learn(&mut self, config: &Config) {
        self.0.extend(config.upstreams.iter().map(|(name, upstream)| (name.clone(), upstream.url.clone())));
    }
}

// === impl Config ===

impl Config {
    /// What a daemon that runs by this configuration can go on with when `new` is read, and how that differs from both.
    ///
    /// # Errors
    /// An upstream comes back that was removed while the daemon ran, with another URL.
    pub fn reload(&self, new: &Self, known: &KnownUrls) -> Result<(Self, Reload), ReturnedElsewhere> {
        let mut next = new.clone();
        next.root.clone_from(&self.root);
        next.admin.address = self.admin.address;
        next.admin.socket.clone_from(&self.admin.socket);
        next.store.durability = self.store.durability;
        next.log.format = self.log.format;
        next.log.otlp.clone_from(&self.log.otlp);
        next.listeners = merged(&self.listeners, &new.listeners);
        for (name, upstream) in &mut next.upstreams {
            match (self.upstreams.get(name), known.0.get(name)) {
                (Some(running), _) if running.url != upstream.url => *upstream = Arc::clone(running),
                (None, Some(before)) if *before != upstream.url => {
                    let (name, url) = (name.clone(), upstream.url.to_string());
                    return Err(ReturnedElsewhere { name, url, before: before.to_string() });
                }
                _ => {}
            }
        }
        // A listener that stays as it is may mean an upstream that is gone.
        for name in next.listeners.iter().flat_map(Listener::upstreams) {
            if let Some(running) = self.upstreams.get(name).filter(|_| !next.upstreams.contains_key(name)) {
                next.upstreams.insert(name.clone(), Arc::clone(running));
            }
        }
        let (before, after, wanted) = (self.table(), next.table(), new.table());
        let mut reload = Reload::default();
        differences(&KeyPath::default(), &before, &after, &mut |key, value| {
            reload.applied.push(match value {
                None => format!("{key} left out"),
                Some(value) if is_of_tables(value) => key.to_string(),
                Some(value) => format!("{key} = {value}"),
            });
        });
        differences(&KeyPath::default(), &after, &wanted, &mut |key, _| reload.pending.push(key.to_string()));
        Ok((next, reload))
    }

    fn table(&self) -> Table {
        // What is shown can be read back.
        self.show().parse().unwrap_or_default()
    }
}

/// The listeners that are open, each with what `new` says of its address. An address that is not there any more, or is new, is
/// for the next start.
fn merged(open: &[Listener], new: &[Listener]) -> Vec<Listener> {
    let mut left: Vec<&Listener> = new.iter().collect();
    let settings = |listener: &Listener| {
        // Of several at port 0 each has its own.
        let at = left.iter().position(|new| new.address == listener.address);
        let Some(new) = at.map(|at| left.remove(at)) else { return listener.clone() };
        Listener { optional: listener.optional, ..new.clone() }
    };
    open.iter().map(settings).collect()
}

fn is_of_tables(value: &Value) -> bool {
    value.is_table() || value.as_array().is_some_and(|list| list.iter().any(Value::is_table))
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

    fn known(config: &Config) -> KnownUrls {
        let mut known = KnownUrls::default();
        known.learn(config);
        known
    }

    #[test]
    fn what_can_be_is_taken_over_and_the_rest_is_told() {
        let running = parse(
            "[[listener]]\naddress = \"127.0.0.1:5000\"\n\
             [upstream.\"docker.io\"]\nmax_rate = \"1MiB\"\nschedule = \"22:00-06:00\"\nmax_connections = 3\n\
             [upstream.\"gone.example\"]\nmax_rate = \"1MiB\"\n[upstream.\"moved.example\"]\nurl = \"https://old.example\"",
        );
        let new = parse(
            "root = \"/elsewhere\"\n[[listener]]\naddress = \"127.0.0.1:5000\"\ndefault_upstream = \"new.example\"\n\
             [store]\nmax_age = \"30d\"\ndurability = \"fast\"\n[limits]\nmax_rate = \"20MiB\"\nidle = \"5m\"\n\
             [upstream.\"docker.io\"]\nmax_rate = \"2MiB\"\ntags = \"1h\"\nmirrors = [\"https://mirror.example\"]\n\
             [upstream.\"new.example\"]\nmax_rate = \"1MiB\"\n\
             [upstream.\"moved.example\"]\nurl = \"https://new.example\"\ntags = \"1h\"\n\
             [[pin]]\nupstream = \"docker.io\"\nrepository = \"library/*\"",
        );
        let (next, reload) = running.reload(&new, &known(&running)).unwrap();
        assert_eq!(
            reload.applied,
            [
                "limits.idle = \"5m\"",
                "limits.max_rate = \"20MiB\"",
                "listener",
                "pin",
                "store.max_age = \"30d\"",
                "upstream.\"docker.io\".max_connections left out",
                "upstream.\"docker.io\".max_rate = \"2MiB\"",
                "upstream.\"docker.io\".mirrors = [\"https://mirror.example\"]",
                "upstream.\"docker.io\".schedule left out",
                "upstream.\"docker.io\".tags = \"1h\"",
                "upstream.\"gone.example\" left out",
                "upstream.\"new.example\"",
            ]
        );
        let pending = ["root", "store.durability", "upstream.\"moved.example\".tags", "upstream.\"moved.example\".url"];
        assert_eq!(reload.pending, pending, "an upstream that moves stays where it is as a whole");

        let (again, reload) = next.reload(&new, &known(&next)).unwrap();
        assert_eq!((reload.applied.len(), reload.pending.len()), (0, pending.len()));
        let (_, reload) = again.reload(&again, &known(&again)).unwrap();
        assert_eq!(reload, Reload::default());
    }

    #[test]
    fn each_key_that_is_for_the_next_start_waits_for_it() {
        let running = parse("[[listener]]\naddress = \"127.0.0.1:1\"\n[upstream.\"r.example\"]");
        let new = parse(
            "root = \"/r\"\n[[listener]]\naddress = \"127.0.0.1:2\"\n[admin]\naddress = \"127.0.0.1:3\"\nsocket = \"/s\"\n\
             [store]\ndurability = \"fast\"\n[log]\nformat = \"json\"\notlp = \"http://127.0.0.1:4318\"\n\
             [upstream.\"r.example\"]\nurl = \"https://other.example\"",
        );
        let (_, reload) = running.reload(&new, &known(&running)).unwrap();
        // Of lists the list is told.
        let told = |key: &str| key.replace("NAME", "r.example").replace("listener.address", "listener");
        let mut expected: Vec<_> = AT_THE_START.into_iter().map(told).collect();
        expected.sort_unstable();
        assert_eq!((reload.applied, reload.pending), (Vec::new(), expected));
    }

    #[test]
    fn addresses_are_for_the_next_start_and_what_holds_at_them_is_not() {
        let running = parse("[[listener]]\naddress = \"127.0.0.1:5000\"\n[[listener]]\naddress = \"127.0.0.1:5001\"");
        let new = parse(
            "[[listener]]\naddress = \"127.0.0.1:5002\"\n\
             [[listener]]\naddress = \"127.0.0.1:5001\"\npublic_url = \"https://cache.example\"",
        );
        let (next, reload) = running.reload(&new, &known(&running)).unwrap();
        let listeners: Vec<_> = next.listeners.iter().map(|l| (l.address.to_string(), l.public_url.clone())).collect();
        let public = Some("https://cache.example".to_owned());
        assert_eq!(listeners, [("127.0.0.1:5000".to_owned(), None), ("127.0.0.1:5001".to_owned(), public)]);
        assert_eq!((reload.applied, reload.pending), (vec!["listener".to_owned()], vec!["listener".to_owned()]));
    }

    #[test]
    fn a_listener_that_stays_keeps_what_it_means() {
        let running = parse(
            "[[listener]]\naddress = \"127.0.0.1:5000\"\ndefault_upstream = \"a.example\"\n[upstream.\"a.example\"]",
        );
        let new = parse("[[listener]]\naddress = \"127.0.0.1:5001\"");
        let (next, reload) = running.reload(&new, &known(&running)).unwrap();
        assert!(next.upstreams.contains_key(&"a.example".parse().unwrap()));
        assert_eq!(reload.pending, ["listener", "upstream.\"a.example\""]);
    }

    #[test]
    fn an_upstream_does_not_come_back_as_another_one() {
        let first = parse("[upstream.\"a.example\"]\nurl = \"https://one.example\"");
        let mut known = known(&first);
        let (without, _) = first.reload(&parse(""), &known).unwrap();
        known.learn(&without);
        let other = parse("[upstream.\"a.example\"]\nurl = \"https://two.example\"");
        let error = without.reload(&other, &known).unwrap_err();
        assert!(error.to_string().contains("restart ocistern"), "{error}");
        let (back, reload) = without.reload(&first, &known).unwrap();
        assert_eq!(reload.applied, ["upstream.\"a.example\""]);
        assert!(back.upstreams.contains_key(&"a.example".parse().unwrap()));
    }
}
