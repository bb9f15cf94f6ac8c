//! A worker without a tunnel, fed by real sockets on the loopback interface.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;

use sip::hop::Transport;
use sip::message::{HeaderName, Message};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UdpSocket;

use super::*;
use crate::config::file::File;
use crate::transport::tests::tls::{Certificate, Folder, Phone};
use crate::transport::tests::{Rig, limits, within};

const CONFIG: &str = r#"
name = "c1"
service_addresses = ["198.51.100.1"]
domains = ["example.com"]
[tunnel]
listen = "10.0.9.2"
[[edges]]
name = "edge1"
sources = ["10.0.1.2/32"]
key = 0x1001
"#;

struct Bench {
    worker: Worker,
    incoming: mpsc::Receiver<Incoming>,
    events: mpsc::Receiver<TransportEvent>,
    udp: SocketAddr,
    tls: Option<SocketAddr>,
}

impl Bench {
    fn new(config: &str, folder: Option<&Folder>) -> Self {
        let rig = Rig::with_tls(limits(), folder.map(Folder::identity));
        let udp = rig.transports.udp_addresses().next().unwrap();
        let tls = rig.transports.addresses(Transport::Tls).next();
        let path = folder.map(|folder| folder.path.join("concentrator.toml"));
        let path = path.as_deref().unwrap_or(Path::new("concentrator.toml"));
        let file: File = admin::config::parse(path, config).unwrap();
        let config = Config::check(path, &file).unwrap();
        let (dns, _) = Dns::new(&[]);
        let owner = Owner(7);
        let peers = Peers::new(owner, Vec::new(), &Default::default());
        Self {
            worker: Worker::new(&config, rig.transports, dns, (owner, peers)).unwrap(),
            incoming: rig.incoming,
            events: rig.events,
            udp,
            tls,
        }
    }

    /// Takes the next message and answers it.
    async fn turn(&mut self) {
        let incoming = within(self.incoming.recv()).await.unwrap();
        self.worker.handle_incoming(incoming, now());
        self.worker.flush();
    }
}

/// A request with a transaction of its own.
fn request(method: &str, uri: &str, number: usize, via: &str) -> String {
    format!(
        "{method} {uri} SIP/2.0\r\nVia: SIP/2.0/{via} 192.168.1.2;branch=z9hG4bK{number};rport\r\n\
         From: <sip:caller@elsewhere.example>;tag=a\r\nTo: <{uri}>\r\nCall-ID: {number}\r\n\
         CSeq: 1 {method}\r\nMax-Forwards: 70\r\nContent-Length: 0\r\n\r\n"
    )
}

fn options(number: usize) -> String {
    request("OPTIONS", "sip:example.com", number, "UDP")
}

/// The answers are in the order of the requests, since one task reads, and one answers.
#[tokio::test]
async fn new_requests_are_refused_before_the_queue_is_full() {
    let mut bench = Bench::new(CONFIG, None);
    let room = bench.incoming.max_capacity();
    let phone = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let waiting = room / 2 + 2 * BATCH;
    for number in 0..waiting {
        phone
            .send_to(options(number).as_bytes(), bench.udp)
            .await
            .unwrap();
        if number % BATCH == 0 {
            let all_there = async {
                while bench.incoming.len() <= number {
                    tokio::task::yield_now().await;
                }
            };
            within(all_there).await;
        }
    }
    while bench.incoming.len() < waiting {
        within(tokio::task::yield_now()).await;
    }
    assert!(waiting < room, "nothing was dropped");

    let mut refused = 0;
    let mut taken = 0;
    while taken < waiting {
        bench.worker.handle_waiting(&mut bench.incoming);
        bench.worker.flush();
        let batch = (waiting - taken).min(BATCH);
        let over = waiting - taken - batch > room / 2;
        for _ in 0..batch {
            let answer = receive(&phone).await;
            let late = answer.header(HeaderName::RetryAfter).is_some();
            assert_eq!(answer.status(), Some(if late { 503 } else { 200 }));
            // The first of all are refused for their number. Others may have waited for too long by
            // now, on a busy machine.
            assert!(late || !over, "{taken}");
            refused += usize::from(late);
        }
        taken += batch;
    }
    assert!(refused >= BATCH, "{refused}");
    assert_eq!(bench.worker.proxy.counters().shed, refused as u64);

    bench.worker.handle_waiting(&mut bench.incoming);
    phone
        .send_to(options(waiting).as_bytes(), bench.udp)
        .await
        .unwrap();
    bench.turn().await;
    assert_eq!(receive(&phone).await.status(), Some(200), "it is over");
}

/// A trunk is known by its certificate from its first message on, and only on that connection.
#[tokio::test]
async fn a_certificate_makes_a_connection_a_trunks_and_no_other() {
    let folder = Folder::new();
    let users = "alice:example.com:0123456789abcdef0123456789abcdef\n";
    std::fs::write(folder.path.join("users"), users).unwrap();
    let config = format!(
        "{CONFIG}[sip.tls]\ncertificate = \"service.pem\"\nprivate_key = \"service.key\"\n\
         client_ca = \"ca.pem\"\n[authentication]\nusers_file = \"users\"\n\
         [[authentication.trusted]]\nname = \"carrier\"\ncertificates = [\"trunk.example.net\"]\n"
    );
    let mut bench = Bench::new(&config, Some(&folder));
    let cases = [
        (None, 403),
        (Some("other.example.net"), 403),
        // It is let in, and nobody is registered.
        (Some("trunk.example.net"), 404),
        (None, 403),
    ];
    for (number, (name, status)) in cases.into_iter().enumerate() {
        let own = name.map(|name| folder.issue(name));
        let answer = bench.ask_over_tls(&folder, own, number).await;
        assert_eq!(answer.status(), Some(status), "{name:?}: {answer:?}");
    }
}

impl Bench {
    /// The answer to a message from elsewhere on a connection of its own, which is closed afterwards.
    async fn ask_over_tls(
        &mut self,
        folder: &Folder,
        own: Option<Certificate>,
        number: usize,
    ) -> Message {
        let mut peer: Phone = folder.dial_address(self.tls.unwrap(), own).await.unwrap();
        let message = request("MESSAGE", "sip:bob@example.com", number, "TLS");
        peer.write_all(message.as_bytes()).await.unwrap();
        self.turn().await;
        let mut buffer = vec![0; 4096];
        let length = within(peer.read(&mut buffer)).await.unwrap();
        buffer.truncate(length);
        drop(peer);
        let closed = within(self.events.recv()).await.unwrap();
        self.worker.handle_transport(closed, &mut self.incoming);
        Message::parse(buffer.into()).unwrap()
    }
}

async fn receive(phone: &UdpSocket) -> Message {
    let mut buffer = vec![0; 4096];
    let length = within(phone.recv(&mut buffer)).await.unwrap();
    buffer.truncate(length);
    Message::parse(buffer.into()).unwrap()
}
