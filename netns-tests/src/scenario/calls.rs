//! The demo's calls as scenarios, shorter.

use std::path::Path;

use anyhow::{Result, ensure};

use crate::call::{self, CallRecord, Middle, Plan};
use crate::phone::{Script, Transport};
use crate::service::Service;
use crate::topology::two_edges::TwoEdges;
use crate::verdict;

/// Audio, in seconds.
const SECONDS: u32 = 6;

pub(super) fn udp(folder: &Path) -> Result<String> {
    flipped_call(folder, Transport::Udp)
}

pub(super) fn tcp(folder: &Path) -> Result<String> {
    flipped_call(folder, Transport::Tcp)
}

fn flipped_call(folder: &Path, transport: Transport) -> Result<String> {
    let net = TwoEdges::build()?;
    let mut service = Service::start(&net, folder)?;
    let plan = Plan {
        transport,
        script: Script::Plain,
        seconds: SECONDS,
        padding: 0,
        middle: Middle::Flip,
    };
    let record = call::place(&net, &mut service, plan, folder, &|_| {})?;
    judge(&record)
}

/// The figures when every criterion is met, else the ones that are not.
pub(super) fn judge(record: &CallRecord) -> Result<String> {
    let figures = verdict::figures(record);
    let short: Vec<String> = verdict::criteria(record, &figures)
        .into_iter()
        .filter(|criterion| !criterion.met)
        .map(|criterion| format!("{} ({})", criterion.what, criterion.seen))
        .collect();
    ensure!(
        short.is_empty(),
        "{}\n{}",
        short.join("; "),
        record.complaints
    );
    Ok(format!(
        "RTP {}/{} and {}/{}, post-dial delay {:.1} ms",
        figures.to_callee.received,
        figures.to_callee.sent,
        figures.to_caller.received,
        figures.to_caller.sent,
        figures.post_dial_ms.unwrap_or(f64::NAN)
    ))
}
