//! A stream of octets in numbered messages: what goes one way.
//!
//! Each message has one octet that says what it is, eight of its number, most significant first, and the octets
//! of the stream. The numbers count from 0. Whoever carries the messages may lose them, repeat them or make up
//! others: then the stream ends, and what was in it is for TLS to believe or not.

use bytes::{BufMut as _, Bytes, BytesMut};

/// Octets of the stream in one message, at most.
pub(super) const CHUNK: usize = 32 * 1024;

const HEADER: usize = 9;
const ACCEPTED: u8 = 0;
const DATA: u8 = 1;
const END: u8 = 2;

/// What a message brings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Piece {
    /// Whoever was called is there.
    Accepted,
    /// The next octets.
    Data(Bytes),
    /// There are no more.
    End,
}

/// Why a stream is over before its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(in crate::core_link) enum Fault {
    #[error("a message is missing")]
    Missing,
    #[error("a message has come twice")]
    Repeated,
    #[error("a message is too long")]
    TooLong,
    #[error("a message makes no sense")]
    Strange,
}

/// Numbers messages, or watches their numbers.
#[derive(Debug, Default)]
pub(super) struct Numbers {
    next: u64,
}

impl Numbers {
    /// The next message.
    pub(super) fn wrap(&mut self, piece: &Piece) -> Bytes {
        let (kind, octets): (u8, &[u8]) = match piece {
            Piece::Accepted => (ACCEPTED, &[]),
            Piece::Data(octets) => (DATA, octets),
            Piece::End => (END, &[]),
        };
        let mut message = BytesMut::with_capacity(HEADER + octets.len());
        message.put_u8(kind);
        message.put_u64(self.next);
        message.put_slice(octets);
        self.next += 1;
        message.freeze()
    }

    /// What the next message brings.
    pub(super) fn unwrap(&mut self, message: &Bytes) -> Result<Piece, Fault> {
        let Some((head, octets)) = message.split_first_chunk::<HEADER>() else {
            return Err(Fault::Strange);
        };
        let [kind, number @ ..] = *head;
        let number = u64::from_be_bytes(number);
        if octets.len() > CHUNK {
            return Err(Fault::TooLong);
        }
        match (kind, octets.is_empty()) {
            _ if number > self.next => return Err(Fault::Missing),
            _ if number < self.next => return Err(Fault::Repeated),
            (ACCEPTED, true) | (DATA, false) | (END, true) => self.next += 1,
            _ => return Err(Fault::Strange),
        }
        Ok(match kind {
            ACCEPTED => Piece::Accepted,
            DATA => Piece::Data(message.slice(HEADER..)),
            _ => Piece::End,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(octets: &'static [u8]) -> Piece {
        Piece::Data(Bytes::from_static(octets))
    }

    #[test]
    fn what_goes_in_comes_out_in_its_order() {
        let (mut there, mut here) = (Numbers::default(), Numbers::default());
        for piece in [Piece::Accepted, data(b"a"), data(&[7; CHUNK]), Piece::End] {
            let message = there.wrap(&piece);
            assert_eq!(here.unwrap(&message), Ok(piece));
        }
    }

    #[test]
    fn a_message_that_is_missing_or_comes_twice_is_noticed() {
        let (mut there, mut here) = (Numbers::default(), Numbers::default());
        let [first, second, third] = [b"a", b"b", b"c"].map(|octets| there.wrap(&data(octets)));
        assert_eq!(here.unwrap(&second), Err(Fault::Missing));
        assert_eq!(here.unwrap(&first), Ok(data(b"a")));
        assert_eq!(here.unwrap(&first), Err(Fault::Repeated));
        assert_eq!(here.unwrap(&third), Err(Fault::Missing));
        assert_eq!(here.unwrap(&second), Ok(data(b"b")));
    }

    #[test]
    fn messages_that_nobody_sends_are_refused() {
        let long = Numbers::default().wrap(&Piece::Data(vec![0; CHUNK + 1].into()));
        assert_eq!(Numbers::default().unwrap(&long), Err(Fault::TooLong));
        let mut unknown = [0; HEADER];
        unknown[0] = 3;
        let mut end_with_octets = [0; HEADER + 1];
        end_with_octets[0] = END;
        let mut no_data = [0; HEADER];
        no_data[0] = DATA;
        let strange: [&[u8]; 5] = [
            &[],
            &[DATA; HEADER - 1],
            &unknown,
            &end_with_octets,
            &no_data,
        ];
        for message in strange {
            let message = Bytes::copy_from_slice(message);
            let unwrapped = Numbers::default().unwrap(&message);
            assert_eq!(unwrapped, Err(Fault::Strange), "{message:?}");
        }
    }
}
