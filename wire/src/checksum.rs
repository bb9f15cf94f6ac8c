//! The Internet checksum: in full (RFC 1071), over a pseudo-header, and updated in place (RFC 1624).

use std::net::IpAddr;

/// The one's complement sum of these bytes, not yet folded or complemented.
fn sum(bytes: &[u8]) -> u64 {
    let (pairs, rest) = bytes.as_chunks::<2>();
    let whole: u64 = pairs
        .iter()
        .map(|pair| u64::from(u16::from_be_bytes(*pair)))
        .sum();
    whole + rest.first().map_or(0, |last| u64::from(*last) << 8)
}

const fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// The checksum of these bytes; over bytes that contain their right checksum it is 0.
pub fn internet(bytes: &[u8]) -> u16 {
    !fold(sum(bytes))
}

/// The checksum of a TCP segment, UDP datagram or ICMPv6 message with its pseudo-header
/// (RFC 9293 section 3.1, RFC 768, RFC 8200 section 8.1).
///
/// For UDP a result of 0 must be sent as 0xffff; [`udp`] does that.
pub fn transport(src: IpAddr, dst: IpAddr, protocol: u8, segment: &[u8]) -> u16 {
    let addresses = address_sum(src) + address_sum(dst);
    !fold(addresses + u64::from(protocol) + segment.len() as u64 + sum(segment))
}

/// The checksum of a UDP datagram, never 0, which would mean that there is none.
pub fn udp(src: IpAddr, dst: IpAddr, datagram: &[u8]) -> u16 {
    match transport(src, dst, 17, datagram) {
        0 => 0xffff,
        checksum => checksum,
    }
}

/// The same for a datagram whose payload is apart from its 8 octets of header.
pub fn udp_in_parts(src: IpAddr, dst: IpAddr, header: [u8; 8], payload: &[u8]) -> u16 {
    let addresses = address_sum(src) + address_sum(dst);
    let length = (header.len() + payload.len()) as u64;
    match !fold(addresses + 17 + length + sum(&header) + sum(payload)) {
        0 => 0xffff,
        checksum => checksum,
    }
}

fn address_sum(addr: IpAddr) -> u64 {
    match addr {
        IpAddr::V4(v4) => sum(&v4.octets()),
        IpAddr::V6(v6) => sum(&v6.octets()),
    }
}

/// The checksum after one 16-bit word changed: RFC 1624 section 3, equation 3.
pub const fn update(checksum: u16, old: u16, new: u16) -> u16 {
    !fold(!checksum as u64 + !old as u64 + new as u64)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_example_of_rfc_1071_section_3() {
        assert_eq!(
            !internet(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]),
            0xddf2
        );
    }

    #[test]
    fn the_example_of_rfc_1624_section_4_gives_zero_and_not_minus_zero() {
        assert_eq!(update(0xdd2f, 0x5555, 0x3285), 0x0000);
    }

    #[test]
    fn an_odd_last_octet_counts_as_the_high_one() {
        assert_eq!(internet(&[0x12]), !0x1200);
    }

    #[test]
    fn a_udp_checksum_of_zero_is_sent_as_ffff() {
        let host: IpAddr = "0.0.0.0".parse().unwrap();
        // 17 and twice the length of 10 are 0x25; the last two octets make it 0xffff.
        let header = [0, 0, 0, 0, 0, 10, 0, 0];
        let payload = (!0x25_u16).to_be_bytes();
        assert_eq!(udp_in_parts(host, host, header, &payload), 0xffff);
        let datagram = [&header[..], &payload].concat();
        assert_eq!(transport(host, host, 17, &datagram), 0);
        assert_eq!(udp(host, host, &datagram), 0xffff);
    }

    proptest! {
        #[test]
        fn parts_sum_up_to_the_whole(
            header in any::<[u8; 8]>(), payload in prop::collection::vec(any::<u8>(), 0..300),
            src in any::<[u8; 16]>(), dst in any::<[u8; 16]>(),
        ) {
            let (src, dst) = (IpAddr::from(src), IpAddr::from(dst));
            let whole = udp(src, dst, &[&header[..], &payload].concat());
            prop_assert_eq!(udp_in_parts(src, dst, header, &payload), whole);
        }

        #[test]
        fn an_update_equals_a_full_computation(
            mut words in prop::collection::vec(any::<u16>(), 1..20), at in any::<prop::sample::Index>(),
            new in 1..=u16::MAX,
        ) {
            let bytes = |words: &[u16]| words.iter().flat_map(|w| w.to_be_bytes()).collect::<Vec<_>>();
            prop_assume!(words.iter().any(|word| *word != 0));
            let before = internet(&bytes(&words));
            let at = at.index(words.len());
            let old = std::mem::replace(&mut words[at], new);
            prop_assert_eq!(update(before, old, new), internet(&bytes(&words)));
        }
    }
}
