//! Commands of the system, echoed before they run when `--verbose` is given.

use std::io::Write as _;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, Result, bail};

static VERBOSE: AtomicBool = AtomicBool::new(false);

/// From now on every command is echoed.
pub(crate) fn set_verbose(verbose: bool) {
    VERBOSE.store(verbose, Ordering::Relaxed);
}

/// Shows what is about to happen in a namespace.
pub(crate) fn echo(namespace: &str, what: &str) {
    if VERBOSE.load(Ordering::Relaxed) {
        eprintln!("[{namespace}] {what}");
    }
}

/// Runs a command to its end; its words are separated by spaces. Fails with what it wrote to
/// standard error.
pub(crate) fn run(line: &str) -> Result<String> {
    let mut words = line.split_whitespace();
    let program = words.next().context("an empty command")?;
    let mut command = Command::new(program);
    command.args(words);
    finish("lab", line, command, "")
}

/// Runs a prepared command with this standard input and gives back its standard output.
pub(crate) fn finish(
    namespace: &str,
    shown: &str,
    mut command: Command,
    input: &str,
) -> Result<String> {
    echo(namespace, shown);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start `{shown}`"))?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin
            .write_all(input.as_bytes())
            .with_context(|| format!("`{shown}` does not read its input"))?;
    }
    let output = child
        .wait_with_output()
        .with_context(|| format!("`{shown}`"))?;
    if !output.status.success() {
        bail!(
            "[{namespace}] `{shown}`: {}: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// True if a program is there.
pub(crate) fn found(program: &str) -> bool {
    search_path()
        .split(':')
        .any(|folder| std::path::Path::new(folder).join(program).is_file())
}

/// PATH, with the folders in which Debian keeps `nft` and `ethtool` and which a plain
/// user's PATH leaves out.
pub(crate) fn search_path() -> String {
    let path = std::env::var("PATH").unwrap_or_default();
    format!("{path}:/usr/local/sbin:/usr/sbin:/sbin")
}
