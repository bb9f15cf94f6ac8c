//! How the lab locks itself in.
//!
//! [`enter`] starts this program once more inside fresh mount, network and process namespaces (and
//! a user namespace when it is not root), with a small shell as process 1 that ends with the lab or
//! on Ctrl-C. So `ip netns` names are private, everything that the lab started vanishes with it
//! however it ends, and nothing can get out: the network namespace has no link to the machine's.

use std::fs;
use std::io;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, ExitCode};

use anyhow::{Result, bail};
use nix::unistd::geteuid;

use crate::command::{found, search_path};

/// The exit code for "this machine cannot run it", as in automake.
pub(crate) const EXIT_SKIP: u8 = 77;

const INSIDE: &str = "SIPCAST_LAB_INSIDE";

/// Process 1 of the lab: `ip netns` gets a private /run, the signals get a handler (without one
/// process 1 never sees them), and its end is the end of everything.
const INIT: &str = r#"
trap 'exit 130' INT
trap 'exit 143' TERM HUP
mount -t tmpfs -o mode=755 tmpfs /run && mkdir /run/netns || exit 77
"$@" <&0 &
wait $!
"#;

/// True in the copy of this program that runs locked in.
pub(crate) fn is_inside() -> bool {
    std::env::var_os(INSIDE).is_some()
}

/// Why the lab cannot run here, in words that say what is needed; `None` when it can.
pub(crate) fn obstacle() -> Option<String> {
    for (program, package) in [
        ("ip", "iproute2"),
        ("nft", "nftables"),
        ("ethtool", "ethtool"),
        ("dumpcap", "wireshark-common"),
        ("mergecap", "wireshark-common"),
        ("sipp", "sip-tester"),
        ("unshare", "util-linux"),
    ] {
        if !found(program) {
            return Some(format!(
                "`{program}` is missing (Debian package {package}); scripts/setup.sh installs it"
            ));
        }
    }
    if let Err(error) = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/net/tun")
    {
        return Some(format!(
            "/dev/net/tun cannot be opened ({error}); run as root, or load the tun module and make \
             the device readable and writable (Debian does: mode 0666)"
        ));
    }
    let mut probe = unshare();
    probe.arg("true");
    match probe.output() {
        Ok(output) if output.status.success() => None,
        Ok(output) => Some(format!(
            "this user may not make namespaces ({}); run as root, or allow unprivileged user \
             namespaces: sysctl kernel.unprivileged_userns_clone=1 user.max_user_namespaces=10000",
            String::from_utf8_lossy(&output.stderr).trim()
        )),
        Err(error) => Some(format!("unshare does not start: {error}")),
    }
}

/// Runs this program again, locked in, with the same arguments unless others are given.
/// `announce` tells how another terminal gets in.
pub(crate) fn enter(arguments: Option<&[String]>, announce: bool) -> io::Result<ExitCode> {
    if let Some(obstacle) = obstacle() {
        eprintln!("sipcast-lab: skipped: {obstacle}");
        return Ok(ExitCode::from(EXIT_SKIP));
    }
    let mut command = unshare();
    command.args(["sh", "-c", INIT, "sipcast-lab-init"]);
    command.arg(std::env::current_exe()?);
    match arguments {
        Some(arguments) => command.args(arguments),
        None => command.args(std::env::args_os().skip(1)),
    };
    let mut child = command
        .env(INSIDE, "1")
        .env("PATH", search_path())
        .spawn()?;
    if announce {
        eprintln!("{}", way_in(child.id()));
    }
    let status = child.wait()?;
    let code = status
        .code()
        .unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)))
}

/// Refuses to go on where a mistake would reach the machine's own network.
pub(crate) fn check_locked_in() -> Result<()> {
    let devices = fs::read_to_string("/proc/net/dev")?;
    let uplink = devices
        .lines()
        .skip(2)
        .filter_map(|line| line.split(':').next())
        .map(str::trim)
        .find(|name| {
            ![
                "lo", "sit0", "tunl0", "gre0", "gretap0", "erspan0", "ip6tnl0",
            ]
            .contains(name)
        });
    if let Some(device) = uplink {
        bail!("{INSIDE} is set, but this network namespace has the device {device}: unset it");
    }
    Ok(())
}

/// How to get a shell in one of the namespaces from another terminal.
fn way_in(pid: u32) -> String {
    let user = if geteuid().is_root() {
        ""
    } else {
        "--user --preserve-credentials "
    };
    format!(
        "From another terminal: nsenter --target {pid} {user}--mount --net \
         nsenter --net=/run/netns/ua1 bash   (or another name of the drawing)"
    )
}

/// `unshare`, which dies with this process as its children die with it.
fn unshare() -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "unshare"]);
    if !geteuid().is_root() {
        command.args(["--user", "--map-root-user"]);
    }
    command.args([
        "--mount",
        "--net",
        "--pid",
        "--fork",
        "--kill-child",
        "--mount-proc",
    ]);
    command
}
