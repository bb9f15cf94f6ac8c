//! The shape of every program's `main`.
//!
//! ```no_run
//! use std::path::Path;
//! use std::process::ExitCode;
//!
//! use admin::config::{ConfigError, LogSection};
//! use admin::run::{Config, Shutdown, Threads, program};
//! use clap::Parser;
//!
//! # struct Example { log: LogSection }
//! impl Config for Example {
//!     fn load(file: &Path) -> Result<Self, ConfigError> {
//! #       Ok(Self { log: LogSection::default() })
//!         // admin::config::load::<ExampleFile>(file)?, then the program's own checks
//!     }
//!     fn log(&self) -> &LogSection {
//!         &self.log
//!     }
//! }
//!
//! /// One sentence that `--help` shows.
//! #[derive(Parser)]
//! #[command(version)]
//! struct Cli {
//!     #[command(flatten)]
//!     arguments: admin::cli::Arguments,
//! }
//!
//! async fn run(config: Example, mut shutdown: Shutdown) -> anyhow::Result<()> {
//!     shutdown.requested().await;
//!     Ok(())
//! }
//!
//! fn main() -> ExitCode {
//!     program(&Cli::parse().arguments, Threads::One, run)
//! }
//! ```

use std::future::Future;
use std::path::Path;
use std::process::ExitCode;

use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::cli::Arguments;
use crate::config::{ConfigError, LogSection};
use crate::logging;

/// The configuration file is wrong, or the arguments are.
const EXIT_CONFIG: u8 = 2;
/// The program could not start or had to end.
const EXIT_FAILURE: u8 = 1;

/// A program's checked configuration.
pub trait Config: Sized {
    /// Reads and checks the file; opens and changes nothing.
    fn load(file: &Path) -> Result<Self, ConfigError>;
    /// Its `[log]` section.
    fn log(&self) -> &LogSection;
}

/// How many threads run the program's tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Threads {
    /// The main thread runs everything.
    One,
    /// A pool, one thread per processor.
    PerProcessor,
    /// A pool of this size.
    Pool(usize),
}

/// Tells a program that SIGINT or SIGTERM has asked it to end.
#[derive(Debug, Clone)]
pub struct Shutdown(watch::Receiver<bool>);

impl Shutdown {
    /// A shutdown that a test triggers by sending `true`.
    pub fn pair() -> (watch::Sender<bool>, Self) {
        let (sender, receiver) = watch::channel(false);
        (sender, Self(receiver))
    }

    /// Waits until the end is requested; returns at once if it already was.
    pub async fn requested(&mut self) {
        // An error means that the sender is gone, which is an end too.
        let _ = self.0.wait_for(|requested| *requested).await;
    }

    /// True once the end is requested.
    pub fn is_requested(&self) -> bool {
        *self.0.borrow()
    }
}

/// Loads the config, then checks (`--check`) or runs. The exit code: 0 after a clean end, 1 when
/// the program failed, 2 when the configuration is wrong, in which case nothing was started.
#[expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "the answer to --check; and before logging starts there is only stderr"
)]
pub fn program<C, F>(
    arguments: &Arguments,
    threads: Threads,
    run: impl FnOnce(C, Shutdown) -> F,
) -> ExitCode
where
    C: Config,
    F: Future<Output = anyhow::Result<()>>,
{
    let config = match C::load(&arguments.config) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::from(EXIT_CONFIG);
        }
    };
    if arguments.check {
        println!("configuration OK");
        return ExitCode::SUCCESS;
    }
    if let Err(error) = logging::start(config.log()) {
        eprintln!("error: {error}");
        return ExitCode::from(EXIT_CONFIG);
    }
    match runtime(threads).and_then(|runtime| runtime.block_on(run_until_signal(config, run))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::from(EXIT_FAILURE)
        }
    }
}

fn runtime(threads: Threads) -> anyhow::Result<Runtime> {
    let mut builder = match threads {
        Threads::One => Builder::new_current_thread(),
        Threads::PerProcessor | Threads::Pool(_) => Builder::new_multi_thread(),
    };
    if let Threads::Pool(size) = threads {
        builder.worker_threads(size.max(1));
    }
    Ok(builder.enable_all().build()?)
}

async fn run_until_signal<C, F>(config: C, run: impl FnOnce(C, Shutdown) -> F) -> anyhow::Result<()>
where
    F: Future<Output = anyhow::Result<()>>,
{
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let (requested, shutdown) = Shutdown::pair();
    tokio::spawn(async move {
        let mut signalled = async || {
            tokio::select! {
                _ = interrupt.recv() => "SIGINT",
                _ = terminate.recv() => "SIGTERM",
            }
        };
        let name = signalled().await;
        tracing::info!(signal = name, "shutting down");
        // The program may have ended meanwhile; then nobody waits for this.
        let _ = requested.send(true);
        let name = signalled().await;
        tracing::error!(
            signal = name,
            "ending at once; addresses may stay behind on `lo`"
        );
        std::process::exit(EXIT_FAILURE.into());
    });
    run(config, shutdown).await
}
