//! The network without any program: is it what its drawing says?

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use crate::capture::Capture;
use crate::namespace::Namespace;
use crate::topology::two_edges::{CONCENTRATOR, EDGE1, EDGE2, NAT_A, PHONE, SERVICE, TwoEdges};
use crate::wait;

/// Long enough for everything that is under way, with all delays of the drawing.
const PATIENCE: Duration = Duration::from_secs(1);
const ROUND_TRIPS: usize = 5;

pub(super) fn run(folder: &Path) -> Result<String> {
    let net = TwoEdges::build()?;
    let here = bind(&net.edge1, EDGE1, 7000)?;
    let there = bind(&net.concentrator, CONCENTRATOR, 7000)?;
    let stranger = bind(&net.edge2, EDGE2, 7000)?;
    let phone1 = bind(&net.ua1, PHONE, 4000)?;
    let phone2 = bind(&net.ua2, PHONE, 4000)?;

    let cone = (
        mapping(&phone1, &here, EDGE1)?,
        mapping(&phone1, &there, CONCENTRATOR)?,
    );
    ensure!(
        cone.0 == cone.1,
        "NAT A maps to {} and {}: not a cone",
        cone.0,
        cone.1
    );
    let symmetric = (
        mapping(&phone2, &here, EDGE1)?,
        mapping(&phone2, &there, CONCENTRATOR)?,
    );
    ensure!(
        symmetric.0 != symmetric.1,
        "NAT B maps both to {}: not symmetric",
        symmetric.0
    );
    stranger.send_to(b"let me in", cone.0)?;
    ensure!(
        receive(&phone1).is_err(),
        "NAT A lets a stranger in: not port-restricted"
    );

    let near = round_trip(&phone1, &here, SocketAddr::from((EDGE1, 7000)))?;
    let far = round_trip(&phone1, &there, SocketAddr::from((CONCENTRATOR, 7000)))?;
    for (name, seen, wanted) in [("edge 1", near, 10), ("the concentrator", far, 50)] {
        ensure!(
            (wanted..wanted + 15).contains(&seen.as_millis()),
            "{name} is {:.1} ms away and back, not {wanted} ms",
            seen.as_secs_f64() * 1000.0
        );
    }
    let answered = bind(&net.concentrator, SERVICE, 5060)?;
    answered.send_to(b"nobody asked", (NAT_A, cone.0.port()))?;
    ensure!(
        receive(&phone1).is_err(),
        "NAT A lets the service in unasked"
    );

    // Without an ingress they would send it back to where it came from.
    for edge in [&net.edge1, &net.edge2] {
        edge.run(&format!("ip route add blackhole {SERVICE}"))?;
    }
    let edge1 = Capture::start(&net.edge1, "eth0", folder)?;
    let edge2 = Capture::start(&net.edge2, "eth0", folder)?;
    phone1.send_to(b"to edge 1", (SERVICE, 5060))?;
    wait_for_service_packets(&edge1, 1).context("before the flip, at edge 1")?;
    net.flip()?;
    phone1.send_to(b"to edge 2", (SERVICE, 5060))?;
    wait_for_service_packets(&edge2, 1).context("after the flip, at edge 2")?;
    ensure!(
        to_service(&edge1)? == 1,
        "a packet still went to edge 1 after the flip"
    );
    answered.send_to(b"you asked", (NAT_A, cone.0.port()))?;
    ensure!(
        receive(&phone1)?.0 == "you asked",
        "a direct answer of the service gets lost"
    );
    Ok(format!(
        "cone {} = {}, symmetric {} and {}, round trips {:.1} and {:.1} ms",
        cone.0.port(),
        cone.1.port(),
        symmetric.0.port(),
        symmetric.1.port(),
        near.as_secs_f64() * 1000.0,
        far.as_secs_f64() * 1000.0
    ))
}

fn bind(namespace: &Namespace, address: Ipv4Addr, port: u16) -> Result<UdpSocket> {
    namespace.inside(|| {
        let socket = UdpSocket::bind((address, port))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        Ok(socket)
    })
}

/// As which address and port the phone appears to `socket`.
fn mapping(phone: &UdpSocket, socket: &UdpSocket, address: Ipv4Addr) -> Result<SocketAddr> {
    phone.send_to(b"who am I", (address, 7000))?;
    Ok(receive(socket)
        .context("what a phone sent did not arrive")?
        .1)
}

/// The shortest of several: a busy machine makes one longer.
fn round_trip(phone: &UdpSocket, socket: &UdpSocket, to: SocketAddr) -> Result<Duration> {
    let once = || -> Result<Duration> {
        let start = Instant::now();
        phone.send_to(b"there", to)?;
        let (_, from) = receive(socket)?;
        socket.send_to(b"and back", from)?;
        receive(phone)?;
        Ok(start.elapsed())
    };
    let trips = (0..ROUND_TRIPS)
        .map(|_| once())
        .collect::<Result<Vec<_>>>()?;
    trips.into_iter().min().context("no round trip")
}

fn receive(socket: &UdpSocket) -> Result<(String, SocketAddr)> {
    let mut buffer = [0; 2048];
    let (length, from) = socket.recv_from(&mut buffer)?;
    Ok((
        String::from_utf8_lossy(&buffer[..length]).into_owned(),
        from,
    ))
}

fn to_service(capture: &Capture) -> Result<usize> {
    Ok(capture
        .so_far()?
        .iter()
        .filter(|packet| packet.destination == SERVICE)
        .count())
}

fn wait_for_service_packets(capture: &Capture, count: usize) -> Result<()> {
    wait::until(
        "packets to the service address",
        Duration::from_secs(2),
        || Ok((to_service(capture)? >= count).then_some(())),
    )
}
