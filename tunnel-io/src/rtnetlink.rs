//! The few rtnetlink requests that the tunnel needs, written by hand; rtnetlink(7), netlink(7).
//!
//! A request is a netlink header, a fixed part, then attributes of type, length and value, each
//! padded to four bytes. The kernel answers with one error message, where error 0 means done.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::libc;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket,
};

const HEADER_LEN: usize = 16;

/// Sets the MTU and the length of the queue in packets and brings the link up, in one request.
pub(crate) fn set_link_up(index: u32, mtu: u32, queue_length: u32) -> io::Result<()> {
    let up = libc::IFF_UP as u32;
    // struct ifinfomsg: family, pad, type, index, flags, mask of flags to change.
    let mut fixed = vec![libc::AF_UNSPEC as u8, 0, 0, 0];
    fixed.extend(index.to_ne_bytes());
    fixed.extend(up.to_ne_bytes());
    fixed.extend(up.to_ne_bytes());
    Request::new(libc::RTM_NEWLINK, 0, &fixed)
        .attribute(libc::IFLA_MTU, &mtu.to_ne_bytes())
        .attribute(libc::IFLA_TXQLEN, &queue_length.to_ne_bytes())
        .send()
}

/// A route for a prefix into a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DeviceRoute {
    pub(crate) destination: IpAddr,
    pub(crate) prefix_length: u8,
    /// The device.
    pub(crate) index: u32,
    pub(crate) table: u32,
    /// The smallest wins; 0 is the kernel's default.
    pub(crate) metric: u32,
    /// Who made it (rtm_protocol).
    pub(crate) protocol: u8,
}

/// Adds the route; fails if there is one with this destination and metric in the table.
pub(crate) fn add_route(route: DeviceRoute) -> io::Result<()> {
    let flags = libc::NLM_F_CREATE | libc::NLM_F_EXCL;
    change_route(libc::RTM_NEWROUTE, flags, route)
}

/// Removes exactly this route, and none that somebody else made.
pub(crate) fn remove_route(route: DeviceRoute) -> io::Result<()> {
    change_route(libc::RTM_DELROUTE, 0, route)
}

fn change_route(kind: u16, flags: i32, route: DeviceRoute) -> io::Result<()> {
    let (family, octets) = octets(route.destination);
    let scope = if route.destination.is_ipv4() {
        libc::RT_SCOPE_LINK
    } else {
        libc::RT_SCOPE_UNIVERSE
    };
    // struct rtmsg: family, prefix lengths, tos, table, protocol, scope, type, flags. The table
    // stands in an attribute, where it may have more than eight bits.
    let mut fixed = vec![family, route.prefix_length, 0, 0];
    fixed.extend([
        libc::RT_TABLE_UNSPEC,
        route.protocol,
        scope,
        libc::RTN_UNICAST,
    ]);
    fixed.extend([0; 4]);
    let request = Request::new(kind, flags, &fixed)
        .attribute(libc::RTA_DST, &octets)
        .attribute(libc::RTA_OIF, &route.index.to_ne_bytes())
        .attribute(libc::RTA_TABLE, &route.table.to_ne_bytes());
    if route.metric == 0 {
        return request.send();
    }
    request
        .attribute(libc::RTA_PRIORITY, &route.metric.to_ne_bytes())
        .send()
}

/// Which packets a rule is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Of {
    /// Those to exactly this address.
    Destination(IpAddr),
    /// Those from exactly this address.
    Source(IpAddr),
}

/// A rule that has packets looked up in a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LookupRule {
    pub(crate) of: Of,
    pub(crate) table: u32,
    /// Rules are asked in this order; the main table has 32766.
    pub(crate) priority: u32,
    /// Who made it.
    pub(crate) protocol: u8,
}

/// Adds the rule; fails if there is one like it.
pub(crate) fn add_rule(rule: LookupRule) -> io::Result<()> {
    let flags = libc::NLM_F_CREATE | libc::NLM_F_EXCL;
    change_rule(libc::RTM_NEWRULE, flags, rule)
}

/// Removes the rule.
pub(crate) fn remove_rule(rule: LookupRule) -> io::Result<()> {
    change_rule(libc::RTM_DELRULE, 0, rule)
}

fn change_rule(kind: u16, flags: i32, rule: LookupRule) -> io::Result<()> {
    // linux/fib_rules.h
    const FRA_DST: u16 = 1;
    const FRA_SRC: u16 = 2;
    const FRA_PRIORITY: u16 = 6;
    const FRA_TABLE: u16 = 15;
    const FRA_PROTOCOL: u16 = 21;
    const FR_ACT_TO_TBL: u8 = 1;
    let (attribute, address) = match rule.of {
        Of::Destination(address) => (FRA_DST, address),
        Of::Source(address) => (FRA_SRC, address),
    };
    let (family, octets) = octets(address);
    let length = octets.len() as u8 * 8;
    let (destination, source) = if attribute == FRA_DST {
        (length, 0)
    } else {
        (0, length)
    };
    // struct fib_rule_hdr: family, prefix lengths, tos, table, two reserved, action, flags.
    let mut fixed = vec![family, destination, source, 0];
    fixed.extend([libc::RT_TABLE_UNSPEC, 0, 0, FR_ACT_TO_TBL]);
    fixed.extend([0; 4]);
    Request::new(kind, flags, &fixed)
        .attribute(attribute, &octets)
        .attribute(FRA_PRIORITY, &rule.priority.to_ne_bytes())
        .attribute(FRA_TABLE, &rule.table.to_ne_bytes())
        .attribute(FRA_PROTOCOL, &[rule.protocol])
        .send()
}

/// Adds the address, alone in its prefix, to the device; fails if it is there.
pub(crate) fn add_address(address: IpAddr, index: u32) -> io::Result<()> {
    let flags = libc::NLM_F_CREATE | libc::NLM_F_EXCL;
    local_address(libc::RTM_NEWADDR, flags, address, index)
}

/// Removes the address from the device.
pub(crate) fn remove_address(address: IpAddr, index: u32) -> io::Result<()> {
    local_address(libc::RTM_DELADDR, 0, address, index)
}

fn local_address(kind: u16, flags: i32, address: IpAddr, index: u32) -> io::Result<()> {
    let (family, octets) = octets(address);
    // Without duplicate address detection an IPv6 address can be bound at once.
    let address_flags = if address.is_ipv6() {
        libc::IFA_F_NODAD as u8
    } else {
        0
    };
    // struct ifaddrmsg: family, prefix length, flags, scope, index.
    let mut fixed = vec![
        family,
        octets.len() as u8 * 8,
        address_flags,
        libc::RT_SCOPE_UNIVERSE,
    ];
    fixed.extend(index.to_ne_bytes());
    Request::new(kind, flags, &fixed)
        .attribute(libc::IFA_LOCAL, &octets)
        .attribute(libc::IFA_ADDRESS, &octets)
        .send()
}

fn octets(address: IpAddr) -> (u8, Vec<u8>) {
    match address {
        IpAddr::V4(v4) => (libc::AF_INET as u8, v4.octets().to_vec()),
        IpAddr::V6(v6) => (libc::AF_INET6 as u8, v6.octets().to_vec()),
    }
}

/// One message (RTM_NEWLINK) for each network device.
pub(crate) fn dump_links() -> io::Result<Vec<Vec<u8>>> {
    // struct ifinfomsg of zeros: all devices.
    let request = Request::new(libc::RTM_GETLINK, libc::NLM_F_DUMP, &[0; 16]);
    let socket = request.ask()?;
    // The kernel puts no more into one answer.
    let mut answer = vec![0; 32_768];
    let mut links = Vec::new();
    loop {
        let length = recv(socket.as_raw_fd(), &mut answer, MsgFlags::empty())?;
        let mut rest = &answer[..length];
        while let Some((kind, message)) = first_message(rest) {
            match i32::from(kind) {
                libc::NLMSG_DONE => return Ok(links),
                libc::NLMSG_ERROR => return acknowledgement(message).map(|()| links),
                _ => links.push(message.to_vec()),
            }
            let taken = message.len().next_multiple_of(4);
            rest = rest.get(taken..).unwrap_or_default();
        }
    }
}

/// Its type, and itself.
fn first_message(bytes: &[u8]) -> Option<(u16, &[u8])> {
    let length = u32::from_ne_bytes(*bytes.first_chunk()?) as usize;
    let kind = bytes.get(4..6)?.first_chunk()?;
    let message = bytes.get(..length.max(HEADER_LEN))?;
    Some((u16::from_ne_bytes(*kind), message))
}

/// Type and value of each attribute.
pub(crate) fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    // The two upper bits of a type are flags.
    const TYPE: u16 = 0x3fff;
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(*rest.first_chunk()?));
        let kind = rest.get(2..4)?.first_chunk()?;
        let value = rest.get(4..length)?;
        let kind = u16::from_ne_bytes(*kind) & TYPE;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// A netlink message under construction.
struct Request(Vec<u8>);

impl Request {
    fn new(kind: u16, flags: i32, fixed: &[u8]) -> Self {
        let flags = (libc::NLM_F_REQUEST | libc::NLM_F_ACK | flags) as u16;
        let mut bytes = vec![0; 4];
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        bytes.extend(1u32.to_ne_bytes());
        bytes.extend(0u32.to_ne_bytes());
        bytes.extend(fixed);
        Self(bytes)
    }

    fn attribute(mut self, kind: u16, value: &[u8]) -> Self {
        let length = (4 + value.len()) as u16;
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    fn finish(mut self) -> Vec<u8> {
        let length = (self.0.len() as u32).to_ne_bytes();
        self.0[..4].copy_from_slice(&length);
        self.0
    }

    fn send(self) -> io::Result<()> {
        let socket = self.ask()?;
        let mut answer = [0; 4_096];
        let length = recv(socket.as_raw_fd(), &mut answer, MsgFlags::empty())?;
        acknowledgement(&answer[..length])
    }

    /// Sends it; the answer comes to this socket.
    fn ask(self) -> io::Result<OwnedFd> {
        let protocol = SockProtocol::NetlinkRoute;
        let kernel = NetlinkAddr::new(0, 0);
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            protocol,
        )?;
        sendto(
            socket.as_raw_fd(),
            &self.finish(),
            &kernel,
            MsgFlags::empty(),
        )?;
        Ok(socket)
    }
}

/// Reads the answer: a header of type NLMSG_ERROR, then a negative errno or 0.
fn acknowledgement(answer: &[u8]) -> io::Result<()> {
    let unexpected = || io::Error::other("unexpected answer from netlink");
    let kind = answer
        .get(4..6)
        .and_then(|b| b.first_chunk().copied())
        .ok_or_else(unexpected)?;
    let code = answer
        .get(HEADER_LEN..)
        .and_then(|b| b.first_chunk().copied());
    match (
        i32::from(u16::from_ne_bytes(kind)),
        code.map(i32::from_ne_bytes),
    ) {
        (libc::NLMSG_ERROR, Some(0)) => Ok(()),
        (libc::NLMSG_ERROR, Some(code)) => Err(io::Error::from_raw_os_error(code.saturating_neg())),
        _ => Err(unexpected()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_carries_its_length_and_padded_attributes() {
        let bytes = Request::new(libc::RTM_NEWADDR, 0, &[1; 8])
            .attribute(7, &[9; 5])
            .finish();
        assert_eq!(bytes.len(), HEADER_LEN + 8 + 12);
        assert_eq!(bytes[..4], (bytes.len() as u32).to_ne_bytes());
        assert_eq!(bytes[24..26], 9u16.to_ne_bytes());
        assert_eq!(bytes[28..], [9, 9, 9, 9, 9, 0, 0, 0]);
    }

    #[test]
    fn an_answer_is_done_or_an_errno() {
        let mut answer = vec![0; 36];
        answer[4] = libc::NLMSG_ERROR as u8;
        assert!(acknowledgement(&answer).is_ok());
        answer[16..20].copy_from_slice(&(-libc::EEXIST).to_ne_bytes());
        let error = acknowledgement(&answer).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        assert!(acknowledgement(&answer[..10]).is_err());
    }
}
