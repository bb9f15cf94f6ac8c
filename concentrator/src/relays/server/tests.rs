//! The listener on loopback with real TLS: agents that this test plays, and the real rtp-agent.
#![expect(
    clippy::disallowed_methods,
    reason = "the pool is told the time of this test"
)]

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::time::Instant;

use admin::run::Shutdown;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rtp_agent::ports::PortRange;
use rtp_agent::session::Limits;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use wire::gre::TunnelKey;
use wire::mark::{Mark, RelayId};
use wire::relay_control::{ErrorCode, Gate, GateMode};

use super::*;
use crate::metrics::reason;
use crate::relays::pool::{Command, NoLease, RelayEvent, RelayPool, Settings};

const PATIENCE: Duration = Duration::from_secs(10);

#[tokio::test]
async fn a_configured_agent_connects_is_heard_and_spoken_to() {
    let mut world = World::start(Duration::from_secs(5)).await;
    let mut agent = world.dial("relay1").await.unwrap();
    let (link, name, sender) = world.connected().await;
    assert_eq!(name, "relay1");
    say(&mut agent, &FromAgent::Draining).await;
    let heard = world.input().await;
    assert!(
        matches!(heard, RelayInput::Message { link: of, message: FromAgent::Draining } if of == link),
        "{heard:?}"
    );
    sender
        .send(ToAgent::Heartbeat { seq: 7 })
        .await
        .expect("the link is up");
    assert_eq!(hear(&mut agent).await, Some(ToAgent::Heartbeat { seq: 7 }));
}

#[tokio::test]
async fn a_dropped_sender_closes_the_link() {
    let mut world = World::start(Duration::from_secs(5)).await;
    let mut agent = world.dial("relay1").await.unwrap();
    let (link, _, sender) = world.connected().await;
    drop(sender);
    assert_eq!(hear(&mut agent).await, None);
    world.closed(link).await;
}

#[tokio::test]
async fn a_link_whose_agent_does_not_read_ends() {
    let (ours, _theirs) = tokio::io::duplex(16);
    let (sender, outgoing) = mpsc::channel(8);
    for seq in 0..8 {
        sender.try_send(ToAgent::Heartbeat { seq }).unwrap();
    }
    let ended = write(ours, outgoing, Duration::from_millis(50)).await;
    assert_eq!(ended, "the agent does not read");
}

#[tokio::test]
async fn an_agent_of_an_unknown_authority_is_refused_and_counted() {
    let mut world = World::start(Duration::from_secs(5)).await;
    let stranger = Folder::new();
    stranger.authority(&["relay1"]);
    // It believes us, but we do not believe it.
    std::fs::copy(world.folder.path("ca.pem"), stranger.path("ca.pem")).unwrap();
    world
        .refuses(&stranger, "relay1", "certificate_or_tls")
        .await;
}

#[tokio::test]
async fn a_certificate_without_a_configured_name_is_refused_and_counted() {
    let mut world = World::start(Duration::from_secs(5)).await;
    let folder = world.folder.clone();
    world.refuses(&folder, "relay9", "unknown_agent").await;
}

#[tokio::test]
async fn a_slow_handshake_is_given_up_and_counted() {
    let mut world = World::start(Duration::from_millis(100)).await;
    let mut silent = TcpStream::connect(world.address).await.unwrap();
    let read = timeout(PATIENCE, silent.read(&mut [0; 16])).await;
    assert_eq!(read.expect("it is closed").unwrap_or(0), 0);
    world.counted("handshake_timeout", 1).await;
    assert!(world.inputs.try_recv().is_err());
}

#[tokio::test]
async fn what_is_no_message_closes_the_link_and_is_counted() {
    let too_long = [0xff; 64].to_vec();
    let not_cbor = [&[0, 0, 0, 4][..], &[0xff; 4]].concat();
    let mut two_in_one = encode_frame(&FromAgent::Draining).unwrap();
    two_in_one.push(0);
    two_in_one[3] += 1;
    for (bytes, why) in [
        (too_long, "bad_frame"),
        (not_cbor, "not_a_message"),
        (two_in_one, "not_a_message"),
    ] {
        let mut world = World::start(Duration::from_secs(5)).await;
        let mut agent = world.dial("relay1").await.unwrap();
        let (link, _, _sender) = world.connected().await;
        agent.write_all(&bytes).await.unwrap();
        agent.flush().await.unwrap();
        world.closed(link).await;
        world.counted(why, 1).await;
    }
}

#[tokio::test]
async fn an_unknown_or_malformed_message_is_skipped_and_counted() {
    let mut world = World::start(Duration::from_secs(5)).await;
    let mut agent = world.dial("relay1").await.unwrap();
    let (_, _, _sender) = world.connected().await;
    // [99, []] and [2, ["x"]]: a Done whose request is a text.
    agent
        .write_all(&[0, 0, 0, 4, 0x82, 0x18, 99, 0x80])
        .await
        .unwrap();
    agent
        .write_all(&[0, 0, 0, 5, 0x82, 2, 0x81, 0x61, b'x'])
        .await
        .unwrap();
    say(&mut agent, &FromAgent::Draining).await;
    let heard = world.input().await;
    assert!(
        matches!(
            heard,
            RelayInput::Message {
                message: FromAgent::Draining,
                ..
            }
        ),
        "{heard:?}"
    );
    world.counted("unknown_message", 1).await;
    world.counted("malformed_message", 1).await;
}

#[tokio::test]
async fn a_message_before_the_hello_closes_the_link_and_is_counted() {
    let world = World::start(Duration::from_secs(5)).await;
    let mut agent = world.dial("relay1").await.unwrap();
    say(&mut agent, &FromAgent::Done { request: 1 }).await;
    let mut driven = Driven::new(world);
    driven
        .until(|driven| driven.pool.counters().violations == 1)
        .await;
    assert_eq!(hear(&mut agent).await, None);
    driven.until(|driven| driven.links.is_empty()).await;
}

#[tokio::test]
async fn the_rtp_agent_leases_binds_releases_and_reports_the_end() {
    let world = World::start(Duration::from_secs(5)).await;
    let (stop, agent) = world.start_agent(25_000);
    let mut driven = Driven::new(world);
    driven.until(|driven| driven.leases() == 2).await;
    assert_eq!(
        driven.events,
        [RelayEvent::AgentUp("relay1".to_owned())],
        "the agent is up"
    );

    let lease = driven.pool.take_lease(relay(), [None; 2]).expect("a lease");
    let gate = Gate {
        expected: vec![IpAddr::V4(Ipv4Addr::LOCALHOST)],
        mode: GateMode::Exact,
        ..Gate::default()
    };
    driven
        .pool
        .bind(lease.session, gate.clone(), gate, "call", Instant::now());
    // The stock is filled again: the Bind has arrived.
    driven.until(|driven| driven.leases() == 2).await;
    let phone = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let rtp = [0x80, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1];
    phone
        .send_to(&rtp, (lease.a.addr, lease.a.rtp))
        .await
        .unwrap();
    let started = RelayEvent::MediaStarted(lease.session, wire::relay_control::Side::A);
    driven
        .until(|driven| driven.events.contains(&started))
        .await;

    driven.pool.release(lease.session, Instant::now());
    let end = |event: &RelayEvent| {
        if let RelayEvent::Ended(session, stats) = event {
            return (*session == lease.session).then_some(stats.a.rtp.packets_in);
        }
        None
    };
    driven
        .until(|driven| driven.events.iter().any(|event| end(event).is_some()))
        .await;
    assert_eq!(driven.events.iter().find_map(end), Some(1));
    let counters = driven.pool.counters();
    assert_eq!(
        (counters.failed, counters.stray, counters.expired),
        (0, 0, 0)
    );

    stop.send(true).unwrap();
    driven
        .until(|driven| {
            driven
                .pool
                .agents()
                .all(|agent| agent.draining || !agent.up)
        })
        .await;
    timeout(PATIENCE, agent).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn the_rtp_agent_makes_its_stock_larger_when_calls_ask_for_more() {
    let world = World::start(Duration::from_secs(5)).await;
    let (stop, agent) = world.start_agent(25_200);
    let mut driven = Driven::new(world);
    driven.until(|driven| driven.leases() == 2).await;
    driven.pool.expect(relay(), 2);
    driven.until(|driven| driven.leases() == 4).await;
    let counters = driven.pool.counters();
    assert_eq!((counters.stock_changes, counters.stock_refused), (1, 0));
    assert_eq!(counters.stray, 0);
    stop.send(true).unwrap();
    timeout(PATIENCE, agent).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn the_rtp_agent_says_what_its_stock_lacks() {
    // Each has room for two sessions, the last for none.
    for (first_port, max_sessions, taken, expected) in [
        (25_300, usize::MAX, false, ErrorCode::NoPorts),
        (25_310, 2, false, ErrorCode::LimitReached),
        (25_320, usize::MAX, true, ErrorCode::BindFailed),
    ] {
        let ports = (first_port..first_port + 8).filter(|_| taken);
        let others = ports.map(|port| std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, port)));
        let others: Vec<_> = others.collect::<Result<_, _>>().unwrap();
        let world = World::start(Duration::from_secs(5)).await;
        let (stop, agent) = world.start_agent_with(first_port, |media| {
            media.ports = PortRange::new(first_port, first_port + 7).unwrap();
            media.max_sessions = max_sessions;
        });
        let mut driven = Driven::new(world);
        let wanted = if others.is_empty() { 2 } else { 0 };
        driven
            .until(|driven| driven.pool.is_up(relay()) && driven.leases() == wanted)
            .await;
        for _ in 0..wanted {
            let lease = driven.pool.take_lease(relay(), [None; 2]).unwrap();
            let gates = [Gate::default(), Gate::default()];
            let [a, b] = gates;
            driven
                .pool
                .bind(lease.session, a, b, "call", Instant::now());
        }
        let none = driven.pool.take_lease(relay(), [None; 2]);
        assert_eq!(none, Err(NoLease::StockEmpty));
        let lacks = |driven: &Driven| driven.pool.agents().find_map(|agent| agent.lacks);
        driven.until(|driven| lacks(driven).is_some()).await;
        assert_eq!(lacks(&driven), Some(expected));
        let counters = driven.pool.counters();
        let seen = [
            counters.no_ports,
            counters.bind_failed,
            counters.limit_reached,
        ];
        let code = expected.number() as usize;
        assert_eq!(seen, [1, 2, 3].map(|number| u64::from(number == code)));
        stop.send(true).unwrap();
        timeout(PATIENCE, agent).await.unwrap().unwrap().unwrap();
    }
}

/// The server, and what the worker would hear.
struct World {
    folder: Arc<Folder>,
    address: SocketAddr,
    inputs: mpsc::Receiver<RelayInput>,
    metrics: Arc<Metrics>,
    server: JoinHandle<()>,
}

impl Drop for World {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl World {
    async fn start(handshake_timeout: Duration) -> Self {
        let folder = Folder::new();
        folder.authority(&["c1", "relay1", "relay9"]);
        let config = RelayControl {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            certificate: folder.path("c1.pem"),
            private_key: folder.path("c1.key"),
            ca: folder.path("ca.pem"),
        };
        let (sender, inputs) = mpsc::channel(64);
        let metrics = Arc::<Metrics>::default();
        let names = HashSet::from(["relay1".to_owned()]);
        let mut server = Server::bind(&config, names, sender, Arc::clone(&metrics))
            .await
            .unwrap();
        server.handshake_timeout = handshake_timeout;
        Self {
            folder: Arc::new(folder),
            address: server.address().unwrap(),
            inputs,
            metrics,
            server: tokio::spawn(server.run()),
        }
    }

    async fn dial(&self, name: &str) -> io::Result<TlsStream<TcpStream>> {
        dial(&self.folder, name, self.address).await
    }

    /// Dials with this certificate and sees the connection end without the worker hearing of it.
    async fn refuses(&mut self, folder: &Folder, name: &str, why: &'static str) {
        // In TLS 1.3 a refused certificate shows only after the client's handshake.
        if let Ok(mut agent) = dial(folder, name, self.address).await {
            let read = timeout(PATIENCE, agent.read(&mut [0; 16])).await;
            assert_eq!(read.expect("it is closed").unwrap_or(0), 0);
        }
        self.counted(why, 1).await;
        assert!(self.inputs.try_recv().is_err());
    }

    async fn counted(&self, why: &'static str, expected: u64) {
        let counter = || {
            let family = &self.metrics.relay_control_refused;
            family.get_or_create(&reason(why)).get()
        };
        for _ in 0..200 {
            if counter() == expected {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{why} is {} and not {expected}", counter());
    }

    async fn input(&mut self) -> RelayInput {
        let input = timeout(PATIENCE, self.inputs.recv()).await;
        input.expect("an input in time").expect("the server runs")
    }

    async fn connected(&mut self) -> (LinkId, String, mpsc::Sender<ToAgent>) {
        let input = self.input().await;
        let RelayInput::Connected {
            link,
            agent,
            sender,
        } = input
        else {
            panic!("{input:?}")
        };
        (link, agent, sender)
    }

    async fn closed(&mut self, expected: LinkId) {
        let input = self.input().await;
        assert!(
            matches!(input, RelayInput::Closed { link } if link == expected),
            "{input:?}"
        );
    }

    /// The rtp-agent as its program runs it.
    fn start_agent(
        &self,
        first_port: u16,
    ) -> (
        tokio::sync::watch::Sender<bool>,
        JoinHandle<anyhow::Result<()>>,
    ) {
        self.start_agent_with(first_port, |_| {})
    }

    fn start_agent_with(
        &self,
        first_port: u16,
        change: impl FnOnce(&mut rtp_agent::config::Media),
    ) -> (
        tokio::sync::watch::Sender<bool>,
        JoinHandle<anyhow::Result<()>>,
    ) {
        let mut config = rtp_agent::config::Config {
            name: "relay1".to_owned(),
            xdp: Default::default(),
            media: rtp_agent::config::Media {
                addresses: vec![Ipv4Addr::LOCALHOST.into()],
                ports: PortRange::new(first_port, first_port + 99).unwrap(),
                limits: Limits {
                    idle: Duration::from_secs(60),
                    half_open: Duration::from_secs(60),
                    one_way: None,
                    held: Duration::from_secs(60),
                    learning: Duration::from_secs(60),
                    lease: Duration::from_secs(30),
                    linger: Duration::from_millis(100),
                },
                quarantine: Duration::from_secs(5),
                max_stock: 4,
                max_sessions: usize::MAX,
                max_held: 100,
                threads: rtp_agent::sockets::MediaThreads {
                    threads: 1,
                    gather: Duration::from_millis(1),
                },
                sockets: rtp_agent::config::Sockets::PerPort,
            },
            control: Some(rtp_agent::config::Control {
                concentrators: vec![rtp_agent::config::Concentrator {
                    address: self.address,
                    server_name: "c1".to_owned(),
                }],
                certificate: self.folder.path("relay1.pem"),
                private_key: self.folder.path("relay1.key"),
                ca: self.folder.path("ca.pem"),
            }),
            ng: rtp_agent::ng::settings::Settings::default(),
            standby: None,
            admin_listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            log: admin::config::LogSection::default(),
        };
        change(&mut config.media);
        let (stop, shutdown) = Shutdown::pair();
        let task = tokio::spawn(rtp_agent::eventloop::run(config, shutdown));
        (stop, task)
    }
}

/// The pool joined to the server, as the worker does it.
struct Driven {
    world: World,
    pool: RelayPool,
    links: std::collections::HashMap<LinkId, mpsc::Sender<ToAgent>>,
    events: Vec<RelayEvent>,
}

impl Driven {
    fn new(world: World) -> Self {
        let settings = Settings {
            stock: 2,
            ..Settings::default()
        };
        let mut pool = RelayPool::new("c1", [(relay(), "relay1".to_owned())], settings);
        pool.allow_addresses("relay1", vec!["127.0.0.0/8".parse().unwrap()]);
        Self {
            world,
            pool,
            links: std::collections::HashMap::new(),
            events: Vec::new(),
        }
    }

    fn leases(&self) -> usize {
        self.pool.agents().map(|agent| agent.leases).sum()
    }

    async fn until(&mut self, done: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.carry_out();
            if done(self) {
                return;
            }
            assert!(Instant::now() < deadline, "{:?}", self.events);
            let input = self.world.inputs.recv();
            match timeout(Duration::from_millis(50), input).await {
                Ok(input) => self.feed(input.expect("the server runs")),
                Err(_) => self.pool.handle_timeout(Instant::now()),
            }
        }
    }

    fn feed(&mut self, input: RelayInput) {
        let now = Instant::now();
        match input {
            RelayInput::Connected {
                link,
                agent,
                sender,
            } => {
                self.links.insert(link, sender);
                self.pool.handle_connected(link, &agent, now);
            }
            RelayInput::Message { link, message } => self.pool.handle_message(link, message, now),
            RelayInput::Closed { link } => {
                self.links.remove(&link);
                self.pool.handle_closed(link);
            }
        }
    }

    fn carry_out(&mut self) {
        while let Some(command) = self.pool.poll_command() {
            match command {
                Command::Send(link, message) => {
                    if let Some(sender) = self.links.get(&link) {
                        // A link that has just closed is reported as such.
                        let _ = sender.try_send(message);
                    }
                }
                Command::Close(link, _) => {
                    self.links.remove(&link);
                }
            }
        }
        self.events
            .extend(std::iter::from_fn(|| self.pool.poll_event()));
    }
}

/// Certificates, removed when dropped.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        use std::sync::atomic::{AtomicU32, Ordering};
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("sipcast-server-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn path(&self, file: &str) -> PathBuf {
        self.0.join(file)
    }

    /// A new authority and a certificate for each name.
    fn authority(&self, names: &[&str]) {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let authority = params.self_signed(&key).unwrap();
        std::fs::write(self.path("ca.pem"), authority.pem()).unwrap();
        let issuer = Issuer::new(params, key);
        for name in names {
            let key = KeyPair::generate().unwrap();
            let params = CertificateParams::new(vec![(*name).to_owned()]).unwrap();
            let certificate = params.signed_by(&key, &issuer).unwrap();
            std::fs::write(self.path(&format!("{name}.pem")), certificate.pem()).unwrap();
            std::fs::write(self.path(&format!("{name}.key")), key.serialize_pem()).unwrap();
        }
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn relay() -> RelayId {
    RelayId {
        key: TunnelKey(1),
        mark: Mark::new(1).expect("a mark"),
    }
}

async fn dial(
    folder: &Folder,
    name: &str,
    address: SocketAddr,
) -> io::Result<TlsStream<TcpStream>> {
    let files = admin::credentials::Files {
        certificate: &folder.path(&format!("{name}.pem")),
        private_key: &folder.path(&format!("{name}.key")),
        ca: &folder.path("ca.pem"),
    };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let credentials = Credentials::load(&files, &provider).unwrap();
    let tls = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(credentials.authorities)
        .with_client_auth_cert(credentials.certificates, credentials.private_key)
        .unwrap();
    let stream = TcpStream::connect(address).await?;
    let server = ServerName::try_from("c1").unwrap();
    let connecting = TlsConnector::from(Arc::new(tls)).connect(server, stream);
    timeout(PATIENCE, connecting).await.expect("an outcome")
}

async fn say(agent: &mut TlsStream<TcpStream>, message: &FromAgent) {
    let frame = encode_frame(message).unwrap();
    agent.write_all(&frame).await.unwrap();
    agent.flush().await.unwrap();
}

/// The next message; `None` at the end of the connection.
async fn hear(agent: &mut TlsStream<TcpStream>) -> Option<ToAgent> {
    let mut framer = Framer::default();
    let mut byte = [0];
    loop {
        if let Some(frame) = framer.next_frame().unwrap() {
            return Some(decode(frame).unwrap());
        }
        match timeout(PATIENCE, agent.read(&mut byte)).await.unwrap() {
            Ok(0) | Err(_) => return None,
            Ok(_) => framer.push(&byte).unwrap(),
        }
    }
}
