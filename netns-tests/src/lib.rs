//! The lab: real programs and real peers in network namespaces that nothing can leave.
//!
//! [`cli::main`] is the whole of `sipcast-lab`. Reading order: `sandbox` (how the lab locks itself
//! in), `namespace`, `link` and `topology` (the network), `process`, `capture`, `http` and `wait`
//! (what acts in it and what is seen of it), `service` (the programs under test), `phone`, `sized` and
//! `call` (what the phones do), `tshark` (an independent judge of captures), `verdict` (what counts as a good call), `ladder` and `demo` (how
//! it is shown), `catchment` (a tool for operators, which runs outside as well), `bgp` and `edges` (the same in the topology `internet`), `scenario` and `bench`.
//!
//! Every wait has a limit and a condition; no result depends on a sleep.
#![expect(
    clippy::disallowed_methods,
    reason = "the lab runs in real time against real programs; there is no core here to keep pure"
)]
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "the lab is a command-line tool; what it prints is its result"
)]

pub mod cli;

mod audio;
mod baresip;
mod bench;
mod bgp;
mod call;
mod capture;
mod catchment;
mod certs;
mod command;
mod demo;
mod edges;
mod failures;
mod frame;
mod http;
mod kamailio;
mod ladder;
mod link;
mod namespace;
mod nats;
mod phone;
mod process;
mod raw;
mod registrations;
mod relay_pair;
mod rtpengine;
mod sandbox;
mod scenario;
mod service;
mod sized;
mod soak;
mod tcp_phone;
mod topology;
mod tshark;
mod two_concentrators;
mod verdict;
mod wait;
mod xdp;
