//! What the CPUs were idle, to the nanosecond: for benches whose runs are too short for the ticks
//! of `/proc/stat`.
//!
//! `/proc/timer_list` has for each CPU the sum of its idle time, and when it has gone idle last (kernel with
//! CONFIG_NO_HZ). What is not idle is work, soft interrupts included, whoever they are charged to; so is
//! what the hypervisor takes away, which a bench tells apart by its rounds.

use std::fs;

use anyhow::{Context as _, Result};

/// A moment, and all that CPUs have been idle until then.
#[derive(Debug, Clone, Copy)]
pub(super) struct IdleTime {
    now_ns: u64,
    idle_ns: u64,
    cpus: u64,
}

impl IdleTime {
    /// As it is now. Needs root.
    pub(super) fn now() -> Result<Self> {
        let text = fs::read_to_string("/proc/timer_list")
            .context("/proc/timer_list, which only root may read")?;
        read(&text)
            .context("/proc/timer_list is not understood: is the kernel without CONFIG_NO_HZ?")
    }

    /// Nanoseconds that all CPUs together have worked since.
    pub(super) fn busy_since(&self, before: &Self) -> u64 {
        let whole = (self.now_ns - before.now_ns) * self.cpus;
        whole.saturating_sub(self.idle_ns.saturating_sub(before.idle_ns))
    }

    /// Nanoseconds since.
    pub(super) fn since(&self, before: &Self) -> u64 {
        self.now_ns - before.now_ns
    }
}

fn read(text: &str) -> Option<IdleTime> {
    let number = |line: &str, name: &str| -> Option<u64> {
        let rest = line.trim().strip_prefix(name)?;
        let rest = rest.trim_start_matches([' ', ':']);
        rest.split(' ').next()?.parse().ok()
    };
    let now_ns = text.lines().find_map(|line| number(line, "now at "))?;
    let of = |name: &str| -> Vec<u64> {
        let lines = text.lines();
        lines.filter_map(|line| number(line, name)).collect()
    };
    let (sleeps, waits) = (of(".idle_sleeptime"), of(".iowait_sleeptime"));
    let (entries, exits) = (of(".idle_entrytime"), of(".idle_exittime"));
    let cpus = sleeps.len();
    if cpus == 0 || [waits.len(), entries.len(), exits.len()] != [cpus; 3] {
        return None;
    }
    let sum: u64 = sleeps.iter().chain(&waits).sum();
    // Of those that are idle at this moment.
    let open = entries
        .iter()
        .zip(&exits)
        .filter(|(entry, exit)| entry > exit);
    let open: u64 = open.map(|(entry, _)| now_ns.saturating_sub(*entry)).sum();
    Some(IdleTime {
        now_ns,
        idle_ns: sum + open,
        cpus: cpus as u64,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cpu_that_is_idle_now_is_counted_until_now() {
        let text = "Timer List Version: v0.10\nnow at 1000 nsecs\ncpu: 0\n\
            \x20 .idle_entrytime : 900 nsecs\n  .idle_exittime  : 800 nsecs\n\
            \x20 .idle_sleeptime : 500 nsecs\n  .iowait_sleeptime: 7 nsecs\ncpu: 1\n\
            \x20 .idle_entrytime : 100 nsecs\n  .idle_exittime  : 200 nsecs\n\
            \x20 .idle_sleeptime : 50 nsecs\n  .iowait_sleeptime: 0 nsecs\n";
        let later = read(text).unwrap();
        assert_eq!((later.idle_ns, later.cpus), (500 + 7 + 100 + 50, 2));
        let earlier = IdleTime {
            now_ns: 600,
            idle_ns: 357,
            cpus: 2,
        };
        assert_eq!(later.busy_since(&earlier), 800 - 300);
        assert_eq!(read("now at 7 nsecs\n").map(|_| ()), None);
    }
}
