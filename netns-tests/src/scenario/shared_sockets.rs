//! Ports without sockets: what the relay's BPF program takes, what it leaves alone, and when it goes.
//!
//! Two relays share a namespace, each with its own ports of one address. Then the one dies, a third wants
//! ports of the other, and a fourth comes where another program listens.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

use crate::link::{self, End, Shape};
use crate::namespace::Namespace;
use crate::service::{Program, start_program};
use crate::wait;

const HOST: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 2);
const PATIENCE: Duration = Duration::from_secs(10);
/// An ICMP error comes over a veth in less.
const QUIET: Duration = Duration::from_millis(300);

pub(super) fn run(folder: &Path) -> Result<String> {
    let (phone, host) = (Namespace::new("phone")?, Namespace::new("host")?);
    let end = |namespace, address| End {
        namespace,
        device: "wire",
        address,
    };
    let ends = (end(&phone, "10.0.1.1/24"), end(&host, "10.0.1.2/24"));
    link::connect(ends.0, ends.1, Shape::DIRECT)?;

    let mut first = start(&host, 1, "auto", "30000-30999", folder)?;
    first.wait_until_healthy(&host)?;
    if !is_shared(&first, &host)? {
        let log = first.process.log();
        let reason = log.lines().find(|line| line.contains("a socket for every"));
        return Ok(format!("skipped: {}", reason.context("no reason logged")?));
    }
    let mut second = start(&host, 2, "shared", "31000-31999", folder)?;
    second.wait_until_healthy(&host)?;

    for (port, is_silent) in [(30_500, true), (31_500, true), (32_500, false)] {
        expect(&phone, port, is_silent).context("two relays in one namespace")?;
    }
    for relay in [&first, &second] {
        let dropped = unopened(relay, &host)?;
        ensure!(dropped == 1.0, "{dropped} datagrams to unopened ports");
    }
    first.process.kill()?;
    expect(&phone, 30_500, false).context("after the death of its relay")?;
    expect(&phone, 31_500, true).context("after the death of the other relay")?;

    let mut third = start(&host, 3, "shared", "31500-32499", folder)?;
    let status = third.process.wait(PATIENCE)?;
    let log = third.process.log();
    let expected = "another program listens in media.ports: 10.0.1.2:31999";
    ensure!(
        status.code() == Some(1) && log.contains(expected),
        "a relay with the ports of another: {status}, {log}"
    );

    foreign_listener(&phone, &host, folder)?;
    Ok("two side by side, one killed, one refused, one with sockets for a foreign listener".into())
}

/// Where another program listens a relay has sockets, and the other program is not disturbed.
fn foreign_listener(phone: &Namespace, host: &Namespace, folder: &Path) -> Result<()> {
    let there = SocketAddr::from((HOST, 33_100));
    let foreign = host.inside(|| Ok(UdpSocket::bind(there)?))?;
    let mut fourth = start(host, 4, "auto", "33000-33199", folder)?;
    fourth.wait_until_healthy(host)?;
    ensure!(!is_shared(&fourth, host)?, "it took a listener's port away");
    let log = fourth.process.log();
    ensure!(log.contains("another program listens"), "no reason: {log}");
    phone.inside(|| Ok(UdpSocket::bind("10.0.1.1:0")?.send_to(b"hello", there)?))?;
    foreign.set_read_timeout(Some(PATIENCE))?;
    let mut buffer = [0; 16];
    let length = foreign.recv(&mut buffer).context("the other program")?;
    ensure!(&buffer[..length] == b"hello", "something else was heard");
    Ok(())
}

fn start(
    host: &Namespace,
    number: u16,
    sockets: &str,
    ports: &str,
    folder: &Path,
) -> Result<Program> {
    let config = format!(
        r#"
name = "relay{number}"
[media]
addresses = ["{HOST}"]
ports = "{ports}"
sockets = "{sockets}"
[ng]
listen = ["{HOST}:{}"]
allow = ["10.0.1.0/24"]
"#,
        2222 + number
    );
    let name = format!("relay{number}");
    start_program(
        host,
        &name,
        "sipcast-rtp-agent",
        9102 + number,
        &config,
        folder,
    )
}

fn is_shared(relay: &Program, host: &Namespace) -> Result<bool> {
    Ok(relay.status(host)?["media_sockets"] == "shared")
}

fn unopened(relay: &Program, host: &Namespace) -> Result<f64> {
    let metrics = relay.metrics(host)?;
    let sample = metrics
        .iter()
        .find(|(name, _)| name.contains("unopened_port"));
    Ok(sample.context("no such metric")?.1)
}

/// Sends a datagram to a port that no session has open: nobody may answer, or there must be an ICMP error.
fn expect(phone: &Namespace, port: u16, is_silent: bool) -> Result<()> {
    let socket = phone.inside(|| {
        let socket = UdpSocket::bind("10.0.1.1:0")?;
        socket.connect((HOST, port))?;
        Ok(socket)
    })?;
    socket.set_read_timeout(Some(QUIET))?;
    let ask = || {
        socket.send(b"anybody there?")?;
        match socket.recv(&mut [0; 16]) {
            Ok(_) => bail!("port {port} has answered"),
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(Some(())),
            Err(_) => Ok(None),
        }
    };
    if is_silent {
        ensure!(ask()?.is_none(), "port {port} is refused");
        return Ok(());
    }
    // The kernel limits its ICMP errors; one is enough.
    wait::until(&format!("an ICMP error for port {port}"), PATIENCE, ask)
}
