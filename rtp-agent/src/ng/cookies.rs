//! Replies that a copy of their request gets again.
//!
//! A proxy that hears nothing sends the same message up to five times within seconds. A cookie is one
//! sender's: two proxies may choose the same. Replies are kept for at least [`KEEP`] unless they are more
//! than [`MAX_BYTES`] together; then the older half goes early, which is counted and harmless as long as it
//! is older than a proxy's patience.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a reply is kept at least, and half as long as it is kept at most.
pub const KEEP: Duration = Duration::from_secs(30);
/// Of all replies and cookies together.
pub const MAX_BYTES: usize = 32 * 1024 * 1024;
/// What an entry costs besides its octets.
const OVERHEAD: usize = 128;

type Key = (SocketAddr, Vec<u8>);
type Generation = HashMap<Key, Arc<[u8]>>;

/// The replies of the last half minute and of the one before.
#[derive(Debug)]
pub struct Cookies {
    new: Generation,
    old: Generation,
    new_bytes: usize,
    turned: Instant,
    evicted: u64,
}

impl Cookies {
    /// Nothing is kept yet.
    pub fn new(now: Instant) -> Self {
        Self {
            new: Generation::new(),
            old: Generation::new(),
            new_bytes: 0,
            turned: now,
            evicted: 0,
        }
    }

    /// The reply that this sender has had for this cookie.
    pub fn find(&mut self, from: SocketAddr, cookie: &[u8], now: Instant) -> Option<Arc<[u8]>> {
        self.turn_when_due(now);
        let key = (from, cookie.to_vec());
        self.new.get(&key).or_else(|| self.old.get(&key)).cloned()
    }

    /// Keeps a reply.
    pub fn keep(&mut self, from: SocketAddr, cookie: &[u8], reply: Arc<[u8]>, now: Instant) {
        self.turn_when_due(now);
        let cost = cookie.len() + reply.len() + OVERHEAD;
        if self.new_bytes + cost > MAX_BYTES / 2 {
            self.evicted += self.old.len() as u64;
            self.turn(now);
        }
        self.new_bytes += cost;
        self.new.insert((from, cookie.to_vec()), reply);
    }

    /// Replies that went before their time.
    pub const fn evicted(&self) -> u64 {
        self.evicted
    }

    /// Replies kept now.
    pub fn len(&self) -> usize {
        self.new.len() + self.old.len()
    }

    /// True where none is kept.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn turn_when_due(&mut self, now: Instant) {
        let age = now.saturating_duration_since(self.turned);
        if age >= 2 * KEEP {
            self.new.clear();
        }
        if age >= KEEP {
            self.turn(now);
        }
    }

    fn turn(&mut self, now: Instant) {
        self.old = std::mem::take(&mut self.new);
        self.new_bytes = 0;
        self.turned = now;
    }
}
