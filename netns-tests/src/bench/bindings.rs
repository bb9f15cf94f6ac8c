//! What a binding costs: memory in the registrar, and how long 200,000 of them take to be written
//! and to be there again after a restart. In this process, with the concentrator's own registrar
//! and file; no network. Each time is also given as CPU time, which other work on the machine does
//! not change.

use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use concentrator::config::{Location as LocationConfig, OnCorrupt};
use concentrator::location;
use serde_json::{Map, json};
use sip::cookie::Keys;
use sip::hop::{Flow, Hop, Transport};
use sip::message::Message;
use sip::registrar::{AddressOfRecord, Event, Limits, Registrar};

use super::{Conditions, Outcome};
use crate::process::cpu_time;

const BINDINGS: u32 = 200_000;
/// Bindings handed to the writer before it is given a moment.
const BATCH: usize = 1024;

pub(super) fn run(folder: &Path) -> Result<Outcome> {
    let file = folder.join("location.db");
    if file.exists() {
        std::fs::remove_file(&file)?;
    }
    let config = LocationConfig {
        file: file.clone(),
        on_corrupt: OnCorrupt::Fail,
    };

    eprintln!("bench bindings: {BINDINGS} REGISTERs");
    let before = resident_bytes()?;
    let watch = Watch::start()?;
    let registrar = register_all()?;
    let registering = watch.stop()?;
    let memory = resident_bytes()?.saturating_sub(before);

    eprintln!("bench bindings: writing");
    let watch = Watch::start()?;
    write_all(&registrar, &config)?;
    let writing = watch.stop()?;
    drop(registrar);

    eprintln!("bench bindings: restoring");
    let mut restored = new_registrar();
    let watch = Watch::start()?;
    let location = location::open(&config)?.restore(|record| {
        restored.restore(&record.user, record.binding, watch.start);
    })?;
    let restoring = watch.stop()?;
    drop(location);
    let count = restored.counts().bindings;
    ensure!(count == BINDINGS as usize, "{count} bindings were restored");

    let size = std::fs::metadata(&file)?.len();
    let mut conditions = Conditions::of(
        u64::from(BINDINGS),
        count as u64,
        registering.0,
        register(0, 1).len(),
    );
    conditions.more = json!({
        "register_all_cpu_s": registering.1.as_secs_f64(),
        "write_all_s": writing.0.as_secs_f64(),
        "write_all_cpu_s": writing.1.as_secs_f64(),
        "restore_all_s": restoring.0.as_secs_f64(),
        "restore_all_cpu_s": restoring.1.as_secs_f64(),
        "file_bytes": size,
    });
    Ok(Outcome {
        bench: "bindings",
        unit: "bytes of memory per binding",
        ours: memory as f64 / f64::from(BINDINGS),
        peer: None,
        peer_name: None,
        ratio: None,
        beside: Map::new(),
        conditions,
    })
}

/// Measures wall clock and CPU time.
struct Watch {
    start: Instant,
    cpu: Duration,
}

impl Watch {
    fn start() -> Result<Self> {
        Ok(Self {
            start: Instant::now(),
            cpu: cpu_time(std::process::id())?,
        })
    }

    fn stop(&self) -> Result<(Duration, Duration)> {
        let cpu = cpu_time(std::process::id())?;
        Ok((self.start.elapsed(), cpu.saturating_sub(self.cpu)))
    }
}

fn new_registrar() -> Registrar {
    let limits = Limits {
        ping_interval_s: 30,
        ..Limits::default()
    };
    Registrar::new(limits, Keys::new([7; 32], None))
}

fn register_all() -> Result<Registrar> {
    let mut registrar = new_registrar();
    let now = Instant::now();
    for number in 0..BINDINGS {
        let request = Message::parse(register(number, 1).into())?;
        let user = format!("sip:user{number}@example.com");
        let user = AddressOfRecord::from_uri(user.as_bytes()).context("a user")?;
        let answer = registrar.handle_register(&request, &user, &hop(number)?, now);
        ensure!(answer.status() == Some(200), "a REGISTER was refused");
        while registrar.poll_event().is_some() {}
    }
    Ok(registrar)
}

fn write_all(registrar: &Registrar, config: &LocationConfig) -> Result<()> {
    let mut location = location::open(config)?.restore(|_| {})?;
    let (mut place, mut number) = (None, 0);
    loop {
        let page = registrar.page(place, BATCH);
        let Some((last, ..)) = page.last() else {
            break;
        };
        place = Some(*last);
        for (_, user, binding) in page {
            number += 1;
            location.note(Event::BindingAdded(user, binding), number);
        }
        location.flush(registrar);
        while location.waiting() > BATCH {
            std::thread::sleep(Duration::from_millis(1));
            location.flush(registrar);
        }
    }
    // Ends with everything on the disk.
    drop(location);
    Ok(())
}

/// A phone behind a NAT, as a common one registers.
fn register(number: u32, cseq: u32) -> Vec<u8> {
    format!(
        "REGISTER sip:example.com SIP/2.0\r\n\
         Via: SIP/2.0/UDP 192.168.1.17:5060;branch=z9hG4bK{number:08x};rport\r\n\
         Max-Forwards: 70\r\n\
         From: <sip:user{number}@example.com>;tag={number:08x}\r\n\
         To: <sip:user{number}@example.com>\r\n\
         Call-ID: {number:08x}-5f1a-4f9e-9d0e-27a1c0ffee00\r\n\
         CSeq: {cseq} REGISTER\r\n\
         Contact: <sip:user{number}@192.168.1.17:5060>;+sip.instance=\"<urn:uuid:{number:08x}-0000-1000-8000-000a95a0e128>\"\r\n\
         Expires: 3600\r\n\
         Content-Length: 0\r\n\r\n"
    )
    .into_bytes()
}

/// A flow of its own.
fn hop(number: u32) -> Result<Hop> {
    let [_, a, b, _] = number.to_be_bytes();
    let port = 20_000 + u16::from(number.to_be_bytes()[3]);
    Ok(Hop {
        flow: Flow {
            transport: Transport::Udp,
            peer: SocketAddr::from(([100, 64 + a, b, 7], port)),
            local: "198.51.100.1:5060".parse()?,
            connection: None,
        },
        relay: None,
    })
}

/// Memory of this process that is in use.
fn resident_bytes() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kilobytes = line.and_then(|line| line.split_whitespace().next());
    let kilobytes: u64 = kilobytes.context("no VmRSS")?.parse()?;
    Ok(kilobytes * 1024)
}
