//! Which listener's settings a socket has that systemd opened.

use crate::config::{Address, Listener};

/// For each socket, by its address, the index of its listener: the one with that address, else the first with that port
/// (`127.0.0.1` and `::1` are two sockets), else the next TCP listener that has none, else the first.
pub(super) fn places(sockets: &[Address], listeners: &[Listener]) -> Vec<usize> {
    let known = |socket: &Address| {
        let position = |fits: &dyn Fn(&Address) -> bool| listeners.iter().position(|listener| fits(&listener.address));
        position(&|address| address == socket).or_else(|| position(&|address| same_port(address, socket)))
    };
    let mut places: Vec<Option<usize>> = sockets.iter().map(known).collect();
    for index in 0..places.len() {
        if places.get(index) != Some(&None) {
            continue;
        }
        let free = (0..listeners.len()).find(|place| is_tcp(listeners, *place) && !places.contains(&Some(*place)));
        if let Some(place) = places.get_mut(index) {
            *place = free.or(Some(0));
        }
    }
    places.into_iter().map(Option::unwrap_or_default).collect()
}

/// The indices of the listeners that are not served because sockets of systemd stand in the place of all TCP addresses.
pub(super) fn left_out(places: &[usize], listeners: &[Listener]) -> Vec<usize> {
    if places.is_empty() {
        return Vec::new();
    }
    (0..listeners.len()).filter(|index| is_tcp(listeners, *index) && !places.contains(index)).collect()
}

fn is_tcp(listeners: &[Listener], index: usize) -> bool {
    listeners.get(index).is_some_and(|listener| matches!(listener.address, Address::Tcp(_)))
}

fn same_port(one: &Address, other: &Address) -> bool {
    matches!((one, other), (Address::Tcp(one), Address::Tcp(other)) if one.port() == other.port())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn check(sockets: &[&str], listeners: &[&str], expected: &[usize], unserved: usize) {
        let tables: Vec<_> = listeners.iter().map(|address| format!("[[listener]]\naddress = \"{address}\"")).collect();
        let config = Config::from_toml(&tables.join("\n")).unwrap();
        let address = |text: &&str| match text.strip_prefix("unix:") {
            Some(path) => Address::Unix(path.into()),
            None => Address::Tcp(text.parse().unwrap()),
        };
        let sockets: Vec<_> = sockets.iter().map(address).collect();
        let places = places(&sockets, &config.listeners);
        assert_eq!(places, expected, "{sockets:?} {listeners:?}");
        assert_eq!(left_out(&places, &config.listeners).len(), unserved, "{sockets:?} {listeners:?}");
    }

    #[test]
    fn a_socket_finds_its_listener() {
        let both = ["127.0.0.1:5000", "0.0.0.0:443"];
        check(&[], &both, &[], 0);
        check(&["0.0.0.0:443", "127.0.0.1:5000"], &both, &[1, 0], 0);
        // Nothing that is meant for plain HTTP gets the certificate of another listener.
        check(&["127.0.0.1:5000", "[::1]:5000"], &both, &[0, 0], 1);
        check(&["[::]:443"], &both, &[1], 1);
        // As the units are shipped, to a configuration that names other addresses.
        check(&["10.0.0.1:80", "10.0.0.1:81", "10.0.0.1:82"], &both, &[0, 1, 0], 0);
        check(&["unix:/b", "127.0.0.1:1"], &["127.0.0.1:2", "unix:/a", "unix:/b"], &[2, 0], 0);
        check(&["127.0.0.1:1"], &["unix:/a"], &[0], 0);
    }
}
