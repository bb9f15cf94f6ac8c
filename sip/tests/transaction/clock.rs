//! Virtual time in milliseconds, and a way to watch a machine through it.

use std::sync::LazyLock;
use std::time::{Duration, Instant};

use bytes::Bytes;
use sip::timer::Fired;
use sip::transaction::client_invite::ClientInvite;
use sip::transaction::client_non_invite::ClientNonInvite;
use sip::transaction::server_invite::ServerInvite;
use sip::transaction::server_non_invite::ServerNonInvite;

#[expect(
    clippy::disallowed_methods,
    reason = "an Instant cannot be made from nothing"
)]
static START: LazyLock<Instant> = LazyLock::new(Instant::now);

/// The instant `milliseconds` after the start of the test.
pub(crate) fn at(milliseconds: u64) -> Instant {
    *START + Duration::from_millis(milliseconds)
}

/// The milliseconds between the start of the test and `instant`.
pub(crate) fn since_start(instant: Instant) -> u64 {
    u64::try_from((instant - *START).as_millis()).unwrap()
}

pub(crate) fn send(text: &'static str) -> Fired {
    Fired::Send(Bytes::from_static(text.as_bytes()))
}

/// What the four machines have in common.
pub(crate) trait Machine {
    fn fire(&mut self, now: Instant) -> Fired;
    fn next(&self) -> Option<(Instant, &'static str)>;
}

macro_rules! machine {
    ($($name:ident)*) => { $(
        impl Machine for $name {
            fn fire(&mut self, now: Instant) -> Fired {
                self.handle_timeout(now)
            }
            fn next(&self) -> Option<(Instant, &'static str)> {
                self.poll_timeout()
            }
        }
    )* };
}
machine!(ClientInvite ClientNonInvite ServerInvite ServerNonInvite);

/// Asks the machine at each millisecond of a span, the first included and the last not, and
/// lists when it did what, and which timer it had announced for that millisecond.
pub(crate) fn watch(
    machine: &mut impl Machine,
    span: std::ops::Range<u64>,
) -> Vec<(u64, &'static str, Fired)> {
    let mut seen = Vec::new();
    for now in span {
        let announced = machine.next();
        match machine.fire(at(now)) {
            Fired::Nothing => assert!(
                announced.is_none_or(|(due, _)| due > at(now)),
                "nothing happened at {now} ms, but {announced:?} was announced"
            ),
            fired @ (Fired::Send(_) | Fired::Slow | Fired::TimedOut | Fired::Ended) => {
                let (due, timer) = announced.expect("it acted at a time not announced");
                assert_eq!(since_start(due), now, "announced for another time");
                seen.push((now, timer, fired));
            }
        }
    }
    seen
}
