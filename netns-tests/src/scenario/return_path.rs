//! Replies go through the tunnel, because the core drops what comes from a service address: calls over UDP,
//! TCP and TLS with a route flip in the middle, so that they come back by the other edge, and requests and
//! answers of up to 9,000 bytes over IPv4 and IPv6.

use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::calls;
use super::ipv6::both;
use crate::call::{self, Middle, Plan};
use crate::capture::Capture;
use crate::phone::{Script, Transport};
use crate::service::{ALL_TRANSPORTS, Service};
use crate::sized::{self, Request};
use crate::topology::dual_stack::{self, SERVICE6, UA1};
use crate::topology::two_edges::{CONCENTRATOR, PHONE, SERVICE, TwoEdges};
use crate::tshark;

const SECONDS: u32 = 4;
/// Of requests and of what answers repeat.
const SIZES: [(usize, usize); 4] = [(200, 0), (1_500, 1_000), (4_000, 3_000), (9_000, 8_000)];
const BULK: usize = 100;

pub(super) fn run(folder: &Path) -> Result<String> {
    tshark::require()?;
    let mut shown = Vec::new();
    for transport in [Transport::Udp, Transport::Tcp, Transport::Tls] {
        let folder = folder.join(transport.to_string());
        let (net, mut service) = start(&folder)?;
        let plan = Plan {
            transport,
            script: Script::Plain,
            seconds: SECONDS,
            padding: 0,
            middle: Middle::Flip,
        };
        let record = call::place(&net, &mut service, plan, &folder, &|_| {})?;
        if transport == Transport::Tls {
            ensure!(record.caller.success(), "{}", record.complaints);
        } else {
            calls::judge(&record).with_context(|| format!("the call over {transport}"))?;
        }
        let checked = tshark::check_checksums(&record.files)?;
        let [edge1, edge2] = returned(&net, &service)?;
        shown.push(format!(
            "{transport}: {edge1} packets back by edge 1, {edge2} by edge 2, {checked} right checksums"
        ));
    }
    shown.push(sizes(&folder.join("sizes"))?);
    Ok(shown.join("; "))
}

/// The service, in a core that drops what comes from the service addresses.
fn start(folder: &Path) -> Result<(TwoEdges, Service)> {
    let net = TwoEdges::build()?;
    dual_stack::add(&net)?;
    net.core.nft(&format!(
        r#"
table inet strict {{
    chain forward {{
        type filter hook forward priority filter
        ip saddr {SERVICE} counter drop
        ip6 saddr {SERVICE6} counter drop
    }}
}}
"#
    ))?;
    let through_the_tunnel = |config: String| {
        let config = both(config);
        if config.contains("[announcement]") || config.contains("[[edges]]") {
            return config.replace("[tunnel]\n", "[tunnel]\nreturn_path = \"tunnel\"\n");
        }
        config
    };
    let service = Service::start_edited(&net, folder, ALL_TRANSPORTS, through_the_tunnel)?;
    Ok((net, service))
}

/// Packets that came back by each edge, of which none may have been refused; and none has tried the core.
fn returned(net: &TwoEdges, service: &Service) -> Result<[u64; 2]> {
    let rules = net.core.run("nft list table inet strict")?;
    let drops = rules.matches("counter packets 0 bytes 0 drop").count();
    ensure!(
        drops == 2,
        "packets from a service address in the core: {rules}"
    );
    let count = |program: &crate::service::Program, namespace| -> Result<u64> {
        let metrics = program.metrics(namespace)?;
        let name = "sipcast_ingress_return_packets_total";
        let of = |verdict: &str| {
            let samples = metrics.iter().filter(|(sample, _)| {
                sample.starts_with(name) && sample.contains(&format!("verdict=\"{verdict}\""))
            });
            samples.map(|(_, value)| *value as u64).sum::<u64>()
        };
        let dropped = of("drop");
        ensure!(dropped == 0, "{dropped} replies were refused: {metrics:?}");
        Ok(of("forward"))
    };
    let edge1 = count(&service.ingress1, &net.edge1)?;
    let edge2 = count(&service.ingress2, &net.edge2)?;
    let metrics = service.concentrator.metrics(&net.concentrator)?;
    let lost = metrics
        .iter()
        .filter(|(sample, _)| sample.contains("tunnel_unreturned"));
    let lost: Vec<_> = lost.filter(|(_, value)| *value > 0.0).collect();
    ensure!(lost.is_empty(), "replies were lost: {lost:?}");
    ensure!(edge1 > 0, "nothing came back by edge 1");
    Ok([edge1, edge2])
}

fn sizes(folder: &Path) -> Result<String> {
    let (net, mut service) = start(folder)?;
    let captures = [
        Capture::start(&net.ua1, "eth0", folder)?,
        Capture::start(&net.edge1, "eth0", folder)?,
        Capture::start(&net.concentrator, "eth0", folder)?,
    ];
    let files = captures.each_ref().map(|capture| capture.file().to_owned());
    for (from, to) in [
        (IpAddr::V4(PHONE), IpAddr::V4(SERVICE)),
        (IpAddr::V6(UA1), IpAddr::V6(SERVICE6)),
    ] {
        let family = if from.is_ipv4() { "v4" } else { "v6" };
        for (size, echo) in SIZES {
            let request = Request {
                from,
                to,
                call_id: format!("{family}-{size}"),
                size,
                echo,
            };
            let asked = sized::over_udp(&net.ua1, &request);
            let asked = asked.with_context(|| format!("{family}, {size} bytes"))?;
            ensure!(asked.answer > echo, "{asked:?}");
        }
        let request = Request {
            from,
            to,
            call_id: format!("{family}-tcp"),
            size: 4_000,
            echo: 3_000,
        };
        sized::over_tcp(&net.ua1, &request, BULK).with_context(|| format!("TCP over {family}"))?;
    }
    let [ua1, edge1, concentrator] = captures;
    for capture in [ua1, edge1] {
        capture.stop()?;
    }
    let seen = concentrator.stop()?;
    let back = seen.iter().filter(|packet| packet.source == CONCENTRATOR);
    let mut back = back
        .filter(|packet| packet.tunnelled().is_some())
        .peekable();
    ensure!(back.peek().is_some(), "nothing went back");
    for packet in back {
        let whole = packet.dont_fragment && packet.payload.len() + 20 <= 1_500;
        ensure!(whole, "an outer packet that does not fit: {packet:?}");
    }
    returned(&net, &service)?;
    service.check_alive()?;
    let status = service.ingress1.status(&net.edge1)?;
    let path = status
        .pointer("/tunnel/return_path")
        .and_then(Value::as_str);
    ensure!(path == Some("tunnel"), "{status}");
    let checked = tshark::check_checksums(&files)?;
    Ok(format!(
        "answers of up to {} bytes over both IP versions, {checked} right checksums",
        SIZES[3].1
    ))
}
