use proptest::prelude::*;

use super::*;
use rtcp::Report;

prop_compose! {
    fn repr()(
        payload_type in 0..128_u8, marker: bool, sequence: u16, timestamp: u32, ssrc: u32,
    ) -> Repr {
        Repr { payload_type, marker, sequence, timestamp, ssrc }
    }
}

prop_compose! {
    fn report()(
        words: [u32; 5], fraction_lost: u8, lost in -0x0080_0000..0x0080_0000_i32
    ) -> Report {
        let [ssrc, highest_sequence, jitter, last_sender_report, delay] = words;
        Report { ssrc, fraction_lost, lost, highest_sequence, jitter, last_sender_report, delay }
    }
}

proptest! {
    #[test]
    fn an_rtp_header_comes_back_as_it_was(
        repr in repr(), payload in prop::collection::vec(any::<u8>(), 0..50)
    ) {
        let bytes = [&repr.header()[..], &payload].concat();
        let packet = Packet::parse(&bytes).unwrap();
        prop_assert_eq!(packet.repr(), repr);
        prop_assert_eq!(packet.payload(), &payload[..]);
        for len in 0..HEADER_LEN {
            prop_assert!(Packet::parse(&bytes[..len]).is_err());
        }
    }

    #[test]
    fn reports_come_back_as_they_were(ssrc: u32, reports in prop::collection::vec(report(), 0..32)) {
        let bytes = rtcp::receiver_report(ssrc, &reports);
        prop_assert_eq!(classify(&bytes), Kind::Rtcp);
        let (packet, rest) = rtcp::Packet::parse(&bytes).unwrap();
        prop_assert!(rest.is_empty());
        prop_assert_eq!(packet.ssrc(), Some(ssrc));
        prop_assert_eq!(packet.reports().collect::<Vec<_>>(), reports);
        for len in 0..bytes.len() {
            prop_assert!(rtcp::Packet::parse(&bytes[..len]).is_err());
        }
    }

    #[test]
    fn a_stun_header_comes_back_as_it_was(
        message_type in 0..0x4000_u16, words in 0_u16..20, transaction_id: [u8; 12]
    ) {
        let repr = stun::Repr { message_type, attributes_len: words * 4, transaction_id };
        let mut bytes = repr.header().to_vec();
        bytes.resize(stun::HEADER_LEN + usize::from(words) * 4, 0);
        let message = stun::Message::parse(&bytes).unwrap();
        prop_assert_eq!(message.message_type(), message_type);
        prop_assert_eq!(message.attributes_len(), usize::from(words) * 4);
        prop_assert_eq!(message.transaction_id(), transaction_id);
        for len in 0..bytes.len() {
            prop_assert!(stun::Message::parse(&bytes[..len]).is_err());
        }
    }

    #[test]
    fn garbage_never_panics(mut bytes in prop::collection::vec(any::<u8>(), 1..100), media: bool) {
        if media {
            bytes[0] = bytes[0] & 0x3f | 0x80;
        }
        let _ = classify(&bytes);
        let _ = Packet::parse(&bytes).map(|packet| packet.payload().len());
        let _ = stun::Message::parse(&bytes);
        for packet in rtcp::packets(&bytes).flatten() {
            let _ = (packet.ssrc(), packet.reports().count());
        }
    }
}

#[test]
fn the_first_octet_decides_as_in_rfc_7983() {
    let mut bytes = [0; 40];
    bytes[4..8].copy_from_slice(b"ZRTP");
    for first in 0..=u8::MAX {
        bytes[0] = first;
        let kind = match first {
            0..=3 => Kind::Stun,
            16..=19 => Kind::Zrtp,
            20..=63 => Kind::Dtls,
            64..=79 => Kind::TurnChannel,
            128..=191 => Kind::Rtp,
            _ => Kind::Unknown,
        };
        assert_eq!(classify(&bytes), kind, "{first}");
    }
    for second in 0..=u8::MAX {
        let kind = if (192..=223).contains(&second) {
            Kind::Rtcp
        } else {
            Kind::Rtp
        };
        assert_eq!(
            classify(&[&[0x80, second][..], &[0; 20]].concat()),
            kind,
            "{second}"
        );
    }
    assert_eq!(classify(&[]), Kind::Unknown);
    assert_eq!(classify(&[0x80; 11]), Kind::Unknown);
}

#[test]
fn csrcs_and_extension_come_before_the_payload_and_padding_after() {
    let mut bytes = vec![0xb2, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3];
    bytes.extend_from_slice(&[0xcc; 8]);
    bytes.extend_from_slice(&[0xbe, 0xde, 0, 1, 9, 9, 9, 9]);
    bytes.extend_from_slice(&[1, 2, 3, 0, 2]);
    let packet = Packet::parse(&bytes).unwrap();
    assert_eq!((packet.csrc_count(), packet.payload_offset()), (2, 28));
    assert_eq!(packet.payload(), [1, 2, 3]);
    assert_eq!(
        Packet::parse_encrypted(&bytes).unwrap().payload(),
        [1, 2, 3, 0, 2]
    );
    for padding in [0, 6] {
        bytes[32] = padding;
        assert_eq!(Packet::parse(&bytes).err(), Some(DecodeError::RtpPadding));
    }
    for len in 0..28 {
        assert!(Packet::parse(&bytes[..len]).is_err());
    }
}

#[test]
fn a_compound_is_read_packet_by_packet_and_ends_at_the_first_error() {
    let mut bytes = rtcp::receiver_report(7, &[]);
    bytes.extend_from_slice(&[0x81, rtcp::BYE, 0, 1, 0, 0, 0, 7]);
    let types = |bytes: &[u8]| {
        rtcp::packets(bytes)
            .map(|p| p.map(|p| p.packet_type()))
            .collect::<Vec<_>>()
    };
    assert_eq!(types(&bytes), [Ok(rtcp::RECEIVER_REPORT), Ok(rtcp::BYE)]);
    bytes[11] = 2;
    assert_eq!(
        types(&bytes),
        [Ok(rtcp::RECEIVER_REPORT), Err(DecodeError::RtcpLength)]
    );
}

#[test]
fn a_report_count_over_the_length_is_refused() {
    let mut bytes = rtcp::receiver_report(7, &[]);
    bytes[0] |= 31;
    assert_eq!(
        rtcp::Packet::parse(&bytes).err(),
        Some(DecodeError::RtcpLength)
    );
}
