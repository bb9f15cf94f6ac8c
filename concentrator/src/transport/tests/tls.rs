//! TLS, with rustls as the phone.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::*;
use crate::config::Tls;

/// The name in the service's certificate.
const SERVICE: &str = "sip.example.com";

#[tokio::test]
async fn messages_and_pings_pass_in_both_directions() {
    let folder = Folder::new();
    let mut rig = Rig::with_tls(limits(), Some(folder.identity()));
    let mut phone = folder.connect(&rig, None).await.unwrap();
    phone.write_all(OPTIONS.as_bytes()).await.unwrap();
    let flow = rig.incoming().await.hop.flow;
    assert_eq!(flow.transport, Transport::Tls);
    assert_eq!(flow.local, rig.address(Transport::Tls));
    rig.transports.send(transmit(flow, "answer"));
    assert_eq!(&receive::<6>(&mut phone).await, b"answer");
    // "the receiving node … MUST send a single CRLF back" (RFC 5626 section 4.4.1).
    phone.write_all(b"\r\n\r\n").await.unwrap();
    assert_eq!(&receive::<2>(&mut phone).await, b"\r\n");
    drop(phone);
    let closed = TransportEvent::Closed(flow.connection.unwrap());
    assert_eq!(rig.event().await, closed);
}

#[tokio::test]
async fn a_message_longer_than_a_record_passes_in_both_directions() {
    let folder = Folder::new();
    let mut rig = Rig::with_tls(limits(), Some(folder.identity()));
    let mut phone = folder.connect(&rig, None).await.unwrap();
    let body = "b".repeat(50_000);
    let long = format!("OPTIONS sip:a SIP/2.0\r\nContent-Length: 50000\r\n\r\n{body}");
    phone.write_all(long.as_bytes()).await.unwrap();
    let incoming = rig.incoming().await;
    let Payload::Message(message) = incoming.payload else {
        panic!("a stream gives messages");
    };
    assert_eq!(message.bytes(), long.as_str());
    rig.transports.send(transmit(incoming.hop.flow, &body));
    assert_eq!(&receive::<50_000>(&mut phone).await[..], body.as_bytes());
}

#[tokio::test]
async fn a_client_certificate_says_who_the_peer_is() {
    let folder = Folder::new();
    let mut rig = Rig::with_tls(limits(), Some(folder.identity()));
    let authority = &folder.authority;
    let cases = [
        (None, None),
        (
            Some(authority.issue("trunk.example.net")),
            Some("trunk.example.net"),
        ),
    ];
    for (certificate, name) in cases {
        let mut peer = folder.connect(&rig, certificate).await.unwrap();
        peer.write_all(OPTIONS.as_bytes()).await.unwrap();
        let connection = rig.incoming().await.hop.flow.connection.unwrap();
        let names = rig.transports.verified_names(connection);
        assert_eq!(
            names.as_deref(),
            name.map(|name| [name.to_owned()]).as_ref().map(|n| &n[..])
        );
        drop(peer);
        rig.event().await;
        assert_eq!(rig.transports.verified_names(connection), None, "forgotten");
    }
}

#[tokio::test]
async fn a_client_certificate_of_a_strange_authority_is_refused() {
    let folder = Folder::new();
    let rig = Rig::with_tls(limits(), Some(folder.identity()));
    let strange = Authority::new().issue("trunk.example.net");
    // In TLS 1.3 the client is done before the server has judged it.
    if let Ok(mut peer) = folder.connect(&rig, Some(strange)).await {
        let _ = peer.write_all(OPTIONS.as_bytes()).await;
        assert!(is_closed(&mut peer).await);
    }
    rig.all_closed("handshake_failed").await;
}

#[tokio::test]
async fn garbage_before_the_handshake_ends_the_connection() {
    let folder = Folder::new();
    let rig = Rig::with_tls(limits(), Some(folder.identity()));
    let mut peer = TcpStream::connect(rig.address(Transport::Tls))
        .await
        .unwrap();
    peer.write_all(OPTIONS.as_bytes()).await.unwrap();
    assert!(has_ended(&mut peer).await);
    rig.all_closed("handshake_failed").await;
}

#[tokio::test]
async fn a_handshake_that_is_never_completed_is_given_up() {
    let folder = Folder::new();
    let short = TcpLimits {
        handshake: Duration::from_millis(100),
        ..limits()
    };
    let rig = Rig::with_tls(short, Some(folder.identity()));
    let mut peer = TcpStream::connect(rig.address(Transport::Tls))
        .await
        .unwrap();
    assert!(has_ended(&mut peer).await);
    rig.all_closed("slow_handshake").await;
}

#[tokio::test]
async fn a_handshake_takes_a_place_among_the_connections() {
    let folder = Folder::new();
    let few = TcpLimits {
        connections_per_source: 1,
        ..limits()
    };
    let rig = Rig::with_tls(few, Some(folder.identity()));
    let _silent = TcpStream::connect(rig.address(Transport::Tls))
        .await
        .unwrap();
    let mut second = rig.connect().await;
    assert!(is_closed(&mut second).await);
    assert_eq!(rig.refused("too_many_of_source"), 1);
}

#[tokio::test]
async fn a_new_certificate_is_for_new_connections_and_a_bad_one_for_none() {
    let folder = Folder::new();
    let identity = folder.identity();
    let mut rig = Rig::with_tls(limits(), Some(Arc::clone(&identity)));
    let mut first = folder.connect(&rig, None).await.unwrap();
    let before = shown(&first);

    folder.write_pair();
    identity.reload().unwrap();
    first.write_all(OPTIONS.as_bytes()).await.unwrap();
    let flow = rig.incoming().await.hop.flow;
    rig.transports.send(transmit(flow, "answer"));
    assert_eq!(&receive::<6>(&mut first).await, b"answer", "not dropped");
    let second = folder.connect(&rig, None).await.unwrap();
    let after = shown(&second);
    assert_ne!(before, after);

    std::fs::write(
        folder.path.join("service.key"),
        KeyPair::generate().unwrap().serialize_pem(),
    )
    .unwrap();
    let error = identity.reload().unwrap_err();
    assert_eq!(error.key, "private_key");
    let third = folder.connect(&rig, None).await.unwrap();
    assert_eq!(shown(&third), after, "the old pair stays");
}

pub(crate) type Certificate = (CertificateDer<'static>, PrivateKeyDer<'static>);

/// The phone's end of the stream.
pub(crate) type Phone = TlsStream<TcpStream>;

fn shown(phone: &Phone) -> CertificateDer<'static> {
    let certificates = phone.get_ref().1.peer_certificates().unwrap();
    certificates[0].clone()
}

async fn receive<const LENGTH: usize>(phone: &mut Phone) -> [u8; LENGTH] {
    let mut buffer = [0; LENGTH];
    within(phone.read_exact(&mut buffer)).await.unwrap();
    buffer
}

/// Like `is_closed`, whatever comes before the end, such as a TLS alert.
async fn has_ended(peer: &mut TcpStream) -> bool {
    let mut rest = Vec::new();
    // A reset is an end as well.
    let _ = within(peer.read_to_end(&mut rest)).await;
    true
}

impl Rig {
    /// Waits until the one connection that there was has ended for this reason.
    pub(super) async fn all_closed(&self, why: &'static str) {
        let ended = async {
            while self.closed(why) == 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        within(ended).await;
        assert_eq!(self.closed(why), 1);
        assert_eq!(self.transports.connections(), 0);
    }
}

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    pem: String,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        Self {
            pem: certificate.pem(),
            certificate: certificate.der().clone(),
            issuer: Issuer::new(params, key),
        }
    }

    fn issue(&self, name: &str) -> Certificate {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new([name.to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        (certificate.der().clone(), key.into())
    }
}

/// PEM files in a folder of its own, gone with it.
pub(crate) struct Folder {
    pub(crate) path: PathBuf,
    authority: Authority,
}

impl Folder {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("sipcast-tls-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).unwrap();
        let folder = Self {
            path,
            authority: Authority::new(),
        };
        folder.write_pair();
        std::fs::write(folder.path.join("ca.pem"), &folder.authority.pem).unwrap();
        folder
    }

    /// A fresh certificate of the service, and its key.
    fn write_pair(&self) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new([SERVICE.to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.authority.issuer).unwrap();
        std::fs::write(self.path.join("service.pem"), certificate.pem()).unwrap();
        std::fs::write(self.path.join("service.key"), key.serialize_pem()).unwrap();
    }

    pub(crate) fn identity(&self) -> Arc<Identity> {
        let files = Tls {
            port: 5061,
            wss_port: None,
            certificate: self.path.join("service.pem"),
            private_key: self.path.join("service.key"),
            client_ca: Some(self.path.join("ca.pem")),
            server_ca: Some(self.path.join("ca.pem")),
        };
        Arc::new(Identity::load(&files).unwrap())
    }

    async fn connect(&self, rig: &Rig, own: Option<Certificate>) -> std::io::Result<Phone> {
        self.dial(rig, Transport::Tls, own).await
    }

    pub(super) async fn dial(
        &self,
        rig: &Rig,
        to: Transport,
        own: Option<Certificate>,
    ) -> std::io::Result<Phone> {
        self.dial_address(rig.address(to), own).await
    }

    /// A certificate for this name, of the authority that the service believes.
    pub(crate) fn issue(&self, name: &str) -> Certificate {
        self.authority.issue(name)
    }

    pub(crate) async fn dial_address(
        &self,
        to: SocketAddr,
        own: Option<Certificate>,
    ) -> std::io::Result<Phone> {
        let mut roots = RootCertStore::empty();
        roots.add(self.authority.certificate.clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let config = match own {
            None => config.with_no_client_auth(),
            Some((certificate, key)) => config
                .with_client_auth_cert(vec![certificate], key)
                .unwrap(),
        };
        let stream = TcpStream::connect(to).await?;
        let name = ServerName::try_from(SERVICE).unwrap();
        within(TlsConnector::from(Arc::new(config)).connect(name, stream)).await
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // A folder left behind in the temporary directory harms nobody.
        let _ = std::fs::remove_dir_all(&self.path);
    }
}
