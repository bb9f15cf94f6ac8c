//! The program.

use std::process::ExitCode;

use admin::run::{Threads, program};
use clap::Parser;

/// Relays RTP and RTCP between the two parties of a call, under a concentrator's control.
///
/// It dials the concentrators of the section `control` over TLS 1.3, both ends with a certificate, and opens
/// ports from media.ports in advance. The concentrator writes them into the SDP of a call. Each
/// side's address is learnt from the packets that its gate lets in; nothing is sent to an address
/// that has not sent first.
///
/// With the section `ng` it does the same for a stock Kamailio or OpenSIPS, which then needs no rtpengine.
///
/// With CAP_BPF, CAP_NET_ADMIN and CAP_NET_RAW few sockets serve all ports (Linux 5.9). Without them it needs no
/// capabilities, and a call takes four UDP sockets, which stay open for the calls after it: the hard limit of
/// open files (LimitNOFILE) must be above the number of media.ports. Keep those out of the system's own use
/// in either case:
/// sysctl -w net.ipv4.ip_local_reserved_ports=30000-39999
///
/// SIGINT and SIGTERM end it, and with it the media of its calls; a second signal ends it at once.
/// Exit codes: 0 after a clean end, 1 when it could not start or had to stop, 2 when the
/// configuration is wrong.
#[derive(Parser)]
#[command(name = "sipcast-rtp-agent", version)]
struct Cli {
    #[command(flatten)]
    arguments: admin::cli::Arguments,
}

fn main() -> ExitCode {
    program(
        &Cli::parse().arguments,
        Threads::One,
        rtp_agent::eventloop::run,
    )
}
