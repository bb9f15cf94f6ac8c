use std::net::SocketAddr;

use prometheus_client::registry::Registry;
use wire::bencode::{self, Value};
use wire::relay_control::FromAgent;

use super::*;

/// A socket in the place of an rtpengine, and the task that talks to it.
async fn started() -> (UdpSocket, mpsc::Receiver<RelayInput>) {
    let rtpengine = UdpSocket::bind(("127.0.0.1", 0)).await.expect("a socket");
    let target = Target {
        address: rtpengine.local_addr().expect("its address"),
        interface: None,
    };
    let (inputs, receiver) = mpsc::channel(64);
    let metrics = Metrics::register(&mut Registry::default());
    tokio::spawn(Task::new(target, 0, inputs, metrics).run());
    (rtpengine, receiver)
}

async fn request(rtpengine: &UdpSocket) -> (String, SocketAddr) {
    let mut buffer = vec![0; 2048];
    let received = tokio::time::timeout(Duration::from_secs(5), rtpengine.recv_from(&mut buffer));
    let (length, from) = received.await.expect("a request").expect("a datagram");
    let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
    let (cookie, body) = text.split_once(' ').expect("a cookie");
    let body = Value::parse(body.as_bytes()).expect("bencode");
    let ping = body.dictionary().and_then(|body| body.text("command"));
    assert_eq!(ping, Some("ping"));
    (cookie.to_owned(), from)
}

fn pong(cookie: &str) -> Vec<u8> {
    let mut answer = format!("{cookie} ").into_bytes();
    bencode::write_dictionary(&mut answer, |answer| {
        answer.bytes("result", "pong");
    });
    answer
}

#[tokio::test]
async fn only_the_address_of_the_rtpengine_is_listened_to() {
    let (rtpengine, mut inputs) = started().await;
    let (cookie, task) = request(&rtpengine).await;
    let stranger = UdpSocket::bind(("127.0.0.1", 0)).await.expect("a socket");
    stranger.send_to(&pong(&cookie), task).await.expect("sent");
    // The next ping says that the first has no answer: a pong would have opened the link before.
    let (cookie, task) = request(&rtpengine).await;
    assert!(inputs.try_recv().is_err(), "a stranger's pong counts");
    rtpengine.send_to(&pong(&cookie), task).await.expect("sent");
    let connected = inputs.recv().await;
    assert!(
        matches!(connected, Some(RelayInput::Connected { .. })),
        "{connected:?}"
    );
    let hello = inputs.recv().await;
    let Some(RelayInput::Message {
        message: FromAgent::Hello { name, .. },
        ..
    }) = hello
    else {
        panic!("{hello:?}");
    };
    assert!(name.starts_with("rtpengine@127.0.0.1:"));
}

#[tokio::test]
async fn the_link_closes_when_nobody_listens_any_more_and_opens_again() {
    let (rtpengine, mut inputs) = started().await;
    let (cookie, task) = request(&rtpengine).await;
    rtpengine.send_to(&pong(&cookie), task).await.expect("sent");
    let connected = inputs.recv().await;
    let Some(RelayInput::Connected {
        link: first,
        sender,
        ..
    }) = connected
    else {
        panic!("{connected:?}");
    };
    assert!(matches!(
        inputs.recv().await,
        Some(RelayInput::Message { .. })
    ));
    let address = rtpengine.local_addr().expect("its address");
    drop(rtpengine);
    let closed = tokio::time::timeout(Duration::from_secs(2), inputs.recv()).await;
    let Ok(Some(RelayInput::Closed { link })) = closed else {
        panic!("{closed:?}");
    };
    assert_eq!(link, first);
    drop(sender);
    let rtpengine = UdpSocket::bind(address).await.expect("the address again");
    let (cookie, task) = request(&rtpengine).await;
    rtpengine.send_to(&pong(&cookie), task).await.expect("sent");
    let connected = inputs.recv().await;
    let Some(RelayInput::Connected { link: second, .. }) = connected else {
        panic!("{connected:?}");
    };
    assert_ne!(first, second);
}

#[tokio::test]
async fn a_link_that_the_worker_closes_is_reported_and_comes_back() {
    let (rtpengine, mut inputs) = started().await;
    let (cookie, task) = request(&rtpengine).await;
    rtpengine.send_to(&pong(&cookie), task).await.expect("sent");
    let connected = inputs.recv().await;
    let Some(RelayInput::Connected { sender, .. }) = connected else {
        panic!("{connected:?}");
    };
    inputs.recv().await;
    drop(sender);
    assert!(matches!(
        inputs.recv().await,
        Some(RelayInput::Closed { .. })
    ));
    let (cookie, task) = request(&rtpengine).await;
    rtpengine.send_to(&pong(&cookie), task).await.expect("sent");
    assert!(matches!(
        inputs.recv().await,
        Some(RelayInput::Connected { .. })
    ));
}
