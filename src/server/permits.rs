//! How many connections there may be: all together, and from one address.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::http::access::Peer;

/// The permits of one kind of listener.
#[derive(Debug, Clone)]
pub(super) struct Permits {
    total: Arc<Semaphore>,
    per_address: usize,
    /// Taken alone, never over an await point.
    addresses: Arc<Mutex<HashMap<IpAddr, usize>>>,
}

/// A place among all connections.
#[derive(Debug)]
pub(super) struct Place {
    _permit: OwnedSemaphorePermit,
}

/// A place among the connections from one address, none for loopback.
#[derive(Debug)]
pub(super) struct AddressPlace(Option<(IpAddr, Permits)>);

// === impl Permits ===

impl Permits {
    pub(super) fn new(total: usize, per_address: usize) -> Self {
        let total = Arc::new(Semaphore::new(total.clamp(1, Semaphore::MAX_PERMITS)));
        Self { total, per_address, addresses: Arc::default() }
    }

    /// Waits for a place. It is taken before a connection is accepted, so that those too many wait in the kernel and
    /// cost nothing here. None: the permits are closed, which nobody does.
    pub(super) async fn place(&self) -> Option<Place> {
        self.total.clone().acquire_owned().await.ok().map(|permit| Place { _permit: permit })
    }

    /// A place for this address, if it has not too many already.
    pub(super) fn admit(&self, peer: &Peer) -> Option<AddressPlace> {
        let Peer::Tcp(address) = peer else { return Some(AddressPlace(None)) };
        let address = group(address.ip().to_canonical());
        if address.is_loopback() {
            return Some(AddressPlace(None));
        }
        let mut addresses = self.addresses.lock();
        let count = addresses.entry(address).or_insert(0);
        if *count >= self.per_address {
            return None;
        }
        *count += 1;
        Some(AddressPlace(Some((address, self.clone()))))
    }
}

/// An IPv6 host has a whole /64 to itself.
fn group(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V6(v6) if !v6.is_loopback() => {
            let prefix = v6.to_bits() & !u128::from(u64::MAX);
            IpAddr::V6(Ipv6Addr::from_bits(prefix))
        }
        other => other,
    }
}

// === impl AddressPlace ===

impl Drop for AddressPlace {
    fn drop(&mut self) {
        let Some((address, permits)) = self.0.take() else { return };
        let mut addresses = permits.addresses.lock();
        match addresses.get_mut(&address) {
            Some(count) if *count > 1 => *count -= 1,
            _ => {
                addresses.remove(&address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(address: &str) -> Peer {
        Peer::Tcp(address.parse().unwrap())
    }

    #[test]
    fn one_address_cannot_take_all_places() {
        let permits = Permits::new(10, 2);
        let first = permits.admit(&peer("192.0.2.1:1")).unwrap();
        let _second = permits.admit(&peer("[::ffff:192.0.2.1]:2")).unwrap();
        assert!(permits.admit(&peer("192.0.2.1:3")).is_none(), "a third from the same address");
        assert!(permits.admit(&peer("192.0.2.2:1")).is_some(), "another address");
        drop(first);
        assert!(permits.admit(&peer("192.0.2.1:4")).is_some(), "a place became free");
    }

    #[test]
    fn a_network_of_ipv6_is_one_address_and_loopback_is_not_counted() {
        let permits = Permits::new(10, 1);
        let _first = permits.admit(&peer("[2001:db8::1]:1")).unwrap();
        assert!(permits.admit(&peer("[2001:db8::2]:1")).is_none());
        let local: Vec<_> = (1..50).map(|_| permits.admit(&peer("127.0.0.1:1"))).collect();
        assert!(local.iter().all(Option::is_some));
        assert!(permits.admit(&peer("[::1]:1")).is_some());
        assert_eq!(permits.addresses.lock().len(), 1, "nothing is kept of addresses without connections");
    }

    #[tokio::test]
    async fn a_place_is_waited_for() {
        let permits = Permits::new(1, 1);
        let place = permits.place().await.unwrap();
        let mut second = std::pin::pin!(permits.place());
        assert!(futures_util::poll!(second.as_mut()).is_pending());
        drop(place);
        assert!(second.await.is_some());
    }
}
