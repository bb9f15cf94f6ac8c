//! The XDP program that is the fast path of the relay.
//!
//! The object is built from `rtp-agent/bpf/relay.bpf.c`; [`super::relay_tables`] has its maps. This side is
//! the only one that makes and takes entries; the program continues the figures of their streams.

use std::io;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::time::Duration;

use aya::EbpfLoader;
use aya::maps::{Array, HashMap, MapData, MapError};
use nix::time::{ClockId, clock_gettime};

use super::loaded::Loaded;
use super::relay_tables::{Entry, Key, Outcome, RawEntry, RawKey, Stream};
use super::tables::Count;
use super::{Mode, XdpError};
use crate::links::Link;
use crate::system::{self, SystemError};

/// The program counts a stream's packets in windows of 2^27 ns.
const WINDOW_NS: u64 = 1 << 27;

/// Streams whose ways out a CPU keeps at most, a power of 2; each is some 48 octets.
const MOST_WAYS: u32 = 8_192;

/// Which packets the program looks at.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// First and last media port.
    pub ports: (u16, u16),
    /// Packets a second of one stream; what is above is dropped.
    pub stream_limit: u32,
    /// The longest UDP payload.
    pub largest_payload: u32,
}

/// The loaded program; detached when this is dropped.
pub struct RelayXdp {
    loaded: Loaded,
    entries: HashMap<MapData, RawKey, RawEntry>,
    streams: Array<MapData, Stream>,
    first_port: u16,
    /// Of the next entry.
    number: NonZeroU32,
}

impl std::fmt::Debug for RelayXdp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("RelayXdp").field(&self.loaded).finish()
    }
}

impl RelayXdp {
    /// Loads the program. It leaves all packets to the kernel until it has entries and links.
    pub fn load(object: &[u8], plan: &Plan) -> Result<Self, XdpError> {
        let (first, last) = plan.ports;
        let (first_port, last_port) = (u32::from(first), u32::from(last));
        let limit = u64::from(plan.stream_limit) * WINDOW_NS / 1_000_000_000;
        let limit = u32::try_from(limit).unwrap_or(u32::MAX).max(1);
        let pairs = (last_port.saturating_sub(first_port) / 2) + 1;
        let ways = pairs.next_power_of_two().min(MOST_WAYS);
        let way_mask = ways - 1;
        let mut loader = EbpfLoader::new();
        loader
            .override_global("first_port", &first_port, true)
            .override_global("last_port", &last_port, true)
            .override_global("window_limit", &limit, true)
            .override_global("largest_payload", &plan.largest_payload, true)
            .override_global("way_mask", &way_mask, true)
            .map_max_entries("entries", pairs)
            .map_max_entries("streams", pairs)
            .map_max_entries("ways", ways);
        let mut loaded = Loaded::load(&mut loader, object, "relay")?;
        Ok(Self {
            entries: loaded.map("entries")?,
            streams: loaded.map("streams")?,
            first_port: first,
            number: NonZeroU32::MIN,
            loaded,
        })
    }

    /// Attaches it to this interface.
    pub fn attach(&mut self, interface: &str, mode: Mode) -> Result<(), XdpError> {
        self.loaded.attach(interface, mode)
    }

    /// True when this program is on this device.
    pub fn is_attached(&self, link: &Link) -> bool {
        self.loaded.is_attached(link)
    }

    /// The devices of this machine as they are now. Packets come and go by the interfaces that are named,
    /// tagged for a VLAN (or one in another) or not.
    pub fn set_links(&mut self, links: &[Link], interfaces: &[String]) -> Result<(), XdpError> {
        self.loaded.set_links(links, interfaces).map(drop)
    }

    /// From now on the program relays what fits this key, and goes on with the figures of the stream. The
    /// key's local port has no other entry.
    pub fn insert(&mut self, key: &Key, entry: &Entry, stream: &Stream) -> Result<(), XdpError> {
        let place = self.place_of(key)?;
        self.streams.set(place, *stream, 0)?;
        let raw = RawEntry::new(key, entry, place, self.number);
        self.number = self.number.checked_add(1).unwrap_or(NonZeroU32::MIN);
        self.entries.insert(RawKey::from(key), raw, 0)?;
        Ok(())
    }

    /// From now on it leaves this to the kernel; the figures of the stream at its end. A packet that is in
    /// the program at this moment, on another CPU, may be missing in them.
    pub fn remove(&mut self, key: &Key) -> Result<Stream, XdpError> {
        match self.entries.remove(&RawKey::from(key)) {
            Ok(()) => {}
            Err(MapError::SyscallError(error))
                if error.io_error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error.into()),
        }
        self.stream(key)
    }

    /// The figures of the stream as they are now.
    pub fn stream(&self, key: &Key) -> Result<Stream, XdpError> {
        Ok(self.streams.get(&self.place_of(key)?, 0)?)
    }

    /// What became of all packets so far, in the order of [`Outcome::ALL`].
    pub fn counts(&self) -> Result<[Count; Outcome::ALL.len()], XdpError> {
        self.loaded.counts()
    }

    /// Runs the program once on a frame as if it had come to the device of this number, for tests and
    /// measurements: its return value, the frame afterwards, and how many nanoseconds it took.
    pub fn run(&self, frame: &[u8], device: u32) -> Result<(u32, Vec<u8>, u64), XdpError> {
        self.loaded.run(frame, device)
    }

    fn place_of(&self, key: &Key) -> Result<u32, XdpError> {
        let above = key.local.port().checked_sub(self.first_port);
        let above = above.ok_or(XdpError::Mismatch("a port that is no media port"))?;
        Ok(u32::from(above / 2))
    }
}

/// The clock of [`Stream::last_ns`].
pub fn monotonic_ns() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from);
    now.map_or(0, |now| u64::try_from(now.as_nanos()).unwrap_or(u64::MAX))
}

/// Lets the program ask the kernel for ways out of this host as the host's own packets find theirs: the
/// kernel tells them only for a device that forwards, and `lo`, where such packets begin, is the one where
/// that makes no router of the host.
pub fn allow_lookups(addresses: &[IpAddr]) -> Result<(), SystemError> {
    for address in addresses {
        system::forward_from_loopback(*address)?;
    }
    Ok(())
}
