//! What a packet on a media port is, as far as relaying needs to know.
//!
//! Standards: RFC 3550 sections 5.1 and 6.4 (headers), RFC 5761 section 4 (telling RTP from RTCP),
//! RFC 7983 section 7 (telling both from STUN, DTLS and others).

use wire::relay_control::Payload;
use wire::rtp::{Kind, Packet, classify};

use crate::reception::RtpFields;

/// A packet that is relayed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Peek {
    /// RTP.
    Rtp(RtpFields),
    /// RTCP, the first packet of a compound.
    Rtcp {
        /// Of its sender.
        ssrc: u32,
    },
    /// Something else that signalling has declared.
    Datagram,
}

impl Peek {
    /// Who sent it, if it says.
    pub(crate) const fn ssrc(self) -> Option<u32> {
        match self {
            Self::Rtp(fields) => Some(fields.ssrc),
            Self::Rtcp { ssrc } => Some(ssrc),
            Self::Datagram => None,
        }
    }
}

/// What these bytes on an RTP port are, where `payload` may pass; `None` when nothing of that.
pub(crate) fn peek_as(payload: Payload, bytes: &[u8]) -> Option<Peek> {
    match payload {
        Payload::Rtp => peek(bytes),
        Payload::RtpAndDtls => match classify(bytes) {
            Kind::Dtls => Some(Peek::Datagram),
            Kind::Rtp | Kind::Rtcp => peek(bytes),
            Kind::Stun | Kind::Zrtp | Kind::TurnChannel | Kind::Unknown => None,
        },
        // The sequence numbers of UDPTL (T.38 section 9.1) come round to what RTP looks like.
        Payload::Datagrams => Some(Peek::Datagram),
    }
}

/// What these bytes are; `None` when neither RTP nor RTCP.
pub(crate) fn peek(bytes: &[u8]) -> Option<Peek> {
    match classify(bytes) {
        Kind::Rtp => {
            // SRTP encrypts the padding, and nothing here needs it.
            let packet = Packet::parse_encrypted(bytes).ok()?;
            Some(Peek::Rtp(RtpFields {
                ssrc: packet.ssrc(),
                sequence: packet.sequence(),
                timestamp: packet.timestamp(),
                payload_type: packet.payload_type(),
            }))
        }
        Kind::Rtcp => {
            let (_, rest) = bytes.split_first_chunk::<4>()?;
            let (ssrc, _) = rest.split_first_chunk::<4>()?;
            Some(Peek::Rtcp {
                ssrc: u32::from_be_bytes(*ssrc),
            })
        }
        Kind::Stun | Kind::Zrtp | Kind::Dtls | Kind::TurnChannel | Kind::Unknown => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rtp_with_its_marker_bit_is_not_rtcp() {
        let packet = [0x80, 0x88, 0x12, 0x34, 0, 0, 0, 160, 0xde, 0xad, 0xbe, 0xef];
        let fields = RtpFields {
            ssrc: 0xdead_beef,
            sequence: 0x1234,
            timestamp: 160,
            payload_type: 8,
        };
        assert_eq!(peek(&packet), Some(Peek::Rtp(fields)));
    }

    #[test]
    fn a_receiver_report_is_rtcp() {
        let packet = [0x80, 201, 0, 1, 0, 0, 0, 7];
        assert_eq!(peek(&packet), Some(Peek::Rtcp { ssrc: 7 }));
    }

    #[test]
    fn what_signalling_has_declared_passes_and_no_more() {
        let (stun, dtls, udptl) = ([0_u8; 20], [22_u8; 40], [0_u8, 1, 1, 6, 0]);
        for (payload, passing) in [
            (Payload::Rtp, [false, false, false]),
            (Payload::RtpAndDtls, [false, true, false]),
            (Payload::Datagrams, [true, true, true]),
        ] {
            let bytes: [&[u8]; 3] = [&stun, &dtls, &udptl];
            let passes = bytes.map(|bytes| peek_as(payload, bytes) == Some(Peek::Datagram));
            assert_eq!(passes, passing, "{payload:?}");
        }
    }

    #[test]
    fn stun_dtls_and_stumps_are_neither() {
        assert_eq!(
            peek(&[0x00, 0x01, 0, 0, 0x21, 0x12, 0xa4, 0x42, 0, 0, 0, 0]),
            None
        );
        assert_eq!(peek(&[22; 40]), None);
        assert_eq!(peek(&[0x80; 11]), None);
        assert_eq!(peek(&[0x80, 200, 0, 1, 0, 0, 0]), None);
        assert_eq!(peek(&[0x80]), None);
        assert_eq!(peek(&[]), None);
        // Claims one CSRC that is not there.
        assert_eq!(peek(&[0x81, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]), None);
    }
}
