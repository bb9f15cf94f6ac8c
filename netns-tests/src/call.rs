//! One call in `two-edges`, watched at five places: both phones, both edges, the concentrator.

use std::fmt;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::audio;
use crate::capture::Capture;
use crate::frame::Packet;
use crate::phone::{self, Script, Transport};
use crate::process::Process;
use crate::service::Service;
use crate::topology::two_edges::{PHONE, TwoEdges};
use crate::wait;

/// What is to happen.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    pub(crate) transport: Transport,
    pub(crate) script: Script,
    /// Of audio, each way.
    pub(crate) seconds: u32,
    /// Bytes that the INVITE is made longer by.
    pub(crate) padding: usize,
    /// What happens when half of the audio has been sent.
    pub(crate) middle: Middle,
}

/// In the middle of a call.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Middle {
    Nothing,
    /// The caller's route to the service address flips.
    Flip,
    /// This is done, knowing what edge 1 has seen.
    Intruder(fn(&TwoEdges, &[Packet]) -> Result<()>),
    /// This is done to the programs.
    Break(fn(&TwoEdges, &mut Service) -> Result<()>),
}

/// What was seen at each place.
#[derive(Debug)]
pub(crate) struct Seen {
    pub(crate) ua1: Vec<Packet>,
    pub(crate) ua2: Vec<Packet>,
    pub(crate) edge1: Vec<Packet>,
    pub(crate) edge2: Vec<Packet>,
    pub(crate) concentrator: Vec<Packet>,
}

/// What the programs said they hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Holdings {
    pub(crate) calls: u64,
    pub(crate) sessions1: u64,
    pub(crate) sessions2: u64,
}

impl fmt::Display for Holdings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            calls,
            sessions1,
            sessions2,
        } = self;
        write!(
            f,
            "concentrator: {calls} calls; sessions: relay 1: {sessions1}, relay 2: {sessions2}"
        )
    }
}

/// A call from the first REGISTER to the last packet.
#[derive(Debug)]
pub(crate) struct CallRecord {
    pub(crate) plan: Plan,
    pub(crate) seen: Seen,
    /// Microseconds since 1970, between the last packet before and the first after.
    pub(crate) flipped_at: Option<u64>,
    pub(crate) during: Holdings,
    pub(crate) after: Holdings,
    pub(crate) caller: ExitStatus,
    /// What the callers' SIPp complained about.
    pub(crate) complaints: String,
    /// The capture files.
    pub(crate) files: Vec<PathBuf>,
}

/// Registers both phones and makes the call. `progress` gets a line for each step.
pub(crate) fn place(
    net: &TwoEdges,
    service: &mut Service,
    plan: Plan,
    folder: &Path,
    progress: &dyn Fn(&str),
) -> Result<CallRecord> {
    std::fs::create_dir_all(folder)?;
    let captures = Captures::start(net, folder)?;
    let Plan {
        transport,
        script,
        seconds,
        padding,
        ..
    } = plan;
    let mut callee = phone::callee(&net.ua2, transport, script, seconds, folder)?;
    let registered = match transport {
        Transport::Udp | Transport::Tcp => wait_for_registration(&captures.ua2, &mut callee),
        Transport::Tls => wait_for_binding(net, service, &mut callee),
    };
    registered
        .with_context(|| complaints(folder, "ua2"))
        .context("ua2 does not register")?;
    progress("ua2 is registered through edge 2");
    let mut caller = phone::caller(&net.ua1, transport, script, seconds, padding, folder)?;
    let result = during_the_call(net, service, plan, &captures, &mut caller, progress);
    let (flipped_at, during) = result.with_context(|| {
        format!(
            "ua1: {}\nua2: {}",
            complaints(folder, "ua1"),
            complaints(folder, "ua2")
        )
    })?;
    let limit = Duration::from_secs(u64::from(seconds) + 30);
    let caller = caller
        .wait(limit)
        .with_context(|| complaints(folder, "ua1"))?;
    progress("ua1 has hung up");
    let after = wait_for_the_end(net, service)?;
    callee.stop()?;
    net.unflip()?;
    service.check_alive()?;
    let files = captures.files();
    Ok(CallRecord {
        plan,
        seen: captures.stop()?,
        flipped_at,
        during,
        after,
        caller,
        complaints: complaints(folder, "ua1"),
        files,
    })
}

/// From the first ring to the flip.
fn during_the_call(
    net: &TwoEdges,
    service: &mut Service,
    plan: Plan,
    captures: &Captures,
    caller: &mut Process,
    progress: &dyn Fn(&str),
) -> Result<(Option<u64>, Holdings)> {
    if plan.transport != Transport::Tls {
        wait_for_registration(&captures.ua1, caller).context("ua1 does not register")?;
    }
    progress("ua1 is registered through edge 1, and calls ua2");
    let half = plan.seconds * audio::PACKETS_PER_SECOND / 2;
    wait_for_audio(&captures.ua1, caller, 1)?;
    progress("the call is up, audio flows");
    wait_for_audio(&captures.ua1, caller, half as usize)?;
    if let Middle::Break(change) = plan.middle {
        change(net, service)?;
    }
    let during = holdings(net, service)?;
    let flipped_at = match plan.middle {
        Middle::Intruder(intrude) => {
            intrude(net, &captures.edge1.so_far()?)?;
            None
        }
        Middle::Nothing | Middle::Break(_) => None,
        Middle::Flip => {
            net.flip()?;
            let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
            progress("the route of ua1 to the service address now leads to edge 2");
            Some(u64::try_from(now.as_micros())?)
        }
    };
    Ok((flipped_at, during))
}

#[derive(Debug)]
struct Captures {
    ua1: Capture,
    ua2: Capture,
    edge1: Capture,
    edge2: Capture,
    concentrator: Capture,
}

impl Captures {
    fn start(net: &TwoEdges, folder: &Path) -> Result<Self> {
        Ok(Self {
            ua1: Capture::start(&net.ua1, "eth0", folder)?,
            ua2: Capture::start(&net.ua2, "eth0", folder)?,
            // At the other end of the edge's only wire: what XDP sends is seen nowhere at the edge.
            edge1: Capture::start(&net.r1, "edge", folder)?,
            edge2: Capture::start(&net.r2, "edge", folder)?,
            concentrator: Capture::start(&net.concentrator, "eth0", folder)?,
        })
    }

    fn files(&self) -> Vec<PathBuf> {
        [
            &self.ua1,
            &self.ua2,
            &self.edge1,
            &self.edge2,
            &self.concentrator,
        ]
        .map(|capture| capture.file().to_owned())
        .to_vec()
    }

    fn stop(self) -> Result<Seen> {
        Ok(Seen {
            ua1: self.ua1.stop()?,
            ua2: self.ua2.stop()?,
            edge1: self.edge1.stop()?,
            edge2: self.edge2.stop()?,
            concentrator: self.concentrator.stop()?,
        })
    }
}

/// RTP packets that a phone at the private address has sent.
fn sent(packets: &[Packet], phone: Ipv4Addr) -> usize {
    packets
        .iter()
        .filter(|packet| packet.source == phone)
        .filter(|packet| packet.udp().is_some_and(|segment| segment.rtp().is_some()))
        .count()
}

fn wait_for_audio(capture: &Capture, caller: &mut Process, packets: usize) -> Result<()> {
    wait::until(
        &format!("{packets} RTP packets of ua1"),
        Duration::from_secs(40),
        || {
            caller.check_alive()?;
            Ok((sent(&capture.so_far()?, PHONE) >= packets).then_some(()))
        },
    )
}

/// Waits until the service has a binding.
fn wait_for_binding(net: &TwoEdges, service: &Service, phone: &mut Process) -> Result<()> {
    wait::until("a binding", Duration::from_secs(15), || {
        phone.check_alive()?;
        let status = service.concentrator.status(&net.concentrator)?;
        let bindings = status.get("bindings").and_then(Value::as_array);
        let is_there = bindings.is_some_and(|bindings| !bindings.is_empty());
        Ok(is_there.then_some(()))
    })
}

/// Sees it in what is not encrypted.
pub(crate) fn wait_for_registration(capture: &Capture, phone: &mut Process) -> Result<()> {
    wait::until("an answer to REGISTER", Duration::from_secs(15), || {
        phone.check_alive()?;
        for packet in capture
            .so_far()?
            .iter()
            .filter(|packet| packet.destination == PHONE)
        {
            let Some(segment) = packet.transport() else {
                continue;
            };
            let Some(line) = segment.sip_start_line() else {
                continue;
            };
            let cseq = segment.sip_header("CSeq").unwrap_or_default();
            if cseq.ends_with("REGISTER") && line.starts_with("SIP/2.0 200") {
                return Ok(Some(()));
            }
            if cseq.ends_with("REGISTER") && !line.starts_with("SIP/2.0 1") {
                bail!("REGISTER was answered with `{line}`");
            }
        }
        Ok(None)
    })
}

/// Waits until nobody holds anything of the call any more; gives what is left after the limit.
fn wait_for_the_end(net: &TwoEdges, service: &Service) -> Result<Holdings> {
    const NOTHING: Holdings = Holdings {
        calls: 0,
        sessions1: 0,
        sessions2: 0,
    };
    let mut last = NOTHING;
    let ended = wait::until("the session to end", Duration::from_secs(12), || {
        last = holdings(net, service)?;
        Ok((last == NOTHING).then_some(()))
    });
    // Whether it ended is a finding about the programs, which the verdict reports.
    drop(ended);
    Ok(last)
}

fn holdings(net: &TwoEdges, service: &Service) -> Result<Holdings> {
    let [sessions1, sessions2] = service.sessions(net)?;
    Ok(Holdings {
        calls: service.calls(net)?,
        sessions1,
        sessions2,
    })
}

/// The end of what a phone's SIPp wrote into its error file.
fn complaints(folder: &Path, phone: &str) -> String {
    let text = std::fs::read_to_string(folder.join(phone).join("errors.txt")).unwrap_or_default();
    let lines: Vec<&str> = text
        .lines()
        .filter(|line| !line.trim().is_empty())
        .collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}
