//! PURE. The mark and the GRE header, as bytes.

use wire::gre::TunnelKey;
use wire::mark::Mark;

use crate::classify::IpVersion;

/// Overwrites the six DSCP bits with the mark. The two ECN bits stay (RFC 9601 section 3); an IPv4
/// header checksum is updated for the changed word (RFC 1624 section 3).
pub fn stamp(packet: &mut [u8], version: IpVersion, mark: Mark) {
    match version {
        IpVersion::V4 => stamp_ipv4(packet, mark),
        IpVersion::V6 => stamp_ipv6(packet, mark),
    }
}

fn stamp_ipv4(packet: &mut [u8], mark: Mark) {
    let Some(header) = packet.first_chunk_mut::<20>() else {
        return;
    };
    let old = u16::from_be_bytes([header[0], header[1]]);
    header[1] = (mark.number() << 2) | (header[1] & 0x03);
    let new = u16::from_be_bytes([header[0], header[1]]);
    let checksum = u16::from_be_bytes([header[10], header[11]]);
    let mut sum = u32::from(!checksum) + u32::from(!old) + u32::from(new);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    header[10..12].copy_from_slice(&(!(sum as u16)).to_be_bytes());
}

/// The Traffic Class lies across the first two bytes: 4 bits of version, 8 of class.
fn stamp_ipv6(packet: &mut [u8], mark: Mark) {
    let Some(word) = packet.first_chunk_mut::<2>() else {
        return;
    };
    let kept = u16::from_be_bytes(*word) & 0xf03f;
    *word = (kept | u16::from(mark.number()) << 6).to_be_bytes();
}

/// The K bit: a key follows (RFC 2890 section 2).
const KEY_PRESENT: u16 = 0x2000;

/// A GRE header with key, without checksum and sequence number (RFC 2784, RFC 2890).
pub fn gre_header(key: TunnelKey, version: IpVersion) -> [u8; 8] {
    let protocol_type: u16 = match version {
        IpVersion::V4 => 0x0800,
        IpVersion::V6 => 0x86dd,
    };
    let [f0, f1] = KEY_PRESENT.to_be_bytes();
    let [p0, p1] = protocol_type.to_be_bytes();
    let [k0, k1, k2, k3] = key.0.to_be_bytes();
    [f0, f1, p0, p1, k0, k1, k2, k3]
}
