//! The arguments that all programs share.

use std::path::PathBuf;

/// Flatten this into a program's `clap::Parser`.
#[derive(Debug, Clone, clap::Args)]
pub struct Arguments {
    /// The configuration file (TOML)
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,

    /// Read and check the configuration, say whether it is in order, and exit
    ///
    /// Exit code 0 means that it is, 2 that it is not. Nothing is opened or changed.
    #[arg(long)]
    pub check: bool,
}
