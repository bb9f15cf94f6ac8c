//! RTCP: several packets in one datagram, of which the reports are read (RFC 3550 section 6).

use super::be32;
use crate::error::DecodeError;

/// The octets of a packet's header with the sender's SSRC.
pub const HEADER_LEN: usize = 8;
/// The octets of a report block.
pub const REPORT_LEN: usize = 24;
/// Sender report.
pub const SENDER_REPORT: u8 = 200;
/// Receiver report.
pub const RECEIVER_REPORT: u8 = 201;
/// End of participation.
pub const BYE: u8 = 203;

const SENDER_INFO_LEN: usize = 20;

/// True for the packet types that never are an RTP payload type with its marker (RFC 5761 section 4).
pub const fn is_packet_type(octet: u8) -> bool {
    matches!(octet, 192..=223)
}

/// One packet of a compound.
#[derive(Debug, Clone, Copy)]
pub struct Packet<'a> {
    /// Header included, padding not cut off.
    bytes: &'a [u8],
}

impl<'a> Packet<'a> {
    /// The first packet and what follows it.
    pub fn parse(bytes: &'a [u8]) -> Result<(Self, &'a [u8]), DecodeError> {
        let header = bytes.first_chunk::<4>().ok_or(DecodeError::Truncated)?;
        if header[0] >> 6 != 2 {
            return Err(DecodeError::RtpVersion);
        }
        let len = (usize::from(u16::from_be_bytes([header[2], header[3]])) + 1) * 4;
        let (bytes, rest) = bytes.split_at_checked(len).ok_or(DecodeError::RtcpLength)?;
        let packet = Self { bytes };
        if packet
            .reports_at()
            .is_some_and(|at| len < at + packet.count() * REPORT_LEN)
        {
            return Err(DecodeError::RtcpLength);
        }
        Ok((packet, rest))
    }

    /// The packet type, such as [`SENDER_REPORT`].
    pub const fn packet_type(&self) -> u8 {
        self.bytes[1]
    }

    /// The SSRC after the header: the sender's, in all types in use. A BYE may have none.
    pub fn ssrc(&self) -> Option<u32> {
        (self.bytes.len() >= HEADER_LEN).then(|| be32(self.bytes, 4))
    }

    /// The report blocks of a sender or receiver report; empty for other types.
    ///
    /// In SRTCP they are encrypted (RFC 3711 section 3.4) and make no sense.
    pub fn reports(&self) -> impl Iterator<Item = Report> + use<'a> {
        let blocks = self.reports_at().map_or(&[][..], |at| &self.bytes[at..]);
        blocks
            .as_chunks::<REPORT_LEN>()
            .0
            .iter()
            .take(self.count())
            .map(Report::read)
    }

    fn count(&self) -> usize {
        usize::from(self.bytes[0] & 0x1f)
    }

    fn reports_at(&self) -> Option<usize> {
        match self.packet_type() {
            SENDER_REPORT => Some(HEADER_LEN + SENDER_INFO_LEN),
            RECEIVER_REPORT => Some(HEADER_LEN),
            _ => None,
        }
    }
}

/// The packets of a compound, one after another; ends after the first error.
pub fn packets(mut datagram: &[u8]) -> impl Iterator<Item = Result<Packet<'_>, DecodeError>> {
    std::iter::from_fn(move || {
        if datagram.is_empty() {
            return None;
        }
        let first = Packet::parse(datagram);
        datagram = first.as_ref().map_or(&[], |(_, rest)| rest);
        Some(first.map(|(packet, _)| packet))
    })
}

/// What a receiver says of one source (RFC 3550 section 6.4.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Report {
    /// The source reported on.
    pub ssrc: u32,
    /// Lost since the last report, in 256ths.
    pub fraction_lost: u8,
    /// Lost in all; 24 bits, negative with duplicates.
    pub lost: i32,
    /// The highest sequence number, extended by its cycles.
    pub highest_sequence: u32,
    /// Interarrival jitter in timestamp units.
    pub jitter: u32,
    /// The middle 32 bits of the last sender report's NTP time.
    pub last_sender_report: u32,
    /// The time since then, in 65536ths of a second.
    pub delay: u32,
}

impl Report {
    fn read(block: &[u8; REPORT_LEN]) -> Self {
        Self {
            ssrc: be32(block, 0),
            fraction_lost: block[4],
            // Shifted up and down again, the sign is extended.
            lost: (be32(block, 4) << 8).cast_signed() >> 8,
            highest_sequence: be32(block, 8),
            jitter: be32(block, 12),
            last_sender_report: be32(block, 16),
            delay: be32(block, 20),
        }
    }

    /// The block as it goes into a report.
    pub fn block(&self) -> [u8; REPORT_LEN] {
        let mut block = [0; REPORT_LEN];
        let lost = self.lost.cast_unsigned() & 0x00ff_ffff | u32::from(self.fraction_lost) << 24;
        let words = [
            self.ssrc,
            lost,
            self.highest_sequence,
            self.jitter,
            self.last_sender_report,
            self.delay,
        ];
        for (place, word) in block.as_chunks_mut::<4>().0.iter_mut().zip(words) {
            *place = word.to_be_bytes();
        }
        block
    }
}

/// A receiver report with these blocks, of which 31 fit.
pub fn receiver_report(ssrc: u32, reports: &[Report]) -> Vec<u8> {
    let reports = &reports[..reports.len().min(31)];
    let words = (HEADER_LEN + reports.len() * REPORT_LEN) / 4 - 1;
    let mut packet = vec![0x80 | reports.len() as u8, RECEIVER_REPORT];
    packet.extend_from_slice(&(words as u16).to_be_bytes());
    packet.extend_from_slice(&ssrc.to_be_bytes());
    reports
        .iter()
        .for_each(|report| packet.extend_from_slice(&report.block()));
    packet
}
