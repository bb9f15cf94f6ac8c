//! A TUN device: the kernel routes packets into it, we read them; what we write, the kernel
//! receives.
//!
//! The device has the tunnel's MTU, so the kernel itself fragments what may be fragmented and
//! answers "fragmentation needed" or "packet too big" for the rest (RFC 7588 section 3.2). Packets
//! come without a packet-information prefix, whole and with complete checksums. The device and all
//! routes into it vanish when the program ends, however it ends.

use std::io;

use tun_tap::{Iface, Mode};

use crate::packet_batch::PacketBatch;
use crate::rtnetlink;
use crate::watched::Watched;

/// The longest device name (IFNAMSIZ less the final zero).
pub const MAX_NAME_LEN: usize = 15;

/// Packets that the kernel holds for us; its default of 500 is less than 2 ms of a burst.
const QUEUE_LENGTH: u32 = 4_096;

/// Why a device could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum TunError {
    /// The kernel would cut it, and another device would be opened.
    #[error("device name {0:?} must have 1 to 15 characters and no '/' or space")]
    Name(String),
    /// The device itself.
    #[error("cannot open the TUN device {name}: {error}{hint}")]
    Open {
        /// The device's name.
        name: String,
        /// What the system said.
        error: io::Error,
        /// What to do about it.
        hint: &'static str,
    },
    /// Its MTU or state.
    #[error("cannot set up the TUN device {name} with MTU {mtu}: {error}")]
    SetUp {
        /// The device's name.
        name: String,
        /// The wanted MTU.
        mtu: u16,
        /// What the system said.
        error: io::Error,
    },
}

/// An open TUN device that is up.
#[derive(Debug)]
pub struct TunDevice {
    device: Watched<Iface>,
    index: u32,
}

impl TunDevice {
    /// Opens or creates the device, sets its MTU and brings it up. Needs CAP_NET_ADMIN and a tokio
    /// runtime.
    pub fn open(name: &str, mtu: u16) -> Result<Self, TunError> {
        if !is_device_name(name) {
            return Err(TunError::Name(name.to_owned()));
        }
        let device = Iface::without_packet_info(name, Mode::Tun).map_err(|error| {
            let hint = hint(&error);
            TunError::Open {
                name: name.to_owned(),
                error,
                hint,
            }
        })?;
        Self::set_up(device, mtu).map_err(|error| TunError::SetUp {
            name: name.to_owned(),
            mtu,
            error,
        })
    }

    fn set_up(device: Iface, mtu: u16) -> io::Result<Self> {
        device.set_non_blocking()?;
        let index = nix::net::if_::if_nametoindex(device.name())?;
        // Else the kernel would send router solicitations into the device. Not there without IPv6.
        let addr_gen_mode = format!("/proc/sys/net/ipv6/conf/{}/addr_gen_mode", device.name());
        let _ = std::fs::write(addr_gen_mode, "1");
        rtnetlink::set_link_up(index, u32::from(mtu), QUEUE_LENGTH)?;
        Ok(Self {
            device: Watched::new(device)?,
            index,
        })
    }

    /// The device's name.
    pub fn name(&self) -> &str {
        self.device.get().name()
    }

    /// The device's interface index.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// Waits for packets, then reads until the batch is full or there are no more. The batch is
    /// emptied first. A slot should be larger than the MTU.
    pub async fn read_batch(&self, batch: &mut PacketBatch) -> io::Result<usize> {
        batch.clear();
        self.device.read(|device| fill(device, batch)).await
    }

    /// Hands a packet to the kernel as if it had arrived on this device.
    pub fn write(&self, packet: &[u8]) -> io::Result<()> {
        self.device.get().send(packet).map(|_| ())
    }
}

fn fill(device: &Iface, batch: &mut PacketBatch) -> io::Result<usize> {
    loop {
        match batch.fill(|slot| device.recv(slot)) {
            None => return Ok(batch.len()),
            Some(Ok(())) => {}
            Some(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
            Some(Err(_)) if !batch.is_empty() => return Ok(batch.len()),
            Some(Err(error)) => return Err(error),
        }
    }
}

/// True for a name that the kernel takes unchanged.
pub fn is_device_name(name: &str) -> bool {
    (1..=MAX_NAME_LEN).contains(&name.len())
        && name != "."
        && name != ".."
        && name
            .bytes()
            .all(|b| b.is_ascii_graphic() && !matches!(b, b'/' | b':' | b'%'))
}

fn hint(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(nix::libc::EBUSY) => "; another program has it open: choose another name",
        Some(nix::libc::EPERM | nix::libc::EACCES) => "; it needs the capability CAP_NET_ADMIN",
        Some(nix::libc::ENOENT) => "; /dev/net/tun is missing: load the kernel module tun",
        Some(nix::libc::EINVAL) => "; a device of another kind has this name",
        Some(_) | None => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_the_kernel_would_change_are_refused() {
        assert!(is_device_name("sipcast0"));
        assert!(is_device_name("123456789012345"));
        for name in ["", "1234567890123456", "a/b", "a b", "sip%d", ".."] {
            assert!(!is_device_name(name), "{name:?}");
        }
    }
}
