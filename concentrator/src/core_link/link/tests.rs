//! Two concentrators' ends on loopback, with real TLS.

use std::path::PathBuf;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use wire::core_link::{ConnectionRecord, FlowRecord};

use super::*;
use crate::config::Peer;

const PATIENCE: Duration = Duration::from_secs(10);

/// One concentrator's links.
struct End {
    inputs: mpsc::Receiver<PeerInput>,
    map: Arc<ConnectionMap>,
    metrics: Arc<Metrics>,
    tasks: JoinSet<anyhow::Result<()>>,
}

impl End {
    async fn start(
        folder: &Folder,
        name: &str,
        owner: u16,
        listen: u16,
        peer: (&str, u16),
    ) -> Self {
        let at = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let config = CoreLink {
            listen: at(listen),
            certificate: folder.path(&format!("{name}.pem")),
            private_key: folder.path(&format!("{name}.key")),
            ca: folder.path("ca.pem"),
            peers: vec![Peer {
                name: peer.0.to_owned(),
                address: at(peer.1),
                tunnel: [127, 0, 0, 2].into(),
            }],
        };
        let (sender, inputs) = mpsc::channel(64);
        let (map, metrics) = (Arc::default(), Arc::default());
        let mut tasks = JoinSet::new();
        let owner = Owner(owner);
        start(&config, name, owner, &map, sender, &metrics, &mut tasks)
            .await
            .unwrap();
        Self {
            inputs,
            map,
            metrics,
            tasks,
        }
    }

    async fn input(&mut self) -> PeerInput {
        timeout(PATIENCE, self.inputs.recv())
            .await
            .unwrap()
            .unwrap()
    }

    async fn up(&mut self) -> (Owner, Outlet) {
        let input = self.input().await;
        let PeerInput::Up { owner, outlet, .. } = input else {
            panic!("{input:?}");
        };
        (owner, outlet)
    }

    fn counted(&self, name: &'static str) -> u64 {
        self.metrics.core_link.get_or_create(&event(name)).get()
    }
}

#[tokio::test]
async fn two_concentrators_find_each_other_and_what_one_says_the_other_hears() {
    let folder = Folder::new(&["c1", "c2"]);
    let [a, b] = ports();
    let mut first = End::start(&folder, "c1", 11, a, ("c2", b)).await;
    let here = first.map.opened(record());
    let mut second = End::start(&folder, "c2", 22, b, ("c1", a)).await;
    assert_eq!(first.up().await.0, Owner(22));
    let (owner, outlet) = second.up().await;
    assert_eq!(owner, Owner(11));
    until(|| second.map.peer_of(&record()) == Some(0)).await;
    let unsent = CoreMessage::Unsent {
        flow: FlowRecord {
            transport: 1,
            peer: record().peer,
            local: record().local,
            connection: Some(5),
        },
    };
    assert!(outlet.say(unsent.clone()));
    let heard = first.input().await;
    assert!(
        matches!(&heard, PeerInput::Message { peer: 0, message } if *message == unsent),
        "{heard:?}"
    );
    drop(here);
    until(|| second.map.peer_of(&record()).is_none()).await;
}

#[tokio::test]
async fn a_peer_that_ends_is_gone_and_so_are_its_connections() {
    let folder = Folder::new(&["c1", "c2"]);
    let [a, b] = ports();
    let mut first = End::start(&folder, "c1", 11, a, ("c2", b)).await;
    let mut second = End::start(&folder, "c2", 22, b, ("c1", a)).await;
    let _here = second.map.opened(record());
    first.up().await;
    second.up().await;
    until(|| first.map.peer_of(&record()) == Some(0)).await;
    second.tasks.shutdown().await;
    let down = first.input().await;
    assert!(matches!(down, PeerInput::Down { peer: 0 }), "{down:?}");
    until(|| first.map.peer_of(&record()).is_none()).await;
}

#[tokio::test]
async fn a_certificate_that_names_no_peer_is_refused() {
    let folder = Folder::new(&["c1", "c2", "c3"]);
    let [a, b] = ports();
    let first = End::start(&folder, "c1", 11, a, ("c2", b)).await;
    let _third = End::start(&folder, "c3", 33, b, ("c1", a)).await;
    until(|| first.counted("refused") > 0).await;
}

#[tokio::test]
async fn an_authority_that_is_not_ours_is_refused() {
    let (folder, other) = (Folder::new(&["c1", "c2"]), Folder::new(&["c1", "c2"]));
    let [a, b] = ports();
    let first = End::start(&folder, "c1", 11, a, ("c2", b)).await;
    let _second = End::start(&other, "c2", 22, b, ("c1", a)).await;
    until(|| first.counted("refused") > 0).await;
}

#[tokio::test]
async fn two_of_one_number_do_not_speak() {
    let folder = Folder::new(&["c1", "c2"]);
    let (mut ours, theirs) = tokio::io::duplex(4096);
    let hello = Hello {
        version: VERSION,
        name: "c2".to_owned(),
        owner: 11,
        heartbeat_ms: 100,
        software: String::new(),
    };
    write_frame(&mut ours, &CoreMessage::Hello { hello })
        .await
        .unwrap();
    let (inputs, _inputs) = mpsc::channel(8);
    let shared = Shared {
        hello: Hello {
            version: VERSION,
            name: "c1".to_owned(),
            owner: 11,
            heartbeat_ms: 100,
            software: String::new(),
        },
        inputs,
        map: Arc::default(),
        metrics: Arc::default(),
    };
    let ended = listen(theirs, 0, "c2", &shared).await;
    assert!(matches!(ended, Ended::SameOwner(11)), "{ended}");
    drop(folder);
}

#[tokio::test]
async fn a_silent_end_is_noticed() {
    let (_ours, theirs) = tokio::io::duplex(4096);
    let mut reader = Reader::new(theirs);
    assert!(matches!(reader.skip_all().await, Ended::Silent));
}

async fn until(what: impl Fn() -> bool) {
    let reached = async {
        while !what() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, reached).await.unwrap();
}

/// Two that were free just now.
fn ports() -> [u16; 2] {
    let free = || std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    [free(), free()].map(|listener| listener.local_addr().unwrap().port())
}

fn record() -> ConnectionRecord {
    ConnectionRecord {
        peer: ([203, 0, 113, 7], 40_000).into(),
        local: ([198, 51, 100, 1], 5060).into(),
    }
}

/// Certificates of one authority, removed when dropped.
struct Folder(PathBuf);

impl Folder {
    fn new(names: &[&str]) -> Self {
        use std::sync::atomic::{AtomicU32, Ordering};
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("sipcast-core-link-{}-{number}", std::process::id());
        let folder = Self(std::env::temp_dir().join(name));
        std::fs::create_dir_all(&folder.0).unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let authority = params.self_signed(&key).unwrap();
        std::fs::write(folder.path("ca.pem"), authority.pem()).unwrap();
        let issuer = Issuer::new(params, key);
        for name in names {
            let key = KeyPair::generate().unwrap();
            let params = CertificateParams::new(vec![(*name).to_owned()]).unwrap();
            let certificate = params.signed_by(&key, &issuer).unwrap();
            std::fs::write(folder.path(&format!("{name}.pem")), certificate.pem()).unwrap();
            std::fs::write(folder.path(&format!("{name}.key")), key.serialize_pem()).unwrap();
        }
        folder
    }

    fn path(&self, file: &str) -> PathBuf {
        self.0.join(file)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
