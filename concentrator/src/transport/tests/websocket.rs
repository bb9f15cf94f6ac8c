//! WebSocket, with tungstenite as the phone, over TCP and over TLS.

use std::net::TcpStream as BlockingStream;

use tungstenite::client::IntoClientRequest;
use tungstenite::handshake::client::{Request, generate_request};
use tungstenite::{Message, WebSocket};

use super::tls::Folder;
use super::*;

type Phone = WebSocket<BlockingStream>;

#[tokio::test]
async fn messages_pass_as_text_and_as_binary_one_in_each() {
    let mut rig = Rig::new(limits());
    let phone = connect(&rig, Some("sip")).await.unwrap();
    let phone = talk(phone, |phone| {
        phone.send(Message::text(OPTIONS)).unwrap();
        phone.send(Message::binary(OPTIONS.as_bytes())).unwrap();
    })
    .await;
    let flow = rig.incoming().await.hop.flow;
    assert_eq!(flow.transport, Transport::Ws);
    assert_eq!(flow.local, rig.address(Transport::Ws));
    let second = rig.incoming().await;
    assert_eq!(second.hop.flow, flow);
    assert_eq!(second.payload, Payload::Datagram(OPTIONS.into()));

    rig.transports.send(transmit(flow, "answer"));
    let bytes = Bytes::from_static(b"\xff");
    rig.transports.send(Transmit { flow, bytes });
    let phone = talk(phone, |phone| {
        assert_eq!(phone.read().unwrap(), Message::text("answer"));
        assert_eq!(phone.read().unwrap(), Message::binary(&b"\xff"[..]));
    })
    .await;
    drop(phone);
    let closed = TransportEvent::Closed(flow.connection.unwrap());
    assert_eq!(rig.event().await, closed);
}

#[tokio::test]
async fn pings_of_both_kinds_are_answered_and_counted() {
    let rig = Rig::new(limits());
    let phone = connect(&rig, Some("sip")).await.unwrap();
    let _phone = talk(phone, |phone| {
        // "the endpoint MUST send a Pong frame in response" (RFC 6455 section 5.5.2).
        phone.send(Message::Ping("now".into())).unwrap();
        assert_eq!(phone.read().unwrap(), Message::Pong("now".into()));
        phone.send(Message::text("\r\n\r\n")).unwrap();
        assert_eq!(phone.read().unwrap(), Message::text("\r\n"));
    })
    .await;
    let keepalives = &rig.metrics.sip_keepalives;
    let counted = keepalives.get_or_create(&crate::metrics::transport(Transport::Ws));
    assert_eq!(counted.get(), 2);
}

#[tokio::test]
async fn a_goodbye_is_answered() {
    let mut rig = Rig::new(limits());
    let phone = connect(&rig, Some("sip")).await.unwrap();
    talk(phone, |phone| {
        phone.close(None).unwrap();
        let answer = phone.read().unwrap();
        assert!(matches!(answer, Message::Close(_)), "{answer:?}");
        assert!(phone.read().is_err(), "the server closes");
    })
    .await;
    rig.event().await;
    assert_eq!(rig.closed("peer"), 1);
}

#[tokio::test]
async fn without_the_subprotocol_there_is_no_websocket() {
    for offer in [None, Some("chat")] {
        let rig = Rig::new(limits());
        assert!(connect(&rig, offer).await.is_err(), "{offer:?}");
        assert_eq!(rig.closed("handshake_failed"), 1, "{offer:?}");
        assert_eq!(rig.transports.connections(), 0);
    }
}

#[tokio::test]
async fn what_breaks_the_protocol_ends_the_connection_under_its_own_name() {
    let unmasked = b"\x81\x05hello".to_vec();
    let too_long = [&b"\x81\xff\x00\x00\x00\x00\x00\x02\x00\x00"[..], &[0; 4]].concat();
    let cases = [(unmasked, "bad_frame"), (too_long, "message_too_long")];
    for (octets, why) in cases {
        let mut rig = Rig::new(limits());
        let phone = connect(&rig, Some("sip")).await.unwrap();
        let _phone = talk(phone, move |phone| {
            std::io::Write::write_all(phone.get_mut(), &octets).unwrap();
        })
        .await;
        rig.event().await;
        assert_eq!(rig.closed(why), 1, "{why}");
    }
}

#[tokio::test]
async fn a_frame_that_is_never_completed_closes_its_connection() {
    let mut rig = Rig::new(TcpLimits {
        message: Duration::from_millis(100),
        ..limits()
    });
    let phone = connect(&rig, Some("sip")).await.unwrap();
    let _phone = talk(phone, |phone| {
        std::io::Write::write_all(phone.get_mut(), b"\x81\x85").unwrap();
    })
    .await;
    rig.event().await;
    assert_eq!(rig.closed("slow_message"), 1);
}

#[tokio::test]
async fn a_websocket_that_says_nothing_is_given_up() {
    let rig = Rig::new(TcpLimits {
        handshake: Duration::from_millis(100),
        ..limits()
    });
    let mut silent = TcpStream::connect(rig.address(Transport::Ws))
        .await
        .unwrap();
    assert!(is_closed(&mut silent).await);
    rig.all_closed("slow_handshake").await;
}

#[tokio::test]
async fn over_tls_it_is_the_same() {
    let folder = Folder::new();
    let mut rig = Rig::with_tls(limits(), Some(folder.identity()));
    let mut stream = folder.dial(&rig, Transport::Wss, None).await.unwrap();
    let request = request(rig.address(Transport::Wss), Some("sip"));
    let (request, _) = generate_request(request).unwrap();
    stream.write_all(&request).await.unwrap();
    let mut response = Vec::new();
    while !response.ends_with(b"\r\n\r\n") {
        response.push(stream.read_u8().await.unwrap());
    }
    assert!(response.starts_with(b"HTTP/1.1 101 "));
    // A masked text frame whose mask is zero.
    let length = u8::try_from(OPTIONS.len()).unwrap();
    assert!(length < 126, "else it is written otherwise");
    let mut frame = vec![0x81, 0x80 | length, 0, 0, 0, 0];
    frame.extend_from_slice(OPTIONS.as_bytes());
    stream.write_all(&frame).await.unwrap();
    let incoming = rig.incoming().await;
    assert_eq!(incoming.hop.flow.transport, Transport::Wss);
    assert_eq!(incoming.payload, Payload::Datagram(OPTIONS.into()));
    rig.transports.send(transmit(incoming.hop.flow, "ok"));
    let mut answer = [0; 4];
    within(stream.read_exact(&mut answer)).await.unwrap();
    assert_eq!(&answer, b"\x81\x02ok");
}

fn request(address: SocketAddr, subprotocol: Option<&str>) -> Request {
    let mut request = format!("ws://{address}/").into_client_request().unwrap();
    if let Some(offer) = subprotocol {
        let headers = request.headers_mut();
        headers.insert("Sec-WebSocket-Protocol", offer.parse().unwrap());
    }
    request
}

/// The error says no more than that there is no WebSocket.
async fn connect(rig: &Rig, subprotocol: Option<&str>) -> Result<Phone, ()> {
    let address = rig.address(Transport::Ws);
    let request = request(address, subprotocol);
    let connected = tokio::task::spawn_blocking(move || {
        let stream = BlockingStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        tungstenite::client(request, stream)
            .map(|(phone, _)| phone)
            .map_err(drop)
    });
    connected.await.unwrap()
}

/// On a thread that may wait; gives the phone back.
async fn talk(mut phone: Phone, words: impl FnOnce(&mut Phone) + Send + 'static) -> Phone {
    let spoken = tokio::task::spawn_blocking(move || {
        words(&mut phone);
        phone
    });
    spoken.await.unwrap()
}
