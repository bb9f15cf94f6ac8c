//! Two concentrators that share registrations over three NATS servers. A phone registers through one and is
//! called through the other; entries of the bucket that make no sense disturb nobody. The leader of the stream is killed while REGISTERs arrive; then all of NATS. In
//! the end a concentrator starts with an empty disk, and has everything before it serves.

use std::collections::{BTreeSet, HashMap};
use std::net::{Ipv4Addr, UdpSocket};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::restart::{KEY, registers_of, write_key};
use super::second_concentrator::{
    SECOND, call, start_second, wait_for_choice, wire_second, with_both,
};
use crate::namespace::Namespace;
use crate::nats::Nats;
use crate::phone::{self, Script, Transport};
use crate::process::Process;
use crate::service::{Program, Service};
use crate::topology::two_edges::{CONCENTRATOR, PHONE, SERVICE, TwoEdges};
use crate::{registrations, wait};

/// For how long a NAT keeps a flow on which nothing comes back. By default it is 30 s, and a leader may take as long.
const NAT_TIMEOUT_S: &str = "180";
/// On the core, where both concentrators reach it.
const NATS: Ipv4Addr = Ipv4Addr::new(10, 0, 9, 1);
const PATIENCE: Duration = Duration::from_secs(40);
/// REGISTERs while the leader dies, one each 25 ms.
const BURST: usize = 320;
const PACE: Duration = Duration::from_millis(25);
/// REGISTERs without any NATS.
const ALONE: usize = 40;

struct Rig {
    net: TwoEdges,
    service: Service,
    other: Program,
    second: Namespace,
    nats: Nats,
}

pub(super) fn run(folder: &Path) -> Result<String> {
    let mut rig = Rig::start(folder)?;
    let mut callee = phone::callee(&rig.net.ua2, Transport::Udp, Script::Plain, 1, folder)?;
    let mut expected = BTreeSet::from(["ua2@example.com".to_owned()]);
    rig.wait_for_all(&expected).context("ua2 at both")?;

    rig.put_nonsense()?;
    let phones = Phones::at(&rig.net.ua1)?;
    let burst = rig.leader_dies(&phones, &mut expected)?;
    rig.nats.start_missing(&rig.net.core)?;
    rig.wait_for_state("connected")?;

    rig.nats.kill_all()?;
    rig.wait_for_state("degraded")?;
    let alone = phones.register("alone", ALONE, |_| Ok(()))?;
    expected.extend(alone.users.iter().cloned());
    call(&rig.net, &folder.join("alone")).context("without NATS")?;
    expected.insert("ua1@example.com".to_owned());
    rig.nats.start_missing(&rig.net.core)?;
    rig.wait_for_all(&expected)
        .context("after NATS came back")?;
    rig.wait_for_state("connected")?;

    rig.service.concentrator.process.kill()?;
    wait_for_choice(&rig.net, &rig.service, SECOND)?;
    call(&rig.net, &folder.join("other")).context("through the other concentrator")?;
    let whole = rig.start_first_with_empty_disk()?;
    wait_for_choice(&rig.net, &rig.service, &CONCENTRATOR.to_string())?;
    call(&rig.net, &folder.join("back")).context("through the one that had an empty disk")?;
    let registers = registers_of(folder)?;
    ensure!(registers == 1, "ua2 has registered {registers} times");
    callee.stop()?;
    rig.other.process.check_alive()?;
    rig.service.check_alive()?;
    Ok(format!(
        "{burst}; without NATS {ALONE} of {ALONE} answered, the last after {} ms; called through the other; \
         {whole} bindings on an empty disk before it served; ua2 registered once",
        alone.longest.as_millis()
    ))
}

impl Rig {
    fn start(folder: &Path) -> Result<Self> {
        let net = TwoEdges::build()?;
        let timeout = "net.netfilter.nf_conntrack_udp_timeout";
        net.nat_b.sysctl(timeout, NAT_TIMEOUT_S)?;
        let second = wire_second(&net)?;
        let nats = Nats::start(&net.core, NATS, folder)?;
        write_key(folder)?;
        let cluster = format!(
            "{KEY}\n[location]\nfile = \"location.db\"\n[cluster]\nid = 1\n{}",
            nats.keys()
        );
        let service = Service::start_edited(&net, folder, &cluster, |config| with_both(&config))?;
        let other = start_second(&second, folder, |config| config)?;
        wait_for_choice(&net, &service, &CONCENTRATOR.to_string())?;
        let mut rig = Self {
            net,
            service,
            other,
            second,
            nats,
        };
        rig.wait_for_state("connected")?;
        Ok(rig)
    }

    /// How often something happened at both concentrators.
    fn events(&self, event: &str) -> Result<[u64; 2]> {
        let name = format!("sipcast_concentrator_events_total{{event=\"{event}\"}}");
        let of = |program: &Program, namespace: &Namespace| {
            let metrics = program.metrics(namespace)?;
            let sample = metrics.into_iter().find(|(sample, _)| *sample == name);
            Ok::<u64, anyhow::Error>(sample.map_or(0, |(_, value)| value as u64))
        };
        Ok([
            of(&self.service.concentrator, &self.net.concentrator)?,
            of(&self.other, &self.second)?,
        ])
    }

    /// Entries that are no record, of a newer build, and under a name that is none of ours.
    fn put_nonsense(&self) -> Result<()> {
        let core = &self.net.core;
        let subject = |digit: &str| format!("$KV.sipcast.b.{}", digit.repeat(32));
        self.nats.put(core, &subject("0"), b"no record")?;
        self.nats.put(core, &subject("1"), &[0x82, 0x09, 0x01])?;
        self.nats.put(core, "$KV.sipcast.b.note", b"bring milk")?;
        for event in ["unreadable", "newer_version", "strange"] {
            let event = format!("cluster_{event}");
            wait::until("nonsense to be counted", PATIENCE, || {
                Ok((self.events(&event)? == [1, 1]).then_some(()))
            })
            .with_context(|| event.clone())?;
        }
        Ok(())
    }

    /// REGISTERs come one after the other, and in their midst the leader of the stream dies.
    fn leader_dies(&mut self, phones: &Phones, expected: &mut BTreeSet<String>) -> Result<String> {
        let before = self.events("register_unacknowledged")?[0];
        let mut killed = String::new();
        let result = phones.register("burst", BURST, |number| {
            if number == BURST / 4 {
                killed = self.nats.kill_leader(&self.net.core, "KV_sipcast")?;
            }
            Ok(())
        })?;
        expected.extend(result.users.iter().cloned());
        self.wait_for_all(expected)
            .context("after the leader died")?;
        // The pages lag.
        thread::sleep(Duration::from_secs(1));
        let late = self.events("register_unacknowledged")?[0] - before;
        Ok(format!(
            "{} of {BURST} REGISTERs answered 200 while leader {killed} died, the last after {} ms, {late} of \
             them before JetStream had them, and all at both",
            result.users.len(),
            result.longest.as_millis()
        ))
    }

    fn wait_for_all(&mut self, expected: &BTreeSet<String>) -> Result<()> {
        let Self {
            net,
            service,
            other,
            second,
            ..
        } = self;
        for (program, namespace) in [
            (&mut service.concentrator, &net.concentrator),
            (other, &*second),
        ] {
            let mut missing = Vec::new();
            wait::until("all bindings at both", PATIENCE, || {
                program.process.check_alive()?;
                let users = users_of(&program.status(namespace)?);
                missing = expected.difference(&users).cloned().collect();
                Ok(missing.is_empty().then_some(()))
            })
            .with_context(|| format!("{} lacks {} of them", namespace.name(), missing.len()))?;
        }
        Ok(())
    }

    fn wait_for_state(&mut self, state: &str) -> Result<()> {
        for (program, namespace) in [
            (&self.service.concentrator, &self.net.concentrator),
            (&self.other, &self.second),
        ] {
            let mut last = Value::Null;
            wait::until("the state of the cluster", PATIENCE, || {
                last = program.status(namespace)?["cluster"].clone();
                Ok((last["state"] == state).then_some(()))
            })
            .with_context(|| format!("{} is not {state}: {last}", namespace.name()))?;
        }
        Ok(())
    }

    /// Gives how many bindings it has when it first says that it is healthy.
    fn start_first_with_empty_disk(&mut self) -> Result<usize> {
        let folder = self.service.folder();
        std::fs::remove_file(folder.join("location.db"))?;
        self.service.concentrator.process = Process::start(
            &self.net.concentrator,
            "concentrator-again",
            &crate::service::binary("sipcast-concentrator")?.to_string_lossy(),
            &["--config", "concentrator.toml"],
            folder,
        )?;
        let first = &mut self.service.concentrator;
        first.wait_until_healthy(&self.net.concentrator)?;
        let status = first.status(&self.net.concentrator)?;
        ensure!(
            status["cluster"]["complete"] == true,
            "it serves and has not all: {}",
            status["cluster"]
        );
        let (here, there) = (
            users_of(&status),
            users_of(&self.other.status(&self.second)?),
        );
        let missing = there.difference(&here).count();
        ensure!(missing == 0, "it serves, and {missing} users are missing");
        Ok(here.len())
    }
}

fn users_of(status: &Value) -> BTreeSet<String> {
    let bindings = status.get("bindings").and_then(Value::as_array);
    let users = bindings.into_iter().flatten();
    users
        .filter_map(|binding| Some(binding.get("user")?.as_str()?.to_owned()))
        .collect()
}

/// Many phones behind one socket, each of which registers once and does not repeat itself.
struct Phones(UdpSocket);

struct Registered {
    users: Vec<String>,
    /// The longest time until an answer.
    longest: Duration,
}

impl Phones {
    fn at(namespace: &Namespace) -> Result<Self> {
        namespace.inside(|| {
            let socket = UdpSocket::bind((PHONE, 5070))?;
            socket.set_nonblocking(true)?;
            Ok(Self(socket))
        })
    }

    fn register(
        &self,
        name: &str,
        count: usize,
        mut before: impl FnMut(usize) -> Result<()>,
    ) -> Result<Registered> {
        let mut sent: HashMap<String, Instant> = HashMap::new();
        let mut users = Vec::new();
        let mut longest = Duration::ZERO;
        let start = Instant::now();
        let end = start + PACE * u32::try_from(count)? + Duration::from_secs(10);
        let mut number = 0;
        while users.len() < count {
            ensure!(
                Instant::now() < end,
                "{} of {count} REGISTERs were not answered 200",
                count - users.len()
            );
            if number < count && start.elapsed() >= PACE * u32::try_from(number)? {
                before(number)?;
                let user = format!("{name}{number}");
                self.0.send_to(
                    registrations::of_user(&user, 3_600).as_bytes(),
                    (SERVICE, 5060),
                )?;
                sent.insert(user, Instant::now());
                number += 1;
            }
            let mut buffer = [0; 2048];
            let Ok((length, _)) = self.0.recv_from(&mut buffer) else {
                thread::sleep(Duration::from_millis(1));
                continue;
            };
            let answer = String::from_utf8_lossy(&buffer[..length]);
            let user = answer.split("Call-ID: ").nth(1).unwrap_or_default();
            let user = user.split(['\r', '\n']).next().unwrap_or_default();
            if answer.starts_with("SIP/2.0 200")
                && let Some(at) = sent.remove(user)
            {
                longest = longest.max(at.elapsed());
                users.push(format!("{user}@example.com"));
            }
        }
        Ok(Registered { users, longest })
    }
}
