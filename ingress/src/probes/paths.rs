//! PURE. The ways to all concentrators, and the packets that their probes are.

use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use wire::encapsulation::{Encapsulation, Entropy, Header};
use wire::gre::{Protocol, Repr as Gre, TunnelKey};
use wire::ip;
use wire::mark::Mark;
use wire::probe::Repr;

use super::path::{Event, Path, Rejection, Report};
use crate::config::Config;

/// Octets of a UDP header (RFC 768).
const UDP_HEADER_LEN: usize = 8;

/// A probe as it goes into the tunnel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outgoing {
    /// The outer destination.
    pub concentrator: IpAddr,
    /// What goes before it.
    pub header: Header,
    /// The packet inside.
    pub inner: Vec<u8>,
}

/// See the module.
#[derive(Debug)]
pub struct Paths {
    paths: Vec<(IpAddr, Path)>,
    own: SocketAddr,
    port: u16,
    mark: Mark,
    mtu: usize,
    gre: Gre,
    encapsulation: Encapsulation,
}

impl Paths {
    /// One path for each concentrator. `random` gives the first sequence numbers.
    pub fn new(config: &Config, mut random: impl FnMut() -> u32, now: Instant) -> Self {
        let (tunnel, key) = (&config.tunnel, config.relay.key);
        let paths = tunnel.concentrators.iter().map(|concentrator| {
            let path = Path::new(key, config.probes.settings, random(), now);
            (concentrator.address, path)
        });
        let protocol = if tunnel.source.is_ipv4() {
            Protocol::Ipv4
        } else {
            Protocol::Ipv6
        };
        Self {
            paths: paths.collect(),
            own: SocketAddr::new(tunnel.source, config.probes.port),
            port: config.probes.port,
            mark: config.relay.mark,
            mtu: usize::from(tunnel.mtu),
            gre: Gre { key, protocol },
            encapsulation: tunnel.encapsulation,
        }
    }

    /// Probes carry this key from now on; answers to earlier ones still count.
    pub fn set_key(&mut self, key: TunnelKey) {
        self.gre.key = key;
        for (_, path) in &mut self.paths {
            path.set_key(key);
        }
    }

    /// When [`Paths::handle_timeout`] has something to do; never without a concentrator.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let paths = self.paths.iter();
        paths.map(|(_, path)| path.poll_timeout()).min()
    }

    /// The probes that are due. Answers that have arrived must have been handled.
    pub fn handle_timeout(&mut self, now: Instant, clock_us: u64) -> Vec<Outgoing> {
        let (own, port, mark, mtu) = (self.own, self.port, self.mark, self.mtu);
        let (gre, encapsulation) = (self.gre, self.encapsulation);
        let due = self.paths.iter_mut().filter_map(|(concentrator, path)| {
            let probe = path.handle_timeout(now, clock_us)?;
            let length = if probe.padded {
                let ip_header = if own.is_ipv4() { 20 } else { 40 };
                mtu.saturating_sub(ip_header + UDP_HEADER_LEN)
            } else {
                0
            };
            let to = SocketAddr::new(*concentrator, port);
            let tos = mark.number() << 2;
            // It fails for addresses of two IP versions only, which the config does not have.
            let inner = ip::udp(own, to, tos, &probe.repr.build(length)).ok()?;
            let entropy = Entropy::of(&ip::Packet::parse(&inner).ok()?);
            Some(Outgoing {
                concentrator: *concentrator,
                header: encapsulation.header(gre, entropy, inner.len()),
                inner,
            })
        });
        due.collect()
    }

    /// A datagram has arrived at our address.
    pub fn handle_datagram(
        &mut self,
        from: SocketAddr,
        payload: &[u8],
        now: Instant,
    ) -> Result<(), Rejection> {
        let probed = |(concentrator, _): &&mut (IpAddr, Path)| *concentrator == from.ip();
        let path = self.paths.iter_mut().find(probed);
        let (_, path) = path
            .filter(|_| from.port() == self.port)
            .ok_or(Rejection::Stranger)?;
        let answer = Repr::parse(payload).map_err(|_| Rejection::Malformed)?;
        path.handle_answer(&answer, now)
    }

    /// What has changed, and with which concentrator.
    pub fn poll_event(&mut self) -> Option<(IpAddr, Event)> {
        let mut paths = self.paths.iter_mut();
        paths.find_map(|(concentrator, path)| Some((*concentrator, path.poll_event()?)))
    }

    /// What is known of each.
    pub fn reports(&self) -> impl Iterator<Item = (IpAddr, Report)> + '_ {
        let paths = self.paths.iter();
        paths.map(|(concentrator, path)| (*concentrator, path.report()))
    }

    /// Some concentrator serves what is sent to it.
    pub fn is_any_serving(&self) -> bool {
        self.reports().any(|(_, report)| report.serves())
    }
}

#[cfg(test)]
#[expect(
    clippy::disallowed_methods,
    reason = "tests need some instant to count from"
)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::probes::path::State;
    use wire::probe::State as Standing;

    const CONCENTRATOR: &str = "10.0.9.2:7061";

    fn paths(now: Instant) -> Paths {
        Paths::new(&crate::config::example(), || 17, now)
    }

    #[test]
    fn a_probe_is_a_marked_udp_packet_in_the_tunnel_and_every_tenth_fills_it() {
        let start = Instant::now();
        let mut paths = paths(start);
        let lengths: Vec<usize> = (0..20)
            .map(|number| {
                let now = start + Duration::from_millis(100) * number;
                let probes = paths.handle_timeout(now, 5);
                let [probe] = &probes[..] else {
                    panic!("{probes:?}")
                };
                let header = [0x20, 0, 0x08, 0, 0, 0, 0x10, 0x01];
                assert_eq!(probe.header.bytes(), header);
                let inner = ip::Packet::parse(&probe.inner).unwrap();
                assert_eq!(
                    (inner.tos(), inner.dst().to_string()),
                    (4, "10.0.9.2".into())
                );
                let repr = Repr::parse(inner.udp_payload().unwrap()).unwrap();
                assert_eq!(repr.sequence, 17 + number);
                probe.inner.len()
            })
            .collect();
        assert_eq!(lengths.iter().filter(|length| **length == 1_472).count(), 2);
        assert_eq!((lengths[9], lengths[19]), (1_472, 1_472));
        assert_eq!(lengths[0], 20 + 8 + wire::probe::LEN);
    }

    #[test]
    fn only_a_probed_concentrator_can_answer() {
        let now = Instant::now();
        let mut paths = paths(now);
        let probe = paths.handle_timeout(now, 5).remove(0);
        let inner = ip::Packet::parse(&probe.inner).unwrap();
        let probe = Repr::parse(inner.udp_payload().unwrap()).unwrap();
        let answer = probe.answer(Standing::Serving, 0).unwrap().build(0);
        for stranger in ["10.0.9.3:7061", "10.0.9.2:7062"] {
            let from = stranger.parse().unwrap();
            let outcome = paths.handle_datagram(from, &answer, now);
            assert_eq!(outcome, Err(Rejection::Stranger));
        }
        let from = CONCENTRATOR.parse().unwrap();
        let garbage = paths.handle_datagram(from, b"hello", now);
        assert_eq!(garbage, Err(Rejection::Malformed));
        assert!(!paths.is_any_serving());
        assert_eq!(paths.handle_datagram(from, &answer, now), Ok(()));
        assert!(paths.is_any_serving());
        assert_eq!(paths.poll_event(), Some((from.ip(), Event::Up)));
        let state = paths.reports().next().unwrap().1.state;
        assert_eq!(state, State::Up);
    }
}
