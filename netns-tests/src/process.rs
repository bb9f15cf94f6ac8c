//! A program in a namespace, as a guard with a log file.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::command;
use crate::namespace::Namespace;
use crate::wait;

/// How long a program may take to end after SIGTERM before it gets SIGKILL.
const GRACE: Duration = Duration::from_secs(5);

/// A running program. Dropped: SIGTERM, then SIGKILL.
#[derive(Debug)]
pub(crate) struct Process {
    name: String,
    child: Child,
    log: PathBuf,
    /// What it needs for as long as it runs.
    beside: Option<Box<Self>>,
}

impl Process {
    /// Starts `program` in a namespace, in `folder`, with both outputs in `folder/name.log`.
    pub(crate) fn start(
        namespace: &Namespace,
        name: &str,
        program: &str,
        arguments: &[&str],
        folder: &Path,
    ) -> Result<Self> {
        command::echo(
            namespace.name(),
            &format!("{program} {}", arguments.join(" ")),
        );
        let log = folder.join(format!("{name}.log"));
        let file = File::create(&log).with_context(|| log.display().to_string())?;
        let child = namespace
            .command(program)
            .args(arguments)
            .current_dir(folder)
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("cannot start {program}"))?;
        Ok(Self {
            name: name.to_owned(),
            child,
            log,
            beside: None,
        })
    }

    /// The same program, with another one that ends when it does.
    pub(crate) fn beside(mut self, other: Option<Self>) -> Self {
        self.beside = other.map(Box::new);
        self
    }

    /// One that was started elsewhere; what it writes does not come to its log.
    pub(crate) fn adopt(name: &str, child: Child, folder: &Path) -> Self {
        Self {
            name: name.to_owned(),
            child,
            log: folder.join(format!("{name}.log")),
            beside: None,
        }
    }

    /// Its process number.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it has written so far.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Its exit status if it has ended.
    pub(crate) fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Waits for its end.
    pub(crate) fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let what = format!("the end of {}", self.name);
        wait::until(&what, limit, || Ok(self.child.try_wait()?))
    }

    /// An error with the end of its log when it has ended before it should.
    pub(crate) fn check_alive(&mut self) -> Result<()> {
        if let Some(other) = &mut self.beside {
            other.check_alive()?;
        }
        if let Some(status) = self.ended()? {
            bail!(
                "{} has ended ({status}):\n{}",
                self.name,
                self.last_lines(15)
            );
        }
        Ok(())
    }

    /// The end of its log.
    pub(crate) fn last_lines(&self, count: usize) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(count)..].join("\n")
    }

    /// SIGTERM, and SIGKILL if that does not help in time.
    pub(crate) fn stop(&mut self) -> Result<ExitStatus> {
        if let Some(status) = self.ended()? {
            return Ok(status);
        }
        self.signal(Signal::SIGTERM)?;
        if let Ok(status) = self.wait(GRACE) {
            return Ok(status);
        }
        self.signal(Signal::SIGKILL)?;
        Ok(self.child.wait()?)
    }

    /// SIGHUP.
    pub(crate) fn hang_up(&self) -> Result<()> {
        self.signal(Signal::SIGHUP)
    }

    /// SIGKILL at once, as in a crash.
    pub(crate) fn kill(&mut self) -> Result<()> {
        self.signal(Signal::SIGKILL)?;
        self.child.wait()?;
        Ok(())
    }

    /// User plus system time that it has used, all threads together.
    pub(crate) fn cpu_time(&self) -> Result<Duration> {
        cpu_time(self.child.id())
    }

    /// The same for it and all processes that it has forked.
    pub(crate) fn cpu_time_of_tree(&self) -> Result<Duration> {
        let mut total = Duration::ZERO;
        let mut open = vec![self.child.id()];
        while let Some(id) = open.pop() {
            total += cpu_time(id)?;
            open.extend(children(id)?);
        }
        Ok(total)
    }

    /// The same as [`Self::cpu_time`] of the threads that it has now, to the nanosecond: of the time of a program that
    /// does little, ticks show nothing.
    pub(crate) fn exact_cpu_time(&self) -> Result<Duration> {
        let of_task = |text: &str| text.split(' ').next()?.parse().ok();
        let ns = self.sum_of_tasks("schedstat", &of_task)?;
        Ok(Duration::from_nanos(ns))
    }

    /// How often its threads have waited for something (voluntary context switches).
    pub(crate) fn times_waited(&self) -> Result<u64> {
        self.sum_of_tasks("status", &|text| {
            let mut lines = text.lines();
            let times = lines.find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))?;
            times.trim().parse().ok()
        })
    }

    /// What a file says of each thread, added up.
    fn sum_of_tasks(&self, file: &str, of_task: &dyn Fn(&str) -> Option<u64>) -> Result<u64> {
        let mut sum = 0;
        for task in fs::read_dir(format!("/proc/{}/task", self.child.id()))? {
            let path = task?.path().join(file);
            let text = fs::read_to_string(&path)?;
            sum += of_task(&text).with_context(|| path.display().to_string())?;
        }
        Ok(sum)
    }

    /// Bytes of memory that it has resident now (VmRSS).
    pub(crate) fn resident_bytes(&self) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kibibytes = line.and_then(|line| line.split_whitespace().next());
        let kibibytes: u64 = kibibytes.context("no VmRSS")?.parse()?;
        Ok(kibibytes * 1024)
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_raw(i32::try_from(self.child.id())?);
        kill(pid, signal).with_context(|| format!("{signal} to {}", self.name))
    }
}

/// User plus system time of a process, from /proc/PID/stat.
pub(crate) fn cpu_time(id: u32) -> Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{id}/stat"))?;
    // The name in parentheses may hold spaces; fields 14 and 15 are counted from behind it.
    let fields = stat.rsplit(')').next().unwrap_or_default();
    let ticks: u64 = fields
        .split_whitespace()
        .skip(11)
        .take(2)
        .filter_map(|field| field.parse::<u64>().ok())
        .sum();
    let per_second = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK)?.unwrap_or(100);
    Ok(Duration::from_millis(
        ticks * 1000 / u64::try_from(per_second)?,
    ))
}

/// What its threads have forked, from /proc/PID/task/TID/children.
fn children(id: u32) -> Result<Vec<u32>> {
    let mut children = Vec::new();
    for task in fs::read_dir(format!("/proc/{id}/task"))? {
        let list = fs::read_to_string(task?.path().join("children"))?;
        children.extend(
            list.split_whitespace()
                .filter_map(|id| id.parse::<u32>().ok()),
        );
    }
    Ok(children)
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            command::echo(&self.name, &format!("not stopped: {error:#}"));
        }
    }
}
