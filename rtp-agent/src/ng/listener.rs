//! The sockets: one task for each address, one lock around the server.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use tokio::net::UdpSocket;
use tracing::{debug, info, warn};

use super::server::{Server, Step};
use crate::sockets::{SharedEngine, now};

/// How often calls that are over are looked for.
const SWEEP: Duration = Duration::from_millis(500);
/// After a failed receive, so that a lack of memory does not become a busy loop.
const RECEIVE_PAUSE: Duration = Duration::from_millis(50);
/// The largest datagram.
const BUFFER: usize = 65_536;

/// The server and the relay that it drives.
#[derive(Debug, Clone)]
pub struct SharedServer {
    server: Arc<Mutex<Server>>,
    engine: SharedEngine,
}

impl SharedServer {
    /// Joins them.
    pub fn new(server: Server, engine: SharedEngine) -> Self {
        Self {
            server: Arc::new(Mutex::new(server)),
            engine,
        }
    }

    /// Reads something of the server.
    pub fn with<T>(&self, work: impl FnOnce(&Server) -> T) -> T {
        work(&self.lock())
    }

    /// Opens the sockets.
    pub async fn bind(addresses: &[SocketAddr]) -> anyhow::Result<Vec<UdpSocket>> {
        let mut sockets = Vec::with_capacity(addresses.len());
        for address in addresses {
            let socket = UdpSocket::bind(address).await.with_context(|| {
                format!("cannot listen for ng on {address}; change listen in [ng]")
            })?;
            info!(%address, "listening for ng");
            sockets.push(socket);
        }
        Ok(sockets)
    }

    /// Answers what comes in on one socket, for ever.
    pub async fn serve(self, socket: UdpSocket) {
        let mut buffer = vec![0; BUFFER];
        loop {
            let (length, from) = match socket.recv_from(&mut buffer).await {
                Ok(received) => received,
                Err(error) => {
                    warn!(%error, "the ng socket failed");
                    tokio::time::sleep(RECEIVE_PAUSE).await;
                    continue;
                }
            };
            let Some(reply) = self.answer(&buffer[..length], from) else {
                continue;
            };
            if let Err(error) = socket.send_to(&reply, from).await {
                debug!(%error, %from, "cannot send an ng reply");
            }
        }
    }

    /// Ends what is due, for ever.
    pub async fn sweep(self) {
        loop {
            tokio::time::sleep(SWEEP).await;
            let mut server = self.lock();
            self.engine.with(|relay| server.sweep(relay, now()));
        }
    }

    fn answer(&self, datagram: &[u8], from: SocketAddr) -> Option<Arc<[u8]>> {
        let mut server = self.lock();
        let step = self
            .engine
            .with_figures(|relay| server.handle(datagram, from, relay, now()));
        match step {
            Step::Dropped => None,
            Step::Again(reply) => Some(reply),
            Step::Fresh(fresh) => Some(
                self.engine
                    .with(|relay| server.finish(*fresh, relay, now())),
            ),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Server> {
        self.server.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv6Addr};

    use super::*;
    use crate::ng::query::Clock;
    use crate::ng::settings::{Settings, UnknownSource};
    use crate::ports::PortRange;
    use crate::relay::{Relay, RelayConfig};
    use crate::session::Limits;
    use crate::sockets::MediaPorts;

    const PATIENCE: Duration = Duration::from_secs(20);
    const LOOPBACK: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);
    const OFFER: &str = "v=0\\r\\no=- 1 1 IN IP6 ::1\\r\\ns=-\\r\\nc=IN IP6 ::1\\r\\nt=0 0\\r\\n\
                         m=audio 6000 RTP/AVP 0\\r\\n";

    #[tokio::test]
    async fn both_codecs_are_answered_on_an_ipv6_socket_and_strangers_are_not() {
        let server = server(vec!["::1/128".parse().unwrap()]);
        let at = listen(&server).await;
        let proxy = UdpSocket::bind((LOOPBACK, 0)).await.unwrap();
        assert_eq!(
            ask(&proxy, at, "1_1 d7:command4:pinge").await,
            "1_1 d6:result4:ponge"
        );
        let pong = ask(&proxy, at, r#"1_2 {"command":"ping"}"#).await;
        assert_eq!(pong, r#"1_2 {"result":"pong"}"#);

        let offer =
            format!(r#"1_3 {{"command":"offer","call-id":"c","from-tag":"a","sdp":"{OFFER}"}}"#);
        let reply = ask(&proxy, at, &offer).await;
        let reply = reply.strip_prefix("1_3 ").expect("its cookie");
        let reply: serde_json::Value = serde_json::from_str(reply).expect("JSON");
        assert_eq!(reply["result"], "ok", "{reply}");
        let sdp = reply["sdp"].as_str().expect("an SDP");
        assert!(sdp.contains("c=IN IP6 ::1\r\n"), "{sdp}");
        assert!(!sdp.contains("m=audio 6000 "), "{sdp}");
        assert_eq!(server.engine.with(|relay| relay.gauges().leases), 1);

        let strict = listen(&self::server(vec!["2001:db8::/32".parse().unwrap()])).await;
        proxy
            .send_to(b"1_4 d7:command4:pinge", strict)
            .await
            .unwrap();
        // What comes next is the answer to a later question, elsewhere.
        let pong = ask(&proxy, at, "1_5 d7:command4:pinge").await;
        assert_eq!(pong, "1_5 d6:result4:ponge");
    }

    async fn listen(server: &SharedServer) -> SocketAddr {
        let mut sockets = SharedServer::bind(&[(LOOPBACK, 0).into()]).await.unwrap();
        let socket = sockets.pop().unwrap();
        let at = socket.local_addr().unwrap();
        tokio::spawn(server.clone().serve(socket));
        at
    }

    async fn ask(proxy: &UdpSocket, server: SocketAddr, request: &str) -> String {
        proxy.send_to(request.as_bytes(), server).await.unwrap();
        let mut buffer = [0; 2048];
        let received = tokio::time::timeout(PATIENCE, proxy.recv_from(&mut buffer));
        let (length, _) = received.await.expect("a reply").unwrap();
        String::from_utf8(buffer[..length].to_vec()).unwrap()
    }

    fn server(allow: Vec<ipnetwork::IpNetwork>) -> SharedServer {
        let seconds = Duration::from_secs;
        let relay = Relay::new(RelayConfig {
            name: "relay1".to_owned(),
            epoch: 1,
            addresses: vec![LOOPBACK],
            ports: PortRange::new(29_000, 29_099).unwrap(),
            quarantine: seconds(5),
            limits: Limits {
                idle: seconds(60),
                half_open: seconds(240),
                one_way: None,
                held: seconds(3600),
                learning: seconds(60),
                lease: seconds(30),
                linger: seconds(0),
            },
            max_stock: 4,
            max_sessions: usize::MAX,
            max_held: 64,
            seed: 1,
            concentrators: Vec::new(),
        });
        let ports = MediaPorts::per_port(1, false).unwrap();
        let engine = SharedEngine::new(relay, 0, ports, Duration::ZERO);
        let settings = Settings {
            listen: Vec::new(),
            allow,
            max_sessions: 100,
            delete_delay: seconds(30),
            unknown_source: UnknownSource::Any,
        };
        let clock = Clock {
            started: now(),
            started_unix: 0,
        };
        SharedServer::new(Server::new(settings, seconds(240), clock), engine)
    }
}
