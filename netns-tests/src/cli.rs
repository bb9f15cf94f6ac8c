//! The command line of `sipcast-lab`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::thread;

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::topology::two_edges::TwoEdges;
use crate::{bench, catchment, certs, command, demo, sandbox, scenario, service, soak};

/// Networks of namespaces, real phones, the demo, the scenarios and the benchmarks of sipcast.
///
/// Everything runs in namespaces of its own that vanish with the program and that nothing can
/// leave. Root is not needed where users may make namespaces. Exit code 77: this machine cannot
/// run it; the message says what is needed.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// Echo every command with the namespace it runs in
    #[arg(long, short, global = true)]
    verbose: bool,
    /// Where ladders, captures and logs go
    #[arg(long, global = true, default_value = "target/lab")]
    out: PathBuf,
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// A call over UDP and one over TCP, with a route flip in the middle of each
    Demo {
        /// Audio of each call, in seconds
        #[arg(long, default_value_t = 20)]
        seconds: u32,
    },
    /// Build the network, start the programs and stay until Ctrl-C, which takes everything down
    Up {
        /// Do not start the programs
        #[arg(long)]
        network_only: bool,
    },
    /// Run a scenario by its name, `all` of them, or `list` them
    Run {
        /// The name, `all`, `internet-all` or `list`
        scenario: String,
        /// Scenarios at a time, but for those that offer much load, which run alone
        #[arg(long, default_value_t = 2)]
        jobs: usize,
    },
    /// Run a benchmark by its name, or `list` them; results are JSON lines on standard output
    Bench {
        /// The name, or `list`
        what: String,
    },
    /// Calls for hours, while one accident after another happens to two concentrators, their edges, relays and
    /// NATS servers; the account is on standard output, at the end as a JSON line. Fails where a binding is lost,
    /// something leaks, or a call fails that no accident explains
    Soak(soak::Options),
    /// Ask from this host, or from others, which edge the routers lead them to; needs neither root nor
    /// the lab, and that the service has their addresses in `sip.reveal_edge_to`
    Catchment(catchment::Options),
    /// Make a certificate authority, and a certificate for each name
    Certs {
        /// The folder to write to
        #[arg(long = "dir")]
        folder: PathBuf,
        /// A name for the certificate: the concentrator's or an rtp-agent's
        #[arg(long = "name", required = true)]
        names: Vec<String>,
    },
}

/// Runs the program.
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    command::set_verbose(arguments.verbose);
    match dispatch(&arguments) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("sipcast-lab: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(arguments: &Arguments) -> Result<ExitCode> {
    match &arguments.what {
        What::Certs { folder, names } => certs::write(folder, names)?,
        What::Catchment(options) => return catchment::run(options),
        What::Bench { what } if what == "list" => print!("{}", bench::list()),
        What::Run { scenario, .. } if scenario == "list" => print!("{}", scenario::list()),
        What::Run { scenario, jobs } if !sandbox::is_inside() => {
            return scenario::run_locked_in(scenario, &arguments.out, arguments.verbose, *jobs);
        }
        What::Up { .. } if !sandbox::is_inside() => return Ok(sandbox::enter(None, true)?),
        What::Demo { .. } | What::Bench { .. } | What::Soak(_) if !sandbox::is_inside() => {
            return Ok(sandbox::enter(None, false)?);
        }
        What::Demo { .. }
        | What::Bench { .. }
        | What::Soak(_)
        | What::Up { .. }
        | What::Run { .. } => {
            sandbox::check_locked_in()?;
            inside(arguments)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn inside(arguments: &Arguments) -> Result<()> {
    match &arguments.what {
        What::Demo { seconds } => demo::run(&arguments.out, *seconds),
        What::Up { network_only } => up(arguments, *network_only),
        What::Run { scenario, .. } => scenario::run(scenario, &arguments.out),
        What::Bench { what } => bench::run(what, &arguments.out),
        What::Soak(options) => soak::run(options, &arguments.out),
        What::Certs { .. } | What::Catchment(_) => Ok(()),
    }
}

fn up(arguments: &Arguments, network_only: bool) -> Result<()> {
    let net = TwoEdges::build()?;
    let folder = arguments.out.join("up");
    std::fs::create_dir_all(&folder)?;
    let service = if network_only {
        None
    } else {
        Some(service::Service::start(&net, &folder.canonicalize()?)?)
    };
    println!(
        "The network is up{}. Ctrl-C takes it down.",
        if service.is_some() {
            " and the programs serve"
        } else {
            ""
        }
    );
    loop {
        thread::park();
    }
}
