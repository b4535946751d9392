//! Which kind of network an address lies in: what an upstream may send us to, and what not.
//!
//! A registry chooses realms and redirects; without this check it could aim our requests at services that only this
//! machine can reach (CVE-2026-33540, CVE-2026-2376).
#![warn(clippy::indexing_slicing)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The kind of network that an address belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum AddressClass {
    /// Reachable by everybody.
    Public,
    /// A site's own network (RFC 1918, RFC 6598, RFC 4193).
    Private,
    /// This machine.
    Loopback,
    /// This link, and the addresses at which clouds serve machine credentials.
    LinkLocal,
    /// No machine at all: unspecified, multicast, broadcast, reserved.
    Unusable,
}

/// Addresses outside the link-local range at which clouds serve machine credentials.
const METADATA: [IpAddr; 3] = [
    IpAddr::V4(Ipv4Addr::new(168, 63, 129, 16)),
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
];

impl AddressClass {
    /// The class of an address; IPv4 inside IPv6 counts as what it is.
    pub fn of(address: IpAddr) -> Self {
        let address = unwrapped(address);
        if METADATA.contains(&address) {
            return Self::LinkLocal;
        }
        match address {
            IpAddr::V4(v4) => Self::of_v4(v4),
            IpAddr::V6(v6) => Self::of_v6(v6),
        }
    }

    /// Whether an upstream of class `self` may send us to an address of class `target`: outwards always, inwards only
    /// to where it lies itself.
    pub fn may_lead_to(self, target: Self) -> bool {
        match target {
            Self::Public => true,
            Self::Private => matches!(self, Self::Private | Self::Loopback | Self::LinkLocal),
            Self::Loopback | Self::LinkLocal => self == target,
            Self::Unusable => false,
        }
    }

    /// The word in messages.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Public => "public",
            Self::Private => "private",
            Self::Loopback => "loopback",
            Self::LinkLocal => "link-local or metadata",
            Self::Unusable => "unusable",
        }
    }

    fn of_v4(address: Ipv4Addr) -> Self {
        let [a, b, ..] = address.octets();
        if address.is_loopback() {
            Self::Loopback
        } else if address.is_link_local() {
            Self::LinkLocal
        } else if a == 0 || address.is_multicast() || a >= 240 {
            Self::Unusable
        } else if address.is_private() || (a == 100 && (64..128).contains(&b)) {
            Self::Private
        } else {
            Self::Public
        }
    }

    fn of_v6(address: Ipv6Addr) -> Self {
        if address.is_loopback() {
            Self::Loopback
        } else if address.is_unicast_link_local() {
            Self::LinkLocal
        } else if address.is_unspecified() || address.is_multicast() {
            Self::Unusable
        } else if address.is_unique_local() || (address.segments()[0] & 0xffc0) == 0xfec0 {
            Self::Private
        } else {
            Self::Public
        }
    }
}

/// The IPv4 address inside an IPv6 one: mapped, compatible, NAT64 (RFC 6052) or 6to4 (RFC 3056).
fn unwrapped(address: IpAddr) -> IpAddr {
    let IpAddr::V6(v6) = address else { return address };
    let v4 = |high: u16, low: u16| {
        let [o1, o2] = high.to_be_bytes();
        let [o3, o4] = low.to_be_bytes();
        IpAddr::V4(Ipv4Addr::new(o1, o2, o3, o4))
    };
    match v6.segments() {
        [0, 0, 0, 0, 0, 0xffff, high, low]
        | [0x64, 0xff9b, 0, 0, 0, 0, high, low]
        | [0, 0, 0, 0, 0, 0, high @ 1..=u16::MAX, low]
        | [0x2002, high, low, ..] => v4(high, low),
        _ => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn class(text: &str) -> AddressClass {
        AddressClass::of(text.parse().unwrap())
    }

    #[test]
    fn every_disguise_is_seen_through() {
        for (text, expected) in [
            ("8.8.8.8", AddressClass::Public),
            ("2606:4700::1", AddressClass::Public),
            ("10.0.0.1", AddressClass::Private),
            ("172.31.0.1", AddressClass::Private),
            ("100.64.0.1", AddressClass::Private),
            ("fd12::1", AddressClass::Private),
            ("127.9.9.9", AddressClass::Loopback),
            ("::1", AddressClass::Loopback),
            ("::ffff:127.0.0.1", AddressClass::Loopback),
            ("::127.0.0.1", AddressClass::Loopback),
            ("64:ff9b::7f00:1", AddressClass::Loopback),
            ("2002:7f00:1::", AddressClass::Loopback),
            ("169.254.169.254", AddressClass::LinkLocal),
            ("::ffff:169.254.169.254", AddressClass::LinkLocal),
            ("fe80::1", AddressClass::LinkLocal),
            ("fd00:ec2::254", AddressClass::LinkLocal),
            ("168.63.129.16", AddressClass::LinkLocal),
            ("100.100.100.200", AddressClass::LinkLocal),
            ("0.0.0.0", AddressClass::Unusable),
            ("0.1.2.3", AddressClass::Unusable),
            ("::", AddressClass::Unusable),
            ("::ffff:0.0.0.0", AddressClass::Unusable),
            ("255.255.255.255", AddressClass::Unusable),
            ("224.0.0.1", AddressClass::Unusable),
        ] {
            assert_eq!(class(text), expected, "{text}");
        }
    }

    #[test]
    fn upstreams_lead_outwards_or_stay() {
        use AddressClass::{LinkLocal, Loopback, Private, Public, Unusable};
        assert!(Public.may_lead_to(Public) && Loopback.may_lead_to(Public) && Private.may_lead_to(Private));
        assert!(Loopback.may_lead_to(Loopback) && LinkLocal.may_lead_to(LinkLocal));
        for inwards in [Private, Loopback, LinkLocal, Unusable] {
            assert!(!Public.may_lead_to(inwards), "a public upstream does not lead to {}", inwards.as_str());
        }
        assert!(!Private.may_lead_to(Loopback) && !Private.may_lead_to(LinkLocal) && !Loopback.may_lead_to(LinkLocal));
    }
}
