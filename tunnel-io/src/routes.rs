//! Changes to the machine's routes and addresses that are taken back when their guard is dropped.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use nix::libc;

use crate::rtnetlink::{self, DeviceRoute, LookupRule, Of};
use crate::tun::TunDevice;

/// A change that the kernel refused.
#[derive(Debug, thiserror::Error)]
pub enum RouteError {
    /// Somebody else's route is in the way; it is left alone.
    #[error(
        "somebody else's route to exactly the prefix of {address} is in table {table} with our metric: remove it, \
         or change the metric or the table of ours"
    )]
    Taken {
        /// The destination.
        address: IpAddr,
        /// The table.
        table: u32,
    },
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

/// How our routes are told from everybody else's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Marking {
    /// The protocol number (rtm_protocol) of all of them.
    pub protocol: u8,
    /// The table that the captured addresses are looked up in.
    pub table: u32,
}

/// The rule of a captured address comes before the main table (32766) and after `local` (0).
const RULE_PRIORITY: u32 = 5_060;

/// Packets to an address go into a device, whatever the main table says: the route stands in a
/// table of its own, and a rule leads there. Both are removed on drop; the route vanishes with its
/// device in any case, and a rule without it leads on to the main table.
#[derive(Debug)]
pub struct CapturedAddress {
    /// Held for its drop.
    _route: RuledRoute,
}

impl CapturedAddress {
    /// Takes over what a killed earlier run left.
    pub fn add(
        destination: IpAddr,
        device: &TunDevice,
        marking: Marking,
    ) -> Result<Self, RouteError> {
        let Marking { protocol, table } = marking;
        let route = DeviceRoute {
            destination,
            prefix_length: length_of(destination),
            index: device.index(),
            table,
            metric: 0,
            protocol,
        };
        let rule = LookupRule {
            of: Of::Destination(destination),
            table,
            priority: RULE_PRIORITY,
            protocol,
        };
        RuledRoute::add(route, rule, device.name()).map(|route| Self { _route: route })
    }
}

/// Packets from an address of this machine go into a device, whatever the main table says, unless they
/// are to this machine; the other way round it is like [`CapturedAddress`].
#[derive(Debug)]
pub struct ReturnedSource {
    /// Held for its drop.
    _route: RuledRoute,
}

impl ReturnedSource {
    /// Takes over what a killed earlier run left.
    pub fn add(source: IpAddr, device: &TunDevice, marking: Marking) -> Result<Self, RouteError> {
        let Marking { protocol, table } = marking;
        let everywhere = match source {
            IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        };
        let route = DeviceRoute {
            destination: everywhere,
            prefix_length: 0,
            index: device.index(),
            table,
            metric: 0,
            protocol,
        };
        let rule = LookupRule {
            of: Of::Source(source),
            table,
            priority: RULE_PRIORITY,
            protocol,
        };
        RuledRoute::add(route, rule, device.name()).map(|route| Self { _route: route })
    }
}

/// A route in a table of its own, and the rule that leads there. Of several rules for one route the first
/// that is dropped takes the route away.
#[derive(Debug)]
struct RuledRoute {
    route: DeviceRoute,
    rule: LookupRule,
}

impl RuledRoute {
    fn add(route: DeviceRoute, rule: LookupRule, device: &str) -> Result<Self, RouteError> {
        let (address, table) = (route.destination, route.table);
        let failed = |error| RouteError::Route {
            address,
            device: device.to_owned(),
            error,
        };
        match rtnetlink::add_route(route) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                let taken = |_| RouteError::Taken { address, table };
                rtnetlink::remove_route(route).map_err(taken)?;
                rtnetlink::add_route(route).map_err(failed)?;
            }
            other => other.map_err(failed)?,
        }
        // From here on dropping it cleans up.
        let ruled = Self { route, rule };
        match rtnetlink::add_rule(rule) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(ruled),
            other => other.map(|()| ruled).map_err(failed),
        }
    }
}

impl Drop for RuledRoute {
    fn drop(&mut self) {
        let of = self.rule.of;
        if let Err(error) = rtnetlink::remove_rule(self.rule) {
            tracing::warn!(?of, %error, "cannot remove the rule");
        }
        match rtnetlink::remove_route(self.route) {
            // Gone is gone: another rule led to the same one.
            Err(error) if error.raw_os_error() != Some(libc::ESRCH) => {
                tracing::warn!(?of, %error, "cannot remove the route");
            }
            Ok(()) | Err(_) => {}
        }
    }
}

fn length_of(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// A route in the main table that a BGP speaker redistributes, into our device so that it vanishes
/// with it; removed on drop. Nobody's packets depend on it: that is [`CapturedAddress`].
#[derive(Debug)]
pub struct AnnouncedRoute {
    route: DeviceRoute,
    device: String,
    metric: Option<u32>,
}

impl AnnouncedRoute {
    /// Not there yet. The bits of the destination behind the prefix are 0.
    pub fn new(destination: IpAddr, prefix_length: u8, device: &TunDevice, protocol: u8) -> Self {
        Self {
            route: DeviceRoute {
                destination,
                prefix_length,
                index: device.index(),
                table: u32::from(libc::RT_TABLE_MAIN),
                metric: 0,
                protocol,
            },
            device: device.name().to_owned(),
            metric: None,
        }
    }

    /// The first address of the prefix.
    pub fn destination(&self) -> IpAddr {
        self.route.destination
    }

    /// The metric that it stands in the table with.
    pub fn metric(&self) -> Option<u32> {
        self.metric
    }

    /// Has it there with this metric, or not at all. The new one comes before the old one goes. May
    /// be called at any time: a route that somebody has removed comes back. True when the table was
    /// changed.
    pub fn set(&mut self, metric: Option<u32>) -> Result<bool, RouteError> {
        let mut changed = false;
        if let Some(metric) = metric {
            changed = self.ensure(metric)?;
        }
        if let Some(old) = self.metric.filter(|old| Some(*old) != metric) {
            self.remove(old)?;
            changed = true;
        }
        self.metric = metric;
        Ok(changed)
    }

    fn ensure(&self, metric: u32) -> Result<bool, RouteError> {
        let route = DeviceRoute {
            metric,
            ..self.route
        };
        match rtnetlink::add_route(route) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                if self.metric == Some(metric) {
                    return Ok(false);
                }
                // Ours from an earlier run, or else somebody's.
                rtnetlink::remove_route(route).map_err(|_| RouteError::Taken {
                    address: route.destination,
                    table: route.table,
                })?;
                rtnetlink::add_route(route)
                    .map(|()| true)
                    .map_err(|error| self.failed(error))
            }
            Err(error) => Err(self.failed(error)),
        }
    }

    fn remove(&self, metric: u32) -> Result<(), RouteError> {
        let route = DeviceRoute {
            metric,
            ..self.route
        };
        match rtnetlink::remove_route(route) {
            Err(error) if error.raw_os_error() != Some(libc::ESRCH) => Err(self.failed(error)),
            // Gone is gone.
            Ok(()) | Err(_) => Ok(()),
        }
    }

    fn failed(&self, error: io::Error) -> RouteError {
        RouteError::Route {
            address: self.route.destination,
            device: self.device.clone(),
            error,
        }
    }
}

impl Drop for AnnouncedRoute {
    fn drop(&mut self) {
        if let Err(error) = self.set(None) {
            tracing::warn!(%error, "cannot withdraw the route");
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
