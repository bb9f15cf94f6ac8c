//! How long an XDP program itself runs for a packet, by the kernel's account (`kernel.bpf_stats_enabled`).
//!
//! That is on real packets, with the caches as they are then. BPF_PROG_TEST_RUN repeats a program on one frame,
//! which the ingress' has changed after the first time; and of a single run it measures the cold start.

use std::fs;

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::command;
use crate::namespace::Namespace;
use crate::xdp;

const SWITCH: &str = "/proc/sys/kernel/bpf_stats_enabled";

/// Nanoseconds a packet of the program on this device, while `work` is done.
pub(super) fn time_of(
    namespace: &Namespace,
    device: &str,
    work: impl FnOnce() -> Result<()>,
) -> Result<f64> {
    let program = xdp::program_on(namespace, device)?;
    let before = fs::read_to_string(SWITCH)?;
    fs::write(SWITCH, "1")?;
    let measured = (|| {
        let start = figures(program)?;
        work()?;
        let end = figures(program)?;
        anyhow::Ok((end.0 - start.0) as f64 / (end.1 - start.1).max(1) as f64)
    })();
    fs::write(SWITCH, before.trim())?;
    measured
}

/// Nanoseconds and runs so far.
fn figures(program: u64) -> Result<(u64, u64)> {
    let shown = command::run(&format!("bpftool -j prog show id {program}"))?;
    let shown: Value = serde_json::from_str(&shown)?;
    // Without a run so far, they are not shown.
    let figure = |name: &str| shown.get(name).map_or(Some(0), Value::as_u64);
    let figures = figure("run_time_ns").zip(figure("run_cnt"));
    figures.context("bpftool shows no figures of the program")
}
