//! Nonces that need no memory to be known again, and the little memory that keeps each of their
//! counts from being used twice.
//!
//! A nonce is 24 characters of base64url: seconds since 1970 (4 octets), a salt (4), and the first
//! 80 bits of a keyed hash of both and the realm (10).

use std::collections::VecDeque;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hashbrown::HashMap;

use super::Verdict;
use crate::cookie::{Keys, SIGNATURE_LEN};

/// Nonces whose counts are remembered: some 15 MB. Where more are in use than that, the oldest
/// ones end before their time, and their phones are asked once more.
pub(super) const MAX_NONCES: usize = 1 << 18;

/// How far another concentrator's clock may be ahead of ours, in seconds.
const CLOCK_SKEW_S: u32 = 60;

const STAMP_LEN: usize = 8;
const NONCE_LEN: usize = STAMP_LEN + SIGNATURE_LEN;
const TEXT_LEN: usize = NONCE_LEN * 4 / 3;

/// Windows looked at for each request, to find those that are over.
const EXPIRED_AT_ONCE: usize = 8;

/// When a nonce was issued, in seconds since 1970, and its salt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Nonce {
    pub(super) issued_s: u32,
    pub(super) salt: u32,
}

/// What a nonce is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    Fresh(Nonce),
    Expired,
    /// Not by our keys.
    Unknown,
}

/// Issues nonces and knows them again.
#[derive(Debug)]
pub(super) struct Nonces {
    keys: Keys,
    realm: Box<[u8]>,
    lifetime_s: u32,
}

impl Nonces {
    pub(super) fn new(keys: Keys, realm: &str, lifetime_s: u32) -> Self {
        Self {
            keys,
            realm: realm.as_bytes().into(),
            lifetime_s,
        }
    }

    pub(super) fn issue(&self, salt: u32, now_s: u32) -> String {
        let mut nonce = [0; NONCE_LEN];
        nonce[..4].copy_from_slice(&now_s.to_be_bytes());
        nonce[4..STAMP_LEN].copy_from_slice(&salt.to_be_bytes());
        let signature = self.keys.sign_nonce(&nonce[..STAMP_LEN], &self.realm);
        nonce[STAMP_LEN..].copy_from_slice(&signature);
        URL_SAFE_NO_PAD.encode(nonce)
    }

    pub(super) fn standing(&self, text: &[u8], now_s: u32) -> Standing {
        let mut nonce = [0; NONCE_LEN];
        if text.len() != TEXT_LEN || URL_SAFE_NO_PAD.decode_slice(text, &mut nonce).is_err() {
            return Standing::Unknown;
        }
        let Some((stamp, signature)) = nonce.split_last_chunk::<SIGNATURE_LEN>() else {
            return Standing::Unknown;
        };
        if !self.keys.is_nonce(stamp, &self.realm, signature) {
            return Standing::Unknown;
        }
        let [a, b, c, d, e, f, g, h, ..] = nonce;
        let nonce = Nonce {
            issued_s: u32::from_be_bytes([a, b, c, d]),
            salt: u32::from_be_bytes([e, f, g, h]),
        };
        let early = nonce.issued_s > now_s.saturating_add(CLOCK_SKEW_S);
        if early || nonce.issued_s < self.oldest_issued_s(now_s) {
            return Standing::Expired;
        }
        Standing::Fresh(nonce)
    }

    /// What was issued before this second is over.
    pub(super) fn oldest_issued_s(&self, now_s: u32) -> u32 {
        now_s.saturating_sub(self.lifetime_s)
    }
}

/// The counts of one nonce that were used: the highest, and those up to 64 below it.
#[derive(Debug, Clone, Copy)]
struct Window {
    highest: u32,
    /// Bit 0 is the highest.
    used: u64,
}

impl Window {
    /// Marks a count as used; false where it was, or is too far back to tell.
    fn admit(&mut self, nc: u32) -> bool {
        if nc > self.highest {
            let ahead = nc - self.highest;
            self.used = self.used.checked_shl(ahead).unwrap_or(0) | 1;
            self.highest = nc;
            return true;
        }
        let Some(bit) = 1_u64.checked_shl(self.highest - nc) else {
            return false;
        };
        let fresh = self.used & bit == 0;
        self.used |= bit;
        fresh
    }
}

/// The windows of the nonces in use.
///
/// To forget a window would open its nonce to replays, so a nonce as old as one that gave way is
/// not accepted any more. Only who has a password gets into the map, so its hashes need not withstand a
/// flood of strangers.
#[derive(Debug)]
pub(super) struct Replays {
    windows: HashMap<Nonce, Window>,
    /// In the order of their first use, which is nearly that of their issue.
    order: VecDeque<Nonce>,
    limit: usize,
    /// Nothing issued before this second is accepted.
    accepted_from_s: u32,
}

impl Replays {
    pub(super) fn new(limit: usize, started_s: u32) -> Self {
        Self {
            windows: HashMap::new(),
            order: VecDeque::new(),
            limit: limit.max(1),
            accepted_from_s: started_s,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.windows.len()
    }

    /// Notes that a nonce was used with this count. Nonces issued before `oldest_s` have expired.
    pub(super) fn admit(&mut self, nonce: Nonce, nc: u32, oldest_s: u32) -> Verdict {
        self.forget_expired(oldest_s);
        if nonce.issued_s < self.accepted_from_s {
            return Verdict::Stale;
        }
        if let Some(window) = self.windows.get_mut(&nonce) {
            return if window.admit(nc) {
                Verdict::Valid
            } else {
                Verdict::Replayed
            };
        }
        if self.windows.len() >= self.limit {
            self.give_way();
            if nonce.issued_s < self.accepted_from_s {
                return Verdict::Stale;
            }
        }
        self.order.push_back(nonce);
        let window = Window {
            highest: nc,
            used: 1,
        };
        self.windows.insert(nonce, window);
        Verdict::Valid
    }

    fn forget_expired(&mut self, oldest_s: u32) {
        for _ in 0..EXPIRED_AT_ONCE {
            match self.order.front() {
                Some(nonce) if nonce.issued_s < oldest_s => {
                    self.windows.remove(nonce);
                    self.order.pop_front();
                }
                Some(_) | None => return,
            }
        }
    }

    fn give_way(&mut self) {
        if let Some(nonce) = self.order.pop_front() {
            self.windows.remove(&nonce);
            let from = nonce.issued_s.saturating_add(1);
            self.accepted_from_s = self.accepted_from_s.max(from);
        }
    }
}

#[cfg(test)]
mod tests;
