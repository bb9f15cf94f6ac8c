//! The running agent on loopback: real TLS, real UDP sockets, two phones and a scripted concentrator.
//!
//! ```text
//!   phone A ──UDP──► 127.0.0.1:200xx ┐                      ┌──TLS── concentrator (this test)
//!                                    ├── the agent's run() ─┘
//!   phone B ──UDP──► 127.0.0.1:200yy ┘
//! ```
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "in a test a failure is a panic"
)]

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use admin::config::LogSection;
use admin::run::Shutdown;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rtp_agent::config::{Concentrator, Config, Control, Media, Sockets};
use rtp_agent::ports::PortRange;
use rtp_agent::session::Limits;
use rtp_agent::sockets::{Location, MediaPorts, MediaThreads};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use wire::relay_control::{
    Framer, FromAgent, Gate, GateMode, Lease, ToAgent, VERSION, decode, encode_frame,
};

const PACKETS: u16 = 200;
const PATIENCE: Duration = Duration::from_secs(10);

#[tokio::test]
async fn two_phones_exchange_200_packets_each_way_and_none_is_lost() {
    exchange("exchange", Sockets::PerPort, 20_000).await;
}

#[tokio::test]
#[expect(clippy::print_stderr, reason = "a test that is skipped says so")]
async fn they_do_so_through_few_sockets_for_all_ports() {
    let at = Location {
        addresses: &[IpAddr::from(Ipv4Addr::LOCALHOST)],
        ports: PortRange::new(22_000, 22_099).unwrap(),
        freebind: false,
    };
    if let Err(reason) = MediaPorts::shared(at, 1) {
        assert_ne!(std::env::var("CI").as_deref(), Ok("true"), "{reason:#}");
        eprintln!("SKIP: {reason:#}");
        return;
    }
    exchange("shared", Sockets::Shared, 22_000).await;
}

async fn exchange(name: &str, sockets: Sockets, first_port: u16) {
    let folder = Folder::new(name);
    folder.authority(&["c1", "relay1"]);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let agent = Agent::start_with(&folder, &listener, "c1", first_port, sockets);
    let mut link = Link::accept(&folder, &listener)
        .await
        .expect("the right certificate");
    let lease = link.welcome().await;

    let (a, b) = (phone().await, phone().await);
    // The first packets are there before the bind and before the other side has sent.
    send(&a, lease.a.rtp, 1, 0).await;
    link.say(&ToAgent::Bind {
        request: 1,
        session: lease.session,
        a: loopback(),
        b: loopback(),
        call: "test".to_owned(),
    })
    .await;
    for sequence in 0..PACKETS {
        if sequence > 0 {
            send(&a, lease.a.rtp, 1, sequence).await;
        }
        send(&b, lease.b.rtp, 2, sequence).await;
        if sequence == 0 {
            // The first packets of both have been sent on: the latches stand.
            assert_eq!(receive(&a).await, (2, 0));
            assert_eq!(receive(&b).await, (1, 0));
        } else {
            assert_eq!(receive(&a).await, (2, sequence));
            assert_eq!(receive(&b).await, (1, sequence));
        }
    }
    // A stranger on this host has the right address but not the latched port.
    let stranger = phone().await;
    send(&stranger, lease.a.rtp, 66, 0).await;

    link.say(&ToAgent::Release {
        request: 2,
        session: lease.session,
    })
    .await;
    let stats = loop {
        if let FromAgent::Ended { session, stats } = link.hear().await {
            assert_eq!(session, lease.session);
            break stats;
        }
    };
    assert_eq!(
        (stats.a.rtp.packets_in, stats.a.rtp.packets_out),
        (200, 200)
    );
    assert_eq!(
        (stats.b.rtp.packets_in, stats.b.rtp.packets_out),
        (200, 200)
    );
    assert_eq!((stats.a.lost, stats.b.lost), (0, 0));
    assert_eq!(stats.a.rejected.latched, 1);
    assert_eq!(stats.a.latched_rtp, Some(a.local_addr().unwrap()));
    agent.stop().await;
}

#[tokio::test]
async fn after_a_lost_link_the_session_lives_on_and_the_concentrator_is_in_control_again() {
    let folder = Folder::new("reconnect");
    folder.authority(&["c1", "relay1"]);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let agent = Agent::start(&folder, &listener, "c1", 21_000);
    let mut link = Link::accept(&folder, &listener)
        .await
        .expect("the right certificate");
    let lease = link.welcome().await;
    let bind = ToAgent::Bind {
        request: 1,
        session: lease.session,
        a: loopback(),
        b: loopback(),
        call: "test".to_owned(),
    };
    link.say(&bind).await;
    link.hear_done(1).await;
    let (a, b) = (phone().await, phone().await);
    send(&a, lease.a.rtp, 1, 0).await;
    send(&b, lease.b.rtp, 2, 0).await;
    assert_eq!((receive(&a).await, receive(&b).await), ((2, 0), (1, 0)));

    drop(link);
    send(&a, lease.a.rtp, 1, 1).await;
    assert_eq!(receive(&b).await, (1, 1));

    let mut link = Link::accept(&folder, &listener)
        .await
        .expect("it dials again");
    link.welcome().await;
    link.say(&bind).await;
    link.hear_done(1).await;
    send(&b, lease.b.rtp, 2, 1).await;
    assert_eq!(receive(&a).await, (2, 1));
    agent.stop().await;
}

#[tokio::test]
async fn an_agent_with_a_certificate_of_another_authority_is_refused() {
    let (ours, theirs) = (Folder::new("ours"), Folder::new("theirs"));
    ours.authority(&["c1", "relay1"]);
    theirs.authority(&["c1", "relay1"]);
    // It believes our concentrator, but its own certificate is of the other authority.
    std::fs::copy(ours.path("ca.pem"), theirs.path("ca.pem")).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let agent = Agent::start(&theirs, &listener, "c1", 22_000);
    assert!(Link::accept(&ours, &listener).await.is_err());
    agent.stop().await;
}

#[tokio::test]
async fn a_concentrator_with_another_name_or_authority_is_not_believed() {
    let (ours, theirs) = (Folder::new("believer"), Folder::new("impostor"));
    ours.authority(&["c1", "relay1"]);
    theirs.authority(&["c1"]);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let agent = Agent::start(&ours, &listener, "c2", 23_000);
    assert!(
        Link::accept(&ours, &listener).await.is_err(),
        "another name"
    );
    agent.stop().await;
    let agent = Agent::start(&ours, &listener, "c1", 24_000);
    assert!(
        Link::accept(&theirs, &listener).await.is_err(),
        "another authority"
    );
    agent.stop().await;
}

/// The agent under test, running as its program does.
struct Agent {
    stop: tokio::sync::watch::Sender<bool>,
    task: JoinHandle<anyhow::Result<()>>,
}

impl Agent {
    fn start(folder: &Folder, listener: &TcpListener, server_name: &str, first_port: u16) -> Self {
        Self::start_with(folder, listener, server_name, first_port, Sockets::PerPort)
    }

    fn start_with(
        folder: &Folder,
        listener: &TcpListener,
        server_name: &str,
        first_port: u16,
        sockets: Sockets,
    ) -> Self {
        let address = IpAddr::from(Ipv4Addr::LOCALHOST);
        let config = Config {
            name: "relay1".to_owned(),
            media: Media {
                addresses: vec![address],
                ports: PortRange::new(first_port, first_port + 99).unwrap(),
                limits: Limits {
                    idle: Duration::from_secs(60),
                    half_open: Duration::from_secs(60),
                    one_way: Some(Duration::from_secs(300)),
                    held: Duration::from_secs(3600),
                    learning: Duration::from_secs(60),
                    lease: Duration::from_secs(30),
                    linger: Duration::from_millis(100),
                },
                quarantine: Duration::from_secs(5),
                max_stock: 4,
                max_sessions: usize::MAX,
                max_held: 100,
                threads: MediaThreads {
                    threads: 2,
                    gather: Duration::from_millis(1),
                },
                sockets,
            },
            control: Some(Control {
                concentrators: vec![Concentrator {
                    address: listener.local_addr().unwrap(),
                    server_name: server_name.to_owned(),
                }],
                certificate: folder.path("relay1.pem"),
                private_key: folder.path("relay1.key"),
                ca: folder.path("ca.pem"),
            }),
            ng: rtp_agent::ng::settings::Settings::default(),
            xdp: Default::default(),
            standby: None,
            admin_listen: SocketAddr::new(address, 0),
            log: LogSection::default(),
        };
        let (stop, shutdown) = Shutdown::pair();
        let task = tokio::spawn(rtp_agent::eventloop::run(config, shutdown));
        Self { stop, task }
    }

    async fn stop(self) {
        self.stop.send(true).unwrap();
        timeout(PATIENCE, self.task)
            .await
            .expect("it ends")
            .unwrap()
            .expect("a clean end");
    }
}

/// The concentrator's end of the control link.
struct Link {
    stream: TlsStream<TcpStream>,
    framer: Framer,
}

impl Link {
    async fn accept(folder: &Folder, listener: &TcpListener) -> std::io::Result<Self> {
        let (stream, _) = timeout(PATIENCE, listener.accept())
            .await
            .expect("it dials")?;
        let acceptor = TlsAcceptor::from(Arc::new(folder.server()));
        let stream = timeout(PATIENCE, acceptor.accept(stream))
            .await
            .expect("an outcome")?;
        Ok(Self {
            stream,
            framer: Framer::default(),
        })
    }

    /// Hello, Welcome; the first lease that is offered.
    async fn welcome(&mut self) -> Lease {
        let hello = self.hear().await;
        assert!(matches!(hello, FromAgent::Hello { .. }), "{hello:?}");
        self.say(&ToAgent::Welcome {
            version: VERSION,
            name: "c1".to_owned(),
            stock: 2,
            heartbeat_ms: 60_000,
        })
        .await;
        loop {
            if let FromAgent::Leases { leases } = self.hear().await {
                return leases[0];
            }
        }
    }

    async fn hear_done(&mut self, expected: u64) {
        while self.hear().await != (FromAgent::Done { request: expected }) {}
    }

    async fn say(&mut self, message: &ToAgent) {
        self.stream
            .write_all(&encode_frame(message).unwrap())
            .await
            .unwrap();
        self.stream.flush().await.unwrap();
    }

    async fn hear(&mut self) -> FromAgent {
        loop {
            if let Some(frame) = self.framer.next_frame().unwrap() {
                return decode(frame).unwrap();
            }
            let mut buffer = [0; 4096];
            let read = timeout(PATIENCE, self.stream.read(&mut buffer)).await;
            let length = read.expect("a message in time").unwrap();
            assert!(length > 0, "the agent has closed the link");
            self.framer.push(&buffer[..length]).unwrap();
        }
    }
}

/// A folder of certificates, removed when dropped.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("rtp-agent-{name}-{}", std::process::id()));
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

    fn server(&self) -> ServerConfig {
        let mut roots = RootCertStore::empty();
        roots.add(certificate(&self.path("ca.pem"))).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
                .build()
                .unwrap();
        ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_client_cert_verifier(verifier)
            .with_single_cert(
                vec![certificate(&self.path("c1.pem"))],
                PrivateKeyDer::from_pem_file(self.path("c1.key")).unwrap(),
            )
            .unwrap()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn certificate(path: &Path) -> CertificateDer<'static> {
    CertificateDer::from_pem_file(path).unwrap()
}

fn loopback() -> Gate {
    Gate {
        expected: vec![Ipv4Addr::LOCALHOST.into()],
        mode: GateMode::Exact,
        ..Gate::default()
    }
}

async fn phone() -> UdpSocket {
    UdpSocket::bind("127.0.0.1:0").await.unwrap()
}

async fn send(phone: &UdpSocket, port: u16, ssrc: u8, sequence: u16) {
    let [high, low] = sequence.to_be_bytes();
    let mut packet = vec![0x80, 0, high, low, 0, 0, high, low, 0, 0, 0, ssrc];
    packet.extend([0xff; 160]);
    phone.send_to(&packet, ("127.0.0.1", port)).await.unwrap();
}

/// The SSRC and the sequence number of the next packet.
async fn receive(phone: &UdpSocket) -> (u8, u16) {
    let mut packet = [0; 2048];
    let received = timeout(PATIENCE, phone.recv_from(&mut packet)).await;
    let (length, _) = received.expect("a packet in time").unwrap();
    assert_eq!(length, 172);
    (packet[11], u16::from_be_bytes([packet[2], packet[3]]))
}
