//! linphone registers over TCP, calls baresip on UDP and plays a file to it.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::stat::Mode;

use super::baresip::wait_for_audio;
use super::websocket::{wait_for_binding, wait_for_the_end};
use crate::audio;
use crate::baresip::{Baresip, Over};
use crate::capture::Capture;
use crate::command;
use crate::process::Process;
use crate::service::Service;
use crate::topology::two_edges::{PHONE, SERVICE, TwoEdges};
use crate::wait;

/// Of voice: longer than the call.
const SECONDS: u32 = 60;
const PATIENCE: Duration = Duration::from_secs(15);

pub(super) fn run(folder: &Path) -> Result<String> {
    ensure!(
        command::found("linphonec") && command::found("baresip"),
        "linphonec or baresip is missing; scripts/setup.sh installs them"
    );
    let net = TwoEdges::build()?;
    let mut service = Service::start(&net, folder)?;
    let _callee = Baresip::start(&net.ua2, "ua2", Over::Udp, &service.authority(), folder)?;
    wait_for_binding(&net, &service, "ua2", "UDP")?;
    let (ua1, ua2) = (
        Capture::start(&net.ua1, "eth0", folder)?,
        Capture::start(&net.ua2, "eth0", folder)?,
    );
    let home = folder.join("linphone");
    let (mut phone, mut commands) = start(&net, &home)?;
    let said = |phone: &Process| phone.last_lines(15);
    wait_for_binding(&net, &service, "ua1", "TCP").with_context(|| said(&phone))?;
    writeln!(commands, "call sip:ua2@example.com")?;
    wait::until("linphone's media", PATIENCE, || {
        phone.check_alive()?;
        Ok(phone
            .log()
            .contains("Media streams established")
            .then_some(()))
    })
    .with_context(|| said(&phone))?;
    writeln!(commands, "play {}", home.join("voice.wav").display())?;
    let packets = audio::PACKETS_PER_SECOND as usize;
    wait_for_audio(&ua1, packets).context("at linphone")?;
    wait_for_audio(&ua2, packets).context("at baresip")?;
    writeln!(commands, "terminate")?;
    wait_for_the_end(&net, &service)?;
    writeln!(commands, "quit")?;
    phone.wait(PATIENCE)?;
    service.check_alive()?;
    Ok(format!("{packets} RTP packets and more in each direction"))
}

/// It reads its commands from a pipe, whose other end comes back.
fn start(net: &TwoEdges, home: &Path) -> Result<(Process, File)> {
    // Else it complains about its database.
    fs::create_dir_all(home.join(".local/share/linphone"))?;
    fs::write(home.join("voice.wav"), audio::wav(SECONDS, 150.0))?;
    fs::write(home.join("linphonerc"), config())?;
    let pipe = home.join("commands");
    nix::unistd::mkfifo(&pipe, Mode::S_IRUSR | Mode::S_IWUSR)?;
    // For both, so that neither side waits for the other to open it.
    let commands = OpenOptions::new().read(true).write(true).open(&pipe)?;
    let line = "HOME=$PWD exec linphonec -c linphonerc < commands";
    let phone = Process::start(&net.ua1, "linphonec", "sh", &["-c", line], home)?;
    Ok((phone, commands))
}

fn config() -> String {
    format!(
        "[sip]\n\
         sip_port=5070\n\
         sip_tcp_port=5070\n\
         sip_tls_port=0\n\
         use_ipv6=0\n\
         guess_hostname=1\n\
         contact=sip:ua1@{PHONE}\n\
         default_proxy=0\n\
         [proxy_0]\n\
         reg_proxy=<sip:{SERVICE};transport=tcp>\n\
         reg_route=<sip:{SERVICE};transport=tcp;lr>\n\
         reg_identity=sip:ua1@example.com\n\
         reg_expires=300\n\
         reg_sendregister=1\n\
         publish=0\n\
         [net]\n\
         mtu=0\n\
         host_nic=eth0\n\
         [video]\n\
         automatically_initiate=0\n\
         automatically_accept=0\n"
    )
}
