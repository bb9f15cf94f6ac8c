//! A stock rtpengine stands in for edge 1's rtp-agent. Two phones behind NATs call each other: audio
//! flows both ways through rtpengine, and the BYE deletes the session there. Then rtpengine is killed
//! with leases of its in stock: the next call goes through another relay and rings no later.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value as Json;
use wire::bencode::{self, DictionaryWriter, Value};

use crate::call::{self, CallRecord, Middle, Plan};
use crate::frame::Packet;
use crate::phone::{Script, Transport};
use crate::process::Process;
use crate::service::{Service, concentrator_config};
use crate::topology::two_edges::{EDGE1, TwoEdges};
use crate::verdict::{self, Direction, Figures};
use crate::{rtpengine, wait};

const SECONDS: u32 = 4;
const NG_PORT: u16 = 22_222;
const AGENT: &str = "rtpengine@10.0.1.2:22222";

/// rtpengine forwards to a guess until it has heard from a party: what comes before the other side's
/// first packet is lost.
const LOST_AT_FIRST: usize = 10;

/// Later than the first call's ringing by so much would be waiting for the dead.
const SAME_DELAY_MS: f64 = 20.0;

pub(super) fn run(folder: &Path) -> Result<String> {
    let net = TwoEdges::build()?;
    let mut rtpengine = start_rtpengine(&net, folder)?;
    let mut service = Service::start_configured(&net, folder, config())?;
    wait_for_leases(&service, &net).with_context(|| rtpengine.last_lines(15))?;

    let record = place(
        &net,
        &mut service,
        &folder.join("alive"),
        Middle::Intruder(look),
    )
    .with_context(|| rtpengine.last_lines(15))?;
    rtpengine.check_alive()?;
    let alive = judge(&record, "with rtpengine")?;
    ensure!(
        (record.during.sessions1, record.during.sessions2) == (0, 0),
        "an rtp-agent had a session, too: {}",
        record.during
    );
    let left = wait::until("the session to be deleted", Duration::from_secs(5), || {
        let (busy, calls) = (carrying(&net)?, calls(&net)?.len());
        Ok((busy == 0).then_some(calls))
    })?;
    ensure!(
        relay(&service, &net)?["sessions"] == 0,
        "the pool still has a session"
    );

    rtpengine.kill()?;
    let record = place(&net, &mut service, &folder.join("killed"), Middle::Nothing)?;
    let killed = judge(&record, "after the kill")?;
    ensure!(
        record.during.sessions1 + record.during.sessions2 == 1,
        "no rtp-agent has the second call: {}",
        record.during
    );
    ensure!(
        relay(&service, &net)?["up"] == false,
        "the dead relay counts as up"
    );
    let delays = [&alive, &killed].map(|figures| figures.post_dial_ms.unwrap_or(f64::NAN));
    ensure!(
        delays[1] < delays[0] + SAME_DELAY_MS,
        "the call after the kill rang after {:.1} ms, the one before after {:.1} ms",
        delays[1],
        delays[0]
    );
    Ok(format!(
        "RTP {} and {}, deleted by the BYE, {left} leases left; after the kill {} and {}; \
         post-dial delay {:.1} and {:.1} ms",
        show(&alive.to_callee),
        show(&alive.to_caller),
        show(&killed.to_callee),
        show(&killed.to_caller),
        delays[0],
        delays[1]
    ))
}

/// Edge 1's first relay is rtpengine, its rtp-agent the second; mark 1 is the ingress's.
fn config() -> String {
    let with_rtpengine = format!(
        "rtpengine = \"{EDGE1}:{NG_PORT}\"\n[[edges.relays]]\nmark = 9\nagent = \"relay1\""
    );
    concentrator_config().replace("agent = \"relay1\"", &with_rtpengine)
}

fn start_rtpengine(net: &TwoEdges, folder: &Path) -> Result<Process> {
    let settings = rtpengine::Settings {
        media: EDGE1,
        ng: SocketAddrV4::new(EDGE1, NG_PORT),
        ports: 40_000..=40_999,
        log_level: 6,
    };
    rtpengine::start(&net.edge1, &settings, folder)
}

fn place(
    net: &TwoEdges,
    service: &mut Service,
    folder: &Path,
    middle: Middle,
) -> Result<CallRecord> {
    let plan = Plan {
        transport: Transport::Udp,
        script: Script::Plain,
        seconds: SECONDS,
        padding: 0,
        middle,
    };
    call::place(net, service, plan, folder, &|_| {})
}

/// In the middle of the call: rtpengine carries exactly one session, with audio of both phones.
fn look(net: &TwoEdges, _: &[Packet]) -> Result<()> {
    let busy = carrying(net)?;
    ensure!(
        busy == 1,
        "{busy} sessions at rtpengine have audio of both phones"
    );
    Ok(())
}

fn judge(record: &CallRecord, when: &str) -> Result<Figures> {
    let figures = verdict::figures(record);
    ensure!(
        record.caller.success(),
        "{when}: the caller's scenario failed\n{}",
        record.complaints
    );
    for (name, way) in [
        ("ua1 to ua2", &figures.to_callee),
        ("ua2 to ua1", &figures.to_caller),
    ] {
        let relayed: usize = way.relayed.iter().sum();
        ensure!(
            way.sent > LOST_AT_FIRST * 2 && way.received + LOST_AT_FIRST >= way.sent,
            "{when}, {name}: {} of {} packets arrived",
            way.received,
            way.sent
        );
        ensure!(
            relayed >= way.received,
            "{when}, {name}: {relayed} packets came from a relay, {} arrived",
            way.received
        );
    }
    ensure!(
        record.after.calls == 0,
        "{when}: {} after the BYE",
        record.after
    );
    Ok(figures)
}

fn show(way: &Direction) -> String {
    format!("{}/{}", way.received, way.sent)
}

/// What the concentrator says of rtpengine.
fn relay(service: &Service, net: &TwoEdges) -> Result<Json> {
    let status = service.concentrator.status(&net.concentrator)?;
    let relays = status["relays"].as_array();
    let relay = relays.and_then(|relays| relays.iter().find(|relay| relay["agent"] == AGENT));
    let relay = relay.with_context(|| format!("/status knows no {AGENT}: {status}"))?;
    ensure!(relay["kind"] == "rtpengine", "{relay}");
    Ok(relay.clone())
}

fn wait_for_leases(service: &Service, net: &TwoEdges) -> Result<()> {
    wait::until("leases of rtpengine", Duration::from_secs(10), || {
        let relay = relay(service, net)?;
        Ok((relay["leases"].as_u64() > Some(0)).then_some(()))
    })
}

/// The sessions at rtpengine that have had RTP from both sides.
fn carrying(net: &TwoEdges) -> Result<usize> {
    let mut carrying = 0;
    for call in calls(net)? {
        let answer = ask(net, |request| {
            request.bytes("command", "query").bytes("call-id", &call);
        })?;
        let heard = |tag: &str| {
            let answer = Value::parse(&answer).ok()?.dictionary()?;
            let medias = answer.dictionary("tags")?.dictionary(tag)?.list("medias")?;
            let media = medias.iter().next()?.dictionary()?;
            let rtp = media.list("streams")?.iter().next()?.dictionary()?;
            rtp.dictionary("stats")?.integer("packets")
        };
        carrying += usize::from(heard("caller") > Some(0) && heard("callee") > Some(0));
    }
    Ok(carrying)
}

/// The call-ids at rtpengine.
fn calls(net: &TwoEdges) -> Result<Vec<String>> {
    let answer = ask(net, |request| {
        request.bytes("command", "list").integer("limit", 1000);
    })?;
    let answer = Value::parse(&answer)?.dictionary();
    let calls = answer.and_then(|answer| answer.list("calls"));
    let calls = calls.context("rtpengine lists no calls")?.iter();
    Ok(calls
        .filter_map(|call| Some(String::from_utf8_lossy(call.bytes()?).into_owned()))
        .collect())
}

/// rtpengine leaves a question now and then without an answer, as when its call ends meanwhile.
const ASK_AGAIN: Duration = Duration::from_millis(500);
const ASK_TIMES: usize = 10;

/// Asks rtpengine on its own host, and gives the answer without its cookie.
fn ask(net: &TwoEdges, fill: impl FnOnce(&mut DictionaryWriter<'_>) + Send) -> Result<Vec<u8>> {
    // rtpengine answers a cookie that it knows with what it answered before, or not again.
    static ASKED: AtomicU32 = AtomicU32::new(0);
    net.edge1.inside(|| {
        let mut question = Vec::new();
        bencode::write_dictionary(&mut question, fill);
        let mut buffer = vec![0; 64 * 1024];
        let mut once = || -> Result<Vec<u8>> {
            let number = ASKED.fetch_add(1, Ordering::Relaxed);
            let cookie = format!("lab{number} ").into_bytes();
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
            socket.set_read_timeout(Some(ASK_AGAIN))?;
            let request = [cookie.as_slice(), question.as_slice()].concat();
            socket.send_to(&request, SocketAddr::from((EDGE1, NG_PORT)))?;
            let length = socket.recv(&mut buffer)?;
            let answer = buffer[..length].strip_prefix(cookie.as_slice());
            Ok(answer.context("an answer to another question")?.to_vec())
        };
        let answer = (0..ASK_TIMES).find_map(|_| once().ok());
        answer.context("rtpengine does not answer")
    })
}
