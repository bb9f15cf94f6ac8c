//! Digest authentication as SIP uses it: who sent a request, shown without sending a password.
//!
//! [`Digest`] makes the challenges of one realm and verifies what comes back. A request names its
//! user in [`Credentials`]; the answer to a challenge is right if it is the hash that the user's
//! HA1 ([`Users`]) gives for this method, URI and nonce.
//!
//! * Nonces keep no state: a nonce is the time, a salt and a keyed hash of both, so every
//!   concentrator with the same [`Keys`] accepts what another one gave out. A right answer to an
//!   old nonce, or to one of a key that is gone, is asked again with `stale=true`, and the phone
//!   need not trouble its user.
//! * Each answer counts once: the nonce count is checked against a window for each nonce. The
//!   table of windows is bounded; what it has no room for is not forgotten but refused as stale.
//! * A user that does not exist costs the same work and gets the same answer as a wrong password.
//!
//! Known limits. The table of windows is this concentrator's own: a request that was seen on the
//! wire can be played back at another concentrator for as long as its nonce lives, and so it can
//! within the second in which a concentrator restarts. A copy that reaches us before the original
//! wins. The body is not covered (`auth-int` is not offered), nor is any header but what `uri`
//! says. No `userhash`, no `Authentication-Info`.
//!
//! Standards: RFC 3261 section 22, RFC 7616, RFC 8760 (algorithms in SIP). The form without `qop`
//! of RFC 2069 is refused, since nothing in it can be counted.

mod credentials;
mod nonce;
mod users;

use std::borrow::Cow;
use std::time::Duration;

use md5::Md5;
use sha2::{Sha256, Sha512_256};
use subtle::{Choice, ConstantTimeEq as _};

use crate::cookie::Keys;

pub use credentials::{Credentials, Malformed};
pub use users::{Users, UsersError, UsersFault};

use nonce::{Nonces, Replays, Standing};

/// A hash algorithm of RFC 8760.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Algorithm {
    /// 128 bits; what every phone knows.
    Md5,
    /// 256 bits.
    Sha256,
    /// The first 256 bits of a SHA-512 of its own.
    Sha512T256,
}

impl Algorithm {
    /// The order in which challenges name them: "the most preferred algorithm … at the top" (RFC
    /// 8760 section 2.3).
    pub const STRONGEST_FIRST: [Self; 3] = [Self::Sha512T256, Self::Sha256, Self::Md5];

    /// The token in a header.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Md5 => "MD5",
            Self::Sha256 => "SHA-256",
            Self::Sha512T256 => "SHA-512-256",
        }
    }

    /// The algorithm that a token names, in any case.
    pub fn from_token(token: &[u8]) -> Option<Self> {
        Self::STRONGEST_FIRST
            .into_iter()
            .find(|algorithm| token.eq_ignore_ascii_case(algorithm.name().as_bytes()))
    }

    /// Octets of a hash.
    pub const fn hash_len(self) -> usize {
        match self {
            Self::Md5 => 16,
            Self::Sha256 | Self::Sha512T256 => 32,
        }
    }

    /// The hash of the parts, one behind the other.
    fn hash(self, parts: &[&[u8]]) -> Hash {
        match self {
            Self::Md5 => Hash::of(&hashed::<Md5>(parts)),
            Self::Sha256 => Hash::of(&hashed::<Sha256>(parts)),
            Self::Sha512T256 => Hash::of(&hashed::<Sha512_256>(parts)),
        }
    }
}

fn hashed<D: sha2::Digest>(parts: &[&[u8]]) -> sha2::digest::Output<D> {
    let mut hash = D::new();
    for part in parts {
        hash.update(part);
    }
    hash.finalize()
}

/// A hash of some algorithm; where it has not as many octets, the rest is 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Hash([u8; 32]);

impl Hash {
    fn of(octets: &[u8]) -> Self {
        let mut hash = [0; 32];
        for (to, octet) in hash.iter_mut().zip(octets) {
            *to = *octet;
        }
        Self(hash)
    }

    /// `None` where the digits are not as many as the algorithm's, or no digits.
    fn from_hex(digits: &[u8], algorithm: Algorithm) -> Option<Self> {
        let mut hash = [0; 32];
        read_hex(digits, hash.get_mut(..algorithm.hash_len())?)?;
        Some(Self(hash))
    }

    fn hex(&self, algorithm: Algorithm) -> Hex {
        Hex::of(&self.0[..algorithm.hash_len()])
    }

    /// In a time that does not tell where they differ.
    fn same_as(&self, other: &Self) -> Choice {
        let halves = |hash: &Self| {
            let (chunks, _) = hash.0.as_chunks();
            [0, 1].map(|half: usize| {
                chunks
                    .get(half)
                    .map_or(0, |half| u128::from_ne_bytes(*half))
            })
        };
        let (ours, theirs) = (halves(self), halves(other));
        ours[0].ct_eq(&theirs[0]) & ours[1].ct_eq(&theirs[1])
    }
}

/// A hash in hexadecimal digits, on the stack.
#[derive(Clone, Copy)]
struct Hex {
    digits: [u8; 64],
    len: usize,
}

impl Hex {
    fn of(hash: &[u8]) -> Self {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let mut digits = [0; 64];
        for (pair, byte) in digits.chunks_exact_mut(2).zip(hash) {
            pair[0] = DIGITS[usize::from(byte >> 4)];
            pair[1] = DIGITS[usize::from(byte & 15)];
        }
        Self {
            digits,
            len: 2 * hash.len().min(32),
        }
    }

    fn as_bytes(&self) -> &[u8] {
        &self.digits[..self.len]
    }
}

/// The `response` that a request with these credentials must have (RFC 7616 section 3.4.1, with
/// `qop=auth`), for a user whose HA1 is that.
fn response(ha1: &[u8], method: &[u8], credentials: &Credentials<'_>) -> Hash {
    let algorithm = credentials.algorithm;
    let ha1 = Hex::of(ha1);
    let ha2 = algorithm.hash(&[method, b":", &credentials.uri]);
    let ha2 = ha2.hex(algorithm);
    algorithm.hash(&[
        ha1.as_bytes(),
        b":",
        credentials.nonce,
        b":",
        credentials.nc_text,
        b":",
        credentials.cnonce,
        b":auth:",
        ha2.as_bytes(),
    ])
}

/// What credentials are worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The user has the password, and this is no replay.
    Valid,
    /// The user has the password; the nonce is too old, or not by our keys.
    Stale,
    /// The user has the password; this nonce and count have been used.
    Replayed,
    /// Not the user's password, or no such user.
    Wrong,
}

/// The challenges and the verification of one realm.
#[derive(Debug)]
pub struct Digest {
    realm: String,
    users: Users,
    /// In place of the HA1 of a user that does not exist.
    nobody: [u8; 32],
    nonces: Nonces,
    replays: Replays,
}

impl Digest {
    /// For the users of `realm`; `started_s` is now, in seconds since 1970.
    ///
    /// Nonces from before the start are stale: what was used of them is not known any more.
    pub fn new(
        realm: String,
        users: Users,
        keys: &Keys,
        nonce_lifetime: Duration,
        started_s: u32,
    ) -> Self {
        let lifetime_s = u32::try_from(nonce_lifetime.as_secs()).unwrap_or(u32::MAX);
        Self {
            nobody: keys.nobody(realm.as_bytes()),
            nonces: Nonces::new(keys.clone(), &realm, lifetime_s),
            replays: Replays::new(nonce::MAX_NONCES, started_s),
            realm,
            users,
        }
    }

    /// The realm.
    pub fn realm(&self) -> &str {
        &self.realm
    }

    /// The users.
    pub fn users(&self) -> &Users {
        &self.users
    }

    /// Puts other users in their place; gives back those from before. Nonces stay good.
    pub fn replace_users(&mut self, users: Users) -> Users {
        std::mem::replace(&mut self.users, users)
    }

    /// Nonces whose counts are remembered.
    pub fn nonces_in_use(&self) -> usize {
        self.replays.len()
    }

    /// The credentials for our realm among the values of a request's header fields.
    ///
    /// Of several, the first whose algorithm is one that we offer. Those for other realms and
    /// other schemes are somebody else's. An error if there are none for us and one that cannot
    /// be read.
    pub fn find<'a>(
        &self,
        fields: impl Iterator<Item = &'a [u8]>,
    ) -> Result<Option<Credentials<'a>>, Malformed> {
        let mut malformed = None;
        for field in fields {
            match Credentials::parse(field, self.realm.as_bytes()) {
                Ok(Some(found)) if self.users.offers(found.algorithm) => return Ok(Some(found)),
                Ok(_) => {}
                Err(fault) => malformed = malformed.or(Some(fault)),
            }
        }
        malformed.map_or(Ok(None), Err)
    }

    /// Verifies the credentials of a request with this method. The caller has compared the `uri`
    /// in them with the Request-URI.
    pub fn verify(&mut self, method: &[u8], credentials: &Credentials<'_>, now_s: u32) -> Verdict {
        let algorithm = credentials.algorithm;
        let known = self.users.ha1(&credentials.username, algorithm);
        let exists = Choice::from(u8::from(known.is_some()));
        let ha1 = known.unwrap_or(&self.nobody[..algorithm.hash_len()]);
        let expected = response(ha1, method, credentials);
        if !bool::from(expected.same_as(&credentials.response) & exists) {
            return Verdict::Wrong;
        }
        match self.nonces.standing(credentials.nonce, now_s) {
            Standing::Fresh(nonce) => {
                self.replays
                    .admit(nonce, credentials.nc, self.nonces.oldest_issued_s(now_s))
            }
            Standing::Unknown | Standing::Expired => Verdict::Stale,
        }
    }

    /// The values of the challenges, the strongest algorithm first, each for a header field of
    /// its own. `salt` tells apart nonces of one second.
    pub fn challenges(&self, salt: u32, stale: bool, now_s: u32) -> impl Iterator<Item = String> {
        let nonce = self.nonces.issue(salt, now_s);
        let stale = if stale { ", stale=true" } else { "" };
        let offered = self.users.offered();
        offered.map(move |algorithm| {
            [
                "Digest realm=\"",
                &self.realm,
                "\", nonce=\"",
                &nonce,
                "\", algorithm=",
                algorithm.name(),
                ", qop=\"auth\"",
                stale,
            ]
            .concat()
        })
    }
}

/// True where a SIP user part, escapes and all, names the user of that name.
pub fn is_user(sip_user: &[u8], username: &[u8]) -> bool {
    let mut rest = sip_user;
    let mut name = username.iter();
    while let Some((byte, tail)) = rest.split_first() {
        let (byte, after) = match (byte, tail) {
            (b'%', [high, low, after @ ..]) => match (hex_digit(*high), hex_digit(*low)) {
                (Some(high), Some(low)) => (high << 4 | low, after),
                (None, _) | (_, None) => return false,
            },
            (b'%', _) => return false,
            _ => (*byte, tail),
        };
        if name.next() != Some(&byte) {
            return false;
        }
        rest = after;
    }
    name.next().is_none()
}

/// Fills `octets`; `None` where there are not twice as many digits.
fn read_hex(digits: &[u8], octets: &mut [u8]) -> Option<()> {
    if digits.len() != 2 * octets.len() {
        return None;
    }
    for (octet, pair) in octets.iter_mut().zip(digits.chunks_exact(2)) {
        *octet = hex_digit(pair[0])? << 4 | hex_digit(pair[1])?;
    }
    Some(())
}

fn hex_digit(digit: u8) -> Option<u8> {
    let value = char::from(digit).to_digit(16)?;
    u8::try_from(value).ok()
}

/// A quoted string's content: each backslash gone that stood before another octet.
fn unescaped(text: &[u8]) -> Cow<'_, [u8]> {
    if memchr::memchr(b'\\', text).is_none() {
        return Cow::Borrowed(text);
    }
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.iter();
    while let Some(byte) = bytes.next() {
        match (byte, bytes.as_slice().first()) {
            (b'\\', Some(escaped)) => {
                out.push(*escaped);
                bytes.next();
            }
            _ => out.push(*byte),
        }
    }
    Cow::Owned(out)
}

#[cfg(test)]
mod tests;
