//! tshark as the judge of captures: fields, reassembled datagrams, checksums.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, ensure};

use crate::command;

/// Checksums are verified, also those of datagrams that came in fragments.
const CHECKS: [&str; 3] = [
    "ip.check_checksum:TRUE",
    "udp.check_checksum:TRUE",
    "tcp.check_checksum:TRUE",
];

/// Fails where there is none.
pub(crate) fn require() -> Result<()> {
    ensure!(
        command::found("tshark"),
        "tshark is missing (Debian package tshark); scripts/setup.sh installs it"
    );
    Ok(())
}

/// These fields of the frames that pass the display filter; several values of one field stand with
/// commas between them.
pub(crate) fn rows(file: &Path, filter: &str, fields: &[&str]) -> Result<Vec<Vec<String>>> {
    let mut tshark = Command::new("tshark");
    tshark.arg("-n").arg("-r").arg(file);
    for check in CHECKS {
        tshark.args(["-o", check]);
    }
    tshark.args(["-Y", filter, "-T", "fields", "-E", "separator=|"]);
    for field in fields {
        tshark.args(["-e", field]);
    }
    let shown = format!("tshark -r {} -Y '{filter}'", file.display());
    let text = command::finish("lab", &shown, tshark, "")?;
    let row = |line: &str| line.split('|').map(str::to_owned).collect();
    Ok(text.lines().map(row).collect())
}

/// Has tshark verify all checksums, of the tunnel and of what is in it. Gives the number of frames that
/// have a right one of UDP, TCP or ICMP.
pub(crate) fn check_checksums(files: &[PathBuf]) -> Result<usize> {
    let mut frames = 0;
    for file in files {
        // 0: bad, 1: good. Linux writes 0xffff for 0, which is the same number, and tshark does not know;
        // nor that an ICMP error quotes the begin of a segment only.
        let bad = rows(
            file,
            "ip.checksum.status==0||icmp.checksum.status==0||icmpv6.checksum.status==0||\
             (!icmp&&!icmpv6&&(udp.checksum.status==0||\
             (tcp.checksum.status==0&&!(tcp.checksum==0xffff))))",
            &["frame.number", "_ws.col.Protocol", "_ws.col.Info"],
        )?;
        ensure!(
            bad.is_empty(),
            "{}: wrong checksums: {bad:?}",
            file.display()
        );
        let good = "udp.checksum.status==1||tcp.checksum.status==1||icmp.checksum.status==1||\
                    icmpv6.checksum.status==1";
        frames += rows(file, good, &["frame.number"])?.len();
    }
    ensure!(frames > 0, "tshark has verified nothing");
    Ok(frames)
}
