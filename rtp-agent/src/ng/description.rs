//! The description on its way to the other party: m-lines pointed here, `o=` where asked.

use std::net::IpAddr;

use sip::sdp::{Media, MediaAddress, Sdp};
use wire::relay_control::SideAddr;

use super::request::{Family, Request};

/// Where the receiver shall send: our address and ports, or the address that the proxy wants to be seen.
pub fn facing(side: &SideAddr, request: &Request) -> MediaAddress {
    let same_family = |address: &IpAddr| address.is_ipv4() == side.addr.is_ipv4();
    MediaAddress {
        addr: request
            .media_address
            .filter(same_family)
            .unwrap_or(side.addr),
        rtp: side.rtp,
        rtcp: side.rtcp,
    }
}

/// True where a relay can carry this m-line.
pub fn relayable(media: &Media<'_>) -> bool {
    media.is_udp() && !media.is_rejected()
}

/// True where the proxy wants another protocol than the sender's: that is another stream.
pub fn converts(sdp: &Sdp<'_>, wanted: &[u8]) -> bool {
    let rtp = sdp.media().iter().filter(|media| media.is_rtp());
    rtp.clone()
        .any(|media| !media.protocol.eq_ignore_ascii_case(wanted))
}

/// The families of both sides, that of the sender first: as the SDP says, and as the proxy wants.
pub fn families(sdp: &Sdp<'_>, request: &Request) -> [Family; 2] {
    let family = |address: IpAddr| match address {
        IpAddr::V4(_) => Family::V4,
        IpAddr::V6(_) => Family::V6,
    };
    let mut named = sdp.media().iter().filter_map(|media| media.address);
    let sender = named.next().or(request.received_from);
    let sender = sender.map_or(Family::V4, family);
    [sender, request.address_family.unwrap_or(sender)]
}

/// Rewrites each line that has a replacement, and the origin where the proxy asks for it.
pub fn rewrite(
    sdp: &Sdp<'_>,
    replacements: &[Option<MediaAddress>],
    request: &Request,
) -> Option<Vec<u8>> {
    let rewritten = sdp.rewrite(replacements).ok()?;
    let ours = replacements.iter().flatten().next();
    match ours.filter(|_| request.replace_origin) {
        Some(ours) => Some(replace_origin(rewritten, ours.addr)),
        None => Some(rewritten),
    }
}

/// The address of `o=` (RFC 8866 section 5.2), the last of its six fields; one that has not six stays.
fn replace_origin(sdp: Vec<u8>, address: IpAddr) -> Vec<u8> {
    let Some(start) = line_start(&sdp, b"o=") else {
        return sdp;
    };
    let rest = &sdp[start..];
    let end = rest
        .iter()
        .position(|byte| matches!(byte, b'\r' | b'\n'))
        .unwrap_or(rest.len());
    let (line, after) = rest.split_at(end);
    let mut fields = line.splitn(6, |byte| *byte == b' ');
    let kept: Vec<&[u8]> = fields.by_ref().take(3).collect();
    if fields.count() != 3 {
        return sdp;
    }
    let family = if address.is_ipv4() { "IP4" } else { "IP6" };
    let ours = format!(" IN {family} {address}");
    [&sdp[..start], &kept.join(&b' '), ours.as_bytes(), after].concat()
}

/// The first line of the session that begins so.
fn line_start(sdp: &[u8], prefix: &[u8]) -> Option<usize> {
    let mut at = 0;
    for line in sdp.split_inclusive(|byte| *byte == b'\n') {
        if line.starts_with(prefix) {
            return Some(at);
        }
        if line.starts_with(b"m=") {
            return None;
        }
        at += line.len();
    }
    None
}
