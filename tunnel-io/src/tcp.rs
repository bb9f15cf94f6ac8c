//! A TCP listener that advertises a lowered MSS.
//!
//! Only the direction from the user agent to the concentrator runs through the tunnel, and the
//! segment size of that direction is what the listener advertises. So one option here fits every
//! connection to the tunnel's MTU.

use std::io;
use std::net::SocketAddr;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;

/// Connections that may wait for `accept`.
const BACKLOG: i32 = 1_024;

/// How a listener is opened.
#[derive(Debug, Clone, Copy, Default)]
pub struct ListenerOptions {
    /// The MTU that a segment with its headers must fit; the interface decides when `None`.
    pub path_mtu: Option<u16>,
    /// Bind even if the address is not on this machine yet (IP_FREEBIND).
    pub freebind: bool,
}

/// Listens on `local`; an IPv6 listener takes no IPv4. Needs a tokio runtime.
pub fn listen(local: SocketAddr, options: &ListenerOptions) -> io::Result<TcpListener> {
    let socket = Socket::new(
        Domain::for_address(local),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    socket.set_nonblocking(true)?;
    socket.set_reuse_address(true)?;
    match local {
        SocketAddr::V4(_) => socket.set_freebind_v4(options.freebind)?,
        SocketAddr::V6(_) => {
            socket.set_only_v6(true)?;
            socket.set_freebind_v6(options.freebind)?;
        }
    }
    if let Some(mtu) = options.path_mtu {
        // Before listen: the kernel copies it to every accepted connection.
        socket.set_tcp_mss(u32::from(segment_size(local, mtu)))?;
    }
    socket.bind(&local.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// The MSS for an MTU: less 20 bytes of TCP header and 20 (IPv4) or 40 (IPv6) of IP header
/// (RFC 9293 section 3.7.1).
fn segment_size(local: SocketAddr, mtu: u16) -> u16 {
    let headers = if local.is_ipv4() { 40 } else { 60 };
    mtu.saturating_sub(headers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_listener_advertises_a_segment_size_that_fits_the_tunnel() {
        let options = ListenerOptions {
            path_mtu: Some(1_472),
            freebind: false,
        };
        let listener = listen("127.0.0.1:0".parse().unwrap(), &options).unwrap();
        let address = listener.local_addr().unwrap();
        let (client, accepted) =
            tokio::join!(tokio::net::TcpStream::connect(address), listener.accept());
        accepted.unwrap();
        let client = client.unwrap();
        let mss = socket2::SockRef::from(&client).tcp_mss().unwrap();
        // The timestamp option takes 12 bytes of each segment.
        assert!((1_420..=1_432).contains(&mss), "{mss}");
    }

    #[test]
    fn the_segment_size_leaves_room_for_the_headers() {
        assert_eq!(
            segment_size("192.0.2.1:5060".parse().unwrap(), 1_472),
            1_432
        );
        assert_eq!(
            segment_size("[2001:db8::1]:5060".parse().unwrap(), 1_472),
            1_412
        );
    }
}
