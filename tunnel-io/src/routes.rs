//! Changes to the machine's routes and addresses that are taken back when their guard is dropped.

use std::io;
use std::net::IpAddr;

use crate::rtnetlink;
use crate::tun::TunDevice;

/// A change that the kernel refused.
#[derive(Debug, thiserror::Error)]
pub enum RouteError {
    /// Somebody else's route is in the way; it is left alone.
    #[error(
        "there is already a route to exactly {0}: remove it (ip route del {0}), \
         because the packets to it must go into the tunnel device"
    )]
    Taken(IpAddr),
    /// The route.
    #[error("cannot route {address} into {device}: {error}")]
    Route {
        /// The destination.
        address: IpAddr,
        /// The device.
        device: String,
        /// What the system said.
        error: io::Error,
    },
    /// The address.
    #[error("cannot add the address {address} to the loopback interface: {error}")]
    Address {
        /// The address.
        address: IpAddr,
        /// What the system said.
        error: io::Error,
    },
}

/// A host route into a device; removed on drop.
#[derive(Debug)]
pub struct RouteIntoDevice {
    destination: IpAddr,
    index: u32,
}

impl RouteIntoDevice {
    /// Adds a route for exactly this address. A route of the same kind that an earlier run left on
    /// a persistent device is taken over.
    pub fn add(destination: IpAddr, device: &TunDevice) -> Result<Self, RouteError> {
        let index = device.index();
        let added = match rtnetlink::add_route(destination, index) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                rtnetlink::remove_route(destination, index)
                    .map_err(|_| RouteError::Taken(destination))?;
                rtnetlink::add_route(destination, index)
            }
            other => other,
        };
        added.map_err(|error| RouteError::Route {
            address: destination,
            device: device.name().to_owned(),
            error,
        })?;
        Ok(Self { destination, index })
    }
}

impl Drop for RouteIntoDevice {
    fn drop(&mut self) {
        if let Err(error) = rtnetlink::remove_route(self.destination, self.index) {
            tracing::warn!(destination = %self.destination, %error, "cannot remove the route");
        }
    }
}

/// An address on `lo`; removed on drop, unless it was there before.
#[derive(Debug)]
pub struct LoopbackAddress {
    address: IpAddr,
    index: u32,
    is_ours: bool,
}

impl LoopbackAddress {
    /// Makes the address local to this machine. One that the operator (or a killed earlier run)
    /// has put there is used and left in place.
    pub fn add(address: IpAddr) -> Result<Self, RouteError> {
        let failed = |error| RouteError::Address { address, error };
        let index = nix::net::if_::if_nametoindex("lo").map_err(|errno| failed(errno.into()))?;
        let is_ours = match rtnetlink::add_address(address, index) {
            Ok(()) => true,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => false,
            Err(error) => return Err(failed(error)),
        };
        Ok(Self {
            address,
            index,
            is_ours,
        })
    }
}

impl Drop for LoopbackAddress {
    fn drop(&mut self) {
        if !self.is_ours {
            return;
        }
        if let Err(error) = rtnetlink::remove_address(self.address, self.index) {
            tracing::warn!(address = %self.address, %error, "cannot remove the address from lo");
        }
    }
}
