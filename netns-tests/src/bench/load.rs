//! SIPp as both phones, and what it says of its calls.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use crate::audio;
use crate::namespace::Namespace;
use crate::process::Process;
use crate::wait;

pub(super) const CALLER_PORT: u16 = 5070;
pub(super) const CALLEE_PORT: u16 = 5080;
/// Of SIPp's sockets; its default of 64 KiB loses packets at these rates.
const SOCKET_BUFFER_BYTES: &str = "4000000";
/// For the last calls, retransmissions included (RFC 3261: 64 * T1).
const PATIENCE: Duration = Duration::from_secs(40);

/// How long a caller of [`talking_calls`] waits with its BYE.
const TALK_MS: u32 = 500;
/// Where the media sockets of each begin.
const CALLER_MEDIA: &str = "20000";
const CALLEE_MEDIA: &str = "30000";
const PLAY: &str = r#"<action><exec rtp_stream="audio.ul,1,0"/></action>"#;

const UAC: &str = include_str!("load/uac.xml");
const UAS: &str = include_str!("load/uas.xml");
const REGISTER: &str = include_str!("load/register.xml");

/// Where the phones are.
#[derive(Debug)]
pub(super) struct Phones {
    pub(super) namespace: Namespace,
    pub(super) address: Ipv4Addr,
}

/// A run of calls.
#[derive(Debug)]
pub(super) struct Calls {
    pub(super) offered: u32,
    successful: u32,
    pub(super) retransmissions: u32,
    pub(super) took: Duration,
    /// From INVITE to 180, sorted.
    ringing_ms: Vec<f64>,
}

impl Calls {
    pub(super) fn failed(&self) -> u32 {
        self.offered.saturating_sub(self.successful)
    }

    /// A percentile of the post-dial delay.
    pub(super) fn ringing_ms(&self, percent: usize) -> f64 {
        let last = self.ringing_ms.len().saturating_sub(1);
        let at = (self.ringing_ms.len() * percent / 100).min(last);
        self.ringing_ms.get(at).copied().unwrap_or(f64::NAN)
    }
}

/// Starts the phone that answers.
pub(super) fn callee(phones: &Phones, proxy: Ipv4Addr, folder: &Path) -> Result<Process> {
    answering(phones, UAS, proxy, &[], folder)
}

/// The same, and it speaks as soon as it has the ACK.
pub(super) fn talking_callee(phones: &Phones, proxy: Ipv4Addr, folder: &Path) -> Result<Process> {
    let ack = "<recv request=\"ACK\"";
    let scenario = with_media(UAS)?.replace(&format!("{ack}/>"), &format!("{ack}>{PLAY}</recv>"));
    fs::write(folder.join("audio.ul"), audio::speech(1, 220.0))?;
    let address = phones.address.to_string();
    let media = ["-mi", &address, "-mp", CALLEE_MEDIA];
    answering(phones, &scenario, proxy, &media, folder)
}

fn answering(
    phones: &Phones,
    scenario: &str,
    proxy: Ipv4Addr,
    more: &[&str],
    folder: &Path,
) -> Result<Process> {
    fs::write(folder.join("uas.xml"), scenario)?;
    let process = sipp(phones, "uas", CALLEE_PORT, proxy, more, folder)?;
    wait::until("the callee's socket", Duration::from_secs(5), || {
        let sockets = phones.namespace.run("ss -Hlun")?;
        Ok(sockets.contains(&format!(":{CALLEE_PORT} ")).then_some(()))
    })?;
    Ok(process)
}

/// Makes `count` calls at `rate` a second and waits for the last.
pub(super) fn calls(
    phones: &Phones,
    proxy: Ipv4Addr,
    rate: u32,
    count: u32,
    folder: &Path,
) -> Result<Calls> {
    run_scenario(phones, "uac", UAC, proxy, rate, count, &[], folder)
}

/// The same from callers at these addresses in turn.
pub(super) fn calls_from(
    phones: &Phones,
    proxy: Ipv4Addr,
    (rate, count): (u32, u32),
    callers: &[Ipv4Addr],
    folder: &Path,
) -> Result<Calls> {
    let lines: String = callers
        .iter()
        .map(|caller| format!("{caller};\n"))
        .collect();
    fs::write(folder.join("callers.csv"), format!("SEQUENTIAL\n{lines}"))?;
    let sockets = (callers.len() + 10).to_string();
    let more = [
        "-t",
        "ui",
        "-max_socket",
        &sockets,
        "-inf",
        "callers.csv",
        "-ip_field",
        "0",
    ];
    // SIPp knows neither address nor port of such a socket.
    let own = format!("[field0]:{CALLER_PORT}");
    let scenario = UAC.replace("[local_ip]:[local_port]", &own);
    run_scenario(phones, "uac", &scenario, proxy, rate, count, &more, folder)
}

/// The same, of half a second, in which the caller speaks. The folder is that of [`talking_callee`].
pub(super) fn talking_calls(
    phones: &Phones,
    proxy: Ipv4Addr,
    rate: u32,
    count: u32,
    folder: &Path,
) -> Result<Calls> {
    let answer = "<recv response=\"200\" rrs=\"true\"";
    let scenario =
        with_media(UAC)?.replace(&format!("{answer}/>"), &format!("{answer}>{PLAY}</recv>"));
    let scenario = with_pause(&scenario, TALK_MS)?;
    let address = phones.address.to_string();
    let more = ["-mi", &address, "-mp", CALLER_MEDIA];
    run_scenario(phones, "uac", &scenario, proxy, rate, count, &more, folder)
}

/// The scenario with a media socket of SIPp's in its session description.
fn with_media(scenario: &str) -> Result<String> {
    let (before, rest) = scenario.split_once("m=audio ").context("no audio")?;
    let (_, after) = rest.split_once(' ').context("no audio")?;
    Ok(format!("{before}m=audio [rtpstream_audio_port] {after}"))
}

/// A caller's scenario with a pause before the BYE.
fn with_pause(scenario: &str, milliseconds: u32) -> Result<String> {
    let bye = scenario.find("<send retrans=\"500\"><![CDATA[\nBYE");
    let (before, after) = scenario.split_at(bye.context("the caller sends no BYE")?);
    Ok(format!(
        "{before}<pause milliseconds=\"{milliseconds}\"/>\n{after}"
    ))
}

/// Registers `count` times with a password, users in turn.
pub(super) fn registrations(
    phones: &Phones,
    proxy: Ipv4Addr,
    users: &[(&str, &str)],
    rate: u32,
    count: u32,
    folder: &Path,
) -> Result<Calls> {
    let line = |(user, password): &(&str, &str)| {
        format!("{user};[authentication username={user} password={password}]\n")
    };
    let lines: String = users.iter().map(line).collect();
    fs::write(folder.join("users.csv"), format!("SEQUENTIAL\n{lines}"))?;
    let more = ["-inf", "users.csv"];
    run_scenario(
        phones, "register", REGISTER, proxy, rate, count, &more, folder,
    )
}

#[expect(
    clippy::too_many_arguments,
    reason = "all that a run of SIPp depends on"
)]
fn run_scenario(
    phones: &Phones,
    name: &str,
    scenario: &str,
    proxy: Ipv4Addr,
    rate: u32,
    count: u32,
    more: &[&str],
    folder: &Path,
) -> Result<Calls> {
    fs::write(folder.join(format!("{name}.xml")), scenario)?;
    let statistics = format!("{name}.csv");
    let (rate_text, count_text) = (rate.to_string(), count.to_string());
    // Never held back: a server that cannot keep up shall be seen to fail.
    let limit = (rate * 40).to_string();
    let load = [
        "-r",
        &rate_text,
        "-m",
        &count_text,
        "-l",
        &limit,
        "-trace_stat",
        "-stf",
        &statistics,
        "-fd",
        "1",
        "-trace_rtt",
        "-rtt_freq",
        "1000",
    ];
    let start = Instant::now();
    let load = [&load[..], more].concat();
    let mut caller = sipp(phones, name, CALLER_PORT, proxy, &load, folder)?;
    let patience = Duration::from_secs(u64::from(count / rate)) * 2 + PATIENCE;
    caller
        .wait(patience)
        .with_context(|| caller.last_lines(12))?;
    let took = start.elapsed();
    let statistics = fs::read_to_string(folder.join(statistics))?;
    let total = |name: &str| last_total(&statistics, name);
    Ok(Calls {
        offered: count,
        successful: total("SuccessfulCall(C)")?,
        retransmissions: total("Retransmissions(C)")?,
        took,
        ringing_ms: response_times(folder)?,
    })
}

/// Begins calls that nobody ends.
pub(super) fn held_calls(
    phones: &Phones,
    proxy: Ipv4Addr,
    rate: u32,
    count: u32,
    folder: &Path,
) -> Result<Process> {
    fs::write(folder.join("held.xml"), with_pause(UAC, 600_000)?)?;
    let (rate, count) = (rate.to_string(), count.to_string());
    let load = ["-r", &rate, "-m", &count, "-l", &count];
    sipp(phones, "held", CALLER_PORT, proxy, &load, folder)
}

/// A column of the last line of SIPp's statistics.
fn last_total(statistics: &str, name: &str) -> Result<u32> {
    let mut lines = statistics.lines();
    let names = lines.next().context("SIPp wrote no statistics")?;
    let column = names
        .split(';')
        .position(|column| column == name)
        .with_context(|| format!("SIPp has no statistic {name}"))?;
    let last = lines.next_back().context("SIPp wrote no statistics")?;
    let value = last.split(';').nth(column).unwrap_or_default();
    value
        .trim()
        .parse()
        .with_context(|| format!("{name}: {value:?}"))
}

/// SIPp's response times: `date;milliseconds;name` in `uac_PID_rtt.csv`.
fn response_times(folder: &Path) -> Result<Vec<f64>> {
    let mut times = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.to_string_lossy().ends_with("_rtt.csv") {
            let text = fs::read_to_string(path)?;
            let column = |line: &str| -> Option<f64> {
                line.split(';').nth(1).and_then(|time| time.parse().ok())
            };
            times.extend(text.lines().filter_map(column));
        }
    }
    times.sort_by(f64::total_cmp);
    Ok(times)
}

fn sipp(
    phones: &Phones,
    scenario: &str,
    port: u16,
    proxy: Ipv4Addr,
    more: &[&str],
    folder: &Path,
) -> Result<Process> {
    let (file, port) = (format!("{scenario}.xml"), port.to_string());
    let (address, target) = (phones.address.to_string(), format!("{proxy}:5060"));
    let mut arguments = vec![
        "-sf",
        &file,
        "-t",
        "u1",
        "-i",
        &address,
        "-p",
        &port,
        "-nostdin",
        "-buff_size",
        SOCKET_BUFFER_BYTES,
    ];
    arguments.extend(more);
    arguments.push(&target);
    Process::start(&phones.namespace, scenario, "sipp", &arguments, folder)
}

/// Registers the callee from the callee's port, again until the proxy says 200.
pub(super) fn register_callee(phones: &Phones, proxy: Ipv4Addr) -> Result<()> {
    ask(phones, proxy, register_request, "SIP/2.0 200 ")
}

/// Waits until the proxy answers anything.
pub(super) fn wait_for_answers(phones: &Phones, proxy: Ipv4Addr) -> Result<()> {
    ask(phones, proxy, options_request, "SIP/2.0 ")
}

/// Sends requests from the callee's port until an answer begins as it should.
fn ask(
    phones: &Phones,
    proxy: Ipv4Addr,
    request: fn(Ipv4Addr, u32) -> String,
    wanted: &str,
) -> Result<()> {
    phones.namespace.inside(|| {
        let socket = UdpSocket::bind((phones.address, CALLEE_PORT))?;
        socket.set_read_timeout(Some(Duration::from_millis(300)))?;
        let mut number = 0;
        wait::until("the proxy to answer", Duration::from_secs(5), || {
            number += 1;
            let message = request(phones.address, number);
            socket.send_to(message.as_bytes(), SocketAddr::from((proxy, 5060)))?;
            let mut answer = [0; 2048];
            let Ok(length) = socket.recv(&mut answer) else {
                return Ok(None);
            };
            Ok(answer[..length]
                .starts_with(wanted.as_bytes())
                .then_some(()))
        })
    })
}

fn register_request(phone: Ipv4Addr, number: u32) -> String {
    let contact = format!("Contact: <sip:callee@{phone}:{CALLEE_PORT}>\r\nExpires: 3600\r\n");
    small_request(phone, "REGISTER", number, &contact)
}

fn options_request(phone: Ipv4Addr, number: u32) -> String {
    small_request(phone, "OPTIONS", number, "")
}

fn small_request(phone: Ipv4Addr, method: &str, number: u32, more: &str) -> String {
    format!(
        "{method} sip:example.com SIP/2.0\r\n\
         Via: SIP/2.0/UDP {phone}:{CALLEE_PORT};rport;branch=z9hG4bK{method}{number}\r\n\
         Max-Forwards: 70\r\n\
         From: <sip:callee@example.com>;tag=r{number}\r\n\
         To: <sip:callee@example.com>\r\n\
         Call-ID: {method}@{phone}\r\n\
         CSeq: {number} {method}\r\n\
         {more}Content-Length: 0\r\n\r\n"
    )
}
