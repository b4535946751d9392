//! How many connections there may be: all together, and from one address.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::http::access::Peer;
use crate::party::Party;

/// The permits of one kind of listener.
#[derive(Debug, Clone)]
pub(super) struct Permits {
    total: Arc<Semaphore>,
    count: Arc<Mutex<Count>>,
    per_address: Arc<AtomicUsize>,
    loopback: Loopback,
    /// Taken alone, never over an await point.
    addresses: Arc<Mutex<HashMap<Party, usize>>>,
}

/// What connections from this machine are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Loopback {
    /// Not counted: a proxy in front has those of all its clients.
    Free,
    /// Those of one address, whichever of the loopback ones: who has a user here has all of them.
    Counted,
}

/// How many places there are.
#[derive(Debug)]
struct Count {
    total: usize,
    /// Of the places that are taken, so many go when they become free.
    surplus: usize,
}

/// A place among all connections.
#[derive(Debug)]
pub(super) struct Place {
    permit: Option<OwnedSemaphorePermit>,
    count: Arc<Mutex<Count>>,
}

/// A place among the connections from one address; none where those are not counted.
#[derive(Debug)]
pub(super) struct AddressPlace(Option<(Party, Permits)>);

// === impl Permits ===

impl Permits {
    pub(super) fn new(total: usize, per_address: usize, loopback: Loopback) -> Self {
        let total = within(total);
        Self {
            total: Arc::new(Semaphore::new(total)),
            count: Arc::new(Mutex::new(Count { total, surplus: 0 })),
            per_address: Arc::new(per_address.into()),
            loopback,
            addresses: Arc::default(),
        }
    }

    /// So many there are from now on. Those too many stay until they end by themselves.
    pub(super) fn set(&self, total: usize, per_address: usize) {
        self.per_address.store(per_address, Ordering::Relaxed);
        let (mut count, total) = (self.count.lock(), within(total));
        let before = std::mem::replace(&mut count.total, total);
        if total >= before {
            let kept = count.surplus.min(total - before);
            count.surplus -= kept;
            self.total.add_permits(total - before - kept);
        } else {
            let fewer = before - total;
            count.surplus += fewer - self.total.forget_permits(fewer);
        }
    }

    /// Waits for a place. It is taken before a connection is accepted, so that those too many wait in the kernel and
    /// cost nothing here. None: the permits are closed, which nobody does.
    pub(super) async fn place(&self) -> Option<Place> {
        let permit = self.total.clone().acquire_owned().await.ok()?;
        Some(Place { permit: Some(permit), count: self.count.clone() })
    }

    /// A place for this address, if it has not too many already.
    pub(super) fn admit(&self, peer: &Peer) -> Option<AddressPlace> {
        if matches!(peer, Peer::Unix(_)) {
            return Some(AddressPlace(None));
        }
        let address = match (peer.party(), self.loopback) {
            (party, _) if !party.is_local() => party,
            (_, Loopback::Free) => return Some(AddressPlace(None)),
            (_, Loopback::Counted) => Party::at(Ipv4Addr::LOCALHOST.into()),
        };
        let mut addresses = self.addresses.lock();
        let count = addresses.entry(address).or_insert(0);
        if *count >= self.per_address.load(Ordering::Relaxed) {
            return None;
        }
        *count += 1;
        Some(AddressPlace(Some((address, self.clone()))))
    }
}

fn within(total: usize) -> usize {
    total.clamp(1, Semaphore::MAX_PERMITS)
}

// === impl Place ===

impl Drop for Place {
    fn drop(&mut self) {
        let mut count = self.count.lock();
        if let Some(permit) = self.permit.take()
            && count.surplus > 0
        {
            count.surplus -= 1;
            permit.forget();
        }
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
        let permits = Permits::new(10, 2, Loopback::Free);
        let first = permits.admit(&peer("192.0.2.1:1")).unwrap();
        let _second = permits.admit(&peer("[::ffff:192.0.2.1]:2")).unwrap();
        assert!(permits.admit(&peer("192.0.2.1:3")).is_none(), "a third from the same address");
        assert!(permits.admit(&peer("192.0.2.2:1")).is_some(), "another address");
        drop(first);
        assert!(permits.admit(&peer("192.0.2.1:4")).is_some(), "a place became free");
    }

    #[test]
    fn a_network_of_ipv6_is_one_address_and_loopback_is_not_counted() {
        let permits = Permits::new(10, 1, Loopback::Free);
        let _first = permits.admit(&peer("[2001:db8::1]:1")).unwrap();
        assert!(permits.admit(&peer("[2001:db8::2]:1")).is_none());
        let local: Vec<_> = (1..50).map(|_| permits.admit(&peer("127.0.0.1:1"))).collect();
        assert!(local.iter().all(Option::is_some));
        assert!(permits.admit(&peer("[::1]:1")).is_some());
        assert_eq!(permits.addresses.lock().len(), 1, "nothing is kept of addresses without connections");
    }

    #[test]
    fn where_loopback_counts_it_is_one_address_and_leaves_room_for_others() {
        let permits = Permits::new(10, 2, Loopback::Counted);
        let local = ["127.0.0.1:1", "127.9.9.9:1"].map(|address| permits.admit(&peer(address)).unwrap());
        for address in ["127.0.0.1:2", "127.1.2.3:1", "[::1]:1", "[::ffff:127.0.0.1]:1"] {
            assert!(permits.admit(&peer(address)).is_none(), "{address}");
        }
        assert!(permits.admit(&peer("192.0.2.1:1")).is_some());
        assert!(permits.admit(&Peer::Unix(None)).is_some());
        drop(local);
        assert!(permits.admit(&peer("[::1]:1")).is_some());
    }

    #[tokio::test]
    async fn a_place_is_waited_for() {
        let permits = Permits::new(1, 1, Loopback::Free);
        let place = permits.place().await.unwrap();
        let mut second = std::pin::pin!(permits.place());
        assert!(futures_util::poll!(second.as_mut()).is_pending());
        drop(place);
        assert!(second.await.is_some());
    }

    #[tokio::test]
    async fn there_are_more_places_at_once_and_fewer_as_they_become_free() {
        let permits = Permits::new(2, 1, Loopback::Free);
        let first = permits.place().await.unwrap();
        let second = permits.place().await.unwrap();
        permits.set(3, 1);
        let third = permits.place().await.unwrap();
        permits.set(1, 1);
        drop((first, second));
        assert_eq!(permits.total.available_permits(), 0, "the third is all that there may be");
        permits.set(2, 1);
        assert_eq!(permits.total.available_permits(), 1);
        permits.set(1, 1);
        drop(third);
        assert_eq!(permits.total.available_permits(), 1);
        permits.set(0, 1);
        assert_eq!(permits.total.available_permits(), 1, "never none");
    }

    #[tokio::test]
    async fn places_that_were_to_go_stay_when_there_may_be_more_again() {
        let permits = Permits::new(3, 1, Loopback::Free);
        let places = [permits.place().await, permits.place().await, permits.place().await];
        permits.set(1, 1);
        permits.set(2, 1);
        drop(places);
        assert_eq!(permits.total.available_permits(), 2);
    }

    #[test]
    fn an_address_may_have_more_or_fewer() {
        let permits = Permits::new(10, 1, Loopback::Free);
        let first = permits.admit(&peer("192.0.2.1:1")).unwrap();
        permits.set(10, 2);
        let second = permits.admit(&peer("192.0.2.1:2")).unwrap();
        permits.set(10, 1);
        drop(second);
        assert!(permits.admit(&peer("192.0.2.1:3")).is_none());
        drop(first);
        assert!(permits.admit(&peer("192.0.2.1:3")).is_some());
    }
}
