//! The program.

use std::process::ExitCode;

use admin::run::{Threads, program};
use clap::Parser;

/// Forwards SIP that arrives at an anycast address to the concentrator.
///
/// The kernel routes every packet for the service addresses into a TUN device. This program
/// stamps the mark of the edge's media relay into the packet's DSCP bits, wraps it in GRE (or GRE in UDP) and
/// sends it to the concentrator, which answers the user agent directly, or back through here (`tunnel.return_path`). Packets larger than the
/// tunnel's MTU are fragmented or answered with "fragmentation needed" by the kernel.
///
/// It needs the capabilities CAP_NET_ADMIN (TUN device, routes) and CAP_NET_RAW (GRE socket),
/// and IP forwarding switched on: sysctl -w net.ipv4.ip_forward=1 and, for IPv6 service
/// addresses, net.ipv6.conf.all.forwarding=1. The service addresses must not be configured on this
/// machine.
///
/// While a concentrator answers its probes, a route to each service address stands in the main
/// table with the protocol number of the section `announcement`; BIRD or FRR redistributes it. All
/// routes and the device vanish with the program; what arrives is captured by a rule and a table of
/// its own.
///
/// SIGHUP has it read `tunnel.key` and `tunnel.old_key` again, without losing a packet; everything else in the
/// file waits for a restart.
///
/// SIGUSR1 drains: the routes are withdrawn, and what still arrives is forwarded. SIGUSR2 takes that
/// back. SIGINT and SIGTERM withdraw first and end some seconds later; a second one ends it at once. Exit codes: 0 after a clean end,
/// 1 when it could not start or had to stop, 2 when the configuration is wrong.
#[derive(Parser)]
#[command(name = "sipcast-ingress", version)]
struct Cli {
    #[command(flatten)]
    arguments: admin::cli::Arguments,
}

fn main() -> ExitCode {
    program(
        &Cli::parse().arguments,
        Threads::One,
        ingress::eventloop::run,
    )
}
