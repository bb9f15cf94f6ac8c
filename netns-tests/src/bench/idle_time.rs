//! What each CPU was idle, to the nanosecond: what the kernel does in soft interrupts is charged to whoever
//! runs at that moment, or to nobody, so a bench of such work counts all that the machine does.
//!
//! `/proc/timer_list` has for each CPU the sum of its idle time (a kernel with CONFIG_NO_HZ), but without what it
//! is idle at that moment. So each CPU's is read by a thread on that CPU, which is then not idle. What is
//! not idle is work, soft interrupts included, whoever they are charged to; so is what the hypervisor
//! takes away, which a bench tells apart by its rounds.

use std::fs;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

/// Cores that may be busy then; a moment with more is waited out a few times.
const MOST_AT_REST: f64 = 0.1;
const LOOKS: usize = 10;

/// Of all CPUs.
#[derive(Debug, Clone)]
pub(super) struct IdleTime(Vec<Cpu>);

/// One CPU at a moment: since when the machine runs, and for how long of that the CPU was idle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Cpu {
    now_ns: u64,
    idle_ns: u64,
}

impl IdleTime {
    /// As it is now. Needs root.
    pub(super) fn now() -> Result<Self> {
        let cpus = thread::available_parallelism()?.get();
        (0..cpus).map(on).collect::<Result<_>>().map(Self)
    }

    /// Nanoseconds that all CPUs together have worked since.
    pub(super) fn busy_since(&self, before: &Self) -> u64 {
        let pairs = self.0.iter().zip(&before.0);
        let busy = pairs.map(|(now, before)| {
            let whole = now.now_ns - before.now_ns;
            whole.saturating_sub(now.idle_ns - before.idle_ns)
        });
        busy.sum()
    }

    /// Nanoseconds since.
    pub(super) fn since(&self, before: &Self) -> u64 {
        let first = self.0.first().zip(before.0.first());
        first.map_or(0, |(now, before)| now.now_ns - before.now_ns)
    }

    /// The part of what all CPUs together could have worked since that they have.
    pub(super) fn share_since(&self, before: &Self) -> f64 {
        let whole = self.since(before) as f64 * self.0.len() as f64;
        self.busy_since(before) as f64 / whole.max(1.0)
    }
}

/// The cores that the machine uses without packets, by a look of this length, and its end.
pub(super) fn at_rest(look: Duration) -> Result<(f64, IdleTime)> {
    let mut least = f64::INFINITY;
    for _ in 0..LOOKS {
        let before = IdleTime::now()?;
        thread::sleep(look);
        let end = IdleTime::now()?;
        let busy = end.busy_since(&before) as f64 / end.since(&before) as f64;
        if busy < MOST_AT_REST {
            return Ok((busy, end));
        }
        least = least.min(busy);
    }
    bail!("something else uses {least:.2} cores or more; this needs a quiet machine")
}

/// Reads what this CPU has been idle, on it.
fn on(cpu: usize) -> Result<Cpu> {
    let read = move || {
        let mut only = CpuSet::new();
        only.set(cpu)?;
        sched_setaffinity(Pid::from_raw(0), &only)?;
        let text = fs::read_to_string("/proc/timer_list")
            .context("/proc/timer_list, which only root may read")?;
        of_cpu(&text, cpu)
            .context("/proc/timer_list is not understood: is the kernel without CONFIG_NO_HZ?")
    };
    let read = thread::spawn(read).join();
    read.map_err(|_| anyhow!("a thread that reads the idle time panicked"))?
}

fn of_cpu(text: &str, cpu: usize) -> Option<Cpu> {
    let number = |text: &str, name: &str| -> Option<u64> {
        let (_, rest) = text.split_once(name)?;
        let rest = rest.trim_start_matches([' ', ':']);
        rest.split(' ').next()?.parse().ok()
    };
    let (_, section) = text.split_once(&format!("\ncpu: {cpu}\n"))?;
    let section = section.split("\ncpu: ").next()?;
    let sleep = number(section, ".idle_sleeptime")?;
    Some(Cpu {
        now_ns: number(text, "now at ")?,
        idle_ns: sleep + number(section, ".iowait_sleeptime")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_idle_time_of_each_cpu_is_its_own() {
        let text = "Timer List Version: v0.10\nnow at 1000 nsecs\n\ncpu: 0\n\
            \x20 .idle_sleeptime : 500 nsecs\n  .iowait_sleeptime: 7 nsecs\n\ncpu: 1\n\
            \x20 .idle_sleeptime : 50 nsecs\n  .iowait_sleeptime: 0 nsecs\n";
        let cpu = |idle_ns| {
            Some(Cpu {
                now_ns: 1_000,
                idle_ns,
            })
        };
        let read = [0, 1, 2].map(|number| of_cpu(text, number));
        assert_eq!(read, [cpu(507), cpu(50), None]);
    }
}
