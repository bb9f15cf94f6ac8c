//! Two concentrators' ends on loopback, with real TLS.

use std::net::SocketAddr;
use std::path::PathBuf;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use wire::core_link::{ConnectionRecord, FlowRecord};

use tokio::net::TcpStream;

use super::*;
use crate::config::Peer;
use crate::core_link::Outlet;

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
            detour: true,
            peers: vec![Peer {
                name: peer.0.to_owned(),
                address: at(peer.1),
                tunnel: [127, 0, 0, 2].into(),
            }],
        };
        let (sender, inputs) = mpsc::channel(64);
        let (map, metrics) = (Arc::default(), Arc::default());
        let mut tasks = JoinSet::new();
        let parts = Parts {
            config: &config,
            name,
            owner: Owner(owner),
            map: &map,
            inputs: sender,
            detour: None,
            metrics: &metrics,
        };
        start(parts, &mut tasks).await.unwrap();
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
    let unsent = unsent(5);
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
        heard: None,
    };
    write_frame(&mut ours, &CoreMessage::Hello { hello })
        .await
        .unwrap();
    let (inputs, _inputs) = mpsc::channel(8);
    let shared = shared(11, inputs);
    let ended = listen(theirs, 0, "c2", &shared).await;
    assert!(matches!(ended, Ended::SameOwner(11)), "{ended}");
    drop(folder);
}

#[tokio::test]
async fn a_silent_end_is_noticed() {
    let (_ours, theirs) = tokio::io::duplex(4096);
    let mut reader = Reader::new(theirs);
    let (inputs, _inputs) = mpsc::channel(8);
    let mut health = reader.health().subscribe();
    let shared = shared(11, inputs);
    let (ended, quiet) = tokio::join!(
        reader.next(&shared),
        health.wait_for(|is| *is == Health::Quiet)
    );
    assert!(matches!(ended, Err(Ended::Silent)));
    assert!(quiet.is_ok());
}

/// What has waited while a hypervisor had stopped us is not news.
#[tokio::test]
async fn what_has_waited_while_this_end_stood_still_is_not_heard() {
    for (still_ms, heard) in [(100, true), (600, false)] {
        let (mut ours, theirs) = tokio::io::duplex(4096);
        let reading = tokio::spawn(async move {
            let mut reader = Reader::new(theirs);
            reader.next(&here_as(11)).await
        });
        tokio::task::yield_now().await;
        write_frame(&mut ours, &unsent(1)).await.unwrap();
        std::thread::sleep(Duration::from_millis(still_ms));
        let read = reading.await.unwrap();
        let stood_still = matches!(read, Err(Ended::StoodStill));
        assert_eq!(
            (read.is_ok(), stood_still),
            (heard, !heard),
            "{still_ms} ms"
        );
    }
}

/// Who is dialled says what it has heard, and at once when it hears nothing.
#[tokio::test]
async fn the_dialler_is_told_that_it_is_not_heard() {
    let (mut ours, theirs) = tokio::io::duplex(4096);
    let hello = shared(22, mpsc::channel(1).0).hello;
    let hello = CoreMessage::Hello {
        hello: Hello {
            name: "c2".to_owned(),
            ..hello
        },
    };
    write_frame(&mut ours, &hello).await.unwrap();
    write_frame(&mut ours, &unsent(1)).await.unwrap();
    let (inputs, mut heard) = mpsc::channel(8);
    let here = shared(11, inputs);
    let listening = here.clone();
    let listening = tokio::spawn(async move { listen(theirs, 0, "c2", &listening).await });
    let mut reader = Reader::new(ours);
    let greeting = reader.hello(&here_as(22)).await.unwrap();
    assert_eq!((greeting.owner, greeting.heard), (11, Some(0)));
    let mut said = Vec::new();
    while let Ok(message) = reader.next(&here).await {
        said.push(message);
    }
    assert!(said.contains(&CoreMessage::Heard {
        count: 1,
        silent: false
    }));
    assert_eq!(
        said.last(),
        Some(&CoreMessage::Heard {
            count: 1,
            silent: true
        })
    );
    assert!(matches!(listening.await.unwrap(), Ended::Silent));
    assert!(matches!(
        heard.recv().await,
        Some(PeerInput::Message { peer: 0, .. })
    ));
}

/// The connection breaks again and again while one speaks.
#[tokio::test]
async fn what_one_connection_has_not_brought_the_next_one_does() {
    const ALL: u64 = 3_000;
    let folder = Folder::new(&["c1", "c2"]);
    let [a, b] = ports();
    let line = Line::start(b).await;
    let mut first = End::start(&folder, "c1", 11, a, ("c2", line.port)).await;
    let mut second = End::start(&folder, "c2", 22, b, ("c1", a)).await;
    let (_, outlet) = first.up().await;
    second.up().await;
    let say = async {
        for number in 0..ALL {
            assert!(outlet.say(unsent(number)));
            if number % 20 == 0 {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            if number % 1_000 == 500 {
                line.breaks.notify_waiters();
            }
        }
    };
    let hear = async {
        for number in 0..ALL {
            let input = second.input().await;
            let expected = unsent(number);
            let PeerInput::Message { message, .. } = input else {
                panic!("{input:?}");
            };
            assert_eq!(message, expected);
        }
    };
    tokio::join!(say, hear);
    assert!(first.counted("direct_up") > 1);
    assert!(first.counted("said_again") > 0);
    let down = first.input().await;
    assert!(matches!(down, PeerInput::Down { peer: 0 }), "{down:?}");
}

/// Carries connections to a port, until it breaks them.
struct Line {
    port: u16,
    breaks: Arc<tokio::sync::Notify>,
    _task: JoinSet<()>,
}

impl Line {
    async fn start(to: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let breaks = Arc::<tokio::sync::Notify>::default();
        let broken = Arc::clone(&breaks);
        let mut task = JoinSet::new();
        task.spawn(async move {
            loop {
                let (mut here, _) = listener.accept().await.unwrap();
                let Ok(mut there) = TcpStream::connect(("127.0.0.1", to)).await else {
                    continue;
                };
                tokio::select! {
                    _ = tokio::io::copy_bidirectional(&mut here, &mut there) => {}
                    () = broken.notified() => {}
                }
            }
        });
        Self {
            port,
            breaks,
            _task: task,
        }
    }
}

fn unsent(number: u64) -> CoreMessage {
    CoreMessage::Unsent {
        flow: FlowRecord {
            transport: 1,
            peer: record().peer,
            local: record().local,
            connection: Some(number),
        },
    }
}

fn here_as(owner: u16) -> Shared {
    shared(owner, mpsc::channel(1).0)
}

fn shared(owner: u16, inputs: mpsc::Sender<PeerInput>) -> Shared {
    Shared {
        hello: Hello {
            version: VERSION,
            name: "c1".to_owned(),
            owner,
            heartbeat_ms: 100,
            software: String::new(),
            heard: None,
        },
        inputs,
        map: Arc::default(),
        ears: Arc::new(Ears::new(1)),
        metrics: Arc::default(),
    }
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
