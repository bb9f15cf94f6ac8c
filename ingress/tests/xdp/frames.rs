//! Frames of all kinds: mostly good ones, each with something that may be wrong.

use proptest::prelude::*;
use proptest::sample::select;

use crate::network::EDGE_MAC;

/// A frame as it may come to an edge, of 14 octets at least.
pub(crate) fn any_frame() -> impl Strategy<Value = Vec<u8>> {
    let link = (
        mac(),
        tags(),
        select(vec![0u16, 0, 0, 0, 0, 0, 0x0806, 0x0800, 0x86dd]),
    );
    let end = (
        prop::collection::vec(any::<u8>(), 0..30),
        prop_oneof![9 => Just(None), 1 => (14usize..120).prop_map(Some)],
    );
    let packet = prop_oneof![
        4 => ipv4(),
        4 => ipv6(),
        1 => prop::collection::vec(any::<u8>(), 0..200).prop_map(|bytes| (bytes, true)),
    ];
    (link, packet, end).prop_map(|((to, tags, lie), (packet, is_ipv4), (padding, cut))| {
        let mut frame = [&to[..], &[2, 0, 0, 0, 9, 9]].concat();
        for (protocol, tag) in tags {
            frame.extend(protocol.to_be_bytes());
            frame.extend(tag.to_be_bytes());
        }
        let ether_type: u16 = match (lie, is_ipv4) {
            (0, true) => 0x0800,
            (0, false) => 0x86dd,
            (lie, _) => lie,
        };
        frame.extend(ether_type.to_be_bytes());
        frame.extend(packet);
        frame.extend(padding);
        frame.truncate(cut.unwrap_or(frame.len()).max(14));
        frame
    })
}

fn mac() -> impl Strategy<Value = [u8; 6]> {
    prop_oneof![20 => Just(EDGE_MAC), 1 => Just([0xff; 6]), 1 => any::<[u8; 6]>()]
}

fn tags() -> impl Strategy<Value = Vec<(u16, u16)>> {
    let tag = (select(vec![0x8100u16, 0x88a8]), any::<u16>());
    prop_oneof![12 => Just(Vec::new()), 1 => prop::collection::vec(tag, 1..4)]
}

/// Mostly none of it.
fn seldom<T: Clone + std::fmt::Debug + 'static>(
    usual: T,
    strange: impl Strategy<Value = T> + 'static,
) -> impl Strategy<Value = T> {
    prop_oneof![12 => Just(usual), 1 => strange]
}

fn payload() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        6 => prop::collection::vec(any::<u8>(), 0..300),
        1 => prop::collection::vec(any::<u8>(), 1_330..1_420),
    ]
}

fn protocol() -> impl Strategy<Value = u8> {
    prop_oneof![
        10 => select(vec![6u8, 17]),
        2 => select(vec![0u8, 1, 4, 41, 43, 44, 47, 50, 58, 60, 97]),
        1 => any::<u8>(),
    ]
}

fn hop_limit() -> impl Strategy<Value = u8> {
    prop_oneof![8 => 2u8..=255, 1 => 0u8..3]
}

fn source_ipv4() -> impl Strategy<Value = [u8; 4]> {
    prop_oneof![
        10 => any::<[u8; 4]>(),
        2 => any::<u8>().prop_map(|last| [203, 0, 113, last]),
        1 => select(vec![[127, 0, 0, 1], [0; 4], [255; 4], [224, 0, 0, 5], [198, 51, 100, 1]]),
    ]
}

fn ipv4() -> impl Strategy<Value = (Vec<u8>, bool)> {
    let first = (seldom(5u8, 0u8..16), seldom(4u8, 0u8..16), any::<u8>());
    let fragment =
        prop_oneof![6 => select(vec![0u16, 0x4000]), 1 => any::<u16>(), 1 => 0x1ff0u16..0x4000];
    let rest = (
        hop_limit(),
        protocol(),
        seldom(0i16, -3i16..3),
        seldom(0u16, any::<u16>()),
    );
    let ends = (source_ipv4(), seldom([198u8, 51, 100, 1], any::<[u8; 4]>()));
    (first, fragment, rest, ends, payload()).prop_map(
        |(
            (words, version, tos),
            fragment,
            (ttl, protocol, longer, damage),
            (from, to),
            payload,
        )| {
            let header = usize::from(words.max(5)) * 4;
            let length = (header + payload.len()) as u16;
            let mut packet = vec![version << 4 | words, tos];
            packet.extend(length.wrapping_add_signed(longer).to_be_bytes());
            packet.extend([0x12, 0x34]);
            packet.extend(fragment.to_be_bytes());
            packet.extend([ttl, protocol, 0, 0]);
            packet.extend(from);
            packet.extend(to);
            packet.resize(header, 1);
            let checksum = wire::checksum::internet(&packet) ^ damage;
            packet[10..12].copy_from_slice(&checksum.to_be_bytes());
            packet.extend(payload);
            (packet, true)
        },
    )
}

fn source_ipv6() -> impl Strategy<Value = [u8; 16]> {
    let prefix = |prefix: &'static [u8]| {
        any::<[u8; 16]>().prop_map(move |mut address| {
            address[..prefix.len()].copy_from_slice(prefix);
            address
        })
    };
    prop_oneof![
        8 => prefix(&[0x20, 0x01, 0x0d, 0xb8]),
        2 => prefix(&[0x20, 0x01, 0x0d, 0xb8, 0xde, 0xad]),
        1 => prefix(&[0xfe, 0x80]),
        1 => prefix(&[0xff, 0x02]),
        1 => prefix(&[0; 8]),
        2 => any::<[u8; 16]>(),
    ]
}

fn ipv6() -> impl Strategy<Value = (Vec<u8>, bool)> {
    let service = [
        0x20, 0x01, 0x0d, 0xb8, 0x50, 0x60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1,
    ];
    let first = (seldom(6u8, 0u8..16), any::<u32>());
    let fragment = prop_oneof![6 => Just(None), 2 => any::<[u8; 8]>().prop_map(Some)];
    let rest = (hop_limit(), protocol(), seldom(0i16, -3i16..3));
    let ends = (source_ipv6(), seldom(service, any::<[u8; 16]>()));
    (first, fragment, rest, ends, payload()).prop_map(
        |((version, class), fragment, (hop_limit, protocol, longer), (from, to), payload)| {
            let body = fragment.map_or_else(Vec::new, |mut header: [u8; 8]| {
                header[0] = protocol;
                header.to_vec()
            });
            let next = if fragment.is_some() { 44 } else { protocol };
            let body = [body, payload].concat();
            let word = u32::from(version) << 28 | class & 0x0fff_ffff;
            let mut packet = word.to_be_bytes().to_vec();
            packet.extend(
                (body.len() as u16)
                    .wrapping_add_signed(longer)
                    .to_be_bytes(),
            );
            packet.extend([next, hop_limit]);
            packet.extend(from);
            packet.extend(to);
            packet.extend(body);
            (packet, false)
        },
    )
}
