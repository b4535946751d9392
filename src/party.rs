//! Parties: who counts as one where something scarce is shared out among those who come. It goes by where they come from,
//! which nobody has to be asked for, and which costs more to have many of than connections, names or credentials do.

use std::net::{IpAddr, Ipv6Addr};

/// One of those among whom something is shared out. Those behind one address are one: nothing tells them apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Party(From);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum From {
    /// An address; of IPv6 the first one of its network.
    Network(IpAddr),
    /// A Unix socket; the user at the other end, where the kernel told.
    Socket(Option<u32>),
}

// === impl Party ===

impl Party {
    /// Who comes from this address. An IPv6 host has a whole /64 to itself, and draws its addresses there as it likes.
    pub fn at(address: IpAddr) -> Self {
        Self(From::Network(match address.to_canonical() {
            IpAddr::V6(v6) if !v6.is_loopback() => {
                IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX)))
            }
            other => other,
        }))
    }

    /// Who comes by a Unix socket.
    pub const fn on_socket(user: Option<u32>) -> Self {
        Self(From::Socket(user))
    }

    /// Whether it is on this machine.
    pub const fn is_local(&self) -> bool {
        match self.0 {
            From::Network(address) => address.is_loopback(),
            From::Socket(_) => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(address: &str) -> Party {
        Party::at(address.parse().unwrap())
    }

    #[test]
    fn addresses_of_one_host_are_one_party() {
        assert_eq!(at("192.0.2.1"), at("::ffff:192.0.2.1"), "in either form");
        assert_ne!(at("192.0.2.1"), at("192.0.2.2"));
        assert_eq!(at("2001:db8::1"), at("2001:db8::ffff:0:2"), "a network of IPv6");
        assert_ne!(at("2001:db8::1"), at("2001:db8:0:1::1"));
    }

    #[test]
    fn what_is_local_is_told_apart_too() {
        let local = [at("127.0.0.1"), at("127.0.0.2"), at("::1"), Party::on_socket(Some(0)), Party::on_socket(None)];
        assert!(local.iter().all(Party::is_local));
        let apart: std::collections::HashSet<_> = local.into_iter().collect();
        assert_eq!(apart.len(), local.len());
        assert!(!at("192.0.2.1").is_local() && !at("2001:db8::1").is_local());
    }
}
