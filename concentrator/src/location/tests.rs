//! The file over a restart: what comes back, what does not, and what is said of a damaged one.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bytes::Bytes;
use sip::cookie::Keys;
use sip::hop::{ConnectionId, Flow, Hop, Transport};
use sip::message::Message;
use sip::registrar::record::Record;
use sip::registrar::{AddressOfRecord, Limits, Registrar};
use wire::gre::TunnelKey;
use wire::mark::{Mark, RelayId};

use super::{BATCH, Location, LocationError, now, open};
use crate::config::{Location as Config, OnCorrupt};

#[test]
fn bindings_come_back_as_they_were() {
    let folder = Folder::new();
    let mut life = Life::start(&folder);
    life.register(
        "bob",
        1,
        "<sip:bob@10.0.0.5>;q=0.7;+sip.instance=\"<urn:x>\"",
        "",
    );
    life.register(
        "carol",
        1,
        "<sip:carol@10.0.0.6>",
        "Supported: path\r\nPath: <sip:10.0.9.9;lr>\r\n",
    );
    let before = life.bindings();
    drop(life);
    let life = Life::start(&folder);
    let after = life.bindings();
    assert_eq!(after.len(), 2);
    for (was, is) in before.iter().zip(&after) {
        // The clocks differ by less than a millisecond's rounding; all else is the same.
        let shift = |a, b| if a > b { a - b } else { b - a };
        assert!(shift(was.binding.expires_at, is.binding.expires_at) < Duration::from_millis(5));
        let mut same = is.clone();
        same.binding.expires_at = was.binding.expires_at;
        same.binding.registered_at = was.binding.registered_at;
        assert_eq!(same, *was);
    }
}

#[test]
fn what_was_removed_or_has_moved_to_a_connection_does_not_come_back() {
    let folder = Folder::new();
    let mut life = Life::start(&folder);
    life.register("bob", 1, "<sip:bob@10.0.0.5>", "");
    life.register("carol", 1, "<sip:carol@10.0.0.6>", "");
    life.flush();
    life.register("bob", 2, "<sip:bob@10.0.0.5>;expires=0", "");
    life.hop.flow.transport = Transport::Tcp;
    life.hop.flow.connection = Some(ConnectionId(1));
    life.register("carol", 2, "<sip:carol@10.0.0.6>", "");
    drop(life);
    assert_eq!(Life::start(&folder).bindings(), []);
}

#[test]
fn a_contact_that_is_spelt_anew_is_still_one_binding() {
    let folder = Folder::new();
    let mut life = Life::start(&folder);
    life.register("bob", 1, "<sip:bob@Host.example>", "");
    life.flush();
    life.register("bob", 2, "<sip:bob@host.example>", "");
    drop(life);
    let [only] = &Life::start(&folder).bindings()[..] else {
        panic!("one binding")
    };
    assert_eq!(only.binding.contact_uri, "sip:bob@host.example");
}

#[test]
fn refreshes_are_kept_too() {
    let folder = Folder::new();
    let mut life = Life::start(&folder);
    life.register("bob", 1, "<sip:bob@10.0.0.5>;expires=60", "");
    life.register("bob", 2, "<sip:bob@10.0.0.5>;expires=600", "");
    drop(life);
    let bindings = Life::start(&folder).bindings();
    assert_eq!(bindings[0].binding.cseq, 2);
    assert!(bindings[0].binding.expires_at > now() + Duration::from_secs(500));
}

#[test]
fn what_the_writer_could_not_take_is_written_anew_and_what_is_gone_goes() {
    let folder = Folder::new();
    let mut life = Life::start(&folder);
    life.register("ghost", 1, "<sip:ghost@10.0.0.5>", "");
    life.flush();
    life.register_quietly("ghost", 2, "<sip:ghost@10.0.0.5>;expires=0", "");
    for number in 0..2 * BATCH {
        life.register_quietly(&format!("u{number}"), 1, "<sip:u@10.0.0.5>", "");
    }
    // All of it is lost, the removal as well, as when far too much waits for the disk.
    while life.registrar.poll_event().is_some() {}
    life.location
        .shared
        .incomplete
        .store(true, Ordering::Relaxed);
    while life.location.rewrite.is_some()
        || life.location.waiting() > 0
        || life.location.shared.incomplete.load(Ordering::Relaxed)
    {
        life.flush();
        std::thread::yield_now();
    }
    assert_eq!(life.location.counters().rewrites.load(Ordering::Relaxed), 1);
    drop(life);
    let users = Life::start(&folder).bindings();
    assert_eq!(users.len(), 2 * BATCH);
    assert!(
        users
            .iter()
            .all(|record| record.user.as_bytes() != b"ghost@example.com")
    );
}

#[test]
fn a_damaged_file_is_named_with_what_to_do_or_moved_away() {
    let folder = Folder::new();
    let file = folder.file();
    std::fs::write(
        &file,
        b"this is no database, and long enough to be looked at".repeat(200),
    )
    .unwrap();
    let config = |on_corrupt| Config {
        file: file.clone(),
        on_corrupt,
    };
    let error = open(&config(OnCorrupt::Fail)).unwrap_err();
    assert!(matches!(error, LocationError::Damaged(..)), "{error}");
    let text = error.to_string();
    for part in ["location.db", "on_corrupt = \"empty\"", "Move it away"] {
        assert!(text.contains(part), "{text}");
    }
    let opened = open(&config(OnCorrupt::Empty)).unwrap();
    let mut taken = 0;
    drop(opened.restore(|_| taken += 1).unwrap());
    assert_eq!(taken, 0);
    let aside = std::fs::read_dir(&folder.0).unwrap();
    let names: Vec<_> = aside.map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names.len(), 2, "{names:?}");
}

#[test]
fn a_file_that_is_in_use_and_a_folder_that_is_not_there_are_told() {
    let folder = Folder::new();
    let _life = Life::start(&folder);
    let config = |file: PathBuf| Config {
        file,
        on_corrupt: OnCorrupt::Empty,
    };
    let error = open(&config(folder.file())).unwrap_err().to_string();
    assert!(error.contains("in use by another process"), "{error}");
    let error = open(&config(folder.0.join("no/such/location.db"))).unwrap_err();
    assert!(
        error.to_string().contains("its folder must be there"),
        "{error}"
    );
}

/// One run of the program: a registrar and its file.
struct Life {
    registrar: Registrar,
    location: Location,
    noted: u64,
    hop: Hop,
}

impl Life {
    fn start(folder: &Folder) -> Self {
        let limits = Limits {
            max_bindings: 10_000,
            ..Limits::default()
        };
        let mut registrar = Registrar::new(limits, Keys::new([1; 32], None));
        let config = Config {
            file: folder.file(),
            on_corrupt: OnCorrupt::Fail,
        };
        let location = open(&config).unwrap().restore(|record| {
            assert!(registrar.restore(&record.user, record.binding, now()));
        });
        let relay = RelayId {
            key: TunnelKey(0x1001),
            mark: Mark::new(3).unwrap(),
        };
        let flow = Flow {
            transport: Transport::Udp,
            peer: SocketAddr::from(([192, 0, 2, 1], 40_000)),
            local: SocketAddr::from(([198, 51, 100, 1], 5060)),
            connection: None,
        };
        Self {
            noted: 0,
            registrar,
            location: location.unwrap(),
            hop: Hop {
                flow,
                relay: Some(relay),
            },
        }
    }

    fn register(&mut self, user: &str, cseq: u32, contact: &str, headers: &str) {
        self.register_quietly(user, cseq, contact, headers);
        while let Some(event) = self.registrar.poll_event() {
            self.noted += 1;
            self.location.note(event, self.noted);
        }
    }

    fn register_quietly(&mut self, user: &str, cseq: u32, contact: &str, headers: &str) {
        let text = format!(
            "REGISTER sip:example.com SIP/2.0\r\nVia: SIP/2.0/UDP 10.0.0.5;branch=z9hG4bK{cseq}\r\n\
             From: <sip:{user}@example.com>;tag=1\r\nTo: <sip:{user}@example.com>\r\n\
             Call-ID: {user}\r\nCSeq: {cseq} REGISTER\r\nContact: {contact}\r\n{headers}\
             Content-Length: 0\r\n\r\n"
        );
        let request = Message::parse(Bytes::from(text)).unwrap();
        let user = AddressOfRecord::from_uri(request.to().unwrap().uri).unwrap();
        let response = self
            .registrar
            .handle_register(&request, &user, &self.hop, now());
        assert_eq!(response.status(), Some(200));
    }

    fn flush(&mut self) {
        self.location.flush(&self.registrar);
    }

    fn bindings(&self) -> Vec<Record> {
        let all = self.registrar.iter();
        let mut all: Vec<Record> = all
            .map(|(user, binding)| Record {
                user: user.clone(),
                binding,
                removed: false,
            })
            .collect();
        all.sort_by(|a, b| a.user.cmp(&b.user));
        all
    }
}

/// A folder that goes away again.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("sipcast-location-{}-{number}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&folder).unwrap();
        Self(folder)
    }

    fn file(&self) -> PathBuf {
        Path::new(&self.0).join("location.db")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // Nothing else could be done about it.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
