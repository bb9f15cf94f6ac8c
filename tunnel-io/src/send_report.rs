//! What became of a batch of packets: how many left, and why the others did not.

use nix::errno::Errno;

/// Why the kernel did not take a packet. Never fatal; counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SendFailure {
    /// Larger than the path MTU, and fragmenting is off (EMSGSIZE).
    TooBig,
    /// The kernel or the device has no room (ENOBUFS, ENOMEM).
    NoBuffers,
    /// The socket's own buffer is full (EAGAIN).
    NotReady,
    /// A firewall rule says no (EPERM, EACCES).
    NotPermitted,
    /// No route, host or listener there, or an ICMP error of an earlier packet said so.
    Unreachable,
    /// Anything else.
    Other,
}

impl SendFailure {
    /// All of them, in the order of [`SendReport::failures`].
    pub const ALL: [Self; 6] = [
        Self::TooBig,
        Self::NoBuffers,
        Self::NotReady,
        Self::NotPermitted,
        Self::Unreachable,
        Self::Other,
    ];

    /// A short name for metrics.
    pub const fn label(self) -> &'static str {
        match self {
            Self::TooBig => "too_big",
            Self::NoBuffers => "no_buffers",
            Self::NotReady => "not_ready",
            Self::NotPermitted => "not_permitted",
            Self::Unreachable => "unreachable",
            Self::Other => "other",
        }
    }

    pub(crate) fn of(errno: Errno) -> Self {
        #[expect(clippy::wildcard_enum_match_arm, reason = "Errno has some 130 values")]
        match errno {
            Errno::EMSGSIZE => Self::TooBig,
            Errno::ENOBUFS | Errno::ENOMEM => Self::NoBuffers,
            Errno::EAGAIN => Self::NotReady,
            Errno::EPERM | Errno::EACCES => Self::NotPermitted,
            Errno::ECONNREFUSED
            | Errno::EHOSTUNREACH
            | Errno::ENETUNREACH
            | Errno::EHOSTDOWN
            | Errno::ENETDOWN
            | Errno::EADDRNOTAVAIL
            | Errno::ENOPROTOOPT
            | Errno::EPROTO => Self::Unreachable,
            _ => Self::Other,
        }
    }
}

/// The outcome of one or more batches.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SendReport {
    /// Packets that the kernel took.
    pub sent: u64,
    failed: [u64; SendFailure::ALL.len()],
}

impl SendReport {
    /// Packets that were not sent for this reason.
    pub fn failed(&self, failure: SendFailure) -> u64 {
        self.failed[failure as usize]
    }

    /// Packets that were not sent, by reason.
    pub fn failures(&self) -> impl Iterator<Item = (SendFailure, u64)> + '_ {
        SendFailure::ALL.into_iter().zip(self.failed)
    }

    /// Packets that were not sent for any reason.
    pub fn total_failed(&self) -> u64 {
        self.failed.iter().sum()
    }

    pub(crate) fn count_failure(&mut self, failure: SendFailure, packets: usize) {
        self.failed[failure as usize] += packets as u64;
    }
}

impl std::ops::AddAssign for SendReport {
    fn add_assign(&mut self, other: Self) {
        self.sent += other.sent;
        for (total, more) in self.failed.iter_mut().zip(other.failed) {
            *total += more;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_of_all_is_the_order_of_the_enum() {
        for (index, failure) in SendFailure::ALL.into_iter().enumerate() {
            assert_eq!(failure as usize, index);
        }
    }

    #[test]
    fn reports_add_up_by_reason() {
        let mut total = SendReport::default();
        let mut one = SendReport {
            sent: 3,
            ..SendReport::default()
        };
        one.count_failure(SendFailure::of(Errno::EMSGSIZE), 2);
        total += one;
        total += one;
        assert_eq!(total.sent, 6);
        assert_eq!(total.failed(SendFailure::TooBig), 4);
        assert_eq!(total.total_failed(), 4);
    }
}
