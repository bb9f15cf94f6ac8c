//! Path tokens: the user part of our Path URI (RFC 3327), which leads back to the flow that a
//! REGISTER came by, as flow tokens do (RFC 5626 section 5.1), and to the relay near it.
//!
//! ```text
//! kind     1 byte   0xf2
//! flags    1 byte   bit 0: a relay follows
//! flow     as in a dialog cookie
//! relay    4 bytes tunnel key, 1 byte mark     (if flagged)
//! ```
//!
//! Signed as cookies are, for a purpose of its own, so that neither passes for the other. No cookie
//! begins with the byte of the kind, so a token that was altered can be told from the user part of
//! somebody else's URI. A token does not expire by itself: the registrar forgets it with the
//! binding. The relay is the one of the last REGISTER, so it is behind by as much after a route flip.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::layout::{self, Reader};
use super::{CookieError, Keys, Purpose};
use crate::hop::Hop;

const KIND: u8 = 0xf2;
const HAS_RELAY: u8 = 1;

impl Keys {
    /// The token of a flow and the relay that it was seen with, as text that may stand in the user
    /// part of a SIP URI unescaped.
    pub fn seal_path(&self, hop: &Hop) -> String {
        let mut bytes = Vec::with_capacity(48);
        bytes.push(KIND);
        bytes.push(if hop.relay.is_some() { HAS_RELAY } else { 0 });
        layout::encode_flow(&mut bytes, &hop.flow, None);
        if let Some(relay) = hop.relay {
            layout::encode_relay(&mut bytes, relay);
        }
        self.sign(Purpose::Path, bytes, b"")
    }

    /// Reads a token that these keys sealed. [`CookieError::Signature`] for one that is like ours
    /// and is not; [`CookieError::NotACookie`] for anything else.
    pub fn open_path(&self, text: &[u8]) -> Result<Hop, CookieError> {
        let content = match self.verify(Purpose::Path, text, b"") {
            Err(CookieError::Signature) if !begins_as_a_token(text) => {
                return Err(CookieError::NotACookie);
            }
            verified => verified?,
        };
        let [KIND, rest @ ..] = content.as_slice() else {
            return Err(CookieError::NotACookie);
        };
        decode(&mut Reader::of(rest)).ok_or(CookieError::Malformed)
    }
}

/// True where the first octet is that of a token.
fn begins_as_a_token(text: &[u8]) -> bool {
    let first = text.get(..4).map(|text| URL_SAFE_NO_PAD.decode(text));
    first.is_some_and(|octets| octets.is_ok_and(|octets| octets.first() == Some(&KIND)))
}

fn decode(reader: &mut Reader<'_>) -> Option<Hop> {
    let flags = reader.byte()?;
    let flow = layout::decode_flow(reader, None)?;
    let relay = if flags & HAS_RELAY == 0 {
        None
    } else {
        Some(layout::decode_relay(reader)?)
    };
    Some(Hop { flow, relay })
}

#[cfg(test)]
mod tests {
    use wire::gre::TunnelKey;
    use wire::mark::{Mark, RelayId};

    use super::*;
    use crate::hop::{ConnectionId, Flow, Transport};

    fn hop(relay: bool) -> Hop {
        let relay = relay.then(|| RelayId {
            key: TunnelKey(0x1001),
            mark: Mark::new(7).unwrap(),
        });
        Hop {
            flow: Flow {
                transport: Transport::Tcp,
                peer: "203.0.113.9:40000".parse().unwrap(),
                local: "198.51.100.1:5060".parse().unwrap(),
                connection: Some(ConnectionId(77)),
            },
            relay,
        }
    }

    #[test]
    fn what_was_sealed_is_opened_again() {
        let keys = Keys::new([7; 32], None);
        for relay in [true, false] {
            let token = keys.seal_path(&hop(relay));
            assert_eq!(keys.open_path(token.as_bytes()), Ok(hop(relay)));
            let rotated = Keys::new([8; 32], Some([7; 32]));
            assert_eq!(rotated.open_path(token.as_bytes()), Ok(hop(relay)));
        }
    }

    #[test]
    fn no_single_changed_or_missing_character_is_accepted() {
        let keys = Keys::new([7; 32], None);
        let token = keys.seal_path(&hop(true));
        for at in 0..token.len() {
            assert!(keys.open_path(&token.as_bytes()[..at]).is_err());
            for byte in 0..=255 {
                let mut forged = token.clone().into_bytes();
                if forged[at] != byte {
                    forged[at] = byte;
                    assert!(keys.open_path(&forged).is_err(), "{byte} at {at}");
                }
            }
        }
    }

    #[test]
    fn a_token_is_no_cookie_and_a_cookie_no_token() {
        let keys = Keys::new([7; 32], None);
        let token = keys.seal_path(&hop(false));
        assert_eq!(keys.open(token.as_bytes()), Err(CookieError::Signature));
        let flow = hop(false).flow;
        let cookie = keys.seal(&crate::cookie::DialogCookie {
            caller: flow,
            callee: flow,
            caller_tag: 1,
            names: [0, 0],
            session: None,
            far: None,
            caller_relay: None,
            started: 0,
            owner: None,
        });
        assert_eq!(
            keys.open_path(cookie.as_bytes()),
            Err(CookieError::NotACookie)
        );
    }
}
