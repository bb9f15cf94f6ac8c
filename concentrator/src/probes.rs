//! The edges' probes and our answers to them.
//!
//! A probe comes through the tunnel like any packet and has passed the acceptance table. The answer
//! goes from `tunnel.listen` to the edge's own address, outside of the tunnel, and is never longer
//! than the probe. It says whether we serve or drain, and how busy the worker is.
//!
//! Who probes with which key is remembered, a few addresses for each edge: two edges that were
//! given one key show here.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use wire::ip;
use wire::mark::Mark;
use wire::probe::{Repr, State};

use crate::acceptance::Accepted;

/// Addresses that are remembered for each edge.
const INGRESSES: usize = 8;
/// One that has not probed for longer is gone.
const GONE: Duration = Duration::from_secs(30);
/// The load is that of at least this long.
const LOAD_OVER: Duration = Duration::from_secs(1);

/// Serving or draining, and who probes; shared with the status page and the signal's task.
#[derive(Debug, Clone)]
pub struct Standing {
    draining: Arc<AtomicBool>,
    ingresses: Arc<Mutex<Vec<Vec<Ingress>>>>,
}

/// Somebody who probes with an edge's key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Ingress {
    address: IpAddr,
    mark: Mark,
    at: Instant,
}

impl Standing {
    /// Serving, for this number of edges.
    pub fn new(edges: usize) -> Self {
        Self {
            draining: Arc::default(),
            ingresses: Arc::new(Mutex::new(vec![Vec::new(); edges])),
        }
    }

    /// Edges should send elsewhere, if they can; or here again.
    pub fn set_draining(&self, draining: bool) {
        self.draining.store(draining, Ordering::Relaxed);
    }

    /// The word for it.
    pub fn state(&self) -> State {
        if self.draining.load(Ordering::Relaxed) {
            State::Draining
        } else {
            State::Serving
        }
    }

    /// Who probes with the key of this edge, by its place in the configuration.
    pub fn ingresses(&self, edge: usize, now: Instant) -> Value {
        let all = self
            .ingresses
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let of_edge = all.get(edge).into_iter().flatten();
        let shown = of_edge.map(|ingress| {
            let ago = now.saturating_duration_since(ingress.at);
            json!({
                "address": ingress.address,
                "mark": ingress.mark.number(),
                "last_probe_s_ago": ago.as_secs_f64(),
            })
        });
        Value::Array(shown.collect())
    }

    /// True when this is a second address with the edge's key, and new.
    fn note(&self, edge: usize, ingress: Ingress) -> bool {
        let mut all = self
            .ingresses
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let Some(of_edge) = all.get_mut(edge) else {
            return false;
        };
        let same = |known: &&mut Ingress| known.address == ingress.address;
        if let Some(known) = of_edge.iter_mut().find(same) {
            *known = ingress;
            return false;
        }
        of_edge.retain(|known| ingress.at.saturating_duration_since(known.at) < GONE);
        if of_edge.len() == INGRESSES {
            return false;
        }
        of_edge.push(ingress);
        of_edge.len() > 1
    }
}

/// What became of a probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It will be answered.
    Answered,
    /// The same, and a second ingress uses this edge's key.
    SecondIngress,
    /// No probe, whatever it is.
    Malformed,
}

/// Makes the answers.
#[derive(Debug)]
pub struct Answers {
    standing: Standing,
    waiting: VecDeque<(SocketAddr, Vec<u8>)>,
    load: Load,
}

impl Answers {
    /// None waits.
    pub fn new(standing: Standing) -> Self {
        Self {
            standing,
            waiting: VecDeque::new(),
            load: Load::default(),
        }
    }

    /// Takes an accepted packet that is for our probe port. `busy` is the CPU time that the worker
    /// has used so far.
    pub fn handle_probe(
        &mut self,
        accepted: &Accepted<'_>,
        now: Instant,
        busy: impl FnOnce() -> Duration,
    ) -> Outcome {
        let packet = ip::Packet::parse(accepted.inner).ok();
        let payload = packet.and_then(|packet| packet.udp_payload().ok());
        let (Some(payload), Some(ports)) = (payload, accepted.ports) else {
            return Outcome::Malformed;
        };
        let load = self.load.at(now, busy);
        let answer = Repr::parse(payload)
            .ok()
            .and_then(|probe| probe.answer(self.standing.state(), load));
        let Some(answer) = answer else {
            return Outcome::Malformed;
        };
        let to = SocketAddr::new(accepted.source, ports.source);
        self.waiting.push_back((to, answer.build(0)));
        let ingress = Ingress {
            address: accepted.source,
            mark: accepted.path.mark,
            at: now,
        };
        if self.standing.note(accepted.edge, ingress) {
            Outcome::SecondIngress
        } else {
            Outcome::Answered
        }
    }

    /// The next answer and where it goes.
    pub fn poll_answer(&mut self) -> Option<(SocketAddr, Vec<u8>)> {
        self.waiting.pop_front()
    }
}

/// The share of one processor, from 0 to 65535.
#[derive(Debug, Default)]
struct Load {
    before: Option<(Instant, Duration)>,
    value: u16,
}

impl Load {
    fn at(&mut self, now: Instant, busy: impl FnOnce() -> Duration) -> u16 {
        let Some((since, before)) = self.before else {
            self.before = Some((now, busy()));
            return 0;
        };
        let elapsed = now.saturating_duration_since(since);
        if elapsed >= LOAD_OVER {
            let used = busy();
            let share = used.saturating_sub(before).as_secs_f64() / elapsed.as_secs_f64();
            // A cast saturates.
            self.value = (share * f64::from(u16::MAX)) as u16;
            self.before = Some((now, used));
        }
        self.value
    }
}

#[cfg(test)]
#[expect(
    clippy::disallowed_methods,
    reason = "tests need some instant to count from"
)]
mod tests {
    use wire::gre::TunnelKey;
    use wire::probe::Kind;

    use super::*;
    use crate::flows::Path;

    const PROBE: Repr = Repr {
        kind: Kind::Probe,
        key: TunnelKey(0x1001),
        sequence: 7,
        sent_us: 8,
    };

    fn handle(answers: &mut Answers, from: &str, payload: &[u8], now: Instant) -> Outcome {
        let source: SocketAddr = from.parse().unwrap();
        let inner = ip::udp(source, "10.0.9.2:7061".parse().unwrap(), 4, payload).unwrap();
        let packet = ip::Packet::parse(&inner).unwrap();
        let accepted = Accepted {
            edge: 0,
            path: Path {
                key: PROBE.key,
                mark: Mark::new(1).unwrap(),
            },
            wire_key: PROBE.key,
            inner: &inner,
            protocol: packet.protocol(),
            source: source.ip(),
            ports: packet.ports(),
            is_probe: true,
            from_peer: false,
        };
        answers.handle_probe(&accepted, now, || Duration::ZERO)
    }

    #[test]
    fn an_answer_says_what_we_are_and_goes_to_who_asked() {
        let (standing, now) = (Standing::new(1), Instant::now());
        let mut answers = Answers::new(standing.clone());
        for (draining, state) in [(false, State::Serving), (true, State::Draining)] {
            standing.set_draining(draining);
            let outcome = handle(&mut answers, "10.0.1.2:7061", &PROBE.build(1_000), now);
            assert_eq!(outcome, Outcome::Answered);
            let (to, bytes) = answers.poll_answer().unwrap();
            assert_eq!(to.to_string(), "10.0.1.2:7061");
            assert_eq!(bytes.len(), wire::probe::LEN);
            assert_eq!(Repr::parse(&bytes), Ok(PROBE.answer(state, 0).unwrap()));
        }
    }

    #[test]
    fn neither_an_answer_nor_garbage_is_answered() {
        let mut answers = Answers::new(Standing::new(1));
        let answer = PROBE.answer(State::Serving, 0).unwrap().build(0);
        for payload in [&answer[..], b"hello", b""] {
            let outcome = handle(&mut answers, "10.0.1.2:7061", payload, Instant::now());
            assert_eq!(outcome, Outcome::Malformed);
            assert_eq!(answers.poll_answer(), None);
        }
    }

    #[test]
    fn a_second_address_with_one_key_is_told_once_and_forgotten_when_it_is_gone() {
        let standing = Standing::new(1);
        let (mut answers, start) = (Answers::new(standing.clone()), Instant::now());
        let probe = PROBE.build(0);
        let mut from = |address: &str, at: Instant| handle(&mut answers, address, &probe, at);
        assert_eq!(from("10.0.1.2:7061", start), Outcome::Answered);
        assert_eq!(from("10.0.1.3:7061", start), Outcome::SecondIngress);
        assert_eq!(from("10.0.1.3:7061", start), Outcome::Answered);
        assert_eq!(standing.ingresses(0, start).as_array().unwrap().len(), 2);
        let later = start + GONE;
        assert_eq!(from("10.0.1.4:7061", later), Outcome::Answered);
        assert_eq!(standing.ingresses(0, later).as_array().unwrap().len(), 1);
        assert_eq!(standing.ingresses(9, later), json!([]));
    }

    #[test]
    fn a_flood_of_addresses_is_not_remembered() {
        let standing = Standing::new(1);
        let (mut answers, now) = (Answers::new(standing.clone()), Instant::now());
        for last in 1..=200 {
            handle(
                &mut answers,
                &format!("10.0.1.{last}:7061"),
                &PROBE.build(0),
                now,
            );
        }
        let shown = standing.ingresses(0, now);
        assert_eq!(shown.as_array().unwrap().len(), INGRESSES);
    }

    #[test]
    fn the_load_is_the_share_of_the_last_second() {
        let (mut load, start) = (Load::default(), Instant::now());
        let at = |ms| start + Duration::from_millis(ms);
        assert_eq!(load.at(at(0), || Duration::from_secs(5)), 0);
        assert_eq!(load.at(at(999), || panic!("too early")), 0);
        let half = load.at(at(1_000), || Duration::from_millis(5_500));
        assert_eq!(half, 32_767);
        let more_than_one = load.at(at(2_000), || Duration::from_secs(60));
        assert_eq!(more_than_one, u16::MAX);
    }
}
