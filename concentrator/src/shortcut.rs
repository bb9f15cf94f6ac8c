//! The short way: a whole UDP datagram for one of the SIP sockets goes from the tunnel straight to
//! the worker, without the TUN device, the kernel's receive path and a second system call.
//!
//! Only what the kernel would have delivered unchanged is taken: no fragment, no IP options or
//! extension headers, checksums that are right. Everything else (fragments to be reassembled, TCP,
//! ICMP, other ports, and what the kernel should drop and count) takes the way through the device.
//!
//! The kernel's way takes longer, so a datagram behind a fragmented one of the same sender would
//! overtake it: [`Detours`] sends those the same way.
//!
//! A packet filter on the TUN device does not see these datagrams. An edge's `allowed_sources` is
//! asked before; tcpdump sees them inside GRE on the core interface.

use std::hash::{BuildHasher as _, RandomState};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use wire::checksum;
use wire::ip::{self, protocol};

/// Octets of a UDP header (RFC 768).
const UDP_HEADER_LEN: usize = 8;

/// A datagram that a SIP socket would have received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Datagram<'a> {
    /// Who sent it.
    pub(crate) peer: SocketAddr,
    /// The SIP socket that it is for.
    pub(crate) local: SocketAddr,
    /// What it carries.
    pub(crate) payload: &'a [u8],
}

/// How long a sender's datagrams follow its fragments through the kernel: long enough for the
/// worker to have read what went before.
const DETOUR: Duration = Duration::from_millis(300);
/// Senders of fragments that are remembered. One that is forgotten too early may see two of its
/// datagrams change places.
const SENDERS: usize = 256;

/// Whose datagrams take the kernel's way because a fragment did lately.
#[derive(Debug)]
pub(crate) struct Detours {
    hasher: RandomState,
    senders: Box<[Option<(IpAddr, Instant)>; SENDERS]>,
    latest: Option<Instant>,
}

impl Detours {
    pub(crate) fn new() -> Self {
        Self {
            hasher: RandomState::new(),
            senders: Box::new([None; SENDERS]),
            latest: None,
        }
    }

    /// A fragment of this sender goes to the kernel.
    pub(crate) fn note(&mut self, sender: IpAddr, now: Instant) {
        self.senders[self.place(sender)] = Some((sender, now));
        self.latest = Some(now);
    }

    /// True where this sender's datagrams must go there too.
    pub(crate) fn holds(&self, sender: IpAddr, now: Instant) -> bool {
        let recent = |at: Instant| now.saturating_duration_since(at) < DETOUR;
        // Most of the time nobody sends fragments.
        self.latest.is_some_and(recent)
            && self.senders[self.place(sender)]
                .is_some_and(|(known, at)| known == sender && recent(at))
    }

    fn place(&self, sender: IpAddr) -> usize {
        self.hasher.hash_one(sender) as usize % SENDERS
    }
}

/// True for a part of a UDP datagram.
pub(crate) fn is_fragment(inner: &[u8]) -> bool {
    ip::Packet::parse(inner)
        .is_ok_and(|packet| packet.protocol() == protocol::UDP && packet.fragment().is_some())
}

/// The datagram in an accepted packet, if it may take the short way to one of `sockets`.
pub(crate) fn datagram<'a>(inner: &'a [u8], sockets: &[SocketAddr]) -> Option<Datagram<'a>> {
    let packet = ip::Packet::parse(inner).ok()?;
    let plain_header = if packet.is_ipv4() { 20 } else { 40 };
    if packet.protocol() != protocol::UDP
        || packet.fragment().is_some()
        || packet.header_len() != plain_header
        || !packet.header_checksum_is_right()
    {
        return None;
    }
    let ports = packet.ports()?;
    let local = SocketAddr::new(packet.dst(), ports.destination);
    if !sockets.contains(&local) {
        return None;
    }
    let payload = packet.udp_payload().ok()?;
    let whole = packet.payload().get(..UDP_HEADER_LEN + payload.len())?;
    is_intact(&packet, whole).then_some(Datagram {
        peer: SocketAddr::new(packet.src(), ports.source),
        local,
        payload,
    })
}

/// A checksum of 0 means none in IPv4 (RFC 768) and is not allowed in IPv6 (RFC 8200 section 8.1).
fn is_intact(packet: &ip::Packet<'_>, datagram: &[u8]) -> bool {
    if datagram[6..UDP_HEADER_LEN] == [0, 0] {
        return packet.is_ipv4();
    }
    checksum::transport(packet.src(), packet.dst(), protocol::UDP, datagram) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    const PHONE: &str = "203.0.113.7:40000";
    const SERVICE: &str = "198.51.100.1:5060";
    const PHONE_V6: &str = "[2001:db8::7]:40000";
    const SERVICE_V6: &str = "[2001:db8:1::1]:5060";

    fn sockets() -> Vec<SocketAddr> {
        vec![SERVICE.parse().unwrap(), SERVICE_V6.parse().unwrap()]
    }

    fn packet(from: &str, to: &str) -> Vec<u8> {
        ip::udp(from.parse().unwrap(), to.parse().unwrap(), 4, b"OPTIONS").unwrap()
    }

    fn takes(inner: &[u8]) -> bool {
        datagram(inner, &sockets()).is_some()
    }

    #[test]
    fn a_whole_datagram_for_a_sip_socket_is_taken_in_both_families() {
        for (phone, service) in [(PHONE, SERVICE), (PHONE_V6, SERVICE_V6)] {
            let inner = packet(phone, service);
            let taken = datagram(&inner, &sockets()).unwrap();
            assert_eq!(taken.peer, phone.parse().unwrap());
            assert_eq!(taken.local, service.parse().unwrap());
            assert_eq!(taken.payload, b"OPTIONS");
        }
    }

    #[test]
    fn another_port_and_another_protocol_are_the_kernels() {
        assert!(!takes(&packet(PHONE, "198.51.100.1:5062")));
        let header = ip::TcpRepr {
            seq: 1,
            ack: 0,
            flags: 0x02,
            window: 1000,
        };
        let (phone, service) = (PHONE.parse().unwrap(), SERVICE.parse().unwrap());
        assert!(!takes(&ip::tcp(phone, service, 4, header, b"").unwrap()));
    }

    #[test]
    fn fragments_are_the_kernels() {
        for flags in [0x20, 0x01] {
            let mut inner = packet(PHONE, SERVICE);
            inner[if flags == 0x20 { 6 } else { 7 }] = flags;
            repair_header(&mut inner);
            assert!(!takes(&inner), "flags {flags:#x}");
        }
    }

    #[test]
    fn a_wrong_checksum_anywhere_leaves_the_packet_to_the_kernel() {
        for (phone, service) in [(PHONE, SERVICE), (PHONE_V6, SERVICE_V6)] {
            let good = packet(phone, service);
            let first_checked = if good[0] >> 4 == 4 { 0 } else { 8 };
            for at in first_checked..good.len() {
                let mut bad = good.clone();
                bad[at] ^= 0x10;
                assert!(!takes(&bad), "octet {at} of {phone}");
            }
        }
    }

    #[test]
    fn no_checksum_is_a_checksum_only_in_ipv4() {
        let mut v4 = packet(PHONE, SERVICE);
        v4[26..28].fill(0);
        assert!(takes(&v4));
        let mut v6 = packet(PHONE_V6, SERVICE_V6);
        v6[46..48].fill(0);
        assert!(!takes(&v6));
    }

    #[test]
    fn ip_options_are_the_kernels() {
        let mut inner = packet(PHONE, SERVICE);
        inner[0] = 0x46;
        inner.splice(20..20, [1, 1, 1, 1]);
        let length = u16::try_from(inner.len()).unwrap();
        inner[2..4].copy_from_slice(&length.to_be_bytes());
        repair_header(&mut inner);
        assert!(!takes(&inner));
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "any instant will do")]
    fn a_senders_datagrams_follow_its_fragments_for_a_while() {
        let mut detours = Detours::new();
        let (sender, other) = (
            IpAddr::from([203, 0, 113, 7]),
            IpAddr::from([203, 0, 113, 8]),
        );
        let start = Instant::now();
        assert!(!detours.holds(sender, start));
        detours.note(sender, start);
        assert!(detours.holds(sender, start + DETOUR / 2));
        assert!(!detours.holds(other, start + DETOUR / 2));
        assert!(!detours.holds(sender, start + DETOUR));
    }

    #[test]
    fn parts_of_a_datagram_are_told_from_whole_ones() {
        let mut inner = packet(PHONE, SERVICE);
        assert!(!is_fragment(&inner));
        inner[6] = 0x20;
        assert!(is_fragment(&inner));
    }

    fn repair_header(inner: &mut [u8]) {
        let length = usize::from(inner[0] & 0x0f) * 4;
        inner[10..12].fill(0);
        let right = checksum::internet(&inner[..length]);
        inner[10..12].copy_from_slice(&right.to_be_bytes());
    }
}
