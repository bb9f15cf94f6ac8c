//! NATS servers with JetStream, three of them as one cluster, in the foreground and with their files in one
//! folder. They take everybody in, or have the file of `configs/` ([`guarded`]).

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::link::{self, End, Shape};
use crate::namespace::Namespace;
use crate::process::Process;
use crate::{command, http, wait};

pub(crate) mod guarded;

const SERVERS: u16 = 3;
const CLIENTS: u16 = 4222;
const ROUTES: u16 = 6222;
const PAGES: u16 = 8222;
/// A cluster finds its leader within seconds.
const READY: Duration = Duration::from_secs(40);

/// Records that a [`Publisher`] has under way.
const WINDOW: usize = 2048;

/// Three servers, at one address or each on a host of its own.
#[derive(Debug)]
pub(crate) struct Nats {
    addresses: [Ipv4Addr; SERVERS as usize],
    /// Where they run, unless that is the namespace that they are started from.
    homes: Vec<Namespace>,
    servers: Vec<Option<Process>>,
    folder: PathBuf,
    access: Access,
}

/// Who may use the servers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Access {
    #[default]
    Open,
    /// Whoever shows what [`guarded`] asks for.
    Guarded,
}

/// What a server has used so far.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Usage {
    pub(crate) cpu: Duration,
    pub(crate) resident_bytes: u64,
}

impl Nats {
    /// Starts all three in one namespace, and waits until one leads.
    pub(crate) fn start(namespace: &Namespace, address: Ipv4Addr, folder: &Path) -> Result<Self> {
        let mut nats = Self::prepare(address, Access::Open, folder)?;
        nats.start_missing(namespace)?;
        Ok(nats)
    }

    /// Three servers at one address, none of which runs yet.
    pub(crate) fn prepare(address: Ipv4Addr, access: Access, folder: &Path) -> Result<Self> {
        Self::prepare_at([address; SERVERS as usize], Vec::new(), access, folder)
    }

    /// Starts each on a host of its own beside the core, and waits until one leads.
    pub(crate) fn start_apart(core: &Namespace, access: Access, folder: &Path) -> Result<Self> {
        let (mut homes, mut addresses) = (Vec::new(), [Ipv4Addr::UNSPECIFIED; SERVERS as usize]);
        for (number, address) in (0_u8..).zip(&mut addresses) {
            let home = Namespace::new(&format!("nats{number}"))?;
            let net = [10, 0, 20 + number];
            *address = Ipv4Addr::new(net[0], net[1], net[2], 2);
            let [near, far] = [1, 2].map(|host| format!("10.0.{}.{host}/24", net[2]));
            let near_device = format!("nats{number}");
            let end = |namespace, device, address| End {
                namespace,
                device,
                address,
            };
            link::connect(
                end(core, &near_device, &near),
                end(&home, "eth0", &far),
                Shape::DIRECT,
            )?;
            home.run(&format!("ip route add default via 10.0.{}.1", net[2]))?;
            homes.push(home);
        }
        let mut nats = Self::prepare_at(addresses, homes, access, folder)?;
        nats.start_missing(core)?;
        Ok(nats)
    }

    fn prepare_at(
        addresses: [Ipv4Addr; SERVERS as usize],
        homes: Vec<Namespace>,
        access: Access,
        folder: &Path,
    ) -> Result<Self> {
        ensure!(
            command::found("nats-server"),
            "nats-server is missing (Debian package nats-server); scripts/setup.sh installs it"
        );
        let folder = folder.join("nats");
        fs::create_dir_all(&folder)?;
        if access == Access::Guarded {
            guarded::write_secrets(&folder, addresses)?;
        }
        Ok(Self {
            addresses,
            homes,
            servers: (0..SERVERS).map(|_| None).collect(),
            folder,
            access,
        })
    }

    /// What concentrators are told in `[cluster]`.
    pub(crate) fn keys(&self) -> String {
        let (scheme, access) = match self.access {
            Access::Open => ("nats", ""),
            Access::Guarded => ("tls", guarded::KEYS),
        };
        let url = |n| format!("\"{scheme}://{}:{}\"", self.address(n), CLIENTS + n);
        let urls = (0..SERVERS).map(url);
        let urls = urls.collect::<Vec<_>>().join(", ");
        format!("nats = [{urls}]\n{access}")
    }

    /// What each server has used, by its name, and which of them leads the stream.
    pub(crate) fn usage(
        &self,
        namespace: &Namespace,
        stream: &str,
    ) -> Result<(Option<usize>, Vec<Usage>)> {
        let leader = self.leader(namespace, stream);
        let leader = leader.and_then(|leader| leader.trim_start_matches('n').parse().ok());
        let of = |server: &Option<Process>| match server {
            None => Ok(Usage::default()),
            Some(server) => Ok(Usage {
                cpu: server.cpu_time()?,
                resident_bytes: server.resident_bytes()?,
            }),
        };
        Ok((leader, self.servers.iter().map(of).collect::<Result<_>>()?))
    }

    /// Starts those that are not there, with what they had on their disks, and waits until one leads.
    pub(crate) fn start_missing(&mut self, namespace: &Namespace) -> Result<()> {
        for number in 0..SERVERS {
            let slot = usize::from(number);
            if self.servers[slot].is_none() {
                let config = self.folder.join(format!("n{number}.conf"));
                fs::write(&config, self.config(number)?)?;
                let config = config.to_string_lossy().into_owned();
                let process = Process::start(
                    self.homes.get(slot).unwrap_or(namespace),
                    &format!("nats{number}"),
                    "nats-server",
                    &["-c", &config],
                    &self.folder,
                )?;
                self.servers[slot] = Some(process);
            }
        }
        self.wait_until_led(namespace)
    }

    /// Waits until all three agree on a leader.
    pub(crate) fn wait_until_led(&self, namespace: &Namespace) -> Result<()> {
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

    /// Waits until this stream has a leader, and all its replicas have all of it.
    pub(crate) fn wait_until_current(&self, namespace: &Namespace, stream: &str) -> Result<()> {
        let what = format!("{stream} to be whole at all servers");
        wait::until(&what, READY, || {
            let details = self.details(namespace, stream);
            let whole = details.iter().any(|detail| {
                // Only the one that leads knows of the others.
                let replicas = detail.get("replicas").and_then(Value::as_array);
                let current = |replica: &Value| replica.get("current") == Some(&Value::Bool(true));
                replicas.is_some_and(|replicas| {
                    replicas.len() + 1 == usize::from(SERVERS) && replicas.iter().all(current)
                })
            });
            Ok(whole.then_some(()))
        })
    }

    /// Kills the server that leads this stream; gives its name.
    pub(crate) fn kill_leader(&mut self, namespace: &Namespace, stream: &str) -> Result<String> {
        let number = self.leader_of(namespace, stream)?;
        self.kill(number)?;
        Ok(format!("n{number}"))
    }

    /// The number of the server that leads this stream.
    pub(crate) fn leader_of(&self, namespace: &Namespace, stream: &str) -> Result<usize> {
        let leader = wait::until("a leader of the stream", READY, || {
            Ok(self.leader(namespace, stream))
        })?;
        Ok(leader.trim_start_matches('n').parse()?)
    }

    /// Kills one of them.
    pub(crate) fn kill(&mut self, number: usize) -> Result<()> {
        let server = self.servers.get_mut(number).and_then(Option::take);
        server.context("it does not run")?.kill()
    }

    /// Sends a signal to one of them.
    pub(crate) fn signal(&self, number: usize, signal: Signal) -> Result<()> {
        let server = self.servers.get(number).and_then(Option::as_ref);
        server.context("it does not run")?.signal(signal)
    }

    /// The host of one of them, where each has its own.
    pub(crate) fn home(&self, number: usize) -> Result<&Namespace> {
        self.homes.get(number).context("it has no host of its own")
    }

    /// Where they are.
    pub(crate) const fn addresses(&self) -> [Ipv4Addr; SERVERS as usize] {
        self.addresses
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

    /// Publishes entries, as a client that is none of ours, and waits until all are acknowledged.
    pub(crate) fn publish(
        &self,
        namespace: &Namespace,
        entries: impl Iterator<Item = (String, Vec<u8>)> + Send,
    ) -> Result<usize> {
        namespace.inside(|| {
            let mut publisher = Publisher::connect(SocketAddr::from((self.address(0), CLIENTS)))?;
            for (subject, body) in entries {
                publisher.publish(&subject, &body)?;
            }
            publisher.finish()
        })
    }

    /// The subjects of which a stream has a message.
    pub(crate) fn subjects(&self, namespace: &Namespace, stream: &str) -> Result<Vec<String>> {
        namespace.inside(|| {
            let mut client = Publisher::connect(SocketAddr::from((self.address(0), CLIENTS)))?;
            let info = format!("$JS.API.STREAM.INFO.{stream}");
            let info = client.ask(&info, br#"{"subjects_filter":">"}"#)?;
            let subjects = info.pointer("/state/subjects").and_then(Value::as_object);
            let subjects = subjects.with_context(|| format!("no subjects: {info}"))?;
            Ok(subjects.keys().cloned().collect())
        })
    }

    /// Puts an entry, as a client that is none of ours; all three must run.
    pub(crate) fn put(&self, namespace: &Namespace, subject: &str, body: &[u8]) -> Result<()> {
        namespace.inside(|| {
            let mut server = TcpStream::connect((self.address(0), CLIENTS))?;
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
        let details = self.details(namespace, stream);
        let mut leaders = details.iter().filter_map(|cluster| {
            let leader = cluster.get("leader")?.as_str()?;
            (!leader.is_empty()).then(|| leader.to_owned())
        });
        leaders.next_back()
    }

    /// What each server says of who has this stream.
    fn details(&self, namespace: &Namespace, stream: &str) -> Vec<Value> {
        let pages = self.pages(namespace, "/jsz?accounts=true&streams=true");
        let details = pages.iter().filter_map(|page| {
            let accounts = page.get("account_details")?.as_array()?;
            let details = accounts
                .iter()
                .filter_map(|a| a.get("stream_detail")?.as_array());
            let stream = details
                .flatten()
                .find(|detail| detail.get("name").and_then(Value::as_str) == Some(stream))?;
            stream.get("cluster").cloned()
        });
        details.collect()
    }

    fn address(&self, number: u16) -> Ipv4Addr {
        self.addresses[usize::from(number)]
    }

    /// The pages of those that answer.
    fn pages(&self, namespace: &Namespace, path: &str) -> Vec<Value> {
        let pages = (0..SERVERS).filter_map(|number| {
            let at = SocketAddr::from((self.address(number), PAGES + number));
            let body = http::get(namespace, at, path).ok()?;
            serde_json::from_str(&body).ok()
        });
        pages.collect()
    }

    fn config(&self, number: u16) -> Result<String> {
        let routes = (0..SERVERS).map(|n| format!("{}:{}", self.address(n), ROUTES + n));
        let host = Host {
            name: format!("n{number}"),
            clients: format!("{}:{}", self.address(number), CLIENTS + number),
            pages: format!("{}:{}", self.address(number), PAGES + number),
            routes: routes.collect(),
            number: usize::from(number),
        };
        match self.access {
            Access::Open => Ok(host.open(&self.folder)),
            Access::Guarded => host.guarded(&self.folder),
        }
    }
}

/// What one server's config has of its own.
struct Host {
    name: String,
    clients: String,
    pages: String,
    /// Where the servers find each other, and which of these is this one.
    routes: Vec<String>,
    number: usize,
}

impl Host {
    fn open(&self, folder: &Path) -> String {
        let routes = self.routes.iter().map(|route| format!("nats://{route}"));
        let routes: Vec<String> = routes.collect();
        format!(
            "server_name: {0}\nlisten: \"{1}\"\nhttp: \"{2}\"\njetstream {{ store_dir: \"{3}/{0}\" }}\n\
             cluster {{ name: lab, listen: \"{4}\", routes: [{5}] }}\n",
            self.name,
            self.clients,
            self.pages,
            folder.display(),
            self.routes[self.number],
            routes.join(", "),
        )
    }
}

/// A client that publishes into JetStream, so many at a time.
struct Publisher {
    server: TcpStream,
    replies: BufReader<TcpStream>,
    outgoing: Vec<u8>,
    published: usize,
    acknowledged: usize,
}

impl Publisher {
    fn connect(to: SocketAddr) -> Result<Self> {
        let mut server = TcpStream::connect(to)?;
        server.set_read_timeout(Some(READY))?;
        server.write_all(b"CONNECT {\"verbose\":false}\r\nSUB _INBOX.lab 1\r\n")?;
        Ok(Self {
            replies: BufReader::new(server.try_clone()?),
            server,
            outgoing: Vec::new(),
            published: 0,
            acknowledged: 0,
        })
    }

    fn publish(&mut self, subject: &str, body: &[u8]) -> Result<()> {
        let head = format!("PUB {subject} _INBOX.lab {}\r\n", body.len());
        self.outgoing.extend_from_slice(head.as_bytes());
        self.outgoing.extend_from_slice(body);
        self.outgoing.extend_from_slice(b"\r\n");
        self.published += 1;
        if self.published.is_multiple_of(WINDOW / 8) {
            self.send()?;
            self.wait_for(self.published.saturating_sub(WINDOW))?;
        }
        Ok(())
    }

    fn send(&mut self) -> Result<()> {
        self.server.write_all(&self.outgoing)?;
        self.outgoing.clear();
        Ok(())
    }

    /// Reads until so many are acknowledged.
    fn wait_for(&mut self, count: usize) -> Result<()> {
        let mut line = String::new();
        while self.acknowledged < count {
            line.clear();
            let length = self.replies.read_line(&mut line)?;
            ensure!(length > 0, "the server has closed the connection");
            if line.starts_with("PING") {
                self.server.write_all(b"PONG\r\n")?;
            }
            ensure!(!line.starts_with("-ERR"), "the server says {line}");
            if line.starts_with('{') {
                ensure!(!line.contains("\"error\""), "JetStream says {line}");
                self.acknowledged += 1;
            }
        }
        Ok(())
    }

    /// What JetStream answers.
    fn ask(&mut self, subject: &str, body: &[u8]) -> Result<Value> {
        self.publish(subject, body)?;
        self.send()?;
        let mut line = String::new();
        while !line.starts_with('{') {
            line.clear();
            let length = self.replies.read_line(&mut line)?;
            ensure!(length > 0, "the server has closed the connection");
        }
        Ok(serde_json::from_str(&line)?)
    }

    fn finish(&mut self) -> Result<usize> {
        self.send()?;
        self.wait_for(self.published)?;
        Ok(self.published)
    }
}
