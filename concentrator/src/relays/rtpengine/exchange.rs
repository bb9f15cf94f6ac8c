//! Requests over UDP: each has a cookie, is sent again until its answer comes, and is given up at its
//! deadline. rtpengine recognises a repeated request by the cookie and repeats its answer.
//!
//! Pure. An answer counts only with a cookie that is waited for; everything else is counted and
//! dropped. Nothing here grows by what comes from the network.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use wire::bencode::{self, Dictionary, DictionaryWriter, Value};

/// How long an answer is waited for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    /// The request is sent again after so long, then after twice as long, and so on; never where absent.
    pub(super) again: Option<Duration>,
    /// Then it is given up.
    pub(super) deadline: Duration,
}

/// What became of datagrams, each count under its own name.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Counted {
    pub(super) requests: u64,
    pub(super) retransmissions: u64,
    pub(super) answers: u64,
    pub(super) late: u64,
    pub(super) strange_cookie: u64,
    pub(super) malformed: u64,
}

#[derive(Debug)]
struct Pending<T> {
    what: T,
    datagram: Vec<u8>,
    deadline: Instant,
    again: Option<(Instant, Duration)>,
}

impl<T> Pending<T> {
    fn next(&self) -> Instant {
        self.again
            .map_or(self.deadline, |(at, _)| at.min(self.deadline))
    }
}

/// The requests under way; `T` says what each is about.
#[derive(Debug)]
pub(super) struct Exchange<T> {
    /// The start of every cookie of ours.
    prefix: String,
    next: u64,
    pending: BTreeMap<u64, Pending<T>>,
    timers: BTreeSet<(Instant, u64)>,
    outgoing: VecDeque<Vec<u8>>,
    pub(super) counted: Counted,
}

impl<T> Exchange<T> {
    /// `prefix` must differ between concentrators and between their starts: rtpengine looks at nothing
    /// but the cookie when it decides that it has answered a request already.
    pub(super) fn new(prefix: &str) -> Self {
        Self {
            prefix: format!("{prefix}_"),
            next: 1,
            pending: BTreeMap::new(),
            timers: BTreeSet::new(),
            outgoing: VecDeque::new(),
            counted: Counted::default(),
        }
    }

    pub(super) fn ask(
        &mut self,
        what: T,
        patience: Patience,
        now: Instant,
        fill: impl FnOnce(&mut DictionaryWriter<'_>),
    ) {
        let number = self.next;
        self.next += 1;
        let mut datagram = format!("{}{number} ", self.prefix).into_bytes();
        bencode::write_dictionary(&mut datagram, fill);
        self.outgoing.push_back(datagram.clone());
        self.counted.requests += 1;
        let pending = Pending {
            what,
            datagram,
            deadline: now + patience.deadline,
            again: patience.again.map(|wait| (now + wait, wait)),
        };
        self.timers.insert((pending.next(), number));
        self.pending.insert(number, pending);
    }

    /// The answer in a datagram, and what was asked.
    pub(super) fn handle_datagram<'d>(
        &mut self,
        datagram: &'d [u8],
    ) -> Option<(T, Dictionary<'d>)> {
        let Some((number, body)) = self.split(datagram) else {
            self.counted.strange_cookie += 1;
            return None;
        };
        if !self.pending.contains_key(&number) {
            self.counted.late += 1;
            return None;
        }
        // The request stays: what is cut or forged does not stand in the way of the answer itself.
        let Ok(Value::Dictionary(answer)) = Value::parse(body) else {
            self.counted.malformed += 1;
            return None;
        };
        let pending = self.pending.remove(&number)?;
        self.timers.remove(&(pending.next(), number));
        self.counted.answers += 1;
        Some((pending.what, answer))
    }

    /// The number of a cookie that we have given out at some time, and what follows it.
    fn split<'d>(&self, datagram: &'d [u8]) -> Option<(u64, &'d [u8])> {
        let rest = datagram.strip_prefix(self.prefix.as_bytes())?;
        let space = rest.iter().take(21).position(|octet| *octet == b' ')?;
        let digits = std::str::from_utf8(&rest[..space]).ok()?;
        let number: u64 = digits.parse().ok()?;
        // "+7" and "07" are numbers, too, but not our cookies.
        let ours = number < self.next && number.to_string() == digits;
        ours.then_some((number, &rest[space + 1..]))
    }

    /// Sends again what is due; gives what is past its deadline.
    pub(super) fn handle_timeout(&mut self, now: Instant) -> Vec<T> {
        let mut given_up = Vec::new();
        while let Some(&(at, number)) = self.timers.first()
            && at <= now
        {
            self.timers.pop_first();
            let Some(pending) = self.pending.get_mut(&number) else {
                continue;
            };
            if pending.deadline <= now {
                given_up.extend(self.pending.remove(&number).map(|pending| pending.what));
                continue;
            }
            self.outgoing.push_back(pending.datagram.clone());
            self.counted.retransmissions += 1;
            pending.again = pending.again.map(|(_, wait)| (now + wait * 2, wait * 2));
            self.timers.insert((pending.next(), number));
        }
        given_up
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.timers.first().map(|(at, _)| *at)
    }

    pub(super) fn poll_transmit(&mut self) -> Option<Vec<u8>> {
        self.outgoing.pop_front()
    }

    /// Gives up everything.
    pub(super) fn clear(&mut self) {
        self.pending.clear();
        self.timers.clear();
        self.outgoing.clear();
    }

    pub(super) fn len(&self) -> usize {
        self.pending.len()
    }
}
