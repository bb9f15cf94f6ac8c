//! A phone: SIPp with one of the scenarios of `netns-tests/scenarios`, and its voice.
//!
//! A phone knows its private address only, and writes that into Contact, Via and SDP.

use std::fmt;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::audio;
use crate::namespace::Namespace;
use crate::process::Process;
use crate::service::FOLDER;
use crate::topology::two_edges::{PHONE, SERVICE};
use crate::wait;

const CALLER: &str = include_str!("../scenarios/caller.xml");
const CALLEE: &str = include_str!("../scenarios/callee.xml");
const CALLEE_AGAIN: &str = include_str!("../scenarios/callee_again.xml");
const OPTIONS: &str = include_str!("../scenarios/options.xml");
const ANSWER: &str = include_str!("../scenarios/answer.xml");
const QUICK_CALLER: &str = include_str!("../scenarios/quick_caller.xml");
const CANCEL_CALLER: &str = include_str!("../scenarios/cancel_caller.xml");
const CANCEL_ANSWER: &str = include_str!("../scenarios/cancel_answer.xml");
const OFFERS: &str = include_str!("../scenarios/offers.xml");
const ANSWERS: &str = include_str!("../scenarios/answers.xml");

/// What a caller does with the 200: SIPp keeps to the address that it was started with, so this
/// takes the next one from the Record-Route, of which there is one value.
const FOLLOW_ROUTE: &str = r#"<recv response="200" rrs="true"><action>
<ereg regexp="@([0-9.]+):([0-9]+)" search_in="hdr" header="Record-Route:" assign_to="all,host,port"/>
<setdest host="[$host]" port="[$port]" protocol="udp"/>
<exec rtp_stream="audio.ul,1,0"/>
</action></recv>
<Reference variables="all"/>"#;
const IGNORE_ROUTE: &str =
    r#"<recv response="200" rrs="true"><action><exec rtp_stream="audio.ul,1,0"/></action></recv>"#;

/// The end of a caller that does not hang up.
const WAIT_FOR_BYE: &str = r#"<recv request="BYE"/>
<send><![CDATA[
SIP/2.0 200 OK
[last_Via:]
[last_From:]
[last_To:]
[last_Call-ID:]
[last_CSeq:]
Content-Length: 0

]]></send>
</scenario>
"#;

/// Silence between the end of the audio and the BYE.
const SILENCE_MS: u32 = 2_000;

/// What the phones use for SIP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transport {
    Udp,
    Tcp,
    /// By a stunnel beside the SIPp, since Debian's SIPp has no TLS.
    Tls,
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Udp => "udp",
            Self::Tcp => "tcp",
            Self::Tls => "tls",
        })
    }
}

/// Where a phone is, and which address of the service it knows.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    pub(crate) own: IpAddr,
    pub(crate) service: IpAddr,
}

impl Place {
    /// Both phones of `two-edges`.
    pub(crate) const IPV4: Self = Self {
        own: IpAddr::V4(PHONE),
        service: IpAddr::V4(SERVICE),
    };

    /// The scripts are for IPv4.
    fn script(self, text: &str) -> String {
        match self.own {
            IpAddr::V4(_) => text.to_owned(),
            IpAddr::V6(_) => text.replace("IN IP4", "IN IP6"),
        }
    }
}

/// What a phone does in a call.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Script {
    /// An offer in the INVITE, its answer in the 200.
    Plain,
    /// An offer in the 200, hold, resume, and an offer that is refused.
    Offers,
    /// A second of audio; then the caller holds the call, for as long as the others last.
    Hold,
}

/// Starts the phone that registers as ua2 and answers.
pub(crate) fn callee(
    namespace: &Namespace,
    transport: Transport,
    script: Script,
    seconds: u32,
    folder: &Path,
) -> Result<Process> {
    let held = held_answer();
    let answer = match script {
        Script::Plain => ANSWER,
        Script::Offers => ANSWERS,
        Script::Hold => held.as_str(),
    };
    let scripts = [CALLEE, answer];
    answering(namespace, Place::IPV4, transport, seconds, scripts, folder)
}

/// The same at another place.
pub(crate) fn callee_at(
    namespace: &Namespace,
    place: Place,
    transport: Transport,
    seconds: u32,
    folder: &Path,
) -> Result<Process> {
    let scripts = [CALLEE, ANSWER];
    answering(namespace, place, transport, seconds, scripts, folder)
}

/// The same, and it registers once more after `again_ms`.
pub(crate) fn callee_again(
    namespace: &Namespace,
    transport: Transport,
    seconds: u32,
    again_ms: u32,
    folder: &Path,
) -> Result<Process> {
    let scenario = CALLEE_AGAIN.replace("@AGAIN_MS@", &again_ms.to_string());
    let scripts = [scenario.as_str(), ANSWER];
    answering(namespace, Place::IPV4, transport, seconds, scripts, folder)
}

/// Starts the phone that registers as ua2 and lets every call ring for so long before it answers.
pub(crate) fn slow_callee(
    namespace: &Namespace,
    transport: Transport,
    ring_ms: u32,
    seconds: u32,
    folder: &Path,
) -> Result<Process> {
    let rings = format!(r#"<pause milliseconds="{ring_ms}"/>"#);
    let answer = ANSWER.replace(r#"<pause milliseconds="400"/>"#, &rings);
    let scripts = [CALLEE, answer.as_str()];
    answering(namespace, Place::IPV4, transport, seconds, scripts, folder)
}

/// Starts the phone that registers as ua2 and answers every call, with 180 and 200 in one breath.
pub(crate) fn quick_callee(namespace: &Namespace, folder: &Path) -> Result<Process> {
    let answer = quick_answer();
    let scripts = [CALLEE, answer.as_str()];
    answering(namespace, Place::IPV4, Transport::Udp, 1, scripts, folder)
}

fn quick_answer() -> String {
    ANSWER
        .replace(r#"<pause milliseconds="400"/>"#, "")
        .replace(r#"<action><exec rtp_stream="audio.ul,1,0"/></action>"#, "")
        .replace("[rtpstream_audio_port]", "20000")
}

/// Starts a phone that calls ua2 again and again, `rate` times a second, with ACK and BYE in one
/// breath.
pub(crate) fn quick_caller(
    namespace: &Namespace,
    calls: u32,
    rate: u32,
    folder: &Path,
) -> Result<Process> {
    let folder = prepare(namespace, folder, 1, 110.0)?;
    fs::write(folder.join("quick.xml"), QUICK_CALLER)?;
    let (calls, rate) = (calls.to_string(), rate.to_string());
    let scenario = ["-sf", "quick.xml", "-m", &calls, "-r", &rate, "-l", &calls];
    sipp(namespace, Place::IPV4, Transport::Udp, &scenario, &folder)
}

/// The same phone where packets get lost: an INVITE that comes again is no surprise to it, and the
/// 200 is repeated until the ACK comes.
pub(crate) fn patient_callee(
    namespace: &Namespace,
    transport: Transport,
    folder: &Path,
) -> Result<Process> {
    let answer = patient_answer();
    let scripts = [CALLEE, answer.as_str()];
    answering(namespace, Place::IPV4, transport, 1, scripts, folder)
}

fn patient_answer() -> String {
    const ACK: &str = "<recv request=\"ACK\"></recv>";
    const AGAIN: &str =
        "<label id=\"7\"/>\n<recv request=\"INVITE\" optional=\"true\" next=\"7\"/>\n";
    // Nor is one that comes when the call is up: its sender has not heard yet that it was answered.
    const LATE: &str = "<label id=\"8\"/>\n<recv request=\"INVITE\" optional=\"true\" next=\"8\"/>\n\
        <recv request=\"ACK\" optional=\"true\" next=\"8\"/>\n";
    const BYE: &str = "<recv request=\"BYE\"/>";
    quick_answer()
        .replacen(ACK, &format!("{AGAIN}{ACK}"), 1)
        .replacen(BYE, &format!("{LATE}{BYE}"), 1)
}

/// The same as [`quick_caller`] where packets get lost: it repeats an INVITE for 32 s (RFC 3261
/// section 17.1.1.2), and does without a 180.
pub(crate) fn patient_caller(
    namespace: &Namespace,
    transport: Transport,
    calls: u32,
    rate: u32,
    folder: &Path,
) -> Result<Process> {
    let script = patient_call();
    many_calls(namespace, transport, &script, calls, rate, folder)
}

fn patient_call() -> String {
    QUICK_CALLER
        .replace("SIP/2.0/UDP", "SIP/2.0/[transport]")
        .replace("[local_port]>", "[local_port];transport=[transport]>")
        .replace(
            "<recv response=\"180\"/>",
            "<recv response=\"180\" optional=\"true\"/>",
        )
        // A BYE that takes long is answered 100 (RFC 4320 section 4.1).
        .replace(
            "<recv response=\"200\"/>",
            "<recv response=\"100\" optional=\"true\"/>\n<recv response=\"200\"/>",
        )
}

/// [`patient_callee`], which rings for a while before it answers.
pub(crate) fn ringing_callee(
    namespace: &Namespace,
    transport: Transport,
    ring_ms: u32,
    folder: &Path,
) -> Result<Process> {
    let rings = format!("<pause milliseconds=\"{ring_ms}\"/>\n<send retrans=\"500\">");
    let answer = patient_answer().replacen("<send retrans=\"500\">", &rings, 1);
    let scripts = [CALLEE, answer.as_str()];
    answering(namespace, Place::IPV4, transport, 1, scripts, folder)
}

/// [`patient_caller`], whose calls last for a while.
pub(crate) fn talking_caller(
    namespace: &Namespace,
    transport: Transport,
    calls: u32,
    rate: u32,
    talk_ms: u32,
    folder: &Path,
) -> Result<Process> {
    let script = talking_call(talk_ms);
    many_calls(namespace, transport, &script, calls, rate, folder)
}

fn talking_call(talk_ms: u32) -> String {
    let bye = "<send retrans=\"500\"><![CDATA[\nBYE";
    let talks = format!("<pause milliseconds=\"{talk_ms}\"/>\n{bye}");
    patient_call().replacen(bye, &talks, 1)
}

/// [`ringing_callee`], which registers again every `again_ms` and is ready for mishaps: where a
/// registration fails it begins another one.
pub(crate) fn lasting_callee(
    namespace: &Namespace,
    ring_ms: u32,
    again_ms: u32,
    folder: &Path,
) -> Result<Process> {
    let rings = format!("<pause milliseconds=\"{ring_ms}\"/>\n<send retrans=\"500\">");
    let answer = patient_answer().replacen("<send retrans=\"500\">", &rings, 1);
    let again = format!("<pause milliseconds=\"{again_ms}\"/>\n<nop next=\"9\"/>\n</scenario>");
    let callee = CALLEE
        .replace(
            "<send retrans=\"500\">",
            "<label id=\"9\"/>\n<send retrans=\"500\">",
        )
        .replace("branch=[branch]", "branch=[branch]x[cseq]")
        .replace("CSeq: 1 REGISTER", "CSeq: [cseq] REGISTER")
        .replace("<pause milliseconds=\"600000\"/>\n</scenario>", &again);
    let folder = prepare(namespace, folder, 1, 220.0)?;
    fs::write(folder.join("callee.xml"), callee)?;
    fs::write(folder.join("answer.xml"), answer)?;
    let scenario = [
        "-sf",
        "callee.xml",
        "-oocsf",
        "answer.xml",
        "-key",
        "user",
        "ua2",
    ];
    let scenario = [
        &scenario[..],
        &["-m", "100000", "-l", "1", "-r", "1"],
        &ROTATED,
    ]
    .concat();
    sipp(namespace, Place::IPV4, Transport::Udp, &scenario, &folder)
}

/// [`talking_caller`] over UDP, which writes what it has counted into `calls.csv` each second.
pub(crate) fn lasting_caller(
    namespace: &Namespace,
    calls: u32,
    rate: u32,
    talk_ms: u32,
    folder: &Path,
) -> Result<Process> {
    let script = talking_call(talk_ms);
    let statistics = ["-trace_stat", "-stf", "calls.csv", "-fd", "1"];
    let patience = PATIENCE_MS.to_string();
    let patience = ["-recv_timeout", &patience];
    let more = [&statistics[..], &patience, &ROTATED].concat();
    many_calls_with(
        namespace,
        Transport::Udp,
        &script,
        calls,
        rate,
        &more,
        folder,
    )
}

/// How long a caller waits for an answer: SIPp repeats nothing once there is a provisional one. Longer than Timer C.
pub(crate) const PATIENCE_MS: u32 = 200_000;

/// Of the messages only the last ones are kept.
const ROTATED: [&str; 4] = ["-ringbuffer_files", "2", "-ringbuffer_size", "40000000"];

/// Starts the phone that registers as ua2 and rings until the caller gives up.
pub(crate) fn cancelled_callee(
    namespace: &Namespace,
    transport: Transport,
    folder: &Path,
) -> Result<Process> {
    let scripts = [CALLEE, CANCEL_ANSWER];
    answering(namespace, Place::IPV4, transport, 1, scripts, folder)
}

/// Starts a phone that calls ua2 again and again, and cancels each call while it rings.
pub(crate) fn cancelling_caller(
    namespace: &Namespace,
    transport: Transport,
    calls: u32,
    rate: u32,
    folder: &Path,
) -> Result<Process> {
    many_calls(namespace, transport, CANCEL_CALLER, calls, rate, folder)
}

fn many_calls(
    namespace: &Namespace,
    transport: Transport,
    script: &str,
    calls: u32,
    rate: u32,
    folder: &Path,
) -> Result<Process> {
    many_calls_with(namespace, transport, script, calls, rate, &[], folder)
}

fn many_calls_with(
    namespace: &Namespace,
    transport: Transport,
    script: &str,
    calls: u32,
    rate: u32,
    more: &[&str],
    folder: &Path,
) -> Result<Process> {
    let folder = prepare(namespace, folder, 1, 110.0)?;
    fs::write(folder.join("calls.xml"), script)?;
    let (calls, rate) = (calls.to_string(), rate.to_string());
    let scenario = [
        "-sf",
        "calls.xml",
        "-m",
        &calls,
        "-r",
        &rate,
        "-l",
        &calls,
        // The last goes 31.5 s after the first.
        "-max_invite_retrans",
        "6",
    ];
    let scenario = [&scenario[..], more].concat();
    sipp(namespace, Place::IPV4, transport, &scenario, &folder)
}

/// Starts a phone that registers as ua2 and answers OPTIONS.
pub(crate) fn alive(namespace: &Namespace, folder: &Path) -> Result<Process> {
    let folder = prepare(namespace, folder, 1, 220.0)?;
    fs::write(folder.join("callee.xml"), CALLEE)?;
    fs::write(folder.join("options.xml"), OPTIONS)?;
    let scenario = [
        "-sf",
        "callee.xml",
        "-oocsf",
        "options.xml",
        "-key",
        "user",
        "ua2",
    ];
    sipp(namespace, Place::IPV4, Transport::Udp, &scenario, &folder)
}

/// Starts the phone that registers as `user`, over UDP, and answers.
pub(crate) fn named_callee(
    namespace: &Namespace,
    place: Place,
    user: &str,
    seconds: u32,
    folder: &Path,
) -> Result<Process> {
    let scripts = [CALLEE, ANSWER];
    let over = Transport::Udp;
    answering_as(user, namespace, place, over, seconds, scripts, folder)
}

fn answering(
    namespace: &Namespace,
    place: Place,
    transport: Transport,
    seconds: u32,
    scripts: [&str; 2],
    folder: &Path,
) -> Result<Process> {
    answering_as("ua2", namespace, place, transport, seconds, scripts, folder)
}

fn answering_as(
    user: &str,
    namespace: &Namespace,
    place: Place,
    transport: Transport,
    seconds: u32,
    [callee, answer]: [&str; 2],
    folder: &Path,
) -> Result<Process> {
    let folder = prepare(namespace, folder, seconds, 220.0)?;
    fs::write(folder.join("callee.xml"), place.script(callee))?;
    fs::write(folder.join("answer.xml"), place.script(answer))?;
    let scenario = [
        "-sf",
        "callee.xml",
        "-oocsf",
        "answer.xml",
        "-key",
        "user",
        user,
    ];
    sipp(namespace, place, transport, &scenario, &folder)
}

/// Starts the phone that registers as ua1, calls ua2 and hangs up after `seconds` of audio. The
/// INVITE is made `padding` bytes longer.
pub(crate) fn caller(
    namespace: &Namespace,
    transport: Transport,
    script: Script,
    seconds: u32,
    padding: usize,
    folder: &Path,
) -> Result<Process> {
    let audio = match script {
        Script::Plain | Script::Offers => seconds,
        Script::Hold => 1,
    };
    let call = match script {
        Script::Plain => CALLER.replace("@PADDING@", &padding_header(padding)),
        Script::Offers => OFFERS.to_owned(),
        Script::Hold => holding_caller(),
    };
    let seconds = (seconds, audio);
    calling(namespace, Place::IPV4, transport, seconds, &call, folder)
}

/// The same at another place.
pub(crate) fn caller_at(
    namespace: &Namespace,
    place: Place,
    transport: Transport,
    seconds: u32,
    folder: &Path,
) -> Result<Process> {
    let call = CALLER.replace("@PADDING@", "");
    calling(
        namespace,
        place,
        transport,
        (seconds, seconds),
        &call,
        folder,
    )
}

/// Starts the phone that registers as the first user, over UDP, calls the second and hangs up after
/// `seconds` of audio.
pub(crate) fn named_caller(
    namespace: &Namespace,
    place: Place,
    users: [&str; 2],
    seconds: u32,
    folder: &Path,
) -> Result<Process> {
    let call = CALLER.replace("@PADDING@", "");
    let (over, seconds) = (Transport::Udp, (seconds, seconds));
    calling_as(users, namespace, place, over, seconds, &call, folder)
}

/// A call of so many seconds, and of so many with audio.
fn calling(
    namespace: &Namespace,
    place: Place,
    transport: Transport,
    seconds: (u32, u32),
    call: &str,
    folder: &Path,
) -> Result<Process> {
    let users = ["ua1", "ua2"];
    calling_as(users, namespace, place, transport, seconds, call, folder)
}

fn calling_as(
    [user, peer]: [&str; 2],
    namespace: &Namespace,
    place: Place,
    transport: Transport,
    (seconds, audio): (u32, u32),
    call: &str,
    folder: &Path,
) -> Result<Process> {
    let folder = prepare(namespace, folder, audio, 110.0)?;
    fs::write(folder.join("caller.xml"), place.script(call))?;
    let talk = (seconds * 1000 + SILENCE_MS).to_string();
    let scenario = [
        "-sf",
        "caller.xml",
        "-key",
        "user",
        user,
        "-key",
        "peer",
        peer,
        "-d",
        &talk,
    ];
    sipp(namespace, place, transport, &scenario, &folder)
}

/// Starts the phone that registers as ua1 and calls `peer` with INVITE, ACK and BYE made `padding`
/// bytes longer; it hangs up after about a second of audio.
pub(crate) fn call_at_length(
    namespace: &Namespace,
    peer: &str,
    padding: usize,
    folder: &Path,
) -> Result<Process> {
    let folder = prepare(namespace, folder, 1, 110.0)?;
    let padding = padding_header(padding);
    let mut scenario = CALLER
        .replace("@PADDING@", &padding)
        .replace("[peer]@", &format!("{peer}@"));
    for line in ["CSeq: 2 ACK\n", "CSeq: 3 BYE\n"] {
        scenario = scenario.replace(line, &format!("{line}{padding}"));
    }
    fs::write(folder.join("caller.xml"), scenario)?;
    let scenario = ["-sf", "caller.xml", "-key", "user", "ua1", "-d", "1000"];
    sipp(namespace, Place::IPV4, Transport::Udp, &scenario, &folder)
}

/// Starts the phone that registers as ua1 and calls `peer` at `domain`; one of the two hangs up
/// after about a second of audio.
pub(crate) fn call_to(
    namespace: &Namespace,
    peer: &str,
    domain: &str,
    peer_hangs_up: bool,
    follow_route: bool,
    folder: &Path,
) -> Result<Process> {
    let folder = prepare(namespace, folder, 1, 110.0)?;
    let scenario = match CALLER.split_once("<!-- As long as -d says") {
        Some((until_ack, _)) if peer_hangs_up => until_ack.to_owned() + WAIT_FOR_BYE,
        _ => CALLER.to_owned(),
    };
    let follows = if follow_route {
        FOLLOW_ROUTE
    } else {
        IGNORE_ROUTE
    };
    let scenario = scenario
        .replace("@PADDING@", "")
        .replace(IGNORE_ROUTE, follows)
        .replace("[peer]@example.com", &format!("{peer}@{domain}"));
    fs::write(folder.join("caller.xml"), scenario)?;
    let scenario = ["-sf", "caller.xml", "-key", "user", "ua1", "-d", "1000"];
    sipp(namespace, Place::IPV4, Transport::Udp, &scenario, &folder)
}

/// The caller with the hold of [`OFFERS`] before its pause.
fn holding_caller() -> String {
    let from = OFFERS.find("<pause milliseconds=\"1000\"/>").unwrap_or(0);
    let hold = &OFFERS[from..];
    let hold = &hold[..hold.find("<pause milliseconds=\"500\"/>").unwrap_or(0)];
    CALLER
        .replace("CSeq: 3 BYE", "CSeq: 4 BYE")
        .replace(
            "<!-- As long as -d says",
            &format!("{hold}<!-- As long as -d says"),
        )
        .replace("@PADDING@", "")
}

/// The callee with the answer to it.
fn held_answer() -> String {
    const INVITE: &str = "<recv request=\"INVITE\"/>";
    let hold = ANSWERS.split(INVITE).nth(1).unwrap_or_default();
    let bye = "<recv request=\"BYE\"/>";
    ANSWER.replace(bye, &format!("{INVITE}{hold}{bye}"))
}

/// Header fields that nobody knows, in lines of a plausible length.
fn padding_header(bytes: usize) -> String {
    const LINE: usize = 100;
    const NAME: &str = "X-Padding: ";
    (0..bytes.div_ceil(LINE))
        .map(|line| {
            let length = LINE.min(bytes - line * LINE).max(NAME.len() + 2);
            format!("{NAME}{}\n", "p".repeat(length - NAME.len() - 2))
        })
        .collect()
}

fn prepare(namespace: &Namespace, folder: &Path, seconds: u32, pitch: f64) -> Result<PathBuf> {
    let folder = folder.join(namespace.name());
    fs::create_dir_all(&folder)?;
    fs::write(folder.join("audio.ul"), audio::speech(seconds, pitch))?;
    Ok(folder)
}

fn sipp(
    namespace: &Namespace,
    place: Place,
    transport: Transport,
    scenario: &[&str],
    folder: &Path,
) -> Result<Process> {
    let stunnel = match transport {
        Transport::Udp | Transport::Tcp => None,
        Transport::Tls => Some(tls_client(namespace, place, folder)?),
    };
    let target = match transport {
        Transport::Udp | Transport::Tcp => SocketAddr::new(place.service, 5060),
        Transport::Tls => SocketAddr::new(place.own, STUNNEL_PORT),
    };
    let target = target.to_string();
    let address = place.own.to_string();
    let transport = match transport {
        Transport::Udp => "u1",
        Transport::Tcp | Transport::Tls => "t1",
    };
    let mut arguments = scenario.to_vec();
    arguments.extend([
        "-t",
        transport,
        "-i",
        &address,
        "-mi",
        &address,
        "-p",
        "5060",
        "-mp",
        "20000",
        "-nostdin",
        "-trace_err",
        "-trace_msg",
        "-error_file",
        "errors.txt",
        "-message_file",
        "messages.txt",
        &target,
    ]);
    if !scenario.contains(&"-m") {
        arguments.extend(["-m", "1"]);
    }
    let sipp = Process::start(namespace, "sipp", "sipp", &arguments, folder)?;
    Ok(sipp.beside(stunnel))
}

/// Where the stunnel of a phone listens, on the phone's own address.
const STUNNEL_PORT: u16 = 5999;

/// Makes the phone's scripts speak of TLS, and starts what carries them over it. The service must have
/// the certificate `sip` of its lab, whose authority is the service's.
fn tls_client(namespace: &Namespace, place: Place, folder: &Path) -> Result<Process> {
    for file in fs::read_dir(folder)? {
        let file = file?.path();
        if file.extension().is_some_and(|extension| extension == "xml") {
            let script = fs::read_to_string(&file)?;
            let script = script
                .replace("transport=[transport]", "transport=tls")
                .replace("[transport]", "TLS");
            fs::write(&file, script)?;
        }
    }
    let listen = SocketAddr::new(place.own, STUNNEL_PORT);
    let service = SocketAddr::new(place.service, 5061);
    let authority = folder
        .ancestors()
        .map(|above| above.join(FOLDER).join("ca.pem"))
        .find(|file| file.is_file())
        .context("no service has made an authority")?;
    let config = format!(
        "foreground = yes\npid =\n[sip]\nclient = yes\naccept = {listen}\nconnect = {service}\n\
         CAfile = {}\nverifyChain = yes\ncheckHost = example.com\n",
        authority.display()
    );
    fs::write(folder.join("stunnel.conf"), config)?;
    let mut stunnel = Process::start(namespace, "stunnel", "stunnel4", &["stunnel.conf"], folder)?;
    let listening = format!("ss -Hltn sport = :{STUNNEL_PORT}");
    wait::until("stunnel to listen", Duration::from_secs(10), || {
        stunnel.check_alive()?;
        let sockets = namespace.run(&listening)?;
        Ok((!sockets.trim().is_empty()).then_some(()))
    })?;
    Ok(stunnel)
}

#[cfg(test)]
mod tests {
    use super::{held_answer, holding_caller, padding_header};

    #[test]
    fn a_call_on_hold_has_one_re_invite_and_its_answer() {
        assert_eq!(holding_caller().matches("a=sendonly").count(), 1);
        assert_eq!(holding_caller().matches("CSeq: 3 ACK").count(), 1);
        assert_eq!(held_answer().matches("a=recvonly").count(), 1);
        assert_eq!(held_answer().matches("request=\"ACK\"").count(), 2);
    }

    #[test]
    fn padding_is_as_long_on_the_wire_as_asked() {
        for bytes in [0, 100, 3456] {
            // SIPp sends CR LF for each line feed.
            let header = padding_header(bytes);
            assert_eq!(header.len() + header.lines().count(), bytes);
        }
    }
}
