//! Connections that we open.

use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::tls::Folder;
use super::*;

#[tokio::test]
async fn messages_wait_for_the_connection_and_later_ones_reuse_it() {
    let mut rig = Rig::new(limits());
    let next_hop = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let flow = rig.to(&next_hop, Transport::Tcp);
    rig.transports.send(transmit(flow, "one"));
    rig.transports.send(transmit(flow, "two"));
    let (mut peer, _) = within(next_hop.accept()).await.unwrap();
    let mut received = [0; 6];
    within(peer.read_exact(&mut received)).await.unwrap();
    assert_eq!(&received, b"onetwo");

    peer.write_all(OPTIONS.as_bytes()).await.unwrap();
    let back = rig.incoming().await.hop.flow;
    assert_eq!((back.peer, back.local), (flow.peer, flow.local));
    assert!(back.connection.is_some());
    rig.transports.send(transmit(back, "three"));
    rig.transports.send(transmit(flow, "four"));
    let mut received = [0; 9];
    within(peer.read_exact(&mut received)).await.unwrap();
    assert_eq!(&received, b"threefour");
    assert_eq!(rig.transports.connections(), 1);

    drop(peer);
    assert_eq!(
        rig.event().await,
        TransportEvent::Closed(back.connection.unwrap())
    );
    assert_eq!(rig.event().await, TransportEvent::Failed(flow));
    assert_eq!(rig.transports.connections(), 0, "forgotten");
    rig.transports.send(transmit(flow, "again"));
    let (mut peer, _) = within(next_hop.accept()).await.unwrap();
    let mut received = [0; 5];
    within(peer.read_exact(&mut received)).await.unwrap();
    assert_eq!(&received, b"again");
}

#[tokio::test]
async fn a_next_hop_that_does_not_listen_fails_its_flow() {
    let mut rig = Rig::new(limits());
    let next_hop = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let flow = rig.to(&next_hop, Transport::Tcp);
    drop(next_hop);
    rig.transports.send(transmit(flow, "lost"));
    assert!(matches!(rig.event().await, TransportEvent::Closed(_)));
    assert_eq!(rig.event().await, TransportEvent::Failed(flow));
    assert_eq!(rig.closed("connect_failed"), 1);
    assert_eq!(rig.transports.connections(), 0);
}

#[tokio::test]
async fn what_waits_for_a_connection_is_bounded() {
    let mut rig = Rig::new(limits());
    let next_hop = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let flow = rig.to(&next_hop, Transport::Tcp);
    // The task that connects has had no turn yet.
    let message = "x".repeat(1_000);
    for _ in 0..2_000 {
        rig.transports.send(transmit(flow, &message));
        if rig.events.try_recv().is_ok() {
            return;
        }
    }
    panic!("2 MB waited");
}

#[tokio::test]
async fn limits_for_phones_do_not_hold_for_next_hops() {
    let mut rig = Rig::new(TcpLimits {
        connections_per_source: 1,
        ..limits()
    });
    let _phone = rig.connect().await;
    let next_hop = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let flow = rig.to(&next_hop, Transport::Tcp);
    rig.transports.send(transmit(flow, "x"));
    within(next_hop.accept()).await.unwrap();
}

#[tokio::test]
async fn over_tls_the_next_hop_must_have_its_name() {
    let folder = Folder::new();
    for (name, good) in [("sip.example.com", true), ("other.example.com", false)] {
        let mut rig = Rig::with_tls(limits(), Some(folder.identity()));
        let next_hop = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let flow = rig.to(&next_hop, Transport::Tls);
        rig.transports.expect_name(flow.peer, name.to_owned());
        rig.transports.send(transmit(flow, "secret"));
        let (stream, _) = within(next_hop.accept()).await.unwrap();
        let acceptor: TlsAcceptor = folder.identity().acceptor();
        let accepted = within(acceptor.accept(stream)).await;
        if good {
            let mut peer = accepted.unwrap();
            let mut received = [0; 6];
            within(peer.read_exact(&mut received)).await.unwrap();
            assert_eq!(&received, b"secret");
            assert!(peer.get_ref().1.peer_certificates().is_some(), "mutual");
        } else {
            rig.event().await;
            assert_eq!(rig.event().await, TransportEvent::Failed(flow));
            assert_eq!(rig.closed("handshake_failed"), 1);
        }
    }
}

#[tokio::test]
async fn without_authorities_nothing_is_sent_over_tls() {
    let mut rig = Rig::new(limits());
    let next_hop = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let flow = rig.to(&next_hop, Transport::Tls);
    rig.transports.send(transmit(flow, "secret"));
    assert_eq!(rig.event().await, TransportEvent::Failed(flow));
    let unsent = &rig.metrics.sip_unsent;
    assert_eq!(unsent.get_or_create(&reason("tls_not_configured")).get(), 1);
}

impl Rig {
    fn to(&self, next_hop: &TcpListener, transport: Transport) -> Flow {
        Flow {
            transport,
            peer: next_hop.local_addr().unwrap(),
            local: self.udp(),
            connection: None,
        }
    }
}
