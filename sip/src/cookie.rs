//! Signed state that the concentrator hands out and gets back.
//!
//! A [`DialogCookie`] is the user part of the Record-Route URI: who the two parties are and how to
//! reach each (flow tokens, RFC 5626 section 5), which relay session carries their media, and when
//! the dialog began. User agents echo it in the Route of every request within the dialog, so any
//! concentrator that holds the [`Keys`] can route such a request, also one that never saw the
//! call. Nobody else can make or alter one: each ends in an HMAC-SHA-256, cut to 80 bits, over
//! every byte before it.
//!
//! The same keys make the [`Keys::branch`] of a forwarded request, a keyed hash of the incoming
//! transaction and the target: two concentrators give the same request the same branch.
//!
//! Known limits. A cookie is signed, not encrypted: whoever sees it can read both addresses, as
//! they can in Via and Contact. It does not expire by itself; `started` lets the reader decide.
//! A branch or a tag hash changes when the keys rotate: [`Keys::is_tag`] tries both keys, and a
//! transaction that straddles a rotation is matched by the state of the concentrator that has it.
//!
//! Standards: RFC 5626 section 5, RFC 3261 section 16.6 (step 8) and 16.11, RFC 2104.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;
use subtle::ConstantTimeEq as _;
use thiserror::Error;
use wire::mark::RelayId;

use crate::hop::Flow;

mod layout;

/// The parameter that begins every branch of RFC 3261 (section 8.1.1.7).
pub const MAGIC_COOKIE: &str = "z9hG4bK";

/// What the concentrator must know of a dialog to route a request within it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DialogCookie {
    /// How to reach the party that sent the INVITE.
    pub caller: Flow,
    /// How to reach the party that answered.
    pub callee: Flow,
    /// [`Keys::tag_hash`] of the caller's From tag: a request whose From tag matches comes from
    /// the caller and goes to the callee, any other goes the other way.
    pub caller_tag: u32,
    /// The media session and the relay that has it; `None` where media go direct.
    pub session: Option<(u64, RelayId)>,
    /// Seconds since 1970 when the dialog began.
    pub started: u32,
    /// What names the caller's and the callee's user agent at the registrar, 48 bits; 0 for one
    /// that has not registered here.
    pub names: [u64; 2],
}

/// Why a cookie was not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Error)]
pub enum CookieError {
    /// Not base64url, too short or too long: the user part of somebody else's URI.
    #[error("not a cookie")]
    NotACookie,
    /// The signature is by none of our keys: altered, forged, or older than two rotations.
    #[error("the signature is not ours")]
    Signature,
    /// Signed by us, in a version that this build does not know.
    #[error("version {0} is not known")]
    Version(u8),
    /// Signed by us, yet it does not hold what its version should.
    #[error("the content is malformed")]
    Malformed,
}

/// The keys of all concentrators of one service: the one that signs and the one before it.
#[derive(Clone)]
pub struct Keys {
    current: Hmac<Sha256>,
    previous: Option<Hmac<Sha256>>,
}

/// Bytes of the cut HMAC: 80 bits, the floor of RFC 2104 section 5. That section recommends half
/// of the hash (128 bits); a forger must ask us about each try over the network, and every byte
/// here is carried by every message of the dialog.
pub(crate) const SIGNATURE_LEN: usize = 10;
/// Nothing longer is even decoded.
const MAX_TEXT_LEN: usize = 256;

impl Keys {
    /// Signs with `current`; accepts what `current` or `previous` signed.
    pub fn new(current: [u8; 32], previous: Option<[u8; 32]>) -> Self {
        Self {
            current: keyed(&current),
            previous: previous.as_ref().map(keyed),
        }
    }

    /// The cookie as text that may stand in the user part of a SIP URI unescaped.
    pub fn seal(&self, cookie: &DialogCookie) -> String {
        let mut bytes = layout::encode(cookie);
        let signature = digest(&self.current, Purpose::Cookie, &[&bytes]);
        bytes.extend_from_slice(&signature[..SIGNATURE_LEN]);
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// Reads a cookie that these keys sealed.
    pub fn open(&self, text: &[u8]) -> Result<DialogCookie, CookieError> {
        if text.len() > MAX_TEXT_LEN {
            return Err(CookieError::NotACookie);
        }
        let bytes = URL_SAFE_NO_PAD
            .decode(text)
            .map_err(|_| CookieError::NotACookie)?;
        let Some((content, signature)) = bytes.split_last_chunk::<SIGNATURE_LEN>() else {
            return Err(CookieError::NotACookie);
        };
        let signed = self.each().any(|key| {
            let ours = digest(key, Purpose::Cookie, &[content]);
            ours[..SIGNATURE_LEN].ct_eq(&signature[..]).into()
        });
        if !signed {
            return Err(CookieError::Signature);
        }
        layout::decode(content)
    }

    /// A keyed hash of a From or To tag.
    pub fn tag_hash(&self, tag: &[u8]) -> u32 {
        tag_hash(&self.current, tag)
    }

    /// True where `hash` is the [`Keys::tag_hash`] of `tag` by the current or the previous key.
    pub fn is_tag(&self, hash: u32, tag: &[u8]) -> bool {
        self.each().any(|key| tag_hash(key, tag) == hash)
    }

    /// The Via branch for a request forwarded to `target`, the same at every concentrator.
    ///
    /// `incoming` is whatever identifies the transaction that the request came in by; an ACK to a
    /// non-2xx and a CANCEL must give the same bytes as their INVITE (RFC 3261 section 16.11).
    pub fn branch(&self, incoming: &[u8], target: &[u8]) -> String {
        // The length first: moving a byte from one part to the other must change the hash.
        let length = (incoming.len() as u64).to_be_bytes();
        let hash = digest(&self.current, Purpose::Branch, &[&length, incoming, target]);
        let mut branch = String::from(MAGIC_COOKIE);
        URL_SAFE_NO_PAD.encode_string(&hash[..12], &mut branch);
        branch
    }

    /// The signature of a digest nonce: `stamp` is the nonce, `realm` whose it is.
    pub(crate) fn sign_nonce(&self, stamp: &[u8], realm: &[u8]) -> [u8; SIGNATURE_LEN] {
        nonce_signature(&self.current, stamp, realm)
    }

    /// True for a signature that [`Keys::sign_nonce`] made, by the current or the previous key.
    pub(crate) fn is_nonce(
        &self,
        stamp: &[u8],
        realm: &[u8],
        signature: &[u8; SIGNATURE_LEN],
    ) -> bool {
        self.each()
            .any(|key| nonce_signature(key, stamp, realm).ct_eq(signature).into())
    }

    /// A secret in place of the HA1 of a user that does not exist in `realm`.
    pub(crate) fn nobody(&self, realm: &[u8]) -> [u8; 32] {
        digest(&self.current, Purpose::Nobody, &[realm])
    }

    fn each(&self) -> impl Iterator<Item = &Hmac<Sha256>> {
        std::iter::once(&self.current).chain(&self.previous)
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keys")
            .field("rotating", &self.previous.is_some())
            .finish_non_exhaustive()
    }
}

/// What a hash is for: no output for one purpose can pass for another.
#[derive(Clone, Copy)]
enum Purpose {
    Cookie = 1,
    Tag = 2,
    Branch = 3,
    Nonce = 16,
    Nobody = 17,
}

#[expect(clippy::expect_used, reason = "HMAC takes a key of any length")]
fn keyed(key: &[u8; 32]) -> Hmac<Sha256> {
    Hmac::new_from_slice(key).expect("HMAC takes a key of any length")
}

fn digest(key: &Hmac<Sha256>, purpose: Purpose, parts: &[&[u8]]) -> [u8; 32] {
    let mut hmac = key.clone();
    hmac.update(&[purpose as u8]);
    for part in parts {
        hmac.update(part);
    }
    hmac.finalize().into_bytes().into()
}

fn nonce_signature(key: &Hmac<Sha256>, stamp: &[u8], realm: &[u8]) -> [u8; SIGNATURE_LEN] {
    let hash = digest(key, Purpose::Nonce, &[stamp, realm]);
    let mut signature = [0; SIGNATURE_LEN];
    signature.copy_from_slice(&hash[..SIGNATURE_LEN]);
    signature
}

fn tag_hash(key: &Hmac<Sha256>, tag: &[u8]) -> u32 {
    let [a, b, c, d, ..] = digest(key, Purpose::Tag, &[tag]);
    u32::from_be_bytes([a, b, c, d])
}

#[cfg(test)]
mod tests;
