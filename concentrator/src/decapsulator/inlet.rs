//! Where the edges' packets come in: raw GRE, GRE in UDP, or both.

use std::io;
use std::net::IpAddr;

use tunnel_io::gre_socket::{GreBatch, GreSocket};
use wire::encapsulation::Encapsulation;

use crate::config::Config;

/// Packets read in one system call.
pub(super) const BATCH: usize = 64;
/// No packet is longer, so none is cut off, whatever MTU an edge thinks the tunnel has.
const LARGEST_PAYLOAD: usize = 65_535;

/// A packet as it came to the tunnel's end.
#[derive(Debug, Clone, Copy)]
pub struct Arrived<'a> {
    /// The outer source.
    pub from: IpAddr,
    /// How it was wrapped.
    pub encapsulation: Encapsulation,
    /// The GRE header and what follows.
    pub gre: &'a [u8],
}

/// Where the edges' packets come in: as GRE, as GRE in UDP, or both.
#[derive(Debug)]
pub(super) struct Inlet {
    /// Other concentrators send it, if no edge does.
    plain: Entrance,
    in_udp: Option<Entrance>,
    /// Which of them has the packets received last.
    latest: Encapsulation,
}

#[derive(Debug)]
struct Entrance {
    socket: GreSocket,
    batch: GreBatch,
}

impl Entrance {
    fn open(config: &Config, encapsulation: Encapsulation) -> io::Result<Self> {
        Ok(Self {
            socket: GreSocket::bind(config.tunnel.listen, 0, encapsulation)?,
            batch: GreBatch::new(BATCH, LARGEST_PAYLOAD),
        })
    }

    async fn receive(&mut self) -> io::Result<usize> {
        self.socket.recv_batch(&mut self.batch).await
    }

    fn receive_now(&mut self) -> io::Result<Option<usize>> {
        self.socket.recv_batch_now(&mut self.batch)
    }
}

impl Inlet {
    pub(super) fn open(config: &Config) -> io::Result<Self> {
        let mut edges = config.edges.iter();
        let any_in_udp = edges.any(|edge| edge.encapsulation == Encapsulation::GreUdp);
        let in_udp = any_in_udp.then(|| Entrance::open(config, Encapsulation::GreUdp));
        Ok(Self {
            plain: Entrance::open(config, Encapsulation::Gre)?,
            in_udp: in_udp.transpose()?,
            latest: Encapsulation::Gre,
        })
    }

    pub(super) async fn receive(&mut self) -> io::Result<usize> {
        let Some(in_udp) = &mut self.in_udp else {
            return self.plain.receive().await;
        };
        let (received, latest) = tokio::select! {
            received = self.plain.receive() => (received, Encapsulation::Gre),
            received = in_udp.receive() => (received, Encapsulation::GreUdp),
        };
        self.latest = latest;
        received
    }

    /// They take turns, so that neither starves the other.
    pub(super) fn receive_now(&mut self) -> io::Result<Option<usize>> {
        let Some(in_udp) = &mut self.in_udp else {
            return self.plain.receive_now();
        };
        for _ in 0..2 {
            let (entrance, next) = match self.latest {
                Encapsulation::Gre => (&mut *in_udp, Encapsulation::GreUdp),
                Encapsulation::GreUdp => (&mut self.plain, Encapsulation::Gre),
            };
            self.latest = next;
            if let Some(received) = entrance.receive_now()? {
                return Ok(Some(received));
            }
        }
        Ok(None)
    }

    /// What was received last.
    pub(super) fn packets(&self) -> impl Iterator<Item = Arrived<'_>> {
        let in_udp = self.in_udp.as_ref();
        let in_udp = in_udp.filter(|_| self.latest == Encapsulation::GreUdp);
        let batch = &in_udp.unwrap_or(&self.plain).batch;
        batch.iter().map(|packet| Arrived {
            from: packet.from,
            encapsulation: self.latest,
            gre: packet.payload,
        })
    }
}
