//! Real sockets on the loopback interface.

use std::net::Ipv4Addr;
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;
use wire::gre::TunnelKey;
use wire::mark::{Mark, RelayId};

use super::*;
use crate::flows::{FlowProtocol, Path};
use crate::metrics::reason;

mod connect;
pub(crate) mod tls;
mod websocket;

const OPTIONS: &str =
    "OPTIONS sip:example.com SIP/2.0\r\nCall-ID: 1\r\nContent-Length: 3\r\n\r\nabc";
const PATIENCE: Duration = Duration::from_secs(5);

#[tokio::test]
async fn a_datagram_arrives_with_its_flow_and_is_answered_from_the_same_address() {
    let mut rig = Rig::new(limits());
    let phone = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    phone.send_to(OPTIONS.as_bytes(), rig.udp()).await.unwrap();
    let incoming = rig.incoming().await;
    assert_eq!(incoming.payload, Payload::Datagram(OPTIONS.into()));
    let flow = incoming.hop.flow;
    assert_eq!(flow.peer, phone.local_addr().unwrap());
    assert_eq!(flow.local, rig.udp());
    assert_eq!(incoming.hop.relay, None, "it did not come through a tunnel");

    rig.transports.send(transmit(flow, "answer"));
    rig.transports.flush();
    let mut buffer = [0; 100];
    let (length, from) = within(phone.recv_from(&mut buffer)).await.unwrap();
    assert_eq!((&buffer[..length], from), (&b"answer"[..], rig.udp()));
}

#[tokio::test]
async fn the_mark_of_a_datagram_and_the_flow_table_name_the_relay() {
    let mut rig = Rig::new(limits());
    let phone = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let peer = phone.local_addr().unwrap();
    for (key, mark) in [(0x1001, 1), (0x1002, 2)] {
        rig.note(FlowProtocol::Udp, peer, key, mark);
    }
    for (mark, relay) in [(1, relay(0x1001, 1)), (2, relay(0x1002, 2))] {
        SockRef::from(&phone).set_tos_v4(mark << 2).unwrap();
        phone.send_to(OPTIONS.as_bytes(), rig.udp()).await.unwrap();
        assert_eq!(rig.incoming().await.hop.relay, Some(relay));
    }
}

#[tokio::test]
async fn udp_keepalives_are_counted_and_go_no_further() {
    let mut rig = Rig::new(limits());
    let phone = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    for keepalive in [&b"\r\n\r\n"[..], b"\0", b"\0\0\0\0", b""] {
        phone.send_to(keepalive, rig.udp()).await.unwrap();
    }
    phone.send_to(b"garbage", rig.udp()).await.unwrap();
    assert_eq!(
        rig.incoming().await.payload,
        Payload::Datagram("garbage".into())
    );
    let via = crate::metrics::transport(Transport::Udp);
    assert_eq!(rig.metrics.sip_keepalives.get_or_create(&via).get(), 4);
}

#[tokio::test]
async fn stun_on_the_sip_port_is_answered_and_counted() {
    let mut rig = Rig::new(limits());
    let phone = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let request = b"\x00\x01\x00\x00\x21\x12\xa4\x42twelve bytes";
    let refused = b"\x00\x02\x00\x00\x21\x12\xa4\x42twelve bytes";
    for datagram in [&request[..], refused, OPTIONS.as_bytes()] {
        phone.send_to(datagram, rig.udp()).await.unwrap();
        let incoming = rig.incoming().await;
        let Payload::Datagram(bytes) = incoming.payload else {
            panic!("a datagram");
        };
        let is_stun = datagram != OPTIONS.as_bytes();
        let flow = incoming.hop.flow;
        assert_eq!(rig.transports.answer_stun(&flow, &bytes), is_stun);
    }
    rig.transports.flush();
    let mut answer = [0; 100];
    let length = within(phone.recv(&mut answer)).await.unwrap();
    assert_eq!((length, &answer[..2]), (32, &[1, 1][..]));
    assert_eq!(rig.metrics.stun_answered.get(), 1);
    let dropped = &rig.metrics.sip_dropped;
    assert_eq!(
        dropped.get_or_create(&reason("stun_not_understood")).get(),
        1
    );
}

#[tokio::test]
async fn a_burst_of_datagrams_leaves_in_order() {
    let mut rig = Rig::new(limits());
    let phone = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    phone.send_to(OPTIONS.as_bytes(), rig.udp()).await.unwrap();
    let flow = rig.incoming().await.hop.flow;
    for number in 0..150 {
        rig.transports.send(transmit(flow, &number.to_string()));
    }
    rig.transports.flush();
    let mut buffer = [0; 100];
    for number in 0..150 {
        let length = within(phone.recv(&mut buffer)).await.unwrap();
        assert_eq!(&buffer[..length], number.to_string().as_bytes());
    }
}

#[tokio::test]
async fn messages_are_cut_out_of_a_stream_however_they_arrive() {
    let mut rig = Rig::new(limits());
    let mut phone = rig.connect().await;
    for piece in [&OPTIONS[..10], &OPTIONS[10..60], &OPTIONS[60..]] {
        phone.write_all(piece.as_bytes()).await.unwrap();
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    phone.write_all(OPTIONS.repeat(2).as_bytes()).await.unwrap();
    let first = rig.incoming().await.hop.flow;
    assert_eq!(first.transport, Transport::Tcp);
    assert_eq!(first.peer, phone.local_addr().unwrap());
    for _ in 0..2 {
        let incoming = rig.incoming().await;
        assert_eq!(incoming.hop.flow, first, "one connection, one flow");
        let Payload::Message(message) = incoming.payload else {
            panic!("a stream gives messages");
        };
        assert_eq!(message.bytes(), OPTIONS);
    }
    rig.transports.send(transmit(first, "answer"));
    let mut buffer = [0; 6];
    within(phone.read_exact(&mut buffer)).await.unwrap();
    assert_eq!(&buffer, b"answer");
}

#[tokio::test]
async fn a_route_flip_names_another_relay_on_the_same_connection() {
    let mut rig = Rig::new(limits());
    let mut phone = rig.connect().await;
    let peer = phone.local_addr().unwrap();
    for (key, mark) in [(0x1001, 1), (0x1002, 2)] {
        rig.note(FlowProtocol::Tcp, peer, key, mark);
        phone.write_all(OPTIONS.as_bytes()).await.unwrap();
        assert_eq!(rig.incoming().await.hop.relay, Some(relay(key, mark)));
    }
}

#[tokio::test]
async fn a_ping_is_answered_with_a_pong() {
    let rig = Rig::new(limits());
    let mut phone = rig.connect().await;
    phone.write_all(b"\r\n\r\n").await.unwrap();
    let mut buffer = [0; 2];
    within(phone.read_exact(&mut buffer)).await.unwrap();
    assert_eq!(&buffer, b"\r\n");
}

#[tokio::test]
async fn a_closed_connection_is_reported_and_sending_to_it_fails() {
    let mut rig = Rig::new(limits());
    let mut phone = rig.connect().await;
    phone.write_all(OPTIONS.as_bytes()).await.unwrap();
    let flow = rig.incoming().await.hop.flow;
    drop(phone);
    assert_eq!(
        rig.event().await,
        TransportEvent::Closed(flow.connection.unwrap())
    );
    assert_eq!(rig.transports.connections(), 0);
    rig.transports.send(transmit(flow, "late"));
    assert_eq!(rig.event().await, TransportEvent::Failed(flow));
}

#[tokio::test]
async fn a_flow_from_before_a_restart_does_not_reach_whoever_has_its_number_now() {
    let mut rig = Rig::new(limits());
    let mut phone = rig.connect().await;
    phone.write_all(OPTIONS.as_bytes()).await.unwrap();
    let mut flow = rig.incoming().await.hop.flow;
    flow.peer.set_port(1);
    rig.transports.send(transmit(flow, "for another"));
    assert_eq!(rig.event().await, TransportEvent::Failed(flow));
    assert_eq!(rig.transports.connections(), 1, "and it stays open");
}

#[tokio::test]
async fn a_flow_that_no_socket_serves_fails() {
    let mut rig = Rig::new(limits());
    let elsewhere = SocketAddr::from(([192, 0, 2, 1], 5060));
    for transport in [Transport::Udp, Transport::Ws, Transport::Wss] {
        let flow = Flow {
            transport,
            peer: elsewhere,
            local: elsewhere,
            connection: None,
        };
        rig.transports.send(transmit(flow, "x"));
        assert_eq!(rig.event().await, TransportEvent::Failed(flow));
    }
}

#[tokio::test]
async fn a_source_with_too_many_connections_gets_no_more_until_one_closes() {
    let mut rig = Rig::new(TcpLimits {
        connections_per_source: 2,
        ..limits()
    });
    let first = rig.connect().await;
    let _second = rig.connect().await;
    let mut third = rig.connect().await;
    assert!(is_closed(&mut third).await);
    assert_eq!(rig.refused("too_many_of_source"), 1);
    drop(first);
    rig.event().await;
    let mut fourth = rig.connect().await;
    fourth.write_all(OPTIONS.as_bytes()).await.unwrap();
    rig.incoming().await;
}

#[tokio::test]
async fn connections_beyond_the_total_are_refused() {
    let rig = Rig::new(TcpLimits {
        connections: 1,
        ..limits()
    });
    let _first = rig.connect().await;
    let mut second = rig.connect().await;
    assert!(is_closed(&mut second).await);
    assert_eq!(rig.refused("too_many"), 1);
}

#[tokio::test]
async fn a_message_that_is_never_completed_closes_its_connection() {
    let mut rig = Rig::new(TcpLimits {
        message: Duration::from_millis(100),
        ..limits()
    });
    let mut phone = rig.connect().await;
    phone.write_all(b"OPTIONS sip:exa").await.unwrap();
    assert!(is_closed(&mut phone).await);
    rig.event().await;
    assert_eq!(rig.closed("slow_message"), 1);
}

#[tokio::test]
async fn a_single_line_end_is_not_an_incomplete_message() {
    let mut rig = Rig::new(TcpLimits {
        message: Duration::from_millis(50),
        ..limits()
    });
    let mut phone = rig.connect().await;
    phone.write_all(b"\r\n").await.unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    phone.write_all(OPTIONS.as_bytes()).await.unwrap();
    rig.incoming().await;
}

#[tokio::test]
async fn phones_are_asked_to_go_when_we_drain_and_keep_what_was_sent_to_them() {
    let mut rig = Rig::new(limits());
    let mut phone = rig.connect().await;
    phone.write_all(OPTIONS.as_bytes()).await.unwrap();
    let incoming = rig.incoming().await;
    let flow = incoming.hop.flow;
    let bytes = Bytes::from_static(b"SIP/2.0 200 OK\r\n\r\n");
    rig.transports.send(Transmit { flow, bytes });
    assert_eq!(rig.transports.phones(), [flow.connection.unwrap()]);
    rig.transports.close(flow.connection.unwrap());
    let mut heard = Vec::new();
    phone.read_to_end(&mut heard).await.unwrap();
    assert!(heard.starts_with(b"SIP/2.0 200"));
    rig.event().await;
    assert_eq!(rig.closed("drained"), 1);
    assert!(rig.transports.phones().is_empty());
}

#[tokio::test]
async fn an_idle_connection_is_closed() {
    let mut rig = Rig::new(TcpLimits {
        idle: Duration::from_millis(100),
        ..limits()
    });
    let mut phone = rig.connect().await;
    assert!(is_closed(&mut phone).await);
    rig.event().await;
    assert_eq!(rig.closed("idle"), 1);
}

#[tokio::test]
async fn a_stream_that_cannot_be_framed_is_closed_under_its_own_name() {
    let endless = "a".repeat(70_000);
    let lying = OPTIONS.replace(": 3", ": 99999999");
    let cases = [
        ("HELO mail.example.com\r\n\r\n", "not_sip"),
        (endless.as_str(), "message_too_long"),
        (lying.as_str(), "message_too_long"),
        (&OPTIONS.replace(": 3", ": x"), "bad_content_length"),
    ];
    for (bytes, name) in cases {
        let mut rig = Rig::new(limits());
        let mut phone = rig.connect().await;
        // The connection may be gone before all is written.
        let _ = phone.write_all(bytes.as_bytes()).await;
        assert!(is_closed(&mut phone).await);
        rig.event().await;
        assert_eq!(rig.closed(name), 1, "{name}");
    }
}

#[tokio::test]
async fn a_phone_that_does_not_read_is_given_up() {
    let mut rig = Rig::new(limits());
    let mut phone = rig.connect().await;
    phone.write_all(OPTIONS.as_bytes()).await.unwrap();
    let flow = rig.incoming().await.hop.flow;
    let large = "x".repeat(60_000);
    for _ in 0..2_000 {
        rig.transports.send(transmit(flow, &large));
        if let Ok(event) = rig.events.try_recv() {
            assert_eq!(event, TransportEvent::Failed(flow));
            return;
        }
        tokio::task::yield_now().await;
    }
    panic!("the queue never filled");
}

#[tokio::test]
async fn a_burst_to_one_connection_arrives_whole_and_in_order() {
    let mut rig = Rig::new(limits());
    let mut phone = rig.connect().await;
    phone.write_all(OPTIONS.as_bytes()).await.unwrap();
    let flow = rig.incoming().await.hop.flow;
    // Nobody writes in between: the tasks of this runtime run when this one waits.
    let burst: Vec<String> = (0..1_000).map(|number| format!("{number:0300}")).collect();
    for message in &burst {
        rig.transports.send(transmit(flow, message));
    }
    let mut heard = vec![0; 300 * burst.len()];
    phone.read_exact(&mut heard).await.unwrap();
    assert_eq!(heard, burst.concat().as_bytes());
    assert!(rig.events.try_recv().is_err());
}

pub(crate) struct Rig {
    pub(crate) transports: Transports,
    pub(crate) incoming: mpsc::Receiver<Incoming>,
    pub(crate) events: mpsc::Receiver<TransportEvent>,
    flows: Arc<FlowTable>,
    metrics: Arc<Metrics>,
}

impl Rig {
    fn new(limits: TcpLimits) -> Self {
        Self::with_tls(limits, None)
    }

    pub(crate) fn with_tls(limits: TcpLimits, identity: Option<Arc<Identity>>) -> Self {
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let listen = Listen {
            unicast: Vec::new(),
            udp: vec![any],
            tcp: vec![any],
            tls: vec![any],
            ws: vec![any],
            wss: vec![any],
            identity,
            outbound: vec![any.ip()],
            path_mtu: Some(1472),
            limits,
            first_connection: ConnectionId::first(0, Owner(7)),
        };
        let flows = Arc::new(FlowTable::new(64));
        let metrics = Arc::new(Metrics::default());
        let opened = Transports::open(
            &listen,
            &Arc::default(),
            Arc::clone(&flows),
            Arc::clone(&metrics),
        )
        .unwrap();
        Self {
            transports: opened.transports,
            incoming: opened.incoming,
            events: opened.events,
            flows,
            metrics,
        }
    }

    fn udp(&self) -> SocketAddr {
        self.transports.udp_addresses().next().unwrap()
    }

    fn address(&self, transport: Transport) -> SocketAddr {
        self.transports.addresses(transport).next().unwrap()
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address(Transport::Tcp))
            .await
            .unwrap()
    }

    async fn incoming(&mut self) -> Incoming {
        within(self.incoming.recv()).await.unwrap()
    }

    async fn event(&mut self) -> TransportEvent {
        within(self.events.recv()).await.unwrap()
    }

    #[expect(clippy::disallowed_methods, reason = "some instant to count from")]
    fn note(&self, protocol: FlowProtocol, peer: SocketAddr, key: u32, mark: u8) {
        let path = Path {
            key: TunnelKey(key),
            mark: Mark::new(mark).unwrap(),
        };
        self.flows
            .note(protocol, peer, path, std::time::Instant::now());
    }

    fn refused(&self, why: &'static str) -> u64 {
        self.metrics
            .connections_refused
            .get_or_create(&reason(why))
            .get()
    }

    fn closed(&self, why: &'static str) -> u64 {
        self.metrics
            .connections_closed
            .get_or_create(&reason(why))
            .get()
    }
}

pub(crate) fn limits() -> TcpLimits {
    TcpLimits {
        connections: 100,
        connections_per_source: 50,
        handshake: PATIENCE * 2,
        idle: PATIENCE * 2,
        message: PATIENCE * 2,
        drain_grace: Duration::ZERO,
    }
}

fn relay(key: u32, mark: u8) -> RelayId {
    RelayId {
        key: TunnelKey(key),
        mark: Mark::new(mark).unwrap(),
    }
}

fn transmit(flow: Flow, text: &str) -> Transmit {
    Transmit {
        flow,
        bytes: Bytes::copy_from_slice(text.as_bytes()),
    }
}

async fn is_closed(phone: &mut (impl AsyncRead + Unpin)) -> bool {
    let mut buffer = [0; 16];
    // A reset is an end as well.
    matches!(within(phone.read(&mut buffer)).await, Ok(0) | Err(_))
}

pub(crate) async fn within<T>(future: impl Future<Output = T>) -> T {
    timeout(PATIENCE, future).await.expect("in time")
}
