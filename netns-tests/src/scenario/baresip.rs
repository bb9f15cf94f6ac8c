//! baresip calls baresip over UDP, TCP and TLS, and over TLS to UDP; the caller's route flips in
//! the middle of each call. In the one over TLS on both sides the certificate changes as well.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::audio;
use crate::baresip::{Baresip, Over};
use crate::capture::Capture;
use crate::certs;
use crate::command;
use crate::frame::Packet;
use crate::service::{ALL_TRANSPORTS, Service};
use crate::topology::two_edges::{EDGE1, PHONE, SERVICE, TwoEdges};
use crate::wait;

/// RTP packets in each direction before the flip, and as many again after it.
const AUDIO: usize = audio::PACKETS_PER_SECOND as usize;
const PATIENCE: Duration = Duration::from_secs(15);

pub(super) fn run(folder: &Path) -> Result<String> {
    ensure!(
        command::found("baresip"),
        "baresip is missing (Debian package baresip-core); scripts/setup.sh installs it"
    );
    let net = TwoEdges::build()?;
    let mut service = Service::start_with(&net, folder, ALL_TRANSPORTS)?;
    let mut figures = Vec::new();
    for (caller, callee) in [
        (Over::Udp, Over::Udp),
        (Over::Tcp, Over::Tcp),
        (Over::Tls, Over::Tls),
        (Over::Tls, Over::Udp),
    ] {
        let name = format!("{} to {}", caller.name(), callee.name());
        let folder = folder.join(name.replace(' ', "-"));
        std::fs::create_dir_all(&folder)?;
        let audio = call(&net, &mut service, caller, callee, &folder);
        figures.push(format!("{name}: {}", audio.with_context(|| name.clone())?));
    }
    service.check_alive()?;
    Ok(figures.join("; "))
}

fn call(
    net: &TwoEdges,
    service: &mut Service,
    over: Over,
    callee_over: Over,
    folder: &Path,
) -> Result<String> {
    let authority = service.authority();
    let ua1 = Capture::start(&net.ua1, "eth0", folder)?;
    let ua2 = Capture::start(&net.ua2, "eth0", folder)?;
    let callee = Baresip::start(&net.ua2, "ua2", callee_over, &authority, folder)?;
    let caller = Baresip::start(&net.ua1, "ua1", over, &authority, folder)?;
    wait_for_bindings(net, service, [("ua1", over), ("ua2", callee_over)]).with_context(|| {
        let (caller, callee) = (&caller.process, &callee.process);
        format!("{}\n{}", caller.last_lines(15), callee.last_lines(15))
    })?;
    caller.call("ua2")?;
    let both = |packets| -> Result<()> {
        wait_for_audio(&ua1, packets).context("at the caller")?;
        wait_for_audio(&ua2, packets).context("at the callee")
    };
    both(AUDIO).with_context(|| caller.process.last_lines(30))?;
    let during = service.sessions(net)?;
    ensure!(
        during == [1, 0],
        "sessions on the relays: {during:?}, not on the caller's"
    );
    net.flip()?;
    if [over, callee_over] == [Over::Tls; 2] {
        renew_certificate(net, service, folder)?;
    }
    let so_far = heard(&ua1.so_far()?).max(heard(&ua2.so_far()?));
    both(so_far + AUDIO).context("after the flip")?;
    caller.hang_up()?;
    wait::until("the session to end", PATIENCE, || {
        Ok((service.sessions(net)? == [0, 0]).then_some(()))
    })?;
    net.unflip()?;
    drop((caller, callee));
    wait::until("both phones to unregister", PATIENCE, || {
        Ok(bindings(net, service)?.is_empty().then_some(()))
    })?;
    let (at_caller, at_callee) = (ua1.stop()?, ua2.stop()?);
    for packets in [&at_caller, &at_callee] {
        let elsewhere = rtp(packets).filter(|packet| packet.source != EDGE1).count();
        ensure!(
            elsewhere == 0,
            "{elsewhere} RTP packets did not come from the relay of edge 1"
        );
    }
    if over != Over::Udp {
        let opened = connections(&at_caller);
        ensure!(
            opened == 1,
            "the caller opened {opened} connections, not one"
        );
    }
    Ok(format!(
        "RTP {} and {}",
        heard(&at_caller),
        heard(&at_callee)
    ))
}

/// The concentrator takes another certificate on SIGHUP, and then the one from before again.
fn renew_certificate(net: &TwoEdges, service: &Service, folder: &Path) -> Result<()> {
    let (own, other) = (service.folder(), folder.join("other-certificate"));
    let names = vec!["example.com".to_owned(), SERVICE.to_string()];
    certs::write_all(&other, &[("sip", names)])?;
    let kept = folder.join("kept-certificate");
    std::fs::create_dir_all(&kept)?;
    copy_pair(own, &kept)?;
    for (round, from) in [&other, &kept].into_iter().enumerate() {
        copy_pair(from, own)?;
        service.concentrator.process.hang_up()?;
        wait::until("the certificate to be read again", PATIENCE, || {
            let metrics = service.concentrator.metrics(&net.concentrator)?;
            let taken = metrics
                .iter()
                .find(|(sample, _)| sample.contains("tls_reloads") && sample.contains("\"taken\""));
            Ok(taken.filter(|(_, count)| *count > round as f64).map(drop))
        })?;
    }
    Ok(())
}

fn copy_pair(from: &Path, to: &Path) -> Result<()> {
    for file in ["sip.pem", "sip.key"] {
        std::fs::copy(from.join(file), to.join(file))?;
    }
    Ok(())
}

/// RTP that has arrived at a phone.
fn rtp(packets: &[Packet]) -> impl Iterator<Item = &Packet> {
    packets
        .iter()
        .filter(|packet| packet.destination == PHONE)
        .filter(|packet| packet.udp().is_some_and(|segment| segment.rtp().is_some()))
}

fn heard(packets: &[Packet]) -> usize {
    rtp(packets).count()
}

fn connections(packets: &[Packet]) -> usize {
    packets
        .iter()
        .filter(|packet| packet.source == PHONE)
        .filter(|packet| {
            packet
                .tcp()
                .is_some_and(|segment| segment.opens_connection())
        })
        .count()
}

pub(super) fn wait_for_audio(capture: &Capture, packets: usize) -> Result<()> {
    wait::until(&format!("{packets} RTP packets"), PATIENCE, || {
        Ok((heard(&capture.so_far()?) >= packets).then_some(()))
    })
}

/// User and flow of every binding.
pub(crate) fn bindings(net: &TwoEdges, service: &Service) -> Result<Vec<(String, String)>> {
    let status = service.concentrator.status(&net.concentrator)?;
    let bindings = status.get("bindings").and_then(Value::as_array);
    let text = |binding: &Value, key: &str| {
        let value = binding.get(key).and_then(Value::as_str);
        value.unwrap_or_default().to_owned()
    };
    Ok(bindings
        .context("/status lists no bindings")?
        .iter()
        .map(|binding| (text(binding, "user"), text(binding, "flow")))
        .collect())
}

fn wait_for_bindings(net: &TwoEdges, service: &Service, expected: [(&str, Over); 2]) -> Result<()> {
    wait::until("both phones to register", PATIENCE, || {
        let bindings = bindings(net, service)?;
        let all = expected.iter().all(|(user, over)| {
            let transport = over.name().to_ascii_uppercase();
            bindings
                .iter()
                .any(|(aor, flow)| aor.contains(user) && flow.starts_with(&transport))
        });
        Ok(all.then_some(()))
    })
}
