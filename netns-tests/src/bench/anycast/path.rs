//! Lengths of paths: round trips to an address of a host, to the router that the route of an anycast
//! address leads to, and through the service.

use std::io::IoSliceMut;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrIn, recvmsg, setsockopt, sockopt};

use crate::catchment::prober::{Edge, Outcome, Prober, Question, Told, Transport};
use crate::namespace::Namespace;
use crate::topology::two_edges::SERVICE;

/// Round trips of each measurement.
const SAMPLES: usize = 20;
const PATIENCE: Duration = Duration::from_secs(2);
/// RFC 862.
const ECHO_PORT: u16 = 7;
/// More routers are in no path of the drawing.
const MOST_HOPS: u32 = 8;

/// Sends datagrams back, as long as the program runs.
pub(super) fn echo(namespace: &Namespace, address: Ipv4Addr) -> Result<()> {
    let socket = namespace.inside(|| Ok(UdpSocket::bind((address, ECHO_PORT))?))?;
    std::thread::spawn(move || {
        let mut buffer = [0; 256];
        while let Ok((length, peer)) = socket.recv_from(&mut buffer) {
            // Who asks sees that nothing comes.
            let _lost = socket.send_to(&buffer[..length], peer);
        }
    });
    Ok(())
}

/// The least round trip to an [`echo`], in milliseconds.
pub(super) fn round_trip(namespace: &Namespace, to: Ipv4Addr) -> Result<f64> {
    namespace.inside(|| {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.connect((to, ECHO_PORT))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        least(|| {
            let start = Instant::now();
            socket.send(b"?")?;
            let answer = socket.recv(&mut [0; 16]);
            answer.with_context(|| format!("no echo from {to}"))?;
            Ok(start.elapsed())
        })
    })
}

fn least(mut sample: impl FnMut() -> Result<Duration>) -> Result<f64> {
    let mut least = Duration::MAX;
    for _ in 0..SAMPLES {
        least = least.min(sample()?);
    }
    Ok(least.as_secs_f64() * 1000.0)
}

/// Which of these routers the way to the service address passes, and the least round trip to it: by
/// packets that die there (ICMP time exceeded), as traceroute does.
pub(super) fn to_edge(namespace: &Namespace, edges: &[Ipv4Addr]) -> Result<(Ipv4Addr, f64)> {
    namespace.inside(|| {
        for hops in 1..=MOST_HOPS {
            let (router, _) = dies_at(hops)?;
            if edges.contains(&router) {
                let round_trip = least(|| Ok(dies_at(hops)?.1))?;
                return Ok((router, round_trip));
            }
        }
        bail!("no edge within {MOST_HOPS} hops")
    })
}

/// The router that so many hops lead to, and the round trip.
fn dies_at(hops: u32) -> Result<(Ipv4Addr, Duration)> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    setsockopt(&socket, sockopt::Ipv4Ttl, &i32::try_from(hops)?)?;
    setsockopt(&socket, sockopt::Ipv4RecvErr, &true)?;
    let start = Instant::now();
    socket.send_to(b"\r\n\r\n", (SERVICE, 5060))?;
    // Errors are told whether they are asked for or not.
    let mut waiting = [PollFd::new(socket.as_fd(), PollFlags::empty())];
    let ready = poll(&mut waiting, PollTimeout::try_from(PATIENCE)?)?;
    let took = start.elapsed();
    ensure!(
        ready > 0,
        "nobody says that a packet died after {hops} hops"
    );
    let mut room = [0; 512];
    let mut datagram = [0; 64];
    let mut parts = [IoSliceMut::new(&mut datagram)];
    let flags = MsgFlags::MSG_ERRQUEUE;
    let fd = socket.as_raw_fd();
    let message = recvmsg::<SockaddrIn>(fd, &mut parts, Some(&mut room), flags)?;
    for control in message.cmsgs()? {
        if let ControlMessageOwned::Ipv4RecvErr(_, Some(router)) = control {
            let router = u32::from_be(router.sin_addr.s_addr);
            return Ok((Ipv4Addr::from_bits(router), took));
        }
    }
    bail!("an error without the router that it is from")
}

/// The edge that the service names, and the median round trip to the service.
pub(super) fn to_service(namespace: &Namespace) -> Result<(Edge, f64)> {
    namespace.inside(|| {
        let question = Question {
            service: SocketAddr::new(IpAddr::V4(SERVICE), 5060),
            transport: Transport::Udp,
            from: None,
            interval: Duration::from_millis(20),
            timeout: PATIENCE,
        };
        let (mut times, mut edge) = (Vec::new(), None);
        Prober::new(question)?.run(
            |sent| (sent as usize) < SAMPLES,
            |asked| {
                if let Outcome::Answered {
                    round_trip, told, ..
                } = asked.outcome
                {
                    times.push(round_trip.as_secs_f64() * 1000.0);
                    if let Told::By(by) = told {
                        edge = Some(by);
                    }
                }
                Ok(())
            },
        )?;
        let edge = edge.context("the service names no edge")?;
        Ok((edge, super::percentile(&super::sorted(times), 50)))
    })
}
