//! CPU time of the whole machine, so that work which no process is charged for is counted too.
//!
//! What the kernel does in soft interrupts is charged to whoever runs at that moment, or to nobody where the
//! CPU was idle. So here a CPU's work is what is left of the wall clock: its time less what it was idle,
//! waited for a disk or was taken away by the hypervisor (`/proc/stat`, of which `idle` is exact where the
//! tick stops in idle, CONFIG_NO_HZ; its unit is 10 ms a CPU). A bench takes from a run's work that of a run
//! with the load generator alone and, for what else the machine does, looks at a run without anything.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::unistd::{SysconfVar, sysconf};

/// The machine's CPUs at a moment.
#[derive(Debug, Clone, Copy)]
pub(super) struct CpuTime {
    at: Instant,
    cpus: u32,
    /// Of all CPUs together.
    unused: Duration,
}

impl CpuTime {
    /// As it is now.
    pub(super) fn now() -> Result<Self> {
        let ticks = sysconf(SysconfVar::CLK_TCK)?.context("no CLK_TCK")?;
        let text = fs::read_to_string("/proc/stat")?;
        let at = Instant::now();
        let (cpus, unused) = unused_ticks(&text).context("/proc/stat is not understood")?;
        ensure!(cpus > 0 && ticks > 0, "/proc/stat has no CPU");
        Ok(Self {
            at,
            cpus,
            unused: Duration::from_secs_f64(unused as f64 / ticks as f64),
        })
    }

    /// What all CPUs together have worked since.
    pub(super) fn busy_since(&self, before: &Self) -> Duration {
        let unused = self.unused.saturating_sub(before.unused);
        self.whole_since(before).saturating_sub(unused)
    }

    /// The same as a part of what they could have worked.
    pub(super) fn share_since(&self, before: &Self) -> f64 {
        let whole = self.whole_since(before).as_secs_f64();
        self.busy_since(before).as_secs_f64() / whole.max(f64::MIN_POSITIVE)
    }

    fn whole_since(&self, before: &Self) -> Duration {
        self.at.saturating_duration_since(before.at) * self.cpus
    }
}

/// How many CPUs there are, and the sum of their idle, iowait and steal.
fn unused_ticks(text: &str) -> Option<(u32, u64)> {
    let (mut cpus, mut sum) = (0, 0);
    for line in text.lines() {
        let mut fields = line.split_whitespace();
        let name = fields.next().unwrap_or_default();
        // The line "cpu" is the sum.
        if name.strip_prefix("cpu").is_none_or(str::is_empty) {
            continue;
        }
        // user, nice, system, idle, iowait, irq, softirq, steal.
        let fields: Vec<u64> = fields.map(str::parse).collect::<Result<_, _>>().ok()?;
        let [_, _, _, idle, iowait, _, _, steal, ..] = fields[..] else {
            return None;
        };
        sum += idle + iowait + steal;
        cpus += 1;
    }
    Some((cpus, sum))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_cpu_did_not_do_is_read_of_each_cpu() {
        let text = "cpu  9 9 9 999 9 9 9 9 0 0\ncpu0 33647 0 3873 11201 64 0 8 8 0 0\n\
                    cpu1 34672 0 4552 9280 265 0 57 11 0 0\nintr 472744 0 0\n";
        let unused = 11_201 + 64 + 8 + 9_280 + 265 + 11;
        assert_eq!(unused_ticks(text), Some((2, unused)));
        assert_eq!(unused_ticks("cpu0 1 2 3\n"), None);
        assert_eq!(unused_ticks("intr 1\n"), Some((0, 0)));
    }

    #[test]
    fn a_thread_that_works_is_seen() {
        let before = CpuTime::now().unwrap();
        let worked = crate::wait::until("work to be counted", Duration::from_secs(10), || {
            let until = Instant::now() + Duration::from_millis(10);
            while Instant::now() < until {}
            let busy = CpuTime::now()?.busy_since(&before);
            Ok((busy >= Duration::from_millis(20)).then_some(()))
        });
        worked.unwrap();
    }
}
