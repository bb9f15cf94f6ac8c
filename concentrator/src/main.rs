//! The program.

use std::process::ExitCode;

use admin::run::{Threads, program};
use clap::Parser;

/// SIP proxy and registrar of an anycast address, behind the tunnels of its edges.
///
/// It takes packets out of the edges' GRE tunnels, is the SIP server of the service addresses,
/// answers phones directly, and directs the media of calls through the relay of the edge that a
/// phone is near to.
///
/// It needs the capabilities CAP_NET_ADMIN (TUN device, addresses) and CAP_NET_RAW (GRE socket),
/// net.ipv4.conf.all.rp_filter=0 and net.ipv4.tcp_reflect_tos=0 (the default). The service addresses are on `lo` while it runs.
///
/// SIGHUP has it read the edges' tunnel keys, the users' file (section `authentication` of the configuration) and the certificate
/// (`sip.tls`) again, of which one that is wrong changes nothing, and open the file of `cdr` anew. SIGINT and SIGTERM end it; a second signal ends it at once. Exit codes: 0
/// after a clean end, 1 when it could not start or had to stop, 2 when the configuration is wrong.
#[derive(Parser)]
#[command(name = "sipcast-concentrator", version)]
struct Cli {
    #[command(flatten)]
    arguments: admin::cli::Arguments,
}

fn main() -> ExitCode {
    program(
        &Cli::parse().arguments,
        Threads::One,
        concentrator::run::run,
    )
}
