//! A phone that people use: baresip, with a voice from a file, told what to do over its control
//! socket.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::json;

use crate::audio;
use crate::namespace::Namespace;
use crate::process::Process;
use crate::topology::two_edges::{PHONE, SERVICE};

/// Where it is told what to do, inside its namespace.
const CONTROL_PORT: u16 = 4444;
/// Of voice: longer than any call, since baresip hangs up at the end of the file.
const SECONDS: u32 = 60;
/// For its answer to a command.
const PATIENCE: Duration = Duration::from_secs(5);

/// How it speaks SIP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Over {
    Udp,
    Tcp,
    Tls,
}

impl Over {
    /// As in a URI.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Udp => "udp",
            Self::Tcp => "tcp",
            Self::Tls => "tls",
        }
    }

    const fn port(self) -> u16 {
        match self {
            Self::Udp | Self::Tcp => 5060,
            Self::Tls => 5061,
        }
    }
}

/// A baresip that is running. It registers by itself and answers every call.
#[derive(Debug)]
pub(crate) struct Baresip<'a> {
    namespace: &'a Namespace,
    pub(crate) process: Process,
}

impl<'a> Baresip<'a> {
    /// Starts it as this user; `authority` is the PEM file of whom it believes.
    pub(crate) fn start(
        namespace: &'a Namespace,
        user: &str,
        over: Over,
        authority: &Path,
        folder: &Path,
    ) -> Result<Self> {
        let folder = folder.join(format!("{user}-{}", over.name()));
        write_files(&folder, user, over, authority)?;
        let path = folder.to_string_lossy();
        let process = Process::start(
            namespace,
            "baresip",
            "baresip",
            &["-v", "-f", &path],
            &folder,
        )?;
        Ok(Self { namespace, process })
    }

    /// Calls a user.
    pub(crate) fn call(&self, user: &str) -> Result<()> {
        self.command("dial", &format!("sip:{user}@example.com"))
    }

    /// Ends its call.
    pub(crate) fn hang_up(&self) -> Result<()> {
        self.command("hangup", "")
    }

    /// Commands and answers are JSON in netstrings, with events in between.
    fn command(&self, command: &str, params: &str) -> Result<()> {
        let message = json!({ "command": command, "params": params, "token": "lab" }).to_string();
        let netstring = format!("{}:{message},", message.len());
        let heard = self.namespace.inside(|| {
            let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, CONTROL_PORT))?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.write_all(netstring.as_bytes())?;
            let mut heard = Vec::new();
            let mut buffer = [0; 4096];
            loop {
                let length = stream.read(&mut buffer).context("no answer")?;
                heard.extend_from_slice(&buffer[..length]);
                let text = String::from_utf8_lossy(&heard);
                if length == 0 || text.contains("\"response\":true") {
                    return Ok(text.into_owned());
                }
            }
        });
        let heard = heard.with_context(|| format!("baresip does not {command}"))?;
        if heard.contains("\"ok\":true") {
            return Ok(());
        }
        bail!(
            "baresip did not {command}: {heard}\n{}",
            self.process.last_lines(15)
        )
    }
}

fn write_files(folder: &Path, user: &str, over: Over, authority: &Path) -> Result<()> {
    fs::create_dir_all(folder)?;
    let voice: PathBuf = folder.join("voice.wav");
    fs::write(&voice, audio::wav(SECONDS, 150.0))?;
    let (voice, authority) = (voice.display(), authority.display());
    // The player with nobody to listen is a bridge without another end.
    fs::write(
        folder.join("config"),
        format!(
            "poll_method epoll\n\
             sip_listen {PHONE}:0\n\
             sip_cafile {authority}\n\
             audio_player aubridge,ear\n\
             audio_source aufile,{voice}\n\
             module_path /usr/lib/baresip/modules\n\
             module g711.so\n\
             module aubridge.so\n\
             module aufile.so\n\
             module_app account.so\n\
             module_app menu.so\n\
             module_app ctrl_tcp.so\n\
             ctrl_tcp_listen 127.0.0.1:{CONTROL_PORT}\n"
        ),
    )?;
    let (transport, port) = (over.name(), over.port());
    fs::write(
        folder.join("accounts"),
        format!(
            "<sip:{user}@example.com;transport={transport}>;auth_pass=secret;\
             outbound=\"sip:{SERVICE}:{port};transport={transport}\";\
             regint=120;answermode=auto;audio_codecs=pcmu\n"
        ),
    )?;
    // Without it baresip writes a file of examples.
    fs::write(folder.join("contacts"), "")?;
    Ok(())
}
