//! IO. Where the answers arrive: a UDP socket on our own address.

use std::io;
use std::net::SocketAddr;

use tokio::net::UdpSocket;

/// Longer than any answer; what is cut off is padding.
const BUFFER: usize = 64;
/// Datagrams read at a time: a flood must not keep the tunnel waiting.
const BATCH: usize = 64;

/// See the module.
#[derive(Debug)]
pub struct AnswerSocket {
    socket: UdpSocket,
}

impl AnswerSocket {
    /// Binds the address that probes name as their source.
    pub async fn bind(own: SocketAddr) -> io::Result<Self> {
        let socket = UdpSocket::bind(own).await?;
        Ok(Self { socket })
    }

    /// Waits until something is there. An error of the socket is something too; reading it clears it.
    pub async fn readable(&self) {
        // It fails when the runtime ends, and so do we.
        let _ = self.socket.readable().await;
    }

    /// Hands over what is there, up to [`BATCH`].
    pub fn drain(&self, mut handle: impl FnMut(SocketAddr, &[u8])) {
        let mut buffer = [0; BUFFER];
        for _ in 0..BATCH {
            match self.socket.try_recv_from(&mut buffer) {
                Ok((length, from)) => handle(from, &buffer[..length]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // An ICMP error about something that was sent, by nobody here.
                Err(_) => {}
            }
        }
    }
}
