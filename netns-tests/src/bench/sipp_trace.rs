//! What became of SIPp's calls, from its trace of messages: when each was begun, when it rang, whether it
//! ended as it should. SIPp's own verdict is kinder: where ACK and BYE are lost it takes the 200 that comes
//! again for the answer to its BYE, sends neither again, and counts a success.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Time zones are apart by multiples of this, so local times agree with ours modulo it.
const ZONE_S: f64 = 900.0;

/// One call of the caller's.
#[derive(Debug, Default, Clone, Copy, PartialEq)]
pub(crate) struct Call {
    /// Seconds, modulo [`ZONE_S`].
    begun: f64,
    /// From the first INVITE to the first answer that rings or is final.
    pub(crate) post_dial_ms: Option<f64>,
    pub(crate) answered: bool,
    pub(crate) hung_up: bool,
    /// INVITEs after the first one.
    pub(crate) repeated: u32,
}

impl Call {
    /// When it first rang or was answered, in seconds of the trace's clock.
    pub(crate) fn answered_at(&self) -> Option<f64> {
        Some(self.begun + self.post_dial_ms? / 1000.0)
    }

    /// How many seconds after a moment it was begun; negative: before.
    pub(crate) fn begun_after(&self, moment: SystemTime) -> f64 {
        let moment = moment.duration_since(UNIX_EPOCH).unwrap_or_default();
        apart(self.begun, modulo(moment))
    }
}

/// All calls of a trace.
pub(crate) fn read(trace: &str) -> Vec<Call> {
    const RULE: &str = "-----------------------------------------------";
    let mut calls: BTreeMap<&str, Call> = BTreeMap::new();
    for entry in trace.split(RULE).skip(1) {
        let Some((time, message)) = entry.split_once('\n') else {
            continue;
        };
        let field = |name: &str| {
            let mut lines = message.lines();
            lines
                .find_map(|line| line.strip_prefix(name))
                .map(str::trim)
        };
        let (Some(at), Some(id), Some(cseq)) = (seconds(time), field("Call-ID:"), field("CSeq:"))
        else {
            continue;
        };
        let received = message.contains(" message received ");
        let mut lines = message.lines();
        let status = lines.find_map(|line| line.strip_prefix("SIP/2.0 "));
        let status = status.and_then(|status| status.split(' ').next()?.parse::<u16>().ok());
        match (received, status, cseq.ends_with(" INVITE")) {
            (false, None, true) => {
                let again = |call: &mut Call| call.repeated += 1;
                calls.entry(id).and_modify(again).or_insert(Call {
                    begun: at,
                    ..Call::default()
                });
            }
            (true, Some(101..), true) => {
                if let Some(call) = calls.get_mut(id) {
                    let delay = apart(at, call.begun) * 1000.0;
                    call.post_dial_ms.get_or_insert(delay);
                    call.answered |= status == Some(200);
                }
            }
            (true, Some(200), false) => {
                if let Some(call) = calls.get_mut(id) {
                    call.hung_up |= cseq.ends_with(" BYE");
                }
            }
            (_, _, _) => {}
        }
    }
    calls.into_values().collect()
}

/// Of ` 2026-11-29 06:36:27.119671`.
fn seconds(time: &str) -> Option<f64> {
    let clock = time.split_whitespace().nth(1)?;
    let mut parts = clock.split(':');
    let (_hours, minutes, seconds) = (parts.next()?, parts.next()?, parts.next()?);
    let minutes: f64 = minutes.parse().ok()?;
    let seconds: f64 = seconds.parse().ok()?;
    Some((minutes * 60.0 + seconds) % ZONE_S)
}

fn modulo(time: Duration) -> f64 {
    time.as_secs_f64() % ZONE_S
}

/// How far one is after the other, where both are within half of [`ZONE_S`].
fn apart(later: f64, earlier: f64) -> f64 {
    (later - earlier + 1.5 * ZONE_S) % ZONE_S - 0.5 * ZONE_S
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "\
----------------------------------------------- 2026-11-29 06:44:59.900000
UDP message sent (457 bytes):

INVITE sip:ua2@example.com SIP/2.0
Call-ID: 1-737@192.168.1.10
CSeq: 1 INVITE

----------------------------------------------- 2026-11-29 06:45:00.400000
UDP message sent (457 bytes):

INVITE sip:ua2@example.com SIP/2.0
Call-ID: 1-737@192.168.1.10
CSeq: 1 INVITE

----------------------------------------------- 2026-11-29 06:45:00.450000
UDP message received [300] bytes :

SIP/2.0 100 Trying
Call-ID: 1-737@192.168.1.10
CSeq: 1 INVITE

----------------------------------------------- 2026-11-29 06:45:00.500000
UDP message received [300] bytes :

SIP/2.0 180 Ringing
Call-ID: 1-737@192.168.1.10
CSeq: 1 INVITE

----------------------------------------------- 2026-11-29 06:45:00.600000
UDP message received [300] bytes :

SIP/2.0 200 OK
Call-ID: 1-737@192.168.1.10
CSeq: 2 BYE
";

    #[test]
    fn a_call_counts_from_its_first_invite_to_its_first_ringing() {
        let calls = read(TRACE);
        assert_eq!(calls.len(), 1);
        assert!((calls[0].post_dial_ms.unwrap() - 600.0).abs() < 0.01);
        assert!(calls[0].hung_up && !calls[0].answered);
        assert_eq!(calls[0].repeated, 1);
        // The clock of the trace is some zone's.
        let moment = UNIX_EPOCH + Duration::from_secs(3600 * 7 + 44 * 60 + 58);
        assert!((calls[0].begun_after(moment) - 1.9).abs() < 0.001);
        let cut = TRACE.replace("SIP/2.0 200", "SIP/2.0 481");
        assert!(!read(&cut)[0].hung_up);
    }
}
