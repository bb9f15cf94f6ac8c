//! Symmetric latching behind a source gate: which address a port of a session listens to.
//!
//! Behind a NAT the address in the SDP is not the one that packets come from, so a port learns its
//! peer from the first packet that passes the gate (RFC 4961, RFC 7362 section 4). Signalling sets the
//! gate to where the user agent really is. From then on only this address and port are listened to.
//!
//! A NAT may give the same user agent a new port in mid-call. A new source takes over when all of
//! this holds: it passes the gate, it carries the SSRC of the stream that was latched, and the old
//! source has been silent for [`RELATCH_SILENCE`]. So who merely guesses the port cannot take the
//! call, and who sees the packets cannot while the user agent sends. A new gate from signalling
//! (a re-INVITE) lets a new SSRC take over once, because user agents may restart their stream then.
//! Signalling also says until when a source may be learnt or taken over by a new SSRC: a port that
//! nobody has used for minutes must not wait for whoever comes first.
//! Datagrams that have no SSRC (T.38, DTLS) latch in the same way and never take over without a new
//! gate: a NAT that rebinds in the middle of a fax loses it.
//!
//! Where the other side is another relay ([`GateMode::Relay`]) there is no NAT and nothing to learn:
//! signalling names its address and port, packets go there from the start, and nothing else is
//! listened to. Without that each of two relays would wait for the other's first packet.
//!
//! One [`Latch`] serves one port; [`crate::session::Session`] has four.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use wire::ip::is_host;
use wire::relay_control::standby::LatchRecord;
use wire::relay_control::{Gate, GateMode};

/// How long the latched source must have been silent before another may take over.
pub const RELATCH_SILENCE: Duration = Duration::from_secs(1);

/// What one port has learnt about its peer.
#[derive(Debug, Default)]
pub struct Latch {
    peer: Option<Peer>,
    /// Signalling has changed the gate since the peer was learnt.
    relearn: bool,
    /// When the time to learn a source is over; set by signalling.
    learn_until: Option<Instant>,
}

#[derive(Debug, Clone, Copy)]
struct Peer {
    address: SocketAddr,
    /// Of its last packet that had one.
    ssrc: Option<u32>,
    heard: Instant,
}

/// Why a packet is accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// It comes from the latched source.
    Known,
    /// Its source is now latched.
    Latched,
    /// Its source has taken over from the one latched before.
    Moved,
}

/// Why a packet is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// The gate does not let this address in.
    Gate,
    /// Another source is latched and is not silent.
    Stranger,
    /// Another source is latched, and this one does not carry its SSRC.
    Ssrc,
    /// No source is latched, and the time to learn one is over.
    Late,
}

impl Latch {
    /// The latched source.
    pub fn peer(&self) -> Option<SocketAddr> {
        self.peer.map(|peer| peer.address)
    }

    /// The SSRC of the latched source, if it has told one.
    pub fn ssrc(&self) -> Option<u32> {
        self.peer.and_then(|peer| peer.ssrc)
    }

    /// Judges a packet and learns from it if it may; `ssrc` is `None` for what is not RTP.
    pub fn admit(
        &mut self,
        gate: &Gate,
        from: SocketAddr,
        ssrc: impl Into<Option<u32>>,
        now: Instant,
    ) -> Result<Admission, Refusal> {
        let ssrc = ssrc.into();
        let may_learn = self.learn_until.is_some_and(|until| now <= until);
        let Some(peer) = &mut self.peer else {
            if !passes(gate, from) {
                return Err(Refusal::Gate);
            }
            if !may_learn {
                return Err(Refusal::Late);
            }
            self.learn(from, ssrc, now);
            return Ok(Admission::Latched);
        };
        if peer.address == from {
            peer.ssrc = ssrc.or(peer.ssrc);
            peer.heard = now;
            return Ok(Admission::Known);
        }
        if !passes(gate, from) {
            return Err(Refusal::Gate);
        }
        if now.saturating_duration_since(peer.heard) < RELATCH_SILENCE {
            return Err(Refusal::Stranger);
        }
        if (ssrc.is_none() || peer.ssrc != ssrc) && !(self.relearn && may_learn) {
            return Err(Refusal::Ssrc);
        }
        self.learn(from, ssrc, now);
        Ok(Admission::Moved)
    }

    /// A packet without an SSRC of its own, such as RTCP on the RTP port, may only come from the
    /// latched source.
    pub fn admit_companion(
        &mut self,
        gate: &Gate,
        from: SocketAddr,
        now: Instant,
    ) -> Result<(), Refusal> {
        match &mut self.peer {
            Some(peer) if peer.address == from => {
                peer.heard = now;
                Ok(())
            }
            Some(_) | None if passes(gate, from) => Err(Refusal::Stranger),
            Some(_) | None => Err(Refusal::Gate),
        }
    }

    /// Signalling has set a new gate: who does not pass it any more is forgotten, and another relay
    /// is known from now on. A new source may be learnt for `first`, one with a new SSRC take over
    /// for `again`.
    pub fn handle_gate(&mut self, gate: &Gate, now: Instant, first: Duration, again: Duration) {
        if self.peer.is_some_and(|peer| passes(gate, peer.address)) {
            self.relearn = true;
            self.learn_until = Some(now + again);
        } else {
            self.forget(now + first);
        }
        if let (None, Some(relay)) = (self.peer, other_relay(gate)) {
            self.learn(relay, None, now);
        }
    }

    /// Back to the state before the first packet, which may come until then.
    pub fn forget(&mut self, learn_until: Instant) {
        *self = Self {
            learn_until: Some(learn_until),
            ..Self::default()
        };
    }

    /// What an agent that stands by must know of it.
    pub fn export(&self, now: Instant) -> LatchRecord {
        let left = |until: Instant| until.saturating_duration_since(now).as_millis();
        let learn_for_ms = self.learn_until.map(left).filter(|&left| left > 0);
        LatchRecord {
            peer: self.peer(),
            ssrc: self.peer.and_then(|peer| peer.ssrc),
            relearn: self.relearn,
            learn_for_ms: learn_for_ms.and_then(|left| u64::try_from(left).ok()),
        }
    }

    /// As another agent has exported it, its source as if heard now. A source may be learnt for as
    /// long as there, but at most for `longest`.
    pub fn restore(record: &LatchRecord, now: Instant, longest: Duration) -> Self {
        let learn_for = record.learn_for_ms.map(Duration::from_millis);
        Self {
            peer: record.peer.map(|address| Peer {
                address,
                ssrc: record.ssrc,
                heard: now,
            }),
            relearn: record.relearn,
            learn_until: learn_for.map(|left| now + left.min(longest)),
        }
    }

    /// The agent takes over: the source counts as heard now, or its silence here, while it was heard
    /// by another agent, would let somebody else take over.
    pub fn handle_take_over(&mut self, now: Instant) {
        if let Some(peer) = &mut self.peer {
            peer.heard = now;
        }
    }

    /// The source was heard then, elsewhere than here.
    pub fn handle_heard(&mut self, at: Instant) {
        if let Some(peer) = &mut self.peer {
            peer.heard = peer.heard.max(at);
        }
    }

    /// True when the source has been silent for so long that another may take over.
    pub fn is_silent(&self, now: Instant) -> bool {
        self.peer
            .is_none_or(|peer| now.saturating_duration_since(peer.heard) >= RELATCH_SILENCE)
    }

    fn learn(&mut self, address: SocketAddr, ssrc: Option<u32>, now: Instant) {
        self.relearn = false;
        self.peer = Some(Peer {
            address,
            ssrc,
            heard: now,
        });
    }
}

/// True when the gate lets this source in. A gate that expects nobody lets nobody in, and none
/// lets in a source that could not be answered.
pub fn passes(gate: &Gate, from: SocketAddr) -> bool {
    if from.port() == 0 || from.ip().is_unspecified() || from.ip().is_multicast() {
        return false;
    }
    if gate.port.is_some_and(|port| port != from.port()) {
        return false;
    }
    match gate.mode {
        GateMode::Exact => gate.expected.contains(&from.ip()),
        GateMode::Relay => other_relay(gate) == Some(from),
        GateMode::Subnet => gate
            .expected
            .iter()
            .any(|&expected| same_subnet(expected, from.ip())),
        GateMode::Any => true,
    }
}

/// The port of another relay that a gate names; it is never a multicast or broadcast address.
pub fn other_relay(gate: &Gate) -> Option<SocketAddr> {
    let (GateMode::Relay, [address], Some(port)) = (gate.mode, &gate.expected[..], gate.port)
    else {
        return None;
    };
    (port != 0 && is_host(*address)).then_some(SocketAddr::new(*address, port))
}

/// The same /24, or the same /64.
fn same_subnet(left: IpAddr, right: IpAddr) -> bool {
    match (left, right) {
        (IpAddr::V4(left), IpAddr::V4(right)) => left.octets()[..3] == right.octets()[..3],
        (IpAddr::V6(left), IpAddr::V6(right)) => left.octets()[..8] == right.octets()[..8],
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    const PHONE: &str = "192.0.2.10:4000";
    const SSRC: u32 = 0x1234;

    #[test]
    fn an_exact_gate_lets_in_only_the_expected_address_from_any_port() {
        let gate = gate("192.0.2.10", GateMode::Exact);
        assert!(passes(&gate, at("192.0.2.10:1")));
        assert!(passes(&gate, at("192.0.2.10:65535")));
        assert!(!passes(&gate, at("192.0.2.11:1")));
        assert!(!passes(&gate, at("[2001:db8::1]:1")));
    }

    #[test]
    fn a_subnet_gate_lets_in_the_slash_24_or_the_slash_64() {
        let v4 = gate("192.0.2.10", GateMode::Subnet);
        assert!(passes(&v4, at("192.0.2.255:1")));
        assert!(!passes(&v4, at("192.0.3.10:1")));
        let v6 = gate("2001:db8:1:2::1", GateMode::Subnet);
        assert!(passes(&v6, at("[2001:db8:1:2:ffff::9]:1")));
        assert!(!passes(&v6, at("[2001:db8:1:3::1]:1")));
        assert!(!passes(&v6, at("192.0.2.10:1")));
    }

    #[test]
    fn a_gate_with_a_port_lets_in_only_that_port() {
        let gate = Gate {
            port: Some(4000),
            ..gate("192.0.2.10", GateMode::Any)
        };
        assert!(passes(&gate, at("203.0.113.5:4000")));
        assert!(!passes(&gate, at("203.0.113.5:4001")));
    }

    #[test]
    fn a_gate_that_expects_nobody_lets_nobody_in() {
        let empty = Gate {
            expected: Vec::new(),
            ..gate("192.0.2.10", GateMode::Exact)
        };
        assert!(!passes(&empty, at(PHONE)));
    }

    #[test]
    fn what_could_not_be_answered_passes_no_gate() {
        let gate = gate("192.0.2.10", GateMode::Any);
        for source in [
            "192.0.2.10:0",
            "0.0.0.0:4000",
            "224.0.0.1:4000",
            "[::]:4000",
        ] {
            assert!(!passes(&gate, at(source)), "{source}");
        }
    }

    #[test]
    fn datagrams_without_ssrc_latch_and_take_over_only_after_a_new_gate() {
        let now = clock::start();
        let gate = gate("192.0.2.10", GateMode::Exact);
        let mut latch = fresh(&gate, now);
        assert_eq!(
            latch.admit(&gate, at("203.0.113.5:4000"), None, now),
            Err(Refusal::Gate)
        );
        assert_eq!(
            latch.admit(&gate, at(PHONE), None, now),
            Ok(Admission::Latched)
        );
        assert_eq!(
            latch.admit(&gate, at(PHONE), None, now),
            Ok(Admission::Known)
        );
        let other = at("192.0.2.10:6000");
        assert_eq!(latch.admit(&gate, other, None, now), Err(Refusal::Stranger));
        let later = now + RELATCH_SILENCE;
        assert_eq!(latch.admit(&gate, other, None, later), Err(Refusal::Ssrc));
        assert_eq!(latch.admit(&gate, other, SSRC, later), Err(Refusal::Ssrc));
        set(&mut latch, &gate, now);
        assert_eq!(latch.admit(&gate, other, None, later), Ok(Admission::Moved));
    }

    #[test]
    fn a_stranger_is_refused_before_and_after_latching() {
        let now = clock::start();
        let gate = gate("192.0.2.10", GateMode::Exact);
        let mut latch = fresh(&gate, now);
        let stranger = at("203.0.113.5:4000");
        assert_eq!(latch.admit(&gate, stranger, SSRC, now), Err(Refusal::Gate));
        assert_eq!(latch.peer(), None);

        assert_eq!(
            latch.admit(&gate, at(PHONE), SSRC, now),
            Ok(Admission::Latched)
        );
        assert_eq!(latch.admit(&gate, stranger, SSRC, now), Err(Refusal::Gate));
        let neighbour = at("192.0.2.10:4002");
        assert_eq!(
            latch.admit(&gate, neighbour, SSRC, now),
            Err(Refusal::Stranger)
        );
        assert_eq!(latch.peer(), Some(at(PHONE)));
    }

    #[test]
    fn a_new_port_takes_over_after_one_second_of_silence_with_the_same_ssrc() {
        let now = clock::start();
        let gate = gate("192.0.2.10", GateMode::Exact);
        let mut latch = latched(&gate, now);
        let rebound = at("192.0.2.10:9999");
        let early = now + Duration::from_millis(999);
        assert_eq!(
            latch.admit(&gate, rebound, SSRC, early),
            Err(Refusal::Stranger)
        );
        let due = now + Duration::from_millis(1000);
        assert_eq!(latch.admit(&gate, rebound, SSRC, due), Ok(Admission::Moved));
        assert_eq!(latch.peer(), Some(rebound));
        // The old source is a stranger now.
        assert_eq!(
            latch.admit(&gate, at(PHONE), SSRC, due),
            Err(Refusal::Stranger)
        );
    }

    #[test]
    fn a_thief_with_another_ssrc_never_takes_over() {
        let now = clock::start();
        let gate = gate("192.0.2.10", GateMode::Any);
        let mut latch = latched(&gate, now);
        let hour = now + Duration::from_secs(3600);
        let thief = at("203.0.113.5:4000");
        assert_eq!(latch.admit(&gate, thief, 1, hour), Err(Refusal::Ssrc));
        assert_eq!(latch.peer(), Some(at(PHONE)));
    }

    #[test]
    fn the_latched_source_may_change_its_ssrc_at_any_time() {
        let now = clock::start();
        let gate = gate("192.0.2.10", GateMode::Exact);
        let mut latch = latched(&gate, now);
        assert_eq!(latch.admit(&gate, at(PHONE), 77, now), Ok(Admission::Known));
        let later = now + RELATCH_SILENCE;
        let rebound = at("192.0.2.10:9999");
        assert_eq!(latch.admit(&gate, rebound, SSRC, later), Err(Refusal::Ssrc));
        assert_eq!(latch.admit(&gate, rebound, 77, later), Ok(Admission::Moved));
    }

    #[test]
    fn a_new_gate_forgets_a_source_that_does_not_pass_it() {
        let now = clock::start();
        let mut latch = latched(&gate("192.0.2.10", GateMode::Exact), now);
        set(&mut latch, &gate("198.51.100.7", GateMode::Exact), now);
        assert_eq!(latch.peer(), None);
    }

    #[test]
    fn a_new_gate_lets_a_new_ssrc_take_over_once_but_not_from_a_source_that_sends() {
        let now = clock::start();
        let gate = gate("192.0.2.10", GateMode::Exact);
        let mut latch = latched(&gate, now);
        set(&mut latch, &gate, now);
        let restarted = at("192.0.2.10:6000");
        assert_eq!(
            latch.admit(&gate, restarted, 5, now),
            Err(Refusal::Stranger)
        );
        let later = now + RELATCH_SILENCE;
        assert_eq!(
            latch.admit(&gate, restarted, 5, later),
            Ok(Admission::Moved)
        );
        let even_later = later + RELATCH_SILENCE;
        assert_eq!(
            latch.admit(&gate, at(PHONE), 6, even_later),
            Err(Refusal::Ssrc)
        );
    }

    #[test]
    fn a_packet_without_ssrc_never_latches() {
        let now = clock::start();
        let gate = gate("192.0.2.10", GateMode::Exact);
        let mut latch = fresh(&gate, now);
        assert_eq!(
            latch.admit_companion(&gate, at(PHONE), now),
            Err(Refusal::Stranger)
        );
        assert_eq!(latch.peer(), None);
        let mut latch = latched(&gate, now);
        assert_eq!(latch.admit_companion(&gate, at(PHONE), now), Ok(()));
        let stranger = at("203.0.113.5:4000");
        assert_eq!(
            latch.admit_companion(&gate, stranger, now),
            Err(Refusal::Gate)
        );
    }

    #[test]
    fn another_relay_is_known_before_it_sends_and_nobody_takes_its_place() {
        let now = clock::start();
        let gate = Gate {
            port: Some(4000),
            ..gate("192.0.2.10", GateMode::Relay)
        };
        let mut latch = Latch::default();
        set(&mut latch, &gate, now);
        assert_eq!(latch.peer(), Some(at(PHONE)));
        let much_later = now + RELATCH_SILENCE * 60;
        for stranger in ["192.0.2.10:4002", "203.0.113.5:4000"] {
            let judged = latch.admit(&gate, at(stranger), SSRC, much_later);
            assert_eq!(judged, Err(Refusal::Gate), "{stranger}");
        }
        for ssrc in [SSRC, 77] {
            let judged = latch.admit(&gate, at(PHONE), ssrc, much_later);
            assert_eq!(judged, Ok(Admission::Known));
        }
    }

    #[test]
    fn a_gate_that_names_no_relay_that_could_be_written_to_names_none() {
        let named = |address: &str, port| {
            other_relay(&Gate {
                port,
                ..gate(address, GateMode::Relay)
            })
        };
        assert_eq!(named("192.0.2.10", Some(4000)), Some(at(PHONE)));
        assert_eq!(named("192.0.2.10", None), None);
        assert_eq!(named("192.0.2.10", Some(0)), None);
        for nobody in ["0.0.0.0", "::", "224.0.0.1", "ff02::1", "255.255.255.255"] {
            assert_eq!(named(nobody, Some(4000)), None, "{nobody}");
        }
    }

    #[test]
    fn a_source_is_learnt_while_there_is_time_for_it_to_the_millisecond() {
        let now = clock::start();
        let gate = gate("192.0.2.10", GateMode::Exact);
        let mut latch = fresh(&gate, now);
        let late = now + FIRST + Duration::from_millis(1);
        assert_eq!(
            latch.admit(&gate, at("203.0.113.5:4000"), SSRC, late),
            Err(Refusal::Gate)
        );
        assert_eq!(
            latch.admit(&gate, at(PHONE), SSRC, late),
            Err(Refusal::Late)
        );
        assert_eq!(
            latch.admit(&gate, at(PHONE), SSRC, now + FIRST),
            Ok(Admission::Latched)
        );
        // Who is known is known for good.
        assert_eq!(
            latch.admit(&gate, at(PHONE), SSRC, late),
            Ok(Admission::Known)
        );
        // Before signalling has said anything there is no time at all.
        let refused = Latch::default().admit(&gate, at(PHONE), SSRC, now);
        assert_eq!(refused, Err(Refusal::Late));
    }

    #[test]
    fn a_new_ssrc_takes_over_only_soon_after_the_new_gate() {
        let now = clock::start();
        let gate = gate("192.0.2.10", GateMode::Exact);
        let mut latch = latched(&gate, now);
        set(&mut latch, &gate, now);
        let restarted = at("192.0.2.10:6000");
        let late = now + AGAIN + Duration::from_millis(1);
        assert_eq!(latch.admit(&gate, restarted, 5, late), Err(Refusal::Ssrc));
        assert_eq!(
            latch.admit(&gate, restarted, 5, now + AGAIN),
            Ok(Admission::Moved)
        );
        // The same SSRC is the same phone, whenever it comes.
        let day = now + Duration::from_secs(86_400);
        let rebound = at("192.0.2.10:6002");
        assert_eq!(latch.admit(&gate, rebound, 5, day), Ok(Admission::Moved));
    }

    const FIRST: Duration = Duration::from_secs(240);
    const AGAIN: Duration = Duration::from_secs(60);

    fn fresh(gate: &Gate, now: Instant) -> Latch {
        let mut latch = Latch::default();
        set(&mut latch, gate, now);
        latch
    }

    fn set(latch: &mut Latch, gate: &Gate, now: Instant) {
        latch.handle_gate(gate, now, FIRST, AGAIN);
    }

    fn latched(gate: &Gate, now: Instant) -> Latch {
        let mut latch = fresh(gate, now);
        latch.admit(gate, at(PHONE), SSRC, now).expect("passes");
        latch
    }

    fn gate(expected: &str, mode: GateMode) -> Gate {
        Gate {
            expected: vec![expected.parse().expect("an address")],
            mode,
            ..Gate::default()
        }
    }

    fn at(address: &str) -> SocketAddr {
        address.parse().expect("an address")
    }
}
