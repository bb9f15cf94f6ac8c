//! STUN keepalives on the SIP port (RFC 5626 section 3.5.2, RFC 8489): a phone asks under which
//! address it is seen, and learns that its NAT still has a door for us.
//!
//! Only a Binding request is answered, with XOR-MAPPED-ADDRESS and nothing else: 32 octets in
//! IPv4, 44 in IPv6, where 20 may have asked. Nothing is kept.

use std::net::{IpAddr, SocketAddr};

use bytes::{BufMut, Bytes, BytesMut};

const HEADER: usize = 20;
const MAGIC_COOKIE: u32 = 0x2112_a442;
const BINDING_REQUEST: u16 = 0x0001;
const BINDING_SUCCESS: u16 = 0x0101;
const XOR_MAPPED_ADDRESS: u16 = 0x0020;
/// Attributes below this one must be understood (RFC 8489 section 14).
const COMPREHENSION_OPTIONAL: u16 = 0x8000;

/// True for STUN on a port that it shares with SIP: "the two most significant bits … zeroes"
/// (RFC 8489 section 5), where SIP begins with a letter.
pub(super) fn is_stun(datagram: &[u8]) -> bool {
    let cookie = datagram.get(4..8);
    datagram.first().is_some_and(|first| first & 0xc0 == 0)
        && datagram.len() >= HEADER
        && cookie == Some(&MAGIC_COOKIE.to_be_bytes())
}

/// The answer to a Binding request; `None` for everything else, and for a request that wants more
/// than an address.
pub(super) fn answer(datagram: &[u8], from: SocketAddr) -> Option<Bytes> {
    let (header, attributes) = datagram.split_at_checked(HEADER)?;
    let field = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
    let is_whole = usize::from(field(2)) == attributes.len();
    if field(0) != BINDING_REQUEST || !is_whole || !are_optional(attributes) {
        return None;
    }
    let address = xor_address(from, &header[4..HEADER]);
    let mut answer = BytesMut::with_capacity(HEADER + 4 + address.len());
    answer.put_u16(BINDING_SUCCESS);
    answer.put_u16(u16::try_from(4 + address.len()).ok()?);
    answer.extend_from_slice(&header[4..HEADER]);
    answer.put_u16(XOR_MAPPED_ADDRESS);
    answer.put_u16(u16::try_from(address.len()).ok()?);
    answer.extend_from_slice(&address);
    Some(answer.freeze())
}

/// "the magic cookie and the transaction ID" (RFC 8489 section 14.2) hide the address from boxes
/// that rewrite what looks like one.
fn xor_address(address: SocketAddr, mask: &[u8]) -> Vec<u8> {
    let (family, octets) = match address.ip() {
        IpAddr::V4(v4) => (1, v4.octets().to_vec()),
        IpAddr::V6(v6) => (2, v6.octets().to_vec()),
    };
    let port = address.port().to_be_bytes();
    let hide = |octets: &[u8]| -> Vec<u8> {
        octets
            .iter()
            .zip(mask)
            .map(|(octet, mask)| octet ^ mask)
            .collect()
    };
    [vec![0, family], hide(&port), hide(&octets)].concat()
}

fn are_optional(mut attributes: &[u8]) -> bool {
    while let Some((head, rest)) = attributes.split_first_chunk::<4>() {
        let kind = u16::from_be_bytes([head[0], head[1]]);
        let length = usize::from(u16::from_be_bytes([head[2], head[3]]));
        let Some(rest) = rest.get(length.next_multiple_of(4)..) else {
            return false;
        };
        if kind < COMPREHENSION_OPTIONAL {
            return false;
        }
        attributes = rest;
    }
    attributes.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 5769 section 2.1's transaction ID.
    const REQUEST: [u8; 20] =
        *b"\x00\x01\x00\x00\x21\x12\xa4\x42\xb7\xe7\xa7\x01\xbc\x34\xd6\x86\xfa\x87\xdf\xae";

    #[test]
    fn a_binding_request_is_answered_with_the_address_of_the_sample_responses() {
        // XOR-MAPPED-ADDRESS as in RFC 5769 sections 2.2 and 2.3.
        let cases: [(&str, &[u8]); 2] = [
            (
                "192.0.2.1:32853",
                b"\x00\x20\x00\x08\x00\x01\xa1\x47\xe1\x12\xa6\x43",
            ),
            (
                "[2001:db8:1234:5678:11:2233:4455:6677]:32853",
                b"\x00\x20\x00\x14\x00\x02\xa1\x47\x01\x13\xa9\xfa\xa5\xd3\xf1\x79\
                  \xbc\x25\xf4\xb5\xbe\xd2\xb9\xd9",
            ),
        ];
        for (from, attribute) in cases {
            let answer = answer(&REQUEST, from.parse().unwrap()).unwrap();
            assert_eq!(answer[..2], [1, 1]);
            assert_eq!(usize::from(answer[3]), attribute.len());
            assert_eq!(answer[4..20], REQUEST[4..], "the same transaction");
            assert_eq!(&answer[20..], attribute);
        }
    }

    #[test]
    fn what_is_no_plain_binding_request_gets_no_answer() {
        let from = "192.0.2.1:32853".parse().unwrap();
        let with = |octets: &[u8]| {
            let mut request = [&REQUEST[..], octets].concat();
            request[3] = u8::try_from(octets.len()).unwrap();
            request
        };
        let mut response = REQUEST;
        response[0] = 1;
        assert!(answer(&with(b"\x80\x22\x00\x01x\0\0\0"), from).is_some());
        for refused in [
            REQUEST[..19].to_vec(),
            response.to_vec(),
            [&REQUEST[..], b"more"].concat(),
            with(b"\x00\x06\x00\x04user"),
            with(b"\x80\x22\x00\x09name"),
            with(b"\x80\x22"),
        ] {
            assert_eq!(answer(&refused, from), None, "{refused:?}");
        }
    }

    #[test]
    fn sip_is_not_taken_for_stun() {
        assert!(is_stun(&REQUEST));
        assert!(!is_stun(b"OPTIONS sip:example.com SIP/2.0\r\n\r\n"));
        assert!(!is_stun(b"\0\0\0\0"));
    }
}
