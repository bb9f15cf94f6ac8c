//! Signed state that the concentrator hands out and gets back.
//!
//! A [`DialogCookie`] is the user part of the Record-Route URI: who the two parties are and how to
//! reach each (flow tokens, RFC 5626 section 5), which relay session carries their media, and when
//! the dialog began. User agents echo it in the Route of every request within the dialog, so any
//! concentrator that holds the [`Keys`] can route such a request, also one that never saw the
//! call. Nobody else can make or alter one: each ends in an HMAC-SHA-256, cut to 80 bits, over
//! every byte before it.
//!
//! A [`ViaCookie`] does the same for the responses of one request: a parameter of our Via says
//! where the request came from and which session its media have. It holds what differs from one
//! concentrator to the next; the branch beside it does not. That is [`Keys::branch`], a keyed hash
//! of the incoming transaction and the target: two concentrators give the same request the same
//! branch.
//!
//! Cookies are signed with HMAC. Branches, loop marks and tags are only to be unguessable and are
//! made for every message that is forwarded, so they are SipHash-2-4 under a key derived from the
//! same secret.
//!
//! Known limits. A cookie is signed, not encrypted: whoever sees it can read both addresses, as
//! they can in Via and Contact. It does not expire by itself; `started` lets the reader decide.
//! While the keys rotate, what must find an earlier branch is tried with both ([`Keys::branches`]);
//! an INVITE that is retransmitted to a concentrator with another current key than the first one
//! gets another branch, and the phone answers the copy 482.
//!
//! Standards: RFC 5626 section 5, RFC 3261 section 16.6 (step 8) and 16.11, RFC 2104.

use std::fmt;
use std::hash::Hasher as _;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;
use siphasher::sip128::{Hasher128 as _, SipHasher24};
use subtle::ConstantTimeEq as _;
use thiserror::Error;
use wire::mark::RelayId;

use crate::hop::Flow;
use crate::text::push_hex;

mod layout;
mod path_token;
mod via;

pub use via::{Owner, Role, ViaCookie};

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
    /// The second session and its relay, where media pass two relays.
    pub far: Option<(u64, RelayId)>,
    /// The relay of the edge that the INVITE came by, where there is a session: not always the one
    /// that has it.
    pub caller_relay: Option<RelayId>,
    /// Seconds since 1970 when the dialog began.
    pub started: u32,
    /// What names the caller's and the callee's user agent at the registrar, 48 bits; 0 for one
    /// that has not registered here.
    pub names: [u64; 2],
    /// Who began the call, where there are several concentrators.
    pub owner: Option<Owner>,
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
    current: Key,
    previous: Option<Key>,
}

/// One secret, ready for use.
#[derive(Clone)]
struct Key {
    signature: Hmac<Sha256>,
    hash: SipHasher24,
}

/// What a branch is made of.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BranchOf {
    /// Whatever identifies the transaction that the request came in by; an ACK to a non-2xx and a
    /// CANCEL must give the same bytes as their INVITE (RFC 3261 section 16.11).
    pub incoming: Vec<u8>,
    /// Where it goes.
    pub target: Vec<u8>,
    /// All that decides where it goes, for loop detection (RFC 5393).
    pub route: Vec<u8>,
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
            current: Key::new(&current),
            previous: previous.as_ref().map(Key::new),
        }
    }

    /// The cookie as text that may stand in the user part of a SIP URI unescaped.
    pub fn seal(&self, cookie: &DialogCookie) -> String {
        self.sign(Purpose::Cookie, layout::encode(cookie), b"")
    }

    /// Reads a cookie that these keys sealed.
    pub fn open(&self, text: &[u8]) -> Result<DialogCookie, CookieError> {
        layout::decode(&self.verify(Purpose::Cookie, text, b"")?)
    }

    /// A keyed hash of a From or To tag.
    pub fn tag_hash(&self, tag: &[u8]) -> u32 {
        self.current.tag_hash(tag)
    }

    /// [`Keys::tag_hash`] of what the parts are, one behind the other.
    pub(crate) fn tag_hash_of(&self, parts: &[&[u8]]) -> u32 {
        self.current.tag_hash_of(parts)
    }

    /// A keyed hash of what tells requests apart; nobody is told it.
    pub(crate) fn identity_hash(&self, parts: &[&[u8]]) -> u128 {
        u128::from_be_bytes(self.current.hash(Purpose::Identity, parts))
    }

    /// True where `hash` is the [`Keys::tag_hash`] of `tag` by the current or the previous key.
    pub fn is_tag(&self, hash: u32, tag: &[u8]) -> bool {
        self.each().any(|key| key.tag_hash(tag) == hash)
    }

    /// The Via branch of a forwarded request, the same at every concentrator.
    pub fn branch(&self, of: &BranchOf) -> String {
        self.current.branch(of)
    }

    /// [`Keys::branch`] as each key makes it, the current one's first: which of them made the
    /// branch of an earlier request is not known.
    pub fn branches(&self, of: &BranchOf) -> impl Iterator<Item = String> {
        self.each().map(|key| key.branch(of))
    }

    /// What a branch ends in if [`BranchOf::route`] was this, as each key makes it.
    pub fn loop_marks(&self, route: &[u8]) -> impl Iterator<Item = String> {
        self.each().map(|key| key.loop_mark(route))
    }

    /// `content` and its signature, which also covers `beside`, as text.
    fn sign(&self, purpose: Purpose, mut content: Vec<u8>, beside: &[u8]) -> String {
        let signature = self.current.sign(purpose, &content, beside);
        content.extend_from_slice(&signature[..SIGNATURE_LEN]);
        URL_SAFE_NO_PAD.encode(content)
    }

    /// The content of what [`Keys::sign`] made.
    fn verify(&self, purpose: Purpose, text: &[u8], beside: &[u8]) -> Result<Vec<u8>, CookieError> {
        if text.len() > MAX_TEXT_LEN {
            return Err(CookieError::NotACookie);
        }
        let mut bytes = URL_SAFE_NO_PAD
            .decode(text)
            .map_err(|_| CookieError::NotACookie)?;
        let Some((content, signature)) = bytes.split_last_chunk::<SIGNATURE_LEN>() else {
            return Err(CookieError::NotACookie);
        };
        let signed = self.each().any(|key| {
            let ours = key.sign(purpose, content, beside);
            ours[..SIGNATURE_LEN].ct_eq(&signature[..]).into()
        });
        if !signed {
            return Err(CookieError::Signature);
        }
        let length = content.len();
        bytes.truncate(length);
        Ok(bytes)
    }

    /// The signature of a digest nonce: `stamp` is the nonce, `realm` whose it is.
    pub(crate) fn sign_nonce(&self, stamp: &[u8], realm: &[u8]) -> [u8; SIGNATURE_LEN] {
        self.current.nonce_signature(stamp, realm)
    }

    /// True for a signature that [`Keys::sign_nonce`] made, by the current or the previous key.
    pub(crate) fn is_nonce(
        &self,
        stamp: &[u8],
        realm: &[u8],
        signature: &[u8; SIGNATURE_LEN],
    ) -> bool {
        self.each()
            .any(|key| key.nonce_signature(stamp, realm).ct_eq(signature).into())
    }

    /// A secret in place of the HA1 of a user that does not exist in `realm`.
    pub(crate) fn nobody(&self, realm: &[u8]) -> [u8; 32] {
        digest(&self.current.signature, Purpose::Nobody, &[realm])
    }

    fn each(&self) -> impl Iterator<Item = &Key> {
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
    HashKey = 4,
    Via = 5,
    Loop = 6,
    Identity = 7,
    Nonce = 16,
    Nobody = 17,
    Path = 18,
}

impl Key {
    #[expect(clippy::expect_used, reason = "HMAC takes a key of any length")]
    fn new(secret: &[u8; 32]) -> Self {
        let signature = Hmac::new_from_slice(secret).expect("HMAC takes a key of any length");
        let [a, b] = halves(&digest(&signature, Purpose::HashKey, &[]));
        Self {
            signature,
            hash: SipHasher24::new_with_keys(a, b),
        }
    }

    /// Where the content ends is part of what is signed.
    fn sign(&self, purpose: Purpose, content: &[u8], beside: &[u8]) -> [u8; 32] {
        let length = (content.len() as u64).to_be_bytes();
        digest(&self.signature, purpose, &[&length[6..], content, beside])
    }

    fn nonce_signature(&self, stamp: &[u8], realm: &[u8]) -> [u8; SIGNATURE_LEN] {
        let hash = digest(&self.signature, Purpose::Nonce, &[stamp, realm]);
        let mut signature = [0; SIGNATURE_LEN];
        signature.copy_from_slice(&hash[..SIGNATURE_LEN]);
        signature
    }

    fn hash(&self, purpose: Purpose, parts: &[&[u8]]) -> [u8; 16] {
        let mut hasher = self.hash;
        hasher.write(&[purpose as u8]);
        for part in parts {
            hasher.write(part);
        }
        hasher.finish128().as_bytes()
    }

    fn tag_hash(&self, tag: &[u8]) -> u32 {
        self.tag_hash_of(&[tag])
    }

    fn tag_hash_of(&self, parts: &[&[u8]]) -> u32 {
        let [a, b, c, d, ..] = self.hash(Purpose::Tag, parts);
        u32::from_be_bytes([a, b, c, d])
    }

    fn branch(&self, of: &BranchOf) -> String {
        // The length first: moving a byte from one part to the other must change the hash.
        let length = (of.incoming.len() as u64).to_be_bytes();
        let hash = self.hash(Purpose::Branch, &[&length, &of.incoming, &of.target]);
        let mut branch = String::with_capacity(32);
        branch.push_str(MAGIC_COOKIE);
        URL_SAFE_NO_PAD.encode_string(&hash[..12], &mut branch);
        branch.push_str(&self.loop_mark(&of.route));
        branch
    }

    fn loop_mark(&self, route: &[u8]) -> String {
        let [a, b, c, d, ..] = self.hash(Purpose::Loop, &[route]);
        let mut mark = String::with_capacity(9);
        mark.push('.');
        push_hex(&mut mark, u32::from_be_bytes([a, b, c, d]));
        mark
    }
}

fn digest(key: &Hmac<Sha256>, purpose: Purpose, parts: &[&[u8]]) -> [u8; 32] {
    let mut hmac = key.clone();
    hmac.update(&[purpose as u8]);
    for part in parts {
        hmac.update(part);
    }
    hmac.finalize().into_bytes().into()
}

/// The first 128 bits as two numbers.
fn halves(digest: &[u8; 32]) -> [u64; 2] {
    let half = |at: usize| {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&digest[at..at + 8]);
        u64::from_be_bytes(bytes)
    };
    [half(0), half(8)]
}

#[cfg(test)]
mod tests;
