//! NATS servers with JetStream, three of them as one cluster, in the foreground and with their files in one
//! folder.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::namespace::Namespace;
use crate::process::Process;
use crate::{command, http, wait};

const SERVERS: u16 = 3;
const CLIENTS: u16 = 4222;
const ROUTES: u16 = 6222;
const PAGES: u16 = 8222;
/// A cluster finds its leader within seconds.
const READY: Duration = Duration::from_secs(40);

/// Three servers at one address.
#[derive(Debug)]
pub(crate) struct Nats {
    address: Ipv4Addr,
    servers: Vec<Option<Process>>,
    folder: PathBuf,
}

impl Nats {
    /// Starts all three and waits until one leads.
    pub(crate) fn start(namespace: &Namespace, address: Ipv4Addr, folder: &Path) -> Result<Self> {
        ensure!(
            command::found("nats-server"),
            "nats-server is missing (Debian package nats-server); scripts/setup.sh installs it"
        );
        let folder = folder.join("nats");
        fs::create_dir_all(&folder)?;
        let mut nats = Self {
            address,
            servers: (0..SERVERS).map(|_| None).collect(),
            folder,
        };
        nats.start_missing(namespace)?;
        Ok(nats)
    }

    /// What concentrators are told.
    pub(crate) fn urls(&self) -> String {
        let urls = (0..SERVERS).map(|n| format!("\"nats://{}:{}\"", self.address, CLIENTS + n));
        urls.collect::<Vec<_>>().join(", ")
    }

    /// Starts those that are not there, with what they had on their disks, and waits until one leads.
    pub(crate) fn start_missing(&mut self, namespace: &Namespace) -> Result<()> {
        for number in 0..SERVERS {
            let slot = usize::from(number);
            if self.servers[slot].is_none() {
                let config = self.folder.join(format!("n{number}.conf"));
                fs::write(&config, self.config(number))?;
                let config = config.to_string_lossy().into_owned();
                let process = Process::start(
                    namespace,
                    &format!("nats{number}"),
                    "nats-server",
                    &["-c", &config],
                    &self.folder,
                )?;
                self.servers[slot] = Some(process);
            }
        }
        wait::until("JetStream to have a leader", READY, || {
            let pages = self.pages(namespace, "/jsz");
            let led = |page: &Value| {
                let leader = page.pointer("/meta_cluster/leader").and_then(Value::as_str);
                let size = page.pointer("/meta_cluster/cluster_size");
                leader.is_some_and(|leader| !leader.is_empty())
                    && size == Some(&Value::from(SERVERS))
            };
            let all = pages.len() == usize::from(SERVERS) && pages.iter().all(led);
            Ok(all.then_some(()))
        })
    }

    /// Kills the server that leads this stream; gives its name.
    pub(crate) fn kill_leader(&mut self, namespace: &Namespace, stream: &str) -> Result<String> {
        let leader = wait::until("a leader of the stream", READY, || {
            Ok(self.leader(namespace, stream))
        })?;
        let number: usize = leader.trim_start_matches('n').parse()?;
        let server = self.servers.get_mut(number).and_then(Option::take);
        server.context("it does not run")?.kill()?;
        Ok(leader)
    }

    /// Kills all that run.
    pub(crate) fn kill_all(&mut self) -> Result<()> {
        for server in &mut self.servers {
            if let Some(mut server) = server.take() {
                server.kill()?;
            }
        }
        Ok(())
    }

    /// Puts an entry, as a client that is none of ours; all three must run.
    pub(crate) fn put(&self, namespace: &Namespace, subject: &str, body: &[u8]) -> Result<()> {
        namespace.inside(|| {
            let mut server = TcpStream::connect((self.address, CLIENTS))?;
            server.set_read_timeout(Some(READY))?;
            let head = format!(
                "CONNECT {{\"verbose\":false}}\r\nPUB {subject} {}\r\n",
                body.len()
            );
            server.write_all(&[head.as_bytes(), body, b"\r\nPING\r\n"].concat())?;
            let mut lines = BufReader::new(server).lines();
            let pong = lines.find(|line| line.as_ref().map_or(true, |line| line == "PONG"));
            pong.context("no PONG")??;
            Ok(())
        })
    }

    fn leader(&self, namespace: &Namespace, stream: &str) -> Option<String> {
        let pages = self.pages(namespace, "/jsz?accounts=true&streams=true");
        let mut leaders = pages.iter().filter_map(|page| {
            let accounts = page.get("account_details")?.as_array()?;
            let details = accounts
                .iter()
                .filter_map(|a| a.get("stream_detail")?.as_array());
            let stream = details
                .flatten()
                .find(|detail| detail.get("name").and_then(Value::as_str) == Some(stream))?;
            let leader = stream.pointer("/cluster/leader")?.as_str()?;
            (!leader.is_empty()).then(|| leader.to_owned())
        });
        leaders.next_back()
    }

    /// The pages of those that answer.
    fn pages(&self, namespace: &Namespace, path: &str) -> Vec<Value> {
        let pages = (0..SERVERS).filter_map(|number| {
            let at = SocketAddr::from((self.address, PAGES + number));
            let body = http::get(namespace, at, path).ok()?;
            serde_json::from_str(&body).ok()
        });
        pages.collect()
    }

    fn config(&self, number: u16) -> String {
        let Self {
            address, folder, ..
        } = self;
        let routes = (0..SERVERS).map(|n| format!("nats://{address}:{}", ROUTES + n));
        let routes: Vec<String> = routes.collect();
        format!(
            "server_name: n{number}\n\
             listen: \"{address}:{}\"\n\
             http: \"{address}:{}\"\n\
             jetstream {{ store_dir: \"{}/n{number}\" }}\n\
             cluster {{ name: lab, listen: \"{address}:{}\", routes: [{}] }}\n",
            CLIENTS + number,
            PAGES + number,
            folder.display(),
            ROUTES + number,
            routes.join(", ")
        )
    }
}
