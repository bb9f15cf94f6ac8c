//! Addresses that come to this host and leave it, as VRRP moves them.
//!
//! The kernel announces each change on a netlink socket (rtnetlink(7), RTM_NEWADDR and RTM_DELADDR).
//! What the announcement says is not read: it is a reason to list the addresses again, so that a lost
//! one does no harm.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::libc;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, SockaddrStorage, bind,
    recv, socket,
};

use crate::watched::Watched;

/// Wakes when an address comes or goes.
#[derive(Debug)]
pub struct AddressWatch {
    socket: Watched<OwnedFd>,
}

impl AddressWatch {
    /// From now on no change is missed. Needs a tokio runtime.
    pub fn open() -> io::Result<Self> {
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
            SockProtocol::NetlinkRoute,
        )?;
        let groups = libc::RTMGRP_IPV4_IFADDR | libc::RTMGRP_IPV6_IFADDR;
        let groups = NetlinkAddr::new(0, groups.cast_unsigned());
        bind(socket.as_raw_fd(), &groups)?;
        Ok(Self {
            socket: Watched::new(socket)?,
        })
    }

    /// Waits for the next change, or several.
    pub async fn changed(&mut self) -> io::Result<()> {
        let mut buffer = [0; 8_192];
        self.socket
            .read(|socket| {
                match recv(socket.as_fd().as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                    // Announcements were lost: a change all the same.
                    Ok(_) | Err(Errno::ENOBUFS) => Ok(()),
                    Err(error) => Err(error.into()),
                }
            })
            .await
    }
}

/// True when all these addresses are on interfaces of this host now.
pub fn are_local(addresses: &[IpAddr]) -> io::Result<bool> {
    let mut missing = addresses.to_vec();
    for interface in getifaddrs()? {
        let address = interface.address.as_ref().and_then(ip_of);
        missing.retain(|wanted| Some(*wanted) != address);
    }
    Ok(missing.is_empty())
}

fn ip_of(address: &SockaddrStorage) -> Option<IpAddr> {
    let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
    v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_of_this_host_are_local_and_all_of_them_must_be() {
        let here: IpAddr = "127.0.0.1".parse().unwrap();
        let elsewhere: IpAddr = "192.0.2.77".parse().unwrap();
        assert!(are_local(&[here]).unwrap());
        assert!(!are_local(&[here, elsewhere]).unwrap());
    }
}
