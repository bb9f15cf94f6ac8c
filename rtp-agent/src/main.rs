//! The program.

use std::process::ExitCode;

use admin::run::{Threads, program};
use clap::Parser;

/// Relays RTP between the parties of a call, as the concentrators say.
#[derive(Parser)]
#[command(version)]
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
